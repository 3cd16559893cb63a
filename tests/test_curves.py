"""Curves against scikit-learn's, the tests of slices against Fisher's and Holm's own, and plots that survive many classes, odd names and odd tables."""
import io, warnings

import numpy as np
import pandas as pd
import pytest
from imgcls.core import DataError
from imgcls.evaluate.curves import (_points, describe_slices, plot_learning_curve, plot_per_class, plot_precision_recall, plot_roc, plot_slice_images, plot_slices,
    slices)
from imgcls.predictions import Predictions
from scipy.stats import fisher_exact
from sklearn.metrics import precision_recall_curve, roc_curve


def random(n=300, c=5, names=None, shift=2., seed=0, **kw):
    rng = np.random.default_rng(seed)
    targets, logits = rng.integers(0, c, n), rng.normal(size=(n, c))
    logits[np.arange(n), targets] += shift
    probs = np.exp(logits)/np.exp(logits).sum(1, keepdims=True)
    return Predictions(probs, names or [f'c{i}' for i in range(c)], **(dict(targets=targets, items=[f'{i}.png' for i in range(n)]) | kw))

def draw(fig):
    "Draw it; a warning (no room, a missing glyph, a broken formula) is an error"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fig.savefig(io.BytesIO(), dpi=50)
    return fig

def facts(p, **columns): return pd.DataFrame(dict(path=p.items) | columns)

odd_names = ['$x^2$', '$\\frac', '猫の写真', 'ねこ'*20, 'x'*200, 'line\nbreak', 'tab\t', '50 % "off"', ' ', '_a']


# --- Classes and curves --------------------------------------------------------------------------------------------
@pytest.mark.parametrize('c', [2, 10, 100])
def test_any_number_of_classes(c):
    p = random(600, c, names=odd_names if c == 10 else None, split='valid')
    for f in (plot_per_class, plot_roc, plot_precision_recall):
        fig = draw(f(p, **({} if f is plot_per_class else dict(draws=20))))
        assert max(fig.get_size_inches()) < 11
        assert len(fig.axes) == 1
    named = fig.legends[0].get_texts()
    assert len(named) == {2: 1, 10: 10, 100: 8}[c] and all(o.get_window_extent().x1 <= fig.bbox.x1 for o in named)

def test_per_class_is_sorted_and_says_what_is_left_out():
    p = random(400, 6)
    p = p[(p.targets != 3) & (p.probs.argmax(1) != 3)]
    fig = draw(plot_per_class(p, metric='precision', k=2))
    widths = [o.get_width() for o in fig.axes[0].patches]
    precision = sorted(np.mean(p.targets[p.probs.argmax(1) == i] == i) for i in range(6) if i != 3)
    assert np.allclose(widths, precision[:2]) and fig.axes[0].get_title() == 'the 2 lowest of 5 classes, 1 more: never predicted'

@pytest.mark.parametrize('metric,behind,why', [('recall', 'of the class', 'no images'), ('f1', 'of the class', 'no images'), ('precision', 'called so', 'never predicted')])
def test_per_class_leaves_a_gap_where_nothing_is_known(metric, behind, why):
    "A class without images has no bar of length 0, and isn't in the mean"
    p = random(400, 6)
    said = p.probs.argmax(1)
    p = p[said != 2] if metric == 'precision' else p[p.targets != 2]    # c2 is never said, or never there though it is said
    assert (p.targets == 2).any() == (metric == 'precision') != (p.probs.argmax(1) == 2).any()
    ax = draw(plot_per_class(p, metric=metric)).axes[0]
    names, texts = [o.get_text() for o in ax.get_yticklabels()], [o.get_text() for o in ax.texts]
    widths = [o.get_width() for o in ax.patches]
    assert names[-1] == 'c2' and len(names) == 6 and len(widths) == 5 and min(widths) > 0 and texts[-2:] == ['0', why] and texts.count(why) == 1
    assert np.isclose(ax.lines[0].get_xdata()[0], np.mean(widths)) and f'mean of the 5 classes\nat the right: images {behind}' in ax.get_xlabel()
    assert texts[:5] == [str(int(((p.targets if behind == 'of the class' else p.probs.argmax(1)) == int(o[1:])).sum())) for o in names[:5]]

def test_per_class_where_nothing_is_known_at_all():
    p = Predictions([[0.1, 0.9]]*3, ['a', 'b'], targets=[0, 0, 0])
    assert [o.get_text() for o in draw(plot_per_class(p, metric='recall')).axes[0].texts] == ['3', '0', 'no images']
    several = Predictions([[0.1, 0.2]]*3, ['a', 'b'], targets=[[1, 0]]*3, multi_label=True)
    ax = draw(plot_per_class(several, metric='precision')).axes[0]
    assert not ax.patches and not ax.lines and [o.get_text() for o in ax.texts] == ['0', 'never predicted']*2

@pytest.mark.parametrize('ties', [False, True])
def test_points_against_sklearn(ties):
    rng = np.random.default_rng(0)
    own, score = rng.random(200) < 0.3, rng.random(200)
    if ties: score = score.round(1)
    x, y = _points('roc', own, score)
    fx, fy, _ = roc_curve(own, score, drop_intermediate=False)
    assert np.allclose(x, fx) and np.allclose(y, fy)
    x, y = _points('pr', own, score)
    precision, recall, _ = precision_recall_curve(own, score)
    first = np.flatnonzero(recall == 1)[-1]  # scikit-learn's goes on below it
    assert np.allclose(x[::-1], recall[first:]) and np.allclose(y[::-1][:-1], precision[first:-1])
    assert len(_points('roc', np.tile(own, 50), rng.random(10_000))[0]) <= 400

def test_several_labels():
    p = random(200, 4)
    several = Predictions(p.probs, p.vocab, targets=(p.probs > 0.3).astype(int), items=p.items, multi_label=True)
    for fig in (plot_per_class(several), plot_roc(several, draws=20), plot_precision_recall(several, draws=20), plot_slices(slices(several, facts(p, a=p.labels)))): draw(fig)

@pytest.mark.parametrize('f', [plot_per_class, plot_roc, plot_precision_recall])
def test_refused(f):
    p = random()
    with pytest.raises(DataError, match='needs `targets`'): f(Predictions(p.probs, p.vocab))
    with pytest.raises(DataError, match='have no rows'): f(p[[]])
    with pytest.raises(ValueError, match='`k` must be 1 or more, got 0'): f(p, k=0)

def test_slices_of_times():
    p = random(200)
    days = pd.date_range('2024-05-01', periods=200)
    found = slices(p, facts(p, day=days, zone=days.tz_localize('Asia/Tokyo'), wait=days - days[0]), columns=['day', 'zone', 'wait'])
    assert found['n'].tolist() == [50]*12 and '2024-05-01 to 2024-06-19' in found['slice'].tolist() and '0 days to 49 days' in found['slice'].tolist()

def test_learning_curves():
    frame = pd.DataFrame(dict(images=[10, 10, 100, 100, 1000], accuracy=[0.5, 0.6, 0.7, 0.8, 0.9], loss=[2, 2, 1, 1, 0.5], seed=[0, 1, 0, 1, 0]))
    ax = draw(plot_learning_curve(frame)).axes[0]
    assert ax.get_xscale() == 'log' and [o.get_text() for o in ax.get_legend().get_texts()] == ['accuracy', 'loss'] and np.allclose(ax.lines[0].get_ydata(), [0.55, 0.75, 0.9])
    draw(plot_learning_curve(frame[:1])), draw(plot_learning_curve(frame, x='seed', y=['loss']))
    with pytest.raises(DataError, match="no column 'error'"): plot_learning_curve(frame, y=['error'])
    with pytest.raises(DataError, match='nothing to draw'): plot_learning_curve(frame[:0])


# --- Slices --------------------------------------------------------------------------------------------------------
def test_slices_by_hand():
    p = random(400, shift=1.)
    table = facts(p, camera=np.repeat(['a', 'b', 'few'], [200, 190, 10]), size=np.arange(400.), same=1)
    found = slices(p, table.sample(frac=1, random_state=0))  # the order of the table doesn't matter
    assert set(found['column']) == {'camera', 'size'} and set(found['slice']) == {'a', 'b', '0 to 99', '100 to 199', '200 to 299', '300 to 399'}
    assert found['p'].is_monotonic_increasing and found['p_holm'].is_monotonic_increasing
    for o in found.itertuples():
        inside = np.isin(p.items, table['path'][(table['camera'] == o.slice) if o.column == 'camera' else table['size'].between(*map(float, o.slice.split(' to ')))])
        right, rest = p.correct[inside], p.correct[~inside]
        assert (o.n, o.right) == (len(right), right.sum()) and np.isclose(o.accuracy, right.mean()) and np.isclose(o.rest, rest.mean()) and o.low < o.accuracy < o.high
        assert np.isclose(o.p, fisher_exact([[right.sum(), (~right).sum()], [rest.sum(), (~rest).sum()]], 'less')[1])
    m, running = len(found), 0.
    for i, o in enumerate(found.itertuples()):
        running = max(running, o.p*(m - i))
        assert np.isclose(o.p_holm, min(running, 1))

def test_nothing_to_find_is_rarely_found():
    "With mistakes dealt out blindly, one run in twenty at most names a slice"
    rng, hits = np.random.default_rng(0), 0
    for i in range(100):
        p = random(200, 3, seed=i)
        hits += (slices(p, facts(p, a=rng.integers(0, 5, 200).astype(str), b=rng.random(200), c=rng.random(200)))['p_holm'] <= 0.05).any()
    assert hits <= 10  # 5 expected at most; more than 10 happens in 1 % of cases

def test_odd_columns():
    p = random(200)
    values = np.arange(200.)
    values[:30] = np.nan
    table = facts(p, gap=values, labels=[('a', 'b') if i % 2 else () for i in range(200)], flag=np.arange(200) < 90, when=pd.Timestamp('2026-01-01'), width=30, height=[10, 20]*100, label='x')
    found = slices(p, table)
    assert set(found['column']) == {'gap', 'labels', 'flag', 'short_side', 'shape'} and 'missing' in set(found['slice']) and 'a|b' in set(found['slice'])
    draw(plot_slices(found))
    assert len(slices(p, table, columns=['label'])) == 0  # one slice with all images has nothing to be compared with

def test_no_slices():
    p = random(30)
    found = slices(p, facts(p, a=p.items))
    assert found.empty and describe_slices(found) == 'No slice has enough images to be looked at.'
    draw(plot_slices(found))

def test_the_sentence():
    p = random(400, shift=3.)
    found = slices(p, facts(p, wrong=np.where(p.correct, 'no $', '猫')))
    assert describe_slices(found).startswith('Of 2 slices 1 is worse') and '猫 (0% of' in describe_slices(found)
    assert 'none is worse' in describe_slices(found.iloc[1:])
    draw(plot_slices(found))

@pytest.mark.parametrize('change,text', [
    (lambda o: o[1:], 'the table lacks 1 of the 300 images: 0.png'), (lambda o: pd.concat([o, o[:1]]), 'more than once: 0.png'),
    (lambda o: o.rename(columns=dict(path='name')), "needs a column 'path' or 'file'")], ids=['lacks', 'twice', 'no path'])
def test_tables_refused(change, text):
    p = random()
    table = change(facts(p, a='x'))
    with pytest.raises(DataError, match=text): slices(p, table)
    with pytest.raises(DataError, match=text): plot_slice_images(p, table, 'a')

def test_slice_images():
    p = random(60)  # the files are missing: grey tiles
    fig = draw(plot_slice_images(p, facts(p, a=np.arange(60.)), 'a', k=2, images=3, bins=3))
    assert len(fig.axes) == 8 and fig.axes[1].get_title().splitlines()[0] in p.items
    with pytest.raises(DataError, match='have no `items`'): plot_slice_images(Predictions(p.probs, p.vocab, targets=p.targets), facts(p), 'a')


@pytest.mark.parametrize('low, high', [(100.1, 100.4), (51.231, 51.239), (1e6, 1e6 + 1)])
def test_slices_that_lie_close_together(low, high):
    "Ranges keep as many digits as tell them apart; none is lost or thrown together"
    n, files = 400, [f'{i}.jpg' for i in range(400)]
    right = np.arange(n) >= 60
    preds = Predictions(np.where(right[:, None], [0.9, 0.1], [0.1, 0.9]), ['a', 'b'], targets=np.zeros(n, int), items=files)
    found = slices(preds, pd.DataFrame(dict(path=[f'./{o}' for o in files], x=np.linspace(low, high, n))))
    assert len(found) == 4 and found['n'].tolist() == [100] * 4 and found['accuracy'].iloc[0] == 0.4
