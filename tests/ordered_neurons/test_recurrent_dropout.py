"Dropout with one mask for a sequence: shapes, means, both scalings of DropConnect, and what is refused."
import pytest, torch
from fastcore.test import test_close as close
from fastcore.test import test_eq as equal
from torch.nn.utils.rnn import pack_padded_sequence
from lotterybook.ordered_neurons.recurrent_dropout import SCALINGS, drop_connect, locked_dropout

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def test_locked():
    x = torch.ones(5, 3, 1000)
    y = locked_dropout(x, .3)
    assert (y == y[:1]).all()                            # one mask for all steps
    assert (y[0, 0] != y[0, 1]).any()                    # another for each sequence
    close(y.unique(), torch.tensor([0., 1/.7]))          # dropped, or scaled up
    assert abs(y[0].mean() - 1) < .05                    # 3,000 samples: a deviation of .012 is usual
    equal(locked_dropout(x, .3, training=False), x)
    equal(locked_dropout(x, 0.), x)

def test_packed():
    "The same masks, packed or not."
    lengths = torch.tensor([4, 2, 1])
    packed = pack_padded_sequence(torch.ones(4, 3, 50), lengths)
    sequence_of = torch.cat([torch.arange(b) for b in packed.batch_sizes])
    equal(sequence_of.tolist(), [0, 1, 2, 0, 1, 0, 0])
    torch.manual_seed(1); rows = locked_dropout(packed.data, .5, sequence_of=sequence_of)
    torch.manual_seed(1); dense = locked_dropout(torch.ones(4, 3, 50), .5)
    equal(rows, pack_padded_sequence(dense, lengths).data)

def test_connect():
    U = torch.ones(400, 400)
    close(drop_connect(U, .45).unique(), torch.tensor([0., 1/.55]))
    close(drop_connect(U, .45, scaling='released').unique(), torch.tensor([0., 1.]))
    equal(drop_connect(U, .45, training=False), U)
    close(drop_connect(U, .45, training=False, scaling='released'), .55*U)

@pytest.mark.parametrize('scaling', SCALINGS)
def test_mean(scaling):
    "In the mean, training and evaluation agree: 160,000 samples, .002 is usual."
    U = torch.ones(400, 400)
    assert abs(drop_connect(U, .45, True, scaling).mean() - drop_connect(U, .45, False, scaling).mean()) < .01

def test_conversion():
    "The same mask in both scalings: they differ by one number, so stored weights convert by it."
    U = torch.ones(400, 400)
    torch.manual_seed(2); a = drop_connect(U, .45)
    torch.manual_seed(2); b = drop_connect(U/.55, .45, scaling='released')
    close(a, b)
    close(drop_connect(U, .45, False), drop_connect(U/.55, .45, False, 'released'))

def test_gradient():
    U = torch.ones(400, 400, requires_grad=True)
    dropped = drop_connect(U, .45); dropped.sum().backward()
    close(U.grad, dropped)                               # a dropped weight gets no gradient

def test_training_on_after_conversion():
    g, moved = torch.randn(20, 20), []                   # gradient of the weight that is used
    for scaling, stored in (('inverted', torch.ones(20, 20)), ('released', torch.ones(20, 20)/.55)):
        stored.requires_grad_()
        torch.manual_seed(4); (g*drop_connect(stored, .45, scaling=scaling)).sum().backward()
        moved.append(drop_connect(stored.grad, .45, False, scaling))  # change in evaluation, per learning rate
    close(moved[0], moved[1]/.55**2, eps=1e-5)

@pytest.mark.parametrize('call, words', [
    (lambda: locked_dropout(torch.ones(2, 2, 2), 1.), 'dropout=1.0'),
    (lambda: locked_dropout(torch.ones(2, 2), .5), r'shape \(2, 2\)'),
    (lambda: locked_dropout(torch.ones(5, 2), .5, sequence_of=torch.tensor([0])),
     r'sequence_of has shape \(1,\) for 5 rows'),        # would give all rows one mask
    (lambda: drop_connect(torch.ones(2, 2), -.1), 'weight_dropout=-0.1'),
    (lambda: drop_connect(torch.ones(2, 2), .1, scaling='awd'), "unknown scaling 'awd'")])
def test_refused(call, words):
    with pytest.raises(ValueError, match=words): call()
