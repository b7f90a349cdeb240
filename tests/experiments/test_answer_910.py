"The answer of page 910, and what it says of margin, pairing and many claims: the numbers are those of the recorded rows."
import json, re
from pathlib import Path
from statistics import fmean
import pytest
from scipy.stats import ttest_ind
from lotterybook.foundations.claims import decide
from lotterybook.foundations.results import load_rows, paired_interval

folder, exp = Path(__file__).resolve().parents[2]/'nbs'/'9_experiments', '910_logical_inference'

@pytest.fixture
def rows(monkeypatch):
    "The committed record, whatever was run here."
    monkeypatch.delenv('LOTTERYBOOK_RESULTS', raising=False)
    monkeypatch.chdir(folder)
    return load_rows(exp, 'full') + [o for o in load_rows(exp, 'full_tree') if o['model'] != 'majority']

def cell(id):
    "The text of one cell, without the addresses of its links, with ASCII signs."
    cells = json.loads((folder/f'{exp}.ipynb').read_text(encoding='utf-8'))['cells']
    text = ''.join(next(o['source'] for o in cells if o['id'] == id)).replace('−', '-')
    return re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', text)

def percent(rows, model, first, last):
    found = {o['seed']: 100*o['accuracy'] for o in rows if (o['model'], o['first'], o['last']) == (model, first, last)}
    return [found[seed] for seed in sorted(found)]

def test_the_answer(rows):
    text = cell('answer')
    on, lstm, tree, floor = (percent(rows, o, 7, 12) for o in ('on_lstm_n50', 'lstm', 'tree_lstm', 'majority'))
    mean, low, high = paired_interval(on, lstm)
    assert low < 0 < high and f'{mean:.1f} points of accuracy (95 % interval {low:+.1f} to {high:+.1f}, five seeds)' in text
    assert f'{fmean(on):.0f}' == f'{fmean(lstm):.0f}' and f'Both score {fmean(on):.0f} %' in text
    assert f'scores {fmean(floor):.0f} %' in text and f'scores {fmean(tree):.0f} %' in text
    assert '{:.1f} points ({:.1f} to {:.1f})'.format(*paired_interval(tree, lstm)) in text

def test_what_to_know_before_a_row_is_quoted(rows):
    text, on, lstm = cell('details'), percent(rows, 'on_lstm_n50', 1, 3), percent(rows, 'lstm', 1, 3)
    error, lead = 100 - fmean(lstm), fmean(on) - fmean(lstm)
    assert f'wrong on {error:.1f} % of the pairs' in text and .45 < 3/error < .55
    assert f'lead of {lead:.1f} points is a quarter' in text and .2 < lead/error < .3
    ends = ttest_ind(on, lstm, equal_var=False).confidence_interval()
    assert ends.low < 0 < ends.high and f'{ends.low:+.1f} to {ends.high:+.1f} points: undecided' in text

def test_how_many_hold(rows):
    first, tree = load_rows(exp, 'claims'), load_rows(exp, 'claims_tree')
    found = [[(o['verdict'] == 'holds', o['holm'], o['verdict'] == 'fails') for o in decide(rows, claims)] for claims in (first, tree, first + tree)]
    assert [tuple(map(sum, zip(*o))) for o in found] == [(4, 1, 0), (5, 5, 0), (9, 5, 0)]
