"`train_sparse` is `train_run`, only faster; loops and lists of the page are tested there."
import warnings
from functools import partial
import pytest
import torch
from torch import nn
from lotterybook.foundations.compiled_steps import _KeptWeights, CompiledStep
from lotterybook.foundations.data import load
from lotterybook.foundations.fast_steps import FusedAdam
from lotterybook.foundations.networks import lenet
from lotterybook.foundations.running import Hook, Run
from lotterybook.foundations.training import train_run
from lotterybook.pruning.allocation import per_layer
from lotterybook.pruning.masks import full_masks, remaining
from lotterybook.pruning.schedules import pruner
from lotterybook.pruning.scores import magnitude
from lotterybook.sparse_training.sparse_steps import train_sparse
from lotterybook.tickets.iterative import find_ticket

pytest.importorskip('numba')
digits = load('digits')

def pruned(rate, seed=0):
    "A network and the masks of its largest weights."
    net = lenet(64, seed=seed)
    masks = full_masks(net)
    if rate: masks = per_layer(magnitude(net, masks), masks, rate)
    return Run(net, FusedAdam(net.parameters()), masks, seed)

@pytest.mark.parametrize('rate', (0, .5, .8, .95))
def test_the_results_of_train_run(rate):
    fast, usual = pruned(rate), pruned(rate)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ours = train_sparse(fast, digits, 100, eval_every=20)
    theirs = train_run(usual, digits, 100, eval_every=20)
    assert ours.keys() == theirs.keys() and fast.step == usual.step == 100
    for a, b in zip(ours['history'], theirs['history'], strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    for p, q in zip(fast.net.parameters(), usual.net.parameters()):
        torch.testing.assert_close(p, q, atol=3e-4, rtol=1e-3)

def test_arguments_of_train_run():
    "By place and by name: rate, batch size, hooks; and it continues where the run stands."
    rates = []
    class Look(Hook):
        writes = False
        def after_step(self, run): rates.append(run.optimizer.param_groups[0]['lr'])
    def lr(step): return .001*(1 + step)
    def both(train):
        run = pruned(.9)
        train(run, digits, 10, 50, lr, hooks=[Look()])
        return train(run, digits, 20, 50, lr, eval_every=10)
    assert both(train_sparse)['history'][-1] == pytest.approx(both(train_run)['history'][-1])
    assert rates == [lr(step) for step in range(10)]*2

def test_a_search_by_sparse_steps():
    settings = dict(steps=60, eval_every=20)
    def search(train):
        return find_ticket(partial_run, partial(train, data=digits, **settings), pruner(.5),
                           rounds=4, progress=False)
    def partial_run(seed):
        net = lenet(64)
        return Run(net, FusedAdam(net.parameters()))
    fast, usual = search(train_sparse), search(train_run)
    for a, b in zip(fast, usual):
        same = sum(int((a.masks[k] == b.masks[k]).sum()) for k in a.masks)
        assert same > .995*sum(mask.numel() for mask in a.masks.values())
        assert remaining(a.masks) == remaining(b.masks)
        assert abs(a.settings['outcome']['stop_accuracy'] -
                   b.settings['outcome']['stop_accuracy']) < .02
        for name, mask in a.masks.items(): assert not a.theta_T[name][~mask].any()

def test_a_search_that_was_interrupted(tmp_path):
    def make_run(seed):
        net = lenet(64)
        return Run(net, FusedAdam(net.parameters()))
    def train(run): return train_sparse(run, digits, 40, eval_every=20, save_every=10, file=run.file)
    class Stop(Exception): pass
    class Interrupt(Hook):
        writes = False
        def after_step(self, run):
            if run.round == 2 and run.step == 25: raise Stop
    def interrupted(run):
        return train_sparse(run, digits, 40, eval_every=20, save_every=10, file=run.file,
                            hooks=[Interrupt()])
    keep = dict(rounds=3, progress=False, settings=dict(lr=1), folder=tmp_path/'a')
    with pytest.raises(Stop): find_ticket(make_run, interrupted, pruner(.6), **keep)
    again = find_ticket(make_run, train, pruner(.6), **keep)
    whole = find_ticket(make_run, train, pruner(.6), **keep | dict(folder=tmp_path/'b'))
    for a, b in zip(again, whole):
        assert a.settings == b.settings
        assert all(a.theta_T[k].equal(b.theta_T[k]) for k in a.theta_T)

def test_others_are_trained_as_ever():
    def other():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Dropout(.1), nn.Linear(20, 10))
        return Run(net, FusedAdam(net.parameters()), full_masks(net))
    with pytest.warns(UserWarning, match='usual way: the network is not') as said:
        ours = train_sparse(other(), digits, 30, eval_every=10)
    assert len(said) == 1 and ours == train_run(other(), digits, 30, eval_every=10)

@pytest.mark.parametrize('crossover, way', ((0, False), (1.1, True)))
def test_the_crossover_decides(crossover, way):
    run, step, seen = pruned(.5), CompiledStep(digits, crossover), []
    class Look(Hook):
        writes = False
        def after_step(self, run): seen.append(isinstance(step.way, _KeptWeights))
    train_run(run, digits, 3, step=step, hooks=[Look()])
    assert seen == [way]*3
