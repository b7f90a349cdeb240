"Controls keep and change what they say; searches of many seeds, of any parts."
import json, math
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
import matplotlib
import matplotlib.pyplot as plt
import pytest, torch
from torch import nn
from torch.nn import functional as F
from ticket_loops import (
    batches, cross_entropy, digits, files, idle, make_run, mlp, stranger, unheld, with_sgd)
from sameness import same
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.plots import Method
from lotterybook.foundations.networks import lenet
from lotterybook.foundations.randomness import rng
from lotterybook.foundations.running import Run, advance, seeded
from lotterybook.foundations.sweeps import RunFailed
from lotterybook.foundations.training import evaluate
from lotterybook.pruning.allocation import global_
from lotterybook.pruning.masks import full_masks, kept, remaining
from lotterybook.pruning.schedules import cubic, pruner
from lotterybook.pruning.scores import random_scores
from lotterybook.tickets import replicates
from lotterybook.tickets.controls import CONDITIONS, Condition, control_run, permuted, shuffled_masks
from lotterybook.tickets.iterative import find_ticket
from lotterybook.tickets.replicates import (
    draw_search, finished_runs, run_one, runs_before, search, search_plan, search_settings,
    table_row)
from lotterybook.tickets.rounds import first_run, trained
from lotterybook.tickets.ticket_files import Ticket
torch.set_num_threads(1)
matplotlib.use('Agg')

validation = digits.x_validation, digits.y_validation
CONTROLS = [name for name in CONDITIONS if name != 'ticket']
prune = pruner(.45)

def measured(run):
    "A stranger's loop that ends with a number."
    stranger(run)
    return evaluate(run.net, *validation)[0]

def later_run(seed, k=6):
    "A run of k steps, in an order of its own seed, with momentum."
    return advance(with_sgd(seed), cross_entropy, seeded(batches, seed), k)

MAKES = dict(from_0=make_run, from_step_k=later_run)

@pytest.fixture(scope='module', params=MAKES)
def found(request):
    "A search of three rounds: how its runs are made, and its tickets."
    make = MAKES[request.param]
    return make, find_ticket(make, measured, prune, rounds=3, progress=False)

def control(name, found, round=2, seed=0, prune=prune):
    make, tickets = found
    return control_run(name, tickets.__getitem__, make, seed, round, prune)

def begins(run):
    "Weights and masks that a run begins with."
    return snapshot(run.net), run.masks

# --- how it is called

@pytest.mark.parametrize('name', CONTROLS)
def test_tickets_as_a_list_or_by_round(name, found):
    make, tickets = found
    a, b = (control_run(name, given, make, 0, 2, prune) for given in (tickets, tickets.__getitem__))
    assert same(begins(a), begins(b))

@pytest.mark.parametrize('name', ['one_shot', 'magnitude_at_init'])
def test_the_prune_of_another_search(name, found):
    "Gives a control of another size: refused where the ticket is at hand."
    make, tickets = found
    with pytest.raises(ValueError, match=f'{name} keeps .* weights, and the ticket of round 2 .*: give control_run'):
        control_run(name, tickets, make, 0, 2, pruner(.2))

@pytest.mark.parametrize('name', ['ticket', 'shuffle', 5])
def test_no_such_condition(name, found):
    make, tickets = found
    with pytest.raises(ValueError, match=f'unknown condition {name!r}'): control_run(name, tickets, make, 0, 2, prune)

# --- what each keeps, and what it changes

@pytest.mark.parametrize('name', CONTROLS)
@pytest.mark.parametrize('round', [1, 3])
def test_counts_and_step(name, round, found):
    "As many weights in each layer as the ticket, zeros at zero; its step and round."
    run, ticket = control(name, found, round), found[1][round]
    assert kept(run.masks) == kept(ticket.masks)
    for k, m in run.masks.items(): assert not run.net.get_parameter(k)[~m].any()
    assert (run.step, run.round, run.seed) == (first_run(found[0], 0).step, round, 0)
    assert run.net.training and not run.stopped and not run.rows

@pytest.mark.parametrize('name', CONTROLS)
def test_a_control_is_what_its_row_says(name, found):
    "Weights of theta_0 or none of them; the ticket's mask, a shuffled one, or one by size."
    (weights, masks), ticket, dense = begins(control(name, found)), found[1][2], found[1][0]
    row = CONDITIONS[name]
    for k, m in masks.items():
        ours, theirs = weights[k][m], ticket.theta_0[k][m]
        if row.weights == 'theta_0': assert torch.equal(ours, theirs)
        elif row.weights == 'theta_0, permuted':
            assert torch.equal(ours.sort().values, theirs.sort().values) and (ours != theirs).float().mean() > .8
        else: assert (ours != theirs).all() and abs(ours.std()/theirs.std() - 1) < .5
        old, (share, differ) = ticket.masks[k], (m.float().mean(),
                                                 (m ^ ticket.masks[k]).float().mean())
        by_chance = 2*share*(1 - share)
        if row.mask == "the ticket's": assert torch.equal(m, old)
        elif 'shuffled' in row.mask:
            assert abs(differ - by_chance) < 5*by_chance/math.sqrt(m.numel())
        else:
            by = dense.theta_T if 'trained' in row.mask else dense.theta_0
            least = by[k].abs()[m].min()
            assert (by[k].abs()[~m] <= least).all() and 0 < differ < by_chance
    for k in weights.keys() - masks.keys():
        assert torch.equal(weights[k], ticket.theta_0[k]) or row.weights == 'drawn anew'

@pytest.mark.parametrize('name', CONTROLS)
def test_the_same_draw_again(name, found):
    "The same for a seed and a round, another for others; the caller's generator stays."
    torch.manual_seed(5); want = torch.rand(2); torch.manual_seed(5)
    a, b = (control(name, found).state_dict() for _ in range(2))
    assert torch.equal(torch.rand(2), want) and same(a, b)
    assert not same(begins(control(name, found, round=3)), begins(control(name, found)))
    if name in ('reinit', 'shuffled', 'random', 'permuted'):
        def as_round(round):
            return begins(CONDITIONS[name].make(found[1][2], found[0], 0, round, prune))
        assert not same(as_round(2), as_round(3))  # of the same ticket: the draw is another
        assert not same(begins(control(name, found, seed=1)), begins(control(name, found)))

def test_controls_are_independent(found):
    "No two of a round share a mask that was drawn, or weights that were."
    runs = {name: begins(control(name, found)) for name in CONTROLS}
    for a, b in [('shuffled', 'random'), ('one_shot', 'magnitude_at_init')]:
        assert not any(torch.equal(runs[a][1][k], runs[b][1][k]) for k in runs[a][1])
    assert not (runs['reinit'][0]['3.bias'] == runs['random'][0]['3.bias']).any()

def test_one_shot_of_one_round_is_the_search(found):
    "After one round there is no difference."
    assert same(control('one_shot', found, 1).masks, found[1][1].masks)
    assert not same(control('one_shot', found, 2).masks, found[1][2].masks)

@pytest.mark.parametrize('name', CONTROLS)
def test_the_ticket_stays(name, found):
    "A control changes nothing of the tickets it is made from, nor does its training."
    before = [snapshot_of(t) for t in found[1]]
    trained(control(name, found), measured)
    assert same([snapshot_of(t) for t in found[1]], before)

def snapshot_of(ticket):
    return {part: {k: v.clone() for k, v in getattr(ticket, part).items()}
            for part in ('theta_0', 'masks', 'theta_T')}

@pytest.mark.parametrize('pruning', [pruner(.5, allocation=global_), pruner(.5, random_scores),
                                     pruner(cubic(.2, 3))],
                         ids=['together', 'by chance', 'schedule'])
@pytest.mark.parametrize('name', ['one_shot', 'magnitude_at_init'])
def test_at_once_by_any_pruning(name, pruning):
    "As often as the search has pruned, by the same function: the same number of weights."
    tickets = find_ticket(make_run, measured, pruning, rounds=3, progress=False)
    run = control(name, (make_run, tickets), 3, prune=pruning)
    assert remaining(run.masks) == remaining(tickets[3].masks)
    assert torch.equal(run.net[1].bias, tickets[0].theta_0['1.bias'])

def test_halved_together():
    "50,200 weights ranked together and halved twice, exactly."
    halve = pruner(.5, allocation=global_)
    tickets = find_ticket(lambda seed: Run(lenet(64, seed=seed)), idle, halve, rounds=2, progress=False)
    run = control('one_shot', (lambda seed: Run(lenet(64, seed=seed)), tickets), 2, prune=halve)
    assert sum(kept(run.masks).values()) == 12_550

def test_every_order_is_as_likely():
    "Shape and kind stay; of three places each is kept a third of the time."
    one = {'w': torch.tensor([[True, False, False]])}
    places = []
    for seed in range(300):
        mask = shuffled_masks(one, rng(seed, 'try'))['w']
        assert mask.shape == (1, 3) and mask.dtype == torch.bool and mask.sum() == 1
        places.append(mask.flatten().tolist().index(True))
    assert all(60 < places.count(place) < 140 for place in range(3))
    assert one['w'].tolist() == [[True, False, False]]

def numbered(seed):
    "Two layers of the same numbers, their names not by alphabet; Adam's moments tell which number they are of."
    net = nn.Sequential(OrderedDict(b=nn.Linear(9, 4), a=nn.Linear(9, 4)))
    with torch.no_grad():
        for p in net.parameters(): p.copy_(torch.arange(1., p.numel() + 1).view_as(p))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.)
    for p in net.parameters(): p.grad = p.detach().clone()
    optimizer.step()
    return Run(nn.DataParallel(net), optimizer, full_masks(net), seed)

def drawn(seed):
    net = nn.Sequential(OrderedDict(b=nn.Linear(9, 4), a=nn.Linear(9, 4)))
    return Run(net, masks=full_masks(net), seed=seed)

def ticket_of_numbers(kept, names=('b.weight', 'a.weight')):
    mask = (torch.arange(36) % (36//kept) == 0).view(4, 9)
    return Ticket(snapshot(numbered(0).net), {k: mask.clone() for k in names})

def test_orders_of_permuted():
    "One for each seed, round and layer; all moments go along; a ticket from a file, by alphabet, has the same."
    seen = set()
    for seed, round in product(range(2), (1, 2)):
        run  = permuted(ticket_of_numbers(12), numbered, seed, round)
        file = permuted(ticket_of_numbers(12, ('a.weight', 'b.weight')), numbered, seed, round)
        for k, m in run.masks.items():
            p = run.net.module.get_parameter(k)
            seen.add(tuple(p[m].tolist()))
            assert torch.equal(p, file.net.module.get_parameter(k))
            for moment, want in (('exp_avg', .1*p), ('exp_avg_sq', .001*p**2)):
                torch.testing.assert_close(run.optimizer.state[p][moment], want)
    assert len(seen) == 8

@pytest.mark.parametrize('name', ['shuffled', 'random'])
def test_masks_of_a_ticket_from_a_file(name):
    "A ticket from a file, by alphabet, gets the random masks of the same ticket in memory."
    one, file = (CONDITIONS[name].make(ticket_of_numbers(12, names), drawn, 0, 1).masks
                 for names in (('b.weight', 'a.weight'), ('a.weight', 'b.weight')))
    assert not one['a.weight'].equal(one['b.weight'])
    for k in one: assert one[k].equal(file[k])

def test_every_order_of_permuted_is_as_likely():
    "Of three weights: each of the six orders a sixth of the time."
    def order(round): return tuple(permuted(ticket_of_numbers(3), numbered, 0, round).net.module.a.weight[ticket_of_numbers(3).masks['a.weight']].tolist())
    found = [order(round) for round in range(300)]
    assert len(set(found)) == 6 and all(25 < found.count(o) < 80 for o in set(found))

# --- rewinding to step k

@pytest.mark.parametrize('name', CONTROLS)
def test_controls_of_a_later_start(name):
    "Those of theta_k have its momentum, too, under their mask; those drawn anew have another."
    tickets = find_ticket(later_run, measured, prune, rounds=2, progress=False)
    run     = control(name, (later_run, tickets))
    first   = first_run(later_run, 0)
    assert run.step == 6 and same(snapshot(first.net), tickets[2].theta_0)
    for k, m in run.masks.items():
        theirs, ours = (o.optimizer.state[o.net.get_parameter(k)]['momentum_buffer']
                        for o in (first, run))
        assert ours.any() and not ours[~m].any()
        assert torch.equal(ours, theirs*m) == (CONDITIONS[name].weights == 'theta_0')
        if name == 'permuted':  # each moment has gone with its weight
            def pairs(weights, moments): return sorted(zip(weights[m].tolist(), moments[m].tolist()))
            assert pairs(run.net.get_parameter(k), ours) == pairs(first.net.get_parameter(k), theirs)

def test_a_control_is_trained_from_its_step():
    "The library's loop goes on from step k, for ticket and control alike."
    seen = []
    def train(run):
        seen.append(run.step)
        return advance(run, cross_entropy, batches, 10).step
    tickets = find_ticket(later_run, train, prune, rounds=1, progress=False)
    assert trained(control('shuffled', (later_run, tickets), 1), train) == 10 and seen == [6, 6, 6]

# --- a loop of the user's own is seeded like the ticket

@pytest.mark.parametrize('name', CONTROLS)
def test_the_same_control_three_times(name, found):
    "By a loop that shuffles: the same number and weights each time, whatever was drawn in between."
    ends = []
    for meanwhile in range(3):
        torch.manual_seed(meanwhile)
        run = control(name, found)
        ends.append((trained(run, measured), snapshot(run.net)))
    assert same(ends[0], ends[1]) and same(ends[1], ends[2])

def test_ticket_and_control_see_the_same_batches(found):
    "In the same order, in every round; another seed sees another order."
    def order(run):
        seen = []
        stranger(run, between=lambda run, i: seen.append(torch.rand(()).item()))
        return seen
    a, b, c = (trained(run, order) for run in (
        control('reinit', found), control('one_shot', found, 3), first_run(found[0], 0)))
    assert a == b == c != trained(first_run(found[0], 1), order)
    assert [t.settings['outcome']
            for t in find_ticket(found[0], order, prune, rounds=1, progress=False)] == [a, a]

def test_a_control_is_watched(found):
    "A loop that does not hold its mask is refused."
    with pytest.raises(ValueError, match='pruned weights are not zero'):
        trained(control('shuffled', found),
                partial(stranger, inside=unheld, after=lambda run: run.held.zero()))

# --- what is refused

@pytest.mark.parametrize('name', ['reinit', 'random'])
def test_weights_that_are_not_drawn_anew(name):
    "The control would be the ticket itself."
    def always(seed): return Run(mlp(7))
    with pytest.warns(UserWarning, match='same weights whatever the seed'):
        tickets = find_ticket(always, idle, rounds=1, progress=False)
    with pytest.raises(ValueError, match="the ticket's own weights again"):
        control(name, (always, tickets), 1)

@pytest.mark.parametrize('name', ['one_shot', 'magnitude_at_init'])
def test_a_dense_ticket_that_is_pruned(name, found):
    "At once from round 0 only."
    with pytest.raises(ValueError, match='a dense ticket is needed, round 0'):
        CONDITIONS[name].make(found[1][1], found[0], 0, 1, prune)

def test_one_shot_of_an_untrained_ticket(found):
    "There is nothing to rank."
    with pytest.raises(ValueError, match='has no theta_T'):
        CONDITIONS['one_shot'].make(found[1][0]._replace(theta_T=None), found[0], 0, 1, prune)

@pytest.mark.parametrize('name', CONTROLS)
def test_old_form(name, found):
    "A network function in the place of `make_run` gets the message that shows the new form."
    with pytest.raises(ValueError, match='def make_run.seed'):
        control(name, (lambda: mlp(), found[1]))

# --- a search of many seeds, of parts of one's own

def small_parts(settings):
    "A search whose training returns a single number."
    return make_run, partial(scored, settings), pruner(settings['rate'])

def scored(settings, run):
    stranger(run)
    return round(evaluate(run.net, *validation)[1], 6)

small = dict(rate=.5, rounds=2)

@pytest.fixture
def one():
    "An executor of one thread."
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=[1]) as pool: yield pool

def searched(out, one, conditions=('ticket', 'reinit'), settings=small, parts=small_parts,
             seeds=range(2), **options):
    plan = search_plan(settings['rounds'], seeds, conditions, **options)
    return search(settings, plan, out, parts=parts, executor=one, progress=False)

def test_a_training_that_returns_a_number(tmp_path, one):
    "It stands in the table as its outcome; the same by hand."
    rows = searched(tmp_path, one)
    assert [tuple(o) for o in rows] == [('seed', 'round', 'condition', 'remaining', 'outcome')]*10
    make, train, pruning = small_parts(small)
    tickets = find_ticket(make, train, pruning, rounds=2, seed=1, progress=False)
    by = {(o['seed'], o['round'], o['condition']): o for o in rows}
    for r, t in enumerate(tickets):
        assert by[1, r, 'ticket']['outcome'] == t.settings['outcome']
        assert by[1, r, 'ticket']['remaining'] == remaining(t.masks)
    run = control_run('reinit', tickets.__getitem__, make, 1, 2, pruning)
    assert by[1, 2, 'reinit']['outcome'] == trained(run, train)

@pytest.mark.parametrize('outcome, columns', [
    (None, []), ('text', ['outcome']), ([1, 2], []),
    (dict(a=1, b=2., c='d', e=[3], f=None, g=True), ['a', 'b', 'c', 'g']),
    (dict(seconds=3., loss=.5), ['loss'])], ids=['None', 'text', 'list', 'dict', 'seconds'])
def test_what_stands_in_the_table(outcome, columns, tmp_path, one):
    "Numbers and text of what the training returned."
    def parts(settings): return make_run, lambda run: outcome, prune
    rows = searched(tmp_path, one, parts=parts, seeds=[0])
    assert all(list(o) == ['seed', 'round', 'condition', 'remaining', *columns] for o in rows)
    assert [table_row(o) for o in finished_runs(tmp_path)] == rows

def test_run_by_run(tmp_path):
    "One run after another, in a folder: the same control three times gives the same number."
    for r in range(3):
        run_one(dict(seed=0, round=r, condition='ticket'), small, tmp_path, small_parts)
    for name in CONTROLS:
        ends = [run_one(dict(seed=0, round=2, condition=name), small, tmp_path, small_parts)
                for _ in range(3)]
        assert len({o['outcome'] for o in ends}) == 1 and {o['remaining'] for o in ends} == {.25}
    assert sorted(files(tmp_path)) == [f'ticket-seed0-round{r}.safetensors' for r in range(3)]

def test_a_later_start_run_by_run(tmp_path, one):
    "Controls of a search that goes back to step k, in a folder; the ticket's start is kept there."
    def parts(settings): return later_run, measured, prune
    rows = searched(tmp_path, one, CONDITIONS, parts=parts, seeds=[0])
    tickets = find_ticket(later_run, measured, prune, rounds=2, progress=False)
    for o in rows:
        t = tickets[o['round']]
        if o['condition'] == 'ticket': want = t.settings['outcome']
        else: want = trained(control(o['condition'], (later_run, tickets), o['round']), measured)
        assert o['outcome'] == want and o['remaining'] == remaining(t.masks)
    assert '.ticket-seed0-start' in files_of(tmp_path)

def files_of(folder): return {p.name for p in folder.iterdir() if p.suffix != '.lock'}

class Stops(Exception): pass

def test_stopped_and_started_again(tmp_path, one):
    "In the middle of any run, with other draws in between: the same rows and the same tickets."
    whole, n = searched(tmp_path/'whole', one), [0]
    def parts(settings, stop):
        make, train, pruning = small_parts(settings)
        def stopping(run):
            n[0] += 1
            if n[0] == stop: stranger(run, between=lambda run, i: (_ for _ in ()).throw(Stops()))
            return train(run)
        return make, stopping, pruning
    for stop in (1, 3, 4):
        n[0] = 0
        with pytest.raises(RunFailed, match='Call the sweep again'):
            searched(tmp_path/'broken', one, parts=partial(parts, stop=stop))
        torch.manual_seed(stop)
    assert searched(tmp_path/'broken', one) == whole
    def tickets(name): return {p.name: p.read_bytes()
                               for p in (tmp_path/name).glob('*.safetensors')}
    assert tickets('broken') == tickets('whole') and len(tickets('whole')) == 6

@pytest.mark.parametrize('other, why', [(dict(rate=.4), 'rate was 0.5, is 0.4'),
                                        (dict(lr=1.), 'lr was not given, is 1.0')])
def test_another_search_in_the_folder(other, why, tmp_path, one):
    "Refused by name; more rounds and seeds are the same search."
    searched(tmp_path, one)
    with pytest.raises(ValueError, match=why): searched(tmp_path, one, settings=small | other)
    rows = searched(tmp_path, one, settings=dict(small, rounds=3), seeds=range(3))
    assert len(rows) == 3*(4 + 3)
    assert json.loads((tmp_path/'search.json').read_text())['rounds'] == 3

class NextLetter(nn.Module):
    "A language model, as small as they come: letters to logits of the next."
    def __init__(self, letters=27, width=16):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(letters, width), nn.LSTM(width, width)
        self.out = nn.Linear(width, letters)
    def forward(self, ids): return self.out(self.rnn(self.embed(ids))[0])

words = 'the cat sat on the mat and the dog sat on the log '*8
text  = torch.tensor([(ord(c) - 96) % 32 % 27 for c in words]).view(8, -1).t()

def letters_run(seed):
    net = NextLetter()
    return Run(net, torch.optim.Adam(net.parameters(), .02),
               full_masks(net, include='rnn.weight*', exclude='out.*'))

def nats(net, ids): return F.cross_entropy(net(ids[:-1]).flatten(0, 1), ids[1:].flatten())

def letters_parts(settings):
    def windows(start, end): return (text[step % 30:step % 30 + 12] for step in range(start, end))
    def train(run): return nats(advance(run, nats, windows, settings['steps']).net, text).item()
    return letters_run, train, pruner(.5)

def test_a_language_model(tmp_path, one):
    "Replicates and controls of something that classifies nothing; a figure of its own measure."
    rows = searched(tmp_path, one, CONDITIONS, dict(rounds=2, steps=15), letters_parts, seeds=[0])
    assert len(rows) == 3 + 2*6 and all(0 < o['outcome'] < 4 for o in rows)
    assert all(abs(o['remaining'] - .5**o['round']) < .001 for o in rows)
    assert len({o['outcome'] for o in rows if o['round'] == 2}) == 7
    ax, = draw_search(rows, measures=['outcome']).axes
    assert ax.get_ylabel() == 'outcome'
    plt.close('all')

def test_classification_is_one_case(tmp_path, one):
    "The parts by name are as any others."
    settings = search_settings('digits', rounds=1, steps=20, eval_every=10, compiled=False)  # as parts of one's own
    plan = search_plan(1, [0], ['ticket', 'one_shot'])
    a = search(settings, plan, tmp_path/'a', executor=one, progress=False)
    def parts(settings): return replicates.classification_parts(settings)
    assert search(settings, plan, tmp_path/'b', parts=parts, executor=one, progress=False) == a

# --- a condition of one's own

def signs(ticket, make_run, seed, round=0, prune=None):
    "The ticket's mask and signs, all sizes alike. Zhou et al. (2019)."
    run = first_run(make_run, seed)
    with torch.no_grad():
        for k, m in ticket.masks.items():
            p = run.net.get_parameter(k)
            p.copy_(p.sign()*p[m].abs().mean())
    run.set_masks(ticket.masks)
    return run

def late(dense, make_run, seed, round, prune):
    "Starts from the trained dense weights."
    assert all(m.all() for m in dense.masks.values())
    run = first_run(make_run, seed)
    run.net.load_state_dict(dense.theta_T)
    for run.round in range(1, round + 1): run.set_masks(prune(run))
    return run

@pytest.fixture
def own(monkeypatch):
    "Two rows more in the table."
    for name, look, after, make in (('signs', Method('#123456', '*', 'signs alone'), 'ticket',
                                     signs),
                                    ('late', Method('#654321', 'x', 'not rewound'), 'dense', late)):
        monkeypatch.setitem(CONDITIONS, name, Condition(look, 'own', 'own', after, make))
    return ['ticket', 'signs', 'late']

def test_plan_of_own_conditions(own):
    "They stand in the plan, after what they need."
    plan = search_plan(2, [0], own)
    want = [(0, 'ticket'), *((r, name) for r in (1, 2) for name in own)]
    assert [(o['round'], o['condition']) for o in plan] == want
    assert runs_before(plan[-1]) == [dict(seed=0, round=0, condition='ticket')]
    assert runs_before(plan[-2]) == [dict(seed=0, round=2, condition='ticket')]
    with pytest.raises(ValueError,
                       match="unknown condition 'luck'; known are ticket, .*signs, late"):
        search_plan(2, [0], ['ticket', 'luck'])

def test_search_of_own_conditions(own, tmp_path, one):
    "They are trained, have rows in the table, curves in the figure, and files in the folder."
    rows = searched(tmp_path, one, own)
    assert len(rows) == 2*(3 + 2*2) and {o['condition'] for o in rows} == set(own)
    assert len({o['outcome'] for o in rows if (o['seed'], o['round']) == (0, 2)}) > 1
    assert {o['remaining'] for o in rows if o['round'] == 2} == {.25}
    assert searched(tmp_path, None, own) == rows  # done is done
    assert sorted(map(str, map(table_row, finished_runs(tmp_path)))) == sorted(map(str, rows))
    fig = draw_search(rows, measures=('outcome',))
    colors = {line.get_color() for line in fig.axes[0].lines}
    assert {'#123456', '#654321'} <= colors
    assert {'signs alone', 'not rewound'} <= {t.get_text() for t in fig.axes[0].texts}
    plt.close('all')

def test_a_folder_with_conditions_that_are_gone(own, tmp_path, one, monkeypatch):
    "What was done under a row that is no longer there can still be read."
    rows = searched(tmp_path, one, own, seeds=[0])
    monkeypatch.delitem(CONDITIONS, 'signs')
    assert {o['condition'] for o in finished_runs(tmp_path)} == {o['condition'] for o in rows}

def test_no_row_is_left_out_of_a_figure(own, tmp_path, one, monkeypatch):
    "Rows of a condition that is no longer in the table are drawn under their name."
    rows = searched(tmp_path, one, own, seeds=[0])
    monkeypatch.delitem(CONDITIONS, 'signs')
    ax, = draw_search(rows, measures=['outcome']).axes
    assert {'signs', 'not rewound'} <= {t.get_text() for t in ax.texts}
    plt.close('all')

def test_the_table_is_whole():
    "Every row has a function, a look and what it is made from; the ticket alone has no function."
    for name, row in CONDITIONS.items():
        assert (row.make is None) == (name == 'ticket') and row.after in ('ticket', 'dense')
        assert row.look.color and row.look.label and row.weights in ('theta_0', 'theta_0, permuted', 'drawn anew')
    assert len({o.look.color for o in CONDITIONS.values()}) == len(CONDITIONS)
