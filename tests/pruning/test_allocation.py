"Properties of the selection of weights, on inputs nobody would write down: ties, infinities, odd types, layers with nothing left."
import warnings
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from lotterybook.foundations.networks import lenet
from lotterybook.foundations.randomness import rng
from lotterybook.pruning.allocation import _share_out, erk, global_, keep_top, per_layer
from lotterybook.pruning.masks import full_masks, kept, remaining
from lotterybook.pruning.scores import magnitude

few_or_any = st.one_of(st.integers(-2, 2).map(float), st.floats(allow_nan=False, width=32)) # few values, so many ties
dtypes     = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64])

@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(few_or_any, st.booleans()), min_size=1, max_size=40), dtypes, st.data())
def test_keep_top_is_a_stable_sort(rows, dtype, data):
    scores = torch.tensor([score for score, _ in rows], dtype=torch.float64)
    scores = (scores if dtype.is_floating_point else scores.clamp(-1000, 1000)).to(dtype)
    alive  = torch.tensor([living for _, living in rows])
    count  = data.draw(st.integers(0, int(alive.sum())))
    best   = sorted((i for i, a in enumerate(alive) if a), key=lambda i: (-scores[i].double().item(), i))[:count]
    assert keep_top(scores, alive, count).nonzero()[:, 0].tolist() == sorted(best)

@pytest.mark.parametrize('alive, why', [
    (torch.tensor([0, 1, 1, 0]), 'is torch.int64, not bool'),
    (torch.tensor([0, 1, 1, 0], dtype=torch.uint8), 'is torch.uint8, not bool'),
    (torch.tensor([0., .5, 1, 0]), 'holds 0.5'), ([True]*4, 'is a list'),
    (torch.tensor([True]), r'scores have shape \(4,\), alive \(1,\)'),
    (torch.ones(2, 2).bool(), r'alive \(2, 2\)')])
def test_keep_top_takes_a_boolean_mask(alive, why):
    "Integers would be read as indices: the wrong weights, silently."
    with pytest.raises(ValueError, match=why): keep_top(torch.tensor([4., 3, 2, 1]), alive, 1)

@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.floats(.01, .99), st.sampled_from([global_, per_layer, erk]))
def test_allocations_are_exact_and_nested(seed, rate, allocation):
    g = torch.Generator().manual_seed(seed)
    def shape(): return torch.randint(1, 9, (int(torch.randint(1, 5, (1,), generator=g)),), generator=g).tolist()
    masks  = {name: torch.rand(shape(), generator=g) < .6 for name in 'abcd'}
    scores = {name: torch.randint(0, 4, mask.shape, generator=g).float() for name, mask in masks.items()}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # layers do vanish here
        new = allocation(scores, masks, rate)
    assert list(new) == list(masks)
    for name in masks: assert new[name].shape == masks[name].shape and not (new[name] & ~masks[name]).any()
    before, after = kept(masks), kept(new)
    if allocation is per_layer: assert after == {name: n - round(rate*n) for name, n in before.items()}
    else: assert sum(after.values()) == sum(before.values()) - round(rate*sum(before.values()))

def test_scores_that_choose_nothing():
    "All equal, as zeros of a score that went wrong: said, not refused."
    masks  = dict(a=torch.tensor([True, True, True, False]), b=torch.tensor([True, True]))
    scores = dict(a=torch.tensor([0., 0, 0, 7]), b=torch.zeros(2))
    with pytest.warns(UserWarning, match='all scores are 0: not they, but the places'):
        assert global_(scores, masks, .4)['a'].tolist() == [True, True, True, False]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        global_(scores | dict(b=torch.tensor([0., 1])), masks, .4)

# --- keep_top

def by_sorting(scores, alive, count):
    "The `count` best where `alive` is True, in plain Python."
    candidates = [i for i, a in enumerate(alive) if a]
    best = sorted(candidates, key=lambda i: (-scores[i].item(), i))[:count]
    return torch.tensor([i in best for i in range(len(scores))])

def test_keep_top_among_many_ties():
    "Against sorting, for every count."
    g = rng(0, 'ties')
    for n in range(1, 9):
        for _ in range(40):
            scores = torch.randint(0, 3, (n,), generator=g).float()
            alive  = torch.rand(n, generator=g) < .7
            for count in range(int(alive.sum()) + 1):
                assert torch.equal(keep_top(scores, alive, count), by_sorting(scores, alive, count))

def test_keep_top_is_exact_and_nested():
    "Nothing comes back, no better one is left out, only the order counts, in any memory layout."
    g = rng(0, 'keep top')
    scores, alive = torch.randn(50, 40, generator=g), torch.rand(50, 40, generator=g) < .5
    new = keep_top(scores, alive, 300)
    assert int(new.sum()) == 300 and not (new & ~alive).any()
    assert scores[new].min() >= scores[alive & ~new].max()
    assert torch.equal(keep_top(scores.exp(), alive, 300), new)
    assert torch.equal(keep_top(scores.t(), alive.t(), 300), new.t())

@pytest.mark.parametrize('value', [0., float('inf')])
def test_keep_top_of_equal_scores(value):
    "The first ones."
    new = keep_top(torch.full((1000,), value), torch.ones(1000).bool(), 123)
    assert torch.equal(new.nonzero()[:, 0], torch.arange(123))

def test_keep_top_refuses():
    "NaN among the kept weights, and more than there are; NaN of a pruned weight does no harm."
    scores = torch.tensor([1., float('nan'), 2.])
    every, outer = torch.ones(3).bool(), torch.tensor([True, False, True])
    with pytest.raises(ValueError, match='1 of 3 scores are NaN'): keep_top(scores, every, 1)
    assert keep_top(scores, outer, 1).tolist() == [False, False, True]
    with pytest.raises(ValueError, match='cannot keep 4 of 3'):
        keep_top(torch.tensor([1., 2, 3]), every, 4)

# --- layers

@pytest.fixture
def mnist_net():
    "Untrained LeNet for MNIST: its masks and scores."
    net = lenet(784, seed=0)
    return full_masks(net), magnitude(net, full_masks(net))

def test_per_layer_counts(mnist_net):
    "Of what is left, the output layer at half the rate; masks are nested and not changed in place."
    masks, scores = mnist_net
    scale = {'output.weight': .5}
    one = per_layer(scores, masks, .2, scale=scale)
    two = per_layer(scores, one, .2, scale=scale)
    assert kept(one) == {'layer1.weight': 188_160, 'layer2.weight': 24_000, 'output.weight': 900}
    assert kept(two) == {'layer1.weight': 150_528, 'layer2.weight': 19_200, 'output.weight': 810}
    for name in masks: assert not (two[name] & ~one[name]).any()
    assert remaining(masks) == 1

@pytest.mark.parametrize('rate', [0, 1, -.1, 20, float('nan')])
def test_rates_are_fractions(rate, mnist_net):
    with pytest.raises(ValueError, match=f'prune_rate={rate} must'): per_layer(mnist_net[1], mnist_net[0], rate)

def test_wrong_scores_and_scales(mnist_net):
    "Each error names the layer."
    masks, scores = mnist_net
    with pytest.raises(ValueError, match="'outptu.weight' matches none"):
        per_layer(scores, masks, .2, scale={'outptu.weight': .5})
    with pytest.raises(ValueError, match="'output.weight' is 1.6"):
        per_layer(scores, masks, .8, scale={'output.weight': 2})
    with pytest.raises(ValueError, match="no scores for 'layer2.weight'"):
        per_layer({'layer1.weight': scores['layer1.weight']}, masks, .2)
    broken = scores | {'layer2.weight': torch.full((100, 300), float('nan'))}
    with pytest.raises(ValueError, match="30000 scores of 'layer2.weight' are NaN"):
        per_layer(broken, masks, .2)

def test_a_layer_that_vanishes():
    "A warning names it; `min_kept` is a floor."
    masks  = {'a': torch.ones(1, 2).bool(), 'b': torch.ones(10, 10).bool()}
    scores = {name: torch.ones(mask.shape) for name, mask in masks.items()}  # all equal
    with pytest.warns(UserWarning, match='pruning leaves no weight in a'):
        assert kept(per_layer(scores, masks, .9)) == {'a': 0, 'b': 10}       # 2 - round(1.8)
    assert kept(per_layer(scores, masks, .9, min_kept=1)) == {'a': 1, 'b': 10}

# --- all together

def test_global_by_hand():
    "Of seven, keep 9, 8 and 7; then of three, with a floor, one of each layer."
    scores = {'a': torch.tensor([[9., 1], [8, 2]]), 'b': torch.tensor([3., 4, 7])}
    full   = {name: torch.ones(s.shape).bool() for name, s in scores.items()}
    new    = global_(scores, full, 4/7)
    assert new['a'].tolist() == [[True, False], [True, False]] and new['b'].tolist() == [False, False, True]
    assert global_(scores, new, 1/3, min_kept=1)['a'].tolist() == [[True, False], [False, False]]

def test_global_is_exact(mnist_net):
    masks, scores = mnist_net
    assert sum(kept(global_(scores, masks, .95)).values()) == 266_200 - round(.95*266_200)

def test_global_with_a_floor():
    "The total stays exact, and the floor holds the best; a floor that does not fit is refused."
    g = rng(0, 'floor')
    scores = {'a': torch.rand(1000, generator=g), 'b': 2 + torch.rand(1000, generator=g)}
    full   = {name: torch.ones(1000).bool() for name in scores}
    with pytest.warns(UserWarning, match='no weight in a'):
        assert kept(global_(scores, full, .5)) == {'a': 0, 'b': 1000}
    floor = global_(scores, full, .5, min_kept=10)
    assert kept(floor) == {'a': 10, 'b': 990}
    assert scores['a'][floor['a']].min() >= scores['a'][~floor['a']].max()
    with pytest.raises(ValueError, match='needs 1200 weights'): global_(scores, full, .5, min_kept=600)

# --- ERK

@pytest.mark.parametrize('total, parts, limits, want', [
    (10, [8, 1], [6, 20], [6, 4]), (10, [1, 1, 1], [9, 9, 9], [4, 3, 3]),
    (16, [8, 4, 1], [6, 3, 20], [6, 3, 7]), (0, [3, 1], [5, 5], [0, 0]), (10, [3, 1], [5, 5], [5, 5])])
def test_shares_by_hand(total, parts, limits, want):
    "A full layer's rest goes to the others, which may fill the next; the first gets what is left over."
    assert _share_out(total, parts, limits) == want

def by_bisection(total, parts, limits):
    "The same shares as real numbers: the factor is found by bisection."
    low, high = 0., float(max(limits))
    for _ in range(100):
        factor = (low + high)/2
        shares = [min(limit, factor*part) for part, limit in zip(parts, limits)]
        low, high = (factor, high) if sum(shares) < total else (low, factor)
    return shares

def test_shares_by_a_second_route():
    "No share differs by a whole weight."
    g = rng(0, 'layers')
    def numbers(least, most): return torch.randint(least, most, (5,), generator=g).tolist()
    for _ in range(200):
        limits, parts = numbers(1, 500), numbers(1, 60)
        total  = int(torch.randint(0, sum(limits) + 1, (1,), generator=g))
        shares = _share_out(total, parts, limits)
        assert sum(shares) == total
        for share, real, limit in zip(shares, by_bisection(total, parts, limits), limits):
            assert 0 <= share <= limit and abs(share - real) < 1 + 1e-6

def test_erk_of_a_convolution():
    "The equation's numerators: 16 + 3 + 5 + 5 and 10 + 64; 184 of 1,840 weights are kept."
    net   = nn.Sequential(nn.Conv2d(3, 16, 5), nn.Flatten(), nn.Linear(64, 10))
    masks = full_masks(net)
    new   = kept(erk(magnitude(net, masks), masks, .9))
    assert new == {'0.weight': 52, '2.weight': 132}
    for n, dims in zip(new.values(), (29, 74)): assert abs(n - 184/103*dims) <= 1
