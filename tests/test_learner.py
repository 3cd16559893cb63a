"""The learner: nothing left behind by a look, the same seed the same weights, predictions of any split in order."""
import os, random, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import TfmdDL
from fastai.data.transforms import RandomSplitter, get_image_files, parent_label
from fastai.learner import Learner
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize
from fastai.vision.data import ImageBlock
from fastai.vision.learner import vision_learner
from torch import nn

import imgcls.data.loaders as loaders_module
from imgcls.data.loaders import image_loaders, split_loader
from imgcls.data.samples import sample
from imgcls.data.tables import image_table
from imgcls.predictions import align_predictions
from imgcls.train.callbacks import BnEval
from imgcls.train.learner import fine_tune, image_learner, predict
from imgcls.train.losses import OneVsAllLoss
from imgcls.train.trace import random_state


def small_table(n=12):
    table = image_table(sample('digits'))
    return table.groupby(['label', 'split']).head(n)


def small_loaders(n=12, **kwargs):
    return image_loaders(small_table(n), **dict(dict(size=32, augment='no_flip', bs=16, num_workers=0), **kwargs))


def state_of(learn):
    "All that a learning rate finder might change"
    opt = learn.opt and [(dict(h), [sorted((k, v.clone() if torch.is_tensor(v) else v) for k, v in learn.opt.state[p].items()) for p in pg])
                         for pg, h in zip(learn.opt.param_lists, learn.opt.hypers)]
    recorder = {k: getattr(learn.recorder, k, None) for k in ('lrs', 'iters', 'losses', 'values', 'log')}
    return dict(model={k: v.clone() for k, v in learn.model.state_dict().items()}, modes=[m.training for m in learn.model.modules()],
                grads=[None if p.grad is None else p.grad.clone() for p in learn.model.parameters()], flags=[p.requires_grad for p in learn.model.parameters()],
                opt=opt, frozen=getattr(learn.opt, 'frozen_idx', None), python=random.getstate(), numpy=np.random.get_state(), torch=torch.get_rng_state(),
                loaders=[dl.rng.getstate() for dl in learn.dls.loaders], cbs=[type(o).__name__ for o in learn.cbs], recorder=recorder, history=list(learn.history),
                attributes={k for k in vars(learn)}, path=(learn.path, learn.model_dir))


def assert_same(a, b, where=''):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for k in a: assert_same(a[k], b[k], f'{where}.{k}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)): assert_same(x, y, f'{where}[{i}]')
    elif isinstance(a, torch.Tensor): assert torch.equal(a, b), where
    elif isinstance(a, np.ndarray): assert np.array_equal(a, b), where
    else: assert a == b, where


backbones = ['efficientnet_lite0', 'timm/resnet18', 'torchvision/squeezenet1_1', 'own']


def make(arch, dls=None, **kwargs):
    if arch == 'own': arch = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU())
    return image_learner(dls or small_loaders(), arch, pretrained=arch == 'efficientnet_lite0', **kwargs)


@pytest.mark.parametrize('arch', backbones)
@pytest.mark.parametrize('trained', [False, True])
def test_lr_find_leaves_no_trace(arch, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = make(arch)
    files = set(Path(sample('digits')).parent.rglob('*'))
    with learn.no_bar():
        if trained: learn.fit_one_cycle(1)
        before = state_of(learn)
        learn.lr_find(num_it=12, show_plot=False)
        assert_same(before, state_of(learn))
    assert not list(tmp_path.iterdir()) and set(Path(sample('digits')).parent.rglob('*')) == files


def test_lr_find_that_is_interrupted_leaves_no_trace():
    class Interrupt(Callback):
        def before_batch(self):
            if self.learn.iter == 3 and hasattr(self.learn, 'lr_finder'): raise KeyboardInterrupt
    learn = make('own', cbs=Interrupt())
    with learn.no_bar():
        learn.fit_one_cycle(1)
        before = state_of(learn)
        with pytest.raises(KeyboardInterrupt): learn.lr_find(num_it=12, show_plot=False)
        assert_same(before, state_of(learn))
    assert not torch.is_autocast_enabled('cpu')


@pytest.mark.parametrize('arch', backbones)
def test_lr_find_changes_no_later_weight(arch):
    ends = []
    for look in (False, True):
        set_seed(3, reproducible=True)
        learn = make(arch)
        with learn.no_bar():
            if look: learn.lr_find(num_it=12, show_plot=False)
            fine_tune(learn, 1, freeze_epochs=1)
        ends.append({k: v.clone() for k, v in learn.model.state_dict().items()})
    assert_same(*ends)


@pytest.mark.parametrize('workers', [0, 2])
def test_same_seed_same_weights(workers):
    ends = []
    for _ in range(2):
        set_seed(7, reproducible=True)
        learn = make('efficientnet_lite0', small_loaders(num_workers=workers))
        with learn.no_bar(): fine_tune(learn, 1, freeze_epochs=1)
        ends.append({k: v.clone() for k, v in learn.model.state_dict().items()})
    assert_same(*ends)
    set_seed(8, reproducible=True)
    learn = make('efficientnet_lite0', small_loaders(num_workers=workers))
    with learn.no_bar(): fine_tune(learn, 1, freeze_epochs=1)
    assert any(not torch.equal(v, ends[0][k]) for k, v in learn.model.state_dict().items())


def test_predictions_in_between_change_no_later_weight():
    ends = []
    for look in (False, True):
        set_seed(3, reproducible=True)
        learn = make('own')
        with learn.no_bar():
            learn.fit(1)
            if look: predict(learn, 'train'), predict(learn, 'valid')
            learn.fit(1)
        ends.append({k: v.clone() for k, v in learn.model.state_dict().items()})
    assert_same(*ends)


def test_predict_is_complete_ordered_and_not_augmented():
    learn = make('own', small_loaders(bs=16))
    table = learn.dls.table
    with learn.no_bar():
        for split in ('train', 'valid'):
            rows = table[table.split == split]
            a, b = predict(learn, split), predict(learn, split, bs=7)
            assert list(a.items) == rows.path.tolist() and list(a.actual) == rows.label.tolist()
            assert np.allclose(a.probs, b.probs, atol=5e-3)
            assert np.allclose(a.losses, -np.log(a.probs[np.arange(len(a)), a.targets]), atol=1e-3)


def test_predict_on_a_test_split_and_on_another_table(tmp_path):
    table = small_table().copy()
    table.loc[table.split.eq('valid') & (table.groupby('split').cumcount() % 2 == 0), 'split'] = 'test'
    table.attrs['root'] = str(sample('digits'))
    learn = make('own', image_loaders(table, size=32, augment='none', bs=16, num_workers=0))
    with learn.no_bar():
        assert list(predict(learn, 'test').items) == table[table.split == 'test'].path.tolist()
        assert len(predict(learn, table.head(7))) == 7


def test_predict_on_a_plain_fastai_learner():
    path = sample('digits')
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(0.9, seed=1), item_tfms=Resize(32))
    dls = block.dataloaders(path, bs=32, num_workers=0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    learn = Learner(dls, net)
    with learn.no_bar():
        for split, ds in (('train', dls.train_ds), ('valid', dls.valid_ds)):
            preds = predict(learn, split)
            assert [str(o) for o in ds.items] == list(preds.items) and len(preds) == len(ds)
        with pytest.raises(ValueError, match='`split` must be one of'): predict(learn, 'test')


@pytest.mark.parametrize('what', ['split', 'table', 'unlabelled', 'loader'])
def test_one_forward_pass_an_image(what, monkeypatch):
    "Each image is opened once and goes through the network once, features and logits included"
    learn, seen, opened, was = make('own', small_loaders(bs=16)), [], [], loaders_module.open_image
    table = learn.dls.table
    rows = table[table['split'] == ('train' if what == 'loader' else 'valid')]
    source = dict(split='valid', table=rows, unlabelled=rows.drop(columns='label'), loader=learn.dls.train)[what]
    monkeypatch.setattr(loaders_module, 'open_image', lambda x, **kwargs: opened.append(str(x)) or was(x, **kwargs))
    with learn.no_bar():
        hooks = [learn.model[i].register_forward_hook(lambda module, args, out: seen.append(len(args[0]))) for i in (0, 1)]
        preds = predict(learn, source, features=True)
        for o in hooks: o.remove()
    assert sum(seen) == 2*len(rows) == 2*len(preds) and len(opened) == len(set(opened)) == len(rows)
    assert preds.items.tolist() == rows['path'].tolist() and preds.root == Path(table.attrs['root']) and (preds.targets is None) == (what == 'unlabelled')
    if preds.targets is not None: assert preds.actual.tolist() == rows['label'].tolist()
    with learn.no_bar(): again = predict(learn, rows)
    np.testing.assert_allclose(preds.probs, again.probs, atol=1e-6)
    with learn.computing('fp32'), torch.no_grad():
        x = torch.cat([o[0] for o in split_loader(learn.dls, rows)])
        vectors = learn.model[1][:2](learn.model[0].eval()(x.as_subclass(torch.Tensor)))
    np.testing.assert_allclose(preds.features, vectors, atol=1e-3)
    assert again.features is None and preds.logits.shape == preds.probs.shape and not any(m._forward_pre_hooks for m in learn.model.modules())


class Doubled(TfmdDL):
    "Draws with replacement"
    def get_idxs(self): return [0]*self.n


def test_any_loader_is_read_in_order_completely_and_not_augmented():
    table = small_table(5)
    table = table.drop(table.index[(table['label'] == '3') & (table['split'] == 'train')][1:])
    learn = make('own', image_loaders(table, size=32, augment='standard', bs=16, num_workers=0, balance='sampling'))
    with learn.no_bar():
        loaders = learn.dls.train, learn.dls.train.new(bs=7, num_workers=2), learn.dls.train.new(cls=Doubled, shuffle=False)
        wanted, valid, before = predict(learn, 'train'), predict(learn, 'valid'), random_state(learn.dls)
        for dl in loaders:
            found = predict(learn, dl)
            assert found.items.tolist() == wanted.items.tolist() and np.array_equal(found.targets, wanted.targets)
            np.testing.assert_allclose(found.probs, wanted.probs, atol=1e-5)
        assert repr(random_state(learn.dls)) == repr(before) and learn.dls.train_ds.split_idx == 0 and learn.dls.train.shuffle and learn.dls.train.weights is not None
        np.testing.assert_allclose(predict(learn, learn.dls.valid, bs=3).probs, valid.probs, atol=1e-5)
        shuffled = predict(learn, table[table['split'] == 'valid'].sample(frac=1, random_state=0))
        assert shuffled.items.tolist() != valid.items.tolist()
        _, back = align_predictions(valid, shuffled)
        np.testing.assert_allclose(back.probs, valid.probs, atol=1e-5)
        assert not np.allclose(learn.get_preds(ds_idx=0)[0][:len(wanted)], wanted.probs)  # fastai: augmented


def test_a_table_of_another_folder_keeps_its_names(tmp_path):
    learn, table = make('own', small_loaders()), small_table(2)
    shutil.copytree(sample('digits'), tmp_path/'copy')
    other = table.copy()
    other.attrs['root'] = str(tmp_path/'copy')
    with learn.no_bar(): a, b = predict(learn, table), predict(learn, other)
    assert a.items.tolist() == b.items.tolist() == table['path'].tolist() and b.root == tmp_path/'copy' and np.allclose(a.probs, b.probs, atol=1e-6)
    assert sum(len(o) for o in b.by(table, 'label').values()) == len(table)


@pytest.mark.parametrize('kind', ['several', 'one_vs_all'])
def test_other_kinds_of_learner_without_labels(kind):
    table = small_table(4)
    if kind == 'several': table['label'] = [('even',)*(o in '02468') + ('loop',)*(o in '0689') for o in table['label']]
    dls = image_loaders(table, size=32, augment='none', bs=16, num_workers=0)
    learn = image_learner(dls, nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU()), hidden=(), **(dict(loss_func=OneVsAllLoss()) if kind == 'one_vs_all' else {}))
    with learn.no_bar(): known, unknown = predict(learn), predict(learn, table[table['split'] == 'valid'].drop(columns='label'))
    assert np.allclose(known.probs, unknown.probs, atol=1e-6) and unknown.targets is None and unknown.losses is None
    assert (unknown.multi_label, unknown.one_vs_all) == (known.multi_label, known.one_vs_all) == (kind == 'several', kind == 'one_vs_all')


def test_what_predict_refuses():
    learn = make('own', small_loaders(3))
    for bad in (3, None, [learn.dls.train], learn.dls):
        with pytest.raises(TypeError, match='a table of images, or a loader of fastai, got'): predict(learn, bad)
    fewer = image_loaders(small_table(3).query("label != '7'"), size=32, augment='none', num_workers=0)
    with pytest.raises(ValueError, match='the loader has other classes than the learner: 0, 1, 2'): predict(learn, fewer.valid)
    learn.model = nn.Sequential(nn.Flatten(), nn.Identity())
    with pytest.raises(TypeError, match='`features=True` needs a network of a body and a head with weights'): predict(learn, features=True)


def test_fine_tune_works_on_a_fastai_learner_and_bn_eval_can_be_asked_for():
    dls = small_loaders()
    from torchvision.models import resnet18
    learn = vision_learner(dls, resnet18, pretrained=False)
    means = [m.running_mean.clone() for m in learn.model[0].modules() if isinstance(m, nn.BatchNorm2d)]
    with learn.no_bar(): fine_tune(learn, 1, freeze_epochs=0, bn_eval=True)
    for a, m in zip(means, (m for m in learn.model[0].modules() if isinstance(m, nn.BatchNorm2d))): assert torch.equal(a, m.running_mean)
    assert not any(isinstance(cb, BnEval) for cb in learn.cbs)
    with learn.no_bar(): fine_tune(learn, 1, freeze_epochs=0, bn_eval=False)
    assert any(not torch.equal(a, m.running_mean) for a, m in zip(means, (m for m in learn.model[0].modules() if isinstance(m, nn.BatchNorm2d))))


def test_bf16_is_really_on_and_off():
    learn = make('own', compute='bf16')
    seen = []
    learn.model[0].net[3].register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    with learn.no_bar():
        learn.fit(1)
        assert set(seen) == {torch.bfloat16}
        seen.clear()
        with learn.computing('fp32'): predict(learn, 'valid')
    assert set(seen) == {torch.float32}


def test_computing_changes_the_layout_of_the_weights_and_gives_it_back():
    learn = make('efficientnet_lite0', compute='auto')
    stem = learn.model[0].net.conv_stem
    assert stem.weight.is_contiguous(memory_format=torch.channels_last) and not stem.weight.is_contiguous()
    with learn.computing('fp32'): assert stem.weight.is_contiguous()
    assert stem.weight.is_contiguous(memory_format=torch.channels_last) and not stem.weight.is_contiguous()


def test_learner_can_be_exported_as_fastai_does(tmp_path):
    learn = make('own', path=tmp_path)
    with learn.no_bar(): learn.fit(1)
    learn.export('export.pkl')
    assert (tmp_path/'export.pkl').stat().st_size > 0


def test_a_small_train_set_still_has_a_batch():
    dls = small_loaders(n=2, bs=64)
    assert len(dls.train) == 1


def test_validation_is_free_of_augmentation():
    dls = small_loaders(augment='standard')
    a, b = (torch.cat([x for x, _ in dls.valid]) for _ in range(2))
    assert torch.equal(a, b)
    a, b = (torch.cat([x for x, _ in dls.train]).mean() for _ in range(2))
    assert a != b


def test_importing_the_learner_patches_no_class_of_fastai():
    code = '''
from fastai.callback import schedule
from fastai.learner import Learner
before = dict(vars(Learner))
import imgcls.train.learner
assert dict(vars(Learner)) == before
'''
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120, env=os.environ)


def test_frozen_layers_stay_as_they_are_after_they_have_been_trained():
    "fastai leaves zeroed gradients on layers that are frozen again, and its optimizers take a step of weight decay for them"
    from torch import nn
    from imgcls.data.loaders import image_loaders
    from imgcls.data.samples import sample
    from imgcls.train.learner import image_learner
    dls = image_loaders(sample('digits'), size=16, num_workers=0, augment='none', device='cpu')
    learn = image_learner(dls, nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU()), normalize=None, hidden=(), splitter=lambda m: [list(m[0].parameters()), list(m[1].parameters())])
    with learn.no_bar(), learn.no_logging():
        learn.unfreeze()
        learn.fit(1, wd=0.1)
        learn.freeze()
        before = [p.detach().clone() for p in learn.model[0].parameters()]
        learn.fit(1, wd=0.1)
    assert all((a == b).all() for a, b in zip(before, learn.model[0].parameters()))
