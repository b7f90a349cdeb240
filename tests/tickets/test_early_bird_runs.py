"Replicates of the experiment on early birds: momentum cut like weights, equal costs, equal sizes, when masks settle."
import pytest, torch
from sameness import same
from torch.nn import functional as F
from lotterybook.foundations.data import load
from lotterybook.foundations.deep_networks import small_vgg
from lotterybook.foundations.networks import batchnorm_mlp
from lotterybook.foundations.running import Run, advance
from lotterybook.foundations.training import example_batches
from lotterybook.pruning.masks import full_masks
from lotterybook.pruning.multiply_adds import multiply_adds
from lotterybook.pruning.structured_pruning import remove_channels
from lotterybook.tickets.early_bird import channel_masks, scale_penalty
from lotterybook.tickets.early_bird_runs import RANKINGS, cut_out, early_bird_run
from lotterybook.tickets.early_bird_training import with_shifts
torch.set_num_threads(1)

digits  = load('digits')
example = digits.x_train[:2]
batches = example_batches(digits.x_train, digits.y_train, 64, seed=0)

def objective(net, batch): return F.cross_entropy(net(batch[0]), batch[1]) + scale_penalty(net)

# --- cut out of a run

def sgd(net): return torch.optim.SGD(net.parameters(), .1, momentum=.9, weight_decay=1e-4)
def plain_sgd(net): return torch.optim.SGD(net.parameters(), .1)
def nesterov(net): return torch.optim.SGD(net.parameters(), .05, momentum=.9, nesterov=True)
def adam(net): return torch.optim.Adam(net.parameters(), 1e-3)

def trained(optimizer_of, net=None, steps=15):
    net = net or small_vgg((1, 8, 8), seed=0)
    return advance(Run(net, optimizer_of(net), seed=3), objective, batches, steps)

def logits(run):
    with torch.no_grad(): out = run.net.eval()(digits.x_test)
    run.net.train()
    return out

def far_apart(optimizer_of, run, small, masks, steps=6):
    "The largest difference of a masked and a cut run after each step, in units of the largest logit."
    run.set_masks(with_shifts(masks))
    out = []
    for step in range(run.step + 1, run.step + 1 + steps):
        for o in (run, small): advance(o, objective, batches, step)
        a, b = logits(run), logits(small)
        out.append(((a - b).abs().max()/a.abs().max()).item())
    return out

@pytest.mark.parametrize('optimizer_of', [sgd, plain_sgd, nesterov, adam])
def test_a_cut_run_trains_like_the_masked_one(optimizer_of):
    run = trained(optimizer_of)
    masks = channel_masks(run.net, .5)
    small = cut_out(run, masks, example, optimizer_of)
    assert (small.step, small.seed) == (15, 3)
    assert sum(p.numel() for p in small.net.parameters()) < .4*sum(p.numel() for p in run.net.parameters())
    assert max(far_apart(optimizer_of, run, small, masks)) < 1e-3

@pytest.mark.parametrize('optimizer_of', [sgd, adam])
def test_without_its_memory_it_does_not(optimizer_of):
    run = trained(optimizer_of)
    masks = channel_masks(run.net, .5)
    small = cut_out(run, masks, example, optimizer_of)
    small.forget()
    assert far_apart(optimizer_of, run, small, masks, 1)[0] > 1e-2

def test_a_linear_network_is_cut_too():
    run = trained(sgd, batchnorm_mlp((1, 8, 8), widths=(40, 20), seed=0))
    masks = channel_masks(run.net, .5, least=1)
    assert max(far_apart(sgd, run, cut_out(run, masks, example, sgd), masks)) < 1e-3

def test_memory_is_cut_by_hand():
    "The momentum of the kept filters, in order."
    run = trained(sgd)
    masks = channel_masks(run.net, .5)
    small = cut_out(run, masks, example, sgd)
    a, b  = masks['norm11.weight'], masks['norm12.weight']
    want  = run.optimizer.state[run.net.conv12.weight]['momentum_buffer'][b][:, a]
    assert small.optimizer.state[small.net.conv12.weight]['momentum_buffer'].equal(want)

def test_the_run_is_left_alone():
    run = trained(sgd)
    before = run.state_dict()
    small = cut_out(run, channel_masks(run.net, .5), example, sgd)
    advance(small, objective, batches, 20)
    assert same(run.state_dict(), before)

def test_a_weight_without_memory():
    "A frozen weight has none; the others are cut all the same."
    net = batchnorm_mlp((1, 8, 8), widths=(40, 20), seed=0)
    net.layer1.weight.requires_grad_(False)
    run = trained(sgd, net)
    masks = channel_masks(run.net, .5, least=1)
    small = cut_out(run, masks, example, sgd)
    state = {name: small.optimizer.state[p] for name, p in small.net.named_parameters()}
    assert not state['layer1.weight'].get('momentum_buffer') and state['layer2.weight']['momentum_buffer'].any()
    assert all(s['momentum_buffer'].shape == small.net.get_parameter(k).shape for k, s in state.items() if s)
    assert max(far_apart(sgd, run, small, masks)) < 1e-3

def test_memory_of_a_bias_takes_in_no_constants():
    "The sigmoid of a cut channel is 1/2: a constant for the next bias, but not for the optimizer's memory of it."
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8), torch.nn.Sigmoid(),
                              torch.nn.Linear(8, 10))
    run = trained(adam, net)
    small = cut_out(run, {'2.weight': torch.arange(8) < 4}, example, adam)
    for key in ('exp_avg', 'exp_avg_sq'):
        old, new = run.optimizer.state[run.net[4].bias][key], small.optimizer.state[small.net[4].bias][key]
        assert new.equal(old) and old.any()
        old, new = run.optimizer.state[run.net[4].weight][key], small.optimizer.state[small.net[4].weight][key]
        assert new.equal(old[:, :4])

def test_a_bias_that_would_be_new_is_refused():
    "The sigmoid of a cut channel is 1/2: a constant that the next layer cannot take in."
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8), torch.nn.Sigmoid(),
                              torch.nn.Linear(8, 10, bias=False))
    run = trained(adam, net)
    with pytest.raises(ValueError, match="'4.bias' would be new"):
        cut_out(run, {'2.weight': torch.arange(8) < 4}, example, adam)

def test_before_the_first_step():
    net = batchnorm_mlp((1, 8, 8), widths=(20, 20), seed=0)
    run = Run(net, sgd(net))
    masks = {'norm1.weight': torch.arange(20) < 5, 'norm2.weight': torch.arange(20) < 7}
    small = cut_out(run, masks, example, sgd)
    assert not small.optimizer.state and not run.optimizer.state and small.step == 0
    assert small.net.layer2.weight.equal(net.layer2.weight[:7, :5])

def test_pruned_weights_are_refused():
    run = trained(sgd)
    run.set_masks(full_masks(run.net))  # nothing is pruned: fine
    cut_out(run, channel_masks(run.net, .5), example, sgd)
    masks = full_masks(run.net)
    masks['conv12.weight'][0, 0, 0, 0] = False
    run.set_masks(masks)
    with pytest.raises(ValueError, match="'conv12.weight' are pruned already; cut a dense run"):
        cut_out(run, channel_masks(run.net, .5), example, sgd)

# --- a replicate

settings = dict(data='digits', net='small_vgg', steps=60, every=4, ratios=[.5, .7],
                trained=[['all layers', .5], ['each layer', .7]], penalty=1e-4)

@pytest.fixture(scope='module')
def found(): return early_bird_run(dict(seed=0), settings)

def picked(found, **wanted): return [r for r in found['rows'] if wanted.items() <= r.items()]
def ways(found, ranking, ratio):
    return {r['way']: r for r in picked(found, ranking=ranking, ratio=ratio) if r['way'] != 'search'}

trained_pairs = pytest.mark.parametrize('ranking, ratio', settings['trained'])

def test_rows(found):
    assert len(picked(found, way='dense')) == 1 and len(picked(found, way='search')) == 4
    assert all(len(ways(found, *pair)) == 6 for pair in settings['trained'])
    assert not ways(found, 'all layers', .7) and not ways(found, 'each layer', .5)
    assert len(found['rows']) == 1 + 4 + 12

@trained_pairs
def test_equal_costs(found, ranking, ratio):
    "Search included; a way that begins anew could not take one more of its own steps."
    here, T = ways(found, ranking, ratio), settings['steps']
    bird = here['early_bird']
    t = T*picked(found, way='search', ranking=ranking, ratio=ratio)[0]['settled']
    assert bird['dense_steps'] == t and bird['small_steps'] == T - t
    for r in here.values():
        spent = r['dense_steps'] + r['small_steps']*r['left']  # in dense steps
        assert spent/T == pytest.approx(r['cost'])
        step = r['left'] if r['small_steps'] else 1
        assert 0 <= bird['cost']*T - spent + 1e-9 and bird['cost']*T - spent < step
    assert [here['short_dense'][k] for k in ('left', 'small_steps')] == [1, 0]
    assert here['random_start']['dense_steps'] == 0 < here['wait']['dense_steps']

@trained_pairs
def test_equal_sizes(found, ranking, ratio):
    here = ways(found, ranking, ratio)
    assert here.pop('short_dense')['channels'] == 224
    want = {'all layers': 224 - round(ratio*224),
            'each layer': sum(n - round(ratio*n) for n in (16, 16, 32, 32, 64, 64))}[ranking]
    assert {r['channels'] for r in here.values()} == {want}
    same_layers = ('early_bird', 'random_same_state', 'rewound', 'random_start')
    assert len({here[way]['left'] for way in same_layers}) == 1

def test_ways_differ(found):
    "Each is a training of its own."
    for pair in settings['trained']:
        assert len({r['accuracy'] for r in ways(found, *pair).values()}) >= 4
        here = {way: r['accuracy'] for way, r in ways(found, *pair).items()}
        assert here['early_bird'] not in (here['random_same_state'], here['rewound'])  # alike but for these

def test_when_masks_settle(found):
    "By the recorded distances: the first mask within 0.1 of each of the four before."
    every, T = settings['every'], settings['steps']
    for r in picked(found, way='search'):
        rows = [d for d in found['distances'] if (d['ranking'], d['ratio']) == (r['ranking'], r['ratio'])]
        window = {s: [d['distance'] for d in rows if d['step'] == s and s - 4*every <= d['other'] < s]
                  for s in range(every, T + 1, every)}
        full   = {s: max(far) for s, far in window.items() if len(far) == 4}
        assert len(full) == T//every - 4
        near   = [s for s, far in full.items() if far <= .1]
        assert r['settled'] == (near[0] if near else T)/T and r['never'] == (not near)
        assert r['by_half'] == min((far for s, far in full.items() if s <= T/2), default=1.)
        last = [d for d in rows if (d['step'], d['other']) == (round(r['settled']*T), T)]
        if last and near: assert (last[0]['distance'], last[0]['chance']) == (r['distance'], r['chance'])

def test_distances(found):
    assert all(0 <= d[k] <= 1 for d in found['distances'] for k in ('distance', 'chance'))
    assert len(found['distances']) == 4*(0 + 1 + 2 + 3 + 11*4 + 14)  # 15 masks, of four kinds: those before; the last
    pairs = [(d['ranking'], d['ratio'], d['step'], d['other']) for d in found['distances']]
    assert len(set(pairs)) == len(pairs)
    within = {d['chance'] for d in found['distances'] if d['ranking'] == 'each layer' and d['ratio'] == .5}
    assert within == {.5}  # ranked in each layer, half of each: 2p(1 - p)

def test_repeatable(found):
    again = early_bird_run(dict(seed=0), settings)
    assert again.keys() == {'rows', 'distances', 'seconds'} and again['seconds'] > 0
    assert all(same(again[part], found[part]) for part in ('rows', 'distances'))

def test_another_seed_is_another_replicate(found):
    other = early_bird_run(dict(seed=1), settings | dict(ratios=[.5], trained=[]))
    a, b = ([d['distance'] for d in o['distances'] if d['ratio'] == .5] for o in (found, other))
    assert len(other['rows']) == 3 and a and len(a) == len(b) and a != b

def test_a_mask_that_never_settles():
    "Too few masks for a window: no ways, and the mask counts as that of the end, as far away as can be."
    found = early_bird_run(dict(seed=0), settings | dict(steps=12, ratios=[.5]))
    assert [r['way'] for r in found['rows']] == ['dense', 'search', 'search']
    for r in found['rows'][1:]:
        assert r['never'] and (r['settled'], r['distance'], r['by_half']) == (1, 1, 1)

def test_rankings():
    net = trained(sgd, steps=5).net
    for ranking, prune in RANKINGS.items():
        masks = prune(net, .7)
        assert all(m.any() for m in masks.values())
        if ranking == 'all layers': assert sum(int(m.sum()) for m in masks.values()) == 224 - round(.7*224)
        else: assert all(int(m.sum()) == len(m) - round(.7*len(m)) for m in masks.values())

def test_what_is_left_is_counted_on_the_cut_network(found):
    "Half of each layer, by hand."
    net   = small_vgg((1, 8, 8), seed=0)
    masks = {k: torch.arange(len(v)) < len(v)//2 for k, v in net.named_parameters() if k.startswith('norm')}
    small = remove_channels(net, masks, example)
    half, whole = (sum(multiply_adds(o, (1, 8, 8)).values()) for o in (small, net))
    by_hand = 9*(64*(8 + 8*8) + 16*(8*16 + 16*16) + 4*(16*32 + 32*32)) + 32*10
    assert half == by_hand
    search, = picked(found, way='search', ranking='each layer', ratio=.5)
    assert search['left'] == pytest.approx(half/whole)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_on_a_cuda_device():
    found = early_bird_run(dict(seed=0), settings | dict(device='cuda', ratios=[.7], trained=[['each layer', .7]]))
    assert len(ways(found, 'each layer', .7)) == 6
