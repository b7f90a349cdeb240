"`lotterybook find`, as a shell sees it: wrong input, interrupted and killed searches, what is printed, damaged files."
import os, re, resource, shutil, signal, subprocess, time
from hashlib import sha256
import pytest
from lotterybook.foundations.checksums import read_checked_json
from lotterybook.foundations.results import read_rows
from lotterybook.pruning.masks import remaining
from lotterybook.tickets.ticket_files import load_ticket
from lotterybook.tools.find import _summary, _title, find
from test_command_line import hear_ctrl_c, lotterybook, one_line, tool

small = ['find', '--data', 'digits', '--net', 'lenet', '--rounds', '2', '--seeds', '1', '--steps', '30', '--workers', '1', '--out']

@pytest.mark.parametrize('wrong, why', [(['--rate', '1.5'], 'rate=1.5 must'), (['--rounds', '0'], 'rounds=0 must'), (['--data', 'minst'], 'known are digits'), (['--data', 'ptb'], "'ptb' is not for classification"),
                                        (['--net', 'lenet5'], 'known are lenet'), (['--conditions', 'ticket,luck'], "'luck'")])
def test_wrong_input(wrong, why, tmp_path):
    assert why in one_line(lotterybook(*small, 'out', *wrong, cwd=tmp_path))
    assert not list(tmp_path.iterdir())

def test_no_such_data_and_no_network(tmp_path):
    env = dict(os.environ, LOTTERYBOOK_CACHE=str(tmp_path/'cache'), LOTTERYBOOK_DATA=str(tmp_path/'empty'), http_proxy='http://127.0.0.1:9', https_proxy='http://127.0.0.1:9')
    said = one_line(lotterybook(*small, 'out', '--data', 'mnist', cwd=tmp_path, env=env))
    assert 'cannot fetch' in said and 'LOTTERYBOOK_DATA' in said

def test_folder_in_the_way(tmp_path):
    (tmp_path/'out').write_text('a file')
    assert 'out' in one_line(lotterybook(*small, 'out', cwd=tmp_path))

def test_full_disk(tmp_path):
    "No file may grow beyond 100 kB: a ticket does not fit. What was there stays, nothing half is left, and with room again it goes on."
    def cramped(): # the kernel's signal for it is ignored by Python, which raises OSError
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    said = one_line(lotterybook(*small, 'out', cwd=tmp_path, preexec_fn=cramped, env=dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path/'numba'))))
    assert 'File too large' in said and 'done and kept' in said
    assert not list((tmp_path/'out').rglob('*.safetensors')) and not list((tmp_path/'out').rglob('*.part'))
    assert lotterybook(*small, 'out', cwd=tmp_path).returncode == 0

def test_interrupted(tmp_path):
    "Ctrl-C reaches parent and workers alike; the state is kept, and one line says how to go on."
    work = subprocess.Popen([tool, *small, 'out', '--steps', '400'], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=hear_ctrl_c)
    end = time.monotonic() + 120
    while len(list((tmp_path/'out'/'runs').glob('*.json'))) < 2: assert time.monotonic() < end; time.sleep(.02)
    os.killpg(work.pid, signal.SIGINT)
    said, complained = work.communicate(timeout=60)
    assert work.returncode == 130, said + complained
    assert 'are done and kept in' in complained and 'The same call resumes' in complained and 'Traceback' not in complained
    kept = len(list((tmp_path/'out'/'runs').glob('*.json')))
    assert 2 <= kept < 11 and len((tmp_path/'out'/'rows.csv').read_text().splitlines()) == 1 + kept
    again = lotterybook(*small, 'out', '--steps', '400', cwd=tmp_path)
    assert again.returncode == 0 and f'{kept} of them done' in again.stdout, again.stdout + again.stderr

def test_folder_removed_during_the_search(tmp_path):
    "An error, although tickets made the folder anew; no table of what is left."
    work = subprocess.Popen([tool, *small, 'out', '--steps', '400'], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while len(list((tmp_path/'out'/'runs').glob('*.json'))) < 2: assert time.monotonic() < end; time.sleep(.02)
    (tmp_path/'out').rename(tmp_path/'elsewhere')
    said, complained = work.communicate(timeout=120)
    assert work.returncode in (1, 2) and 'Traceback' not in complained, said + complained
    assert 'runs was removed' in complained or 'no ticket at' in complained  # whichever is seen first
    assert not (tmp_path/'out'/'rows.csv').exists()

# --- a whole search, again, and killed

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "The folder of a search that was left alone."
    there = tmp_path_factory.mktemp('whole')
    done = lotterybook(*small, 'out', cwd=there)
    assert done.returncode == 0, done.stdout + done.stderr
    return there/'out'

def test_the_table_belongs_to_the_tickets(whole):
    "The dense network, and five conditions in each of two rounds."
    rows = read_rows(whole/'rows.csv')
    assert len(rows) == 1 + 2*5 and {r['condition'] for r in rows if r['round'] == 0} == {'ticket'}
    for r in rows:
        if r['condition'] != 'ticket': continue
        ticket = load_ticket(whole/f'ticket-seed{r["seed"]}-round{r["round"]}.safetensors')
        assert remaining(ticket.masks) == r['remaining']

def test_a_finished_search_is_left_alone(whole, tmp_path, capsys):
    "Called again, with less, or with other settings: no file changes, and other settings print nothing but an error."
    out = shutil.copytree(whole, tmp_path/'out')
    def files(): return {str(p.relative_to(out)): sha256(p.read_bytes()).hexdigest() for p in out.rglob('*') if p.is_file()}
    def go(**more): return find(out, **dict(dict(rounds=2, seeds=1, steps=30, workers=1, progress=False), **more))
    before = files()
    assert go() == read_rows(out/'rows.csv')
    assert capsys.readouterr().out.startswith('All 11 runs are done already; nothing to do.')
    assert len(go(rounds=1, conditions=['ticket'])) == 2
    assert files() == before
    for rounds in (1, 3):  # in 3 there would be something to do
        capsys.readouterr()
        with pytest.raises(ValueError, match='another run: rate was 0.2, is 0.5'): go(rate=.5, rounds=rounds)
        assert capsys.readouterr().out == '' and files() == before

@pytest.mark.parametrize('short', [False, True])
def test_a_table_without_all_runs_is_written_again(short, whole, tmp_path, capsys):
    table = shutil.copytree(whole, tmp_path/'out')/'rows.csv'
    kept = table.read_text()
    if short: table.write_text(kept[:kept.index('\n', 200) + 1])
    else: table.unlink()
    find(tmp_path/'out', rounds=2, seeds=1, steps=30, workers=1, progress=False)
    assert 'nothing to do' not in capsys.readouterr().out
    assert table.read_text() == kept

def test_killed_and_started_again(whole, tmp_path):
    "By a signal that cannot be caught: the same table, picture and tickets, to the last bit."
    parent = subprocess.Popen([tool, *small, 'out'], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    def done(): return len(list((tmp_path/'out'/'runs').glob('*.json')))
    end = time.monotonic() + 120
    while done() < 4: assert time.monotonic() < end; time.sleep(.02)
    parent.kill(); parent.wait()
    assert done() < 11
    assert lotterybook(*small, 'out', cwd=tmp_path).returncode == 0
    for name in ['rows.csv', 'curve.png', *(f'ticket-seed0-round{r}.safetensors' for r in range(3))]:
        assert (tmp_path/'out'/name).read_bytes() == (whole/name).read_bytes()

@pytest.mark.parametrize('wrong, why', [
    (dict(rate=1.5), 'rate=1.5 must lie between 0 and 1'), (dict(conditions=['ticket', 'luck']), "unknown condition 'luck'"),
    (dict(steps=0), 'steps=0'), (dict(seeds=0), 'seeds=0'), (dict(seed=-1), 'seed=-1'), (dict(workers=0), 'workers=0'),
    (dict(net='lenet5'), 'known are lenet'), (dict(data='minst'), 'known are digits'), (dict(rounds=0), 'rounds=0 must'),
    (dict(control_rounds=[16]), 'must lie in 1 to 15'), (dict(conditions=['reinit']), 'must name ticket')])
def test_wrong_arguments_are_refused_before_anything_is_written(wrong, why, tmp_path):
    with pytest.raises(ValueError, match=why): find(tmp_path/'wrong', **wrong)
    assert not (tmp_path/'wrong').exists()

# --- what is printed, and what is damaged

again = dict(rounds=1, seeds=1, steps=20, workers=1, conditions=['ticket', 'reinit'], progress=False)

@pytest.fixture(scope='module')
def found(tmp_path_factory):
    "A finished search"
    out = tmp_path_factory.mktemp('search')/'out'
    find(out, **again)
    return out

@pytest.fixture
def out(found, tmp_path): return shutil.copytree(found, tmp_path/'out')

def test_what_was_found_is_told(out, capsys):
    find(out, **again)
    said = capsys.readouterr().out
    assert said.startswith('All 3 runs are done already') and 'in 3 of 3 runs validation was best at the last step: raise --steps' in said
    dense, ticket, reinit = (r['stop_accuracy'] for r in read_rows(out/'rows.csv'))
    assert re.search(rf'\n *100.0% +1 +{100*dense:.1f}\n +80.2% +1 +{100*ticket:.1f} +{100*reinit:.1f} +{100*(ticket - reinit):+.1f} reinit\n', said), said

def accuracies(**by_condition):
    return [dict(seed=s, round=1, condition=c, remaining=.5, stop_step=90, stop_accuracy=v) for c, values in by_condition.items() for s, v in enumerate(values)]

def test_the_table_says_which_steps_were_taken(out):
    pytest.importorskip('numba')
    assert read_checked_json(out/'rows.json', '')['compiled'] is True

def test_usual_steps(tmp_path):
    "Asked for, or taken by a stack; the table says so, and a folder of compiled steps refuses them."
    for name, how in (('usual', dict(usual_steps=True)), ('stack', dict(stack=True))):
        find(tmp_path/name, **again, **how)
        assert read_checked_json(tmp_path/name/'rows.json', '')['compiled'] is False
        find(tmp_path/name, **again)  # goes on as it was begun
    with pytest.raises(ValueError, match='compiled=True is not stacked: leave out --stack'): find(tmp_path/'both', **again, stack=True, compiled=True)

@pytest.mark.parametrize('how', [dict(usual_steps=True), dict(stack=True)], ids=str)
def test_usual_steps_in_a_folder_of_compiled_ones(how, out):
    pytest.importorskip('numba')
    with pytest.raises(ValueError, match='was begun with compiled steps: leave out what asks for others .*--usual-steps, --stack.*, or name another folder'):
        find(out, **again, **how)

def test_summary_by_hand():
    "The best twin, pairs of seeds, an interval of five; one run of fifteen ends at the last step."
    rows = accuracies(ticket=[.90, .91, .92, .93, .94], reinit=[.88, .89, .90, .91, .92], shuffled=[.85, .99, .80, .80, .80])
    rows[3]['stop_step'] = 100
    said = _summary(rows, 100).splitlines()
    assert said[:2] == ['Test accuracy at early stop (%), mean of the seeds', 'weights seeds ticket reinit shuffled  ticket - best twin (95 % interval from five seeds on)']
    assert said[2].split() == '50.0% 5 92.0 90.0 84.8 +2.0 (+2.0 to +2.0) reinit'.split()
    assert 'in 1 of 15 runs validation was best at the last step: raise --steps' in said and 'raise' not in _summary(rows, 200)
    about = dict(net='lenet', data='digits', steps=100)
    assert _title(rows, about) == 'The ticket is ahead of its best twin at 1 of 1 sizes'
    assert _title(rows[:5], about) == _title(accuracies(ticket=[.9], reinit=[.8]), about) == 'lenet on digits, 100 steps'
    behind = accuracies(ticket=[.90, .91, .92, .93, .94], reinit=[.91, .91, .92, .93, .94])
    assert _title(behind, about) == 'The ticket is ahead of its best twin at 0 of 1 sizes'

def test_a_twin_of_other_seeds_is_no_twin():
    rows = accuracies(ticket=[.9]) + [dict(o, seed=7) for o in accuracies(reinit=[.8])]
    assert 'reinit' not in _summary(rows, 100).splitlines()[2]

@pytest.mark.parametrize('file, content', [('curve.png', None), *((file, content) for file in ('rows.csv', 'rows.json')
                                           for content in (None, b'', b'\xff\xfe', b'{"a": [', b'['*100_000))])
def test_tables_that_are_damaged_are_written_again(file, content, out):
    kept = (out/file).read_bytes()
    if content is None: (out/file).unlink()
    else: (out/file).write_bytes(content)
    find(out, **again)
    assert (out/file).read_bytes() == kept

@pytest.mark.parametrize('file', ['search.json', 'runs/seed0-round1-reinit.json'])
@pytest.mark.parametrize('content', ['', '{"a": [', '['*100_000, '[]'])
def test_damaged_files_are_named(file, content, out):
    "With what to do."
    (out/file).write_text(content)
    with pytest.raises(ValueError, match=f'{file} is damaged .*; remove it'): find(out, **again)
    (out/file).unlink()
    assert len(find(out, **again)) == 3

def test_a_picture_has_no_empty_panel_and_a_title(out):
    "All runs stopped at the last step: there is nothing to see in that panel."
    from lotterybook.tickets.replicates import draw_search
    rows = read_rows(out/'rows.csv')
    assert [ax.get_ylabel() for ax in draw_search(rows).axes] == ['test accuracy at early stop (%)']
    rows[1]['stop_step'] = 10
    assert len(draw_search(rows).axes) == 2
