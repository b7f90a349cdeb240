"The state of a run in a file: whole, and of this run, or refused; the same bits after a kill."
import json, pickle
from functools import partial
from pathlib import Path
from zlib import crc32
import numpy as np
import pytest, torch
from torch import nn
from kills import Kill
from sameness import same
from lotterybook.foundations import files
from lotterybook.foundations.arguments import check_settings
from lotterybook.foundations.arguments import plain
from lotterybook.foundations.checkpoints import (
    advance_kept, checksum, load_run, save_run, snapshot, training_settings)
from lotterybook.foundations.data import load
from lotterybook.foundations.fast_steps import FusedAdam
from lotterybook.foundations.networks import batchnorm_mlp, lenet
from lotterybook.foundations.randomness import rng
from lotterybook.foundations.running import Hook, Run, advance, seeded
from lotterybook.foundations.training import classification, example_batches
torch.set_num_threads(1)
digits   = load('digits')
batches  = seeded(example_batches(digits.x_train, digits.y_train, 60, 0), 0)
settings = dict(lr=.01, data='digits', widths=(30, 20))

def beginning(seed=0):
    "All that has a state: batch norm, dropout, Adam, masks."
    net = batchnorm_mlp(64, 10, (30, 20), seed=seed)
    net.relu1 = nn.Sequential(nn.ReLU(), nn.Dropout(.5))
    masks = {'layer1.weight': torch.rand(30, 64, generator=rng(0, 'mask')) < .5}
    return Run(net, torch.optim.Adam(net.parameters(), lr=.01), masks)

class Notes(Hook):
    def after_step(self, run): run.rows.append(dict(step=run.step, loss=run.loss.item()))

def do(run, file=None, more=(), end=12, every=5):
    return advance_kept(run, classification(), batches, end, [Notes(), *more], file=file,
                        settings=settings, every=every)

@pytest.fixture
def file(tmp_path):
    "The file of a run of seven steps."
    return save_run(do(beginning(), end=7), tmp_path/'deep'/'run', settings)

def refused(file, why, given=settings, missing=()):
    "By both readers, with why and where; the run and the file stay as they are."
    run, content = do(beginning(), end=3), file.read_bytes()
    before = run.state_dict()
    go_on  = partial(advance_kept, run, classification(), batches, 12, file=file, settings=given)
    for call in (partial(load_run, run, file, given), go_on):
        with pytest.raises(ValueError) as e: call()
        assert why in str(e.value) and str(file) in str(e.value)
        assert same(run.state_dict(), before) and file.read_bytes() == content

# --- round trips

def test_read_back(file):
    "All of a run, into one that was made otherwise; strings will do as paths."
    run = beginning(seed=1)
    assert load_run(run, str(file), settings) is run and run.step == 7
    assert same(run.state_dict(), do(beginning(), end=7).state_dict())
    assert same(do(run).state_dict(), do(beginning()).state_dict())
    assert save_run(run, str(file), settings) == file

def test_rows_and_extra(tmp_path):
    "Tuples stay tuples; tensors, text, numbers and None keep their kinds."
    run = beginning()
    run.rows += [dict(step=1, pair=(1, 2.)), dict(step=2, none=None, word='a', yes=True)]
    state = (torch.ones(2), torch.zeros(1, 3)), [torch.tensor(3)]
    run.extra.update(state=state, seen=[], at=(1, ('b', .5)))
    run.stopped = True
    other = load_run(beginning(), save_run(run, tmp_path/'run', {}), {})
    assert same(other.state_dict(), run.state_dict()) and other.stopped
    assert same(other.extra['at'], (1, ('b', .5))) and same(other.rows[0]['pair'], (1, 2.))

@pytest.mark.parametrize('optimizer', [torch.optim.Adam, FusedAdam])
def test_layout_stays(optimizer, tmp_path):
    "A weight whose columns lie side by side, and its moments, lie so afterwards; the same bits."
    def make():
        net = lenet(64, seed=0)
        return Run(net, optimizer(net.parameters(), lr=.01))
    def go(run, end): return advance(run, classification(), batches, end)
    whole = go(make(), 8)
    run   = load_run(make(), save_run(go(make(), 4), tmp_path/'run', {}), {})
    for state in (run.state_dict(), go(run, 8).state_dict()):
        moments = state['optimizer']['state'][0]
        for t in (state['net']['layer1.weight'], moments['exp_avg'], moments['exp_avg_sq']):
            assert t.shape == (300, 64) and t.stride() == (1, 300)
    assert same(run.state_dict(), whole.state_dict())

def test_tied_weights_stay_shared(tmp_path):
    "One weight in two places is one weight in the file, and after it is read."
    def make():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 40))
        net[2].weight = net[0].weight
        return Run(net, torch.optim.SGD(net.parameters(), .01, momentum=.9))
    def go(run, end):
        def inputs(start, end): return (torch.ones(2, 40)*step for step in range(start, end))
        return advance(run, lambda net, x: net(x).square().mean(), inputs, end)
    file = save_run(go(make(), 3), tmp_path/'run', {})
    kept = torch.load(file)['run']['net']
    assert kept['0.weight'].data_ptr() == kept['2.weight'].data_ptr()
    run = load_run(make(), file, {})
    assert run.net[2].weight is run.net[0].weight
    assert same(go(run, 6).state_dict(), go(make(), 6).state_dict())

def test_tensors_and_plain_values_only(file):
    "The file is read by PyTorch's reader that runs no code."
    kept = torch.load(file, weights_only=True)
    assert kept.keys() == {'run', 'settings'} and kept['settings'] == plain(settings, 'settings')
    assert kept['run']['step'] == 7 and len(kept['run']['rows']) == 7

# --- files that are refused

def test_empty_and_truncated(file):
    "However much of the end is missing."
    whole = file.read_bytes()
    for size in (0, 1, 100, len(whole)//2, len(whole) - 30, len(whole) - 1):
        file.write_bytes(whole[:size])
        refused(file, 'is not the state of a run, or is damaged')

def test_damaged(file):
    "The directory at the end of the file, or its first record, overwritten."
    whole = file.read_bytes()
    for start in (0, len(whole) - 300):
        file.write_bytes(whole[:start] + b'\xff'*300 + whole[start + 300:])
        refused(file, 'is not the state of a run, or is damaged')

others = dict(text=b'lotterybook', json=json.dumps(dict(run={}, settings={})).encode(),
              pickle=pickle.dumps(dict(run={}, settings=settings), 2),
              archive=b'PK\x03\x04' + b'\0'*99)

@pytest.mark.parametrize('kind', others)
def test_files_of_others(kind, file):
    "Files that PyTorch did not write."
    file.write_bytes(others[kind])
    refused(file, 'is not the state of a run, or is damaged')

@pytest.mark.parametrize('content', [
    torch.ones(2), {}, [1], dict(weight=torch.ones(2)), dict(run={}),
    dict(run={}, settings=settings, epoch=3)])
def test_tensors_of_others(content, file):
    "A tensor, weights, the checkpoint of another library."
    torch.save(content, file)
    refused(file, 'holds tensors, but not the state of a run. Name another file.')

class Code:
    "Runs when it is unpickled."
    def __init__(self, file): self.file = file
    def __reduce__(self): return Path.touch, (self.file,)

def test_no_code_is_run(file, tmp_path):
    "A file with code in it is refused, and the code is not run."
    torch.save(dict(run=Code(tmp_path/'ran'), settings=settings), file)
    refused(file, 'is not the state of a run, or is damaged (UnpicklingError)')
    assert not (tmp_path/'ran').exists()

def test_no_file(tmp_path):
    "A missing file is that, and nothing else; a training just begins."
    with pytest.raises(FileNotFoundError): load_run(beginning(), tmp_path/'none', settings)
    assert do(beginning(), tmp_path/'none').step == 12

# --- settings

@pytest.mark.parametrize('given, told', [
    (dict(settings, lr=.02), 'lr was 0.01, is 0.02.'),
    (dict(settings, widths=(30, 30)), 'widths was [30, 20], is [30, 30].'),
    (dict(settings, momentum=.9), 'momentum was not given, is 0.9.'),
    (dict(lr=.01, data='digits'), 'widths was [30, 20], is not given.'),
    (dict(lr='0.01', data='mnist', steps=3),
     "lr was 0.01, is '0.01'; data was 'digits', is 'mnist'; widths was [30, 20], is not given; "
     'steps was not given, is 3.'),
    ({}, "lr was 0.01, is not given; data was 'digits', is not given; widths")])
def test_settings_of_another_run(given, told, file):
    "Compared both ways; all that differs is named."
    refused(file, f'is of another run: {told}', given)

def test_settings_written_otherwise(file):
    "Lists for tuples, another order, single numbers of tensors: the same settings."
    lr = torch.tensor(.01, dtype=torch.float64)
    given = dict(widths=[torch.tensor(30), np.int64(20)], lr=lr, data='digits')
    assert load_run(beginning(), file, given).step == 7
    save_run(load_run(beginning(), file, given), file, dict(given, lr=np.float32(.5)))
    assert load_run(beginning(), file, dict(settings, lr=.5)).step == 7

# --- written whole

@pytest.mark.parametrize('name', ['fsync', 'replace'])
def test_a_write_that_fails(name, file, monkeypatch):
    "The old file stays, and no part of the new one."
    def fail(*_): raise OSError('disk full')
    before = file.read_bytes()
    monkeypatch.setattr(files.os, name, fail)
    with pytest.raises(OSError, match='disk full'): save_run(beginning(), file, settings)
    with pytest.raises(OSError, match='disk full'): do(beginning(), file)  # from step 7 to 10
    assert file.read_bytes() == before and [*file.parent.iterdir()] == [file]

@pytest.mark.parametrize('odd', [np.ones(2), Path('a'), lambda step: .1])
def test_what_cannot_be_read_back(odd, file):
    "Refused when it is written, not after a kill, wherever it is; the old file stays."
    before = file.read_bytes()
    def fails(change, given=settings):
        run = beginning()
        change(run)
        with pytest.raises((ValueError, AttributeError, pickle.PicklingError)):
            save_run(run, file, given)
        assert file.read_bytes() == before and [*file.parent.iterdir()] == [file]
    fails(lambda run: run.rows.append(dict(score=odd)))
    fails(lambda run: run.extra.update(rate=odd))
    if not isinstance(odd, np.floating): fails(lambda run: None, dict(settings, lr=odd))  # a number

# --- advance_kept

@pytest.mark.parametrize('every', [0, -1, 1.5, True, None])
def test_wrong_every(every, tmp_path):
    "Refused before anything is trained, with a file and without."
    for file in (None, tmp_path/'run'):
        run = beginning()
        with pytest.raises(ValueError, match=f'every={every!r} must be'): do(run, file, every=every)
        assert run.step == 0 and not (tmp_path/'run').exists()

def test_without_a_file(tmp_path, monkeypatch):
    "As `advance`: nothing is written."
    monkeypatch.chdir(tmp_path)
    run = advance(beginning(), classification(), batches, 12, [Notes()])
    assert same(do(beginning()).state_dict(), run.state_dict()) and not [*tmp_path.iterdir()]

@pytest.mark.parametrize('step', range(12))
def test_killed_at_every_step(step, tmp_path):
    "In each step in turn, at each of its moments: the same bits as if left alone."
    whole = do(beginning()).state_dict()
    for moment in ('on_gradient', 'before_step', 'after_step'):
        kill = Kill(step + (moment == 'after_step'), moment)
        assert same(killed_once(kill, tmp_path/moment), whole)

def killed_once(kill, file):
    "The state after a kill, which may come before the first write."
    with pytest.raises(KeyboardInterrupt): do(beginning(), file, [kill])
    return do(beginning(seed=1) if file.exists() else beginning(), file).state_dict()

def test_steps_after_the_last_write_are_taken_again(tmp_path):
    "Killed in step 8 with a write every five: five, six and seven twice, and their rows once."
    pulled, file = [], tmp_path/'run'
    def watched(start, end):
        for step, batch in enumerate(batches(start, end), start): pulled.append(step); yield batch
    def do(run, more=()):
        return advance_kept(run, classification(), watched, 12, [Notes(), *more], file=file,
                            settings=settings, every=5)
    with pytest.raises(KeyboardInterrupt): do(beginning(), [Kill(8, 'before_step')])
    assert torch.load(file)['run']['step'] == 5
    run = do(beginning())
    assert pulled == [*range(9), *range(5, 12)]
    assert [row['step'] for row in run.rows] == [*range(1, 13)]

def test_written_after_all_hooks(tmp_path):
    "Whatever the last hook notes of a step is in the file of that step."
    with pytest.raises(KeyboardInterrupt): do(beginning(), tmp_path/'run', [Notes(), Kill(6)])
    rows = torch.load(tmp_path/'run')['run']['rows']
    assert [row['step'] for row in rows] == [step for step in range(1, 6) for _ in 'ab']

def test_a_finished_run(tmp_path):
    "It is written at its end, also between two writes; the same call only reads it."
    done = do(beginning(), tmp_path/'run').state_dict()
    assert done['step'] == 12 and torch.load(tmp_path/'run')['run']['step'] == 12
    never = [Kill(step, 'on_gradient') for step in range(12)]
    when  = (tmp_path/'run').stat().st_mtime_ns
    assert same(do(beginning(seed=1), tmp_path/'run', never).state_dict(), done)
    assert (tmp_path/'run').stat().st_mtime_ns == when

def test_a_file_that_is_too_far(file):
    "Of seven steps, where four are wanted: an error, not a run that is longer than it says."
    with pytest.raises(ValueError, match='has taken 7 steps already, and end=4'):
        do(beginning(), file, end=4)

def test_steps_of_a_state(tmp_path):
    "Writes stand at multiples of `every`, wherever the run begins."
    seen, run, file = [], advance(beginning(), classification(), batches, 3), tmp_path/'run'
    class Looks(Hook):
        def on_gradient(self, run):
            seen.append(torch.load(file)['run']['step'] if file.exists() else None)
    do(run, file, [Looks()])
    assert seen == [None]*2 + [5]*5 + [10]*2

# --- checksums and snapshots

def test_checksum():
    "All bytes in the order of indices: the layout does not matter, an entry and the order do."
    a, b = torch.arange(6.).view(2, 3), torch.tensor([True, False])
    assert checksum([a, b]) == crc32(a.numpy().tobytes() + b.numpy().tobytes())
    assert checksum([a.t().contiguous().t()]) == checksum([a])
    assert checksum([nn.Parameter(a)]) == checksum([a]) and checksum([]) == 0
    differ = [[a], [a.t()], [a.double()], [-a], [a, b], [b, a], [b], [~b], [a.bfloat16()],
              [torch.tensor(1)]]
    assert len({checksum(o) for o in differ}) == len(differ)
    assert checksum([torch.empty(0, 3), a]) == checksum([a])

def test_snapshot():
    "Copies of weights and buffers, with their layout; training does not touch them."
    run = do(beginning(), end=3)
    theta, before = snapshot(run.net), run.state_dict()['net']
    do(run)
    assert same(theta, dict(before)) and 'norm1.running_mean' in theta
    assert not any(t.requires_grad for t in theta.values())
    assert snapshot(lenet(64))['layer1.weight'].stride() == (1, 300)
    class Told(nn.Linear):
        def get_extra_state(self): return 'anything'
    assert snapshot(Told(2, 1)).keys() == {'weight', 'bias'}  # no extra state

# --- what makes a training this one

def given(net=None, masks=None, optimizer=torch.optim.Adam, seed=0, rates=(), data=(), **more):
    net = net or lenet(64, seed=0)
    run = Run(net, optimizer(net.parameters(), lr=.01), masks, seed)
    return training_settings(run, rates, data, **more)

def test_what_makes_a_training():
    "Plain values, the same for the same training; where the weights lie does not matter."
    one = given(rates=[.1, .2], data=[torch.ones(2)], steps=3)
    assert one == given(rates=iter([.1, .2]), data=iter([torch.ones(2)]), steps=3)
    check_settings(one, json.loads(json.dumps(one)), 'a file')
    net = lenet(64, seed=0)
    net.layer1.weight.data = net.layer1.weight.data.contiguous()
    assert given(net) == given()

first = dict(masks={'layer1.weight': torch.rand(300, 64, generator=rng(0)) < .5})

def slower(params, lr):
    "The last layer has a rate of its own."
    *rest, weight, bias = params
    return torch.optim.Adam([dict(params=rest), dict(params=[weight, bias], lr=lr/10)], lr=lr)

@pytest.mark.parametrize('change, names', [
    (dict(optimizer=slower), 'options'),
    (dict(net=nn.Sequential(*lenet(64, seed=0))), 'net'),
    (dict(net=lenet(64, seed=1)), 'weights'), (first, 'masks net weights'), (dict(seed=1), 'seed'),
    (dict(optimizer=torch.optim.AdamW), 'optimizer options'),
    (dict(optimizer=partial(torch.optim.Adam, betas=(.5, .9))), 'options'),
    (dict(rates=[.1]), 'rates'), (dict(data=[torch.ones(1)]), 'data'), (dict(steps=3), 'steps')])
def test_another_training(change, names):
    "Each part is told, and no other."
    one, other = given(), given(**change)
    assert {k for k in one | other if one.get(k) != other.get(k)} == set(names.split())
