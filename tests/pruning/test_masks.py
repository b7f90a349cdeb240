"Which weights masks cover, in layers of every kind and inside wrappers; what was left out is said."
import copy, warnings
from collections import OrderedDict
import pytest, torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune
from sameness import same
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.networks import lenet
from lotterybook.foundations.running import Run, advance, unwrapped, unwrapped_names
from lotterybook.foundations.training import holding
from lotterybook.ordered_neurons.language_model import (
    AverageWeights, averaged, begin_average, lm_objective, window_batches)
from lotterybook.ordered_neurons.on_lstm import ONLSTM, ONLSTMCell
from lotterybook.ordered_neurons.small_grammar import as_corpus
from lotterybook.ordered_neurons.text import Vocabulary, in_columns, stream, windows
from lotterybook.ordered_neurons.word_model import LanguageModel
from lotterybook.pruning.masked_training import keep_pruned, revived
from lotterybook.pruning.masks import (
    apply_masks, check_masks, distance, mask_coverage, from_torch_prune, full_masks, kept, masks_from_state_dict,
    masks_from_zeros, prunable, remaining, report, to_torch_prune)
from lotterybook.pruning.schedules import pruner
from lotterybook.pruning.scores import magnitude
from lotterybook.tickets.early_bird import norm_scales
from lotterybook.tickets.iterative import find_ticket
from lotterybook.tickets.rewinding import rewind
from lotterybook.tickets.ticket_files import Ticket, load_ticket, save_ticket
torch.set_num_threads(1)

def notes(net): return {row['name']: row['note'] for row in report(net, full_masks(net))}

def draw(masks, share=.3):
    g = torch.Generator().manual_seed(0)
    return {k: torch.rand(m.shape, generator=g) < share for k, m in masks.items()}

# --- layers of every kind

def encoder_layer(): return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.)

RECURRENT = ['weight_ih_l0', 'weight_hh_l0']
@pytest.mark.parametrize('layer, names', [
    (lambda: nn.LSTM(4, 6), RECURRENT), (lambda: nn.GRU(4, 6, bias=False), RECURRENT),
    (lambda: nn.RNN(4, 6), RECURRENT), (lambda: ONLSTM(4, 6, chunk_size=2, live_top=True), RECURRENT),
    (lambda: nn.LSTM(4, 6, proj_size=3), [*RECURRENT, 'weight_hr_l0']),
    (lambda: nn.GRU(4, 6, 2, bidirectional=True),
     [f'weight_{k}_l{l}{end}' for l in (0, 1) for end in ('', '_reverse') for k in ('ih', 'hh')]),
    (lambda: nn.LSTMCell(4, 6), ['weight_ih', 'weight_hh']),
    (lambda: ONLSTMCell(4, 6, chunk_size=2, live_top=True), ['weight_ih', 'weight_hh']),
    (lambda: nn.MultiheadAttention(8, 2), ['in_proj_weight', 'out_proj.weight']),
    (lambda: nn.MultiheadAttention(8, 2, kdim=3, vdim=5, add_bias_kv=True),
     ['q_proj_weight', 'k_proj_weight', 'v_proj_weight', 'out_proj.weight']),
    (encoder_layer, ['self_attn.in_proj_weight', 'self_attn.out_proj.weight', 'linear1.weight',
                     'linear2.weight'])])
def test_recurrence_and_attention_are_prunable(layer, names):
    "All matrices, and nothing else but biases and norms is left out."
    net = layer()
    assert prunable(net) == names
    assert set(notes(net).values()) <= {'', 'bias', 'belongs to LayerNorm'}
    matrices = {name: p.numel() for name, p in net.named_parameters() if p.dim() == 2}
    assert kept(full_masks(net)) == matrices

def test_names_of_others_are_left_alone():
    "A parameter of one's own, a convolution of another library by the name of that of transformers."
    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.scale_weight = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
            self.position_embedding = nn.Parameter(torch.ones(3, 2))
    net = nn.Sequential(Conv1D(), nn.Linear(2, 2), nn.Bilinear(2, 2, 2))
    assert notes(net) == {
        '0.weight': 'belongs to Conv1D', '0.scale_weight': 'belongs to Conv1D',
        '0.position_embedding': 'embedding', '1.weight': '', '1.bias': 'bias',
        '2.weight': 'belongs to Bilinear', '2.bias': 'bias'}

def test_gpt2():
    "The linear layers of transformers are of a class of its own; the output layer is tied."
    transformers = pytest.importorskip('transformers', exc_type=ImportError)  # it wants newer packages than we do
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=2, n_head=2,
                                     bos_token_id=0, eos_token_id=0)
    net    = transformers.GPT2LMHeadModel(config)
    layers = ['attn.c_attn', 'attn.c_proj', 'mlp.c_fc', 'mlp.c_proj']
    assert prunable(net) == [f'transformer.h.{l}.{name}.weight' for l in (0, 1) for name in layers]
    assert sum(kept(full_masks(net)).values()) == 2*(8*24 + 8*8 + 8*32 + 32*8)
    said = notes(net)
    assert said['transformer.wte.weight'] == 'tied: also lm_head.weight'
    assert said['transformer.wpe.weight'] == 'embedding'
    assert (mask_coverage(net, full_masks(net)) == 'the masks cover 67.1% of 2,288 parameters; left out: '
            '400 (tied), 184 (bias), 128 (embedding), 40 (belongs to LayerNorm)')
    masks = draw(full_masks(net))
    apply_masks(net, masks)
    assert same(masks_from_zeros(net), masks)
    assert net(torch.arange(4)[None]).logits.isfinite().all()

def test_frozen_weights_are_left_out_and_named():
    "Unless they are asked for; frozen biases and embeddings are named frozen too."
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.Linear(3, 2))
    for p in net[:2].parameters(): p.requires_grad_(False)
    assert prunable(net) == ['2.weight']
    assert list(notes(net).values()) == ['frozen', 'frozen', 'frozen', '', 'bias']
    assert mask_coverage(net, full_masks(net)) == ('the masks cover 14.0% of 43 parameters; '
                                              'left out: 35 (frozen), 2 (bias)')
    assert prunable(net, include='1.weight') == ['1.weight', '2.weight']
    with pytest.raises(ValueError, match=r'nothing to prune in Sequential \(5 frozen\); name weights with include='):
        full_masks(net.requires_grad_(False))

@pytest.mark.filterwarnings('ignore:.*the top level is dead')
@pytest.mark.parametrize('encoder', ['on_lstm', 'lstm'])
def test_language_model(encoder):
    "All recurrent matrices; the embedding, which is the output layer too, and biases are left out."
    vocabulary = Vocabulary(['<eos>', *'abcdefg'])
    net   = LanguageModel(vocabulary, encoder, 8, [12], 1, weight_dropout=.5)
    masks = full_masks(net)
    assert len(masks) == 4 and all('.weight_' in name for name in masks)
    rows  = [4*12, 4*8] if encoder == 'lstm' else [(4 + 2)*12, (4 + 2)*8]
    assert sum(kept(masks).values()) == rows[0]*(8 + 12) + rows[1]*(12 + 8)
    assert notes(net)['embedding'] == 'embedding'
    assert {note for name, note in notes(net).items() if 'bias' in name} == {'bias'}

# --- what a search finds

def x_and_y():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 5, 8, generator=g)
    return x, (x.sum((1, 2)) > 0).long()

class Classifier(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.output = layer, nn.Linear(8, 2)
    def forward(self, x):
        x = self.layer(x)
        return self.output((x[0] if isinstance(x, tuple) else x).mean(1))

def classify(run, steps=5):
    x, y = x_and_y()
    with keep_pruned(run.net, run.masks):
        for _ in range(steps):
            run.optimizer.zero_grad()
            F.cross_entropy(run.net(x), y).backward()
            run.optimizer.step()
    return (run.net(x).argmax(1) == y).float().mean().item()

def run_of(net): return Run(net, torch.optim.Adam(net.parameters(), .01))

LAYERS = dict(
    lstm=lambda: nn.LSTM(8, 8, batch_first=True), gru=lambda: nn.GRU(8, 8, batch_first=True),
    on_lstm=lambda: ONLSTM(8, 8, batch_first=True, chunk_size=2, live_top=True),
    transformer=encoder_layer)

MASKED = dict(lstm=32*16, gru=24*16, on_lstm=(32 + 2*4)*16, transformer=24*8 + 8*8 + 2*16*8)

def halved(n, rounds=2):
    counts = [n]
    for _ in range(rounds): counts.append(counts[-1] - round(.5*counts[-1]))
    return counts

def check_counts(found, net):
    "Each layer is halved in each round, exactly; training moved what is kept and nothing else."
    for name, n in kept(full_masks(net)).items():
        assert [kept(t.masks)[name] for t in found] == halved(n)
        for ticket in found:
            mask, before, after = ticket.masks[name], ticket.theta_0[name], ticket.theta_T[name]
            assert not after[~mask].any() and (after != before)[mask].any()

@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('name', LAYERS)
def test_search(name):
    "Two rounds on a classifier."
    def make_run(seed): return run_of(Classifier(LAYERS[name]()))
    found = find_ticket(make_run, classify, pruner(.5), rounds=2, progress=False)
    check_counts(found, make_run(0).net)
    assert sum(kept(found[0].masks).values()) == MASKED[name] + 16  # of the output layer

@pytest.mark.filterwarnings('error:the masks cover')
@pytest.mark.filterwarnings('ignore:.*the top level is dead')
@pytest.mark.parametrize('encoder', ['on_lstm', 'lstm'])
def test_search_on_a_language_model(encoder):
    "With weights dropped, from the loop of page 742."
    text  = as_corpus(40, 5, 5, seed=0, max_words=10).train
    words = Vocabulary.of(text)
    columns = in_columns(stream(text, words), 4)
    cuts    = windows(len(columns), 10)[:4]
    def make_run(seed):
        return run_of(LanguageModel(words, encoder, 8, [12], 1, weight_dropout=.2, dropout_words=.1))
    def train(run):
        advance(run, lm_objective(run.extra), window_batches(columns, cuts, 0, run.extra), len(cuts))
        return run.extra['nats']
    found = find_ticket(make_run, train, pruner(.5), rounds=2, progress=False)
    check_counts(found, make_run(0).net)

def big_embedding(seed):
    return Run(nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(40, 2)))

def nudge(run):
    "The least that counts as training."
    for p in run.net.parameters(): p.data.mul_(1.01)

def test_a_search_of_a_small_part_says_so():
    "Once, with the share and what was left out; half of the weights is not a small part."
    with pytest.warns(UserWarning) as caught:
        find_ticket(big_embedding, nudge, rounds=2, progress=False)
    said = [str(w.message) for w in caught if 'cover' in str(w.message)]
    assert said == ['the masks cover 16.6% of 482 parameters; left out: 400 (embedding), 2 (bias); '
                    'to prune others too, give Run the masks of full_masks(net, include=...)']
    def half(seed):
        net = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10, bias=False))
        return Run(net)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        find_ticket(half, nudge, rounds=1, progress=False)

# --- wrapped networks

def compiled(net): return torch.compile(net, backend='eager')
def twice(net): return torch.compile(nn.DataParallel(net), backend='eager')
WRAPPERS = [compiled, nn.DataParallel, twice]

@pytest.fixture
def ddp(tmp_path):
    "A group of one process."
    import torch.distributed as dist
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1)
    yield nn.parallel.DistributedDataParallel
    dist.destroy_process_group()

def check_wrapper(wrap, tmp_path):
    plain, net = lenet(64, seed=0), wrap(lenet(64, seed=0))
    masks = draw(full_masks(plain))
    assert unwrapped(net) is not net and type(unwrapped(net)) is type(plain)
    assert prunable(net) == prunable(plain)
    assert same(full_masks(net), full_masks(plain)) and same(magnitude(net, masks), magnitude(plain, masks))
    assert same(snapshot(net), snapshot(plain))
    assert report(net, masks) == report(plain, masks) and mask_coverage(net, masks) == mask_coverage(plain, masks)
    check_masks(masks, net, prunable(net))
    apply_masks(net, masks); apply_masks(plain, masks)
    assert same(snapshot(net), snapshot(plain)) and same(masks_from_zeros(net), masks)
    assert not any(revived(net, masks).values())
    file = save_ticket(Ticket(snapshot(plain), masks), tmp_path/'ticket.safetensors')
    ticket = load_ticket(file, net)
    with torch.no_grad():
        for p in net.parameters(): p.add_(1)
    rewind(net, ticket.theta_0, ticket.masks)
    assert same(snapshot(net), snapshot(plain))
    own = copy.deepcopy(net.state_dict())   # with the wrapper's names
    assert own.keys() != plain.state_dict().keys() and unwrapped_names(own).keys() == plain.state_dict().keys()
    assert same(masks_from_state_dict(own), masks)
    for other in (net, lenet(64, seed=1)): assert same(snapshot(rewind(other, own)), snapshot(plain))
    before = snapshot(net)
    with holding(net, snapshot(lenet(64, seed=1))):
        assert same(snapshot(net), snapshot(lenet(64, seed=1)))
    assert same(snapshot(net), before)
    to_torch_prune(net, masks)
    assert same(from_torch_prune(net), masks)

@pytest.mark.parametrize('wrap', WRAPPERS)
def test_names_inside_a_wrapper(wrap, tmp_path):
    "Every function that takes masks or weights by name, both ways."
    check_wrapper(wrap, tmp_path)

def test_names_inside_ddp(ddp, tmp_path): check_wrapper(ddp, tmp_path)

@pytest.mark.parametrize('wrap', WRAPPERS)
def test_search_on_a_wrapped_network(wrap, tmp_path):
    "The same tickets as without the wrapper; each goes on from the other's folder."
    def search(wrap, folder):
        def make_run(seed): return run_of(wrap(Classifier(LAYERS['gru']())))
        return find_ticket(make_run, classify, pruner(.5), rounds=2, progress=False,
                           folder=tmp_path/folder, settings={})
    found, plain = search(wrap, 'wrapped'), search(lambda net: net, 'plain')
    assert same([t._asdict() for t in found], [t._asdict() for t in plain])
    assert same([t._asdict() for t in search(wrap, 'plain')], [t._asdict() for t in plain])

def test_average_of_a_wrapped_model():
    "The mean of the weights is that of the network inside."
    net = compiled(nn.Linear(2, 1))
    run = Run(net)
    begin_average(run)
    with torch.no_grad(): net.weight.add_(2)
    AverageWeights().after_step(run)
    with averaged(run): inside = net.weight.clone()
    torch.testing.assert_close(inside, net.weight - 1)

def test_a_network_with_a_part_called_module():
    "It is no wrapper: its names stay."
    net = nn.Module()
    net.module = nn.Linear(2, 2)
    masks = full_masks(net)
    assert list(masks) == ['module.weight'] and list(snapshot(net))[0] == 'module.weight'
    rewind(net, snapshot(net), masks)

@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_scripted_network():
    "It is no wrapper; its layers are of one class only, so its weights are named."
    net   = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    masks = full_masks(net, include='0.weight')
    assert Run(net, None, masks).masks is masks and list(masks) == ['0.weight']

def test_norm_scales_inside_a_wrapper():
    "By the names inside."
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert list(norm_scales(compiled(net))) == ['1.weight']

# --- masks that a network has already

def test_masks_from_zeros_by_hand():
    "Zero of either sign is pruned, NaN is not; what is not prunable is not looked at."
    net = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0., -0., float('nan'), 1e-45]]))
        net[0].bias.zero_()
    masks = masks_from_zeros(net)
    assert masks['0.weight'].tolist() == [[False, False, True, True]] and masks['1.weight'].all()
    assert list(masks_from_zeros(net, exclude='1.*')) == ['0.weight']

@pytest.mark.parametrize('layer', LAYERS)
def test_masks_from_a_file_of_torch_prune(layer):
    "Also when everything is kept, also of recurrent layers, which still compute the same."
    net   = Classifier(LAYERS[layer]())
    masks = draw(full_masks(net))
    there = copy.deepcopy(net)
    to_torch_prune(there, masks)
    apply_masks(net, masks)
    x, _ = x_and_y()
    assert torch.equal(there.train()(x), net.train()(x))
    assert same(masks_from_state_dict(there.state_dict()), masks)
    assert same(masks_from_state_dict(net.state_dict()), masks | {
        k: v != 0 for k, v in net.state_dict().items() if v.dim() > 1 and k not in masks})

def test_masks_from_state_dict_takes_what_prune_kept():
    "The zeros of weights under `torch.nn.utils.prune` are not read, nor those of layers without it."
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad(): net[0].weight[0] = net[1].weight[0] = 0
    torch_prune.custom_from_mask(net[0], 'weight', torch.tensor([[1, 1], [1, 0]]))
    masks = masks_from_state_dict(net.state_dict())
    assert same(masks, {'0.weight': torch.tensor([[True, True], [True, False]])})

@pytest.mark.parametrize('state', [{}, {'model': {}}, {'bias': torch.ones(2)}])
def test_no_state_dict(state):
    "A dictionary without weights is refused."
    with pytest.raises(ValueError, match='no weights among'): masks_from_state_dict(state)

# --- one thing in place of another

@pytest.mark.parametrize('call', [
    full_masks, prunable, masks_from_zeros, Run, from_torch_prune, snapshot,
    lambda state: Run(state, torch.optim.Adam([nn.Parameter(torch.ones(1))])),
    lambda state: check_masks({'0': torch.ones(1).bool()}, state),
    lambda state: report(state, {'0': torch.ones(1).bool()}),
    lambda state: rewind(state, lenet(64)),
    lambda state: apply_masks(state, {'0': torch.ones(1).bool()}),
    lambda state: keep_pruned(state, {}).__enter__()])
def test_a_state_dict_in_place_of_a_network(call):
    "Said so."
    with pytest.raises(ValueError, match='a OrderedDict is not a network') as e:
        call(lenet(64).state_dict())
    assert 'net.load_state_dict' in str(e.value)

def test_a_state_dict_in_place_of_a_network_for_a_ticket(tmp_path):
    "Said so, beside a good file."
    net  = lenet(64)
    file = save_ticket(Ticket(snapshot(net), full_masks(net)), tmp_path/'ticket.safetensors')
    with pytest.raises(ValueError, match='a OrderedDict is not a network'):
        load_ticket(file, net.state_dict())

def test_remaining_counts_recurrent_weights():
    "By hand: half of an LSTM's weights."
    net   = nn.LSTM(2, 2)
    masks = full_masks(net)
    masks['weight_hh_l0'][:] = False
    assert remaining(masks) == .5

# --- which weights, by pattern

def conv_net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))

def halved_at_random(net):
    g = torch.Generator().manual_seed(1)
    return {k: torch.rand(m.shape, generator=g) < .5 for k, m in full_masks(net).items()}

def test_patterns():
    "Norm layers and biases are left out; patterns take weights out and in; masks begin all True."
    net = conv_net()
    assert prunable(net) == ['0.weight', '3.weight']
    assert prunable(net, exclude='3.*') == ['0.weight']
    assert prunable(net, include='1.weight') == ['0.weight', '1.weight', '3.weight']
    assert torch.equal(full_masks(net)['3.weight'], torch.ones(2, 16).bool())

@pytest.mark.parametrize('net, exclude, why', [
    (conv_net(), 'output', "'output'"), (nn.BatchNorm1d(3), (), 'nothing to prune'),
    (conv_net(), '*', 'nothing to prune')])
def test_patterns_that_cannot_be_meant(net, exclude, why):
    "A pattern that matches nothing, and nothing left to prune."
    with pytest.raises(ValueError, match=why): prunable(net, exclude=exclude)

def test_tied_and_frozen_weights_of_a_language_model():
    "A tensor in two layers is tied and left out; it can be asked for by name."
    words = nn.Sequential(OrderedDict(
        embedding=nn.Embedding(10, 4), lstm=nn.LSTM(4, 4), decoder=nn.Linear(4, 10)))
    recurrent = ['lstm.weight_ih_l0', 'lstm.weight_hh_l0']
    assert prunable(words) == [*recurrent, 'decoder.weight']
    assert prunable(words, exclude='lstm.*') == ['decoder.weight']
    words.decoder.weight = words.embedding.weight
    assert prunable(words) == recurrent
    assert prunable(words, include='embedding.weight') == ['embedding.weight', *recurrent]
    words.lstm.weight_hh_l0.requires_grad_(False)
    assert prunable(words) == recurrent[:1]
    assert (mask_coverage(words, full_masks(words)) == 'the masks cover 30.5% of 210 parameters; '
            'left out: 64 (frozen), 42 (bias), 40 (tied)')

def test_a_layer_in_two_places_is_not_tied():
    "It has its weight once, and is pruned as usual."
    net = nn.Module()
    net.first = nn.Linear(3, 3)
    net.body  = nn.Sequential(net.first, nn.ReLU())
    assert prunable(net) == ['first.weight']

def test_size_of_lenet():
    "784*300 + 300*100 + 100*10 weights, and 410 biases."
    net = lenet(784)
    assert sum(m.numel() for m in full_masks(net).values()) == 266_200
    assert sum(p.numel() for p in net.parameters()) == 266_610

# --- masks that do not fit

def replaced(*mask): return lambda masks: masks | {'3.weight': torch.tensor(*mask)}

@pytest.mark.parametrize('change, why', [
    (lambda masks: {}, 'no masks'),
    (lambda masks: {'0.weight': masks['0.weight']}, "no mask for '3.weight'"),
    (lambda masks: masks | {'7.weight': torch.ones(2).bool()}, "'7.weight' fits no parameter"),
    (replaced([[True]*5]*2), r'shape \(2, 5\), its weight \(2, 16\)'),
    (replaced([[1.]*16]*2), 'float32, not bool'), (replaced([[.5]*16]*2), 'holds 0.5'),
    (lambda masks: masks | {'3.weight': [True]}, 'is a list')])
def test_masks_that_do_not_fit(change, why):
    "The error names the mask."
    net   = conv_net()
    masks = full_masks(net)
    check_masks(masks, net, prunable(net))
    with pytest.raises(ValueError, match=why): check_masks(change(masks), net, prunable(net))

# --- counting and comparing

def test_counts_and_distances_by_hand():
    "Half of six weights; the distance to the same, to the opposite, and to one place changed."
    hand = {'a': torch.tensor([[True, False], [False, False]]), 'b': torch.tensor([True, True])}
    assert kept(hand) == {'a': 1, 'b': 2} and remaining(hand) == 3/6
    assert distance(hand, hand) == 0
    assert distance(hand, {name: ~mask for name, mask in hand.items()}) == 1
    assert distance(hand, hand | {'b': torch.tensor([True, False])}) == 1/6
    with pytest.raises(ValueError, match='mask for b'): distance(hand, {'a': hand['a']})
    with pytest.raises(ValueError, match='not bool'):
        distance(hand, {name: mask.float() for name, mask in hand.items()})

@pytest.mark.parametrize('share', [.01, .02, .05, .1, .2, .3, .5, .7, .8, .9])
def test_distance_of_unrelated_masks(share):
    "2d(1 - d), within some three standard deviations."
    n, g = 20_000, torch.Generator().manual_seed(2)
    a, b = ({'w': torch.randperm(n, generator=g) < round(share*n)} for _ in range(2))
    assert abs(distance(a, b) - 2*share*(1 - share)) < .01

def test_apply_masks_is_the_equation():
    "Weights times masks; what has no mask stays."
    net   = conv_net()
    masks = halved_at_random(net)
    before = copy.deepcopy(net.state_dict())
    apply_masks(net, masks)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]*masks[name] if name in masks else before[name])

def test_report_gives_reasons():
    "A prunable weight without a mask counts as excluded."
    net  = conv_net()
    mask = halved_at_random(net)['0.weight']
    rows = report(net, {'0.weight': mask})
    assert ([row['note'] for row in rows]
            == ['', 'bias', 'belongs to BatchNorm2d', 'bias', 'excluded', 'bias'])
    assert rows[0]['kept'] == int(mask.sum())

# --- torch.nn.utils.prune

def test_to_and_from_torch_prune():
    "Masks survive the way there and back; a network in that form is refused elsewhere."
    net   = conv_net()
    masks = halved_at_random(net)
    there = copy.deepcopy(net)
    to_torch_prune(there, masks)
    assert same(from_torch_prune(there), masks)
    with pytest.raises(ValueError, match='keeps no mask'): from_torch_prune(net)
    with pytest.raises(ValueError, match=r'from_torch_prune\(net\), then call prune.remove'):
        full_masks(there)
    apply_masks(net, masks)
    for found in (masks_from_zeros(net), masks_from_state_dict(net.state_dict()),
                  masks_from_state_dict(there.state_dict())):
        assert same(found, masks)

def test_masks_made_by_torch_prune():
    "Made there, read here."
    net  = conv_net()
    both = [(net[0], 'weight'), (net[3], 'weight')]
    torch_prune.global_unstructured(both, torch_prune.L1Unstructured, amount=30)
    assert sum(kept(from_torch_prune(net)).values()) == 36 + 32 - 30

def test_traps_of_torch_prune():
    "What page 200 says of it: out of date, not copied, other names, until it is removed."
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[5., 7.]])
    to_torch_prune(layer, {'weight': torch.tensor([[True, False]])})
    with torch.no_grad(): layer.weight_orig.copy_(torch.tensor([[1., 1.]]))
    assert layer.weight.tolist() == [[5, 0]]
    layer(torch.ones(1, 2))
    assert layer.weight.tolist() == [[1, 0]]
    with pytest.raises(RuntimeError, match='deepcopy'): copy.deepcopy(layer)
    assert list(layer.state_dict()) == ['weight_orig', 'weight_mask']
    masks = from_torch_prune(layer)
    torch_prune.remove(layer, 'weight')
    assert list(layer.state_dict()) == ['weight'] and masks['weight'].tolist() == [[True, False]]
    copy.deepcopy(layer)
