"Links of the pages: the rules on small pages made here, and the book itself is up to date."
import re
from pathlib import Path
import pytest
from lotterybook.tools.links import NAV, bring_up_to_date, glossary, links
from lotterybook.tools.pages import find_pages, page_cells, write_page

root  = Path(__file__).resolve().parent.parent
nbs   = root/'nbs'
pages = find_pages(folder=nbs)
read  = pages[-1:] + pages[:-1] # in the order of reading
terms = glossary(nbs)
anchors = [o.anchor for o in terms.values()]

TABLE = '''| term | meaning | page | assumed in |
|---|---|---|---|
| <a id="mask"></a>mask | Which weights are kept. | [200](../2_pruning/200_masks.ipynb) | 2 |
| <a id="nats"></a>nats, nat | A unit. | [100](../1_nets/100_lstm.ipynb) | |
| <a id="one-shot"></a>one-shot pruning, one-shot | A single cut. | [200](../2_pruning/200_masks.ipynb) | |
| <a id="run"></a>*run* | A training. | [100](../1_nets/100_lstm.ipynb) | |
| <a id="unk"></a>`<unk>` | No word. | [100](../1_nets/100_lstm.ipynb) | |
| <a id="ticket"></a>ticket | A small network. | [300](../3_tickets/300_tickets.ipynb) | |
| <a id="winning-ticket"></a>winning ticket | A good one. | [300](../3_tickets/300_tickets.ipynb) | |
| <a id="ar"></a>AR | A penalty. | [100](../1_nets/100_lstm.ipynb) | |
| <a id="entropy"></a>entropy, DropConnect | A mean. | [100](../1_nets/100_lstm.ipynb) | |'''

def write(path, *sources, code=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [dict(cell_type='markdown', id=f'text-{i}', metadata={}, source=o.splitlines(keepends=True)) for i, o in enumerate(sources)]
    cells += [dict(cell_type='code', id=f'code-{i}', metadata={}, source=[o], execution_count=None,
                   outputs=[dict(output_type='stream', name='stdout', text=['kept\n'])]) for i, o in enumerate(code)]
    write_page(path, dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5))
    return path

@pytest.fixture
def book(tmp_path):
    write(tmp_path/'index.ipynb', '# The book\n> Its masks.')
    write(tmp_path/'0_start'/'090_glossary.ipynb', '# Glossary\n> Words.', TABLE)
    write(tmp_path/'1_nets'/'100_lstm.ipynb', '# LSTM\n> Gates.', 'Nats here.')
    write(tmp_path/'2_pruning'/'200_masks.ipynb', '# Masks\n> Kept.', 'A mask.')
    write(tmp_path/'3_tickets'/'300_tickets.ipynb', '# Tickets\n> Found.', 'A ticket.')
    return tmp_path

def linked(book, *sources, page='3_tickets/310_page.ipynb'):
    "What the command makes of these cells, without the glossary's address"
    path = write(book/page, '# Title of a mask\n> The line of a mask.', *sources)
    links(book)
    before = path.read_text()
    assert links(book).changed == [] and path.read_text() == before # run again, it changes nothing
    cells = [''.join(o['source']) for o in page_cells(path) if o['id'].startswith('text')]
    assert cells[0] == '# Title of a mask\n> The line of a mask.'
    return '\n\n'.join(cells[1:]).replace('../0_start/090_glossary.ipynb', '')

@pytest.mark.parametrize('text, want', [
    ('A mask and a mask.', 'A [mask](#mask) and a mask.'),                             # the first only
    ('Two masks; Masks.', 'Two [masks](#mask); Masks.'),                               # plural
    ('Entropies.', '[Entropies](#entropy).'),
    ("The mask's size.", "The [mask](#mask)'s size."),
    ('unmasked, mask_2, mask-like, masking', 'unmasked, mask_2, mask-like, masking'),  # whole words
    ('A winning ticket.', 'A [winning ticket](#winning-ticket).'),                     # the longer one, and the shorter later
    ('A winning ticket is a ticket.', 'A [winning ticket](#winning-ticket) is a [ticket](#ticket).'),
    ('a winning\nticket', 'a [winning\nticket](#winning-ticket)'),
    ('One shot, one-shot.', '[One shot](#one-shot), one-shot.'),
    ('0.5 nat', '0.5 [nat](#nats)'),
    ('A **mask** keeps. A mask.', 'A **mask** keeps. A mask.'),                        # explained here
    ('**Masks.** A mask.', '**Masks.** A mask.'),
    ('A mask. The **mask** is.', 'A [mask](#mask). The **mask** is.'),                 # used before it is explained
    ('**A mask of ours.** A mask.', '**A mask of ours.** A [mask](#mask).'),           # a heading
    ('**This is what a mask is for.**', '**This is what a [mask](#mask) is for.**'),   # a sentence
    ('*mask*', '*[mask](#mask)*'),
    ('`mask` and\n```python\nmask\n```\n', '`mask` and\n```python\nmask\n```\n'),      # code
    ('``a ` mask`` mask', '``a ` mask`` [mask](#mask)'),
    ('$mask$, $$mask$$ and\n\n$$\nmask\n$$', '$mask$, $$mask$$ and\n\n$$\nmask\n$$'),  # mathematics
    ('## A mask\n\nmask', '## A mask\n\n[mask](#mask)'),                               # headings
    ('[a mask](200.md) and ![mask](mask.png)', '[a mask](200.md) and ![mask](mask.png)'), # links and pictures
    ('<summary>mask</summary> <img alt="mask"> <!-- mask -->', '<summary>mask</summary> <img alt="mask"> <!-- mask -->'),
    ('<details><summary>a</summary>\nmask\n\nmask\n\n</details>', '<details><summary>a</summary>\nmask\n\n[mask](#mask)\n\n</details>'),
    ('| mask | a |\n|---|---|\n| b | mask |', '| mask | a |\n|---|---|\n| b | [mask](#mask) |'), # the head of a table
    ('A run, <unk>, `<unk>`.', 'A run, <unk>, `<unk>`.'),                              # everyday words and code
    ('a [run](#run).', 'a [run](#run).'),                                              # … which an author links
    ('AR, ar', '[AR](#ar), ar'), ('ar', 'ar'),                                         # capitals are meant
    ('The Lottery Ticket Hypothesis', 'The Lottery Ticket Hypothesis'),                # names
    ('with DropConnect', 'with [DropConnect](#entropy)'),
    ('One. Tickets are', 'One. [Tickets](#ticket) are'),
])
def test_terms(text, want, book):
    if '[run](#run)' in text: text = text.replace('(#run)', '(../0_start/090_glossary.ipynb#run)')
    assert linked(book, text) == want

def test_once_a_page(book): assert linked(book, 'A mask.', 'A mask.') == 'A [mask](#mask).\n\nA mask.'

def test_a_link_by_hand_counts_and_stays(book):
    by_hand = 'A [cover](../0_start/090_glossary.ipynb#mask).'
    assert linked(book, by_hand, 'A mask.') == 'A [cover](#mask).\n\nA mask.'

def test_the_link_moves_up_when_a_mention_is_written_above_it(book):
    assert linked(book, 'A mask here, a [mask](../0_start/090_glossary.ipynb#mask) there.') == 'A [mask](#mask) here, a mask there.'

def test_a_term_that_left_the_glossary_is_no_link(book):
    assert linked(book, 'A [gate](../0_start/090_glossary.ipynb#gate).') == 'A gate.'

def test_neither_where_it_is_explained_nor_where_it_is_taken_for_granted(book):
    assert linked(book, 'A mask, a ticket.', page='2_pruning/210_page.ipynb') == 'A mask, a [ticket](#ticket).'
    links(book)
    assert ''.join(page_cells(book/'2_pruning'/'200_masks.ipynb')[1]['source']) == 'A mask.'
    assert ''.join(page_cells(book/'3_tickets'/'300_tickets.ipynb')[1]['source']) == 'A ticket.'

def test_the_glossary_explains_on_pages_that_exist(book):
    (book/'2_pruning'/'200_masks.ipynb').unlink()
    with pytest.raises(ValueError, match='the glossary explains mask on ../2_pruning/200_masks.ipynb, and there is no such page'): links(book)
    (book/'0_start'/'090_glossary.ipynb').unlink()
    with pytest.raises(FileNotFoundError, match='090_glossary.ipynb is missing'): links(book)

M, L = '../2_pruning/200_masks.ipynb', '../1_nets/100_lstm.ipynb'
@pytest.mark.parametrize('text, want', [
    ('See page 200.', f'See [page 200]({M}).'),
    ('Experiment 200 and **page 100**', f'[Experiment 200]({M}) and **[page 100]({L})**'),
    ('pages 100 and 200', f'pages [100]({L}) and [200]({M})'),
    ('Pages 100, 200, and 310', f'Pages [100]({L}), [200]({M}), and 310'),
    ('pages 100–200', f'pages [100]({L})–[200]({M})'),
    ('page\n200', f'[page\n200]({M})'),
    ('page 200 and 100 steps', f'[page 200]({M}) and 100 steps'), # not two pages
    ('page 200, 100 steps', f'[page 200]({M}), 100 steps'),
    ('this page 310', 'this page 310'),                           # itself
    ('page 2000, page 20, page 200.5', 'page 2000, page 20, page 200.5'),
    ('`page 200` $page 200$ [page 200](a.md)', '`page 200` $page 200$ [page 200](a.md)'),
    (f'[page 200]({M})', f'[page 200]({M})'),
])
def test_mentions_of_pages(text, want, book): assert linked(book, text) == want

def test_what_is_not_sure_is_named_and_left(book):
    write(book/'3_tickets'/'310_page.ipynb', '# Title\n> Line.', 'See page 999 and [this](nowhere.ipynb#a) and `[b](c.md)`.')
    found = links(book)
    assert (found.unclear, found.dead) == (['310_page: no page 999'], ['310_page: nowhere.ipynb is not there'])
    assert ''.join(page_cells(book/'3_tickets'/'310_page.ipynb')[1]['source']).startswith('See page 999 and')

def test_code_and_outputs_keep_their_bytes(book):
    page = write(book/'3_tickets'/'310_page.ipynb', '# Title\n> Line.', code=['#| default_exp tickets.page', '# a mask, page 200\nprint(1)'])
    links(book)
    title, install, *code, nav = page_cells(page)
    assert [o['id'] for o in (install, *code, nav)] == ['install', 'code-0', 'code-1', 'nav-end']
    assert install['metadata'] == dict(tags=['hide-cell']) and install['outputs'] == [] and '%pip install' in ''.join(install['source'])
    assert code[1]['source'] == ['# a mask, page 200\n', 'print(1)'] and code[1]['outputs'][0]['text'] == ['kept\n']

def test_previous_and_next(book):
    links(book)
    ends = [''.join(page_cells(o)[-1]['source']) for o in find_pages(folder=book)]
    assert ends == ['[contents](../index.ipynb) · [LSTM](../1_nets/100_lstm.ipynb) →',
                    '← [Glossary](../0_start/090_glossary.ipynb) · [contents](../index.ipynb) · [Masks](../2_pruning/200_masks.ipynb) →',
                    '← [LSTM](../1_nets/100_lstm.ipynb) · [contents](../index.ipynb) · [Tickets](../3_tickets/300_tickets.ipynb) →',
                    '← [Masks](../2_pruning/200_masks.ipynb) · [contents](../index.ipynb)', '[Glossary](0_start/090_glossary.ipynb) →']

def test_a_page_between_two_others_is_found(book):
    links(book)
    write(book/'2_pruning'/'210_scores.ipynb', '# Scores\n> Worth.')
    assert {o.stem for o in links(book).changed} == {'200_masks', '210_scores', '300_tickets'}

def test_looking_writes_nothing(book):
    before = {o: o.read_bytes() for o in book.rglob('*.ipynb')}
    assert links(book, write=False).changed
    assert before == {o: o.read_bytes() for o in book.rglob('*.ipynb')}

# --- the book

@pytest.mark.parametrize('page', pages, ids=lambda o: o.stem)
def test_links_are_up_to_date(page):
    cells, unclear, dead = bring_up_to_date(page, read, nbs)
    assert cells == page_cells(page), 'run lotterybook links'
    assert not unclear + dead

def running_text(page):
    "The sentences of a page, without code, formulas, headings, tables' heads, HTML and bold; a link to the glossary is «number»"
    for i, cell in enumerate(page_cells(page)):
        if cell['cell_type'] != 'markdown' or cell['id'] in (NAV, 'map'): continue
        text = ''.join(cell['source'])
        if i == 0: text = re.sub(r'^> .*$', '', text, flags=re.M)
        text = re.sub(r'^</?(details|div|p|table)\b.*?(?=\n[ ]*\n|\Z)', '', text, flags=re.M | re.S)
        text = re.sub(r'^[ >]*(```+|~~~+).*?^[ >]*\1[ ]*$|<!--.*?-->|<summary>.*?</summary>|\$\$.*?\$\$', '', text, flags=re.M | re.S)
        text = re.sub(r'^#+ .*$|^.*\n(?=[ ]*\|?[ ]*:?-+:?[ ]*\|[-:| ]*$)', '', text, flags=re.M)
        text = re.sub(r'(`+).+?\1|(?<!\\)\$[^$]+\$|<[^<>]*>', '·', text, flags=re.S)
        text = re.sub(r'\*\*((?:[^\s*]+\s+){0,3}[^\s*]+)\*\*', lambda o: f'‹{o[1].strip(" .,:;?!")}›', text) # short: a term or a heading
        text = re.sub(r'\[[^\[\]]*\]\([^)]*090_glossary\.ipynb#([\w-]+)\)', lambda o: f'«{anchors.index(o[1])}»', text)
        yield re.sub(r'!?\[[^\[\]]*\]\([^)]*\)', '·', text)

@pytest.mark.parametrize('page', [o for o in pages if o.stem != '090_glossary'], ids=lambda o: o.stem)
def test_no_page_uses_a_term_before_linking_or_explaining_it(page):
    text, part = '\n\n'.join(running_text(page)), page.parent.name.split('_')[0]
    longer = [f for o in terms.values() for f in o.forms]
    for term in terms.values():
        if term.by_hand or term.page == page or part in term.assumed: continue
        for form in term.forms:
            others = '|'.join(re.escape(o) for o in longer if form.lower() in o.lower() and len(o) > len(form) and o not in term.forms) or '(?!)'
            plain = re.sub(rf'(?i)\b(?:{others})s?\b', '·', text) # a longer term is another term
            bold  = '|'.join(re.escape(o) for o in term.forms) # one form in bold explains the term
            known = re.search(rf'«{anchors.index(term.anchor)}»|‹(?:{bold})(?:s|es)?›', plain, re.I)
            used = re.search(rf'(?<![\w«-]){re.escape(form)}s?(?![\w»-])', plain[:known.start() if known else None])
            assert not used, f'{form}: …{plain[max(0, used.start() - 60):used.end() + 40]}…'

def test_the_glossary_is_in_order():
    names = [o.lower().strip('<>') for o in terms]
    assert len(names) >= 50 and names == sorted(names)
    assert len({o.anchor for o in terms.values()}) == len(terms)
    forms = [f.lower() for o in terms.values() for f in o.forms]
    assert len(forms) == len(set(forms)), 'a form belongs to one term'

def test_every_row_of_the_glossary_is_read():
    text = '\n'.join(''.join(o['source']) for o in page_cells(nbs/'0_start'/'090_glossary.ipynb'))
    assert text.count('<a id="') == len(terms)

@pytest.mark.parametrize('term', terms.values(), ids=lambda o: o.anchor)
def test_meanings_are_one_sentence(term):
    assert term.meaning.endswith('.') and '. ' not in term.meaning.replace('et al. ', '')
    assert len(term.meaning) < 170
