"""The promise of accuracy holds although the threshold is chosen on the same images; scores of what is foreign."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom
from sklearn.metrics import roc_auc_score

from imgcls.core import DataError
from imgcls.evaluate.refusal import (FeatureDistance, Foreign, Refusal, answered, decision_settings, energy_score, foreign_auroc, foreign_threshold, plot_risk_coverage,
    refusal_threshold, risk_coverage)
from imgcls.predictions import Predictions
from imgcls.train.vectors import ClassDistance, unit_vectors


def told(score, right):
    "Predictions of two classes with these scores from 0 to 1, right or wrong"
    said = 0.5 + np.asarray(score)/2.001
    return Predictions(np.stack([said, 1 - said], 1), ['a', 'b'], targets=np.where(right, 0, 1))


def world(n, seed, chance):
    rng = np.random.default_rng(seed)
    score = rng.random(n)
    return told(score, rng.random(n) < chance(score))


# --- refusal_threshold ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('n,accuracy,level', [(341, 0.95, 0.95), (341, 0.9, 0.9), (80, 0.9, 0.95)])
@pytest.mark.parametrize('kind', ['just too bad', 'falls', 'two steps'])
def test_the_promise_holds(n, accuracy, level, kind):
    "Broken no oftener than one minus the level, within the chance of 200 simulations"
    chance = {'just too bad': lambda s: np.full_like(s, accuracy - 0.002), 'falls': lambda s: 1 - 2.2*(1 - accuracy)*(1 - s)**1.2,
              'two steps': lambda s: np.where(s > 0.4, accuracy - 0.001, 0.5)}[kind]
    grid = (np.arange(20_000) + 0.5)/20_000
    truth = chance(grid)[::-1].cumsum()[::-1]/np.arange(20_000, 0, -1)
    broken = 0
    for i in range(200):
        t = refusal_threshold(world(n, i, chance), accuracy=accuracy, level=level).threshold
        broken += t is not None and truth[min(int(max(2.001*(t - 0.5), 0)*20_000), 19_999)] < accuracy
    assert broken <= binom.ppf(0.999, 200, 1 - level)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 400), wrong=st.floats(0, 0.6), accuracy=st.sampled_from([0.5, 0.9, 0.97, 0.999]), ties=st.sampled_from([1, 5, 10**6]), seed=st.integers(0, 50))
def test_what_is_returned(n, wrong, accuracy, ties, seed):
    rng = np.random.default_rng(seed)
    score = np.floor(rng.random(n)*ties)/ties
    preds = told(score, rng.random(n) > wrong*(1 - score))
    r = refusal_threshold(preds, accuracy=accuracy)
    assert r.sentence == str(r) and f'{n:,} images' in r.sentence and r.n == n
    if r.threshold is None:
        assert (r.answered, r.right) == (0, 0) and 'do not show' in str(r) and (r.needed is None or r.needed > n)
        with pytest.raises(DataError, match='there is no threshold'): answered(preds, r)
        return
    part = answered(preds, r)
    assert len(part) == r.answered > 0 and part.correct.sum() == r.right and 0 <= r.threshold <= 1
    assert beta.ppf(0.05, r.right, r.answered - r.right + 1) >= accuracy  # the one-sided bound of Clopper and Pearson
    assert np.isclose(r.coverage.value, len(part)/n) and r.coverage.low <= r.coverage.value <= r.coverage.high
    assert np.isclose(r.answered_accuracy.value, part.correct.mean())


def test_the_fewest_images():
    "59 answers, all right, show 0.95, and 58 don't"
    sure = told(np.linspace(0, 1, 59), np.ones(59))
    assert refusal_threshold(sure, accuracy=0.95).threshold == 0
    less = refusal_threshold(sure[1:], accuracy=0.95)
    assert less.threshold is None and 'even if all were answered, and rightly, it would take 59' in str(less)


def test_all_right_and_all_wrong():
    assert refusal_threshold(told(np.linspace(0, 1, 500), np.ones(500)), accuracy=0.99).sentence.startswith('Answer always: this answers 100 % of the images')
    none = refusal_threshold(told(np.linspace(0, 1, 500), np.zeros(500)), accuracy=0.9)
    assert none.needed is None and 'that would take a better classifier' in str(none)


def test_needed_images_would_do():
    "So many more of the same images show it"
    preds = world(150, 3, lambda s: 1 - 0.2*(1 - s)**2)
    short = refusal_threshold(preds, accuracy=0.97)
    assert short.threshold is None and 150 < short.needed < 5000
    times = short.needed//150 + 2
    again = told(np.tile(2.001*(preds.confidence - 0.5), times) + np.repeat(np.arange(times)*1e-6, 150), np.tile(preds.correct, times))
    assert refusal_threshold(again, accuracy=0.97).threshold is not None


def test_the_same_probability_for_all():
    same = refusal_threshold(told(np.full(300, 0.5), np.ones(300)), accuracy=0.9)
    assert same.threshold == 0 and same.answered == 300
    assert refusal_threshold(Predictions(np.tile([1., 0.], (300, 1)), ['a', 'b'], targets=np.repeat([0, 1], [200, 100])), accuracy=0.9).threshold is None


def test_the_order_of_the_images_is_nothing():
    preds, order = world(400, 0, lambda s: 1 - 0.3*(1 - s)**2), np.random.default_rng(1).permutation(400)
    assert refusal_threshold(preds, accuracy=0.9) == refusal_threshold(preds[order], accuracy=0.9)


def test_risk_coverage():
    preds = told([0.9, 0.9, 0.5, 0.1], [True, False, True, False])
    curve = risk_coverage(preds)
    assert curve['answered'].tolist() == [2, 3, 4] and curve['wrong'].tolist() == [1, 1, 2] and curve['coverage'].tolist() == [0.5, 0.75, 1]
    assert ((curve['low'] <= curve['risk']) & (curve['risk'] <= curve['high'])).all()
    for o, r in ((preds, None), (preds[:1], None), (world(300, 0, lambda s: s), Refusal(None, 0.9, level=0.95, n=300, why='x')), (world(300, 0, lambda s: s), Refusal(0.8, 0.9, level=0.95, n=300))):
        plot_risk_coverage(o, refusal=r).canvas.draw()


@pytest.mark.parametrize('function', [refusal_threshold, risk_coverage, plot_risk_coverage])
def test_what_is_refused(function):
    preds = told([0.5]*5, [True]*5)
    with pytest.raises(DataError, match='needs `targets`'): function(Predictions(preds.probs, preds.vocab))
    with pytest.raises(DataError, match='are empty'): function(preds[[]])
    with pytest.raises(DataError, match='needs one label an image'): function(Predictions(preds.probs, preds.vocab, targets=np.ones((5, 2)), multi_label=True))


@pytest.mark.parametrize('name,value', [('accuracy', 1), ('accuracy', 0), ('accuracy', 97), ('level', 1.), ('level', -1)])
def test_bad_options(name, value):
    with pytest.raises(ValueError, match=f'`{name}` must lie between 0 and 1, got {value}'): refusal_threshold(told([0.5]*5, [True]*5), **{name: value})


# --- foreign ----------------------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(m=st.integers(1, 40), n=st.integers(1, 40), shift=st.floats(-5, 5), digits=st.integers(0, 3), seed=st.integers(0, 50))
def test_auroc(m, n, shift, digits, seed):
    rng = np.random.default_rng(seed)
    known, foreign = np.round(rng.normal(size=m), digits), np.round(rng.normal(shift, size=n), digits)
    e = foreign_auroc(known, foreign)
    assert np.isclose(e.value, roc_auc_score(np.repeat([0, 1], [m, n]), np.r_[known, foreign])) and e.n == m + n
    assert 0 <= e.low <= e.value + 1e-9 and e.value - 1e-9 <= e.high <= 1 and e.high - e.low > 0.01
    other = foreign_auroc(-known, -foreign)
    assert np.isclose(other.value, 1 - e.value) and np.isclose(other.low, 1 - e.high, atol=1e-6)


@pytest.mark.parametrize('shift', [0., 1.2, 2.5])
def test_auroc_interval_holds_the_truth(shift):
    from scipy.stats import norm
    true, rng, held = norm.cdf(shift/2**0.5), np.random.default_rng(0), 0
    for _ in range(300):
        e = foreign_auroc(rng.normal(size=60), rng.normal(shift, size=40))
        held += e.low <= true <= e.high
    assert held >= binom.ppf(0.001, 300, 0.94)


def test_energy():
    z = np.array([[1., 2, 3], [1000, 0, 0], [-1000, -1000, -1000]])
    np.testing.assert_allclose(energy_score(z), [-np.log(np.exp(z[0]).sum()), -1000, 1000 - np.log(3)])
    np.testing.assert_allclose(energy_score(z, temperature=2), 2*energy_score(z/2))
    for bad in ([1., 2], [[np.nan, 0]], np.zeros((2, 2, 2))):
        with pytest.raises(ValueError, match='`logits` must have finite numbers'): energy_score(bad)
    with pytest.raises(ValueError, match='`temperature` must be'): energy_score(z, temperature=0)


def test_distance():
    rng = np.random.default_rng(0)
    train, x = rng.normal(size=(300, 8)), rng.normal(size=(1100, 8))
    cosines = (x/np.linalg.norm(x, axis=1, keepdims=True)) @ (train/np.linalg.norm(train, axis=1, keepdims=True)).T
    for k in (1, 10, 300): np.testing.assert_allclose(FeatureDistance(train, k=k).score(x), 1 - np.sort(cosines, axis=1)[:, -k], atol=1e-5)
    np.testing.assert_allclose(FeatureDistance(train, k=1).score(5*train), 0, atol=1e-6)
    assert FeatureDistance(train).score(np.zeros((2, 8))).tolist() == [1, 1] and len(FeatureDistance(train).score(np.zeros((0, 8)))) == 0
    with pytest.raises(DataError, match='features=True'): FeatureDistance(None)
    with pytest.raises(ValueError, match='must have finite numbers'): FeatureDistance([[np.inf, 1]])
    for k in (0, 301, 1.):
        with pytest.raises(ValueError, match='`k` must be a whole number from 1 to 300'): FeatureDistance(train, k=k)


@pytest.mark.parametrize('n,keep', [(19, 0.95), (100, 0.9), (341, 0.99)])
def test_known_images_are_kept(n, keep):
    rng, kept = np.random.default_rng(0), []
    for _ in range(400):
        o = foreign_threshold(rng.random(n), keep=keep)
        kept.append(o.threshold)  # of uniform scores, it is the share that is kept
    assert keep - 3*np.std(kept)/20 <= np.mean(kept) <= keep + 1/n + 3*np.std(kept)/20
    with pytest.raises(DataError, match='known images are too few to keep'): foreign_threshold(rng.random(int(keep/(1 - keep) + 1e-9) - 1), keep=keep)


# --- decision_settings ------------------------------------------------------------------------------------------------
def test_decisions_fit_each_other(caplog):
    rng = np.random.default_rng(0)
    targets = rng.integers(3, size=600)
    logits = 6*np.eye(3)[targets] + 2.5*rng.normal(size=(600, 3))
    p = np.exp(logits)/np.exp(logits).sum(1, keepdims=True)
    preds = Predictions(p, ['a', 'b', 'c'], targets=targets, logits=logits)
    found = decision_settings(preds, accuracy=0.95)
    assert isinstance(found['refusal'], Refusal) and isinstance(found['foreign'], Foreign) and found['temperature'] > 0 and found['refusal'].n == round(600*0.99) + 1
    assert decision_settings(preds, accuracy=0.95, keep=None)['foreign'] is None
    assert decision_settings(preds[:50], accuracy=0.999)['refusal'] is None and 'do not show' in caplog.text and '50 known images are too few' in caplog.text
    with pytest.raises(DataError, match='the energy needs `logits`'): decision_settings(Predictions(p, preds.vocab, targets=targets))


def test_an_estimator_in_a_bundle_keeps_the_promise():
    "Probabilities of exactly 0 are sharpened and softened alike by `apply_temperature` and by a bundle"
    from sklearn.neighbors import KNeighborsClassifier
    from imgcls.evaluate.calibration import apply_temperature
    from imgcls.train.vectors import estimator_probs
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 2)), rng.integers(3, size=300)
    model, vocab = KNeighborsClassifier(3).fit(x, y), ['a', 'b', 'c']
    plain = Predictions(estimator_probs(model, x, vocab), vocab, targets=y)
    assert (plain.probs == 0).any()
    for t in (0.5, 7., 30.): np.testing.assert_allclose(estimator_probs(model, x, vocab, temperature=t), apply_temperature(plain, t).probs, atol=1e-6)


def test_what_is_shown_instead():
    probs = np.c_[np.linspace(0.5, 1, 341), 1 - np.linspace(0.5, 1, 341)]
    preds = Predictions(probs, ['a', 'b'], targets=(np.arange(341) % 12 == 0).astype(int))
    found = refusal_threshold(preds, accuracy=0.99)
    assert found.threshold is None and 0.8 < found.shown < 0.93 and f'What they do show is {found.shown:g}' in found.sentence
    assert refusal_threshold(preds, accuracy=found.shown).threshold is not None
    assert refusal_threshold(preds, accuracy=found.shown + 0.01).threshold is None


def test_all_answers_right():
    "No temperature fits, and the settings are made all the same"
    probs = np.c_[np.linspace(0.6, 1, 200), 1 - np.linspace(0.6, 1, 200)]
    found = decision_settings(Predictions(probs, ['a', 'b'], targets=np.zeros(200, int)), accuracy=0.9, keep=None)
    assert found['temperature'] == 1 and found['refusal'].threshold == 0


# --- ClassDistance ----------------------------------------------------------------------------------------------------
def test_class_distance_is_that_of_mahalanobis():
    "With all directions kept but one, it is the distance by the inverse of the covariance within classes, times the variance of the rest"
    rng = np.random.default_rng(0)
    y = np.arange(900) % 3
    x = unit_vectors(4*np.eye(3, 6)[y] + rng.normal(size=(900, 6))*[.3, .5, .2, 1, .7, .4]).astype(float)
    o = ClassDistance.fit(x, y, k=5)
    means = np.stack([x[y == i].mean(0) for i in range(3)])
    cov = (x - means[y]).T @ (x - means[y])/900
    by_hand = np.min([np.einsum('ij,jk,ik->i', x - m, np.linalg.inv(cov), x - m) for m in means], axis=0)*np.linalg.eigvalsh(cov)[0]
    np.testing.assert_allclose(o.score(x), by_hand, rtol=1e-3, atol=1e-4)

@pytest.mark.parametrize('k', [0, 1, 64])
def test_class_distance(k):
    rng = np.random.default_rng(1)
    y = np.arange(300) % 5
    x = 3*rng.normal(size=(5, 40))[y] + rng.normal(size=(300, 40))
    o = ClassDistance.fit(x, y, k=k)
    near, far = o.score(3*x), o.score(3*rng.normal(size=(200, 40)))
    assert o.axes.shape == (min(k, 40), 40) and o.means.shape == (5, 40) and (near >= 0).all() and (far <= 4).all() and foreign_auroc(near, far).value > 0.99
    np.testing.assert_allclose(near, o.score(x), atol=1e-5)  # lengths don't count
    again = ClassDistance.fit(x, y, k=k)
    assert (again.axes == o.axes).all() and len(o.score(x[:0])) == 0
    assert f'{len(o.axes)} directions' in repr(o)

def test_class_distance_of_few():
    "One image, images that are all alike, a class with one image, two-dimensional targets"
    for x, y in ((np.ones((1, 3)), [0]), (np.ones((9, 3)), np.arange(9) % 2), (np.eye(3), [0, 1, 2])):
        o = ClassDistance.fit(x, y)
        assert np.isfinite(o.score(x)).all() and o.score(x).max() < 1e-6 and len(o.axes) == 0
    assert len(ClassDistance.fit(np.eye(4), [0, 0, 0, 7]).means) == 2
    for y in ([0], np.ones((4, 2)), []):
        with pytest.raises(ValueError, match='`targets` must be a class for each'): ClassDistance.fit(np.eye(4), y)

def test_decisions_by_distance():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=600)
    x, logits = 4*np.eye(3, 20)[y] + rng.normal(size=(600, 20)), 6*np.eye(3)[y] + 2.5*rng.normal(size=(600, 3))
    p = np.exp(logits)/np.exp(logits).sum(1, keepdims=True)
    preds, near = Predictions(p, ['a', 'b', 'c'], targets=y, logits=logits, features=x), ClassDistance.fit(x, y, k=4)
    found = decision_settings(preds, accuracy=0.9, keep=0.95, distance=near)
    assert (found['foreign'].score, found['foreign'].distance, found['foreign'].n) == ('distance', near, 600) and found['refusal'].n == (near.score(x) <= found['foreign'].threshold).sum()
    with pytest.raises(DataError, match='the distance needs `features`'): decision_settings(Predictions(p, preds.vocab, targets=y, logits=logits), distance=near)
