"Compiled steps take the usual step, to rounding, and leave the run as the usual step would."
import copy
import functools
import warnings
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
import lotterybook.foundations.compiled_steps as steps
from lotterybook.foundations.compiled_steps import CompiledStep, lit_pixels, why_no_loops, why_usual
from lotterybook.foundations.data import from_tensors, load
from lotterybook.foundations.fast_steps import FusedAdam
from lotterybook.foundations.hooks import ClipGradient, FiniteLoss, LearningRate, RateOfStep
from lotterybook.foundations.networks import lenet
from lotterybook.foundations.running import Hook, Run, advance
from lotterybook.foundations.sparse_inputs import SparseInputLinear
from lotterybook.foundations.training import (
    batch_order, classification, evaluate, example_batches, train_run)
from lotterybook.pruning.allocation import per_layer
from lotterybook.pruning.masks import full_masks
from lotterybook.pruning.scores import magnitude

pytest.importorskip('numba')
digits = load('digits')
cross_entropy = classification()

def stack(*widths, first=SparseInputLinear):
    "A network of these widths."
    layers = [nn.Flatten()]
    for k, (a, b) in enumerate(zip(widths, widths[1:])):
        layers += [(first if k == 0 else nn.Linear)(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])

def masked(net, density, seed=0):
    "Random masks with some empty rows and columns: here any mask must be right."
    draw, masks = torch.Generator().manual_seed(seed), {}
    for name, p in net.named_parameters():
        if p.dim() < 2: continue
        masks[name] = torch.rand(p.shape, generator=draw) < density
        if density < 1: masks[name][0], masks[name][:, -1] = False, False
    return masks

def make(density=.1, widths=(64, 30, 20, 10), seed=0, adam=FusedAdam, **options):
    torch.manual_seed(seed)
    net = stack(*widths)
    return Run(net, adam(net.parameters(), lr=2e-3, **options), masked(net, density), seed)

def rows(size=60, data=digits, seed=0):
    def stream(start, end): return batch_order(len(data.x_train), size, seed, start, end)
    return stream

def pairs(size=60, data=digits, seed=0):
    return example_batches(data.x_train, data.y_train, size, seed)

class Losses(Hook):
    "Notes the losses, and reads nothing else."
    writes = False
    def reads(self, run): return False
    def after_step(self, run): run.extra.setdefault('all', []).append(run.loss.item())

def both(end=20, hooks=lambda: [], size=60, data=digits, **options):
    "The same run by compiled steps and in the usual way."
    fast, usual = make(**options), make(**options)
    step = CompiledStep(data)
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # it must be compiled
        advance(fast, cross_entropy, rows(size, data), end, [Losses(), *hooks()], step)
    advance(usual, cross_entropy, pairs(size, data), end, [Losses(), *hooks()])
    return fast, usual, step

def check_same(fast, usual, close=2e-5):
    "Losses, weights, moments and counts agree; pruned weights are zero."
    np.testing.assert_allclose(fast.extra['all'], usual.extra['all'], atol=2e-6)
    for (name, p), q in zip(fast.net.named_parameters(), usual.net.parameters()):
        torch.testing.assert_close(p, q, atol=close, rtol=1e-3, msg=name)
        for key, memory in usual.optimizer.state[q].items():
            torch.testing.assert_close(fast.optimizer.state[p][key], memory, atol=close, rtol=1e-3)
    assert not any(fast.held.revived().values()) and fast.step == usual.step

@pytest.mark.parametrize('density', (0, .05, .2, .5, 1))
@pytest.mark.parametrize('size', (1, 20, 60, 64, 65, 150))
def test_any_density_and_batch(density, size):
    fast, usual, step = both(8, size=size, density=density)
    assert type(step.way) is (steps._KeptWeights if density < .4 else steps._AllWeights)
    check_same(fast, usual, 3e-5)

@pytest.mark.parametrize('widths', ((64, 10), (64, 7, 10), (64, 9, 8, 7, 6, 10), (64, 70, 1, 10)))
@pytest.mark.parametrize('density', (.2, 1))
def test_any_number_of_layers(widths, density):
    check_same(*both(8, widths=widths, density=density)[:2])

@pytest.mark.parametrize('density', (.1, 1))
def test_gradients(density):
    run, batch = make(density), torch.arange(100, 160)
    layers = steps._linear_layers(run.net)
    way = (steps._KeptWeights if density < .4 else steps._AllWeights)(run, layers)
    way.load(run.optimizer)
    before = copy.deepcopy(run.net)
    way.step(lit_pixels(digits.x_train), digits.y_train.numpy(), batch.numpy(),
             (1e-3, .9, .999, 1e-8))
    way.store(run.optimizer)
    F.cross_entropy(before(digits.x_train[batch]), digits.y_train[batch]).backward()
    for (name, p), q in zip(before.named_parameters(), run.net.parameters()):
        g, state = p.grad*run.masks.get(name, 1), run.optimizer.state[q]
        torch.testing.assert_close(state['exp_avg'], .1*g, atol=1e-7, rtol=2e-5)
        squares = (.001*g.double().square()).sum()
        # 1 - beta_2 in float32 would be too small by 1.3e-5 of it
        torch.testing.assert_close(state['exp_avg_sq'].double().sum(), squares, rtol=3e-6, atol=0)
        assert state['step'] == 1

def test_two_hundred_steps_of_a_ticket():
    trained = lenet(64, seed=0)
    advance(Run(trained, FusedAdam(trained.parameters())), cross_entropy, pairs(), 200)
    masks = full_masks(trained)
    masks = per_layer(magnitude(trained, masks), masks, .8)
    def ticket():
        net = lenet(64, seed=0)
        return Run(net, FusedAdam(net.parameters()), masks)
    fast, usual = ticket(), ticket()
    advance(fast, cross_entropy, rows(), 200, [Losses()], CompiledStep(digits))
    advance(usual, cross_entropy, pairs(), 200, [Losses()])
    np.testing.assert_allclose(fast.extra['all'], usual.extra['all'], atol=3e-6)

@pytest.mark.parametrize('adam', (FusedAdam, torch.optim.Adam))
def test_options_of_adam(adam):
    check_same(*both(adam=adam, betas=(.8, .99), eps=1e-4)[:2])

def test_one_class_and_plain_layers():
    data = from_tensors(digits.x_train, torch.zeros(1000).long(),
                        digits.x_test, torch.zeros(497).long())
    fast, usual, _ = both(5, data=data, widths=(64, 5, 1))
    assert fast.extra['all'] == [0.]*5 == usual.extra['all']

def test_inputs_without_zeros():
    data = digits._replace(x_train=digits.x_train + .5)
    check_same(*both(data=data)[:2])

def test_the_rate_of_each_step():
    def rate(): return [RateOfStep(lambda step: 1e-3/(1 + step))]
    check_same(*both(hooks=rate)[:2])

@pytest.mark.parametrize('density', (.1, 1))
def test_hooks_read_true_weights(density):
    class Norms(Hook):
        writes = False
        def after_step(self, run):
            memory = [o['exp_avg_sq'].sum() for o in run.optimizer.state.values()]
            pair   = run.batch[0].shape[1:], len(run.batch[1])
            run.rows.append([sum(p.square().sum() for p in run.net.parameters()).item(),
                             sum(memory).item(), *pair])
    fast, usual, _ = both(hooks=lambda: [Norms()], density=density)
    for a, b in zip(fast.rows, usual.rows):
        assert a[:2] == pytest.approx(b[:2], rel=1e-4) and a[2:] == b[2:]

@pytest.mark.parametrize('density', (.1, 1))
def test_hooks_write_weights(density):
    "One of the library may; another goes the usual way, where a pruned weight that it moves is zero after the next step."
    class Shrink(Hook):
        __module__ = 'lotterybook.a_page'
        def after_step(self, run):
            for p in run.net.parameters(): p.data *= .97
    check_same(*both(hooks=lambda: [Shrink()], density=density)[:2])
    class Noise(Hook):
        def after_step(self, run):
            if run.step == 5:
                with torch.no_grad(): [p.add_(.1) for p in run.net.parameters()]
    with pytest.warns(UserWarning, match='Noise may change weights: give it writes = False'):
        run = advance(make(density=density), cross_entropy, rows(), 20, [Noise()], CompiledStep(digits))
    usual = advance(make(density=density), cross_entropy, pairs(), 20, [Noise()])
    for p, q in zip(run.net.parameters(), usual.net.parameters()): assert p.equal(q)
    assert not any(run.held.revived().values())

@pytest.mark.parametrize('hook', (lambda run: run.net.register_forward_hook(lambda m, i, o: o/5),
                                  lambda run: run.net.register_forward_pre_hook(lambda m, i: (i[0]*.1,)),
                                  lambda run: run.net[1].weight.register_hook(lambda g: g/2),
                                  lambda run: torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: None)))
def test_hooks_of_pytorch_are_refused(hook):
    run = make()
    handle = hook(run)
    try: assert 'hooks of PyTorch' in steps.why_usual(run, digits, cross_entropy)
    finally: handle.remove()
    assert steps.why_usual(run, digits, cross_entropy) == ''

def test_another_forward_is_refused():
    run = make()
    run.net[1].forward = lambda x: x
    assert steps.why_usual(run, digits, cross_entropy) == 'a layer has another forward'

def test_a_wrapped_objective_is_another_one():
    @functools.wraps(cross_entropy)
    def penalized(net, batch): return cross_entropy(net, batch) + 1
    assert steps.why_usual(make(), digits, penalized) == 'the loss is of another kind'

def test_a_rate_that_looks_at_the_run():
    rate = LearningRate(lambda run: 1e-3*float(run.loss or 1))
    assert steps.why_usual(make(), digits, cross_entropy, [rate]) == 'LearningRate acts inside a step'

def test_masks_set_unseen_in_the_last_step():
    class Late(Hook):
        writes = False
        def reads(self, run): return False
        def after_step(self, run):
            if run.step == 20: run.set_masks(masked(run.net, .05, 1))
    with pytest.raises(ValueError, match='leave out its `reads`'): both(hooks=lambda: [Late()])

class NewMasks(Hook):
    "Other masks after ten steps; weights that come back begin at 1/64."
    __module__ = 'lotterybook.a_page'
    def __init__(self, density): self.density = density
    def after_step(self, run):
        if run.step != 10: return
        new = masked(run.net, self.density, 1)
        for name, p in run.net.named_parameters():
            if name in new: p.data[new[name] & ~run.masks[name]] = 1/64
        run.set_masks(new)

@pytest.mark.parametrize('before, after', ((.1, .05), (.1, .2), (1, .1), (.1, 1)))
def test_masks_change(before, after):
    fast, usual, step = both(hooks=lambda: [NewMasks(after)], density=before)
    assert type(step.way) is (steps._KeptWeights if after < .4 else steps._AllWeights)
    check_same(fast, usual)

def test_a_hook_that_says_it_reads_nothing_sets_masks():
    class Liar(NewMasks):
        __module__ = 'lotterybook.a_page'
        def reads(self, run): return False
    with pytest.raises(ValueError, match='leave out its `reads`'):
        both(hooks=lambda: [Liar(.05)])

def test_a_subclass_that_does_more_is_not_trusted():
    class More(FiniteLoss):
        def after_step(self, run):
            super().after_step(run)
            run.rows.append(run.net[1].weight.sum().item())
    fast, usual, _ = both(hooks=lambda: [More()])
    assert fast.rows == pytest.approx(usual.rows, rel=1e-3) and len(set(fast.rows)) == 20

def test_a_hook_stops_the_run():
    class Stop(Hook):
        writes = False
        def after_step(self, run): run.stopped = run.step == 7
    fast, usual, _ = both(hooks=lambda: [Stop()])
    assert fast.step == 7
    check_same(fast, usual)

class StopUnseen(Hook):
    "Ends the run, and reads no weights."
    writes = False
    def reads(self, run): return False
    def after_step(self, run): run.stopped = run.step == 7

@pytest.mark.parametrize('density', (.1, 1))
def test_a_stop_that_nobody_saw_coming(density):
    "Validation keeps the weights of this step, not those of the last validation."
    run = make(density)
    train_run(run, digits, 20, eval_every=5, hooks=[StopUnseen()], step=CompiledStep(digits))
    assert run.step == 7 and run.keeper is None
    assert run.rows[-1]['step'] == 7 and run.extra['best']['step'] == 7
    for name, p in run.net.state_dict().items(): assert run.extra['best']['weights'][name].equal(p)

def test_the_state_of_a_run_in_the_middle():
    states = []
    class Keep(Hook):
        writes = False
        def reads(self, run): return False
        def after_step(self, run): states.append(run.state_dict())
    fast, usual, _ = both(3, hooks=lambda: [Keep()])
    for a, b in zip(states[:3], states[3:]):
        for name, p in a['net'].items(): torch.testing.assert_close(p, b['net'][name])
        for i, memory in b['optimizer']['state'].items():
            for key, m in memory.items(): torch.testing.assert_close(a['optimizer']['state'][i][key], m)

class Killed(Exception): pass

class Kill(Hook):
    writes = False
    def reads(self, run): return False
    def after_step(self, run):
        if run.step == 37: raise Killed

@pytest.mark.parametrize('density', (.1, .5))
def test_kill_and_resume_to_the_bit(density, tmp_path):
    whole, again = make(density), make(density)
    expected = train_run(whole, digits, 60, eval_every=10, step=CompiledStep(digits))
    keep = dict(steps=60, eval_every=10, save_every=20, file=tmp_path/'state')
    with pytest.raises(Killed):
        train_run(make(density), digits, **keep, hooks=[Kill()], step=CompiledStep(digits))
    assert train_run(again, digits, **keep, step=CompiledStep(digits)) == expected
    for p, q in zip(again.net.parameters(), whole.net.parameters()):
        assert p.equal(q)
        for key, memory in whole.optimizer.state[q].items():
            assert again.optimizer.state[p][key].equal(memory)

def test_the_usual_step_continues(tmp_path):
    fast, usual = make(), make()
    step = CompiledStep(digits)
    advance(fast, cross_entropy, rows(), 10, [Losses()], step)
    advance(fast, cross_entropy, pairs(), 20, [Losses()])      # in the usual way
    with torch.no_grad(): fast.net[1].bias += .01              # between two calls
    advance(fast, cross_entropy, rows(), 30, [Losses()], step)
    advance(usual, cross_entropy, pairs(), 20, [Losses()])
    with torch.no_grad(): usual.net[1].bias += .01
    advance(usual, cross_entropy, pairs(), 30, [Losses()])
    check_same(fast, usual)
    fast.forget()
    usual.forget()
    advance(fast, cross_entropy, rows(), 40, [Losses()], step)
    advance(usual, cross_entropy, pairs(), 40, [Losses()])
    check_same(fast, usual)

def test_validation_is_that_of_the_network():
    run, step, seen = make(), CompiledStep(digits), []
    class Compare(Hook):
        writes = False
        def after_step(self, run):
            given = run.net, digits.x_validation, digits.y_validation
            seen.append((step.evaluate(*given), evaluate(*given)))
    advance(run, cross_entropy, rows(), 5, [Compare()], step)
    for ours, theirs in seen: assert ours == pytest.approx(theirs, rel=1e-6)
    assert step.evaluate(run.net, digits.x_test, digits.y_test) is None  # it is finished

def test_training_is_the_same_as_ever():
    usual = train_run(make(), digits, 100, eval_every=20)
    fast  = train_run(make(), digits, 100, eval_every=20, step=CompiledStep(digits))
    for a, b in zip(fast['history'], usual['history'], strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    assert fast['stop_step'] == usual['stop_step']

def test_other_data_is_refused():
    with pytest.raises(ValueError, match='other training data'):
        train_run(make(), digits, 10, step=CompiledStep(load('digits', 1)))
    with pytest.raises(ValueError, match='other training data'):  # the same images
        train_run(make(), digits._replace(y_train=digits.y_train.flip(0)), 10, step=CompiledStep(digits))

def test_a_device_that_is_not_the_cpu():
    run = make()
    with pytest.warns(UserWarning, match='not rows'):  # as on a GPU, where data are copied
        train_run(run, digits.to('cpu'), 10, step=CompiledStep(digits), augment=lambda b, seed: b)

def other(net, optimizer=FusedAdam, **options):
    return Run(net, optimizer(net.parameters(), **options), masked(net, .1))

def usual_runs():
    "Runs that are not compiled, and why."
    yield 'Sequential', lambda: other(nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Dropout(.5),
                                                    nn.Linear(9, 10)))
    yield 'Sequential', lambda: other(nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Tanh(),
                                                    nn.Linear(9, 10)))
    yield 'Sequential', lambda: other(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(),
                                                    nn.Linear(72, 10)))
    yield 'no bias', lambda: other(nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)))
    yield 'SGD', lambda: make(adam=torch.optim.SGD)
    yield 'AdamW', lambda: make(adam=torch.optim.AdamW)
    yield 'weight_decay', lambda: make(weight_decay=.1)
    yield 'amsgrad', lambda: make(amsgrad=True, adam=torch.optim.Adam)
    def frozen():
        run = make()
        run.net[3].bias.requires_grad_(False)
        return run
    yield 'frozen', frozen
    def tied():
        net = stack(64, 64, 64, 10)
        net[3].weight = net[1].weight
        return Run(net, FusedAdam(net.parameters()), masked(net, .1))
    yield 'share a weight', tied
    def groups():
        run = make()
        run.optimizer = FusedAdam([dict(params=[p]) for p in run.net.parameters()])
        return run
    yield 'groups', groups
    def bias():
        run = make()
        run.set_masks(run.masks | {'1.bias': torch.ones(30, dtype=torch.bool)})
        return run
    yield 'a bias has a mask', bias
    def hooked():
        run = make()
        run.net[2].register_forward_hook(lambda *_: None)
        return run
    yield 'hooks of PyTorch', hooked
    def pruned():
        net = stack(64, 9, 10)
        prune.l1_unstructured(net[3], 'weight', .5)
        return Run(net, FusedAdam(net.parameters()))
    yield 'elsewhere', pruned

@pytest.mark.parametrize('why, make_run', list(usual_runs()))
def test_others_step_in_the_usual_way(why, make_run):
    torch.manual_seed(0)
    fast = make_run()
    torch.manual_seed(0)
    usual = make_run()
    with pytest.warns(UserWarning, match=why) as said:
        torch.manual_seed(1)
        advance(fast, cross_entropy, rows(), 3, (), CompiledStep(digits))
    assert len(said) == 1
    torch.manual_seed(1)
    advance(usual, cross_entropy, pairs(), 3)
    assert all(p.equal(q) for p, q in zip(fast.net.parameters(), usual.net.parameters()))

@pytest.mark.parametrize('why, given', (
    ('ClipGradient acts', dict(hooks=[ClipGradient(1.)])),
    ('another kind', dict(objective=classification(nn.CrossEntropyLoss(label_smoothing=.1)))),
    ('another kind', dict(objective=lambda net, batch: cross_entropy(net, batch))),
    ('labels', dict(data=digits._replace(y_train=digits.y_train + 5))),
    ('do not fit', dict(data=digits._replace(x_train=digits.x_train[..., 1:]))),
    ('float32', dict(data=digits._replace(x_train=digits.x_train.double()))),
))
def test_why(why, given):
    assert why_usual(make(), digits, cross_entropy) == ''
    assert why in why_usual(make(), **dict(data=digits, objective=cross_entropy) | given)

def test_why_precision():
    with torch.autocast('cpu', torch.bfloat16):
        assert 'precision' in why_usual(make(), digits, cross_entropy)

def test_without_numba(monkeypatch):
    monkeypatch.setattr(steps, 'find_spec', lambda name: None)
    monkeypatch.setattr(steps, '_kernels', steps._kernels.__wrapped__)
    assert why_usual(make(), digits, cross_entropy) == why_no_loops() == 'Numba is missing (pip install numba)'

def test_a_numba_that_cannot_compile_is_not_missing(monkeypatch):
    assert why_no_loops() == ''
    monkeypatch.setattr(steps, '_kernels', lambda: None)
    assert why_usual(make(), digits, cross_entropy) == why_no_loops() == 'Numba cannot compile here'

def test_another_numba(monkeypatch):
    def gone(): raise ImportError('cannot import cgutils')
    monkeypatch.setattr(steps, '_lanes_on_the_stack', gone)
    with pytest.warns(UserWarning, match='not compiled'):
        assert steps._kernels.__wrapped__() is None

def test_pairs_are_taken_in_the_usual_way():
    run = make()
    with pytest.warns(UserWarning, match='not rows'):
        advance(run, cross_entropy, pairs(), 2, (), CompiledStep(digits))

def ordinary(density):
    "A run whose first layer is an nn.Linear: there is no compiled dense step for it."
    torch.manual_seed(0)
    net = stack(64, 9, 10, first=nn.Linear)
    return Run(net, FusedAdam(net.parameters()), masked(net, density))

def test_a_dense_network_of_ordinary_layers():
    run, usual, step = ordinary(1), ordinary(1), CompiledStep(digits)
    assert 'SparseInputLinear' in why_usual(run, digits, cross_entropy)
    assert why_usual(run, digits, cross_entropy, crossover=1.1) == why_usual(ordinary(.5), digits, cross_entropy) == ''
    with pytest.warns(UserWarning, match='80% of the weights or more.*SparseInputLinear') as said:
        for end in (2, 4): advance(run, cross_entropy, rows(), end, (), step)
    assert len(said) == 1 and step.way is None
    advance(usual, cross_entropy, pairs(), 4)
    assert all(p.equal(q) for p, q in zip(run.net.parameters(), usual.net.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        run.set_masks(masked(run.net, .5))
        advance(run, cross_entropy, rows(), 6, (), step)
    assert step.of == () and step.note == '' and isinstance(step.way, steps._KeptWeights)

@pytest.mark.parametrize('crossover, density, way', (
    (None, .75, steps._KeptWeights), (None, .95, None), (.3, .25, steps._KeptWeights), (.3, .5, None)))
def test_ordinary_layers_below_and_above_their_crossover(crossover, density, way):
    run, step = ordinary(density), CompiledStep(digits, crossover)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        advance(run, cross_entropy, rows(), 2, (), step)
    assert len(said) == (way is None) and type(step.way) is (way or type(None))

@pytest.mark.parametrize('density', (.1, 1))
@pytest.mark.parametrize('row', (-1, 1000))
def test_no_such_example(density, row):
    with pytest.raises(IndexError, match='1000 examples'):
        advance(make(density), cross_entropy, lambda a, b: [torch.tensor([0, row])], 1, (),
                CompiledStep(digits))

@pytest.mark.parametrize('density', (.1, 1))
def test_nan_stays_nan(density):
    run = make(density)
    with torch.no_grad(): run.net[1].bias[:] = torch.nan
    with pytest.raises(FloatingPointError, match='the loss of step 0'):
        train_run(run, digits, 10, step=CompiledStep(digits))

def test_lists_are_made_once_and_again_if_images_change():
    x = digits.x_train.clone()
    lists = lit_pixels(x)
    assert lit_pixels(x) is lists and lists.start[-1] == (x != 0).sum()
    x[0, 0, 0, 0] = 7.
    assert lit_pixels(x).value[0] == 7 and lit_pixels(x) is not lists
    key = id(x)
    del x
    assert key not in steps._made

@pytest.mark.parametrize('shape', ((3,), (1000, 7)))
def test_aligned(shape):
    a = steps._aligned(np.ones(shape, np.float32))
    assert a.ctypes.data % 64 == 0 and a.shape == shape and (a == 1).all()
