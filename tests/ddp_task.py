"Two processes, one network: a ticket search whose training loop is PyTorch's DistributedDataParallel. For torchrun."
import os
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from lotterybook import Run, find_ticket, keep_pruned, lenet, load, remaining

def make_run(seed: int) -> Run:
    net = lenet(64, seed=seed)
    return Run(net, torch.optim.SGD(net.parameters(), lr=.1, momentum=.9, weight_decay=1e-4))

def train_both(run: Run) -> dict:
    "Each process reads half of the examples; gradients are averaged."
    data, me = load('digits'), distributed.get_rank()
    net = DistributedDataParallel(run.net)
    with keep_pruned(net, run.masks):
        for step in range(30):
            rows = slice(20*step + 10*me, 20*step + 10*(me + 1))
            run.optimizer.zero_grad()
            nn.functional.cross_entropy(net(data.x_train[rows]), data.y_train[rows]).backward()
            run.optimizer.step()
    return dict(rank=me)

distributed.init_process_group('gloo')
ticket = find_ticket(make_run, train_both, rounds=2, progress=False)[-1]
assert ticket.theta_T and round(remaining(ticket.masks), 2) == .64
for name, weight in ticket.theta_T.items():
    both = [torch.empty_like(weight) for _ in range(2)]
    distributed.all_gather(both, weight)
    assert both[0].equal(both[1]), name
    if name in ticket.masks: assert not weight[~ticket.masks[name]].any(), name
distributed.barrier()
distributed.destroy_process_group()
print('both processes have the same ticket', flush=True)
os._exit(0)  # a thread of gloo's that is still there at Python's own end aborts the process
