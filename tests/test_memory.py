"""When the memory is full: the error is recognised and says what to do, what it held is gone, and a batch that fits is found without a trace; once with a memory that is really full."""
import gc, os, random, subprocess, sys, weakref

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn

from imgcls.core import DataError, ImgclsError
from imgcls.data.loaders import image_loaders
from imgcls.data.samples import sample
from imgcls.data.tables import image_table
from imgcls.train.learner import fine_tune, image_learner
from imgcls.train.memory import OutOfMemory, fit_batch_size, free_memory, is_out_of_memory, memory_guard, with_batch_size
from imgcls.train.optimizers import optimizer

cuda = 'CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 3.94 GiB'


class Room(nn.Module):
    "A GPU with room for `n` pictures in training"
    def __init__(self, n): super().__init__(); self.n, self.seen = n, []
    def forward(self, x):
        if self.training: self.seen.append(x.detach().clone())
        if self.training and len(x) > self.n: raise torch.OutOfMemoryError(cuda)
        return x


def pairs(n=40):
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(3, 8, 8, generator=g), torch.tensor(i % 2)) for i in range(n)]


def learner(n=40, room=1000, bs=16, drop_last=True, **options):
    torch.manual_seed(0); random.seed(0)
    dls = DataLoaders(DataLoader(pairs(n), bs=bs, shuffle=True, drop_last=drop_last), DataLoader(pairs(8), bs=bs), device='cpu')
    net = nn.Sequential(Room(room), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    return Learner(dls, net, loss_func=nn.CrossEntropyLoss(), **options)


def fit(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(*args, **kwargs)
    return learn


def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


# --- Which errors --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('error', [torch.OutOfMemoryError(cuda), torch.cuda.OutOfMemoryError(cuda), RuntimeError('MPS backend out of memory (MPS allocated: 1 GB)'), MemoryError(), MemoryError('x'),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes. Error code 12"), RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes'), OutOfMemory('x'),
    RuntimeError('Exception occured in `Recorder` when calling event `after_batch`:\n\tCUDA out of memory'), RuntimeError('CUDA error: out of memory'), RuntimeError('std::bad_alloc'), OSError(12, 'Cannot allocate memory')], ids=str)
def test_is(error):
    assert is_out_of_memory(error)
    outer = DataError('in the step `Resize`')
    outer.__cause__ = error
    assert is_out_of_memory(outer)


@pytest.mark.parametrize('error', [RuntimeError('shape mismatch'), ValueError('out of memory'), DataError("can't allocate memory"), OSError(28, 'No space left on device'), KeyboardInterrupt(), SystemExit()], ids=repr)
def test_is_not(error): assert not is_out_of_memory(error)


def test_an_error_while_another_was_handled_is_not_about_memory():
    "As in a loop that tries smaller batches"
    try:
        try: raise MemoryError
        except MemoryError: raise ValueError('misspelt')  # noqa: B904 - as code that isn't careful does
    except ValueError as e: assert not is_out_of_memory(e)


def test_a_cause_that_bites_its_tail():
    a, b = ValueError(), ValueError()
    a.__cause__, b.__cause__ = b, a
    assert not is_out_of_memory(a)


def test_numpy():
    with pytest.raises(MemoryError) as e: np.zeros(2**57)
    assert is_out_of_memory(e.value)


# --- The guard -----------------------------------------------------------------------------------------------------
def test_the_message():
    learn = learner(room=5)
    with pytest.raises(OutOfMemory, match=r"the memory of cpu is not enough for a batch of 16 pictures of 3 × 8 × 8 in training\. .*bs=8, .*bs='auto'.*PyTorch said: CUDA out of memory\. Tried"):
        with memory_guard(learn): fit(learn, 1)
    learn = learner(room=0, bs=1)
    with pytest.raises(OutOfMemory, match='a batch of 1 pictures .*Take smaller pictures'):
        with memory_guard(learn): fit(learn, 1)
    assert isinstance(OutOfMemory('x'), ImgclsError) and isinstance(OutOfMemory('x'), MemoryError)


def test_a_failure_in_the_loader_names_its_batch():
    learn = learner()
    def fails(*args): raise MemoryError
    learn.dls.train.create_item = fails
    with pytest.raises(OutOfMemory, match='a batch of 16 pictures in training.*PyTorch said: MemoryError'):
        with memory_guard(learn): fit(learn, 1)


@pytest.mark.parametrize('error', [KeyError('x'), RuntimeError('shapes'), KeyboardInterrupt()])
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error)) as e:
        with memory_guard(learner()): raise error
    assert e.value is error


def test_a_guard_in_a_guard():
    learn = learner(room=5)
    with pytest.raises(OutOfMemory) as e:
        with memory_guard(learn), memory_guard(learn): fit(learn, 1)
    assert str(e.value).count('PyTorch said') == 1


def test_nothing_is_held_while_the_error_is_kept(monkeypatch):
    refs = []

    def hold(module, args, out):
        big = torch.zeros(1000, 1000)
        refs.extend(weakref.ref(o) for o in (big, out, args[0]))
        raise torch.OutOfMemoryError(cuda)

    learn = fit(learner(), 1)
    learn.model[2].register_forward_hook(hold)
    gc.disable()
    try:
        try: fit(learn, 1)
        except torch.OutOfMemoryError as e:  # as Jupyter keeps what it has shown
            monkeypatch.setattr(sys, 'last_value', e, raising=False)
            monkeypatch.setattr(sys, 'last_traceback', e.__traceback__, raising=False)
        assert all(o() is not None for o in refs)  # this is what happens without a guard
        with pytest.raises(OutOfMemory) as kept:
            with memory_guard(learn): fit(learn, 1)
    finally: gc.enable()
    assert len(refs) == 6 and [o() is None for o in refs] == [True] * 6
    assert kept.value.__context__ is None and kept.value.__cause__ is None and kept.value.__traceback__ is not None
    assert (learn.pred, learn.loss, learn.loss_grad, learn.xb, learn.yb, learn.dl) == (None, None, None, (None,), (None,), None)
    assert all(p.grad is None for p in learn.model.parameters())


def test_the_graph_of_a_failed_backward_pass_is_gone():
    learn, refs = learner(), []

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = x + 1
            ctx.save_for_backward(y)
            refs.append(weakref.ref(y))
            return y * 1
        @staticmethod
        def backward(ctx, g): raise torch.OutOfMemoryError(cuda)

    learn.model[2].register_forward_hook(lambda m, a, out: Fails.apply(out))
    with pytest.raises(OutOfMemory):
        with memory_guard(learn): fit(learn, 1)
    assert refs and all(o() is None for o in refs)


def test_a_learner_trains_on_after_a_failure():
    learn = learner(room=5)
    with pytest.raises(OutOfMemory):
        with memory_guard(learn): fit(learn, 1)
    learn.model[0].n = 1000
    fit(learn, 1)
    free_memory(learn)


# --- A size that fits ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('room,bs,found', [(1000, None, 16), (16, None, 16), (15, None, 8), (3, None, 2), (1, None, 1), (7, 20, 5), (7, 40, 5), (2, 11, 2)])
def test_fit_batch_size(room, bs, found): assert fit_batch_size(learner(room=room), bs) == found


def test_the_finder_leaves_no_trace():
    learn = fit(learner(room=5, bs=4), 1)
    learn.dls.train.bs = 16
    state = {k: v.clone() for k, v in learn.model.state_dict().items()}
    dls, opt, cbs, rng = learn.dls, learn.opt, list(learn.cbs), (random.getstate(), torch.get_rng_state().tolist(), [dl.rng.getstate() for dl in learn.dls.loaders])
    assert fit_batch_size(learn) == 4
    assert learn.dls is dls and learn.opt is opt and list(learn.cbs) == cbs and not hasattr(learn, 'lr_finder')
    assert rng == (random.getstate(), torch.get_rng_state().tolist(), [dl.rng.getstate() for dl in dls.loaders])
    assert all(torch.equal(v, state[k]) for k, v in learn.model.state_dict().items())


def test_frozen_layers_are_tried_unfrozen_and_stay_frozen():
    class Unfrozen(Room):
        "Needs more where the layers before the last are trained"
        def forward(self, x): return x if not self.training or not self.whole[1].weight.requires_grad or len(x) <= 4 else super().forward(x)
    learn = learner(room=4, splitter=lambda m: [list(m[:4].parameters()), list(m[4].parameters())])
    learn.model[0].__class__ = Unfrozen
    object.__setattr__(learn.model[0], 'whole', learn.model)
    learn.freeze()
    fit(learn, 1)  # fits
    assert fit_batch_size(learn) == 4
    assert [p.requires_grad for p in learn.model.parameters()] == [False, False, True, True] and learn.opt.frozen_idx == 1


def test_two_steps_are_tried_because_the_optimizer_needs_room_too():
    learn = learner()
    def second(m, args):
        if learn.opt and any('sqr_avg' in o for o in learn.opt.state.values()) and len(args[0]) > 8: raise torch.OutOfMemoryError(cuda)
    learn.model.register_forward_pre_hook(second)
    assert fit_batch_size(learn) == 8


def test_two_steps_from_loaders_with_one_batch():
    learn = learner(n=16)
    steps = []
    learn.model.register_forward_pre_hook(lambda m, args: steps.append(m.training))
    assert fit_batch_size(learn) == 16 and steps == [True, True]


def test_batch_norm_of_vectors_needs_two():
    learn = learner(room=1)
    learn.model[4] = nn.Sequential(nn.BatchNorm1d(144), nn.Linear(144, 2))
    with pytest.raises(OutOfMemory, match='batch of 2, the smallest'): fit_batch_size(learn)


def test_callbacks_that_write_keep_out():
    class Writer(Callback):
        def before_fit(self): self.run, self.learn.written = not hasattr(self.learn, 'lr_finder'), getattr(self.learn, 'written', 0) + (not hasattr(self.learn, 'lr_finder'))
    learn = learner(room=4, cbs=Writer())
    assert fit_batch_size(learn) == 4 and not hasattr(learn, 'written')


def test_the_finder_refuses():
    for bs, smallest in ((0, 1), (4, 0), (4, 8)):
        with pytest.raises(ValueError, match=f'got bs={bs} and smallest={smallest}'): fit_batch_size(learner(), bs, smallest=smallest)
    with pytest.raises(ValueError, match='train has 40 pictures, which is no batch of 64'): fit_batch_size(learner(), 64)
    with pytest.raises(KeyError):
        learn = learner()
        learn.model.register_forward_pre_hook(lambda m, a: {}['x'])
        fit_batch_size(learn)
    learn.dls.loaders[0] = torch.utils.data.DataLoader(pairs(), batch_size=16)
    with pytest.raises(TypeError, match="must be fastai's, got torch.utils.data"): fit_batch_size(learn, 8)


# --- Smaller batches, the same steps -------------------------------------------------------------------------------
@pytest.mark.parametrize('drop_last', [True, False])
@pytest.mark.parametrize('bs', [1, 4, 8, 16])
@pytest.mark.parametrize('name', ['sgd', 'adamw', 'nesterov'])
def test_the_same_steps(bs, drop_last, name):
    "44 pictures, 16 to a step: twelve are left over, to be dropped or to be a step of their own"
    ends, seen = [], []
    for o in (16, bs):
        learn = learner(n=44, drop_last=drop_last, opt_func=optimizer(name))
        with with_batch_size(learn, o): fit(learn, 2, 0.05)
        ends.append(weights(learn))
        seen.append(torch.cat(learn.model[0].seen))
        fit(learn, 1, 0.05)  # and afterwards the large batches go on from there
        ends.append(weights(learn))
    n = 32 if drop_last else 44
    assert torch.equal(seen[0][:n], seen[1][:n])
    for a, b in (ends[::2], ends[1::2]): assert torch.allclose(a, b, atol=2e-5)


def test_what_fastais_own_does_with_the_rest():
    "Why it isn't used as it is: pictures that are left over at the end wait in the gradients for the next training"
    learn = learner(n=44)
    learn.dls.train.bs = 4
    fit(learn, 1, cbs=GradientAccumulation(16))
    assert any(p.grad.abs().sum() > 0 for p in learn.model.parameters())
    learn = learner(n=44)
    with with_batch_size(learn, 4): fit(learn, 1)
    assert all(p.grad.abs().sum() == 0 for p in learn.model.parameters())


def test_a_size_that_does_not_divide():
    learn = learner(n=60, bs=10)
    with with_batch_size(learn, 4):
        (cb,) = [o for o in learn.cbs if isinstance(o, GradientAccumulation)]
        assert cb.n_acc == 8
    assert not any(isinstance(o, GradientAccumulation) for o in learn.cbs)


def test_an_accumulation_of_the_users_own_is_kept():
    learn = learner(cbs=GradientAccumulation(32))
    with with_batch_size(learn, 4): assert [o.n_acc for o in learn.cbs if isinstance(o, GradientAccumulation)] == [32]


@pytest.mark.filterwarnings('ignore::UserWarning', 'ignore::FutureWarning')
def test_with_mixed_precision_and_a_rest():
    ends = []
    for bs in (16, 4):
        learn = learner(n=44, drop_last=False, cbs=MixedPrecision())
        with with_batch_size(learn, bs): fit(learn, 2, 0.01)
        ends.append(weights(learn))
    assert torch.allclose(*ends, atol=1e-5)


def test_everything_comes_back_after_an_error():
    learn = learner()
    dls, cbs = learn.dls, list(learn.cbs)
    with pytest.raises(KeyError):
        with with_batch_size(learn, 4): {}['x']
    assert learn.dls is dls and list(learn.cbs) == cbs and dls.train.bs == 16
    for bs in (0, 17):
        with pytest.raises(ValueError, match='`bs` must be from 1 to 16'):
            with with_batch_size(learn, bs): pass


def small(**kwargs):
    table = image_table(sample('digits')).groupby(['label', 'split']).head(3)
    return image_loaders(table, size=16, augment='none', bs=16, num_workers=0, device='cpu', **kwargs)


@pytest.mark.parametrize('balance', [None, 'sampling', 'loss'])
def test_loaders_keep_what_they_have(balance):
    learn = image_learner(dls := small(balance=balance), nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU()), hidden=(), compute='fp32')
    rng = [dl.rng.getstate() for dl in dls.loaders]
    with with_batch_size(learn, 4):
        new = learn.dls
        assert type(new) is type(dls) and new is not dls and [o.bs for o in new.loaders] == [4, 4] and dls.train.bs == 16
        assert {k for k in vars(new)} == {k for k in vars(dls)} and new.table is dls.table and new.vocab == dls.vocab and new.train.weights is dls.train.weights
        assert [dl.rng.getstate() for dl in new.loaders] == rng and new.train.drop_last and [type(o) for o in new.loaders] == [type(o) for o in dls.loaders]
        assert new.after_batch.fs == dls.after_batch.fs
    assert [dl.rng.getstate() for dl in dls.loaders] == rng


# --- The learner of this library -----------------------------------------------------------------------------------
def test_the_learner_guards_and_finds_by_itself():
    net = nn.Sequential(Room(5), nn.Conv2d(3, 4, 3, 2), nn.ReLU())
    learn = image_learner(small(), net, hidden=(), compute='fp32')
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(OutOfMemory, match='16 pictures of 3 × 16 × 16'): fine_tune(learn, 1)
        with pytest.raises(OutOfMemory): learn.lr_find(show_plot=False)
        net[0].seen.clear()
        fine_tune(learn, 1, bs='auto')
    assert len(learn.history) == 2 and len(net[0].seen[-1]) == 4 and learn.dls.train.bs == 16


# --- A memory that is really full ----------------------------------------------------------------------------------
full = '''
import resource, torch
torch.set_num_threads(1)
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn
from imgcls.train.memory import OutOfMemory, fit_batch_size, memory_guard, with_batch_size

pairs = [(torch.zeros(3, 64, 64), torch.tensor(i % 2)) for i in range(128)]
dls = DataLoaders(DataLoader(pairs, bs=128, drop_last=True), DataLoader(pairs[:4], bs=4), device='cpu')
net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
learn = Learner(dls, net, loss_func=nn.CrossEntropyLoss())
net(torch.zeros(2, 3, 64, 64)).sum().backward()   # whatever is loaded at the first use
used = next(int(o.split()[1]) * 1024 for o in open('/proc/self/status') if o.startswith('VmData'))
resource.setrlimit(resource.RLIMIT_DATA, (used + 96 * 2**20,) * 2)
with learn.no_bar(), learn.no_logging():
    try:
        with memory_guard(learn): learn.fit(1)
    except OutOfMemory as e: print(e)
    bs = fit_batch_size(learn)
    print('found', bs)
    with with_batch_size(learn, bs), memory_guard(learn): learn.fit(1)
print('done', learn.dls.train.bs)
'''


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='the limit on memory is the one of Linux')
def test_a_full_memory():
    env = dict(os.environ, IMGCLS_ALLOCATOR='0', MALLOC_ARENA_MAX='1')
    got = subprocess.run([sys.executable, '-c', full], capture_output=True, text=True, timeout=600, env=env)
    assert got.returncode == 0, got.stderr[-2000:]
    said, found, done = got.stdout.splitlines()
    assert 'a batch of 128 pictures of 3 × 64 × 64' in said and "DefaultCPUAllocator: can't allocate memory" in said
    assert 1 <= int(found.split()[1]) < 128 and done == 'done 128'
