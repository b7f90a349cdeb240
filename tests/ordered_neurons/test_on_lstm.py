"The layer under PyTorch's transforms and exporters, on `meta`, and with states it cannot read."
from functools import partial
import pytest, torch
from torch import nn
from torch.export import Dim
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.nn.utils.rnn import pack_sequence
from torch.testing import assert_close
from onnx_runs import by_onnx
from lotterybook.ordered_neurons.on_lstm import ONLSTM, ONLSTMCell
torch.set_num_threads(1)

def layer(engine='auto', sizes=12, num_layers=1, **options):
    torch.manual_seed(0)
    return ONLSTM(5, sizes, num_layers, chunk_size=2, live_top=True, engine=engine, **options).eval()

def draw(*shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(1))

x, longer = draw(6, 3, 5), draw(9, 3, 5)
state = draw(1, 3, 12), draw(1, 3, 12)

def everything(out):
    "All tensors of an output."
    if isinstance(out, torch.Tensor): return [out]
    return [t for o in out if o is not None for t in everything(o)]

@pytest.fixture(params=['auto', 'numba', 'loop'])
def engine(request): return request.param

# --- transforms

def result(engine, how):
    net = layer(engine)
    weights = {k: p.detach() for k, p in net.named_parameters()}
    return how(lambda x, w=weights: functional_call(net, w, (x,))[0], weights,
               {k: torch.ones_like(p) for k, p in weights.items()})

def total(f, *args): return f(*args).square().sum()

@pytest.mark.parametrize('how', [
    lambda f, w, ones: grad(lambda w: total(f, x, w))(w)['weight_hh_l0'],
    lambda f, w, ones: vmap(f, 1, 1)(x[:, :, None]),
    lambda f, w, ones: vmap(lambda w: f(x, w))({k: torch.stack([p, -p]) for k, p in w.items()}),
    lambda f, w, ones: jvp(lambda w: f(x, w), (w,), (ones,))[1],
    lambda f, w, ones: jvp(f, (x,), (torch.ones_like(x),))[1],
    lambda f, w, ones: hessian(lambda x: total(f, x))(x[:2, :1])],
    ids=['grad', 'vmap x', 'vmap weights', 'jvp weights', 'jvp x', 'hessian'])
def test_transforms(engine, how):
    "Also of the compiled loop where it is asked for by name: its `jvp` was 0."
    want = result('loop', how)
    assert want.abs().max() > .01
    assert_close(result(engine, how), want, rtol=1e-4, atol=1e-5)

# --- exporters

nets = [partial(layer), partial(layer, num_layers=2, bidirectional=True, return_distances=True),
        partial(layer, sizes=[12, 8], batch_first=True)]

@pytest.mark.parametrize('make', nets)
def test_export_in_plain_operations(engine, make):
    net = make(engine)
    graph = torch.export.export(net, (x,))
    assert not [o for o in graph.graph.nodes if 'lotterybook' in str(o.target)]
    assert_close(everything(graph.module()(x)), everything(net(x)))

@pytest.mark.parametrize('make', nets)
@pytest.mark.parametrize('free', [{0: 'a'}, {1: 'b'}, {0: 'a', 1: 'b'}], ids=['0', '1', '0 and 1'])
def test_export_for_any_size(make, free):
    "Any batch in plain operations; any number of steps as one operation."
    net = make()
    free = {d: Dim(name, min=2) for d, name in free.items()}
    graph = torch.export.export(net, (x,), dynamic_shapes=(free,))
    whole = [o for o in graph.graph.nodes if 'lotterybook' in str(o.target)]
    assert bool(whole) == ((1 if net.batch_first else 0) in free)
    for some in (x[:2] if 0 in free else x, x[:, :2] if 1 in free else x):
        assert_close(everything(graph.module()(some)), everything(net(some)))

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('dynamo', [True, False])
@pytest.mark.parametrize('make', nets)
def test_onnx(make, dynamo, tmp_path):
    net = make()
    assert_close(by_onnx(net, (x,), dynamo, tmp_path)(2*x), everything(net(2*x)))

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('dynamo, free', [
    (True, dict(dynamic_shapes=({1: Dim('b')}, ({1: Dim('b')},)*2))),
    (False, dict(input_names=['x', 'h', 'c'], dynamic_axes={o: {1: 'b'} for o in 'xhc'}))])
def test_onnx_with_a_state_for_any_batch(dynamo, free, tmp_path):
    net = layer()
    run = by_onnx(net, (x, state), dynamo, tmp_path, **free)
    for n in (3, 2, 1):
        given = [o[:, :n].contiguous() for o in (x, *state)]
        assert_close(run(*given), everything(net(given[0], given[1:])))

@pytest.mark.parametrize('make', [layer, lambda: nn.Sequential(layer()),
                                  lambda: ONLSTMCell(5, 12, chunk_size=2, live_top=True)])
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_script(make):
    with pytest.raises(NotImplementedError, match='cannot compile ONLSTM.*; use torch.export'):
        torch.jit.script(make())

@pytest.mark.filterwarnings('ignore')
def test_trace_for_any_length():
    "As before: one operation."
    net = layer()
    assert_close(torch.jit.trace(net, (x,))(longer)[0], net(longer)[0])

# --- derivatives of derivatives

def test_second_derivatives(engine):
    "The plain loop has them, the compiled ones say where they are. One gradient does not ask."
    given = x.clone().requires_grad_()
    slope, = torch.autograd.grad(layer(engine)(given)[0].sum(), given, create_graph=True)
    def twice(): return torch.autograd.grad(slope.square().sum(), given)[0]
    if engine == 'loop':
        assert twice().any()
    else:
        with pytest.raises(RuntimeError, match="no second derivatives; .* engine='loop'"): twice()

# --- meta

@pytest.mark.parametrize('given', [x, x[:, 0], pack_sequence([x[:, 0], x[:4, 1]])],
                         ids=['batch', 'one', 'packed'])
def test_on_meta_as_nn_lstm(engine, given):
    ours, theirs = (net.to('meta')(given.to('meta')) for net in (layer(engine), nn.LSTM(5, 12)))
    def shapes(out): return [(o.shape, o.device.type) for o in everything(out)]
    assert shapes(ours) == shapes(theirs)

def test_on_meta_in_part(engine):
    "Numbers of another device's shapes would be whatever lay in memory."
    net, gone = layer(engine), [o.to('meta') for o in state]
    for h, c in (gone, (gone[0], state[1]), (state[0], gone[1])):
        with pytest.raises((RuntimeError, ValueError), match='device'): net(x, (h, c))
    with pytest.raises((RuntimeError, ValueError), match='device'): net(x.to('meta'))
    with pytest.raises((RuntimeError, ValueError), match='device'): net.to('meta')(x)

# --- states

@pytest.mark.parametrize('net, given', [(layer(), state[0]), (layer(num_layers=2), draw(2, 3, 12)),
                                        (layer(num_layers=2), draw(2, 2, 12))],
                         ids=['1 layer', '2 layers', 'batch of 2'])
def test_one_tensor_for_a_state(net, given):
    with pytest.raises(ValueError, match=r'a pair \(h_0, c_0\), not one tensor of shape \([12], '):
        net(x[:, :given.shape[1]], given)

def test_states_that_are_pairs():
    "A tensor of both too."
    net = layer()
    want = net(x, state)[0]
    for pair in (state, list(state), torch.stack(state)): assert torch.equal(net(x, pair)[0], want)
    alone = torch.stack(state)[:, :, 0]
    assert_close(net(x[:, 0], alone)[0], want[:, 0])
    with pytest.raises(ValueError, match='not 3 tensors'): net(x, (*state, state[0]))
