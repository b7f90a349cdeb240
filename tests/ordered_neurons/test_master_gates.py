"Master gates: sizes of layers, the rule by other routes, gradients, the dead top level, and what is refused."
import warnings
import pytest, torch
from fastcore.test import test_close as close
from fastcore.test import test_eq as equal
from torch.autograd import gradcheck
from lotterybook.ordered_neurons.master_gates import combine_gates, dead_cells, levels, master_gates

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

# --- sizes

@pytest.mark.parametrize('size', [10**12, 10**18])
def test_large_sizes(size):
    "Right, or refused in a single step with sizes that fit."
    assert levels(size, 10) == size//10
    with pytest.raises(ValueError, match=r'one of \[1, 2, 4, 5, 8, 10, .*10000\]'): levels(size, 7)

def test_levels():
    equal(levels(1150, 10), 115)                         # the paper's model
    equal(levels(30, 1), 30)                             # every cell has its own rank

@pytest.mark.parametrize('hidden, chunk, words', [
    (100, 7, r'hidden_size=100 is not a multiple of chunk_size=7'),
    (12, 24, r'\[1, 2, 3, 4, 6, 12\]'),                  # a chunk larger than all cells
    (100, 0, 'chunk_size=0 must be a whole number of at least 1'),
    (100, 2., 'chunk_size=2.0 must be a whole number of at least 1'),
    (100, True, 'chunk_size=True must be a whole number of at least 1'),
    (0, 1, 'hidden_size=0 must be')])
def test_refused_sizes(hidden, chunk, words):
    with pytest.raises(ValueError, match=words): levels(hidden, chunk)

# --- the rule

def test_by_hand():
    f_tilde, i_tilde = torch.tensor([0., 0, 1, 1]), torch.tensor([1., 1, 1, 0])
    gates = combine_gates(torch.full((4,), .5), torch.full((4,), .2), f_tilde, i_tilde)
    close(gates.f_hat, torch.tensor([0., 0, .5, 1]))
    close(gates.i_hat, torch.tensor([1., 1, .2, 0]))
    f_tilde, i_tilde = master_gates(torch.zeros(4), torch.zeros(4))
    close(f_tilde, torch.tensor([.25, .5, .75, 1.]))     # equal logits: a ramp up
    close(i_tilde, torch.tensor([.75, .5, .25, 0.]))     # and a ramp down

def mean_of_hard_rules(f, i, forget_logits, input_logits):
    "Equations 11 to 13 for every pair of hard gates, weighted by the probability of the pair."
    n, f_hat, i_hat = len(f), 0, 0
    p_f, p_i = forget_logits.softmax(-1), input_logits.softmax(-1)
    for opens in range(n):
        for closes in range(n):
            keep, write = torch.arange(n) >= opens, torch.arange(n) < closes
            f_hat += p_f[opens]*p_i[closes]*torch.where(keep & write, f, keep.float())
            i_hat += p_f[opens]*p_i[closes]*torch.where(keep & write, i, write.float())
    return f_hat, i_hat

def test_mean_of_hard_rules():
    f, i, *logits = torch.randn(4, 9)
    f, i = f.sigmoid(), i.sigmoid()
    close(combine_gates(f, i, *master_gates(*logits))[:2], mean_of_hard_rules(f, i, *logits), eps=1e-6)

def test_properties():
    f, i = torch.rand(2, 5, 12)
    f_tilde, i_tilde = master_gates(*torch.randn(2, 5, 4))       # a batch of 5, 4 levels
    f_hat, i_hat, omega = combine_gates(f, i, f_tilde, i_tilde)  # 12 cells: chunks of 3
    assert (f_tilde.diff(dim=-1) >= 0).all()                     # one rises
    assert (i_tilde.diff(dim=-1) <= 0).all()                     # one falls
    close(omega[:, 3:6], (f_tilde*i_tilde)[:, 1:2].expand(5, 3)) # a level serves its three cells
    F, I = f_tilde.repeat_interleave(3, -1), i_tilde.repeat_interleave(3, -1)
    close(f_hat, F*(f*I + 1 - I))                                # the paper's second form
    close(i_hat, I*(i*F + 1 - F))
    assert (f_hat <= F + 1e-6).all() and (f_hat >= F*f - 1e-6).all()  # between f_tilde * f and f_tilde

def test_known_cases():
    f, i = torch.rand(2, 5, 12)
    f_tilde, i_tilde = master_gates(*torch.randn(2, 5, 4))
    close(combine_gates(f, i, torch.ones(5, 4), torch.ones(5, 4))[:2], (f, i))  # masters open: an LSTM
    ones, f, i = torch.ones(5, 4), *torch.rand(2, 5, 4)
    close(combine_gates(ones, ones, f_tilde, i_tilde)[:2], (f_tilde, i_tilde))  # LSTM open: masters alone

@pytest.mark.parametrize('live_top', [False, True])
def test_gradients(live_top):
    def rule(f, i, a, b): return combine_gates(f, i, *master_gates(a, b, live_top))[:2]
    gates = [torch.rand(2, n, dtype=torch.float64, requires_grad=True) for n in (6, 6, 3, 3)]
    assert gradcheck(rule, gates)                                # 2 x 6 cells

@pytest.mark.parametrize('shapes, words', [
    ((10, 10, 4, 4), '10 cells cannot be shared among 4 levels'),
    ((0, 0, 0, 0), '0 cells cannot be shared among 0 levels'),
    ((4, 4, 4, 1), '4 and 4 cells, 4 and 1 levels'),             # would be spread over all levels
    ((4, 1, 4, 4), '4 and 1 cells')])
def test_refused_gates(shapes, words):
    with pytest.raises(ValueError, match=words): combine_gates(*(torch.rand(n) for n in shapes))

def test_refused_logits():
    with pytest.raises(ValueError, match='3 forget levels but 4 input levels'):
        master_gates(torch.rand(3), torch.rand(4))
    with pytest.raises(ValueError, match='torch.LongTensor'):
        master_gates(torch.tensor([1, 2]), torch.tensor([1, 2]))

# --- the top level

def mean_size_by_level(live_top, D=60, C=10, steps=300):
    "Mean |c| of each level over a long run of random gates."
    g = torch.Generator().manual_seed(1)
    c, total = torch.zeros(D), torch.zeros(D)
    for _ in range(steps):
        master = master_gates(*(2*torch.randn(2, D//C, generator=g)), live_top)
        f, i, c_hat = torch.randn(3, D, generator=g)
        f_hat, i_hat, _ = combine_gates(f.sigmoid(), i.sigmoid(), *master)
        c = f_hat*c + i_hat*c_hat.tanh()
        total += c.abs()
    return (total/steps).view(D//C, C).mean(1)

def test_dead_top():
    sizes = mean_size_by_level(False)
    assert sizes[-1] < 1e-5 < .05 < sizes[:-1].min()             # nothing but rounding errors
    f_tilde, i_tilde = master_gates(*(30*torch.randn(2, 1000, 6, dtype=torch.float64)))
    close(f_tilde[:, -1], torch.ones(1000), eps=1e-12)           # whatever the logits
    close(i_tilde[:, -1], torch.zeros(1000), eps=1e-12)
    equal([dead_cells(10), dead_cells(10, live_top=True)], [10, 0])

def test_warning():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        levels(100, 5)                                           # exactly 5 % is not more than 5 %
        levels(1150, 10)                                         # the paper's size
        levels(100, 10, live_top=True)
        with pytest.raises(UserWarning, match=r'10 of 100 cells \(10%\)'): levels(100, 10)
        with pytest.raises(UserWarning, match='100 of 100 cells'): levels(100, 100)

def test_live_top():
    f_tilde, i_tilde = master_gates(torch.zeros(3), torch.zeros(3), live_top=True)
    close(f_tilde, torch.tensor([.25, .5, .75]))                 # by hand: the last sum, 1, is dropped
    close(f_tilde, i_tilde.flip(0))                              # rising and falling are mirror images
    logits = torch.randn(2, 5, 7)
    f_tilde, i_tilde = master_gates(*logits, live_top=True)
    equal(f_tilde.shape, (5, 7))
    assert (f_tilde[:, -1] < 1).all() and (i_tilde[:, -1] > 0).all()  # the top can be erased and written
    for ours, papers in zip(master_gates(*(logits + 60), live_top=True), master_gates(*logits)):
        close(ours, papers, eps=1e-6)                            # large logits: the paper's gates again
    assert mean_size_by_level(True).min() > .05                  # every level is in use
