"""What the presized cache saves: epochs from the files and from the cache, of the loaders alone and with training.

    python benchmarks/cached_epochs.py [--quick] [--size 128]

Measures, from the files and from the cache in turn:
- items: each training picture opened and presized once, in one process, without augmentation or batches
- loaders: one epoch of the training loader, with its worker processes and augmentation, and no model
- training: one epoch of EfficientNet-Lite0 with all layers trained, loaders included
Prints seconds for each (median) and the ratio of files to cache in the same round (median, with the smallest and the largest), and which share of
a training epoch the items alone would take. Runs on the photos of `clothing` if they are on this machine, otherwise on the sample digits, enlarged to JPEGs
of 400 × 533 with noise. That both sides give the same batch is checked first.
"""
import argparse, platform, statistics, sys, time, warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from PIL import Image

from imgcls.core import DataError, available_cores
from imgcls.data.loaders import image_loaders
from imgcls.data.presize import choose_presize, presize_cache
from imgcls.data.samples import sample
from imgcls.data.tables import image_table, table_root
from imgcls.train.learner import image_learner


def processor():
    "The name of the processor, as far as the system tells it"
    info = Path('/proc/cpuinfo')
    names = [o.partition(':')[2].strip() for o in info.read_text().splitlines() if o.startswith('model name')] if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def enlarged_digits(folder, n):
    rng, digits = np.random.default_rng(0), image_table(sample('digits')).sample(n, random_state=0)
    for path in digits.path:
        img = Image.open(table_root(digits)/path).convert('RGB').resize((400, 533), Image.Resampling.BICUBIC)
        dest = (folder/path).with_suffix('.jpg')
        dest.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.asarray(img) + rng.normal(0, 8, (533, 400, 3))).clip(0, 255).astype(np.uint8)).save(dest, quality=90)
    return image_table(folder)


def choose_table(folder, n):
    "About `n` training photos, a few for validation"
    try: table = image_table(sample('clothing', download=False), verify='header')
    except DataError: table = enlarged_digits(folder/'digits', min(n + 100, 1797))
    root, train, valid = table_root(table), table[table.split == 'train'], table[table.split == 'valid']
    res = pd.concat([train.sample(min(n, len(train)), random_state=0), valid.sample(64, random_state=0)])
    res.attrs['root'] = str(root)
    return res


def read_items(dls):
    for i in range(len(dls.train_ds)): dls.train.create_item(i)

def read_batches(dls):
    for _ in dls.train: pass

def train(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='256 pictures, two rounds')
    p.add_argument('--size', type=int, default=128, help='side of the pictures that the model gets')
    args = p.parse_args()
    warnings.filterwarnings('ignore', category=UserWarning)
    n, rounds, size, presize = 256 if args.quick else 1024, 2 if args.quick else 3, args.size, choose_presize(args.size)
    with TemporaryDirectory() as d:
        table = choose_table(Path(d), n)
        start = time.perf_counter()
        cache = presize_cache(table, presize, folder=Path(d)/'caches')
        built = time.perf_counter() - start
        dls = {'files': image_loaders(table, size=size, presize=presize), 'cache': image_loaders(table, size=size, presize=presize, cache=cache)}
        if not torch.equal(*(o.valid.one_batch()[0] for o in dls.values())): raise RuntimeError('files and cache give different batches')
        learners = {k: image_learner(o) for k, o in dls.items()}
        for o in learners.values(): o.unfreeze()
        n = len(dls['files'].train_ds)
        print(f'Python {sys.version.split()[0]}, torch {torch.__version__}, {torch.get_num_threads()} threads, {dls["files"].train.num_workers} worker processes, '
              f'{available_cores()} cores of {processor()}\n{n} training pictures of {Path(table.attrs["root"]).name}, {size} px, presized to {presize}; '
              f'the cache of all {len(cache)} took {built:.1f} s and {cache.nbytes/1e6:.0f} MB\n')
        measures = {'items': (read_items, dls), 'loaders': (read_batches, dls), 'training': (train, learners)}
        seconds = {k: {o: [] for o in dls} for k in measures}
        for i in range(rounds + 1):
            for k, (measure, sides) in measures.items():
                for name, o in sides.items():
                    start = time.perf_counter()
                    measure(o)
                    if i: seconds[k][name].append(time.perf_counter() - start)  # the first round warms up
    print('| an epoch of | from files, s | from the cache, s | ratio (smallest to largest) |\n| --- | --- | --- | --- |')
    for k, both in seconds.items():
        ratios = sorted(a/b for a, b in zip(both['files'], both['cache']))
        print(f'| {k} | {statistics.median(both["files"]):.2f} | {statistics.median(both["cache"]):.2f} | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |')
    share = {name: statistics.median(a/b for a, b in zip(seconds['items'][name], seconds['training'][name])) for name in dls}
    print(f'\nOpening and presizing, on one core, takes {share["files"]:.1%} of the time of a training epoch from files, and {share["cache"]:.1%} from the cache.')


if __name__ == '__main__': main()
