"The grammar's rules, agreement by spelling, samples against exact values, parts, gold trees without labels, refused input."
import math
from collections import Counter
import numpy as np
import pytest
from fastcore.test import test_close as close
from nltk import PCFG, InsideChartParser, Nonterminal, Tree
from lotterybook.ordered_neurons.constituency import spans
from lotterybook.ordered_neurons.small_grammar import (LEXICON, as_corpus, expectations, generate, grammar, length_distribution, log_prob, mirror,
                                                       part_of, sentences, source_perplexity, unlabelled)

by_hand = PCFG.fromstring("S -> A S [.25] | 'a' [.75]\nA -> 'a' [1.]")

@pytest.fixture(scope='module')
def trees(): return generate(3000, seed=0)

rule_prob = {(str(o.lhs()), tuple(map(str, o.rhs()))): o.prob() for o in grammar().productions()}
def tree_log_prob(tree): return sum(math.log(rule_prob[str(o.lhs()), tuple(map(str, o.rhs()))]) for o in tree.productions())
def close_to_mean(values, expected): return abs(np.mean(values) - expected) < 4*np.std(values)/len(values)**.5 # once in 16,000 not

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

# --- the rules

@pytest.mark.parametrize('mirrored', [False, True])
def test_rules(mirrored):
    pcfg, totals = grammar(mirrored), Counter()
    for o in pcfg.productions(): totals[str(o.lhs())] += o.prob()
    assert all(abs(o - 1) < 1e-12 for o in totals.values())                # probabilities sum to 1
    assert all(len(o.rhs()) in (1, 2) for o in pcfg.productions())

def test_words_and_categories():
    words = {o for row in LEXICON.values() for o in row}
    assert {o for p in grammar().productions() for o in p.rhs() if isinstance(o, str)} == words
    assert not words & {str(o.lhs()) for o in grammar().productions()}     # a word is never a category
    for a, b in (('N', 10), ('IV', 7), ('TV', 7), ('SV', 4)):              # forms in pairs, in the same order
        assert [len(LEXICON[f'{a}-{o}']) for o in ('SG', 'PL')] == [b, b]
    assert [str(o) for o in grammar(True).productions(Nonterminal('PP'))] == ['PP -> NP-SG P [0.5]', 'PP -> NP-PL P [0.5]']

def test_endless_and_mirrored_grammars():
    e = expectations(by_hand)
    close([e.radius, e.words], [1/4, 4/3])
    close(e.nats, sum(-q*math.log(q) for q in (.75*.25**k for k in range(60)))) # the entropy, summed up
    endless = PCFG.fromstring("S -> S S [.6] | 'a' [.4]")                  # 1.2 children on average
    assert expectations(endless)[1:] == (math.inf, math.inf)
    close(expectations(endless).radius, 1.2)
    close(expectations(), expectations(grammar(mirrored=True)))            # the twin is the same
    assert expectations().radius < 1                                       # or sampling need not end

# --- samples

def test_samples_against_exact_values(trees):
    assert close_to_mean([len(o.leaves()) for o in trees], expectations().words)
    assert close_to_mean([tree_log_prob(o) for o in trees], -expectations().nats)

def test_samples_of_seeds_and_twins(trees):
    assert generate(5, seed=0) == trees[:5] != generate(5, seed=1)         # more trees begin with the same ones
    assert [o.leaves()[::-1] for o in generate(50, seed=0, mirrored=True)] == sentences(trees[:50])
    assert [mirror(mirror(o)) for o in trees[:50]] == trees[:50]
    rules = {str(p).rpartition(' [')[0] for p in grammar(True).productions()}
    assert all(set(map(str, o.productions())) <= rules for o in generate(50, seed=0, mirrored=True)) # made by the mirrored rules

def test_samples_of_each_length(trees):
    exact = length_distribution(60)
    assert exact[:3].tolist() == [0, 0, 0] and length_distribution(0).tolist() == [0] # three words at least
    tail, so_far = 1 - exact.sum(), (exact*np.arange(61)).sum()
    assert 0 < tail < .01 and so_far + 61*tail < expectations().words < so_far + 90*tail # the mean once more: longer ones have 61 words or more
    sampled = np.bincount([len(o.leaves()) for o in trees], minlength=61)[:61]/len(trees)
    often   = exact*len(trees) > 10                                        # where counts are nearly normal
    assert (abs(sampled - exact) < 4*(exact*(1 - exact)/len(trees))**.5)[often].all() # four standard errors
    close(length_distribution(9, by_hand)[1:], [.75*.25**(n - 1) for n in range(1, 10)])

def test_short_sentences_keep_their_order(trees):
    assert generate(200, seed=0, max_words=8) == [o for o in trees if len(o.leaves()) <= 8][:200]

# --- agreement, by English spelling and the shape of the tree, without the rules' SG and PL

def kind(node): return node.label().split('-')[0]

def head(phrase):
    "The noun a noun phrase is about, and its determiner: always down the left."
    return (phrase[1].leaves()[-1], phrase[0][0]) if kind(phrase[1]) in ('N', 'NOM') else head(phrase[0])

def predicates(vp):
    "Verbs (and reflexives, and `ever`) that belong to the subject of a verb phrase."
    if kind(vp[0]) == 'VP': return predicates(vp[0]) + predicates(vp[1][1])   # coordination
    if kind(vp[0]) == 'MD': return ['ever']*('ever' in vp[1].leaves()[:1])    # no number after `will`
    return [vp[0][0]] + [o[0] for o in vp[1:] if kind(o) == 'REFL']

def subjects(tree):
    "(noun, determiner, what belongs to it) of every clause, relative clauses included."
    for node in tree.subtrees():
        if kind(node) == 'S': yield *head(node[0]), predicates(node[1])
        if kind(node) == 'GAP': yield *head(node[0]), [node[1][0]]
        if kind(node) in ('NP', 'NEG') and kind(node[1]) == 'RC' and kind(node[1][0]) == 'C' and kind(node[1][1]) == 'VP':
            yield *head(node), predicates(node[1][1])

def plural(word):
    if word in ('himself', 'herself', 'themselves'): return word == 'themselves'
    if word in LEXICON['N-SG'] + LEXICON['N-PL']: return word.endswith('s') or word in ('children', 'women')
    return not word.endswith('s')

def faults(tree):
    "Words that do not go with their subject."
    return [(noun, o) for noun, no, said in subjects(tree) for o in said
            if (no not in ('no', 'few') if o == 'ever' else plural(o) != plural(noun))]

def test_agreement(trees):
    number   = dict(a=False, every=False, this=False, some=True, many=True, these=True, few=True) # plural? `the` and `no` go with both
    nominals = [(o[0][0], plural(o[1].leaves()[-1])) for tree in trees
                for o in tree.subtrees(lambda o: kind(o) in ('NP', 'NEG') and kind(o[1]) in ('N', 'NOM'))]
    assert all(number.get(determiner, n) == n for determiner, n in nominals) and {o for o, _ in nominals} >= number.keys()
    checked = Counter(o for tree in trees for _, _, said in subjects(tree) for o in said)
    assert not any(map(faults, trees)) and checked.total() > 5000
    assert set(checked) >= {w for c in ('IV', 'TV', 'SV', 'BE', 'REFL') for n in ('SG', 'PL') for w in LEXICON[f'{c}-{n}']} | {'ever'}
    assert sum(o.leaves().count('ever') for o in trees) == checked['ever'] # each `ever` has a subject, and was checked

def test_agreement_can_fail():
    broken = Tree.fromstring('(S (NP (NP (DT the) (N child)) (RC (C that) (GAP (NP (DT the) (N poets)) (TV see))))'
                             '   (VP (VP (IV sleep)) (AND (CC and) (VP (BE is) (A tall)))))')
    assert faults(broken) == [('child', 'sleep')]
    few = Tree.fromstring('(S (NEG (NP (DT the) (N poets)) (RC (GAP (NEG (NO no) (N king)) (TV sees))))'
                          '   (VP-EVER (MD will) (VB (RB ever) (VB (IV sleep)))))')
    assert faults(few) == [('poets', 'ever')]                              # `no` in a relative clause does not license

# --- probabilities

def test_sentences_against_all_their_trees(trees):
    close(np.exp(log_prob([['a']*n for n in (1, 2, 5)], by_hand)), [.75*.25**(n - 1) for n in (1, 2, 5)])
    two_ways = 'the child near the poet that sleeps waits'.split()
    assert len(list(InsideChartParser(grammar()).parse(two_ways))) == 2
    for line in sorted(sentences(trees[:300]), key=len)[:80:8] + [two_ways]:
        listed = list(InsideChartParser(grammar()).parse(line))
        close(math.exp(log_prob([line])[0]), sum(o.prob() for o in listed), eps=1e-15)
        for o in listed: close(o.prob(), math.exp(tree_log_prob(o)), eps=1e-15)
        close(log_prob([line[::-1]], grammar(mirrored=True)), log_prob([line])) # the twin of a sentence is as likely

def test_sentences_that_are_none():
    wrong = ['the child sleep', 'the children that the poet see sleep', 'the poet likes themselves', 'the child will ever sleep',
             'the poets that no king sees will ever sleep', 'child the sleeps', 'sleeps', '']
    assert log_prob([o.split() for o in wrong]) == [-math.inf]*len(wrong)

def test_long_sentences():
    long = 'the child thinks that'.split()*30 + 'the child sleeps'.split()
    step = math.log(.41*.44/4/10*.08/4)                                    # S, NP-SG, `the`, `child`; VP-SG, `thinks`; CP and C are certain
    close(log_prob([long])[0], 30*step + math.log(.41*.44/4/10*.14/7))
    with pytest.raises(ValueError, match='183 words: beyond 180'): log_prob([long[:4]*45 + long[-3:]])

def test_source_perplexity(trees):
    close(source_perplexity([['a'], ['a', 'a']], by_hand), (.75*.75*.25)**(-1/5)) # five predictions, end marks in
    close(source_perplexity([['a']], by_hand, max_words=1), 1.)            # one sentence is left: certain
    hidden = np.array(log_prob(sentences(trees[:500]))) - [tree_log_prob(o) for o in trees[:500]]
    assert (hidden > -1e-9).all()                                          # a sentence is at least as likely as each of its trees

def test_words_of_the_entropy():
    "One word per category: the same structures"
    flat = PCFG(grammar().start(), [o for o in grammar().productions() if isinstance(o.rhs()[0], Nonterminal)] +
                [type(grammar().productions()[0])(Nonterminal(o), [o.lower()], prob=1) for o in LEXICON])
    close(expectations(flat).words, expectations().words)

# --- parts

def test_parts_share_no_sentence(trees):
    corpus = as_corpus(2000, 250, 250, seed=0)
    parts  = dict(train=corpus.train, validation=corpus.validation, test=corpus.test)
    assert [len(o) for o in parts.values()] == [2000, 250, 250]
    seen = {k: {' '.join(o) for o in lines} for k, lines in parts.items()}
    assert not seen['train'] & seen['test'] and not seen['train'] & seen['validation'] and not seen['validation'] & seen['test']
    other = {' '.join(o) for o in as_corpus(1500, 0, 0, seed=1).train}
    assert not seen['test'] & other and seen['train'] & other
    assert sentences(corpus.trees['test']) == corpus.test
    assert as_corpus(300, 20, 20, seed=0, mirrored=True).train == [o[::-1] for o in corpus.train[:300]]
    assert all(len(o) <= 10 for o in as_corpus(50, 5, 5, max_words=10).train)
    shares = Counter(part_of(o) for o in {tuple(o.leaves()) for o in trees}) # of distinct sentences
    n = shares.total()
    for part, p in (('train', .8), ('validation', .1), ('test', .1)): assert abs(shares[part]/n - p) < 4*(p*(1 - p)/n)**.5
    for lines in parts.values(): assert close_to_mean([len(o) for o in lines], expectations().words) # the parts look alike

@pytest.mark.parametrize('ask, why', [
    (lambda: log_prob([['the', 'unicorn', 'sleeps']]), "'unicorn'"),
    (lambda: log_prob([['a']], PCFG.fromstring("S -> 'a' S [.5] | 'a' [.5]")), 'two categories'),
    (lambda: generate(1, seed=0, max_words=2), 'max_words=2'), (lambda: generate(-1, seed=0), 'n=-1'),
    (lambda: generate(1, seed=0, max_words=10.5), 'max_words=10.5 must'), (lambda: length_distribution(-1), 'max_words=-1 must'),
    (lambda: source_perplexity([]), 'no lines'), (lambda: source_perplexity([['a']*3], by_hand, 2), '3 words, but the source has max_words=2'),
    (lambda: as_corpus(test=-1), 'test=-1 must be'), (lambda: part_of('the child'), "not the text 'the child'")])
def test_refused(ask, why):
    with pytest.raises(ValueError) as e: ask()
    assert why in str(e.value)
