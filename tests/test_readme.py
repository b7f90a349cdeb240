"The front page: links, titles, the map of chapters, and README.md from a toy book."
import json
import pytest
from lotterybook.tools.readme import chapters, move_links, readme, title, update_map

@pytest.mark.parametrize('text, moved', [
    ('[a](1/a.ipynb) and ![b](9/b.png)', '[a](nbs/1/a.ipynb) and ![b](nbs/9/b.png)'),
    ('[l](../LICENSE), <img src="9/b.png" width="6">', '[l](LICENSE), <img src="nbs/9/b.png" width="6">'),
    *((still, still) for still in ('[x](https://example.org)', '[y](#map)', '[z](/abs)', 'f(x)', 'a[0]'))])
def test_links(text, moved): assert move_links(text) == moved

def toy_page(path, *cells):
    "A notebook of Markdown (`str`) and code (`[source, printed text]`) cells."
    path.parent.mkdir(parents=True, exist_ok=True)
    def md(i, o): return dict(cell_type='markdown', id=f'cell-{i}', metadata={}, source=o)
    def code(i, o): return dict(cell_type='code', id=f'cell-{i}', metadata={}, execution_count=None, source=o[0],
                                outputs=[dict(output_type='stream', name='stdout', text=o[1])] if o[1] else [])
    cells = [(md if isinstance(o, str) else code)(i, o) for i, o in enumerate(cells)]
    path.write_text(json.dumps(dict(nbformat=4, nbformat_minor=5, metadata={}, cells=cells)))

@pytest.fixture
def book(tmp_path):
    book = tmp_path/'nbs'
    toy_page(book/'1_first_part'/'110_a.ipynb', '# Alpha\n> Begins.')
    toy_page(book/'1_first_part'/'120_b.ipynb', '# Beta\n\n> Goes on.')
    toy_page(book/'2_end'/'200_c.ipynb', '# Gamma\n> Ends.')
    toy_page(book/'index.ipynb', '# Toy\n> A book.', ['#| hide\nimport os', ''], ['#| eval: true\nprint(1+1)', '2\n'],
             'See [a](1_first_part/110_a.ipynb).', 'old map')
    return book

def test_the_map_of_chapters(book):
    assert chapters(book).splitlines()[0] == '**1 first part**'
    assert chapters(book).count('\n- ') == 3
    assert '- [120 Beta](1_first_part/120_b.ipynb): Goes on.' in chapters(book)

def test_a_page_without_a_title(book):
    toy_page(book/'bad.ipynb', 'no title')
    with pytest.raises(ValueError, match='bad.ipynb'): title(book/'bad.ipynb')

def test_readme(book):
    "Hidden code is left out, printed text follows its cell, links move one folder up; written again, nothing changes."
    with pytest.raises(ValueError, match='id map'): readme(book)
    index = json.loads((book/'index.ipynb').read_text())
    index['cells'][-1]['id'] = 'map'
    (book/'index.ipynb').write_text(json.dumps(index))
    text = readme(book).read_text()
    assert 'import os' not in text
    assert '```python\nprint(1+1)\n```\n\n```text\n2\n```' in text
    assert '[a](nbs/1_first_part/110_a.ipynb)' in text
    assert '- [200 Gamma](nbs/2_end/200_c.ipynb): Ends.' in text and 'old map' not in text
    assert readme(book).read_text() == text
    assert not update_map(book/'index.ipynb')
