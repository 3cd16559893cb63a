"""A look for the learning rate, wherever it is inserted, changes no bit of any weight afterwards: each family of networks, number formats, optimizers, interruptions."""
import random
from functools import cache, partial

import numpy as np
import pytest
import timm
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.optimizer import OptimWrapper
from fastai.torch_core import set_seed
from torch import nn

from imgcls.data.loaders import image_loaders
from imgcls.data.samples import sample
from imgcls.data.tables import image_table
from imgcls.train.learner import image_learner
from imgcls.train.optimizers import optimizer
from imgcls.train.trace import no_trace


@cache
def digits():
    "Sixteen digits of four kinds to train on, and four to look at"
    table = image_table(sample('digits')).query("label in ('0', '1', '2', '3')")
    return table[table.groupby(['label', 'split']).cumcount() < table.split.map(dict(train=4, valid=1))]


def loaders(size=32, bs=8): return image_loaders(digits(), size=size, augment='no_flip', bs=bs, num_workers=0, device='cpu', check=None)


def own(): return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.1), nn.Conv2d(8, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU())


def small_swin():
    return timm.models.swin_transformer.SwinTransformer(img_size=64, patch_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=0, drop_path_rate=0.2)


def small_vit(): return timm.models.vision_transformer.VisionTransformer(img_size=64, patch_size=16, embed_dim=32, depth=4, num_heads=2, num_classes=0, drop_rate=0.1)


def look(learn): learn.lr_find(num_it=3, show_plot=False, suggest_funcs=None)


def train(learn, look, places):
    "Both stages, with a look at each of the `places`"
    def at(place):
        if look and place in places: look(learn)
    with learn.no_bar(), learn.no_logging():
        at('start')
        learn.freeze()
        at('frozen')
        learn.fit_one_cycle(1, 1e-3)
        at('between')
        learn.unfreeze()
        at('unfrozen')
        learn.fit_one_cycle(1, slice(1e-5, 1e-3))
        if 'end' not in places: return
        at('end')
        learn.fit(1, 1e-3)


def results(learn):
    opt = learn.opt.state_dict()
    return [*learn.model.state_dict().values(), *[v for o in (opt['state'].values() if isinstance(opt['state'], dict) else opt['state']) for v in o.values()],
            torch.get_rng_state(), random.getstate(), np.random.get_state()[1], [dl.rng.getstate() for dl in learn.dls.loaders], learn.history and [o['train_loss'] for o in learn.history]]


def assert_equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b): assert torch.equal(x, y) if isinstance(x, torch.Tensor) else np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y


def check(make, look=look, places=('start', 'frozen', 'between', 'unfrozen', 'end')):
    ends = []
    for do in (None, look):
        set_seed(3, reproducible=True)
        learn = make()
        train(learn, do, places)
        ends.append(results(learn))
    assert_equal(*ends)
    assert all(v.isfinite().all() for v in ends[0] if isinstance(v, torch.Tensor))


families = {'embedded': 'efficientnet_lite0', 'resnet': 'torchvision/resnet18', 'mobilenet': 'torchvision/mobilenet_v3_small', 'vgg': 'torchvision/vgg11_bn',
            'densenet': 'torchvision/densenet121', 'timm resnet': 'timm/resnet10t', 'convnext': 'timm/convnext_atto', 'vit': 'timm/test_vit', 'own': own, 'own swin': small_swin, 'own vit': small_vit}


@pytest.mark.parametrize('family', families)
def test_families(family):
    arch, size = families[family], {'vit': 160, 'own swin': 64, 'own vit': 64}.get(family, 32)
    check(lambda: image_learner(loaders(size), arch() if callable(arch) else arch, pretrained=family == 'embedded', normalize=((0.5,) * 3, (0.25,) * 3), hidden=()),
          places=('start', 'between', 'unfrozen'))


@pytest.mark.parametrize('place', ['start', 'frozen', 'between', 'unfrozen', 'end'])
def test_each_place_alone(place): check(lambda: image_learner(loaders(), own()), places=[place])


def test_with_batch_norm_trained_and_with_mixup():
    from fastai.callback.mixup import MixUp
    check(lambda: image_learner(loaders(), own(), bn_eval=False, cbs=MixUp()))


def test_bf16(): check(lambda: image_learner(loaders(), own(), compute='bf16'))


class HalfOnCpu(MixedPrecision):
    "fastai's mixed precision, as it is on a GPU"
    def before_fit(self):
        super().before_fit()
        self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)


@pytest.mark.filterwarnings('ignore:.*CUDA is not available:UserWarning', 'ignore:.*torch.cuda.amp.GradScaler is enabled:UserWarning', 'ignore::FutureWarning')
@pytest.mark.parametrize('cb', [MixedPrecision, HalfOnCpu, partial(HalfOnCpu, 'bf16')], ids=['fp16', 'cpu', 'cpu, bf16'])
def test_mixed_precision_of_fastai(cb): check(lambda: image_learner(loaders(), own(), compute='fp32', cbs=cb()))


@pytest.mark.parametrize('name', ['sgd', 'adamw', 'nesterov', 'lamb', 'ranger'])
def test_optimizers(name): check(lambda: image_learner(loaders(), own(), opt_func=optimizer(name), wd=0.01), places=('start', 'between', 'end'))


@pytest.mark.parametrize('kind', [torch.optim.NAdam, torch.optim.RMSprop, partial(torch.optim.SGD, momentum=0.9, nesterov=True)], ids=['nadam', 'rmsprop', 'nesterov'])
def test_optimizers_of_pytorch(kind):
    def make(): return image_learner(loaders(), own(), opt_func=partial(OptimWrapper, opt=partial(kind, momentum=0.9) if kind is torch.optim.RMSprop else kind))
    check(make)


@pytest.mark.parametrize('fitted', [False, True])
def test_an_optimizer_of_pytorch_that_is_there_before(fitted):
    def make():
        learn = image_learner(loaders(), own(), opt_func=lambda *args, **kwargs: None)
        learn.opt_func = OptimWrapper(opt=torch.optim.SGD([dict(params=o) for o in learn.splitter(learn.model)], lr=1e-3, momentum=0.8))
        if fitted: learn.fit(1)
        return learn
    check(make)


def test_the_parameters_of_a_wrapped_optimizer_stay_the_same_objects():
    learn = image_learner(loaders(), own(), opt_func=optimizer('nesterov'))
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1)
        before, groups, hypers = learn.opt, [list(map(id, o)) for o in learn.opt.param_lists], [dict(o) for o in learn.opt.hypers]
        state = {k: {n: v.clone() for n, v in o.items()} for k, o in learn.opt.opt.state.items()}
        look(learn)
    assert learn.opt is before and [list(map(id, o)) for o in learn.opt.param_lists] == groups and learn.opt.hypers == hypers
    assert sorted(i for o in groups for i in o) == sorted(map(id, learn.model.parameters()))
    assert learn.opt.opt.state.keys() == state.keys()
    for p, o in state.items():
        for k, v in o.items(): assert torch.equal(learn.opt.opt.state[p][k], v)


# --- Interrupted ---------------------------------------------------------------------------------------------------
class Interrupt(Callback):
    "Ctrl-C at an event of the second batch of a finder"
    order = 15
    def __init__(self, event): self.at = event
    def _maybe(self, event):
        if self.at == event and self.learn.iter == 1 and hasattr(self.learn, 'lr_finder'): raise KeyboardInterrupt
    def before_batch(self): self._maybe('before_batch')
    def after_pred(self): self._maybe('after_pred')
    def before_step(self): self._maybe('before_step')
    def after_batch(self): self._maybe('after_batch')


def interrupted(learn):
    with pytest.raises(KeyboardInterrupt): look(learn)


@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'before_step', 'after_batch'])
@pytest.mark.parametrize('kind', ['bf16', 'optim wrapper'])
def test_interrupted(event, kind):
    options = dict(compute='bf16') if kind == 'bf16' else dict(compute='fp32', opt_func=optimizer('nesterov'))
    check(lambda: image_learner(loaders(), own(), cbs=Interrupt(event), **options), look=interrupted)
    assert not torch.is_autocast_enabled('cpu')


def autocast_depth():
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


class InterruptedLayer(nn.Module):
    "Ctrl-C in the middle of a forward pass, when it is armed"
    armed = False
    def forward(self, x):
        if self.armed: raise KeyboardInterrupt
        return x


@pytest.mark.filterwarnings('ignore:.*CUDA is not available:UserWarning', 'ignore:.*torch.cuda.amp.GradScaler is enabled:UserWarning', 'ignore::FutureWarning')
@pytest.mark.parametrize('cb', [MixedPrecision, HalfOnCpu], ids=['fp16', 'cpu'])
def test_interrupted_in_the_forward_pass_with_mixed_precision(cb):
    "fastai's callback switches autocast on before a batch and off after the loss: an interruption in between leaves it on"
    def make():
        net = own()
        net.insert(3, InterruptedLayer())
        return image_learner(loaders(), net, compute='fp32', cbs=cb())
    def arm(learn):
        layer = learn.model[0].net[3]
        layer.armed = True
        interrupted(learn)
        layer.armed = False
        assert not torch.is_autocast_enabled('cpu') and not torch.is_autocast_enabled('cuda') and autocast_depth() == 0
    check(make, look=arm)


# --- What a look leaves of the learner itself -----------------------------------------------------------------------
def test_callbacks_are_the_same_and_know_their_learner():
    learn = image_learner(loaders(), own())
    cbs, bar = list(learn.cbs), learn.progress
    with no_trace(learn):
        with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=[Callback()])
    assert list(learn.cbs) == cbs and learn.progress is bar and all(o.learn is learn for o in learn.cbs)
