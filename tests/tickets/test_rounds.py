"One round, watched: any loop passes that trains the network it was given, and no other."
import copy, io, math, warnings
from functools import partial
import numpy as np
import pytest, torch
from torch import nn
from torch.nn import functional as F
from ticket_loops import (
    batches, cross_entropy, dense, files, idle, loader, make_run, mlp, sgd, stranger, unheld,
    watches, with_sgd, x60, y60)
from sameness import same
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.networks import lenet
from lotterybook.foundations.randomness import rng
from lotterybook.foundations.running import Hook, Run, advance
from lotterybook.pruning.masked_training import keep_pruned
from lotterybook.pruning.masks import full_masks, kept
from lotterybook.tickets.iterative import find_ticket
from lotterybook.tickets.rounds import KeptRounds, first_run, trained
from lotterybook.tickets.ticket_files import Ticket, save_ticket
torch.set_num_threads(1)

NOT_ZERO = 'pruned weights are not zero'

def pruned_run(make=make_run, share=.4):
    "A run in which some weights of each layer are pruned."
    run = first_run(make, 0)
    run.set_masks({k: torch.rand(m.shape, generator=rng(0, k)) < share for k,
                   m in run.masks.items()})
    return run

def check(run):
    "Zeros at zero, by a second route."
    for name, mask in run.masks.items():
        assert not run.net.get_parameter(name)[~mask].any() and not mask.all()

# --- the first run

@pytest.mark.parametrize('make', [
    lambda seed: Run(lenet(64,
                           seed=seed)), lambda seed: Run(lenet(64))], ids=['by seed', 'by stream'])
def test_the_same_weights_as_by_hand(make):
    "lenet(64, seed=0) and a search with seed 0 start from the same weights."
    for seed in (0, 3):
        assert same(snapshot(first_run(make, seed).net), snapshot(lenet(64, seed=seed)))
    ticket, = find_ticket(make, idle, rounds=0, progress=False)
    assert same(ticket.theta_0, snapshot(lenet(64, seed=0)))

def test_streams_of_first_run():
    "Another seed, another purpose: other weights. The caller's generator does not move."
    torch.manual_seed(5); want = torch.rand(2); torch.manual_seed(5)
    a, b, *others = (snapshot(first_run(make_run, *o).net)['1.weight']
                     for o in ((0,), (0,), (1,), (0, 'reinit'), (0, 'reinit', 1)))
    assert torch.equal(torch.rand(2), want) and torch.equal(a, b)
    assert len({tuple(o.flatten().tolist()) for o in (a, *others)}) == 4

def test_masks_and_seed_of_first_run():
    "All prunable weights, if it came without; the replicate's seed, also for another draw."
    assert kept(first_run(make_run, 4).masks) == {'1.weight': 1920, '3.weight': 300}
    def own(seed):
        net = mlp()
        return Run(net, masks=full_masks(net, exclude='3.*'))
    run = first_run(own, 4, 'another')
    assert list(run.masks) == ['1.weight'] and run.seed == 4

def test_seeds_that_other_libraries_take():
    "NumPy, Lightning and scikit-learn take 32 bits, also for another draw of a replicate."
    seen = []
    def make(seed): seen.append(seed); return make_run(seed)
    for purpose in ((), ('another',), ('reinit', 3)): first_run(make, 7, *purpose)
    assert seen[0] == 7 and len(set(seen)) == 3 and max(seen) < 2**32

@pytest.mark.parametrize('make, train, why', [
    (lambda: mlp(), idle, 'make_run cannot be called with one argument'),
    (lambda: mlp(), lambda net, masks: None, 'make_run cannot be called with one argument'),
    (lambda seed: mlp(), idle, 'make_run gave a Sequential'),
    (lambda seed: None, idle, 'make_run gave a NoneType'),
    (mlp(), idle, 'make_run is a network (Sequential), not a function'),
    (make_run, mlp(), 'train is a network (Sequential), not a function'),
    (make_run, lambda net, masks: None, 'train cannot be called with one argument'),
    (make_run, lambda: None, 'train cannot be called with one argument')])
def test_old_form(make, train, why):
    "A call in the old form gets a message that shows the new one."
    with pytest.raises(ValueError) as e: find_ticket(make, train, rounds=3, progress=False)
    assert why in str(e.value) and 'def make_run(seed):' in str(e.value)
    assert 'with keep_pruned(run.net, run.masks)' in str(e.value)

@pytest.mark.filterwarnings('ignore:Initializing zero-element')
def test_old_form_by_partial():
    "A network function as `make_net`, as most calls had it: the message is the same."
    with pytest.raises(ValueError, match='make_run gave a Sequential') as e:
        find_ticket(partial(lenet, 64), partial(stranger), rounds=3, progress=False)
    assert 'def make_run(seed):' in str(e.value)

# --- what a training returns

@pytest.mark.parametrize('value, told', [
    (None, None), (.5, .5), (3, 3), ('text', 'text'), (True, True), ([1, [2.]], [1, [2.]]),
    ((1, 2), [1, 2]),
    (np.float32(.5), .5), (np.int64(3), 3), (np.array(2.), 2.), (torch.tensor(.5), .5),
    (torch.tensor(.5, requires_grad=True), .5), (torch.tensor(3), 3),
    (dict(loss=torch.tensor(.5), right=np.int64(3), seconds=9.), dict(loss=.5, right=3)),
    (dict(rows=[dict(step=1, loss=np.float64(.5))]), dict(rows=[dict(step=1, loss=.5)]))])
def test_outcomes(value, told):
    "Plain values, as they come back from a file; of a dictionary without its seconds."
    outcome = trained(pruned_run(), lambda run: value)
    assert same(outcome, told)

@pytest.mark.parametrize('value', [
    torch.ones(1), np.ones(2), {1,
                                2}, mlp(), object(), dict(a=torch.ones(2)), [b'bytes'], {(1, 2): 3},
    lambda: 1], ids=lambda o: type(o).__name__)
def test_outcomes_refused(value):
    "What no file could hold."
    with pytest.raises(ValueError, match='what train.run. returns may hold numbers, text'):
        trained(pruned_run(), lambda run: value)

@pytest.mark.parametrize('name, value',
                         [('3.bias', math.nan), ('1.weight', math.inf), ('1.bias', -math.inf)])
def test_weights_that_are_not_finite(name, value):
    "The parameter is named."
    def diverge(run):
        p = run.net.get_parameter(name)
        with torch.no_grad(): p[run.masks[name] if name in run.masks else slice(None)] = value
    with pytest.raises(ValueError,
                       match=f"after training, '{name}' holds numbers that are not finite"):
        trained(pruned_run(), diverge)

def test_streams_of_training():
    "The same draws for a seed, others for another; the caller's generator stays."
    def draws(seed):
        run = first_run(make_run, seed)
        def train(run): return torch.rand(3).tolist(), [y.tolist() for _, y in loader(180)]
        return trained(run, train)
    torch.manual_seed(5); want = torch.rand(2); torch.manual_seed(5)
    a, b, c = draws(0), draws(0), draws(1)
    assert torch.equal(torch.rand(2), want) and a == b != c

# --- loops that hold their masks

def lbfgs(run):
    optimizer = torch.optim.LBFGS(run.net.parameters(), lr=.1, max_iter=5)
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(run.net(x60), y60)
        loss.backward()
        return loss
    with keep_pruned(run.net, run.masks):
        for _ in range(3): optimizer.step(closure)

def by_hand(run, hold=True):
    "No optimizer at all."
    for i in range(3):
        loss = F.cross_entropy(run.net(x60), y60)
        for p, g in zip(run.net.parameters(),
                        torch.autograd.grad(loss, list(run.net.parameters()))):
            p.data.sub_(.1*g)
        if hold or i == 2: run.held.zero()

def accumulate(run):
    "Clipped gradients of several passes."
    optimizer = sgd(run.net.parameters())
    with keep_pruned(run.net, run.masks, optimizer):
        for i, (x, y) in enumerate(loader()):
            F.cross_entropy(run.net(x), y).backward()
            if i % 2: continue
            nn.utils.clip_grad_norm_(run.net.parameters(), .1)
            optimizer.step()
            optimizer.zero_grad()

class LookAhead:
    "Zhang et al. (2019): writes to `.data`, which no counter counts."
    def __init__(self, inner, params, slow=None):
        self.inner, self.params, self.steps = inner, list(params), 0
        self.slow = [p.detach().clone() for p in slow or self.params]
    def zero_grad(self): self.inner.zero_grad()
    def step(self):
        self.inner.step()
        self.steps += 1
        if self.steps % 3: return
        for p, s in zip(self.params, self.slow): p.data.copy_(s.add_(p.data - s, alpha=.5))

def look_ahead(run, slow=None):
    with keep_pruned(run.net, run.masks):
        optimizer = LookAhead(sgd(run.net.parameters()), run.net.parameters(), slow)
        stranger(run, lambda params: optimizer, unheld)

def two_networks(run):
    "A second network with an optimizer of its own, as in adversarial training."
    other  = mlp(3)
    second = torch.optim.Adam(other.parameters())
    def between(run, i):
        F.cross_entropy(other(x60) + run.net(x60).detach(), y60).backward()
        second.step()
    stranger(run, between=between)

def back_to_best(run):
    "Keeps its best weights, and goes back to them."
    best = []
    def between(run, i):
        if i == 3: best.append(copy.deepcopy(run.net.state_dict()))
    stranger(run, between=between)
    run.net.load_state_dict(best[0])

def averaged(run):
    "Stochastic weight averaging: a copy of the network, evaluated and taken over."
    mean = torch.optim.swa_utils.AveragedModel(run.net)
    stranger(run, between=lambda run, i: mean.update_parameters(run.net))
    mean(x60)
    run.net.load_state_dict(mean.module.state_dict())

def scaled(run):
    "Loss scaling; infinite gradients skip a step."
    scaler    = torch.amp.GradScaler('cpu', init_scale=2.**127, growth_interval=2)
    optimizer = torch.optim.Adam(run.net.parameters(), .01)
    with keep_pruned(run.net, run.masks):
        for x, y in loader():
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(run.net(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()

def in_precision(run, dtype, inside=keep_pruned):
    "Moves the network into another precision, between two halves of its training."
    stranger(run, inside=inside)
    with inside(run.net, run.masks):
        run.net.to(dtype)
        optimizer = sgd(run.net.parameters())
        for x, y in loader():
            optimizer.zero_grad()
            F.cross_entropy(run.net(x.to(dtype)).float(), y).backward()
            optimizer.step()

def other_weights(run):
    "Replaces its parameters by sparse ones, and trains those."
    stranger(run)
    state = copy.deepcopy(run.net.state_dict())
    with keep_pruned(run.net, run.masks): run.net.load_state_dict(state, assign=True)
    stranger(run)

def own_loop(run, hooks=(), end=6): advance(run, cross_entropy, batches, end, hooks)

def adam(**options): return partial(torch.optim.Adam, lr=.01, **options)

class Lazy(torch.optim.Optimizer):
    "An optimizer of somebody's own."
    def __init__(self, params): super().__init__(params, {})
    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]['params']: p += .01*torch.randn(p.shape)

HONEST = dict(
    momentum=stranger, adam=partial(stranger, optimizer=adam()), nothing=idle,
    fused=partial(stranger, optimizer=adam(fused=True)), own=partial(stranger, optimizer=Lazy),
    foreach=partial(stranger, optimizer=adam(foreach=True, weight_decay=.1)),
    rmsprop=partial(stranger, optimizer=partial(torch.optim.RMSprop, lr=.01, momentum=.9)),
    lbfgs=lbfgs, by_hand=by_hand, accumulate=accumulate, look_ahead=look_ahead, averaged=averaged,
    two_networks=two_networks, back_to_best=back_to_best, scaled=scaled,
    other_weights=other_weights, double=partial(in_precision, dtype=torch.float64),
    half=partial(in_precision, dtype=torch.bfloat16),
    evaluating=partial(stranger, after=lambda run: run.net.eval()(x60)),
    copied=partial(stranger, between=lambda run, i: copy.deepcopy(run.net)(x60)))

@pytest.mark.parametrize('name', HONEST)
def test_loops_that_hold_their_masks(name):
    "They pass, train what is left, and leave no hook behind."
    run = pruned_run()
    before = snapshot(run.net)
    trained(run, HONEST[name])
    check(run)
    moved = (run.net.get_parameter('3.weight').float() != before['3.weight'])[run.masks['3.weight']]
    assert moved.float().mean() > .5 or name == 'nothing'
    assert watches(run.net) == 0

def test_the_loop_of_the_library():
    "Passes with an optimizer of any kind, and gives the same bits as if nobody watched."
    watched, alone = pruned_run(with_sgd), pruned_run(with_sgd)
    trained(watched, own_loop)
    own_loop(alone)
    check(watched)
    assert same(watched.state_dict(), alone.state_dict())

def test_a_loop_may_save_its_network():
    "As a whole, by pickle: what watches it does not stand in the way."
    trained(pruned_run(), partial(stranger, between=lambda run,
                                  i: torch.save(run.net, io.BytesIO())))

@pytest.mark.parametrize('way', ['autograd', 'func'])
def test_functional_loops(way):
    "Gradients by `functional_call`, of weights that stand outside the network."
    names = [name for name, _ in mlp().named_parameters()]
    def loss(run, weights):
        return F.cross_entropy(torch.func.functional_call(run.net, weights, (x60,)), y60)
    def train(run):
        for _ in range(3):
            weights = {k: run.net.get_parameter(k).detach().requires_grad_(way == 'autograd')
                       for k in names}
            if way == 'func': grads = torch.func.grad(partial(loss, run))(weights)
            else:
                grads = dict(zip(names,
                                 torch.autograd.grad(loss(run, weights), [*weights.values()])))
            with torch.no_grad():
                for k in names: run.net.get_parameter(k).sub_(.1*grads[k])
            run.held.zero()
    run = pruned_run()
    trained(run, train)
    check(run)

# --- loops that do not

def zero(run): run.held.zero()

def at(step, what):
    "Something between two batches."
    def between(run, i):
        if i == step: what(run)
    return between

def load_dense(run): run.net.load_state_dict(dense())
def assign_dense(run): run.net.load_state_dict(dense(), assign=True)
def copy_dense(run):
    with torch.no_grad():
        for k in run.masks: run.net.get_parameter(k).copy_(dense()[k])
def write_dense(run):
    for k in run.masks: run.net.get_parameter(k).data.copy_(dense()[k])  # no counter moves
def swap_dense(run):
    for k in run.masks: run.net.get_parameter(k).data = dense()[k]
def swap_and_back(run):
    "Evaluates dense weights, and puts the sparse ones back."
    sparse = copy.deepcopy(run.net.state_dict())
    load_dense(run)
    run.net(x60)
    run.net.load_state_dict(sparse)
def one_weight(run):
    "The smallest slip: a single weight, and a tiny one."
    with torch.no_grad(): run.net.get_parameter('3.weight')[~run.masks['3.weight']] = 1e-45

def by_parts(run):
    "Calls the layers and not the network, so that only its optimizer is met."
    optimizer = sgd(run.net.parameters())
    for x, y in loader():
        optimizer.zero_grad()
        F.cross_entropy(run.net[3](run.net[2](run.net[1](x.flatten(1)))), y).backward()
        optimizer.step()
    run.held.zero()

def gradients_only(run):
    "Masks gradients, not what Adam remembers of a dense start."
    run.held.zero()
    optimizer = torch.optim.Adam(run.net.parameters(), .01)
    for i in range(4):
        optimizer.zero_grad()
        F.cross_entropy(run.net(x60), y60).backward()
        if i: run.held.zero_gradients()
        optimizer.step()
        if i == 0: run.held.zero()

def every_second_step(run):
    "Zeroes pruned weights after every second step."
    stranger(run, inside=unheld, between=lambda run, i: run.held.zero() if i % 2 else None)

REFUSED = dict(
    unheld=partial(stranger, inside=unheld),
    zeroed_at_last=partial(stranger, inside=unheld, after=zero),
    adam=partial(stranger, optimizer=adam(), inside=unheld, after=zero),
    by_hand=partial(by_hand, hold=False), by_parts=by_parts, gradients_only=gradients_only,
    every_second_step=every_second_step,
    in_double=partial(in_precision, dtype=torch.float64, inside=unheld),
    look_ahead=partial(look_ahead, slow=list(mlp(5).parameters())),
    one_weight=one_weight, evaluated=swap_and_back,
    **{f'{what.__name__}_{when}': partial(stranger, **{key: do(what)})
       for what in (load_dense, assign_dense, copy_dense, write_dense, swap_dense, one_weight)
       for when, key, do in (('inside', 'between', partial(at, 2)),
                             ('at_last', 'between', partial(at, 5)),
                             ('after', 'after', lambda what: what))})

@pytest.mark.parametrize('name', REFUSED)
def test_loops_that_do_not(name):
    "Refused, whatever they restore afterwards; no hook is left behind."
    run = pruned_run()
    with pytest.raises(ValueError, match=NOT_ZERO): trained(run, REFUSED[name])
    assert watches(run.net) == 0

def test_layer_and_count_are_named():
    "And what to do; layers that are as they should be are not named."
    def slip(run):
        with torch.no_grad():
            run.net[3].weight.view(-1)[(~run.masks['3.weight']).view(-1).nonzero()[:7, 0]] = 1.
    with pytest.raises(ValueError) as e: trained(pruned_run(), slip)
    assert str(e.value).startswith(f"{NOT_ZERO}: 7 of '3.weight'; ")
    assert '1.weight' not in str(e.value)
    assert 'keep_pruned(run.net, run.masks)' in str(e.value)

class Does(Hook):
    "Something after the third of six steps."
    def __init__(self, what): self.what = what
    def after_step(self, run):
        if run.step == 3: self.what(run)

@pytest.mark.parametrize('what', [
    load_dense, assign_dense, copy_dense, swap_dense, swap_and_back, one_weight, write_dense])
def test_a_hook_that_brings_weights_back(what):
    "In the library's own loop, too, which zeroes them again after the step."
    with pytest.raises(ValueError, match=NOT_ZERO):
        trained(pruned_run(with_sgd), partial(own_loop, hooks=[Does(what)]))

def test_after_a_loop_that_was_broken_off():
    "What `train` does after an error that it catches is watched as any stranger's loop."
    def fail(run): raise StopIteration
    def train(run):
        try: own_loop(run, [Does(fail)])
        except StopIteration: write_dense(run)
        run.net(x60)
        run.held.zero()
    with pytest.raises(ValueError, match=NOT_ZERO): trained(pruned_run(with_sgd), train)

def test_another_network():
    "Put in the place of the run's own: a ticket is of the network that was watched."
    def train(run): run.net = mlp(5)
    with pytest.raises(ValueError): trained(pruned_run(), train)

def test_masks_that_are_taken_off():
    "Trained under full masks, and pruned again at the end."
    def train(run):
        masks = run.masks
        run.set_masks(full_masks(run.net))
        own_loop(run)
        run.set_masks(masks)
    with pytest.raises(ValueError): trained(pruned_run(with_sgd), train)

@pytest.mark.parametrize('error', [KeyError, KeyboardInterrupt])
def test_after_an_error(error):
    "No hook is left behind, and the generator is the caller's."
    def fail(run): torch.rand(3); raise error
    run = pruned_run()
    torch.manual_seed(5); want = torch.rand(2); torch.manual_seed(5)
    with pytest.raises(error): trained(run, fail)
    assert watches(run.net) == 0 and torch.equal(torch.rand(2), want)

# --- compiled networks

def compiled_loop(run, call, inside=keep_pruned):
    optimizer = sgd(run.net.parameters())
    with inside(run.net, run.masks):
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(call(x60), y60).backward()
            optimizer.step()
    run.held.zero()

def compiled(run, form, backend, **options):
    "The network as it is called: wrapped, wrapped and called before, or compiled in place."
    torch._dynamo.reset()
    if form == 'in place':
        run.net.compile(backend=backend, **options)
        return run.net
    call = torch.compile(run.net, backend=backend, **options)
    if form == 'warm': call(x60)
    return call

@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
@pytest.mark.parametrize('form', ['cold', 'warm', 'in place'])
def test_compiled(form, backend):
    "An honest loop passes; one that zeroes at last is refused, though a warm network skips hooks."
    run = pruned_run()
    trained(run, partial(compiled_loop, call=compiled(run, form, backend)))
    check(run)
    run = pruned_run()
    with pytest.raises(ValueError, match=NOT_ZERO):
        trained(run, partial(compiled_loop, call=compiled(run, form, backend), inside=unheld))

@pytest.mark.parametrize('form', ['cold', 'warm', 'in place'])
def test_compiled_as_one_graph(form):
    "`fullgraph=True`: what watches the network is no part of the graph."
    run = pruned_run()
    trained(run, partial(compiled_loop, call=compiled(run, form, 'eager', fullgraph=True)))
    check(run)

def test_compiled_steps():
    "Forward pass, backward pass and optimizer in one compiled function."
    def step(net, optimizer):
        optimizer.zero_grad()
        F.cross_entropy(net(x60), y60).backward()
        optimizer.step()
    def train(run, inside=keep_pruned):
        torch._dynamo.reset()
        optimizer = torch.optim.SGD(run.net.parameters(), .1)
        go = torch.compile(step, backend='eager')
        with inside(run.net, run.masks):
            for _ in range(3): go(run.net, optimizer)
        run.held.zero()
    trained(pruned_run(), train)
    with pytest.raises(ValueError, match=NOT_ZERO):
        trained(pruned_run(), partial(train, inside=unheld))

# --- Lightning

@pytest.fixture
def lightning(tmp_path):
    "`fit(run, ...)` by Lightning, and a checkpoint of a dense network."
    L = pytest.importorskip('lightning.pytorch', exc_type=ImportError)  # it wants newer packages than we do
    from lightning_task import Task
    def trainer(**options):
        return L.Trainer(accelerator='cpu', logger=False, enable_progress_bar=False,
                         enable_model_summary=False, enable_checkpointing=False,
                         default_root_dir=tmp_path, **dict(max_epochs=1) | options)
    def fit(run, inside=keep_pruned, checkpoint=None, zeroed=False, **options):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with inside(run.net, run.masks):
                task = Task(run.net, run.masks if zeroed else None)
                trainer(**options).fit(task, loader(), ckpt_path=checkpoint)
    def save(run, file):
        done = trainer()
        done.fit(Task(run.net), loader())
        done.save_checkpoint(tmp_path/file)
        return tmp_path/file
    fit.save = save
    return fit

@pytest.mark.filterwarnings('ignore')
def test_lightning(lightning):
    "Passes inside `keep_pruned`, also from a sparse checkpoint, and is refused outside."
    run = pruned_run()
    trained(run, lightning)
    check(run)
    sparse = lightning.save(pruned_run(), 'sparse')
    def zero_checkpoint():
        kept, masks = torch.load(sparse, weights_only=False), pruned_run().masks
        for k, m in masks.items():
            kept['state_dict'][f'net.{k}'][~m] = 0
            for moment in ('exp_avg', 'exp_avg_sq'):
                kept['optimizer_states'][0]['state'][[*dense()].index(k)][moment][~m] = 0
        torch.save(kept, sparse)
    zero_checkpoint()
    run = pruned_run()
    trained(run, partial(lightning, checkpoint=sparse, max_epochs=2))
    check(run)
    with pytest.raises(ValueError, match=NOT_ZERO):
        trained(pruned_run(), partial(lightning, inside=unheld))

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('epochs', [1, 2])
def test_lightning_from_a_dense_checkpoint(epochs, lightning):
    "`trainer.fit(ckpt_path=dense)`, which trains further or only loads: refused."
    file = lightning.save(Run(mlp(5)), 'dense')
    with pytest.raises(ValueError, match=NOT_ZERO):
        trained(pruned_run(), partial(lightning, checkpoint=file, max_epochs=epochs))

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('zeroed', [False, True], ids=['', 'zeroed at last'])
def test_lightning_in_spawned_processes(zeroed, lightning):
    "No hook travels to processes that are spawned: refused, also if they zero at last."
    options = dict(zeroed=zeroed, strategy='ddp_spawn', devices=2)
    with pytest.raises(ValueError): trained(pruned_run(), partial(lightning, **options))

@pytest.mark.filterwarnings('ignore')
def test_lightning_in_forked_processes(lightning):
    "Hooks do travel to processes that are forked: held there, or refused."
    run, before = pruned_run(), snapshot(pruned_run().net)
    trained(run, partial(lightning, strategy='ddp_fork', devices=2))
    check(run)
    assert (run.net[3].weight != before['3.weight'])[run.masks['3.weight']].float().mean() > .5
    with pytest.raises(Exception, match=NOT_ZERO):
        trained(pruned_run(), partial(lightning, inside=unheld, strategy='ddp_fork', devices=2))

# --- rounds in a folder

settings = dict(data='digits', widths=(30, 10), lr=.1)

def finished(folder, name='ticket', given=settings, seed=0, share=None):
    "A folder with the first round of a search, and its ticket."
    run = first_run(make_run, seed)
    rounds, theta_0 = KeptRounds(folder, name, given, run), snapshot(run.net)
    if share:
        run.set_masks({k: torch.rand(m.shape, generator=rng(0, k)) < share for k,
                       m in run.masks.items()})
    trained(run, stranger)
    ticket = Ticket(theta_0, run.masks, snapshot(run.net), dict(round=0, outcome=3))
    return rounds.write(ticket)

def read(folder, name='ticket', given=settings, seed=0, make=make_run):
    run = first_run(make, seed)
    rounds = KeptRounds(folder, name, given, run)
    return rounds, run, rounds.read(run, snapshot(run.net))

def test_a_round_is_read_back(tmp_path):
    "The run gets its masks and trained weights; the settings of the search stand in the ticket."
    ticket = finished(tmp_path/'deep'/'folder')
    assert [*files(tmp_path/'deep'/'folder')] == ['ticket-round0.safetensors']
    assert ticket.settings['search'] == dict(data='digits', widths=[30, 10], lr=.1, seed=0)
    rounds, run, again = read(str(tmp_path/'deep'/'folder'))
    assert rounds.found == 1 and same(again._asdict(), ticket._asdict())
    assert same(snapshot(run.net), ticket.theta_T) and same(run.masks, ticket.masks)

def test_a_round_that_is_not_there(tmp_path):
    "None, and the run stays as it is; another name is another search."
    finished(tmp_path)
    rounds, run, ticket = read(tmp_path, name='other')
    assert ticket is None and rounds.found == 0
    assert same(snapshot(run.net), snapshot(first_run(make_run, 0).net))

@pytest.mark.parametrize('given, why', [
    (dict(settings, lr=.2), 'lr was 0.1, is 0.2'),
    (dict(data='digits', lr=.1), r'widths was \[30, 10\], is not given'),
    (dict(settings, more=1), 'more was not given, is 1'),
    ({}, "data was 'digits', is not given; lr was 0.1, is not given; widths")])
def test_other_settings(given, why, tmp_path):
    "Compared both ways; all that differs is named, and the file."
    finished(tmp_path)
    with pytest.raises(ValueError, match=f'ticket-round0.safetensors is of another run: {why}'):
        read(tmp_path, given=given)

def test_settings_that_are_not_plain(tmp_path):
    "Refused at once."
    with pytest.raises(ValueError, match='settings may hold numbers, text'):
        read(tmp_path, given=dict(loss=F.cross_entropy))

def test_another_seed(tmp_path):
    "The seed is one of the settings."
    finished(tmp_path)
    with pytest.raises(ValueError, match='seed was 0, is 1'): read(tmp_path, seed=1)

def larger(seed):
    run = make_run(seed)
    with torch.no_grad(): run.net[3].weight.mul_(2)
    return run

@pytest.mark.parametrize('make, why', [
    (larger, r'began with other weights: make_run\(0\) does not give the 3.weight kept there'),
    (lambda seed: Run(mlp().double()),
     'began with other weights.*1.weight, 1.bias, 3.weight, 3.bias'),
    (lambda seed: Run(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), 'of another architecture'),
    (lambda seed: Run(nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))),
     r'1.weight has shape \(30, 64\)')], ids=['scaled', 'double', 'shallow', 'narrow'])
def test_other_initial_weights(make, why, tmp_path):
    "They are named."
    finished(tmp_path)
    with pytest.raises(ValueError, match=why): read(tmp_path, make=make)

def test_another_number_of_weights(tmp_path):
    "Another rate: how much the masks differ is said."
    finished(tmp_path, share=.4)
    why = 'ticket-round0.safetensors is of another search: [56].* of its masks differ'
    with pytest.raises(ValueError, match=why): read(tmp_path)

@pytest.mark.parametrize('places, refused', [(20, False), (40, True)])
def test_masks_that_hardly_differ(places, refused, tmp_path):
    "As many weights, a few of them others, as on another machine: the masks in the file are taken."
    ticket, run = finished(tmp_path, share=.4), first_run(make_run, 0)
    masks   = {k: m.clone() for k, m in ticket.masks.items()}
    some    = masks['1.weight'].view(-1)
    on, off = (o.nonzero()[:places//2, 0] for o in (some, ~some))
    some[on], some[off] = False, True
    rounds, theta_0 = KeptRounds(tmp_path, 'ticket', settings, run), snapshot(run.net)
    run.set_masks(masks)
    if refused:
        with pytest.raises(ValueError, match='is of another search'): rounds.read(run, theta_0)
    else: assert same(rounds.read(run, theta_0).masks, run.masks) and same(run.masks, ticket.masks)

def test_a_ticket_that_is_not_trained(tmp_path):
    "It cannot be a round."
    ticket = finished(tmp_path)
    save_ticket(ticket._replace(theta_T=None), tmp_path/'ticket-round0.safetensors')
    with pytest.raises(ValueError, match='is not trained: it has no final'): read(tmp_path)

def test_a_ticket_from_elsewhere(tmp_path):
    "A ticket file that no search wrote tells no settings: it is another's."
    ticket = finished(tmp_path)
    save_ticket(ticket._replace(settings=dict(round=0)), tmp_path/'ticket-round0.safetensors')
    with pytest.raises(ValueError, match="data was not given, is 'digits'"): read(tmp_path)

def test_a_damaged_ticket(tmp_path):
    "It is named, and stays."
    finished(tmp_path)
    file = tmp_path/'ticket-round0.safetensors'
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError,
                       match='ticket-round0.safetensors is not a safetensors file, or was cut off'):
        read(tmp_path)
    assert len(file.read_bytes()) == 1000

def test_a_folder_that_is_a_file(tmp_path):
    "Named before anything is trained."
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError, match='file cannot be written to as a folder'):
        read(tmp_path/'file')

def at_step(seed, k=4): return advance(with_sgd(seed), cross_entropy, batches, k)

def test_a_later_start_is_kept(tmp_path):
    "With momentum, and only if steps were taken; a run that is made otherwise gets it."
    first = first_run(at_step, 0)
    KeptRounds(tmp_path, 'ticket', settings, first)
    assert [*files(tmp_path)] == ['.ticket-start']
    def forgetful(seed):
        run = at_step(seed)
        run.forget()
        return run
    other = first_run(forgetful, 0)
    assert not other.optimizer.state
    KeptRounds(tmp_path, 'ticket', settings, other)
    assert same(other.state_dict(), first.state_dict()) and other.step == 4
    assert other.optimizer.state[other.net[1].weight]['momentum_buffer'].any()

@pytest.mark.parametrize('given, seed, why', [(dict(settings, lr=.2), 0, 'lr was 0.1, is 0.2'),
                                              (settings, 1, 'seed was 0, is 1')])
def test_a_later_start_of_another_search(given, seed, why, tmp_path):
    "Refused by name."
    KeptRounds(tmp_path, 'ticket', settings, first_run(at_step, 0))
    with pytest.raises(ValueError, match=f'.ticket-start is of another run: {why}'):
        KeptRounds(tmp_path, 'ticket', given, first_run(at_step, seed))

@pytest.mark.parametrize('k', [0, 6])
def test_a_start_of_other_steps(k, tmp_path):
    "Refused, with both numbers."
    KeptRounds(tmp_path, 'ticket', settings, first_run(at_step, 0))
    with pytest.raises(ValueError, match=f'whose rounds begin at step 4, not {k}'):
        KeptRounds(tmp_path, 'ticket', settings, first_run(partial(at_step, k=k), 0))
