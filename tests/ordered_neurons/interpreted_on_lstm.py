"""The kernels of page 145 against the plain loop, on a GPU if there is one, else in Triton's interpreter.

`test_on_lstm_on_cuda.py` runs this file in a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
from functools import partial
import numpy as np
import pytest, torch
from torch.nn.utils.rnn import pack_sequence
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from lotterybook.ordered_neurons.fast_on_lstm import numba_loop, passes
from lotterybook.ordered_neurons.on_lstm import ONLSTM
from lotterybook.ordered_neurons.on_lstm_on_cuda import _KERNELS, _backward_rows, _forward_rows, _tile, triton_loop
from lotterybook.ordered_neurons.recurrence import gate_dtype, loop
torch.set_num_threads(1)
np.seterr(over='ignore', invalid='ignore')  # the interpreter is NumPy, which warns of what the tests do on purpose

device = 'cuda' if torch.cuda.is_available() else 'cpu'
source = torch.Generator().manual_seed(0)

def draw(*shape, dtype=torch.float64): return torch.randn(*shape, dtype=dtype, generator=source).to(device)

def zeros(*shape, dtype=torch.float64): return torch.zeros(*shape, dtype=dtype, device=device)

def both(x, U, h, c, sizes, N, live_top, reverse, engine):
    "Outputs of an engine, and gradients of a sum with fixed random weights."
    leaves = [o.clone().requires_grad_() for o in (x, U, h, c)]
    run = engine(*leaves, sizes, N, live_top, reverse)
    weights = torch.Generator().manual_seed(0)
    sum((o*torch.randn(o.shape, dtype=torch.float64, generator=weights).to(o)).sum() for o in run).backward()
    return [*run, *(o.grad for o in leaves)]

# --- tiles

@pytest.mark.parametrize('args, tile', [
    ((4*1150 + 2*115, 1150), dict(N=115, C=10, LEVELS=128, PLACES=16, num_warps=8)),     # the paper's layer
    ((4*6 + 2*1, 6), dict(N=1, C=6, LEVELS=1, PLACES=8, num_warps=4)),
    ((4*8 + 2*8, 8, False), dict(N=8, C=1, LEVELS=8, PLACES=1, num_warps=4)),
    ((4*8 + 2*8, 8, True), dict(N=8, C=1, LEVELS=16, PLACES=1, num_warps=4))])           # a ninth place needs room
def test_tile(args, tile): assert _tile(*args) == tile

# --- the same numbers as the plain loop, in float64: outputs, states, distances, all gradients

packed = torch.tensor([2, 2, 1])

@pytest.mark.parametrize('D, C, B, T, sizes, live_top, reverse', [
    (12, 2, 2, 2, None, False, False), (12, 2, 2, 2, None, True, True),
    (15, 5, 2, 3, packed, False, True), (15, 5, 2, 3, packed, True, False),   # masked places on both sides of the tile
    (8, 1, 1, 2, None, True, False), (6, 6, 2, 1, None, False, False), (16, 4, 1, 1, None, True, True),
    (8, 2, 2, 2, None, False, False), (6, 2, 1, 2, None, True, False)])       # full tiles: four levels; three and the live top's place
def test_outputs_and_gradients(D, C, B, T, sizes, live_top, reverse):
    N, rows = D//C, int(packed.sum()) if sizes is not None else T*B
    given = draw(rows, 4*D + 2*N), draw(4*D + 2*N, D), draw(B, D), draw(B, D), sizes, N, live_top, reverse
    for ours, oracle in zip(both(*given, triton_loop), both(*given, loop)):
        assert_close(ours.cpu(), oracle.cpu(), rtol=0, atol=1e-10)

def test_the_papers_layer_against_the_other_compiled_loop():
    D, N, B = 1150, 115, 2
    given = draw(2*B, 4*D + 2*N), .1*draw(4*D + 2*N, D), draw(B, D), draw(B, D)
    ours   = both(*given, None, N, False, False, triton_loop)
    theirs = both(*(o.cpu() for o in given), None, N, False, False, numba_loop)
    for a, b in zip(ours, theirs): assert_close(a.cpu(), b, rtol=0, atol=1e-10)

# --- precision

@pytest.mark.parametrize('dtype, floor', [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_lower_precision(dtype, floor):
    "Against float64: not further from it than a few times the plain loop in the same precision."
    D, N, B, T = 20, 10, 2, 4
    shapes = zip(((T*B, 4*D + 2*N), (4*D + 2*N, D), (B, D), (B, D)), (1, .2, 1, 1))
    given = [draw(*shape)*scale for shape, scale in shapes]
    exact = both(*given, None, N, False, False, loop)
    def error(engine):
        "The largest error of each output and gradient, in parts of its largest number."
        got = both(*(o.to(dtype) for o in given), None, N, False, False, engine)
        assert [o.dtype for o in got] == [dtype]*3 + [gate_dtype(dtype)]*2 + [dtype]*4
        return [((o.double() - e).abs().max()/e.abs().max()).item() for o, e in zip(got, exact)]
    for ours, usual in zip(error(triton_loop), error(loop)): assert ours < max(3*usual, floor), (ours, usual)

v = torch.logspace(-8, 0, 401, dtype=torch.float64).float()  # in float32, as the kernel reads it

def small(engine, dtype):
    "Cells and outputs after one step from a zero state: one level of many cells, each with a content of another size."
    D = len(v)
    x, U, zero = (torch.zeros(*o, dtype=dtype) for o in ((1, 4*D + 2), (4*D + 2, D), (1, D)))
    x[0, 2*D:3*D] = v                                        # the rows of c_hat
    run = engine(*(o.to(device) for o in (x, U, zero, zero)), None, 1, True)  # a live top: the only level is written
    return torch.cat([run.c_n, run.output]).cpu().double()

@pytest.mark.parametrize('dtype, bound', [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_small_numbers_in_parts_of_themselves(dtype, bound):
    assert (small(triton_loop, dtype)/small(loop, torch.float64) - 1).abs().max() < bound

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_gates_that_are_quite_shut_or_quite_open(dtype):
    given = (1e4*draw(4, 30)).to(dtype), draw(30, 6).to(dtype), *zeros(2, 2, 6, dtype=dtype), None, 3, False, False
    for ours, oracle in zip(both(*given, triton_loop), both(*given, loop)):
        assert_close(ours.cpu(), oracle.cpu(), rtol=0, atol=1e-6)
        assert ours.isfinite().all()

@pytest.mark.parametrize('column', [7, 4*6 + 1], ids=['an LSTM gate', 'a master gate'])
def test_nan_stays_in_its_sequence(column):
    "Row 2 is step 2 of the first sequence."
    x = draw(6, 30)
    x[2, column] = torch.nan
    run = triton_loop(x, draw(30, 6), *zeros(2, 2, 6), None, 3)
    assert run.output.isnan().any(1).tolist() == [False, False, True, False, True, False]

# --- forms

def test_nothing_contiguous():
    x, U, h = draw(30, 6).t(), draw(6, 30).t(), draw(6, 2).t()
    assert_close(triton_loop(x, U, h, h, None, 3).output.cpu(), loop(x, U, h, h, None, 3).output.cpu(), rtol=0, atol=1e-12)

def test_no_sequences():
    assert triton_loop(draw(0, 30), draw(30, 6), draw(0, 6), draw(0, 6), None, 3).output.shape == (0, 6)

@pytest.mark.parametrize('columns, U, N, match', [(31, (30, 6), 3, '31 columns'),
                                                  (32, (32, 6), 4, '6 cells cannot be shared among 4 levels')])
def test_refused(columns, U, N, match):
    with pytest.raises(ValueError, match=match): triton_loop(draw(2, columns), draw(*U), draw(2, 6), draw(2, 6), None, N)

def test_layer():
    "Packed, both directions, layers of different sizes."
    ours, plain = (ONLSTM(3, [6, 4], chunk_size=2, bidirectional=True, live_top=True, engine=name, dtype=torch.float64, device=device)
                   for name in ('triton', 'loop'))
    plain.load_state_dict(ours.state_dict())
    x = pack_sequence([draw(n, 3) for n in (1, 3)], enforce_sorted=False)
    (a, _, far), (b, _, far_plain) = (net(x, return_distances=True) for net in (ours, plain))
    assert_close(a.data, b.data, rtol=0, atol=1e-10)
    assert_close(far[0], far_plain[0], rtol=0, atol=1e-10)

def test_operation():
    name = 'on_lstm' if device == 'cuda' else 'on_lstm_interpreted'
    given = draw(2, 30), draw(30, 6), draw(1, 6), draw(1, 6), None, False, True
    leaves = tuple(o.requires_grad_() if isinstance(o, torch.Tensor) else o for o in given)
    checks = torch.library.opcheck(getattr(torch.ops.lotterybook, name).default, leaves)
    assert set(checks.values()) == {'SUCCESS'}

# --- launches

class Counter(TorchDispatchMode):
    "Counts operations that work on numbers."
    VIEWS = {'view', '_unsafe_view', 't', 'transpose', 'select', 'slice', 'split', 'split_with_sizes', 'unsqueeze', 'expand', 'detach',
             'alias', 'unbind', 'empty', 'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided', 'arange'}
    operations = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += func.__name__.split('.')[0] not in self.VIEWS
        return func(*args, **(kwargs or {}))

D, N, B = 12, 6, 1

def given(T, dtype=torch.float64):
    return [o.to(dtype) for o in (draw(T*B, 4*D + 2*N), draw(4*D + 2*N, D), draw(B, D), draw(B, D))]

def plain(T, count):
    loop(*(o.requires_grad_() for o in given(T)), None, N).output.sum().backward()

def compiled(T, count, dtype):
    "Both passes without their wrapping as one operation, so that nothing is hidden; a kernel counts as one."
    def launch(rows):
        def counted_rows(*args):
            with _disable_current_modes(): rows(*args)  # what the interpreter does is no launch
            count.operations += 1
        return counted_rows
    forward, backward = passes(_KERNELS._replace(forward=launch(_forward_rows), backward=launch(_backward_rows)))
    x, U, h, c = given(T, dtype)
    output, h_n, c_n, far, near, gates, old = forward(x, U, h, c, None, False, False)
    backward(output, h_n, c_n, far, near, gates, old, output, U, h, None, False)

def a_step(run):
    "Operations of six steps minus those of three leave out what is done once."
    def operations(T):
        with Counter() as count: run(T, count)
        return count.operations
    return (operations(6) - operations(3))/3

@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_a_step_is_a_product_and_a_kernel_in_each_direction(dtype):
    assert a_step(partial(compiled, dtype=dtype)) == 4 < a_step(plain)
