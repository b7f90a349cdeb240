"A real JupyterLab in a real browser: all cells of a page run, its slider moves, the picture changes; every formula of the book is set."
import json, os, re, secrets, shutil, socket, subprocess, sys, tempfile, time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen
import pytest
from lotterybook.tools.pages import find_pages

root    = Path(__file__).resolve().parent.parent
sliders = [o for o in find_pages(folder=root/'nbs') if re.search(r'import .*\binteract\b', o.read_text(encoding='utf-8'))]
if not os.environ.get('LOTTERYBOOK_ALL_SLIDERS'): # three pages, one of each part that has some, are enough for every day
    sliders = [o for o in sliders if o.stem in ('110_cumax', '220_allocation', '310_iterative')]
wait    = 120_000 # milliseconds for any one step

def free_port():
    with socket.socket() as o: o.bind(('127.0.0.1', 0)); return o.getsockname()[1]

def write_settings(folder):
    "No news from the network; all cells in the page, also those off screen"
    for name, value in {'apputils-extension/notification': dict(fetchNews='false', checkForUpdates=False),
                        'notebook-extension/tracker': dict(windowingMode='none')}.items():
        file = folder/'lab'/'user-settings'/'@jupyterlab'/f'{name}.jupyterlab-settings'
        file.parent.mkdir(parents=True, exist_ok=True); file.write_text(json.dumps(value))

def answers(base, token):
    try: return urlopen(Request(f'{base}/api/status', headers=dict(Authorization=f'token {token}')), timeout=2).status == 200
    except OSError: return False

@pytest.fixture(scope='module')
def lab(chromium):
    "A JupyterLab on this machine alone, with settings of its own: (folder that it serves, address, token)"
    home, port, token = Path(tempfile.mkdtemp(prefix='lab')), free_port(), secrets.token_hex(16)
    write_settings(home/'config'); (home/'pages').mkdir()
    env  = dict(os.environ, JUPYTER_CONFIG_DIR=str(home/'config'), JUPYTER_RUNTIME_DIR=str(home/'run'), JUPYTER_DATA_DIR=str(home/'data'),
                IPYTHONDIR=str(home/'ipython'), OMP_NUM_THREADS='1', JUPYTER_PREFER_ENV_PATH='1')
    with open(home/'log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}',
                                   '--ServerApp.port_retries=0', f'--IdentityProvider.token={token}', f'--ServerApp.root_dir={home/"pages"}'],
                                  env=env, stdout=log, stderr=subprocess.STDOUT)
    base, end = f'http://127.0.0.1:{port}', time.monotonic() + 90
    try:
        while not answers(base, token):
            assert server.poll() is None and time.monotonic() < end, 'JupyterLab did not start:\n' + (home/'log').read_text()[-3000:]
            time.sleep(.2)
        yield home/'pages', base, token
    finally:
        server.terminate() # it ends its kernels
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill(); server.wait()
        shutil.rmtree(home, ignore_errors=True)

@contextmanager
def browser_page(chromium):
    from playwright.sync_api import sync_playwright
    quiet = ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-sync']
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, headless=True, args=quiet)
        page = browser.new_page(viewport=dict(width=1280, height=1000))
        page.set_default_timeout(wait)
        try: yield page
        finally: browser.close()

ran = r'''() => {
    const cells  = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')].filter(o => o.querySelector('.cm-content').innerText.trim());
    const failed = [...document.querySelectorAll('.jp-Notebook .jp-OutputArea-output')].some(o => o.innerText.includes('Traceback (most recent call last)'));
    return failed || (cells.length && cells.every(o => /\[\d+\]/.test(o.querySelector('.jp-InputPrompt').innerText)));
}'''
changed = '''was => { const o = document.querySelector('.jp-Notebook .widget-output img'); return o && o.src && o.src !== was }'''

def run_all(page):
    "Run all cells through the menu, as a reader would, and see that none failed"
    page.locator('.jp-Notebook').first.wait_for()
    page.locator('#jp-main-statusbar').get_by_text(re.compile(r'\| Idle$')).wait_for() # before that, a dialog would ask for a kernel
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name=re.compile('^Run All Cells')).click()
    page.wait_for_function(ran)
    failed = [o for o in page.locator('.jp-Notebook .jp-OutputArea-output').all_inner_texts() if 'Traceback (most recent call last)' in o]
    assert not failed, failed[0]

def source_of_picture(page): return page.evaluate("document.querySelector('.jp-Notebook .widget-output img').src")

def drag(page):
    "Take the slider's handle with the mouse, to the left end or to three quarters of its track, whichever is farther"
    handle = page.locator('.jp-Notebook .noUi-handle').first
    handle.scroll_into_view_if_needed()
    box, track = handle.bounding_box(), page.locator('.jp-Notebook .noUi-base').first.bounding_box()
    x, y   = box['x'] + box['width']/2, box['y'] + box['height']/2
    target = track['x'] + track['width'] * (.75 if x < track['x'] + track['width'] * .4 else .05)
    page.mouse.move(x, y); page.mouse.down(); page.mouse.move(target, y, steps=8); page.mouse.up()
    return handle

def test_some_page_has_a_slider(): assert sliders

@pytest.mark.parametrize('notebook', sliders, ids=lambda o: o.stem)
def test_slider_moves_the_picture(notebook, lab, chromium):
    folder, base, token = lab
    shutil.copy(notebook, folder)
    with browser_page(chromium) as page:
        page.goto(f'{base}/lab/tree/{notebook.name}?token={token}&reset')
        run_all(page)
        page.locator('.jp-Notebook .widget-output img').first.wait_for()
        readout = page.locator('.jp-Notebook .widget-readout').first
        values, first = [readout.inner_text()], source_of_picture(page)
        handle = drag(page); page.wait_for_function(changed, arg=first) # by hand
        values.append(readout.inner_text()); second = source_of_picture(page)
        handle.focus(); page.keyboard.press('ArrowRight'); page.wait_for_function(changed, arg=second) # and by the keyboard
        values.append(readout.inner_text())
    assert len(set(values)) == 3, values

wrong = r'''() => [...document.querySelectorAll('.jp-Notebook mjx-container')]
    .filter(o => o.querySelector('mjx-merror, [data-mjx-error], [style="color: red;"], [mathcolor="red"]'))
    .map(o => o.closest('.jp-Cell').innerText.slice(0, 200))'''

def test_formulas_are_set(lab, chromium):
    "All formulas of the book in one page; two broken ones at its end show that a broken one is seen"
    folder, base, token = lab
    cells = [c for o in find_pages(folder=root/'nbs') for c in json.loads(o.read_text(encoding='utf-8'))['cells']
             if c['cell_type'] == 'markdown' and '$' in re.sub('`[^`]*`', '', ''.join(c['source']))]
    broken = [dict(cell_type='markdown', id=f'broken-{k}', metadata={}, source=o) for k, o in enumerate((r'$\frac{1}$ one', r'$\nosuch$ two'))]
    for k, c in enumerate(cells): c['id'] = f'cell-{k}'
    book = dict(cells=cells + broken, metadata={}, nbformat=4, nbformat_minor=5)
    (folder/'formulas.ipynb').write_text(json.dumps(book), encoding='utf-8')
    with browser_page(chromium) as page:
        page.goto(f'{base}/lab/tree/formulas.ipynb?token={token}&reset')
        page.wait_for_function(f"document.querySelectorAll('.jp-Notebook .jp-Cell').length == {len(book['cells'])}")
        page.wait_for_function("[...document.querySelectorAll('.jp-Notebook .jp-Cell')].every(o => o.querySelector('mjx-container'))")
        seen = page.evaluate(wrong)
    assert [o.split()[-1] for o in seen] == ['one', 'two'], seen
