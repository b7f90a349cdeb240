"Rewinding to step k: one training cut in two, whatever it remembers; kills, controls, refused input."
import re
from functools import partial
import pytest, torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional as F
from ticket_loops import batches, cross_entropy, digits, files, loader, make_run, mlp
from sameness import same
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.fast_steps import FusedAdam
from lotterybook.foundations.hooks import LearningRate
from lotterybook.foundations.networks import batchnorm_mlp
from lotterybook.foundations.running import Hook, Run, advance, seeded
from lotterybook.foundations.training import example_batches, train_run
from lotterybook.pruning.masked_training import keep_pruned
from lotterybook.pruning.masks import full_masks, kept
from lotterybook.pruning.schedules import pruner
from lotterybook.tickets.controls import CONDITIONS, control_run
from lotterybook.tickets.iterative import find_ticket, tickets
from lotterybook.tickets.late_rewinding import rewind_step, rewound_to
from lotterybook.tickets.rounds import first_run
torch.set_num_threads(1)

find = partial(find_ticket, progress=False)
half = pruner(.5)
T, K = 12, 5

class Net(nn.Module):
    "A norm layer, dropout, and a count that is kept out of files."
    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.out = nn.Linear(64, 20), nn.BatchNorm1d(20), nn.Linear(20, 10)
        self.drop = nn.Dropout(.2)
        self.register_buffer('calls', torch.zeros((), dtype=torch.long), persistent=False)
    def forward(self, x):
        self.calls += 1
        return self.out(self.drop(F.relu(self.norm(self.layer(x.flatten(1))))))

OPTIMIZERS = dict(momentum=partial(torch.optim.SGD, lr=.1, momentum=.9, weight_decay=1e-3),
                  adam=partial(torch.optim.Adam, lr=.01), fused=partial(FusedAdam, lr=.01))

def norm_run(seed, optimizer='momentum'):
    "Does not hand its seed to the run: the search does."
    net = Net()
    return Run(net, OPTIMIZERS[optimizer](net.parameters()))

def rate(run): return .1*(1 - run.step/T)

def ordered(seed): return seeded(example_batches(digits.x_train, digits.y_train, 60, seed), seed)

def train(run, end=T, hooks=()):
    "Order, dropout and schedule are functions of seed and step."
    advance(run, cross_entropy, ordered(run.seed), end, [LearningRate(rate), *hooks])
    return run.step

def whole(make, train, seed=0):
    "One training without an interruption."
    run = first_run(make, seed)
    train(run)
    return run.state_dict()

def momentum(run, name):
    return run.optimizer.state[run.net.get_parameter(name)]['momentum_buffer']

# --- one training, cut in two

@pytest.mark.parametrize('k', [0, 1, K, T - 1])
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_a_full_mask_is_one_training(optimizer, k):
    "Weights, norm statistics, momentum, Adam's count of steps, order, dropout, schedule: each bit."
    make, seed = partial(norm_run, optimizer=optimizer), 3
    (run, _), = tickets(first_run(rewound_to(make, train, k, T), seed), train, half, 0)
    assert run.step == T and same(run.state_dict(), whole(make, train, seed))

def test_a_full_mask_is_one_training_of_the_front_door():
    "`train_run`, with validation: weights, statistics, memory to the bit; one row more, at k."
    def go(run, end=T):
        train_run(run, digits, end, lr=lambda step: .1/(1 + step), eval_every=4)
    (run, _), = tickets(first_run(rewound_to(norm_run, go, K, T), 0), go, half, 0)
    have, want = run.state_dict(), whole(norm_run, go)
    for part in ('net', 'optimizer', 'step'): assert same(have[part], want[part])
    assert [o['step'] for o in want['rows']] == [4, 8, 12]
    assert [o['step'] for o in have['rows']] == [4, K, 8, 12]

@pytest.mark.parametrize('k', [1, K])
def test_pruned_rounds_by_hand(k):
    "A second route: rounds are k dense steps made anew, then the masks, then the other steps."
    found = find(rewound_to(norm_run, train, k, T), train, half, rounds=2, seed=1)
    for ticket in found:
        run = first_run(norm_run, 1)
        train(run, k)
        assert same(snapshot(run.net), ticket.theta_0)
        run.set_masks(ticket.masks)
        train(run)
        assert same(snapshot(run.net), ticket.theta_T)

def test_steps_are_counted():
    "k dense steps once; then T - k in every round, of the batches from k on."
    asked = []
    def counting(run, end=T):
        def noted(start, end): asked.append((start, end)); return batches(start, end)
        return advance(run, cross_entropy, noted, end).step
    found = find(rewound_to(make_run_sgd, counting, K, T), counting, half, rounds=3)
    assert asked == [(0, K)] + [(K, T)]*4
    assert [t.settings['outcome'] for t in found] == [T]*4

def make_run_sgd(seed):
    net = mlp()
    return Run(net, torch.optim.SGD(net.parameters(), .1, momentum=.9))

def test_rates_continue():
    "The schedule goes on from k in every round."
    rates = []
    class Note(Hook):
        def before_step(self, run): rates.append(run.optimizer.param_groups[0]['lr'])
    go = partial(train, hooks=[Note()])
    find(rewound_to(norm_run, go, K, T), go, half, rounds=1)
    want = [.1*(1 - step/T) for step in range(T)]
    assert rates == want + want[K:]

def test_all_buffers_are_rewound():
    "Norm statistics, integer counts, and what is kept out of files, at the start of every round."
    starts = []
    def noting(run, end=T):
        if end == T: starts.append(run.state_dict())
        return train(run, end)
    find(rewound_to(norm_run, noting, K, T), noting, half, rounds=2)
    for s in starts:
        assert s['net']['norm.num_batches_tracked'] == K and s['buffers']['calls'] == K
        assert s['net']['norm.num_batches_tracked'].dtype == torch.long
        for name in ('norm.running_mean', 'norm.running_var', 'norm.weight', 'layer.bias'):
            assert torch.equal(s['net'][name], starts[0]['net'][name])
    assert starts[0]['net']['norm.running_mean'].any()

def test_the_saved_start_is_a_copy():
    "Training and pruning do not move theta_k."
    at_k = rewound_to(norm_run, train, K, T)
    before = snapshot(first_run(at_k, 0).net)
    for ticket in find(at_k, train, half, rounds=2): assert same(ticket.theta_0, before)

# --- the optimizer's memory

@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_memory_kept_and_fresh(optimizer):
    "Kept: in every round that of step k, under its mask. Fresh: none. The weights at k are the same."
    make, starts = partial(norm_run, optimizer=optimizer), []
    def noting(run, end=T):
        if end == T: starts.append(run.state_dict())
        return train(run, end)
    kept_memory, fresh = (find(rewound_to(make, noting, K, T, memory), noting, half, rounds=1)
                          for memory in ('kept', 'fresh'))
    one, two = kept_memory[1], fresh[0]
    assert same(one.theta_0, two.theta_0) and not same(kept_memory[0].theta_T, two.theta_T)
    memory = [s['optimizer']['state'] for s in starts]
    assert memory[2:] == [{}, {}]
    mask = one.masks['layer.weight']
    for name in memory[0][0].keys() - {'step'}:
        assert memory[0][0][name][~mask].any()
        assert torch.equal(memory[1][0][name], memory[0][0][name].where(mask, torch.zeros(())))
    if optimizer == 'adam': assert memory[1][0]['step'] == K

def test_kept_without_an_optimizer():
    "Refused, for there is nothing to keep; a loop that makes its own begins fresh."
    def stranger(run, end=T):
        optimizer = torch.optim.SGD(run.net.parameters(), .1, momentum=.9)
        with keep_pruned(run.net, run.masks):
            for x, y in ordered(run.seed)(run.step, end):
                optimizer.zero_grad()
                F.cross_entropy(run.net(x), y).backward()
                optimizer.step()
                run.step += 1
        return run.step
    with pytest.raises(ValueError, match="memory='kept', but the run has no optimizer"):
        find(rewound_to(make_run, stranger, K, T), stranger, half, rounds=1)
    found = find(rewound_to(make_run, stranger, K, T, 'fresh'), stranger, half, rounds=1)
    other = find(rewound_to(make_run_sgd, train, K, T, 'fresh'),
                 lambda run: stranger(run), half, rounds=1)
    assert [t.settings['outcome'] for t in found] == [T, T] and not same(found, other)

# --- random numbers

def test_the_seed_of_the_first_steps():
    "That of the replicate, though make_run leaves it out; a new draw of a control has its own."
    seeds = []
    def noting(run, end=T): seeds.append(run.seed); return train(run, end)
    first_run(rewound_to(norm_run, noting, K, T), 7)
    first_run(rewound_to(norm_run, noting, K, T), 7, 'reinit', 1)
    assert seeds[0] == 7 and seeds[1] != 7

def test_streams():
    "A shuffling loader gives a round other batches than the first steps; the caller's generator stays."
    seen = []
    def shuffling(run, end=T):
        with keep_pruned(run.net, run.masks):
            for x, y in loader():
                if run.step == end: break
                seen.append(x.sum().item())
                run.optimizer.zero_grad()
                F.cross_entropy(run.net(x), y).backward()
                run.optimizer.step()
                run.step += 1
    torch.manual_seed(5); want = torch.rand(2); torch.manual_seed(5)
    at_k = rewound_to(make_run_sgd, shuffling, 3, 6)
    find(at_k, partial(shuffling, end=6), half, rounds=1)
    assert torch.equal(torch.rand(2), want)
    first, one, two = seen[:3], seen[3:6], seen[6:]
    assert one == two and first != one
    torch.manual_seed(9)
    a, b = (snapshot(at_k(0).net) for _ in range(2))
    assert same(a, b) and not same(a, snapshot(at_k(1).net))

def test_the_weights_of_step_0_are_those_of_the_plain_search():
    "k=0 changes nothing."
    plain = find(norm_run, train, half, rounds=2)
    assert same([t._asdict() for t in find(rewound_to(norm_run, train, 0, T), train, half, rounds=2)],
                [t._asdict() for t in plain])

# --- killed and resumed

class Ticks(Hook):
    "Raises after so many steps of all trainings."
    def __init__(self, n): self.n = n
    def after_step(self, run):
        self.n -= 1
        if self.n == 0: raise KeyboardInterrupt

def drop_run(seed):
    net = batchnorm_mlp(64, 10, (30, 20))
    net.relu1 = nn.Sequential(nn.ReLU(), nn.Dropout(.3))
    return Run(net, torch.optim.SGD(net.parameters(), .1, momentum=.9))

def in_folder(folder, hooks=(), memory='kept', k=K):
    "A search that keeps its rounds, and the state of the round in flight."
    def go(run, end=T):
        train_run(run, digits, end, eval_every=4, hooks=hooks, file=run.file, save_every=3)
    return find(rewound_to(drop_run, go, k, T, memory), go, half, rounds=2, folder=folder,
                settings=dict(k=k, memory=memory))

@pytest.mark.parametrize('memory', ['kept', 'fresh'])
def test_killed_in_the_first_steps_and_in_a_round(memory, tmp_path):
    "At every third step of the whole search, again in the first steps: the same folder, byte for byte."
    want = [t._asdict() for t in in_folder(tmp_path/'whole', memory=memory)]
    for n in range(2, K + 3*(T - K), 3):
        folder = tmp_path/f'broken{n}'
        for kill in (n, 2):  # the second in the first steps of the resumed search
            with pytest.raises(KeyboardInterrupt): in_folder(folder, [Ticks(kill)], memory)
        torch.manual_seed(n)
        assert same([t._asdict() for t in in_folder(folder, memory=memory)], want)
        assert files(folder) == files(tmp_path/'whole')
    assert '.ticket-start' in files(tmp_path/'whole')

@pytest.mark.parametrize('k, memory, why', [(K + 1, 'kept', f'k was {K}, is {K + 1}'),
                                            (K, 'fresh', "memory was 'kept', is 'fresh'")])
def test_another_start_in_the_folder(k, memory, why, tmp_path):
    "Refused by name, if k and the memory stand in the settings."
    in_folder(tmp_path)
    with pytest.raises(ValueError, match=why): in_folder(tmp_path, memory=memory, k=k)

def test_another_step_in_the_folder(tmp_path):
    "Refused, though the settings say nothing of it."
    def go(k): return find(rewound_to(norm_run, train, k, T), train, half, rounds=1,
                           folder=tmp_path, settings={})
    go(K)
    with pytest.raises(ValueError, match=f'begin at step {K}, not {K + 1}'): go(K + 1)

# --- controls

@pytest.mark.parametrize('name', [name for name in CONDITIONS if name != 'ticket'])
def test_controls_at_k(name):
    "They begin at k with the ticket's counts; those of theta_k have it, and its momentum, masked."
    at_k  = rewound_to(norm_run, train, K, T)
    found = find(at_k, train, half, rounds=2)
    run   = control_run(name, found.__getitem__, at_k, 0, 2, half)
    assert (run.step, run.seed) == (K, 0) and kept(run.masks) == kept(found[2].masks)
    first = first_run(at_k, 0)
    for layer, mask in run.masks.items():
        own = CONDITIONS[name].weights == 'theta_0'
        weights = run.net.get_parameter(layer)
        assert torch.equal(weights[mask], found[2].theta_0[layer][mask]) == own
        assert not weights[~mask].any() and not momentum(run, layer)[~mask].any()
        assert torch.equal(momentum(run, layer), momentum(first, layer)*mask) == own
    assert train(run) == T

def test_reinit_at_k_is_trained_dense_and_then_masked():
    "New weights, k steps with all of them in an order of their own, then the mask of the ticket."
    at_k  = rewound_to(norm_run, train, K, T)
    found = find(at_k, train, half, rounds=2)
    run   = control_run('reinit', found.__getitem__, at_k, 0, 2, half)
    seeds = []
    def noting(seed): seeds.append(seed); return norm_run(seed)
    control_run('reinit', found.__getitem__, rewound_to(noting, train, K, T), 0, 2, half)
    new = first_run(norm_run, seeds[0])
    assert not same(snapshot(new.net), snapshot(first_run(norm_run, 0).net))
    train(new, K)
    new.set_masks(found[2].masks)
    assert same(snapshot(new.net), snapshot(run.net))

# --- what is refused

@pytest.mark.parametrize('k, steps, why', [
    (T, T, f'k={T} leaves nothing to train: the whole training has steps={T}'),
    (T + 3, T, f'k={T + 3} leaves nothing'), (0, 0, 'steps=0 must be a whole number'),
    (-1, T, 'k=-1 must be'), (.05, T, 'k=0.05 must be a whole number'), (True, T, 'k=True must be')])
def test_steps_beyond_training(k, steps, why):
    "Before anything is trained, with both numbers."
    with pytest.raises(ValueError, match=re.escape(why)): rewound_to(norm_run, train, k, steps)

def test_unknown_memory():
    with pytest.raises(ValueError, match="unknown memory 'old'; known are kept, fresh"):
        rewound_to(norm_run, train, K, T, 'old')

class StopsAt(Hook):
    def __init__(self, step): self.step = step
    def after_step(self, run): run.stopped = run.step == self.step

def uncounted(run, end=T):
    state = run.step
    train(run, end)
    run.step = state

@pytest.mark.parametrize('go, at', [
    (lambda run, end=T: None, 0), (uncounted, 0), (lambda run, end=T: train(run), T),
    (lambda run, end=T: train(run, end - 1), K - 1), (partial(train, hooks=[StopsAt(2)]), 2)],
    ids=['nothing', 'uncounted', 'to the end', 'one less', 'stopped'])
def test_a_training_that_does_not_reach_k(go, at):
    "Refused, with the step that it reached."
    with pytest.raises(ValueError, match=rf'train\(run, {K}\) left run.step at {at}: it must'):
        find(rewound_to(norm_run, go, K, T), go, half, rounds=1)

def test_stopped_at_k():
    "A run that a hook has stopped at step k would not train in any round."
    go = partial(train, hooks=[StopsAt(K)])
    with pytest.raises(ValueError, match='stopped by a hook'):
        find(rewound_to(norm_run, go, K, T), go, half, rounds=1)

def test_no_run():
    "What make_run gives is checked before it is trained."
    with pytest.raises(ValueError, match='make_run gave a Net'):
        rewound_to(lambda seed: Net(), train, K, T)(0)

def test_masks_of_ones_own():
    "The first steps train under them: a training inside keep_pruned finds masks, its own or full."
    seen = []
    def noting(run, end=T): seen.append(list(run.masks)); return train(run, end)
    def own(seed):
        run = norm_run(seed)
        run.set_masks(full_masks(run.net, exclude='out.*'))
        return run
    rewound_to(own, noting, K, T)(0), rewound_to(norm_run, noting, K, T)(0)
    assert seen == [['layer.weight'], ['layer.weight', 'out.weight']]

def test_later_and_later():
    "A rewound run may be rewound to a later step: the same as in one go."
    twice = rewound_to(rewound_to(norm_run, train, 2, T), train, K, T)
    assert same(twice(0).state_dict(), rewound_to(norm_run, train, K, T)(0).state_dict())

# --- shares

@given(st.integers(2, 10**6), st.floats(0, 1, exclude_max=True))
def test_a_share_of_training(steps, share):
    "The nearest step, always one that rewound_to takes; or an error with both numbers."
    try: k = rewind_step(share, steps)
    except ValueError as e:
        assert f'share={share} of {steps} steps' in str(e)
        assert 0 < share*steps <= .5 or share*steps >= steps - .5
        return
    assert 0 <= k < steps and abs(k - share*steps) <= .5 and (k == 0) == (share == 0)
    assert type(k) is int
    rewound_to(norm_run, train, k, steps)

@pytest.mark.parametrize('share, steps, k', [(0, 120, 0), (.05, 120, 6), (.01, 63_000, 630)])
def test_shares_by_hand(share, steps, k): assert rewind_step(share, steps) == k

@pytest.mark.parametrize('share, steps, why', [
    (.001, 120, 'share=0.001 of 120 steps is 0.12, which rounds to 0'),
    (.999, 120, 'which rounds to 120; give rewound_to a k from 1 to 119'),
    (1, 120, 'share=1 must be at least 0 and below 1'), (5, 120, 'share=5 must'),
    (float('nan'), 120, 'share=nan must'), (.1, 0, 'steps=0 must'), (.1, 12.5, 'steps=12.5 must')])
def test_shares_refused(share, steps, why):
    with pytest.raises(ValueError, match=re.escape(why)): rewind_step(share, steps)
