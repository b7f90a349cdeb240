"A stack trains what one training after another gives: data, weights, masks, files and rows."
import json, math, shutil, warnings
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
import pytest, torch
from filelock import FileLock, Timeout
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from sameness import same
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.data import load
from lotterybook.foundations.fast_steps import FusedAdam
from lotterybook.foundations.hooks import ClipGradient, LearningRate
from lotterybook.foundations.networks import batchnorm_mlp, lenet
from lotterybook.foundations.running import Hook, Run, advance, take_step
from lotterybook.foundations.sweeps import RunFailed
from lotterybook.foundations.training import (
    Validate, classification, evaluate, example_batches, train_run, validation)
from lotterybook.pruning.masks import distance, full_masks, kept
from lotterybook.pruning.scores import random_scores
from lotterybook.pruning.schedules import pruner
from lotterybook.tickets import replicates, stacked_replicates
from lotterybook.tickets.controls import shuffled_masks
from lotterybook.tickets.iterative import tickets
from lotterybook.tickets.replicates import (
    finished_runs, run_file, search, search_plan, search_settings,
    step_file, ticket_file)
from lotterybook.tickets.stacked_replicates import (
    CapturedStep, NoteDivergence, Stack, StackedData, ValidateEach, cross_entropies, evaluate_each,
    prune_each, replayed, replicate, stacked, stacked_batches, stacked_run, stacked_search,
    train_stacked)
from lotterybook.tickets.ticket_files import load_ticket
torch.set_num_threads(1)

SEEDS = (0, 1, 2)
digits = {seed: load('digits', seed) for seed in SEEDS}
adam   = partial(FusedAdam, lr=4e-3)
objective = classification(cross_entropies)

def pruned_masks(net, seed, rate=.5):
    run = Run(net, masks=full_masks(net), seed=seed)
    return pruner(rate)(run)

def make(seed, masks=None, net=lenet, lr=4e-3):
    net = net(64, seed=seed)
    return Run(net, FusedAdam(net.parameters(), lr=lr), masks or full_masks(net), seed)

def members():
    "Three seeds, two conditions: the masks of half the weights, and the same shuffled."
    for seed in SEEDS:
        masks = pruned_masks(lenet(64, seed=seed), seed)
        yield lambda: make(seed, masks)
        other = shuffled_masks(masks, torch.Generator().manual_seed(seed))
        yield lambda: make(seed, other)

def runs(): return [o() for o in members()]
def splits(runs): return [digits[run.seed] for run in runs]
def close(a, b, atol=1e-4):
    return a.keys() == b.keys() and all(torch.allclose(a[k].float(), b[k].float(), atol=atol) for k in a)

# --- the module

@pytest.mark.parametrize('net', [lenet, batchnorm_mlp])
def test_weights_are_those_given(net):
    "To the bit, in the network's names; the networks given are copied."
    nets = [net(64, seed=seed) for seed in SEEDS]
    before = [snapshot(o) for o in nets]
    stack = Stack(nets)
    assert stack.replicates == 3 and [n for n, _ in stack.named_parameters()] == [n for n, _ in nets[0].named_parameters()]
    for i, theta in enumerate(before):
        assert same(replicate(stack.state_dict(), i), theta) and same(snapshot(stack.network(i)), theta)
    with torch.no_grad(): [p.zero_() for p in stack.parameters()]
    assert all(same(snapshot(o), theta) for o, theta in zip(nets, before))

@pytest.mark.parametrize('net', [lenet, batchnorm_mlp])
@pytest.mark.parametrize('mode', [True, False])
def test_forward_is_that_of_each(net, mode):
    "Running means of batch norm, too, each of its own batch."
    nets  = [net(64, seed=seed).train(mode) for seed in SEEDS]
    stack, x = Stack(nets), torch.rand(3, 20, 64)
    assert torch.allclose(stack(x), torch.stack([o(part) for o, part in zip(nets, x)]), atol=1e-5)
    for i, o in enumerate(nets): assert close(replicate(stack.state_dict(), i), snapshot(o))

def test_modes_and_precision_reach_the_network():
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.ones(4))
        def forward(self, x): return F.dropout(x*self.w, .5, self.training)
    stack, x = Stack([Net(), Net()]), torch.ones(2, 50, 4)
    noise = stack(x)
    assert not noise[0].equal(noise[1])  # each replicate has noise of its own
    assert stack.eval()(x).equal(x) and stack.double()(x.double()).dtype == torch.float64
    copy = deepcopy(stack)
    with torch.no_grad(): copy.w.zero_()
    assert copy(x.double()).eq(0).all() and stack(x.double()).eq(1).all()

def test_tied_weights_stay_tied():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
        def forward(self, x): return self.b(self.a(x))
    nets = [Net(), Net()]
    stack, x = Stack(nets), torch.rand(2, 5, 4)
    assert stack.b.weight is stack.a.weight and stack.network(1).b.weight is not stack.b.weight
    assert stack.network(1).b.weight.shape == (4, 4)
    assert torch.allclose(stack(x), torch.stack([o(part) for o, part in zip(nets, x)]), atol=1e-6)

@pytest.mark.parametrize('nets, why', [
    (lambda: [], 'one network at least'),
    (lambda: [lenet(64), lenet(32)], 'network 1 of the stack.*layer1.weight has shape'),
    (lambda: [lenet(64), batchnorm_mlp(64)], 'network 1 of the stack.*is missing'),
    (lambda: [nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.Tanh())],
     r'network 1 of the stack has \(1\): Tanh\(\), network 0 \(1\): ReLU\(\)'),
    (lambda: [nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.ReLU())], 'network 1 of the stack')])
def test_other_architectures_are_refused(nets, why):
    with pytest.raises(ValueError, match=why): Stack(nets())

def test_masks_are_split_back():
    masks = [pruned_masks(lenet(64, seed=seed), seed) for seed in SEEDS]
    assert all(same(replicate(stacked(masks), i), m) for i, m in enumerate(masks))
    with pytest.raises(ValueError, match='replicates 0 and 1: only one has layer2.weight'):
        stacked([masks[0], {k: m for k, m in masks[1].items() if k != 'layer2.weight'}])

# --- data

def test_the_order_of_examples_is_that_of_each_seed():
    "To the bit, from any step; also over the border of a piece of indices."
    who = [make(seed) for seed in (0, 1, 0)]
    batches = stacked_batches(StackedData(splits(who)), [run.seed for run in who], 60)
    alone = [example_batches(digits[run.seed].x_train, digits[run.seed].y_train, 60, run.seed) for run in who]
    for start, end in ((0, 40), (7, 9), (495, 505)):
        for (x, y), *each in zip(batches(start, end), *(o(start, end) for o in alone), strict=True):
            assert x.equal(torch.stack([o for o, _ in each])) and y.equal(torch.stack([o for _, o in each]))

def test_data_of_one_seed_is_kept_once():
    data = StackedData([digits[0], digits[1], digits[0], digits[0]])
    assert len(data.parts['train'][0]) == 2 and data.owner.tolist() == [0, 1, 0, 0]

def test_data_of_other_sizes_is_refused():
    smaller = digits[1]._replace(x_train=digits[1].x_train[:900], y_train=digits[1].y_train[:900])
    with pytest.raises(ValueError, match='x_train has shapes.*replicates of a stack need data of the same sizes'):
        StackedData([digits[0], smaller])
    with pytest.raises(ValueError, match='1 seeds, and data of 2 replicates'):
        stacked_batches(StackedData([digits[0], digits[1]]), [0], 60)

def test_measures_are_those_of_each():
    "Accuracies exactly, losses up to rounding, whatever the piece."
    who = [make(seed) for seed in SEEDS]
    stack, data = Stack(run.net for run in who), StackedData(splits(who))
    for piece in (1000, 70):
        losses, accuracies = evaluate_each(stack, data, 'validation', piece)
        for i, run in enumerate(who):
            loss, accuracy = evaluate(run.net, digits[run.seed].x_validation, digits[run.seed].y_validation)
            assert math.isclose(losses[i], loss, rel_tol=1e-5) and accuracies[i] == accuracy

# --- training

@pytest.mark.parametrize('precision, atol', [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_seeds_and_conditions_train_as_one_by_one(precision, atol):
    "Run and advance as they are: weights, optimizer, zeros. In double precision nothing but the last digits differs."
    start, again = runs(), runs()
    for one in start + again: one.net.to(precision); one.held.zero()
    there = {seed: d._replace(x_train=d.x_train.to(precision)) for seed, d in digits.items()}
    run = stacked_run(again, adam)
    for i, one in enumerate(start):
        assert same(replicate(run.net.state_dict(), i), snapshot(one.net)) and same(replicate(run.masks, i), one.masks)
    batches = stacked_batches(StackedData(there[one.seed] for one in start), [one.seed for one in start], 60)
    advance(run, objective, batches, 30)
    run.held.check()
    for i, one in enumerate(start):
        data = there[one.seed]
        advance(one, classification(), example_batches(data.x_train, data.y_train, 60, one.seed), 30)
        theta = snapshot(one.net)
        assert all(torch.allclose(run.net.state_dict()[k][i], v, rtol=0, atol=atol) for k, v in theta.items())
        assert all((p[i].eq(0) == one.net.get_parameter(k).eq(0)).all() for k, p in run.net.named_parameters() if k in run.masks)
        for k, p in run.net.named_parameters():
            ours, theirs = run.optimizer.state[p], one.optimizer.state[one.net.get_parameter(k)]
            assert torch.allclose(ours['exp_avg'][i], theirs['exp_avg'], rtol=0, atol=atol)
    weights = [run.net.layer1.weight[i] for i in range(6)]
    assert all((a - b).abs().max() > .01 for i, a in enumerate(weights) for b in weights[:i])

@pytest.mark.parametrize('net', [lenet, batchnorm_mlp])
def test_outcomes_are_those_of_train_run(net):
    together = [make(seed, net=net, lr=1e-2) for seed in SEEDS]
    outcomes = train_stacked(together, splits(together), partial(FusedAdam, lr=1e-2), steps=150, eval_every=10)
    assert len({o['stop_step'] for o in outcomes}) > 1
    for run, ours in zip(together, outcomes):
        one = make(run.seed, net=net, lr=1e-2)
        theirs = train_run(one, digits[run.seed], 150, eval_every=10)
        assert ours.keys() == theirs.keys() and ours['stop_step'] == theirs['stop_step'] and run.step == 150
        for k in ('stop_accuracy', 'end_accuracy', 'train_accuracy'): assert abs(ours[k] - theirs[k]) < .003, k
        for a, b in zip(ours['history'], theirs['history'], strict=True):
            assert a['step'] == b['step'] and math.isclose(a['validation_loss'], b['validation_loss'], abs_tol=1e-3)
        assert close(snapshot(run.net), snapshot(one.net), .01)

def test_one_hook_serves_a_single_network_too():
    "The rows and the best weights of `Validate`."
    ours, theirs = make(0), make(0)
    data, measure = digits[0], validation(digits[0])
    for run, hook in ((ours, ValidateEach(measure, 10)), (theirs, Validate(measure, 10))):
        advance(run, classification(), example_batches(data.x_train, data.y_train, 60, 0), 60, [hook])
    assert ours.rows == theirs.rows
    assert ours.extra['best']['step'] == theirs.extra['best']['step'] and same(ours.extra['best']['weights'], theirs.extra['best']['weights'])

def test_the_best_is_of_the_present_size():
    "After pruning inside a run it begins anew, though the losses are larger."
    run, loss = stacked_run([make(0), make(1)], adam), torch.tensor([1., 2.])
    hook = ValidateEach(lambda net: dict(validation_loss=loss), 1)
    run.step = 1; hook.after_step(run)
    loss, run.step = torch.tensor([.5, 3.]), 2; hook.after_step(run)
    assert run.extra['best']['step'].tolist() == [2, 1] and run.extra['best']['loss'].tolist() == [.5, 2]
    run.set_masks(stacked([pruned_masks(run.net.network(i), i) for i in range(2)]))
    loss, run.step = torch.tensor([9., 9.]), 3; hook.after_step(run)
    assert run.extra['best']['step'].tolist() == [3, 3]

def test_killed_and_resumed(tmp_path):
    "To the bit, from the last state on disk."
    def trained(file=None, hooks=()):
        some = runs()[:3]
        return train_stacked(some, splits(some), adam, 60, eval_every=10, file=file, hooks=hooks, save_every=20), [snapshot(o.net) for o in some]
    class Kill(Hook):
        def after_step(self, run):
            if run.step == 47: raise KeyboardInterrupt
    whole, file = trained(), tmp_path/'a'
    with pytest.raises(KeyboardInterrupt): trained(file, [Kill()])
    assert torch.load(file)['run']['step'] == 40
    assert same(trained(file), whole)
    with pytest.raises(ValueError, match='seeds was'):
        other = [make(o) for o in (1, 1, 2)]
        train_stacked(other, splits(other), adam, 60, eval_every=10, file=file)

def test_a_search_of_a_stack():
    "`tickets` as it is, each replicate pruned by itself; another rate would be another mask."
    run, prune = stacked_run([make(seed) for seed in SEEDS], adam), pruner(.5)
    data = StackedData([digits[seed] for seed in SEEDS])
    def train(run): advance(run, objective, stacked_batches(data, SEEDS, 60), 40, [ValidateEach(lambda net: dict(validation_loss=evaluate_each(net, data, 'validation')[0]), 20)])
    found = [ticket for _, ticket in tickets(run, train, prune_each(prune), 2)]
    for i, seed in enumerate(SEEDS):
        def alone(run): advance(run, classification(), example_batches(digits[seed].x_train, digits[seed].y_train, 60, seed), 40)
        for ours, (_, theirs) in zip(found, tickets(make(seed), alone, prune, 2)):
            assert kept(replicate(ours.masks, i)) == kept(theirs.masks)
            assert distance(replicate(ours.masks, i), theirs.masks) < .001
            assert same(replicate(ours.theta_0, i), theirs.theta_0)

def test_prune_each_has_the_round():
    "A rate a round, and scores at random."
    run = stacked_run([make(0), make(1)], adam)
    run.round = 2
    masks = prune_each(pruner([.1, .5], score=random_scores))(run)
    assert all(kept(replicate(masks, i)) == {k: m.numel()//4 for k, m in masks.items()} for i in range(2))

@pytest.mark.parametrize('change', ['step', 'state'])
def test_runs_that_have_trained_are_refused(change):
    run = make(0)
    advance(run, classification(), example_batches(digits[0].x_train, digits[0].y_train, 60, 0), 2)
    if change == 'state': run.step = 0
    with pytest.raises(ValueError, match='has taken steps already: a stack starts at step 0'): stacked_run([make(1), run], adam)

def test_clipping_by_a_common_length_is_refused():
    "And it would matter: a replicate's gradient depends on the others."
    one = [make(0)]
    with pytest.raises(ValueError, match='all replicates by their common length'):
        train_stacked(one, splits(one), adam, hooks=[ClipGradient(1.)])
    def first_step(*seeds):
        run = stacked_run([make(seed) for seed in seeds], partial(torch.optim.SGD, lr=1.))
        batches = stacked_batches(StackedData([digits[seed] for seed in seeds]), list(seeds), 60)
        return advance(run, objective, batches, 1, [ClipGradient(.1)]).net.layer1.weight[0]
    assert not torch.allclose(first_step(0), first_step(0, 1, 2), atol=1e-4)

def test_one_replicate_that_diverges_leaves_the_others_alone():
    "Named by its error; the outcomes of the others are those without it."
    some, bad = [make(0), make(1)], make(2)
    with torch.no_grad(): bad.net.layer1.weight[0, 30] = float('nan')
    three = [make(0), bad, make(1)]
    want = train_stacked(some, splits(some), adam, 40, eval_every=20)
    got  = train_stacked(three, splits(three), adam, 40, eval_every=20)
    assert isinstance(got[1], FloatingPointError) and 'loss of step 0 is not finite' in str(got[1])
    for ours, theirs in zip((got[0], got[2]), want): assert ours['stop_step'] == theirs['stop_step'] and abs(ours['end_accuracy'] - theirs['end_accuracy']) < .003

def test_the_first_step_without_a_finite_loss():
    run, hook = stacked_run([make(0), make(1), make(2)], adam), NoteDivergence(5)
    for step in range(10):
        run.loss = torch.tensor([1., 1. if step < 7 else math.nan, 1. if step != 3 else math.inf])
        run.step += 1
        hook.after_step(run)
    assert run.extra['diverged'] == {2: 3, 1: 7} and not run.stopped
    run.loss, run.step = torch.full((3,), math.nan), 15
    hook.after_step(run)
    assert run.stopped

def test_a_hook_that_stops_ends_the_stack():
    "Between two checks of the losses: nothing has diverged, and no check lets the training go on."
    class StopAt7(Hook):
        def after_step(self, run): run.stopped = run.step >= 7
    some = [make(0), make(1)]
    found = train_stacked(some, splits(some), adam, 40, eval_every=20, hooks=[StopAt7()])
    assert [o['history'][-1]['step'] for o in found] == [7, 7] == [run.step for run in some]
    run = stacked_run([make(0), make(1)], adam)
    run.stopped, run.step, run.loss = True, 20, torch.ones(2)
    NoteDivergence(20).after_step(run)
    assert run.stopped

# --- a captured step, replayed without CUDA

class Tape(TorchDispatchMode):
    "Notes operations with the tensors that they read and write."
    def __init__(self): super().__init__(); self.notes = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.namespace != 'profiler': self.notes.append((func, args, kwargs or {}, out))
        return out

def taped(work, stream):
    "What a CUDA graph does, on the CPU: records without an effect; a replay runs no Python of the step, and each operation reads and writes where it did when it was recorded."
    run, taped.count = work.args[0], taped.count + 1
    there = [*run.net.parameters(), *run.net.buffers(), *(t for memory in run.optimizer.state.values() for t in memory.values())]
    before = [t.detach().clone() for t in there]
    with Tape() as tape: work()
    with torch.no_grad(): [t.copy_(old) for t, old in zip(there, before)]
    @torch.no_grad()
    def replay():
        for func, args, kwargs, out in tape.notes:
            alias = [r.alias_info for r in func._schema.returns]
            if any(a and not a.is_write for a in alias): continue  # a view is there already
            now = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(now)):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr(): old.copy_(new)
    return replay

@pytest.fixture(autouse=True)
def none_taped(): taped.count = 0

def with_step(step, hooks=(), end=12, some=None, before=lambda run: None):
    some = some or runs()[:2]
    run  = stacked_run(some, adam)
    before(run)
    advance(run, objective, stacked_batches(StackedData(splits(some)), [o.seed for o in some], 60), end, hooks, step)
    return run

def test_a_replayed_step_is_the_usual_one():
    "To the bit: weights, optimizer, losses; the work is recorded once, after the warm-up."
    step = CapturedStep(record=taped)
    ours, theirs = with_step(step, [NoteDivergence(100)]), with_step(take_step, [NoteDivergence(100)])
    assert same(ours.state_dict(), theirs.state_dict()) and taped.count == 1

@pytest.mark.parametrize('net', [lenet, batchnorm_mlp])
def test_validation_between_replays(net):
    "In evaluation mode and back; running means are written by the replay; best weights and rows are the same."
    data = StackedData([digits[0], digits[1]])
    def measure(net): return dict(validation_loss=evaluate_each(net, data, 'validation')[0])
    def trained(step):
        run = stacked_run([make(seed, net=net) for seed in (0, 1)], adam)
        run.set_masks(stacked([pruned_masks(run.net.network(i), i) for i in range(2)]))
        return advance(run, objective, stacked_batches(data, [0, 1], 60), 20, [NoteDivergence(5), ValidateEach(measure, 5)], step)
    assert same(trained(CapturedStep(record=taped)).state_dict(), trained(take_step).state_dict()) and taped.count == 1

def test_the_buffers_stay_where_they_are():
    "Each replay reads the same memory, and the batch that hooks see is the step's own."
    seen, step = [], CapturedStep(record=replayed)
    class Look(Hook):
        def after_step(self, run):
            if step.replay: seen.append(([t.data_ptr() for t in step.batch], run.batch[0].equal(step.batch[0]), run.batch is step.batch))
    with_step(step, [Look()])
    assert len(seen) == 9 and all(o == (seen[0][0], True, False) for o in seen)

@pytest.mark.parametrize('change', ['masks', 'state', 'forget', 'rate', 'eval', 'batch size', 'moved'])
def test_it_is_recorded_again_after_a_change(change):
    "New masks, a loaded state, another rate: an old record would go on with what was."
    def change_it(run):
        if change == 'masks': run.set_masks(stacked([pruned_masks(run.net.network(i), i, .9) for i in range(2)]))
        if change == 'state': run.load_state_dict(run.state_dict())
        if change == 'forget': run.forget()
        if change == 'rate': run.optimizer.param_groups[0]['lr'] = 1e-2
        if change == 'eval': run.net.eval()
        if change == 'moved': run.net.double().float()
    def trained(step):
        run = with_step(step, end=8)
        change_it(run)
        size = 30 if change == 'batch size' else 60
        batches = stacked_batches(StackedData([digits[0], digits[0]]), [0, 0], size)
        return advance(run, objective, batches, 16, (), step)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert same(trained(CapturedStep(record=taped)).state_dict(), trained(take_step).state_dict())
    assert taped.count == 2

def test_a_captured_step_in_a_search():
    "Its check of zeros before each forward pass does not stop it."
    some = [make(0), make(1)]
    batches = stacked_batches(StackedData(splits(some)), [0, 1], 60)
    def found(step):
        def train(run): advance(run, objective, batches, 10, (), step)
        return [ticket for _, ticket in tickets(stacked_run([make(0), make(1)], adam), train, prune_each(pruner(.5)), 1)]
    assert same([o[:3] for o in found(CapturedStep(record=taped))], [o[:3] for o in found(take_step)])

@pytest.mark.parametrize('hook', [ClipGradient(1.), LearningRate(lambda run: .1)])
def test_hooks_inside_a_captured_step_are_refused(hook):
    with pytest.raises(ValueError, match=f'{type(hook).__name__} acts inside a step .before_step.'):
        with_step(CapturedStep(record=replayed), [hook])

def test_without_cuda_it_says_so():
    with pytest.warns(UserWarning, match='steps are not captured: the network is on cpu'):
        ours = with_step(CapturedStep(), end=2)
    assert same(ours.state_dict(), with_step(take_step, end=2).state_dict())

def test_on_cuda():
    "As without capturing, up to rounding."
    if not torch.cuda.is_available(): pytest.skip('no CUDA device')
    def outcome(step):
        some = runs()[:2]
        run  = stacked_run(some, partial(adam, capturable=True), 'cuda')
        return advance(run, objective, stacked_batches(StackedData(splits(some), 'cuda'), [o.seed for o in some], 60), 40, (), step)
    ours, theirs = outcome(CapturedStep()), outcome(take_step)
    assert close(snapshot(ours.net), snapshot(theirs.net))
    ours.held.check()

# --- a search

plan = search_plan(2, [0, 1], ['ticket', 'reinit', 'one_shot'])

def settings(**changes):
    return search_settings(**dict(data='digits', rounds=2, rate=.5, lr=4e-3, steps=60, eval_every=20) | changes)

def one_by_one(out, plan=plan, **changes):
    "By usual steps: a folder of compiled ones does not go on stacked (test_replicates)."
    given = settings(**changes) | dict(compiled=False)
    with ThreadPoolExecutor(1) as one: return search(given, plan, out, executor=one, progress=False)

def stack(out, plan=plan, changes={}, **options): return stacked_search(settings(**changes), plan, out, progress=False, **options)

def content(out): return {f.relative_to(out): f.read_bytes() for f in out.rglob('*') if f.is_file() and f.suffix != '.lock'}

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A folder with a whole stacked search, and its rows; to be copied."
    out = tmp_path_factory.mktemp('whole')
    return out, stack(out)

def near(ours, theirs, atol=.004):
    "Rows that differ by rounding only."
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a.keys() == b.keys() and all(a[k] == b[k] for k in ('seed', 'round', 'condition', 'remaining', 'stop_step'))
        assert all(abs(a[k] - b[k]) <= atol for k in ('stop_accuracy', 'end_accuracy', 'train_accuracy')), (a, b)
    return True

@pytest.mark.parametrize('net', ['lenet', 'batchnorm_mlp'])
def test_a_stacked_search_is_a_search(net, tmp_path):
    "The same files, settings, columns; the same sizes, starts and masks; accuracies up to rounding."
    ours, theirs = stack(tmp_path/'a', changes=dict(net=net)), one_by_one(tmp_path/'b', net=net)
    assert content(tmp_path/'a').keys() == content(tmp_path/'b').keys()
    near(ours, theirs)
    assert list(ours[0]) == list(theirs[0])
    for seed in (0, 1):
        for r in range(3):
            a, b = (load_ticket(ticket_file(tmp_path/o, seed, r)) for o in 'ab')
            assert same(a.theta_0, b.theta_0) and kept(a.masks) == kept(b.masks) and distance(a.masks, b.masks) < .002
            flat = [json.dumps({k: v for k, v in o.settings.items() if k != 'outcome'}) for o in (a, b)]
            assert flat[0] == flat[1] and a.settings['outcome'].keys() == b.settings['outcome'].keys()
    for a, b in zip(finished_runs(tmp_path/'a'), finished_runs(tmp_path/'b')): assert list(a) == list(b) and a['seconds'] > 0

def test_each_goes_on_with_the_other(tmp_path):
    "A folder may be begun one by one and go on stacked, and the other way round; what is done stays."
    begun = search_plan(1, [0, 1], ['ticket', 'reinit', 'one_shot'])
    for first, second in ((one_by_one, stack), (stack, one_by_one)):
        out = tmp_path/first.__name__
        first(out, begun)
        before = content(out)
        rows = second(out)
        assert len(rows) == len(plan) and all(content(out)[k] == v for k, v in before.items() if k.name != 'search.json')

def test_a_folder_is_claimed_under_its_lock(tmp_path, monkeypatch):
    "No other search begins between the check and the first wave; own parts decide what they can."
    claims = []
    def claimed(settings, plan, out, parts):
        with pytest.raises(Timeout): FileLock(out/'.lock').acquire(timeout=0)
        claims.append(parts)
        return replicates.claimed(settings, plan, out, parts)
    monkeypatch.setattr(stacked_replicates, 'claimed', claimed)
    stack(tmp_path, search_plan(0, [0], ['ticket']), dict(steps=5, eval_every=5))
    assert claims == [stacked_replicates.stacked_parts]

def test_finished_runs_are_not_trained_again(whole, monkeypatch):
    monkeypatch.setattr(stacked_replicates, 'train_stacked', None)
    assert stack(whole[0]) == whole[1]

def test_a_row_that_was_not_written(whole, tmp_path):
    "Killed between a ticket and its row: the ticket is not trained again, a control is; in a smaller stack it rounds otherwise."
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    before = content(tmp_path)
    for name in ('seed1-round1-ticket', 'seed0-round2-reinit'): (tmp_path/'runs'/f'{name}.json').unlink()
    assert near(stack(tmp_path), whole[1]) and content(tmp_path).keys() == before.keys()
    assert all(content(tmp_path)[k] == v for k, v in before.items() if k.suffix == '.safetensors')

def test_smaller_stacks_give_the_same(whole, tmp_path):
    assert near(stack(tmp_path, at_once=3), whole[1])

def test_a_search_killed_inside_a_wave(whole, tmp_path, monkeypatch):
    "The wave goes on from its last state; the folder at the end is that of a search without a kill."
    want = whole[1]
    stop, count = 23, []
    class Kill(NoteDivergence):
        def after_step(self, run):
            super().after_step(run)
            count.append(run.step)
            if len(count) == 83: raise KeyboardInterrupt
    monkeypatch.setattr(stacked_replicates, 'NoteDivergence', Kill)
    monkeypatch.setattr(stacked_replicates.train_stacked, '__defaults__', tuple(10 if o == 5000 else o for o in train_stacked.__defaults__))
    with pytest.raises(KeyboardInterrupt): stack(tmp_path/'killed')
    assert len(list((tmp_path/'killed').glob('.stack-*.state'))) == 1 and count[-1] == stop
    assert stack(tmp_path/'killed') == want and count[83] == 21
    killed, kept = content(tmp_path/'killed'), content(whole[0])
    assert killed.keys() == kept.keys() and all(killed[k] == v for k, v in kept.items() if k.suffix == '.safetensors')

def test_a_run_that_diverges_is_named_and_the_others_are_kept(tmp_path):
    def parts(settings):
        make_run, train_all, prune = stacked_replicates.stacked_parts(settings)
        def train(runs, file, hooks):
            found = train_all(runs, file, hooks)
            return [FloatingPointError('the loss of step 3 is not finite') if run.seed == 0 else o for run, o in zip(runs, found)]
        return make_run, train, prune
    dense = search_plan(0, range(5), ['ticket'])
    with pytest.raises(RunFailed, match='seed0-round0-ticket failed .FloatingPointError: the loss of step 3'): stack(tmp_path, dense, parts=parts)
    assert [run_file(o) for o in finished_runs(tmp_path)] == [f'seed{seed}-round0-ticket' for seed in range(1, 5)]
    assert len(stack(tmp_path, dense)) == 5 and not list(tmp_path.glob('.stack-*'))

def test_another_search_is_refused_before_anything_trains(tmp_path):
    stack(tmp_path, plan[:1])
    before = content(tmp_path)
    with pytest.raises(ValueError, match='lr was 0.004, is 0.001'): stack(tmp_path, changes=dict(lr=1e-3))
    assert content(tmp_path) == before

def test_a_plan_with_a_gap_is_refused(tmp_path):
    with pytest.raises(ValueError, match='seed0-round2-ticket waits for a run that is neither'): stack(tmp_path, search_plan(2, [0], ['ticket'])[2:])

def test_steps_are_counted(tmp_path):
    "As page 850 wants it, while its file is there."
    def started(): step_file(tmp_path).write_bytes(b'')
    stack(tmp_path, started=started)
    assert step_file(tmp_path).stat().st_size == len(plan)*60/20

def test_waves(tmp_path):
    "Tickets first; one-shot pruning waits for the dense network only."
    sizes = []
    def parts(settings):
        make_run, train_all, prune = stacked_replicates.stacked_parts(settings)
        def train(runs, file, hooks): sizes.append([(run.seed, run.round) for run in runs]); return train_all(runs, file, hooks)
        return make_run, train, prune
    stack(tmp_path, parts=parts, at_once=4)
    assert [len(o) for o in sizes] == [2, 4, 4, 4] and sizes[1][:2] == [(0, 1), (1, 1)] and sizes[2][:2] == [(0, 2), (1, 2)]
