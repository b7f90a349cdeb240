"Training on attacked images: in its box, repeatable, robust; all attacks at once; the rows of the experiment."
from functools import partial
import pytest, torch
from sameness import same
from torch import nn
from torch.nn import functional as F
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.data import load
from lotterybook.foundations.networks import lenet
from lotterybook.foundations.running import Run, advance, seeded
from lotterybook.foundations.training import classification, example_batches
from lotterybook.sparse_training import adversarial_training
from lotterybook.sparse_training.adversarial_attacks import fgsm, is_right, robust_accuracy
from lotterybook.sparse_training.adversarial_training import STRENGTH, all_attacks, pgd_training, robustness_run
from lotterybook.sparse_training.k_winners import with_k_winners
torch.set_num_threads(1)

DATA = load('digits')
X, Y = DATA.x_test[:40], DATA.y_test[:40]
WEAK = dict(steps=5, estimate_steps=3, samples=2, directions=3, queries=20)

def run_of(objective, steps=150, seed=0, pieces=()):
    "LeNet-300-100, trained on digits."
    net = lenet(64, seed=seed)
    run = Run(net, torch.optim.Adam(net.parameters(), lr=2e-3), seed=seed)
    batches = seeded(example_batches(DATA.x_train, DATA.y_train, 50, seed), seed)
    for end in (*pieces, steps): advance(run, objective, batches, end)
    return run

PLAIN   = run_of(classification()).net
TRAINED = run_of(pgd_training(.1)).net
OTHER   = run_of(classification(), seed=1).net

# --- the objective

class Noted(nn.Module):
    "Remembers its inputs."
    def __init__(self):
        super().__init__()
        self.net, self.seen = lenet(64, seed=0), []
    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.net(x)

def test_the_attacked_images_by_hand():
    net, eps = Noted(), .15
    torch.manual_seed(3)
    loss = pgd_training(eps, steps=2, step_size=.1)(net, (X, Y))
    torch.manual_seed(3)
    z = (X + eps*(2*torch.rand_like(X) - 1)).clamp(0, 1)
    for seen in net.seen[:2]:
        assert torch.equal(z, seen)
        z = fgsm(net.net, z, Y, .1).clamp(X - eps, X + eps)
    assert len(net.seen) == 3 and torch.equal(net.seen[2], z)
    assert torch.equal(loss, F.cross_entropy(net.net(z), Y))

@pytest.mark.parametrize('eps, steps', [(.01, 1), (.1, 5), (.7, 3), (1., 2)])
def test_images_stay_in_the_box(eps, steps):
    net = Noted()
    pgd_training(eps, steps)(net, (X, Y))
    for z in net.seen: assert z.min() >= 0 and z.max() <= 1 and (z - X).abs().max() <= eps + 1e-6
    assert (net.seen[-1] - X).abs().max() > .9*min(eps, .99)

def test_images_that_are_wrong_are_attacked_further():
    "Else the training would see images just beyond the border; `pgd` stops there."
    net = Noted()
    wrong = (PLAIN(X).argmax(1) + 1) % 10
    net.net = PLAIN
    pgd_training(.1)(net, (X, wrong))
    losses = [F.cross_entropy(PLAIN(z), wrong).item() for z in net.seen]
    assert losses == sorted(losses) and losses[-1] > losses[0] + .3

def test_only_the_last_loss_has_a_gradient():
    "That of the attacked images: the attack itself leaves none in the weights."
    net = Noted()
    pgd_training(.1)(net, (X, Y)).backward()
    found = [p.grad.clone() for p in net.net.parameters()]
    net.net.zero_grad()
    F.cross_entropy(net.net(net.seen[-1]), Y).backward()
    assert same(found, [p.grad for p in net.net.parameters()])

def test_modes_stay():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(.5), nn.BatchNorm1d(8), nn.Linear(8, 10))
    net[3].eval()
    pgd_training(.1)(net, (X, Y))
    assert [o.training for o in net] == [True, True, True, False, True]

def test_training_in_pieces_is_training():
    "The random starts are a function of seed and step; nothing else in the process counts."
    torch.manual_seed(7)
    whole = run_of(pgd_training(.1), 12)
    torch.rand(5)
    pieces = run_of(pgd_training(.1), 12, pieces=(1, 5))
    assert same(snapshot(whole.net), snapshot(pieces.net))

def test_trained_on_attacks_it_resists_them_all():
    "More than a network trained on clean images, in the worst case."
    def worst(net): return robust_accuracy(net, Y, X, *all_attacks(net, X, Y, .1, OTHER, **WEAK).values())
    assert worst(TRAINED) > worst(PLAIN) + .2

@pytest.mark.parametrize('make', [lambda: pgd_training(0), lambda: pgd_training(-1), lambda: pgd_training(float('nan')),
                                  lambda: pgd_training(.1, 0), lambda: pgd_training(.1, 2.5, .1), lambda: pgd_training(8.), lambda: pgd_training(float('inf')),
                                  *(partial(pgd_training, .1, 2, step) for step in (0, -1., float('nan'), float('inf')))])
def test_odd_attacks_are_refused(make):
    "Before the first step, by the name of what is odd."
    with pytest.raises(ValueError, match='eps=|steps=|step_size='): make()

@pytest.mark.parametrize('x', [2*X, X - .5, X*float('nan')])
def test_inputs_that_are_no_pixels_are_refused(x):
    with pytest.raises(ValueError, match='not from 0 to 1'): pgd_training(.1)(PLAIN, (x, Y))

# --- all attacks

def test_all_attacks_stay_in_the_box_and_need_no_state():
    before = snapshot(PLAIN)
    found, again = (all_attacks(PLAIN, X, Y, .1, OTHER, **WEAK) for _ in range(2))
    assert same(found, again) and same(before, snapshot(PLAIN))
    for z in found.values(): assert z.min() >= 0 and z.max() <= 1 and 0 < (z - X).abs().max() <= .1 + 1e-6

def test_each_attack_has_random_numbers_of_its_own():
    "Another seed moves every attack but FGSM; a stronger one leaves the others as they are."
    found = all_attacks(PLAIN, X, Y, .1, OTHER, **WEAK)
    other = all_attacks(PLAIN, X, Y, .1, OTHER, 1, **WEAK)
    assert [k for k in found if torch.equal(found[k], other[k])] == ['fgsm']
    more = all_attacks(PLAIN, X, Y, .1, OTHER, **WEAK | dict(directions=9))
    assert [k for k in found if not torch.equal(found[k], more[k])] == ['finite_differences']

def test_transfer_uses_the_other_network():
    found, own = (all_attacks(PLAIN, X, Y, .1, net, **WEAK) for net in (OTHER, PLAIN))
    assert [k for k in found if not torch.equal(found[k], own[k])] == ['transfer']

def test_a_wider_backward_pass_is_for_k_winners():
    common = {'fgsm', 'pgd', 'pgd_margin', 'transfer', 'averaged_gradient', 'finite_differences', 'random_search'}
    assert all_attacks(PLAIN, X, Y, .1, OTHER, **WEAK).keys() == common
    assert all_attacks(with_k_winners(PLAIN, .2), X, Y, .1, OTHER, **WEAK).keys() == common | {'wider_backward'}

def test_unknown_strength_is_refused():
    with pytest.raises(ValueError, match='step'): all_attacks(PLAIN, X, Y, .1, OTHER, step=3)
    assert WEAK.keys() == STRENGTH.keys()

# --- a replicate of the experiment

settings = dict(data='digits', steps=60, images=40, sizes=[.1, .2], strength=WEAK,
                nets=dict(relu={}, winners=dict(share=.2), trained=dict(eps=.1), both=dict(share=.2, eps=.1)))

def rows_of(net, seed=0, **changes): return robustness_run(dict(net=net, seed=seed), settings | changes)['rows']

@pytest.mark.parametrize('net', settings['nets'])
def test_rows(net):
    rows = rows_of(net)
    value = {(r['attack'], r['eps']): r['accuracy'] for r in rows}
    assert len(value) == len(rows) and rows == rows_of(net) and rows != rows_of(net, 1)
    tried = 7 + (net in ('winners', 'both'))
    assert len(rows) == 2 + 2*(tried + 1) + 1
    for eps in (.1, .2):
        each = [v for (attack, e), v in value.items() if e == eps and attack != 'worst']
        assert len(each) == tried and value['worst', eps] <= min(each) and max(each) <= value['clean', 0]
    assert 0 <= value['pgd', 1] < .3 < value['test', 0]

def test_networks_of_a_seed_differ_only_as_they_say():
    assert len({tuple(r['accuracy'] for r in rows_of(net) if r['attack'] != 'wider_backward') for net in settings['nets']}) == 4
    assert rows_of('winners', nets=dict(winners={})) == rows_of('relu')

def test_the_network_is_that_of_the_loop():
    "Trained by hand with the same recipe, it has the same weights; they move a thousand times as far. Another rate would show."
    def by_hand(lr):
        net = lenet(64, seed=0)
        run = Run(net, torch.optim.Adam(net.parameters(), lr=lr), seed=0)
        advance(run, classification(), example_batches(DATA.x_train, DATA.y_train, 60, 0), 60)
        return net
    def apart(a, b): return max((p - q).abs().max().item() for p, q in zip(a.parameters(), b.parameters(), strict=True))
    net, ours = by_hand(1.2e-3), adversarial_training._trained(DATA, {}, 0, 60)
    assert apart(net, ours) < 1e-4 < .1*apart(by_hand(1.25e-3), ours)
    rows = {r['attack']: r['accuracy'] for r in rows_of('relu') if not r['eps']}
    def share(x, y): return pytest.approx(is_right(ours, x, y).float().mean().item())
    assert rows == dict(test=share(DATA.x_test, DATA.y_test), clean=share(X, Y))

@pytest.mark.parametrize('changes, why', [
    (dict(nets=dict(relu=dict(shares=.1))), 'not shares'), (dict(nets={}), "network 'relu'"), (dict(images=0), 'images=0'), (dict(images=10**6), 'images=1000000 is more'),
    (dict(nets=dict(relu=dict(eps=0))), 'eps=0'), (dict(nets=dict(relu=dict(eps=2.))), 'eps=2.0'), (dict(strength=dict(query=1)), "strength 'query'"),
    *((dict(sizes=sizes), 'sizes=') for sizes in ([-1.], [0], [.1, 1.], [float('nan')], [.1, .1]))], ids=str)
def test_odd_settings_are_refused(changes, why, monkeypatch):
    "Before any training: in the rows, ε = 1 is the attack without bounds, and each ε stands once."
    monkeypatch.setattr(adversarial_training, '_trained', None)
    with pytest.raises(ValueError, match=why): rows_of('relu', **changes)
