"Data sets: how they are split, inputs that float32 cannot hold, parts that do not fit, odd data sets and files."
import gzip, os, pickle, re, tarfile
import numpy as np
import pytest, torch
from PIL import Image
from torch.utils.data import TensorDataset
from lotterybook.foundations import files
from lotterybook.foundations.data import (FILES, _pictures, DATASETS, FOLDERS, check_splits, data_folder, fetch, from_dataset, from_tensors,
                                          load, read_cifar, read_idx, standardized)

files_of_cifar = FILES['cifar10']
x, y = torch.randn(40, 3), torch.arange(40) % 4
digits = load('digits')

# --- splits

x20, y20 = torch.arange(20.).view(20, 1), torch.arange(20) % 2

def test_a_split_loses_nothing():
    s = from_tensors(x20, y20, x20[:4], y20[:4], validation=5, seed=3)
    assert [len(s.x_train), len(s.x_validation), len(s.x_test), s.classes, s.input_shape] == [15, 5, 4, 2, (1,)]
    assert torch.equal(torch.cat([s.x_train, s.x_validation]).sort(0).values, x20)   # and doubles nothing
    assert torch.equal(s.y_validation, (s.x_validation[:, 0] % 2).long())             # labels travel with their inputs
    assert not torch.equal(s.x_validation, from_tensors(x20, y20, x20, y20, validation=5, seed=4).x_validation)

def test_a_dataset_gives_the_same():
    d = TensorDataset(x20, y20)
    for a, b in zip(from_dataset(d, d, seed=3), from_tensors(x20, y20, x20, y20, seed=3)):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

@pytest.mark.parametrize('given, options, why', [
    ((x20, y20[1:], x20, y20), {}, '20 inputs, but 19 labels'), ((x20/0, y20, x20, y20), {}, 'not finite'),
    ((x20, y20, x20, y20), dict(validation=20), 'validation=20'), ((x20, y20.float(), x20, y20), {}, 'whole numbers'),
    ((x20, y20 - 1, x20, y20), {}, 'from -1'), ((x20[:0], y20[:0], x20, y20), {}, 'no examples'),
    ((x20, y20, torch.zeros(3, 2), y20[:3]), {}, '(1,), a test input (2,)'),
    ((x20, y20, x20, torch.full((20,), 7)), {}, 'label 7 does not occur')])
def test_what_cannot_be_split(given, options, why):
    with pytest.raises(ValueError, match=re.escape(why)): from_tensors(*given, **options)

def pictures(n, size=(4, 3), label=int): return [(Image.new('L', size, 10*k), label(k % 2)) for k in range(n)]

def test_pictures():
    "Numbers from 0 to 255, height before width; labels of any kind of integer."
    s = from_dataset(pictures(10), pictures(4), validation=2)
    assert [s.input_shape, s.x_test[:, 0, 0].tolist(), s.y_test.tolist()] == [(3, 4), [0, 10, 20, 30], [0, 1, 0, 1]]
    other = from_dataset(pictures(10, label=np.int64), pictures(4, label=torch.tensor), validation=2)
    assert torch.equal(other.y_train, s.y_train)

@pytest.mark.parametrize('train, test, why', [
    (pictures(10), pictures(1) + pictures(1, (5, 3)), 'test: example 1 has shape (3, 5)'),
    ([dict(x=1, y=2)], pictures(4), 'train: example 0 is not a pair (input, label) but a dict'),
    ([(x20[0], [0, 1])], pictures(4), 'the label of example 0'),
    (pictures(10, label=lambda k: k + .5), pictures(4), 'torch.float32'),  # not rounded silently
    (iter([]), pictures(4), 'no length')])
def test_odd_datasets(train, test, why):
    with pytest.raises(ValueError, match=re.escape(why)): from_dataset(train, test)

def test_digits():
    "The test set does not depend on the seed, the other two do."
    assert [len(digits.x_train), len(digits.x_validation), len(digits.x_test)] == [1000, 300, 497]
    assert [digits.input_shape, digits.classes] == [(1, 8, 8), 10]
    assert [digits.x_train.min().item(), digits.x_train.max().item()] == [0, 1]
    other = load('digits', seed=1)
    assert torch.equal(other.x_test, digits.x_test) and not torch.equal(other.x_train, digits.x_train)
    everything = torch.cat([digits.x_train, digits.x_validation, digits.x_test]).flatten(1)
    assert len(everything.unique(dim=0)) == 1797  # no image in two parts

# --- inputs and labels

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

# --- files

table = bytes([0, 0, 8, 2,  0, 0, 0, 2,  0, 0, 0, 3,  0, 1, 2, 3, 4, 5])

def test_idx(tmp_path):
    (tmp_path/'t.gz').write_bytes(gzip.compress(table))
    assert read_idx(tmp_path/'t.gz').tolist() == [[0, 1, 2], [3, 4, 5]]

@pytest.mark.parametrize('content, why', [
    (gzip.compress(table[:-1]), 't.gz has a header for numbers of shape (2, 3), and 5 numbers'),
    *((gzip.compress(raw), 't.gz is not an idx file') for raw in (b'no idx', b'', table[:3], table[:9])),
    *((raw, 't.gz cannot be unpacked') for raw in (gzip.compress(table)[:-9], b'no gzip'))],
    ids=range(7))  # not the bytes, which have the time in them: processes would disagree on the names
def test_odd_idx_files(content, why, tmp_path):
    "A number short; something else, nothing, a header cut short; damaged gzip."
    (tmp_path/'t.gz').write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(why)): read_idx(tmp_path/'t.gz')

def test_unknown_name():
    with pytest.raises(ValueError, match='known are digits, mnist'): load('minst')

def test_damaged_data_sets(tmp_path):
    "Pictures, and language by the same door."
    for file in ('MNIST/raw/train-images-idx3-ubyte.gz', 'ptb/ptb.train.txt'):
        (tmp_path/file).parent.mkdir(parents=True)
        (tmp_path/file).write_bytes(b'half of it')
    with pytest.raises(ValueError, match='is damaged or was changed: its SHA-256 is'): load('mnist', folder=tmp_path)
    for call in (load, fetch):
        with pytest.raises(ValueError, match='ptb.train.txt is damaged or was changed'): call('ptb', folder=tmp_path)
    assert [data_folder(tmp_path), fetch('digits'), set(FOLDERS) | {'digits'}] == [tmp_path, {}, set(DATASETS)]

# --- CIFAR-10: pickles that may hold arrays and plain values, and nothing else

pixels = np.random.default_rng(0).integers(0, 256, (7, 3072), np.uint8)
batch  = {b'batch_label': b'made here', b'labels': [3, 1, 4, 1, 5, 9, 2], b'data': pixels, b'filenames': [b'a.png']*7}

class Trap:
    "Unpickled, it would make a folder."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.mkdir, (self.path,)

def test_a_batch(tmp_path):
    "Red, then green, then blue, row by row."
    file = tmp_path/'batch'
    file.write_bytes(pickle.dumps(batch, protocol=4))
    images, labels = read_cifar(file)
    assert images.shape == (7, 3, 32, 32) and labels.tolist() == batch[b'labels'] and labels.dtype == np.int64
    assert [images[2, 0, 0, 1], images[2, 1, 3, 5], images[2, 2, 31, 31]] == [pixels[2, 1], pixels[2, 1024 + 3*32 + 5], pixels[2, -1]]

@pytest.mark.parametrize('odd', ['trap', 'array', 'function'])
def test_anything_else_in_a_batch_is_refused_and_not_run(tmp_path, odd):
    trap = tmp_path/'trap'
    inside = dict(trap=Trap(trap), array=np.array([Trap(trap)], object), function=os.getcwd)[odd]
    file = tmp_path/'batch'
    file.write_bytes(pickle.dumps(batch | {b'extra': inside}, protocol=4))
    with pytest.raises(ValueError, match='batch is refused: it needs '): read_cifar(file)
    assert not trap.exists()

@pytest.mark.parametrize('odd, why', [
    ({b'labels': [1]}, 'no data and labels'), ([1, 2], 'no data and labels'), (batch | {b'labels': [1, 2]}, '2 labels, and images'),
    (batch | {b'data': pixels/255}, 'float64'), (batch | {b'data': pixels[:, :3000]}, '(7, 3000)'),
    (batch | {b'labels': ['cat']*7}, 'no data and labels')])
def test_odd_batches(tmp_path, odd, why):
    (tmp_path/'batch').write_bytes(pickle.dumps(odd, protocol=4))
    with pytest.raises(ValueError, match=f'batch is not a batch of CIFAR-10.*{re.escape(why)}'): read_cifar(tmp_path/'batch')

def test_a_batch_cut_short(tmp_path):
    whole = pickle.dumps(batch, protocol=4)
    for n in (0, 1, 50, len(whole)//2, len(whole) - 1):
        (tmp_path/'batch').write_bytes(whole[:n])
        with pytest.raises(ValueError, match='batch is refused'): read_cifar(tmp_path/'batch')

def test_an_archive_beside_the_folder(tmp_path, monkeypatch):
    "The archive is read where other libraries leave it, and fetched once."
    from hashlib import sha256
    contents = {name: pickle.dumps(batch | {b'labels': [k]*7}, protocol=4)
                for k, name in enumerate(files_of_cifar.checksums)}
    archive = tmp_path/'cifar-10-python.tar.gz'
    with tarfile.open(archive, 'w:gz') as t:
        for name, content in contents.items():
            (tmp_path/name).write_bytes(content)
            t.add(tmp_path/name, f'cifar-10-batches-py/{name}')
            (tmp_path/name).unlink()
    made = files_of_cifar._replace(checksums={name: sha256(o).hexdigest() for name, o in contents.items()},
                                   address='http://127.0.0.1:9/cifar-10-python.tar.gz/')
    assert files.read_files(made, tmp_path) == contents
    monkeypatch.setitem(FILES, 'cifar10', made)
    train, (images, labels) = _pictures('cifar10', tmp_path)   # of the archive itself
    assert train[0].shape == (35, 3, 32, 32) and labels.tolist() == [5]*7 and (images[2, 0, 0] == pixels[2, :32]).all()
    import pooch
    fetched = []
    class Copy:
        def __call__(self, url, out, store):
            fetched.append(url)
            open(out, 'wb').write(archive.read_bytes())
    monkeypatch.setattr(pooch, 'HTTPDownloader', Copy)
    monkeypatch.setenv('LOTTERYBOOK_CACHE', str(tmp_path/'cache'))
    monkeypatch.delenv('LOTTERYBOOK_DATA', raising=False)
    assert files.read_files(made) == contents and fetched == ['http://127.0.0.1:9/cifar-10-python.tar.gz']

def test_standardized():
    data = standardized(digits)
    assert abs(data.x_train.mean()) < 1e-5 and abs(data.x_train.std() - 1) < 1e-5
    assert torch.allclose(data.x_test[3] - data.x_test[5], (digits.x_test[3] - digits.x_test[5])/digits.x_train.std(), atol=1e-5)
