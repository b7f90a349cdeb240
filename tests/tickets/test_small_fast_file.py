"Small files exact to the bit and refused by name; networks without dead units and sparse layers that compute the same."
import math, warnings, zlib
from copy import deepcopy
import numpy as np
import pytest, torch
from hypothesis import given, settings, strategies as st
from onnx_runs import by_onnx
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file
from sameness import same
from torch import nn
from torch.nn.utils import prune
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.checksums import tensor_file
from lotterybook.foundations.networks import batchnorm_mlp, lenet
from lotterybook.pruning.masks import apply_masks, full_masks
from lotterybook.tickets import small_fast_file
from lotterybook.tickets.rewinding import rewind
from lotterybook.tickets.small_fast_file import CSRLinear, load_compact, save_compact, to_csr, without_dead_units
from lotterybook.tickets.ticket_files import Ticket, load_ticket, save_ticket

def make(seed=0): return batchnorm_mlp(64, widths=(40, 20), seed=seed)

def random_masks(net, p, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {k: torch.rand(m.shape, generator=g) < p for k, m in full_masks(net).items()}

masks = random_masks(make(), .05)

@pytest.fixture
def ticket():
    "Trained under its mask."
    return Ticket(snapshot(make(0)), masks, snapshot(rewind(make(1), snapshot(make(1)), masks)), dict(seed=0, outcome=dict(accuracy=.97)))

@pytest.fixture
def file(ticket, tmp_path): return save_compact(ticket, tmp_path/'compact.safetensors')

def under_mask(theta, masks): return {k: torch.where(masks[k], v, 0) if k in masks else v.clone() for k, v in theta.items()}

def bits(t):
    t = t.contiguous().reshape(-1)
    return t.dtype, t.shape, t.view(torch.uint8).tolist()

# --- there and back

@pytest.mark.parametrize('squeeze', [True, False])
@pytest.mark.parametrize('start', ['kept', 'all', 'none'])
def test_there_and_back(start, squeeze, ticket, tmp_path):
    "Masks, settings and trained weights to the bit; the start as it was asked for; the network computes the same."
    back = load_compact(save_compact(ticket, tmp_path/'new'/'c', start, squeeze), make())
    want = dict(kept=under_mask(ticket.theta_0, masks), all=ticket.theta_0, none={})[start]
    assert same(back, Ticket(want, masks, ticket.theta_T, ticket.settings))
    x = torch.randn(5, 64)
    assert rewind(make(), back.theta_T).eval()(x).equal(rewind(make(), ticket.theta_T).eval()(x))
    if start != 'none': assert same(snapshot(rewind(make(), back.theta_0, masks)), snapshot(rewind(make(), ticket.theta_0, masks)))
    if start == 'none':
        with pytest.raises(ValueError, match='layer1.weight is missing'): rewind(make(), back.theta_0)

@given(st.lists(st.tuples(st.lists(st.integers(0, 13), max_size=3), st.integers(0, 2**32), st.sampled_from([0, .001, .03, .5, .97, 1])), min_size=1, max_size=4), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_mask(tmp_path_factory, layers, squeeze):
    "Odd sizes, scalars, no weights at all, no mask entry kept, all kept, long gaps."
    theta, masks = {}, {}
    for i, (shape, seed, p) in enumerate(layers):
        g = torch.Generator().manual_seed(seed)
        shape = [8*n for n in shape] if seed % 2 else shape
        theta[f'{i}.w'] = torch.randn(shape, generator=g)
        masks[f'{i}.w'] = torch.rand(shape, generator=g) < p
    path = save_compact(Ticket(theta, masks), tmp_path_factory.mktemp('any')/'c', squeeze=squeeze)
    assert same(load_compact(path), Ticket(under_mask(theta, masks), masks, None, {}))

@pytest.mark.parametrize('size, kept', [(255, [254]), (256, [255]), (511, [0, 255, 510]), (5000, [4999]), (5000, [0]), (3*255 + 1, [255, 510]), (3000, range(0, 3000, 256)), (7, [])])
def test_gaps_of_one_byte_and_more(size, kept):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(kept)] = True
    packed = np.frombuffer(small_fast_file._gap_bytes(mask), np.uint8)
    assert small_fast_file._from_gaps(packed, size).tolist() == mask.tolist()
    if kept:
        with pytest.raises(ValueError, match='lead past'): small_fast_file._from_gaps(packed, max(kept))
    assert len(zlib.decompress(packed.tobytes())) == len(kept) + (sum(np.diff([-1, *kept])//256) if len(kept) else 0) or size == 3*255 + 1

def test_every_kind_of_number(tmp_path):
    "Half precisions, doubles, integers, payloads of NaN, infinities, -0, subnormals, counters."
    odd = torch.tensor([0., -0., math.inf, -math.inf, math.nan, 1e-42, 1., 2.])
    payload = torch.tensor([0x7fc01234, 0x7f812345, -1, 1], dtype=torch.int32).view(torch.float32)
    theta = dict(bfloat=odd.bfloat16(), half=odd.half(), double=odd.double(), single=odd, payload=payload, count=torch.tensor(7), whole=torch.arange(5), few=torch.arange(8, dtype=torch.int8))
    masks = {k: torch.arange(len(v)) % 3 != 1 for k, v in theta.items() if k not in ('count', 'whole')}
    path  = save_compact(Ticket(theta, masks), tmp_path/'odd')
    with pytest.warns(UserWarning, match='not finite'): back = load_compact(path)
    for k, v in theta.items():
        m = masks.get(k, torch.ones_like(v, dtype=torch.bool))
        assert bits(back.theta_0[k][m]) == bits(v[m]) and not back.theta_0[k][~m].any()

def test_other_layouts_and_the_same_file(ticket, file):
    "Stored by columns in memory; saved, read and saved: the same bytes."
    assert same(save_compact(ticket, file.with_name('a')).read_bytes(), file.read_bytes())
    assert save_compact(load_compact(file), file.with_name('b')).read_bytes() == file.read_bytes()
    columns = {k: v.t().contiguous().t() if v.dim() == 2 else v for k, v in ticket.theta_0.items()}
    assert save_compact(ticket._replace(theta_0=columns), file.with_name('c')).read_bytes() == file.read_bytes()

def test_sizes(tmp_path):
    "By hand: 4 bytes a kept weight, an eighth of a byte a weight, 4 a bias; squeezed, a mask is within 5 % of its entropy."
    net = lenet(seed=0)
    theta, p = snapshot(net), .036
    masks = {k: torch.zeros(m.numel(), dtype=torch.bool) for k, m in full_masks(net).items()}
    for k, m in masks.items(): m[torch.randperm(m.numel(), generator=torch.Generator().manual_seed(0))[:round(p*m.numel())]] = True
    masks = {k: m.view(theta[k].shape) for k, m in masks.items()}
    ticket, kept = Ticket(theta, masks), sum(int(m.sum()) for m in masks.values())
    plain = save_compact(ticket, tmp_path/'plain', squeeze=False).stat().st_size
    small = save_compact(ticket, tmp_path/'small').stat().st_size
    assert 0 < plain - (4*kept + 4*410 + 266_200/8) < 1500
    bound = 266_200*-(p*math.log2(p) + (1 - p)*math.log2(1 - p))/8
    assert bound < small - 4*kept - 4*410 < 1.05*bound + 1500
    assert 14 < 4*266_610/plain < 15 < 21 < 4*266_610/small < 23
    both = save_compact(ticket._replace(theta_T=under_mask(theta, masks)), tmp_path/'both').stat().st_size
    only = save_compact(ticket._replace(theta_T=under_mask(theta, masks)), tmp_path/'only', start='none').stat().st_size
    assert abs(only - small) < 100 and both - only > 4*kept

def test_read_with_numpy_only(ticket, tmp_path):
    parts = load_numpy(save_compact(ticket, tmp_path/'c', squeeze=False))
    m = np.unpackbits(parts['bits.layer1.weight'])[:40*64].reshape(40, 64) == 1
    W = np.zeros((40, 64), np.float32)
    W[m] = parts['final.layer1.weight']
    assert (W == ticket.theta_T['layer1.weight'].numpy()).all()

def test_gaps_with_numpy_only(ticket, file):
    gaps = np.frombuffer(zlib.decompress(load_numpy(file)['gaps.layer1.weight'].tobytes()), np.uint8)
    places = np.cumsum(gaps + (gaps < 255), dtype=int)[gaps < 255] - 1
    assert (places == masks['layer1.weight'].flatten().nonzero().flatten().numpy()).all()

# --- what is refused

def test_what_saving_would_lose(ticket, tmp_path):
    "Trained weights that are not zero where pruned: dropped silently, the network would be another one."
    final = {k: v.clone() for k, v in ticket.theta_T.items()}
    for odd in (1e-30, math.nan):
        final['layer2.weight'][~masks['layer2.weight']] = torch.tensor([odd] + [0.]*int((~masks['layer2.weight']).sum() - 1))
        with pytest.raises(ValueError, match='final.layer2.weight has 1 pruned weights that are not zero'):
            save_compact(ticket._replace(theta_T=final), tmp_path/'c')
    assert not list(tmp_path.iterdir())

def test_refused_tickets(ticket, tmp_path):
    for wrong, why in ((dict(start='None'), "unknown start 'None'"), (dict(start=None), 'unknown start None')):
        with pytest.raises(ValueError, match=why): save_compact(ticket, tmp_path/'c', **wrong)
    with pytest.raises(ValueError, match='leaves nothing to write'): save_compact(ticket._replace(theta_T=None), tmp_path/'c', start='none')
    with pytest.raises(ValueError, match='init.layer1.weight is missing'):
        save_compact(ticket._replace(theta_0={k: v for k, v in ticket.theta_0.items() if k != 'layer1.weight'}, theta_T=None), tmp_path/'c')
    with pytest.raises(ValueError, match='not bool'): save_compact(ticket._replace(masks={k: m.int() for k, m in masks.items()}), tmp_path/'c')

def refused(file, why, net=None):
    with pytest.raises(ValueError) as e, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        load_compact(file, net)
    assert why in str(e.value) and str(file) in str(e.value)

def test_each_file_names_its_reader(ticket, file):
    with pytest.raises(ValueError, match='is a compact ticket: read it with load_compact'): load_ticket(file)
    dense = save_ticket(ticket, file.with_name('dense'))
    refused(dense, 'read it with load_ticket')
    save_file(dict(a=torch.ones(2)), file)
    refused(file, 'is not a compact ticket')
    refused(file.with_name('nowhere'), 'no ticket at')

def test_cut_anywhere(file):
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], 'little')
    for length in {*range(0, 8), 9, header - 1, header, *range(header + 1, len(whole), 97), len(whole) - 1}:
        file.write_bytes(whole[:length])
        refused(file, '')
    file.write_bytes(whole + b'\0')
    refused(file, '')

@pytest.mark.parametrize('place', [.05, .3, .5, .7, .9, .999])
def test_changed_anywhere(place, file):
    content = bytearray(file.read_bytes())
    content[int(place*len(content))] ^= 4
    file.write_bytes(content)
    refused(file, '')

def rewritten(file, notes=None, **changes):
    "The good file with entries or notes changed, with a right checksum."
    tensors = load_file(file) | {k.replace('__', '.'): v for k, v in changes.items()}
    tensors = {k: v for k, v in tensors.items() if v is not None}
    shapes  = {k: list(m.shape) for k, m in masks.items()}
    about   = dict(format='compact ticket', keys=sorted(tensors), shapes=shapes, settings={}) | (notes or {})
    file.write_bytes(tensor_file(tensors, **about))
    return file

m = masks['layer1.weight']
gaps = torch.from_numpy(np.frombuffer(small_fast_file._gap_bytes(m), np.uint8).copy())
@pytest.mark.parametrize('changes, why', [
    (dict(bits__layer1__weight=torch.zeros(321, dtype=torch.uint8), gaps__layer1__weight=None), 'bits.layer1.weight: 321 bytes are not 2560 bits'),
    (dict(bits__layer1__weight=torch.zeros(319, dtype=torch.uint8), gaps__layer1__weight=None), '319 bytes are not 2560 bits'),
    (dict(bits__layer1__weight=torch.zeros(320, dtype=torch.uint8), gaps__layer1__weight=None), 'and its mask keeps 0 of (40, 64)'),
    (dict(bits__layer1__weight=torch.zeros(320), gaps__layer1__weight=None), 'is torch.float32, 1-dimensional, not a row of bytes'),
    (dict(gaps__layer1__weight=None), 'there must be bits.layer1.weight or gaps.layer1.weight'),
    (dict(bits__layer1__weight=torch.zeros(320, dtype=torch.uint8)), 'there must be bits.layer1.weight or gaps.layer1.weight'),
    (dict(gaps__layer1__weight=gaps[:-6]), 'the gaps are cut off'),
    (dict(gaps__layer1__weight=torch.cat([gaps, gaps])), 'the gaps are cut off'),
    (dict(gaps__layer1__weight=gaps*0), 'the gaps cannot be read'),
    (dict(gaps__layer1__weight=torch.from_numpy(np.frombuffer(zlib.compress(bytes(10**6)), np.uint8).copy())), 'cut off, or lead past 2560 weights'),
    (dict(init__layer1__weight=torch.zeros(3)), 'init.layer1.weight has shape (3,), and its mask keeps'),
    (dict(init__layer1__weight=torch.zeros(64, 40)), 'init.layer1.weight has shape (64, 40)'),
    (dict(final__norm1__running_var=None), 'final.norm1.running_var is missing'),
    (dict(init__layer2__weight=None), 'init.layer2.weight is missing')])
def test_inconsistent(changes, why, file): refused(rewritten(file, **changes), why)

@pytest.mark.parametrize('notes, why', [
    (dict(format='compact'), 'is not a compact ticket'), (dict(keys=None), 'its keys, shapes or settings'), (dict(keys='init'), 'its keys, shapes or settings'),
    (dict(shapes={}), 'its keys, shapes or settings'), (dict(shapes={'layer1.weight': [-1, 2560]}), 'its keys, shapes or settings'), (dict(shapes={'layer1.weight': 2560}), 'its keys, shapes or settings'),
    (dict(shapes={'layer1.weight': [True, 2560]}), 'its keys, shapes or settings'), (dict(settings=[]), 'its keys, shapes or settings'), (dict(keys=['init.gone']), 'init.gone'),
    (dict(shapes={'layer1.weight': [64, 40]}), 'final.layer2.weight has shape')])
def test_notes(notes, why, file):
    if 'shapes' in notes and notes['shapes'].get('layer1.weight') == [64, 40]: why = 'of another architecture'
    refused(rewritten(file, notes), why, make())

def test_stray_bits(tmp_path):
    "A layer of three weights has five bits to spare; one of them set is a wrong size or a wrong file."
    path = save_compact(Ticket(dict(w=torch.ones(3)), dict(w=torch.tensor([True, False, True]))), tmp_path/'c', squeeze=False)
    tensors = load_file(path) | {'bits.w': torch.tensor([0b10100001], dtype=torch.uint8)}
    path.write_bytes(tensor_file(tensors, format='compact ticket', keys=sorted(tensors), shapes=dict(w=[3]), settings={}))
    refused(path, 'bits behind the last weight are set')

def test_another_network(file):
    refused(file, 'layer1.weight has shape (40, 64), in the network (40, 32)', batchnorm_mlp(32, widths=(40, 20)))
    refused(file, 'of another architecture', lenet(64))

# --- dead units

def outputs_agree(net, x):
    small = without_dead_units(net)
    with torch.no_grad(): torch.testing.assert_close(small(x), deepcopy(net).eval()(x), rtol=1e-9, atol=1e-12)
    return small

def parameters(net): return sum(p.numel() for p in net.parameters())

@given(st.integers(0, 2**32), st.floats(0, .6), st.booleans(), st.sampled_from([nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU]), st.lists(st.sampled_from([0, .05, 1.]), min_size=3, max_size=3))
@settings(max_examples=60, deadline=None)
def test_random_masks(seed, p, norm, act, scale):
    "Float64, layers that are empty or full, constants through norms and activations: the same outputs."
    torch.manual_seed(seed)
    between = (lambda n: [nn.BatchNorm1d(n), act(), nn.Dropout()]) if norm else (lambda n: [act()])
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 9, bias=not norm), *between(9), nn.Linear(9, 7), *between(7), nn.Linear(7, 4, bias=bool(seed % 2)), nn.LogSoftmax(-1)).double()
    for module in net:
        if isinstance(module, nn.BatchNorm1d):
            for t in (module.weight.data, module.bias.data, module.running_mean): t.normal_()
            module.running_var.uniform_(.5, 2)
    with torch.no_grad():
        for layer, s in zip((o for o in net if isinstance(o, nn.Linear)), scale): layer.weight *= torch.rand(layer.weight.shape) < p*s
    before = {k: v.clone() for k, v in net.state_dict().items()}
    small = outputs_agree(net, torch.randn(6, 3, 4).double())
    assert same(dict(net.state_dict()), before) and net.training and not small.training
    assert parameters(small) <= parameters(net) + 4
    for module in small:
        if isinstance(module, nn.Linear) and min(module.weight.shape) > 1: assert module.weight.any(0).all()

def test_by_hand():
    "Unit 0 works; unit 1 has no inputs, so it puts out its bias; nothing reads unit 2; nothing reads input 2."
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        net[0].weight[:] = torch.tensor([[1., 2, 0], [0, 0, 0], [1, 1, 1]])
        net[0].bias[:] = torch.tensor([.5, 3, 1])
        net[2].weight[:] = torch.tensor([[2., 4, 0]])
        net[2].bias[:] = 1
    small = without_dead_units(net)
    assert [name for name, _ in small.named_children()] == ['inputs', '0', '1', '2'] and small.inputs.places.tolist() == [0, 1]
    assert small[1].weight.tolist() == [[1, 2]] and small[1].bias.tolist() == [.5] and small[3].weight.tolist() == [[2]]
    assert small[3].bias.item() == 1 + 4*3 and parameters(net) == 16 and parameters(small) == 5
    x = torch.tensor([[1., 1, 9]])
    assert small(x).item() == net(x).item() == 20
    units = without_dead_units(net, inputs=False)
    assert units[0].weight.tolist() == [[1, 2, 0]] and len(units) == 3 and units(x).item() == 20

def test_constants_that_cancel_a_bias():
    "Unit 1 puts out 1, with weight 2, and the next bias is -2: the sum is no bias at all, not the old one."
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight[:] = torch.tensor([[1.], [0]])
        net[0].bias[:] = torch.tensor([0., 1])
        net[2].weight[:] = torch.tensor([[1., 2]])
        net[2].bias[:] = -2
    x = torch.tensor([[3.]])
    assert net(x).item() == without_dead_units(net)(x).item() == 3

def test_a_chain_of_constants():
    "A unit that hears only constants is constant too."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    with torch.no_grad(): net[0].weight[:4] = 0; net[2].weight[1:, 4] = 0
    small = outputs_agree(net, torch.randn(3, 4).double())
    assert [tuple(o.weight.shape) for o in small if isinstance(o, nn.Linear)] == [(1, 4), (1, 1), (2, 1)]

def test_modules_used_twice_and_in_place():
    "One ReLU at two places counts twice, one that works in place changes no bias; a layer at two places stays two."
    torch.manual_seed(0)
    relu, twice = nn.ReLU(inplace=True), nn.Linear(6, 6)
    net = nn.Sequential(nn.Linear(4, 6), relu, twice, relu, twice, relu, nn.Linear(6, 2)).double()
    masks = {k: torch.rand(p.shape) < .3 for k, p in net.named_parameters() if p.dim() == 2}
    apply_masks(net, masks)
    with torch.no_grad(): net[0].weight[:3] = 0; net[0].bias[:] = -1.; net[2].weight[:, 1] = 0
    before = {k: v.clone() for k, v in net.state_dict().items()}
    outputs_agree(net, torch.randn(5, 4).double())
    assert same(dict(net.state_dict()), before)

def test_all_pruned_and_nothing_pruned():
    net = lenet(64, seed=0).double()
    x = torch.rand(5, 1, 8, 8).double()
    small = without_dead_units(net)
    torch.testing.assert_close(small(x), net(x))
    assert parameters(small) == parameters(net) and 'inputs' not in dict(small.named_children())
    with torch.no_grad():
        for name, p in net.named_parameters(): p.zero_() if 'weight' in name else p.normal_()
    assert parameters(outputs_agree(net, x)) == 2 + 2 + 2*10
    norm = batchnorm_mlp(64, widths=(20, 10), seed=0).double()
    apply_masks(norm, {k: torch.zeros_like(m) for k, m in full_masks(norm).items()})
    outputs_agree(norm, torch.rand(3, 64).double())

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
def test_other_precisions_and_frozen(dtype):
    net = batchnorm_mlp(64, widths=(20, 10), seed=0).to(dtype)
    apply_masks(net, random_masks(net, .05))
    net.requires_grad_(False)
    small, x = without_dead_units(net), torch.rand(4, 64).to(dtype)
    assert {p.dtype for p in small.parameters()} == {dtype}
    torch.testing.assert_close(small(x), net.eval()(x), rtol=.02, atol=.02)

def test_norm_of_the_inputs():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    net[1].running_mean.normal_()
    with torch.no_grad(): net[2].weight[:, [1, 4]] = 0
    small = outputs_agree(net, torch.randn(4, 2, 3).double())
    assert small.inputs.places.tolist() == [0, 2, 3, 5] and small[2].num_features == 4

@pytest.mark.parametrize('net, why', [
    (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), "'0' is a Conv2d"),
    (nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 2)), "'1' is a Softmax"),
    (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)), "'1' is a LayerNorm"),
    (nn.Sequential(nn.Linear(4, 4), nn.Flatten(), nn.Linear(4, 2)), "'1' is a Flatten"),
    (nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 2)), "'0' is a Sequential"),
    (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)), "'1' has no running statistics"),
    (nn.Sequential(nn.ReLU()), 'no nn.Linear'), (nn.Linear(4, 2), 'a Linear is not an nn.Sequential'),
    (nn.Sequential(prune.identity(nn.Linear(4, 4), 'weight'), nn.ReLU(), nn.Linear(4, 2)), "the weight of '0' is computed by a hook")])
def test_not_such_a_chain(net, why):
    with pytest.raises(ValueError, match=why): without_dead_units(net)

# --- sparse layers

mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason='CSR products need MKL')

@mkl
@pytest.mark.parametrize('shape', [(7, 784), (1, 784), (3, 2, 784), (784,), (0, 784)])
@pytest.mark.parametrize('p', [0, .03, 1])
def test_csr_linear(shape, p):
    torch.manual_seed(0)
    layer = lenet(seed=0).layer1
    with torch.no_grad(): layer.weight *= torch.rand(layer.weight.shape) < p; layer.bias.normal_()
    x = torch.randn(shape)
    with torch.no_grad(): torch.testing.assert_close(CSRLinear(layer)(x), nn.functional.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-4)
    no_bias = nn.Linear(4, 3, bias=False)
    torch.testing.assert_close(CSRLinear(no_bias)(torch.eye(4)), no_bias(torch.eye(4)))

@mkl
@pytest.mark.parametrize('padded', [False, True])
def test_csr_in_a_transformer(padded):
    "Its fused code of evaluation would read a weight that is not there."
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    net   = nn.TransformerEncoder(layer, 2).eval()
    masks = random_masks(net, .05)
    apply_masks(net, masks)
    sparse, x = to_csr(net), torch.rand(3, 5, 16)
    hide = torch.tensor([[False]*5, [False]*3 + [True]*2, [False]*4 + [True]]) if padded else None
    assert sum(isinstance(o, CSRLinear) for o in sparse.modules()) == 4  # attention's matrices stay
    with torch.no_grad():
        here, there = (o(x, src_key_padding_mask=hide) for o in (net, sparse))
    seen = ~hide if padded else torch.ones(3, 5, dtype=torch.bool)
    torch.testing.assert_close(here[seen], there[seen])

def test_nothing_to_replace():
    with pytest.warns(UserWarning, match='none of the 2 linear layers has at most 10% of its weights'):
        to_csr(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)))

def test_to_csr():
    "Thin layers only; the network stays; a copy, a double and a state_dict work as of any module."
    net = lenet(64, seed=0)
    apply_masks(net, random_masks(net, .04) | {'output.weight': torch.ones(10, 100, dtype=torch.bool)})
    x, sparse = torch.rand(5, 64), to_csr(net)
    assert [type(o).__name__ for o in sparse] == ['Flatten', 'CSRLinear', 'ReLU', 'CSRLinear', 'ReLU', 'Linear']
    with torch.no_grad():
        want = net(x)
        for other in (sparse, to_csr(net, below=1), to_csr(without_dead_units(net)), deepcopy(sparse)):
            torch.testing.assert_close(other(x), want)
        torch.testing.assert_close(deepcopy(sparse).double()(x.double()), deepcopy(net).double()(x.double()))
        again = to_csr(net)
        again.layer1.values.zero_()
        again.load_state_dict(sparse.state_dict())
        assert again(x).equal(sparse(x))
    assert type(to_csr(nn.Linear(3, 2), below=1)) is CSRLinear
    with pytest.raises(ValueError, match='below=5'): to_csr(net, below=5)
    with pytest.raises(ValueError, match='is not an nn.Linear'): CSRLinear(nn.ReLU())

# --- exported

def test_exported(tmp_path):
    "torch.export and ONNX of a masked network, and of one without dead units: the same outputs."
    net = lenet(64, seed=0)
    apply_masks(net, random_masks(net, .04))
    x = torch.rand(5, 64)
    for n, model in enumerate((net, without_dead_units(net))):
        torch.export.save(torch.export.export(model, (x,)), tmp_path/f'{n}.pt2')
        torch.testing.assert_close(torch.export.load(tmp_path/f'{n}.pt2').module()(x), net(x))

@pytest.mark.parametrize('dead', [False, True])
def test_onnx(dead, tmp_path):
    net = lenet(64, seed=0)
    apply_masks(net, random_masks(net, .04))
    x = torch.rand(5, 64)
    with warnings.catch_warnings(action='ignore'): run = by_onnx(without_dead_units(net) if dead else net, (x,), True, tmp_path)
    torch.testing.assert_close(run(x)[0], net(x))
