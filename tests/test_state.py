"""What a checkpoint holds, what it refuses, and that it leaves the process as it was; killed processes are in test_resume."""
import json, math, os, random, signal, threading
from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.optimizer import Adam
from fastai.torch_core import set_seed
from torch import nn

from imgcls.data.loaders import image_loaders
from imgcls.data.samples import sample
from imgcls.data.tables import image_table
from imgcls.train import state as module
from imgcls.train.learner import fine_tune, image_learner
from imgcls.train.state import Checkpoint, CheckpointError, Interrupted, load_training_state, read_state, save_state, training_state

table = image_table(sample('digits')).groupby(['label', 'split']).head(4)


def net(): return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU())


def learner(rows=table, body=None, seed=42, bs=10, size=16, augment='no_flip', balance=None, **options):
    set_seed(seed, reproducible=True)
    dls = image_loaders(rows, size=size, augment=augment, bs=bs, num_workers=0, balance=balance)
    return image_learner(dls, body or net(), hidden=(), compute='fp32', **options)


def train(learn, epochs=2, **options):
    with learn.no_bar(), learn.no_logging(): return fine_tune(learn, epochs, **options)


@pytest.mark.parametrize('o', [None, True, 3, 2**70, 0.1 + 0.2, 1e-300, math.inf, -0.0, 'é\n"', [], (), {}, [1, [2, (3,)]], {1: {'$tensor': 5}, (1, 2): 'x', None: [True]}, random.getstate()])
def test_values_come_back_as_they_were(o, tmp_path):
    save_state(tmp_path/'s', dict(o=o))
    back = read_state(tmp_path/'s')[1]['o']
    assert back == o and repr(back) == repr(o)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool])
def test_tensors_come_back_to_the_bit(dtype, tmp_path):
    x = (torch.randn(3, 4, 5, 6) * 100).to(dtype).to(memory_format=torch.channels_last)
    save_state(tmp_path/'s', dict(x=x, part=x[0, :, 1], none=x[:0], number=x[0, 0, 0, 0], again=x))
    back = read_state(tmp_path/'s')[1]
    assert all(torch.equal(back[k], v) and back[k].dtype == dtype for k, v in dict(x=x, part=x[0, :, 1], none=x[:0], number=x[0, 0, 0, 0], again=x).items())


def test_nan_and_numpy(tmp_path):
    save_state(tmp_path/'s', dict(a=math.nan, b=np.float32(0.1), c=np.arange(3), d=np.random.get_state()))
    back = read_state(tmp_path/'s')[1]
    assert math.isnan(back['a']) and back['b'] == np.float32(0.1) and back['c'].tolist() == [0, 1, 2] and back['d'][1].tolist() == np.random.get_state()[1].tolist()


@pytest.mark.parametrize('broken', [b'', b'x', b'\xff' * 64, b'\x08\0\0\0\0\0\0\0{"a": 1}'])
def test_no_checkpoint(broken, tmp_path):
    (tmp_path/'last.safetensors').write_bytes(broken)
    with pytest.raises(CheckpointError, match="can't be read as a checkpoint"): Checkpoint(tmp_path, resume=True)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    from safetensors.torch import save_file
    save_file(dict(a=torch.ones(2)), tmp_path/'last.safetensors')
    with pytest.raises(CheckpointError, match="can't be read as a checkpoint"): Checkpoint(tmp_path, resume=True)


def test_state_goes_back_whole():
    "After a training went on, everything is again as it was: a second training gives the same bits"
    learn = learner()
    train(learn)
    kept = module._unpack(json.loads(json.dumps(module._pack(training_state(learn), tensors := {}))), tensors)
    for i in range(2):
        load_training_state(learn, kept)
        train(learn, freeze_epochs=0)
        if i == 0: first = {k: v.clone() for k, v in learn.model.state_dict().items()}, list(learn.history)
    assert all(torch.equal(v, first[0][k]) for k, v in learn.model.state_dict().items())
    assert [o['valid_loss'] for o in learn.history] == [o['valid_loss'] for o in first[1]]


OTHERS = dict(photos=(dict(rows=table.iloc[:-1]), {}), labels=(dict(rows=table.assign(label=table.label[::-1].to_numpy())), {}), network=(dict(body=nn.Sequential(nn.Conv2d(3, 8, 3))), {}),
              batches=(dict(bs=8), {}), size=(dict(size=24), {}), augmentation=(dict(augment='standard'), {}), balance=(dict(balance='sampling'), {}), order=(dict(rows=table[::-1]), {}),
              dropout=(dict(dropout=0.1), {}), optimizer=(dict(opt_func='sgd'), {}), option=(dict(opt_func=partial(Adam, mom=0.5)), {}), loss=(dict(loss_func=nn.CrossEntropyLoss()), {}), epochs=({}, dict(epochs=3)), rate=({}, dict(lr=1e-3)), wd=({}, dict(wd=0.1)))
WORDS = dict(photos="the photos, labels or splits: {'valid': 40, 'fingerprint'", labels="the photos, labels or splits: {'fingerprint'", order="the photos, labels or splits: {'fingerprint'", network='the network: ',
             batches="{'bs': 10} there, {'bs': 8} here", size="{'size': 16} there, {'size': 24} here", augmentation="{'augment': 'no_flip'} there, {'augment': 'standard'} here",
             balance="{'balance': None} there, {'balance': 'sampling'} here", dropout="{'dropout': 0.5} there, {'dropout': 0.1} here", optimizer="the optimizer: {'name': 'Adam'} there, {'name': 'SGD'",
             option="{'mom': 0.5} here", loss='the loss: CrossEntropyLossFlat there, CrossEntropyLoss here', epochs="{'epochs': 2} there, {'epochs': 3} here",
             rate="{'lr': 0.002} there, {'lr': 0.001} here", wd="{'wd': 0.1} here")


@pytest.fixture(scope='module')
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp('kept')
    train(learner(), checkpoint_dir=folder)
    return folder


@pytest.mark.parametrize('name', OTHERS)
def test_another_training_is_refused(kept, name):
    made, options = OTHERS[name]
    before = (kept/'last.safetensors').read_bytes()
    learn = learner(**made)
    weights = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with pytest.raises(CheckpointError) as e: train(learn, checkpoint_dir=kept, resume=True, **options)
    assert WORDS[name] in str(e.value) and 'choose another folder' in str(e.value)
    assert (kept/'last.safetensors').read_bytes() == before and all(torch.equal(v, weights[k]) for k, v in learn.model.state_dict().items())


@pytest.mark.parametrize('key', ['imgcls', 'format'])
def test_another_version_is_refused(kept, tmp_path, key):
    about, state = read_state(kept/'last.safetensors')
    save_state(tmp_path/'last.safetensors', state, about | {key: '0.0.1'})
    with pytest.raises(CheckpointError, match=f"What differs is {'the version of imgcls' if key == 'imgcls' else 'the format of the file'}: 0.0.1 there, "):
        train(learner(), checkpoint_dir=tmp_path, resume=True)


def test_another_torch_is_said(kept, tmp_path, caplog):
    about, state = read_state(kept/'last.safetensors')
    save_state(tmp_path/'last.safetensors', state, about | dict(torch='1.0'))
    train(learner(), checkpoint_dir=tmp_path, resume=True)
    assert 'written with torch 1.0' in caplog.text


def test_a_new_training_destroys_nothing(kept):
    before = (kept/'last.safetensors').read_bytes()
    with pytest.raises(FileExistsError, match='Go on from it with resume=True'): train(learner(), checkpoint_dir=kept)
    assert (kept/'last.safetensors').read_bytes() == before


def test_what_is_finished_stays(kept):
    learn, epochs = learner(), []
    class Count(Callback):
        def before_epoch(self): epochs.append(self.epoch)
    train(learn, checkpoint_dir=kept, resume=True, cbs=Count())
    assert epochs == [] and len(learn.history) == 3


def test_no_stage_to_skip(tmp_path):
    "Only the first stage, only the second, and none"
    for i, (epochs, freeze) in enumerate([(0, 1), (1, 0), (0, 0)]):
        for resume in (False, True): learn = train(learner(), epochs, freeze_epochs=freeze, checkpoint_dir=tmp_path/str(i), resume=resume)
        assert len(learn.history) == epochs + freeze


def test_signals_are_given_back(tmp_path):
    before = [signal.getsignal(o) for o in (signal.SIGINT, signal.SIGTERM)]
    keeper = Checkpoint(tmp_path)
    with pytest.raises(ZeroDivisionError):
        with keeper.listening():
            assert signal.getsignal(signal.SIGTERM) is not before[1]
            os.kill(os.getpid(), signal.SIGTERM)
            assert keeper.asked == signal.SIGTERM
            raise ZeroDivisionError
    assert [signal.getsignal(o) for o in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(KeyboardInterrupt), keeper.listening():
        keeper.asked = signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)  # the second time it stops at once
    assert signal.getsignal(signal.SIGINT) is before[0]


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_asked_to_stop_where_python_drops_exceptions(tmp_path):
    "As while it forks, or in a `__del__`: the answer isn't lost, and training doesn't begin"
    class Odd:
        def __del__(self): signal.raise_signal(signal.SIGTERM)
    keeper, after = Checkpoint(tmp_path), []
    with pytest.raises(Interrupted, match='before the first epoch'), keeper.listening():
        with keeper.no_epoch_yet():
            odd = Odd()
            del odd
            after.append(keeper.asked)
    assert after == [signal.SIGTERM]


def test_in_a_thread(tmp_path):
    "Only the main thread gets signals; another one trains without listening"
    done = []
    thread = threading.Thread(target=lambda: done.append(train(learner(), 1, checkpoint_dir=tmp_path)))
    thread.start()
    thread.join()
    assert len(done) == 1 and (tmp_path/'last.safetensors').exists()


def test_asked_to_stop_when_no_batch_is_left(tmp_path):
    "The answer isn't lost, and the state is that of the end"
    class Ask(Callback):
        def after_fit(self):
            if len(self.history) == 3: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match='stopped and saved after the last epoch') as e: train(learner(), checkpoint_dir=tmp_path, cbs=Ask())
    assert e.value.signal == signal.SIGTERM
    assert len(train(learner(), checkpoint_dir=tmp_path, resume=True).history) == 3


def test_a_failure_while_going_on_leaves_the_learner_usable(tmp_path):
    class Ask(Callback):
        def after_batch(self):
            if self.training and self.iter == 1: os.kill(os.getpid(), signal.SIGTERM)
    class Break(Callback):
        order = 1001
        def before_train(self): raise ConnectionError('gone')
    with pytest.raises(Interrupted): train(learner(), checkpoint_dir=tmp_path, cbs=Ask())
    learn = learner()
    with pytest.raises(ConnectionError): train(learn, checkpoint_dir=tmp_path, resume=True, cbs=Break())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert len(learn.history) == 1


def test_numbers_of_numpy_are_settings_too(tmp_path):
    train(learner(), lr=np.float32(1e-3), checkpoint_dir=tmp_path)
    train(learner(), lr=np.float32(1e-3), checkpoint_dir=tmp_path, resume=True)


@pytest.mark.parametrize('when', ['train', 'valid'])
@pytest.mark.parametrize('stage', [0, 1])
def test_asked_to_stop_anywhere(tmp_path, when, stage):
    "In training and in validation of either stage: saved at once, and the rest gives the same bits"
    class Ask(Callback):
        def after_pred(self):
            if self.training == (when == 'train') and len(self.history) == stage and self.iter == 1: os.kill(os.getpid(), signal.SIGTERM)
    whole = train(learner())
    with pytest.raises(Interrupted) as e: train(learner(), checkpoint_dir=tmp_path, cbs=Ask())
    assert e.value.signal == signal.SIGTERM and f'epoch 1 of stage {stage + 1}, after {2 if when == "train" else 4} batches' in str(e.value)
    again = train(learner(seed=7), checkpoint_dir=tmp_path, resume=True)
    assert all(torch.equal(v, whole.model.state_dict()[k]) for k, v in again.model.state_dict().items())
    assert [{k: v for k, v in o.items() if k != 'seconds'} for o in again.history] == [{k: v for k, v in o.items() if k != 'seconds'} for o in whole.history]


def test_lent_weights_come_back_after_an_error():
    "Callbacks are told when a training breaks off"
    told = []
    class Lend(Callback):
        def after_error(self): told.append(self.training)
    class Fail(Callback):
        def before_validate(self): raise ConnectionError('gone')
    with pytest.raises(ConnectionError): train(learner(cbs=[Lend(), Fail()]))
    assert len(told) == 1


def test_loaders_without_own_random_numbers(tmp_path):
    "Loaders of fastai draw from the random numbers of the process: a run stopped in mid-epoch is in step with those, too"
    class Ask(Callback):
        def after_batch(self):
            if self.training and len(self.history) == 1 and self.iter == 1: os.kill(os.getpid(), signal.SIGTERM)
    def make(seed):
        set_seed(seed, reproducible=True)
        rows = table.assign(path=[str(table.attrs['root'] + '/' + o) for o in table.path])
        from fastai.vision.all import CategoryBlock, ColReader, DataBlock, ImageBlock, RandomResizedCrop, aug_transforms
        block = DataBlock((ImageBlock, CategoryBlock), get_x=ColReader('path'), get_y=ColReader('label'), splitter=lambda o: [(o.split == s).to_numpy().nonzero()[0].tolist() for s in ('train', 'valid')],
                          item_tfms=RandomResizedCrop(16), batch_tfms=aug_transforms(size=16))
        dls = block.dataloaders(rows, bs=10, num_workers=0)
        set_seed(42, reproducible=True)
        for i, dl in enumerate(dls.loaders): dl.rng = random.Random(i)
        return image_learner(dls, net(), hidden=(), compute='fp32')
    whole = train(make(1))
    with pytest.raises(Interrupted): train(make(1), checkpoint_dir=tmp_path, cbs=Ask())
    again = train(make(2), checkpoint_dir=tmp_path, resume=True)
    assert all(torch.equal(v, whole.model.state_dict()[k]) for k, v in again.model.state_dict().items())


def test_gradient_scaler(tmp_path):
    "What a scaler of 16-bit training has learned is kept"
    learn = learner()
    class Amp(Callback):
        def before_fit(self): self.learn.scaler = torch.amp.GradScaler('cpu', init_scale=2.**10)
    train(learn, cbs=Amp())
    learn.scaler.scale(torch.ones(1))  # makes its tensors
    learn.scaler.update(512.)
    kept = training_state(learn)
    save_state(tmp_path/'s', kept)
    learn.scaler = torch.amp.GradScaler('cpu')
    load_training_state(learn, read_state(tmp_path/'s')[1])
    assert learn.scaler.get_scale() == 512.


def test_plain_learner_has_no_checkpoints(tmp_path):
    learn = learner()
    with pytest.raises(TypeError, match='needs a learner from `image_learner`'): fine_tune(Learner(learn.dls, learn.model, loss_func=nn.CrossEntropyLoss()), 1, checkpoint_dir=tmp_path)


def test_callbacks_may_be_called_what_they_like():
    "fastai puts a callback into the learner under its name"
    class FirstBatch(Callback): pass
    class FirstEpoch(Callback): pass
    assert len(train(learner(cbs=[FirstBatch(), FirstEpoch()])).history) == 3
