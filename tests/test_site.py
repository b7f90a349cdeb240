"The web site: what it shows, that it is complete offline and fits a phone, and what is refused."
import json, os, re, shutil, sys, threading
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import pytest
from test_browser import browser_page
from test_command_line import lotterybook, one_line
from lotterybook.tools.pages import find_pages, page_cells, run_page
from lotterybook.tools.reference import module_reference, reference
from lotterybook.tools.site import dead_links, site

for package in ('sphinx', 'myst_nb', 'sphinx_book_theme', 'math_core', 'ziamath'):
    pytest.importorskip(package, reason="the site's packages are missing: pip install 'lotterybook[site]'")

pytestmark = pytest.mark.filterwarnings('ignore::PendingDeprecationWarning', 'ignore::DeprecationWarning')  # of extensions, for later Sphinx

root = Path(__file__).resolve().parent.parent
dot  = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=='

# --- a book of four pages

def md(id, text, *tags): return dict(cell_type='markdown', id=id, metadata=dict(tags=list(tags)), source=text)

def code(id, source, *outputs, tags=()):
    return dict(cell_type='code', id=id, metadata=dict(tags=list(tags)), source=source, outputs=list(outputs), execution_count=None)

def shown(**data): return dict(output_type='display_data', metadata={}, data={k.replace('_', '/', 1): v for k, v in data.items()})
def printed(text): return dict(output_type='stream', name='stdout', text=text)

def write(file, *cells):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dict(cells=list(cells), metadata={}, nbformat=4, nbformat_minor=5)), encoding='utf-8')

long   = 'a_name_without_a_place_to_break_it.'*4
widget = dict(output_type='display_data', metadata={}, data={'application/vnd.jupyter.widget-view+json': dict(model_id='a')})
alpha  = [
    md('title', '# Alpha\n> The first page.'),
    code('install', '%pip install lotterybook', tags=['hide-cell']), md('nav-end', '[after](120_beta.ipynb) a line that a command writes'),
    code('default-exp', '#| default_exp part.alpha'),
    md('formulas', 'Inline $m \\odot \\theta_0$, of its own\n\n$$\\sum_k g_k = 1$$\n\nand within\n$$\\frac{a}{b}$$\na paragraph; '
       f'a price is `$5`. Also `{long}` and\n\n| a | {"wide | "*12}\n|---|{"---|"*12}\n| 1 | {"long words in it | "*12}'),
    code('export-function', '#| export\ndef function(): pass'),
    code('imports', 'import torch', tags=['hide-input']),
    code('machinery', 'x = "machinery"', printed('much\n'), tags=['hide-cell']),
    md('five', '## Five seeds\n\n```python\n# no heading\n```'),
    code('figure', 'draw()', shown(image_png=dot, text_plain='Tickets win. Horizontal: weights.')),
    code('old-figure', 'draw_two()', shown(image_png=dot, text_plain='<Figure size 600x320 with 1 Axes>')),
    code('slider', 'interact(draw)', widget),
    code('table', 'verdicts', shown(text_markdown='| claim | $p$ |\n|---|---|\n| [page 120](120_beta.ipynb) | holds |')),
    md('links', 'See [page 120](120_beta.ipynb#Where-it-ends), [its cell](120_beta.ipynb#cell-last), [a test](../../tests/test_it.py), '
       '[data](../data.npz), [notes](../notes.md), [all](../../README.md), `[no](link.md)`, <a id="term"></a>[here](#term)'),
    md('exercises', '**Exercises.** 1. Why?'),
    md('solutions', '## Solutions\n\n1. First.\n2. Because.', 'hide-cell'),
    code('solution-1', '1 + 1', printed('2\n')),
    md('hood', '## Under the hood\n\nMore.', 'hide-cell')]
beta = [md('title', '# Beta\n> The second page.'), md('ends', '## Where it ends'), code('last', '3', printed('3\n'))]

def exported(page):
    "The cells of a page of ours that its module names, executed."
    return [code(o['id'], ''.join(o['source']), printed('done\n')) for o in page_cells(page) if ''.join(o['source']).startswith('#| export')]

def make_book(folder):
    book = folder/'nbs'
    write(book/'index.ipynb', md('title', '# Toy\n> A book.'), md('licence', 'Under a [licence](../LICENSE).'))
    write(book/'1_part'/'110_alpha.ipynb', *alpha)
    write(book/'1_part'/'120_beta.ipynb', *beta)
    write(book/'2_pruning'/'230_schedules.ipynb', md('title', '# Schedules\n> One of ours.'), *exported(root/'nbs'/'2_pruning'/'230_schedules.ipynb'))
    for name, text in {'LICENSE': 'Free.', 'README.md': '# Toy', 'tests/test_it.py': 'def test(): pass', 'nbs/data.npz': 'data',
                       'nbs/notes.md': '# Notes\n\nOn [Alpha](1_part/110_alpha.ipynb), a [licence](../LICENSE).'}.items():
        (folder/name).parent.mkdir(exist_ok=True); (folder/name).write_text(text)
    return book

@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    "(the book, its site)"
    book = make_book(tmp_path_factory.mktemp('book'))
    return book, site(book.parent/'out', folder=book).parent

def html(toy, name='1_part/110_alpha'):
    "The article of a page."
    text = (toy[1]/f'{name}.html').read_text(encoding='utf-8')
    return re.search(r'<article.*?</article>', text, re.S)[0]

def words(text): return unescape(re.sub(r'<[^>]*>', '', text))

def test_parts_and_chapters_in_the_side_bar(toy):
    bar = re.search(r'<nav class="bd-links.*?</nav>', (toy[1]/'index.html').read_text(encoding='utf-8'), re.S)[0]
    lines = [o.strip() for o in words(bar).splitlines() if o.strip()]
    assert lines == ['Toy', '1 part', '110 Alpha', '120 Beta', '2 pruning', '230 Schedules', 'reference', 'front doors', 'pruning']
    page = (toy[1]/'1_part'/'120_beta.html').read_text(encoding='utf-8')
    assert re.search(r'class="left-prev"\s+href="110_alpha.html"', page) and re.search(r'class="right-next"\s+href="../2_pruning/230_schedules.html"', page)

def test_what_is_left_out(toy):
    text = words(html(toy))
    for gone in ('a line that a command writes', '%pip', 'default_exp', '#|', 'model_id'): assert gone not in text
    assert 'def function' in text and 'interact' in text

def test_folded_cells_and_solutions(toy):
    folds = re.findall(r'<details.*?</details>', html(toy), re.S)
    assert ['import torch' in words(o) for o in folds] == [True, False, False, False, False]
    assert 'machinery' in words(folds[1]) and 'much' in words(folds[1])
    assert all(o in folds[2] for o in ('First.', 'Because.', '<summary>Solutions</summary>'))
    assert any('More.' in o and '<summary>Under the hood</summary>' in o for o in folds)
    assert 'Show the code of this solution' in folds[3] and '1 + 1' in words(folds[3]).replace('\xa0', ' ')
    assert not any('<details open' in o for o in folds)

def test_figures_say_what_they_show(toy):
    assert re.findall(r'<img alt="([^"]*)"', html(toy)) == ['Tickets win. Horizontal: weights.', 'Five seeds']

def test_formulas_are_drawn(toy):
    text = html(toy)
    assert len(re.findall('<math', text)) == 4 and text.count('class="formula"') == 2 and '$5' in words(text)
    assert '$' not in words(text).replace('$5', '')

def test_links(toy):
    links = re.findall(r'href="([^"#][^"]*)"', html(toy))
    for want in ('120_beta.html#where-it-ends', '120_beta.html#cell-last', '../files/tests/test_it.py.html', '../files/nbs/notes.md.html', '../index.html'):
        assert want in links, links
    assert any(o.endswith('data.npz') for o in links) and '[no](link.md)' in words(html(toy))
    assert 'def test(): pass' in words(html(toy, 'files/tests/test_it.py'))
    assert 'href="../../1_part/110_alpha.html"' in html(toy, 'files/nbs/notes.md') and 'LICENSE.html' in html(toy, 'files/nbs/notes.md')
    assert dead_links(toy[1]) == []

def test_the_notebook_comes_along(toy):
    page = '1_part/110_alpha.ipynb'
    assert (toy[1]/'_sources'/page).read_bytes() == (toy[0]/page).read_bytes()
    assert f'_sources/{page}' in (toy[1]/'1_part'/'110_alpha.html').read_text(encoding='utf-8')

def test_reference_leads_to_the_cell(toy):
    text = html(toy, 'reference/pruning')
    link = re.search(r'id="lotterybook.pruning.schedules.pruner".*?href="(\S+?)#(cell-\S+?)"', text, re.S)
    assert link[1] == '../2_pruning/230_schedules.html' and f'id="{link[2]}"' in html(toy, '2_pruning/230_schedules')
    assert 'lotterybook.pruning.schedules.pruner' in html(toy, 'reference/front_doors')

# --- in a browser

@pytest.fixture(scope='module')
def served():
    "Serves folders on this machine: call it with a folder, get its address."
    servers = []
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    def serve(folder):
        servers.append(ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=folder)))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{servers[-1].server_port}/'
    yield serve
    for o in servers: o.shutdown(); o.server_close()

sizes = '''() => [document.documentElement.scrollWidth, [...document.querySelectorAll('math')].filter(
    o => o.getClientRects().length && (o.getBoundingClientRect().width < 2 || o.querySelector('merror'))).length]'''
hidden = '''() => { const article = document.querySelector('article'), right = article ? article.getBoundingClientRect().right + 1 : 0;
    const inside = o => { for (let p = o.parentElement; p && p !== article; p = p.parentElement)
        if (getComputedStyle(p).overflowX !== 'visible') return true; return false };
    return article ? [...article.querySelectorAll('*')].filter(o => o.getClientRects().length && o.getBoundingClientRect().right > right && !inside(o))
        .map(o => o.outerHTML.slice(0, 100)).slice(0, 3) : [] }'''

def on_a_phone(chromium, base, names):
    "What is wrong with pages, 390 pixels wide: name -> what; and the requests that went elsewhere."
    wrong, asked, failed = {}, [], []
    with browser_page(chromium) as page:
        page.set_viewport_size(dict(width=390, height=800))
        page.on('request', lambda o: asked.append(o.url))
        page.on('response', lambda o: failed.append(o.url) if o.status >= 400 else None)
        for name in names:
            page.goto(base + name, wait_until='load')
            (width, empty), cut = page.evaluate(sizes), page.evaluate(hidden)
            if width > 390 or empty or cut: wrong[name] = width, empty, cut
    assert len(asked) > len(names)
    return wrong, [o for o in asked if not o.startswith((base, 'data:'))] + failed

def names_of(folder): return sorted(o.relative_to(folder).as_posix() for o in folder.rglob('*.html') if '_static' not in o.parts)

def test_no_request_leaves_and_nothing_is_cut_off(toy, chromium, served):
    assert on_a_phone(chromium, served(toy[1]), names_of(toy[1])) == ({}, [])

def test_search_and_dark_mode(toy, chromium, served):
    base = served(toy[1])
    with browser_page(chromium) as page:
        page.goto(f'{base}search.html?q=theta')
        page.locator('#search-results li a').first.wait_for()
        page.goto(f'{base}search.html?q=pruner')
        page.locator('#search-results a[href*="reference/pruning"]').first.wait_for()
        page.goto(f'{base}1_part/110_alpha.html')
        colour = lambda: page.evaluate('getComputedStyle(document.body).backgroundColor')
        before = colour()
        for _ in range(2): page.locator('.theme-switch-button:visible').first.click()
        assert len({before, colour()} | {page.evaluate('document.documentElement.dataset.theme')}) > 1
        page.locator('summary', has_text='Solutions').click()
        assert page.get_by_text('Because.').is_visible()

def test_figures_of_a_notebook_say_their_titles(tmp_path):
    write(tmp_path/'figure.ipynb', code('draw', 'import matplotlib.pyplot as plt\nfrom lotterybook.foundations.plots import use_style\nuse_style()\n'
          'plt.plot([1, 2]); plt.title("Tickets win"); plt.xlabel(r"step $\\tau$");'),
          code('again', 'fig, ax = plt.subplots(); ax.set_title("Twins lose")\nfig'))
    assert run_page(tmp_path/'figure.ipynb', tmp_path/'copy.ipynb')['ok']
    outputs = [o for c in page_cells(tmp_path/'copy.ipynb') for o in c['outputs'] if 'image/png' in o.get('data', {})]
    texts = [o['metadata']['image/png']['alt'] for o in outputs]
    assert texts == [''.join(o['data']['text/plain']) for o in outputs] == ['Tickets win. Horizontal: step tau.', 'Twins lose.', 'Twins lose.']

# --- refused

def left(folder): return sorted(o.name for o in folder.iterdir())

def test_pages_missing_or_not_executed(tmp_path):
    book = make_book(tmp_path)
    write(book/'3_bad'/'310_new.ipynb', md('title', '# New\n> N.'), code('one', '1'))
    write(book/'3_bad'/'320_error.ipynb', md('title', '# E\n> E.'), code('one', '1/0', dict(output_type='error', ename='', evalue='', traceback=[])))
    killed = code('two', '2'); killed['metadata']['papermill'] = dict(status='pending')
    write(book/'3_bad'/'330_killed.ipynb', md('title', '# K\n> K.'), code('one', '1', printed('1')), killed)
    runs = shutil.copytree(book, tmp_path/'runs')
    (runs/'1_part'/'120_beta.ipynb').unlink()
    with pytest.raises(ValueError) as e: site(tmp_path/'out', executed=runs, folder=book)
    for fault in ('1_part/120_beta.ipynb is missing', '310_new.ipynb is not executed', '320_error.ipynb ends in an error',
                  '330_killed.ipynb did not run to its end', 'lotterybook run 120_beta 310_new 320_error 330_killed'):
        assert fault in str(e.value)
    assert 'alpha' not in str(e.value) and 'out' not in left(tmp_path)

def test_executed_pages_from_elsewhere(tmp_path):
    book = make_book(tmp_path)
    runs = shutil.copytree(book, tmp_path/'elsewhere'/'pages')
    for o in runs.rglob('*.npz'): o.unlink()
    write(runs/'1_part'/'120_beta.ipynb', *beta[:2], code('last', '3', printed('three')))
    front = site(tmp_path/'out', executed=runs, folder=book)
    assert 'three' in (front.parent/'1_part'/'120_beta.html').read_text() and (front.parent/'files'/'tests'/'test_it.py.html').is_file()

@pytest.mark.parametrize('text, fault', [
    ('[gone](130_gone.ipynb)', "110_alpha.ipynb: 'myst' cross-reference target not found: '130_gone.ipynb'"),
    ('[gone](120_beta.ipynb#Nowhere)', "local id not found in doc '1_part/120_beta': 'Nowhere'"),
    ('<a href="120_beta.html#nowhere">gone</a>', '1_part/110_alpha.html -> 120_beta.html#nowhere'),
    ('[gone](../../tests/test_gone.py)', 'test_gone.py'), ('<a href="120_beta.ipynb#nowhere">gone</a>', '-> 120_beta.html#nowhere'),
    (r'$\nosuch{a}$', r'formula \nosuch{a}'), (r'$\frac{a}$', r'formula \frac{a}')])
def test_faults_are_named_and_the_old_site_stays(text, fault, tmp_path):
    book = make_book(tmp_path)
    out  = tmp_path/'out'
    out.mkdir(); (out/'.lotterybook-site').write_text('old')
    write(book/'1_part'/'110_alpha.ipynb', alpha[0], md('bad', text))
    before = left(tmp_path)
    with pytest.raises(ValueError) as e: site(out, folder=book)
    assert fault in str(e.value)
    assert left(tmp_path) == before and left(out) == ['.lotterybook-site']

def test_folders_of_others(tmp_path):
    book, out = make_book(tmp_path), tmp_path/'out'
    out.mkdir(); (out/'thesis.txt').write_text('mine')
    with pytest.raises(ValueError, match='holds files that are not a site of this book'): site(out, folder=book)
    with pytest.raises(ValueError, match='is not a folder'): site(out/'thesis.txt', folder=book)
    with pytest.raises(OSError, match='cannot be written to as a folder'): site(out/'thesis.txt'/'a', folder=book)
    assert left(out) == ['thesis.txt']

def test_an_older_site_is_replaced(toy):
    book, out = toy
    (out/'old.html').write_text('of an older edition')
    site(out, folder=book)
    assert not (out/'old.html').exists() and (out/'index.html').is_file()
    assert left(out.parent) == sorted(['LICENSE', 'README.md', 'nbs', 'out', 'tests'])

def test_without_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'myst_nb', None)
    with pytest.raises(ValueError, match=r"the site needs myst_nb: pip install 'lotterybook\[site\]'"): site(tmp_path/'out')

def test_command(tmp_path):
    (tmp_path/'thesis.txt').write_text('mine')
    assert 'not a site of this book' in one_line(lotterybook('site', '--out', '.', cwd=tmp_path))
    assert 'is missing' in one_line(lotterybook('site', '--executed', '.', cwd=tmp_path))
    assert left(tmp_path) == ['thesis.txt']

# --- the reference

def test_reference_of_strange_modules(tmp_path):
    file = tmp_path/'a.py'
    file.write_text('''__all__ = ['A', 'f', 'B', 'p']
# %% ../nbs/1_a/100_a.ipynb #one
A: int = 1
B = 2
B = 3
def _g(): pass
def f(a, /, *b: list[int], c="|", # bars | and *stars*
      **d):
    """Doc with a_b_c, `code_x`.

    Of two parts:
        indented
    """
async def p(x): pass
''')
    text = module_reference(file, 'a')
    assert text.count('{py:data}') == 2 and "f(a, /, *b, c='|', **d)" in text and r'bars \| and \*stars\*' in text
    assert r'a\_b\_c, `code_x`' in text and '```text\nOf two parts:\n    indented' in text and '_g' not in text
    file.write_text('x = 1')
    assert module_reference(file, 'a') == ''

def test_every_public_name_has_an_entry():
    from test_bad_calls import names
    text = '\n'.join(reference(root/'nbs').values())
    for module, name in names(): assert re.search(rf'\{{py:\w+\}} {name}\b', text), f'{module}.{name}'

# --- the whole book, once

def formulas(page):
    "The formulas in the Markdown of a page and of its outputs, as JupyterLab finds them, and those that are drawn in outputs."
    cells = page_cells(page)
    texts = [''.join(o['source']) for o in cells if o['cell_type'] == 'markdown' and o['id'] != 'nav-end']
    texts += [''.join(out['data']['text/markdown']) for o in cells for out in o.get('outputs', []) if 'text/markdown' in out.get('data', {})]
    drawn = [m for o in cells for out in o.get('outputs', []) for m in re.findall('<math', ''.join(out.get('data', {}).get('text/html', '')))]
    spans = r'^ *```.*?^ *```|(?<!`)(?:`[^`\n]+`|``.+?``)(?!`)'
    return drawn + [m[0] for o in texts for m in re.finditer(r'\$\$.+?\$\$|(?<![\\$])\$(?!\$)[^$]+?\$', re.sub(spans, '', o, flags=re.M | re.S), re.S)]

def test_the_whole_book(tmp_path, chromium, served):
    "Built without a fault; every formula is drawn, every figure has a text, every page fits a phone, no request leaves."
    folder = site(tmp_path/'out', folder=root/'nbs').parent
    for page in find_pages(folder=root/'nbs'):
        text  = html((None, folder), page.relative_to(root/'nbs').with_suffix('').as_posix())
        prose = re.sub(r'<pre.*?</pre>|<code.*?</code>', '', text, flags=re.S)
        assert len(re.findall(r'<math\b', text)) == len(formulas(page)) and '$' not in words(prose), page.stem
        alts  = re.findall(r'<img alt="([^"]*)"', text)
        assert len(alts) == text.count('<img') and all(o and '0x' not in o and '<Figure' not in unescape(o) for o in alts), page.stem
    if os.environ.get('LOTTERYBOOK_WHOLE_SITE'): names = names_of(folder)
    else: names = names_of(folder)[::5]  # each fifth page for every day
    assert on_a_phone(chromium, served(folder), names) == ({}, [])
