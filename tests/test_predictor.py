"""A loaded bundle: every field checked, nothing run, the same answers in any order and from any thread."""
import copy, hashlib, json, os, pickle, subprocess, sys, threading, time, weakref
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file

from imgcls.compute import choose_compute, run_as
from imgcls.core import DataError, map_ahead
from imgcls.data.loaders import image_loaders
from imgcls.deploy.bundle import save_bundle
from imgcls.deploy.export import export_bundle
from imgcls.deploy.imagenet import imagenet_classifier
from imgcls.deploy.predictor import Classifier, load_bundle
from imgcls.deploy.schema import BundleError
from imgcls.images import CropView, ImageError, crop_views, open_image
from imgcls.models.pretrained import image_model
from imgcls.train.ensembles import average_predictions, predict_views
from imgcls.train.learner import image_learner, predict

root = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.usefixtures('two_threads')  # which share the photos, as on a user's machine
rng = np.random.default_rng(0)


def describe(model, data, **fields):
    return dict(schema=1, model=model.config, vocab=['ant', 'bee', 'cat'], size=32, presize=48, method='crop', multi_label=False, metrics=[], versions={}, data={},
                sha256=hashlib.sha256(data).hexdigest()) | fields


@pytest.fixture(scope='module')
def made():
    "A model with drawn weights, its file and its description"
    torch.manual_seed(0)
    model = image_model('efficientnet_lite0', 3, pretrained=False, hidden=(), dropout=0.1)
    with torch.no_grad(): model[1][-1].weight.mul_(3)
    data = save({k: v.contiguous() for k, v in model.state_dict().items()})
    return model, data, describe(model, data)


@pytest.fixture
def bundle(made, tmp_path):
    folder = tmp_path/'bundle'
    folder.mkdir()
    (folder/'model.safetensors').write_bytes(made[1])
    (folder/'classifier.json').write_text(json.dumps(made[2]))
    return folder


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Twelve drawn images of different sizes and kinds, in two folders"
    folder = tmp_path_factory.mktemp('photos')
    for i in range(12):
        file = folder/('ant' if i % 2 else 'cat')/f'{i:02d}.{("jpg", "png")[i % 3 == 0]}'
        file.parent.mkdir(exist_ok=True)
        small = rng.integers(0, 256, (5 + i, 7, 3), dtype=np.uint8)
        Image.fromarray(small).resize((60 + 11 * i, 90), Image.Resampling.BICUBIC).save(file)
    (folder/'readme.txt').write_text('no image')
    return folder


@pytest.fixture(scope='module')
def classifier(made): return Classifier(*made[::2], compute='fp32')


# --- classifier.json --------------------------------------------------------------------------------------------------
bad_fields = [
    ('schema', None, 'a whole number as `schema`'), ('schema', '1', 'a whole number as `schema`'), ('schema', True, 'a whole number as `schema`'),
    ('schema', 0, 'has schema 0, this version of imgcls reads schemas 1 and 2'), ('schema', 3, 'update imgcls'),
    ('vocab', [], '`vocab` must be a list of different names'), ('vocab', ['a', 'a', 'b'], '`vocab` must be'), ('vocab', ['a', 1, 'b'], '`vocab` must be'),
    ('vocab', 'abc', '`vocab` must be'), ('vocab', ['a', '', 'b'], '`vocab` must be'), ('vocab', ['a', 'b' * 2000, 'c'], '`vocab` must be'), ('vocab', {'a': 1}, '`vocab` must be'),
    ('vocab', ['a', 'b'], '`vocab` has 2 names and `model.n_classes` is 3'),
    ('size', 0, '`size` must be a whole number from 8 to 4,096, got 0'), ('size', 32.5, 'got 32.5'), ('size', 10**9, 'got 1000000000'), ('size', True, 'got True'), ('size', None, 'got None'),
    ('presize', 31, '`presize` must be at least `size`, got 31 and 32'), ('presize', [48], '`presize` must be a whole number'),
    ('method', 'stretch', "`method` must be 'crop' or 'squish', got 'stretch'"), ('method', ['crop'], '`method` must be'), ('multi_label', True, 'multi_label belongs to schema 2'), ('multi_label', 0, '`multi_label` must be true or false'),
    ('metrics', {}, '`metrics` must be a list of objects'), ('metrics', [1], '`metrics` must be a list of objects'), ('versions', [], '`versions` must be an object'), ('data', None, '`data` must be an object'),
    ('sha256', 'abc', '`sha256` must be 64 hexadecimal digits'), ('sha256', 'Z' * 64, '`sha256` must be'), ('sha256', '0' * 64, "isn't the file that classifier.json was written for"),
    ('model', None, '`model` must be an object'), ('model', [], '`model` must be an object')]
bad_model_fields = [
    ('arch', 3, '`model.arch` must be the name of a backbone'), ('arch', '', '`model.arch` must be'), ('arch', 'x' * 300, '`model.arch` must be'),
    ('arch', 'timm/no_such_net', "no backbone 'no_such_net' in timm"), ('arch', 'hf_hub:timm/resnet18', "must begin with 'embedded/', 'timm/' or 'torchvision/'"), ('arch', '../../etc/passwd', 'must begin with'),
    ('arch', 'embedded/../x', 'must begin with'), ('arch', 'torchvision/get_model', "no backbone 'get_model' in torchvision"),
    ('arch', 'timm/resnet18', "doesn't fit the network that classifier.json describes"),
    ('n_classes', 0, '`model.n_classes` must be a whole number'), ('n_classes', 10**7, '`model.n_classes` must be a whole number from 1 to 100,000, got 10000000'), ('n_classes', 4, '`vocab` has 3 names'),
    ('normalize', [], '`model.normalize` must be null, or three means'), ('normalize', [[0, 0, 0], [1, 1, 0]], '`model.normalize` must be'), ('normalize', [[0, 0, 0], [1, 1]], '`model.normalize` must be'),
    ('normalize', [[0, 0, 0], [1, 1, float('nan')]], '`model.normalize` must be'), ('normalize', [['0', 0, 0], [1, 1, 1]], '`model.normalize` must be'),
    ('hidden', [10**9], '`model.hidden` must be a list of at most 8 whole numbers'), ('hidden', [1] * 9, '`model.hidden` must be'), ('hidden', 512, '`model.hidden` must be'), ('hidden', [16], "doesn't fit the network"),
    ('dropout', 1, '`model.dropout` must be a number from 0 to below 1, got 1'), ('dropout', float('inf'), '`model.dropout` must be'), ('dropout', 'x', '`model.dropout` must be'),
    ('pool', 'mean', "`model.pool` must be one of 'avg', 'max', 'concat', 'flatten', got 'mean'"), ('pool', None, '`model.pool` must be'), ('pool', [], '`model.pool` must be'), ('pool', 'avg', "doesn't fit the network")]


@pytest.mark.parametrize('field,value,text', bad_fields, ids=lambda o: repr(o)[:30])
def test_bad_field(made, bundle, field, value, text):
    (bundle/'classifier.json').write_text(json.dumps(made[2] | {field: value}))
    with pytest.raises(BundleError) as e: load_bundle(bundle)
    assert text in str(e.value) and str(bundle) in str(e.value) and len(str(e.value)) < 700


@pytest.mark.parametrize('field,value,text', bad_model_fields, ids=lambda o: repr(o)[:30])
def test_bad_model_field(made, bundle, field, value, text):
    (bundle/'classifier.json').write_text(json.dumps(made[2] | dict(model=made[2]['model'] | {field: value})))
    with pytest.raises(BundleError) as e: load_bundle(bundle)
    assert text in str(e.value)


def test_missing_fields(made, bundle):
    for field in made[2]:
        (bundle/'classifier.json').write_text(json.dumps({k: v for k, v in made[2].items() if k != field}))
        with pytest.raises(BundleError, match=field): load_bundle(bundle)
    for field in made[2]['model']:
        (bundle/'classifier.json').write_text(json.dumps(made[2] | dict(model={k: v for k, v in made[2]['model'].items() if k != field})))
        with pytest.raises(BundleError, match=f'`model.{field}` is missing'): load_bundle(bundle)


@pytest.mark.parametrize('text', ['', '{', '[]', 'null', '7', '"schema"', '{"schema": 1', '[' * 100_000, b'\xff\xfe\x00', '{"schema": 1}'], ids=lambda o: repr(o)[:20])
def test_broken_json(bundle, text):
    (bundle/'classifier.json').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BundleError, match='classifier.json'): load_bundle(bundle)


def test_huge_json(bundle):
    with open(bundle/'classifier.json', 'wb') as f: f.truncate(10**9)
    with pytest.raises(BundleError, match='more than 16 MB'): load_bundle(bundle)


def test_unknown_fields_are_passed_over(made, bundle):
    (bundle/'classifier.json').write_text(json.dumps(made[2] | dict(comment='hello')))
    assert load_bundle(bundle).config['comment'] == 'hello'


# --- decisions: schema 2 ----------------------------------------------------------------------------------------------
refusal, foreign = dict(score='probability', threshold=0.8, accuracy=0.95, level=0.95, n=300, answered=200, right=198), dict(score='energy', threshold=-1.5, keep=0.99, n=300)
bad_decisions = [
    ('temperature', 0, '`temperature` must be a number from 0.001 to 1,000, got 0'), ('temperature', 1e9, '`temperature` must be'), ('temperature', True, '`temperature` must be'), ('temperature', '2', '`temperature` must be'),
    ('temperature', float('nan'), '`temperature` must be'), ('temperature', None, '`temperature` must be'), ('refusal', None, '`refusal` must be an object'), ('refusal', 0.8, '`refusal` must be an object'),
    ('refusal', {}, 'the field `refusal.score` is missing'), ('foreign', {}, 'the field `foreign.score` is missing'), ('foreign', [], '`foreign` must be an object'),
    *((k, v | {field: bad}, f'`{k}.{field}` must be') for k, v in (('refusal', refusal), ('foreign', foreign)) for field, bads in
      dict(score=['margin', None, []], threshold=[None, '0.5', float('inf'), *([-0.1, 1.1] if k == 'refusal' else [])], accuracy=[0, 1, 95], level=[1., 'x'], keep=[0, 1], n=[-1, 2.5, True, 10**13], answered=[-1, None], right=[1.5]).items()
      if field in v for bad in bads),
    ('refusal', refusal | dict(right=201), '`refusal.right` must not be above `refusal.answered`'), ('refusal', refusal | dict(answered=301), 'nor that above `refusal.n`')]


@pytest.mark.parametrize('field,value,text', bad_decisions, ids=[f'{i}-{o[0]}' for i, o in enumerate(bad_decisions)])
def test_bad_decisions(made, bundle, field, value, text):
    (bundle/'classifier.json').write_text(json.dumps(made[2] | dict(schema=2) | {field: value}))
    with pytest.raises(BundleError) as e: load_bundle(bundle)
    assert text in str(e.value) and len(str(e.value)) < 700


def test_decisions_that_do_not_go_together(made, bundle):
    for fields, text in ((dict(schema=1, refusal=refusal), 'refusal belongs to schema 2, and this has schema 1'), (dict(schema=2, refusal=refusal, vocab=['ant', 'unknown', 'cat']), "a class is called 'unknown'"),
                         (dict(schema=2, foreign=foreign, estimator=dict(sha256='0'*64), model=made[2]['model'] | dict(head='vectors')), 'an estimator answers here')):
        (bundle/'classifier.json').write_text(json.dumps(made[2] | fields))
        with pytest.raises(BundleError, match=text): load_bundle(bundle)


def test_each_decision_may_be_missing(made, bundle):
    for fields in ({}, dict(temperature=2), dict(refusal=refusal), dict(foreign=foreign), dict(refusal=refusal, foreign=foreign, temperature=0.5)):
        (bundle/'classifier.json').write_text(json.dumps(made[2] | dict(schema=2) | fields))
        assert ('reason' in load_bundle(bundle).predict([])) == ('refusal' in fields or 'foreign' in fields)


@pytest.mark.parametrize('schema', [1, 2])
def test_bundles_of_old(schema):
    "Bundles that were saved once are read for ever, and answer the same"
    folder = root/'tests/bundles'/f'schema_{schema}'
    want, classifier = json.loads((folder/'answers.json').read_text()), load_bundle(folder, compute='fp32')
    rng = np.random.default_rng(0)
    squares = [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(8)]
    frame, preds = classifier.predict(squares), classifier.predictions(squares)
    np.testing.assert_allclose(preds.probs, want['probs'], atol=1e-5)
    assert frame['label'].tolist() == want['label'] and classifier.config['schema'] == schema
    assert classifier.reasons(preds).tolist() == want['reason'] == (frame['reason'].tolist() if schema == 2 else ['']*8)
    if schema == 2: assert {o.partition(':')[0] for o in want['reason']} == {'', 'unsure', 'foreign'}


def test_refusing(made, photos, tmp_path):
    "Where the probability is below the threshold, the label is unknown; the other columns, bad files and predictions stay as they were"
    (tmp_path/'cut.png').write_bytes(b'x')
    files = [*sorted(photos.rglob('*.*g')), tmp_path/'cut.png']
    plain, middle = Classifier(*made[::2], compute='fp32'), None
    before = plain.predict(files, k=3)
    middle = float(before['probability'].median())
    careful = Classifier(made[0], made[2] | dict(schema=2, refusal=refusal | dict(threshold=middle)), compute='fp32')
    after = careful.predict(files, k=3, bs=5)
    assert list(after) == ['file', 'label', 'probability', 'label_2', 'probability_2', 'label_3', 'probability_3', 'reason', 'error']
    unsure = before['probability'] < middle
    assert 3 <= unsure.sum() <= 9 and (after['label'][unsure] == 'unknown').all() and (after['label'][~unsure].dropna() == before['label'][~unsure].dropna()).all()
    assert (after['reason'][unsure] == [f'unsure: {o} at {p:.3f}, below {middle:.3f}' for o, p in zip(before['label'][unsure], before['probability'][unsure])]).all()
    assert (after['reason'][~unsure] == '').all() and after['label'].isna().tolist() == [False]*12 + [True] and after['error'].iloc[-1]
    np.testing.assert_allclose(after.filter(like='prob'), before.filter(like='prob'), atol=1e-5)
    preds = careful.predictions(photos)
    np.testing.assert_allclose(preds.probs, plain.predictions(photos).probs, atol=1e-5)
    assert ((careful.reasons(preds) != '') == unsure[:12]).all() and (plain.reasons(preds) == '').all()


def test_temperature_and_energy(made, photos):
    plain = Classifier(*made[::2], compute='fp32').predictions(photos)
    energies = -np.log(np.exp(plain.logits.astype(float)/1.7).sum(1))
    limit = float(np.median(energies))
    careful = Classifier(made[0], made[2] | dict(schema=2, temperature=1.7, foreign=foreign | dict(threshold=limit)), compute='fp32')
    preds = careful.predictions(photos)
    np.testing.assert_allclose(preds.logits*1.7, plain.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(preds.probs, np.exp(preds.logits)/np.exp(preds.logits).sum(1, keepdims=True), atol=1e-5)
    told = np.array([o.startswith('foreign') for o in careful.reasons(preds)])
    assert ((energies > limit) == told)[abs(energies - limit) > 1e-4].all() and 3 <= told.sum() <= 9
    with pytest.raises(DataError, match='is told by `logits`'): careful.reasons(type(preds)(preds.probs, preds.vocab))


# --- model.safetensors ------------------------------------------------------------------------------------------------
class Trap:
    def __reduce__(self): return os.mkdir, (os.environ['TRAP'],)


def put(bundle, made, data):
    (bundle/'model.safetensors').write_bytes(data)
    (bundle/'classifier.json').write_text(json.dumps(describe(made[0], data)))


def test_a_pickle_is_not_run(bundle, made, tmp_path, monkeypatch):
    monkeypatch.setenv('TRAP', str(tmp_path/'sprung'))
    torch.save(Trap(), tmp_path/'trap.pth')
    for data in (pickle.dumps(Trap()), (tmp_path/'trap.pth').read_bytes()):
        put(bundle, made, data)
        with pytest.raises(BundleError, match="can't be read as safetensors"): load_bundle(bundle)
    assert not (tmp_path/'sprung').exists()


@pytest.mark.parametrize('cut', [0, 1, 7, 8, 100, 50_000, -1])
def test_cut_weights(bundle, made, cut):
    put(bundle, made, made[1][:cut])
    with pytest.raises(BundleError, match="can't be read as safetensors"): load_bundle(bundle)


@pytest.mark.parametrize('size', [2**63 - 1, 2**40, 0])
def test_lying_header(bundle, made, size):
    put(bundle, made, size.to_bytes(8, 'little') + made[1][8:])
    with pytest.raises(BundleError, match="can't be read as safetensors"): load_bundle(bundle)


def test_one_changed_bit(bundle, made):
    data = bytearray(made[1])
    data[-100] ^= 1
    (bundle/'model.safetensors').write_bytes(data)
    with pytest.raises(BundleError, match='SHA-256 differs'): load_bundle(bundle)


def edits(state):
    first = next(iter(state))
    yield 'missing', {k: v for k, v in state.items() if k != first}, first
    yield 'too many', state | dict(more=torch.zeros(2)), 'more'
    yield 'shape', state | {first: state[first][:-1].contiguous()}, first
    yield 'type', state | {first: state[first].half()}, first
    yield 'nan', state | {first: state[first] * float('nan')}, "aren't finite numbers"
    yield 'none', {}, "doesn't fit the network"


@pytest.mark.parametrize('i', range(6))
def test_wrong_tensors(bundle, made, i):
    name, state, text = list(edits(dict(made[0].state_dict())))[i]
    put(bundle, made, save(state))
    with pytest.raises(BundleError) as e: load_bundle(bundle)
    assert text in str(e.value)


def test_missing_parts(bundle, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no bundle"): load_bundle(tmp_path/'nowhere')
    with pytest.raises(FileNotFoundError, match="a bundle is a folder"): load_bundle(bundle/'classifier.json')
    (bundle/'model.safetensors').unlink()
    with pytest.raises(BundleError, match='it has no file model.safetensors'): load_bundle(bundle)


# --- loading ----------------------------------------------------------------------------------------------------------
def test_loading_moves_no_random_numbers(bundle):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    load_bundle(bundle)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_are_those_of_the_file(bundle, made):
    loaded, stored = load_bundle(bundle, compute='fp32').model.state_dict(), load_file(bundle/'model.safetensors')
    assert loaded.keys() == stored.keys() and all(torch.equal(loaded[k], stored[k]) for k in stored)
    assert not any(p.requires_grad for p in load_bundle(bundle).model.parameters())


def test_light_imports(bundle, photos):
    """A fresh interpreter that loads and predicts has neither fastai nor matplotlib, and pandas only once there is an answer; what takes
    longest to import, timm with torchvision and the compiler of torch, isn't needed for the embedded network"""
    code = f'''
import sys
from imgcls.deploy.ensemble import ClassifierEnsemble
from imgcls.deploy.predictor import load_bundle
classifier = load_bundle({str(bundle)!r})
assert 'pandas' not in sys.modules
frame = classifier.predict({str(photos)!r})
assert len(frame) == 12
classifier.predict({str(photos)!r}, views='flip'), ClassifierEnsemble([classifier]*2).predict({str(photos)!r})
print([o for o in ('fastai', 'fastcore.all', 'matplotlib', 'scipy', 'IPython', 'timm', 'torchvision', 'torch._dynamo', 'sympy') if o in sys.modules])'''
    run = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == '[]', run.stderr


# --- answers ----------------------------------------------------------------------------------------------------------
def test_order_and_batches(classifier, photos):
    files = sorted(photos.rglob('*.*g')) * 3
    frames = [classifier.predict(files, k=3, bs=bs) for bs in (1, 5, 36, 100)]
    for frame in frames:
        assert frame['file'].tolist() == [str(o) for o in files]
        assert list(frame) == ['file', 'label', 'probability', 'label_2', 'probability_2', 'label_3', 'probability_3', 'error']
        np.testing.assert_allclose(frame['probability'], frames[0]['probability'], atol=1e-5)
        np.testing.assert_allclose(frame[['probability', 'probability_2', 'probability_3']].sum(axis=1), 1, atol=1e-5)
    assert frames[0]['probability'].nunique() > 5


def test_folder(classifier, photos):
    frame = classifier.predict(photos)
    assert [Path(o).relative_to(photos).as_posix() for o in frame['file']] == sorted(o.relative_to(photos).as_posix() for o in photos.rglob('*.*g'))
    preds = classifier.predictions(photos)
    assert list(preds.items) == [Path(o).relative_to(photos).as_posix() for o in frame['file']] and preds.targets is None


def test_kinds_of_sources(classifier, photos):
    file = sorted(photos.rglob('*.png'))[0]
    img = Image.open(file)
    sources = [file, str(file), file.read_bytes(), bytearray(file.read_bytes()), open(file, 'rb'), img, np.asarray(img), img.convert('RGBA')]
    frame = classifier.predict(sources)
    assert (frame['error'] == '').all()
    np.testing.assert_allclose(frame['probability'], frame['probability'][0], atol=1e-6)
    for one in sources[:1] + sources[5:]: assert len(classifier.predict(one)) == 1
    for mode in ('1', 'L', 'P', 'CMYK', 'I;16', 'F', 'LA'): assert classifier.predict(img.convert('L').convert(mode))['error'][0] == ''
    assert classifier.predict([])['file'].tolist() == [] and list(classifier.predict([])) == ['file', 'label', 'probability', 'error']
    assert len(classifier.predict(o for o in sources[:2])) == 2


def test_bad_files_are_rows(classifier, photos, tmp_path):
    good = sorted(photos.rglob('*.jpg'))[0]
    (tmp_path/'cut.jpg').write_bytes(good.read_bytes()[:700])
    (tmp_path/'text.jpg').write_text('hello')
    (tmp_path/'empty.png').touch()
    frame = classifier.predict([tmp_path/'cut.jpg', good, tmp_path/'text.jpg', tmp_path/'empty.png', tmp_path/'gone.png', b'', good], bs=2)
    assert frame['error'].str.partition(':')[0].tolist() == ['truncated', '', 'not an image', 'empty', 'missing', 'empty', '']
    assert frame['label'].notna().tolist() == [False, True, False, False, False, False, True] == frame['probability'].notna().tolist()
    assert classifier.predict(tmp_path/'gone.png')['error'].tolist() == ['missing']
    with pytest.raises(DataError, match='none of the 2 images can be used: cut.jpg'):
        classifier.predictions(pd.DataFrame(dict(path=['cut.jpg', 'text.jpg'])).pipe(lambda o: o.set_flags() if o.attrs.update(root=str(tmp_path)) else o))
    (tmp_path/'void').mkdir()
    with pytest.raises(DataError, match="there are no images in"): classifier.predict(tmp_path/'void')


def table(photos):
    files = sorted(o.relative_to(photos).as_posix() for o in photos.rglob('*.*g'))
    res = pd.DataFrame(dict(path=files, label=[o.partition('/')[0] for o in files], split='valid', error=''))
    res.attrs['root'] = str(photos)
    return res


def test_predictions_of_a_table(classifier, photos, caplog):
    rows = table(photos)
    preds = classifier.predictions(rows, bs=5)
    assert list(preds.items) == rows['path'].tolist() and list(preds.actual) == rows['label'].tolist() and preds.split == 'valid' and str(preds.root) == str(photos)
    np.testing.assert_allclose(preds.confidence, classifier.predict(photos)['probability'], atol=1e-5)
    rows.loc[3, 'error'] = 'truncated'
    assert len(classifier.predictions(rows)) == 11
    rows.loc[5, 'path'] = 'ant/gone.jpg'
    assert len(classifier.predictions(rows)) == 10 and "1 of 11 images can't be used and are left out: ant/gone.jpg (missing)" in caplog.text
    rows.loc[6, 'label'] = 'dog'
    assert classifier.predictions(rows).targets is None and 'does not know the labels dog' in caplog.text
    with pytest.raises(DataError, match="the table has no column 'path'; it has 'file'"): classifier.predictions(pd.DataFrame(dict(file=['x'])))


@pytest.mark.parametrize('options,error,text', [(dict(k=0), ValueError, '`k` must be a whole number from 1 to 3'), (dict(k=4), ValueError, 'got 4'), (dict(k=1.5), ValueError, 'got 1.5'),
    (dict(bs=0), ValueError, '`bs` must be a whole number of at least 1, got 0'), (dict(bs=2.), ValueError, '`bs` must be')])
def test_bad_options(classifier, photos, options, error, text):
    with pytest.raises(error, match=text): classifier.predict(photos, **options)


@pytest.mark.parametrize('source,error,text', [(None, TypeError, 'got NoneType'), (3, TypeError, 'got int'), ([3], TypeError, 'got int'), (np.zeros((4, 4, 3)), ValueError, 'must hold uint8'),
    (np.zeros((2, 4, 4, 3), np.uint8), ValueError, 'must have the shape'), (pd.DataFrame(), TypeError, r'predictions\(table\)')])
def test_bad_sources(classifier, source, error, text):
    with pytest.raises(error, match=text): classifier.predict(source)


def test_number_formats(made, photos):
    exact, rounded = (Classifier(*made[::2], compute=o).predictions(photos) for o in ('fp32', 'bf16'))
    assert exact.probs.dtype == rounded.probs.dtype == np.float32
    assert 0 < abs(exact.probs - rounded.probs).max() < 0.1


def test_from_several_threads(made, photos):
    "Answers at the same time are the answers one after the other, in reduced precision too"
    classifier = Classifier(*made[::2], compute='bf16')
    alone = classifier.predictions(photos, bs=4).probs
    with ThreadPoolExecutor(4) as pool: found = list(pool.map(lambda _: classifier.predictions(photos, bs=4).probs, range(8)))
    for probs in found: np.testing.assert_array_equal(probs, alone)
    assert not torch.is_autocast_enabled('cpu') and not classifier.model._forward_hooks


def test_decoding_ahead_is_bounded():
    started, lock = [], threading.Lock()
    def work(i):
        with lock: started.append(i)
        return i
    stream = map_ahead(work, iter(range(1000)), 8)
    assert [next(stream) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert max(started) <= 5 + 8
    stream.close()
    assert max(started) <= 5 + 8
    with pytest.raises(ZeroDivisionError): list(map_ahead(lambda i: 1 // i, [1, 0, 1], 2))


def test_own_module(tmp_path):
    def own(): return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.ReLU())
    model = image_model(own(), 3, hidden=())
    data = save({k: v.contiguous() for k, v in model.state_dict().items()})
    (tmp_path/'model.safetensors').write_bytes(data)
    (tmp_path/'classifier.json').write_text(json.dumps(describe(model, data)))
    with pytest.raises(TypeError, match='pass a fresh one as `module`'): load_bundle(tmp_path)
    with pytest.raises(BundleError, match="doesn't fit the network"): load_bundle(tmp_path, module=torch.nn.Conv2d(3, 5, 3))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad(): assert torch.equal(load_bundle(tmp_path, module=own(), compute='fp32').model(x), model.eval()(x))
    save_file({}, tmp_path/'other')


# --- sources ----------------------------------------------------------------------------------------------------------
def test_patterns(classifier, photos, tmp_path):
    files = sorted(str(o) for o in photos.rglob('*.jpg'))
    for pattern in (f'{photos}/**/*.jpg', photos/'*'/'*.jpg', [f'{photos}/ant/*.jpg', f'{photos}/cat/[01]?.jpg']): assert sorted(classifier.predict(pattern)['file']) == files
    assert classifier.predict(f'{photos}/**')['error'].str.startswith('not an image').sum() == 1, 'all files that match, readme.txt among them; folders are passed over'
    odd = tmp_path/'odd[1].jpg'
    odd.write_bytes(Path(files[0]).read_bytes())
    assert classifier.predict(odd)['error'].tolist() == [''], 'a file of that very name comes first'
    assert classifier.predict([f'{photos}/*.bmp', files[0]])['error'].tolist() == ['missing', '']


def test_tensors(classifier, photos):
    "The same photo as an array and as tensors of every kind"
    pixels = np.asarray(Image.open(sorted(photos.rglob('*.png'))[0]).convert('RGB'))
    x = torch.from_numpy(pixels.copy())
    first, whole = x.permute(2, 0, 1), x.permute(2, 0, 1)/255
    kinds = [pixels, x, first, first.contiguous(), whole, whole.double(), whole.requires_grad_(), whole.detach().half()]
    probs = classifier.predictions(kinds).probs
    np.testing.assert_array_equal(probs[1:7], probs[[0]*6])
    np.testing.assert_allclose(probs[7], probs[0], atol=1e-3)
    grey = x[..., 0]
    probs = classifier.predictions([grey.numpy(), grey, grey[None], grey[..., None], grey[None]/255]).probs
    np.testing.assert_array_equal(probs, probs[[0]*5])
    assert classifier.predict(x)['file'].tolist() == ['<tensor>']


@pytest.mark.parametrize('x,text', [
    (torch.zeros(3, 9, 3, dtype=torch.uint8), r'in a tensor of the shape \(3, 9, 3\) the colours may come first or last'), (torch.zeros(9, 9, 3), r'\(3, height, width\) if it holds floating'),
    (torch.zeros(9, 9), 'if it holds floating'), (torch.zeros(4, 9, 9, dtype=torch.uint8), r'\(3, height, width\) or \(height, width, 3\), got \(4, 9, 9\)$'),
    (torch.zeros(2, 3, 9, 9), r'list\(batch\)'), (torch.zeros(3, 9, 9, dtype=torch.int64), 'must hold uint8 .* got torch.int64'), (torch.full((3, 9, 9), 255.), 'from 0 to 1, got 255 to 255'),
    (torch.full((3, 9, 9), -.1), 'got -0.1 to -0.1'), (torch.full((3, 9, 9), torch.nan), 'got nan to nan')], ids=range(9))
def test_tensors_that_can_be_misread(classifier, x, text):
    with pytest.raises(ValueError, match=text): classifier.predict(x)


# --- answers in pieces ------------------------------------------------------------------------------------------------
def test_batches_are_the_table_in_pieces(classifier, photos, tmp_path):
    (tmp_path/'bad.jpg').write_text('hello')
    files = [tmp_path/'bad.jpg', *sorted(photos.rglob('*.*g'))]
    whole = classifier.predict(files, k=2, bs=5)
    for source in (files, iter(files), (o for o in files), [iter(files[:7]), files[7:]]):
        parts = list(classifier.predict_batches(source, k=2, bs=5))
        assert [len(o) for o in parts] == [5, 5, 3]
        pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole)
        for o in parts: assert (o.dtypes == whole.dtypes).all(), 'also where a column has nothing but gaps'
    assert (classifier.predict(tmp_path/'bad.jpg').dtypes == whole.drop(columns=['label_2', 'probability_2']).dtypes).all()
    assert list(classifier.predict_batches(iter([]))) == [] and list(classifier.predict(iter([]))) == ['file', 'label', 'probability', 'error']
    for views in (None, 'flip', 'ten_crop'): assert [len(o) for o in classifier.predict_batches(iter(files), bs=4, views=views)] == [4, 4, 4, 1]


class Photo(np.ndarray):
    "An array of which one can have a weak reference"


@pytest.mark.parametrize('abreast', [0, 2])
def test_memory_is_bounded(made, abreast):
    "Of 5,000 arrays a few batches are alive at any moment, and photos are decoded while the network works: by other threads, or each thread does both"
    alive, most, third, bs = weakref.WeakValueDictionary(), [0], threading.Event(), 16
    passes, later = [], threading.Event()

    class Tiny(torch.nn.Module):
        def forward(self, x):
            passes.append(len(x))
            if len(passes) == 3 and not abreast:
                third.set()
                assert later.wait(30), 'a photo of a later batch is decoded during the third pass'
            return x.mean((2, 3))

    class Watched(Classifier):
        def _abreast(self, threads): return abreast

        def _decode(self, pair):
            number = int(pair[1][0, 0, 0])*256 + int(pair[1][0, 0, 1])
            if number >= 3*bs and not abreast: assert third.wait(30)
            res = super()._decode(pair)
            if number >= 3*bs: later.set()
            return res

    def stream():
        for i in range(5000):
            photo = np.full((9, 9, 3), i % 256, np.uint8).view(Photo)
            photo[0, 0, :2] = divmod(i, 256)
            alive[i] = photo
            most[0] = max(most[0], len(alive))
            assert i < n + 4*bs, 'it is read no further ahead than it must be'
            yield photo
            del photo

    classifier, n = Watched(Tiny(), made[2] | dict(size=8, presize=8), compute='fp32'), 0
    for frame in classifier.predict_batches(stream(), bs=bs, threads=2): n += len(frame)
    assert n == 5000 == sum(passes) and max(passes) == (8 if abreast else bs) and most[0] <= (8*8 if abreast else 3*bs + 4)


def test_each_table_as_soon_as_it_is_there(classifier, photos):
    "An iterator may wait for the answers to what it gave before"
    file, heard = sorted(photos.rglob('*.png'))[0], threading.Event()
    def patient():
        for _ in range(3):
            heard.clear()
            yield from [file]*4
            assert heard.wait(30), 'the answers to the last four must come before the next is asked for'
    for views in (None, 'flip'):
        n = 0
        for frame in classifier.predict_batches(patient(), bs=4, views=views):
            n += len(frame)
            heard.set()
        assert n == 12


def test_errors_of_an_iterator_come_after_what_came_before(classifier, photos):
    files = sorted(photos.rglob('*.png'))
    def breaks(error):
        yield from files[:3]
        raise error
    for error in (ConnectionError('gone'), ValueError('ours alone'), StopAsyncIteration('odd'), ImportError('x')):
        heard = []
        with pytest.raises(type(error), match=str(error)):
            for o in classifier.predict_batches(breaks(error), bs=2): heard.append(len(o))
        assert heard == [2, 1]
        with pytest.raises(type(error)): classifier.predict(breaks(error))
    for odd, kind in ((3, TypeError), (np.zeros((4, 4, 3)), ValueError)):  # mistakes of the caller
        heard = []
        with pytest.raises(kind):
            for o in classifier.predict_batches(iter([*files[:3], odd, *files]), bs=2): heard.append(len(o))
        assert heard == [2, 1]


def test_given_up_half_way(classifier, photos):
    "Threads end, and the iterator isn't read to its end"
    file, seen = sorted(photos.rglob('*.png'))[0], []
    def endless():
        while True:
            seen.append(1)
            yield file
    stream = classifier.predict_batches(endless(), bs=2, threads=2)
    next(stream)
    stream.close()
    for _ in range(200):
        if not [o for o in threading.enumerate() if o.name.startswith('imgcls')]: break
        time.sleep(0.05)
    else: raise AssertionError('threads are left')
    assert len(seen) < 12


def test_options_are_checked_before_the_first_answer(classifier, photos):
    for options, text in ((dict(k=9), '`k` must be'), (dict(bs=0), '`bs` must be'), (dict(threads=0), '`threads` must be a whole number of at least 1, got 0'),
                          (dict(threads=True), '`threads` must be'), (dict(views='flips'), "Did you mean 'flip'")):
        with pytest.raises(ValueError, match=text): classifier.predict_batches(photos, **options)
    with pytest.raises(TypeError, match='got int'): classifier.predict_batches([3])
    one, two = (classifier.predict(photos, threads=o) for o in (1, 3))
    pd.testing.assert_frame_equal(one, two)


def test_progress_knows_the_total_of_what_is_listed(classifier, photos, monkeypatch):
    totals = []
    monkeypatch.setattr('imgcls.deploy.predictor.progress', lambda items, *, total, label: totals.append(total) or items)
    for source in (photos, f'{photos}/*/*.png', [photos, photos], iter([photos])): classifier.predict(source)
    assert totals == [12, 4, 24, None]


def test_one_photo_needs_no_thread(classifier, photos, monkeypatch):
    monkeypatch.setattr('threading.Thread', None)
    assert len(classifier.predict(sorted(photos.rglob('*.png'))[0])) == 1


# --- several looks, several labels ------------------------------------------------------------------------------------
def test_views(classifier, photos):
    plain = classifier.predictions(photos)
    for views in ('plain', [CropView()]):
        same = classifier.predictions(photos, views=views)
        np.testing.assert_array_equal(same.probs, plain.probs)
        assert same.logits is not None
    for name in ('flip', 'five_crop', 'ten_crop'):
        views = crop_views(name)
        each = [classifier.predictions(photos, views=[o]) for o in views]
        for bs in (1, 5, 32):
            mean = classifier.predictions(photos, views=name, bs=bs)
            np.testing.assert_allclose(mean.probs, average_predictions(each).probs, atol=2e-6)
            assert mean.logits is None and list(mean.items) == list(plain.items)
    np.testing.assert_allclose(classifier.predict(photos, views='ten_crop')['probability'], mean.confidence, atol=2e-6)
    np.testing.assert_array_equal(classifier.predictions(photos, views=[lambda o: o]).probs, plain.probs)
    with pytest.raises(TypeError, match=r'views\[1\] must return a picture, got int'): classifier.predict(photos, views=[CropView(), lambda o: 3])


def test_views_of_an_imagenet_network(photos):
    classifier = imagenet_classifier(compute='fp32')
    file = sorted(photos.rglob('*.jpg'))[0]
    whole, mean = classifier.predictions([file]), classifier.predictions([file], views='flip')
    mirrored = classifier.predictions([open_image(file).transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    np.testing.assert_allclose(mean.probs, (whole.probs + mirrored.probs)/2, atol=0.05)


def test_views_and_refusals(made, photos):
    careful = Classifier(made[0], made[2] | dict(refusal=dict(threshold=0.9), foreign=dict(threshold=-1.)), compute='fp32')
    assert 'reason' in careful.predict(photos) and 'reason' in careful.predict(photos, views='plain') and 'reason' not in careful.predict(photos, refuse=False)
    with pytest.raises(ValueError, match='with refuse=False it always answers'): careful.predict(photos, views='flip')
    free = Classifier(*made[::2], compute='fp32')
    pd.testing.assert_frame_equal(careful.predict(photos, views='flip', refuse=False), free.predict(photos, views='flip'))
    with pytest.raises(DataError, match='these have none'): careful.reasons(careful.predictions(photos, views='flip'))


@pytest.fixture(scope='module')
def several(photos):
    "A learner whose photos have any number of labels, its loaders, and a classifier of the same network"
    rows = table(photos)
    rows['label'] = [tuple(sorted({o.partition('/')[0], 'big' if i > 6 else 'small'})) if i % 5 else () for i, o in enumerate(rows['path'])]
    rows['split'] = ['valid' if i % 2 else 'train' for i in range(len(rows))]
    torch.manual_seed(0)
    learn = image_learner(image_loaders(rows, size=32, presize=48, bs=4, num_workers=0, check=None, augment='none'), 'classic/lenet', compute='fp32')
    last = learn.model[-1][-1]
    with torch.no_grad():  # so that the photos differ in their labels
        last.weight.mul_(40)
        last.bias.sub_(torch.from_numpy(predict(learn, 'valid').logits).mean(0))
    config = dict(model=learn.model.config, vocab=list(learn.dls.vocab), size=32, presize=48, method='crop', multi_label=True)
    return learn, rows, Classifier(copy.deepcopy(learn.model), config, compute='fp32')


def test_several_labels(several):
    learn, rows, classifier = several
    asked = rows[rows['split'] == 'valid']
    theirs, ours = predict(learn, 'valid'), classifier.predictions(asked)
    assert ours.multi_label and list(ours.items) == list(theirs.items) and ours.vocab == theirs.vocab
    np.testing.assert_array_equal(ours.targets, theirs.targets)
    for o in ('probs', 'losses'): np.testing.assert_allclose(getattr(ours, o), getattr(theirs, o), atol=1e-5)
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    frame = classifier.predict([photos_of(rows, o) for o in asked['path']])
    assert frame['label'].tolist() == theirs.labels.tolist() and len(set(theirs.labels)) > 2
    np.testing.assert_allclose(frame['probability'], theirs.confidence, atol=1e-5)
    looks = average_predictions(predict_views(learn, 'valid', views='flip'))
    np.testing.assert_allclose(classifier.predictions(asked, views='flip').probs, looks.probs, atol=1e-5)


def photos_of(rows, path): return Path(rows.attrs['root'])/path


def test_table_of_several_labels(several, photos, tmp_path):
    learn, rows, classifier = several
    (tmp_path/'bad.jpg').touch()
    frame = classifier.predict([photos, tmp_path/'bad.jpg'], k=2)
    assert list(frame) == ['file', 'label', 'probability', 'label_1', 'probability_1', 'label_2', 'probability_2', 'error'] and frame['error'].tolist()[-1] == 'empty'
    np.testing.assert_array_equal(frame['probability'], frame['probability_1'])
    probs = classifier.predictions(photos).probs
    for threshold in (0.01, 0.3, 0.99):
        other = Classifier(classifier.model, classifier.config | dict(threshold=threshold), compute='fp32')
        assert other.predict(photos)['label'].tolist() == ['|'.join(sorted(np.array(other.vocab)[o >= np.float32(threshold)])) for o in probs]
    edge = float(probs[0].max())
    assert Classifier(classifier.model, classifier.config | dict(threshold=edge), compute='fp32').predict(photos)['label'][0] != '', 'at the threshold is enough'
    assert 'any number of them' in repr(classifier)


def test_labels_that_are_not_known(several, caplog):
    learn, rows, classifier = several
    assert classifier.predictions(rows.assign(label='ant')).targets.sum() == len(rows), 'one label is a list of one'
    assert classifier.predictions(rows.assign(label=[('ant', 'dog')]*len(rows))).targets is None and 'does not know the labels dog' in caplog.text
    assert classifier.predictions(rows.drop(columns='label')).targets is None


# --- the same answers everywhere --------------------------------------------------------------------------------------
@pytest.mark.skipif(not os.environ.get('IMGCLS_DATA'), reason='IMGCLS_DATA is not set')
def test_parity_on_photos(tmp_path):
    "The 372 test photos of `clothing`: learner, loaded bundle and a view agree; so do ONNX, and the default policy in the first class"
    from imgcls.data.samples import sample
    from imgcls.data.tables import image_table
    rows = image_table(sample('clothing', download=False), verify=None)
    test, size = rows[rows['split'] == 'test'], 224 if os.environ.get('IMGCLS_FULL') else 96
    learn = image_learner(image_loaders(rows, size=size, num_workers=0, check=None, augment='none'), hidden=(), dropout=0., pool='avg', compute='fp32')
    few = rows[rows['split'] == 'train'].groupby('label').head(8)
    fit_head(learn, few)
    assert len(test) == 372
    theirs = predict(learn, test)
    bundle = save_bundle(learn, tmp_path/'bundle')
    exact, usual = load_bundle(bundle, compute='fp32'), load_bundle(bundle)
    ours = exact.predictions(test)
    assert list(ours.items) == list(theirs.items) and theirs.correct.mean() > 0.5
    np.testing.assert_allclose(ours.probs, theirs.probs, atol=1e-5)
    full = bool(os.environ.get('IMGCLS_FULL'))
    some, rest = (test, ours) if full else (test[::6], ours[::6])
    view = exact.predictions(some, views=[lambda o: o])
    np.testing.assert_allclose(view.probs, rest.probs, atol=1e-5)
    for o, to in ((ours, theirs), (view, rest)): assert (o.labels == to.labels).all()
    assert (usual.predictions(test).labels == ours.labels).mean() >= 0.995
    if not full or find_spec('onnxruntime') is None or find_spec('onnxscript') is None: return  # tests/test_export.py has other photos
    report = export_bundle(exact, tmp_path/'a.onnx', check=[Path(rows.attrs['root'])/o for o in some['path']])
    assert report.photos == report.same == len(some) and report.difference < 1e-4


def fit_head(learn, rows):
    "Weights of the last layer by least squares, which tell photos apart"
    features = predict(learn, rows, features=True)
    x, y = torch.from_numpy(features.features).double(), torch.eye(len(learn.dls.vocab)).double()[features.targets]
    with torch.no_grad(): learn.model[1][-1].weight.copy_(10 * (x.T @ torch.linalg.solve(x @ x.T + 10*torch.eye(len(x)), y)).T)


# --- what an iterator or a list holds -------------------------------------------------------------------------------------
def test_an_iterator_may_use_its_buffer_again(classifier):
    "A camera writes each picture over the one before; a reader of videos moves on in one object; a file is closed after its turn"
    arrays = [rng.integers(0, 256, (60, 70, 3), dtype=np.uint8) for _ in range(12)]
    want = classifier.predictions(arrays, bs=3).probs
    def camera(make):
        buffer = arrays[0].copy()
        image = make(buffer)
        for o in arrays:
            buffer[:] = o
            yield image
    for make in (lambda o: o, torch.from_numpy):
        np.testing.assert_array_equal(classifier.predictions(camera(make), bs=3).probs, want)


def test_an_iterator_may_close_what_it_gave(classifier, photos):
    files = sorted(photos.rglob('*.png'))*2
    want = classifier.predict(files)['label'].tolist()
    def opened(how):
        for o in files:
            with how(o) as f: yield f
    assert classifier.predict(opened(lambda o: open(o, 'rb')))['label'].tolist() == want
    assert classifier.predict(opened(Image.open))['label'].tolist() == want


def test_moving_pictures(classifier, tmp_path):
    from PIL import ImageSequence
    frames = [Image.fromarray(rng.integers(0, 256, (50, 50, 3), dtype=np.uint8)) for _ in range(9)]
    frames[0].save(tmp_path/'a.gif', save_all=True, append_images=frames[1:])
    with Image.open(tmp_path/'a.gif') as gif: found = classifier.predict(ImageSequence.Iterator(gif), threads=4)
    assert len(found) == 9 and (found['error'] == '').all()


def test_the_same_open_picture_many_times(classifier, photos):
    file = max(photos.rglob('*.jpg'), key=lambda o: o.stat().st_size)
    once = classifier.predict(file.read_bytes())['probability'][0]
    with open(file, 'rb') as opened:
        for source in (Image.open(file), opened):
            found = classifier.predict([source]*16, threads=4)
            assert (found['error'] == '').all() and found['probability'].nunique() == 1 and found['probability'][0] == pytest.approx(once, abs=0.02)


def test_a_view_that_fails_is_a_row(classifier, photos):
    def broken(image): raise ImageError('a view', 'damaged', 'it cannot be seen')
    found = classifier.predict(photos, views=[CropView(), broken])
    assert found['label'].isna().all() and (found['error'] != '').all()


def test_a_network_that_runs_in_two_threads_keeps_its_numbers(made):
    "What another thread asks the network meanwhile is calculated as it always is, and nothing is left behind there"
    net, x = made[0].eval(), torch.rand(1, 3, 32, 32)
    seen, inside, go_on = [], threading.Event(), threading.Event()
    def other():
        inside.wait(10)
        with torch.no_grad(): seen.append(net[0](x).dtype)
        seen.append(torch.is_autocast_enabled('cpu'))
        go_on.set()
    thread = threading.Thread(target=other)
    thread.start()
    with run_as(net[0], choose_compute('bf16', device='cpu')):
        inside.set()
        assert go_on.wait(10)
    thread.join()
    assert seen == [torch.float32, False]


@pytest.mark.parametrize('views', [None, 'flip'])
def test_side_by_side_says_the_same(bundle, photos, monkeypatch, two_threads, views):
    "Each thread with a few photos of its own, or all on one batch; with files that can't be read in between, from a list or an iterator"
    files = [str(o) for o in sorted(photos.rglob('*.*'))]*3
    files[5:5], files[20:20] = ['nowhere.jpg'], [str(bundle/'classifier.json')]
    classifier, seen = load_bundle(bundle, device='cpu'), []
    classifier.model.register_forward_pre_hook(lambda module, args: seen.append((threading.get_ident(), torch.get_num_threads())))
    got = [classifier.predict(files, k=2, views=views, bs=10), classifier.predict(iter(files), k=2, views=views)]
    assert {n for _, n in seen} == {1} and threading.get_ident() not in dict(seen) and torch.get_num_threads() == 2
    monkeypatch.setattr(Classifier, '_abreast', lambda self, threads: 0)
    want = classifier.predict(files, k=2, views=views)
    for o in got:
        pd.testing.assert_frame_equal(o, want, rtol=1e-4, atol=1e-5)
        assert list(o['error']) == list(want['error']) and sum(o['error'] != '') == 5  # one of the photos is damaged
    seen.clear()
    assert classifier.predict(files[0])['label'][0] == want['label'][0] and set(seen) == {(threading.get_ident(), 2)}


def test_no_digit_depends_on_the_threads(bundle, photos, two_threads):
    files, classifier = [str(o) for o in sorted(photos.rglob('*.*'))]*2, load_bundle(bundle, device='cpu')
    torch.set_num_threads(4)
    found = [classifier.predict(files, threads=n)['probability'].fillna(-1).tolist() for n in (2, 3, 4)]
    assert found[0] == found[1] == found[2]
    again = pd.concat([classifier.predict(iter(files[:16])), classifier.predict(iter(files[16:]))])  # a job that was cut at the edge of a batch
    assert again['probability'].fillna(-1).tolist() == classifier.predict(iter(files), bs=16)['probability'].fillna(-1).tolist()
