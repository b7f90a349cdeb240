"The plain loop of page 128: one step, packed and reversed runs, precisions, gradients, and the choice of an engine."
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace
import pytest, torch
from torch.autograd import gradcheck
from torch.testing import assert_close
from lotterybook.ordered_neurons import recurrence
from lotterybook.ordered_neurons.recurrence import find_engine, loop, on_lstm_step, recur

D, N, B = 6, 3, 3
rows, lengths = 4*D + 2*N, [4, 2, 1]
sizes = torch.tensor([sum(n > t for n in lengths) for t in range(4)])
source = torch.Generator().manual_seed(0)

def draw(*shape): return torch.randn(*shape, dtype=torch.float64, generator=source)

U, h_0, c_0 = draw(rows, D), draw(B, D), draw(B, D)
sequences = [draw(n, rows) for n in lengths]

def packed(values):
    "Rows of step 1 of all sequences, then those of step 2, and so on."
    return torch.cat([torch.stack([v[t] for v, n in zip(values, lengths) if n > t]) for t in range(4)])

def close(a, b): assert_close(a, b, rtol=0, atol=1e-12)

# --- one step

def test_step_by_hand():
    step = on_lstm_step(torch.zeros(1, 12), torch.zeros(1, 2), torch.tensor([[8., 8.]]), torch.zeros(12, 2), 2)
    assert_close(step.c, torch.tensor([[3., 8.]]))
    assert_close(step.h, torch.tensor([[3., 8.]]).tanh()/2)

opened = torch.tensor([1e4, 0, 0, -1e4, -1e4, -1e4], dtype=torch.float64).expand(2, 6)

def test_step_with_open_master_gates_is_an_lstm_cell():
    "Keep from the first level, write beyond the last: the order of the LSTM's rows."
    cell = torch.nn.LSTMCell(4, 6, dtype=torch.float64)
    x, h, c = draw(2, 4), draw(2, 6), draw(2, 6)
    lstm = torch.cat([x@cell.weight_ih.T + cell.bias_ih + cell.bias_hh, opened], 1)
    weight_hh = torch.nn.functional.pad(cell.weight_hh, (0, 0, 0, 6))
    step = on_lstm_step(lstm, h, c, weight_hh, 3, live_top=True)
    for ours, theirs in zip((step.h, step.c), cell(x, (h, c))): close(ours, theirs)
    close(step.f_tilde, torch.ones(2, 3).double())
    close(step.i_tilde, torch.ones(2, 3).double())

def test_order_of_the_master_gates():
    "The forget gate opens at level 2 or 3, the input gate closes anywhere."
    closed = torch.cat([torch.zeros(2, 24), -opened], 1)
    step = on_lstm_step(closed, draw(2, 6), draw(2, 6), torch.zeros(30, 6, dtype=torch.float64), 3)
    close(step.f_tilde, torch.tensor([[0., .5, 1.]]*2).double())
    close(step.i_tilde, torch.tensor([[2/3, 1/3, 0.]]*2, dtype=torch.float64))

def test_cells_that_cannot_be_shared():
    with pytest.raises(ValueError, match='cells cannot be shared among 3 levels'):
        on_lstm_step(torch.zeros(1, 14), torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(14, 2), 3)

# --- the loop

@pytest.mark.parametrize('reverse', [False, True])
def test_packed_as_one_sequence_at_a_time(reverse):
    run, alone = loop(packed(sequences), U, h_0, c_0, sizes, N, reverse=reverse), []
    for b, xs in enumerate(sequences):
        h, c, outputs = h_0[b:b+1], c_0[b:b+1], {}
        for t in (reversed(range(len(xs))) if reverse else range(len(xs))):
            h, c, f_tilde, i_tilde = on_lstm_step(xs[t:t+1], h, c, U, N)
            outputs[t] = torch.cat([h[0], 1 - f_tilde.mean(-1), i_tilde.mean(-1)])
        close(run.h_n[b], h[0])
        close(run.c_n[b], c[0])
        alone.append(torch.stack([outputs[t] for t in range(len(xs))]))
    close(torch.cat([run.output, run.distance_forget[:, None], run.distance_input[:, None]], 1), packed(alone))

def test_equal_lengths_and_a_state_that_is_carried_over():
    x = draw(5*B, rows)
    whole = loop(x, U, h_0, c_0, None, N)
    for a, b in zip(whole, loop(x, U, h_0, c_0, torch.full((5,), B), N)): assert torch.equal(a, b)
    first = loop(x[:6], U, h_0, c_0, None, N)
    second = loop(x[6:], U, first.h_n, first.c_n, None, N)
    close(torch.cat([first.output, second.output]), whole.output)

def test_no_words_and_no_sequences():
    assert torch.equal(loop(draw(0, rows), U, h_0, c_0, None, N).h_n, h_0)
    assert loop(draw(0, rows), U, h_0[:0], c_0[:0], None, N).output.shape == (0, D)

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_wide_inside(dtype):
    "And for distances: rounded to 8 bits, most sentences would have ties."
    x = draw(5*B, rows)
    for given in ((x.to(dtype), U.to(dtype), h_0.to(dtype), c_0.to(dtype)), (x[:0].to(dtype), U.to(dtype), h_0, c_0)):
        assert [o.dtype for o in loop(*given, None, N)] == [dtype]*3 + [torch.float32]*2

def test_gradients():
    "Against finite differences, packed and with a live top."
    leaves = [o.clone().requires_grad_() for o in (packed(sequences), U, h_0, c_0)]
    assert gradcheck(lambda *o: loop(*o, sizes, N, True), leaves)

def test_distances_by_hand():
    "A step at level 1, 3 and 4 of 4: nothing, half, three quarters are erased, or written."
    at, off = 30*torch.eye(4)[[0, 2, 3]], torch.zeros(3, 4)
    share = torch.tensor([0., .5, .75])
    def run_of(forget_logits, input_logits):
        x = torch.cat([torch.zeros(3, 16), forget_logits, input_logits], 1)
        return loop(x, torch.zeros(24, 4), torch.zeros(1, 4), torch.zeros(1, 4), None, 4)
    assert_close(run_of(at, off).distance_forget, share)
    assert_close(run_of(off, at).distance_input, share)

def test_swapped_master_gates():
    "Twice is as before, once is another network."
    swap = torch.cat([torch.arange(4*D), torch.arange(4*D + N, 4*D + 2*N), torch.arange(4*D, 4*D + N)])
    x = draw(5*B, rows)
    want = loop(x, U, h_0, c_0, None, N).output
    assert (loop(x[:, swap], U[swap], h_0, c_0, None, N).output - want).abs().max() > .01
    assert torch.equal(loop(x[:, swap][:, swap], U[swap][swap], h_0, c_0, None, N).output, want)

# --- engines

on_gpu = SimpleNamespace(device=torch.device('cuda'))  # only the device is read

def test_engine_by_device(monkeypatch):
    assert find_engine('auto', torch.ones(1)) == 'numba'
    assert find_engine('auto', torch.ones(1, device='meta')) == 'loop'
    assert find_engine('auto', on_gpu) == ('triton' if find_spec('triton') else 'loop')
    assert find_engine('loop', torch.ones(1)) == 'loop'
    monkeypatch.setattr(recurrence, '_COMPILERS', ['numba'])
    assert find_engine('auto', on_gpu) == 'loop'

def test_unknown_engine():
    with pytest.raises(ValueError, match="unknown engine 'cudnn'; known are auto, loop, numba, triton"):
        find_engine('cudnn', torch.ones(1))

def test_recur_runs_the_engine():
    x = draw(5*B, rows)
    for a, b in zip(recur('loop', x, U, h_0, c_0, None, N), loop(x, U, h_0, c_0, None, N)): assert torch.equal(a, b)

# --- a cell of one's own

def halved(*args):
    "A step that writes half."
    step = on_lstm_step(*args)
    return step._replace(h=step.h/2)

def test_a_cell_of_ones_own(monkeypatch):
    "As the plain loop with another step; also where compiled loops are replaced, and after it is entered anew."
    x = draw(5*B, rows)
    monkeypatch.setitem(recurrence.ENGINES, 'mine', partial(loop, step=halved))
    def run(x, engine): return recur(engine, x, U, h_0, c_0, None, N).output
    close(run(x[:B], 'mine'), run(x[:B], 'loop')/2)       # of one step
    with torch.no_grad():                                 # later steps read the halved outputs
        h, c, outputs = h_0, c_0, []
        for part in x.split(B):
            h, c, *_ = halved(part, h, c, U, N)
            outputs.append(h)
    close(run(x, 'mine'), torch.cat(outputs))
    close(torch.func.vmap(partial(run, engine='mine'))(x[None])[0], run(x, 'mine'))
    monkeypatch.setitem(recurrence.ENGINES, 'mine', loop)  # nothing of the old one is kept
    close(run(x, 'mine'), run(x, 'loop'))
