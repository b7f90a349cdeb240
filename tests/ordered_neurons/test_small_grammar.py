"Gold trees without labels, against the labelled ones; a text in place of words."
import pytest
from nltk import PCFG, Tree
from lotterybook.ordered_neurons.constituency import spans
from lotterybook.ordered_neurons.small_grammar import generate, log_prob, source_perplexity, unlabelled

def test_the_same_groups_of_words():
    for tree in generate(300, seed=3, max_words=40):
        before, bare = tree.copy(deep=True), unlabelled(tree)
        assert tree == before and bare.leaves() == tree.leaves() and spans(bare) == spans(tree)
        assert {node.label() for node in bare.subtrees()} == {'X'} and {len(node) for node in bare.subtrees()} == {2}
        assert len(list(bare.subtrees())) == len(spans(tree))              # a node for each group, chains gone

def test_flat_nodes_chains_and_one_word():
    assert str(unlabelled(Tree.fromstring('(S (NP (NP (N a) b c)) (VP (V d)))'))) == '(X (X a b c) d)'
    assert str(unlabelled(Tree.fromstring('(S (VP (V go)))'))) == '(X go)' # as the tree that is built of one distance

@pytest.mark.parametrize('ask', [log_prob, source_perplexity])
def test_a_text_is_no_line(ask):
    letters = PCFG.fromstring("S -> A S [.25] | 'a' [.75]\nA -> 'a' [1.]")  # whose words are letters
    with pytest.raises(ValueError, match="a sentence is a list of words, not the text 'aa'"): ask(['aa'], letters)
