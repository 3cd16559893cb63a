"""Folders as people have them, and the tables that `imgcls.data.tables` makes of them."""
import logging, os, random
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from imgcls.core import DataError
from imgcls.data.tables import check_table, image_table, set_aside, split_table, table_counts, table_root


def lay(root, files):
    "Write small images (or what is given) under these names"
    for i, o in enumerate(files if isinstance(files, (list, tuple)) else files.items()):
        name, content = o if isinstance(o, tuple) else (o, None)
        path = Path(root)/name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None: Image.new('RGB', (9, 7), (i % 256, 0, 0)).save(path, 'png')
        else: path.write_bytes(content)
    return Path(root)

def classes(*names, n=10): return [f'{c}/{i:03d}.png' for c in names for i in range(n)]

scandir = os.scandir

@contextmanager
def other_order(folder):
    with scandir(folder) as entries: found = list(entries)
    random.shuffle(found)
    yield iter(found)

def frame(n_by_class, **kwargs):
    return pd.DataFrame([dict(path=f'{c}/{i:05d}.jpg', label=c, **kwargs) for c, n in n_by_class.items() for i in range(n)])


# layouts

def test_class_folders(tmp_path):
    table = image_table(lay(tmp_path, classes('hat', 'shoe')))
    assert table.columns.tolist() == ['path', 'label', 'split', 'width', 'height', 'mode', 'error']
    assert table.path.tolist() == classes('hat', 'shoe') and table.label.tolist() == ['hat']*10 + ['shoe']*10
    assert (table.width == 9).all() and (table.height == 7).all() and (table['mode'] == 'RGB').all() and (table.error == '').all()
    assert table_counts(table).loc['hat'].to_dict() == dict(train=8, valid=2, unusable=0)
    assert table_root(table) == tmp_path and table.index.tolist() == list(range(20))
    check_table(table)

@pytest.mark.parametrize('train', ['train', 'Training'])
@pytest.mark.parametrize('valid', ['valid', 'validation', 'val', 'Val'])
@pytest.mark.parametrize('test', ['test', 'testing', None])
def test_split_folders(train, valid, test, tmp_path):
    names = [f'{s}/{o}' for s in (train, valid, test) if s for o in classes('a', 'b', n=3)]
    table = image_table(lay(tmp_path, names))
    assert sorted(table.path) == sorted(names) and set(table.label) == {'a', 'b'}
    for split, folder in (('train', train), ('valid', valid), ('test', test)):
        assert set(table.path[table.split == split]) == {o for o in names if o.partition('/')[0] == folder}
    check_table(table)
    drawn = image_table(tmp_path, split='random', valid=.5)
    assert set(drawn.label) == {'a', 'b'} and table_counts(drawn).columns.tolist() == ['train', 'valid', 'unusable']
    assert set(image_table(tmp_path, split=None).split) == {'train'}

def test_valid_is_drawn_from_train_where_only_it_is_missing(tmp_path):
    table = image_table(lay(tmp_path, [f'{s}/{o}' for s in ('train', 'test') for o in classes('a', 'b')]))
    assert table_counts(table).loc['total'].to_dict() == dict(train=16, valid=4, test=20, unusable=0)
    assert table.path[table.split == 'valid'].str.startswith('train/').all()
    only = image_table(lay(tmp_path/'only', [f'train/{o}' for o in classes('a', 'b')]))
    assert table_counts(only).loc['total'].to_dict() == dict(train=16, valid=4, unusable=0) and set(only.label) == {'a', 'b'}

def test_a_class_may_be_called_train(tmp_path):
    table = image_table(lay(tmp_path, classes('car', 'ship', 'train')))
    assert set(table.label) == {'car', 'ship', 'train'} and table_counts(table).loc['train', 'valid'] == 2

def test_splits_mixed_with_something_else(tmp_path):
    with pytest.raises(DataError, match=r'folders for splits \(test, train\) and other folders \(extra\)'):
        image_table(lay(tmp_path/'a', ['train/a/1.png', 'test/a/1.png', 'extra/a/1.png']))
    with pytest.raises(DataError, match=r'folders for splits \(test, val\) and no folder `train`'):
        image_table(lay(tmp_path/'b', ['val/a/1.png', 'test/a/1.png']))

def test_folders_below_a_class_belong_to_it(tmp_path):
    table = image_table(lay(tmp_path, ['a/monday/1.png', 'a/tuesday/1.png', 'a/2.png', 'b/monday/deep/1.png', 'b/2.png']))
    assert table.label.tolist() == ['a', 'a', 'a', 'b', 'b']

def test_what_is_passed_over_and_what_is_not(tmp_path, caplog):
    caplog.set_level(logging.INFO, 'imgcls')
    extra = dict.fromkeys(['notes.txt', 'a/labels.csv', 'a/.hidden.png', '.git/x.png', 'a/Thumbs.db', 'a/.DS_Store', 'a/desktop.ini',
            'LICENSE', 'README.md', '__MACOSX/a/1.png', 'a/film.mp4', 'a/1.JSON', 'a/@eaDir/1.png'], b'x')
    table = image_table(lay(lay(tmp_path, classes('a', 'b', n=3)),
            extra | {'a/drawing.svg': b'<svg/>', 'a/noext': b'text', 'b/photo.heic': b'\0\0\0\x18ftypheic'}))
    assert set_aside(table).path.tolist() == ['a/drawing.svg', 'a/noext', 'b/photo.heic'] and len(table) == 9
    assert set_aside(table).error.str.startswith('not an image').all() and 'HEIC' in set_aside(table).error[2]
    assert '9 files' in caplog.text and 'cannot be used and are set aside: not an image 3 (a/drawing.svg, a/noext, b/photo.heic)' in caplog.text

def test_images_without_extension_or_with_a_strange_one_are_images(tmp_path):
    table = image_table(lay(tmp_path, ['a/0001', 'a/2.dat', 'b/x.weird', 'b/v1.2', 'b/LICENSE']))
    assert table.path.tolist() == ['a/0001', 'a/2.dat', 'b/v1.2', 'b/x.weird'] and (table.error == '').all()
    with pytest.raises(DataError, match='none of the 4 files'): image_table(tmp_path, verify=None)

def test_verify(tmp_path):
    whole = lay(tmp_path, classes('a', 'b'))/'a/000.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(whole)
    whole.write_bytes(whole.read_bytes()[:9000])
    assert set_aside(image_table(tmp_path)).error.str.startswith('truncated').tolist() == [True]
    header = image_table(tmp_path, verify='header')
    assert (header.error == '').all() and header.width[0] == 90
    none = image_table(tmp_path, verify=None)
    assert (none.error == '').all() and (none.width == 0).all()
    for other in (True, 'full', 'Decode'):
        with pytest.raises(ValueError, match='`verify` must be one of'): image_table(tmp_path, verify=other)
    with pytest.raises(ValueError, match='`split` must be one of'): image_table(tmp_path, split='folder')

@pytest.mark.skipif(os.name == 'nt', reason='links need a privilege there')
def test_links(tmp_path):
    lay(tmp_path/'store', ['x/1.png', 'x/2.png'])
    root = lay(tmp_path/'data', classes('a', n=2))
    (root/'b').symlink_to(tmp_path/'store'/'x')
    (root/'a'/'up').symlink_to(root)
    (root/'a'/'gone.png').symlink_to('nowhere.png')
    table = image_table(root)
    assert table.path.tolist() == ['a/000.png', 'a/001.png', 'a/gone.png', 'b/1.png', 'b/2.png']
    assert set_aside(table).error.tolist() == ['broken link: it points to nowhere.png']

def test_strange_names(tmp_path):
    names = ['été/ü b.png', 'été/a,b"c.png', 'été/#%&.png', '日本/図.png', '日本/😀.png', 'nan/null.png', 'nan/NA.png', '1.5/x.png', '1.5/y.png']
    table = image_table(lay(tmp_path, names))
    assert sorted(table.path) == sorted(names) and set(table.label) == {'été', '日本', 'nan', '1.5'} and (table.error == '').all()
    table.to_csv(tmp_path/'t.csv', index=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'t.csv', keep_default_na=False, dtype={'label': 'str'}), table, check_dtype=False)


# labels

def test_regex(tmp_path):
    root = lay(tmp_path, [f'images/{b}_{i}.png' for b in ('great_dane', 'pug') for i in range(5)])
    assert set(image_table(root, label=r'^(.+)_\d+\.png$').label) == {'great_dane', 'pug'}
    assert set(image_table(root/'images', label=r'^(.+)_\d+\.png$').label) == {'great_dane', 'pug'}
    lay(root, ['images/readme.png', 'images/x.png', 'images/y.png', 'images/z.png'])
    with pytest.raises(DataError, match=r'4 of 14 names do not match label=.*: images/readme.png, images/x.png, images/y.png and 1 more'):
        image_table(root, label=r'^(.+)_\d+\.png$')
    for bad, what in ((r'(', 'is none'), (r'.+_\d', 'has 0'), (r'(.)(.)', 'has 2'), ('', 'has 0')):
        with pytest.raises(ValueError, match='`label` must be') as e: image_table(root, label=bad)
        assert what in str(e.value)

def test_regex_below_split_folders(tmp_path):
    table = image_table(lay(tmp_path, [f'train/{k}.{i}.png' for k in ('cat', 'dog') for i in range(10)]), label=r'^(cat|dog)\.')
    assert table_counts(table).loc['total', 'valid'] == 4 and set(table.label) == {'cat', 'dog'}

def test_a_file_that_is_no_image_need_not_match(tmp_path):
    table = image_table(lay(tmp_path, ['a_1.png', 'a_2.png', 'b_1.png', 'b_2.png', ('other', b'text')]), label=r'^(.)_')
    assert set_aside(table).path.tolist() == ['other'] and set_aside(table).label.tolist() == ['']

def test_function(tmp_path):
    root = lay(tmp_path, ['x/1.png', 'x/2.png', 'y/3.png', 'y/4.png', 'y/5.png'])
    seen = []
    table = image_table(root, label=lambda o: seen.append(o) or (None if o.stem == '5' else int(o.stem) % 2))
    assert table.label.tolist() == ['1', '0', '1', '0', ''] and seen[0] == root/'x'/'1.png'
    assert set_aside(table).error.tolist() == ['no label'] and '(no label)' in table_counts(table).index
    with pytest.raises(DataError, match="fails on `x/1.png`: KeyError: 'x'"): image_table(root, label=lambda o: {}[o.parent.name])

def test_beside_the_folders(tmp_path):
    table = image_table(lay(tmp_path/'a', [*classes('a', 'b'), 'loose.png']))
    assert set_aside(table).values.tolist() == [['loose.png', '', 'no label']]
    table = image_table(lay(tmp_path/'b', [*(f'{s}/{o}' for s in ('train', 'valid') for o in classes('a', 'b')), 'loose_1.png']),
            label=lambda o: o.parent.name)
    assert set_aside(table).error.tolist() == ['no split: it lies beside the folders of the splits']


# errors, each a sentence

def test_errors(tmp_path):
    (tmp_path/'empty'/'a').mkdir(parents=True)
    lay(tmp_path, ['flat/1.png', 'flat/2.png', ('text/a/1.txt', b''), ('bad/a/1.png', b''), ('bad/b/1.png', b'hello'), ('bad/b/2.png', b'')])
    for source, exc, text in [
            (tmp_path/'nowhere', FileNotFoundError, 'There is no folder'), (tmp_path/'flat'/'1.png', DataError, 'is a file, and a folder'),
            (tmp_path/'empty', DataError, 'there are no images in'), (tmp_path/'text', DataError, 'there are no images in'),
            (tmp_path/'flat', DataError, r'2 files lie directly in .*1.png, 2.png.*label=r'),
            (tmp_path/'bad', DataError, r'none of the 3 files .* can be used: empty 2 \(a/1.png, b/2.png\), not an image 1 \(b/1.png\)'),
            (None, TypeError, 'must be the path'), (3, TypeError, 'got int')]:
        with pytest.raises(exc, match=text): image_table(source)

def test_a_folder_that_may_not_be_read(tmp_path):
    def refuse(folder):
        if str(folder).endswith('b'): raise PermissionError(13, 'Permission denied', str(folder))
        return scandir(folder)
    with patch('os.scandir', refuse), pytest.raises(PermissionError, match="Can't look into the folder"):
        image_table(lay(tmp_path, classes('a', 'b')))

def test_check_table(tmp_path):
    fit = frame(dict(a=5, b=5), split='train', error='')
    fit.loc[[0, 5], 'split'] = 'valid'
    check_table(fit); check_table(fit.drop(columns='error'))
    for table, text in [
            (fit[fit.label == 'a'], 'only one class, `a`'), (fit[fit.index < 6], 'a class with only one image: b'),
            (fit.assign(error=['']*6 + ['empty']*4), 'a class with only one image: b'),
            (fit.assign(path='x/y/' + fit.path, label='x'), 'one folder further down'),
            (fit.assign(split='train'), 'no images for validation'), (fit.assign(split='val'), 'and holds val'),
            (fit.assign(split=['train']*5 + ['valid']*5), 'a class only in valid, .*: b'),
            (fit.assign(split=['train']*4 + ['valid'] + ['test']*5), 'a class only in test, .*: b'),
            (fit.assign(error='empty'), 'no image that can be used'), (fit[:0], 'no image that can be used'),
            (fit.drop(columns='split'), "no column 'split'")]:
        with pytest.raises(DataError, match=text): check_table(table)

def test_table_root():
    with pytest.raises(DataError, match=r"table.attrs\['root'\]"): table_root(frame(dict(a=1)))


# splits

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

def test_any_order_on_the_disk(tmp_path):
    root = lay(tmp_path, [*classes('a', 'B', 'c'), 'a/x/1.png', 'a.b/1.png', 'a-b/1.png', 'loose.png'])
    table = image_table(root)
    for _ in range(5):
        with patch('os.scandir', other_order): pd.testing.assert_frame_equal(image_table(root), table)
    assert table.path.tolist() == sorted(table.path)

def test_another_place_gives_the_same_split(tmp_path):
    a, b = (image_table(lay(tmp_path/o, classes('a', 'b'))) for o in ('here', 'there'))
    assert a.equals(b) and a.attrs != b.attrs

def test_the_same_name_written_in_two_ways(tmp_path):
    "macOS stores é as e and an accent, other systems as one character"
    a, b = image_table(lay(tmp_path/'1', classes('caf\u00e9', 'b'))), image_table(lay(tmp_path/'2', classes('cafe\u0301', 'b')))
    assert a.split.tolist() == b.split.tolist()


def test_counts():
    table = frame(dict(a=5, b=3), split='train', error='')
    table.loc[0, 'split'], table.loc[1, 'error'] = 'test', 'empty'
    assert table_counts(table).to_dict('index') == {'a': dict(train=3, valid=0, test=1, unusable=1),
            'b': dict(train=3, valid=0, test=0, unusable=0), 'total': dict(train=6, valid=0, test=1, unusable=1)}
    with pytest.raises(DataError, match="no column 'label', 'split'"): table_counts(pd.DataFrame())

def test_many_files_in_seconds(tmp_path):
    root = lay(tmp_path, classes('a', 'b', n=1000))
    import time
    start = time.perf_counter()
    assert len(image_table(root)) == 2000
    assert time.perf_counter() - start < 20
