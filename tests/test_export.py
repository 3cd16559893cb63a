"""A classifier in other programs: the same answers, one file or none, and nothing in it about the machine that wrote it."""
import copy, json, sys, zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import nn

from imgcls.cli import main
from imgcls.core import DataError, ImgclsError, MissingExtraError
from imgcls.deploy import export as module
from imgcls.deploy.export import export_bundle, export_settings
from imgcls.deploy.predictor import Classifier, load_bundle
from imgcls.deploy.schema import BundleError
from imgcls.images import eval_image
from imgcls.models.pretrained import image_model

pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
onnxruntime = pytest.importorskip('onnxruntime')
vocab = ['ant', 'Käfer $x$', '蝶']
photos = [o[y:y + 150, x:x + 130] for o in load_sample_images().images for y in (0, 200) for x in (0, 250, 500)]


def about(model, size, **fields): return dict(schema=2, model=model.config, vocab=vocab, size=size, presize=size + 8, method='crop', multi_label=False, sha256='0' * 64) | fields


def network(arch, size):
    torch.manual_seed(0)
    model = image_model(arch, 3, pretrained=False, **(dict(size=size) if 'classic' in arch else {}))
    for o in model.modules():
        if isinstance(o, nn.modules.batchnorm._BatchNorm): o.momentum = None  # statistics of these photos
    x = torch.from_numpy(np.stack([eval_image(o, size, size + 8) for o in photos])).permute(0, 3, 1, 2) / 255
    with torch.no_grad(): model.train()(x)
    return model.eval()


@pytest.fixture(scope='module')
def small(): return network('classic/lenet', 32)


@pytest.fixture(scope='module')
def asked(small):
    "A classifier that can refuse"
    refusal = dict(score='probability', threshold=0.34, accuracy=0.9, level=0.95, n=10, answered=9, right=9)
    return Classifier(small, about(small, 32, temperature=0.05, refusal=refusal, foreign=dict(score='energy', threshold=-1., keep=0.95, n=10)), compute='fp32')


@pytest.fixture(scope='module')
def file(asked, tmp_path_factory):
    path = tmp_path_factory.mktemp('export')/'new/a.onnx'
    export_bundle(asked, path)
    return path


def squares(c, n): return np.stack([eval_image(o, c.config['size'], c.config['presize']) for o in photos[:n]])


@pytest.mark.parametrize('arch,size', [('efficientnet_lite0', 64), ('classic/minivggnet', 32), ('torchvision/resnet18', 64)])
def test_parity(arch, size, tmp_path):
    "The file answers as the classifier, for any number of photos; read by onnxruntime and torch, without imgcls"
    model = network(arch, size)
    c = Classifier(model, about(model, size, temperature=1.7), compute='fp32')
    ours = c.predictions(photos)
    reports = [export_bundle(c, tmp_path/f'a.{to}', to=to, check=photos, bs=5) for to in ('onnx', 'pt2')]
    session = onnxruntime.InferenceSession(tmp_path/'a.onnx')
    program = torch.export.load(tmp_path/'a.pt2').module()
    for n in (1, 3, 12):
        pixels = squares(c, n)
        for probs, logits in (session.run(None, {'pixels': pixels}), [o.detach().numpy() for o in program(torch.from_numpy(pixels))]):
            np.testing.assert_allclose(probs, ours.probs[:n], atol=1e-4)
            np.testing.assert_allclose(logits, ours.logits[:n], atol=1e-3)
            assert (probs.argmax(1) == ours.probs[:n].argmax(1)).all()
    for o in reports: assert (o.photos, o.same) == (12, 12) and 0 <= o.difference < 1e-4 and o.size == o.path.stat().st_size
    assert np.ptp(ours.probs, axis=0).max() > 0.02, 'photos that are told apart'


@pytest.mark.parametrize('to', ['onnx', 'pt2'])
def test_one_against_all(small, to, tmp_path):
    c = Classifier(small, about(small, 32, one_vs_all=True), compute='fp32')
    report = export_bundle(c, tmp_path/f'a.{to}', to=to)
    says = export_settings(report.path)
    assert report.difference < 1e-5 and says['one_vs_all'] is True and says['temperature'] == 1


def test_a_classifier_in_its_own_way(small, tmp_path):
    "Folded, channels last and in bfloat16: what is exported calculates in float32, and the classifier stays as it was"
    plain, quick = (Classifier(copy.deepcopy(small), about(small, 32), compute=o) for o in ('fp32', 'bf16'))
    before, state = quick.predictions(photos).probs, torch.get_rng_state()
    report = export_bundle(quick, tmp_path/'a.pt2', to='pt2')
    assert report.difference < 1e-5 and quick.compute.dtype == torch.bfloat16
    assert (quick.predictions(photos).probs == before).all() and torch.equal(torch.get_rng_state(), state)
    probs, _ = torch.export.load(report.path).module()(torch.from_numpy(squares(plain, 12)))
    np.testing.assert_allclose(probs.detach(), plain.predictions(photos).probs, atol=1e-5)


def test_settings(asked, file):
    says, session = export_settings(file), onnxruntime.InferenceSession(file)
    for o in ('vocab', 'size', 'presize', 'method', 'temperature', 'refusal', 'foreign', 'sha256'): assert says[o] == asked.config[o]
    assert {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()} == says
    assert [(o.name, o.type, o.shape) for o in session.get_inputs()] == [('pixels', 'tensor(uint8)', ['n', 32, 32, 3])]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [(o, 'tensor(float)', ['n', 3]) for o in ('probs', 'logits')]


def test_refusals_can_be_made_from_it(asked, file):
    "As the page says, and as `Classifier` does"
    probs, logits = onnxruntime.InferenceSession(file).run(None, {'pixels': squares(asked, 12)})
    says = export_settings(file)
    unknown = (probs.max(1) < says['refusal']['threshold']) | (-np.log(np.exp(logits.astype(float)).sum(1)) > says['foreign']['threshold'])
    assert (unknown == (asked.reasons(asked.predictions(photos)) != '')).all()


def test_nothing_about_the_machine(asked, file, tmp_path):
    "No folder of the machine, and no pickle"
    export_bundle(asked, tmp_path/'a.pt2', to='pt2')
    with zipfile.ZipFile(tmp_path/'a.pt2') as z: parts = {o: z.read(o) for o in z.namelist()}
    for data in (file.read_bytes(), *parts.values()):
        for word in (b'site-packages', module.__file__.encode(), b'def forward', str(tmp_path.parent).encode()): assert word not in data
    assert not [o for o, data in parts.items() if data[:1] == b'\x80' and data[-1:] == b'.' or data[:2] == b'PK']


def names(folder): return sorted(o.relative_to(folder).as_posix() for o in folder.rglob('*'))


@pytest.mark.parametrize('to', ['onnx', 'pt2'])
def test_another_answer_leaves_nothing(asked, to, tmp_path, monkeypatch):
    "A translation that goes wrong is seen on the photos: here a temperature that gets lost"
    whole = module._Whole
    monkeypatch.setattr(module, '_Whole', lambda net, config: whole(net, config | dict(temperature=1.)))
    with pytest.raises(ImgclsError, match=r'on 12 photos its probabilities differ by up to .* 1e-04 is allowed \(12 have the same first class\). Nothing was written'):
        export_bundle(asked, tmp_path/f'new/a.{to}', to=to)
    assert names(tmp_path) == []


def test_not_a_number_is_no_answer(asked, tmp_path, monkeypatch):
    monkeypatch.setitem(module._FORMATS, 'pt2', (module._to_pt2, lambda data: lambda pixels: np.full((len(pixels), 3), np.nan, np.float32)))
    with pytest.raises(ImgclsError, match='differ by up to nan'): export_bundle(asked, tmp_path/'a.pt2', to='pt2')
    assert names(tmp_path) == []


def test_a_file_is_kept_or_replaced(asked, tmp_path, monkeypatch):
    path = tmp_path/'a.pt2'
    path.write_text('mine')
    with pytest.raises(FileExistsError, match='exists already'): export_bundle(asked, path, to='pt2')
    with pytest.raises(ImgclsError, match='is not the same'): export_bundle(asked, path, to='pt2', tolerance=1e-15, overwrite=True)
    assert path.read_text() == 'mine' and names(tmp_path) == ['a.pt2']
    export_bundle(asked, path, to='pt2', overwrite=True)
    assert export_settings(path)['vocab'] == vocab and names(tmp_path) == ['a.pt2']


def test_photos(asked, tmp_path, caplog):
    "Those that can't be used are left out; without any there is nothing to compare"
    report = export_bundle(asked, tmp_path/'a.pt2', to='pt2', check=[*photos[:4], tmp_path/'gone.jpg'], bs=1)
    assert report.photos == 4 and "1 of 5 images can't be used" in caplog.text
    for check, text in (([], 'there are no images'), (b'none', 'none of the 1 images can be used')):
        with pytest.raises(DataError, match=text): export_bundle(asked, tmp_path/'b.pt2', to='pt2', check=check)
    assert names(tmp_path) == ['a.pt2']


def test_compared_in_the_order_of_the_photos(asked, tmp_path, two_threads):
    "Also where threads would share them"
    report = export_bundle(asked, tmp_path/'a.pt2', to='pt2', check=[*photos, *photos]*8)
    assert report.same == report.photos == 16*len(photos) and report.difference < 1e-5


class Odd(nn.Module):
    "Its way depends on the numbers that it sees"
    def __init__(self, fault=None):
        super().__init__()
        self.net, self.fault = nn.Linear(3, 3), fault

    def forward(self, x):
        if self.fault: raise self.fault
        x = self.net(x.mean((2, 3)))
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize('fault', [None, RuntimeError(''), KeyError('a')])
def test_a_network_that_cannot_be_followed(fault, tmp_path):
    c = Classifier(Odd(fault), about(SimpleNamespace(config=dict(arch=None)), 16), compute='fp32')
    with pytest.raises(ImgclsError, match='torch.export cannot follow the network for any number of images: .') as e: export_bundle(c, tmp_path/'a.onnx')
    assert '\n' not in str(e.value) and e.value.__cause__ is not None and names(tmp_path) == []


def test_more_than_an_onnx_file_holds(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_LIMIT', 10_000)
    with pytest.raises(ImgclsError, match="one ONNX file holds at most 2: take to='pt2'"): export_bundle(asked, tmp_path/'a.onnx')


def test_an_estimator_is_refused(asked, tmp_path):
    "Before anything is loaded, so that it need not be trusted; and in a classifier that was loaded"
    config = about(SimpleNamespace(config=asked.config['model'] | dict(head='vectors')), 32, estimator=dict(sha256='0' * 64, type='SVC'), metrics=[], versions={}, data={})
    (tmp_path/'bundle').mkdir()
    (tmp_path/'bundle/classifier.json').write_text(json.dumps(config))
    loaded = Classifier(copy.deepcopy(asked.model), config, compute='fp32', estimator=object())
    for o in (tmp_path/'bundle', loaded):
        with pytest.raises(ImgclsError, match=r"a classifier of scikit-learn answers \(SVC\), which is no network and can't be exported"): export_bundle(o, tmp_path/'a.onnx')
    (tmp_path/'bundle/classifier.json').write_text('{')
    with pytest.raises(BundleError, match="isn't valid JSON"): export_bundle(tmp_path/'bundle', tmp_path/'a.onnx')
    with pytest.raises(FileNotFoundError, match='there is no bundle'): export_bundle(tmp_path/'none', tmp_path/'a.onnx')


@pytest.mark.parametrize('gone', ['onnx', 'onnxscript', 'onnxruntime'])
def test_missing_extra(asked, gone, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, gone, None)
    with pytest.raises(MissingExtraError, match=r'pip install "imgcls\[onnx\]"'): export_bundle(asked, tmp_path/'a.onnx')


def test_files_of_others(asked, file, tmp_path):
    import onnx
    proto = onnx.load(file)
    proto.ClearField('metadata_props')
    onnx.save(proto, tmp_path/'plain.onnx')
    (tmp_path/'text.onnx').write_text('hello')
    (tmp_path/'text.pt2').write_text('hello')
    with zipfile.ZipFile(tmp_path/'list.pt2', 'w') as z: z.writestr('a/extra/imgcls.json', '[1]')
    with zipfile.ZipFile(tmp_path/'empty.pt2', 'w'): pass
    onnx.helper.set_model_props(proto, dict(imgcls_export='1', vocab='['))
    onnx.save(proto, tmp_path/'cut.onnx')
    for name, text in {'plain.onnx': 'was not written by', 'text.onnx': "can't be read as ONNX", 'text.pt2': "can't be read as a program", 'list.pt2': "can't be read as a program",
                       'empty.pt2': 'was not written by', 'cut.onnx': "isn't valid JSON"}.items():
        with pytest.raises(DataError, match=text): export_settings(tmp_path/name)


def test_command(small, tmp_path, capsys):
    from safetensors.torch import save_file
    import hashlib
    bundle = tmp_path/'five.things'
    bundle.mkdir()
    save_file(small.state_dict(), bundle/'model.safetensors')
    config = about(small, 32, sha256=hashlib.sha256((bundle/'model.safetensors').read_bytes()).hexdigest(), metrics=[], versions={}, data={})
    (bundle/'classifier.json').write_text(json.dumps(config))
    assert main(['export', str(bundle), '--to', 'pt2']) == 0
    assert 'five.things.pt2' in (out := capsys.readouterr().out) and 'on 12 photos' in out and (tmp_path/'five.things.pt2').is_file()
    assert main(['export', str(bundle), '--to', 'pt2', '--json', '--overwrite', '--tolerance', '0.5']) == 0
    assert json.loads(capsys.readouterr().out)['same'] == 12
    assert main(['export', str(bundle), '--to', 'pt2', '--out', str(tmp_path/'b.onnx')]) == 1
    assert 'must end in .pt2' in capsys.readouterr().err
    assert main(['export', str(bundle), '--to', 'pt2', '--out', str(tmp_path/'b.pt2'), '--check', str(tmp_path/'none')]) == 1
    assert names(tmp_path) == ['five.things', 'five.things.pt2', 'five.things/classifier.json', 'five.things/model.safetensors']
    assert isinstance(load_bundle(bundle), Classifier)
