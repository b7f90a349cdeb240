"Page 500: batches of a text, training, the Transformer, and searches with controls."
from functools import partial
import pytest, torch
from sameness import same
from lotterybook.beyond_vision.tickets_in_language import (
    WordTransformer, language_parts, language_settings, text_batches, train_words, word_data)
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.fast_steps import FusedAdam
from lotterybook.foundations.randomness import random_stream
from lotterybook.foundations.running import Hook, Run
from lotterybook.foundations.training import evaluating
from lotterybook.ordered_neurons.language_model import mean_nats
from lotterybook.ordered_neurons.small_grammar import as_corpus
from lotterybook.ordered_neurons.text import Vocabulary, in_columns, stream
from lotterybook.ordered_neurons.word_model import LanguageModel, window_loss
from lotterybook.pruning.allocation import global_
from lotterybook.pruning.masks import full_masks, remaining
from lotterybook.pruning.schedules import pruner
from lotterybook.tickets.iterative import find_ticket
from lotterybook.tickets.replicates import search, search_plan
from lotterybook.tickets.rounds import first_run

text = as_corpus(600, 40, 40, 0, max_words=20)
data = word_data(text, batch_size=6)
SMALL = dict(embedding=12, hidden=10, heads=2, length=9, batch_size=6, chunk_size=2, steps=12, eval_every=5,
             sentences=1000)
NETS = dict(lstm=lambda: LanguageModel(data.vocabulary, 'lstm', 12, [10]),
            on_lstm=lambda: LanguageModel(data.vocabulary, 'on_lstm', 12, [10], chunk_size=2),
            transformer=lambda: WordTransformer(data.vocabulary, 12, 2, 20, length=9))

def a_run(kind='lstm', seed=0, include=(), lr=3e-3):
    torch.manual_seed(seed)
    net = NETS[kind]()
    return Run(net, FusedAdam(net.parameters(), lr=lr), full_masks(net, include=include), seed)

# --- batches

@pytest.mark.parametrize('length', (1, 7, 35))
def test_the_text_again_and_again(length):
    "Targets are the next words; a window begins where the last one ended, or at the first word."
    some, columns = text_batches(data.train, length), data.train
    at = 0
    for window in some(0, 3*len(columns)//length):
        n = len(window.ids)
        assert window.first == (at == 0) and n == min(length, len(columns) - 1 - at)
        assert window.ids.equal(columns[at:at + n]) and window.targets.equal(columns[at + 1:at + n + 1])
        at = 0 if at + n == len(columns) - 1 else at + n

@pytest.mark.parametrize('start, end', ((0, 1), (5, 40), (17, 18), (39, 40), (12, 12)))
def test_any_part_of_the_steps(start, end):
    whole = list(text_batches(data.train, 7)(0, 60))
    part  = list(text_batches(data.train, 7)(start, end))
    assert len(part) == end - start and all(a.ids.equal(b.ids) and a.first == b.first
                                            for a, b in zip(part, whole[start:]))

def test_a_text_shorter_than_a_window():
    rows = len(data.train)
    assert len(list(text_batches(data.train, rows - 1)(0, 2))) == 2
    with pytest.raises(ValueError, match=f'has {rows} words, and a window of length={rows} needs {rows + 1}'):
        text_batches(data.train, rows)

def test_the_vocabulary_of_a_ticket():
    other = as_corpus(600, 40, 40, 1, max_words=20)
    words = Vocabulary([*data.vocabulary, '<unk>'])
    found = word_data(other, 6, vocabulary=words)
    assert found.vocabulary is words and found.train.equal(in_columns(stream(other.train, words), 6))
    assert word_data(text, 6, min_count=10**6).vocabulary.words == ['<eos>', '<unk>']

# --- training

@pytest.mark.parametrize('kind', NETS)
def test_killed_and_resumed(tmp_path, kind):
    "The carried state, the position in the text and the best weights are read again."
    class Stop(Hook):
        writes = False
        def after_step(self, run):
            if run.step == 19: raise KeyboardInterrupt
    rate  = dict(lstm=.3, on_lstm=.3, transformer=.1)[kind]  # too fast: the best step is not the last
    train = partial(train_words, data=data, steps=24, length=9, eval_every=4, save_every=3)
    whole = a_run(kind, lr=rate)
    outcome = train(whole)
    assert outcome['stop_step'] < 18, 'the best weights would not come from the file'
    with pytest.raises(KeyboardInterrupt):
        train(a_run(kind, lr=rate), hooks=[Stop()], file=tmp_path/'state')
    again = a_run(kind, lr=rate)
    assert train(again, file=tmp_path/'state') == outcome and again.step == 24
    assert same(again.net.state_dict(), whole.net.state_dict())
    with pytest.raises(ValueError, match='length'):
        train_words(a_run(kind, lr=rate), data, 24, length=8, eval_every=4, file=tmp_path/'state')

def test_outcome():
    "The best step by validation, and the loss of the test text with the weights there and at the end."
    run = a_run(lr=.3)
    out = train_words(run, data, steps=20, length=9, eval_every=5)
    losses = {row['step']: row['validation_loss'] for row in out['history']}
    assert list(losses) == [5, 10, 15, 20] and losses[out['stop_step']] == min(losses.values()) == out['stop_loss']
    assert out['stop_step'] < 20 and out['stop_nats'] != out['end_nats']
    assert out['end_nats'] == mean_nats(run.net, data.test, 9)
    early = a_run(lr=.3)  # the same training, ended there
    train_words(early, data, steps=out['stop_step'], length=9, eval_every=5)
    assert out['stop_nats'] == mean_nats(early.net, data.test, 9)

def test_a_run_that_began_elsewhere():
    "It has taken steps, and no state is carried on: the first window begins without one."
    run = a_run()
    run.step = 3
    assert train_words(run, data, steps=6, length=9)['stop_step'] == 6

@pytest.mark.parametrize('wrong', (dict(clip=0), dict(clip=-1), dict(eval_every=0), dict(save_every=0), dict(steps=0)))
def test_a_wrong_size_is_named(wrong):
    (name, value), = wrong.items()
    with pytest.raises(ValueError, match=f'{name}={value}'): train_words(a_run(), data, **(dict(length=9) | wrong))

def test_nothing_left_to_train():
    run = a_run()
    train_words(run, data, steps=3, length=9)
    with pytest.raises(ValueError, match='steps=3, and 3 are taken'): train_words(run, data, steps=3, length=9)

def test_other_words():
    words = data.vocabulary.words
    other = data._replace(vocabulary=Vocabulary([words[1], words[0], *words[2:]]))
    with pytest.raises(ValueError, match=f"number 0 is '{words[0]}' in the network and '{words[1]}' there"):
        train_words(a_run(), other, steps=3)

def test_a_lost_word_has_the_same_logit_everywhere():
    run  = a_run(include=['embedding'])
    mask = run.masks['embedding'].clone()
    mask[5] = False
    run.set_masks(run.masks | dict(embedding=mask))
    train_words(run, data, steps=8, length=9)
    with torch.no_grad(), evaluating(run.net):
        logits = run.net.logits(run.net(data.test[:9]).raw)
    assert (logits[..., 5] == run.net.bias[5]).all() and logits[..., 4].std() > 0

# --- the Transformer

def test_no_word_sees_a_later_one():
    net = NETS['transformer']().eval()
    ids = data.train[:9]
    other = ids.clone()
    other[5:] = (other[5:] + 1) % len(data.vocabulary)
    a, b = net(ids).raw, net(other).raw
    torch.testing.assert_close(a[:5], b[:5])
    assert (a[5:] - b[5:]).abs().amax(-1).gt(1e-4).all()

def test_words_see_earlier_ones():
    net = NETS['transformer']().eval()
    ids = data.train[:9]
    other = ids.clone()
    other[0] = (other[0] + 1) % len(data.vocabulary)
    assert (net(ids).raw - net(other).raw)[1:].abs().amax(-1).gt(1e-6).all()

def test_what_is_pruned_of_a_transformer():
    net   = NETS['transformer']()
    masks = full_masks(net)
    for l in range(2):
        assert {f'layers.{l}.{name}' for name in ('self_attn.in_proj_weight', 'self_attn.out_proj.weight',
                                                  'linear1.weight', 'linear2.weight')} <= masks.keys()
    assert len(masks) == 8 and len(full_masks(net, include=['embedding'])) == 9
    assert not net.layers[0].linear1.weight.equal(net.layers[1].linear1.weight) # not copies of one layer

def test_a_window_longer_than_the_transformer():
    with pytest.raises(ValueError, match='window has 12 words, and the network was made with length=9'):
        train_words(a_run('transformer'), data, 3, length=12)

def test_a_transformer_forgets_between_windows():
    net = NETS['transformer']().eval()
    ids, targets = data.train[:9], data.train[1:10]
    first = window_loss(net, ids, targets, None)
    assert first.state == () and window_loss(net, ids, targets, first.state).nats == first.nats

def test_dropout_only_in_training():
    net = WordTransformer(data.vocabulary, 12, 2, 20, length=9, dropout=.5)
    ids = data.train[:9]
    assert not net(ids).dropped.equal(net(ids).dropped)
    net.eval()
    assert net(ids).dropped.equal(net(ids).dropped)
    with pytest.raises(ValueError, match='dropout'): WordTransformer(data.vocabulary, dropout=1.5)

# --- searches

@pytest.mark.parametrize('kind', NETS)
def test_find_ticket_unchanged(kind):
    "Any of the three; kept weights are as many as they should be, and pruned ones stay zero (the search watches)."
    found = find_ticket(lambda seed: a_run(kind, seed), partial(train_words, data=data, steps=6, length=9),
                        pruner(.5, allocation=global_), rounds=2, progress=False)
    assert [round(remaining(o.masks), 2) for o in found] == [1, .5, .25]
    assert all((found[2].theta_T[name][~m] == 0).all() for name, m in found[2].masks.items())

@pytest.mark.parametrize('changes', (dict(), dict(prune_embedding=True), dict(encoder='transformer'),
                                     dict(rewind_step=4)))
def test_a_search_with_controls(tmp_path, changes):
    settings = language_settings(**SMALL, rounds=2, **changes)
    plan = search_plan(2, [0], ['ticket', 'random', 'one_shot'], [2])
    rows = search(settings, plan, tmp_path, parts=language_parts, workers=1, progress=False)
    assert [r['condition'] for r in rows] == ['ticket', 'ticket', 'ticket', 'random', 'one_shot']
    assert all(0 < r['stop_nats'] < 10 for r in rows) and rows[2]['remaining'] == pytest.approx(.25, abs=.01)
    assert search(settings, plan, tmp_path, parts=language_parts, workers=1, progress=False) == rows
    with pytest.raises(ValueError, match='lr'):
        search(settings | dict(lr=.5), plan, tmp_path, parts=language_parts, workers=1, progress=False)

def test_the_embedding_is_in_or_out():
    for inside in (False, True):
        make_run, *_ = language_parts(language_settings(**SMALL, prune_embedding=inside))
        assert ('embedding' in make_run(0).masks) == inside

def test_rewound_to_step_k():
    "Every round begins with the dense network's weights after k steps, and takes the rest."
    make_run, train, prune = language_parts(language_settings(**SMALL, rewind_step=5))
    begun, taken = [], []
    def watched(run):
        begun.append((run.step, snapshot(run.net)))
        outcome = train(run)
        taken.append((run.step - begun[-1][0], len(outcome['history'])))
        return outcome
    found = find_ticket(make_run, watched, prune, rounds=1, progress=False)
    dense = first_run(language_parts(language_settings(**SMALL))[0], 0)
    theta_0 = snapshot(dense.net)
    with random_stream(0, 'first steps'): train(dense, 5)
    theta_k, masks = snapshot(dense.net), found[1].masks
    assert not same(theta_0, theta_k) and same(begun[0], (5, theta_k))
    assert same(begun[1], (5, {k: v*masks[k] if k in masks else v for k, v in theta_k.items()}))
    assert taken == [(7, 3), (7, 3)] and remaining(masks) < .51

@pytest.mark.parametrize('wrong, says', (
    (dict(encoder='gru'), 'gru'), (dict(hiden=3), 'unknown setting hiden'), (dict(steps=0), 'steps'),
    (dict(rate=1), 'rate'), (dict(rewind_step=200), 'leaves nothing'), (dict(data='mnist'), 'mnist'),
    (dict(lr=-1), 'lr=-1'), (dict(lr='a'), "lr='a'"), (dict(lr=float('inf')), 'lr=inf'), (dict(clip=0), 'clip=0'),
    (dict(encoder='transformer', embedding=10), 'embedding=10 must be a multiple of heads=4'), (dict(dropout=2), 'dropout'), (dict(sentences=0), 'sentences'),
    (dict(prune_embedding='no'), "'no' must be True or False")))
def test_wrong_settings(wrong, says):
    with pytest.raises(ValueError, match=says): language_settings(**wrong)
