"RigL sees the dense gradient, an update takes the place of a step; gradual pruning is exact."
import math, time
import pytest, torch
from kills import Kill, killed_and_resumed
from movers import OPTIMIZERS, batches, data, make, train
from sameness import same
from torch import nn
from torch.nn import functional as F
from lotterybook.foundations.checkpoints import advance_kept, snapshot
from lotterybook.foundations.hooks import ClipGradient, LearningRate
from lotterybook.foundations.networks import lenet
from lotterybook.foundations.running import Hook, Run, advance
from lotterybook.foundations.training import classification, example_batches
from lotterybook.pruning.allocation import erk, global_, per_layer
from lotterybook.pruning.masked_training import keep_pruned
from lotterybook.pruning.masks import full_masks, kept, remaining
from lotterybook.sparse_training.moving_masks import exploration_rate, finish_step, random_masks
from lotterybook.sparse_training.rigl import (
    GradualPruning, RigL, _gradient_sizes, _looks_masked, step_ratio, training_multiply_adds)
torch.set_num_threads(1)

class Linear4(nn.Module):
    "Four weights: the output is their sum with the input, the loss pulls it to a target."
    def __init__(self, weights):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weights]))
    def forward(self, x): return x @ self.weight.T

def four(weights=(.5, .1, 0., 0.), kept=(1, 1, 0, 0), lr=.1):
    net = Linear4(weights)
    return Run(net, torch.optim.SGD(net.parameters(), lr=lr), {'weight': torch.tensor([kept]).bool()})

def squares(net, batch): return (net(batch[0]) - batch[1]).square().mean()/2

def ones(start, end):
    "An input that is large at the third weight; the gradient is -error times the input."
    for _ in range(start, end): yield torch.tensor([[1., 1, 3, 2]]), torch.tensor([[2.]])

# --- where to grow

def test_by_hand():
    "The gradient chooses the third weight: its input is the largest."
    run = four(lr=1e-6)
    advance(run, squares, ones, 2, [RigL(1, 100, .5)])
    assert run.masks['weight'].tolist() == [[True, False, True, False]]

def test_a_dropped_weight_may_return():
    "Its gradient is the largest; it keeps its value."
    run = four(lr=1e-6)
    def last(start, end):
        for x, y in ones(start, end): yield x[:, [2, 1, 0, 3]][:, [1, 0, 2, 3]], y  # 1, 3, 1, 2
    advance(run, squares, last, 2, [RigL(1, 100, .5)])
    assert run.masks['weight'].tolist() == [[True, True, False, False]]
    assert run.net.weight[0, 1].item() == pytest.approx(.1, abs=1e-4)

@pytest.mark.parametrize('bad', [0., math.inf, math.nan])
def test_hidden_gradients_beside_one_that_is_not_finite(bad):
    "A kept weight may have any gradient: the pruned ones are still hidden."
    run = make('sgd')
    for name, p in run.net.named_parameters(): p.grad = torch.ones_like(p)
    assert _gradient_sizes(run)
    for name, mask in run.masks.items():
        grad = run.net.get_parameter(name).grad
        grad.mul_(mask)
        grad[tuple(mask.nonzero()[0])] += bad
    with pytest.raises(ValueError, match='gradients of all pruned weights'): _gradient_sizes(run)

def test_the_gradient_is_that_of_all_weights():
    "Growth is the largest |∂L/∂(m ⊙ θ)| outside of what stays, in each layer; by a second route."
    run = train(make('sgd'), 10)
    x, y = next(iter(batches(10, 11)))
    weights = {k: p.detach().clone().requires_grad_() for k, p in run.net.named_parameters()}
    F.cross_entropy(torch.func.functional_call(run.net, weights, x), y).backward()
    before = run.masks
    fraction = RigL(10, 40).fraction_at(10)
    train(run, 11, RigL(10, 40))
    for name, mask in before.items():
        n, size = round(fraction*int(mask.sum())), weights[name].grad.abs()
        stay = mask.clone()
        order = weights[name].detach().abs().masked_fill(~mask, math.inf).flatten().argsort(stable=True)
        stay.view(-1)[order[:n]] = False
        grown = run.masks[name] & ~stay
        assert int(grown.sum()) == n and (run.masks[name] & stay).equal(stay)
        assert size[grown].min() >= size[~run.masks[name]].max()
        assert n < 10 or size[grown].min() > 0  # no ties at zero

def test_a_gradient_that_was_masked_is_refused():
    "mask*weight in the forward pass, or keep_pruned: growth would pick ties."
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(64, 10)
        def forward(self, x): return F.linear(x.flatten(1), self.mask*self.inner.weight)
    net = Masked()
    masks = random_masks(net, .2)
    net.mask = masks['inner.weight'].float()
    run = Run(net, torch.optim.SGD(net.parameters(), lr=.1), masks)
    with pytest.raises(ValueError, match="gradients of all pruned weights of 'inner.weight' are zero"):
        train(run, 20, RigL(10, 40))
    run = make()
    with pytest.raises(ValueError, match='such as keep_pruned'), keep_pruned(run.net, run.masks):
        train(run, 20, RigL(10, 40))

def test_a_layer_with_few_living_units():
    "All places between living units and living inputs are kept, and nothing masks them: no error. More units: an error that names the layer."
    run = make()
    first, *_ = run.masks
    for name, mask in run.masks.items(): run.net.get_parameter(name).grad = torch.ones(mask.shape)
    kept = run.masks[first]
    grad = run.net.get_parameter(first).grad
    unit = kept.sum(1).argmax()
    grad *= kept & (torch.arange(len(kept)) == unit)[:, None]  # one unit, and only the inputs that it keeps
    sizes = _gradient_sizes(run)
    assert sizes[first].sum() == kept[unit].sum() > 0
    run.net.get_parameter(first).grad = torch.ones(kept.shape)*kept
    with pytest.raises(ValueError, match=f"gradients of all pruned weights of '{first}' are zero"): _gradient_sizes(run)

@pytest.mark.parametrize('shape', [(40,), (40, 5), (8, 5, 3, 3)])
def test_looks_masked(shape):
    "A weight of any number of dimensions; no gradient at all is a dead layer."
    kept = torch.arange(math.prod(shape)).view(shape) % 3 == 0
    assert _looks_masked(torch.ones(shape)*kept, kept)
    assert not _looks_masked(torch.ones(shape), kept) and not _looks_masked(torch.zeros(shape), kept)

def test_gradients_that_cannot_choose():
    "None, or not finite: the message names the layer."
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(64, 10), nn.Linear(5, 5)
        def forward(self, x): return self.used(x.flatten(1))
    net = Two()
    run = Run(net, torch.optim.SGD(net.parameters(), lr=.1), random_masks(net, .2))
    with pytest.raises(ValueError, match="'idle.weight' has no gradient"): train(run, 20, RigL(10, 40))
    run = make()
    def broken(start, end):
        for step, (x, y) in enumerate(batches(start, end), start):
            yield x*(math.nan if step == 10 else 1), y
    with pytest.raises(ValueError, match="gradient of 'layer1.weight' after 10 steps is not finite"):
        advance(run, classification(), broken, 20, [RigL(10, 40)])

def test_dense_masks_are_refused():
    with pytest.raises(ValueError, match=r'begin with random_masks\(net, density\)'):
        train(make(density=1), 40, RigL(10, 40))

# --- an update takes the place of a step

@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_an_update_replaces_the_step(optimizer):
    "What stays does not move, by no gradient, momentum or weight decay; Adam does not count it."
    run = train(make(optimizer), 10, RigL(10, 40))
    before, old = snapshot(run.net), run.masks
    state = {id(p): {k: v.clone() for k, v in s.items() if isinstance(v, torch.Tensor)}
             for p, s in run.optimizer.state.items()}
    train(run, 11, RigL(10, 40), ClipGradient(1.), LearningRate(lambda run: .01))
    assert run.step == 11
    for name, p in run.net.named_parameters():
        mask = run.masks.get(name, torch.ones_like(p, dtype=torch.bool))
        stay = mask & (p != 0)
        assert torch.equal(p[stay], before[name][stay]) and not p[~mask].any()
        for key, memory in state[id(p)].items():
            now = run.optimizer.state[p][key]
            if memory.shape == p.shape: assert torch.equal(now[stay], memory[stay])
            else: assert now == memory == 10
    assert not same(run.masks, old)
    moved = snapshot(train(run, 12, RigL(10, 40)).net)
    assert not torch.equal(moved['output.bias'], before['output.bias'])

def test_adam_takes_large_first_steps_with_new_weights():
    "Its bias correction counts the steps of the layer, 201: the new moments are taken for old ones."
    run = make('adam')
    run.optimizer.param_groups[0]['weight_decay'] = 0
    train(run, 201, RigL(200, 400))
    new = {k: m & (run.net.get_parameter(k) == 0) for k, m in run.masks.items()}
    train(run, 202)
    first = run.net.layer2.weight.detach()[new['layer2.weight']].abs().max().item()/4e-3
    assert first == pytest.approx((1 - .9)/math.sqrt((1 - .999)/(1 - .999**201)), rel=1e-3)  # 1.35

def test_when_masks_move():
    run, seen = make(), {}
    class Watch(Hook):
        writes = False
        def after_step(self, run): seen[run.step] = run.masks
    train(run, 40, RigL(10, 35), Watch())
    assert [s for s in range(2, 41) if not same(seen[s], seen[s - 1])] == [11, 21, 31]
    assert all(kept(m) == kept(seen[1]) for m in seen.values())
    n = [int((seen[s - 1]['layer1.weight'] & ~seen[s]['layer1.weight']).sum()) for s in (11, 31)]
    assert 0 <= n[1] < n[0]

def test_clipping_in_an_own_loop():
    "Hooks of the step see the masked gradient; those of `advance` and of `finish_step` are the same."
    hooks = [RigL(10, 35), ClipGradient(.1)]
    one, other = train(make(), 30, *hooks), make()
    for x, y in batches(0, 30):
        other.optimizer.zero_grad()
        F.cross_entropy(other.net(x), y).backward()
        finish_step(other, hooks)
    assert same(one.state_dict(), other.state_dict())

# --- gradual pruning

def dense_run(optimizer='adam'): return make(optimizer, 1)

@pytest.mark.parametrize('allocation', [global_, erk])
@pytest.mark.parametrize('every', [5, 7, 30])
def test_the_cubic_is_exact_and_nested(allocation, every):
    "To one weight after each cut, also at an end that no interval divides; nothing comes back."
    seen, prune = {}, GradualPruning(.03, 4, 34, every, allocation)
    class Watch(Hook):
        writes = False
        def after_step(self, run): seen[run.step] = run.masks
    run = train(dense_run(), 40, prune, Watch())
    cuts = sorted({*range(4 + every, 34, every), 34})
    assert [s for s in range(2, 41) if seen[s] is not seen[s - 1]] == cuts
    for s in cuts:
        want = 1 - (1 - .03)*(1 - (1 - (s - 4)/30)**3)
        assert sum(kept(seen[s]).values()) == round(want*50_200)
        assert not any((m & ~seen[s - 1][k]).any() for k, m in seen[s].items())
    assert sum(kept(run.masks).values()) == round(.03*50_200) and exploration_rate(run) == 1
    run.held.check()

def test_each_layer_to_the_same_density():
    run = train(dense_run(), 40, GradualPruning(.03, 0, 40, 5, per_layer))
    for mask in run.masks.values(): assert abs(mask.sum() - .03*mask.numel()) <= 5

def test_from_a_ticket():
    "Nothing happens until the curve reaches what the masks keep."
    run = make(density=.1)
    train(run, 40, GradualPruning(.05, 0, 40, 10))
    assert remaining(run.masks) == pytest.approx(.05, abs=1e-5)
    run = make(density=.02)
    before = run.masks
    assert train(run, 40, GradualPruning(.05, 0, 40, 10)).masks is before

def test_gradual_killed_and_resumed(tmp_path):
    def do(run, file=None, more=()):
        hooks = [*more, GradualPruning(.05, 4, 34, 7)]
        if file is None: return train(run, 40, *hooks)
        return advance_kept(run, classification(), batches, 40, hooks, file=file, settings={}, every=7)
    kills = [Kill(11), Kill(18, 'before_step'), Kill(34)]
    assert same(killed_and_resumed(dense_run, do, tmp_path/'run.pt', kills), do(dense_run()).state_dict())

def test_gradual_in_an_own_loop():
    run = dense_run('sgd')
    for x, y in batches(0, 40):
        run.optimizer.zero_grad()
        F.cross_entropy(run.net(x), y).backward()
        finish_step(run, [GradualPruning(.05, 4, 34, 7)])
    assert same(run.state_dict(), train(dense_run('sgd'), 40, GradualPruning(.05, 4, 34, 7)).state_dict())

@pytest.mark.parametrize('arguments, message', [
    ((0, 0, 10, 1), 'density=0'), ((1, 0, 10, 1), 'density=1'), ((.1, -1, 10, 1), 'start=-1'),
    ((.1, 0, 0, 1), 'end=0'), ((.1, 0, 10, 0), 'every=0'),
    ((.1, 5, 10, 6), 'every=6 steps do not fit'), ((.1, 10, 5, 1), 'between start=10 and end=5')])
def test_gradual_pruning_that_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message): GradualPruning(*arguments)

# --- cost

def test_multiply_adds():
    "By hand; and the paper's mean of a step, ΔT steps and one update."
    net = nn.Linear(10, 4, bias=False)
    masks = {'weight': torch.zeros(4, 10, dtype=torch.bool)}
    masks['weight'][0] = True                          # 10 of 40
    assert training_multiply_adds(net, (10,), None, 7) == 3*40*7
    assert training_multiply_adds(net, (10,), masks, 7) == 3*10*7
    f_s, f_d, every = 10, 40, 6
    mean = (3*f_s*every + 2*f_s + f_d)/(every + 1)
    assert training_multiply_adds(net, (10,), masks, every + 1, updates=1)/(every + 1) == mean

def test_step_ratio():
    run_ratio = step_ratio(make, classification(), batches, [RigL(2, 10**6)], steps=4, pairs=3)
    assert run_ratio.keys() == {'plain_ms', 'hooked_ms', 'ratio', 'low', 'high'}
    assert 0 < run_ratio['low'] <= run_ratio['ratio'] <= run_ratio['high']
    with pytest.raises(ValueError, match='pairs=1'):
        step_ratio(make, classification(), batches, [], steps=4, pairs=1)

def test_the_middle_half_of_step_ratio(monkeypatch):
    "Of the ratios 1, 2 and 3 it is 1.5 to 2.5, inside of the smallest and the largest."
    blocks = [1, 1, 1, 1, 1, 2, 1, 3]  # plain and hooked in turn; the first pair is not counted
    ticks  = iter([t for seconds in blocks for t in (0, seconds)])
    monkeypatch.setattr(time, 'process_time', lambda: next(ticks))
    found = step_ratio(make, classification(), batches, [], steps=1, pairs=3)
    assert (found['low'], found['ratio'], found['high']) == (1.5, 2, 2.5)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_on_cuda():
    net = lenet(64, seed=0).cuda()
    run = Run(net, torch.optim.Adam(net.parameters(), lr=4e-3), full_masks(net))
    there = example_batches(data.x_train.cuda(), data.y_train.cuda(), 50, 0)
    advance(run, classification(), there, 40, [GradualPruning(.05, 0, 40, 10)])
    assert all(m.is_cuda for m in run.masks.values())
    assert sum(kept(run.masks).values()) == round(.05*50_200)
