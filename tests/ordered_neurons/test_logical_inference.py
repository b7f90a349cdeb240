"The classifier by a second route with many encoders, an interrupted training, the floor, Wilson's interval; refused input."
from types import SimpleNamespace
import pytest, torch
from torch import nn
from torch.nn import functional as F
from lotterybook.ordered_neurons.formula_batches import encode_pairs, train_validation, vocabulary
from lotterybook.ordered_neurons.logical_inference import PairClassifier, accuracy_by_operators, correct, train_classifier, wilson
from lotterybook.ordered_neurons.on_lstm import ONLSTM
from lotterybook.ordered_neurons.propositional_logic import RELATIONS, generate_pairs, split_pairs
from lotterybook.ordered_neurons.tree_lstm import TreeLSTM

@pytest.fixture(scope='module')
def data():
    "Pairs of up to two operators, every twentieth of them, and tests of up to six."
    split = split_pairs(generate_pairs(12_000, max_operators=6))
    pairs, held = train_validation(split.train, 2)
    words = vocabulary(pairs)
    train = encode_pairs(pairs, words)
    rows = torch.arange(0, len(train.labels), 20)
    return SimpleNamespace(words=words, train=train, rows=rows, validation=encode_pairs(held, words),
                           few=train._replace(sides=train.sides[rows], labels=train.labels[rows]),
                           test={k: encode_pairs(o, words) for k, o in split.test.items() if k})

# --- the classifier

def one_by_one(model, some):
    "Each pair alone, one formula after the other: no padding, no sharing"
    def h(i): return model.encoder(model.embedding(some.tokens[i, :some.lengths[i]])[:, None])[1][0].flatten()
    h1, h2 = (torch.stack([h(i) for i in some.sides[:, side]]) for side in (0, 1))
    return model.answer(torch.cat([h1, h2, h1*h2, (h1 - h2).abs()], 1))

@pytest.mark.parametrize('both', [False, True])
def test_logits(data, both):
    model = PairClassifier(len(data.words), nn.LSTM(5, 8, bidirectional=both))
    torch.testing.assert_close(model(data.train, data.rows), one_by_one(model, data.few), atol=1e-5, rtol=0) # float32, sums in another order
    torch.testing.assert_close(model(data.few), model(data.train, data.rows), atol=1e-5, rtol=0)

def alone(model, some, i):
    "The encoder's output for one formula: the last one, and that of the other direction at the first token"
    output = model.encoder(model.embedding(some.tokens[i, :some.lengths[i]])[:, None])[0][:, 0]
    half = output.shape[1]//2
    return torch.cat([output[-1, :half], output[0, half:]]) if model.both_ways else output[-1]

@pytest.mark.parametrize('encoder, D', [
    (nn.LSTM(5, 8, num_layers=2), 8), (nn.GRU(5, 8), 8), (nn.GRU(5, 8, num_layers=2, bidirectional=True), 16),
    (ONLSTM(5, [12, 6], chunk_size=1, live_top=True), 6), (ONLSTM(5, [12, 6], chunk_size=1, live_top=True, bidirectional=True), 12)])
def test_encoders(data, encoder, D):
    model, few = PairClassifier(len(data.words), encoder), data.few
    assert model(few).shape == (len(few.labels), 7) and model.answer[1].in_features == 4*D
    i = few.sides[:3, 1]
    torch.testing.assert_close(model.encode(few.tokens[i], few.lengths[i]), torch.stack([alone(model, few, k) for k in i]), atol=1e-6, rtol=0)

def test_projection(): assert PairClassifier(9, nn.LSTM(5, 8, proj_size=3, bidirectional=True)).answer[1].in_features == 4*6

def test_padding_is_never_learned(data):
    model = PairClassifier(len(data.words), nn.LSTM(5, 8))
    model(data.train, data.rows).sum().backward()
    assert not model.embedding.weight.grad[0].any()

@pytest.mark.parametrize('ask, why', [
    (lambda o: PairClassifier(9, nn.LSTM(5, 8)).encode(o.few.tokens[:3], o.few.lengths[:3]*0), 'lengths hold 0; a formula has at least one token'),
    (lambda o: PairClassifier(9, nn.Identity(), input_size=5), 'pass output_size'),
    (lambda o: PairClassifier(9, nn.LSTM(5, 8), brackets=(1, 2)), 'a TreeLSTM needs'),
    (lambda o: PairClassifier(9, TreeLSTM(5, 8)), 'a TreeLSTM needs'),
    (lambda o: PairClassifier(9, nn.LSTM(5, 8, batch_first=True)), 'batch_first=False')])
def test_no_classifier(data, ask, why):
    with pytest.raises(ValueError, match=why): ask(data)

# --- training

def tiny(data, seed=0):
    "A small classifier with dropout; the same weights for the same seed"
    torch.manual_seed(seed)
    return PairClassifier(len(data.words), nn.LSTM(8, 12), dropout=.1)

def interrupted(model, steps=5):
    "The same classifier, whose training is interrupted after so many steps"
    seen = []
    def stop(net, batch):
        seen.append(net.training)
        if sum(seen) > steps: raise KeyboardInterrupt
    model.register_forward_pre_hook(stop)
    return model

@pytest.fixture
def options(data): return dict(train=data.few, validation=data.validation, epochs=4, batch_size=32)

def test_resumes_with_the_same_bits(data, options, tmp_path):
    steps, file = -(-len(data.few.labels)//32), tmp_path/'run.pt'
    assert 5//steps >= 1                                                   # at least one whole epoch before the interruption
    whole, resumed = tiny(data), tiny(data)
    curve = train_classifier(whole, **options)
    with pytest.raises(KeyboardInterrupt): train_classifier(interrupted(tiny(data)), **options, checkpoint=file)
    assert len(torch.load(file)['run']['rows']) == 5//steps                # what was finished is kept
    assert train_classifier(resumed, **options, checkpoint=file) == curve
    for a, b in zip(whole.parameters(), resumed.parameters()): assert a.equal(b)
    with pytest.raises(ValueError, match='weights was'): train_classifier(tiny(data, 1), **options, checkpoint=file)
    with pytest.raises(ValueError, match='data was'): train_classifier(tiny(data), **options | dict(validation=data.few), checkpoint=file)
    assert [o['epoch'] for o in curve] == [1, 2, 3, 4] and curve[-1]['loss'] < curve[0]['loss']

@pytest.mark.parametrize('wrong, why', [(dict(epochs=0), 'epochs=0'), (dict(epochs=1.5), 'epochs=1.5'), (dict(batch_size=0), 'batch_size=0'),
                                        (dict(clip=-1.), 'clip=-1.0')])
def test_no_training(data, options, wrong, why):
    with pytest.raises(ValueError, match=why): train_classifier(tiny(data), **options | wrong)

def test_no_pairs(data, options):
    none = data.few._replace(sides=data.few.sides[:0], labels=data.few.labels[:0])
    for name in ('train', 'validation'):
        with pytest.raises(ValueError, match=f'{name} has no pairs'): train_classifier(tiny(data), **options | {name: none})
    with pytest.raises(ValueError, match='data has no pairs'): correct(tiny(data), none)

def test_a_loss_that_is_not_finite(data, options):
    with pytest.raises(FloatingPointError, match='the loss of step 2 is nan'):
        train_classifier(tiny(data), **options, lr=lambda step: float('nan') if step else 1e-3)

def test_what_can_be_memorized_is(data):
    torch.manual_seed(0)
    one = data.train._replace(sides=data.train.sides[:64], labels=data.train.labels[:64])
    model = PairClassifier(len(data.words), nn.LSTM(16, 32))
    train_classifier(model, one, one, epochs=60, batch_size=16, lr=1e-2)
    assert correct(model, one).all()

# --- judging

def test_wilson_by_hand():
    assert wilson(5, 10) == pytest.approx((.2366, .7634), abs=1e-4)        # 0.5 ± 1.96 √(2.5 + 0.96)/13.84
    low, high = wilson(0, 10)
    assert (low, high) == pytest.approx((0, 1.96**2/(10 + 1.96**2)))
    assert wilson(10, 10) == pytest.approx((1 - high, 1))                  # all right: its mirror image

def covered(n, p):
    "The probability of an interval that contains `p`, over the binomial itself"
    chances = torch.distributions.Binomial(n, torch.tensor(p, dtype=torch.float64)).log_prob(torch.arange(n + 1.).double()).exp()
    return sum(c.item() for right, c in enumerate(chances) if wilson(right, n)[0] <= p <= wilson(right, n)[1])

def test_wilson_covers():
    for n, p in ((20, .3), (200, .9)): assert .93 < covered(n, p) < .98
    assert covered(20, .0088) == pytest.approx(.838, abs=1e-3)             # very near 0 it covers less: one success is already too many

@pytest.mark.parametrize('ask, why', [((3, 2), '3 right of 2 is not a share'), ((1, 2, 0), 'z=0 must be a finite number above 0')])
def test_no_share(ask, why):
    with pytest.raises(ValueError, match=why): wilson(*ask)

class Always(nn.Module):
    "Answers `#` to all"
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(F.one_hot(torch.tensor(RELATIONS.index('#')), 7).float())
    def forward(self, data, rows): return self.bias.expand(len(rows), 7)

def test_floor(data):
    for row in accuracy_by_operators(Always(), data.test): assert row['accuracy'] == row['majority']
