"Masks that move: exact counts, new weights from zero, kill and resume, and a loop of one's own."
import pytest, torch
from hypothesis import given, settings, strategies as st
from kills import Kill, killed_and_resumed
from movers import OPTIMIZERS, batches, data, make, train
from sameness import same
from torch import nn
from torch.nn import functional as F
from lotterybook.foundations.checkpoints import advance_kept
from lotterybook.foundations.networks import lenet
from lotterybook.foundations.randomness import rng
from lotterybook.foundations.running import Hook, Run, advance
from lotterybook.foundations.training import classification, example_batches
from lotterybook.pruning.allocation import erk, per_layer
from lotterybook.pruning.masks import full_masks, kept, remaining
from lotterybook.sparse_training.moving_masks import (
    SET, MaskMover, exploration_rate, finish_step, move_masks, moved, random_masks)
from lotterybook.sparse_training.rigl import RigL
torch.set_num_threads(1)

MOVERS = dict(set=SET(10, 35), rigl=RigL(10, 35))

class Watch(Hook):
    "Masks after each step, by step."
    writes = False
    def __init__(self): self.seen = {}
    def after_step(self, run): self.seen[run.step] = run.masks

# --- one layer

def test_by_hand():
    "The smallest of three goes; the highest of those outside comes."
    mask, weight = torch.tensor([1, 1, 1, 0, 0]).bool(), torch.tensor([.5, -.1, .8, 0, 0])
    new = moved(mask, weight, torch.tensor([9, .2, 9, .3, .1]), 1)
    assert new.tolist() == [True, False, True, True, False]

def test_what_is_dropped_may_return():
    mask, weight = torch.tensor([1, 1, 0]).bool(), torch.tensor([.5, .1, 0])
    assert moved(mask, weight, torch.tensor([0, .9, .3]), 1).tolist() == mask.tolist()

def test_ties_go_by_index():
    mask = torch.tensor([1, 1, 1, 0, 0, 0]).bool()
    assert moved(mask, torch.ones(6), torch.zeros(6), 2).equal(mask)  # 1 and 2 return
    growth = torch.tensor([0, 0, 0, 1., 1, 1])
    assert moved(mask, torch.ones(6), growth, 2).tolist() == [True, False, False, True, True, False]

def oracle(mask, weight, growth, n):
    "By sorting whole lists; of equals, the first stay and the first grow."
    places = sorted(mask.nonzero()[:, 0].tolist(), key=lambda i: (-abs(weight[i].item()), i))
    stay = set(places[:len(places) - n])
    free = sorted(set(range(len(mask))) - stay, key=lambda i: (-growth[i].item(), i))
    return sorted(stay | set(free[:n]))

@settings(max_examples=100, deadline=None)
@given(st.data())
def test_as_by_sorting(draw):
    "Exact counts, with many ties, in short rows and in long ones."
    size = draw.draw(st.integers(1, 30) | st.integers(800, 1200))
    g = torch.Generator().manual_seed(draw.draw(st.integers(0, 1000)))
    mask = torch.rand(size, generator=g) < draw.draw(st.sampled_from([.02, .5, .95]))
    levels = draw.draw(st.sampled_from([1, 3, 10**6]))  # one: all are equal
    weight, growth = ((torch.rand(size, generator=g)*levels).floor() for _ in range(2))
    if draw.draw(st.booleans()): growth[::16] += 10**7  # a sample that misleads
    alive = int(mask.sum())
    n = draw.draw(st.integers(0, min(alive, size - alive)))
    new = moved(mask, weight - 1, growth, n)
    assert new.nonzero()[:, 0].tolist() == oracle(mask, weight - 1, growth, n)

def test_any_shape_and_layout():
    "A transposed weight, a kernel: as its flat copy."
    g = rng(0, 'layouts')
    weight, growth = torch.randn(9, 7, 5, generator=g), torch.randn(9, 7, 5, generator=g).abs()
    mask = torch.rand(9, 7, 5, generator=g) < .3
    flat = moved(mask.flatten(), weight.flatten(), growth.flatten(), 20)
    assert moved(mask, weight, growth, 20).flatten().equal(flat)
    odd = [t.permute(2, 0, 1).contiguous().permute(1, 2, 0) for t in (mask, weight, growth)]
    assert not odd[1].is_contiguous() and moved(*odd, 20).flatten().equal(flat)

# --- random masks

@pytest.mark.parametrize('allocation', [erk, per_layer])
def test_random_masks(allocation):
    net = lenet(64, seed=0)
    masks = random_masks(net, .05, 0, allocation)
    want = 2510 if allocation is erk else sum(round(.05*p.numel()) for p in
                                              map(net.get_parameter, masks))
    assert sum(kept(masks).values()) == want and same(masks, random_masks(net, .05, 0, allocation))
    assert not same(masks, random_masks(net, .05, 1, allocation))
    assert same(random_masks(net, 1), full_masks(net))

def test_no_other_generator_is_used():
    before = torch.get_rng_state()
    random_masks(lenet(64, seed=0), .1)
    assert torch.equal(torch.get_rng_state(), before)

def test_a_full_layer_is_reported_and_stays():
    "ERK fills the output layer at 20 %: densities are in the message; no update touches it."
    net = lenet(64, seed=0)
    with pytest.warns(UserWarning, match=r'all weights of output.weight are kept.*layer1.weight 0.2'):
        masks = random_masks(net, .2)
    run = Run(net, torch.optim.Adam(net.parameters(), lr=4e-3), masks)
    train(run, 9)
    before = net.output.weight.detach().clone()
    move_masks(run, {k: torch.rand(m.shape) for k, m in masks.items()}, .5)
    assert torch.equal(net.output.weight, before) and run.masks['output.weight'].all()
    assert not same(run.masks['layer1.weight'], masks['layer1.weight'])

@pytest.mark.parametrize('density', [0, -.1, 1.5, float('nan'), '5 %'])
def test_densities_that_are_refused(density):
    with pytest.raises(ValueError, match='density='): random_masks(lenet(64), density)

# --- the hook

def test_when_masks_move():
    "After 10, 20 and 30 steps of 40; the counts of each layer never change."
    run, watch = make(), Watch()
    first = run.masks
    train(run, 40, SET(10, 35), watch)
    moves = [s for s in range(2, 41) if not same(watch.seen[s], watch.seen[s - 1])]
    assert moves == [10, 20, 30] and same(watch.seen[1], first)
    assert all(kept(m) == kept(first) for m in watch.seen.values())
    n = {k: int((first[k] & ~watch.seen[10][k]).sum()) for k in first}
    for name, alive in kept(first).items(): assert .25*alive < n[name] <= round(.3*alive)

def test_the_fraction_falls_along_a_cosine():
    plain, cosine = SET(100, 1000, .4), SET(100, 1000, .4, anneal=True)
    assert [plain.fraction_at(s) for s in (0, 100, 150, 900, 1000, 1100)] == [0, .4, 0, .4, 0, 0]
    assert cosine.fraction_at(500) == pytest.approx(.2)
    fractions = [cosine.fraction_at(s) for s in range(100, 1000, 100)]
    assert fractions == sorted(fractions, reverse=True) and 0 < fractions[-1] < .02

@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('mover', MOVERS)
def test_new_weights_start_from_nothing(mover, optimizer):
    "Zero, and no momentum, no moments (both of Adam's); what stays keeps its memory."
    run, watch = make(optimizer), Watch()
    train(run, 10, MOVERS[mover], watch)
    if mover == 'rigl': train(run, 11, MOVERS[mover], watch)  # before step 11, in its place
    for name, mask in run.masks.items():
        grown, p = mask & ~watch.seen[9][name], run.net.get_parameter(name)
        memory = [m for m in run.optimizer.state[p].values() if m.shape == p.shape]
        assert grown.any() and memory and not p[grown].any() and p[mask].any()
        for m in memory: assert not m[~mask | grown].any() and m[mask].any()

def test_a_weight_that_was_dropped_long_ago_starts_from_nothing():
    "It grows again after some steps: neither its old value nor its old moments are there."
    run = train(make(), 5)
    name, first = 'layer2.weight', run.masks
    move_masks(run, {k: (~m).float() for k, m in first.items()}, .3)
    gone = first[name] & ~run.masks[name]
    train(run, 10)
    move_masks(run, {k: m.float() for k, m in first.items()}, .3)
    back, p = gone & run.masks[name], run.net.get_parameter(name)
    assert back.any() and not p[back].any()
    assert not any(m[back].any() for m in run.optimizer.state[p].values() if m.shape == p.shape)

def test_what_returns_in_the_same_update_has_not_moved():
    "As in the released code of RigL: its value and its moments stay."
    run = train(make(), 5)
    before = run.state_dict()
    move_masks(run, {k: m.float() for k, m in run.masks.items()}, .3)
    run.extra.clear()
    assert same(run.state_dict(), before)

@pytest.mark.parametrize('mover', MOVERS)
def test_killed_and_resumed(mover, tmp_path):
    def do(run, file=None, more=()):
        hooks = [*more, MOVERS[mover]]
        if file is None: return train(run, 40, *hooks)
        return advance_kept(run, classification(), batches, 40, hooks, file=file, settings={}, every=7)
    kills = [Kill(9), Kill(10, 'on_gradient'), Kill(10), Kill(20, 'before_step'), Kill(30)]
    whole = do(make()).state_dict()
    assert same(killed_and_resumed(make, do, tmp_path/'run.pt', kills), whole)

@pytest.mark.parametrize('mover', MOVERS)
@pytest.mark.parametrize('step', [5, 10, 21])
def test_state_and_rewinding(mover, step):
    "A saved state goes on to the same bits; and so does a run that is rewound to its start."
    hook, run = MOVERS[mover], make()
    start  = run.state_dict()
    middle = train(run, step, hook).state_dict()
    whole  = train(run, 40, hook).state_dict()
    other  = make()
    other.load_state_dict(middle)
    assert same(train(other, 40, hook).state_dict(), whole)
    run.load_state_dict(start)
    assert 'explored' not in run.extra
    assert same(train(run, 40, hook).state_dict(), whole)

def test_seed_and_step_decide():
    "Not the order of the calls, and not PyTorch's global generator."
    torch.manual_seed(5)
    one = train(make(), 40, MOVERS['set']).masks
    torch.manual_seed(6)
    run = make()
    assert same(train(run, 40, MOVERS['set']).masks, one)
    other = make()
    other.seed = 1                                   # same masks and batches: other new weights
    assert not same(train(other, 40, MOVERS['set']).masks, one)

def test_exploration_rate():
    run, watch = make(), Watch()
    assert exploration_rate(run) == pytest.approx(.05, abs=1e-4)
    train(run, 40, SET(10, 35), watch)
    ever = {k: torch.stack([m[k] for m in watch.seen.values()]).any(0) for k in run.masks}
    assert exploration_rate(run) == remaining(ever) > .08

@pytest.mark.parametrize('make_hook', [SET, RigL, MaskMover])
@pytest.mark.parametrize('arguments, message', [
    ((100, 100), 'every=100 and end=100: the first update'), ((200, 100), 'none comes from step 100'),
    ((0, 100), 'every=0'), ((10, 2.5), 'end=2.5'), ((10, 100, 0), 'fraction=0'),
    ((10, 100, 1), 'fraction=1'), ((10, 100, float('nan')), 'fraction=nan')])
def test_movers_that_are_refused(make_hook, arguments, message):
    with pytest.raises(ValueError, match=message): make_hook(*arguments)

@pytest.mark.parametrize('mover', MOVERS)
def test_no_masks(mover):
    net = lenet(64, seed=0)
    run = Run(net, torch.optim.SGD(net.parameters(), lr=.1))
    with pytest.raises(ValueError, match='no masks'): train(run, 20, MOVERS[mover])

# --- a loop of one's own

def own_loop(run, steps, hooks, pieces=1, first=0):
    "Ordinary PyTorch, with two lines of ours: the run, and `finish_step`."
    net, optimizer = run.net, run.optimizer
    for x, y in batches(first, steps):
        optimizer.zero_grad()
        for xs, ys in zip(x.chunk(pieces), y.chunk(pieces)):      # gradient accumulation
            (F.cross_entropy(net(xs), ys)/pieces).backward()
        finish_step(run, hooks)
    return run

@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('mover', MOVERS)
def test_own_loop(mover, optimizer):
    "The same bits as the one loop, and what was pruned is zero."
    run = own_loop(make(optimizer), 40, [MOVERS[mover]])
    assert same(run.state_dict(), train(make(optimizer), 40, MOVERS[mover]).state_dict())
    run.held.check()
    assert run.step == 40

@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('mover', MOVERS)
def test_accumulated_gradients(mover, optimizer):
    "Updates are counted in optimizer steps: the same masks as with whole batches in float64."
    def double():
        run = make(optimizer)
        run.net.double()
        run.set_masks(run.masks)
        return run
    whole, watch = double(), Watch()
    parts = double()
    global batches
    plain = batches
    try:
        batches = lambda start, end: ((x.double(), y) for x, y in plain(start, end))
        train(whole, 35, MOVERS[mover], watch, batches=batches)
        own_loop(parts, 35, [MOVERS[mover]], pieces=5)
    finally: batches = plain
    assert same(parts.masks, whole.masks) and parts.step == 35
    for p, q in zip(parts.net.parameters(), whole.net.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)

def test_the_state_of_an_own_loop():
    run = own_loop(make('sgd'), 15, [MOVERS['rigl']])
    other = make('sgd')
    other.load_state_dict(run.state_dict())
    whole = own_loop(make('sgd'), 40, [MOVERS['rigl']])
    assert same(own_loop(other, 40, [MOVERS['rigl']], first=15).state_dict(), whole.state_dict())

@pytest.mark.parametrize('mover', MOVERS)
def test_convolutions_and_norms(mover):
    "Any network: kernels are layers as others; norms have no masks."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                        nn.Linear(8*36, 10))
    run = Run(net, torch.optim.AdamW(net.parameters(), lr=1e-3), random_masks(net, .3))
    before = run.masks
    train(run, 40, MOVERS[mover])
    assert kept(run.masks) == kept(before) and not same(run.masks['4.weight'], before['4.weight'])
    assert not same(run.masks['0.weight'], before['0.weight'])

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('mover', MOVERS)
def test_on_cuda(mover):
    "The random masks are those of the CPU; everything stays on the device."
    net = lenet(64, seed=0).cuda()
    masks = random_masks(net, .05)
    assert all(m.is_cuda for m in masks.values())
    assert same({k: m.cpu() for k, m in masks.items()}, random_masks(lenet(64, seed=0), .05))
    run = Run(net, torch.optim.Adam(net.parameters(), lr=4e-3), masks)
    there = example_batches(data.x_train.cuda(), data.y_train.cuda(), 50, 0)
    advance(run, classification(), there, 40, [MOVERS[mover]])
    assert all(m.is_cuda for m in run.masks.values()) and kept(run.masks) == kept(masks)
    assert exploration_rate(run) > .06
    run.held.check()

def test_a_frozen_layer_is_refused():
    run = make()
    run.net.layer1.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="'layer1.weight' is frozen"):
        move_masks(run, {k: m.float() for k, m in run.masks.items()}, .5)

def test_set_reads_only_where_it_moves():
    "So that compiled steps need not put weights back for nothing."
    mover, run = SET(10, 40), make()
    read = []
    for run.step in range(45): read += [run.step + 1]*mover.reads(run)
    assert read == [10, 20, 30]
