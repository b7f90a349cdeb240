"Training a classifier: a blind test set, masks that hold, kills, schedules, validation, errors."
import math, warnings
from functools import partial
from io import StringIO
import pytest, torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from kills import Kill
from sameness import same
from lotterybook.foundations.data import load
from lotterybook.foundations.fast_steps import FusedAdam, flushed_denormals
from lotterybook.foundations.files import folder_lock
from lotterybook.foundations.networks import batchnorm_mlp, lenet
from lotterybook.foundations.randomness import rng
from lotterybook.foundations.running import Hook, Run, advance, seeded
from lotterybook.foundations.training import (
    Validate, batch_order, classification, evaluate, evaluating, example_batches, holding, train,
    train_run, validation)
from lotterybook.pruning.masks import full_masks, remaining
from lotterybook.sparse_training.rigl import GradualPruning
torch.set_num_threads(1)
digits = load('digits')

def fresh(seed=0):
    "A network with dropout and batch norm."
    net = batchnorm_mlp(64, seed=seed)
    net.relu1 = nn.Sequential(nn.ReLU(), nn.Dropout(.5))
    return net

def fresh_run(seed=5, net_seed=0):
    net = fresh(net_seed)
    return Run(net, FusedAdam(net.parameters()), seed=seed)

def without_seconds(outcome): return {k: v for k, v in outcome.items() if k != 'seconds'}

def lenet_of(seed=0): return lenet(64, seed=seed)

def weights(net): return {k: v.clone() for k, v in net.state_dict().items()}

class Calls:
    "A loss that counts its calls, and does something at one of them, counted from 0."
    def __init__(self, at, what): self.at, self.what, self.n = at, what, 0
    def __call__(self, logits, labels):
        self.n += 1
        value = F.cross_entropy(logits, labels)
        return self.what(value) if self.n == self.at + 1 else value

def kill(value): raise KeyboardInterrupt

# --- the order of examples

def test_order_by_a_second_route():
    "Epochs of permutations, cut into batches; an incomplete last one is dropped."
    epochs = [torch.randperm(10, generator=rng(4, 'order', epoch)).tolist() for epoch in range(3)]
    want = [o[at:at + 3] for o in epochs for at in (0, 3, 6)]
    assert [rows.tolist() for rows in batch_order(10, 3, 4, 0, 9)] == want
    for start in range(9):
        assert [rows.tolist() for rows in batch_order(10, 3, 4, start, 8)] == want[start:8]
    assert [rows.tolist() for rows in batch_order(10, 3, 5, 0, 9)] != want

@pytest.mark.parametrize('n, size, told', [
    (10, 0, 'batch_size=0'), (10, 2.5, 'batch_size=2.5'),
    (10, 11, 'a batch of 11 needs as many examples; there are 10')])
def test_wrong_batches(n, size, told):
    "Refused when the first is asked for."
    with pytest.raises(ValueError, match=told): next(batch_order(n, size, 0, 0, 1))

def test_example_batches():
    "Inputs with their labels, in that order."
    x, y = torch.arange(10.).view(10, 1), torch.arange(10)
    pairs = list(example_batches(x, y, 3, 4)(2, 7))
    for (xs, ys), rows in zip(pairs, batch_order(10, 3, 4, 2, 7), strict=True):
        assert torch.equal(ys, rows) and torch.equal(xs[:, 0], rows.float())

# --- measuring

def test_evaluate():
    "In pieces or at once; by hand: logits (ln 3, 0) are ¾ and ¼."
    logits, labels = torch.tensor([[math.log(3), 0.]]*4), torch.tensor([0, 1, 0, 0])
    want = -(3*math.log(3/4) + math.log(1/4))/4
    for piece in (1, 3, 4, 1000):
        loss, accuracy = evaluate(nn.Identity(), logits, labels, piece)
        assert math.isclose(loss, want, rel_tol=1e-6) and accuracy == .75

def test_modes_go_back():
    "Each layer to its own, after an error too: a frozen norm stays frozen."
    net = fresh().train()
    net.norm2.eval()
    def modes(): return {name: layer.training for name, layer in net.named_modules()}
    before = modes()
    with evaluating(net): assert not any(modes().values())
    assert modes() == before and not before['norm2'] and before['norm1']
    with pytest.raises(KeyError), evaluating(net): raise KeyError
    assert modes() == before
    evaluate(net, digits.x_test, digits.y_test)
    assert modes() == before and all(p.grad is None for p in net.parameters())

def test_own_weights_come_back():
    "After an error too, one about the other weights among them; those not given stay."
    net, other = fresh(0), weights(fresh(1))
    own  = weights(net)
    some = {name: value for name, value in other.items() if name.startswith('output.')}
    with holding(net, other): assert same(weights(net), other)
    assert same(weights(net), own)
    with holding(net, some): assert same(weights(net), own | some)
    with pytest.raises(KeyError), holding(net, other): raise KeyError
    assert same(weights(net), own)
    misfit = other | {name: value[:1] for name, value in some.items()}
    with pytest.raises(RuntimeError, match='size mismatch'), holding(net, misfit): pass
    assert same(weights(net), own)

# --- the protocol

def test_the_usual_loop():
    "By a second route: what everyone writes, the same bits."
    net, theirs = lenet_of(), lenet_of()
    outcome = train(net, digits, steps=100, eval_every=50)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1.2e-3, fused=True)
    with flushed_denormals():
        for rows in batch_order(len(digits.x_train), 60, 0, 0, 100):
            optimizer.zero_grad()
            F.cross_entropy(theirs(digits.x_train[rows]), digits.y_train[rows]).backward()
            optimizer.step()
    assert same(weights(net), weights(theirs))
    assert outcome['end_accuracy'] == evaluate(theirs, digits.x_test, digits.y_test)[1]
    assert outcome['train_accuracy'] == evaluate(theirs, digits.x_train, digits.y_train)[1]

def test_early_stop():
    "The first smallest validation loss; the test accuracy is that of a run which ends there."
    wrecked = dict(lr=lambda step: .003 if step < 75 else 1., eval_every=10)
    outcome = train(lenet_of(), digits, steps=100, **wrecked)
    losses  = [row['validation_loss'] for row in outcome['history']]
    assert outcome['stop_step'] == 10*(losses.index(min(losses)) + 1)
    assert outcome['stop_loss'] == min(losses)
    assert outcome['stop_step'] < 80 and outcome['end_accuracy'] < .5, 'nothing would be shown'
    short = lenet_of()
    train(short, digits, steps=outcome['stop_step'], **wrecked)
    loss, accuracy = evaluate(short, digits.x_test, digits.y_test)
    assert accuracy == outcome['stop_accuracy'] > .8

def test_the_test_set_is_read_twice_and_last():
    "Marked, so that it is seen to pass: after the last step of training."
    marked, seen, net = digits._replace(x_test=digits.x_test + 100), [], lenet_of()
    def look(net, args):
        seen.append('test' if args[0].max() > 50 else 'train' if net.training else 'look')
    net.register_forward_pre_hook(look)
    train(net, marked, steps=100, eval_every=50)
    assert seen.count('train') == 100 and seen.count('test') == 2
    assert max(i for i, o in enumerate(seen) if o == 'train') < seen.index('test')

def test_masks_hold():
    "Under momentum and weight decay, at every forward pass; the others move."
    masks = {k: torch.rand(p.shape, generator=rng(0, k)) < .3
             for k, p in lenet(64).named_parameters() if p.dim() > 1}
    net = lenet_of()
    def zeros_are_zero(net, args):
        assert not any(net.get_parameter(k)[~m].any() for k, m in masks.items())
    net.register_forward_pre_hook(zeros_are_zero)
    sgd = partial(torch.optim.SGD, momentum=.9, weight_decay=.1)
    train(net, digits, masks, steps=50, eval_every=50, optimizer=sgd, lr=.05)
    for k, m in masks.items():
        p = net.get_parameter(k)
        assert not p[~m].any() and (p[m] != lenet_of().get_parameter(k)[m]).all()

@pytest.mark.parametrize('masks, told', [
    ({'layer9.weight': torch.ones(100, 300).bool()}, "mask 'layer9.weight' fits no parameter"),
    ({'layer1.weight': torch.ones(100, 300).bool()}, 'has shape (100, 300)'),
    ({'layer2.weight': torch.ones(100, 300)}, 'not bool')])
def test_wrong_masks(masks, told):
    "Refused before the first step."
    net = lenet_of()
    with pytest.raises(ValueError) as e: train(net, digits, masks)
    assert told in str(e.value) and same(weights(net), weights(lenet_of()))

def test_judged_by_cross_entropy():
    "Whatever loss is trained on."
    def smooth(logits, labels): return F.cross_entropy(logits, labels, label_smoothing=.5)
    net = lenet_of()
    outcome = train(net, digits, steps=20, eval_every=20, loss=smooth)
    assert outcome['stop_loss'] == evaluate(net, digits.x_validation, digits.y_validation)[0]
    assert outcome['stop_loss'] != train(lenet_of(), digits, steps=20, eval_every=20)['stop_loss']

def test_seeds():
    "Decide on the order of examples and on dropout."
    def loss(seed): return train(fresh(), digits, steps=20, eval_every=20, seed=seed)['stop_loss']
    assert loss(0) == loss(0) != loss(1)

# --- killed and started again

settings = dict(steps=120, eval_every=10, seed=5)

@pytest.fixture(scope='module')
def whole():
    "A training that was left alone: its network and its outcome."
    net = fresh()
    return net, without_seconds(train(net, digits, **settings))

@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
    "The file of the same one, killed in step 77; it was written every 30."
    file = tmp_path_factory.mktemp('stopped')/'run'
    with pytest.raises(KeyboardInterrupt):
        train(fresh(), digits, **settings, loss=Calls(77, kill), checkpoint=file, save_every=30)
    return file

@pytest.fixture
def file(stopped, tmp_path):
    (tmp_path/'run').write_bytes(stopped.read_bytes())
    return tmp_path/'run'

def test_killed_and_resumed(whole, file):
    "Weights, buffers, outcome, history: the same bits; a finished run only tells its outcome."
    assert torch.load(file)['run']['step'] == 60
    torch.rand(3)  # the global generator has moved on meanwhile
    net, (want, outcome) = fresh(), whole
    def go(net, loss): return train(net, digits, **settings, loss=loss, checkpoint=file)
    steps = Calls(-1, kill)
    assert without_seconds(go(net, steps)) == outcome
    assert steps.n == 60 and same(weights(net), weights(want)) and len(outcome['history']) == 12
    assert without_seconds(go(fresh(), Calls(0, kill))) == outcome

@pytest.mark.parametrize('change, told', [
    (dict(seed=6), 'seed was 5, is 6.'), (dict(steps=150), 'steps was 120, is 150.'),
    (dict(batch_size=59), 'batch_size was 60, is 59.'),
    (dict(eval_every=12), 'eval_every was 10, is 12.'),
    (dict(lr=.1), 'options was '), (dict(lr=lambda step: 1.2e-3), 'rates was 0, is '),
    (dict(optimizer=partial(FusedAdam, betas=(.8, .9))), 'options was '),
    (dict(optimizer=torch.optim.Adam), "optimizer was 'FusedAdam', is 'Adam'"),
    (dict(net=fresh(1)), 'weights was '),
    (dict(masks={'layer1.weight': torch.rand(200, 64) < .5}), 'masks was 0, is '),
    (dict(data=digits._replace(x_train=1 - digits.x_train)), 'data was '),
    (dict(data=digits._replace(y_train=9 - digits.y_train)), 'data was ')])
def test_another_run(change, told, file):
    "Refused by what differs; nothing is trained, the file stays."
    before, never = file.read_bytes(), Calls(0, kill)
    with pytest.raises(ValueError) as e:
        train(**dict(net=fresh(), data=digits, **settings, loss=never, checkpoint=file) | change)
    assert f'{file} is of another run: ' in str(e.value) and told in str(e.value)
    assert file.read_bytes() == before

def test_other_masks(tmp_path):
    "Refused also where the network has the same weights, zero under both masks."
    def go(share):
        net = lenet_of()
        with torch.no_grad(): net.layer2.weight.zero_()
        masks = {'layer2.weight': torch.rand(100, 300, generator=rng(0)) < share}
        train(net, digits, masks, steps=4, eval_every=2, checkpoint=tmp_path/'run')
    go(.5); go(.5)
    with pytest.raises(ValueError, match='another run: masks was'): go(.4)

def test_a_rate_that_differs_in_one_step(tmp_path):
    "A function of the step is compared by all its values, not by its name."
    def go(rate, **more):
        return train(lenet_of(), digits, steps=8, eval_every=4, lr=rate,
                     checkpoint=tmp_path/'run', save_every=4, **more)
    with pytest.raises(KeyboardInterrupt): go(lambda step: .1/(1 + step), loss=Calls(7, kill))
    with pytest.raises(ValueError, match='another run: rates was'):
        go(lambda step: .1/(1 + step)*(step != 7))
    with pytest.raises(ValueError, match='another run: options was .* rates was'):
        go(lambda step: .2/(1 + step))
    def same_rate(step): return .1/(step + 1)
    assert go(same_rate)['history'][-1]['step'] == 8

def test_generators_are_left_alone():
    "Training draws from streams of its own, also where it fails."
    net = fresh()
    torch.manual_seed(3); want = torch.rand(2)
    torch.manual_seed(3); train(net, digits, steps=2, eval_every=1)
    assert torch.equal(torch.rand(2), want)
    torch.manual_seed(3)
    with pytest.raises(KeyboardInterrupt): train(net, digits, steps=2, loss=Calls(1, kill))
    assert torch.equal(torch.rand(2), want)

def test_denormals_are_left_alone():
    "They are flushed in training, and only there."
    def subnormal(): return (torch.full((), 1e-38)*.01).item() != 0
    with flushed_denormals() as can: pass
    seen = []
    class Looks(Hook):
        def before_step(self, run): seen.append(subnormal())
    train_run(fresh_run(), digits, 1, hooks=[Looks()])
    assert seen == [not can] and subnormal()

# --- a rate that is a function of the step

def test_rate_function():
    "By a second route: PyTorch's own scheduler in the usual loop."
    net, theirs = lenet_of(), lenet_of()
    train(net, digits, steps=100, lr=lambda step: 1.2e-3*(1 - step/100))
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1.2e-3, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step/100)
    with flushed_denormals():
        for rows in batch_order(1000, 60, 0, 0, 100):
            optimizer.zero_grad()
            F.cross_entropy(theirs(digits.x_train[rows]), digits.y_train[rows]).backward()
            optimizer.step(); scheduler.step()
    assert same(weights(net), weights(theirs))

# --- the bar

def test_the_bar(monkeypatch, tmp_path):
    "Counts every step, also those of a run that goes on, and is silent where TQDM_DISABLE is set."
    bars = []
    def noted(**options):
        bars.append(tqdm(file=StringIO(), disable=False, **options))
        return bars[-1]
    monkeypatch.setattr('tqdm.auto.tqdm', noted)
    def go(**more): train(fresh(), digits, steps=9, eval_every=3, checkpoint=tmp_path/'run', **more)
    monkeypatch.setenv('TQDM_DISABLE', '1'); go(progress=True)
    monkeypatch.delenv('TQDM_DISABLE')
    (tmp_path/'run').unlink(); go()
    assert not bars
    (tmp_path/'run').unlink()
    with pytest.raises(KeyboardInterrupt): go(progress=True, loss=Calls(7, kill), save_every=3)
    go(progress=True)
    assert [(bar.n, bar.total) for bar in bars] == [(6, 9), (9, 9)]
    run = fresh_run()
    train_run(run, digits, steps=4)
    train_run(run, digits, steps=9, eval_every=3, progress=True)
    assert (bars[2].initial, bars[2].n) == (4, 9)

# --- train_run

def test_a_run_that_was_advanced():
    "It is trained for the steps that are left, to the same bits; its rows are those since."
    whole, late = fresh_run(), fresh_run()
    want = train_run(whole, digits, steps=60, eval_every=20)
    with flushed_denormals():
        batches = seeded(example_batches(digits.x_train, digits.y_train, 60, 5), 5)
        advance(late, classification(), batches, 30)
    got = train_run(late, digits, steps=60, eval_every=20)
    assert same(weights(late.net), weights(whole.net)) and late.step == 60
    assert got['history'] == want['history'][1:] and got['end_accuracy'] == want['end_accuracy']

def test_a_run_that_was_rewound():
    "Twice from the same state, the same outcome: its rows and its best step are its own."
    run = fresh_run()
    train_run(run, digits, steps=20, eval_every=10)
    start = run.state_dict()
    first = train_run(run, digits, steps=60, eval_every=10)
    run.load_state_dict(start)
    assert train_run(run, digits, steps=60, eval_every=10) == first and len(first['history']) == 6

def test_hooks_come_before_validation():
    "What they do to the weights is validated; the network is in training mode at their steps."
    class Zero(Hook):
        def after_step(self, run):
            assert run.net.training
            with torch.no_grad():
                for p in run.net.output.parameters(): p.zero_()
    outcome = train_run(fresh_run(), digits, steps=4, eval_every=2, hooks=iter([Zero()]))
    assert [row['validation_loss'] for row in outcome['history']] == pytest.approx([math.log(10)]*2)

@pytest.mark.parametrize('end, told', [(20, []), (60, ['GradualPruning ends at step 60, and the training at 20'])])
def test_hooks_that_would_go_on(end, told):
    "A schedule for a longer training does not prune to its density, and somebody says so."
    run = fresh_run()
    run.set_masks(full_masks(run.net))
    with warnings.catch_warnings(record=True, action='always') as said:
        train_run(run, digits, 20, hooks=iter([GradualPruning(.1, 0, end, 5)]))
    assert [str(o.message).split(':')[0] for o in said] == told
    assert (remaining(run.masks) < .11) == (not told)

def test_rate_of_the_optimizer():
    "Without `lr` each group of weights keeps its own."
    run = fresh_run()
    run.optimizer.param_groups[0]['lr'] = 0.
    before = [p.detach().clone() for p in run.net.parameters()]
    train_run(run, digits, steps=3)
    assert all(map(torch.equal, before, run.net.parameters()))
    train_run(run, digits, steps=6, lr=lambda step: .001*(step == 4))
    assert not any(map(torch.equal, before, run.net.parameters()))

@pytest.mark.parametrize('other, what', [
    (dict(lr=lambda step: 1/(2 + step)), 'rates'), (dict(steps=5), 'steps'),
    (dict(batch_size=59), 'batch_size'), (dict(run=fresh_run(net_seed=1)), 'weights'),
    (dict(data=load('digits', 1)), 'data'), (dict(settings=dict(data='mine')), 'settings')])
def test_a_file_of_another_training(other, what, tmp_path):
    "Refused by name, and nothing is trained: the file holds what makes a training this one."
    def go(run=None, data=digits, **options):
        options = dict(steps=4, lr=lambda step: 1/(1 + step)) | options
        return train_run(run or fresh_run(), data, file=tmp_path/'run', **options)
    first = go()
    with pytest.raises(ValueError, match=rf'another run: .*\b{what} was '): go(**other)
    assert go() == first

def test_killed_inside_train_run(tmp_path):
    "A run of its own, its file written every so often: the same outcome."
    def go(**more):
        return train_run(fresh_run(), digits, steps=20, eval_every=4, file=tmp_path/'run',
                         save_every=6, **more)
    with pytest.raises(KeyboardInterrupt): go(hooks=[Kill(15)])
    assert torch.load(tmp_path/'run')['run']['step'] == 12
    assert go() == train_run(fresh_run(), digits, steps=20, eval_every=4)

def test_a_second_process(tmp_path):
    "Refused while a training holds its checkpoint; another checkpoint beside it is free."
    with folder_lock(tmp_path, 'run'):
        with pytest.raises(ValueError, match='run is in use by another process'):
            train(lenet_of(), digits, steps=2, checkpoint=tmp_path/'run')
        train(lenet_of(), digits, steps=2, checkpoint=tmp_path/'other')
    assert not (tmp_path/'run').exists()

def test_nothing_left():
    "A run that has taken all its steps is an error, and stays."
    run = fresh_run()
    run.step = 5
    for steps in (5, 4):
        with pytest.raises(ValueError, match=f'steps={steps}, and 5 are taken: nothing is left'):
            train_run(run, digits, steps=steps)
    assert run.step == 5 and not run.rows

@pytest.mark.parametrize('wrong', [
    dict(steps=0), dict(steps=2.5), dict(eval_every=0), dict(batch_size=0), dict(save_every=0)])
def test_wrong_sizes(wrong):
    "Refused before the first step."
    (name, value), = wrong.items()
    net = lenet_of()
    with pytest.raises(ValueError) as e: train(net, digits, **wrong)
    assert f'{name.split("_")[-1]}={value} must be a whole number' in str(e.value)
    assert same(weights(net), weights(lenet_of()))

# --- losses that are no numbers

def test_a_loss_that_is_not_finite():
    "Names its step, counted from 0."
    explode = Calls(12, lambda value: value*math.inf)
    with pytest.raises(FloatingPointError, match='the loss of step 12 is inf'):
        train(fresh(), digits, steps=50, eval_every=10, loss=explode)

def test_a_validation_loss_that_is_not_finite():
    "Broken by the last step before validation, when no loss of a batch has told."
    net = fresh()
    count = Calls(-1, None)
    net.layer1.weight.register_hook(lambda grad: grad*math.nan if count.n == 10 else grad)
    with pytest.raises(FloatingPointError, match='the validation loss is nan after 10 steps'):
        train(net, digits, steps=20, eval_every=10, loss=count)

# --- Validate

def validated(losses, steps=10, **options):
    "A run whose k-th validation has the k-th loss; its one weight is the number of steps taken."
    net, losses = nn.Linear(1, 1), iter(losses)
    nn.init.zeros_(net.bias)
    def measure(net): return dict(validation_loss=next(losses), taken=net.bias.item())
    def batches(start, end): return (None for _ in range(start, end))
    def objective(net, _): return -net.bias.sum()
    run = Run(net, torch.optim.SGD(net.parameters(), 1.))
    return advance(run, objective, batches, steps, [Validate(measure, **options)])

@pytest.mark.parametrize('every, end, steps', [
    (3, None, [3, 6, 9]), (3, 10, [3, 6, 9, 10]), (5, 10, [5, 10]), (20, 10, [10]), (20, None, [])])
def test_rows(every, end, steps):
    "Every so often, and once at the end; what was measured, with its step."
    run = validated([4., 3., 2., 1.], every=every, end=end)
    assert run.rows == [dict(step=step, validation_loss=loss, taken=step)
                        for step, loss in zip(steps, [4., 3., 2., 1.])]

def test_the_best_weights():
    "Those of the first smallest loss, as they were then."
    best = validated([3., 1., 2., 1., 5.], every=2).extra['best']
    assert (best['step'], best['loss']) == (4, 1.) and best['weights']['bias'] == 4
    best = validated([5., 4., 3., 2., 1.], every=2).extra['best']
    assert (best['step'], best['loss']) == (10, 1.) and best['weights']['bias'] == 10

@pytest.mark.parametrize('every', [1, 3])
@pytest.mark.parametrize('patience, looks', [(1, 2), (2, 5), (3, 9), (4, 10), (None, 10)])
def test_patience(patience, looks, every):
    "Stop after so many validations in a row without a smaller loss; an equal one is not smaller."
    losses = [5., 5., 4., 6., 4., 3., 3., 3., 3., 2.]
    run = validated(losses, 10*every, every=every, patience=patience)
    assert run.step == looks*every and run.stopped == (looks < 10)

def test_the_best_of_a_size():
    "Weights of another sparsity are no rivals: after pruning, the best are those pruned so far."
    class Prune(Hook):
        def after_step(self, run):
            if run.step == 3: run.set_masks({'weight': torch.zeros(1, 1).bool()})
    losses = iter([1., .5, 3., 2., 4.])
    net = nn.Linear(1, 1)
    run = Run(net, torch.optim.SGD(net.parameters(), .1), {'weight': torch.ones(1, 1).bool()})
    validate = Validate(lambda net: dict(validation_loss=next(losses)), 1)
    advance(run, lambda net, _: net.bias.sum(), lambda start, end: range(start, end), 5,
            [Prune(), validate])
    assert run.extra['best']['step'] == 4 and run.extra['best']['loss'] == 2.
    assert not run.extra['best']['weights']['weight'].any()

def test_a_run_that_is_stopped_is_validated():
    "Where a hook stops it before the first validation, that is the step of its best weights."
    class Stop(Hook):
        def after_step(self, run): run.stopped = run.step == 3
    run = fresh_run()
    outcome = train_run(run, digits, steps=50, hooks=[Stop()])
    assert run.step == outcome['stop_step'] == 3
    assert [row['step'] for row in outcome['history']] == [3]

def test_extra_state():
    "A network that remembers more than tensors is trained, killed and resumed all the same."
    class Told(nn.Sequential):
        told = 0
        def forward(self, x):
            self.told += self.training
            return super().forward(x)
        def get_extra_state(self): return self.told
        def set_extra_state(self, told): self.told = told
    net = Told(nn.Flatten(), nn.Linear(64, 10))
    train(net, digits, steps=7, eval_every=3)
    assert net.told == 7

def test_how_it_measures():
    "In evaluation mode, without gradients; afterwards as before."
    def measure(net):
        assert not net.training and not torch.is_grad_enabled()
        return dict(validation_loss=1.)
    run = fresh_run()
    batches = example_batches(digits.x_train, digits.y_train, 60, 0)
    advance(run, classification(), batches, 2, [Validate(measure, 1)])
    assert run.net.training and torch.is_grad_enabled()

@pytest.mark.parametrize('loss', [math.nan, math.inf])
def test_validation_that_is_not_finite(loss):
    "An error that names the step; no row is kept of it."
    with pytest.raises(FloatingPointError, match=f'loss is {loss} after 4 steps: training stopped'):
        validated([1., loss], every=2)

def test_what_validation_measures():
    "Loss and accuracy on the validation examples."
    net = lenet_of()
    loss, accuracy = evaluate(net, digits.x_validation, digits.y_validation)
    assert validation(digits)(net) == dict(validation_loss=loss, validation_accuracy=accuracy)

@pytest.mark.parametrize('every', [0, -1, .5])
def test_wrong_every(every):
    "Refused by its name."
    with pytest.raises(ValueError, match=f'every={every}'): Validate(validation(digits), every)

# --- data that does not fit

def test_evaluate_needs_a_label_for_each_input():
    "Fewer, or more, by whole pieces: what is left over would not count, or count as wrong."
    x, y = torch.randn(20, 64), torch.arange(20) % 10
    for labels in (y[:10], torch.cat([y, y])):
        with pytest.raises(ValueError, match=f'20 inputs, and {len(labels)} labels'): evaluate(lenet_of(), x, labels, piece=10)

def test_data_that_does_not_fit_is_refused_before_training():
    net = lenet_of()
    before = weights(net)
    for part in ('train', 'validation', 'test'):
        y = getattr(digits, f'y_{part}')
        for labels in (torch.cat([y, y]), torch.where(y == 3, -100, y), torch.where(y == 3, 10, y)):
            with pytest.raises(ValueError, match=f'{part}: '): train(net, digits._replace(**{f'y_{part}': labels}), steps=2)
    assert same(weights(net), before)
