"Claims: a group that no row has."
import pytest
from lotterybook.foundations.claims import decide

rows = [dict(seed=s, condition=c, round=r, stop=1. + s) for s in range(5) for c, r in (('ticket', 1), ('reinit', 2))]
claim = dict(claim='earlier', value='stop', condition='ticket', against_condition='reinit', compare='difference', side='below', margin=1)

@pytest.mark.parametrize('changed, why', [
    (dict(condition='tickte'), "condition 'tickte', and the rows have 'ticket', 'reinit'"),
    (dict(against_condition='dense'), "condition 'dense', and the rows have"),
    (dict(round=1, against_round=3), 'round 3, and the rows have 1, 2')])
def test_a_misspelt_group(changed, why):
    with pytest.raises(ValueError, match=why): decide(rows, [claim | changed])

@pytest.mark.parametrize('rows, changed', [([], dict(condition='tickte')), (rows, dict(round=2, against_round=2))])
def test_what_is_not_measured_yet_is_undecided(rows, changed):
    "No rows at all, or no row of two values that each occur."
    got, = decide(rows, [claim | changed])
    assert (got['n'], got['verdict']) == (0, 'undecided')
