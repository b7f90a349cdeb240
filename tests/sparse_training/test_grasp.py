"GraSP by three other routes, its sign, what divides the logits, and a network that stays as it was."
import copy, warnings
from functools import partial
import pytest, torch
from sameness import same
from scored import OddNet, state
from torch import nn
from torch.nn import functional as F
from lotterybook.foundations.networks import batchnorm_mlp, lenet
from lotterybook.foundations.randomness import rng
from lotterybook.foundations.training import classification
from lotterybook.pruning.allocation import per_layer
from lotterybook.pruning.masks import full_masks, kept
from lotterybook.pruning.scores import magnitude
from lotterybook.sparse_training.grasp import balanced_rows, grasp, relative_times
from lotterybook.sparse_training.snip import prune_to, snip
torch.set_num_threads(1)

loss  = classification()
plain = partial(grasp, temperature=1.)

def examples(n=30, inputs=5, classes=3, dtype=torch.float64):
    return torch.randn(n, inputs, generator=rng(0, 'x'), dtype=dtype), torch.arange(n) % classes

def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()

def thinner(net, share=.5):
    masks = full_masks(net)
    return per_layer(magnitude(net, masks), masks, 1 - share)

def flow(net, masks, objective, batch):
    "The squared gradient by the kept weights."
    g = torch.autograd.grad(objective(net, batch), [net.get_parameter(name) for name in masks])
    return sum((a*m).square().sum() for a, m in zip(g, masks.values())).item()

def close(a, b):
    assert a.keys() == b.keys()
    for name in a: torch.testing.assert_close(a[name], b[name])

# --- what it computes

def by_hessian(net, masks, objective, batch):
    "θ ⊙ H(m ⊙ g) from the whole Hessian, in float64."
    names = list(masks)
    rest  = {k: v.detach() for k, v in net.named_parameters()}
    sizes = [masks[k].numel() for k in names]
    m     = torch.cat([masks[k].flatten() for k in names]).double()
    theta = torch.cat([rest[k].flatten() for k in names])
    def f(flat):
        parts = {k: v.view(masks[k].shape) for k, v in zip(names, flat.split(sizes))}
        return objective(lambda x: torch.func.functional_call(net, rest | parts, x), batch)
    used = theta*m
    g, H = torch.func.grad(f)(used), torch.func.hessian(f)(used)
    return {k: v.view(masks[k].shape) for k, v in zip(names, (theta*(H@(m*g))).split(sizes))}

@pytest.mark.parametrize('thin', [False, True])
def test_by_the_whole_hessian(thin):
    net, batch = small_net(), examples()
    masks = thinner(net) if thin else full_masks(net)
    close(plain(net, masks, loss, [batch]), by_hessian(net, masks, loss, batch))

def test_by_finite_differences():
    "Half of what the squared gradient changes by if a weight is scaled."
    net, batch, h = small_net(), examples(), 1e-6
    masks, p = full_masks(net), net[0].weight
    scores = plain(net, masks, loss, [batch])['0.weight']
    for place in ((0, 0), (3, 4), (6, 2)):
        old, values = p[place].item(), []
        for scale in (1 + h, 1 - h):
            with torch.no_grad(): p[place] = old*scale
            values.append(flow(net, masks, loss, batch))
        with torch.no_grad(): p[place] = old
        assert scores[place].item() == pytest.approx((values[0] - values[1])/(4*h), rel=1e-5)

def test_by_hand():
    "L = (h1 (w1 - t1)² + h2 (w2 - t2)²)/2: the score is w h² (w - t), of either sign."
    net = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad(): net.weight.copy_(torch.tensor([[1., 2]]))
    h, t = torch.tensor([3., .5]), torch.tensor([4., -1.])
    def quadratic(net, batch): return (h*(net.weight - t).square()).sum()/2
    assert grasp(net, full_masks(net), quadratic, [0], temperature=1)['weight'].tolist() == [[-27., 1.5]]

def test_the_sign():
    "Higher is kept: without the highest weight the squared gradient falls, without the lowest it rises."
    net = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad(): net.weight.copy_(torch.tensor([[1., 1.]]))
    def quadratic(net, batch): return (net.weight - torch.tensor([3., -1.])).square().sum()/2
    masks = full_masks(net)
    s = plain(net, masks, quadratic, [0])['weight'][0]
    before, after = flow(net, masks, quadratic, 0), []
    for i in (0, 1):
        other = copy.deepcopy(net)
        with torch.no_grad(): other.weight[0, i] = 0
        after.append(flow(other, masks, quadratic, 0))
    assert s.tolist() == [-2, 2] and after[0] > before > after[1]
    assert prune_to(net, .5, plain, quadratic, [0])['weight'].tolist() == [[False, True]]

def test_the_gradient_is_held():
    "H g, not the gradient of |g|²/2 through both factors twice: without the stop, twice the score."
    net, batch = small_net(), examples()
    masks = full_masks(net)
    ps = [net.get_parameter(name) for name in masks]
    g  = torch.autograd.grad(loss(net, batch), ps, create_graph=True)
    half = torch.autograd.grad(sum(a.square().sum() for a in g)/2, ps)
    close(plain(net, masks, loss, [batch]), {k: (p*a).detach() for k, p, a in zip(masks, ps, half)})

def test_batches_sum_up():
    "The gradient is that of all batches, in front of each Hessian: n² times the score of one batch."
    net, (x, y) = small_net(), examples()
    whole = grasp(net, full_masks(net), loss, [(x, y)])
    parts = grasp(net, full_masks(net), loss, iter([(x[:15], y[:15]), (x[15:], y[15:])]))
    close(parts, {name: 4*s for name, s in whole.items()})
    one = grasp(net, full_masks(net), loss, [(x[:15], y[:15])])
    two = grasp(net, full_masks(net), loss, [(x[15:], y[15:])])
    assert not torch.allclose(parts['0.weight'], one['0.weight'] + two['0.weight'])

def test_a_vector_of_losses_is_summed():
    net, batch = small_net(), examples()
    each = classification(partial(F.cross_entropy, reduction='none'))
    close(grasp(net, full_masks(net), each, [batch]),
          {k: 900*s for k, s in grasp(net, full_masks(net), loss, [batch]).items()})

def test_a_constant_gradient():
    "A loss that is linear in the weights has no Hessian: zero, with a warning."
    net = nn.Linear(3, 1, bias=False)
    with pytest.warns(UserWarning, match="grasp: all scores of 'weight' are zero"):
        scores = grasp(net, full_masks(net), lambda net, x: net(x).sum(), [torch.ones(2, 3)])
    assert not scores['weight'].any()

def test_the_first_layer_of_lenet():
    "Its kernel for inputs of mostly zeros has a second derivative; so has plain nn.Linear, the same."
    net, (x, y) = lenet(20, classes=3, seed=0), examples(inputs=20, dtype=torch.float32)
    x = x*(x > .8)
    dense = nn.Sequential(nn.Linear(20, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 3))
    dense.load_state_dict(dict(zip(dense.state_dict(), net.state_dict().values())))
    a, b = (plain(o, full_masks(o), loss, [(x, y)]) for o in (net, dense))
    for s, t in zip(a.values(), b.values()): torch.testing.assert_close(s, t, rtol=1e-3, atol=1e-7)

# --- the temperature

def test_logits_are_divided():
    net, (x, y) = small_net(), examples()
    def cooler(net, batch): return F.cross_entropy(net(batch[0])/50, batch[1])
    close(grasp(net, full_masks(net), loss, [(x, y)], temperature=50),
          plain(net, full_masks(net), cooler, [(x, y)]))

def test_another_order_of_the_weights():
    net, batch = small_net(), examples()
    a, b = (grasp(net, full_masks(net), loss, [batch], temperature=t)['0.weight'].flatten() for t in (1, 200))
    assert a.argsort().tolist() != b.argsort().tolist()

def test_the_first_of_a_tuple():
    "Logits and a state: the state is not divided."
    class Pair(nn.Module):
        def __init__(self): super().__init__(); self.net = small_net()
        def forward(self, x): return self.net(x), x
    seen, net = [], Pair()
    def objective(net, batch):
        logits, state = net(batch[0])
        seen.append(state)
        return F.cross_entropy(logits, batch[1])
    x, y = examples()
    scores = grasp(net, full_masks(net), objective, [(x, y)])
    close({k.removeprefix('net.'): s for k, s in scores.items()}, grasp(net.net, full_masks(net.net), loss, [(x, y)]))
    assert all(torch.equal(s, x) for s in seen)

def test_no_logits():
    class Named(nn.Module):
        def __init__(self): super().__init__(); self.net = small_net()
        def forward(self, x): return dict(logits=self.net(x))
    net = Named()
    def objective(net, batch): return F.cross_entropy(net(batch[0])['logits'], batch[1])
    with pytest.raises(ValueError, match='gives a dict, not logits'): grasp(net, full_masks(net), objective, [examples()])
    plain(net, full_masks(net), objective, [examples()])
    def parts(net, batch): return F.cross_entropy(net.net(batch[0]), batch[1])
    with pytest.raises(ValueError, match='does not call net'): grasp(net, full_masks(net), parts, [examples()])

@pytest.mark.parametrize('temperature', [0, -1, float('nan'), float('inf')])
def test_no_temperature(temperature):
    with pytest.raises(ValueError, match='temperature'):
        grasp(net := small_net(), full_masks(net), loss, [examples()], temperature=temperature)

# --- what it leaves alone

@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('n', [1, 3])
def test_the_network_is_left_alone(training, n):
    torch.manual_seed(0)
    net = OddNet().double().train(training)
    net.out.bias.grad = torch.ones(3).double()
    masks = full_masks(net, include=['first.weight', 'frozen.weight'])
    before = state(net)
    with torch.no_grad(): grasp(net, masks, loss, [examples()]*n)
    assert same(before, state(net))

def test_the_same_noise_in_both_passes():
    "Three times a batch, each with its own dropout, is its sum three times: the second pass sees that of the first."
    torch.manual_seed(0)
    net = OddNet().double()
    masks, batch, n = full_masks(net), examples(), 3
    def three(net, batch): return sum(loss(net, batch) for _ in range(n))
    close(plain(net, masks, loss, [batch]*n), plain(net, masks, three, [batch]))
    a, b = (grasp(net, masks, loss, [batch]*n) for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_frozen_and_shared():
    "By both uses of a shared weight, and where it is frozen."
    torch.manual_seed(0)
    net = OddNet().double().eval()
    masks = full_masks(net, include=['first.weight', 'frozen.weight'])
    close(plain(net, masks, loss, [examples()]), by_hessian(net, masks, loss, examples()))

def test_batch_norm():
    "In training mode by the batch's own means, which have a part in the derivative."
    net, (x, y) = batchnorm_mlp(5, 3, (6, 5), seed=0).double(), examples()
    frozen = copy.deepcopy(net)
    for m in frozen.modules():
        if isinstance(m, nn.BatchNorm1d): m.track_running_stats, m.running_mean, m.running_var = False, None, None
    close(plain(net, full_masks(net), loss, [(x, y)]), by_hessian(frozen, full_masks(net), loss, (x, y)))
    assert not torch.allclose(plain(net.eval(), full_masks(net), loss, [(x, y)])['layer1.weight'],
                              plain(net.train(), full_masks(net), loss, [(x, y)])['layer1.weight'])

@pytest.mark.parametrize('layer', [nn.LSTM(3, 4), nn.GRU(3, 4)], ids=['LSTM', 'GRU'])
def test_recurrent(layer):
    layer, x = layer.double(), torch.rand(5, 2, 3, dtype=torch.float64)
    def square(net, x): return net(x)[0].square().mean()
    scores = plain(layer, full_masks(layer), square, [x])
    assert sorted(scores) == ['weight_hh_l0', 'weight_ih_l0']
    p, h, values = layer.weight_hh_l0, 1e-5, []
    old = p[1, 2].item()
    for scale in (1 + h, 1 - h):
        with torch.no_grad(): p[1, 2] = old*scale
        values.append(flow(layer, full_masks(layer), square, x))
    assert scores['weight_hh_l0'][1, 2].item() == pytest.approx((values[0] - values[1])/(4*h), rel=1e-4)

def test_attention():
    "Its fast kernels have no second derivative; others are taken for the score, and then the fast ones again."
    torch.manual_seed(0)
    net, x = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.).double(), torch.rand(5, 2, 8).double()
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    scores = plain(net, full_masks(net), lambda net, x: net(x)[..., 0].square().mean(), [x])
    assert all(s.any() for s in scores.values())
    assert before == (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled())

# --- batches

def test_one_class_is_told():
    net, (x, y) = small_net(), examples()
    masks = full_masks(net)
    with pytest.warns(UserWarning, match='all labels of a batch are 1'): grasp(net, masks, loss, [(x, y*0 + 1)])
    with pytest.warns(UserWarning, match='all labels of a batch are 2'): grasp(net, masks, loss, [(x, y), (x[2:3], y[2:3]), (x, y*0 + 2)])
    with pytest.warns(UserWarning, match='all labels of a batch are 0'): grasp(net, masks, loss, [(x[:1], y[:1])])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        grasp(net, masks, loss, [(x, y)])
        grasp(net, masks, loss, [(x[i:i+1], y[i:i+1]) for i in range(3)])                 # one example each
        grasp(net, masks, lambda net, b: net(b[0]).square().mean(), [(x, torch.ones(30))])  # no classes
        grasp(net, masks, lambda net, b: net(b).square().mean(), [x])                       # no labels

def test_balanced_rows():
    labels = torch.tensor([0]*50 + [1]*20 + [2]*5)
    rows = balanced_rows(labels, 5, rng(0, 'rows'))
    assert labels[rows].tolist() == [0, 1, 2]*5 and len(set(rows.tolist())) == 15
    assert torch.equal(rows, balanced_rows(labels, 5, rng(0, 'rows')))
    assert not torch.equal(rows, balanced_rows(labels, 5, rng(1, 'rows')))
    with pytest.raises(ValueError, match='class 2 has 5 examples, not 6'): balanced_rows(labels, 6)
    with pytest.raises(ValueError, match='per_class'): balanced_rows(labels, 0)
    assert sorted(balanced_rows(labels, 5)[2::3].tolist()) == list(range(70, 75))

def test_balanced_rows_are_chosen_equally_often():
    "One of four: each in a quarter of the cases, within five standard deviations."
    g, counts = rng(0, 'often'), torch.zeros(4)
    for _ in range(2000): counts[balanced_rows(torch.zeros(4).long(), 1, g)] += 1
    assert (counts - 500).abs().max() < 100

def test_no_batches_and_not_finite():
    net, (x, y) = small_net(), examples()
    with pytest.raises(ValueError, match='no batches'): grasp(net, full_masks(net), loss, [])
    with pytest.raises(ValueError, match="grasp: 35 scores of '0.weight' are not finite"):
        grasp(net, full_masks(net), loss, [(x*float('nan'), y)])

# --- cuts

@pytest.mark.parametrize('density', [.5, .1, .02, .001])
@pytest.mark.parametrize('rounds', [1, 3])
def test_exact_counts(density, rounds):
    "Negative scores are legal, and no pruned weight comes back."
    net, batch = lenet(8, classes=3, seed=0), examples(inputs=8, dtype=torch.float32)
    scores = grasp(net, masks := full_masks(net), loss, [batch])
    assert any((s < 0).any() for s in scores.values()) and any((s > 0).any() for s in scores.values())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        cut = prune_to(net, density, grasp, loss, [batch], rounds=rounds)
    assert sum(kept(cut).values()) == round(density*sum(m.numel() for m in masks.values()))

# --- time

def test_relative_times():
    net, batch = lenet(8, classes=3, seed=0), examples(inputs=8, dtype=torch.float32)
    before = state(net)
    found = relative_times(dict(snip=snip, grasp=grasp), net, loss, batch, repeats=2)
    assert list(found) == ['snip', 'grasp'] and all(0 < t < 1000 for t in found.values())
    assert same(before, state(net))

def test_a_score_costs_a_few_passes():
    "On a network of millions of weights: SNIP at most 2 forward and backward passes, GraSP 6; some more on a busy machine."
    net = nn.Sequential(nn.Linear(500, 2000), nn.ReLU(), nn.Linear(2000, 1000), nn.ReLU(), nn.Linear(1000, 10))
    batch = torch.rand(200, 500), torch.arange(200) % 10
    found = relative_times(dict(snip=snip, grasp=grasp), net, loss, batch, repeats=3)
    assert found['snip'] < 3 and found['grasp'] < 9
