"A client's script: what the README promises, on a network, a loop and a text of one's own. Checked by pyright, run by a test."
import sys
from pathlib import Path
import torch
from torch import Tensor, nn
from lotterybook import (ONLSTM, FusedAdam, Hook, Run, Ticket, advance, apply_masks, corpus_from_files, evaluate, find_ticket, fit_lm,
                         from_tensors, full_masks, global_, keep_pruned, lenet, load, load_language_model, load_ticket, magnitude, parse,
                         prunable, pruner, remaining, report, rewind, save_language_model, save_ticket, sweep, train, train_run)

class Tagger(nn.Module):
    "A recurrent network of one's own, with ONLSTM where nn.LSTM stood."
    def __init__(self, words: int = 20, tags: int = 3):
        super().__init__()
        self.embed = nn.Embedding(words, 8)
        self.layer = ONLSTM(8, 12, num_layers=2, chunk_size=2, live_top=True, batch_first=True)
        self.tag   = nn.Linear(12, tags)

    def forward(self, ids: Tensor) -> Tensor:
        output, (h_n, c_n) = self.layer(self.embed(ids))
        return self.tag(output)

def own_loop(run: Run) -> None:
    "A training loop of one's own, on data of one's own."
    with keep_pruned(run.net, run.masks, run.optimizer):
        for _ in range(5):
            ids  = torch.randint(20, (4, 6))
            loss = nn.functional.cross_entropy(run.net(ids).flatten(0, 1), ids.flatten() % 3)
            run.optimizer.zero_grad()
            loss.backward()
            run.optimizer.step()

def make_run(seed: int) -> Run:
    torch.manual_seed(seed)
    net = Tagger()
    return Run(net, torch.optim.SGD(net.parameters(), lr=.1, momentum=.9))

def own_ticket(folder: Path) -> Ticket:
    "A ticket of one's own network, kept as a file and put back into a network."
    tickets = find_ticket(make_run, own_loop, pruner(.3, magnitude, global_), rounds=2, progress=False)
    file    = save_ticket(tickets[-1], folder/'ticket.safetensors')
    net     = Tagger()
    ticket  = load_ticket(file, net)
    rewind(net, ticket.theta_0)
    apply_masks(net, ticket.masks)
    pruned = {row['name']: row['weights'] - row['kept'] for row in report(net, ticket.masks)}
    assert sum(pruned.values()) > 0 and remaining(ticket.masks) < .5
    return ticket

class LossOnly(Hook):
    "What a hook of one's own looks like."
    writes = False
    def after_step(self, run: Run) -> None: run.rows.append(dict(step=run.step, loss=float(run.loss)))

def classifiers() -> float:
    "The book's classifier on its digits, with `train`; and `advance` with an objective, batches and a hook of one's own."
    data    = load('digits')
    outcome = train(lenet(64, seed=0), data, steps=40, eval_every=20)
    x, y    = torch.randn(60, 5), torch.arange(60) % 2
    own     = from_tensors(x, y, x, y, 10)
    net     = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    run     = Run(net, FusedAdam(net.parameters(), lr=1e-2), full_masks(net, exclude='2.*'))
    def objective(net: nn.Sequential, batch: tuple[Tensor, Tensor]) -> Tensor: return nn.functional.cross_entropy(net(batch[0]), batch[1])
    def batches(start: int, end: int): return ((x, y) for _ in range(start, end))
    advance(run, objective, batches, 3, [LossOnly()])
    train_run(run, own, steps=10, batch_size=10, eval_every=5)
    loss, accuracy = evaluate(net, own.x_test, own.y_test)
    assert prunable(net) == ['0.weight', '2.weight'] and len(run.rows) > 3 and 0 <= accuracy <= 1 and loss > 0
    return outcome['stop_accuracy']

def language(folder: Path) -> list[str]:
    "A language model of one's own text, and its trees."
    for name in ('train', 'validation', 'test'): (folder/name).write_text('the old cat sees a dog\na dog sleeps\n'*40)
    corpus = corpus_from_files(folder/'train', folder/'validation', folder/'test')
    fit    = fit_lm(corpus, epochs=1, embedding=8, hidden=[12], chunk_size=2, batch_size=4, length=10, progress=False)
    model  = load_language_model(save_language_model(folder/'model.safetensors', fit.model))
    return [str(tree) for tree in parse(model, ['a dog sleeps'.split()])]

def one_run(config: dict) -> dict:
    net = lenet(64, seed=config['seed'])
    return dict(accuracy=train(net, load('digits'), steps=config['steps'], eval_every=10)['stop_accuracy'])

def main(folder: Path) -> None:
    ticket = own_ticket(folder)
    rows   = sweep(one_run, [dict(seed=seed, steps=20) for seed in range(2)], folder/'sweep', progress=False)
    print(len(ticket.masks), classifiers(), language(folder), [row['accuracy'] for row in rows])

if __name__ == '__main__': main(Path(sys.argv[1]))
