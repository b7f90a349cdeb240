"`fit_lm`: against loops by hand, interrupted anywhere, averaged, refused, warned of."
import math, warnings
import pytest, torch
from fastcore.test import test_close as close
from lotterybook.foundations.randomness import kept_generators, rng
from lotterybook.foundations.running import Run
from lotterybook.ordered_neurons import language_model, recurrence
from lotterybook.ordered_neurons.language_model import (AverageWeights, NotLearned, averaged, begin_average, first_model, fit_lm, lm_corpus,
                                                        lm_run, lm_settings, mean_nats, stalled)
from lotterybook.ordered_neurons.small_grammar import as_corpus
from lotterybook.ordered_neurons.text import Vocabulary, frequency_nats, in_columns, stream, windows
from lotterybook.ordered_neurons.word_model import LanguageModel, load_language_model

pytestmark = pytest.mark.filterwarnings('ignore::lotterybook.ordered_neurons.language_model.NotLearned') # many trainings here are short

corpus = as_corpus(400, validation=100, test=100, max_words=40)
tiny = dict(embedding=20, hidden=[20], chunk_size=1, epochs=3, learning_rate=20., dropout_input=0., dropout_layers=.2, dropout_output=0.,
            weight_dropout=.2, ar=0., tar=0., length=35, batch_size=10)
fast = dict(tiny, epochs=5, learning_rate=200., patience=1) # too fast to settle: from epoch 4 on, weights are averaged

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
    (dict(preset='large'), "unknown preset 'large'; known are ptb_paper, small"), (dict(lr=1.), 'unknown setting lr; known are encoder'),
    (dict(epochs=0), 'epochs=0'), (dict(epochs=1.5), 'epochs=1.5'), (dict(ar=-5), 'ar=-5'), (dict(hidden=8), 'hidden=8'),
    *[(dict(learning_rate=o), f'learning_rate={o!r} must be a finite number above 0') for o in (math.nan, math.inf, None, True, '30', 0, -1.)]])
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

# --- second routes

def test_mean_loss_word_by_word():
    lines = [['a', 'b']]*20
    words = Vocabulary.of(lines)
    model = LanguageModel(words, embedding=20, hidden=[20], chunk_size=1)
    columns = in_columns(stream(lines, words), 1)
    state, total = None, 0.
    for a, b in zip(columns[:-1], columns[1:]):
        window = model.eval()(a[None], state)
        state = window.state
        total -= model.logits(window.raw)[0, 0].log_softmax(-1)[b].item()
    close(mean_nats(model, columns, length=7), total/59, eps=1e-5)

def test_running_mean_of_weights():
    run, seen = Run(torch.nn.Linear(3, 1)), []
    begin_average(run)
    for step in range(5):
        if step: AverageWeights().after_step(run)
        seen.append(run.net.weight.detach().clone())
        with torch.no_grad(): run.net.weight.add_(torch.randn(1, 3))
    close(run.extra['average']['weights']['weight'], torch.stack(seen).mean(0), eps=1e-6)
    with averaged(run): close(run.net.weight.detach(), torch.stack(seen).mean(0), eps=1e-6)

@pytest.mark.parametrize('history, patience, begins', [
    ([5., 4, 3, 2, 1], 2, False), ([5., 4, 3, 3.5, 3.2], 2, False), ([5., 4, 3, 3.5, 4.5], 2, True), ([5., 4, 4.5], 5, False)])
def test_when_the_mean_begins(history, patience, begins): assert stalled(history, patience) == begins

short = dict(tiny, dropout_layers=.2, weight_dropout=.2)

def test_an_epoch_without_an_optimizer():
    "A carried state, the rate in proportion to the window, clipping, weight decay, AR and TAR"
    s = lm_settings('small', **dict(short, epochs=1, encoder='lstm', ar=2., tar=1., dropout_layers=0., weight_dropout=0.))
    words = Vocabulary.of(corpus.train)
    columns, state = in_columns(stream(corpus.train, words), s['batch_size']), None
    with kept_generators(): model = first_model(words, s, 0)
    for start, steps in windows(len(columns), s['length'], rng(0, 'windows', 1)):
        window = model(columns[start:start + steps], state)
        logs   = model.logits(window.dropped).log_softmax(-1)
        nats   = -logs.gather(-1, columns[start + 1:start + steps + 1, :, None]).mean()
        loss   = nats + 2*window.dropped.square().mean() + (window.raw[1:] - window.raw[:-1]).square().mean()
        grads  = torch.autograd.grad(loss, list(model.parameters()))
        clip   = min(1., s['clip']/sum(g.square().sum() for g in grads).sqrt().item())
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads): p -= s['learning_rate']*steps/s['length']*(clip*g + s['weight_decay']*p)
        state = tuple(tuple(o.detach() for o in part) for part in window.state)
    fitted = fit_lm(corpus, 'small', 0, progress=False, **s)
    for name, value in model.state_dict().items(): close(value, fitted.model.state_dict()[name], eps=1e-5)

# --- folders

def test_interrupted_between_epochs_and_refused(tmp_path):
    def stop(model, epoch):
        if epoch == 2: raise Stopped
        return dict(words=len(model.vocabulary))
    def short_fit(seed=0, folder=None, text=corpus, **changes): return fit_lm(text, 'small', seed, folder, progress=False, **short | changes)
    with pytest.raises(Stopped): short_fit(folder=tmp_path, after_epoch=stop)
    again, through = short_fit(folder=tmp_path), short_fit()
    assert told(again) == told(through)                                    # the same bits
    assert again.rows[0]['words'] == len(again.model.vocabulary)           # rows of before are kept
    assert short_fit(folder=tmp_path).rows == again.rows                   # finished: nothing is done again
    last = load_language_model(tmp_path/'epoch=3.safetensors')
    close(mean_nats(last, in_columns(stream(corpus.validation, last.vocabulary), 10), 35), again.rows[-1]['validation_nats'], eps=1e-6)
    with pytest.raises(ValueError, match='seed was 0, is 1'): short_fit(1, tmp_path)
    with pytest.raises(ValueError, match='text was'): short_fit(folder=tmp_path, text=as_corpus(500, 100, 100, max_words=40))
    def loud(lines): return [[w.upper() for w in line] for line in lines]
    upper = corpus._replace(train=loud(corpus.train), validation=loud(corpus.validation), test=loud(corpus.test))
    with pytest.raises(ValueError, match='words was'): short_fit(folder=tmp_path, text=upper)
    assert told(short_fit(1)) != told(through)                             # another seed is another training

def test_another_cell_is_another_training(tmp_path, monkeypatch):
    "Its folder is refused without it, and with it read; a loop that gives the same numbers may go on."
    def backwards(*args, **options): return recurrence.loop(*args, **options | dict(reverse=True))
    monkeypatch.setitem(recurrence.ENGINES, 'backwards', backwards)
    def once(folder, engine): return fit_lm(corpus, 'small', 0, tmp_path/folder, progress=False, engine=engine, **tiny | dict(epochs=1))
    mine, usual = once('mine', 'backwards'), once('usual', 'auto')
    assert told(once('mine', 'backwards')) == told(mine) != told(usual) == told(once('usual', 'loop'))
    with pytest.raises(ValueError, match='engine'): once('mine', 'auto')
    with pytest.raises(ValueError, match='engine'): once('usual', 'backwards')

def test_a_run_of_a_sweep(tmp_path):
    settings = dict(encoder='lstm', embedding=20, hidden=[20], chunk_size=1, epochs=1, batch_size=5)
    done = lm_run(dict(settings, data='small_grammar', folder=str(tmp_path), seed=3, sentences=1000))
    same = fit_lm(lm_corpus('small_grammar', 3, 1000), seed=3, progress=False, **settings)
    assert done['rows'][0]['validation_nats'] == same.rows[0]['validation_nats']
    assert sorted(o.name for o in (tmp_path/'lstm, seed 3').glob('[!.]*')) == ['epoch=1.safetensors', 'state.pt']

@pytest.mark.parametrize('encoder', ['on_lstm', 'lstm'])
def test_it_learns(encoder):
    text = as_corpus(2000, 200, 200, max_words=40)
    rows = fit_lm(text, 'small', encoder=encoder, progress=False, **dict(tiny, batch_size=20, epochs=2, dropout_layers=0., weight_dropout=0.)).rows
    assert rows[-1]['validation_nats'] < rows[0]['validation_nats'] < math.log(100)
    assert all(math.isfinite(r['train_nats']) for r in rows)
