"""The kernels of page 145, run where there is no GPU by Triton's interpreter (`interpreted_on_lstm.py`, beside this file).

Triton reads TRITON_INTERPRET when it is imported, so they run in a process of their own."""
import os, re, subprocess, sys
from importlib.util import find_spec
from pathlib import Path
import torch
from conftest import skip

def test_kernels_in_a_process_of_their_own():
    if not find_spec('triton'): skip('no Triton: pip install triton (Linux)')
    env  = os.environ | dict(TRITON_INTERPRET='0' if torch.cuda.is_available() else '1')
    file = Path(__file__).with_name('interpreted_on_lstm.py')
    done = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', str(file)],
                          capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r'\b(\d+) passed', done.stdout) and 'skipped' not in done.stdout, done.stdout[-2000:]
