"""Labels as words, positions and zeros and ones: there and back, equal to scikit-learn, and what can't be."""
import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.preprocessing import LabelBinarizer, LabelEncoder, MultiLabelBinarizer
from imgcls.core import DataError
from imgcls.data.labels import (check_columns, class_vocab, find_labels, from_indices, from_one_hot, is_multi_label, join_labels, merge_classes,
    split_labels, to_indices, to_one_hot, usable_rows)

quick = settings(max_examples=400 if os.environ.get('IMGCLS_FULL') == '1' else 60, derandomize=True, deadline=None)
names = st.text(st.characters(exclude_characters='\0', exclude_categories=('Cs',)), min_size=1, max_size=6)  # numpy, inside scikit-learn, drops \0 at the end
single = st.lists(names, min_size=1, max_size=30)
several = st.lists(st.lists(names, max_size=4).map(lambda o: tuple(sorted(set(o)))), min_size=1, max_size=30)


@quick
@given(single)
def test_single_there_and_back(labels):
    vocab = class_vocab(labels)
    assert vocab == sorted(set(labels)) and not is_multi_label(labels)
    assert from_indices(to_indices(labels, vocab), vocab) == labels == from_one_hot(to_one_hot(labels, vocab), vocab)
    assert to_indices(labels, vocab).tolist() == LabelEncoder().fit_transform(np.array(labels, dtype=object)).tolist()
    assert to_one_hot(labels, vocab).argmax(1).tolist() == to_indices(labels, vocab).tolist()
    if len(vocab) > 2: assert (to_one_hot(labels, vocab) == LabelBinarizer().fit_transform(np.array(labels, dtype=object))).all()

@quick
@given(several)
def test_several_there_and_back(labels):
    vocab = class_vocab(labels)
    matrix = to_one_hot(labels, vocab)
    assert is_multi_label(labels) and matrix.shape == (len(labels), len(vocab)) and matrix.dtype == np.uint8
    assert from_one_hot(matrix, vocab, multi_label=True) == labels
    assert (matrix == MultiLabelBinarizer(classes=vocab).fit_transform(labels)).all()

@quick
@given(st.lists(st.lists(st.text('abc \u00e9', min_size=1).map(str.strip).filter(bool)).map(lambda o: tuple(sorted(set(o))))), st.sampled_from(['|', ',', ', ', '::', '\t']))
def test_joined_and_split(labels, separator):
    assert split_labels(join_labels(labels, separator), separator) == labels

def test_any_order_of_the_vocabulary():
    assert to_indices(['a', 'b'], ['b', 'a']).tolist() == [1, 0] and to_one_hot([('a', 'b')], ['c', 'b', 'a']).tolist() == [[0, 1, 1]]
    assert from_one_hot([[0, 1, 1]], ['c', 'b', 'a'], multi_label=True) == [('a', 'b')]

def test_what_holds_labels():
    for make in (list, tuple, pd.Series, iter, lambda o: np.array(o, dtype=object), lambda o: (x for x in o)):
        assert to_indices(make(['b', 'a']), make(['a', 'b'])).tolist() == [1, 0] and class_vocab(make(['b', 'a', ''])) == ['a', 'b']
    assert to_indices(['b'], np.array(['a', 'b'])).tolist() == [1] and class_vocab(np.array(['b', 'a'])) == ['a', 'b']
    assert to_indices([], ['a']).shape == (0,) and to_one_hot([], ['a', 'b']).shape == (0, 2) and from_indices([], ['a']) == [] and class_vocab([]) == []
    assert not is_multi_label([]) and is_multi_label([()]) and class_vocab([()]) == [] and to_one_hot([(), ()], []).shape == (2, 0)

@pytest.mark.parametrize('labels,text', [([1, 2], r'got 1 \(int\)'), (['a', float('nan')], r'got nan \(float\)'), ([['a']], r'\(list\)'),
    ([None], r'NoneType'), ([('a',), 'b'], "such as 'b' and \\('a',\\)"), ([(1, 2)], r'got 1 \(int\)')])
def test_labels_of_another_kind(labels, text):
    with pytest.raises(DataError, match=text): is_multi_label(labels)

@pytest.mark.parametrize('call,text', [
    (lambda: to_indices(['x'], ['a']), "lacks 'x'; it has 'a'"), (lambda: to_indices(['a', ''], ['a']), 'without a label'),
    (lambda: to_one_hot([('x', 'y', 'z', 'q')], ['a']), "lacks 'q', 'x', 'y' and 1 more"), (lambda: to_indices([('a',)], ['a']), 'to_one_hot'),
    (lambda: to_indices(['a'], ['a', 'a']), 'a is there more often'), (lambda: from_indices([2], ['a', 'b']), 'from 0 to 1.*got 2'),
    (lambda: from_indices([-1], ['a']), 'got -1'), (lambda: from_indices([[0]], ['a']), r'shape \(1, 1\)'), (lambda: from_indices([.5], ['a']), 'float64'),
    (lambda: from_one_hot([[1, 1]], ['a', 'b']), 'row 0 has 2'), (lambda: from_one_hot([1, 0], ['a', 'b']), r'shape \(2,\)'),
    (lambda: from_one_hot([[.5, .5]], ['a', 'b']), '0 and 1 alone'), (lambda: join_labels(['a']), 'got the text'), (lambda: join_labels([(' a',)]), "' a' would not"),
    (lambda: join_labels([('',)]), "'' would not"), (lambda: merge_classes(pd.DataFrame(dict(label=['a'])), {'b': 'c'}), "no class 'b'"),
    (lambda: merge_classes(pd.DataFrame(dict(label=['a'])), {'a': ''}), 'must be text'), (lambda: merge_classes(pd.DataFrame(), {}), "no column 'label'")])
def test_errors(call, text):
    with pytest.raises(DataError, match=text): call()


def test_merge_classes():
    table = pd.DataFrame(dict(path=list('abcd'), label=['x', 'y', 'z', ''], error=['', '', '', 'no label']))
    table.attrs['root'] = 'here'
    before = table.copy()
    merged = merge_classes(table, {'x': 'y', 'z': None})
    assert merged.label.tolist() == ['y', 'y', 'z', ''] and merged.error.tolist() == ['', '', 'left out: the class z', 'no label']
    assert merged.attrs == {'root': 'here'} and merged.label.dtype == table.label.dtype
    pd.testing.assert_frame_equal(table, before)
    pd.testing.assert_frame_equal(merge_classes(table, {}), table)
    assert merge_classes(table.drop(columns='error'), {'x': None}).error.tolist() == ['left out: the class x', '', '', '']
    assert len(usable_rows(merged)) == 2 and len(usable_rows(merged.drop(columns='error'))) == 4
    assert merge_classes(table.set_index(pd.Index(list('aabb'))), {'z': None}).error.tolist() == ['', '', 'left out: the class z', 'no label']

def test_merge_classes_of_several_labels():
    table = pd.DataFrame(dict(label=[('a', 'b'), ('b', 'c'), (), ('c',)]))
    assert merge_classes(table, {'a': 'c', 'b': None}).label.tolist() == [('c',), ('c',), (), ('c',)]
    assert merge_classes(table, {'a': 'z'}).label.tolist() == [('b', 'z'), ('b', 'c'), (), ('c',)]
    assert 'error' not in merge_classes(table, {'c': None}) and merge_classes(table, {'c': None}).label.tolist()[3] == ()

def test_find_labels(tmp_path):
    assert find_labels(['x/a_1.jpg', 'x/b.jpg'], r'(.)_') == ['a', None] and find_labels(['x/y/1.jpg', '2.jpg']) == ['x', None]
    assert find_labels(['x/1.jpg'], lambda o: o, root=tmp_path) == [tmp_path/'x/1.jpg']
    for how, kind, text in (('(', ValueError, 'is none'), ('a', ValueError, 'has 0'), (3, TypeError, 'got int')):
        with pytest.raises(kind, match=text): find_labels(['a'], how)
    with pytest.raises(ValueError, match='`group` must be'): find_labels(['a'], 'a', name='group')

def test_check_columns():
    with pytest.raises(DataError, match="no column 'a', 'b'; it has 'c'. Make it with"): check_columns(pd.DataFrame(dict(c=[1])), 'a', 'b', 'c')
