"""The kernels of page 145 without a GPU: what Triton's interpreter does not see.

The page itself runs them in the interpreter. Here they are compiled to machine code for three generations of NVIDIA's chips,
which needs no chip, and the layer is asked for them where there is no Triton or no GPU. Triton reads TRITON_INTERPRET when
it is imported, so each case is a process of its own."""
import os, subprocess, sys
from importlib.util import find_spec
import pytest
from conftest import skip

@pytest.fixture(autouse=True)
def triton():
    if not find_spec('triton'): skip('no Triton: pip install triton (Linux)')

def ask(code, **env):
    "What a program prints"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ | dict(TRITON_INTERPRET='0') | env)
    assert done.returncode == 0, done.stderr
    return done.stdout

COMPILE = '''
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lotterybook.ordered_neurons.on_lstm_on_cuda import _kernels, _tile
in_wide = 'gates', 'old', 'c', 'dc' # what is kept in float32 at least; the other arrays are in the layer's type
forward, backward = _kernels()
for wide, low, D, C, chip in {cases}:
    for kernel, extra in (forward, dict(live_top=False)), (forward, dict(live_top=True)), (backward, {{}}):
        sizes = _tile(4*D + 2*(D//C), D, **extra) | extra
        warps = sizes.pop('num_warps')
        signature = {{o: 'constexpr' if o in sizes else 'i32' if o == 'first' else '*' + (wide if o in in_wide else low) for o in kernel.arg_names}}
        made = triton.compile(ASTSource(kernel, signature, sizes), target=GPUTarget('cuda', chip, 32),
                              options=dict(num_warps=warps, enable_fp_fusion=True))
        print(made.metadata.shared, len(made.asm['cubin']))
'''

def test_kernels_compile(tmp_path):
    cases = [('fp32', 'bf16', 1150, 10, 90), ('fp32', 'fp16', 64, 1, 80), ('fp64', 'fp64', 12, 12, 75)]
    made = [[int(n) for n in line.split()] for line in ask(COMPILE.format(cases=cases), TRITON_CACHE_DIR=str(tmp_path)).splitlines()]
    assert len(made) == 3*len(cases)
    for shared, size in made: assert size > 1000 and shared <= 48*1024 # bytes; so much shared memory every chip has

CALL = '''
import sys, torch
if {missing}: sys.modules['triton'] = None # as if it were not installed
from lotterybook.ordered_neurons.on_lstm_on_cuda import triton_loop
from lotterybook.ordered_neurons.recurrence import find_engine
assert {missing} or 'triton' not in sys.modules # to import the page is not to import Triton
class OnGPU: device = torch.device('cuda')
print(find_engine('auto', OnGPU))
try: triton_loop(torch.ones(2, 30), torch.ones(30, 6), torch.ones(1, 6), torch.ones(1, 6), None, 3)
except ValueError as error: print(error)
'''

@pytest.mark.parametrize('missing, engine, message', [(False, 'triton', 'the input is on cpu'), (True, 'loop', 'pip install triton')])
def test_errors_say_what_to_do(missing, engine, message):
    first, second = ask(CALL.format(missing=missing)).splitlines()
    assert first == engine and message in second

INTERPRET = '''
import torch
from lotterybook.ordered_neurons import on_lstm_on_cuda
def draw(*shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
h = draw(2, 6)
output, *_, gates, old = torch.ops.lotterybook.on_lstm_interpreted(draw(6, 30), draw(30, 6), h, draw(2, 6), None, False, False)
def back(*views):
    return torch.ops.lotterybook.on_lstm_interpreted_backward(draw(6, 6), draw(2, 6), draw(2, 6), draw(6), draw(6), *views, draw(30, 6), h, None, False)
for a, b in zip(back(gates, old, output), back(*(o.t().contiguous().t() for o in (gates, old, output)))): torch.testing.assert_close(a, b)
'''

def test_rows_that_lie_otherwise():
    "Kernels read rows one below the other; whoever calls the backward pass directly may have others"
    ask(INTERPRET, TRITON_INTERPRET='1')
