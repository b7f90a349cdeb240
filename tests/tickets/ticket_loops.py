"What several tests here need: digits, small networks, loops of strangers, folders byte by byte."
from contextlib import nullcontext
from pathlib import Path
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils.data import DataLoader, TensorDataset
from lotterybook.foundations.data import load
from lotterybook.foundations.randomness import random_stream
from lotterybook.foundations.running import Run
from lotterybook.foundations.training import classification, example_batches
from lotterybook.pruning.masked_training import keep_pruned
digits  = load('digits')
x60, y60 = digits.x_train[:60], digits.y_train[:60]
batches = example_batches(digits.x_train, digits.y_train, 60, 0)
cross_entropy = classification()

def mlp(seed=None):
    "A network of two masked layers; without a seed, drawn from PyTorch's global generator."
    with nullcontext() if seed is None else random_stream(seed, 'mlp'):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))

def make_run(seed): return Run(mlp())
def with_sgd(seed, **options):
    net = mlp()
    return Run(net, torch.optim.SGD(net.parameters(), **dict(lr=.1, momentum=.9) | options))

def loader(n=360): return DataLoader(TensorDataset(digits.x_train[:n], digits.y_train[:n]), 60,
                                     shuffle=True)

def sgd(params): return torch.optim.SGD(params, .1, momentum=.9, weight_decay=1e-3)

def stranger(run, optimizer=sgd, inside=keep_pruned, between=lambda run, i: None, after=None):
    "A loop such as people have: six batches of a shuffling loader; the test meddles between them."
    optimizer = optimizer(run.net.parameters())
    with inside(run.net, run.masks):
        for i, (x, y) in enumerate(loader()):
            optimizer.zero_grad()
            F.cross_entropy(run.net(x), y).backward()
            optimizer.step()
            between(run, i)
    if after: after(run)
    return 'any plain value'

def unheld(net, masks):
    "In the place of `keep_pruned`: nothing is held."
    return nullcontext()

def idle(run): "Trains nothing."

def nudge(run):
    "The least that counts as training."
    for p in run.net.parameters(): p.data.mul_(1.01)

def dense(seed=5):
    "Weights that nobody has pruned."
    return mlp(seed).state_dict()

def files(folder):
    "Contents by name, locks aside."
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.suffix != '.lock'}

def watches(net):
    "How many hooks there are in the process and on a network."
    return (len(_global_optimizer_pre_hooks) + len(_global_optimizer_post_hooks) +
            sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in net.modules()) +
            sum(len(p._post_accumulate_grad_hooks or ()) for p in net.parameters()))
