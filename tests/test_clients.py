"The library in other people's code: a residual network in bfloat16, PyTorch's word language model, two processes, a Trainer."
import os, subprocess, sys
from pathlib import Path
import pytest, torch
from torch import nn
from torch.nn import functional as F
from lotterybook import Run, find_ticket, full_masks, keep_pruned, load, magnitude, global_, pruner, remaining, rewind
torch.set_num_threads(1)

def zeros_hold(tickets, rounds, left):
    "Each round keeps what it should, and its trained weights are zero where they are pruned."
    assert len(tickets) == rounds + 1 and remaining(tickets[-1].masks) == pytest.approx(left, abs=.01)
    for ticket in tickets:
        assert all(not ticket.theta_T[k][~m].any() for k, m in ticket.masks.items())
        assert all(v.isfinite().all() for v in ticket.theta_T.values())

# --- a residual network in bfloat16, with clipping and a cosine schedule

class Block(nn.Module):
    def __init__(self, channels, wider):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, wider, 3, padding=1, bias=False), nn.BatchNorm2d(wider)
        self.conv2, self.norm2 = nn.Conv2d(wider, wider, 3, padding=1, bias=False), nn.BatchNorm2d(wider)
        self.short = nn.Conv2d(channels, wider, 1, bias=False) if channels != wider else nn.Identity()
    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.short(x))

class ResNet(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), Block(8, 8), Block(8, 16),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

def make_resnet(seed):
    torch.manual_seed(seed)
    net = ResNet()
    return Run(net, torch.optim.SGD(net.parameters(), lr=.1, momentum=.9, weight_decay=5e-4, nesterov=True))

def train_resnet(run):
    data, steps = load('digits'), 25
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(run.optimizer, steps)
    with keep_pruned(run.net, run.masks):
        for step in range(steps):
            x, y = data.x_train[40*step:40*(step + 1)], data.y_train[40*step:40*(step + 1)]
            run.optimizer.zero_grad()
            with torch.autocast('cpu', torch.bfloat16): loss = F.cross_entropy(run.net(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(run.net.parameters(), 1.)
            run.optimizer.step()
            schedule.step()
    return loss.item()

def test_a_residual_network():
    "The schedule moves the rate of the run's own optimizer, and each round begins with the first rate."
    tickets = find_ticket(make_resnet, train_resnet, pruner(.3, magnitude, global_), rounds=2, progress=False)
    zeros_hold(tickets, 2, .49)
    again = find_ticket(make_resnet, train_resnet, pruner(.3, magnitude, global_), rounds=2, progress=False)
    assert [t.settings['outcome'] for t in tickets] == [t.settings['outcome'] for t in again]

# --- PyTorch's word_language_model: an LSTM with a tied decoder, and steps by hand

class RNNModel(nn.Module):
    def __init__(self, words, size=16):
        super().__init__()
        self.encoder, self.drop = nn.Embedding(words, size), nn.Dropout(.2)
        self.rnn, self.decoder  = nn.LSTM(size, size, 2, dropout=.2), nn.Linear(size, words)
        self.decoder.weight = self.encoder.weight
    def forward(self, ids, hidden=None):
        output, hidden = self.rnn(self.drop(self.encoder(ids)), hidden)
        return self.decoder(self.drop(output)), hidden

def make_rnn(seed):
    torch.manual_seed(seed)
    return Run(RNNModel(12))  # no optimizer: the loop steps by hand

def train_rnn(run):
    "As PyTorch's example does: no optimizer, the weights themselves are moved."
    text = torch.arange(400).remainder(12).view(40, 10)
    with keep_pruned(run.net, run.masks):
        hidden = None
        for i in range(0, 35, 5):
            run.net.zero_grad()
            logits, hidden = run.net(text[i:i + 5], hidden)
            hidden = tuple(h.detach() for h in hidden)
            F.cross_entropy(logits.flatten(0, 1), text[i + 1:i + 6].flatten()).backward()
            nn.utils.clip_grad_norm_(run.net.parameters(), .25)
            for p in run.net.parameters(): p.data.add_(p.grad, alpha=-20.)

def test_a_word_language_model():
    "Recurrent weights are pruned, the tied embedding is not; steps by hand keep zeros at zero."
    assert list(full_masks(RNNModel(12))) == [f'rnn.weight_{kind}_l{l}' for l in (0, 1) for kind in ('ih', 'hh')]
    tickets = find_ticket(make_rnn, train_rnn, rounds=2, progress=False)
    zeros_hold(tickets, 2, .64)
    net = rewind(RNNModel(12), tickets[-1].theta_0, tickets[-1].masks)
    assert net.decoder.weight is net.encoder.weight

# --- two processes

def test_two_processes():
    "PyTorch's DistributedDataParallel on the CPU: both find the same ticket."
    task = Path(__file__).with_name('ddp_task.py')
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', task],
                          capture_output=True, text=True, timeout=240, env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('both processes have the same ticket') == 2

# --- transformers, where it is installed

def test_a_transformer_of_another_library():
    "A tiny GPT-2, with the optimizer and the schedule of its library: attention's Conv1D weights are pruned."
    transformers = pytest.importorskip('transformers')
    def make_run(seed):
        torch.manual_seed(seed)
        net = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=2, n_head=2))
        return Run(net, torch.optim.AdamW(net.parameters(), lr=1e-3))
    def train(run):
        schedule = transformers.get_linear_schedule_with_warmup(run.optimizer, 2, 10)
        ids = torch.arange(160).remainder(20).view(10, 16)
        with keep_pruned(run.net, run.masks):
            for step in range(10):
                run.optimizer.zero_grad()
                run.net(input_ids=ids, labels=ids).loss.backward()
                run.optimizer.step()
                schedule.step()
    tickets = find_ticket(make_run, train, rounds=2, progress=False)
    zeros_hold(tickets, 2, .64)
    assert any('attn.c_attn.weight' in k for k in tickets[-1].masks)
