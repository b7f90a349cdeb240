"Counts of multiply-adds: by hand, against PyTorch's counter, of pruned weights."
import pytest, torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode
from lotterybook.foundations.checkpoints import snapshot
from lotterybook.foundations.networks import batchnorm_mlp, lenet
from lotterybook.foundations.randomness import rng
from lotterybook.pruning.allocation import per_layer
from lotterybook.pruning.masks import full_masks, kept
from lotterybook.pruning.multiply_adds import multiply_adds
from lotterybook.pruning.scores import magnitude
torch.set_num_threads(1)

def total(*args): return sum(multiply_adds(*args).values())

def by_torch(net, x):
    "Half of the FLOPs that PyTorch's counter sees."
    with FlopCounterMode(display=False) as counter, torch.no_grad(): net.eval()(x)
    return counter.get_total_flops()//2

# --- the counts

@pytest.mark.parametrize('layer, shape, adds', [
    (nn.Linear(3, 2), (3,), 6), (nn.Linear(3, 2), (5, 3), 30), (nn.Linear(3, 2, bias=False), (3,), 6),
    (nn.Conv2d(1, 1, 3), (1, 4, 4), 36), (nn.Conv2d(1, 1, 3, padding=1), (1, 4, 4), 144),
    (nn.Conv2d(2, 4, 3, stride=2), (2, 7, 7), 2*4*9*9), (nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5), 2*6*9*9),
    (nn.Conv1d(2, 3, 3), (2, 6), 2*3*3*4), (nn.Conv3d(1, 2, 2), (1, 3, 3, 3), 2*8*8),
    (nn.ConvTranspose2d(2, 3, 3), (2, 4, 4), 2*3*9*16),
    (nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 4, 4), 4*3*9*16)])
def test_by_hand_and_by_torch(layer, shape, adds):
    assert multiply_adds(layer, shape) == {'weight': adds}
    assert by_torch(layer, torch.ones(1, *shape)) == adds

@pytest.mark.parametrize('layer, shape, uses', [
    (nn.Linear(3, 2), (3,), 1), (nn.Conv2d(1, 2, 3), (1, 4, 4), 4), (nn.ConvTranspose2d(2, 3, 3), (2, 4, 4), 16)])
def test_a_pruned_weight_saves_its_uses(layer, shape, uses):
    full, mask = layer.weight.numel(), torch.ones_like(layer.weight, dtype=torch.bool)
    mask.view(-1)[:2] = False
    assert multiply_adds(layer, shape, {'weight': mask}) == {'weight': (full - 2)*uses}
    assert multiply_adds(layer, shape, {'weight': mask & False}) == {'weight': 0}

def test_linear_networks_count_their_weights():
    net = lenet(64)
    full = full_masks(net)
    masks = per_layer(magnitude(net, full), full, .9)
    assert multiply_adds(net, (64,)) == kept(full) and multiply_adds(net, (64,), masks) == kept(masks)
    assert multiply_adds(net, (64,), {'layer1.weight': masks['layer1.weight']}) == {
        'layer1.weight': kept(masks)['layer1.weight'], 'layer2.weight': 30000, 'output.weight': 1000}

class Twice(nn.Module):
    "A layer used twice, and one whose weight is another's."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.c.weight = self.b.weight
    def forward(self, x): return self.c(self.b(self.a(self.a(x))))

def test_layers_used_twice_and_tied_weights():
    assert multiply_adds(Twice(), (4,)) == {'a.weight': 32, 'b.weight': 32}

def test_one_input_as_a_batch_and_networks_of_words():
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 5))
    assert multiply_adds(net, torch.zeros(1, 7, dtype=torch.int64)) == {'1.weight': 140}
    assert multiply_adds(nn.Linear(3, 2), torch.zeros(1, 3)) == {'weight': 6}

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    assert total(batchnorm_mlp(8).to(dtype), (8,)) == 8*200 + 200*100 + 100*10

def test_the_network_stays_as_it_was():
    "Mode, weights, running means and hooks; after an error, too."
    net = batchnorm_mlp(8, widths=(6, 5)).train()
    net.norm1.eval()
    before, x = snapshot(net), torch.randn(4, 8, generator=rng(0, 'x'))
    multiply_adds(net, (8,), full_masks(net))
    with pytest.raises(RuntimeError): multiply_adds(net, (9,))
    assert all(v.equal(before[k]) for k, v in net.state_dict().items())
    assert net.training and not net.norm1.training and net.norm2.training
    assert not any(m._forward_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters()) and net(x).requires_grad

def test_warned_of_what_is_not_counted():
    "An LSTM multiplies, and so does a layer that this pass did not call."
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.output, self.unused = nn.LSTM(4, 5), nn.Linear(5, 3), nn.Linear(2, 2)
        def forward(self, x): return self.output(self.lstm(x)[0])
    with pytest.warns(UserWarning, match='not counted: lstm.weight_ih_l0, lstm.weight_hh_l0, unused.weight'):
        assert multiply_adds(Tagger(), (7, 4)) == {'output.weight': 105}

def test_masks_that_are_refused():
    "Those of channels, alone or beside others; a mask of a shift or of a bias changes no count."
    net, full = batchnorm_mlp(8, widths=(6, 5)), full_masks(batchnorm_mlp(8, widths=(6, 5)))
    with pytest.raises(ValueError, match="'norm9.weight' fits no parameter"):
        multiply_adds(net, (8,), {'norm9.weight': torch.ones(6).bool()})
    with pytest.raises(ValueError, match='not bool'):
        multiply_adds(net, (8,), {'layer1.weight': torch.ones(6, 8)})
    with pytest.raises(ValueError, match=r"'norm2.weight' is a mask of channels.*remove_channels\(net, masks"):
        multiply_adds(net, (8,), full | {'norm2.weight': torch.ones(5).bool()})
    biases = {'norm1.bias': torch.zeros(6).bool(), 'output.bias': torch.zeros(10).bool()}
    assert multiply_adds(net, (8,), biases) == kept(full)

def test_weights_that_are_computed():
    "A parametrized layer has its weight's usual name."
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    assert multiply_adds(net, (4,)) == {'0.weight': 12, '1.weight': 6}

def test_frozen_networks_are_counted():
    net = lenet(64)
    want = multiply_adds(net, (64,))
    assert multiply_adds(net.requires_grad_(False), (64,)) == want
    for name, p in net.named_parameters(): p.requires_grad_('bias' in name)
    assert multiply_adds(net, (64,)) == want

def test_masks_of_torch_are_not_passed_over():
    "They are no masks of ours, and the weights would be counted as dense."
    net = nn.Sequential(nn.Linear(4, 3))
    prune.random_unstructured(net[0], 'weight', .5)
    with pytest.raises(ValueError, match="torch.nn.utils.prune holds '0.weight'"): multiply_adds(net, (4,))

def test_a_layer_with_its_inputs_first():
    "Conv1D of transformers, by its name: (inputs, outputs)."
    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 3))
        def forward(self, x): return x @ self.weight
    Conv1D.__module__ = 'transformers.pytorch_utils'
    assert multiply_adds(Conv1D(), (5, 4)) == {'weight': 60}
