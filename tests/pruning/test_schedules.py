"Schedules end where they should, and a percentage given for a fraction is refused."
from math import prod
import pytest
from hypothesis import given, settings, strategies as st
from lotterybook.pruning.schedules import all_at_once, cubic, geometric, rate_for

def close(a, b): return abs(a - b) < 1e-12

def test_by_hand():
    "Three rounds of 20 %, one round, a cubic of two rounds: .8*(1 - 1/8) = .7."
    assert close(rate_for(.512, 3), .2) and rate_for(.25, 1) == .75
    assert geometric(.2, 3) == [.2, .2, .2] and all_at_once(.25) == [.75]
    assert all(map(close, cubic(.2, 2), [.7, 1 - .2/.3]))
    assert all(map(close, cubic(.2, 1), all_at_once(.2)))

@pytest.mark.parametrize('remaining', [.9, .2, .036, .001])
@pytest.mark.parametrize('rounds', [1, 2, 7, 30])
def test_rate_for_carried_out(remaining, rounds):
    "A second route: remove the weights, round by round."
    left = 1.
    for _ in range(rounds): left -= rate_for(remaining, rounds)*left
    assert close(left, remaining)

@pytest.mark.parametrize('rounds', [1, 2, 5, 30])
def test_ends_and_rates(rounds):
    "All end at the same share, and every rate is fit for an allocation."
    for schedule in (geometric(rate_for(.05, rounds), rounds), cubic(.05, rounds), all_at_once(.05)):
        assert close(prod(1 - rate for rate in schedule), .05)
        assert all(0 < rate < 1 for rate in schedule)

def test_the_cubic_removes_less_and_less():
    "Of the weights there were at first, not of those that are left."
    left = [1.]
    for rate in cubic(.05, 10): left.append(left[-1]*(1 - rate))
    removed = [before - after for before, after in zip(left, left[1:])]
    assert all(a > b for a, b in zip(removed, removed[1:]))

@pytest.mark.parametrize('remaining, rounds, why', [
    (20, 5, 'remaining=20 must lie between 0 and 1'), (1, 5, 'remaining=1 must'),
    (.2, 0, 'rounds=0 must'), (.2, 2.5, 'rounds=2.5 must')])
def test_rate_for_refuses(remaining, rounds, why):
    with pytest.raises(ValueError, match=why): rate_for(remaining, rounds)

@pytest.mark.parametrize('make', [geometric, cubic])
def test_schedules_refuse(make):
    "Rates that are no fractions, and a negative number of rounds."
    for wrong in (0, 1, -.2, 20):
        with pytest.raises(ValueError, match=f'={wrong} must'): make(wrong, 3)
    with pytest.raises(ValueError, match='rounds'): make(.2, -1)

@pytest.mark.parametrize('wrong', [0, 1, 5])
def test_all_at_once_refuses(wrong):
    with pytest.raises(ValueError, match='must lie between 0 and 1'): all_at_once(wrong)

@pytest.mark.parametrize('schedule', [lambda n: geometric(.2, n), lambda n: cubic(.2, n)])
def test_schedules_that_would_not_end(schedule):
    "Refused before the list is made."
    assert len(schedule(10_000)) == 10_000
    with pytest.raises(ValueError, match='rounds=1,000,000,000 would not end'): schedule(10**9)

@settings(max_examples=200, deadline=None)
@given(st.floats(1e-4, .9999), st.integers(1, 60))
def test_schedules_end_where_they_should(remaining, rounds):
    for schedule in (geometric(rate_for(remaining, rounds), rounds), cubic(remaining, rounds)):
        left = 1.
        for rate in schedule: left -= rate*left
        assert len(schedule) == rounds and abs(left - remaining) < 1e-9
