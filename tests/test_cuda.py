"""Training, pruning and the search on a GPU.

Each test is skipped where there is none; the book's results are made on a CPU and do not rest on it. That is why this skip
is not one of those that LOTTERYBOOK_NO_SKIPS forbids: what can be installed is asked for there, and a GPU cannot be.
Sums are made in another order on a GPU, so it is compared to the CPU closely, and to itself to the last bit."""
import copy
from importlib.util import find_spec
import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from lotterybook.foundations.data import load
from lotterybook.foundations.fast_steps import FusedAdam
from lotterybook.foundations.deep_networks import build
from lotterybook.foundations.running import Run, seeded, take_step
from lotterybook.foundations.training import train, train_run
from lotterybook.ordered_neurons.on_lstm import ONLSTM
from lotterybook.ordered_neurons.recurrence import find_engine
from lotterybook.pruning.allocation import keep_top, per_layer
from lotterybook.pruning.masked_training import keep_pruned, revived
from lotterybook.pruning.masks import full_masks, remaining
from lotterybook.pruning.scores import magnitude
from lotterybook.tickets.iterative import find_ticket

DEVICE = 'cuda'
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU that PyTorch can use')

@pytest.fixture(scope='module')
def digits(): return load('digits')

def lenet(digits, seed=0): return build('lenet', digits, seed)

def half(net):
    "Masks that keep the larger half of each layer."
    return per_layer(magnitude(net, full_masks(net)), full_masks(net), .5)

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.parametrize('masked', [False, True])
def test_train_as_on_the_cpu(digits, masked):
    ends = {}
    for device in ('cpu', DEVICE):
        net = lenet(digits)
        masks = half(net) if masked else None
        row = train(net, digits, masks, steps=100, eval_every=50, device=device)
        if masked: assert sum(revived(net, masks).values()) == 0
        assert next(net.parameters()).device.type == device
        ends[device] = row
    cpu, gpu = ends['cpu'], ends[DEVICE]
    assert [look['step'] for look in gpu['history']] == [50, 100]
    for a, b in zip(cpu['history'], gpu['history']): assert b['validation_loss'] == pytest.approx(a['validation_loss'], rel=.05)
    for k in ('stop_accuracy', 'end_accuracy', 'train_accuracy'): assert gpu[k] == pytest.approx(cpu[k], abs=.03)

class Stop(Exception): pass

def test_resume_to_the_last_bit(digits, tmp_path):
    settings = dict(steps=200, eval_every=50, device=DEVICE)
    whole = lenet(digits)
    masks = half(whole)
    want = train(whole, digits, masks, **settings)
    calls = 0
    def stopped(logits, labels): # in the 131st step, after the checkpoint at 100
        nonlocal calls
        calls += 1
        if calls > 130: raise Stop
        return F.cross_entropy(logits, labels)
    kept = dict(checkpoint=tmp_path/'run', save_every=50)
    with pytest.raises(Stop): train(lenet(digits), digits, masks, loss=stopped, **kept, **settings)
    again = lenet(digits)
    got = train(again, digits, masks, **kept, **settings)
    assert same(again.state_dict(), whole.state_dict())
    assert {k: v for k, v in got.items() if k != 'seconds'} == {k: v for k, v in want.items() if k != 'seconds'}

def test_fused_adam_and_a_weight_that_lies_the_other_way(digits):
    x, y = digits.x_train[:60].to(DEVICE), digits.y_train[:60].to(DEVICE)
    ours = lenet(digits).to(DEVICE)
    theirs = copy.deepcopy(ours)
    assert not ours.layer1.weight.is_contiguous()
    adam, plain = FusedAdam(ours.parameters()), torch.optim.Adam(theirs.parameters(), lr=1.2e-3, fused=True)
    def step(net, optimizer):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    for _ in range(20): step(ours, adam); step(theirs, plain)
    for a, b in zip(ours.parameters(), theirs.parameters()): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    masks = half(ours) # on the GPU, as the weights are
    for on in (masks, {k: m.cpu() for k, m in masks.items()}): # masks may lie elsewhere
        with keep_pruned(ours, on, adam):
            for _ in range(3): step(ours, adam)
            assert sum(revived(ours, on).values()) == 0
            for k, p in ours.named_parameters():
                if k not in masks: continue
                moments = [m for m in adam.state[p].values() if m.shape == p.shape]
                assert [m[~masks[k]].abs().max().item() for m in moments] == [0, 0]

@pytest.mark.parametrize('n', [1, 1000, 300_000])
def test_keep_top(n):
    scores = torch.randint(0, 50, (n,), generator=torch.Generator().manual_seed(0)).float() # many ties
    alive = torch.rand(n, generator=torch.Generator().manual_seed(1)) < .7
    count = int(alive.sum())//3
    got = keep_top(scores.to(DEVICE), alive.to(DEVICE), count)
    assert got.device.type == DEVICE and got.sum() == count
    assert torch.equal(got.cpu(), keep_top(scores, alive, count))

def test_two_rounds_of_a_search(digits, tmp_path):
    trained = []
    def make_run(seed):
        net = lenet(digits, seed)
        return Run(net, FusedAdam(net.parameters()))
    def loop(run):
        trained.append(remaining(run.masks))
        return train_run(run, digits, steps=100, device=DEVICE, file=run.file)
    def search(): return find_ticket(make_run, loop, rounds=2, folder=tmp_path, settings={}, progress=False)
    tickets = search()
    assert [round(remaining(t.masks), 2) for t in tickets] == [1, .8, .64]
    for t in tickets: assert same(t.theta_0, tickets[0].theta_0)
    for before, after in zip(tickets, tickets[1:]): # a weight once gone is gone
        assert all((before.masks[k] | ~after.masks[k]).all() for k in after.masks)
    runs = len(trained)
    for kept, read in zip(tickets, search()): # from the files
        assert all(torch.equal(kept.masks[k].cpu(), read.masks[k].cpu()) for k in kept.masks)
    assert len(trained) == runs

def test_dropout_by_seed_and_step_on_the_device(digits):
    def batches(start, end): yield from ((None, step) for step in range(start, end))
    def draws(start): return [torch.rand(3, device=DEVICE) for _ in seeded(batches, 0)(start, 5)]
    torch.rand(1, device=DEVICE) # the device's generator is in use
    whole = draws(0)
    assert all(a.equal(b) for a, b in zip(whole[2:], draws(2))) and not whole[0].equal(whole[1])

def test_a_run_that_moves_between_rounds(digits):
    "Made and advanced on the CPU, its momentum too, then trained on the device"
    net = lenet(digits)
    run = Run(net, torch.optim.SGD(net.parameters(), .1, momentum=.9), half(net))
    run.batch = digits.x_train[:60], digits.y_train[:60]
    take_step(run, lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]), [])
    train_run(run, digits, steps=20, device=DEVICE)
    assert sum(revived(run.net, run.masks).values()) == 0
    assert all(m.device.type == DEVICE for state in run.optimizer.state.values() for m in state.values() if m is not None)

# --- ON-LSTM in Triton's kernels (page 145)

ordered = pytest.mark.skipif(not find_spec('triton'), reason='no Triton')

def twins(*sizes, dtype=torch.float64, **options):
    "The same layer on the CPU, in the plain loop, and on the GPU"
    torch.manual_seed(0)
    cpu = ONLSTM(*sizes, engine='loop', dtype=dtype, **options)
    gpu = ONLSTM(*sizes, engine='triton', dtype=dtype, **options)
    gpu.load_state_dict(cpu.state_dict())
    return cpu, gpu.to(DEVICE)

def everything(net, x, low=False):
    "Output, state, distances and the gradients of all of them"
    net.zero_grad()
    packed = not isinstance(x, torch.Tensor)
    data = (x.data if packed else x).clone().requires_grad_()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=low):
        output, state, distances = net(x._replace(data=data) if packed else data, return_distances=True)
    outs = [output.data if packed else output, *distances]
    for part in state: outs += part if isinstance(part, tuple) else [part] # a tensor for each layer where sizes differ
    weights = torch.Generator().manual_seed(1)
    sum((o.double()*torch.randn(o.shape, generator=weights, dtype=torch.float64).to(o.device)).sum() for o in outs).backward()
    return {str(i): o for i, o in enumerate(outs)} | dict(x=data.grad) | {k: p.grad for k, p in net.named_parameters()}

def close(a, b, rel):
    "Each of `a` is within `rel` of its largest number of its twin in `b`"
    assert a.keys() == b.keys()
    for k in a:
        error = (a[k].double().cpu() - b[k].double().cpu()).abs().max()
        assert error <= rel*b[k].double().abs().max().cpu() + 1e-30, (k, error)

@ordered
def test_auto_takes_triton(): assert find_engine('auto', torch.empty(0, device=DEVICE)) == 'triton'

@ordered
@pytest.mark.parametrize('dtype, rel', [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize('D, C, T, B, live_top', [(1150, 10, 6, 20, False), (64, 1, 20, 3, True), (30, 5, 1, 1, True), (12, 12, 9, 2, True), (400, 10, 5, 7, True)])
@pytest.mark.filterwarnings('ignore:.*can never be written')
def test_on_lstm_as_on_the_cpu(dtype, rel, D, C, T, B, live_top):
    cpu, gpu = twins(7, D, 2, dtype=dtype, chunk_size=C, live_top=live_top, bidirectional=True)
    x = torch.randn(T, B, 7, dtype=dtype)
    close(everything(gpu, x.to(DEVICE)), everything(cpu, x), rel)

@ordered
def test_on_lstm_packed():
    cpu, gpu = twins(7, [24, 18], chunk_size=6, live_top=True, bidirectional=True)
    sequences = [torch.randn(n, 7, dtype=torch.float64) for n in (3, 9, 1, 6)]
    close(*(everything(net, pack_sequence([s.to(device) for s in sequences], enforce_sorted=False)) for net, device in ((gpu, DEVICE), (cpu, 'cpu'))), 1e-10)

@ordered
@pytest.mark.parametrize('dtype, rel', [(torch.bfloat16, .06), (torch.float16, .01)])
def test_on_lstm_in_half_precision(dtype, rel):
    cpu, gpu = twins(7, 40, chunk_size=4, live_top=True)
    x = torch.randn(8, 5, 7, dtype=torch.float64)
    exact = everything(cpu, x)
    close(everything(gpu.to(dtype), x.to(DEVICE, dtype)), exact, rel)
    if dtype == torch.bfloat16: close(everything(gpu.to(torch.float32), x.to(DEVICE, torch.float32), low=True), exact, rel)

@ordered
def test_on_lstm_extremes():
    _, gpu = twins(7, 40, chunk_size=4, live_top=True, dtype=torch.float32)
    x = torch.randn(5, 3, 7, device=DEVICE)
    for o in everything(gpu, 1e4*x).values(): assert o.isfinite().all()
    x[2, 1, 0] = torch.nan # from there on, in that sequence only
    assert gpu(x)[0].isnan().any(-1).nonzero().tolist() == [[2, 1], [3, 1], [4, 1]]

@ordered
def test_on_lstm_exported_for_any_length():
    _, gpu = twins(7, 40, 2, chunk_size=4, live_top=True, dtype=torch.float32)
    gpu.eval()
    graph = torch.export.export(gpu, (torch.randn(6, 3, 7, device=DEVICE),), dynamic_shapes=(dict({0: torch.export.Dim('steps', min=2)}),)).module()
    for T in (2, 6, 40):
        x = torch.randn(T, 3, 7, device=DEVICE)
        torch.testing.assert_close(graph(x)[0], gpu(x)[0])

@ordered
def test_on_lstm_operation():
    x, U, h = (torch.randn(*shape, device=DEVICE, requires_grad=True) for shape in ((6, 30), (30, 6), (2, 6)))
    checks = torch.library.opcheck(torch.ops.lotterybook.on_lstm.default, (x, U, h, h.detach().clone().requires_grad_(), None, False, True))
    assert set(checks.values()) == {'SUCCESS'}

@ordered
def test_on_lstm_memory():
    "No more than the plain loop, at the paper's size"
    peaks = {}
    for engine in ('triton', 'loop'):
        net = ONLSTM(400, 1150, chunk_size=10, engine=engine, device=DEVICE)
        x = torch.randn(70, 20, 400, device=DEVICE)
        for _ in range(2): # the first call also makes what stays: the kernels, cuBLAS's workspace
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            net(x)[0].sum().backward()
            torch.cuda.synchronize()
            peaks[engine] = torch.cuda.max_memory_allocated() - before
            net.zero_grad()
    assert peaks['triton'] <= peaks['loop'], peaks
