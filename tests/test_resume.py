"""A training that is killed at any moment goes on to the same bits: real processes, real SIGKILL; three kills, and twenty with IMGCLS_FULL=1."""
import json, os, random, signal, subprocess, sys, threading, time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

full = bool(os.environ.get('IMGCLS_FULL'))
root = Path(__file__).resolve().parent.parent

# One process imports everything, and forks a child for each training: a start takes a moment instead of seconds. It calculates nothing itself.
NURSERY = r'''
import json, logging, os, sys, traceback
import torch
torch.set_num_threads(1)
from fastai.callback.mixup import MixUp
from fastai.callback.training import GradientAccumulation
from fastai.torch_core import set_seed
from safetensors.torch import save_file
from imgcls.data.loaders import image_loaders
from imgcls.data.samples import sample
from imgcls.data.tables import image_table
from imgcls.train import callbacks, keep
from imgcls.train.learner import fine_tune, image_learner

table = image_table(sample('digits')).groupby(['label', 'split']).head(4)

def kill_at_sync(n):
    "Kill this process instead of its `n`-th call of fsync, in the middle of writing a checkpoint"
    real, left = os.fsync, [n]
    def fsync(fd):
        left[0] -= 1
        if not left[0]: os.kill(os.getpid(), 9)
        real(fd)
    os.fsync = fsync

def train(folder, *, resume=False, extras=(), workers=0, optimizer=None, kill_sync=None, **options):
    logging.disable()
    if kill_sync: kill_at_sync(kill_sync)
    set_seed(42, reproducible=True)
    options.setdefault('cached', False)
    dls = image_loaders(table, size=32, augment='standard', bs=10, num_workers=workers)
    more = {} if optimizer is None else dict(opt_func=optimizer)
    learn = image_learner(dls, compute='fp32', **more)
    cbs = [make(folder) for name, make in CALLBACKS.items() if name in extras]
    with learn.no_bar(), learn.no_logging(): fine_tune(learn, 2, freeze_epochs=2, checkpoint_dir=f'{folder}/state', resume=resume, cbs=cbs, **options)
    save_file({k: v.contiguous() for k, v in learn.model.state_dict().items()}, f'{folder}/final.safetensors')
    with open(f'{folder}/final.json', 'w') as f: json.dump([{k: v for k, v in o.items() if k != 'seconds'} for o in learn.history], f)

CALLBACKS = dict(monitor=lambda folder: callbacks.TrainingMonitor(f'{folder}/watched', plot=False), best=lambda folder: keep.BestCheckpoint(f'{folder}/best', k=2),
                 early=lambda folder: keep.EarlyStopping(patience=1, min_delta=0.5), average=lambda folder: keep.AveragedWeights(0.9), mixup=lambda folder: MixUp(),
                 accumulate=lambda folder: GradientAccumulation(15))
print('ready', flush=True)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        try:
            train(**json.loads(line))
            os._exit(0)
        except KeyboardInterrupt as e:
            with open(f'{json.loads(line)["folder"]}/said.txt', 'w') as f: print(e, file=f)
            os._exit(128 + e.signal)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
'''


@pytest.fixture(scope='module')
def nursery():
    env = dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1')
    process = subprocess.Popen([sys.executable, '-c', NURSERY], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'ready\n'
    def run(folder, *, after=None, by=signal.SIGKILL, **options):
        "Train; kill after some seconds, or at a call of `after`; the exit status"
        process.stdin.write(json.dumps(dict(folder=str(folder), **options)) + '\n')
        process.stdin.flush()
        pid, over = int(process.stdout.readline()), threading.Event()
        def stop():
            began = time.monotonic()
            while not (after() if callable(after) else time.monotonic() - began > after):
                if over.wait(0.005): return
            if not over.is_set(): os.kill(pid, by)
        thread = threading.Thread(target=stop) if after is not None else None
        if thread: thread.start()
        status = int(process.stdout.readline())
        over.set()
        if thread: thread.join()
        return status
    yield run
    process.stdin.close()
    process.wait(30)


def differ(a, b):
    "The largest difference of two files of weights"
    a, b = load_file(a/'final.safetensors'), load_file(b/'final.safetensors')
    assert a.keys() == b.keys()
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a)


def same(a, b):
    assert differ(a, b) == 0
    assert (a/'final.json').read_text() == (b/'final.json').read_text()


@pytest.fixture(scope='module')
def whole(nursery, tmp_path_factory):
    "Never interrupted: its folder, and how long it took"
    folder = tmp_path_factory.mktemp('whole')
    began = time.monotonic()
    assert nursery(folder) == 0
    return folder, time.monotonic() - began


@pytest.mark.parametrize('seed', range(20 if full else 3))
def test_killed_at_any_moment(nursery, whole, tmp_path, seed):
    "SIGKILL at a random moment, then the rest: the same weights and history, and at most one epoch done twice"
    other, seconds = whole
    moment, status, tries = random.Random(seed).uniform(0.02, 0.95) * seconds / 0.8, 0, 0
    while status == 0:  # again if it was over before: a quicker machine than the one that measured
        moment, tries = 0.8 * moment, tries + 1
        folder = tmp_path/str(tries)
        folder.mkdir()
        status = nursery(folder, after=moment)
    assert status == -9
    print(f'killed after {moment:.2f} of {seconds:.2f} s, status {status}')
    assert nursery(folder, resume=True) == 0
    same(folder, other)


@pytest.mark.parametrize('n', [1, 2, 3, 6] if full else [2, 3])
def test_killed_while_writing(nursery, whole, tmp_path, n):
    "The file is there whole or not at all: killed at the n-th call of fsync, where each file has two, one before and one after it gets its name"
    assert nursery(tmp_path, kill_sync=n) == -9
    state = tmp_path/'state'
    assert [o.name for o in state.glob('*.safetensors') if not o.name.startswith('.')] == (['last.safetensors'] if n > 1 else [])
    assert nursery(tmp_path, resume=True) == 0
    same(tmp_path, whole[0])


@pytest.mark.parametrize('n', [3, 5, 7, 9] if full else [5])
def test_killed_before_the_first_checkpoint(nursery, tmp_path, n):
    "History and best weights of the first epoch may be there already, and nothing to go on from: it begins anew over them"
    options = dict(extras=['monitor', 'best'])
    for name in ('whole', 'killed'): (tmp_path/name).mkdir()
    assert nursery(tmp_path/'whole', **options) == 0
    assert nursery(tmp_path/'killed', kill_sync=n, **options) == -9
    assert nursery(tmp_path/'killed', resume=True, **options) == 0
    same(tmp_path/'killed', tmp_path/'whole')


@pytest.mark.parametrize('by', [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(nursery, whole, tmp_path, by):
    "SIGTERM and Ctrl-C save in the middle of an epoch, too"
    state = tmp_path/'state/last.safetensors'
    assert nursery(tmp_path, after=state.exists, by=by) == 128 + by
    assert 'stopped and saved' in (tmp_path/'said.txt').read_text()
    assert nursery(tmp_path, resume=True) == 0
    same(tmp_path, whole[0])


def test_killed_again_and_again(nursery, whole, tmp_path):
    "One epoch at a time"
    state, seen = tmp_path/'state/last.safetensors', []
    def one_more():
        return state.exists() and state.stat().st_mtime_ns not in seen
    for _ in range(3):
        assert nursery(tmp_path, resume=True, after=one_more) == -9
        seen.append(state.stat().st_mtime_ns)
    assert nursery(tmp_path, resume=True) == 0
    same(tmp_path, whole[0])


CASES = dict(ours=dict(extras=['monitor', 'best', 'early', 'average']), average=dict(extras=['average', 'best']), accumulate=dict(extras=['accumulate', 'monitor']),
             mixup=dict(extras=['mixup']), workers=dict(workers=2), nesterov=dict(optimizer='nesterov'), cached=dict(cached=2, extras=['monitor', 'best', 'average']))


@pytest.mark.parametrize('name', CASES if full else ['ours', 'workers', 'nesterov', 'cached'])
def test_with_callbacks(nursery, tmp_path, name):
    "Killed after the first epoch of either stage, and asked to stop in the middle of one: bit-identical with callbacks, workers and wrapped optimizers too"
    options, other = CASES[name], tmp_path/'whole'
    other.mkdir()
    assert nursery(other, **options) == 0
    rows = json.loads((other/'final.json').read_text())
    folder, counts = tmp_path/'killed', []
    folder.mkdir()
    state = folder/'state/last.safetensors'
    def written():
        if state.exists() and (not counts or state.stat().st_mtime_ns != counts[-1]): counts.append(state.stat().st_mtime_ns)
        return counts
    assert nursery(folder, after=lambda: len(written()) == 1, **options) == -9
    assert nursery(folder, after=lambda: len(written()) == 3, by=signal.SIGTERM, resume=True, **options) in (128 + signal.SIGTERM, 0)
    assert nursery(folder, resume=True, **options) == 0
    same(folder, other)
    assert len(rows) >= 2
    if 'monitor' in options.get('extras', ()):
        files = [[{k: v for k, v in o.items() if k != 'seconds'} for o in json.loads((o/'watched/history.json').read_text())] for o in (folder, other)]
        assert files[0] == files[1] and len(files[0]) == len(rows)
    if 'best' in options.get('extras', ()):
        kept = [{o.name: torch.cat([v.flatten().float() for v in load_file(o).values()]) for o in (p/'best').glob('*.safetensors')} for p in (folder, other)]
        assert kept[0].keys() == kept[1].keys() and all(torch.equal(kept[0][k], kept[1][k]) for k in kept[0])


def test_stopped_while_features_are_made(nursery, tmp_path):
    "Asked to stop, then killed, before there is an epoch to save: the features that were made are gone on with, and the result is the same to the bit"
    options, folder = dict(cached=2, workers=1), tmp_path/'killed'
    for o in ('whole', 'killed'): (tmp_path/o).mkdir()
    assert nursery(tmp_path/'whole', **options) == 0
    assert [o.name for o in (tmp_path/'whole/state').iterdir()] == ['last.safetensors']
    made = folder/'state/.frozen-stage/about.json'
    assert nursery(folder, after=made.exists, by=signal.SIGTERM, **options) == 128 + signal.SIGTERM
    assert 'before the first epoch' in (folder/'said.txt').read_text() and made.exists() and not (folder/'state/last.safetensors').exists()
    written = made.stat().st_mtime_ns
    assert nursery(folder, after=made.exists, resume=True, **options) == -9
    assert made.stat().st_mtime_ns == written
    assert nursery(folder, resume=True, **options) == 0
    same(folder, tmp_path/'whole')


def test_a_folder_of_the_users_stays(nursery, tmp_path):
    "What lies beside the checkpoint and isn't the training's own"
    mine = tmp_path/'state/features/mine.npy'
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b'years of work')
    for resume in (False, True):
        assert nursery(tmp_path, cached=2, resume=resume) == 0
        assert mine.read_bytes() == b'years of work'
