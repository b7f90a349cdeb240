"Sweeps: order, failures, retries, kills, folders removed, names, damaged files."
import json, mmap, os, platform, re, shutil, signal, subprocess, sys, threading, time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from unittest import mock
import pytest
from lotterybook.foundations.checksums import write_checked_json
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
    "As any other failure: reported, or tried again."
    def go(): return sweep(example_run, configs, tmp_path, executor=GivesUp(1), progress=False, retries=retries)
    if retries: assert [o['square'] for o in go()] == squares
    else:
        with pytest.raises(RunFailed, match='run value=0 failed .CancelledError: the engine cancelled it'): go()

# --- order, failures, kept results

@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as pool: yield pool

def never(config): raise AssertionError('done already')

def test_results_files_and_names(tmp_path, threads):
    "Results in the order of the configurations, a file each; nothing is done twice, a missing file is."
    first = sweep(example_run, configs, tmp_path, executor=threads, progress=False)
    assert [o['square'] for o in first] == squares
    assert sorted(p.name for p in tmp_path.glob('*.json')) == [f'value={v}.json' for v in range(6)]
    assert sweep(never, configs, tmp_path, executor=threads, progress=False) == first
    (tmp_path/'value=2.json').unlink()
    again = sweep(example_run, configs, tmp_path, executor=threads, progress=False)
    assert [o['square'] for o in again] == squares
    assert run_name(dict(seed=0, round=3, condition='ticket')) == 'seed=0,round=3,condition=ticket'
    with pytest.raises(ValueError, match='makes no file name'): run_name(dict(file='a/b'))

def test_runs_wait_for_what_they_need(tmp_path, threads):
    order = []
    def noted(config): order.append(config['n']); return {}
    def one_below(config): return [dict(n=config['n'] - 1)] if config['n'] else []
    chain = [dict(n=n) for n in (3, 2, 1, 0)]
    sweep(noted, chain, tmp_path/'a', executor=threads, after=one_below, progress=False)
    assert order == [0, 1, 2, 3]
    with pytest.raises(ValueError, match='wait for each other'):
        sweep(noted, [dict(n=1), dict(n=2)], tmp_path/'b', executor=threads, after=lambda c: [dict(n=3 - c['n'])])
    with pytest.raises(ValueError, match=r"\['n=9'\]"):
        sweep(noted, [dict(n=1)], tmp_path/'b', executor=threads, after=lambda c: [dict(n=9)])

def test_a_failed_run_is_named_and_the_others_kept(tmp_path):
    def failing(config):
        if config['value'] == 2: raise OSError('disk full')
        return example_run(config)
    with pytest.raises(RunFailed, match=r'run value=2 failed \(OSError: disk full\)'):
        sweep(failing, configs, tmp_path, executor=ThreadPoolExecutor(1), progress=False)
    assert {'value=0', 'value=1'} <= {p.stem for p in tmp_path.glob('*.json')}

def test_after_a_failure_the_queue_is_cancelled(tmp_path):
    def first_fails(config):
        if config['value'] == 0: raise OSError('disk full')
        return example_run(dict(config, seconds=.02))
    with pytest.raises(RunFailed, match='value=0'):
        sweep(first_fails, [dict(value=v) for v in range(50)], tmp_path, executor=ThreadPoolExecutor(1), progress=False)
    assert len(list(tmp_path.glob('*.json'))) < 25

def test_after_a_failure_runs_in_progress_finish(tmp_path):
    begun = threading.Event()
    def slow_or_failing(config):
        if config['value'] == 0: begun.wait(10); raise OSError('disk full')
        begun.set(); time.sleep(.2); return example_run(config)
    with pytest.raises(RunFailed, match='1 of 2 are done'):
        sweep(slow_or_failing, configs[:2], tmp_path, executor=ThreadPoolExecutor(2), progress=False)
    assert [p.stem for p in tmp_path.glob('*.json')] == ['value=1']

def test_an_engine_that_accepts_nothing(tmp_path):
    class Broken(ThreadPoolExecutor):
        def submit(self, *args): raise RuntimeError('no worker left')
    with pytest.raises(RunFailed, match='no worker left'):
        sweep(example_run, configs, tmp_path, executor=Broken(1), progress=False)

def test_a_result_is_the_same_computed_or_read(tmp_path, threads):
    "A tuple becomes a list, a key a string; what is no JSON is refused."
    def tuples(config): return dict(pair=(1, 2), table={3: .1 + .2})
    one = sweep(tuples, [dict(n=0)], tmp_path, executor=threads, progress=False)
    assert sweep(tuples, [dict(n=0)], tmp_path, executor=threads, progress=False) == one
    with pytest.raises(RunFailed, match='not JSON serializable'):
        sweep(lambda config: tmp_path, [dict(n=1)], tmp_path, executor=threads, progress=False)

def test_wrong_arguments_and_files(tmp_path, threads):
    with pytest.raises(ValueError, match='have only 1 names'):
        sweep(example_run, configs, tmp_path, executor=threads, name=lambda c: 'same')
    with pytest.raises(ValueError, match='workers=0'): sweep(os.path.basename, [dict(n=1)], tmp_path, workers=0)
    (tmp_path/'value=3.json').write_text('{"config": {"val')
    with pytest.raises(ValueError, match='value=3.json is damaged'): sweep(example_run, configs, tmp_path, executor=threads)
    write_checked_json(tmp_path/'value=3.json', dict(config=dict(value=7), result={}))
    with pytest.raises(ValueError, match='not of'): sweep(example_run, configs, tmp_path, executor=threads)

at_a_prompt = '''
import sys
from functools import partial
from lotterybook.foundations.sweeps import processes, sweep
def at_home(config): return config
class AtHome:
    def __call__(self, config): return config
    def method(self, config): return config
def refused(run, **options):
    try: sweep(run, [dict(n=1)], sys.argv[1], **options)
    except ValueError as error: print(str(error).split(' is defined in a notebook')[0])
for run in (at_home, partial(at_home, n=1), AtHome(), AtHome().method, lambda config: config): refused(run)
with processes(1) as pool: refused(at_home, executor=pool)
'''

def faults(config):
    "The second of two steps that make 80 megabytes."
    import resource
    import torch
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        pieces = [torch.ones(2**21) for _ in range(10)]
        count = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        del pieces
    return dict(faults=count)

@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the switch is of glibc')
def test_processes_keep_freed_memory(tmp_path, monkeypatch):
    monkeypatch.setenv('MALLOC_TRIM_THRESHOLD_', str(2**17))
    found, = sweep(faults, [dict(step=1)], tmp_path, workers=1, progress=False)
    assert found['faults'] < 10*2**23/mmap.PAGESIZE/4  # a quarter of all pages

def test_what_processes_cannot_import(tmp_path):
    "Code of a notebook or a prompt: functions, partials, objects, methods, lambdas; in our pool or the caller's."
    said = subprocess.run([sys.executable, '-c', at_a_prompt, str(tmp_path/'out')], capture_output=True, text=True)
    assert said.stdout.split() == ['at_home', 'at_home', 'AtHome', 'method', '<lambda>', 'at_home'], said.stderr

# --- killed

script = '''
import sys
from lotterybook.foundations.sweeps import example_run, sweep
if __name__ == '__main__':
    sweep(example_run, [dict(value=v, seconds=.15) for v in range(24)], sys.argv[1], workers=2, progress=False)
'''

def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited too long'
        time.sleep(.02)

def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().split(')')[1].split()[0] != 'Z'
    except OSError: return False

def finished(folder): return {p.stem: json.loads(p.read_text())['result'] for p in folder.glob('*.json')}

def test_killed_and_resumed(tmp_path):
    "A worker is killed, then Ctrl-C, then the parent is killed: every result is there, once; no worker stays."
    (tmp_path/'script.py').write_text(script)
    out = tmp_path/'out'
    def start(): return subprocess.Popen([sys.executable, tmp_path/'script.py', out], stderr=subprocess.PIPE, text=True)
    parent = start()
    until(lambda: len(finished(out)) >= 3)
    os.kill(next(iter(finished(out).values()))['pid'], signal.SIGKILL)  # a worker, during a run
    _, said = parent.communicate(timeout=60)
    assert parent.returncode and 'are done and kept' in said
    parent, n = start(), len(finished(out))
    until(lambda: len(finished(out)) >= n + 1)
    parent.send_signal(signal.SIGINT)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode and 'KeyboardInterrupt' in said and 'runs are done and kept in' in said
    assert not any(alive(o['pid']) for o in finished(out).values())
    parent, n = start(), len(finished(out))
    until(lambda: len(finished(out)) >= n + 2)
    workers = {o['pid'] for o in finished(out).values()}
    parent.kill(); parent.wait()
    until(lambda: not any(map(alive, workers)), 10)
    half = len(finished(out))
    assert start().wait(60) == 0
    assert {k: o['square'] for k, o in finished(out).items()} == {f'value={v},seconds=0.15': v*v for v in range(24)}
    assert 6 <= half < 24

def test_a_folder_in_use_or_in_the_way(tmp_path, threads):
    "Refused while another process holds it, and no longer when that process was killed."
    hold = ('import sys; from lotterybook.foundations.files import folder_lock\n'
            f'with folder_lock({str(tmp_path/"e")!r}): print("held", flush=True); sys.stdin.read()')
    holder = subprocess.Popen([sys.executable, '-c', hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    holder.stdout.readline()
    with pytest.raises(ValueError, match='in use by another process'): sweep(example_run, configs, tmp_path/'e', executor=threads)
    holder.kill(); holder.wait()
    assert len(sweep(example_run, configs, tmp_path/'e', executor=threads, progress=False)) == 6
    (tmp_path/'a-file').write_text('')
    for wrong in ('a-file', 'a-file/below'):
        with pytest.raises(OSError, match=re.escape(f'{tmp_path/wrong} cannot be written to as a folder')):
            sweep(example_run, configs, tmp_path/wrong, executor=threads)

def scaled(config, settings): return dict(value=config['value']*settings['factor'])

def test_settings_are_noted_and_others_refused(tmp_path):
    "What all runs have in common belongs to the folder: other settings would get the old results."
    def swept(folder, **settings):
        return sweep(scaled, [dict(value=2)], tmp_path/folder, executor=ThreadPoolExecutor(1), progress=False, settings=settings)
    for _ in range(2): assert swept('a', factor=3, steps=(1, 2)) == [dict(value=6)]
    with pytest.raises(ValueError, match='factor was 3, is 4'): swept('a', factor=4, steps=(1, 2))
    with pytest.raises(ValueError, match='steps was .*, is not given'): swept('a', factor=3)
    def bare(folder): return sweep(example_run, [dict(value=2)], tmp_path/folder, executor=ThreadPoolExecutor(1), progress=False)
    with pytest.raises(ValueError, match='a has results with settings'): bare('a')
    bare('b')
    with pytest.raises(ValueError, match='b has results without settings'): swept('b', factor=3)

def test_settings_of_a_sweep_without_results_may_change(tmp_path):
    "The first call failed: what it was asked for is mended, and called again in the same folder."
    def swept(**settings):
        return sweep(scaled, [dict(value=2)], tmp_path, executor=ThreadPoolExecutor(1), progress=False, settings=settings)
    with pytest.raises(RunFailed): swept(factr=3)
    assert swept(factor=3) == [dict(value=6)]

def rounds_in_order(workers, seeds, rounds, tmp_path):
    "The order in which chains of rounds begin on threads, each run as long as the others."
    clock = threading.Barrier(workers)
    order = []
    def noted(config):
        order.append((config['seed'], config['round']))
        with suppress(threading.BrokenBarrierError): clock.wait(30)  # all of a step of time end together
        return {}
    def last(config): return [dict(config, round=config['round'] - 1)] if config['round'] else []
    plan = [dict(seed=s, round=r) for s in range(seeds) for r in range(rounds)]
    with ThreadPoolExecutor(workers) as pool:
        sweep(noted, plan, tmp_path, workers=workers, executor=pool, after=last, progress=False)
    return order

def test_no_chain_is_left_to_go_on_alone(tmp_path):
    "Three chains of six on two workers: nine steps of time, not twelve."
    order = rounds_in_order(2, 3, 6, tmp_path)
    assert {s for s, _ in order[:6]} == {0, 1}  # in order as long as nothing is lost by it
    pairs = [{s for s, _ in order[i:i + 2]} for i in range(0, 18, 2)]
    assert all(len(pair) == 2 for pair in pairs)

def test_one_worker_keeps_the_order(tmp_path):
    order = rounds_in_order(1, 3, 4, tmp_path)
    assert order == [(s, r) for s in range(3) for r in range(4)]
