"""Training, pruning and the search on a GPU.

Each test is skipped where there is none; the book's results are made on a CPU and do not rest on it. That is why this skip
is not one of those that LOTTERYBOOK_NO_SKIPS forbids: what can be installed is asked for there, and a GPU cannot be.
Sums are made in another order on a GPU, so it is compared to the CPU closely, and to itself to the last bit."""
import copy
import pytest
import torch
from torch.nn import functional as F
from lotterybook.foundations.data import load
from lotterybook.foundations.fast_steps import FusedAdam
from lotterybook.foundations.networks import build
from lotterybook.foundations.training import train
from lotterybook.pruning.allocation import keep_top, per_layer
from lotterybook.pruning.masked_training import keep_pruned, revived
from lotterybook.pruning.masks import full_masks, remaining
from lotterybook.pruning.scores import magnitude
from lotterybook.tickets.iterative import find_ticket

DEVICE = 'cuda'
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU that PyTorch can use')

@pytest.fixture(scope='module')
def digits(): return load('digits')

def lenet(digits, seed=0): return build('lenet', digits, seed)

def half(net):
    "Masks that keep the larger half of each layer."
    return per_layer(magnitude(net, full_masks(net)), full_masks(net), .5)

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.parametrize('masked', [False, True])
def test_train_as_on_the_cpu(digits, masked):
    ends = {}
    for device in ('cpu', DEVICE):
        net = lenet(digits)
        masks = half(net) if masked else None
        row = train(net, digits, masks, steps=100, eval_every=50, device=device)
        if masked: assert sum(revived(net, masks).values()) == 0
        assert next(net.parameters()).device.type == device
        ends[device] = row
    cpu, gpu = ends['cpu'], ends[DEVICE]
    assert [look['step'] for look in gpu['history']] == [50, 100]
    for a, b in zip(cpu['history'], gpu['history']): assert b['validation_loss'] == pytest.approx(a['validation_loss'], rel=.05)
    for k in ('stop_accuracy', 'end_accuracy', 'train_accuracy'): assert gpu[k] == pytest.approx(cpu[k], abs=.03)

class Stop(Exception): pass

def test_resume_to_the_last_bit(digits, tmp_path):
    settings = dict(steps=200, eval_every=50, checkpoint_every=50, device=DEVICE)
    whole = lenet(digits)
    masks = half(whole)
    want = train(whole, digits, masks, **settings)
    calls = 0
    def stopped(logits, labels): # in the 131st step, after the checkpoint at 100
        nonlocal calls
        calls += 1
        if calls > 130: raise Stop
        return F.cross_entropy(logits, labels)
    with pytest.raises(Stop): train(lenet(digits), digits, masks, loss=stopped, checkpoint=tmp_path/'run', **settings)
    again = lenet(digits)
    got = train(again, digits, masks, checkpoint=tmp_path/'run', **settings)
    assert same(again.state_dict(), whole.state_dict())
    assert {k: v for k, v in got.items() if k != 'seconds'} == {k: v for k, v in want.items() if k != 'seconds'}

def test_fused_adam_and_a_weight_that_lies_the_other_way(digits):
    x, y = digits.x_train[:60].to(DEVICE), digits.y_train[:60].to(DEVICE)
    ours = lenet(digits).to(DEVICE)
    theirs = copy.deepcopy(ours)
    assert not ours.layer1.weight.is_contiguous()
    adam, plain = FusedAdam(ours.parameters()), torch.optim.Adam(theirs.parameters(), lr=1.2e-3, fused=True)
    def step(net, optimizer):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    for _ in range(20): step(ours, adam); step(theirs, plain)
    for a, b in zip(ours.parameters(), theirs.parameters()): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    masks = half(ours) # on the GPU, as the weights are
    for on in (masks, {k: m.cpu() for k, m in masks.items()}): # masks may lie elsewhere
        with keep_pruned(ours, on, adam):
            for _ in range(3): step(ours, adam)
            assert sum(revived(ours, on).values()) == 0
            for k, p in ours.named_parameters():
                if k in masks: assert [m[~masks[k]].abs().max().item() for m in adam.moments(p)] == [0, 0]

@pytest.mark.parametrize('n', [1, 1000, 300_000])
def test_keep_top(n):
    scores = torch.randint(0, 50, (n,), generator=torch.Generator().manual_seed(0)).float() # many ties
    alive = torch.rand(n, generator=torch.Generator().manual_seed(1)) < .7
    count = int(alive.sum())//3
    got = keep_top(scores.to(DEVICE), alive.to(DEVICE), count)
    assert got.device.type == DEVICE and got.sum() == count
    assert torch.equal(got.cpu(), keep_top(scores, alive, count))

def test_two_rounds_of_a_search(digits, tmp_path):
    trained = []
    def loop(net, masks):
        trained.append(remaining(masks))
        return train(net, digits, masks, steps=100, device=DEVICE)
    def search(): return find_ticket(lambda: build('lenet', digits), loop, rounds=2, folder=tmp_path, progress=False)
    tickets = search()
    assert [round(remaining(t.masks), 2) for t in tickets] == [1, .8, .64]
    for t in tickets: assert same(t.theta_0, tickets[0].theta_0)
    for before, after in zip(tickets, tickets[1:]): # a weight once gone is gone
        assert all((before.masks[k] | ~after.masks[k]).all() for k in after.masks)
    runs = len(trained)
    for kept, read in zip(tickets, search()): # from the files
        assert all(torch.equal(kept.masks[k].cpu(), read.masks[k].cpu()) for k in kept.masks)
    assert len(trained) == runs
