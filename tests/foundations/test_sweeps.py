"Sweeps: runs tried again, folders removed, names, damaged files."
import json, os, shutil, signal, time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from unittest import mock
import pytest
from lotterybook.foundations.sweeps import RunFailed, example_run, read_result, read_run, run_name, sweep

configs = [dict(value=v) for v in range(6)]
squares = [v*v for v in range(6)]

def tried(config):
    "Count the tries of a run, in a folder."
    tries = Path(config['folder'])/f'{config["value"]}'
    with open(tries, 'a') as f: f.write('.')
    return tries.stat().st_size

def fails(config):
    if tried(config) <= config['times']: raise OSError('no luck')
    return example_run(config)

def dies(config):
    if tried(config) <= config['times']: os.kill(os.getpid(), signal.SIGKILL)
    return example_run(config)

def with_tries(folder, **times):
    folder.mkdir()
    return [dict(value=v, times=times.get(f'run{v}', 0), folder=str(folder)) for v in range(6)]

def name(config): return str(config['value'])

def tries(folder): return [(folder/str(v)).stat().st_size for v in range(6)]

# --- retries

def test_a_run_that_fails_is_tried_again(tmp_path):
    given = with_tries(tmp_path/'tries', run1=1, run4=2)
    got = sweep(fails, given, tmp_path/'out', executor=ThreadPoolExecutor(2), name=name, progress=False, retries=2)
    assert [o['square'] for o in got] == squares
    assert tries(tmp_path/'tries') == [1, 2, 1, 1, 3, 1]

def test_and_no_more_often_than_asked(tmp_path):
    given = with_tries(tmp_path/'tries', run1=3)
    with pytest.raises(RunFailed, match='run 1 failed .OSError: no luck'):
        sweep(fails, given, tmp_path/'out', executor=ThreadPoolExecutor(1), name=name, progress=False, retries=2)
    assert (tmp_path/'tries'/'1').stat().st_size == 3

def test_it_is_tried_next(tmp_path):
    "Before what was not begun: others may wait for it."
    order = []
    def run(config):
        order.append(config['value'])
        if order == [0]: raise OSError
        return {}
    sweep(run, configs, tmp_path, executor=ThreadPoolExecutor(1), progress=False, retries=1,
          after=lambda c: [dict(value=0)] if c['value'] == 5 else [])
    assert order.index(5) > 1 and order.count(0) == 2 and sorted(order) == [0, 0, 1, 2, 3, 4, 5]

def test_a_dead_worker_is_replaced(tmp_path):
    "One of two dies; the pool is ours, and a new one is made."
    given = with_tries(tmp_path/'tries', run1=1)
    got = sweep(dies, given, tmp_path/'out', workers=2, name=name, progress=False, retries=1)
    assert [o['square'] for o in got] == squares
    assert tries(tmp_path/'tries')[1] == 2

@pytest.mark.parametrize('retries', [0, 1])
def test_a_run_that_always_kills_its_worker(retries, tmp_path):
    given = with_tries(tmp_path/'tries', run0=9)
    with pytest.raises(RunFailed, match='BrokenProcessPool'):
        sweep(dies, given, tmp_path/'out', name=name, progress=False, retries=retries)
    assert (tmp_path/'tries'/'0').stat().st_size == 1 + retries

def test_a_broken_pool_of_the_caller_is_not_replaced(tmp_path):
    given = with_tries(tmp_path/'tries', run0=1)
    with ProcessPoolExecutor(1) as pool, pytest.raises(RunFailed, match='BrokenProcessPool'):
        sweep(dies, given, tmp_path/'out', executor=pool, name=name, progress=False, retries=2)

@pytest.mark.parametrize('retries', [-1, 1.5, True])
def test_wrong_retries(retries, tmp_path):
    with pytest.raises(ValueError, match='retries='): sweep(example_run, configs, tmp_path, retries=retries)

def test_what_is_not_the_fault_of_a_run_is_not_tried_again(tmp_path):
    "A result that JSON cannot hold."
    calls = []
    def run(config): calls.append(1); return dict(a={1})
    with pytest.raises(RunFailed, match='not JSON serializable'):
        sweep(run, configs[:1], tmp_path, executor=ThreadPoolExecutor(1), progress=False, retries=5)
    assert len(calls) == 1

# --- who writes

def test_the_caller_writes(tmp_path, monkeypatch):
    "A worker stands elsewhere: a relative folder is that of the caller."
    monkeypatch.chdir(tmp_path)
    (tmp_path/'elsewhere').mkdir()
    with ProcessPoolExecutor(1, initializer=os.chdir, initargs=('elsewhere',)) as pool:
        sweep(example_run, configs, 'out', executor=pool, progress=False)
    assert len(list((tmp_path/'out').glob('*.json'))) == 6 and not list((tmp_path/'elsewhere').iterdir())

# --- removed

@pytest.mark.parametrize('what', ['folder', 'file'])
def test_removed_during_the_sweep(what, tmp_path):
    "An error, and no list of results that the next sweep would not find."
    out = tmp_path/'out'
    def run(config):
        if config['value'] == 3:
            while len(list(out.glob('*.json'))) < 3: time.sleep(.01)
            shutil.rmtree(out) if what == 'folder' else (out/'value=0.json').unlink()
        return example_run(config)
    with pytest.raises((RunFailed, OSError), match='was removed'):
        sweep(run, configs, out, executor=ThreadPoolExecutor(1), progress=False)
    assert [o['square'] for o in sweep(example_run, configs, out, executor=ThreadPoolExecutor(1), progress=False)] == squares

# --- names and files

@pytest.mark.parametrize('bad', ['../out', 'a/b', '/tmp/x', '..', '', 'ä'*101])
def test_names_stay_in_the_folder(bad, tmp_path):
    with pytest.raises(ValueError, match='makes no file name'):
        sweep(example_run, configs[:1], tmp_path/'out', executor=ThreadPoolExecutor(1), name=lambda config: bad, progress=False)
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('config', [dict(a='ä'*100), dict(a='../b'), dict(a='a:b'), {}])
def test_configurations_without_a_name(config):
    with pytest.raises(ValueError, match='makes no file name'): run_name(config)

def test_a_name_is_measured_in_bytes(): assert run_name(dict(a='ä'*99)) == 'a=' + 'ä'*99

@pytest.mark.parametrize('text', ['', '{"config": {}', '['*100_000, '[1]', '{"config": {}}', '{"result": {}}', '\x00'])
def test_damaged_files_are_named(text, tmp_path):
    "With what to do; and nothing is done before."
    (tmp_path/'value=3.json').write_text(text)
    for read in (lambda file: read_result(file, dict(value=3)), read_run, lambda file: sweep(example_run, configs, tmp_path, executor=ThreadPoolExecutor(1))):
        with pytest.raises(ValueError, match='value=3.json is .*; remove it'): read(tmp_path/'value=3.json')
    assert len(list(tmp_path.glob('*.json'))) == 1

def test_a_file_of_another_configuration(tmp_path):
    (tmp_path/'a.json').write_text(json.dumps(dict(config=dict(value=2), result={})))
    with pytest.raises(ValueError, match="a.json is the result of .*2.*, not of .*3.*; name another folder"): read_result(tmp_path/'a.json', dict(value=3))

# --- what stands beside the bar

def test_a_note_beside_the_bar(tmp_path, monkeypatch):
    "Asked while runs are under way, and after the last."
    bar = mock.MagicMock()
    bar.__enter__.return_value = bar
    monkeypatch.delenv('TQDM_DISABLE', raising=False)
    with mock.patch('tqdm.auto.tqdm', return_value=bar):
        sweep(example_run, [dict(value=1, seconds=2.5)], tmp_path, executor=ThreadPoolExecutor(1), note=lambda: '7 steps')
    assert bar.set_postfix_str.call_args_list == [mock.call('7 steps')]*bar.set_postfix_str.call_count and bar.set_postfix_str.called

# --- engines that give up

class GivesUp(Executor):
    "Cancels its first runs."
    def __init__(self, times): self.times = times
    def submit(self, run, config):
        future = Future()
        if self.times: self.times -= 1; future.cancel(); future.set_running_or_notify_cancel()
        else: future.set_result(run(config))
        return future

@pytest.mark.parametrize('retries', [0, 1])
def test_an_engine_that_gives_a_run_up(retries, tmp_path):
    "As any other failure: told, or tried again."
    def go(): return sweep(example_run, configs, tmp_path, executor=GivesUp(1), progress=False, retries=retries)
    if retries: assert [o['square'] for o in go()] == squares
    else:
        with pytest.raises(RunFailed, match='run value=0 failed .CancelledError: the engine gave it up'): go()
