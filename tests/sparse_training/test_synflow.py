"SynFlow: what flows into a unit flows out; sums over paths; deep, residual and normed networks."
import copy, math, warnings
from itertools import product
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from lotterybook.foundations.deep_networks import resnet20
from lotterybook.foundations.networks import batchnorm_mlp, lenet
from lotterybook.foundations.randomness import rng
from lotterybook.pruning.masks import full_masks, kept
from lotterybook.sparse_training.snip import prune_to, snip
from lotterybook.sparse_training.synflow import synflow
torch.set_num_threads(1)

def chain(*widths, bias=False, seed=0):
    "Linear layers with ReLU between them; He initialization."
    torch.manual_seed(seed)
    layers = []
    for before, after in zip(widths, widths[1:]):
        layers += [nn.Linear(before, after, bias=bias), nn.ReLU()]
        nn.init.kaiming_normal_(layers[-2].weight)
    return nn.Sequential(*layers[:-1])

def flows(net, masks=None, inputs=None):
    "SynFlow's scores with an input of the shape that the first layer reads."
    shape = (inputs,) if isinstance(inputs, int) else inputs or (net[0].in_features,)
    return synflow(net, masks or full_masks(net), batches=[torch.rand(2, *shape)])

def thin(net, share, seed=0):
    "Masks of a random share of the weights."
    return {name: torch.rand(mask.shape, generator=rng(seed, name)) < share
            for name, mask in full_masks(net).items()}

def test_by_paths():
    "A score is the sum over the paths through the weight, of the products along them."
    net   = chain(2, 3, 2)
    masks = full_masks(net)
    masks['0.weight'][0, 1] = masks['2.weight'][1, 2] = False
    first, last = (net[i].weight.detach().double()*masks[f'{i}.weight'] for i in (0, 2))
    expected = [torch.zeros(3, 2).double(), torch.zeros(2, 3).double()]
    for i, j, k in product(range(2), range(3), range(2)):
        path = (first[j, i]*last[k, j]).abs()
        expected[0][j, i] += path
        expected[1][k, j] += path
    scores = flows(net, masks)
    torch.testing.assert_close(scores['0.weight'], expected[0])
    torch.testing.assert_close(scores['2.weight'], expected[1])

@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=3, max_size=6), st.floats(.2, 1), st.integers(0, 99))
def test_conservation(widths, share, seed):
    "Theorems 1 and 2: the same sum enters and leaves each hidden unit, and each layer has R."
    net = chain(*widths, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')                 # of a network in which no path is left
        scores = list(flows(net, thin(net, share, seed)).values())
    for before, after in zip(scores, scores[1:]):
        torch.testing.assert_close(before.sum(1), after.sum(0))
    for layer in scores: torch.testing.assert_close(layer.sum(), scores[0].sum())

def test_biases_flow_too():
    "What leaves a unit is what enters it and the size of its bias, times what it is worth."
    net = chain(4, 5, 3, bias=True)
    scores = flows(net)
    leaves = net[2].weight.abs().sum(0).double().detach()
    torch.testing.assert_close(scores['2.weight'].sum(0),
                               scores['0.weight'].sum(1) + net[0].bias.abs().detach()*leaves)

def test_as_snip():
    "It is SNIP of the network of absolute values, with R in the place of the loss."
    net = lenet(64, seed=0)
    positive = copy.deepcopy(net).double()
    for p in positive.parameters(): p.data.abs_()
    other = snip(positive, full_masks(net), lambda net, x: net(x), [torch.ones(1, 64).double()])
    for name, s in flows(net, inputs=64).items(): torch.testing.assert_close(s, other[name])

def test_float32_would_overflow():
    "A hundred layers of 100 units: R is far above 3e38; a second route in logarithms."
    net = chain(*[100]*101)
    scores = flows(net)
    log, x = 0., torch.ones(100).double()
    for layer in net[::2]:
        x = layer.weight.detach().double().abs() @ x
        log += x.sum().log().item()
        x /= x.sum()
    assert log/math.log(10) > 38
    for s in scores.values():
        assert s.isfinite().all() and (s > 0).all()
        assert s.sum().log().item() == pytest.approx(log, rel=1e-12)

def test_float64_overflows():
    "With 400 layers even that is too much; the remedy of the message keeps the ranking."
    net = chain(*[100]*401)
    with pytest.raises(ValueError, match='R is inf.*multiplied by 0.1'): flows(net)
    small, little = copy.deepcopy(net), chain(*[100]*11)
    for p in small.parameters(): p.data.mul_(.1)
    assert all((s > 0).all() for s in flows(small).values())
    before = flows(little)
    for p in little.parameters(): p.data.mul_(.125)     # exact in binary
    for name, s in flows(little).items(): assert torch.equal(s*8.**10, before[name])

def test_weights_that_are_not_finite():
    net = chain(4, 5, 3)
    net[0].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match='R is nan'): flows(net)

def test_residual_network():
    "All paths go through the first and the last layer; at a block they part."
    net = resnet20((3, 8, 8), seed=0)
    scores = flows(net, inputs=(3, 8, 8))
    total  = scores['output.weight'].sum()
    assert all((s > 0).all() for s in scores.values()) and total > 0
    torch.testing.assert_close(scores['conv.weight'].sum(), total)
    branches = scores['block21.conv2.weight'].sum() + scores['block21.shortcut.conv.weight'].sum()
    torch.testing.assert_close(branches, total)
    torch.testing.assert_close(scores['block12.conv1.weight'].sum(),
                               scores['block12.conv2.weight'].sum())

@pytest.mark.parametrize('mean', [0., .7, -.7])
def test_norm_layers_by_folding(mean):
    "Batch norm is a scale and a shift, both positive, whatever it has measured."
    net  = batchnorm_mlp(6, 3, (5, 4), seed=0)
    norm = net.norm1
    for value, t in ((mean, norm.running_mean), (2., norm.running_var)): t.fill_(value)
    norm.bias.data.fill_(-.2)
    scores = flows(net, inputs=6)
    scale  = norm.weight.double().detach()/(2 + norm.eps)**.5
    folded = chain(6, 5, 4, 3, bias=True)
    gamma2 = net.norm2.weight.double().detach()/(1 + net.norm2.eps)**.5
    folded.double()
    for layer, weight, bias in ((folded[0], net.layer1.weight*scale[:, None], abs(mean)*scale + .2),
                                (folded[2], net.layer2.weight*gamma2[:, None], 0.),
                                (folded[4], net.output.weight, 0.)):
        layer.weight.data.copy_(weight)
        layer.bias.data[:] = bias
    for s, other in zip(scores.values(), flows(folded).values()):
        assert (s >= 0).all()
        torch.testing.assert_close(s, other)

def test_the_mode_does_not_matter():
    "Norms and dropout work as in evaluation, and the network stays in its mode."
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(.5), nn.Linear(5, 3))
    a = flows(net.train())
    assert all(layer.training for layer in net.modules())
    b = flows(net.eval())
    for name in a: assert torch.equal(a[name], b[name])

def test_nothing_changes():
    "Weights, buffers, modes, gradients, what is trained, and random generators."
    net = resnet20((3, 8, 8), seed=0)
    net.conv.weight.requires_grad_(False)
    net.output.weight.grad = torch.ones(10, 64)
    net[1].eval()
    state, modes = copy.deepcopy(net.state_dict()), [layer.training for layer in net.modules()]
    data = DataLoader(TensorDataset(torch.rand(8, 3, 8, 8), torch.arange(8)), 4, shuffle=True)
    random = torch.get_rng_state()
    scores = synflow(net, full_masks(net), None, data)
    for s in scores.values(): s.zero_()
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(t, state[name]) for name, t in net.state_dict().items())
    assert [layer.training for layer in net.modules()] == modes
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ['conv.weight']
    assert [n for n, p in net.named_parameters() if p.grad is not None] == ['output.weight']
    assert (net.output.weight.grad == 1).all() and not scores['output.weight'].requires_grad

def test_inside_no_grad():
    "It finds its gradient there, too."
    net = chain(4, 5, 3)
    with torch.no_grad(): inside = flows(net)
    for name, s in flows(net).items(): assert torch.equal(s, inside[name])

def test_zeros_stay():
    "Pruned weights, and weights that are zero, have score 0; other signs make no difference."
    net = chain(6, 5, 4)
    net[0].weight.data[0] = 0
    masks  = thin(net, .6)
    scores = flows(net, masks)
    for name, mask in masks.items(): assert (scores[name][~mask] == 0).all()
    assert (scores['0.weight'][0] == 0).all()
    net[0].weight.data.neg_()
    for name, s in flows(net, masks).items(): assert torch.equal(s, scores[name])

def test_shared_and_frozen_weights():
    "A shared weight has the scores of both its uses; a frozen one passes its flow, unscored."
    net = chain(4, 4, 4)
    net[0].weight.data.copy_(net[2].weight)
    apart = flows(net)
    net[0].weight = net[2].weight
    both = flows(net, full_masks(net, include='0.weight'))
    torch.testing.assert_close(both['0.weight'], sum(apart.values()))
    net = chain(4, 5, 3)
    full = flows(net)
    net[0].weight.requires_grad_(False)
    rest = flows(net)
    assert list(rest) == ['2.weight'] and torch.equal(rest['2.weight'], full['2.weight'])

def test_half_precision():
    "Scored in float64, as the same weights are there."
    net = chain(4, 5, 3).bfloat16()
    for a, b in zip(flows(net).values(), flows(copy.deepcopy(net).double()).values()):
        assert a.dtype == torch.double and torch.equal(a, b)

# -- what the batches are --

X = torch.rand(3, 4)

@pytest.mark.parametrize('batches', [[X], [(X, X)], [[X, X]], (X, X), [X.double()],
                                     DataLoader(TensorDataset(X, X), 2), iter([X])])
def test_any_batches(batches):
    "Pairs, bare tensors, a loader: only the shape counts."
    net = chain(4, 5, 3)
    for name, s in synflow(net, full_masks(net), batches=batches).items():
        assert torch.equal(s, flows(net)[name])

@pytest.mark.parametrize('batches, why', [
    ([], 'no batches'), ((), 'no batches'), ([{'x': X}], 'a dict'), ([()], 'a tuple'), ([5], 'an? int'),
    ([torch.ones(3, 4).long()], 'a torch.int64 tensor'), (X, r'shape \(4,\)'),
    ([(X[0], X)], r'shape \(4,\)')])
def test_no_batches(batches, why):
    net = chain(4, 5, 3)
    with pytest.raises(ValueError, match=why): synflow(net, full_masks(net), batches=batches)

@pytest.mark.parametrize('last', [nn.LayerNorm(3), nn.LogSoftmax(1), nn.Softmax(1)])
def test_layers_that_subtract(last):
    "R is no sum over paths there."
    net = chain(4, 5, 3)
    with pytest.raises(ValueError, match="'0.weight' has negative scores.*snip"):
        flows(nn.Sequential(*net, last, nn.Linear(3, 2)))

def test_no_path():
    "Where nothing passes, all scores are zero, and it says so."
    net   = chain(4, 5, 3)
    masks = full_masks(net)
    masks['0.weight'][:] = False
    with pytest.warns(UserWarning, match="synflow: all scores of '2.weight' are zero"):
        scores = flows(net, masks)
    assert not scores['2.weight'].any()

def test_a_weight_that_is_not_used():
    class Spare(nn.Linear):
        def forward(self, x): return x
    net = nn.Sequential(*chain(4, 5, 3), Spare(2, 2))
    with pytest.warns(UserWarning, match="'3.weight'"): scores = flows(net)
    assert (scores['3.weight'] == 0).all() and (scores['2.weight'] > 0).all()

# -- rounds --

@pytest.mark.parametrize('density', [.05, .02, .01, .005])
def test_one_round_collapses_a_hundred_do_not(density):
    "Exact counts; after one round no path is left, after a hundred no layer has lost its own."
    net = chain(64, 50, 200, 200, 50, 10)
    x, total = [torch.rand(1, 64)], sum(mask.numel() for mask in full_masks(net).values())
    with pytest.warns(UserWarning, match='leaves no weight'):
        once = prune_to(net, density, synflow, batches=x)
    often = prune_to(net, density, synflow, batches=x, rounds=100)
    for masks in (once, often): assert sum(kept(masks).values()) == round(density*total)
    assert min(kept(once).values()) == 0
    counts = list(kept(often).values())
    assert min(counts) > max(counts)/4
    with pytest.warns(UserWarning): assert not flows(net, once)['8.weight'].any()
    scores = flows(net, often)
    for name, s in scores.items():
        assert s[often[name]].sum() == pytest.approx(scores['0.weight'].sum().item())
        assert (s[often[name]] > 0).float().mean() > .8  # on a path; the last cut leaves some beside

def test_residual_network_in_rounds():
    "The cut of a network with shortcuts, one percent in thirty rounds: exact, and still connected."
    net, x = resnet20((1, 8, 8), seed=0), [torch.rand(1, 1, 8, 8)]
    masks  = prune_to(net, .01, synflow, batches=x, rounds=30)
    total  = sum(mask.numel() for mask in masks.values())
    assert sum(kept(masks).values()) == round(.01*total)
    assert synflow(net, masks, batches=x)['output.weight'].any()

@pytest.mark.parametrize('layer', [nn.Tanh, nn.Sigmoid, nn.ReLU6])
def test_layers_that_saturate_are_warned_of(layer):
    net = nn.Sequential(nn.Linear(4, 8), layer(), nn.Linear(8, 2))
    with pytest.warns(UserWarning, match=f'synflow: {layer.__name__} is flat for large inputs'):
        synflow(net, full_masks(net), batches=[torch.ones(1, 4)])
