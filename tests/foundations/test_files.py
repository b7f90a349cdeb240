"Files: whole or not there, what killed writers left, names, JSON and archives that are odd, downloads."
import gzip, io, os, re, resource, signal, subprocess, sys, tarfile, time, zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
import pytest
from lotterybook.foundations import files
from lotterybook.foundations.files import (DataFiles, checked_file_name, fetch_files, folder_lock, make_folder, read_files,
                                           read_json, unpack, write_atomically)

# --- written whole

def test_written_and_written_again(tmp_path):
    "Text or bytes; the folder is made; a failure leaves the old file and nothing else."
    path = tmp_path/'new'/'a.txt'
    assert write_atomically(path, 'one').read_text() == 'one'
    assert write_atomically(path, b'two').read_text() == 'two'
    with pytest.raises(TypeError): write_atomically(path, 3)  # fails on the way
    assert [o.name for o in path.parent.iterdir()] == ['a.txt'] and path.read_text() == 'two'
    with pytest.raises(OSError): write_atomically(path/'b.txt', 'x')  # a file is not a folder
    assert write_atomically(tmp_path/'empty.txt', '').read_bytes() == b''

@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no device that refuses every byte')
def test_a_full_device_leaves_the_old_file(tmp_path, monkeypatch):
    "The unread name leads to /dev/full."
    write_atomically(tmp_path/'a.txt', 'old')
    monkeypatch.setattr('os.urandom', lambda n: bytes(n))  # so that we know the name
    (tmp_path/f'.{files._machine()}.{os.getpid()}.00000000.part').symlink_to('/dev/full')
    with pytest.raises(OSError, match='No space left'): write_atomically(tmp_path/'a.txt', 'x'*10_000)
    assert {o.name: o.read_text() for o in tmp_path.iterdir()} == {'a.txt': 'old'}

def test_eight_threads_write_one_file(tmp_path):
    "One of them is last, and none fails."
    texts = [str(k)*50_000 for k in range(8)]
    with ThreadPoolExecutor(8) as pool: list(pool.map(partial(write_atomically, tmp_path/'a.txt'), texts))
    assert (tmp_path/'a.txt').read_text() in texts and len(list(tmp_path.iterdir())) == 1

def watched(write, folder, reads=300):
    "What a reader sees of a file that another process writes over and over, and what that one leaves when killed."
    path = folder/f'{write}.txt'
    process = subprocess.Popen([sys.executable, '-c', f'''
from lotterybook.foundations.files import write_atomically
def write_in_place(path, text):
    with open(path, 'w') as f:
        for k in range(0, len(text), 10_000): f.write(text[k:k + 10_000])
for k in range(10**9): {write}({str(path)!r}, "ab"[k % 2]*300_000)'''])
    while not path.exists(): time.sleep(.01)
    seen = set()
    for _ in range(reads): time.sleep(.001); seen.add(path.read_text())
    process.kill(); process.wait()
    return seen | {path.read_text()}

def test_every_reading_is_whole(tmp_path):
    "The last one too, after the kill. With a plain `open` some are not: the test can fail."
    whole = {'a'*300_000, 'b'*300_000}
    assert watched('write_atomically', tmp_path) <= whole
    assert not watched('write_in_place', tmp_path) <= whole

def test_make_folder(tmp_path, monkeypatch):
    "Made with what is above it; a file in its place is named, and a missing permission."
    assert make_folder(tmp_path/'x'/'y') == make_folder(tmp_path/'x'/'y') == tmp_path/'x'/'y'
    (tmp_path/'file').write_text('')
    for wrong in ('file', 'file/below'):
        with pytest.raises(OSError, match=f'{tmp_path/wrong} cannot be written to as a folder'): make_folder(tmp_path/wrong)
    monkeypatch.setattr('os.access', lambda *_: False)
    with pytest.raises(OSError, match='no permission'): make_folder(tmp_path/'x')

# --- unread files

writer = '''
import sys, os
from lotterybook.foundations.files import write_atomically
os.fsync = lambda f: (print('written', flush=True), sys.stdin.read())
write_atomically(sys.argv[1], 'x'*1000)
'''

def start(path):
    "A process that has written its unread file, and has not renamed it yet."
    process = subprocess.Popen([sys.executable, '-c', writer, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'written\n'
    return process

def parts(folder): return [o.name for o in folder.glob('.*.part')]

def test_what_killed_writers_left_is_removed(tmp_path):
    "By the next write into the folder; what a living process is about to rename stays."
    living, killed = start(tmp_path/'a'), start(tmp_path/'b')
    killed.send_signal(signal.SIGKILL); killed.wait()
    assert len(parts(tmp_path)) == 2
    write_atomically(tmp_path/'c', 'x')
    assert len(parts(tmp_path)) == 1
    living.communicate('')
    assert sorted(o.name for o in tmp_path.iterdir()) == ['a', 'c']

def test_files_of_other_machines(tmp_path):
    "Their processes cannot be seen: a day is waited."
    gone = subprocess.Popen([sys.executable, '-c', '']); gone.wait()
    part = tmp_path/f'.00000000.{gone.pid}.0123abcd.part'
    part.write_text('half')
    write_atomically(tmp_path/'a', 'x')
    assert part.exists()
    os.utime(part, (time.time() - 90_000,)*2)
    write_atomically(tmp_path/'a', 'x')
    assert not part.exists()

def test_files_of_other_programs(tmp_path):
    "Stay, however old."
    for name in ('.film.part', 'a.0123abcd.part', '.film.mp4.0123abcd.part', '.00000000.note.0123abcd.part'):
        (tmp_path/name).write_text('half')
        os.utime(tmp_path/name, (0, 0))
    write_atomically(tmp_path/'a', 'x')
    assert len(list(tmp_path.iterdir())) == 5

def test_a_name_of_255_bytes(tmp_path):
    "As long as a system allows: the unread name is not longer."
    assert write_atomically(tmp_path/('a'*255), 'x').read_text() == 'x'

def test_a_full_disk_names_the_file(tmp_path):
    "No file may grow beyond 1,000 bytes."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{tmp_path}/a'"): write_atomically(tmp_path/'a', 'x'*1001)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())

# --- names

@pytest.mark.parametrize('name', ['', '.', '..', 'a/b', '../a', '/a', 'a\\b', 'a\0b', 'a'*201, 'ä'*101])
def test_names_that_leave_their_folder(name):
    with pytest.raises(ValueError, match='the run .* makes no file name'): checked_file_name(name, 'the run')

@pytest.mark.parametrize('name', ['a', 'a b', '...', 'ä'*100, 'seed=0,rate=.2', '.hidden'])
def test_good_names(name): assert checked_file_name(name, 'the run') == name

# --- JSON

@pytest.mark.parametrize('text, why', [
    ('{"a": 1', 'Expecting'), ('', 'Expecting value'), ('\x00\x01', 'Expecting value'), (b'\xff\xfe', 'utf-8'),
    ('['*100_000, 'recursion'), ('{"a":'*100_000, 'recursion'), ('[1]', 'it holds a list'), ('null', 'it holds a NoneType')])
def test_damaged_json(text, why, tmp_path):
    "Named, with what to do."
    (tmp_path/'a.json').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f'^{re.escape(str(tmp_path))}/a.json is damaged .*{why}.*; remove it$'): read_json(tmp_path/'a.json', 'remove it')

def test_good_json(tmp_path):
    (tmp_path/'a.json').write_text('{"ä": [1]}', encoding='utf-8')
    assert read_json(tmp_path/'a.json', 'remove it') == {'ä': [1]}

# --- archives

def zipped(size=1000, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', method) as z: z.writestr('a/b', bytes(size))
    return buffer.getvalue()

def changed(content, at, value):
    "A zip in which one byte of its local and of its central header is another."
    content, central = bytearray(content), content.rindex(b'PK\x01\x02')
    content[at], content[central + at + 2] = value, value
    return bytes(content)

def tarred(*members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz', format=tarfile.GNU_FORMAT) as t:
        for name, kind, size in members:
            o = tarfile.TarInfo(name); o.type, o.size = kind, size
            t.addfile(o, io.BytesIO(bytes(size)))
    return buffer.getvalue()

def test_one_gibibyte():
    "The limit of an archive, which the tests below make smaller."
    assert files._MOST == 2**30

@pytest.mark.parametrize('name, content', [
    ('a.zip', zipped(100_001)), ('a.gz', gzip.compress(bytes(100_001))), ('a.tar.gz', tarred(('a', tarfile.REGTYPE, 100_001))),
    ('a.tar.gz', tarred(('a', tarfile.REGTYPE, 60_000), ('b', tarfile.REGTYPE, 60_000)))],
    ids=range(4))  # not the bytes, which have the time in them: processes would disagree on the names
def test_archives_that_hold_too_much(name, content, monkeypatch):
    "Refused by what they say that they hold, or by what comes out."
    monkeypatch.setattr(files, '_MOST', 100_000)
    with pytest.raises(ValueError, match=f'{name} cannot be unpacked .*it holds more than 100,000 bytes'): unpack(name, content)

def test_a_zip_that_lies():
    "It says that it holds 10 bytes, and holds a thousand: damaged."
    content = zipped()
    with pytest.raises(ValueError, match='Bad CRC-32'): unpack('a.zip', content.replace((1000).to_bytes(4, 'little'), (10).to_bytes(4, 'little')))

@pytest.mark.parametrize('content, why', [(changed(zipped(), 6, 1), 'is encrypted'), (changed(zipped(), 8, 99), 'compression method is not supported')], ids=range(2))
def test_odd_zips(content, why):
    with pytest.raises(ValueError, match=f'a.zip cannot be unpacked .*{why}.*; put a good copy there'): unpack('a.zip', content)

def test_what_is_not_a_file_is_left_out():
    assert unpack('a.tar.gz', tarred(('link', tarfile.SYMTYPE, 0), ('dir', tarfile.DIRTYPE, 0), ('a', tarfile.REGTYPE, 3))) == {'a': bytes(3)}

@pytest.mark.parametrize('name', ['a.zip', 'a.tar.gz', 'a.gz'])
def test_any_damage_is_told(name):
    "One byte changed anywhere: the same content, or a ValueError."
    content = {'a.zip': zipped(), 'a.tar.gz': tarred(('a/b', tarfile.REGTYPE, 1000)), 'a.gz': gzip.compress(bytes(1000))}[name]
    for at in range(len(content)):
        try: unpack(name, content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1:])
        except ValueError as e: assert f'{name} cannot be unpacked' in str(e)

# --- one process at a time

def test_a_folder_that_is_held(tmp_path):
    "What holds one thing in a folder leaves room for another; all of it is a thing of its own."
    with folder_lock(tmp_path, 'a'), folder_lock(tmp_path, 'b'), folder_lock(tmp_path), folder_lock(None):
        with pytest.raises(ValueError, match=f'{tmp_path/"a"} is in use by another process'):
            with folder_lock(tmp_path, 'a'): raise AssertionError
    with folder_lock(tmp_path, 'a'): pass

# --- data sets

two = dict(a=b'first', b=b'second'*100)

def packed(name, **contents):
    "An archive with its files in folders, one of them outside."
    buffer = io.BytesIO()
    if name.endswith('.zip'):
        with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as z:
            for file, content in contents.items(): z.writestr(f'some/folder/{file}', content)
    else:
        with tarfile.open(fileobj=buffer, mode='w:gz') as t:
            for file, content in contents.items():
                member = tarfile.TarInfo(f'../{file}'); member.size = len(content)
                t.addfile(member, io.BytesIO(content))
    return buffer.getvalue()

archives = {'x.zip': packed('x.zip', **two), 'x.tar.gz': packed('x.tar.gz', **two), 'x.gz': gzip.compress(two['b'])}

def test_unpacked_without_folders():
    assert unpack('x.zip', archives['x.zip']) == unpack('x.tar.gz', archives['x.tar.gz']) == two
    assert unpack('below/a.json.gz', gzip.compress(b'{}')) == {'a.json': b'{}'}

@pytest.mark.parametrize('name', archives)
def test_damaged_archives(name):
    "Cut off, something else, nothing."
    for bad in (archives[name][:len(archives[name])*2//3], b'no archive', b''):
        with pytest.raises(ValueError, match=f'{name} cannot be unpacked'): unpack(name, bad)

def checksums(contents): return {file: sha256(o).hexdigest() for file, o in contents.items()}

@pytest.fixture
def kept(tmp_path, monkeypatch):
    "A data set, and the place for it in a folder."
    monkeypatch.delenv('LOTTERYBOOK_DATA', raising=False)
    monkeypatch.setenv('LOTTERYBOOK_CACHE', str(tmp_path/'cache'))
    (tmp_path/'kept').mkdir()
    return DataFiles('kept', 'https://public.example/', checksums(two), 'both.zip', dict(b='b.other')), tmp_path/'kept'

def test_each_form_in_a_folder(kept, tmp_path, monkeypatch):
    data, home = kept
    (home/'a').write_bytes(two['a']); (home/'b').write_bytes(two['b'])
    assert read_files(data, tmp_path) == two                                            # plain
    (home/'b').rename(home/'b.other')
    assert fetch_files(data, tmp_path) == dict(a=home/'a', b=home/'b.other')            # by its other name
    (home/'b.other').unlink()
    (home/'both.zip').write_bytes(packed('both.zip', **{'a': two['a'], 'b.other': two['b']}))
    assert fetch_files(data, tmp_path) == dict(a=home/'a', b=home/'both.zip')           # one plain, one packed
    (home/'a').unlink()
    assert read_files(data, tmp_path) == two                                            # both packed
    monkeypatch.setenv('LOTTERYBOOK_DATA', str(tmp_path))
    assert read_files(data) == two

def test_damage_in_a_folder(kept, tmp_path):
    "A plain file, an archive that was cut off, a whole archive with other content."
    data, home = kept
    (home/'a').write_bytes(b'half')
    with pytest.raises(ValueError) as e: read_files(data, tmp_path)
    assert (f"a is damaged or was changed: its SHA-256 is {sha256(b'half').hexdigest()}, expected {data.checksums['a']}. "
            'Put a good copy there (from https://public.example/a)') in str(e.value)
    (home/'a').unlink()
    (home/'both.zip').write_bytes(packed('both.zip', **two)[:-30])
    with pytest.raises(ValueError, match='both.zip cannot be unpacked'): read_files(data, tmp_path)
    (home/'both.zip').write_bytes(packed('both.zip', a=b'changed', b=two['b']))
    with pytest.raises(ValueError, match=r'both.zip \(a\) is damaged or was changed'): read_files(data, tmp_path)

def test_a_checksum_only_compares(kept, tmp_path):
    "Content that was wrong from the start is read."
    data, home = kept
    (home/'a').write_bytes(b'wrong from the start')
    assert read_files(DataFiles('kept', '', checksums(dict(a=b'wrong from the start'))), tmp_path)

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture
def public(tmp_path):
    "A folder with both files, and the server that gives them."
    folder = tmp_path/'public'
    folder.mkdir()
    for name, content in two.items(): (folder/name).write_bytes(content)
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=folder))
    Thread(target=server.serve_forever, daemon=True).start()
    def stop(): server.shutdown(); server.server_close()
    yield folder, f'http://127.0.0.1:{server.server_port}/', stop
    stop()

def test_fetched_into_the_cache(kept, public, tmp_path):
    "A damaged copy there is replaced; where the public file is another, or nothing answers, the message says what to do."
    folder, address, stop = public
    data = kept[0]._replace(address=address)
    path = fetch_files(data)['b']
    assert path == tmp_path/'cache'/'kept'/'b' and path.read_bytes() == two['b']
    path.write_bytes(two['b'][:-9])                       # cut off on the disk
    assert read_files(data) == two                        # fetched again
    (folder/'b').write_bytes(b'something else'); path.unlink()
    with pytest.raises(OSError, match=f'Put the file at {path}'): fetch_files(data)
    stop()
    with pytest.raises(OSError, match=f'cannot fetch {address}b'): fetch_files(data)
    with pytest.raises(OSError, match=r'under kept/ \(or both.zip\)'): fetch_files(data)

def test_made_from_what_is_public(kept, public, tmp_path):
    "Verified after it is made."
    folder, address, _ = public
    def shout(url, output_file, store): Path(output_file).write_bytes((folder/'a').read_bytes().upper())
    made = DataFiles('made', address, checksums(dict(A=b'FIRST')), download=shout)
    assert read_files(made) == dict(A=b'FIRST')
    (folder/'a').write_bytes(b'changed'); (tmp_path/'cache'/'made'/'A').unlink()
    with pytest.raises(OSError, match=rf'cannot fetch {address} \(ValueError'): read_files(made)
