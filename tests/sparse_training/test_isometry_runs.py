"One number a layer sets the mean square of its spectrum; a replicate of experiment 968 is what its parts say."
import copy
import json
import math
import pytest
from sameness import same
import torch
from torch import nn
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.data import load
from lotterybook.foundations.randomness import rng
from lotterybook.foundations.running import Run
from lotterybook.foundations.training import classification, train_run
from lotterybook.pruning.allocation import per_layer
from lotterybook.pruning.masks import apply_masks, full_masks
from lotterybook.pruning.scores import random_scores
from lotterybook.sparse_training import isometry
from lotterybook.sparse_training.isometry import (
    enforce_isometry, isometry_gap, isometry_run, jacobian_singular_values, scale_layers)
from lotterybook.sparse_training.snip import prune_to, snip

SETTINGS = dict(data='digits', steps=40, batch_size=50, lr=.1, eval_every=10, target=.5,
                repair_steps=50, images=3)

def pruned_net(density=.3):
    "Two shapes of matrices and a convolution, and random masks."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 7), nn.Linear(7, 9))
    masks = full_masks(net)
    return net, per_layer(random_scores(net, masks, rng(0, 'mask')), masks, 1 - density)

# one number a layer

@pytest.mark.parametrize('gain', [1., math.sqrt(2)])
def test_the_mean_square_of_each_spectrum(gain):
    net, masks = pruned_net()
    before = snapshot(net)
    scale_layers(net, masks, gain)
    for name, mask in masks.items():
        w, old = net.get_parameter(name).detach(), before[name]
        values = torch.linalg.svdvals(w.flatten(1).double())
        assert float(values.square().mean()) == pytest.approx(gain**2, rel=1e-5)
        ratio = w[mask]/old[mask]
        assert torch.allclose(ratio, ratio[0].expand_as(ratio)) and not w[~mask].any()
    for name in before.keys() - masks.keys(): assert same(net.state_dict()[name], before[name])

def test_what_cannot_be_scaled_stays():
    net, masks = pruned_net()
    masks['2.weight'] = torch.zeros_like(masks['2.weight'])
    net[3].weight.requires_grad_(False)
    frozen = net[3].weight.clone()
    scale_layers(net, masks)
    assert not net[2].weight.any() and net[3].weight.equal(frozen)
    assert net[0].weight.norm().item() == pytest.approx(2., rel=1e-5)  # 4 rows

@pytest.mark.parametrize('factor', [1e-25, 1e-20, 1e20, 1e30])
def test_weights_whose_squares_leave_float32(factor):
    "They are scaled like all others, to the same weights."
    net, masks = pruned_net()
    scale_layers(net, masks)
    other, _ = pruned_net()
    with torch.no_grad(): other[2].weight.mul_(factor)
    scale_layers(other, masks)
    assert torch.allclose(other[2].weight, net[2].weight, rtol=1e-5)

@pytest.mark.parametrize('gain', [0, -1., math.nan, math.inf])
def test_gains_that_are_none(gain):
    net, masks = pruned_net()
    before = snapshot(net)
    with pytest.raises(ValueError, match='gain=.* must be a finite number above 0'): scale_layers(net, masks, gain)
    assert same(snapshot(net), before)

@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(bad):
    "Before any layer is scaled. A gain that is too large for the weights' numbers is no better."
    net, masks = pruned_net()
    before = snapshot(net)
    with pytest.raises(ValueError, match='would with gain=1e.300'): scale_layers(net, masks, 1e300)
    with torch.no_grad(): net[3].weight[masks['3.weight'].nonzero()[0].unbind()] = bad
    with pytest.raises(ValueError, match="'3.weight' holds numbers that are not finite"): scale_layers(net, masks)
    assert same({k: v for k, v in net.state_dict().items() if k != '3.weight'}, {k: v for k, v in before.items() if k != '3.weight'})

def test_scaling_twice_is_scaling_once():
    net, masks = pruned_net()
    scale_layers(net, masks)
    once = snapshot(net)
    scale_layers(net, masks)
    assert all(torch.allclose(net.state_dict()[name], once[name]) for name in once)

# one replicate

@pytest.fixture(scope='module')
def result(): return isometry_run(dict(net='tanh', density=.1, seed=1), SETTINGS)

def test_rows_and_courses(result):
    rows, courses = result['rows'], result['courses']
    assert [r['method'] for r in rows] == ['pruned', 'scaled', 'enforced', 'enforced_scaled']
    assert {r['remaining'] for r in rows} == {round(.1*57_400)/57_400}
    assert [(o['method'], o['step']) for o in courses] == [(r['method'], step) for r in rows
                                                           for step in (0, 10, 20, 30, 40)]
    assert not any(r['diverged'] for r in rows) and result['seconds'] > 0
    json.dumps(result, allow_nan=False)

def test_a_replicate_by_its_parts(result):
    "The plain way: SNIP over all training images, the repairs, the book's training."
    data = load('digits', 1)
    net  = isometry._deep_net('tanh', 64, 10, 1)
    batches = list(zip(data.x_train.split(100), data.y_train.split(100)))
    masks = prune_to(net, .1, snip, classification(), batches)
    apply_masks(net, masks)
    nets = dict(pruned=net, scaled=copy.deepcopy(net), enforced=copy.deepcopy(net))
    scale_layers(nets['scaled'], masks)
    enforce_isometry(nets['enforced'], masks, 50)
    nets['enforced_scaled'] = copy.deepcopy(nets['enforced'])
    scale_layers(nets['enforced_scaled'], masks)
    for row in result['rows']:
        net = nets[row['method']]
        values = jacobian_singular_values(net, data.x_test[:3])
        found = [values.mean(), values.amax(1).mean(), values.amin(1).mean(),
                 (values.amin(1)/values.amax(1)).mean(), sum(isometry_gap(net, masks).values())]
        assert found == pytest.approx([row[k] for k in ('singular', 'largest', 'smallest',
                                                        'reciprocal_condition', 'gap')], rel=1e-3)
        outcome = train_run(Run(net, torch.optim.SGD(net.parameters(), .1), masks, 1), data, 40, 50,
                            eval_every=10)
        assert outcome['end_accuracy'] == pytest.approx(row['accuracy'], abs=.005)
        course = [o for o in result['courses'] if o['method'] == row['method']][1:]
        assert ([o['validation_loss'] for o in outcome['history']] ==
                pytest.approx([o['validation_loss'] for o in course], rel=1e-3))

def test_repeats_and_depends_on_the_seed():
    config, short = dict(net='relu', density=.2, seed=0), SETTINGS | dict(steps=10)
    def found(**other): return {k: v for k, v in isometry_run(config | other, short).items()
                                if k != 'seconds'}
    assert found() == found() != found(seed=1)

@pytest.mark.parametrize('kind,gain', [('tanh', 1.), ('relu', math.sqrt(2)), ('tanh_glorot', None)])
def test_initial_weights(kind, gain):
    "Of one seed whatever the density; orthogonal with the gain of the activation, or not at all."
    nets = [isometry._deep_net(kind, 64, 10, 3) for _ in range(2)]
    assert same(*(net.state_dict() for net in nets))
    layers = [layer for layer in nets[0] if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in layers] == [(100, 64), *[(100, 100)]*5, (10, 100)]
    for layer in layers:
        values = torch.linalg.svdvals(layer.weight.detach())
        if gain: assert torch.allclose(values, torch.tensor(gain).expand_as(values), atol=1e-4)
        else: assert values[-1] < .9*values[0]
        assert not layer.bias.any()

def test_the_dense_network_is_one_row():
    rows = isometry_run(dict(net='relu', density=1, seed=0), SETTINGS | dict(steps=10))['rows']
    assert [r['method'] for r in rows] == ['dense'] and rows[0]['remaining'] == 1
    assert rows[0]['gap'] < 1e-3

def test_a_training_that_diverges_is_a_row():
    found = isometry_run(dict(net='relu', density=1, seed=0), SETTINGS | dict(lr=1e30))
    row, = found['rows']
    assert row['diverged'] and row['reached'] == 40 and 0 <= row['accuracy'] <= 1
    assert len(found['courses']) < 5
    json.dumps(found, allow_nan=False)

@pytest.mark.parametrize('accuracies,reached', [
    ((.1, .5, .9), 14.),    # between two validations, on a straight line
    ((.1, .1, .66), 20.), ((.66, .9, .9), 0.), ((.7, .1, .1), 0.), ((.1, .66, .1), 10.),
    ((.1, .2, .3), 99.)])   # not in this training
def test_steps_to_an_accuracy(accuracies, reached):
    course = [dict(step=10*i, validation_accuracy=a) for i, a in enumerate(accuracies)]
    assert isometry._steps_to(course, .66, 99) == pytest.approx(reached)

def test_an_unknown_network():
    with pytest.raises(ValueError, match='net'):
        isometry_run(dict(net='linear', density=.1, seed=0), SETTINGS)

@pytest.mark.parametrize('changes,why', [
    (dict(images=0), 'images=0'), (dict(images=10**4), 'images=10000 is more than'), (dict(target=math.nan), 'target=nan'), (dict(target=90), 'target=90'),
    (dict(steps=0), 'steps=0'), (dict(repair_steps=2.5), 'repair_steps=2.5'), (dict(lr=0), 'lr=0'), (dict(lr=math.nan), 'lr=nan')])
def test_odd_settings_are_refused(changes, why, monkeypatch):
    "Before anything is pruned or trained; also one that is missing."
    monkeypatch.setattr(isometry, '_deep_net', None)
    with pytest.raises(ValueError, match=why): isometry_run(dict(net='tanh', density=1, seed=0), SETTINGS | changes)
    missing = {k: v for k, v in SETTINGS.items() if k not in changes}
    with pytest.raises(ValueError, match=f'settings lack {list(changes)[0]}'): isometry_run(dict(net='tanh', density=1, seed=0), missing)
