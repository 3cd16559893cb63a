"""Options of the test run, and what it needs of the environment before anything is imported."""
import atexit, os, shutil, tempfile

import pytest

from imgcls.core import available_cores  # imports nothing that would start threads

if workers := int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 0)):  # the cores are shared out, and a bit-for-bit comparison has as many threads everywhere
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, available_cores() // workers)))
os.environ.setdefault('MPLBACKEND', 'Agg')  # no window, whatever machine this is
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # on a busy machine, threads of torch that spin while they wait make training ten times slower
if 'IMGCLS_CACHE' not in os.environ:  # what tests leave in the cache doesn't pile up in the user's
    os.environ['IMGCLS_CACHE'] = tempfile.mkdtemp(prefix='imgcls-cache-')
    atexit.register(shutil.rmtree, os.environ['IMGCLS_CACHE'], ignore_errors=True)


def pytest_addoption(parser):
    parser.addoption('--nb-flags', default='', help='flags of notebook cells to run too, such as "slow"')


@pytest.fixture
def two_threads():
    "Calculate with two threads, as on a user's machine, although the cores are shared out among the processes of the test run"
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
