"`fit_lm`: interrupted anywhere, averaged, refused, warned of."
import math, warnings
import pytest, torch
from lotterybook.ordered_neurons import language_model
from lotterybook.ordered_neurons.language_model import NotLearned, fit_lm, lm_run, mean_nats
from lotterybook.ordered_neurons.small_grammar import as_corpus
from lotterybook.ordered_neurons.text import frequency_nats, in_columns, stream
from lotterybook.ordered_neurons.word_model import load_language_model

pytestmark = pytest.mark.filterwarnings('ignore::lotterybook.ordered_neurons.language_model.NotLearned') # many trainings here are short

corpus = as_corpus(400, validation=100, test=100, max_words=40)
tiny = dict(embedding=20, hidden=[20], chunk_size=1, epochs=3, learning_rate=20., dropout_input=0., dropout_layers=.2, dropout_output=0.,
            weight_dropout=.2, ar=0., tar=0., length=35, batch_size=10)
fast = dict(tiny, epochs=5, learning_rate=150., patience=1) # too fast to settle: from epoch 4 on, weights are averaged

class Stopped(Exception): pass

def told(fit): return [{k: v for k, v in r.items() if k not in ('seconds', 'words')} for r in fit.rows], fit.test_nats

def fit(folder=None, **changes): return fit_lm(corpus, 'small', 0, folder, progress=False, **fast | changes)

@pytest.fixture(scope='module')
def through(): return fit()

def stopped_at(monkeypatch, k, folder):
    "A training that gives up at its k-th window"
    seen, window_loss = [], language_model.window_loss
    def window(*args):
        seen.append(args[0].training)
        if sum(seen) == k: raise Stopped
        return window_loss(*args)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(language_model, 'window_loss', window)
        fit(folder)

def test_interrupted_inside_epochs(monkeypatch, tmp_path, through):
    monkeypatch.setattr(language_model, 'SAVE_EVERY', 3)
    for k in (8, 57): stopped_at(monkeypatch, k, tmp_path) # in the first epoch, and in the last
    kept = torch.load(tmp_path/'state.pt', weights_only=True)['run']
    assert len(kept['rows']) == 4 and 0 < kept['step'] - kept['extra']['begin'] and 'average' in kept['extra']
    assert told(fit(tmp_path)) == told(through)

def test_after_epoch_sees_what_was_validated_and_has_no_effect(tmp_path, through):
    def looks(model, epoch):
        seen = mean_nats(model, in_columns(stream(corpus.validation, model.vocabulary), 10), 35)
        torch.rand(7); model.train()
        return dict(words=seen)
    before = torch.get_rng_state()
    slow = fit(tmp_path, after_epoch=looks)
    last = load_language_model(tmp_path/'epoch=5.safetensors')
    assert torch.get_rng_state().equal(before) and told(slow) == told(through)
    assert all(r['words'] == r['validation_nats'] for r in slow.rows)
    assert mean_nats(last, in_columns(stream(corpus.validation, last.vocabulary), 10), 35) == slow.rows[-1]['validation_nats']
    assert slow.rows[-1]['averaged'] and not slow.rows[0]['averaged']
    first = next(r['epoch'] for r in slow.rows if r['averaged'])
    assert slow.rows[first - 1]['validation_nats'] < slow.rows[first - 2]['validation_nats'] # and is better right away

@pytest.mark.parametrize('wrong, why', [
    (dict(preset='large'), "unknown preset 'large'; known are ptb_paper, small"), (dict(lr=1.), 'unknown setting lr; there are encoder'),
    (dict(epochs=0), 'epochs=0'), (dict(epochs=1.5), 'epochs=1.5'), (dict(ar=-5), 'ar=-5'), (dict(hidden=8), 'hidden=8'),
    *[(dict(learning_rate=o), f'learning_rate={o!r} must be a number above 0') for o in (math.nan, math.inf, None, True, '30', 0, -1.)]])
def test_wrong_settings(wrong, why):
    with pytest.raises(ValueError) as e: fit_lm(corpus, **wrong, progress=False)
    assert why in str(e.value)

def test_wrong_texts():
    def fails(why, **texts):
        with pytest.raises(ValueError) as e: fit_lm(corpus._replace(**texts), progress=False)
        assert why in str(e.value)
    with pytest.raises(ValueError, match='the test text has 4 tokens'): fit_lm(corpus._replace(test=[['a']]*2), min_count=2, progress=False)
    fails('the training text has 6 tokens; 20 columns need 40', train=[['a']]*3, validation=[['a']]*20, test=[['a']]*20)
    for part in ('validation', 'test'): fails(f'the {part} text has 0 tokens', **{part: []})
    fails("no word 'zebra'", validation=[['zebra']]*20)

def test_diverging():
    with pytest.raises(FloatingPointError, match='Try a smaller learning'): fit(learning_rate=1e30, clip=math.inf, epochs=1)

# --- worse than a guess

def warned(**changes):
    "What a training warns of."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        fit(**dict(tiny, patience=5) | changes)
    return [str(o.message) for o in caught if o.category is NotLearned]

def test_a_network_below_word_frequencies_is_not_warned_of(): assert not warned(epochs=6)

def test_a_network_above_word_frequencies():
    "Once, at the end, with both numbers"
    still, = warned(learning_rate=1e-9, weight_decay=0., epochs=2)
    frequency = frequency_nats(corpus.train, corpus.validation)
    assert f'that of word frequencies ({frequency:.2f})' in still and "preset 'tiny'" in still and 'There were' in still

def test_a_network_above_equally_likely_words(monkeypatch):
    monkeypatch.setattr(language_model, 'mean_nats', lambda *args: 9.)
    worse, = warned(epochs=1)
    assert 'the best validation loss, 9.00 nats a word' in worse and 'and equally likely words (4.48)' in worse

def test_a_sweep_is_not_warned_of(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        lm_run(dict(tiny, data='small_grammar', folder=str(tmp_path), encoder='lstm', seed=0, sentences=400, epochs=1, learning_rate=1e-9))

def test_a_few_hundred_sentences():
    few = as_corpus(240, 30, 30, seed=5, max_words=20)
    assert fit_lm(few, 'tiny', progress=False).test_nats < frequency_nats(few.train, few.test) - .5

@pytest.mark.parametrize('preset', ['small', 'tiny'])
def test_epochs_of_one_window(preset):
    "A text of a few words: rows as of any other."
    few = corpus._replace(train=[list('abcde')]*60, validation=[list('abcde')]*10, test=[list('abcde')]*10)
    rows = fit_lm(few, preset, progress=False, epochs=2, batch_size=40, length=40, embedding=8, hidden=[8], chunk_size=1).rows
    assert [r['windows'] for r in rows] == [1, 1] and all(r['seconds'] > 0 for r in rows)
