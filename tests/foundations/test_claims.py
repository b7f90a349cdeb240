"Claims: verdicts and intervals by hand, groups that no row has, rows and claims that do not fit."
import math
import numpy as np
import pytest
from lotterybook.foundations.claims import (
    compare, decide, draw_claims, p_value, verdict, verdict_groups, verdict_table)
from lotterybook.foundations.plots import OKABE_ITO
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

# --- verdicts

@pytest.mark.parametrize('side, margin, intervals, words', [
    ('below', 0, ((-2, -1), (-1, 1), (1, 2)), ['holds', 'undecided', 'fails']),
    ('above', 0, ((-2, -1), (-1, 1), (1, 2)), ['fails', 'undecided', 'holds']),
    ('within', 1, ((-.5, .5), (-.5, 1.5), (2, 3), (-3, -2), (-5, 5)), ['holds', 'undecided', 'fails', 'fails', 'undecided']),
    ('below', 0, ((0, 0),), ['undecided'])])  # on the margin is not beyond it
def test_verdicts(side, margin, intervals, words):
    assert [verdict(low, high, side, margin) for low, high in intervals] == words

@pytest.mark.parametrize('given, why', [((0, 1, 'over', 0), "'over'"), ((0, 1, 'within', 0), 'margin above 0'),
                                        ((1, 0, 'below', 0), 'from a low to a high end'),
                                        ((float('nan'), 1, 'below', 0), 'from a low to a high end')])
def test_no_verdict(given, why):
    with pytest.raises(ValueError, match=why): verdict(*given)

# --- three seeds by hand

steps = [dict(seed=s, condition=c, stop=v) for c, values in dict(ticket=(300, 310, 290), dense=(400, 400, 400)).items()
         for s, v in enumerate(values)]
earlier = dict(claim='a ticket stops earlier', value='stop', condition='ticket', against_condition='dense',
               compare='relative', side='below', margin=0)

def without(claim, name): return {k: v for k, v in claim.items() if k != name}

def test_three_seeds_by_hand():
    "A t interval with two degrees of freedom; with three seeds nothing is decided, unless `least` allows it."
    assert compare(steps, earlier) == {0: -.25, 1: -.225, 2: -.275}
    assert compare(steps[::-1], earlier) == compare(steps, earlier)  # by seed, not by place
    got = decide(steps, [earlier, dict(earlier, compare='difference', side='above'), dict(earlier, margin=-.25)], least=3)
    assert [o['verdict'] for o in got] == ['holds', 'fails', 'undecided']
    half_width = 4.3027*.025/3**.5
    assert [got[0][k] for k in ('mean', 'low', 'high')] == pytest.approx([-.25, -.25 - half_width, -.25 + half_width], abs=1e-4)
    three, = decide(steps, [earlier])
    assert (three['verdict'], three['low'], three['mean']) == ('undecided', None, pytest.approx(-.25))

@pytest.mark.parametrize('claims', [[earlier], []])
def test_one_seed_is_no_interval(claims):
    with pytest.raises(ValueError, match='least=1'): decide(steps, claims, least=1)

@pytest.mark.parametrize('rows, claim, why', [
    (steps + steps[:1], earlier, 'pick one each'),
    (steps, dict(earlier, compare='ratio'), "'ratio'"),
    (steps, dict(earlier, value='stops'), 'speaks of stops; the columns are seed'),
    (steps, without(earlier, 'condition'), 'names no condition'),
    (steps, without(earlier, 'against_condition'), 'names no against_'),
    ([dict(r, stop=None) if r['seed'] == 2 else r for r in steps], earlier, 'seed 2 is None'),
    ([dict(r, stop=0) for r in steps], earlier, 'relative to 0')])
def test_rows_and_claims_that_do_not_fit(rows, claim, why):
    with pytest.raises(ValueError, match=why): compare(rows, claim)

def test_a_seed_in_one_group_only():
    "A run that failed, or is not there yet: the rest is compared, and it is said."
    late = [dict(r, condition='late', stop=r['stop'] + 1) for r in steps if r['condition'] == earlier['condition'] and r['seed'] < 2]
    with pytest.warns(UserWarning, match='seed 2 is in one group only'):
        got, = decide([*steps, *late], [dict(earlier, against_condition='late')])
    assert got['n'] == 2
    with pytest.warns(UserWarning, match='seed 2, new is in one group only') as told:
        decide([*steps, *late, dict(late[0], seed='new')], [dict(earlier, against_condition='late')])
    assert told[0].filename == __file__

def test_no_seed_has_both():
    with pytest.warns(UserWarning, match='no seed is in both groups, so nothing is compared: 9 and 0, 1, 2'):
        got, = decide([*steps, dict(seed=9, condition='late', stop=1)], [dict(earlier, condition='late')])
    assert (got['n'], got['verdict']) == (0, 'undecided')

def test_the_table_of_verdicts():
    def percent(value, claim): return f'{100*value:+.1f} %'
    decided, = decide(steps, [earlier], least=3)
    three, = decide(steps, [earlier])
    nothing, = decide([*steps, dict(seed=9, condition='late', stop=1)], [dict(earlier, condition='late')])
    paper = dict(decided, side='within', margin=.3, paper='38 % earlier')
    shown = verdict_table([decided, three, nothing, paper], percent).data.split('\n')
    assert shown[0] == '| claim | the paper | asked for | measured | 95 % interval | seeds | verdict |'
    assert shown[2:6] == [
        '| a ticket stops earlier |  | below 0.0 % | -25.0 % | -31.2 % to -18.8 % | 3 | **holds** |',
        '| a ticket stops earlier |  | below 0.0 % | -25.0 % |  | 3 | **undecided** |',
        '| a ticket stops earlier |  | below 0.0 % |  |  | 0 | **undecided** |',
        '| a ticket stops earlier | 38 % earlier | within ± 30.0 % | -25.0 % | -31.2 % to -18.8 % | 3 | **holds** |']

def test_groups_of_verdicts():
    "How many, the range of the means, the verdicts, and those that do not stay by Holm's rule."
    def percent(value, claim): return f'{100*value:+.1f} %'
    got = decide(steps, [earlier, dict(earlier, compare='difference', side='above'), dict(earlier, margin=-.25)], least=3)
    nothing, = decide([*steps, dict(seed=9, condition='late', stop=1)], [dict(earlier, condition='late')])
    lines = verdict_groups([dict(got[0], holm=True), got[2], nothing], lambda c: c['side'], percent).data.split('\n')
    assert lines[2:] == ['| below (3) | -25.0 % | 1 holds, 2 undecided |']
    pair = [dict(got[0], holm=False), dict(got[0], mean=-.5, holm=True)]
    assert verdict_groups(pair, lambda c: 'both', percent).data.split('\n')[2] == '| both (2) | -50.0 % to -25.0 % | 2 hold (1 not by Holm) |'
    lines = verdict_groups(got, lambda c: c['compare']).data.split('\n')
    assert lines[2:] == ['| relative (2) | -0.250 | 1 holds, 1 undecided |', '| difference (1) | -100.000 | 1 fails |']

def test_the_picture_of_verdicts():
    "A line each; colour by verdict, hollow if Holm's rule undoes it, a mark at a margin that is not 0."
    import matplotlib.pyplot as plt
    got = decide(steps, [earlier, dict(earlier, side='above'), dict(earlier, margin=-.25)], least=3)
    assert [(o['verdict'], o['holm']) for o in got] == [('holds', True), ('fails', True), ('undecided', False)]
    nothing, = decide([*steps, dict(seed=9, condition='late', stop=1)], [dict(earlier, condition='late')])
    fig, ax = plt.subplots()
    draw_claims([got[0], dict(got[0], holm=False), got[1], got[2], nothing], ax, list('abcde'))
    points = [line for line in ax.lines if line.get_marker() == 'o']
    assert [line.get_xdata()[0] for line in points] == [-25]*4
    look = [(line.get_color(), line.get_markerfacecolor() == 'white') for line in points]
    assert [color for color, _ in look] == [OKABE_ITO['blue']]*2 + [OKABE_ITO['vermilion'], '0.5']
    assert [hollow for _, hollow in look] == [False, True, False, False]  # undecided is never hollow
    marks = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == '|' and line.get_markersize() == 14]
    assert marks == [-25] and [o.get_text() for o in ax.get_yticklabels()] == list('abcde')
    plt.close(fig)

def test_the_picture_of_few_seeds_and_of_a_distance():
    "No interval, no bar; two marks around zero; without labels the sentences of the claims, and another number of labels is refused."
    import matplotlib.pyplot as plt
    few, enough = (decide(steps, [dict(earlier, side='within', margin=.3)], least=least)[0] for least in (5, 3))
    assert few['low'] is None and enough['low'] is not None
    fig, ax = plt.subplots()
    draw_claims([few, enough], ax)
    bars = [segment for bar in ax.collections for segment in bar.get_segments()]
    assert len(bars) == 1 and [y for _, y in bars[0]] == [1, 1]
    assert [x for x, _ in bars[0]] == pytest.approx([100*enough['low'], 100*enough['high']])
    marks = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() == '|' and line.get_markersize() == 14]
    assert sorted(marks) == [(-30, 0), (-30, 1), (30, 0), (30, 1)]
    assert [o.get_text() for o in ax.get_yticklabels()] == [earlier['claim']]*2
    draw_claims([few, enough], ax, np.array(['a', 'b']))
    with pytest.raises(ValueError, match='1 labels for 2 claims'): draw_claims([few, enough], ax, ['a'])
    plt.close(fig)

def test_log_ratio():
    "Twice and half are equally far from the same; what has no logarithm is named."
    rows = [dict(seed=s, who=w, steps=n) for s, (a, b) in enumerate([(200, 100), (100, 200)]) for w, n in (('a', a), ('b', b))]
    claim = dict(value='steps', compare='log_ratio', who='a', against_who='b')
    assert compare(rows, claim) == {0: pytest.approx(math.log(2)), 1: pytest.approx(-math.log(2))}
    with pytest.raises(ValueError, match='0 over 100 has no logarithm'): compare([dict(rows[0], steps=0), rows[1]], claim)
    with pytest.raises(ValueError, match="'ratio'.*difference, relative, log_ratio, alone"): compare(rows, dict(claim, compare='ratio'))

def test_a_value_alone():
    "Nothing stands beside it; its second group may be empty, as in a table that has other claims."
    rows = [dict(seed=s, who='a', barrier=.01*s) for s in range(5)]
    claim = dict(claim='stable', value='barrier', compare='alone', who='a', against_who=None, side='below', margin=.06)
    assert compare(rows, claim) == {s: .01*s for s in range(5)}
    assert decide(rows, [claim])[0]['verdict'] == 'holds'
