"""What is computed of networks without running them, against what PyTorch does: sizes, fields, counts; and drawings that hold what they should."""
import itertools, re, xml.etree.ElementTree as ET

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from imgcls.models.arithmetic import conv_size, layer_costs, output_shape, receptive_field, smallest_size
from imgcls.models.blocks import Branches, DownsampleBlock, InceptionBlock, ResidualBlock, conv_block, separable_conv, separable_ratio
from imgcls.models.drawing import draw_network

torch.manual_seed(0)


# --- Sizes ---------------------------------------------------------------------------------------------------------
def torch_size(make, size):
    try: return make(torch.zeros(1, 1, size, size, device='meta')).shape[-1]
    except RuntimeError: return None

def our_size(*args, **kwargs):
    try: return conv_size(*args, **kwargs)
    except ValueError: return None

def test_sizes_of_convolutions():
    for size, k, s, p, d in itertools.product(range(1, 18), (1, 2, 3, 4, 7), (1, 2, 3, 5), (0, 1, 3), (1, 2, 3)):
        layer = nn.Conv2d(1, 1, k, s, p, d, device='meta')
        assert our_size(size, k, s, p, dilation=d) == torch_size(layer, size), (size, k, s, p, d)

def test_sizes_of_pooling():
    for size, k, s, d, ceil in itertools.product(range(1, 18), (1, 2, 3, 5), (1, 2, 3, 4), (1, 2), (False, True)):
        for p in range(k // 2 + 1):
            layer = nn.MaxPool2d(k, s, p, d, ceil_mode=ceil)
            assert our_size(size, k, s, p, dilation=d, ceil_mode=ceil) == torch_size(layer, size), (size, k, s, p, d, ceil)

def test_pairs():
    out = nn.Conv2d(1, 1, (3, 5), (2, 1), (1, 0))(torch.zeros(1, 1, 20, 30))
    assert conv_size((20, 30), (3, 5), (2, 1), (1, 0)) == tuple(out.shape[2:])
    assert conv_size(20, (3, 5)) == (18, 16) and conv_size((20, 30), 3, padding='same') == (20, 30)

@pytest.mark.parametrize('bad', [dict(size=0, kernel=3), dict(size=3.5, kernel=3), dict(size=8, kernel=0), dict(size=8, kernel=3, padding=-1), dict(size=8, kernel=3, dilation=0)])
def test_bad_numbers_are_named(bad):
    name = [k for k, v in bad.items() if v != 8 and v != 3][0]
    with pytest.raises(ValueError, match=f'`{name}` must be a whole number'): conv_size(**bad)

def test_smallest_size_is_smallest():
    for body in (models.squeezenet1_1(weights=None).features.eval(), nn.Sequential(conv_block(3, 4, 11, 4), nn.MaxPool2d(3, 2), conv_block(4, 4, 5, padding=0)).eval()):
        n = smallest_size(body)
        with torch.no_grad(): assert body(torch.zeros(1, 3, n, n)).shape[-1] >= 1
        with pytest.raises(RuntimeError): body(torch.zeros(1, 3, n - 1, n - 1))


# --- Fields --------------------------------------------------------------------------------------------------------
def seen(model, size, channels=1):
    "Side of the square of pixels that the place in the middle of the map depends on"
    x = torch.rand(1, channels, size, size, requires_grad=True)
    out = model.eval()(x)
    out[0, :, out.shape[2] // 2, out.shape[3] // 2].sum().backward()
    rows = x.grad[0].abs().sum((0, 2)).nonzero().flatten()
    return (rows.max() - rows.min() + 1).item()

def positive(model):
    "Weights above 0, so that nothing cancels out"
    for p in model.parameters(): p.data = p.data.abs() + 0.01
    return model

@pytest.mark.parametrize('make', [
    lambda: nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.AvgPool2d(3, 2), nn.Conv2d(2, 2, 5, dilation=2)), lambda: nn.Sequential(nn.AvgPool2d(2), nn.AvgPool2d(3, 1), nn.Conv2d(1, 1, 3)),
    lambda: nn.Sequential(ResidualBlock(1, 4, 2), ResidualBlock(4, 4)), lambda: nn.Sequential(InceptionBlock(1, 2, 2), InceptionBlock(4, 2, 2)),
    lambda: nn.Sequential(separable_conv(1, 4, 5), separable_conv(4, 4, 3, 2), conv_block(4, 4)), lambda: Branches(nn.Conv2d(1, 1, 7, padding=3), nn.Identity(), join='add')])
def test_field_is_what_the_gradient_reaches(make):
    model = positive(make())
    assert receptive_field(model, size=65) == seen(model, 65)

def test_fields_of_known_networks():
    "Those that Araujo, Norris and Sim (2019) give"
    with torch.device('meta'):
        assert receptive_field(models.alexnet(weights=None).features) == 195
        assert receptive_field(models.vgg16(weights=None).features) == 212
        assert receptive_field(models.resnet18(weights=None)) == 435

def test_field_of_lists_and_modules():
    layers = [nn.Conv2d(1, 1, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3, dilation=2)]
    assert receptive_field(layers) == receptive_field([5, (2, 2), (3, 1, 2)]) == receptive_field(nn.Sequential(*layers)) == 14
    assert receptive_field([]) == 1
    assert receptive_field(nn.Conv2d(1, 1, (1, 7)), size=20) == (1, 7)

def test_after_a_mean_over_all_places_everything_is_seen():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        def forward(self, x):
            x = self.conv(x)
            return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
    assert receptive_field(Gated(), size=16) == 18  # the image and its padding


# --- Counts --------------------------------------------------------------------------------------------------------
families = ['alexnet', 'densenet121', 'efficientnet_b0', 'mnasnet0_5', 'mobilenet_v3_small', 'mobilenet_v2', 'resnext50_32x4d', 'shufflenet_v2_x0_5', 'squeezenet1_1', 'vgg11_bn', 'googlenet', 'convnext_tiny', 'vit_b_16']

@pytest.mark.parametrize('name', families)
def test_counts(name):
    with torch.device('meta'): net = models.get_model(name, weights=None, **({'init_weights': False, 'aux_logits': False} if name == 'googlenet' else {})).eval()
    costs = layer_costs(net, 224)
    assert costs.parameters.sum() == sum(p.numel() for p in net.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter: net(torch.zeros(1, 3, 224, 224, device='meta'))
    multiplying = costs.kind.str.contains('Conv2d$|Linear|Attention|Encoder')
    assert counter.get_total_flops() == 2 * costs.multiply_adds[multiplying].sum()
    assert costs.output.iloc[-1][0] == 1000

def test_counts_of_attention():
    import timm
    with torch.device('meta'): net = timm.create_model('vit_tiny_patch16_224', pretrained=False).eval()
    costs = layer_costs(net, 224)
    assert costs.parameters.sum() == sum(p.numel() for p in net.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter: net(torch.zeros(1, 3, 224, 224, device='meta'))
    assert counter.get_total_flops() in (2 * costs.multiply_adds[~costs.kind.str.contains('Norm')].sum(), 2 * costs.multiply_adds[costs.kind.str.contains('Conv|Linear')].sum())

@pytest.mark.parametrize('layer,n', [
    (nn.Conv2d(4, 8, 3, padding=1, groups=4), 8 * 10 * 10 * 9), (nn.Conv2d(4, 4, (1, 3), padding=(0, 1), groups=2, bias=False), 4 * 100 * 2 * 3), (nn.ConvTranspose2d(4, 2, 2, 2), 4 * 100 * 2 * 4),
    (nn.MaxPool2d(2), 4 * 25 * 4), (nn.AvgPool2d(3, 1), 4 * 64 * 9), (nn.AdaptiveAvgPool2d(1), 400), (nn.AdaptiveMaxPool2d(2), 400), (nn.AdaptiveAvgPool2d(4), 4 * 12 * 12),
    (nn.BatchNorm2d(4), 400), (nn.GroupNorm(2, 4), 400), (nn.ReLU(), 0), (nn.Flatten(), 0), (nn.Linear(10, 3), 4 * 10 * 10 * 3)])
def test_multiply_adds_of_layers(layer, n):
    row = layer_costs(layer, 10, channels=4).iloc[-1]
    assert row.multiply_adds == n and row.parameters == sum(p.numel() for p in layer.parameters())

def test_functions_count_as_layers():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
        def forward(self, x): return F.max_pool2d(F.relu(self.conv(x)), 2)
    net, chain = Functional(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    assert layer_costs(net, 16).multiply_adds.sum() == layer_costs(chain, 16).multiply_adds.sum()
    assert receptive_field(net, size=16) == receptive_field(chain, size=16) == 4

def test_a_layer_used_twice_has_two_rows_and_counts_once():
    conv = nn.Conv2d(3, 3, 3)
    costs = layer_costs(nn.Sequential(conv, conv), 16)
    assert list(costs.parameters) == [84, 0] and list(costs.receptive_field) == [3, 5]

def test_nothing_is_left_behind():
    net = models.resnet18(weights=None)
    net.layer1.eval()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    layer_costs(net, 64)
    with pytest.raises(ValueError): layer_costs(net, 64, channels=4)
    draw_network(net, 64)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and torch.equal(state, torch.get_rng_state())
    assert net.training and not net.layer1.training and not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(p.device.type == 'cpu' for p in net.parameters())

@pytest.mark.parametrize('n_in,n_out,kernel', [(8, 8, 3), (16, 64, 3), (64, 16, 5), (3, 7, 7)])
def test_ratio_of_the_separable_convolution(n_in, n_out, kernel):
    both = [layer_costs(make(n_in, n_out, kernel, norm=False, activation=None, bias=False), 20).multiply_adds.sum() for make in (separable_conv, conv_block)]
    assert both[0] / both[1] == pytest.approx(separable_ratio(n_out, kernel))

def test_blocks_with_branches_count_what_they_have():
    for block, out in ((InceptionBlock(6, 4, 8), (12, 15, 15)), (DownsampleBlock(6, 4), (10, 7, 7)), (ResidualBlock(6, 12, 2), (12, 8, 8)), (ResidualBlock(6, 6), (6, 15, 15))):
        assert output_shape(block, 15, channels=6) == out == tuple(block(torch.zeros(2, 6, 15, 15)).shape[1:])
        assert layer_costs(block, 15, channels=6).parameters.sum() == sum(p.numel() for p in block.parameters())


# --- Drawings ------------------------------------------------------------------------------------------------------
def words(drawing): return [''.join(o.itertext()) for o in ET.fromstring(drawing.svg).iter() if o.tag.endswith('}text')]

def boxes(drawing): return len(re.findall('<g><title>', drawing.svg))

def test_a_small_network_is_drawn_layer_by_layer():
    drawing = draw_network(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(392, 5)), 16)
    assert boxes(drawing) == 3
    assert {'3 × 16 × 16', '8 × 14 × 14', '8 × 7 × 7 → 392', '5', 'Conv2d 3×3', 'BatchNorm2d, ReLU · 240 parameters'} <= set(words(drawing))

@pytest.mark.parametrize('name,most', [('resnet18', 14), ('resnet152', 14), ('vgg19_bn', 30), ('mobilenet_v2', 25), ('efficientnet_b0', 30), ('densenet121', 20), ('convnext_tiny', 20)])
def test_a_deep_network_stays_readable(name, most):
    with torch.device('meta'): net = models.get_model(name, weights=None)
    drawing = draw_network(net, 224)
    box = ET.fromstring(drawing.svg).attrib
    assert boxes(drawing) <= most and float(box['width']) <= 1200 and float(box['height']) <= 1000

def test_repeats_are_drawn_once():
    one = lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    drawing = draw_network(nn.Sequential(*[one() for _ in range(30)]), 8)
    assert boxes(drawing) == 2 and '× 30' in words(drawing)
    different = draw_network(nn.Sequential(*[nn.Conv2d(4 + i, 5 + i, 3, padding=1) for i in range(60)]), 8)
    assert boxes(different) == 60

def test_branches_are_drawn_side_by_side():
    for block, how in ((InceptionBlock(4, 2, 2), 'concatenate'), (ResidualBlock(4, 4), 'add, ReLU'), (ResidualBlock(4, 8, 2), 'add, ReLU')): assert how in words(draw_network(block, 8))
    assert 'from before: 64 × 28 × 28' in words(draw_network(models.resnet18(weights=None).layer2[0], 28))

def test_text_is_escaped():
    class Odd(nn.Module):
        def forward(self, x): return x * 2
    Odd.__name__ = 'A<b>&"c"'
    assert 'A<b>&"c"' in words(draw_network(nn.Sequential(nn.Conv2d(3, 3, 1), Odd()), 8))


def test_same_padding_gives_pairs_for_pairs():
    assert conv_size(20, 3, padding='same') == 20
    assert conv_size(20, (3, 5), padding='same') == conv_size((20, 20), 3, padding='same') == (20, 20)
