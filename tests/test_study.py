"""Studies: the same start and the same batches, what is done is never done again, and intervals that say what SciPy says."""
import json, random
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import SGD, Adam
from safetensors.torch import load_file, save_file
from scipy import stats
from sklearn.datasets import load_digits
from test_learner import small_loaders
from torch import nn

from imgcls.comparison import Comparison, _difference, _holm, compare, paired_difference, plot_runs
from imgcls.core import DataError, read_json, write_json
from imgcls.predictions import Predictions
from imgcls.study import Study
from imgcls.train.learner import image_learner, predict

digits = load_digits()
items = list(zip(torch.tensor(digits.images/16, dtype=torch.float32).flatten(1), torch.tensor(digits.target)))


def noisy(batch): return batch[0] + 0.1*torch.randn(batch[0].shape), batch[1]


def loaders(**kwargs): return DataLoaders(DataLoader(items[:200], bs=40, shuffle=True, **kwargs), DataLoader(items[200:300], bs=100))


class Seen(Callback):
    "Keep what the network was given"
    def __init__(self): self.batches = []
    def before_batch(self):
        if self.training: self.batches.append((self.x.clone(), self.y.clone()))


class World(SimpleNamespace):
    "Functions for a study, and what they did"
    def __init__(self, **kwargs): super().__init__(trained=[], starts=[], seen=[], fail_at=None, dls=loaders(**kwargs))

    def make(self, v, seed):
        body = [nn.Linear(64, 16), nn.ReLU(), *([nn.Dropout(v['dropout'])] if v.get('dropout') else [])]
        net = nn.Sequential(nn.Sequential(*body), nn.Linear(16, v.get('n_out', 10)))
        return Learner(self.dls, net, loss_func=CrossEntropyLossFlat(), opt_func=dict(sgd=SGD, adam=Adam)[v.get('opt', 'sgd')], metrics=accuracy)

    def train(self, learn, v):
        self.starts.append({k: o.clone() for k, o in learn.model.state_dict().items()})
        seen = Seen()
        learn.fit(v.get('epochs', 2), float(v.get('lr', 0.1)), cbs=seen)
        self.seen.append(seen.batches)
        if len(self.trained) == self.fail_at: raise KeyboardInterrupt
        self.trained.append(v)

    @staticmethod
    def answers(learn):
        probs, targets = learn.get_preds()
        return Predictions(probs.numpy(), list(map(str, range(probs.shape[1]))), targets=targets.numpy())

    def study(self, folder, **kwargs): return Study(folder, self.make, self.train, predictions=self.answers, **kwargs)


def add(study, **variants):
    for name, settings in variants.items(): study.add(name, **settings)
    return study


def files(folder): return sorted(o.relative_to(folder).as_posix() for o in folder.rglob('*') if o.is_file())


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- Conditions ----------------------------------------------------------------------------------------------------
def test_same_start_and_same_batches_for_each_seed(tmp_path):
    "Bit for bit, though one network uses up random numbers and the loaders add noise; another seed has others"
    w = World(after_batch=noisy)
    add(w.study(tmp_path), plain=dict(lr=0.1), adam=dict(opt='adam', lr=0.01), dropout=dict(dropout=0.5)).run(seeds=2)
    assert len(w.seen) == 6 and all(len(o) == 10 for o in w.seen)
    for seed in (0, 1):
        starts, seen = w.starts[3*seed:3*seed + 3], w.seen[3*seed:3*seed + 3]
        assert same(starts[0], starts[1]) and same(starts[0], starts[2]) and same(starts[0], load_file(tmp_path/f'starts/{seed}.safetensors'))
        for other in seen[1:]:
            for (x, y), (x2, y2) in zip(seen[0], other): assert torch.equal(x, x2) and torch.equal(y, y2)
    assert not same(w.starts[0], w.starts[3]) and not torch.equal(w.seen[0][0][0], w.seen[3][0][0])
    noise = [x - torch.stack([items[i][0] for i in range(40)]) for x, _ in w.seen[0][:2]]
    assert not torch.equal(*noise), 'each batch has random numbers of its own'


def test_photos_in_batches_are_the_same(tmp_path):
    "With imgcls's loaders, augmented item by item and batch by batch; and the figures are those of validation"
    dls, w = small_loaders(6, augment='standard', size=16), World()
    w.make = lambda v, seed: image_learner(dls, nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU()), hidden=(), dropout=v['dropout'], compute='fp32')
    last = []
    study = Study(tmp_path, w.make, lambda learn, v: (w.train(learn, v), last.append(learn)), fixed=dict(epochs=1))
    frame = add(study, without=dict(dropout=0), much=dict(dropout=0.8)).run(seeds=[3])
    for (x, _), (x2, _) in zip(*w.seen): assert torch.equal(x, x2)
    preds, record = predict(last[-1], 'valid'), study.records()[-1]
    assert record['images']['correct'] == ''.join('01'[int(o)] for o in preds.correct) and record['split'] == 'valid'
    assert np.isclose(frame['accuracy'].iloc[-1], preds.correct.mean()) and np.isclose(frame['loss'].iloc[-1], preds.losses.mean(), rtol=1e-4)
    assert [o['epoch'] for o in record['history']] == [0] and len(record['batches']['loss']) == len(dls.train)


def test_a_run_is_the_same_alone_and_among_others(tmp_path):
    frames = []
    for names in (['a', 'b'], ['b']):
        variants = {o: dict(a=dict(lr=0.5), b=dict(lr=0.05))[o] for o in names}
        frames.append(add(World(after_batch=noisy).study(tmp_path/'_'.join(names)), **variants).run(seeds=1).query("variant == 'b'"))
    assert frames[0]['loss'].item() == frames[1]['loss'].item()


def test_random_numbers_around_are_left_alone(tmp_path):
    study = add(World().study(tmp_path), a={})
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    study.run(seeds=1)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_what_does_not_fit_the_start_is_said(tmp_path):
    w = World()
    frame = add(w.study(tmp_path), ten=dict(n_out=10), twelve=dict(n_out=12)).run(seeds=1)
    assert frame['start'].tolist() == ['same', '2 of 4 tensors']
    assert torch.equal(w.starts[0]['0.0.weight'], w.starts[1]['0.0.weight'])


def test_warm_start_is_trained_once_a_seed(tmp_path):
    w, begun = World(), []
    def begin(seed):
        begun.append(seed)
        learn = w.make({}, seed)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.1)
        return learn
    study = add(w.study(tmp_path, start=begin), a={}, b=dict(opt='adam', lr=0.01))
    study.run(seeds=2)
    study.run(seeds=2)
    assert begun == [0, 1] and same(w.starts[0], w.starts[1]) and not same(w.starts[0], w.starts[2])
    list(w.dls.train)  # the loaders are somewhere else by now
    add(w.study(tmp_path/'again', start=begin), b=dict(opt='adam', lr=0.01)).run(seeds=[1])
    assert same(w.starts[4], w.starts[2]), 'the beginning of a seed is always the same'


def test_start_from_a_file(tmp_path):
    w = World()
    weights = {k: v.contiguous() for k, v in w.make({}, 0).model.state_dict().items()}
    save_file(weights, tmp_path/'w.safetensors')
    add(w.study(tmp_path/'s', start=tmp_path/'w.safetensors'), a={}).run(seeds=2)
    assert same(w.starts[0], weights) and same(w.starts[1], weights) and not (tmp_path/'s/starts').exists()
    save_file({'other': torch.zeros(2)}, tmp_path/'o.safetensors')
    with pytest.raises(DataError, match='no tensor of .* the start is of another network'): add(w.study(tmp_path/'t', start=tmp_path/'o.safetensors'), a={}).run(seeds=1)
    with pytest.raises(FileNotFoundError, match='`start`: there is no file'): w.study(tmp_path, start=tmp_path/'void')


# --- Records -------------------------------------------------------------------------------------------------------
def test_interrupted_and_resumed(tmp_path):
    "Nothing half is left, nothing is trained twice, and the figures are those of a study that wasn't interrupted"
    variants = dict(a=dict(lr=0.1), b=dict(lr=0.02))
    w = World()
    w.fail_at = 2
    with pytest.raises(KeyboardInterrupt): add(w.study(tmp_path/'x'), **variants).run(seeds=2)
    assert files(tmp_path/'x') == ['runs/a/0.json', 'runs/b/0.json', 'starts/0.safetensors', 'starts/1.safetensors']
    w.fail_at = None
    study = add(w.study(tmp_path/'x'), **variants)
    frame = study.run(seeds=2)
    assert len(w.trained) == 4 and len(frame) == 4
    study.run(seeds=2)
    assert len(w.trained) == 4
    study.add('c', lr=0.5)
    assert len(study.run(seeds=3)) == 9 and len(w.trained) == 9
    whole = add(World().study(tmp_path/'y'), **variants).run(seeds=2)
    pd.testing.assert_frame_equal(frame.drop(columns='seconds'), whole.drop(columns='seconds'))


def test_record_is_plain_json(tmp_path):
    study = add(World().study(tmp_path, fixed=dict(epochs=2), metrics=dict(top=lambda p: p.confidence.max())), a=dict(lr=np.float32(0.5), sizes=(1, 2)))
    frame = study.run(seeds=1)
    def refuse(o): raise AssertionError(f'{o} is no JSON')
    record = json.loads((tmp_path/'runs/a/0.json').read_text(), parse_constant=refuse)
    assert record['settings'] == dict(epochs=2, lr=0.5, sizes=[1, 2]) and record['failed'] == '' and record['schema'] == 1
    assert len(record['batches']['loss']) == len(record['batches']['lr']) == 10 and set(record['batches']['lr']) == {0.5}
    assert [o['epoch'] for o in record['history']] == [0, 1] and {'train_loss', 'valid_loss', 'accuracy'} <= record['history'][0].keys()
    assert record['images']['n'] == len(record['images']['correct']) == 100 and set(record['images']['correct']) <= {'0', '1'}
    assert record['environment']['versions']['torch'] == torch.__version__.split('+')[0] or record['environment']['versions']['torch'] == torch.__version__
    assert record['environment']['machine']['threads'] == torch.get_num_threads() and set(record['result']) == {'accuracy', 'loss', 'top'}
    assert list(frame.columns)[:8] == ['variant', 'seed', 'epochs', 'lr', 'sizes', 'accuracy', 'loss', 'top']
    add(study, a=dict(lr=0.5, sizes=[1, 2]))  # the same, though given in another form


def test_a_run_that_goes_astray_is_recorded(tmp_path):
    w = World()
    study = add(w.study(tmp_path), good={}, bad=dict(lr=1e30))
    frame = study.run(seeds=3)
    assert 'astray' in frame['failed'].iloc[-1] and np.isnan(frame['accuracy'].iloc[-1]) and len(w.trained) == 6
    found = compare(study)
    assert found.sentences == ['bad: 3 of its runs went astray, so there is no mean to compare.'] and np.isnan(found.table.loc['bad', 'mean'])
    assert len(plot_runs(study).axes) == 3
    assert 'good: 3 of' not in str(compare(study, baseline='bad')) and 'nothing to compare' in compare(study, baseline='bad').sentences[0]


def test_changed_data_is_an_error_of_its_own(tmp_path):
    "Another error than a diverging loss isn't taken for one"
    w = World()
    study = Study(tmp_path, w.make, w.train, predictions=lambda learn: Predictions(np.full((1, 2), 2.), ['a', 'b']))
    with pytest.raises(DataError, match='between 0 and 1'): add(study, a={}).run(seeds=1)
    assert files(tmp_path) == ['starts/0.safetensors']


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "A study with runs, and its world"
    w = World()
    study = add(w.study(tmp_path_factory.mktemp('done')/'s'), slow=dict(lr=0.01), fast=dict(lr=0.1), adam=dict(opt='adam', lr=0.01))
    study.run(seeds=4)
    return study


@pytest.mark.parametrize('call,kind,text', [
    (lambda o: o.add('fast', lr=0.2), ValueError, r"the variant 'fast' was there with lr=0.1, now 0.2. Give the new one another name; if the old runs aren't wanted"),
    (lambda o: o.add('fast', lr=0.1, wd=0), ValueError, r"was there with wd=None, now 0"),
    (lambda o: o.add('Fast', lr=0.1), ValueError, r"'fast' and 'Fast' would share a folder"),
    (lambda o: o.add('a/b'), ValueError, r"must do as the name of a folder, got 'a/b'"),
    (lambda o: o.add('x', seed=1), ValueError, r'`seed` is a column of its own'),
    (lambda o: o.add('x', opt=SGD), TypeError, r"`opt` of the variant 'x' can't be written down"),
    (lambda o: o.add('x', lr=float('nan')), TypeError, r"`lr` of the variant 'x' can't be written down, got nan"),
    (lambda o: o.run(seeds=0), ValueError, r'`seeds` must be how many'),
    (lambda o: o.run(seeds=[0.5]), ValueError, r'`seeds` must be how many'),
    (lambda o: Study(o.folder/'new', o.make, o.train).run(), ValueError, r'the study has no variants'),
    (lambda o: Study(o.folder).run(), ValueError, r'opened without `make` and `train`'),
    (lambda o: add(Study(o.folder/'new', lambda v, seed: None, o.train), a={}).run(), TypeError, r"`make` must return a learner, got NoneType for the variant 'a'"),
    (lambda o: compare('folder'), TypeError, r'`study` must be a `Study`, got str'),
    (lambda o: compare(o, level=95), ValueError, r'`level` must lie between 0 and 1'),
    (lambda o: compare(o, baseline='quick'), ValueError, r"`baseline` must be one of 'slow', 'fast', 'adam', got 'quick'"),
    (lambda o: compare(o, metric='f1'), ValueError, r"`metric` must be one of 'accuracy', 'loss', got 'f1'"),
    (lambda o: compare(o, variants=['slow']), DataError, r"there is only the variant 'slow'"),
    (lambda o: compare(Study(o.folder/'new')), DataError, r'there are no runs in'),
    (lambda o: plot_runs(o, window=1), ValueError, r'`window` must be 2 or more, got 1'),
    (lambda o: plot_runs(o, metric='f1'), ValueError, r'`metric` must be one of'),
    (lambda o: paired_difference(np.ones((2, 3)), np.ones((2, 4))), DataError, r'about the same images, got 3 and 4'),
    (lambda o: paired_difference([], []), DataError, r'`a` must have a row for each run'),
    (lambda o: paired_difference(np.ones(3), np.ones(3), level=2), ValueError, r'`level` must lie between 0 and 1'),
])
def test_refused(done, call, kind, text):
    before = files(done.folder)
    with pytest.raises(kind, match=text): call(done)
    assert [o for o in files(done.folder) if 'new/' not in o] == before and list(done.variants) == ['slow', 'fast', 'adam']


def test_changed_settings_are_refused_in_another_session(done):
    w = World()
    with pytest.raises(ValueError, match='was there with epochs=None, now 3'): w.study(done.folder, fixed=dict(epochs=3)).add('slow', lr=0.01)
    with pytest.raises(ValueError, match="was there with split='valid', now 'test'"): w.study(done.folder, split='test').add('slow', lr=0.01)
    assert len(add(w.study(done.folder), slow=dict(lr=0.01)).run(seeds=4)) == 12 and not w.trained


def test_another_start_is_refused(done, tmp_path):
    import shutil
    shutil.copytree(done.folder, tmp_path/'s')
    weights = load_file(tmp_path/'s/starts/0.safetensors')
    save_file({k: v + 1 for k, v in weights.items()}, tmp_path/'s/starts/0.safetensors')
    study = add(World().study(tmp_path/'s'), late=dict(lr=0.3))
    with pytest.raises(DataError, match="the runs of seed 0 of .*'slow'.* began with other weights"): study.run(seeds=1)


def test_a_learner_is_not_used_twice(tmp_path):
    w = World()
    one = w.make({}, 0)
    with pytest.raises(ValueError, match='must make a new learner each time'): add(Study(tmp_path, lambda v, seed: one, w.train, predictions=w.answers), a={}).run(seeds=2)
    with pytest.raises(TypeError, match='`start` must return a learner, got Sequential'): add(w.study(tmp_path/'s', start=lambda seed: one.model), a={}).run(seeds=1)


def test_broken_records_are_named(tmp_path):
    (tmp_path/'runs/a').mkdir(parents=True)
    (tmp_path/'runs/a/0.json').write_text('{"schema": ')
    with pytest.raises(DataError, match='0.json'): Study(tmp_path).frame()
    write_json(tmp_path/'runs/a/0.json', dict(schema=7))
    with pytest.raises(DataError, match=r'no record of a run .*schema 1'): Study(tmp_path).frame()


# --- Comparison ----------------------------------------------------------------------------------------------------
def test_against_scipy(done):
    table, wide = compare(done, baseline='slow').table, done.frame().pivot(index='seed', columns='variant', values='accuracy')
    for name in ('fast', 'adam'):
        theirs = stats.ttest_rel(wide[name], wide['slow']).confidence_interval(0.95)
        assert np.allclose(table.loc[name, ['seeds_low', 'seeds_high']].astype(float), theirs)
        assert np.isclose(table.loc[name, 'difference'], (wide[name] - wide['slow']).mean())
    for name in wide: assert np.allclose(table.loc[name, ['low', 'high']].astype(float), stats.t.interval(0.95, 3, wide[name].mean(), stats.sem(wide[name])))
    # without images the p-value is that of the paired t-test
    loss, by_loss = done.frame().pivot(index='seed', columns='variant', values='loss'), compare(done, metric='loss', baseline='slow').table
    theirs = stats.ttest_rel(loss['adam'], loss['slow'])
    assert np.isclose(by_loss.loc['adam', 'p'], theirs.pvalue, rtol=1e-5) and np.allclose(by_loss.loc['adam', ['diff_low', 'diff_high']].astype(float), theirs.confidence_interval())
    assert by_loss[['images_low', 'images_high']].isna().all(axis=None)


def test_images_and_seeds_together(done):
    table = compare(done, baseline='slow').table
    right = {o: np.array([list(r['images']['correct']) for r in done.records() if r['variant'] == o]) == '1' for o in ('slow', 'fast')}
    row = table.loc['fast']
    assert np.allclose(row[['difference', 'images_low', 'images_high']].astype(float), paired_difference(right['fast'], right['slow']))
    assert row.diff_high - row.diff_low >= max(row.seeds_high - row.seeds_low, 0.99*(row.images_high - row.images_low))
    found = compare(done, baseline='slow')
    assert isinstance(found, Comparison) and len(found.sentences) == 2 and 'Holm' in repr(found) and '<li>fast' in found._repr_html_()


def test_few_seeds_say_nothing(done):
    for n, word in ((1, '1 seed:'), (2, '2 seeds:')):
        study, records = Study(done.folder), done.records()
        study.records = lambda n=n, records=records: [o for o in records if o['seed'] < n]
        assert all(f'{word} too few to say' in o for o in compare(study, baseline='slow').sentences)


def test_holm():
    assert np.allclose(_holm([0.01, 0.04, np.nan, 0.03]), [0.03, 0.06, np.nan, 0.06], equal_nan=True)
    assert np.allclose(_holm([0.9, 0.8]), [1, 1]) and len(_holm([])) == 0


@pytest.mark.parametrize('d,image_d,p', [([0., 0., 0.], np.zeros(9), 1.), ([0.2]*3, None, 0.), ([1., 1., 1.], np.ones(9), 0.)])
def test_differences_without_spread(d, image_d, p):
    found = _difference(np.array(d), image_d, 0.95)
    assert found['p'] == p and np.allclose([found['diff_low'], found['diff_high']], d[0])


def test_false_alarms_are_as_rare_as_said():
    "No true difference: chance of seeds, of images, and of both together; less than one alarm in twenty, and an interval that isn't endless"
    rng, alarms, half = np.random.default_rng(1), 0, []
    for _ in range(100):
        n_seeds, n_images = 4, 150
        skill = 0.3*rng.normal(size=n_images) + 0.15*rng.normal(size=(n_seeds, 1))  # how much the one is better at each image, and with each seed
        ease = rng.normal(size=n_images)
        a, b = (rng.normal(size=(n_seeds, n_images)) < ease + sign*skill for sign in (0.5, -0.5))
        found = _difference(a.mean(1) - b.mean(1), a.mean(0) - b.mean(0), 0.95)
        alarms += found['p'] < 0.05
        half.append(found['diff_high'] - found['difference'])
        assert (found['p'] < 0.05) == (found['diff_low'] > 0 or found['diff_high'] < 0)
    assert alarms/100 < 0.08 and np.median(half) < 0.2


def test_paired_difference_is_the_bootstrap():
    rng = np.random.default_rng(3)
    a, b = rng.random((3, 371)) < 0.8, rng.random((2, 371)) < 0.7
    difference = a.mean(0) - b.mean(0)
    draws = np.random.default_rng(0).integers(371, size=(5000, 371))
    assert paired_difference(a, b) == (difference.mean(), *np.quantile(difference[draws].mean(1), [0.025, 0.975]))


@pytest.mark.parametrize('n', [1, 2, 8, 9])
def test_plot(done, tmp_path, n):
    for i in range(n):
        for o in (o for o in done.records() if o['variant'] == 'fast'): write_json(tmp_path/f'runs/v{i}/{o["seed"]}.json', o | dict(variant=f'v{i}'))
    if n > 8:
        with pytest.raises(ValueError, match='more than 8 variants'): plot_runs(Study(tmp_path))
        fig = plot_runs(Study(tmp_path), variants=['v0', 'v8'])
    else: fig = plot_runs(Study(tmp_path))
    shown = min(n, 8) if n < 9 else 2
    assert len(fig.axes) == 3 and len(fig.axes[0].lines) == len(fig.axes[1].lines) == shown and len(fig.legends[0].texts) == shown
    assert len({(o.get_color(), o.get_linestyle()) for o in fig.axes[0].lines}) == shown
    fig.canvas.draw()


def test_rolling_mean_is_that_of_the_losses(done):
    line = plot_runs(done, window=2, variants=['slow']).axes[0].lines[0].get_ydata()
    losses = np.mean([o['batches']['loss'] for o in done.records() if o['variant'] == 'slow'], axis=0)
    assert np.allclose(line[1:], (losses[1:] + losses[:-1])/2, rtol=1e-4) and np.isnan(line[0])


# --- Search --------------------------------------------------------------------------------------------------------
def test_search_goes_on_where_it_was(tmp_path):
    pytest.importorskip('optuna', reason='needs the extra `search`')
    def space(trial): return dict(opt=trial.suggest_categorical('opt', ['sgd', 'adam']), lr=trial.suggest_float('lr', 1e-4, 1, log=True))
    whole, w = World(), World()
    expected = whole.study(tmp_path/'whole').search(space, n_trials=4)
    w.fail_at = 2
    with pytest.raises(KeyboardInterrupt): w.study(tmp_path/'parts').search(space, n_trials=4)
    w.fail_at = None
    found = w.study(tmp_path/'parts').search(space, n_trials=4)
    assert len(w.trained) == 4 and [o['lr'] for o in w.trained] == [o['lr'] for o in whole.trained]
    pd.testing.assert_frame_equal(found.drop(columns='seconds'), expected.drop(columns='seconds'))
    assert found['accuracy'].is_monotonic_decreasing and len(set(found['lr'])) == 4
    for kwargs, text in ((dict(direction='up'), '`direction` must be one of'), (dict(n_trials=0), '`n_trials` must be 1 or more'), (dict(metric='f1'), '`metric` must be one of')):
        with pytest.raises(ValueError, match=text): w.study(tmp_path/'parts').search(space, **dict(dict(n_trials=1), **kwargs))
    with pytest.raises(ValueError, match="'trial_000' was there with lr="): w.study(tmp_path/'parts').search(lambda t: dict(space(t), lr=2.), n_trials=1)


def test_search_passes_over_what_goes_astray(tmp_path):
    pytest.importorskip('optuna', reason='needs the extra `search`')
    found = World().study(tmp_path).search(lambda trial: dict(lr=trial.suggest_categorical('lr', [0.1, 1e30])), n_trials=4, metric='loss', direction='minimize', seeds=1)
    assert found['loss'].iloc[0] < 3 and (found['failed'] != '').any() and found['loss'].iloc[-1] != found['loss'].iloc[-1]


def test_records_can_be_read_anywhere(done):
    assert read_json(done.folder/'runs/slow/0.json')['variant'] == 'slow' and len(Study(done.folder).records()) == 12
    assert [o['variant'] for o in done.records()] == ['slow']*4 + ['fast']*4 + ['adam']*4
    assert Study(str(done.folder)).frame().shape[0] == 12
