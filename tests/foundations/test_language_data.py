"Treebanks down to the words, texts, formulas and pairs of sentences; what is odd or damaged."
import gzip, io, json, os, pickle, re, sys, zipfile
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
import pytest
from lotterybook.foundations.files import DataFiles, read_files
from lotterybook.foundations.language_data import (
    LANGUAGE_FILES, WORD_TAGS, _SYNTAX, _brown, _fetch_syntax, _logic, _syntax, clean_tree, corpus_from_files,
    corpus_from_lines, load_language, parse_trees, read_text, read_trees, tree_class)

def refused(kind, why, f, *arguments):
    with pytest.raises(kind, match=re.escape(why)): f(*arguments)

# --- brackets

written = '''
( (S
    (S-TPC-1 (`` ``) (NP-SBJ (PRP It)) (VP (VBD cost)
        (NP (QP ($ $) (CD 1.50) (-NONE- *U*)))) (\'\' \'\'))
    (NP-SBJ (DT The) (JJ old) (NN keeper))
    (VP (VBD said) (SBAR (-NONE- 0) (S (-NONE- *T*-1))))
    (. .)))
( (INTJ (UH Yes) (. .)))
'''
quote, yes = parse_trees(written)
chain = '(S (NP-SBJ (-NONE- *)) (VP (TO to) (VP (VB go) (ADVP=2 (RB away)))))'

def test_parsed():
    assert [len(quote.leaves()), quote.label(), yes.leaves()] == [14, 'S', ['Yes', '.']]
    assert parse_trees('') == []

@pytest.mark.parametrize('text, why', [
    ('(S (NN a))\n(S (NN b)', 'x.mrg: the bracket that opens in line 2 never closes'),
    ('(S (NN a)))', 'a bracket closes that never opened'), ('no tree', "'no tree' is outside all brackets")])
def test_odd_brackets(text, why): refused(ValueError, why, parse_trees, text, 'x.mrg')

def test_without_nltk(monkeypatch):
    monkeypatch.setitem(sys.modules, 'nltk', None)
    refused(ImportError, 'pip install "lotterybook[language]"', tree_class)

# --- down to the words

@pytest.mark.parametrize('text, want', [
    (written, '(S (S it (VP cost N.N)) (NP the old keeper) said)'),       # by hand
    ('(INTJ (UH Yes) (. .))', '(INTJ yes)'),                              # one word keeps its node
    ('(S (. .))', 'None'),                                                # nothing left
    (chain, '(S+VP to (VP go away))'),                                    # the chain keeps both labels
    ('(NP (NP (NP (DT the) (NN end))) (-NONE- *))', '(NP the end)')])     # a label once
def test_cleaned(text, want): assert str(clean_tree(parse_trees(text)[0])) == want

def groups(tree, spoken):
    "Runs of two words or more under a node, as tuples of positions, by counting leaves."
    found, at = set(), 0
    def walk(o):
        nonlocal at
        if isinstance(o, str): at += spoken(o, None); return
        if len(o) == 1 and isinstance(o[0], str) and spoken(o[0], o.label()) is not None:
            at += spoken(o[0], o.label()); return
        start = at
        for p in o: walk(p)
        if at - start > 1: found.add((start, at))
    walk(tree)
    return found

def by_tag(word, tag): return None if tag is None else int(tag in WORD_TAGS)
def by_leaf(word, tag): return 1 if tag is None else None

@pytest.mark.parametrize('tree', [quote, *parse_trees(chain)])
def test_a_second_route(tree):
    "The words are those with a tag on the list, the groups those of the original that have two words left."
    assert groups(clean_tree(tree), by_leaf) == groups(tree, by_tag)
    assert clean_tree(tree).leaves() == [re.sub('[0-9]+', 'N', w.lower()) for w, tag in tree.pos() if tag in WORD_TAGS]

def test_a_folder_of_trees(tmp_path):
    "Sorted; the empty sentence is left out."
    (tmp_path/'wsj'/'00').mkdir(parents=True)
    for why in ('has no trees: a treebank is bracketed text in .mrg files', "is load('treebank')"):
        refused(ValueError, why, read_trees, tmp_path)
    (tmp_path/'wsj'/'00'/'b.mrg').write_text('( (S (. .)))' + chain)
    (tmp_path/'wsj'/'00'/'a.mrg').write_text(written)
    assert [o.leaves()[0] for o in read_trees(tmp_path)] == ['it', 'yes', 'to']
    assert read_trees(tmp_path/'wsj'/'00'/'b.mrg') == [clean_tree(parse_trees(chain)[0])]
    refused(ValueError, 'does not exist', read_trees, tmp_path/'wsj'/'01')

@pytest.mark.parametrize('content, why', [(b'(S (Nomen Haus))', "parts of speech ['Nomen']"), (b'(S (NN caf\xe9))', 'is not UTF-8')])
def test_odd_treebanks(content, why, tmp_path):
    (tmp_path/'c.mrg').write_bytes(content)
    refused(ValueError, why, read_trees, tmp_path/'c.mrg')

# --- texts

def test_three_files(tmp_path):
    "An empty line stays; other ends of lines; equal words are one object."
    parts = dict(train='the cat sat\n\nthe dog\n', validation='a cat', test='the\u00a0end\r\n')
    for part, text in parts.items(): (tmp_path/part).write_bytes(text.encode())
    mine = corpus_from_files(*(tmp_path/part for part in parts))
    assert mine.train == [['the', 'cat', 'sat'], [], ['the', 'dog']]
    assert [mine.validation, mine.test] == [[['a', 'cat']], [['the', 'end']]]
    assert mine.train[0][0] is mine.test[0][0]

def test_a_byte_order_mark_is_not_a_word(tmp_path):
    (tmp_path/'a').write_bytes(b'\xef\xbb\xbfthe')
    assert read_text(tmp_path/'a') == [['the']]

@pytest.mark.parametrize('content, why', [
    (b'caf\xe9 au lait', 'a is not UTF-8: byte 0xe9 at position 3'), (b'', 'a is empty'), (b' \n\n', 'a is empty')])
def test_odd_texts(content, why, tmp_path):
    (tmp_path/'a').write_bytes(content)
    refused(ValueError, why, read_text, tmp_path/'a')

def zipped(contents):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as z:
        for name, content in contents.items(): z.writestr(name, content)
    return buffer.getvalue()

def test_brown():
    "A slash within a word; of ten files the ninth and tenth; other files are left out."
    few = {f'brown/ca{k:02}': f'\n\n\tFile/nn {k}/cd of/in 1/2/cd ./.\n\n' for k in range(1, 21)}
    b = _brown({'brown.zip': zipped(few | {'brown/README': 'no text', 'brown/cats.txt': 'ca01 news'})})
    assert b.train[0] == ['File', '1', 'of', '1/2', '.'] and len(b.train) == 16
    assert [[line[1] for line in part] for part in b[2:]] == [['9', '19'], ['10', '20']]

def test_formulas():
    "10 is a number, in order."
    found = _logic({'train10': b'<\t( a ( and b ) )\ta\n=\ta\ta\n', 'train0': b'#\ta\tb\n', 'test0': b'^\ta\t( not a )\n'})
    assert list(found.train.items()) == [(0, [('#', 'a', 'b')]), (10, [('<', '( a ( and b ) )', 'a'), ('=', 'a', 'a')])]

# --- pickles

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

class Trap:
    "A pickle of it makes a folder when it is read."
    def __init__(self, folder): self.folder = folder
    def __reduce__(self): return os.mkdir, (str(self.folder),)

def test_pickles_of_plain_values(tmp_path, monkeypatch):
    "By way of pickles and of a reader's folder the same; a pickle that would run code is refused before it does."
    held = {name: {'sing': [('the author laughs', 'the author laugh')]*2} for name in _SYNTAX}
    public = tmp_path/'public'
    public.mkdir()
    for name, o in held.items(): (public/f'{name}.pickle').write_bytes(pickle.dumps(o, protocol=2))
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=public))
    Thread(target=server.serve_forever, daemon=True).start()
    as_json = json.dumps(held, separators=(',', ':'), sort_keys=True).encode()  # tuples become lists
    syntax = DataFiles('syneval', f'http://127.0.0.1:{server.server_port}/', {'syneval.json': sha256(as_json).hexdigest()},
                       'syneval.json.gz', download=_fetch_syntax)
    monkeypatch.setenv('LOTTERYBOOK_CACHE', str(tmp_path/'cache'))
    monkeypatch.setenv('LOTTERYBOOK_DATA', str(tmp_path))
    try:
        assert _syntax(read_files(syntax)) == held
        (tmp_path/'cache'/'syneval'/'syneval.json').unlink()
        (public/'vp_coord.pickle').write_bytes(pickle.dumps(Trap(tmp_path/'trap')))
        refused(OSError, 'vp_coord.pickle is refused: it needs', read_files, syntax)
        assert not (tmp_path/'trap').exists()
        (public/'vp_coord.pickle').write_bytes(b'no pickle')
        refused(OSError, 'vp_coord.pickle is refused: ', read_files, syntax)
    finally: server.shutdown(); server.server_close()
    (tmp_path/'syneval').mkdir()
    (tmp_path/'syneval'/'syneval.json.gz').write_bytes(gzip.compress(as_json))
    assert _syntax(read_files(syntax)) == held

# --- by name

def test_load_language(tmp_path, monkeypatch):
    "Small data sets of the same forms in place of the real ones; other files of an archive are left out."
    mrg = b'( (S (NP-SBJ (DT The) (NN end)) (VP (VBZ is) (ADJP-PRD (JJ near))) (. .)) )'
    small = dict(ptb={f'ptb.{o}.txt': b" no it was n't <unk> \n" for o in ('train', 'valid', 'test')},
                 treebank={'treebank.zip': zipped({'treebank/combined/wsj_0001.mrg': mrg, 'treebank/parsed/wsj_0001.prd': 'not this'})})
    for name, contents in small.items():
        home = tmp_path/LANGUAGE_FILES[name].folder
        home.mkdir(parents=True, exist_ok=True)
        for file, content in contents.items(): (home/file).write_bytes(content)
        sums = {file: sha256(o).hexdigest() for file, o in contents.items()}
        with monkeypatch.context() as m:
            m.setitem(LANGUAGE_FILES, name, LANGUAGE_FILES[name]._replace(checksums=sums))
            found = load_language(name, tmp_path)
        if name == 'ptb': assert found.train == [['no', 'it', 'was', "n't", '<unk>']]
        else: assert [str(o) for o in found] == ['(S (NP the end) (VP is near))']
    refused(ValueError, 'ptb.train.txt is damaged or was changed', load_language, 'ptb', tmp_path)
    refused(ValueError, 'known are ptb, wikitext_2, brown', load_language, 'pbt', tmp_path)

def test_without_network(tmp_path, monkeypatch):
    for name in ('HTTP_PROXY', 'HTTPS_PROXY'): monkeypatch.setenv(name, 'http://127.0.0.1:9')
    monkeypatch.setenv('LOTTERYBOOK_CACHE', str(tmp_path/'cache'))
    refused(OSError, 'set LOTTERYBOOK_DATA to a folder that has it under wikitext-2/ (or wikitext-2.zip)',
            load_language, 'wikitext_2', tmp_path)

# --- one text cut into three

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
