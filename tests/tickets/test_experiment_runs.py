"One replicate of an experiment: rows, pairs, schedules, repeatability."
import pytest, torch
from sameness import same
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.tickets.experiment_runs import Replicate, retraining_run, rewinding_run
from lotterybook.tickets.retraining import WAYS
from lotterybook.tickets.rounds import first_run
torch.set_num_threads(1)

sgd = dict(optimizer='sgd', lr=.1, milestones=(.5, .75))
rewinding  = dict(data='digits', steps=30, rate=.5, rounds=[0, 2], points=5, recipes=dict(batchnorm_mlp=sgd))
retraining = dict(data='digits', net='lenet', recipe=sgd, steps=40, budgets=[10, 30], sizes=[20], rate=.5, rounds=[1, 2],
                  iterative_budget=30)

def test_training_in_pieces_is_training():
    "Step k has the rate and the batch of step k, however the training is divided."
    a = Replicate(retraining, 0)
    whole, pieces = first_run(a.make_run, 0), first_run(a.make_run, 0)
    a.train(whole)
    for end in (7, 20, 33, 40): a.train(pieces, end)
    assert same(snapshot(whole.net), snapshot(pieces.net))
    assert [a.rate(t) for t in (0, 19, 20, 29, 30)] == pytest.approx([.1, .1, .01, .01, .001])
    assert pieces.optimizer.param_groups[0]['lr'] == pytest.approx(.001)

def test_another_seed_has_another_order():
    replicate = Replicate(retraining, 0)
    a, b = (first_run(replicate.make_run, 0) for _ in range(2))
    b.seed = 1
    for run in (a, b): replicate.train(run, 3)
    assert not a.net.output.weight.equal(b.net.output.weight)

def test_rewinding_rows():
    rows = rewinding_run(dict(net='batchnorm_mlp', k=10, seed=0), rewinding)['rows']
    assert [(r['round'], r['condition']) for r in rows] == [(0, 'ticket'), (2, 'ticket'), (2, 'shuffled')]
    assert rows[1]['remaining'] == rows[2]['remaining'] < rows[0]['remaining'] == 1
    assert all(0 <= r['accuracy'] <= 1 and r['barrier'] >= 0 for r in rows)
    assert rows == rewinding_run(dict(net='batchnorm_mlp', k=10, seed=0), rewinding)['rows']
    assert rows != rewinding_run(dict(net='batchnorm_mlp', k=10, seed=1), rewinding)['rows']

def test_accuracy_of_a_ticket_is_that_of_its_search():
    "The first copy has the data order of the ticket itself, so the dense row is a plain training."
    a = Replicate(rewinding | dict(net='lenet'), 0)
    run = first_run(a.make_run, 0)
    a.train(run)
    right = (run.net.eval()(a.data.x_test).argmax(1) == a.data.y_test).float().mean().item()
    row = rewinding_run(dict(net='lenet', k=0, seed=0), rewinding)['rows'][0]
    assert row['accuracy'] == pytest.approx(right, abs=1e-6)

def test_retraining_rows():
    rows = retraining_run(dict(seed=0), retraining)['rows']
    once = [r for r in rows if r['mode'] == 'one-shot']
    assert rows[0]['way'] == 'dense' and len(once) == len(WAYS)*2
    assert {(r['size'], r['t']) for r in rows if r['mode'] == 'iterative'} == {(50, 30), (25, 30)}
    assert rows == retraining_run(dict(seed=0), retraining)['rows']
    value = {(r['way'], r['t']): r['accuracy'] for r in once}
    assert len({value[way, 30] for way in WAYS}) > 3  # ways differ
