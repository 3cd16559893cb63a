"""The report of a run: nothing fetched, nothing told of the photos, everything escaped, small; and what it says of a run with parts missing."""
import io, json, re, shutil
from base64 import b64decode
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from imgcls.evaluate import report
from imgcls.evaluate.page import html_table, html_text, model_card, thumbnail
from imgcls.evaluate.report import write_report
from imgcls.predictions import Predictions
from imgcls.train.run import Run
from PIL import Image
from PIL.PngImagePlugin import PngInfo

evil = '</script><script>alert(1)</script>'
few = ['cat', evil, '"><img src=x onerror=alert(2)>', '狗 $x$', 'a very long name of a class that no axis has room for']


def photo(kind='jpeg', size=(640, 480), secret='Secret camera'):
    "A photo that knows where it was taken, as bytes"
    img, exif, out, text = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size), Image.Exif(), io.BytesIO(), PngInfo()
    exif[0x010F] = secret
    exif.get_ifd(0x8825)[2] = (48., 12., 30.)
    text.add_text('Comment', secret)
    more = dict(jpeg=dict(comment=secret, xmp=secret.encode()), png=dict(pnginfo=text), webp=dict(xmp=secret.encode()))[kind]
    img.save(out, kind, exif=exif, icc_profile=secret.encode()*9, **more)
    return out.getvalue()

def predictions(n, vocab, split, root=None, seed=0):
    rng = np.random.default_rng(seed)
    targets, logits = rng.integers(0, len(vocab), n), rng.normal(size=(n, len(vocab)))
    said = np.where(rng.random(n) < 0.85, targets, (targets + rng.integers(0, 3, n)) % len(vocab))
    logits[np.arange(n), said] += rng.exponential(5, n)
    probs = np.exp(logits)
    items = [f'{split}/{i} <b>&{"sub/"*(i % 2)}.jpg' for i in range(n)]
    return Predictions(probs/probs.sum(1, keepdims=True), vocab, targets=targets, items=items, root=root, split=split)

def make_run(folder, n, vocab, splits=('valid', 'test')):
    "A run as a training leaves it, with invented predictions, some photos, and things in it that attack"
    run, photos = Run.create(folder/'run', dict(command='train', folder=str(folder/'photos'), arch='efficientnet_lite0', size=224)), folder/'photos'
    data = photo()
    for i, split in enumerate(splits):
        preds = predictions(n, vocab, split, photos, i)
        preds.save(run.path/f'predictions/{split}.csv')
        for o in preds.items[np.argsort(-preds.losses)[:40]] if split == 'valid' else ():
            (photos/o).parent.mkdir(parents=True, exist_ok=True)
            (photos/o).write_bytes(data)
    history = dict(epoch=range(3), stage=['frozen', 'all', 'all'], train_loss=[2, .8, .3], valid_loss=[1.5, .8, .5], accuracy=[.4, .7, .85], lr=5e-4)
    run.write_history(pd.DataFrame(history))
    run.write_set_aside(pd.DataFrame(dict(path=[f'{evil}.jpg'], label=[evil], error=['truncated'])))
    issues = [dict(file=f'{i}.jpg', kind='leak', severity='error', details=evil, what_to_do='Keep one') for i in range(300)]
    (run.path/'audit.json').write_text(json.dumps(dict(root=str(photos), files=3*n, usable=3*n - 1, kinds=dict(leak=300, blank=0), issues=issues)))
    pd.DataFrame(dict(time=['a', 'b'], by=['train', 'evaluate'], split='test', photos=n, right=n)).to_csv(run.path/'readings.csv', index=False)
    run.bundle.mkdir()
    about = dict(model=dict(arch='embedded/efficientnet_lite0'), vocab=vocab, data=dict(images={o: dict.fromkeys(vocab, 20) for o in ('train', *splits)}))
    (run.bundle/'classifier.json').write_text(json.dumps(about))
    return run


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A run of a few classes with its report"
    folder = tmp_path_factory.mktemp('report')
    run = make_run(folder, 400, few)
    path = write_report(run.path)
    return SimpleNamespace(folder=folder, run=run, path=path, text=path.read_text(encoding='utf-8'))


# --- The file ------------------------------------------------------------------------------------------------------
def test_whole(made):
    assert made.path == made.run.path/'report.html' and 'This part could not be made' not in made.text
    assert len(re.findall('<h2', made.text)) == 12 and made.text.count('<h1') == 1

def test_nothing_is_fetched(made):
    addresses = re.findall(r'(?:src|href|srcset|action|data)="(.*?)"', made.text) + re.findall(r'url\((.*?)\)', made.text)
    assert addresses and all(o.startswith(('data:', '#')) for o in addresses)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', made.text)[1]
    assert "default-src 'none'" in policy and 'http' not in policy and 'unsafe-eval' not in policy and "script-src 'sha256-" in policy

def test_escaped(made):
    assert made.text.count('<script') == made.text.count('</script') == 1 and '<img src=x' not in made.text and '&lt;script&gt;alert(1)' in made.text

def pictures(text): return [b64decode(o) for o in re.findall(r'src="data:image/(?:jpeg|png);base64,(.*?)"', text)]

def test_photos_tell_nothing(made):
    "No EXIF, no comment, no profile, no XMP, in any small picture"
    found = pictures(made.text)
    assert len(found) > 20
    for data in found:
        img = Image.open(io.BytesIO(data))
        assert not img.getexif() and not {'comment', 'xmp', 'icc_profile', 'exif'} & set(img.info) and b'Secret' not in data and max(img.size) <= 176

def test_alt_texts(made):
    alts = re.findall(r'<img [^>]*?alt="(.*?)"', made.text)
    assert len(alts) == made.text.count('<img ') and all(len(o) > 5 for o in alts)

def test_large(tmp_path):
    "10,000 images in 100 classes: under 5 MB"
    run = make_run(tmp_path, 10_000, [f'class {i}' for i in range(100)], splits=('valid',))
    size = write_report(run.path, tmp_path/'large.html').stat().st_size
    assert size < 2e6, size


# --- What is missing -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('gone,said', [
    ('audit.json', 'were not audited'), ('history.csv', 'There is no history.csv'), ('bundle', 'is not recorded'), ('predictions', 'holds no predictions'),
    ('predictions/test.csv', 'There was no test split'), ('predictions/valid.csv', 'accuracy on test'), ('../photos', 'not where they were')])
def test_missing(gone, said, made, tmp_path):
    shutil.copytree(made.folder, tmp_path/'a', ignore=shutil.ignore_patterns('report.html'))
    path = tmp_path/'a/run'/gone
    if path.is_dir(): shutil.rmtree(path)
    else: path.unlink()
    for name in ('run.toml', 'audit.json', 'predictions/valid.json', 'predictions/test.json'):   # the photos are those of the copy
        file = tmp_path/'a/run'/name
        if file.is_file(): file.write_text(file.read_text().replace(str(made.folder), str(tmp_path/'a')))
    text = write_report(tmp_path/'a/run').read_text(encoding='utf-8')
    assert said in text and len(re.findall('<h2', text)) == 12

def test_broken(made, tmp_path, caplog):
    "A broken file is named in the log, and the others are read"
    shutil.copytree(made.run.path, tmp_path/'run')
    for name in ('audit.json', 'predictions/test.csv', 'history.csv'): (tmp_path/'run'/name).write_text('{"a')
    text = write_report(tmp_path/'run').read_text(encoding='utf-8')
    assert 'audit.json' in caplog.text and 'test.csv' in caplog.text and 'accuracy on valid' in text and 'accuracy on test' not in text

def test_several_labels(tmp_path):
    "Parts that make no sense for several labels an image say so"
    run, rng = Run.create(tmp_path/'run', {}), np.random.default_rng(0)
    probs = rng.random((60, 3))
    Predictions(probs, ['a', 'b', 'c'], targets=(probs > rng.random((60, 3))).astype(int), items=[f'{i}.jpg' for i in range(60)], split='valid',
                multi_label=True).save(run.path/'predictions/valid.csv')
    text = write_report(run.path).read_text(encoding='utf-8')
    assert 'hamming' in text and 'This part could not be made' in text and len(re.findall('<h2', text)) == 12

def test_tiny(tmp_path):
    "Three images, all right; no figure breaks"
    run = Run.create(tmp_path/'run', {})
    Predictions([[.9, .1], [.2, .8], [.8, .2]], ['a', 'b'], targets=[0, 1, 0], items=['x.jpg', 'y.jpg', 'z.jpg'], split='valid').save(run.path/'predictions/valid.csv')
    text = write_report(run.path).read_text(encoding='utf-8')
    assert 'accuracy on valid' in text and '1.000' in text


# --- Parts of a page -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('value,text', [('a<b', 'a&lt;b'), ('"\'&', '&quot;&#x27;&amp;'), ('x\u202ey\x00\n', 'x�y��'), ('\udcff', '�'), (3, '3'), ('猫é', '猫é')],
                         ids=['tag', 'quotes', 'unseen', 'no UTF-8', 'number', 'letters'])
def test_text(value, text): assert html_text(value) == text

@pytest.mark.parametrize('value,cell', [
    (True, '<td>yes</td>'), (None, '<td class="num" data-v="">–</td>'), (float('nan'), '<td class="num" data-v="">–</td>'), (1234567, 'data-v="1234567">1,234,567</td>'),
    (0.5, 'data-v="0.5">0.500</td>'), (0.00012, 'data-v="0.00012">0.00012</td>'), (1234.5, '>1,234.500</td>'), ('<i>', '<td>&lt;i&gt;</td>')])
def test_cell(value, cell): assert cell in html_table(pd.DataFrame(dict(a=pd.Series([value], dtype=object))), 'one')

def test_empty_table(): assert '<tbody></tbody>' in html_table(pd.DataFrame(columns=['a', 'b']), 'none')

@pytest.mark.parametrize('kind', ['jpeg', 'png', 'webp'])
def test_thumbnail(kind):
    source = photo(kind)
    assert b'Secret' in source
    data, form = thumbnail(source, side=100)
    img = Image.open(io.BytesIO(data))
    assert (img.size, form) == ((100, 75), 'jpeg') and b'Secret' not in data and not img.getexif() and not {'comment', 'xmp', 'icc_profile'} & set(img.info)
    assert thumbnail(photo(kind, (20, 10)))[1] == 'png'

def test_card_escapes():
    about = dict(vocab=[evil, 'a|b', '[x](javascript:y)'], size=64, model=dict(arch=None), versions={}, metrics=[], data=dict(images=dict(train={'a|b': 1})))
    card = model_card(about, 10)
    assert '<script' not in card and r'a\|b' in card and r'\[x\](' in card


def test_folders_are_named_without_their_place(tmp_path):
    "A page is passed on: it says the name of a folder, not where it lay"
    run = make_run(tmp_path/'secret project', 12, ['cat', 'dog'])
    assert 'secret project' in (run.path/'run.toml').read_text()
    text = write_report(run.path).read_text()
    assert 'secret project' not in text and '>photos<' in text


def test_photos_that_may_have_been_trained_on(tmp_path):
    text = write_report(make_run(tmp_path, 40, ['cat', 'dog'], splits=('all',)).path).read_text()
    assert 'the classifier was trained on is not recorded here' in text and 'was not trained on them' not in text and 'validation images were watched' not in text


def test_all_answers_right(tmp_path):
    "There is no temperature to fit, and calibration and refusal are there all the same; nothing is called wrong"
    run, right = make_run(tmp_path, 40, ['cat', 'dog'], splits=('valid',)), np.arange(60) % 2
    probs = np.where(right[:, None] == [0, 1], 0.9, 0.1)
    Predictions(probs, ['cat', 'dog'], targets=right, items=[f'{i}.jpg' for i in range(60)], split='valid').save(run.path/'predictions/valid.csv')
    text = write_report(run.path).read_text()
    assert 'could not be made' not in text and 'The probabilities are as they are' in text and 'Answer always' in text and 'No answer is wrong' in text


def test_a_classifier_that_refuses_what_is_foreign(tmp_path):
    "It isn't said to answer always"
    run = make_run(tmp_path, 40, ['cat', 'dog'])
    about = json.loads((run.bundle/'classifier.json').read_text())
    assert 'always answers' in write_report(run.path).read_text()
    (run.bundle/'classifier.json').write_text(json.dumps(about | dict(foreign=dict(score='energy', threshold=-1., keep=0.99, n=300))))
    text = write_report(run.path).read_text()
    assert 'always answers' not in text and 'to photos unlike those it learned from' in text


def with_logits(run, split):
    p = run.predictions(split)
    p.logits = np.log(np.maximum(p.probs, 1e-9)) + np.linspace(0, 10, len(p), dtype=np.float32)[:, None]
    p.save(run.path/f'predictions/{split}.csv')
    return p

def section(run, title): return report._section(report._SECTIONS[title], report._read_run(run.path))

def test_slices_of_what_the_run_recorded(tmp_path):
    "A camera that fails stands first; the photos needn't be there"
    run = make_run(tmp_path, 300, few)
    p, rng = run.predictions('valid'), np.random.default_rng(0)
    shutil.rmtree(tmp_path/'photos')
    assert 'Nothing but their classes is recorded' in section(run, 'Slices')
    camera = np.where(~p.correct, 'C <i>', rng.choice(['A', 'B'], len(p)))
    run.write_table(pd.DataFrame(dict(path=p.items, label=p.actual, split='valid', camera=camera)), facts=pd.DataFrame(dict(path=p.items[::-1], brightness=rng.normal(120, 9, len(p)))))
    found = section(run, 'Slices')
    assert 'is worse than the other images by more than chance' in found and re.search('<tbody><tr><td>camera</td><td>C &lt;i&gt;</td>', found) and '<td>brightness</td>' in found and 'p corrected' in found

def test_slices_of_the_files(tmp_path):
    "Where the run recorded nothing, a look at the photos tells their size and brightness"
    run, rng = Run.create(tmp_path/'run', {}), np.random.default_rng(0)
    (tmp_path/'photos').mkdir()
    for i in range(96): Image.fromarray(rng.integers(0, 2*i + 9, (20 + i % 7, 30, 3)).astype(np.uint8)).save(tmp_path/f'photos/{i}.png')
    Predictions(np.tile([.8, .2], (96, 1)), ['a', 'b'], targets=np.arange(96) % 3 == 0, items=[f'{i}.png' for i in range(96)], root=tmp_path/'photos', split='valid').save(run.path/'predictions/valid.csv')
    assert '<td>brightness</td>' in section(run, 'Slices')

def test_curves_of_classes(made):
    found = section(made.run, 'Classes')
    assert 'alt="Precision against recall' in found and 'alt="ROC curves' in found

@pytest.mark.parametrize('keep,said', [('best', 'has the weights of epoch 1 (dotted), whose validation loss was the lowest: train loss 0.800, valid loss 0.400'), ('last', 'has the weights of the last epoch (dotted)'),
                                       (None, 'is not recorded. The figures on this page')])
def test_which_epoch_was_kept(tmp_path, keep, said):
    run = make_run(tmp_path, 30, ['cat', 'dog'])
    run.write_history(pd.DataFrame(dict(epoch=range(3), train_loss=[2, .8, .3], valid_loss=[np.nan, .4, .5], accuracy=[.4, .7, .85])))
    run.write_settings(dict(settings=run.settings['settings'] | ({} if keep is None else dict(keep=keep))))
    found = section(run, 'Training')
    assert said in found and found.count('<td>kept</td>') == (keep is not None)

def test_the_limit_for_foreign_images(tmp_path):
    "What it refuses is counted, and the thresholds are judged without it; without logits that is said"
    run = make_run(tmp_path, 200, ['cat', 'dog'])
    about = json.loads((run.bundle/'classifier.json').read_text())
    def said(**foreign):
        (run.bundle/'classifier.json').write_text(json.dumps(about | dict(temperature=2., foreign=dict(score='energy', threshold=-1., keep=0.95, n=321) | foreign)))
        return section(run, 'Refusal')
    assert 'cannot be seen, since their predictions are without logits' in said()
    p = [with_logits(run, o) for o in ('valid', 'test')][0]
    energy = -np.logaddexp.reduce(p.logits.astype(float)/2, axis=1)
    found = said(threshold=float(np.sort(energy)[149] + 1e-6))
    assert 'a share of 0.95 of such photos passes' in found and '321 known photos' in found and '<td>valid</td><td class="num" data-v="50">50</td>' in found and 'about the images that pass it' in found and '150 images' in found
    assert 'refuses all images of a split' in said(threshold=-1e6)
    assert 'are without features' in said(score='distance', sha256='0'*64)
