"A smaller network puts out what the masked one does, or a message says why there is none."
import copy, sys
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from lotterybook.foundations.networks import batchnorm_mlp, lenet
from lotterybook.foundations.running import Run
from lotterybook.pruning.allocation import global_, per_layer
from lotterybook.pruning.masks import apply_masks
pytest.importorskip('torch_pruning', reason='pip install "lotterybook[structured]"')
from lotterybook.pruning.structured_pruning import (
    channel_groups, choose_channels, filter_norms, remove_channels, scale_sizes)
torch.set_num_threads(1)

def lived_in(net, seed=0):
    "The network with norms as after a training: all their numbers differ, shifts are positive."
    torch.manual_seed(seed)
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._NormBase) and m.weight is not None:
            nn.init.normal_(m.weight)
            nn.init.uniform_(m.bias, .5, 1)
            if m.running_mean is not None:
                nn.init.normal_(m.running_mean)
                nn.init.uniform_(m.running_var, .5, 2)
    return net.eval()

class Residual(nn.Module):
    "A stem and two blocks; the second has twice the channels and a shortcut of its own."
    def __init__(self, c=6, act=F.relu):
        super().__init__()
        def conv(a, b, k=3, s=1): return nn.Conv2d(a, b, k, s, k//2, bias=False)
        self.act = act
        self.stem, self.norm0 = conv(1, c), nn.BatchNorm2d(c)
        self.conv1, self.norm1 = conv(c, c), nn.BatchNorm2d(c)
        self.conv2, self.norm2 = conv(c, c), nn.BatchNorm2d(c)
        self.conv3, self.norm3 = conv(c, 2*c, s=2), nn.BatchNorm2d(2*c)
        self.conv4, self.norm4 = conv(2*c, 2*c), nn.BatchNorm2d(2*c)
        self.short, self.norm5 = conv(c, 2*c, 1, 2), nn.BatchNorm2d(2*c)
        self.output = nn.Linear(2*c*16, 3)

    def forward(self, x):
        x = self.act(self.norm0(self.stem(x)))
        x = self.act(x + self.norm2(self.conv2(self.act(self.norm1(self.conv1(x))))))
        y = self.norm4(self.conv4(self.act(self.norm3(self.conv3(x)))))
        return self.output(self.act(self.norm5(self.short(x)) + y).flatten(1))

def mlp(act=None): return nn.Sequential(nn.Linear(4, 8), act or nn.ReLU(), nn.Linear(8, 3))

def conv_net(padding=1, mode='zeros', act=None, norm=nn.BatchNorm2d):
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=padding, padding_mode=mode), norm(6, affine=True),
                         act or nn.ReLU(), nn.Conv2d(6, 5, 3, padding=padding, padding_mode=mode),
                         nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 3))

def masked(net, masks):
    "The network with zeros where the masks of parameters, layers or channels say so."
    net = copy.deepcopy(net)
    for name, mask in masks.items():
        modules = dict(net.named_modules())
        for own in [f'{name}.weight', f'{name}.bias'] if name in modules else [name]:
            if (p := dict(net.named_parameters()).get(own)) is None: continue
            with torch.no_grad():
                if mask.shape == p.shape: p[~mask] = 0
                elif isinstance(net.get_submodule(own.rpartition('.')[0]), nn.ConvTranspose2d): p[:, ~mask] = 0
                else: p[~mask] = 0
    return net.eval()

def but(n, *gone):
    "Keep all channels but these."
    mask = torch.ones(n, dtype=torch.bool)
    mask[list(gone)] = False
    return mask

def size(net): return sum(p.numel() for p in net.parameters())

def same(net, masks, x, **options):
    "The smaller network, after a comparison on inputs it has not seen."
    small, other = remove_channels(net, masks, x, **options), 3*torch.randn(20, *x.shape[1:])
    with torch.no_grad(): a, b = masked(net, masks)(other), copy.deepcopy(small).eval()(other)
    assert a.std() > 0 and torch.allclose(a, b, atol=1e-4, rtol=1e-4), (a - b).abs().max()
    return small

image, four = torch.rand(2, 1, 8, 8), torch.rand(2, 4)

# --- by hand

def test_by_hand():
    "Row i of W1, entry i of b1, column i of W2; the given network keeps all."
    net = mlp()
    before = copy.deepcopy(net.state_dict())
    small = remove_channels(net, {'0': but(8, 1, 5)}, four)
    keep = [0, 2, 3, 4, 6, 7]
    assert torch.equal(small[0].weight, net[0].weight[keep]) and torch.equal(small[0].bias, net[0].bias[keep])
    assert torch.equal(small[2].weight, net[2].weight[:, keep]) and torch.equal(small[2].bias, net[2].bias)
    assert (small[0].out_features, small[2].in_features) == (6, 6)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())

def test_a_constant_goes_into_the_bias():
    "The scale only is pruned: relu(beta) times the column is added, to a bias that was not there, too."
    net = lived_in(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2, bias=False)))
    small = same(net, {'1.weight': but(3, 1)}, four)
    assert torch.allclose(small[3].bias, net[1].bias[1]*net[3].weight[:, 1])
    assert same(net, {'1': but(3, 1)}, four)[3].bias is None             # without shift there is none

# --- the same outputs

@pytest.mark.parametrize('name', ['norm1.weight', 'norm1', 'layer1', 'layer1.weight'])
def test_mlp_with_norm(name):
    net = lived_in(batchnorm_mlp(4, 3, (20, 10)))
    small = same(net, {name: but(20, *range(7)), 'norm2.weight': but(10, 0, 9)}, four)
    assert (small.layer1.out_features, small.norm1.num_features, small.layer2.in_features) == (13, 13, 13)
    assert small.norm2.num_features == small.output.in_features == 8

def test_lenet_and_ordinary_masks():
    "Of masks shaped like weights, channels that keep nothing go; other zeros stay zeros."
    net, x = lenet(4, 3), four
    masks = {'layer1.weight': torch.rand(300, 4) > .3, 'layer2.weight': torch.rand(100, 300) > .5}
    masks['layer1.weight'][:100] = False
    small = same(net, masks, x)
    assert small.layer1.out_features < 201 and (small.layer1.weight == 0).any()

@pytest.mark.parametrize('act', [nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.GELU(), nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.ELU(),
                                 nn.Hardswish(), nn.Softplus(), nn.Mish(), nn.PReLU(), nn.PReLU(8), nn.Dropout(.5)], ids=repr)
def test_activations(act):
    "Sigmoid(0) is not 0: it is folded."
    small = same(mlp(act), {'0': but(8, 2)}, four)
    if isinstance(act, nn.Sigmoid): assert (small[2].bias != 0).all()
    same(mlp(act), {'0.weight': but(8, 2)}, four)

@pytest.mark.parametrize('padding, mode', [(0, 'zeros'), (1, 'reflect'), (1, 'replicate'), (1, 'circular'), ('valid', 'zeros')])
def test_constants_are_exact_unless_zeros_are_padded(padding, mode):
    same(lived_in(conv_net(padding, mode)), {'1.weight': but(6, 0, 3)}, image)

@pytest.mark.parametrize('padding', [1, 'same', (0, 1)])
def test_padded_zeros(padding):
    net = lived_in(conv_net(padding))
    with pytest.raises(ValueError, match="'3', where no bias is exact .zeros are padded.*approximate=True"):
        remove_channels(net, {'1.weight': but(6, 0)}, image)
    same(net, {'1': but(6, 0)}, image)                                   # shift, too: 0 beside 0
    net[1].bias.data[0] = -1                                             # relu: 0
    same(net, {'1.weight': but(6, 0)}, image)

def test_approximate_is_exact_inside():
    net = lived_in(nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 2, 1)))
    small = remove_channels(net, m := {'1.weight': but(6, 0)}, image, approximate=True)
    differ = (small(image) - masked(net, m)(image)).abs().amax((0, 1)) > 1e-4
    assert not differ[1:-1, 1:-1].any() and differ[0].all()

@pytest.mark.parametrize('name', ['0.weight', '3', '3.weight'])
def test_flatten_between(name):
    "A channel of a convolution is several inputs of the linear layer."
    n = 6 if name == '0.weight' else 5
    small = same(lived_in(conv_net(0)), {name: but(n, 1, 4)}, image)
    assert small[7].in_features == (20 if n == 6 else 12)

def test_residual():
    net = lived_in(Residual())
    stream = {k: but(6, 0, 5) for k in ('norm0', 'norm2')}
    small = same(net, stream | {'norm1': but(6, 3)} | {k: but(12, 7) for k in ('norm4', 'norm5')}, image)
    assert small.stem.out_channels == small.conv2.out_channels == small.short.in_channels == small.conv3.in_channels == 4
    assert (small.conv1.out_channels, small.conv4.out_channels, small.output.in_features) == (5, 11, 176)

@pytest.mark.parametrize('names', [('norm2',), ('norm0',), ('stem', 'norm0'), ('conv2', 'norm2')])
def test_residual_mismatched(names):
    "An error that names the layers; or what any member keeps is kept."
    net, masks = lived_in(Residual()), {name: but(6, 1, 2) for name in names}
    other = 'norm0' if 'norm2' in names else 'norm2'
    with pytest.raises(ValueError, match=rf'residual shortcuts mismatched: channels 1, 2 of .* and {other} still feed them to (conv3|short|conv1)'):
        remove_channels(net, masks, image)
    assert size(same(net, masks, image, keep_shared=True)) == size(net)
    masks = {'norm0': but(6, 1), 'norm2': but(6, 1, 2)}                  # both prune 1, one prunes 2, too
    assert same(net, masks, image, keep_shared=True).conv2.out_channels == 5

def test_an_accident_is_no_constant():
    "A shortcut that happens to be 0 for the example is not taken for one that always is."
    net = lived_in(Residual())
    with torch.no_grad(): net.norm0.bias[0], net.norm0.weight[0] = -9., .1   # relu: 0 here
    with pytest.raises(ValueError, match='mismatched'): remove_channels(net, {'norm2': but(6, 0)}, image)

def test_input_as_shortcut():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
        def forward(self, x): return self.b(x + self.a(x))
    with pytest.raises(ValueError, match='of .a. are pruned, and the input still feed them to b'):
        remove_channels(Net(), {'a': but(4, 0)}, four)

def test_nothing_left():
    net, none = lived_in(Residual()), torch.zeros(6, dtype=torch.bool)
    with pytest.raises(ValueError, match="no channel of 'conv1' would be left.*keep_one=True"):
        remove_channels(net, {'norm1': none}, image)
    assert same(net, {'norm1': none}, image, keep_one=True).conv1.out_channels == 1
    assert same(net, {'norm0': none, 'norm2': none}, image, keep_one=True).stem.out_channels == 1
    some = {'norm1': none, 'norm0': but(6, 1), 'norm2': but(6, 1)}
    assert same(net, some, image, keep_one=True).stem.out_channels == 5

def test_a_constant_block_is_not_cut_from_the_stream():
    "A block with nothing in it puts out its last shift: its norm is not pruned, so the channel stays."
    net = lived_in(Residual())
    masks = {'norm1': torch.zeros(6, dtype=torch.bool), 'norm0': but(6, 1)}
    assert same(net, masks, image, keep_one=True, keep_shared=True).stem.out_channels == 6

def test_norm_without_scales():
    net = lived_in(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, 3)))
    assert channel_groups(net, four) == {'0': ['0', '1']} and same(net, {'0': but(8, 1)}, four)[1].num_features == 7

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(.1, 1))
def test_any_masks(seed, share):
    "Whatever is pruned, shifts too or no padding in the way, the outputs stay."
    net, g = lived_in(Residual(), seed), torch.Generator().manual_seed(seed)
    masks = {f'norm{i}': torch.rand(6 if i < 3 else 12, generator=g) < share for i in range(6)}
    small = same(net, masks, image, keep_shared=True, keep_one=True)
    assert small.norm1.num_features == max(1, int(masks['norm1'].sum()))
    union = int((masks['norm0'] | masks['norm2']).sum())
    alive = union and masks['norm0'].any() and masks['norm1'].any()      # else the stream is constant, and one more may stay
    assert small.norm0.num_features in ({union} if alive else {union, union + 1})

def test_depthwise():
    "A depthwise convolution loses the channel too; its norm decides with the one before."
    net = lived_in(nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6),
                                 nn.ReLU(), nn.Conv2d(6, 5, 1), nn.Flatten(), nn.Linear(80, 2)))
    for masks in ({'1': but(6, 1)}, {'1.weight': but(6, 1)}, {'4.weight': but(6, 1)}):
        small = same(net, masks, image)
        assert small[0].out_channels == small[3].groups == small[3].in_channels == small[3].out_channels == small[6].in_channels == 5
    net[3].padding = (1, 1)
    net[8] = nn.Linear(180, 2)
    net[4].bias.data[1] = 9.                                            # not under relu's 0
    with pytest.raises(ValueError, match="'6', where no bias is exact"): remove_channels(net, {'1.weight': but(6, 1)}, image)
    same(net, {'4.weight': but(6, 1)}, image)

@pytest.mark.parametrize('layer', [nn.Conv2d(6, 4, 3, groups=2), nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(6, 3, 3, groups=3)], ids=str)
def test_grouped_is_refused(layer):
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(layer.out_channels, 2, 1))
    for masks in ({'0': but(6, 1)}, {'2': but(layer.out_channels, 1)}):
        with pytest.raises(ValueError, match="cannot lose a channel alone: '2' is a grouped convolution"):
            remove_channels(net, masks, image)
    assert channel_groups(net, image) == {}

def test_channels_of_an_lstm_are_refused():
    "One entry a channel asks for removal; a mask of single weights stays a mask."
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.l, self.output = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 2)
        def forward(self, x): return self.output(self.l(x)[0][:, -1])
    net, x = Last(), torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match="'weight_ih_l0' computes several channels together"): remove_channels(net, {'l.weight_ih_l0': but(32, 0)}, x)
    single = but(32, 0)[:, None].expand(32, 4)
    assert torch.equal(remove_channels(net, {'l.weight_ih_l0': single}, x).l.weight_ih_l0[0], torch.zeros(4))

@pytest.mark.parametrize('norm', [nn.LayerNorm(8), nn.GroupNorm(2, 8)], ids=str)
def test_norms_over_channels_are_refused(norm):
    net = nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 3))
    for masks in ({'0': but(8, 1)}, {'1.weight': but(8, 1)}, {'1': but(8, 1)}):
        with pytest.raises(ValueError, match=f'alone: .*a {type(norm).__name__}'): remove_channels(net, masks, four)

def test_other_layers():
    "Transposed and one-dimensional convolutions, instance norms, a concatenation, a layer used twice."
    net = nn.Sequential(nn.ConvTranspose2d(1, 6, 2, 2), nn.Sigmoid(), nn.ConvTranspose2d(6, 4, 2, 2), nn.Flatten(), nn.Linear(4096, 2))
    assert same(net, {'2': but(4, 0)}, image)[4].in_features == 3072
    with pytest.raises(ValueError, match="'2', where no bias is exact"): remove_channels(net, {'0': but(6, 1)}, image)
    both = nn.Sequential(*net[:3])
    small = remove_channels(both, {'0': but(6, 1)}, image, approximate=True)
    differ = small(image) - masked(both, {'0': but(6, 1)})(image)
    assert differ.std() > 1e-3 and torch.allclose(differ.mean((2, 3)), torch.zeros(2, 4), atol=1e-6)
    net[1] = nn.ReLU()
    assert same(net, {'0': but(6, 1, 2)}, image)[2].in_channels == 4
    net = lived_in(nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 2, 3)))
    assert same(net, {'1.weight': but(6, 0)}, torch.rand(2, 4, 9))[3].in_channels == 5
    same(lived_in(conv_net(0, norm=nn.InstanceNorm2d)), {'1.weight': but(6, 2)}, image)

class Cat(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(4, 3), nn.Linear(8, 2)
    def forward(self, x, y=None): return self.c(torch.cat([self.a(x), self.b(x if y is None else y)], 1).sigmoid())

def test_concatenation():
    small = same(Cat(), {'a': but(5, 0), 'b': but(3, 2)}, four)
    assert (small.a.out_features, small.b.out_features, small.c.in_features) == (4, 2, 6)

@pytest.mark.parametrize('example', [(four, four), dict(x=four, y=four)], ids=['tuple', 'dict'])
def test_several_inputs(example):
    assert remove_channels(Cat(), {'b': but(3, 2)}, example).c.in_features == 7

def test_a_layer_used_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        def forward(self, x): return self.c(self.b(self.b(self.a(x).sigmoid()).sigmoid()))
    small = same(Twice(), {'a': but(5, 1), 'b': but(5, 1)}, four)
    assert small.b.weight.shape == (4, 4)
    with pytest.raises(ValueError, match='mismatched'): remove_channels(Twice(), {'a': but(5, 1)}, four)

def test_embedding():
    "Integer inputs cannot be followed as numbers; what an embedding puts out can."
    net = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    words = torch.tensor([[1, 2], [0, 6]])
    small = remove_channels(net, {'1': but(6, 0)}, words)
    assert torch.allclose(small(words), masked(net, {'1': but(6, 0)})(words), atol=1e-6) and small[1].out_features == 5

def test_embedding_in_a_stream():
    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.a, self.b = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        def forward(self, x): return self.b((h := self.words(x)) + self.a(h))
    with pytest.raises(ValueError, match='residual shortcuts mismatched'):
        remove_channels(Stream(), {'a': but(4, 0)}, torch.tensor([[3]]))

# --- what stays as it was

def test_modes_and_gradients():
    net = lived_in(Residual()).train()
    net.norm1.eval()
    net.stem.weight.requires_grad_(False)
    small = remove_channels(net, {'norm1': but(6, 0)}, image)
    for name, m in net.named_modules(): assert small.get_submodule(name).training == m.training
    assert {k: p.requires_grad for k, p in small.named_parameters()} == {k: p.requires_grad for k, p in net.named_parameters()}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())

def test_frozen_network():
    net = mlp().requires_grad_(False)
    small = remove_channels(net, {'0': but(8, 0)}, four)
    assert small[0].out_features == 7 and not any(p.requires_grad for p in small.parameters())

def test_wrapped_and_other_precision():
    net = nn.DataParallel(mlp()).double()
    assert remove_channels(net, {'0': but(8, 0)}, four.double())[0].out_features == 7

def test_it_trains():
    small = remove_channels(mlp(), {'0': but(8, 0, 1)}, four)
    run = Run(small, torch.optim.SGD(small.parameters()))
    small(four).sum().backward()
    run.optimizer.step()

# --- groups and choice

def test_groups():
    groups = channel_groups(Residual(), image)
    assert groups == {'stem': ['stem', 'norm0', 'conv2', 'norm2'], 'conv1': ['conv1', 'norm1'], 'conv3': ['conv3', 'norm3'],
                      'conv4': ['conv4', 'norm4', 'short', 'norm5']}

def test_scores_by_hand():
    net = mlp()
    with torch.no_grad(): net[0].weight.copy_(torch.arange(32.).view(8, 4) - 10)
    groups = channel_groups(net, four)
    assert filter_norms(net, groups)['0'].tolist() == (torch.arange(32.).view(8, 4) - 10).abs().sum(1).tolist()
    net = lived_in(Residual())
    assert torch.equal(scale_sizes(net, channel_groups(net, image))['stem'], net.norm0.weight.abs() + net.norm2.weight.abs())
    with pytest.raises(ValueError, match='no norm with scales among 0: score these channels by filter_norms'): scale_sizes(mlp(), groups)
    up = nn.Sequential(nn.ConvTranspose2d(1, 6, 2), nn.ReLU(), nn.Conv2d(6, 2, 1))
    assert torch.equal(filter_norms(up, channel_groups(up, image))['0'], up[0].weight.abs().sum((0, 2, 3)))

@pytest.mark.filterwarnings('ignore:pruning leaves')
@pytest.mark.parametrize('score', [filter_norms, scale_sizes])
@pytest.mark.parametrize('allocation', [per_layer, global_])
def test_choose(score, allocation):
    net = lived_in(Residual())
    masks = choose_channels(net, image, .5, score, allocation)
    assert torch.equal(masks['norm0'], masks['conv2']) and masks.keys() == {'stem', *(f'norm{i}' for i in range(6)), *(f'conv{i}' for i in range(1, 5)), 'short'}
    kept = sum(int(masks[k].sum()) for k in ('stem', 'conv1', 'conv3', 'conv4'))
    assert kept == 18 and size(same(net, masks, image, keep_one=True)) < size(net)

def test_nothing_to_choose():
    with pytest.raises(ValueError, match='no layer of Linear can lose a channel'): choose_channels(nn.Linear(4, 2), four, .5)

# --- refused

@pytest.mark.parametrize('masks, message', [
    ({'0': but(7, 1)}, "mask '0' has 7 entries, its layer 8 channels"),
    ({'5': but(8, 1)}, "mask '5' fits no layer"), ({'1': but(8, 1)}, "mask '1' fits no layer"),
    ({'0.weight': torch.ones(4, 8).bool()}, "shape"), ({'0': torch.ones(8)}, 'not bool'), ({}, 'no masks'),
    ({'2': but(3, 1)}, r"channels 1 of '2' are outputs of the network")])
def test_refused_masks(masks, message):
    with pytest.raises(ValueError, match=message): remove_channels(mlp(), masks, four)

def test_features_that_are_returned():
    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2)
        def forward(self, x): return (h := self.a(x)), self.b(h)
    with pytest.raises(ValueError, match='outputs of the network'): remove_channels(Features(), {'a': but(5, 1)}, four)

def test_code_that_names_the_number():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 5, 3), nn.Linear(180, 2)
        def forward(self, x): return self.b(self.a(x).view(-1, 5*36))
    with pytest.raises(ValueError, match='does not run; does its code name their number'): remove_channels(Named(), {'a': but(5, 1)}, image)

def test_channels_mixed_in_code():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2)
        def forward(self, x):
            h = self.a(x)
            return self.b(h/(1 + h.nan_to_num().abs().mean(1, keepdim=True)))
    with pytest.raises(ValueError, match='puts out something else|mismatched'): remove_channels(Mixed(), {'a': but(5, 1)}, four)
    net = Mixed()
    with torch.no_grad(): list(net.children())[-1].bias[-1] = float('nan')  # is no agreement
    with pytest.raises(ValueError, match='puts out something else|mismatched'): remove_channels(net, {'a': but(5, 1)}, four)

def test_unused_layer():
    net = mlp()
    net.spare = nn.Linear(4, 4)
    net.forward = lambda x: net[2](net[1](net[0](x)))
    with pytest.raises(ValueError, match="'spare' has no part in the outputs"): remove_channels(net, {'spare': but(4, 0)}, four)

def test_torch_prune():
    net = mlp()
    nn.utils.prune.ln_structured(net[0], 'weight', .5, 1, 0)
    with pytest.raises(ValueError, match='from_torch_prune'): remove_channels(net, {'0': but(8, 0)}, four)

def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch_pruning', None)
    with pytest.raises(ImportError, match=r'pip install "lotterybook\[structured\]"'): remove_channels(mlp(), {'0': but(8, 0)}, four)

def test_masks_of_channels_are_those_of_weights():
    "A second route: masks of whole rows, applied by page 200, give the same network."
    net, m = mlp(), but(8, 3)
    by_hand = {'0.weight': m[:, None].expand(8, 4), '0.bias': m}
    a, b = remove_channels(net, {'0': m}, four), remove_channels(net, by_hand, four)
    other = copy.deepcopy(net)
    apply_masks(other, by_hand)
    assert torch.equal(a(four), b(four)) and torch.allclose(a(four), other(four), atol=1e-6)
