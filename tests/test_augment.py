"""Augmentation: what each preset may do, that it says so, that validation never sees it, and that looking changes nothing."""
import copy, pickle, random

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import Normalize, RandomSplitter, get_image_files, parent_label
from fastai.torch_core import set_seed
from fastai.vision.augment import Flip, RandomErasing, Resize, aug_transforms
from fastai.vision.core import PILImage, TensorImage
from fastai.vision.data import ImageBlock
from sklearn.datasets import load_sample_image
from torch import nn

from imgcls.data.augment import PRESETS, Augmentation, TrainOnly, TrivialAugment, augmentation, own_random, show_augmented
from imgcls.data.loaders import image_loaders
from imgcls.data.presize import choose_presize
from imgcls.data.samples import sample
from imgcls.data.tables import image_table
from imgcls.images import eval_image, fit_short_side, open_image
from imgcls.train.learner import image_learner, predict

photo = PILImage.create(load_sample_image('china.jpg'))
gradient = TensorImage(torch.linspace(0, 1, 40).expand(300, 3, 40, 40).contiguous())


@pytest.fixture(scope='module')
def table(): return image_table(sample('digits')).groupby(['label', 'split']).head(6)


class Cache:
    "Presized pictures in memory, with what the loaders ask of a cache"
    def __init__(self, table, short_side):
        self.short_side = short_side
        self.pictures = {o: fit_short_side(open_image(f'{table.attrs["root"]}/{o}', short_side=short_side), short_side) for o in table['path']}

    def __contains__(self, path): return path in self.pictures
    def image(self, path): return self.pictures[path].copy()


def make(table, **kwargs): return image_loaders(table, **dict(dict(size=32, bs=16, num_workers=0), **kwargs))


def states(dls=None):
    loaders = [dl.rng.getstate() for dl in dls.loaders] if dls else []
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist(), loaders


# --- Validation is free of augmentation ----------------------------------------------------------------------------
own = [*aug_transforms(size=32, flip_vert=True, max_rotate=90), RandomErasing(p=1.)]

@pytest.mark.parametrize('cached', [False, True], ids=['files', 'cache'])
@pytest.mark.parametrize('augment', [*PRESETS, own, PRESETS['no_flip'].but(max_rotate=180), [TrivialAugment(), Flip(p=1.)]], ids=str)
@pytest.mark.parametrize('method', ['crop', 'squish'])
def test_validation_is_eval_image_bit_for_bit(table, augment, cached, method):
    if cached and method == 'squish': pytest.skip('the cache here keeps proportions')
    dls = make(table, augment=augment, method=method, cache=Cache(table, 48) if cached else None)
    rows = table[table.split == 'valid']
    expected = np.stack([eval_image(f'{table.attrs["root"]}/{o}', 32, 48, method=method) for o in rows['path']])
    for step in (lambda: None, lambda: show_augmented(dls), lambda: dls.train.one_batch(), lambda: list(dls.train)):
        step()
        x = torch.cat([x for x, _ in dls.valid]).cpu()
        assert torch.equal(x.as_subclass(torch.Tensor), torch.tensor(expected).permute(0, 3, 1, 2) / 255)


@pytest.mark.parametrize('augment', [o for o in PRESETS if o != 'none'])
def test_training_is_varied(table, augment):
    dls = make(table.groupby('label').head(3), augment=augment)
    a, b = (torch.cat([x for x, _ in dls.train]).mean() for _ in range(2))
    assert a != b
    x, _ = dls.train.one_batch()
    assert x.shape[2:] == (32, 32) and x.min() >= 0 and x.max() <= 1 and x.dtype == torch.float32


def test_none_shows_training_what_evaluation_sees(table):
    dls = make(table, augment='none')
    index = {torch.tensor(eval_image(f'{table.attrs["root"]}/{o}', 32, 48)).permute(2, 0, 1).numpy().tobytes() for o in table['path']}
    assert all((x * 255).round().byte().numpy().tobytes() in index for b, _ in dls.train for x in b)


# --- What the presets do -------------------------------------------------------------------------------------------
def sides(x):
    "The share of pictures whose light side is the left, right, top, bottom one"
    x = x.mean(1)
    light = torch.stack([x[:, :, :9].mean((1, 2)), x[:, :, -9:].mean((1, 2)), x[:, :9].mean((1, 2)), x[:, -9:].mean((1, 2))]).argmax(0)
    return [(light == i).float().mean().item() for i in range(4)]

@pytest.mark.parametrize('name,expected', [('standard', [.5, .5, 0, 0]), ('no_flip', [0, 1, 0, 0]), ('any_way_up', [.25] * 4)])
def test_which_way_up(name, expected):
    with own_random(3): assert np.allclose(sides(augmentation(name, 40)[0]((gradient,), split_idx=0)[0]), expected, atol=.08)


def test_any_way_up_has_all_eight_orientations_equally_often():
    corner = torch.zeros(1, 1, 8, 8)
    corner[..., :4, :2] = 1  # a patch that looks different in all eight orientations
    plain = PRESETS['any_way_up'].but(max_rotate=0, max_warp=0, max_lighting=0, max_zoom=1)
    with own_random(1): x, = plain.tfms(8)[0]((TensorImage(corner.expand(800, 3, 8, 8).contiguous()),), split_idx=0)
    _, counts = np.unique(x.round().numpy().reshape(800, -1), axis=0, return_counts=True)
    assert len(counts) == 8 and counts.min() > 65


def test_any_way_up_without_turns_is_no_flip():
    with own_random(1): a, = PRESETS['any_way_up'].but(do_flip=False).tfms(40)[0]((gradient,), split_idx=0)
    with own_random(1): b, = PRESETS['no_flip'].tfms(40)[0]((gradient,), split_idx=0)
    assert torch.equal(a, b)


def test_trivial_draws_one_operation_for_each_picture():
    tfm = TrivialAugment(do_flip=False)
    with own_random(0): made = [tfm(photo, split_idx=0) for _ in range(60)]
    assert {o.size for o in made} == {photo.size} and {type(o) for o in made} == {PILImage}
    assert 30 < len({o.tobytes() for o in made}) < 60  # some operations change nothing
    assert TrivialAugment(strengths=5).vary.num_magnitude_bins == 5
    assert tfm(photo, split_idx=1) is photo


def test_trivial_mirrors_half():
    tfm = TrivialAugment()
    tfm.vary = lambda x: x
    with own_random(0): n = sum(tfm(photo, split_idx=0).tobytes() != photo.tobytes() for _ in range(200))
    assert 75 < n < 125
    tfm.do_flip = False
    assert tfm(photo, split_idx=0).tobytes() == photo.tobytes()


def test_train_only_resizes_what_keeps_its_size():
    x = TensorImage(torch.rand(2, 3, 48, 48))
    y, = TrainOnly([], 32)((x,), split_idx=0)
    assert y.shape == (2, 3, 32, 32) and type(y) is TensorImage
    assert TrainOnly([], 48)((x,), split_idx=0)[0] is x


# --- Words ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', PRESETS)
def test_a_preset_says_what_it_does(name):
    o = PRESETS[name]
    assert isinstance(o, Augmentation) and o.name == name and repr(name) in repr(o) and o.purpose in o._repr_html_()
    assert all(k in o._repr_html_() for k in o.settings)
    assert bool(o.tfms(32)) == (name != 'none')
    assert copy.deepcopy(o).settings == o.settings and pickle.dumps(o)


def test_words_follow_the_settings():
    o = PRESETS['standard'].but(max_rotate=45, max_zoom=1., max_warp=0, p_affine=0.5)
    assert '50% turned by up to 45°' in repr(o) and 'scaled' not in repr(o) and 'tilted' not in repr(o)
    assert o.name == 'standard, changed' and o.but(do_flip=False).name == 'standard, changed' and o.but() is o
    assert 'mirrored' not in repr(PRESETS['no_flip']) and 'mirrored' in repr(PRESETS['trivial']) and 'mirrored' not in repr(PRESETS['trivial'].but(do_flip=False))
    assert 'nothing is changed' in repr(PRESETS['none'])
    assert 'contrast' not in repr(o.but(max_lighting=0))


def test_settings_are_those_of_fastai():
    "So that a later fastai with other values is said truly"
    import inspect
    known = {k: v.default for k, v in inspect.signature(aug_transforms).parameters.items()}
    assert all(known[k] == v for k, v in PRESETS['standard'].settings.items())


@pytest.mark.parametrize('call,kind,text', [
    (lambda: PRESETS['standard'].but(rotate=3), ValueError, '`settings` must be one of'),
    (lambda: PRESETS['none'].but(max_zoom=3), ValueError, "'none' has no settings, got max_zoom"),
    (lambda: augmentation('standart', 32), ValueError, "Did you mean 'standard'?"),
    (lambda: augmentation(None, 32), ValueError, '`augment` must be one of'),
    (lambda: augmentation(3, 32), TypeError, 'or a list of transforms, got 3 in it'),
    (lambda: augmentation(['standard'], 32), TypeError, "got 'standard' in it"),
    (lambda: TrivialAugment()(TensorImage(torch.rand(2, 3, 8, 8)), split_idx=0), TypeError, 'give it among the item transforms')])
def test_errors(call, kind, text):
    with pytest.raises(kind) as e: call()
    assert text in str(e.value)


# --- Looking -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('augment', [*PRESETS, own], ids=str)
def test_show_augmented_leaves_no_trace(table, augment):
    dls = make(table, augment=augment)
    before = states(dls)
    a, b = show_augmented(dls), show_augmented(dls)
    assert states(dls) == before
    pixels = [[np.asarray(ax.images[0].get_array()) for ax in fig.axes if ax.images] for fig in (a, b)]
    assert len(pixels[0]) == 9 and all(np.array_equal(x, y) for x, y in zip(*pixels))
    file = table[table.split == 'train']['path'].iloc[0]
    assert np.abs(pixels[0][0] * 255 - eval_image(f'{table.attrs["root"]}/{file}', 32, 48)).max() < 1e-3
    assert all(np.allclose(x, pixels[0][0]) for x in pixels[0][1:]) == (augment == 'none')


def test_show_augmented_takes_what_is_asked_for(table):
    dls = make(table, augment='standard')
    assert len([ax for ax in show_augmented(dls, -1, n=3).axes if ax.images]) == 4
    assert show_augmented(dls, -1)._suptitle.get_text() == table[table.split == 'train'].label.iloc[-1]
    assert not np.allclose(*(show_augmented(dls, seed=o).axes[1].images[0].get_array() for o in (1, 2)))
    several = make(table.assign(label=table.label.map(lambda o: ('even', 'x') if o in '02468' else ('x',))), augment='none', check=None)
    assert show_augmented(several)._suptitle.get_text() == 'even, x'
    with pytest.raises(IndexError, match='`index` must be from 0 to'): show_augmented(dls, 10_000)


def test_show_augmented_on_plain_fastai_loaders():
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(0.9, seed=1), item_tfms=Resize(48),
                      batch_tfms=[*aug_transforms(size=32), Normalize.from_stats([.5] * 3, [.25] * 3)])
    fig = show_augmented(block.dataloaders(sample('digits'), bs=8, num_workers=0), 3)
    pictures = [ax.images[0].get_array() for ax in fig.axes if ax.images]
    assert len(pictures) == 9 and all(0 <= o.min() and o.max() <= 1.01 for o in pictures)


@pytest.mark.parametrize('name', PRESETS)
def test_show(name):
    before = states()
    a, b = (PRESETS[name].show(photo, size=48, n=3) for _ in range(2))
    assert states() == before
    first, *versions = [np.asarray(ax.images[0].get_array()) for ax in a.axes if ax.images]
    assert np.array_equal(first, eval_image(photo, 48, choose_presize(48))) and len(versions) == 3
    assert all(np.array_equal(x.images[0].get_array(), y.images[0].get_array()) for x, y in zip(a.axes, b.axes) if x.images)
    assert all(np.allclose(o, first / 255) for o in versions) == (name == 'none')


def test_own_random_restores_after_an_error():
    before = states()
    with pytest.raises(KeyError):
        with own_random('x'):
            random.random(), np.random.rand(), torch.rand(1)
            raise KeyError
    assert states() == before
    drawn = []
    for seed in (1, 1, 2, '1'):
        with own_random(seed): drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1] and drawn[0] != drawn[2]


# --- Mixup and cutmix ----------------------------------------------------------------------------------------------
class Seen(Callback):
    "Keeps pictures, labels and losses as the model gets them"
    order = 100
    def before_fit(self): self.kept = {True: [], False: []}
    def after_loss(self): self.kept[self.training].append((self.x.clone(), self.y.clone(), self.pred.detach().clone(), self.loss.mean().item()))


def net(): return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU())

@pytest.mark.parametrize('mix', [MixUp, CutMix])
@pytest.mark.parametrize('several', [False, True], ids=['one label', 'several'])
@pytest.mark.parametrize('balance', [None, 'loss'])
def test_mixing_works_in_training_alone(table, mix, several, balance):
    if several: table = table.assign(label=table.label.map(lambda o: tuple(k for k in ('even', 'low') if (k == 'even' and o in '02468') or (k == 'low' and o in '01234'))))
    dls = make(table, augment='none', check=None, balance=balance)
    set_seed(1)
    learn = image_learner(dls, net(), compute='fp32', cbs=[mix(), Seen()])
    loss_func = learn.loss_func
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-2)
        assert learn.loss_func is loss_func
        kept = {k: list(v) for k, v in learn.seen.kept.items()}
        plain = torch.cat([x for x, _ in dls.valid])
        assert torch.equal(torch.cat([x for x, *_ in kept[False]][:len(dls.valid)]), plain)
        for _, y, pred, loss in kept[False]: assert loss == pytest.approx(loss_func(pred, y).item(), abs=1e-6)
        originals = {o.numpy().tobytes() for x, _ in make(table, augment='none', check=None, bs=1).train for o in x}
        given = [o.numpy().tobytes() for x, *_ in kept[True] for o in x]
        assert sum(o not in originals for o in given) > len(given) / 3
        with_mix = predict(learn)
        learn.remove_cb(mix)
        without = predict(learn)
    assert np.array_equal(with_mix.probs, without.probs) and np.array_equal(with_mix.losses, without.losses)
    assert np.array_equal(with_mix.targets, without.targets) and set(np.unique(with_mix.targets)) <= set(range(10))


def test_lr_find_with_mixup_leaves_the_loss(table):
    learn = image_learner(make(table, augment='none'), net(), compute='fp32', cbs=MixUp())
    loss_func = learn.loss_func
    with learn.no_bar(): learn.lr_find(num_it=5, show_plot=False)
    assert learn.loss_func is loss_func

