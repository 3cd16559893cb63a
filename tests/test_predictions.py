"""What `Predictions` accepts, what it refuses and with which words, and that all fields stay in their rows."""
import inspect, subprocess, sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from imgcls.core import DataError
from imgcls.predictions import Predictions, align_predictions, concat_predictions, read_predictions
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


# --- Kept in a file ------------------------------------------------------------------------------------------------
odd_names = ['a,b.jpg', 'quo"te.jpg', 'new\nline.jpg', 'car\rriage.jpg', 'Müll/猫.jpg', ' space .jpg', 'NA', '007', "d'é.jpg", 'tab\t.jpg']
odd_vocab = ['a,b', 'new\nline "quoted"', '猫', 'NA', '01', '']
formats = ('csv', 'parquet')

def varied(kind='one', n=10, seed=0, **about):
    "Predictions of each kind, with all fields, odd names and numbers of many sizes"
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(n, 6))*20).astype(np.float32)
    probs = 1/(1 + np.exp(-logits)) if kind != 'one' else np.exp(logits.astype(float))/np.exp(logits.astype(float)).sum(1, keepdims=True)
    targets = rng.integers(0, 2, (n, 6)) if kind == 'several' else rng.integers(0, 6, n)
    full = dict(targets=targets, items=odd_names[:n], root='my photos/ä', logits=logits, features=rng.normal(size=(n, 5)).astype(np.float16), split='test')
    return Predictions(probs, odd_vocab, multi_label=kind == 'several', one_vs_all=kind == 'one_vs_all', **(full | about))

def same(a, b):
    "Bit for bit?"
    facts = all(getattr(a, o) == getattr(b, o) for o in ('vocab', 'root', 'split', 'multi_label', 'one_vs_all'))
    def equal(x, y): return (x is None) == (y is None) and (x is None or x.dtype == y.dtype and x.shape == y.shape and (x.tolist() == y.tolist() if x.dtype == object else x.tobytes() == y.tobytes()))
    return facts and all(equal(getattr(a, o), getattr(b, o)) for o in ('probs', *fields))

@pytest.mark.parametrize('ending', formats)
@pytest.mark.parametrize('kind', ['one', 'several', 'one_vs_all'])
def test_back_to_the_last_bit(kind, ending, tmp_path):
    cases = dict(all=varied(kind), no_targets=varied(kind, targets=None), none_of_it=varied(kind, targets=None, items=None, root=None, logits=None, features=None, split=None),
                 empty=varied(kind)[[]], one=varied(kind)[3], losses=varied(kind, losses=[0, 1e-30, np.inf, np.nan, 5, 6, 7, 8, 9, 1/3]), only_losses=varied(kind, targets=None, losses=range(10)),
                 twice=varied(kind)[[1, 1, 0]], double=varied(kind, logits=np.random.default_rng(1).normal(size=(10, 6)), features=np.random.default_rng(2).normal(size=(10, 2, 3))),
                 no_features=varied(kind, features=np.zeros((10, 0), np.float32)), not_utf8=varied(kind, items=['caf\udce9.jpg', *odd_names[1:]]))
    for name, p in cases.items():
        path = p.save(tmp_path/'new'/f'{name}.{ending}')
        assert same(p, Predictions.load(path)), name
    assert {o.suffix for o in (tmp_path/'new').iterdir()} == ({'.csv', '.json'} if ending == 'csv' else {'.parquet'})

@pytest.mark.parametrize('ending', formats)
def test_all_float32_come_back(ending, tmp_path):
    "Nine digits tell each float32 from its neighbours, small and denormal ones too"
    bits = np.random.default_rng(0).integers(0, 0x3f800000, (20_000, 1), dtype=np.uint32)
    p = Predictions(bits.view(np.float32), ['x'], one_vs_all=True)
    assert np.array_equal(Predictions.load(p.save(tmp_path/f'p.{ending}')).probs.view(np.uint32), bits)

def test_classes_that_are_not_utf8(tmp_path):
    p = Predictions([[0.5, 0.5]], ['caf\udce9', 'b'], targets=[0], items=['x'])
    for ending in formats: assert same(p, Predictions.load(p.save(tmp_path/f'p.{ending}')))

def test_columns_of_a_saved_csv(tmp_path):
    p = random(20, 3)
    frame = pd.read_csv(p.save(tmp_path/'p.csv'))
    assert list(frame) == ['file', 'actual', 'predicted', 'probability', 'loss', 'correct', *(f'p_c{i}' for i in range(3)), *(f'logit_c{i}' for i in range(3)), *(f'feature_{i}' for i in range(7))]
    pd.testing.assert_frame_equal(frame[list(p.to_frame())], p.to_frame(), check_dtype=False, rtol=1e-6)
    assert same(read_predictions(tmp_path/'p.csv', root='photos', split='valid'), Predictions(p.probs, p.vocab, targets=p.targets, items=p.items, root='photos', split='valid'))

def test_what_is_there_stays_if_saving_fails(tmp_path, monkeypatch):
    path = random(5).save(tmp_path/'p.csv')
    before = {o.name: o.read_bytes() for o in tmp_path.iterdir()}
    monkeypatch.setattr(pd.DataFrame, 'to_csv', lambda self, f, **kwargs: f.write('half') and 1/0)
    with pytest.raises(ZeroDivisionError): random(9).save(path)
    assert {o.name: o.read_bytes() for o in tmp_path.iterdir()} == before

def edited(path, old, new): path.write_text(path.read_text('utf-8').replace(old, new), 'utf-8')

@pytest.mark.parametrize('name,break_it,text', [
    ('column', lambda o: edited(o, 'p_c1', 'p_x'), 'is not as it was written: it lacks the columns p_c1 and it has other classes: x'),
    ('vocab', lambda o: edited(o.with_suffix('.json'), '"c1"', '"dog"'), 'it lacks the columns p_dog, logit_dog and it has other classes: c1'),
    ('cut', lambda o: o.write_text(o.read_text()[:o.read_text().rindex('d/4')]), 'it has 4 rows in the place of 5.'),
    ('twice', lambda o: o.write_text(o.read_text() + o.read_text().splitlines()[-1] + '\n'), 'it has 6 rows in the place of 5 and it has photos more than once: d/4.jpg'),
    ('json', lambda o: edited(o.with_suffix('.json'), '{', ''), "p.json' isn't valid JSON"), ('no json', lambda o: o.with_suffix('.json').unlink(), 'nothing is said about it in a .json beside it. Take `read_predictions`'),
    ('list', lambda o: o.with_suffix('.json').write_text('[1]'), 'not of this version of imgcls'), ('newer', lambda o: edited(o.with_suffix('.json'), '"predictions": 1', '"predictions": 2'), 'not of this version'),
    ('text', lambda o: edited(o, ',True', ',True').__class__ and o.write_text(o.read_text().replace('d/0.jpg,c', 'd/0.jpg,dog')), '`targets` has classes that `vocab` lacks: dog'),
    ('number', lambda o: o.write_text(o.read_text().splitlines()[0] + '\n' + '\n'.join(','.join([*l.split(',')[:6], 'high', *l.split(',')[7:]]) for l in o.read_text().splitlines()[1:])), 'must be an array of numbers'),
    ('empty', lambda o: o.write_text(''), "can't be read as a CSV file"), ('binary', lambda o: o.write_bytes(b'\xff\xfe\x00'), "can't be read as a CSV file")], ids=lambda o: o if isinstance(o, str) and len(o) < 8 else '')
def test_files_that_are_not_as_written(name, break_it, text, tmp_path):
    path = random(5, features=None).save(tmp_path/'p.csv')
    break_it(path)
    with pytest.raises(DataError) as e: Predictions.load(path)
    assert text in str(e.value), str(e.value)

def test_other_parquet_files(tmp_path):
    random(5).to_frame().to_parquet(tmp_path/'theirs.parquet')
    with pytest.raises(DataError, match='Take `read_predictions` for tables of others'): Predictions.load(tmp_path/'theirs.parquet')
    whole = random(5).save(tmp_path/'p.parquet').read_bytes()
    (tmp_path/'p.parquet').write_bytes(whole[:-100])
    with pytest.raises(DataError, match="can't be read as a Parquet file"): Predictions.load(tmp_path/'p.parquet')
    for path in ('p.txt', 'p', 'p.csv.gz'):
        with pytest.raises(ValueError, match='must end in .csv or .parquet'): random(5).save(tmp_path/path)
        with pytest.raises(ValueError, match='must end in .csv or .parquet'): Predictions.load(tmp_path/path)
    for ending in formats:
        with pytest.raises(FileNotFoundError, match='there is no file'): Predictions.load(tmp_path/f'none.{ending}')

def test_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    with pytest.raises(ImportError, match=r'imgcls\[parquet\]'): random(5).save(tmp_path/'p.parquet')
    assert not list(tmp_path.iterdir()) and len(Predictions.load(random(5).save(tmp_path/'p.csv'))) == 5


# --- Of other programs ---------------------------------------------------------------------------------------------
def theirs(): return pd.DataFrame({'name': ['b', 'a', 'c'], 'y': ['2', '1', '1'], '1': [0.2, 0.9, 0.6], '2': [0.8, 0.1, 0.4], 'note': ['x', '', 'z']})

def test_a_csv_of_anybody(tmp_path):
    theirs().to_csv(tmp_path/'t.csv', index=False)
    theirs().to_parquet(tmp_path/'t.parquet')
    for source in (theirs(), tmp_path/'t.csv', str(tmp_path/'t.parquet')):
        p = read_predictions(source, file='name', label='y', vocab=['2', '1'], root='r', split='test')
        assert (p.items.tolist(), p.actual.tolist(), p.vocab, p.correct.tolist(), p.root, p.split) == (['b', 'a', 'c'], ['2', '1', '1'], ['2', '1'], [True]*3, Path('r'), 'test')
        q = read_predictions(source, file='name', label='y', probs=['2', '1'])
        assert np.array_equal(q.probs, p.probs) and q.vocab == ['2', '1'] and q.actual.tolist() == p.actual.tolist()
        named = read_predictions(source, file='name', probs=['1', '2'], vocab=['cat', 'dog'])
        assert named.labels.tolist() == ['dog', 'cat', 'cat'] and named.targets is None
    prefixed = theirs().rename(columns={'1': 'score_cat', '2': 'score_dog'})
    assert read_predictions(prefixed, file='name', probs='score_').vocab == ['cat', 'dog']
    assert read_predictions(prefixed, file='name', probs='score_', vocab=['dog', 'cat']).probs[0].tolist() == [np.float32(0.8), np.float32(0.2)]

@pytest.mark.parametrize('mark,decimal,start', [(';', ',', '\ufeff'), (';', '.', ''), ('\t', ',', ''), (',', '.', '\ufeff')])
def test_a_csv_from_excel(mark, decimal, start, tmp_path):
    "In Europe it writes semicolons between the columns, and commas in numbers"
    text = theirs().assign(name=['b;1', 'a', '007']).to_csv(index=False, sep=mark, decimal=decimal, lineterminator='\r\n', float_format=lambda o: f'{o:g}'.replace('.', decimal))
    (tmp_path/'t.csv').write_bytes((start + text.replace('0,9', '9,0E-01')).encode())
    p = read_predictions(tmp_path/'t.csv', file='name', label='y', vocab=['1', '2'])
    assert p.items.tolist() == ['b;1', 'a', '007'] and p.actual.tolist() == ['2', '1', '1'] and np.allclose(p.probs, theirs()[['1', '2']])

def test_names_with_semicolons_are_no_columns(tmp_path):
    p = Predictions([[0.25, 0.75]], ['a;b', 'c;d;e;f;g;h;i'], targets=[0], items=['x;1,5.jpg'])
    back = Predictions.load(p.save(tmp_path/'p.csv'))
    assert back.vocab == p.vocab and np.array_equal(back.probs, p.probs) and back.items.tolist() == ['x;1,5.jpg']
    assert read_predictions(tmp_path/'p.csv').vocab == p.vocab

def test_a_csv_in_another_alphabet(tmp_path):
    (tmp_path/'t.csv').write_bytes('file;p_a;p_b\nKüche.jpg;0,5;0,5\n'.encode('latin-1'))
    with pytest.raises(DataError, match='t.csv\' can\'t be read as a CSV file: it isn\'t a text in UTF-8 .* In Excel, save it as "CSV UTF-8"'): read_predictions(tmp_path/'t.csv')

def test_several_labels_of_anybody():
    frame = pd.DataFrame(dict(file=['a', 'b', 'c'], actual=['cat|dog', '', 'dog'], p_cat=[0.9, 0.1, 0.9], p_dog=[0.9, 0.2, 0.6]))
    p = read_predictions(frame, multi_label=True)
    assert p.targets.tolist() == [[1, 1], [0, 0], [0, 1]] and p.correct.tolist() == [True, True, False]
    tuples = frame.assign(actual=[('cat', 'dog'), (), ('dog',)])
    assert np.array_equal(read_predictions(tuples, multi_label=True).targets, p.targets)
    with pytest.raises(DataError, match='classes that `vocab` lacks: cow'): read_predictions(frame.assign(actual='cow|cat'), multi_label=True)

@pytest.mark.parametrize('kw,text', [(dict(vocab=['1', '2']), "the table has no column 'file'; it has 'name', 'y'"), (dict(file='name'), "no column begins with 'p_': say by `probs` which ones hold probabilities"),
    (dict(file='name', vocab=['1', '2', '3']), "has no column '3'"), (dict(file='name', label='z', vocab=['1', '2']), "has no column 'z'"), (dict(file='name', vocab=['1']), 'must sum to 1'),
    (dict(file='note', label='y', vocab=['1', '3']), "has no column '3'"), (dict(file='name', label='note', vocab=['1', '2']), 'classes that `vocab` lacks: , x, z'),
    (dict(file='name', probs=['1', 'note'], vocab=['a', 'b']), '`probs` must be an array of numbers'), (dict(file='name', probs=['1', '2'], vocab=['a']), '`probs` has 2 columns, but `vocab` has 1'),
    (dict(file='name', probs=[0, 1]), 'has no column 0, 1')])
def test_refused_of_anybody(kw, text):
    with pytest.raises(DataError) as e: read_predictions(theirs(), **kw)
    assert text in str(e.value)

def test_other_refusals_of_anybody(tmp_path):
    theirs().assign(name='b').to_csv(tmp_path/'t.csv', index=False)
    with pytest.raises(DataError, match=r"t.csv' has photos more than once: b\. Rows are told apart"): read_predictions(tmp_path/'t.csv', file='name', vocab=['1', '2'])
    with pytest.raises(DataError, match='`vocab` lacks the classes cow, which have columns of their own'):
        read_predictions(pd.DataFrame(dict(file=['a'], p_cat=[1.], p_cow=[0.])), vocab=['cat'])


# --- By a column ---------------------------------------------------------------------------------------------------
def test_by():
    p, rng = random(40), np.random.default_rng(0)
    table = pd.DataFrame(dict(path=[*p.items, 'more.jpg'], width=[*range(40), 999], label=[('a', 'b') if i % 2 else () for i in range(41)], camera=pd.array([None if i < 3 else 'xyz'[i % 3] for i in range(41)]),
                              good=[i % 4 == 0 for i in range(41)], time=1.7e9 + np.arange(41), gaps=[np.nan if i < 10 else i for i in range(41)], same=7))
    table = table.sample(frac=1, random_state=1)
    place = dict(zip(table['path'], table.index))
    def numbers(o): return sorted(place[f] for f in o.items)
    assert {k: numbers(o) for k, o in p.by(table, 'width').items()} == {'0 to 9': [*range(10)], '10 to 19': [*range(10, 20)], '20 to 29': [*range(20, 30)], '30 to 39': [*range(30, 40)]}
    assert list(p.by(table, 'width', bins=40)) == list(range(40)) and list(p.by(table, 'width', bins=1)) == ['0 to 39']
    assert [len(o) for o in p.by(table, 'time', bins=10).values()] == [4]*10
    assert {k: len(o) for k, o in p.by(table, 'label').items()} == {(): 20, ('a', 'b'): 20} and {k: len(o) for k, o in p.by(table, 'good', bins=1).items()} == {False: 30, True: 10}
    cameras = p.by(table, 'camera')
    assert list(cameras) == ['x', 'y', 'z', None] and numbers(cameras[None]) == [0, 1, 2] and numbers(cameras['x']) == list(range(3, 40, 3))
    assert {k: len(o) for k, o in p.by(table, 'gaps', bins=2).items()} == {'10 to 24': 15, '25 to 39': 15, None: 10} and list(p.by(table, 'same')) == [7]
    for part in cameras.values(): assert np.array_equal(part.probs, p.probs[numbers(part)]) and part.vocab == p.vocab
    shuffled = p[rng.permutation(40)]
    assert {k: numbers(o) for k, o in shuffled.by(table, 'camera').items()} == {k: numbers(o) for k, o in cameras.items()}
    assert p[[]].by(table, 'camera') == {}
    for bad, text in [(table.drop(columns='path'), "no column 'path'"), (table.drop(columns='camera'), "no column 'camera'"), (table[table['width'] > 1], 'the table lacks 2 of the files: d/0.jpg, d/1.jpg'),
                      (pd.concat([table, table[:1]]), 'the table has photos more than once')]:
        with pytest.raises(DataError, match=text): p.by(bad, 'camera')
    with pytest.raises(DataError, match='have no `items`'): Predictions(p.probs, p.vocab).by(table, 'camera')
    with pytest.raises(ValueError, match='`bins` must be at least 1, got 0'): p.by(table, 'width', bins=0)


# --- Several of them -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind', ['one', 'several', 'one_vs_all'])
def test_aligned_by_file_and_class(kind):
    p, rng = varied(kind), np.random.default_rng(3)
    rows, columns = rng.permutation(10), rng.permutation(6)
    targets = p.targets[rows][:, columns] if kind == 'several' else np.argsort(columns)[p.targets[rows]]
    q = Predictions(p.probs[rows][:, columns], np.array(odd_vocab)[columns], targets=targets, items=p.items[rows], root=p.root, logits=p.logits[rows][:, columns], features=p.features[rows],
                    split='test', multi_label=p.multi_label, one_vs_all=p.one_vs_all, losses=p.losses[rows])
    first, second = align_predictions(p, q)
    assert same(first, p) and same(second, p)
    assert same(align_predictions(q, p)[1], q) and len(align_predictions(p)) == 1

def test_a_shuffled_csv_is_aligned(tmp_path):
    p = random(30, features=None)
    pd.read_csv(p.save(tmp_path/'p.csv')).sample(frac=1, random_state=0).to_csv(tmp_path/'q.csv', index=False)
    _, q = align_predictions(p, read_predictions(tmp_path/'q.csv', root='photos'))
    assert q.items.tolist() == p.items.tolist() and np.array_equal(q.probs, p.probs) and np.array_equal(q.targets, p.targets)

def test_align_what_is_common():
    a, b, c = random(10), random(12, seed=1, targets=None)[::-1], random(20, seed=2, targets=None)[5:]
    with pytest.raises(DataError, match=r'predictions\[1\] has other photos than predictions\[0\]: it has 2 more: d/10.jpg, d/11.jpg'): align_predictions(a, b)
    with pytest.raises(DataError, match=r'predictions\[2\] has other photos than predictions\[0\]: it lacks 5: .* and 2 more; it has 10 more: '): align_predictions(a, a, c)
    x, y, z = align_predictions(a, b, c, missing='drop')
    assert [o.items.tolist() for o in (x, y, z)] == [[f'd/{i}.jpg' for i in range(5, 10)]]*3 and np.array_equal(y.probs, b[::-1].probs[5:10]) and x.targets is not None and y.targets is None
    assert [len(o) for o in align_predictions(a, c[10:], missing='drop')] == [0, 0]
    assert [len(o) for o in align_predictions(a[[]], a[[]])] == [0, 0] and len(concat_predictions([a[[]], a[[]]])) == 0

def test_folders_of_others():
    a, b = random(3), random(3, root='elsewhere', seed=1)
    with pytest.raises(DataError, match='has other photos'): align_predictions(a, b)
    assert len(align_predictions(a, random(3, root=Path('photos')/'..'/'photos'))) == 2
    with pytest.raises(DataError, match=r'predictions\[2\] has no `root`, and the others'): align_predictions(a, b, random(3, root=None))
    both = concat_predictions([a, b])
    assert both.root is None and both.items.tolist() == [Path(f'{r}/d/{i}.jpg').absolute().as_posix() for r in ('photos', 'elsewhere') for i in range(3)]

def test_refused_together():
    p = random(4)
    for bad, kind, text in [((), ValueError, 'no predictions were given'), ((p, 'x'), TypeError, r'predictions\[1\] must be a `Predictions`, got str'),
                            ((p, p[[0, 1, 2, 3, 3]]), DataError, r'predictions\[1\] has photos more than once: d/3.jpg'), ((Predictions(p.probs, p.vocab), p), DataError, r'predictions\[0\] has no `items`'),
                            ((p, random(4, 4)), DataError, r'predictions\[1\] has other classes than predictions\[0\]: it has 1 more: c3'),
                            ((p, random(4, multi_label=True, targets=None)), DataError, r'predictions\[1\] has multi_label=True'), ((p, random(4, targets=(p.targets + [1, 0, 0, 0]) % 3)), DataError, 'has other labels than predictions.0. for d/0.jpg')]:
        with pytest.raises(kind, match=text): align_predictions(*bad)
    with pytest.raises(ValueError, match="`missing` must be one of 'error', 'drop'"): align_predictions(p, missing='ignore')
    for bad, kind, text in [([], ValueError, 'no predictions were given'), ([p, p], DataError, 'the whole has photos more than once'), ([p[:2], random(4, targets=None)[2:]], DataError, r'predictions\[1\] has no `targets`, and others have'),
                            ([p, random(4, 4, items=list('abcd'))], DataError, 'has other classes')]:
        with pytest.raises(kind, match=text): concat_predictions(bad)

@pytest.mark.parametrize('kind', ['one', 'several', 'one_vs_all'])
def test_concat(kind):
    p = varied(kind)
    parts = [p[:3], p[3:3], p[3:9], p[9:]]
    assert same(concat_predictions(parts), p) and same(concat_predictions(iter(parts)), p)
    less = varied(kind, logits=None, features=None, split='valid')
    found = concat_predictions([p[:5], less[5:]])
    assert found.logits is None and found.features is None and found.split is None and np.array_equal(found.probs, p.probs) and found.root == p.root


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


def test_sorted_in_a_spreadsheet(tmp_path):
    "Names that a CSV can't hold as they are find their rows again"
    files = ['b\r.jpg', 'a.jpg', 'c.jpg']
    preds = Predictions(np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), ['x', 'y'], items=files)
    preds.save(tmp_path/'p.csv')
    rows = pd.read_csv(tmp_path/'p.csv', dtype=str, keep_default_na=False)
    rows.iloc[::-1].to_csv(tmp_path/'p.csv', index=False)
    found = Predictions.load(tmp_path/'p.csv')
    assert dict(zip(found.items, found.probs[:, 0].tolist())) == dict(zip(preds.items, preds.probs[:, 0].tolist()))


def test_a_json_of_something_else_stays(tmp_path):
    (tmp_path/'run.json').write_text('{"precious": 1}')
    preds = Predictions(np.array([[0.9, 0.1]]), ['x', 'y'])
    with pytest.raises(FileExistsError, match='belongs to something else'): preds.save(tmp_path/'run.csv')
    assert (tmp_path/'run.json').read_text() == '{"precious": 1}' and not (tmp_path/'run.csv').exists()
    for _ in range(2): preds.save(tmp_path/'other.csv')


def test_by_times_and_lists():
    "Times are cut like numbers, whatever their kind; lists are labels as they come from a file"
    p = random(40)
    days, hours = pd.date_range('2024-05-01', periods=40), pd.timedelta_range('1h', periods=40, freq='h')
    table = pd.DataFrame(dict(path=p.items, day=days, zone=days.tz_localize('Europe/Berlin'), hour=pd.Series(hours).where(np.arange(40) > 3), several=[['cat', 'dog'] if i % 4 else ['cat'] for i in range(40)]))
    assert {k: len(o) for k, o in p.by(table, 'day').items()} == {'2024-05-01 to 2024-05-10': 10, '2024-05-11 to 2024-05-20': 10, '2024-05-21 to 2024-05-30': 10, '2024-05-31 to 2024-06-09': 10}
    assert [len(o) for o in p.by(table, 'zone', bins=2).values()] == [20, 20] and [len(o) for o in p.by(table, 'hour').values()] == [9, 9, 9, 9, 4]
    assert p.by(table, 'day', bins=40)[days[0]].items.tolist() == [p.items[0]]
    assert {k: len(o) for k, o in p.by(table, 'several').items()} == {('cat',): 10, ('cat', 'dog'): 30}

def test_by_columns_with_gaps():
    preds = Predictions(np.tile([0.9, 0.1], (9, 1)), ['x', 'y'], items=[f'{i}.jpg' for i in range(9)])
    table = pd.DataFrame(dict(path=preds.items, whole=pd.array([1, 2, 3, 4, 5, 6, 7, 8, None], dtype='Int64'), odd=[1., 2, 3, 4, 5, 6, 7, 8, np.inf]))
    for column in ('whole', 'odd'): assert sum(len(o) for o in preds.by(table, column, bins=2).values()) == 9
