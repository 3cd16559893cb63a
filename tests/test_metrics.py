"""Wilson's interval against SciPy's, its coverage, and what an estimate says."""
import json
from dataclasses import FrozenInstanceError, asdict

import numpy as np
import pytest
from imgcls.core import DataError
from imgcls.evaluate.metrics import Estimate, accuracy_estimate, wilson_interval
from imgcls.predictions import Predictions
from scipy.stats import binom, binomtest

@pytest.mark.parametrize('level', [0.5, 0.8, 0.95, 0.99, 0.9999])
@pytest.mark.parametrize('n', [1, 2, 7, 30, 372, 5000])
def test_against_scipy(n, level):
    for s in sorted({0, 1, n//3, n//2, n - 1, n}):
        want = binomtest(s, n).proportion_ci(level, method='wilson')
        assert np.allclose(wilson_interval(s, n, level=level), (want.low, want.high), rtol=0, atol=1e-12)

def test_arrays():
    n = np.array([0, 1, 20, 372, 10_000])
    s = np.array([0, 1, 18, 0, 9_999])
    low, high = wilson_interval(s, n)
    assert low.shape == high.shape == (5,) and low.dtype == float
    assert [(a, b) for a, b in zip(low, high)] == [wilson_interval(int(a), int(b)) for a, b in zip(s, n)]
    low, high = wilson_interval(np.arange(6).reshape(2, 3), 10)
    assert low.shape == (2, 3)
    assert all(isinstance(o, float) for o in wilson_interval(np.int64(3), np.int64(7)))

def test_ends():
    for n in range(1, 2000, 7):
        low, high = wilson_interval(np.arange(n + 1), n)
        assert low[0] == 0 and high[-1] == 1 and (low >= 0).all() and (high <= 1).all()
        assert (low <= np.arange(n + 1)/n).all() and (np.arange(n + 1)/n <= high).all()
        assert (np.diff(low) > 0).all() and (np.diff(high) > 0).all()
        assert np.allclose(low, 1 - high[::-1])
    assert wilson_interval(0, 0) == (0, 1)

@pytest.mark.parametrize('p', [0.5, 0.9, 0.99])
@pytest.mark.parametrize('n', [30, 372, 5000])
def test_coverage(p, n):
    "Simulated coverage agrees with the exact one, within three standard errors"
    counts = np.arange(n + 1)
    low, high = wilson_interval(counts, n)
    exact = binom.pmf(counts, n, p)[(low <= p) & (p <= high)].sum()
    drawn = np.random.default_rng(0).binomial(n, p, 20_000)
    seen = ((low[drawn] <= p) & (p <= high[drawn])).mean()
    assert abs(seen - exact) <= 3*np.sqrt(exact*(1 - exact)/20_000)
    assert exact > 0.92

@pytest.mark.parametrize('args,level,text', [
    ((3, 2), 0.95, '`successes` must lie between 0 and `n`, got 3 of 2'), ((-1, 2), 0.95, 'got -1 of 2'), ((float('nan'), 2), 0.95, 'got nan of 2'), ((0, -1), 0.95, 'got 0 of -1'),
    (([1, 5], [2, 4]), 0.95, '`successes` must lie between'), ((1, 2), 0, '`level` must lie between 0 and 1, got 0'), ((1, 2), 1, 'got 1. 0.95 is usual'), ((1, 2), 95, 'got 95')])
def test_refused(args, level, text):
    with pytest.raises(ValueError) as e: wilson_interval(*args, level=level)
    assert text in str(e.value)

def test_estimate():
    e = Estimate('accuracy', 0.911, 0.878, 0.936, n=372, level=0.95)
    assert repr(e) == str(e) == 'accuracy 0.911 (95 % interval 0.878 to 0.936, n = 372)'
    assert repr(Estimate('F1', 0.5, 0.4, 0.6, n=12_345, level=0.999)) == 'F1 0.500 (99.9 % interval 0.400 to 0.600, n = 12,345)'
    assert asdict(e) == dict(name='accuracy', value=0.911, low=0.878, high=0.936, n=372, level=0.95) and e == Estimate(**asdict(e))
    with pytest.raises(FrozenInstanceError): e.value = 1

def test_accuracy():
    rng = np.random.default_rng(0)
    p = Predictions(rng.dirichlet(np.ones(4), 300), 'abcd', targets=rng.integers(0, 4, 300))
    e = accuracy_estimate(p, level=0.9)
    assert (e.name, e.value, e.n, e.level) == ('accuracy', p.correct.mean(), 300, 0.9) and (e.low, e.high) == wilson_interval(int(p.correct.sum()), 300, level=0.9)
    assert json.loads(json.dumps(asdict(e))) == asdict(e)  # plain numbers, for the card of a model
    several = Predictions([[0.9, 0.8], [0.2, 0.7]], 'ab', targets=[[1, 1], [1, 1]], multi_label=True)
    assert accuracy_estimate(several).value == 0.5

def test_accuracy_refused():
    p = Predictions([[0.5, 0.5]], 'ab', targets=[0])
    with pytest.raises(DataError, match='needs `targets`, and these predictions have none'): accuracy_estimate(Predictions(p.probs, p.vocab))
    with pytest.raises(DataError, match='these predictions are empty'): accuracy_estimate(p[[]])
    with pytest.raises(ValueError, match='`level` must lie between'): accuracy_estimate(p, level=2)


def test_what_the_readme_says_of_an_accuracy_of_90_percent_on_372_photos():
    low, high = wilson_interval(335, 372)
    assert f'{335/372:.2f} {low:.2f} {high:.2f}' == '0.90 0.87 0.93'
