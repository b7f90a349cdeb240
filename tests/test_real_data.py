"MNIST and Fashion-MNIST as they really are; these tests skip aloud where LOTTERYBOOK_DATA names no folder."
from hashlib import sha256
import os, shutil, subprocess, sys
from pathlib import Path
import pytest

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

SYNTAX_COVERED = { # construction of Marvin and Linzen: items, and the per mille of them without a word that PTB's text lacks
    'long_vp_coord': (400, 285), 'npi_across_anim': (4800, 472), 'npi_across_inanim': (5760, 306), 'obj_rel_across_anim': (11200, 190),
    'obj_rel_across_inanim': (10080, 250), 'obj_rel_no_comp_across_anim': (11200, 190), 'obj_rel_no_comp_across_inanim': (10080, 250),
    'obj_rel_no_comp_within_anim': (11200, 95), 'obj_rel_no_comp_within_inanim': (10080, 125), 'obj_rel_within_anim': (11200, 95),
    'obj_rel_within_inanim': (10080, 125), 'prep_anim': (16800, 380), 'prep_inanim': (5040, 500), 'reflexive_sent_comp': (3360, 204),
    'reflexives_across': (22400, 142), 'sent_comp': (1680, 271), 'simple_agrmt': (140, 543), 'simple_npi_anim': (120, 900),
    'simple_npi_inanim': (144, 583), 'simple_reflexives': (280, 407), 'subj_rel': (11200, 185), 'vp_coord': (840, 271)}

@pytest.fixture(scope='module')
def syntax(real_data):
    from lotterybook.foundations.data import load
    return load('syntactic_evaluation', folder=real_data)

def test_syntactic_suite(syntax):
    from lotterybook.ordered_neurons.syntactic_evaluation import as_paper_rows, pairings
    items = {name: [o for case in cases.values() for o in case] for name, cases in syntax.items()}
    assert {name: len(o) for name, o in items.items()} == {name: n for name, (n, _) in SYNTAX_COVERED.items()}
    assert len(items) == 22 and sum(map(len, items.values())) == 158_084
    for name, o in items.items():
        apart = {pairing: {sum(x != y for x, y in zip(a.split(), b.split(), strict=True)) for a, b in pairs} for pairing, pairs in pairings(o).items()}
        far   = dict(zip(apart, ({2}, {2}, {1}))) if name.startswith('npi_across') else {pairing: {1} for pairing in apart}
        assert apart == far, name # the words that tell two sentences apart
    rows = as_paper_rows(syntax)
    assert len(rows) == 15 and sum(len(o) for cases in rows.values() for o in cases.values()) == 158_084

def test_syntactic_suite_in_ptb_words(syntax, real_data):
    "What page 180 says of a model with the vocabulary of the Penn Treebank's text"
    from lotterybook.ordered_neurons.syntactic_evaluation import coverage, evaluate
    vocabulary = set((real_data/'ptb'/'ptb.train.txt').read_text(encoding='utf-8').split())
    words = {w for cases in syntax.values() for case in cases.values() for item in case for o in item for w in o.split()}
    assert (len(words), len(words - vocabulary)) == (161, 30)
    share = coverage(syntax, vocabulary)
    assert all(abs(1000*share[name] - o) <= .5 for name, (_, o) in SYNTAX_COVERED.items())
    small = {name: syntax[name] for name in ('simple_agrmt', 'simple_npi_anim')}
    letters = lambda lines: [-float(sum(map(len, o))) for o in lines] # prefers the shorter verb: right for plurals
    with pytest.raises(ValueError, match='does not know'): evaluate(letters, small, vocabulary)
    done = {unknown: evaluate(letters, small, vocabulary, unknown)[0] for unknown in ('skip', '<unk>')}
    assert done['skip']['covered'] == share['simple_agrmt'] and done['skip']['ties'] == 0
    pairs = [o for case in syntax['simple_agrmt'].values() for o in case]
    same  = sum(len({' '.join(w if w in vocabulary else '<unk>' for w in o.split()) for o in pair}) == 1 for pair in pairs)
    assert done['<unk>']['covered'] == 1 and done['<unk>']['ties'] >= same > 0

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
