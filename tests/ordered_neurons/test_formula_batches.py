"Pairs as tensors, batches of any pool; malformed pairs."
import re
import numpy as np, pytest, torch
from lotterybook.ordered_neurons.formula_batches import batches, encode_pairs, train_validation, vocabulary
from lotterybook.ordered_neurons.propositional_logic import RELATIONS, Pair, generate_pairs, split_pairs

pairs = [Pair('#', 'a', 'b'), Pair('<', '( a ( and b ) )', 'a'), Pair('^', 'a', '( not a )')]
words = vocabulary(pairs)

def test_encoded():
    assert words == {'(': 1, ')': 2, 'a': 3, 'and': 4, 'b': 5, 'not': 6}
    few = encode_pairs(pairs, words)
    assert few.tokens.shape == (4, 7)                                      # four different formulas, at most seven tokens
    assert few.tokens[few.sides[1, 0]].tolist() == [1, 3, 1, 4, 5, 2, 2]   # ( a ( and b ) )
    assert few.sides[:, 0].tolist() == [0, 2, 0] and few.lengths.tolist() == [1, 1, 7, 4]
    assert [RELATIONS[o] for o in few.labels] == ['#', '<', '^']

def test_every_tenth_across_groups():
    train, validation = train_validation({1: list(range(25)), 2: list(range(25, 40)), 3: [99]}, 2)
    assert validation == [9, 19, 29, 39] and sorted(train + validation) == list(range(40))

@pytest.mark.parametrize('some, why', [
    ([('#', 'a', '( not c )')], "'c' in '( not c )' is not in the vocabulary"), ([('<', '( a and', 'a ) )')], "token 3: there is 'and' where '(' should stand"),
    ([('<', 'not', '( (')], "token 1: there is 'not'"), ([('<', '', 'a')], 'token 1: the formula ends'),
    ([('=', 'a', 'b', 'a')], "('=', 'a', 'b', 'a') is not a relation with two formulas"), ([('=', 'a')], "('=', 'a') is not a relation with two formulas"),
    ([('?', 'a', 'b')], "'?' is none of the relations = < >"), ([], 'there are no pairs to encode')])
def test_malformed(some, why):
    with pytest.raises(ValueError, match=re.escape(why)): encode_pairs(some, words)

def test_too_few():
    with pytest.raises(ValueError, match='1 pairs have at most 3 operators; at least 10 are needed'): train_validation({3: [99]}, 3)

# --- batches

@pytest.fixture(scope='module')
def train():
    pairs, _ = train_validation(split_pairs(generate_pairs(12_000, max_operators=6)).train, 2)
    return encode_pairs(pairs, vocabulary(pairs))

def test_a_function_of_seed_and_epoch(train):
    seen = torch.cat(list(batches(train, 32, 0, 0)))
    assert seen.equal(torch.cat(list(batches(train, 32, 0, 0)))) and seen.equal(torch.cat(list(batches(train, np.int64(32), 0, 0))))
    assert not seen.equal(torch.cat(list(batches(train, 32, 0, 1)))) and not seen.equal(torch.cat(list(batches(train, 32, 1, 0))))

@pytest.mark.parametrize('pool', [1, 10, 50, 10**6])
def test_each_pair_once(train, pool):
    assert len(train.labels) > 50*32                                       # more than one pool of the default
    parts = list(batches(train, 32, 0, 0, pool))
    assert torch.cat(parts).sort().values.equal(torch.arange(len(train.labels)))
    assert len(parts) == -(-len(train.labels)//32)                         # in as few batches as possible

def test_less_padding(train):
    def waste(parts):
        return 1 - sum(train.lengths[train.sides[o]].sum().item() for o in parts)/sum(2*len(o)*train.lengths[train.sides[o]].max().item() for o in parts)
    assert waste(list(batches(train, 32, 0, 0))) < waste(torch.randperm(len(train.labels)).split(32))

@pytest.mark.parametrize('wrong', [dict(batch_size=0), dict(batch_size=1.5), dict(batch_size=8, pool=0)])
def test_no_batches(train, wrong):
    with pytest.raises(ValueError, match='must be a whole number of at least 1'): batches(train, seed=0, epoch=0, **wrong)
