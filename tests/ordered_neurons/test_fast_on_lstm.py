"The operations of page 140, called directly with what does not belong together."
import pytest, torch
from lotterybook.ordered_neurons.fast_on_lstm import numba_loop
from lotterybook.ordered_neurons.recurrence import loop
torch.set_num_threads(1)

forward, backward = torch.ops.lotterybook.on_lstm, torch.ops.lotterybook.on_lstm_backward
rows, batch, D, N = 6, 2, 6, 3
G = 4*D + 2*N

def draw(*shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))

inputs = dict(projected=draw(rows, G), weight_hh=draw(G, D), h_0=draw(batch, D), c_0=draw(batch, D),
              batch_sizes=None, live_top=False, reverse=False)
kept = forward(*inputs.values())
gradients = dict(d_output=draw(rows, D), d_h=draw(batch, D), d_c=draw(batch, D), d_far=draw(rows),
                 d_near=draw(rows), gates=kept[5], old=kept[6], output=kept[0],
                 weight_hh=inputs['weight_hh'], h_0=inputs['h_0'], batch_sizes=None, reverse=False)

def call(op, given, **changes): return op(*(given | changes).values())

@pytest.mark.parametrize('columns, why', [
    (G + 1, '31 columns are not those of 4·6 gates'), (4*D, 'levels=0'), (3*D, 'levels=-3'),
    (4*D + 8, '6 cells cannot be shared among 4 levels'), (6*D + 12, 'among 12 levels')])
def test_columns(columns, why):
    "A kernel would read beyond its row."
    wide = dict(weight_hh=draw(columns, D))
    with pytest.raises(ValueError, match=why):
        call(forward, inputs, projected=draw(rows, columns), **wide)
    with pytest.raises(ValueError, match=why):
        call(backward, gradients, gates=draw(rows, columns), **wide)

@pytest.mark.parametrize('op, given, name', [
    *((forward, inputs, name) for name in ('weight_hh', 'c_0')),
    *((backward, gradients, name) for name in gradients if name not in ('batch_sizes', 'reverse'))])
def test_shapes(op, given, name):
    for wrong in (given[name][:-1], given[name].new_zeros(0), given[name][None]):
        with pytest.raises(ValueError): call(op, given, **{name: wrong})

@pytest.mark.parametrize('dtype', [torch.int64, torch.complex64, torch.bool])
def test_types(dtype):
    "Sigmoids of whole numbers would be whole numbers."
    with pytest.raises(ValueError, match=f'{dtype} is not a floating-point type'):
        call(forward, inputs, projected=inputs['projected'].to(dtype))

@pytest.mark.parametrize('op, given', [(forward, inputs), (backward, gradients)])
def test_devices(op, given):
    "One tensor on `meta`, and PyTorch asks for shapes only: the rest would be uninitialized."
    tensors = [k for k, v in given.items() if isinstance(v, torch.Tensor)]
    for name in tensors:
        with pytest.raises(ValueError, match=r"several devices: \['cpu', 'meta'\]"):
            call(op, given, **{name: given[name].to('meta')})
    out = call(op, given, **{name: given[name].to('meta') for name in tensors})
    assert [o.shape for o in out] == [o.shape for o in call(op, given)]

def test_other_precisions_of_a_state():
    "Converted, as before."
    wide = call(forward, inputs, h_0=inputs['h_0'].double(), c_0=inputs['c_0'].double())
    for a, b in zip(wide, kept): assert torch.equal(a, b)

def test_wrong_columns_by_name():
    for engine in (numba_loop, loop):
        with pytest.raises((ValueError, RuntimeError)):
            engine(draw(rows, G + 2), draw(G + 2, D), draw(batch, D), draw(batch, D), None, N)
