"What the tests of early birds train: a small network with norm layers, and masks of its weights."
import torch
from lotterybook.foundations.networks import batchnorm_mlp
from lotterybook.foundations.running import Run
from lotterybook.pruning.allocation import per_layer
from lotterybook.pruning.masks import full_masks
from lotterybook.pruning.scores import magnitude

def weight_masks(net):
    full = full_masks(net)
    return per_layer(magnitude(net, full), full, .5)

def small_run(seed=0):
    net = batchnorm_mlp(64, widths=(20, 10), seed=seed)
    return Run(net, torch.optim.SGD(net.parameters(), lr=.05, momentum=.9), seed=seed)
