"""Presizing and its cache: the same pictures to the last bit, and a cache that is whole, or not there."""
import errno, json, logging, multiprocessing as mp, os, pickle, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from imgcls.core import DataError, ImgclsError, map_ahead
from imgcls.data import presize as module
from imgcls.data.presize import PresizeCache, cache_bytes, choose_presize, list_caches, presize_cache, remove_cache
from imgcls.data.tables import image_table
from imgcls.images import eval_image, fit_short_side, open_image


def picture(width, height, mode='RGB', seed=0):
    "Smooth colours with some noise, as a photo has them"
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(small) // 2 + rng.integers(0, 128, (height, width, 3))).astype(np.uint8)).convert(mode)

def save(img, path, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    img.save(path, **kwargs)

def turned(orientation):
    exif = Image.Exif(); exif[0x0112] = orientation
    return exif

@pytest.fixture
def photos(tmp_path):
    "A folder with pictures of all kinds"
    res = tmp_path/'photos'
    for i in range(1, 9): save(picture(150, 100, seed=i), res/'a'/f'turned{i}.jpg', exif=turned(i), quality=90)
    for i, (w, h) in enumerate([(64, 64), (1, 1), (31, 47), (400, 20), (3, 200), (403, 301), (1001, 667), (640, 480)]):
        save(picture(w, h, seed=i), res/'b'/f'{w}x{h}.jpg', quality=80)
        save(picture(w, h, seed=i), res/'b'/f'{w}x{h}.png')
    save(picture(90, 70, 'CMYK'), res/'c'/'ink.jpg')
    save(picture(310, 205, 'L'), res/'c'/'grey.jpg')
    save(picture(90, 70, 'P'), res/'c'/'palette.gif')
    save(picture(90, 70, 'RGBA'), res/'c'/'clear.png')
    save(Image.fromarray(np.arange(90*70, dtype=np.uint16).reshape(70, 90)*10), res/'c'/'deep.png')
    save(picture(90, 70), res/'c'/'side.tif', exif=turned(6))
    return res

@pytest.fixture
def table(photos): return image_table(photos, split=None)

@pytest.fixture
def caches(tmp_path): return tmp_path/'caches'

def same(cache, root, size, method='crop', paths=None):
    for path in paths or cache._rows:
        file = Path(root)/path
        assert np.array_equal(eval_image(cache.image(path), size, cache.short_side, method=method), eval_image(file, size, cache.short_side, method=method)), path
        whole = fit_short_side(open_image(file, short_side=cache.short_side), cache.short_side, method=method)
        assert np.array_equal(np.asarray(cache.image(path)), np.asarray(whole)), path


# the same pictures

@pytest.mark.parametrize('method', ['crop', 'squish'])
@pytest.mark.parametrize('size,short_side', [(16, 32), (32, 50), (50, 50), (1, 1), (224, 304)])
def test_same_as_the_files(table, photos, caches, size, short_side, method):
    cache = presize_cache(table, short_side, method=method, folder=caches)
    assert len(cache) == len(table) and cache.failed == {} and (cache.short_side, cache.method) == (short_side, method)
    same(cache, photos, size, method)
    assert cache.nbytes == cache_bytes(table, short_side, method=method) == (cache.folder/'pixels.bin').stat().st_size
    for path in table.path:
        img = cache.image(path)
        assert img.mode == 'RGB' and min(img.size) == short_side and img.info == {}

@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(width=st.integers(1, 400), height=st.integers(1, 400), short_side=st.integers(1, 130), jpeg=st.booleans(), orientation=st.integers(1, 8))
def test_size_is_known_before(tmp_path, width, height, short_side, jpeg, orientation):
    "The bytes that `cache_bytes` promises are those of the picture that is kept, for each shape"
    file = tmp_path/'one.img'
    Image.new('RGB', (width, height)).save(file, format='jpeg' if jpeg else 'png', exif=turned(orientation))
    kept = fit_short_side(open_image(file, short_side=short_side), short_side)
    for sides in (dict(width=[open_image(file).width], height=[open_image(file).height]), dict(width=[np.nan], height=[0]), {}):
        table = pd.DataFrame(dict(path=['one.img'], **sides))
        table.attrs['root'] = str(tmp_path)
        assert cache_bytes(table, short_side) == 3*kept.width*kept.height

def test_sizes_are_read_where_the_table_has_none(photos, caches):
    known, unknown = image_table(photos), image_table(photos, verify=None)
    assert (unknown.width == 0).all() and cache_bytes(unknown, 40) == cache_bytes(known, 40)
    assert presize_cache(unknown, 40, folder=caches).nbytes == cache_bytes(known, 40)

def test_image_is_a_copy(table, caches):
    cache = presize_cache(table, 20, folder=caches)
    img = cache.image(table.path[0])
    before = np.array(img)
    img.putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(cache.image(table.path[0]), before)

def test_strange_names(tmp_path, caches):
    names = ['a/NA.png', 'a/new\nline.png', 'a/quote".png', 'a/ü.png', 'a/u\u0308.png', 'a/ .png', 'b/1,2.png']
    for i, o in enumerate(names): save(picture(9, 9+i, seed=i), tmp_path/'photos'/o)
    table = image_table(tmp_path/'photos', split=None)
    cache = PresizeCache(presize_cache(table, 8, folder=caches).folder)
    assert set(cache._rows) == set(names)
    same(cache, tmp_path/'photos', 8)


# the key

@pytest.fixture
def decoded(monkeypatch):
    "The files that the cache opens, in a list"
    seen = []
    monkeypatch.setattr(module, 'open_image', lambda file, **kwargs: seen.append(Path(file).name) or open_image(file, **kwargs))
    return seen

def test_each_file_is_decoded_once(table, caches, decoded):
    first = presize_cache(table, 20, folder=caches)
    assert sorted(decoded) == sorted(Path(o).name for o in table.path)
    again = presize_cache(table, 20, folder=caches)
    for path in table.path: again.image(path)
    assert len(decoded) == len(table) and again.folder == first.folder

def test_order_labels_and_splits_do_not_count(table, caches, decoded):
    folder = presize_cache(table, 20, folder=caches).folder
    other = table.sample(frac=1, random_state=0).assign(label='x', split='test', person='me')
    assert presize_cache(other, 20, folder=caches).folder == folder
    assert presize_cache(pd.concat([table, table.iloc[:3]]), 20, folder=caches).folder == folder  # an oversampled table
    assert len(decoded) == len(table)

def test_what_counts(table, photos, caches, monkeypatch):
    seen = [presize_cache(table, 20, folder=caches).folder]
    def differs(table, size=20, **kwargs):
        cache = presize_cache(table, size, folder=caches, **kwargs)
        assert cache.folder not in seen
        seen.append(cache.folder)
        same(cache, photos, 10, cache.method)
    differs(table, 21)
    differs(table, method='squish')
    differs(table.iloc[1:])
    file = photos/'b'/'31x47.png'
    save(picture(31, 47, seed=99), file)  # another picture
    differs(table)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    differs(table)
    with open(file, 'ab') as f: f.write(b'more')
    os.utime(file, ns=(0, 5)); differs(table)
    monkeypatch.setattr(module.PIL, '__version__', '0.0')
    differs(table)
    monkeypatch.setattr(module, '_format', 99)
    differs(table)

def test_default_place(table, tmp_path, monkeypatch):
    monkeypatch.setenv('IMGCLS_CACHE', str(tmp_path/'mine'))
    cache = presize_cache(table, 20)
    assert cache.folder.parent == tmp_path/'mine'/'presized' and cache.folder.name.startswith('photos-20-')
    assert list_caches().name.tolist() == [cache.folder.name] and remove_cache('all') > cache.nbytes and len(list_caches()) == 0


# files that fail

def test_a_bad_file_is_named_and_left_out(table, photos, caches, caplog):
    (photos/'b'/'31x47.jpg').write_bytes((photos/'b'/'31x47.jpg').read_bytes()[:200])
    (photos/'b'/'64x64.png').unlink()
    cache = presize_cache(table, 20, folder=caches)
    bad = {'b/31x47.jpg', 'b/64x64.png'}
    assert set(cache.failed) == bad and len(cache) == len(table) - 2 and not any(o in cache for o in bad)
    assert cache.failed['b/64x64.png'] == 'missing' and cache.failed['b/31x47.jpg'].startswith('truncated')
    assert all(o in caplog.text for o in bad) and '2 of 30 images' in caplog.text
    same(cache, photos, 16)
    with pytest.raises(DataError, match=r'`b/64x64.png` is not in the presized cache: it could not be decoded \(missing\)'): cache.image('b/64x64.png')
    with pytest.raises(DataError, match='had no such row'): cache.image('b/nothing.png')
    save(picture(64, 64), photos/'b'/'64x64.png')  # it comes back, and the next cache has it
    assert 'b/64x64.png' in presize_cache(table, 20, folder=caches)

def test_set_aside_rows_are_not_decoded(table, caches, decoded):
    table.loc[3, 'error'] = 'left out: blurred'
    assert table.path[3] not in presize_cache(table, 20, folder=caches) and len(decoded) == len(table) - 1

def test_nothing_to_keep(table, photos, caches):
    for o in table.path: (photos/o).write_bytes(b'no image')
    with pytest.raises(DataError, match='none of the 30 images .* can be decoded: not an image'): presize_cache(table, 20, folder=caches)
    assert not caches.exists()

@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError('a bug'), OSError(errno.EIO, 'input/output error')])
def test_interrupted(table, caches, monkeypatch, error):
    calls = []
    def fails(img, *args, **kwargs):
        calls.append(1)
        if len(calls) == 20: raise error
        return fit_short_side(img, *args, **kwargs)
    monkeypatch.setattr(module, 'fit_short_side', fails)
    with pytest.raises(error if isinstance(error, type) else type(error)): presize_cache(table, 20, folder=caches)
    assert not caches.exists()

def test_a_file_changes_meanwhile(table, photos, caches, monkeypatch):
    def changes(img, *args, **kwargs):
        (photos/'b'/'1x1.png').touch()
        return fit_short_side(img, *args, **kwargs)
    monkeypatch.setattr(module, 'fit_short_side', changes)
    os.utime(photos/'b'/'1x1.png', ns=(0, 0))
    with pytest.raises(DataError, match='have changed while they were being read'): presize_cache(table, 20, folder=caches, workers=1)
    assert not caches.exists()


# the disk

def test_no_room(table, caches, monkeypatch, decoded):
    need = cache_bytes(table, 100)
    monkeypatch.setattr(module.shutil, 'disk_usage', lambda path: SimpleNamespace(free=need))
    with pytest.raises(ImgclsError, match=f"presized cache of {need/1e6:,.1f} MB doesn't fit on the disk of .* has {need/1e6:,.1f} MB left. Make room"):
        presize_cache(table, 100, folder=caches)
    assert decoded == [] and not caches.exists()

def test_no_room_after_all(table, caches, monkeypatch):
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(module, '_fill', full)
    with pytest.raises(ImgclsError, match="doesn't fit on the disk") as e: presize_cache(table, 100, folder=caches)
    assert isinstance(e.value.__cause__, OSError) and not caches.exists()

def test_size_is_said_before(table, caches, caplog):
    caplog.set_level(logging.INFO, 'imgcls')
    presize_cache(table, 20, folder=caches)
    assert f'30 images, short side 20, {cache_bytes(table, 20)/1e6:.1f} MB' in caplog.text
    presize_cache(table, 20, folder=caches)
    assert 'opened PresizeCache: 30 images' in caplog.text


# damage

def edit(path, **change): path.write_text(json.dumps(json.loads(path.read_text()) | change))

damages = {
    'cut off': lambda o: (o/'pixels.bin').write_bytes((o/'pixels.bin').read_bytes()[:-1]),
    'too long': lambda o: (o/'pixels.bin').write_bytes((o/'pixels.bin').read_bytes() + b'0'),
    'no pixels': lambda o: (o/'pixels.bin').unlink(),
    'no index': lambda o: (o/'index.json').unlink(),
    'half an index': lambda o: (o/'index.json').write_text((o/'index.json').read_text()[:100]),
    'another index': lambda o: edit(o/'index.json', heights=[20]*30),
    'a shorter index': lambda o: edit(o/'index.json', heights=[20]),
    'an empty index': lambda o: (o/'index.json').write_text('{}'),
    'half of the settings': lambda o: (o/'about.json').write_text('{"form'),
    'no settings': lambda o: (o/'about.json').unlink(),
    'another version': lambda o: edit(o/'about.json', format=0),
    'a list': lambda o: (o/'about.json').write_text('[]')}

@pytest.mark.parametrize('damage', damages.values(), ids=damages)
def test_damaged(table, photos, caches, caplog, damage):
    folder = presize_cache(table, 20, folder=caches).folder
    damage(folder)
    with pytest.raises(DataError, match=str(folder)): PresizeCache(folder)
    cache = presize_cache(table, 20, folder=caches)
    assert 'This is done now' in caplog.text and cache.folder == folder
    same(cache, photos, 16)

@pytest.mark.parametrize('damage', [damages['cut off'], damages['no settings'], damages['half of the settings']])
def test_damaged_ones_are_listed_and_removed(table, caches, damage):
    folder = presize_cache(table, 20, folder=caches).folder
    damage(folder)
    assert list_caches(folder=caches).error[0] and remove_cache(folder.name, folder=caches) and not folder.exists()


# processes

def read_all(cache, paths): return [np.asarray(cache.image(o)).sum() for o in paths]

@pytest.mark.parametrize('start', [o for o in ('fork', 'spawn') if o in mp.get_all_start_methods()])
@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_other_processes(table, caches, start):
    fresh = presize_cache(table, 20, folder=caches)
    opened = PresizeCache(fresh.folder)
    expected = read_all(opened, table.path)
    assert fresh._pixels is None and opened._pixels is not None
    with mp.get_context(start).Pool(2) as pool:
        assert pool.starmap(read_all, [(o, table.path.tolist()) for o in (fresh, opened, fresh, opened)]) == [expected]*4

def test_pickle_holds_the_name_alone(table, caches):
    cache = presize_cache(table, 20, folder=caches)
    cache.image(table.path[0])
    again = pickle.loads(pickle.dumps(cache))  # noqa: S301, made in the line itself
    assert len(pickle.dumps(cache)) < 500 and again._pixels is None and read_all(again, table.path) == read_all(cache, table.path)

def test_threads(table, caches):
    cache = presize_cache(table, 20, folder=caches)
    expected = read_all(cache, table.path)
    again = PresizeCache(cache.folder)
    with ThreadPoolExecutor(8) as pool: assert list(pool.map(lambda _: read_all(again, table.path), range(20))) == [expected]*20

def make_at_once(barrier, queue, table, caches):
    barrier.wait()
    cache = presize_cache(table, 64, folder=caches)
    queue.put((cache.folder.name, read_all(cache, table.path)))

@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_several_at_once(table, photos, caches):
    "Three make it, one is first, all can read, and nothing else is left"
    context = mp.get_context('fork' if 'fork' in mp.get_all_start_methods() else 'spawn')
    barrier, queue = context.Barrier(3), context.Queue()
    processes = [context.Process(target=make_at_once, args=(barrier, queue, table, caches)) for _ in range(3)]
    for o in processes: o.start()
    res = [queue.get(timeout=60) for _ in processes]
    for o in processes: o.join()
    assert res[0] == res[1] == res[2] and [o.name for o in caches.iterdir()] == [res[0][0]]
    same(presize_cache(table, 64, folder=caches), photos, 50)

def test_the_second_drops_its_own(table, photos, caches, monkeypatch):
    "One process has made the cache while the other was at it"
    fill, made = module._fill, []
    def slow(*args, **kwargs):
        monkeypatch.setattr(module, '_fill', fill)
        made.append(presize_cache(table, 20, folder=caches).folder)
        fill(*args, **kwargs)
    monkeypatch.setattr(module, '_fill', slow)
    assert presize_cache(table, 20, folder=caches).folder == made[0] and [o.name for o in caches.iterdir()] == [made[0].name]

def test_in_order():
    "Results come in order, and the threads run ahead by a few items only"
    started = []
    res = map_ahead(lambda i: started.append(i) or i*i, range(500), 16, threads=2)
    assert next(res) == 0
    time.sleep(.05)
    assert len(started) <= 18
    assert list(res) == [i*i for i in range(1, 500)] and sorted(started) == list(range(500))


# the list, and removing

def test_list(table, caches):
    assert list_caches(folder=caches).empty and 'megabytes' in list_caches(folder=caches)
    made = [presize_cache(table, o, folder=caches) for o in (20, 30)]
    res = list_caches(folder=caches)
    assert sorted(res.name) == sorted(o.folder.name for o in made) and sorted(res.short_side) == [20, 30] and (res.images == 30).all()
    assert (res.root == os.path.realpath(table.attrs['root'])).all() and (res.error == '').all()

@pytest.mark.parametrize('which', [lambda o: o, lambda o: o.folder, lambda o: str(o.folder), lambda o: o.folder.name, lambda o: 'all'])
def test_remove(table, photos, caches, which):
    cache = presize_cache(table, 20, folder=caches)
    cache.image(table.path[0])
    size = sum(o.stat().st_size for o in cache.folder.iterdir())
    assert remove_cache(which(cache), folder=caches) == size and list(caches.iterdir()) == [] and len(list(photos.rglob('*.*'))) == 30

def test_only_caches_are_removed(table, photos, caches, tmp_path):
    cache = presize_cache(table, 20, folder=caches)
    (caches/'notes').mkdir(); (caches/'notes'/'index.json').write_text('{}')
    (caches/'.mine.tmp').mkdir()
    (caches/'mine-20-0123456789abcdef').mkdir(); (caches/'mine-20-0123456789abcdef'/'diary.txt').touch()
    os.symlink(cache.folder, caches/'link-20-0123456789abcdef')
    for o in (photos, str(photos), tmp_path, caches, 'notes', '.mine.tmp', 'mine-20-0123456789abcdef', 'link-20-0123456789abcdef', 'nothing', '', '.'):
        with pytest.raises(DataError, match='there is no presized cache'): remove_cache(o, folder=caches)
    remove_cache('all', folder=caches)
    assert sorted(o.name for o in caches.iterdir()) == ['.mine.tmp', 'link-20-0123456789abcdef', 'mine-20-0123456789abcdef', 'notes'] and len(list(photos.rglob('*.*'))) == 30

def test_unfinished(table, caches):
    "What a killed process left is listed; 'all' spares it for an hour, its name removes it"
    cache = presize_cache(table, 20, folder=caches)
    left = caches/f'.{cache.folder.name[:40]}.0123456789.tmp'
    cache.folder.rename(left)
    (left/'about.json').rename(left/'.about.json.0123456789.tmp')
    assert list_caches(folder=caches).error[0].startswith('unfinished')
    assert remove_cache('all', folder=caches) == 0 and left.exists()
    for o in (*left.iterdir(), left): os.utime(o, (time.time() - 4000,)*2)
    assert remove_cache('all', folder=caches) > 0 and not left.exists()

def test_gone_while_open(table, caches):
    cache = presize_cache(table, 20, folder=caches)
    cache.image(table.path[0])
    again = PresizeCache(cache.folder)
    remove_cache(again)
    with pytest.raises(DataError, match="can't read the presized cache .* any more: No such file"): again.image(table.path[0])


# arguments

@pytest.mark.parametrize('size', [0, -1, 1.5, '20', True, None])
def test_bad_sizes(table, caches, size):
    for f in (lambda: presize_cache(table, size, folder=caches), lambda: cache_bytes(table, size), lambda: choose_presize(size)):
        with pytest.raises(ValueError, match='`size` must be a whole number of pixels, at least 1, got'): f()
    assert not caches.exists()

def test_numpy_sizes(table, caches):
    assert presize_cache(table, np.int64(20), folder=caches).short_side == 20 and choose_presize(np.int64(32)) == 48

def test_a_table_without_its_folder(table, caches):
    table.attrs.clear()
    with pytest.raises(DataError, match="doesn't know its folder"): presize_cache(table, 20, folder=caches)
