"Masks of channels: exact, named after scales, warned of where training has no part in them; when they settle."
import warnings
from functools import partial
import pytest, torch
from torch import nn
from torch.nn import functional as F
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.networks import batchnorm_mlp, lenet
from lotterybook.foundations.randomness import rng
from lotterybook.foundations.results import interval
from lotterybook.pruning.allocation import global_, per_layer
from lotterybook.pruning.masks import apply_masks, distance, kept
from lotterybook.tickets.early_bird import (
    EarlyBird, chance_distance, channel_masks, distance_matrix, layer_distances, norm_scales,
    scale_penalty, with_shifts)
from lotterybook.tickets.rewinding import rewind
torch.set_num_threads(1)

def row(text): return {'a.weight': torch.tensor([c == '1' for c in text])}

@pytest.fixture
def six():
    "Two layers of three channels."
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([.9, .1, .4]))
        net[3].weight.copy_(torch.tensor([-.8, .2, .3]))
    return net

# --- masks of channels

def test_by_hand(six):
    "The three largest of six, named after the scales; or two of each layer."
    masks = channel_masks(six, .5)
    assert {k: m.tolist() for k, m in masks.items()} == {
        '1.weight': [True, False, True], '3.weight': [True, False, False]}
    assert list(kept(channel_masks(six, .34, per_layer)).values()) == [2, 2]

@pytest.mark.parametrize('p', [.01, .3, .5, .99])
@pytest.mark.filterwarnings('ignore')
def test_exact_though_all_are_tied(p):
    assert sum(kept(channel_masks(batchnorm_mlp(64), p)).values()) == 300 - round(300*p)

def test_untrained_networks_are_warned_of():
    "All scales are one half: the masks of two networks are the same, and mean nothing."
    with pytest.warns(UserWarning, match='all 300 channels score 0.5'):
        masks, other = (channel_masks(batchnorm_mlp(64, seed=s), .5) for s in (0, 1))
    assert kept(masks) == {'norm1.weight': 150, 'norm2.weight': 0} and distance(masks, other) == 0

def test_a_strict_threshold():
    "The usual code: nothing is kept where all are tied, and one too few otherwise."
    tied, distinct = torch.full((300,), .5), torch.randn(300, generator=rng(0, 'distinct'))
    assert (tied > tied.sort().values[150]).sum() == 0
    assert (distinct > distinct.sort().values[150]).sum() == 149

def test_masks_that_are_refused(six):
    with pytest.raises(ValueError, match='has no batch-norm layer'): channel_masks(lenet(64), .5)
    with pytest.raises(ValueError, match='prune_ratio=1.0 must lie between 0 and 1'): channel_masks(six, 1.)
    with torch.no_grad(): six[3].weight[1] = float('nan')
    with pytest.raises(ValueError, match="1 scores of '3.weight' are NaN"): channel_masks(six, .5)

def disturbed():
    "A network as after some training."
    net = batchnorm_mlp(64, seed=0)
    g = rng(0, 'disturbed')
    with torch.no_grad():
        for p in net.parameters(): p.add_(.3*torch.randn(p.shape, generator=g))
    return net

def without_channels(net, masks):
    "The two-layer network with its pruned channels cut out."
    a, b  = masks['norm1.weight'], masks['norm2.weight']
    small = batchnorm_mlp(64, widths=(int(a.sum()), int(b.sum())))
    cut   = dict(layer1=lambda v: v[a], norm1=lambda v: v[a],
                 layer2=lambda v: v[b][:, a], norm2=lambda v: v[b],
                 output=lambda v: v[:, b] if v.dim() == 2 else v)
    return rewind(small, {k: v if v.dim() == 0 else cut[k.split('.')[0]](v)
                          for k, v in net.state_dict().items()})

def test_a_pruned_channel_is_gone():
    "With its shift masked, too, as if it had never been; with the scale alone it still adds a constant."
    net, x = disturbed(), torch.randn(50, 64, generator=rng(0, 'inputs'))
    masks, theta = channel_masks(net, .5), snapshot(net)
    small = without_channels(net, masks)
    apply_masks(net, with_shifts(masks))
    for mode in (True, False):
        assert (net.train(mode)(x) - small.train(mode)(x)).abs().max() < 1e-4
    apply_masks(rewind(net, theta), masks)
    assert (net.eval()(x) - small.eval()(x)).abs().max() > .1
    with pytest.raises(ValueError, match="'norm1.bias' is not the scale"):
        with_shifts({'norm1.bias': masks['norm1.weight']})

# --- the penalty

def test_the_penalty_is_the_released_code():
    "Added to the loss or to the gradient: the learning rate multiplies it once; a scale at 0 stays."
    x, y = torch.randn(20, 64, generator=rng(0, 'inputs')), torch.arange(20) % 10
    def one_step(in_loss=0., in_gradient=0.):
        net = batchnorm_mlp(64, seed=0)
        optimizer = torch.optim.SGD(net.parameters(), lr=.1)
        (F.cross_entropy(net(x), y) + scale_penalty(net, in_loss)).backward()
        for gamma in norm_scales(net).values(): gamma.grad += in_gradient*gamma.detach().sign()
        optimizer.step()
        return net.norm1.weight.detach()
    plain, full = one_step(), torch.ones(200)
    assert (one_step(.01) - one_step(0., .01)).abs().max() < 1e-7
    assert (plain - one_step(.01) - .1*.01*full).abs().max() < 1e-6
    assert (plain - one_step(0., .1*.01) - .1*.1*.01*full).abs().max() < 1e-6
    gamma = torch.zeros(1, requires_grad=True)
    gamma.abs().sum().backward()
    assert gamma.grad == 0

# --- distances

def test_distances():
    "By hand; of one mask; of masks that do not fit."
    d = distance_matrix([row('1100'), row('1010'), row('0011')])
    assert torch.allclose(d, torch.tensor([[0, .5, 1], [.5, 0, .5], [1, .5, 0]]))
    assert distance_matrix([row('10')]).equal(torch.zeros(1, 1))
    with pytest.raises(ValueError, match='shapes'): distance_matrix([row('10'), row('100')])

def test_distances_within_layers_and_by_chance():
    a = dict(one=torch.tensor([1, 1, 0, 0]).bool(), two=torch.tensor([1, 0]).bool())
    b = dict(one=torch.tensor([1, 0, 0, 0]).bool(), two=torch.tensor([1, 1]).bool())
    assert layer_distances(a, b) == pytest.approx(dict(one=.25, two=.5))
    assert distance(a, b) == pytest.approx((4*.25 + 2*.5)/6)
    assert chance_distance(a, b) == pytest.approx(((2*3 + 1*2)/4 + (1*0 + 2*1)/2)/6)
    assert chance_distance(row('1111'), row('0000')) == 1
    with pytest.raises(ValueError, match='only one has a mask for'): layer_distances(a, row('1111'))

def test_chance_by_shuffling():
    "A second route: the mean over two hundred pairs of shuffled masks."
    g = rng(0, 'shuffled masks')
    def some(share): return {k: torch.rand(n, generator=g) < share for k, n in dict(a=200, b=100).items()}
    def shuffled(masks): return {k: m[torch.randperm(len(m), generator=g)] for k, m in masks.items()}
    a, b = some(.3), some(.6)
    mean, low, high = interval([distance(shuffled(a), shuffled(b)) for _ in range(200)], .999)
    assert low < chance_distance(a, b) < high

# --- when they settle

def test_the_rule_by_hand():
    "A drift is near the last mask and not the one before; at the threshold is near enough; once is for all."
    bird = EarlyBird(window=3, threshold=.2)
    assert not bird.push(row('1111100000')) and not bird.push(row('1111000001'))
    assert not bird.push(row('1110000011')) and bird.distances() == pytest.approx([.4, .2])
    assert bird.push(row('1110000101')) and bird.distances() == pytest.approx([.2, .2])
    assert bird.push(row('0001111010')) and bird.drawn == 4

def test_five_trained_epochs():
    "Four equal masks are not enough, and the untrained one takes no place."
    bird, still = EarlyBird(), row('1100')
    assert [bird.push(still) for _ in range(5)] == [False]*4 + [True] and bird.drawn == 5
    bird = EarlyBird()
    assert [bird.push(still, epoch) for epoch in range(6)] == [False]*5 + [True]

def test_masks_are_copied():
    "The caller may change its own."
    bird, mask = EarlyBird(window=2, threshold=0), row('1100')
    bird.push(mask)
    mask['a.weight'][0] = False
    assert not bird.push(mask) and bird.distances() == [.25]

def test_pushes_that_are_refused():
    bird, still = EarlyBird(window=2), row('1100')
    bird.push(still); bird.push(still)
    with pytest.raises(ValueError, match='epoch 2 after those of epoch 2'): bird.push(still, 2)
    with pytest.raises(ValueError, match='epoch -1'): EarlyBird().push(still, -1)
    with pytest.raises(ValueError, match='between 0 and 1, not 10'): EarlyBird(threshold=10)
    with pytest.raises(ValueError, match='window=1 must'): EarlyBird(window=1)
    with pytest.raises(ValueError, match='holds 0.5'): bird.push({'a.weight': torch.tensor([.5, 1])})
    with pytest.raises(ValueError, match='only one has'): bird.push({'b': still['a.weight']})

def test_a_layer_that_is_empty():
    "Warned of; a minimum or ranking within layers prevents it; else one answer to every input."
    net = batchnorm_mlp(64, seed=0)
    with torch.no_grad():
        net.norm1.weight.copy_(torch.linspace(.4, .6, 200))
        net.norm2.weight.copy_(torch.linspace(.55, .9, 100))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        gone = channel_masks(net, .9)
    assert [str(w.message) for w in caught] == ['pruning leaves no weight in norm1.weight']
    at_least_ten = partial(global_, min_kept=10)
    assert kept(channel_masks(net, .9, at_least_ten)) == {'norm1.weight': 10, 'norm2.weight': 20}
    assert kept(channel_masks(net, .9, per_layer)) == {'norm1.weight': 20, 'norm2.weight': 10}
    apply_masks(net, with_shifts(gone))
    logits = net.eval()(torch.randn(20, 64, generator=rng(0, 'inputs')))
    assert (logits == logits[0]).all()
