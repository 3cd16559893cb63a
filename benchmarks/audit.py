"""Is an audit worth a cup of coffee, or a blink? `audit` of a folder against merely decoding its files once, on all cores.

    python benchmarks/audit.py [FOLDER] [--repeats 3]

FOLDER is `clothing` in IMGCLS_DATA if it isn't given. Both sides use as many threads as there are cores, and Pillow. The audit starts with
nothing remembered and includes reading, copies, leaks and all other checks; the table that it gets was made without looking into the files.
"""
import argparse, os, platform, statistics, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
import numpy, PIL
from PIL import Image

from imgcls.core import available_cores
from imgcls.data.audit import audit
from imgcls.data.tables import image_table


def timed(f):
    start = time.perf_counter()
    result = f()
    return time.perf_counter() - start, result

def decode(paths):
    "Decode each file in full, as `Image.open(path).convert('RGB')` does"
    with ThreadPoolExecutor(available_cores()) as pool: return len(list(pool.map(lambda o: Image.open(o).convert('RGB').size, paths)))

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', nargs='?', default=Path(os.environ.get('IMGCLS_DATA', 'nowhere'))/'clothing')
    parser.add_argument('--repeats', type=int, default=3)
    args = parser.parse_args()
    if not Path(args.folder).is_dir(): sys.exit(f'There is no folder {args.folder}: give one, or set IMGCLS_DATA.')
    table = image_table(args.folder, verify=None)
    paths = [Path(args.folder)/o for o in table.path]
    print(f'Python {platform.python_version()}, Pillow {PIL.__version__}, numpy {numpy.__version__}, {available_cores()} cores; {len(paths):,} files')
    seconds = {'decode once': [], 'audit': [], 'audit, bytes only': [], 'audit again': []}
    with tempfile.TemporaryDirectory() as cache:
        os.environ['IMGCLS_CACHE'] = cache
        decode(paths[:200]); audit(table.head(200), cache=False)  # warm up
        for _ in range(args.repeats):
            t, n = timed(lambda: decode(paths)); seconds['decode once'].append(t)
            t, report = timed(lambda: audit(table, cache=False)); seconds['audit'].append(t)
            assert n == len(paths) and report.count('unreadable') == 0, 'both sides must read all files'
            seconds['audit, bytes only'].append(timed(lambda: audit(table, near=False, cache=False))[0])
            audit(table)
            seconds['audit again'].append(timed(lambda: audit(table))[0])
    base = statistics.median(seconds['decode once'])
    print(f'{"":20}  seconds (min to max)      ratio of medians')
    for name, o in seconds.items(): print(f'{name:20}  {statistics.median(o):6.2f} ({min(o):.2f} to {max(o):.2f})   {statistics.median(o)/base:8.2f}')


if __name__ == '__main__': main()
