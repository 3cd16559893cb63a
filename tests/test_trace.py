"Pictures for evaluation, read by threads: those of the loaders, to the bit"
import shutil

import pytest, torch
from fastai.vision.augment import Resize
from fasttransform import Transform

from imgcls.core import DataError, map_ahead
from imgcls.data.loaders import image_loaders, split_loader
from imgcls.data.samples import sample
from imgcls.data.tables import image_table
from imgcls.train.trace import EvalBatches


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
