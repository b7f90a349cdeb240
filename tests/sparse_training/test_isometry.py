"Spectra are those of the matrices; kept weights alone move towards isometry; kernels preserve norms."
import copy
import warnings
from functools import reduce
import pytest
from sameness import same
from scored import state
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import structural_rank
from torch import nn
from torch.nn import functional as F
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.data import load
from lotterybook.foundations.networks import batchnorm_mlp
from lotterybook.foundations.randomness import rng
from lotterybook.pruning.allocation import per_layer
from lotterybook.pruning.masks import apply_masks, full_masks
from lotterybook.pruning.scores import random_scores
from lotterybook.sparse_training.isometry import (
    delta_orthogonal_, enforce_isometry, isometry_gap, jacobian_singular_values, orthogonal_)
from lotterybook.sparse_training.snip import prune_to, snip

def mlp(*sizes, between=None, seed=0, bias=True):
    "Linear layers of these sizes, perhaps with something between, orthogonal."
    layers = []
    for a, b in zip(sizes, sizes[1:]): layers += [nn.Linear(a, b, bias), between and between()]
    net = nn.Sequential(*[layer for layer in layers[:-1] if layer])
    return orthogonal_(net, generator=rng(seed, 'test'))

def pruned(net, density, seed=0):
    "Random masks, and the network with them."
    masks = full_masks(net)
    masks = per_layer(random_scores(net, masks, rng(seed, 'mask')), masks, 1 - density)
    apply_masks(net, masks)
    return masks

def spectrum(matrix): return torch.linalg.svdvals(matrix.detach().double())

def close(a, b, eps=1e-5): return torch.allclose(torch.as_tensor(a).double(),
                                                 torch.as_tensor(b).double(), atol=eps, rtol=eps)

# the spectrum

def test_spectrum_of_a_linear_network_is_that_of_the_product():
    net = mlp(6, 5, 7, 4)
    masks = pruned(net, .5)
    product = reduce(lambda left, w: w @ left, [net.get_parameter(name) for name in masks])
    found = jacobian_singular_values(net, torch.randn(3, 6))
    assert found.shape == (3, 4) and found.dtype is torch.float64
    for one in found: assert close(one, spectrum(product))

def test_spectrum_of_tanh_by_hand():
    "One layer: diag(1 - tanh²) W, for each example its own."
    net, x = nn.Sequential(nn.Linear(3, 5), nn.Tanh()), torch.randn(4, 3)
    for one, row in zip(jacobian_singular_values(net, x), x):
        slope = 1 - net(row).detach()**2
        assert close(one, spectrum(slope[:, None]*net[0].weight))

def test_spectrum_second_route():
    "As the Jacobian that PyTorch computes; images, whole spectrum, largest first."
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3*4, 5))
    x = torch.randn(2, 1, 4, 4)
    found = jacobian_singular_values(net, x)
    assert found.shape == (2, 5) and (found.diff(dim=1) <= 0).all()
    for one, image in zip(found, x):
        jacobian = torch.autograd.functional.jacobian(lambda v: net(v[None])[0], image)
        assert close(one, spectrum(jacobian.flatten(1)))

def test_more_outputs_than_inputs():
    assert jacobian_singular_values(nn.Linear(2, 9), torch.randn(5, 2)).shape == (5, 2)

def test_batch_norm_counts_in_evaluation_mode():
    "An example's spectrum does not depend on its batch, though the network is in training mode."
    net = batchnorm_mlp(6, 4, (8, 5), seed=0).train()
    for _ in range(3): net(torch.randn(20, 6)*2 + 1)
    x = torch.randn(7, 6)
    assert close(jacobian_singular_values(net, x)[:2], jacobian_singular_values(net, x[:2]))

@pytest.mark.parametrize('measure', [
    lambda net, masks: jacobian_singular_values(net, torch.ones(2, 6, requires_grad=True)),
    isometry_gap])
def test_measuring_changes_nothing(measure):
    net = nn.Sequential(*batchnorm_mlp(6, 4, (8, 5), seed=0), nn.Dropout(.5)).train()
    net[1].requires_grad_(False)
    net(torch.randn(9, 6)).sum().backward()
    net[2].eval()
    masks = full_masks(net)
    before = state(net)
    with torch.no_grad(): measure(net, masks)
    assert same(before, state(net))

def test_dropout_does_not_count():
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(.5)).train()
    assert close(jacobian_singular_values(net, torch.ones(1, 4))[0], spectrum(net[0].weight))

def test_no_weight_left():
    "A layer without weights: all zero, no NaN."
    net = mlp(4, 4, 4)
    apply_masks(net, {name: m if name != '0.weight' else ~m for name, m in full_masks(net).items()})
    assert not jacobian_singular_values(net, torch.ones(1, 4)).any()

# orthogonal layers

@pytest.mark.parametrize('sizes', [(5, 5), (9, 4), (4, 9)])
@pytest.mark.parametrize('gain', [1., 2**.5])
def test_orthogonal_linear(sizes, gain):
    layer = nn.Linear(*sizes)
    orthogonal_(layer, gain, rng(0, 'test'))
    assert close(spectrum(layer.weight), torch.full((min(sizes),), gain))
    assert not layer.bias.any()

@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize('kernel', [1, 2, 3, (3, 5), (1, 4)])
@pytest.mark.parametrize('circular', [False, True])
def test_delta_orthogonal_preserves_the_norm(kernel, circular):
    conv = nn.Conv2d(3, 7, kernel, padding='same', bias=False,
                     padding_mode='circular' if circular else 'zeros')
    orthogonal_(conv, 1.5, rng(0, 'test'))
    x = torch.randn(4, 3, 6, 5)
    assert close(conv(x).flatten(1).norm(dim=1), 1.5*x.flatten(1).norm(dim=1), 1e-4)
    assert int(conv.weight.count_nonzero()) == 3*7            # the middle alone

def test_delta_orthogonal_with_fewer_outputs_only_shrinks():
    conv = orthogonal_(nn.Conv2d(7, 3, 3, padding=1, bias=False), 1., rng(0, 'test'))
    x = torch.randn(4, 7, 6, 5)
    assert (conv(x).flatten(1).norm(dim=1) < x.flatten(1).norm(dim=1)).all()
    assert close(isometry_gap(conv, full_masks(conv))['weight'], 0)

def test_one_kernel():
    "In place, whatever was there; each group has a matrix of its own."
    kernel = torch.randn(6, 2, 3, 3)
    assert delta_orthogonal_(kernel, 2., groups=3, generator=rng(0, 'test')) is kernel
    for group in kernel.chunk(3):
        assert close(group[:, :, 1, 1] @ group[:, :, 1, 1].T, 4*torch.eye(2))
    assert int(kernel.count_nonzero()) == 12

@pytest.mark.parametrize('layer', [
    nn.Conv1d(4, 6, 3, padding=1, groups=2), nn.Conv3d(2, 3, 3, padding=1),
    nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ConvTranspose1d(4, 4, 3, padding=1)])
def test_kinds_of_convolution(layer):
    "Groups have an orthogonal matrix each."
    orthogonal_(layer, generator=rng(0, 'test'))
    x = torch.randn(2, layer.in_channels, *[5]*(layer.weight.dim() - 2))
    assert close(layer(x).flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), 1e-4)

def test_orthogonal_is_a_function_of_the_generator():
    "Neither the precision nor the global generator matters; without one the global one is taken."
    one = mlp(5, 6, 4, seed=3)
    generator = torch.get_rng_state()
    two = orthogonal_(copy.deepcopy(one).to(torch.bfloat16), generator=rng(3, 'test'))
    assert torch.equal(generator, torch.get_rng_state())
    assert two[0].weight.dtype is torch.bfloat16
    assert torch.equal(one[0].weight.bfloat16(), two[0].weight)
    torch.manual_seed(0); a = orthogonal_(nn.Linear(5, 5)).weight.clone()
    torch.manual_seed(0); assert torch.equal(a, orthogonal_(nn.Linear(5, 5)).weight)

def test_orthogonal_leaves_others_alone():
    "Norms, embeddings and frozen layers stay."
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    net[1].requires_grad_(False)
    before = snapshot(net)
    orthogonal_(net)
    changed = [k for k, v in snapshot(net).items() if not torch.equal(v, before[k])]
    assert changed == ['3.weight', '3.bias']

@pytest.mark.parametrize('net', [nn.Sequential(nn.Embedding(3, 2), nn.ReLU()),
                                 nn.Linear(2, 2).requires_grad_(False)])
def test_orthogonal_needs_a_layer(net):
    with pytest.raises(ValueError, match='no linear or convolutional layer'): orthogonal_(net)

def test_digits_pass_an_orthogonal_network_with_their_length():
    net = mlp(64, 100, 100, 100)
    x = load('digits').x_test.flatten(1)
    assert close(net(x).norm(dim=1), x.norm(dim=1), 1e-4)

# the gap

def test_gap_by_hand():
    "The rotation of the page: without one weight, squared singular values with sum 1.64, product .64²."
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad(): net.weight.copy_(torch.tensor([[.6, -.8], [.8, .6]]))
    masks = full_masks(net)
    assert close(isometry_gap(net, masks)['weight'], 0)
    masks['weight'][1, 1] = False
    gap = isometry_gap(net, masks)['weight']                   # of the masked weight, not of all
    squares = (1.64**2 - 2*.64**2) - 2*1.64 + 2                # s⁴ + t⁴ - 2(s² + t²) + 2
    assert close(gap, squares) and net.weight[1, 1] == .6

@pytest.mark.parametrize('shape', [(4, 9), (9, 4), (5, 5), (3, 2, 3, 3), (9, 2, 2, 2)])
@pytest.mark.parametrize('gain', [1., 2**.5])
def test_gap_is_that_of_the_smaller_side(shape, gain):
    "Σ (s² - gain²)² over the singular values, whichever side is longer (trap D.16)."
    net = nn.Module()
    net.weight = nn.Parameter(torch.randn(shape))
    masks = dict(weight=torch.rand(shape) < .6)
    s = spectrum((net.weight*masks['weight']).flatten(1))
    assert close(isometry_gap(net, masks, gain)['weight'], (s**2 - gain**2).square().sum(), 1e-4)

def test_gap_of_the_other_side_differs_by_a_constant():
    "So its gradient is the same, as long as the norm is squared."
    w = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    one, other = [(g - torch.eye(len(g))).square().sum() for g in (w @ w.T, w.T @ w)]
    assert close((other - one).detach(), 5)
    assert close(*[torch.autograd.grad(o, w)[0] for o in (one, other)], 1e-4)

# enforcing

@pytest.mark.parametrize('gain', [1., 2**.5])
def test_only_kept_weights_move(gain):
    net = mlp(20, 30, 30, 10)
    masks = pruned(net, .5)
    before = snapshot(net)
    gaps = enforce_isometry(net, masks, 600, gain=gain)
    assert gaps == isometry_gap(net, masks, gain)
    for name, mask in masks.items():
        weight = net.get_parameter(name)
        assert not weight[~mask].any() and (weight != before[name])[mask].any()
        assert gaps[name] < .01                                # at this density all can be mended
        assert close(spectrum(weight), torch.full((min(weight.shape),), gain), .05)
    for name in before:
        if name not in masks: assert torch.equal(before[name], snapshot(net)[name])

def test_pruned_weights_that_are_not_zero_become_zero():
    "As if they had been: what is there does not count."
    net = mlp(8, 8, 8)
    masks = pruned(net, .5)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for name, mask in masks.items(): other.get_parameter(name)[~mask] = 7.
    enforce_isometry(net, masks, 20); enforce_isometry(other, masks, 20)
    for p, q in zip(net.parameters(), other.parameters()): assert torch.equal(p, q)

def test_by_hand_after_enforcing():
    "Of three kept weights, the one that stands in the way goes to zero."
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad(): net.weight.copy_(torch.tensor([[.6, -.8], [.8, .6]]))
    enforce_isometry(net, dict(weight=torch.tensor([[True, True], [True, False]])), 2000)
    assert close(net.weight.detach(), [[0., -1.], [1., 0.]], .02)

def test_what_a_mask_makes_impossible():
    "Every direction that a mask closes costs one; the rest can be mended."
    net = mlp(100, 100, 100)
    masks = pruned(net, .04)
    gaps = enforce_isometry(net, masks, 1000)
    for name, mask in masks.items():
        closed = min(mask.shape) - structural_rank(csr_matrix(mask.numpy()))
        s = spectrum(net.get_parameter(name))
        assert closed > 0 and closed - 1e-3 <= gaps[name] <= closed + 15
        assert close(gaps[name], float((s < .5).sum()), .1)    # values are 0 or 1

def test_plain_loop_second_route():
    "Ordinary PyTorch, all layers in one loss, gives the same weights."
    net = mlp(12, 20, 6)
    masks = pruned(net, .3)
    plain = copy.deepcopy(net)
    weights = [plain.get_parameter(name) for name in masks]
    optimizer = torch.optim.SGD(weights, lr=.1)
    for _ in range(50):
        gap = 0.
        for w, mask in zip(weights, masks.values()):
            w = w*mask
            gram = w @ w.T if len(w) <= w.shape[1] else w.T @ w
            gap = gap + (gram - torch.eye(len(gram))).square().sum()
        optimizer.zero_grad()
        gap.backward()
        optimizer.step()
    enforce_isometry(net, masks, 50)
    for p, q in zip(net.parameters(), plain.parameters()): assert close(p.detach(), q.detach(), 1e-6)

def test_enforcing_touches_nothing_else():
    "No gradients, modes, buffers or random numbers; it works inside no_grad, and is deterministic."
    net = batchnorm_mlp(6, 4, (8, 5), seed=0).train()
    net(torch.randn(9, 6)).sum().backward()
    masks = pruned(net, .5)
    other, before, generator = copy.deepcopy(net), state(net), torch.get_rng_state()
    with torch.no_grad(): enforce_isometry(net, masks, 10)
    enforce_isometry(other, masks, 10)
    after = state(net)
    assert before[1] == after[1] and torch.equal(generator, torch.get_rng_state())
    assert same(({}, [], before[2]), ({}, [], after[2]))
    assert all(torch.equal(before[0][k], after[0][k]) for k in before[0] if k not in masks)
    assert same((snapshot(net), [], []), (snapshot(other), [], []))

def test_convolution():
    "The kernel as a matrix, outputs by all that one output reads."
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8*4, 5))
    masks = pruned(net, .5)
    enforce_isometry(net, masks, 500, gain=2**.5, lr=.05)
    assert close(spectrum(net[0].weight.flatten(1)), torch.full((8,), 2**.5), 1e-2)
    assert not net[0].weight[~masks['0.weight']].any()

def test_frozen_weights_stay():
    net = mlp(6, 6, 6)
    masks = pruned(net, .5)
    net[0].weight.requires_grad_(False)
    with torch.no_grad(): net[0].weight += 1                   # also where its mask is False
    frozen, free = net[0].weight.clone(), net[1].weight.clone()
    gaps = enforce_isometry(net, masks, 10)
    assert torch.equal(frozen, net[0].weight) and not torch.equal(free, net[1].weight)
    assert gaps.keys() == masks.keys()
    net[1].weight.requires_grad_(False)
    with pytest.raises(ValueError, match='0.weight, 1.weight are frozen'):
        enforce_isometry(net, masks, 10)

def test_half_precision():
    "Computed in float32, stored as it was."
    net = mlp(10, 10, 10).to(torch.bfloat16)
    masks = pruned(net, .5)
    gaps = enforce_isometry(net, masks, 300)
    assert net[0].weight.dtype is torch.bfloat16 and max(gaps.values()) < .1
    double = mlp(10, 10, 10).double()
    assert max(isometry_gap(double, full_masks(double)).values()) < 1e-6

def test_layer_without_weights_stays_zero():
    net = mlp(4, 4, 4)
    masks = full_masks(net) | {'0.weight': torch.zeros(4, 4, dtype=torch.bool)}
    gaps = enforce_isometry(net, masks, 10)
    assert gaps['0.weight'] == 4 and not net[0].weight.any()

@pytest.mark.parametrize('change, error, why', [
    (dict(steps=0), ValueError, 'steps=0 must'),
    (dict(masks={}), ValueError, 'no masks'),
    (dict(masks=dict(weight=torch.ones(2, 2, dtype=torch.bool))), ValueError, 'has shape'),
    (dict(lr=9.), FloatingPointError, "diverged in 'weight' with lr=9.0: try a smaller one")])
def test_refused(change, error, why):
    net = nn.Linear(4, 3)
    before = snapshot(net)
    with pytest.raises(error, match=why):
        enforce_isometry(net, **dict(dict(masks=full_masks(net), steps=50), **change))
    assert same((before, [], []), (snapshot(net), [], []))

@pytest.mark.parametrize('function', [isometry_gap, enforce_isometry])
def test_a_vector_is_no_matrix(function):
    net = nn.Linear(4, 3)
    masks = full_masks(net, include='bias')
    with pytest.raises(ValueError, match=r"'bias' has shape \(3,\): isometry is about matrices"):
        function(net, masks)

# what the page says about scores

def cross_entropy(net, batch): return F.cross_entropy(net(batch[0]), batch[1])

def test_the_gain_does_not_change_what_snip_keeps_in_a_linear_network():
    "All layers' scores shrink by one number, as long as the logits are near zero."
    x, y = torch.randn(30, 10), torch.arange(30) % 5
    kept = []
    for gain in (.1, .2):
        net = orthogonal_(mlp(10, 12, 12, 5), gain, rng(0, 'test'))
        kept.append(prune_to(net, .2, snip, cross_entropy, [(x, y)]))
    differ = sum(int((kept[0][k] ^ kept[1][k]).sum()) for k in kept[0])
    assert differ <= 4

def test_snip_keeps_the_middle_of_delta_orthogonal_kernels():
    "Its score is |θ g|, and all other weights are zero."
    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 6, 3, padding=1),
                        nn.Flatten(), nn.Linear(6*16, 3))
    orthogonal_(net, generator=rng(0, 'test'))
    x, y = torch.randn(9, 1, 4, 4), torch.arange(9) % 3
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        masks = prune_to(net, .2, snip, cross_entropy, [(x, y)])
    middle = torch.zeros(3, 3, dtype=torch.bool)
    middle[1, 1] = True
    for name in ('0.weight', '2.weight'): assert not (masks[name] & ~middle).any()

def test_a_frozen_bias_stays():
    net = nn.Sequential(nn.Linear(3, 3))
    net[0].bias.requires_grad_(False).fill_(2.)
    orthogonal_(net)
    assert (net[0].bias == 2).all()
