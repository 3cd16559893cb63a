"Pictures for evaluation, read by threads: those of the loaders, to the bit"
import shutil

import numpy as np
import pytest, torch
from fastai.callback.core import Callback
from fastai.vision.augment import Resize
from fasttransform import Transform

from imgcls.core import DataError, map_ahead
from imgcls.data.loaders import image_loaders, split_loader
from imgcls.data.samples import sample
from imgcls.data.tables import image_table
import imgcls.train.learner as learner_module
from imgcls.train.learner import image_learner, predict
from imgcls.train.trace import EvalBatches, quick_scores


@pytest.fixture(scope='module')
def table(): return image_table(sample('digits')).groupby(['label', 'split']).head(4)


@pytest.mark.parametrize('options', [dict(augment='standard'), dict(augment='none', method='squish'), dict(augment='trivial', presize=40), dict(cache=True)])
def test_batches_are_those_of_the_loaders(table, options, tmp_path, monkeypatch):
    monkeypatch.setenv('IMGCLS_CACHE', str(tmp_path))
    dls = image_loaders(table, size=32, bs=16, num_workers=0, check=None, **options)
    assert EvalBatches.serves(dls)
    batches = EvalBatches(dls, table, bs=16, threads=2)
    want = [x for x, _ in split_loader(dls, table, bs=16)]
    got = list(batches)
    assert len(batches) == len(want) == len(got)
    for a, b in zip(want, got): assert b.dtype == torch.uint8 and torch.equal(a.cpu(), b.float() / 255) and b.is_contiguous(memory_format=torch.channels_last)


def test_other_steps_are_left_to_the_loaders(table):
    dls = image_loaders(table, size=32, num_workers=0, check=None)
    dls.train.after_item.add(Transform(lambda x: x))
    assert not EvalBatches.serves(dls)
    dls = image_loaders(table, size=32, num_workers=0, check=None)
    dls.train.after_item.fs[0] = Resize(32)
    assert not EvalBatches.serves(dls)


def test_a_file_that_is_gone_is_named(table, tmp_path):
    shutil.copytree(table.attrs['root'], tmp_path/'photos')
    own = image_table(tmp_path/'photos')
    dls = image_loaders(own, size=32, num_workers=0, check=None)
    gone = own['path'].iloc[20]
    (tmp_path/'photos'/gone).unlink()
    with pytest.raises(DataError, match=f'`{gone}` fails in the step `OpenImage`'): list(EvalBatches(dls, own.head(40), bs=16))


def test_results_ahead_keep_their_order_and_their_bound():
    assert list(map_ahead(str, range(50), 7, threads=3)) == [str(i) for i in range(50)]
    assert list(map_ahead(str, [], 7)) == []


def test_what_cannot_be_gone_through_is_an_error_and_no_wait():
    with pytest.raises(TypeError, match='not iterable'): list(map_ahead(str, 5, 2))
    with pytest.raises(ValueError, match='`n` must be at least 1, got 0'): list(map_ahead(str, [1, 2], 0))


@pytest.mark.parametrize('n', [3, 40, 80])
@pytest.mark.parametrize('several', [False, True])
def test_quick_scores_are_those_of_fastai(table, monkeypatch, two_threads, n, several):
    "Scores, losses and features, for a few photos, side by side, and by the folded copy; every photo goes through the network once"
    if several: table = table.assign(label=[(o, 'odd') if int(o) % 2 else (o,) for o in table['label']])
    learn = image_learner(image_loaders(table, size=32, num_workers=0, check=None), 'efficientnet_lite0', pretrained=False)
    for name, o in learn.model.named_buffers():
        if 'running_var' in name: o.mul_(2.)
    assert quick_scores(learn, table.head(n)) is not None
    went, before = [], torch.get_num_threads()
    learn.model[0].register_forward_hook(lambda module, args, out: went.append(len(args[0])))
    learn.model.train()
    with learn.no_bar():
        got = predict(learn, table.head(n), features=True)
        assert sum(o for o in went if o > 1) == n and learn.model.training and torch.get_num_threads() == before  # one at a time: the copy is tried
        monkeypatch.setattr(learner_module, 'quick_scores', lambda *args, **kwargs: None)
        want = predict(learn, table.head(n), features=True)
    for name in ('probs', 'losses', 'features', 'logits'): np.testing.assert_allclose(getattr(got, name), getattr(want, name), atol=1e-3, rtol=1e-3)
    assert list(got.items) == list(want.items) and np.array_equal(got.targets, want.targets)


def test_what_is_not_known_goes_the_usual_way(table, two_threads):
    class Own(Callback):
        def after_pred(self): self.learn.pred = self.pred * 0
    def learner(**options): return image_learner(image_loaders(table, size=32, num_workers=0, check=None, augment='none'), 'classic/lenet', **options)
    learn, rows = learner(), table.head(12)
    assert quick_scores(learn, rows) is not None
    with learn.no_bar(), learn.added_cbs(Own()):
        assert quick_scores(learn, rows) is None
        assert predict(learn, rows).logits.any() == False  # noqa: E712
    learn.dls.train.after_batch.add(Transform(lambda x: x))
    assert quick_scores(learn, rows) is None
    assert quick_scores(learner(compute='fp32'), rows) is not None
    own = learner()
    del own.model.config
    assert quick_scores(own, rows) is None


def test_a_failure_keeps_its_message(table, monkeypatch, two_threads):
    learn = image_learner(image_loaders(table, size=32, num_workers=0, check=None), 'classic/lenet')
    def broken(*args): raise RuntimeError('no memory for a copy')
    monkeypatch.setattr('imgcls.train.trace.for_inference', broken)
    with pytest.raises(RuntimeError, match='no memory for a copy'): quick_scores(learn, table, features=True)
    assert len(table) > 64
