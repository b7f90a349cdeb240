"The house rules: the library is what the notebooks export, pages import along the arrows, the README is the front page."
import ast, re, shutil, subprocess, symtable, sys
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path
import nbformat, pytest
from packaging.requirements import Requirement
import lotterybook
from lotterybook.tools.pages import find_pages, full_runs, page_cells, plan
from lotterybook.tools.readme import chapters, render, title

root    = Path(__file__).resolve().parent.parent
pages   = find_pages(folder=root/'nbs')
numbers = [o for o in pages if o.stem != 'index']
by_stem = dict(ids=lambda o: o.stem)

# Which other parts a part may import (start, beyond vision, tools and experiments: all); within a part, lower numbers only
arrows = {1: {7}, 2: {7}, 3: {2, 7}, 4: {2, 7}, 7: set(), **{part: set(range(10)) for part in (0, 5, 8, 9)}}

def cells(page, kind=None): return [o for o in page_cells(page) if kind in (None, o['cell_type'])]
def source(cell): return ''.join(cell['source'])
def tree(cell): return ast.parse(re.sub(r'^([ \t]*)[%!].*$', r'\1pass', source(cell), flags=re.M)) # magics are not Python
def number(stem): return int(stem.split('_')[0])
def settings():
    ini = ConfigParser(delimiters=['=']); ini.read(root/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']

# --- export and clean

def project(folder):
    "What git tracks of the project, or would: a copy without caches and environments"
    ignore = shutil.ignore_patterns('.git', '.venv', 'runs', 'lotterybook-pages', 'build', 'dist', '*.egg-info', '__pycache__', '.ipynb_checkpoints', '.pytest_cache')
    return shutil.copytree(root, folder, ignore=ignore)

@pytest.fixture(scope='module')
def fresh(tmp_path_factory):
    "A copy of the project, its library made anew from its cleaned notebooks"
    copy = project(tmp_path_factory.mktemp('copy')/'lotterybook')
    for o in (copy/'lotterybook').iterdir(): # the package's own __init__ holds the version; all else is generated
        if o.is_dir(): shutil.rmtree(o)
        elif o.name != '__init__.py': o.unlink()
    for call in ('from nbdev.clean import nbdev_clean as f; f()', 'from nbdev.doclinks import nbdev_export as f; f()'):
        subprocess.run([sys.executable, '-c', call], cwd=copy, check=True)
    return copy

def modules(folder): return {o.relative_to(folder).as_posix(): o.read_text(encoding='utf-8') for o in (folder/'lotterybook').rglob('*.py')}

def test_export_leaves_no_difference(fresh):
    have, want = modules(root), modules(fresh)
    assert not set(have) - set(want), 'strays: no notebook exports these modules; delete them'
    assert not set(want) - set(have), 'not exported; run nbdev-export'
    assert not [o for o in want if have[o] != want[o]], 'these differ from their notebooks; run nbdev-export'

@pytest.mark.parametrize('page', pages, **by_stem)
def test_clean_leaves_no_difference(page, fresh):
    assert page.read_text(encoding='utf-8') == (fresh/page.relative_to(root)).read_text(encoding='utf-8'), 'run nbdev-clean'

# --- pages

def imported(page):
    "The modules of the library that `page` imports"
    for cell in cells(page, 'code'):
        for o in ast.walk(tree(cell)):
            if isinstance(o, ast.ImportFrom) and o.module == 'lotterybook': # by the top; or a whole part: its pages cannot be told
                for name in o.names: yield getattr(getattr(lotterybook, name.name, None), '__module__', f'lotterybook.{name.name}')
            elif isinstance(o, ast.ImportFrom) and (o.module or '').startswith('lotterybook.'):
                yield from [o.module] if o.module.count('.') > 1 else [f'{o.module}.{name.name}' for name in o.names]
            elif isinstance(o, ast.Import): yield from (name.name for name in o.names if name.name.startswith('lotterybook.'))

homes = {f"lotterybook.{o.parent.name.split('_', 1)[1]}.{o.stem.split('_', 1)[1]}": o for o in numbers}

@pytest.mark.parametrize('page', numbers, **by_stem)
def test_imports_go_along_the_arrows(page):
    part = number(page.parent.name)
    for module in imported(page):
        assert module in homes, f'{page.stem} imports {module}, which no page exports'
        home = homes[module]
        if number(home.parent.name) == part: assert number(home.stem) <= number(page.stem), f'{page.stem} imports {home.stem}, a later page'
        else: assert number(home.parent.name) in arrows[part], f'{page.parent.name} must not import {home.parent.name}'

@pytest.mark.parametrize('page', numbers, **by_stem)
def test_page_stands_where_it_says(page):
    assert re.fullmatch(r'\d{3}_\w+', page.stem) and page.stem[0] == page.parent.name[0], 'three digits, the first the number of the part'
    exports = [m[1] for o in cells(page, 'code') for m in re.finditer(r'^#\|\s*default_exp\s+(\S+)', source(o), re.M)]
    assert exports in ([], [f"{page.parent.name.split('_', 1)[1]}.{page.stem.split('_', 1)[1]}"]), 'the module is named after the page'
    assert all(title(page))

def test_every_page_has_a_number_of_its_own():
    assert len({number(o.stem) for o in numbers}) == len(numbers)

@pytest.mark.parametrize('page', pages, **by_stem)
def test_page_is_well_formed(page):
    nbformat.validate(nbformat.read(page, 4))
    ids = [o['id'] for o in cells(page)]
    assert len(ids) == len(set(ids))
    odd = [o for o in ids if re.fullmatch(r'[0-9a-f]{8}|[0-9a-f-]{36}', o) or not re.fullmatch(r'[a-zA-Z][\w.-]*', o)]
    assert not odd, f'exported code names cell ids, so they must be readable: {odd}'
    for cell in cells(page, 'code'):
        stars = [o.module for o in ast.walk(tree(cell)) if isinstance(o, ast.ImportFrom) and any(name.name == '*' for name in o.names)]
        assert not stars, f'{cell["id"]}: import names, not * from {stars}'

@pytest.mark.parametrize('page', pages, **by_stem)
def test_outputs_are_worth_keeping(page):
    outputs = [(o['id'], out) for o in cells(page, 'code') for out in o['outputs']]
    if page in numbers: assert outputs, 'committed without outputs, the page is empty for a reader'
    assert page.stat().st_size < 400_000
    for cell, out in outputs:
        assert out['output_type'] != 'error', f'{cell} holds an error'
        assert 'application/vnd.jupyter.widget-view+json' not in out.get('data', {}), f'{cell} holds a widget, which draws nothing without a kernel'
        text = ''.join(out.get('text') or out.get('data', {}).get('text/plain', ''))
        here = re.escape(str(root)) + r'\b'
        assert 'interactive(' not in text, f'{cell} holds the text of a slider'
        for what, sign in dict(address=r'\b0x[0-9a-f]{6,}', bar=r'\d%\|', folder=rf'/(home|root|tmp|Users)/|{here}').items():
            assert not re.search(sign, text), f'{cell} printed an {what}: it changes with every run'

def inner(scope):
    "`scope` and all scopes within it"
    yield scope
    for o in scope.get_children(): yield from inner(o)

def read_later(scopes, functions):
    "Names that the functions in `scopes`, and the page's functions they call, look up in the page when they run"
    names = {o.get_name() for scope in scopes for o in scope.get_symbols() if o.is_global()}
    todo  = set(names)
    while todo:
        found  = {o.get_name() for f in functions.get(todo.pop(), ()) for scope in inner(f) for o in scope.get_symbols() if o.is_global()}
        todo  |= found - names
        names |= found
    return names

@pytest.mark.parametrize('page', pages, **by_stem)
def test_slider_still_works_at_the_end_of_its_page(page):
    "A slider is moved after all cells ran: what its function reads must not have been bound anew below it"
    tables = [symtable.symtable(ast.unparse(tree(o)), o['id'], 'exec') for o in cells(page, 'code')]
    named  = {}
    for o in (f for table in tables for f in table.get_children()): named.setdefault(o.get_name(), []).append(o)
    for i, cell in enumerate(cells(page, 'code')):
        if not any(isinstance(o, ast.Name) and o.id == 'interact' for o in ast.walk(tree(cell))): continue
        mine  = [scope for o in tables[i].get_children() for scope in inner(o)]
        given = {o.get_name() for o in tables[i].get_symbols() if o.is_referenced()} & named.keys() # interact(draw, ...)
        reads = read_later(mine + [o for name in given for o in named[name]], named)
        below = {o.get_name() for table in tables[i + 1:] for o in table.get_symbols() if o.is_assigned() or o.is_imported()}
        assert not reads & below, f'{cell["id"]}: cells below it bind {sorted(reads & below)} anew, which the slider reads'

# --- how a concept page is built

CHECK = re.compile(r'\b(test_\w+\(|assert\b|expect_fail)')

def tags(cell): return set(cell['metadata'].get('tags', []))
def open_cells(page):
    "Code cells that a reader sees without unfolding anything"
    return [o for o in cells(page, 'code') if not tags(o) & {'hide-cell', 'remove-cell'} and re.sub(r'^#\| *default_exp.*', '', source(o)).strip()]
def longest(cells): return max((len(line) for o in cells for line in source(o).splitlines()), default=0)
def teaching(page): return [o for o in open_cells(page) if 'hide-input' not in tags(o) and not re.search(r'^#\| *export', source(o), re.M)]

def has_no_refusals(page): return not any('expect_fail' in source(o) for o in open_cells(page))
def has_lines_up_to_100(page): return longest(cells(page, 'code')) <= 100
def has_lines_up_to_88_where_it_teaches(page): return longest(teaching(page)) <= 88
def has_at_most_a_quarter_checks(page): return 4*sum(bool(CHECK.search(source(o))) for o in open_cells(page)) <= len(open_cells(page))
def has_a_figure_in_the_first_third(page):
    own = [o for o in cells(page) if o['id'] not in ('install', 'nav-end')] # without what `lotterybook links` writes
    at  = [i for i, o in enumerate(own) if any('image/png' in out.get('data', {}) for out in o.get('outputs', []))]
    return not at or 3*at[0] <= len(own)

# Pages that do not hold a rule: a rule of the grammar is one line (148), and the last page of logic is plumbing (192).
# The table is strict: a page that holds a rule must leave its line.
NOT_YET = {
    has_no_refusals: '',
    has_lines_up_to_100: '148',
    has_lines_up_to_88_where_it_teaches: '',
    has_at_most_a_quarter_checks: '',
    has_a_figure_in_the_first_third: '192',
}

concepts = [o for o in numbers if number(o.parent.name) <= 6]

@pytest.mark.parametrize('page', concepts, **by_stem)
@pytest.mark.parametrize('rule', NOT_YET, ids=lambda o: o.__name__)
def test_concept_pages(rule, page):
    if page.stem[:3] in NOT_YET[rule].split(): assert not rule(page), f'{page.stem} {rule.__name__.replace("_", " ")} now: take it out of NOT_YET'
    else: assert rule(page), f'{page.stem}: not so: {rule.__name__.replace("_", " ")}'

def test_no_page_is_exempt_that_is_not_there():
    assert {o for line in NOT_YET.values() for o in line.split()} <= {o.stem[:3] for o in concepts}

def test_full_runs_fit_their_pages():
    if full_runs(root/'nbs'): plan(full=True, folder=root/'nbs') # a ValueError names what does not fit

def test_no_full_run_is_lost():
    "Each experiment that speaks of its full run has one, and so has each page that another one tells to run in full."
    runs = full_runs(root/'nbs')
    for page in (root/'nbs').rglob('[0-9]*.ipynb'):
        text = page.read_text(encoding='utf-8')
        if page.parent.name == '9_experiments' and '--full' in text: assert page.stem in runs
        for number in re.findall(r'lotterybook run (\d{3}) [^`\\]*--full', text): assert any(name.startswith(number) for name in runs), (page.stem, number)

# --- the front page

def test_readme_is_the_front_page():
    assert (root/'README.md').read_text(encoding='utf-8') == render(root/'nbs'/'index.ipynb'), 'run lotterybook readme'

def test_map_is_complete():
    assert chapters(root/'nbs') in render(root/'nbs'/'index.ipynb').replace('](nbs/', ']('), 'run lotterybook readme'

def test_readme_links_lead_somewhere():
    text = re.sub(r'^```.*?^```', '', (root/'README.md').read_text(encoding='utf-8'), flags=re.M | re.S)
    links = re.findall(r'\]\(([^)#\s]+)|src="([^"]+)"', text)
    assert links
    assert not [o for o in (a or b for a, b in links) if not re.match('[a-z]+:', o) and not (root/o).exists()]

def test_two_commands():
    lines = [o for o in (root/'README.md').read_text(encoding='utf-8').splitlines() if o.startswith('python3 -m venv .venv &&')]
    assert len(lines) == 2 and all("-c tests/constraints.txt -e '.[dev]'" in o for o in lines)
    assert 'lotterybook run' in lines[0] and 'pytest' in lines[1]

# --- the package

def test_binder_installs_what_there_is():
    "Binder's files name this package, extras that it has, a Python that it supports, and the pinned versions"
    lines = (root/'.binder'/'requirements.txt').read_text(encoding='utf-8').splitlines()
    extras = re.fullmatch(r'-e \.\[([\w,]+)\]', lines[-1])[1].split(',')
    assert all(f'{o}_requirements' in settings() for o in extras) and 'notebooks' in extras
    assert (root/'.binder'/next(o for o in lines if o.startswith('-c '))[3:]).resolve() == root/'tests'/'constraints.txt'
    assert (root/'.binder'/'runtime.txt').read_text(encoding='utf-8').strip().removeprefix('python-') in settings()['pythons'].split()

def test_one_version():
    assert lotterybook.__version__ == settings()['version']

def test_change_log_begins_with_this_version():
    assert re.search(r'^## (\S+)', (root/'CHANGELOG.md').read_text(encoding='utf-8'), re.M)[1] == settings()['version']

def test_package_is_lint_free():
    done = subprocess.run([sys.executable, '-m', 'pyflakes', 'lotterybook', 'tests', 'setup.py'], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

def test_python_versions_agree():
    lowest = settings()['min_python']
    assert settings()['pythons'].split()[0] == lowest
    assert f'requires-python = ">={lowest}"' in (root/'pyproject.toml').read_text(encoding='utf-8')

def plain(name): return re.sub('[-_.]+', '-', name).lower()

def requirements(*keys):
    lines = [o.strip() for key in keys for o in settings()[key].splitlines() if o.strip()]
    return {plain(Requirement(o).name) for o in lines} - {'lotterybook'}

def brought(pins):
    "Names of all distributions here that the extra `dev` brings; of those that differ from their pin, not what they bring"
    todo, seen = [Requirement('lotterybook[dev]')], set()
    while todo:
        wanted = todo.pop()
        for name, extra in {(plain(wanted.name), o) for o in ('', *wanted.extras)} - seen:
            try: found = metadata.distribution(name)
            except metadata.PackageNotFoundError: continue # needed on another system only
            seen.add((name, extra))
            if pins.get(name) not in (None, found.version.split('+')[0]): continue
            needs = [Requirement(o) for o in found.requires or ()]
            todo += [o for o in needs if not o.marker or o.marker.evaluate(dict(extra=extra))]
    return {name for name, _ in seen} - {'lotterybook'}

def test_all_that_is_installed_is_pinned():
    lines = [o.strip() for o in (root/'tests'/'constraints.txt').read_text(encoding='utf-8').splitlines()]
    lines = [o for o in lines if o and not o.startswith('#')]
    assert all(re.fullmatch(r'[\w-]+==[\w.]+', o) for o in lines), 'exact versions only, and no addresses'
    pins  = {plain(name): version for name, version in (o.split('==') for o in lines)}
    assert requirements('requirements', 'notebooks_requirements', 'structured_requirements', 'cluster_requirements',
                        'site_requirements', 'clients_requirements', 'dev_requirements') <= set(pins)
    have  = brought(pins)
    assert len(have) > 30 and not have - set(pins), f'not in tests/constraints.txt: {sorted(have - set(pins))}'

def test_light_modules_import_no_data():
    "Sweeps and the command line start before anyone knows which data will be read"
    ask  = ('import sys, lotterybook.foundations.sweeps, lotterybook.tools.command_line\n'
            "print(*[o for o in sys.modules if o.startswith('lotterybook.') and o.rsplit('.', 1)[-1] in ('data', 'language_data', 'training')])")
    done = subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

def test_imports_are_lazy():
    "Searching for tickets costs little over torch: what few functions need is imported inside them"
    heavy = 'tqdm safetensors matplotlib sklearn pooch numba scipy filelock pandas ipywidgets papermill nbdev fastcore yaml dask'.split()
    own   = ('.fast_on_lstm', '.on_lstm_on_cuda') # the loops that a layer imports when it first runs
    names = sorted(o for o in homes if (root/f"{o.replace('.', '/')}.py").is_file() and not o.endswith(own))
    ask   = ('import sys, torch; before = set(sys.modules)\n' + '\n'.join(f'import {o}' for o in names) +
             f'\nprint(*[o for o in {heavy} if o in set(sys.modules) - before])')
    done  = subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
