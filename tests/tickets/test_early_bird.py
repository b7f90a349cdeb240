"Masks of channels: exact, named after scales, warned of where training has no part in them; when they settle."
import warnings
from functools import partial
import pytest, torch
from sameness import same
from torch import nn
from torch.nn import functional as F
from early_bird_parts import small_run, weight_masks
from lotterybook.foundations.checkpoints import advance_kept
from lotterybook.foundations.data import load
from lotterybook.foundations.networks import batchnorm_mlp, lenet
from lotterybook.foundations.randomness import rng
from lotterybook.foundations.results import interval
from lotterybook.foundations.running import Hook, Run
from lotterybook.foundations.training import classification, example_batches
from lotterybook.pruning.allocation import per_layer
from lotterybook.pruning.masks import distance, full_masks, kept
from lotterybook.pruning.schedules import pruner
from lotterybook.tickets.early_bird import (
    EarlyBird, chance_distance, channel_masks, distance_matrix, layer_distances, newest_distances,
    norm_scales, scale_penalty, settled)
from lotterybook.tickets.iterative import tickets
torch.set_num_threads(1)

def row(text): return {'a.weight': torch.tensor([c == '1' for c in text])}

@pytest.fixture
def six():
    "Two layers of three channels."
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([.9, .1, .4]))
        net[3].weight.copy_(torch.tensor([-.8, .2, .3]))
    return net

# --- masks of channels

def test_by_hand(six):
    "The three largest of six, named after the scales; or two of each layer."
    masks = channel_masks(six, .5)
    assert {k: m.tolist() for k, m in masks.items()} == {
        '1.weight': [True, False, True], '3.weight': [True, False, False]}
    assert list(kept(channel_masks(six, .34, per_layer)).values()) == [2, 2]

@pytest.mark.parametrize('p', [.01, .3, .5, .99])
@pytest.mark.filterwarnings('ignore')
def test_exact_though_all_are_tied(p):
    assert sum(kept(channel_masks(batchnorm_mlp(64), p, least=0)).values()) == 300 - round(300*p)

def test_untrained_networks_are_warned_of():
    "All scales are one half: the masks of two networks are the same, and mean nothing."
    with pytest.warns(UserWarning, match='all 300 channels score 0.5'):
        masks, other = (channel_masks(batchnorm_mlp(64, seed=s), .5, least=0) for s in (0, 1))
    assert kept(masks) == {'norm1.weight': 150, 'norm2.weight': 0} and distance(masks, other) == 0

def test_a_strict_threshold():
    "The released code: nothing is kept where all are tied, and one too few otherwise."
    tied, distinct = torch.full((300,), .5), torch.randn(300, generator=rng(0, 'distinct'))
    assert (tied > tied.sort().values[150]).sum() == 0
    assert (distinct > distinct.sort().values[150]).sum() == 149

def test_masks_that_are_refused(six):
    with pytest.raises(ValueError, match='has no batch-norm layer'): channel_masks(lenet(64), .5)
    with pytest.raises(ValueError, match='prune_ratio=1.0 must lie between 0 and 1'): channel_masks(six, 1.)
    with torch.no_grad(): six[3].weight[1] = float('nan')
    with pytest.raises(ValueError, match="1 scores of '3.weight' are NaN"): channel_masks(six, .5)

# --- the penalty

def test_the_penalty_is_the_released_code():
    "Added to the loss or to the gradient: the learning rate multiplies it once; a scale at 0 stays."
    x, y = torch.randn(20, 64, generator=rng(0, 'inputs')), torch.arange(20) % 10
    def one_step(in_loss=0., in_gradient=0.):
        net = batchnorm_mlp(64, seed=0)
        optimizer = torch.optim.SGD(net.parameters(), lr=.1)
        (F.cross_entropy(net(x), y) + scale_penalty(net, in_loss)).backward()
        for gamma in norm_scales(net).values(): gamma.grad += in_gradient*gamma.detach().sign()
        optimizer.step()
        return net.norm1.weight.detach()
    plain, full = one_step(), torch.ones(200)
    assert (one_step(.01) - one_step(0., .01)).abs().max() < 1e-7
    assert (plain - one_step(.01) - .1*.01*full).abs().max() < 1e-6
    assert (plain - one_step(0., .1*.01) - .1*.1*.01*full).abs().max() < 1e-6
    gamma = torch.zeros(1, requires_grad=True)
    gamma.abs().sum().backward()
    assert gamma.grad == 0

# --- distances

def test_distances():
    "By hand; of one mask; of masks that do not fit."
    d = distance_matrix([row('1100'), row('1010'), row('0011')])
    assert torch.allclose(d, torch.tensor([[0, .5, 1], [.5, 0, .5], [1, .5, 0]]))
    assert distance_matrix([row('10')]).equal(torch.zeros(1, 1))
    with pytest.raises(ValueError, match='shapes'): distance_matrix([row('10'), row('100')])

def test_distances_within_layers_and_by_chance():
    a = dict(one=torch.tensor([1, 1, 0, 0]).bool(), two=torch.tensor([1, 0]).bool())
    b = dict(one=torch.tensor([1, 0, 0, 0]).bool(), two=torch.tensor([1, 1]).bool())
    assert layer_distances(a, b) == pytest.approx(dict(one=.25, two=.5))
    assert distance(a, b) == pytest.approx((4*.25 + 2*.5)/6)
    assert chance_distance(a, b) == pytest.approx(((2*3 + 1*2)/4 + (1*0 + 2*1)/2)/6)
    assert chance_distance(row('1111'), row('0000')) == 1
    with pytest.raises(ValueError, match='only one has a mask for'): layer_distances(a, row('1111'))

def test_chance_by_shuffling():
    "A second route: the mean over two hundred pairs of shuffled masks."
    g = rng(0, 'shuffled masks')
    def some(share): return {k: torch.rand(n, generator=g) < share for k, n in dict(a=200, b=100).items()}
    def shuffled(masks): return {k: m[torch.randperm(len(m), generator=g)] for k, m in masks.items()}
    a, b = some(.3), some(.6)
    mean, low, high = interval([distance(shuffled(a), shuffled(b)) for _ in range(200)], .999)
    assert low < chance_distance(a, b) < high

# --- when they settle

def test_the_rule_by_hand():
    "A drift is near the last mask and not the one before; at the threshold is near enough."
    seen, rule = [], partial(settled, window=3, threshold=.2)
    for text in ('1111100000', '1111000001'): seen.append(row(text)); assert not rule(seen)
    seen.append(row('1110000011'))
    assert not rule(seen) and newest_distances(seen, 3) == pytest.approx([.4, .2])
    seen.append(row('1110000101'))
    assert rule(seen) and newest_distances(seen, 3) == pytest.approx([.2, .2])
    assert newest_distances([]) == newest_distances(seen[:1]) == [] and not rule([])

def test_a_full_window():
    "Four equal masks are not enough; older ones than the window's do not count."
    still, other = row('1100'), row('0011')
    assert [settled([still]*n) for n in range(7)] == [False]*5 + [True]*2
    assert settled([other] + [still]*5) and not settled([still, other] + [still]*3)

@pytest.mark.parametrize('options, why', [
    (dict(window=1), 'window=1 must'), (dict(window=2.5), 'window=2.5 must'),
    (dict(threshold=10), 'between 0 and 1, not 10'), (dict(threshold=float('nan')), 'not nan')])
def test_rules_that_are_refused(options, why):
    with pytest.raises(ValueError, match=why): settled([row('10')]*9, **options)
    with pytest.raises(ValueError, match=why): EarlyBird(channel_masks, 5, **options)

# --- the hook

digits = load('digits')
half   = partial(channel_masks, prune_ratio=.5)

def train(run, hooks, end=60, file=None, every=7):
    batches = example_batches(digits.x_train, digits.y_train, 100, run.seed)
    return advance_kept(run, classification(), batches, end, hooks, file=file, settings={}, every=every)

class Texts(Hook):
    "Not a hook but what `masks_of` gives next, and how often it was asked."
    def __init__(self, *texts): self.texts, self.calls = texts, 0
    def __call__(self, net): self.calls += 1; return row(self.texts[self.calls - 1])

def test_epochs_are_counted_at_their_ends():
    "A mask after every 5 steps, none before; the run stops where the rule says; then nothing is asked."
    masks = Texts('1111100000', '1111000001', '1110000011', '1110000101', *['0000011111']*9)
    run = train(small_run(), [EarlyBird(masks, 5, window=3, threshold=.2)])
    found = run.extra['early_bird']
    assert run.stopped and run.step == 20 and found['epoch'] == 4 and masks.calls == 4
    assert same(found['masks'], row('1110000101')) and len(found['window']) == 3
    run.stopped = False
    assert train(run, [EarlyBird(masks, 5, window=3, threshold=.2)]).step == 60 and masks.calls == 4

def test_only_recorded():
    "The run is the one without the hook, and the epoch the one at which it would stop."
    bird = EarlyBird(half, 5, threshold=.3, stop=False)
    run, plain = train(small_run(), [bird]), train(small_run(), [])
    stopped = train(small_run(), [EarlyBird(half, 5, threshold=.3)])
    assert run.step == 60 and same(run.net.state_dict(), plain.net.state_dict())
    assert same(run.extra['early_bird'], stopped.extra['early_bird']) and stopped.step < 60
    assert stopped.extra['early_bird']['epoch'] == stopped.step//5

@pytest.mark.parametrize('masks_of', [half, weight_masks])
def test_the_hook_is_the_rule_in_a_loop(masks_of):
    seen, run = [], small_run()
    while not settled(seen, threshold=.2):
        train(run, [], run.step + 5)
        seen.append(masks_of(run.net))
    other = train(small_run(), [EarlyBird(masks_of, 5, threshold=.2)])
    assert other.step == run.step and same(other.extra['early_bird']['masks'], seen[-1])

def test_masks_are_copied():
    "A function may give the same tensors each time, changed."
    mask = row('1100')
    def changed(net):
        mask['a.weight'].logical_not_()
        return mask
    run = train(small_run(), [EarlyBird(changed, 5, window=2)])
    assert not run.stopped and run.extra['early_bird']['epoch'] is None

def test_another_hook_may_stop_the_run():
    class Stop(Hook):
        def after_step(self, run): run.stopped = run.step == 10
    run = train(small_run(), [Stop(), EarlyBird(lambda net: row('10'), 5, window=2, stop=False)])
    assert run.stopped and run.step == 10 and run.extra['early_bird']['epoch'] == 2

class Kill(Hook):
    def __init__(self, step): self.step = step
    def after_step(self, run):
        if run.step == self.step: raise KeyboardInterrupt

@pytest.mark.parametrize('step', [4, 11, 24])
def test_killed_and_resumed(step, tmp_path):
    "The window is in the file: the same epoch, the same masks, the same bits."
    def birds(): return [EarlyBird(half, 5, threshold=.3)]
    whole = train(small_run(), birds())
    assert whole.stopped and whole.step > step
    with pytest.raises(KeyboardInterrupt): train(small_run(), [*birds(), Kill(step)], file=tmp_path/'run')
    again = train(small_run(), birds(), file=tmp_path/'run')
    assert same(again.state_dict(), whole.state_dict())
    assert train(small_run(), birds(), file=tmp_path/'run').step == whole.step  # it stays stopped

def test_rewound():
    "Rounds of a search with one list of hooks settle where rounds with fresh hooks do."
    def search(bird):
        run = small_run()
        train(run, [], 5)        # late rewinding: the first epoch is shared
        run.set_masks(full_masks(run.net))
        return [dict(epoch=r.extra['early_bird']['epoch'], step=r.step, masks=r.extra['early_bird']['masks'])
                for r, _ in tickets(run, lambda r: train(r, bird()) and None, pruner(rate=.3), 2)]
    one = EarlyBird(half, 5, threshold=.3)
    shared, fresh = search(lambda: [one]), search(lambda: [EarlyBird(half, 5, threshold=.3)])
    assert same(shared, fresh) and all(row['epoch'] >= 6 for row in shared)

def test_hooks_that_are_refused():
    with pytest.raises(ValueError, match='full after 25 steps, but the training ends after 24'):
        EarlyBird(half, 5, end=24)
    assert EarlyBird(half, 5, end=25).window == 5
    with pytest.raises(ValueError, match='every=0 must'): EarlyBird(half, 0)
    net = lenet(64, seed=0)
    lenet_run = Run(net, torch.optim.SGD(net.parameters(), lr=.1))
    with pytest.raises(ValueError, match='has no batch-norm layer'): train(lenet_run, [EarlyBird(half, 1)])
    with pytest.raises(ValueError, match='holds 0.5'):
        train(small_run(), [EarlyBird(lambda net: {'a.weight': torch.tensor([.5, 1])}, 1)])

def test_an_untrained_network_takes_no_place():
    "Masks that never change settle after five trained epochs, not after four and the start."
    assert train(small_run(), [EarlyBird(lambda net: row('10'), 5)]).step == 25

# --- a layer that is emptied

def test_a_layer_that_is_empty():
    "Refused by name; allowed and warned of; a minimum or ranking within layers prevents it."
    net = batchnorm_mlp(64, seed=0)
    with torch.no_grad():
        net.norm1.weight.copy_(torch.linspace(.4, .6, 200))
        net.norm2.weight.copy_(torch.linspace(.55, .9, 100))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        gone = channel_masks(net, .9, least=0)
    assert [str(w.message) for w in caught] == ['pruning leaves no weight in norm1.weight']
    assert kept(gone) == {'norm1.weight': 0, 'norm2.weight': 30}
    with pytest.raises(ValueError, match='leaves no channel in norm1.weight.*least=1'), \
         warnings.catch_warnings():
        warnings.simplefilter('ignore')
        channel_masks(net, .9)
    assert kept(channel_masks(net, .9, least=1)) == {'norm1.weight': 1, 'norm2.weight': 29}
    assert kept(channel_masks(net, .9, least=10)) == {'norm1.weight': 10, 'norm2.weight': 20}
    assert kept(channel_masks(net, .9, per_layer)) == {'norm1.weight': 20, 'norm2.weight': 10}
    assert kept(channel_masks(net, .5)) == kept(channel_masks(net, .5, least=0))
    with pytest.raises(ValueError, match='min_kept=20 needs 40 weights'): channel_masks(net, .9, least=20)
