"""All plots of a run from one inference pass, beside stock fastai's `ClassificationInterpretation`: passes, seconds and memory.

    python benchmarks/interpretation.py [--quick] [--photos 767 1534 3068]

The training photos of `clothing` at 224 px, or digits where these aren't on the machine, and the same network on both sides: EfficientNet-Lite0 with its
ImageNet weights and a head that is trained beforehand. Stock fastai gets a plain `Learner` with its own loaders (`ImageDataLoaders`, `Resize(224)`)
and makes what its book makes: the interpretation, the confusion matrix, the most confused pairs, the report and the top losses. imgcls runs
`predict` once and then draws all of its plots and tables, which are several times as many. Both render their figures to PNG.

A hook on the network counts the images that it is given: divided by the number of photos, that is the number of passes. Each side runs in a process of
its own for each number of photos, in turn, since what is measured is the largest resident memory of a process; 'above the network' is by how much it
grew after a first batch. The drawing is done twice: once for the time, and once watched by tracemalloc, for what Python and numpy take.
"""
import argparse, contextlib, io, json, platform, resource, subprocess, sys, tempfile, time, tracemalloc
from pathlib import Path

import numpy as np
import torch


def photos():
    "All training photos, and the validation photos beside them"
    from imgcls.core import DataError
    from imgcls.data.samples import sample
    from imgcls.data.tables import image_table
    try: table = image_table(sample('clothing', download=False), verify='header')
    except DataError: table = image_table(sample('digits'))
    return table[(table['error'] == '') & (table['split'] != 'test')]


def training(rows, n): return rows[rows['split'] == 'train'].sample(frac=1, random_state=42).head(n)


def make(rows, args, n=None):
    "A learner of imgcls; with `n` photos to train its head on"
    from imgcls.data.loaders import image_loaders
    from imgcls.train.learner import image_learner
    if n is not None: rows = rows[rows['path'].isin(training(rows, n)['path']) | (rows['split'] == 'valid')]
    return image_learner(image_loaders(rows, size=224, augment='none', num_workers=args.workers, check=None))


def train(args):
    "Train the head for two epochs on the frozen body's features and keep all weights"
    from imgcls.train.learner import fine_tune
    from safetensors.torch import save_file
    learn = make(photos(), args, 512 if args.quick else 1024)
    with learn.no_bar(), learn.no_logging(): fine_tune(learn, 0, freeze_epochs=2)
    save_file({k: v.contiguous().clone() for k, v in learn.model.state_dict().items()}, args.weights)


class Watch:
    "Counts the images that go through a network, and the growth of the process's largest resident memory"
    def __init__(self, model, warm_up):
        with torch.no_grad(): model.eval()(warm_up)
        self.images, self.before = 0, self.peak()
        model.register_forward_hook(self.count)

    def count(self, model, args, out): self.images += len(args[0])

    @staticmethod
    def peak():
        top = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return top/2**20 if sys.platform == 'darwin' else top/2**10  # MB

    def result(self, n, seconds, **more): return dict(passes=self.images/n, seconds=seconds, peak=self.peak(), above=self.peak() - self.before, **more)


def render(fig): fig.savefig(io.BytesIO(), format='png', dpi=100)


def ours(rows, n, args):
    "One pass, then all plots and tables"
    from imgcls.evaluate.calibration import calibration_error, plot_reliability
    from imgcls.evaluate.curves import plot_per_class, plot_precision_recall, plot_roc, plot_slices, slices
    from imgcls.evaluate.interpret import confusion_table, most_confused, plot_confused_pairs, plot_confusion, plot_images, plot_top_losses
    from imgcls.evaluate.metrics import metrics_table
    from imgcls.evaluate.refusal import plot_risk_coverage
    from imgcls.evaluate.tables import classification_report
    from imgcls.train.learner import predict
    from safetensors.torch import load_file
    learn, asked = make(rows, args), training(rows, n)
    learn.model.load_state_dict(load_file(args.weights))
    watch = Watch(learn.model, torch.zeros(64, 3, 224, 224))
    began = time.perf_counter()
    with learn.no_bar(): preds = predict(learn, asked, bs=64)
    seconds = dict(inference=time.perf_counter() - began)
    asked = asked[['path', 'width', 'height', 'label']]
    figures = dict(confusion=plot_confusion, top_losses=plot_top_losses, uncertain=lambda o: plot_images(o, sort='uncertain'), certain=lambda o: plot_images(o, sort='certain'),
                   pairs=plot_confused_pairs, classes=plot_per_class, roc=plot_roc, precision_recall=plot_precision_recall, reliability=plot_reliability,
                   risk_coverage=plot_risk_coverage, slices=lambda o: plot_slices(slices(o, asked, columns=['width', 'height'])))
    tables = dict(report=classification_report, metrics=metrics_table, confusion_table=confusion_table, most_confused=most_confused, calibration_error=calibration_error)
    def draw(name):
        began = time.perf_counter()
        if name in figures: render(figures[name](preds))
        else: str(tables[name](preds))
        return time.perf_counter() - began
    with contextlib.redirect_stderr(io.StringIO()):
        parts = {o: draw(o) for o in [*figures, *tables]}
        result = watch.result(n, seconds | dict(figures=sum(parts[o] for o in figures), tables=sum(parts[o] for o in tables)))
        tracemalloc.start()
        for o in [*figures, *tables]: draw(o)
        traced = tracemalloc.get_traced_memory()[1]/2**20
    kept = sum(o.nbytes for o in (preds.probs, preds.logits, preds.features, preds.losses, preds.targets) if o is not None)/2**20
    return result | dict(traced=traced, kept=kept, parts=parts), preds.probs.argmax(1), preds.items


def stock(rows, n, args):
    "What the fastai book makes of a learner"
    import matplotlib.pyplot as plt
    from fastai.vision.all import ClassificationInterpretation, CrossEntropyLossFlat, ImageDataLoaders, Learner, Normalize, Resize
    from imgcls.models.pretrained import image_model
    from safetensors.torch import load_file
    vocab, asked = sorted(rows['label'].unique()), training(rows, n)
    model = image_model('efficientnet_lite0', len(vocab))
    model.load_state_dict(load_file(args.weights))
    dls = ImageDataLoaders.from_df(rows.assign(is_valid=rows['split'] == 'valid'), rows.attrs['root'], fn_col='path', label_col='label', valid_col='is_valid',
                                   item_tfms=Resize(224), bs=64, num_workers=args.workers)
    if list(dls.vocab) != vocab: sys.exit(f'the two sides have other classes: {list(dls.vocab)} and {vocab}')
    dls.after_batch.fs = [o for o in dls.after_batch.fs if not isinstance(o, Normalize)]  # the network has its own
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat())
    watch = Watch(learn.model, torch.zeros(64, 3, 224, 224))
    seconds, began = {}, time.perf_counter()
    def lap(name):
        nonlocal began
        seconds[name], began = time.perf_counter() - began, time.perf_counter()
    with learn.no_bar(), contextlib.redirect_stdout(io.StringIO()):
        dl = dls.test_dl(asked, with_labels=True)
        interp = ClassificationInterpretation.from_learner(learn, dl=dl); lap('from_learner')
        interp.plot_confusion_matrix(); render(plt.gcf()); lap('plot_confusion_matrix')
        interp.most_confused(); lap('most_confused')
        interp.print_classification_report(); lap('print_classification_report')
        interp.plot_top_losses(9); render(plt.gcf()); lap('plot_top_losses')
        result = watch.result(n, seconds)
        said = learn.get_preds(dl=dl)[0].argmax(1).numpy()  # to compare with the other side; not counted
    return result, said, asked['path'].to_numpy()


def one(args):
    from imgcls.compute import tune_allocator
    tune_allocator()  # for both sides
    import matplotlib
    matplotlib.use('Agg')
    result, said, items = (ours if args.one == 'ours' else stock)(photos(), args.photos[0], args)
    order = np.argsort(np.array(items, dtype=str))
    Path(args.out).write_text(json.dumps(result | dict(said=said[order].tolist())))


def run(what, n, args, weights, folder):
    "One measurement in a process of its own"
    out = Path(folder)/'out.json'
    options = dict(one=what, out=out, weights=weights, photos=n, workers=args.workers)
    command = [sys.executable, __file__, *(str(o) for k, v in options.items() for o in (f'--{k}', v)), *(['--quick'] if args.quick else [])]
    subprocess.run(command, check=True)
    return json.loads(out.read_text()) if what != 'train' else None


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='128 and 256 photos')
    p.add_argument('--photos', type=int, nargs='+', help='numbers of photos; without it a quarter, a half and all of them')
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--one'); p.add_argument('--out'); p.add_argument('--weights')
    args = p.parse_args()
    if args.one == 'train': return train(args)
    if args.one: return one(args)
    every = int((photos()['split'] == 'train').sum())
    sizes = sorted({min(o, every) for o in args.photos or ([128, 256] if args.quick else [every//4, every//2, every])})
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder)/'weights.safetensors'
        run('train', every, args, weights, folder)
        for n in sizes:
            for what in ('stock', 'ours'): found[what, n] = run(what, n, args, weights, folder)
            same = np.mean(np.array(found['stock', n].pop('said')) == found['ours', n].pop('said'))
            if same < 0.85: sys.exit(f'the two sides say something else: the same class for {same:.1%} of {n} photos')
            print(f'{n:,} photos: the same class for {same:.1%} of them (photos are resized in two ways)', file=sys.stderr)
    print(f'Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {args.workers} decoding processes\n')
    print('| photos | | passes | s | of that without inference | peak MB | above the network, MB |\n| --- | --- | --- | --- | --- | --- | --- |')
    for (what, n), o in found.items():
        s = o['seconds']
        rest = f'{s["figures"] + s["tables"]:.1f}' if what == 'ours' else '–'
        print(f'| {n:,} | {dict(stock="stock fastai", ours="imgcls")[what]} | {o["passes"]:.2f} | {sum(s.values()):.1f} | {rest} | {o["peak"]:.0f} | {o["above"]:.0f} |')
    print('\n| photos | predictions, MB | drawing, traced peak MB |\n| --- | --- | --- |')
    for n in sizes: print(f'| {n:,} | {found["ours", n]["kept"]:.2f} | {found["ours", n]["traced"]:.1f} |')
    n = sizes[-1]
    print(f'\nSeconds of each part with {n:,} photos:\n\n| stock fastai | s | | imgcls | s |\n| --- | --- | --- | --- | --- |')
    left, right = list(found['stock', n]['seconds'].items()), [('predict', found['ours', n]['seconds']['inference']), *found['ours', n]['parts'].items()]
    for i in range(max(len(left), len(right))):
        a, b = (f'{o[i][0]} | {o[i][1]:.2f}' if i < len(o) else ' | ' for o in (left, right))
        print(f'| {a} | | {b} |')


if __name__ == '__main__': main()
