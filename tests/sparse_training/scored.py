"What tests of scores and measurements share: an odd network, and all of a network that they must leave alone."
import torch
from torch import nn

class OddNet(nn.Module):
    "Dropout, a batch norm, a frozen layer, a shared weight."
    def __init__(self):
        super().__init__()
        self.first, self.again, self.norm, self.drop = nn.Linear(5, 5), nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Dropout(.5)
        self.again.weight = self.first.weight
        self.frozen, self.out = nn.Linear(5, 5).requires_grad_(False), nn.Linear(5, 3)
    def forward(self, x): return self.out(self.frozen(self.drop(self.norm(self.again(self.first(x)).tanh()))))

def state(net):
    "All that might change, for `sameness.same`: of the network, and PyTorch's generator."
    return ({k: v.clone() for k, v in net.state_dict().items()}, {n: m.training for n, m in net.named_modules()},
            {n: (id(p), p.requires_grad, p.grad, None if p.grad is None else p.grad.clone()) for n, p in net.named_parameters()},
            [len(m._forward_hooks) for m in net.modules()], torch.get_rng_state())
