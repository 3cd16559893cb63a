"""The page of a classifier over real HTTP: good and bad uploads, many at once, cut connections; and in a browser that can reach nothing else."""
import http.client, io, json, os, re, signal, socket, struct, subprocess, sys, time, zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
import test_docs as browser
import torch
from imgcls.deploy.predictor import Classifier
from PIL import Image
from project import root
from sklearn.datasets import load_sample_images
from torch import nn

pytest.importorskip('fastapi', reason='needs the extra `app`')
pytest.importorskip('uvicorn', reason='needs the extra `app`')
pytest.importorskip('python_multipart', reason='needs the extra `app`')
from imgcls.deploy import app as module
from imgcls.deploy.app import UploadLimits, create_app, running

context = browser.context  # fixture
full = os.environ.get('IMGCLS_FULL')


def colours(**fields):
    "A classifier that tells orange from blue by the mean colour, and has a map for it"
    head, conv = nn.Linear(3, 2, bias=False), nn.Conv2d(3, 3, 1)
    head.weight.data, conv.weight.data, conv.bias.data = torch.tensor([[5., 0, -5], [-5., 0, 5]]), torch.eye(3)[..., None, None], torch.zeros(3)
    about = dict(schema=2, model=dict(arch=None, n_classes=2), vocab=['orange', 'blue <b>&'], size=64, presize=72, method='crop', refusal=dict(threshold=0.9))
    return Classifier(nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head), about | fields, compute='fp32')


def encode(img, kind='png', **kwargs):
    file = io.BytesIO()
    (img if isinstance(img, Image.Image) else Image.new('RGB', (300, 200), img)).save(file, kind, **kwargs)
    return file.getvalue()


def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def huge_png(w=10_000, h=10_000): return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')


photo = encode(Image.fromarray(load_sample_images().images[1]), 'jpeg')


def body(*files, names=None):
    parts = [b'--x\r\nContent-Disposition: form-data; name="files"; filename="%b"\r\n\r\n%b\r\n' % (n.encode(), o)
             for n, o in zip(names or [f'{i}.png' for i in range(len(files))], files)]
    return b''.join(parts) + b'--x--\r\n'


form = {'Content-Type': 'multipart/form-data; boundary=x'}


def ask(address, data=None, path='/api/predict', headers=form, method=None):
    "Status, headers and content"
    link = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    try:
        link.request(method or ('GET' if data is None else 'POST'), path, data, headers if data is not None or headers is not form else {})
        res = link.getresponse()
        text = res.read()
        return SimpleNamespace(status=res.status, headers={k.lower(): v for k, v in res.getheaders()}, data=json.loads(text) if 'json' in (res.getheader('content-type') or '') else text)
    finally: link.close()


@pytest.fixture(scope='module')
def classifier(): return colours()


@pytest.fixture(scope='module')
def address(classifier):
    pytest.importorskip('captum', reason='needs the extra `explain`')
    with running(create_app(classifier, samples=[Image.new('RGB', (60, 40), o) for o in ('orange', 'navy')])) as res: yield res


def test_same_as_predict(classifier, address):
    "The page, `predict` and `predictions` say the same, refused or not, and the map is a picture of the size that the network sees"
    files = [encode('orange'), encode('navy'), encode('grey'), photo]
    got = ask(address, body(*files), '/api/predict?explain=true&k=2').data['answers']
    ours, probs = classifier.predict(files), classifier.predictions(files).probs
    assert [o['label'] for o in got] == list(ours['label']) == ['orange', 'blue <b>&', 'unknown', ours['label'][3]]
    assert [o['reason'] for o in got] == list(ours['reason']) and got[2]['reason'].startswith('unsure: ')
    np.testing.assert_allclose([[p['probability'] for p in o['probabilities']] for o in got], -np.sort(-probs, 1), atol=1e-6)
    for o in got:
        with Image.open(io.BytesIO(__import__('base64').b64decode(o['heatmap'].partition(',')[2]))) as img: assert img.size == (64, 64)


bad = {
    'not an image': (body(b'hello'), form, 422, 'not an image'), 'empty file': (body(b''), form, 422, 'empty'), 'cut': (body(photo[:20_000]), form, 422, 'truncated'),
    '100 megapixels': (body(huge_png()), form, 422, 'too many pixels: at most 64 million are read'), 'a path': (body(b'/etc/passwd'), form, 422, 'not an image'),
    '50 MB': (body(bytes(50_000_000)), form, 413, 'more than 24 MB'), 'too many': (body(*[photo]*9), form, 400, 'Too many files'), 'no photo': (body(), form, 400, 'no photo'),
    'two bad': (body(b'a', b'b'), form, 422, 'None of the 2 photos'), 'JSON': (b'{}', {'Content-Type': 'application/json'}, 415, 'multipart/form-data'),
    'no boundary': (b'x', {'Content-Type': 'multipart/form-data'}, 400, 'not made as'), 'no kind': (b'x', {}, 415, 'Send the photos'),
    'broken form': (b'--x\r\nnonsense', form, 400, ''), 'a field that names a file': (b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\n/etc/passwd\r\n--x--\r\n', form, 400, 'no photo'),
    'a long field': (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + bytes(5000) + b'\r\n--x--\r\n', form, 400, ''),
    'foreign page': (body(photo), form | {'Origin': 'http://example.org'}, 403, 'Another web page'), 'foreign name': (body(photo), form | {'Host': 'example.org'}, 403, 'not known by that name')}

@pytest.mark.parametrize('name', bad)
def test_bad_upload(address, name):
    data, headers, status, sentence = bad[name]
    got = ask(address, data, headers=headers)
    assert got.status == status and sentence in got.data['error'] and got.data['error'][-1] == '.' and 'Traceback' not in got.data['error'], got.data
    assert ask(address, path='/health').data['ready']


@pytest.mark.parametrize('path,status', [('/samples/0', 200), ('/samples/2', 404), ('/samples/-1', 404), ('/samples/../settings.ini', 404), ('/samples/%2e%2e%2fsettings.ini', 404),
                                         ('/etc/passwd', 404), ('/api/predict', 405), ('/docs', 404), ('/openapi.json', 200), ('/samples/x', 422)])
def test_addresses(address, path, status):
    got = ask(address, path=path)
    assert got.status == status and (status == 200 or got.data['error'][-1] == '.')
    assert got.headers['content-security-policy'] == module.PAGE_POLICY and got.headers['x-content-type-options'] == 'nosniff' and 'server' not in got.headers


@pytest.mark.parametrize('query', ['k=0', 'k=x', 'k=1001', 'explain=maybe'])
def test_bad_query(address, query):
    got = ask(address, body(photo), f'/api/predict?{query}')
    name, _, value = query.partition('=')
    assert got.status == 422 and got.data['error'] == f"`{name}` must be {dict(k='a whole number from 1 to 1000', explain='true or false')[name]}, got '{value}'."


def test_some_are_bad(address):
    "A file that can't be read is an answer with its error, and the others are answered; names are names, not paths"
    got = ask(address, body(photo, b'x', names=['../../etc/a.jpg', 'C:\\b.png']))
    assert got.status == 200 and [(o['file'], bool(o['label']), o['error']) for o in got.data['answers']] == [('a.jpg', True, ''), ('b.png', False, 'not an image')]


def test_health_names_the_weights():
    with running(create_app(colours(sha256='ab'*32), explain=False)) as address: assert ask(address, path='/health').data['weights'] == 'ab'*32


def test_description(address):
    "OpenAPI names the upload, every field of an answer, and each status that is used"
    about = ask(address, path='/openapi.json').data
    post = about['paths']['/api/predict']['post']
    assert about['openapi'][0] == '3' and 'multipart/form-data' in post['requestBody']['content'] and {'200', '413', '422', '503'} <= set(post['responses'])
    fields = post['responses']['200']['content']['application/json']['schema']['properties']['answers']['items']['properties']
    assert set(fields) == set(ask(address, body(photo)).data['answers'][0])


def send_slowly(address, data, pause, head='Content-Length: 5000'):
    "What a client hears that sends its bytes one by one"
    place = urlsplit(address)
    with socket.create_connection((place.hostname, place.port)) as link:
        link.sendall(f'POST /api/predict HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: multipart/form-data; boundary=x\r\n{head}\r\n\r\n'.encode())
        link.settimeout(0.02)
        for byte in data:
            try: return link.recv(4000).decode()
            except TimeoutError: link.send(bytes([byte]))
            time.sleep(pause)
    return ''


def test_time(classifier):
    "A body that drips in, and one that is sent in pieces without an end, are ended by the clock and by the count"
    with running(create_app(classifier, explain=False, limits=UploadLimits(seconds=0.4, megabytes=0.01))) as address:
        assert send_slowly(address, body(photo)[:100], 0.01).startswith('HTTP/1.1 408')
        got = ask(address, iter([b'x'*1000]*50), headers=form)  # chunked: no length is told
        assert got.status == 413 and ask(address, path='/health').data['waiting'] == 0


def test_slow_answer(classifier, monkeypatch):
    "When the time is up the client is told, and the photos after that are not worked on; who comes when many wait is sent away"
    seen = []
    def slow(*args, **kwargs):
        seen.append(1)
        time.sleep(0.3)
        return dict(error='')
    monkeypatch.setattr(module, '_answer', slow)
    with running(create_app(classifier, explain=False, limits=UploadLimits(seconds=0.5, waiting=2))) as address, ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda _: ask(address, body(*[b'x']*8)), range(4)))
        assert sorted(o.status for o in got) == [503]*4 and sum('Many requests' in o.data['error'] for o in got) == 2 and len(seen) <= 4
        assert [o.headers.get('retry-after') for o in got if 'Many' in o.data['error']] == ['5', '5']


def test_fault(classifier, monkeypatch):
    "A fault of ours is told as one, without its details"
    def broken(*args, **kwargs): raise RuntimeError('secret')
    monkeypatch.setattr(module, '_answer', broken)
    with running(create_app(classifier, explain=False)) as address:
        got = ask(address, body(photo))
        assert got.status == 500 and 'secret' not in got.data['error'] and ask(address, path='/health').status == 200


def test_without_maps(classifier, monkeypatch):
    "Without captum the page answers all the same, and says what is missing"
    monkeypatch.setitem(sys.modules, 'captum.attr', None)
    with running(create_app(classifier)) as address:
        assert 'imgcls[explain]' in ask(address, path='/').data.decode()
        assert ask(address, body(photo), '/api/predict?explain=true').data['answers'][0]['heatmap'] is None


# --- As a process --------------------------------------------------------------------------------------------------
@pytest.fixture
def server(tmp_path):
    "`serve` in a process of its own, in an empty folder with an empty temporary folder"
    code = f'import logging, sys; sys.path.insert(0, {str(root/"tests")!r}); logging.basicConfig(level=20, format="%(message)s")\n' \
           'import test_app as t; t.module.serve(t.colours(), port=0)'
    env = os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, (str(root), os.environ.get('PYTHONPATH')))), TMPDIR=str(tmp_path/'temp'), OMP_NUM_THREADS='1')
    (tmp_path/'temp').mkdir()
    process = subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    said = next((o for o in process.stderr if 'http://' in o), '')
    yield SimpleNamespace(process=process, address=re.search(r'http\S+', said)[0], folder=tmp_path, said=said)
    process.kill()
    process.communicate()


def resident(pid):
    with open(f'/proc/{pid}/statm') as f: return int(f.read().split()[1])*os.sysconf('SC_PAGE_SIZE')/1e6


def cut(address, data):
    "Begin an upload and go away"
    place = urlsplit(address)
    with socket.create_connection((place.hostname, place.port)) as link:
        link.sendall(f'POST /api/predict HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: {form["Content-Type"]}\r\nContent-Length: {len(data)}\r\n\r\n'.encode() + data[:len(data)//2])


def load(server):
    "Many uploads from 8 clients at once, a fifth of them bad: every good one answered, every bad one refused, memory flat, no file left"
    n, kinds = 200 if full else 30, [body(b'no image'), body(huge_png()), body(bytes(50_000_000)), None]
    def upload(i):
        if i % 5: return i, ask(server.address, body(photo), '/api/predict?explain=true').status
        data = kinds[i//5 % 4]
        return i, cut(server.address, body(photo)) if data is None else ask(server.address, data).status
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(upload, range(20)))
        before = resident(server.process.pid) if sys.platform == 'linux' else 0
        statuses = dict(pool.map(upload, range(n)))
    assert {v for i, v in statuses.items() if i % 5} == {200}
    assert [statuses[i] for i in range(0, 20, 5)] == [422, 422, 413, None] and all(statuses[i] == statuses[i % 20] for i in range(0, n, 5))
    if before: assert resident(server.process.pid) - before < 60
    assert ask(server.address, path='/health').data['waiting'] == 0
    assert [o.name for o in server.folder.rglob('*') if o.is_file()] == []


def drain(server):
    "Told to stop while photos are on their way, it answers them, then it's gone, with status 0; it was bound to this machine alone"
    assert server.address.startswith('http://127.0.0.1:')
    place, data = urlsplit(server.address), body(photo)
    with socket.create_connection((place.hostname, place.port)) as link:
        link.sendall(f'POST /api/predict HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: {form["Content-Type"]}\r\nContent-Length: {len(data)}\r\n\r\n'.encode() + data[:1000])
        while not ask(server.address, path='/health').data['waiting']: time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(OSError): socket.create_connection((place.hostname, place.port), timeout=1).close()
        link.sendall(data[1000:])
        got = link.makefile('rb').read()
    assert got.startswith(b'HTTP/1.1 200') and b'"answers"' in got
    assert server.process.wait(10) == 0


def test_process(server):
    load(server)
    drain(server)


# --- In a browser --------------------------------------------------------------------------------------------------
@pytest.fixture
def visit(address, context):
    res = browser.Visit(context, address).open(address)
    yield res
    res.page.close()


def answered(page, n):
    page.wait_for_function('n => document.querySelectorAll("#answers > li").length == n && ![...document.querySelectorAll("#answers h3")].some(o => o.textContent == "…")', arg=n)
    return page.locator('#answers h3').all_text_contents()


def test_upload_in_browser(visit, tmp_path):
    "Three files chosen at once: an answer, a refusal with its reason, a file that is no image; nothing sticks out, enough contrast, no foreign request"
    page = visit.page
    files = []
    for name, data in {'a$b$ 猫.png': encode('orange'), 'grey.png': encode('grey'), f'{"long_name_" * 12}.jpg': photo}.items():
        (tmp_path/name).write_bytes(data)
        files.append(tmp_path/name)
    page.locator('#input').set_input_files(files)
    titles = answered(page, 3)
    assert sorted(titles)[-1] == 'unknown' and any(o.startswith('orange, ') for o in titles)
    assert 'unsure: ' in page.locator('.refused').first.inner_text() and page.locator('#answers img').count() == 6
    assert page.locator('#status').inner_text().startswith('3 of 3 answered.')
    page.add_style_tag = lambda **kwargs: None  # the policy forbids it, and nothing moves here
    assert not browser.look(visit)


def test_bad_file_in_browser(visit, tmp_path):
    (tmp_path/'text.png').write_bytes(b'hello')
    (tmp_path/'big.png').write_bytes(bytes(25_000_000))
    visit.page.locator('#input').set_input_files([tmp_path/'text.png', tmp_path/'big.png'])
    assert answered(visit.page, 2) == ['No answer']*2
    said = visit.page.locator('#answers').inner_text()
    assert "The photo can't be used: not an image." in said and 'The file has 25 MB; at most 24 are read.' in said
    visit.page.set_viewport_size(browser.narrow)
    assert not visit.page.evaluate(browser.too_wide)


def test_samples_and_keyboard(visit):
    "Without a mouse: the photos can be chosen, a sample asked about, and all cleared"
    page = visit.page
    page.locator('#theme').focus()
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.id') == 'input'
    page.keyboard.press('Tab')
    page.keyboard.press('Tab')
    page.keyboard.press('Enter')
    assert answered(page, 1)[0].startswith('blue <b>&, ')  # the second sample, and text stays text
    page.locator('#clear').focus()
    page.keyboard.press('Enter')
    assert page.locator('#answers > li').count() == 0 and page.evaluate('document.activeElement.id') == 'input'


def test_drop(visit):
    "A file that is dropped anywhere on the page"
    visit.page.evaluate('''async () => { const canvas = Object.assign(document.createElement("canvas"), {width: 50, height: 50}), pen = canvas.getContext("2d");
        pen.fillStyle = "orange"; pen.fillRect(0, 0, 50, 50);
        const data = new DataTransfer(); data.items.add(new File([await new Promise(f => canvas.toBlob(f))], "c.png")); document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true})); }''')
    assert answered(visit.page, 1)[0].startswith('orange, ')
