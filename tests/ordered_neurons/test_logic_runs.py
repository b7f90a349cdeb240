"A run is a function of its values, kept and read back; unknown names and values."
from concurrent.futures import ThreadPoolExecutor
import pytest
from lotterybook.foundations.sweeps import sweep
from lotterybook.ordered_neurons.logic_runs import logic_data, logic_run, make_encoder, run_label

config = dict(data='generated', pairs=800, encoder='lstm', chunk_size=None, embedding=8, hidden=16, dropout=0., max_train=3, epochs=1, batch_size=64,
              lr=2e-3, seed=0, device='cpu')

@pytest.fixture(scope='module')
def result(): return logic_run(config)

@pytest.mark.parametrize('ask, name', [(('lstm', 8, 16), 'LSTM'), (('on_lstm', 8, 24, 1), 'ONLSTM'), (('tree_lstm', 8, 16), 'TreeLSTM')])
def test_encoders(ask, name): assert type(make_encoder(*ask)).__name__ == name

@pytest.mark.parametrize('ask, why', [
    (lambda: make_encoder('lstm', 8, 16, 2), "not 'lstm' with chunk_size=2"), (lambda: make_encoder('gru', 8, 16), "unknown encoder 'gru'"),
    (lambda: logic_data('brown'), "unknown data 'brown'; known are generated"),
    (lambda: logic_run({}), 'lacks, or has in addition: batch_size, chunk_size, data'),
    (lambda: logic_run(dict(config, embeding=3)), 'lacks, or has in addition: embeding')])
def test_refused(ask, why):
    with pytest.raises(ValueError, match=why): ask()

def test_data_are_the_same_for_every_seed(): assert logic_data('generated', 300) == logic_data('generated', 300)

def test_a_run(result):
    assert result['test'] == logic_run(config)['test']                     # a function of its values
    assert [len(result['history']), result['test'][0]['operators'], result['test'][-1]['operators']] == [1, 1, 12]
    assert result['parameters'] == 12*8 + 4*16*(8 + 16 + 2) + (64*16 + 16) + (16*7 + 7) # words and padding, LSTM, answer

def test_kept_and_read_back(result, tmp_path):
    for _ in range(2):
        kept = logic_run(config, tmp_path)
        assert [kept['test'], kept['history']] == [result['test'], result['history']]
    with pytest.raises(ValueError, match='net was'): logic_run(dict(config, dropout=.5), tmp_path)

def test_sweep(result, tmp_path):
    configs = [dict(config, seed=s) for s in range(2)]
    once, again = (sweep(logic_run, configs, tmp_path, executor=ThreadPoolExecutor(1), name=run_label, progress=False) for _ in range(2))
    assert once[0]['test'] == result['test'] and again == once             # `seconds` too: nothing ran again

@pytest.mark.parametrize('values, label', [({}, 'lstm,seed=0'), (dict(encoder='on_lstm', chunk_size=2), 'on_lstm_2,seed=0')])
def test_label(values, label): assert run_label(dict(config, **values)) == label
