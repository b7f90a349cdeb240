"Fast steps: flushed numbers in nested blocks and after errors; Adam on every layout, against PyTorch's to the last bit."
import ctypes, mmap, os, platform, subprocess, sys
import pytest, torch
from torch import nn
from torch.testing import assert_close
from lotterybook.foundations.data import load
from lotterybook.foundations.fast_steps import FusedAdam, flushed_denormals, keep_freed_memory
from lotterybook.foundations.networks import lenet
torch.set_num_threads(1)

# --- subnormal numbers

def test_flushed_inside_only():
    "An inner block does not end the outer one; an error ends both."
    tiny = torch.tensor(1e-38)
    assert (tiny*.01).item() > 0
    with flushed_denormals() as can:
        assert ((tiny*.01).item() == 0) == can
        with flushed_denormals(): pass
        assert ((tiny*.01).item() == 0) == can
    assert (tiny*.01).item() > 0
    with pytest.raises(KeyError):
        with flushed_denormals(): raise KeyError
    assert (tiny*.01).item() > 0

# --- Adam

digits = load('digits')
x, y = digits.x_train[:60], digits.y_train[:60]

def trained(net, optimizer, steps=30):
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.state_dict()

def transposed(): return lenet(64, seed=0)

def straight():
    "LeNet with a first layer whose weights lie in the order of their indices."
    net = lenet(64, seed=0)
    first, net.layer1 = net.layer1, nn.Linear(64, 300)
    net.layer1.load_state_dict(first.state_dict())
    return net

@pytest.mark.parametrize('make, strides', [(straight, (64, 1)), (transposed, (1, 300))])
def test_the_bits_of_pytorch(make, strides):
    ours, theirs = make(), make()
    assert ours.layer1.weight.stride() == strides
    got  = trained(ours, FusedAdam(ours.parameters(), lr=.01))
    want = trained(theirs, torch.optim.Adam(theirs.parameters(), lr=.01, fused=True))
    for k in want: assert torch.equal(got[k], want[k])

def transposed_weight():
    "In memory (2, 3), read as (3, 2); its gradient is not transposed."
    p = nn.Parameter(torch.arange(6.).view(2, 3).t())
    p.grad = torch.ones(3, 2)
    return p, FusedAdam([p], lr=.1)

def test_the_first_step_by_hand():
    "The rate, against the sign of the gradient."
    p, adam = transposed_weight()
    adam.step()
    assert_close(p.detach(), torch.arange(6.).view(2, 3).t() - .1)

def test_no_gradient_no_step():
    "Not even with the last gradient; a closure provides one."
    p, adam = transposed_weight()
    adam.step()
    kept = p.detach().clone()
    p.grad = None
    adam.step()
    assert torch.equal(p.detach(), kept)
    def closure(): p.grad = torch.ones(3, 2); return torch.tensor(5.)
    assert adam.step(closure) == 5 and (p.detach() < kept).all()
    adam.zero_grad()
    assert p.grad is None

def test_new_memory_under_a_weight():
    "In the same layout it is trained; in another, the moments would not match."
    p, adam = transposed_weight()
    adam.step()
    p.data, p.grad = torch.zeros(2, 3).t(), torch.ones(3, 2)
    adam.step()
    assert (p.detach() < 0).all()
    p.data = torch.zeros(3, 2)
    with pytest.raises(ValueError, match='no longer has the layout in memory of its moments'): adam.step()

def test_frozen_weights_and_gaps():
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    FusedAdam([frozen, nn.Parameter(torch.ones(2))]).step()
    assert frozen.tolist() == [1, 1]
    gaps = nn.Parameter(torch.zeros(3, 4)[:, ::2])
    gaps.grad = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r'strides \(4, 2\)'): FusedAdam([gaps]).step()

def test_groups_and_moments():
    """Groups have rates of their own. The moments lie as the weight does, in its shape: after one step
    0.1 g and 0.001 g²; what is written into them is what the next step reads."""
    net = transposed()
    adam = FusedAdam([dict(params=[net.layer1.weight]), dict(params=[net.output.weight], lr=0.)])
    weight, output = net.layer1.weight, net.output.weight.detach().clone()
    trained(net, adam, steps=1)
    mean, square = adam.state[weight]['exp_avg'], adam.state[weight]['exp_avg_sq']
    assert_close(mean, .1*weight.grad, atol=1e-7, rtol=0)
    assert_close(square, .001*weight.grad**2, atol=1e-9, rtol=0)
    assert (mean.shape, mean.stride()) == (weight.shape, weight.stride())
    assert torch.equal(net.output.weight.detach(), output)
    mean[3, 5] = square[3, 5] = 0  # row 3, column 5 forgets, and nothing else
    weight.grad = torch.zeros_like(weight)
    before = weight.detach().clone()
    adam.step()
    assert weight[3, 5] == before[3, 5]
    assert (weight != before).sum() == (mean != 0).sum()

# --- memory that is kept

FAULTS = """
import resource, torch
from lotterybook.foundations.fast_steps import keep_freed_memory
def faults():
    for _ in range(5): pieces = [torch.ones(2**21) for _ in range(10)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5): pieces = None; pieces = [torch.ones(2**21) for _ in range(10)]
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)/5
torch.set_num_threads(1)
print(faults(), keep_freed_memory(), faults())
"""

@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the switch is of glibc')
def test_freed_memory_is_kept():
    "In a process of its own, because it holds until the end; one that surely gives back what is freed."
    others = ('MALLOC_', 'LD_PRELOAD', 'GLIBC_TUNABLES', 'THP_MEM')
    env = {k: v for k, v in os.environ.items() if not k.startswith(others)} | dict(MALLOC_TRIM_THRESHOLD_=str(2**17))
    before, can, after = subprocess.run([sys.executable, '-c', FAULTS], capture_output=True, text=True, check=True, env=env).stdout.split()
    pages = 10*2**23/mmap.PAGESIZE
    assert can == 'True' and float(before) > pages/2 and float(after) < pages/20

def test_a_library_without_the_switch(monkeypatch):
    for nothing in (lambda name: object(), lambda name: ctypes.c_int('no such library')):
        monkeypatch.setattr(ctypes, 'CDLL', nothing)
        assert keep_freed_memory() is False
