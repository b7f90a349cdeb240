"""Every page runs from top to bottom.

Pages that `lotterybook run` has just run are not run again: its report names the content of each page and of the library.
"""
import asyncio, json, re, time
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path
from queue import Empty
import numpy as np
import pytest
from lotterybook.tools.pages import (_fit, _in_short_waits, find_pages, library_fingerprint, page_cells, parameters, plan, run, run_page,
                                     save_outputs, side_by_side, source_fingerprint, write_page)

root  = Path(__file__).resolve().parent.parent
pages = find_pages(folder=root/'nbs')
first = '900_one_shot_vs_iterative' # the experiment whose table and picture a first run shows

def reported():
    "What runs/report.json says of pages as they are now: stem -> outcome"
    file = root/'runs'/'report.json'
    if not file.is_file(): return {}
    report = json.loads(file.read_text(encoding='utf-8'))
    if report['library'] != library_fingerprint(): return {}
    now = {o.stem: source_fingerprint(o) for o in pages}
    return {o['page']: dict(o, out=file.parent) for o in report['pages'] if o['ok'] and not o['parameters'] and o['source'] == now.get(o['page'])}

@pytest.fixture(scope='session')
def outcomes(request, tmp_path_factory):
    "How each page that is asked for ran: stem -> outcome"
    items = [o for o in request.session.items if o.function.__module__ == __name__ and 'outcomes' in o.fixturenames]
    asked = {o.callspec.params['page'].stem if hasattr(o, 'callspec') else first for o in items}
    known = reported()
    if left := sorted(asked - set(known)):
        out = tmp_path_factory.mktemp('runs')
        run(left, out=out)
        known |= {o['page']: dict(o, out=out) for o in json.loads((out/'report.json').read_text())['pages']}
    return known

@pytest.mark.parametrize('page', pages, ids=lambda o: o.stem)
def test_page_runs(page, outcomes):
    o = outcomes[page.stem]
    assert o['ok'], f"cell {o['cell']}: {o['error']}\n{o.get('code', '')}\n{o.get('traceback', '')}"

def kinds(notebook):
    "What kind of thing each code cell put out: id -> streams and media types, without widgets, which are not kept"
    found = {}
    for cell in page_cells(notebook):
        if cell['cell_type'] != 'code': continue
        outputs = [o for o in cell['outputs'] if 'application/vnd.jupyter.widget-view+json' not in o.get('data', {})]
        found[cell['id']] = {kind for o in outputs for kind in o.get('data', [o.get('name', o['output_type'])])}
    return found

@pytest.mark.parametrize('page', pages, ids=lambda o: o.stem)
def test_committed_outputs_are_of_the_kind_that_running_gives(page, outcomes):
    "The numbers may differ in their last digits from one processor to another; a table, a picture, a line of text may not be missing"
    executed = kinds(outcomes[page.stem]['out']/'pages'/page.relative_to(root/'nbs'))
    kept = kinds(page)
    assert kept == executed, [o for o in kept if kept[o] != executed.get(o)]

def test_first_table_and_picture(outcomes):
    results = outcomes[first]['out']/'results'/first
    assert (results/'quick.csv').read_text(encoding='utf-8').count('\n') > 1
    assert (results/'quick.png').read_bytes().startswith(b'\x89PNG')

def toy_page(path, *sources, parameters=None):
    "A notebook with a code cell for each source, the one numbered `parameters` tagged so"
    cells = [dict(cell_type='code', id=f'cell-{i}', source=o, outputs=[], execution_count=None,
                  metadata=dict(tags=['parameters']) if i == parameters else {}) for i, o in enumerate(sources)]
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_page(path, dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5))

# --- sliders

slider = """from ipywidgets import IntSlider, interact
from IPython.display import display
display('beside it')
interact(lambda k: print('slider at', k), k=IntSlider(value=5));"""

@pytest.mark.parametrize('last', ['print("done")', '1 / 0'])
def test_executed_and_saved_pages_carry_no_text_of_sliders(last, tmp_path):
    "Also a page that failed after its slider; the plain output beside the slider stays"
    page, copy = toy_page(tmp_path/'100_page.ipynb', slider, last), tmp_path/'runs'/'100_page.ipynb'
    assert run_page(page, copy)['ok'] == (last != '1 / 0')
    assert [o.name for o in copy.parent.iterdir()] == [copy.name]
    assert "'beside it'" in copy.read_text()
    if last != '1 / 0': save_outputs(page, copy)
    for file in (copy, page):
        assert 'interactive(' not in file.read_text() and 'widget' not in ''.join(o for c in page_cells(file) for o in map(str, c.get('outputs', [])))
        assert 'widgets' not in json.loads(file.read_text())['metadata']

# --- which pages

@pytest.mark.parametrize('name', ['110', 'cumax', '110_cumax', Path('nbs')/'110_cumax.ipynb'])
def test_one_name_is_no_list_of_letters(name):
    assert [o.stem for o in find_pages(name)] == [o.stem for o in find_pages([name])] == ['110_cumax']

@pytest.mark.parametrize('name, near', [('111', '110'), ('12', '010'), ('9999', '995'), ('cumx', 'cumax'), ('110_cumas', '110_cumax')])
def test_the_nearest_page_is_suggested(name, near):
    with pytest.raises(ValueError, match=f"no page '{name}'; did you mean {near}. The pages are 000_a_ticket"): find_pages([name])

def test_nothing_is_suggested_for_what_is_like_nothing():
    with pytest.raises(ValueError, match="no page 'zzz'; the pages are"): find_pages(['zzz'])

@pytest.mark.parametrize('text', ['{"cells": [', '', '['*100_000])
def test_a_damaged_page_is_named(text, tmp_path):
    (tmp_path/'110_a.ipynb').write_text(text)
    with pytest.raises(ValueError, match='110_a.ipynb is damaged .*; put a good copy of the page there'): plan(folder=tmp_path)

# --- a book of three pages: one runs, one divides by zero, one is too slow

@pytest.fixture
def book(tmp_path):
    toy_page(tmp_path/'book'/'1_part'/'110_good.ipynb', "steps = 50 # optimizer steps\nrate  = .2\nrun   = 'quick'", 'print(steps, rate, run)', parameters=0)
    toy_page(tmp_path/'book'/'1_part'/'120_bad.ipynb', 'a = 1', 'a / 0', 'print("never reached")')
    toy_page(tmp_path/'book'/'2_late'/'200_slow.ipynb', 'import time', 'time.sleep(60)', 'print("never reached")')
    return tmp_path/'book'

def printed(notebook): return [''.join(o['text']).strip() for c in page_cells(notebook) for o in c['outputs'] if 'text' in o]

@pytest.mark.parametrize('names, found', [((), '110 120 200'), (('200', 'good'), '110 200'), (('120_bad', 'nbs/1_part/120_bad.ipynb'), '120'), (('1_part',), '110 120')])
def test_pages_come_in_the_order_of_the_book_and_once(book, names, found):
    assert [o.stem[:3] for o in find_pages(names, book)] == found.split()

def test_parameters_are_read_without_running(book):
    good, bad, _ = find_pages(folder=book)
    assert parameters(good) == dict(steps=50, rate=.2, run='quick') and parameters(bad) == {}

@pytest.mark.parametrize('name, value, default, fits', [('steps', '1e3', 50, 1000), ('rate', '1', .2, 1), ('run', '5', 'quick', '5'),
                                                        ('seeds', '[0, 1]', [0], [0, 1]), ('folder', 'x', None, 'x')])
def test_a_value_becomes_the_kind_of_its_default(name, value, default, fits): assert _fit(name, value, default) == fits

@pytest.mark.parametrize('wrong', ['many', '0.5', 'True'])
def test_a_value_of_another_kind_is_refused(wrong):
    with pytest.raises(ValueError, match='steps = 50'): _fit('steps', wrong, 50)

def test_plan(book):
    good, bad, slow = find_pages(folder=book)
    assert plan(folder=book) == [(good, {}), (bad, {}), (slow, {})]
    assert plan(['1_part'], dict(steps='7'), folder=book) == [(good, dict(steps=7)), (bad, {})] # to those that have it
    with pytest.raises(ValueError, match="no parameter 'step': 110_good has steps, rate, run"): plan(['110'], dict(step=7), folder=book)
    with pytest.raises(ValueError, match='120_bad has none'): plan(['120'], dict(steps=7), folder=book)
    with pytest.raises(ValueError, match='no full run of 110_good'): plan(['110'], full=True, folder=book)

def test_plan_of_full_runs(book):
    good, yaml = find_pages('110', book)[0], book/'9_experiments'/'full.yaml'
    yaml.parent.mkdir()
    yaml.write_text('110_good:\n  run: full\n  steps: 12000\n')
    assert plan(full=True, folder=book) == [(good, dict(run='full', steps=12000))]       # only what has a full run
    assert plan(full=True, values=dict(steps=9), folder=book)[0][1]['steps'] == 9        # -p has the last word
    yaml.write_text('110_good: {stepz: 1}')
    with pytest.raises(ValueError, match='full.yaml sets stepz'): plan(full=True, folder=book)

class Deaf:
    "A channel that looks at its socket only when a wait ends."
    def __init__(self, arrives): self.arrives, self.waits = arrives, []
    async def get(self, timeout):
        self.waits.append(timeout); await asyncio.sleep(0)
        if len(self.waits) < self.arrives: raise Empty
        return 'answer'

def test_waits_are_short():
    deaf = Deaf(arrives=3)
    assert asyncio.run(_in_short_waits(deaf.get, 1.)(timeout=300)) == 'answer' and deaf.waits == [1., 1., 1.]
    assert asyncio.run(_in_short_waits(Deaf(arrives=5).get, 1.)()) == 'answer'           # without a limit
    with pytest.raises(Empty): asyncio.run(_in_short_waits(Deaf(arrives=10**9).get, .01)(timeout=.05))

def test_one_page(book, tmp_path):
    good, bad, slow = find_pages(folder=book)
    outcome = run_page(good, tmp_path/'good.ipynb', dict(steps=7))
    assert outcome['ok'] and outcome['parameters'] == dict(steps=7) and printed(tmp_path/'good.ipynb') == ['7 0.2 quick']
    assert parameters(good)['steps'] == 50 and printed(good) == []                       # the page is left alone
    assert outcome['source'] == source_fingerprint(good) != source_fingerprint(bad)      # has the page changed since?
    failed = run_page(bad, tmp_path/'bad.ipynb')
    assert [failed[o] for o in ('ok', 'cell', 'code', 'error')] == [False, 1, 'a / 0', 'ZeroDivisionError: division by zero']
    assert 'Traceback' in failed['traceback']
    hung = run_page(slow, tmp_path/'slow.ipynb', cell_timeout=1)
    assert [hung[o] for o in ('ok', 'cell', 'code')] == [False, 1, 'time.sleep(60)']
    dead = run_page(toy_page(book/'2_late'/'210_dead.ipynb', 'import os', 'os._exit(1)'), tmp_path/'dead.ipynb', cell_timeout=20)
    assert [dead['ok'], dead['cell']] == [False, 1] and 'DeadKernel' in dead['error']

def test_side_by_side(book, tmp_path):
    def one(page, values, running): return run_page(page, tmp_path/page.name, values, cell_timeout=20, running=running)
    assert {o['page']: o['ok'] for o in side_by_side(plan(['1_part'], folder=book), 2, one)} == {'110_good': True, '120_bad': False}
    start = time.monotonic()
    loop = side_by_side(plan(folder=book), 3, one)
    next(loop); loop.close()              # the caller has seen enough while the slow page still sleeps
    assert time.monotonic() - start < 19  # nobody waited for it

def test_saved_outputs(book, tmp_path):
    good = find_pages('110', book)[0]
    run_page(good, tmp_path/'good.ipynb')
    kept = source_fingerprint(good)
    save_outputs(good, tmp_path/'good.ipynb')
    assert source_fingerprint(good) == kept and printed(good) == ['50 0.2 quick']        # sources and tags are untouched

def test_printed_text_is_saved_whole(tmp_path):
    "A slow machine reads it in parts; what lies between two texts stays between them."
    page, copy = toy_page(tmp_path/'100_page.ipynb', '0'), tmp_path/'copy.ipynb'
    def printed_by(name, *lines): return dict(output_type='stream', name=name, text=list(lines))
    shown = dict(output_type='display_data', data={'text/plain': ['a figure']}, metadata={})
    notebook = json.loads(page.read_text())
    notebook['cells'][-1]['outputs'] = [printed_by('stdout', 'a\n', 'b'), printed_by('stdout', 'c\n'), printed_by('stderr', 'd'), shown,
                                        printed_by('stdout', 'e\n')]
    copy.write_text(json.dumps(notebook))
    save_outputs(page, copy)
    assert page_cells(page)[-1]['outputs'] == [printed_by('stdout', 'a\n', 'bc\n'), printed_by('stderr', 'd'), shown, printed_by('stdout', 'e\n')]

def test_saved_pictures_have_a_palette(tmp_path):
    "The same picture, with its rare colours, in less room; what is transparent stays transparent."
    from matplotlib.figure import Figure
    from PIL import Image, ImageChops
    def shown(picture):
        file = BytesIO()
        picture.save(file, 'PNG')
        return dict(output_type='display_data', metadata={}, data={'image/png': b64encode(file.getvalue()).decode(), 'text/plain': ['a figure']})
    def read(output): return Image.open(BytesIO(b64decode(output['data']['image/png'])))
    fig, drawn = Figure(), BytesIO()
    for seed in range(20): fig.gca().plot(np.random.default_rng(seed).normal(size=9), lw=.6, alpha=.45)
    fig.savefig(drawn, facecolor='white')
    many = Image.open(drawn)
    many.putpixel((3, 3), (255, 0, 255, 255))
    clear, deep = many.copy(), Image.effect_noise((40, 40), 60).convert('I;16')
    clear.putpixel((5, 5), (0, 0, 0, 0))
    keyed = many.convert('RGB')
    keyed.info['transparency'] = (255, 255, 255)
    page, copy = toy_page(tmp_path/'100_page.ipynb', '0'), tmp_path/'copy.ipynb'
    notebook = json.loads(page.read_text())
    notebook['cells'][-1]['outputs'] = before = [*map(shown, (many, clear, deep, keyed))]
    copy.write_text(json.dumps(notebook))
    save_outputs(page, copy)
    few, *same = page_cells(page)[-1]['outputs']
    assert same == before[1:] and few['data']['text/plain'] == ['a figure']
    assert len(few['data']['image/png']) < len(before[0]['data']['image/png'])/2
    differ = ImageChops.difference(read(few).convert('RGB'), many.convert('RGB'))
    assert max(high for _, high in differ.getextrema()) <= 32 and read(few).convert('RGB').getpixel((3, 3))[1] < 30

def test_a_run_and_its_report(book, tmp_path, capsys):
    out = tmp_path/'runs'
    assert run(['1_part'], values=dict(steps='3'), jobs=2, out=out, folder=book) == 1    # a page failed
    said = capsys.readouterr().out
    assert all(o in said for o in ('1 of 2 pages ran', 'FAILED', 'ZeroDivisionError', 'a / 0'))
    report = json.loads((out/'report.json').read_text())
    assert [(o['page'], o['ok'], o['parameters']) for o in report['pages']] == [('110_good', True, dict(steps=3)), ('120_bad', False, {})]
    assert report['library'] == library_fingerprint()
    assert (out/'pages'/'1_part'/'110_good.ipynb').is_file()                             # the executed copy lies where its page does

def test_a_quick_result_lands_in_the_folder_of_the_run(book, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv('LOTTERYBOOK_RESULTS', raising=False)
    toy_page(book/'9_experiments'/'900_toy.ipynb', 'import os, pathlib',
             "folder = pathlib.Path(os.environ['LOTTERYBOOK_RESULTS'])/'900_toy'; folder.mkdir(parents=True)", "(folder/'quick.csv').write_text('a')")
    assert run(['900'], out=tmp_path/'runs', folder=book) == 0
    assert (tmp_path/'runs'/'results'/'900_toy'/'quick.csv').is_file()
    assert re.search(r'table +.*900_toy.quick.csv', capsys.readouterr().out)

def test_what_a_run_refuses(book):
    with pytest.raises(ValueError, match='leave out --full'): run(full=True, save=True, folder=book)
    with pytest.raises(ValueError, match='-j 0'): run(jobs=0, folder=book)
