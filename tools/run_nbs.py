"""Run notebooks in a real Jupyter kernel and save their outputs.

    python tools/run_nbs.py                                every notebook, in place
    python tools/run_nbs.py nbs/tutorials nbs/index.ipynb  these files and folders
    python tools/run_nbs.py --out FOLDER                   the results go to FOLDER/api/00_core.ipynb …, the tree stays as it is

A notebook runs in its own folder, and `import imgcls` finds this checkout, installed or not. Cells with `#| eval: false` or with a flag
of `tst_flags` in settings.ini keep the outputs that they have: `--flags slow` runs those marked `slow`, and cells marked `data`
(they need the photos of IMGCLS_DATA) run where that variable is set. What is saved names no folder of this machine and holds no remains of
progress bars; outputs that differ from the old ones only in times stay the old ones. A notebook that fails is left as it was.
"""
import argparse, base64, io, json, os, re, sys, sysconfig, tempfile, time
from pathlib import Path

import nbformat
from execnb.nbio import nb2str
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.process import extract_directives
from PIL import Image

root = Path(__file__).resolve().parent.parent
cfg = get_config(path=root)
# what packages below fastai say of themselves (a bar as a widget needs ipywidgets, torch.jit is given up) is no output of ours
quiet = os.environ.get('PYTHONWARNINGS') or 'ignore:IProgress not found,ignore::FutureWarning:torch.jit._script'
failures = CellExecutionError, CellTimeoutError, DeadKernelError


# --- What is saved: no paths of this machine, no bars, no new times alone -------------------------------------------
def cache_folders():
    "The folders where imgcls may keep its cache here"
    base = os.environ.get('XDG_CACHE_HOME') or os.environ.get('LOCALAPPDATA')
    return [os.environ.get('IMGCLS_CACHE'), base and f'{base}/imgcls', Path.home()/'Library/Caches/imgcls', Path.home()/'.cache/imgcls']

def machine_paths(temp=tempfile.gettempdir()):
    "Pairs of a compiled pattern for a folder of this machine and what stands for it, the longest folder first"
    folders = {o: '~/.cache/imgcls' for o in cache_folders() if o}
    folders |= {o: '…' for o in [os.environ.get('IMGCLS_DATA'), root, *(sysconfig.get_path(k) for k in ('purelib', 'platlib', 'stdlib'))] if o}
    folders |= {Path.home(): '~', temp: '…'}
    both = {str(q).rstrip('/'): v for o, v in folders.items() for q in (Path(o).expanduser().resolve(), Path(o).expanduser())}
    ends = {str(q): r'(/tmp[a-z0-9_]{8}(?!\w))?' for q in (Path(temp), Path(temp).resolve())}  # a name made at random goes too
    res = [(re.compile(rf'{re.escape(temp)}/ipykernel_\d+/\d+\.py'), '<cell>')]
    return res + [(re.compile(rf'(?<![\w.~…-]){re.escape(k)}{ends.get(k, "")}(?![\w-])'), both[k]) for k in sorted(both, key=len, reverse=True) if k]

def strip_paths(text, paths=machine_paths()):
    "Put a short name in the place of each folder of this machine"
    for pattern, short in paths: text = pattern.sub(short, text)
    return text

bar = re.compile(r'.*\d+%\|.*\|.*\[.*\]\s*|.*\b\d+it \[[\d:]+,.*\]\s*|.*\|[█-]+\| *[\d.]+% \[.*\]\s*|\s*█\s*')  # tqdm's two, fastprogress's
bar_html = re.compile(r'\s*(<style>.*progress.*</style>\s*)?(<div[^>]*>\s*</div>)?\s*', re.S)

def stream_text(text):
    "What a terminal would show in the end of `text`: a line written again after a carriage return is one line, a bar is none"
    lines = [re.sub(r'\r+$', '', o).rpartition('\r')[2] for o in text.split('\n')]
    return '\n'.join(o for o in lines if not (o and bar.fullmatch(re.sub(r'\x1b\[[\d;]*[A-Za-z]', '', o))))

def is_bar(o):
    "Is this display what is left of a progress bar of fastai or of ipywidgets?"
    data = o.get('data', {})
    html = data.get('text/html')
    return 'application/vnd.jupyter.widget-view+json' in data or html is not None and ('<progress' in html or bool(bar_html.fullmatch(html)))

def plain_table(html):
    "The rows of fastai's table of epochs as lines of text"
    rows = [re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', o, re.S) for o in re.findall(r'<tr[^>]*>(.*?)</tr>', html, re.S)]
    return '\n'.join('  '.join(f'{o.strip():<10}' for o in r).rstrip() for r in rows)

def lighten(data, limit=100_000):
    "Save a PNG of more than `limit` characters, which holds photographs, as a JPEG: a tenth of the size, for the eye the same"
    if len(data.get('image/png', '')) <= limit: return
    image, file = Image.open(io.BytesIO(base64.b64decode(data['image/png']))).convert('RGB'), io.BytesIO()
    image.save(file, 'JPEG', quality=70, optimize=True)
    del data['image/png']
    data['image/jpeg'] = base64.b64encode(file.getvalue()).decode()

def tidy(outputs):
    "The outputs worth keeping, streams merged and without paths of this machine"
    res = []
    for o in outputs:
        if o.output_type == 'stream' and res and res[-1].get('name') == o.name: res[-1].text += o.text
        elif not is_bar(o): res.append(o)
    for o in res:
        if o.output_type == 'stream': o.text = strip_paths(stream_text(o.text))
        data = o.get('data', {})
        if 'class="fastprogress"' in (html := data.get('text/html', '')):  # the same HTML three times over
            data.pop('text/markdown', None)
            data['text/plain'] = plain_table(html)
        lighten(data)
        for k, v in data.items():
            if k.startswith('text/') or k == 'image/svg+xml': data[k] = strip_paths(v)
    return [o for o in res if o.output_type != 'stream' or o.text.strip()]

times = re.compile(r'\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?([.,]\d+)?)?|\b\d+:\d\d(:\d\d)?\b|\b\d+(\.\d+)? ?(µs|us|ms|s|sec|seconds?|min|minutes?)\b')

def same_but_times(old, new):
    "Do two lists of outputs differ in dates, clocks and durations at most?"
    def plain(o): return times.sub('TIME', json.dumps({**o, 'execution_count': None, 'metadata': {}}, sort_keys=True, ensure_ascii=False))
    return len(old) == len(new) and all(plain(a) == plain(b) for a, b in zip(old, new))


# --- Running --------------------------------------------------------------------------------------------------------
class Client(NotebookClient):
    "Runs the cells that aren't to be skipped, and tidies what they give"
    skip = frozenset()

    async def async_execute_cell(self, cell, *args, **kwargs):
        if cell.cell_type != 'code': return cell
        directives = extract_directives(cell, remove=False)
        if directives.get('eval:') == ['false'] or self.skip & directives.keys(): return cell
        old = cell.get('outputs', [])
        cell.outputs = []
        res = await super().async_execute_cell(cell, *args, **kwargs)
        cell.outputs = tidy(cell.outputs)
        if same_but_times(old, cell.outputs): cell.outputs = old
        return res

def write(nb, dest):
    "Write `nb` as nbdev_clean would, whole or not at all"
    nb = json.loads(nbformat.writes(nb))
    clean_nb(nb, allowed_metadata_keys=cfg.get('allowed_metadata_keys').split(), clean_ids=cfg.clean_ids,
             allowed_cell_metadata_keys=cfg.get('allowed_cell_metadata_keys').split())
    dest.parent.mkdir(parents=True, exist_ok=True)
    part = dest.with_name(f'.{dest.name}.{os.getpid()}')
    part.write_text(nb2str(nb), encoding='utf-8')
    os.replace(part, dest)

def run(path, dest, flags=(), timeout=3600):
    "Run the notebook `path` in a kernel of its own and write it to `dest`"
    skip = set(cfg.tst_flags.split()) - set(flags) - ({'data'} if os.environ.get('IMGCLS_DATA') else set())
    nb = nbformat.read(path, as_version=4)
    client = Client(nb, timeout=timeout, kernel_name='python3', store_widget_state=False,
                    extra_arguments=['--log-level=40'], resources={'metadata': {'path': str(path.parent)}})
    client.skip = frozenset(skip)
    path_var = os.pathsep.join(o for o in (str(root), os.environ.get('PYTHONPATH')) if o)
    wait = os.environ.get('OMP_WAIT_POLICY', 'PASSIVE')  # threads that spin while they wait are slow on a busy machine
    client.execute(env={**os.environ, 'PYTHONPATH': path_var, 'PYTHONWARNINGS': quiet, 'OMP_WAIT_POLICY': wait})
    write(nb, dest)

def notebooks(paths):
    "The notebooks among files and folders, without checkpoints and what is hidden"
    found = {f.resolve() for o in paths for f in (o.rglob('*.ipynb') if o.is_dir() else [o])}
    return sorted(f for f in found if not any(q[0] in '._' for q in f.parts[len(root.parts):]))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('paths', nargs='*', type=Path, default=[cfg.nbs_path], help='notebooks, or folders of them')
    parser.add_argument('--out', type=Path, help='write the results under this folder, not into the tree')
    parser.add_argument('--flags', default='', help='run cells with these flags too, such as "slow"')
    parser.add_argument('--timeout', type=int, default=3600, help='the longest that a cell may take, in seconds')
    args, failed = parser.parse_args(), []
    if missing := [str(o) for o in args.paths if not o.exists()]: parser.error(f'no such file: {", ".join(missing)}')
    for path in notebooks(args.paths):
        start, name = time.monotonic(), Path(os.path.relpath(path, cfg.nbs_path))
        print(name, end=' ', flush=True)
        try: run(path, args.out.resolve()/name if args.out else path, args.flags.split(), args.timeout)
        except failures as e:
            failed.append(str(name))
            print('FAILED', f'{e}', sep='\n', flush=True)
        else: print(f'{time.monotonic() - start:.1f} s', flush=True)
    if failed: sys.exit(f'{len(failed)} failed: {", ".join(failed)}')

if __name__ == '__main__': main()
