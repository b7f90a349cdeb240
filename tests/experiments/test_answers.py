"The answers of pages 920 and 930: their numbers are those of the recorded rows."
import json, re
from itertools import permutations
from pathlib import Path
from statistics import fmean
import pytest
from scipy.stats import ttest_ind
from lotterybook.foundations.claims import decide
from lotterybook.foundations.results import load_rows, paired_interval

folder = Path(__file__).resolve().parents[2]/'nbs'/'9_experiments'

@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    "The committed record, whatever was run here."
    monkeypatch.delenv('LOTTERYBOOK_RESULTS', raising=False)
    monkeypatch.chdir(folder)

def cell(page, id):
    "The text of one cell, without the addresses of its links, with ASCII signs."
    cells = json.loads((folder/f'{page}.ipynb').read_text(encoding='utf-8'))['cells']
    text = ''.join(next(o['source'] for o in cells if o['id'] == id)).replace('−', '-')
    return re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', text)

def signed(*values): return ' to '.join(f'{o:+.1f}' for o in values)

def without_pairs(a, b):
    ends = ttest_ind(a, b, equal_var=False).confidence_interval()
    return float(ends.low), float(ends.high)

# --- 930

NEAR = 'simple', 'sentential complement', 'VP coordination', 'in object relative', 'in object relative, no that'
FAR  = 'VP coordination', 'across PP', 'across subject relative', 'across object relative', 'across object relative, no that'
SIDES = dict(short=[f'short: {o}' for o in NEAR], long=[f'long: {o}' for o in FAR], across=[f'long: {o}' for o in FAR[1:]])

def share(rows, model, seed, side, kinds=('one', 'alike', 'apart')):
    "Percent right: a mean of constructions, each the mean of its cells."
    def kind(numbers):
        first, _, other = numbers.partition(', other ')
        return 'one' if not other else 'alike' if first == other else 'apart'
    return 100*fmean(fmean(r['accuracy'] for r in rows if (r['model'], r['seed'], r['construction']) == (model, seed, o)
                           and r['numbers'] != 'all' and kind(r['numbers']) in kinds) for o in SIDES[side])

def test_the_answer_of_page_930():
    page = '930_syntactic_evaluation'
    rows, text = load_rows(page, 'full'), cell(page, 'answer') + cell(page, 'group-means-md')
    a, b = far = [[share(rows, m, s, 'long') for s in range(3)] for m in ('on_lstm', 'lstm')]
    assert '{:.1f} % of the cases and LSTM in {:.1f} %'.format(*map(fmean, far)) in text
    low, high = without_pairs(a, b)
    assert low < 0 < high and f'difference of {fmean(a) - fmean(b):.1f} points is **undecided**' in text and signed(low, high) in text
    assert signed(*paired_interval(a, b)[1:]) in text
    for m in ('on_lstm', 'lstm'):
        alike, apart = ([share(rows, m, s, 'across', [k]) for s in range(3)] for k in ('alike', 'apart'))
        mean, low, high = paired_interval(apart, alike)
        assert signed(low, high) in text and f'{-mean:.0f}' in text and f'{fmean(apart):.0f}' in text

def test_most_orders_of_the_seeds_decide_nothing():
    "Page 930: two of six leave 0 out, the committed one among them."
    rows = load_rows('930_syntactic_evaluation', 'full')
    a, b = ([share(rows, m, s, 'long') for s in range(3)] for m in ('on_lstm', 'lstm'))
    decided = {o for o in permutations(range(3)) if paired_interval(a, [b[k] for k in o])[2] < 0}
    assert (0, 1, 2) in decided and len(decided) == 2

# --- 920

def test_the_answer_of_page_920():
    page = '920_language_model_and_parsing'
    rows, text = load_rows(page, 'full'), cell(page, 'answer') + cell(page, 'details')
    rows = [dict(f1=None, validation_nats=None) | r for r in rows if r['epoch'] in (0, 8)]
    decided = {c['claim']: c for c in decide(rows, load_rows(page, 'claims'), least=3)}
    def trees(builder, than): return decided[f'trees of ON-LSTM layer 2 ({builder} builder) are better than {than}']
    for builder, mean in (('released', '2.1 points worse'), ('unbiased', '3.0 points better')):
        c = trees(builder, 'those of the LSTM layer 2')
        assert c['verdict'] == 'undecided' and signed(100*c['low'], 100*c['high']) in text
        assert mean in text and f'{abs(100*c["mean"]):.1f} points {"worse" if c["mean"] < 0 else "better"}' == mean
    loss = decided['ON-LSTM has a lower validation loss than LSTM']
    assert loss['verdict'] == 'undecided' and f'{loss["mean"]:.3f} nats per word higher than that of the LSTM ({-loss["low"]:.3f} lower to {loss["high"]:.3f} higher' in text
    for than in ('random distances by two points', 'those of the untrained layer 2 by two points'):
        c = trees('released', than)
        assert c['verdict'] == 'holds' and c['holm'] and f'({100*c["low"]:.1f} to {100*c["high"]:.1f})' in text

# --- 940

def test_the_answer_of_page_940():
    page = '940_how_parsing_evidence_misleads'
    rows, gains, leads = [r for r in load_rows(page, 'full') if r['convention'] == 'released'], [], dict(on_lstm=[], lstm=[])
    for language in ('grammar', 'mirrored'):
        def scores(model): return [[r['f1'] for r in rows if (r['language'], r['model'], r['seed']) == (language, model, s)] for s in range(8)]
        for model in ('on_lstm', 'lstm'):
            assert all(len(o) == 8 for o in scores(model))
            gains.append(paired_interval([max(o) for o in scores(model)], [fmean(o) for o in scores(model)]))
        blind = {m: scores(m)[0][0] for m in ('right', 'left', 'balanced')}
        assert max(blind.values()) == blind['balanced']
        for model in leads:
            named = [r['f1'] for r in rows if (r['language'], r['model'], r['layer'], r['gate'], r['builder']) == (language, model, 2, 'forget', 'unbiased')]
            leads[model].append(paired_interval(named, [blind['balanced']]*8))
    assert all(low > 0 for _, low, _ in gains + leads['on_lstm']) and 'In the last two rows no interval contains zero' in cell(page, 'best-read')
    (_, _, behind), (_, ahead, _) = leads['lstm']
    assert behind < 0 < ahead and 'The LSTM beats them on one language, and loses on the other' in cell(page, 'choices')
    for name in ('choices', 'conclusion'): assert f'{100*min(gains)[0]:.0f} to {100*max(gains)[0]:.0f} points above their mean' in cell(page, name)
    said = '{:.1f} points ahead of balanced trees on the grammar ({:.1f} to {:.1f}), and {:.1f} on its mirror image ({:.1f} to {:.1f})'
    assert said.format(*(100*o for lead in leads['on_lstm'] for o in lead)) in cell(page, 'conclusion')

# --- 900

def test_the_answer_of_page_900():
    page = '900_one_shot_vs_iterative'
    rows, text = load_rows(page, 'full'), cell(page, 'answer')
    decided = {c['claim']: c for c in decide(rows, load_rows(page, 'claims'))}
    best, end = decided['a ticket of 13.5 % is more accurate than the dense network'], decided['a ticket of 1.9 %, trained to the end, loses no more than 0.2 points']
    assert best['verdict'] == 'holds' and f'{100*best["mean"]:.2f} points better' in text
    assert end['verdict'] == 'fails' and f'{-100*end["mean"]:.2f} points worse' in text
    random = [decided[f'a random subnetwork of {size} % {what}'] for size in ('21.1', '7.0', '3.6') for what in ('is less accurate than the ticket', 'stops later than the ticket')]
    assert {c['verdict'] for c in random} == {'holds'} and all(c['holm'] for c in random)
    factors = [1 + c['mean'] for c in random if c['value'] == 'stop_step']  # means of ratios
    assert f'{min(factors):.1f} to {max(factors):.1f} times as many steps' in text
    assert decided['a ticket of 21.1 % stops earlier than the dense network']['verdict'] == 'undecided' and 'dense network is open' in text
