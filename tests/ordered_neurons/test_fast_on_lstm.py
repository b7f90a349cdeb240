"""The compiled loop of page 140: its exponential, its products, the same numbers and gradients as the plain loop, and its operations,
called directly with what does not belong together."""
import re
from pathlib import Path
from statistics import median
import numpy as np
import pytest, torch
from torch.autograd import gradcheck
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from lotterybook.foundations.results import read_rows
from lotterybook.foundations.sparse_inputs import compiled
from lotterybook.ordered_neurons.fast_on_lstm import (
    _exp, _order, _row_before, _sigmoids, _tanhs, backward_product, forward_product, numba_loop)
from lotterybook.ordered_neurons.on_lstm import ONLSTM
from lotterybook.ordered_neurons.recurrence import loop
torch.set_num_threads(1)

forward, backward = torch.ops.lotterybook.on_lstm, torch.ops.lotterybook.on_lstm_backward
rows, batch, D, N = 6, 2, 6, 3
G = 4*D + 2*N

def draw(*shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))

inputs = dict(projected=draw(rows, G), weight_hh=draw(G, D), h_0=draw(batch, D), c_0=draw(batch, D),
              batch_sizes=None, live_top=False, reverse=False)
kept = forward(*inputs.values())
gradients = dict(d_output=draw(rows, D), d_h=draw(batch, D), d_c=draw(batch, D), d_far=draw(rows),
                 d_near=draw(rows), gates=kept[5], old=kept[6], output=kept[0],
                 weight_hh=inputs['weight_hh'], h_0=inputs['h_0'], batch_sizes=None, reverse=False)

def call(op, given, **changes): return op(*(given | changes).values())

@pytest.mark.parametrize('columns, why', [
    (G + 1, '31 columns are not those of 4·6 gates'), (4*D, 'levels=0'), (3*D, 'levels=-3'),
    (4*D + 8, '6 cells cannot be shared among 4 levels'), (6*D + 12, 'among 12 levels')])
def test_columns(columns, why):
    "A kernel would read beyond its row."
    wide = dict(weight_hh=draw(columns, D))
    with pytest.raises(ValueError, match=why):
        call(forward, inputs, projected=draw(rows, columns), **wide)
    with pytest.raises(ValueError, match=why):
        call(backward, gradients, gates=draw(rows, columns), **wide)

@pytest.mark.parametrize('op, given, name', [
    *((forward, inputs, name) for name in ('weight_hh', 'c_0')),
    *((backward, gradients, name) for name in gradients if name not in ('batch_sizes', 'reverse'))])
def test_shapes(op, given, name):
    for wrong in (given[name][:-1], given[name].new_zeros(0), given[name][None]):
        with pytest.raises(ValueError): call(op, given, **{name: wrong})

@pytest.mark.parametrize('dtype', [torch.int64, torch.complex64, torch.bool])
def test_types(dtype):
    "Sigmoids of whole numbers would be whole numbers."
    with pytest.raises(ValueError, match=f'{dtype} is not a floating-point type'):
        call(forward, inputs, projected=inputs['projected'].to(dtype))

@pytest.mark.parametrize('op, given', [(forward, inputs), (backward, gradients)])
def test_devices(op, given):
    "One tensor on `meta`, and PyTorch asks for shapes only: the rest would be uninitialized."
    tensors = [k for k, v in given.items() if isinstance(v, torch.Tensor)]
    for name in tensors:
        with pytest.raises(ValueError, match=r"several devices: \['cpu', 'meta'\]"):
            call(op, given, **{name: given[name].to('meta')})
    out = call(op, given, **{name: given[name].to('meta') for name in tensors})
    assert [o.shape for o in out] == [o.shape for o in call(op, given)]

def test_other_precisions_of_a_state():
    "Converted, as before."
    wide = call(forward, inputs, h_0=inputs['h_0'].double(), c_0=inputs['c_0'].double())
    for a, b in zip(wide, kept): assert torch.equal(a, b)

def test_wrong_columns_by_name():
    for engine in (numba_loop, loop):
        with pytest.raises((ValueError, RuntimeError)):
            engine(draw(rows, G + 2), draw(G + 2, D), draw(batch, D), draw(batch, D), None, N)

# --- the exponential

@compiled
def exps(x):
    y = np.empty_like(x)
    for k in range(x.size): y[k] = _exp(x[k])
    return y

wide = np.linspace(-87, 87, 1_000_001, dtype=np.float32)

def made(activation, x):
    "A row after an activation in place."
    y = x.copy()
    activation(y)
    return y

def test_exponential_to_two_units_in_the_last_place():
    assert np.abs(exps(wide)/np.exp(wide.astype(float)) - 1).max() < 2.5e-7
    np.testing.assert_array_max_ulp(exps(np.array([1., -3.])), np.exp([1., -3.]), 1)  # float64: the library's of any Numba

@pytest.mark.parametrize('activation, lowest', [(_sigmoids, 0.), (_tanhs, -1.)])
def test_activations_at_the_ends(activation, lowest):
    ends = np.array([-np.inf, -1e4, 1e4, np.inf, np.nan], np.float32)
    y = made(activation, ends)
    np.testing.assert_allclose(y[:4], [lowest, lowest, 1, 1], atol=1e-30)
    assert np.isnan(y[4])

def test_tanh_also_near_zero():
    "Where a difference of exponentials would lose all digits."
    assert np.abs(made(_tanhs, wide) - np.tanh(wide.astype(float))).max() < 2.5e-7
    small = np.geomspace(1e-30, 1, 100_001).astype(np.float32)
    assert np.abs(made(_tanhs, small)/np.tanh(small.astype(float)) - 1).max() < 1e-6

# --- bookkeeping

def test_order_of_rows():
    "Rows 0 1 | 2 3 | 4, first states at 5 and 6."
    sizes = torch.tensor([2, 2, 1])
    assert _order(5, 2, sizes, False) == [(0, 2), (2, 4), (4, 5)]
    assert _row_before(_order(5, 2, sizes, False), 2, 5).tolist() == [5, 6, 0, 1, 2]
    assert _row_before(_order(5, 2, sizes, True), 2, 5).tolist() == [2, 3, 4, 6, 5]  # from the end

@pytest.mark.parametrize('steps', [[2, 2], [3, 2], [1, 2, 2], [2, 2, -1, 2], [2, 2, 0, 1]])
def test_steps_that_do_not_fit(steps):
    "Too few, beyond the batch, rising, negative, none at all."
    with pytest.raises(ValueError, match=re.escape(f'5 rows of 2 sequences cannot be taken in steps of {steps}')):
        _order(5, 2, torch.tensor(steps), False)

def double(*shape): return torch.randn(*shape, dtype=torch.float64, generator=source)

source = torch.Generator().manual_seed(0)

@pytest.mark.parametrize('rows, hidden', [(30, 6), (2100, 1000)], ids=['one block', 'three blocks'])
def test_products(rows, hidden):
    U, h, d = double(rows, hidden), double(4, hidden), double(4, rows)
    out, back = double(4, rows), double(4, hidden)
    forward_product(U)(h[:3], out[:3])
    backward_product(U)(d[:3], back[:3])
    assert_close(out[:3], h[:3] @ U.t(), rtol=0, atol=1e-9)
    assert_close(back[:3], d[:3] @ U, rtol=0, atol=1e-9)

# --- the same numbers as the plain loop

def both(x, U, h, c, sizes, N, live_top, reverse, engine):
    "Outputs of an engine, and gradients of a sum with fixed random weights."
    leaves = [o.clone().requires_grad_() for o in (x, U, h, c)]
    run = engine(*leaves, sizes, N, live_top, reverse)
    weights = torch.Generator().manual_seed(0)
    sum((o*torch.randn(o.shape, dtype=torch.float64, generator=weights).to(o.dtype)).sum() for o in run).backward()
    return [*run, *(o.grad for o in leaves)]

def assert_same(given, atol=1e-10):
    for ours, oracle in zip(both(*given, numba_loop), both(*given, loop)):
        assert_close(ours, oracle, rtol=0, atol=atol)
        assert ours.isfinite().all()

packed = torch.tensor([4, 4, 2, 1, 1])

@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('live_top', [False, True])
@pytest.mark.parametrize('D, C, B, T, sizes', [(12, 2, 4, 5, None), (12, 3, 4, 5, packed), (8, 8, 1, 1, None),
                                               (6, 1, 1, 9, None), (5, 5, 3, 2, None)])
def test_outputs_and_gradients(D, C, B, T, sizes, live_top, reverse):
    N, rows = D//C, int(packed.sum()) if sizes is not None else T*B
    assert_same((double(rows, 4*D + 2*N), double(4*D + 2*N, D), double(B, D), double(B, D), sizes, N, live_top, reverse))

def test_500_steps():
    h = torch.zeros(2, 10, dtype=torch.float64)
    assert_same((.5*double(500*2, 50), .3*double(50, 10), h, h, None, 5, False, False))

@pytest.mark.parametrize('reverse', [False, True])
def test_finite_differences(reverse):
    given = [o.requires_grad_() for o in (double(12, 20), double(20, 4), double(4, 4), double(4, 4))]
    assert gradcheck(lambda *o: numba_loop(*o, packed, 2, True, reverse), given)

def test_float32_is_as_near_as_the_plain_loop():
    "The two round differently: neither is further from float64 than a few times the other."
    D, N, B, T = 100, 50, 5, 40
    shapes = zip(((T*B, 4*D + 2*N), (4*D + 2*N, D), (B, D), (B, D)), (1, .1, 1, 1))
    given = [double(*shape)*scale for shape, scale in shapes]
    exact = both(*given, None, N, False, False, loop)
    def error(engine):
        low = both(*(o.float() for o in given), None, N, False, False, engine)
        return [(o.double() - e).abs().max()/e.abs().max() for o, e in zip(low, exact)]
    for ours, usual in zip(error(numba_loop), error(loop)): assert ours < max(4*usual, 1e-6), (ours, usual)

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_gates_that_are_quite_shut_or_quite_open(dtype):
    x, zero = 1e4*double(6, 30).to(dtype), torch.zeros(2, 6, dtype=dtype)
    assert_same((x, double(30, 6).to(dtype), zero, zero, None, 3, False, False), 1e-6)

def test_nan_stays_in_its_sequence():
    "Row 2 is step 2 of the first sequence."
    x = double(6, 30).float()
    x[2, 7] = torch.nan
    run = numba_loop(x, double(30, 6).float(), torch.zeros(2, 6), torch.zeros(2, 6), None, 3)
    assert run.output.isnan().any(1).tolist() == [False, False, True, False, True, False]

def test_nothing_contiguous():
    x, U, h = double(30, 12).t(), double(6, 30).t(), double(6, 2).t()
    assert_close(numba_loop(x, U, h, h, None, 3).output, loop(x, U, h, h, None, 3).output, rtol=0, atol=1e-12)

def test_no_sequences():
    run = numba_loop(torch.ones(0, 30), torch.ones(30, 6), torch.ones(0, 6), torch.ones(0, 6), None, 3)
    assert run.output.shape == (0, 6)

@pytest.mark.parametrize('wrong, match', [
    (dict(columns=31), '31 columns'), (dict(columns=32, U=(32, 6), N=4), '6 cells cannot be shared among 4 levels'),
    (dict(columns=24, U=(24, 6), N=0), 'levels=0 must be a whole number of at least 1'),
    (dict(columns=18, U=(18, 6), N=-3), 'levels=-3 must be a whole number of at least 1'),
    (dict(U=(29, 6)), 'U has shape (29, 6)'), (dict(c=(1, 6)), 'c_0 has shape (1, 6)'),
    (dict(rows=5), '5 rows of 2 sequences'), (dict(sizes=torch.tensor([3, 1])), 'steps of [3, 1]')])
def test_refused(wrong, match):
    "A kernel does not check where it writes, so the loop checks before."
    given = dict(rows=4, columns=30, U=(30, 6), c=(2, 6), sizes=None, N=3) | wrong
    with pytest.raises(ValueError, match=re.escape(match)):
        numba_loop(torch.ones(given['rows'], given['columns']), torch.ones(given['U']), torch.ones(2, 6),
                   torch.ones(given['c']), given['sizes'], given['N'])

# --- one operation of PyTorch

@pytest.fixture
def layers():
    "The same layer with the compiled loop and with the plain one."
    torch.manual_seed(0)
    fast, plain = (ONLSTM(4, 6, chunk_size=1, live_top=True, engine=engine) for engine in ('numba', 'loop'))
    plain.load_state_dict(fast.state_dict())
    return fast, plain

def test_second_derivatives(layers):
    def second(net):
        x = torch.ones(3, 1, 4, requires_grad=True)
        slope, = torch.autograd.grad(net(x)[0].sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]
    assert second(layers[1]).any()
    with pytest.raises(RuntimeError, match="engine='loop'"): second(layers[0])

def test_functional_gradients(layers):
    fast, x = layers[0], torch.ones(3, 1, 4)
    def total(weights): return torch.func.functional_call(fast, weights, x)[0].sum()
    slopes = torch.func.grad(total)(dict(fast.named_parameters()))
    fast(x)[0].sum().backward()
    for name, slope in slopes.items(): assert_close(slope, fast.get_parameter(name).grad, rtol=0, atol=1e-6)

def test_checkpointing(layers):
    "Forgotten and computed again, to save memory."
    fast, x = layers[0], torch.randn(3, 2, 4, requires_grad=True)
    again = checkpoint(lambda x: fast(x)[0], x, use_reentrant=False)
    assert_close(torch.autograd.grad(again.sum(), x)[0], torch.autograd.grad(fast(x)[0].sum(), x)[0])

def test_operation():
    given = torch.randn(12, 30), torch.randn(30, 6), torch.zeros(4, 6), torch.zeros(4, 6), None, False, False
    leaves = tuple(o.requires_grad_() if isinstance(o, torch.Tensor) else o for o in given)
    torch.library.opcheck(forward.default, leaves)

class Counter(TorchDispatchMode):
    "Counts the operations that PyTorch performs."
    operations = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += not func.is_view
        return func(*args, **(kwargs or {}))

def test_operations_do_not_grow_with_the_length(layers):
    "To PyTorch both passes are one operation each, whatever the number of steps."
    def count(net, steps):
        with Counter() as counter: net(torch.ones(steps, 2, 4))[0].sum().backward()
        return counter.operations
    for net in layers: net(torch.ones(1, 2, 4))[0].sum().backward()  # gradients are there from now on
    fast, plain = layers
    assert count(fast, 5) == count(fast, 40) < count(plain, 5) < count(plain, 40)

# --- what the page reports

def test_ratios_on_the_page_are_the_recorded_ones():
    root = Path(__file__).resolve().parents[2]
    page = (root/'nbs'/'1_ordered_neurons'/'140_fast_on_lstm.ipynb').read_text(encoding='utf-8')
    told = re.findall(r'\| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+|not measured) \| ([\d.]+) \|\\n', page)
    rows = [r for r in read_rows(root/'nbs'/'9_experiments'/'results'/'991_on_lstm_speed'/'full.csv') if r['measure'] == 'time']
    def ratio(steps, cells, a, b):
        "Median over rounds."
        of = [[r['cpu'] for r in rows if (r['steps'], r['cells'], r['side']) == (steps, cells, side)] for side in (a, b)]
        return median(x/y for x, y in zip(*of, strict=True))
    assert len(told) == 6
    for steps, cells, slower, plain, faster in told:
        case = int(steps), int(cells)
        assert abs(ratio(*case, 'compiled', 'lstm') - float(slower)) < .006
        assert abs(ratio(*case, 'naive', 'compiled') / float(faster) - 1) < .02
        if plain == 'not measured': assert case == (500, 100)
        else: assert abs(ratio(*case, 'plain', 'compiled') / float(plain) - 1) < .02
