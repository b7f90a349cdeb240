"Sizes of layers, however large."
import pytest
from lotterybook.ordered_neurons.master_gates import levels

@pytest.mark.parametrize('size', [10**12, 10**18])
def test_large_sizes(size):
    "Right, or refused at once with sizes that fit."
    assert levels(size, 10) == size//10
    with pytest.raises(ValueError, match=r'one of \[1, 2, 4, 5, 8, 10, .*10000\]'): levels(size, 7)
