"""The monitor of a training: right numbers, whole files at any moment, nothing of another training written over, one picture, one voice."""
import csv, json, logging, math, multiprocessing, os, signal, time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelEpochException, CancelFitException, CancelTrainException, CancelValidException
from fastai.callback.progress import ShowGraphCallback
from fastai.learner import Learner, ValueMetric
from fastai.metrics import F1Score, accuracy, error_rate
from fastai.torch_core import set_seed, trainable_params
from torch import nn

from imgcls.core import DataError
from imgcls.data.loaders import image_loaders
from imgcls.data.samples import sample
from imgcls.data.tables import image_table
from imgcls.train import callbacks as module
from imgcls.train.callbacks import EpochLines, TrainingMonitor
from imgcls.train.learner import fine_tune, image_learner, predict
from imgcls.train.run import history_frame
from imgcls.train.state import read_state, save_state


@pytest.fixture(scope='module')
def table(): return image_table(sample('digits')).groupby(['label', 'split']).head(4)


@pytest.fixture
def make(table):
    def make(norm=True, quiet=True, **kwargs):
        "A tiny learner"
        set_seed(1, reproducible=True)
        dls = image_loaders(table, size=16, augment='none', bs=8, num_workers=0, check=None)
        body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), *[nn.BatchNorm2d(8)][:norm], nn.ReLU())
        learn = image_learner(dls, body, **dict(dict(hidden=(), dropout=0., compute='fp32'), **kwargs))
        if quiet:
            learn.remove_cb(learn.progress)
            learn.logger = lambda *args: None
        return learn
    return make


class Each(Callback):
    "Call a function after each epoch, last of all"
    order = 1000
    def __init__(self, f): self.f = f
    def after_epoch(self): self.f(self.learn)


def files(folder):
    with open(folder/'history.csv') as f: table = list(csv.DictReader(f))
    return table, json.loads((folder/'history.json').read_text())


# --- The numbers ---------------------------------------------------------------------------------------------------
def test_rows_over_both_stages(make):
    learn, monitor = make(metrics=[accuracy, error_rate]), TrainingMonitor(plot=False)
    fine_tune(learn, 3, lr=1e-2, freeze_epochs=2, cbs=monitor)
    assert [list(o) for o in learn.history] == [['epoch', 'stage', 'train_loss', 'valid_loss', 'accuracy', 'error_rate', 'train_accuracy', 'train_error_rate', 'lr', 'seconds']]*5
    assert [o['epoch'] for o in learn.history] == list(range(5)) and [o['stage'] for o in learn.history] == ['frozen']*2 + ['unfrozen']*3
    for o in learn.history: assert np.isclose(o['accuracy'] + o['error_rate'], 1) and np.isclose(o['train_accuracy'] + o['train_error_rate'], 1)
    assert list(history_frame(learn)) == list(learn.history[0])
    with learn.added_cbs(monitor): assert monitor.columns == list(learn.history[0])


def test_train_metrics_are_those_of_the_training_photos(make):
    learn = make(norm=False, splitter=trainable_params)
    for i, o in enumerate(learn.model[1]):
        if isinstance(o, nn.BatchNorm1d): learn.model[1][i] = nn.Identity()  # batch normalization is another network in training
    learn.fit(1, 0., cbs=TrainingMonitor(plot=False))
    row = learn.history[0]
    assert row['train_accuracy'] == pytest.approx(predict(learn, 'train').correct.mean()) and row['accuracy'] == pytest.approx(predict(learn, 'valid').correct.mean())
    assert row['lr'] == 0 and row['seconds'] > 0


def test_measuring_changes_nothing(make):
    rows = []
    for cbs in ([], TrainingMonitor(plot=False)):
        learn = make(metrics=[accuracy, F1Score(average='macro')])
        fine_tune(learn, 2, lr=1e-2, cbs=cbs)
        rows.append([{k: v for k, v in o.items() if k != 'seconds' and not (k.startswith('train_') and k != 'train_loss')} for o in learn.history])
    assert rows[0] == rows[1] and 'train_f1_score' in learn.history[0]


def test_the_rate_is_that_of_the_head_after_the_last_step(make):
    learn, seen = make(), []
    class Last(Callback):
        order = 100
        def after_step(self): self.last = self.learn.opt.hypers[-1]['lr']
        def after_epoch(self): seen.append(self.last)
    fine_tune(learn, 2, lr=1e-2, cbs=[TrainingMonitor(plot=False), Last()])
    assert [o['lr'] for o in learn.history] == seen and len(set(seen)) == 3


def test_metrics_that_do_not_run_along(make):
    def vector(pred, targ): return torch.ones(2)
    learn = make(metrics=[ValueMetric(lambda: 7., 'seven'), vector])
    learn.fit(1, cbs=TrainingMonitor(plot=False))
    assert learn.history[0]['seven'] == 7 and learn.history[0]['vector'] is None and 'train_seven' not in learn.history[0]
    learn = make()
    learn.recorder.train_metrics = True
    learn.fit(1, cbs=TrainingMonitor(plot=False))
    assert list(learn.history[0]) == ['epoch', 'stage', 'train_loss', 'train_accuracy', 'valid_loss', 'valid_accuracy', 'lr', 'seconds']


@pytest.mark.parametrize('event,error,missing', [
    ('before_batch', CancelEpochException, {'train_loss', 'valid_loss', 'accuracy', 'train_accuracy'}), ('before_batch', CancelTrainException, {'train_loss', 'train_accuracy'}),
    ('before_validate', CancelEpochException, {'valid_loss', 'accuracy'}), ('before_validate', CancelValidException, {'valid_loss', 'accuracy'})])
def test_what_was_cancelled_is_none(make, event, error, missing):
    def cancel(self):
        if self.learn.epoch == 0 and (self.learn.training or event == 'before_validate'): raise error
    learn = make()
    learn.fit(2, cbs=[TrainingMonitor(plot=False), type('Cancel', (Callback,), {event: cancel, 'order': -20})()])
    first, second = learn.history
    assert {k for k, v in first.items() if v is None} == missing and None not in second.values() and list(first) == list(second)


def test_no_validation_photos(make):
    learn = make()
    learn.dls.loaders[1] = []
    learn.fit(1, cbs=TrainingMonitor(plot=False))
    assert learn.history[0]['valid_loss'] is None and learn.history[0]['accuracy'] is None and learn.history[0]['train_accuracy'] is not None


def test_one_keeps_and_the_others_rest(make):
    learn = make()
    learn.fit(1, cbs=[EpochLines(), TrainingMonitor(plot=False)])
    learn.fit(1)
    learn.fit(1, cbs=[TrainingMonitor(plot=False), EpochLines()])
    assert [o['epoch'] for o in learn.history] == [0, 1, 2] and ['train_accuracy' in o for o in learn.history] == [True, False, False]


def test_a_plain_learner(make):
    ours = make()
    learn = Learner(ours.dls, ours.model, metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, cbs=TrainingMonitor(plot=False)), learn.fit(1, cbs=TrainingMonitor(plot=False))
    assert [o['epoch'] for o in learn.history] == [0, 1, 2] and 'train_accuracy' in learn.history[0]


def test_looking_adds_nothing(make, tmp_path):
    learn = make(cbs=TrainingMonitor(tmp_path, plot=False))
    learn.validate(), predict(learn, 'valid'), learn.lr_find(num_it=5, show_plot=False)
    assert learn.history == [] and not list(tmp_path.iterdir())
    learn.fit(1)
    before = files(tmp_path)
    learn.validate(), predict(learn, 'train'), learn.lr_find(num_it=5, show_plot=False)
    assert len(learn.history) == 1 and files(tmp_path) == before


# --- The files -----------------------------------------------------------------------------------------------------
def test_files_after_every_epoch(make, tmp_path):
    learn, seen = make(), []
    fine_tune(learn, 2, lr=1e-2, cbs=[TrainingMonitor(tmp_path/'a/run', plot=False), Each(lambda o: seen.append(files(tmp_path/'a/run')))])
    assert [len(t) for t, _ in seen] == [len(j) for _, j in seen] == [1, 2, 3]
    table, rows = seen[-1]
    assert rows == learn.history and [list(o) for o in table] == [list(o) for o in rows]
    for a, b in zip(table, rows): assert all(a[k] == v if k == 'stage' else float(a[k]) == pytest.approx(v, rel=1e-5) for k, v in b.items())
    assert sorted(o.name for o in (tmp_path/'a/run').iterdir()) == ['history.csv', 'history.json']


def test_numbers_that_json_does_not_know(make, tmp_path):
    values = [math.nan, math.inf, -math.inf, 1.]
    learn = make(metrics=ValueMetric(lambda: values[len(learn.history)], 'odd'))
    learn.fit(4, cbs=[monitor := TrainingMonitor(tmp_path, plot=False)])
    assert [o['odd'] for o in files(tmp_path)[1]] == [None, None, None, 1.] and [o['odd'] for o in files(tmp_path)[0]] == ['']*3 + ['1']
    with learn.added_cbs(monitor):
        save_state(tmp_path/'state', monitor.state_dict())
        (_, state), before = read_state(tmp_path/'state'), learn.history
        learn.history = []
        monitor.load_state_dict(state)
    assert repr(learn.history) == repr(before)


@pytest.mark.parametrize('damage', ['other', 'longer', 'csv', 'dict', 'edited'])
def test_the_history_of_another_training_is_safe(make, tmp_path, damage):
    learn = make()
    learn.fit(2, cbs=TrainingMonitor(tmp_path, plot=False))
    rows, table = learn.history, (tmp_path/'history.csv').read_text()
    if damage == 'other': learn.history = []
    if damage == 'longer': learn.history = rows[:1]
    if damage == 'csv': (tmp_path/'history.json').unlink()
    if damage == 'dict': (tmp_path/'history.json').write_text('{"a": 1}')
    if damage == 'edited': (tmp_path/'history.json').write_text(json.dumps([rows[0] | dict(accuracy=1.), rows[1]]))
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with pytest.raises(FileExistsError, match='holds the history of another training. Choose another folder, resume'): learn.fit(1, cbs=TrainingMonitor(tmp_path, plot=False))
    assert (tmp_path/'history.csv').read_text() == table and all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())


def test_its_own_history_goes_on(make, tmp_path):
    learn = make()
    for _ in range(3): learn.fit(1, cbs=TrainingMonitor(tmp_path, plot=False))
    assert files(tmp_path)[1] == learn.history and len(learn.history) == 3


def test_broken_json_is_named(make, tmp_path):
    (tmp_path/'history.json').write_text('[{"epoch": ')
    with pytest.raises(DataError, match="history.json' isn't valid JSON"): make().fit(1, cbs=TrainingMonitor(tmp_path, plot=False))


@pytest.mark.parametrize('ahead', [0, 1])
def test_a_stopped_run_goes_on(make, tmp_path, ahead):
    "The files may be an epoch ahead of the state, when the process was killed between the two"
    learn, states = make(), []
    learn.fit(3, cbs=[monitor := TrainingMonitor(tmp_path, plot=False, epochs=9), Each(lambda o: states.append(monitor.state_dict()))])
    rows = learn.history
    learn, monitor = make(), TrainingMonitor(tmp_path, plot=False, epochs=9)
    class Load(Callback):
        order = 2000
        def before_fit(self): monitor.load_state_dict(json.loads(json.dumps(states[-1 - ahead])))
    learn.fit(1, cbs=[monitor, Load()])
    assert learn.history[:-1] == rows[:3 - ahead] and [o['epoch'] for o in files(tmp_path)[1]] == list(range(4 - ahead)) and monitor.done == 4 - ahead
    learn, monitor = make(), TrainingMonitor(tmp_path, plot=False)
    states[-1 - ahead]['history'][0]['accuracy'] = 0.123
    with pytest.raises(FileExistsError, match='another training'): learn.fit(1, cbs=[monitor, Load()])


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path/'a').touch()
    with pytest.raises(NotADirectoryError, match='is a file. Choose another name'): TrainingMonitor(tmp_path/'a')


def write_for_ever(folder):
    monitor = TrainingMonitor(folder, plot=False)
    monitor.learn = SimpleNamespace(history=[])
    for i in range(10**6):
        monitor.learn.history.append(dict(epoch=i % 300, stage='frozen', valid_loss=1/(i + 1)))
        if i % 300 == 299: monitor.learn.history.clear()
        else: monitor._write()


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_files_are_whole_while_it_runs_and_after_a_kill(tmp_path):
    process = multiprocessing.get_context('fork').Process(target=write_for_ever, args=(tmp_path,))
    process.start()
    while not (tmp_path/'history.json').exists() and process.is_alive(): time.sleep(0.001)
    end, read = time.perf_counter() + 0.5, 0
    while time.perf_counter() < end or read < 5:
        table, rows = files(tmp_path)
        assert [o['epoch'] for o in rows] == list(range(len(rows))) and [int(o['epoch']) for o in table] == list(range(len(table)))
        read += 1
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    table, rows = files(tmp_path)
    assert len(rows) and len(table)


# --- The picture and the lines -------------------------------------------------------------------------------------
@pytest.fixture
def shown(monkeypatch):
    "What a notebook is told to show: (place, 'display' or 'update', content)"
    import IPython.display
    calls = []
    class Handle:
        def display(self, o, **kwargs): calls.append((id(self), 'display', o))
        def update(self, o, **kwargs): calls.append((id(self), 'update', o))
        kept = []
        def __init__(self): self.kept.append(self)
    monkeypatch.setattr(IPython.display, 'DisplayHandle', Handle)
    return calls


def test_one_picture_that_is_updated_in_place(make, shown, monkeypatch):
    monkeypatch.setattr(module.time, 'perf_counter', lambda clock=iter(range(10**6)): float(next(clock)))  # every look is a second later
    learn, monitor = make(metrics=[accuracy, error_rate]), TrainingMonitor(plot=True)
    fine_tune(learn, 2, lr=1e-2, freeze_epochs=2, cbs=monitor)
    figures, texts = ([o for o in shown if isinstance(o[2], dict) == text] for text in (False, True))
    assert [o[1] for o in figures] == ['display'] + ['update']*(len(figures) - 1) and len({o[0] for o in figures}) == 1 and len(figures) == 6  # each epoch, and after each stage
    assert [o[1] for o in texts] == ['display'] + ['update']*(len(texts) - 1) and len({o[0] for o in texts}) == 1
    first, last = texts[0][2]['text/plain'], texts[-1][2]['text/plain']
    assert first == 'epoch 1/2 (frozen): batch 1 of 5' and last.startswith('epoch 4/4 (unfrozen): train loss') and 'train accuracy' in last
    loss, acc, err, *rest = figures[-1][2].axes
    assert [o.get_ylabel() for o in (loss, acc, err)] == ['loss', 'accuracy', 'error rate'] and not rest
    for ax, train, valid in ((loss, 'train_loss', 'valid_loss'), (acc, 'train_accuracy', 'accuracy')):
        marks, lines = [o for o in ax.lines if o.get_linestyle() == '--'], [o for o in ax.lines if o.get_linestyle() == '-']
        assert [o.get_label() for o in lines] == ['train', 'valid'] and [list(o.get_xdata()) for o in marks] == [[1.5, 1.5]] and [o.get_text() for o in ax.texts] == ['frozen', 'unfrozen']
        for line, name in zip(lines, (train, valid)): assert list(line.get_ydata()) == [o[name] for o in learn.history] and list(line.get_xdata()) == [0, 1, 2, 3]
    n = len(shown)
    learn.fit(1, cbs=monitor)
    assert {'display'} == {o[1] for o in shown[n:n + 1]} and len({o[0] for o in shown}) == 4, 'another training gets a picture of its own'


@pytest.mark.parametrize('plot,notebook,there', [(None, True, True), (None, False, False), (False, True, False), (True, False, True)])
def test_where_it_draws(make, shown, monkeypatch, plot, notebook, there):
    monkeypatch.setattr(module, '_in_notebook', lambda: notebook)
    make().fit(1, cbs=TrainingMonitor(plot=plot))
    assert bool(shown) == there


def test_pictures_of_odd_histories():
    row = dict(epoch=0, stage='frozen', train_loss=1., valid_loss=None, lr=.1, seconds=1.)
    for rows in ([row], [row, row | dict(epoch=1, train_loss=math.nan)], [row, row | dict(epoch=1, stage='unfrozen', accuracy=.5, train_accuracy=.4)],
                 [row | {f'm{i}': i for i in range(6)}], [dict(epoch=0, stage='a', train_loss=1., train_x=.1, valid_loss=2., valid_x=.1, lr=0, seconds=0)]):
        fig = module._draw_history(rows)
        fig.canvas.draw()
    assert [o.get_ylabel() for o in fig.axes] == ['loss', 'x'] and [len(o.lines) for o in fig.axes] == [2, 2]


@pytest.fixture
def heard():
    "The lines of the log, with a handler such as the command has"
    lines, log = [], logging.getLogger('imgcls')
    handler, level = logging.Handler(), log.level
    handler.emit = lambda record: record.getMessage().startswith('epoch') and lines.append(record.getMessage())
    log.addHandler(handler), log.setLevel(logging.INFO)
    yield lines
    log.removeHandler(handler), log.setLevel(level)


@pytest.mark.parametrize('cb', [EpochLines, TrainingMonitor])
def test_one_voice(make, heard, capsys, cb):
    learn = make(quiet=False)
    fine_tune(learn, 2, freeze_epochs=1, cbs=cb())
    assert [o.split(':')[0] for o in heard] == ['epoch 1/1 (frozen)', 'epoch 2/3 (unfrozen)', 'epoch 3/3 (unfrozen)'] and ('train accuracy' in heard[0]) == (cb is TrainingMonitor)
    assert capsys.readouterr().out == '' and learn.logger is print and learn.progress.run
    learn.fit(1)
    assert 'valid_loss' in capsys.readouterr().out and len(heard) == 3, 'and fastai speaks again'


def test_epochs_of_all_fits(make, heard):
    fine_tune(make(), 2, freeze_epochs=1, cbs=EpochLines(3))
    assert [o.split(':')[0] for o in heard] == ['epoch 1/3 (frozen)', 'epoch 2/3 (unfrozen)', 'epoch 3/3 (unfrozen)']
    assert 'left' in heard[0] and 'left' not in heard[-1]


def test_silent_where_nobody_listens(make, capsys, caplog):
    with caplog.at_level(logging.WARNING, 'imgcls'): make(quiet=False).fit(1, cbs=TrainingMonitor(plot=False))
    assert 'valid_loss' in capsys.readouterr().out, "fastai's table is there instead"


def test_fastais_graph_keeps_its_bar(make, heard):
    learn = make(quiet=False)
    learn.fit(1, cbs=[EpochLines(), ShowGraphCallback()])
    assert len(heard) == 1


@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError, CancelFitException])
def test_fastai_has_its_place_back_after_an_error(make, heard, error):
    class Cut(Callback):
        def before_validate(self): raise error('enough')
    learn, lines = make(quiet=False), EpochLines()
    if error is CancelFitException: learn.fit(1, cbs=[lines, Cut()])
    else:
        with pytest.raises(error): learn.fit(1, cbs=[lines, Cut()])
    assert learn.logger is print and learn.progress.run and lines.bar.disable and learn.history == []
    learn.fit(1)
    assert len(learn.history) == 1


def test_the_bar_of_a_terminal(make, heard, monkeypatch):
    bars = []
    class Bar:
        def __init__(self, **kwargs): self.kwargs, self.n, self.closed = kwargs, 0, False; bars.append(self)
        def update(self): self.n += 1
        def close(self): self.closed = True
    monkeypatch.setattr(module, 'tqdm', Bar), monkeypatch.setattr(module.sys, 'stderr', SimpleNamespace(isatty=lambda: True))
    make().fit(2, cbs=EpochLines())
    assert [o.kwargs['desc'] for o in bars] == ['epoch 1', 'epoch 2'] and all(o.n == o.kwargs['total'] == 5 and o.closed and not o.kwargs['disable'] for o in bars)
    monkeypatch.setattr(module.sys, 'stderr', None)
    make().fit(1, cbs=EpochLines())
    assert bars[-1].kwargs['disable']
