"""Splits and folds: nothing lost, nothing twice, groups kept, shares kept, the same whatever the order; and what can't be split."""
import os, subprocess, sys
from itertools import product
from unicodedata import normalize

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from imgcls.core import DataError
from imgcls.data.labels import is_multi_label
from imgcls.data.splits import fold_table, folder_splits, read_split, split_name, split_table, use_fold, write_split

quick = settings(max_examples=400 if os.environ.get('IMGCLS_FULL') == '1' else 60, derandomize=True, deadline=None)


def frame(n_by_class, **kwargs):
    return pd.DataFrame([dict(path=f'{c}/{i:05d}.jpg', label=c, **kwargs) for c, n in n_by_class.items() for i in range(n)])

def classes_of(table):
    "Each class with the rows that have it"
    labels = table['label'].explode().dropna()
    return {c: labels.index[labels == c] for c in labels.unique()}

@st.composite
def tables(draw, several=False):
    "Tables of up to 60 images with labels, persons, errors and names of files of any kind"
    n = draw(st.integers(1, 60))
    name = st.sampled_from('abcdef'[:draw(st.integers(1, 6))])
    label = st.sets(name, max_size=4).map(lambda o: tuple(sorted(o))) if several else name
    paths = draw(st.lists(st.text(st.characters(exclude_characters='\0', exclude_categories=('Cs',)), min_size=1, max_size=8), min_size=n, max_size=n,
                          unique_by=lambda o: normalize('NFC', o)))
    table = pd.DataFrame(dict(path=paths, label=pd.Series(draw(st.lists(label, min_size=n, max_size=n)), dtype=object),
                              person=draw(st.lists(st.sampled_from([*'stuvwxyz'[:draw(st.integers(1, 8))], 3, 'é']), min_size=n, max_size=n))))
    table['error'] = draw(st.lists(st.sampled_from(['', '', '', '', 'empty']), min_size=n, max_size=n))
    return table

shares = st.sampled_from([(.2, 0), (.1, .1), (.25, .25), (0, 0), (0, .3), (.5, 0), (.9, 0), (.01, .01), (1/3, 1/3)])
seeds = st.integers(0, 10**6)

def check_split(table, valid, test):
    "What every split keeps; the usable rows"
    assert set(table.split) <= {'train', *['valid']*(valid > 0), *['test']*(test > 0)} and (table.split[table.error != ''] == 'train').all()
    usable = table[table.error == '']
    assert classes_of(usable).keys() == classes_of(usable[usable.split == 'train']).keys()  # every class in train
    return usable

def same_in_any_order(make, table, column, data):
    order = data.draw(st.permutations(range(len(table))))
    assert make(table.iloc[order])[column].sort_index().tolist() == make(table)[column].tolist()
    again = make(table.set_index(pd.Index(['x']*len(table))))  # an index that repeats
    assert again[column].tolist() == make(table)[column].tolist()


@quick
@given(tables(), shares, seeds, st.data())
def test_by_class(table, share, seed, data):
    def make(o): return split_table(o, valid=share[0], test=share[1], seed=seed)
    split = make(table)
    assert split.drop(columns='split').equals(table)
    usable = check_split(split, *share)
    for rows in classes_of(usable).values():
        got = usable.split[rows].value_counts()
        for name, part in zip(('valid', 'test'), share): assert abs(got.get(name, 0) - len(rows)*part) <= 1
        if share[0] and len(rows) > 1: assert got.get('valid', 0) >= 1
    same_in_any_order(make, table, 'split', data)

@quick
@given(tables(), shares, seeds, st.data())
def test_at_random(table, share, seed, data):
    def make(o): return split_table(o, valid=share[0], test=share[1], stratify=False, seed=seed)
    usable = check_split(make(table), *share)
    free = len(usable) - len(classes_of(usable))
    for name, part in zip(('valid', 'test'), share):
        n = (usable.split == name).sum()
        assert n <= len(usable)*part + 1 and (n >= len(usable)*part - 1 or (usable.split != 'train').sum() == free)
    same_in_any_order(make, table, 'split', data)

@quick
@given(tables(several=True), shares, seeds, st.booleans(), st.data())
def test_several_labels(table, share, seed, stratify, data):
    def make(o): return split_table(o, valid=share[0], test=share[1], stratify=stratify, seed=seed)
    try: split = make(table)
    except DataError as e:
        assert 'nothing is left for' in str(e)
        return
    usable = check_split(split, *share)
    for rows in classes_of(usable).values():
        if stratify and share[0] and len(rows) == len(usable) > 1: assert (usable.split[rows] == 'valid').any()
    same_in_any_order(make, table, 'split', data)

@quick
@given(st.booleans().flatmap(lambda o: tables(several=o)), shares, seeds, st.booleans(), st.data())
def test_by_group(table, share, seed, stratify, data):
    def make(o): return split_table(o, valid=share[0], test=share[1], group='person', stratify=stratify, seed=seed)
    usable, names = table[table.error == ''], [o for o, s in zip(('valid', 'test'), share) if s]
    try: split = make(table)
    except DataError as e:
        assert 'nothing is left for' in str(e)
        where = usable.explode('label').dropna().groupby('label').person.nunique()
        if len(names) == 1: assert (where == 1).any() or usable.person.nunique() == 1
        return
    usable = check_split(split, *share)
    assert usable.empty or usable.groupby(usable.person.astype(str)).split.nunique().max() == 1
    if len(usable): assert set(names) <= set(usable.split)
    same_in_any_order(make, table, 'split', data)

@quick
@given(st.booleans().flatmap(lambda o: tables(several=o)), st.integers(2, 6), seeds, st.sampled_from([None, 'person']), st.booleans(), st.data())
def test_folds(table, folds, seed, group, stratify, data):
    def make(o): return fold_table(o, folds=folds, group=group, stratify=stratify, seed=seed)
    usable = table[table.error == '']
    units = usable.person.astype(str) if group else pd.Series(usable.index, usable.index)
    try: folded = make(table)
    except DataError as e:
        assert 'too few' in str(e) if units.nunique() < folds else 'in one fold only' in str(e)
        if stratify and not group and not is_multi_label(usable.label): assert units.nunique() < folds or min(map(len, classes_of(usable).values())) == 1
        return
    assert folded.drop(columns='fold').equals(table) and (folded.fold[table.error != ''] == -1).all()
    usable = folded[folded.error == '']
    assert set(usable.fold) == set(range(folds))
    if group: assert usable.groupby(units).fold.nunique().max() == 1
    elif not is_multi_label(usable.label):
        sizes = [usable.fold.value_counts()]
        if stratify: sizes += [usable.fold[o].value_counts().reindex(range(folds), fill_value=0) for o in classes_of(usable).values()]
        assert all(o.max() - o.min() <= 1 for o in sizes)
    for k in range(folds):
        split = use_fold(folded, k)
        assert (split.split == np.where(folded.fold == k, 'valid', 'train')).all()
        check_split(split, 1, 0)
    same_in_any_order(make, table, 'fold', data)

@quick
@given(tables(), seeds)
def test_written_and_read(tmp_path_factory, table, seed):
    path = tmp_path_factory.mktemp('split')/'split.csv'
    split = split_table(table, seed=seed)
    write_split(split, path)
    back = read_split(table.iloc[::-1], path)
    assert back.split.sort_index().tolist() == split.split.tolist()


# what hypothesis can't know
@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('valid,test', [(.2, 0), (.1, .1), (.25, .25), (0, 0), (0, .3), (.5, 0), (.9, 0), (.5, .49), (.01, .01)])
def test_split_table(valid, test, seed):
    sizes = dict(a=1, b=2, c=3, d=4, e=7, f=10, g=33, h=100, i=1234)
    table = split_table(frame(sizes), valid=valid, test=test, seed=seed)
    for c, n in sizes.items():
        got = table.split[table.label == c].value_counts()
        assert got.get('train', 0) >= 1 and got.sum() == n
        for name, share in (('valid', valid), ('test', test)):
            assert abs(got.get(name, 0) - n*share) <= 1, (c, name)
            if not share: assert name not in got
        if n > 1 and valid: assert got.get('valid', 0) >= 1
        if n > 2 and test and n*(1-valid) > 2: assert got.get('test', 0) >= 1

def test_the_split_depends_on_the_paths_alone():
    table = frame(dict(a=50, b=70)); table.attrs['root'] = 'x'
    split = split_table(table, valid=.3, test=.1, seed=7)
    assert split.attrs == table.attrs and 'split' not in table
    for i in range(5): pd.testing.assert_frame_equal(split_table(table.sample(frac=1, random_state=i), valid=.3, test=.1,
            seed=7).sort_index(), split)
    assert (split_table(table, valid=.3, test=.1, seed=8).split != split.split).any()
    repeats = table.set_index(pd.Index(['x']*120))  # in the index
    assert split_table(repeats, valid=.3, test=.1, seed=7).split.tolist() == split.split.tolist()
    assert ''.join(split_table(frame(dict(a=20)), valid=.25).split.str[0]) == EXPECTED  # on every machine and with every version

EXPECTED = 'tvtttttvtttvtttttvvt'

def test_new_photos_leave_the_old_ones_where_they_are():
    table = frame(dict(a=1000, b=500))
    before = split_table(table[table.index % 10 != 0], valid=.2).split
    assert (split_table(table, valid=.2).split[before.index] != before).mean() < .02

def test_unusable_rows_count_nowhere():
    table = frame(dict(a=20, b=20), error='')
    spoilt = pd.concat([table, frame(dict(a=30, b=30)).assign(path=lambda o: 'x' + o.path, error='empty')], ignore_index=True)
    assert split_table(spoilt).split[:40].tolist() == split_table(table).split.tolist() and (split_table(spoilt).split[40:] == 'train').all()

@pytest.mark.parametrize('valid,test', [(1, 0), (-.1, 0), (.5, .5), (.2, 1.5), (float('nan'), 0)])
def test_senseless_shares(valid, test):
    with pytest.raises(ValueError, match='shares from 0 to 1'): split_table(frame(dict(a=5)), valid=valid, test=test)

def test_groups_as_near_as_possible():
    "With few groups all ways are tried; no way is better than the one taken"
    rng = np.random.default_rng(0)
    def harm(a, n, v): return (a - v*n)**2/(v*n)
    def chi(table, valid):
        totals = table.label.value_counts()
        got = table[valid].label.value_counts().reindex(totals.index, fill_value=0)
        absent = (got == 0).sum() + 100*(got == totals).sum()
        return absent, sum(harm(got, totals, .25) + harm(totals-got, totals, .75)) + harm(got.sum(), len(table), .25) + harm(len(table)-got.sum(), len(table), .75)
    for seed in range(4):
        table = pd.DataFrame([dict(path=f'{g}/{i}', label=f'c{rng.integers(3)}', g=f'g{g}') for g in range(8) for i in range(rng.integers(1, 12))])
        least = min(chi(table, table.g.isin([f'g{i}' for i in range(8) if o[i]])) for o in product((0, 1), repeat=8) if any(o))
        got = chi(table, split_table(table, valid=.25, group='g', seed=seed).split == 'valid')
        assert got[0] == least[0] and got[1] == pytest.approx(least[1], rel=1e-6)

@pytest.mark.parametrize('n_groups,within', [(50, .03), (300, .01), (3000, .002)])
def test_groups_keep_the_shares(n_groups, within):
    rng = np.random.default_rng(1)
    table = pd.DataFrame([dict(path=f'{g}/{i}', label=f'c{c}', person=g) for g in range(n_groups) for i, c in enumerate(rng.choice(5, rng.integers(1, 20), p=rng.dirichlet([.5]*5)))])
    split = pd.crosstab(table.label, split_table(table, valid=.2, test=.1, group='person').split, normalize='index')
    assert (split[['train', 'valid', 'test']] - [.7, .2, .1]).abs().max(axis=None) < within
    folds = pd.crosstab(table.label, fold_table(table, folds=5, group='person').fold, normalize='index')
    assert (folds - .2).abs().max(axis=None) < within
    sides = [split_table(table, group='person', seed=o).split.tolist() for o in range(3)]
    assert sides[0] != sides[1] != sides[2]

def test_several_labels_keep_the_shares():
    rng = np.random.default_rng(2)
    hits = rng.random((3000, 12)) < np.geomspace(.5, .004, 12)
    table = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(3000)], label=[tuple(f'{c:02d}' for c in o.nonzero()[0]) for o in hits]))
    split = split_table(table, valid=.2, test=.1).explode('label')
    counts = pd.crosstab(split.label, split.split)[['train', 'valid', 'test']]
    assert (counts - counts.sum(axis=1).to_numpy()[:, None]*[.7, .2, .1]).abs().max(axis=None) <= 1.5

def test_a_class_of_one_group(caplog):
    table = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(12)], label=['a', 'b']*5 + ['c', 'c'], g=[*'vvwwxxyyzzuu']))
    split = split_table(table, valid=.4, group='g')
    assert set(split.split[split.label == 'c']) == {'train'} and 'all images of class `c` belong to one group, `u`' in caplog.text
    with pytest.raises(DataError, match='in one fold only.*: c; all images of class `c` belong to one group, `u`.*merge_classes'): fold_table(table, folds=2, group='g')
    with pytest.raises(DataError, match='nothing is left for valid: of 3 groups.* class `a` belong to one group, `1`, .*class `b`'):
        split_table(frame(dict(a=3, b=4, c=2)).assign(g=lambda o: o.label.map(dict(a='1', b='2', c='3'))), group='g')
    with pytest.raises(DataError, match='nothing is left for test: of 2 groups'): split_table(frame(dict(a=4)).assign(g=[*'xxyy']), group='g', test=.2)
    with pytest.raises(DataError, match='2 groups are too few for folds=5'): fold_table(frame(dict(a=4)).assign(g=[*'xxyy']), group='g')

def test_the_same_split_in_every_process():
    "Whatever the seed of Python's own hash, and whatever the order of sets in memory"
    code = '''import pandas as pd, hashlib
from imgcls.data.splits import fold_table, split_table
t = pd.DataFrame([dict(path=f'{g}/{i}', label=tuple(sorted({f'c{(g*i) % 7}', f'c{(g+i) % 5}'})), g=f'g{g}') for g in range(40) for i in range(g % 9 + 1)])
print(hashlib.md5(''.join([*split_table(t, test=.1).split, *split_table(t, group='g').split, *map(str, fold_table(t, group='g').fold)]).encode()).hexdigest())'''
    got = {subprocess.run([sys.executable, '-c', code], env={**os.environ, 'PYTHONHASHSEED': str(o)}, capture_output=True, text=True, check=True).stdout for o in (0, 1, 2)}
    assert len(got) == 1

def test_groups_of_any_type():
    table = frame(dict(a=12, b=12))
    for values in ([1, 2, 3, 4]*6, [1., 2., 3., 4.]*6, pd.Categorical([*'xyzw']*6), [True, False]*12):
        split = split_table(table.assign(g=values), group='g', valid=.3)
        assert split.groupby('g', observed=True).split.nunique().max() == 1
    for missing in (None, float('nan'), '', ' ', pd.NA):
        with pytest.raises(DataError, match='1 images have no group in the column `g`: a/00003.jpg'): split_table(table.assign(g=[*'xyz', missing, *'xyzw'*5]), group='g')
        spoilt = table.assign(g=[*'xyz', missing, *'xyzw'*5], error=['', '', '', 'empty']+['']*20)
        assert split_table(spoilt, group='g').split[3] == 'train'

def test_folds_leave_the_test_alone():
    table = split_table(frame(dict(a=20, b=20)), valid=.2, test=.25)
    folded = fold_table(table, folds=5)
    assert (folded.fold[table.split == 'test'] == -1).all() and folded.fold.value_counts().to_dict() == {-1: 10, 0: 6, 1: 6, 2: 6, 3: 6, 4: 6}
    for k in range(5): assert ((use_fold(folded, k).split == 'test') == (table.split == 'test')).all()
    with pytest.raises(ValueError, match='folds 0, 1, 2, 3, 4, got 5'): use_fold(folded, 5)
    with pytest.raises(ValueError, match='got -1'): use_fold(folded, -1)
    for folds in (1, 0, 2.5, '3'):
        with pytest.raises(ValueError, match='whole number from 2'): fold_table(table, folds=folds)

def test_an_empty_table():
    table = frame(dict(a=3)).iloc[:0].assign(g='')
    assert split_table(table).split.tolist() == split_table(table, group='g').split.tolist() == split_table(table, stratify=False).split.tolist() == []

def test_no_side_asked_for():
    table = frame(dict(a=4, b=4)).assign(g=[*'xyzw']*2)
    assert set(split_table(table, valid=0, group='g').split) == {'train'}

def test_split_of_many_is_quick():
    import time
    table = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(100_000)], label=[f'c{i % 50}' for i in range(100_000)], g=[i//8 for i in range(100_000)]))
    start = time.perf_counter()
    split_table(table), split_table(table, group='g'), fold_table(table)
    assert time.perf_counter() - start < 30

def test_csv_of_a_split(tmp_path):
    table = split_table(frame(dict(a=10, b=10), error=''))
    file = tmp_path/'split.csv'
    write_split(table, file)
    assert file.read_bytes().startswith(b'path,split\na/00000.jpg,')
    assert read_split(table.assign(split='?'), file).equals(table)
    folded = fold_table(table, folds=4)
    write_split(folded, file)
    assert read_split(table, file).equals(folded)
    write_split(table, file)
    with pytest.raises(DataError, match='files that the table lacks, 4 in all: a/00000.jpg, a/00001.jpg, a/00002.jpg and 1 more'): read_split(table.iloc[4:], file)
    with pytest.raises(DataError, match='no line for files of the table, 20 in all: c/a/00000.jpg'):
        read_split(pd.concat([table, table.assign(path='c/' + table.path)]), file)
    with pytest.raises(DataError, match='the table names files more than once: a/00000.jpg'): write_split(pd.concat([table, table.head(1)]), file)
    assert read_split(table, file).equals(table)  # the file is as before
    for content, text in ((b'', 'CSV file'), (b'path,side\n', 'no column split; it has path, side'), (b'\xff\xfe\x00', 'CSV file'), (b'path,split\nx,dev\n', "holds 'dev'"),
                          (b'path,split\nx,train\nx,valid\n', 'names files more than once: x')):
        file.write_bytes(content)
        with pytest.raises(DataError, match=text): read_split(frame(dict(a=1)).assign(path='x'), file)
    with pytest.raises(FileNotFoundError): read_split(table, tmp_path/'none.csv')

def test_csv_from_another_system(tmp_path):
    "A mark at the start, other line ends, and é as two characters"
    table = pd.DataFrame(dict(path=['caf\u00e9.jpg', 'b,c.jpg'], label=['a', 'a']))
    (tmp_path/'s.csv').write_bytes('\ufeffpath,split\r\ncafe\u0301.jpg,valid\r\n"b,c.jpg",train\r\n'.encode())
    assert read_split(table, tmp_path/'s.csv').split.tolist() == ['valid', 'train']

def test_names_of_splits():
    assert [split_name(o) for o in ('Train', 'TRAINING', ' val ', 'validation', 'valid', 'test', 'Testing', 'dev', '', 'trains')] == \
        ['train', 'train', 'valid', 'valid', 'valid', 'test', 'test', None, None, None]
    assert folder_splits(['train/a/1.jpg', 'Val/a/1.jpg']) == ['train', 'valid'] and folder_splits(['1.jpg']) is None and folder_splits([]) is None
    assert folder_splits(['test/1.jpg', 'b/1.jpg']) is None  # a class may be called test
