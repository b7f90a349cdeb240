"Networks: sizes and names, published distributions, seeds, unknown names."
import math
import pytest, torch
from lotterybook.foundations.networks import batchnorm_mlp, glorot_normal_, lenet
torch.set_num_threads(1)

def test_lenet_is_the_network_of_the_paper():
    net = lenet(seed=0)
    weights = {k: p for k, p in net.named_parameters() if p.dim() > 1}
    assert {k: tuple(p.shape) for k, p in weights.items()} == {'layer1.weight': (300, 784), 'layer2.weight': (100, 300), 'output.weight': (10, 100)}
    assert sum(p.numel() for p in weights.values()) == 266_200  # the paper's count
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)

def test_glorot_normal():
    "The standard deviation of n numbers is certain to 1/√(2n); in a normal distribution 68.3 % lie within one, in a uniform one 57.7 %."
    net = lenet(seed=0)
    for name, p in net.named_parameters():
        if name.endswith('bias'): assert (p == 0).all()
        else: assert abs(p.std().item()/math.sqrt(2/sum(p.shape)) - 1) < 4/math.sqrt(2*p.numel())
    w = net.layer1.weight.detach()
    assert ((w/w.std()).abs() < 1).float().mean().item() == pytest.approx(.683, abs=.005)

def test_a_seed_fixes_every_weight():
    "Without one, PyTorch's global generator does."
    net = lenet(seed=0)
    for k, p in lenet(seed=0).state_dict().items(): assert torch.equal(p, net.state_dict()[k])
    assert not torch.equal(lenet(seed=1).output.weight, net.output.weight)
    torch.manual_seed(0); one = lenet(64)
    torch.manual_seed(0); assert torch.equal(lenet(64).output.weight, one.output.weight)

def test_batchnorm_mlp():
    net = batchnorm_mlp(64, 10, (20, 8), seed=0)
    assert [k for k, _ in net.named_children()] == ['flatten', 'layer1', 'norm1', 'relu1', 'layer2', 'norm2', 'relu2', 'output']
    assert torch.equal(net.norm2.weight, torch.full((8,), .5))
    assert net(torch.zeros(3, 64)).shape == (3, 10)

def test_a_shape_is_as_good_as_a_number():
    for net in (lenet, batchnorm_mlp):
        a, b = net(784, seed=0).state_dict(), net((1, 28, 28), seed=0).state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)

def test_convolutions_count_their_window():
    "Fan-in and fan-out of a convolution: channels times the numbers in its window."
    conv = glorot_normal_(torch.nn.Sequential(torch.nn.Conv2d(64, 128, 3)))[0]
    assert abs(conv.weight.std().item()/math.sqrt(2/(9*64 + 9*128)) - 1) < 4/math.sqrt(2*conv.weight.numel())
    assert (conv.bias == 0).all()
