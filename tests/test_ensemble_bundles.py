"""Several bundles that answer as one: the mean of what each says alone, each with its own way of looking, and every file opened once."""
import io, itertools, os

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import imgcls.deploy.ensemble as module
from imgcls.core import DataError
from imgcls.deploy.ensemble import ClassifierEnsemble
from imgcls.deploy.imagenet import imagenet_classifier
from imgcls.deploy.predictor import Classifier
from imgcls.images import open_image
from imgcls.models.pretrained import image_model
from imgcls.train.ensembles import average_predictions

vocab = ['ant', 'bee', 'cat']


def member(seed, size=32, presize=40, names=vocab, **more):
    torch.manual_seed(seed)
    model = image_model('classic/lenet', len(names), size=size)
    with torch.no_grad(): model[1][-1].weight.mul_(30)
    return Classifier(model, dict(model=model.config, vocab=list(names), size=size, presize=presize, method='crop', multi_label=False) | more, compute='fp32')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Ten photos as JPEG and PNG, large enough to be decoded smaller by some members"
    folder = tmp_path_factory.mktemp('photos')
    for i, (o, x) in enumerate(itertools.product(load_sample_images().images, (0, 60, 120, 180, 240))): Image.fromarray(o[:, x:x + 380]).save(folder/f'{i:02d}.{"jpg" if i % 3 else "png"}')
    return folder


@pytest.fixture(scope='module')
def members(): return [member(0), member(1, 48, 200), member(2, 32, 64, method='squish'), member(3, 32, 40, names=['cat', 'ant', 'bee'], temperature=2.)]


def test_the_mean_of_its_members(members, photos):
    alone = [o.predictions(photos) for o in members]
    for weights in (None, [1, 2, 3, 4], [0, 1, 0, 0], (0.5, 0.5, 0, 0)):
        ensemble = ClassifierEnsemble(members, weights=weights)
        for bs in (3, 32): together = ensemble.predictions(photos, bs=bs)
        np.testing.assert_array_equal(ensemble.predictions(photos).probs, average_predictions(alone, weights=weights).probs)
        np.testing.assert_allclose(together.probs, average_predictions(alone, weights=weights).probs, atol=1e-6)
        assert list(together.items) == list(alone[0].items) and together.vocab == vocab and together.logits is None
    assert np.ptp(together.probs, axis=0).max() > 0.05, 'photos that are told apart'
    with torch.no_grad(): np.testing.assert_array_equal(ClassifierEnsemble(members[:1]).predictions(photos).probs, alone[0].probs)


def test_the_same_questions(members, photos, tmp_path):
    ensemble, files = ClassifierEnsemble(members), sorted(photos.iterdir())
    probs = ensemble.predictions(photos).probs
    (tmp_path/'bad.jpg').write_bytes(files[1].read_bytes()[:900])
    img = open_image(files[0])
    sources = [tmp_path/'bad.jpg', files[0], files[0].read_bytes(), open(files[0], 'rb'), io.BytesIO(files[0].read_bytes()), img, np.asarray(img), torch.from_numpy(np.array(img)), tmp_path/'gone.jpg', tmp_path]
    frame = ensemble.predict(sources, k=2, bs=4)
    assert list(frame) == ['file', 'label', 'probability', 'label_2', 'probability_2', 'error']
    assert frame['error'].str.partition(':')[0].tolist() == ['truncated', *['']*7, 'missing', 'truncated']
    np.testing.assert_allclose(frame['probability'][1:8], probs[0].max(), atol=1e-6)
    parts = list(ensemble.predict_batches((o for o in [files[0].read_bytes()]*5), bs=2))
    assert [len(o) for o in parts] == [2, 2, 1] and (pd.concat(parts)['label'] == frame['label'][1]).all()
    rows = pd.DataFrame(dict(path=[o.name for o in files], label=['bee']*10))
    rows.attrs['root'] = str(photos)
    assert (ensemble.predictions(rows).targets == 1).all()
    for options in (dict(k=4), dict(bs=0), dict(threads=0), dict(views='flips')):
        with pytest.raises(ValueError): ensemble.predict(photos, **options)


def test_unseekable_files(members, photos):
    "A pipe gives its bytes once"
    file = sorted(photos.iterdir())[1]
    end, start = os.pipe()
    with open(end, 'rb') as pipe:
        with open(start, 'wb') as o: o.write(file.read_bytes())
        assert ClassifierEnsemble(members).predict(pipe)['error'].tolist() == ['']


@pytest.mark.parametrize('views', ['plain', 'flip', 'five_crop'])
def test_views(members, photos, views):
    "Each member averages its own looks"
    each = [o.predictions(photos, views=views) for o in members]
    np.testing.assert_allclose(ClassifierEnsemble(members).predictions(photos, views=views).probs, average_predictions(each).probs, atol=1e-6)


def test_each_file_is_opened_once(members, photos, monkeypatch):
    opened, cut = [], []
    real = module._open_file
    monkeypatch.setattr(module, '_open_file', lambda path: opened.append(path) or real(path))
    monkeypatch.setattr('imgcls.images._open_file', lambda path: pytest.fail('opened by a member'))
    for o in members: monkeypatch.setattr(o, '_decode', lambda pair, o=o, f=o._decode: cut.append(o) or f(pair))
    ClassifierEnsemble(members).predict(photos)
    assert sorted(opened) == sorted(str(o) for o in photos.iterdir())
    assert len(cut) == 3 * 10, 'members that prepare photos in the same way share the square'


def test_several_labels(photos):
    ensemble = ClassifierEnsemble([member(i, multi_label=True, threshold=0.9) for i in range(2)], threshold=0.45)
    preds, frame = ensemble.predictions(photos), ensemble.predict(photos, k=2)
    assert preds.multi_label and (preds.probs.sum(1) > 1.01).any()
    assert frame['label'].tolist() == ['|'.join(np.array(vocab)[o >= 0.45]) for o in preds.probs]
    assert list(frame) == ['file', 'label', 'probability', 'label_1', 'probability_1', 'label_2', 'probability_2', 'error']


def test_it_always_answers(photos):
    careful = [member(i, refusal=dict(threshold=0.999), foreign=dict(threshold=-100.)) for i in range(2)]
    assert (careful[0].predict(photos)['label'] == 'unknown').all()
    ensemble = ClassifierEnsemble(careful)
    assert set(ensemble.predict(photos)['label']) <= set(vocab) and 'reason' not in ensemble.predict(photos)
    assert '2 of the members can refuse, the ensemble always answers' in repr(ensemble) and 'can refuse' not in repr(ClassifierEnsemble([member(0)]))
    assert len(ensemble.predict(photos, views='flip')) == 10


def test_one_for_each_class(photos):
    members = [member(i, one_vs_all=True) for i in range(2)]
    preds = ClassifierEnsemble(members).predictions(photos)
    assert preds.one_vs_all
    np.testing.assert_allclose(preds.probs, average_predictions([o.predictions(photos) for o in members]).probs, atol=1e-6)


def test_networks_of_imagenet(photos):
    "Two that prepare photos in their own ways aren't taken for one"
    torch.manual_seed(0)
    a, b = imagenet_classifier(compute='fp32'), imagenet_classifier(compute='fp32')
    b.config, b._square = b.config | dict(prepare=dict(crop_pct=0.5)), lambda img: np.asarray(img.resize((224, 224)))
    file = sorted(photos.iterdir())[0]
    mean = (a.predictions(file).probs + b.predictions(file).probs)/2
    np.testing.assert_allclose(ClassifierEnsemble([a, b]).predictions(file).probs, mean, atol=1e-6)
    assert len(ClassifierEnsemble([a, a])._ways) == 1


other = ['ant', 'bee', 'cow', 'dog']


@pytest.mark.parametrize('make,error,text', [
    (lambda: ClassifierEnsemble([]), ValueError, '`members` is empty'), (lambda: ClassifierEnsemble(member(0)), TypeError, 'must be a list of classifiers, got Classifier'),
    (lambda: ClassifierEnsemble('run/bundle'), TypeError, 'got str'), (lambda: ClassifierEnsemble(3), TypeError, 'got int'),
    (lambda: ClassifierEnsemble([member(0), 'run/bundle']), TypeError, r'members\[1\] must be a classifier, as from load_bundle\(path\), got str'),
    (lambda: ClassifierEnsemble([member(0), member(0, names=other)]), ValueError, r'members\[1\] has other classes than members\[0\]: it lacks 1: cat; it has 2 more: cow, dog'),
    (lambda: ClassifierEnsemble([member(0), member(0, names=vocab[:2])]), ValueError, 'it lacks 1: cat$'),
    (lambda: ClassifierEnsemble([member(0, one_vs_all=True), member(0)]), ValueError, 'gives one label, and members.0. gives one label, with a yes or no for each class'),
    (lambda: ClassifierEnsemble([member(0)], weights=[1, 2]), ValueError, '`weights` must be 1 numbers'), (lambda: ClassifierEnsemble([member(0)], weights=[0]), ValueError, 'not all 0'),
    (lambda: ClassifierEnsemble([member(0)]*2, weights=[1, -1]), ValueError, '0 or more'), (lambda: ClassifierEnsemble([member(0)]*2, weights=[1, float('nan')]), ValueError, '0 or more'),
    (lambda: ClassifierEnsemble([member(0)], threshold='a'), ValueError, '`threshold` must be'), (lambda: ClassifierEnsemble([member(0)]).predictions(['gone.jpg']), DataError, 'none of the 1 images')],
    ids=range(14))
def test_errors(make, error, text):
    with pytest.raises(error, match=text): make()


def test_weights_of_numpy(members):
    assert ClassifierEnsemble(members, weights=np.arange(1, len(members) + 1, dtype=np.float32)).shares == ClassifierEnsemble(members, weights=list(range(1, len(members) + 1))).shares
