"""Every page runs from top to bottom.

Pages that `lotterybook run` has just run are not run again: its report names the content of each page and of the library.
"""
import json
from pathlib import Path
import pytest
from lotterybook.tools.pages import find_pages, library_fingerprint, page_cells, plan, run, run_page, save_outputs, source_fingerprint

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

# --- sliders

slider = """from ipywidgets import IntSlider, interact
from IPython.display import display
display('beside it')
interact(lambda k: print('slider at', k), k=IntSlider(value=5));"""

@pytest.mark.parametrize('last', ['print("done")', '1 / 0'])
def test_executed_and_saved_pages_carry_no_text_of_sliders(last, tmp_path):
    "Also a page that failed after its slider; the plain output beside the slider stays"
    cells = [dict(cell_type='code', id=f'cell-{i}', source=o, outputs=[], execution_count=None, metadata={}) for i, o in enumerate((slider, last))]
    page, copy = tmp_path/'100_page.ipynb', tmp_path/'runs'/'100_page.ipynb'
    page.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
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

@pytest.mark.parametrize('name, near', [('111', '110'), ('12', '010'), ('9999', '991'), ('cumx', 'cumax'), ('110_cumas', '110_cumax')])
def test_the_nearest_page_is_suggested(name, near):
    with pytest.raises(ValueError, match=f"no page '{name}'; did you mean {near}. The pages are 000_a_ticket"): find_pages([name])

def test_nothing_is_suggested_for_what_is_like_nothing():
    with pytest.raises(ValueError, match="no page 'zzz'; the pages are"): find_pages(['zzz'])

@pytest.mark.parametrize('text', ['{"cells": [', '', '['*100_000])
def test_a_damaged_page_is_named(text, tmp_path):
    (tmp_path/'110_a.ipynb').write_text(text)
    with pytest.raises(ValueError, match='110_a.ipynb is damaged .*; put a good copy of the page there'): plan(folder=tmp_path)
