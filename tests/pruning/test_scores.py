"Scores by hand and by a second route; random ones are uniform, and the same for the same seed."
import copy
from itertools import combinations
import pytest, torch
from torch import nn
from lotterybook.foundations.randomness import rng
from lotterybook.pruning.masks import full_masks
from lotterybook.pruning.scores import magnitude, random_scores
torch.set_num_threads(1)

def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))

def test_magnitude():
    "By hand, one weight at a time, under the names of the masks, without a path for gradients."
    net = small_net()
    with torch.no_grad(): net[2].weight.copy_(torch.tensor([[3., -1., 0, 1], [.5, -2, 4, -4]]))
    scores = magnitude(net, full_masks(net))
    assert scores['2.weight'].tolist() == [[3, 1, 0, 1], [.5, 2, 4, 4]]
    for name, s in scores.items():
        assert s.flatten().tolist() == [abs(v) for v in net.get_parameter(name).flatten().tolist()]
    assert list(scores) == ['0.weight', '2.weight']
    assert not scores['0.weight'].requires_grad

def test_a_mask_that_fits_nothing():
    with pytest.raises(ValueError, match="'7'"): magnitude(small_net(), {'7': torch.ones(2).bool()})

def test_scores_leave_the_network_alone():
    "What is done to scores does not reach the weights."
    net = small_net()
    before = copy.deepcopy(net.state_dict())
    for s in magnitude(net, full_masks(net)).values(): s.zero_()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

def test_random_scores_by_seed():
    "The same seed gives the same scores, another seed others."
    net = small_net()
    masks = full_masks(net)
    a, b, c = (random_scores(net, masks, generator=rng(seed, 'score')) for seed in (0, 0, 1))
    for name in masks: assert torch.equal(a[name], b[name]) and not torch.equal(a[name], c[name])

def test_random_scores_are_uniform():
    "Ten equal bins, within five standard deviations."
    masks  = {'weight': torch.ones(100, 1000).bool()}
    scores = random_scores(nn.Linear(1000, 100), masks, generator=rng(0, 'uniform'))['weight']
    assert (scores.histc(10, 0, 1)/scores.numel() - .1).abs().max() < .005

def test_random_scores_keep_each_set_equally_often():
    "Two of four weights: six ways, each in a sixth of the cases, within five standard deviations."
    net, g = nn.Linear(4, 1), rng(0, 'six ways')
    def pair():
        scores = random_scores(net, full_masks(net), generator=g)['weight'][0]
        return tuple(sorted(scores.topk(2).indices.tolist()))
    pairs = [pair() for _ in range(3000)]
    for two in combinations(range(4), 2): assert abs(pairs.count(two) - 500) < 100

def test_magnitude_and_scale():
    "ReLU: 8 times one layer and an eighth of the next compute the same; the order inside stays."
    net, scaled = small_net(), small_net()
    with torch.no_grad():
        scaled[0].weight *= 8; scaled[0].bias *= 8      # 8 and 1/8 are exact in binary
        scaled[2].weight /= 8
    x = torch.randn(20, 5, generator=rng(0, 'x'))
    assert torch.equal(net(x), scaled(x))
    masks = full_masks(net)
    for s, t in zip(magnitude(net, masks).values(), magnitude(scaled, masks).values()):
        assert torch.equal(s.flatten().argsort(stable=True), t.flatten().argsort(stable=True))
