"A search: what it finds, takes back and refuses, and that it may be stopped at any moment."
import copy, math, warnings
from functools import partial
from pathlib import Path
from unittest import mock
import pytest, torch
from torch import nn
from torch.nn import functional as F
from ticket_loops import (
    batches, cross_entropy, digits, files, idle, loader, make_run, mlp, nudge, stranger, with_sgd,
    x60, y60)
from sameness import same
from lotterybook.foundations import files as writing
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.networks import batchnorm_mlp, lenet
from lotterybook.foundations.randomness import random_stream, rng
from lotterybook.foundations.files import folder_lock
from lotterybook.foundations.running import Hook, Run, advance
from lotterybook.foundations.training import train_run
from lotterybook.pruning.allocation import erk, global_, per_layer
from lotterybook.pruning.masked_training import keep_pruned
from lotterybook.pruning.masks import full_masks, kept, remaining
from lotterybook.pruning.schedules import all_at_once, cubic, geometric, pruner
from lotterybook.pruning.scores import magnitude, random_scores
from lotterybook.tickets import rounds as round_page
from lotterybook.tickets.iterative import find_ticket, tickets
from lotterybook.tickets.rounds import first_run
torch.set_num_threads(1)

find = partial(find_ticket, progress=False)
half = pruner(.5)

def total(ticket): return sum(kept(ticket.masks).values())

def tail(run): return advance(run, cross_entropy, batches, 12).net[1].weight.sum().item()

def nested(found):
    "Nothing comes back."
    for old, new in zip(found, found[1:]):
        for k, m in new.masks.items(): assert not (m & ~old.masks[k]).any()

def equal(a, b):
    "The same tickets to the last bit."
    return same([t._asdict() for t in a], [t._asdict() for t in b])

# --- what a search finds

def eight(seed):
    net = nn.Linear(8, 1, bias=False)
    net.weight.data = torch.arange(1., 9).view(1, 8)
    return Run(net)

@pytest.mark.filterwarnings('ignore:make_run gives the same')
def test_by_hand():
    "Eight weights, half of them pruned each round; training doubles every third weight."
    def double(run):
        with torch.no_grad(): run.net.weight[:, ::3] *= 2
    found  = find(eight, double, half, rounds=3)
    places = [t.masks['weight'][0].nonzero()[:, 0].add(1).tolist() for t in found]
    assert places == [[1, 2, 3, 4, 5, 6, 7, 8], [4, 6, 7, 8], [4, 7], [7]]
    assert found[1].theta_T['weight'].tolist() == [[0, 0, 0, 8, 0, 6, 14, 8]]
    assert all(t.theta_0['weight'].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]] for t in found)

def test_the_loop_as_one_would_write_it():
    "A second route for all of it: the same masks, weights and outcomes, to the last bit."
    def loop(net, masks):
        optimizer = torch.optim.Adam(net.parameters(), .01)
        with keep_pruned(net, masks):
            for x, y in loader():
                optimizer.zero_grad()
                F.cross_entropy(net(x), y).backward()
                optimizer.step()
        return F.cross_entropy(net(x60), y60).item()
    found = find(make_run, lambda run: loop(run.net, run.masks), pruner(.4), rounds=3, seed=2)
    with random_stream(2, 'init'): net = mlp()
    theta_0, masks = snapshot(net), full_masks(net)
    for r, ticket in enumerate(found):
        net.load_state_dict(theta_0)
        with random_stream(2, 'training'): outcome = loop(net, masks)
        settings = dict(seed=2, round=r, remaining=remaining(masks), outcome=outcome)
        assert same(ticket._asdict(),
                    dict(theta_0=theta_0, masks=masks, theta_T=snapshot(net), settings=settings))
        masks = per_layer(magnitude(net, masks), masks, .4)

def test_the_sizes_of_the_paper():
    "LeNet on MNIST: 51.3, 21.1, 13.5, 7.0 and 3.6 %; exact counts in each layer; nested masks."
    paper = pruner(.2, allocation=partial(per_layer, scale={'output.weight': .5}))
    found = find(lambda seed: Run(lenet()), idle, paper, rounds=15)
    sizes = [f'{remaining(found[r].masks):.1%}' for r in (3, 7, 9, 12, 15)]
    assert sizes == ['51.3%', '21.1%', '13.5%', '7.0%', '3.6%']
    nested(found)
    for old, new in zip(found, found[1:]):
        for k, alive in kept(old.masks).items():
            assert kept(new.masks)[k] == alive - round((.1 if k == 'output.weight' else .2)*alive)

def test_without_a_pruner():
    "A fifth of each layer by magnitude."
    assert equal(find(make_run, stranger, rounds=2), find(make_run, stranger, pruner(.2), rounds=2))

def test_no_rounds():
    "No pruning: round 0, the dense network, alone."
    dense, = find(make_run, stranger, rounds=0)
    assert all(m.all() for m in dense.masks.values())
    assert equal([dense], find(make_run, stranger, rounds=1)[:1])

def conv_run(seed):
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                        nn.Linear(8*36, 10))
    return Run(net)

def test_a_convolutional_network_in_a_loop_of_a_stranger():
    "Masks hold, norms are not pruned and are taken back, and the search finds the same again."
    found = find(conv_run, stranger, half, rounds=3)
    sizes = [{'0.weight': 72 >> r, '4.weight': 2880 >> r} for r in range(4)]
    assert [kept(t.masks) for t in found] == sizes
    for t in found:
        for k, m in t.masks.items():
            assert not t.theta_T[k][~m].any() and (t.theta_T[k] != t.theta_0[k])[m].any()
        assert not t.theta_0['1.running_mean'].any() and t.theta_T['1.running_mean'].all()
        assert t.theta_T['1.num_batches_tracked'] == 6  # of one training, not of all rounds
    assert equal(found, find(conv_run, stranger, half, rounds=3))

@pytest.mark.parametrize('allocation, counts',
                         [(global_, [2220, 1110, 555]), (erk, [2220, 1110, 555])])
def test_allocations_over_all_layers(allocation, counts):
    "Together exact, and not layer by layer."
    found = find(make_run, stranger, pruner(.5, allocation=allocation), rounds=2)
    assert [total(t) for t in found] == counts and kept(found[2].masks)['3.weight'] != 75
    nested(found)

@pytest.mark.parametrize('schedule',
                         [geometric(.3, 4), cubic(.1, 4), all_at_once(.1), [.5, .1, .5]])
def test_schedules(schedule):
    "A rate for each round; one round too many is an error that says so."
    found, left = find(make_run, idle, pruner(schedule), rounds=len(schedule)), 1.
    for rate, ticket in zip(schedule, found[1:]):
        left *= 1 - rate
        assert abs(remaining(ticket.masks) - left) < .002
    n = len(schedule)
    with pytest.raises(ValueError, match=f'has {n} rates, and round {n + 1} asks'):
        find(make_run, idle, pruner(schedule), rounds=n + 1)

@pytest.mark.parametrize('options, names', [
    (dict(exclude='output.*'), ['layer1.weight', 'layer2.weight']),
    (dict(include='layer1.bias'),
     ['layer1.weight', 'layer1.bias', 'layer2.weight', 'output.weight'])])
def test_weights_that_are_left_out_or_taken_in(options, names):
    "The masks of the first run say which weights are pruned."
    def make(seed):
        net = lenet(64)
        with torch.no_grad(): net.layer1.bias.normal_()
        return Run(net, masks=full_masks(net, **options))
    found = find(make, idle, half, rounds=2)
    assert list(found[2].masks) == names and abs(remaining(found[2].masks) - .25) < .001
    assert (found[2].theta_T['output.weight'] != 0).all() == ('output.weight' not in names)

def test_chance_is_the_same_chance():
    "A score that draws finds the same again, another in each round and for each seed."
    random = pruner(.5, random_scores)
    a, b, c = (find(make_run, idle, random, rounds=2, seed=seed) for seed in (0, 0, 1))
    assert equal(a, b)
    first, second, other = a[1].masks['1.weight'], a[2].masks['1.weight'], c[1].masks['1.weight']
    assert not torch.equal(first, other) and abs((second.sum()/first.sum()).item() - .5) < .01
    torch.manual_seed(5); want = torch.rand(1); torch.manual_seed(5)
    find(make_run, idle, random, rounds=1)
    assert torch.equal(torch.rand(1), want)  # the caller's generator did not move

def test_a_score_of_your_own():
    "It gets the trained network, the masks, the objective and the batches."
    def by_gradient(net, masks, objective, batches):
        net.zero_grad()
        for batch in batches: objective(net, batch).backward()
        return {k: (net.get_parameter(k)*net.get_parameter(k).grad).abs() for k in masks}
    some  = [(x60, y60)]*2
    found = find(make_run, stranger, pruner(.3, by_gradient, objective=cross_entropy, batches=some),
                 rounds=2)
    net   = mlp()
    net.load_state_dict(found[1].theta_T)
    scores = by_gradient(net, found[1].masks, cross_entropy, some)
    assert same(found[2].masks, per_layer(scores, found[1].masks, .3))

def test_outcomes_are_kept(tmp_path):
    "Numbers, text and lists, the same from a file; seconds are left out."
    def train(run): return dict(round=run.round, loss=torch.tensor(.5), seconds=9., rows=[(1, 'a')])
    for found in [find(make_run, train, rounds=1, folder=tmp_path, settings={}) for _ in range(2)]:
        want = [dict(round=r, loss=.5, rows=[[1, 'a']]) for r in (0, 1)]
        assert [t.settings['outcome'] for t in found] == want

# --- what a round takes back

class Counting(nn.Module):
    "A layer with buffers that files have and have not, norm statistics, and a state of its own."
    def __init__(self, own=torch.tensor):
        super().__init__()
        self.norm, self.layer, self.own, self.told = nn.BatchNorm1d(64), nn.Linear(64, 10), own, 0
        self.register_buffer('calls', torch.zeros(()), persistent=False)
    def forward(self, x):
        self.calls += 1
        self.told  += 1
        return self.layer(self.norm(x.flatten(1)))
    def get_extra_state(self): return self.own(self.told)
    def set_extra_state(self, state):
        self.told = state['told'] if isinstance(state, dict) else int(state)

def counting_run(seed, momentum=True, own=torch.tensor):
    "A run that has taken seven steps, with the optimizer's memory or without it."
    net = Counting(own)
    run = Run(net, torch.optim.SGD(net.parameters(), .1, momentum=.9))
    advance(run, cross_entropy, batches, 7)
    run.extra['seen'], run.rows[:] = [7], [dict(step=7)]
    if not momentum: run.forget()
    return run

def watching(starts, end=12):
    "A training that notes where it began."
    def train(run):
        starts.append(run.state_dict())
        advance(run, cross_entropy, batches, end)
        run.extra['seen'].append(end); run.rows.append(dict(step=end))
        return run.net.calls.item()
    return train

@pytest.mark.parametrize('own', [torch.tensor, int, lambda told: dict(told=told)],
                         ids=['tensor', 'number', 'dictionary'])
def test_rewinding_takes_all_back(own):
    "Weights, buffers of both kinds, norm statistics, extra state, rows and what is remembered."
    starts = []
    found  = find(partial(counting_run, own=own), watching(starts), half, rounds=2)
    assert [t.settings['outcome'] for t in found] == [12, 12, 12]
    for s in starts:
        assert (s['step'], s['extra'], s['rows']) == (7, dict(seen=[7]), [dict(step=7)])
        assert s['buffers']['calls'] == 7 and s['net']['_extra_state'] == own(7)
        for k in s['net'].keys() - {'_extra_state', 'layer.weight'}:
            assert torch.equal(s['net'][k], starts[0]['net'][k])

@pytest.mark.parametrize('momentum', [True, False])
def test_the_memory_of_the_optimizer(momentum):
    "Every round begins with that of step k under its mask; or with none, if the run has none."
    starts = []
    found  = find(partial(counting_run, momentum=momentum), watching(starts), half, rounds=2)
    if not momentum: assert not any(s['optimizer']['state'] for s in starts); return
    memory = [s['optimizer']['state'][2]['momentum_buffer'] for s in starts]  # of layer.weight
    assert memory[0].any() and not memory[2][~found[2].masks['layer.weight']].any()
    for m, t in zip(memory, found): assert torch.equal(m, memory[0]*t.masks['layer.weight'])

def test_a_later_start_by_hand():
    "A second route: take k steps, and go on under the ticket's mask, with memory and without."
    for momentum in (True, False):
        found = find(partial(counting_run, momentum=momentum), watching([]), half, rounds=2)
        run   = first_run(partial(counting_run, momentum=momentum), 0)
        assert same(snapshot(run.net), found[2].theta_0)
        run.set_masks(found[2].masks)
        watching([])(run)
        assert same(snapshot(run.net), found[2].theta_T)

def test_what_a_search_leaves():
    "The same search again, with what the first one left behind, finds the same."
    assert equal(find(counting_run, watching([]), half, rounds=1),
                 find(counting_run, watching([]), half, rounds=1))

def test_an_optimizer_made_in_training():
    "A run that came without one may be given one, for the library's own loop."
    def train(run):
        run.optimizer = torch.optim.SGD(run.net.parameters(), .1, momentum=.9)
        advance(run, cross_entropy, batches, 6)
    def plain(run): advance(run, cross_entropy, batches, 6)
    assert equal(find(make_run, train, half, rounds=2), find(with_sgd, plain, half, rounds=2))

class Descent(torch.optim.Optimizer):
    "An optimizer of somebody's own, that keeps its rate beside its groups."
    def __init__(self, params, lr):
        super().__init__(params, {})
        self.lr = lr
    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad(): closure()
        for p in self.param_groups[0]['params']: p -= self.lr*p.grad

@pytest.mark.parametrize('make', [partial(torch.optim.LBFGS, lr=.1, max_iter=3),
                                  partial(Descent, lr=.1)], ids=['LBFGS', 'own'])
def test_optimizers_with_attributes(make):
    "The run's own optimizer, of whatever kind, trains every round."
    def make_run(seed):
        net = mlp()
        return Run(net, make(net.parameters()))
    def train(run):
        def closure():
            run.optimizer.zero_grad()
            loss = F.cross_entropy(run.net(x60), y60)
            loss.backward()
            return loss
        with keep_pruned(run.net, run.masks):
            for _ in range(3): run.optimizer.step(closure)
    a, b = (find(make_run, train, half, rounds=2) for _ in range(2))
    assert equal(a, b) and all((t.theta_T['3.bias'] != t.theta_0['3.bias']).any() for t in a)

def test_normalized_weights():
    "A layer whose weight is worked out from others, by the older function of PyTorch."
    def make(seed):
        net = mlp()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            torch.nn.utils.weight_norm(net[1])
        return Run(net)
    assert len(find(make, stranger, half, rounds=2)) == 3

def test_a_network_compiled_in_place():
    "By `make_run`: it is compiled in training, too."
    calls = []
    def backend(graph, inputs): calls.append(1); return graph.forward
    def make(seed):
        net = mlp()
        net.compile(backend=backend)
        return Run(net)
    torch._dynamo.reset()
    found = find(make, stranger, half, rounds=1)
    assert calls and equal(found, find(make_run, stranger, half, rounds=1))

def test_a_loop_that_holds_the_first_network():
    "In a closure, and not as `run.net`: trained, or refused; not passed over in silence."
    made = []
    def make(seed): made.append(mlp()); return Run(made[-1])
    def train(run):
        optimizer = torch.optim.SGD(run.net.parameters(), .1)
        with keep_pruned(run.net, run.masks):
            for x, y in loader():
                optimizer.zero_grad()
                F.cross_entropy(made[0](x), y).backward()
                optimizer.step()
    try: found = find(make, train, half, rounds=1)
    except ValueError: return
    assert all((t.theta_T['3.bias'] != t.theta_0['3.bias']).any() for t in found)

def test_a_rate_that_falls():
    "A learning rate that a scheduler has lowered is back at the next round's start."
    seen = []
    def train(run):
        seen.append(run.optimizer.param_groups[0]['lr'])
        schedule = torch.optim.lr_scheduler.ExponentialLR(run.optimizer, .5)
        with keep_pruned(run.net, run.masks):
            for x, y in loader():
                run.optimizer.zero_grad()
                F.cross_entropy(run.net(x), y).backward()
                run.optimizer.step()
                schedule.step()
    find(with_sgd, train, rounds=2)
    assert seen == [.1, .1, .1]

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_a_network_that_changes_its_precision(dtype, tmp_path):
    "Moved within each training: every round begins with the same numbers, and a folder goes on."
    def train(run):
        run.net.to(dtype)
        optimizer = torch.optim.SGD(run.net.parameters(), .1, momentum=.9)
        with keep_pruned(run.net, run.masks):
            for x, y in loader():
                optimizer.zero_grad()
                F.cross_entropy(run.net(x.to(dtype)).float(), y).backward()
                optimizer.step()
    whole = find(make_run, train, half, rounds=2)
    search = partial(find, make_run, folder=tmp_path, settings={})
    search(train, half, rounds=1)
    assert equal([t._replace(settings=0) for t in search(train, half, rounds=2)],
                 [t._replace(settings=0) for t in whole])
    last = whole[2]
    assert last.theta_T['1.weight'].dtype == dtype
    assert last.theta_0['1.weight'].dtype == torch.float32

# --- traces: a round is a function of the round before it, and of nothing else

def no_gradients(run): return all(p.grad is None or not p.grad.any() for p in run.net.parameters())

def leaving_gradients(run):
    "A `prune` that looks at data and leaves its gradients behind."
    cross_entropy(run.net, (x60, y60)).backward()
    return half(run)

def test_how_each_training_begins():
    "In training mode and without gradients, whatever the last round or the pruning left."
    modes = []
    def train(run):
        modes.append((run.net.training, no_gradients(run)))
        stranger(run)
        run.net.eval()
    find(make_run, train, leaving_gradients, rounds=2)
    assert modes == [(True, True)]*3

def trailing(run):
    "A loop that forgets its gradients after each step, and not before."
    optimizer = torch.optim.SGD(run.net.parameters(), .1)
    with keep_pruned(run.net, run.masks):
        for x, y in loader():
            F.cross_entropy(run.net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

def test_gradients_of_a_score_do_not_train():
    "A loop that trusts its gradients to be empty at the start gets no other weights."
    def clean(run):
        masks = leaving_gradients(run)
        run.net.zero_grad()
        return masks
    assert equal(find(make_run, trailing, leaving_gradients, rounds=2),
                 find(make_run, trailing, clean, rounds=2))

def by_gradient(run):
    "Scores |w dL/dw|; the gradient is added to what is there."
    cross_entropy(run.net, (x60, y60)).backward()
    weights = {k: run.net.get_parameter(k) for k in run.masks}
    return per_layer({k: (p*p.grad).abs() for k, p in weights.items()}, run.masks, .4)

def left_evaluating(run):
    stranger(run)
    run.net.eval()

def norm_run(seed): return Run(batchnorm_mlp(64, 10, (30, 20)))

def adam_run(seed):
    net = mlp()
    return Run(net, torch.optim.Adam(net.parameters(), .01))

@pytest.mark.parametrize('make, train, prune', [
    (make_run, stranger, by_gradient), (norm_run, left_evaluating, by_gradient),
    (norm_run, left_evaluating, leaving_gradients)], ids=['gradients', 'mode', 'left gradients'])
def test_pruning_after_reading(make, train, prune, tmp_path):
    "A round that was read prunes as one that was trained."
    whole = find(make, train, prune, rounds=2)
    for rounds in (0, 1, 2):
        found = find(make, train, prune, rounds=rounds, folder=tmp_path, settings={})
    assert same([t.masks for t in found], [t.masks for t in whole])
    assert same([t.theta_T for t in found], [t.theta_T for t in whole])

def test_masks_changed_in_place():
    "A `prune` that changes the run's own masks does not change the tickets of earlier rounds."
    def prune(run):
        for m in run.masks.values(): m[:, 3*run.round:3*run.round + 3] = False
        return run.masks
    found = find(make_run, idle, prune, rounds=2)
    assert [kept(t.masks)['3.weight'] for t in found] == [300, 300 - 30, 300 - 60]

# --- stopped and started again

class Ticks:
    "Raises at the n-th call."
    def __init__(self, n, error=KeyboardInterrupt): self.n, self.error = n, error
    def __call__(self, *_):
        self.n -= 1
        if self.n == 0: raise self.error

class Dies(Hook):
    "Ticks at all moments of a step."
    def __init__(self, ticks): self.on_gradient = self.before_step = self.after_step = ticks

def stranger_with(ticks): return partial(stranger, between=ticks)

def accumulating_with(ticks):
    "A step every four batches of six: gradients are left over at the end."
    def train(run):
        optimizer = torch.optim.SGD(run.net.parameters(), .1)
        with keep_pruned(run.net, run.masks):
            for i, (x, y) in enumerate(loader()):
                ticks()
                F.cross_entropy(run.net(x), y).backward()
                if i == 3: optimizer.step(); optimizer.zero_grad()
    return train

def resumable_with(ticks, steps=12):
    "A loop that keeps its state in the run's file, with dropout, momentum and validation."
    def train(run):
        return train_run(run, digits, steps=steps, eval_every=4, hooks=[Dies(ticks)], file=run.file,
                         save_every=3)
    return train

def drop_run(seed, k=0):
    net = batchnorm_mlp(64, 10, (30, 20))
    net.relu1 = nn.Sequential(nn.ReLU(), nn.Dropout(.3))
    run = Run(net, torch.optim.SGD(net.parameters(), .1, momentum=.9))
    return advance(run, cross_entropy, batches, k)

SEARCHES = dict(  # make_run, training that ticks, ticks in a round, pruning
    stranger=(make_run, stranger_with, 6, half),
    drawn=(make_run, stranger_with, 6, pruner(.3, random_scores)),
    conv=(conv_run, stranger_with, 6, pruner(.5, allocation=global_)),
    accumulating=(make_run, accumulating_with, 6, half),
    resumable=(drop_run, resumable_with, 36, half),
    later=(partial(drop_run, k=5), resumable_with, 21, half),
    later_stranger=(partial(drop_run, k=5), stranger_with, 6, half))

def in_folder(kind, folder, ticks=lambda *_: None, rounds=3, **options):
    make, train, _, prune = SEARCHES[kind]
    return find(make, train(ticks), prune, rounds=rounds, folder=folder, settings=dict(kind=kind),
                **options)

@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('kind', SEARCHES)
def test_killed_at_random_points(kind, seed, tmp_path):
    "With and without a state of the round in flight: the same folder, byte for byte."
    found = in_folder(kind, tmp_path/'whole', seed=seed)
    draw, kills, most = rng(seed, 'kills', kind), 0, 2*SEARCHES[kind][2]
    for kill in range(60):
        torch.manual_seed(kill)  # meanwhile, the world moves on
        n = int(torch.randint(1, most, (), generator=draw))
        try: again = in_folder(kind, tmp_path/'broken', Ticks(n), seed=seed)
        except KeyboardInterrupt: kills += 1
        else: break
    assert kills > 0 and equal(again, found)
    assert files(tmp_path/'broken') == files(tmp_path/'whole')
    names = [f'ticket-round{r}.safetensors' for r in range(4)]
    if 'later' in kind: names.insert(0, '.ticket-start')
    assert sorted(files(tmp_path/'whole')) == names

@pytest.mark.parametrize('kind, name', [('stranger', 'fsync'), ('later', 'replace')])
def test_killed_while_writing(kind, name, tmp_path, monkeypatch):
    "At every write in turn: of the start, of a state, of a ticket."
    in_folder(kind, tmp_path/'whole')
    true, writes = getattr(writing.os, name), []
    with monkeypatch.context() as m:
        m.setattr(writing.os, name, lambda *o: (writes.append(o), true(*o))[1])
        in_folder(kind, tmp_path/'counted')
    for n in range(1, len(writes) + 1):
        ticks = Ticks(n)
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(writing.os, name, lambda *o: (ticks(), true(*o))[1])
            in_folder(kind, tmp_path/f'broken{n}')
        in_folder(kind, tmp_path/f'broken{n}')
        assert files(tmp_path/f'broken{n}') == files(tmp_path/'whole')

def test_killed_after_writing(tmp_path, monkeypatch):
    "Between the ticket of a round and the end of its state: it is gone when the search is done."
    in_folder('resumable', tmp_path/'whole')
    true, ticks = round_page.save_ticket, Ticks(2)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(round_page, 'save_ticket', lambda *o: (true(*o), ticks())[0])
        in_folder('resumable', tmp_path/'broken')
    in_folder('resumable', tmp_path/'broken')
    assert sorted(files(tmp_path/'broken')) == sorted(files(tmp_path/'whole'))

@pytest.mark.parametrize('kind', SEARCHES)
def test_a_finished_search_only_reads(kind, tmp_path):
    "No training, no writing; the same tickets. Fewer rounds may be asked for, and more."
    def never(*_): raise AssertionError('done already')
    found, before = in_folder(kind, tmp_path), files(tmp_path)
    when = {f: f.stat().st_mtime_ns for f in tmp_path.iterdir()}
    assert equal(in_folder(kind, tmp_path, never), found)
    assert equal(in_folder(kind, tmp_path, never, rounds=1), found[:2])
    assert {f: f.stat().st_mtime_ns for f in tmp_path.iterdir()} == when
    longer = in_folder(kind, tmp_path, Ticks(1 + SEARCHES[kind][2]), rounds=4)  # one round is new
    assert equal(longer[:4], found) and files(tmp_path).items() >= before.items()
    assert equal(in_folder(kind, tmp_path/'five', rounds=4), longer)

def test_momentum_survives(tmp_path):
    "A later start is read with its memory, though the run that is made again has forgotten it."
    search = partial(find, train=lambda run: tail(run), prune=half, settings={})
    whole  = search(partial(with_steps), rounds=2, folder=tmp_path/'whole')
    search(with_steps, rounds=0, folder=tmp_path/'broken')
    found = search(partial(with_steps, momentum=False), rounds=2, folder=tmp_path/'broken')
    assert equal(found, whole) and files(tmp_path/'broken') == files(tmp_path/'whole')
    other = search(partial(with_steps, momentum=False), rounds=2, folder=tmp_path/'other')
    assert not equal(other, whole)

def with_steps(seed, k=6, momentum=True):
    run = advance(with_sgd(seed), cross_entropy, batches, k)
    if not momentum: run.forget()
    return run

def test_it_says_how_much_it_read(tmp_path, capsys):
    "Aloud, and only if something was read; without progress, not at all."
    def said(rounds, **options):
        find_ticket(make_run, stranger, rounds=rounds, folder=tmp_path, settings={}, **options)
        return capsys.readouterr().out
    assert said(1) == '' and said(3) == f'2 of 4 rounds were read from {tmp_path}.\n'
    assert said(2) == f'3 of 3 rounds were read from {tmp_path}.\n'
    assert said(2, progress=False) == ''

def test_two_searches_in_a_folder(tmp_path):
    "By their names; neither takes the other's rounds."
    def search(**options): return find(make_run, stranger, rounds=1, folder=tmp_path, **options)
    search(settings=dict(a=1)), search(settings=dict(a=2), name='other', seed=1)
    want = [f'{n}-round{r}.safetensors' for n in ('other', 'ticket') for r in (0, 1)]
    assert sorted(files(tmp_path)) == want

# --- Ctrl-C

@pytest.mark.parametrize('ticks, rounds', [(1, 0), (9, 1), (20, 3)])
def test_ctrl_c(ticks, rounds, tmp_path):
    "Finished rounds stay, and the traceback ends with how to go on."
    with pytest.raises(KeyboardInterrupt) as e: in_folder('stranger', tmp_path, Ticks(ticks))
    assert e.value.__notes__ == [f'{rounds} rounds are kept in {tmp_path}; the same call resumes.']
    assert sorted(files(tmp_path)) == [f'ticket-round{r}.safetensors' for r in range(rounds)]

def test_ctrl_c_without_a_folder():
    "Nothing is kept, and the note says what would have kept it."
    with pytest.raises(KeyboardInterrupt) as e:
        find(make_run, partial(stranger, between=Ticks(9)), rounds=2)
    note, = e.value.__notes__
    assert note == 'Nothing is kept: name a folder, and an interrupted search can be resumed.'

def test_ctrl_c_in_the_middle_of_pruning(tmp_path):
    "The same note."
    def prune(run): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt) as e:
        find(make_run, idle, prune, rounds=2, folder=tmp_path, settings={})
    assert e.value.__notes__[0].startswith('1 rounds are kept')

def test_other_errors_get_no_note(tmp_path):
    "They say themselves what is wrong."
    with pytest.raises(KeyError) as e:
        find(make_run, partial(stranger, between=Ticks(9, KeyError)), rounds=2)
    assert not hasattr(e.value, '__notes__')

# --- another search in the folder

def scaled_run(seed):
    run = make_run(seed)
    with torch.no_grad(): run.net[3].weight.mul_(.5)
    return run

def never(run): raise AssertionError('refused before anything is trained')

@pytest.mark.parametrize('other, why', [
    (dict(settings=dict(lr=.2, rate=.5)), 'lr was 0.1, is 0.2'),
    (dict(settings=dict(lr=.1)), 'rate was 0.5, is not given'),
    (dict(settings=dict(lr=.1, rate=.5, data='x')), "data was not given, is 'x'"),
    (dict(seed=1), 'seed was 0, is 1'), (dict(make_run=scaled_run),
                                         r'make_run\(0\) does not give the 3.weight'),
    (dict(prune=pruner(.4)),
     'round1.safetensors is of another search: 10.0% of its masks differ'),
    (dict(make_run=lambda seed: Run(lenet(64))), 'of another architecture'),
    (dict(make_run=with_steps), 'began with other weights')],
    ids=['lr', 'fewer', 'more', 'seed', 'weights', 'rate', 'architecture', 'later'])
def test_another_search(other, why, tmp_path):
    "Refused by name, and nothing is done to the folder."
    asked = dict(make_run=make_run, prune=half, settings=dict(lr=.1, rate=.5), rounds=2,
                 folder=tmp_path)
    find(train=stranger, **asked)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=why): find(train=never, **asked | other)
    assert {k: v for k, v in files(tmp_path).items() if k != '.ticket-start'} == before

def killed_in(round, folder, make=adam_run, prune=half):
    "A search that was stopped in the middle of a round, which keeps its state."
    def train(run):
        dies = Dies(Ticks(20) if run.round == round else Ticks(0))
        return train_run(run, digits, steps=12, eval_every=4, hooks=[dies], file=run.file,
                         save_every=3)
    with pytest.raises(KeyboardInterrupt):
        find(make, train, prune, rounds=2, folder=folder, settings={})
    assert any(file.startswith(f'.ticket-round{round}-') for file in files(folder))

@pytest.mark.parametrize('round', [0, 1])
def test_other_weights_and_a_state_of_a_round(round, tmp_path):
    "Initial weights other than those that the round in flight began with: refused, or begun anew."
    def other(seed):
        run = adam_run(seed)
        with torch.no_grad(): run.net[3].weight.mul_(.5)
        return run
    killed_in(round, tmp_path/'broken')
    train = resumable_with(lambda *_: None)
    try: found = find(other, train, half, rounds=2, folder=tmp_path/'broken', settings={})
    except ValueError: return
    assert equal(found, find(other, train, half, rounds=2, folder=tmp_path/'whole', settings={}))

def test_another_rate_and_a_state_of_a_round(tmp_path):
    "Masks other than those of the round in flight: refused, or begun anew."
    killed_in(1, tmp_path, prune=half)
    try:
        found = find(adam_run, resumable_with(lambda *_: None), pruner(.2), rounds=2,
                     folder=tmp_path, settings={})
    except ValueError: return
    assert [round(remaining(t.masks), 2) for t in found] == [1, .8, .64]

# --- what is refused

@pytest.mark.parametrize('options, why', [
    (dict(rounds=-1), 'rounds=-1 must be a whole number of at least 0'),
    (dict(rounds=1.5), 'rounds=1.5'),
    (dict(rounds=10**9), 'rounds=1,000,000,000 would not end; 10,000 is the most'),
    (dict(prune=.2), 'prune cannot be called with one argument: 0.2 is not a callable object'),
    (dict(rounds=True), 'rounds=True'), (dict(seed=.5), 'seed=0.5'),
    (dict(seed=-1), 'seed=-1 must be a whole number'),
    (dict(folder='x'), 'folder needs settings: plain values that identify this search')])
def test_wrong_arguments(options, why, tmp_path, monkeypatch):
    "Before anything is made."
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=why): find(never, never, **dict(rounds=2) | options)
    assert not [*tmp_path.iterdir()]

@pytest.mark.parametrize('rate, why', [(0, 'rate=0 must'), (1., 'rate=1.0 must'),
                                       (-.2, 'rate=-0.2 must'), ([.2, 1.2], r'rate\[1\]=1.2 must')])
def test_wrong_rates(rate, why):
    "Before a search is begun."
    with pytest.raises(ValueError, match=why): pruner(rate)

def test_a_second_process(tmp_path):
    "Refused while a search of this name is under way in the folder; another name is free."
    with folder_lock(tmp_path, 'ticket'):
        with pytest.raises(ValueError, match='ticket is in use by another process'):
            find(make_run, never, folder=tmp_path, settings={})
        find(make_run, idle, rounds=1, folder=tmp_path, settings={}, name='other')

@pytest.mark.parametrize('name', ['..', 'a/b', '../ticket', 'ä'*101])
def test_names_that_leave_the_folder(name, tmp_path):
    with pytest.raises(ValueError, match='makes no file name'):
        find(make_run, never, folder=tmp_path/'in', settings={}, name=name)
    assert not list(tmp_path.rglob('*'))

def test_settings_that_are_not_plain(tmp_path):
    "A function among the settings."
    with pytest.raises(ValueError, match='settings may hold numbers, text, lists and dictionaries'):
        find(make_run, never, folder=tmp_path, settings=dict(loss=F.cross_entropy))

def test_the_folder_is_a_file(tmp_path):
    "Named before anything is trained."
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError, match='file cannot be written to as a folder'):
        find(make_run, never, folder=tmp_path/'file', settings={})

def test_nothing_to_prune():
    "A network without a weight that is pruned."
    with pytest.raises(ValueError, match='nothing to prune in BatchNorm1d'):
        find(lambda seed: Run(nn.BatchNorm1d(4)), never)

def returning(masks): return lambda run: {k: masks(run, k, m) for k, m in run.masks.items()}

@pytest.mark.parametrize('prune, why', [
    (lambda run: None, 'no masks'), (lambda run: {}, 'no masks'),
    (lambda run: {'1.weight': run.masks['1.weight']}, "no mask for '3.weight'"),
    (returning(lambda run, k, m: m.flatten()), r"mask '1.weight' has shape \(1920,\)"),
    (returning(lambda run, k, m: m.float()), 'is torch.float32, not bool'),
    (returning(lambda run, k, m: m*.5), 'holds 0.5'),
    (lambda run: dict(run.masks, other=torch.ones(3).bool()), "'other' fits no parameter")])
def test_masks_that_are_none(prune, why):
    "What `prune` gives is checked, and named."
    with pytest.raises(ValueError, match=why): find(make_run, idle, prune, rounds=1)

def test_pruning_that_brings_weights_back():
    "Layer and count are named."
    def places(run, name, mask):
        n = torch.arange(mask.numel()).view(mask.shape)
        return n >= (13 if name == '3.weight' else 0) if run.round == 1 else torch.ones_like(mask)
    why = "prune brings 13 pruned weights of '3.weight' back; in a search it may only remove"
    with pytest.raises(ValueError, match=why): find(make_run, idle, returning(places), rounds=2)

def test_pruning_that_brings_weights_back_in_place():
    "The same, if it changes the run's own masks."
    def prune(run):
        for m in run.masks.values(): m[:] = True; m[0, :20//run.round] = False
        return run.masks
    with pytest.raises(ValueError, match='pruned weights of .* back'):
        find(make_run, idle, prune, rounds=2)

def test_training_that_brings_masks_back():
    "Training may not leave the run with more weights than the round has."
    def train(run): run.set_masks(full_masks(run.net))
    with pytest.raises(ValueError): find(make_run, train, half, rounds=1)

@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_scores_that_are_no_numbers(bad):
    "NaN names the layer; infinity is a rank like any other."
    def one(k, m): return torch.full(m.shape, bad if k == '3.weight' else 1.)
    def score(net, masks, *_): return {k: one(k, m) for k, m in masks.items()}
    search = partial(find, make_run, idle, pruner(.5, score), rounds=1)
    if math.isinf(bad): assert total(search()[1]) == 1110; return
    with pytest.raises(ValueError, match="300 scores of '3.weight' are NaN"): search()

def test_a_training_that_diverges(tmp_path):
    "The weight is named, and the rounds before are kept."
    def train(run):
        if run.round == 1: run.net[3].bias.data[3] = math.nan
    with pytest.raises(ValueError,
                       match="after training, '3.bias' holds numbers that are not finite"):
        find(make_run, train, rounds=2, folder=tmp_path, settings={})
    assert [*files(tmp_path)] == ['ticket-round0.safetensors']

def test_a_loop_that_does_not_hold_its_masks(tmp_path):
    "Refused in round 1, for round 0 has nothing to forget; its ticket is not kept."
    def forgetful(run): stranger(run, inside=lambda net, masks: keep_pruned(net, full_masks(net)))
    with pytest.raises(ValueError,
                       match="pruned weights are not zero: .* of '1.weight', .* of '3.weight'"):
        find(make_run, forgetful, half, rounds=2, folder=tmp_path, settings={})
    assert [*files(tmp_path)] == ['ticket-round0.safetensors']

@pytest.mark.parametrize('option',
                         ['prune_rate', 'score', 'allocation', 'schedule', 'exclude', 'include',
                                    'rewind_step', 'loss', 'batches'])
def test_old_options(option):
    "An option that is gone is named."
    with pytest.raises((TypeError, ValueError), match=option):
        find(lambda: mlp(), lambda net, masks: None, rounds=3, **{option: None})

# --- the same weights whatever the seed

def heard(make, **options):
    "The warnings of a search."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        find_ticket(make, nudge, rounds=1, **options)
    return said

def test_a_warning_of_replicates_that_are_none():
    "Once, and it points at the caller's line."
    said, = heard(lambda seed: Run(mlp(7)))
    assert str(said.message).startswith('make_run gives the same weights whatever the seed')
    assert Path(said.filename).name == 'test_iterative.py'

@pytest.mark.parametrize('make', [make_run, lambda seed: Run(mlp(seed)),
                                  lambda seed: Run(lenet(64, seed=seed)),
                                  lambda seed: Run(lenet(64)), with_steps])
def test_no_warning(make):
    "Of networks that are drawn from the global generator, or from the seed."
    assert not heard(make)

@pytest.mark.parametrize('train', [idle, lambda run: nudge(make_run(1))])
def test_a_network_that_was_not_trained(train):
    "Because the loop trains another one, or none: a warning in each round."
    with pytest.warns(UserWarning, match='left run.net as it was: did it train another network') as said:
        find_ticket(make_run, train, rounds=2, progress=False)
    assert len(said) == 3

def test_a_layer_that_was_not_trained():
    "Named in each round; not if it is pruned away, and not if it has no mask."
    def head_only(run):
        stranger(run, optimizer=lambda params: torch.optim.SGD(run.net[3].parameters(), lr=.1))
    with pytest.warns(UserWarning, match='^1.weight: not trained. Is it frozen') as said:
        find_ticket(make_run, head_only, rounds=2, progress=False)
    assert len(said) == 3
    def without(seed):
        net = mlp()
        return Run(net, masks=full_masks(net, exclude='1.*'))
    with warnings.catch_warnings(record=True, action='always') as said:
        find_ticket(without, head_only, rounds=1, progress=False)
    assert not any('not trained' in str(o.message) for o in said)

@pytest.mark.parametrize('name', ['round', 'epochs', 'rates'])
def test_an_argument_that_never_was(name):
    with pytest.raises(TypeError, match=f"find_ticket has no argument '{name}'"):
        find_ticket(make_run, idle, **{name: 3})

# --- the bar

def test_the_bar(monkeypatch):
    "A step a round, and what remains; none if it is not wanted."
    bar = mock.MagicMock()
    bar.__enter__.return_value = bar
    monkeypatch.delenv('TQDM_DISABLE', raising=False)
    with mock.patch('tqdm.auto.tqdm', return_value=bar) as tqdm:
        find_ticket(make_run, idle, half, rounds=3)
        tqdm.assert_called_once_with(total=4, unit='round')
        assert bar.update.call_count == 4
        bar.set_postfix.assert_called_with(remaining=f'{100*(240 + 38)/2220:.1f}%')
        find_ticket(make_run, idle, half, rounds=1, progress=False)
        assert tqdm.call_count == 1

# --- tickets, one by one

def test_tickets_one_by_one():
    "The run is as the round left it; a search may be left at any round."
    run, seen = first_run(make_run, 0), []
    for run, ticket in tickets(run, stranger, half, 5):
        seen.append(run.round)
        assert same(snapshot(run.net), ticket.theta_T) and same(run.masks, ticket.masks)
        if remaining(ticket.masks) < .3: break
    assert seen == [0, 1, 2]

def test_tickets_do_not_share_their_rounds():
    "What is done to a run between two rounds changes no ticket, and no later round."
    want, found = find(make_run, stranger, half, rounds=2), []
    for run, ticket in tickets(first_run(make_run, 0), stranger, half, 2):
        found.append(copy.deepcopy(ticket))
        with torch.no_grad(): run.net[3].bias.fill_(7.)
    assert equal(found, want)
