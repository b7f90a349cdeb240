"The command `lotterybook`, as a shell sees it."
import json, os, resource, signal, subprocess, sys, time
from pathlib import Path
import pytest
from lotterybook.foundations.data import FILES
from lotterybook.foundations.deep_networks import NETWORKS
from lotterybook.foundations.sweeps import RunFailed
from lotterybook.tickets.replicates import CONDITIONS, search_settings
from lotterybook.tools.command_line import main, parser

root = Path(__file__).resolve().parent.parent
tool = Path(sys.executable).parent/'lotterybook'

def lotterybook(*args, cwd, **kw): return subprocess.run([tool, *args], cwd=cwd, capture_output=True, text=True, **kw)

def one_line(done):
    "The message of a user's mistake: exit code 2, one line, no traceback"
    assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith('lotterybook: ')
    return lines[0]

@pytest.mark.parametrize('command', ['', 'run', 'find', 'fetch', 'site', 'readme', 'links', 'lab', 'compare'])
def test_help(command, tmp_path):
    done = lotterybook(*command.split(), '--help', cwd=tmp_path)
    assert done.returncode == 0 and 'exit codes' in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 100

def test_usage_errors(tmp_path):
    for args in ([], ['walk'], ['run', '-j', 'two'], ['find', '--data', 'digits']):
        assert lotterybook(*args, cwd=tmp_path).returncode == 2

def test_no_command_shows_the_help(tmp_path):
    done = lotterybook(cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, '') and 'run pages from top to bottom' in done.stderr

def test_control_rounds_that_are_none(tmp_path):
    done = lotterybook('find', '--out', 'there', '--control-rounds', 'a', cwd=tmp_path)
    assert done.returncode == 2 and "--control-rounds: 'a' is not a list of rounds" in done.stderr and '_rounds value' not in done.stderr
    assert not list(tmp_path.iterdir())

def test_help_of_find_names_its_defaults(tmp_path):
    told = ' '.join(lotterybook('find', '--help', cwd=tmp_path).stdout.split())
    digits, mnist, (*usual, other, last_one) = search_settings('digits'), search_settings('mnist'), CONDITIONS
    assert f'1); default: {mnist["rate"]}' in told
    assert f'default: {digits["steps"]:,} on digits, else as in the paper (lenet: {mnist["steps"]:,})' in told
    *nets, last = NETWORKS
    assert f'{", ".join(nets)} or {last}; default: {mnist["net"]}' in told
    assert f'default: {",".join(usual)}; there are also {other} and {last_one}' in told

def test_help_of_fetch_names_all_there_is_to_fetch(tmp_path):
    told = lotterybook('fetch', '--help', cwd=tmp_path).stdout
    assert all(name in told for name in FILES)

def test_arguments_are_passed_on_and_no_others():
    given = vars(parser().parse_args('run 110 cumax -j 2 -p steps 9 -p run try'.split()))
    assert given['pages'] == ['110', 'cumax'] and given['parameter'] == [['steps', '9'], ['run', 'try']]
    def find(text): return vars(parser().parse_args(['find', *text.split()]))
    assert find('--out there --rounds 2') == dict(command='find', out='there', rounds=2)
    assert find('--out there --usual-steps --stack') == dict(command='find', out='there', usual_steps=True, stack=True)
    more = find('--out there --conditions ticket,reinit --control-rounds 1,2 --rate .3')
    assert [more[o] for o in ('conditions', 'control_rounds', 'rate')] == [['ticket', 'reinit'], [1, 2], .3]

@pytest.mark.parametrize('error, code, line', [(RunFailed('run seed=0 failed:\n  no memory'), 1, 'run seed=0 failed: no memory'), (OSError('no space'), 2, 'no space')])
def test_a_run_that_fails_prints_a_line(error, code, line, monkeypatch, capsys):
    def find(**flags): raise error
    monkeypatch.setattr('lotterybook.tools.find.find', find)
    assert main(['find', '--out', 'there']) == code and capsys.readouterr() == ('', f'lotterybook: {line}\n')

def test_a_mistake_of_the_library_shows_its_traceback(monkeypatch):
    def find(**flags): raise RuntimeError('a bug')
    monkeypatch.setattr('lotterybook.tools.find.find', find)
    with pytest.raises(RuntimeError, match='a bug'): main(['find', '--out', 'there'])

def test_fetch_of_what_ships_with_the_packages(capsys):
    assert main(['fetch', 'digits']) == 0 and capsys.readouterr() == ('digits: nothing to fetch, it ships with scikit-learn\n', '')

def test_unknown_page(tmp_path):
    assert "no page '111'; did you mean 110? The pages are" in one_line(lotterybook('run', '111', cwd=tmp_path))
    assert not list(tmp_path.iterdir())

def test_unknown_parameter(tmp_path):
    assert "no parameter 'colour': 110_cumax has" in one_line(lotterybook('run', '110', '-p', 'colour', 'red', cwd=tmp_path))
    assert not list(tmp_path.iterdir())

def test_a_run_that_leaves_its_folder(tmp_path):
    for name in ('../../x', 'a/b', ''): assert 'makes no file name' in one_line(lotterybook('run', '900', '-p', 'run', name, cwd=tmp_path))
    assert not list(tmp_path.iterdir())

def test_unwritable_folder(tmp_path):
    (tmp_path/'file').write_text('in the way')
    one_line(lotterybook('run', '110', '--out', 'file', cwd=tmp_path))

def test_run_one_page(tmp_path):
    done = lotterybook('run', 'cumax', '--out', 'there', cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '1 of 1 pages ran' in done.stdout and f"executed pages  {Path('there')/'pages'}" in done.stdout
    assert (tmp_path/'there'/'pages'/'1_ordered_neurons'/'110_cumax.ipynb').is_file()
    assert (tmp_path/'there'/'report.json').is_file()

def test_full_disk(tmp_path):
    "No file may grow beyond 100 kB: one page fits. Both are told, the report is whole, and no half page is left."
    def cramped(): resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    done = lotterybook('run', '715', '720', '--out', 'out', cwd=tmp_path, preexec_fn=cramped)
    assert done.returncode == 1 and 'Traceback' not in done.stderr, done.stdout + done.stderr
    assert '1 of 2 pages ran' in done.stdout and '720_randomness  cell None: OSError: [Errno 27] File too large' in done.stdout
    report = json.loads((tmp_path/'out'/'report.json').read_text())
    assert [(o['page'], o['ok']) for o in report['pages']] == [('715_progress', True), ('720_randomness', False)]
    assert [o.name for o in (tmp_path/'out'/'pages').rglob('*.ipynb')] == ['715_progress.ipynb']

def test_folder_removed_during_the_run(tmp_path):
    "A page that ran and is gone is a failure, told by name."
    work = subprocess.Popen([tool, 'run', '715', '720', '-j', '1', '--out', 'out'], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert 'ok' in (line := work.stdout.readline()) and '715_progress' in line
    (tmp_path/'out').rename(tmp_path/'elsewhere')
    said = work.communicate(timeout=120)[0]
    assert work.returncode == 1 and '715_progress.ipynb was removed during the run' in said and '2 of 2 pages ran' not in said # the second may begin before or after

def test_fetch_of_unknown_data(tmp_path):
    assert 'mnist' in one_line(lotterybook('fetch', 'nist', cwd=tmp_path))

# --- interrupted

def kernels(out):
    "Processes whose environment names the folder `out`: the kernels of a run, and what they started"
    found = []
    for o in Path('/proc').glob('[0-9]*'):
        try:
            if str(out).encode() in (o/'environ').read_bytes() and b'ipykernel' in (o/'cmdline').read_bytes(): found.append(int(o.name))
        except OSError: pass # ended meanwhile, or not ours
    return found

def until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(.1)

def hear_ctrl_c():
    "A shell lets what it starts in the background ignore Ctrl-C, and whatever that starts."
    signal.signal(signal.SIGINT, signal.SIG_DFL)

@pytest.mark.skipif(not Path('/proc/self/environ').exists(), reason='needs /proc, to see which processes are left')
@pytest.mark.parametrize('how, code', [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_kernel_is_left(how, code, tmp_path):
    out  = tmp_path/'out'
    page = [o.stem for o in sorted((root/'nbs').rglob('7*.ipynb'))]
    work = subprocess.Popen([tool, 'run', *page, '-j', '2', '--out', out], cwd=tmp_path, stdout=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c,
                            env={k: v for k, v in os.environ.items() if k != 'LOTTERYBOOK_RESULTS'})
    try:
        until(lambda: len(kernels(out)) == 2, 60)
        work.send_signal(how)
        said, _ = work.communicate(timeout=30)
        assert work.returncode == code
        until(lambda: not kernels(out), 30) # a kernel looks once a second whether its parent is there
        if how == signal.SIGINT: assert 'to run what is left: lotterybook run' in said
    finally: work.kill()

def test_notes_of_an_interruption(monkeypatch, capsys, tmp_path):
    "What was interrupted says what is kept, once."
    def stop(*_, **__):
        e = KeyboardInterrupt()
        e.add_note('2 of 3 runs are done and kept in out.')
        raise e
    monkeypatch.setattr('lotterybook.foundations.sweeps.sweep', stop)
    assert main(['compare', '--methods', 'ticket', '--out', str(tmp_path/'out')]) == 130
    assert capsys.readouterr().err == '\nlotterybook: stopped. 2 of 3 runs are done and kept in out.\n'
