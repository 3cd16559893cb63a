"""Atomic files and folders under every kind of accident, and the texts of the errors."""
import json, os, re, select, signal, stat, subprocess, sys, threading, time
from pathlib import Path

import numpy as np
import pytest
from imgcls import core
from imgcls.core import (DataError, ImgclsError, MissingExtraError, atomic_file, atomic_folder, cache_folder, check_option, figure, import_extra, progress,
                         read_json, shorten, write_json)

posix = pytest.mark.skipif(os.name == 'nt', reason='permissions and signals of POSIX')
no_root = pytest.mark.skipif(os.name == 'nt' or os.geteuid() == 0, reason='root may write everywhere')
accidents = [ValueError('x'), KeyboardInterrupt(), SystemExit(1), GeneratorExit(), MemoryError()]

def names(folder): return sorted(o.relative_to(folder).as_posix() for o in folder.rglob('*'))

def killed_while(code, folder):
    "Run `code` in another process, kill it as soon as it says 'ready', and wait for its end"
    p = subprocess.Popen([sys.executable, '-c', code, str(folder)], stdout=subprocess.PIPE, text=True, cwd=Path(core.__file__).parent.parent)
    assert p.stdout.readline().strip() == 'ready'
    p.kill()
    p.wait()
    p.stdout.close()
    return p.returncode


# --- Import --------------------------------------------------------------------------------------------------------
def test_import_is_quick():
    code = 'import time; t = time.perf_counter(); import imgcls.core; print(time.perf_counter() - t)'
    times = [float(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout) for _ in range(5)]
    assert min(times) < 0.05 * (4 if os.environ.get('CI') else 2), times


# --- Options and names ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize('value,options,text', [
    ('concta', ['avg', 'max', 'concat'], "`pool` must be one of 'avg', 'max', 'concat', got 'concta'. Did you mean 'concat'?"),
    ('AVG', ['avg', 'max'], "`pool` must be one of 'avg', 'max', got 'AVG'. Did you mean 'avg'?"),
    ('Max', ['Max_', 'min'], "got 'Max'. Did you mean 'Max_'?"), ('zebra', ['avg', 'max'], "`pool` must be one of 'avg', 'max', got 'zebra'."),
    (3, [1, 2, None], '`pool` must be one of 1, 2, None, got 3.'), (None, ['avg'], "`pool` must be one of 'avg', got None."), ([1], ['avg'], 'got [1].'),
    ('', ['avg'], "got ''."), ('a', {'avg': 1}, "`pool` must be one of 'avg', got 'a'.")])
def test_check_option(value, options, text):
    with pytest.raises(ValueError) as e: check_option('pool', value, options)
    assert text in str(e.value) and ('Did you' in text) == ('Did you' in str(e.value))

def test_check_option_passes():
    assert check_option('x', None, [None, 'a']) is None
    assert check_option('x', 'b', (o for o in 'abc')) == 'b'

@pytest.mark.parametrize('n,k,text', [(0, 3, ''), (1, 3, '0'), (3, 3, '0, 1, 2'), (4, 3, '0, 1, 2 and 1 more'), (5000, 1, '0 and 4,999 more')])
def test_shorten(n, k, text): assert shorten(range(n), k) == text and shorten((i for i in range(n)), k) == text

def test_import_extra(tmp_path, monkeypatch):
    assert import_extra('json', 'demo') is json
    for missing in ('no_such', 'no_such.part', 'json.no_such'):
        with pytest.raises(MissingExtraError, match=r'isn\'t installed. Get it with: pip install "imgcls\[onnx\]"') as e: import_extra(missing, 'onnx')
        assert isinstance(e.value, ImportError) and isinstance(e.value, ImgclsError) and isinstance(e.value.__cause__, ImportError)
    (tmp_path/'broken_package.py').write_text('import a_dependency_of_it')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match="installed but can't be imported .No module named 'a_dependency_of_it'."): import_extra('broken_package', 'demo')


# --- atomic_file ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('mode,data', [('w', 'Grüße\nzwei\n'), ('wb', b'\0\1\n\r\n')])
def test_file_is_written(tmp_path, mode, data):
    path = tmp_path/'a'/'b'/'file.txt'
    with atomic_file(str(path), mode) as f:
        f.write(data)
        assert not path.exists() and [o for o in names(path.parent) if not o.startswith('.file.txt.')] == []
    assert path.read_bytes() == (data.encode() if mode == 'w' else data) and names(path.parent) == ['file.txt']

@pytest.mark.parametrize('accident', accidents, ids=lambda o: type(o).__name__)
def test_accident_leaves_old_file(tmp_path, accident):
    path = tmp_path/'f.txt'
    path.write_text('old')
    for target in (path, tmp_path/'new.txt', tmp_path/'deep'/'er'/'new.txt'):
        with pytest.raises(type(accident)):
            with atomic_file(target) as f:
                f.write('half')
                raise accident
    assert names(tmp_path) == ['f.txt'] and path.read_text() == 'old'

@pytest.mark.parametrize('step', ['replace', 'fsync'])
def test_failure_of_the_system_leaves_old_file(tmp_path, monkeypatch, step):
    path = tmp_path/'f.txt'
    path.write_text('old')
    def fail(*a, **kw): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match='No space left'):
        with atomic_file(path) as f: f.write('new')
    assert names(tmp_path) == ['f.txt'] and path.read_text() == 'old'

def test_bytes_are_synced_before_rename(tmp_path, monkeypatch):
    calls, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda fd: (calls.append('fsync'), sync(fd)))
    monkeypatch.setattr(os, 'replace', lambda a, b: (calls.append('replace'), replace(a, b)))
    with atomic_file(tmp_path/'f.txt') as f: f.write('x')
    assert calls == (['fsync', 'replace', 'fsync'] if os.name != 'nt' else ['fsync', 'replace'])  # the file, the rename, the folder

@posix
def test_killed_while_writing(tmp_path):
    (tmp_path/'f.txt').write_text('old')
    code = ('import sys, time; from imgcls.core import atomic_file\n'
            'with atomic_file(sys.argv[1] + "/f.txt") as f:\n'
            '    for i in range(100_000): f.write("new ")\n'
            '    f.flush(); print("ready", flush=True); time.sleep(60)')
    assert killed_while(code, tmp_path) == -signal.SIGKILL
    assert (tmp_path/'f.txt').read_text() == 'old'
    assert all(o.startswith('.') for o in names(tmp_path) if o != 'f.txt')

@posix
def test_killed_at_any_time(tmp_path):
    "Whenever the writer dies, the reader finds one whole version"
    code = ('import sys; from imgcls.core import atomic_file\n'
            'for i in range(1_000_000):\n'
            '    with atomic_file(sys.argv[1] + "/f.txt") as f: f.write(f"{i:08}\\n"*2000)\n'
            '    if i == 0: print("ready", flush=True)')
    for i in range(6):
        p = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdout=subprocess.PIPE)
        p.stdout.readline()
        time.sleep(0.013*i)
        p.kill(); p.wait(); p.stdout.close()
        lines = (tmp_path/'f.txt').read_text().splitlines()
        assert len(lines) == 2000 and len(set(lines)) == 1

def test_reader_sees_whole_versions(tmp_path):
    path, stop, bad = tmp_path/'f.txt', threading.Event(), []
    path.write_text('0'*5000)
    def read():
        while not stop.is_set():
            text = path.read_text()
            if len(text) != 5000 or len(set(text)) != 1: bad.append(text[:10])
    reader = threading.Thread(target=read)
    reader.start()
    for i in range(100):
        with atomic_file(path) as f: f.write(str(i % 10)*5000)
    stop.set(); reader.join()
    assert not bad

def test_two_writers(tmp_path):
    with atomic_file(tmp_path/'f.txt') as a, atomic_file(tmp_path/'f.txt') as b: a.write('a'), b.write('b')
    assert (tmp_path/'f.txt').read_text() in ('a', 'b') and names(tmp_path) == ['f.txt']

@posix
@pytest.mark.parametrize('umask', [0o022, 0o027, 0o077])
def test_permissions(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_file(tmp_path/'f.txt') as f: f.write('x')
        with atomic_folder(tmp_path/'d') as d: (d/'x').write_text('x')
    finally: os.umask(before)
    mode = lambda p: stat.S_IMODE(p.stat().st_mode)
    assert (mode(tmp_path/'f.txt'), mode(tmp_path/'d')) == (0o666 & ~umask, 0o777 & ~umask)
    (tmp_path/'f.txt').chmod(0o640)
    with atomic_file(tmp_path/'f.txt') as f: f.write('y')
    assert mode(tmp_path/'f.txt') == 0o640

@posix
def test_symbolic_link(tmp_path):
    (tmp_path/'real').mkdir()
    (tmp_path/'real'/'f.txt').write_text('old')
    (tmp_path/'link.txt').symlink_to('real/f.txt')
    with atomic_file(tmp_path/'link.txt') as f: f.write('new')
    assert (tmp_path/'link.txt').is_symlink() and (tmp_path/'real'/'f.txt').read_text() == 'new' and names(tmp_path/'real') == ['f.txt']

def test_long_and_odd_names(tmp_path):
    for name in ('x'*255, 'ü'*127, '.hidden', 'a b\nc'):
        with atomic_file(tmp_path/name) as f: f.write('x')
        assert (tmp_path/name).read_text() == 'x'
    assert len(names(tmp_path)) == 4

def test_text_that_utf8_lacks(tmp_path):
    "A file name that isn't UTF-8 doesn't stop the table that lists it"
    with atomic_file(tmp_path/'f.csv') as f: f.write('caf\udce9.jpg')
    assert (tmp_path/'f.csv').read_text(encoding='utf-8') == r'caf\udce9.jpg'

def test_file_errors(tmp_path):
    (tmp_path/'f').write_text('x')
    for error, path, text in [(IsADirectoryError, tmp_path, 'there is a folder of that name'), (OSError, tmp_path/'f'/'g.txt', "Can't write '"), (OSError, tmp_path/'f'/'g'/'h', "Can't write '")]:
        with pytest.raises(error, match=text):
            with atomic_file(path) as f: f.write('x')
    with pytest.raises(ValueError, match="`mode` must be one of 'w', 'wb', got 'a'"):
        with atomic_file(tmp_path/'g', 'a') as f: pass
    assert names(tmp_path) == ['f']

@no_root
def test_no_permission(tmp_path):
    (tmp_path/'closed').mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="Can't write '.*x.txt': permission denied. Choose a folder in which you may write."):
        with atomic_file(tmp_path/'closed'/'x.txt') as f: f.write('x')
    with pytest.raises(PermissionError, match="Can't write"):
        with atomic_folder(tmp_path/'closed'/'d'): pass

def test_permission_is_told_at_once(tmp_path, monkeypatch):
    "As root one may write everywhere, so the system's answer is played"
    def refuse(*a, **kw): raise PermissionError(13, 'Permission denied', 'x')
    monkeypatch.setattr('builtins.open', refuse)
    with pytest.raises(PermissionError, match="Can't write '.*x.txt': permission denied. Choose a folder in which you may write."):
        with atomic_file(tmp_path/'sub'/'x.txt'): pytest.fail('the block must not begin')
    monkeypatch.undo()
    monkeypatch.setattr(os, 'mkdir', refuse)
    with pytest.raises(PermissionError, match="Can't write '.*d': permission denied"):
        with atomic_folder(tmp_path/'d'): pytest.fail('the block must not begin')
    monkeypatch.undo()
    assert names(tmp_path) == []


# --- atomic_folder -------------------------------------------------------------------------------------------------
def test_folder_is_made(tmp_path):
    with atomic_folder(str(tmp_path/'a'/'b')) as d:
        assert d.parent == tmp_path/'a' and d.name.startswith('.') and not (tmp_path/'a'/'b').exists()
        (d/'sub').mkdir(); (d/'sub'/'x.txt').write_text('x')
    assert names(tmp_path) == ['a', 'a/b', 'a/b/sub', 'a/b/sub/x.txt']

def test_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_folder('made') as d:
        (tmp_path/'elsewhere').mkdir()
        os.chdir(tmp_path/'elsewhere')
        (d/'x').write_text('x')
    assert names(tmp_path) == ['elsewhere', 'made', 'made/x']

def test_many_files(tmp_path, monkeypatch):
    synced = []
    if hasattr(os, 'sync'): monkeypatch.setattr(os, 'sync', lambda: synced.append(1))
    with atomic_folder(tmp_path/'d') as d:
        for i in range(300): (d/f'{i}.txt').write_text('x')
    assert len(names(tmp_path/'d')) == 300 and (synced == [1] or not hasattr(os, 'sync'))

@pytest.mark.parametrize('accident', accidents, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize('exist_ok', [False, True])
def test_accident_leaves_no_folder(tmp_path, accident, exist_ok):
    with pytest.raises(type(accident)):
        with atomic_folder(tmp_path/'deep'/'d', exist_ok=exist_ok) as d:
            (d/'sub').mkdir(); (d/'sub'/'x').write_text('x')
            raise accident
    assert names(tmp_path) == []

@posix
def test_killed_while_filling(tmp_path):
    code = ('import sys, time; from imgcls.core import atomic_folder\n'
            'with atomic_folder(sys.argv[1] + "/d") as d:\n'
            '    (d/"x").write_text("x"); print("ready", flush=True); time.sleep(60)')
    assert killed_while(code, tmp_path) == -signal.SIGKILL
    assert not (tmp_path/'d').exists()
    with atomic_folder(tmp_path/'d') as d: (d/'y').write_text('y')  # what is left doesn't stand in the way
    assert names(tmp_path/'d') == ['y']

def test_folder_exists(tmp_path):
    (tmp_path/'file').write_text('x'); (tmp_path/'empty').mkdir(); (tmp_path/'gone').symlink_to('nowhere') if os.name != 'nt' else None
    before = names(tmp_path)
    for name in before:
        with pytest.raises(FileExistsError, match="exists already. Choose another folder, or remove this one first."):
            with atomic_folder(tmp_path/name): pytest.fail('the block must not begin')
    assert names(tmp_path) == before

@pytest.mark.parametrize('content', [[], ['first']])
def test_late_folder(tmp_path, content):
    "Somebody else makes the folder while we fill ours"
    def late(path, **kw):
        with atomic_folder(path, **kw) as d:
            (d/'mine').write_text('x')
            path.mkdir()
            for o in content: (path/o).write_text('x')
    with pytest.raises(FileExistsError, match='exists already'): late(tmp_path/'a')
    late(tmp_path/'b', exist_ok=True)
    assert names(tmp_path) == sorted(['a', 'b', *(f'{p}/{o}' for p in 'ab' for o in content)])

def test_two_processes_fill_one_cache(tmp_path):
    code = ('import sys; from pathlib import Path; from imgcls.core import atomic_folder\n'
            'with atomic_folder(Path(sys.argv[1])/"cache", exist_ok=True) as d:\n'
            '    print("ready", flush=True); sys.stdin.readline()\n'
            '    for i in range(50): (d/str(i)).write_text(sys.argv[2])')
    ps = [subprocess.Popen([sys.executable, '-c', code, str(tmp_path), str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for i in range(3)]
    for p in ps: assert p.stdout.readline().strip() == 'ready'
    for p in ps: p.stdin.write('\n'); p.stdin.flush()
    for p in ps: p.communicate(); assert p.returncode == 0
    assert os.listdir(tmp_path) == ['cache'] and len(os.listdir(tmp_path/'cache')) == 50
    assert len({o.read_text() for o in (tmp_path/'cache').iterdir()}) == 1


# --- JSON ----------------------------------------------------------------------------------------------------------
def test_json(tmp_path):
    obj = dict(a=[1, 2.5, None, True, 'ü', 'caf\udce9'], b=np.float32(0.5), c=np.arange(3), d=Path('x')/'y', e=np.int64(7), f=dict(g=np.bool_(True)))
    write_json(tmp_path/'o.json', obj)
    assert read_json(tmp_path/'o.json') == dict(a=obj['a'], b=0.5, c=[0, 1, 2], d='x/y', e=7, f=dict(g=True))
    assert '"ü"' in (tmp_path/'o.json').read_text(encoding='utf-8')

loop = []
loop.append(loop)
@pytest.mark.parametrize('value', [float('nan'), float('inf'), {1, 2}, object(), b'x', np.array([np.nan]), loop], ids='nan inf set object bytes array loop'.split())
def test_json_refuses(tmp_path, value):
    write_json(tmp_path/'o.json', 1)
    with pytest.raises((TypeError, ValueError), match="Can't write '.*o.json': JSON has no place for a value in it"): write_json(tmp_path/'o.json', dict(a=value))
    assert read_json(tmp_path/'o.json') == 1 and names(tmp_path) == ['o.json']

@pytest.mark.parametrize('data', [b'', b'{"a": 1', b'{a: 1}', b'\xff\xfe\0', b'\x89PNG\r\n', b'['*100_000, b'{"a": "\n"}'], ids=lambda o: o[:12])
def test_broken_json(tmp_path, data):
    (tmp_path/'o.json').write_bytes(data)
    with pytest.raises(DataError, match="o.json' isn't valid JSON .* make it again or take a whole copy"): read_json(tmp_path/'o.json')

def test_missing_json(tmp_path):
    with pytest.raises(FileNotFoundError, match='o.json'): read_json(tmp_path/'o.json')


# --- cache_folder --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('platform,env,want', [
    ('linux', dict(IMGCLS_CACHE='/c/x'), '/c/x'), ('linux', dict(XDG_CACHE_HOME='/xdg'), '/xdg/imgcls'), ('linux', dict(XDG_CACHE_HOME='relative'), '~/.cache/imgcls'),
    ('linux', dict(XDG_CACHE_HOME='', IMGCLS_CACHE=''), '~/.cache/imgcls'), ('darwin', dict(XDG_CACHE_HOME='/xdg'), '~/Library/Caches/imgcls'),
    ('win32', dict(LOCALAPPDATA='/local'), '/local/imgcls'), ('win32', {}, '~/AppData/Local/imgcls'), ('linux', dict(IMGCLS_CACHE='~/c'), '~/c')])
def test_cache_folder(monkeypatch, tmp_path, platform, env, want):
    for k in ('IMGCLS_CACHE', 'XDG_CACHE_HOME', 'LOCALAPPDATA'): monkeypatch.delenv(k, raising=False)
    for k, v in (env | dict(HOME=str(tmp_path), USERPROFILE=str(tmp_path))).items(): monkeypatch.setenv(k, v)
    monkeypatch.setattr(sys, 'platform', platform)
    assert cache_folder() == Path(want).expanduser()
    assert not list(tmp_path.iterdir())  # nothing is made

def test_cache_folder_is_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('IMGCLS_CACHE', 'c')
    assert cache_folder() == tmp_path/'c'


# --- progress and figure -------------------------------------------------------------------------------------------
def test_progress_is_silent_in_a_pipe():
    code = 'import time\nfrom imgcls.core import progress\nfor i in progress(range(8)): time.sleep(0.1)\nimport sys; print("tqdm" in sys.modules)'
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert (p.stdout.strip(), p.stderr) == ('False', '')

@posix
@pytest.mark.parametrize('pause,shown', [(0.15, True), (0.001, False)])
def test_progress_on_a_terminal(pause, shown):
    import pty
    main, sub = pty.openpty()
    code = f'import time\nfrom imgcls.core import progress\nfor i in progress((i for i in range(8)), total=8, label="reading"): time.sleep({pause})'
    subprocess.run([sys.executable, '-c', code], stderr=sub, check=True)  # a terminal that doesn't know its width
    text = os.read(main, 100_000).decode() if select.select([main], [], [], 0)[0] else ''
    os.close(sub), os.close(main)
    assert bool(re.search(r'reading: .* 5/8 \[00:0\d<00:0\d', text)) == shown and (shown or not text), text

def test_progress_without_stderr(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', None)
    assert list(progress([1, 2])) == [1, 2]

def test_progress_is_an_iterator():
    it = progress([1, 2])
    assert next(it) == 1 and list(it) == [2]

def test_figure(tmp_path):
    import matplotlib.pyplot as plt
    before = plt.get_fignums()
    fig, ax = figure()
    assert ax.figure is fig and list(fig.get_size_inches()) == [6, 4] and fig.get_layout_engine() is not None
    fig, axes = figure(2, 3, width=9, height=5)
    assert axes.shape == (2, 3) and list(fig.get_size_inches()) == [9, 5]
    fig.savefig(tmp_path/'f.png')
    assert (tmp_path/'f.png').read_bytes()[:4] == b'\x89PNG' and plt.get_fignums() == before
