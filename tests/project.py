"""What the tests know of the project: its folders, its notebooks and their directives. Needs neither nbdev nor execnb."""
import json, re
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace

root = Path(__file__).resolve().parent.parent
cfg = ConfigParser(delimiters=['='])
cfg.read(root/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
pkg, nbs_folder = root/cfg['lib_path'], root/cfg['nbs_path']
flags = set(cfg['tst_flags'].split())  # directives of cells that aren't run unless they are asked for
exports = {'export', 'exporti', 'exports'}


def directives(source):
    "The directives at the head of a cell: `#| eval: false` is `{'eval': 'false'}`"
    head = re.match(r'(\s*#\|.*\n?)*', source)[0]
    return {m[1]: m[2].strip() for m in re.finditer(r'#\|\s*([\w-]+):?(.*)', head)}

def read_cells(path):
    "The cells of a notebook: `kind` ('code', 'markdown' …), `source`, and the `directives` of a code cell"
    cells = json.loads(Path(path).read_text(encoding='utf-8'))['cells']
    made = (SimpleNamespace(kind=c['cell_type'], source=''.join(c['source']), outputs=c.get('outputs', []), directives={}) for c in cells)
    res = list(made)
    for c in res:
        if c.kind == 'code': c.directives = directives(c.source)
    return res

def module_of(cells):
    "The module that a notebook exports to, such as 'data.tables', or None"
    return next((c.directives['default_exp'] for c in cells if 'default_exp' in c.directives), None)

def notebooks(folder=''):
    "The notebooks below a folder of `nbs/`, in order"
    found = (nbs_folder/folder).rglob('*.ipynb')
    return sorted(p for p in found if not any(o[0] in '._' for o in p.relative_to(root).parts))

def short(path): return path.relative_to(root).as_posix()
