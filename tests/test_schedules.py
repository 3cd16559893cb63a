"""Schedules against closed forms, PyTorch's and fastai's; what a finder suggests; that looking for a rate leaves nothing behind."""
import copy, math, random

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger
from fastai.callback.schedule import ParamScheduler, SchedCos, SchedExp, SchedLin, combine_scheds, combined_cos
from fastai.callback.tracker import SaveModelCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from test_learner import assert_same, make, small_loaders, state_of
from torch import nn
from torch.optim import SGD, lr_scheduler

from imgcls.core import DataError
from imgcls.train.learner import fine_tune
from imgcls.train.schedules import (RULES, LRRecord, cosine_decay, exp_decay, lr_records, lr_suggestions, lr_sweep, plot_lr_find, plot_lr_sweep, plot_schedules,
    poly_decay, step_decay, suggest_lr, time_decay, warm_up)
from imgcls.train.surgery import GradualUnfreezing

epochs = 12
all_schedules = dict(step=step_decay(0.1, epochs, every=5, factor=0.25), time=time_decay(0.1, epochs, decay=0.3), line=poly_decay(0.1), square=poly_decay(0.1, power=2, end=0.01),
                     root=poly_decay(0.1, power=0.5), exp=exp_decay(0.1, epochs, factor=0.7), cosine=cosine_decay(0.1, end=0.001), restarts=cosine_decay(0.1, cycles=3),
                     longer=cosine_decay(0.1, cycles=2, growth=2), one_cycle=combined_cos(0.25, 0.004, 0.1, 1e-6), flat_cosine=combined_cos(0.75, 0.1, 0.1, 1e-6))
each = pytest.mark.parametrize('name', all_schedules)


# --- Schedules -----------------------------------------------------------------------------------------------------
def by_torch(make_scheduler, n=epochs, lr=0.1):
    "The rates of one of PyTorch's schedulers in each of `n` epochs"
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, rates = make_scheduler(optimizer), []
    for _ in range(n):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize('ours,theirs', [
    (step_decay(0.1, epochs, every=5, factor=0.25), lambda o: lr_scheduler.StepLR(o, 5, 0.25)),
    (step_decay(0.1, epochs, every=1, factor=0.9), lambda o: lr_scheduler.StepLR(o, 1, 0.9)),
    (time_decay(0.1, epochs, decay=0.3), lambda o: lr_scheduler.LambdaLR(o, lambda t: 1/(1 + 0.3*t))),
    (poly_decay(0.1), lambda o: lr_scheduler.LinearLR(o, 1., 0., epochs)),
    (poly_decay(0.1, power=2), lambda o: lr_scheduler.PolynomialLR(o, epochs, 2)),
    (poly_decay(0.1, power=0.5), lambda o: lr_scheduler.PolynomialLR(o, epochs, 0.5)),
    (exp_decay(0.1, epochs, factor=0.7), lambda o: lr_scheduler.ExponentialLR(o, 0.7)),
    (cosine_decay(0.1, end=0.001), lambda o: lr_scheduler.CosineAnnealingLR(o, epochs, 0.001)),
    (cosine_decay(0.1, cycles=3), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4)),
    (cosine_decay(0.1, cycles=2, growth=2), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4, 2)),
    (warm_up(0.1, pct=0.25, start=0.1), lambda o: lr_scheduler.LinearLR(o, 0.1, 1., 3)),
    (warm_up(exp_decay(0.1, 9, factor=0.7), pct=0.25, start=0.1),
     lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.LinearLR(o, 0.1, 1., 3), lr_scheduler.ExponentialLR(o, 0.7)], [3])),
])
@pytest.mark.filterwarnings('ignore:The epoch parameter')
def test_rates_are_those_of_pytorch(ours, theirs):
    assert np.allclose([ours(t/epochs) for t in range(epochs)], by_torch(theirs), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('ours,theirs', [
    (poly_decay(0.1, end=0.02), SchedLin(0.1, 0.02)), (exp_decay(0.1, 10, factor=0.5), SchedExp(0.1, 0.1*0.5**10)), (cosine_decay(0.1, end=0.02), SchedCos(0.1, 0.02)),
    (cosine_decay(0.1, cycles=2, growth=3), combine_scheds([0.25, 0.75], [SchedCos(0.1, 0)]*2)),
    (warm_up(cosine_decay(0.1), pct=0.25, start=0.5), combine_scheds([0.25, 0.75], [SchedLin(0.05, 0.1), SchedCos(0.1, 0)])),
])
def test_rates_are_those_of_fastai(ours, theirs):
    pos = np.linspace(0, 0.999, 500)
    assert np.allclose([ours(o) for o in pos], [theirs(o) for o in pos], atol=1e-7)  # fastai joins in single precision


@each
def test_begins_at_the_rate_and_stays_between_zero_and_it(name):
    values = np.array([all_schedules[name](o) for o in np.linspace(0, 1, 1001)])
    assert (values >= -1e-12).all() and (values <= 0.1 + 1e-12).all() and np.isclose(values.max(), 0.1)
    if name not in ('restarts', 'longer', 'one_cycle'): assert values[0] == values.max() and (np.diff(values) <= 1e-12).all()


@each
@pytest.mark.parametrize('pct', [1/3, 0.1, 0.05, 0.7])
def test_warm_up_joins_any_schedule(name, pct):
    schedule, warm = all_schedules[name], warm_up(all_schedules[name], pct=pct, start=0.2)
    assert np.isclose(warm(0.), 0.2*schedule(0.))
    assert np.isclose(warm(pct), schedule(0.)) and np.isclose(warm(pct*(1 - 1e-9)), schedule(0.))  # no jump
    for o in (0.01, 0.4, 0.99): assert np.isclose(warm(pct + (1 - pct)*o), schedule(o), rtol=1e-4)
    rising = [warm(o) for o in np.linspace(0, pct, 50)]
    assert (np.diff(rising) > 0).all()


def test_warm_up_of_no_length_is_the_schedule_itself():
    assert [warm_up(poly_decay(0.1), pct=0)(o) for o in (0, 0.5)] == [0.1, 0.05]


@pytest.mark.parametrize('n_iter,n_epoch', [(7, 30), (3, 100), (1, 12), (613, 9)])
def test_steps_and_restarts_fall_on_the_first_batch_of_an_epoch(n_iter, n_epoch):
    "fastai adds up the share that is done batch by batch, with rounding errors"
    for every in (1, 3):
        schedule, restarts = step_decay(1., n_epoch, every=every, factor=0.5), cosine_decay(1., cycles=n_epoch)
        for epoch in range(n_epoch):
            pct = epoch / n_epoch
            for i in range(n_iter):
                assert schedule(pct) == 0.5**(epoch // every)
                assert math.isclose(restarts(pct), (1 + math.cos(math.pi*i/n_iter))/2, abs_tol=1e-6)
                pct += 1/(n_iter*n_epoch)


def test_rates_for_layer_groups():
    lr = [1e-4, 1e-3, 1e-2]
    for schedule in (step_decay(lr, 4), time_decay(lr, 4), poly_decay(lr, end=np.array(lr)/10), exp_decay(lr, 4), cosine_decay(lr, cycles=2), warm_up(poly_decay(lr)), warm_up(lr)):
        for o in (0, 0.3, 0.99): assert np.allclose(schedule(o) / schedule(o)[0], [1, 10, 100])


@each
def test_schedules_can_be_copied_and_say_what_they_are(name):
    if name in ('one_cycle', 'flat_cosine'): pytest.skip("fastai's")
    for again in (copy.deepcopy(all_schedules[name]), copy.copy(all_schedules[name])):
        assert [again(o) for o in (0, 0.4, 1)] == [all_schedules[name](o) for o in (0, 0.4, 1)]
    assert 'lr=0.1' in repr(all_schedules[name])


@pytest.mark.parametrize('call,error,text', [
    (lambda: poly_decay(0), ValueError, '`lr` must be above 0, got 0'), (lambda: poly_decay(float('nan')), ValueError, '`lr` must be above 0'),
    (lambda: poly_decay('fast'), TypeError, "`lr` must be a number, or one for each layer group, got 'fast'"), (lambda: poly_decay([]), ValueError, '`lr`'),
    (lambda: poly_decay(None), ValueError, '`lr`'), (lambda: poly_decay([[0.1]]), ValueError, '`lr`'), (lambda: poly_decay([0.1, -1]), ValueError, '`lr` must be above 0'),
    (lambda: cosine_decay(slice(0.1)), TypeError, '`lr_table` shows the rates'), (lambda: poly_decay(0.1, power=0), ValueError, '`power` must be above 0'),
    (lambda: poly_decay(0.1, end=-1), ValueError, '`end` must be at least 0, got -1'), (lambda: step_decay(0.1, 0), ValueError, '`epochs` must be above 0'),
    (lambda: step_decay(0.1, 5, every=-1), ValueError, '`every`'), (lambda: step_decay(0.1, 5, factor=0), ValueError, '`factor`'),
    (lambda: time_decay(0.1, 5, decay=-1), ValueError, '`decay` must be at least 0'), (lambda: exp_decay(0.1, 5, factor=-1), ValueError, '`factor`'),
    (lambda: cosine_decay(0.1, cycles=0), ValueError, '`cycles`'), (lambda: cosine_decay(0.1, cycles=2.5), ValueError, '`cycles` must be a whole number'),
    (lambda: cosine_decay(0.1, growth=0), ValueError, '`growth`'), (lambda: warm_up(-1), ValueError, '`schedule` must be above 0'),
    (lambda: warm_up(0.1, pct=1), ValueError, '`pct`'), (lambda: warm_up(0.1, start=2), ValueError, '`start`'), (lambda: warm_up('cosine'), TypeError, '`schedule`')])
def test_bad_arguments(call, error, text):
    with pytest.raises(error, match=text): call()


def test_the_picture_has_every_schedule_by_name():
    fig = plot_schedules(all_schedules, epochs=epochs)
    assert [ax.get_title() for ax in fig.axes if ax.get_title()] == list(all_schedules)
    assert np.isclose(fig.axes[0].lines[0].get_ydata()[-1], 0.1*0.25**2)
    fig = plot_schedules({'two groups': poly_decay([0.01, 0.1])}, log=True)
    assert len(fig.axes[0].lines) == 2 and fig.axes[0].get_yscale() == 'log'


# --- In a training -------------------------------------------------------------------------------------------------
def tensor_loaders(n=64, bs=8, noise=0.3, seed=0):
    "Two classes of vectors, in memory"
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 2*n)
    x = (y[:, None] + noise*rng.standard_normal((2*n, 6))).astype('float32')
    pairs = [(torch.tensor(a), torch.tensor(b)) for a, b in zip(x, y)]
    dls = DataLoaders(DataLoader(pairs[:n], bs=bs, shuffle=True, drop_last=True), DataLoader(pairs[n:], bs=bs))
    for i, dl in enumerate(dls.loaders): dl.rng = random.Random(i)
    return dls


def tiny(dls=None, **kwargs):
    set_seed(0)
    net = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 2))
    return Learner(dls or tensor_loaders(), net, loss_func=CrossEntropyLossFlat(), metrics=accuracy, splitter=lambda m: [list(o.parameters()) for o in m], **kwargs)


@each
def test_the_batches_of_a_training_get_the_rates(name):
    learn = tiny()
    with learn.no_logging(): learn.fit(epochs, cbs=ParamScheduler({'lr': all_schedules[name]}))
    n = len(learn.dls.train)*epochs
    assert np.allclose(learn.recorder.lrs, [all_schedules[name](i/n) for i in range(n)], atol=1e-6)


# --- The finder ----------------------------------------------------------------------------------------------------
def record(raw, start=1e-7, end=10, **kwargs):
    "A record of given losses, smoothed as fastai does"
    raw, val, smooth = np.asarray(raw, dtype=float), 0., []
    for i, o in enumerate(raw, 1):
        val = 0.98*val + 0.02*o
        smooth.append(val/(1 - 0.98**i))
    return LRRecord(np.geomspace(start, end, len(raw)), np.array(smooth), raw, **kwargs)


def curve(rng, fall=1.5, edge=0.1, level=2.3, noise=0.1, n=100):
    "What a sweep usually looks like: flat, then down between 1e-4 and 1e-2, then up"
    rates = np.geomspace(1e-7, 10, n)
    return level - fall*np.clip((np.log10(rates) + 4)/2, 0, 1) + np.where(rates > edge, 8*np.log10(rates/edge), 0) + noise*rng.standard_normal(n)


def test_noise_is_flat_and_a_valley_is_not():
    rng = np.random.default_rng(0)
    said = [record(2.3 + s*rng.standard_normal(n)).flat for s in (0.01, 0.1, 0.5) for n in (50, 100, 200) for _ in range(100)]
    assert np.mean(said) > 0.98
    assert np.mean([record(rng.lognormal(0, 0.5, 100)).flat for _ in range(200)]) > 0.95  # losses have a long tail to the right
    assert not any(record(curve(rng)).flat for _ in range(200))
    assert record(np.full(100, 2.3)).flat and record(2.3 + np.arange(100)*0.01).flat and record([2.3]*10).flat


def test_all_rules_agree_on_what_is_possible():
    rng = np.random.default_rng(1)
    records = [record(curve(rng)) for _ in range(9)]
    frame = lr_suggestions(records)
    assert list(frame.index) == list(RULES) and (frame.sweeps == 9).all() and frame['median'].between(1e-5, 0.3).all()
    assert (frame.low <= frame['median']).all() and (frame['median'] <= frame.high).all() and np.allclose(frame.factor, frame.high/frame.low)
    assert suggest_lr(records) == frame['median']['valley'] and suggest_lr(records, rule='slide') == frame['median']['slide']
    assert suggest_lr(records[0]) == lr_suggestions(records[0])['median']['valley']
    assert frame['median']['minimum'] < 0.1


def test_after_unfreezing_the_rate_is_well_before_the_loss_rises():
    rng = np.random.default_rng(2)
    records = [record(curve(rng, fall=0, level=0.4, noise=0.05, edge=1e-3)[:60], end=np.geomspace(1e-7, 10, 100)[59], stage='all') for _ in range(5)]
    assert all(o.flat for o in records)
    assert 1e-5 < suggest_lr(records) < 1e-3
    with pytest.raises(DataError, match='the curve is flat.* After unfreezing use the rule'): suggest_lr(records, rule='valley')
    assert lr_suggestions(records).sweeps.tolist() == [0, 0, 0, 0, 5]
    assert [o.get_label() for o in plot_lr_find(records).axes[0].containers][0].startswith('rise')


def test_an_explosion_at_the_end_moves_nothing():
    rng = np.random.default_rng(3)
    raw = curve(rng, fall=0, level=0.4, noise=0.02, edge=1e-2)[:75]
    last = np.geomspace(1e-7, 10, 100)[74]
    assert suggest_lr(record(raw, end=last, stage='all')) == suggest_lr(record([*raw[:-1], 1e6], end=last, stage='all')) < 1e-2


def test_flat_curves_are_refused():
    flat = [record(2.3 + 0.1*np.random.default_rng(i).standard_normal(100)) for i in range(3)]
    for rule in RULES:
        with pytest.raises(DataError): suggest_lr(flat, rule=rule)
    assert lr_suggestions(flat)['median'].isna().all()
    ax = plot_lr_find(flat).axes[0]
    assert ax.get_title() == 'the curve is flat' and ax.get_legend() is None
    assert suggest_lr([*[record(curve(np.random.default_rng(i))) for i in range(4)], *flat]) > 0  # the most are not flat
    with pytest.raises(DataError, match='after 12 batches'): suggest_lr(record([2.3]*12))
    with pytest.raises(DataError, match='after 5 batches'): suggest_lr(record([2.3]*5), rule='rise')
    plot_lr_find(record([2.3]*5))


@pytest.mark.parametrize('bad', [[], [1.], 'records', None])
def test_records_must_be_records(bad):
    with pytest.raises(TypeError): suggest_lr(bad)


def test_sweeps_differ_in_their_batches_and_repeat_with_the_seed():
    learn = tiny()
    a, b = lr_records(learn, sweeps=2), lr_records(learn, sweeps=2)
    assert np.array_equal(a[0].raw, b[0].raw) and np.array_equal(a[1].raw, b[1].raw) and not np.array_equal(a[0].raw, a[1].raw)
    assert np.array_equal(lr_records(learn, seed=43)[0].raw, a[1].raw)


def test_the_record_ends_where_the_loss_is_no_number():
    class Broken(Callback):
        def after_loss(self):
            if self.learn.train_iter >= 40: self.learn.loss_grad = self.learn.loss = self.learn.loss*float('nan')
    o = lr_records(tiny(cbs=Broken()))[0]
    assert len(o.rates) == len(o.losses) == len(o.raw) == 40 and np.isfinite(o.losses).all()


def test_the_stage_is_seen():
    learn = tiny()
    assert lr_records(learn)[0].stage == 'all'
    learn.freeze()
    assert lr_records(learn)[0].stage == 'head'
    plain = Learner(learn.dls, nn.Sequential(nn.Linear(6, 2)), loss_func=CrossEntropyLossFlat())
    assert lr_records(plain)[0].stage == 'head'


# --- Nothing left behind -------------------------------------------------------------------------------------------
looks = dict(lr_records=lambda learn: lr_records(learn, sweeps=2, num_it=30), lr_sweep=lambda learn: lr_sweep(learn, [1e-3, 10.]))


@pytest.mark.parametrize('look', looks)
@pytest.mark.parametrize('arch,trained', [('own', False), ('own', True), ('efficientnet_lite0', True)])
def test_looking_leaves_no_trace(look, arch, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = make(arch, small_loaders(6))
    with learn.no_bar():
        if trained: learn.fit_one_cycle(1)
        before = state_of(learn)
        looks[look](learn)
        assert_same(before, state_of(learn))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('look', looks)
def test_looking_leaves_no_trace_when_interrupted(look):
    class Interrupt(Callback):
        def before_batch(self):
            if armed and self.learn.iter == 2: raise KeyboardInterrupt
    armed = False
    learn = make('own', small_loaders(6), cbs=Interrupt())
    with learn.no_bar():
        learn.fit_one_cycle(1)
        before, armed = state_of(learn), True
        with pytest.raises(KeyboardInterrupt): looks[look](learn)
        armed = False
        assert_same(before, state_of(learn))


@pytest.mark.parametrize('look', looks)
def test_looking_changes_no_later_weight(look):
    ends = []
    for first in (False, True):
        set_seed(3, reproducible=True)
        learn = make('own', small_loaders(6))
        with learn.no_bar():
            if first: looks[look](learn)
            fine_tune(learn, 1, freeze_epochs=1)
        ends.append({k: v.clone() for k, v in learn.model.state_dict().items()})
    assert_same(*ends)


def test_callbacks_that_keep_something_are_quiet_during_a_sweep(tmp_path):
    "They know a finder by an attribute of the learner; a file in the learner's folder goes to a temporary one"
    fits = []
    class Keeper(Callback):
        def before_fit(self): fits.append(hasattr(self, 'lr_finder'))
    learn = tiny(path=tmp_path, cbs=[CSVLogger(), SaveModelCallback(), Keeper()])
    lr_sweep(learn, [1e-2], epochs=2)
    lr_records(learn)
    assert fits == [True, True] and not list(tmp_path.rglob('*')) and not hasattr(learn, 'lr_finder')
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert fits[2:] == [False] and {o.name for o in tmp_path.rglob('*')} == {'history.csv', 'models', 'model.pth'}


def test_a_sweep_trains_from_one_start_with_the_same_batches():
    seen = []
    class Watch(Callback):
        run_valid = False
        def before_fit(self): seen.append((self.model[0][0].weight.clone(), []))
        def before_batch(self): seen[-1][1].append(self.xb[0].clone())
    learn = tiny(cbs=Watch())
    frame = lr_sweep(learn, [1e-3, 1e-1, 1e-3], epochs=2)
    assert len(seen) == 3
    for weight, batches in seen[1:]:
        assert torch.equal(weight, seen[0][0]) and len(batches) == 16 and all(torch.equal(a, b) for a, b in zip(batches, seen[0][1]))
    assert frame.lr.tolist() == [1e-3]*2 + [1e-1]*2 + [1e-3]*2 and frame.epoch.tolist() == [0, 1]*3
    assert frame.iloc[:2, 1:].equals(frame.iloc[4:, 1:].reset_index(drop=True)) and frame.accuracy.iloc[3] > frame.accuracy.iloc[1]
    assert not torch.equal(seen[0][1][0], seen[0][1][8])  # another epoch, other batches


def test_a_sweep_survives_a_rate_that_explodes_and_draws_without_metrics():
    learn = Learner(tensor_loaders(), nn.Linear(6, 2), loss_func=CrossEntropyLossFlat())
    frame = lr_sweep(learn, [1e-2, 1e30], epochs=1)
    assert len(frame) == 2 and all(torch.isfinite(p).all() for p in learn.model.parameters())
    assert plot_lr_sweep(frame).axes[0].get_ylabel() == 'valid loss'
    assert lr_sweep(learn, 1e-2).lr.tolist() == [1e-2]


def test_a_sweep_of_a_frozen_learner_trains_the_head_alone():
    learn = tiny(train_bn=False)
    learn.freeze()
    seen = []
    class Watch(Callback):
        def after_fit(self): seen.append(self.model[0][0].weight.clone())
    learn.add_cb(Watch())
    lr_sweep(learn, [1e-2, 1e-1])
    assert all(torch.equal(o, learn.model[0][0].weight) for o in seen) and learn.opt.frozen_idx == 1


def test_gradual_unfreezing_leaves_a_sweep_alone():
    learn = tiny(cbs=GradualUnfreezing())
    learn.create_opt()
    lr_records(learn)
    assert learn.opt.frozen_idx == 0
