"""How fast features are made beside stock fastai's `get_preds` with the same body, and how long an epoch of a head takes on them.

    python benchmarks/features.py [--quick]

Photos of `clothing`, or digits where these aren't on the machine, at 224 px through EfficientNet-Lite0 with its ImageNet weights, in evaluation
mode, float32, from files, as many decoding processes on both sides. Stock fastai gets a plain `Learner` with its own loaders
(`ImageDataLoaders.from_df`, `Resize(224)`) and the same body with mean pooling, and none of the settings that imgcls makes: each side runs in
a process of its own, because the allocator is set for the whole process. They run in turn, stock first. A third row gives the stock side
imgcls's allocator and channels-last memory, which says how much of the ratio these two are.
"""
import argparse, json, platform, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np
import torch


def photos(n):
    "`n` training photos, or all for training and validation if `n` is None"
    from imgcls.core import DataError
    from imgcls.data.samples import sample
    from imgcls.data.tables import image_table
    try: table = image_table(sample('clothing', download=False), verify='header')
    except DataError: table = image_table(sample('digits'))
    rows = table[(table['error'] == '') & (table['split'] != 'test')]
    return rows[rows['split'] == 'train'].sample(n, random_state=42) if n else rows


def stock(n, workers, helped):
    "Stock fastai's features of `n` photos, in the order of the table, and seconds"
    from fastai.vision.all import ImageDataLoaders, Learner, Normalize, Resize, noop
    from imgcls.compute import tune_allocator
    from imgcls.models.pretrained import image_model
    if helped: tune_allocator()
    rows = photos(n)
    body = image_model('efficientnet_lite0', 2)[0]
    net = torch.nn.Sequential(body, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    if helped: net = net.to(memory_format=torch.channels_last)
    dls = ImageDataLoaders.from_df(rows, rows.attrs['root'], fn_col='path', label_col='label', valid_pct=0.1, item_tfms=Resize(224), bs=64, num_workers=workers)
    dls.after_batch.fs = [o for o in dls.after_batch.fs if not isinstance(o, Normalize)]
    learn = Learner(dls, net, loss_func=noop)
    dl = dls.test_dl(rows)
    with learn.no_bar():
        began = time.perf_counter()
        found, _ = learn.get_preds(dl=dl, act=noop, reorder=True)
        return found.numpy(), time.perf_counter() - began


def ours(n, workers):
    "The same from `extract_features`"
    from imgcls.data.loaders import image_loaders
    from imgcls.models.pretrained import image_model
    from imgcls.train.features import extract_features
    rows, model = photos(n), image_model('efficientnet_lite0', 2)
    dls = image_loaders(rows, size=224, num_workers=workers, check=None)
    began = time.perf_counter()
    found = extract_features(model, dls, num_workers=workers, compute='auto')
    return np.asarray(found.vectors), time.perf_counter() - began


def head_epochs():
    "Seconds of each epoch of a head on the features of the training photos of `clothing`, at 64 px: the size changes nothing for the head"
    from imgcls.data.loaders import image_loaders
    from imgcls.train.features import frozen_features, on_features
    from imgcls.train.learner import image_learner
    learn = image_learner(image_loaders(photos(None), size=64, check=None), compute='fp32')
    features = frozen_features(learn, 1)
    with on_features(learn, features), learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(5, 2e-3)
    return [o['seconds'] for o in learn.history], int((features.splits == 'train').sum())


def run(what, args):
    "One measurement in a process of its own"
    with tempfile.TemporaryDirectory() as folder:
        out = f'{folder}/out.npy'
        subprocess.run([sys.executable, __file__, '--one', what, '--out', out, '--photos', str(args.photos), '--workers', str(args.workers)], check=True)
        return np.load(out), json.loads(Path(out).with_suffix('.json').read_text())


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='256 photos, one round')
    p.add_argument('--photos', type=int, default=1024)
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--one'); p.add_argument('--out')
    args = p.parse_args()
    if args.one:
        found, seconds = ours(args.photos, args.workers) if args.one == 'ours' else stock(args.photos, args.workers, args.one == 'helped')
        np.save(args.out, found)
        Path(args.out).with_suffix('.json').write_text(json.dumps(seconds))
        return
    if args.quick: args.photos = 256
    seconds, vectors = {k: [] for k in ('stock', 'helped', 'ours')}, {}
    for _ in range(1 if args.quick else 3):
        for k in seconds:
            vectors[k], s = run(k, args)
            seconds[k].append(s)
    from imgcls.compute import bf16_reason
    print(f'Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {args.workers} decoding processes; '
          f'{bf16_reason("cpu")[1]}; {args.photos} photos\n')
    print('| | photos/s | ratio to stock (smallest to largest) |\n| --- | --- | --- |')
    names = dict(stock='stock fastai, `get_preds`', helped='the same, with our allocator and channels last', ours='`extract_features`')
    for k, v in seconds.items():
        ratios = sorted(a / b for a, b in zip(seconds['stock'], v))
        print(f'| {names[k]} | {args.photos / statistics.median(v):.1f} | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |')
    a, b = vectors['stock'], vectors['ours']
    alike = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    if np.median(alike) < 0.9: sys.exit(f'the two sides made different features: cosine {np.median(alike):.3f}')
    print(f'\nThe features are those of pictures that were resized in another way: cosine {np.median(alike):.4f} (median), {alike.min():.3f} (smallest).')
    epochs, n = head_epochs()
    print(f'An epoch of the head on the features of {n:,} photos, validation included: {statistics.median(epochs):.2f} s (largest {max(epochs):.2f} s).')


if __name__ == '__main__': main()
