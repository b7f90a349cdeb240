"Tickets in files: exact to the bit, whole, and refused by name where something is wrong."
import json, math, os, pickle, struct, warnings
from functools import partial
import pytest, torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sameness import same
from torch.nn.utils import prune
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.networks import batchnorm_mlp, lenet
from lotterybook.foundations.running import Run
from lotterybook.ordered_neurons.text import Vocabulary
from lotterybook.pruning.masks import full_masks, kept
from lotterybook.pruning.schedules import pruner
from lotterybook.tickets.iterative import find_ticket
from lotterybook.tickets.rewinding import rewind
from lotterybook.tickets.small_fast_file import load_compact, save_compact
from lotterybook.tickets.ticket_files import (
    Ticket, check_words, load_ticket, save_ticket, ticket_from_torch, ticket_to_torch, words_of)
make  = partial(batchnorm_mlp, 64, widths=(40, 20))
torch.manual_seed(0)
masks = {k: torch.rand(m.shape) < .3 for k, m in full_masks(make(seed=0)).items()}

@pytest.fixture
def ticket():
    found = dict(seed=0, round=6, outcome=dict(stop_accuracy=.97))
    return Ticket(snapshot(make(seed=0)), masks, snapshot(make(seed=1)), found)

@pytest.fixture
def file(ticket, tmp_path): return save_ticket(ticket, tmp_path/'ticket.safetensors')

# --- tickets

def test_settings_of_its_own():
    "A note made in one ticket does not appear in another; a ticket travels to other processes."
    theta, masks = dict(weight=torch.ones(2)), dict(weight=torch.tensor([True, False]))
    bare, other = Ticket(theta, masks), Ticket(theta, masks)
    bare.settings['seed'] = 7
    assert other.settings == Ticket({}, {}).settings == {}
    assert pickle.loads(pickle.dumps(bare)).settings == dict(seed=7)
    theta_0, _, theta_T, settings = bare._replace(settings=dict(seed=8))
    assert theta_0 is theta and theta_T is None and settings == dict(seed=8)

# --- there and back

def test_every_kind_of_number(tmp_path):
    "Single, double and half precision, integers, NaN, infinities, -0, a scalar, an empty tensor."
    odd   = torch.tensor([0., -0., math.inf, -math.inf, math.nan, 1e-42])
    theta = dict(bfloat=odd.bfloat16(), double=odd.double(), empty=torch.empty(0, 3), half=odd.half(),
                 scalar=torch.tensor(7), single=odd, whole=torch.arange(3))
    file  = save_ticket(Ticket(theta, dict(single=torch.rand(6) < .5)), tmp_path/'odd.safetensors')
    with pytest.warns(UserWarning, match='init.bfloat, init.double, init.half, init.single hold numbers'):
        back = load_ticket(file)
    def bits(t): return t.dtype, t.shape, t.reshape(-1).view(torch.uint8).tolist()
    assert {k: bits(v) for k, v in back.theta_0.items()} == {k: bits(v) for k, v in theta.items()}
    assert back.theta_T is None and back.settings == {}

def test_the_same_file(ticket, file):
    "Saved again, read and saved, or stored by columns in memory: the same bytes."
    back, net = load_ticket(file), make(seed=0)
    for k, p in net.named_parameters():
        if p.dim() == 2: p.data = p.data.t().contiguous().t()
    columns = ticket._replace(theta_0=snapshot(net))
    assert not columns.theta_0['layer1.weight'].is_contiguous()
    for other in [ticket, back, columns]*3:  # an order left to chance would show
        assert save_ticket(other, file.with_name('again')).read_bytes() == file.read_bytes()

def test_there_and_back(ticket, tmp_path):
    "In a folder that is made; running statistics and counters travel, and the network computes the same."
    file = save_ticket(ticket, tmp_path/'new'/'folder'/'ticket.safetensors')
    back, x = load_ticket(file, make()), torch.randn(5, 64)
    assert same(back[:3], ticket[:3]) and back.settings == ticket.settings
    assert {'norm1.num_batches_tracked', 'norm1.running_mean'} <= back.theta_0.keys()
    ours, theirs = (rewind(make(), t.theta_0, t.masks).eval()(x) for t in (ticket, back))
    assert ours.equal(theirs)

def test_the_layout(tmp_path):
    "Read by hand, with no library: a length, a header in JSON, numbers."
    theta, masks = dict(weight=torch.tensor([[.5, -.25]]), bias=torch.zeros(1)), dict(weight=torch.tensor([[True, False]]))
    raw = save_ticket(Ticket(theta, masks, {k: v.clone() for k, v in theta.items()}), tmp_path/'tiny').read_bytes()
    length, = struct.unpack('<Q', raw[:8])
    header, data = json.loads(raw[8:8 + length]), raw[8 + length:]
    def numbers(name, kind):
        start, end = header[name]['data_offsets']
        return struct.unpack(f'<{(end - start)//struct.calcsize(kind)}{kind}', data[start:end])
    assert numbers('init.weight', 'f') == (.5, -.25) and numbers('mask.weight', '?') == (True, False)
    names = {'init.weight', 'init.bias', 'mask.weight', 'final.weight', 'final.bias'}
    assert set(load_file(tmp_path/'tiny')) == names == set(header) - {'__metadata__'}

def test_the_size(tmp_path):
    "Four bytes a weight, twice, and one for the mask; the header is the rest."
    net = lenet()
    file = save_ticket(Ticket(snapshot(net), full_masks(net), snapshot(net)), tmp_path/'mnist')
    assert 0 < file.stat().st_size - 2*4*266_610 - 266_200 < 2000

def test_memory_of_its_own(ticket, file):
    "A ticket that was read stays as it is when its file is overwritten or cut."
    back = load_ticket(file)
    with open(file, 'r+b') as f: f.write(b'\0'*1000); f.truncate(2000)
    assert same(back.theta_0, ticket.theta_0) and same(back.theta_T, ticket.theta_T)
    back.theta_0['layer1.weight'].zero_()

# --- files that are refused

def damaged(file, metadata=None, **changes):
    "The good file with entries changed, or removed if None, as another program writes it."
    tensors = load_file(file) | {k.replace('__', '.'): v for k, v in changes.items()}
    save_file({k: v for k, v in tensors.items() if v is not None}, file, metadata)
    return file

def refused(file, why, net=None):
    "With the file's name and the reason."
    with pytest.raises(ValueError) as e, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # files of others have no checksum
        load_ticket(file, net)
    assert why in str(e.value) and str(file) in str(e.value)

m = masks['layer1.weight']
@pytest.mark.parametrize('changes, why', [
    (dict(init__layer1__weight=None), 'init.layer1.weight is missing'),
    (dict(mask__layer1__weight=m.t().contiguous()), 'has shape (64, 40), init'),
    (dict(mask__layer1__weight=m.float()*.5), 'layer1.weight holds 0.5'),
    (dict(mask__layer1__weight=torch.where(m, 1., torch.nan)), 'holds nan'),
    (dict(mask__layer1__weight=(2*m.to(torch.uint8)).view(torch.bool)), 'mask.layer1.weight is true or false, and holds a byte that is neither'),
    (dict(final__norm1__running_var=None), 'final.norm1.running_var is missing'),
    (dict(final__output__bias=torch.zeros(3)), 'final.output.bias has shape (3,)'),
    ({f'mask__{k}': None for k in masks}, 'is not a ticket')])
def test_inconsistent(changes, why, file): refused(damaged(file, **changes), why)

@pytest.mark.parametrize('gone, why', [
    (['mask.layer2.weight'], 'mask.layer2.weight is missing'),
    (['init.output.bias', 'final.output.bias'], 'final.output.bias, init.output.bias are missing'),
    ([f'final.{k}' for k in sorted(make().state_dict())], 'final.norm2.weight')])
def test_entries_that_only_the_list_misses(gone, why, file):
    "Without its list of names such a file is a good one."
    with safe_open(file, 'pt') as f: notes = {k: v for k, v in f.metadata().items() if k == 'keys'}
    without = dict.fromkeys(gone)
    refused(damaged(file, notes, **without), why)
    with pytest.warns(UserWarning, match='has no checksum'): load_ticket(damaged(file))

def test_notes_of_others(file):
    "Such as safetensors' own, which is plain text: no ticket of theirs is refused for it."
    for notes, why in ((dict(keys='{}'), 'keys are a dict, not a list'), (dict(settings='{seed'), 'settings a str, not a dict')):
        refused(damaged(file, notes), why)
    with pytest.warns(UserWarning, match='has no checksum'): assert load_ticket(damaged(file, dict(format='pt'))).settings == {}

def test_a_mask_of_numbers(file):
    "0. and 1., from another program: fine."
    damaged(file, mask__layer1__weight=m.float())
    with pytest.warns(UserWarning, match='written by an older version or another program'):
        assert load_ticket(file).masks['layer1.weight'].equal(m)

def test_cut_and_changed(file):
    whole = file.read_bytes()
    for length in (0, 5, 100, len(whole)//2, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(file, 'is not a safetensors file, or was cut off')
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(file, 'is damaged: it was changed after it was written')
    file.write_text('not a ticket at all')
    refused(file, 'is not a safetensors file')
    for nowhere in (file.with_name('nowhere'), file.parent): refused(nowhere, 'no ticket at')

def test_another_architecture(ticket, file, tmp_path):
    refused(file, 'layer2.weight has shape (20, 40)', batchnorm_mlp(64, widths=(40, 30)))
    net = lenet(64)
    refused(save_ticket(Ticket(snapshot(net), full_masks(net)), tmp_path/'lenet'), 'norm1.weight is missing', make())
    buffers = ticket._replace(masks=masks | {'norm1.running_mean': torch.rand(40) < .5})
    refused(save_ticket(buffers, tmp_path/'buffer'), "mask 'norm1.running_mean' fits no parameter", make())

# --- files that cannot be written

@pytest.mark.parametrize('number, where', [
    ('ENOSPC', 'os.fsync'), ('EROFS', 'builtins.open'), ('EACCES', 'os.replace')])
def test_a_disk_that_refuses(number, where, ticket, file, monkeypatch):
    "The error names the file, the old ticket is still there, and nothing lies beside it."
    import errno
    number, old, listing = getattr(errno, number), file.read_bytes(), sorted(os.listdir(file.parent))
    def refuse(*_, **__): raise OSError(number, os.strerror(number))
    with monkeypatch.context() as patched, pytest.raises(OSError, match='the ticket was not written') as e:
        patched.setattr(where, refuse)
        save_ticket(ticket._replace(settings=dict(seed=1)), file)
    assert e.value.errno == number and str(file) in str(e.value)
    assert file.read_bytes() == old and sorted(os.listdir(file.parent)) == listing

def test_what_is_not_plain(ticket, tmp_path):
    with pytest.raises(ValueError, match='settings of a ticket may hold numbers, text'):
        save_ticket(ticket._replace(settings=dict(loss=torch.ones(2))), tmp_path/'x')
    with pytest.raises(OSError, match='not written'):
        save_ticket(ticket, save_ticket(ticket, tmp_path/'file')/'below')  # a file, not a folder
    assert not (tmp_path/'x').exists()

# --- PyTorch's own pruning

def test_given_to_pytorch(ticket):
    "The plain weight is not stale, the function is the same, and it comes back to the bit."
    x, net = torch.randn(5, 64), ticket_to_torch(ticket, make())
    assert prune.is_pruned(net) and 'layer1.weight_orig' in dict(net.named_parameters())
    assert net.layer1.weight.equal(ticket.theta_0['layer1.weight']*masks['layer1.weight'])
    assert net.eval()(x).equal(rewind(make(), ticket.theta_0, masks).eval()(x))
    there = ticket_from_torch(net)
    assert same(there.theta_0, ticket.theta_0) and same(there.masks, ticket.masks)
    trained = ticket_to_torch(ticket, make(), trained=True)
    assert trained.layer2.weight.equal(ticket.theta_T['layer2.weight']*masks['layer2.weight'])

def test_pruned_by_pytorch(tmp_path):
    "Its masks and weights make a ticket that fits a plain network and computes the same."
    net = make(seed=3)
    prune.l1_unstructured(net.layer1, 'weight', amount=.75)
    prune.random_unstructured(net.output, 'weight', amount=.5)
    taken = load_ticket(save_ticket(ticket_from_torch(net), tmp_path/'taken'), make())
    assert kept(taken.masks) == {'layer1.weight': 640, 'output.weight': 100}
    x = torch.randn(5, 64)
    assert rewind(make(), taken.theta_0, taken.masks).eval()(x).equal(net.eval()(x))
    with pytest.raises(ValueError, match='not trained'): ticket_to_torch(taken, make(), trained=True)
    with pytest.raises(ValueError, match='no mask in this network'): ticket_from_torch(make())

# --- words

def net_for(words):
    "A network that says which words it has."
    net = torch.nn.Linear(3, 3)
    net.vocabulary = words
    return net

def test_words_are_kept_and_compared(tmp_path):
    "A search keeps the vocabulary in its tickets; another one of the same size is refused, and so is resuming with it."
    def find(words, folder): return find_ticket(lambda seed: Run(net_for(words)), lambda run: 0., pruner(.5), rounds=1, folder=folder,
                                                settings={}, progress=False)
    tickets = find(['a', 'b', 'c'], tmp_path/'kept')
    assert [ticket.settings['words'] for ticket in tickets] == [['a', 'b', 'c']]*2
    file, = tmp_path.glob('kept/*round1.safetensors')
    assert load_ticket(file, net_for(('a', 'b', 'c'))).settings['words'] == ['a', 'b', 'c']
    load_ticket(file, torch.nn.Linear(3, 3))  # does not say which words it has
    with pytest.raises(ValueError, match="other words than the ticket .*round1.safetensors: number 1 is 'c' in the network and 'b' there"):
        load_ticket(file, net_for(['a', 'c', 'b']))
    with pytest.raises(ValueError, match='other words than the ticket'): find(['b', 'a', 'c'], tmp_path/'kept')
    assert words_of(torch.nn.Linear(1, 1)) is None and words_of(torch.compile(net_for(['x']))) == ['x']
    assert 'words' not in find_ticket(lambda seed: Run(torch.nn.Linear(3, 3)), lambda run: 0., pruner(.5), rounds=0, progress=False)[0].settings

def test_which_word_differs():
    "The first one is named; a network that does not say which words it has is not refused."
    words = Vocabulary.of([['to', 'be']])
    with pytest.raises(ValueError, match=f"other words than the text: number {len(words)} is no word in the network and 'zebra' there"):
        check_words(net_for(words), [*words, 'zebra'])
    with pytest.raises(ValueError, match='number 0'): check_words(net_for(list(words)), reversed(list(words)))
    check_words(net_for(list(words)), words)
    check_words(net_for(words), None)
    check_words(torch.compile(net_for(words)), words)
    check_words(torch.nn.Linear(2, 2), ['zebra'])

@pytest.mark.parametrize('odd', [300, torch.nn.Embedding(2, 2), [b'a'], [('a', 'b')], 'ab', torch.nn.Parameter(torch.ones(2, 2)), {'a': 'b'}, []], ids=str)
def test_a_vocabulary_that_is_no_list_of_words(odd):
    "A user's attribute of this name, or setting `words`, may be anything: then nothing is compared."
    assert words_of(net_for(odd)) is None
    check_words(net_for(odd), ['a'])
    check_words(net_for(['a', 'b']), odd)

def test_words_by_their_numbers():
    assert words_of(net_for({'b': 1, 'a': 0})) == ['a', 'b']

def test_words_of_a_search_that_has_not_finished_round_0(tmp_path):
    "The kept start has the words, too."
    def find(words, train):
        def make_run(seed):
            net = net_for(words)
            run = Run(net, torch.optim.SGD(net.parameters(), .1))
            run.step = 1
            return run
        return find_ticket(make_run, train, pruner(.5), rounds=0, folder=tmp_path/'kept', settings={}, progress=False)
    def stop(run): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): find(['a', 'b', 'c'], stop)
    with pytest.raises(ValueError, match="other words than the search in .*: number 0 is 'b' in the network and 'a' there"): find(['b', 'a', 'c'], lambda run: 0.)
    assert find(['a', 'b', 'c'], lambda run: 0.)[0].settings['words'] == ['a', 'b', 'c']

def test_words_of_a_compact_file(tmp_path):
    net    = net_for(['a', 'b', 'c'])
    ticket = Ticket(snapshot(net), full_masks(net), snapshot(net), dict(words=['a', 'b', 'c']))
    file = save_compact(ticket, tmp_path/'c.safetensors')
    load_compact(file, net)
    net.vocabulary = ['x', 'b', 'c']
    with pytest.raises(ValueError, match="other words than the ticket .*number 0 is 'x'"): load_compact(file, net)
