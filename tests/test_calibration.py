"""Calibration: bins that hold every image, an error that is 0 only where it is, and a temperature that changes no answer."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from scipy.stats import binom

from imgcls.core import DataError
from imgcls.evaluate.calibration import apply_temperature, calibration_error, fit_temperature, plot_reliability, reliability
from imgcls.predictions import Predictions


def drawn(n, *, classes=4, scale=2., true_temperature=1., seed=0, **kwargs):
    "Predictions whose labels are drawn with the probabilities at another temperature"
    rng = np.random.default_rng(seed)
    logits = scale*rng.normal(size=(n, classes))
    targets = (softmax(logits/true_temperature, axis=1).cumsum(1) > rng.random((n, 1))).argmax(1)
    return Predictions(softmax(logits, axis=1), [f'c{i}' for i in range(classes)], targets=targets, logits=logits, **kwargs)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), bins=st.integers(1, 40), equal=st.sampled_from(['width', 'count']), digits=st.integers(0, 3), seed=st.integers(0, 99))
def test_bins_hold_every_image(n, bins, equal, digits, seed):
    rng = np.random.default_rng(seed)
    p = np.clip(np.round(rng.random(n), digits), 0.5, 1)  # many ties, and probabilities on the edges
    preds = Predictions(np.stack([p, 1 - p], 1), ['a', 'b'], targets=rng.integers(2, size=n))
    found = reliability(preds, bins=bins, equal=equal)
    assert found['n'].sum() == n and (found['n'] > 0).all() and len(found) <= bins
    assert np.isclose((found['n']*found['accuracy']).sum(), preds.correct.sum()) and np.isclose((found['n']*found['confidence']).sum(), preds.confidence.sum(), rtol=1e-5)
    assert ((found['low'] - 1e-6 <= found['confidence']) & (found['confidence'] <= found['high'] + 1e-6)).all()
    e = calibration_error(preds, bins=bins, equal=equal, draws=20)
    assert np.isclose(e.value, (found['n']*abs(found['accuracy'] - found['confidence'])).sum()/n, atol=1e-6) and 0 <= e.low <= e.value <= e.high <= 1


def test_bins_of_equal_count():
    found = reliability(drawn(1000), bins=10, equal='count')
    assert (found['n'] == 100).all()


def test_error_of_a_calibrated_classifier():
    "0 lies in nearly every interval where 0 is true, and in none where the classifier is far too sure"
    assert np.mean([calibration_error(drawn(300, seed=i), draws=200).low == 0 for i in range(40)]) >= 0.85
    assert all(calibration_error(drawn(1000, true_temperature=3, seed=i), draws=200).low > 0.05 for i in range(10))


def test_interval_holds_the_error():
    "Said 0.9 always, right 0.8 of the time: the error is 0.1"
    said, rng = np.tile([0.9, 0.1], (400, 1)), np.random.default_rng(0)
    held = [o.low <= 0.1 <= o.high for o in (calibration_error(Predictions(said, ['a', 'b'], targets=rng.random(400) > 0.8), draws=200) for _ in range(80))]
    assert sum(held) >= binom.ppf(0.001, 80, 0.93)


def test_interval_with_many_bins():
    "Away from 0 it holds the error in about nine of ten cases at 400 images"
    many, (true, held) = drawn(400_000, true_temperature=1.6, seed=1), (None, [])
    true, rng = calibration_error(many, draws=1).value, np.random.default_rng(0)
    for _ in range(60):
        o = calibration_error(many[rng.integers(len(many), size=400)], draws=200)
        held.append(o.low <= true <= o.high)
    assert sum(held) >= binom.ppf(0.001, 60, 0.88)


def test_seeds_and_draws():
    preds = drawn(200)
    assert calibration_error(preds, draws=50) == calibration_error(preds, draws=50) != calibration_error(preds, draws=50, seed=1)


@pytest.mark.parametrize('true', [0.4, 1., 2.5])
def test_temperature_is_found(true):
    t = fit_temperature(drawn(20_000, true_temperature=true))
    assert abs(np.log(t/true)) < 0.05


def test_temperature_without_logits():
    preds = drawn(3000, true_temperature=2)
    bare = Predictions(preds.probs, preds.vocab, targets=preds.targets)
    assert np.isclose(fit_temperature(bare), fit_temperature(preds), rtol=1e-3)
    np.testing.assert_allclose(apply_temperature(bare, 2).probs, apply_temperature(preds, 2).probs, atol=1e-5)
    assert apply_temperature(bare, 2).logits is None


def test_temperature_keeps_the_rest():
    preds = drawn(50, items=[f'{i}.jpg' for i in range(50)], root='photos', split='valid', features=np.ones((50, 3)))
    soft = apply_temperature(preds, 3)
    assert (soft.labels == preds.labels).all() and (soft.items == preds.items).all() and soft.split == 'valid' and soft.root == preds.root and soft.features is not None
    np.testing.assert_allclose(softmax(soft.logits, axis=1), soft.probs, atol=1e-6)
    np.testing.assert_allclose(soft.losses, -np.log(soft.probs[np.arange(50), soft.targets]), rtol=1e-4)
    assert np.isclose(fit_temperature(apply_temperature(preds, 3))*3, fit_temperature(preds), rtol=1e-3)


def test_temperature_with_a_yes_or_no_for_each_class():
    rng = np.random.default_rng(0)
    logits = 4*np.eye(3)[rng.integers(3, size=500)] - 2 + rng.normal(size=(500, 3))
    targets = np.where(rng.random(500) < 0.8, logits.argmax(1), rng.integers(3, size=500))
    preds = Predictions(expit(3*logits), ['a', 'b', 'c'], targets=targets, logits=3*logits, one_vs_all=True)
    t = fit_temperature(preds)
    soft = apply_temperature(preds, t)
    assert t > 1.5 and soft.one_vs_all and soft.losses.mean() < preds.losses.mean()
    assert np.isclose(fit_temperature(Predictions(preds.probs, preds.vocab, targets=targets, one_vs_all=True)), t, rtol=0.02)


def test_no_temperature():
    sure = Predictions([[0.9, 0.1]]*5, ['a', 'b'], targets=[0]*5)
    with pytest.raises(DataError, match='all 5 answers are right'): fit_temperature(sure)
    with pytest.raises(DataError, match='0.200 of 5 answers are right'): fit_temperature(Predictions([[0.9, 0.1]]*5, ['a', 'b'], targets=[0, 1, 1, 1, 1]))


def test_probabilities_of_exactly_zero_and_one():
    preds = Predictions([[1., 0.]]*9 + [[0.5, 0.5]], ['a', 'b'], targets=[0]*7 + [1]*3)
    assert np.isfinite(fit_temperature(preds)) and np.isfinite(apply_temperature(preds, 0.01).probs).all()
    assert reliability(preds)['n'].sum() == 10


@pytest.mark.parametrize('classes', [2, 100])
def test_pictures(classes):
    preds = drawn(120, classes=classes)
    fig = plot_reliability({'$x^2$ 猫\n' + 'long '*3: preds, 'b': preds[:3], 'c': preds[:1]})
    assert len(fig.axes) == 6
    fig.canvas.draw()
    assert len(plot_reliability(preds).axes) == 2


@pytest.mark.parametrize('function', [reliability, calibration_error, fit_temperature, plot_reliability])
def test_what_is_refused(function):
    preds = drawn(10)
    with pytest.raises(DataError, match='needs `targets`'): function(Predictions(preds.probs, preds.vocab))
    with pytest.raises(DataError, match='are empty'): function(preds[[]])
    with pytest.raises(DataError, match='needs one label an image'): function(Predictions(preds.probs, preds.vocab, targets=np.ones((10, 4)), multi_label=True))


@pytest.mark.parametrize('call,text', [(lambda o: calibration_error(o, level=95), '`level` must lie between 0 and 1, got 95'), (lambda o: calibration_error(o, draws=0), '`draws` must be'),
    (lambda o: calibration_error(o, bins=2.5), '`bins` must be a whole number'), (lambda o: apply_temperature(o, float('nan')), '`temperature` must be'), (lambda o: plot_reliability({}), 'empty dictionary')],
    ids=['level', 'draws', 'bins', 'temperature', 'nothing'])
def test_bad_options(call, text):
    with pytest.raises(ValueError, match=text): call(drawn(10))
