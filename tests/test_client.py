"A client's script does what the README promises; tests/test_wheel.py has pyright look at it."
import subprocess, sys
from pathlib import Path

def test_client(tmp_path):
    done = subprocess.run([sys.executable, Path(__file__).with_name('client.py'), tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'a dog' in done.stdout and len(list((tmp_path/'sweep').glob('*.json'))) == 2
