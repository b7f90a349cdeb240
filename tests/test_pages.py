"""Every page runs from top to bottom.

Pages that `lotterybook run` has just run are not run again: its report names the content of each page and of the library.
"""
import json
from pathlib import Path
import pytest
from lotterybook.tools.pages import find_pages, fingerprint, library_fingerprint, run

root  = Path(__file__).resolve().parent.parent
pages = find_pages(folder=root/'nbs')

def reported():
    "What runs/report.json says of pages as they are now: stem -> outcome"
    file = root/'runs'/'report.json'
    if not file.is_file(): return {}
    report = json.loads(file.read_text(encoding='utf-8'))
    if report['library'] != library_fingerprint(): return {}
    now = {o.stem: fingerprint(o) for o in pages}
    return {o['page']: o for o in report['pages'] if o['ok'] and not o['parameters'] and o['source'] == now.get(o['page'])}

@pytest.fixture(scope='session')
def outcomes(request, tmp_path_factory):
    "How each page that is asked for ran: stem -> outcome"
    asked = {item.callspec.params['page'].stem for item in request.session.items if item.function.__name__ == 'test_page_runs'}
    known = reported()
    if left := sorted(asked - set(known)):
        out = tmp_path_factory.mktemp('runs')
        run(left, out=out)
        known |= {o['page']: o for o in json.loads((out/'report.json').read_text())['pages']}
    return known

@pytest.mark.parametrize('page', pages, ids=lambda o: o.stem)
def test_page_runs(page, outcomes):
    o = outcomes[page.stem]
    assert o['ok'], f"cell {o['cell']}: {o['error']}\n{o.get('code', '')}\n{o.get('traceback', '')}"
