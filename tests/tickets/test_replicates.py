"A search in a folder: of one data set and one set of settings, and whole; sizes that cannot end are refused."
import copy, itertools, json, subprocess, sys, time, warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
import matplotlib
import matplotlib.pyplot as plt
import pytest, torch
from torch import nn
from sameness import same
from lotterybook.foundations import compiled_steps
from lotterybook.foundations.checksums import read_checked_json, write_checked_json
from lotterybook.foundations.compiled_steps import why_no_loops, why_usual
from lotterybook.foundations.data import from_tensors, load
from lotterybook.foundations.deep_networks import NETWORKS, RECIPES
from lotterybook.foundations.fast_steps import FusedAdam
from lotterybook.foundations.hooks import Hook
from lotterybook.foundations.running import Run
from lotterybook.foundations.training import classification, example_batches, train_run
from lotterybook.pruning.masks import distance, kept, remaining
from lotterybook.tickets import replicates
from lotterybook.tickets.controls import CONDITIONS, control_run
from lotterybook.tickets.iterative import find_ticket
from lotterybook.tickets.late_rewinding import late_parts
from lotterybook.tickets.replicates import (
    claimed, classification_parts, draw_search, finished_runs, folder_settings, recipe_run, run_one, runs_before, search, search_plan,
    search_settings, step_file, table_row, ticket_file)
from lotterybook.tickets.stacked_replicates import stacked_search
from lotterybook.tickets.ticket_files import load_ticket
matplotlib.use('Agg')

plan = search_plan(2, [0], ['ticket', 'random'])

def settings(compiled=None, **changes):
    found = search_settings(**dict(data='digits', rounds=2, steps=20, eval_every=5) | changes)
    return found if compiled is None else found | dict(compiled=compiled)

def searched(out, plan=plan, **changes):
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=[1]) as one:
        return search(settings(**changes), plan, out, executor=one, progress=False)

def files(folder): return {f: f.read_bytes() for f in folder.rglob('*') if f.is_file()}

@pytest.mark.parametrize('changes, why', [
    (dict(data='fashion_mnist', steps=20), "data was 'digits', is 'fashion_mnist'"), (dict(steps=30), 'steps was 20, is 30'),
    (dict(lr=1e-2), 'lr was 0.0012, is 0.01'), (dict(batch_size=50), 'batch_size was 60, is 50')])
@pytest.mark.parametrize('lost', ['', '-round2-*', '*'])
def test_tickets_of_another_search(changes, why, lost, tmp_path):
    "Killed between a ticket and its result, or finished: refused by name, and all stays as it was."
    searched(tmp_path)
    if lost:
        for file in tmp_path.glob(f'runs/seed0{lost}.json'): file.unlink()
    before = files(tmp_path)
    with pytest.raises(ValueError, match=why): searched(tmp_path, **changes)
    assert files(tmp_path) == before

@pytest.mark.parametrize('harm, why', [
    (lambda file: file.unlink(), 'no ticket at'),
    (lambda file: file.write_bytes(file.read_bytes()[:1000]), 'was cut off'),
    (lambda file: file.write_bytes(file.read_bytes()[:-1] + b'2'), 'is damaged')])
@pytest.mark.parametrize('all_done', [True, False])
def test_a_lost_ticket(harm, why, all_done, tmp_path):
    "Beside a finished run: said, with the way out, also when everything else is done."
    rows, file = searched(tmp_path), ticket_file(tmp_path, 0, 1)
    ticket, done = file.read_bytes(), tmp_path/'runs'/'seed0-round1-ticket.json'
    if not all_done: (tmp_path/'runs'/'seed0-round2-random.json').unlink()
    harm(file)
    with pytest.raises(ValueError, match=f'{why}.*remove the ticket and {done}'): searched(tmp_path)
    file.unlink(missing_ok=True); done.unlink()
    assert searched(tmp_path) == rows and file.read_bytes() == ticket

def test_steps_are_counted(tmp_path):
    "Of all trainings, while somebody waits: a byte every `eval_every` steps; the rows are the same without."
    waited, alone = tmp_path/'waited', tmp_path/'alone'
    waited.mkdir()
    step_file(waited).write_bytes(b'')
    assert searched(waited) == searched(alone)
    assert step_file(waited).stat().st_size == len(plan)*20/5 and not step_file(alone).exists()

# --- sizes that cannot end

def test_rounds_that_would_not_end():
    "Told with the settings."
    with pytest.raises(ValueError, match='rounds=1,000,000,000 would not end'):
        search_settings(rounds=10**9)

@pytest.mark.parametrize('rounds, seeds', [
    (10**9, [0]), (2, range(10**9)), (2, itertools.count()), (10_000, range(100))])
def test_plans_that_would_not_end(rounds, seeds):
    "Many rounds, many seeds, or both."
    with pytest.raises(ValueError, match='more than 1,000,000 runs would not end: take fewer rounds'):
        search_plan(rounds, seeds)

def test_a_large_plan():
    "Below the limit it is made."
    assert len(search_plan(999, range(1000), ['ticket'])) == 10**6

# --- settings

def test_settings_are_plain():
    "They are written beside the results; MNIST takes fifty times the steps of digits."
    assert json.loads(json.dumps(settings())) == settings()
    assert (search_settings('mnist')['steps'], search_settings()['steps']) == (50_000, 1000)

@pytest.mark.parametrize('wrong, why', [
    (dict(rate=0.), 'rate=0.0 must'), (dict(rate=1), 'rate=1 must'), (dict(rounds=0), 'rounds=0 must'),
    (dict(steps=0), 'steps=0'), (dict(batch_size=0), 'batch_size=0'), (dict(lr=-1.), 'lr=-1.0'),
    (dict(net='lenet5'), "unknown network 'lenet5'; known are lenet"),
    (dict(scale={'output.weight': 9.}), 'scale of output.weight: 9.0 times'),
    (dict(scale={'layer9.weight': .5}), 'scale names layer9.weight, which lenet does not have'),
    (dict(scale={'conv*': .5, '*.bias': 1., 'fc*': .5}), 'scale names conv*, fc*, which lenet does not have'),
    (dict(net='resnet20', scale={'output.weight': .5}), 'has no effect: the recipe of resnet20 ranks the weights of all'),
    (dict(precision='float16'), "unknown precision 'float16'; known are float32, bfloat16"),
    (dict(data='minst'), "data set 'minst' is unknown; known are digits"),
    (dict(data='ptb'), "'ptb' is not for classification; known are digits"),
    (dict(device='gpu'), "'gpu' is none that PyTorch knows")])
def test_settings_that_are_refused(wrong, why):
    with pytest.raises(ValueError) as e: search_settings(**wrong)
    assert why in str(e.value)

# --- recipes

@pytest.mark.parametrize('net, wanted', [
    ('lenet',    dict(lr=1.2e-3, batch_size=60, rate=.2, scale={'output.weight': .5}, steps=50_000)),
    ('conv2',    dict(lr=2e-4, batch_size=60, rate=.2, scale={'output.weight': .5, 'conv*': .5}, steps=20_000)),
    ('conv6',    dict(lr=3e-4, batch_size=60, rate=.2, scale={'output.weight': .5, 'conv*': .75}, steps=30_000)),
    ('resnet20', dict(lr=.1, batch_size=128, rate=.2, scale={}, steps=63_000))])
def test_what_is_left_out_comes_from_the_recipe(net, wanted):
    "And what is given does not; digits take 1,000 steps whatever the network."
    found = search_settings('cifar10', net)
    assert {k: found[k] for k in wanted} == wanted
    assert search_settings(net=net)['steps'] == 1000
    given = dict(lr=.01, batch_size=7, rate=.3, steps=9)
    assert {k: search_settings('cifar10', net, **given)[k] for k in given} == given
    found['scale']['mine'] = .1
    assert 'mine' not in RECIPES[net]['scale']

def one_round(net, **changes):
    "The dense network and the ticket of one round, of a few steps."
    make_run, train, prune = classification_parts(settings(net=net, steps=4, eval_every=4, **changes))
    return make_run, train, find_ticket(make_run, train, prune, rounds=1, progress=False)

def test_per_layer_and_its_scale():
    "Exact counts: a tenth of a convolution and of the output, a fifth of the others."
    *_, (dense, ticket) = one_round('conv2')
    full, left = kept(dense.masks), kept(ticket.masks)
    for name in full:
        rate = .2 if name in ('layer1.weight', 'layer2.weight') else .1
        assert left[name] == full[name] - round(rate*full[name]), name

@pytest.mark.parametrize('net, not_pruned', [
    ('resnet18', {'output.weight', 'block21.shortcut.conv.weight', 'block31.shortcut.conv.weight'}), ('resnet20', set())])
def test_global_and_what_is_excluded(net, not_pruned):
    "A fifth of all that may be pruned, not of each layer; shortcuts and output only where the recipe prunes them."
    make_run, _, (dense, ticket) = one_round(net)
    names = {k for k, p in make_run(0).net.named_parameters() if p.dim() > 1}
    assert names - dense.masks.keys() == not_pruned
    full, left = kept(dense.masks), kept(ticket.masks)
    total = sum(full.values())
    assert sum(left.values()) == total - round(.2*total)
    assert len({round(left[k]/full[k], 2) for k in full}) > 3

def test_the_schedule_scales_with_the_steps():
    make_run, train, _ = classification_parts(settings(net='resnet18', steps=6, eval_every=6))
    run = make_run(0)
    train(run)
    group = run.optimizer.param_groups[0]
    assert group['lr'] == pytest.approx(.1*.01) and [group['momentum'], group['weight_decay']] == [.9, 1e-4]

# --- precision

low = settings(net='conv2', precision='bfloat16', steps=6, eval_every=3)

def test_bfloat16_uses_the_weights_of_each_step():
    "As with a block of autocast for each step; one around all of them keeps the weights of the first."
    torch.set_num_threads(1)
    make_run, train, _ = classification_parts(low)
    run = make_run(0)
    net, start = copy.deepcopy(run.net).train(), copy.deepcopy(run.net.state_dict())
    train(run)
    data = load('digits', 0)
    optimizer, batches = FusedAdam(net.parameters(), lr=2e-4), example_batches(data.x_train, data.y_train, 60, 0)
    for x, y in batches(0, 6):
        with torch.autocast('cpu', torch.bfloat16): loss = torch.nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert same(run.net.state_dict(), net.state_dict())
    for name, p in run.net.state_dict().items(): assert p.dtype == torch.float32 and not p.equal(start[name])

def test_bfloat16_changes_the_numbers_and_is_another_search(tmp_path):
    rows = searched(tmp_path, net='conv2', steps=6)
    with pytest.raises(ValueError, match="precision was not given, is 'bfloat16'"):
        searched(tmp_path, net='conv2', steps=6, precision='bfloat16')
    assert searched(tmp_path/'low', net='conv2', steps=6, precision='bfloat16') != rows

class PowerCut(Hook):
    "Fails once, at a step."
    writes, failed = False, False
    def after_step(self, run):
        if run.step == 5 and not self.failed:
            self.failed = True
            raise RuntimeError('power cut')

@pytest.mark.parametrize('changes', [
    dict(net='conv2'), dict(net='conv2', precision='bfloat16'), dict(compiled=True), dict(compiled=False)], ids=str)
@pytest.mark.parametrize('condition', ['ticket', 'reinit'])
def test_resumes_to_the_same_bits(changes, condition, tmp_path, monkeypatch):
    "Killed within a training, beyond its last saved step."
    torch.set_num_threads(1)
    some = settings(**dict(steps=6, eval_every=3) | changes)
    if changes.get('compiled'): pytest.importorskip('numba')
    def done(out, r, condition): return run_one(dict(seed=0, round=r, condition=condition), some, out)
    def plain(o): return {k: v for k, v in o.items() if k != 'seconds'}
    def both(out):
        for r in (0, 1)[:1 if condition == 'ticket' else 2]: done(out, r, 'ticket')
        return done(out, 1, condition)
    whole, cut = both(tmp_path/'whole'), PowerCut()
    for r in (0, 1)[:1 if condition == 'ticket' else 2]: done(tmp_path/'cut', r, 'ticket')
    def saving(run, data, hooks, **options): return train_run(run, data, hooks=[*hooks, cut], save_every=2, **options)
    monkeypatch.setattr(replicates, 'train_run', saving)
    with pytest.raises(RuntimeError, match='power cut'): done(tmp_path/'cut', 1, condition)
    steps = []
    monkeypatch.setattr(PowerCut, 'after_step', lambda self, run: steps.append(run.step))
    assert plain(done(tmp_path/'cut', 1, condition)) == plain(whole)
    assert steps == [5, 6]                       # it began at the saved step, not at the first
    assert kept_tickets(tmp_path/'cut') == kept_tickets(tmp_path/'whole')

def make_old(folder, *names):
    "As a search left it before some settings were there."
    note = folder/'search.json'
    write_checked_json(note, {k: v for k, v in read_checked_json(note, '').items() if k not in names})

def test_searches_of_before_there_was_a_precision(tmp_path):
    "Their settings have none; they resume, and are not done again."
    rows = searched(tmp_path, compiled=False)
    make_old(tmp_path, 'precision', 'rewind_step', 'compiled')
    assert not {'precision', 'compiled'} & load_ticket(ticket_file(tmp_path, 0, 1)).settings['search'].keys()
    (tmp_path/'runs'/'seed0-round2-ticket.json').unlink()
    (tmp_path/'runs'/'seed0-round2-random.json').unlink()
    before = {f: f.stat().st_mtime_ns for f in tmp_path.glob('*.safetensors')}
    assert searched(tmp_path) == rows
    assert {f: f.stat().st_mtime_ns for f in tmp_path.glob('*.safetensors')} == before

# --- compiled steps

def lose_numba(monkeypatch, there=False):
    "As on a machine without it, or where it is and cannot compile."
    monkeypatch.setattr(compiled_steps, '_kernels', lambda: None)
    if not there: monkeypatch.setattr(compiled_steps, 'find_spec', lambda name: None)

@pytest.fixture
def steps(tmp_path):
    "Which steps a new search would take."
    def compiled(given=None, parts=classification_parts, **options):
        return claimed(given or settings(), plan, tmp_path/'new', parts, **options)['compiled']
    return compiled

@pytest.mark.parametrize('net', NETWORKS)
def test_compiled_where_the_loops_can(net, steps, monkeypatch):
    "A search takes the steps that `why_usual` says of its run."
    pytest.importorskip('numba')
    x, y = torch.rand(40, 1, 28, 28), torch.arange(40) % 10
    data = from_tensors(x, y, x, y, 10)
    monkeypatch.setattr(replicates, 'search_data', lambda name, seed: data)
    run  = classification_parts(settings(net=net))[0](0)
    before = torch.get_rng_state()
    assert steps(settings(net=net)) == (why_usual(run, data, classification()) == '') == (net == 'lenet')
    assert same(torch.get_rng_state(), before)  # asking draws nothing

@pytest.mark.parametrize('changes', [
    dict(weight_decay=1e-4), dict(optimizer='sgd'), dict(precision='bfloat16'), dict(data='cifar10'), dict(compiled=False)], ids=str)
def test_searches_of_usual_steps(changes, steps):
    "By what is trained, also where settings are changed by hand; compiled=True is refused there."
    assert steps(settings() | changes) is False
    if 'compiled' not in changes:
        with pytest.raises(ValueError, match='is to have compiled steps, which are not possible here: .*leave compiled out'):
            steps(settings(compiled=True) | changes)

@pytest.mark.parametrize('compiled', [0.5, 'yes', 2])
def test_steps_that_are_neither(compiled):
    with pytest.raises(ValueError, match=f'compiled={compiled!r} must be True, False or None'): search_settings(compiled=compiled)

def test_what_is_around_a_search(steps, monkeypatch):
    "Numbers of another kind, hooks of a profiler: usual steps, which work. A block of autocast ends where a run begins."
    pytest.importorskip('numba')
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not steps()
    hook.remove()
    with torch.autocast('cpu', torch.bfloat16): assert steps()
    monkeypatch.setattr(torch, 'get_default_dtype', torch.get_default_dtype)
    torch.set_default_dtype(torch.float64)
    try: assert not steps()
    finally: torch.set_default_dtype(torch.float32)
    assert steps() and steps(settings(rewind_step=5), late_parts)

def own_parts(net, optimizer):
    "As page 325 advises: `train` of the book, a run of one's own."
    def parts(settings):
        _, train, prune = classification_parts(settings | dict(net='lenet'))
        def make_run(seed):
            made = net()
            return Run(made, optimizer(made.parameters()))
        return make_run, train, prune
    return parts

def mlp(first=nn.Linear, *more): return nn.Sequential(nn.Flatten(), first(64, 20), nn.ReLU(), *more, nn.Linear(20, 10))

@pytest.mark.parametrize('net, optimizer', [
    (partial(mlp, nn.Linear, nn.Dropout(.1)), torch.optim.Adam), (mlp, torch.optim.Adam), (lambda: NETWORKS['lenet'](64), partial(torch.optim.SGD, lr=.1)),
    (lambda: NETWORKS['lenet'](64), torch.optim.AdamW), (lambda: NETWORKS['lenet'](64), FusedAdam)], ids=['dropout', 'mlp', 'sgd', 'adamw', 'like ours'])
@pytest.mark.parametrize('name', ['lenet', 'mine'])
def test_parts_of_ones_own(name, net, optimizer, tmp_path):
    "They take usual steps, whatever `search_settings` of LeNet's name could take; a name may be unknown to the book."
    given = settings(scale={}) | dict(net=name)
    with warnings.catch_warnings(), ThreadPoolExecutor(1) as one:
        warnings.simplefilter('error')
        rows = search(given, plan, tmp_path, parts=own_parts(net, optimizer), executor=one, progress=False)
    assert len(rows) == len(plan) and read_checked_json(tmp_path/'search.json', '')['compiled'] is False

def test_compiled_steps_that_own_parts_ask_for(tmp_path):
    "They get them, or are refused: a network without compiled dense steps would mix both kinds."
    pytest.importorskip('numba')
    def go(net, out):
        with ThreadPoolExecutor(1) as one:
            return search(settings(compiled=True, scale={}), plan, out, parts=own_parts(net, FusedAdam), executor=one, progress=False)
    go(lambda: NETWORKS['lenet'](64), tmp_path/'a')
    assert load_ticket(ticket_file(tmp_path/'a', 0, 1)).settings['search']['compiled'] is True
    with pytest.raises(RuntimeError, match='only a network that begins with a SparseInputLinear'): go(mlp, tmp_path/'b')

def test_settings_of_other_parts_stay_as_they_are(tmp_path):
    "A key of that name may be theirs; where there is none, none comes."
    def parts(settings): return None
    for given in (dict(compiled='mine'), dict(lr=1.)): assert claimed(given, plan, tmp_path, parts) == given

def test_compiled_and_usual_agree(tmp_path):
    "All conditions: the same sizes, nearly the same masks and accuracies; the folder says which it was."
    pytest.importorskip('numba')
    every = search_plan(2, [0], CONDITIONS)
    fast  = searched(tmp_path/'fast', every, steps=60, rate=.5)
    usual = searched(tmp_path/'usual', every, steps=60, rate=.5, compiled=False)
    for a, b in zip(fast, usual, strict=True):
        assert a['remaining'] == b['remaining']
        assert a['stop_loss'] == pytest.approx(b['stop_loss'], abs=1e-3)
        for k in ('stop_accuracy', 'end_accuracy', 'train_accuracy'): assert a[k] == pytest.approx(b[k], abs=5e-3)
    assert [a['stop_loss'] for a in fast] != [b['stop_loss'] for b in usual]  # they were other steps
    for r in range(3):
        a, b = (load_ticket(ticket_file(tmp_path/o, 0, r)) for o in ('fast', 'usual'))
        assert same(a.theta_0, b.theta_0) and distance(a.masks, b.masks) < .002
        for k, w in a.theta_T.items(): torch.testing.assert_close(w[b.theta_T[k] != 0], b.theta_T[k][b.theta_T[k] != 0], atol=5e-3, rtol=.1)
    for o, compiled in (('fast', True), ('usual', False)):
        assert read_checked_json(tmp_path/o/'search.json', '')['compiled'] is compiled
        assert load_ticket(ticket_file(tmp_path/o, 0, 1)).settings['search'].get('compiled', False) is compiled

@pytest.mark.parametrize('lost', ['runs', 'tickets', 'all but a state', 'search.json'])
def test_old_folders_go_on_with_usual_steps(lost, tmp_path, monkeypatch):
    "To the same bits, wherever they were stopped."
    whole, old = tmp_path/'whole', tmp_path/'old'
    rows = searched(whole, compiled=False)
    if lost == 'all but a state':
        cut = PowerCut()
        def saving(run, data, hooks, **options): return train_run(run, data, hooks=[*hooks, cut], save_every=2, **options)
        with monkeypatch.context() as here:
            here.setattr(replicates, 'train_run', saving)
            with pytest.raises(RuntimeError, match='power cut'): searched(old, compiled=False)
        assert list(old.glob('.*.state')) and not list(old.glob('runs/*.json')) + list(old.glob('*.safetensors'))
    else:
        searched(old, compiled=False)
        for file in old.glob('runs/*round[12]*'): file.unlink()
        if lost != 'runs':
            for file in old.glob('ticket-*round[12]*'): file.unlink()
    make_old(old, 'compiled', 'precision', 'rewind_step')
    if lost == 'search.json': (old/lost).unlink()
    assert searched(old) == rows and kept_tickets(old) == kept_tickets(whole)
    assert read_checked_json(old/'search.json', '')['compiled'] is False

def lose(out, *patterns):
    for pattern in patterns:
        for file in out.glob(pattern): file.unlink()

@pytest.mark.parametrize('lost', [[], ['search.json']], ids=str)
@pytest.mark.parametrize('missing', [['runs/*random*'], ['runs/*round2*', 'ticket-*round2*'], []], ids=str)
@pytest.mark.parametrize('act', [
    lambda out, **given: search(settings(**given, compiled=False), plan, out, progress=False),
    lambda out, **given: stacked_search(settings(**given), plan, out, progress=False)], ids=['compiled=False', 'stacked'])
def test_a_compiled_folder_never_mixes(act, missing, lost, tmp_path):
    "Usual steps are refused, also if nothing is left to train, and all stays as it was; its tickets say what they are."
    pytest.importorskip('numba')
    rows = searched(tmp_path)
    lose(tmp_path, *missing, *lost)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=f'{tmp_path} was begun with compiled steps: leave out what asks for others'): act(tmp_path)
    with pytest.raises(ValueError, match='steps was 20, is 30'): act(tmp_path, steps=30)
    assert files(tmp_path) == before
    assert searched(tmp_path) == rows and folder_settings(tmp_path)['compiled'] is True

@pytest.mark.parametrize('lost', [[], ['search.json']], ids=str)
@pytest.mark.parametrize('missing', [['runs/*random*'], ['runs/*round2*', 'ticket-*round2*'], []], ids=str)
def test_a_usual_folder_never_mixes(missing, lost, tmp_path):
    "Left to itself it goes on with usual steps."
    pytest.importorskip('numba')
    rows = searched(tmp_path, compiled=False)
    lose(tmp_path, *missing, *lost)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=f'{tmp_path} was begun with usual steps: leave out what asks for others'): searched(tmp_path, compiled=True)
    assert files(tmp_path) == before
    assert searched(tmp_path) == rows and folder_settings(tmp_path)['compiled'] is False

@pytest.mark.parametrize('there, why', [(False, r'Numba is missing \(pip install numba\)'), (True, 'Numba cannot compile here')])
def test_a_compiled_folder_without_numba(there, why, tmp_path, monkeypatch, steps):
    "Done as a whole it is read; otherwise refused, with the reason. A new one takes usual steps."
    pytest.importorskip('numba')
    rows = searched(tmp_path)
    with monkeypatch.context() as here:
        lose_numba(here, there)
        assert searched(tmp_path) == rows and not steps()
        lose(tmp_path, 'runs/*random*')
        before = files(tmp_path)
        with pytest.raises(ValueError, match=f'{tmp_path} was begun with compiled steps, which are not possible here: {why}. Change'): searched(tmp_path)
        with pytest.raises(ValueError, match='steps was 20, is 30'): searched(tmp_path, steps=30)
        assert files(tmp_path) == before
    assert searched(tmp_path) == rows

@pytest.mark.parametrize('compiled', [False, True])
def test_search_json_lost_before_the_first_ticket(compiled, tmp_path, monkeypatch):
    "Nothing says how the unfinished run was made: it is named, and no new note is written. Without it the search begins anew."
    if compiled: pytest.importorskip('numba')
    cut = PowerCut()
    def saving(run, data, hooks, **options): return train_run(run, data, hooks=[*hooks, cut], save_every=2, **options)
    with monkeypatch.context() as here:
        here.setattr(replicates, 'train_run', saving)
        with pytest.raises(RuntimeError, match='power cut'): searched(tmp_path, compiled=compiled)
    (tmp_path/'search.json').unlink()
    state, = tmp_path.glob('.*.state')
    with pytest.raises(ValueError, match=f'{state} is of a search, but search.json, .*, is lost: remove it'): searched(tmp_path)
    assert not (tmp_path/'search.json').exists()
    state.unlink()
    assert len(searched(tmp_path)) == len(plan)

def test_a_state_of_usual_steps_is_not_continued_by_compiled_ones(tmp_path, monkeypatch):
    "Not by a run alone, either, which asks no folder."
    pytest.importorskip('numba')
    first, cut = dict(seed=0, round=0, condition='ticket'), PowerCut()
    def saving(run, data, hooks, **options): return train_run(run, data, hooks=[*hooks, cut], save_every=2, **options)
    monkeypatch.setattr(replicates, 'train_run', saving)
    with pytest.raises(RuntimeError, match='power cut'): run_one(first, settings(compiled=False), tmp_path)
    with pytest.raises(ValueError, match="settings was not given, is {'compiled': True}"): run_one(first, settings(compiled=True), tmp_path)

def test_a_worker_without_numba(tmp_path, monkeypatch):
    "It has the settings of others, and does not take usual steps instead; nor with another precision."
    pytest.importorskip('numba')
    given = settings(compiled=True)
    first = dict(seed=0, round=0, condition='ticket')
    with pytest.raises(ValueError, match='compiled steps, which are not possible here: products have another precision'):
        run_one(first, given | dict(precision='bfloat16'), tmp_path)
    lose_numba(monkeypatch)
    with pytest.raises(ValueError, match='compiled steps, which are not possible here: Numba is missing'):
        run_one(first, given, tmp_path)

class Workers(ThreadPoolExecutor):
    "An engine whose machines answer."
    answer = ''
    def ask(self, question): return self.answer and f'{self.answer} (worker 2)'

def test_workers_without_numba(steps, tmp_path):
    "Asked before anything is trained: usual steps for all, or, where compiled ones are asked for, a reason."
    pytest.importorskip('numba')
    engine = Workers(1)
    assert steps(executor=engine)
    engine.answer = 'Numba is missing'
    assert not steps(executor=engine)
    with pytest.raises(ValueError, match=r'not possible here: Numba is missing \(worker 2\)'): steps(settings(compiled=True), executor=engine)
    searched(tmp_path, search_plan(1, [0], ['ticket']))
    with pytest.raises(ValueError, match=r'not possible here: Numba is missing \(worker 2\)'): search(settings(), plan, tmp_path, executor=engine)

# --- the plan

def test_a_plan_by_hand():
    "Whatever the order of the conditions; 380 runs of the paper's size; controls at some rounds only."
    by_hand = [(0, 0, 'ticket'), (0, 1, 'ticket'), (0, 1, 'reinit'), (0, 2, 'ticket'), (0, 2, 'reinit')]
    assert [tuple(o.values()) for o in search_plan(2, [0], ['reinit', 'ticket'])] == by_hand
    assert len(search_plan(15, range(5))) == 5*(1 + 15*5) == 380
    assert len(search_plan(20, range(5), control_rounds=(3, 7, 12, 15, 18))) == 5*(21 + 5*4)

@pytest.mark.parametrize('wrong, why', [
    (dict(conditions=['ticket', 'luck']), "unknown condition 'luck'; known are ticket"),
    (dict(conditions=['reinit']), 'must name ticket'), (dict(control_rounds=[3]), 'must lie in 1 to 2'),
    (dict(seeds=[-1]), 'seed=-1 must be a whole number of at least 0')])
def test_plans_that_are_refused(wrong, why):
    with pytest.raises(ValueError) as e: search_plan(2, **wrong)
    assert why in str(e.value)

def test_what_is_needed_comes_earlier():
    "The last round, the control's ticket, or the dense network; the first round needs nothing."
    whole = search_plan(3, [0, 1], CONDITIONS)
    place = {tuple(c.values()): i for i, c in enumerate(whole)}
    for c in whole:
        for o in runs_before(c): assert place[tuple(o.values())] < place[tuple(c.values())], (o, c)
    def needs(round, condition): return runs_before(dict(seed=4, round=round, condition=condition))
    assert needs(0, 'ticket') == []
    assert needs(3, 'ticket') == [dict(seed=4, round=2, condition='ticket')]
    assert needs(3, 'reinit') == [dict(seed=4, round=3, condition='ticket')]
    assert needs(3, 'one_shot') == [dict(seed=4, round=0, condition='ticket')]

# --- the whole search

small = settings(compiled=not why_no_loops(), steps=40, rate=.5, eval_every=20)  # as `search` would choose
every = search_plan(2, range(2), CONDITIONS)

@pytest.fixture
def one():
    "An executor of one thread."
    torch.set_num_threads(1)
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=[1]) as pool: yield pool

def kept_tickets(folder): return {p.name: p.read_bytes() for p in folder.glob('*.safetensors')}

def test_run_by_run_and_by_the_functions_of_other_pages(one, tmp_path):
    "In the order of the plan, by find_ticket and control_run, and by search: the same in everything."
    mine = [c for c in every if c['seed'] == 1]
    done = {tuple(c.values()): run_one(c, small, tmp_path/'run') for c in mine}
    make_run, train, prune = classification_parts(small)
    tickets = find_ticket(make_run, train, prune, rounds=2, seed=1, progress=False)
    for r, t in enumerate(tickets):
        run = done[1, r, 'ticket']
        assert {k: run[k] for k in t.settings['outcome']} == t.settings['outcome']
        assert run['remaining'] == remaining(t.masks)
        assert same(load_ticket(ticket_file(tmp_path/'run', 1, r), make_run(1).net)[:3], t[:3])
    for name in list(CONDITIONS)[1:]:
        outcome = train(control_run(name, tickets.__getitem__, make_run, 1, 2, prune))
        for k in ('stop_loss', 'stop_accuracy', 'end_accuracy', 'history'):
            assert done[1, 2, name][k] == outcome[k]
    assert {o['remaining'] for (_, r, _), o in done.items() if r == 2} == {remaining(tickets[2].masks)}

    rows = search(small, every, tmp_path/'all', executor=one, progress=False)
    columns = ('seed', 'round', 'condition', 'remaining', 'stop_step', 'stop_accuracy',
               'end_accuracy', 'train_accuracy', 'stop_loss')
    assert [tuple(o) for o in rows] == [columns]*len(every)
    assert [(o['seed'], o['round'], o['condition']) for o in rows] == [tuple(c.values()) for c in every]
    for o in rows:
        if o['seed'] == 1:
            by_hand = done[1, o['round'], o['condition']]
            assert {k: o[k] for k in columns[3:]} == {k: by_hand[k] for k in columns[3:]}
    assert [table_row(o) for o in finished_runs(tmp_path/'all', every)] == rows
    assert finished_runs(tmp_path/'nowhere', every) == []
    assert finished_runs(tmp_path/'all') == finished_runs(tmp_path/'all', every)

def test_killed(one, tmp_path):
    "By a signal that cannot be caught, in the middle; called again: the same rows, tickets and files."
    rows = search(small, every, tmp_path/'whole', executor=one, progress=False)
    script, runs = tmp_path/'script.py', tmp_path/'killed'/'runs'
    script.write_text(f"""
from lotterybook.tickets.replicates import *
if __name__ == '__main__':
    search({small}, {every}, {str(tmp_path/'killed')!r}, workers=1, progress=False)
""")
    parent = subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL)
    def finished(): return len(list(runs.glob('*.json')))
    while finished() < 9: assert parent.poll() is None and not time.sleep(.01)
    parent.kill()
    parent.wait()
    assert 9 <= finished() < len(every)
    for _ in range(500):  # its lock goes with it, its worker a moment later
        try:
            again = search(small, every, tmp_path/'killed', executor=one, progress=False)
            break
        except ValueError as e: assert 'in use' in str(e) and not time.sleep(.02)
    assert again == rows and kept_tickets(tmp_path/'killed') == kept_tickets(tmp_path/'whole')
    assert sorted(kept_tickets(tmp_path/'whole')) == [
        f'ticket-seed{s}-round{r}.safetensors' for s in range(2) for r in range(3)]

def test_done_is_done_and_more(one, tmp_path):
    "Nothing is written again; a third seed adds its own runs; other settings are refused."
    rows = search(small, every, tmp_path, executor=one, progress=False)
    def stamps(): return {p.name: p.stat().st_mtime_ns for p in (tmp_path/'runs').glob('*.json')}
    before = stamps()
    assert search(small, every, tmp_path, progress=False) == rows and stamps() == before
    more  = search_plan(2, range(3), ['ticket', 'shuffled'])
    third = search(small, more, tmp_path, executor=one, progress=False)
    assert [o for o in third if o['seed'] < 2] == [
        o for o in rows if o['condition'] in ('ticket', 'shuffled')]
    assert before.items() <= stamps().items() and len(stamps()) == len(before) + 5
    for other in (dict(rate=.4), dict(steps=50), dict(lr=1e-3), dict(data='mnist')):
        with pytest.raises(ValueError, match='is of another run'):
            search(small | other, every, tmp_path, progress=False)

def test_the_figure(one, tmp_path):
    "Weights remaining fall along a log axis; each seed is there; a ticket without controls; names."
    rows = search(small, every, tmp_path, executor=one, progress=False)
    ax   = draw_search(rows, measures=('stop_accuracy', 'end_accuracy')).axes[0]
    assert ax.get_xscale() == 'log' and ax.xaxis_inverted()
    ticket = [100*o['stop_accuracy'] for o in rows if (o['seed'], o['condition']) == (0, 'ticket')]
    assert any(len(line.get_ydata()) == 3 and max(abs(line.get_ydata() - ticket)) < 1e-9
               for line in ax.lines)
    draw_search([o for o in rows if o['condition'] == 'ticket'])
    with pytest.raises(ValueError, match="unknown measure 'speed'"): draw_search(rows, measures=('speed',))
    plt.close('all')

def test_runs_of_a_recipe_are_channels_last_backward_too():
    assert recipe_run('conv2', load('digits'), RECIPES['conv2'], 0).net.flatten._forward_pre_hooks
