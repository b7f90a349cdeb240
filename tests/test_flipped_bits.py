"One flipped bit, at random among all bits of all files that the library writes and reads: never a silent difference."
import random, warnings
from concurrent.futures import ThreadPoolExecutor
import pytest, torch
from sameness import same
from torch import nn
from lotterybook.foundations.checkpoints import load_run, save_run
from lotterybook.foundations.results import load_rows, load_settings, save_rows
from lotterybook.foundations.running import Run
from lotterybook.foundations.sweeps import example_run, read_result, sweep
from lotterybook.ordered_neurons.text import EOS, Vocabulary
from lotterybook.ordered_neurons.word_model import (
    LanguageModel, load_language_model, save_language_model)
from lotterybook.pruning.masks import full_masks
from lotterybook.tickets.replicates import finished_runs, search, search_plan, search_settings
from lotterybook.tickets.ticket_files import load_ticket

def small_run():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
    run = Run(net, torch.optim.Adam(net.parameters()), full_masks(net, include='0.*'))
    net(torch.randn(4, 6)).square().sum().backward()
    run.optimizer.step()
    return run

def searched(folder):
    with ThreadPoolExecutor(1) as one:
        return search(search_settings(rounds=1, steps=4, eval_every=2), search_plan(1, [0], ['ticket', 'one_shot']), folder,
                      executor=one, progress=False)

@pytest.fixture(scope='module')
def kept(tmp_path_factory):
    "Files by how they are read: place, and what reading gives."
    folder = tmp_path_factory.mktemp('kept')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('LOTTERYBOOK_RESULTS', str(folder/'results'))
        rows = [dict(seed=s, method='ticket', accuracy=.9 + s/100) for s in range(5)]
        csv  = save_rows(rows, '900_a', 'quick', steps=[1, 2], seconds=1.5)
        model = LanguageModel(Vocabulary([EOS, *'abc']), 'on_lstm', embedding=4, hidden=[4], chunk_size=1)
        models = save_language_model(folder/'model.safetensors', model)
        state = save_run(small_run(), folder/'state', dict(lr=.1, data='digits'))
        with ThreadPoolExecutor(1) as one: sweep(example_run, [dict(value=3)], folder/'sweep', executor=one, progress=False)
        searched(folder/'search')
        def model_read():
            read = load_language_model(models)
            return dict(read.state_dict()), read.vocabulary.words, read.settings
        one_shot = folder/'search'/'runs'/'seed0-round1-one_shot.json'
        yield {
            csv: lambda: load_rows('900_a', 'quick'),
            csv.with_suffix('.json'): lambda: (load_rows('900_a', 'quick'), load_settings('900_a', 'quick')),
            models: model_read,
            state: lambda: load_run(small_run(), state, dict(lr=.1, data='digits')).state_dict(),
            folder/'sweep'/'value=3.json': lambda: read_result(folder/'sweep'/'value=3.json', dict(value=3)),
            folder/'search'/'ticket-seed0-round1.safetensors': lambda: tuple(load_ticket(folder/'search'/'ticket-seed0-round1.safetensors')),
            one_shot: lambda: finished_runs(folder/'search'),
            folder/'search'/'search.json': lambda: searched(folder/'search')}

def places(files, n, rng):
    "n bits, uniform over all bytes of all files."
    sizes = [file.stat().st_size for file in files]
    for file in rng.choices(list(files), sizes, k=n): yield file, rng.randrange(8*file.stat().st_size)

def flipped(file, bit, read):
    "How reading ends: refused, warned, same, or different."
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[bit//8] ^= 1 << bit % 8
    want = read()
    file.write_bytes(changed)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter('always')
            got = read()
        told = any('has no checksum' in str(o.message) for o in warned)
        return 'same' if same(got, want) else 'warned' if told else 'different'
    except ValueError as e:
        assert file.name in str(e) or file.stem in str(e), f'the file is not named: {e}'
        return 'refused'
    finally: file.write_bytes(whole)

def test_200_flipped_bits(kept):
    "Uniform over all bytes of all files."
    rng = random.Random(0)
    ends = [flipped(file, bit, kept[file]) for file, bit in places(kept, 200, rng)]
    assert 'different' not in ends and ends.count('refused') > 150, ends

def test_every_kind_of_file(kept):
    "25 bits of each, for the largest file would have nearly all of the others."
    rng = random.Random(1)
    for file, read in kept.items():
        ends = [flipped(file, bit, read) for _, bit in places([file], 25, rng)]
        assert 'different' not in ends and ends.count('refused') + ends.count('warned') > 8, (file.name, ends)
