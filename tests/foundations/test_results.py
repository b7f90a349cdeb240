"Recorded rows: names that leave their folder, damaged files, text in place of numbers."
import pytest
from lotterybook.foundations.results import interval, load_rows, load_settings, mean_interval, read_rows, result_path, save_rows

@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path/'here').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    monkeypatch.delenv('LOTTERYBOOK_RESULTS', raising=False)
    return tmp_path

@pytest.mark.parametrize('experiment, run', [('900_a', '../../x'), ('900_a', 'a/b'), ('..', 'quick'), ('../..', 'quick'), ('900_a', 'ä'*101), ('', 'quick')])
def test_names_stay_in_their_folder(experiment, run, here):
    "Nothing is written, there or elsewhere."
    with pytest.raises(ValueError, match='makes no file name'): save_rows([dict(a=1)], experiment, run)
    assert not [o for o in here.rglob('*') if o.is_file()]

def test_damaged_settings():
    path = save_rows([dict(a=1)], '900_a', 'quick')
    for text in ('{"steps": 1', '['*100_000):
        path.with_suffix('.json').write_text(text)
        with pytest.raises(ValueError, match='quick.json is damaged .*; put a good copy there, or run again'): load_settings('900_a', 'quick')
    assert read_rows(path) == [dict(a=1)]

@pytest.mark.parametrize('content', [b'a,b\n1\n', b'a,b\n1,2,3\n', b'a\n\xff\n', b'a\n' + b'1'*200_000 + b'\n'])
def test_damaged_rows(content):
    path = result_path('900_a', 'quick.csv')
    path.parent.mkdir(parents=True); path.write_bytes(content)
    with pytest.raises(ValueError, match='quick.csv is damaged.*; put a good copy there, or run again'): load_rows('900_a', 'quick')
    with pytest.raises(ValueError, match='quick.csv is damaged'): read_rows(path)

@pytest.mark.parametrize('text', ['123456', b'123456'])
def test_text_is_no_list_of_numbers(text):
    for f in (interval, mean_interval):
        with pytest.raises(ValueError, match="is text, and no list of numbers"): f(text)
