"Deep networks: published counts of weights, where they begin, image sizes, schedules, recipes."
import math
from fnmatch import fnmatchcase
import pytest, torch
from sameness import same
from lotterybook.foundations.data import load
from lotterybook.foundations.deep_networks import (
    NETWORKS, RECIPES, ResidualBlock, build, channels_last, conv2, conv4, conv6, conv_net, make_optimizer, recipe_of, resnet20, small_vgg, step_schedule,
    vgg, vgg16, vgg19)
torch.set_num_threads(1)
digits = load('digits')

@pytest.mark.parametrize('name, million', [  # Frankle & Carbin (2019), figure 2; their Conv-6 has 1.7 million, see the page
    ('lenet', .266), ('conv2', 4.3), ('conv4', 2.4), ('resnet18', .271), ('vgg19', 20.0)])
def test_as_many_weights_as_published(name, million):
    n = sum(p.numel() for p in NETWORKS[name]().parameters() if p.dim() > 1)
    assert n/1e6 == pytest.approx(million, rel=.011)

@pytest.mark.parametrize('name', [n for n in NETWORKS if 'vgg' not in n])
def test_every_network_takes_digits_and_a_seed(name):
    net = build(name, digits, seed=3)
    again = build(name, digits, seed=3).state_dict()
    assert all(torch.equal(p, again[k]) for k, p in net.state_dict().items())
    assert net(digits.x_train[:4]).shape == (4, 10)
    assert not torch.equal(build(name, digits, seed=4).output.weight, net.output.weight)

def test_depth():
    "Convolutions of ResNet-20 without its two shortcuts; VGG's without its linear layer."
    def convolutions(net): return [k for k, o in net.named_modules() if isinstance(o, torch.nn.Conv2d)]
    assert sum('shortcut' not in k for k in convolutions(resnet20())) == 19
    assert [k for k in convolutions(resnet20()) if 'shortcut' in k] == ['block21.shortcut.conv', 'block31.shortcut.conv']
    assert [len(convolutions(vgg16())), len(convolutions(vgg19()))] == [13, 16]

def test_names_are_the_builders_with_one_argument_given():
    "The same layers and the same weights."
    for k, named in enumerate((conv2, conv4, conv6), 1):
        assert same(named((1, 8, 8), 7, 3).state_dict(), conv_net(k, (1, 8, 8), 7, 3).state_dict())
    with torch.device('meta'):
        for convolutions, named in (((2, 2, 3, 3, 3), vgg16), ((2, 2, 4, 4, 4), vgg19)):
            assert str(named((1, 16, 20), 7, None, .5)) == str(vgg(convolutions, (1, 16, 20), 7, None, .5))

def test_a_block_adds_to_its_input():
    block = ResidualBlock(4, 4).eval()
    torch.nn.init.zeros_(block.norm2.weight)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), x.relu())
    assert ResidualBlock(4, 8, 2)(x).shape == (2, 8, 3, 3)

def test_he_normal_and_scales():
    net = resnet20(seed=0)
    w = net.block33.conv2.weight
    assert abs(w.std().item()/math.sqrt(2/(9*64)) - 1) < 4/math.sqrt(2*w.numel())
    gammas = torch.cat([o.weight for o in net.modules() if isinstance(o, torch.nn.BatchNorm2d)]).detach()
    assert 0 <= gammas.min() and gammas.max() < 1 and abs(gammas.mean() - .5) < .05
    assert all((o.weight == .5).all() for o in vgg16(gamma=.5).modules() if isinstance(o, torch.nn.BatchNorm2d))

def test_images_too_small():
    assert conv6((3, 8, 8))(torch.zeros(1, 3, 8, 8)).shape == (1, 10)
    with pytest.raises(ValueError, match='4 × 4 pixels too often; it needs 8 × 8'): conv6((3, 4, 4))
    with pytest.raises(ValueError, match='8 × 8 pixels are too few to be halved 4 times'): vgg16((3, 8, 8))
    with pytest.raises(ValueError, match='3 groups of convolutions need as many widths, not 2'): vgg((1, 1, 1), widths=(8, 8))
    with pytest.raises(ValueError, match='known are lenet'): build('lenet5', digits)

def test_schedule_by_hand():
    rate = step_schedule(1., 100, (.5, .75), warmup=.1)
    assert [rate(t) for t in (0, 4, 9, 10, 49)] == pytest.approx([.1, .5, 1, 1, 1])
    assert [rate(t) for t in (50, 74, 75, 99)] == pytest.approx([.1, .1, .01, .01])
    assert step_schedule(.1, 100, ())(99) == .1

def test_shares_scale_with_the_training():
    "However long it is, the rate ends at a hundredth."
    for steps in (4, 60, 1000): assert step_schedule(1., steps)(steps - 1) == pytest.approx(.01)

def test_recipes_fit_their_networks():
    assert RECIPES.keys() == NETWORKS.keys()
    for name, recipe in RECIPES.items():
        with torch.device('meta'): net = NETWORKS[name]()
        names = [k for k, _ in net.named_parameters()]
        for pattern in (*recipe['scale'], *recipe.get('exclude', ())):
            assert any(fnmatchcase(k, pattern) for k in names), (name, pattern)
        kind, group = type(make_optimizer(recipe, net)).__name__, make_optimizer(recipe, net).param_groups[0]
        assert kind == ('FusedAdam' if recipe['optimizer'] == 'adam' else 'SGD')
        assert [group['lr'], group['weight_decay']] == [recipe['lr'], recipe.get('weight_decay', 0)]

@pytest.mark.parametrize('name, kind', [('adam', 'FusedAdam'), ('adamw', 'AdamW'), ('sgd', 'SGD')])
def test_optimizers_of_a_recipe(name, kind):
    recipe = recipe_of('lenet', dict(optimizer=name, lr=.01, weight_decay=.1))
    made   = make_optimizer(recipe, build('lenet', load('digits'), 0))
    group  = made.param_groups[0]
    assert type(made).__name__ == kind and (group['lr'], group['weight_decay']) == (.01, .1)
    assert group.get('momentum', .9) == .9
    assert recipe['batch_size'] == RECIPES['lenet']['batch_size'] and RECIPES['lenet']['lr'] != .01

@pytest.mark.parametrize('changes, why', [
    (dict(optimiser='sgd'), 'optimiser'), (dict(optimizer='lion'), 'lion'), (dict(milestones=[.5, 20_000]), '20000'),
    (dict(milestones=.5), 'a list of shares'), (dict(steps=100), "'steps'")])
def test_recipes_that_no_training_would_follow(changes, why):
    "An entry misspelt would leave the network's own in place, silently."
    with pytest.raises(ValueError, match=why): recipe_of('lenet', changes)
    assert recipe_of('lenet') == RECIPES['lenet']

def test_small_vgg():
    "Six convolutions, scales of 1/2, images from 4 x 4 pixels on."
    net = small_vgg()
    assert [o.out_channels for o in net.modules() if isinstance(o, torch.nn.Conv2d)] == [16, 16, 32, 32, 64, 64]
    assert sum(p.numel() for p in net.parameters() if p.dim() > 1) == 9*(16 + 16*16 + 16*32 + 32*32 + 32*64 + 64*64) + 640
    assert all((o.weight == .5).all() for o in net.modules() if isinstance(o, torch.nn.BatchNorm2d))
    assert not torch.equal(small_vgg(gamma=None).norm11.weight, net.norm11.weight)
    for side in (4, 8, 28): assert small_vgg((1, side, side))(torch.zeros(2, 1, side, side)).shape == (2, 10)
    with pytest.raises(ValueError, match='3 × 28 pixels are too few to be halved 2 times'): small_vgg((1, 3, 28))
    assert torch.equal(build('small_vgg', digits, seed=3).conv32.weight, build('small_vgg', digits, seed=3).conv32.weight)

def layouts(net):
    "A gradient step's gradients, and the strides of the gradient that max pooling gets."
    strides, x = [], torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    net.pool1.register_full_backward_hook(lambda module, into, out: strides.append(out[0].stride(1)))
    torch.nn.functional.cross_entropy(net(x), torch.arange(6)).backward()
    return [p.grad for p in net.parameters()], strides

def test_channels_last_keeps_the_layout_backward_and_the_gradients():
    there, half = channels_last(conv2((1, 8, 8), seed=0)), conv2((1, 8, 8), seed=0).to(memory_format=torch.channels_last)
    (gradients, strides), (wanted, other) = layouts(there), layouts(half)
    assert strides == [1] and other == [16]  # the other one: 4 x 4 pixels of a channel after one another
    assert all(map(torch.equal, gradients, wanted))
    assert torch.equal(there(torch.ones(2, 1, 8, 8)), half(torch.ones(2, 1, 8, 8)))

def test_a_network_without_convolutions_gets_no_hooks():
    "Compiled steps refuse networks with hooks."
    assert not channels_last(build('lenet', digits)).flatten._forward_pre_hooks
    assert channels_last(conv2((1, 8, 8))).flatten._forward_pre_hooks

def test_channels_last_twice_is_once():
    net = channels_last(channels_last(conv2((1, 8, 8))))
    assert len(net.flatten._forward_pre_hooks) == 1

class Branches(torch.nn.Module):
    "Its Flatten is called by name, or with the input itself."
    def __init__(self):
        super().__init__()
        self.conv, self.flatten = torch.nn.Conv2d(2, 2, 3, padding=1), torch.nn.Flatten()
    def forward(self, x): return self.flatten(input=self.conv(x)).sum() + self.flatten(x).sum()

def test_channels_last_in_other_networks():
    "A leaf keeps none of the hooks of a forward pass; a keyword goes the usual way."
    net = channels_last(Branches())
    x = torch.rand(3, 2, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    for _ in range(3): net(x).backward()
    assert not x._backward_hooks
    plain = Branches()
    plain.load_state_dict(net.state_dict())
    assert torch.allclose(net(x), plain(x))

def test_channels_last_under_vmap():
    from torch.func import functional_call, grad, vmap
    net  = channels_last(conv2((1, 8, 8), seed=0))
    x, y = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    def loss(p, x, y): return torch.nn.functional.cross_entropy(functional_call(net, p, (x[None],)), y[None])
    each = vmap(grad(loss), (None, 0, 0))({k: p.detach() for k, p in net.named_parameters()}, x, y)
    torch.nn.functional.cross_entropy(net(x), y).backward()
    for k, p in net.named_parameters(): torch.testing.assert_close(each[k].mean(0), p.grad, rtol=1e-4, atol=1e-6)
