"""A loaded bundle: every field checked, nothing run, the same answers in any order and from any thread."""
import hashlib, json, os, pickle, subprocess, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file

from imgcls.core import DataError
from imgcls.deploy.predictor import Classifier, _map_ahead, load_bundle
from imgcls.deploy.schema import BundleError
from imgcls.models.pretrained import image_model

root = Path(__file__).resolve().parent.parent
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
    ('method', 'stretch', "`method` must be 'crop' or 'squish', got 'stretch'"), ('method', ['crop'], '`method` must be'), ('multi_label', True, '`multi_label` must be false'), ('multi_label', 0, '`multi_label` must be false'),
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
    with pytest.raises(BundleError, match='more than 32 MB'): load_bundle(bundle)


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
    yield 'none', {}, 'tensors are missing'


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
    "A fresh interpreter that loads and predicts has neither fastai nor matplotlib, and pandas only once there is an answer"
    code = f'''
import sys
from imgcls.deploy.predictor import load_bundle
classifier = load_bundle({str(bundle)!r})
assert 'pandas' not in sys.modules
frame = classifier.predict({str(photos)!r})
assert len(frame) == 12
print([o for o in ('fastai', 'fastcore.all', 'matplotlib', 'IPython') if o in sys.modules])'''
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
    stream = _map_ahead(work, iter(range(1000)), 8)
    assert [next(stream) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert max(started) <= 5 + 8
    stream.close()
    assert max(started) <= 5 + 8
    with pytest.raises(ZeroDivisionError): list(_map_ahead(lambda i: 1 // i, [1, 0, 1], 2))


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
