"""Losses from scratch: equal to PyTorch's in value and gradient, for all shapes, types and extreme scores; and one-vs-all in a learner, in predictions and in a bundle."""
import os
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.mixup import CutMix, MixUp
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat
from fastai.optimizer import SGD
from fastai.torch_core import TensorBase, TensorCategory, TensorImage, set_seed
from hypothesis import given, settings, strategies as st
from torch import nn

from imgcls.core import DataError
from imgcls.data.loaders import image_loaders
from imgcls.data.samples import sample
from imgcls.data.tables import image_table
from imgcls.deploy.bundle import save_bundle
from imgcls.deploy.predictor import load_bundle
from imgcls.predictions import Predictions
from imgcls.train.learner import image_learner, predict
from imgcls.train.losses import OneVsAllLoss, cross_entropy, log_softmax, nll_loss, one_vs_all_loss, softmax

quick = settings(max_examples=300 if os.environ.get('IMGCLS_FULL') == '1' else 50, derandomize=True, deadline=None)
reductions = 'mean', 'sum', 'none'
shapes = (1, 1), (1, 2), (1, 10), (7, 1), (7, 2), (64, 10), (3, 1000)
close = dict(rtol=1e-9, atol=1e-12)


def draw(n, c, scale=3., dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(n, c, generator=rng, dtype=torch.float64)).to(dtype), torch.randint(c, (n,), generator=rng)

def shares(n, c, seed=1): return draw(n, c, 1., seed=seed)[0].softmax(1)

def bce(x, hot, pos_weight=None, reduction='mean'):
    "PyTorch's binary cross-entropy, summed over the classes"
    losses = F.binary_cross_entropy_with_logits(x, hot.to(x.dtype), pos_weight=pos_weight, reduction='none').sum(1)
    return dict(mean=losses.mean(), sum=losses.sum(), none=losses)[reduction]

def value_and_gradient(f, x):
    leaf = x.clone().requires_grad_()
    value = f(leaf)
    (value * torch.linspace(1, 2, value.numel(), dtype=value.dtype).view(value.shape)).sum().backward()
    return value.detach(), leaf.grad

def assert_same(ours, theirs, x, **tolerance):
    for a, b in zip(value_and_gradient(ours, x), value_and_gradient(theirs, x)): torch.testing.assert_close(a, b, **(tolerance or close))


# --- Equal to PyTorch's --------------------------------------------------------------------------------------------
@pytest.mark.parametrize('shape', [(5,), (1,), (0, 3), (4, 6), (2, 3, 4), (2, 3, 4, 5)])
def test_softmax(shape):
    x = 4 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for dim in range(-len(shape), len(shape)):
        if not shape[dim]: continue
        assert_same(partial(softmax, dim=dim), partial(F.softmax, dim=dim), x)
        assert_same(partial(log_softmax, dim=dim), partial(F.log_softmax, dim=dim), x)

@pytest.mark.parametrize('n,c', shapes)
@pytest.mark.parametrize('reduction', reductions)
def test_cross_entropy(n, c, reduction):
    x, y = draw(n, c)
    weight = torch.linspace(0.2, 3, c, dtype=torch.float64)
    for targets in (y, F.one_hot(y, c).double(), shares(n, c)):
        for w in (None, weight):
            assert_same(*(partial(f, weight=w, reduction=reduction, **{k: targets}) for f, k in ((cross_entropy, 'targets'), (F.cross_entropy, 'target'))), x)
    for w in (None, weight):
        assert_same(partial(nll_loss, targets=y, weight=w, reduction=reduction), partial(F.nll_loss, target=y, weight=w, reduction=reduction), x.log_softmax(1))

@pytest.mark.parametrize('n,c', shapes)
@pytest.mark.parametrize('reduction', reductions)
def test_one_vs_all(n, c, reduction):
    x, y = draw(n, c)
    weight, hot = torch.linspace(0.2, 3, c, dtype=torch.float64), F.one_hot(y, c)
    none = y.where(torch.arange(n) % 2 == 0, -1)
    for w in (None, weight):
        for targets, matrix in ((y, hot), (hot, hot), (shares(n, c), shares(n, c)), (none, hot * (none >= 0)[:, None]), (torch.full_like(y, -1), 0 * hot)):
            assert_same(partial(one_vs_all_loss, targets=targets, pos_weight=w, reduction=reduction), partial(bce, hot=matrix, pos_weight=w, reduction=reduction), x)

@pytest.mark.parametrize('weight', [[1, 2, 3], (1., 2., 3.), np.array([1, 2, 3]), torch.tensor([1, 2, 3])], ids=lambda o: type(o).__name__)
def test_weights_of_any_kind(weight):
    x, y = draw(9, 3)
    assert_same(lambda o: cross_entropy(o, y, weight=weight), lambda o: F.cross_entropy(o, y, weight=torch.tensor([1., 2, 3]).double()), x)
    assert_same(lambda o: one_vs_all_loss(o, y, pos_weight=weight), lambda o: bce(o, F.one_hot(y, 3), torch.tensor([1., 2, 3]).double()), x)

@pytest.mark.parametrize('dtype,tolerance', [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 6e-2)])
def test_dtypes(dtype, tolerance):
    x, y = draw(16, 10, dtype=dtype)
    same = dict(rtol=tolerance, atol=tolerance)
    for ours, theirs in ((softmax, lambda o: F.softmax(o, 1)), (log_softmax, lambda o: F.log_softmax(o, 1)), (lambda o: cross_entropy(o, y), lambda o: F.cross_entropy(o, y)),
                         (lambda o: one_vs_all_loss(o, y), lambda o: bce(o, F.one_hot(y, 10)))): assert_same(ours, theirs, x, **same)
    assert all(f(x).dtype == dtype for f in (softmax, log_softmax, lambda o: cross_entropy(o, y), lambda o: one_vs_all_loss(o, y)))

@pytest.mark.parametrize('dtype', [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_dtypes_of_targets(dtype):
    x, y = draw(16, 10)
    assert cross_entropy(x, y.to(dtype)) == cross_entropy(x, y) and one_vs_all_loss(x, y.to(dtype)) == one_vs_all_loss(x, y)
    assert cross_entropy(x, F.one_hot(y, 10).to(dtype)) == cross_entropy(x, F.one_hot(y, 10).bool())

def test_gradients_by_differences():
    x, y = draw(4, 5, 1.)
    x.requires_grad_()
    for f in (softmax, log_softmax, lambda o: cross_entropy(o, y), lambda o: cross_entropy(o, shares(4, 5), reduction='none'), lambda o: one_vs_all_loss(o, y, pos_weight=[1, 2, 3, 4, 5])):
        assert torch.autograd.gradcheck(f, x)

def test_simple_gradients():
    "Probabilities minus truth"
    x, y = draw(6, 4)
    hot = F.one_hot(y, 4)
    for f, p in ((cross_entropy, x.softmax(1)), (one_vs_all_loss, x.sigmoid())):
        torch.testing.assert_close(value_and_gradient(partial(f, targets=y, reduction='sum'), x)[1], p - hot, **close)

def test_label_smoothing():
    x, y = draw(32, 7)
    for eps in (0., 0.1, 0.5):
        soft = (1 - eps) * F.one_hot(y, 7).double() + eps / 7
        for reduction in reductions:
            torch.testing.assert_close(cross_entropy(x, soft, reduction=reduction), LabelSmoothingCrossEntropyFlat(eps=eps, reduction=reduction)(x, y).as_subclass(torch.Tensor).double(), rtol=1e-5, atol=1e-5)  # fastai's is in 32 bits


# --- Extreme scores ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_extreme_scores(dtype):
    "Nothing overflows, nor does a gradient, and the loss is what the scores say"
    x = torch.tensor([[1e4, 0, -1e4], [-1e4, -1e4, 1e4], [1e4, 1e4, 1e4], [-1e4, -1e4, -1e4], [0, 0, 0], [1e-30, -1e-30, 0]], dtype=dtype)
    for y in (torch.zeros(6, dtype=torch.long), torch.arange(6) % 3, torch.full((6,), 2)):
        assert_same(partial(cross_entropy, targets=y, reduction='none'), partial(F.cross_entropy, target=y, reduction='none'), x, rtol=1e-2, atol=1e-2)
        assert_same(partial(one_vs_all_loss, targets=y, reduction='none'), partial(bce, hot=F.one_hot(y, 3), reduction='none'), x, rtol=1e-2, atol=1e-2)
        for f in (softmax, log_softmax, partial(cross_entropy, targets=y), partial(one_vs_all_loss, targets=y)):
            assert all(o.isfinite().all() for o in value_and_gradient(f, x))

def test_infinite_scores():
    "A class that is ruled out by a score of minus infinity, as PyTorch has it"
    x = torch.tensor([[0., 1., -torch.inf], [-torch.inf, 2., -torch.inf]], dtype=torch.float64)
    assert torch.equal(softmax(x)[:, 2], torch.zeros(2).double()) and softmax(x)[1, 1] == 1 and log_softmax(x)[1, 1] == 0
    torch.testing.assert_close(softmax(x), x.softmax(1), **close)
    torch.testing.assert_close(log_softmax(x), x.log_softmax(1), **close)
    y = torch.tensor([0, 1])
    assert_same(lambda o: cross_entropy(o, y), lambda o: F.cross_entropy(o, y), x)
    assert cross_entropy(x, torch.tensor([2, 1])) == torch.inf
    assert softmax(torch.tensor([torch.nan, 1.])).isnan().all() and softmax(torch.full((3,), -torch.inf)).isnan().all()

finite = st.floats(-1e4, 1e4, allow_nan=False, width=32)

@quick
@given(st.integers(1, 6).flatmap(lambda c: st.lists(st.lists(finite, min_size=c, max_size=c), min_size=1, max_size=5)), st.data())
def test_any_scores(rows, data):
    x = torch.tensor(rows, dtype=torch.float64)
    n, c = x.shape
    y = torch.tensor(data.draw(st.lists(st.integers(0, c - 1), min_size=n, max_size=n)))
    p = softmax(x)
    assert ((p >= 0) & (p <= 1)).all() and torch.allclose(p.sum(1), torch.ones(n).double()) and (cross_entropy(x, y, reduction='none') >= 0).all()
    assert torch.allclose(softmax(x + 1000), p, atol=1e-9)
    assert_same(lambda o: cross_entropy(o, y), lambda o: F.cross_entropy(o, y), x)
    assert_same(lambda o: one_vs_all_loss(o, y), lambda o: bce(o, F.one_hot(y, c)), x)

@quick
@given(finite, finite)
def test_two_classes_are_a_sigmoid(a, b):
    x = torch.tensor([a, b], dtype=torch.float64)
    torch.testing.assert_close(softmax(x)[0], torch.sigmoid(x[0] - x[1]), **close)

def test_no_images():
    x, y = torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)
    for f in (cross_entropy, one_vs_all_loss):
        assert f(x, y).isnan() and f(x, y, reduction='sum') == 0 and f(x, y, reduction='none').shape == (0,)
    assert F.cross_entropy(x, y).isnan()

def test_input_is_not_changed():
    x, y = draw(5, 4)
    before = x.clone()
    for f in (softmax, log_softmax, lambda o: cross_entropy(o, y), lambda o: one_vs_all_loss(o, y)): f(x)
    assert torch.equal(x, before)


# --- What is refused -----------------------------------------------------------------------------------------------
x3 = torch.zeros(2, 3)
bad = [((x3, torch.tensor([0, 3])), ValueError, 'class numbers must be from {low} to 2, got 0 to 3'), ((x3, torch.tensor([-2, 1])), ValueError, 'from {low} to 2, got -2 to 1'),
       ((x3, torch.tensor([0., 1.])), TypeError, 'class numbers must be whole numbers, got torch.float32: use `targets.long()`'),
       ((x3, torch.tensor([0])), ValueError, r'class numbers (2,) or a row of shares for each image (2, 3), got shape (1,)'), ((x3, torch.zeros(2, 4)), ValueError, 'got shape (2, 4)'),
       ((x3[0], torch.tensor([0])), ValueError, 'a row for each image and a column for each class, got shape (3,)'), ((x3[None], torch.tensor([0])), ValueError, 'got shape (1, 2, 3)'),
       ((x3.numpy(), torch.tensor([0, 1])), TypeError, 'must be tensors, got ndarray and Tensor'), ((x3, [0, 1]), TypeError, 'must be tensors, got Tensor and list')]

@pytest.mark.parametrize('f', [nll_loss, cross_entropy, one_vs_all_loss])
@pytest.mark.parametrize('args,error,text', bad, ids=[o[2][-20:] for o in bad])
def test_refused(f, args, error, text):
    with pytest.raises(error) as e: f(*args)
    assert text.format(low=-1 if f is one_vs_all_loss else 0) in str(e.value)

def test_refused_options():
    y = torch.tensor([0, 1])
    for f in (nll_loss, cross_entropy, one_vs_all_loss):
        with pytest.raises(ValueError, match="`reduction` must be one of 'mean', 'sum', 'none', got 'average'"): f(x3, y, reduction='average')
        with pytest.raises(ValueError, match='must have one number for each of the 3 classes'): f(x3, y, **{'pos_weight' if f is one_vs_all_loss else 'weight': [1, 2]})
    with pytest.raises(ValueError, match='`reduction` must be one of'): OneVsAllLoss(reduction='max')
    with pytest.raises(ValueError, match='class numbers must be from 0'): cross_entropy(x3, torch.tensor([-1, 0]))


# --- One-vs-all in a learner ---------------------------------------------------------------------------------------
def body(): return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU())

@pytest.fixture(scope='module')
def table(): return image_table(sample('digits')).groupby(['label', 'split']).head(8)

@pytest.fixture(scope='module')
def dls(table): return image_loaders(table[table.label < '4'], size=16, augment='none', bs=8, num_workers=0)

def learner(dls, **kwargs):
    set_seed(0)
    learn = image_learner(dls, body(), hidden=(), dropout=0, compute='fp32', **dict(dict(loss_func=OneVsAllLoss()), **kwargs))
    learn.logger = lambda *o: None
    return learn

def test_subclasses_of_tensors():
    "fastai's tensors of images and of labels don't mix by themselves"
    x, y = draw(8, 3, dtype=torch.float32)
    for f in (cross_entropy, one_vs_all_loss, OneVsAllLoss()):
        for kind in (TensorImage, TensorBase): assert f(kind(x), TensorCategory(y)) == f(x, y) and type(f(kind(x), TensorCategory(y))) is torch.Tensor

def test_class_is_the_function():
    x, y = draw(8, 3, dtype=torch.float32)
    weight = [1., 2., 3.]
    for reduction in reductions: assert torch.equal(OneVsAllLoss(pos_weight=weight, reduction=reduction)(x, y), one_vs_all_loss(x, y, pos_weight=weight, reduction=reduction))
    loss = OneVsAllLoss(pos_weight=weight)
    assert torch.equal(loss.activation(x), x.sigmoid()) and torch.equal(loss.decodes(x), x.argmax(1)) and torch.equal(loss.decodes(x.sigmoid()), x.argmax(1))
    assert loss.to('meta').pos_weight.device.type == 'meta' and list(OneVsAllLoss().state_dict()) == []

def test_predictions(dls):
    learn = learner(dls)
    with learn.no_bar(): learn.fit(1, 1e-2)
    for split in ('valid', 'train'):
        preds = predict(learn, split)
        assert preds.one_vs_all and not preds.multi_label and preds.targets.ndim == 1 and np.abs(preds.probs.sum(1) - 1).max() > 1e-2
        np.testing.assert_allclose(preds.probs, 1 / (1 + np.exp(-preds.logits)), rtol=1e-5)
        own = Predictions(preds.probs, preds.vocab, targets=preds.targets, one_vs_all=True).losses
        np.testing.assert_allclose(preds.losses, own, rtol=1e-4)
        if split == 'valid': assert np.isclose(preds.losses.mean(), learn.history[-1]['valid_loss'], rtol=1e-4) and np.isclose(preds.correct.mean(), learn.history[-1]['accuracy'])
    with learn.no_bar():
        probs, _, classes = learn.get_preds(with_decoded=True)
        label, index, p = learn.predict(dls.valid.items.iloc[0])
    assert np.allclose(probs, predict(learn).probs, atol=1e-6) and (classes.numpy() == predict(learn).probs.argmax(1)).all()
    assert label == predict(learn).labels[0] and np.isclose(p.max(), predict(learn).confidence[0], atol=1e-6)
    assert not predict(learner(dls, loss_func=CrossEntropyLossFlat())).one_vs_all

@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixing(dls, mix):
    learn = learner(dls, cbs=mix())
    with learn.no_bar(): learn.fit(2, 1e-2)
    assert all(np.isfinite(o['train_loss']) for o in learn.history)

def test_learns_like_a_binary_loss(dls):
    "The same weights as with PyTorch's binary cross-entropy"
    class Summed(nn.Module):
        reduction = 'mean'
        def forward(self, x, y): return bce(x.as_subclass(torch.Tensor), F.one_hot(y.as_subclass(torch.Tensor), 4), reduction=self.reduction)
    ends = []
    for loss in (OneVsAllLoss(), Summed()):
        learn = learner(image_loaders(dls.table, size=16, augment='none', bs=8, num_workers=0), loss_func=loss, opt_func=SGD)
        with learn.no_bar(): learn.fit(2, 1e-2)
        ends.append(torch.cat([p.detach().flatten() for p in learn.model.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)

def test_several_labels(table):
    "With several labels an image, the matrix of the loaders is the target"
    several = table[table.label < '4'].assign(label=lambda o: o.label.map(lambda v: ('even',) * (v in '02') + ('round',) * (v == '0')))
    learn = learner(image_loaders(several, size=16, augment='none', bs=8, num_workers=0))
    with learn.no_bar(): learn.fit(1, 1e-2)
    preds = predict(learn)
    assert preds.multi_label and not preds.one_vs_all and preds.targets.shape == preds.probs.shape

def test_bundle(dls, tmp_path):
    "The bundle gives the probabilities that validation saw, and says so"
    learn = learner(dls)
    with learn.no_bar(): learn.fit(1, 1e-2)
    preds = predict(learn)
    save_bundle(learn, tmp_path/'bundle')
    classifier = load_bundle(tmp_path/'bundle', compute='fp32', module=body())
    got = classifier.predictions(dls.table[dls.table.split == 'valid'])
    assert classifier.config['one_vs_all'] is True and got.one_vs_all and np.allclose(got.probs, preds.probs, atol=1e-5) and np.allclose(got.losses, preds.losses, rtol=1e-3)

def test_export(dls, tmp_path):
    "fastai's own way of saving takes the loss along"
    learn = learner(dls)
    plain = Learner(dls, learn.model, loss_func=OneVsAllLoss(), path=tmp_path)
    plain.export('x.pkl')
    assert isinstance(load_learner(tmp_path/'x.pkl').loss_func, OneVsAllLoss)


# --- One-vs-all in predictions -------------------------------------------------------------------------------------
def test_rows_need_not_sum_to_1():
    p = Predictions([[0.9, 0.8], [0.1, 0.2]], ['a', 'b'], targets=['b', 'a'], one_vs_all=True)
    assert p.labels.tolist() == ['a', 'b'] and p.correct.tolist() == [False, False] and p[1:].one_vs_all and p[1:].losses.shape == (1,)
    np.testing.assert_allclose(p.losses, [-np.log(0.1) - np.log(0.8), -np.log(0.1) - np.log(0.8)], rtol=1e-5)
    assert list(p.to_frame(k=2)) == ['actual', 'predicted', 'probability', 'loss', 'correct', 'predicted_2', 'probability_2']
    with pytest.raises(DataError, match='sum to 1'): Predictions([[0.9, 0.8]], ['a', 'b'])
    with pytest.raises(DataError, match='between 0 and 1'): Predictions([[1.9, 0.8]], ['a', 'b'], one_vs_all=True)
    with pytest.raises(DataError, match='finite'): Predictions([[np.nan, 0.8]], ['a', 'b'], one_vs_all=True)

def test_losses_as_scikit_learn():
    from sklearn.metrics import log_loss
    rng = np.random.default_rng(0)
    probs, targets = rng.uniform(0.01, 0.99, (50, 4)), rng.integers(0, 4, 50)
    p = Predictions(probs, 'abcd', targets=targets, one_vs_all=True)
    theirs = sum(log_loss(targets == c, probs[:, c], labels=[0, 1]) for c in range(4))
    assert np.isclose(p.losses.mean(), theirs, rtol=1e-5)
