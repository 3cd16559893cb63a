"""Tables laid out as folders, and written with their pixels into HDF5: nothing lost, nothing overwritten, nothing mixed up."""
import errno, logging, os, shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from imgcls.core import DataError, ImgclsError, MissingExtraError
from imgcls.data import folders as module
from imgcls.data.folders import write_folders, write_hdf5
from imgcls.data.tables import image_table
from imgcls.images import eval_image

h5py = pytest.importorskip('h5py')


def save(path, i=0, size=(12, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, (i % 256, i // 256, 7)).save(path, 'png')

@pytest.fixture
def photos(tmp_path):
    "Two classes over two days, with the same names on both days"
    res = tmp_path/'photos'
    for i in range(40): save(res/('hat', 'shoe')[i % 2]/('monday', 'tuesday')[i // 20]/f'{i // 2 % 10}.png', i)
    return res

@pytest.fixture
def table(photos): return image_table(photos, valid=.3)

@pytest.fixture
def dest(tmp_path): return tmp_path/'laid'

def frame(root, paths, labels=None, splits='train'):
    res = pd.DataFrame(dict(path=paths, label=labels or [o.split('/')[0] for o in paths], split=splits, error=''))
    res.attrs['root'] = str(root)
    return res

def snapshot(folder): return {o.relative_to(folder).as_posix(): (o.stat().st_mtime_ns, o.stat().st_ino, o.read_bytes()) for o in sorted(Path(folder).rglob('*')) if o.is_file()}


# layout

@pytest.mark.parametrize('how', ['copy', 'hardlink', 'symlink'])
def test_layout(table, photos, dest, how):
    before = snapshot(photos)
    res = write_folders(table, dest, how=how)
    assert snapshot(photos) == before and res.attrs['root'] == str(dest)
    pd.testing.assert_frame_equal(res.drop(columns='source'), image_table(dest))
    old = table.set_index('path')
    for new, source, label, split in zip(res.path, res.source, res.label, res.split):
        assert (label, split) == (old.label[source], old.split[source]) and new.startswith(f'{split}/{label}/')
        assert (dest/new).read_bytes() == (photos/source).read_bytes()
        assert (dest/new).samefile(photos/source) == (how != 'copy') and (dest/new).is_symlink() == (how == 'symlink')
        assert (dest/new).stat().st_mtime_ns == (photos/source).stat().st_mtime_ns
    assert sorted(res.source) == sorted(table.path)
    assert sum(o.is_file() for o in dest.rglob('*')) == len(table) and not list(dest.rglob('.*'))

def test_more_columns_and_bad_rows(table, dest, caplog):
    caplog.set_level(logging.INFO, 'imgcls')
    table['person'] = range(len(table))
    table.loc[[0, 7], 'error'] = 'empty'
    res = write_folders(table, dest)
    assert len(res) == 38 and '38 new, 0 were there; 2 rows with an error left out' in caplog.text
    assert res.set_index('source').person.to_dict() == table[table.error == ''].set_index('path').person.to_dict()

def test_names_do_not_depend_on_the_order(table, tmp_path):
    first = write_folders(table, tmp_path/'one')
    again = write_folders(table.sample(frac=1, random_state=1), tmp_path/'two', workers=7)
    pd.testing.assert_frame_equal(first, again)

@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from('abc'), st.sampled_from(['1.png', '1.PNG', 'I.png', 'ü.png', 'u\u0308.png', 'x', '1-5f0c.png']), st.sampled_from(['train', 'test'])), unique_by=lambda o: o[:2]))
def test_no_name_is_lost(rows):
    "Each file has a place of its own, on file systems that fold case and accents too"
    paths = [f'{folder}/{name}' for folder, name, _ in rows]
    targets = module._targets(paths, [f'{split}/hat' for *_, split in rows])
    assert len({module._fold(o) for o in targets}) == len(rows)
    assert all(os.path.splitext(a)[1] == os.path.splitext(b)[1] and a.startswith(f'{s}/hat/') for a, b, (*_, s) in zip(targets, paths, rows))
    alone = [o for (_, name, s), o in zip(rows, targets) if sum(module._fold(n) == module._fold(name) and s == q for _, n, q in rows) == 1]
    assert not any('-' in o and '5f0c' not in o for o in alone)

def test_a_name_that_is_taken_by_a_hash(tmp_path, dest):
    "The name made for one of two files is that of a third"
    paths = ['hat/a/1.png', 'hat/b/1.png']
    made = module._targets(paths, ['train/hat']*2)
    paths.append(f'hat/c/{made[0].rpartition("/")[2]}')
    for i, o in enumerate(paths): save(tmp_path/'photos'/o, i)
    res = write_folders(frame(tmp_path/'photos', paths), dest)
    assert res.path.is_unique and len(res) == 3
    assert all((dest/n).read_bytes() == (tmp_path/'photos'/o).read_bytes() for n, o in zip(res.path, res.source))


# calling it again

@pytest.mark.parametrize('how', ['copy', 'hardlink', 'symlink'])
def test_again(table, dest, how, monkeypatch):
    first = write_folders(table, dest, how=how)
    for o in first.path[::3]: (dest/o).unlink()
    kept, put = snapshot(dest), []
    monkeypatch.setattr(module, '_put', lambda *args, old=module._put: put.append(args[1]) or old(*args))
    pd.testing.assert_frame_equal(write_folders(table, dest, how=how), first)
    assert sorted(put) == sorted(dest/o for o in first.path[::3])
    assert {k: v for k, v in snapshot(dest).items() if k in kept} == kept
    write_folders(table, dest, how=how)
    assert len(put) == len(first.path[::3])

def test_interrupted(table, dest, monkeypatch):
    "Ctrl-C in the middle: every file that has its name is whole, and the next call goes on"
    copyfile, calls = shutil.copyfile, []
    def half(source, target):
        calls.append(1)
        if len(calls) < 10: return copyfile(source, target)
        Path(target).write_bytes(Path(source).read_bytes()[:9])
        raise KeyboardInterrupt
    monkeypatch.setattr(module.shutil, 'copyfile', half)
    with pytest.raises(KeyboardInterrupt): write_folders(table, dest, workers=1)
    monkeypatch.undo()
    assert sum(o.is_file() for o in dest.rglob('*')) == 9
    res = write_folders(table, dest)
    assert all((dest/n).read_bytes() == (Path(table.attrs['root'])/o).read_bytes() for n, o in zip(res.path, res.source))

def test_left_overs_are_no_strangers(table, dest):
    write_folders(table, dest)
    for o in ('.DS_Store', 'train/.0123.part', 'train/hat/Thumbs.db'): (dest/o).write_bytes(b'x')
    write_folders(table, dest)

def other(path): save(path, 999, (3, 3))
def same_size(path): path.write_bytes(bytes(reversed(path.read_bytes())))
def folder(path): path.unlink(); path.mkdir()
def dead_link(path): path.unlink(); path.symlink_to('nowhere')

@pytest.mark.parametrize('change', [other, same_size, folder, dead_link])
def test_a_different_file_is_not_overwritten(table, dest, change):
    res = write_folders(table, dest)
    change(dest/res.path[3])
    (dest/res.path[5]).unlink()
    before = snapshot(dest)
    with pytest.raises(DataError, match=f'1 files in .*{res.path[3]}. Nothing is overwritten'): write_folders(table, dest)
    assert snapshot(dest) == before

def test_a_link_is_no_copy(table, dest):
    write_folders(table, dest, how='symlink')
    with pytest.raises(DataError, match="40 files in .* are not what how='copy' would lay there"): write_folders(table, dest)
    with pytest.raises(DataError, match='40 files'): write_folders(table, dest, how='hardlink')

def test_a_copy_does_for_a_hard_link(table, dest):
    before = write_folders(table, dest)
    pd.testing.assert_frame_equal(write_folders(table, dest, how='hardlink'), before)

def test_another_split_in_the_same_folder(table, dest):
    write_folders(table, dest)
    before = snapshot(dest)
    table['split'] = ['test', *table.split[1:]]
    with pytest.raises(DataError, match='holds . files that are not in the table: (train|valid)/hat/.*earlier split'): write_folders(table, dest)
    assert snapshot(dest) == before


# what is refused

@pytest.mark.parametrize('name,why', [('a/b', "contains '/'"), ('a\\b', r"contains '\\\\'"), ('what?', 'contains'), ('a:b', 'contains'), ('a\nb', 'contains'), ('a\0', 'contains'), ('.', 'begins with a dot'), (' x', 'begins with a dot or a space'),
    ('..', 'begins with a dot'), ('.hat', 'begins with a dot'), ('hat ', 'ends in'), ('hat.', 'ends in'), ('con', 'a device'), ('Nul.x', 'a device'), ('COM1', 'a device'), ('ü'*128, 'too long')])
def test_illegal_classes(table, dest, name, why):
    table['label'] = [name if o == 'hat' else o for o in table.label]
    with pytest.raises(DataError, match=f'cannot be the name of a folder: .*{why}.*Rename it with `merge_classes`'): write_folders(table, dest)
    assert not dest.exists()

@pytest.mark.parametrize('name', ['T-shirt', 'hat & cap', 'Ärmel', '帽子', '7', 'train', 'None', "O'Neill", 'console', 'a.b'])
def test_legal_classes(table, dest, name):
    table['label'] = [name if o == 'hat' else o for o in table.label]
    assert sorted(write_folders(table, dest).label.unique()) == sorted([name, 'shoe']) and set(image_table(dest).label) == {name, 'shoe'}

@pytest.mark.parametrize('one,two', [('Hat', 'hat'), ('ü', 'u\u0308'), ('STRASSE', 'straße')])
def test_classes_that_some_systems_mix_up(table, dest, one, two):
    table['label'] = [one if o == 'hat' else two for o in table.label]
    with pytest.raises(DataError, match='differ in upper and lower case only'): write_folders(table, dest)

@pytest.mark.parametrize('change,error,message', [
    (lambda t: t.assign(label=[('hat',)]*len(t)), DataError, 'images with several labels'),
    (lambda t: t.assign(label=''), DataError, 'images without a label: hat/monday/0.png'),
    (lambda t: t.assign(split='dev'), ValueError, "`split` must be one of 'train', 'valid', 'test', got 'dev'"),
    (lambda t: t.assign(error='empty'), DataError, 'no image that can be used'),
    (lambda t: t.drop(columns='split'), DataError, "no column 'split'"),
    (lambda t: pd.concat([t, t.iloc[:1]]), DataError, 'the same file more than once: hat/monday/0.png'),
    (lambda t: t.assign(path=['hat/nothing.png', *t.path[1:]]), DataError, '1 files of the table are gone: hat/nothing.png'),
])
def test_refused_tables(table, dest, change, error, message):
    changed = change(table)
    changed.attrs = table.attrs
    with pytest.raises(error, match=message): write_folders(changed, dest)
    assert not dest.exists()

def test_refused_places(table, photos, tmp_path):
    for o in (photos, photos/'new', photos/'hat'/'..'/'x'):
        with pytest.raises(DataError, match='lies in the folder of the images'): write_folders(table, o)
    os.symlink(photos, tmp_path/'alias')
    with pytest.raises(DataError, match='lies in the folder of the images'): write_folders(table, tmp_path/'alias'/'new')
    with pytest.raises(DataError, match='holds 40 files that are not in the table'): write_folders(table, tmp_path)
    (tmp_path/'file').touch()
    with pytest.raises(DataError, match='is a file, and a folder is needed'): write_folders(table, tmp_path/'file')

@pytest.mark.parametrize('how,func,number,hint', [('hardlink', 'link', errno.EXDEV, "Take how='copy'"), ('symlink', 'symlink', errno.EPERM, "Take how='copy'"), ('copy', 'rename', errno.ENOSPC, 'Make room')])
def test_errors_of_the_disk(table, dest, monkeypatch, how, func, number, hint):
    def fails(*args, **kwargs): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(module.os, func, fails)
    with pytest.raises(ImgclsError, match=f"can't lay .*how='{how}'.*{os.strerror(number)}.*{hint}") as e: write_folders(table, dest, how=how)
    assert isinstance(e.value.__cause__, OSError) and not [o for o in dest.rglob('*') if o.is_file()]

def test_links_of_links(table, photos, tmp_path, dest):
    "A source that is a symbolic link itself is followed"
    for how in ('copy', 'hardlink', 'symlink'):
        write_folders(table, tmp_path/'links', how='symlink')
        res = write_folders(image_table(tmp_path/'links'), dest/how, how=how)
        assert all((dest/how/o).is_symlink() == (how == 'symlink') for o in res.path)
        shutil.rmtree(tmp_path/'links')
        assert len(image_table(dest/how, verify='decode').query('error == ""')) == 40


# HDF5

def read(path):
    with h5py.File(path) as f: return {k: v[:] if v.dtype.kind != 'O' else v.asstr()[:].tolist() for k, v in f.items()} | dict(f.attrs)

@pytest.mark.parametrize('size,presize,method,compression', [(8, None, 'crop', None), (8, 8, 'squish', 'gzip'), (300, 310, 'crop', 'lzf'), (1, 1, 'crop', None)])
def test_hdf5(table, photos, tmp_path, size, presize, method, compression):
    path = write_hdf5(table, tmp_path/'new'/'photos.h5', size, presize=presize, method=method, compression=compression)
    res = read(path)
    assert res['images'].shape == (40, size, size, 3) and res['images'].dtype == np.uint8
    assert res['paths'] == table.path.tolist() and res['splits'] == table.split.tolist() and res['vocab'] == ['hat', 'shoe']
    assert [res['vocab'][i] for i in res['labels']] == table.label.tolist() and not res['multi_label']
    assert (res['size'], res['method']) == (size, method)
    for img, o in zip(res['images'], table.path): assert np.array_equal(img, eval_image(photos/o, size, res['presize'], method=method))
    assert [o.name for o in path.parent.iterdir()] == ['photos.h5']

def test_hdf5_chunks(table, tmp_path, monkeypatch):
    "Images are written as they come, about a megabyte at a time"
    seen = []
    monkeypatch.setattr(module, '_blocks', lambda *args, old=module._blocks, **kwargs: (seen.append(len(o)) or o for o in old(*args, **kwargs)))
    big = pd.concat([table]*5, ignore_index=True)
    big.attrs = table.attrs
    with h5py.File(write_hdf5(big, tmp_path/'a.h5', 100)) as f:
        assert f['images'].chunks == (34, 100, 100, 3) and f['images'].shape == (200, 100, 100, 3)
    assert seen == [68, 68, 64]

def test_hdf5_several_labels(table, tmp_path):
    table['label'] = [(), ('red',), ('hat', 'red')]*13 + [('shoe',)]
    res = read(write_hdf5(table, tmp_path/'a.h5', 8))
    assert res['vocab'] == ['hat', 'red', 'shoe'] and res['multi_label']
    assert res['labels'].tolist() == [[0, 0, 0], [0, 1, 0], [1, 1, 0]]*13 + [[0, 0, 1]]

def test_hdf5_many_classes(table, tmp_path):
    "More than an attribute could hold"
    table['label'] = [tuple(f'class {i:05d}' for i in range(k, 40_000, 40)) for k in range(40)]
    assert len(read(write_hdf5(table, tmp_path/'a.h5', 1))['vocab']) == 40_000

def test_hdf5_bad_files(table, photos, tmp_path, caplog):
    table.loc[0, 'error'] = 'empty'
    (photos/table.path[5]).write_bytes(b'no image')
    res = read(write_hdf5(table, tmp_path/'a.h5', 8, presize=8))
    good = [i for i in range(40) if i not in (0, 5)]
    assert res['paths'] == table.path[good].tolist() and len(res['images']) == len(res['labels']) == 38
    assert '1 of 39 images cannot be decoded' in caplog.text and table.path[5] in caplog.text
    assert all(np.array_equal(img, eval_image(photos/o, 8, 8)) for img, o in zip(res['images'], res['paths']))
    for o in table.path: (photos/o).write_bytes(b'no image')
    before = (tmp_path/'a.h5').read_bytes()
    with pytest.raises(DataError, match='none of the 39 images can be decoded'): write_hdf5(table, tmp_path/'a.h5', 8)
    assert (tmp_path/'a.h5').read_bytes() == before

def test_hdf5_whole_or_not_at_all(table, tmp_path, monkeypatch):
    def fails(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(module, 'eval_image', fails)
    with pytest.raises(KeyboardInterrupt): write_hdf5(table, tmp_path/'new'/'a.h5', 8)
    assert not (tmp_path/'new').exists()

@pytest.mark.parametrize('change,kwargs,error,message', [
    (lambda t: t.assign(label=''), {}, DataError, 'without a label'),
    (lambda t: t.assign(error='empty'), {}, DataError, 'no image that can be used'),
    (lambda t: t.drop(columns='label'), {}, DataError, "no column 'label'"),
    (lambda t: t, dict(size=0), ValueError, 'size'), (lambda t: t, dict(presize=4), ValueError, 'presize=4 and size=8'),
    (lambda t: t, dict(compression='zip'), ValueError, '`compression` must be one of'), (lambda t: t, dict(method='pad'), ValueError, '`method` must be one of'),
])
def test_hdf5_refused(table, tmp_path, change, kwargs, error, message):
    changed = change(table)
    changed.attrs = table.attrs
    with pytest.raises(error, match=message): write_hdf5(changed, tmp_path/'a.h5', **dict(size=8) | kwargs)
    assert not (tmp_path/'a.h5').exists()

def test_hdf5_needs_h5py(table, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'h5py', None)
    with pytest.raises(MissingExtraError, match=r'pip install "imgcls\[features\]"'): write_hdf5(table, tmp_path/'a.h5', 8)
