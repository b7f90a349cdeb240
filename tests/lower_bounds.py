"The oldest versions that settings.ini allows, one a line for pip: PyTorch, and what comes with it, excepted. And the tests that try them."
import re, sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

root = Path(__file__).resolve().parent.parent
ini = ConfigParser(delimiters=['=']); ini.read(root/'settings.ini', encoding='utf-8')
settings = ini['DEFAULT']

def oldest(extras=('notebooks', 'structured', 'language', 'cluster', 'dev')):
    "Each requirement with a lower bound, of the library and of its extras, at that bound"
    for key in ('requirements', *(f'{o}_requirements' for o in extras)):
        for wanted in (Requirement(o) for o in settings[key].split('\n') if o.strip()):
            for version in (o.version for o in wanted.specifier if o.operator == '>=' and wanted.name not in ('torch', 'triton')):
                wanted.specifier = SpecifierSet(f'=={version}')
                yield wanted

def tests(extras):
    "Files with the tests of the modules that import one of these packages themselves; the others import them through these"
    wanted  = {o.name.lower() for o in oldest(extras)}
    names   = [name for name, packages in packages_distributions().items() if wanted & {o.lower() for o in packages}]
    imports = re.compile(rf'^\s*(from|import) ({"|".join(names)})\b', re.M)
    files   = {root/'tests'/o.parent.name/f'test_{o.name}' for o in (root/'lotterybook').glob('*/*.py') if imports.search(o.read_text(encoding='utf-8'))}
    return [root/'tests'/'test_golden.py', *sorted(o for o in files if o.is_file())]

if __name__ == '__main__':
    here = '{}.{}'.format(*sys.version_info)
    if here != settings['min_python']: sys.exit(f"lower bounds are tried on Python {settings['min_python']}, whose wheels they name; this is {here}")
    what, *extras = sys.argv[1:]
    print(*dict(versions=oldest, tests=tests)[what](extras), sep='\n')
