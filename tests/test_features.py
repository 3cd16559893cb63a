"""Features: the body's own vectors in the table's order, the same bits after a kill and with any number of workers; estimators and heads."""
import numpy as np
import pytest
import torch
from fastai.callback import progress as _progress  # noqa: F401 - gives `Learner` its no_bar
from fastai.learner import Learner
from fastai.torch_core import TensorImage, set_seed
from fasttransform import Transform
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from torch import nn

from imgcls.core import DataError
from imgcls.data.loaders import image_loaders, split_loader
from imgcls.data.samples import sample
from imgcls.data.tables import image_table
from imgcls.models.pretrained import Body, image_model, layer_groups
from imgcls.train.features import extract_features, fit_features, predict_features, weights_hash, why_not_cached
from imgcls.train.heads import to_head
from imgcls.train.learner import fine_tune, image_learner, predict
from imgcls.train.surgery import GradualUnfreezing
from imgcls.train.vectors import Features


def tiny_net(): return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU())


@pytest.fixture(scope='module')
def table():
    table = image_table(sample('digits')).groupby(['label', 'split']).head(6).copy()
    table.loc[table.index[::9], 'split'] = 'test'
    return table


def loaders(table, **kwargs): return image_loaders(table, **(dict(size=16, bs=8, augment='no_flip', num_workers=0, check=None) | kwargs))


@pytest.fixture(scope='module')
def dls(table): return loaders(table)


@pytest.fixture(scope='module')
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return image_model(tiny_net(), 10)


@pytest.fixture(scope='module')
def features(model, dls): return extract_features(model, dls, augment_views=2, pool='concat')


def flat_pixels(dls):
    "Features that are the pixels themselves: a body that does nothing"
    return extract_features(nn.Identity(), dls, pool='flatten')


# --- What comes out ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('pool', ['avg', 'max', 'concat', 'flatten'])
def test_vectors_are_the_bodys_own(model, dls, pool):
    found = extract_features(model, dls, pool=pool, bs=7, compute='fp32')
    body = model[0].eval()
    for split in ('train', 'valid', 'test'):
        x = torch.cat([x.as_subclass(torch.Tensor) for x, _ in split_loader(dls, split)])
        with torch.no_grad(): out = body(x)
        mean, top = out.mean((2, 3)), out.amax((2, 3))
        want = dict(avg=mean, max=top, concat=torch.cat([top, mean], 1), flatten=out.reshape(len(out), -1))[pool]
        np.testing.assert_allclose(found[split].vectors, want, atol=1e-5)


def test_order_targets_and_items(features, dls, table):
    first = features[features.views == 0]
    assert first.items.tolist() == table['path'].tolist() and first.splits.tolist() == table['split'].tolist()
    assert first.labels.tolist() == table['label'].tolist() and first.vocab == list(dls.vocab)
    second = features[features.views == 1]
    assert second.items.tolist() == table.loc[table['split'] == 'train', 'path'].tolist() and set(second.splits) == {'train'}
    assert (features.root/features.items[0]).is_file()


def test_rows_with_an_error_are_left_out(model, table):
    broken = table.copy()
    broken.loc[broken.index[3], 'error'] = 'truncated'
    found = extract_features(model, loaders(broken))
    assert len(found) == len(table) - 1 and table['path'].iloc[3] not in found.items


def test_splits(model, dls, features):
    assert set(extract_features(model, dls, splits='test').splits) == {'test'}
    some = extract_features(model, dls, splits=('valid', 'test'), pool='concat')
    np.testing.assert_allclose(some.vectors, features[['valid', 'test']].vectors, atol=1e-5)


def test_nothing_is_left_behind(model, dls):
    model.train()
    model[0].net[1].eval()
    modes, before = [m.training for m in model.modules()], [(v.clone(), v.stride()) for v in model.state_dict().values()]
    random = torch.get_rng_state(), np.random.get_state()[1].copy(), dls.train.rng.getstate()
    extract_features(model, dls, compute='auto', augment_views=2)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(a, v) and s == v.stride() for (a, s), v in zip(before, model.state_dict().values()))
    assert torch.equal(random[0], torch.get_rng_state()) and (random[1] == np.random.get_state()[1]).all() and random[2] == dls.train.rng.getstate()
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks
    model[0](torch.zeros(2, 3, 16, 16)).sum().backward()  # still trainable: nothing became an inference tensor
    model.zero_grad(set_to_none=True)
    model.eval()


def test_bodies(model, dls, features):
    learn = image_learner(dls, tiny_net(), compute='fp32')
    learn.model[0].load_state_dict(model[0].state_dict())
    for body in (learn, model, model[0]):
        found = extract_features(body, dls, pool='concat', compute='fp32')
        np.testing.assert_allclose(found.vectors, features[features.views == 0].vectors, atol=1e-5)
    with pytest.raises(ValueError, match='must give a map'): extract_features(nn.Flatten(0), dls)
    vectors = extract_features(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), dls, pool='max')
    assert vectors.vectors.shape[1] == 5 and vectors.provenance['pool'] is None


def test_from_a_table(model, table, features):
    found = extract_features(model, table, size=16, augment='no_flip', check=None, pool='concat', augment_views=2, num_workers=0)
    np.testing.assert_allclose(found.vectors, features.vectors, atol=1e-5)
    assert found.provenance['pictures'] == features.provenance['pictures']


def test_several_labels(model, table):
    several = table.copy()
    several['label'] = [('even',) if int(o) % 2 == 0 else ('big', 'odd') if int(o) > 4 else () for o in several['label']]
    found = extract_features(model, loaders(several), pool='flatten')
    assert found.targets.shape == (len(table), 3) and set(found.labels) == {'even', 'big|odd', ''}
    for estimator in (RandomForestClassifier(20), KNeighborsClassifier(3), MLPClassifier((8,), max_iter=20), OneVsRestClassifier(LinearSVC()), RidgeClassifier()):
        preds = predict_features(fit_features(found, estimator), found)
        assert preds.multi_label and preds.probs.shape == (len(found['valid']), 3)


# --- Views ---------------------------------------------------------------------------------------------------------
def test_views_do_not_depend_on_workers(dls, table):
    "A body that does nothing gives the pictures themselves"
    a = extract_features(nn.Identity(), dls, pool='flatten', augment_views=3, bs=8, num_workers=0)
    b = extract_features(nn.Identity(), dls, pool='flatten', augment_views=3, bs=8, num_workers=2)
    assert np.array_equal(a.vectors, b.vectors) and np.array_equal(a.items, b.items)
    part = loaders(table[table['label'].isin(['0', '1'])])
    c = extract_features(nn.Identity(), part, pool='flatten', augment_views=3)
    kept = a[np.isin(a.items, c.items)]
    plain = c.views == 0  # which the rest of the batch does not change
    assert np.array_equal(kept.vectors[kept.views == 0], c.vectors[plain])


def test_views_differ(dls):
    a = extract_features(nn.Identity(), dls, pool='flatten', augment_views=2, plain_view=False, splits='train')
    b = extract_features(nn.Identity(), dls, pool='flatten', augment_views=2, plain_view=False, splits='train', seed=7)
    one, two = (a[a.views == i].vectors for i in (1, 2))
    assert (np.abs(one - two).max(1) > 0.01).all() and (np.abs(a.vectors - b.vectors).max(1) > 0.01).all()


@pytest.mark.parametrize('augment', ['trivial', 'any_way_up', 'standard'])
def test_every_preset(table, augment):
    a, b = (extract_features(nn.Identity(), loaders(table, augment=augment), pool='flatten', augment_views=2, splits='train', num_workers=n) for n in (0, 2))
    assert np.array_equal(a.vectors, b.vectors)


# --- On disk -------------------------------------------------------------------------------------------------------
def break_after(body, n):
    "The body fails at its batch number `n`; single pictures find out the shapes and don't count"
    calls = []
    def count(_, x):
        calls.extend([1] * (len(x[0]) > 1))
        if len(calls) == n: raise KeyboardInterrupt
    return body.register_forward_pre_hook(count)


@pytest.mark.parametrize('name', ['folder', 'file.h5'])
def test_goes_on_after_a_kill(model, dls, features, tmp_path, name):
    options = dict(path=tmp_path/name, pool='concat', augment_views=2)
    hook = break_after(model[0], 2)
    with pytest.raises(KeyboardInterrupt): extract_features(model, dls, bs=32, **options)
    hook.remove()
    with pytest.raises(DataError, match="isn't complete: it has 32 of"): Features.load(tmp_path/name)
    with pytest.raises(DataError, match='bs is 32 there and 16 here'): extract_features(model, dls, bs=16, **options)
    seen = []
    hook = model[0].register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    found = extract_features(model, dls, bs=32, **options)
    hook.remove()
    assert sum(o for o in seen if o > 1) == len(features) - 32
    whole = extract_features(model, dls, bs=32, pool='concat', augment_views=2)
    assert np.array_equal(found.vectors, whole.vectors) and isinstance(found.vectors, np.memmap)
    assert found.provenance == whole.provenance and found.labels.tolist() == whole.labels.tolist() and found.root == whole.root
    assert [o.name for o in tmp_path.iterdir()] == [name]
    with pytest.raises(ValueError, match='read-only'): found.vectors[0] = 0


def test_opens_what_is_there(model, dls, tmp_path):
    a = extract_features(model, dls, path=tmp_path/'a')
    hook = break_after(model[0], 1)
    b = extract_features(model, dls, path=tmp_path/'a', num_workers=2)
    hook.remove()
    assert np.array_equal(a.vectors, b.vectors)


@pytest.mark.parametrize('change', ['weights', 'table', 'seed', 'augment', 'size'])
def test_another_provenance_is_refused(table, dls, tmp_path, change):
    model = image_model(tiny_net(), 10)
    extract_features(model, dls, path=tmp_path/'a', augment_views=2)
    other, seed = dls, 42
    if change == 'weights': model[0].net[0].weight.data[0] += 1
    elif change == 'table': other = loaders(table.iloc[1:])
    elif change == 'augment': other = loaders(table, augment='standard')
    elif change == 'size': other = loaders(table, size=24)
    else: seed = 43
    with pytest.raises(DataError, match='has other features'): extract_features(model, other, path=tmp_path/'a', augment_views=2, seed=seed)


def test_save_and_load(features, tmp_path):
    for name in ('folder', 'one.hdf5'):
        found = Features.load(features.save(tmp_path/name))
        for k in ('vectors', 'targets', 'items', 'splits', 'views'): assert np.array_equal(getattr(found, k), getattr(features, k)), k
        assert found.provenance == features.provenance and found.vocab == features.vocab and found.root == features.root
        with pytest.raises(FileExistsError): features.save(tmp_path/name)


def test_hdf5_is_plain(features, tmp_path):
    import h5py
    with h5py.File(features.save(tmp_path/'a.h5'), 'r') as h5:
        assert np.array_equal(h5['vectors'][:], features.vectors) and h5['items'].asstr()[0] == features.items[0]
    with h5py.File(tmp_path/'a.h5', 'r') as h5, h5py.File(tmp_path/'b.h5', 'w') as new:  # packed anew by another program
        for k in h5: new.create_dataset(k, data=h5[k][()], dtype=h5[k].dtype, **(dict(compression='gzip') if k == 'vectors' else {}))
    assert np.array_equal(Features.load(tmp_path/'b.h5').vectors, features.vectors)


def test_float16(model, dls, features):
    half = extract_features(model, dls, augment_views=2, pool='concat', dtype='float16')
    assert half.vectors.dtype == np.float16
    np.testing.assert_allclose(half.vectors.astype('float32'), features.vectors, rtol=2**-10, atol=1e-4)
    with torch.no_grad():
        model[0].net[4].bias += 1e6
        with pytest.raises(DataError, match='are not finite float16 numbers'): extract_features(model, dls, dtype='float16')
        model[0].net[4].bias -= 1e6


def test_not_ours(tmp_path, model, dls):
    (tmp_path/'a').mkdir()
    (tmp_path/'b.h5').write_text('hello')
    for name in ('a', 'b.h5'):
        with pytest.raises(DataError, match="can't be read as features"): Features.load(tmp_path/name)
        with pytest.raises(DataError, match="can't be read as features"): extract_features(model, dls, path=tmp_path/name)


# --- Estimators ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def pixels(dls): return flat_pixels(dls)


@pytest.mark.parametrize('estimator', [LogisticRegression(C=0.1), RandomForestClassifier(50, random_state=0), SVC(break_ties=True), LinearSVC(),
                                       KNeighborsClassifier(3), MLPClassifier((16,), max_iter=50, random_state=0), RidgeClassifier(),
                                       make_pipeline(StandardScaler(), LogisticRegression(C=0.1))], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize('n_classes', [2, 10])
def test_estimators(pixels, estimator, n_classes):
    part = pixels[pixels.targets < n_classes]
    assert fit_features(part, estimator) is estimator
    preds = predict_features(estimator, part, split=('valid', 'test'))
    assert preds.labels.tolist() == estimator.predict(part[['valid', 'test']].vectors).tolist()
    assert preds.probs.shape[1] == 10 and preds.probs[:, n_classes:].sum() == 0
    assert preds.items.tolist() == part[['valid', 'test']].items.tolist()


def test_one_view_a_photo(features):
    model = fit_features(features, LogisticRegression(max_iter=2000))
    assert len(predict_features(model, features, split='train')) == ((features.splits == 'train') & (features.views == 0)).sum()
    with pytest.raises(DataError, match='augmented views only'): predict_features(model, features[features.views > 0], split='train')


def test_estimator_that_was_fitted_by_hand(pixels):
    train = pixels['train']
    by_name, by_number = LogisticRegression().fit(train.vectors, train.labels), LogisticRegression().fit(train.vectors, train.targets)
    np.testing.assert_allclose(predict_features(by_name, pixels).probs, predict_features(by_number, pixels).probs, atol=1e-3)


def test_estimator_refusals(pixels, features):
    model = fit_features(pixels, SVC(decision_function_shape='ovo'))
    with pytest.raises(DataError, match='knows 10 classes and gives 45 scores'): predict_features(model, pixels)
    with pytest.raises(DataError, match='fitted to other features'): predict_features(model, features)
    strange = Features(pixels.vectors, pixels.targets % 2, ['a', 'b'], items=pixels.items, splits=pixels.splits)
    with pytest.raises(DataError, match='classes that the features lack: 0, 1, 2'): predict_features(fit_features(pixels, LogisticRegression()), strange)


# --- Heads ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('pool', ['avg', 'max', 'concat', 'flatten'])
@pytest.mark.parametrize('scaler', [[], [StandardScaler()], [StandardScaler(with_mean=False)], [StandardScaler(with_std=False)], [StandardScaler(), StandardScaler()]], ids=len)
@pytest.mark.parametrize('n_classes', [2, 7, 10])
def test_head_gives_the_same_probabilities(model, features, pool, scaler, n_classes):
    rng = np.random.default_rng(0)
    maps = torch.tensor(rng.normal(3, 5, (60, 6, 3, 3)), dtype=torch.float32)
    vectors = dict(avg=maps.mean((2, 3)), max=maps.amax((2, 3)), concat=torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1), flatten=maps.flatten(1))[pool]
    some = Features(vectors.numpy(), rng.integers(0, n_classes, 60), list('abcdefghij'), items=list(map(str, range(60))), splits=['train'] * 60, provenance=dict(pool=pool))
    estimator = fit_features(some, make_pipeline(*scaler, LogisticRegression(max_iter=200)))
    with torch.no_grad(): probs = to_head(estimator)(maps).softmax(1)
    np.testing.assert_allclose(probs, _probs(estimator, some), atol=1e-4)


def _probs(estimator, some):
    res = np.zeros((len(some), len(some.vocab)))
    res[:, [some.vocab.index(o) for o in estimator.classes_]] = estimator.predict_proba(some.vectors)
    return res


def test_head_on_a_learner_trains_on(table):
    dls = loaders(table)
    learn = image_learner(dls, 'timm/resnet18', pretrained=False, compute='fp32')
    learn.freeze()
    features = extract_features(learn, dls)
    estimator = fit_features(features, make_pipeline(StandardScaler(), LogisticRegression(C=0.1)))
    groups = [len(o) for o in layer_groups(learn.model)]
    to_head(estimator, learn=learn)
    assert [len(o) for o in layer_groups(learn.model)][:-1] == groups[:-1] and len(layer_groups(learn.model)[-1]) == 2
    assert learn.opt.frozen_idx == len(groups) - 1 and not any(p.requires_grad for p in learn.model[0].net.conv1.parameters())
    with learn.no_bar():
        _, accuracy = learn.validate()
        valid = predict_features(estimator, features)
        assert accuracy == pytest.approx(valid.correct.mean(), abs=1e-6)
        np.testing.assert_allclose(predict(learn).probs, valid.probs, atol=1e-4)  # and not the losses: where a probability is 0 in float32, a log has no digits
        before = learn.model[1][-1].weight.clone()
        fine_tune(learn, 1, freeze_epochs=1, lr=1e-3)
    assert not torch.equal(before, learn.model[1][-1].weight)
    with pytest.raises(DataError, match='another body, or the body was trained since'): to_head(estimator, learn=learn)


def test_head_refusals(features, model, dls, table):
    with pytest.raises(TypeError, match='got KNeighborsClassifier'): to_head(fit_features(features, KNeighborsClassifier()))
    with pytest.raises(TypeError, match='got Normalizer \\+ LogisticRegression'):
        from sklearn.preprocessing import Normalizer
        to_head(fit_features(features, make_pipeline(Normalizer(), LogisticRegression())))
    with pytest.raises(TypeError, match='must be fitted by `fit_features`'): to_head(LogisticRegression())
    estimator = fit_features(features, LogisticRegression(max_iter=500))
    other = Learner(loaders(table[table['label'].isin(['0', '1'])]), image_model(tiny_net(), 2), splitter=layer_groups)
    with pytest.raises(DataError, match='the learner has the classes 0, 1, and the estimator 0, 1, 2'): to_head(estimator, learn=other)


@pytest.mark.parametrize('activation', ['relu', 'tanh'])
@pytest.mark.parametrize('n_classes', [2, 5])
def test_small_network_as_head(n_classes, activation):
    rng = np.random.default_rng(0)
    maps = torch.tensor(rng.normal(3, 5, (80, 6, 3, 3)), dtype=torch.float32)
    some = Features(maps.mean((2, 3)).numpy(), rng.integers(0, n_classes, 80), list('abcde'[:n_classes]), items=list(map(str, range(80))), splits=['train'] * 80, provenance=dict(pool='avg'))
    estimator = fit_features(some, make_pipeline(StandardScaler(), MLPClassifier((7, 4), activation=activation, max_iter=30, random_state=0)))
    if activation == 'tanh':
        with pytest.raises(ValueError, match="activation='tanh'"): to_head(estimator)
        return
    with torch.no_grad(): probs = to_head(estimator)(maps).softmax(1)
    np.testing.assert_allclose(probs, _probs(estimator, some), atol=1e-5)


def test_head_of_flat_features_is_saved(table, tmp_path):
    from imgcls.deploy.bundle import save_bundle
    from imgcls.deploy.predictor import load_bundle
    learn = image_learner(loaders(table), 'timm/resnet18', pretrained=False, compute='fp32')
    features = extract_features(learn, learn.dls, pool='flatten')
    estimator = fit_features(features, LogisticRegression(C=0.1, max_iter=500))
    to_head(estimator, learn=learn)
    assert learn.model.config['pool'] == 'flatten' and learn.model.config['size'] == learn.dls.size
    preds = load_bundle(save_bundle(learn, tmp_path/'b'), compute='fp32').predictions(table[table['split'] == 'valid'])
    np.testing.assert_allclose(preds.probs, predict_features(estimator, features).probs, atol=1e-4)


# --- Training a head on features -----------------------------------------------------------------------------------
@pytest.mark.parametrize('pool', ['avg', 'concat', 'flatten'])
def test_the_head_learns_what_it_would_learn_on_the_same_pictures(table, pool):
    "Without augmentation and without dropout a frozen body makes the same features each time, so photos and features give the same head"
    heads, losses = [], []
    for cached in (False, 1):
        set_seed(3)
        dls = image_loaders(table, size=24, presize=24, method='squish', augment='none', bs=8, num_workers=0, seed=1)
        learn = image_learner(dls, tiny_net(), normalize=((0.5,)*3, (0.5,)*3), compute='fp32', bn_eval=True, dropout=0., pool=pool)
        body = weights_hash(learn.model[0])
        with learn.no_bar(), learn.no_logging(): fine_tune(learn, 0, freeze_epochs=3, lr=1e-2, cached=cached)
        assert weights_hash(learn.model[0]) == body
        heads.append(torch.cat([p.detach().flatten() for p in learn.model[1].parameters()]))
        losses.append([o['valid_loss'] for o in learn.history])
        assert learn.dls is dls and 'forward' not in vars(learn.model[0])
    np.testing.assert_allclose(*heads, atol=2e-4)
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_cached_stage_with_balance_and_accumulation(table):
    dls = loaders(table, balance='sampling')
    learn = image_learner(dls, 'timm/resnet18', pretrained=False, compute='fp32', bn_eval=True)
    learn.freeze()
    with learn.no_bar(), learn.no_logging(): fine_tune(learn, 0, freeze_epochs=2, cached=2, bs=4)
    assert dls.train.bs != 4 and np.isfinite([o['train_loss'] for o in learn.history]).all()


def test_why_not_cached(table, caplog):
    from fastai.callback.core import Callback
    from fastai.callback.mixup import MixUp
    dls = loaders(table)
    learn = image_learner(dls, 'timm/resnet18', pretrained=False, compute='fp32', bn_eval=True)
    assert why_not_cached(learn) == ''
    assert 'mix_up' in why_not_cached(learn, cbs=MixUp()) and 'callback' in why_not_cached(learn, cbs=[Callback()])
    assert 'train the body: gradual_unfreezing' in why_not_cached(learn, cbs=[GradualUnfreezing()])
    assert 'GiB' in why_not_cached(learn, 10**6)
    assert 'evaluation mode' in why_not_cached(image_learner(dls, 'timm/resnet18', pretrained=False, compute='fp32', bn_eval=False))
    assert 'image_learner' in why_not_cached(Learner(dls, learn.model))
    with learn.removed_cbs(learn.cbs[:0]):
        learn.train_bn = True
        assert 'train_bn' in why_not_cached(learn)
        learn.train_bn = False
    learn.splitter = lambda m: [list(m.parameters())]
    assert 'a part of the body is trained' in why_not_cached(learn)
    learn.splitter = layer_groups
    head, learn.model[1] = learn.model[1], torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(512, 3))
    assert 'image_head' in why_not_cached(learn)
    learn.model[1] = head
    class Mine(Transform):
        split_idx = 0
        def encodes(self, x: TensorImage): return x
    def mine(x): return x
    class Called:
        def __call__(self, x): return x
    for o, name in ((Transform(mine), 'mine'), (Transform(Called()), 'Called')):
        dls.train.after_batch.add(o)
        assert why_not_cached(learn).startswith('transforms of your own: ') and why_not_cached(learn).endswith(name)
        dls.train.after_batch.fs.remove(o)
    dls.train.after_batch.add(Mine())
    assert why_not_cached(learn) == 'transforms of your own: Mine'
    with caplog.at_level('INFO', 'imgcls'), learn.no_bar(), learn.no_logging(): fine_tune(learn, 0, freeze_epochs=2)
    assert 'the head is trained on the photos: transforms of your own: Mine' in caplog.text


def test_repr(features):
    assert repr(features).startswith(f'Features: {len(features)} rows × 24 float32, concat of') and 'views 0 to 1 of train' in repr(features)
    assert 'no rows' in repr(features[[]]) and 'Features: 1 rows' in repr(features[3])
    assert isinstance(Body, type)
