"k-winners: exact counts, ties, gradients, shapes and dtypes; and a copy of a network with other layers."
import copy
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from lotterybook.foundations.networks import batchnorm_mlp, lenet
from lotterybook.sparse_training.k_winners import KWinners, k_winners, replace_layers, with_k_winners
torch.set_num_threads(1)

def by_hand(row, share):
    "One row of numbers: the k largest by sorting pairs (number, place)."
    best = sorted(range(len(row)), key=lambda i: (-row[i], i))[:round(share*len(row))]
    return [v if i in best else 0 for i, v in enumerate(row)]

@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=7, max_size=7), min_size=1, max_size=4), st.sampled_from([.1, .3, .5, .8, 1]))
def test_a_second_route(rows, share):
    "Many ties, negative winners, zeros: the same as sorting pairs."
    assert k_winners(torch.tensor(rows).float(), share).tolist() == [by_hand(row, share) for row in rows]

@pytest.mark.parametrize('dim, n', [(None, 12), (1, 3), (-1, 2), (2, 2)])
def test_exact_counts(dim, n):
    "All ties: exactly k are kept in each group, and those with the lowest index."
    x = torch.ones(5, 3, 2, 2)
    kept = k_winners(x, .5, dim) != 0
    k = round(.5*n)
    if dim is None: assert torch.equal(kept.flatten(1), (torch.arange(12) < k).expand(5, 12))
    else: assert torch.equal(kept.sum(dim), torch.full(kept.sum(dim).shape, k)) and kept.select(dim, 0).all()

def test_a_threshold_would_keep_all_ties():
    x = torch.full((2, 10), .3)
    assert (x >= x.topk(2).values[:, -1:]).all()  # the mistake
    assert (k_winners(x, .2) != 0).sum(1).tolist() == [2, 2]

def test_ties_of_a_large_layer():
    "Sorting keeps the order of equal values only if it is asked to, and short rows do not show it."
    kept = k_winners(torch.ones(2, 100_000), .1) != 0
    assert torch.equal(kept, (torch.arange(100_000) < 10_000).expand(2, 100_000))

def test_negative_winners():
    assert k_winners(torch.tensor([[-5., -1, -2, -4]]), .5).tolist() == [[0, -1, -2, 0]]

def test_the_share_one_changes_nothing():
    x = torch.randn(4, 3, 5)
    for dim in (None, 1, 2): assert torch.equal(k_winners(x, 1, dim), x)

def test_gradient_reaches_winners_only():
    "By finite differences too: inside one set of winners the function is linear."
    x = torch.randn(6, 10, dtype=torch.double, requires_grad=True)
    y = k_winners(x, .3)
    g = torch.randn(6, 10, dtype=torch.double)
    y.backward(g)
    assert torch.equal(x.grad, torch.where(y != 0, g, 0.))
    assert torch.autograd.gradcheck(lambda x: k_winners(x, .3), x)

def test_infinite_losers_are_zero():
    "Multiplying by a mask would make -inf · 0 = nan."
    x = torch.tensor([[-torch.inf, 2, 1, torch.inf]], requires_grad=True)
    y = k_winners(x, .5)
    y[0, 1].backward()
    assert y.tolist() == [[0, 2, 0, torch.inf]] and x.grad.tolist() == [[0, 1, 0, 0]]

def test_nan_is_not_hidden():
    assert k_winners(torch.tensor([[1., torch.nan, 2]]), 1/3).isnan().any()

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_dtypes(dtype):
    y = k_winners(torch.tensor([[3, 1, 2]], dtype=dtype), 2/3)
    assert y.dtype == dtype and y.tolist() == [[3, 0, 2]]

def test_odd_layouts():
    "Channels last, and a view that is not contiguous."
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(k_winners(x.to(memory_format=torch.channels_last), .2), k_winners(x, .2))
    assert torch.equal(k_winners(x.transpose(1, 3), .2, 1), k_winners(x, .2, 3).transpose(1, 3))

def test_an_empty_batch(): assert k_winners(torch.ones(0, 4), .5).shape == (0, 4)

def test_examples_do_not_meet():
    "Each example of a batch as it is alone."
    x = torch.randn(5, 2, 3, 3)
    assert torch.equal(k_winners(x, .2), torch.cat([k_winners(one[None], .2) for one in x]))

def test_none_kept_is_refused():
    with pytest.raises(ValueError, match='share=0.04 of 10 outputs.*above 0.05'): k_winners(torch.ones(2, 10), .04)
    with pytest.raises(ValueError, match='share=0.05'): k_winners(torch.ones(2, 10), .05)  # half is rounded to even
    assert (k_winners(torch.ones(2, 10), .051) != 0).sum() == 2

@pytest.mark.parametrize('share', [0, -.1, 1.1, float('nan'), None])
def test_odd_shares_are_refused_when_the_layer_is_made(share):
    with pytest.raises(ValueError, match='share='): KWinners(share)

def test_the_layer_shows_its_arguments():
    assert repr(KWinners(.1)) == 'KWinners(share=0.1)' and repr(KWinners(.1, 1)) == 'KWinners(share=0.1, dim=1)'

def test_export_and_vmap():
    "The layer in a graph with any batch size, and in a stack of networks."
    net, x = nn.Sequential(nn.Linear(4, 10), KWinners(.3), nn.Linear(10, 2)).eval(), torch.randn(6, 4)
    graph = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim('batch', min=2)},)).module()
    for n in (2, 5): torch.testing.assert_close(graph(x[:n]), net(x[:n]))
    many = torch.randn(3, 6, 10)
    assert torch.equal(torch.vmap(lambda x: k_winners(x, .3))(many), torch.stack([k_winners(x, .3) for x in many]))

def test_a_copy_with_k_winners():
    "The same weights, ReLUs replaced also deep inside, modes kept, and the network itself untouched."
    net = nn.Sequential(lenet(8), nn.ReLU()).eval()
    net[0].relu2.train()
    before = copy.deepcopy(net)
    new = with_k_winners(net, .1)
    assert [type(o) for o in net.modules()] == [type(o) for o in before.modules()]
    assert not any(isinstance(o, nn.ReLU) for o in new.modules()) and sum(isinstance(o, KWinners) for o in new.modules()) == 3
    assert new[0].relu2.training and not new[0].relu1.training
    assert all(torch.equal(a, b) and a is not b for a, b in zip(net.parameters(), new.parameters()))

def test_one_relu_in_two_places():
    "A layer that a network uses twice is replaced in both places."
    relu = nn.ReLU()
    new = with_k_winners(nn.Sequential(nn.Linear(4, 10), relu, nn.Linear(10, 10), relu), .2)
    assert isinstance(new[1], KWinners) and isinstance(new[3], KWinners)

def test_no_relu_is_refused():
    with pytest.raises(ValueError, match='torch.relu'): with_k_winners(nn.Linear(4, 4), .1)
    with pytest.raises(ValueError, match='is a Tanh'): replace_layers(lenet(4), nn.Tanh, lambda layer: nn.ReLU())

def test_batch_norm_trains_with_k_winners():
    net = with_k_winners(batchnorm_mlp(6, 3), .2)
    net(torch.randn(8, 6)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())

def test_the_loss_jumps():
    "Between two points as near as you like the output changes by more than some number; with ReLU it does not."
    class Two(nn.Module):
        def forward(self, x): return torch.cat([1 + x, 2 - x], 1)  # equal at 1/2
    for eps in (1e-2, 1e-4, 1e-6):
        x = torch.tensor([[.5 - eps], [.5 + eps]], dtype=torch.double)
        a, b = (k_winners(Two()(x), .5) @ torch.tensor([[1.], [-1.]]).double()).flatten()
        assert (a - b).abs() > 2
