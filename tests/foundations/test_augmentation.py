"Augmented images: shifts by hand, streams by seed and step, labels and validation untouched."
import pytest, torch
from hypothesis import given, strategies as st
from lotterybook.foundations.augmentation import augmented, shifted
from lotterybook.foundations.data import load
from lotterybook.foundations.fast_steps import FusedAdam
from lotterybook.foundations.networks import lenet
from lotterybook.foundations.running import Run
from lotterybook.foundations.training import evaluate, example_batches, train_run
digits = load('digits')
plain  = example_batches(digits.x_train, digits.y_train, 20, 0)

@given(st.integers(-5, 5), st.integers(-5, 5))
def test_shift_by_hand(down, right):
    "Every pixel goes where it should; outside there is nothing."
    x = torch.arange(1., 25).view(1, 1, 4, 6)
    moved = shifted(x, torch.tensor([down]), torch.tensor([right]))
    wanted = torch.zeros_like(x)
    for r in range(4):
        for c in range(6):
            if 0 <= r + down < 4 and 0 <= c + right < 6: wanted[0, 0, r + down, c + right] = x[0, 0, r, c]
    assert torch.equal(moved, wanted)

def test_each_image_by_its_own_number():
    x = torch.rand(3, 2, 5, 5)
    down, right = torch.tensor([0, 1, -2]), torch.tensor([2, 0, 1])
    one_by_one = [shifted(x[i:i+1], down[i:i+1], right[i:i+1]) for i in range(3)]
    assert torch.equal(shifted(x, down, right), torch.cat(one_by_one))

def test_by_seed_and_step():
    whole, again, other = (list(augmented(plain, s)(0, 6)) for s in (0, 0, 1))
    for (x, y), (x2, y2), (x3, _), (_, y0) in zip(whole, again, other, plain(0, 6)):
        assert torch.equal(x, x2) and torch.equal(y, y2) and torch.equal(y, y0) and not torch.equal(x, x3)
    for (x, _), (x2, _) in zip(whole[4:], augmented(plain, 0)(4, 6)): assert torch.equal(x, x2)

def test_all_places_and_both_sides_occur():
    x = torch.zeros(4000, 1, 3, 3); x[:, 0, 1, 0] = 1   # left of the middle
    batches = lambda start, end: [(x, torch.zeros(4000))]
    ((seen, _),) = augmented(batches, 0, shift=1)(0, 1)
    counts = seen.sum(0)[0]
    wanted = torch.tensor([1/6, 1/3, 1/6])*4000/3    # a sixth of each row's third is pushed out at each side
    assert ((counts - wanted).abs() < 4*wanted.sqrt()).all()
    ((seen, _),) = augmented(batches, 0, shift=0, mirror=False)(0, 1)
    assert torch.equal(seen, x)
    ((seen, _),) = augmented(batches, 0, shift=0)(0, 1)
    assert 1800 < seen[:, 0, 1, 0].sum() < 2200 and seen.sum() == 4000

def test_training_sees_them_and_validation_does_not(tmp_path):
    def trained(**options):
        net = lenet(64, seed=0)
        run = Run(net, FusedAdam(net.parameters()))
        return train_run(run, digits, steps=20, eval_every=10, **options), net
    (found, a), (_, b) = trained(augment=augmented), trained()
    assert not torch.equal(a.layer1.weight, b.layer1.weight)
    assert found['history'][-1]['validation_loss'] == pytest.approx(evaluate(a, digits.x_validation, digits.y_validation)[0], rel=1e-5)
    def refused(batches, seed): raise AssertionError('asked for')
    with pytest.raises(AssertionError, match='asked for'): trained(augment=refused)

def test_bad_shift():
    with pytest.raises(ValueError, match='shift'): augmented(plain, 0, shift=-1)
