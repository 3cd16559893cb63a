"""The intervals keep their promise: quick versions of the simulations in the study `error_of_metrics`."""
import numpy as np
import pytest
from imgcls.evaluate.metrics import bootstrap_metric, metric_interval, wilson_interval
from scipy.stats import binom

def population(sizes, recognized=0.9):
    "Probabilities (10, 10) of each pair of actual and predicted class; mistakes go to the others in proportion to their sizes"
    share, eye = np.array(sizes)/np.sum(sizes), np.eye(10) == 1
    others = np.where(eye, 0, share)
    return share[:, None]*np.where(eye, recognized, (1 - recognized)*others/others.sum(1, keepdims=True))

def macro_precision(pairs): return (np.diag(pairs)/pairs.sum(0)).mean()

def cover(pairs, n, simulations=400, draws=300):
    "Share of the intervals that hold the truth"
    rng, truth, eye, held = np.random.default_rng(0), macro_precision(pairs), np.eye(10), 0
    for seed in range(simulations):
        actual, predicted = np.divmod(rng.choice(100, size=n, p=pairs.ravel()), 10)
        e = metric_interval('macro_precision', targets=actual, probs=eye[predicted], draws=draws, seed=seed)
        held += e.low <= truth <= e.high
    return held/simulations

@pytest.mark.parametrize('n', [30, 372, 5000])
@pytest.mark.parametrize('p', [0.5, 0.9, 0.99])
def test_wilson_of_simulated_images(p, n):
    "The intervals of whole images, as a user gets them, hold the truth as often as theory says"
    rng, s, simulations = np.random.default_rng(n), np.arange(n + 1), 300
    low, high = wilson_interval(s, n)
    exact = binom.pmf(s, n, p)[(low <= p) & (p <= high)].sum()
    held = 0
    for _ in range(simulations):
        right = rng.random(n) < p
        e = metric_interval('accuracy', targets=np.zeros(n, int), probs=np.c_[right, ~right].astype(float))
        held += e.low <= p <= e.high
    assert abs(held/simulations - exact) <= 3*np.sqrt(exact*(1 - exact)/simulations)

@pytest.mark.parametrize('n,least', [(300, 0.90), (1000, 0.93)])
@pytest.mark.parametrize('sizes', [1/np.arange(1, 11), [795, 468, 455, 290, 241, 202, 198, 184, 123, 112]], ids=['one over rank', 'like clothing'])
def test_bootstrap_of_macro_precision(sizes, n, least):
    "Not lower than is promised by more than the simulation's own error, and not above 95 % by more either: then the intervals would be too wide"
    found = cover(population(sizes), n)
    assert least - 2*np.sqrt(least*(1 - least)/400) <= found <= 0.95 + 3*np.sqrt(0.95*0.05/400)

def test_classes_that_a_draw_lacks():
    "The mean runs over the classes of each draw: over all classes, the coverage with very rare ones falls below 70 %"
    assert cover(population(0.6**np.arange(10)), 300, simulations=200) > 0.85


@pytest.mark.parametrize('metric,plain', [('macro_f1', 0.80), ('weighted_precision', 0.50)])
def test_metrics_that_lean(metric, plain):
    "A hundred classes, a thousand images: the interval that is put back by twice the leaning holds the truth, the plain quantiles don't"
    rng, held, eye = np.random.default_rng(0), np.zeros(2), np.eye(100)
    for i in range(50):
        actual = rng.integers(100, size=1000)
        probs = eye[np.where(rng.random(1000) < 0.7, actual, (actual + rng.integers(1, 100, 1000)) % 100)]
        e = metric_interval(metric, targets=actual, probs=probs, draws=200, seed=i)
        low, high = np.quantile(bootstrap_metric(metric, targets=actual, probs=probs, draws=200, seed=i), [0.025, 0.975])
        held += [low <= 0.7 <= high, e.low <= 0.7 <= e.high]
    assert held[0]/50 < plain and held[1]/50 >= 0.88

def test_average_precision_of_few_images():
    "Draws rank better than the images that they come from; the interval is put back"
    rng, held, truth = np.random.default_rng(0), 0, 0.533  # of 100,000 images, to two digits
    for i in range(50):
        actual = rng.integers(10, size=100)
        z = np.exp(rng.normal(size=(100, 10)) + 1.5*np.eye(10)[actual])
        e = metric_interval('average_precision', targets=actual, probs=z/z.sum(1, keepdims=True), draws=200, seed=i)
        held += e.low <= truth <= e.high
    assert held/50 >= 0.86

@pytest.mark.parametrize('metric', ['macro_f1', 'macro_precision'])
def test_very_rare_classes_are_no_leaning(metric):
    "Draws that lack a class altogether must not move the interval: of 300 images, the rarest class has one or two"
    rng, pairs, eye, held = np.random.default_rng(0), population(0.6**np.arange(10)), np.eye(10), 0
    truth = macro_precision(pairs) if metric == 'macro_precision' else (2*np.diag(pairs)/(pairs.sum(0) + pairs.sum(1))).mean()
    for seed in range(150):
        actual, predicted = np.divmod(rng.choice(100, size=300, p=pairs.ravel()), 10)
        e = metric_interval(metric, targets=actual, probs=eye[predicted], draws=200, seed=seed)
        held += e.low <= truth <= e.high
    assert held/150 >= 0.88

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('metric', ['macro_f1', 'weighted_precision', 'average_precision'])
@pytest.mark.parametrize('n,draws', [(1, 5), (3, 1), (40, 3)])
def test_ends_stay_between_0_and_1(metric, n, draws):
    rng = np.random.default_rng(n)
    probs = rng.dirichlet(np.ones(4), n)
    for several in (False, True):
        targets = (rng.random((n, 4)) < 0.4).astype(int) if several else rng.integers(4, size=n)
        e = metric_interval(metric, targets=targets, probs=probs, multi_label=several, draws=draws)
        assert np.isnan(e.value) or 0 <= e.low <= e.high <= 1
