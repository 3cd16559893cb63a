"""Averages that can't mix up photos or classes, views that see what they say, and snapshots that a killed training keeps."""
import itertools, random

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler
from fastai.torch_core import set_seed
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import nn

import imgcls.data.loaders as loaders_module
from imgcls.core import DataError
from imgcls.data.loaders import image_loaders
from imgcls.data.presize import Presize
from imgcls.data.samples import sample
from imgcls.data.tables import image_table
from imgcls.predictions import Predictions
from imgcls.images import CropView, crop_views
from imgcls.train.ensembles import Snapshots, average_predictions, predict_snapshots, predict_views
from imgcls.train.keep import BestCheckpoint
from imgcls.train.learner import fine_tune, image_learner, predict
from imgcls.train.losses import OneVsAllLoss
from imgcls.train.run import Run
from imgcls.train.schedules import cosine_decay
from imgcls.train.trace import random_state


# --- average_predictions -------------------------------------------------------------------------------------------
vocab, files = ['ant', 'bee', 'cat', 'dog'], [f'{o}.jpg' for o in 'abcdefg']
kinds = ('one', 'several', 'one_vs_all')


def some(seed, kind='one', **kwargs):
    "Predictions with logits and targets, the photos and classes in an order of their own"
    rng, truth = np.random.default_rng(seed), np.random.default_rng(99)
    logits, rows, columns = rng.normal(size=(7, 4)), rng.permutation(7), rng.permutation(4)
    one = truth.integers(4, size=7)
    targets = truth.integers(2, size=(7, 4))[rows][:, columns] if kind == 'several' else np.argsort(columns)[one[rows]]
    probs = 1/(1 + np.exp(-logits)) if kind != 'one' else np.exp(logits)/np.exp(logits).sum(1, keepdims=True)
    about = dict(targets=targets, items=np.array(files)[rows], logits=logits[rows][:, columns], root='photos', split='valid',
                 multi_label=kind == 'several', one_vs_all=kind == 'one_vs_all')
    return Predictions(probs[rows][:, columns], np.array(vocab)[columns], **(about | kwargs))


def by_name(preds, values='probs'):
    "Numbers by file and class"
    return {(f, c): float(getattr(preds, values)[i, j]) for i, f in enumerate(preds.items) for j, c in enumerate(preds.vocab)}


@pytest.mark.parametrize('kind,how,weights', list(itertools.product(kinds, ('probs', 'logits'), (None, [1, 2, 0.5, 0]))))
def test_photos_and_classes_are_matched_by_name(kind, how, weights):
    members = [some(i, kind) for i in range(4)]
    res, shares = average_predictions(members, weights=weights, how=how), np.array(weights or [1]*4)/sum(weights or [1]*4)
    found, parts = by_name(res, how), [by_name(o, how) for o in members]
    assert found == pytest.approx({k: sum(w*o[k] for w, o in zip(shares, parts)) for k in found}, abs=1e-6)
    if how == 'logits':
        expected = 1/(1 + np.exp(-res.logits)) if kind != 'one' else np.exp(res.logits)/np.exp(res.logits).sum(1, keepdims=True)
        np.testing.assert_allclose(res.probs, expected, atol=1e-6)
    assert res.items.tolist() == members[0].items.tolist() and res.vocab == members[0].vocab and res.actual.tolist() == members[0].actual.tolist()
    assert (res.split, res.root, res.multi_label, res.one_vs_all) == ('valid', members[0].root, kind == 'several', kind == 'one_vs_all')
    for order in itertools.islice(itertools.permutations(range(4)), 1, 24, 5):
        other = average_predictions([members[i] for i in order], weights=None if weights is None else [weights[i] for i in order], how=how)
        assert by_name(other) == pytest.approx(by_name(res), abs=1e-6)


def test_one_member_stays_as_it_is():
    a = some(1)
    res = average_predictions([a])
    assert np.array_equal(res.probs, a.probs) and np.array_equal(res.targets, a.targets) and np.allclose(res.losses, a.losses)
    assert np.array_equal(average_predictions(iter([a, a, a])).probs, a.probs)  # any iterable, and no rounding


def test_of_no_photos(): assert len(average_predictions([some(1)[[]], some(2)[[]]])) == 0


def test_targets_that_only_some_know():
    a, b = some(1, targets=None), some(2)
    res = average_predictions([a, b, some(3, targets=None)])
    assert dict(zip(res.items, res.actual)) == dict(zip(b.items, b.actual)) and average_predictions([a, a]).targets is None
    assert average_predictions([a, some(2, split='test')]).split is None


def test_folders(tmp_path):
    "With other folders it is the whole path that counts; where a folder is unknown, the name"
    p = [[1, 0], [0, 1]]
    a = Predictions(p, 'xy', items=['b/1.jpg', 'b/2.jpg'], root=tmp_path/'a')
    assert len(average_predictions([a, Predictions(p, 'xy', items=['2.jpg', '1.jpg'], root=tmp_path/'a/b')])) == 2
    assert len(average_predictions([a, Predictions(p, 'xy', items=a.items)])) == 2
    with pytest.raises(DataError, match=r'predictions\[1\] has other photos than predictions\[0\]: it lacks 2: .*/a/b/1.jpg, .*; it has 2 more: .*/c/b/1.jpg'):
        average_predictions([a, Predictions(p, 'xy', items=a.items, root=tmp_path/'c')])


a = some(1)
@pytest.mark.parametrize('make,error,text', [
    (lambda: average_predictions([]), ValueError, 'is empty'),
    (lambda: average_predictions(a), TypeError, 'must be a list of `Predictions`, got Predictions'),
    (lambda: average_predictions(None), TypeError, 'must be a list of `Predictions`, got NoneType'),
    (lambda: average_predictions([a, a.probs]), TypeError, 'got ndarray in place 1'),
    (lambda: average_predictions([some(2, items=None), a]), DataError, r'predictions\[0\] has no `items`'),
    (lambda: average_predictions([a, some(2)[:5]]), DataError, r'predictions\[1\] has other photos than predictions\[0\]: it lacks 2: '),
    (lambda: average_predictions([a[:5], some(2)]), DataError, 'it has 2 more: '),
    (lambda: average_predictions([a, a[[0, 1, 2, 3, 4, 5, 6, 6]]]), DataError, r'predictions\[1\] has photos more than once: '),
    (lambda: average_predictions([a[[0, 0, 1]], a]), DataError, r'predictions\[0\] has photos more than once: '),
    (lambda: average_predictions([a, some(2, kind='several')]), DataError, r'predictions\[1\] has multi_label=True'),
    (lambda: average_predictions([a, some(2, kind='one_vs_all')]), DataError, r'predictions\[1\] has one_vs_all=True'),
    (lambda: average_predictions([a, Predictions(a.probs, ['ant', 'bee', 'cat', 'cow'], items=a.items)]), DataError, 'other classes .* it lacks 1: dog; it has 1 more: cow'),
    (lambda: average_predictions([a, some(1, targets=(a.targets + (a.items == 'c.jpg')) % 4)]), DataError, r'predictions\[1\] has other labels than predictions\[0\] for c.jpg'),
    (lambda: average_predictions([some(1, 'several'), some(2, 'several', targets=np.ones((7, 4)))]), DataError, 'has other labels'),
    (lambda: average_predictions([a, some(2, logits=None)], how='logits'), DataError, r'predictions\[1\] has no logits'),
    (lambda: average_predictions([a, some(2, logits=np.zeros((7, 4)))], how='logits'), DataError, r'the probabilities of predictions\[1\] are not the softmax of its logits'),
    (lambda: average_predictions([a], how='mean'), ValueError, "`how` must be one of 'probs', 'logits', got 'mean'"),
    (lambda: average_predictions([a, a], weights=[1]), ValueError, 'must be 2 numbers'),
    (lambda: average_predictions([a, a], weights=1), ValueError, 'must be 2 numbers'),
    (lambda: average_predictions([a, a], weights=[1, -1]), ValueError, '0 or more'),
    (lambda: average_predictions([a, a], weights=[0, 0]), ValueError, 'not all 0'),
    (lambda: average_predictions([a, a], weights=[1, np.nan]), ValueError, '0 or more'),
    (lambda: average_predictions([a, a], weights=['x', 'y']), TypeError, 'must be a list of numbers'),
])
def test_refused(make, error, text):
    with pytest.raises(error, match=text): make()


# --- Views ---------------------------------------------------------------------------------------------------------
def write(folder, pictures):
    "Pictures by path, as files without loss"
    for name, o in pictures.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        o.save(folder/name)
    return image_table(folder)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Upright and wide photos, 40 px and more"
    rng = np.random.default_rng(0)
    pictures = {f'{s}/{c}/{i}.png': Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for s, n in (('train', 4), ('valid', 7), ('test', 3)) for c in 'xy'
                for i, size in zip(range(n), itertools.cycle([(40, 40), (61, 40), (40, 75), (90, 100)]))}
    return write(tmp_path_factory.mktemp('photos'), pictures)


def learner(table, *, loss=None, seed=1, body=None, compute='fp32', **kwargs):
    set_seed(seed, reproducible=True)
    dls = image_loaders(table, **dict(dict(size=32, presize=40, augment='none', bs=4, num_workers=0, check=None), **kwargs))
    body = body or nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
    learn = image_learner(dls, body, hidden=(), compute=compute, loss_func=loss)
    learn.remove_cb(learn.progress)
    learn.logger = lambda *args: None
    return learn


def same(a, b): return np.array_equal(a.probs, b.probs) and np.array_equal(a.logits, b.logits) and np.array_equal(a.losses, b.losses) \
    and np.array_equal(a.targets, b.targets) and list(a.items) == list(b.items) and a.root == b.root and a.split == b.split and a.vocab == b.vocab


@pytest.mark.parametrize('kwargs', [dict(), dict(method='squish'), dict(presize=32), dict(augment='standard'), dict(bs=7), dict(num_workers=2), dict(presize=48, cache=True),
                                    dict(loss=OneVsAllLoss()), dict(compute='auto')], ids=str)
def test_the_plain_view_is_what_predict_sees(photos, kwargs, tmp_path, monkeypatch):
    monkeypatch.setenv('IMGCLS_CACHE', str(tmp_path))
    learn = learner(photos, **kwargs)
    views = [CropView(), lambda o: o, np.asarray, CropView(mirror=True), *crop_views('five_crop')]
    for split, bs in (('valid', None), ('train', 3), ('test', 64), (photos[photos['split'] == 'valid'].iloc[[5, 2, 9]], 2)):
        wanted, found = predict(learn, split, bs=bs), predict_views(learn, split, views=views, bs=bs)
        assert len(found) == 9 and all(same(o, wanted) for o in found[:3]) and not np.array_equal(found[3].logits, wanted.logits)
        assert found[3].items.tolist() == wanted.items.tolist() and len({o.probs.tobytes() for o in found[2:]}) == 7


def test_several_labels(photos):
    table = photos.copy()
    table['label'] = [(o,) if i % 3 else ('x', 'y') for i, o in enumerate(table['label'])]
    learn = learner(table)
    plain, mirrored = predict_views(learn, views='flip')
    assert same(plain, predict(learn)) and plain.multi_label and average_predictions([plain, mirrored]).multi_label


def test_views_of_a_loader_and_of_photos_without_labels(photos):
    learn, valid = learner(photos, augment='standard', bs=7), photos[photos['split'] == 'valid']
    for source, rows in ((learn.dls.train, photos[photos['split'] == 'train']), (valid.drop(columns='label'), valid)):
        plain, mirrored = predict_views(learn, source)
        wanted = predict(learn, source)
        assert np.array_equal(plain.logits, wanted.logits) and (plain.targets is None or same(plain, wanted))
        assert plain.items.tolist() == mirrored.items.tolist() == rows['path'].tolist() and (plain.targets is None) == (source is not learn.dls.train)
        assert len(average_predictions([plain, mirrored])) == len(rows)


def test_views_see_what_they_say(photos, tmp_path):
    "Each of the ten crops is predicted as a file with this crop is"
    learn, views = learner(photos), crop_views('ten_crop', share=0.7)
    valid = photos[(photos['split'] == 'valid') & (photos[['width', 'height']].min(axis=1) == 40)]  # presizing leaves them as they are
    whole = learner(photos, presize=32)  # for files that are the crop already
    whole.model.load_state_dict(learn.model.state_dict())
    for i, preds in enumerate(predict_views(learn, valid, views=views)):
        table = valid.copy()
        table.attrs['root'] = tmp_path/str(i)
        for path in valid['path']:
            img = Image.open(f'{photos.attrs["root"]}/{path}')
            w, h = img.size
            left, top = [0, w - 28, 0, w - 28, (w - 28)//2][i % 5], [0, 0, h - 28, h - 28, (h - 28)//2][i % 5]
            (tmp_path/str(i)/path).parent.mkdir(parents=True, exist_ok=True)
            cut = img.crop((left, top, left + 28, top + 28))
            (ImageOps.mirror(cut) if i >= 5 else cut).save(tmp_path/str(i)/path)
        found = predict(whole, table)
        assert len(preds) == 12 and np.array_equal(preds.probs, found.probs)


def test_each_photo_is_opened_once(photos, monkeypatch):
    opened, was = [], loaders_module.open_image
    monkeypatch.setattr(loaders_module, 'open_image', lambda x, **kwargs: opened.append(str(x)) or was(x, **kwargs))
    learn = learner(photos)
    opened.clear()
    found = predict_views(learn, 'valid', views='ten_crop')
    assert sorted(opened) == sorted(str(found[0].root/o) for o in found[0].items) or len(opened) == len(set(opened)) + 1 == len(found[0]) + 1  # fastai tries one


def test_views_with_random_numbers_leave_no_trace(photos):
    learn = learner(photos)
    views, before = [lambda o: o.rotate(random.uniform(-90, 90))]*2, random_state(learn.dls)
    first, second = predict_views(learn, views=views)
    again = predict_views(learn, views=views)
    assert not same(first, second) and same(first, again[0]) and same(second, again[1])
    assert repr(random_state(learn.dls)) == repr(before)


def test_small_pictures_of_a_view_are_enlarged(photos):
    assert np.isfinite(predict_views(learner(photos), views=[lambda o: o.resize((9, 5))])[0].probs).all()


def test_a_reading_of_the_test_is_noted_once(photos, tmp_path):
    learn = learner(photos)
    run = Run.create(tmp_path/'run', {})
    run.attach(learn)
    predict_views(learn, 'test', views='ten_crop')
    predict_views(learn, 'valid', views='flip')
    readings = (run.path/'readings.csv').read_text().splitlines()
    assert len(readings) == 2 and 'predict_views,test,6' in readings[1]


@pytest.mark.parametrize('views,error,text', [
    ('flips', ValueError, "Did you mean 'flip'"), ([], ValueError, 'is empty'), (CropView(), TypeError, 'must be a name or a list'), (3, TypeError, 'must be a name or a list'),
    ([CropView(), 'flip'], TypeError, r'views\[1\] must be a function'), ([lambda o: None], DataError, r'views\[0\] must return a picture, got NoneType'),
    ([lambda o: 1/0], DataError, 'ZeroDivisionError')])
def test_views_refused(photos, views, error, text):
    with pytest.raises(error, match=text): predict_views(learner(photos), views=views)


def test_loaders_without_a_table(photos):
    learn = learner(photos)
    wanted = predict_views(learn)
    del learn.dls.table
    assert all(same(a, b) for a, b in zip(predict_views(learn), wanted))
    learn.dls.valid.after_item.fs = learn.dls.valid.after_item.fs.filter(lambda o: not isinstance(o, Presize))
    with pytest.raises(TypeError, match='no `Presize` among their item transforms'): predict_views(learn)


# --- Snapshots -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def digits(): return image_table(sample('digits')).groupby(['label', 'split']).head(3)


def digit_learner(digits, **kwargs): return learner(digits, size=16, presize=16, bs=8, **kwargs)


def weights(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}


def equal(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Watch(Callback):
    "The weights after each epoch; raises an error after one of them, before or after the checkpoint is written"
    def __init__(self, fail=None, order=999): self.seen, self.fail, self.order = [], fail, order
    def after_epoch(self):
        self.seen.append(weights(self.learn))
        if self.learn.epoch == self.fail: raise RuntimeError('killed')


@pytest.mark.parametrize('epochs,cycles,growth,ends', [(6, 3, 1, [2, 4, 6]), (7, 3, 2, [1, 3, 7]), (4, 4, 1., [1, 2, 3, 4]), (3, 1, 5, [3]),
                                                       (5, 2, 1, None), (2, 3, 1, None), (6, 2, 1e9, None)])
def test_cycles_end_with_epochs(tmp_path, epochs, cycles, growth, ends):
    snapshots = Snapshots(tmp_path/'s', cycles=cycles, growth=growth)
    if ends: assert snapshots._ends(epochs) == ends
    else:
        with pytest.raises(ValueError, match="don't end with epochs"): snapshots._ends(epochs)


def test_weights_at_the_end_of_each_cycle(digits, tmp_path):
    "In the last stage only; predictions, lr_find and validation write nothing"
    learn, watch, snapshots = digit_learner(digits), Watch(), Snapshots(tmp_path/'s', cycles=2)
    fine_tune(learn, 4, lr=1e-2, freeze_epochs=2, cbs=[watch, snapshots])
    assert [o['epoch'] for o in snapshots.kept] == [1, 3] and [o.name for o in snapshots.files] == ['snapshot_01.safetensors', 'snapshot_02.safetensors']
    assert equal(load_file(snapshots.files[0]), watch.seen[3]) and equal(load_file(snapshots.files[1]), watch.seen[5]) and equal(weights(learn), watch.seen[5])
    learn.add_cb(snapshots)
    learn.validate(); learn.lr_find(num_it=4, show_plot=False); predict(learn)
    assert len(snapshots.kept) == 2 == len(list((tmp_path/'s').iterdir()))
    learn.fit(2, 1e-3)  # a further training goes on
    assert [o.name for o in snapshots.files][2:] == ['snapshot_03.safetensors', 'snapshot_04.safetensors']
    with pytest.raises(FileExistsError, match='snapshots of another training, such as snapshot_01'): digit_learner(digits).fit(2, 1e-3, cbs=Snapshots(tmp_path/'s', cycles=1))


@pytest.mark.parametrize('fail,order', [(0, 999), (1, 999), (1, 1001), (2, 1001), (3, 999)])
def test_resumed_is_the_same(digits, tmp_path, fail, order):
    "Killed after a snapshot is written and before the checkpoint is (999), or after both (1001)"
    def train(folder, cbs, **kwargs):
        learn, snapshots = digit_learner(digits, augment='no_flip'), Snapshots(tmp_path/folder/'s', cycles=2)
        fine_tune(learn, 4, freeze_epochs=0, checkpoint_dir=tmp_path/folder/'state', cbs=[*cbs, ParamScheduler({'lr': cosine_decay(1e-2, cycles=2)}), snapshots], **kwargs)
        return snapshots
    whole = train('whole', [])
    with pytest.raises(RuntimeError, match='killed'): train('cut', [Watch(fail, order)])
    again = train('cut', [Watch()], resume=True)
    assert again.kept == whole.kept and [o.read_bytes() for o in again.files] == [o.read_bytes() for o in whole.files] and len(list((tmp_path/'cut/s').iterdir())) == 2


def test_state_that_does_not_fit(tmp_path):
    state = dict(cycles=2, growth=1., kept=[dict(epoch=1, file='snapshot_01.safetensors')])
    with pytest.raises(ValueError, match='begun with cycles=2, and cycles is 3 here'): Snapshots(tmp_path, cycles=3).load_state_dict(state)
    with pytest.raises(FileNotFoundError, match='is gone'): Snapshots(tmp_path, cycles=2).load_state_dict(state)


@pytest.mark.parametrize('kwargs,error,text', [(dict(cycles=0), ValueError, '`cycles`'), (dict(cycles=1.5), ValueError, '`cycles`'), (dict(growth=0), ValueError, '`growth`')])
def test_snapshots_refused(tmp_path, kwargs, error, text):
    with pytest.raises(error, match=text): Snapshots(tmp_path, **kwargs)


def test_predict_snapshots(digits, tmp_path):
    learn, snapshots, best = digit_learner(digits), Snapshots(tmp_path/'s', cycles=3), BestCheckpoint(tmp_path/'best', k=2)
    learn.fit(3, 1e-2, cbs=[snapshots, best])
    other, wanted = digit_learner(digits, seed=2), []
    before, start = weights(other), predict(other)
    for o in snapshots.files:
        learn.model.load_state_dict(load_file(o))
        wanted.append(predict(learn))
    for source in (snapshots, tmp_path/'s', str(tmp_path/'s'), snapshots.files, [str(o) for o in snapshots.files]):
        assert all(same(*o) for o in zip(predict_snapshots(other, source), wanted, strict=True))
    assert equal(weights(other), before) and same(predict(other), start)
    assert len(predict_snapshots(other, tmp_path/'best', 'train', bs=5)) == 2 and len(predict_snapshots(other, snapshots.files[0])) == 1
    learn.model.load_state_dict(load_file(snapshots.files[1]))
    looks = average_predictions(predict_views(learn, views='five_crop'))
    assert np.array_equal(predict_snapshots(other, snapshots, views='five_crop')[1].probs, looks.probs)


def test_files_that_are_no_snapshots(digits, tmp_path):
    learn = digit_learner(digits)
    before = weights(learn)
    learn_b = digit_learner(digits, body=nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU()))
    save_file({k: v.contiguous() for k, v in before.items()}, tmp_path/'good.safetensors')
    save_file({k: v.contiguous() for k, v in weights(learn_b).items()}, tmp_path/'other.safetensors')
    (tmp_path/'broken.safetensors').write_bytes(b'nonsense')
    (tmp_path/'empty').mkdir()
    for files, error, text in ((['good', 'other'], DataError, 'weights of another network: they differ in '), (['good', 'broken'], DataError, "isn't a file of weights"),
                               (['good', 'none'], FileNotFoundError, 'there is no file'), ([], ValueError, 'there are no snapshots')):
        with pytest.raises(error, match=text): predict_snapshots(learn, [tmp_path/f'{o}.safetensors' for o in files])
        assert equal(weights(learn), before)
    with pytest.raises(ValueError, match='there are no snapshots in'): predict_snapshots(learn, tmp_path/'empty')
    with pytest.raises(ValueError, match='train with `Snapshots` first'): predict_snapshots(learn, Snapshots(tmp_path/'x'))
    with pytest.raises(TypeError, match='must be a `Snapshots`'): predict_snapshots(learn, None)
    with pytest.raises(ValueError, match="`split` must be one of"): predict_snapshots(learn, [tmp_path/'good.safetensors'], 'val')
    assert equal(weights(learn), before)
