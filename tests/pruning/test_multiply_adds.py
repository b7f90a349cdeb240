"Counts of multiply-adds: by hand, against PyTorch's counter, of pruned weights and of channels cut out."
import pytest, torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.networks import batchnorm_mlp, lenet
from lotterybook.foundations.randomness import rng
from lotterybook.pruning.allocation import per_layer
from lotterybook.pruning.masks import full_masks, kept
from lotterybook.pruning.multiply_adds import channels_to_weights, multiply_adds
from lotterybook.pruning.scores import magnitude
torch.set_num_threads(1)

def total(*args): return sum(multiply_adds(*args).values())

def by_torch(net, x):
    "Half of the FLOPs that PyTorch's counter sees."
    with FlopCounterMode(display=False) as counter, torch.no_grad(): net.eval()(x)
    return counter.get_total_flops()//2

def some(masks, share=.5, seed=0):
    "Random masks of the same shapes."
    g = rng(seed, 'some')
    return {name: torch.rand(m.shape, generator=g) < share for name, m in masks.items()}

# --- the counts

@pytest.mark.parametrize('layer, shape, adds', [
    (nn.Linear(3, 2), (3,), 6), (nn.Linear(3, 2), (5, 3), 30), (nn.Linear(3, 2, bias=False), (3,), 6),
    (nn.Conv2d(1, 1, 3), (1, 4, 4), 36), (nn.Conv2d(1, 1, 3, padding=1), (1, 4, 4), 144),
    (nn.Conv2d(2, 4, 3, stride=2), (2, 7, 7), 2*4*9*9), (nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5), 2*6*9*9),
    (nn.Conv1d(2, 3, 3), (2, 6), 2*3*3*4), (nn.Conv3d(1, 2, 2), (1, 3, 3, 3), 2*8*8),
    (nn.ConvTranspose2d(2, 3, 3), (2, 4, 4), 2*3*9*16),
    (nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 4, 4), 4*3*9*16)])
def test_by_hand_and_by_torch(layer, shape, adds):
    assert multiply_adds(layer, shape) == {'weight': adds}
    assert by_torch(layer, torch.ones(1, *shape)) == adds

@pytest.mark.parametrize('layer, shape, uses', [
    (nn.Linear(3, 2), (3,), 1), (nn.Conv2d(1, 2, 3), (1, 4, 4), 4), (nn.ConvTranspose2d(2, 3, 3), (2, 4, 4), 16)])
def test_a_pruned_weight_saves_its_uses(layer, shape, uses):
    full, mask = layer.weight.numel(), torch.ones_like(layer.weight, dtype=torch.bool)
    mask.view(-1)[:2] = False
    assert multiply_adds(layer, shape, {'weight': mask}) == {'weight': (full - 2)*uses}
    assert multiply_adds(layer, shape, {'weight': mask & False}) == {'weight': 0}

def test_linear_networks_count_their_weights():
    net = lenet(64)
    full = full_masks(net)
    masks = per_layer(magnitude(net, full), full, .9)
    assert multiply_adds(net, (64,)) == kept(full) and multiply_adds(net, (64,), masks) == kept(masks)
    assert multiply_adds(net, (64,), {'layer1.weight': masks['layer1.weight']}) == {
        'layer1.weight': kept(masks)['layer1.weight'], 'layer2.weight': 30000, 'output.weight': 1000}

class Twice(nn.Module):
    "A layer used twice, and one whose weight is another's."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.c.weight = self.b.weight
    def forward(self, x): return self.c(self.b(self.a(self.a(x))))

def test_layers_used_twice_and_tied_weights():
    assert multiply_adds(Twice(), (4,)) == {'a.weight': 32, 'b.weight': 32}

def test_one_input_as_a_batch_and_networks_of_words():
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 5))
    assert multiply_adds(net, torch.zeros(1, 7, dtype=torch.int64)) == {'1.weight': 140}
    assert multiply_adds(nn.Linear(3, 2), torch.zeros(1, 3)) == {'weight': 6}

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    assert total(batchnorm_mlp(8).to(dtype), (8,)) == 8*200 + 200*100 + 100*10

def test_the_network_stays_as_it_was():
    "Mode, weights, running means and hooks, though the pass puts its own in place."
    net = batchnorm_mlp(8, widths=(6, 5)).train()
    net.norm1.eval()
    before, x = snapshot(net), torch.randn(4, 8, generator=rng(0, 'x'))
    multiply_adds(net, (8,), {'norm1.weight': torch.arange(6) < 3})
    assert all(v.equal(before[k]) for k, v in net.state_dict().items())
    assert net.training and not net.norm1.training and net.norm2.training
    assert not any(m._forward_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters()) and net(x).requires_grad

def test_warned_of_what_is_not_counted():
    "An LSTM multiplies, and so does a layer that this pass did not call."
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.output, self.unused = nn.LSTM(4, 5), nn.Linear(5, 3), nn.Linear(2, 2)
        def forward(self, x): return self.output(self.lstm(x)[0])
    with pytest.warns(UserWarning, match='not counted: lstm.weight_ih_l0, lstm.weight_hh_l0, unused.weight'):
        assert multiply_adds(Tagger(), (7, 4)) == {'output.weight': 105}

def test_masks_that_are_refused():
    net = batchnorm_mlp(8, widths=(6, 5))
    with pytest.raises(ValueError, match="'norm9.weight' fits no parameter"):
        multiply_adds(net, (8,), {'norm9.weight': torch.ones(6).bool()})
    with pytest.raises(ValueError, match='not bool'):
        multiply_adds(net, (8,), {'norm1.weight': torch.ones(6)})
    with pytest.raises(ValueError, match="'output.bias' is not the scale of a batch-norm layer"):
        multiply_adds(net, (8,), {'output.bias': torch.ones(10).bool()})
    with pytest.raises(ValueError, match='no masks'): channels_to_weights(net, (8,), {})

# --- channels

def test_channels_of_a_chain():
    "As a network that never had them; the shift's mask changes nothing; an empty layer leaves nothing."
    net = batchnorm_mlp(64)
    masks = dict(zip(('norm1.weight', 'norm2.weight'), (torch.arange(200) % 3 > 0, torch.arange(100) < 7)))
    small = batchnorm_mlp(64, widths=tuple(kept(masks).values()))
    assert multiply_adds(net, (64,), masks) == multiply_adds(small, (64,))
    shifts = {'norm1.bias': masks['norm1.weight']}
    assert multiply_adds(net, (64,), masks | shifts) == multiply_adds(small, (64,))
    assert total(net, (64,), masks | {'norm2.weight': torch.zeros(100).bool()}) == 0
    left = channels_to_weights(net, (64,), masks)
    assert left['layer2.weight'].equal(masks['norm2.weight'][:, None] & masks['norm1.weight'])

def test_channels_and_weights_together():
    net = batchnorm_mlp(8, widths=(6, 5))
    weights, channels = some(full_masks(net)), {'norm1.weight': torch.arange(6) < 3}
    left = channels_to_weights(net, (8,), channels)
    assert multiply_adds(net, (8,), weights | channels) == kept({k: m & weights[k] for k, m in left.items()})

class Block(nn.Module):
    "Two convolutions and a way around them."
    def __init__(self, c, groups=1):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(c, c, 3, padding=1, bias=False, groups=groups), nn.BatchNorm2d(c)
        self.conv2, self.norm2 = nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)
    def forward(self, x): return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))

def test_the_way_around_keeps_the_channels_of_a_sum():
    net  = nn.Sequential(nn.Conv2d(1, 8, 1), Block(8), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 3))
    half = torch.arange(8) < 4
    left = channels_to_weights(net, (1, 4, 4), {'1.norm1.weight': half, '1.norm2.weight': half})
    rows, columns = half[:, None].expand(8, 8), half.expand(8, 8)
    expected = {'0.weight': torch.ones(8, 1), '1.conv1.weight': rows, '1.conv2.weight': rows & columns,
                '4.weight': torch.ones(3, 32)}
    for name, mask in left.items():
        assert mask.flatten(2).all(2).equal(expected[name].bool()) if mask.dim() > 2 else mask.all()

def test_channels_that_become_features():
    "After flattening, each channel is several inputs of the linear layer."
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4*9, 2))
    mask = torch.tensor([1, 0, 0, 1]).bool()
    left = channels_to_weights(net, (1, 5, 5), {'1.weight': mask})
    assert left['4.weight'].equal(mask.repeat_interleave(9).expand(2, -1))

@pytest.mark.parametrize('layer', [nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2)])
def test_channels_before_groups(layer):
    "A second route: weights whose change reaches the output."
    net  = nn.Sequential(nn.BatchNorm2d(4), layer, nn.BatchNorm2d(6))
    masks = {'0.weight': torch.tensor([1, 1, 0, 1]).bool(), '2.weight': torch.tensor([0, 1, 1, 1, 1, 0]).bool()}
    left = channels_to_weights(net, (4, 5, 5), masks)['1.weight']
    g, net = rng(0, 'groups'), net.double().train()
    with torch.no_grad():
        for norm, mask in zip((net[0], net[2]), masks.values()): norm.weight.mul_(mask)
    (net(torch.randn(3, 4, 5, 5, generator=g).double())**3).sum().backward()
    assert left.equal(net[1].weight.grad.abs() > 1e-12)

class Attention(nn.Module):
    "One that calls its layers: a softmax of equal numbers would have no gradient."
    def __init__(self, c):
        super().__init__()
        self.norm, self.q, self.k, self.v = nn.LayerNorm(c), nn.Linear(c, c), nn.Linear(c, c), nn.Linear(c, c)
    def forward(self, x):
        y = self.norm(x)
        return x + (self.q(y) @ self.k(y).mT).softmax(-1) @ self.v(y)

def test_softmax_and_layer_norm_hide_nothing():
    "All weights of a dense network are left, also before a log-softmax; a tuple may come out."
    class Ends(nn.Module):
        def forward(self, x): return x.log_softmax(-1), dict(x=x)
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(5), Attention(4), nn.GELU(), nn.Linear(4, 3), Ends())
    left = channels_to_weights(net, (5, 6), {'1.weight': torch.ones(5).bool()})
    assert all(mask.all() for mask in left.values()) and len(left) == 5

@pytest.mark.parametrize('end', [nn.LogSoftmax(-1), nn.Softmax(-1)])
def test_a_softmax_at_the_end_hides_no_channel(end):
    "The sum of a softmax is 1 whatever comes in: only a random weighting sees what flows."
    mask = torch.arange(6) < 2
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3), end)
    assert multiply_adds(net, (4,), {'1.weight': mask}) == {'0.weight': 8, '3.weight': 6}

def test_what_is_not_understood_is_not_cut():
    "A sign has no gradient: the layers before it stay whole."
    class Sign(nn.Module):
        def forward(self, x): return x.sign()
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), Sign(), nn.Linear(6, 2))
    left = channels_to_weights(net, (4,), {'1.weight': torch.arange(6) < 3})
    assert left['0.weight'].all() and left['3.weight'].sum() == 6
