"The names at the top: lazy, documented, typed; and docments in docstrings, corner cases."
import ast, contextlib, functools, pickle, pydoc, re, subprocess, sys
from pathlib import Path
from typing import NamedTuple
import pytest
import lotterybook
from lotterybook.foundations.front_doors import documented

package = Path(lotterybook.__file__).parent
homes   = {name: module for call in ast.walk(ast.parse((package/'__init__.py').read_text())) if isinstance(call, ast.Dict)
           for module, names in ast.literal_eval(call).items() for name in names.split()}

def fresh(code):
    "What a new process prints"
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()

# --- the doors

def test_importing_brings_nothing():
    "Neither torch nor NumPy, and no page but this one, until a name is used"
    asked = "print(*sorted(o for o in sys.modules if o in ('torch', 'numpy') or o.startswith('lotterybook.')))"
    assert fresh(f"import sys, lotterybook; dir(lotterybook); {asked}") == 'lotterybook.foundations lotterybook.foundations.front_doors'
    assert 'torch' in fresh(f"import sys; from lotterybook import find_ticket; {asked}").split()

@pytest.mark.parametrize('name', homes)
def test_every_door_opens(name):
    "On the object that its page exports, and its help has the comment of a parameter or of what comes back"
    module = sys.modules.get(f'lotterybook.{homes[name]}') or __import__(f'lotterybook.{homes[name]}', fromlist=[name])
    assert getattr(lotterybook, name) is getattr(module, name) and name in dir(lotterybook)
    assert name in module.__all__ and module.__name__ == getattr(lotterybook, name).__module__
    doc = getattr(lotterybook, name).__doc__
    assert any(f'\n{title}\n    ' in doc for title in ('Parameters', 'Fields', 'Returns')) or name == 'Hook', doc

def test_no_door_hides_a_part():
    assert not homes.keys() & {o.name for o in package.iterdir()} | homes.keys() & vars(pydoc.builtins).keys()

def test_stub_has_the_same_doors():
    stub  = [o for o in ast.parse((package/'__init__.pyi').read_text()).body if isinstance(o, ast.ImportFrom)]
    names = {alias.name: o.module for o in stub for alias in o.names}
    assert names == homes, 'lotterybook/__init__.py and __init__.pyi differ'
    assert all(alias.asname == alias.name for o in stub for alias in o.names), '`name as name` is what type checkers take for public'

def test_tour():
    "One screen, and every name in it is there"
    lines, called = lotterybook.__doc__.splitlines(), set(re.findall(r'(\w+)\(', lotterybook.__doc__))
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    assert {'find_ticket', 'ONLSTM'} < called <= homes.keys() | {'dir', 'help', 'make_run', 'train_it', 'YourNet', 'your_loop'}
    text = pydoc.render_doc(lotterybook, renderer=pydoc.plaintext)
    assert len(text.splitlines()) <= 50 and 'FUNCTIONS' not in text and 'CLASSES' not in text and 'DATA\n' not in text

@pytest.mark.parametrize('code, kind', [('lotterybook.find_tickets', 'AttributeError'), ('from lotterybook import find_tickets', 'ImportError'),
                                        ("getattr(lotterybook, 'find_tickets')", 'AttributeError')])
def test_nearest_name(code, kind):
    "Said once, whatever Python adds itself"
    done = subprocess.run([sys.executable, '-c', f'import lotterybook\n{code}'], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == f"{kind}: lotterybook has no 'find_tickets'; did you mean 'find_ticket'?"

def test_no_near_name():
    with pytest.raises(AttributeError, match="has no 'xyzzy'$"): lotterybook.xyzzy
    assert not hasattr(lotterybook, 'xyzzy') and getattr(lotterybook, 'xyzzy', 3) == 3

def test_parts_are_still_packages():
    assert fresh('from lotterybook import tickets, find_ticket; import lotterybook.pruning.masks; print(tickets.__name__)') == 'lotterybook.tickets'

# --- documented

def plain( # of nothing
    a: int, b: int = 2, # two on a line
    *rest: object,      # more of
                        # them
    key: str = (        # a name
        'long'),        # or none
    **options,
) -> tuple:             # all of it
    "One sentence."
    c = a               # no comment of the header
    return c, b, rest, key, options

def test_a_function():
    before = plain.__dict__.copy(), plain.__defaults__, plain.__annotations__
    assert documented(plain) is plain and documented(plain) is plain
    assert plain.__doc__.split('\n') == ['One sentence.', '', 'Parameters', '    a, b  two on a line', '    rest  more of them',
                                         '    key   a name or none', '', 'Returns', '    all of it']
    assert (plain.__dict__, plain.__defaults__, plain.__annotations__) == before
    assert pickle.loads(pickle.dumps(plain)) is plain

@contextlib.contextmanager
def wrapped(
    n: int,  # how many
):
    yield n

@functools.lru_cache
def cached(
    n: int,  # how many
) -> int:    # as many
    "Sentence."
    return n

def test_decorated():
    assert documented(wrapped).__doc__ == 'Parameters\n    n  how many'
    with wrapped(3) as n: assert n == 3
    assert documented(cached).__doc__.startswith('Sentence.\n\nParameters\n    n  how many') and cached(3) == 3

class Fields(NamedTuple):
    "Sentence."
    n: int       # how many
    other: str   # what
    third: float

class Made:
    "Sentence."
    def __init__(self,
        n: int,  # how many
    ): self.n = n

    @property
    def twice(self) -> int: # the double
        "Twice."
        return 2*self.n

    @classmethod
    def of(cls,
        n: int,  # half as many
    ) -> 'Made': # a new one
        "Made otherwise."
        return cls(2*n)

    def _own(self,
        n: int,  # how many
    ): "Sentence."

def test_classes():
    assert documented(Fields).__doc__ == 'Sentence.\n\nFields\n    n      how many\n    other  what'
    assert documented(Made).__doc__ == documented(Made).__doc__ == 'Sentence.\n\nParameters\n    n  how many'
    assert Made.of.__doc__ == 'Made otherwise.\n\nParameters\n    n  half as many\n\nReturns\n    a new one'
    assert Made._own.__doc__ == 'Sentence.' and Made(3).twice == 6 and Made.twice.__doc__ == 'Twice.' and Made.of(2).n == 4

def test_what_has_no_source():
    "Left as it is: C, values, what `exec` made"
    scope = {}
    exec('def made(n: int): # how many\n    "Sentence."', scope)
    for o in (len, 3, 'text', dict(a=1), None, functools.partial(plain, 1), scope['made'], sys, lambda n: n):
        before = getattr(o, '__doc__', None)
        assert documented(o) is o and o.__doc__ == before
