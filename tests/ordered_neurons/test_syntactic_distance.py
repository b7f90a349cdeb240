"Distances, both builders, gates of a model's layers, trees that are compared, and what the figures hold."
from itertools import permutations
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt, pytest, torch
from nltk import Tree
from lotterybook.foundations.plots import OKABE_ITO
from lotterybook.foundations.randomness import rng
from lotterybook.foundations.running_sentence import first_tree_file, running_sentence
from lotterybook.ordered_neurons.constituency import spans
from lotterybook.ordered_neurons.master_gates import master_gates
from lotterybook.ordered_neurons.parsing_choices import baseline_choices, parsing_choices
from lotterybook.ordered_neurons.small_grammar import generate, unlabelled
from lotterybook.ordered_neurons.syntactic_distance import (BUILDERS, draw_boxes, draw_gates, draw_tree, forget_distance, input_distance, parse, reachable_trees,
                                                            read_distances, tree_from_distances, word_gates)
from lotterybook.ordered_neurons.text import Vocabulary
from lotterybook.ordered_neurons.word_model import LanguageModel, load_language_model

pytestmark = pytest.mark.filterwarnings('ignore:.*can never be written') # chunks are large here

vocabulary, words = Vocabulary('<eos> the cat sees a dog'.split()), 'the cat sees a dog the'.split()

def model(encoder='on_lstm', **options):
    torch.manual_seed(0)
    made = LanguageModel(vocabulary, encoder, embedding=6, hidden=[8, 4], chunk_size=2, **options)
    for p in made.parameters(): p.data.normal_()                           # far from even gates
    return made

# --- distances

def test_distance_is_the_mean_level():
    gate = torch.tensor([0., .5, 1., 1.])                                  # opens at level 2 or 3, evenly: (2 + 3)/2
    assert 4 + 1 - gate.sum() == 2.5 and forget_distance(gate) == (2.5 - 1)/4
    logits, levels = torch.randn(2, 7, 9, generator=rng(0, 'gates')), torch.arange(1., 10)
    for gate, distance, x in zip(master_gates(*logits), (forget_distance, input_distance), logits):
        torch.testing.assert_close(distance(gate), ((x.softmax(-1)*levels).sum(-1) - 1)/9, atol=1e-6, rtol=0)
    assert forget_distance(torch.ones(3, 9)).equal(torch.zeros(3))         # all is kept

# --- builders

five, numbers = 'the keeper very often sleeps'.split(), [.3, .2, .9, .1, .5]
builders = pytest.mark.parametrize('builder', BUILDERS)

def plain(node): return node if isinstance(node, str) else [plain(o) for o in node]

def by_definition(d, x, builder):
    "Nested lists, straight from the two equations."
    if len(x) == 1: return x[0]
    i = d.index(max(d[1:]), 1) if builder == 'unbiased' else d.index(max(d))
    if builder == 'unbiased': return [by_definition(d[:i], x[:i], builder), by_definition(d[i:], x[i:], builder)]
    right = x[i] if i == len(x) - 1 else [x[i], by_definition(d[i+1:], x[i+1:], builder)]
    return right if i == 0 else [by_definition(d[:i], x[:i], builder), right]

def test_builders_by_hand():
    assert str(tree_from_distances(numbers, five)) == '(X (X the keeper) (X (X very often) sleeps))'
    assert str(tree_from_distances(numbers, five, 'released')) == '(X (X the keeper) (X very (X often sleeps)))'

@builders
def test_builders_by_their_definition(builder):
    g = rng(0, 'random distances')
    for n in range(2, 30):
        line, d = [f'w{k}' for k in range(n)], torch.randint(n, (n,), generator=g).double()   # with ties
        tree = tree_from_distances(d, line, builder)
        assert plain(tree) == by_definition(d.tolist(), line, builder)
        assert tree.leaves() == line and all(len(node) == 2 for node in tree.subtrees())
        assert tree_from_distances(torch.exp(d/n) - 5, line, builder) == tree                 # any rising function
        if builder == 'unbiased': assert tree_from_distances([99., *d[1:]], line) == tree     # no cut before the first word

@builders
def test_short_sentences_and_ties(builder):
    assert str(tree_from_distances([.5], ['yes'], builder)) == '(X yes)'                      # one word: one leaf
    assert str(tree_from_distances([.5, .5], ['so', 'what'], builder)) == '(X so what)'
    assert plain(tree_from_distances([1.]*5, five, builder)) == ['the', ['keeper', ['very', ['often', 'sleeps']]]]

@builders
@pytest.mark.parametrize('distances, line, why', [
    ([.1]*4, five, '4 distances, but 5 words'), ([], [], 'an empty sentence has no tree'), ([.5]*10, 'the keeper', "not the text 'the keeper'"),
    (torch.zeros(5, 1), five, r'shape \(5, 1\); a tree needs one number a word'),
    (torch.tensor([0, 1, float('nan'), 1, 1]), five, "the distance of word 2, 'very', is NaN"),
    ([0.]*2000, ['w']*2000, '2000 words give a tree too deep')])
def test_no_tree(distances, line, why, builder):
    with pytest.raises(ValueError, match=why): tree_from_distances(distances, line, builder)

def test_unknown_builder():
    for ask in (lambda: tree_from_distances(numbers, five, 'right'), lambda: reachable_trees(5, 'right')):
        with pytest.raises(ValueError, match="unknown builder 'right'; known are unbiased, released"): ask()

# --- which trees can be reached

def all_trees(line):
    "Every binary tree over the words, as nested lists."
    if len(line) == 1: yield line[0]; return
    for i in range(1, len(line)):
        for left in all_trees(line[:i]):
            for right in all_trees(line[i:]): yield [left, right]

def heights(tree):
    "The height of the node that joins each word with the one before it; then of the tree. 0 before the first word."
    if isinstance(tree, str): return [0], 0
    (left, a), (right, b) = map(heights, tree)
    h = 1 + max(a, b)
    return [*left, h, *right[1:]], h

@pytest.mark.parametrize('n', range(1, 8))
def test_reachable_trees(n):
    line = [f'w{k}' for k in range(n)]
    every = list(all_trees(line))
    assert len(every) == reachable_trees(n)                                # Catalan
    if n > 1:
        for tree in every: assert plain(tree_from_distances(heights(tree)[0], line)) == tree  # all are reached
    for builder in BUILDERS:                                               # every order of distances: brute force
        assert len({str(tree_from_distances(o, line, builder)) for o in permutations(range(n))}) == reachable_trees(n, builder)

def test_counts_of_trees():
    assert [reachable_trees(5, o) for o in BUILDERS] == [14, 13]
    assert 0 < reachable_trees(400, 'released') < reachable_trees(400)     # long sentences, too
    with pytest.raises(ValueError, match='n=0'): reachable_trees(0)

# --- how far the builders lean

def mean_depths(n, builder):
    "Mean depth of each of n words, exactly, over random distances: the largest is equally likely to be anywhere."
    if n == 1: return [0.]
    cuts, total = range(builder == 'unbiased', n), [0.]*n
    for i in cuts:
        if builder == 'unbiased': depths = [1 + o for o in mean_depths(i, builder) + mean_depths(n - i, builder)]
        else:
            left, right = [1 + o for o in mean_depths(i, builder)] if i else [], mean_depths(n - i - 1, builder) if i < n - 1 else []
            down = bool(left) + bool(right)
            depths = [*left, down, *(down + o for o in right)]
        total = [t + o/len(cuts) for t, o in zip(total, depths)]
    return total

@builders
def test_lean(builder):
    "A second route: sample distances, build, measure; four standard errors"
    g, n, samples = rng(1, 'random distances'), 10, 1000
    def depths(tree): return [len(tree.leaf_treeposition(k)) for k in range(n)]
    seen = torch.tensor([depths(tree_from_distances(torch.rand(n, generator=g), ['w']*n, builder)) for _ in range(samples)]).double()
    exact = torch.tensor(mean_depths(n, builder)).double()
    assert ((seen.mean(0) - exact).abs() < 4*seen.std(0)/samples**.5).all()
    if builder == 'unbiased': torch.testing.assert_close(exact, exact.flip(0))               # no side is favoured
    else: assert (exact.flip(0)[:n//2] > exact[:n//2]).all() and exact[-1] > exact[0] + .5    # deeper than its mirror image

# --- parse

class Lengths:
    "Forget distance: letters, in layer 0, and their negative, in layer 1. Input distance: the place."
    def distances(self, words):
        letters = torch.tensor([float(len(o)) for o in words])
        return torch.stack([letters, -letters]), torch.arange(float(len(words))).expand(2, -1)

few = [five, ['yes'], 'a bee sees me'.split()]

def test_parse():
    assert [str(o) for o in parse(Lengths(), few[1:], layer=0)] == ['(X yes)', '(X (X a bee) (X sees me))']
    assert parse(Lengths(), few) == [tree_from_distances([-len(w) for w in o], o) for o in few]         # None: the second layer
    assert parse(Lengths(), few, layer=-2) == parse(Lengths(), few, layer=0)
    assert plain(parse(Lengths(), few, gate='input')[0]) == [[[['the', 'keeper'], 'very'], 'often'], 'sleeps'] # rising: left-branching
    assert parse(Lengths(), few, 0, 'forget', 'released')[0] == tree_from_distances([3, 6, 4, 5, 6], five, 'released')

class Wrong:
    "Returns, for distances, whatever it was given."
    def __init__(self, given): self.given = given
    def distances(self, words): return self.given

@pytest.mark.parametrize('ask, why', [
    *((lambda layer=layer: parse(Lengths(), few, layer=layer), f'layer={layer!r}, but the model has 2 layers') for layer in (2, -3, True, 1., '1')),
    (lambda: parse(Lengths(), few, gate='output'), "unknown gate 'output'"), (lambda: parse(Lengths(), [five, []]), 'sentence 1 is empty'),
    (lambda: parse(Lengths(), ['the cat sat']), r"not the text 'the cat sat'; use .split\(\)"),
    (lambda: parse(Lengths(), ['the', 'cat', 'sat']), "not the text 'the'"),                            # one sentence in place of a list of them
    (lambda: parse(Lengths(), [], builder='x'), "unknown builder 'x'"),
    (lambda: parse(torch.nn.Linear(1, 1), few), r'a Linear has no method distances\(words\)'),
    (lambda: parse(Wrong(torch.zeros(2, 5)), [five]), r'for 5 words; it gave shapes \[\(2, 5\)\]'),
    (lambda: parse(Wrong((torch.zeros(5), torch.zeros(5))), [five]), r'for 5 words; it gave shapes \[\(5,\), \(5,\)\]'),
    (lambda: parse(Wrong((torch.zeros(2, 4), torch.zeros(2, 4))), [five]), r'for 5 words; it gave shapes \[\(2, 4\), \(2, 4\)\]')])
def test_parse_refuses(ask, why):
    with pytest.raises(ValueError, match=why): ask()

def test_running_sentence():
    "What page 160 reads from the recorded network"
    model, recorded = load_language_model(first_tree_file()), running_sentence()
    found, gold = parse(model, [recorded.words], layer=1)[0], Tree.fromstring(recorded.tree)
    assert str(found).split() == '(X (X (X (X the woman) that) (X follows (X some bakers))) (X is young))'.split()
    assert [len(spans(found) & spans(gold)), len(spans(gold))] == [6, 7]
    apart = parse(model, [recorded.words], layer=1, builder='released')[0]
    assert apart[0] == 'the' and len(spans(apart) & spans(gold)) == 4

# --- gates

def test_gates_by_hand():
    "The first layer's gates at the first word, from the weights: <eos> is read before, from zeros"
    net = model()
    W, U = net.encoder.weight_ih_l0, net.encoder.weight_hh_l0
    b = net.encoder.bias_ih_l0 + net.encoder.bias_hh_l0
    i, f, c_hat, o, f_tilde, i_tilde = (W @ net.embedding[0] + b).split([8, 8, 8, 8, 4, 4])
    rising, falling = (g.softmax(0).cumsum(0).repeat_interleave(2) for g in (f_tilde, i_tilde))
    overlap = rising*(1 - falling)
    c = (i.sigmoid()*overlap + (1 - falling) - overlap)*c_hat.tanh()       # nothing is there to be kept
    h = o.sigmoid()*c.tanh()
    *_, f_tilde, i_tilde = (W @ net.embedding[1] + U @ h + b).split([8, 8, 8, 8, 4, 4])
    gates = word_gates(net, words, layer=0)
    assert gates.f_tilde.shape == gates.i_tilde.shape == (len(words), 4)
    torch.testing.assert_close(gates.f_tilde[0], f_tilde.softmax(0).cumsum(0))
    torch.testing.assert_close(gates.i_tilde[0], 1 - i_tilde.softmax(0).cumsum(0))

@pytest.mark.parametrize('options', [{}, dict(weight_dropout=.4, weight_dropout_scaling='released'), dict(dropout_input=.5, dropout_layers=.5, weight_dropout=.5)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_distances_are_means_of_gates(options, dtype):
    net = model(**options).to(dtype)
    forget, write = net.distances(words)
    for layer in range(3):
        gates = word_gates(net, words, layer)
        torch.testing.assert_close(forget_distance(gates.f_tilde), forget[layer], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(input_distance(gates.i_tilde), write[layer], rtol=1e-5, atol=1e-6)
    assert net.training and not gates.f_tilde.requires_grad
    assert word_gates(net, words).f_tilde.equal(word_gates(net, words, 1).f_tilde)        # as `parse`: the second
    assert word_gates(net, words, -1).f_tilde.equal(gates.f_tilde)

def test_no_gates():
    with pytest.raises(ValueError, match="a LSTMStack has no master gates; give a model with encoder='on_lstm'"): word_gates(model('lstm'), words)
    with pytest.raises(ValueError, match='layer=3, but the model has 3 layers'): word_gates(model(), words, 3)

# --- a text in place of words

class Letters:
    "A model that would read letters."
    def distances(self, words): return torch.zeros(2, 2, len(words)).unbind()

@pytest.mark.parametrize('ask', [lambda: word_gates(model(), 'the cat'), lambda: model().distances('the cat'), lambda: read_distances(Letters(), 'the cat'),
                                 lambda: parse(Letters(), 'the cat'), lambda: parse(Letters(), ['the cat']), lambda: tree_from_distances([0]*7, 'the cat')])
def test_a_text_is_no_sentence(ask):
    with pytest.raises(ValueError, match='a sentence is a list of words, not the text'): ask()

def test_a_tree_is_no_treebank():
    tree = generate(1, seed=0)[0]                                          # a tree of nltk is a list of its parts
    for ask in (lambda: parsing_choices(Letters(), tree), lambda: baseline_choices(tree)):
        with pytest.raises(ValueError, match='lists of trees are compared, not one tree'): ask()

# --- figures

@pytest.fixture
def ax():
    yield plt.figure().add_subplot()
    plt.close('all')

def texts(ax): return [(o.get_position()[0], o.get_text()) for o in ax.texts]

def bars(ax):
    "Spans of the marked phrases, by colour."
    marked = [o for o in ax.lines if o.get_linewidth() == 4]
    def span(o): return round(o.get_xdata()[0] + .3), round(o.get_xdata()[1] + .7)
    return {name: {span(o) for o in marked if o.get_color() == OKABE_ITO[name]} for name in ('blue', 'vermilion')}

def test_drawn_tree(ax):
    draw_tree(ax, Tree.fromstring('(S (X a b) (X c d e))'))
    assert texts(ax) == list(enumerate('abcde'))                           # word k at x = k
    assert [len(ax.lines), max(o.get_ydata().max() for o in ax.lines)] == [7, 2] # a line per part; the root is two steps up

def test_compared_trees(ax):
    for gold in generate(20, seed=1, max_words=15):
        found, whole = tree_from_distances(range(len(gold.leaves())), gold.leaves()), (0, len(gold.leaves()))
        for tree, other in ((found, gold), (gold, found), (gold, unlabelled(gold))):
            ax.clear()
            draw_tree(ax, tree, compare=other)
            assert texts(ax) == list(enumerate(gold.leaves()))
            assert bars(ax) == dict(blue=spans(tree) & spans(other) - {whole}, vermilion=spans(tree) - spans(other))

def test_trees_of_other_words(ax):
    with pytest.raises(ValueError, match="only trees of the same words can be compared, not 'a b' and 'a c'"):
        draw_tree(ax, Tree('X', ['a', 'b']), compare=Tree('X', ['a', 'c']))

def test_boxes_are_nested(ax):
    for tree in [*generate(20, seed=2, max_words=15), Tree.fromstring('(S (NP (NP a b)) c d)'), Tree('X', ['yes'])]:
        ax.clear()
        draw_boxes(ax, tree)
        assert texts(ax) == list(enumerate(tree.leaves()))
        boxes = {(round(o.x0 + .4), round(o.x1 + .6)): o for o in (patch.get_bbox() for patch in ax.patches)}
        assert len(boxes) == len(ax.patches) and boxes.keys() == spans(tree)       # a chain is one box
        for a, b in boxes:
            for c, d in boxes:
                outer, inner = boxes[a, b], boxes[c, d]
                if a <= c and d <= b and (a, b) != (c, d):
                    assert outer.x0 < inner.x0 and inner.x1 < outer.x1 and outer.y0 < inner.y0 and inner.y1 < outer.y1
                if b <= c: assert outer.x1 < inner.x0

def test_gates_drawn(ax):
    gates = word_gates(model(), words).f_tilde
    draw_gates(ax, words, gates, 'kept')
    assert [o.get_text() for o in ax.get_xticklabels()] == words
    image = ax.images[0]
    assert torch.equal(torch.tensor(image.get_array().tolist()), gates.T) and image.get_clim() == (0, 1)
    assert image.get_extent() == [-.5, 5.5, .5, gates.shape[1] + .5] and image.origin == 'lower' # the lowest rank at the bottom
    assert ax.figure.axes[1].get_ylabel() == 'kept'
    with pytest.raises(ValueError): draw_gates(ax, words[1:], gates)
