"""Classic networks: published counts, sizes that fit and those that don't, training steps, learners and bundles."""
import itertools, json

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from imgcls.data.loaders import image_loaders
from imgcls.data.samples import sample
from imgcls.deploy.bundle import save_bundle
from imgcls.deploy.predictor import load_bundle
from imgcls.models.arithmetic import layer_costs
from imgcls.models.classic import create_model, list_models
from imgcls.models.pretrained import image_model, layer_groups, model_from_config
from imgcls.train.learner import fine_tune, image_learner, predict

table = list_models().set_index('name')
light = [o for o in table.index if 'alexnet' not in o]
small_head = dict(hidden=(16, 16))  # for networks whose linear layers are large


def count(model): return sum(p.numel() for p in model.parameters())

def make(name, size, channels=3, n_classes=3, **options):
    if 'alexnet' in name: options = small_head | options
    return create_model(name, n_classes, size=size, channels=channels, **options)


@pytest.mark.parametrize('name,n_classes,size,channels,options,n', [
    ('lenet', 10, 32, 1, {}, 61_706), ('alexnet', 1000, 227, 3, dict(norm=False), 60_965_224), ('alexnet', 1000, 224, 3, dict(norm=False, groups=1), 62_378_344),
    ('alexnet', 1000, 224, 3, dict(norm=False, groups=1, filters=(64, 192, 384, 256, 256)), 61_100_840), ('mlp', 10, 28, 3, {}, 1_209_866),
    ('mlp', 10, 28, 3, dict(hidden=(512,) * 3), 1_735_178), ('minixception', 1, 180, 3, {}, 718_849)])
def test_published_counts(name, n_classes, size, channels, options, n):
    with torch.device('meta'): assert count(create_model(name, n_classes, size=size, channels=channels, **options)) == n

def test_alexnet_of_torchvision():
    mine, theirs = create_model('alexnet', 5, size=224, filters=(64, 192, 384, 256, 256), groups=1, norm=False, hidden=(32, 16)).eval(), models.alexnet(weights=None).features.eval()
    mine[0].load_state_dict(dict(zip(mine[0].state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad(): assert torch.allclose(mine[0](x), theirs(x), atol=1e-5)

@pytest.mark.parametrize('name', table.index)
def test_sizes_and_channels(name):
    smallest = table.smallest[name]
    for more, channels in itertools.product((0, 1, 6), (1, 3, 4)):
        size = int(smallest) + more
        net = make(name, size, channels).eval()
        with torch.no_grad(): assert net(torch.rand(2, channels, size, size)).shape == (2, 3)
    if smallest > 1:
        with pytest.raises(ValueError, match=f'too small for this network: they must have at least {smallest} px'): make(name, int(smallest) - 1)

@pytest.mark.parametrize('name', table.index)
def test_sides_may_differ(name):
    size = int(table.smallest[name]) + 3, int(table.smallest[name]) + 9
    with torch.no_grad(): assert make(name, size).eval()(torch.rand(1, 3, *size)).shape == (1, 3)

@pytest.mark.parametrize('name', table.index)
def test_a_step_of_training_lowers_the_loss(name):
    torch.manual_seed(0)
    size = max(int(table.smallest[name]), 16)
    net, x, y = make(name, size, **({} if name in ('lenet', 'shallownet') else dict(dropout=0))), torch.rand(6, 3, size, size), torch.arange(6) % 3
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=1e-3), []
    for _ in range(6):
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

@pytest.mark.parametrize('name', table.index)
def test_the_same_again_from_what_it_remembers(name):
    net = make(name, 72)
    about = json.loads(json.dumps(net.config))
    again = create_model(about['arch'], about['n_classes'], size=about['size'], channels=about['channels'], **about['options'])
    again.load_state_dict(net.state_dict())
    assert again.config == net.config and str(again) == str(net)

@pytest.mark.parametrize('name', light)
def test_a_table_of_costs(name):
    net = make(name, 32)
    costs = layer_costs(net, 32)
    assert costs.parameters.sum() == count(net) and costs.output.iloc[-1] == (3,)

def test_kernels_and_strides_are_arguments():
    assert make('shallownet', 32, kernel=5, stride=2)[0][0].stride == (2, 2)
    assert [m.kernel_size[0] for m in make('alexnet', 64, kernels=(7, 3, 3, 3, 3), strides=(2, 1, 1, 1, 1)).modules() if isinstance(m, nn.Conv2d)] == [7, 3, 3, 3, 3]
    assert sum(isinstance(m, nn.Conv2d) for m in make('flat_alexnet', 64).modules()) == 3
    for name in ('lenet', 'minivggnet', 'minigooglenet', 'minixception'):
        first = next(m for m in make(name, 64, kernel=7, stride=2).modules() if isinstance(m, nn.Conv2d))
        assert (first.kernel_size, first.stride) == ((7, 7), (2, 2)), name

def test_the_same_seed_gives_the_same_weights():
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(create_model('minigooglenet', 3, size=32))
    assert all(torch.equal(a, b) for a, b in zip(*[o.state_dict().values() for o in nets]))

@pytest.mark.parametrize('call,error,text', [
    (lambda: create_model('LeNet', 10, size=32), ValueError, "no classic network 'LeNet'. Did you mean 'lenet'"), (lambda: create_model('resnet18', 10, size=32), ValueError, "image_model('timm/…')"),
    (lambda: create_model('lenet', True, size=32), ValueError, '`n_classes` must be a whole number of at least 1, got True'),
    (lambda: create_model('lenet', 10, size=32, channels=0), ValueError, '`channels` must be a whole number'), (lambda: create_model('mlp', 10, size=28, kernel=3), TypeError, "mlp has no option 'kernel'; it has hidden"),
    (lambda: create_model('alexnet', 10, size=64, kernels=(3,)), ValueError, 'must be equally long, got 5, 1 and 5'), (lambda: image_model('classic/lenet', 3), ValueError, 'give `size`'),
    (lambda: image_model('classic/lenett', 3, size=32), ValueError, "no classic network 'classic/lenett'. Did you mean 'lenet'"),
    (lambda: image_model(create_model('lenet', 3, size=32, channels=1), 3), ValueError, 'was made with channels=1, and 3 is needed')])
def test_errors(call, error, text):
    with pytest.raises(error) as e: call()
    assert text in str(e.value)


# --- In a learner, and out of a bundle -----------------------------------------------------------------------------
@pytest.fixture(scope='module')
def dls():
    from imgcls.data.tables import image_table
    whole = image_table(sample('digits'))
    few = whole[whole.groupby(['label', 'split']).cumcount() < 6].copy()
    few.attrs.update(whole.attrs)
    return image_loaders(few, size=16, augment='none', bs=16, num_workers=0)

def own(n_classes, size):
    side = (size - 2) // 2
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * side * side, n_classes))

@pytest.mark.parametrize('arch', ['classic/lenet', 'classic/minivggnet', lambda: create_model('minigooglenet', 10, size=16, dropout=0.2), lambda: create_model('mlp', 10, size=16, hidden=(20,)), lambda: create_model('minixception', 10, size=16, filters=(8, 16))])
def test_learner_and_bundle(dls, arch, tmp_path):
    made = arch() if callable(arch) else arch
    learn = image_learner(dls, made, normalize=((0.5,) * 3, (0.25,) * 3), compute='fp32')
    assert all(p.requires_grad for p in learn.model.parameters()) and learn.model[0].training
    assert [len(g) > 0 for g in layer_groups(learn.model)] and sum(map(len, layer_groups(learn.model))) == len(list(learn.model.parameters()))
    before = [p.detach().clone() for p in learn.model.parameters()]
    fine_tune(learn, 1, freeze_epochs=1, lr=1e-3)
    assert any(not torch.equal(a, b) for a, b in zip(before, learn.model.parameters()))
    name = made if isinstance(made, str) else made.config['arch']
    assert learn.model.config['arch'] == name
    preds = predict(learn)
    save_bundle(learn, tmp_path/'bundle')
    classifier = load_bundle(tmp_path/'bundle', compute='fp32')
    assert name in repr(classifier)
    again = classifier.predictions(dls.table[dls.table.split == 'valid'])
    np.testing.assert_allclose(preds.probs, again.probs, atol=1e-4)

def test_own_network_of_one_size(dls, tmp_path):
    learn = image_learner(dls, own(10, 16), compute='fp32')
    preds = predict(learn)
    save_bundle(learn, tmp_path/'bundle')
    again = load_bundle(tmp_path/'bundle', module=own(10, 16), compute='fp32').predictions(dls.table[dls.table.split == 'valid'])
    np.testing.assert_allclose(preds.probs, again.probs, atol=1e-4)

def test_from_config():
    model = image_model(create_model('lenet', 3, size=24, filters=(4, 8), hidden=(12,)), 3).eval()
    again = model_from_config(json.loads(json.dumps(model.config))).eval()
    again.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 24, 24)
    with torch.no_grad(): assert torch.equal(model(x), again(x))

def test_local_weights(tmp_path):
    from safetensors.torch import save_file
    net = create_model('lenet', 3, size=24)
    save_file(net[0].state_dict(), tmp_path/'body.safetensors')
    model = image_model('classic/lenet', 3, size=24, weights=tmp_path/'body.safetensors')
    assert torch.equal(model[0].net[0].weight, net[0][0].weight)
