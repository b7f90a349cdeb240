"Formulas in a batch against one formula at a time, gradients; brackets that do not hold two parts."
import pytest, torch
from lotterybook.ordered_neurons.formula_batches import encode_pairs, vocabulary
from lotterybook.ordered_neurons.propositional_logic import generate_pairs
from lotterybook.ordered_neurons.tree_lstm import TreeLSTM

def one_by_one(tree, embedded, opened, closed, length):
    "A formula alone, on a stack"
    stack = []
    for x, is_open, is_closed in zip(embedded[:length], opened[:length], closed[:length]):
        if is_closed:
            right, left = stack.pop(), stack.pop()
            stack.append(tree.join(left, right))
        elif not is_open: stack.append(tree.read(x))
    return stack.pop()[0]

@pytest.fixture(scope='module')
def batch():
    "Formulas of all sizes, embedded: x, opened, closed, lengths"
    pairs = generate_pairs(60)
    words = vocabulary(pairs)
    o = encode_pairs(pairs, words)
    torch.manual_seed(0)
    return torch.randn(len(words) + 1, 5)[o.tokens], o.tokens == words['('], o.tokens == words[')'], o.lengths

def test_formulas_of_all_sizes(batch):
    tree = TreeLSTM(5, 8)
    together = tree(*batch)
    torch.testing.assert_close(together, torch.stack([one_by_one(tree, *row) for row in zip(*batch)]), atol=1e-6, rtol=0)
    together.sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in tree.parameters())

def test_padding_is_not_read(batch):
    tree, (x, opened, closed, lengths) = TreeLSTM(5, 8), batch
    after = torch.arange(x.shape[1]) >= lengths[:, None]
    assert tree(torch.where(after[..., None], torch.full_like(x, 9.), x), opened, closed, lengths).equal(tree(*batch))

@pytest.mark.parametrize('text, why', [
    (') a', 'formula 0: a bracket closes over 0 parts, not 2'), ('( a )', 'formula 0: a bracket closes over 1 parts, not 2'),
    ('a b', 'formula 0: 2 parts are left, not 1; are its brackets complete?'), ('( a ( and b )', 'formula 0: 2 parts are left'), ('( (', '0 parts are left')])
def test_not_two_parts(text, why):
    tokens = text.split()
    opened, closed = (torch.tensor([[token == bracket for token in tokens]]) for bracket in '()')
    with pytest.raises(ValueError, match=why): TreeLSTM(3, 4)(torch.ones(1, len(tokens), 3), opened, closed, torch.tensor([len(tokens)]))
