"`lotterybook find`, as a shell sees it; that a killed search goes on to the same bits is shown on its page."
import os, resource, signal, subprocess, time
import pytest
from test_command_line import hear_ctrl_c, lotterybook, one_line, tool

small = ['find', '--data', 'digits', '--net', 'lenet', '--rounds', '2', '--seeds', '1', '--steps', '30', '--workers', '1', '--out']

@pytest.mark.parametrize('wrong, why', [(['--rate', '1.5'], 'rate=1.5 must'), (['--rounds', '0'], 'rounds=0 must'), (['--data', 'minst'], 'known are digits'), (['--data', 'ptb'], "'ptb' is not for classification"),
                                        (['--net', 'lenet5'], 'known are lenet'), (['--conditions', 'ticket,luck'], "'luck'")])
def test_wrong_input(wrong, why, tmp_path):
    assert why in one_line(lotterybook(*small, 'out', *wrong, cwd=tmp_path))
    assert not list(tmp_path.iterdir())

def test_no_such_data_and_no_network(tmp_path):
    env = dict(os.environ, LOTTERYBOOK_CACHE=str(tmp_path/'cache'), LOTTERYBOOK_DATA=str(tmp_path/'empty'), http_proxy='http://127.0.0.1:9', https_proxy='http://127.0.0.1:9')
    said = one_line(lotterybook(*small, 'out', '--data', 'mnist', cwd=tmp_path, env=env))
    assert 'cannot fetch' in said and 'LOTTERYBOOK_DATA' in said

def test_folder_in_the_way(tmp_path):
    (tmp_path/'out').write_text('a file')
    assert 'out' in one_line(lotterybook(*small, 'out', cwd=tmp_path))

def test_full_disk(tmp_path):
    "No file may grow beyond 100 kB: a ticket does not fit. What was there stays, nothing half is left, and with room again it goes on."
    def cramped(): # the kernel's signal for it is ignored by Python, which raises OSError
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    said = one_line(lotterybook(*small, 'out', cwd=tmp_path, preexec_fn=cramped, env=dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path/'numba'))))
    assert 'File too large' in said and 'done and kept' in said
    assert not list((tmp_path/'out').rglob('*.safetensors')) and not list((tmp_path/'out').rglob('*.part'))
    assert lotterybook(*small, 'out', cwd=tmp_path).returncode == 0

def test_interrupted(tmp_path):
    "Ctrl-C reaches parent and workers alike; the state is kept, and one line says how to go on."
    work = subprocess.Popen([tool, *small, 'out', '--steps', '400'], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=hear_ctrl_c)
    end = time.monotonic() + 120
    while len(list((tmp_path/'out'/'runs').glob('*.json'))) < 2: assert time.monotonic() < end; time.sleep(.02)
    os.killpg(work.pid, signal.SIGINT)
    said, complained = work.communicate(timeout=60)
    assert work.returncode == 130, said + complained
    assert 'The same command goes on' in said and 'Traceback' not in complained
    kept = len(list((tmp_path/'out'/'runs').glob('*.json')))
    assert 2 <= kept < 11 and len((tmp_path/'out'/'rows.csv').read_text().splitlines()) == 1 + kept
    again = lotterybook(*small, 'out', '--steps', '400', cwd=tmp_path)
    assert again.returncode == 0 and f'{kept} of them done' in again.stdout, again.stdout + again.stderr
