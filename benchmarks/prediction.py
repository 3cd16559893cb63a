"""How quickly a saved classifier answers, beside stock fastai with the same weights: one photo, many photos, and from the start of the process.

    python benchmarks/prediction.py [--quick] [--rounds 5]

Photos of `clothing` at 224 px, or digits where these aren't on the machine, and one network on both sides: EfficientNet-Lite0 with its ImageNet weights and a
head that is trained beforehand on the features of training photos. Stock fastai gets a plain `Learner` with its own loaders (`ImageDataLoaders`,
`Resize(224)`), exported with `learn.export` and read with `load_learner`; imgcls gets the bundle of the same weights. A third side is the learner of imgcls
with its own loaders, from which the bundle comes.

- One photo, warm: `learn.predict(file)`, imgcls's `predict` on a table of one row, and `Classifier.predict(file)`, for the same files in turn.
- Many photos from disk: `learn.get_preds` of a `test_dl` with fastai's defaults, and `Classifier.predictions`. These are the validation and the test photos.
- The start: a script with `load_learner` and `predict`, and `imgcls predict BUNDLE PHOTO`, from the start of the process to its end.

Every measurement is a process of its own, the sides in turn, so that no side warms the other's caches. Both sides also say what is on the many photos: how
often they are right is printed, and if they disagree too often, which the two ways to resize a photo explain only in part, nothing is.
"""
import argparse, json, platform, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np
import torch

STOCK = '''
from fastai.vision.all import *
learn = load_learner(sys.argv[1])
with learn.no_bar(): print(learn.predict(sys.argv[2])[0])
'''
OURS = 'import sys; from imgcls.cli import main; sys.exit(main(["predict", *sys.argv[1:]]))'  # what the installed script does
NAMES = dict(stock='stock fastai', learner="imgcls's learner", ours='the bundle')


def photos():
    "All usable photos, and those of them that are asked about"
    from imgcls.core import DataError
    from imgcls.data.samples import sample
    from imgcls.data.tables import image_table
    try: table = image_table(sample('clothing', download=False), verify='header')
    except DataError: table = image_table(sample('digits'))
    rows = table[table['error'] == '']
    return rows, rows[rows['split'] != 'train'].sample(frac=1, random_state=42)


def stock_learner(rows, model):
    "A plain `Learner` of fastai around the trained network, which has its normalization inside"
    from fastai.vision.all import CrossEntropyLossFlat, ImageDataLoaders, Learner, Normalize, Resize
    dls = ImageDataLoaders.from_df(rows.assign(is_valid=rows['split'] != 'train'), rows.attrs['root'], fn_col='path', label_col='label', valid_col='is_valid',
                                   item_tfms=Resize(224), bs=64)
    for dl in dls.loaders: dl.after_batch.fs = [o for o in dl.after_batch.fs if not isinstance(o, Normalize)]
    return Learner(dls, model, loss_func=CrossEntropyLossFlat())


def our_learner(rows):
    from imgcls.data.loaders import image_loaders
    from imgcls.train.learner import image_learner
    return image_learner(image_loaders(rows, size=224, augment='none', check=None))


def prepare(folder, args):
    "Train a head, and write the same network as fastai's export and as a bundle"
    import copy
    from imgcls.deploy.bundle import save_bundle
    from imgcls.train.learner import fine_tune
    from safetensors.torch import save_file
    rows, _ = photos()
    few = rows[rows['split'] == 'train'].sample(frac=1, random_state=42).groupby('label').head(20 if args.quick else 100)
    learn = our_learner(rows[rows.index.isin(few.index) | (rows['split'] == 'valid')])
    with learn.no_bar(), learn.no_logging(): fine_tune(learn, 0, freeze_epochs=4)
    save_bundle(learn, folder/'bundle')
    save_file({k: v.contiguous().clone() for k, v in learn.model.state_dict().items()}, folder/'weights.safetensors')
    model = copy.deepcopy(learn.model).to(memory_format=torch.contiguous_format)
    stock = stock_learner(rows, model)
    if list(stock.dls.vocab) != list(learn.dls.vocab): sys.exit('the two sides have other classes')
    stock.export((folder/'stock.pkl').absolute())


def load(side, folder):
    if side == 'stock':
        from fastai.learner import load_learner
        learn = load_learner(folder/'stock.pkl')
        return learn, list(learn.dls.vocab)
    if side == 'ours':
        from imgcls.deploy.predictor import load_bundle
        classifier = load_bundle(folder/'bundle')
        return classifier, classifier.vocab
    from safetensors.torch import load_file
    learn = our_learner(photos()[0])
    learn.model.load_state_dict(load_file(folder/'weights.safetensors'))
    return learn, list(learn.dls.vocab)


def one_photo(side, folder, n):
    "Median seconds of an answer to one photo, warm, and what was said"
    from imgcls.train.learner import predict
    thing, vocab = load(side, folder)
    rows = photos()[1].head(n)
    root, said, seconds = Path(rows.attrs['root']), [], []
    def ask(i):
        file = root/rows['path'].iloc[i]
        if side == 'stock':
            with thing.no_bar(): return thing.predict(file)[0]
        if side == 'ours': return thing.predict(file)['label'].iloc[0]
        with thing.no_bar(): return predict(thing, rows.iloc[i:i + 1]).labels[0]
    for i in range(min(5, n)): ask(i)
    for i in range(n):
        began = time.perf_counter()
        said.append(ask(i))
        seconds.append(time.perf_counter() - began)
    return dict(seconds=statistics.median(seconds), said=said)


def many_photos(side, folder, n):
    "Seconds for all photos, from their paths to probabilities, and what was said"
    thing, vocab = load(side, folder)
    rows = photos()[1].head(n)
    files = [Path(rows.attrs['root'])/o for o in rows['path']]
    began = time.perf_counter()
    if side == 'stock':
        with thing.no_bar(): probs = thing.get_preds(dl=thing.dls.test_dl(files))[0].numpy()
    else: probs = thing.predictions(files).probs
    return dict(seconds=time.perf_counter() - began, said=[vocab[i] for i in probs.argmax(1)])


def start(side, folder):
    "Seconds from the start of a process to its end, with one answer"
    rows = photos()[1]
    file = str(Path(rows.attrs['root'])/rows['path'].iloc[0])
    command = ['-c', STOCK, str(folder/'stock.pkl'), file] if side == 'stock' else ['-c', OURS, str(folder/'bundle'), file]
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode: sys.exit(done.stderr)
    return dict(seconds=seconds, said=done.stdout.strip().split('\t')[1 if side == 'ours' else 0])


def run(what, side, folder, n, args):
    "One measurement in a process of its own"
    if what == 'start': return start(side, folder)
    out = folder/'out.json'
    subprocess.run([sys.executable, __file__, '--one', what, '--side', side, '--folder', str(folder), '--photos', str(n)], check=True)
    return json.loads(out.read_text())


def table(title, unit, found, scale=1.):
    "A table with the medians of the rounds and the ratio of each to stock"
    print(f'\n| {title} | {unit} (smallest to largest) | ratio to stock (smallest to largest) |\n| --- | --- | --- |')
    for side, rounds in found.items():
        v, ratios = sorted(o['seconds']*scale for o in rounds), sorted(a['seconds']/b['seconds'] for a, b in zip(found['stock'], rounds))
        print(f'| {NAMES[side]} | {statistics.median(v):.2f} ({v[0]:.2f} to {v[-1]:.2f}) | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |')


def machine():
    from imgcls.compute import bf16_reason
    from imgcls.core import available_cores, package_versions
    try: cpu = next(o.partition(':')[2].strip() for o in Path('/proc/cpuinfo').read_text().splitlines() if o.startswith('model name'))
    except (OSError, StopIteration): cpu = platform.processor()
    versions = ', '.join(f'{k} {v}' for k, v in package_versions('fastai', 'torch', 'torchvision', 'timm', 'pillow', 'pandas').items())
    print(f'Python {platform.python_version()}, {versions}; {torch.get_num_threads()} threads, {available_cores()} cores of {cpu}; {bf16_reason("cpu")[1]}')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='one round, fewer photos')
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--photos', type=int); p.add_argument('--one'); p.add_argument('--side'); p.add_argument('--folder', type=Path)
    args = p.parse_args()
    if args.one:
        measure = dict(one=one_photo, many=many_photos)[args.one]
        (args.folder/'out.json').write_text(json.dumps(measure(args.side, args.folder, args.photos)))
        return
    rows = photos()[1]
    rounds, few, many = (1, 10, 96) if args.quick else (args.rounds, 50, len(rows))
    sides = dict(one=('stock', 'learner', 'ours'), many=('stock', 'ours'), start=('stock', 'ours'))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        prepare(folder, args)
        found = {what: {side: [] for side in o} for what, o in sides.items()}
        for _ in range(rounds):
            for what, o in found.items():
                for side in o: o[side].append(run(what, side, folder, few if what == 'one' else many, args))
    said = {side: np.array(found['many'][side][0]['said']) for side in ('stock', 'ours')}
    right = {side: (o == rows['label'].head(many).to_numpy()).mean() for side, o in said.items()}
    same = (said['stock'] == said['ours']).mean()
    if same < 0.85 or right['ours'] < right['stock'] - 0.03: sys.exit(f'the two sides say something else: the same for {same:.1%} of {many} photos; right: {right}')
    machine()
    table(f'one photo, warm, median of {few}', 'ms', found['one'], 1000)
    table(f'{many} photos from disk', 's', found['many'])
    table('from the start of the process to the answer', 's', found['start'])
    print(f'\nOf {many} photos stock fastai is right about {right["stock"]:.1%} and the bundle about {right["ours"]:.1%}; they say the same about {same:.1%}, '
          'as photos are resized in two ways.')
    learner, ours = (np.array(found['one'][o][0]['said']) for o in ('learner', 'ours'))
    print(f'Of {few} photos one at a time the bundle and the learner that it comes from say the same about {(learner == ours).mean():.1%}.')


if __name__ == '__main__': main()
