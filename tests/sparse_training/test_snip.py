"SNIP by a second route, exact counts, and a network that scoring leaves as it was."
import copy, warnings
from functools import partial
import pytest, torch
from sameness import same
from scored import OddNet, state
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from lotterybook.foundations.networks import lenet
from lotterybook.foundations.randomness import rng
from lotterybook.foundations.training import classification
from lotterybook.foundations.running import Run
from lotterybook.pruning.allocation import erk, global_, per_layer
from lotterybook.pruning.masked_training import keep_pruned
from lotterybook.pruning.masks import full_masks, kept
from lotterybook.pruning.schedules import pruner
from lotterybook.pruning.scores import magnitude
from lotterybook.sparse_training.snip import (
    checked_scores, loss_gradient, prune_to, scored_copy, snip)
torch.set_num_threads(1)

loss = classification()

def examples(n=30, inputs=5, classes=3):
    return torch.randn(n, inputs, generator=rng(0, 'x')), torch.arange(n) % classes

def small_net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)

def thinner(net, share=.5):
    masks = full_masks(net)
    return per_layer(magnitude(net, masks), masks, 1 - share)

# --- what it computes

def test_by_the_mask_itself():
    "|dL/dc| at c = 1, where c multiplies the weights: the paper's definition, through another network."
    net, batch = small_net(torch.float64), examples()
    batch = batch[0].double(), batch[1]
    c = {name: torch.ones_like(p, requires_grad=True) for name, p in net.named_parameters() if p.dim() == 2}
    weights = {name: p.detach()*c.get(name, 1) for name, p in net.named_parameters()}
    F.cross_entropy(torch.func.functional_call(net, weights, batch[0]), batch[1]).backward()
    scores = snip(net, full_masks(net), loss, [batch])
    for name, s in scores.items(): torch.testing.assert_close(s, c[name].grad.abs())

def test_by_finite_differences():
    net, (x, y), h = small_net(torch.float64), examples(), 1e-6
    x, p = x.double(), net[0].weight
    scores = snip(net, full_masks(net), loss, [(x, y)])['0.weight']
    for place in ((0, 0), (3, 4), (6, 2)):
        old, values = p[place].item(), []
        for scale in (1 + h, 1 - h):
            with torch.no_grad(): p[place] = old*scale
            values.append(F.cross_entropy(net(x), y).item())
        with torch.no_grad(): p[place] = old
        assert scores[place].item() == pytest.approx(abs(values[0] - values[1])/(2*h), rel=1e-5)

def test_the_sum_comes_before_the_absolute_value():
    "Two batches whose gradients cancel: score 0, though each alone has one. Lee et al. (2020)."
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad(): net.weight.fill_(2)
    def linear(net, batch): return (net(batch[0])*batch[1]).mean()
    x, plus, minus = torch.ones(1, 1), torch.tensor([[3.]]), torch.tensor([[-3.]])
    one = snip(net, full_masks(net), linear, [(x, plus)])['weight']
    two = snip(net, full_masks(net), linear, [(x, minus)])['weight']
    with pytest.warns(UserWarning, match="'weight' are zero"):
        both = snip(net, full_masks(net), linear, [(x, plus), (x, minus)])['weight']
    assert one.item() == two.item() == 6 and both.item() == 0

def test_batches_sum_up():
    "Halves of a batch give twice its score: the same order of the weights."
    net, (x, y) = small_net(torch.float64), examples()
    x = x.double()
    whole = snip(net, full_masks(net), loss, [(x, y)])
    halves = snip(net, full_masks(net), loss, [(x[:15], y[:15]), (x[15:], y[15:])])
    for name in whole: torch.testing.assert_close(halves[name], 2*whole[name])

def test_normalisation_does_not_matter():
    net, batch = small_net(), examples()
    scores = snip(net, masks := full_masks(net), loss, [batch])
    total  = sum(s.sum() for s in scores.values())
    shares = {name: s/total for name, s in scores.items()}
    for name, mask in global_(scores, masks, .7).items():
        assert torch.equal(mask, global_(shares, masks, .7)[name])

def test_pruned_weights_are_zero_and_have_gradients():
    "The gradient is that of f(x; m θ), and pruned weights have one, too."
    net, batch = small_net(), examples()
    masks, other = thinner(net), copy.deepcopy(net)
    with torch.no_grad():
        for name, mask in masks.items(): other.get_parameter(name).mul_(mask)
    F.cross_entropy(other(batch[0]), batch[1]).backward()
    for name, g in loss_gradient(net, masks, loss, [batch]).items():
        torch.testing.assert_close(g, other.get_parameter(name).grad)
        assert g[~masks[name]].any()

def test_a_vector_of_losses_is_summed():
    net, (x, y) = small_net(), examples()
    each = classification(partial(F.cross_entropy, reduction='none'))
    a, b = snip(net, full_masks(net), each, [(x, y)]), snip(net, full_masks(net), loss, [(x, y)])
    for name in a: torch.testing.assert_close(a[name], 30*b[name])

# --- what it leaves alone

@pytest.mark.parametrize('training', [True, False])
def test_the_network_is_left_alone(training):
    net = OddNet().train(training)
    net.norm.eval()  # a layer with a mode of its own
    net.first.bias.grad = torch.ones(5)
    before, masks = state(net), full_masks(net)
    with torch.no_grad(): snip(net, masks, loss, [examples()])
    assert same(before, state(net)) and sorted(masks) == ['out.weight']  # shared, frozen: not by default

def test_the_same_twice():
    "Dropout takes its noise from the global generator, which stays: the same call gives the same."
    net = OddNet()
    a, b = (snip(net, full_masks(net), loss, [examples()]*2) for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    torch.manual_seed(5)
    assert not torch.equal(snip(net, full_masks(net), loss, [examples()]*2)['out.weight'], a['out.weight'])

def test_frozen_and_shared_weights_with_a_mask():
    "A mask that is given is scored: by both uses of a shared weight, and where it is frozen."
    net = OddNet().eval()
    masks = full_masks(net, include=['first.weight', 'frozen.weight'])
    scores = snip(net, masks, loss, [examples()])
    free = copy.deepcopy(net).requires_grad_(True)
    F.cross_entropy(free(examples()[0]), examples()[1]).backward()
    for name, s in scores.items():
        p = free.get_parameter(name)
        torch.testing.assert_close(s, (p*p.grad).detach().abs())

def test_inside_keep_pruned():
    "Its hooks stay with the network: the copy's gradient is dense."
    net = small_net()
    masks = thinner(net)
    with keep_pruned(net, masks): gradient = loss_gradient(net, masks, loss, [examples()])
    assert all(g[~masks[name]].any() for name, g in gradient.items())

def test_a_copy():
    net = small_net()
    net[0].bias.requires_grad_(False)
    masks = thinner(net)
    copied = scored_copy(net, masks)
    assert [n for n, p in copied.named_parameters() if p.requires_grad] == list(masks)
    for name, mask in masks.items():
        assert torch.equal(copied.get_parameter(name), net.get_parameter(name)*mask)
        assert net.get_parameter(name)[~mask].all()
    assert not net[0].bias.requires_grad and net[2].bias.requires_grad

def test_recurrent():
    lstm, x = nn.LSTM(3, 4), torch.rand(5, 2, 3)
    def square(net, x): return net(x)[0].square().mean()
    scores = snip(lstm, full_masks(lstm), square, [x])
    assert sorted(scores) == ['weight_hh_l0', 'weight_ih_l0']
    square(lstm, x).backward()
    for name, s in scores.items():
        p = lstm.get_parameter(name)
        torch.testing.assert_close(s, (p*p.grad).detach().abs())

# --- bad scores

def test_not_finite():
    x, y = examples()
    x[3, 1] = float('nan')
    with pytest.raises(ValueError, match="snip: 35 scores of '0.weight' are not finite"):
        snip(net := small_net(), full_masks(net), loss, [(x, y)])

def test_a_layer_of_zeros_and_one_out_of_reach():
    "Zero weights have no sensitivity, whatever their gradient; a layer without a part in the loss, neither."
    net = small_net()
    nn.init.zeros_(net[2].weight)
    with pytest.warns(UserWarning) as told: scores = snip(net, full_masks(net), loss, [examples()])
    assert [str(o.message).split("'")[1] for o in told] == ['0.weight', '2.weight'] and not scores['2.weight'].any()
    assert loss_gradient(net, full_masks(net), loss, [examples()])['2.weight'].any()
    net = small_net()
    net.add_module('spare', nn.Linear(3, 3))
    net.forward = lambda x: net[2](net[1](net[0](x)))
    def only(net, batch): return F.cross_entropy(net[2](net[1](net[0](batch[0]))), batch[1])
    with pytest.warns(UserWarning, match="'spare.weight' are zero"): snip(net, full_masks(net), only, [examples()])

def test_scores_of_pruned_weights_are_not_checked():
    masks = {'a': torch.tensor([True, False]), 'b': torch.tensor([False, False])}
    scores = {'a': torch.tensor([1., float('nan')]), 'b': torch.zeros(2)}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert checked_scores(scores, masks, 'mine') is scores
    with pytest.raises(ValueError, match="mine: 1 scores of 'a'"):
        checked_scores({'a': torch.tensor([float('-inf'), 1]), 'b': torch.ones(2)}, masks, 'mine')

def test_no_batches():
    with pytest.raises(ValueError, match='no batches'): snip(net := small_net(), full_masks(net), loss, [])

# --- cuts

@given(density=st.floats(1e-3, 1), rounds=st.integers(1, 7), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_exact_counts(density, rounds, seed):
    net = lenet(8, seed=seed)
    total = sum(m.numel() for m in full_masks(net).values())
    for allocation in (global_, erk):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            masks = prune_to(net, density, magnitude, allocation=allocation, rounds=rounds)
        assert sum(kept(masks).values()) == round(density*total)

def test_rounds_score_anew():
    "Masks shrink by the same factor each round, and each score sees those of the round before."
    net, seen = lenet(8, seed=0), []
    def watched(net, masks, objective, batches):
        seen.append(sum(kept(masks).values()))
        return snip(net, masks, objective, batches)
    x, y = examples(inputs=8, classes=10)
    masks = prune_to(net, .01, watched, loss, [(x, y)], rounds=4)
    total = seen[0]
    assert seen == [round(total*.01**(r/4)) for r in range(4)]
    once = prune_to(net, .01, snip, loss, [(x, y)])
    assert any((masks[name] != once[name]).any() for name in masks)

def test_from_masks():
    net = lenet(8, seed=0)
    half = prune_to(net, .5, magnitude)
    masks = prune_to(net, .1, magnitude, masks=half, rounds=3)
    assert all(not (masks[name] & ~half[name]).any() for name in masks)
    assert sum(kept(masks).values()) == round(.1*sum(m.numel() for m in masks.values()))
    left = sum(kept(half).values())/sum(m.numel() for m in half.values())
    assert all(torch.equal(prune_to(net, left, magnitude, masks=half)[name], half[name]) for name in half)
    with pytest.raises(ValueError, match='are left'): prune_to(net, .6, magnitude, masks=half)

def test_is_a_round_of_pruner():
    net, batch = lenet(8, seed=0), examples(inputs=8, classes=10)
    run = Run(net, masks=full_masks(net))
    other = pruner(.95, score=snip, allocation=global_, objective=loss, batches=[batch])(run)
    for name, mask in prune_to(net, .05, snip, loss, [batch]).items(): assert torch.equal(mask, other[name])

@pytest.mark.parametrize('density', [0, -1, 1.5, float('nan'), None, '0.1', 1e-9])
def test_no_density(density):
    with pytest.raises(ValueError, match='density'): prune_to(small_net(), density, magnitude)

def test_all_of_it():
    assert all(mask.all() for mask in prune_to(small_net(), 1, magnitude).values())

def test_batches_that_end():
    with pytest.raises(ValueError, match='give a list'):
        prune_to(small_net(), .5, snip, loss, iter([examples()]), rounds=2)

def test_equal_scores():
    "Exact even if all scores are the same, and it is said."
    def equal(net, masks, objective=None, batches=()): return {k: torch.ones(m.shape) for k, m in masks.items()}
    with (pytest.warns(UserWarning, match='no weight in output.weight'), pytest.warns(UserWarning, match='all scores are 1')):
        masks = prune_to(lenet(8), .1, equal)
    assert sum(kept(masks).values()) == round(.1*sum(m.numel() for m in masks.values()))
