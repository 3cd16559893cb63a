"Batch normalization in the weights of convolutions: the same answers, for any network, and never where it would be wrong"
import copy

import pytest, timm, torch, torchvision
from torch import nn

from imgcls.compute import choose_compute, fold_batch_norm, for_inference, fuse_activations, run_as
from imgcls.models.pretrained import image_model


def norms(model): return sum('BatchNorm' in type(o).__name__ for o in model.modules())


def seasoned(model, x):
    "The normalization has seen numbers, so that it isn't the identity"
    torch.manual_seed(0)
    with torch.no_grad(): model.train()(x)
    for o in model.modules():
        if isinstance(o, nn.modules.batchnorm._BatchNorm) and o.affine: nn.init.uniform_(o.weight, 0.5, 2); nn.init.normal_(o.bias)
    return model


@pytest.mark.parametrize('make, left', [(torchvision.models.resnet18, 0), (torchvision.models.mobilenet_v3_small, 0), (torchvision.models.densenet121, 62), (torchvision.models.convnext_tiny, 0),
                                        ('mobilenetv3_small_050', 0), ('resnetv2_50', 17), ('repvgg_a0', 17), ('tf_efficientnet_lite0', 0), ('embedded', 2)])
def test_networks(make, left):
    x = torch.rand(4, 3, 64, 64)
    model = image_model('efficientnet_lite0', 5) if make == 'embedded' else timm.create_model(make) if isinstance(make, str) else make(weights=None)
    model = seasoned(model, x)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    folded = fold_batch_norm(model, x[:1])
    assert model.training and all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())  # the model is as it was
    assert norms(folded) == left and not folded.training
    with torch.no_grad(): want, got = model.eval()(x), folded(x)
    assert (want - got).abs().max() <= 1e-4 * want.abs().max()


class Wired(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.conv, self.norm, self.other = how, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        if self.how == 'also added': return self.norm(y) + y
        if self.how == 'two norms': return self.norm(y) + self.other(y)
        if self.how == 'conv twice': return self.norm(self.conv(y))
        if self.how == 'norm twice': return self.norm(self.norm(y))
        if self.how == 'between': return self.norm(y.relu_())
        if self.how == 'view': return self.norm(y) + y.view(-1).sum()
        return y


@pytest.mark.parametrize('how', ['also added', 'two norms', 'conv twice', 'norm twice', 'between', 'view', 'unused'])
def test_left_alone(how):
    x = torch.randn(4, 3, 8, 8)
    model = seasoned(Wired(how), x)
    folded = fold_batch_norm(model, x[:1])
    assert norms(folded) == 2
    assert torch.allclose(folded(x), model.eval()(x), atol=1e-6)


def test_weights_that_are_not_trained_stay_so():
    x = torch.randn(2, 3, 8, 8)
    for trained in (True, False):
        folded = fold_batch_norm(seasoned(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), x).requires_grad_(trained), x)
        assert [o.requires_grad for o in folded.parameters()] == [trained] * 2


def test_hooks_and_odd_weights_are_left_alone():
    x = torch.randn(4, 3, 8, 8)
    for change in (lambda o: o[0].register_forward_hook(lambda *_: None), lambda o: o[1].register_forward_pre_hook(lambda *_: None), lambda o: nn.utils.parametrizations.weight_norm(o[0])):
        model = seasoned(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), x)
        change(model)
        assert norms(fold_batch_norm(model, x[:1])) == 1


@pytest.mark.parametrize('conv', [dict(bias=False), dict(groups=3), dict(stride=2, padding=1, dilation=2)])
@pytest.mark.parametrize('affine', [True, False])
def test_kinds_of_convolution(conv, affine):
    x = torch.randn(4, 3, 12, 12)
    model = seasoned(nn.Sequential(nn.Conv2d(3, 6, 3, **conv), nn.BatchNorm2d(6, affine=affine), nn.ReLU(inplace=True)), x)
    for layout in (torch.contiguous_format, torch.channels_last):
        folded = fold_batch_norm(model.to(memory_format=layout), x[:1])
        assert norms(folded) == 0 and torch.allclose(folded(x), model.eval()(x), atol=1e-5)


def test_in_sixteen_bits():
    "The normalization is folded in 32 bits; the first class stays what it was"
    torch.manual_seed(0)
    x = torch.rand(64, 3, 64, 64)
    model = image_model('efficientnet_lite0', 5).eval()
    folded = fold_batch_norm(model, x[:1])
    with torch.no_grad():
        want = model(x)
        with run_as(folded, choose_compute('bf16', device='cpu')): got = folded(x)
    apart = want.topk(2).values.diff().abs()[:, 0] > 0.1 * want.abs().max()
    assert apart.sum() > 5 and torch.equal(want.argmax(1)[apart], got.argmax(1)[apart])


def fused(model): return sum(type(o).__name__ == '_FusedConv' and not isinstance(o.fused_act, nn.Identity) for o in model.modules())


@pytest.mark.parametrize('make, n', [(torchvision.models.resnet18, 1), (torchvision.models.mobilenet_v3_small, 32), (torchvision.models.squeezenet1_0, 26), (torchvision.models.convnext_tiny, 0),
                                     ('tf_efficientnet_b0', 49), ('repvgg_a0', 0), ('embedded', 33)])
@pytest.mark.parametrize('size', [64, 75])
def test_fused_networks(make, n, size):
    x = torch.rand(4, 3, size, size)
    model = image_model('efficientnet_lite0', 5) if make == 'embedded' else timm.create_model(make) if isinstance(make, str) else make(weights=None)
    model = model.eval().requires_grad_(False)
    net = fuse_activations(model, x[:1])
    assert fused(fuse_activations(fold_batch_norm(model, x[:1]), x[:1])) == n
    for layout in (torch.channels_last, torch.contiguous_format):
        for some in (x, x[:1], torch.rand(2, 3, size + 14, size + 7)):  # of other numbers and sizes than the example
            some = some.contiguous(memory_format=layout)
            with torch.inference_mode(): want, got = model(some), net(some)
            assert (want - got).abs().max() <= 1e-4 * want.abs().max()


class Active(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.conv, self.act = how, nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace='in place' in how)

    def forward(self, x):
        y = self.conv(x)
        if self.how == 'also added': return self.act(y) + y
        if self.how == 'act twice': return self.act(self.act(y) - 1)
        if self.how == 'conv twice': return self.act(self.conv(y))
        if self.how == 'before, in place': z = y.sum(); return self.act(y) + z
        if self.how == 'view, in place': z = y[:1]; return self.act(y) + z
        if self.how == 'after, in place': return self.act(y) + y.sum()
        if self.how == 'unused': return y
        return self.act(y)


@pytest.mark.parametrize('how, n', [('alone', 1), ('in place', 1), ('after, in place', 1), ('also added', 0), ('act twice', 0), ('conv twice', 0), ('before, in place', 0), ('view, in place', 0), ('unused', 0)])
def test_fused_only_where_it_is_right(how, n):
    torch.manual_seed(0)
    model, x = Active(how).eval(), torch.randn(2, 3, 8, 8)
    net = fuse_activations(model, x[:1])
    with torch.inference_mode(): want, got = model(x), net(x)
    assert fused(net) == n and torch.allclose(want, got, atol=1e-5)
    assert type(model.conv) is nn.Conv2d and type(model.act) is nn.ReLU and net.conv.weight is model.conv.weight


@pytest.mark.parametrize('options', [dict(padding='same'), dict(padding=1, padding_mode='reflect')])
def test_other_paddings_stay(options):
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, **options), nn.ReLU()), torch.randn(2, 3, 8, 8)
    assert type(fuse_activations(model, x)[0]) is nn.Conv2d


def test_dilated_same_padding_is_left_alone():
    from timm.layers import Conv2dSame
    model, x = nn.Sequential(Conv2dSame(3, 4, 3, stride=2, dilation=2), nn.ReLU()).eval(), torch.rand(1, 3, 31, 32)
    assert type(fuse_activations(model, x)[0]) is Conv2dSame


def test_gradients_flow_through_fused_convolutions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.SiLU(), nn.Conv2d(4, 2, 3)).eval()
    net, x = fuse_activations(model, torch.rand(1, 3, 16, 16)), torch.rand(2, 3, 16, 16, requires_grad=True)
    with torch.inference_mode(): net(x.detach())
    want, got = (torch.autograd.grad(o(x).square().sum(), x)[0] for o in (model, net))
    assert torch.equal(want, got)
    again = copy.deepcopy(net)  # after it ran, too
    with torch.inference_mode(): assert torch.equal(again(x), net(x))


def test_fused_in_sixteen_bits():
    x = torch.rand(8, 3, 64, 64)
    model = image_model('efficientnet_lite0', 5).eval()
    net, chosen = fuse_activations(fold_batch_norm(model, x[:1]), x[:1]), choose_compute('bf16', device='cpu')
    seen = []
    next(o for o in net.modules() if type(o).__name__ == '_FusedConv').register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    with torch.inference_mode():
        with run_as(net, chosen): got = net(x)
        want = model(x)
    assert seen == [torch.bfloat16] and (want - got).abs().max() <= 0.1 * want.abs().max()


def test_without_the_fused_operation(monkeypatch, caplog):
    "On a PyTorch that has it not, or where it answers otherwise, the folded network runs"
    caplog.set_level('INFO', 'imgcls')
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.rand(2, 3, 8, 8)
    chosen = choose_compute('auto', device='cpu')
    for wrong in (lambda *_: (_ for _ in ()).throw(AttributeError('no such operation')), lambda x, *_: torch.ones(len(x), 4, 6, 6)):
        monkeypatch.setattr(torch.ops.mkldnn, '_convolution_pointwise', wrong, raising=False)
        assert torch.equal(for_inference(model, chosen, x)(x), model(x))
        assert 'the activations stay as they are' in caplog.text
        caplog.clear()
