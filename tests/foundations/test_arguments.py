"Sizes, fractions and names; plain values, and settings compared both ways."
import math
from pathlib import Path
import numpy as np
import pytest, torch
from hypothesis import given, settings, strategies as st
from lotterybook.foundations.arguments import (check_settings, checked_fraction, checked_name, checked_number,
                                               checked_size, plain, with_changes)

def same(a, b): return type(a) is type(b) and repr(a) == repr(b)

# --- sizes, fractions, names

def refused(check, value, *arguments, why):
    "A ValueError that shows the value and says what is accepted."
    with pytest.raises(ValueError) as e: check(value, *arguments)
    assert why in str(e.value)

def test_sizes():
    "Whole numbers, NumPy's too, which become Python's."
    assert same(checked_size(3, 'chunk_size'), 3) and same(checked_size(np.int64(3), 'chunk_size'), 3)
    assert checked_size(0, 'rounds', least=0) == 0
    refused(checked_size, 0, 'chunk_size', why='chunk_size=0 must be a whole number of at least 1')

@pytest.mark.parametrize('wrong', [-1, 2.5, 3., '3', True, None, math.nan, [3]])
def test_wrong_sizes(wrong): refused(checked_size, wrong, 'n', why=f'n={wrong!r} must be')

def test_fractions():
    assert checked_fraction(.2, 'rate') == .2 and checked_fraction(np.float32(.5), 'rate') == .5
    assert same(checked_fraction(0, 'dropout', zero=True), 0.)
    refused(checked_fraction, 0, 'rate', why='rate=0 must lie between 0 and 1')

@pytest.mark.parametrize('zero', [False, True])
@pytest.mark.parametrize('wrong', [1, -.1, 1.2, math.nan, math.inf, '0.2', None, True, [.2], False])
def test_wrong_fractions(wrong, zero): refused(checked_fraction, wrong, 'p', zero, why=f'p={wrong!r} must')

def test_numbers():
    assert same(checked_number(3, 'lr'), 3.) and checked_number(np.float32(.5), 'lr') == .5
    assert checked_number(0, 'decay', zero=True) == 0 and checked_number(math.inf, 'clip', infinite=True) == math.inf
    refused(checked_number, 0, 'lr', why='lr=0 must be a finite number above 0')
    refused(checked_number, -1, 'decay', True, why='decay=-1 must be a finite number of at least 0')
    refused(checked_number, 0, 'clip', False, True, why='clip=0 must be a number above 0')

@pytest.mark.parametrize('wrong', [-.1, math.nan, math.inf, -math.inf, '0.2', None, True, [.2], False, 10**400, torch.tensor(.1)])
def test_wrong_numbers(wrong):
    refused(checked_number, wrong, 'lr', True, why=f'lr={wrong!r} must be a finite number of at least 0')
    if wrong is None: refused(checked_number, wrong, 'lr', why='not of type NoneType')

def test_names():
    "From a tuple, a table's keys, an iterator that is read once."
    assert checked_name('unbiased', ('released', 'unbiased'), 'builder') == 'unbiased'
    assert checked_name('a', dict(a=1), 'net') == checked_name('a', iter('ab'), 'net') == 'a'
    refused(checked_name, 'right', ('released', 'unbiased'), 'builder',
            why="unknown builder 'right'; known are released, unbiased")

@pytest.mark.parametrize('wrong', [None, 3, ['a'], ''])
def test_unknown_names(wrong): refused(checked_name, wrong, 'ab', 'net', why=f'unknown net {wrong!r}')

@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=5), st.none(),
                 st.lists(st.integers(), max_size=2)))
def test_the_value_or_an_error(value):
    "No other error, and no third case, whatever is given."
    for check, *rest in ((checked_size, 'it'), (checked_fraction, 'it'), (checked_number, 'it'), (checked_name, ('a', 'b'), 'it')):
        try: out = check(value, *rest)
        except ValueError as e: assert repr(value) in str(e) and 'it' in str(e)
        else: assert out == (float(value) if check is checked_number else value) and not isinstance(value, bool)

# --- plain

@pytest.mark.parametrize('value', [
    1, 1.5, 'a', True, None, [1, [2.]], {'a': {'b': [1]}}, -math.inf, math.nan, '', []])
def test_plain_values_come_back(value):
    "As they are."
    assert same(plain(value, 'settings'), value)

@pytest.mark.parametrize('value, want', [
    ((1, (2, 3)), [1, [2, 3]]), ({'a': (1,)}, {'a': [1]}), (np.int64(3), 3), (np.float64(.1), .1),
    (np.float32(.5), .5), (np.bool_(True), True), (np.array(2), 2), (torch.tensor(3), 3),
    (torch.tensor(.5), .5), (torch.tensor(True), True), (torch.tensor(.5, dtype=torch.half), .5),
    ([np.int8(1), torch.tensor(2)], [1, 2])])
def test_numbers_of_others(value, want):
    "Single numbers of NumPy and PyTorch become Python's, tuples lists."
    assert same(plain(value, 'settings'), want)

@pytest.mark.parametrize('value, told', [
    (torch.ones(2), 'a Tensor'), (np.ones(1), 'a ndarray'), ({1, 2}, 'a set'),
    (Path('a'), 'a PosixPath'), (print, 'a builtin_function_or_method'), (1j, 'a complex'),
    (b'a', 'a bytes'), ([dict(a=[{1}])], 'a set')])
def test_what_is_not_plain(value, told):
    "Refused, with what it was for and what it is."
    with pytest.raises(ValueError) as e: plain(value, 'a row')
    may = 'a row may hold numbers, text, lists and dictionaries'
    assert str(e.value) == f'{may}: {told} is none of these'

def test_keys_must_be_text():
    "A dictionary with a tuple for a key could not be read back."
    with pytest.raises(ValueError, match='settings may hold'): plain({(1, 2): 3}, 'settings')

def test_plain_is_a_copy():
    "Changing it does not change what it was made of."
    value = {'a': [1]}
    plain(value, 'settings')['a'].append(2)
    assert value == {'a': [1]}

# --- check_settings

@pytest.mark.parametrize('before, now', [
    ({}, {}), (dict(a=1, b='x'), dict(b='x', a=1)), (dict(a=(1, 2)), dict(a=[1, 2])),
    (dict(a=math.nan), dict(a=math.nan)), (dict(a=np.float64(.1), b=np.int64(3)), dict(a=.1, b=3)),
    (dict(a=.5), dict(a=torch.tensor(.5))), (dict(a=None), dict(a=None)), (dict(a=1), dict(a=1.)),
    (dict(a=dict(b=1, c=2)), dict(a=dict(c=2, b=1))), (dict(a=[math.nan]), dict(a=(math.nan,))),
    (dict(a=math.inf), dict(a=np.inf)), (dict(a={'b': (1,)}), dict(a={'b': [1]}))])
def test_the_same_settings(before, now):
    "However they are written, in either order of comparing."
    check_settings(before, now, 'runs/a')
    check_settings(now, before, 'runs/a')

@pytest.mark.parametrize('before, now, told', [
    (dict(a=1), dict(a=2), 'a was 1, is 2'), (dict(a=1), dict(a='1'), "a was 1, is '1'"),
    (dict(a=1), {}, 'a was 1, is not given'), ({}, dict(a=1), 'a was not given, is 1'),
    ({}, dict(a='not given'), "a was not given, is 'not given'"),
    (dict(a=None), {}, 'a was None, is not given'), ({}, dict(a=None), 'a was not given, is None'),
    (dict(a=math.nan), dict(a=0.), 'a was nan, is 0.0'),
    (dict(a=True), dict(a=False), 'a was True, is False'),
    (dict(a=(1, 2)), dict(a=(2, 1)), 'a was [1, 2], is [2, 1]'),
    (dict(a=np.int64(1)), dict(a=2), 'a was 1, is 2'),
    (dict(a=1, b=2, c=3), dict(a=0, b=2, d=4),
     'a was 1, is 0; c was 3, is not given; d was not given, is 4')])
def test_other_settings(before, now, told):
    "All that differs is named, and nothing else, with the place and what to do."
    with pytest.raises(ValueError) as e: check_settings(before, now, Path('runs/a'))
    assert str(e.value) == f'runs/a is of another run: {told}. Name another place, or remove it.'

@pytest.mark.parametrize('settings', [dict(a=torch.ones(2)), dict(a={1})])
def test_settings_that_are_not_plain(settings):
    "Refused on either side: what cannot be compared does not make a run another one."
    for sides in ((settings, {}), ({}, settings)):
        with pytest.raises(ValueError, match='settings may hold'): check_settings(*sides, 'runs/a')

# --- changes

def test_changes():
    "Some settings with other values; a name that is not there is refused, and nothing is changed in place."
    settings = dict(lr=.1, steps=100)
    assert with_changes(settings, dict(lr=.2)) == dict(lr=.2, steps=100) and settings['lr'] == .1
    with pytest.raises(ValueError, match='unknown setting learning_rate; known are lr, steps'):
        with_changes(settings, dict(learning_rate=.2))
