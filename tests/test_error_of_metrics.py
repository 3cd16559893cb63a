"""The intervals keep their promise: quick versions of the simulations in the study `error_of_metrics`."""
import numpy as np
import pytest
from imgcls.evaluate.metrics import metric_interval, wilson_interval
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
