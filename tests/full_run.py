"""`make test-full`: all tests at full counts, then every notebook as written in a Jupyter kernel; the result goes to tests/last_full_run.txt.

A test reads `IMGCLS_FULL=1` for its full counts, and tells what it counted with pytest's `record_testsuite_property(name, value)`: that is
written down too. Studies, and the tutorials that train for long, run shrunk (`IMGCLS_QUICK=1`), for their outputs are made by hand. The notebooks
themselves stay as they are.
"""
import os, platform, re, subprocess, sys, tempfile, time
from collections import Counter
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

root = Path(__file__).resolve().parent.parent
dest = root/'tests/last_full_run.txt'
packages = 'imgcls fastai fastcore torch torchvision timm numpy pandas pillow scikit-learn nbdev sphinx pytest'.split()


def stream(args, env):
    "Run a command in the project's folder, show what it prints as it comes, and return that and the exit status"
    process = subprocess.Popen([sys.executable, *map(str, args)], cwd=root, env={**os.environ, **env}, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, encoding='utf-8', errors='replace')
    lines = []
    for line in process.stdout:
        print(line, end='', flush=True)
        lines.append(line)
    return ''.join(lines), process.wait()

def number(name):
    "The version of an installed package"
    try: return version(name)
    except PackageNotFoundError: return 'missing'

def test_files(tree):
    "For each test file: seconds, and how many tests ended how"
    seconds, ends, bad = Counter(), {}, []
    for case in tree.iter('testcase'):
        name = next((o for o in case.get('classname').split('.') if o.startswith('test_')), case.get('classname'))
        end = next((o.tag for o in case if o.tag in ('failure', 'error', 'skipped')), 'passed')
        end = {'failure': 'failed', 'error': 'failed'}.get(end, end)
        seconds[name] += float(case.get('time'))
        ends.setdefault(name, Counter())[end] += 1
        if end == 'failed': bad.append(f'{name}: {case.get("name")}')
    return seconds, ends, bad

def notebook_rows(text):
    "Of what tools/run_nbs.py prints: (notebook, seconds, or None where it failed)"
    return [(m[1], None if m[2] == 'FAILED' else float(m[2])) for m in re.finditer(r'^(\S+\.ipynb) .*?(FAILED|[\d.]+(?= s$))', text, re.M)]

def run_notebooks(folder):
    "Run all notebooks in a Jupyter kernel, with the cells marked slow, into `folder`"
    nbs = root/'nbs'
    found = sorted(o for o in nbs.rglob('*.ipynb') if not any(q[0] in '._' for q in o.relative_to(nbs).parts))
    rows, ended_well = [], True
    for quick in (False, True):
        some = [o for o in found if (o.parent.name == 'studies' or o.stem in ('3_transfer_learning', '6_classic_networks', '8_ensembles')) == quick]
        if not some: continue
        env = {'IMGCLS_QUICK': '1'} if quick else {}
        text, status = stream([root/'tools/run_nbs.py', '--flags', 'slow', '--out', folder, *some], env)
        rows += notebook_rows(text)
        ended_well &= status == 0
    return rows, ended_well and len(rows) == len(found)

def commit():
    "The commit that was tested, as git names it"
    res = subprocess.run(['git', 'describe', '--always', '--dirty', '--exclude=*'], cwd=root, capture_output=True, text=True)
    return res.stdout.strip().replace('-dirty', ' and changes') or 'no commit'

def total(ends): return ', '.join(f'{ends[o]} {o}' for o in ('passed', 'failed', 'skipped') if ends[o])

def main():
    data = os.environ.get('IMGCLS_DATA')
    with tempfile.TemporaryDirectory() as tmp:
        begin, xml = time.monotonic(), Path(tmp)/'tests.xml'
        _, status = stream(['-m', 'pytest', '-q', '-rs', f'--junitxml={xml}'], {'IMGCLS_FULL': '1'})
        middle = time.monotonic()
        tree = ElementTree.parse(xml)
        rows, notebooks_well = run_notebooks(Path(tmp)/'notebooks')
        end = time.monotonic()
    seconds, ends, bad = test_files(tree)
    bad += [name for name, took in rows if took is None]
    kernel = Counter('failed' if took is None else 'passed' for _, took in rows)
    well = status == 0 and notebooks_well
    facts = {'result': 'passed' if well else 'failed', 'date': date.today().isoformat(), 'commit': commit(),
             'tests': f'{total(sum(ends.values(), Counter()))} in {middle - begin:.0f} s', 'notebooks': f'{total(kernel)} in {end - middle:.0f} s',
             'machine': f'{platform.system()} {platform.machine()}, {os.cpu_count()} cores',
             'photos': ', '.join(sorted(o.name for o in Path(data).iterdir() if o.is_dir())) if data else 'none (IMGCLS_DATA not set)',
             'versions': ', '.join([f'Python {platform.python_version()}', *(f'{o} {number(o)}' for o in packages)])}
    facts |= {o.get('name'): o.get('value') for o in tree.iter('property')}
    width = max(map(len, facts))
    lines = ['What `make test-full` found when it was last run', '', *(f'{k:<{width}}  {v}' for k, v in facts.items())]
    lines += ['', 'Seconds, test file', *(f'{seconds[o]:7.1f}  {o}: {total(ends[o])}' for o in sorted(seconds))]
    lines += ['', 'Seconds, notebook as written, with its cells marked slow']
    lines += [f'{"failed" if took is None else format(took, ".1f"):>7}  {name}' for name, took in rows]
    if bad: lines += ['', 'Failed', *bad]
    dest.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    print('', *lines[:2 + len(facts)], '', f'Written to {dest.relative_to(root).as_posix()}', sep='\n')
    sys.exit(0 if well else 1)

if __name__ == '__main__': main()
