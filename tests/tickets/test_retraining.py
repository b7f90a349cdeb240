"Retraining: the rates, steps, weights and memory of each way; a trained network of anyone; what is refused."
from functools import partial
from types import SimpleNamespace
import pytest, torch
from torch import nn
from torch.nn import functional as F
from ticket_loops import batches, cross_entropy, digits, files, mlp, x60, y60
from sameness import same
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.hooks import LearningRate
from lotterybook.foundations.networks import batchnorm_mlp
from lotterybook.foundations.running import Hook, Run, advance
from lotterybook.foundations.training import train_run
from lotterybook.pruning.allocation import global_
from lotterybook.pruning.masked_training import keep_pruned
from lotterybook.pruning.masks import full_masks, kept
from lotterybook.pruning.schedules import pruner
from lotterybook.tickets.iterative import find_ticket, tickets
from lotterybook.tickets.retraining import WAYS, Way, prune_and_retrain, retrain
torch.set_num_threads(1)

T, t = 12, 5
half = pruner(.5)

def lr(step):
    "Another rate at each step, so that no step can be taken for another."
    return .1 / (1 + step)

class Watch(Hook):
    "Notes the rate, the step and the images of each step."
    def __init__(self): self.rates, self.steps, self.seen = [], [], []
    def before_step(self, run):
        self.steps.append(run.step)
        self.rates.append(run.optimizer.param_groups[0]['lr'])
        self.seen.append(run.batch[0].sum().item())

def small(seed=0): return batchnorm_mlp(64, widths=(20, 10), seed=seed)

def go(run, lr=lr, end=T, hooks=()):
    "The training: on from `run.step` to T, at the rates of those steps."
    hooks = [LearningRate(lambda run: lr(run.step)), *hooks]
    advance(run, cross_entropy, batches, end, hooks)
    return run.step

def make(seed=0, end=T, net=None):
    "A run after some steps, with momentum."
    net = net or small(seed)
    run = Run(net, torch.optim.SGD(net.parameters(), .1, momentum=.9), full_masks(net), seed)
    return go(run, end=end) and run

@pytest.fixture
def world():
    "A trained run, the weights that it had at step T - t, and new ones."
    rewound = snapshot(make(end=T - t).net)
    run = make()
    return SimpleNamespace(run=run, trained=snapshot(run.net), rewound=rewound, new=snapshot(small(seed=1)))

def begin_and_train(way, world, rounds=3, prune=half, **more):
    "Tickets of a way, the state at the beginning of each retraining, and the watch of each."
    starts, watches = [], []
    def train(run, lr):
        starts.append(run.state_dict())
        watches.append(Watch())
        return go(run, lr, hooks=[watches[-1]])
    weights = dict(rewound=world.rewound, new=world.new)
    found = retrain(way, world.run, train, prune, lr, t, rounds, weights, **more)
    return found, starts, watches

# --- what each of the five ways does

def test_the_five_ways():
    "The table of the page."
    assert WAYS == dict(fine_tuning=('trained', 'last'), weight_rewinding=('rewound', 'schedule'),
                        learning_rate_rewinding=('trained', 'schedule'), low_rate_weight_rewinding=('rewound', 'last'),
                        reinit=('new', 'schedule'))

@pytest.mark.parametrize('way', WAYS)
def test_rates_steps_and_data(way, world):
    "t steps, each at its rate: those of T - t to T, or the last one; and on the images of those steps."
    all_steps = Watch()
    go(make(end=T - t), hooks=[all_steps])
    _, _, watches = begin_and_train(way, world)
    want = [lr(T - 1)]*t if WAYS[way].rate == 'last' else [lr(step) for step in range(T - t, T)]
    assert len(watches) == 3
    for watch in watches:
        assert watch.steps == list(range(T - t, T)) == all_steps.steps
        assert watch.rates == want and watch.seen == all_steps.seen

@pytest.mark.parametrize('way', WAYS)
def test_weights_at_the_beginning(way, world):
    "Trained, of step T - t, or new, under the mask; with them biases, norm scales and norm statistics."
    found, starts, _ = begin_and_train(way, world)
    for r, (ticket, start) in enumerate(zip(found, starts)):
        last  = found[r - 1].theta_T if r else world.trained
        theta = dict(trained=last, rewound=world.rewound, new=world.new)[WAYS[way].weights]
        masked = {k: v*ticket.masks[k] if k in ticket.masks else v for k, v in theta.items()}
        assert same(dict(start['net']), masked)
        assert same({k: v*ticket.masks[k] if k in ticket.masks else v for k, v in ticket.theta_0.items()}, masked)
        tracked = dict(trained=T + r*t, rewound=T - t, new=0)[WAYS[way].weights]
        assert start['net']['norm1.num_batches_tracked'] == tracked

@pytest.mark.parametrize('way', WAYS)
def test_counts_and_nesting(way, world):
    "Exactly half of each layer a round, of what the round before kept; pruned weights end at zero."
    found, _, _ = begin_and_train(way, world)
    before = world.run.masks
    for ticket in found:
        for k, mask in ticket.masks.items():
            assert mask.sum() == before[k].sum() - round(.5*before[k].sum().item()) and not (mask & ~before[k]).any()
            assert not ticket.theta_T[k][~mask].any() and ticket.theta_T[k][mask].all()
        before = ticket.masks

@pytest.mark.parametrize('way', WAYS)
def test_the_first_mask_is_of_the_trained_weights(way, world):
    "Whatever the retraining begins with; and one-shot pruning has exact counts, too."
    cut = pruner(.9, allocation=global_)
    found, _, _ = begin_and_train(way, world, rounds=1, prune=cut)
    sizes = torch.cat([world.trained[k].abs().flatten() for k in world.run.masks])
    assert sum(kept(found[0].masks).values()) == len(sizes) - round(.9*len(sizes))
    smallest = min(world.trained[k][m].abs().min() for k, m in found[0].masks.items())
    assert smallest >= max(world.trained[k][~m].abs().max() for k, m in found[0].masks.items())

@pytest.mark.parametrize('way', WAYS)
def test_the_memory_of_the_optimizer_is_fresh(way, world):
    "No momentum of the training, nor of the round before."
    assert world.run.optimizer.state
    _, starts, _ = begin_and_train(way, world)
    assert not any(start['optimizer']['state'] for start in starts)

def test_the_run_is_as_before(world):
    "So the next way begins with the same network; after an error, too."
    state = world.run.state_dict()
    for way in WAYS:
        begin_and_train(way, world)
        assert same(world.run.state_dict(), state)
    def fail(run, lr): run.net[1].weight.data.zero_(); raise RuntimeError('mine')
    with pytest.raises(RuntimeError, match='mine'): retrain('fine_tuning', world.run, fail, half, lr, t)
    assert same(world.run.state_dict(), state)

def test_new_weights_of_each_round(world):
    "A function of the round gives each of them its own."
    starts = []
    def train(run, lr):
        starts.append(snapshot(run.net)['norm1.bias'])
        return go(run, lr)
    def new(round): return {k: torch.full_like(v, round) for k, v in world.new.items()}
    found = retrain('reinit', world.run, train, half, lr, t, 2, dict(new=new))
    assert [o.unique().tolist() for o in starts] == [[1.], [2.]]
    assert [o.theta_0['norm1.bias'].unique().tolist() for o in found] == [[1.], [2.]]

# --- second routes

def test_learning_rate_rewinding_by_hand(world):
    "The algorithm as one would write it: the same masks, weights and accuracies to the last bit."
    found = prune_and_retrain(make(), go, half, t, rounds=3)
    net   = small()
    net.load_state_dict(world.trained)
    masks = full_masks(net)
    for ticket in found:
        masks = {k: m & (net.get_parameter(k).abs() > net.get_parameter(k)[m].abs().sort().values[round(.5*m.sum().item()) - 1])
                 for k, m in masks.items()}
        optimizer = torch.optim.SGD(net.parameters(), .1, momentum=.9)
        with keep_pruned(net, masks, optimizer):
            for step, (x, y) in enumerate(batches(T - t, T), T - t):
                optimizer.param_groups[0]['lr'] = lr(step)
                optimizer.zero_grad()
                F.cross_entropy(net(x), y).backward()
                optimizer.step()
        assert same(ticket.masks, masks) and same(ticket.theta_T, snapshot(net))

def test_nothing_pruned_is_going_on():
    "Full masks: learning-rate rewinding is t more steps, with the rates and images of the last t."
    found = prune_and_retrain(make(), go, lambda run: run.masks, t)
    more  = make()
    more.forget()
    more.step = T - t
    go(more)
    assert same(found[0].theta_T, snapshot(more.net))

@pytest.mark.parametrize('steps', [t, T])
def test_weight_rewinding_is_a_search_from_that_step(steps):
    "find_ticket of the run at step T - t without momentum: the same tickets to the last bit. t = T: the lottery ticket."
    def at(seed):
        net = small(seed)
        run = Run(net, torch.optim.SGD(net.parameters(), .1, momentum=.9), full_masks(net), seed)
        if steps < T: go(run, end=T - steps)
        return run
    def train(run):
        if run.round: run.forget()
        return go(run)
    search = find_ticket(at, train, half, rounds=3, progress=False)
    run    = at(0)
    theta  = snapshot(run.net)
    go(run)
    found = retrain('weight_rewinding', run, go, half, lr, steps, 3, dict(rewound=theta))
    assert same([o._asdict() for o in search[1:]], [o._asdict() for o in found])

def test_learning_rate_rewinding_is_prune_and_retrain(world):
    "The front door is this one of the five ways."
    found, _, _ = begin_and_train('learning_rate_rewinding', world)
    assert same([o._asdict() for o in found], [o._asdict() for o in prune_and_retrain(make(), go, half, t, 3)])

def test_low_rate_differs_from_both(world):
    "Four ways from one mask lead to four networks."
    ends = [begin_and_train(way, world, rounds=1)[0][0] for way in WAYS]
    for a in range(5):
        for b in range(a): assert same(ends[a].masks, ends[b].masks) and not same(ends[a].theta_T, ends[b].theta_T)

# --- a trained network of one's own

def stranger(run):
    "A loop such as people have: its own optimizer and schedule, set forward to the run's step."
    optimizer = torch.optim.SGD(run.net.parameters(), .1, momentum=.9, weight_decay=1e-2)
    schedule  = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1/(1 + step))
    for _ in range(run.step): optimizer.step(); schedule.step()
    with keep_pruned(run.net, run.masks):
        for x, y in batches(run.step, T):
            optimizer.zero_grad()
            F.cross_entropy(run.net(x), y).backward()
            optimizer.step()
            schedule.step()
    return optimizer.param_groups[0]['lr']

def test_a_loop_of_a_stranger():
    "A run without optimizer or masks: the net ends pruned and trained, and the run at step T again."
    run = Run(mlp(3))
    run.step = T
    before = snapshot(run.net)
    found  = prune_and_retrain(run, stranger, half, t, rounds=2)
    assert [o.settings['outcome'] for o in found] == [pytest.approx(.1/(1 + T))]*2 and run.step == T
    assert [kept(o.masks) for o in found] == [{'1.weight': 960, '3.weight': 150}, {'1.weight': 480, '3.weight': 75}]
    assert same(snapshot(run.net), found[1].theta_T) and same(run.masks, found[1].masks)
    assert [o.settings['round'] for o in found] == [1, 2]
    assert not same(before['1.bias'], found[0].theta_T['1.bias'])

def test_the_training_of_the_library():
    "train_run from step T - t, at the rates of those steps; the best step is one of this size."
    net = small()
    run, watch = Run(net, torch.optim.SGD(net.parameters(), .1, momentum=.9)), Watch()
    def train(run): return train_run(run, digits, T, 60, lr, eval_every=5, hooks=[watch] if run.round else [])
    train(run)
    found = prune_and_retrain(run, train, half, t, rounds=2)
    assert watch.steps == [*range(T - t, T)]*2 and watch.rates == [lr(step) for step in range(T - t, T)]*2
    assert all(T - t < o.settings['outcome']['stop_step'] <= T for o in found)

def test_again_goes_on(world):
    "Two calls of one round are one call of two: the step is T again after each."
    twice = make()
    first, = prune_and_retrain(twice, go, half, t)
    second, = prune_and_retrain(twice, go, half, t)
    both = prune_and_retrain(make(), go, half, t, rounds=2)
    assert same([first.theta_T, second.theta_T], [o.theta_T for o in both])
    assert same([first.masks, second.masks], [o.masks for o in both])

def test_a_schedule_of_cuts():
    "A list of rates begins with its first: the rounds are numbered from 1."
    found = prune_and_retrain(make(), go, pruner([.75, .5]), t, rounds=2)
    assert [kept(o.masks)['layer1.weight'] for o in found] == [320, 160]

def test_pruned_weights_may_not_come_back():
    "A loop that forgets the mask is noticed, and the run is as before."
    def forgetful(run):
        run.net.layer1.weight.data.add_(1)
        run.net(x60).sum().backward()
    run = make()
    state = run.state_dict()
    with pytest.raises(ValueError, match="pruned weights are not zero: 640 of 'layer1.weight'"):
        prune_and_retrain(run, forgetful, half, t)
    assert same(run.state_dict(), state)

# --- a folder

class Killed(BaseException): pass

@pytest.mark.parametrize('steps', [t, T])
def test_killed_and_resumed(tmp_path, steps):
    "After a kill in the third round two are read, and all are the same bits; another network is refused."
    calls = []
    def train(run, kill=False):
        calls.append(run.round)
        if kill and run.round == 3: raise Killed
        return go(run)
    want = prune_and_retrain(make(), go, half, steps, rounds=4)
    keep = dict(rounds=4, folder=tmp_path, settings=dict(rate=.5))
    with pytest.raises(Killed): prune_and_retrain(make(), partial(train, kill=True), half, steps, **keep)
    run = make()
    found = prune_and_retrain(run, train, half, steps, **keep)
    assert calls == [1, 2, 3, 3, 4]
    for a, b in zip(found, want):
        assert same([a.theta_0, a.masks, a.theta_T], [b.theta_0, b.masks, b.theta_T])
    content = files(tmp_path)
    again = make()
    read  = prune_and_retrain(again, train, half, steps, **keep)
    assert len(calls) == 5 and same([o.theta_T for o in read], [o.theta_T for o in want]) and files(tmp_path) == content
    assert same(snapshot(again.net), want[-1].theta_T) and again.step == T
    with pytest.raises(ValueError, match='trained was .*, is'): prune_and_retrain(make(seed=1), train, half, steps, **keep)
    with pytest.raises(ValueError, match=f'retrained_steps was {steps}, is 3'): prune_and_retrain(make(), train, half, 3, **keep)
    with pytest.raises(ValueError, match='rate was 0.5, is 0.2'):
        prune_and_retrain(make(), train, half, steps, **keep | dict(settings=dict(rate=.2)))

# --- what is refused

@pytest.mark.parametrize('steps, message', [
    (-3, f'steps=-3: a network trained for {T} steps can be retrained for 1 to {T} of them'),
    (0, f'steps=0: a network trained for {T} steps can be retrained for 1 to {T} of them'),
    (T + 1, f'steps={T + 1}: a network trained for {T} steps can be retrained for 1 to {T} of them')])
def test_a_budget_that_is_none(world, steps, message):
    "Named with both numbers, by both functions; the run stays."
    state = world.run.state_dict()
    with pytest.raises(ValueError, match=message): prune_and_retrain(world.run, go, half, steps)
    with pytest.raises(ValueError, match=message): retrain('fine_tuning', world.run, go, half, lr, steps)
    assert same(world.run.state_dict(), state)

def test_a_run_that_is_not_trained():
    "It says how to name the steps of another program."
    with pytest.raises(ValueError, match='taken no steps: train it first.*run.step = 10_000'):
        prune_and_retrain(Run(mlp()), go, half, t)
    with pytest.raises(ValueError, match='taken no steps'): retrain('reinit', Run(mlp()), go, half, lr, t)

@pytest.mark.parametrize('way, what', [('weight_rewinding', f'weights of step {T - t}.*rewound='), ('reinit', 'of another seed.*new='),
                                       ('low_rate_weight_rewinding', f'weights of step {T - t}.*rewound=')])
def test_weights_that_are_not_there(world, way, what):
    "A way that needs them says which, and how to keep them."
    with pytest.raises(ValueError, match=f'{way} needs the {what}' if way != 'reinit' else what):
        retrain(way, world.run, go, half, lr, t)

def test_other_mistakes(world):
    with pytest.raises(ValueError, match='lr_rewinding.*learning_rate_rewinding'): retrain('lr_rewinding', world.run, go, half, lr, t)
    with pytest.raises(ValueError, match='layer1.weight has shape'):
        retrain('weight_rewinding', world.run, go, half, lr, t, weights=dict(rewound=snapshot(batchnorm_mlp(64, seed=0))))
    with pytest.raises(ValueError, match='train cannot be called with one argument'):
        prune_and_retrain(world.run, lambda run, lr: None, half, t)
    with pytest.raises(ValueError, match='folder needs settings'): prune_and_retrain(world.run, go, half, t, folder='a')
    assert isinstance(WAYS['reinit'], Way)

def test_tickets_keep_weights(world):
    "The one argument of the search loop: no round 0; weights stay, and all else is that of the start."
    run = world.run
    run.step, run.extra['mine'] = T - t, 'start'
    seen = []
    def train(run):
        seen.append((run.round, run.step, dict(run.extra), bool(run.optimizer.state)))
        run.extra['mine'] = 'end'
        go(run)
    rounds = [ticket.settings['round'] for _, ticket in tickets(run, train, half, 2, keep_weights=True)]
    assert rounds == [1, 2] and seen == [(r, T - t, dict(mine='start'), True) for r in (1, 2)]

def test_norm_layers_of_a_wrapped_network():
    "Inside DataParallel, whose names begin with module."
    net = nn.DataParallel(small())
    run = Run(net, torch.optim.SGD(net.parameters(), .1), full_masks(net))
    run.step = T
    found = prune_and_retrain(run, go, half, t)
    assert F.cross_entropy(run.net(x60), y60).isfinite() and kept(found[0].masks)['layer1.weight'] == 640
