"The wheel, built from the source distribution and installed into an empty environment, finds its notebooks."
import json, os, shutil, subprocess, sys, sysconfig, venv, zipfile
from importlib.util import find_spec
from pathlib import Path
import pytest
from conftest import skip
from test_house import project, settings

root = Path(__file__).resolve().parent.parent

def command(*args, **kw):
    "Run a command and return what it did; its environment says nothing of this checkout"
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'LOTTERYBOOK_RESULTS', 'VIRTUAL_ENV')}
    return subprocess.run([str(o) for o in args], capture_output=True, text=True, env=env, **kw)

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, by way of the source distribution"
    copy, dist = project(tmp_path_factory.mktemp('build')/'project'), tmp_path_factory.mktemp('dist')
    done = command(sys.executable, '-m', 'build', '--no-isolation', '--outdir', dist, copy)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(list(dist.glob('*.tar.gz'))) == 1
    return next(dist.glob('*.whl'))

def environment(folder, wheel):
    "A virtual environment in this folder, with the wheel and nothing else"
    venv.create(folder, with_pip=False)
    python = folder/'bin'/'python'
    done = command(sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-deps', '--no-index', wheel)
    assert done.returncode == 0, done.stderr
    return folder

@pytest.fixture(scope='module')
def empty(wheel, tmp_path_factory): return environment(tmp_path_factory.mktemp('empty'), wheel)

@pytest.fixture(scope='module')
def furnished(wheel, tmp_path_factory):
    "One that also sees the installed dependencies; a path in a .pth file brings no editable install along"
    folder = environment(tmp_path_factory.mktemp('furnished'), wheel)
    site = next((folder/'lib').glob('python*/site-packages'))
    (site/'dependencies.pth').write_text(sysconfig.get_path('purelib') + '\n' + sysconfig.get_path('platlib') + '\n')
    return folder

def test_wheel_holds_the_book(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for page in (root/'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' not in page.parts: assert f"lotterybook/nbs/{page.relative_to(root/'nbs').as_posix()}" in names
    assert any(o.endswith('licenses/LICENSE') for o in names)
    assert {'lotterybook/py.typed', 'lotterybook/__init__.pyi'} <= set(names)
    assert not [o for o in names if '/quick' in o or o.startswith(('tests', 'nbs/', 'build'))]
    if (root/'nbs'/'9_experiments'/'full.yaml').is_file(): assert 'lotterybook/nbs/9_experiments/full.yaml' in names

def test_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    text = archive.read(next(o for o in archive.namelist() if o.endswith('METADATA'))).decode()
    assert f"Version: {settings()['version']}" in text and 'Requires-Python: >=3.11' in text and 'License-Expression: Apache-2.0' in text
    for extra in ('notebooks', 'language', 'control', 'cluster', 'site', 'dev'): assert f'Provides-Extra: {extra}\n' in text
    core = [o for o in text.splitlines() if o.startswith('Requires-Dist:') and 'extra ==' not in o]
    assert 'Project-URL' not in text and 'Home-page' not in text  # none invented
    assert any('torch' in o for o in core) and not any(o in line for o in ('nbdev', 'jupyter', 'nltk', 'gymnasium', 'dask') for line in core)

def test_empty_environment(empty, tmp_path):
    "Not even torch is there, and the package imports and explains itself"
    done = command(empty/'bin'/'python', '-c', 'import lotterybook; print(lotterybook.__file__)', cwd=tmp_path)
    assert done.returncode == 0 and Path(done.stdout.strip()).is_relative_to(empty), done.stdout + done.stderr
    done = command(empty/'bin'/'lotterybook', '--help', cwd=tmp_path)
    assert done.returncode == 0 and 'run pages' in done.stdout, done.stderr
    done = command(empty/'bin'/'lotterybook', 'run', '110', cwd=tmp_path)
    assert done.returncode == 2 and "pip install 'lotterybook[notebooks]'" in done.stderr

def test_installed_pages_run(furnished, tmp_path):
    book   = next((furnished/'lib').glob('python*/site-packages'))/'lotterybook'/'nbs'
    before = {o for o in book.rglob('*')}
    done   = command(furnished/'bin'/'lotterybook', 'run', '110', cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path/'runs'/'pages').rglob('110_*.ipynb'))) == 1
    assert {o for o in book.rglob('*')} == before, 'a quick run writes nothing into the installed package'
    done = command(furnished/'bin'/'lotterybook', 'readme', cwd=tmp_path)
    assert done.returncode == 2 and 'belongs to a clone' in done.stderr

def test_types_of_a_client(furnished, tmp_path, monkeypatch):
    "A client's script is clean in pyright's basic mode, by what the wheel brings: py.typed and the stub of the top names"
    if not find_spec('pyright'): skip('no pyright')
    monkeypatch.setenv('PYRIGHT_PYTHON_IGNORE_WARNINGS', '1') # of newer versions, before its report
    shutil.copy(root/'tests'/'client.py', tmp_path)
    (tmp_path/'wrong.py').write_text('from lotterybook import full_masks, find_tickets\nfull_masks(3)\n')
    for script, problems in (('client.py', 0), ('wrong.py', 2)):
        done = command(sys.executable, '-m', 'pyright', '--outputjson', '--pythonpath', furnished/'bin'/'python', script, cwd=tmp_path)
        if not done.stdout.startswith('{'): skip(f'pyright does not run: {done.stderr[-300:]}')
        found = json.loads(done.stdout)['generalDiagnostics']
        assert len(found) == problems, found

def test_every_module_imports(furnished, tmp_path):
    ask  = "import importlib, pkgutil, lotterybook\nfor o in pkgutil.walk_packages(lotterybook.__path__, 'lotterybook.'):\n    if '.nbs' not in o.name: importlib.import_module(o.name)"
    done = command(furnished/'bin'/'python', '-c', ask, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

def python(version):
    "An interpreter of that version: on the path, or among those of pyenv"
    pyenv = Path(os.environ.get('PYENV_ROOT') or Path.home()/'.pyenv')/'versions'
    for o in (shutil.which(f'python{version}'), *pyenv.glob(f'{version}*/bin/python')):
        if o and not command(o, '--version').returncode: return o

@pytest.mark.parametrize('version', settings()['pythons'].split())
def test_syntax_of_each_python(version):
    "Each Python that is on the machine compiles the library; with its dependencies only the one that runs the tests is tried"
    if not (found := python(version)): pytest.skip(f'Python {version} is not on this machine')
    code = "import sys\nfor o in sys.stdin.read().split('\\n'): compile(open(o, encoding='utf-8').read(), o, 'exec')"
    done = command(found, '-c', code, input='\n'.join(str(o) for o in (root/'lotterybook').rglob('*.py')))
    assert done.returncode == 0, done.stderr
