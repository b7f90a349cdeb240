"A cluster's engine: sweeps and searches on it, with killed workers and clients; what is checked before the first run."
import os, signal, socket, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import pytest
import torch
from lotterybook.foundations import sweeps
from lotterybook.foundations.sweeps import RunFailed, cluster, example_run, sweep, wanted
from lotterybook.tickets.replicates import finished_runs, folder_settings, search, search_plan, search_settings, step_file
from lotterybook.tools.command_line import main
from lotterybook.tools.find import find

small = dict(rounds=1, seeds=2, steps=400, eval_every=20, conditions=['ticket', 'reinit'])
runs  = 6
def soon(true):
    "Wait until something is true."
    end = time.monotonic() + 120
    while not true(): assert time.monotonic() < end; time.sleep(.02)

@pytest.fixture(scope='module')
def client():
    "Of a cluster of two processes, which Dask replaces if they die."
    distributed = pytest.importorskip('distributed')
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0) as there, \
         distributed.Client(there, set_as_default=False) as client:
        yield client

@pytest.fixture
def address(client):
    soon(lambda: len(client.nthreads()) == 2)  # a dead worker has been replaced
    return client.scheduler.address

def test_sweep_on_dask(client, address, tmp_path, monkeypatch):
    "Its own executor: a worker is killed, a run fails once, and no worker sees the folder of results."
    monkeypatch.chdir(tmp_path)
    (tmp_path/'elsewhere').mkdir()
    configs = [dict(value=v, seconds=.1) for v in range(12)]
    failed = tmp_path/'failed'
    def run(config):
        os.chdir(failed.parent/'elsewhere')  # where `results` is another folder
        if config['value'] == 5 and not failed.exists(): failed.touch(); raise OSError('once')
        return dict(example_run(config), files=[o.name for o in Path('results').glob('*')])
    def kill_one():
        soon(lambda: len(list((tmp_path/'results').glob('*.json'))) >= 3)
        os.kill(list(client.run(os.getpid).values())[0], signal.SIGKILL)
    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    results = sweep(run, configs, 'results', executor=client.get_executor(pure=False), progress=False, retries=2)
    killer.join(10)
    assert [o['square'] for o in results] == [v*v for v in range(12)]
    assert len({o['pid'] for o in results}) in (2, 3)  # two workers, and the one that takes the dead one's place, if it is there in time
    assert failed.exists() and len(list((tmp_path/'results').glob('*.json'))) == 12
    assert not list((tmp_path/'elsewhere').iterdir()) and results[0]['files'] == []

def files(out):
    "The contents of tickets and table, by name."
    return {o.name: o.read_bytes() for o in [*out.glob('*.safetensors'), out/'rows.csv']}

def search_here(out):
    "The search in this process."
    settings = search_settings(rounds=1, steps=small['steps'], eval_every=small['eval_every'])
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=[1]) as one:
        search(settings, search_plan(1, range(2), small['conditions']), out, executor=one, progress=False)
    find(out, **small, progress=False)  # the table

@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "What is found without a cluster."
    search_here(out := tmp_path_factory.mktemp('alone')/'out')
    return files(out)

def test_a_search_whose_worker_is_killed(client, address, alone, tmp_path, monkeypatch):
    "By a signal that cannot be caught, in the middle of a training; the folder's path is relative, and the workers are elsewhere."
    monkeypatch.chdir(tmp_path)
    out, killed = tmp_path/'out', []
    def kill_one():
        soon(lambda: step_file(out).exists() and step_file(out).stat().st_size >= 5)
        busy = next(worker for worker, keys in client.processing().items() if keys)
        killed.extend(client.run(os.getpid, workers=[busy]).values())
        os.kill(killed[0], signal.SIGKILL)
    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    find('out', **small, scheduler=address, progress=False)
    killer.join(10)
    assert killed and killed[0] not in client.run(os.getpid).values()
    assert files(out) == alone
    assert not list(out.glob('.cluster-*')) and not step_file(out).exists()

def test_client_killed_then_interrupted_then_without_a_cluster(client, address, alone, tmp_path):
    "The trainings in progress end soon, and the folder is good for the next call, wherever it runs."
    out = tmp_path/'out'
    def begun(): return step_file(out).exists() and step_file(out).stat().st_size > 2
    def idle(): return not any(client.run(sweeps._at_work).values())
    code = f'from lotterybook.tools.find import find; find({str(out)!r}, **{small}, scheduler={address!r}, progress=False)'
    work = subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path, stdout=subprocess.DEVNULL)
    soon(lambda: begun() or work.poll() is not None)
    work.kill(); work.wait()
    soon(idle)
    step_file(out).unlink()
    def ctrl_c(): soon(begun); os.kill(os.getpid(), signal.SIGINT)
    hand = threading.Thread(target=ctrl_c, daemon=True)
    hand.start()
    with pytest.raises(KeyboardInterrupt) as stopped: find(out, **small, scheduler=address, progress=False)
    hand.join()
    assert idle() and 'The same call resumes' in stopped.value.__notes__[0] and len(finished_runs(out)) < runs
    search_here(out)
    assert files(out) == alone

@pytest.mark.parametrize('wrong', ['tcp://127.0.0.1:9', '127.0.0.1', '', 'http://localhost:80', None])
def test_an_address_that_does_not_answer(wrong, tmp_path, capsys, monkeypatch):
    "None: something listens there and is silent. One line within seconds, and nothing is written."
    pytest.importorskip('distributed')
    with socket.create_server(('127.0.0.1', 0)) as silent:
        wrong = f'tcp://127.0.0.1:{silent.getsockname()[1]}' if wrong is None else wrong
        began = time.monotonic()
        with pytest.raises(OSError, match=f'no Dask scheduler answers at {wrong!r} within 1 seconds .*; start one with `dask scheduler`'):
            with cluster(wrong, tmp_path/'out', timeout=1): pass
        assert time.monotonic() - began < 5 and not list(tmp_path.iterdir())

def test_the_command_line_names_an_address_that_does_not_answer(tmp_path, capsys, monkeypatch):
    pytest.importorskip('distributed')
    monkeypatch.setattr(sweeps, 'cluster', partial(cluster, timeout=1))
    assert main(['find', '--out', str(tmp_path/'out'), '--scheduler', 'tcp://127.0.0.1:9']) == 2
    said = capsys.readouterr()
    assert said.err.startswith("lotterybook: no Dask scheduler answers at 'tcp://127.0.0.1:9' within 1 seconds") and said.err.count('\n') == 1
    assert said.out == '' and not list(tmp_path.iterdir())

def test_a_folder_that_is_not_shared(client, address, tmp_path, monkeypatch):
    "The same path is another folder on the workers; what was made for the test is removed."
    (tmp_path/'here').mkdir(); (tmp_path/'there').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    client.run(os.chdir, tmp_path/'there')
    with pytest.raises(OSError, match='worker tcp://.* does not see the folder /proc/self/cwd/out; name one that all machines share'):
        find('/proc/self/cwd/out', **small, scheduler=address)
    assert not list((tmp_path/'here').iterdir()) and not list((tmp_path/'there').iterdir())
    with cluster(address) as (engine, workers):  # which needs no shared folder
        assert workers == 2 and [o['square'] for o in sweep(example_run, [dict(value=3)], 'squares', executor=engine, progress=False)] == [9]

def without_loops(there, name):
    "As on a machine whose Numba cannot compile, or whose library is older than compiled steps; or as before."
    from lotterybook.foundations import compiled_steps
    if there: setattr(compiled_steps, name, compiled_steps.found)
    else:
        compiled_steps.found = getattr(compiled_steps, name)
        if name == '_kernels': compiled_steps._kernels = lambda: None
        else: delattr(compiled_steps, name)

@pytest.mark.parametrize('name, why', [('_kernels', 'Numba cannot compile here'), ('why_no_loops', '.*no_loops.*')])
def test_a_worker_that_cannot_compile(name, why, client, address, tmp_path):
    "It is asked before the first run: all take usual steps, or, in a folder of compiled ones, none begins."
    pytest.importorskip('numba')
    some, less = [max(client.nthreads())], dict(small, steps=20)
    find(tmp_path/'begun', **dict(less, conditions=['ticket']), progress=False)
    client.run(without_loops, False, name, workers=some)
    try:
        find(tmp_path/'out', **less, scheduler=address, progress=False)
        assert folder_settings(tmp_path/'out')['compiled'] is False
        for out, more in ((tmp_path/'begun', {}), (tmp_path/'new', dict(compiled=True))):
            with pytest.raises(ValueError, match=f'{out} (was begun with|is to have) compiled steps, .*: {why} .worker {some[0]}.'):
                find(out, **less, **more, scheduler=address, progress=False)
        assert not (tmp_path/'new'/'runs').exists()
    finally: client.run(without_loops, True, name, workers=some)
    find(tmp_path/'begun', **less, scheduler=address, progress=False)
    assert folder_settings(tmp_path/'begun')['compiled'] is True

@pytest.mark.parametrize('package, there, why', [('lotterybook', None, 'lotterybook is missing there, and .* here; install'), ('lotterybook', '0.0.1', 'lotterybook is 0.0.1 there'),
                                                 ('torch', '1.0+cu1', 'torch is 1.0 there')])
def test_another_version_on_a_worker(package, there, why, client, address, tmp_path, monkeypatch):
    from distributed import Client
    right = Client.get_versions
    def wrong(self, **options):
        found = right(self, **options)
        found['workers'][max(found['workers'])]['packages'][package] = there
        return found
    monkeypatch.setattr(Client, 'get_versions', wrong)
    with pytest.raises(ValueError, match=f'worker tcp://.*: {why}'): find(tmp_path/'out', **small, scheduler=address)
    assert not list(tmp_path.iterdir())

def test_workers_of_several_threads_and_no_workers(tmp_path):
    distributed = pytest.importorskip('distributed')
    with distributed.LocalCluster(n_workers=0, threads_per_worker=2, processes=False, dashboard_address=None) as there:
        address = there.scheduler_address
        with pytest.raises(OSError, match=f'{address} has no workers; start some: dask worker {address}'):
            with cluster(address, tmp_path/'out', timeout=1): pass
        there.scale(1)
        with pytest.raises(ValueError, match='has 2 threads, .*--nthreads 1'):
            with cluster(address, tmp_path/'out'): pass
    assert not list(tmp_path.iterdir())

def test_without_dask(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'distributed', None)
    with pytest.raises(ValueError, match=r"pip install 'lotterybook\[cluster\]'"): find(tmp_path/'out', **small, scheduler='tcp://127.0.0.1:9')
    assert not list(tmp_path.iterdir())

def test_a_run_that_fails_leaves_the_others_alone(address, tmp_path):
    "Those in progress finish and are kept; the error names the machine."
    def run(config):
        if config['value'] == 0: raise OSError('cannot fetch MNIST')
        return example_run(config)
    configs = [dict(value=v, seconds=v) for v in range(2)]
    with cluster(address) as (engine, workers), pytest.raises(RunFailed, match='worker tcp://.*: cannot fetch MNIST'):
        sweep(run, configs, tmp_path, executor=engine, workers=workers, progress=False)
    assert [o.name for o in tmp_path.glob('*.json')] == ['value=1,seconds=1.json']

def test_runs_at_a_time_on_an_executor(tmp_path):
    at_work, most = [], []
    def run(config):
        at_work.append(1); most.append(len(at_work)); time.sleep(.02); at_work.pop()
        return {}
    for workers, n in (2, 2), (None, 4):
        most.clear()
        with ThreadPoolExecutor(4) as pool: sweep(run, [dict(value=v) for v in range(8)], tmp_path/str(n), workers, pool, progress=False)
        assert max(most) == n

def test_one_run_at_a_time_in_a_process():
    "A worker with threads may join later."
    at_work, most = [], []
    def run(config):
        at_work.append(1); most.append(len(at_work)); time.sleep(.02); at_work.pop()
    with ThreadPoolExecutor(3) as pool: list(pool.map(lambda i: sweeps._on_worker(run, {}, None), range(3)))
    assert most == [1, 1, 1]

def test_elsewhere_a_run_is_wanted(): assert wanted()

def test_a_run_notices_that_it_is_unwanted(address, tmp_path):
    "The block of `cluster` ends, and waits for it."
    def run(config):
        (tmp_path/'begun').touch()
        end = time.monotonic() + 8
        while wanted() and time.monotonic() < end: time.sleep(.02)
        if not wanted(): (tmp_path/'unwanted').touch()
    with cluster(address) as (engine, workers):
        engine.submit(run, {})
        soon((tmp_path/'begun').exists)
    assert (tmp_path/'unwanted').exists()

def test_a_training_that_nobody_waits_for_ends(tmp_path, monkeypatch):
    monkeypatch.setattr('lotterybook.tickets.replicates.wanted', lambda: False)
    with pytest.raises(RunFailed, match='nobody waits'): search_here(tmp_path)

def test_a_lost_scheduler_ends_the_sweep(tmp_path):
    "Dask would never answer."
    engine = sweeps._Cluster(SimpleNamespace(status='connecting'), None)
    with pytest.raises(RunFailed, match='the connection to the scheduler is lost'): sweep(example_run, [dict(value=1)], tmp_path, executor=engine, retries=2, progress=False)
    engine.flying.add('a run'); engine.stop()
