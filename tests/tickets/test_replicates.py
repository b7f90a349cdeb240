"A search in a folder: of one data set and one set of settings, and whole; sizes that cannot end are refused."
import itertools
from concurrent.futures import ThreadPoolExecutor
import pytest
from lotterybook.tickets.replicates import (
    search, search_plan, search_settings, step_file, ticket_file)

plan = search_plan(2, [0], ['ticket', 'random'])

def settings(**changes):
    return search_settings(**dict(data='digits', rounds=2, steps=20, eval_every=5) | changes)

def searched(out, **changes):
    with ThreadPoolExecutor(1) as one:
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
