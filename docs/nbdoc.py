"""Sphinx extension: read nbdev notebooks, which use Quarto's markup, as MyST notebooks. No notebook is run."""
import ast, inspect, json, re
from importlib import import_module
from pathlib import Path

import nbformat
from docutils import nodes
from fastcore.docments import docments
from math_core import LatexToMathML
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup, patch_name
from nbdev.process import extract_directives

cfg = get_config(path=Path(__file__).resolve().parent.parent)
pkg = cfg.lib_path.name
modidx = import_module(f'{pkg}._modidx').d['syms']
syms = {(mod, k[len(mod)+1:]) for mod, d in modidx.items() for k in d}
public = sorted((mod, nm) for mod, nm in syms if not re.search(r'(^|\.)_', nm))
local = {f'{mod}.{nm}': (mod, nm) for mod, nm in public} | {nm: (mod, nm) for mod, nm in public if mod not in (f'{pkg}.cli', f'{pkg}.commands.train')}  # `train` is a split, too
others = NbdevLookup(strip_libs=('fastai', 'fastcore'))
empty = inspect.Parameter.empty
defs = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef

# --- API entries: an exported symbol as a directive of Sphinx's Python domain -------------------------------------
class Raw(str): __repr__ = str.__str__

def anno(o):
    "An annotation as it is written; of `Annotated[int, …]`, which says more to a command line, only the `int`"
    if o is empty: return empty
    o = getattr(o, '__origin__', o) if hasattr(o, '__metadata__') else o
    text = (o if isinstance(o, str) else inspect.formatannotation(o)).strip("'")
    if text.startswith('Annotated['): text = ast.unparse(ast.parse(text, mode='eval').body.slice.elts[0])
    return Raw(text)

def default(o): return o if o is empty else Raw(getattr(o, '__name__', None) or re.sub(r' at 0x\w+', '', repr(o)))

def signature(o):
    try: sig = inspect.signature(o)
    except (ValueError, TypeError): return '()'
    ps = [p.replace(annotation=anno(p.annotation), default=default(p.default)) for p in sig.parameters.values() if p.name not in ('self', 'cls')]
    return str(sig.replace(parameters=ps, return_annotation=empty if inspect.isclass(o) else anno(sig.return_annotation)))

def kind_of(owner, o):
    "The directive of the Python domain for `o`, as it stands in the class or module `owner`"
    if inspect.isclass(o): return 'class'
    if isinstance(o, property) or type(o).__name__ == 'cached_property': return 'property'
    return {classmethod: 'classmethod', staticmethod: 'staticmethod'}.get(type(o), 'method' if inspect.isclass(owner) else 'function')

def fields(f, kind):
    "The docments of `f` as a list of fields"
    res = []
    for k, v in docments(f, full=True).items():
        text = ' '.join((v.docment or '').split())
        if not text or k in ('self', 'cls') or (k, kind) == ('return', 'class'): continue
        res.append(f':{"returns" if k == "return" else f"param {k}"}: {text}')
    return res

def api(mod, name, skip=(), depth=0):
    "Directive for `name`, such as `Learner.fit`, of module `mod`"
    owner, o = None, import_module(mod)
    for part in name.split('.'): owner, o = o, inspect.getattr_static(o, part) if inspect.isclass(o) else getattr(o, part)
    kind = kind_of(owner, o)
    f = getattr(o, 'fget', None) or getattr(o, 'func', None) if kind == 'property' else getattr(o, '__func__', o)
    doc = inspect.cleandoc(f.__doc__ or '')
    opts, sig = [f':module: {mod}'], '' if kind == 'property' else signature(f)
    if kind == 'property' and (returns := anno(inspect.signature(f).return_annotation)) is not empty: opts.append(f':type: {json.dumps(returns)}')
    if kind in ('classmethod', 'staticmethod'): opts.append(f':{kind}:')
    body = ['' if doc.startswith(f'{name}(') else doc, '\n'.join(fields(f, kind))]  # a dataclass has its signature as docstring
    if kind == 'class':
        body += [api(mod, f'{name}.{k}', depth=depth+1) for k in vars(o)
                 if k[0] != '_' and (mod, f'{name}.{k}') in syms and f'{name}.{k}' not in skip]
    fence, directive = ':'*(8-depth), kind if kind in ('class', 'property', 'function') else 'method'
    return f'{fence}{{py:{directive}}} {name}{sig}\n' + '\n'.join(opts) + '\n\n' + link('\n\n'.join(body)) + f'\n{fence}'

def constant(mod, name, value, comment):
    "Directive for the public constant `name`, with its value where that is short"
    value = ' '.join(value.split())
    shown = f':value: {json.dumps(value, ensure_ascii=False)}\n' if len(value) < 90 else ''
    return f'::::{{py:data}} {name}\n:module: {mod}\n{shown}\n{link(comment)}\n::::'

def lines_of(tree):
    "Each function, class, method and constant at the top of a module: name, kind, first and last line, as viewcode wants them"
    def row(nm, o): return nm, 'class' if isinstance(o, ast.ClassDef) else 'def', min([o.lineno] + [d.lineno for d in o.decorator_list]), o.end_lineno
    for o in tree.body:
        if isinstance(o, (ast.Assign, ast.AnnAssign)):
            for t in o.targets if isinstance(o, ast.Assign) else [o.target]:
                if isinstance(t, ast.Name): yield t.id, 'other', o.lineno, o.end_lineno
        if isinstance(o, defs): yield from (row(nm, o) for nm in names(o))
        if isinstance(o, ast.ClassDef): yield from (row(f'{o.name}.{m.name}', m) for m in o.body if isinstance(m, defs))

def find_source(app, mod):
    "For sphinx.ext.viewcode, which does not know `@patch`"
    src = Path(import_module(mod).__file__).read_text(encoding='utf-8')
    return src, {nm: tuple(where) for nm, *where in lines_of(ast.parse(src))}

# --- Markdown: Quarto to MyST ------------------------------------------------------------------------------------
def callout(m):
    fence, kind, attrs, body = m.groups()
    title = re.search(r'title="([^"]*)"', attrs)
    title = title and title[1]
    if not title and (h := re.match(r'\s*#+ +(.*)\n', body)): title, body = h[1], body[h.end():]
    fold = re.search(r'collapse="?(\w+)', attrs)
    opts = f':class: {kind}\n' + (f':collapsible: {"closed" if fold[1] == "true" else "open"}\n' if fold else '')
    return f'{fence}{{admonition}} {title or kind.title()}\n{opts}\n{body.strip()}\n{fence}'

def symbol(m):
    "What a name in backticks links to: imgcls, else fastai, where the name isn't just an English word"
    nm, call = m[1], m[2] or ''
    if nm in local: return '{py:obj}`%s <%s.%s>`' % (nm + call, *local[nm])
    if nm in modidx: return '{py:mod}`%s`' % nm
    url = others.doc(nm) if call or not re.fullmatch('[a-z]+', nm) or nm in ('accuracy',) else None
    return f'[{m[0]}]({url})' if url and 'docs.fast.ai' in url else m[0]

def link(md):
    "Link the symbols in backticks, outside of code blocks and headings"
    parts = re.split(r'(^ *```.*?^ *```|^#+ [^\n]*$|<summary>.*?</summary>)', md, flags=re.M | re.S)
    return ''.join(o if i % 2 else re.sub(r'(?<![\[`\w}])`([\w.]+)(\(\))?`(?![`\]])', symbol, o) for i, o in enumerate(parts))

def markdown(md):
    md = re.sub(r'^(:{3,}) *\{\.callout-(\w+)([^}\n]*)\} *\n(.*?)^\1 *$', callout, md, flags=re.M | re.S)
    md = re.sub(r'^(:{3,}) *\{\.([\w-]+)[^}\n]*\} *$', r'\1{container} \2', md, flags=re.M)
    md = re.sub(r'\$\$ *\{#([\w-]+)\}', r'$$ (\1)', md)
    return link(re.sub(r'(?<!\w)@(eq-[\w-]+)', r'{eq}`\1`', md))

def title(md, mod=None):
    "The first cell: `# Title`, then `> Description`, then front matter as `- key: value`; the module's name goes below"
    md = re.sub(r'^- +[\w-]+:.*\n?', '', md, flags=re.M)
    md = re.sub(r'^(> *.*\n?)+', lambda m: '{.lead}\n' + re.sub(r'^> *', '', m[0], flags=re.M) + '\n', md, count=1, flags=re.M)
    return f'{md.rstrip()}\n\n{{.module-name}}\n`{mod}`\n\n```{{py:module}} {mod}\n```' if mod else md

# --- Notebooks ---------------------------------------------------------------------------------------------------
tags = {'echo: false': 'remove-input', 'output: false': 'remove-output', 'code-fold: true': 'hide-input', 'code-fold: show': 'hide-input'}

def names(o): return [nm] if isinstance(nm := patch_name(o), str) else nm

def exported(cell): return [nm for o in ast.parse(cell.source).body if isinstance(o, defs) for nm in names(o) if not re.search(r'(^|\.)_', nm)]

def constants(cell):
    "The public constants that an exported cell sets: name, source of the value, comment behind it"
    lines = cell.source.splitlines()
    for o in ast.parse(cell.source).body:
        if not isinstance(o, (ast.Assign, ast.AnnAssign)): continue
        target = o.targets[0] if isinstance(o, ast.Assign) else o.target
        if not isinstance(target, ast.Name) or not target.id.isupper() or target.id[0] == '_': continue
        end = lines[o.end_lineno-1].encode()[o.end_col_offset:].decode().strip()
        yield target.id, ast.get_source_segment(cell.source, o.value), end.lstrip('# ') if end.startswith('#') else ''

def progress(o):
    "Is this what is left of a progress bar of fastai?"
    html = o.get('data', {}).get('text/html')
    return html is not None and re.fullmatch(r'\s*(<style>.*progress.*</style>\s*)?(<div>\s*</div>)?\s*', html, re.S)

def entries(c, d, mod, shown):
    "The directives that a code cell with directives `d` becomes, as text"
    if d.keys() & {'export', 'exports'}:
        for o in constants(c): yield constant(mod, *o)
        for nm in exported(c):
            if '.' in nm or nm not in shown: yield api(*((mod, nm) if (mod, nm) in syms else local.get(nm, (mod, nm))), skip=shown)
    if m := re.match(r'show_doc\(([\w.]+)', c.source): yield api(*local.get(m[1], (mod, m[1])), skip=shown)

def convert(nb):
    "The cells of nbdev notebook `nb` as the docs show them"
    code = [c for c in nb.cells if c.cell_type == 'code']
    dirs = {c.id: extract_directives(c) for c in code}  # takes nbdev's directives out of the source
    mod = next((f'{pkg}.{d["default_exp"][0]}' for d in dirs.values() if 'default_exp' in d), None)
    shown = {m[1] for c in code for m in re.finditer(r'^show_doc\(([\w.]+)', c.source, re.M)}
    shown |= {nm for c in code if dirs[c.id].keys() & {'export', 'exports'} for nm in exported(c) if '.' in nm}
    for i, c in enumerate(nb.cells):
        if c.cell_type == 'markdown': yield nbformat.v4.new_markdown_cell(markdown(c.source) if i else title(markdown(c.source), mod))
        if c.cell_type != 'code': continue
        d = dirs[c.id]
        opts = {f'{k} {v[0]}' for k, v in d.items() if v}
        if d.keys() & {'default_exp', 'hide', 'exporti'} or 'include: false' in opts: continue
        for o in entries(c, d, mod, shown): yield nbformat.v4.new_markdown_cell(o)
        if c.source.startswith('show_doc(') or 'export' in d: continue
        c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M).strip()
        c.metadata.tags = [t for o, t in tags.items() if o in opts] + (['hide-input'] if 'exports' in d else [])
        if 'warning: false' in opts: c.outputs = [o for o in c.outputs if o.get('name') != 'stderr']
        c.outputs = [o for o in c.outputs if not progress(o)]
        for o in c.outputs:
            if 'text/markdown' in o.get('data', {}): o.data['text/markdown'] = link(o.data['text/markdown'])
        if c.source or c.outputs: yield c

def number(path): return [int(o) if o.isdigit() else o for o in re.split(r'(\d+)', path.stem)]

def entry(path):
    "A line of the sidebar: the title of a notebook, for a module behind the last part of its name unless the title says it"
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    head = next((l[2:].strip() for l in ''.join(cells[0]['source']).splitlines() if l.startswith('# ')), path.stem)
    exp = next((m[1] for c in cells if c['cell_type'] == 'code' and (m := re.search(r'^#\| *default_exp +(\S+)', ''.join(c['source']), re.M))), None)
    name = exp.split('.')[-1] if exp else ''
    return ('' if name.rstrip('s') in head.lower() else f'{name}: ') + head.replace('`', '').replace('<', '&lt;')

sections = ['tutorials', 'explanations', 'studies']
decades = ['foundations', 'data', 'models', 'training', 'evaluation', 'deployment', 'experiments', '', '', 'command and names']

def sidebar(src):
    "A hidden tree of contents for each section, in the order in which one reads; the API by decades of its numbers"
    groups = {}
    for p in sorted(src.glob('*/*.ipynb'), key=lambda p: (p.parent.name, number(p))):
        if p.name[0] in '._': continue
        m = re.match(r'(\d)\d_', p.name) if p.parent.name == 'api' else None
        groups.setdefault(f'API: {decades[int(m[1])]}' if m else p.parent.name.replace('_', ' ').capitalize(), []).append(p)
    order = [o.capitalize() for o in sections] + [f'API: {o}' for o in decades]
    for k in sorted(groups, key=lambda k: order.index(k) if k in order else len(order)):
        lines = [f'{entry(p)} <{p.parent.name}/{p.stem}>' for p in groups[k]]
        yield nbformat.v4.new_markdown_cell('\n'.join(['```{toctree}', ':hidden:', f':caption: "{k}"', '', *lines, '```']))

def source_read(app, doc, source):
    if Path(app.env.doc2path(doc)).suffix != '.ipynb': return
    nb = nbformat.reads(source[0], as_version=4)
    for m in re.finditer(r'#\| *default_exp +([\w.]+)', source[0]): app.env.note_dependency(str(cfg.lib_path/f'{m[1].replace(".", "/")}.py'))
    nb.cells = list(convert(nb))
    nb.metadata.language_info = dict(name='python', pygments_lexer='ipython3')  # `nbdev_clean` takes it out
    if doc == app.config.root_doc: nb.cells += list(sidebar(Path(app.srcdir)))
    source[0] = nbformat.writes(nb)

# --- Formulas: MathML, so that the site needs no script and no font for them ---------------------------------------
mathml = LatexToMathML(annotation=False).convert_with_local_state

def visit_math(self, node):
    self.body.append(mathml(node.astext(), displaystyle=False))
    raise nodes.SkipNode

def visit_math_block(self, node):
    num = f'<span class="eqno">({node["number"]})</span>' if node.get('number') else ''
    self.body.append(self.starttag(node, 'div', CLASS='formula') + mathml(node.astext(), displaystyle=True) + num + '</div>\n')
    raise nodes.SkipNode

def setup(app):
    app.connect('source-read', source_read)
    app.connect('viewcode-find-source', find_source)
    app.connect('env-get-outdated', lambda app, *_: [app.config.root_doc])  # its sidebar names all the others
    app.add_html_math_renderer('mathml', (visit_math, None), (visit_math_block, None))
    return dict(parallel_read_safe=True)
