"The loop: language, control, stacks, sparse training, formulas; masks hold, runs go back."
import math
from copy import deepcopy
from functools import partial
from itertools import accumulate
import pytest, torch
from torch import nn
from torch.nn import functional as F
from kills import Kill, killed_and_resumed
from sameness import same
from lotterybook.foundations.checkpoints import advance_kept, snapshot
from lotterybook.foundations.data import load
from lotterybook.foundations.fast_steps import FusedAdam
from lotterybook.foundations.hooks import ClipGradient, FiniteLoss, LearningRate
from lotterybook.foundations.networks import lenet
from lotterybook.foundations.randomness import mixed_seed, random_stream, rng
from lotterybook.foundations.running import Hook, Held, Run, advance, check_masks, seeded, take_step
from lotterybook.foundations.training import Validate, classification, example_batches, validation
from lotterybook.ordered_neurons.formula_batches import encode_pairs, vocabulary
from lotterybook.ordered_neurons.language_model import (
    AverageWeights, averaged, begin_average, first_model, lm_objective, lm_settings, mean_nats,
    window_batches)
from lotterybook.ordered_neurons.logical_inference import PairClassifier, pair_batches, pair_loss
from lotterybook.ordered_neurons.propositional_logic import generate_pairs
from lotterybook.ordered_neurons.small_grammar import as_corpus
from lotterybook.ordered_neurons.text import Vocabulary, in_columns, stream, windows
from lotterybook.pruning.allocation import keep_top, per_layer
from lotterybook.pruning.masks import distance, full_masks, kept, remaining
torch.set_num_threads(1)
digits = load('digits')
cross_entropy = classification()
adam = partial(torch.optim.Adam, lr=1.2e-3)
sgd  = partial(torch.optim.SGD, lr=.1, momentum=.9)

def digit_batches(seed=0): return example_batches(digits.x_train, digits.y_train, 60, seed)

def digits_run(seed=0, make=partial(lenet, 64), optimizer=adam, masked=True):
    with random_stream(seed, 'init'): net = make()
    return Run(net, optimizer(net.parameters()), full_masks(net) if masked else None, seed)

def thin(run, share=.1):
    "Random masks that keep some weights of each layer."
    return {k: torch.rand(m.shape, generator=rng(0, k)) < share for k, m in run.masks.items()}

def sizes(run): return {k: run.net.get_parameter(k).detach().abs() for k in run.masks}

def pruned(run, rate=.2): return per_layer(sizes(run), run.masks, rate)

def linear_run(masks=None, optimizer=sgd, dtype=torch.float32):
    "One layer of three weights, all of them 1."
    net = nn.Linear(3, 1).to(dtype)
    nn.init.ones_(net.weight); nn.init.zeros_(net.bias)
    return Run(net, optimizer(net.parameters()), masks)

def total(net, x): return net(x).sum()

def ones(dtype=torch.float32):
    return lambda start, end: (torch.ones(2, 3, dtype=dtype) for _ in range(start, end))

first_only = {'weight': torch.tensor([[True, False, False]])}

class Does(Hook):
    "Something at one moment."
    def __init__(self, moment, what): setattr(self, moment, what)

# --- a. language: carried state, windows of odd length, AR and TAR, averaging

def epochs(columns, cuts, memory):
    "The windows of several epochs, one after the other."
    begins = [0, *accumulate(map(len, cuts))]
    def stream(start, end):
        for begin, stop, cut in zip(begins, begins[1:], cuts):
            if begin < end and start < stop:
                one = window_batches(columns, cut, begin, memory)
                yield from one(max(start, begin), min(end, stop))
    return stream

class Judge(Hook):
    "At the end of epochs: begin to average, validate the averaged weights."
    def __init__(self, columns, ends): self.columns, self.ends = columns, ends
    def after_step(self, run):
        if run.step not in self.ends: return
        if len(run.rows) == 1: begin_average(run)
        with averaged(run): run.rows.append(dict(nats=mean_nats(run.net, self.columns, 12)))

@pytest.mark.filterwarnings('ignore:.*top level is dead')
def test_language_resumes(tmp_path):
    "A language model with carried state and averaging ends with the same bits after any kills."
    corpus = as_corpus(200, 40, 40, 0, max_words=12)
    s = lm_settings('small', hidden=[], embedding=20, chunk_size=2)  # with dropout everywhere
    words = Vocabulary.of(corpus.train, 2)
    train, validate = (in_columns(stream(o, words), 10) for o in (corpus.train, corpus.validation))
    cuts = [windows(len(train), 12, rng(0, 'windows', epoch)) for epoch in range(3)]
    ends = list(accumulate(map(len, cuts)))
    rate = LearningRate(lambda run: 30*len(run.batch.ids)/12)
    hooks = [rate, ClipGradient(.25), AverageWeights(), Judge(validate, ends)]
    def make():
        with torch.random.fork_rng(): net = first_model(words, s, 0)
        return Run(net, torch.optim.SGD(net.parameters(), 1., weight_decay=1e-6))
    def do(run, file=None, more=()):
        batches = seeded(epochs(train, cuts, run.extra), 0)
        return advance_kept(run, lm_objective(run.extra, s['ar'], s['tar']), batches, ends[-1],
                            [*hooks, *more], file=file, settings={}, every=7)
    def told(state): state['extra'].pop('seconds'); return state
    whole = told(do(make()).state_dict())
    assert len(whole['rows']) == 3 and whole['extra']['average']['count'] == 1 + len(cuts[2])
    kills = [Kill(9, 'before_step'), Kill(ends[0] + 8), Kill(ends[2] - 2, 'on_gradient')]
    assert same(told(killed_and_resumed(make, do, tmp_path/'run', kills)), whole)

# --- b. control: batches depend on the network

class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.policy, self.value = nn.Linear(4, 64), nn.Linear(64, 2), nn.Linear(64, 1)
    def forward(self, x):
        h = self.body(x).tanh()
        return self.policy(h), self.value(h)[..., 0]

def policy_gradient(net, batch):
    x, actions, returns = batch
    logits, value = net(x)
    log_p = logits.log_softmax(-1).gather(1, actions[:, None])[:, 0]
    return -((returns - value).detach()*log_p).mean() + .5*(returns - value).square().mean()

def rollouts(run, envs=3, length=16, gamma=.99):
    "Steps of an agent that is the run's own network, as it then is."
    import gymnasium
    def begin(game, episode):  # an environment's state is the episode's seed and the actions since
        seed = mixed_seed(run.seed, 'episode', episode['number']) % 2**31
        seen = game.reset(seed=seed)[0]
        for action in episode['actions']: seen = game.step(action)[0]
        return torch.from_numpy(seen)
    def take(game, episode, action, step):
        seen, paid, fallen, cut, _ = game.step(action)
        episode['actions'].append(action)
        if not (fallen or cut): return torch.from_numpy(seen), paid, 0.
        run.rows.append(dict(step=step, length=len(episode['actions'])))
        episode.update(number=episode['number'] + envs, actions=[])
        return begin(game, episode), paid, 1.
    def stream(start, end):
        games = [gymnasium.make('CartPole-v1') for _ in range(envs)]
        first = [dict(number=i, actions=[]) for i in range(envs)]
        episodes = run.extra.setdefault('episodes', first)
        now = torch.stack([*map(begin, games, episodes)])
        for step in range(start, end):
            draw, xs, chosen, paid, over = rng(run.seed, 'actions', step), [], [], [], []
            for _ in range(length):
                with torch.no_grad(): p = run.net(now)[0].softmax(-1)
                actions = torch.multinomial(p, 1, generator=draw)[:, 0]
                went = [take(*o, step) for o in zip(games, episodes, actions.tolist())]
                xs.append(now); chosen.append(actions)
                now = torch.stack([seen for seen, _, _ in went])
                paid.append(torch.tensor([r for _, r, _ in went]))
                over.append(torch.tensor([d for _, _, d in went]))
            with torch.no_grad(): value = run.net(now)[1]
            returns = []
            for r, d in zip(reversed(paid), reversed(over)):
                value = r + gamma*value*(1 - d)
                returns.append(value)
            yield torch.cat(xs), torch.cat(chosen), torch.cat(returns[::-1])
    return stream

def test_control_resumes_and_is_scored(tmp_path):
    "An agent ends with the same bits after kills; |w dL/dw| goes through the same objective."
    pytest.importorskip('gymnasium')
    make = partial(digits_run, make=ActorCritic, optimizer=partial(torch.optim.Adam, lr=3e-3))
    def do(run, file=None, more=(), end=40):
        return advance_kept(run, policy_gradient, rollouts(run), end, more, file=file, settings={},
                            every=10)
    run   = do(make())
    whole = run.state_dict()
    assert whole['rows'] and any(o['actions'] for o in whole['extra']['episodes'])
    kills = [Kill(5), Kill(23, 'before_step'), Kill(34, 'on_gradient')]
    assert same(killed_and_resumed(make, do, tmp_path/'run', kills), whole)
    def score():
        twin = make()  # an agent's steps go to its run's memory: score on a copy
        twin.load_state_dict(whole)
        for batch in rollouts(twin)(twin.step, twin.step + 2):
            policy_gradient(twin.net, batch).backward()
        return {k: (p.detach()*p.grad).abs() for k, p in twin.net.named_parameters()}
    scores = score()
    assert same(scores, score()) and all(o.any() for o in scores.values())
    assert same(run.state_dict(), whole)
    run.set_masks(per_layer(scores, run.masks, .5))
    do(run, end=50).held.check()
    assert abs(remaining(run.masks) - .5) < .01

# --- c. stacked replicates: other seeds, other masks, other orders, one loop

def stacked(nets):
    "One module with the names of each and a leading axis."
    stack, (params, _) = deepcopy(nets[0]), torch.func.stack_module_state(nets)
    for name, p in params.items():
        path, _, own = name.rpartition('.')
        setattr(stack.get_submodule(path), own, nn.Parameter(p.detach()))
    return stack

def mlp(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))

def test_stacked_replicates(tmp_path):
    "Three replicates in one stack do what each does alone: weights and rows; and resume."
    seeds, base = (0, 1, 2), mlp()
    optimizer = partial(torch.optim.Adam, lr=.02)
    def alone(seed):
        run = digits_run(seed, mlp, optimizer)
        run.set_masks(pruned(run, .2 + .2*seed))
        return run
    def each(net, x, axis):
        f = partial(torch.func.functional_call, base)
        return torch.vmap(f, (0, axis))(dict(net.named_parameters()), (x,))
    def objective(net, batch): return torch.vmap(F.cross_entropy)(each(net, batch[0], 0), batch[1])
    def judge(logits): return F.cross_entropy(logits, digits.y_validation).item()
    def measure(net):
        losses = [judge(o) for o in each(net, digits.x_validation, None)]
        return dict(validation_loss=sum(losses), losses=losses)
    def measure_one(net): return dict(validation_loss=judge(net(digits.x_validation)))
    def batches(start, end):
        for parts in zip(*(digit_batches(s)(start, end) for s in seeds)):
            yield tuple(map(torch.stack, zip(*parts)))
    def make():
        runs  = [alone(s) for s in seeds]
        stack = stacked([o.net for o in runs])
        masks = {k: torch.stack([o.masks[k] for o in runs]) for k in runs[0].masks}
        return Run(stack, optimizer(stack.parameters()), masks)
    def do(run, file=None, more=()):
        hooks = [Validate(measure, 2), FiniteLoss(10), *more]
        return advance_kept(run, objective, batches, 60, hooks, file=file, settings={}, every=10)
    run = do(make())
    assert run.loss.shape == (3,)
    for i, s in enumerate(seeds):
        one = advance(alone(s), cross_entropy, digit_batches(s), 60, [Validate(measure_one, 2)])
        def close(a, b): return all(torch.allclose(a[k][i], b[k], atol=2e-4) for k in b)
        assert close(run.net.state_dict(), one.net.state_dict())
        pairs = [(r['losses'][i], o['validation_loss']) for r, o in zip(run.rows, one.rows)]
        assert len(pairs) == 30 and all(abs(a - b) < 1e-4 for a, b in pairs)
    kills = [Kill(13), Kill(31, 'before_step')]
    assert same(killed_and_resumed(make, do, tmp_path/'run', kills), run.state_dict())

# --- d. sparse training and early birds, as hooks

class RigL(Hook):
    "Evci et al. (2020)."
    @torch.no_grad()
    def on_gradient(self, run):
        if not run.step or run.step % 10 or run.step >= 60: return
        share, new = .15*(1 + math.cos(math.pi*run.step/60)), {}
        for name, mask in run.masks.items():
            p, n  = run.net.get_parameter(name), int(mask.count_nonzero())
            stays = keep_top(p.abs(), mask, n - round(share*n))
            grown = keep_top(p.grad.abs(), ~stays, n - int(stays.count_nonzero()))
            new[name] = stays | grown
        run.set_masks(new)
        run.optimizer.zero_grad()  # an update replaces the step: no weight has a gradient

class Gradual(Hook):
    "Zhu & Gupta (2017): cubic, from step 10 to step 50."
    def after_step(self, run):
        if run.step % 10 or not 10 <= run.step <= 50: return
        density = 1 - .9*(1 - (1 - (run.step - 10)/40)**3)
        def fewer(size, mask): return keep_top(size, mask, round(density*mask.numel()))
        run.set_masks({k: fewer(size, run.masks[k]) for k, size in sizes(run).items()})

class EarlyBird(Hook):
    "You et al. (2020): stop when the last three masks hardly differ."
    def after_step(self, run):
        if run.step % 10: return
        new, old = pruned(run, .5), run.extra.get('seen', [])[-2:]
        run.extra['seen'] = [*old, new]
        run.stopped = len(old) == 2 and max(distance(new, o) for o in old) <= .1

@pytest.mark.parametrize('hook', [RigL, Gradual, EarlyBird])
def test_sparse_training_resumes(hook, tmp_path):
    "Hooks that change masks, or stop: what they promise, and the same bits after kills."
    def make():
        run = digits_run(optimizer=FusedAdam)
        if hook is RigL: run.set_masks(thin(run))
        return run
    def do(run, file=None, more=()):
        return advance_kept(run, cross_entropy, digit_batches(), 80, [hook(), *more], file=file,
                            settings={}, every=7)
    run, first = do(make()), make().masks
    if hook is RigL: assert kept(run.masks) == kept(first) and not same(run.masks, first)
    if hook is Gradual: assert abs(remaining(run.masks) - .1) < .001
    if hook is EarlyBird: assert run.stopped and 30 <= run.step < 80
    run.held.check()
    kills = [Kill(9), Kill(20, 'on_gradient'), Kill(25, 'before_step')]
    assert same(killed_and_resumed(make, do, tmp_path/'run', kills), run.state_dict())

def test_regrown_weights_begin_from_nothing():
    "At an update of RigL no weight moves, and the moments of all that is new are zero."
    run = digits_run()
    run.set_masks(thin(run))
    advance(run, cross_entropy, digit_batches(), 20)
    masks, weights = run.masks, snapshot(run.net)
    advance(run, cross_entropy, digit_batches(), 21, [RigL()])
    for name, mask in run.masks.items():
        p, new = run.net.get_parameter(name), mask & ~masks[name]
        memory = run.optimizer.state[p]
        assert new.any() and not any(memory[k][new].any() for k in ('exp_avg', 'exp_avg_sq'))
        assert torch.equal(p, weights[name]*mask) and memory['step'] == 20

# --- e. dropout: what is drawn in a step is a function of seed and step

def dropout_net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 50), nn.BatchNorm1d(50), nn.ReLU(),
                         nn.Dropout(.5), nn.Linear(50, 10))

class Draws(Hook):
    def after_step(self, run): torch.rand(3)

def test_dropout_resumes(tmp_path):
    "A network with dropout and batch norm ends with the same bits after kills at all moments."
    make = partial(digits_run, make=dropout_net)
    def do(run, file=None, more=()):
        hooks = [Validate(validation(digits), 10), *more]
        return advance_kept(run, cross_entropy, seeded(digit_batches(), 0), 50, hooks, file=file,
                            settings={}, every=10)
    whole = do(make())
    moments = (10, 'after_step'), (17, 'before_step'), (20, 'after_step'), (39, 'on_gradient')
    torch.rand(7)  # the global generator is elsewhere by then
    done = killed_and_resumed(make, do, tmp_path/'run', [Kill(*o) for o in moments])
    assert same(done, whole.state_dict()) and whole.net.training
    assert [row['step'] for row in whole.rows] == [10, 20, 30, 40, 50]

def test_a_hook_that_draws_shifts_nothing():
    "With `seeded`; without it, dropout depends on all that was drawn before."
    def end(batches, hooks):
        torch.manual_seed(0)
        run = digits_run(make=dropout_net)
        return advance(run, cross_entropy, batches, 5, hooks).state_dict()
    assert same(end(seeded(digit_batches(), 0), []), end(seeded(digit_batches(), 0), [Draws()]))
    assert not same(end(digit_batches(), []), end(digit_batches(), [Draws()]))
    assert not same(end(seeded(digit_batches(), 0), []), end(seeded(digit_batches(), 1), []))

def test_seeded_steps():
    "What a step or its batch draws is the same wherever a run began, and differs between steps."
    def noisy(start, end): return (torch.rand(()).item() for _ in range(start, end))
    def draws(start, end, more=0):
        for batch in seeded(noisy, 3)(start, end):
            yield batch, torch.rand(()).item()
            torch.rand(more)
    assert [*draws(4, 6)] == [*draws(0, 6)][4:] == [*draws(0, 6, more=5)][4:]
    assert len({o for pair in draws(0, 6) for o in pair}) == 12

# --- f. formulas

def test_formulas_resume(tmp_path):
    "A classifier of formulas, in batches by epoch, ends with the same bits after kills."
    pairs = generate_pairs(200, 3)
    words = vocabulary(pairs)
    data  = encode_pairs(pairs, words)
    def net(): return PairClassifier(len(words), nn.LSTM(8, 8), dropout=.2)
    make = partial(digits_run, make=net)
    def do(run, file=None, more=()):
        batches = seeded(pair_batches(data, 32, run.seed), run.seed)  # seven to an epoch
        hooks   = [LearningRate(lambda run: .01*(1 - run.step/25)), ClipGradient(1.), *more]
        return advance_kept(run, pair_loss, batches, 25, hooks, file=file, settings={}, every=5)
    whole = do(make()).state_dict()
    kills = [Kill(6), Kill(12, 'on_gradient'), Kill(24, 'before_step')]
    assert same(killed_and_resumed(make, do, tmp_path/'run', kills), whole)

# --- the loop itself

def test_advance_is_the_plain_loop():
    "By a second route: three lines around the loop that everyone writes, the same bits."
    run, plain = (digits_run(optimizer=partial(sgd, weight_decay=.01)) for _ in range(2))
    masks = thin(run)
    run.set_masks(masks)
    advance(run, cross_entropy, digit_batches(), 20)
    params = {k: plain.net.get_parameter(k) for k in masks}
    def zero(part):
        for k, p in params.items(): part(p).mul_(masks[k])
    zero(lambda p: p.data)
    for x, y in digit_batches()(0, 20):
        plain.optimizer.zero_grad()
        F.cross_entropy(plain.net(x), y).backward()
        zero(lambda p: p.grad)
        plain.optimizer.step()
        zero(lambda p: p.data)
    assert all(map(torch.equal, run.net.parameters(), plain.net.parameters()))

def test_moments_of_a_step():
    "Which gradient, step, batch and loss a hook meets, and the order of hooks."
    seen, run = [], linear_run(first_only)
    def note(who, moment):
        def what(run):
            moved = run.net.weight[0, 0].item() != 1
            seen.append((who, moment, run.step, run.net.weight.grad.tolist(), moved))
            assert run.batch.shape == (2, 3) and run.loss == 2 and not run.loss.requires_grad
        return Does(moment, what)
    moments = 'on_gradient', 'before_step', 'after_step'
    advance(run, total, ones(), 1, [note(who, moment) for who in 'ab' for moment in moments])
    met = (0, [[2, 2, 2]], False), (0, [[2, 0, 0]], False), (1, [[2, 0, 0]], True)
    assert seen == [(who, moment, *o) for moment, o in zip(moments, met) for who in 'ab']
    assert run.batch is None and run.step == 1 and not run.stopped

def test_a_vector_of_losses():
    "Its sum is descended on, and all of it is told."
    def vector(net, x): return net(x)[:, 0]
    a, b = (advance(linear_run(), loss, ones(), 3) for loss in (total, vector))
    assert torch.equal(a.net.weight, b.net.weight) and b.loss.shape == (2,)

def test_batches_that_end_early():
    "An error: the run would be shorter than it says. What was taken stays."
    run = linear_run()
    def short(start, end): return ones()(start, min(end, 4))
    with pytest.raises(ValueError, match=r'batches\(4, 9\) ended early'):
        advance(run, total, short, 9)
    assert run.step == 4
    assert advance(run, total, ones(), 9).step == 9

def test_batches_without_an_end():
    "They are pulled as far as they are needed, and no further; not at all where nothing is left."
    pulled = []
    def endless(start, end):
        while True:
            pulled.append(start)
            yield torch.ones(2, 3)
    run = advance(linear_run(), total, endless, 3)
    assert run.step == 3 and pulled == [0]*3
    assert advance(run, total, endless, 3).step == advance(run, total, endless, 2).step == 3
    assert pulled == [0]*3

def test_a_step_of_your_own():
    "`step=` replaces the step: it gets run, objective and hooks; counting and `after_step` stay."
    calls = []
    def own(run, objective, hooks):
        calls.append((objective, len(hooks)))
        run.loss = objective(run.net, run.batch).detach()
        with torch.no_grad(): run.net.bias += 1
    class Counts(Hook):
        def on_gradient(self, run): raise AssertionError('only a step of its own calls this')
        def after_step(self, run): run.rows.append(run.step)
    run = linear_run()
    advance(run, total, ones(), 3, [Counts()], step=own)
    assert calls == [(total, 1)]*3 and run.rows == [1, 2, 3] and run.net.bias == 3
    assert run.net.weight.tolist() == [[1, 1, 1]] and not run.optimizer.state
    def through(run, objective, hooks): take_step(run, objective, hooks)
    a, b = (advance(linear_run(first_only), total, ones(), 3, step=o) for o in (take_step, through))
    assert same(a.state_dict(), b.state_dict())

def test_a_hook_that_stops(tmp_path):
    "The run ends there, stays stopped when it is resumed, and is free again when it is rewound."
    def stop(run): run.stopped = run.step == 4
    hooks, pulled = [Does('after_step', stop)], []
    def batches(start, end):
        for step in range(start, end): pulled.append(step); yield torch.ones(2, 3)
    run   = linear_run()
    start = run.state_dict()
    def do(run):
        return advance_kept(run, total, batches, 9, hooks, file=tmp_path/'run', settings={})
    assert do(run).step == 4 and run.stopped and pulled == [0, 1, 2, 3]
    assert advance(run, total, batches, 20).step == 4 and len(pulled) == 4
    again = do(linear_run())
    assert again.stopped and same(again.state_dict(), run.state_dict()) and len(pulled) == 4
    run.load_state_dict(start)
    assert not run.stopped and advance(run, total, batches, 5).step == 5

def test_groups_of_weights():
    "Groups keep their own rates, and are masked alike."
    net = mlp()
    groups = [dict(params=[net[1].weight], lr=.1), dict(params=[net[3].weight], lr=0.)]
    run = Run(net, torch.optim.SGD(groups, weight_decay=.1), full_masks(net))  # biases: no group
    run.set_masks(thin(run, .5))
    before = snapshot(net)
    advance(run, cross_entropy, digit_batches(), 5)
    moved = {k: not torch.equal(v, before[k]) for k, v in net.state_dict().items()}
    assert moved == {'1.weight': True, '1.bias': False, '3.weight': False, '3.bias': False}
    run.held.check()

def test_optimizer_without_the_weights():
    "Of another network, or of weights that were replaced: refused."
    net, other = nn.Linear(3, 1), nn.Linear(3, 1)
    def fails(optimizer):
        with pytest.raises(ValueError, match="none of the network's weights"): Run(net, optimizer)
    fails(sgd(other.parameters()))
    optimizer = sgd(net.parameters())
    net.load_state_dict(other.state_dict(), assign=True)
    fails(optimizer)
    assert Run(net, sgd([net.bias])).step == 0  # some of them will do
    assert Run(net).optimizer is None           # and so will none: the loop is somebody else's

@pytest.mark.parametrize('optimizer, told', [
    (torch.optim.Adam, "<class 'torch.optim.adam.Adam'>"), (adam, 'functools.partial'),
    (full_masks(nn.Linear(2, 2)), "{'weight': tensor"), ('adam', "'adam'")])
def test_something_in_place_of_an_optimizer(optimizer, told):
    "A class, a function that makes one, the masks: named, with what is wanted."
    with pytest.raises(ValueError, match='the optimizer is ') as e: Run(nn.Linear(3, 1), optimizer)
    assert told in str(e.value) and 'torch.optim.Adam(net.parameters())' in str(e.value)

# --- hooks remember nothing

def test_hooks_remember_nothing():
    "Two rounds with one list of hooks report what two fresh lists report."
    def hooks(): return [AverageWeights(), FiniteLoss(10), Validate(validation(digits), 10)]
    def rounds(lists):
        run = digits_run()
        begin_average(run)
        start, ends = run.state_dict(), []
        for own, steps in zip(lists, (43, 12)):  # what the first finds would win in the second
            run.load_state_dict(start)
            advance(run, cross_entropy, digit_batches(), steps, own)
            ends.append(run.state_dict())
        return ends
    one  = hooks()
    ends = rounds([one, one])
    assert same(ends, rounds([hooks(), hooks()]))
    assert ends[1]['extra']['best']['step'] == 10 and ends[1]['extra']['average']['count'] == 13
    assert len(ends[0]['extra']['losses']) == 3 and len(ends[1]['extra']['losses']) == 2
    assert ends[0]['extra']['best']['loss'] < ends[1]['extra']['best']['loss']

# --- going back

class Counting(nn.Module):
    "State of every kind: a buffer kept out of files, and extra state."
    def __init__(self):
        super().__init__()
        self.layer, self.told = nn.Linear(64, 10), 0
        self.register_buffer('calls', torch.zeros(()), persistent=False)
    def forward(self, x):
        self.calls += 1; self.told += 1
        return self.layer(x.flatten(1))
    def get_extra_state(self): return self.told
    def set_extra_state(self, told): self.told = told

def counted(run): return run.net.calls.item(), run.net.told

def test_rewinding_takes_all_back(tmp_path):
    "Buffers kept out of files, extra state, momentum, rows, extra; and ends where it ended before."
    note = Does('after_step', lambda run: run.rows.append(run.extra.setdefault('steps', run.step)))
    def to(run, end): return advance(run, cross_entropy, digit_batches(), end, [note])
    run = to(digits_run(make=Counting, optimizer=sgd), 7)
    start = run.state_dict()
    first = to(run, 20).state_dict()
    assert counted(run) == (20, 20)
    run.load_state_dict(start)
    assert counted(run) == (7, 7) and same(run.state_dict(), start)
    assert same(to(run, 20).state_dict(), first)
    other = digits_run(1, Counting, sgd)  # and from one run to another
    other.load_state_dict(start)
    assert same(to(other, 20).state_dict(), first)

def test_a_state_stays_as_it_is():
    "It is a copy when it is taken, and again when it is loaded: training changes neither."
    run = advance(digits_run(make=Counting, optimizer=sgd), cross_entropy, digit_batches(), 3)
    run.extra['list'] = [1]
    state = run.state_dict()
    kept_state = deepcopy(state)
    def meddle():
        advance(run, cross_entropy, digit_batches(), run.step + 3)
        run.extra['list'].append(2); run.rows.append(1)
        for mask in run.masks.values(): mask.zero_()
    meddle()
    assert same(state, kept_state)
    run.load_state_dict(state); meddle()
    assert same(state, kept_state)

def test_a_state_without_copies():
    "`copy=False` gives the tensors themselves, and the same values."
    run = advance(digits_run(), cross_entropy, digit_batches(), 2)
    state = run.state_dict(copy=False)
    assert same(state, run.state_dict()) and state['extra'] is run.extra
    assert state['net']['layer1.weight'].data_ptr() == run.net.layer1.weight.data_ptr()

@pytest.mark.parametrize('optimizer', [sgd, adam, FusedAdam])
def test_memory_under_new_masks(optimizer):
    "What an optimizer remembers of pruned weights is gone, by `set_masks` and by a state's masks."
    def memory(run, kind):
        m, p = run.masks['layer1.weight'], run.net.layer1.weight
        tensors = [o for o in run.optimizer.state[p].values() if o.shape == p.shape]
        assert tensors and all(o.stride() == p.stride() for o in tensors)
        return any((o[m] if kind == 'kept' else o[~m]).any() for o in tensors)
    run = advance(digits_run(optimizer=optimizer), cross_entropy, digit_batches(), 5)
    state = dict(run.state_dict(), masks=thin(run))
    assert not same(state['masks'], run.masks)
    run.set_masks(state['masks'])
    assert memory(run, 'kept') and not memory(run, 'pruned')
    again = digits_run(optimizer=optimizer)
    again.load_state_dict(state)
    assert memory(again, 'kept') and not memory(again, 'pruned')
    again.held.check()
    assert same(again.state_dict(), run.state_dict())

def test_forget():
    "A run without its memory goes on as one with a fresh optimizer."
    run   = advance(digits_run(), cross_entropy, digit_batches(), 9)
    fresh = digits_run()
    fresh.net.load_state_dict(run.net.state_dict())
    fresh.step = 9
    went = run.state_dict()
    run.forget()
    assert not run.optimizer.state
    def end(run): return snapshot(advance(run, cross_entropy, digit_batches(), 12).net)
    want = end(fresh)
    assert same(end(run), want)
    run.load_state_dict(went)
    assert not same(end(run), want)
    Run(nn.Linear(3, 1)).forget()  # no optimizer, nothing to forget

def test_extra_and_rows_stay_the_same_objects():
    "Objectives and plots may hold them while a run goes back."
    run = linear_run()
    run.extra['a'], extra, rows = 1, run.extra, run.rows
    rows.append(1)
    start = run.state_dict()
    run.extra.update(a=2, b=3); run.rows.append(2)
    run.load_state_dict(start)
    assert run.extra is extra and run.rows is rows and extra == dict(a=1) and rows == [1]

# --- masks that hold

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_infinite_under_a_mask_is_harmless(dtype):
    "Weights, gradients and momentum that are infinite or NaN where a mask is, in each precision."
    odd = torch.tensor([math.inf, math.nan], dtype=dtype)
    def explode(run): run.net.weight.grad[0, 1:] = odd
    run = linear_run(dtype=dtype)
    advance(run, total, ones(dtype), 2)
    run.optimizer.state[run.net.weight]['momentum_buffer'][0, 1:] = odd
    run.net.weight.data[0, 1:] = odd
    run.set_masks(first_only)
    want = advance(linear_run(first_only, dtype=dtype), total, ones(dtype), 5).net.weight
    advance(run, total, ones(dtype), 5, [Does('on_gradient', explode)])
    assert run.net.weight.dtype == dtype and torch.equal(run.net.weight, want)
    assert want[0, 0] != 1 and want[0, 1:].tolist() == [0, 0]
    assert not run.optimizer.state[run.net.weight]['momentum_buffer'][0, 1:].any()
    run.held.check()

class Pushes(torch.optim.Optimizer):
    "Moves every weight at every step, whatever its gradient is."
    def __init__(self, params): super().__init__(params, {})
    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]['params']: p += 1

def test_pruned_weights_stay_whatever_moves_them():
    "An optimizer that needs no gradient, and a hook that writes gradients before the step."
    def noise(run): run.net.weight.grad += 1
    for run in (linear_run(first_only, Pushes), linear_run(first_only)):
        advance(run, total, ones(), 3, [Does('before_step', noise)])
        assert run.net.weight[0, 0] != 1 and run.net.weight[0, 1:].tolist() == [0, 0]

def test_the_first_forward_pass_is_masked():
    "Also where something dense was loaded since the masks were set."
    run, seen = linear_run(first_only), []
    nn.init.ones_(run.net.weight)
    def look(net, x): seen.append(net.weight.tolist()); return net(x).sum()
    advance(run, look, ones(), 1)
    assert seen == [[[1, 0, 0]]]

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_masks_follow_the_network(dtype):
    "To another precision, and into new memory."
    def moved(run): run.net.to(dtype)
    def copied(run): run.net.weight.data = torch.ones(1, 3)
    for move in (moved, copied):
        run = linear_run(first_only)
        move(run)
        run.net.weight.data.fill_(1)
        with pytest.raises(ValueError, match="are not zero: 2 of 'weight'"): run.held.check()
        run.held.zero()
        assert run.net.weight.tolist() == [[1, 0, 0]]
        run.held.check()
        advance(run, total, ones(run.net.weight.dtype), 3)
        assert run.net.weight[0, 0] != 1 and run.net.weight[0, 1:].tolist() == [0, 0]

def test_check_follows_a_replaced_parameter():
    "`load_state_dict(assign=True)` puts others in their place."
    run = linear_run(first_only)
    run.held.check()
    run.net.load_state_dict(dict(weight=torch.ones(1, 3), bias=torch.ones(1)), assign=True)
    with pytest.raises(ValueError, match="2 of 'weight'"): run.held.check()
    run.held.zero()
    assert run.held.revived() == {'weight': 0} and run.net.weight.tolist() == [[1, 0, 0]]

def test_check_and_trust():
    "With `trust` version counters are enough; writes to `.data` move none: it takes a full check."
    run = linear_run(first_only)
    run.net.weight.data.fill_(1)
    run.held.check(trust=True)
    assert run.held.revived() == {'weight': 2}
    with pytest.raises(ValueError, match='keep_pruned'): run.held.check()
    run.held.zero()
    with torch.no_grad(): run.net.weight.fill_(1)
    with pytest.raises(ValueError, match="2 of 'weight'"): run.held.check(trust=True)

def test_gradients_of_some_layers():
    "`which` names places in `weights`; a weight without a gradient is left alone."
    net  = mlp()
    held = Held(net, {k: torch.zeros_like(m) for k, m in full_masks(net).items()})
    held.zero_gradients()
    for p in held.weights: p.grad = torch.ones_like(p)
    held.zero_gradients([1])
    assert [p.grad.any().item() for p in held.weights] == [True, False]
    held.zero_gradients()
    assert not any(p.grad.any() for p in held.weights)

def test_masks_however_weights_lie():
    "A weight whose columns lie side by side is masked by index, not by place in memory."
    run = digits_run()
    assert run.net.layer1.weight.stride() == (1, 300)
    before = run.net.layer1.weight.detach().clone()
    run.set_masks(thin(run))
    assert torch.equal(run.net.layer1.weight, before*run.masks['layer1.weight'])
    assert run.net.layer1.weight.stride() == (1, 300)

@pytest.mark.parametrize('masks, why', [
    ({'weight': torch.ones(1, 3)}, 'is torch.float32, not bool: write mask.bool()'),
    ({'weight': torch.ones(1, 3, dtype=torch.int64)}, 'is torch.int64, not bool'),
    ({'weight': torch.tensor([[1., .5, 0.]])}, 'holds 0.5: neither 0 nor 1'),
    ({'weight': [[True, False, False]]}, 'is a list, not a tensor'),
    ({'wieght': torch.ones(1, 3).bool()}, "mask 'wieght' fits no parameter of weight, bias"),
    ({'weight': torch.ones(3, 1).bool()}, 'has shape (3, 1), its weight (1, 3)'),
    ({'weight': torch.ones(3).bool()}, 'has shape (3,), its weight (1, 3)'),       # would broadcast
    ({'weight': torch.ones(1, 1).bool()}, 'has shape (1, 1), its weight (1, 3)'),  # so would this
    ({**first_only, 'bias': torch.ones(2).bool()}, "mask 'bias' has shape (2,), its weight (1,)")])
def test_wrong_masks(masks, why):
    "Refused, by a run and later, and the run stays as it is."
    run = advance(linear_run(first_only), total, ones(), 2)
    state, held = run.state_dict(), run.held
    for wrong in (partial(Run, run.net, run.optimizer), run.set_masks, partial(Held, run.net)):
        with pytest.raises(ValueError) as e: wrong(masks)
        assert why in str(e.value)
    assert run.held is held and same(run.state_dict(), state)

def test_check_masks():
    "No masks, and masks that are missing."
    for none in ({}, None):
        with pytest.raises(ValueError, match='no masks: make them'): check_masks(none)
    check_masks(first_only)
    check_masks(first_only, nn.Linear(3, 1), ['weight'])
    with pytest.raises(ValueError, match="no mask for 'bias'; there are weight"):
        check_masks(first_only, names=['weight', 'bias'])

def test_full_masks_cost_nothing():
    "Where all is kept no weight is held, and training is that without masks."
    run = digits_run()
    assert run.masks and not run.held.weights and run.held.revived() == {}
    dense = digits_run(masked=False)
    assert dense.masks == {}
    for o in (run, dense): advance(o, cross_entropy, digit_batches(), 10)
    assert same(dict(run.state_dict(), masks={}), dense.state_dict())
    run.set_masks(thin(run) | {'layer1.weight': torch.ones(300, 64).bool()})
    assert len(run.held.weights) == 2  # one of three layers is whole again

def test_tied_weights():
    "One weight in two places has one mask, and stays one weight through a rewind."
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight
        def forward(self, x): return self.b(self.a(x).tanh())
    net = Tied()
    run = Run(net, sgd(net.parameters()), {'a.weight': torch.rand(8, 8, generator=rng(0)) < .5})
    def batches(start, end): return (torch.randn(4, 8, generator=rng(o)) for o in range(start, end))
    def loss(net, x): return net(x).square().sum()
    start = run.state_dict()
    end   = advance(run, loss, batches, 5).state_dict()
    assert torch.equal(net.b.weight != 0, run.masks['a.weight'])
    run.load_state_dict(start)
    assert net.b.weight is net.a.weight
    assert same(advance(run, loss, batches, 5).state_dict(), end)
    with pytest.raises(ValueError, match="'b.weight' fits no parameter"):
        run.set_masks({'b.weight': run.masks['a.weight']})

def test_sparse_gradients_are_refused():
    "They cannot be masked: an error that names the layer; without a mask they are fine."
    net = nn.Embedding(4, 3, sparse=True)
    def go(masks):
        run = Run(net, torch.optim.SGD(net.parameters(), .1), masks)
        def words(start, end): return (torch.tensor([0, 2]) for _ in range(start, end))
        return advance(run, lambda net, ids: net(ids).sum(), words, 2)
    assert go(None).step == 2
    with pytest.raises(ValueError, match="'weight' has sparse gradients"):
        go({'weight': torch.rand(4, 3) < .5})

@pytest.mark.parametrize('state, run', [(linear_run(), Run(nn.Linear(3, 1))),
                                        (Run(nn.Linear(3, 1)), linear_run())])
def test_a_state_with_another_optimizer(state, run):
    "One with an optimizer and one without: refused, and the run stays as it is."
    before = run.state_dict()
    with pytest.raises(ValueError, match='only one has an optimizer'):
        run.load_state_dict(state.state_dict())
    assert same(run.state_dict(), before)

def test_a_run_without_an_optimizer():
    "For loops of others: masks, states and rewinds work all the same."
    run = Run(nn.Linear(3, 1), masks=first_only, seed=3)
    start = run.state_dict()
    assert start['optimizer'] is None and not run.net.weight[0, 1:].any()
    nn.init.ones_(run.net.weight)
    run.load_state_dict(start)
    assert same(run.state_dict(), start)
    assert repr(run) == 'Run(Linear, step=0, seed=3)'
