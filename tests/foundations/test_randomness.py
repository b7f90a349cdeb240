"Random streams: repeatable, independent, the same in every process; PyTorch's global generators as they were."
import subprocess, sys
import numpy as np
import pytest, torch
from lotterybook.foundations.randomness import random_stream, rng, seed_everything

def sample(seed, *purpose): return torch.rand(1000, generator=rng(seed, *purpose))

def test_a_stream_can_be_repeated():
    "A seed may come out of an array."
    assert torch.equal(sample(0, 'order'), sample(0, 'order'))
    assert torch.equal(sample(np.int64(3), 'order'), sample(3, 'order'))

def test_streams_are_independent():
    streams = torch.stack([sample(s, what) for s in range(5) for what in ('order', 'mask', 'init')])
    off = torch.corrcoef(streams) - torch.eye(15)
    assert off.abs().max() < .15  # 105 pairs of 1,000 numbers: .15 is 4.7 standard deviations
    assert not torch.equal(sample(0, 'order', 1), sample(0, 'order', 2))
    assert not torch.equal(sample(0, 'order'), sample(1, 'order'))

def test_streams_do_not_change_between_versions():
    "Recorded here."
    assert rng(0, 'order').initial_seed() == 6_230_928_577_095_065_118

def test_global_generator():
    "`rng` leaves it alone; a block sets it and restores it."
    seed_everything(0, 'dropout'); first = torch.rand(3)
    seed_everything(0, 'dropout'); rng(7, 'mask'); assert torch.equal(torch.rand(3), first)
    seed_everything(1, 'dropout'); assert not torch.equal(torch.rand(3), first)
    seed_everything(0, 'dropout')
    with random_stream(5): torch.rand(10)
    assert torch.equal(torch.rand(3), first)
    with random_stream(0, 'dropout'): assert torch.equal(torch.rand(3), first)

def test_another_process():
    "Where Python's own `hash` has another salt."
    code = "from lotterybook.foundations.randomness import rng; print(rng(3, 'order', 7).initial_seed())"
    there = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert int(there) == rng(3, 'order', 7).initial_seed()

@pytest.mark.parametrize('wrong', [-1, 1.5, '3', True])
def test_wrong_seeds(wrong):
    with pytest.raises(ValueError, match='whole number'): rng(wrong)
