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
from imgcls.data.splits import fold_table
from imgcls.data.tables import check_table, image_table, read_table, set_aside, table_counts, table_root, write_table


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


# the same everywhere

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


# lists: CSV files and DataFrames

def write_csv(path, text, encoding='utf-8'):
    path.write_bytes(text.encode(encoding))
    return path

def test_csv(tmp_path):
    root = lay(tmp_path/'photos', classes('hat', 'shoe'))
    rows = '\n'.join(f'{o},{o[:3]},{i % 7},p{i // 4}' for i, o in enumerate(classes('hat', 'shoe')))
    table = image_table(write_csv(root/'list.csv', f'path,label,stars,person\n{rows}\n'))
    assert table.columns.tolist() == ['path', 'label', 'split', 'width', 'height', 'mode', 'error', 'stars', 'person'] and table_root(table) == root
    assert table.label.tolist() == ['hat']*10 + ['sho']*10 and table.stars[:3].tolist() == ['0', '1', '2'] and (table.error == '').all()
    from_folder = image_table(root)
    assert table.split.tolist() == from_folder.split.tolist() and table.width.tolist() == from_folder.width.tolist()
    shuffled = '\n'.join(reversed(rows.split('\n')))
    pd.testing.assert_frame_equal(image_table(write_csv(tmp_path/'other.csv', f'path,label,stars,person\n{shuffled}'), root=root), table)
    by_person = image_table(root/'list.csv', group='person', valid=.4)
    assert by_person.groupby('person').split.nunique().max() == 1 and set(by_person.split) == {'train', 'valid'}
    assert image_table(root/'list.csv', label='folder').label.tolist() == from_folder.label.tolist()
    assert image_table(root/'list.csv', label=r'00(\d)').label[:3].tolist() == ['0', '1', '2']
    assert image_table(root/'list.csv', label=lambda o: o.parent.parent.name).label.unique().tolist() == ['photos']
    assert 'test' in set(image_table(root/'list.csv', valid=.2, test=.2).split)

@pytest.mark.parametrize('text,encoding', [
    ('path,label\na/000.png,01\na/001.png,1\n', 'utf-8'), ('path;label\r\na/000.png;01\r\na/001.png;1\r\n;\r\n\r\n', 'utf-8-sig'),
    ('File ,  Category\na\\000.png,  01 \n"a\\001.png", 1\n', 'utf-8'), ('image\tx\tclass\n./a/000.png\t3\t01\n a//001.png\t\t1', 'utf-8'),
    ('path,label,\na/000.png,01,\na/001.png,1,\n', 'utf-8')])
def test_csv_as_people_write_them(text, encoding, tmp_path):
    table = image_table(write_csv(lay(tmp_path, classes('a', n=2))/'x.csv', text, encoding))
    assert table.path.tolist() == ['a/000.png', 'a/001.png'] and table.label.tolist() == ['01', '1'] and (table.error == '').all()

def test_a_list_and_the_disk_disagree(tmp_path, caplog):
    caplog.set_level(logging.INFO, 'imgcls')
    root = lay(tmp_path, classes('a', 'b', n=4))
    text = 'file,label,split\na/000.png,a,train\na/000.png,a,train\na/001.png,a,train\na/001.png,b,train\na/002.png,a,train\na/002.png,a,val\nb/000.png,b,\nb/001.png,,val\nb/gone.png,b,val\nb/003.png,b,train\n'
    table = image_table(write_csv(root/'x.csv', text))
    assert table.path.is_unique and dict(zip(table.path, table.error)) == {'a/000.png': '', 'a/001.png': "listed twice: with the labels 'a', 'b'",
        'a/002.png': "listed twice: with the splits 'train', 'valid'", 'b/000.png': "no split: the column 'split' is empty", 'b/001.png': 'no label', 'b/003.png': '', 'b/gone.png': 'missing'}
    assert '2 images lie beside the listed ones' in caplog.text and 'a/003.png, b/002.png' in caplog.text and '3 files are listed more than once, 2 of them' in caplog.text
    none = image_table(root/'x.csv', verify=None)
    assert none.error.tolist() == table.error.tolist()

def test_data_frame(tmp_path, monkeypatch):
    root = lay(tmp_path, classes('a', 'b', n=3))
    frame = pd.DataFrame(dict(image=[root/o for o in classes('a', 'b', n=3)], label=[1, 1, float('nan'), 2, None, 2], x=range(6)), index=list('uvwxyz'))
    table = image_table(frame)
    assert table_root(table) == root and table.path.tolist() == classes('a', 'b', n=3) and table.x.tolist() == [*range(6)]
    assert table.label.tolist() == ['1', '1', '', '2', '', '2'] and set_aside(table).error.tolist() == ['no label']*2 and table.index.tolist() == [*range(6)]
    inside = image_table(frame, root=root/'a')
    assert inside.path.tolist() == [*(o.as_posix() for o in frame.image[3:]), '000.png', '001.png', '002.png'] and (inside.width == 9).all()
    monkeypatch.chdir(root)
    here = image_table(pd.DataFrame(dict(file=classes('a', 'b', n=3), label=list('aaabbb'))))
    assert table_root(here) == root and here.label.tolist() == list('aaabbb')
    assert here.equals(image_table(pd.DataFrame(dict(file=classes('a', 'b', n=3), label=pd.Categorical(list('aaabbb'))))))
    pd.testing.assert_frame_equal(image_table(here), here)  # a table is a list too
    monkeypatch.chdir(tmp_path.parent)
    pd.testing.assert_frame_equal(image_table(here), here)

def test_a_table_made_again_keeps_what_people_decided(tmp_path):
    table = image_table(lay(tmp_path, classes('a', 'b')), verify=None)
    table.loc[0, 'error'], table.loc[1, 'error'], table.loc[2, 'label'], table.loc[3, 'error'] = 'left out: blurred', 'truncated: it was', '', 'no label'
    again = image_table(table)
    assert again.error[:4].tolist() == ['left out: blurred', '', 'no label', ''] and (again.width == 9).all() and again.split.equals(table.split)
    twice = pd.DataFrame(dict(file=['a/000.png', 'a/000.png', 'a/001.png', 'b/000.png'], label=['a', 'b', 'a', 'b'], split=['train', 'train', '', 'val']))
    first = image_table(twice, root=tmp_path)
    assert first.error.str.partition(':')[0].tolist() == ['listed twice', 'no split', '']
    pd.testing.assert_frame_equal(image_table(first), first)  # what made the error is gone, and the error isn't

def test_split_columns(tmp_path):
    root, names = lay(tmp_path, classes('a', 'b', n=4)), classes('a', 'b', n=4)
    frame = pd.DataFrame(dict(file=names, label=list('aaaabbbb'), part=['Train', 'training', 'VAL', 'test']*2, is_valid=[False, False, True, True]*2))
    assert image_table(frame, root=root, split='part').split.tolist() == ['train', 'train', 'valid', 'test']*2
    assert image_table(frame, root=root).split.tolist() == ['train', 'train', 'valid', 'valid']*2  # is_valid
    frame.drop(columns='part').to_csv(root/'x.csv', index=False)
    assert image_table(root/'x.csv').split.tolist() == ['train', 'train', 'valid', 'valid']*2
    assert set(image_table(frame, root=root, split=None).split) == {'train'}
    assert image_table(frame, root=root, split='random').split.tolist() == image_table(root).split.tolist()
    no_valid = image_table(frame.assign(split=['train', 'train', 'train', 'test']*2), root=root, valid=.4, test=.3)
    assert (no_valid.split == 'test').tolist() == [False, False, False, True]*2 and table_counts(no_valid).loc['total', 'valid'] == 2
    with pytest.raises(DataError, match="column 'label' should hold train.*holds 'a', 'b'"): image_table(frame, root=root, split='label')
    with pytest.raises(ValueError, match="None, 'label', 'part', 'is_valid', got 'parts'. Did you mean 'part'"): image_table(frame, root=root, split='parts')

def test_split_folders_in_a_list(tmp_path):
    names = [f'{s}/{o}' for s in ('train', 'val') for o in classes('a', 'b', n=2)]
    frame = pd.DataFrame(dict(file=names))
    table = image_table(frame, root=lay(tmp_path, names), label='folder')
    assert table.split.tolist() == ['train']*4 + ['valid']*4 and set(table.label) == {'a', 'b'}
    mixed = pd.DataFrame(dict(file=[*names, 'extra/1.png'], label=list('aabbaabba')))
    with pytest.raises(DataError, match='other folders .extra.*Or name the column that holds the split'): image_table(mixed, root=tmp_path)
    assert len(image_table(mixed, root=lay(tmp_path, ['extra/1.png']), split='random')) == 9

def test_groups(tmp_path, caplog):
    root = lay(tmp_path, [f'{c}/{p}_{i}.png' for c in ('hat', 'shoe') for p in ('ann', 'bob', 'cat', 'dan', 'eve') for i in range(2)])
    table = image_table(root, group=r'^(\w+)_', valid=.2)
    assert table.columns[-1] == 'group' and set(table.group) == {'ann', 'bob', 'cat', 'dan', 'eve'} and table.groupby('group').split.nunique().max() == 1
    assert table_counts(table).loc['total'].tolist() == [16, 4, 0]
    pd.testing.assert_frame_equal(image_table(root, group=lambda o: o.stem[:3], valid=.2), table)
    flat = image_table(root, label=r'_(\d)', group='folder', valid=.5)
    assert flat.group.tolist() == ['hat']*10 + ['shoe']*10 and flat.groupby('group').split.nunique().max() == 1
    with pytest.raises(DataError, match='16 images have no group in the column `group`: hat/bob_0.png'): image_table(root, group='(ann)')
    with pytest.raises(ValueError, match="`group` must be 'folder', a function"): image_table(root, group='person')
    frame = table[['path', 'label', 'group']].assign(split=['train', 'valid']*10)
    image_table(frame, root=root, group='group')
    image_table(frame.assign(split=['train', 'test']*10), root=root, group='group')
    assert caplog.text.count('5 groups are on more than one side') == 2
    assert '5 groups are on more than one side of the split that was given: ann, bob, cat and 2 more' in caplog.text
    with pytest.raises(ValueError, match="`group` must be one of .*'group'.*got 'groups'. Did you mean 'group'"): image_table(frame, root=root, group='groups')

def test_the_label_or_the_file_as_group(tmp_path):
    frame = pd.DataFrame(dict(file=classes('a', 'b', 'c', n=4), label=list('aaaabbbbcccc')))
    with pytest.raises(DataError, match='nothing is left for valid'): image_table(frame, root=lay(tmp_path, frame.file.tolist()), group='label')
    table = image_table(frame, root=tmp_path, label=lambda o: str(int(o.stem) % 2), group='label')
    assert table.group.tolist() == list('aaaabbbbcccc') and table.label.tolist() == list('01')*6 and table.groupby('group').split.nunique().max() == 1

def test_several_labels(tmp_path):
    root = lay(tmp_path, classes('red_hat', 'blue_hat', n=3) + ['loose.png'])
    table = image_table(root, separator='_')
    assert table.label.tolist() == [('blue', 'hat')]*3 + [()] + [('hat', 'red')]*3 and set_aside(table).error.tolist() == ['no label']
    check_table(image_table(root, separator='_', valid=.4))
    frame = pd.DataFrame(dict(file=['a/000.png', 'a/001.png', 'a/002.png', 'a/000.png', 'a/003.png'], tags=['x, y', None, 'y', 'z', '']))
    lay(root, classes('a', n=4))
    listed = image_table(frame, root=root, separator=',', split=None)
    assert listed.label.tolist() == [('x', 'y', 'z'), (), ('y',), ()] and (listed.error == '').all()
    lists = image_table(frame.assign(tags=[['y', 'x'], None, {'y'}, np.array(['z']), 7]), root=root, split=None)
    assert lists.label.tolist() == [('x', 'y', 'z'), (), ('y',), ('7',)]
    called = image_table(root/'a', label=lambda o: [] if o.stem == '000' else None if o.stem == '001' else ['x', 'y'], split=None)
    assert called.label.tolist() == [(), (), ('x', 'y'), ('x', 'y')] and called.error.tolist() == ['', 'no label', '', '']

def test_counts_and_checks_of_several_labels():
    table = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(6)], label=[('a', 'b'), ('a',), (), ('b',), ('a', 'b'), ()],
                              split=['train', 'train', 'train', 'train', 'valid', 'valid'], error=['']*5 + ['empty']))
    assert table_counts(table).to_dict('index') == {'a': dict(train=2, valid=1, unusable=0), 'b': dict(train=2, valid=1, unusable=0),
        '(no label)': dict(train=1, valid=0, unusable=1), 'total': dict(train=4, valid=1, unusable=1)}
    check_table(table)
    one = table.assign(label=[('a',), ('a',), (), (), ('a',), ()])
    check_table(one)  # there or not there is a question of one class
    for label, text in (([('a',)]*6, 'only one class, `a`'), ([()]*6, 'no image has any label'), ([('a', 'b'), ('a',), (), ('a',), ('a',), ()], 'only one image: b'),
                        ([('a',), ('a',), (), ('a',), ('a', 'b'), ('b',)], 'only one image: b'), ([('a',), 'a', (), ('a',), (), ()], 'some labels are text')):
        with pytest.raises(DataError, match=text): check_table(table.assign(label=label))
    with pytest.raises(DataError, match='a class only in valid, .*: b'):
        check_table(pd.concat([table.assign(label=[('a',), (), ('a',), (), ('b',), ()]), table[4:5].assign(path='x', label=[('a', 'b')])]))
    with pytest.raises(DataError, match='usable images without a label'): check_table(frame(dict(a=3), split='train').assign(label=['a', 'b', '']))

def test_a_class_called_total():
    counts = table_counts(frame(dict(total=3, a=2), split='train'))
    assert counts.train.tolist() == [2, 3, 5] and counts.index.tolist() == ['a', 'total', 'total']

@pytest.mark.parametrize('text,kwargs,error,said', [
    ('a,b\nx,y\n', {}, DataError, "which column holds the names of the files. There are 'a', 'b'; say file="),
    ('a/000.png,a\na/001.png,a\n', {}, DataError, 'The first line should hold the names of the columns'),
    ('path,b\na/000.png,y\n', {}, DataError, "which column holds the labels. There are 'b'; say label="),
    ('path,breed\na/000.png,y\n', dict(label='bread'), ValueError, "`label` must be one of 'breed', 'folder', got 'bread'. Did you mean 'breed'"),
    ('path,label\na/000.png,y\n', dict(file='label2'), ValueError, "`file` must be one of 'path', 'label', got 'label2'"),
    ('path,label\n,y\na/000.png,y\n,z\n', {}, DataError, "'path' is empty in 2 of 3 rows: 0, 2"),
    ('path,label\nx.png,y\nz.png,y\n', {}, DataError, r'none of the 2 files .*missing 2 .x.png, z.png.*Say where they lie with root='),
    ('path,label\n0a1,y\n0a2,y\n', {}, DataError, r'have no extension'),
    ('path,label\n', {}, DataError, 'the list of images is empty'), ('', {}, DataError, 'no CSV file that can be read'),
    ('path,label\na,b\na,b,c,d\n', {}, DataError, 'no CSV file that can be read'),
    ('path,label\na/000.png,y\n', dict(root='nowhere'), FileNotFoundError, 'There is no folder'), ('path,label\na/000.png,y\n', dict(root=3), TypeError, '`root` must be')])
def test_errors_of_lists(text, kwargs, error, said, tmp_path):
    with pytest.raises(error, match=said): image_table(write_csv(lay(tmp_path, classes('a', n=2))/'x.csv', text), **kwargs)

def test_other_errors_of_lists(tmp_path):
    with pytest.raises(DataError, match='no CSV file that can be read.*UTF-8'): image_table(write_csv(tmp_path/'x.csv', 'path,label\ncafé.jpg,a\n', 'latin-1'))
    with pytest.raises(FileNotFoundError): image_table(tmp_path/'none.csv')
    for name in ('file', 'root'):
        with pytest.raises(ValueError, match=f'`{name}` is for a CSV file or a DataFrame'): image_table(tmp_path, **{name: 'x'})
    table = image_table(lay(tmp_path/'d.csv', classes('a', 'b')))  # a folder, whatever its name
    assert len(table) == 20

def test_written_and_read(tmp_path):
    names = ['été/ü b.png', 'été/a,b"c.png', '日本/図.png', 'nan/null.png', 'nan/NA.png', '1.5/x.png', '01/y.png', 'a/tab\t.png']
    table = image_table(lay(tmp_path/'photos', [*names, ('a/cut.png', b'')]), group=lambda o: f'0{len(o.name)}', split=None)
    for path in (tmp_path/'t.csv', tmp_path/'photos'/'t.csv', tmp_path/'new'/'t.csv'):
        write_table(table, path)
        pd.testing.assert_frame_equal(read_table(path), table)
        assert table_root(read_table(path)) == tmp_path/'photos'
    folded = fold_table(table.assign(label=[('a', 'b'), ()]*4 + [('b',)]), folds=2, stratify=False)
    write_table(folded, tmp_path/'t.csv')
    pd.testing.assert_frame_equal(read_table(tmp_path/'t.csv'), folded)
    strange = table.assign(path=[f'{o}\r\n' for o in table.path])
    write_table(strange, tmp_path/'t.csv')
    pd.testing.assert_frame_equal(read_table(tmp_path/'t.csv'), strange)

def test_a_table_moves_with_its_photos(tmp_path):
    lay(tmp_path/'a'/'photos', classes('x', 'y', n=2))
    table = image_table(tmp_path/'a'/'photos')
    write_table(table, tmp_path/'a'/'t.csv')
    (tmp_path/'a').rename(tmp_path/'b')
    assert table_root(read_table(tmp_path/'b'/'t.csv')) == tmp_path/'b'/'photos'

def test_tables_that_are_none(tmp_path):
    for text in ('', 'path,label\na,b\n', 'path,label,root\n', 'a\n'):
        with pytest.raises(DataError, match='can be read|not from `write_table`'): read_table(write_csv(tmp_path/'x.csv', text))
    with pytest.raises(DataError, match="doesn't know its folder"): write_table(frame(dict(a=1)), tmp_path/'y.csv')
    with pytest.raises(DataError, match="'a|b' would not come back"): write_table(image_table(lay(tmp_path/'p', classes('x', n=1)), split=None).assign(label=[('a|b',)]), tmp_path/'y.csv')
    assert not (tmp_path/'y.csv').exists()


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
