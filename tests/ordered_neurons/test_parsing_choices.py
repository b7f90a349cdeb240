"All choices of one network by a second route, ways of choosing by hand and in made-up worlds, one small run."
import math, warnings
import pytest, torch
from lotterybook.foundations.randomness import rng
from lotterybook.ordered_neurons.constituency import CONVENTIONS, baseline_tree, corpus_f1
from lotterybook.ordered_neurons.language_model import NotLearned, fit_lm
from lotterybook.ordered_neurons.parsing_choices import (baseline_choices, choices_run, expected_best, first_network, gold_trees, parsing_choices,
                                                         ways_of_choosing)
from lotterybook.ordered_neurons.small_grammar import as_corpus, generate
from lotterybook.ordered_neurons.syntactic_distance import parse

# --- the best of k

def test_expected_best():
    assert [expected_best(k) for k in (1, 2, 3)] == pytest.approx([0, 1/math.pi**.5, 1.5/math.pi**.5], abs=1e-9) # by hand; three: a known integral
    samples = torch.randn(40_000, 8, generator=rng(0, 'best of eight')).max(1).values
    assert abs(samples.mean() - expected_best(8)) < 4*samples.std()/200    # four standard errors
    assert sorted(map(expected_best, range(1, 60))) == list(map(expected_best, range(1, 60)))                    # more choices, a better best
    with pytest.raises(ValueError, match='k=0'): expected_best(0)

# --- all choices

class Guess:
    "Random distances, the same for the same words; counts its readings."
    def __init__(self, seed, layers=2): self.seed, self.layers, self.readings = seed, layers, 0
    def distances(self, words):
        self.readings += 1
        return tuple(torch.rand(2, self.layers, len(words), generator=rng(self.seed, 'guess', ' '.join(words))))

gold = generate(40, seed=0, max_words=15)

def test_every_choice():
    guess = Guess(0)
    rows = parsing_choices(guess, gold)
    assert [len(rows), guess.readings] == [2*2*2*5, 40]                    # every choice once; each sentence is read once
    for o in rows:                                                         # second route: parse and score
        found = parse(guess, [t.leaves() for t in gold], o['layer'] - 1, o['gate'], o['builder'])
        assert o['f1'] == corpus_f1(found, gold, o['convention'])
        assert [o['odd'], o['even']] == [corpus_f1(found[k::2], gold[k::2], o['convention']) for k in (0, 1)]
        if CONVENTIONS[o['convention']].per_sentence and o['convention'] != 'kim':            # which leaves out short sentences, unevenly
            assert (o['odd'] + o['even'])/2 == pytest.approx(o['f1'])
    assert len(parsing_choices(Guess(0, layers=3), gold)) == 3*2*2*5

def test_baselines():
    scores = {(o['model'], o['builder'], o['convention']): o['f1'] for o in baseline_choices(gold)}
    assert scores['right', 'none', 'kim'] == corpus_f1([baseline_tree(t.leaves(), 'right') for t in gold], gold, 'kim')
    assert len(scores) == (3 + 2)*5
    assert baseline_choices(gold, 1) != baseline_choices(gold, 0) == baseline_choices(gold, 0)

@pytest.mark.parametrize('ask, why', [
    (lambda: baseline_choices(gold[:1]), '1 gold trees cannot be cut'), (lambda: parsing_choices(Guess(0), gold[:1]), '1 gold trees cannot be cut'),
    (lambda: parsing_choices(None, gold), r'has no method distances\(words\)')])
def test_no_choices(ask, why):
    with pytest.raises(ValueError, match=why): ask()

# --- ways of choosing

def row(seed, layer, odd, even): return dict(seed=seed, layer=layer, odd=odd, even=even, f1=(odd + even)/2)
three = [row(0, 1, .3, .5), row(0, 2, .4, .2), row(1, 1, .1, .1), row(1, 2, .8, .6), row(2, 1, .5, .5), row(2, 2, .4, .4)]

def test_ways_by_hand():
    reports = {(o['seed'], o['way']): o for o in ways_of_choosing(three, ('layer',), choosing=(1, 2))}
    assert [reports[0, w]['f1'] for w in ('layer 1', 'layer 2', 'mean', 'same trees')] == pytest.approx([.4, .3, .35, .4])
    assert reports[0, 'other trees']['f1'] == pytest.approx((.2 + .3)/2)   # odd prefers layer 2, with .2 on even; even prefers layer 1, with .3 on odd
    assert reports[0, 'other seeds'] == dict(reports[0, 'layer 2'], way='other seeds')        # seeds 1 and 2: .3 against .55
    assert (1, 'other seeds') not in reports and (2, 'other seeds') not in reports            # what chose is not judged
    assert all(reports[s, 'same trees']['f1'] >= reports[s, w]['f1'] for s in range(3) for w in ('layer 1', 'layer 2', 'mean'))
    assert [o['way'] for o in ways_of_choosing(three[:2], ('layer',), ())] == ['layer 1', 'layer 2', 'mean', 'same trees', 'other trees']

@pytest.mark.parametrize('rows, by, choosing, why', [
    (three, ('layer',), (3,), r'must be some of the seeds, not all: \[0, 1, 2\]'), (three, ('layer',), (0, 1, 2), r'must be some of the seeds, not all: \[0, 1, 2\]'),
    (three, 'layer', (0,), "by='layer' must be a tuple of columns"), (three, ('gate',), (0,), r"by=\('gate',\) must be a tuple of columns"),
    (three + [row(2, 3, math.nan, .5) | dict(f1=.5)], ('layer',), (0,), 'seed 2: odd is nan'), (three + three[:1], ('layer',), (0,), 'has two rows'),
    (three[:-1], ('layer',), (0,), 'the same choices')])
def test_no_ways(rows, by, choosing, why):
    with pytest.raises(ValueError, match=why): ways_of_choosing(rows, by, choosing)

def world(worth, networks=400, sigma=.05, noise=.005):
    "Scores of made-up networks: what a choice is worth, the luck of a network, the luck of a half."
    g = rng(1, 'made-up networks')
    e, halves = sigma*torch.randn(networks, len(worth), generator=g), noise*torch.randn(2, networks, len(worth), generator=g)
    odd, even = (.3 + torch.tensor(worth) + e + o for o in halves)
    return [row(s, c, odd[s, c].item(), even[s, c].item()) for s in range(networks) for c in range(len(worth))]

def means(rows):
    "Mean of each way over the networks that did not choose."
    reports = [o for o in ways_of_choosing(rows, ('layer',), range(200)) if o['seed'] >= 200]
    return {w: sum(o['f1'] for o in reports if o['way'] == w)/sum(o['way'] == w for o in reports) for w in ('mean', 'same trees', 'other trees', 'other seeds')}

def test_ways_in_made_up_worlds():
    none, one = means(world([0.]*8)), means(world([.1] + [0.]*7))
    # halves do not protect from the luck of the network, other networks do, and the best still flatters
    assert [none['same trees'] - none['mean'], none['other trees'] - none['mean']] == pytest.approx([.05*expected_best(8)]*2, abs=.005)
    assert [none['other seeds'] - none['mean'], one['other seeds'] - one['mean']] == pytest.approx([0, .1*7/8], abs=.01)
    assert none['same trees'] > .36 and one['same trees'] - one['other seeds'] > .005

# --- one run

tiny = dict(mirrored=False, seed=1, sentences=600, trees=8, max_words=20, embedding=10, hidden=[10], chunk_size=1, epochs=1, batch_size=5,
            dropout_input=0., dropout_layers=0., weight_dropout=0., dropout_output=0.)

def test_run():
    done = choices_run(dict(tiny, encoder='lstm'))
    assert done == choices_run(dict(tiny, encoder='lstm')) | dict(seconds=done['seconds'])    # the same bits again
    assert [len(done['rows']), {o['model'] for o in done['rows']}, len(done['epochs'])] == [80, {'lstm', 'untrained lstm'}, 1]
    with pytest.raises(ValueError, match='the config lacks encoder, mirrored, seed'): choices_run({})
    with pytest.raises(ValueError, match='5 sentences of text leave out'): choices_run(dict(tiny, encoder='lstm', sentences=5))

def test_first_network():
    "It is where training begins: after steps of no length it is what has been trained"
    text = as_corpus(600, 500, 0, 1, max_words=20)
    still = dict({k: v for k, v in tiny.items() if k not in ('mirrored', 'sentences', 'trees', 'max_words')}, encoder='lstm')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotLearned)                        # on purpose
        barely = fit_lm(text._replace(test=text.validation), progress=False, **dict(still, learning_rate=1e-30, weight_decay=0.)).model
    for name, weight in first_network(text.train, **still).state_dict().items():
        torch.testing.assert_close(weight, barely.state_dict()[name], atol=1e-12, rtol=0)

def test_gold_trees():
    lines = {' '.join(o) for s in range(2) for o in as_corpus(300, 0, 0, s, max_words=40).train}
    assert not {' '.join(t.leaves()) for t in gold_trees(100)} & lines     # in no training text
    assert [t.leaves()[::-1] for t in gold_trees(5, mirrored=True)] == [t.leaves() for t in gold_trees(5)]
