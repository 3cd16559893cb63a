"""Options of the test run."""
import os

os.environ.setdefault('MPLBACKEND', 'Agg')  # no window, whatever machine this is


def pytest_addoption(parser):
    parser.addoption('--nb-flags', default='', help='flags of notebook cells to run too, such as "slow"')
