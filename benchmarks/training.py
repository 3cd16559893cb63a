"""How long training takes beside stock fastai, and how good the result is: the same network, photos and epochs.

    python benchmarks/training.py [--quick] [--rounds 3] [--only fine_tune frozen unfrozen lr_find]

Photos of `clothing`, or digits where these aren't on the machine, and EfficientNet-Lite0 with its ImageNet weights on all sides. Stock fastai is a plain
`Learner` with its own loaders (`ImageDataLoaders`, `Resize`, `aug_transforms`), whose head is that of imgcls; `stock, BN eval` is the same with the batch
normalization of the body in evaluation mode, for the accuracy. `plain PyTorch` is a loop by hand with torchvision's transforms v2 and `torch.optim`.

- fine_tune: 3 frozen epochs, then 3 of all layers, at 128 px: from the table of the photos to the trained network, everything but imports
- frozen: the first 3 of them alone
- unfrozen: one epoch of all layers at 224 px
- lr_find: 100 steps at 128 px

Every measurement is a process of its own, the sides in turn. For `fine_tune` the accuracy on the validation photos is measured afterwards, outside of the
time, and the difference to the better of both stock sides with its paired 95 % interval.
"""
import argparse, json, platform, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np
import torch

NAMES = dict(stock='stock fastai', stock_eval='stock, BN eval', plain='plain PyTorch', ours='imgcls')
SIDES = dict(fine_tune=('stock', 'stock_eval', 'ours'), frozen=('stock', 'ours'), unfrozen=('stock', 'plain', 'ours'), lr_find=('stock', 'ours'))
SIZES = dict(fine_tune=128, frozen=128, unfrozen=224, lr_find=128)


def photos(n):
    "Training and validation photos; `n` and a quarter of it, if given"
    import pandas as pd
    from imgcls.core import DataError
    from imgcls.data.samples import sample
    from imgcls.data.tables import image_table
    try: table = image_table(sample('clothing', download=False), verify='header')
    except DataError: table = image_table(sample('digits'))
    rows = table[(table['error'] == '') & (table['split'] != 'test')]
    if not n: return rows
    parts = [rows[rows['split'] == split].sample(k, random_state=42) for split, k in (('train', n), ('valid', n//4))]
    res = pd.concat(parts, ignore_index=True)
    res.attrs.update(rows.attrs)
    return res


def network(rows):
    from imgcls.models.pretrained import image_model
    torch.manual_seed(42)
    return image_model('efficientnet_lite0', rows['label'].nunique())


def stock_learner(rows, size, bn_eval):
    from fastai.vision.all import CrossEntropyLossFlat, ImageDataLoaders, Learner, Normalize, Resize, accuracy, aug_transforms, params, set_seed
    from imgcls.train.callbacks import BnEval
    set_seed(42)
    dls = ImageDataLoaders.from_df(rows.assign(is_valid=rows['split'] == 'valid'), rows.attrs['root'], fn_col='path', label_col='label', valid_col='is_valid',
                                   item_tfms=Resize(round(size*4/3)), batch_tfms=aug_transforms(size=size), bs=64)
    for dl in dls.loaders: dl.after_batch.fs = [o for o in dl.after_batch.fs if not isinstance(o, Normalize)]  # it is in the network
    def splitter(model): return [params(model[0]), params(model[1])]
    return Learner(dls, network(rows), loss_func=CrossEntropyLossFlat(), splitter=splitter, metrics=accuracy, cbs=BnEval() if bn_eval else None)


def our_learner(rows, size):
    from imgcls.data.loaders import image_loaders
    from imgcls.train.learner import image_learner
    return image_learner(image_loaders(rows, size=size, check=None))


def plain_epoch(rows, size):
    "A training epoch and a look at the validation photos, written by hand; returns its seconds"
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision.transforms import v2
    root, vocab = Path(rows.attrs['root']), sorted(set(rows['label']))

    class Photos(Dataset):
        def __init__(self, rows, steps): self.paths, self.labels, self.steps = rows['path'].tolist(), [vocab.index(o) for o in rows['label']], steps
        def __len__(self): return len(self.paths)
        def __getitem__(self, i):
            with Image.open(root/self.paths[i]) as img: return self.steps(img.convert('RGB')), self.labels[i]

    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    steps = dict(train=v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), *last]),
                 valid=v2.Compose([v2.Resize(round(size/0.875), antialias=True), v2.CenterCrop(size), *last]))
    began = time.perf_counter()
    loaders = {k: DataLoader(Photos(rows[rows['split'] == k], o), batch_size=64, shuffle=k == 'train', drop_last=k == 'train', num_workers=2) for k, o in steps.items()}
    model = network(rows)
    opt = torch.optim.AdamW([dict(params=model[0].parameters(), lr=1e-5), dict(params=model[1].parameters(), lr=1e-3)])
    model.train()
    for x, y in loaders['train']:
        opt.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
    model.eval()
    with torch.no_grad():
        for x, _ in loaders['valid']: model(x).argmax(1)
    return time.perf_counter() - began


def measure(what, side, n):
    "Seconds, and for `fine_tune` what is said about the validation photos"
    rows, size, probs = photos(n), SIZES[what], None
    network(rows)  # imports, and the file of weights is in memory
    if side == 'plain': return dict(seconds=plain_epoch(rows, size))
    from imgcls.train.learner import fine_tune
    began = time.perf_counter()
    learn = our_learner(rows, size) if side == 'ours' else stock_learner(rows, size, side == 'stock_eval')
    with learn.no_bar(), learn.no_logging():
        if what in ('fine_tune', 'frozen'):
            epochs = 3 if what == 'fine_tune' else 0
            if side == 'ours': fine_tune(learn, epochs, freeze_epochs=3)
            else:
                learn.freeze()
                learn.fit_one_cycle(3, slice(2e-3), pct_start=0.99)
                learn.unfreeze()
                if epochs: learn.fit_one_cycle(epochs, slice(1e-3/100, 1e-3), pct_start=0.3, div=5.)
        elif what == 'unfrozen':
            learn.unfreeze()
            learn.fit_one_cycle(1, slice(1e-5, 1e-3))
        else: learn.lr_find(num_it=100, show_plot=False)
        seconds = time.perf_counter() - began
        if what == 'fine_tune': probs = learn.get_preds(dl=learn.dls.valid)[0].tolist()
    return dict(seconds=seconds, probs=probs)


def run(what, side, args):
    "One measurement in a process of its own"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)/'out.json'
        subprocess.run([sys.executable, __file__, '--one', what, '--side', side, '--out', str(out), '--photos', str(args.photos or 0)], check=True, stderr=subprocess.DEVNULL)
        return json.loads(out.read_text())


def accuracies(found, rows):
    "Accuracy of each side, and the difference of imgcls to the better stock side"
    from imgcls.evaluate.metrics import accuracy_estimate, compare_predictions
    from imgcls.predictions import Predictions
    valid, vocab = rows[rows['split'] == 'valid'], sorted(set(rows['label']))
    targets = np.array([vocab.index(o) for o in valid['label']])
    preds = {side: Predictions(np.array(o[0]['probs']), vocab, targets=targets, items=valid['path'].tolist()) for side, o in found.items()}
    for side, o in preds.items(): print(f'- {NAMES[side]}: {accuracy_estimate(o)}')
    best = max(('stock', 'stock_eval'), key=lambda o: preds[o].correct.mean())
    print(f'\nimgcls against {NAMES[best]}: {compare_predictions(preds["ours"], preds[best])}')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='384 photos, one round')
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--photos', type=int, help='training photos, and a quarter as many for validation; all if not given')
    p.add_argument('--only', nargs='+', choices=SIDES, default=list(SIDES))
    p.add_argument('--one'); p.add_argument('--side'); p.add_argument('--out', type=Path)
    args = p.parse_args()
    if args.one:
        args.out.write_text(json.dumps(measure(args.one, args.side, args.photos)))
        return
    if args.quick: args.rounds, args.photos = 1, args.photos or 384
    from imgcls.compute import bf16_reason
    from imgcls.core import available_cores, package_versions
    rows = photos(args.photos)
    versions = ', '.join(f'{k} {v}' for k, v in package_versions('fastai', 'torch', 'torchvision', 'timm', 'pillow').items())
    print(f'Python {platform.python_version()}, {versions}; {torch.get_num_threads()} threads, {available_cores()} cores; {bf16_reason("cpu")[1]}; '
          f'{(rows["split"] == "train").sum():,} training and {(rows["split"] == "valid").sum():,} validation photos of {Path(rows.attrs["root"]).name}')
    for what in args.only:
        found = {side: [] for side in SIDES[what]}
        for _ in range(args.rounds):
            for side, o in found.items(): o.append(run(what, side, args))
        print(f'\n| {what}, {SIZES[what]} px | seconds (smallest to largest) | ratio to stock (smallest to largest) |\n| --- | --- | --- |')
        for side, o in found.items():
            v, ratios = sorted(r['seconds'] for r in o), sorted(a['seconds']/b['seconds'] for a, b in zip(found['stock'], o))
            print(f'| {NAMES[side]} | {statistics.median(v):.1f} ({v[0]:.1f} to {v[-1]:.1f}) | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |', flush=True)
        if what == 'fine_tune':
            print()
            accuracies(found, rows)


if __name__ == '__main__': main()
