"Properties of the selection of weights, on inputs nobody would write down: ties, infinities, odd types, layers with nothing left."
import warnings
import pytest, torch
from hypothesis import given, settings, strategies as st
from lotterybook.pruning.allocation import erk, global_, keep_top, per_layer
from lotterybook.pruning.masks import kept
from lotterybook.pruning.schedules import cubic, geometric, rate_for

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
    "Whole numbers would be read as places: the wrong weights, without a word."
    with pytest.raises(ValueError, match=why): keep_top(torch.tensor([4., 3, 2, 1]), alive, 1)

@pytest.mark.parametrize('schedule', [lambda n: geometric(.2, n), lambda n: cubic(.2, n)])
def test_schedules_that_would_not_end(schedule):
    "Refused before the list is made."
    assert len(schedule(10_000)) == 10_000
    with pytest.raises(ValueError, match='rounds=1,000,000,000 would not end'): schedule(10**9)

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

@settings(max_examples=200, deadline=None)
@given(st.floats(1e-4, .9999), st.integers(1, 60))
def test_schedules_end_where_they_should(remaining, rounds):
    for schedule in (geometric(rate_for(remaining, rounds), rounds), cubic(remaining, rounds)):
        left = 1.
        for rate in schedule: left -= rate*left
        assert len(schedule) == rounds and abs(left - remaining) < 1e-9
