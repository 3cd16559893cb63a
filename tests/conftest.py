"""Options of the test run, and what it needs of the environment before anything is imported."""
import atexit, os, shutil, tempfile

os.environ.setdefault('MPLBACKEND', 'Agg')  # no window, whatever machine this is
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # on a busy machine, threads of torch that spin while they wait make training ten times slower
if 'IMGCLS_CACHE' not in os.environ:  # what tests leave in the cache doesn't pile up in the user's
    os.environ['IMGCLS_CACHE'] = tempfile.mkdtemp(prefix='imgcls-cache-')
    atexit.register(shutil.rmtree, os.environ['IMGCLS_CACHE'], ignore_errors=True)


def pytest_addoption(parser):
    parser.addoption('--nb-flags', default='', help='flags of notebook cells to run too, such as "slow"')
