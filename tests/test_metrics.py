"""Wilson's interval against SciPy's, its coverage, what an estimate says; metrics against scikit-learn's, and their bootstrap."""
import json
from dataclasses import FrozenInstanceError, asdict
from time import process_time

import numpy as np
import pytest
from imgcls.core import DataError
from imgcls.evaluate import metrics
from imgcls.evaluate.metrics import METRICS, Estimate, accuracy_estimate, bootstrap_metric, estimate, metric_interval, metrics_table, wilson_interval
from imgcls.predictions import Predictions
from scipy.stats import binom, binomtest
from sklearn import metrics as sk

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


# --- Metrics against scikit-learn ----------------------------------------------------------------------------------
def one_label(seed, n=200, n_classes=5, ties=False, missing=(), dtype=np.float64):
    "Targets and probabilities; rounded, so that scores are equal, and without some classes"
    rng = np.random.default_rng(seed)
    targets = rng.choice(np.setdiff1d(np.arange(n_classes), missing), n)
    z = rng.normal(size=(n, n_classes)) + 1.5*np.eye(n_classes)[targets]
    probs = np.exp(z)/np.exp(z).sum(1, keepdims=True)
    if ties: probs = np.floor(probs*8)/8; probs[:, 0] += 1 - probs.sum(1)
    return targets, probs.astype(dtype)

def many_labels(seed, n=200, n_classes=5, ties=False, missing=(), dtype=np.float64):
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, n_classes)) < np.linspace(0.1, 0.6, n_classes)).astype(int)
    targets[:, list(missing)] = 0
    probs = 1/(1 + np.exp(-rng.normal(size=(n, n_classes)) - 2*targets + 1))
    return targets, (np.round(probs*8)/8 if ties else probs).astype(dtype)

def mean_of_curves(f, truth, probs):
    "The mean over classes that have images, and for ROC others too"
    ok = [i for i in range(probs.shape[1]) if truth[:, i].any() and (f is sk.average_precision_score or not truth[:, i].all())]
    return np.mean([f(truth[:, i], probs[:, i]) for i in ok]) if ok else np.nan

def theirs(targets, probs):
    "What scikit-learn says"
    called, one_hot = probs.argmax(1), np.eye(probs.shape[1])[targets]
    res = dict(accuracy=sk.accuracy_score(targets, called), balanced_accuracy=sk.balanced_accuracy_score(targets, called), matthews=sk.matthews_corrcoef(targets, called),
               cohen_kappa=sk.cohen_kappa_score(targets, called), log_loss=sk.log_loss(targets, probs, labels=range(probs.shape[1])),
               brier=sk.brier_score_loss(targets, probs, labels=range(probs.shape[1])) if probs.shape[1] > 2 else sk.brier_score_loss(targets, probs[:, 1].clip(0, 1), labels=[0, 1], pos_label=1),
               roc_auc=mean_of_curves(sk.roc_auc_score, one_hot, probs), average_precision=mean_of_curves(sk.average_precision_score, one_hot, probs))
    for kind in ('macro', 'weighted'):
        for name in ('precision', 'recall', 'f1'): res[f'{kind}_{name}'] = getattr(sk, f'{name}_score')(targets, called, average=kind)
    return res

def theirs_of_many(targets, probs):
    called = (probs > 0.5).astype(int)
    res = dict(accuracy=sk.accuracy_score(targets, called), hamming_loss=sk.hamming_loss(targets, called), log_loss=sk.log_loss(targets.ravel(), probs.ravel()),
               brier=np.mean([sk.brier_score_loss(t, p) for t, p in zip(targets.T, probs.T)]),
               roc_auc=mean_of_curves(sk.roc_auc_score, targets, probs), average_precision=mean_of_curves(sk.average_precision_score, targets, probs))
    seen = np.flatnonzero((targets | called).any(0))
    for kind in ('micro', 'macro', 'weighted', 'samples'):
        for name in ('precision', 'recall', 'f1'): res[f'{kind}_{name}'] = getattr(sk, f'{name}_score')(targets, called, average=kind, labels=seen if kind == 'macro' else None)
    return res

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('how', [dict(), dict(ties=True), dict(missing=[1, 3]), dict(n_classes=2), dict(n=4), dict(n=1), dict(missing=[0, 1, 2, 3]), dict(ties=True, dtype=np.float32),
                                 dict(n=3000, n_classes=12, ties=True)], ids=str)
def test_points_against_scikit_learn(how):
    for seed in range(3):
        targets, probs = one_label(seed, **how)
        for name, want in theirs(targets, probs).items():
            got = metric_interval(name, targets=targets, probs=probs, draws=5).value
            assert np.isclose(got, want, rtol=1e-6 if 'dtype' in how else 1e-12, atol=1e-12, equal_nan=True), (name, got, want)
        if 'ties' not in how and probs.shape[1] > 2:
            for k in (1, 2, 3): assert np.isclose(metric_interval(f'top_{k}', targets=targets, probs=probs).value, sk.top_k_accuracy_score(targets, probs, k=k, labels=range(probs.shape[1])))

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('how', [dict(), dict(ties=True), dict(missing=[1]), dict(n=3), dict(n_classes=2), dict(ties=True, dtype=np.float32), dict(n=2000, n_classes=12)], ids=str)
def test_points_of_several_labels_against_scikit_learn(how):
    for seed in range(3):
        targets, probs = many_labels(seed, **how)
        for name, want in theirs_of_many(targets, probs).items():
            got = metric_interval(name, targets=targets, probs=probs, multi_label=True, draws=5).value
            assert np.isclose(got, want, rtol=1e-6, atol=1e-12, equal_nan=True), (name, got, want)

def test_top_k_of_equal_scores():
    "Of equal scores the first class comes first, as in `Predictions`"
    targets, probs = one_label(0, ties=True)
    order = np.argsort(-probs, axis=1, kind='stable')
    for k in range(1, 6): assert metric_interval(f'top_{k}', targets=targets, probs=probs).value == (order[:, :k] == targets[:, None]).any(1).mean()

def test_sure_and_wrong():
    "A probability of 0 for what is so costs as much as in scikit-learn, and not infinitely much"
    for dtype in (np.float32, np.float64):
        probs = np.array([[1, 0], [0, 1]], dtype=dtype)
        assert np.isclose(metric_interval('log_loss', targets=[1, 1], probs=probs, draws=5).value, sk.log_loss([1, 1], probs, labels=[0, 1]))


# --- The draws -----------------------------------------------------------------------------------------------------
every = [(o, several) for several in (False, True) for o in metrics._names(5, several)]

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name,several', every, ids=str)
def test_weights_are_repeated_rows(name, several):
    "The metric of weights is that of rows taken so often"
    for how in (dict(), dict(ties=True), dict(missing=[2], n=12)):
        targets, probs = (many_labels if several else one_label)(0, **how)
        rows = np.random.default_rng(1).integers(len(targets), size=(20, len(targets)))
        weights = np.array([np.bincount(o, minlength=len(targets)) for o in rows]).T
        got = metrics._statistic(name, targets, probs, several)(weights.astype(np.float32))
        want = [metrics._statistic(name, targets[o], probs[o], several)(np.ones((len(o), 1)))[0] for o in rows]
        assert np.allclose(got, want, atol=1e-6, equal_nan=True)

@pytest.mark.parametrize('n', [50, 2000])
def test_drawn(n):
    "Each draw takes n images; whole and in kinds, with the same mean and spread"
    many = np.array([n//2, n//4, n - n//2 - n//4 - 1, 1])
    by_kind = np.concatenate(list(metrics._drawn(many, 3000, 0)), axis=1)
    whole = np.concatenate(list(metrics._drawn(np.ones(n, int), 3000, 0)), axis=1)
    assert by_kind.shape == (4, 3000) and whole.shape == (n, 3000)
    assert (by_kind.sum(0) == n).all() and (whole.sum(0) == n).all()
    counted = np.add.reduceat(whole, np.r_[0, np.cumsum(many)[:-1]], axis=0)
    sd = np.sqrt(many*(1 - many/n))
    for o in (by_kind, counted): assert (np.abs(o.mean(1) - many) < 4*sd/np.sqrt(3000)).all() and np.allclose(o.std(1), sd, rtol=0.08)

def test_kinds_of_images():
    "Cells of the confusion matrix instead of images: the same distribution"
    targets, probs = one_label(0, n=4000)
    first, many = metrics._kinds('macro_f1', targets, [probs], False)
    assert len(first) == 25 and many.sum() == 4000
    cells = bootstrap_metric('macro_f1', targets=targets, probs=probs, draws=4000)
    f = metrics._statistic('macro_f1', targets, probs, False)
    images = np.concatenate([f(o) for o in metrics._drawn(np.ones(4000, int), 1000, 1)])
    assert abs(cells.mean() - images.mean()) < 5*images.std()/np.sqrt(1000) and np.isclose(cells.std(), images.std(), rtol=0.1)

@pytest.mark.parametrize('name', ['accuracy', 'macro_f1', 'brier', 'roc_auc'])
def test_draws_are_seeded_and_paired(name):
    targets, probs = one_label(0, n=3000)
    a = bootstrap_metric(name, targets=targets, probs=probs, draws=150)
    assert a.shape == (150,) and (a == bootstrap_metric(name, targets=targets, probs=probs, draws=150)).all()
    assert (a != bootstrap_metric(name, targets=targets, probs=probs, draws=150, seed=1)).any()
    both = bootstrap_metric(name, targets=targets, probs=[probs, probs], draws=150)
    assert both.shape == (2, 150) and (both[0] == both[1]).all()

def test_a_mean_has_the_interval_of_its_formula():
    targets, probs = one_label(0, n=2000)
    e = metric_interval('log_loss', targets=targets, probs=probs)
    loss = -np.log(probs[np.arange(2000), targets])
    half = 1.96*loss.std()/np.sqrt(2000)
    assert np.allclose([e.low, e.high], [loss.mean() - half, loss.mean() + half], atol=0.1*half)
    assert np.isclose(metric_interval('accuracy', targets=targets, probs=probs).low, np.quantile(bootstrap_metric('accuracy', targets=targets, probs=probs), 0.025), atol=0.003)

@pytest.mark.parametrize('name', metrics._names(10, False))
def test_speed(name):
    "2,000 draws of 10,000 images of 10 classes in less than 2 seconds on one core"
    targets, probs = one_label(0, n=10_000, n_classes=10)
    def seconds():
        start = process_time()
        metric_interval(name, targets=targets, probs=probs)
        return process_time() - start
    assert seconds() < 2 or seconds() < 2  # a machine may be busy once


# --- Tables, words -------------------------------------------------------------------------------------------------
def test_table():
    targets, probs = one_label(0)
    p = Predictions(probs, 'abcde', targets=targets)
    table = metrics_table(p, draws=50)
    assert list(table) == ['value', 'low', 'high', 'n', 'method'] and table.index.name == 'metric' and list(table.index) == metrics._names(5, False)
    assert (table['n'] == 200).all() and set(table.index[table['method'] == 'Wilson']) == {'accuracy', 'top_3', 'weighted_recall'}
    assert ((table['low'] <= table['value']) & (table['value'] <= table['high'])).all()
    assert asdict(estimate(p, 'brier', draws=50)) == dict(table.loc['brier', ['value', 'low', 'high', 'n']], name='brier', level=0.95)
    assert json.loads(json.dumps(asdict(estimate(p, 'macro_f1', draws=50))))['n'] == 200
    assert list(metrics_table(p, metrics=['top_2', 'accuracy'], draws=5).index) == ['top_2', 'accuracy'] and len(metrics_table(p, metrics=[])) == 0
    several = Predictions(many_labels(0)[1], 'abcde', targets=many_labels(0)[0], multi_label=True)
    assert list(metrics_table(several, draws=5).index) == metrics._names(5, True)
    assert metrics_table(several, metrics=['accuracy']).loc['accuracy', 'value'] == several.correct.mean()
    assert set(metrics._names(9, False)) | set(metrics._names(9, True)) == set(METRICS) and 'top_3' not in metrics._names(3, False)

def test_one_vs_all():
    "A yes or no for each class is judged as such; what counts classes is not changed"
    p = Predictions([[0.9, 0.2, 0.1], [0.3, 0.1, 0.6]], 'abc', targets=[0, 0], one_vs_all=True)
    assert np.isclose(estimate(p, 'brier', draws=5).value, np.mean((p.probs - [[1, 0, 0], [1, 0, 0]])**2))
    assert np.isclose(estimate(p, 'log_loss', draws=5).value, p.losses.mean()/3)
    assert estimate(p, 'accuracy').value == 0.5

def test_said():
    targets, probs = one_label(0, missing=[1, 3])
    p = Predictions(probs, 'abcde', targets=targets)
    with pytest.warns(UserWarning, match='`roc_auc` is the mean over 3 of 5 classes: of b, d there are no images') as w: estimate(p, 'roc_auc', draws=5)
    assert w[0].filename == __file__
    with pytest.warns(UserWarning, match='of 1, 3 there are no images') as w: metric_interval('average_precision', targets=targets, probs=probs, draws=5)
    assert w[0].filename == __file__
    with pytest.warns(UserWarning, match='3 of 4 classes: of 3 there are no images, or only such'):
        metric_interval('roc_auc', targets=[[1, 0, 0, 1], [0, 1, 1, 1]], probs=np.full((2, 4), 0.4), multi_label=True, draws=5)
    with pytest.warns(UserWarning, match='undefined for these .* images, since all have the same label'): e = estimate(p[targets == 0], 'roc_auc', draws=5)
    assert np.isnan([e.value, e.low, e.high]).all()
    with pytest.warns(UserWarning, match='an interval without width is not certainty'): e = estimate(p[p.correct], 'macro_recall', draws=5)
    assert (e.low, e.high) == (1, 1)

@pytest.mark.parametrize('name,kw,kind,text', [
    ('acuracy', {}, ValueError, "Did you mean 'accuracy'?"), ('top_0', {}, ValueError, 'asks for the 0 likeliest classes, and there are 2'), ('top_x', {}, ValueError, '`metric` must be one of'),
    (None, {}, ValueError, 'got None'), ('micro_f1', {}, ValueError, '`metric` must be one of'), ('top_1', dict(targets=[[0, 1]], multi_label=True), ValueError, '`metric` must be one of'),
    ('accuracy', dict(draws=2.5), ValueError, '`draws` must be a whole number of at least 1, got 2.5'), ('accuracy', dict(level=0), ValueError, '`level` must lie between 0 and 1, got 0'),
    ('accuracy', dict(targets=[2]), DataError, '`targets` must be whole numbers from 0 to 1'), ('accuracy', dict(targets=[0.5]), DataError, 'whole numbers from 0 to 1'),
    ('accuracy', dict(targets=['a']), DataError, 'whole numbers from 0 to 1'), ('accuracy', dict(targets=[0, 1]), DataError, '`targets` must have the shape (1,) to go with `probs`, got (2,)'),
    ('accuracy', dict(targets=[0], multi_label=True), DataError, '`targets` must have the shape (1, 2)'), ('accuracy', dict(probs=[0.5, 0.5]), DataError, 'one row an image and one column a class'),
    ('accuracy', dict(targets=[], probs=np.zeros((0, 2))), DataError, 'at least one of each, got float64 of shape (0, 2)'), ('accuracy', dict(probs=[[np.nan, 1]]), DataError, 'must be finite'),
    ('accuracy', dict(probs=[[3., -2.]]), DataError, 'not logits')], ids=str)
def test_metric_refused(name, kw, kind, text):
    with pytest.raises(kind) as e: metric_interval(name, **(dict(targets=[0], probs=[[0.6, 0.4]]) | kw))
    assert text in str(e.value)
