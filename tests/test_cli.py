"""Each command in a process of its own, on real digits shrunk; and the sentence and exit status of every bad input."""
import csv, json, os, re, shutil, signal, subprocess, sys, time, tomllib
from pathlib import Path

import pytest
from PIL import Image

from imgcls.cli import main
from imgcls.data.samples import sample

root = Path(__file__).resolve().parent.parent
small = ['--size', '32', '--epochs', '0', '--freeze-epochs', '1', '--augment', 'no_flip', '--bs', '32', '--workers', '0', '--compute', 'fp32']


def names(folder): return sorted(o.relative_to(folder).as_posix() for o in Path(folder).rglob('*'))


def contents(folder): return {o.relative_to(folder).as_posix(): (o.read_bytes(), o.stat().st_mtime_ns) for o in Path(folder).rglob('*') if o.is_file()}


def start(*args, cwd, **env):
    env = {k: v for k, v in os.environ.items() if k != 'IMGCLS_DATA'} | dict(PYTHONPATH=str(root), OMP_NUM_THREADS='1') | env
    code = 'import sys; from imgcls.cli import main; sys.exit(main())'
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a run in the background ignores Ctrl-C, and its children with it


def command(*args, cwd, status=0, **env):
    "Run the command in a process of its own; what it wrote to standard output and standard error"
    process = start(*args, cwd=cwd, **env)
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, f'{args} ended with {process.returncode}\n{out}\n{err}'
    assert status == 1 or 'Traceback' not in err
    return out, err


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "240 digits of four classes in split folders, one file cut off and one that is no image"
    folder = tmp_path_factory.mktemp('data')/'photos'
    for name in '0147':
        for i, file in enumerate(sorted((sample('digits')/name).iterdir())[:60]):
            dest = folder/('train', 'train', 'train', 'valid', 'test')[i % 5]/name
            dest.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, dest)
    (folder/'train/4/cut.png').write_bytes(file.read_bytes()[:60])
    (folder/'test/0/web.jpg').write_text('<!doctype html>')
    return folder


@pytest.fixture(scope='module')
def run(photos):
    "A run of `imgcls train`, with what it said"
    before = contents(photos)
    out, err = command('train', photos, '--out', 'run', '--seed', 7, *small, cwd=photos.parent)
    assert contents(photos) == before
    return photos.parent/'run', out, err


# --- train ------------------------------------------------------------------------------------------------------------
def test_train_writes(run):
    folder, out, err = run
    figures = ['batch', 'confusion', 'history', 'top_losses']
    assert names(folder) == sorted(['audit.json', 'bundle', 'bundle/classifier.json', 'bundle/model.safetensors', 'bundle/model_card.md', 'figures', 'history.csv', 'history.json', 'images.csv', 'predictions',
                                    'predictions/test.csv', 'predictions/test.json', 'predictions/valid.csv', 'predictions/valid.json', 'readings.csv', 'run.toml', 'set_aside.csv', *(f'figures/{o}.png' for o in figures)])
    for name in figures:
        with Image.open(folder/f'figures/{name}.png') as img: assert min(img.size) > 200 and len(img.convert('RGB').getcolors(10**6)) > 5
    with open(folder/'history.csv') as f: rows = list(csv.DictReader(f))
    assert [o['stage'] for o in rows] == ['frozen'] and {'epoch', 'train_loss', 'valid_loss', 'accuracy', 'seconds'} <= rows[0].keys()
    with open(folder/'predictions/test.csv') as f: assert [o['actual'] for o in csv.DictReader(f)] == ['0'] * 12 + ['1'] * 12 + ['4'] * 12 + ['7'] * 12
    with open(folder/'set_aside.csv') as f: assert {o['path']: o['error'].partition(':')[0] for o in csv.DictReader(f)} == {'train/4/cut.png': 'truncated', 'test/0/web.jpg': 'not an image'}


def test_train_settings(run, photos):
    about = tomllib.loads((run[0]/'run.toml').read_text('utf-8'))
    asked = about['settings']
    assert (asked['command'], asked['seed'], asked['size'], asked['epochs'], asked['freeze_epochs'], asked['bs'], asked['augment'], asked['compute']) == ('train', 7, 32, 0, 1, 32, 'no_flip', 'fp32')
    assert asked['folder'] == str(photos) and asked['arch'] == 'efficientnet_lite0' and asked['strict'] is False
    assert {'torch', 'fastai', 'timm'} <= about['versions'].keys() and about['machine']['python'] == sys.version.split()[0]
    assert about['compute']['dtype'] == 'float32' and about['chosen']['presize'] > 32
    assert {k: o['n'] for k, o in about['results'].items()} == dict(valid=48, test=48)
    assert all(0 <= o['low'] <= o['accuracy'] <= o['high'] <= 1 for o in about['results'].values())
    metrics = json.loads((run[0]/'bundle/classifier.json').read_text())['metrics']
    assert [(o['split'], o['value']) for o in metrics] == [(k, o['accuracy']) for k, o in about['results'].items()]


def test_train_says(run):
    "Results on standard output, the way there on standard error, in plain lines"
    folder, out, err = run
    assert re.search(r'^total +144 +48 +48 +2$', out, re.M) and 'valid: accuracy' in out and 'test: accuracy' in out and '95 % interval' in out
    assert 'Everything is in run' in out and 'imgcls predict run/bundle PHOTO' in out
    lines = err.splitlines()
    assert sum(o.startswith('compute: cpu, float32') for o in lines) == 1
    assert sum(o.startswith('epoch 1/1 (frozen): train loss') for o in lines) == 1
    (aside,) = [o for o in lines if 'set aside' in o]
    assert aside.startswith('warning: 2 of 242 files') and 'train/4/cut.png' in aside and 'test/0/web.jpg' in aside and 'truncated' in aside
    assert '\r' not in err and '█' not in err and 'Warning' not in err


def test_same_seed_same_weights(run, photos, tmp_path):
    "Another process that repeats the run from its run.toml gives the same weights in a folder of its own, another seed others"
    weights = (run[0]/'bundle/model.safetensors').read_bytes()
    out, err = command('train', '--config', run[0]/'run.toml', cwd=tmp_path)
    again = tmp_path/'imgcls-run'
    assert (again/'bundle/model.safetensors').read_bytes() == weights and 'repeated' not in err
    before, after = (tomllib.loads((o/'run.toml').read_text()) for o in (run[0], again))
    assert before['data'] == after['data'] and before['results'] == after['results']
    assert before['settings'] | dict(out=0) == after['settings'] | dict(out=0)
    assert main(['train', str(photos), '--out', str(tmp_path/'other'), '--seed', '8', *small]) == 0
    assert (tmp_path/'other/bundle/model.safetensors').read_bytes() != weights


def test_interrupted_before_training(photos, tmp_path):
    "Ctrl-C while the photos are looked at: status 130, no traceback, nothing left"
    process = start('train', photos, '--out', 'deep/run', *small, cwd=tmp_path)
    while not (tmp_path/'deep/run/run.toml').exists() and process.poll() is None: time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and 'Traceback' not in err
    assert 'stopped before the first batch: nothing is kept' in err
    assert names(tmp_path) == []


@pytest.mark.parametrize('by', [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_continued(photos, tmp_path, by):
    "Ctrl-C and SIGTERM in the middle of training: the state is kept, the sentence says how to go on, and that ends at the same weights"
    longer = [*small, '--freeze-epochs', '2', '--epochs', '1', '--seed', '7']
    process = start('train', photos, '--out', 'deep/run', *longer, cwd=tmp_path)
    for line in process.stderr:
        if line.startswith('epoch 1/'): break
    process.send_signal(by)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + by and 'Traceback' not in err
    assert 'Go on with: imgcls train --out deep/run --resume' in err
    assert (tmp_path/'deep/run/checkpoints/last.safetensors').exists() and not (tmp_path/'deep/run/bundle').exists()
    assert main(['train', str(photos), '--out', str(tmp_path/'deep/run'), *longer]) == 1  # it isn't begun anew by mistake
    out, err = command('train', '--out', 'deep/run', '--resume', cwd=tmp_path)
    assert 'going on from stage' in err and 'epoch 1/3' not in err and 'epoch 3/3 (unfrozen)' in err
    assert not (tmp_path/'deep/run/checkpoints').exists()
    assert len(list(csv.DictReader(open(tmp_path/'deep/run/history.csv')))) == 3
    if by == signal.SIGINT: return
    command('train', photos, '--out', 'whole', *longer, cwd=tmp_path)  # with as many threads
    weights = [(tmp_path/o/'bundle/model.safetensors').read_bytes() for o in ('deep/run', 'whole')]
    assert weights[0] == weights[1]


@pytest.mark.parametrize('keep', ['best', 'last'])
def test_which_epoch_is_saved(photos, tmp_path, keep):
    "A rate that is far too high for the second stage: the last epoch isn't the best one"
    options = [*small, '--freeze-epochs', '2', '--epochs', '1', '--lr', '0.5', '--seed', '7']
    assert main(['train', str(photos), '--out', str(tmp_path/'run'), *options, '--keep', keep]) == 0
    losses = [float(o['valid_loss']) for o in csv.DictReader(open(tmp_path/'run/history.csv'))]
    said = [float(o['loss']) for o in csv.DictReader(open(tmp_path/'run/predictions/valid.csv'))]
    assert min(losses) < 0.9 * losses[-1], losses
    assert sum(said) / len(said) == pytest.approx(min(losses) if keep == 'best' else losses[-1], rel=1e-3)


def test_resume_refusals(run, photos, tmp_path, capsys):
    assert main(['train', '--out', str(run[0]), '--resume', '--lr', '0.5']) == 1
    assert 'was begun with other settings: --lr 0.5 (it was 0.002). Leave them out' in capsys.readouterr().err
    assert main(['train', '--out', str(run[0]), '--resume']) == 0
    assert 'is finished: there is nothing to go on with' in capsys.readouterr().out
    assert main(['train', '--out', str(tmp_path), '--resume']) == 1
    assert 'is no run: it has no file run.toml. A run is a folder that `imgcls train` leaves' in capsys.readouterr().err
    assert main(['train', '--resume']) == 1
    assert '--resume needs --out' in capsys.readouterr().err


def test_readings_are_logged(run, photos, tmp_path):
    "The run has read its test photos once; who evaluates its bundle on test photos leaves a line as well"
    copy = shutil.copytree(run[0], tmp_path/'run')
    rows = list(csv.DictReader(open(copy/'readings.csv')))
    assert [(o['by'], o['split'], o['photos']) for o in rows] == [('predict', 'test', '48')]
    assert main(['evaluate', str(copy/'bundle'), str(photos)]) == 0
    assert [o['by'].split(' ')[0] for o in csv.DictReader(open(copy/'readings.csv'))] == ['predict', 'imgcls']
    assert main(['evaluate', str(copy/'bundle'), str(photos), '--split', 'valid']) == 0
    assert len(list(csv.DictReader(open(copy/'readings.csv')))) == 2


# --- train --config ---------------------------------------------------------------------------------------------------
def test_repeated_with_a_difference(run, photos, tmp_path, capsys, monkeypatch):
    "The command line comes first; other photos and other versions are told"
    before = tomllib.loads((run[0]/'run.toml').read_text())
    assert before['data']['images'] == 240
    other = tmp_path/'other.toml'
    other.write_text((run[0]/'run.toml').read_text().replace(before['data']['fingerprint'], 'f'*64).replace('fastai = "', 'fastai = "0.'))
    seen = {}
    from imgcls.commands import train
    monkeypatch.setattr(train, '_fit', lambda table, s, run: seen.update(s) or 1/0)
    with pytest.raises(ZeroDivisionError): main(['train', '--config', str(other), '--epochs', '3', '--bs', '64', '--out', str(tmp_path/'third')])
    err = capsys.readouterr().err
    assert 'the photos are not the same as in the run that is repeated (240 then, 240 now)' in err and re.search('other versions than in the run that is repeated: fastai .* [(]was 0[.]', err)
    assert {k: seen[k] for k in seen if seen[k] != before['settings'].get(k) and seen[k] is not None} == dict(epochs=3, bs=64, out=tmp_path/'third', folder=photos)  # 3 and 64 are defaults, and were said
    with pytest.raises(ZeroDivisionError): main(['train', '--config', str(other), '--seed', '8', '--out', str(tmp_path/'third')])
    assert 'the photos are not' not in capsys.readouterr().err  # another seed splits them otherwise
    assert not (tmp_path/'third').exists()


def test_config_by_hand(photos, tmp_path, capsys, monkeypatch):
    from imgcls.commands import train
    seen, file = {}, tmp_path/'mine.toml'
    monkeypatch.setattr(train, 'train_run', lambda folder, out, s, run=None, *, noted: seen.update(s, folder=folder, out=out) or 1/0)
    file.write_text(f'folder = "{photos}"\nfreeze-epochs = 0\nlr = 1\nbs = 16\nbalance = "loss"\ncache = true\nout = "{tmp_path}/here"\n')
    with pytest.raises(ZeroDivisionError): main(['train', '--config', str(file), '--lr', '0.5'])
    assert seen | dict(folder=photos, freeze_epochs=0, lr=0.5, bs=16, balance='loss', cache=True, out=tmp_path/'here', epochs=3, seed=42) == seen
    with pytest.raises(ZeroDivisionError): train.train(config=file, seed=1)
    assert seen['seed'] == 1 and seen['lr'] == 1. and isinstance(seen['lr'], float)
    (tmp_path/'run').mkdir()
    shutil.copy(file, tmp_path/'run/run.toml')
    with pytest.raises(ZeroDivisionError): main(['train', 'photos', '--config', str(tmp_path/'run')])  # the folder of a run will do
    assert seen['folder'] == Path('photos')


@pytest.mark.parametrize('text,said', [
    ('epohcs = 3', "`imgcls train` has no setting `epohcs`. Did you mean `epochs`?"), ('[setings]\nepochs = 3', 'has no setting `setings`'), ('resume = true', 'has no setting `resume`'),
    ('epochs = "3"', "`epochs` must be a whole number, got '3'"), ('epochs = 3.0', '`epochs` must be a whole number, got 3.0'), ('epochs = true', '`epochs` must be a whole number, got True'),
    ('epochs = -1', '`epochs` must be at least 0, got -1'), ('size = 5000', '`size` must be at least 8 and at most 4096, got 5000'), ('lr = "fast"', "`lr` must be a number, got 'fast'"),
    ('valid = 1.5', '`valid` must be at least 0 and at most 1'), ('augment = "non"', "`augment` must be one of 'standard', 'no_flip', 'any_way_up', 'trivial', 'none', got 'non'. Did you mean 'none'?"),
    ('cache = "yes"', "`cache` must be true or false, got 'yes'"), ('folder = 3', '`folder` must be text, got 3'), ('bs = "many"', "`bs`: 'many' is neither a whole number"), ('bs = 0', "`bs`: '0' is neither"),
    ('arch = ["a"]', "`arch` must be text, got ['a']"), ('[settings]\ncommand = "evaluate"', 'has the settings of `imgcls evaluate`'), ('epochs 3', "isn't valid TOML"), (None, 'No such file')])
def test_bad_config(tmp_path, capsys, text, said):
    if text is not None: (tmp_path/'x.toml').write_text(text)
    assert main(['train', 'photos', '--config', str(tmp_path/'x.toml')]) == 1
    err = capsys.readouterr().err
    assert said in err and 'x.toml' in err and 'Traceback' not in err


def test_config_with_resume(run, capsys):
    assert main(['train', '--resume', '--out', str(run[0]), '--config', str(run[0])]) == 2
    assert 'either --config or --resume' in ' '.join(capsys.readouterr().err.split())


# --- predict ----------------------------------------------------------------------------------------------------------
def test_predict(run, photos):
    files = sorted((photos/'test').glob('*/*.png'))
    out, err = command('predict', 'run/bundle', *files, cwd=photos.parent)
    rows = [o.split('\t') for o in out.splitlines()]
    assert [o[0] for o in rows] == [str(o) for o in files] and all(o[1] in '0147' and 0.25 <= float(o[2]) <= 1 for o in rows)
    right = sum(o[1] == Path(o[0]).parent.name for o in rows)
    with open(photos.parent/'run/predictions/test.csv') as f: assert abs(right - sum(o['correct'] == 'True' for o in csv.DictReader(f))) <= 1


def test_predict_json_and_bad_files(run, photos, capsys):
    bundle, good, bad = str(run[0]/'bundle'), str(photos/'valid/7'), str(photos/'train/4/cut.png')
    assert main(['predict', bundle, bad, good, 'gone.png', '--json', '--k', '4']) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert len(rows) == 14 and rows[0]['label'] is None and rows[0]['error'].startswith('truncated') and rows[-1]['error'] == 'missing'
    assert sum(rows[1][o] for o in ('probability', 'probability_2', 'probability_3', 'probability_4')) == pytest.approx(1, abs=1e-4)
    assert 'warning: 2 of 14 files cannot be used: ' in captured.err and 'cut.png (truncated' in captured.err and 'gone.png (missing)' in captured.err
    assert main(['predict', bundle, bad, good]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13 and lines[0] == f'{bad}\t\t' and lines[1].count('\t') == 2


@pytest.mark.parametrize('files,options,status', [(['train/4/cut.png'], [], 1), (['gone.png'], [], 1), (['gone.png', 'train/4/cut.png'], [], 1),
    (['gone.png', 'valid/7'], [], 0), (['gone.png', 'valid/7'], ['--strict'], 1), (['valid/7'], ['--strict'], 0)])
def test_predict_status(run, photos, capsys, files, options, status):
    assert main(['predict', str(run[0]/'bundle'), *(str(photos/o) for o in files), *options]) == status
    if status: assert 'cannot be used' in capsys.readouterr().err


# --- evaluate ---------------------------------------------------------------------------------------------------------
def test_evaluate(run, photos, tmp_path):
    before = contents(photos)
    out, err = command('evaluate', run[0]/'bundle', photos, '--json', '--out', tmp_path/'evaluation', '--compute', 'fp32', cwd=tmp_path)
    found = json.loads(out)
    test = tomllib.loads((run[0]/'run.toml').read_text())['results']['test']
    assert found['split'] == 'test' and found['accuracy']['n'] == 48 and found['accuracy']['value'] == pytest.approx(test['accuracy'])
    assert [o['path'] for o in found['set_aside']] == ['test/0/web.jpg'] and all(o['count'] > 0 for o in found['most_confused'])
    assert names(tmp_path/'evaluation') == ['figures', 'figures/confusion.png', 'figures/top_losses.png', 'predictions', 'predictions/test.csv', 'predictions/test.json', 'run.toml']
    assert contents(photos) == before


@pytest.mark.parametrize('split,n', [('auto', 48), ('test', 48), ('valid', 48), ('train', 144), ('all', 240)])
def test_evaluate_splits(run, photos, capsys, split, n):
    assert main(['evaluate', str(run[0]/'bundle'), str(photos), '--split', split]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f'{n} photos ({"test" if split == "auto" else split}): accuracy ')
    assert (f'has learned from 144 of these {n} photos' in captured.err) == (split in ('train', 'all'))


def test_evaluate_plain_folder(run, photos, capsys):
    "A folder of class folders without splits is read as a whole"
    assert main(['evaluate', str(run[0]/'bundle'), str(photos/'valid')]) == 0
    assert capsys.readouterr().out.startswith('48 photos (all): accuracy ')
    assert main(['evaluate', str(run[0]/'bundle'), str(photos/'valid'), '--split', 'test']) == 1
    assert "there is no split 'test' in the folder; it has train, valid" in capsys.readouterr().err


def test_evaluate_other_classes(run, photos, tmp_path, capsys):
    bundle = str(run[0]/'bundle')
    for name in ('0', '1'): shutil.copytree(photos/'valid'/name, tmp_path/'mixed'/name)
    shutil.copytree(photos/'valid/4', tmp_path/'mixed/four')
    assert main(['evaluate', bundle, str(tmp_path/'mixed')]) == 1
    assert 'differ (only in the folder: four; only in the classifier: 4, 7). Add --allow-missing' in capsys.readouterr().err
    assert main(['evaluate', bundle, str(tmp_path/'mixed'), '--allow-missing']) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith('24 photos (all): accuracy') and 'evaluating the shared classes alone: 0, 1' in captured.err
    shutil.copytree(photos/'valid/4', tmp_path/'none/four')
    assert main(['evaluate', bundle, str(tmp_path/'none'), '--allow-missing']) == 1
    assert 'share no class (only in the folder: four; only in the classifier: 0, 1, 4, 7)' in capsys.readouterr().err


# --- audit ------------------------------------------------------------------------------------------------------------
def test_audit(photos, tmp_path):
    before = contents(photos)
    out, err = command('audit', photos, '--out', 'report', cwd=tmp_path)
    assert re.search(r'unreadable.*\n.*test/0/web.jpg: not an image: it looks like a web page', out) and 'train/4/cut.png: truncated' in out
    assert 'total' in out and 'Report and figures are in report' in out
    assert names(tmp_path/'report') == ['audit.json', 'classes.png', 'samples.png', 'sizes.png']
    assert contents(photos) == before


def test_audit_json_and_status(photos, tmp_path):
    out, err = command('audit', photos, '--json', cwd=tmp_path)
    found = json.loads(out)
    assert found['kinds']['unreadable'] == 2 and found['files'] == 242 and found['usable'] == 240
    command('audit', photos, '--fail-on', 'leak,unreadable', cwd=tmp_path, status=1)
    command('audit', photos, '--fail-on', 'leak, conflict', cwd=tmp_path)


def test_audit_of_bad_arguments(photos, tmp_path, capsys):
    assert main(['audit', str(photos), '--fail-on', 'leeks']) == 1
    assert "`--fail-on` must be one of" in (err := capsys.readouterr().err) and "Did you mean 'leak'?" in err
    assert main(['audit', str(tmp_path/'nowhere')]) == 1


# --- demo -------------------------------------------------------------------------------------------------------------
def test_demo_on_own_photos(photos, tmp_path):
    before = contents(photos)
    out, err = command('demo', photos, cwd=tmp_path)
    assert contents(photos) == before and names(tmp_path)[:3] == ['imgcls-demo', 'imgcls-demo/audit.json', 'imgcls-demo/bundle']
    for text in ('Your photos in', 'total ', 'test: accuracy', '95 % interval', 'a photo that was not in training', 'test/0/', ', with probability ',
                 'Everything is in imgcls-demo', 'bundle/model.safetensors', 'figures/confusion.png', 'imgcls predict imgcls-demo/bundle PHOTO', 'imgcls notebooks DIR'):
        assert text in out, text
    assert sum(o.startswith('epoch ') for o in err.splitlines()) == 3
    from imgcls.commands.base import read_settings
    from imgcls.commands.train import train
    settings, noted = read_settings(tmp_path/'imgcls-demo', train, skip=('resume', 'config'), of=('train', 'demo'))  # `imgcls train` can repeat it
    assert settings['size'] == 128 and settings['bs'] == '64' and settings['folder'] == photos and 'fingerprint' in noted['data']


def test_demo_data(monkeypatch, tmp_path):
    from imgcls import cli
    monkeypatch.delenv('IMGCLS_DATA', raising=False)
    folder, settings, about = cli._demo_data(None)
    assert folder == sample('digits') and settings['augment'] == 'no_flip' and 'They stand in for photos' in about and 'imgcls demo FOLDER' in about
    (tmp_path/'clothing').mkdir()
    monkeypatch.setenv('IMGCLS_DATA', str(tmp_path))
    folder, settings, about = cli._demo_data(None)
    assert folder == tmp_path/'clothing' and settings['augment'] == 'standard' and 'clothes' in about
    assert cli._demo_data(Path('mine'))[0] == Path('mine')


def test_free_folders(tmp_path, monkeypatch):
    from imgcls.commands.base import free_folder
    monkeypatch.chdir(tmp_path)
    photos = tmp_path/'photos'
    assert free_folder(None, 'imgcls-run', photos) == Path('imgcls-run')
    (tmp_path/'imgcls-run').mkdir()
    assert free_folder(None, 'imgcls-run', photos) == Path('imgcls-run')
    for i in ('', '-2'): (tmp_path/f'imgcls-run{i}'/'x').mkdir(parents=True)
    assert free_folder(None, 'imgcls-run', photos) == Path('imgcls-run-3')
    assert free_folder(Path('imgcls-run'), 'x', photos) == Path('imgcls-run')  # what was asked for is never changed
    for out in ('photos', 'photos/run', 'photos/../photos/a/b'):
        with pytest.raises(ValueError, match='is inside of the folder of photos'): free_folder(out, 'x', photos)


# --- notebooks, samples, version, help --------------------------------------------------------------------------------
def test_notebooks(tmp_path, capsys):
    made = [o for name in ('tutorials', 'explanations') for o in sorted((root/'nbs'/name).glob('*.ipynb'))]
    if not made: pytest.skip('no tutorials are written yet')
    assert main(['notebooks', str(tmp_path/'mine')]) == 0
    assert f'{len(made)} notebooks are in' in capsys.readouterr().out
    copies = sorted((tmp_path/'mine').rglob('*.ipynb'))
    assert sorted(o.name for o in copies) == sorted(o.name for o in made)
    for o in made: assert (tmp_path/'mine'/o.relative_to(root/'nbs')).read_bytes() == o.read_bytes()
    assert main(['notebooks', str(tmp_path/'mine')]) == 0
    copies[0].write_text('changed')
    copies[-1].unlink() if len(copies) > 1 else None
    capsys.readouterr()
    before = contents(tmp_path)
    assert main(['notebooks', str(tmp_path/'mine')]) == 1
    assert 'changed, and would be overwritten' in (err := capsys.readouterr().err) and copies[0].name in err
    assert contents(tmp_path) == before


def test_samples(tmp_path):
    out, _ = command('samples', cwd=tmp_path)
    assert {'digits', 'clothing', 'cats_dogs'} <= {o.split()[0] for o in out.splitlines()}


def test_samples_as_json(capsys):
    assert main(['samples', '--json']) == 0
    found = {o['name']: o for o in json.loads(capsys.readouterr().out)}
    assert found['digits']['classes'] == 10 and found['digits']['images'] == 1797 and found['digits']['here'] is True


def test_version(tmp_path, capsys):
    import imgcls
    out, err = command('version', cwd=tmp_path)
    assert out.startswith(f'imgcls {imgcls.__version__}\nfastai ') and '\npython 3.' in out and '\ntorch ' in out and not err
    assert main(['version', '--json']) == 0
    assert json.loads(capsys.readouterr().out) == dict(o.split(' ') for o in out.splitlines())
    assert main(['--version']) == 0
    assert capsys.readouterr().out == f'imgcls {imgcls.__version__}\n'


def test_help_is_light_and_quick(tmp_path, record_testsuite_property):
    "Neither fastai, torch, pandas nor matplotlib is loaded for help, and the time is told"
    code = '''
import sys
from imgcls.cli import main
status = main(sys.argv[1:])
print([o for o in ('fastai', 'torch', 'pandas', 'matplotlib', 'numpy', 'PIL') if o in sys.modules], status)'''
    env = os.environ | dict(PYTHONPATH=str(root))
    for args in (['--help'], ['train', '--help'], ['predict'], ['nonsense']):
        begin = time.perf_counter()
        out = subprocess.run([sys.executable, '-c', code, *args], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - begin
        assert out.stdout.splitlines()[-1] == f'[] {0 if "--help" in args else 2}', out.stderr
        if args == ['--help']: record_testsuite_property('seconds of imgcls --help', f'{seconds:.2f}')
        print(f'imgcls {" ".join(args)}: {seconds:.2f} s')
        assert seconds < 5


def test_every_command_has_help_with_an_example(capsys):
    assert main(['--help']) == 0
    commands = capsys.readouterr().out.partition('Commands:')[2]
    listed = [o.split()[0] for o in commands.splitlines() if o.strip()]
    assert '...' not in commands
    assert listed == ['demo', 'audit', 'train', 'evaluate', 'report', 'predict', 'export', 'serve', 'samples', 'cache', 'notebooks', 'version']  # as somebody meets them
    for name in listed:
        assert main([name, '--help']) == 0
        out = capsys.readouterr().out
        assert f'Example: imgcls {name}' in out and '...' not in out.partition('Options:')[2] and len(out.splitlines()) <= 60
        assert out.rpartition('\n\n')[2].lstrip().startswith('Example: '), 'the example stands at the end'
        for line in out.partition('Options:')[2].splitlines():
            if line.strip().startswith('--'): assert len(line.split('  ')) >= 2, line


# --- Completion -------------------------------------------------------------------------------------------------------
def complete(monkeypatch, capsys, line, shell='bash'):
    "What the shell is told when the tabulator key is pressed behind `line`"
    words = line.split(' ')
    env = dict(COMP_WORDS=line, COMP_CWORD=str(len(words) - 1), _TYPER_COMPLETE_ARGS=line, _TYPER_COMPLETE_WORD_TO_COMPLETE=words[-1], _TYPER_COMPLETE_FISH_ACTION='get-args')
    with monkeypatch.context() as m:
        for k, v in (env | dict(_IMGCLS_COMPLETE=f'complete_{shell}')).items(): m.setenv(k, v)
        assert main([]) == 0
    return capsys.readouterr().out


def test_completion(monkeypatch, capsys):
    def of(line): return complete(monkeypatch, capsys, line).split()
    assert of('imgcls ex') == ['export'] and of('imgcls e') == ['evaluate', 'export'] and of('imgcls xyz') == []
    assert of('imgcls predict --re') == ['--resume'] and of('imgcls train --fr') == ['--freeze-epochs'] and of('imgcls --ver') == ['--version']
    assert of('imgcls train photos --augment no') == ['no_flip', 'none'] and of('imgcls export b --to ') == ['onnx', 'pt2']
    for line in ('imgcls predict ru', 'imgcls predict b pho', 'imgcls train pho', 'imgcls train --config ru', 'imgcls predict b p --out a'): assert of(line) == []  # the shell completes files
    assert 'evaluate' in complete(monkeypatch, capsys, 'imgcls ev', 'zsh') and 'Measure a saved classifier' in complete(monkeypatch, capsys, 'imgcls ev', 'zsh')
    assert complete(monkeypatch, capsys, 'imgcls ev', 'fish').startswith('evaluate\t')


@pytest.mark.parametrize('shell,text', [('bash', 'complete -o default -F _imgcls_completion imgcls'), ('zsh', '#compdef imgcls'), ('fish', 'complete --command imgcls')])
def test_completion_script(tmp_path, monkeypatch, capsys, shell, text):
    "The script for a shell; in bash it is loaded, and asked"
    monkeypatch.setenv('_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION', '1')
    assert main(['--show-completion', shell]) == 0
    script = capsys.readouterr().out
    assert text in script and '_IMGCLS_COMPLETE' in script
    if shell != 'bash' or not shutil.which('bash'): return
    (tmp_path/'imgcls').write_text(f'#!{sys.executable}\nimport sys; from imgcls.cli import main; sys.exit(main())')
    (tmp_path/'imgcls').chmod(0o755)
    ask = '\nCOMP_WORDS=(imgcls ex); COMP_CWORD=1; _imgcls_completion imgcls; echo "${COMPREPLY[@]}"'
    res = subprocess.run(['bash', '-c', script + ask], capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(root), PATH=f"{tmp_path}:{os.environ['PATH']}"))
    assert res.stdout == 'export\n', res.stderr


# --- What can go wrong ------------------------------------------------------------------------------------------------
def digits(folder, **classes):
    "A folder with a number of digits for each class; a name may hold splits, as in train_0"
    files = sorted(sample('digits').rglob('*.png'))
    for name, n in classes.items():
        dest = folder/name.lstrip('c').replace('_', '/')
        dest.mkdir(parents=True)
        for i, file in enumerate(files[:n]): shutil.copy(file, dest/f'{name}{i}.png')
    return folder


def empty(folder): folder.mkdir()


def only_bad(folder):
    for name in 'ab':
        (folder/name).mkdir(parents=True)
        for i in range(3): (folder/name/f'{i}.jpg').write_text('no image')


bad_folders = {
    'empty': (empty, 'there are no images in'), 'missing': (lambda o: None, 'There is no folder'), 'a file': (lambda o: o.write_text('x'), 'is a file, and a folder of images was expected'),
    'one class': (lambda o: digits(o, c0=5), 'there is only one class, `0`, and a classifier needs at least two'),
    'one image': (lambda o: digits(o, c0=5, c1=1), 'a class with only one image: 1'),
    'only in validation': (lambda o: digits(o, train_0=4, train_1=4, valid_0=2, valid_1=2, valid_2=2), 'a class only in valid, with nothing in train to learn from: 2'),
    'only in test': (lambda o: digits(o, train_0=4, train_1=4, valid_0=2, valid_1=2, test_9=2), 'a class only in test, with nothing in train to learn from: 9'),
    'no class folders': (lambda o: [digits(o.parent/'tmp', c0=4), shutil.copytree(o.parent/'tmp/0', o), shutil.rmtree(o.parent/'tmp')], 'lie directly in'),
    'nothing readable': (only_bad, 'none of the 6 files in')}


@pytest.mark.parametrize('name', bad_folders)
@pytest.mark.parametrize('verb', ['train', 'demo'])
def test_bad_folder(tmp_path, capsys, name, verb):
    "One sentence, status 1, and nothing half written"
    make, text = bad_folders[name]
    make(tmp_path/'photos')
    before = names(tmp_path)
    assert main([verb, str(tmp_path/'photos'), '--out', str(tmp_path/'deep/run')]) == 1
    captured = capsys.readouterr()
    (line,) = [o for o in captured.err.splitlines() if o.startswith('error: ')]
    assert text in line and 'Traceback' not in captured.err and names(tmp_path) == before


def test_bad_folder_in_a_process(tmp_path):
    (tmp_path/'photos').mkdir()
    out, err = command('train', 'photos', '--out', 'run', cwd=tmp_path, status=1)
    assert err.startswith('error: there are no images in') and len(err.splitlines()) == 1 and names(tmp_path) == ['photos']


@pytest.mark.parametrize('verb', [['train'], ['demo'], ['evaluate', 'BUNDLE']])
def test_bad_out(run, photos, tmp_path, capsys, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    verb = [str(run[0]/'bundle') if o == 'BUNDLE' else o for o in verb]
    (tmp_path/'file').write_text('x')
    (tmp_path/'full').mkdir()
    (tmp_path/'full/mine.txt').write_text('x')
    before, data = contents(tmp_path), contents(photos)
    for out, text in (('file', "is a file. Choose another name for the run's folder"), ('full', "isn't empty. Choose another folder for the run"),
                      ('file/below/it', "Can't write"), (str(photos/'run'), 'is inside of the folder of photos')):
        begin = time.perf_counter()
        assert main([*verb, str(photos), '--out', out]) == 1
        assert text in capsys.readouterr().err
        assert time.perf_counter() - begin < 20  # before any work
        assert contents(tmp_path) == before and contents(photos) == data


def test_strict(photos, tmp_path, capsys):
    assert main(['train', str(photos), '--strict', '--out', str(tmp_path/'run')]) == 1
    assert '2 files cannot be used, and --strict was given: test/0/web.jpg (not an image' in capsys.readouterr().err and not names(tmp_path)


@pytest.mark.parametrize('args,text', [
    (['train', 'PHOTOS', '--arch', 'efficientnet_lite9'], "no backbone 'efficientnet_lite9' in timm"), (['train', 'PLAIN', '--valid', '1'], '`valid` and `test` must be shares'),
    (['train', 'PHOTOS', '--label', '('], "is none:"), (['train', 'PHOTOS', '--label', r'^(x+)\.png$'], 'names do not match'), (['train', 'PHOTOS', '--lr', '0'], '`lr` and `lr_mult` must be positive'),
    (['predict', 'nowhere', 'x.jpg'], "there is no bundle 'nowhere'"), (['predict', 'PHOTOS', 'x.jpg'], 'is no bundle: it has no file classifier.json'),
    (['predict', 'BUNDLE', 'x.jpg', '--k', '9'], '`k` must be a whole number from 1 to 4'), (['predict', 'BUNDLE', 'VOID'], 'there are no images in'),
    (['evaluate', 'BUNDLE', 'nowhere'], 'There is no folder'), (['evaluate', 'nowhere', 'PHOTOS'], "there is no bundle 'nowhere'"), (['evaluate', 'BUNDLE', 'PHOTOS', '--strict'], '--strict was given'),
    (['notebooks', 'FILE/x'], "Can't write")], ids=lambda o: ' '.join(o) if isinstance(o, list) else '')
def test_bad_arguments(run, photos, tmp_path, capsys, monkeypatch, args, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'file').write_text('x')
    (tmp_path/'void').mkdir()
    before, places = contents(tmp_path), dict(PHOTOS=str(photos), PLAIN=str(photos/'valid'), BUNDLE=str(run[0]/'bundle'), VOID='void')
    assert main([places.get(o, o.replace('FILE', 'file')) for o in args]) == 1
    err = capsys.readouterr().err
    assert text in err and 'Traceback' not in err and err.count('error: ') == 1 and contents(tmp_path) == before


@pytest.mark.parametrize('args', [['nonsense'], ['train'], ['train', 'x', '--epochs', '-1'], ['train', 'x', '--size', 'big'], ['train', 'x', '--size', '4'], ['train', 'x', '--bs', '0'],
    ['train', 'x', '--augment', 'much'], ['train', 'x', '--valid', '2'], ['train', 'x', '--nonsense'], ['predict', 'x'], ['evaluate', 'x'], ['evaluate', 'x', 'y', '--split', 'val'], ['notebooks'], []],
    ids=lambda o: ' '.join(o))
def test_wrong_usage(tmp_path, capsys, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    assert 'Traceback' not in capsys.readouterr().err and not names(tmp_path)


def test_faults_of_ours_show_themselves(monkeypatch, photos, tmp_path):
    "An error that isn't meant for the user keeps its traceback, and nothing is left"
    from imgcls.commands import train
    def broken(*args): return {}['missing']
    monkeypatch.setattr(train, '_fit', broken)
    with pytest.raises(KeyError): main(['train', str(photos), '--out', str(tmp_path/'run')])
    assert not names(tmp_path)


def test_the_log_is_as_before(capsys):
    import logging
    log = logging.getLogger('imgcls')
    before = list(log.handlers)
    main(['version'])
    main(['train', 'nowhere'])
    assert log.handlers == before
