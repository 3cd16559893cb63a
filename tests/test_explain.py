"Grad-CAM, occlusion, feature maps and filters: right for any network, and nothing left behind."
import copy, random
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from imgcls.compute import Compute
from imgcls.core import DataError
from imgcls.data.loaders import image_loaders
from imgcls.data.samples import sample
from imgcls.data.tables import image_table
from imgcls.deploy.bundle import save_bundle
from imgcls.deploy.predictor import load_bundle
from imgcls.evaluate.explain import HeatMaps, grad_cam, occlusion, plot_maps, plus_weights
from imgcls.evaluate.layers import feature_maps, filter_gradients, layer_filters, map_layers, plot_feature_maps, plot_filters
from imgcls.evaluate.sanity import _alike, sanity_check
from imgcls.models.pretrained import image_model
from imgcls.predictions import Predictions
from imgcls.train.learner import image_learner, predict

pytest.importorskip('captum')
devices = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]
networks = {'torchvision/resnet18': 64, 'torchvision/squeezenet1_1': 64, 'timm/mobilenetv3_small_050': 64, 'efficientnet_lite0': 64, 'timm/vit_tiny_patch16_224': 224,
            'classic/lenet': 32, 'classic/minixception': 64, 'classic/minigooglenet': 32}


def photos(n=2, size=64, seed=0): return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def network(arch, size, n_classes=3, seed=0):
    torch.manual_seed(seed)
    net = image_model(arch, n_classes, pretrained=False, size=size)
    with torch.no_grad():  # statistics of batch normalization that let something through
        for _ in range(3): net.train()(photos(8, size))
    return net.train()


class InPlace(nn.Module):
    "Adds to a layer's output and applies ReLU to it, in place, and uses one ReLU twice"
    def __init__(self):
        super().__init__()
        self.first, self.second, self.act, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(inplace=True), nn.Linear(8, 3)

    def forward(self, x):
        a = self.act(self.first(x))
        b = self.second(a)
        b += a
        return self.last(self.act(b).mean((2, 3)))


def cam_by_hand(net, x, target, layer):
    "Grad-CAM as in the paper, of `InPlace`, with nothing in place"
    a = net.first(x)
    b = net.second(F.relu(a)) + 0
    maps = {'first': a, 'second': b}[layer]
    scores = net.last(F.relu(b + F.relu(a)).mean((2, 3)))
    g, = torch.autograd.grad(scores[torch.arange(len(x)), target].sum(), maps)
    return maps.detach(), g


@pytest.mark.parametrize('layer', ['first', 'second'])
@pytest.mark.parametrize('plus', [False, True])
def test_what_happens_in_place_is_not_seen(layer, plus):
    torch.manual_seed(0)
    net, x, target = InPlace(), photos(), torch.tensor([0, 2])
    maps, g = cam_by_hand(net, x, target, layer)
    weights = plus_weights(maps, g) if plus else g.mean((2, 3))
    expected = (weights[..., None, None]*maps).sum(1).relu()
    found = grad_cam(net, x, layer=layer, target=target, plus=plus)
    np.testing.assert_allclose(found.maps, expected.numpy(), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(feature_maps(net, x, layer), maps.numpy(), rtol=1e-5, atol=1e-6)


def test_paper_formula_of_plus():
    "alpha = g² / (2 g² + sum(A) g³), the weights the sum of alpha times the positive gradients"
    maps, g = torch.rand(2, 4, 5, 5, dtype=torch.float64), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    alpha = g**2/(2*g**2 + maps.sum((2, 3), keepdim=True)*g**3)
    np.testing.assert_allclose(plus_weights(maps, g), (alpha*g.relu()).sum((2, 3)), rtol=1e-9)
    assert torch.equal(plus_weights(maps, torch.zeros_like(g)), torch.zeros(2, 4, dtype=torch.float64))  # 0/0 in the paper's fraction
    assert plus_weights(-maps, g).isfinite().all()


@pytest.mark.parametrize('device', devices)
@pytest.mark.parametrize('arch', networks)
def test_any_network(arch, device):
    size = networks[arch]
    net, x = network(arch, size).to(device), photos(2, size)
    found = grad_cam(net, x)
    layers = map_layers(net, size=size)
    default = layers[layers['default']]
    assert len(default) == 1 and found.layer == default['layer'].item() and found.maps.shape[1:] == (default['height'].item(), default['width'].item())
    assert np.isfinite(found.maps).all() and found.maps.min() >= 0
    assert np.isfinite(grad_cam(net, x, plus=True).maps).all()
    assert feature_maps(net, x).shape == (2, default['channels'].item(), *found.maps.shape[1:])
    if size < 224: assert np.isfinite(occlusion(net, x[:1], window=size//2).maps).all()


def test_channels_last_network():
    from timm import create_model
    net, x = create_model('swin_tiny_patch4_window7_224', img_size=112, num_classes=3, embed_dim=32, depths=(1, 1), num_heads=(2, 2)), photos(1, 112)
    assert grad_cam(net, x).maps.shape == (1, 14, 14)
    assert feature_maps(net, x, 'layers.0').shape == (1, 32, 28, 28)


def snapshot(net):
    return ([(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in net.modules()],
            [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in net.parameters()],
            {k: v.clone() for k, v in net.state_dict().items()}, random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def same(a, b):
    if isinstance(a, torch.Tensor): return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b


calls = dict(cam=lambda net, x: grad_cam(net, x), plus=lambda net, x: grad_cam(net, x, plus=True), occlusion=lambda net, x: occlusion(net, x, window=32),
             maps=lambda net, x: feature_maps(net, x), filters=lambda net, x: layer_filters(net).fill(9), layers=lambda net, x: map_layers(net, size=64),
             gradients=lambda net, x: filter_gradients(net, x, target=1), sanity=lambda net, x: sanity_check(net, x, steps=2),
             error=lambda net, x: pytest.raises(ValueError, grad_cam, net, x, layer='1.0'), target=lambda net, x: pytest.raises(ValueError, filter_gradients, net, x, target=9))


@pytest.mark.parametrize('what', calls)
def test_nothing_is_left_behind(what):
    net, x = network('torchvision/resnet18', 64), photos()
    for p in net[0].parameters(): p.requires_grad_(False)
    net[0].net[1].eval()  # one module in another mode
    F.cross_entropy(net(x), torch.tensor([0, 1])).backward()
    before, given = snapshot(net), x.clone()
    calls[what](net, x)
    assert same(before, snapshot(net))
    assert torch.equal(x, given) and not x.requires_grad


@pytest.mark.parametrize('inside', ['plain', 'no_grad', 'inference', 'autocast'])
def test_the_same_inside_of_anything(inside):
    net, x = network('torchvision/resnet18', 64), photos()
    expected = grad_cam(net, x).maps
    manager = dict(plain=torch.enable_grad, no_grad=torch.no_grad, inference=torch.inference_mode, autocast=lambda: torch.autocast('cpu', torch.bfloat16))[inside]
    with manager(): found, gradients = grad_cam(net, x), filter_gradients(net, x)
    np.testing.assert_array_equal(found.maps, expected)
    assert np.abs(gradients).max() > 0


def test_memory_formats_and_chunks_give_the_same():
    net, x = network('torchvision/resnet18', 64), photos(5)
    expected = grad_cam(net, x).maps
    np.testing.assert_allclose(grad_cam(net, x, bs=2).maps, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(filter_gradients(net, x, bs=2), filter_gradients(net, x), rtol=1e-3, atol=1e-5)
    net.to(memory_format=torch.channels_last)
    np.testing.assert_allclose(grad_cam(net, x).maps, expected, rtol=1e-3, atol=1e-5)
    assert np.isfinite(grad_cam(copy.deepcopy(net).bfloat16(), x).maps).all()


def test_random_weights_change_the_map():
    "Adebayo et al. 2018, with weights from other seeds: the maps have nothing in common, on average over photos"
    nets, x = [network('torchvision/resnet18', 96, seed=o) for o in range(3)], photos(6, 96)
    maps = [grad_cam(o, x, target=0).maps for o in nets]
    assert abs(np.mean([_alike(maps[0], o) for o in maps[1:]])) < 0.3
    assert _alike(maps[0], maps[0]) == pytest.approx(1) and _alike(maps[0], np.zeros_like(maps[0])) == 0


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp('explain')
    table = image_table(sample('digits')).groupby(['split', 'label']).head(8)
    dls = image_loaders(table, size=32, augment='none', bs=16, num_workers=0, seed=0)
    learn = image_learner(dls, 'classic/lenet', compute=Compute(channels_last=True, dtype=torch.bfloat16))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    save_bundle(learn, folder/'bundle')
    return SimpleNamespace(learn=learn, preds=predict(learn, 'valid'), bundle=folder/'bundle')


def test_learner_bundle_and_network_agree(world):
    files = [world.preds.root/o for o in world.preds.items[:3]]
    by_learner, by_bundle = grad_cam(world.learn, world.preds[:3]), grad_cam(load_bundle(world.bundle, compute='fp32'), files)
    by_network = grad_cam(world.learn.model, [Image.open(o) for o in files], vocab=world.preds.vocab)
    np.testing.assert_allclose(by_learner.maps, by_bundle.maps, rtol=1e-4, atol=1e-6)
    assert by_learner.maps.shape == by_network.maps.shape and by_learner.labels == by_bundle.labels
    assert by_learner.files == list(world.preds.items[:3]) and by_bundle.files == [o.name for o in files]
    np.testing.assert_array_equal(by_learner.images, by_bundle.images)


def test_learner_goes_on_as_before(world):
    "Explaining between two epochs changes no weight of the second, nor the loaders' random numbers"
    ends = []
    for look in (False, True):
        torch.manual_seed(0); random.seed(0); np.random.seed(0)
        learn = image_learner(image_loaders(world.learn.dls.table, size=32, augment='standard', bs=16, num_workers=0, seed=0), 'classic/lenet', compute='fp32')
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-3)
            if look: grad_cam(learn, world.preds[:2]), occlusion(learn, world.preds[:1], window=16), filter_gradients(learn, world.preds[:2]), map_layers(learn)
            learn.fit(1, 1e-3)
        ends.append(learn.model.state_dict())
    assert all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())


def test_plain_fastai_learner(tmp_path):
    from fastai.vision.all import ImageDataLoaders, Learner, Normalize, Resize
    for i in range(12):
        (tmp_path/'ab'[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path/'ab'[i % 2]/f'{i}.png')
    dls = ImageDataLoaders.from_folder(tmp_path, valid_pct=0.5, seed=0, item_tfms=Resize(32), batch_tfms=Normalize.from_stats([0.5]*3, [0.25]*3), bs=4, num_workers=0)
    torch.manual_seed(0)
    learn = Learner(dls, nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)), loss_func=nn.CrossEntropyLoss())
    files = [dls.valid.items[i] for i in range(3)]
    found = grad_cam(learn, files)
    with torch.no_grad(): probs = learn.model.eval()(dls.test_dl(files).one_batch()[0]).softmax(1)
    np.testing.assert_allclose(found.probs, probs.max(1).values, rtol=1e-4)
    assert found.layer == '1' and set(found.labels) <= {'a', 'b'} and found.images.shape == (3, 32, 32, 3)


def test_rows_tables_and_arrays(world):
    one = world.preds[:1]
    frame = pd.DataFrame(dict(path=one.items))
    frame.attrs['root'] = str(one.root)
    array = np.asarray(Image.open(one.root/one.items[0]).convert('RGB'))
    shown = [grad_cam(world.learn, o).maps for o in (one, frame, array, [array], array[None], str(one.root/one.items[0]), Image.fromarray(array))]
    for o in shown[1:]: np.testing.assert_array_equal(o, shown[0])
    both = grad_cam(world.learn, world.preds[:2])
    assert len(both[1:]) == 1 and both[np.array([False, True])].files == [world.preds.items[1]] and both[0].files == [world.preds.items[0]]


@pytest.mark.parametrize('call,says', [
    (lambda w: grad_cam(w.learn, []), 'there are no images to explain'),
    (lambda w: grad_cam(w.learn, Predictions(w.preds.probs, w.preds.vocab)), 'these predictions have no `items`'),
    (lambda w: grad_cam(w.learn, w.preds[:1], size=64), '`size` is for a plain network'),
    (lambda w: grad_cam(w.learn, w.preds[:1], target='11'), "no class is named '11'. Did you mean '1'"),
    (lambda w: grad_cam(w.learn.model, w.preds[:1], target='cat'), 'A plain network knows no names'),
    (lambda w: grad_cam(w.learn, w.preds[:1], target=10), '`target` must be a number from 0 to 9'),
    (lambda w: grad_cam(w.learn, w.preds[:1], bs=0), '`bs` must be a whole number'),
    (lambda w: grad_cam(w.learn, torch.zeros(3, 32, 32)), 'a tensor of images must have shape'),
    (lambda w: grad_cam(w.learn, w.preds[:1], layer=nn.ReLU()), "no layer of the network is '<ReLU>'"),
    (lambda w: grad_cam(nn.Sequential(nn.Conv2d(3, 4, 3)), w.preds[:1]), 'the network must give scores (n, n_classes), got'),
    (lambda w: filter_gradients(w.learn, w.preds[:1], layer='0.net'), "is no convolution of this network. Such are, for example: '0.net.0'"),
    (lambda w: plot_maps(grad_cam(w.learn, w.preds[:1]), k=0), '`k` must be 1 or more'),
    (lambda w: plot_filters(np.zeros((2, 2))), '`filters` must be'),
    (lambda w: plot_feature_maps(np.zeros((1, 2, 3, 3)), k=0), '`k` must be 1 or more'),
], ids=['none', 'no items', 'size', 'name', 'no names', 'number', 'bs', 'tensor', 'module', 'scores', 'no conv', 'k', 'filters', 'maps'])
def test_errors(world, call, says):
    with pytest.raises((ValueError, DataError)) as e: call(world)
    assert says in str(e.value)


def test_answers_of_scikit_learn_are_refused(world):
    classifier = load_bundle(world.bundle, compute='fp32')
    classifier.estimator = object()
    with pytest.raises(ValueError, match='scikit-learn answers for this classifier'): occlusion(classifier, [world.preds.root/world.preds.items[0]])
    assert feature_maps(classifier, [world.preds.root/world.preds.items[0]]).ndim == 4


def test_missing_captum(world, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'captum', None)
    monkeypatch.setitem(sys.modules, 'captum.attr', None)
    with pytest.raises(ImportError, match=r'imgcls\[explain\]'): grad_cam(world.learn, world.preds[:1])
    assert len(grad_cam(world.learn, world.preds[:1], plus=True)) == 1


def test_probabilities_of_one_against_all():
    found = SimpleNamespace(model=nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), config=dict(one_vs_all=True), vocab=['a', 'b', 'c'])
    x = photos(1, 8)
    shown = grad_cam(found, x, target='b')
    with torch.no_grad(): assert shown.probs[0] == pytest.approx(found.model(x).sigmoid()[0, 1].item())
    assert shown.labels == ['b'] and occlusion(found, x, target='b', window=4).maps.shape == (1, 8, 8)


@pytest.mark.parametrize('n', [1, 6])
def test_pictures(n):
    heat = HeatMaps(maps=np.zeros((n, 2, 2), 'float32'), images=np.zeros((n, 8, 8, 3), 'uint8'), files=['$a_1.png']*n, targets=np.zeros(n, int),
                    labels=['x$y$' + 'z'*60]*n, probs=np.ones(n), method='occlusion by 4 px')
    fig = plot_maps(heat, k=2)
    fig.draw_without_rendering()
    assert len(fig.axes) == 2*min(n, 2)
    plot_feature_maps(np.zeros((1, n, 4, 4))).draw_without_rendering()


@pytest.mark.parametrize('shape', [(3, 3, 3, 3), (2, 1, 5, 5), (4, 2, 3, 3), (1, 8, 1, 1), (70, 96, 1, 1)], ids=str)
def test_pictures_of_filters(shape): plot_filters(np.zeros(shape, 'float32'), k=4).draw_without_rendering()
