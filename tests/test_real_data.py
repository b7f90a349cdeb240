"MNIST and Fashion-MNIST as they really are; these tests skip aloud where LOTTERYBOOK_DATA names no folder."
from hashlib import sha256
import os, shutil, subprocess, sys
from pathlib import Path
import pytest

facts = dict(mnist=('MNIST', .1307, .3081), fashion_mnist=('FashionMNIST', .2860, .3530)) # folder, mean and deviation of train pixels

@pytest.mark.parametrize('name', facts)
def test_public_facts(name, real_data):
    import torch
    from lotterybook.foundations.data import load
    data = load(name, folder=real_data)
    assert [len(o) for o in (data.x_train, data.x_validation, data.x_test)] == [55_000, 5_000, 10_000] and data.classes == 10
    pixels = torch.cat([data.x_train, data.x_validation])
    _, mean, deviation = facts[name]
    assert abs(pixels.mean().item() - mean) < 1e-4 and abs(pixels.std().item() - deviation) < 1e-4
    published = dict(mnist=[5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], fashion_mnist=[6000]*10)
    assert (data.y_train.bincount() + data.y_validation.bincount()).tolist() == published[name] # nothing lost between the parts

def test_validation_is_split_by_seed(real_data):
    from lotterybook.foundations.data import load
    first, again, other = (load('mnist', seed=o, folder=real_data) for o in (0, 0, 1))
    assert first.y_validation.equal(again.y_validation) and not first.y_validation.equal(other.y_validation)
    assert first.x_test.equal(other.x_test) # test data is the same for all

def fetch(name, folder, home):
    tool = Path(sys.executable).parent/'lotterybook'
    env  = dict(os.environ, LOTTERYBOOK_DATA=str(folder), XDG_CACHE_HOME=str(home), HTTPS_PROXY='http://127.0.0.1:9', HTTP_PROXY='http://127.0.0.1:9')
    return subprocess.run([tool, 'fetch', name], env=env, cwd=home, capture_output=True, text=True, timeout=300)

def test_fetch_finds_what_is_there(real_data, tmp_path):
    done = fetch('mnist', real_data, tmp_path)
    assert done.returncode == 0 and str(real_data) in done.stdout, done.stderr

def test_damaged_file_is_named(real_data, tmp_path):
    "A truncated file is named with both checksums; without a network the message says where to put a good one"
    raw = tmp_path/'MNIST'/'raw'
    shutil.copytree(real_data/'MNIST'/'raw', raw)
    file = raw/'train-labels-idx1-ubyte.gz'
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    done = fetch('mnist', tmp_path, tmp_path)
    said = done.stdout + done.stderr
    assert file.name in said and '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c' in said, said
    assert sha256(file.read_bytes()).hexdigest() in said and 'Put a good copy there' in said, said
    assert done.returncode == 2 and 'Traceback' not in said

def test_mnist_is_learnt(real_data):
    from lotterybook.foundations.data import load
    from lotterybook.foundations.networks import build
    from lotterybook.foundations.training import train
    data = load('mnist', folder=real_data)
    assert train(build('lenet', data, seed=0), data, steps=500)['end_accuracy'] > .9 # 95 % is usual
