"Data sets: inputs that float32 cannot hold, parts that do not fit."
import gzip
import pytest, torch
from lotterybook.foundations import files
from lotterybook.foundations.data import check_splits, from_tensors, load, read_idx

x, y = torch.randn(40, 3), torch.arange(40) % 4
digits = load('digits')

@pytest.mark.parametrize('wrong, why', [
    (x.to(torch.complex64), 'must be real, not torch.complex64'), (x.double()*1e300, '120 inputs are not finite, or too large'),
    (torch.where(x > 5, x, torch.inf), '120 inputs are not finite')])
def test_inputs_that_float32_cannot_hold(wrong, why):
    for part, given in (('train', (wrong, y, x, y)), ('test', (x, y, wrong, y))):
        with pytest.raises(ValueError, match=f'{part}: .*{why}'): from_tensors(*given)

def test_large_inputs_stay():
    large = x.double().clamp(-3, 3)*1e38
    assert torch.equal(from_tensors(x, y, large, y).x_test, large.float())

@pytest.mark.parametrize('part', ['train', 'validation', 'test'])
def test_parts_that_do_not_fit(part):
    "Too few labels, too many, none at all; labels that are no class."
    inputs, labels = getattr(digits, f'x_{part}'), getattr(digits, f'y_{part}')
    def refused(why, **changed):
        with pytest.raises(ValueError, match=f'{part}: {why}'): check_splits(digits._replace(**changed))
    check_splits(digits)
    n = len(labels)
    refused(f'{n} inputs, and {n - 1} labels', **{f'y_{part}': labels[1:]})
    refused(f'{n} inputs, and {2*n} labels', **{f'y_{part}': torch.cat([labels, labels])})
    refused('0 inputs, and 0 labels', **{f'x_{part}': inputs[:0], f'y_{part}': labels[:0]})
    refused('labels go from 0 to 10, and 10 classes from 0 to 9', **{f'y_{part}': torch.where(labels == 3, 10, labels)})
    refused('labels go from -100 to 9', **{f'y_{part}': torch.where(labels == 3, -100, labels)})

def test_an_idx_file_that_holds_too_much(tmp_path, monkeypatch):
    "What is public is small; a file that anyone may name need not be."
    monkeypatch.setattr(files, '_MOST', 1000)
    (tmp_path/'a.gz').write_bytes(gzip.compress(bytes(1001)))
    with pytest.raises(ValueError, match='it holds more than 1,000 bytes'): read_idx(tmp_path/'a.gz')
