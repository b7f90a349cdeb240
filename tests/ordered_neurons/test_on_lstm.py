"""The layer against `nn.LSTM` and the slow loop of page 126, in every form of input and precision; under PyTorch's transforms
and exporters, on `meta`; and what it refuses."""
import copy, re
from functools import partial
import pytest, torch
from torch import nn
from torch.export import Dim
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.testing import assert_close
from onnx_runs import by_onnx
from lotterybook.ordered_neurons.on_lstm import ONLSTM, ONLSTMCell
from lotterybook.ordered_neurons.reference import example_state_dict, naive_on_lstm
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

# --- shapes, as `nn.LSTM`

def wide(*shape):
    "Numbers in float64, others at each call."
    return torch.randn(*shape, dtype=torch.float64, generator=source)

source = torch.Generator().manual_seed(2)
double = partial(ONLSTM, dtype=torch.float64, live_top=True, chunk_size=2)
close  = partial(assert_close, rtol=0, atol=1e-12)

def shapes(out):
    "Shapes of everything in an output."
    if isinstance(out, PackedSequence): return 'packed', out.data.shape
    return out.shape if isinstance(out, torch.Tensor) else [shapes(o) for o in out]

@pytest.mark.parametrize('options', [
    {}, dict(num_layers=2), dict(bidirectional=True), dict(bias=False),
    dict(num_layers=3, bidirectional=True, batch_first=True)], ids=str)
@pytest.mark.parametrize('engine_', ['numba', 'loop'])
def test_shapes_of_nn_lstm(engine_, options):
    "A batch, one sequence, packed, no sequences; a state goes in as it came out."
    ours, theirs = layer(engine_, **options), nn.LSTM(5, 12, **options)
    packed = pack_sequence([draw(n, 5) for n in (2, 7, 4)], enforce_sorted=False)
    empty = x[:0] if options.get('batch_first') else x[:, :0]
    for given in (x, x[:, 0], packed, empty):
        assert shapes(ours(given)) == shapes(theirs(given))
        last = theirs(given)[1]
        assert shapes(ours(given, last)) == shapes(theirs(given, last))
    for name, weight in theirs.state_dict().items():  # names, and the first 4D rows
        assert ours.state_dict()[name][:48].shape == weight.shape

# --- the numbers of the slow loop of page 126

sizes = [40, 40, 60]

@pytest.fixture
def release():
    "Weights in the released layout, input and state; leaves."
    weights = example_state_dict([5, *sizes], chunk_size=2)
    given = wide(9, 4, 5), [[wide(4, D) for D in sizes] for _ in 'hc']
    return {k: v.requires_grad_() for k, v in weights.items()}, *given

def loss(output, forget, write):
    ramp = torch.arange(forget.numel()).view_as(forget)
    return (output**2).sum() + (forget*ramp).sum() + (write**2).sum()

def test_numbers_and_gradients_of_the_slow_loop(release):
    weights, given, begin = release
    net = ONLSTM.from_reference(weights, chunk_size=2)
    a, b = given.clone().requires_grad_(), given.clone().requires_grad_()
    naive = naive_on_lstm(weights, a, 2, begin)
    output, last, distances = net(b, [[o[None] for o in part] for part in begin],
                                  return_distances=True)
    close(output, naive.output)
    for ours, theirs in zip((*last[0], *last[1]), (*naive.h, *naive.c)): close(ours[0], theirs)
    close(distances[0], naive.distance_forget)
    close(distances[1], naive.distance_input)
    loss(naive.output, naive.distance_forget, naive.distance_input).backward()
    loss(output, *distances).backward()
    assert_close(b.grad, a.grad, rtol=0, atol=1e-10)
    names = {'ih.0.weight': 'weight_ih', 'ih.0.bias': 'bias_ih', 'hh.weight': 'weight_hh', 'hh.bias': 'bias_hh'}
    for l, (D, N) in enumerate(zip(net.hidden_sizes, net.levels)):
        for theirs, ours in names.items():
            i_tilde, f_tilde, o, c_hat, i, f = weights[f'cells.{l}.{theirs}'].grad.split([N, N, D, D, D, D])
            assert_close(net.get_parameter(f'{ours}_l{l}').grad,
                         torch.cat([i, f, c_hat, o, f_tilde, i_tilde]), rtol=0, atol=1e-10)

def test_weights_there_and_back(release):
    weights, given, _ = release
    net = ONLSTM.from_reference(weights, chunk_size=2)
    back = net.to_reference()
    assert back.keys() == weights.keys()
    assert all(torch.equal(v, weights[k]) for k, v in back.items())
    model = {f'rnn.{k}': v for k, v in back.items()} | {'encoder.weight': given}  # a language model
    assert torch.equal(ONLSTM.from_reference(model, 2)(given)[0], net(given)[0])

@pytest.mark.parametrize('scaling', ['released', 'inverted'])
def test_checkpoint_trained_with_drop_connect(release, scaling):
    "Evaluated by the release with (1 - p) U, by the inverted convention with U."
    weights, given, _ = release
    weights = {k: v.detach() for k, v in weights.items()}
    net = ONLSTM.from_reference(weights, 2, weight_dropout=.45, weight_dropout_scaling=scaling).eval()
    scaled = {k: v*.55 if k.endswith('hh.weight') else v for k, v in weights.items()}
    close(net(given)[0], naive_on_lstm(scaled, given, 2).output)
    for k, v in net.to_reference().items(): close(v, weights[k])

def test_checkpoints_that_do_not_fit(release):
    weights, _, _ = release
    def load(*args, **options): return ONLSTM.from_reference(*args, **options)
    with pytest.raises(ValueError, match='cells.1.hh.bias'):
        load({k: v for k, v in weights.items() if k != 'cells.1.hh.bias'}, 2)
    with pytest.raises(ValueError, match='chunk_size=2 would fit'): load(weights, 4)
    for option in (dict(bidirectional=True), dict(live_top=True), dict(num_layers=3), dict(bias=False)):
        with pytest.raises(ValueError, match='does not fit a checkpoint'): load(weights, 2, **option)
    with pytest.raises(ValueError, match='no bidirectional=True'): double(5, 12, bidirectional=True).to_reference()

# --- packed, reversed, stacked: each form against another form of the same thing

@pytest.fixture(scope='module')
def both_ways():
    torch.manual_seed(1)
    return double(5, 12, 2, bidirectional=True)

sequences = [wide(n, 5) for n in (2, 7, 4)]
steps = wide(6, 3, 5)

def test_packed_as_alone(both_ways):
    begin = wide(4, 3, 12), wide(4, 3, 12)
    output, last, distances = both_ways(pack_sequence(sequences, enforce_sorted=False), begin, return_distances=True)
    dense, lengths = pad_packed_sequence(output)
    assert lengths.tolist() == [2, 7, 4] and distances[0].shape == (4, 7, 3)
    for b, s in enumerate(sequences):
        alone = both_ways(s, tuple(o[:, b] for o in begin), return_distances=True)
        close(dense[:len(s), b], alone[0])
        for part, one in zip(last, alone[1]): close(part[:, b], one)
        for part, one in zip(distances, alone[2]):
            close(part[:, :len(s), b], one)
            assert not part[:, len(s):, b].any()  # zeros beyond the end

def single(weights, end=''):
    "One layer in one direction, with weights of the first layer of another one."
    net = double(5, 12)
    net.load_state_dict({k.removesuffix(end): v for k, v in weights.items() if k.endswith(f'l0{end}')})
    return net

def test_directions(both_ways):
    one = single(both_ways.state_dict(), '_reverse')
    first = double(5, 12, bidirectional=True)
    first.load_state_dict({k: v for k, v in both_ways.state_dict().items() if '_l0' in k})
    close(first(steps)[0][..., 12:], one(steps.flip(0))[0].flip(0))  # the second half reads from the end
    both, (h, _) = both_ways(steps)
    close(h[-2], both[-1, :, :12])                                   # the last layer's two ends
    close(h[-1], both[0, :, 12:])
    turned = double(5, 12, 2, bidirectional=True, batch_first=True)
    turned.load_state_dict(both_ways.state_dict())
    close(turned(steps.transpose(0, 1))[0].transpose(0, 1), both)

def test_cell_agrees_with_the_layer(both_ways):
    one = single(both_ways.state_dict())
    cell = ONLSTMCell(5, 12, chunk_size=2, live_top=True, dtype=torch.float64)
    cell.load_state_dict({k.removesuffix('_l0'): v for k, v in one.state_dict().items()})
    last, outputs = None, []
    for x_t in steps:
        last = cell(x_t, last)
        outputs.append(last[0])
    close(torch.stack(outputs), one(steps)[0])

def test_in_two_calls_copied_and_not_contiguous(both_ways):
    one = single(both_ways.state_dict())
    head, last = one(steps[:4])
    close(torch.cat([head, one(steps[4:], last)[0]]), one(steps)[0])
    twin = copy.deepcopy(one)
    assert torch.equal(twin(steps)[0], one(steps)[0])
    first = double(5, 12, bidirectional=True)
    twin.load_state_dict(first.state_dict(), strict=False)
    close(twin(steps)[0], first(steps)[0][..., :12])
    turned = steps.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(one(steps)[0], one(turned)[0])

# --- dropout

def test_dropout_only_in_training():
    noisy = double(5, 12, 2, dropout=.5, weight_dropout=.5, locked=True)
    assert (noisy(steps)[0] != noisy(steps)[0]).any()
    noisy.eval()
    assert torch.equal(noisy(steps)[0], noisy(steps)[0])
    alone = double(5, 12, weight_dropout=.5)
    training, evaluation = alone(steps)[0], alone.eval()(steps)[0]
    assert torch.equal(training[0], evaluation[0])  # U has no part in the first step
    assert (training[1] != evaluation[1]).any()

class Seen(ONLSTM):
    "Keeps which inputs of the second layer are dropped."
    def _run(self, l, d, x, *rest):
        if l == 1: self.dropped = x == 0
        return super()._run(l, d, x, *rest)

def test_what_dropout_drops_between_layers():
    torch.manual_seed(3)
    net = Seen(5, 12, 2, dropout=.5, locked=True, chunk_size=2, live_top=True, dtype=torch.float64)
    net(wide(20, 3, 5))
    dropped = net.dropped.view(20, 3, 12)
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))       # one mask for all steps
    assert dropped.any() and not dropped.all()
    assert (dropped[0, 0] != dropped[0, 1]).any()                     # another for each sequence
    packed = pack_sequence(sequences, enforce_sorted=False)
    net(packed)
    of = torch.cat([torch.arange(b) for b in packed.batch_sizes])
    assert net.dropped.any() and not net.dropped.all()
    for b, length in enumerate((7, 4, 2)):
        mine = net.dropped[of == b]
        assert torch.equal(mine, mine[:1].expand(length, 12))
    net.locked = False
    net(wide(20, 3, 5))
    dropped = net.dropped.view(20, 3, 12)
    assert (dropped != dropped[:1]).any()                             # as in nn.LSTM: one for each step

def test_dropout_between_one_layer_warns():
    with pytest.warns(UserWarning, match='acts between layers, and there is one layer'):
        double(5, 12, dropout=.1)

# --- precision

@pytest.mark.parametrize('dtype, eps', [(torch.float32, 1e-5), (torch.bfloat16, .03), (torch.float16, .005)])
def test_half_precision(both_ways, dtype, eps):
    "What is lost is the rounding of weights, products and outputs; distances stay in float32."
    one = single(both_ways.state_dict())
    exact = one(steps)[0]
    slope, = torch.autograd.grad(exact.sum(), one.weight_hh_l0)
    low = copy.deepcopy(one).to(dtype)
    out, last, far = low(steps.to(dtype), return_distances=True)
    assert {o.dtype for o in (out, *last)} == {dtype} and {o.dtype for o in far} == {torch.float32}
    assert (out.double() - exact).abs().max() < eps
    out.float().sum().backward()
    assert low.weight_hh_l0.grad.dtype == dtype
    assert (low.weight_hh_l0.grad.double() - slope).abs().max() < eps*slope.abs().max()

def test_autocast(both_ways):
    one = single(both_ways.state_dict())
    with torch.autocast('cpu', torch.bfloat16):
        out, _, far = copy.deepcopy(one).float()(steps.float(), return_distances=True)
    assert [out.dtype, far[0].dtype] == [torch.bfloat16, torch.float32]
    assert (out.double() - one(steps)[0]).abs().max() < .03

def test_output_changed_in_place_is_noticed():
    "An output may be what the backward pass works on."
    output = double(5, 12, engine='numba')(steps)[0]
    with pytest.raises(RuntimeError, match='inplace operation'): output.mul_(2).sum().backward()

def test_nan_stays_in_its_sequence():
    broken = steps.clone()
    broken[2, 1, 0] = torch.nan
    out = double(5, 12)(broken)[0]
    assert out.isnan().any(-1).nonzero().tolist() == [[t, 1] for t in range(2, 6)]

# --- refused

zeros = partial(torch.zeros, dtype=torch.float64)

@pytest.mark.parametrize('given, match', [
    ((wide(7, 3, 4),), 'input has 4 features (shape (7, 3, 4)), but the layer reads 5'),
    ((wide(0, 3, 5),), 'no steps (shape (0, 3, 5))'), ((wide(7, 3, 1, 5),), '4 dimensions'),
    ((steps.float(),), 'torch.float32 and the weights are torch.float64'),
    ((steps, (zeros(2, 3, 12), zeros(2, 3, 12))), 'h_0 has shape (2, 3, 12); it must be (1, 3, 12)'),
    ((steps[:, 0], (zeros(1, 1, 12), zeros(1, 1, 12))), 'h_0 has shape (1, 1, 12); it must be (1, 12)'),
    ((steps, (None, None)), 'h_0 is None'),
    ((steps, (zeros(1, 3, 12), zeros(1, 3, 11))), 'c_0 has shape (1, 3, 11)')])
def test_inputs_and_states_refused(given, match):
    with pytest.raises(ValueError, match=re.escape(match)): double(5, 12)(*given)

@pytest.mark.parametrize('args, options, match', [
    ((5, 12), dict(chunk_size=5), 'hidden_size=12 is not a multiple of chunk_size=5'),
    ((5, 12), dict(chunk_size=24), 'one of [1, 2, 3, 4, 6, 12]'),
    ((5, 12), dict(chunk_size=1, weight_dropout=1.), 'weight_dropout=1.0'),
    ((True, 12), dict(chunk_size=1), 'input_size=True'), ((5, 12.), dict(chunk_size=1), 'hidden_size=12.0'),
    ((5, [12, 8], 3), dict(chunk_size=1), 'hidden_size names 2 layers, and num_layers=3'),
    ((5, 12), dict(chunk_size=1, engine='fast'), "unknown engine 'fast'")])
def test_options_refused(args, options, match):
    with pytest.raises(ValueError, match=re.escape(match)): ONLSTM(*args, **options)

def test_cell_refuses():
    with pytest.raises(ValueError, match='hidden_size=12.0'): ONLSTMCell(5, 12., chunk_size=1)
    with pytest.raises(ValueError, match=re.escape('chunk_size can be one of [1, 2, 3, 4, 6, 12]')):
        ONLSTMCell(5, 12, chunk_size=5)
    cell = ONLSTMCell(5, 12, chunk_size=3, live_top=True)
    h, c = cell(torch.randn(7, 5))
    assert h.shape == c.shape == (7, 12)
    assert cell(torch.randn(5), (h[0], c[0]))[0].shape == (12,)  # unbatched
    with pytest.raises(ValueError, match=re.escape('input has shape (7, 4)')): cell(torch.randn(7, 4))
    with pytest.raises(ValueError, match=re.escape('h and c have shapes (7, 12) and (6, 12)')):
        cell(torch.randn(7, 5), (h, c[:6]))
    with pytest.raises(ValueError, match=re.escape('must be a pair (h, c), both given')):
        cell(torch.randn(7, 5), (None, None))

@pytest.mark.parametrize('make', [ONLSTM, ONLSTMCell])
def test_dead_cells_warn_at_the_line_that_made_the_layer(make):
    "5 of 20 cells."
    with pytest.warns(UserWarning, match='top level is dead') as said: make(5, 20, chunk_size=5)
    assert said[0].filename == __file__

def test_pytorch_refuses_empty_sequences():
    with pytest.raises(RuntimeError, match='greater than 0'): pack_padded_sequence(steps, [6, 2, 0])

# --- graphs for any length

@pytest.mark.filterwarnings('ignore')
def test_nn_lstm_is_exported_for_one_length_only():
    "The page says so; when this fails, mend the page."
    with pytest.raises(torch._dynamo.exc.UserError, match='Constraints violated'):
        torch.export.export(nn.LSTM(5, 12).eval(), (x,), dynamic_shapes=(dict({0: Dim('steps', min=2)}),))

def test_compiled_to_one_graph_for_all_lengths():
    "With a backend that counts graphs and compiles nothing."
    net, graphs = layer(num_layers=2), []
    net(x)  # the engine is imported
    def count(graph, _):
        graphs.append(graph)
        return graph.forward
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=count)
    for T in (6, 9, 13):
        given = torch.randn(T, 3, 5)
        assert_close(compiled(given)[0], net(given)[0])
    assert len(graphs) == 1
