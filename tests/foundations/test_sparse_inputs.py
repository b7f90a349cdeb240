"The sparse first layer: inputs it cannot read, PyTorch's transforms and exporters, Numba's files."
import copy, random, resource, warnings
from functools import partial
import numba, pytest, torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from onnx_runs import by_onnx
from lotterybook.foundations.data import load
from lotterybook.foundations.networks import lenet
from lotterybook.foundations.sparse_inputs import SparseInputLinear, _add_rows, _kernel, compiled
torch.set_num_threads(1)

def sparse(rows, columns=64, seed=0):
    "Mostly zeros: the kernel is taken."
    g = torch.Generator().manual_seed(seed)
    return torch.rand(rows, columns, generator=g)*(torch.rand(rows, columns, generator=g) < .3)

x, y = sparse(10), sparse(7, seed=1)
net = lenet(64, seed=0)
weights = {k: p.detach() for k, p in net.named_parameters()}
ones = {k: torch.ones_like(p) for k, p in weights.items()}

def plain(x, weights=weights):
    "LeNet by the book."
    W1, b1, W2, b2, W3, b3 = weights.values()
    return ((x@W1.t() + b1).relu()@W2.t() + b2).relu()@W3.t() + b3

def ours(x, weights=weights): return functional_call(net, weights, (x,))

def test_the_kernel_is_taken(): assert net.layer1._pays(x) and net.layer1._pays(y)

# --- inputs

@pytest.mark.parametrize('wrong', [torch.zeros(3, 784), torch.zeros(3, 63), torch.zeros(3, 0),
                                   torch.zeros(3, 28, 28), torch.zeros(3, 64).double(),
                                   torch.zeros(3, 64).long(), torch.zeros(3, 64, device='meta')],
                         ids=lambda o: f'{tuple(o.shape)} {o.dtype} {o.device}')
def test_inputs_of_another_network(wrong):
    "PyTorch's own error: the kernel would read past the end of the weights."
    with pytest.raises(RuntimeError): net(wrong)

def test_a_weight_that_was_cut():
    "What counts is the weight, not what the layer was made for."
    layer = SparseInputLinear(64, 3)
    layer.weight = torch.nn.Parameter(layer.weight.detach()[:, :60].t().contiguous().t())
    with pytest.raises(RuntimeError): layer(x)
    assert layer(x[:, :60]).shape == (10, 3)

# --- transforms

def total(f, *args): return f(*args).square().sum()

@pytest.mark.parametrize('how', [
    lambda f: grad(lambda w: total(f, x, w))(weights)['layer1.weight'],
    lambda f: vmap(lambda row: f(row[None])[0])(x),
    lambda f: vmap(lambda w: f(x, w))({k: torch.stack([p, -p]) for k, p in weights.items()}),
    lambda f: vmap(grad(lambda w, row: total(f, row[None], w)), (None, 0))(weights, x)['layer1.bias'],
    lambda f: jvp(lambda w: f(x, w), (weights,), (ones,))[1],
    lambda f: jvp(grad(lambda w: total(f, x, w)), (weights,), (ones,))[1]['layer1.weight'],
    lambda f: hessian(lambda b: total(f, x, weights | {'layer1.bias': b}))(weights['layer1.bias'])],
    ids=['grad', 'vmap x', 'vmap weights', 'grad of each', 'jvp', 'jvp of grad', 'hessian'])
def test_transforms(how): assert_close(how(ours), how(plain), rtol=1e-4, atol=1e-5)

def test_forward_mode_outside_of_a_transform():
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match='jvp'):
        ours(x, {k: forward_ad.make_dual(p, ones[k]) for k, p in weights.items()})

# --- records: none may hold the numbers of the input it was made with

def exported(net, x, **options): return torch.export.export(net, (x,), **options).module()

@pytest.mark.parametrize('record', [
    exported, partial(exported, strict=True),
    partial(exported, dynamic_shapes=({0: torch.export.Dim('batch')},)),
    lambda net, x: torch.jit.trace(net, (x,)),
    lambda net, x: torch.compile(net, backend='eager', fullgraph=True),
    lambda net, x: make_fx(net)(x)],
    ids=['export', 'strict', 'any batch', 'trace', 'compile', 'make_fx'])
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_records(record): assert_close(record(net, x)(y.repeat(2, 1)[:10]), plain(y.repeat(2, 1)[:10]))

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('dynamo', [True, False])
def test_onnx(dynamo, tmp_path):
    out, = by_onnx(net, (x,), dynamo, tmp_path)(sparse(10, seed=2))
    assert_close(out, plain(sparse(10, seed=2)))

def test_operations_are_counted():
    with FlopCounterMode(display=False) as flops: net(x)
    assert flops.get_total_flops() == 2*10*(64*300 + 300*100 + 100*10)

@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_script():
    with pytest.raises(NotImplementedError, match='cannot compile SparseInputLinear; use torch.export'):
        torch.jit.script(net)

# --- files of compiled functions

def twice(x):
    "Something to compile."
    return 2*x

@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, 'CACHE_DIR', str(tmp_path))
    return tmp_path

def hits(function=twice):
    "How often a new process, as it were, found what it needs on disk; and warnings."
    kernel = compiled(function)
    with warnings.catch_warnings(record=True, action='always') as said: assert kernel(21) == 42
    return sum(kernel.stats.cache_hits.values()), [str(o.message) for o in said]

def test_files_are_used(folder): assert [hits() for _ in range(3)] == [(0, []), (1, []), (1, [])]

def test_damaged_files(folder):
    "Named and replaced, whichever bit it is; it may be one of the machine's instructions."
    hits()
    draw = random.Random(0)
    for file in sorted(folder.rglob('*.nb?')):
        whole = file.read_bytes()
        assert len(whole) > 100
        def flipped():
            i = draw.randrange(len(whole))
            return whole[:i] + bytes([whole[i] ^ 1 << draw.randrange(8)]) + whole[i + 1:]
        for damaged in (b'', b'text', whole[:-1], whole + b'\0', *(flipped() for _ in range(5))):
            file.write_bytes(damaged)
            assert hits() == (0, [f'{file} is damaged; twice is compiled again'])
            assert hits() == (1, [])

def test_a_missing_file(folder):
    "No damage: it is compiled again."
    hits()
    for file in sorted(folder.rglob('*.nb?')):
        file.unlink()
        assert hits() == (0, []) and hits() == (1, [])

@pytest.fixture
def full():
    "`full(n)`: files of more than n bytes cannot be written."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda n: resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

@pytest.mark.parametrize('size', [0, 1000], ids=['nothing', 'the index'])
def test_a_full_disk(folder, full, size):
    "Compiled in every process, as where there is no folder."
    full(size)
    assert hits() == (0, []) and hits() == (0, [])
    full(resource.RLIM_INFINITY)
    hits()
    assert hits() == (1, [])

def test_a_full_disk_under_a_new_source(folder, full, tmp_path):
    "The index fits and the machine code does not: that of the old source must not be taken."
    def function(source):
        file = tmp_path/'source.py'
        file.write_text(source)
        exec(compile(source, file, 'exec'), space := {})
        return space['f']
    assert compiled(function('def f(x): return 3*x'))(21) == 63
    full(2000)
    assert compiled(function('def f(x): return 2*x'))(21) == 42
    full(resource.RLIM_INFINITY)
    assert hits(function('def f(x): return 2*x'))[0] == 0

# --- the kernel and the layer, against a matrix product and nn.Linear

normal = torch.Generator().manual_seed(2)
def randn(*shape): return torch.randn(*shape, generator=normal)

def added(x, m, start, kernel):
    out = torch.full((len(x), m.shape[1]), float('nan'))  # what was there before does not matter
    kernel(x.numpy(), m.numpy(), start.numpy(), out.numpy())
    return out

few = randn(6, 9)*(torch.rand(6, 9, generator=normal) < .3)

@pytest.mark.parametrize('x, m, start', [
    (few, randn(9, 5), torch.zeros(5)),
    (few.t(), randn(6, 5), randn(5)),                            # a transposed view, and something to add to
    (torch.zeros(3, 9), randn(9, 5), torch.ones(5)),             # nothing lit
    (torch.ones(1, 1), torch.ones(1, 1), torch.zeros(1)),        # the smallest
    *(((torch.arange(9.) < lit).float()[None], randn(9, 5), torch.zeros(5)) for lit in range(10))])  # every remainder by four
def test_the_kernel_is_a_matrix_product(x, m, start):
    "Compiled, and as Python reads it."
    for kernel in (_kernel(), _add_rows): assert_close(added(x, m, start, kernel), start + x@m, atol=1e-5, rtol=0)

images = load('digits').x_train[:60].flatten(1)
dim = images*(images > .5)

def two_layers():
    torch.manual_seed(0)
    layer, linear = SparseInputLinear(64, 30), torch.nn.Linear(64, 30)
    layer.load_state_dict(linear.state_dict())
    return layer, linear

def test_where_the_kernel_is_taken():
    "Not where half the pixels are lit, in float64, in three dimensions, or where the input needs a gradient."
    layer, _ = two_layers()
    assert layer._pays(dim)
    assert not any(layer._pays(o) for o in (images, dim.double(), dim[None], dim.clone().requires_grad_()))

@pytest.mark.parametrize('x', [images, dim, dim[:1], dim[:0]], ids=['pytorch', 'kernel', 'one', 'none'])
def test_outputs_and_gradients_of_linear(x):
    layer, linear = two_layers()
    for one in (layer, linear): one(x).square().sum().backward()
    assert_close(layer(x), linear(x), atol=1e-5, rtol=0)
    assert_close(layer.weight.grad, linear.weight.grad, atol=1e-3, rtol=0)  # sums of 60 terms up to 30
    assert_close(layer.bias.grad, linear.bias.grad, atol=1e-3, rtol=0)

def test_a_copy_keeps_layout_and_bits():
    "And the gradient lies as the weight does: the optimizer walks through both in one order."
    layer, _ = two_layers()
    layer(dim).square().sum().backward()
    assert layer.weight.grad.stride() == layer.weight.stride()
    assert torch.equal(copy.deepcopy(layer)(dim), layer(dim)) and torch.equal(layer(dim), layer(dim))

def test_a_frozen_weight_and_no_bias():
    layer, _ = two_layers()
    layer.weight.requires_grad_(False)
    layer(dim).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None
    without = SparseInputLinear(64, 30, bias=False)
    assert_close(without(dim), dim@without.weight.t(), atol=1e-5, rtol=0)

def test_a_gradient_differentiated_again():
    "The product of a Hessian and a vector: there PyTorch does the work."
    def hessian_vector(layer):
        first, = torch.autograd.grad(layer(dim).square().square().sum(), layer.weight, create_graph=True)
        return torch.autograd.grad((first*torch.ones(30, 64)).sum(), layer.weight)[0]
    got, want = map(hessian_vector, two_layers())
    assert (got - want).abs().max() < 1e-5*want.abs().max() and want.abs().max() > 0

def test_an_input_without_zeros():
    "A dark pixel minus the mean is no longer 0."
    assert not two_layers()[0]._pays(dim - dim.mean())
