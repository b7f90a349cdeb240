"Files: what killed writers left, names that stay in their folder, JSON and archives that are odd."
import gzip, io, os, re, resource, signal, subprocess, sys, tarfile, time, zipfile
import pytest
from lotterybook.foundations import files
from lotterybook.foundations.files import checked_file_name, folder_lock, read_json, unpack, write_atomically

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
    ('a.tar.gz', tarred(('a', tarfile.REGTYPE, 60_000), ('b', tarfile.REGTYPE, 60_000)))])
def test_archives_that_hold_too_much(name, content, monkeypatch):
    "Refused by what they say that they hold, or by what comes out."
    monkeypatch.setattr(files, '_MOST', 100_000)
    with pytest.raises(ValueError, match=f'{name} cannot be unpacked .*it holds more than 100,000 bytes'): unpack(name, content)

def test_a_zip_that_lies():
    "It says that it holds 10 bytes, and holds a thousand: damaged."
    content = zipped()
    with pytest.raises(ValueError, match='Bad CRC-32'): unpack('a.zip', content.replace((1000).to_bytes(4, 'little'), (10).to_bytes(4, 'little')))

@pytest.mark.parametrize('content, why', [(changed(zipped(), 6, 1), 'is encrypted'), (changed(zipped(), 8, 99), 'compression method is not supported')])
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
