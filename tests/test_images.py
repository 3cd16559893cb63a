"""Every way in which a file can be odd or broken, and what `imgcls.images` makes of it."""
import errno, io, os, pickle, struct, subprocess, sys, threading, warnings, zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from imgcls.core import DataError
from imgcls.images import REASONS, ImageError, eval_image, fit_short_side, open_image, probe_image


def photo(width=96, height=64):
    "A smooth picture whose four corners differ"
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((np.stack([x, y, x*(1-y)], -1)*255).astype('uint8'))

def encoded(img, format='jpeg', **kwargs):
    file = io.BytesIO()
    img.save(file, format, **kwargs)
    return file.getvalue()

def noisy(width=200, height=150, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))

def pixels(img): return np.asarray(img).astype(int)
def far(a, b): return np.abs(pixels(a) - pixels(b)).mean()

def reason(data, **kwargs):
    with pytest.raises(ImageError) as e: open_image(data, **kwargs)
    assert e.value.reason in REASONS
    return e.value.reason

def png_header(width, height):
    "A PNG that promises a size, and holds nothing"
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind+data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)) + \
        chunk(b'IDAT', zlib.compress(b'\0'*100)) + chunk(b'IEND', b'')


# what every mode becomes

grey16 = (np.linspace(0, 65535, 64*64).reshape(64, 64)).astype(np.uint16)

@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'HSV', 'LA', 'PA', 'RGBX', 'La', 'RGBa', 'I', 'F', 'LAB'])
def test_every_mode_becomes_rgb(mode):
    img = photo()
    if mode in ('La', 'RGBa'): img = img.convert('LA' if mode == 'La' else 'RGBA').convert(mode)
    elif mode == 'LAB': img = ImageCms.profileToProfile(img, ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), outputMode='LAB')
    elif mode == 'PA': img = img.convert('P').convert('PA')
    else: img = img.convert(mode)
    res = open_image(img)
    assert (res.mode, res.size, type(res)) == ('RGB', img.size, Image.Image)

@pytest.mark.parametrize('mode,format', [('1', 'png'), ('L', 'png'), ('LA', 'png'), ('P', 'png'), ('RGB', 'png'), ('RGBA', 'png'),
    ('P', 'gif'), ('L', 'gif'), ('CMYK', 'jpeg'), ('L', 'jpeg'),
    ('CMYK', 'tiff'), ('YCbCr', 'jpeg'), ('RGBA', 'webp'), ('RGB', 'webp'), ('RGB', 'bmp'), ('RGBA', 'tiff'), ('RGB', 'ppm'), ('L', 'ppm'),
    ('RGBA', 'ico'), ('RGB', 'pcx'), ('RGB', 'sgi'), ('RGB', 'dds'), ('RGBA', 'qoi'),
    ('RGB', 'jpeg2000'), ('RGB', 'avif'), ('RGB', 'tiff')])
def test_every_format(mode, format, tmp_path):
    if format.upper() not in Image.SAVE: Image.init()
    if format.upper() not in Image.SAVE: pytest.skip(f'this Pillow writes no {format}')
    path = tmp_path/'a.bin'  # the extension says nothing
    path.write_bytes(encoded(photo().convert(mode), format))
    info, img = probe_image(path), open_image(path)
    assert info['error'] == '' and info['format'] == format.upper() and (info['width'], info['height']) == img.size and img.mode == 'RGB'
    if mode not in ('1', 'P') and format != 'ico': assert far(img, open_image(photo().convert(mode))) < 16

@pytest.mark.parametrize('wrong', ['jpg', 'png', 'gif', 'txt', ''])
def test_wrong_extension(wrong, tmp_path):
    path = tmp_path/f'a.{wrong}'
    path.write_bytes(encoded(photo(), 'webp', lossless=True))
    assert probe_image(path)['format'] == 'WEBP' and far(open_image(path), photo()) < 1

@pytest.mark.parametrize('dtype', ['<u2', '>u2'])
def test_16_bit_grey(dtype):
    for data in (encoded(Image.fromarray(grey16), 'png'), encoded(Image.fromarray(grey16), 'tiff')):
        assert Image.open(io.BytesIO(data)).mode.startswith('I')
        got = pixels(open_image(data))[..., 0]
        assert (got == np.round(grey16/257)).all() and got.min() == 0 and got.max() == 255
    big = Image.frombytes('I;16B' if dtype == '>u2' else 'I;16', (64, 64), grey16.astype(dtype).tobytes())
    assert (pixels(open_image(big))[..., 0] == np.round(grey16/257)).all()

def test_32_bit_and_floating_point():
    assert (pixels(open_image(Image.fromarray(grey16.astype(np.int32))))[..., 0] == np.round(grey16/257)).all()
    small = Image.fromarray(np.full((4, 4), 257*9, np.int32))
    assert (pixels(open_image(small)) == 9).all()
    for wide in (np.array([[-70000, 70000]], np.int32), np.array([[-2.5, 7.5]], np.float32), np.array([[-2**31, 2**31-1]], np.int32)):
        assert pixels(open_image(Image.fromarray(wide)))[..., 0].tolist() == [[0, 255]]
    assert pixels(open_image(Image.fromarray(np.array([[0, .5, 1]], np.float32))))[0, :, 0].tolist() == [0, 128, 255]
    assert pixels(open_image(Image.fromarray(np.array([[np.nan, np.inf, -np.inf, 1]], np.float32))))[0, :, 0].tolist() == [0, 0, 0, 255]
    assert (pixels(open_image(Image.fromarray(np.full((2, 2), 3e9, np.float32)))) == 0).all()  # constant, without a range

def test_transparency_becomes_white():
    for mode in ('RGBA', 'LA'):
        img = photo().convert(mode); img.putalpha(0)
        for source in (img, encoded(img, 'png')): assert (pixels(open_image(source)) == 255).all()
    half = Image.new('RGBA', (4, 4), (0, 0, 0, 128))
    assert abs(pixels(open_image(half)) - 127).max() <= 1
    palette = Image.new('P', (4, 4)); palette.putpalette([10, 20, 30, 40, 50, 60]); palette.putpixel((1, 1), 1)
    for transparency in (0, b'\0\xff'):
        got = open_image(encoded(palette, 'png', transparency=transparency))
        assert got.getpixel((0, 0)) == (255, 255, 255) and got.getpixel((1, 1)) == (40, 50, 60)
    assert open_image(encoded(palette, 'gif', transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(encoded(Image.new('L', (4, 4), 7), 'png', transparency=7)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(encoded(Image.new('RGB', (4, 4), (7, 8, 9)), 'png', transparency=(7, 8, 9))).getpixel((0, 0)) == (255, 255, 255)

def test_cmyk_is_not_a_negative():
    "White paper stays white, through Adobe's inverted inks too"
    assert (pixels(open_image(encoded(Image.new('CMYK', (16, 16), (0, 0, 0, 0)), 'jpeg'))) == 255).all()
    assert (pixels(open_image(encoded(Image.new('CMYK', (16, 16), (0, 0, 0, 255)), 'jpeg'))) == 0).all()
    assert far(open_image(encoded(photo().convert('CMYK'), 'jpeg', quality=95)), photo()) < 4

def test_first_frame_of_an_animation():
    frames = [Image.new('RGB', (20, 10), c) for c in ('red', 'lime', 'blue')]
    for format in ('gif', 'webp', 'png', 'tiff'):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **({'lossless': True} if format == 'webp' else {}))
        assert open_image(data).getpixel((5, 5)) == (255, 0, 0)


# which way is up

to_store = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}

def stored(img, orientation, format='jpeg', tag=None):
    exif = Image.Exif()
    exif[0x0112] = orientation if tag is None else tag
    turn = to_store[orientation]
    how = dict(jpeg=dict(quality=95), webp=dict(lossless=True)).get(format, {})
    return encoded(img if turn is None else img.transpose(Image.Transpose(turn)), format, exif=exif, **how)

@pytest.mark.parametrize('format', ['jpeg', 'png', 'webp', 'tiff'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_upright(orientation, format, tmp_path):
    path = tmp_path/'a.img'
    path.write_bytes(stored(photo(), orientation, format))
    img = open_image(path)
    assert img.size == (96, 64) and far(img, photo()) < 2
    assert open_image(img).tobytes() == img.tobytes() and not img.info and not dict(img.getexif())  # nothing is left to be turned a second time
    assert open_image(path.read_bytes()).tobytes() == img.tobytes()
    assert open_image(Image.open(path)).tobytes() == img.tobytes()
    for decode in (True, False):
        info = probe_image(path, decode=decode)
        assert (info['width'], info['height'], info['error']) == (96, 64, '')
    assert min(open_image(path, short_side=30).size) >= 30 and open_image(path, short_side=30).width > open_image(path, short_side=30).height
    assert far(eval_image(path, 24, 32), eval_image(photo(), 24, 32)) < 4

@pytest.mark.parametrize('tag', [0, 9, 77, 65535])
def test_senseless_orientation(tag):
    assert open_image(stored(photo(), 1, tag=tag)).size == (96, 64)

@pytest.mark.filterwarnings('ignore')  # Pillow warns
def test_broken_exif_costs_no_image():
    rng, whole = np.random.default_rng(0), stored(photo(), 6)
    start, end = whole.index(b'Exif') + 6, whole.index(b'Exif') + 32
    broken = [bytes(whole[:start]) + rng.bytes(end-start) + whole[end:] for _ in range(200)]
    broken += [whole[:i] + b'\xff' + whole[i+1:] for i in range(start, end)] + [whole[:i] + b'\0' + whole[i+1:] for i in range(start, end)]
    for payload in (b'', b'Exif', b'Exif\0\0', b'Exif\0\0II*\0', b'Exif\0\0MM\0*\xff\xff\xff\xff', b'Exif\0\0II*\0\x08\0\0\0\xff\xff'):
        broken.append(encoded(photo(), exif=payload))
    for data in broken:
        img = open_image(data)
        assert sorted(img.size) == [64, 96]
    text = struct.pack('<HHIHHI', 0, 0, 0, 0, 0, 0)
    exif = b'Exif\0\0II*\0\x08\0\0\0\x01\0' + struct.pack('<HHI4s', 0x0112, 2, 4, b'six\0') + text  # a text where a number should be
    assert open_image(encoded(photo(), exif=exif)).size == (96, 64)


# what can't be used, and why

def cut(data, share): return data[:int(len(data)*share)]

@pytest.mark.parametrize('format', ['jpeg', 'png', 'gif', 'webp', 'bmp', 'tiff', 'jpeg2000', 'ppm', 'avif'])
@pytest.mark.parametrize('share', [0.1, 0.5, 0.9])
def test_truncated(format, share, tmp_path):
    Image.init()
    if format.upper() not in Image.SAVE: pytest.skip(f'this Pillow writes no {format}')
    path = tmp_path/'a'
    path.write_bytes(cut(encoded(noisy(), format), share))
    found = probe_image(path)['error'].partition(':')[0]
    assert found == reason(path)
    if format in ('jpeg', 'png', 'webp', 'bmp', 'ppm'): assert found == 'truncated'
    else: assert found in ('truncated', 'damaged') or format in ('avif', 'jpeg2000') and found == 'not an image'

@pytest.mark.parametrize('kwargs', [{}, dict(progressive=True), dict(quality=30, subsampling=0)], ids=str)
def test_the_quick_look_finds_every_cut(kwargs, tmp_path):
    "A JPEG is probed at an eighth of its size and in grey; wherever it breaks off, that finds what a full decode finds"
    whole, path = encoded(noisy(), **kwargs), tmp_path/'a.jpg'
    for n in [*range(3, 700, 13), *range(700, len(whole)-2, 997), *range(len(whole)-40, len(whole))]:
        path.write_bytes(whole[:n])
        try: open_image(path); full = ''
        except ImageError as e: full = e.reason
        assert probe_image(path)['error'].partition(':')[0] == full, n
        if n < len(whole) - 40: assert full == 'truncated', n

def test_reasons_of_files(tmp_path):
    file = tmp_path/'a.jpg'
    cases = {'empty': b'', 'not an image': b'hello, I am a text', 'truncated': cut(encoded(noisy()), .5),
            'too many pixels': png_header(60000, 60000)}
    for expected, data in cases.items():
        file.write_bytes(data)
        assert reason(file) == reason(data) == reason(io.BytesIO(data)) == expected
        assert probe_image(file)['error'].startswith(expected)
    for o in (tmp_path/'nowhere.jpg', file/'below.jpg', tmp_path/('x'*300), 'a\0b'): assert reason(o) == 'missing'
    assert reason(tmp_path) == 'not an image'

@pytest.mark.parametrize('data,what', [(b'\xef\xbb\xbf \n<!DOCTYPE HTML><p>', 'a web page'), (b'<html>', 'a web page'),
    (b'<?xml version="1.0"?><svg/>', 'SVG'), (b'%PDF-1.7', 'PDF'), (b'PK\3\4....', 'ZIP'),
    (b'{"error": 404}', 'JSON'), (b'version https://git-lfs.github.com/spec/v1\noid', 'git lfs pull'),
    (b'\0\0\0\x18ftypheic\0\0\0\0', 'HEIC'), (b'\0'*100, ''), (os.urandom(1000).replace(b'\xff', b'a'), '')])
def test_not_an_image_says_what_it_looks_like(data, what):
    with pytest.raises(ImageError) as e: open_image(data)
    assert e.value.reason == 'not an image' and what in e.value.details

def test_postscript_is_not_run():
    assert reason(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage') == 'not an image'

def test_damaged():
    data = bytearray(encoded(noisy(), 'png'))
    data[len(data)//2] ^= 0xff
    assert reason(bytes(data)) in ('damaged', 'truncated')
    broken = bytearray(encoded(photo(), 'png')); broken[29] ^= 0xff  # the checksum of the header
    assert reason(bytes(broken)) == 'damaged'
    assert reason(b'\xff\xd8\xff' + b'\0'*500 + b'\xff\xd9') == 'damaged'

def test_random_damage_raises_nothing_else():
    rng = np.random.default_rng(0)
    for format in ('jpeg', 'png', 'gif', 'webp', 'bmp', 'tiff'):
        whole = encoded(photo(), format)
        for _ in range(60):
            data = bytearray(whole)
            for i in rng.integers(0, len(data), 8): data[i] = rng.integers(256)
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                try: open_image(bytes(data), max_pixels=10**6)
                except ImageError as e: assert e.reason in REASONS

def test_too_many_pixels():
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    assert reason(photo().resize((200, 100)).tobytes() and encoded(photo(200, 100)), max_pixels=19_999) == 'too many pixels'
    assert open_image(encoded(photo(200, 100)), max_pixels=20_000).size == (200, 100)
    assert reason(png_header(20000, 20000)) == 'too many pixels'
    assert reason(png_header(2**31-1, 2**31-1)) == 'too many pixels'
    assert Image.MAX_IMAGE_PIXELS == limit and warnings.filters == filters
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert reason(png_header(10000, 10000)) == 'too many pixels'  # Pillow's warning, where warnings are errors

def test_a_long_strip_costs_no_memory():
    assert eval_image(Image.new('RGB', (20_000, 2)), 64, 96).shape == (64, 64, 3)
    assert fit_short_side(Image.new('RGB', (2, 20_000)), 96).size == (96, 96*16)

@pytest.mark.skipif(os.name == 'nt', reason='links need a privilege there')
def test_links_and_pipes(tmp_path):
    (tmp_path/'whole.png').write_bytes(encoded(photo(), 'png'))
    (tmp_path/'good').symlink_to('whole.png'); (tmp_path/'broken').symlink_to('gone.png')
    (tmp_path/'a').symlink_to('b'); (tmp_path/'b').symlink_to('a')
    os.mkfifo(tmp_path/'pipe')
    assert open_image(tmp_path/'good').size == (96, 64)
    assert reason(tmp_path/'broken') == 'broken link' and 'gone.png' in probe_image(tmp_path/'broken')['error']
    assert reason(tmp_path/'a') == 'broken link'
    assert reason(tmp_path/'pipe') == 'not an image'  # and doesn't wait for ever

def test_permission(tmp_path, monkeypatch):
    path = tmp_path/'a.png'
    path.write_bytes(encoded(photo(), 'png'))
    def refuse(*args, **kwargs): raise PermissionError(errno.EACCES, 'Permission denied', str(path))
    monkeypatch.setattr('builtins.open', refuse)  # root may read everything, so it is played
    assert reason(path) == 'permission' and probe_image(path)['error'] == 'permission'

def test_input_error_of_the_disk(tmp_path, monkeypatch):
    (tmp_path/'a.png').write_bytes(encoded(photo(), 'png'))
    def fail(*args, **kwargs): raise OSError(errno.EIO, 'Input/output error')
    monkeypatch.setattr('builtins.open', fail)
    with pytest.raises(ImageError, match='damaged: Input/output error'): open_image(tmp_path/'a.png')

def test_the_error_is_a_value_error_and_survives_pickling():
    e = pickle.loads(pickle.dumps(ImageError('a.jpg', 'truncated', 'why')))  # noqa: S301, our own
    assert isinstance(e, DataError) and isinstance(e, ValueError)
    assert (e.file, e.reason, e.details, str(e)) == ('a.jpg', 'truncated', 'why', "can't use `a.jpg`: truncated: why")


# sources

def test_sources_agree(tmp_path):
    path = tmp_path/'a.png'
    path.write_bytes(encoded(photo(), 'png'))
    class Stream(io.RawIOBase):  # as from a socket: can't go back
        def __init__(self, data): self.file = io.BytesIO(data)
        def readable(self): return True
        def readinto(self, b): return self.file.readinto(b)
    with open(path, 'rb') as f:
        f.read(10)
        sources = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), io.BytesIO(path.read_bytes()), f,
                Stream(path.read_bytes()), Image.open(path), photo(), np.asarray(photo())]
        for o in sources: assert open_image(o).tobytes() == photo().tobytes(), type(o)

def test_arrays():
    grey = np.asarray(photo().convert('L'))
    assert (pixels(open_image(grey)) == grey[..., None]).all() and (pixels(open_image(grey[..., None])) == grey[..., None]).all()
    assert open_image(np.asarray(photo().convert('RGBA'))).tobytes() == photo().tobytes()
    assert open_image(np.asarray(photo())[::-1, ::2]).size == (48, 64)
    for bad in (np.zeros((4, 4), np.float32), np.zeros((4, 4, 5), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 4, 3), np.uint8),
            np.zeros((2, 4, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match='image array'): open_image(bad)
    for bad in (None, 3, io.StringIO('text'), [1, 2]):
        with pytest.raises(TypeError, match='an image must be a path'): open_image(bad)

def test_the_source_stays_as_it_was():
    img = photo().convert('RGBA'); img.info['comment'] = 'mine'
    before = img.tobytes()
    res = open_image(img); res.putpixel((0, 0), (1, 2, 3))
    assert img.tobytes() == before and img.info == {'comment': 'mine'}
    rgb = photo()
    open_image(rgb).putpixel((0, 0), (1, 2, 3))
    assert rgb.tobytes() == photo().tobytes()
    array = np.asarray(photo()).copy()
    open_image(array).putpixel((0, 0), (1, 2, 3))
    assert (array == np.asarray(photo())).all()

def test_no_open_files_are_left(tmp_path):
    path, bad = tmp_path/'a.jpg', tmp_path/'b.jpg'
    path.write_bytes(encoded(photo())); bad.write_bytes(cut(encoded(noisy()), .5))
    with warnings.catch_warnings():
        warnings.simplefilter('error', ResourceWarning)
        for _ in range(5):
            open_image(path); probe_image(path); probe_image(path, decode=False); probe_image(bad)
    if os.path.isdir('/proc/self/fd'): assert not [o for o in os.listdir('/proc/self/fd') if str(tmp_path) in os.path.realpath(f'/proc/self/fd/{o}')]

def test_threads(tmp_path):
    paths = [tmp_path/f'{i}.jpg' for i in range(20)]
    for i, o in enumerate(paths): o.write_bytes(encoded(noisy(seed=i)))
    wanted, got = [open_image(o).tobytes() for o in paths], [None]*20
    def work(i): got[i] = open_image(paths[i]).tobytes()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(20)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert got == wanted


# geometry

@pytest.mark.parametrize('short_side', [1, 7, 16, 31, 32, 33, 63, 64, 100, 150, 151, 300])
@pytest.mark.parametrize('size', [(200, 150), (150, 200), (150, 150), (257, 129), (333, 1)])
def test_decoded_small_but_not_too_small(size, short_side):
    img = open_image(encoded(photo(*size)), short_side=short_side)
    assert min(img.size) >= min(short_side, min(size)) and img.width <= size[0] and img.height <= size[1]
    assert min(img.size) < max(2*short_side+2, 9) * 8

@pytest.mark.parametrize('size', [(200, 150), (150, 200), (90, 90), (1000, 10), (3, 40), (1, 1)])
@pytest.mark.parametrize('short_side', [1, 50, 128])
def test_fit_short_side(size, short_side):
    img = fit_short_side(photo(*size), short_side)
    assert min(img.size) == short_side
    if max(size) <= 16*min(size): assert abs(max(img.size)/short_side - max(size)/min(size)) <= .5/short_side + 1e-9
    assert fit_short_side(photo(*size), short_side, method='squish').size == (short_side, short_side)
    assert fit_short_side(img, short_side) is img

def test_eval_image_is_the_two_steps(tmp_path):
    path = tmp_path/'a.jpg'
    path.write_bytes(encoded(noisy(401, 300)))
    for size, presize in ((64, 64), (64, 96), (33, 50), (128, 300)):
        for method in ('crop', 'squish'):
            kept = fit_short_side(open_image(path, short_side=presize), presize, method=method)  # what a cache would keep
            assert (eval_image(path, size, presize, method=method) == eval_image(kept, size, presize, method=method)).all()
            assert eval_image(path, size, presize, method=method).dtype == np.uint8
    for args in ((64, 32), (0, 32), (-1, 32)):
        with pytest.raises(ValueError, match='presize'): eval_image(path, *args)

def test_the_middle_is_taken():
    img = Image.new('RGB', (300, 100), 'red'); img.paste('lime', (100, 0, 200, 100))
    assert (eval_image(img, 100, 100) == (0, 255, 0)).all()
    assert (eval_image(img.transpose(Image.Transpose.ROTATE_90), 100, 100) == (0, 255, 0)).all()

def test_import_is_light():
    code = "import sys, imgcls.images; bad = {'fastai', 'torch', 'pandas', 'matplotlib', 'fastcore'} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, '-c', code], check=True)


# a PNG's EXIF data are read by loading it: that must not hide that its inside is spoilt

def test_a_png_that_is_damaged_inside_is_found():
    import tempfile
    data = bytearray(encoded(noisy(), 'png'))
    data[len(data)//2:len(data)//2+200] = b'\xff'*200
    assert reason(bytes(data)) == 'damaged'
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'a.png')
        with open(path, 'wb') as f: f.write(data)
        for thumbnail in (0, 48): assert probe_image(path, thumbnail=thumbnail)['error'].startswith('damaged')
        assert probe_image(path, decode=False)['error'] == ''
