"Page 520: kept weights by gate and level, one number a word, trees of every network of a search."
from functools import partial
import os
import pytest, torch
from lotterybook.beyond_vision.tickets_and_trees import (
    WordDistances, gold_and_others, kept_by_gate, share_kept, tree_parts, tree_scores, tree_settings)
from lotterybook.beyond_vision.tickets_in_language import language_parts
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.training import holding
from lotterybook.ordered_neurons.constituency import CONVENTIONS, corpus_f1
from lotterybook.ordered_neurons.parsing_choices import gold_trees
from lotterybook.ordered_neurons.small_grammar import as_corpus
from lotterybook.ordered_neurons.syntactic_distance import parse, tree_from_distances, word_gates
from lotterybook.ordered_neurons.text import Vocabulary
from lotterybook.ordered_neurons.word_model import LanguageModel
from lotterybook.pruning.masks import full_masks
from lotterybook.tickets.replicates import finished_runs, search, search_plan
from lotterybook.tickets.rounds import first_run

vocabulary = Vocabulary.of(as_corpus(600, 1, 1, max_words=20).train)
gold = gold_trees(12, max_words=12)

def a_model(encoder='on_lstm'):
    torch.manual_seed(0)
    return LanguageModel(vocabulary, encoder, 12, [20], chunk_size=2).eval()

# --- gates and levels

@pytest.mark.parametrize('encoder', ('on_lstm', 'lstm'))
def test_every_weight_is_counted_once(encoder):
    model = a_model(encoder)
    masks = {name: torch.rand(m.shape) < .3 for name, m in full_masks(model).items()}
    rows  = kept_by_gate(model, masks)
    assert sum(r['kept'] for r in rows) == sum(int(m.sum()) for m in masks.values())
    assert sum(r['weights'] for r in rows) == sum(m.numel() for m in masks.values())
    assert {r['layer'] for r in rows} == {1, 2} and {r['reads'] for r in rows} == {'input', 'memory'}
    assert len({r['gate'] for r in rows}) == (6 if encoder == 'on_lstm' else 4)

@pytest.mark.parametrize('gate, row', (('input', 0), ('forget', 20), ('content', 40), ('output', 60),
                                       ('master forget', 80), ('master input', 90)))
def test_rows_of_a_gate(gate, row):
    "A single kept weight in the first row of a gate is one of that gate and of level 1."
    model = a_model()
    masks = {name: torch.zeros_like(m) for name, m in full_masks(model).items()}
    masks['encoder.weight_hh_l0'][row, 3] = True
    (found,) = [r for r in kept_by_gate(model, masks) if r['kept']]
    assert found == dict(layer=1, gate=gate, level=1, reads='memory', kept=1,
                         weights=20*2 if row < 80 else 20)

def test_levels_of_a_gate():
    "Cells 6 and 7 are level 4; so is the fourth row of a master gate."
    model = a_model()
    masks = {name: torch.zeros_like(m) for name, m in full_masks(model).items()}
    masks['encoder.weight_ih_l0'][[6, 7, 83]] = True
    found = [r for r in kept_by_gate(model, masks) if r['kept']]
    assert [(r['gate'], r['level'], r['kept']) for r in found] == [('input', 4, 24), ('master forget', 4, 12)]

def test_the_gates_are_those_that_the_layer_computes():
    "Without the weights and biases of the rows called 'master forget' the gate is the same at every word."
    model = a_model()
    with torch.no_grad():
        for name in ('weight_ih_l1', 'weight_hh_l1', 'bias_ih_l1', 'bias_hh_l1'):
            getattr(model.encoder, name)[48:54] = 0  # layer 2: 12 cells in 6 levels
    gates = word_gates(model, ['the', 'dog', 'sleeps'] if 'dog' in vocabulary.ids else gold[0].leaves())
    assert gates.f_tilde.std(0).max() < 1e-6 < gates.i_tilde.std(0).max()

def test_the_lstm_gates():
    "Rows 'forget' of an LSTM are those that its distances read; the input of a layer is the other half."
    model, words = a_model('lstm'), gold[0].leaves()
    layer = model.encoder.layers[1]
    before = model.distances(words)[0][1]
    with torch.no_grad(): layer.weight_hh_l0.zero_()  # else all gates change through the memory
    alone = model.distances(words)[0][1]
    with torch.no_grad(): layer.weight_ih_l0[:12] += 1; layer.weight_ih_l0[24:] += 1  # all but the forget gate
    assert not alone.equal(before) and model.distances(words)[0][1].equal(alone)
    with torch.no_grad(): layer.weight_ih_l0[12:24] = 0
    assert model.distances(words)[0][1].std() < 1e-6
    masks = {name: torch.zeros_like(m) for name, m in full_masks(model).items()}
    masks['encoder.layers.1.weight_ih_l0'][12:24] = True
    assert share_kept(kept_by_gate(model, masks), 'layer', 'gate')[2, 'forget'] == 20/(20 + 12)

def test_share_kept():
    rows = [dict(gate='a', layer=1, kept=1, weights=4), dict(gate='a', layer=2, kept=3, weights=4),
            dict(gate='b', layer=1, kept=0, weights=2)]
    assert share_kept(rows, 'gate') == {('a',): .5, ('b',): 0} and share_kept(rows) == {(): .4}

def test_masks_of_something_else():
    model = a_model()
    with pytest.raises(ValueError, match='neither 0 nor 1|not bool'): kept_by_gate(model, dict(model.named_parameters()))
    with pytest.raises(ValueError, match='Linear has no layers'): kept_by_gate(torch.nn.Linear(2, 2), {'weight': torch.ones(2, 2) > 0})
    with pytest.raises(ValueError, match='no mask of a recurrent weight; there are embedding'):
        kept_by_gate(model, full_masks(model, include=['embedding'], exclude=['encoder.*']))

# --- one number a word

class Given:
    "Distances as in a table: layer 1 is the number of letters, layer 2 the place; the first word's as given."
    def __init__(self, first=7.): self.first = first
    def distances(self, words):
        d = torch.tensor([[float(len(o)) for o in words], [float(k) for k in range(len(words))]])
        d[:, 0] = self.first
        return d, torch.zeros(2, len(words))

def test_means_of_a_word():
    "Over two sentences without their first words; a word that was not met there gets the mean of all."
    rival = WordDistances(Given(), [['a', 'bb', 'c'], ['bb', 'bb', 'a']])
    forget, write = rival.distances(['bb', 'new', 'a', 'c'])
    assert forget[0].tolist() == pytest.approx([2, 6/4, 1, 1]) and forget[1].tolist() == pytest.approx([1, 6/4, 2, 2])
    assert write.shape == (2, 4)
    for empty in ([], [['a'], ['b']]):
        with pytest.raises(ValueError, match='no sentence of two words'): WordDistances(Given(), empty)

def test_the_first_distance_does_not_count():
    "No tree of the unbiased builder reads it; so two models that differ only there have one rival."
    words = [o.leaves() for o in gold]
    a, b = (WordDistances(Given(first), words) for first in (0., 99.))
    assert all(a.means[w].equal(b.means[w]) for w in a.means) and a.other.equal(b.other)
    assert parse(Given(0.), words, 1) == parse(Given(99.), words, 1)

def test_words_that_the_network_does_not_know():
    "They share one number, as they share one row of its embedding."
    class Knows(Given): vocabulary = Vocabulary(['<eos>', '<unk>', 'a', 'bb'])
    rival = WordDistances(Knows(), [['a', 'bb', 'zebra', 'ox']])
    assert set(rival.means) == {'bb', '<unk>'}
    forget, _ = rival.distances(['yak', 'zebra', 'bb'])
    assert forget[0].tolist() == [3.5, 3.5, 2]

def test_the_rival_of_a_network():
    "Equal words have equal distances, and its tree is that of those numbers."
    model, words = a_model(), [o.leaves() for o in gold]
    rival = WordDistances(model, words)
    numbers = {}
    for sentence in words:
        for word, d in zip(sentence, rival.distances(sentence)[0][1].tolist()):
            assert numbers.setdefault(word, d) == d
    assert parse(rival, words[:1])[0] == tree_from_distances([numbers[w] for w in words[0]], words[0], 'unbiased')

# --- scores and searches

def test_tree_scores():
    model, words = a_model(), [o.leaves() for o in gold]
    others = as_corpus(1, 20, 1, max_words=20).validation
    scores = tree_scores(model, gold, others)
    for name in CONVENTIONS:
        assert scores[f'f1_{name}'] == corpus_f1(parse(model, words, 1, 'forget', 'unbiased'), gold, name)
    assert scores['f1_words'] == corpus_f1(parse(WordDistances(model, others), words, 1), gold)
    assert len(scores['parsers']) == 2*2*2*len(CONVENTIONS)
    with pytest.raises(ValueError, match='layer=3'): tree_scores(model, gold, others, layer=3)

SMALL = dict(embedding=12, hidden=12, chunk_size=2, batch_size=6, length=9, steps=10, eval_every=5, sentences=1000,
             rounds=1, trees=6)

@pytest.mark.parametrize('encoder', ('on_lstm', 'lstm'))
def test_a_search_with_trees(tmp_path, encoder):
    settings = tree_settings(encoder, **SMALL)
    plan = search_plan(1, [0], ['ticket', 'random'], [1])
    do = partial(search, settings, plan, tmp_path, parts=tree_parts, workers=1, progress=False)
    rows = do()
    assert do() == rows and all(0 <= r['f1_kim'] <= 1 and 0 <= r['f1_words'] <= 1 for r in rows)
    assert len(finished_runs(tmp_path, plan)[0]['parsers']) == 40

def test_the_trees_are_those_of_the_best_weights(monkeypatch):
    "Not of the last ones, which stay in the network; and of layer 2, also if there are three."
    settings = tree_settings(**(SMALL | dict(layers=3)))
    real = language_parts({k: v for k, v in settings.items() if k != 'trees'})
    def train(run):
        run.extra['best'] = dict(weights=snapshot(run.net))
        with torch.no_grad():
            for p in run.net.parameters(): p.uniform_(-2, 2)
        return {}
    monkeypatch.setattr('lotterybook.beyond_vision.tickets_and_trees.language_parts', lambda s: (real[0], train, real[2]))
    make_run, train_and_parse, _ = tree_parts(settings)
    run = first_run(make_run, 0)
    first, judged = snapshot(run.net), gold_and_others('small_grammar', 6)
    outcome = train_and_parse(run)
    assert outcome['parsers'] != tree_scores(run.net, *judged)['parsers']
    with holding(run.net, first): best = tree_scores(run.net, *judged)
    assert outcome == best and len(best['parsers']) == 3*2*2*5

def test_other_sentences_are_others():
    gold, others = gold_and_others('small_grammar', 200)
    judged = {tuple(o.leaves()) for o in gold}
    assert len(gold) == 200 and len(others) == 500
    assert sum(tuple(o) in judged for o in others) < 20  # short sentences recur
    assert not {id(o) for o in gold_and_others('small_grammar', 200)[0]} ^ {id(o) for o in gold}

def test_the_treebank(tmp_path):
    nltk_data = os.environ.get('LOTTERYBOOK_DATA')
    if not nltk_data: pytest.skip('needs LOTTERYBOOK_DATA')
    gold, others = gold_and_others('ptb', 1000)
    assert len(gold) == 1000 and len(others) == 2000 and gold[0].leaves() != others[0]
    with pytest.raises(ValueError, match='trees=3900: there are 3914'): gold_and_others('ptb', 3900)

def test_wrong_settings():
    for wrong, says in ((dict(encoder='transformer'), 'has no distances'), (dict(trees=1), 'trees'), (dict(steps=0), 'steps'),
                        (dict(data='brown'), 'brown')):
        with pytest.raises(ValueError, match=says): tree_settings(**wrong)
