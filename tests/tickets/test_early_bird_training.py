"Training of early birds: pruned where the masks settle, killed in both parts, other rates, fewer bits."
from functools import partial
import pytest, torch
from sameness import same
from torch import nn
from early_bird_parts import small_run, weight_masks
from lotterybook.foundations.checkpoints import advance_kept, snapshot
from lotterybook.foundations.data import load
from lotterybook.foundations.hooks import LearningRate
from lotterybook.foundations.networks import batchnorm_mlp, lenet
from lotterybook.foundations.randomness import rng
from lotterybook.foundations.running import Hook, advance
from lotterybook.foundations.training import classification, example_batches
from lotterybook.pruning.masks import apply_masks, kept
from lotterybook.pruning.structured_pruning import remove_channels
from lotterybook.tickets.early_bird import EarlyBird, channel_masks
from lotterybook.tickets.early_bird_training import (
    low_precision, rewound_rate, train_early_bird, with_shifts)
from lotterybook.tickets.rewinding import rewind
torch.set_num_threads(1)

digits = load('digits')
loss   = classification()
half   = partial(channel_masks, prune_ratio=.5)

def batches(seed=0): return example_batches(digits.x_train, digits.y_train, 100, seed)

def train(run, masks_of=half, hooks=(), **options):
    bird = EarlyBird(masks_of, 5, threshold=.6, stop=False)
    return train_early_bird(run, loss, batches(), 50, bird, hooks, **options)

# --- channels that are gone

def disturbed():
    "A network as after some training."
    net = batchnorm_mlp(64, seed=0)
    g = rng(0, 'disturbed')
    with torch.no_grad():
        for p in net.parameters(): p.add_(.3*torch.randn(p.shape, generator=g))
    return net

def test_a_pruned_channel_is_gone():
    "With its shift masked, too, as if it had never been; with the scale alone it still adds a constant."
    pytest.importorskip('torch_pruning', reason='pip install "lotterybook[structured]"')
    net, x = disturbed(), torch.randn(50, 64, generator=rng(0, 'inputs'))
    masks, theta = channel_masks(net, .5), snapshot(net)
    small = remove_channels(net, with_shifts(masks), x)
    apply_masks(net, with_shifts(masks))
    for mode in (True, False):
        assert (net.train(mode)(x) - small.train(mode)(x)).abs().max() < 1e-4
    apply_masks(rewind(net, theta), masks)
    assert (net.eval()(x) - small.eval()(x)).abs().max() > .1

def test_shifts_of_scales_only():
    "Masks of weights have none, and a layer's bias is not one."
    scale, weight = torch.tensor([True, False]), torch.ones(2, 3).bool()
    both = with_shifts({'norm.weight': scale, 'layer.weight': weight})
    assert both.keys() == {'norm.weight', 'norm.bias', 'layer.weight'} and both['norm.bias'] is scale
    with pytest.raises(ValueError, match="'norm.bias' is not the scale"): with_shifts({'norm.bias': scale})

# --- the training

@pytest.mark.parametrize('masks_of', [half, weight_masks])
def test_it_is_search_prune_continue(masks_of):
    "Step by step the same bits; what is pruned is zero at the end, and so is its momentum."
    run, by_hand = small_run(), small_run()
    epoch = train(run, masks_of)
    advance(by_hand, loss, batches(), 50, [EarlyBird(masks_of, 5, threshold=.6)])
    found = by_hand.extra['early_bird']
    assert epoch == found['epoch'] == by_hand.step//5 < 10
    by_hand.set_masks(with_shifts(found['masks']))
    by_hand.stopped, found['pruned'] = False, True
    advance(by_hand, loss, batches(), 50)
    assert same(run.state_dict(), by_hand.state_dict()) and run.step == 50
    run.held.check()
    for name, mask in run.masks.items():
        p = run.net.get_parameter(name)
        assert not run.optimizer.state[p]['momentum_buffer'][~mask].any() and not p[~mask].any()

def test_never_settled():
    "Nothing is pruned, and the answer says so; a mask that flips never settles."
    flip = iter([True, False]*9)
    def at_random(net): return {'norm1.weight': torch.tensor([next(flip)]*20)}
    run, plain = small_run(), small_run()
    assert train(run, at_random) is None and run.step == 50 and not run.masks
    assert same(run.net.state_dict(), advance(plain, loss, batches(), 50).net.state_dict())

def test_the_search_may_have_its_own_objective():
    steps = dict(search=0, after=0)
    def counted(name):
        def objective(net, batch):
            steps[name] += 1
            return loss(net, batch)
        return objective
    bird = EarlyBird(half, 5, threshold=.6, stop=False)
    epoch = train_early_bird(small_run(), counted('after'), batches(), 50, bird, search=counted('search'))
    assert steps == dict(search=5*epoch, after=50 - 5*epoch)

class Kill(Hook):
    def __init__(self, step): self.step = step
    def after_step(self, run):
        if run.step == self.step: raise KeyboardInterrupt

@pytest.mark.parametrize('step', [3, 24, 26, 33, 49])
@pytest.mark.parametrize('every', [5, 7])
def test_killed_and_resumed(step, every, tmp_path):
    "In the search, at its end, and after pruning: the same bits, and the search is not repeated."
    searched = []
    def rough(net, batch): searched.append(1); return loss(net, batch)
    kept_in = partial(advance_kept, file=tmp_path/'run', settings={}, every=every)
    whole = small_run()
    epoch = train(whole, search=rough)
    assert epoch == 5
    with pytest.raises(KeyboardInterrupt):
        train(small_run(), hooks=[Kill(step)], advance=kept_in, search=rough)
    del searched[:]
    again = small_run()
    assert train(again, advance=kept_in, search=rough) == epoch
    assert same(again.state_dict(), whole.state_dict()) and len(searched) == max(0, 5*epoch - step//every*every)

def test_what_was_pruned_before_stays_pruned():
    "A run that comes with masks of weights keeps them beside those of channels."
    run = small_run()
    before = weight_masks(run.net)
    run.set_masks(before)
    assert train(run) == 5 and run.masks.keys() == before.keys() | {
        f'norm{k}.{own}' for k in (1, 2) for own in ('weight', 'bias')}
    run = small_run()
    run.set_masks(before)
    assert train(run, lambda net: {'layer1.weight': ~before['layer1.weight']}) == 5
    assert not run.masks['layer1.weight'].any() and run.masks['layer2.weight'].equal(before['layer2.weight'])

def test_it_prunes_once():
    "A hook that regrows afterwards is not undone."
    class Regrow(Hook):
        def after_step(self, run):
            if run.step == 40: run.set_masks({k: m | True for k, m in run.masks.items()})
    run = small_run()
    assert train(run, hooks=[Regrow()]) == 5 and run.masks and all(m.all() for m in run.masks.values())

def test_another_hook_stops_the_run():
    "For good: it is not an early bird that was found."
    class Stop(Hook):
        def __init__(self, step): self.step = step
        def after_step(self, run): run.stopped |= run.step == self.step
    run = small_run()
    assert train(run, hooks=[Stop(7)]) is None and run.step == 7 and run.stopped
    run = small_run()
    assert train(run, hooks=[Stop(40)]) == 5 and run.step == 40 and run.stopped
    assert train(run) == 5 and run.step == 40

def test_trainings_that_are_refused():
    with pytest.raises(ValueError, match='would stop the run: make it with stop=False'):
        train_early_bird(small_run(), loss, batches(), 50, EarlyBird(half, 5))

# --- learning rates

def test_the_schedule_begins_again():
    "By hand: 20 steps, found after 8: the whole schedule in 12 steps, first to last part."
    def rate(step): return 1. if step < 10 else .1 if step < 15 else .01
    now, run = rewound_rate(rate, 4, 20), small_run()
    for run.step in range(20): assert now(run) == rate(run.step)
    run.extra['early_bird'] = dict(epoch=2, masks={})
    rates = []
    for run.step in range(8, 20): rates.append(now(run))
    assert rates == [1.]*6 + [.1]*3 + [.01]*3

def test_rates_of_a_training():
    seen = {}
    class See(Hook):
        def before_step(self, run): seen[run.step] = run.optimizer.param_groups[0]['lr']
    def rate(step): return .05 if step < 25 else .005
    assert train(small_run(), hooks=[LearningRate(rewound_rate(rate, 5, 50)), See()]) == 5
    assert [seen[k] for k in (0, 24, 25, 37, 38, 49)] == [.05, .05, .05, .05, .005, .005]

# --- fewer bits

def gradients(objective, net, batch):
    net.zero_grad()
    value = objective(net, batch)
    value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in net.named_parameters()}

@pytest.mark.parametrize('kind', ['bfloat16', 'int8'])
@pytest.mark.parametrize('net', [
    batchnorm_mlp(64, seed=0), lenet(64, seed=0),
    nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3, stride=2),
                  nn.Flatten(), nn.LazyLinear(10))])
def test_rough_is_near_and_not_equal(kind, net):
    "Loss and gradients; the network is its own again, and its parameters are the same objects."
    batch = digits.x_train[:50].flatten(1), digits.y_train[:50]
    net(batch[0])
    before, names = [id(p) for p in net.parameters()], list(net.state_dict())
    exact, rough = gradients(loss, net, batch), gradients(low_precision(loss, kind), net, batch)
    assert exact[0] != rough[0] and abs(exact[0] - rough[0]) < .05*exact[0] and rough[0].dtype == torch.float32
    for name, g in exact[1].items():
        assert rough[1][name].dtype == g.dtype and (g - rough[1][name]).norm() < .3*g.norm() + 1e-4
    assert [id(p) for p in net.parameters()] == before and list(net.state_dict()) == names
    assert all('forward' not in vars(m) for m in net.modules())

def test_eight_bits_by_hand():
    "255 levels between -max and max: with a largest weight of 1.27 the steps are 0.01; the gradient is the input's."
    net = nn.Linear(3, 1, bias=False)
    with torch.no_grad(): net.weight.copy_(torch.tensor([[1.27, -.123, .004]]))
    x = torch.tensor([[1.27, 1.27, 1.27]])
    out = low_precision(lambda net, x: net(x).sum(), 'int8')(net, x)
    out.backward()
    assert out.item() == pytest.approx(1.27*(1.27 - .12 + 0), rel=1e-6)
    assert torch.allclose(net.weight.grad, x)

@pytest.mark.parametrize('x', [torch.zeros(2, 3), torch.full((2, 3), 1e-38)])
def test_inputs_and_weights_of_zero(x):
    "No division by zero, and the gradient passes: a weight of zero could not grow otherwise."
    net = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(net.weight)
    x = x.clone().requires_grad_()
    out = low_precision(lambda net, x: (net(x) + x.sum(1, keepdim=True)).sum(), 'int8')(net, x)
    out.backward()
    assert out.isfinite() and torch.equal(x.grad, torch.full((2, 3), 2.))
    low_precision(lambda net, x: net(x).sum(), 'int8')(net, torch.ones(2, 3)).backward()
    assert torch.equal(net.weight.grad, torch.full((2, 3), 2.))

def test_an_error_leaves_the_network_whole():
    net = batchnorm_mlp(64)
    def fails(net, batch):
        net(batch)
        raise RuntimeError('a mistake')
    with pytest.raises(RuntimeError, match='a mistake'): low_precision(fails, 'int8')(net, digits.x_train[:5])
    assert all('forward' not in vars(m) for m in net.modules())
    assert all(isinstance(p, nn.Parameter) for p in net.parameters())
    with pytest.raises(RuntimeError): low_precision(loss, 'int8')(net, (torch.ones(2, 5), torch.zeros(2).long()))
    assert isinstance(net.layer1.weight, nn.Parameter)

def test_precisions_that_are_refused():
    with pytest.raises(ValueError, match="unknown precision 'int4'"): low_precision(loss, 'int4')

@pytest.mark.parametrize('kind', ['bfloat16', 'int8'])
def test_a_rough_search_then_exact(kind):
    "The masks are near those of the exact search, and it goes on in float32."
    run, exact = small_run(), small_run()
    assert train(run, search=low_precision(loss, kind)) and train(exact)
    assert kept(run.masks).keys() == kept(exact.masks).keys() and run.loss.dtype == torch.float32
