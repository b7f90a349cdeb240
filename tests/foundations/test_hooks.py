"Hooks that every training needs: rates, clipping, losses that are no numbers, the bar."
import math
import platform
import subprocess
import sys
from io import StringIO
import pytest, torch
from torch import nn
from tqdm import tqdm
from kills import Kill
from sameness import same
from lotterybook.foundations.checkpoints import advance_kept
from lotterybook.foundations.hooks import ClipGradient, FiniteLoss, LearningRate, ShowProgress
from lotterybook.foundations.running import Hook, Run, advance
torch.set_num_threads(1)

def linear_run(masks=None, **options):
    net = nn.Linear(3, 1)
    nn.init.zeros_(net.weight); nn.init.zeros_(net.bias)
    return Run(net, torch.optim.SGD(net.parameters(), **dict(lr=.01, momentum=.9) | options), masks)

def total(net, x): return net(x).sum()

def ones(start, end): return (torch.ones(1, 3) for _ in range(start, end))

class Sees(Hook):
    "What stands there when the optimizer steps."
    def __init__(self, what): self.what = what
    def before_step(self, run): run.rows.append(self.what(run))

def rates(run): return [group['lr'] for group in run.optimizer.param_groups]

# --- LearningRate

def test_rate_of_each_step():
    "The step's own rate, counted from 0, before the step is taken; also where a run goes on."
    hooks = [LearningRate(lambda run: .1/(1 + run.step)), Sees(rates)]
    run = advance(linear_run(), total, ones, 2, hooks)
    advance(run, total, ones, 4, hooks)
    assert run.rows == [[.1], [.1/2], [.1/3], [.1/4]]
    one = advance(linear_run(momentum=0.), total, ones, 1, [LearningRate(lambda run: .5)])
    assert one.net.bias == -.5

def test_rate_of_all_groups():
    "Every group of weights gets it, whatever rate it had."
    net = nn.Linear(3, 1)
    groups = [dict(params=[net.weight], lr=.1), dict(params=[net.bias], lr=.2)]
    run = Run(net, torch.optim.SGD(groups))
    advance(run, total, ones, 2, [LearningRate(lambda run: run.step + .5), Sees(rates)])
    assert run.rows == [[.5, .5], [1.5, 1.5]]

def test_rate_by_batch():
    "It is given the run, so a rate may depend on the batch."
    def batches(start, end): return (torch.ones(step + 1, 3) for step in range(start, end))
    hooks = [LearningRate(lambda run: len(run.batch)/10), Sees(rates)]
    assert advance(linear_run(), total, batches, 3, hooks).rows == [[.1], [.2], [.3]]

# --- ClipGradient

def lengths(run): return sum(p.grad.square().sum() for p in run.net.parameters()).sqrt().item()

@pytest.mark.parametrize('length, want', [(1., 1.), (2., 2.), (3., 2.), (math.inf, 2.)])
def test_clipping(length, want):
    "No longer than `length`, all together; a shorter one stays. By hand: (1, 1, 1, 1) is 2 long."
    run = advance(linear_run(), total, ones, 1, [ClipGradient(length), Sees(lengths)])
    assert math.isclose(run.rows[0], want, rel_tol=1e-5)

def test_clipping_comes_after_the_mask():
    "Pruned weights do not count: a gradient that is short without them is not clipped."
    mask = {'weight': torch.tensor([[True, False, False]])}
    run  = advance(linear_run(mask), total, ones, 1, [ClipGradient(1.5), Sees(lengths)])
    assert run.rows == [pytest.approx(math.sqrt(2))]
    assert run.net.weight.grad.tolist() == [[1, 0, 0]]

# --- FiniteLoss

def losses_like(*values):
    "An objective whose loss of each step is given by its batch, and the batches."
    def batches(start, end): return (torch.tensor(values[step]) for step in range(start, end))
    return lambda net, x: x + 0*net.weight.sum(), batches

bad = [1.]*7 + [math.nan, 1., math.inf] + [1.]*10  # steps 7 and 9

@pytest.mark.parametrize('every, at', [(1, 8), (5, 10), (10, 10), (100, None)])
def test_the_first_bad_step(every, at):
    "Named, counted from 0, with its loss; seen at the next look, and not at all where none comes."
    run = linear_run()
    if at is None:
        assert advance(run, *losses_like(*bad), 20, [FiniteLoss(every)]).step == 20
        return
    with pytest.raises(FloatingPointError, match='the loss of step 7 is nan: training stopped'):
        advance(run, *losses_like(*bad), 20, [FiniteLoss(every)])
    assert run.step == at

def test_the_last_losses_are_looked_at():
    "After `end`, and where another hook stops the run: no run ends with one that is not finite."
    class Stop(Hook):
        def after_step(self, run): run.stopped = run.step == 9
    for hooks in ([FiniteLoss(100, 9)], [Stop(), FiniteLoss(100)]):
        with pytest.raises(FloatingPointError, match='step 7 is nan'):
            advance(linear_run(), *losses_like(*bad), 9, hooks)

@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_all_that_is_not_finite(value):
    "Infinite on either side, or NaN; large numbers are fine."
    with pytest.raises(FloatingPointError, match=f'step 1 is {value}'):
        advance(linear_run(), *losses_like(1e38, value), 2, [FiniteLoss(2)])

def test_a_replicate_that_is_not_finite():
    "One of a stack is enough; all its losses are told."
    def objective(net, x): return torch.stack([x, torch.ones(())]) + 0*net.weight.sum()
    with pytest.raises(FloatingPointError, match=r'step 7 is \[nan, 1.0\]'):
        advance(linear_run(), objective, losses_like(*bad)[1], 20, [FiniteLoss(10)])

def test_the_right_step_after_a_kill(tmp_path):
    "A run that was killed and resumed, or begun late, names the same step."
    def do(run, more=()):
        return advance_kept(run, *losses_like(*bad), 20, [FiniteLoss(10), *more],
                            file=tmp_path/'run', settings={}, every=4)
    with pytest.raises(KeyboardInterrupt): do(linear_run(), [Kill(6)])
    for _ in range(2):  # the error, too, can be met again
        with pytest.raises(FloatingPointError, match='step 7 is nan'): do(linear_run())
    late = advance(linear_run(), *losses_like(*bad), 4)
    with pytest.raises(FloatingPointError, match='step 7 is nan'):
        advance(late, *losses_like(*bad), 20, [FiniteLoss(10)])

def test_losses_are_forgotten_after_a_look():
    "What is kept of them does not grow with the run."
    run = linear_run()
    for end, left in ((3, 3), (5, 0), (13, 3)):
        advance(run, total, ones, end, [FiniteLoss(5)])
        assert len(run.extra.get('losses', ())) == left

def test_losses_of_an_older_file():
    "There they are a list, of some or of none."
    for before in ([], [torch.tensor(1.), torch.tensor(math.nan)]):
        run = advance(linear_run(), total, ones, 2)
        run.extra['losses'] = before
        if not before: advance(run, total, ones, 4, [FiniteLoss(3)])
        else:
            with pytest.raises(FloatingPointError, match='step 1 is nan'): advance(run, total, ones, 4, [FiniteLoss(3)])

def test_losses_of_another_shape_after_a_look():
    "As of a last batch that is smaller, each loss looked at by itself."
    def vector(net, x): return net(x).flatten()
    def batches(start, end): return (torch.ones(5 - step, 3) for step in range(start, end))
    assert advance(linear_run(), vector, batches, 3, [FiniteLoss(1)]).step == 3

PAGE_FAULTS = """
import resource, torch
from torch import nn
from lotterybook.foundations.fast_steps import keep_freed_memory
from lotterybook.foundations.hooks import FiniteLoss
from lotterybook.foundations.running import Run, advance
torch.set_num_threads(1)
keep_freed_memory()
net  = nn.Linear(8, 10_000)
x, y = torch.randn(700, 8), torch.zeros(700, dtype=torch.long)
run  = Run(net, torch.optim.SGD(net.parameters(), lr=.1))
def loss(net, batch): return nn.functional.cross_entropy(net(x), y)
def numbers(start, end): yield from range(start, end)
def steps(end): advance(run, loss, numbers, end, [FiniteLoss(1000)])
steps(30)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
steps(40)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)/10)
"""

@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='memory is kept with glibc only')
def test_kept_losses_take_no_place_of_large_tensors():
    "Where freed memory is kept, a step with 28 megabytes of logits gets no new memory: 7,000 pages."
    said = subprocess.run([sys.executable, '-c', PAGE_FAULTS], capture_output=True, text=True, check=True)
    assert float(said.stdout) < 1000

@pytest.mark.parametrize('every', [0, 2.5])
def test_wrong_every(every):
    "Refused by its name."
    with pytest.raises(ValueError, match=f'every={every}'): FiniteLoss(every)

# --- ShowProgress

def a_bar(total, **options): return tqdm(total=total, file=StringIO(), disable=False, **options)

def test_bar_stands_at_the_step():
    "Wherever the run or the bar begins; one bar serves two trainings."
    run, bar = linear_run(), a_bar(9)
    advance(run, total, ones, 4, [ShowProgress(bar)]); assert bar.n == 4
    advance(run, total, ones, 9, [ShowProgress(bar)]); assert bar.n == 9
    run = advance(linear_run(), total, ones, 4)
    bar = a_bar(9, initial=2)
    advance(run, total, ones, 5, [ShowProgress(bar)]); assert bar.n == 5

def test_bar_moves_every_so_often():
    "It stands still in between."
    moves = []
    class Bar:
        n, total = 0, 9
        def update(self, steps): self.n += steps; moves.append(self.n)
    advance(linear_run(), total, ones, 9, [ShowProgress(Bar(), 3)])
    assert moves == [3, 6, 9]

def test_no_bar():
    "None shows nothing, and changes nothing."
    a, b = (advance(linear_run(), total, ones, 3, hooks) for hooks in ([], [ShowProgress(None)]))
    assert same(a.state_dict(), b.state_dict())
