"The oldest versions that settings.ini allows, one a line for pip: PyTorch, and what comes with it, excepted."
import sys
from configparser import ConfigParser
from pathlib import Path
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ini = ConfigParser(delimiters=['=']); ini.read(Path(__file__).resolve().parent.parent/'settings.ini', encoding='utf-8')
settings = ini['DEFAULT']

def lower_bounds(extras=('notebooks', 'structured', 'language', 'cluster', 'dev')):
    "`name==version` of each requirement with a lower bound, of the library and of its extras"
    for key in ('requirements', *(f'{o}_requirements' for o in extras)):
        for wanted in (Requirement(o) for o in settings[key].split('\n') if o.strip()):
            for oldest in (o.version for o in wanted.specifier if o.operator == '>=' and wanted.name not in ('torch', 'triton')):
                wanted.specifier = SpecifierSet(f'=={oldest}')
                yield str(wanted)

if __name__ == '__main__':
    here = '{}.{}'.format(*sys.version_info)
    if here != settings['min_python']: sys.exit(f"lower bounds are tried on Python {settings['min_python']}, whose wheels they name; this is {here}")
    print(*lower_bounds(sys.argv[1:]), sep='\n')
