"The language model: its LSTM, its dropouts, padding, the loss, its file, refused input."
import math
import pytest, torch
from fastcore.test import test_close as close
from torch import nn
from torch.nn import functional as F
from lotterybook.ordered_neurons import recurrence
from lotterybook.ordered_neurons.lstm import lstm_distances
from lotterybook.ordered_neurons.reference import naive_on_lstm
from lotterybook.ordered_neurons.syntactic_distance import word_gates
from lotterybook.ordered_neurons.text import Vocabulary
from lotterybook.ordered_neurons.word_model import (LanguageModel, LSTMStack, load_language_model, save_language_model, window_loss,
                                                    word_dropout)

pytestmark = pytest.mark.filterwarnings('ignore:.*cells .* can never be written')
encoders = pytest.mark.parametrize('encoder', ['on_lstm', 'lstm'])
words = Vocabulary('<eos> the a cat dog sees chases .'.split())
small = dict(embedding=20, hidden=[24], chunk_size=1)
ids   = torch.tensor(words.encode('the cat sees a dog . <eos>'.split()))[:, None]
sentences = ['the cat sees a dog .'.split(), 'a dog .'.split(), [], 'the the the the the the the the'.split()]

def model_of(encoder, **changes):
    torch.manual_seed(0)
    return LanguageModel(words, encoder, **small, **changes)

# --- dropouts

def test_word_dropout():
    torch.manual_seed(0)
    E = word_dropout(torch.ones(10_000, 3), .1)
    assert (E == E[:, :1]).all()                                           # a word is there or not
    assert abs((E[:, 0] == 0).float().mean() - .1) < .015                  # 10,000 words: .003 is usual
    close(E.unique(), torch.tensor([0., 1/.9]))                            # what is left is scaled up
    assert torch.equal(word_dropout(E, .1, training=False), E)

@encoders
@pytest.mark.parametrize('name', ['dropout_words', 'dropout_input', 'dropout_layers', 'dropout_output', 'weight_dropout'])
def test_where_each_dropout_acts(encoder, name):
    noisy = model_of(encoder, **{name: .5})
    def twice(part): return getattr(noisy(ids), part), getattr(noisy(ids), part)
    assert {part: not torch.equal(*twice(part)) for part in ('raw', 'dropped')} == dict(raw=name != 'dropout_output', dropped=True)
    x = torch.randn(3, 20)
    assert torch.equal(noisy.logits(x), noisy.logits(x))                   # never on the output matrix
    noisy.eval()
    assert torch.equal(*twice('dropped'))

# --- the LSTM

def test_stack_of_lstms():
    torch.manual_seed(0)
    stack, usual = LSTMStack(5, [7, 7]), nn.LSTM(5, 7, 2)
    usual.load_state_dict({f'{k}_l{l}': getattr(layer, f'{k}_l0') for l, layer in enumerate(stack.layers)
                           for k in ('weight_ih', 'weight_hh', 'bias_ih', 'bias_hh')})
    x = torch.randn(6, 3, 5)
    close(stack(x)[0], usual(x)[0], eps=1e-6)
    first, state = stack(x[:2])
    close(torch.cat([first, stack(x[2:], state)[0]]), usual(x)[0], eps=1e-6)
    stack.weight_dropout, stack.weight_dropout_scaling = .45, 'released'   # evaluated with .55 U, and so are its distances
    for name, value in usual.named_parameters(): value.data.mul_(.55 if 'weight_hh' in name else 1.)
    close(stack.eval()(x)[0], usual(x)[0], eps=1e-6)
    for ours, theirs in zip(stack(x, return_distances=True)[2], lstm_distances(usual, x)): close(ours, theirs, eps=1e-6)

def test_weight_dropout_of_a_stack():
    torch.manual_seed(0)
    noisy, x = LSTMStack(5, [7, 4], weight_dropout=.5), torch.randn(6, 3, 5)
    assert (noisy(x)[0] != noisy(x)[0]).any() and torch.equal(noisy.eval()(x)[0], noisy(x)[0])

# --- the model

@encoders
def test_shapes_and_a_carried_state(encoder):
    model  = model_of(encoder)
    window = model(ids)
    assert (window.raw.shape, model.logits(window.raw).shape) == ((7, 1, 20), (7, 1, 8))
    assert [d.shape for d in model.distances('the cat sees'.split())] == [(2, 3)]*2
    first = model(ids[:3])
    close(torch.cat([first.raw, model(ids[3:], first.state).raw]), window.raw, eps=1e-6)

def test_distances_by_the_reference():
    sentence, model = 'the cat sees'.split(), model_of('on_lstm')
    read  = torch.tensor(words.encode(['<eos>', *sentence]))[:, None]      # a distance for each word but the first, `<eos>`
    naive = naive_on_lstm(model.encoder.to_reference(), F.embedding(read, model.embedding), 1)
    for ours, theirs in zip(model.distances(sentence), (naive.distance_forget, naive.distance_input)):
        close(ours, theirs[:, 1:, 0], eps=1e-6)

@encoders
def test_log_prob_word_by_word(encoder):
    "Sentences are padded to batches; here one is read at a time, a word at a time"
    model = model_of(encoder)
    for sentence, ours in zip(sentences, model.log_prob(sentences, batch_size=3)):
        state, last, total = None, 0, 0.
        for word in [*words.encode(sentence), 0]:
            window = model.eval()(torch.tensor([[last]]), state)
            total += math.log(model.logits(window.raw)[0, 0].softmax(-1)[word].item())
            state, last = window.state, word
        close(ours, total, eps=1e-4)

def test_log_prob_of_many_words():
    "So large a vocabulary that sentences are scored in several parts"
    torch.manual_seed(0)
    many = Vocabulary(['<eos>', *map(str, range(30_000))])
    wide = LanguageModel(many, 'lstm', embedding=4, hidden=[4])
    long = [[str(k)]*100 for k in range(8)]
    close(wide.log_prob(long), [wide.log_prob([o])[0] for o in long], eps=1e-3)

# --- the loss

def test_which_output_each_penalty_reads():
    model = model_of('on_lstm')
    total, nats, state = window_loss(model, ids[:-1], ids[1:], ar=2., tar=1.)
    raw = model(ids[:-1]).raw
    close(total - nats, 2*(raw**2).mean() + ((raw[1:] - raw[:-1])**2).mean(), eps=1e-6)
    assert not any(o.requires_grad for part in state for o in part)
    noisy = model_of('on_lstm', dropout_output=.5)
    torch.manual_seed(1); window = noisy(ids[:-1])
    torch.manual_seed(1); total, nats, _ = window_loss(noisy, ids[:-1], ids[1:], ar=2., tar=1.)
    close(nats, F.cross_entropy(noisy.logits(window.dropped)[:, 0], ids[1:, 0]), eps=1e-6)
    close(total - nats, 2*window.dropped.square().mean() + window.raw.diff(dim=0).square().mean(), eps=1e-6)

def test_loss_and_log_prob_agree():
    model, sentence = model_of('on_lstm'), 'the cat sees a dog .'.split()
    read = torch.tensor([0, *words.encode(sentence), 0])[:, None]
    close(7*window_loss(model, read[:-1], read[1:]).nats, -torch.tensor(model.log_prob([sentence])[0]), eps=1e-4)

# --- the file

@encoders
def test_saved_and_read(encoder, tmp_path):
    model  = model_of(encoder)
    before = torch.get_rng_state()
    again  = load_language_model(save_language_model(tmp_path/'model.safetensors', model))
    assert torch.equal(torch.get_rng_state(), before)                      # no weights are initialized
    assert again.log_prob(sentences) == model.log_prob(sentences) and again.vocabulary.words == words.words

def test_precision_is_kept(tmp_path):
    exact = load_language_model(save_language_model(tmp_path/'double.safetensors', model_of('lstm').double()))
    assert {o.dtype for o in exact.parameters()} == {torch.float64}

def test_a_read_model_is_not_its_file(tmp_path):
    again = load_language_model(save_language_model(tmp_path/'lstm.safetensors', model_of('lstm')))
    kept  = again.log_prob(sentences)
    with open(tmp_path/'lstm.safetensors', 'r+b') as f: f.truncate(100)
    assert again.log_prob(sentences) == kept

def test_the_file_keeps_another_cell(tmp_path, monkeypatch):
    "Chosen when it is made, or later; a reader without it is told. An engine with the same numbers is not kept: another machine may lack it."
    def backwards(*args, **options): return recurrence.loop(*args, **options | dict(reverse=True))
    monkeypatch.setitem(recurrence.ENGINES, 'backwards', backwards)
    one, other = model_of('on_lstm', engine='backwards'), model_of('on_lstm')
    usual = other.log_prob(sentences)
    other.encoder.engine = 'backwards'
    for model in (one, other):
        path = save_language_model(tmp_path/'model.safetensors', model)
        assert load_language_model(path).log_prob(sentences) == model.log_prob(sentences) != usual
    with pytest.raises(ValueError, match="engine='backwards' may be another cell"): word_gates(one, ['the', 'cat'])
    with monkeypatch.context() as patch:
        patch.delitem(recurrence.ENGINES, 'backwards')
        with pytest.raises(ValueError, match="unknown engine 'backwards'"): load_language_model(path)
    path = save_language_model(path, model_of('on_lstm', engine='loop'))
    assert load_language_model(path).encoder.engine == 'auto'

def test_another_file(tmp_path):
    (tmp_path/'other').write_bytes(b'not tensors')
    with pytest.raises(ValueError, match='not a safetensors file'): load_language_model(tmp_path/'other')

# --- refused

@pytest.mark.parametrize('ask, why', [
    (lambda: model_of('lstm').log_prob([['fish']]), "no word 'fish'"),
    (lambda: model_of('lstm').log_prob(['the cat']), "not the text 'the cat'"),
    (lambda: model_of('lstm').log_prob([['the']], batch_size=0), 'batch_size=0'),
    (lambda: model_of('on_lstm').distances('the cat'), "not the text 'the cat'"),
    (lambda: model_of('lstm').distances('the cat'), "not the text 'the cat'"),
    (lambda: LSTMStack(5, [7], weight_dropout_scaling='awd'), "unknown weight_dropout_scaling 'awd'"),
    (lambda: LanguageModel(words, 'gru'), "unknown encoder 'gru'"),
    (lambda: LanguageModel(words, 'lstm', engine='loop'), "engine='loop' is of an on_lstm"),
    (lambda: LanguageModel(words, engine='cudnn'), "unknown engine 'cudnn'"),
    (lambda: LanguageModel(Vocabulary(['a', 'b'])), 'the vocabulary has no <eos>'),
    (lambda: LanguageModel(words, dropout_input=1.5), 'dropout_input=1.5')])
def test_refused(ask, why):
    with pytest.raises(ValueError) as e: ask()
    assert why in str(e.value)
