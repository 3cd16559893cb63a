"""The classic networks on all of CIFAR-10: what each reaches on the 10,000 test photos when it begins with random weights.

    python benchmarks/cifar10_full.py [--quick] [--networks minivggnet minigooglenet] [--epochs 30] [--lr 0.003] [--folder FOLDER]

The photos come from `sample('cifar10')`, which downloads them (168 MB) where they aren't on the machine, or from FOLDER with train/CLASS/ and
test/CLASS/. A tenth of train is kept for validation and is looked at after each epoch; the settings are those that tutorial 6 chose on
validation with a tenth of the photos, and are the same for all networks. The test photos are read once for each network, after its training.

Prints for each network its parameters, minutes, the accuracy on validation, and that on the test photos with Wilson's 95 % interval. Takes minutes
on a graphics card and hours on a processor, so that `make bench` leaves it out. `--quick` trains one epoch on 400 of the photos that are on the machine, or
on the digits of scikit-learn, to see that everything runs; its figures mean nothing.
"""
import argparse, os, sys, time
from pathlib import Path

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
import numpy as np
import torch
from fastai.callback import schedule  # noqa: F401 - gives `Learner` its fit_one_cycle
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import LabelSmoothingCrossEntropyFlat
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from torch.nn import functional as F

from imgcls.compute import tune_allocator
from imgcls.core import DataError, progress
from imgcls.data.labels import class_vocab, to_indices
from imgcls.data.samples import sample
from imgcls.data.splits import split_table
from imgcls.data.tables import image_table, table_root
from imgcls.evaluate.metrics import accuracy_estimate
from imgcls.images import eval_image
from imgcls.models.classic import NETWORKS, create_model
from imgcls.predictions import Predictions
from imgcls.train.callbacks import History

whole = 60_000  # photos in CIFAR-10


def choose_table(folder, quick, seed):
    "The photos with their splits, or an error that says what is missing"
    if folder is None and quick:
        try: folder = sample('cifar10', download=False)
        except DataError: folder = sample('digits')
    table = image_table(folder or sample('cifar10'), valid=0.1, seed=seed, verify='header')
    if not (table['split'] == 'test').any(): table = split_table(table, valid=0.1, test=0.2, seed=seed)
    if folder is None and len(table) < whole:
        raise DataError(f'{table_root(table)} has {len(table):,} photos, and CIFAR-10 has {whole:,}. Without IMGCLS_DATA all of them are downloaded; '
                        '--folder takes any folder as it is.')
    return table.sample(frac=1, random_state=seed).groupby('split').head(400) if quick else table


def load(table):
    "For each split the pictures (n, 3, 32, 32) of 8 bits and their classes; and the names of the classes"
    vocab, root, res = class_vocab(table['label']), table_root(table), {}
    for split, rows in table[table['error'] == ''].groupby('split'):
        pictures = np.stack([eval_image(root/o, 32, 32) for o in progress(rows['path'].tolist(), label=f'reading {split}')])
        res[split] = torch.tensor(pictures).permute(0, 3, 1, 2).contiguous(), torch.tensor(to_indices(rows['label'], vocab))
    return res, vocab


def vary(x, by=4):
    "Half of the pictures mirrored, each moved by up to `by` pixels, the rim filled by its mirror image"
    n, _, h, w = x.shape
    wide = F.pad(torch.where(torch.rand(n, 1, 1, 1, device=x.device) < 0.5, x.flip(-1), x), [by]*4, mode='reflect')
    top, left = torch.randint(0, 2*by + 1, (2, n), device=x.device)
    return wide.unfold(2, h, 1).unfold(3, w, 1)[torch.arange(n, device=x.device), :, top, left]


def loader(pair, device, *, bs=500, train=False):
    def ready(batch):
        x, y = batch
        x = (x.float()/255 - 0.5)/0.25
        return (vary(x) if train else x).contiguous(memory_format=torch.channels_last), y
    return DataLoader(list(zip(*pair)), bs=min(bs, len(pair[0])), shuffle=train, drop_last=train, after_batch=ready, device=device)


def train(name, data, vocab, args, device):
    "The trained learner of one network, a line for each epoch on standard error"
    set_seed(args.seed, reproducible=True)
    net = create_model(name, len(vocab), size=32).to(device, memory_format=torch.channels_last)
    dls = DataLoaders(loader(data['train'], device, bs=args.bs, train=True), loader(data['valid'], device), device=device)
    learn = Learner(dls, net, loss_func=LabelSmoothingCrossEntropyFlat(), metrics=accuracy, cbs=History())
    learn.logger = lambda o: print(f'{name}, epoch {o[0] + 1}: train loss {o[1]:.3f}, valid loss {o[2]:.3f}, accuracy {o[3]:.3f} in {o[4]}', file=sys.stderr, flush=True)
    with learn.no_bar(): learn.fit_one_cycle(1 if args.quick else args.epochs, args.lr)
    return learn


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='one epoch on 400 pictures, without a download')
    p.add_argument('--networks', nargs='+', default=['lenet', 'minivggnet', 'minigooglenet', 'minixception'], choices=[o for o in NETWORKS if 'alexnet' not in o])
    p.add_argument('--epochs', type=int, default=30)
    p.add_argument('--lr', type=float, default=3e-3, help='peak of the one-cycle schedule')
    p.add_argument('--bs', type=int, default=64, help='photos in a batch')
    p.add_argument('--seed', type=int, default=42)
    p.add_argument('--folder', type=Path, help='with train/CLASS/ and test/CLASS/, instead of the download')
    args = p.parse_args()
    try: table = choose_table(args.folder, args.quick, args.seed)
    except (DataError, FileNotFoundError) as e: sys.exit(str(e))
    tune_allocator()
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    data, vocab = load(table)
    counts = ', '.join(f'{len(data[o][0]):,} {o}' for o in ('train', 'valid', 'test'))
    print(f'Python {sys.version.split()[0]}, torch {torch.__version__}, {device.type}, {torch.get_num_threads()} threads; {Path(table_root(table)).name}: {counts}\n'
          f'{1 if args.quick else args.epochs} epochs, one cycle up to {args.lr:g}, batches of {args.bs}, seed {args.seed}\n', flush=True)
    print('| network | parameters | minutes | valid | test, 95 % interval |\n| --- | --- | --- | --- | --- |', flush=True)
    for name in args.networks:
        begin = time.perf_counter()
        learn = train(name, data, vocab, args, device)
        minutes, valid = (time.perf_counter() - begin)/60, learn.history[-1]['accuracy']
        with learn.no_bar(): probs, targets = learn.get_preds(dl=loader(data['test'], device))
        found = accuracy_estimate(Predictions(probs.numpy(), vocab, targets=targets.numpy(), split='test'))
        size = sum(o.numel() for o in learn.model.parameters())
        print(f'| {name} | {size:,} | {minutes:.1f} | {valid:.3f} | {found.value:.3f} ({found.low:.3f} to {found.high:.3f}) |', flush=True)


if __name__ == '__main__': main()
