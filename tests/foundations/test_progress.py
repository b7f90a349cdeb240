"The bar: there, or None where nobody watches."
from io import StringIO
import pytest
from lotterybook.foundations.progress import progress_bar

@pytest.fixture(autouse=True)
def watched(monkeypatch):
    "conftest.py sets TQDM_DISABLE; tqdm has read it by then, hence `disable=False` below."
    monkeypatch.delenv('TQDM_DISABLE', raising=False)

def test_a_bar():
    "Of tqdm, with its options; closed at the end."
    out = StringIO()
    with progress_bar(7, file=out, disable=False, unit='round', initial=2) as bar:
        assert (bar.n, bar.total, bar.unit) == (2, 7, 'round')
        bar.update(5)
    assert '7/7' in out.getvalue() and bar.disable  # tqdm's mark of a closed bar

def test_none():
    "Asked so, nothing is written and None is given."
    out = StringIO()
    with progress_bar(7, show=False, file=out) as bar: assert bar is None
    assert not out.getvalue()

@pytest.mark.parametrize('value, there', [('1', False), ('yes', False), ('', True)])
def test_disabled(value, there, monkeypatch):
    "None where TQDM_DISABLE is set to anything."
    monkeypatch.setenv('TQDM_DISABLE', value)
    with progress_bar(7, file=StringIO()) as bar: assert (bar is not None) == there

def test_an_error_inside():
    "It goes through, with a bar and without."
    for show in (True, False):
        with pytest.raises(KeyError), progress_bar(7, show, file=StringIO()): raise KeyError
