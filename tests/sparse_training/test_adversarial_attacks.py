"Attacks stay in their box and leave the network alone; estimates of the gradient by hand; signs of a hidden gradient."
import copy
from functools import partial
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from lotterybook.foundations.networks import batchnorm_mlp
from lotterybook.foundations.randomness import rng
from lotterybook.sparse_training import adversarial_attacks as home
from lotterybook.sparse_training.adversarial_attacks import (
    WiderBackward, averaged_gradient, cross_entropies, fgsm, finite_differences, input_gradient, is_right, margin, pgd, random_search,
    robust_accuracy, surrogate_gradient, wider_backward)
from lotterybook.sparse_training.k_winners import KWinners, k_winners, with_k_winners
torch.set_num_threads(1)

def trained(share=None, steps=60):
    "A small classifier of four corners, and its data: which of two pixels is larger, and where."
    torch.manual_seed(0)
    x = torch.rand(64, 1, 2, 3)
    y = (x[:, 0, 0, 0] > x[:, 0, 1, 1]).long() + 2*(x[:, 0, 0, 2] > .5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 4))
    if share: net = with_k_winners(net, share)
    optimizer = torch.optim.Adam(net.parameters(), lr=.02)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net, x, y

NET, X, Y = trained()
HARD, _, _ = trained(share=.1)
ESTIMATES = dict(exact=input_gradient, averaged=averaged_gradient(4), differences=finite_differences(4),
                 surrogate=surrogate_gradient(NET), search=None)

def attack(kind, net=NET, x=X, y=Y, eps=.2, seed=0, steps=5):
    "One of the attacks."
    if kind == 'fgsm': return fgsm(net, x, y, eps)
    if kind == 'search': return random_search(net, x, y, eps, steps, rng(seed, 'attack'))
    return pgd(net, x, y, eps, steps, eps/2, rng(seed, 'attack'), ESTIMATES[kind])

KINDS = ['fgsm', *ESTIMATES]

@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=15, deadline=None)
@given(eps=st.floats(0, 1.5), seed=st.integers(0, 99))
def test_every_attack_stays_in_its_box(kind, eps, seed):
    "Within ε of the pixels, and between 0 and 1; edges of the box are reached up to float32's rounding."
    x = torch.rand(7, 1, 2, 3, generator=rng(seed, 'x'))
    z = attack(kind, x=x, y=Y[:7], eps=eps, seed=seed)
    assert z.shape == x.shape and z.min() >= 0 and z.max() <= 1
    assert (z - x).abs().max() <= eps + 1e-6

@pytest.mark.parametrize('kind', KINDS)
def test_nothing_is_changed(kind):
    "Weights, buffers, modes, gradients, what is frozen, the inputs and the global generator; a second call gives the same."
    net = batchnorm_mlp((1, 2, 3), 4, (8,), seed=0)
    net = nn.Sequential(net, nn.Dropout(.5))
    net[0].norm1.eval()
    net[0].layer1.weight.requires_grad_(False)
    net(X).sum().backward()
    before, grads = copy.deepcopy(net.state_dict()), [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    modes, x, stream = [o.training for o in net.modules()], X.clone().requires_grad_(), torch.get_rng_state()
    z = attack(kind, net, x)
    assert not z.requires_grad and torch.equal(x, X) and x.grad is None
    assert torch.equal(stream, torch.get_rng_state()) and modes == [o.training for o in net.modules()]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all((p.grad is None and g is None) or torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads))
    assert not net[0].layer1.weight.requires_grad and net[0].output.weight.requires_grad
    with torch.no_grad(): assert torch.equal(attack(kind, net, X), z)

def test_no_change_is_no_attack():
    for kind in KINDS: assert torch.equal(attack(kind, eps=0), X)

@pytest.mark.parametrize('eps', [-.1, float('nan')])
def test_odd_eps_is_refused(eps):
    with pytest.raises(ValueError, match='eps='): fgsm(NET, X, Y, eps)

def test_normalized_inputs_are_refused():
    "Else the clamp to [0, 1] would change them beyond ε, silently."
    with pytest.raises(ValueError, match='from -1.999 to -1'): pgd(NET, X - 2, Y, .1, 2, .1, rng(0))
    with pytest.raises(ValueError, match='not from 0 to 1'): random_search(NET, 255*X, Y, .1, 2, rng(0))

@pytest.mark.parametrize('call', [lambda: pgd(NET, X, Y, .1, 0, .1, rng(0)), lambda: random_search(NET, X, Y, .1, 0, rng(0)),
                                  lambda: averaged_gradient(0), lambda: finite_differences(0), lambda: robust_accuracy(NET, Y),
                                  lambda: WiderBackward(KWinners(.1), 0)])
def test_odd_sizes_are_refused(call):
    with pytest.raises(ValueError): call()

# --- losses and gradients

def test_margin_by_hand():
    logits = torch.tensor([[1., 3, 2], [5, 0, 0]])
    assert margin(logits, torch.tensor([2, 0])).tolist() == [1, -5]
    assert torch.equal(margin(NET(X), Y) > 0, ~is_right(NET, X, Y))

def test_the_gradient_of_an_example_is_its_own():
    "As computed alone, one at a time."
    alone = torch.cat([input_gradient(NET, x[None], y[None]) for x, y in zip(X, Y)])
    torch.testing.assert_close(input_gradient(NET, X, Y), alone)

def test_fgsm_by_hand():
    "Two pixels and two classes: logits x and 0. The loss of class 0 rises where the first weights are lowered."
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad(): net.weight.copy_(torch.tensor([[3., -1], [0, 0]]))
    z = fgsm(net, torch.tensor([[.5, .95]]), torch.tensor([0]), .1)
    torch.testing.assert_close(z, torch.tensor([[.4, 1]]))

def test_one_step_of_pgd_from_its_start_is_fgsm(monkeypatch):
    "With a start at the input itself, a step of ε is that of FGSM, where the class was right."
    monkeypatch.setattr(home, '_random', lambda x, *rest: torch.full_like(x, .5))
    y, ok = Y.clone(), torch.arange(64) > 5
    y[~ok] = (NET(X).argmax(1)[~ok] + 1) % 4  # another label: wrong from the beginning
    y[ok]  = NET(X).argmax(1)[ok]
    z = pgd(NET, X, y, .1, 1, .1, rng(0))
    torch.testing.assert_close(z[ok], fgsm(NET, X, y, .1)[ok])
    assert torch.equal(z[~ok], X[~ok])

def test_estimates_of_a_linear_network():
    "Where the loss is linear, the average is the gradient, and differences tend to it."
    net, x, y = nn.Linear(3, 2).double(), torch.rand(4, 3).double(), torch.tensor([0, 1, 1, 0])
    exact = input_gradient(net, x, y, loss=margin)
    torch.testing.assert_close(averaged_gradient(5)(net, x, y, rng(0)), exact)
    many = finite_differences(20_000)(net, x, y, rng(0))
    assert (many - exact).abs().max() < .05*exact.abs().max()

class Stairs(nn.Module):
    "Class 1 gains on each step of the stairs by x, and loses twice as much at the jump to the next."
    def forward(self, x):
        rise = x - 2*.1*(x/.1).detach().floor()
        return torch.cat([torch.zeros_like(rise), rise], 1)

def test_only_differences_see_the_jumps():
    "The gradient is +1 everywhere, and the loss falls: averaging gradients does not help."
    x, y = torch.full((1, 1), .55), torch.tensor([0])
    assert input_gradient(Stairs(), x, y, loss=margin).item() == 1
    assert averaged_gradient(50, .2)(Stairs(), x, y, rng(0)).item() == pytest.approx(1)
    assert -1.2 < finite_differences(2000, .2)(Stairs(), x, y, rng(0)).item() < -.8

def test_a_network_is_its_own_surrogate():
    a, b = (pgd(NET, X, Y, .1, 3, .05, rng(0), g) for g in (input_gradient, surrogate_gradient(NET)))
    assert torch.equal(a, b)

def test_wider_backward():
    "The same outputs, bit by bit; the gradient of as many outputs as are asked for."
    soft = wider_backward(HARD, .5)
    assert torch.equal(soft(X), HARD(X)) and not any(isinstance(o, WiderBackward) for o in HARD.modules())
    x = torch.randn(3, 10, requires_grad=True)
    for share, passing in ((.1, 1), (.4, 4), (1, 10)):
        g, = torch.autograd.grad(WiderBackward(KWinners(.1), share)(x).sum(), x)
        assert torch.equal(g, (k_winners(x.detach(), share) != 0).float()) and g.sum(1).tolist() == [passing]*3

# --- signs of a hidden gradient

@pytest.mark.parametrize('net, kind', [(NET, 'exact'), (HARD, 'differences'), (HARD, 'search')])
def test_without_a_limit_nothing_is_right(net, kind):
    "With ε = 1 every picture is allowed."
    assert robust_accuracy(net, Y, attack(kind, net, eps=1, steps=200)) == 0

@pytest.mark.parametrize('net', [NET, HARD])
@pytest.mark.parametrize('kind', list(ESTIMATES))
def test_more_steps_never_help_the_defence(net, kind):
    "Every example that few steps fool is fooled by more steps of the same generator."
    right = [is_right(net, attack(kind, net, eps=.15, steps=steps), Y) for steps in (1, 3, 10, 30)]
    for few, more in zip(right, right[1:]): assert not (more & ~few).any()

def test_more_attempts_never_help_the_defence():
    tries = [attack('exact', seed=seed, eps=.1) for seed in range(4)]
    found = [robust_accuracy(NET, Y, X, *tries[:n]) for n in range(5)]
    assert found == sorted(found, reverse=True) and found[0] == is_right(NET, X, Y).float().mean()
    assert found[1] < found[0]

def test_a_larger_box_never_helps_by_much():
    "The attack is no proof, but at four times ε it must find far more."
    few, many = (robust_accuracy(NET, Y, X, attack('exact', eps=eps, steps=20)) for eps in (.05, .2))
    assert many < few - .1

def test_an_attack_is_better_than_noise():
    noise = (X + .15*(torch.rand(X.shape, generator=rng(0)) - .5).sign()).clamp(0, 1)
    for kind in KINDS: assert robust_accuracy(NET, Y, attack(kind, eps=.15, steps=20)) <= robust_accuracy(NET, Y, noise)

def test_a_large_scale_of_logits_hides_the_gradient_of_cross_entropy():
    "The same classes, and a loss that is flat in float32; the margin is not."
    class Sure(nn.Module):
        def forward(self, x): return 1000*NET(x)
    z = fgsm(Sure(), X, Y, .2)
    by_margin = fgsm(Sure(), X, Y, .2, partial(input_gradient, loss=margin))
    assert robust_accuracy(Sure(), Y, z) > robust_accuracy(Sure(), Y, by_margin) + .2

def test_other_shapes_and_dtypes():
    "Vectors, double precision, and networks with convolutions."
    net, x = nn.Linear(5, 3).double(), torch.rand(4, 5).double()
    assert fgsm(net, x, Y[:4] % 3, .1).dtype == torch.float64
    assert pgd(net, x, Y[:4] % 3, .1, 2, .1, rng(0), finite_differences(2)).dtype == torch.float64
    conv = nn.Sequential(nn.Conv2d(1, 4, 2), KWinners(.2), nn.Flatten(), nn.Linear(8, 4))
    assert random_search(conv, X, Y, .1, 2, rng(0)).shape == X.shape
    assert cross_entropies(conv(X), Y).shape == Y.shape
