"A sweep on Dask, a cluster's engine: a worker is killed, a run fails once, and no worker sees the folder of results."
import os, signal, threading, time
from pathlib import Path
import pytest
from lotterybook.foundations.sweeps import example_run, sweep

def test_sweep_on_dask(tmp_path, monkeypatch):
    distributed = pytest.importorskip('distributed')
    monkeypatch.chdir(tmp_path)
    (tmp_path/'elsewhere').mkdir()
    configs = [dict(value=v, seconds=.3) for v in range(12)]
    failed = tmp_path/'failed'
    def run(config):
        if config['value'] == 5 and not failed.exists(): failed.touch(); raise OSError('once')
        return dict(example_run(config), files=[o.name for o in Path('results').glob('*')])
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0) as cluster, \
         distributed.Client(cluster) as client:
        client.run(os.chdir, 'elsewhere')  # where `results` is another folder
        def kill_one():
            while len(list((tmp_path/'results').glob('*.json'))) < 3: time.sleep(.05)
            os.kill(list(client.run(os.getpid).values())[0], signal.SIGKILL)
        killer = threading.Thread(target=kill_one, daemon=True)
        killer.start()
        results = sweep(run, configs, 'results', executor=client.get_executor(pure=False), progress=False, retries=2)
        killer.join(10)
    assert [o['square'] for o in results] == [v*v for v in range(12)]
    assert len({o['pid'] for o in results}) == 3                              # two workers, and the one that took the dead one's place
    assert failed.exists() and len(list((tmp_path/'results').glob('*.json'))) == 12
    assert not list((tmp_path/'elsewhere').iterdir()) and results[0]['files'] == []
