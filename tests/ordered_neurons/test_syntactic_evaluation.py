"Pairs, suites, unknown words, intervals over words; a text where sentences, pairs or words are wanted."
import math
import numpy as np, pytest
from lotterybook.foundations.running_sentence import first_tree_file
from lotterybook.ordered_neurons.small_grammar import LEXICON, as_corpus, log_prob, source_perplexity
from lotterybook.ordered_neurons.syntactic_evaluation import (PAPER_ROWS, _words, as_paper_rows, coverage, evaluate_suite, pairings, paper_table, score_pairs,
                                                              score_sentences, small_suite, word_interval)
from lotterybook.ordered_neurons.text import Vocabulary
from lotterybook.ordered_neurons.word_model import LanguageModel, load_language_model

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

# --- pairings

def test_pairings():
    assert pairings([('g', 'u')]) == {'grammatical > ungrammatical': [('g', 'u')]}
    assert list(pairings([('g', 'i', 'u'), ('G', 'I', 'U')]).values()) == [[('g', 'i'), ('G', 'I')], [('i', 'u'), ('I', 'U')], [('g', 'u'), ('G', 'U')]]

@pytest.mark.parametrize('ask, why', [
    (lambda: pairings([('g', 'u'), ('g', 'i', 'u')]), r'sizes \[2, 3\]'), (lambda: pairings([]), 'construction: no items'),
    (lambda: pairings([('g', 'u'), 'gu'], 'npi'), "npi: an item is a tuple of sentences, not the text 'gu'"),
    (lambda: pairings([(['a', 'b'], ['a', 'c'])]), r"words with spaces between them, not \['a', 'b'\]")])
def test_no_pairs(ask, why):
    with pytest.raises(ValueError, match=why): ask()

# --- scores

class Table:
    "Log-probabilities by hand, and what was scored."
    nats = {'a b': -1., 'a c': -2., 'a': -2., 'b': -math.inf, 'c': -math.inf}
    def __init__(self): self.scored = []
    def __call__(self, lines):
        self.scored.extend(' '.join(o) for o in lines)
        return [self.nats[' '.join(o)] for o in lines]

def test_scores_and_ties():
    model = Table()
    assert score_pairs(model, [('a b', 'a c'), ('a c', 'a b'), ('a', 'a c'), ('a', 'b'), ('b', 'c')]).tolist() == [1, -1, 0, math.inf, 0]
    assert sorted(model.scored) == ['a', 'a b', 'a c', 'b', 'c']           # each of the five sentences once
    assert score_pairs(model, (o for o in [('a b', 'a c'), ('a', 'b')]), batch_size=1).tolist() == [1, math.inf]

class Scorer:
    "A model whose method scores; to call the model does something else."
    def __call__(self, lines): raise TypeError
    def log_prob(self, lines): return Table()(lines)

@pytest.mark.parametrize('ask, why', [
    (lambda: score_pairs(lambda lines: [0.], [('a', 'b')]), 'gave 1 log-probabilities for 2'),
    (lambda: score_pairs(lambda lines: [math.nan]*len(lines), [('a', 'b')]), "nan for 'a'"),
    (lambda: score_pairs(Scorer(), [('a', 'b')]), 'a Scorer is not a function from sentences to log-probabilities; pass its method, model.log_prob'),
    (lambda: score_pairs(Table(), [('a', 'b')], batch_size=0), 'batch_size=0')])
def test_no_scores(ask, why):
    assert score_pairs(Scorer().log_prob, [('a b', 'a c')]).tolist() == [1]
    with pytest.raises(ValueError, match=why): ask()

# --- intervals

four = [(f'{w} {v} x', f'{w} {v} y') for w in ('w', 'z') for v in ('v', 'u')]
half = 1.959964*(.25/4)**.5

@pytest.mark.parametrize('right, pairs, confidence, expected', [
    ([1, 1, 0, 0], four, .5, (.5, 0., 1.)),                                # by hand: t is 1 at one degree, 1 * sqrt(1/4)
    ([1, 1, 0, 0], four, .2, (.5, .5 - .5*math.tan(math.pi/10), .5 + .5*math.tan(math.pi/10))), # Student's t at one degree is a tangent
    ([1, 1, 0, 0]*50, four*50, .2, (.5, .5 - .5*math.tan(math.pi/10), .5 + .5*math.tan(math.pi/10))), # repeated questions teach nothing new
    ([1, 1, 1, 1], four, .95, (1., 2/(2 + 1.959964**2), 1.)),              # two words in each place, both understood
    ([0, 0, 0, 0], four, .95, (0., 0., 1 - 2/(2 + 1.959964**2))),
    ([1], four[:1], .95, (1., 1/(1 + 1.959964**2), 1.)),                   # one question: Wilson's 1 of 1
    ([1, 0, 0, 1], four, .95, (.5, max(.5 - half, 0), min(.5 + half, 1)))]) # right and wrong on each word alike: binomial
def test_interval_by_hand(right, pairs, confidence, expected): assert word_interval(right, pairs, confidence) == pytest.approx(expected, abs=1e-5)

def test_two_forms_are_one_word():
    assert _words(('the authors laugh', 'the authors laughs')) == {'the', 'author', frozenset({'laugh', 'laughs'})}
    assert _words(('he laughs and laughs', 'he laughs and laugh')) == {'he', 'laugh', 'and', frozenset({'laugh', 'laughs'})} # one of the two comes twice

@pytest.mark.parametrize('right, pairs, confidence, why', [
    ([1, 0, 3.2, 1], four, .95, 'True or False, not 3.2'), ([1, 0, math.nan, 1], four, .95, 'True or False, not nan'),
    ([1, 0], four, .95, '2 answers for 4 pairs'), ([], [], .95, 'one at least'), ([1, 1, 0, 0], four, 95, 'confidence=95')])
def test_no_interval(right, pairs, confidence, why):
    with pytest.raises(ValueError, match=why): word_interval(right, pairs, confidence)

def simulate(nouns, others, verbs, effect, missed=None, lexicons=100):
    "Intervals over words, and accuracies: each word shifts the chance of a right answer by about `effect`, or verbs are missed."
    g = np.random.default_rng(0)
    grid = [(f'n{a} by m{b} v{c}', f'n{a} by m{b} w{c}') for a in range(nouns) for b in range(others) for c in range(verbs)]
    runs = []
    for _ in range(lexicons):
        noun, other, verb = (effect*g.standard_normal(o) for o in (nouns, others, verbs))
        chance = .7 + noun[:, None, None] + .5*other[None, :, None] + verb[None, None, :]
        if missed is not None: chance = np.broadcast_to((g.random(verbs) >= missed), chance.shape)
        runs.append((g.random(chance.shape) < chance).ravel())
    return [word_interval(o, grid)[1:] for o in runs], [o.mean() for o in runs]

@pytest.mark.parametrize('sizes, effect, missed', [
    ((10, 6, 10), 0., .05), ((10, 6, 10), 0., .1), ((10, 6, 10), 0., None), ((4, 3, 4), .15, None), ((10, 6, 10), .15, None)])
def test_intervals_hold_what_they_promise(sizes, effect, missed):
    "All is understood but one verb in twenty, or in ten; words do not matter; a small lexicon; that of page 180"
    intervals, means = simulate(*sizes, effect, missed)
    truth = np.mean(means)
    width, needed = np.mean(np.diff(intervals)), 2*1.96*np.std(means)      # `needed`: had one known how far accuracies vary
    assert np.mean([low <= truth <= high for low, high in intervals]) > .9
    assert width < min(3*needed, .9)                                       # from 0 to 1 would hold the truth, too

# --- suites

tiny = {'agreement': {'sing': [('a b', 'a c')], 'plur': [('a c', 'a b'), ('a', 'a c')]}, 'npi': {'one': [('a b', 'a c', 'a')]}}
ab, abc = list('ab'), list('abc')

def test_evaluate_suite():
    rows = evaluate_suite(Table(), tiny, None)
    assert [(o['construction'], o['pairing'], o['pairs'], o['ties'], round(o['accuracy'], 3)) for o in rows] == [
        ('agreement', 'grammatical > ungrammatical', 3, 1, .333),          # right, wrong, tie: one of three
        ('npi', 'grammatical > intrusive', 1, 0, 1), ('npi', 'intrusive > ungrammatical', 1, 1, 0), ('npi', 'grammatical > ungrammatical', 1, 0, 1)]

def test_unknown_words():
    skipped = evaluate_suite(Table(), tiny, vocabulary=ab, unknown='skip')
    assert [(o['covered'], o['accuracy']) for o in skipped] == [(0, None), (0, None), (0, None), (1, 1)] # a triple without its middle keeps one pairing
    replaced = evaluate_suite(Table(), tiny, vocabulary=ab, unknown='b')                                 # `a c` is read as `a b`
    assert [(o['covered'], o['ties'], o['accuracy']) for o in replaced] == [(1, 2, 0), (1, 1, 0), (1, 0, 1), (1, 0, 1)]
    assert coverage(tiny, ab) == {'agreement': 0, 'npi': 0} and coverage(tiny, abc) == {'agreement': 1, 'npi': 1}

@pytest.mark.parametrize('ask, why', [
    (lambda: evaluate_suite(Table(), tiny, vocabulary=ab), 'words that are not in the vocabulary: 1, such as c'),
    *((lambda known=known: evaluate_suite(Table(), tiny, known, unknown='<unk>'), "unknown='<unk>' is neither") for known in (ab, None)),
    *((lambda ask=ask, suite=suite: ask(suite), why) for ask in (lambda o: coverage(o, abc), lambda o: evaluate_suite(Table(), o, abc)) for suite, why in (
        ({'prep': [('a', 'b')]}, 'prep: a construction is a dictionary, subcase -> items, not list'), (tiny | {'prep': {'sing': []}}, 'prep: no items'),
        ({'prep': {'sing': ['ab']}}, "prep: an item is a tuple of sentences, not the text 'ab'")))])
def test_no_suite(ask, why):
    with pytest.raises(ValueError, match=why): ask()

def test_vocabulary_is_not_forgotten():
    with pytest.raises(TypeError, match="'vocabulary'"): evaluate_suite(Table(), tiny)

def test_ending():
    heard = []
    def listens(lines):
        heard.extend(lines)
        return [-float(len(o)) for o in lines]                             # the shorter one is likelier
    assert evaluate_suite(listens, {'x': {'y': [('a', 'a b')]}}, None, ending='.')[0]['accuracy'] == 1
    assert heard == [['a', '.'], ['a', 'b', '.']]

def test_a_language_model():
    lm = LanguageModel(Vocabulary(['<eos>', '<unk>', 'a', 'b', 'd']), 'lstm', 4, [])                     # an untrained one
    with pytest.raises(ValueError, match='not in the vocabulary: 1, such as c'): evaluate_suite(lm.log_prob, tiny, lm.vocabulary)
    assert [o['covered'] for o in evaluate_suite(lm.log_prob, tiny, lm.vocabulary, '<unk>')] == [1]*4
    assert coverage(tiny, lm.vocabulary) == {'agreement': 0, 'npi': 0}
    with pytest.raises(ValueError, match='a LanguageModel is not a function'): evaluate_suite(lm, tiny, None)

def test_wrong_ones_in_place_of_right_ones():
    model = load_language_model(first_tree_file())
    pairs = [o for items in small_suite(0, 5)['prep_anim'].values() for o in items]
    assert (score_pairs(model.log_prob, [o[::-1] for o in pairs]) > 0).tolist() == (score_pairs(model.log_prob, pairs) < 0).tolist()

# --- the paper's table

def test_paper():
    rows = paper_table()
    assert len({o for names in PAPER_ROWS.values() for o in names}) == 22  # all constructions of the suite
    assert list(dict.fromkeys(o['construction'] for o in rows)) == list(PAPER_ROWS) and len(rows) == 13 + 2*3 # thirteen rows of pairs, two of triples
    assert all(0 <= o[k] <= 1 for o in rows for k in ('on_lstm', 'lstm'))
    joined = as_paper_rows({'prep_anim': {'s': [('g', 'u')]}, 'prep_inanim': {'s': [('G', 'U')]}})
    assert joined == {'long: across PP': {'prep_anim, s': [('g', 'u')], 'prep_inanim, s': [('G', 'U')]}}
    with pytest.raises(ValueError, match='no row of the paper: wh_questions'): as_paper_rows({'wh_questions': {}})

# --- the small suite

def test_small_suite():
    suite = small_suite(seed=0, n=20)
    assert small_suite(seed=0, n=20) == suite != small_suite(seed=1, n=20)
    assert all(coverage(suite, {w for o in LEXICON.values() for w in o}).values())
    for name, cases in suite.items():
        for item in (o for items in cases.values() for o in items):
            rows = [o.split() for o in item]
            apart = [sum(x != y for x, y in zip(rows[0], o)) for o in rows[1:]]
            assert {len(o) for o in rows} == {len(rows[0])}                # all of one length
            assert apart == ([2, 1] if name == 'npi_across_anim' else [1]*(len(rows) - 1))    # as many words apart as meant
    with pytest.raises(ValueError, match='n=0'): small_suite(n=0)

def test_small_suite_by_the_grammar():
    "A second route that shares only the words: a sentence is grammatical exactly if the grammar gives it a probability above 0"
    for name, cases in small_suite(seed=0, n=20).items():
        possible = np.isfinite([log_prob([o.split() for o in item]) for items in cases.values() for item in items[:8]])
        assert possible[:, 0].all() and not possible[:, 1:].any(), name
    for o in evaluate_suite(log_prob, small_suite(seed=0, n=5), vocabulary=None):
        impossible = o['pairing'] == 'intrusive > ungrammatical'
        assert (o['accuracy'], o['ties']) == ((0, o['pairs']) if impossible else (1, 0))

def test_recorded_network():
    "What page 180 says of it: right wherever there is a right answer"
    model = load_language_model(first_tree_file())
    rows = evaluate_suite(model.log_prob, small_suite(seed=0, n=40), model.vocabulary)
    assert all(o['accuracy'] == 1 for o in rows if o['pairing'] != 'intrusive > ungrammatical')

def test_trigram():
    "The model that page 180 compares with: its probabilities sum to 1, but for what is lost on the start mark; the source is better"
    from nltk.lm import WittenBellInterpolated
    from nltk.lm.preprocessing import padded_everygram_pipeline
    corpus = as_corpus(train=3000, validation=0, test=300, seed=0, max_words=40)
    trigram = WittenBellInterpolated(3)
    trigram.fit(*padded_everygram_pipeline(3, corpus.train))
    assert sum(trigram.score(w, ('the', 'poets')) for w in trigram.vocab if w != '<s>') == pytest.approx(1, abs=.05)
    padded = [['<s>', '<s>', *o, '</s>'] for o in corpus.test]
    nats = [-math.log(trigram.score(o[k], o[k - 2:k])) for o in padded for k in range(2, len(o))]
    assert source_perplexity(corpus.test, max_words=40) < math.exp(sum(nats)/len(nats)) < 20
