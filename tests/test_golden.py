"""Golden numbers: what a search, a language model and a logic run gave before the loop was rewritten, and must go on giving.

Bits are compared where PyTorch's version and the processor are those of the record, else numbers to 1e-4;
on another processor the rows of trainings are compared more widely.
`golden.json` is written once, by `python tests/test_golden.py`, and never changed."""
import json, math
from pathlib import Path
from zlib import crc32
import pytest, torch
from lotterybook.foundations.results import device_name

record = Path(__file__).with_name('golden.json')

def here():
    "What must agree before bits can: matrix products differ between makers even at the same capability."
    return dict(torch=torch.__version__.split('+')[0], capability=torch.backends.cpu.get_cpu_capability(), processor=device_name())

def of_tensors(tensors):
    "Checksum and mean sizes of tensors by name."
    crc, sizes = 0, []
    for _, t in sorted(tensors.items()):
        t    = t.detach().cpu().contiguous()
        crc  = crc32(t.view(-1).view(torch.uint8).numpy(), crc)
        sizes.append(t.double().abs().mean().item())
    return dict(bits=crc, numbers=sizes)

def of_rows(rows, measures):
    "Checksum of rows, and the numbers among them that move smoothly."
    return dict(bits=crc32(json.dumps(rows).encode()), numbers=[row[m] for row in rows for m in measures])

def golden_search(folder):
    "Digits: three rounds, two seeds, the six conditions of page 320's plain version."
    from lotterybook.tickets.replicates import CONDITIONS, search, search_plan, search_settings, ticket_file
    from lotterybook.tickets.ticket_files import load_ticket
    settings = search_settings('digits', rounds=3, steps=150, eval_every=50) | dict(compiled=False)  # there were no others
    rows = search(settings, search_plan(3, range(2), tuple(CONDITIONS)[:6]), folder, workers=2, progress=False)
    found = dict(rows=of_rows(rows, ['stop_loss']))
    for seed in range(2):
        for r in range(4):
            ticket = load_ticket(ticket_file(folder, seed, r))
            found |= {f'seed {seed}, round {r}, {part}': of_tensors(getattr(ticket, part)) for part in ('theta_0', 'masks', 'theta_T')}
    return found

def golden_language_model(folder):
    "The small grammar without dropout: windows of odd length, AR and TAR, averaging."
    from lotterybook.ordered_neurons.language_model import fit_lm
    from lotterybook.ordered_neurons.small_grammar import as_corpus
    none = dict.fromkeys(('dropout_input', 'dropout_layers', 'dropout_output', 'weight_dropout'), 0.)
    fit  = fit_lm(as_corpus(400, 40, 40, 0, max_words=12), seed=0, progress=False, hidden=[24], embedding=20, chunk_size=2,
                  batch_size=20, length=12, epochs=6, patience=1, learning_rate=60., **none)
    rows = [{k: row[k] for k in ('epoch', 'windows', 'train_nats', 'validation_nats', 'averaged')} for row in fit.rows]
    assert rows[-1]['averaged']
    return dict(rows=of_rows(rows, ['train_nats', 'validation_nats']), test=of_rows([dict(test=fit.test_nats)], ['test']),
                weights=of_tensors(fit.model.state_dict()))

def golden_logic(folder):
    "Generated formulas, both encoders."
    from lotterybook.ordered_neurons.logic_runs import logic_run
    found = {}
    for encoder, chunk_size in (('lstm', None), ('on_lstm', 4)):
        run = logic_run(dict(data='generated', pairs=2000, encoder=encoder, chunk_size=chunk_size, embedding=12, hidden=16, dropout=0.,
                             max_train=3, epochs=2, batch_size=64, lr=4e-3, seed=0, device='cpu'))
        found |= {f'{encoder}, history': of_rows(run['history'], ['loss']), f'{encoder}, test': of_rows(run['test'], [])}
    return found

parts = dict(search=golden_search, language_model=golden_language_model, logic=golden_logic)
GROWS = dict(search=5e-4, language_model=.05)  # how far another processor's rounding grows in rows of trainings

def measured(part, folder):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try: return parts[part](folder)
    finally: torch.set_num_threads(before)

@pytest.mark.parametrize('part', parts)
def test_golden(part, tmp_path):
    want, have = json.loads(record.read_text())[part], measured(part, tmp_path/'out')
    assert have.keys() == want.keys()
    assert {k: len(o['numbers']) for k, o in have.items()} == {k: len(o['numbers']) for k, o in want.items()}
    if json.loads(record.read_text())['where'] == here(): assert {k: o['bits'] for k, o in have.items()} == {k: o['bits'] for k, o in want.items()}
    elsewhere = json.loads(record.read_text())['where']['processor'] != here()['processor']
    for name, entry in want.items():
        near = GROWS[part] if elsewhere and name == 'rows' else 1e-4
        assert all(math.isclose(a, b, rel_tol=near, abs_tol=near) for a, b in zip(have[name]['numbers'], entry['numbers'])), name

if __name__ == '__main__':
    from tempfile import mkdtemp
    if record.exists(): raise SystemExit(f'{record} is there, and is not changed')
    found = {part: measured(part, Path(mkdtemp())/'out') for part in parts}
    record.write_text(json.dumps(dict(where=here(), **found), indent=1) + '\n')
