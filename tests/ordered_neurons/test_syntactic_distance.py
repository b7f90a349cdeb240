"Gates of a model's layers, trees that are compared, and what the pictures hold."
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt, pytest, torch
from nltk import Tree
from lotterybook.foundations.plots import OKABE_ITO
from lotterybook.ordered_neurons.constituency import spans
from lotterybook.ordered_neurons.parsing_choices import baseline_choices, parsing_choices
from lotterybook.ordered_neurons.small_grammar import generate, unlabelled
from lotterybook.ordered_neurons.syntactic_distance import (draw_boxes, draw_gates, draw_tree, forget_distance, input_distance, parse, read_distances,
                                                            tree_from_distances, word_gates)
from lotterybook.ordered_neurons.text import Vocabulary
from lotterybook.ordered_neurons.word_model import LanguageModel

pytestmark = pytest.mark.filterwarnings('ignore:.*can never be written') # chunks are large here

vocabulary, words = Vocabulary('<eos> the cat sees a dog'.split()), 'the cat sees a dog the'.split()

def model(encoder='on_lstm', **options):
    torch.manual_seed(0)
    made = LanguageModel(vocabulary, encoder, embedding=6, hidden=[8, 4], chunk_size=2, **options)
    for p in made.parameters(): p.data.normal_()                           # far from even gates
    return made

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

# --- pictures

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
