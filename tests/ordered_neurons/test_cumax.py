"cumax: three routes to one number, extreme logits, precision, and what is refused."
import math
import pytest, torch
from fastcore.test import test_close as close
from fastcore.test import test_eq as equal
from torch.autograd import gradcheck
from torch.autograd.functional import jacobian
from lotterybook.ordered_neurons.cumax import cumax

def through_logarithms(x): return (x.logcumsumexp(-1) - x.logsumexp(-1, True)).exp()

def closed_form(x):
    "All derivatives: row k, column j."
    n, p, g = len(x), x.softmax(0), cumax(x)
    return p*(torch.ones(n, n, dtype=x.dtype).tril() - g[:, None])

def test_by_hand():
    close(cumax(torch.tensor([0., math.log(2), 0.])), torch.tensor([.25, .75, 1.]))

def test_definition_enumerated():
    torch.manual_seed(0)
    x = torch.randn(5, 7); g = cumax(x)
    close(g, x.softmax(-1) @ torch.ones(7, 7).triu())    # every gate, weighted by its probability
    close(cumax(x.T, dim=0), g.T)                        # along another axis
    close(g, through_logarithms(x))                      # a third route

def test_properties():
    torch.manual_seed(0)
    x = torch.randn(5, 7); g = cumax(x)
    assert (g.diff(dim=-1) >= 0).all()                   # a higher rank is never more closed
    close(g[:, -1], torch.ones(5))                       # the last one is always open
    close(cumax(x + 3), g)                               # only differences of logits matter
    close(1 - g[:, :-1], cumax(x.flip(-1)).flip(-1)[:, 1:]) # closed at k: opens at k + 1 or later
    equal(cumax(torch.randn(3, 1)), torch.ones(3, 1))    # a single neuron can only be open

def test_mean_of_sampled_gates():
    torch.manual_seed(0)
    n, samples = 20, 2000
    x = -.02*(torch.arange(n) - 9.)**2
    places = torch.multinomial(x.softmax(0), samples, replacement=True)
    ranked = (torch.arange(n) >= places[:, None]).float()
    assert (ranked.diff(dim=-1) >= 0).all()
    assert (ranked.mean(0) - cumax(x)).abs().max() < 4*.5/samples**.5  # four standard errors of a coin

def test_temperature():
    x = torch.tensor([.3, -1., 2., .5, 1.])
    close(cumax(x/1e4), torch.arange(1, 6)/5, eps=1e-4)  # hot: a ramp
    equal(cumax(x/1e-3), torch.tensor([0., 0, 1, 1, 1])) # cold: a step at the largest logit
    close(cumax(torch.zeros(5)/1e-3), torch.arange(1, 6)/5)  # a tie stays a tie

def test_gradient():
    torch.manual_seed(0)
    x = torch.randn(6, dtype=torch.float64)
    J = jacobian(cumax, x)
    close(J, closed_form(x), eps=1e-12)
    step = 1e-6*torch.eye(6, dtype=torch.float64)
    close(J, (cumax(x + step) - cumax(x - step)).T/2e-6, eps=1e-8)  # finite differences
    close(J.sum(1), torch.zeros(6), eps=1e-12)           # shifting all logits changes nothing
    close(J[-1], torch.zeros(6), eps=1e-12)              # the last gate is 1 whatever the logits
    assert J.tril().ge(0).all() and J.triu(1).le(0).all()  # opens from j on, closes below
    assert J.abs().max() <= .25                          # p(1 - p) at most, as for a sigmoid
    y = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda y: cumax(y/.7, dim=0), y)    # another axis, another temperature

@pytest.mark.parametrize('big', [1e4, 1e30])
def test_large_logits(big):
    equal(cumax(torch.tensor([-big, big, -big, 0.])), torch.tensor([0., 1, 1, 1]))

def test_gradient_of_large_logits():
    x = torch.tensor([-1e4, 1e4, 0., 1e4], requires_grad=True)
    cumax(x)[:3].sum().backward()
    close(x.grad, torch.tensor([0., .5, 0., -.5]))       # undecided between two places, never NaN
    x = torch.tensor([-1e4, 1e4, 0.], requires_grad=True)
    cumax(x)[:2].sum().backward()
    equal(x.grad, torch.zeros(3))                        # decided: flat

def test_infinite_and_nan_logits():
    equal(cumax(torch.tensor([-math.inf, 0., -math.inf])), torch.tensor([0., 1, 1]))  # forbidden places
    assert cumax(torch.tensor([0., math.nan, 0.])).isnan().all()  # NaN is passed on, not hidden

@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_precision(dtype):
    torch.manual_seed(0)
    x = torch.randn(500, 115).to(dtype); g = cumax(x)
    assert g.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert (g.double() - through_logarithms(x.double())).abs().max() < 64*eps  # some units in the last place
    assert g.max() <= 1 + 8*eps and g.min() >= 0

@pytest.mark.parametrize('x, words', [(torch.tensor([1, 2]), 'torch.LongTensor'),
                                      (torch.tensor([True, False]), 'torch.BoolTensor')])
def test_refused(x, words):
    with pytest.raises(ValueError, match=words): cumax(x)
