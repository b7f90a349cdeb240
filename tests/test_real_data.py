"MNIST and Fashion-MNIST as they really are; these tests skip aloud where LOTTERYBOOK_DATA names no folder."
from hashlib import sha256
import os, re, shutil, subprocess, sys
from pathlib import Path
import pytest
from conftest import skip

facts = dict(mnist=('MNIST', .1307, .3081), fashion_mnist=('FashionMNIST', .2860, .3530)) # folder, mean and deviation of train pixels

@pytest.mark.parametrize('name', facts)
def test_public_facts(name, real_data):
    import torch
    from lotterybook.foundations.data import load
    data = load(name, folder=real_data)
    assert [len(o) for o in (data.x_train, data.x_validation, data.x_test)] == [55_000, 5_000, 10_000] and data.classes == 10
    pixels = torch.cat([data.x_train, data.x_validation])
    _, mean, deviation = facts[name]
    assert abs(pixels.mean().item() - mean) < 1e-4 and abs(pixels.std().item() - deviation) < 1e-4
    published = dict(mnist=[5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], fashion_mnist=[6000]*10)
    assert (data.y_train.bincount() + data.y_validation.bincount()).tolist() == published[name] # nothing lost between the parts

def test_validation_is_split_by_seed(real_data):
    from lotterybook.foundations.data import load
    first, again, other = (load('mnist', seed=o, folder=real_data) for o in (0, 0, 1))
    assert first.y_validation.equal(again.y_validation) and not first.y_validation.equal(other.y_validation)
    assert first.x_test.equal(other.x_test) # test data is the same for all

def fetch(name, folder, home):
    tool = Path(sys.executable).parent/'lotterybook'
    env  = dict(os.environ, LOTTERYBOOK_DATA=str(folder), XDG_CACHE_HOME=str(home), HTTPS_PROXY='http://127.0.0.1:9', HTTP_PROXY='http://127.0.0.1:9')
    return subprocess.run([tool, 'fetch', name], env=env, cwd=home, capture_output=True, text=True, timeout=300)

def test_fetch_finds_what_is_there(real_data, tmp_path):
    done = fetch('mnist', real_data, tmp_path)
    assert done.returncode == 0 and str(real_data) in done.stdout, done.stderr

def test_damaged_file_is_named(real_data, tmp_path):
    "A truncated file is named with both checksums; without a network the message says where to put a good one"
    raw = tmp_path/'MNIST'/'raw'
    shutil.copytree(real_data/'MNIST'/'raw', raw)
    file = raw/'train-labels-idx1-ubyte.gz'
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    done = fetch('mnist', tmp_path, tmp_path)
    said = done.stdout + done.stderr
    assert file.name in said and '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c' in said, said
    assert sha256(file.read_bytes()).hexdigest() in said and 'Put a good copy there' in said, said
    assert done.returncode == 2 and 'Traceback' not in said

def test_mnist_is_learnt(real_data):
    from lotterybook.foundations.data import load
    from lotterybook.foundations.networks import build
    from lotterybook.foundations.training import train
    data = load('mnist', folder=real_data)
    assert train(build('lenet', data, seed=0), data, steps=500)['end_accuracy'] > .9 # 95 % is usual

# --- pairs of formulas (Bowman et al., 2015)

@pytest.fixture(scope='module')
def formulas(real_data):
    "The public pairs by part and number of operators, read from the archive without the loader"
    import tarfile
    archive = real_data/'proplogic'/'propositionallogic.tar.gz'
    if not archive.is_file(): skip(f'no pairs of formulas: {archive} is missing')
    parts = dict(train={}, test={})
    with tarfile.open(archive) as tar:
        for member in tar:
            part, k = re.fullmatch(r'.*/(train|test)(\d+)', member.name).groups()
            lines = tar.extractfile(member).read().decode().splitlines()
            parts[part][int(k)] = [tuple(o.split('\t')) for o in lines]
    return parts

@pytest.mark.parametrize('part, lines', [('test', 37_367), ('train', 211_702)])
def test_every_public_label_is_the_relation_by_truth_tables(part, lines, formulas):
    from lotterybook.ordered_neurons.logical_inference import relation
    pairs = [o for group in formulas[part].values() for o in group]
    assert len(pairs) == lines
    wrong = [(label, left, right) for label, left, right in pairs if relation(left, right) != label]
    assert not wrong, f'{len(wrong)} of {lines}, such as {wrong[:3]}'

def test_public_groups_are_numbers_of_operators(formulas):
    "The longer side's, 12 and more in the last; sides can be true and can be false; four variables at most in a pair"
    from lotterybook.ordered_neurons.propositional_logic import OPERATORS, by_operators, parse, truth_table
    pairs = [o for group in formulas['test'].values() for o in group]
    assert {k: len(o) for k, o in by_operators(pairs).items()} == {k: len(o) for k, o in formulas['test'].items()}
    for _, *sides in pairs:
        variables = {o for side in sides for o in parse(side)} - set(OPERATORS)
        assert len(variables) <= 4
        for side in sides: assert 0 < truth_table(side, sorted(variables)) < 2**2**len(variables) - 1

def test_longer2_has_words_for_variables(real_data):
    import tarfile
    from lotterybook.ordered_neurons.propositional_logic import relation
    archive = real_data/'proplogic'/'propositionallogic_longer2_partial.tar.gz'
    if not archive.is_file(): skip(f'no pairs of formulas with words: {archive} is missing')
    with tarfile.open(archive) as tar: lines = tar.extractfile('propositionallogic/longer2/test3').read().decode().splitlines()
    assert len(lines) > 3000 and 'abby' in ' '.join(lines).split()
    assert all(relation(*sides) == label for label, *sides in (o.split('\t') for o in lines))

def test_generated_pairs_are_like_the_public_ones(formulas):
    "Shares of the seven relations, lengths, bare variables and nots; short pairs are fewer among more draws, so 1 to 3 are held loosely"
    from lotterybook.ordered_neurons.propositional_logic import RELATIONS, by_operators, generate_pairs
    public = {k: formulas['train'][k] + formulas['test'][k] for k in formulas['train']}
    ours   = by_operators(generate_pairs(30_000))
    assert set(ours) == set(public)
    def share(group, which): return sum(map(which, group))/len(group)
    def length(o): return len(o[1].split()) + len(o[2].split())
    for k in range(1, 11):
        for r in RELATIONS: assert abs(share(ours[k], lambda o: o[0] == r) - share(public[k], lambda o: o[0] == r)) < .04, (k, r)
        if k < 4: continue
        assert abs(share(ours[k], length)/share(public[k], length) - 1) < .03, k
        assert abs(share(ours[k], lambda o: min(map(len, o[1:])) == 1) - share(public[k], lambda o: min(map(len, o[1:])) == 1)) < .05, k
    few = {name: len(o[1])/sum(map(len, o.values())) for name, o in dict(ours=ours, public=public).items()}
    assert few['public'] < .02 < few['ours'] # where they differ: the fewer pairs are drawn, the more of them are short

def test_public_split_is_by_order_of_appearance(formulas):
    "Why accuracy at one operator is not measured on what was trained; and mirror images of training pairs in test"
    def negated(group): return sum(o[0] in '^|v' for o in group)/len(group)
    assert negated(formulas['test'][1]) == 0 and negated(formulas['train'][1]) > .1
    def bare(group): return sum(min(map(len, o[1:])) == 1 for o in group)/len(group)
    assert bare(formulas['test'][1]) == 0 and bare(formulas['train'][1]) > .4
    for k, low, high in ((1, .1, .2), (3, .05, .1), (6, 0, .01)):
        train = {o[1:] for o in formulas['train'][k]}
        assert low <= sum(o[:0:-1] in train for o in formulas['test'][k])/len(formulas['test'][k]) < high

def test_public_split_for_three_and_six_operators(formulas):
    from lotterybook.ordered_neurons.formula_batches import train_validation, vocabulary
    assert [len(train_validation(formulas['train'], k)[0]) for k in (3, 6)] == [34_247, 121_977]
    assert list(vocabulary(formulas['test'][12])) == ['(', ')', 'a', 'and', 'b', 'c', 'd', 'e', 'f', 'not', 'or']
