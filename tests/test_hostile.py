"""Bundles that somebody made on purpose, or that went wrong: none runs code, ends the process, or takes more time or memory than it should.

Each is written to the disk and loaded in a child process, many to a child, whose memory is bounded; an audit hook notes unpickling, other processes, sockets and
files that are opened for writing. It must be refused with an error of ours, or answer with finite numbers. A tenth of them, or all with IMGCLS_FULL=1.
"""
import copy, hashlib, io, json, os, pickle, random, shutil, stat, struct, subprocess, sys, warnings, zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

root = Path(__file__).resolve().parent.parent
full = bool(os.environ.get('IMGCLS_FULL'))
plain = root/'tests/bundles/schema_2'
DESCRIPTION, WEIGHTS = (plain/'classifier.json').read_bytes(), (plain/'model.safetensors').read_bytes()
ABOUT = json.loads(DESCRIPTION)
windows = os.name == 'nt'


# --- Making them -----------------------------------------------------------------------------------------------------
def sha(data): return hashlib.sha256(data).hexdigest()


def put(folder, description=None, weights=WEIGHTS, **files):
    "A folder with these files; what is None is left out. A description that is a dictionary gets the hash of the weights"
    folder.mkdir()
    if isinstance(description, dict): description = json.dumps(description | ({'sha256': sha(weights)} if 'sha256' in description and weights is not None else {})).encode()
    for name, data in {'classifier.json': DESCRIPTION if description is None else description, 'model.safetensors': weights, **{k.replace('_', '.'): v for k, v in files.items()}}.items():
        if data is not None: (folder/name).write_bytes(data)
    return folder


def with_fields(**fields): return lambda path: put(path, ABOUT | fields)


def without(*names): return lambda path: put(path, {k: v for k, v in ABOUT.items() if k not in names})


def with_model(**fields): return lambda path: put(path, ABOUT | dict(model={k: v for k, v in (ABOUT['model'] | fields).items() if v != 'gone'}))


def with_options(**options): return with_model(classic=dict(size=8, channels=3, options=ABOUT['model']['classic']['options'] | options))


def with_text(text): return lambda path: put(path, text.encode(errors='surrogatepass') if isinstance(text, str) else text)


def with_weights(weights): return lambda path: put(path, ABOUT, weights)


def header(weights=WEIGHTS):
    n = int.from_bytes(weights[:8], 'little')
    return json.loads(weights[8:8 + n]), weights[8 + n:]


def from_header(about, data, size=None):
    text = about if isinstance(about, bytes) else json.dumps(about).encode()
    return (len(text) if size is None else size).to_bytes(8, 'little') + text + data


def with_header(change, data=None):
    about, rest = header()
    about = change(about) or about
    return with_weights(from_header(about, rest if data is None else data))


def tensor(**fields):
    "The header with other fields of its first tensor"
    def change(about):
        name = next(k for k in about if k != '__metadata__')
        about[name] = about[name] | fields
    return with_header(change)


def with_state(change):
    state = load(WEIGHTS)
    return with_weights(save(change(state) or state))


def with_arch(arch, *, weights=WEIGHTS, **fields):
    "Another architecture than the weights are of"
    model = {k: v for k, v in ABOUT['model'].items() if k != 'classic'} | dict(arch=arch, hidden=[], pool='avg') | fields
    return lambda path: put(path, {k: v for k, v in ABOUT.items() if k not in ('refusal', 'foreign')} | dict(model=model, size=64, presize=64), weights)


class Trap:
    "A pickle that leaves a trace if it is read as one"
    def __reduce__(self): return os.mkdir, (os.environ.get('TRAP', 'trap'),)


def pickles():
    data, file = pickle.dumps(Trap()), io.BytesIO()
    torch.save(Trap(), file)
    array = io.BytesIO()
    np.save(array, np.array([Trap()], dtype=object), allow_pickle=True)
    protocols = {f'protocol {i}': pickle.dumps(Trap(), protocol=i) for i in range(6)}
    return protocols | {'torch.save': file.getvalue(), 'npy': array.getvalue(), 'behind a header': from_header({}, data)}


# --- Zips ------------------------------------------------------------------------------------------------------------
FILES = {'classifier.json': DESCRIPTION, 'model.safetensors': WEIGHTS}


def zipped(files=None, *, kind=zipfile.ZIP_STORED, more=(), comment=b''):
    "The bytes of a zip; `more` are pairs of a ZipInfo or a name and data"
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', kind) as z:
        for name, data in [*(FILES if files is None else files).items(), *more]:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # that a name is there already
                z.writestr(name, data)
        z.comment = comment
    return out.getvalue()


def with_zip(data):
    "A zip, or what makes one once it is needed"
    def make(path):
        path = path.with_suffix('.zip')
        path.write_bytes(data() if callable(data) else data)
        return path
    return make


def member(name, **fields):
    info = zipfile.ZipInfo('x')
    info.filename = info.orig_filename = name
    for k, v in fields.items(): setattr(info, k, v)
    return info


def patched(data, old, new, *, times=-1):
    assert old in data
    return data.replace(old, new, times)


def central(data, name, at, value, size=4):
    "The zip with another number at a place of the central directory's entry for `name`"
    i = data.rindex(b'PK\1\2', 0, data.rindex(name.encode()))
    return data[:i + at] + value.to_bytes(size, 'little') + data[i + at + size:]


def bomb(size, name='model.safetensors'):
    return zipped({k: v for k, v in FILES.items() if k != name} | {name: (ABOUT and b'\0')*size}, kind=zipfile.ZIP_DEFLATED)


def end(data, at, value, size=2): return data[:len(data) - 22 + at] + value.to_bytes(size, 'little') + data[len(data) - 22 + at + size:]


def zips():
    good, odd = zipped(), zipped(kind=zipfile.ZIP_DEFLATED)
    yield 'whole', good
    yield 'deflated', odd
    for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA): yield f'packed by {kind}', zipped(kind=kind)
    for name in ('../x', '../../etc/passwd', '/etc/passwd', 'a/../../x', '..', '..\\x', 'C:\\x', 'a\\b', 'c:x', '\\\\server\\x', 'a\0b', 'classifier.json\0.txt', 'model.safetensors\0'):
        yield f'name {name!r}', zipped(more=[(member(name), b'x')])
    for name in FILES:
        yield f'{name} twice', zipped(more=[(name, b'{}')])
        yield f'{name} twice, other first', zipped({}, more=[(name, b'{}'), *FILES.items()])
        yield f'{name} as ./', zipped({k: v for k, v in FILES.items() if k != name}, more=[(f'./{name}', FILES[name])])
        yield f'{name} in a folder', zipped({k: v for k, v in FILES.items() if k != name}, more=[(f'model/{name}', FILES[name])])
        yield f'{name} in capitals', zipped({k: v for k, v in FILES.items() if k != name}, more=[(name.upper(), FILES[name])])
        yield f'{name} missing', zipped({k: v for k, v in FILES.items() if k != name})
        yield f'{name} as a folder', zipped({k: v for k, v in FILES.items() if k != name}, more=[(member(f'{name}/'), b'')])
        for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR):
            yield f'{name} of kind {kind:o}', zipped({k: v for k, v in FILES.items() if k != name}, more=[(member(name, external_attr=(kind | 0o777) << 16, create_system=3), b'/etc/passwd')])
        yield f'{name} encrypted', central(good, name, 8, 1, 2)
        yield f'{name} strongly encrypted', central(good, name, 8, 0x41, 2)
        yield f'{name} with a wrong sum', central(good, name, 16, 1)
        for size in (0, 1, 10, 10**6, 2**31, 2**32 - 2):
            yield f'{name} said to have {size} bytes', central(good, name, 24, size)
            yield f'{name} said to have {size} bytes packed', central(odd, name, 20, size)
        yield f'{name} said to be both {2**31}', central(central(good, name, 24, 2**31), name, 20, 2**31)
        yield f'{name} elsewhere', central(good, name, 42, 2**32 - 2)
        yield f'{name} at the other', central(good, name, 42, 0 if name != 'classifier.json' else good.index(b'PK\3\4', 4))
        yield f'{name} deflated by name only', central(good, name, 10, 8, 2)
        yield f'{name} stored by name only', central(odd, name, 10, 0, 2)
        yield f'{name} on another disk', central(good, name, 34, 7, 2)
    for size in (2**20, 2**24, 2**26, 2**28): yield f'bomb of {size}', lambda size=size: bomb(size)
    for size in (2**20, 2**25): yield f'bomb of a description of {size}', lambda size=size: bomb(size, 'classifier.json')
    yield 'bomb in another file', lambda: zipped(more=[('x', b'\0'*2**28)], kind=zipfile.ZIP_DEFLATED)
    yield 'bomb in a bomb', lambda: zipped({k: zipped({'x': bytes(2**26)}, kind=zipfile.ZIP_DEFLATED) if k != 'classifier.json' else v for k, v in FILES.items()}, kind=zipfile.ZIP_DEFLATED)
    yield '100 files', zipped(more=[(f'{i}', b'') for i in range(100)])
    yield '20,000 files', zipped(more=[(f'{i}', b'') for i in range(20_000)])
    yield 'a comment', zipped(comment=b'hello')
    yield 'two zips', good + odd
    yield 'something in front', b'#!/bin/sh\n' + good
    yield 'something behind', good + b'x'*30
    for at, size in ((4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)):
        for value in (0, 1, 2**(8*size) - 1): yield f'end at {at}: {value}', end(good, at, value, size)
    far = struct.pack('<4sQ2H2L4Q', b'PK\6\6', 44, 45, 45, 0, 0, 2**40, 2**40, 2**50, 0) + struct.pack('<4sLQL', b'PK\6\7', 0, len(good) - 22, 1)
    yield 'a second end', good[:-22] + far + good[-22:]
    yield 'a second end elsewhere', good[:-22] + b'x'*56 + far[56:] + good[-22:]
    for i, (name, data) in enumerate(pickles().items()):
        if i > 3: yield f'pickle as zip: {name}', data
    for i in range(20): yield f'cut at {i*5} %', good[:len(good)*i//20]
    yield 'cut by one byte', good[:-1]


# --- Folders ---------------------------------------------------------------------------------------------------------
def linked(name, target):
    def make(path):
        put(path, **({'weights': None} if name == 'model.safetensors' else {}))
        (path/name).unlink(missing_ok=True)
        target(path/name) if callable(target) else (path/name).symlink_to(target)
        return path
    return make


def sparse(name, size):
    def make(path):
        put(path)
        with open(path/name, 'r+b') as f: f.truncate(size)
        return path
    return make


def links():
    for name in FILES:
        for target in ('/etc/passwd', '/dev/zero', '/dev/stdin', '/dev/urandom', '/dev/null', '../../secret', name, '/proc/self/environ', '/nowhere', '.', plain/name): yield f'{name} -> {target}', linked(name, target)
        yield f'{name} as a pipe', linked(name, os.mkfifo)
        yield f'{name} as a folder', linked(name, os.mkdir)
        for size in (0, 1, 2**32 - 1, 2**34, 2**42): yield f'{name} of {size} bytes', sparse(name, size)


# --- Fields ----------------------------------------------------------------------------------------------------------
VALUES = {'null': None, 'true': True, 'text': 'x', 'empty text': '', 'list': [], 'object': {}, 'minus': -1, 'huge': 10**30, 'fraction': 0.5, 'nan': float('nan'), 'infinite': float('inf'), 'nested': [[[[]]]], 'nul': '\0',
          'long': 'x'*10**6, 'digits': 10**4000}


def fields():
    for name in ABOUT:
        yield f'without {name}', without(name)
        for kind in VALUES: yield f'{name}: {kind}', with_fields(**{name: VALUES[kind]})
    for name in ABOUT['model']:
        yield f'without model.{name}', with_model(**{name: 'gone'})
        for kind in VALUES: yield f'model.{name}: {kind}', with_model(**{name: VALUES[kind]})
    for name in ('refusal', 'foreign'):
        for field in ABOUT[name]:
            for kind in ('null', 'text', 'huge', 'nan', 'object'): yield f'{name}.{field}: {kind}', with_fields(**{name: ABOUT[name] | {field: VALUES[kind]}})
    for name in ABOUT['model']['classic']['options']:
        for kind in VALUES: yield f'option {name}: {kind}', with_options(**{name: VALUES[kind]})
    for options in (dict(hidden=[16384]*90), dict(hidden=[4]*90), dict(hidden=[0]), dict(hidden='abc'), dict(n_classes=3), dict(name='mlp'), dict(self=1), dict(activation='__class__'), {'': 1}): yield f'options {options}'[:60], with_options(**options)
    big = [str(i) for i in range(10**5)]
    yield 'a hundred thousand classes', with_fields(vocab=big, model=ABOUT['model'] | dict(n_classes=10**5))
    yield 'a million classes', with_fields(vocab=[str(i) for i in range(10**6)], model=ABOUT['model'] | dict(n_classes=10**6))
    yield 'a hundred thousand classes of a backbone', lambda path: with_arch('embedded/efficientnet_lite0', n_classes=10**5)(path) and put(path.with_name(path.name + 'b'), json.loads((path/'classifier.json').read_text()) | dict(vocab=big))
    for name in ('\ud800', 'a\0b', '\x1b[2J', '\u202e', 'x'*1001): yield f'a class {name[:5]!r}', with_fields(vocab=['ant', 'bee', name])
    for size in (9, 224, 4096): yield f'size {size}', with_fields(size=size, presize=size)
    yield 'presize 4096', with_fields(presize=4096)
    yield 'all fields are null', with_fields(**dict.fromkeys(ABOUT))
    yield 'several labels', lambda path: put(path, {k: v for k, v in ABOUT.items() if k not in ('refusal', 'foreign')} | dict(multi_label=True, threshold=0.2))
    for hash_ in ('0'*64, 'x'*64, '', 'F'*64): yield f'hash {hash_[:3]}', lambda path, h=hash_: put(path, json.dumps(ABOUT | dict(sha256=h)).encode())


def texts():
    text = DESCRIPTION.decode()
    found = {'empty': '', 'a brace': '{', 'null': 'null', 'a list': '[]', 'a number': '7', 'brackets': '['*10**5, 'pairs of brackets': '['*10**5 + ']'*10**5, 'braces': '{"a":'*10**5, 'deep': '['*500 + ']'*500, 'lists': '[' + '[],'*10**6 + '[]]',
             'commas': '[' + '1,'*5*10**6 + '1]', '1e400': text.replace('1.5', '1e400'), '-1e400': text.replace('1.5', '-1e400'), 'digits': text.replace('1.5', '1'*5000), 'many digits': text.replace('1.5', '1'*10**6), 'a long fraction': text.replace('1.5', '1.' + '5'*10**6),
             'two schemas': text.replace('{', '{"schema": 7, ', 1), 'two hashes': text[:-3] + ', "sha256": "' + '0'*64 + '"}', 'utf-16': text.encode('utf-16'), 'utf-32': text.encode('utf-32'), 'mark': b'\xef\xbb\xbf' + DESCRIPTION, 'latin': b'\xff\xfe',
             'overlong': DESCRIPTION.replace(b'ant', b'\xc0\xaf'), 'surrogate': DESCRIPTION.replace(b'ant', b'\xed\xa0\x80'), 'a comment': text + '// x', 'nul': text.replace('ant', 'a\0nt'), 'zeros': b'\0'*1000, 'spaces': text + ' '*10**7,
             'too many spaces': text + ' '*2**25, 'an object as name': text.replace('"schema"', '{}', 1), 'NaN': text.replace('"metrics": []', '"metrics": [{"value": NaN}]'), 'null metric': text.replace('"metrics": []', '"metrics": [{"value": null}]'),
             '__proto__': text.replace('{', '{"__proto__": {"x": 1}, "__class__": "os.system", ', 1)}
    for name, o in found.items(): yield f'text: {name}', with_text(o)
    for i in range(1, 20): yield f'text cut at {i*5} %', with_text(DESCRIPTION[:len(DESCRIPTION)*i//20])
    for name, data in pickles().items():
        yield f'pickle as description: {name}', with_text(data)
        yield f'pickle as weights: {name}', with_weights(data)


# --- Weights and architectures ---------------------------------------------------------------------------------------
def weights():
    about, data = header()
    first = next(k for k in about if k != '__metadata__')
    n = about[first]['data_offsets'][1]
    for i in range(20): yield f'weights cut at {i*5} %', with_weights(WEIGHTS[:len(WEIGHTS)*i//20])
    yield 'weights with a byte more', with_weights(WEIGHTS + b'\0')
    for size in (0, 1, 7, 100, 2**20, 2**31, 2**32, 2**62, 2**63, 2**64 - 1): yield f'a header of {size}', with_weights(size.to_bytes(8, 'little') + WEIGHTS[8:])
    for shape in ([], [0], [-1], [1], [2**62], [2**63], [2**64], [2**32, 2**32], [1]*1000, [n//4, 1], [1.5], ['1'], [True], None, 'x', [[4]], [10**4000]): yield f'shape {str(shape)[:30]}', tensor(shape=shape)
    for place in ([0, 0], [0, -n], [-n, 0], [n, 0], [4, n + 4], [0, 2**62], [2**63, 2**63 + n], [1, n + 1], [0.0, n], [0], [0, n, n], None, 'x', [0, n - 1], ['0', str(n)], [True, n], [10**4000, 10**4000 + n]): yield f'place {str(place)[:30]}', tensor(data_offsets=place)
    for kind in ('F64', 'F16', 'BF16', 'F8_E4M3', 'I32', 'U64', 'BOOL', 'f32', '', None, 3, [], 'C64', 'object', 'O'): yield f'type {kind!r}', tensor(dtype=kind)
    for name in ('', '\0', '../x', 'x'*10**5, '__metadata__', '__class__', '0', '1.0.weight\0'):
        yield f'name {name[:20]!r}', with_header(lambda o, name=name: o | {name: o.pop(first)})
    yield 'overlapping tensors', with_header(lambda o: o | {k: dict(v, data_offsets=[0, v['data_offsets'][1] - v['data_offsets'][0]]) for k, v in o.items() if k != '__metadata__'})
    yield 'a tensor twice', with_weights(from_header(json.dumps(about).encode()[:-1] + b', "x": {}, "x": {}}', data))
    yield 'a gap', with_header(lambda o: None, bytes(8) + data)
    yield 'a field more', tensor(code='import os')
    yield 'metadata as a number', with_header(lambda o: o | {'__metadata__': 3})
    yield 'much metadata', with_header(lambda o: o | {'__metadata__': {str(i): 'x' for i in range(10**5)}})
    yield 'a hundred thousand tensors', with_weights(from_header({str(i): dict(dtype='F32', shape=[0], data_offsets=[0, 0]) for i in range(10**5)}, b''))
    yield 'header of brackets', with_weights(from_header(b'['*10**5, b''))
    yield 'header of 5 MB', with_weights(from_header(json.dumps(about).encode() + b' '*5*2**20, data))
    for text in (b'', b'{', b'[]', b'null', b'7', b'{"a": 1}', b'{"a": {}}', b'\xff', b'{"a": [], "a": []}', b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 1e400]}}'): yield f'header {text[:10]}', with_weights(from_header(text, data))
    for value in (float('nan'), float('inf'), -float('inf'), 3e38, -3e38, 1e30, 1e20):
        for i in range(2): yield f'weight {i} is {value}', with_state(lambda o, i=i, v=value: o[sorted(o)[i]].view(-1).__setitem__(0, v))
        yield f'all weights are {value}', with_state(lambda o, v=value: {k: torch.full_like(t, v) for k, t in o.items()})
    yield 'all weights are 0', with_state(lambda o: {k: torch.zeros_like(t) for k, t in o.items()})
    yield 'no weights', with_state(lambda o: {'x': torch.zeros(1)})
    yield 'a tensor too many', with_state(lambda o: o | {'x': torch.zeros(1)})
    yield 'a tensor too few', with_state(lambda o: o.pop(next(iter(o))) is None)
    for kind in (torch.float16, torch.float64, torch.int32, torch.bfloat16, torch.uint8): yield f'all in {kind}', with_state(lambda o, kind=kind: {k: v.to(kind) for k, v in o.items()})
    yield 'turned', with_state(lambda o: {k: v.t().contiguous() for k, v in o.items()})


def architectures():
    for arch in ('timm/vit_7b_patch16_dinov3', 'timm/eva02_enormous_patch14_clip_224', 'timm/tf_efficientnet_l2', 'timm/vit_gigantic_patch14_224', 'timm/tiny_vit_21m_512', 'timm/mvitv2_huge_cls', 'torchvision/regnet_y_128gf', 'torchvision/vgg19', 'torchvision/vit_h_14', 'embedded/efficientnet_lite0', 'timm/resnet18',
                 'timm/resnet18.no_tag', 'timm/resnet18.a:b', 'timm/hf_hub:x/y', 'timm/hf-hub:timm/resnet18', 'hf_hub:timm/resnet18', 'timm/local-dir:/etc', 'timm/resnet18.local-dir:/etc', 'local-dir:/tmp', 'https://example.org/x', 'timm/../x', 'timm/', '/', 'timm', '../../etc/passwd', 'torchvision/get_model',
                 'torchvision/list_models', 'torchvision/inception_v3', 'classic/lenet', 'classic/mlp', 'os.system', '__import__("os").system("x")', 'embedded/tf_efficientnet_lite0', 'timm/RESNET18', 'timm/resnet18\0', 'x'*200, 'timm/' + 'x'*190, '\ud800', None):
        yield f'architecture {str(arch)[:40]!r}', with_arch(arch)
    for fields in (dict(hidden=[16384]*8), dict(hidden=[10**9]), dict(pool='flatten', size=4096), dict(pool='flatten'), dict(head='vectors'), dict(batch_norm=False), dict(dropout=0.999)): yield f'a backbone with {fields}', with_arch('embedded/efficientnet_lite0', **fields)
    row = {f'1.{i}.weight': torch.zeros(16384, 1) for i in range(8)} | {'1.9.weight': torch.zeros(3, 1)}
    yield 'a head that is said to be small', with_arch('embedded/efficientnet_lite0', weights=save(row), hidden=[16384]*8)


def estimators(tmp):
    "Bundles with an estimator of scikit-learn, in which its file was changed"
    import skops.io as sio
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC
    rng = np.random.default_rng(0)
    state = {k: v for k, v in load(WEIGHTS).items() if not k.startswith('1.')}
    width = next(iter(v for k, v in state.items() if k.endswith('weight'))).shape[0]
    x, y, weights = rng.normal(size=(30, width)), np.repeat([0, 1, 2], 10), save(state)
    about = {k: v for k, v in ABOUT.items() if k != 'foreign'} | dict(model=ABOUT['model'] | dict(head='vectors', hidden=[], pool='avg'))
    def with_file(data): return lambda path: put(path, about | dict(estimator=dict(sha256=sha(data))), weights, estimator_skops=data)
    def changed(made, **fields):
        made = copy.deepcopy(made)
        for k, v in fields.items(): setattr(made, k, v)
        return with_file(sio.dumps(made))
    machine = SVC(break_ties=True).fit(x, y)
    good = sio.dumps(machine)
    for made in (machine, GaussianNB().fit(x, y), *(KNeighborsClassifier(algorithm=o).fit(x, y) for o in ('brute', 'kd_tree', 'ball_tree'))): yield f'estimator {made}', with_file(sio.dumps(made))
    l = len(machine.support_)
    for name, o in dict(negative=[-10**6, 10**6 + l, 0], moved=[-5, 5 + l, 0], too_many=[l, l, l], wide=[l, 0, 0, 0], short=[l]).items(): yield f'machine: n_support {name}', changed(machine, _n_support=np.array(o, np.int32))
    for name, o in dict(_dual_coef_=machine._dual_coef_[:, :1], _intercept_=machine._intercept_[:0], support_=machine.support_[:1], support_vectors_=machine.support_vectors_[:, :1], _probA=np.zeros(1), classes_=np.arange(10**5), _gamma=float('nan'), kernel='precomputed', _sparse=True,
                        n_features_in_=2**26, shape_fit_=(1, 1), _impl='one_class', decision_function_shape='x', break_ties=None).items(): yield f'machine: {name}', changed(machine, **{name: o})
    yield 'machine: nan', changed(machine, _intercept_=machine._intercept_*np.nan, intercept_=machine.intercept_*np.nan)
    for name, data in pickles().items(): yield f'pickle as estimator: {name}', with_file(data)
    for i in range(10): yield f'estimator cut at {i*10} %', with_file(good[:len(good)*i//10])
    schema = json.loads(zipfile.ZipFile(io.BytesIO(good)).read('schema.json'))
    def rebuilt(schema, kind=zipfile.ZIP_STORED, **more):
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(out, 'w', kind) as new:
            for o in old.namelist(): new.writestr(o, more.pop(o, json.dumps(schema) if o == 'schema.json' else old.read(o)))
            for k, v in more.items(): new.writestr(k, v)
        return with_file(out.getvalue())
    for module, cls in (('os', 'system'), ('builtins', 'eval'), ('builtins', 'exec'), ('subprocess', 'Popen'), ('pickle', 'loads'), ('posix', 'system'), ('numpy', 'load'), ('imgcls.core', 'atomic_file'), ('no_such_module', 'X'), ('sklearn.svm', 'NoSuch'), ('', '')):
        for loader in (schema['__loader__'], 'TypeNode', 'FunctionNode', 'MethodNode', 'ReduceNode', 'PartialNode', 'OperatorFuncNode', 'JsonNode'): yield f'estimator of {module}.{cls} by {loader}', rebuilt(schema | dict(__module__=module, __class__=cls, __loader__=loader))
    for name, text in {'brackets': '['*10**5, 'empty': '', 'null': 'null', 'objects': '{"a":'*10**5}.items(): yield f'estimator schema {name}', rebuilt(schema, **{'schema.json': text})
    array = next(o for o in zipfile.ZipFile(io.BytesIO(good)).namelist() if o.endswith('.npy'))
    for name, data in pickles().items(): yield f'pickle as array: {name}', rebuilt(schema, **{array: data})
    for shape in ((10**13,), (2**40, 2**20), (2**31,), (-1,), (10**9, 0)):
        text = str(dict(descr='<f8', fortran_order=False, shape=shape)).encode()
        yield f'array of {shape}', rebuilt(schema, **{array: b'\x93NUMPY\1\0' + struct.pack('<H', len(text)) + text + bytes(64)})
    yield 'bomb in an estimator', lambda path: rebuilt(schema, zipfile.ZIP_DEFLATED, x=bytes(2**28))(path)
    yield 'sparse matrix in an estimator', rebuilt(schema, **{'x.npz': b'x'})


def table(tmp):
    "All that were thought of: (name, a function that writes it to a path and may return another one)"
    yield 'whole', put
    yield from ((f'zip: {k}', with_zip(v)) for k, v in zips())
    if not windows: yield from links()
    for some in (fields(), texts(), weights(), architectures(), estimators(tmp)): yield from some


# --- Fuzzing ---------------------------------------------------------------------------------------------------------
NASTY = [None, True, False, 0, -1, 1, 2, 7, 8, 0.5, 1e308, -1e308, float('nan'), float('inf'), 2**31, 2**53, 2**64, 10**18, '', 'x', '0', '\0', '\ud800', [], [1], [[]], {}, {'a': 1}, 'crop', 'flatten', 'vectors', 'timm/resnet18', 'classic/lenet', 'gelu', [4, 4]]


def places(obj, at=()):
    yield at
    for k, v in obj.items() if isinstance(obj, dict) else enumerate(obj) if isinstance(obj, list) else (): yield from places(v, (*at, k))


def mutated(obj, rng):
    "A description or header with one to three values changed, removed, doubled or exchanged"
    obj = copy.deepcopy(obj)
    for _ in range(rng.randint(1, 3)):
        at = rng.choice([o for o in places(obj) if o])
        parent = obj
        for k in at[:-1]: parent = parent[k]
        was, way = parent[at[-1]], rng.random()
        if way < 0.15: parent.pop(at[-1])
        elif way < 0.5 and type(was) in (int, float): parent[at[-1]] = rng.choice([was + 1, was - 1, was*2, -was, was*1e9, was/3, float(was), str(was), [was]])
        elif way < 0.6 and isinstance(parent, dict): parent[rng.choice([*parent, 'new'])] = copy.deepcopy(was)
        else: parent[at[-1]] = copy.deepcopy(rng.choice(NASTY))
    return obj


def flipped(data, rng, n=3):
    data = bytearray(data)
    for _ in range(rng.randint(1, n)):
        i, way = rng.randrange(len(data)), rng.random()
        if way < 0.7: data[i] = rng.choice([data[i] ^ 1 << rng.randrange(8), 0, 255, rng.randrange(256)])
        elif way < 0.85: del data[i:i + rng.randint(1, 8)]
        else: data[i:i] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
    return bytes(data)


def fuzzed(i):
    "The fuzzed bundle number `i`, always the same; the hash is that of its weights, so that it gets beyond it"
    rng, kind = random.Random(i), i % 8
    if kind in (0, 1): return lambda path: put(path, json.dumps(mutated(ABOUT, rng)).encode(errors='surrogatepass'))
    if kind == 2: return with_text(flipped(DESCRIPTION, rng))
    if kind in (3, 4):
        about, data = header()
        return with_weights(from_header(mutated(about, rng), data))
    if kind == 5: return with_weights(flipped(WEIGHTS, rng))
    if kind == 6: return with_weights(WEIGHTS[:400] + flipped(WEIGHTS[400:], rng, 30)[:len(WEIGHTS) - 400])
    return with_zip(flipped(zipped(kind=rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])), rng))


# --- Loading them ----------------------------------------------------------------------------------------------------
CHILD = '''
import faulthandler, json, os, resource, signal, sys, time
import numpy as np
from imgcls.core import ImgclsError
from imgcls.deploy.predictor import load_bundle
from imgcls.models.pretrained import make_body
import torch
paths = json.load(sys.stdin)
squares = [np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8), np.zeros((8, 8, 3), np.uint8)]
noted, watch = [], False
bad = {'pickle.find_class', 'os.system', 'subprocess.Popen', 'os.exec', 'os.fork', 'os.posix_spawn', 'os.mkdir', 'os.remove', 'os.rename', 'os.rmdir', 'os.symlink', 'shutil.rmtree', 'socket.connect', 'socket.getaddrinfo', 'socket.bind', 'ctypes.dlopen_'}
def hook(event, args):
    if not watch: return
    if event in bad or event == 'open' and isinstance(args[1], str) and set(args[1]) & set('wax+') and args[0] != '/dev/null': noted.append(f'{event} {args[0] if args else ""}'[:200])
sys.addaudithook(hook)
def late(*_): raise TimeoutError('20 seconds have passed')
signal.signal(signal.SIGALRM, late)
def look(path):
    "How a bundle ended, in words"
    try:
        classifier = load_bundle(path, compute='fp32')
        if classifier.size > 512: return 'loaded'
        answers = classifier.predict(squares)
    except TypeError as e: return 'refused' if 'pass a fresh one as `module`' in str(e) else f'TypeError: {e}'
    except (ImgclsError, FileNotFoundError) as e: return 'refused' if 5 < len(str(e)) < 3000 else f'the message has {len(str(e))} characters'
    except BaseException as e: return f'{type(e).__name__}: {e}'[:500]
    if not {o for labels in answers['label'] for o in (labels if isinstance(labels, (list, tuple)) else [labels]) if o == o} <= {*classifier.vocab, 'unknown', None, ''} and not classifier.config['multi_label']: return f'labels {list(answers["label"])}'
    finite, said = np.isfinite(answers['probability'].astype(float)), answers['error'] != ''
    return 'answered' if finite.all() else 'answered, but not for each image' if (finite | said).all() else f'not finite: {answers.to_dict("records")}'[:300]
look(paths[0])  # what is imported late is imported now
with torch.device('meta'): make_body('timm/resnet18', pretrained=False)[0](torch.zeros(1, 3, 64, 64))
try: look('nowhere')
except FileNotFoundError: pass
if any(os.path.exists(os.path.join(o, 'estimator.skops')) for o in paths):
    import skops.io
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC
    for o in (SVC(), KNeighborsClassifier(2, algorithm='brute')): skops.io.loads(skops.io.dumps(o.fit(np.eye(4), [0, 0, 1, 1]))).predict(np.eye(4))
if sys.platform == 'linux':
    now = int(open('/proc/self/statm').read().split()[0])*os.sysconf('SC_PAGE_SIZE')
    resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[1]), now + int(sys.argv[1])))
for i, path in enumerate(paths):
    print('begin', i, flush=True)
    noted.clear()
    start, watch = time.process_time(), True
    signal.alarm(20)
    faulthandler.dump_traceback_later(60, exit=True)
    try: ended = look(path)
    except TimeoutError as e: ended = str(e)
    signal.alarm(0)
    watch = False
    print('end', json.dumps([i, ended, time.process_time() - start, noted]), flush=True)
'''


def load_all(cases, folder, memory=768*2**20, bs=250):
    "Load all, `bs` to a process: for each name how it ended, the seconds of the processor, and what it did that it shouldn't"
    res = {}
    for k in range(0, len(cases), bs):
        names, paths, place = [], [], folder/f'bundles {k}'
        place.mkdir()
        for i, (name, make) in enumerate(cases[k:k + bs]):
            path = place/f'{i}'
            names.append(name)
            paths.append(str(make(path) or path))
        env = {**os.environ, 'PYTHONPATH': str(root), 'TRAP': str(folder/'sprung'), 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'}
        todo = list(range(len(names)))
        while todo:  # where one ends the process, the others go on in a new one
            run = subprocess.run([sys.executable, '-W', 'ignore', '-c', CHILD, str(memory)], input=json.dumps([paths[i] for i in todo]), cwd=place, env=env, capture_output=True, text=True, timeout=600)
            lines = [o.split(' ', 1) for o in run.stdout.splitlines()]
            for kind, text in lines:
                if kind == 'end':
                    i, *rest = json.loads(text)
                    res[names[todo[i]]] = rest
            begun = sum(kind == 'begin' for kind, _ in lines)
            if run.returncode == 0: break
            assert begun, run.stderr[-3000:]
            res[names[todo[begun - 1]]] = [f'the process ended with {run.returncode}: {run.stderr[-300:]}', 0., []]
            todo = todo[begun:]
        shutil.rmtree(place)
        assert not (folder/'sprung').exists(), 'a pickle was run'
    return res


def complaints(res):
    for name, (ended, seconds, noted) in res.items():
        if ended not in ('refused', 'answered', 'loaded', 'answered, but not for each image'): yield f'{name}: {ended}'
        if seconds > 2: yield f'{name}: {seconds:.1f} s'
        if noted: yield f'{name}: {noted}'


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    "How all of them ended, the hostile ones and the fuzzed ones"
    if windows: pytest.skip('bounds of a process are those of Unix')
    folder = tmp_path_factory.mktemp('hostile')
    hostile, fuzz = list(table(folder)), [(f'fuzzed {i}', fuzzed(i)) for i in range(1000 if full else 100)]
    assert len({o for o, _ in hostile}) == len(hostile) >= 200
    if not full: hostile = hostile[::10]
    res = load_all([*hostile, *fuzz], folder)
    assert len(res) == len(hostile) + len(fuzz)
    return {k: res[k] for k, _ in hostile}, {k: res[k] for k, _ in fuzz}


@pytest.mark.parametrize('part', ['hostile', 'fuzzed'])
def test_bundles(results, part, record_testsuite_property):
    res = results[part == 'fuzzed']
    ends = [e for e, *_ in res.values()]
    told = ', '.join(f'{ends.count(o)} {o[:40]}' for o in sorted(set(ends)))
    record_testsuite_property(f'{part} bundles', f'{len(res)}: {told}; at most {max(s for _, s, _ in res.values()):.2f} s')
    if found := list(complaints(res)): pytest.fail('\n'.join(found), pytrace=False)


def test_the_net_holds():
    "What must not happen is a complaint"
    assert not list(complaints(dict(a=['refused', 0.1, []], b=['answered', 1.9, []])))
    assert len(list(complaints(dict(a=['ended', 0, []], b=['refused', 3., []], c=['answered', 0, ['os.system x']])))) == 3
