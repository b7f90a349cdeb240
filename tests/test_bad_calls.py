"A bad argument is refused, or the answer is right: calls from a list that has all public names."
import json, os, re, subprocess, sys
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
import pytest
import lotterybook

here = Path(__file__).parent

def listed():
    "Module, call, what must come of it, whether it is still to be mended."
    for line in (here/'bad_calls.txt').read_text(encoding='utf-8').splitlines():
        if line.startswith('## '): module = line[3:]
        elif line and line[0] != '#':
            call, _, want = line.removesuffix(' # pending').partition(' -> ')
            yield module, call, want, line.endswith(' # pending')

calls = list(listed())

@cache
def answers(part):
    "What is wrong with each call of a part of the library; after a crash or a hang, a new process."
    todo, found = [list(o[:3]) for o in calls if o[0].startswith(part)], {}
    keep = {k: v for k, v in os.environ.items() if not k.startswith(('LOTTERYBOOK_', 'TQDM_'))}
    while left := todo[len(found):]:
        done = subprocess.run([sys.executable, here/'bad_calls.py'], input=json.dumps(left),
                              capture_output=True, text=True, env=keep)
        new = [json.loads(o) for o in done.stdout.splitlines()]
        if len(new) < len(left): new.append(f'exit code {done.returncode}: {done.stderr[-2000:]}')
        found |= {len(found) + i: o for i, o in enumerate(new)}
    return {(module, call): found[i] for i, (module, call, _) in enumerate(todo)}

def parameter(module, call, want, pending):
    "A line of the list for pytest."
    marks = [pytest.mark.xfail(reason='to be mended', strict=True)] if pending else []
    return pytest.param(module, call, id=f'{module}: {call}', marks=marks)

@pytest.mark.parametrize('module, call', [parameter(*o) for o in calls])
def test_bad_call(module, call):
    assert not answers(module.partition('.')[0])[module, call]

def names():
    "Every public function and class, with its module."
    for module in walk_packages(lotterybook.__path__, 'lotterybook.'):
        home = import_module(module.name)
        for name in getattr(home, '__all__', ()):
            if getattr(getattr(home, name), '__module__', '') == module.name: yield module.name, name

def test_every_public_name_is_called():
    have = {(f'lotterybook.{module}', name)
            for module, call, *_ in calls for name in re.findall(r'\w+', call)}
    assert not sorted(set(names()) - have)
