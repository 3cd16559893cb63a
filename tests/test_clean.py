"""Wrong labels: planted ones are found, each photo is judged by a model that didn't know it, and no decision is lost, whoever writes or dies."""
import csv, hashlib, io, multiprocessing, os, random, signal, sys, time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import roc_auc_score

from imgcls.core import DataError, MissingExtraError
from imgcls.data.tables import image_table, set_aside
from imgcls.evaluate.clean import apply_decisions, label_suspects, out_of_fold, plot_suspects, read_decisions, write_decisions
from imgcls.evaluate.review import LabelReview, _typed, review
from imgcls.predictions import Predictions
from imgcls.train.vectors import Features

data, full = os.environ.get('IMGCLS_DATA'), bool(os.environ.get('IMGCLS_FULL'))
root = Path(__file__).resolve().parent.parent
judged = list(csv.DictReader(open(Path(__file__).parent/'wrong_labels.csv', encoding='utf-8')))  # photos of clothing train whose label is wrong, to the eye


# --- Planted in clothing -------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def clothing(record_testsuite_property):
    "Features of the training photos at 128 pixels, by a body that has never seen clothing's labels"
    from imgcls.train.features import extract_features
    start = time.perf_counter()
    res = extract_features('efficientnet_lite0', image_table(Path(data)/'clothing', verify=None), size=128, splits='train', num_workers=0, check=None)
    record_testsuite_property('features of clothing train at 128 px', f'{time.perf_counter() - start:.0f} s')
    return res

def flipped(features, seed, share=0.05):
    "The features with a share of wrong labels, and which rows these are"
    rng, n, classes = np.random.default_rng(seed), len(features), len(features.vocab)
    rows = rng.choice(n, round(share*n), replace=False)
    targets = features.targets.copy()
    targets[rows] = (targets[rows] + rng.integers(1, classes, len(rows))) % classes
    return Features(features.vectors, targets, features.vocab, items=features.items, splits=features.splits, root=features.root), np.isin(np.arange(n), rows)

def cleanlab_alone(preds, k):
    "The first k files by cleanlab's own functions, in its ways of ranking"
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    for how in ('self_confidence', 'normalized_margin'):
        yield preds.items[np.argsort(get_label_quality_scores(preds.targets, preds.probs, method=how), kind='stable')[:k]]
        yield preds.items[find_label_issues(preds.targets, preds.probs, return_indices_ranked_by=how, n_jobs=1)[:k]]

@pytest.mark.skipif(not data, reason='IMGCLS_DATA is not set')
@pytest.mark.parametrize('seed', range(5 if full else 1))
def test_labels_flipped_in_clothing_are_found(clothing, seed, record_testsuite_property):
    features, planted = flipped(clothing, seed)
    k, start = int(planted.sum()), time.perf_counter()
    preds = out_of_fold(features)
    ranked, seconds = label_suspects(preds, k=len(preds)), time.perf_counter() - start
    wrong, true_errors = set(features.items[planted]), {o['path'] for o in judged}
    hits = ranked.file.isin(wrong)
    precision, auroc = hits[:k].mean(), roc_auc_score(hits, -ranked.score)
    alone = [np.mean([o in wrong for o in files]) for files in cleanlab_alone(preds, k)]
    others = ranked.file[:k][~hits[:k]]
    record_testsuite_property(f'labels flipped in clothing, seed {seed}', f'{k} of {len(preds)}; precision at {k} {precision:.3f}, of the other {len(others)} suspects '
                              f'{others.isin(true_errors).sum()} are true errors of the set by eye; AUROC {auroc:.3f}; cleanlab alone {max(alone):.3f}; {seconds:.1f} s')
    assert precision >= 0.6 and auroc >= 0.9 and precision >= max(alone), (precision, auroc, alone)

@pytest.mark.skipif(not data, reason='IMGCLS_DATA is not set')
def test_photos_that_were_judged_are_there():
    table = image_table(Path(data)/'clothing', verify=None).set_index('path')
    assert len(judged) >= 10 and all(table.label[o['path']] == o['label'] != o['judged'] and o['why'] for o in judged)
    assert {o['judged'] for o in judged} <= {*table.label, 'none'}


# --- Out of fold ---------------------------------------------------------------------------------------------------
def numbered(n, classes=3, views=1, **kwargs):
    "Features whose vectors are the number of their photo: photo i of class i modulo `classes`"
    i = np.tile(np.arange(n), views)
    kwargs = dict(items=[f'{o}.jpg' for o in i], splits=['train']*len(i), views=np.repeat(np.arange(views), n)) | kwargs
    return Features(np.c_[i, i % classes].astype('float32'), i % classes, [f'c{o}' for o in range(classes)], **kwargs)

class Spy(ClassifierMixin, BaseEstimator):
    "Writes down which photos it was trained on and asked about"
    seen = []
    def fit(self, x, y):
        self.classes_, self.known = np.unique(y), set(x[:, 0].astype(int).tolist())
        return self
    def predict_proba(self, x):
        Spy.seen.append((self.known, set(x[:, 0].astype(int).tolist()), len(x)))
        return np.eye(len(self.classes_))[x[:, 1].astype(int)]

@pytest.fixture
def spy():
    Spy.seen = []
    return Spy()

@pytest.mark.parametrize('folds', [2, 5])
@pytest.mark.parametrize('views', [1, 3])
def test_each_photo_is_judged_by_a_model_that_did_not_know_it(spy, folds, views):
    features = numbered(30, views=views)
    preds = out_of_fold(features, folds=folds, estimator=spy)
    assert len(Spy.seen) == folds and all(known.isdisjoint(asked) and len(known | asked) == 30 for known, asked, _ in Spy.seen)
    assert preds.items.tolist() == features.items[:30].tolist() and preds.correct.all()  # in order, each with its own probabilities

def test_rows_in_any_order_give_the_same():
    features = numbered(40)
    features.vectors = np.random.default_rng(0).normal(size=(40, 6)).astype('float32')
    shuffled = np.random.default_rng(1).permutation(40)
    there, here = out_of_fold(features), out_of_fold(features[shuffled])
    assert here.items.tolist() == there.items[shuffled].tolist()
    assert np.allclose(here.probs, there.probs[shuffled], atol=1e-3)
    assert np.array_equal(there.probs, out_of_fold(features).probs)
    assert not np.allclose(there.probs, out_of_fold(features, seed=1).probs, atol=1e-3)

def pairs(n): return {f'{i}.jpg': i // 6 for i in range(n)}

@pytest.mark.parametrize('groups', [pairs(36), pd.Series(pairs(36)), [pairs(36)],
                                    [{k: v if i % 2 else None for i, (k, v) in enumerate(pairs(36).items())}, {f'{i}.jpg': i // 2 for i in range(36)}]],
                         ids=['dict', 'series', 'list', 'two that overlap'])
def test_groups_stay_together(spy, groups):
    out_of_fold(numbered(36), groups=groups, estimator=spy, folds=3)
    for known, asked, _ in Spy.seen: assert {i // 6 for i in known}.isdisjoint({i // 6 for i in asked})

def test_files_without_a_group_are_alone(spy):
    out_of_fold(numbered(30), groups={'0.jpg': 'a', '3.jpg': 'a', '6.jpg': float('nan'), 'elsewhere.jpg': 'b'}, estimator=spy)
    assert all((0 in known) == (3 in known) for known, _, _ in Spy.seen)
    assert sorted(o for _, asked, _ in Spy.seen for o in asked) == list(range(30))

def test_what_can_not_be_judged():
    with pytest.raises(DataError, match='only augmented views or none'): out_of_fold(numbered(9)[:0])
    features = numbered(9)
    features.views = features.views + 1
    with pytest.raises(DataError, match='only augmented views or none'): out_of_fold(features)
    with pytest.raises(DataError, match='files are there more than once: 0.jpg'): out_of_fold(numbered(9, items=['0.jpg', '0.jpg', *'2345678']))
    with pytest.raises(DataError, match='`groups` names a file more than once'): out_of_fold(numbered(9), groups=pd.Series([1, 2], index=['0.jpg', '0.jpg']))
    with pytest.raises(DataError, match='among at least two classes, and all 3 photos are labelled `c1`'): out_of_fold(numbered(9)[[1, 4, 7]], folds=2)
    with pytest.raises(DataError, match='class `c2` has only one image'): out_of_fold(numbered(9)[[0, 1, 2, 3, 4, 6, 7]], folds=2)


# --- Suspects ------------------------------------------------------------------------------------------------------
def drawn(n=200, classes=4, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    return Predictions(rng.dirichlet(np.ones(classes)*0.4, n), [f'c{i}' for i in range(classes)], **dict(targets=rng.integers(0, classes, n), items=[f'{i:03}.jpg' for i in range(n)]) | kwargs)

@pytest.mark.parametrize('classes', [2, 4, 100])
def test_margin_is_what_the_formula_says(classes):
    preds = drawn(classes=classes)
    found = label_suspects(preds, method='margin', k=len(preds)).set_index('file')
    for i in range(0, 200, 17):
        o, rest = found.loc[preds.items[i]], np.delete(preds.probs[i], preds.targets[i])
        assert np.isclose(o.score, (preds.probs[i, preds.targets[i]] - rest.max() + 1)/2) and o.found == (not preds.correct[i])
        assert o.suggested != o.label == preds.actual[i] and np.isclose(o.suggested_probability, rest.max())
    assert len(label_suspects(preds, method='margin')) == (~preds.correct).sum()

@pytest.mark.parametrize('absent', [False, True])
def test_cleanlab_is_what_cleanlab_says(absent):
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    preds = drawn()
    if absent: preds = preds[preds.targets != 2]
    found = label_suspects(preds, k=len(preds)).set_index('file').loc[preds.items]
    assert np.array_equal(found.score, get_label_quality_scores(preds.targets, preds.probs))
    assert np.array_equal(found.found, find_label_issues(preds.targets, preds.probs, filter_by='low_self_confidence', n_jobs=1))
    proposed = label_suspects(preds)
    assert proposed.found.all() and proposed.score.max() <= found.score[~found.found].min()

def test_suspects_know_folder_and_classes_and_order_of_equals():
    preds = drawn(root='photos')
    found = label_suspects(preds)
    assert found.attrs == dict(root='photos', vocab=preds.vocab)
    even = Predictions(np.full((4, 2), 0.5), ['a', 'b'], targets=[0, 1, 0, 1], items=['4', '2', '3', '1'])
    assert label_suspects(even, method='margin', k=4).file.tolist() == ['1', '2', '3', '4']

def test_without_cleanlab(monkeypatch):
    for o in [o for o in sys.modules if o.split('.')[0] == 'cleanlab']: monkeypatch.delitem(sys.modules, o)
    monkeypatch.setitem(sys.modules, 'cleanlab', None)
    with pytest.raises(MissingExtraError, match=r'imgcls\[clean\]'): label_suspects(drawn())
    assert len(label_suspects(drawn(), method='margin'))

def test_sheet_of_strange_names(tmp_path):
    Image.new('RGB', (30, 20)).save(tmp_path/'a.png')
    names = ['a.png', '$x$.png', 'x'*200 + '.png', 'tab\t.png', 'gone.png', 'a.png']
    frame = pd.DataFrame(dict(file=names, label=['a$', 'b'*80, '\x00', 'd', 'e', 'f'], suggested='$g', probability=0.1, suggested_probability=0.9))
    fig = plot_suspects(frame, root=tmp_path)
    fig.canvas.draw()
    assert len([o for o in fig.axes if o.get_title()]) == 6 and len(plot_suspects(frame, root=tmp_path, k=1).axes) == 1


# --- Decisions -----------------------------------------------------------------------------------------------------
def frame(*rows): return pd.DataFrame(rows, columns=['file', 'label', 'decision', 'new_label', 'reason'])

def test_any_name_comes_back(tmp_path):
    names = ['plain.png', 'comma, "quote".png', 'line\nfeed.png', 'return\r.png', '帽子.png', ' space .png', 'NA', 'nan', '1.0', "it's.png", '=1+1.png']
    rows = frame(*[(o, o, 'relabel', o + '2', o) for o in names])
    write_decisions(rows, tmp_path/'deep/er/d.csv')
    pd.testing.assert_frame_equal(read_decisions(tmp_path/'deep/er/d.csv'), rows.astype(str), check_dtype=False)

def test_names_of_two_machines_are_one(tmp_path):
    path, decomposed, composed = tmp_path/'d.csv', 'cafe\u0301.png', 'caf\u00e9.png'
    write_decisions(frame((decomposed, 'a', 'keep', '', '')), path)
    write_decisions(frame((composed, 'a', 'remove', '', 'blurred')), path)
    assert read_decisions(path).decision.tolist() == ['remove']
    table = pd.DataFrame(dict(path=[decomposed, 'b.png'], label=['a', 'b']))
    assert apply_decisions(table, path).error.tolist() == ['removed in review: blurred', '']

def test_spreadsheets_may_add_a_mark_and_leave_out_columns(tmp_path):
    (tmp_path/'d.csv').write_bytes('\ufefffile,label,decision\r\n1.png,a,keep\r\n'.encode())
    assert read_decisions(tmp_path/'d.csv').values.tolist() == [['1.png', 'a', 'keep', '', '']]

@pytest.mark.parametrize('mark', [';', '\t'], ids=['semicolons', 'tabs'])
def test_spreadsheets_may_write_other_marks(tmp_path, mark):
    "European Excel puts semicolons between the columns; what is added is written as ever"
    (tmp_path/'d.csv').write_bytes('\ufefffile;label;decision;new_label;reason\r\n"a,b.png";a;relabel;b;"odd; dark"\r\n'.replace(';', mark).encode())
    assert read_decisions(tmp_path/'d.csv').values.tolist() == [['a,b.png', 'a', 'relabel', 'b', f'odd{mark} dark']]
    write_decisions(frame(('2.png', 'a', 'keep', '', '')), tmp_path/'d.csv')
    assert (tmp_path/'d.csv').read_text() == f'file,label,decision,new_label,reason\n"a,b.png",a,relabel,b,odd{mark} dark\n2.png,a,keep,,\n'

@pytest.mark.parametrize('text, why', [('', 'isn\'t a CSV file of decisions'), ('path,label\n', 'has no column decision, file'), ('path;label\n', 'has no column decision, file'),
    ('file,label,decision\n1.png,a,Keep\n', "got 'Keep'"), ('file,label,decision\n,a,keep\n', 'a decision has no file'), ('file,label,decision\n1,a,relabel\n', "goes with 'relabel'"),
    ('file,label,decision,new_label\n1,a,keep,b\n', "goes with 'relabel'"), ('file,label,decision,new_label\n1,a,relabel,a\n', 'has the label \'a\' already'),
    ('file,label,decision\n1,a,keep\n1,a,keep\n', 'more than one decision about 1')], ids=range(9))
def test_broken_files_are_refused_and_kept(tmp_path, text, why):
    path = tmp_path/'d.csv'
    path.write_text(text)
    for action in (lambda: read_decisions(path), lambda: write_decisions(frame(('2.png', 'a', 'keep', '', '')), path)):
        with pytest.raises(DataError, match=why): action()
    assert path.read_text() == text

def write_many(path, name, n):
    for i in range(n): write_decisions(frame((f'{name}{i}.png', 'a', 'keep', '', '')), path)

def test_two_who_write_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context('fork')
    people = [context.Process(target=write_many, args=(tmp_path/'d.csv', o, 25)) for o in 'xyz']
    for o in people: o.start()
    for o in people: o.join()
    assert sorted(read_decisions(tmp_path/'d.csv').file) == sorted(f'{o}{i}.png' for o in 'xyz' for i in range(25))
    assert [o.name for o in tmp_path.iterdir()] == ['d.csv']

def test_a_kill_loses_at_most_the_decision_in_the_making(tmp_path):
    context, path, rng = multiprocessing.get_context('fork'), tmp_path/'d.csv', random.Random(0)
    for i in range(20 if full else 5):
        process = context.Process(target=write_many, args=(path, f'{i}-', 10**6))
        process.start()
        while not path.exists(): time.sleep(0.002)
        time.sleep(rng.uniform(0.01, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        rows = read_decisions(path)
        assert rows.file.tolist() == [f'{k}-{j}.png' for k in range(i + 1) for j in range((rows.file.str.split('-').str[0] == str(k)).sum())]

def test_the_table_is_a_copy_and_no_file_is_touched(tmp_path):
    for label in 'ab':
        (tmp_path/label).mkdir()
        for i in range(3): Image.new('RGB', (8, 8), (i, 0, 0)).save(tmp_path/label/f'{i}.png')
    (tmp_path/'b/bad.png').write_text('no image')
    before = {o: (hashlib.sha256(o.read_bytes()).hexdigest(), o.stat().st_mtime_ns) for o in tmp_path.rglob('*.png')}
    table = image_table(tmp_path, split=None)
    original = table.copy()
    rows = frame(('a/0.png', 'a', 'relabel', 'b', ''), ('a/1.png', 'a', 'remove', '', ''), ('b/bad.png', 'b', 'remove', '', 'late'), ('b/0.png', 'b', 'keep', '', ''), ('c/9.png', 'a', 'keep', '', ''))
    new = apply_decisions(table.iloc[::-1], rows, missing='skip')
    pd.testing.assert_frame_equal(table, original)
    assert new.attrs == table.attrs and new.index.tolist() == table.index[::-1].tolist()
    assert new.set_index('path').label['a/0.png'] == 'b' and (new.label.sort_index() != table.label).sum() == 1
    reasons = set_aside(new).set_index('path').error
    assert reasons['a/1.png'] == 'removed in review' and 'late' not in reasons['b/bad.png'] and len(reasons) == 2
    assert before == {o: (hashlib.sha256(o.read_bytes()).hexdigest(), o.stat().st_mtime_ns) for o in tmp_path.rglob('*.png')}
    with pytest.raises(DataError, match='several'): apply_decisions(pd.DataFrame(dict(path=['1'], label=[('a', 'b')])), rows)


# --- The review, and its screen ------------------------------------------------------------------------------------
@pytest.fixture
def photos(tmp_path):
    "A folder with photos, one of them missing, and suspects of them"
    folder = tmp_path/'photos'
    folder.mkdir()
    exif = Image.Exif()
    exif[271] = 'a camera'
    for i in range(4): Image.new('RGB', (80, 40), (40*i, 90, 200)).save(folder/f'{i}.jpg', exif=exif)
    suspects = pd.DataFrame(dict(file=[f'{i}.jpg' for i in range(5)], label=list('aabbc'), suggested=list('bbaaa'), score=0.1, probability=0.1, suggested_probability=0.8, found=True))
    suspects.attrs.update(root=str(folder), vocab=list('abc'))
    return suspects

def test_review_goes_through_and_round(photos, tmp_path):
    path = tmp_path/'d.csv'
    write_decisions(frame(('1.jpg', 'a', 'keep', '', '')), path)
    session = LabelReview(photos, path)
    assert (session.done, session.position) == (1, 0)
    session.press('n'); session.press('n')
    for key in '2x3':                                                # 2.jpg is b already; 3.jpg goes; 4.jpg is c already
        assert session.press(key)
    assert session.position == 0 and session.done == 4               # round the end, to the one that was passed over
    session.press('R')
    assert session.done == 5 and session.position == 0 and session.current.new_label == 'b'
    assert read_decisions(path).set_index('file').decision.to_dict() == {'1.jpg': 'keep', '2.jpg': 'keep', '3.jpg': 'remove', '4.jpg': 'keep', '0.jpg': 'relabel'}
    assert not any(session.press(o) for o in ('4', '0', '9', '', ' ', 'kr', 'é', '\n'))

def test_undo_takes_back_the_last_in_the_file(photos, tmp_path):
    path = tmp_path/'d.csv'
    write_decisions(frame(('elsewhere.jpg', 'a', 'keep', '', '')), path)
    session = LabelReview(photos, path)
    assert not session.press('u') and not session.undo()             # nothing of these suspects
    for key in 'kxb': session.press(key)
    session.press('r')                                               # 1.jpg anew
    assert [o.split(',')[0] for o in path.read_text().splitlines()[1:]] == ['elsewhere.jpg', '0.jpg', '1.jpg']
    assert session.press('U') and (session.done, session.position, session.current.decision) == (1, 1, '')
    del session
    session = LabelReview(photos, path)                              # after a restart, too
    assert session.position == 1 and session.press('u') and (session.done, session.position) == (0, 0) and not session.press('u')
    assert read_decisions(path).file.tolist() == ['elsewhere.jpg']

def test_last_lines_of_others_stay(photos, tmp_path):
    "Somebody else decides upon the same suspects meanwhile; undo goes by the file as it is now"
    session = LabelReview(photos, tmp_path/'d.csv')
    session.press('k')
    write_decisions(frame(('3.jpg', 'b', 'remove', '', ''), ('other.jpg', 'b', 'keep', '', '')), tmp_path/'d.csv')
    assert session.press('u') and session.position == 3 and read_decisions(tmp_path/'d.csv').file.tolist() == ['0.jpg', 'other.jpg']

@pytest.mark.parametrize('old,new,typed', [('', 'k', 'k'), ('k', 'kr', 'r'), ('kr', 'krxn', 'xn'), ('kr', 'k', ''), ('kr', '', ''), ('krx', 'nkrx', 'n'), ('krx', 'knrx', 'n'),
    ('kk', 'kkk', 'k'), ('kkr', 'n', 'n'), ('krx', 'krn', 'n'), ('krk', 'k', ''), ('rk', 'rkrk', 'rk'), ('k', 'k ', '')])
def test_what_was_typed(old, new, typed): assert _typed(old, new) == typed

def test_photo_carries_nothing_beside_the_picture(photos, tmp_path):
    session = LabelReview(photos, tmp_path/'d.csv')
    assert b'camera' in (Path(photos.attrs['root'])/'0.jpg').read_bytes()
    assert b'camera' not in session.photo() and not Image.open(io.BytesIO(session.photo())).getexif()
    session.position = 4
    assert session.photo() == b''

def test_screen_escapes_and_reports(photos, tmp_path):
    pytest.importorskip('ipywidgets')
    photos.loc[0, 'label'] = '<script>'
    screen = review(photos, tmp_path/'d.csv')
    assert '<script>' not in screen.parts['text'].value and '&lt;script&gt;' in screen.parts['text'].value
    for _ in range(4): screen.parts['n'].click()
    assert screen.parts['photo'].layout.display == 'none' and 'can’t be read' in screen.parts['text'].value
    (tmp_path/'d.csv').write_text('broken')
    screen.parts['k'].click()
    assert 'has no column' in screen.parts['text'].value and screen.session.position == 4
    (tmp_path/'d.csv').unlink()
    screen.parts['keys'].value = 'K'
    assert screen.session.done == 1 and screen.session.position == 0

def test_screen_takes_a_class_and_gives_the_cursor_back(photos, tmp_path, monkeypatch):
    "Enter comes before what was typed; a mere look elsewhere decides nothing; after a button, keys go to the field"
    widgets = pytest.importorskip('ipywidgets')
    focused = []
    monkeypatch.setattr(widgets.Text, 'focus', lambda o: focused.append(o.description))
    screen = review(photos, tmp_path/'d.csv')
    chosen = screen.parts['class']
    chosen.value = 'c'                                               # typed, and the cursor put elsewhere
    assert screen.session.done == 0 and not focused
    screen.parts['take'].click()
    assert read_decisions(tmp_path/'d.csv').new_label.tolist() == ['c'] and chosen.value == '' and focused == ['keys']
    chosen._handle_custom_msg(dict(event='submit'), [])
    chosen.value = 'cc'
    assert 'there is no class cc. Did you mean c?' in screen.parts['text'].value and screen.session.done == 1
    screen.parts['take'].click()
    assert 'choose a class first' in screen.parts['text'].value
    chosen._handle_custom_msg(dict(event='submit'), [])
    chosen.value = 'b'
    assert read_decisions(tmp_path/'d.csv').new_label.tolist() == ['c', 'b'] and chosen.value == ''
    screen.parts['u'].click()
    assert screen.session.done == 1 and len(focused) == 5 and isinstance(chosen, widgets.Text)  # in a list, letters would be JupyterLab's

def test_without_ipywidgets(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    with pytest.raises(MissingExtraError, match=r'imgcls\[notebooks\]'): review(photos, tmp_path/'d.csv')
    assert LabelReview(photos, tmp_path/'d.csv').press('k')

class Kernel:
    "A real Jupyter kernel, and what a browser sends to it"
    def __init__(self, folder):
        from jupyter_client.manager import start_new_kernel
        self.manager, self.client = start_new_kernel(kernel_name='python3', cwd=str(folder), env={**os.environ, 'PYTHONPATH': str(root)})
    def run(self, code):
        "What the code printed"
        texts = []
        reply = self.client.execute_interactive(code, timeout=60, output_hook=lambda m: texts.append(m['content'].get('text', '')))
        assert reply['content']['status'] == 'ok', reply['content']
        return ''.join(texts).split()
    def send(self, model, **content):
        message = self.client.session.msg('comm_msg', dict(comm_id=model, data=dict(content, buffer_paths=[])))
        self.client.shell_channel.send(message)
    def kill(self):
        os.kill(self.manager.provisioner.process.pid, signal.SIGKILL)
        self.client.stop_channels()
        self.manager.cleanup_resources()

def test_screen_in_a_kernel_that_dies(photos, tmp_path):
    pytest.importorskip('ipywidgets'), pytest.importorskip('jupyter_client'), pytest.importorskip('ipykernel')
    photos.to_csv(tmp_path/'suspects.csv', index=False)
    code = f'''import pandas as pd
from imgcls.evaluate.review import review
screen = review(pd.read_csv('suspects.csv'), 'd.csv', root={photos.attrs['root']!r})
print(screen.session.position, screen.parts['keys'].model_id, screen.parts['x'].model_id)'''
    kernel = Kernel(tmp_path)
    try:
        position, keys, x = kernel.run(code)
        for text in ('k', 'kr'): kernel.send(keys, method='update', state=dict(value=text))   # typed
        kernel.send(x, method='custom', content=dict(event='click'))
        assert (position, *kernel.run('print(screen.session.position)')) == ('0', '3')
    finally: kernel.kill()
    assert read_decisions(tmp_path/'d.csv').values.tolist() == [['0.jpg', 'a', 'keep', '', ''], ['1.jpg', 'a', 'relabel', 'b', ''], ['2.jpg', 'b', 'remove', '', '']]
    kernel = Kernel(tmp_path)
    try: assert kernel.run(code)[0] == '3'
    finally: kernel.kill()


def test_labels_nobody_decided_on_stay():
    "Rows of the same name are refused where they are decided upon, and keep their own labels otherwise; an error that is unknown is none"
    table = pd.DataFrame(dict(path=['x.jpg', 'x.jpg', 'y.jpg', 'z.jpg'], label=['a', 'b', 'b', 'a'], error=[None, '', float('nan'), 'cut off']))
    decided = pd.DataFrame(dict(file=['y.jpg', 'z.jpg'], label=['b', 'a'], decision=['remove', 'remove']))
    found = apply_decisions(table, decided)
    assert found['label'].tolist() == ['a', 'b', 'b', 'a'] and found['error'].tolist() == ['', '', 'removed in review', 'cut off']
    with pytest.raises(DataError, match='more than one row of x.jpg'): apply_decisions(table, decided.assign(file=['x.jpg', 'z.jpg'], label='a'))
