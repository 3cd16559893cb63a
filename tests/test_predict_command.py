"""`imgcls predict`: what can be named, in which form it answers, and a file that is whole in the end, whatever stopped it."""
import csv, hashlib, io, json, os, pty, shutil, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from imgcls.cli import main
from imgcls.models.pretrained import image_model

root = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "A folder with bundles `lenet` and `other` of drawn weights, and 50 photos in two folders"
    folder = tmp_path_factory.mktemp('world')
    for seed, name in enumerate(('lenet', 'other')):
        torch.manual_seed(seed)
        model = image_model('classic/lenet', 3, pretrained=False, size=16)
        (folder/name).mkdir()
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder/name/'model.safetensors')
        about = dict(schema=1, model=model.config, vocab=['ant', 'bee', 'cat'], size=16, presize=24, method='crop', multi_label=False, metrics=[], versions={}, data={},
                     sha256=hashlib.sha256((folder/name/'model.safetensors').read_bytes()).hexdigest())
        (folder/name/'classifier.json').write_text(json.dumps(about))
    rng = np.random.default_rng(0)
    for i in range(50):
        file = folder/'photos'/'ab'[i % 2]/f'{i:02d}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 20 + i, 3), dtype=np.uint8)).save(file)
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    "An empty folder, from which `lenet`, `other` and `photos` can be seen"
    for name in ('lenet', 'other', 'photos'): (tmp_path/name).symlink_to(world/name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(*args, stdin=None, monkeypatch=None):
    if stdin is not None: monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(stdin)))
    return main(['predict', *map(str, args)])


def files(): return [f'photos/a/{i:02d}.png' for i in range(0, 50, 2)] + [f'photos/b/{i:02d}.png' for i in range(1, 50, 2)]


def rows(text): return list(csv.DictReader(io.StringIO(text, newline='')))


def start(*args, code='import sys; from imgcls.cli import main; sys.exit(main())', **kwargs):
    "The command in a process of its own, with as many threads as here"
    env = os.environ | dict(PYTHONPATH=str(root), OMP_NUM_THREADS=str(torch.get_num_threads()))
    return subprocess.Popen([sys.executable, '-c', code, 'predict', *args], env=env, **(dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) | kwargs),
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


# --- What can be named ------------------------------------------------------------------------------------------------
def test_sources(here, capsys, monkeypatch):
    "A file, a folder, a pattern and a list name the same photos; `*` in a list, or in the name of a file that is there, is a letter"
    def named(*args, **kwargs):
        assert ask('lenet', *args, '--csv', monkeypatch=monkeypatch, **kwargs) == 0
        return [o['file'] for o in rows(capsys.readouterr().out)]
    a, b = files()[:25], files()[25:]
    assert named('photos') == [*a, *b] and named('photos/b', a[0]) == [*b, a[0]]
    assert named('photos/a/*.png') == a and named('photos/**/*.png') == [*a, *b] and named('photos/?/00.*') == a[:1]
    assert named('-', stdin='\n'.join([*a, '', 'photos/b']).encode()) == [*a, *b]
    assert named(b[0], '-', b[1], stdin=('\r\n'.join(a) + '\r\n').encode()) == [b[0], *a, b[1]]
    assert named('-', '--null', stdin=b'\0'.join(map(os.fsencode, a)) + b'\0') == a
    shutil.copy(a[0], 'what*.png')
    shutil.copy(a[0], 'what is it.png')
    assert named('what*.png') == ['what*.png'] and named('what is*') == ['what is it.png']
    assert named('-', stdin=b'what*.png\nno*.png') == ['what*.png', 'no*.png']
    Path('empty').mkdir()
    assert named('-', stdin=b'empty\nphotos/a/00.png') == a[:1]


names = ['a b.png', ' x.png', 'ünïcödé.png', '図.png', 'new\nline.png', 'car\rriage.png', 'tab\t.png', 'quo"te, and\'.png', os.fsdecode(b'latin\xe9.png'), '-.png', '=1+1.png', '\x1b[31mred.png', 'a\\n.png']


def test_odd_names(here, capsys, monkeypatch):
    "Spaces, ends of lines, bytes that aren't UTF-8, codes for the terminal: each form keeps its shape, and JSON gives back each byte"
    for o in names: shutil.copy('photos/a/00.png', o)
    listed = b'\0'.join(map(os.fsencode, names))
    assert ask('lenet', '-', '--null', '--csv', stdin=listed, monkeypatch=monkeypatch) == 0
    text = capsys.readouterr().out
    shown = [o.encode('utf-8', 'backslashreplace').decode() for o in names]
    assert [o['file'] for o in rows(text)] == shown == list(pd.read_csv(io.StringIO(text, newline=''))['file'])
    assert ask('lenet', '-', '--null', '--json', stdin=listed, monkeypatch=monkeypatch) == 0
    assert [o['file'] for o in json.loads(capsys.readouterr().out)] == names
    assert ask('lenet', '-', '--null', stdin=listed, monkeypatch=monkeypatch) == 0
    lines = capsys.readouterr().out.split('\n')
    assert len(lines) == len(names) + 1 and all(o.count('\t') == 2 and o.replace('\t', '').isprintable() for o in lines[:-1])
    for form in ('csv', 'jsonl'):
        whole = Path(f'whole.{form}')
        assert ask('lenet', '-', '--null', '--bs', '2', '--out', whole, stdin=listed, monkeypatch=monkeypatch) == 0
        for cut in range(0, whole.stat().st_size, 97):
            shutil.copy(whole, f'part.{form}')
            shutil.copy(f'{whole}.json', f'part.{form}.json')
            os.truncate(f'part.{form}', cut)
            assert ask('lenet', '-', '--null', '--bs', '2', '--out', f'part.{form}', '--resume', stdin=listed, monkeypatch=monkeypatch) == 0
            assert Path(f'part.{form}').read_bytes() == whole.read_bytes(), cut
    assert [json.loads(o)['file'] for o in Path('whole.jsonl').read_bytes().splitlines()] == names


# --- In which form ----------------------------------------------------------------------------------------------------
def test_listed_names_are_no_patterns(here, capsys, monkeypatch):
    "A name on standard input that isn't there is one row with its reason, also if it looks like a pattern"
    names = ['photos/a/[0]0.png', 'photos/a/*.png', 'photos/a/00.png']
    assert ask('lenet', '-', '--csv', stdin='\n'.join(names).encode(), monkeypatch=monkeypatch) == 0
    found = rows(capsys.readouterr().out)
    assert [o['file'] for o in found] == names and [bool(o['error']) for o in found] == [True, True, False]


def test_forms_agree(here, capsys):
    "All forms have the same rows, and those of the predictor"
    from imgcls.deploy.predictor import load_bundle
    Path('bad.png').write_text('no image')
    args = ['lenet', 'photos/a', 'bad.png', '--k', '2', '--bs', '7']
    expected = load_bundle('lenet').predict([*files()[:25], 'bad.png'], k=2, bs=7)
    assert ask(*args, '--csv') == ask(*args, '--out', 'a.csv') == ask(*args, '--out', 'a.jsonl') == 0
    text = capsys.readouterr().out
    assert Path('a.csv').read_text() == text
    found = pd.read_csv('a.csv', dtype={o: 'float32' for o in expected if o.startswith('probability')})
    pd.testing.assert_frame_equal(found, expected.replace('', np.nan).astype({o: 'float32' for o in expected if o.startswith('probability')}), check_dtype=False, rtol=0, atol=0)
    assert ask(*args, '--json') == 0
    found = json.loads(capsys.readouterr().out)
    assert found == [json.loads(o) for o in Path('a.jsonl').read_text().splitlines()]
    assert found[-1] == dict(file='bad.png', label=None, probability=None, label_2=None, probability_2=None, error='not an image')
    assert ask(*args) == 0
    lines = [o.split('\t') for o in capsys.readouterr().out.splitlines()]
    assert [o[1] for o in lines] == [o['label'] or '' for o in found] and lines[0][2] == f"{found[0]['probability']:.4f}" and lines[-1] == ['bad.png', '', '', '', '']


def test_on_a_terminal(here, monkeypatch):
    "Columns to read on a terminal, with the reason in the place of an answer"
    Path('bad.png').write_text('no image')
    above, below = pty.openpty()
    with open(below, 'w') as terminal:
        monkeypatch.setattr(sys, 'stdout', terminal)
        assert ask('lenet', 'photos/a/00.png', 'bad.png', 'photos/a') == 0
        monkeypatch.undo()
        text = os.read(above, 100_000).decode()
    os.close(above)
    first, second, *others = text.splitlines()
    assert first.startswith('photos/a/00.png  ') and second == 'bad.png          (not an image)' and '\t' not in text
    assert len(others) == 25 and len({o.index('0.', 20) for o in (first, *others)}) == 1  # the probabilities stand below each other


full = pytest.mark.skipif(not os.environ.get('IMGCLS_FULL'), reason='one form is enough by default (IMGCLS_FULL=1)')


@pytest.mark.parametrize('form', [['--csv'], pytest.param([], marks=full), pytest.param(['--json'], marks=full)], ids=lambda o: ' '.join(o) or 'lines')
def test_first_answers_come_first(here, form):
    "While the list is still being written there are answers; and when nobody reads any more, it ends without a word"
    code = "import sys; from imgcls.cli import main; status = main(); print([o for o in ('fastai', 'matplotlib', 'scipy', 'sklearn') if o in sys.modules], file=sys.stderr); sys.exit(status)"
    process = start('lenet', '-', '--bs', '1', *form, code=code)
    process.stdin.write('\n'.join(files()).encode() + b'\n')
    process.stdin.flush()
    assert process.stdout.readline()
    process.stdout.close()
    process.stdin.write('\n'.join(files()).encode() * 3)
    try: process.stdin.close()
    except BrokenPipeError: pass
    said = process.stderr.read().decode()
    assert process.wait(timeout=300) == 141 and [o for o in said.splitlines() if not o.startswith('compute: ')] == ['[]'], said  # nothing of fastai is loaded


# --- A file that can be gone on with ----------------------------------------------------------------------------------
def wait_for(file, n, process):
    while process.poll() is None and (not file.exists() or file.read_bytes().count(b'\n') < n): time.sleep(0.01)


@pytest.mark.parametrize('form', ['csv', pytest.param('jsonl', marks=full)])
def test_stopped_and_continued(here, capsys, form):
    "SIGTERM or Ctrl-C, then SIGKILL in the middle; what is there in the end is what one run gives"
    args, names = ['lenet', '-', '--bs', '4', '--k', '3', '--out', f'part.{form}', '--resume'], files() * 4
    names[5] = 'gone.png'
    Path('all').write_text('\n'.join(names) + '\n')
    polite, file = (signal.SIGTERM if form == 'csv' else signal.SIGINT), here/f'part.{form}'
    for n, by in ((40, polite), (120, signal.SIGKILL)):
        process = start(*args)
        process.stdin.write('\n'.join(names[:n + 40]).encode() + b'\n')
        process.stdin.flush()
        wait_for(file, n, process)
        process.send_signal(by)
        out, err = process.communicate(timeout=300)
        assert process.returncode == (-signal.SIGKILL if by == signal.SIGKILL else 128 + by), err
        assert file.read_bytes().endswith(b'\n') and b'Traceback' not in err and out == b''
        if by == polite: assert b"answers are in 'part." in err and b'Go on with the same command and --resume' in err
    with open(file, 'ab') as f: f.write(file.read_bytes()[:30].rpartition(b'\n')[2] or b'photos')  # half a row
    with open('all', 'rb') as f: process = start(*args, stdin=f)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and b'going on with' in err and b'1 of 200 files cannot be used: gone.png (missing)' in err, err
    assert main(['predict', 'lenet', *names, '--bs', '4', '--k', '3', '--out', f'whole.{form}']) == 0
    assert file.read_bytes() == Path(f'whole.{form}').read_bytes()
    assert main(['predict', 'lenet', *names, '--bs', '4', '--k', '3', '--out', f'part.{form}', '--resume']) == 0  # there is nothing left to do
    assert file.read_bytes() == Path(f'whole.{form}').read_bytes()
    assert json.loads(Path(f'part.{form}.json').read_text())['answers'] == 200


def test_more_photos_later(here):
    "A folder that has grown at its end; the answers of one run over all"
    Path('new').mkdir()
    for o in files()[:7]: shutil.copy(o, 'new')
    assert ask('lenet', 'new', '--out', 'part.csv', '--bs', '4') == 0
    for o in files()[7:20]: shutil.copy(o, 'new')
    assert ask('lenet', 'new', '--out', 'part.csv', '--bs', '4', '--resume') == ask('lenet', 'new', '--out', 'whole.csv', '--bs', '4') == 0
    assert Path('part.csv').read_bytes() == Path('whole.csv').read_bytes()


def edited(text, **new): return json.dumps(json.loads(text) | new)


@pytest.mark.parametrize('args,text', [
    (['lenet', 'photos/a'], 'is there already. Go on with it by --resume, or give another file'),
    (['other', 'photos/a', '--resume'], "holds answers of another classifier ('lenet', SHA-256 "),
    (['lenet', 'photos/a', '--resume', '--k', '2'], 'was begun with other options: k 2 (it was 1)'),
    (['lenet', 'photos/a', '--resume', '--bs', '9'], 'was begun with other options: bs 9 (it was 32)'),
    (['lenet', 'photos/b', '--resume'], "answer 1 is to 'photos/a/00.png', and photo 1 is 'photos/b/01.png' now"),
    (['lenet', 'photos/a/00.png', '--resume'], 'has answers to 2 photos or more, and 1 are meant now')], ids=lambda o: ' '.join(o) if isinstance(o, list) else '')
def test_resume_refuses(here, capsys, args, text):
    assert ask('lenet', 'photos/a', '--out', 'x.csv') == 0
    before = {o: Path(o).read_bytes() for o in ('x.csv', 'x.csv.json')}
    capsys.readouterr()
    assert ask(*args, '--out', 'x.csv') == 1
    err = capsys.readouterr().err
    assert text in err and 'Traceback' not in err and before == {o: Path(o).read_bytes() for o in before}


def test_resume_of_broken_files(here, capsys):
    def refused(text):
        assert ask('lenet', 'photos/a', '--out', 'x.csv', '--resume') == 1
        assert text in (err := capsys.readouterr().err), err
    assert ask('lenet', 'photos/a', '--out', 'x.csv') == 0
    whole, about = Path('x.csv').read_text(), Path('x.csv.json').read_text()
    lines = whole.splitlines(keepends=True)
    for bad, line in ((['file,label\n', *lines[1:]], 1), ([*lines[:4], 'a,b\n', *lines[4:]], 5), ([*lines[:4], '\n', *lines[4:]], 5)):
        Path('x.csv').write_text(''.join(bad))
        refused(f"'x.csv': line {line} isn't as it was written")
    Path('x.csv').write_bytes(whole.encode()[:200] + b'\xff\n')
    refused("isn't as it was written")
    Path('x.csv').write_text(whole)
    for bad, text in ((about[:50], "isn't valid JSON"), ('[]', 'belongs to something else'), (edited(about, made_by='me'), 'belongs to something else'),
                      (edited(about, columns=None), "line 1 isn't as it was written"), (edited(about, options=3), 'was begun with other options')):
        Path('x.csv.json').write_text(bad)
        refused(text)
    Path('x.csv.json').unlink()
    refused("there is no 'x.csv.json' beside it, which says what made it")
    assert Path('x.csv').read_text() == whole
    Path('y.csv.json').write_text('{"mine": 1}')
    assert ask('lenet', 'photos/a', '--out', 'y.csv') == 1 and not Path('y.csv').exists() and Path('y.csv.json').read_text() == '{"mine": 1}'


def test_two_at_once(here, capsys):
    "Another process that writes the same file"
    fcntl = pytest.importorskip('fcntl')
    assert ask('lenet', 'photos/a', '--out', 'x.csv') == 0
    with open('x.csv', 'rb') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        assert ask('lenet', 'photos/a', '--out', 'x.csv', '--resume') == 1
    assert "another process is writing 'x.csv'" in capsys.readouterr().err
    assert ask('lenet', 'photos/a', '--out', 'x.csv', '--resume') == 0


# --- Exit statuses ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('args,status,text', [
    (['lenet', 'photos', '--csv', '--json'], 2, 'either CSV or JSON'), (['lenet', 'photos', '--out', 'a.csv', '--json'], 2, 'that of its name'), (['lenet', 'photos', '--out', 'a.txt'], 2, 'must end in .csv or .jsonl'),
    (['lenet', 'photos', '--resume'], 2, 'needs --out'), (['lenet', 'photos', '--null'], 2, 'there is no - among'), (['lenet', '-', '-'], 2, 'only once'), (['lenet'], 2, 'Missing argument'),
    (['lenet', 'photos', '--bs', '0'], 2, 'bs'), (['lenet', 'photos/*.gif'], 1, "no file fits the pattern 'photos/*.gif'"), (['lenet', '-'], 1, 'no photo is named on standard input'),
    (['lenet', '-', '--out', 'a.csv'], 1, 'no photo is named'), (['lenet', 'photos', '--k', '4', '--out', 'a.csv'], 1, 'from 1 to 3'), (['nowhere', 'photos', '--out', 'a.csv'], 1, 'there is no bundle'),
    (['lenet', 'gone.png', '--out', 'deep/a.csv'], 1, '1 of 1 files cannot be used'), (['lenet', 'photos', 'gone.png', '--strict'], 1, '1 of 51 files'), (['lenet', 'photos', 'gone.png'], 0, '1 of 51 files'),
    (['lenet', 'photos', '--out', 'lenet/model.safetensors/a.csv'], 1, "Can't write"), (['lenet', 'photos', '--out', 'photos.csv'], 1, "Can't write")],
    ids=lambda o: ' '.join(o) if isinstance(o, list) else '')
def test_status(here, capsys, monkeypatch, args, status, text):
    Path('photos.csv').mkdir()
    assert ask(*args, stdin=b'', monkeypatch=monkeypatch) == status
    err = ' '.join(capsys.readouterr().err.split())
    assert text in err and 'Traceback' not in err and not Path('a.csv').exists() and not Path('a.csv.json').exists()
    assert Path('deep/a.csv').exists() == ('deep/a.csv' in args)


def test_nul_without_null(here, capsys, monkeypatch):
    assert ask('lenet', '-', stdin=b'photos/a/00.png\0', monkeypatch=monkeypatch) == 2
    assert 'add --null' in capsys.readouterr().err


def test_refusals_come_before_the_work(here):
    "A wrong option and a file that is there are found without torch"
    Path('a.csv').write_text('mine')
    code = "import sys; from imgcls.cli import main; print(main(sys.argv[1:]), *(o in sys.modules for o in ('torch', 'pandas', 'numpy')))"
    for args, status in ((['--out', 'a.csv'], 1), (['--resume'], 2)):
        res = subprocess.run([sys.executable, '-c', code, 'predict', 'lenet', 'photos', *args], env=os.environ | dict(PYTHONPATH=str(root)), capture_output=True, text=True)
        assert res.stdout == f'{status} False False False\n', res.stderr
    assert Path('a.csv').read_text() == 'mine'
