"""Decoding and presizing large photos: the path of `image_loaders` (`OpenImage`, `Presize`) against fastai's `PILImage.create` and `Resize`.

    python benchmarks/presize.py [--quick] [--sides 460 256 192]

Both bring JPEGs of 3000 × 2000 to squares of 460, 256 and 192 pixels, cut at random as in training, in as many processes as there are cores, and run
in turn. Prints images per second (median) and the ratio to fastai in the same round (median, with the smallest and the largest). The photos
are cuts of the two that come with scikit-learn, enlarged, with the noise of a sensor. That both see the same is checked first, on the
middle squares of evaluation.
"""
import argparse, multiprocessing, os, platform, random, statistics, sys, time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import fastai, numpy as np, PIL
from fastai.vision.augment import Resize
from fastai.vision.core import PILImage
from PIL import Image
from sklearn.datasets import load_sample_images

from imgcls.core import available_cores
from imgcls.data.loaders import OpenImage
from imgcls.data.presize import Presize


def processor():
    "The name of the processor, as far as the system tells it"
    info = Path('/proc/cpuinfo')
    names = [o.partition(':')[2].strip() for o in info.read_text().splitlines() if o.startswith('model name')] if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def make_photos(folder, n):
    "Write `n` JPEGs of 3000 × 2000 pixels"
    rng, photos = np.random.default_rng(0), [Image.fromarray(o) for o in load_sample_images().images]
    for i in range(n):
        photo = photos[i % 2]
        width = int(rng.integers(400, 601))
        left, top = (int(rng.integers(0, o + 1)) for o in (photo.width - width, photo.height - width*2//3))
        img = photo.resize((3000, 2000), Image.Resampling.BICUBIC, box=(left, top, left + width, top + width*2//3))
        noisy = np.asarray(img) + rng.normal(0, 8, (2000, 3000, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder/f'{i:02d}.jpg', quality=90)
    return sorted(folder.iterdir())


@cache
def steps(name, side): return (PILImage.create, Resize(side)) if name == 'fastai' else (OpenImage(side), Presize(side, side))

def square(name, file, side, split_idx=0):
    open_, resize = steps(name, side)
    return resize(open_(file), split_idx=split_idx)

def work(name, files, side):
    for o in files:
        if square(name, o, side).size != (side, side): raise RuntimeError(f'{name} made something else of {o}')
    return len(files)


def check_same(files, side):
    "The mean difference of the middle squares; two filters and two ways of decoding may differ by a few of 255"
    res = [np.abs(np.asarray(square('fastai', o, side, 1), int) - np.asarray(square('imgcls', o, side, 1), int)).mean() for o in files]
    if max(res) > 4: raise RuntimeError(f'the two sides see different pictures: {max(res):.1f} of 255 apart')
    return max(res)


def measure(files, side, rounds, pool, cores):
    "Images per second of both sides, in turn"
    speed = {'fastai': [], 'imgcls': []}
    for i in range(rounds + 1):
        for name, seen in speed.items():
            start = time.perf_counter()
            done = sum(pool.map(work, [name]*cores, [files[k::cores] for k in range(cores)], [side]*cores))
            if i: seen.append(done/(time.perf_counter() - start))  # the first round warms up
    return speed


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='fewer photos, three rounds')
    p.add_argument('--sides', nargs='+', type=int, default=[460, 256, 192], help='pixels of the short side')
    args = p.parse_args()
    cores, rounds, n = available_cores(), 3 if args.quick else 7, 8 if args.quick else 32
    random.seed(0)
    with TemporaryDirectory() as d:
        files = make_photos(Path(d), n)
        size = sum(os.path.getsize(o) for o in files)/n
        apart = ', '.join(f'{check_same(files[:4], o):.1f}' for o in args.sides)
        print(f'Python {sys.version.split()[0]}, fastai {fastai.__version__}, Pillow {PIL.__version__}; {cores} processes on {processor()}\n'
              f'{n} JPEGs of 3000 × 2000, {size/1e6:.1f} MB each; middle squares at most {apart} of 255 apart\n')
        print('| | px | images/s | ratio to fastai (smallest to largest) |\n| --- | --- | --- | --- |')
        with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context('fork') if sys.platform.startswith('linux') else None) as pool:
            for side in args.sides:
                speed = measure(files, side, rounds, pool, cores)
                ratios = sorted(a/b for a, b in zip(speed['imgcls'], speed['fastai']))
                print(f'| fastai: `PILImage.create`, `Resize` | {side} | {statistics.median(speed["fastai"]):.1f} | 1 |')
                middle = f'{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})'
                print(f'| imgcls: `OpenImage`, `Presize` | {side} | {statistics.median(speed["imgcls"]):.1f} | {middle} |', flush=True)


if __name__ == '__main__': main()
