"""Optimizers by name: the steps of PyTorch's, options that exist, weight decay where it belongs, freezing and schedules with a wrapped optimizer too."""
import copy, inspect, pickle
from functools import partial

import pytest
import torch
from fastai.callback import schedule  # noqa: F401 - gives Learner its fit_one_cycle
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import Adam, OptimWrapper
from torch import nn

from imgcls.train.optimizers import OPTIMIZERS, TorchOptimizer, optimizer

kwargs = dict(lr=0.01, betas=(0.9, 0.99))
torchs = {'sgd': (torch.optim.SGD, dict(lr=0.01), {}), 'momentum': (torch.optim.SGD, dict(lr=0.01, momentum=0.9), {}), 'nesterov': (torch.optim.SGD, dict(lr=0.01, momentum=0.9, nesterov=True), {}),
          'rmsprop': (torch.optim.RMSprop, dict(lr=0.01, alpha=0.99), {}), 'adam': (torch.optim.Adam, kwargs | dict(eps=1e-5), {}), 'adamw': (torch.optim.AdamW, kwargs | dict(eps=1e-5), {}),
          'radam': (torch.optim.RAdam, kwargs | dict(eps=1e-8), dict(eps=1e-8))}


def steps(make):
    torch.manual_seed(2)
    params = [nn.Parameter(torch.randn(3, 4, dtype=torch.float64)), nn.Parameter(torch.randn(5, dtype=torch.float64))]
    opt, res = make(params), []
    for _ in range(12):
        for p in params: p.grad = torch.randn_like(p)
        opt.step()
        res.append(torch.cat([p.detach().flatten() for p in params]))
    return torch.stack(res)


@pytest.mark.parametrize('wd', [0., 0.3])
@pytest.mark.parametrize('name', torchs)
def test_steps_of_pytorch(name, wd):
    cls, theirs, ours = torchs[name]
    a, b = steps(lambda ps: optimizer(name, wd=wd, **ours)([ps], lr=0.01)), steps(lambda ps: cls(ps, weight_decay=wd, **theirs))
    assert torch.allclose(a, b, atol=1e-6, rtol=0) and not torch.allclose(a[0], a[-1])


def test_adamw_is_the_default_of_fastai():
    assert torch.equal(steps(lambda ps: optimizer('adamw')([ps], lr=0.01)), steps(lambda ps: Adam([ps], lr=0.01)))


def test_l2_and_decay():
    def run(name, wd, **options): return steps(lambda ps: optimizer(name, wd=wd, **options)([ps], lr=0.1))
    assert torch.allclose(run('sgd', 0.5), run('sgd', 0.5, decouple_wd=True), atol=1e-12)
    for a, b in ((run('momentum', 0.5), run('momentum', 0.5, decouple_wd=True)), (run('adam', 0.5), run('adamw', 0.5))): assert (a[-1] - b[-1]).abs().max() > 0.01


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_every_option_is_taken(name):
    opt = optimizer(name, **OPTIMIZERS[name])
    assert isinstance(opt, partial) and not {'lr', 'params'} & OPTIMIZERS[name].keys()
    made = opt([[nn.Parameter(torch.ones(2))], [nn.Parameter(torch.ones(2))]], lr=slice(0.01, 0.1))
    assert [round(h['lr'], 6) for h in made.hypers] == [0.01, 0.1]
    for k in ('mom', 'sqr_mom', 'eps', 'wd'):
        if k in OPTIMIZERS[name]: assert made.hypers[0][k] == OPTIMIZERS[name][k]
    given = {k: v for k, v in dict(mom=0.5, wd=0.25).items() if k in OPTIMIZERS[name]}
    assert given.items() <= optimizer(name, **given)([nn.Parameter(torch.ones(2))], lr=0.1).hypers[0].items()


@pytest.mark.parametrize('name,options,text', [
    ('addam', {}, "Did you mean 'adam'"), (None, {}, '`name` must be one of'), ('adam', dict(decouple_wd=True), "'adam' has no option 'decouple_wd'. It has"), ('adam', dict(weight_decay=1.), "Did you mean 'wd'"),
    ('momentum', dict(moms=0.1), "Did you mean 'mom'"), ('sgd', dict(lr=1), 'the learning rate is no option'), ('adam', dict(mom=1.), 'at least 0 and below 1, got 1.0'), ('adam', dict(wd=-1), '`wd` must be 0 or more')])
def test_errors(name, options, text):
    with pytest.raises(ValueError, match=text): optimizer(name, **options)


# --- In a learner --------------------------------------------------------------------------------------------------
def learner(**options):
    torch.manual_seed(0)
    pairs = [(torch.randn(4), torch.tensor(i % 2)) for i in range(40)]
    dls = DataLoaders(*(DataLoader(pairs, bs=10) for _ in range(2)), device='cpu')
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    return Learner(dls, net, loss_func=nn.CrossEntropyLoss(), splitter=lambda m: [list(m[:2].parameters()), list(m[2].parameters())], **options)


def quietly(learn, f):
    with learn.no_bar(), learn.no_logging(): f()
    return learn


def test_decay_spares_biases_and_batch_norm_of_a_wrapped_optimizer():
    "With no gradient, decay is all there is"
    learn = learner(opt_func=optimizer('nesterov', mom=0.5))
    learn.create_opt()
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.opt.set_hypers(wd=0.5, lr=0.1)
    for p in learn.model.parameters(): p.grad = torch.zeros_like(p)
    groups = learn.opt.opt.param_groups
    learn.opt.step()
    assert learn.opt.opt.param_groups is groups and [len(g['params']) for g in groups] == [4, 2] and groups[0]['weight_decay'] == 0.5
    moved = [k for k, v in learn.model.state_dict().items() if not torch.equal(v, before[k])]
    assert moved == ['0.weight', '2.weight']
    learn = learner(opt_func=optimizer('nesterov'), wd_bn_bias=True)
    learn.create_opt()
    learn.opt.set_hypers(wd=0.5)
    assert len(list(learn.opt._parts())) == 2


@pytest.mark.parametrize('name', ['momentum', 'nesterov'])
def test_schedule_freezing_and_rates(name):
    learn = learner(opt_func=optimizer(name))
    body = [p.detach().clone() for p in learn.model[0].parameters()]
    quietly(learn, lambda: (learn.freeze(), learn.fit_one_cycle(2, 0.1, moms=(0.9, 0.8, 0.9), wd=0.1)))
    assert all(torch.equal(a, b) for a, b in zip(body, learn.model[0].parameters())) and learn.opt.frozen_idx == 1
    hps = learn.recorder.hps
    assert abs(max(hps['lr']) - 0.1) < 1e-6 and abs(hps['mom'][0] - 0.9) < 1e-6 and abs(min(hps['mom']) - 0.8) < 0.01
    quietly(learn, lambda: (learn.unfreeze(), learn.fit_one_cycle(1, slice(0.01, 0.1))))
    assert any(not torch.equal(a, b) for a, b in zip(body, learn.model[0].parameters()))
    lrs = [h['lr'] for h in learn.opt.hypers]
    assert abs(lrs[0] / lrs[1] - 0.1) < 1e-6


def test_the_state_of_a_wrapped_optimizer_goes_through_its_state_dict():
    ends = []
    for stop in (False, True):
        learn = quietly(l := learner(opt_func=optimizer('nesterov')), lambda: l.fit(1, 0.1))
        if stop:
            state, weights = copy.deepcopy(learn.opt.state_dict()), copy.deepcopy(learn.model.state_dict())
            learn = learner(opt_func=optimizer('nesterov'))
            learn.model.load_state_dict(weights)
            learn.create_opt()
            learn.opt.load_state_dict(state)
        quietly(learn, lambda learn=learn: learn.fit(1, 0.1))
        ends.append([p.detach() for p in learn.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends))


def test_a_wrapped_optimizer_starts_afresh_when_its_state_is_cleared():
    learn = quietly(l := learner(opt_func=optimizer('nesterov')), lambda: l.fit(1, 0.1))
    assert len(learn.opt.opt.state) == 6
    learn.opt.clear_state()
    assert not learn.opt.opt.state and learn.opt.state[learn.model[0].bias]['do_wd'] is False
    quietly(learn, lambda learn=learn: learn.fit(1, 0.1))


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_it_can_be_pickled_as_a_learner_is_exported(name):
    made = pickle.loads(pickle.dumps(optimizer(name)))([nn.Parameter(torch.ones(2))], lr=0.1)  # noqa: S301 - its own, as a process that loads photos gets it
    assert made.hypers[0]['lr'] == 0.1


def test_it_is_fastais_wrapper():
    assert issubclass(TorchOptimizer, OptimWrapper) and list(inspect.signature(TorchOptimizer).parameters)[:2] == ['params', 'opt']
