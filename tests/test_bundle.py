"""A learner, saved and loaded again: the same answers, whole or not at all, and a card that says what is known."""
import hashlib, json, os, pickle, re, shutil, subprocess, sys, zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.torch_core import set_seed
from PIL import Image
from sklearn.datasets import load_sample_images

from imgcls.core import DataError
from imgcls.data.loaders import image_loaders
from imgcls.data.samples import sample
from imgcls.data.tables import image_table
from imgcls.deploy import bundle as module
from imgcls.deploy.bundle import save_bundle
from imgcls.deploy.predictor import load_bundle
from imgcls.deploy.schema import BundleError, read_bundle, read_config
from imgcls.evaluate.calibration import apply_temperature
from imgcls.evaluate.metrics import Estimate, accuracy_estimate
from imgcls.evaluate.refusal import Foreign, Refusal, foreign_threshold
from imgcls.models.pretrained import image_model
from imgcls.train.learner import fine_tune, image_learner, predict
from imgcls.train.vectors import ClassDistance


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Crops of two real photos: of different sizes, some on their side with an EXIF tag, some PNG, grey or with an alpha channel"
    folder, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for name, pixels in zip(('china', 'flower'), load_sample_images().images):
        (folder/name).mkdir()
        for i in range(24):
            w, h = rng.integers(90, 400, 2)
            x, y = rng.integers(0, 640 - w), rng.integers(0, 427 - h)
            img, exif = Image.fromarray(pixels).crop((x, y, x + w, y + h)), Image.Exif()
            if i % 4 == 1: exif[0x0112] = 1 + i % 8
            if i % 6 == 2: img = img.convert('L')
            if i % 6 == 3: img.putalpha(200)
            img.save(folder/name/f'{i:02d}.{"png" if i % 6 == 3 else "jpg"}', exif=exif)
    (folder/'china/cut.jpg').write_bytes((folder/'china/00.jpg').read_bytes()[:900])
    return folder


def train(photos, **kwargs):
    set_seed(1, reproducible=True)
    dls = image_loaders(image_table(photos, valid=0.4), size=64, bs=8, num_workers=0, **kwargs)
    learn = image_learner(dls, compute='fp32')
    with learn.no_bar(), learn.no_logging(): return fine_tune(learn, 1, freeze_epochs=0)


@pytest.fixture(scope='module')
def learn(photos): return train(photos)


@pytest.fixture(scope='module')
def saved(learn, tmp_path_factory): return save_bundle(learn, tmp_path_factory.mktemp('saved')/'bundle', metrics={'valid': accuracy_estimate(predict(learn))})


def names(folder): return sorted(o.relative_to(folder).as_posix() for o in folder.rglob('*'))


@pytest.mark.parametrize('method', ['crop', 'squish'])
def test_parity(photos, learn, tmp_path, method):
    "The learner and the saved classifier give the same probabilities for every kind of file"
    if method == 'squish': learn = train(photos, method='squish')
    ours = predict(learn, learn.dls.table)
    classifier = load_bundle(save_bundle(learn, tmp_path/'bundle'), compute='fp32')
    theirs = classifier.predictions(learn.dls.table, bs=7)
    assert list(ours.items) == list(theirs.items) and len(ours) == 48 and (ours.targets == theirs.targets).all()
    np.testing.assert_allclose(theirs.probs, ours.probs, atol=1e-5)
    np.testing.assert_allclose(theirs.losses, ours.losses, atol=1e-4)
    answers = classifier.predict([photos/o for o in ours.items])
    assert (answers['label'] == ours.labels).all()
    assert ours.probs[:, 0].std() > 0.1  # not one answer for all


def test_default_policy(learn, saved):
    "In the machine's own number format the first class stays and the probabilities move little"
    exact, fast = (load_bundle(saved, compute=o).predictions(learn.dls.table) for o in ('fp32', 'auto'))
    unsure = exact.confidence < 0.6
    assert (exact.labels == fast.labels)[~unsure].all() and abs(exact.probs - fast.probs).max() < 0.1


def test_what_is_written(learn, saved):
    assert names(saved) == ['classifier.json', 'model.safetensors', 'model_card.md']
    about = json.loads((saved/'classifier.json').read_text('utf-8'))
    assert (about['schema'], about['vocab'], about['size'], about['presize'], about['method'], about['multi_label']) == (1, ['china', 'flower'], 64, learn.dls.presize, 'crop', False)
    assert about['model'] == learn.model.config and about['model']['arch'] == 'embedded/efficientnet_lite0'
    assert about['sha256'] == hashlib.sha256((saved/'model.safetensors').read_bytes()).hexdigest()
    counts = learn.dls.table.query("error == ''").groupby(['split', 'label']).size()
    assert {(s, k): n for s, o in about['data']['images'].items() for k, n in o.items()} == counts.to_dict()
    (metric,) = about['metrics']
    assert (metric['split'], metric['name'], metric['level'], metric['n']) == ('valid', 'accuracy', 0.95, counts['valid'].sum()) and metric['low'] <= metric['value'] <= metric['high']
    assert {'fastai', 'torch', 'timm'} <= about['versions'].keys()


def test_card(saved):
    card = (saved/'model_card.md').read_text('utf-8')
    for text in ('# An image classifier with 2 classes', 'For a photo it gives one of: china, flower.', 'embedded/efficientnet_lite0', '64 × 64 pixels', '| class | train | valid |',
                 '- accuracy on valid: ', '95 % interval', 'n = 20', 'load_bundle(', '## Limits'): assert text in card
    assert len(card) < 3000 and not re.search(r'\bNone\b|nan', card)


def test_card_without_metrics(learn, tmp_path):
    card = (save_bundle(learn, tmp_path/'bundle')/'model_card.md').read_text('utf-8')
    assert 'Nothing was measured when it was saved.' in card


def test_same_learner_same_bytes(learn, saved, tmp_path):
    again = save_bundle(learn, tmp_path/'bundle')
    assert (again/'model.safetensors').read_bytes() == (saved/'model.safetensors').read_bytes()


def test_saving_changes_nothing(learn, tmp_path):
    before, rng = {k: v.clone() for k, v in learn.model.state_dict().items()}, torch.get_rng_state()
    modes = [m.training for m in learn.model.modules()]
    save_bundle(learn, tmp_path/'bundle')
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items()) and torch.equal(rng, torch.get_rng_state())
    assert modes == [m.training for m in learn.model.modules()]


def test_fingerprint(learn, saved):
    "It depends on what was used, and on neither the order of the rows nor on files that were set aside"
    def mark(table): return module._describe_data(table)['fingerprint']
    table = learn.dls.table
    first = mark(table)
    assert first == json.loads((saved/'classifier.json').read_text())['data']['fingerprint'] == mark(table.sample(frac=1, random_state=0)) == mark(table[table['error'] == ''])
    for column, value in (('label', 'x'), ('split', 'train'), ('path', 'x'), ('width', 1)):
        changed = table.copy()
        changed.loc[changed.query("error == '' and split == 'valid'").index[0], column] = value
        assert mark(changed) != first


def test_existing_folders(learn, saved, tmp_path):
    (tmp_path/'other').mkdir()
    (tmp_path/'other/mine.txt').write_text('keep')
    for folder in (saved, tmp_path/'other'):
        before = names(folder)
        with pytest.raises(FileExistsError, match='exists already'): save_bundle(learn, folder)
        assert names(folder) == before
    with pytest.raises(FileExistsError, match="exists and is no bundle, so it isn't replaced"): save_bundle(learn, tmp_path/'other', overwrite=True)
    bundle = save_bundle(learn, tmp_path/'bundle', overwrite=True)
    (bundle/'extra').write_text('of the old one')
    assert save_bundle(learn, bundle, overwrite=True) == bundle
    assert names(tmp_path) == ['bundle', 'bundle/classifier.json', 'bundle/model.safetensors', 'bundle/model_card.md', 'other', 'other/mine.txt']


@pytest.mark.parametrize('step', ['save', 'model_card', 'atomic_folder'])
@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()], ids=['full', 'ctrl-c'])
def test_broken_off(learn, tmp_path, monkeypatch, step, error):
    "A save that breaks off leaves nothing, and an old bundle as it was"
    old = save_bundle(learn, tmp_path/'old')
    before = {o: (old/o).read_bytes() for o in names(old)}
    def fail(*args): raise error
    monkeypatch.setattr(module, step, fail)
    with pytest.raises(type(error)): save_bundle(learn, tmp_path/'a/new')
    with pytest.raises(type(error)): save_bundle(learn, old, overwrite=True)
    assert names(tmp_path) == ['old', *(f'old/{o}' for o in before)] and {o: (old/o).read_bytes() for o in names(old)} == before


def test_diverged_weights_are_refused(learn, tmp_path):
    weight = learn.model[1][-1].weight
    was = weight.data.clone()
    weight.data[0, 0] = float('nan')
    try:
        with pytest.raises(ValueError, match=r'not finite numbers \(1\.\d+\.weight\).*Use a lower `lr`'): save_bundle(learn, tmp_path/'bundle')
    finally: weight.data = was
    assert not names(tmp_path)


def test_refusals(learn, tmp_path):
    for metrics in ({'valid': 0.9}, {'valid': [0.9]}, {'valid': None}):
        with pytest.raises(TypeError, match='`metrics` must map a split to estimates'): save_bundle(learn, tmp_path/'bundle', metrics=metrics)
    bare = SimpleNamespace(dls=learn.dls, model=torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match='the model has no `config`: make the learner with `image_learner`'): save_bundle(bare, tmp_path/'bundle')
    foreign = SimpleNamespace(dls=SimpleNamespace(vocab=['a', 'b']), model=learn.model)
    with pytest.raises(TypeError, match='the loaders have no `size`, `presize` and `method`'): save_bundle(foreign, tmp_path/'bundle')
    (tmp_path/'file').write_text('x')
    with pytest.raises(OSError, match="Can't write"): save_bundle(learn, tmp_path/'file/bundle')
    assert names(tmp_path) == ['file']


def test_loaders_without_a_table(learn, tmp_path):
    "Loaders of one's own that say how photos are cut are enough"
    dls = SimpleNamespace(vocab=['china', 'flower'], size=64, presize=96, method='crop')
    bundle = save_bundle(SimpleNamespace(dls=dls, model=learn.model), tmp_path/'bundle')
    assert load_bundle(bundle).config['data'] == {} and 'Not recorded.' in (bundle/'model_card.md').read_text()


def test_own_module(photos, tmp_path):
    def own(): return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    dls = image_loaders(image_table(photos, valid=0.4), size=32, bs=8, num_workers=0)
    learn = image_learner(dls, own(), compute='fp32', hidden=(), normalize=((0.5,) * 3, (0.25,) * 3))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    bundle = save_bundle(learn, tmp_path/'bundle')
    assert json.loads((bundle/'classifier.json').read_text())['model']['arch'] is None and "the maker's own module" in (bundle/'model_card.md').read_text()
    with pytest.raises(TypeError, match='pass a fresh one as `module`'): load_bundle(bundle)
    table = dls.table[dls.table['split'] == 'valid']
    np.testing.assert_allclose(load_bundle(bundle, module=own(), compute='fp32').predictions(table).probs, predict(learn).probs, atol=1e-5)


def test_names_of_all_kinds(learn, tmp_path):
    "Names of classes survive as they are, whatever alphabet they are in"
    dls = SimpleNamespace(vocab=['naïve | "x"', '猫\n2'], size=64, presize=96, method='crop')
    assert load_bundle(save_bundle(SimpleNamespace(dls=dls, model=learn.model), tmp_path/'bundle')).vocab == dls.vocab


def test_loaded_elsewhere(saved, photos, tmp_path):
    "In another process, without fastai, from another folder"
    code = f'''
import sys
from imgcls.deploy.predictor import load_bundle
frame = load_bundle({str(saved)!r}, compute='fp32').predict({str(photos)!r})
frame.to_csv('answers.csv', index=False)
assert 'fastai' not in sys.modules'''
    root = Path(module.__file__).parents[2]
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True, env={**os.environ, 'PYTHONPATH': str(root)})
    here, there = load_bundle(saved, compute='fp32').predict(photos), pd.read_csv(tmp_path/'answers.csv')
    assert (here['label'].fillna('') == there['label'].fillna('')).all() and np.allclose(here['probability'], there['probability'], atol=1e-6, equal_nan=True)
    assert there['error'].str.startswith('truncated').sum() == 1


# --- One file ------------------------------------------------------------------------------------------------------
def test_zip(learn, saved, photos, tmp_path):
    "The same files in one, stored, which answer the same; the same learner gives the same bytes"
    metrics = {'valid': accuracy_estimate(predict(learn))}
    file = save_bundle(learn, tmp_path/'model.zip', metrics=metrics)
    with zipfile.ZipFile(file) as z:
        assert z.namelist() == names(saved) and {o.compress_type for o in z.infolist()} == {zipfile.ZIP_STORED} and z.testzip() is None
        assert all(z.read(o) == (saved/o).read_bytes() for o in ('classifier.json', 'model.safetensors'))
    assert names(tmp_path) == ['model.zip'] and file.read_bytes() == save_bundle(learn, tmp_path/'again.zip', metrics=metrics).read_bytes()
    one, folder = (load_bundle(o, compute='fp32') for o in (file, saved))
    pd.testing.assert_frame_equal(one.predict(photos), folder.predict(photos))
    assert one.config == folder.config == read_config(file) == read_config(saved) == read_config(saved/'classifier.json')
    (tmp_path/'without_ending').write_bytes(file.read_bytes())
    assert load_bundle(tmp_path/'without_ending').vocab == one.vocab
    unpacked = tmp_path/'unpacked'
    shutil.unpack_archive(file, unpacked)
    assert load_bundle(unpacked).config == one.config


def test_zips_of_other_programs(saved, tmp_path):
    "Packed, and with other files beside; but not with a folder around them"
    with zipfile.ZipFile(tmp_path/'packed.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        for o in saved.iterdir(): z.write(o, o.name)
        z.writestr('__MACOSX/._classifier.json', b'x')
    assert load_bundle(tmp_path/'packed.zip').vocab == ['china', 'flower']
    shutil.make_archive(tmp_path/'around', 'zip', saved.parent, saved.name)
    with pytest.raises(BundleError, match="it has 'bundle/classifier.json': zip the files of the folder, not the folder"): load_bundle(tmp_path/'around.zip')


def test_existing_zips(learn, saved, tmp_path):
    file = save_bundle(learn, tmp_path/'model.zip')
    before = file.read_bytes()
    with pytest.raises(FileExistsError, match='exists already'): save_bundle(learn, file)
    (tmp_path/'other.zip').write_bytes(b'PK\3\4')
    (tmp_path/'folder.zip').mkdir()
    shutil.copytree(saved, tmp_path/'bundle.zip')
    for o in ('other.zip', 'folder.zip', 'bundle.zip'):
        with pytest.raises(FileExistsError, match="exists and is no bundle, so it isn't replaced"): save_bundle(learn, tmp_path/o, overwrite=True)
    assert file.read_bytes() == before
    save_bundle(learn, file, overwrite=True, temperature=2)
    assert read_config(file)['temperature'] == 2 and names(tmp_path)[0] == 'bundle.zip' and not any('tmp' in o for o in names(tmp_path))


@pytest.mark.parametrize('step', ['save', 'model_card', 'atomic_file'])
def test_a_zip_that_is_broken_off(learn, tmp_path, monkeypatch, step):
    file = save_bundle(learn, tmp_path/'model.zip')
    before = file.read_bytes()
    def fail(*args): raise KeyboardInterrupt
    monkeypatch.setattr(module, step, fail)
    for path in (file, tmp_path/'a/new.zip'):
        with pytest.raises(KeyboardInterrupt): save_bundle(learn, path, overwrite=True)
    assert names(tmp_path) == ['model.zip'] and file.read_bytes() == before


def test_an_estimator_in_a_zip(fitted, tmp_path):
    file = save_bundle(fitted.learn, tmp_path/'b.zip', estimator=fitted.machine)
    table = fitted.table[fitted.table['split'] == 'valid']
    np.testing.assert_array_equal(load_bundle(file, compute='fp32').predictions(table).probs, load_bundle(fitted.bundle, compute='fp32').predictions(table).probs)


def test_the_command_reads_a_zip(learn, photos, tmp_path):
    file = save_bundle(learn, tmp_path/'model.zip')
    photo = photos/'flower/00.jpg'
    run = subprocess.run([sys.executable, '-c', 'import sys; from imgcls.cli import main; sys.exit(main())', 'predict', str(file), str(photo)], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(Path(module.__file__).parents[2])}, cwd=tmp_path)
    assert run.returncode == 0 and run.stdout.startswith(f'{photo}\t'), run.stderr
    assert names(tmp_path) == ['model.zip']


# --- Several labels to an image ------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def several(photos):
    table = image_table(photos, valid=0.4)
    table['label'] = [('green',)*(i % 2) + ('red',)*(i % 3 == 0) for i in range(len(table))]
    return image_learner(image_loaders(table, size=64, bs=8, num_workers=0), compute='fp32')


def test_several_labels(several, tmp_path):
    bundle = save_bundle(several, tmp_path/'b', threshold=0.3, temperature=2)
    about, card = read_config(bundle), (bundle/'model_card.md').read_text()
    assert (about['schema'], about['multi_label'], about['one_vs_all'], about['threshold'], about['temperature']) == (2, True, False, 0.3, 2)
    assert 'For a photo it gives any number of: green, red.' in card and 'whose probability is at least 0.3' in card and 'It always answers' not in card
    network, x = read_bundle(bundle)[0].eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad(): torch.testing.assert_close(network(x), several.model.eval()(x))
    assert 'threshold' not in read_config(save_bundle(several, tmp_path/'plain'))


@pytest.mark.parametrize('options,text', [(dict(threshold=0), '`threshold` must be a number between 0 and 1, got 0'), (dict(threshold='x'), '`threshold` must be'), (dict(refusal=0), '`refusal` is for'), (dict(foreign=0), '`foreign` is for'),
    (dict(estimator=0), '`estimator` is for a classifier that gives one label')], ids=str)
def test_several_labels_refuse(several, tmp_path, options, text):
    with pytest.raises(ValueError, match=text): save_bundle(several, tmp_path/'b', **options)
    assert not names(tmp_path)


def test_a_threshold_is_for_several_labels(learn, tmp_path):
    with pytest.raises(ValueError, match='`threshold` is for a classifier that gives several labels'): save_bundle(learn, tmp_path/'b', threshold=0.5)


@pytest.mark.parametrize('name', ['a|b', ' a', 'a '])
def test_names_that_cannot_be_joined(several, tmp_path, name):
    bundle = save_bundle(several, tmp_path/'b')
    about = json.loads((bundle/'classifier.json').read_text())
    about['vocab'][0] = name
    (bundle/'classifier.json').write_text(json.dumps(about))
    with pytest.raises(BundleError, match='that an image may have several of'): read_bundle(bundle)


def test_what_is_no_learner(tmp_path):
    with pytest.raises(TypeError, match='`learn` must be a learner, as from `image_learner`, got .*Path'): save_bundle(tmp_path, tmp_path/'b')


def test_a_link_to_a_bundle_stays_a_link(several, tmp_path):
    save_bundle(several, tmp_path/'v1')
    (tmp_path/'now').symlink_to('v1')
    before = (tmp_path/'v1/classifier.json').read_bytes()
    save_bundle(several, tmp_path/'now', threshold=0.25, overwrite=True)
    assert (tmp_path/'now').is_symlink() and (tmp_path/'v1/classifier.json').read_bytes() != before
    assert sorted(o.name for o in tmp_path.iterdir()) == ['now', 'v1']


def test_a_bundle_of_several_labels_of_old():
    "A bundle of schema 2 with several labels, as it was saved once"
    folder = Path(__file__).parent/'bundles/schema_2_several'
    want, (network, config, *_) = json.loads((folder/'answers.json').read_text()), read_bundle(folder)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(np.stack([rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(8)])).permute(0, 3, 1, 2)/255
    with torch.no_grad(): probs = (network.eval()(x)/config['temperature']).sigmoid().numpy()
    np.testing.assert_allclose(probs, want['probs'], atol=1e-5)
    assert (config['multi_label'], config['threshold']) == (True, 0.4)
    assert [[k for k, p in zip(config['vocab'], o) if p >= 0.4] for o in probs] == want['labels']


# --- What was not measured, and what would not be read -------------------------------------------------------------
def test_metrics_that_are_unknown(learn, tmp_path):
    "NaN has no place in JSON: null in the description, a sentence in the card"
    nan = float('nan')
    bundle = save_bundle(learn, tmp_path/'b', metrics={'test': [Estimate('recall of flower', nan, nan, nan, n=0), Estimate('accuracy', 0.5, 0.4, 0.6, n=90)]})
    text = (bundle/'classifier.json').read_text()
    assert 'NaN' not in text and [o['value'] for o in load_bundle(bundle).config['metrics']] == [None, 0.5]
    card = (bundle/'model_card.md').read_text()
    assert '- recall of flower on test: could not be measured' in card and '- accuracy on test: 0.500' in card


@pytest.mark.parametrize('fields,text', [(dict(vocab=['a', 'a\x1b[2J']), 'without control characters'), (dict(vocab=['a', 'a']), 'a list of different names'), (dict(size=4), '`size` must be a whole number from 8'), (dict(presize=32), '`presize` must be at least `size`')], ids=str)
def test_what_could_not_be_read_is_not_written(learn, tmp_path, fields, text):
    dls = SimpleNamespace(**dict(vocab=['china', 'flower'], size=64, presize=96, method='crop') | fields)
    for name in ('b', 'b.zip'):
        with pytest.raises(BundleError, match=text): save_bundle(SimpleNamespace(dls=dls, model=learn.model), tmp_path/name)
    assert not names(tmp_path)


# --- Reading -------------------------------------------------------------------------------------------------------
def test_links(saved, tmp_path):
    "A link that stays inside is followed, one that leads out is not, whatever it leads to"
    inside = tmp_path/'inside'
    shutil.copytree(saved, inside)
    (inside/'model.safetensors').rename(inside/'weights')
    (inside/'model.safetensors').symlink_to('weights')
    (tmp_path/'link').symlink_to(inside)
    for folder in (inside, tmp_path/'link'): assert load_bundle(folder).vocab == ['china', 'flower']
    outside = tmp_path/'outside'
    shutil.copytree(saved, outside)
    (outside/'model.safetensors').unlink()
    (outside/'model.safetensors').symlink_to(saved/'model.safetensors')
    with pytest.raises(BundleError, match='is a symbolic link that leads out of the bundle'): load_bundle(outside)


kinds = dict(usual=dict(), bare=dict(hidden=(), pool='avg'), wide=dict(hidden=(5000,)), flat=dict(pool='flatten', hidden=(8,)))


@pytest.mark.parametrize('arch,options', [(arch, kinds[k]) for arch, some in (('timm/resnet18', ['usual']), ('timm/vit_tiny_patch16_224', ['wide']), ('torchvision/mobilenet_v3_small', ['flat']),
    ('torchvision/regnet_y_400mf', ['usual']), ('embedded/efficientnet_lite0', ['bare'])) for k in some], ids=str)
def test_networks_that_are_counted_first(tmp_path, arch, options):
    "All kinds of networks get through the check on the meta device, and one number less in their weights does not"
    size = 224 if 'vit' in arch else 64
    network = image_model(arch, 3, pretrained=False, size=size, **options)
    learn = SimpleNamespace(dls=SimpleNamespace(vocab=list('abc'), size=size, presize=size, method='crop'), model=network)
    bundle = save_bundle(learn, tmp_path/'b')
    again, x = read_bundle(bundle)[0].eval(), torch.rand(1, 3, size, size)
    with torch.no_grad(): torch.testing.assert_close(again(x), network.eval()(x))
    about = json.loads((bundle/'classifier.json').read_text())
    for fields in (dict(hidden=[7]), dict(arch='timm/resnet34'), dict(arch='timm/vit_giant_patch14_reg4_dinov2')):
        (bundle/'classifier.json').write_text(json.dumps(about | dict(model=about['model'] | fields)))
        with pytest.raises(BundleError, match="doesn't fit the network"): read_bundle(bundle)


def test_sizes_that_do_not_go_through(tmp_path):
    "A network that takes photos of one size alone is not loaded with another"
    learn = SimpleNamespace(dls=SimpleNamespace(vocab=list('abc'), size=224, presize=224, method='crop'), model=image_model('timm/vit_tiny_patch16_224', 3, pretrained=False))
    bundle = save_bundle(learn, tmp_path/'b')
    about = json.loads((bundle/'classifier.json').read_text())
    for size in (96, 640):
        (bundle/'classifier.json').write_text(json.dumps(about | dict(size=size, presize=size)))
        with pytest.raises(BundleError): read_bundle(bundle)


# --- Decisions -----------------------------------------------------------------------------------------------------
found = Refusal(0.8, 0.9, level=0.95, n=300, answered=200, right=195)
strange = Foreign(-1., 0.95, n=300)


def test_decisions_are_kept(learn, tmp_path):
    bundle = save_bundle(learn, tmp_path/'b', temperature=1.5, refusal=found, foreign=strange)
    about, card = json.loads((bundle/'classifier.json').read_text()), (bundle/'model_card.md').read_text()
    assert (about['schema'], about['temperature']) == (2, 1.5) and about['refusal'] == dict(score='probability', threshold=0.8, accuracy=0.9, level=0.95, n=300, answered=200, right=195)
    assert about['foreign'] == dict(score='energy', threshold=-1., keep=0.95, n=300)
    assert 'It says "unknown" where its probability is below 0.800' in card and 'a temperature of 1.5' in card and 'were not compared' not in card and 'It always' not in card
    ours, theirs = apply_temperature(predict(learn), 1.5), load_bundle(bundle, compute='fp32').predictions(learn.dls.valid.items)
    np.testing.assert_allclose(theirs.probs, ours.probs, atol=1e-5)
    assert (ours.logits is None) or np.allclose(theirs.logits, ours.logits, atol=1e-3)


def test_decisions_one_by_one(learn, tmp_path):
    for i, decisions in enumerate((dict(temperature=2), dict(refusal=found), dict(foreign=strange))):
        bundle = save_bundle(learn, tmp_path/f'{i}', **decisions)
        assert load_bundle(bundle).config.keys() & {'temperature', 'refusal', 'foreign'} == decisions.keys()
    assert json.loads((save_bundle(learn, tmp_path/'none')/'classifier.json').read_text())['schema'] == 1


@pytest.mark.parametrize('decisions,error,text', [(dict(temperature=0), ValueError, '`temperature` must be a number'), (dict(temperature='2'), ValueError, '`temperature` must be'), (dict(temperature=float('nan')), ValueError, '`temperature` must be'),
    (dict(refusal=0.5), TypeError, '`refusal` must come from `refusal_threshold`'), (dict(foreign=-1.), TypeError, '`foreign` must come from `foreign_threshold`'), (dict(foreign=Foreign(0.1, 0.9, n=50, score='distance')), ValueError, 'or by a `ClassDistance`'),
    (dict(foreign=found), ValueError, "this threshold is of 'probability'"), (dict(refusal=Refusal(None, 0.99, level=0.95, n=30, why='few')), ValueError, 'has no threshold from which on to answer')], ids=range(8))
def test_decisions_that_are_refused(learn, tmp_path, decisions, error, text):
    with pytest.raises(error, match=text): save_bundle(learn, tmp_path/'b', **decisions)
    assert not names(tmp_path)


def test_a_class_called_unknown(learn, tmp_path):
    other = SimpleNamespace(dls=SimpleNamespace(vocab=['unknown', 'flower'], size=64, presize=96, method='crop'), model=learn.model)
    with pytest.raises(ValueError, match="a class is called 'unknown'"): save_bundle(other, tmp_path/'b', refusal=found)
    assert load_bundle(save_bundle(other, tmp_path/'b', temperature=2)).vocab[0] == 'unknown'


def test_an_estimator_that_may_refuse(fitted, tmp_path):
    from imgcls.train.features import predict_features
    bundle = save_bundle(fitted.learn, tmp_path/'b', estimator=fitted.machine, temperature=2., refusal=found)
    classifier = load_bundle(bundle, compute='fp32')
    preds = classifier.predictions(fitted.table[fitted.table['split'] == 'valid'])
    np.testing.assert_allclose(preds.probs, apply_temperature(predict_features(fitted.machine, fitted.features), 2).probs, atol=1e-3)
    assert preds.logits is None and (classifier.reasons(preds) != '').all()
    with pytest.raises(ValueError, match='`foreign` is told by the logits of a network'): save_bundle(fitted.learn, tmp_path/'c', estimator=fitted.machine, foreign=strange)


# --- Estimators of scikit-learn ------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def fitted(tmp_path_factory):
    "A learner with random weights, features of it, and a bundle with a support vector machine"
    from sklearn.svm import SVC

    from imgcls.train.features import extract_features, fit_features
    table = image_table(sample('digits')).groupby(['label', 'split']).head(4)
    learn = image_learner(image_loaders(table, size=16, bs=8, augment='none', num_workers=0, check=None), 'timm/resnet18', pretrained=False, compute='fp32')
    features = extract_features(learn, learn.dls)
    machine = fit_features(features, SVC(break_ties=True))
    return SimpleNamespace(learn=learn, features=features, machine=machine, table=table, bundle=save_bundle(learn, tmp_path_factory.mktemp('svc')/'b', estimator=machine))


@pytest.mark.parametrize('pool', ['avg', 'concat', 'flatten'])
@pytest.mark.parametrize('kind', ['SVC', 'LinearSVC', 'RidgeClassifier', 'PCA + LogisticRegression', 'LogisticRegression', 'MLPClassifier'])
def test_estimator_answers_from_the_bundle(fitted, tmp_path, kind, pool):
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC, LinearSVC

    from imgcls.train.features import extract_features, fit_features, predict_features
    made = dict(SVC=SVC(break_ties=True), LinearSVC=LinearSVC(), RidgeClassifier=RidgeClassifier(), LogisticRegression=LogisticRegression(C=0.1, max_iter=300),
                MLPClassifier=MLPClassifier((8,), max_iter=20), **{'PCA + LogisticRegression': make_pipeline(PCA(5), LogisticRegression())})[kind]
    features = extract_features(fitted.learn, fitted.learn.dls, pool=pool)
    estimator = fit_features(features, made)
    before = [p.clone() for p in fitted.learn.model.parameters()]
    bundle = save_bundle(fitted.learn, tmp_path/'b', estimator=estimator)
    assert all(torch.equal(a, b) for a, b in zip(before, fitted.learn.model.parameters()))
    assert (bundle/'estimator.skops').exists() == (kind not in ('LogisticRegression', 'MLPClassifier'))
    preds = load_bundle(bundle, compute='fp32').predictions(fitted.table[fitted.table['split'] == 'valid'])
    want = predict_features(estimator, features)
    np.testing.assert_allclose(preds.probs, want.probs, atol=1e-4)
    assert list(preds.items) == list(want.items)


def test_an_estimator_that_could_do_harm_is_named(fitted, tmp_path, caplog):
    from sklearn.ensemble import RandomForestClassifier

    from imgcls.train.features import fit_features, predict_features
    forest = fit_features(fitted.features, RandomForestClassifier(5, random_state=0))
    with caplog.at_level('WARNING', 'imgcls'): bundle = save_bundle(fitted.learn, tmp_path/'b', estimator=forest)
    assert "must say trusted=['sklearn.tree._tree.Tree']" in caplog.text
    about, card = json.loads((bundle/'classifier.json').read_text()), (bundle/'model_card.md').read_text()
    assert {'scikit-learn', 'skops'} <= set(about['versions']) and 'A RandomForestClassifier of scikit-learn answers' in card and "trusted=['sklearn.tree._tree.Tree']" in card
    with pytest.raises(BundleError, match='could do harm if somebody made them on purpose: sklearn.tree._tree.Tree'): load_bundle(bundle)
    preds = load_bundle(bundle, compute='fp32', trusted=['sklearn.tree._tree.Tree']).predictions(fitted.table[fitted.table['split'] == 'valid'])
    np.testing.assert_allclose(preds.probs, predict_features(forest, fitted.features).probs, atol=1e-3)


def test_bad_estimator_files(fitted, tmp_path):
    def changed(data=None, **fields):
        folder = tmp_path/f'b{len(list(tmp_path.iterdir()))}'
        shutil.copytree(fitted.bundle, folder)
        about = json.loads((folder/'classifier.json').read_text())
        if data is not None:
            (folder/'estimator.skops').write_bytes(data)
            about['estimator'] = dict(sha256=hashlib.sha256(data).hexdigest())
        (folder/'classifier.json').write_text(json.dumps({k: v for k, v in (about | fields).items() if v is not None}))
        return folder
    whole = (fitted.bundle/'estimator.skops').read_bytes()
    class Evil:
        def __reduce__(self): return exec, ('raise SystemExit(3)',)
    with zipfile.ZipFile(tmp_path/'bomb.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('schema.json', '{"a":' * 10**5)
    for data in (b'', whole[:-50], pickle.dumps(Evil()), (tmp_path/'bomb.zip').read_bytes()):
        with pytest.raises(BundleError, match="can't be read as an estimator"): load_bundle(changed(data))
    with pytest.raises(BundleError, match='SHA-256 differs'): load_bundle(changed(estimator=dict(sha256='0' * 64)))
    with pytest.raises(BundleError, match='belong together'): load_bundle(changed(estimator=None))
    with pytest.raises(BundleError, match='`estimator` must be an object'): load_bundle(changed(estimator='svc'))
    other = changed()
    (other/'estimator.skops').unlink()
    with pytest.raises(BundleError, match='it has no file estimator.skops'): load_bundle(other)
    about = json.loads((fitted.bundle/'classifier.json').read_text())
    with pytest.raises(BundleError, match='the estimator knows classes that the features lack'): load_bundle(changed(vocab=[f'x{o}' for o in about['vocab']]))


@pytest.mark.parametrize('arch', ['classic/lenet', 'classic/minivggnet', 'classic/mlp'])
def test_classic_networks_in_bundles(fitted, tmp_path, arch):
    dls = image_loaders(fitted.table, size=28, bs=8, augment='none', num_workers=0, check=None)
    learn = image_learner(dls, arch, compute='fp32')
    bundle = save_bundle(learn, tmp_path/'b')
    np.testing.assert_allclose(load_bundle(bundle, compute='fp32').predictions(dls.table[dls.table['split'] == 'valid']).probs, predict(learn).probs, atol=1e-5)
    about = json.loads((bundle/'classifier.json').read_text())
    for options, text in ((dict(hidden=[16384] * 90), 'tensors'), (dict(kernel=0), ''), (dict(depth=3), 'has no option'), (dict(hidden=[10**9]), '`size`, `channels` and `options`'), ('x', '`size`, `channels`')):
        new = about['model']['classic'] | dict(options=about['model']['classic']['options'] | options if isinstance(options, dict) else options)
        (bundle/'classifier.json').write_text(json.dumps(about | dict(model=about['model'] | dict(classic=new))))
        with pytest.raises(BundleError, match=text): load_bundle(bundle)


@pytest.mark.parametrize('kind', ['SVC', 'LogisticRegression'])
@pytest.mark.parametrize('pool', ['avg', 'flatten'])
@pytest.mark.parametrize('arch', ['classic/lenet', 'classic/minigooglenet'])
def test_estimators_on_classic_networks(fitted, tmp_path, arch, pool, kind):
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    from imgcls.train.features import extract_features, fit_features, predict_features
    learn = image_learner(image_loaders(fitted.table, size=28, bs=8, augment='none', num_workers=0, check=None), arch, compute='fp32')
    features = extract_features(learn, learn.dls, pool=pool)
    estimator = fit_features(features, dict(SVC=SVC(break_ties=True), LogisticRegression=LogisticRegression(max_iter=300))[kind])
    modes = [m.training for m in learn.model.modules()]
    bundle = save_bundle(learn, tmp_path/'b', estimator=estimator)
    assert modes == [m.training for m in learn.model.modules()]
    preds = load_bundle(bundle, compute='fp32').predictions(fitted.table[fitted.table['split'] == 'valid'])
    np.testing.assert_allclose(preds.probs, predict_features(estimator, features).probs, atol=1e-4)


def test_an_estimator_of_other_sizes_is_refused(fitted, tmp_path):
    other = image_learner(image_loaders(fitted.table, size=24, bs=8, augment='none', num_workers=0, check=None), fitted.learn.model[0], compute='fp32')
    with pytest.raises(DataError, match='fitted to other features: size was 16 and is 24 here|another body'): save_bundle(other, tmp_path/'b', estimator=fitted.machine)
    fitted.learn.dls.presize += 1
    try:
        with pytest.raises(DataError, match='fitted to other features: presize was'): save_bundle(fitted.learn, tmp_path/'b', estimator=fitted.machine)
    finally: fitted.learn.dls.presize -= 1


def test_estimators_that_do_not_fit(fitted, tmp_path):
    "Each with the right hash: refused when it is loaded, not when it is asked"
    import copy

    import skops.io as sio
    from sklearn.svm import SVC
    def bundle(estimator):
        folder = tmp_path/f'b{len(list(tmp_path.iterdir()))}'
        shutil.copytree(fitted.bundle, folder)
        data = sio.dumps(estimator)
        (folder/'estimator.skops').write_bytes(data)
        about = json.loads((folder/'classifier.json').read_text())
        (folder/'classifier.json').write_text(json.dumps(about | dict(estimator=dict(sha256=hashlib.sha256(data).hexdigest()))))
        return folder
    x, y = fitted.features.vectors[:40], fitted.features.labels[:40]
    with pytest.raises(BundleError, match='asks for 7 features, and the network gives 512'): load_bundle(bundle(SVC().fit(x[:, :7], y)))
    for shift in (-5, 100):
        with pytest.raises(BundleError, match='the estimator knows the class numbers'): load_bundle(bundle(SVC().fit(x, fitted.features.targets[:40] + shift)))
    broken = copy.deepcopy(fitted.machine)
    broken._intercept_ = broken._intercept_ * np.nan
    broken.intercept_ = broken.intercept_ * np.nan
    with pytest.raises(BundleError, match='estimator'): load_bundle(bundle(broken))


# --- A distance that travels ---------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def distant(learn, tmp_path_factory):
    "A bundle that tells what is foreign by its features, the distance, and predictions with features"
    preds = predict(learn, learn.dls.table[learn.dls.table['error'] == ''], features=True)
    near = ClassDistance.fit(preds.features, preds.targets, k=8)
    scores = near.score(preds.features)
    limit = foreign_threshold(scores, keep=0.9, distance=near)
    return SimpleNamespace(path=save_bundle(learn, tmp_path_factory.mktemp('distant')/'b', foreign=limit), near=near, preds=preds, scores=scores, limit=limit)

def test_a_distance_travels(distant, photos):
    about, card = json.loads((distant.path/'classifier.json').read_text()), (distant.path/'model_card.md').read_text()
    file = distant.path/'foreign.safetensors'
    assert about['foreign'] == dict(score='distance', threshold=distant.limit.threshold, keep=0.9, n=len(distant.preds), sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    assert about['schema'] == 2 and 'the distance of its features' in card and file.stat().st_size < 200_000
    classifier = load_bundle(distant.path, compute='fp32')
    preds = classifier.predictions([photos/o for o in distant.preds.items])
    np.testing.assert_allclose(preds.features, distant.preds.features, atol=1e-3)
    np.testing.assert_allclose(classifier.distance.score(preds.features), distant.scores, atol=1e-4)
    refused = classifier.reasons(preds) != ''
    assert (refused == (distant.scores > distant.limit.threshold)).all() and 1 <= refused.sum() <= 0.2*len(preds)
    answers = classifier.predict([photos/o for o in distant.preds.items], bs=5)
    assert ((answers['label'] == 'unknown') == refused).all() and answers['reason'][refused].str.startswith('foreign').all()
    with pytest.raises(DataError, match='what is foreign is told by `features`'): classifier.reasons(predict_without(preds))
    fast = load_bundle(distant.path)  # folded, in the machine's own number format
    np.testing.assert_allclose(fast.distance.score(fast.predictions([photos/o for o in distant.preds.items]).features), distant.scores, atol=0.03)

def predict_without(preds): return type(preds)(preds.probs, preds.vocab, logits=preds.logits)

def spoil(distant, folder, **tensors):
    "A copy of the bundle with other tensors, and their hash in its description"
    from safetensors.torch import save
    shutil.copytree(distant.path, folder)
    data, about = save(tensors), json.loads((folder/'classifier.json').read_text())
    (folder/'foreign.safetensors').write_bytes(data)
    about['foreign']['sha256'] = hashlib.sha256(data).hexdigest()
    (folder/'classifier.json').write_text(json.dumps(about))
    return folder

@pytest.mark.parametrize('change,text', [
    (lambda m, a: dict(means=m), 'must hold `means` and `axes`'), (lambda m, a: dict(means=m, axes=a, more=a.clone()), 'must hold `means` and `axes`'), (lambda m, a: dict(means=m.double(), axes=a), 'in float32'),
    (lambda m, a: dict(means=m*50, axes=a), 'at most 1 long'), (lambda m, a: dict(means=m, axes=a*float('nan')), 'at most 1 long'), (lambda m, a: dict(means=m, axes=a[[0, 0]]), 'at right angles'),
    (lambda m, a: dict(means=m[:, :5].clone(), axes=a), 'tables of as many columns'), (lambda m, a: dict(means=m[:, :9].clone(), axes=torch.zeros(0, 9)), 'features, and the network'), (lambda m, a: dict(means=m[0], axes=a), 'tables of'),
    (lambda m, a: dict(means=m[[0, 1, 1]], axes=a), 'knows 3 classes'), (lambda m, a: dict(means=m, axes=torch.zeros(1025, m.shape[1])), 'at most 1,024 axes')], ids=range(11))
def test_a_distance_of_a_stranger(distant, tmp_path, change, text):
    with pytest.raises(BundleError, match=text): load_bundle(spoil(distant, tmp_path/'b', **change(*(torch.from_numpy(o) for o in (distant.near.means, distant.near.axes)))))

def test_a_distance_that_is_not_whole(distant, tmp_path):
    shutil.copytree(distant.path, tmp_path/'a')
    (tmp_path/'a/foreign.safetensors').write_bytes((distant.path/'foreign.safetensors').read_bytes()[:-1] + b'x')
    with pytest.raises(BundleError, match='its SHA-256 differs'): load_bundle(tmp_path/'a')
    (tmp_path/'a/foreign.safetensors').unlink()
    with pytest.raises(BundleError, match='it has no file foreign.safetensors'): load_bundle(tmp_path/'a')
    about = json.loads((distant.path/'classifier.json').read_text())
    del about['foreign']['sha256']
    (tmp_path/'a/classifier.json').write_text(json.dumps(about))
    with pytest.raises(BundleError, match='the field `foreign.sha256` is missing'): load_bundle(tmp_path/'a')

def test_a_distance_of_other_features(learn, tmp_path):
    other = ClassDistance.fit(np.random.default_rng(0).normal(size=(40, 12)), np.arange(40) % 2)
    with pytest.raises(ValueError, match='fit it to features of this learner'): save_bundle(learn, tmp_path/'b', foreign=Foreign(0.5, 0.9, n=50, score='distance', distance=other))
    assert not names(tmp_path)

def test_an_estimator_with_a_distance(fitted, tmp_path):
    "An estimator has no logits, but features"
    x = fitted.features
    near = ClassDistance.fit(x.vectors, x.targets, k=4)
    limit = foreign_threshold(near.score(x.vectors), keep=0.8, distance=near)
    classifier = load_bundle(save_bundle(fitted.learn, tmp_path/'b', estimator=fitted.machine, foreign=limit), compute='fp32')
    preds = classifier.predictions(fitted.table)
    assert 0 < (classifier.reasons(preds) != '').mean() < 1 and preds.features.shape[1] == x.vectors.shape[1]
