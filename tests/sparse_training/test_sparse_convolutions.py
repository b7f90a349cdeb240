"Sparse convolutions: equal to PyTorch's, by whatever shape, mask, loop; and dense, and saying so, where they must be."
import copy, io, pickle, warnings
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.data import load
from lotterybook.foundations.deep_networks import conv2, resnet20, small_vgg
from lotterybook.foundations.running import Hook, Run, advance
from lotterybook.foundations.training import classification, example_batches, train_run
from lotterybook.pruning.allocation import global_
from lotterybook.pruning.masked_training import keep_pruned
from lotterybook.pruning.masks import apply_masks, full_masks, remaining
from lotterybook.pruning.schedules import pruner
from lotterybook.pruning.scores import magnitude
from lotterybook.sparse_training import sparse_convolutions as module
from lotterybook.sparse_training.rigl import RigL
from lotterybook.sparse_training.snip import snip
from lotterybook.sparse_training.sparse_convolutions import (
    how_computed, sparse_convolutions, sparse_run)
from lotterybook.tickets.iterative import find_ticket
torch.set_num_threads(1)

@pytest.fixture
def always(monkeypatch):
    "Sparse whatever the density."
    monkeypatch.setattr(module, '_densest', lambda pixels: 1)

def conv(mask, seed=0, **options):
    "A layer whose pruned weights are zero."
    torch.manual_seed(seed)
    layer = nn.Conv2d(mask.shape[1], mask.shape[0], tuple(mask.shape[2:]), **options)
    apply_masks(layer, {'weight': mask})
    return layer

def random_mask(*shape, density=.1, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density

def gradients(layer, x, delta=None):
    "Output, and the gradients by x and all weights."
    x = x.clone().requires_grad_()
    out = layer(x)
    delta = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)) if delta is None else delta
    return out.detach(), *torch.autograd.grad(out, (x, *layer.parameters()), delta.to(out.dtype))

def check(layer, mask, x, how='sparse'):
    "As PyTorch in float64; and the gradient of pruned weights is zero."
    ours = sparse_convolutions(layer, {'weight': mask})
    have = gradients(ours, x)
    want = gradients(copy.deepcopy(layer).double(), x.double())
    assert how_computed(ours) == {'weight': how}
    for i, (a, b) in enumerate(zip(have, want)):
        if i == 2: b = b*mask
        scale = max(1, b.abs().max().item() if b.numel() else 1)
        assert_close(a, b.float(), rtol=1e-4, atol=2e-5*scale)
    assert not have[2][~mask].any()

# --- equal to PyTorch

@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_shape(data):
    draw = lambda low, high: data.draw(st.integers(low, high))
    kernel, dilation = (draw(1, 5), draw(1, 5)), (draw(1, 2), draw(1, 2))
    reach   = [(k - 1)*d for k, d in zip(kernel, dilation)]
    padding = tuple(draw(0, r) for r in reach)
    height, width = (draw(max(1, r + 1 - 2*p), r + 12) for r, p in zip(reach, padding))
    mask = random_mask(draw(1, 5), draw(1, 5), *kernel, density=data.draw(st.sampled_from([0, .1, .5, 1])))
    x = torch.randn(draw(1, 9), mask.shape[1], height, width)
    layer = conv(mask, padding=padding, dilation=dilation, bias=data.draw(st.booleans()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, '_densest', lambda pixels: 1)
        check(layer, mask, x)

@pytest.mark.parametrize('batch, size', [(1, (32, 32)), (7, (4, 4)), (65, (8, 8)), (60, (2, 3)), (2, (70, 5)), (3, (1, 200))])
def test_sizes_around_a_group_of_images(batch, size, always):
    "Images share a tile, fill it, or need many; the last group is not full."
    mask = random_mask(6, 5, 3, 3, density=.3)
    check(conv(mask, padding=1), mask, torch.randn(batch, 5, *size))

def test_channels_without_weights(always):
    mask = random_mask(6, 5, 3, 3, density=.5)
    mask[2] = mask[5] = mask[:, 0] = mask[:, 3] = False
    check(conv(mask, padding=1), mask, torch.randn(4, 5, 9, 9))

def test_nothing_is_kept():
    mask = torch.zeros(4, 3, 3, 3, dtype=torch.bool)
    layer, x = conv(mask, padding=1), torch.randn(2, 3, 9, 9)
    check(layer, mask, x)
    out = sparse_convolutions(layer, {'weight': mask})(x)
    assert out.equal(layer.bias[None, :, None, None].expand_as(out))

@pytest.mark.parametrize('layout', ['x', 'delta', 'weight'])
def test_other_layouts_in_memory(layout, always):
    mask  = random_mask(6, 5, 3, 3)
    layer, x = conv(mask, padding=1), torch.randn(4, 5, 9, 9)
    delta = torch.randn(4, 6, 9, 9)
    want  = gradients(layer, x, delta)
    if layout == 'x': x = x.to(memory_format=torch.channels_last)
    if layout == 'delta': delta = delta[:, :, :, :1].expand(4, 6, 9, 9)
    if layout == 'delta': want = gradients(layer, x, delta)
    if layout == 'weight': layer.to(memory_format=torch.channels_last)
    ours = sparse_convolutions(layer, {'weight': mask})
    for i, (a, b) in enumerate(zip(gradients(ours, x, delta), want)):
        assert_close(a, b*mask if i == 2 else b, rtol=1e-4, atol=1e-4)
    assert how_computed(ours) == {'weight': 'sparse'}

def test_same_input_same_bits(always):
    mask = random_mask(6, 5, 3, 3)
    ours, x = sparse_convolutions(conv(mask), {'weight': mask}), torch.randn(4, 5, 9, 9)
    for a, b in zip(gradients(ours, x), gradients(ours, x)): assert a.equal(b)

def test_frozen_parts(always):
    mask  = random_mask(6, 5, 3, 3)
    layer = conv(mask, padding=1)
    layer.bias.requires_grad_(False)
    ours, x = sparse_convolutions(layer, {'weight': mask}), torch.randn(4, 5, 9, 9)
    ours(x).square().sum().backward()
    assert layer.bias.grad is None and layer.weight.grad[mask].all()
    layer.weight.requires_grad_(False)
    assert not ours(x).requires_grad

def test_second_derivatives(always):
    mask  = random_mask(4, 3, 3, 3, density=.3)
    layer, x = conv(mask, padding=1), torch.randn(2, 3, 6, 6, requires_grad=True)
    def penalty(net):
        out = net(x).tanh().sum()
        by_x, = torch.autograd.grad(out, x, create_graph=True)
        return torch.autograd.grad(by_x.square().sum(), layer.weight)[0]
    have, want = penalty(sparse_convolutions(layer, {'weight': mask})), penalty(layer)
    assert_close(have*mask, want*mask, rtol=1e-4, atol=1e-5)

def test_weights_that_change_before_backward(always):
    mask  = random_mask(4, 3, 3, 3)
    layer, x = conv(mask), torch.randn(2, 3, 6, 6, requires_grad=True)
    loss  = sparse_convolutions(layer, {'weight': mask})(x).sum()
    with torch.no_grad(): layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'): loss.backward()

# --- dense where it must be, and it is said

@pytest.mark.parametrize('options, why', [
    (dict(stride=2), r'stride=\(2, 2\)'), (dict(groups=2), 'groups=2'),
    (dict(padding=1, padding_mode='circular'), "padding_mode='circular'"),
    (dict(padding='same'), "padding='same'"), (dict(padding=3), r'padding=\(3, 3\) for a kernel')])
def test_what_a_shift_cannot_do(options, why):
    mask  = random_mask(4, 4//options.get('groups', 1), 3, 3)
    layer = nn.Conv2d(4, 4, 3, **options)
    apply_masks(layer, {'weight': mask})
    ours, x = sparse_convolutions(layer, {'weight': mask}), torch.randn(2, 4, 9, 9)
    with pytest.warns(UserWarning, match=f"'weight' is computed densely: {why}"): out = ours(x)
    assert out.equal(layer(x)) and how_computed(ours)['weight'].startswith('dense: ')
    with warnings.catch_warnings(action='error'): ours(x)  # said once

def test_float64_and_autocast_and_no_numba(monkeypatch):
    mask  = random_mask(4, 4, 3, 3)
    layer, x = conv(mask), torch.randn(2, 4, 9, 9)
    ours  = sparse_convolutions(layer, {'weight': mask})
    with pytest.warns(UserWarning, match='autocast'), torch.autocast('cpu', torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
    monkeypatch.setattr(module, '_kernels', lambda: None)
    with pytest.warns(UserWarning, match='no Numba'): assert ours(x).equal(layer(x))
    pool = sparse_convolutions(nn.Sequential(layer, nn.MaxPool2d(2)), {'0.weight': mask})[1]
    assert pool(x).equal(F.max_pool2d(x, 2))
    with pytest.warns(UserWarning, match='float64'): assert ours.double()(x.double()).dtype == torch.float64

def test_numba_that_is_missing(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'numba', None)
    assert module._kernels.__wrapped__() is None

def test_above_the_crossover():
    mask  = random_mask(8, 8, 3, 3, density=.5)
    layer, x = conv(mask, padding=1), torch.randn(2, 8, 9, 9)
    ours  = sparse_convolutions(layer, {'weight': mask})
    assert ours(x).equal(layer(x)) and how_computed(ours)['weight'].endswith('are kept, more than 20%')
    assert ours(x[..., :3, :3]).equal(layer(x[..., :3, :3])) and '10%' in how_computed(ours)['weight']

@pytest.mark.parametrize('threads, limit', [(2, '10%'), (16, '1.25%')])
def test_more_threads_speed_up_pytorch_only(threads, limit):
    mask = random_mask(8, 8, 3, 3, density=.15)
    ours, x = sparse_convolutions(conv(mask), {'weight': mask}), torch.randn(2, 8, 12, 12)
    try:
        torch.set_num_threads(threads)
        ours(x)
    finally: torch.set_num_threads(1)
    assert how_computed(ours)['weight'].endswith(f'kept, more than {limit} (20% divided by {threads} threads)')
    ours(x)
    assert how_computed(ours) == {'weight': 'sparse'}

def test_pruned_weights_that_are_not_zero():
    "Weights of other masks are loaded: the network is what its weights say."
    mask  = random_mask(4, 4, 3, 3)
    layer, x = nn.Conv2d(4, 4, 3), torch.randn(2, 4, 9, 9)
    ours  = sparse_convolutions(layer, {'weight': mask})
    assert ours(x).equal(layer(x)) and how_computed(ours) == {'weight': 'dense: pruned weights are not zero'}
    apply_masks(layer, {'weight': mask})
    assert_close(ours(x), layer(x), rtol=1e-4, atol=1e-5)
    assert how_computed(ours) == {'weight': 'sparse'}

def test_another_default_dtype(always):
    mask = random_mask(4, 4, 3, 3)
    net  = nn.Sequential(conv(mask), nn.MaxPool2d(2))
    x = torch.randn(2, 4, 9, 9)
    want = gradients(net, x)
    torch.set_default_dtype(torch.float64)
    try: have = gradients(sparse_convolutions(net, {'0.weight': mask}), x, torch.randn(want[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32))
    finally: torch.set_default_dtype(torch.float32)
    for i, (a, b) in enumerate(zip(have, want)): assert_close(a, b*mask if i == 2 else b, rtol=1e-4, atol=1e-4)

def test_wrong_inputs_meet_the_error_of_pytorch():
    mask = random_mask(4, 4, 3, 3)
    ours = sparse_convolutions(conv(mask), {'weight': mask})
    for wrong in (torch.zeros(2, 3, 9, 9), torch.zeros(2, 4, 2, 2), torch.zeros(9)):
        with pytest.raises(RuntimeError): ours(wrong)
    assert ours(torch.zeros(0, 4, 9, 9)).shape == (0, 4, 7, 7)
    assert ours(torch.zeros(4, 9, 9)).shape == (4, 7, 7)

@pytest.mark.parametrize('record', [
    lambda net, x: torch.export.export(net, (x,)).module(),
    lambda net, x: torch.jit.trace(net, (x,)),
    lambda net, x: torch.compile(net, backend='eager', fullgraph=True),
    lambda net, x: lambda y: torch.func.vmap(net)(y[:, None])[:, 0]], ids=['export', 'trace', 'compile', 'vmap'])
def test_records_hold_no_numbers_of_one_input(record):
    mask = random_mask(4, 4, 3, 3)
    net  = nn.Sequential(conv(mask), nn.MaxPool2d(2)).requires_grad_(False)
    ours, x, y = sparse_convolutions(net, {'0.weight': mask}), torch.randn(2, 4, 9, 9), torch.randn(2, 4, 9, 9)
    assert_close(record(ours, x)(y), net(y), rtol=1e-4, atol=1e-5)

def test_scripting_is_refused():
    mask = random_mask(4, 4, 3, 3)
    with pytest.raises(NotImplementedError, match='torch.export'):
        torch.jit.script(sparse_convolutions(conv(mask), {'weight': mask}))

def test_networks_without_a_convolution():
    net = nn.Sequential(nn.Linear(3, 4))
    with pytest.warns(UserWarning, match='no nn.Conv2d has a mask'): sparse_convolutions(net, full_masks(net))
    with pytest.raises(ValueError, match='fits no parameter'): sparse_convolutions(net, {'weight': torch.ones(4, 3).bool()})

# --- the network that is given, its copies and files

def thin(net, density=.1):
    "Masks of random weights."
    g = torch.Generator().manual_seed(0)
    return {name: torch.rand(mask.shape, generator=g) < density for name, mask in full_masks(net).items()}

def test_shares_weights_and_buffers_and_leaves_the_rest():
    net  = small_vgg(seed=0)
    masks, kinds = thin(net, .05), [type(o) for o in net.modules()]
    apply_masks(net, masks)
    ours = sparse_convolutions(net, masks)
    assert [type(o) for o in net.modules()] == kinds and list(ours.state_dict()) == list(net.state_dict())
    for a, b in zip(ours.state_dict(keep_vars=True).values(), net.state_dict(keep_vars=True).values()): assert a is b
    x = torch.randn(6, 1, 28, 28)
    ours.train()(x)  # norms count in the network that was given, too
    assert_close(ours.eval()(x), net.eval()(x), rtol=1e-3, atol=1e-3)
    assert set(how_computed(ours).values()) == {'sparse'}

@pytest.mark.parametrize('through', [copy.deepcopy, copy.copy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_are_plain(through):
    net   = conv2((3, 8, 8), seed=0)
    masks = thin(net)
    apply_masks(net, masks)
    run   = sparse_run(Run(net, torch.optim.SGD(net.parameters(), .1), masks))
    for name, kind in (('conv1b', nn.Conv2d), ('pool1', nn.MaxPool2d)):
        layer = through(getattr(run.net, name))
        assert type(layer) is kind and set(layer.__dict__) == set(getattr(net, name).__dict__)
        x = torch.randn(2, 64, 8, 8)
        assert_close(layer(x), getattr(run.net, name)(x), rtol=1e-3, atol=1e-4)

def test_saved_whole():
    net  = conv2((3, 8, 8), seed=0)
    file = io.BytesIO()
    torch.save(sparse_convolutions(net, thin(net)), file)
    file.seek(0)
    assert [type(o) for o in torch.load(file, weights_only=False).modules()] == [type(o) for o in net.modules()]

def test_twice():
    "A sparse network made sparse again reads the newer masks."
    mask, other = random_mask(4, 4, 3, 3), random_mask(4, 4, 3, 3, density=.05, seed=1)
    layer = conv(mask & other)
    ours  = sparse_convolutions(sparse_convolutions(layer, {'weight': mask}), {'weight': mask & other})
    ours(torch.randn(2, 4, 9, 9)).sum().backward()
    assert layer.weight.grad.count_nonzero() == (mask & other).sum() and ours.density == (mask & other).float().mean()

def test_scores_see_the_gradient_of_pruned_weights():
    net   = conv2((3, 8, 8), seed=0)
    masks = thin(net)
    apply_masks(net, masks)
    batch = torch.randn(5, 3, 8, 8), torch.arange(5)
    have, want = (snip(o, full_masks(net), classification(), [batch]) for o in (sparse_convolutions(net, masks), net))
    for name in want: assert have[name].equal(want[name])

# --- the loop of the book

digits = load('digits')

def make_run(sparse, density=.1, optimizer=torch.optim.Adam, seed=0):
    net   = small_vgg(digits.input_shape, seed=seed)
    masks = thin(net, density)
    run   = Run(net, optimizer(net.parameters(), lr=1e-3), masks, seed)
    return sparse_run(run) if sparse else run

def steps(run, end, hooks=()):
    batches = example_batches(digits.x_train, digits.y_train, 20, run.seed)
    return advance(run, classification(), batches, end, hooks)

def assert_alike(a, b, tolerance=1e-3):
    for name, p in snapshot(a.net).items(): assert_close(snapshot(b.net)[name], p, rtol=tolerance, atol=tolerance)

def test_the_same_training(always):
    "One step from one state; many steps with SGD, whose small differences stay small."
    sgd = lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=.9)
    sparse, dense = steps(make_run(True, optimizer=sgd), 8), steps(make_run(False, optimizer=sgd), 8)
    assert set(how_computed(sparse.net).values()) == {'sparse'}
    assert_alike(sparse, dense)
    assert not any(sparse.held.revived().values())

def test_train_run_and_resume(tmp_path, always):
    outcome = train_run(make_run(True), digits, 6, 20, eval_every=3)
    half = make_run(True)
    train_run(half, digits, 3, 20, eval_every=3)
    state = half.state_dict()
    other = make_run(True, seed=0)
    other.load_state_dict(state)
    assert train_run(other, digits, 6, 20, eval_every=3) == outcome
    file  = tmp_path/'run'
    assert train_run(make_run(True), digits, 6, 20, eval_every=3, file=file, save_every=3) == outcome

class Move(Hook):
    "Random growth, as in SET: half of the weights of a layer go elsewhere, and start at zero."
    def after_step(self, run):
        if run.step != 3: return
        g = torch.Generator().manual_seed(run.seed)
        run.set_masks({name: torch.rand(mask.shape, generator=g) < mask.float().mean()
                       for name, mask in run.masks.items()})

def test_masks_that_move_are_noticed(always):
    sgd = lambda p, lr: torch.optim.SGD(p, lr=lr)
    sparse, dense = (steps(make_run(o, optimizer=sgd), 6, [Move()]) for o in (True, False))
    assert_alike(sparse, dense)
    grown = [p[sparse.masks[name]] for name, p in sparse.net.named_parameters() if name in sparse.masks]
    assert all(o.ne(0).float().mean() > .9 for o in grown)  # grown at zero, they have learned since

def test_a_mask_changed_in_place(always):
    mask  = random_mask(4, 4, 3, 3)
    layer = conv(mask)
    ours, x = sparse_convolutions(layer, {'weight': mask}), torch.randn(2, 4, 9, 9)
    ours(x)
    mask[0, 0] = True
    with torch.no_grad(): layer.weight[0, 0] = 1
    assert_close(ours(x), layer(x), rtol=1e-4, atol=1e-5)
    assert how_computed(ours) == {'weight': 'sparse'}

class Look(Hook):
    "Keeps the gradients of one step."
    def __init__(self, step): self.step, self.seen = step, {}
    def on_gradient(self, run):
        if run.step == self.step: self.seen = {k: p.grad.clone() for k, p in run.net.named_parameters()}

def test_hooks_on_the_dense_gradient_ask_for_it(always):
    sgd = lambda p, lr: torch.optim.SGD(p, lr=lr)
    want, have, none = Look(2), Look(2), Look(2)
    steps(make_run(False, optimizer=sgd), 3, [want])
    net = make_run(False, optimizer=sgd)
    steps(sparse_run(net, lambda run: run.step == 2), 3, [have])
    steps(make_run(True, optimizer=sgd), 3, [none])
    for name, mask in net.masks.items():
        assert_close(have.seen[name], want.seen[name], rtol=1e-2, atol=1e-4)
        if 'conv' not in name: continue
        assert want.seen[name][~mask].any() and have.seen[name][~mask].any() and not none.seen[name][~mask].any()

def test_rigl_is_refused_where_gradients_are_missing(always):
    "At any update, also where another layer has them all."
    sgd = lambda p, lr: torch.optim.SGD(p, lr=lr)
    with pytest.raises(ValueError, match="pruned weights of 'conv.*sparse_run without whole_gradient"):
        steps(make_run(True, optimizer=sgd), 3, [RigL(2, 3)])
    mover = RigL(2, 3)
    steps(sparse_run(make_run(False, optimizer=sgd), lambda run: mover.fraction_at(run.step) > 0), 3, [mover])

def test_another_loop(always):
    net   = conv2(digits.input_shape, seed=0)
    masks = thin(net)
    ours  = sparse_convolutions(net, masks)
    optimizer = torch.optim.Adam(ours.parameters(), lr=1e-3)
    apply_masks(net, masks)
    before = snapshot(net)['conv1b.weight']
    with keep_pruned(ours, masks, optimizer):
        for k in range(3):
            optimizer.zero_grad()
            F.cross_entropy(ours(digits.x_train[:20]), digits.y_train[:20]).backward()
            optimizer.step()
    moved = net.conv1b.weight != before
    assert moved[masks['conv1b.weight']].any() and not moved[~masks['conv1b.weight']].any()

def test_a_search_changes_over_by_itself():
    "Early rounds keep many weights and are dense, late ones are sparse; both searches keep as many."
    kept, hows = {}, []
    for sparse in (False, True):
        def begin(seed):
            net = small_vgg(digits.input_shape, seed=seed)
            run = Run(net, torch.optim.Adam(net.parameters(), lr=1e-3), full_masks(net), seed)
            return sparse_run(run) if sparse else run
        def train(run):
            train_run(run, digits, 3, 20, eval_every=3)
            if sparse: hows.append(how_computed(run.net)['conv12.weight'].partition(':')[0])
        found = find_ticket(begin, train, pruner(.6), rounds=2, progress=False)
        kept[sparse] = [remaining(ticket.masks) for ticket in found]
    assert kept[True] == kept[False] and hows == ['dense', 'dense', 'sparse']

def test_layers_of_a_residual_network():
    "Convolutions of stride 2 are dense, and their neighbours are not."
    net   = resnet20(seed=0)
    masks = global_(magnitude(net, full_masks(net)), full_masks(net), .98)
    apply_masks(net, masks)
    ours, x = sparse_convolutions(net, masks).eval(), torch.randn(2, 3, 32, 32)
    with pytest.warns(UserWarning, match='stride'): out = ours(x)
    assert_close(out, net.eval()(x), rtol=1e-3, atol=1e-4)
    how = how_computed(ours)
    assert how['block21.conv1.weight'] == 'dense: stride=(2, 2)' and how['block12.conv1.weight'] == 'sparse'

# --- pooling

@pytest.mark.parametrize('shape', [(3, 4, 8, 8), (1, 1, 2, 2), (2, 3, 7, 9), (2, 2, 2, 5)])
@pytest.mark.parametrize('special', [None, 0., float('nan'), -float('inf')])
def test_pooling(shape, special):
    "Bit by bit, also of equal numbers and nan."
    pool = sparse_convolutions(nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(2)), {'0.weight': torch.zeros(1, 1, 1, 1).bool()})[1]
    assert type(pool) is module._MaxPool
    x = torch.randn(shape).relu()
    if special is not None: x[torch.rand(shape) < .6] = special
    out, dx = gradients(pool, x)
    want, dx_want = gradients(nn.MaxPool2d(2), x)
    assert_close(out, want, rtol=0, atol=0, equal_nan=True)
    assert dx.equal(dx_want)

def test_pooling_is_differentiated_twice():
    pool = sparse_convolutions(nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(2)), {'0.weight': torch.zeros(1, 1, 1, 1).bool()})[1]
    x = torch.randn(2, 3, 5, 4, requires_grad=True)
    def second(f):
        d, = torch.autograd.grad(f(x).pow(3).sum(), x, create_graph=True)
        return d.detach(), torch.autograd.grad(d.square().sum(), x)[0]
    for a, b in zip(second(pool), second(nn.MaxPool2d(2))): assert_close(a, b)

@pytest.mark.parametrize('other', [nn.MaxPool2d(3), nn.MaxPool2d(2, 1), nn.MaxPool2d(2, padding=1), nn.MaxPool2d(2, ceil_mode=True),
                                   nn.MaxPool2d(2, return_indices=True), nn.MaxPool2d(2, dilation=2)])
def test_other_pooling_stays(other):
    net = nn.Sequential(nn.Conv2d(1, 1, 1), other)
    assert type(sparse_convolutions(net, {'0.weight': torch.zeros(1, 1, 1, 1).bool()})[1]) is nn.MaxPool2d
