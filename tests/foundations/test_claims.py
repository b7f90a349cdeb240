"Claims: a group that no row has."
import pytest
from lotterybook.foundations.claims import decide, p_value, verdict
from lotterybook.foundations.results import interval

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

@pytest.mark.parametrize('side', ['above', 'below', 'within'])
@pytest.mark.parametrize('mean', [-3., -1., -.4, 0., .4, 1., 3.])
def test_p_value_is_the_level_that_decides(side, mean):
    "At that level the interval ends on the margin; a wider one leaves the claim open."
    values = [mean + o for o in (-.5, -.2, .1, .2, .4)]
    p = p_value(values, side, .9)
    assert verdict(*interval(values, 1 - p*1.001)[1:], side, .9) != 'undecided'
    if p < 1: assert verdict(*interval(values, 1 - p*.999)[1:], side, .9) == 'undecided'

def test_an_interval_without_width_decides_nothing():
    same = [dict(r, stop=1.) for r in rows]
    got, = decide(same, [claim | dict(round=1, against_round=2, margin=.5)])
    assert (got['low'], got['high'], got['verdict'], got['holm']) == (0, 0, 'undecided', False)

def test_holm_counts_all_claims_of_a_family():
    "A hundred claims that no row decides leave no room for one that is just decided."
    noisy = [dict(r, stop=r['stop'] + (r['seed'] % 3 - 3.1)*(r['round'] == 1)) for r in rows]
    one = claim | dict(round=1, against_round=2, margin=0)
    alone, = decide(noisy, [one])
    among = decide(noisy, [one] + [one | dict(margin=-2.1)]*100)
    assert (alone['verdict'], alone['holm'], among[0]['verdict'], among[0]['holm']) == ('holds', True, 'holds', False)
