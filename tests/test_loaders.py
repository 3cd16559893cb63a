"""Loaders: the same batches whoever decodes, errors that name file and step, balance, several labels, caches, and processes."""
import copy, logging, multiprocessing, random, shutil, traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from fastai.torch_core import set_seed
from fasttransform import Transform
from torch import nn

from imgcls.core import DataError
from imgcls.data import loaders as module
from imgcls.data.audit import exact_duplicates
from imgcls.data.augment import PRESETS, RandTransform
from imgcls.data.loaders import ImageDL, effective_counts, image_block, image_loaders, split_loader
from imgcls.data.samples import sample
from imgcls.data.tables import image_table
from imgcls.deploy.bundle import save_bundle
from imgcls.deploy.schema import read_config
from imgcls.images import ImageError, fit_short_side, open_image
from imgcls.train.learner import fine_tune, image_learner, predict


@pytest.fixture(scope='module')
def whole(): return image_table(sample('digits'))


@pytest.fixture(scope='module')
def table(whole): return whole.groupby(['label', 'split']).head(6)


@pytest.fixture
def photos(tmp_path, whole):
    "A table over a copy of some digits, which may be damaged"
    few = whole.groupby(['label', 'split']).head(4)
    for o in few['path']:
        (tmp_path/o).parent.mkdir(exist_ok=True)
        shutil.copy(Path(whole.attrs['root'])/o, tmp_path/o)
    few = few.reset_index(drop=True)
    few.attrs['root'] = str(tmp_path)
    return few


def make(table, **kwargs): return image_loaders(table, **dict(dict(size=32, bs=16, num_workers=0, augment='no_flip'), **kwargs))


def net(n=16): return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, n, 3, 2), nn.ReLU())


def parts(label): return tuple(k for k, digits in dict(even='02468', loop='0689', one='1').items() if label in digits)


def quiet(learn): return learn.no_bar()


# --- The same batches ----------------------------------------------------------------------------------------------
def epochs(table, n=2, **kwargs):
    set_seed(5)
    dls = make(table, **kwargs)
    set_seed(6)
    return [(x.cpu(), y.cpu()) for _ in range(n) for x, y in dls.train]

@pytest.mark.parametrize('balance', [None, 'sampling'])
@pytest.mark.parametrize('augment', PRESETS)
def test_same_batches_for_any_number_of_workers(table, augment, balance):
    "Pixels too, whatever is left to chance; batch transforms draw from torch's numbers, which the seed of the user sets"
    alone = epochs(table, augment=augment, balance=balance)
    for workers in (1, 2, 3):
        other = epochs(table, augment=augment, balance=balance, num_workers=workers)
        assert len(alone) == len(other) and all(torch.equal(a, b) for p, q in zip(alone, other) for a, b in zip(p, q))
    if augment in ('standard', 'trivial'):
        n = len(alone) // 2
        assert not torch.equal(alone[0][0], alone[n][0]), 'each epoch is another one'


def test_seed_decides(table):
    order = [[y.tolist() for _, y in make(table, seed=seed).train] for seed in (1, 1, 2)]
    assert order[0] == order[1] != order[2]


def test_training_takes_no_random_numbers_of_others(table):
    "Items have their own; so what is drawn outside doesn't depend on how many processes decode"
    after = []
    for workers in (0, 2):
        dls = make(table, augment='trivial', num_workers=workers)
        set_seed(3)
        for _ in dls.train: pass
        after.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert after[0] == after[1]


def test_same_weights_for_any_number_of_workers(table):
    ends = []
    for workers in (0, 2):
        set_seed(1, reproducible=True)
        learn = image_learner(make(table, num_workers=workers, augment='standard', balance='sampling'), net(), compute='fp32')
        with quiet(learn), learn.no_logging(): learn.fit(2, 1e-2)
        ends.append(torch.cat([p.detach().flatten() for p in learn.model.parameters()]))
    assert torch.equal(*ends)


def test_the_same_image_drawn_twice_is_cut_twice(table):
    dls = make(table, augment='trivial', balance='sampling')
    weights = np.zeros(len(dls.train_ds))
    weights[3] = 1
    dls.train.weights = weights
    x, y = dls.train.one_batch()
    assert len(set(y.tolist())) == 1 and len({o.numpy().tobytes() for o in x}) > 5


# --- Errors in the making of an item -------------------------------------------------------------------------------
def failing(x:torch.Tensor): raise ZeroDivisionError('a mistake\nof ours')

class Narrow(RandTransform):
    "Fails on dark pictures only"
    order = 3
    def encodes(self, x:module.PILImage): raise KeyError('no such thing')

@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('reason,harm', [('missing', lambda o: o.unlink()), ('empty', lambda o: o.write_bytes(b'')), ('not an image', lambda o: o.write_text('<html>')),
                                         ('truncated', lambda o: o.write_bytes(o.read_bytes()[:60]))])
def test_a_file_that_fails_is_named(photos, workers, reason, harm):
    dls = make(photos, num_workers=workers, bs=4)
    file = dls.train_ds.items['path'].iloc[-3]
    harm(Path(photos.attrs['root'])/file)
    learn = image_learner(dls, net(), compute='fp32')
    for call in (lambda: list(dls.train), lambda: learn.fit(1), lambda: [dls.train.one_batch() for _ in range(100)], lambda: [dls.show_batch() for _ in range(100)]):
        with quiet(learn), learn.no_logging(), pytest.raises(DataError) as e: call()
        assert str(e.value).startswith(f'`{file}` fails in the step `OpenImage`: {reason}') and '\n' not in str(e.value)
        assert 'Make the table again' in str(e.value)
        assert 'ImageError' in repr(e.value.__cause__) or 'ImageError' in str(e.value.__cause__), 'the cause is kept, with its traceback'


@pytest.mark.parametrize('workers', [0, 2])
def test_a_step_that_fails_is_named(photos, workers):
    dls = make(photos, num_workers=workers, bs=4)
    dls.valid.after_item.add(Transform(failing))
    files = dls.valid_ds.items['path']
    with pytest.raises(DataError) as e: list(dls.valid)
    assert str(e.value) == f'`{files.iloc[0]}` fails in the step `failing`: ZeroDivisionError: a mistake of ours.'
    dls.train.after_item.add(Narrow())
    with pytest.raises(DataError, match=r"fails in the step `Narrow`: KeyError: 'no such thing'"): list(dls.train)


def test_validation_and_prediction_name_it_too(photos):
    dls = make(photos)
    learn = image_learner(dls, net(), compute='fp32')
    file = dls.valid_ds.items['path'].iloc[2]
    with quiet(learn), learn.no_logging():
        learn.fit(1)
        (Path(photos.attrs['root'])/file).unlink()
        for call in (learn.validate, lambda: predict(learn), lambda: learn.fit(1)):
            with pytest.raises(DataError, match=f'`{file}` fails in the step `OpenImage`: missing'): call()


@pytest.mark.parametrize('where', [0, 1])
def test_the_first_file_fails_while_the_loaders_are_made(photos, capsys, where):
    "fastai tries the first item when pipelines are set up, and would print that it could not do one pass"
    rows = photos[photos.split == 'train']
    if where: photos = photos.drop(rows.index[1:3])
    (Path(photos.attrs['root'])/rows['path'].iloc[0]).unlink()
    with pytest.raises(DataError, match=f"`{rows['path'].iloc[0]}` fails in the step `OpenImage`: missing"): make(photos, check=None)
    assert capsys.readouterr().out == ''


def test_an_error_in_the_first_pass_prints_nothing(photos, capsys):
    block = image_block(photos, size=32, augment='none')
    block.item_tfms.append(Transform(failing))
    with pytest.raises(DataError, match='fails in the step `failing`'): block.dataloaders(photos, bs=4, num_workers=0)
    assert capsys.readouterr().out == ''


def test_an_unknown_label_is_named(photos):
    dls = make(photos)
    ds = dls.test_dl(photos.assign(label='x'), with_labels=True)
    with pytest.raises(DataError, match=r'fails in the step `Categorize`: KeyError'): list(ds)


def test_interruptions_and_other_errors_pass(photos):
    dls = make(photos, num_workers=0)
    def stop(x:torch.Tensor): raise KeyboardInterrupt
    dls.train.after_item.add(Transform(stop))
    with pytest.raises(KeyboardInterrupt): list(dls.train)


def test_errors_of_a_batch_are_left_alone(photos):
    def odd(x): raise RuntimeError('on the batch')
    with pytest.raises(RuntimeError, match='^on the batch'): make(photos, augment=[lambda b, split_idx: odd(b)]).train.one_batch()


def test_the_traceback_leads_to_the_place(photos):
    dls = make(photos, num_workers=2, bs=4)
    for o in photos['path']: (Path(photos.attrs['root'])/o).unlink()
    with pytest.raises(DataError) as e: list(dls.train)
    assert 'open_image' in ''.join(traceback.format_exception(e.value))


# --- Balance -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def unequal(whole):
    keep = dict(zip('0123', (60, 30, 12, 6)))
    return whole[whole.label.isin(list(keep)) & ((whole.split == 'valid') | (whole.groupby(['label', 'split']).cumcount() < whole.label.map(keep).fillna(0)))]


def test_sampling_draws_what_it_says(unequal):
    dls = make(unequal, balance='sampling', augment='none', size=16)
    found = effective_counts(dls)
    assert found.index.tolist() == list('0123') and found.images.tolist() == [60, 30, 12, 6]
    n = len(dls.train) * 16
    assert np.allclose(found.drawn, n / 4) and found.weight.eq(1).all() and (found.different <= found.images).all()
    draws = np.array([dls.train.get_idxs() for _ in range(400)])
    labels = dls.train_ds.items['label'].to_numpy()
    mean = pd.Series(labels[draws.ravel()]).value_counts().sort_index() / len(draws)
    assert draws.shape[1] == 108 and np.allclose(mean, 27, rtol=0.05)
    different = [np.mean([len(set(d[labels[d] == c])) for d in draws]) for c in '0123']
    assert np.allclose(different, found.different, rtol=0.03)


def test_without_balance_everything_counts_once(unequal):
    found = effective_counts(make(unequal, bs=27))
    assert found.drawn.tolist() == pytest.approx([60, 30, 12, 6]) and found.different.tolist() == found.drawn.tolist() and found.weight.eq(1).all()
    assert effective_counts(make(unequal, bs=100)).drawn.sum() == pytest.approx(100)  # fastai leaves the last, smaller batch out
    assert make(unequal).train.weights is None and make(unequal).class_weights is None


def test_weights_of_the_loss_are_those_of_scikit_learn(unequal):
    from sklearn.utils.class_weight import compute_class_weight
    dls = make(unequal, balance='loss')
    labels = dls.train_ds.items['label'].to_numpy()
    assert np.allclose(dls.class_weights, compute_class_weight('balanced', classes=np.array(list('0123')), y=labels))
    assert np.allclose(effective_counts(dls).weight, dls.class_weights) and dls.train.weights is None
    learn = image_learner(dls, net(), compute='fp32')
    assert isinstance(learn.loss_func, CrossEntropyLossFlat) and np.allclose(learn.loss_func.func.weight, dls.class_weights)
    with quiet(learn), learn.no_logging():
        learn.fit(1)
        preds = predict(learn)
    plain = -np.log(preds.probs[np.arange(len(preds)), preds.targets])
    assert np.allclose(preds.losses, plain * dls.class_weights[preds.targets], rtol=1e-3), 'losses are those of the learner'


def test_a_loss_of_the_users_own_goes_first(unequal):
    own = CrossEntropyLossFlat(label_smoothing=0.1)
    with pytest.warns(UserWarning, match="without the weights of the loaders' balance='loss'"):
        assert image_learner(make(unequal, balance='loss'), net(), loss_func=own).loss_func is own
    assert image_learner(make(unequal), net(), loss_func=own).loss_func is own


def test_balance_helps_the_rare_class_to_be_drawn_and_leaves_other_loaders(unequal):
    dls = make(unequal, balance='sampling')
    assert dls.train.new().weights is dls.train.weights and dls.valid.weights is None
    assert split_loader(dls, 'train').weights is None and len(split_loader(dls, 'train').dataset) == 108
    learn = image_learner(dls, net(), compute='fp32')
    with quiet(learn): preds = predict(learn, 'train')
    assert preds.items.tolist() == unequal[unequal.split == 'train'].path.tolist()
    with quiet(learn): probs, _ = learn.get_preds(ds_idx=0)
    assert np.allclose(probs, preds.probs, atol=0.2) and len(probs) == 108  # fastai's own: in order and complete too, though augmented


def test_loaders_that_normalize_keep_balance(unequal):
    from fastai.data.transforms import Normalize
    dls = make(unequal, balance='loss')
    dls.train.after_batch.add(Normalize.from_stats([.5] * 3, [.2] * 3, cuda=False))
    with pytest.warns(UserWarning, match='normalize'): learn = image_learner(dls, 'efficientnet_lite0', pretrained=False)
    assert np.allclose(learn.loss_func.func.weight.cpu(), dls.class_weights) and np.allclose(effective_counts(learn.dls).weight, dls.class_weights)


# --- Several labels ------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def several(table): return table.assign(label=table.label.map(parts))


def test_targets_are_rows_of_zeros_and_ones(several):
    dls = make(several, augment='none')
    assert list(dls.vocab) == ['even', 'loop', 'one'] and dls.multi_label and not make(several.assign(label='x'), check=None).multi_label
    for split in ('train', 'valid'):
        rows = several[several.split == split]
        y = torch.cat([y for _, y in split_loader(dls, split)])
        assert y.tolist() == [[float(c in o) for c in dls.vocab] for o in rows.label] and y.dtype == torch.float32
    assert (several.label == ()).any(), 'some have none'
    dls.show_batch(max_n=2)


@pytest.mark.parametrize('balance', [None, 'sampling', 'loss'])
@pytest.mark.parametrize('workers', [0, 2])
def test_several_labels_from_loaders_to_predictions(several, balance, workers):
    dls = make(several, balance=balance, num_workers=workers)
    set_seed(0)
    learn = image_learner(dls, net(), compute='fp32')
    assert isinstance(learn.loss_func, BCEWithLogitsLossFlat) and learn.metrics[0].name == 'accuracy_multi'
    with quiet(learn), learn.no_logging():
        fine_tune(learn, 2, freeze_epochs=0)
        learn.lr_find(num_it=4, show_plot=False)
        preds = predict(learn)
    assert preds.multi_label and np.allclose(preds.probs, 1 / (1 + np.exp(-preds.logits)), atol=1e-5) and preds.vocab == ['even', 'loop', 'one']
    assert [tuple(o.split('|')) if o else () for o in preds.actual] == several[several.split == 'valid'].label.tolist()
    plain = nn.functional.binary_cross_entropy(torch.tensor(preds.probs), torch.tensor(preds.targets).float(), reduction='none').numpy()
    weight = 1 if balance != 'loss' else np.where(preds.targets == 1, dls.class_weights, 1)
    assert np.allclose(preds.losses, (plain * weight).mean(1), rtol=1e-3)


def test_weights_of_several_labels(several):
    labels = several[several.split == 'train'].label
    n = {c: sum(c in o for o in labels) for c in ('even', 'loop', 'one')}
    found = effective_counts(make(several, balance='loss'))
    assert np.allclose(found.weight, [(len(labels) - k) / k for k in n.values()]) and found.images.tolist() == list(n.values())
    dls = make(several, balance='sampling')
    none = sum(o == () for o in labels)
    expected = [1 / min([n[c] for c in o] or [none]) for o in labels]
    assert np.allclose(dls.train.weights, expected)


def test_several_labels_of_a_plain_loss_get_a_sigmoid(several):
    learn = Learner(make(several), nn.Sequential(net(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)), loss_func=nn.BCEWithLogitsLoss())
    with quiet(learn): preds = predict(learn)
    assert preds.multi_label and np.allclose(preds.probs, 1 / (1 + np.exp(-preds.logits)), atol=1e-5)


def test_unknown_and_mixed_labels(several):
    dls = make(several)
    with pytest.raises(ValueError, match='does not know the classes x'): split_loader(dls, several.assign(label=[('x',)] * len(several)))
    with pytest.raises(DataError): make(several.assign(label=['x', *several.label[1:]]), check=None)


def test_a_bundle_of_several_labels(several, tmp_path):
    learn = image_learner(make(several), net(), compute='fp32')
    about = read_config(save_bundle(learn, tmp_path/'bundle'))
    assert (about['schema'], about['multi_label'], about['vocab']) == (2, True, list(learn.dls.vocab))


# --- A cache -------------------------------------------------------------------------------------------------------
class Cache:
    "Presized pictures in memory; knows only what the loaders ask of a cache"
    def __init__(self, table, short_side, **kwargs):
        self.short_side, root = short_side, table.attrs['root']
        self.pictures = {o: fit_short_side(open_image(f'{root}/{o}', short_side=short_side), short_side) for o in table['path']}
        self.asked = []
        vars(self).update(kwargs)

    def __contains__(self, path): return path in self.pictures
    def image(self, path):
        self.asked.append(path)
        return self.pictures[path].copy()


@pytest.mark.parametrize('augment', PRESETS)
def test_pictures_from_a_cache_are_the_same(table, augment):
    cache = Cache(table[::2], 48)  # the others are read from their files
    got = {}
    for name, o in dict(plain=None, cached=cache).items():
        set_seed(2)
        dls = make(table, augment=augment, cache=o)
        set_seed(3)
        got[name] = [x for dl in dls for x, _ in dl] + [x for x, _ in split_loader(dls, 'train')]
    assert all(torch.equal(a, b) for a, b in zip(*got.values())) and set(cache.asked) == set(table['path'][::2])


def test_with_a_cache_no_file_is_opened(photos):
    cache = Cache(photos, 48)
    for o in photos['path']: (Path(photos.attrs['root'])/o).unlink()
    dls = make(photos, cache=cache, num_workers=2, check=None)
    assert len(list(dls.train)) and len(list(dls.valid))
    cache.image = lambda path: open(path)
    with pytest.raises(DataError, match='fails in the step `TableReader`: FileNotFoundError'): list(dls.train)


def test_the_cache_brings_its_presize(table):
    dls = make(table, cache=Cache(table, 64))
    assert dls.presize == 64
    assert make(table, cache=Cache(table, 64), presize=64).presize == 64
    assert make(table, cache=False).presize == 48


@pytest.mark.parametrize('cached,asked,text', [
    ({}, dict(presize=50), 'the cache has presize=48, got presize=50'), (dict(method='squish'), {}, "made with method='squish', got method='crop'"),
    (dict(root='/elsewhere'), {}, 'the cache is of the folder `/elsewhere`'), ({}, dict(size=60), '`presize` must be at least `size`')])
def test_a_cache_that_does_not_fit(table, cached, asked, text):
    with pytest.raises(ValueError) as e: make(table, cache=Cache(table, 48, **cached), **asked)
    assert text in str(e.value)


def test_true_makes_a_cache(table, monkeypatch):
    made = []
    def presize_cache(table, size, *, method='crop'):
        made.append((len(table), size, method))
        return Cache(table, size)
    monkeypatch.setattr(module, 'presize_cache', presize_cache)
    broken = table.assign(error=['truncated'] + [''] * (len(table) - 1))
    assert make(broken, cache=True).presize == 48 and make(table, cache=True, presize=40).presize == 40
    assert made == [(len(table) - 1, 48, 'crop'), (len(table), 40, 'crop')], 'only what can be used'


def test_pictures_of_another_folder_are_not_taken_from_the_cache(table, photos):
    cache = Cache(table, 48)
    dls = make(table, cache=cache)
    cache.asked.clear()
    assert len(list(split_loader(dls, photos[photos.split == 'valid']))) and cache.asked == []


# --- Processes -----------------------------------------------------------------------------------------------------
def chosen(monkeypatch, platform='linux', start='fork', cores=4, room=2**40, daemon=False, batch=2**20):
    monkeypatch.setattr(module.sys, 'platform', platform)
    monkeypatch.setattr(module.multiprocessing, 'get_start_method', lambda allow_none: start)
    monkeypatch.setattr(module.multiprocessing, 'current_process', lambda: SimpleNamespace(daemon=daemon))
    monkeypatch.setattr(module, 'available_cores', lambda: cores)
    monkeypatch.setattr(module, '_shared_memory', lambda: room)
    try: return module._choose_workers(batch)
    finally: monkeypatch.undo()

@pytest.mark.parametrize('kwargs,n,why', [
    ({}, 4, 'one a core'), (dict(cores=64), 8, 'one a core'), (dict(cores=1), 1, 'one a core'), (dict(platform='darwin', start='spawn'), 0, 'new interpreters'),
    (dict(platform='darwin', start='fork'), 0, 'new interpreters'), (dict(platform='win32', start='spawn'), 0, 'new interpreters'),
    (dict(start='forkserver'), 0, 'new interpreters'), (dict(daemon=True), 0, 'may not start others'),
    (dict(room=64 * 2**20, batch=10 * 2**20), 2, 'shared memory for no more, 64 MB'), (dict(room=2**20), 0, 'shared memory')])
def test_number_of_processes(monkeypatch, kwargs, n, why):
    got, said = chosen(monkeypatch, **kwargs)
    assert got == n and why in said


def test_the_start_method_is_looked_up_and_not_set():
    was = multiprocessing.get_start_method(allow_none=True)
    module._choose_workers(1)
    assert multiprocessing.get_start_method(allow_none=True) == was


def test_shared_memory_that_is_not_known(monkeypatch):
    def gone(path): raise FileNotFoundError
    monkeypatch.setattr(module.os, 'statvfs', gone)
    assert module._shared_memory() == float('inf')


def test_processes_are_said(table, caplog, monkeypatch):
    caplog.set_level(logging.INFO, 'imgcls')
    make(table, num_workers=None)
    assert 'num_workers=' in caplog.text and ('one a core decodes' in caplog.text or ': ' in caplog.text)
    make(table, num_workers=2)
    assert 'num_workers=2: as asked' in caplog.text
    monkeypatch.setattr('fastai.data.load.sys', SimpleNamespace(platform='darwin'))
    make(table, num_workers=2)
    assert 'num_workers=2 was asked for; fastai uses 0 on this system' in caplog.text


# --- Odds and ends -------------------------------------------------------------------------------------------------
def test_a_copy_of_the_loaders_works(table):
    dls = make(table)
    again = copy.deepcopy(dls)
    assert [y.tolist() for _, y in dls.train] == [y.tolist() for _, y in again.train]


def test_loaders_survive_export(table, tmp_path):
    for kwargs in (dict(balance='sampling'), dict(balance='loss', augment='trivial')):
        learn = image_learner(make(table, **kwargs), net(), path=tmp_path, compute='fp32')
        next(iter(learn.dls.train))
        learn.export('x.pkl')
        assert (tmp_path/'x.pkl').stat().st_size


def test_duplicates_are_warned_of_for_several_labels(photos):
    root = Path(photos.attrs['root'])
    a, b = photos[photos.split == 'train'].path.iloc[0], photos[photos.split == 'valid'].path.iloc[-1]
    shutil.copy(root/a, root/b)
    t = photos.assign(label=photos.label.map(parts))
    assert exact_duplicates(t).leak.all()
    with pytest.warns(UserWarning, match='stand in more than one split'): make(t)


@pytest.mark.parametrize('kwargs,text', [(dict(balance='sample'), "Did you mean 'sampling'?"), (dict(check='all'), "`check` must be one of 'fast', 'full', None"), (dict(augment='flip'), '`augment`')])
def test_options(table, kwargs, text):
    with pytest.raises(ValueError) as e: make(table, **kwargs)
    assert text in str(e.value)


def test_image_dl_is_fastais_loader(table):
    dls = make(table)
    assert all(type(dl) is ImageDL for dl in (*dls.loaders, dls.test_dl(table.head(3)))) and isinstance(dls.train, module.TfmdDL)
    assert issubclass(ImageError, DataError)


def test_validate_adds_nothing_to_the_history(tmp_path):
    from imgcls.train.learner import image_learner
    from torch import nn
    learn = image_learner(image_loaders(sample('digits'), size=16, num_workers=0), nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU()), normalize=None)
    with learn.no_bar(), learn.no_logging():
        assert len(learn.validate()) == 2 and learn.history == []
        learn.fit(1)
        learn.validate()
    assert [o['epoch'] for o in learn.history] == [0] and {'train_loss', 'valid_loss', 'accuracy'} <= learn.history[0].keys()


def test_full_check_warns_of_what_an_audit_finds(tmp_path):
    from PIL import Image
    from sklearn.datasets import load_sample_images
    for name, pixels in zip(['china', 'flower'], load_sample_images().images):
        (tmp_path/name).mkdir()
        for i in range(6): Image.fromarray(pixels[30*i:30*i+200, 50*i:50*i+260]).save(tmp_path/name/f'{i}.jpg')
    Image.open(tmp_path/'china'/'0.jpg').transpose(0).save(tmp_path/'china'/'6.jpg', quality=60)
    (tmp_path/'china'/'1.jpg').write_bytes((tmp_path/'china'/'1.jpg').read_bytes()[:4000])
    table = image_table(tmp_path, split=None, verify=None)
    table.loc[table.path.isin(['china/6.jpg', 'flower/5.jpg']), 'split'] = 'valid'
    with pytest.warns(UserWarning, match='leak, the same photo in two splits, 2 findings: china/0.jpg'):
        dls = image_loaders(table, size=32, check='full', num_workers=0)
    assert dls.audit.count('unreadable') == 1 and len(dls.train_ds) == 10
    assert dls.table.set_index('path').at['china/1.jpg', 'error'].startswith('truncated')
    assert image_loaders(table[table.path != 'china/1.jpg'], size=32, num_workers=0).audit is None
