"""The report of classes against scikit-learn's, its text and intervals; the comparison of two models."""
import numpy as np
import pandas as pd
import pytest
from imgcls.comparison import paired_difference
from imgcls.core import DataError
from imgcls.evaluate.metrics import estimate, wilson_interval
from imgcls.evaluate.tables import ClassificationReport, classification_report, compare_predictions
from imgcls.predictions import Predictions
from scipy.stats import binom, binomtest
from sklearn import metrics as sk

names = ['cat', 'a very long name of a class that nobody would give', '猫头鹰', '$x_1$', '<b>']

def some(seed=0, n=150, skill=1.5, vocab=names, targets=None, missing=()):
    rng = np.random.default_rng(seed)
    targets = rng.choice(np.setdiff1d(np.arange(len(vocab)), missing), n) if targets is None else targets
    z = rng.normal(size=(n, len(vocab))) + skill*np.eye(len(vocab))[targets]
    return Predictions(np.exp(z)/np.exp(z).sum(1, keepdims=True), vocab, targets=targets, items=[f'{i}.jpg' for i in range(n)])

def several(seed=0, n=150):
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, 5)) < 0.3).astype(int)
    return Predictions(1/(1 + np.exp(-rng.normal(size=(n, 5)) - 2*targets + 1)), names, targets=targets, items=[f'{i}.jpg' for i in range(n)], multi_label=True)

columns = ['precision', 'recall', 'f1', 'n']


# --- The report ----------------------------------------------------------------------------------------------------
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('how', [dict(), dict(missing=[1, 3]), dict(n=5), dict(n=1), dict(vocab=['a', 'b']), dict(vocab=[f'class {i}' for i in range(100)], n=1000)], ids=lambda o: ','.join(o))
def test_against_scikit_learn(how):
    for seed in range(3):
        p = some(seed, **how)
        report = classification_report(p, draws=10, seed=seed)
        want = sk.classification_report(p.actual, p.labels, output_dict=True, zero_division=0)
        assert report.loc['accuracy', 'f1'] == want.pop('accuracy')
        for row, o in want.items(): assert np.allclose(report.loc[row, columns].to_numpy(float), list(o.values()), atol=1e-12), row
        rest = set(p.vocab) - set(want)
        assert report.loc[sorted(rest), columns[:3]].isna().all(None) and (report.loc[sorted(rest), 'n'] == 0).all()

@pytest.mark.filterwarnings('ignore')
def test_several_labels_against_scikit_learn():
    p = several()
    report = classification_report(p, draws=10)
    want = sk.classification_report(p.targets, p.probs > 0.5, output_dict=True, target_names=names)
    assert list(report.index) == list(want) and 'accuracy' not in report.index
    for row, o in want.items(): assert np.allclose(report.loc[row, columns].to_numpy(float), list(o.values()), atol=1e-9), row

def test_intervals():
    p = some()
    report = classification_report(p, level=0.9)
    counts = sk.confusion_matrix(p.targets, p.probs.argmax(1))
    for i, name in enumerate(names):
        for column, of in (('precision', counts[:, i].sum()), ('recall', counts[i].sum())):
            assert np.allclose(report.loc[name, [f'{column}_low', f'{column}_high']].to_numpy(float), wilson_interval(counts[i, i], of, level=0.9))
    e = estimate(p, 'macro_f1', level=0.9)
    assert tuple(report.loc['macro avg', ['f1', 'f1_low', 'f1_high']]) == (e.value, e.low, e.high)
    for c in columns[:3]:
        rows = report.dropna(subset=c)
        assert ((rows[f'{c}_low'] <= rows[c] + 1e-12) & (rows[c] <= rows[f'{c}_high'] + 1e-12)).all()

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('make', [some, several])
def test_images_behind_each_figure(make):
    "Recall is a share of `n` images, precision one of `n_called`"
    p = make()
    report = classification_report(p, draws=10)
    actual, called = (p.targets, p.probs > 0.5) if p.multi_label else (np.eye(5)[o] for o in (p.targets, p.probs.argmax(1)))
    hits, rows = (actual*called).sum(0), report.iloc[:5]
    assert np.array_equal(rows['n'], actual.sum(0)) and np.array_equal(rows['n_called'], called.sum(0))
    assert np.allclose(rows['recall']*rows['n'], hits) and np.allclose(rows['precision']*rows['n_called'], hits)
    assert (report['n_called'].iloc[5:] == called.sum()).all() and report.text.splitlines()[2].split()[-1] == f'{called.sum(0)[0]:.0f}'

@pytest.mark.parametrize('n', [20, 100])
def test_coverage_of_the_interval_of_f1(n):
    "F1 of a class from J: exact coverage over all counts, of those images that are or were called so"
    for j in (0.5, 0.8, 0.95):
        low, high = (2*o/(1 + o) for o in wilson_interval(np.arange(n + 1), n))
        f1 = 2*j/(1 + j)
        assert binom.pmf(np.arange(n + 1), n, j)[(low <= f1) & (f1 <= high)].sum() > 0.92

def test_text():
    report = classification_report(some(), draws=20)
    lines = report.text.splitlines()
    assert lines[0].split() == ['precision', 'recall', 'f1-score', 'support', 'called'] and repr(report) == report.text and lines[-1].startswith('95 % intervals: Wilson')
    assert [bool(o.strip()) for o in lines] == [True, False, *[True]*5, False, *[True]*3, False, True]
    ends = {len(o) + 3*('猫' in o) for o in lines if o.strip()} - {len(lines[-1])}
    assert len(ends) == 1, 'wide characters take two columns, so that all rows end at the same place'
    page = report._repr_html_()
    assert '&lt;b&gt;' in page and '<b>' not in page and 'bootstrap of 150 images' in page
    assert len(classification_report(some(vocab=[f'c{i}' for i in range(100)], n=300), draws=5).text.splitlines()) == 108

def test_it_is_a_frame():
    report = classification_report(some(), draws=20)
    assert isinstance(report, ClassificationReport) and isinstance(report, pd.DataFrame) and type(report.head()) is pd.DataFrame and type(report[['f1']]) is pd.DataFrame
    assert list(report) == [f'{a}{b}' for a in columns[:3] for b in ('', '_low', '_high')] + ['n', 'n_called'] and report['n'].dtype.kind == report['n_called'].dtype.kind == 'i' and report.index.name == 'class'
    assert repr(ClassificationReport(dict(a=[1]))) == repr(pd.DataFrame(dict(a=[1]))) and '<table' in ClassificationReport(dict(a=[1]))._repr_html_()


# --- Two models ----------------------------------------------------------------------------------------------------
def test_comparison():
    a, b = some(0, skill=3, n=400), some(1, skill=1.5, n=400)
    b = some(1, skill=1.5, n=400, targets=a.targets)
    found = compare_predictions(a, b)
    only = int((a.correct & ~b.correct).sum()), int((b.correct & ~a.correct).sum())
    assert found.p == binomtest(only[0], sum(only)).pvalue and found.table.to_numpy().tolist() == [[int((a.correct & b.correct).sum()), only[0]], [only[1], int((~a.correct & ~b.correct).sum())]]
    d, low, high = paired_difference(a.correct, b.correct)
    assert np.allclose([found.difference.value, found.difference.low, found.difference.high], [d, low, high], atol=0.006) and found.difference.n == 400
    assert found.a == estimate(a, 'accuracy') and found.b == estimate(b, 'accuracy')
    back = compare_predictions(b, a)
    assert back.p == found.p and np.isclose(back.difference.value, -found.difference.value) and back.table.to_numpy().T.tolist() == found.table.to_numpy().tolist()
    assert 'a is better' in found.sentence and 'b is better' in back.sentence

def test_names_are_written_as_they_are():
    found = compare_predictions(some(), some(1, targets=some().targets), names=('<b>', '$x$'), draws=20)
    assert '<b>' in repr(found) and '<b>' not in found._repr_html_() and '&lt;b&gt; right' in found._repr_html_()

def test_rows_are_matched():
    a = some(0, n=60)
    b = some(1, n=60, targets=a.targets)
    rows = np.random.default_rng(0).permutation(60)
    order = [4, 2, 0, 1, 3]
    turned = Predictions(b.probs[:, order], [names[i] for i in order], targets=np.argsort(order)[b.targets], items=b.items)[rows]
    for metric in ('accuracy', 'macro_f1', 'roc_auc', 'log_loss'):
        x, y = (compare_predictions(a, o, metric=metric, draws=50) for o in (b, turned))
        assert x.sentence == y.sentence and x.difference == y.difference and x.table.equals(y.table)

def test_the_same_model():
    a = some()
    found = compare_predictions(a, a)
    assert found.p == 1 and found.difference.value == found.difference.low == found.difference.high == 0
    assert "both are right on the same images, so these images don't show which is better" in found.sentence

def test_small_is_good():
    a = some(0, skill=3, n=400)
    b = some(1, skill=1, n=400, targets=a.targets)
    for metric in ('log_loss', 'brier'):
        said = compare_predictions(a, b, metric=metric, names=('good', 'poor'))
        assert said.difference.high < 0 and said.sentence.endswith('(small is good), more than chance explains: good is better.')
    assert compare_predictions(a, b, metric='macro_f1', names=('good', 'poor')).sentence.endswith('more than chance explains: good is better.')
    assert 'which chance may explain' in compare_predictions(b, some(7, skill=1, n=400, targets=a.targets), metric='macro_f1').sentence

@pytest.mark.filterwarnings('ignore')
def test_undefined_is_not_decided():
    a = some(0, targets=np.zeros(150, int))
    found = compare_predictions(a, some(1, targets=np.zeros(150, int)), metric='roc_auc', draws=10)
    assert np.isnan(found.difference.value) and "these images don't show which is better" in found.sentence

def test_several_labels_and_one_vs_all():
    a, b = several(0), several(1)
    b = Predictions(b.probs, names, targets=a.targets, items=a.items, multi_label=True)
    found = compare_predictions(a, b, metric='hamming_loss', draws=100)
    assert found.table.to_numpy().sum() == 150 and np.isclose(found.difference.value, sk.hamming_loss(a.targets, a.probs > 0.5) - sk.hamming_loss(a.targets, b.probs > 0.5))
    one, two = (Predictions(o.probs, names, targets=np.zeros(150, int), items=o.items, one_vs_all=True) for o in (a, b))
    d = compare_predictions(one, two, metric='brier', draws=200).difference
    assert d.low <= d.value <= d.high

METRICS_OF_ORDER = 'accuracy', 'top_3', 'balanced_accuracy', 'macro_f1', 'weighted_precision', 'matthews', 'cohen_kappa', 'roc_auc', 'average_precision'

@pytest.mark.parametrize('metric', METRICS_OF_ORDER)
def test_softmax_against_one_vs_all(metric):
    "Where only the order of probabilities counts, it doesn't matter that those of one model needn't sum to 1"
    a = some(0)
    b = some(1, targets=a.targets)
    apart = Predictions(b.probs**2, b.vocab, targets=b.targets, items=b.items, one_vs_all=True)
    shuffled = apart[np.random.default_rng(0).permutation(150)]
    for one, two, alike in ((a, shuffled, (a, b)), (apart, a, (b, a))):
        x, y = compare_predictions(one, two, metric=metric, draws=50), compare_predictions(*alike, metric=metric, draws=50)
        assert x.sentence == y.sentence and x.a.value == y.a.value and x.table.equals(y.table)
    assert not a.one_vs_all and apart.one_vs_all

def test_softmax_against_one_vs_all_refused():
    a = some()
    apart = Predictions(a.probs, a.vocab, targets=a.targets, items=a.items, one_vs_all=True)
    for metric in ('log_loss', 'brier'):
        for pair in ((a, apart), (apart, a)):
            with pytest.raises(DataError, match=f"`{metric}` means one thing where probabilities sum to 1 .* such as 'accuracy'"): compare_predictions(*pair, metric=metric)
    with pytest.raises(DataError, match='multi_label=True'): compare_predictions(apart, several())
    with pytest.raises(ValueError, match="Did you mean 'accuracy'"): compare_predictions(a, apart, metric='acuracy')
    with pytest.raises(TypeError, match='must be a `Predictions`'): compare_predictions(a, a.probs)

def test_intervals_of_the_difference_hold_it():
    "Two models of known accuracy, correlated by the ease of the photos"
    rng, held = np.random.default_rng(0), 0
    for i in range(150):
        ease = rng.beta(4, 1, 300)
        right = [rng.random(300) < o for o in (ease, ease**2)]
        a, b = (Predictions(np.where(o[:, None], [[0.9, 0.1]], [[0.1, 0.9]]), 'ab', targets=np.zeros(300, int), items=[str(j) for j in range(300)]) for o in right)
        d = compare_predictions(a, b, draws=400, seed=i).difference
        held += d.low <= 4/5 - 4/6 <= d.high
    assert held/150 > 0.9

@pytest.mark.parametrize('other,kw,text', [
    (lambda a: a[:100], {}, 'it lacks 50'), (lambda a: Predictions(a.probs, a.vocab, targets=a.targets), {}, '`items`'),
    (lambda a: Predictions(a.probs, a.vocab, items=a.items), {}, 'b has no `targets`: give the true labels to both'),
    (lambda a: a, dict(names='ab'), '`names` must be two different names'), (lambda a: a, dict(names=('x', 'x')), '`names` must be two different names'),
    (lambda a: a, dict(metric='acuracy'), "Did you mean 'accuracy'?"), (lambda a: a, dict(level=2), '`level` must lie between')],
    ids=['fewer', 'no items', 'no targets', 'one name', 'same name', 'metric', 'level'])
def test_comparison_refused(other, kw, text):
    a = some()
    with pytest.raises((DataError, ValueError)) as e: compare_predictions(a, other(a), **kw)
    assert text in str(e.value)


def test_few_images_name_no_winner():
    "A difference on one image is no evidence, whatever the metric"
    a, b = (Predictions(np.array([p]), ['x', 'y'], targets=np.array([0]), items=['a.jpg']) for p in ([0.9, 0.1], [0.8, 0.2]))
    for metric in ('log_loss', 'brier'): assert "don't show which is better" in compare_predictions(a, b, metric=metric).sentence
    y = np.r_[np.zeros(100, int), np.ones(100, int)]
    one, two = y.copy(), y.copy()
    two[:4], one[150:], two[150:] = 1, 0, 0
    a, b = (Predictions(np.eye(2)[o], ['x', 'y'], targets=y, items=[f'{i}.jpg' for i in range(200)]) for o in (one, two))
    for metric in ('macro_f1', 'weighted_recall', 'balanced_accuracy', 'top_1', 'accuracy'): assert "don't show which is better" in compare_predictions(a, b, metric=metric).sentence
    two[:20] = 1
    b = Predictions(np.eye(2)[two], ['x', 'y'], targets=y, items=a.items)
    for metric in ('macro_f1', 'weighted_recall', 'top_1', 'accuracy'): assert 'a is better' in compare_predictions(a, b, metric=metric).sentence
