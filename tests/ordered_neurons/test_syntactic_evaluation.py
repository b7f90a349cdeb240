"A text where sentences, pairs or words are wanted."
import pytest
from lotterybook.ordered_neurons.syntactic_evaluation import coverage, evaluate_suite, score_pairs, score_sentences, word_interval

def longer(lines): return [float(len(o)) for o in lines]                   # every text has a score
suite = {'agreement': {'sing': [('a b', 'a c')]}}

@pytest.mark.parametrize('ask, why', [
    (lambda: score_sentences(longer, 'ab'), "sentences are a list of texts, not the text 'ab'"),
    (lambda: score_pairs(longer, ('ab', 'ac')), "a pair is a tuple of two sentences, not the text 'ab'"),  # one pair
    (lambda: score_pairs(longer, 'ab'), "not the text 'a'"),
    (lambda: word_interval([True, False], ['ab', 'ac']), "not the text 'ab'"),
    (lambda: coverage(suite, 'a b c'), "a vocabulary is a list of words, not the text 'a b c'"),
    (lambda: evaluate_suite(longer, suite, 'a b c', unknown='skip'), 'a vocabulary is a list of words')])
def test_refused(ask, why):
    with pytest.raises(ValueError, match=why): ask()

def test_right(): assert score_pairs(longer, [('a b', 'a')]).tolist() == [1] and coverage(suite, 'a b c'.split()) == dict(agreement=1)
