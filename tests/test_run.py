"""The folder of a run: made, filled, and taken away again."""
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from imgcls.core import DataError, figure
from imgcls.predictions import Predictions
from imgcls.train.run import Run, history_frame


def names(folder): return sorted(o.relative_to(folder).as_posix() for o in folder.rglob('*'))


def test_create_writes_what_was_asked(tmp_path):
    settings = dict(arch='timm/resnet18', size=np.int64(64), lr=np.float32(0.5), flag=True, none=None, path=Path('a')/'b', hidden=(512, None, 10),
                    nested=dict(a=None, b=[dict(c=None, d=1)]), text='"quotes" = ä\n')
    run = Run.create(tmp_path/'new'/'run', settings)
    found = tomllib.loads((tmp_path/'new/run/run.toml').read_text('utf-8'))
    assert found['settings'] == dict(arch='timm/resnet18', size=64, lr=0.5, flag=True, path='a/b', hidden=[512, 10], nested=dict(b=[dict(d=1)]), text='"quotes" = ä\n')
    assert found['started'].tzinfo is not None and found['machine']['cores'] >= 1 and 'torch' in found['versions']
    assert run.settings == found
    assert names(run.path) == ['run.toml']


def test_an_empty_folder_is_taken_and_stays(tmp_path):
    with pytest.raises(RuntimeError):
        with Run.create(tmp_path, {}): raise RuntimeError
    assert tmp_path.is_dir() and not names(tmp_path)


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing(tmp_path, error):
    (tmp_path/'other').mkdir()
    with pytest.raises(error):
        with Run.create(tmp_path/'other/deep/run', {}) as run:
            run.write_history(pd.DataFrame(dict(epoch=[0])))
            run.write_figure(figure()[0], 'history')
            raise error
    assert names(tmp_path) == ['other']


def test_an_error_after_the_bundle_leaves_all(tmp_path):
    with pytest.raises(RuntimeError):
        with Run.create(tmp_path/'run', {}) as run:
            run.bundle.mkdir()
            raise RuntimeError
    assert names(tmp_path/'run') == ['bundle', 'run.toml']


def test_what_others_put_there_is_not_removed(tmp_path):
    with pytest.raises(RuntimeError):
        with Run.create(tmp_path/'run', {}) as run:
            (run.path/'notes.txt').write_text('mine')
            raise RuntimeError
    assert names(tmp_path/'run') == ['notes.txt']


def test_refusals(tmp_path):
    (tmp_path/'file').write_text('x')
    before = names(tmp_path)
    for folder, error, text in [(tmp_path, FileExistsError, "isn't empty"), (tmp_path/'file', NotADirectoryError, 'is a file'), (tmp_path/'file'/'a'/'b', OSError, "Can't write")]:
        with pytest.raises(error, match=text): Run.create(folder, {})
        assert names(tmp_path) == before
    with pytest.raises(FileNotFoundError, match='no file run.toml'): Run(tmp_path)
    (tmp_path/'run.toml').write_text('broken = [')
    with pytest.raises(DataError, match="run.toml' isn't valid TOML"): _ = Run(tmp_path).settings


@pytest.mark.parametrize('name', ['', '.hidden', 'a/b', '..', 'a\\b', 'c:d', None, 3])
def test_names_of_files(tmp_path, name):
    run = Run.create(tmp_path/'run', {})
    with pytest.raises(ValueError, match='`name` must be the name of a file'): run.write_figure(figure()[0], name)
    assert names(run.path) == ['run.toml']


def test_write_all_and_list(tmp_path):
    run = Run.create(tmp_path/'run', {})
    frame = pd.DataFrame(dict(epoch=[0, 1], stage=['frozen', 'unfrozen'], train_loss=[1.23456789, 1e-9], valid_loss=[np.nan, 2.]))
    assert pd.read_csv(run.write_history(frame)).equals(pd.read_csv(run.path/'history.csv'))
    pd.testing.assert_frame_equal(pd.read_csv(run.path/'history.csv'), frame, rtol=1e-5)
    preds = Predictions(np.array([[0.9, 0.1]], dtype='float32'), ['a,b', 'ü'], targets=np.array([1]), items=['ü/"1".png'])
    found = pd.read_csv(run.write_predictions(preds, 'test'))
    back = Run(run.path).predictions('test')
    assert np.array_equal(back.probs, preds.probs) and back.items.tolist() == ['ü/"1".png'] and back.vocab == ['a,b', 'ü'] and back.actual.tolist() == ['ü']
    with pytest.raises(FileNotFoundError, match="the run has no predictions 'valid'; it has 'test'"): run.predictions()
    with pytest.raises(ValueError, match='`name` must be the name of a file'): run.predictions('../test')
    assert found['file'].tolist() == ['ü/"1".png'] and found['actual'].tolist() == ['ü']
    assert run.write_figure(figure()[0], 'x').read_bytes().startswith(b'\x89PNG')
    run.write_settings(dict(results=dict(accuracy=1.)))
    run.write_settings(dict(results=dict(accuracy=0.5), compute=dict(device='cpu')))
    assert run.settings['results'] == dict(accuracy=0.5) and run.settings['compute'] == dict(device='cpu') and 'started' in run.settings
    assert run.files()['file'].tolist() == ['run.toml', 'history.csv', 'predictions/test.csv', 'predictions/test.json', 'figures/x.png']
    assert 'history.csv' in repr(Run(run.path)) and 'history.csv' in Run(run.path)._repr_html_()


def test_history_of_all_fits_is_preferred():
    rows = [dict(epoch=i, stage=s, train_loss=1., valid_loss=2., accuracy=0.5, seconds=3.) for i, s in enumerate(['frozen', 'unfrozen'])]
    frame = history_frame(SimpleNamespace(history=rows))
    assert frame.to_dict('records') == rows
    recorder = SimpleNamespace(metric_names=['epoch', 'train_loss', 'valid_loss', 'time'], values=[[1., 2.], [0.5, 1.]])
    frame = history_frame(SimpleNamespace(history=[], recorder=recorder))
    assert frame.to_dict('list') == dict(epoch=[0, 1], train_loss=[1., 0.5], valid_loss=[2., 1.])
    for learn in (SimpleNamespace(), SimpleNamespace(history=[]), SimpleNamespace(recorder=SimpleNamespace())):
        with pytest.raises(ValueError, match='not trained yet'): history_frame(learn)


def test_interrupted_while_it_is_made(tmp_path, monkeypatch):
    "Ctrl-C after `run.toml` is written and before there is a run to hand over: nothing is left"
    from imgcls.train import run as module
    write = module._write_toml
    def interrupted(path, obj):
        write(path, obj)
        raise KeyboardInterrupt
    monkeypatch.setattr(module, '_write_toml', interrupted)
    with pytest.raises(KeyboardInterrupt): module.Run.create(tmp_path/'a/b', {})
    assert list(tmp_path.iterdir()) == []
