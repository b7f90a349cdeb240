"Guessing by the frequency of words; a text where words are wanted."
import math
import pytest
from lotterybook.ordered_neurons.text import Vocabulary, frequency_nats

def test_frequencies_of_ten_words_by_hand():
    train = [['a', 'a', 'b'], ['a', 'c'], ['a', 'b']]                     # with <eos> ten: a 4, <eos> 3, b 2, c 1
    assert math.isclose(frequency_nats(train, [['b', 'a'], ['c']]), -(math.log(.2) + math.log(.4) + 2*math.log(.3) + math.log(.1))/5)
    assert math.isclose(frequency_nats(train, [[]]), -math.log(.3))        # an empty line is an <eos>
    entropy = -sum(p*math.log(p) for p in (.4, .3, .2, .1))
    assert math.isclose(frequency_nats(train, train), entropy)             # the least any such guess reaches

def test_frequencies_with_the_vocabulary_of_a_network():
    train = [['a', 'a', 'b'], ['a', 'c'], ['a', 'b']]
    rare  = Vocabulary.of(train, min_count=2)                              # c is <unk>, and so is all that is new
    assert math.isclose(frequency_nats(train, [['c', 'new']], rare), -(2*math.log(.1) + math.log(.3))/3)
    with pytest.raises(ValueError, match="no word 'new'"): frequency_nats(train, [['new']])
    assert frequency_nats(train, [['d']], Vocabulary([*rare, 'd'])) == math.inf # never seen: no chance

@pytest.mark.parametrize('train, text', [('a b', [['a']]), (['a b'], [['a']]), ([['a', 'b']], 'a'), ([['a', 'b']], ['a'])])
def test_frequencies_of_a_text(train, text):
    with pytest.raises(ValueError, match='a sentence is a list of words, not the text'): frequency_nats(train, text)

def test_vocabulary_of_a_text():
    with pytest.raises(ValueError, match="a vocabulary is a list of words, not the text 'the cat'; use .split()"): Vocabulary('the cat')
