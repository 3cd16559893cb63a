"""What `Predictions` accepts, what it refuses and with which words, and that all fields stay in their rows."""
import inspect, subprocess, sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from imgcls.core import DataError
from imgcls.predictions import Predictions
from sklearn.metrics import accuracy_score, log_loss

vocab = ['cat', 'dog', 'cow']
fields = ('targets', 'items', 'logits', 'features', 'losses')

def random(n=50, c=3, seed=0, **kw):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, c))*2
    probs = np.exp(logits)/np.exp(logits).sum(1, keepdims=True)
    full = dict(targets=rng.integers(0, c, n), items=[f'd/{i}.jpg' for i in range(n)], root='photos', logits=logits, features=rng.normal(size=(n, 7)), split='valid')
    return Predictions(probs, [f'c{i}' for i in range(c)], **(full | kw))

def test_signature():
    kinds = inspect.signature(Predictions).parameters
    assert list(kinds) == ['probs', 'vocab', 'targets', 'items', 'root', 'logits', 'features', 'losses', 'split', 'multi_label', 'one_vs_all']
    assert [k for k, p in kinds.items() if p.kind is p.POSITIONAL_OR_KEYWORD] == ['probs', 'vocab']

def test_against_sklearn():
    p = random(500, 7)
    assert np.isclose(p.correct.mean(), accuracy_score(p.actual, p.labels))
    assert np.isclose(p.losses.mean(), log_loss(p.targets, p.probs.astype(float)/p.probs.sum(1, dtype=float, keepdims=True), labels=range(7)), rtol=1e-5)
    assert (p.probs.dtype, p.losses.dtype, p.targets.dtype, p.labels.dtype, p.confidence.dtype) == (np.float32, np.float32, np.int64, object, np.float32)
    assert p.correct.dtype == bool and p.root == Path('photos')

def test_kinds_of_input():
    "Lists, tensors, frames and categories are as good as arrays"
    torch = pytest.importorskip('torch')
    a = Predictions([[0.8, 0.1, 0.1], [0.2, 0.3, 0.5]], vocab, targets=[0, 2])
    same = [Predictions(torch.tensor(a.probs), np.array(vocab), targets=torch.tensor([0, 2])), Predictions(pd.DataFrame(a.probs), pd.Index(vocab), targets=pd.Series([0, 2], index=[7, 9])),
            Predictions(a.probs, tuple(vocab), targets=np.array([0., 2.])), Predictions(a.probs, vocab, targets=pd.Series(['cat', 'cow'])),
            Predictions(a.probs, vocab, targets=pd.Categorical(['cat', 'cow'])), Predictions(a.probs, vocab, targets=np.array(['cat', 'cow']))]
    for b in same: assert (b.probs == a.probs).all() and (b.targets == a.targets).all() and b.vocab == vocab and np.allclose(a.losses, b.losses)
    assert Predictions(a.probs, [0, 1, 2], targets=['0', '2']).labels.tolist() == ['0', '2']
    assert Predictions(a.probs, vocab, items=[Path('a')/'b.jpg', 'c.jpg']).items.tolist() == ['a/b.jpg', 'c.jpg']

def test_input_is_not_changed():
    probs, targets = np.array([[0.5, 0.5]]), np.array([1])
    p = Predictions(probs, ['a', 'b'], targets=targets)
    p.probs[:] = 0
    assert probs.dtype == np.float64 and probs.sum() == 1 and targets.tolist() == [1]

def test_losses():
    p = Predictions([[1, 0], [1, 0], [0.5, 0.5]], ['a', 'b'], targets=[0, 1, 1])
    assert p.losses[0] == 0 and 80 < p.losses[1] < 90 and np.isclose(p.losses[2], np.log(2))
    assert Predictions(p.probs, p.vocab, targets=p.targets, losses=[1, 2, 3]).losses.tolist() == [1, 2, 3]
    assert Predictions(p.probs, p.vocab, losses=[1, 2, 3]).losses.tolist() == [1, 2, 3]
    assert np.isinf(Predictions(p.probs, p.vocab, losses=[1, np.inf, 3]).losses[1])

def test_half_precision_sums():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(10), 1000).astype(np.float16)
    assert len(Predictions(probs, range(10))) == 1000


# --- Parts ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('rows', [slice(None), slice(3, 20, 2), slice(0, 0), [], [4], [4, 4, -1], np.array([7, 3]), (1, 2), pd.Series([True]*10 + [False]*40), np.arange(50) % 3 == 0,
                                  np.zeros(50, bool), [True]*50, range(3), 5, -1, np.int64(2)], ids=str)
def test_parts(rows):
    p = random()
    q, index = p[rows], np.atleast_1d(np.arange(50)[rows if isinstance(rows, slice) else np.asarray(rows, dtype=int if np.size(rows) == 0 else None)])
    assert len(q) == len(index) and np.array_equal(q.probs, p.probs[index])
    for name in fields: assert np.array_equal(getattr(q, name), getattr(p, name)[index]), name
    assert (q.vocab, q.root, q.split, q.multi_label) == (p.vocab, p.root, p.split, p.multi_label)
    assert list(q.labels) == list(p.labels[index]) and list(q.actual) == list(p.actual[index])

@pytest.mark.parametrize('rows', [50, -51, [60], [True, False], np.ones(49, bool), 'a', 1.5, [0.5], None, [[1, 2]], True, np.ones((50, 2), bool)], ids=str)
def test_bad_parts(rows):
    with pytest.raises(IndexError, match='Predictions of 50 images are taken by a row number, a slice, or an array'): random()[rows]

def test_given_losses_stay_in_parts():
    p = random(losses=np.arange(50))
    assert p[[7, 3]].losses.tolist() == [7, 3]

def test_iteration(): assert [o.items[0] for o in random(3)] == ['d/0.jpg', 'd/1.jpg', 'd/2.jpg']

def test_empty():
    p = random()[[]]
    assert len(p) == 0 and p.to_frame(k=2).shape == (0, 8) and '0 images, 3 classes' in repr(p) and '0 images' in p._repr_html_() and len(p[:]) == 0
    assert len(Predictions(np.zeros((0, 3)), vocab)) == 0


# --- Several labels ------------------------------------------------------------------------------------------------
def test_multi_label():
    rng = np.random.default_rng(0)
    probs, targets = rng.random((200, 3)), rng.integers(0, 2, (200, 3))
    p = Predictions(probs, vocab, targets=targets, multi_label=True)
    torch = pytest.importorskip('torch')
    loss = torch.nn.functional.binary_cross_entropy(torch.tensor(probs), torch.tensor(targets).double(), reduction='none').mean(1)
    assert np.allclose(p.losses, loss, rtol=1e-5)
    assert np.array_equal(p.correct, ((probs > 0.5) == targets).all(1))
    assert [o.split('|') if o else [] for o in p.labels] == [[v for v, t in zip(vocab, o) if t > 0.5] for o in probs]
    assert [o.split('|') if o else [] for o in p.actual] == [[v for v, t in zip(vocab, o) if t] for o in targets]
    assert len(p[:5].targets) == 5 and p[:5].multi_label and p.to_frame(k=3).shape == (200, 9)


# --- Frames, files and how it looks --------------------------------------------------------------------------------
def test_frame():
    p = random()
    f = p.to_frame(k=3)
    assert list(f) == ['file', 'actual', 'predicted', 'probability', 'loss', 'correct', 'predicted_2', 'probability_2', 'predicted_3', 'probability_3']
    assert np.allclose(f[['probability', 'probability_2', 'probability_3']], -np.sort(-p.probs, 1))
    assert (f[['predicted', 'predicted_2', 'predicted_3']].nunique(axis=1) == 3).all()
    assert list(Predictions(p.probs, p.vocab).to_frame()) == ['predicted', 'probability']
    assert list(Predictions(p.probs, p.vocab, items=p.items, losses=p.losses).to_frame()) == ['file', 'predicted', 'probability', 'loss']
    for k in (0, 4, -1):
        with pytest.raises(ValueError, match=f'`k` must be a number of classes, from 1 to 3, got {k}'): p.to_frame(k=k)

def test_csv(tmp_path):
    odd = ['a,b.jpg', 'quo"te.jpg', 'new\nline.jpg', 'Müll.jpg', ' space .jpg']
    p = random(5, items=odd)
    p.to_csv(tmp_path/'sub'/'p.csv')
    back = pd.read_csv(tmp_path/'sub'/'p.csv')
    pd.testing.assert_frame_equal(back, p.to_frame(), check_dtype=False, rtol=1e-6)
    assert [o.name for o in (tmp_path/'sub').iterdir()] == ['p.csv'] and b'\r' not in (tmp_path/'sub'/'p.csv').read_bytes()
    random(1, items=['caf\udce9.jpg']).to_csv(tmp_path/'q.csv')  # a name that isn't UTF-8
    assert 'caf' in pd.read_csv(tmp_path/'q.csv')['file'][0]

def test_repr():
    p = random(2000)
    right = p.correct.sum()
    assert repr(p).splitlines()[0] == f'valid: 2,000 images, 3 classes, accuracy {right/2000:.3f} ({right:,} of 2,000)' and len(repr(p).splitlines()) == 7
    assert '1 image, 3 classes' in repr(p[0])
    html = p._repr_html_()
    assert html.count('<tr') == 6 and '1,995 more rows' in html and repr(p).splitlines()[0].split(': ')[1] in html
    assert 'more rows' not in p[:5]._repr_html_()

def test_html_is_escaped():
    p = Predictions([[0.5, 0.5]], ['<script>alert(1)</script>', 'b'], items=['<img src=x>.jpg'], split='<b>')
    assert not any(o in p._repr_html_() for o in ('<script', '<img', 'images<b>', '<b>:'))


# --- Refusals ------------------------------------------------------------------------------------------------------
one = [[0.2, 0.3, 0.5]]
@pytest.mark.parametrize('kw,text', [
    (dict(probs=[0.2, 0.8]), 'one row per image and one column per class, got shape (2,)'),
    (dict(probs='abc'), '`probs` must be an array of numbers, got str'), (dict(probs=[[0.5], [0.5, 0.5]]), '`probs` must be an array of numbers, got list'),
    (dict(vocab=['a', 'b']), '`probs` has 3 columns, but `vocab` has 2 classes: a, b.'), (dict(vocab=['a', 'b', 'a']), '`vocab` names a class more than once: a.'),
    (dict(probs=[[np.nan, 0.5, 0.5]]), '`probs` of row 0 are not finite numbers'), (dict(probs=[[np.inf, 0, 0]]), 'are not finite'),
    (dict(probs=[[1.5, -0.5, 0]]), '`probs` must lie between 0 and 1, but not those of row 0. Pass probabilities (after softmax), not logits'),
    (dict(probs=[[2.3, -1.1, 0.4]], items=['a/b.jpg']), 'not those of a/b.jpg'), (dict(probs=[[0.2, 0.3, 0.4]]), 'must sum to 1 in each row, but those of row 0 sum to 0.9.'),
    (dict(probs=[[0.9, 0.8, 0.1]]), 'for several labels an image, set multi_label=True'), (dict(probs=[[0.9, 1.8, 0.1]], multi_label=True), 'must lie between 0 and 1'),
    (dict(probs=[[0.2, 0.2, 0.2]]*9), 'those of row 0, row 1, row 2 and 6 more sum to 0.6'),
    (dict(targets=[3]), '`targets` must be whole numbers from 0 to 2, but row 0 has 3.'), (dict(targets=[-1], items=['x.jpg']), 'but x.jpg has -1'),
    (dict(targets=[0.5]), 'but row 0 has 0.5'), (dict(targets=[np.nan]), 'but row 0 has nan'), (dict(targets=['cow', 'dog']), '`targets` must have shape (1,) to go with `probs`, got (2,)'),
    (dict(targets=['sheep']), '`targets` has classes that `vocab` lacks: sheep. The vocabulary is: cat, dog, cow.'), (dict(targets=[None]), 'lacks: None'),
    (dict(targets=[[0, 0, 1]]), 'got (1, 3). For several labels an image, set multi_label=True.'), (dict(targets=[0], multi_label=True), '`targets` must have shape (1, 3)'),
    (dict(targets=[[0, 2, 0]], multi_label=True), 'whole numbers from 0 to 1, but row 0 has 2'), (dict(targets=[['cat', 'dog', 'cow']], multi_label=True), '`targets` must be an array of numbers'),
    (dict(items=[7]), '`items` must be the paths or names of the files, one an image'), (dict(items=7), '`items` must be the paths'),
    (dict(items=['a', 'b']), '`items` must have shape (1,)'), (dict(logits=[[1, 2]]), '`logits` must have shape (1, 3) to go with `probs`, got (1, 2).'),
    (dict(features=[[1, 2], [3, 4]]), '`features` must have shape (1, …) to go with `probs`, got (2, 2).'), (dict(losses=[[1]]), '`losses` must have shape (1,)')])
def test_refused(kw, text):
    with pytest.raises(DataError) as e: Predictions(**(dict(probs=one, vocab=vocab) | kw))
    assert text in str(e.value)


# --- Size ----------------------------------------------------------------------------------------------------------
def test_import_is_light():
    code = 'import sys, imgcls.predictions; print([o for o in ("torch", "fastai", "matplotlib", "sklearn", "PIL") if o in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'

def test_many():
    "10,000 images of 1,000 classes are no strain"
    rng = np.random.default_rng(0)
    probs = rng.random((10_000, 1000), dtype=np.float32)
    p = Predictions(probs/probs.sum(1, keepdims=True), range(1000), targets=rng.integers(0, 1000, 10_000))
    assert len(p[p.correct]) == p.correct.sum() and len(p.to_frame()) == 10_000
