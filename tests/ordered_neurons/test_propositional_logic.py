"Formulas read, tables by definition, relations by a second route, pairs and their split; malformed formulas."
import re
from itertools import product
import pytest
from lotterybook.ordered_neurons.propositional_logic import (OPERATORS, _columns, by_operators, generate_pairs, operators, postfix, relation,
                                                             split_pairs, truth_table)

# --- reading

deep = '( abby ( or ( not ( ollie ( and abby ) ) ) ) )'

@pytest.mark.parametrize('formula, order', [
    ('a', ['a']), ('( not a )', ['a', 'not']), ('( ( not a ) ( and b ) )', ['a', 'not', 'b', 'and']), (deep, ['abby', 'ollie', 'abby', 'and', 'not', 'or'])])
def test_postfix(formula, order): assert postfix(formula) == order

def test_depth_has_no_limit():
    assert operators(deep) == 3
    assert operators('( not ' * 5000 + 'a' + ' )' * 5000) == 5000          # no recursion, and no copies
    assert operators('( ' * 20_000 + 'a' + ' ( and b ) )' * 20_000) == 20_000

@pytest.mark.parametrize('formula, why', [
    ('',                "token 1: the formula ends where a variable or '(' should stand"),
    ('a b',             "token 2: there is 'b' where the end should stand"),
    ('and',             "token 1: there is 'and' where a variable or '(' should stand"),
    ('( a and b )',     "token 3: there is 'and' where '(' should stand"),
    ('( a ( not b ) )', "token 4: there is 'not' where 'and' or 'or' should stand"),
    ('( a ( and b )',   "token 7: the formula ends where ')' should stand"),
    ('( a )',           "token 3: there is ')' where '(' should stand"),
    ('( )',             "token 2: there is ')' where a variable or '(' should stand"),
    ('( not a b )',     "token 4: there is 'b' where ')' should stand"),
    ('( a ( xor b ) )', "token 4: there is 'xor' where 'and' or 'or' should stand"),
    ('(not a)',         "token 1: there is '(not' where a variable or '(' should stand"),
    ('a )',             "token 2: there is ')' where the end should stand")])
def test_malformed(formula, why):
    with pytest.raises(ValueError, match=re.escape(f'{why}, in {formula!r}')): postfix(formula)

def test_no_text():
    with pytest.raises(ValueError, match=r'a formula is a text, not None \(NoneType\)'): postfix(None)

# --- tables

def test_tables():
    assert [truth_table(o, 'ab') for o in ('a', 'b', '( a ( and b ) )', '( a ( or b ) )')] == [10, 12, 8, 14] # by hand
    assert truth_table('( not ( a ( or b ) ) )') == 1                      # only where both are false
    for n in range(6): assert _columns(n)[1] == [sum(1 << r for r in range(2**n) if r >> k & 1) for k in range(n)]

@pytest.mark.parametrize('formula, variables, why', [
    ('( a ( and c ) )', 'ab', 'uses c; the table is over a, b'), ('a', [*(f'x{k}' for k in range(20)), 'a'], r'2\^21 worlds'),
    ('a', ['a', 'a'], 'must be distinct and have an order'), ('a', {'a', 'b'}, 'must be distinct and have an order: a list, not a set')])
def test_no_table(formula, variables, why):
    with pytest.raises(ValueError, match=why): truth_table(formula, variables)

# --- relations

def worlds(formula, variables):
    "The assignments that make a formula true, as Python evaluates it"
    python = re.sub(r'\( (and|or) ', r'\1 ( ', formula)
    return {w for w in product((False, True), repeat=len(variables)) if eval(python, {}, dict(zip(variables, w)))}

def by_sets(left, right, variables='abcdef'):
    "The definition of the seven relations, on sets"
    x, y, D = worlds(left, variables), worlds(right, variables), 2**len(variables)
    return ('=' if x == y else '<' if x < y else '>' if x > y else '^' if not x & y and len(x | y) == D
            else '|' if not x & y else 'v' if len(x | y) == D else '#')

never, always = '( a ( and ( not a ) ) )', '( b ( or ( not b ) ) )'

@pytest.mark.parametrize('left, right, expected', [
    ('( jo ( and kim ) )', '( kim ( or lee ) )', '<'),                     # any words, and not the same on both sides
    (never, 'a', '<'), ('a', always, '<'), (never, always, '<'),           # the first that fits
    (never, never, '='), ('b', never, '>'), (always, 'a', '>')])
def test_relation(left, right, expected): assert relation(left, right) == expected

def test_no_relation():
    with pytest.raises(ValueError, match="token 3: there is 'and'"): relation('a', '( a and b )')

# --- pairs

@pytest.fixture(scope='module')
def pairs(): return generate_pairs(6000)

def test_pairs(pairs):
    assert pairs[:500] == generate_pairs(500)                              # a seed is a stream: more pairs, the same beginning
    assert generate_pairs(50, seed=1) != pairs[:50]
    assert len({(o.left, o.right) for o in pairs}) == 6000                 # distinct
    assert all(o.relation == by_sets(o.left, o.right) for o in pairs[:400])
    assert all(0 < len(worlds(side, 'abcdef')) < 64 for o in pairs[:200] for side in o[1:])
    assert max(len(set(postfix(o.left) + postfix(o.right)) - set(OPERATORS)) for o in pairs) == 4 # of six

def test_other_words():
    small = generate_pairs(60, max_operators=1, variables=['sun', 'rain'])
    assert set(by_operators(small)) == {0, 1}
    assert {t for o in small for side in o[1:] for t in postfix(side)} <= {'sun', 'rain', *OPERATORS}
    assert list(by_operators([('#', 'a', 'b'), ('<', '( a ( and b ) )', 'a')], last=1)) == [0, 1]

@pytest.mark.parametrize('wrong, why', [
    (dict(n=5, max_operators=0, variables='ab'), 'only 4 of 5 pairs found: with max_operators=0, 2 variables and depth=3 hardly any more exist'),
    (dict(n=5, variables=['a', 'not']), r"\['not'\] cannot be variables"),
    (dict(n=5, variables={'sun', 'rain'}), 'must be distinct and have an order'), # the order of a set changes from run to run
    (dict(n=-3), 'n=-3 must be a whole number of at least 1'), (dict(n=5, per_pair=0), 'per_pair=0 must be a whole number of at least 1'),
    (dict(n=5, variables=()), r'len\(variables\)=0 must be a whole number of at least 1'),
    (dict(n=5, depth=-1), 'depth=-1 must be a whole number of at least 0'),
    (dict(n=5, max_operators=-1), 'max_operators=-1 must be a whole number of at least 0'),
    (dict(n=5, max_operators=1.5), 'max_operators=1.5 must be a whole number of at least 0')])
def test_no_pairs(wrong, why):
    with pytest.raises(ValueError, match=why): generate_pairs(**wrong)

# --- the split

def test_split(pairs):
    data = split_pairs(pairs)
    train, test = ({(o.left, o.right) for group in part.values() for o in group} for part in data)
    assert [len(train), len(test)] == [sum(map(len, part.values())) for part in data] and len(train) + len(test) == 6000
    assert .13 < len(test)/6000 < .17
    assert not train & test and not {(y, x) for x, y in train} & test      # no leak, nor through the mirror image
    places = [k for k, o in enumerate(pairs) if (o.left, o.right) in test]
    assert abs(sum(places)/len(places)/len(pairs) - .5) < .05              # from early and late in the stream; .05 is five standard errors
    assert split_pairs(pairs) == data != split_pairs(pairs, seed=1)        # a seed is a split
    with pytest.raises(ValueError, match='test_share=1 must'): split_pairs(pairs, 1)
