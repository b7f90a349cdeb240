"A sweep on Dask, a cluster's engine, with a worker killed in the middle."
import os, signal, threading, time
import pytest
from lotterybook.foundations.sweeps import example_run, sweep

def test_sweep_on_dask(tmp_path):
    distributed = pytest.importorskip('distributed')
    configs = [dict(value=v, seconds=.3) for v in range(12)]
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0) as cluster, \
         distributed.Client(cluster) as client:
        def kill_one():
            while len(list(tmp_path.glob('*.json'))) < 3: time.sleep(.05)
            os.kill(list(client.run(os.getpid).values())[0], signal.SIGKILL)
        killer = threading.Thread(target=kill_one)
        killer.start()
        results = sweep(example_run, configs, tmp_path, executor=client.get_executor(pure=False, retries=3), progress=False)
        killer.join()
    assert [o['square'] for o in results] == [v*v for v in range(12)]
    assert len({o['pid'] for o in results}) == 3                              # two workers, and the one that took the dead one's place
