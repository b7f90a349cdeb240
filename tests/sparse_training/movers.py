"What tests of moving masks share: digits, optimizers, a sparse LeNet and its training."
from functools import partial
import torch
from lotterybook.foundations.data import load
from lotterybook.foundations.fast_steps import FusedAdam
from lotterybook.foundations.networks import lenet
from lotterybook.foundations.running import Run, advance
from lotterybook.foundations.training import classification, example_batches
from lotterybook.pruning.masks import full_masks
from lotterybook.sparse_training.moving_masks import random_masks

data = load('digits')
batches = example_batches(data.x_train, data.y_train, 50, 0)
OPTIMIZERS = dict(sgd=partial(torch.optim.SGD, lr=.1, momentum=.9, weight_decay=1e-2),
                  adam=partial(torch.optim.Adam, lr=4e-3, weight_decay=1e-2),
                  adamw=partial(torch.optim.AdamW, lr=4e-3), fused=partial(FusedAdam, lr=4e-3))

def make(optimizer='adam', density=.05, seed=0):
    net = lenet(64, seed=seed)
    masks = random_masks(net, density, seed) if density < 1 else full_masks(net)
    return Run(net, OPTIMIZERS[optimizer](net.parameters()), masks, seed)

def train(run, end, *hooks, batches=batches): return advance(run, classification(), batches, end, hooks)
