"""The confusion matrix against scikit-learn's, and plots that survive many classes, odd names, missing files and odd histories."""
import io, warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from imgcls.core import DataError
from imgcls.evaluate.interpret import (confusion_matrix, confusion_table, most_confused, plot_confused_pairs, plot_confusion, plot_history, plot_images,
    plot_top_losses)
from imgcls.predictions import Predictions
from matplotlib.image import imread
from PIL import Image
from sklearn.metrics import confusion_matrix as sklearn_matrix

def random(n=300, c=5, accuracy=0.8, names=None, **kw):
    rng = np.random.default_rng(0)
    targets, logits = rng.integers(0, c, n), rng.normal(size=(n, c))
    said = np.where(rng.random(n) < accuracy, targets, rng.integers(0, c, n))
    logits[np.arange(n), said] += 6
    return Predictions(np.exp(logits)/np.exp(logits).sum(1, keepdims=True), names or [f'c{i}' for i in range(c)], **(dict(targets=targets) | kw))

def draw(fig, dpi=60):
    "Draw it as a file does; a warning (no room, a missing glyph, a broken formula) is an error"
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fig.savefig(out, dpi=dpi)
        fig.draw_without_rendering()  # so that sizes can be measured
    out.seek(0)
    return imread(out)

def texts(ax): return [o.get_text() for o in ax.texts]

def inside(fig, artists):
    "Do all of them lie within the figure?"
    box = fig.bbox
    return all(o.x0 >= box.x0 - 1 and o.x1 <= box.x1 + 1 and o.y0 >= box.y0 - 1 and o.y1 <= box.y1 + 1 for o in (a.get_window_extent() for a in artists))


# --- Confusion matrix ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('n,c', [(0, 3), (1, 2), (300, 5), (2000, 100)])
def test_against_sklearn(n, c):
    p = random(n, c)
    got = confusion_matrix(p)
    assert np.array_equal(got, sklearn_matrix(p.targets, p.probs.argmax(1), labels=range(c)) if n else np.zeros((c, c)))
    assert list(got.index) == list(got.columns) == p.vocab and (got.index.name, got.columns.name) == ('actual', 'predicted')

def test_classes_without_samples():
    p = random()
    p = p[(p.targets < 3)]
    counts = confusion_matrix(p)
    assert counts.shape == (5, 5) and counts.loc[['c3', 'c4']].to_numpy().sum() == 0 and counts.to_numpy().sum() == len(p)
    draw(plot_confusion(p)), draw(plot_confusion(p, normalize=True))

def test_most_confused():
    p = random()
    pairs, counts = most_confused(p), confusion_matrix(p)
    assert list(pairs) == ['actual', 'predicted', 'count'] and pairs['count'].sum() == (~p.correct).sum() and pairs['count'].is_monotonic_decreasing
    assert all(counts.loc[o.actual, o.predicted] == o.count_ and o.actual != o.predicted for o in pairs.rename(columns=dict(count='count_')).itertuples())
    assert (most_confused(p, min_count=4)['count'] >= 4).all() and len(most_confused(p, min_count=0)) == len(pairs)
    none = most_confused(p[p.correct])
    assert len(none) == 0 and list(none) == ['actual', 'predicted', 'count'] and none.to_dict('records') == []

@pytest.mark.parametrize('f', [confusion_matrix, most_confused, plot_confusion, plot_top_losses])
def test_needs_targets(f):
    p = random()
    with pytest.raises(DataError, match='needs `targets`, and these predictions have none'): f(Predictions(p.probs, p.vocab, items=['a.jpg']*len(p)))

@pytest.mark.parametrize('f', [plot_confusion, plot_top_losses])
def test_needs_rows(f):
    with pytest.raises(DataError, match='have no rows'): f(random(items=[str(i) for i in range(300)])[[]])

@pytest.mark.parametrize('f', [confusion_matrix, most_confused, plot_confusion])
def test_needs_one_label(f):
    several = Predictions([[0.9, 0.8]], 'ab', targets=[[1, 1]], multi_label=True)
    with pytest.raises(DataError, match='needs one label an image'): f(several)


# --- plot_confusion ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('normalize', [False, True])
@pytest.mark.parametrize('c', [2, 3, 10, 25, 26, 100])
def test_plot_confusion(c, normalize):
    p = random(4*c*c if c < 26 else 3000, c, names=[f'a class {i}' for i in range(c)], split='valid')
    fig = plot_confusion(p, normalize=normalize)
    draw(fig)
    ax, counts = fig.axes[0], confusion_matrix(p).to_numpy()
    assert len(fig.axes) == 1 + (normalize or c > 25)  # a colour bar where colours need one
    assert len(ax.texts) == ((counts > 0).sum() if c <= 25 else 0)
    if c <= 25: assert texts(ax)[0] == (f'{counts[0, 0]/counts[0].sum():.2f}' if normalize else str(counts[0, 0]))
    assert ax.get_title() == f'valid: {np.trace(counts):,} of {len(p):,} right'
    labels = [*ax.get_xticklabels(), *ax.get_yticklabels()]
    assert len(labels) == 2*c and inside(fig, [*labels, ax.title, ax.xaxis.label, ax.yaxis.label])
    boxes = [o.get_window_extent() for o in ax.get_yticklabels()]
    assert all(a.y0 >= b.y1 - 1 for a, b in zip(boxes, boxes[1:]))  # names don't run into each other
    boxes = [o.get_window_extent() for o in ax.get_xticklabels()]
    assert all(a.x1 <= b.x0 + 1 for a, b in zip(boxes, boxes[1:]))
    assert max(fig.get_size_inches()) < 20

def test_numbers_fit_their_cells():
    p = random(200, 20)
    counts = np.full((20, 20), 12345)
    big = Predictions(p.probs[:1], p.vocab, targets=[0])
    from imgcls.evaluate.interpret import _write_numbers
    fig = plot_confusion(big)
    ax = fig.axes[0]
    for o in list(ax.texts): o.remove()
    _write_numbers(ax, counts, counts/counts.sum(1), False)
    draw(fig)
    boxes = [o.get_window_extent() for o in ax.texts[:20]]
    assert all(a.x1 <= b.x0 for a, b in zip(boxes, boxes[1:]))

def test_many_classes_thin_the_names():
    fig = plot_confusion(random(2000, 250))
    assert len(fig.axes[0].get_xticks()) == 84 and fig.axes[0].get_xticklabels()[1].get_text() == 'c3'
    draw(fig)

odd_names = ['$x^2$', '$\\frac', 'a_b', 'x'*200, 'line\nbreak', 'tab\t', 'caf\udce9', '50 % "off"', ' ', '猫の写真', 'ねこ'*20]
def test_odd_names():
    p = random(c=len(odd_names), names=odd_names)
    draw(plot_confusion(p))
    p = random(c=len(odd_names), names=odd_names, items=[f'{o}{i}' for i, o in zip(range(300), odd_names*100)])
    draw(plot_top_losses(p, k=20))


@pytest.mark.parametrize('c', [2, 3, 30])
def test_similar_classes_are_neighbours(c):
    p = random(2000, c)
    names = [o.get_text() for o in draw_axes(plot_confusion(p, order='similarity')).get_yticklabels()]
    assert sorted(names) == sorted(p.vocab)
    pairs = random(600, 6)  # 0 with 5, 1 with 4, 2 with 3
    pairs.probs[np.arange(600), 5 - pairs.targets] += 5
    pairs.probs /= pairs.probs.sum(1, keepdims=True)
    names = [o.get_text() for o in plot_confusion(pairs, order='similarity').axes[0].get_yticklabels()]
    assert {frozenset(names[i:i+2]) for i in (0, 2, 4)} == {frozenset(o) for o in (('c0', 'c5'), ('c1', 'c4'), ('c2', 'c3'))}

def draw_axes(fig):
    draw(fig)
    return fig.axes[0]

@pytest.mark.parametrize('order', ['vocab', 'similarity'])
def test_most_confused_classes(order):
    p = random(2000, 40)
    p = p[p.targets != 7]  # a class without images
    fig = plot_confusion(p, order=order, most_confused=6)
    ax, counts = draw_axes(fig), confusion_matrix(p)
    rows = [o.get_text() for o in ax.get_yticklabels()]
    wrong = counts.sum(axis=0).to_numpy() + counts.sum(axis=1).to_numpy() - 2*np.diag(counts)
    assert len(rows) == 6 and [o.get_text() for o in ax.get_xticklabels()] == [*rows, '34 others']
    assert min(wrong[p.vocab.index(o)] for o in rows) >= np.sort(wrong)[-6]
    shown = np.zeros((6, 7))
    for o in ax.texts: shown[round(o.get_position()[1]), round(o.get_position()[0])] = int(o.get_text())
    assert np.array_equal(shown.sum(1), counts.loc[rows].sum(axis=1)) and np.array_equal(shown[:, :6], counts.loc[rows, rows])
    assert len(plot_confusion(p, most_confused=99).axes[0].get_yticklabels()) == 40
    with pytest.raises(ValueError, match='`most_confused` is a number of classes'): plot_confusion(p, most_confused=0)

def test_confusion_table():
    p = random()
    p = p[p.targets != 2]
    table = confusion_table(p)
    assert len(table) == 25 and np.array_equal(table['count'].to_numpy().reshape(5, 5), confusion_matrix(p))
    none = table[table['actual'] == 'c2']
    assert none['share'].isna().all() and (none['low'] == 0).all() and (none['high'] == 1).all()
    assert np.allclose(table.groupby('actual')['share'].sum()[['c0', 'c1', 'c3', 'c4']], 1) and (confusion_table(p, min_count=1)['count'] > 0).all()
    with pytest.raises(ValueError, match='`level`'): confusion_table(p, level=95)

def test_pairs_and_sheets(photos):
    pairs, fig = most_confused(photos), plot_confused_pairs(photos, 2, images=3)
    draw(fig)
    headings = [ax.texts[0].get_text() for ax in fig.axes if ax.texts and 'called' in ax.texts[0].get_text()]
    assert [o.splitlines()[::2][:2] for o in headings] == pairs[['actual', 'predicted']][:2].to_numpy().tolist()
    none = plot_confused_pairs(photos[photos.correct])
    draw(none)
    assert none.axes[0].texts[0].get_text().startswith('no mistakes')
    unknown = Predictions(photos.probs, photos.vocab, items=photos.items, root=photos.root)
    for sort, order in (('certain', -photos.confidence), ('uncertain', photos.confidence), (None, np.arange(12))):
        fig = plot_images(unknown, sort=sort, k=3)
        draw(fig)
        assert [o.get_title().splitlines()[0] for o in fig.axes] == list(photos.items[np.argsort(order, kind='stable')[:3]]) and 'actual' not in fig.axes[0].get_title()
    with pytest.raises(DataError, match='needs one label an image'): plot_confused_pairs(Predictions([[0.9, 0.8]], 'ab', targets=[[1, 1]], items=['a'], multi_label=True))


# --- plot_top_losses -----------------------------------------------------------------------------------------------
@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path/'sub').mkdir()
    for i in range(12): Image.fromarray(rng.integers(0, 255, (40 + 30*i, 300 - 20*i, 3), dtype=np.uint8)).save(tmp_path/'sub'/f'photo_{i}.jpg')
    return random(12, 3, accuracy=0.5, items=[f'sub/photo_{i}.jpg' for i in range(12)], root=tmp_path)

@pytest.mark.parametrize('k,cols,rows', [(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 2, 2), (5, 3, 2), (9, 3, 3), (100, 4, 3)])
def test_top_losses(photos, k, cols, rows):
    fig = plot_top_losses(photos, k=k)
    draw(fig)
    order, shown = np.argsort(-photos.losses, kind='stable')[:k], [o for o in fig.axes if o.get_title()]
    assert len(fig.axes) == cols*rows and len(shown) == min(k, 12)
    for ax, i in zip(shown, order):
        assert ax.get_title().splitlines() == [photos.items[i], f'predicted {photos.labels[i]}, {photos.confidence[i]:.2f}',
                                               f'actual {photos.actual[i]}, {photos.probs[i, photos.targets[i]]:.2f}', f'loss {photos.losses[i]:.2f}']
        assert len(ax.images) == 1 and not ax.texts
    assert inside(fig, [o.title for o in shown])

def test_long_names_are_cut_in_the_middle(photos):
    photos.items = np.array(['a_very_long_folder_name/with_another_one/' + o for o in photos.items], dtype=object)
    fig = plot_top_losses(photos, k=4)
    draw(fig)
    for ax in fig.axes:
        first = ax.get_title().splitlines()[0]
        assert len(first) <= 30 and first.startswith('a_very') and '…' in first and first.endswith('.jpg')
    assert inside(fig, [o.title for o in fig.axes])

def test_unreadable_files_keep_their_place(photos, tmp_path):
    (tmp_path/'sub'/'photo_0.jpg').unlink()
    (tmp_path/'sub'/'photo_1.jpg').write_text('<html> no photo')
    (tmp_path/'sub'/'photo_2.jpg').write_bytes((tmp_path/'sub'/'photo_2.jpg').read_bytes()[:300])
    (tmp_path/'sub'/'photo_3.jpg').write_bytes(b'')
    fig = plot_top_losses(photos, k=12)
    draw(fig)
    reasons = {ax.get_title().splitlines()[0]: ' '.join(texts(ax)[0].split()) for ax in fig.axes if ax.texts}
    assert sorted(reasons) == [f'sub/photo_{i}.jpg' for i in range(4)]
    assert reasons['sub/photo_0.jpg'].startswith('missing') and 'web page' in reasons['sub/photo_1.jpg'] and 'truncated' in reasons['sub/photo_2.jpg'] and reasons['sub/photo_3.jpg'].startswith('empty')

def test_losses_that_are_no_numbers_come_first(photos):
    photos.losses[5] = np.nan
    fig = plot_top_losses(photos, k=2)
    assert 'photo_5' in fig.axes[0].get_title() and 'loss nan' in fig.axes[0].get_title()

def test_top_losses_of_several_labels(photos):
    p = Predictions(photos.probs, photos.vocab, targets=np.eye(3)[photos.targets], items=photos.items, root=photos.root, multi_label=True)
    fig = plot_top_losses(p, k=2)
    draw(fig)
    assert len(fig.axes[0].get_title().splitlines()) == 4

def test_top_losses_refused(photos):
    with pytest.raises(DataError, match='have no `items`'): plot_top_losses(Predictions(photos.probs, photos.vocab, targets=photos.targets))
    for k in (0, -1):
        with pytest.raises(ValueError, match=f'`k` must be 1 or more, got {k}'): plot_top_losses(photos, k=k)

def test_input_stays(photos):
    before = photos.to_frame()
    plot_top_losses(photos), plot_confusion(photos), most_confused(photos)
    pd.testing.assert_frame_equal(before, photos.to_frame())

def test_memory_holds_only_thumbnails(tmp_path):
    Image.new('RGB', (3000, 2000)).save(tmp_path/'big.png')
    p = Predictions([[0.5, 0.5]], 'ab', targets=[0], items=['big.png'], root=tmp_path)
    assert plot_top_losses(p).axes[0].images[0].get_array().size <= 400*400*4


# --- plot_history --------------------------------------------------------------------------------------------------
full = pd.DataFrame(dict(epoch=range(4), stage=['frozen', 'unfrozen', 'unfrozen', 'unfrozen'], train_loss=[1.2, 0.6, 0.4, 0.3], valid_loss=[0.8, 0.6, 0.5, 0.5],
                         accuracy=[0.7, 0.8, 0.85, 0.86], f1_score=[0.6, 0.7, 0.8, 0.8], seconds=[3., 4., 5., 6.]))

def lines(ax): return {o.get_label(): list(o.get_ydata()) for o in ax.lines if not o.get_label().startswith('_')}

def dashed(ax): return [o.get_xdata()[0] for o in ax.lines if o.get_linestyle() == '--']

def test_history():
    fig = plot_history(full)
    draw(fig)
    left, right = fig.axes
    assert lines(left) == {'train loss': list(full['train_loss']), 'valid loss': list(full['valid_loss'])} and list(lines(right)) == ['accuracy', 'f1 score']
    assert dashed(left) == dashed(right) == [0.5] and texts(left) == ['frozen', 'unfrozen']
    assert all(float(o).is_integer() for ax in fig.axes for o in ax.get_xticks())
    assert inside(fig, [left.texts[0], right.texts[1], left.xaxis.label])

def test_history_sources(tmp_path):
    full.to_csv(tmp_path/'history.csv', index=False)
    learn = SimpleNamespace(history=full.to_dict('records'), recorder=SimpleNamespace())
    for source in (full, tmp_path/'history.csv', str(tmp_path/'history.csv'), tmp_path, learn):
        assert [lines(ax) for ax in plot_history(source).axes] == [lines(ax) for ax in plot_history(full).axes]
    plain = SimpleNamespace(recorder=SimpleNamespace(values=[[0.5, 0.4, 0.9]], metric_names=['epoch', 'train_loss', 'valid_loss', 'accuracy', 'time']))
    fig = plot_history(plain)  # a plain learner of fastai
    draw(fig)
    assert lines(fig.axes[1]) == {'accuracy': [0.9]}

@pytest.mark.parametrize('change,panels', [
    (dict(), 2), (dict(stage='frozen'), 2), (dict(valid_loss=np.nan), 2), (dict(valid_loss=[0.5, np.nan, np.inf, 0.4]), 2), (dict(epoch=[0, 0, 1, 2]), 2), (dict(epoch='x'), 2),
    (dict(time='00:12'), 2), (dict(stage=[0, 0, 1, 1]), 2), (dict(stage=['a', 'b', 'a', 'b']), 2), (dict(stage='$x$ 猫'*9), 2)], ids=str)
def test_odd_histories(change, panels):
    frame = full.assign(**change)
    fig = plot_history(frame.set_index(pd.Index([3, 1, 4, 1])))
    draw(fig)
    assert len(fig.axes) == panels and list(lines(fig.axes[1])) == ['accuracy', 'f1 score'] and len(lines(fig.axes[1])['accuracy']) == 4
    assert len(dashed(fig.axes[0])) == (frame['stage'] != frame['stage'].shift()).sum() - 1

def test_one_panel():
    for columns, label in ((['epoch', 'train_loss'], 'loss'), (['accuracy'], 'metric')):
        fig = plot_history(full[columns])
        draw(fig)
        assert [ax.get_ylabel() for ax in fig.axes] == [label]
    draw(plot_history(full[:1]))

@pytest.mark.parametrize('data,error,text', [
    (b'', DataError, "history.csv' isn't a table of a training's history"), (b'\xff\xfe\0\x01', DataError, "isn't a table"), (b'a,b\n1,2,3,4\n1\n1,2,3,4,5,6\n', DataError, "isn't a table"),
    (b'epoch,train_loss\n', DataError, 'no numbers to draw'), (b'<html>', DataError, 'no numbers to draw')])
def test_bad_files(tmp_path, data, error, text):
    (tmp_path/'history.csv').write_bytes(data)
    with pytest.raises(error, match=text): plot_history(tmp_path/'history.csv')

def test_history_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file '.*history.csv'. Give the path"): plot_history(tmp_path)
    with pytest.raises(TypeError, match='`history` must be a DataFrame, a path or a learner, got dict'): plot_history({})
    with pytest.raises(ValueError, match='not trained yet'): plot_history(SimpleNamespace(recorder=SimpleNamespace(values=[])))

def test_figures_are_not_kept():
    import matplotlib.pyplot as plt
    before = plt.get_fignums()
    plot_history(full), plot_confusion(random())
    assert plt.get_fignums() == before
