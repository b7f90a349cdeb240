"`lotterybook find`, as a shell sees it; that a killed search goes on to the same bits is shown on its page."
import os, re, resource, shutil, signal, subprocess, time
import pytest
from lotterybook.foundations.results import read_rows
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
    assert 'The same command goes on' in said and 'Traceback' not in complained
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

# --- what is told, and what is damaged

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
    assert said.startswith('All 3 runs are done already') and '3 of 3 runs stopped at the last step: raise --steps' in said
    dense, ticket, reinit = (r['stop_accuracy'] for r in read_rows(out/'rows.csv'))
    assert re.search(rf'\n *100.0% +1 +{100*dense:.1f}\n +80.2% +1 +{100*ticket:.1f} +{100*reinit:.1f} +{100*(ticket - reinit):+.1f} reinit\n', said), said

def accuracies(**by_condition):
    return [dict(seed=s, round=1, condition=c, remaining=.5, stop_step=90, stop_accuracy=v) for c, values in by_condition.items() for s, v in enumerate(values)]

def test_summary_by_hand():
    "The best twin, pairs of seeds, an interval of five; one run of fifteen ends at the last step."
    rows = accuracies(ticket=[.90, .91, .92, .93, .94], reinit=[.88, .89, .90, .91, .92], shuffled=[.85, .99, .80, .80, .80])
    rows[3]['stop_step'] = 100
    said = _summary(rows, 100).splitlines()
    assert said[:2] == ['Test accuracy at early stop (%), mean of the seeds', 'weights seeds ticket reinit shuffled  ticket - best twin (95 % interval of five seeds)']
    assert said[2].split() == '50.0% 5 92.0 90.0 84.8 +2.0 (+2.0 to +2.0) reinit'.split()
    assert '1 of 15 runs stopped at the last step: raise --steps' in said and 'raise' not in _summary(rows, 200)
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
