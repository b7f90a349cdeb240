"Spans, F1 by five conventions against a second route, baselines, recall by label, and what is refused."
import pytest, torch
from nltk import Tree
from lotterybook.foundations.randomness import rng
from lotterybook.ordered_neurons.constituency import BASELINES, CONVENTIONS, baseline_tree, corpus_f1, label_recall, spans, split_tree
from lotterybook.ordered_neurons.syntactic_distance import tree_from_distances

read = Tree.fromstring
gold = read('(S (NP the old man) (VP saw (NP a ship) (PP in (NP the fog))))')
pred = read('(X (X the (X old man)) (X saw (X a (X ship (X in (X the fog))))))')
one, two, flat, right, other = map(read, ('(X yes)', '(X so what)', '(S a b c)', '(X a (X b c))', '(X (X dogs bark) loudly)'))
five = 'a b c d e'.split()
conventions = pytest.mark.parametrize('convention', CONVENTIONS)
kinds = pytest.mark.parametrize('kind', BASELINES)

# --- spans

def test_spans_by_hand():
    assert spans(gold) == {(0, 9), (0, 3), (3, 9), (4, 6), (6, 9), (7, 9)}
    assert spans(pred) == {(0, 9), (0, 3), (1, 3), (3, 9), (4, 9), (5, 9), (6, 9), (7, 9)}
    assert spans(read('(S (NP (NP a b)))')) == {(0, 2)} and spans(read('(S yes)')) == set()   # a chain is one span; a word is none

# --- F1

def test_f1_by_hand():
    scores = {o: corpus_f1([pred], [gold], o) for o in CONVENTIONS}
    assert [scores[o] for o in ('released', 'kim', 'corpus')] == pytest.approx([2/3]*3)
    assert [scores[o] for o in ('sentence_root', 'corpus_root')] == pytest.approx([5/7]*2)

@pytest.mark.parametrize('found, golds, convention, expected', [
    ([pred, two], [gold, two], 'released', (2/3 + 1)/2),                   # two words: 1
    ([pred, one], [gold, one], 'released', (2/3 + 1)/2),                   # so does one
    ([pred, right], [gold, flat], 'released', (2/3 + 0)/2),                # nothing to find, one found: 0
    ([pred, right], [gold, flat], 'sentence_root', (5/7 + 2/3)/2),         # the root saves it
    ([pred, two, one], [gold, two, one], 'kim', 2/3),                      # short ones are left out
    ([pred, right], [gold, flat], 'kim', (2/3 + 0)/2),                     # flat ones are not
    ([pred, right], [gold, flat], 'corpus', 2*4/(12 + 1))])                # one F1 over all spans
def test_short_and_flat_sentences(found, golds, convention, expected):
    assert corpus_f1(found, golds, convention) == pytest.approx(expected)

@conventions
def test_perfect_is_one(convention): assert corpus_f1([gold, two, flat], [gold, two, flat], convention) == 1

def plain_f1(model_spans, gold_spans):
    "F1 by way of precision and recall, with the constants and the special case of the released evaluation."
    common = len(model_spans & gold_spans)
    precision, recall = common/(len(model_spans) + 1e-8), common/(len(gold_spans) + 1e-8)
    if not gold_spans: recall, precision = 1., 1. if not model_spans else precision
    return 2*precision*recall/(precision + recall + 1e-8)

def random_gold(n, g):
    "A random tree with nodes of two to four parts."
    if n == 1: return 'w'
    cuts = sorted(torch.randperm(n - 1, generator=g)[:int(torch.randint(1, 4, (), generator=g))].add(1).tolist())
    return Tree('X', [random_gold(b - a, g) for a, b in zip([0, *cuts], [*cuts, n])])

def test_f1_by_a_second_route():
    g = rng(0, 'random trees')
    golds = [random_gold(n, g) for n in [2, 3, 3, 3, 4, 4, 5, 6, 8, 12, 20]*10]
    preds = [tree_from_distances(torch.rand(len(o.leaves()), generator=g), o.leaves()) for o in golds]
    scores = [plain_f1(*(spans(o) - {(0, len(o.leaves()))} for o in pair)) for pair in zip(preds, golds)]
    assert corpus_f1(preds, golds) == pytest.approx(sum(scores)/len(scores), abs=1e-6)
    by_name = {o: corpus_f1(preds, golds, o) for o in CONVENTIONS}
    assert by_name['sentence_root'] > by_name['released'] and by_name['corpus_root'] > by_name['corpus']   # the whole sentence is a gift
    assert max(by_name.values()) - min(by_name.values()) > .04

@pytest.mark.parametrize('ask, why', [
    (lambda: corpus_f1([pred], [gold], 'evalb'), "unknown convention 'evalb'; known are released"),
    (lambda: corpus_f1([pred], [gold, gold]), '1 trees found, but 2 gold trees'),
    *((lambda pair=pair: corpus_f1(*pair), r'not one tree; write \[tree\]') for pair in ((pred, gold), ([pred], gold), (pred, [gold]))),
    (lambda: corpus_f1([pred, two], [gold, gold]), 'sentence 1: the tree found has 2 words, the gold tree 9'),
    (lambda: corpus_f1([two, right], [two, other]), "sentence 1: 'a' in the tree found is 'dogs' in the gold tree"),
    (lambda: corpus_f1([two], [two], 'kim'), 'no sentence of 3 words or more'), (lambda: corpus_f1([], []), 'no sentence of 1 words or more'),
    (lambda: label_recall([two], [gold]), 'the tree found has 2 words'),
    (lambda: label_recall([other], [flat]), "sentence 0: 'dogs' in the tree found is 'a'")])
def test_not_comparable(ask, why):
    with pytest.raises(ValueError, match=why): ask()

def test_other_words():
    assert corpus_f1([right], [other], same_words=False) == 0              # spans alone
    assert label_recall([other], [flat], same_words=False) == dict(S=(1, 1))

# --- baselines

@pytest.mark.parametrize('kind, expected', dict(right='(X a (X b (X c (X d e))))', left='(X (X (X (X a b) c) d) e)', balanced='(X (X a b) (X c (X d e)))').items())
def test_baselines_by_hand(kind, expected): assert str(baseline_tree(five, kind)) == expected

def test_split_tree(): assert str(split_tree(five, lambda n: 2 if n > 3 else 1)) == '(X (X a b) (X c (X d e)))'

def test_ties_branch_to_the_right(): assert baseline_tree(five, 'right') == tree_from_distances([0]*5, five)

@kinds
def test_baselines(kind):
    tree = baseline_tree(five*5, kind)
    assert tree.leaves() == five*5 and len(spans(tree)) == 24 and {len(o) for o in tree.subtrees()} == {2}
    assert [str(baseline_tree(['yes'], kind)), str(baseline_tree(['so', 'what'], kind))] == ['(X yes)', '(X so what)']
    with pytest.raises(ValueError, match='an empty sentence'): baseline_tree([], kind)
    with pytest.raises(ValueError, match="not the text 'a b c d e'"): baseline_tree('a b c d e', kind)

def test_random_trees():
    "The balanced one of four words comes with 1/3, the cut being in the middle; four standard errors"
    assert baseline_tree(five, 'random', rng(3, 'a tree')) == baseline_tree(five, 'random', rng(3, 'a tree'))
    g, n = rng(0, 'random trees'), 3000
    balanced = sum(spans(baseline_tree(five[:4], 'random', g)) == {(0, 4), (0, 2), (2, 4)} for _ in range(n))
    assert abs(balanced/n - 1/3) < 4*(1/3*2/3/n)**.5

@pytest.mark.parametrize('ask, why', [
    (lambda: baseline_tree(five, 'center'), "unknown baseline 'center'; known are right"),
    *((lambda k=k: split_tree(five, lambda n: k), f'{k} of 5 words to the left; each part needs one') for k in (-1, 0, 5)),
    (lambda: baseline_tree(['w']*2000, 'right'), '2000 words give a tree too deep')])
def test_no_baseline(ask, why):
    with pytest.raises(ValueError, match=why): ask()

# --- recall by label

def test_recall_by_hand():
    found = label_recall([pred], [gold])
    assert found == dict(NP=(2, 3), S=(1, 1), VP=(1, 1), PP=(1, 1)) and found['NP'].share == 2/3
    assert sum(o.found for o in found.values()) == len(spans(gold) & spans(pred))
    assert label_recall([pred], [gold], root=False).keys() == {'NP', 'VP', 'PP'}

def test_a_chain_counts_for_each_label():
    chain = read('(S+VP to (VP go away))')
    assert label_recall([baseline_tree(chain.leaves(), 'left')], [chain]) == dict(VP=(1, 2), S=(1, 1))
