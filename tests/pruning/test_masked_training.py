"Zeros that hold in any loop, wherever the network goes; and pruning as one function of a run."
import copy, io, math
import pytest, torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from lotterybook.foundations.data import load
from lotterybook.foundations.fast_steps import FusedAdam
from lotterybook.foundations.networks import lenet
from lotterybook.foundations.randomness import rng
from lotterybook.foundations.running import Run
from lotterybook.pruning.allocation import erk, global_, per_layer
from lotterybook.pruning.masked_training import keep_pruned, revived
from lotterybook.pruning.masks import apply_masks, full_masks, kept, remaining
from lotterybook.pruning.schedules import all_at_once, cubic, geometric, pruner, rate_for
from lotterybook.pruning.scores import magnitude, random_scores
torch.set_num_threads(1)
digits = load('digits')
x, y   = digits.x_train[:120], digits.y_train[:120]

def beginning(share=.3, seed=0):
    "LeNet, and masks that prune some of each layer."
    net = lenet(64, seed=seed)
    return net, {k: torch.rand(m.shape, generator=rng(0, k)) < share for k,
                 m in full_masks(net).items()}

def steps(net, optimizer, n=3, clip=None):
    "Some steps as everybody takes them."
    dtype = next(net.parameters()).dtype
    for _ in range(n):
        optimizer.zero_grad()
        F.cross_entropy(net(x.to(dtype)).float(), y).backward()
        if clip: nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()

def sgd(net): return torch.optim.SGD(net.parameters(), .1, momentum=.9, weight_decay=.01)

OPTIMIZERS = dict(
    sgd=sgd, adam=lambda net: torch.optim.Adam(net.parameters(), .01, weight_decay=.1),
    fused=lambda net: FusedAdam(net.parameters(), .01, weight_decay=.1),
    amsgrad=lambda net: FusedAdam(net.parameters(), amsgrad=True),
    adamw=lambda net: torch.optim.AdamW(net.parameters(), .01),
    torch_fused=lambda net: torch.optim.Adam(net.parameters(), .01, weight_decay=.1, fused=True),
    nesterov=lambda net: torch.optim.SGD(net.parameters(), .05, momentum=.9, nesterov=True,
                                         weight_decay=.01),
    rmsprop=lambda net: torch.optim.RMSprop(net.parameters(), 1e-3, momentum=.9, weight_decay=.01))

def hooks(net):
    return (len(_global_optimizer_pre_hooks) + len(_global_optimizer_post_hooks) +
            sum(len(p._post_accumulate_grad_hooks or ()) for p in net.parameters()))

# --- revived

def test_revived():
    "Counts by layer, of those that are not zero; a layer with nothing pruned is there, too."
    net, masks = beginning()
    masks['output.weight'][:] = True
    gone = {k: int((~m).sum()) for k, m in masks.items()}
    assert revived(net, masks) == gone and gone['output.weight'] == 0 and gone['layer1.weight'] > 0
    with torch.no_grad():
        for k, m in masks.items(): net.get_parameter(k)[~m] = 0
        places = (~masks['layer2.weight']).view(-1).nonzero()[:4, 0]
        net.layer2.weight.view(-1)[places] = torch.tensor([math.nan, -math.inf, 1e-45, -1.])
        net.layer1.weight[~masks['layer1.weight']] = -0.
    assert revived(net, masks) == dict(gone, **{'layer1.weight': 0, 'layer2.weight': 4})

@pytest.mark.parametrize('masks, why', [
    ({}, 'no masks'),
    ({'layer9.weight': torch.ones(2).bool()}, "'layer9.weight' fits no parameter"),
    ({'output.weight': torch.ones(2).bool()}, r'has shape \(2,\)'),
    ({'output.weight': torch.ones(10, 100)}, 'not bool'),
    ({'output.weight': torch.full((10, 100), .5)}, 'holds 0.5'),
    ({'output.weight': [True]}, 'is a list')])
def test_wrong_masks(masks, why):
    "Named, by `revived` and before anything is trained by `keep_pruned`."
    net = lenet(64)
    if not masks: assert revived(net, masks) == {}; return
    with pytest.raises(ValueError, match=why): revived(net, masks)
    with pytest.raises(ValueError, match=why):
        with keep_pruned(net, masks): raise AssertionError
    assert hooks(net) == 0

# --- keep_pruned

@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize('named', [True, False])
def test_the_memory_of_optimizers(name, named):
    "Momentum and moments are forgotten where weights are pruned, and nowhere else."
    net, masks = beginning()
    optimizer  = OPTIMIZERS[name](net)
    steps(net, optimizer)
    def memory(k):
        state = optimizer.state[net.get_parameter(k)]
        return [m.clone() for m in state.values() if m.shape == masks[k].shape]
    before = {k: memory(k) for k in masks}
    weights = copy.deepcopy(net.state_dict())
    with keep_pruned(net, masks, optimizer if named else None):
        if named:
            for k, m in masks.items():
                assert before[k]
                assert all(torch.equal(new, old*m) for new, old in zip(memory(k), before[k]))
        for _ in range(3):
            steps(net, optimizer, 1, clip=.1)
            assert not any(revived(net, masks).values())
        for k, m in masks.items():
            assert not any(o[~m].any() for o in memory(k)) and any(o[m].any() for o in memory(k))
            assert (net.get_parameter(k) != weights[k])[m].any()    # the others do train
    assert hooks(net) == 0 and not optimizer._optimizer_step_post_hooks

def test_memory_in_another_order():
    "FusedAdam's moments of a weight whose columns lie side by side keep their places."
    net, masks = beginning()
    optimizer  = FusedAdam(net.parameters())
    steps(net, optimizer)
    moment = optimizer.state[net.layer1.weight]['exp_avg']
    assert net.layer1.weight.stride() == moment.stride() == (1, 300)
    want = moment.clone()*masks['layer1.weight']
    with keep_pruned(net, masks, optimizer): pass
    now = optimizer.state[net.layer1.weight]['exp_avg']
    assert now is moment and now.stride() == (1, 300) and torch.equal(now, want)

class Kept(nn.Module):
    "LeNet in which pruned weights do not exist: the kept ones are parameters, in short vectors."
    def __init__(self, net, masks):
        super().__init__()
        self.inner, self.masks = [net], masks              # in a list: no submodule
        self.short = nn.ParameterList(
            p.detach()[masks[k]] if k in masks else p.detach().clone()
            for k, p in net.named_parameters())
    def whole(self):
        full = {}
        for (k, p), short in zip(self.inner[0].named_parameters(), self.short):
            if k not in self.masks: full[k] = short
            else: full[k] = torch.zeros(p.shape).masked_scatter(self.masks[k], short)
        return full
    def forward(self, x): return functional_call(self.inner[0], self.whole(), (x,))

@pytest.mark.parametrize('name', OPTIMIZERS)
def test_a_network_without_the_pruned_weights(name):
    "A second route to the same numbers, with weight decay and clipping."
    net, masks = beginning()
    start = copy.deepcopy(net)
    short = Kept(copy.deepcopy(net), masks)
    steps(short, OPTIMIZERS[name](short), 5, clip=.1)
    with keep_pruned(net, masks): steps(net, OPTIMIZERS[name](net), 5, clip=.1)
    for k, wanted in short.whole().items():
        assert (net.get_parameter(k) - wanted).abs().max() < 1e-4   # sums in another order
        assert (net.get_parameter(k) != start.get_parameter(k)).any()

def test_masked_weights_alone_are_not_enough_with_clipping():
    "Set to zero after each step, but clipped by too large a norm: another network."
    net, masks = beginning()
    short, optimizer = Kept(copy.deepcopy(net), masks), sgd(net)
    steps(short, sgd(short), 20, clip=.1)
    for _ in range(20):
        apply_masks(net, masks)
        steps(net, optimizer, 1, clip=.1)
    apply_masks(net, masks)
    assert max((net.get_parameter(k) - p).abs().max() for k, p in short.whole().items()) > 1e-2

@pytest.mark.parametrize('named', [True, False])
def test_hooks_are_removed(named):
    "At the end and after an error; outside the block pruned weights are free again."
    net, masks = beginning()
    optimizer  = sgd(net)
    def count(): return hooks(net) + len(optimizer._optimizer_step_post_hooks)
    with keep_pruned(net, masks, optimizer if named else None) as same_net:
        assert same_net is net and count() > 0
    assert count() == 0
    with pytest.raises(KeyError):
        with keep_pruned(net, masks, optimizer if named else None): raise KeyError('in the loop')
    assert count() == 0
    steps(net, optimizer, 1)
    assert sum(revived(net, masks).values()) > 0

def test_what_a_loop_may_do():
    "Keep its best state and return to it, add gradients of two passes, have no optimizer at all."
    net, masks = beginning()
    with keep_pruned(net, masks):
        best = copy.deepcopy(net), copy.deepcopy(net.state_dict())
        for half in (slice(60), slice(60, None)): F.cross_entropy(net(x[half]), y[half]).backward()
        assert not net.layer1.weight.grad[~masks['layer1.weight']].any()
        with torch.no_grad():
            for p in net.parameters(): p -= .1*p.grad
        assert not any(revived(net, masks).values())
        net.load_state_dict(best[1])
    assert not any(revived(net, masks).values())

def test_many_passes_in_one_step():
    "LBFGS calls its closure several times: the weights are zero in each of them."
    net   = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    masks = {k: torch.rand(m.shape, generator=rng(0, k)) < .3 for k, m in full_masks(net).items()}
    lbfgs, calls = torch.optim.LBFGS(net.parameters(), lr=.1, max_iter=5), []
    def closure():
        lbfgs.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        calls.append(sum(revived(net, masks).values()))
        return loss
    with keep_pruned(net, masks): lbfgs.step(closure)
    assert len(calls) > 1 and not any(calls)

def load_dense(net, masks): net.load_state_dict(lenet(64, seed=5).state_dict())
def assign_dense(net, masks): net.load_state_dict(lenet(64, seed=5).state_dict(), assign=True)
def write_data(net, masks): net.layer2.weight.data.copy_(lenet(64, seed=5).layer2.weight)
def swap_data(net, masks): net.layer2.weight.data = lenet(64, seed=5).layer2.weight.data
def add_noise(net, masks):
    with torch.no_grad(): net.output.weight += 1e-3
def new_parameter(net, masks):
    net.layer2.weight = nn.Parameter(lenet(64, seed=5).layer2.weight.detach())

@pytest.mark.parametrize('bring_back', [load_dense, assign_dense, write_data, swap_data, add_noise,
                                        new_parameter])
@pytest.mark.parametrize('named', [True, False])
def test_dense_weights_at_the_exit(bring_back, named):
    "An error that names layers and counts; the hooks are gone."
    net, masks = beginning()
    optimizer  = sgd(net)
    with pytest.raises(ValueError, match='pruned weights are not zero') as e:
        with keep_pruned(net, masks, optimizer if named else None):
            steps(net, optimizer)
            bring_back(net, masks)
    for k, n in revived(net, masks).items():
        assert (f"{n} of {k!r}" in str(e.value)) == (n > 0)
    assert hooks(net) == 0

@pytest.mark.parametrize('bring_back', [load_dense, write_data, swap_data, add_noise])
def test_dense_weights_before_a_step(bring_back):
    "The next step makes them zero again: what was trained in between is for a search to see."
    net, masks = beginning()
    optimizer  = sgd(net)
    with keep_pruned(net, masks):
        bring_back(net, masks)
        steps(net, optimizer)
        assert not any(revived(net, masks).values())

def test_an_error_inside():
    "It is the loop's own, whatever has become of the zeros."
    net, masks = beginning()
    with pytest.raises(KeyError):
        with keep_pruned(net, masks): load_dense(net, masks); raise KeyError
    assert hooks(net) == 0

def to_double(net): net.double()
def to_half(net): net.bfloat16()
def to_other_memory(net):
    for p in net.parameters(): p.data = p.data.clone()
def to_meta_and_back(net):
    state = copy.deepcopy(net.state_dict())
    net.to_empty(device='cpu')
    net.load_state_dict(state)
def from_file(net):
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    net.load_state_dict(torch.load(file))

@pytest.mark.parametrize('move', [to_double, to_half, to_other_memory, to_meta_and_back, from_file])
@pytest.mark.parametrize('before', [True, False])
def test_masks_follow_the_network(move, before):
    "To another precision and to other memory, before the first step and between two."
    net, masks = beginning()
    with keep_pruned(net, masks):
        if before: steps(net, sgd(net))
        move(net)
        optimizer = sgd(net)
        for _ in range(3):
            steps(net, optimizer, 1)
            assert not any(revived(net, masks).values())
        for k, m in masks.items():
            p = net.get_parameter(k)
            assert not p.grad[~m].any() and p[m].any()
            assert not optimizer.state[p]['momentum_buffer'][~m].any()

def test_replaced_parameters_that_are_sparse():
    "A sparse state that is assigned is no leak: new parameters, the same zeros."
    net, masks = beginning()
    with keep_pruned(net, masks):
        steps(net, sgd(net))
        net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    assert not any(revived(net, masks).values())

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('make', [sgd, lambda net: torch.optim.Adam(net.parameters(), .01)],
                         ids=['sgd', 'adam'])
def test_no_numbers_under_the_mask(dtype, make):
    "Infinity and NaN in pruned weights, their gradients and what is remembered of them do no harm."
    net = nn.Linear(4, 1).to(dtype)
    optimizer = make(net)
    net(torch.ones(1, 4, dtype=dtype)).sum().backward()
    optimizer.step()
    mask = torch.tensor([[True, False, False, False]])
    bad  = torch.tensor([math.inf, -math.inf, math.nan], dtype=dtype)
    memory = [m for m in optimizer.state[net.weight].values() if m.shape == mask.shape]
    for part in (net.weight.data, *memory): part[0, 1:] = bad
    with keep_pruned(net, {'weight': mask}, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            (net(torch.ones(1, 4, dtype=dtype)).sum() + (net.weight[0, 1:]*bad).sum()).backward()
            assert net.weight.grad[0, 1:].tolist() == [0, 0, 0] and net.weight.grad[0, 0] == 1
            nn.utils.clip_grad_norm_(net.parameters(), .5)
            optimizer.step()
    assert net.weight[0, 1:].tolist() == [0, 0, 0] and net.weight.isfinite().all()

def test_a_clipping_norm_of_the_survivors():
    "Gradients are masked before they are clipped: the norm is that of the weights that are there."
    net, masks = beginning()
    with keep_pruned(net, masks):
        F.cross_entropy(net(x), y).backward()
        norm = nn.utils.get_total_norm([p.grad for p in net.parameters()])
    net.zero_grad()
    F.cross_entropy(net(x), y).backward()
    grads = [p.grad*masks[k] if k in masks else p.grad for k, p in net.named_parameters()]
    assert torch.allclose(norm, nn.utils.get_total_norm(grads))

def test_frozen_weights():
    "A pruned weight that needs no gradient is zero, too, and stays as it is."
    net, masks = beginning()
    net.layer1.weight.requires_grad_(False)
    with keep_pruned(net, masks):
        before = net.layer1.weight.clone()
        steps(net, sgd(net))
    assert torch.equal(net.layer1.weight, before) and not before[~masks['layer1.weight']].any()

def test_nothing_is_pruned():
    "Full masks hold nothing: the same bits as without, and no hook."
    (a, _), (b, _) = beginning(), beginning()
    with keep_pruned(a, full_masks(a)): steps(a, sgd(a))
    steps(b, sgd(b))
    assert all(map(torch.equal, a.parameters(), b.parameters()))

def test_two_networks_at_once():
    "Each holds its own."
    (a, masks), (b, others) = beginning(), beginning(.6, seed=1)
    with keep_pruned(a, masks), keep_pruned(b, others):
        steps(a, sgd(a)); steps(b, sgd(b))
    assert not any(revived(a, masks).values()) and not any(revived(b, others).values())
    assert hooks(a) == hooks(b) == 0
    assert remaining({'w': a.layer2.weight != 0}) < .31
    assert remaining({'w': b.layer2.weight != 0}) > .55

def test_a_loop_may_save_its_network():
    "As a whole, by pickle, inside the block; what is read back is free."
    net, masks = beginning()
    with keep_pruned(net, masks):
        steps(net, sgd(net))
        file = io.BytesIO()
        torch.save(net, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert hooks(again) == 0 and not any(revived(again, masks).values())
    steps(again, sgd(again))
    assert all(revived(again, masks).values())

# --- pruner

def run_of(seed=0, round=1):
    run = Run(net := lenet(64, seed=seed), None, full_masks(net))
    run.round = round
    return run

def pruned_by(prune, rounds, run=None):
    "The masks of each round, with nothing trained in between."
    run, every = run or run_of(), []
    for run.round in range(1, rounds + 1):
        run.set_masks(prune(run))
        every.append(run.masks)
    return every

@pytest.mark.parametrize('allocation', [per_layer, global_, erk])
@pytest.mark.parametrize('rate', [.2, .5, .99])
def test_score_and_allocation(rate, allocation):
    "By a second route: the allocation of the network's scores; the run stays as it is."
    run  = run_of()
    want = allocation(magnitude(run.net, run.masks), run.masks, rate)
    got  = pruner(rate, allocation=allocation)(run)
    assert got.keys() == want.keys() and all(torch.equal(got[k], want[k]) for k in want)
    assert all(m.all() for m in run.masks.values()) and run.net.layer1.weight.all()

def test_a_fifth_by_default():
    "Of each layer's survivors, the smallest."
    first, second = pruned_by(pruner(), 2)
    assert kept(first) == {'layer1.weight': 15360, 'layer2.weight': 24000, 'output.weight': 800}
    assert kept(second)['output.weight'] == 640
    assert not any((second[k] & ~first[k]).any() for k in first)
    sizes = run_of().net.output.weight.abs()
    assert sizes[first['output.weight']].min() >= sizes[~first['output.weight']].max()

@pytest.mark.parametrize('schedule, left', [
    (geometric(.5, 3), [.5, .25, .125]), (all_at_once(.1), [.1]), ([.5, .2], [.5, .4]),
    ((.9,), [.1]), (cubic(.1, 3), [1 - .9*(1 - (1 - t/3)**3) for t in (1, 2, 3)]),
    (geometric(rate_for(.1, 4), 4), [.1**(t/4) for t in (1, 2, 3, 4)])])
def test_schedules(schedule, left):
    "A rate for each round; one round more is an error that says so, at any time."
    prune = pruner(schedule)
    got = [remaining(m) for m in pruned_by(prune, len(left))]
    assert all(abs(a - b) < .001 for a, b in zip(got, left))
    n = len(left)
    with pytest.raises(ValueError, match=f'has {n} rates, and round {n + 1} asks for another'):
        prune(run_of(round=n + 1))
    assert abs(remaining(prune(run_of(round=1))) - left[0]) < .001  # not of calls: of the round

@pytest.mark.parametrize('round', [0, -1])
def test_a_round_that_is_none(round):
    "Round 0 prunes nothing: a schedule has no rate for it."
    with pytest.raises(ValueError): pruner([.2, .5])(run_of(round=round))

@pytest.mark.parametrize('rate, why', [
    (0, 'rate=0 must lie between 0 and 1'), (1, 'rate=1 must'), (1.5, 'rate=1.5'),
    (-.1, 'rate=-0.1'), (True, 'rate=True'), (math.nan, 'rate=nan'), ([.2, 0], r'rate\[1\]=0 must'),
    ([.2, '.5'], r"rate\[1\]='.5' must"), ([None], r'rate\[0\]=None')])
def test_wrong_rates(rate, why):
    "Refused when the pruner is made, by their place."
    with pytest.raises(ValueError, match=why): pruner(rate)

def test_a_score_that_looks_at_data():
    "It gets network, masks, objective and batches; batches are read anew each round."
    seen = []
    def score(net, masks, objective, batches):
        seen.append((objective, [b.item() for b in batches], sum(kept(masks).values())))
        return magnitude(net, masks)
    pruned_by(pruner(.5, score, objective=F.mse_loss, batches=list(torch.arange(3))), 2)
    assert seen == [(F.mse_loss, [0, 1, 2], 50200), (F.mse_loss, [0, 1, 2], 25100)]

def test_chance():
    "Drawn from the global generator, or from one's own: the search draws for each round anew."
    prune = pruner(.5, random_scores)
    def drawn(seed): torch.manual_seed(seed); return prune(run_of())['output.weight']
    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))
    assert int(drawn(0).sum()) == 500

@pytest.mark.parametrize('score, why', [
    (lambda net, masks, *_: {k: torch.full(m.shape, math.nan) for k, m in masks.items()},
     "scores of 'layer1.weight' are NaN"),
    (lambda net, masks, *_: {}, "no scores for 'layer1.weight'"),
    (lambda net, masks, *_: {k: m.flatten() for k, m in masks.items()},
     "scores of 'layer1.weight' have shape")])
def test_wrong_scores(score, why):
    "The layer is named."
    with pytest.raises(ValueError, match=why): pruner(.5, score)(run_of())

def test_weights_left_out_or_taken_in():
    "The run's masks say what is ranked, and nothing else is."
    net = lenet(64, seed=0)
    run = Run(net, None, full_masks(net, exclude='layer2.*', include='output.bias'))
    with torch.no_grad(): net.output.bias.copy_(torch.arange(10.))
    masks = pruner(.5)(run)
    assert list(masks) == ['layer1.weight', 'output.weight', 'output.bias']
    assert masks['output.bias'].tolist() == [False]*5 + [True]*5
