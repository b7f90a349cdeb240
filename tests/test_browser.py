"""A real JupyterLab in a real browser: all cells of a page run, its controls move, the picture changes; every formula of the book is set.

Three pages have their controls moved; with LOTTERYBOOK_ALL_SLIDERS=1 every page that has some.
"""
import json, os, re, secrets, shutil, socket, subprocess, sys, tempfile, time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen
import pytest
from lotterybook.tools.lab import copy_pages
from lotterybook.tools.pages import find_pages

root    = Path(__file__).resolve().parent.parent
sliders = [o for o in find_pages(folder=root/'nbs') if re.search(r'import\b[^"]*\binteract\b', o.read_text(encoding='utf-8'))]
if not os.environ.get('LOTTERYBOOK_ALL_SLIDERS'): # three pages, one of each part that has some, are enough for every day
    sliders = [o for o in sliders if o.stem in ('110_cumax', '220_allocation', '300_rewinding')]
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
    "A JupyterLab on this machine alone, with settings of its own: (folder with a reader's copy of the book, address, token)"
    home, port, token = Path(tempfile.mkdtemp(prefix='lab')), free_port(), secrets.token_hex(16)
    write_settings(home/'config'); copy_pages(home/'pages', root/'nbs')
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
    const cells  = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')].filter(o => o.querySelector('.cm-content')?.innerText.trim()); // not folded
    const failed = [...document.querySelectorAll('.jp-Notebook .jp-OutputArea-output')].some(o => o.innerText.includes('Traceback (most recent call last)'));
    return failed || (cells.length && cells.every(o => /\[\d+\]/.test(o.querySelector('.jp-InputPrompt').innerText)));
}'''
def run_all(page):
    "Run all cells through the menu, as a reader would, and see that none failed"
    page.locator('.jp-Notebook').first.wait_for()
    page.locator('#jp-main-statusbar').get_by_text(re.compile(r'\| Idle$')).wait_for() # before that, a dialog would ask for a kernel
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name=re.compile('^Run All Cells')).click()
    page.wait_for_function(ran, timeout=5*wait) # a page takes ten seconds, on a busy machine ten times as long
    page.locator('#jp-main-statusbar').get_by_text(re.compile(r'\| Idle$')).wait_for() # the last cells may be folded
    assert no_failure(page)

def no_failure(page):
    "True, if no output is a traceback"
    failed = [o for o in page.locator('.jp-Notebook .jp-OutputArea-output').all_inner_texts() if 'Traceback (most recent call last)' in o]
    assert not failed, failed[0]
    return True

# What a block that `interact` made shows, as a short text, and all that a reader can take hold of in it
shown   = '''i => {
    const o = document.querySelectorAll('.jp-Notebook .widget-interact')[i].querySelector('.widget-output'), s = o.innerHTML;
    let h = 0; for (let k = 0; k < s.length; k++) h = (h*31 + s.charCodeAt(k)) | 0;
    return o.innerText.trim() || o.querySelector('img[src], svg') ? `${s.length} ${h}` : '' }'''
other   = f'([i, was]) => {{ const now = ({shown})(i); return now && now !== was }}'
parts   = '.noUi-handle, select, input[type=checkbox], input[type=radio]:not(:checked), input[type=text], input[type=number], textarea, .widget-toggle-button'

def drag(page, handle):
    "Take a slider's handle with the mouse, to the left end or to three quarters of its track, whichever is farther"
    handle.scroll_into_view_if_needed()
    box, track = handle.bounding_box(), handle.locator('xpath=ancestor::*[contains(@class, "noUi-base")]').bounding_box()
    x, y   = box['x'] + box['width']/2, box['y'] + box['height']/2
    target = track['x'] + track['width'] * (.75 if x < track['x'] + track['width'] * .4 else .05)
    page.mouse.move(x, y); page.mouse.down(); page.mouse.move(target, y, steps=8); page.mouse.up()

def moves(page, kind, control, texts):
    "Ways to give a control another value, one after the other; `texts` are those that the block's fields had"
    def press(key): control.focus(); page.keyboard.press(key)
    def write(text): control.fill(text); control.press('Enter')
    if kind == 'slider':
        yield lambda: drag(page, control)
        for key in ('ArrowRight', 'ArrowLeft', 'End', 'Home'): yield lambda key=key: press(key)
    elif kind.startswith('select'):
        for k in range(control.locator('option').count()): yield lambda k=k: control.select_option(index=k)
    elif kind in ('text', 'textarea'): # what another field had is a text that the page can read
        for text in texts: yield lambda text=text: write(text)
    elif kind == 'number':
        for key in ('ArrowUp', 'ArrowDown'): yield lambda key=key: press(key)
    else: yield control.click

def move_all(page):
    "Move every control; each must change what its block shows. How many there were"
    from playwright.sync_api import TimeoutError
    blocks = page.locator('.jp-Notebook .widget-interact')
    count  = 0
    for i in range(blocks.count()):
        block = blocks.nth(i)
        block.scroll_into_view_if_needed()
        page.wait_for_function(f'i => ({shown})(i)', arg=i)
        texts = block.locator('input[type=text], textarea').evaluate_all('os => os.map(o => o.value)')
        here  = block.locator(parts).and_(page.locator(':not(.widget-output *)'))
        for k in range(here.count()):
            control = here.nth(k)
            kind = control.evaluate("o => o.className.includes('noUi-handle') ? 'slider' : o.type || 'button'")
            label, done = label_of(control), []
            for move in moves(page, kind, control, texts):
                was = page.evaluate(shown, i)
                move()
                try: page.wait_for_function(other, arg=[i, was], timeout=wait/6)
                except TimeoutError: continue
                done.append(move)
                if kind != 'slider' or len(done) == 2: break # by hand and by the keyboard
            assert done, f'block {i}: moving the {kind} {label!r} changes nothing'
            count += 1
    return count

def label_of(control):
    "What stands before a control"
    return control.evaluate("o => o.closest('.jupyter-widgets:not(.noUi-target)')?.querySelector('label, .widget-label')?.innerText ?? ''")

def test_some_page_has_a_slider(): assert sliders

@pytest.mark.parametrize('notebook', sliders, ids=lambda o: o.stem)
def test_controls_change_what_is_shown(notebook, lab, chromium):
    folder, base, token = lab
    with browser_page(chromium) as page:
        page.goto(f'{base}/lab/tree/{notebook.relative_to(root/"nbs").as_posix()}?token={token}&reset')
        run_all(page)
        assert move_all(page)
        assert no_failure(page)

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
