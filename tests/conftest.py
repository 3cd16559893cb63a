"""Options of the test run, and what it needs of the environment before anything is imported."""
import os

os.environ.setdefault('MPLBACKEND', 'Agg')  # no window, whatever machine this is
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # on a busy machine, threads of torch that spin while they wait make training ten times slower


def pytest_addoption(parser):
    parser.addoption('--nb-flags', default='', help='flags of notebook cells to run too, such as "slow"')
