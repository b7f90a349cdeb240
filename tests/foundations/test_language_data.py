"One text cut into three."
import pytest
from lotterybook.foundations.language_data import corpus_from_lines

@pytest.mark.parametrize('n', [3, 10, 11, 99, 1000])
@pytest.mark.parametrize('shares', [{}, dict(validation=.2), dict(validation=.25, test=.3), dict(test=1/3)])
def test_parts_are_exact_and_disjoint(n, shares):
    lines = [[str(k)] for k in range(n)]
    sizes = [round(shares.get(part, .1)*n) for part in ('validation', 'test')]
    if not all(sizes):
        with pytest.raises(ValueError, match=f'{n} lines with'): corpus_from_lines(lines, **shares)
        return
    corpus = corpus_from_lines(lines, **shares, name='mine')
    assert corpus.train + corpus.validation + corpus.test == lines         # each line once, in order
    assert [len(corpus.validation), len(corpus.test)] == sizes and corpus.name == 'mine'

@pytest.mark.parametrize('shares, why', [(dict(validation=.6, test=.6), '-4 lines to train'), (dict(validation=-.1), '-2 to validate'), (dict(test=0), '0 to test'),
                                         (dict(validation=.5, test=.5), '0 lines to train'), (dict(test=3), '60 to test')])
def test_no_part_is_empty(shares, why):
    with pytest.raises(ValueError, match=why): corpus_from_lines([['a']]*20, **shares)
