"""Tables of layers whose sums are right, freezing up to any layer, thawing group by group."""
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler, SchedLin
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from test_learner import assert_same, make, small_loaders, state_of
from test_schedules import tensor_loaders
from torch import nn

from imgcls.models.pretrained import image_model, layer_groups
from imgcls.train.surgery import GradualUnfreezing, freeze_before, layer_table, lr_table

families = ['efficientnet_lite0', 'timm/resnet18', 'torchvision/squeezenet1_1', 'timm/vit_tiny_patch16_224', 'torchvision/densenet121']


def model_of(arch): return image_model(arch, 3, pretrained=False)


def three_groups(**kwargs):
    net = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 2))
    return Learner(tensor_loaders(), net, loss_func=CrossEntropyLossFlat(), splitter=lambda m: [list(o.parameters()) for o in m], **kwargs)


def trained(learn): return [n for n, p in learn.model.named_parameters() if p.requires_grad]


# --- layer_table ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('arch', families)
def test_sums_and_shapes_are_those_of_the_network_and_nothing_changes(arch):
    model = model_of(arch)
    model.train()
    model[1].eval()
    before, modes = {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]
    for p in model[0].parameters(): p.requires_grad_(False)
    rng = torch.get_rng_state()
    frame = layer_table(model, size=224)
    assert frame.parameters.sum() == sum(p.numel() for p in model.parameters())
    assert frame.trainable.sum() == sum(p.numel() for p in model[1].parameters())
    assert frame['shape'].iloc[-1] == (3,) and frame.layer.is_unique and 'group' not in frame
    assert_same(before, model.state_dict())
    assert modes == [m.training for m in model.modules()] and torch.equal(rng, torch.get_rng_state())
    assert not any(m._forward_hooks for m in model.modules()) and all(p.grad is None for p in model.parameters())


def test_of_a_learner_leaves_it_alone():
    learn = make('own', small_loaders(4))
    with learn.no_bar(): learn.fit(1)
    before = state_of(learn)
    frame = layer_table(learn)
    assert_same(before, state_of(learn))
    assert frame['shape'].iloc[0] == (8, 15, 15) or (8, 15, 15) in frame['shape'].tolist()
    assert frame.groupby('group').parameters.sum().tolist() == [sum(p.numel() for p in group) for group in learn.opt.param_lists]


def test_of_plain_loaders_the_shape_is_that_of_a_batch():
    learn = three_groups()
    rng = learn.dls.train.rng.getstate()
    assert layer_table(learn)['shape'].tolist() == [(8,)]*5 + [(2,)]
    assert learn.opt is None and learn.dls.train.rng.getstate() == rng


def test_shared_layers_are_counted_once():
    shared = nn.Linear(4, 4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3*16*16, 4), shared, nn.Sequential(shared), nn.Linear(4, 4))
    net[4].weight = net[2].weight
    frame = layer_table(net, size=16)
    assert frame.parameters.sum() == sum(p.numel() for p in net.parameters())


def test_errors_of_the_forward_pass_name_the_size():
    with pytest.raises(ValueError, match=r"\(3, 224, 224\) doesn't go through"): layer_table(nn.Sequential(nn.Flatten(), nn.Linear(10, 2)))
    net = nn.Sequential(nn.Flatten(), nn.Linear(10, 2)).train()
    with pytest.raises(ValueError): layer_table(net)
    assert net.training and not net[0]._forward_hooks


# --- freeze_before -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('arch', families)
def test_every_part_can_be_the_first_that_is_trained(arch):
    model = model_of(arch)
    learn = Learner(small_loaders(2), model, splitter=layer_groups, train_bn=False)
    names = [n for n, _ in model.named_parameters()]
    for part in [n for n, _ in model.named_modules()][1::17]:
        inside = [i for i, n in enumerate(names) if n.startswith(part + '.')]
        if not inside: continue
        freeze_before(learn, part)
        assert trained(learn) == names[inside[0]:]
        assert learn.opt.frozen_idx == min(i for i, o in enumerate(learn.opt.param_lists) if any(p.requires_grad for p in o))
    learn.unfreeze()
    assert trained(learn) == names


@pytest.mark.parametrize('layer,first', [(0, 0), ('0', 0), ('0.1', 2), (1, 2), ('0.2', 4), (2, 4), ('1', 4), (-1, 6), ('2', 6), (-6, 0)])
def test_names_and_rows(layer, first):
    learn = three_groups(train_bn=False)
    freeze_before(learn, layer)
    assert trained(learn) == [n for n, _ in learn.model.named_parameters()][first:]


def test_frozen_layers_stay_to_the_last_bit_though_they_were_trained_before():
    learn = three_groups(wd=0.5, train_bn=False)
    with learn.no_logging():
        learn.fit(2, 0.1)
        freeze_before(learn, '1.0')
        before = {n: p.clone() for n, p in learn.model.named_parameters()}
        learn.fit(2, 0.1)
    for n, p in learn.model.named_parameters(): assert torch.equal(p, before[n]) == n.startswith('0.')


def test_batch_normalization_trains_on_where_fastai_would():
    learn = three_groups(train_bn=True)
    freeze_before(learn, '2')
    by_us = trained(learn)
    learn.freeze_to(2)
    assert by_us == trained(learn) == ['0.1.weight', '0.1.bias', '2.weight', '2.bias']


@pytest.mark.parametrize('layer,text', [('2.0', "no layer is named '2.0'. Did you mean"), ('head', '`layer_table` lists the names'), (6, 'from 0 to 5, got 6'), (-7, 'got -7')])
def test_layers_that_are_not_there(layer, text):
    learn = three_groups()
    with pytest.raises(ValueError, match=text): freeze_before(learn, layer)
    assert len(trained(learn)) == 8 and learn.opt is None


def test_nothing_to_train():
    learn = three_groups()
    learn.splitter = lambda m: [list(m[0].parameters())]
    with pytest.raises(ValueError, match="from '1' on there is nothing to train"): freeze_before(learn, '1')
    assert learn.opt is None and len(trained(learn)) == 8


# --- GradualUnfreezing ---------------------------------------------------------------------------------------------
class Watch(Callback):
    "Which groups are trained in each epoch"
    def before_fit(self): self.seen = []
    def after_train(self): self.seen.append([any(p.requires_grad for p in o) for o in self.opt.param_lists].index(True))


@pytest.mark.parametrize('options,first', [({}, [2, 1, 0, 0]), (dict(groups=2), [1, 0, 0, 0]), (dict(every=2), [2, 2, 1, 1]), (dict(groups=9), [0, 0, 0, 0])])
def test_groups_thaw_from_the_end(options, first):
    learn = three_groups(train_bn=False, cbs=[GradualUnfreezing(**options), Watch()])
    with learn.no_logging():
        learn.fit(4, 1e-2)
        assert learn.watch.seen == first
        learn.get_preds(); learn.validate()
        learn.fit(4, 1e-2)
        assert learn.watch.seen == first
        learn.fit(4, 1e-2, start_epoch=2)
        assert learn.watch.seen == first[2:]


def test_frozen_groups_stand_still_and_trained_ones_keep_their_momentum():
    learn = three_groups(train_bn=False, wd=0.5)
    steps, weights = [], []
    class Keep(Callback):
        def after_train(self):
            weights.append(self.model[0][0].weight.clone())
            steps.append(self.opt.state[self.model[2].weight]['step'])
    with learn.no_logging():
        learn.fit(1, 0.1)                                   # leaves gradients in all layers
        begin = learn.model[0][0].weight.clone()
        learn.fit(3, 0.1, cbs=[GradualUnfreezing(), Keep()])
    assert torch.equal(weights[0], begin) and torch.equal(weights[1], begin) and not torch.equal(weights[2], begin)
    n = len(learn.dls.train)
    assert steps == [2*n, 3*n, 4*n]


def test_goes_with_a_schedule():
    learn = three_groups(train_bn=False)
    with learn.no_logging(): learn.fit(3, cbs=[GradualUnfreezing(), ParamScheduler({'lr': SchedLin(0.1, 0.)})])
    assert np.allclose(np.diff(learn.recorder.lrs), -0.1/(3*len(learn.dls.train)))


# --- lr_table ------------------------------------------------------------------------------------------------------
def test_rates_of_the_groups():
    learn = three_groups()
    frame = lr_table(learn)
    assert frame.lr.tolist() == [1e-3]*3 and learn.opt is None and frame['first'].tolist() == ['0.0', '1.0', '2'] and frame['last'].tolist() == ['0.1', '1.0', '2']
    assert np.allclose(lr_table(learn, slice(1e-4, 1e-2)).lr, [1e-4, 1e-3, 1e-2]) and lr_table(learn, [1e-5, 1e-4, 1e-3]).lr.tolist() == [1e-5, 1e-4, 1e-3]
    learn.freeze()
    assert lr_table(learn, 0.1).lr.tolist() == [0.1]*3 and lr_table(learn).lr.tolist() == [1e-3]*3  # asking sets nothing
    assert lr_table(learn).trainable.tolist() == [16, 0, 18]  # fastai trains batch normalization on
    assert len(lr_table(Learner(learn.dls, nn.Linear(6, 2), loss_func=CrossEntropyLossFlat()))) == 1
