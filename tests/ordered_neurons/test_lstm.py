"The LSTM step by step, against PyTorch's own: outputs, states, gradients, distances, and what is refused."
import itertools, math
import pytest, torch
from fastcore.test import test_close as close
from fastcore.test import test_eq as equal
from torch import nn
from torch.autograd import grad, gradcheck
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from lotterybook.foundations.randomness import rng, seed_everything
from lotterybook.ordered_neurons.lstm import (LSTMWeights, layer_weights, lstm_distances, lstm_gates,
                                              lstm_layer, lstm_step)

@pytest.fixture(autouse=True)
def seed(): seed_everything(0, 'page 100')

def random(*shape, **kw): return torch.randn(*shape, dtype=torch.float64, **kw)

# --- the layer

def test_by_hand():
    zeros = torch.zeros(4, 1, dtype=torch.float64)
    b = torch.tensor([0., math.log(3), math.atanh(.5), 0.], dtype=torch.float64)  # i, f, c_hat, o
    h, c = lstm_step(zeros[:1], zeros[:1], 8 + zeros[:1], LSTMWeights(zeros, zeros, b))
    close(c.item(), 6.25, eps=1e-14)
    close(h.item(), math.tanh(6.25)/2, eps=1e-14)

def stacked(net, x, h, c):
    "All layers by our loop: outputs of the last, last h and c of each."
    ends = []
    for l in range(net.num_layers):
        x, cells = lstm_layer(x, layer_weights(net, l), (h[l], c[l]))
        ends.append((x[-1], cells[-1]))
    return x, *map(torch.stack, zip(*ends))

def test_against_pytorch():
    "Outputs, last state, and gradients by every weight and the input; all sizes differ, so no two axes can be confused."
    net = nn.LSTM(5, 4, num_layers=2).double()
    x, state = random(7, 3, 5, requires_grad=True), random(2, 2, 3, 4)
    ours, (theirs, ends) = stacked(net, x, *state), net(x, tuple(state))
    for a, b in zip(ours, (theirs, *ends)): close(a, b, eps=1e-12)
    leaves, v = [x, *net.parameters()], random(7, 3, 4)          # one number from all outputs
    for a, b in zip(grad((v*ours[0]).sum(), leaves), grad((v*theirs).sum(), leaves)): close(a, b, eps=1e-12)

def test_without_biases():
    bare, x = nn.LSTM(5, 4, bias=False).double(), random(7, 3, 5)
    close(lstm_layer(x, layer_weights(bare))[0], bare(x)[0], eps=1e-12)

def test_packed():
    "Each sequence of a packed batch is the sequence alone."
    net, x, lengths = nn.LSTM(5, 4, bias=False).double(), random(7, 3, 5), [7, 2, 5]
    packed, _ = pad_packed_sequence(net(pack_padded_sequence(x, lengths, enforce_sorted=False))[0])
    for k, n in enumerate(lengths):
        close(lstm_layer(x[:n, k:k+1], layer_weights(net))[0][:, 0], packed[:n, k], eps=1e-12)

def test_gradient():
    def step(x, h, c, *w): return lstm_step(x, h, c, LSTMWeights(*w))
    shapes = (2, 3), (2, 2), (2, 2), (8, 3), (8, 2), (8,)
    assert gradcheck(step, [random(*shape, requires_grad=True) for shape in shapes])

def test_renumbered_cells():
    net, x = nn.LSTM(5, 4, bias=False).double(), random(7, 3, 5)
    order = torch.randperm(4, generator=rng(0, 'order'))
    rows, w = torch.cat([order + 4*gate for gate in range(4)]), layer_weights(net)
    renumbered = LSTMWeights(w.W[rows], w.U[rows][:, order], w.b[rows])
    close(lstm_layer(x, renumbered)[0], lstm_layer(x, w)[0][..., order], eps=1e-14)

def test_refused_layers():
    with pytest.raises(ValueError, match='layer=2, but the layers are 0 to 1'): layer_weights(nn.LSTM(5, 4, 2), 2)
    with pytest.raises(ValueError, match='not GRU'): layer_weights(nn.GRU(5, 4))

@pytest.mark.parametrize('shape, state, words', [
    ((7, 5), None, r'x is \(7, 5\), but must be \(seq, batch, 5\)'),
    ((0, 3, 5), None, r'x is \(0, 3, 5\)'),
    ((7, 3, 5), (1, 3, 4), r'h and c must both be \(3, 4\)')])
def test_refused_input(shape, state, words):
    with pytest.raises(ValueError, match=words):
        lstm_layer(torch.zeros(shape), layer_weights(nn.LSTM(5, 4)), state and (torch.zeros(state),)*2)

# --- how far back the gradient reaches

def factor(make, steps=100, inputs=16, cells=64):
    "What a step back multiplies the gradient by: mean over three samples."
    factors = []
    for sample in range(3):
        seed_everything(sample, 'reach')
        net = make(inputs, cells).double()
        x, v = random(steps, 16, inputs, requires_grad=True), random(cells)
        sizes = grad((net(x)[0][-1] @ v).sum(), x)[0].norm(dim=-1).mean(1).flip(0)
        factors.append((sizes[80]/sizes[20])**(1/60))
    return sum(factors).item()/3

def orthogonal(inputs, cells):
    net = nn.RNN(inputs, cells)
    nn.init.orthogonal_(net.weight_hh_l0)
    return net

def with_forget_bias(bias):
    def make(inputs, cells):
        net = nn.LSTM(inputs, cells)
        with torch.no_grad():
            for b in (net.bias_ih_l0, net.bias_hh_l0): b.zero_()
            net.bias_ih_l0[cells:2*cells] = bias                 # rows of f
        return net
    return make

def test_reach_of_the_gradient():
    assert factor(nn.RNN) < .6 and factor(orthogonal) < .9       # vanishes, with either U
    assert factor(with_forget_bias(0)) < factor(with_forget_bias(1)) < .9  # vanishes as well
    assert .95 < factor(with_forget_bias(3)) < 1.05              # comes through

def half_life(f): return math.log(.5)/math.log(f)

def test_half_life():
    close(half_life(.5), 1)
    close(.9**half_life(.9), .5)
    for bias in (4., 6., 8.):                                    # a unit of the logit: e times longer
        close(half_life(1/(1 + math.exp(-bias)))/(math.log(2)*math.exp(bias)), 1, eps=.01)

# --- distances

def by_loop(net, x, h, c):
    "The same, a step at a time."
    forget, taken = [], []
    for l in range(net.num_layers):
        weights, h_t, c_t, outputs, f_l, i_l = layer_weights(net, l), h[l], c[l], [], [], []
        for x_t in x:
            gates = lstm_gates(x_t, h_t, weights)
            f_l.append(1 - gates.f.mean(-1)); i_l.append(gates.i.mean(-1))
            h_t, c_t = lstm_step(x_t, h_t, c_t, weights)
            outputs.append(h_t)
        x = torch.stack(outputs)
        forget.append(torch.stack(f_l)); taken.append(torch.stack(i_l))
    return torch.stack(forget), torch.stack(taken)

@pytest.mark.parametrize('layers, bias, batch_first', list(itertools.product((1, 3), (True, False), (True, False))))
def test_distances(layers, bias, batch_first):
    "Values and gradients (a regulariser may use distances)."
    net = nn.LSTM(5, 4, layers, bias=bias, batch_first=batch_first).double()
    state, x = random(2, layers, 3, 4), random(7, 3, 5, requires_grad=True)
    given = x.transpose(0, 1) if batch_first else x
    close(lstm_distances(net, given), by_loop(net, x, *torch.zeros_like(state)), eps=1e-12)
    fast, slow = lstm_distances(net, given, tuple(state)), by_loop(net, x, *state)
    equal([o.shape for o in fast], [(layers, 7, 3)]*2)
    close(fast, slow, eps=1e-12)
    v, leaves = random(2, layers, 7, 3), [x, *net.parameters()]
    ours, loops = (grad((v*torch.stack(o)).sum(), leaves, materialize_grads=True) for o in (fast, slow))
    for a, b in zip(ours, loops): close(a, b, eps=1e-12)

def test_stacked_state_is_a_state():
    net, x = nn.LSTM(5, 4), torch.randn(7, 3, 5)
    with torch.no_grad(): equal(lstm_distances(net, x, torch.zeros(2, 1, 3, 4)), lstm_distances(net, x))

@pytest.mark.parametrize('options, words', [(dict(bidirectional=True), 'bidirectional=True'), (dict(proj_size=2), 'proj_size=2'),
                                            (dict(num_layers=2, dropout=.1), 'dropout=0.1 is on')])
def test_unsupported(options, words):
    with pytest.raises(ValueError, match=words): lstm_distances(nn.LSTM(5, 4, **options), torch.randn(7, 3, 5))

def test_dropout_in_evaluation():
    assert lstm_distances(nn.LSTM(5, 4, 2, dropout=.1).eval(), torch.randn(7, 3, 5))[0].isfinite().all()

def test_refused_distances():
    net, x = nn.LSTM(5, 4), torch.randn(7, 3, 5)
    for call, words in (((nn.GRU(5, 4), x), 'not GRU'),
                        ((net, pack_padded_sequence(x, [7, 2, 2])), 'not PackedSequence'),
                        ((net, x[:, 0]), r'x is \(7, 5\), but must be \(seq, batch, 5\)'),
                        ((net, x[:0]), r'x is \(0, 3, 5\)'),
                        ((net, x, (torch.zeros(3, 4),)*2), r'h and c must both be \(1, 3, 4\)')):
        with pytest.raises(ValueError, match=words): lstm_distances(*call)

def test_a_counter_erases_nothing():
    "One cell counts brackets, the other remembers a mark; `;` empties both."
    letters, text = 'x();!', '(x(x)!x(xx))!;x((x)x);'
    W = torch.tensor([[0., 20, 20, 0, 0], [0, 0, 0, 0, 20], [0, 0, 0, -20, 0], [0, 0, 0, -20, -20],
                      [0, 10, -10, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).double()
    b = torch.tensor([-10., -10, 10, 10, 0, 10, 10, 10]).double()
    x = torch.eye(5).double()[[letters.index(s) for s in text]][:, None]
    _, cells = lstm_layer(x, LSTMWeights(W, torch.zeros(8, 2).double(), b))
    depth = [text[:k].count('(') - text[:k].count(')') for k in range(1, len(text) + 1)]
    mark = [float('!' in text[:k].rsplit(';', 1)[-1]) for k in range(1, len(text) + 1)]
    close(cells[:, 0].round(decimals=2), torch.tensor([depth, mark]).T, eps=1e-9)
    net = nn.LSTM(5, 2).double()
    net.load_state_dict(dict(weight_ih_l0=W, weight_hh_l0=torch.zeros(8, 2), bias_ih_l0=b, bias_hh_l0=0*b))
    with torch.no_grad(): erased = lstm_distances(net, x)[0][0, :, 0]
    at = {letter: erased[[k for k, s in enumerate(text) if s == letter]] for letter in letters}
    assert at[';'].min() > .99                                   # everything is erased
    close(at['!'].mean(), .5, eps=.01)                           # one cell of two
    assert at[')'].max() < .01                                   # a bracket closes, and nothing is erased
