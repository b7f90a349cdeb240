"Recorded rows: odd values, names that leave their folder, damaged files; intervals and tables."
import math
from pathlib import Path
import numpy as np
import pytest
from lotterybook.foundations.results import (interval, join_records, load_rows, load_settings, mean_interval, paired_interval, read_rows,
                                             result_path, save_rows, summary, table, write_rows)

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
        with pytest.raises(ValueError, match="is text, not a list of numbers"): f(text)

# --- rows come back

rows = [dict(seed=0, method='ticket', remaining=.2107, exact=.1 + .2, done=True, note=None),
        dict(seed=1, method='a, "b"\n', remaining=1e-12, exact=math.inf, done=False, note='7')]

def there_and_back(rows): return read_rows(write_rows('rows.csv', rows))

def test_rows_come_back():
    "To the last bit, with their types; columns that a row lacks are None."
    assert there_and_back(rows) == rows
    assert Path('rows.csv').read_text().splitlines()[:2] == ['seed,method,remaining,exact,done,note',
                                                             '0,ticket,0.2107,0.30000000000000004,True,']
    assert there_and_back([dict(a=1), dict(b=2)]) == [dict(a=1, b=None), dict(a=None, b=2)]
    assert there_and_back([]) == []

def test_what_a_row_cannot_hold():
    with pytest.raises(ValueError, match='ndarray'): write_rows('x.csv', [dict(a=np.zeros(2))])
    assert not Path('x.csv').exists()

@pytest.mark.parametrize('text', [
    '', ' ', '7', '7\n', ' 7', '1_000', '1e3', 'nan', 'True', 'None', "'", "''", "'x'", '"x"', "'7'", "it's", 'a,b', 'a\rb',
    'a\r\nb', 'ü→∞', '=1+1'])
def test_odd_texts(text):
    "Alone in their row, where an empty field would be an empty line."
    assert there_and_back([dict(a=text), dict(a=None)]) == [dict(a=text), dict(a=None)]

def test_odd_numbers():
    "Kinds and signs too."
    numbers = [0, -1, 10**30, .1, -0., 5e-324, math.inf, -math.inf, True, False]
    back = [o['a'] for o in there_and_back([dict(a=v) for v in numbers])]
    assert [repr(v) for v in back] == [repr(v) for v in numbers]
    assert math.isnan(there_and_back([dict(a=math.nan)])[0]['a'])

def test_a_line_cut_short():
    Path('odd.csv').write_text('a,b\n1,2\n3\n')
    with pytest.raises(ValueError, match='odd.csv is damaged: row 2 does not have one field'): read_rows('odd.csv')

def test_saved_with_their_settings(here, monkeypatch):
    "No rows without settings; what is missing is named."
    monkeypatch.setenv('LOTTERYBOOK_RESULTS', str(here/'out'))
    save_rows(rows, '020_results', 'quick', seeds=[0, 1], seconds=1.5)
    assert load_rows('020_results', 'quick') == rows
    kept = load_settings('020_results', 'quick')
    assert [kept['seeds'], kept['seconds']] == [[0, 1], 1.5]
    assert {'python', 'torch', 'device', 'commit', 'date'} <= set(kept)
    with pytest.raises(FileNotFoundError, match='020_results'): load_rows('020_results', 'never')
    with pytest.raises(TypeError, match='PosixPath'): save_rows(rows, '020_results', 'bad', folder=Path('x'))
    assert not result_path('020_results', 'bad.csv').exists()

def test_parts_of_a_record(monkeypatch):
    "The whole has all rows, what the parts share, and the machine of each; a row in two parts is refused and nothing is written."
    for seed, device in enumerate(('one', 'other')):
        monkeypatch.setattr('lotterybook.foundations.results.device_name', lambda device_, name=device: name)
        save_rows([dict(seed=seed, a=.5)], '900_a', f'full_{seed}', seeds=[seed], steps=7, seconds=40 + seed)
    path, whole = join_records('900_a', 'full', (f'full_{k}' for k in (0, 1))), load_settings('900_a', 'full')
    assert read_rows(path) == load_rows('900_a', 'full') == [dict(seed=0, a=.5), dict(seed=1, a=.5)]
    assert [whole['steps'], whole['seconds'], whole['device']] == [7, 81, 'one and other'] and 'seeds' not in whole
    assert whole['cores'] == whole['parts'][0]['cores']
    assert [(o['seeds'], o['device'], o['seconds']) for o in whole['parts']] == [([0], 'one', 40), ([1], 'other', 41)]
    before = path.read_bytes()
    with pytest.raises(ValueError, match="full_0 and full both have the row {'seed': 0"): join_records('900_a', 'full', ['full', 'full_0'])
    with pytest.raises(ValueError, match='named more than once: full_0'): join_records('900_a', 'full', ['full_0', 'full_0'])
    with pytest.raises(ValueError, match="parts='full_0' must be a list"): join_records('900_a', 'full', 'full_0')
    with pytest.raises(FileNotFoundError, match='full_2'): join_records('900_a', 'full', ['full_0', 'full_2'])
    with pytest.raises(ValueError, match='no parts to join'): join_records('900_a', 'full', [])
    assert path.read_bytes() == before

def test_parts_with_other_settings(monkeypatch):
    "Refused by name, unless they may differ; what is of each machine is kept as text; a number that a part lacks is not invented."
    for k, (steps, cores) in enumerate(((7, 2), (9, 16))):
        monkeypatch.setattr('lotterybook.foundations.results.provenance', lambda device, n=cores: dict(cores=n, torch='2.13.0'))
        save_rows([dict(seed=k)], '900_a', f'full_{k}', steps=steps, planned=5)
    with pytest.raises(ValueError, match='full_0 and full_1 have other settings: steps is 7 and 9.'): join_records('900_a', 'full', ['full_0', 'full_1'])
    join_records('900_a', 'full', ['full_0', 'full_1'], differ=['steps'])
    whole = load_settings('900_a', 'full')
    assert [whole['cores'], whole['torch'], whole['planned']] == ['2 and 16', '2.13.0', 10]
    assert not {'seconds', 'steps', 'device'} & set(whole)

# --- intervals

def test_intervals():
    "By a table of t; a constant gain is certain, however the seeds vary."
    half = 2.776445*math.sqrt(2.5/5)
    assert interval([1, 2, 3, 4, 5]) == pytest.approx((3, 3 - half, 3 + half), abs=1e-5)
    assert paired_interval([1.5, 2.5], [1, 2]) == (.5, .5, .5)
    assert mean_interval([1, 2, 3, 4]) == (2.5, None, None)
    assert mean_interval([1, 2, 3, 4, 5]) == interval([1, 2, 3, 4, 5])
    assert mean_interval([1, 2], least=2) == interval([1, 2])

@pytest.mark.parametrize('f, arguments, why', [
    (interval, ([1],), 'two values'), (interval, ([1, 2, math.nan],), r'not \[nan\]'), (interval, ([1, 2], 95), 'confidence=95'),
    (paired_interval, ([1, 2], [1]), '2 and 1'), (mean_interval, ([],), 'one value'), (mean_interval, ([1, 2], 1), 'least=1')])
def test_no_interval(f, arguments, why):
    with pytest.raises(ValueError, match=why): f(*arguments)

def test_how_often_it_contains_the_truth():
    "1,000 samples of each size: 95 %, within four standard deviations. The bootstrap of five values: about 83 %."
    samples = np.random.default_rng(0)
    for n in (3, 5, 10, 20):
        _, low, high = zip(*(interval(x) for x in samples.normal(size=(1000, n))))
        assert abs(np.mean((np.array(low) <= 0) & (0 <= np.array(high))) - .95) < 4*(.95*.05/1000)**.5
    x = samples.normal(size=(1000, 5))
    means = np.stack([samples.choice(o, (400, 5)).mean(1) for o in x])
    low, high = np.quantile(means, [.025, .975], axis=1)
    assert .78 < np.mean((low <= 0) & (0 <= high)) < .88

def test_summary():
    "None is not counted; below five values there is no interval."
    got = summary([dict(m='a', v=float(i)) for i in range(5)] + [dict(m='b', v=1.), dict(m='b', v=None)], 'v', ('m',))
    assert [(o['m'], o['n'], o['mean'], o['low'] is None) for o in got] == [('a', 5, 2., False), ('b', 1, 1., True)]

# --- tables

def test_tables():
    "A cell that holds a `|` does not end early."
    shown = table(['a', ''], [[1, '2 %'], ['=|v', None]], 'Two lines').data
    assert shown == 'Two lines\n\n| a |  |\n| --- | --- |\n| 1 | 2 % |\n| =\\|v | None |'
    assert table('ab', []).data == '| a | b |\n| --- | --- |'
    with pytest.raises(ValueError, match=r'\[1\] has 1 cells for 2 columns'): table('ab', [[1, 2], [1]])
