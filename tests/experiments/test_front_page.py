"Each line of the front page's table is a committed claim, with the numbers and the verdict that its page computed."
import json, re
from pathlib import Path
import pytest

nbs = Path(__file__).resolve().parents[2]/'nbs'

def cells_of(line): return [cell.strip() for cell in line.strip().strip('|').split('|')]

def without_links(text): return re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', text)

def tables(text):
    "The tables of a text in Markdown, each as dictionaries by column."
    for block in re.findall(r'(?:^\|.*\n?)+', text, re.M):
        head, _, *lines = block.splitlines()
        yield [dict(zip(cells_of(head), cells_of(line))) for line in lines]

def computed(page):
    "The verdict tables among a page's outputs: claim -> line."
    outputs = [o for cell in json.loads(page.read_text(encoding='utf-8'))['cells'] for o in cell.get('outputs', [])]
    texts = [''.join(o.get('data', {}).get('text/markdown', '')) for o in outputs]
    return {line['claim']: line for text in texts for table in tables(text) for line in table if 'asked for' in line}

readme = (nbs.parent/'README.md').read_text(encoding='utf-8')
counts = next(table for table in tables(readme) if 'decided alone' in table[0])
front = next(table for table in tables(readme) if 'verdict' in table[0])

def test_the_table_is_there(): assert len(front) > 10

@pytest.mark.parametrize('line', front, ids=lambda o: without_links(o['claim']))
def test_line_is_what_its_page_computed(line):
    page = nbs.parent/re.search(r'\]\(([^)]+)\)', line['page'])[1]
    found = computed(page)[without_links(line['claim'])]
    low, high = found['95 % interval'].split(' to ')
    assert line['asked for'] == found['asked for']
    assert line['measured (95 % interval)'] == f"{found['measured']} ({low} to {high})"
    assert line['verdict'].split(';')[0] == found['verdict'].strip('*')

@pytest.mark.parametrize('line', counts, ids=lambda o: without_links(o['page']))
def test_counts_are_those_of_the_page(line):
    page, = nbs.glob(f"9_experiments/{without_links(line['page']).split()[0]}_*.ipynb")
    verdicts = [found['verdict'] for found in computed(page).values()]
    decided = [verdict for verdict in verdicts if 'undecided' not in verdict]
    assert [int(line[k]) for k in ('claims', 'decided alone', 'also by Holm')] == [
        len(verdicts), len(decided), sum('not by Holm' not in verdict for verdict in decided)]

def test_all_claims_are_counted(): assert f"these {sum(int(line['claims']) for line in counts)} claims" in readme
