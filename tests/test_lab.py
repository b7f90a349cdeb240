"JupyterLab on a copy of the pages: a real server answers, and the clone stays as it was."
import json, os, re, shutil, signal, socket, subprocess, sys, time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from lotterybook.tools.lab import copy_pages
from lotterybook.tools.pages import find_pages, page_cells, page_text

root = Path(__file__).resolve().parent.parent
tool = Path(sys.executable).parent/'lotterybook'
home = ('CONFIG_DIR', 'RUNTIME_DIR', 'DATA_DIR') # of Jupyter: nothing of this machine's, and nothing left on it

address = r'(http://127\.0\.0\.1:\d+)/lab/tree/index\.ipynb\?token=(\w{32,})'

def listens(server):
    with socket.socket() as o: return o.connect_ex(('127.0.0.1', int(server.rsplit(':', 1)[1]))) == 0

@contextmanager
def served(folder, *options, **environment):
    "(address, token, all that was printed so far) of `lotterybook lab` in `folder`"
    quiet = {f'JUPYTER_{o}': str(folder/'jupyter'/o) for o in home} | dict(IPYTHONDIR=str(folder/'ipython'))
    given = {k: v for k, v in os.environ.items() if k not in ('BROWSER', 'DISPLAY', 'JUPYTER_TOKEN', 'JUPYTER_PORT')} | quiet | environment
    with open(folder/'log', 'w') as log:
        work = subprocess.Popen([sys.executable, tool, 'lab', *options], cwd=folder, env=given, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 90
        while not ((found := re.search(address, (folder/'log').read_text())) and listens(found[1])): # the address is printed a little earlier
            assert work.poll() is None and time.monotonic() < end, (folder/'log').read_text()
            time.sleep(.1)
        yield found[1], found[2], lambda: (folder/'log').read_text()
    finally:
        work.send_signal(signal.SIGTERM)
        try: work.wait(20)
        except subprocess.TimeoutExpired: work.kill(); work.wait()

def asked(address, token, path, **more):
    "Status and content of an answer"
    head = dict(Authorization=f'token {token}') if token else {}
    try:
        with urlopen(Request(address + path, headers=head, **more), timeout=20) as o: return o.status, json.loads(o.read() or 'null')
    except HTTPError as e: return e.code, None

def seen_by_git():
    if not shutil.which('git') or not (root/'.git').exists(): return None
    return subprocess.run(['git', 'status', '--porcelain'], cwd=root, capture_output=True, text=True, check=True).stdout

def test_a_server_with_a_token_on_a_copy(tmp_path):
    before = seen_by_git()
    with served(tmp_path, '--no-browser') as (address, token, said):
        status, page = asked(address, token, '/api/contents/1_ordered_neurons/110_cumax.ipynb')
        assert status == 200 and page['content']['cells'][0]['source'].startswith('# cumax')
        assert asked(address, None, '/api/contents/index.ipynb')[0] == 403
        assert asked(address, '0'*len(token), '/api/contents/index.ipynb')[0] == 403
        # saved as JupyterLab saves a page that was run: the slider's text is left out
        slider = dict(output_type='display_data', metadata={}, data={'text/plain': 'interactive(children=(IntSlider(value=5',
                                                                    'application/vnd.jupyter.widget-view+json': dict(model_id='a')})
        figure = dict(output_type='display_data', metadata={}, data={'text/plain': '<Figure>'})
        cells  = next(o for o in page['content']['cells'] if o['cell_type'] == 'code')
        cells['outputs'] = [slider, figure]
        body = json.dumps(dict(type='notebook', format='json', content=page['content'])).encode()
        assert asked(address, token, '/api/contents/1_ordered_neurons/110_cumax.ipynb', data=body, method='PUT')[0] == 200
        saved = (tmp_path/'lotterybook-pages'/'1_ordered_neurons'/'110_cumax.ipynb').read_text()
        assert 'interactive(' not in saved and '<Figure>' in saved
        # a second reader gets another port
        with served(make(tmp_path/'second'), '--no-browser') as (other, *_): assert other != address
        port = address.rsplit(':', 1)[1]
        done = subprocess.run([tool, 'lab', '--port', port], cwd=make(tmp_path/'third'), capture_output=True, text=True)
        assert done.returncode == 2 and f'port {port} cannot be used (Address already in use): name another one' in done.stderr
        assert not list((tmp_path/'third').iterdir())
    assert seen_by_git() == before
    log = said()
    assert f'{len(find_pages(folder=root/"nbs"))} pages copied' in log
    assert ('You are root.' in log) == (os.geteuid() == 0)
    # once more: the page that was saved is kept
    with served(tmp_path, '--no-browser') as (_, _, said): assert '1 kept because they differ from it: 110_cumax.ipynb' in said()
    assert (tmp_path/'lotterybook-pages'/'1_ordered_neurons'/'110_cumax.ipynb').read_text() == saved

def make(folder):
    folder.mkdir(parents=True)
    return folder

def test_without_a_browser(tmp_path):
    "Where no browser is found the address is printed, and the server goes on"
    with socket.socket() as o: o.bind(('127.0.0.1', 0)); port = o.getsockname()[1]
    with served(tmp_path, '--port', str(port), PATH=str(make(tmp_path/'empty'))) as (address, token, said):
        assert address.endswith(f':{port}') and asked(address, token, '/api/status')[0] == 200
        assert 'No web browser found' in said()

def refused(*args, **kw):
    done = subprocess.run([tool, 'lab', '--no-browser', *map(str, args)], capture_output=True, text=True, **kw)
    assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stdout + done.stderr
    return done.stderr

def test_bad_input(tmp_path):
    assert '--port 0: ports go from 1 to 65535' in refused('--port', 0, cwd=tmp_path)
    assert '--port 70000: ports go from' in refused('--port', 70000, cwd=tmp_path)
    (tmp_path/'file').write_text('mine')
    assert 'file cannot be written to as a folder' in refused('file', cwd=tmp_path)
    assert 'is inside the book' in refused(root/'nbs'/'copy', cwd=tmp_path)
    assert 'is inside the book' in refused(root/'nbs', cwd=tmp_path)
    assert [o.name for o in tmp_path.iterdir()] == ['file'] and not (root/'nbs'/'copy').exists()

def test_a_folder_that_cannot_be_written_to(tmp_path):
    if os.geteuid() == 0: (tmp_path/'there').write_text('') # permissions do not stop root
    else: make(tmp_path/'there').chmod(0o500)
    assert 'there cannot be written to as a folder' in refused('there', cwd=tmp_path)

def test_without_jupyterlab(tmp_path):
    ask = ('import sys, lotterybook.tools.lab as lab; lab.find_spec = {}.get\n'
           'from lotterybook.tools.command_line import main; sys.exit(main(["lab"]))')
    done = subprocess.run([sys.executable, '-c', ask], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'lotterybook[notebooks]'" in done.stderr and not list(tmp_path.iterdir())

def notebook(*tagged):
    "The text of a notebook: a code cell for each (source, tags)"
    cells = [dict(cell_type='code', id=f'a{i}', source=source, outputs=[], execution_count=None, metadata=dict(tags=tags))
             for i, (source, *tags) in enumerate(tagged)]
    return page_text(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5))

def test_the_copy_folds_what_the_site_folds(tmp_path):
    book, mine = make(tmp_path/'nbs'), tmp_path/'mine'
    page = notebook(('plain',), ('import torch', 'hide-input'), ('solution', 'hide-cell'), ('#| default_exp a.b',), ('steps = 5', 'parameters'))
    (book/'110_a.ipynb').write_text(page)
    copy_pages(mine, book)
    marks = [o['metadata'].get('jupyter') for o in page_cells(mine/'110_a.ipynb')]
    shut  = lambda outputs: dict(source_hidden=True, outputs_hidden=outputs)
    assert marks == [None, shut(False), shut(True), shut(False), None]
    assert (book/'110_a.ipynb').read_text() == page
    assert copy_pages(mine, book).same == [Path('110_a.ipynb')]

def test_nothing_is_overwritten(tmp_path):
    book, mine = tmp_path/'nbs', tmp_path/'mine'
    for name in ('index.ipynb', '1_a/110_b.ipynb', '9_e/results/900_x/full.csv', '9_e/results/900_x/quick.csv', '9_e/full.yaml',
                 '9_e/runs/x.ipynb', '.ipynb_checkpoints/a.ipynb', '_draft.ipynb', 'notes.txt'):
        (book/name).parent.mkdir(parents=True, exist_ok=True); (book/name).write_text(notebook((name,)) if name.endswith('.ipynb') else name)
    first = copy_pages(mine, book)
    assert [o.as_posix() for o in first.new] == ['1_a/110_b.ipynb', '9_e/full.yaml', '9_e/results/900_x/full.csv', 'index.ipynb']
    assert not first.same + first.kept
    (mine/'1_a'/'110_b.ipynb').write_text('my notes'); (mine/'1_a'/'115_mine.ipynb').write_text('mine'); (mine/'index.ipynb').unlink()
    (mine/'9_e'/'full.yaml').unlink(); (mine/'9_e'/'full.yaml').symlink_to(tmp_path/'nowhere') # a link that leads nowhere is the reader's
    (book/'1_a'/'120_c.ipynb').write_text(notebook(('new',)))
    again = copy_pages(mine, book)
    assert [o.as_posix() for o in again.new] == ['1_a/120_c.ipynb', 'index.ipynb']
    assert [o.as_posix() for o in again.kept] == ['1_a/110_b.ipynb', '9_e/full.yaml']
    assert [o.as_posix() for o in again.same] == ['9_e/results/900_x/full.csv']
    assert (mine/'1_a'/'110_b.ipynb').read_text() == 'my notes' and (mine/'1_a'/'115_mine.ipynb').read_text() == 'mine'
    assert not (tmp_path/'nowhere').exists()
