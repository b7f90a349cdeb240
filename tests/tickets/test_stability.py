"Copies differ in their data order alone, the line between them is straight, statistics are measured anew, and nothing is left changed."
import copy
import pytest, torch
from hypothesis import given, settings, strategies as st
from sameness import same
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.data import load
from lotterybook.foundations.networks import batchnorm_mlp, lenet
from lotterybook.foundations.running import Run, advance
from lotterybook.foundations.training import (
    classification, evaluate, example_batches, holding, train_run)
from lotterybook.pruning.masked_training import keep_pruned, revived
from lotterybook.pruning.masks import full_masks, kept
from lotterybook.tickets.stability import (
    copies, error_barrier, interpolate, line_errors, reestimate_norm)
torch.set_num_threads(1)
digits = load('digits')
pieces = [digits.x_train[:300], digits.x_train[300:600]]

def a_net(): return batchnorm_mlp(64, widths=(30, 20), seed=0)

def some_masks(net):
    g = torch.Generator().manual_seed(0)
    return {k: torch.rand(m.shape, generator=g) < .3 for k, m in full_masks(net).items()}

def a_run(k=4, masks=None, net=None, **options):
    "A run at step k, with momentum and weight decay, which would move pruned weights."
    net = net or a_net()
    options = dict(lr=.1, momentum=.9, weight_decay=1e-2) | options
    return train(Run(net, torch.optim.SGD(net.parameters(), **options), masks), end=k)

def train(run, end=12):
    batches = example_batches(digits.x_train, digits.y_train, 50, run.seed)
    run.net.train()
    return advance(run, classification(), batches, end)

def to_the_end(run): train(run)
def error(net): return 1 - evaluate(net, digits.x_test, digits.y_test)[1]

@pytest.fixture(scope='module')
def ends(): return copies(a_run(), to_the_end, (1, 2))

def everything(run): return run.state_dict() | dict(seed=run.seed, modes=modes(run.net))
def modes(net): return {name: layer.training for name, layer in net.named_modules()}
def momenta(net): return [o.momentum for o in net.modules() if isinstance(o, nn.BatchNorm1d)]

# --- copies

def test_other_orders_differ_and_the_same_order_gives_the_same_bits(ends):
    again = copies(a_run(), to_the_end, (1, 2, 3))
    assert same(again[:2], ends)
    for i, j in ((0, 1), (0, 2), (1, 2)): assert not again[i]['layer1.weight'].equal(again[j]['layer1.weight'])

def test_a_copy_is_the_run_trained_on_in_another_order(ends):
    "The second route: another run takes the k steps, then its seed is changed by hand."
    run = a_run()
    run.seed = 2
    assert same(snapshot(train(run).net), ends[1])

def test_the_order_of_the_seeds_has_no_effect(ends):
    assert same(copies(a_run(), to_the_end, (2, 1)), ends[::-1])

def test_the_run_is_as_it_was():
    "Weights, buffers, momentum, masks, rows, extra, seed and the mode of each layer."
    run = a_run(masks=some_masks(a_net()))
    run.extra['note'] = [1]
    run.rows.append(dict(step=4))
    run.net.norm1.eval()
    optimizer, before = run.optimizer, copy.deepcopy(everything(run))
    copies(run, to_the_end, (1, 2))
    assert same(everything(run), before) and run.optimizer is optimizer
    assert all(p.grad is None for p in run.net.parameters())

def test_the_run_is_as_it_was_after_an_exception():
    run = a_run()
    before = copy.deepcopy(everything(run))
    def fails(run):
        train(run, 8)
        run.optimizer = None
        raise RuntimeError('power cut')
    with pytest.raises(RuntimeError, match='power cut'): copies(run, fails, (1, 2))
    assert same(everything(run), before)

def test_momentum_is_copied(ends):
    run = a_run()
    run.forget()
    assert not same(copies(run, to_the_end, (1, 2)), ends)

def test_a_ready_made_training_will_do():
    "`train_run`, and a loop with an optimizer and a shuffling loader of its own."
    def ready(run): return train_run(run, digits, 8, 50, eval_every=8)
    a, b = copies(a_run(), ready, (1, 2))
    assert not same(a, b)
    loader = DataLoader(TensorDataset(digits.x_train, digits.y_train), 100, shuffle=True)
    def stranger(run):
        optimizer = run.optimizer = torch.optim.Adam(run.net.parameters())
        with keep_pruned(run.net, run.masks):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(run.net(x), y).backward()
                optimizer.step()
    def start(): return a_run(masks=full_masks(a_net()))
    a, b = copies(start(), stranger, (1, 2))
    assert not same(a, b) and same(copies(start(), stranger, (1, 2)), [a, b])

def test_copies_in_one_order_are_refused():
    "Their barrier would be 0 whatever the network."
    with pytest.raises(ValueError, match='seeds 1 and 1 end at the same weights'):
        copies(a_run(), to_the_end, (1, 1))
    def deaf(run):
        run.seed = 0
        train(run)
    run = a_run()
    with pytest.raises(ValueError, match='seeds 1 and 2 .* take the data order in train from run.seed'):
        copies(run, deaf, (1, 2))
    assert run.step == 4 and run.seed == 0

def test_a_loop_that_loses_the_mask_is_refused():
    run = a_run(masks=some_masks(a_net()))
    def forgetful(run):
        run.net(digits.x_train[:50]).sum().backward()
        torch.optim.SGD(run.net.parameters(), .1).step()
    with pytest.raises(ValueError, match='pruned weights are not zero'): copies(run, forgetful, (1, 2))

# --- the line

def test_a_line_by_hand():
    a = dict(w=torch.tensor([0., 2.]), n=torch.tensor(3))
    b = dict(w=torch.tensor([1., -2.]), n=torch.tensor(7))
    middle = interpolate(a, b, .25)
    assert middle['w'].tolist() == [.25, 1.] and middle['n'].item() == 3
    assert middle['n'].dtype == torch.int64

def test_the_ends_are_exact(ends):
    a, b = ends
    assert same(interpolate(a, b, 0), a)
    counts = {k: a[k] for k in a if not a[k].is_floating_point()}
    assert counts and same(interpolate(a, b, 1), b | counts)

@given(st.floats(0, 1), st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=2))
@settings(deadline=None, max_examples=50)
def test_every_point_lies_between_the_ends(alpha, pair):
    a, b = (dict(w=torch.tensor([o])) for o in pair)
    w = interpolate(a, b, alpha)['w'].item()
    assert min(pair) <= w <= max(pair)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_every_precision(dtype):
    a, b = dict(w=torch.zeros(3, dtype=dtype)), dict(w=torch.ones(3, dtype=dtype))
    middle = interpolate(a, b, .5)['w']
    assert middle.dtype == dtype and torch.equal(middle, torch.full((3,), .5, dtype=dtype))

def test_integers_and_booleans_are_those_of_a():
    a = dict(count=torch.tensor(3), on=torch.tensor([True, False]))
    b = dict(count=torch.tensor(8), on=torch.tensor([False, False]))
    assert same(interpolate(a, b, .9), a)

def test_new_tensors(ends):
    a, b = ends
    for alpha in (0, .5, 1):
        for k, v in interpolate(a, b, alpha).items(): assert v.data_ptr() not in (a[k].data_ptr(), b[k].data_ptr()), k

def test_other_architectures_are_refused(ends):
    wide, deep = snapshot(batchnorm_mlp(64, widths=(30, 25))), snapshot(batchnorm_mlp(64, widths=(30, 20, 20)))
    with pytest.raises(ValueError, match=r'different architectures.*layer2.weight has shapes \(20, 30\) and \(25, 30\)'):
        interpolate(ends[0], wide, .5)
    with pytest.raises(ValueError, match='only one has layer3.weight'): interpolate(ends[0], deep, .5)
    with pytest.raises(ValueError, match='only one has layer3.weight'): interpolate(deep, ends[0], .5)
    with pytest.raises(ValueError, match='the network has no norm1'):  # they fit each other, not it
        line_errors(lenet(64), *ends, error, None)
    few = [{k: v for k, v in end.items() if 'running' not in k} for end in ends]
    with pytest.raises(ValueError, match='norm1.running_mean is missing'): line_errors(a_net(), *few, error, None)

@pytest.mark.parametrize('alpha', [-.1, 1.1, float('nan')])
def test_places_beyond_the_ends_are_refused(ends, alpha):
    with pytest.raises(ValueError, match='alpha'): interpolate(*ends, alpha)

def test_pruned_weights_are_zero_along_the_line():
    "Raw weights, not masked ones: momentum and weight decay would have moved them."
    masks = some_masks(a_net())
    a, b = copies(a_run(masks=masks), to_the_end, (1, 2))
    seen = []
    def count(net):
        seen.append({k: net.get_parameter(k).count_nonzero().item() for k in masks})
        assert not any(revived(net, masks).values())
        return 0.
    line_errors(a_net(), a, b, count, pieces, points=5)
    assert len(seen) == 5 and all(o == kept(masks) for o in seen)  # and none of the others is

# --- the barrier

@pytest.mark.parametrize('errors, barrier', [
    ([.1, .5, .3], .3), ([.1, .2, .3], .1), ([.2, .1, .2], 0), ([3, 9, 4, 5], 5), ([.1, .1, .1], 0)])
def test_a_barrier_by_hand(errors, barrier):
    assert error_barrier(errors) == pytest.approx(barrier)
    assert error_barrier(errors[::-1]) == error_barrier(errors)

@given(st.lists(st.floats(0, 1), min_size=3, max_size=9))
def test_a_barrier_is_at_least_half_the_difference_of_the_ends(errors):
    assert error_barrier(errors) >= abs(errors[0] - errors[-1])/2 - 1e-12

def test_no_barrier_is_made_of_too_little():
    with pytest.raises(ValueError, match='three errors'): error_barrier([.1, .2])
    with pytest.raises(ValueError, match='not finite'): error_barrier([.1, float('nan'), .2])
    with pytest.raises(ValueError, match='points'): line_errors(a_net(), {}, {}, error, None, points=2)

def test_equal_copies_have_no_barrier(ends):
    a, _ = ends
    for batches in (None, pieces):
        errors = line_errors(a_net(), a, a, error, batches, points=7)
        assert len(set(errors)) == 1 and error_barrier(errors) == 0

def permuted(net, g=torch.Generator().manual_seed(0)):
    "The same function: the units of layer 1 in another order."
    other, order = copy.deepcopy(net), torch.randperm(30, generator=g)
    for name in ('layer1.weight', 'norm1.weight', 'norm1.bias', 'norm1.running_mean', 'norm1.running_var'):
        tensor = other.state_dict()[name]
        tensor.copy_(tensor[order])
    other.layer2.weight.data = other.layer2.weight.data[:, order]
    return other

def test_a_permuted_network_is_as_good_and_has_a_barrier():
    net = train(a_run(), 60).net
    other = permuted(net)
    errors = line_errors(net, snapshot(net), snapshot(other), error, [digits.x_train], points=11)
    assert errors[0] == errors[-1] < .1
    assert error_barrier(errors) > .05

def test_errors_are_those_of_networks_made_by_hand(ends):
    "The second route: each point a network of its own, loaded and evaluated."
    a, b = ends
    for batches in (None, pieces):
        errors = line_errors(a_net(), a, b, error, batches, points=4)
        for alpha, found in zip((0, 1/3, 2/3, 1), errors):
            net = a_net()
            net.load_state_dict(interpolate(a, b, alpha))
            if batches: reestimate_norm(net, batches)
            assert error(net) == found
    assert line_errors(a_net(), a, b, error, None, 3)[::2] == [error_of(a), error_of(b)]

def error_of(theta):
    with holding(a_net(), theta) as net: return error(net)

def test_thirty_points_by_default(ends):
    assert len(line_errors(a_net(), *ends, lambda net: 0., None)) == 30

def test_networks_are_measured_in_evaluation_mode(ends):
    net = a_net().train()
    def measure(net): return float(any(modes(net).values()) or torch.is_grad_enabled())
    assert line_errors(net, *ends, measure, pieces, 3) == [0, 0, 0] and net.training

@pytest.mark.parametrize('batches', [None, pieces])
@pytest.mark.parametrize('fail', [False, True])
def test_the_network_is_as_it_was(ends, batches, fail):
    net = train(a_run(), 2).net
    net.norm1.eval()
    net.norm2.momentum = .3
    before = copy.deepcopy((snapshot(net), modes(net), momenta(net)))
    calls = []
    def measure(net):
        calls.append(1)
        if fail and len(calls) == 2: raise RuntimeError('out of memory')
        return error(net)
    if fail:
        with pytest.raises(RuntimeError, match='out of memory'): line_errors(net, *ends, measure, batches, 3)
    else: line_errors(net, *ends, measure, batches, 3)
    assert same((snapshot(net), modes(net), momenta(net)), before)
    assert all(p.requires_grad for p in net.parameters())

def test_batches_that_are_used_up_are_refused(ends):
    "At the second point there would be none, and statistics of nothing."
    with pytest.raises(ValueError, match='a list or a DataLoader'):
        line_errors(a_net(), *ends, error, iter(pieces), 3)

# --- norm statistics

@torch.no_grad()
def by_hand(net, batches):
    "Mean over batches of the mean and the variance of each norm layer's inputs."
    net, sums, handles = copy.deepcopy(net).train(), {}, []
    def watch(name):
        def look(layer, given):
            x = given[0]
            sums.setdefault(name, []).append((x.mean(0), x.var(0)))
        return look
    for name, layer in net.named_modules():
        if isinstance(layer, nn.BatchNorm1d): handles.append(layer.register_forward_pre_hook(watch(name)))
    for x in batches: net(x)
    return {name: [torch.stack(o).mean(0) for o in zip(*found)] for name, found in sums.items()}

def test_statistics_are_averages_over_batches():
    net = a_run().net
    want = by_hand(net, pieces)
    weights = {k: p.clone() for k, p in net.named_parameters()}
    assert reestimate_norm(net, pieces) is net
    for name, (mean, var) in want.items():
        layer = net.get_submodule(name)
        torch.testing.assert_close(layer.running_mean, mean)
        torch.testing.assert_close(layer.running_var, var)
        assert layer.num_batches_tracked == 2
    assert same(weights, {k: p.detach() for k, p in net.named_parameters()})

def test_old_statistics_leave_no_trace():
    net, other = a_run().net, a_run().net
    other.norm1.running_mean += 5
    assert same(snapshot(reestimate_norm(net, pieces)), snapshot(reestimate_norm(other, pieces)))

def test_pairs_and_loaders_will_do():
    pairs  = [(x, torch.zeros(len(x))) for x in pieces]
    loader = DataLoader(TensorDataset(digits.x_train[:600], digits.y_train[:600]), 300)
    a, b, c = (snapshot(reestimate_norm(a_run().net, o)) for o in (pieces, pairs, loader))
    assert same(a, b) and same(a, c)

def test_re_estimation_keeps_modes_momenta_and_random_numbers():
    net = nn.Sequential(a_net(), nn.Dropout(.5)).train()
    net[1].eval()
    net[0].norm1.momentum = .3
    before = modes(net), momenta(net), torch.get_rng_state()
    reestimate_norm(net, pieces)
    net[1].train()
    reestimate_norm(net, pieces)                # draws from dropout
    net[1].eval()
    assert (modes(net), momenta(net)) == before[:2] and torch.get_rng_state().equal(before[2])
    assert all(p.grad is None for p in net.parameters())

@pytest.mark.parametrize('batches', [[], [pieces[0], torch.ones(2, 3)]])
def test_nothing_is_changed_if_re_estimation_fails(batches):
    net = a_run().net.eval()
    before = copy.deepcopy((snapshot(net), modes(net), momenta(net)))
    with pytest.raises((ValueError, RuntimeError), match='no batches|shape'): reestimate_norm(net, batches)
    assert same((snapshot(net), modes(net), momenta(net)), before)

def test_a_network_without_norm_layers_needs_no_batches(ends):
    net = lenet(64, seed=0)
    before = snapshot(net)
    assert same(snapshot(reestimate_norm(net, [])), before)
    norm = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5, track_running_stats=False))
    reestimate_norm(norm, pieces)
