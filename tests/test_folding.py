"Batch normalization in the weights of convolutions: the same answers, for any network, and never where it would be wrong"
import pytest, timm, torch, torchvision
from torch import nn

from imgcls.compute import choose_compute, fold_batch_norm, run_as
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
