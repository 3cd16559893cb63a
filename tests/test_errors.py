"""Bad inputs to the whole public interface, and what they are told: what came, what was expected, and where it helps what to do.

Each row begins with the public name that it is about; a test sees to it that no name is forgotten.
"""
import json, traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.learner import Learner
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from torch import nn

import imgcls.all as public
from imgcls.all import (PRESETS, BundleError, Classifier, DataError, ImageError, ImgclsError, MissingExtraError, Presize, Run, WeightsError, accuracy_estimate,
    apply_compute, atomic_file, atomic_folder, augmentation, check_option, check_table, choose_compute, choose_presize, compute_report,
    confusion_matrix, eval_image, exact_duplicates, fine_tune, fit_short_side, history_frame, image_block, image_head, image_learner, image_loaders, image_model,
    TrivialAugment, effective_counts, image_table, import_extra, layer_groups, show_augmented, load_bundle, make_body, model_from_config, most_confused, open_image, plot_confusion, plot_history, plot_top_losses,
    predict, qualified_name, read_json, sample, save_bundle, set_aside, split_loader, split_table, table_counts, table_root, wilson_interval, write_json,
    GlobalPool, OpenImage, Predictions)

package = Path(public.__file__).parent


@pytest.fixture(scope='module')
def w(tmp_path_factory):
    "A small world: photos, a table, loaders, a learner, its bundle, predictions, and things that are broken"
    folder = tmp_path_factory.mktemp('world')
    rng = np.random.default_rng(0)
    for name in ('cat', 'dog'):
        (folder/'photos'/name).mkdir(parents=True)
        for i in range(5): public.open_image(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder/f'photos/{name}/{i}.png')
    (folder/'void').mkdir()
    (folder/'file.txt').write_text('hello')
    (folder/'broken.json').write_text('{"a": ')
    (folder/'cut.png').write_bytes((folder/'photos/cat/0.png').read_bytes()[:200])
    table = image_table(folder/'photos', valid=0.4)
    dls = image_loaders(table, size=16, bs=4, num_workers=0, augment='none')
    learn = image_learner(dls, nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU()), hidden=(), compute='fp32')
    preds = Predictions(np.array([[0.8, 0.2], [0.3, 0.7]]), ['cat', 'dog'], targets=[0, 0], items=['cat/0.png', 'cat/1.png'], root=folder/'photos')
    unknown = Predictions(preds.probs, ['cat', 'dog'])
    save_bundle(learn, folder/'bundle')
    classifier = load_bundle(folder/'bundle', module=nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU()), compute='fp32')
    run = Run.create(folder/'run', {})
    public.save_state(folder/'state/last.safetensors', dict(stage=0, epoch=1, batch=0), about=dict(network='a'))
    plain = Learner(dls, learn.model, loss_func=nn.CrossEntropyLoss())
    return SimpleNamespace(state=folder/'state', plain=plain, folder=folder, photos=folder/'photos', table=table, dls=dls, learn=learn, preds=preds, unknown=unknown, bundle=folder/'bundle',
                           classifier=classifier, run=run, lost=table.copy().pipe(lambda o: o.attrs.clear() or o), img=public.open_image(folder/'photos/cat/0.png'))


def enter(manager):
    with manager: pass


def few_features(vocab=('a', 'b')): return public.Features(np.eye(2, dtype='float32'), [0, 1], list(vocab), items=['a.png', 'b.png'], splits=['train', 'train'], provenance=dict(pool='avg'))


def fitted(vocab=('a', 'b')): return public.fit_features(few_features(vocab), LogisticRegression())


def boxed(w, x_max=9.):
    "The table with a box in each photo"
    return w.table.assign(x_min=2., y_min=2., x_max=x_max, y_max=9.)


def raise_memory(learn):
    with public.memory_guard(learn): raise torch.OutOfMemoryError('CUDA out of memory')


def bundle_with(w, **fields):
    "The bundle with fields of its description changed"
    about = json.loads((w.bundle/'classifier.json').read_text())
    (w.folder/'changed').mkdir(exist_ok=True)
    (w.folder/'changed/classifier.json').write_text(json.dumps(about | fields))
    (w.folder/'changed/model.safetensors').write_bytes((w.bundle/'model.safetensors').read_bytes())
    return load_bundle(w.folder/'changed', module=nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU()))


def noise_record(n=100):
    "A learning rate finder's record of mere noise"
    noise = np.random.default_rng(0).normal(2.3, 0.1, n)
    return public.LRRecord(np.geomspace(1e-7, 10, n), noise, noise)


half = np.array([[0.5, 0.5]])
suspect = pd.DataFrame(dict(file=['cat/0.png'], label='cat', suggested='dog', probability=0.1, suggested_probability=0.9))
decided = pd.DataFrame(dict(file=['x.png'], label='cat', decision='keep'))
rows = {
    # core
    'check_option: misspelt': (lambda w: check_option('pool', 'mxa', ['avg', 'max']), ValueError, "`pool` must be one of 'avg', 'max', got 'mxa'. Did you mean 'max'?"),
    'import_extra: not installed': (lambda w: import_extra('no_such_package', 'onnx'), MissingExtraError, 'Get it with: pip install "imgcls[onnx]"'),
    'atomic_file: mode': (lambda w: enter(atomic_file(w.folder/'x', 'r')), ValueError, "`mode` must be one of 'w', 'wb', got 'r'"),
    'atomic_file: a folder': (lambda w: enter(atomic_file(w.folder/'void')), IsADirectoryError, 'there is a folder of that name'),
    'atomic_file: below a file': (lambda w: enter(atomic_file(w.folder/'file.txt/x')), OSError, "Can't write"),
    'atomic_folder: exists': (lambda w: enter(atomic_folder(w.folder/'void')), FileExistsError, 'exists already. Choose another folder'),
    'atomic_folder: below a file': (lambda w: enter(atomic_folder(w.folder/'file.txt/x')), OSError, "Can't write"),
    'write_json: a set': (lambda w: write_json(w.folder/'x.json', {1, 2}), TypeError, 'JSON has no place for a value in it'),
    'write_json: not a number': (lambda w: write_json(w.folder/'x.json', float('nan')), ValueError, 'JSON has no place for a value in it'),
    'read_json: cut off': (lambda w: read_json(w.folder/'broken.json'), DataError, "isn't valid JSON"),
    'ImgclsError: is the base': (lambda w: read_json(w.folder/'broken.json'), ImgclsError, 'broken.json'),
    # predictions
    'Predictions: logits': (lambda w: Predictions(np.array([[3., -2.]]), ['a', 'b']), DataError, 'Pass probabilities (after softmax), not logits'),
    'Predictions: one dimension': (lambda w: Predictions(np.array([0.5, 0.5]), ['a', 'b']), DataError, 'one row per image and one column per class, got shape (2,)'),
    'Predictions: text': (lambda w: Predictions('abc', ['a', 'b']), DataError, '`probs` must be an array of numbers'),
    'Predictions: vocab': (lambda w: Predictions(half, ['a']), DataError, '`probs` has 2 columns, but `vocab` has 1 classes'),
    'Predictions: vocab twice': (lambda w: Predictions(half, ['a', 'a']), DataError, '`vocab` names a class more than once: a'),
    'Predictions: unknown target': (lambda w: Predictions(half, ['a', 'b'], targets=['c']), DataError, '`targets` has classes that `vocab` lacks: c'),
    'Predictions: target out of range': (lambda w: Predictions(half, ['a', 'b'], targets=[2]), DataError, '`targets` must be whole numbers from 0 to 1'),
    'Predictions: too few items': (lambda w: Predictions(half, ['a', 'b'], items=[]), DataError, '`items` must have shape (1,) to go with `probs`'),
    'Predictions: not a number': (lambda w: Predictions(half * np.nan, ['a', 'b']), DataError, 'not finite numbers'),
    'Predictions: mask': (lambda w: w.preds[np.array([True, False, True])], IndexError, 'Predictions of 2 images are taken by'),
    'Predictions: k': (lambda w: w.preds.to_frame(3), ValueError, '`k` must be a number of classes, from 1 to 2, got 3'),
    # images
    'open_image: missing': (lambda w: open_image('gone.jpg'), ImageError, "can't use `gone.jpg`: missing"),
    'open_image: a folder': (lambda w: open_image(w.folder), ImageError, 'it is a folder'),
    'open_image: text': (lambda w: open_image(w.folder/'file.txt'), ImageError, 'not an image'),
    'open_image: cut off': (lambda w: open_image(w.folder/'cut.png'), ImageError, 'truncated'),
    'open_image: too large': (lambda w: open_image(w.img.resize((100, 100)).tobytes() and w.photos/'cat/0.png', max_pixels=100), ImageError, 'more than max_pixels=100'),
    'open_image: floats': (lambda w: open_image(np.zeros((4, 4, 3))), ValueError, 'must hold uint8 from 0 to 255, got float64'),
    'open_image: a number': (lambda w: open_image(7), TypeError, 'an image must be a path, bytes'),
    'ImageError: is a DataError': (lambda w: open_image(b'hello'), DataError, 'not an image'),
    'fit_short_side: method': (lambda w: fit_short_side(w.img, 8, method='stretch'), ValueError, "`method` must be one of 'crop', 'squish', got 'stretch'"),
    'fit_short_side: zero': (lambda w: fit_short_side(w.img, 0), ValueError, '`short_side` must be at least 1 pixel, got 0'),
    'eval_image: presize': (lambda w: eval_image(w.img, 32, 16), ValueError, '`presize` must be at least `size`, got presize=16 and size=32'),
    # compute
    'choose_compute: name': (lambda w: choose_compute('fp23'), ValueError, "`compute` must be one of 'auto', 'fp32', 'bf16', got 'fp23'. Did you mean 'fp32'?"),
    'apply_compute: name': (lambda w: apply_compute('half'), ValueError, "`compute` must be one of 'auto', 'fp32', 'bf16', got 'half'"),
    'compute_report: name': (lambda w: compute_report('half'), ValueError, "`compute` must be one of"),
    # data
    'sample: misspelt': (lambda w: sample('digit'), ValueError, "got 'digit'. Did you mean 'digits'?"),
    'sample: no download': (lambda w: sample('flowers17', download=False), DataError, 'Without a network there are: digits'),
    'image_table: missing': (lambda w: image_table(w.folder/'nowhere'), FileNotFoundError, 'There is no folder'),
    'image_table: a file': (lambda w: image_table(w.folder/'file.txt'), DataError, 'is a file, and a folder of images was expected'),
    'image_table: empty': (lambda w: image_table(w.folder/'void'), DataError, 'there are no images in'),
    'image_table: a number': (lambda w: image_table(3), TypeError, '`source` must be the path of a folder, got int'),
    'image_table: no class folders': (lambda w: image_table(w.photos/'cat'), DataError, 'without a folder for each class'),
    'image_table: split': (lambda w: image_table(w.photos, split='val'), ValueError, "`split` must be one of 'auto', 'random', None, got 'val'"),
    'image_table: verify': (lambda w: image_table(w.photos, verify='all'), ValueError, "`verify` must be one of 'decode', 'header', None, got 'all'"),
    'image_table: expression': (lambda w: image_table(w.photos, label='('), ValueError, '`label` must be \'folder\', a function or a regular expression'),
    'image_table: no group': (lambda w: image_table(w.photos, label='x'), ValueError, 'one group in parentheses'),
    'image_table: no match': (lambda w: image_table(w.photos, label='^(x)'), DataError, "10 of 10 names do not match label='^(x)'"),
    'image_table: function': (lambda w: image_table(w.photos, label=lambda o: o.nothing), DataError, 'the function given as `label` fails on `cat/0.png`: AttributeError'),
    'split_table: shares': (lambda w: split_table(w.table, valid=0.7, test=0.3), ValueError, '`valid` and `test` must be shares from 0 to 1 that leave something for train'),
    'split_table: columns': (lambda w: split_table(w.table[['path']]), DataError, "the table has no column 'label'; it has 'path'"),
    'table_counts: columns': (lambda w: table_counts(w.table[['path']]), DataError, "the table has no column 'label', 'split'"),
    'set_aside: columns': (lambda w: set_aside(w.table[['path']]), DataError, "the table has no column 'label', 'error'"),
    'table_root: lost': (lambda w: table_root(w.lost), DataError, "Say it again: table.attrs['root'] = 'folder'"),
    'check_table: one class': (lambda w: check_table(w.table[w.table['label'] == 'cat']), DataError, 'there is only one class, `cat`'),
    'check_table: one image': (lambda w: check_table(w.table.iloc[:6]), DataError, 'a class with only one image: dog'),
    'check_table: only in valid': (lambda w: check_table(w.table.assign(split=['train'] * 5 + ['valid'] * 5)), DataError, 'a class only in valid, with nothing in train'),
    'check_table: no validation': (lambda w: check_table(w.table.assign(split='train')), DataError, 'there are no images for validation'),
    'check_table: split': (lambda w: check_table(w.table.assign(split='val')), DataError, "may hold 'train', 'valid' and 'test', and holds val"),
    'check_table: nothing': (lambda w: check_table(w.table.assign(error='empty')), DataError, 'the table has no image that can be used'),
    'exact_duplicates: lost': (lambda w: exact_duplicates(w.lost), DataError, "the table doesn't know its folder"),
    'choose_presize: zero': (lambda w: choose_presize(0), ValueError, '`size` must be a whole number of pixels, at least 1, got 0'),
    'Presize: smaller': (lambda w: Presize(64, 32), ValueError, '`presize` must be at least `size`, got presize=32 and size=64'),
    'Presize: method': (lambda w: Presize(64, method='pad'), ValueError, "`method` must be one of 'crop', 'squish', got 'pad'"),
    'augmentation: name': (lambda w: augmentation('noflip', 64), ValueError, "got 'noflip'. Did you mean 'no_flip'?"),
    'augmentation: no transform': (lambda w: augmentation([3], 64), TypeError, 'a list of transforms, got 3 in it'),
    'Augmentation: setting': (lambda w: PRESETS['standard'].but(max_rotation=3), ValueError, "got 'max_rotation'. Did you mean 'max_rotate'?"),
    'Augmentation: no settings': (lambda w: PRESETS['none'].but(max_rotate=3), ValueError, "'none' has no settings, got max_rotate"),
    'TrivialAugment: batch': (lambda w: TrivialAugment()(w.dls.valid.one_batch()), TypeError, 'give it among the item transforms, not among those of the batch'),
    'show_augmented: index': (lambda w: show_augmented(w.dls, 99), IndexError, '`index` must be from 0 to'),
    'image_block: lost': (lambda w: image_block(w.lost), DataError, "the table doesn't know its folder"),
    # losses
    'nll_loss: class number': (lambda w: public.nll_loss(torch.zeros(2, 3), torch.tensor([0, 3])), ValueError, 'class numbers must be from 0 to 2, got 0 to 3'),
    'cross_entropy: floats': (lambda w: public.cross_entropy(torch.zeros(2, 3), torch.tensor([0., 1.])), TypeError, 'class numbers must be whole numbers, got torch.float32: use `targets.long()`'),
    'cross_entropy: weight': (lambda w: public.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), weight=[1, 2]), ValueError, '`weight` must have one number for each of the 3 classes, got shape (2,)'),
    'one_vs_all_loss: class number': (lambda w: public.one_vs_all_loss(torch.zeros(2, 3), torch.tensor([-2, 1])), ValueError, 'class numbers must be from -1 to 2, got -2 to 1'),
    'one_vs_all_loss: shape': (lambda w: public.one_vs_all_loss(torch.zeros(3), torch.tensor([1])), ValueError, 'scores must have a row for each image and a column for each class, got shape (3,)'),
    'OneVsAllLoss: reduction': (lambda w: public.OneVsAllLoss(reduction='average'), ValueError, "`reduction` must be one of 'mean', 'sum', 'none', got 'average'"),
    'step_decay: every': (lambda w: public.step_decay(0.1, 10, every=0), ValueError, '`every` must be above 0, got 0'),
    'time_decay: decay': (lambda w: public.time_decay(0.1, 10, decay=-1), ValueError, '`decay` must be at least 0, got -1'),
    'poly_decay: slice': (lambda w: public.poly_decay(slice(1e-4, 1e-2)), TypeError, '`lr` must be a number or one for each layer group, got slice(0.0001, 0.01, None): `lr_table` shows'),
    'exp_decay: lr': (lambda w: public.exp_decay('fast', 10), TypeError, "`lr` must be a number, or one for each layer group, got 'fast'"),
    'cosine_decay: cycles': (lambda w: public.cosine_decay(0.1, cycles=1.5), ValueError, '`cycles` must be a whole number, got 1.5'),
    'warm_up: pct': (lambda w: public.warm_up(0.1, pct=3), ValueError, '`pct` must be a share of the training, from 0 to below 1, got 3'),
    'plot_schedules: none': (lambda w: public.plot_schedules({}), ValueError, '`schedules` is empty: give functions by their names'),
    'lr_records: num_it': (lambda w: public.lr_records(w.learn, num_it=5), ValueError, '`sweeps` must be 1 or more and `num_it` 30 or more, got 1 and 5'),
    'lr_records: rates': (lambda w: public.lr_records(w.learn, start_lr=1, end_lr=0.1), ValueError, '`start_lr` must be above 0 and below `end_lr`, got 1 and 0.1'),
    'lr_suggestions: rates': (lambda w: public.lr_suggestions([0.1]), TypeError, '`records` must come from `lr_records`'),
    'suggest_lr: rule': (lambda w: public.suggest_lr(noise_record(), rule='steepest'), ValueError, "got 'steepest'. Did you mean 'steep'?"),
    'suggest_lr: flat': (lambda w: public.suggest_lr(noise_record()), DataError, 'the curve is flat: between 1e-07 and 10 the loss falls nowhere by more than chance'),
    'suggest_lr: no rise': (lambda w: public.suggest_lr(noise_record(), rule='rise'), DataError, "the loss doesn't rise up to a rate of 10"),
    'suggest_lr: short': (lambda w: public.suggest_lr(noise_record(12)), DataError, 'exploded or was no number after 12 batches'),
    'plot_lr_find: none': (lambda w: public.plot_lr_find([]), TypeError, '`records` must come from `lr_records`'),
    'lr_sweep: rates': (lambda w: public.lr_sweep(w.learn, [0.1, 0]), ValueError, '`rates` must be above 0, got [0.1, 0]'),
    'lr_sweep: epochs': (lambda w: public.lr_sweep(w.learn, [0.1], epochs=0), ValueError, '`epochs` must be 1 or more, got 0'),
    'plot_lr_sweep: columns': (lambda w: public.plot_lr_sweep(w.table), DataError, "must come from `lr_sweep`: it has no column 'lr'"),
    'layer_table: type': (lambda w: public.layer_table('resnet18'), TypeError, '`model` must be a network or a learner, got str'),
    'layer_table: size': (lambda w: public.layer_table(nn.Sequential(nn.Flatten(), nn.Linear(10, 2))), ValueError, "a photo of (3, 224, 224) doesn't go through the network"),
    'freeze_before: name': (lambda w: public.freeze_before(w.learn, '0.nett'), ValueError, "no layer is named '0.nett'. Did you mean '0.net'"),
    'freeze_before: row': (lambda w: public.freeze_before(w.learn, 99), ValueError, '`layer` must be a row of `layer_table`, from 0 to'),
    'GradualUnfreezing: every': (lambda w: public.GradualUnfreezing(every=0), ValueError, '`every` and `groups` must be 1 or more, got 0 and 1'),
    'lr_table: rates': (lambda w: public.lr_table(w.learn, [0.1] * 9), ValueError, '`lr` has 9 rates, and the network has 2 layer groups'),
    # files, labels, splits
    'check_folder: missing': (lambda w: public.check_folder('phots'), FileNotFoundError, 'There is no folder'),
    'check_folder: a file': (lambda w: public.check_folder(w.folder/'file.txt'), DataError, 'is a file, and a folder of images was expected'),
    'find_column: none': (lambda w: public.find_column('label', ['id', 'breed'], needed='labels'), DataError, "which column holds the labels? There are 'id', 'breed'; say label=..."),
    'find_column: misspelt': (lambda w: public.find_column('label', ['breed'], name='bread'), ValueError, "got 'bread'. Did you mean 'breed'?"),
    'listed_files: empty names': (lambda w: public.listed_files(pd.DataFrame(dict(file=['a.jpg', None]))), DataError, "the column 'file' is empty in 1 of 2 rows"),
    'class_vocab: numbers': (lambda w: public.class_vocab([3, 4]), DataError, 'labels must be text, or tuples of text'),
    'is_multi_label: mixed': (lambda w: public.is_multi_label(['cat', ('cat', 'dog')]), DataError, 'some labels are text and some are tuples of text'),
    'to_indices: unknown': (lambda w: public.to_indices(['shoe'], ['hat', 'shoes']), DataError, "lacks 'shoe'; it has 'hat', 'shoes'. Did you mean 'shoes'?"),
    'from_indices: outside': (lambda w: public.from_indices([-1], ['hat', 'shoes']), DataError, 'positions must be from 0 to 1'),
    'to_one_hot: unknown': (lambda w: public.to_one_hot([('cow',)], ['cat']), DataError, "the vocabulary lacks 'cow'"),
    'from_one_hot: two ones': (lambda w: public.from_one_hot([[1, 1]], ['cat', 'dog']), DataError, 'For several labels say multi_label=True'),
    'split_labels: separator': (lambda w: public.split_labels(['a b'], ''), ValueError, '`separator` must be the text between two labels'),
    'join_labels: text': (lambda w: public.join_labels(['cat']), DataError, "tuples of labels are joined, got the text 'cat'"),
    'find_labels: no expression': (lambda w: public.find_labels(['a.jpg'], '('), ValueError, 'regular expression'),
    'merge_classes: misspelt': (lambda w: public.merge_classes(w.table, {'cot': 'cat'}), DataError, "there is no class 'cot'; the table has 'cat', 'dog'. Did you mean 'cat'?"),
    'check_columns: missing': (lambda w: public.check_columns(w.table, 'person'), DataError, "no column 'person'"),
    'fold_table: too many': (lambda w: public.fold_table(w.table, folds=50), DataError, 'too few for folds=50. Ask for fewer folds'),
    'use_fold: no such': (lambda w: public.use_fold(w.table.assign(fold=0), 3), ValueError, '`k` must be one of the folds 0, got 3'),
    'folder_splits: mixed': (lambda w: public.folder_splits(['train/1.jpg', 'test/2.jpg', 'extra/3.jpg'], 'photos'), DataError, 'other folders (extra)'),
    'write_split: no split': (lambda w: public.write_split(w.table[['path']], w.folder/'s.csv'), DataError, "no column 'split'"),
    'read_split: no split': (lambda w: public.read_split(w.table, w.folder/'file.txt'), DataError, 'has no column path, split'),
    'write_table: lost': (lambda w: public.write_table(w.lost, w.folder/'t.csv'), DataError, "doesn't know its folder any more"),
    'read_table: not a table': (lambda w: public.read_table(w.folder/'file.txt'), DataError, 'is not from `write_table`'),
    # audit, presize, figures, folders
    'find_copies: shape': (lambda w: public.find_copies(np.zeros((2, 9, 9, 3), np.uint8)), ValueError, 'must be a uint8 array of shape (n, 48, 48, 3)'),
    'audit: lost': (lambda w: public.audit(w.lost), DataError, "doesn't know its folder any more"),
    'audit: missing folder': (lambda w: public.audit('nowhere'), FileNotFoundError, 'There is no folder'),
    'presize_cache: size': (lambda w: public.presize_cache(w.table, 0), ValueError, 'at least 1'),
    'cache_bytes: size': (lambda w: public.cache_bytes(w.table, 0), ValueError, 'at least 1'),
    'PresizeCache: no cache': (lambda w: public.PresizeCache(w.folder/'void'), DataError, 'cache'),
    'remove_cache: no such': (lambda w: public.remove_cache('gone'), DataError, 'there is no presized cache `gone`'),
    'plot_sizes: unknown': (lambda w: public.plot_sizes(w.table.assign(width=0)), ValueError, 'no image whose size is known'),
    'plot_classes: no label': (lambda w: public.plot_classes(w.table[['path']]), DataError, "no column 'label'"),
    'show_samples: split': (lambda w: public.show_samples(w.table, split='test'), ValueError, "no usable images in split='test'"),
    'write_folders: several labels': (lambda w: public.write_folders(w.table.assign(label=[('cat',)]*len(w.table)), w.folder/'out'), DataError, 'several labels'),
    'write_folders: how': (lambda w: public.write_folders(w.table, w.folder/'out', how='move'), ValueError, '`how` must be one of'),
    'write_hdf5: lost': (lambda w: public.write_hdf5(w.lost, w.folder/'x.h5', 8), DataError, "doesn't know its folder any more"),
    'image_loaders: check': (lambda w: image_loaders(w.table, check='quick'), ValueError, "`check` must be one of 'fast', 'full', None, got 'quick'"),
    'image_loaders: missing': (lambda w: image_loaders(w.folder/'nowhere'), FileNotFoundError, 'There is no folder'),
    'image_loaders: one class': (lambda w: image_loaders(w.table[w.table['label'] == 'cat']), DataError, 'there is only one class'),
    'image_loaders: augment': (lambda w: image_loaders(w.table, augment='much'), ValueError, "`augment` must be one of 'none', 'standard', 'no_flip', 'any_way_up', 'trivial', got 'much'"),
    'image_loaders: balance': (lambda w: image_loaders(w.table, balance='sample'), ValueError, "`balance` must be one of None, 'sampling', 'loss', got 'sample'. Did you mean 'sampling'?"),
    'ImageDL: missing': (lambda w: w.dls.test_dl(w.table.assign(path='gone.png'), num_workers=0).one_batch(), DataError, '`gone.png` fails in the step `OpenImage`: missing. Make the table again'),
    'effective_counts: no table': (lambda w: effective_counts(SimpleNamespace()), TypeError, 'these loaders have no table: make them with `image_loaders`'),
    'image_loaders: presize': (lambda w: image_loaders(w.table, size=64, presize=32), ValueError, '`presize` must be at least `size`'),
    'OpenImage: missing': (lambda w: OpenImage()(Path('gone.jpg')), ImageError, "can't use `gone.jpg`: missing"),
    'split_loader: no table': (lambda w: split_loader(SimpleNamespace()), TypeError, 'these loaders have no table: make them with `image_loaders`'),
    'split_loader: name': (lambda w: split_loader(w.dls, 'val'), ValueError, "`split` must be one of 'train', 'valid', 'test', got 'val'. Did you mean 'valid'?"),
    'split_loader: nothing there': (lambda w: split_loader(w.dls, 'test'), ValueError, "there are no usable images in 'test'"),
    'split_loader: unknown class': (lambda w: split_loader(w.dls, w.table.assign(label='cow')), ValueError, 'the model does not know the classes cow; it knows cat, dog'),
    # models
    'GlobalPool: pool': (lambda w: GlobalPool('mean'), ValueError, "`pool` must be one of 'avg', 'max', 'concat', got 'mean'"),
    'image_head: classes': (lambda w: image_head(8, 0), ValueError, '`n_features` and `n_classes` must be at least 1, got 8 and 0'),
    'image_head: dropout': (lambda w: image_head(8, 2, dropout=1), ValueError, '`dropout` must be at least 0 and below 1, got 1'),
    'qualified_name: misspelt': (lambda w: qualified_name('resnet43'), ValueError, "no backbone 'resnet43' in timm. Did you mean"),
    'qualified_name: source': (lambda w: qualified_name('keras/resnet50'), ValueError, "must begin with 'embedded/', 'timm/' or 'torchvision/'"),
    'qualified_name: a number': (lambda w: qualified_name(50), TypeError, '`arch` must be a name, a function of torchvision.models'),
    'make_body: weights': (lambda w: make_body('efficientnet_lite0', weights='gone.pth'), WeightsError, "no weights file 'gone.pth'"),
    'make_body: bad weights': (lambda w: make_body('efficientnet_lite0', weights=w.folder/'file.txt'), WeightsError, 'could not be read as weights'),
    'image_model: other weights': (lambda w: image_model('efficientnet_lite0', weights=w.bundle/'model.safetensors'), WeightsError, "don't fit the network"),
    'image_model: not for images': (lambda w: image_model(nn.Linear(3, 2), 2), ValueError, 'no image size from 64 to 512 px went through the network'),
    'image_model: patches': (lambda w: image_model(nn.Flatten(2), 2), ValueError, 'patches to one vector first'),
    'layer_groups: another model': (lambda w: layer_groups(nn.Linear(2, 2)), TypeError, '`model` must come from `image_model`, got Linear'),
    'model_from_config: own module': (lambda w: model_from_config(w.learn.model.config), TypeError, 'pass a fresh one as `module`'),
    # train
    'history_frame: untrained': (lambda w: history_frame(w.learn), ValueError, 'the learner has no history: it was not trained yet'),
    'Run: no run': (lambda w: Run(w.folder/'void'), FileNotFoundError, 'is no run: it has no file run.toml'),
    'Run: not empty': (lambda w: Run.create(w.photos, {}), FileExistsError, "isn't empty. Choose another folder for the run"),
    'Run: a file': (lambda w: Run.create(w.folder/'file.txt', {}), NotADirectoryError, 'is a file. Choose another name'),
    'Run: below a file': (lambda w: Run.create(w.folder/'file.txt/run', {}), OSError, "Can't write"),
    'Run: name': (lambda w: w.run.write_predictions(w.preds, 'a/b'), ValueError, "`name` must be the name of a file without folder and ending, got 'a/b'"),
    'image_learner: arch': (lambda w: image_learner(w.dls, 'efficientnet_lite9'), ValueError, "no backbone 'efficientnet_lite9' in timm"),
    'image_learner: compute': (lambda w: image_learner(w.dls, compute='fast'), ValueError, "`compute` must be one of 'auto', 'fp32', 'bf16', got 'fast'"),
    'image_learner: loaders': (lambda w: image_learner(SimpleNamespace(device='cpu')), TypeError, 'the loaders have no `vocab`'),
    'fine_tune: epochs': (lambda w: fine_tune(w.learn, -1), ValueError, '`epochs` and `freeze_epochs` must be 0 or more, got -1 and 1'),
    'fine_tune: rate': (lambda w: fine_tune(w.learn, 1, lr=0), ValueError, '`lr` and `lr_mult` must be positive, got 0'),
    'predict: split': (lambda w: predict(w.learn, 'val'), ValueError, "`split` must be one of 'train', 'valid', 'test', got 'val'. Did you mean 'valid'?"),
    'predict: nothing there': (lambda w: predict(w.learn, 'test'), ValueError, "there are no usable images in 'test'"),
    # evaluate
    'wilson_interval: level': (lambda w: wilson_interval(1, 2, level=95), ValueError, '`level` must lie between 0 and 1, got 95'),
    'wilson_interval: more than all': (lambda w: wilson_interval(3, 2), ValueError, '`successes` must lie between 0 and `n`, got 3 of 2'),
    'accuracy_estimate: no targets': (lambda w: accuracy_estimate(w.unknown), DataError, 'the accuracy needs `targets`'),
    'accuracy_estimate: no images': (lambda w: accuracy_estimate(w.preds[[]]), DataError, 'the accuracy of no images is unknown'),
    'confusion_matrix: no targets': (lambda w: confusion_matrix(w.unknown), DataError, 'a confusion matrix needs `targets`'),
    'most_confused: no targets': (lambda w: most_confused(w.unknown), DataError, 'needs `targets`'),
    'plot_confusion: no targets': (lambda w: plot_confusion(w.unknown), DataError, 'needs `targets`'),
    'plot_top_losses: no targets': (lambda w: plot_top_losses(w.unknown), DataError, 'needs `targets`'),
    'plot_top_losses: no items': (lambda w: plot_top_losses(Predictions(half, ['a', 'b'], targets=[0])), DataError, 'these predictions have no `items`'),
    'plot_top_losses: k': (lambda w: plot_top_losses(w.preds, k=0), ValueError, '`k` must be 1 or more, got 0'),
    'plot_history: missing': (lambda w: plot_history(w.folder/'void'), FileNotFoundError, 'Give the path of a history.csv, or the folder of the run'),
    'plot_history: a number': (lambda w: plot_history(3), TypeError, '`history` must be a DataFrame, a path or a learner, got int'),
    'plot_history: nothing in it': (lambda w: plot_history(pd.DataFrame()), DataError, 'the history has no numbers to draw'),
    # deploy
    'load_bundle: missing': (lambda w: load_bundle('nowhere'), FileNotFoundError, "there is no bundle 'nowhere'"),
    'load_bundle: another folder': (lambda w: load_bundle(w.photos), BundleError, 'is no bundle: it has no file classifier.json'),
    'load_bundle: own module': (lambda w: load_bundle(w.bundle), TypeError, 'pass a fresh one as `module`'),
    'load_bundle: compute': (lambda w: load_bundle(w.bundle, module=nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU()), compute='fast'), ValueError, '`compute` must be one of'),
    'load_bundle: another module': (lambda w: load_bundle(w.bundle, module=nn.Conv2d(3, 5, 3)), BundleError, "doesn't fit the network"),
    'BundleError: schema': (lambda w: bundle_with(w, schema=3), BundleError, 'has schema 3, this version of imgcls reads schemas 1 and 2; update imgcls'),
    'BundleError: field': (lambda w: bundle_with(w, size='large'), BundleError, "`size` must be a whole number from 8 to 4,096, got 'large'"),
    'BundleError: weights': (lambda w: bundle_with(w, sha256='0' * 64), BundleError, 'its SHA-256 differs'),
    'BundleError: is an ImgclsError': (lambda w: bundle_with(w, vocab=['a', 'a']), ImgclsError, '`vocab` must be a list of different names'),
    'Classifier: k': (lambda w: w.classifier.predict(w.photos, k=3), ValueError, '`k` must be a whole number from 1 to 2, the number of classes, got 3'),
    'Classifier: bs': (lambda w: w.classifier.predict(w.photos, bs=0), ValueError, '`bs` must be a whole number of at least 1, got 0'),
    'Classifier: a number': (lambda w: w.classifier.predict(3), TypeError, '`source` must be a path, a folder, bytes, a Pillow image, an array'),
    'Classifier: a table': (lambda w: w.classifier.predict(w.table), TypeError, 'for a table use `predictions(table)`'),
    'Classifier: threads': (lambda w: w.classifier.predict_batches(w.photos, threads=0), ValueError, '`threads` must be a whole number of at least 1, got 0'),
    'Classifier: views': (lambda w: w.classifier.predict(w.photos, views='flips'), ValueError, "Did you mean 'flip'"),
    'Classifier: a normalized tensor': (lambda w: w.classifier.predict(torch.full((3, 8, 8), -1.)), ValueError, 'must be from 0 to 1, got -1 to -1; undo its normalization'),
    'Classifier: several labels and refusals': (lambda w: Classifier(w.learn.model, w.classifier.config | dict(multi_label=True, refusal={}), compute='fp32'), ValueError,
                                                'has neither refusals, which are of one label, nor an estimator'),
    'ClassifierEnsemble: a path': (lambda w: public.ClassifierEnsemble([w.bundle]), TypeError, 'members[0] must be a classifier, as from load_bundle(path)'),
    'ClassifierEnsemble: other classes': (lambda w: public.ClassifierEnsemble([w.classifier, Classifier(w.learn.model, w.classifier.config | dict(vocab=['cat', 'cow']), compute='fp32')]),
                                          ValueError, 'members[1] has other classes than members[0]: it lacks 1: dog; it has 1 more: cow'),
    'ClassifierEnsemble: weights': (lambda w: public.ClassifierEnsemble([w.classifier], weights=[0]), ValueError, '`weights` must be numbers of 0 or more, and not all 0'),
    'Classifier: empty folder': (lambda w: w.classifier.predict(w.folder/'void'), DataError, 'there are no images in'),
    'Classifier: nothing readable': (lambda w: w.classifier.predictions([w.folder/'cut.png']), DataError, 'none of the 1 images can be used'),
    'Classifier: no column': (lambda w: w.classifier.predictions(w.table.drop(columns='path')), DataError, "the table has no column 'path'"),
    'Classifier: compute': (lambda w: Classifier(w.learn.model, w.classifier.config, compute='x'), ValueError, '`compute` must be one of'),
    'save_bundle: exists': (lambda w: save_bundle(w.learn, w.bundle), FileExistsError, 'exists already'),
    'save_bundle: no bundle': (lambda w: save_bundle(w.learn, w.photos, overwrite=True), FileExistsError, "is no bundle, so it isn't replaced"),
    'save_bundle: below a file': (lambda w: save_bundle(w.learn, w.folder/'file.txt/b'), OSError, "Can't write"),
    'save_bundle: metrics': (lambda w: save_bundle(w.learn, w.folder/'b', metrics={'valid': 0.9}), TypeError, '`metrics` must map a split to estimates'),
    'save_bundle: plain model': (lambda w: save_bundle(SimpleNamespace(dls=w.dls, model=nn.Flatten()), w.folder/'b'), TypeError, 'make the learner with `image_learner`'),
    'save_bundle: threshold': (lambda w: save_bundle(w.learn, w.folder/'b', threshold=0.3), ValueError, '`threshold` is for a classifier that gives several labels to an image, and this one gives one'),
    'save_bundle: several labels': (lambda w: save_bundle(SimpleNamespace(dls=SimpleNamespace(vocab=['a', 'b'], size=8, presize=8, method='crop', multi_label=True), model=w.learn.model), w.folder/'b', refusal=0.5),
                                    ValueError, '`refusal` is for a classifier that gives one label to an image, and this one gives several'),
    'save_bundle: plain loaders': (lambda w: save_bundle(SimpleNamespace(dls=SimpleNamespace(vocab=['a', 'b']), model=w.learn.model), w.folder/'b'), TypeError, 'make them with `image_loaders`'),
    'save_state: an object': (lambda w: public.save_state(w.folder/'changed/x.safetensors', dict(a=object())), TypeError, 'a checkpoint holds tensors, numbers, text, lists and dictionaries, got object'),
    'read_state: not there': (lambda w: public.read_state(w.folder/'gone.safetensors'), FileNotFoundError, 'gone.safetensors'),
    'read_state: no checkpoint': (lambda w: public.read_state(w.folder/'file.txt'), public.CheckpointError, "can't be read as a checkpoint"),
    'check_same: other settings': (lambda w: public.check_same(dict(settings=dict(lr=1)), dict(settings=dict(lr=2))), public.CheckpointError, "What differs is the settings of fine_tune: {'lr': 1} there, {'lr': 2} here"),
    'Checkpoint: there is one': (lambda w: public.Checkpoint(w.state), FileExistsError, 'Go on from it with resume=True, or choose another folder'),
    'Checkpoint: another network': (lambda w: public.Checkpoint(w.state, about=dict(network='b'), resume=True), public.CheckpointError, 'What differs is the network: a there, b here'),
    'read_about: no checkpoint': (lambda w: public.read_about(w.folder/'file.txt'), public.CheckpointError, "can't be read as a checkpoint"),
    'fine_tune: nowhere to resume': (lambda w: fine_tune(w.learn, 1, resume=True), ValueError, '`resume=True` needs `checkpoint_dir`'),
    'fine_tune: plain learner': (lambda w: fine_tune(w.plain, 1, checkpoint_dir=w.folder/'c'), TypeError, '`checkpoint_dir` needs a learner from `image_learner`, got a Learner'),
    'load_training_state: other callbacks': (lambda w: public.load_training_state(w.learn, dict(callbacks=dict(lost=dict(a=1)))), public.CheckpointError, 'with other callbacks that remember something: lost there, history_keeper here'),
    'TrainingMonitor: a file': (lambda w: public.TrainingMonitor(w.folder/'file.txt'), NotADirectoryError, 'is a file. Choose another name for the folder of the history'),
    'BestCheckpoint: a file': (lambda w: public.BestCheckpoint(w.folder/'file.txt'), NotADirectoryError, 'is a file. Choose another name for the folder of the best weights'),
    'BestCheckpoint: mode': (lambda w: public.BestCheckpoint(w.folder/'best', mode='maximum'), ValueError, "`mode` must be one of 'auto', 'min', 'max', got 'maximum'"),
    'BestCheckpoint: none': (lambda w: public.BestCheckpoint(w.folder/'best', k=0), ValueError, '`k` must be a whole number of at least 1, got 0'),
    'BestCheckpoint: a folder in the name': (lambda w: public.BestCheckpoint(w.folder/'best', fname='../{epoch}'), ValueError, '`fname` must be the pattern of a name without folder'),
    'BestCheckpoint: names that are equal': (lambda w: public.BestCheckpoint(w.folder/'best', fname='{accuracy:.1f}', k=2), ValueError, 'needs the field {epoch} to keep the best 2 apart'),
    'EarlyStopping: patience': (lambda w: public.EarlyStopping(patience=0), ValueError, '`patience` must be a whole number of at least 1, got 0'),
    'EarlyStopping: min_delta': (lambda w: public.EarlyStopping(min_delta=-1), ValueError, '`min_delta` must be 0 or more, got -1'),
    'AveragedWeights: decay': (lambda w: public.AveragedWeights(1.), ValueError, '`decay` must be above 0 and below 1, got 1.0'),
    'memory_guard: too large': (lambda w: raise_memory(w.learn), public.OutOfMemory, 'the memory of cpu is not enough for a batch of 4 pictures'),
    'fit_batch_size: smallest': (lambda w: public.fit_batch_size(w.learn, 4, smallest=8), ValueError, '`smallest` at most `bs`, got bs=4 and smallest=8'),
    'with_batch_size: larger': (lambda w: enter(public.with_batch_size(w.learn, 8)), ValueError, '`bs` must be from 1 to 4, the pictures in a batch of the loaders, got 8'),
    'optimizer: unknown': (lambda w: public.optimizer('adm'), ValueError, "got 'adm'. Did you mean 'adam'?"),
    'optimizer: option': (lambda w: public.optimizer('adam', momentum=0.9), ValueError, "the optimizer 'adam' has no option 'momentum'"),
    'optimizer: rate': (lambda w: public.optimizer('adam', lr=0.1), ValueError, 'the learning rate is no option of an optimizer'),
    'optimizer: mom': (lambda w: public.optimizer('sgd', mom=1.5) if 'mom' in public.OPTIMIZERS['sgd'] else public.optimizer('momentum', mom=1.5), ValueError, '`mom` must be at least 0 and below 1, got 1.5'),
    'image_learner: optimizer': (lambda w: image_learner(w.dls, nn.Conv2d(3, 4, 3), opt_func='adm'), ValueError, "Did you mean 'adam'?"),
    'fine_tune: bs': (lambda w: fine_tune(w.learn, 1, bs='large'), ValueError, "`bs` must be one of 'auto', got 'large'"),
    'FlattenMap: size': (lambda w: public.FlattenMap((0, 7)), ValueError, '`map_size` must be (height, width), both at least 1, got (0, 7)'),
    'FlattenMap: another map': (lambda w: public.FlattenMap(7)(torch.zeros(1, 3, 8, 8)), ValueError, 'the head was made for maps of 7 × 7 places, and got 8 × 8'),
    'Study: start': (lambda w: public.Study(w.folder/'s', start='gone.safetensors'), FileNotFoundError, "`start`: there is no file 'gone.safetensors'"),
    'Study: no functions': (lambda w: public.Study(w.folder/'s').run(), ValueError, 'opened without `make` and `train`'),
    'Study: no variants': (lambda w: public.Study(w.folder/'s', print, print).run(), ValueError, 'the study has no variants'),
    'Study: name': (lambda w: public.Study(w.folder/'s').add('a/b'), ValueError, "the name of a variant must do as the name of a folder, got 'a/b'"),
    'Study: setting': (lambda w: public.Study(w.folder/'s').add('a', opt=len), TypeError, "`opt` of the variant 'a' can't be written down"),
    'Study: column': (lambda w: public.Study(w.folder/'s').add('a', loss='focal'), ValueError, '`loss` is a column of its own'),
    'compare: no runs': (lambda w: public.compare(public.Study(w.folder/'s')), DataError, 'there are no runs in'),
    'compare: no study': (lambda w: public.compare('s'), TypeError, '`study` must be a `Study`, got str'),
    'plot_runs: no runs': (lambda w: public.plot_runs(public.Study(w.folder/'s')), DataError, 'there are no runs in'),
    'paired_difference: other images': (lambda w: public.paired_difference([True]*3, [True]*4), DataError, 'must be about the same images, got 3 and 4'),
    'paired_difference: level': (lambda w: public.paired_difference([True], [True], level=95), ValueError, '`level` must lie between 0 and 1, got 95'),
    'conv_size: too small': (lambda w: public.conv_size(4, 5), ValueError, 'the size must be at least 5'),
    'conv_size: stride': (lambda w: public.conv_size(8, 3, 0), ValueError, '`stride` must be a whole number of at least 1, got 0'),
    'output_shape: a list': (lambda w: public.output_shape([nn.Flatten()], 8), TypeError, '`model` must be an nn.Module, got list'),
    'output_shape: size': (lambda w: public.output_shape(nn.Flatten(), 0, channels=3), ValueError, '`size` must be a whole number of pixels'),
    'smallest_size: none': (lambda w: public.smallest_size(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(7, 3))), ValueError, 'does not go through this Sequential'),
    'receptive_field: text': (lambda w: public.receptive_field(['conv']), TypeError, '`layers` must be a module, a list of modules'),
    'layer_costs: size': (lambda w: public.layer_costs(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3)), 8), ValueError, 'does not go through'),
    'draw_network: size': (lambda w: public.draw_network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3)), 8), ValueError, 'does not go through'),
    'NetworkDrawing: file': (lambda w: public.draw_network(nn.Conv2d(3, 4, 3), 8).save('net.png'), ValueError, "`path` must end in '.svg', got 'net.png'"),
    'conv_block: activation': (lambda w: public.conv_block(3, 4, activation='rela'), ValueError, "got 'rela'. Did you mean 'relu'?"),
    'activation_layers: name': (lambda w: public.activation_layers('rela'), ValueError, "got 'rela'. Did you mean 'relu'?"),
    'separable_conv: activation': (lambda w: public.separable_conv(3, 4, activation='rela'), ValueError, "got 'rela'. Did you mean 'relu'?"),
    'separable_ratio: nothing': (lambda w: public.separable_ratio(0), ValueError, '`n_out` and `kernel` must be at least 1, got 0 and 3'),
    'Branches: join': (lambda w: public.Branches(join='sum'), ValueError, "`join` must be one of 'concatenate', 'add', got 'sum'"),
    'create_model: name': (lambda w: public.create_model('lenett', 3, size=32), ValueError, "no classic network 'lenett'. Did you mean 'lenet'"),
    'create_model: option': (lambda w: public.create_model('lenet', 3, size=32, depth=3), TypeError, "lenet has no option 'depth'"),
    'create_model: classes': (lambda w: public.create_model('lenet', 0, size=32), ValueError, '`n_classes` must be a whole number of at least 1, got 0'),
    'create_model: size': (lambda w: public.create_model('alexnet', 3, size=20), ValueError, 'images of 20 px are too small for this network: they must have at least'),
    'mlp: hidden': (lambda w: public.mlp(3, 8, hidden=()), ValueError, '`hidden` must have at least one size, such as (512,)'),
    'shallownet: size': (lambda w: public.shallownet(3, 0), ValueError, 'images of 0 px are too small for this network: they must have at least 1 px'),
    'lenet: pool': (lambda w: public.lenet(3, 32, pool='mean'), ValueError, "`pool` must be one of 'max', 'avg', got 'mean'"),
    'minivggnet: dropout': (lambda w: public.minivggnet(3, 32, dropout=2), ValueError, '`dropout` must be at least 0 and below 1, got'),
    'create_model: lists': (lambda w: public.create_model('alexnet', 3, size=227, filters=(8, 8)), ValueError, '`filters`, `kernels` and `strides` must be equally long, got 2, 5 and 5'),
    'minigooglenet: size': (lambda w: public.minigooglenet(3, 4), ValueError, 'images of 4 px are too small for this network'),
    'minixception: dropout': (lambda w: public.minixception(3, 64, dropout=-1), ValueError, '`dropout` must be at least 0 and below 1, got'),
    'image_model: classic': (lambda w: image_model('classic/lenet', 3), ValueError, "'classic/lenet' is made for one image size: give `size`"),
    'image_model: classes of a classic': (lambda w: image_model(public.create_model('lenet', 10, size=32), 3), ValueError, 'this classic/lenet was made with n_classes=10, and 3 is needed'),
    'Features: rows': (lambda w: public.Features(np.eye(3), [0, 1, 0], ['a', 'b'], items=['x'], splits=['train'] * 3), DataError, '`items` must have 3 rows, as `vectors` has, got 1'),
    'Features: file': (lambda w: public.Features.load(w.folder/'gone'), FileNotFoundError, 'there are no features in'),
    'Features: another file': (lambda w: public.Features.load(w.photos), DataError, "can't be read as features"),
    'FeatureWriter: numbers': (lambda w: public.FeatureWriter(few_features(), 2).add([[0, np.nan]]), DataError, 'the features of a.png are not finite float32 numbers'),
    'extract_features: pool': (lambda w: public.extract_features(w.learn, w.dls, pool='mean'), ValueError, "`pool` must be one of 'avg', 'max', 'concat', 'flatten', got 'mean'"),
    'extract_features: views': (lambda w: public.extract_features(w.learn, w.dls, augment_views=0), ValueError, '`augment_views` and `bs` must be 1 or more, got 0 and 64'),
    'extract_features: split': (lambda w: public.extract_features(w.learn, w.dls, splits='test'), DataError, 'there are no usable images in test'),
    'extract_features: loaders': (lambda w: public.extract_features(w.learn, w.plain.dls, size=32), TypeError, 'size: the loaders have their own'),
    'fit_features: a class': (lambda w: public.fit_features(few_features(), dict), TypeError, '`estimator` must be an object with a method `fit`'),
    'predict_features: not fitted': (lambda w: public.predict_features(LogisticRegression(), few_features()), TypeError, '`estimator` must be a fitted classifier'),
    'estimator_probs: classes': (lambda w: public.estimator_probs(fitted(), np.eye(2), ['a', 'c']), DataError, 'the estimator knows classes that the features lack: b; they have a, c'),
    'frozen_features: views': (lambda w: public.frozen_features(w.learn, 0), ValueError, '`views` must be 1 or more, got 0'),
    'to_head: forest': (lambda w: public.to_head(RandomForestClassifier()), TypeError, 'or a pipeline of StandardScaler and one of them, got RandomForestClassifier'),
    'to_head: not fitted': (lambda w: public.to_head(LogisticRegression()), TypeError, '`estimator` must be fitted by `fit_features`'),
    'to_head: another body': (lambda w: public.to_head(fitted(['cat', 'dog']), learn=w.learn), DataError, 'the estimator was fitted to features of another body, or the body was trained since'),
    'check_estimator: classes': (lambda w: public.check_estimator(fitted(), w.learn), DataError, 'the learner has the classes cat, dog, and the estimator a, b'),
    'fine_tune: cached': (lambda w: fine_tune(w.learn, 1, cached='yes'), ValueError, "`cached` must be 'auto', False, or a number of views, got 'yes'"),
    'fine_tune: not cached': (lambda w: fine_tune(w.learn, 1, freeze_epochs=2, cached=2), ValueError, "`cached=2` is not possible: the body isn't in evaluation mode"),
    'imagenet_classifier: name': (lambda w: public.imagenet_classifier('resnet43'), ValueError, 'Did you mean'),
    'imagenet_classifier: no ImageNet weights': (lambda w: public.imagenet_classifier('classic/lenet'), ValueError, 'take a pretrained one'),
    'imagenet_classifier: other classes': (lambda w: public.imagenet_classifier('convnext_tiny.in12k'), ValueError, 'take one of timm/convnext_tiny'),
    'imagenet_classifier: no such file': (lambda w: public.imagenet_classifier(weights='nowhere.pth'), WeightsError, 'must name a .safetensors or .pth file'),
    'imagenet_predict: k': (lambda w: public.imagenet_predict('x.jpg', k=0), ValueError, 'a whole number from 1 to 1000'),
    'imagenet_predict: not images': (lambda w: public.imagenet_predict(42), TypeError, 'must be a path, a folder, bytes'),
    'imagenet_predict: compute': (lambda w: public.imagenet_predict('x.jpg', compute='fp23'), ValueError, "Did you mean 'fp32'"),
    'BoxPresize: too small': (lambda w: public.BoxPresize(64, 32), ValueError, '`presize` must be at least `size`, got presize=32 and size=64'),
    'box_iou: three numbers': (lambda w: public.box_iou([1, 2, 3], [1, 2, 3]), ValueError, 'a box has four numbers, x_min, y_min, x_max, y_max; got an array of shape (3,)'),
    'box_table: folder without annotations': (lambda w: public.box_table(w.photos), DataError, 'there are no XML files in'),
    'box_table: columns': (lambda w: public.box_table(w.table), DataError, 'which columns hold the box?'),
    'box_table: outside': (lambda w: public.box_table(boxed(w, 99.), verify='header'), DataError, 'cat/0.png: the box (2, 2, 99, 9) reaches out of the photo of 24 × 20 pixels'),
    'box_table: no area': (lambda w: public.box_table(boxed(w, 2.), verify='header'), DataError, 'cat/0.png: the box (2, 2, 2, 9) has no area'),
    'box_table: orientation': (lambda w: public.box_table(boxed(w), orientation='raw'), ValueError, "`orientation` must be one of 'upright', 'stored', got 'raw'"),
    'read_voc: broken': (lambda w: public.read_voc(w.folder/'file.txt'), DataError, "can't be read as XML"),
    'read_voc: several': (lambda w: public.read_voc(w.folder, several='first'), ValueError, "`several` must be one of 'error', 'largest', got 'first'"),
    'check_boxes: outside': (lambda w: public.check_boxes(boxed(w, 99.)), DataError, 'cat/0.png: the box (2, 2, 99, 9) reaches out of the photo'),
    'digits_on_photos: counts': (lambda w: public.digits_on_photos(w.folder/'d', counts=(5, 0, 1)), ValueError, '`counts` must be three numbers of images'),
    'digits_on_photos: folder': (lambda w: public.digits_on_photos(w.folder/'photos', counts=(5, 1, 1)), FileExistsError, 'photos'),
    'boxes_to_square: method': (lambda w: public.boxes_to_square([[1, 1, 2, 2]], [[9, 9]], presize=8, method='pad'), ValueError, "`method` must be one of 'crop', 'squish', got 'pad'"),
    'boxes_to_photo: method': (lambda w: public.boxes_to_photo([[1, 1, 2, 2]], [[9, 9]], presize=8, method='pad'), ValueError, "`method` must be one of 'crop', 'squish', got 'pad'"),
    'box_block: trivial': (lambda w: public.box_block(boxed(w), augment='trivial'), ValueError, "augment='trivial' moves the pixels and leaves the box where it was"),
    'box_loaders: no table': (lambda w: public.box_loaders(w.photos), TypeError, '`table` must come from `box_table`'),
    'box_loaders: outside': (lambda w: public.box_loaders(boxed(w, 99.), size=16), DataError, 'cat/0.png: the box (2, 2, 99, 9) reaches out of the photo'),
    'box_loaders: cut away': (lambda w: public.box_loaders(boxed(w).assign(x_min=0., x_max=1.5), size=16, method='crop', num_workers=0), DataError, "method='crop' shows the middle square of a photo"),
    'box_learner: no boxes': (lambda w: public.box_learner(w.dls), TypeError, 'these loaders have no boxes: make them with `box_loaders`'),
    'BoxHead: nothing': (lambda w: public.BoxHead(8, places=0), ValueError, 'must be at least 1, got 8, 0, 32, 128'),
    'BoxLoss: unknown': (lambda w: public.BoxLoss('gio'), ValueError, "got 'gio'. Did you mean 'giou'?"),
    'BoxLoss: weight': (lambda w: public.BoxLoss(weight=-1), ValueError, '`weight` must be 0 or more, got -1'),
    'predict_boxes: no boxes': (lambda w: public.predict_boxes(w.learn), TypeError, 'this learner gives no boxes: make it with `box_learner`'),
    'class_predictions: a table': (lambda w: public.class_predictions(w.table), DataError, '`found` must come from `predict_boxes`'),
    'mean_iou: unknown': (lambda w: public.mean_iou(w.table), DataError, 'the mean IoU needs the column `iou`'),
    'mean_iou: none': (lambda w: public.mean_iou(pd.DataFrame(dict(iou=[]))), DataError, 'the mean IoU of no photos is unknown'),
    'mean_iou: level': (lambda w: public.mean_iou(pd.DataFrame(dict(iou=[1.])), level=95), ValueError, '`level` must lie between 0 and 1, got 95'),
    'plot_boxes: no boxes': (lambda w: public.plot_boxes(w.table), DataError, 'there are no boxes in this frame'),
    'plot_boxes: order': (lambda w: public.plot_boxes(boxed(w), order='wurst'), ValueError, "got 'wurst'. Did you mean 'worst'?"),
    'plot_boxes: k': (lambda w: public.plot_boxes(boxed(w), k=0), ValueError, '`k` must be 1 or more, got 0'),
    # train.ensembles
    'average_predictions: not a list': (lambda w: public.average_predictions(w.preds), TypeError, '`predictions` must be a list of `Predictions`, got Predictions'),
    'average_predictions: other photos': (lambda w: public.average_predictions([w.preds, w.preds[:1]]), DataError, 'predictions[1] has other photos than predictions[0]: it lacks 1: cat/1.png'),
    'average_predictions: a photo twice': (lambda w: public.average_predictions([w.preds, w.preds[[0, 1, 1]]]), DataError, 'predictions[1] has photos more than once: cat/1.png'),
    'average_predictions: no names': (lambda w: public.average_predictions([Predictions(half, ['cat', 'dog'])]), DataError, 'predictions[0] has no `items`'),
    'average_predictions: weights': (lambda w: public.average_predictions([w.preds, w.preds], weights=[1]), ValueError, '`weights` must be 2 numbers, one for each member, got [1]'),
    'average_predictions: no logits': (lambda w: public.average_predictions([w.preds], how='logits'), DataError, "predictions[0] has no logits: take how='probs'"),
    'CropView: outside': (lambda w: public.CropView(x=2), ValueError, '`x` and `y` must be from 0 to 1, got 2 and 0.5'),
    'crop_views: misspelt': (lambda w: public.crop_views('tencrop'), ValueError, "`views` must be one of 'plain', 'flip', 'five_crop', 'ten_crop', got 'tencrop'. Did you mean 'ten_crop'?"),
    'crop_views: share': (lambda w: public.crop_views('ten_crop', share=1.5), ValueError, '`share` must be above 0 and at most 1, got 1.5'),
    'predict_views: no function': (lambda w: public.predict_views(w.learn, views=['flip']), TypeError, "views[0] must be a function from a picture to a picture, got 'flip'"),
    'predict_views: split': (lambda w: public.predict_views(w.learn, 'val'), ValueError, "`split` must be one of 'train', 'valid', 'test', got 'val'. Did you mean 'valid'?"),
    'Snapshots: a file': (lambda w: public.Snapshots(w.folder/'file.txt'), NotADirectoryError, 'is a file. Choose another name for the folder of the snapshots'),
    'Snapshots: cycles': (lambda w: public.Snapshots(w.folder/'snapshots', cycles=0), ValueError, '`cycles` must be a whole number of at least 1, got 0'),
    'predict_snapshots: none': (lambda w: public.predict_snapshots(w.learn, w.folder/'void'), ValueError, 'there are no snapshots in'),
    'predict_snapshots: no weights': (lambda w: public.predict_snapshots(w.learn, w.folder/'file.txt'), DataError, "isn't a file of weights in safetensors format"),
    'metric_interval: misspelt': (lambda w: public.metric_interval('makro_f1', targets=[0], probs=half), ValueError, "Did you mean 'macro_f1'?"),
    'bootstrap_metric: logits': (lambda w: public.bootstrap_metric('macro_f1', targets=[0], probs=[[3., -2.]]), DataError, 'Pass probabilities (after softmax), not logits'),
    'estimate: no targets': (lambda w: public.estimate(w.unknown, 'macro_f1'), DataError, '`macro_f1` needs `targets`, and these predictions have none'),
    'metrics_table: a text': (lambda w: public.metrics_table(w.preds, metrics='accuracy'), TypeError, "`metrics` must be a list of names, got the text 'accuracy'"),
    'classification_report: no targets': (lambda w: public.classification_report(w.unknown), DataError, '`accuracy` needs `targets`, and these predictions have none'),
    'compare_predictions: other photos': (lambda w: public.compare_predictions(w.preds, w.preds[:1]), DataError, 'it lacks 1: cat/1.png'),
    'grad_cam: not a model': (lambda w: public.grad_cam('resnet18', w.img), TypeError, '`model` must be a learner, a classifier or a network, got str'),
    'grad_cam: layer': (lambda w: public.grad_cam(w.learn, w.img, layer='0.nett'), ValueError, "no layer of the network is '0.nett'. Did you mean '0.net'"),
    'grad_cam: class': (lambda w: public.grad_cam(w.learn, w.img, target='dogg'), ValueError, "no class is named 'dogg'. Did you mean 'dog'?"),
    'grad_cam: broken file': (lambda w: public.grad_cam(w.learn, w.folder/'cut.png'), ImageError, 'cut.png'),
    'occlusion: window': (lambda w: public.occlusion(w.learn, w.img, window=99), ValueError, 'must be in this order: got 49, 99 and 16'),
    'occlusion: score': (lambda w: public.occlusion(w.learn, w.img, score='logits'), ValueError, "got 'logits'. Did you mean 'logit'?"),
    'plot_maps: none': (lambda w: public.plot_maps(), ValueError, '`plot_maps` needs maps from `grad_cam` or `occlusion`, got none'),
    'plus_weights: shapes': (lambda w: public.plus_weights(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 4, 4)), ValueError, '`maps` and `gradients` must be (n, channels, height, width), got (1, 2, 3, 3) and (1, 2, 4, 4)'),
    'map_layers: size': (lambda w: public.map_layers(w.learn, size=1), ValueError, "don't go through the network"),
    'feature_maps: layer': (lambda w: public.feature_maps(w.learn, w.img, '1'), ValueError, "the layer '1' (Sequential) gives no map of the image"),
    'layer_filters: none': (lambda w: public.layer_filters(nn.Linear(3, 2)), ValueError, 'this network has no convolution'),
    'filter_gradients: class': (lambda w: public.filter_gradients(w.learn, w.img, target=2), ValueError, '`target` must be a number from 0 to 1'),
    'plot_feature_maps: shape': (lambda w: public.plot_feature_maps(np.zeros((3, 3))), ValueError, '`maps` must be (n, channels, height, width)'),
    'plot_filters: shape': (lambda w: public.plot_filters(np.zeros((3, 3))), ValueError, '`filters` must be (filters, channels, height, width)'),
    'sanity_check: steps': (lambda w: public.sanity_check(w.learn, w.img, steps=0), ValueError, '`steps` must be 1 or more, got 0'),
    'plot_confusion: order': (lambda w: plot_confusion(w.preds, order='similar'), ValueError, "`order` must be one of 'vocab', 'similarity', got 'similar'. Did you mean 'similarity'?"),
    'plot_confusion: one class': (lambda w: plot_confusion(w.preds, most_confused=1), ValueError, '`most_confused` is a number of classes, 2 or more, got 1'),
    'confusion_table: no targets': (lambda w: public.confusion_table(w.unknown), DataError, 'a confusion matrix needs `targets`'),
    'plot_images: sort': (lambda w: public.plot_images(w.preds, sort='sure'), ValueError, "`sort` must be one of 'loss', 'certain', 'uncertain', None, got 'sure'"),
    'plot_confused_pairs: none': (lambda w: public.plot_confused_pairs(w.preds, 0), ValueError, '`k` must be 1 or more, got 0'),
    'plot_per_class: metric': (lambda w: public.plot_per_class(w.preds, metric='f2'), ValueError, "`metric` must be one of 'f1', 'precision', 'recall', got 'f2'"),
    'plot_roc: one label': (lambda w: public.plot_roc(w.preds), DataError, 'here all have the same label'),
    'plot_precision_recall: no targets': (lambda w: public.plot_precision_recall(w.unknown), DataError, 'a precision-recall curve needs `targets`'),
    'plot_learning_curve: no sizes': (lambda w: public.plot_learning_curve(w.table[['path']]), DataError, "the table has no column 'images'"),
    'slices: a file lacks': (lambda w: public.slices(w.preds, w.table[:0]), DataError, 'the table lacks 2 of the 2 images'),
    'slices: bins': (lambda w: public.slices(w.preds, w.table, bins=1), ValueError, '`bins` must be 2 or more, got 1'),
    'plot_slice_images: no column': (lambda w: public.plot_slice_images(w.preds, w.table, 'camera'), DataError, "has no column 'camera'"),
    'plot_slices: none': (lambda w: public.plot_slices(None, k=0), ValueError, '`k` must be 1 or more, got 0'),
    # wrong labels
    'out_of_fold: groups': (lambda w: public.out_of_fold(few_features(), groups=['person']), TypeError, '`groups` must give the group of each file, as a dict or a Series indexed by file, got str'),
    'out_of_fold: other groups': (lambda w: public.out_of_fold(few_features(), groups={'x.png': 1}), DataError, '`groups` knows none of the files'),
    'out_of_fold: folds': (lambda w: public.out_of_fold(few_features(), folds=1), ValueError, '`folds` must be a whole number from 2, got 1'),
    'out_of_fold: one class': (lambda w: public.out_of_fold(few_features()[[0]]), DataError, 'wrong labels are looked for among at least two classes'),
    'out_of_fold: one image a class': (lambda w: public.out_of_fold(few_features(), folds=2), DataError, 'class `a` has only one image'),
    'label_suspects: method': (lambda w: public.label_suspects(w.preds, method='cleanlap'), ValueError, "`method` must be one of 'cleanlab', 'margin', got 'cleanlap'. Did you mean 'cleanlab'?"),
    'label_suspects: no labels': (lambda w: public.label_suspects(w.unknown), DataError, 'suspects need the labels and the files'),
    'label_suspects: one class': (lambda w: public.label_suspects(w.preds), DataError, 'of the 2 images all have the same label'),
    'plot_suspects: none': (lambda w: public.plot_suspects(suspect[:0]), DataError, 'there are no suspects to draw: the labels look right'),
    'plot_suspects: k': (lambda w: public.plot_suspects(suspect, k=0), ValueError, '`k` must be 1 or more, got 0'),
    'write_decisions: decision': (lambda w: public.write_decisions(decided.assign(decision='delete'), w.folder/'d.csv'), DataError, "must be one of 'keep', 'relabel', 'remove', got 'delete'"),
    'write_decisions: a folder': (lambda w: public.write_decisions(decided, w.folder/'void'), IsADirectoryError, 'there is a folder of that name'),
    'read_decisions: missing': (lambda w: public.read_decisions(w.folder/'gone.csv'), FileNotFoundError, '`write_decisions` and `review` write it'),
    'read_decisions: text': (lambda w: public.read_decisions(w.folder/'file.txt'), DataError, 'has no column decision, file, label'),
    'apply_decisions: other files': (lambda w: public.apply_decisions(w.table, decided), DataError, "Give the table that was reviewed, or say missing='skip'"),
    'apply_decisions: class': (lambda w: public.apply_decisions(w.table, decided.assign(file='cat/0.png', decision='relabel', new_label='dgo')), ValueError, "got 'dgo'. Did you mean 'dog'?"),
    'apply_decisions: changed': (lambda w: public.apply_decisions(w.table, decided.assign(file='dog/0.png')), DataError, "was labelled 'cat' when it was decided upon, and is 'dog' now"),
    'LabelReview: none': (lambda w: public.LabelReview(suspect[:0], w.folder/'d.csv'), DataError, 'there are no suspects to review'),
    'LabelReview: word': (lambda w: public.LabelReview(suspect, w.folder/'d.csv').decide('kept'), ValueError, "Did you mean 'keep'?"),
    'review: broken decisions': (lambda w: public.review(suspect, w.folder/'file.txt'), DataError, 'has no column decision, file, label'),
    'reliability: bins': (lambda w: public.reliability(w.preds, bins=0), ValueError, '`bins` must be a whole number from 1 to 1,000, got 0'),
    'plot_reliability: equal': (lambda w: public.plot_reliability(w.preds, equal='size'), ValueError, "`equal` must be one of 'width', 'count', got 'size'"),
    'calibration_error: unknown': (lambda w: public.calibration_error(w.unknown), DataError, 'needs `targets`'),
    'fit_temperature: unknown': (lambda w: public.fit_temperature(w.unknown), DataError, 'needs `targets`'),
    'apply_temperature: zero': (lambda w: public.apply_temperature(w.preds, 0), ValueError, '`temperature` must be a number above 0, got 0'),
    'answered: no threshold': (lambda w: public.answered(w.preds, public.Refusal(None, 0.9, level=0.95, n=2, why='few')), DataError, 'there is no threshold from which on to answer'),
    'refusal_threshold: accuracy': (lambda w: public.refusal_threshold(w.preds, accuracy=97), ValueError, '`accuracy` must lie between 0 and 1, got 97'),
    'risk_coverage: unknown': (lambda w: public.risk_coverage(w.unknown), DataError, 'needs `targets`'),
    'plot_risk_coverage: unknown': (lambda w: public.plot_risk_coverage(w.unknown), DataError, 'needs `targets`'),
    'energy_score: none': (lambda w: public.energy_score(None), DataError, 'the energy needs `logits`'),
    'FeatureDistance: k': (lambda w: public.FeatureDistance(np.eye(3)), ValueError, '`k` must be a whole number from 1 to 3'),
    'ClassDistance: tables': (lambda w: public.ClassDistance(np.eye(3), np.eye(4)), DataError, '`means` and `axes` must be tables of as many columns'),
    'ClassDistance: targets': (lambda w: public.ClassDistance.fit(np.eye(3), [0, 1]), ValueError, '`targets` must be a class for each of at least one image, got the shape (2,)'),
    'unit_vectors: none': (lambda w: public.unit_vectors(None), DataError, 'the distance needs `features`'),
    'Run: table': (lambda w: w.run.write_table(pd.DataFrame(dict(file=['a']))), DataError, "the table has no column 'path': its columns are 'file'"),
    'foreign_auroc: empty': (lambda w: public.foreign_auroc([], [1, 2]), ValueError, 'must be finite scores, at least one each'),
    'foreign_threshold: few': (lambda w: public.foreign_threshold(np.arange(10)), DataError, '10 known images are too few to keep 0.95 of them: it takes 19'),
    'decision_settings: unknown': (lambda w: public.decision_settings(w.unknown), DataError, 'needs `targets`'),
    'save_bundle: refusal': (lambda w: save_bundle(w.learn, w.folder/'new', refusal=0.8), TypeError, '`refusal` must come from `refusal_threshold`, got 0.8'),
    'describe_slices: not slices': (lambda w: public.describe_slices(w.table), DataError, "the table has no column"),
    'html_table: rows': (lambda w: public.html_table(w.table, 'x', rows=0), ValueError, '`rows` must be at least 1, got 0'),
    'thumbnail: side': (lambda w: public.thumbnail(w.img, side=0), ValueError, '`side` must be at least 1 pixel, got 0'),
    'html_page: empty': (lambda w: public.html_page('t', {}), ValueError, 'a page needs at least one'),
    'write_report: no run': (lambda w: public.write_report(w.photos), FileNotFoundError, 'is no run: it has no file run.toml'),
    'bootstrap_means: nothing': (lambda w: public.bootstrap_means([]), ValueError, '`values` must be one number an image, at least one, got the shape (0,)'),
    'check_network: size': (lambda w: public.check_network(SimpleNamespace(provenance_=dict(size=96)), dict(size=32)), DataError, 'the estimator was fitted to other features: size was 96 and is 32 here'),
    'box_loaders: balance': (lambda w: public.box_loaders(boxed(w), balance='loss'), TypeError, '`balance` is for `image_loaders`: there is none for boxes'),
    'image_model: head of a classic': (lambda w: image_model('classic/lenet', 3, size=32, hidden=(7,)), TypeError, 'a classic network has a head of its own'),
    'create_model: a part of a pixel': (lambda w: public.create_model('lenet', 10, size=32.0), ValueError, '`size` must be a whole number of pixels, or a pair (height, width), got 32.0'),
    'write_frame: ending': (lambda w: public.write_frame(w.folder/'t.xlsx', w.table), ValueError, '`path` must end in .csv or .parquet, got'),
    'read_frame: nothing there': (lambda w: public.read_frame(w.folder/'none.csv'), FileNotFoundError, "there is no file '"),
    'Predictions: save, ending': (lambda w: w.preds.save(w.folder/'p.txt'), ValueError, '`path` must end in .csv or .parquet, got'),
    'Predictions: load, nothing there': (lambda w: Predictions.load(w.folder/'none.parquet'), FileNotFoundError, "there is no file '"),
    'Predictions: by, no such photo': (lambda w: w.preds.by(w.table.query("path != 'cat/1.png'"), 'label'), DataError, 'the table lacks 1 of the files: cat/1.png'),
    'Run: predictions': (lambda w: w.run.predictions('holiday'), FileNotFoundError, "the run has no predictions 'holiday'; it has none"),
    'read_predictions: columns': (lambda w: public.read_predictions(w.table, file='path'), DataError, "no column begins with 'p_': say by `probs` which ones hold probabilities"),
    'align_predictions: other photos': (lambda w: public.align_predictions(w.preds, w.preds[:1]), DataError, 'predictions[1] has other photos than predictions[0]: it lacks 1: cat/1.png'),
    'concat_predictions: twice': (lambda w: public.concat_predictions([w.preds, w.preds]), DataError, 'the whole has photos more than once: cat/0.png, cat/1.png'),
    'evaluation_loader: split': (lambda w: enter(public.evaluation_loader(w.learn, 5)), TypeError, "`split` must be 'train', 'valid', 'test', a table of images, or a loader of fastai, got int"),
    'export_bundle: format': (lambda w: public.export_bundle(w.classifier, w.folder/'a.onnx', to='onx'), ValueError, "`to` must be one of 'onnx', 'pt2', got 'onx'. Did you mean 'onnx'?"),
    'export_bundle: ending': (lambda w: public.export_bundle(w.classifier, w.folder/'a.onnx', to='pt2'), ValueError, "`path` must end in .pt2 for to='pt2', got"),
    'export_bundle: nothing there': (lambda w: public.export_bundle(w.folder/'void', w.folder/'a.pt2', to='pt2'), BundleError, 'is no bundle: it has no file classifier.json'),
    'export_bundle: tolerance': (lambda w: public.export_bundle(w.classifier, w.folder/'a.pt2', to='pt2', tolerance=0), ValueError, '`tolerance` must be a number between 0 and 1, got 0'),
    'export_settings: nothing there': (lambda w: public.export_settings(w.folder/'none.onnx'), FileNotFoundError, "there is no file '"),
    'export_settings: ending': (lambda w: public.export_settings(w.folder/'file.txt'), ValueError, '`path` must end in .onnx or .pt2, got'),
    'create_app: no classifier': (lambda w: pytest.importorskip('fastapi') and public.create_app('bundle'), TypeError, '`classifier` must be a `Classifier`, as `load_bundle` gives it, got str'),
    'create_app: samples': (lambda w: pytest.importorskip('fastapi') and public.create_app(w.classifier, samples=w.folder/'gone'), FileNotFoundError, "of sample photos"),
    'serve: port': (lambda w: pytest.importorskip('fastapi') and public.serve(w.classifier, port=-1), ValueError, '`port` must be a whole number from 0 to 65,535, got -1'),
    'UploadLimits: files': (lambda w: public.UploadLimits(files=0), ValueError, '`files` must be a whole number above 0 and below a million, got 0'),
    'UploadLimits: seconds': (lambda w: public.UploadLimits(seconds='long'), ValueError, "`seconds` must be a number above 0 and below a million, got 'long'"),
    'upload_page: no classes': (lambda w: public.upload_page([]), ValueError, '`vocab` has nothing in it'),
    'read_config: nothing there': (lambda w: public.read_config(w.folder/'none.json'), FileNotFoundError, 'none.json'),
    'read_bundle: nothing there': (lambda w: public.read_bundle(w.folder/'void'), BundleError, 'is no bundle: it has no file classifier.json'),
    'save_bundle: estimator': (lambda w: save_bundle(w.learn, w.folder/'b', estimator=fitted()), DataError, 'the learner has the classes cat, dog, and the estimator a, b'),
}
# Names that refuse nothing by themselves: values, what fails only with what it is given, and what fastai calls
silent = {'BUNDLE_LIMITS', 'EvalBatches', 'fuse_activations', 'map_ahead', 'PAGE_POLICY', 'running', 'ExportReport', 'Path', 'REASONS', 'PRESETS', 'POOLS', 'EMBEDDED', 'cache_folder', 'figure', 'progress', 'shorten', 'probe_image', 'Compute', 'bf16_reason', 'run_as', 'tune_allocator',
          'list_samples', 'own_random', 'TrainOnly', 'TableReader', 'TableSplitter', 'Body', 'InputNorm', 'BnEval', 'EpochLines', 'History', 'ImageLearner', 'no_trace', 'Estimate',
          'MissingExtraError', 'DataError', 'WeightsError', 'AuditReport', 'IMAGE_SUFFIXES', 'KINDS', 'SIDE', 'Scan', 'available_cores', 'package_versions', 'scan_images', 'forget_scans',
          'is_list', 'list_caches', 'list_image_files', 'unlisted_files', 'split_name', 'tidy_labels', 'usable_rows', 'show_copies', 'softmax', 'log_softmax', 'LRRecord', 'RULES', 'keep_random',
          'METRICS', 'Refusal', 'Foreign', 'fold_batch_norm', 'for_inference', 'html_text', 'html_chart', 'html_images', 'model_card', 'HeatMaps', 'ClassificationReport', 'PairedComparison',
          'CheckpointError', 'Interrupted', 'describe_state', 'training_identity', 'training_state', 'OutOfMemory', 'is_out_of_memory', 'free_memory', 'OPTIMIZERS', 'TorchOptimizer', 'random_state', 'load_random_state', 'Comparison', 'copy_weights', 'seed_loaders', 'table_fingerprint', 'ACTIVATIONS', 'JOINS', 'NETWORKS', 'POOLINGS', 'list_models', 'DownsampleBlock', 'InceptionBlock', 'ResidualBlock',
          'is_head', 'imagenet_names', 'to_predictions', 'BOX', 'BOX_AUGMENT', 'BOX_LOSSES', 'BoxReader', 'TidyBoxes', 'TwoHeads', 'class_accuracy', 'edge_loss', 'iou_loss', 'mean_box_iou', 'on_features', 'weights_hash', 'why_not_cached', 'reads_test'}


def files(folder): return {o: o.stat().st_mtime_ns for o in folder.rglob('*') if 'changed' not in o.parts}


@pytest.mark.parametrize('name', rows)
def test_error(w, name, monkeypatch):
    call, kind, text = rows[name]
    monkeypatch.chdir(w.folder/'void')
    for o in ('IMGCLS_DATA', 'IMGCLS_CACHE'): monkeypatch.setenv(o, str(w.folder/'no_cache'))
    before = files(w.folder)
    with pytest.raises(kind) as e: call(w)
    message, last = str(e.value), Path(traceback.extract_tb(e.tb)[-1].filename)
    assert text in message, message
    assert '\n' not in message and len(message) < 500, 'an error is a sentence or two'
    assert package in last.parents, f'it comes from {last}, not from imgcls'
    assert files(w.folder) == before, 'an error leaves nothing behind'


def test_no_name_is_forgotten():
    spoken = {o.partition(':')[0] for o in rows}
    assert spoken <= set(public.__all__) and silent <= set(public.__all__)
    assert set(public.__all__) - spoken == silent


def test_an_image_error_keeps_its_reason(w):
    with pytest.raises(ImageError) as e: open_image(w.folder/'cut.png')
    assert (e.value.reason, Path(e.value.file).name) == ('truncated', 'cut.png') and e.value.__cause__ is not None


def test_probing_never_fails(w):
    for o in ('gone.jpg', w.folder, w.folder/'file.txt', w.folder/'cut.png'): assert public.probe_image(o)['error']


def test_our_errors_are_those_of_python_too():
    "So `except ValueError` and the like catch them"
    assert issubclass(DataError, ValueError) and issubclass(BundleError, ValueError) and issubclass(MissingExtraError, ImportError)
    assert all(issubclass(o, ImgclsError) for o in (DataError, BundleError, MissingExtraError, ImageError, WeightsError))
    assert torch.is_grad_enabled()
