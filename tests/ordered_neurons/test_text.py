"Vocabularies, columns, windows; guessing by the frequency of words; a text where words are wanted."
import math
import pytest, torch
from lotterybook.foundations.randomness import rng
from lotterybook.ordered_neurons.text import Vocabulary, frequency_nats, in_columns, stream, windows

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

# --- vocabulary

lines = ['the cat sat'.split(), 'the dog sat'.split(), []]
words = Vocabulary.of(lines)
rare  = Vocabulary.of(lines, min_count=2)

def test_numbers_of_words():
    assert words.words == ['the', 'cat', 'sat', '<eos>', 'dog']
    assert words.encode('dog sat'.split()) == [4, 2]
    assert [list(words), 'dog' in words, 'bird' in words] == [words.words, True, False]

def test_rare_words():
    assert rare.words == ['the', 'sat', '<eos>', '<unk>']
    assert rare.encode('the bird sat'.split()) == [0, 3, 1]

# --- columns

def test_stream_and_columns():
    assert stream(lines, words).tolist() == [0, 1, 2, 3, 0, 4, 2, 3, 3]    # an empty line is an <eos>
    assert in_columns(torch.arange(10), 3).tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]

@pytest.mark.parametrize('name, hint', [('', ', or a smaller batch_size'), ('training', ', or a smaller batch_size'), ('test', '')])
def test_too_few_tokens(name, hint):
    "The columns of a test text are not the caller's choice"
    with pytest.raises(ValueError, match=f'the {name or "given"} text has 9 tokens; 5 columns need 10 at least: take more text{hint}$'):
        in_columns(stream(lines, words), 5, name)

# --- windows

def test_windows_cover_the_text():
    assert windows(8, 3) == [(0, 3), (3, 3), (6, 1)]
    cuts = windows(46_479, 70, rng(0, 'windows'))                          # PTB in 20 columns
    assert [a + n for a, n in cuts[:-1]] == [a for a, _ in cuts[1:]]       # without gaps
    assert sum(n for _, n in cuts) == 46_478                               # every row but the last is an input
    assert abs(len(cuts) - 681) < 14                                       # four standard deviations; without halves 664

def test_lengths_of_windows():
    cuts    = windows(46_479, 70, rng(0, 'windows'))
    lengths = torch.tensor([n for _, n in cuts[:-1]], dtype=torch.float)   # the last is what is left
    assert abs(lengths.mean() - (.95*70 + .05*35)) < 1.4                   # four standard errors; without halves 1.75
    assert abs((lengths < 52).sum() - .05*len(lengths)) < 4*(.0475*len(lengths))**.5 # so many are halved
    assert min(n for _, n in windows(2_000, 7, rng(0, 'short'))[:-1]) == 5 # the floor
    assert windows(46_479, 70, rng(1, 'windows')) != cuts == windows(46_479, 70, rng(0, 'windows'))

@pytest.mark.parametrize('ask, why', [
    (lambda: words.encode(['bird']), "no word 'bird'"), (lambda: Vocabulary(['a', 'b', 'a']), "['a']"), (lambda: Vocabulary.of([]), 'no lines'),
    (lambda: Vocabulary.of(['the cat']), "not the text 'the cat'"), (lambda: rare.encode('the bird'), "not the text 'the bird'"),
    (lambda: Vocabulary.of(lines, min_count='2'), "min_count='2' must"), (lambda: in_columns(stream(lines, words), 0), 'batch_size=0'),
    (lambda: stream(lines, Vocabulary(['the', 'cat', 'sat', 'dog'])), 'the vocabulary has no <eos>'),
    (lambda: windows(10, 0), 'length=0 must be'), (lambda: windows(1), '1 rows')])
def test_refused(ask, why):
    with pytest.raises(ValueError) as e: ask()
    assert why in str(e.value)
