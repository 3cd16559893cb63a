"""The best weights on disk, stopping early and averaged weights: the same decisions over both stages, after a kill, and whatever cuts a training short."""
import copy, logging, math, multiprocessing, os, random, signal, time

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelEpochException, CancelFitException
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.learner import Learner, ValueMetric
from fastai.torch_core import set_seed
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from imgcls.compute import Compute
from imgcls.core import DataError
from imgcls.data.loaders import image_loaders
from imgcls.data.samples import sample
from imgcls.data.tables import image_table
from imgcls.train.callbacks import History, TrainingMonitor
from imgcls.train.keep import AveragedWeights, BestCheckpoint, EarlyStopping
from imgcls.train.learner import fine_tune, image_learner, predict


@pytest.fixture(scope='module')
def table(): return image_table(sample('digits')).groupby(['label', 'split']).head(3)


@pytest.fixture
def make(table):
    def make(seed=1, bs=8, **kwargs):
        "A tiny learner, the same for the same seed; quiet"
        set_seed(seed, reproducible=True)
        dls = image_loaders(table, size=16, augment='none', bs=bs, num_workers=0, check=None)
        body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        learn = image_learner(dls, body, **dict(dict(hidden=(), dropout=0.2, compute='fp32'), **kwargs))
        learn.remove_cb(learn.progress)
        learn.logger = lambda *args: None
        return learn
    return make


def weights(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def files(folder): return sorted(o.name for o in folder.iterdir())


class Scripted(Callback):
    "Gives the metric `score` one value after the other, and keeps the weights of each epoch; called after all others"
    order = 1000
    def __init__(self, values): self.values, self.n, self.seen, self.there, self.folder = list(values), 0, [], [], None
    def score(self): return self.values[self.n]
    def after_epoch(self):
        if not self.learn.recorder.values or self.learn.final_record == []: return
        self.n += 1
        self.seen.append(weights(self.learn))
        if self.folder is not None: self.there.append(files(self.folder))


def scripted(make, values, **kwargs):
    cb = Scripted(values)
    return make(metrics=ValueMetric(cb.score, 'score'), **kwargs), cb


# --- BestCheckpoint ------------------------------------------------------------------------------------------------
nan, inf = math.nan, math.inf

@pytest.mark.parametrize('values,mode,k,kept', [
    ([.1, .3, .2, .3], 'auto', 1, [1]), ([.1, .3, .2, .3], 'min', 1, [0]), ([.5, .5, .5, .5], 'auto', 2, [0, 1]), ([nan, .1, nan, inf], 'auto', 1, [1]),
    ([nan, nan, -inf, nan], 'auto', 3, []), ([.1, .2, .3, .4], 'auto', 3, [3, 2, 1]), ([.4, .1, .3, .4], 'auto', 2, [0, 3]), ([.1, .2, .2, .1], 'min', 9, [0, 3, 1, 2])])
def test_the_best_over_both_stages_is_kept(make, tmp_path, values, mode, k, kept):
    learn, script = scripted(make, values)
    best = BestCheckpoint(tmp_path/'best', monitor='score', mode=mode, k=k)
    fine_tune(learn, 2, lr=1e-2, freeze_epochs=2, cbs=[best, script])
    assert best.table()['epoch'].tolist() == kept and best.best_epoch == (kept[0] if kept else None) and best.best == (values[kept[0]] if kept else None)
    assert [o['stage'] for o in best.kept] == [('frozen', 'frozen', 'unfrozen', 'unfrozen')[i] for i in kept]
    if not kept:
        assert best.path is None and not best.folder.exists() and same(weights(learn), script.seen[-1])
        return
    assert files(best.folder) == sorted(f'{i:02d}_{values[i]:.3f}.safetensors' for i in kept)
    for i, file in zip(kept, best.table()['file']):
        assert same(load_file(best.folder/file), script.seen[i])
        with safe_open(best.folder/file, 'pt') as f: about = f.metadata()
        assert (int(about['epoch']), float(about['value']), about['monitor'], about['stage']) == (i, values[i], 'score', learn.history[i]['stage'])
    assert same(weights(learn), script.seen[kept[0]])
    assert any('running_mean' in k and not torch.equal(v, script.seen[-1][k]) for k, v in weights(learn).items()) or kept[0] == 3


def test_the_last_weights_stay_with_load_false(make, tmp_path):
    learn, script = scripted(make, [.9, .1, .2])
    fine_tune(learn, 2, lr=1e-2, freeze_epochs=1, cbs=[BestCheckpoint(tmp_path, monitor='score', load=False), script])
    assert same(weights(learn), script.seen[-1]) and not same(weights(learn), script.seen[0])


def test_the_second_stage_begins_with_the_last_weights_of_the_first(make, tmp_path):
    class Begin(Callback):
        order = 2000
        def before_fit(self): begins.append(weights(self.learn))
    learn, script = scripted(make, [.9, .1, .2])
    begins = []
    fine_tune(learn, 1, lr=1e-2, freeze_epochs=2, cbs=[BestCheckpoint(tmp_path, monitor='score'), script, Begin()])
    assert same(begins[1], script.seen[1]) and same(weights(learn), script.seen[0])


def test_a_file_is_removed_when_the_next_epoch_begins(make, tmp_path):
    "A checkpoint that is written last of all still finds the files of the checkpoint before it"
    learn, script = scripted(make, [.1, .2, .3, .1])
    script.folder = tmp_path
    fine_tune(learn, 2, freeze_epochs=2, cbs=[BestCheckpoint(tmp_path, monitor='score', fname='{epoch}'), script])
    one, two, three = (f'{i}.safetensors' for i in range(3))
    assert script.there == [[one], [one, two], [two, three], [three]] and files(tmp_path) == [three]


def test_one_name_is_written_over_and_over(make, tmp_path):
    learn, script = scripted(make, [.1, .2, .1, .3])
    best = BestCheckpoint(tmp_path, monitor='score', fname='best')
    fine_tune(learn, 3, freeze_epochs=1, cbs=[best, script])
    assert files(tmp_path) == ['best.safetensors'] and same(load_file(best.path), script.seen[3]) and best.best_epoch == 3


def test_losses_and_metrics_and_those_of_the_monitor(make, tmp_path):
    learn = make()
    cbs = [BestCheckpoint(tmp_path/o.strip('_'), monitor=o, k=2, fname='{epoch}_{stage}_{train_accuracy:.2f}_{lr:.1e}') for o in ('valid_loss', 'accuracy', 'train_loss', 'train_accuracy')]
    fine_tune(learn, 2, lr=1e-2, freeze_epochs=1, cbs=[*cbs, TrainingMonitor(plot=False)])
    for cb in cbs:
        sign = -1 if 'loss' in cb.monitor else 1
        order = sorted(learn.history, key=lambda o: (-sign*o[cb.monitor], o['epoch']))
        assert cb.table()['epoch'].tolist() == [o['epoch'] for o in order[:2]] and cb.table()[cb.monitor].tolist() == [o[cb.monitor] for o in order[:2]]


def test_memory_layout_and_tensors_stay(make, tmp_path):
    learn, script = scripted(make, [.9, .1])
    learn.compute = Compute(channels_last=True)
    learn.model.to(memory_format=torch.channels_last)
    places = [o.data_ptr() for o in learn.model.parameters()]
    learn.fit(2, 1e-2, cbs=[BestCheckpoint(tmp_path, monitor='score'), script])
    assert same(weights(learn), script.seen[0]) and [o.data_ptr() for o in learn.model.parameters()] == places
    conv = [m for m in learn.model.modules() if isinstance(m, nn.Conv2d)][-1]
    assert conv.weight.is_contiguous(memory_format=torch.channels_last) and not conv.weight.is_contiguous()


def test_weights_that_layers_share(make, tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a, self.b = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.b.weight = self.a.weight
        def forward(self, x): return self.b(self.a(self.first(x)).relu())
    script = Scripted([.9, .1, .2])
    plain = make()
    learn = image_learner(plain.dls, Tied(), hidden=(), compute='fp32', metrics=ValueMetric(script.score, 'score'))
    with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-2, cbs=[AveragedWeights(), BestCheckpoint(tmp_path, monitor='score'), script])
    body = next(m for m in learn.model.modules() if isinstance(m, Tied))
    assert body.a.weight is body.b.weight and all(torch.equal(v, weights(learn)[k]) for k, v in load_file(next(tmp_path.glob('00*'))).items())


def test_default_name_without_accuracy(make, tmp_path):
    learn = make(metrics=[])
    best = BestCheckpoint(tmp_path)
    learn.fit(1, cbs=best)
    assert files(tmp_path) == [f'00_{learn.history[0]["valid_loss"]:.3f}.safetensors']


@pytest.mark.parametrize('kwargs,kind,text', [
    (dict(k=0), ValueError, '`k` must be a whole number of at least 1, got 0'), (dict(k=1.5), ValueError, '`k` must be'), (dict(mode='maximum'), ValueError, "Did you mean 'max'?"),
    (dict(fname='a/{epoch}'), ValueError, 'without folder'), (dict(fname='..\\{epoch}'), ValueError, 'without folder'), (dict(fname='.{epoch}'), ValueError, 'without folder'),
    (dict(fname='{epoch:/>9}'), ValueError, 'without folder'), (dict(fname='a:b'), ValueError, 'without folder'), (dict(fname=''), ValueError, 'must be a pattern'),
    (dict(fname=None), ValueError, 'must be a pattern'), (dict(fname='{epoch'), ValueError, 'is no pattern that Python can format'),
    (dict(k=2, fname='{accuracy}'), ValueError, 'needs the field {epoch} to keep the best 2 apart'),
    (dict(monitor='acuracy'), ValueError, "`monitor` must be one of 'train_loss', 'valid_loss', 'accuracy', got 'acuracy'. Did you mean 'accuracy'?"),
    (dict(monitor='train_accuracy'), ValueError, '`monitor` must be one of'), (dict(monitor='lr'), ValueError, '`monitor` must be one of'),
    (dict(fname='{epoch}_{f1}'), ValueError, "`fname` must be one of 'epoch', 'stage', 'train_loss', 'valid_loss', 'accuracy', 'lr', 'seconds', got 'f1'"),
    (dict(fname='{}'), ValueError, '`fname` must be one of'), (dict(fname='{epoch.real}'), ValueError, "got 'epoch.real'"),
    (dict(fname='{stage:.3f}'), ValueError, "can't be filled in"), (dict(fname='{epoch:.3s}'), ValueError, "can't be filled in")])
def test_what_is_refused_before_the_first_batch(make, tmp_path, kwargs, kind, text):
    learn = make()
    before = weights(learn)
    with pytest.raises(kind) as e: learn.fit(1, cbs=BestCheckpoint(tmp_path/'best', **kwargs))
    assert text in str(e.value) and same(before, weights(learn)) and not (tmp_path/'best').exists()


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path/'a').touch()
    with pytest.raises(NotADirectoryError, match='is a file'): BestCheckpoint(tmp_path/'a')


def test_files_of_others_are_left_alone(make, tmp_path):
    learn = make()
    save_file({'a': torch.ones(1)}, tmp_path/'other.safetensors')
    (tmp_path/'broken.safetensors').write_bytes(b'no')
    learn.fit(1, cbs=BestCheckpoint(tmp_path, fname='one'))
    with pytest.raises(FileExistsError, match='holds the best weights of another training, such as one.safetensors'): learn.fit(1, cbs=BestCheckpoint(tmp_path))
    assert files(tmp_path) == ['broken.safetensors', 'one.safetensors', 'other.safetensors'] and len(learn.history) == 1
    (tmp_path/'one.safetensors').unlink()
    with pytest.raises(FileExistsError, match="isn't from `BestCheckpoint`"): learn.fit(1, cbs=BestCheckpoint(tmp_path, fname='other'))
    assert same(load_file(tmp_path/'other.safetensors'), {'a': torch.ones(1)})


def test_the_same_object_goes_on_in_the_next_training(make, tmp_path):
    learn, script = scripted(make, [.5, .4, .3, .6])
    best = BestCheckpoint(tmp_path, monitor='score')
    with learn.added_cbs([best, script]):
        learn.fit(2, 1e-2)
        assert best.best_epoch == 0
        learn.fit(2, 1e-2)
    assert best.best_epoch == 3 and files(tmp_path) == ['03_0.600.safetensors']


def test_a_plain_learner_needs_a_history(make, tmp_path):
    ours = make()
    learn = Learner(ours.dls, ours.model)
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(ValueError, match='needs the history of the epochs: make the learner with `image_learner`'): learn.fit(1, cbs=BestCheckpoint(tmp_path))
        best = BestCheckpoint(tmp_path)
        learn.fit(1, cbs=[best, History()])
    assert best.path.is_file()


@pytest.mark.parametrize('gone', [True, False])
def test_the_best_file_is_gone_or_another_at_the_end(make, tmp_path, gone):
    learn, script = scripted(make, [.5, .4])
    class Harm(Callback):
        order = 900
        def after_epoch(self):
            if self.learn.epoch: best.path.unlink() if gone else save_file({'a': torch.ones(1)}, best.path)
    best = BestCheckpoint(tmp_path, monitor='score')
    with pytest.raises(FileNotFoundError if gone else DataError) as e: learn.fit(2, 1e-2, cbs=[best, script, Harm()])
    assert 'The learner has those of its last epoch' in str(e.value) and same(weights(learn), script.seen[-1])


def test_an_epoch_that_was_cancelled_is_none(make, tmp_path):
    class Cancel(Callback):
        def before_validate(self):
            if self.learn.epoch == 0: raise CancelEpochException
    learn = make()
    best = BestCheckpoint(tmp_path)
    learn.fit(2, cbs=[best, Cancel()])
    assert learn.history[0]['valid_loss'] is None and best.table()['epoch'].tolist() == [1]


def test_looking_changes_nothing(make, tmp_path):
    "A finder, predictions and a validation, with all callbacks in the learner for good"
    learn = make()
    best, stop, average = BestCheckpoint(tmp_path), EarlyStopping(patience=1), AveragedWeights()
    learn.add_cbs([best, stop, average])
    learn.fit(2, 1e-2)
    kept, before = best.state_dict(), weights(learn)
    with torch.no_grad(): next(learn.model.parameters()).add_(0.1)
    before = weights(learn)
    learn.validate(), predict(learn, 'valid'), learn.lr_find(num_it=5, show_plot=False)
    assert same(before, weights(learn)) and best.state_dict() == kept and average.averaged is None


# --- EarlyStopping -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('values,kwargs,epochs', [
    ([.1, .2, .3, .4, .5, .6], {}, 6), ([.5, .4, .3, .2, .1, .0], {}, 3), ([.5, .4, .6, .5, .5, .9], {}, 5), ([.1, nan, nan, .9, .9, .9], {}, 3), ([nan]*6, {}, 2),
    ([.5, .4, .3, .2, .1, .0], dict(mode='min'), 6), ([.1, .14, .18, .22, .26, .3], dict(min_delta=.05), 6), ([.1, .14, .13, .12, .3, .3], dict(min_delta=.05), 3),
    ([.3, .3, .3, .3, .3, .3], dict(patience=1), 2)])
def test_a_stage_stops(make, values, kwargs, epochs):
    learn, script = scripted(make, values)
    learn.fit(6, cbs=[script, EarlyStopping(**(dict(monitor='score', patience=2) | kwargs))])
    assert len(learn.history) == epochs == len(script.seen), 'callbacks that are called last see the last epoch too'


def test_a_stop_ends_one_stage_and_the_best_stays(make, caplog):
    learn, script = scripted(make, [.9, .1, .1, .2, .3, .3, .3])
    stop = EarlyStopping(monitor='score', patience=2)
    with caplog.at_level(logging.INFO, 'imgcls'): fine_tune(learn, 6, freeze_epochs=5, cbs=[stop, script])
    assert [o['stage'] for o in learn.history] == ['frozen']*3 + ['unfrozen']*2 and stop.best == .9
    assert [o.getMessage() for o in caplog.records if 'stops' in o.getMessage()] == [
        'score has not improved for 2 epochs (the best is 0.9000): the stage stops after 3 of 5 epochs',
        'score has not improved for 2 epochs (the best is 0.9000): the stage stops after 2 of 6 epochs']


def test_the_last_epoch_is_no_stop(make, caplog):
    learn, script = scripted(make, [.9, .1])
    with caplog.at_level(logging.INFO, 'imgcls'): learn.fit(2, cbs=[EarlyStopping(monitor='score', patience=1), script])
    assert not [o for o in caplog.records if 'stops' in o.getMessage()]


@pytest.mark.parametrize('kwargs,text', [(dict(patience=0), '`patience` must be'), (dict(patience=1.5), '`patience` must be'), (dict(min_delta=-1), '`min_delta` must be'),
                                         (dict(min_delta=nan), '`min_delta` must be'), (dict(mode='x'), '`mode` must be')])
def test_stopping_refuses(kwargs, text):
    with pytest.raises(ValueError, match=text): EarlyStopping(**kwargs)


# --- AveragedWeights -----------------------------------------------------------------------------------------------
class Watch(Callback):
    "The weights after each step, and in each validation"
    order = -50
    def __init__(self): self.steps, self.valid, self.ends = [], [], []
    def before_batch(self):
        if self.learn.training or self.valid and len(self.valid) > self.learn.epoch: return
        self.valid.append(weights(self.learn))
    def after_step(self): self.steps.append(weights(self.learn))
    def after_fit(self): self.ends.append(weights(self.learn))


def test_the_average_is_that_of_the_formula(make):
    learn, watch = make(), Watch()
    learn.fit(2, 1e-2, cbs=[AveragedWeights(0.9), watch])
    plain, plainly = make(), Watch()
    plain.fit(2, 1e-2, cbs=plainly)
    assert all(same(a, b) for a, b in zip(watch.steps, plainly.steps)), 'the training goes its way'
    assert [o['train_loss'] for o in learn.history] == [o['train_loss'] for o in plain.history] and learn.history != plain.history
    for k, v in weights(learn).items():
        mean = watch.steps[0][k].double()
        for n, step in enumerate(watch.steps[1:], 1):
            d = min(0.9, (1 + n)/(10 + n))
            mean = d*mean + (1 - d)*step[k].double() if v.is_floating_point() else step[k]
        assert torch.allclose(v.double(), mean.double(), rtol=1e-4, atol=1e-5), k
    assert same(watch.valid[-1], weights(learn)), 'validated with what stays'


def test_average_best_and_stop_together(make, tmp_path):
    learn, best = make(), BestCheckpoint(tmp_path, k=2)
    fine_tune(learn, 4, lr=5e-2, freeze_epochs=1, cbs=[EarlyStopping(patience=2), best, AveragedWeights(0.9)])
    assert best.best == min(o['valid_loss'] for o in learn.history) and same(weights(learn), load_file(best.path))
    assert np.isclose(predict(learn, 'valid').losses.mean(), best.best, rtol=1e-4)


def test_the_average_goes_on_over_both_stages(make):
    learn, average, steps = make(), AveragedWeights(), []
    class Count(Callback):
        order = 1000
        def after_epoch(self): steps.append(int(average.averaged.n_averaged))
    fine_tune(learn, 2, freeze_epochs=1, cbs=[average, Count()])
    n = len(learn.dls.train)
    assert steps == [n, 2*n, 3*n] and average.averaged is None
    learn.fit(1, cbs=[average, Count()])
    assert steps[3:] == [n], 'a new training begins a new average'


@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError, CancelFitException])
def test_raw_weights_are_back_when_a_validation_is_cut_short(make, error):
    class Cut(Callback):
        def after_pred(self):
            if not self.learn.training: raise error('enough')
    learn, average, watch = make(), AveragedWeights(), Watch()
    if error is CancelFitException:
        learn.more_stages = True
        learn.fit(1, 1e-2, cbs=[average, Cut(), watch])
    else:
        with pytest.raises(error): learn.fit(1, 1e-2, cbs=[average, Cut(), watch])
    assert same(weights(learn), watch.steps[-1]) and not average.inside and not same(watch.valid[-1], watch.steps[-1])


def test_a_plain_learner_that_was_cut_short_gets_its_weights_back_with_the_next_fit(make):
    class Cut(Callback):
        def after_pred(self):
            if not self.learn.training: raise KeyboardInterrupt
    ours, watch = make(), Watch()
    learn, average = Learner(ours.dls, ours.model, loss_func=nn.CrossEntropyLoss()), AveragedWeights()
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=[average, Cut(), watch])
        assert not same(weights(learn), watch.steps[-1])
        learn.fit(0, cbs=average)
    assert same(weights(learn), watch.steps[-1])


def test_fastais_early_stopping_leaves_no_averaged_weights_in_the_next_stage(make):
    learn, average, watch = make(), AveragedWeights(), Watch()
    learn.more_stages = True
    with learn.no_logging(): learn.fit(5, 0., cbs=[average, watch, EarlyStoppingCallback(monitor='accuracy', patience=1)])
    assert len(learn.history) < 5 and same(weights(learn), watch.steps[-1])


@pytest.mark.parametrize('decay', [0, 1, -1, 1.5, nan])
def test_averaging_refuses(decay):
    with pytest.raises(ValueError, match='`decay` must be above 0 and below 1'): AveragedWeights(decay)


# --- Resuming ------------------------------------------------------------------------------------------------------
class Stop(Callback):
    "Ends the process after some epochs, so to say, when their checkpoint is written"
    order = 2000
    def __init__(self, n): self.n = n
    def after_epoch(self):
        self.n -= 1
        if not self.n: raise ConnectionError('gone')


def callbacks(folder):
    return [AveragedWeights(0.9), BestCheckpoint(folder/'best', k=2), EarlyStopping(monitor='accuracy', patience=2, min_delta=0.3), TrainingMonitor(folder/'run', plot=False)]


def rows(learn): return [{k: v for k, v in o.items() if k != 'seconds'} for o in learn.history]


@pytest.mark.parametrize('stop', [1, 2, 3, 4])
def test_a_training_that_goes_on_is_the_same(make, tmp_path, stop):
    def train(learn, cbs, **kwargs): fine_tune(learn, 3, freeze_epochs=2, lr=3e-2, lr_mult=2, cbs=cbs, **kwargs)
    whole, cbs = make(), callbacks(tmp_path/'whole')
    train(whole, cbs)
    with pytest.raises(ConnectionError): train(make(), [*callbacks(tmp_path/'cut'), Stop(stop)], checkpoint_dir=tmp_path/'state')
    learn, mine = make(seed=7), callbacks(tmp_path/'cut')  # another process knows nothing of the first
    train(learn, mine, checkpoint_dir=tmp_path/'state', resume=True)
    assert same(weights(learn), weights(whole)) and rows(learn) == rows(whole)
    for a, b in zip(cbs[:3], mine[:3]):
        a, b = (copy.copy(o.state_dict()) for o in (a, b))
        for o in (a, b): o.pop('mine', None)
        assert a == b
    for o in ('best', 'run'): assert files(tmp_path/'whole'/o) == files(tmp_path/'cut'/o)
    for o in (tmp_path/'whole/best').iterdir(): assert same(load_file(o), load_file(tmp_path/'cut/best'/o.name))


def test_files_that_a_killed_process_left_are_made_again(make, tmp_path):
    "It was killed after the weights of an epoch were written, and before the checkpoint was"
    learn, script = scripted(make, [.1, .2, .3])
    best = BestCheckpoint(tmp_path, monitor='score')
    class Take(Callback):
        order = 900
        def after_epoch(self): states.append(copy.deepcopy(best.state_dict()))
    states = []
    learn.fit(3, cbs=[best, script, Take()])
    save_file(load_file(best.path), tmp_path/'00_0.100.safetensors', dict(made='best of imgcls', epoch='0', training=best.mine))
    again = BestCheckpoint(tmp_path, monitor='score')
    again.load_state_dict(states[0])
    script.n, learn.history[1:] = 1, []
    learn.fit(1, cbs=[again, script, Begun := Seen(tmp_path)])
    assert Begun.files == ['00_0.100.safetensors'] and files(tmp_path) == ['01_0.200.safetensors']


class Seen(Callback):
    "The files when the first batch begins"
    def __init__(self, folder): self.folder, self.files = folder, None
    def before_batch(self): self.files = files(self.folder) if self.files is None else self.files


def test_a_run_that_was_stopped_before_its_first_checkpoint(make, tmp_path):
    learn = make()
    learn.fit(1, cbs=callbacks(tmp_path))
    learn, cbs = make(), callbacks(tmp_path)
    for cb in cbs[1:]: cb.learn = learn
    for cb in cbs: cb.load_state_dict({})
    learn.fit(2, cbs=cbs)
    assert len(learn.history) == 2 and files(tmp_path/'run') == ['history.csv', 'history.json']


@pytest.mark.parametrize('cb,other', [(EarlyStopping, EarlyStopping(monitor='accuracy')), (lambda: BestCheckpoint('x'), BestCheckpoint('x', monitor='accuracy'))])
def test_another_monitor_is_refused(cb, other):
    with pytest.raises(ValueError, match="the training followed 'accuracy', and `monitor` is 'valid_loss'"): cb().load_state_dict(other.state_dict())


def test_gone_files_are_named(make, tmp_path):
    learn, best = make(), BestCheckpoint(tmp_path)
    learn.fit(1, cbs=best)
    best.path.unlink()
    with pytest.raises(FileNotFoundError, match='is gone, and it is among the best weights so far. Put it back'): BestCheckpoint(tmp_path).load_state_dict(best.state_dict())
    assert best.table()['megabytes'].isna().all()


# --- Killed at any moment ------------------------------------------------------------------------------------------
def write_for_ever(folder, learn):
    best = BestCheckpoint(folder, k=2, fname='{epoch}')
    best.learn = learn
    for i in range(10**6):
        learn.history = [dict(epoch=i, stage='frozen', valid_loss=1/(i + 1))]
        best.trains = True
        best._remove()
        best.after_epoch()


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.parametrize('i', range(3))
def test_no_part_of_a_file_is_ever_there(make, tmp_path, i):
    learn = make()
    process = multiprocessing.get_context('fork').Process(target=write_for_ever, args=(tmp_path, learn))
    process.start()
    while len(list(tmp_path.glob('[!.]*'))) < 2 and process.is_alive(): time.sleep(0.001)
    time.sleep(random.Random(i).random()/10)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    left = sorted(tmp_path.glob('[!.]*'), key=lambda o: int(o.stem))
    assert len(left) in (2, 3) and all(same(load_file(o), weights(learn)) for o in left)
