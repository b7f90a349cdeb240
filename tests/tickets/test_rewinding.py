"Weights are remembered as copies and taken back whole; those of another network are refused by name."
import copy
from functools import partial
import pytest, torch
from sameness import same
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.networks import batchnorm_mlp, lenet
from lotterybook.pruning.masks import full_masks
from lotterybook.tickets.rewinding import check_fit, rewind
torch.set_num_threads(1)
make = partial(batchnorm_mlp, 64, seed=0)

def a_few_steps(net, steps=5):
    "Training that moves every entry, running statistics and counters too."
    optimizer = torch.optim.SGD(net.parameters(), .1)
    for i in range(steps):
        x = torch.randn(16, 64, generator=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return net

def some_masks(net):
    g = torch.Generator().manual_seed(0)
    return {k: torch.rand(m.shape, generator=g) < .3 for k, m in full_masks(net).items()}

# --- remembering

def test_a_snapshot_is_whole():
    "Weights and buffers, none left out."
    theta = snapshot(make())
    assert list(theta) == list(make().state_dict())
    assert {'norm1.running_mean', 'norm1.num_batches_tracked', 'norm1.weight', 'output.bias'} <= theta.keys()

def test_a_snapshot_is_a_copy():
    "No memory in common with the network, and no graph behind it; a state_dict has both."
    net = make()
    theta, alias = snapshot(net), net.state_dict()
    places = {v.data_ptr() for v in alias.values()}
    assert not places & {v.data_ptr() for v in theta.values()}
    assert not any(v.requires_grad for v in theta.values())
    with torch.no_grad(): net.output.bias += 1
    assert alias['output.bias'].equal(theta['output.bias'] + 1)

# --- taking back

def test_everything_is_taken_back():
    "All entries; training again does not reach what was kept, so a second time works as well."
    net = make()
    theta = snapshot(net)
    before = copy.deepcopy(theta)
    a_few_steps(net)
    for k, v in net.state_dict().items(): assert not v.equal(theta[k]), k
    assert rewind(net, theta) is net and same(snapshot(net), theta)
    a_few_steps(net)
    assert same(theta, before)
    assert same(snapshot(rewind(net, theta)), before)

def test_as_good_as_a_new_network():
    "Trained alike after rewinding, both end with the same bits."
    net = make()
    theta = snapshot(net)
    a_few_steps(rewind(a_few_steps(net), theta))
    assert same(net.state_dict(), a_few_steps(make()).state_dict())

def test_under_a_mask():
    "Pruned weights are zero, all others as they were; the optimizer's tensors stay the network's."
    net = make()
    theta, masks, places = snapshot(net), some_masks(net), [p.data_ptr() for p in net.parameters()]
    rewind(a_few_steps(net), theta, masks)
    for k, v in net.state_dict().items():
        assert v.equal(torch.where(masks[k], theta[k], 0) if k in masks else theta[k]), k
    assert [p.data_ptr() for p in net.parameters()] == places

@pytest.mark.parametrize('theta_of', [snapshot, lambda net: net.state_dict()])
def test_inside_a_wrapper(theta_of):
    "A compiled network takes weights by the names inside it, or its own state_dict."
    net = torch.compile(make())
    theta = copy.deepcopy(theta_of(net))
    a_few_steps(net._orig_mod)
    assert same(rewind(net, theta)._orig_mod.state_dict(), make().state_dict())

# --- what does not fit

def test_it_fits():
    assert check_fit(snapshot(make()), make()) is None

@pytest.mark.parametrize('change, why', [
    (lambda theta: theta.pop('norm2.running_var'), 'norm2.running_var is missing'),
    (lambda theta: theta.update(extra=torch.ones(1)), 'extra is not in the network'),
    (lambda theta: theta.update({'output.bias': torch.ones(3)}), r'output.bias has shape \(3,\), in the network \(10,\)'),
    (lambda theta: theta.update({'output.bias': torch.ones(10, dtype=torch.int64)}), 'output.bias is torch.int64')])
def test_weights_of_another_architecture(change, why):
    "Each entry that differs is named, and the network stays as it was."
    net, theta = make(), snapshot(make())
    change(theta)
    with pytest.raises(ValueError, match=why): check_fit(theta, net)
    with pytest.raises(ValueError, match=why): rewind(net, theta)
    assert same(net.state_dict(), make().state_dict())

def test_another_input_or_width():
    with pytest.raises(ValueError, match=r'layer1.weight has shape \(300, 64\), in the network \(200, 64\)'):
        rewind(make(), snapshot(lenet(64)))
    with pytest.raises(ValueError, match=r'^mine: of another architecture: layer1.weight has shape \(300, 64\), in the network \(300, 784\)$'):
        check_fit(snapshot(lenet(64)), lenet(784), 'mine')

def test_a_mask_without_a_weight():
    with pytest.raises(ValueError, match="'layer9.weight' fits no parameter"):
        rewind(make(), snapshot(make()), {'layer9.weight': full_masks(make())['layer1.weight']})
