"""The slow loop of page 126 by routes that share nothing with it: numbers in lists, `nn.LSTM` inside, finite differences;
and the checkpoints and states that it refuses."""
import math, re
from functools import partial
import pytest, torch
from torch.autograd import gradcheck
from torch.testing import assert_close
from lotterybook.ordered_neurons.reference import LayerShape, example_state_dict, layer_shapes, naive_on_lstm, sines

double = partial(torch.tensor, dtype=torch.float64)
def close(a, b, atol=1e-12): assert_close(a, b, rtol=0, atol=atol)

# --- by hand

def test_two_steps_by_hand():
    "All weights 0 but the bias of c_hat, in rows 9 to 11: after 2 N + D."
    zero = {key: torch.zeros_like(w) for key, w in example_state_dict([2, 3], chunk_size=1).items()}
    zero['cells.0.hh.bias'][9:12] = math.atanh(.5)
    run = naive_on_lstm(zero, torch.ones(2, 1, 2, dtype=torch.float64), chunk_size=1)
    close(run.c[0], double([[55/162, 14/81, 0.]]), 1e-15)
    close(run.h[0], run.c[0].tanh() / 2, 1e-15)
    close(run.distance_forget, double([[[1/3], [1/3]]]), 1e-15)
    close(run.distance_input, double([[[1/3], [1/3]]]), 1e-15)

# --- plain Python: lists, and one number at a time

def sigmoid(v): return 1 / (1 + math.exp(-v))

def scalar_layer(weights, xs, C):
    "One layer and one sequence: outputs, last cells, both distances, each a list."
    W, b_x, U, b_h = (w.tolist() for w in weights.values())
    D = len(U[0])
    N, h, c = D // C, [0.] * D, [0.] * D
    outputs, forget, write_shares = [], [], []
    for x in xs:
        def logit(row):
            return (b_x[row] + b_h[row] + sum(W[row][k] * x[k] for k in range(len(x)))
                    + sum(U[row][k] * h[k] for k in range(D)))
        def ramp(first):
            e = [math.exp(logit(first + k)) for k in range(N)]
            return [sum(e[:k + 1]) / sum(e) for k in range(N)]
        closed, kept = ramp(0), ramp(N)                        # i_tilde is 1 - closed, f_tilde is kept
        h_new, c_new = [], []
        for cell in range(D):
            o, new, i, f = (logit(2*N + gate*D + cell) for gate in range(4))
            F, I = kept[cell // C], 1 - closed[cell // C]
            keep  = F * (sigmoid(f) * I + 1 - I)               # the paper's rule, multiplied out
            write = I * (sigmoid(i) * F + 1 - F)
            c_new.append(keep * c[cell] + write * math.tanh(new))
            h_new.append(sigmoid(o) * math.tanh(c_new[-1]))
        h, c = h_new, c_new
        outputs.append(h)
        forget.append(1 - sum(kept) / N)
        write_shares.append(1 - sum(closed) / N)
    return outputs, c, forget, write_shares

@pytest.mark.parametrize('D, C', [(12, 2), (12, 4), (3, 1), (6, 6)])
def test_numbers_in_lists(D, C):
    weights, x = example_state_dict([5, D], C), sines(7, 3, 5, start=10_001)
    run = naive_on_lstm(weights, x, C)
    for b in range(3):                                          # each sequence of the batch alone
        outputs, c, forget, write_shares = scalar_layer(weights, x[:, b].tolist(), C)
        close(run.output[:, b], double(outputs))
        close(run.c[0][b], double(c))
        close(run.distance_forget[0, :, b], double(forget))
        close(run.distance_input[0, :, b], double(write_shares))

sizes  = dict(i_tilde=6, f_tilde=6, o=12, c_hat=12, i=12, f=12)
blocks = dict(zip(sizes, torch.arange(60).split(list(sizes.values()))))

@pytest.mark.parametrize('a, b', [('i_tilde', 'f_tilde'), ('o', 'c_hat'), ('o', 'i'), ('o', 'f'),
                                  ('c_hat', 'i'), ('c_hat', 'f'), ('i', 'f')])
def test_a_swapped_block_would_be_noticed(a, b):
    "The comparison above is sharp: each swap moves an output by far more than 1e-12."
    weights, x = example_state_dict([5, 12], 2), sines(7, 3, 5, start=10_001)
    order = torch.cat([blocks[{a: b, b: a}.get(name, name)] for name in blocks])
    wrong = naive_on_lstm({key: w[order] for key, w in weights.items()}, x, 2)
    assert (wrong.output - naive_on_lstm(weights, x, 2).output).abs().max() > .05

# --- stacked, in two parts, alone

@pytest.fixture(scope='module')
def two():
    "Weights of two layers, input, and the run."
    weights, x = example_state_dict([5, 12, 8], 2), sines(7, 3, 5, start=10_001)
    return weights, x, naive_on_lstm(weights, x, 2)

def test_second_layer_reads_the_first(two):
    weights, x, whole = two
    first = naive_on_lstm({k: w for k, w in weights.items() if k.startswith('cells.0')}, x, 2)
    above = {k.replace('.1.', '.0.'): w for k, w in weights.items() if k.startswith('cells.1')}
    second = naive_on_lstm(above, first.output, 2)
    assert torch.equal(whole.output, second.output)
    assert torch.equal(whole.distance_forget, torch.cat([first.distance_forget, second.distance_forget]))
    assert (whole.output.shape, whole.h[0].shape, whole.c[1].shape) == ((7, 3, 8), (3, 12), (3, 8))

def test_state_is_handed_over(two):
    weights, x, whole = two
    head = naive_on_lstm(weights, x[:3], 2)
    tail = naive_on_lstm(weights, x[3:], 2, state=(head.h, head.c))
    close(torch.cat([head.output, tail.output]), whole.output, 1e-14)
    for ours, theirs in zip(tail.h + tail.c, whole.h + whole.c): close(ours, theirs, 1e-14)

def test_sequences_do_not_see_each_other(two):
    weights, x, whole = two
    close(naive_on_lstm(weights, x[:, 1:2], 2).output, whole.output[:, 1:2], 1e-14)

def test_top_level_is_dead(two):
    "Page 120; but for rounding."
    close(two[2].c[1][:, -2:], torch.zeros(3, 2).double(), 1e-15)

# --- nn.LSTM inside

def test_lstm_where_the_master_gates_are_open():
    """The forget gate opens at the first level and the input gate closes at the last: below the top level an `nn.LSTM` is left,
    with rows i, f, c_hat, o."""
    torch.manual_seed(0)
    x = sines(7, 3, 5, start=10_001)
    lstm = torch.nn.LSTM(5, 8).double()                                     # becomes the lower 8 of 10 cells
    weights = {key: torch.zeros_like(w) for key, w in example_state_dict([5, 10], 2).items()}
    weights['cells.0.hh.bias'][4] = weights['cells.0.hh.bias'][5] = 1e4
    names = {'ih.0.weight': 'weight_ih', 'ih.0.bias': 'bias_ih', 'hh.weight': 'weight_hh', 'hh.bias': 'bias_hh'}
    for key, name in names.items():
        i, f, c_hat, o = getattr(lstm, f'{name}_l0').detach().chunk(4)
        for k, rows in enumerate((o, c_hat, i, f)):                         # the released order, after 2 N = 10 rows
            place = weights[f'cells.0.{key}'][10 + 10*k:10 + 10*k + 8]
            (place[:, :8] if key == 'hh.weight' else place)[:] = rows
    run, (output, (h, c)) = naive_on_lstm(weights, x, 2), lstm(x)
    close(run.output[..., :8], output, 1e-14)
    close(run.h[0][:, :8], h[0], 1e-14)
    close(run.c[0][:, :8], c[0], 1e-14)
    close(run.output[..., 8:], torch.zeros(7, 3, 2).double(), 1e-15)        # the dead level

# --- finite differences

def test_gradients():
    "By every weight, the input and the state, of the outputs and both distances."
    small = example_state_dict([2, 4, 3], 1)
    keys  = list(small)
    def flat(x, h0, h1, c0, c1, *weights):
        run = naive_on_lstm(dict(zip(keys, weights)), x, 1, state=([h0, h1], [c0, c1]))
        return run.output, *run.c, run.distance_forget, run.distance_input
    states = (sines(2, n, start=50 * k) for k, n in enumerate((4, 3, 4, 3), 1))
    assert gradcheck(flat, [v.clone().requires_grad_() for v in (sines(3, 2, 2), *states, *small.values())])

# --- sizes, and weights from a formula

def test_sines():
    close(sines(2, 2), double([[math.sin(1), math.sin(4)], [math.sin(9), math.sin(16)]]), 1e-15)

def test_sizes():
    weights = example_state_dict([5, 12, 8], chunk_size=2)
    assert layer_shapes(weights, 2) == [LayerShape(5, 12, 6), LayerShape(12, 8, 4)]
    assert [s.rows for s in layer_shapes(weights, 2)] == [48 + 12, 32 + 8]           # 4D + 2N, by hand
    assert layer_shapes({**weights, 'encoder.weight': torch.ones(3)}, 2) == layer_shapes(weights, 2)  # more keys: ignored

def test_weights_have_full_rank():
    "sin(n) would give rank 2."
    for w in example_state_dict([5, 12, 8], 2).values():
        if w.ndim == 2: assert torch.linalg.matrix_rank(w) == min(w.shape)
    assert torch.linalg.matrix_rank(torch.arange(60.).double().sin().view(12, 5)) == 2

weights = example_state_dict([5, 12, 8], chunk_size=2)

def without(key): return {k: w for k, w in weights.items() if k != key}
def changed(key, *shape): return {**weights, key: torch.ones(shape)}

@pytest.mark.parametrize('given, chunk_size, match', [
    (without('cells.1.hh.bias'), 2, 'no cells.1.hh.bias among the keys cells.0.ih.0.weight'),
    ({}, 2, 'among the keys (none)'), ({'rnn.cells.0.hh.bias': torch.ones(3)}, 2, 'among the keys rnn.cells.0'),
    (weights, 4, 'need 54 rows; chunk_size=2 would fit'),
    (changed('cells.0.hh.weight', 59, 12), 2, 'need 60 rows; no chunk_size fits'),
    (weights, 5, '12 cells, which chunk_size=5 does not divide'),
    (weights, 0, 'chunk_size=0 must be a whole number of at least 1'),
    (changed('cells.0.ih.0.weight', 61, 5), 2, 'cells.0.ih.0.weight is (61, 5), but must be (60, 5)'),
    (changed('cells.1.ih.0.weight', 40, 11), 2, 'layer 1 reads 11 numbers, but layer 0 gives 12')])
def test_checkpoints_refused(given, chunk_size, match):
    with pytest.raises(ValueError, match=re.escape(match)): layer_shapes(given, chunk_size)

@pytest.mark.parametrize('sizes, chunk_size, match', [
    ([5, 7], 2, 'layer 0 has 7 cells, which chunk_size=2'), ([5, 4], 8, 'chunk_size=8 does not divide'),
    ([5, 4], 0, 'chunk_size=0 must be'), ([], 1, 'sizes=[] must be an input and one layer at least'),
    ([5], 1, 'sizes=[5] must be an input and one layer at least')])
def test_sizes_refused(sizes, chunk_size, match):
    with pytest.raises(ValueError, match=re.escape(match)): example_state_dict(sizes, chunk_size)

@pytest.mark.parametrize('make', [sines, partial(example_state_dict, [5, 4], 1)])
def test_types_refused(make):
    with pytest.raises(ValueError, match='dtype=torch.int64 holds no fractions'): make(dtype=torch.int64)

def test_inputs_and_states_refused(two):
    weights, x, whole = two
    h, c = whole.h, whole.c
    for given, state, match in (
            (x[..., :4], None, 'x is (7, 3, 4), but must be (seq, batch, 5)'), (x[:0], None, 'x is (0, 3, 5)'),
            (x, ([o.T for o in h], c), 'h has the shapes [(12, 3), (8, 3)], but must have [(3, 12), (3, 8)]'),
            (x, (h, [o.T for o in c]), 'c has the shapes [(12, 3), (8, 3)]'),
            (x, ([o[:1] for o in h], c), 'h has the shapes [(1, 12), (1, 8)]'),
            (x, (h[:1], c[:1]), 'h has the shapes [(3, 12)]')):
        with pytest.raises(ValueError, match=re.escape(match)): naive_on_lstm(weights, given, 2, state)
