"The times of page 994: those of other settings are not taken, and each round says what the machine did."
import json
from pathlib import Path
import pytest
from lotterybook.foundations import compiled_steps

page = Path(__file__).parents[2]/'nbs'/'9_experiments'/'994_sparse_speed.ipynb'

@pytest.fixture
def search(tmp_path):
    "The cells of the search, with few steps, in one folder."
    pytest.importorskip('numba')
    cells = {o['id']: ''.join(o['source']) for o in json.loads(page.read_text(encoding='utf-8'))['cells']}
    def run(**changes):
        names = {}
        exec(cells['page-imports'] + '\n' + cells['parameters'], names)
        names |= dict(rounds=1, steps=4, eval_every=2, folder=str(tmp_path)) | changes
        exec(cells['search-code'], names)
        return names['rows']
    return run

def test_times_belong_to_their_settings(search):
    rows = search()
    assert len(rows) == 4 and all(r['cpu'] > 0 and r['load'] >= 0 for r in rows)
    assert search() == rows                   # finished rounds keep their times
    assert search(rounds=2)[:4] == rows       # and more may follow
    for changes, why in ((dict(steps=6), 'steps was 4, is 6'), (dict(seed=6), 'seed was 5, is 6'), (dict(eval_every=4), 'eval_every was 2, is 4'),
                         (dict(data='mnist'), "data was 'digits', is 'mnist'")):
        with pytest.raises(ValueError, match=why): search(**changes)

def test_without_numba_it_says_so(search, monkeypatch):
    monkeypatch.setattr(compiled_steps, '_kernels', lambda: None)
    with pytest.raises(ValueError, match='is to have compiled steps, which are not possible here: Numba cannot compile here'): search()
