"""The recorded numbers of ON-LSTM, `reference_on_lstm.json`: one small case, in float64.

How they were made: by `naive_on_lstm`, the plain loop of page 126, from weights, input and state that come from a formula
(`sines`: no random generator). Gradients are autograd's, of one scalar: everything the loop returns, each number times a sine.
`tests/ordered_neurons/test_released_layout.py` checks the same loop by routes that share nothing with it: numbers in lists, `nn.LSTM`
where the master gates are open, finite differences. To make the file anew: `python tests/test_reference.py`.

The file is whole: `weights`, `x`, `state` and `loss_weights` go in; `from_zero` and `from_state` come out, with `loss` and `gradients`.
"""
import json, math
from pathlib import Path
import pytest, torch
from lotterybook.ordered_neurons.on_lstm import ONLSTM
from lotterybook.ordered_neurons.reference import example_state_dict, naive_on_lstm, sines

file  = Path(__file__).with_name('reference_on_lstm.json')
sizes, chunk_size, seq, batch = [5, 12, 8], 2, 6, 3
parts = 'output', 'h', 'c', 'distance_forget', 'distance_input' # what a run gives

def tensors(o):
    "Lists of numbers of equal length as float64 tensors; lists of such lists (a tensor for each layer) and dictionaries stay"
    if isinstance(o, dict): return {key: tensors(value) for key, value in o.items()}
    try: return torch.tensor(o, dtype=torch.float64)
    except ValueError: return [tensors(value) for value in o]

def lists(o):
    "The other way round"
    if isinstance(o, dict): return {key: lists(value) for key, value in o.items()}
    return o.tolist() if isinstance(o, torch.Tensor) else [lists(value) for value in o]

def each(o): return [o] if isinstance(o, torch.Tensor) else list(o)

def scalar(run, loss_weights):
    "All that a run gave, each number times its weight, added up: what is differentiated"
    return sum((w * o).sum() for part in parts for w, o in zip(each(loss_weights[part]), each(run[part]), strict=True))

def inputs():
    "Everything that goes in, by formula"
    layers = list(enumerate(sizes[1:]))
    shapes = dict(output=[(seq, batch, sizes[-1])], h=[(batch, n) for _, n in layers], c=[(batch, n) for _, n in layers],
                  distance_forget=[(len(layers), seq, batch)], distance_input=[(len(layers), seq, batch)])
    loss_weights = {part: [sines(*shape, start=20_001 + 1000*i + 100*l) for l, shape in enumerate(shapes[part])] for i, part in enumerate(parts)}
    return dict(weights=example_state_dict(sizes, chunk_size),
                x=sines(seq, batch, sizes[0], start=10_001),
                state=dict(h=[sines(batch, n, start=11_001 + 100*l) for l, n in layers],
                           c=[sines(batch, n, start=12_001 + 100*l) for l, n in layers]),
                loss_weights={part: o if part in 'hc' else o[0] for part, o in loss_weights.items()})

def outputs(weights, x, state, loss_weights):
    "Everything that comes out, from a zero state (`state=None`) or a given one"
    leaf    = lambda o: o.clone().requires_grad_()
    leaves  = dict(weights={key: leaf(w) for key, w in weights.items()}, x=leaf(x))
    if state: leaves['state'] = {key: [leaf(o) for o in layers] for key, layers in state.items()}
    given   = (leaves['state']['h'], leaves['state']['c']) if state else None
    run     = naive_on_lstm(leaves['weights'], leaves['x'], chunk_size, given)
    loss    = scalar(run._asdict(), loss_weights)
    loss.backward()
    grads   = dict(weights={key: w.grad for key, w in leaves['weights'].items()}, x=leaves['x'].grad)
    if state: grads['state'] = {key: [o.grad for o in layers] for key, layers in leaves['state'].items()}
    detach  = lambda o: o.detach() if isinstance(o, torch.Tensor) else [v.detach() for v in o]
    return {part: detach(getattr(run, part)) for part in parts} | dict(loss=loss.detach(), gradients=grads)

def record():
    "The whole record, as the file has it"
    i = inputs()
    return dict(made_by='tests/test_reference.py', sizes=sizes, chunk_size=chunk_size, seq=seq, batch=batch) | lists(
        i | dict(from_zero=outputs(i['weights'], i['x'], None, i['loss_weights']), from_state=outputs(**i)))

def same(a, b, where='', eps=1e-12):
    "Fail unless two nests of lists and dictionaries hold the same numbers"
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a: same(a[key], b[key], f'{where}/{key}', eps)
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for k, (u, v) in enumerate(zip(a, b)): same(u, v, f'{where}[{k}]', eps)
    elif isinstance(a, float): assert math.isclose(a, b, rel_tol=eps, abs_tol=eps), f'{where}: {a!r} is not {b!r}'
    else: assert a == b, where

@pytest.fixture(scope='module')
def recorded(): return json.loads(file.read_text(encoding='utf-8'))

def test_loop_gives_the_recorded_numbers(recorded): same(record(), recorded)

def test_record_feels_every_weight(recorded):
    "Of all gradients by weights, only those of the dead cells' gates, and of the columns that read them from a zero state, are 0"
    for start, columns in ('from_zero', True), ('from_state', False):
        for l, D in enumerate(sizes[1:]):
            N, dead = D//chunk_size, torch.arange(D) >= D - chunk_size
            rows    = torch.cat([torch.zeros(2*N, dtype=torch.bool)] + [dead]*4)      # o has a gradient only where c is not 0
            o_rows  = torch.zeros_like(rows); o_rows[2*N:2*N + D] = dead
            grads   = tensors({key: g for key, g in recorded[start]['gradients']['weights'].items() if f'cells.{l}.' in key})
            for key, g in grads.items():
                want = rows.clone() if columns else rows & ~o_rows
                want = want[:, None].expand_as(g).clone() if g.ndim == 2 else want
                if columns and key.endswith('hh.weight'): want |= dead
                if columns and l and key.endswith('ih.0.weight'): want |= torch.arange(sizes[l]) >= sizes[l] - chunk_size
                assert torch.equal(g.abs() < 1e-13, want), (start, key)

@pytest.mark.parametrize('engine', ['loop', 'numba'])
@pytest.mark.parametrize('start', ['from_zero', 'from_state'])
def test_the_layer_gives_the_recorded_numbers(recorded, engine, start):
    net   = ONLSTM.from_reference(tensors(recorded['weights']), chunk_size, engine=engine)
    x     = tensors(recorded['x']).requires_grad_()
    state = [[o[None].requires_grad_() for o in tensors(recorded['state'][k])] for k in 'hc'] if start == 'from_state' else None
    output, (h, c), distances = net(x, state, return_distances=True)
    run   = dict(zip(parts, (output, [o[0] for o in h], [o[0] for o in c], *distances)))
    for part in parts: same(lists(run[part]), recorded[start][part], part, 1e-10)
    scalar(run, tensors(recorded['loss_weights'])).backward()
    grads = recorded[start]['gradients']
    same(x.grad.tolist(), grads['x'], 'x', 1e-10)
    if state: same([[o.grad[0].tolist() for o in layers] for layers in state], [grads['state'][k] for k in 'hc'], 'state', 1e-10)
    for o in net.parameters(): o.data = o.grad # `to_reference` brings them into the released order
    same(lists(net.to_reference()), grads['weights'], 'weights', 1e-10)

if __name__ == '__main__': file.write_text(json.dumps(record()) + '\n', encoding='utf-8')
