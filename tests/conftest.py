"What several tests need: the checkout, the real data, a browser. Without the last two, tests skip aloud."
import os, shutil, signal
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
os.environ['TQDM_DISABLE'] = '1' # no progress bars in what the tests read
if 'PYTEST_XDIST_WORKER' in os.environ: os.environ.setdefault('OMP_NUM_THREADS', '1') # side by side: a core each
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler) # in a shell's background

def seed():
    "PyTorch's global generator as new: a network that a test makes without a seed is the same in every run"
    import torch
    torch.manual_seed(0)

@pytest.hookimpl(tryfirst=True)
def pytest_make_collect_report(collector):
    "Parameters of tests are made when their file is imported"
    if isinstance(collector, pytest.Module): seed()

@pytest.fixture(autouse=True)
def seeded(): seed()

def skip(reason):
    "Skip, with the reason in pytest's summary; fail where skips are forbidden"
    if os.environ.get('LOTTERYBOOK_NO_SKIPS') == '1': pytest.fail(f'skips are forbidden (LOTTERYBOOK_NO_SKIPS=1): {reason}')
    pytest.skip(reason)

@pytest.fixture(scope='session')
def real_data():
    "Folder with the real data sets (`MNIST/raw/...`), named by LOTTERYBOOK_DATA"
    folder = os.environ.get('LOTTERYBOOK_DATA')
    if not folder: skip('no real data: LOTTERYBOOK_DATA names no folder')
    if not (Path(folder)/'MNIST'/'raw').is_dir(): skip(f'no real data: {folder} has no MNIST/raw')
    return Path(folder)

@pytest.fixture(scope='session')
def chromium():
    "Path of a Chromium browser; CHROMIUM names another one"
    path = os.environ.get('CHROMIUM') or shutil.which('chromium') or shutil.which('chromium-browser')
    if not path: skip('no browser: install chromium, or let CHROMIUM name one')
    return path
