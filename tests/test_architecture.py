"""The rules of the house: which way imports run, how large things are, what is documented and shown, what must not happen.

Each rule is a function that gives a list of complaints, empty where all is well; the tests at the end feed it samples that break it.
"""
import ast, inspect, json, re, subprocess, sys, textwrap, typing
from dataclasses import is_dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from types import SimpleNamespace

import pytest
from project import cfg, directives, exports, flags, module_of, notebooks, read_cells, root, short

lib = cfg['lib_path']
nbs, api = notebooks(), notebooks('api')
module_paths = {f'{lib}.{module_of(cells)}': p for p in api if module_of(cells := read_cells(p))}
numbers = {mod: int(p.name[:2]) for mod, p in module_paths.items()}
modules = sorted(numbers, key=lambda mod: module_paths[mod])
commands = {f'{lib}.cli', f'{lib}.commands.train'}  # their functions are made by options: exempt from sizes and from the ban on print
light = {mod for mod, n in numbers.items() if n <= 3 or 18 <= n <= 22 or n in (4, 50, 54)}  # never import fastai
defs = ast.FunctionDef, ast.AsyncFunctionDef

def tree_of(mod): return ast.parse((root/f'{mod.replace(".", "/")}.py').read_text(encoding='utf-8'))

def code(path, want): return [c for c in read_cells(path) if c.kind == 'code' and want(c.directives)]

def visible(d): return not (d.keys() & (exports | {'hide', 'default_exp'}) or d.get('echo') == 'false' or d.get('include') == 'false')

def fine(complaints):
    if found := list(complaints): pytest.fail('\n'.join(map(str, found)), pytrace=False)

each_module = pytest.mark.parametrize('mod', modules)
each_nb = pytest.mark.parametrize('path', nbs, ids=short)
each_api = pytest.mark.parametrize('path', api, ids=short)


# --- Imports -------------------------------------------------------------------------------------------------------
def imported(tree, mod):
    "Pairs of line and full name of all that is imported anywhere in `tree`; a name out of a module counts as a name of its own"
    for o in ast.walk(tree):
        if isinstance(o, ast.Import): yield from ((o.lineno, a.name) for a in o.names)
        elif isinstance(o, ast.ImportFrom):
            base = '.'.join(mod.split('.')[:-o.level]) if o.level else ''
            base = '.'.join(q for q in (base, o.module) if q)
            yield from ((o.lineno, f'{base}.{a.name}') for a in o.names)
        elif isinstance(o, ast.Call) and ast.unparse(o.func).split('.')[-1] in ('import_module', '__import__', 'import_extra'):
            if o.args and isinstance(o.args[0], ast.Constant): yield o.lineno, o.args[0].value

def uphill(tree, mod, numbers):
    "imports of imgcls that don't run downhill by the numbers of the notebooks"
    for line, name in imported(tree, mod):
        if name.split('.')[0] != lib or name == f'{lib}.__version__': continue
        target = name if name in numbers else name.rpartition('.')[0]
        if target not in numbers: yield f'line {line}: `{name}` is no module with a notebook'
        elif numbers[target] >= numbers[mod]: yield f'line {line}: {numbers[mod]:02} {mod} imports {numbers[target]:02} {target}'

def stars(tree, mod):
    return [f'line {line}: star import of {name[:-2]}' for line, name in imported(tree, mod) if name.endswith('.*')]

def names_of(packages, tree, mod):
    "imports of any of `packages`"
    return [f'line {line}: {name}' for line, name in imported(tree, mod) if name.split('.')[0] in packages]

@each_module
def test_imports_run_downhill(mod): fine(uphill(tree_of(mod), mod, numbers))

@each_module
def test_no_star_import(mod): fine(stars(tree_of(mod), mod))

@pytest.mark.parametrize('mod', sorted(light))
def test_no_fastai_in_light_modules(mod):
    packages = {'fastai'} | ({'matplotlib'} if numbers[mod] >= 50 else set())
    fine(names_of(packages, tree_of(mod), mod))

def loaded_after(mods, packages):
    "For each module, the packages that are in memory after it, in a fresh interpreter that imports them one after another"
    code = f'''import importlib, json, sys
print(json.dumps({{m: [p for p in {sorted(packages)!r} if importlib.import_module(m) and p in sys.modules] for m in {list(mods)!r}}}))'''
    return json.loads(subprocess.run([sys.executable, '-c', code], cwd=root, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

@pytest.mark.parametrize('numbers_,packages', [((0,), {'fastai', 'torch', 'numpy', 'pandas', 'matplotlib', 'PIL'}),
                                               ((1, 2), {'fastai', 'torch', 'matplotlib'}), ((3, 20, 21, 22), {'fastai'}), ((50, 54), {'fastai', 'matplotlib'})])
def test_loaded_packages(numbers_, packages):
    "What an import brings along, seen from outside"
    mods = [m for m in modules if numbers[m] in numbers_]
    if not mods: pytest.skip('not written yet')
    assert loaded_after(mods, packages) == {m: [] for m in mods}

watched = '''
import importlib, json, os, random, sys, signal, gc, logging, locale, warnings, threading
thirds, mods = json.loads(sys.argv[1])
for m in thirds:
    try: importlib.import_module(m)
    except ImportError: pass
import numpy, torch, matplotlib, pandas
import PIL.Image, PIL.ImageFile
import fastcore.all, fastai.torch_core
def state():
    log = logging.getLogger('imgcls')
    return {
        'environment': dict(os.environ), 'folder': os.getcwd(), 'sys.path': list(sys.path), 'hooks': (sys.excepthook, sys.displayhook),
        'warnings': [str(f) for f in warnings.filters], 'signals': str({s: signal.getsignal(s) for s in signal.valid_signals()}),
        'random': random.getstate(), 'numpy random': str(numpy.random.get_state()), 'torch random': torch.get_rng_state().tolist(),
        'torch threads': (torch.get_num_threads(), torch.get_num_interop_threads()), 'torch types': (torch.get_default_dtype(), torch.get_default_device()),
        'torch flags': (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision(),
                        torch.is_grad_enabled(), torch.backends.mkldnn.enabled, torch.multiprocessing.get_sharing_strategy()),
        'matplotlib': (str(dict(matplotlib.rcParams)), matplotlib.get_backend(auto_select=False)), 'pandas': str(pandas.describe_option(_print_desc=False)),
        'Pillow': (PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES), 'fastai': str(vars(fastcore.all.defaults)),
        'logging': (logging.root.level, list(logging.root.handlers), logging.root.manager.disable, log.level, list(log.handlers)),
        'recursion': sys.getrecursionlimit(), 'gc': gc.get_threshold(), 'threads': threading.active_count(), 'locale': locale.setlocale(locale.LC_ALL)}
changed = {}
for m in mods:
    before = state()
    importlib.import_module(m)
    after = state()
    if bad := [k for k in before if before[k] != after[k]]: changed[m] = bad
print(json.dumps(changed))
'''

def changes(mods, thirds, path=root):
    "What importing each of `mods` changes in a process that has imported the packages in `thirds` before"
    res = subprocess.run([sys.executable, '-c', watched, json.dumps([thirds, mods])], cwd=path, capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    return json.loads(res.stdout.splitlines()[-1])

def test_importing_changes_nothing():
    thirds = {name.rpartition('.')[0] or name for m in modules for _, name in imported(ast.Module(tree_of(m).body, []), m)}
    assert changes(modules, sorted(o for o in thirds if o and o.split('.')[0] != lib)) == {}


# --- Sizes ---------------------------------------------------------------------------------------------------------
def exported_lines(cells):
    "Lines of the exported cells, without blank ones and directives"
    return sum(bool(l.strip()) and not l.startswith('#|') for c in cells for l in c.source.splitlines())

def functions(tree, inside=None):
    "Pairs of each function of `tree` and the class it is a method of"
    for o in ast.iter_child_nodes(tree):
        if isinstance(o, defs): yield o, inside
        yield from functions(o, o.name if isinstance(o, ast.ClassDef) else None if isinstance(o, defs) else inside)

def too_large(tree):
    "functions above 40 lines, 4 positional parameters or 12 in all"
    for f, cls in functions(tree):
        name, a = f'{cls}.{f.name}' if cls else f.name, f.args
        bound = cls is not None and not any(ast.unparse(d) == 'staticmethod' for d in f.decorator_list)
        positional = len(a.posonlyargs) + len(a.args) - bound
        if (n := f.end_lineno - f.lineno + 1) > 40: yield f'{name} has {n} lines'
        if positional > 4: yield f'{name} has {positional} positional parameters'
        if positional + len(a.kwonlyargs) > 12: yield f'{name} has {positional + len(a.kwonlyargs)} parameters'

def wide(mod):
    "public dataclasses of the module `mod` with more than 4 positional parameters or 12 in all"
    for name, o in public(mod).items():
        if not is_dataclass(o) or not inspect.isclass(o): continue
        kinds = [p.kind for p in inspect.signature(o).parameters.values()]
        if (n := sum(k is inspect.Parameter.POSITIONAL_OR_KEYWORD for k in kinds)) > 4: yield f'{name} has {n} positional parameters'
        if len(kinds) > 12: yield f'{name} has {len(kinds)} parameters'

@each_api
def test_module_size(path): assert exported_lines(code(path, lambda d: exports & d.keys())) <= 300

@pytest.mark.parametrize('mod', [m for m in modules if m not in commands])
def test_function_size(mod): fine([*too_large(tree_of(mod)), *wide(import_module(mod))])


# --- Words ---------------------------------------------------------------------------------------------------------
def public(mod):
    "The names that the module object `mod` defines and exports, constants too, without its logger"
    body = ast.parse(inspect.getsource(mod)).body
    here = {o.name for o in body if isinstance(o, (*defs, ast.ClassDef))} | {o.id for b in body for o in ast.walk(b) if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store)}
    return {k: getattr(mod, k) for k in getattr(mod, '__all__', ()) if k in here and k != 'log'}

def function_in(o): return getattr(o, '__func__', None) or getattr(o, 'fget', None) or getattr(o, 'func', None) or o

def event(cls, name): return re.match('(before|after)_', name) and any('allback' in b.__name__ for b in cls.__mro__[1:])

def inherited(cls, name): return any(name in vars(b) for b in cls.__mro__[1:])

def methods(cls):
    "Public methods and properties that a class defines: name and function"
    kinds = property, classmethod, staticmethod
    return {k: function_in(v) for k, v in vars(cls).items() if k[0] != '_' and (inspect.isfunction(v) or isinstance(v, kinds) or hasattr(v, 'func'))}

def sentence(doc):
    "Is the first paragraph a full sentence?"
    first = inspect.cleandoc(doc or '').split('\n\n')[0].strip()
    return bool(re.match(r'[A-Z`\d"\'“(]|(fastai|imgcls|timm|nbdev)\b', first) and re.search(r'[.!?:]\W*$', first) and len(first.split()) > 1)

def gives(f):
    "Does the function return or yield anything?"
    todo = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(f)))).body[0].body.copy()
    while todo:
        o = todo.pop()
        if isinstance(o, ast.YieldFrom) or isinstance(o, (ast.Yield, ast.Return)) and o.value is not None: return True
        if not isinstance(o, (*defs, ast.Lambda, ast.ClassDef)): todo += ast.iter_child_nodes(o)
    return False

def helped(f, name):
    "Is the parameter explained by `help=` of typer?"
    hint = typing.get_type_hints(f, include_extras=True).get(name)
    return any(getattr(o, 'help', None) for o in (*getattr(hint, '__metadata__', ()), inspect.signature(f).parameters[name].default))

def undocumented(name, o, short_form=False):
    "what a function or class lacks: a docstring that is a sentence, docments of parameters and of what it returns"
    from fastcore.docments import docments
    doc = (o.__doc__ or '') if not inspect.isclass(o) else vars(o).get('__doc__') or ''
    if doc.startswith(f'{name.split(".")[-1]}('): doc = ''  # a dataclass's signature
    if not sentence(doc): yield f'{name}: the docstring is no full sentence: {doc.splitlines()[:1]}'
    if short_form or inspect.isclass(o) and not is_dataclass(o) and '__init__' not in vars(o): return
    found, sig = docments(o, full=True), inspect.signature(o)
    for p in sig.parameters.values():
        if p.name in ('self', 'cls') or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or p.name[0] == '_': continue
        if not (found.get(p.name) or {}).get('docment') and not helped(o, p.name): yield f'{name}: parameter `{p.name}` has no comment'
    if inspect.isclass(o) or sig.return_annotation in (None, 'None') or not gives(o): return
    if not (found.get('return') or {}).get('docment'): yield f'{name}: what it returns has no comment (`)->Type: # meaning`)'

def unspoken(mod):
    "complaints about the words of the public names of the module object `mod`"
    for name, o in public(mod).items():
        if not inspect.isclass(o) and not inspect.isroutine(o): continue
        yield from undocumented(name, o)
        if inspect.isclass(o):
            for k, f in methods(o).items(): yield from undocumented(f'{name}.{k}', f, short_form=bool(event(o, k) or inherited(o, k)))

def names_in(source):
    "Names, attributes and keywords that a cell uses; an import or a comment alone shows nothing"
    try: tree = ast.parse(re.sub(r'^(\s*)(%%?\w+|!.*)', r'\1', source, flags=re.M))
    except SyntaxError: return set(re.findall(r'\w+', source))
    return {getattr(o, k) for o in ast.walk(tree) for t, k in ((ast.Name, 'id'), (ast.Attribute, 'attr'), (ast.keyword, 'arg')) if isinstance(o, t)}

def unshown(mod, cells):
    "public names, methods included, that none of the cells uses"
    used = set().union(*(names_in(c.source) for c in cells))
    for name, o in public(mod).items():
        if name not in used: yield f'{name} appears in no visible cell'
        if inspect.isclass(o): yield from (f'{name}.{k} appears in no visible cell' for k in methods(o) if k not in used and not event(o, k) and not inherited(o, k))

@each_module
def test_public_names_are_documented(mod): fine(unspoken(import_module(mod)))

@each_module
def test_public_names_are_shown(mod):
    if mod in commands: pytest.skip('the command is shown by its help')
    fine(unshown(import_module(mod), code(module_paths[mod], visible)))

@each_api
def test_prose(path):
    kinds = [c.kind for c in read_cells(path) if 'default_exp' not in c.directives]
    assert kinds.count('markdown')/kinds.count('code') >= .6


# --- Notebooks -----------------------------------------------------------------------------------------------------
known = {'default_exp', 'export', 'exporti', 'hide', 'eval', 'echo', 'output', 'code-fold'} | flags
values = {'eval': {'false'}, 'echo': {'false'}, 'output': {'false'}, 'code-fold': {'true', 'show'}}

def bad_directives(source):
    "directives that nbdev would ignore: misspelt, in the wrong place, or with a value that means nothing"
    found = directives(source)
    for k, v in found.items():
        if k not in known: yield f'`#| {k}` is unknown'
        elif k in values and v not in values[k]: yield f'`#| {k}: {v}` means nothing'
    rest = source[re.match(r'(\s*#\|.*\n?)*', source).end():]
    for l in rest.splitlines():
        if re.match(r'\s*#\s*\|', l): yield f'`{l}` is not at the head of its cell'
    first = rest.lstrip().split('\n')[0].strip()
    if re.fullmatch(rf'#\s*\|?\s*({"|".join(known | {"exports", "default_exp .*"})})(:.*)?', first): yield f'`{first}` is a comment, not a directive'

@each_nb
def test_directives(path): fine(o for c in read_cells(path) if c.kind == 'code' for o in bad_directives(c.source))

@each_nb
def test_notebook_size(path): assert path.stat().st_size < 400_000

@each_nb
def test_no_error_in_outputs(path):
    fine(f'cell {i}' for i, c in enumerate(read_cells(path)) for o in c.outputs if o['output_type'] == 'error')

@each_api
def test_number_and_name(path):
    number, _, name = path.stem.partition('_')
    assert re.fullmatch(r'\d\d', number) and module_of(read_cells(path)) == name, 'the file is named NN_module, and `#| default_exp` says module'

def test_numbers_are_unique(): assert len(set(numbers.values())) == len(numbers)

@each_api
def test_title(path):
    "The first cell is `# A phrase` and `> a sentence`, from which nbdev makes the module's docstring"
    first = read_cells(path)[0]
    assert first.kind == 'markdown' and re.match(r'# \S.*\n+> \S', first.source)


# --- What must not happen in exported code -------------------------------------------------------------------------
def calls(tree): return ((o, ast.unparse(o.func)) for o in ast.walk(tree) if isinstance(o, ast.Call))

def says(call, key, value): return any(k.arg == key and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords)

picklers = {'pickle', 'cPickle', '_pickle', 'joblib', 'dill', 'cloudpickle', 'shelve', 'marshal'}

def pickled(tree, mod='imgcls.x'):
    "ways in which a pickle could be written or read"
    yield from names_of(picklers, tree, mod)
    for line, name in imported(tree, mod):
        if name in ('torch.load', 'torch.save', 'fastai.learner.load_learner', 'fastai.vision.all.load_learner'): yield f'line {line}: import of {name}'
    for o, name in calls(tree):
        last = name.split('.')[-1]
        if name == 'torch.load' and not says(o, 'weights_only', True): yield f'line {o.lineno}: torch.load without weights_only=True'
        if last == 'load_state_dict_from_url' and not says(o, 'weights_only', True): yield f'line {o.lineno}: {last} without weights_only=True'
        if name == 'torch.save' or last in ('to_pickle', 'read_pickle', 'load_learner'): yield f'line {o.lineno}: {name}'
        if last == 'load' and any(k.arg == 'allow_pickle' for k in o.keywords) and not says(o, 'allow_pickle', False): yield f'line {o.lineno}: allow_pickle'

def careless(tree):
    "errors that say too little: bare `Exception`, bare `except`, `assert`"
    for o in ast.walk(tree):
        if isinstance(o, ast.Raise) and o.exc is not None and ast.unparse(o.exc).split('(')[0] in ('Exception', 'BaseException'): yield f'line {o.lineno}: raise Exception'
        if isinstance(o, ast.ExceptHandler) and o.type is None: yield f'line {o.lineno}: bare except'
        if isinstance(o, ast.Assert): yield f'line {o.lineno}: assert'

def printed(tree):
    "prints"
    for o, name in calls(tree):
        if name in ('print', 'pprint', 'pprint.pprint', 'sys.stdout.write', 'display'): yield f'line {o.lineno}: {name}'

@each_module
def test_no_pickle(mod): fine(pickled(tree_of(mod), mod))

@each_module
def test_errors_say_something(mod): fine(careless(tree_of(mod)))

@pytest.mark.parametrize('mod', [m for m in modules if m not in commands])
def test_no_print(mod): fine(printed(tree_of(mod)))


# --- Tracked text --------------------------------------------------------------------------------------------------
unwanted = {'a path of one machine': r'(?<![\w.…~-])/(work|root|opt|home/\w+|Users/\w+|tmp/(tmp\w{8}|ipykernel_\d+|pytest-\w+))(/|\b(?![\w(|]))',
            'a host of a package index': r'files\.python' + r'hosted|pypi\.org/simple|pytorch\.org/whl|(index-url|find-links)[= ]',
            'a note to oneself': '|'.join((r'\bTO' + r'DO\b', r'\bFIX' + r'ME\b', r'\bXX' + r'X\b'))}

def tracked():
    "The project's text files: those that git knows or would take, without git those outside of hidden and generated folders"
    got = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=root, capture_output=True, text=True)
    names = got.stdout.split('\0') if got.returncode == 0 else [short(p) for p in root.rglob('*')]
    paths = (root/o for o in names if o and not re.search(r'(^|/)(\.venv[^/]*|\.git|_docs|build|dist|[\w.]+\.egg-info|__pycache__)/', o))
    return [p for p in paths if p.is_file() and p.suffix not in ('.png', '.jpg', '.jpeg', '.ico', '.pth', '.safetensors', '.gz', '.zip')]

def telling(text): return [f'{k}: {m[0]!r}' for k, v in unwanted.items() for m in re.finditer(v, text)]

def test_tracked_text():
    "No path of the machine that made it, no package index, no note to oneself"
    bad = {short(p): found for p in tracked() if (found := telling(re.sub(r'"image/(png|jpeg)": *"[^"]*"', '', p.read_text(encoding='utf-8', errors='replace'))))}
    fine(bad.items())


# --- That these tests can fail -------------------------------------------------------------------------------------
def sample_module(tmp_path, source):
    "The source as an imported module with `__all__` of its public names"
    path = tmp_path/'sample_module.py'
    names = [o.name for o in ast.parse(source).body if hasattr(o, 'name') and o.name[0] != '_']
    path.write_text(f'{source}\n__all__ = {names!r}\n')
    spec = spec_from_file_location(f'sample_{abs(hash(source))}', path)
    mod = module_from_spec(spec)
    sys.modules[spec.name] = mod
    spec.loader.exec_module(mod)
    return mod

few = {f'{lib}.core': 0, f'{lib}.data.tables': 11, f'{lib}.data.loaders': 15}

@pytest.mark.parametrize('source,n', [
    ('from imgcls.core import a\nfrom imgcls import core\nimport imgcls.core\nfrom imgcls import __version__\nfrom ..core import a\nimport torch', 0),
    ('from imgcls.data.loaders import a', 1), ('from imgcls.data import loaders', 1), ('import imgcls.data.loaders', 1), ('from .loaders import a', 1),
    ('def f():\n    from .loaders import a', 1), ('def f(): import_module("imgcls.data.loaders")', 1), ('from imgcls.data.tables import a', 1),
    ('import imgcls', 1), ('from imgcls.old import a', 1)])
def test_sample_uphill(source, n): assert len(list(uphill(ast.parse(source), f'{lib}.data.tables', few))) == n

@pytest.mark.parametrize('rule,bad,good', [
    (lambda t: stars(t, 'imgcls.x'), 'from fastai.vision.all import *', 'from fastai.vision.all import a'),
    (lambda t: stars(t, 'imgcls.x'), 'from .core import *', 'from .core import a'),
    (lambda t: names_of({'fastai'}, t, 'imgcls.x'), 'def f():\n    import fastai.vision', 'import fastcore'),
    (too_large, 'def f():\n' + '    x = 1\n'*40, 'def f():\n' + '    x = 1\n'*39),
    (too_large, 'def f(a, b, c, d, e): pass', 'def f(a, b, c, d, *, e): pass'),
    (too_large, 'def f(a, *, b, c, d, e, f, g, h, i, j, k, l, m): pass', 'def f(a, *, b, c, d, e, f, g, h, i, j, k, l, **m): pass'),
    (too_large, 'class A:\n    def f(self, a, b, c, d, e): pass', 'class A:\n    def f(self, a, b, c, d): pass'),
    (too_large, 'class A:\n    @staticmethod\n    def f(a, b, c, d, e): pass', 'class A:\n    @staticmethod\n    def f(a, b, c, d): pass'),
    (too_large, 'def f():\n    def g(a, b, c, d, e): pass', 'def f():\n    def g(a): pass'),
    (pickled, 'torch.load(p)', 'torch.load(p, weights_only=True)'), (pickled, 'torch.load(p, weights_only=False)', 'model.load(p)'),
    (pickled, 'from torch import load', 'from torch import tensor'), (pickled, 'def f():\n    import pickle', 'import json'),
    (pickled, 'from joblib import dump', 'from json import dump'), (pickled, 'torch.save(m, p)', 'save_file(m, p)'),
    (pickled, 'np.load(p, allow_pickle=True)', 'np.load(p, allow_pickle=False)'), (pickled, 'df.to_pickle(p)', 'df.to_csv(p)'),
    (pickled, 'load_state_dict_from_url(u)', 'load_state_dict_from_url(u, weights_only=True)'),
    (careless, 'raise Exception("x")', 'raise ValueError("x")'), (careless, 'raise Exception', 'raise'),
    (careless, 'try: f()\nexcept: pass', 'try: f()\nexcept OSError: pass'), (careless, 'def f(a): assert a', 'def f(a): a'),
    (printed, 'def f(): print(1)', 'def f(): log.info(1)'),
    (bad_directives, '#| exprt\nx', '#| export\nx'), (bad_directives, 'x = 1\n#| export', '#| export\nx = 1'),
    (bad_directives, '# slow\nx', '#| slow\nx'), (bad_directives, '#export\nx', '# export it\nx'),
    (bad_directives, '#| eval: flase\nx', '#| eval: false\nx'), (bad_directives, '#| code-fold\nx', '#| code-fold: true\nx'),
    (bad_directives, '# | hide\nx', '#| hide\nx'), (bad_directives, '#| echo: no\nx', '#| data\n#| echo: false\nx'),
    (telling, 'in /wo' + 'rk/main', 'the work/main part'), (telling, 'saved in /ro' + 'ot/x.csv', '…/root/x'), (telling, '/ho' + 'me/ann/x', '~/x'),
    (telling, 'a TO' + 'DO', 'a to-do list'), (telling, 'pip --index' + '-url https://x', 'pip install imgcls'),
    (telling, "'/tm" + "p/tmpab12cd_4/x'", "'/tmp/photos'")])
def test_sample_rule(rule, bad, good):
    make = str if rule in (telling, bad_directives) else ast.parse
    assert list(rule(make(bad))) and not list(rule(make(good)))

good_function = 'def f(\n    a:int, # how many\n    *rest,\n)->int: # one more\n    "Add one to `a`."\n    return a + 1\n'
good_class = ('class A:\n    "It holds a number."\n    def __init__(self,\n        a:int, # the number\n    ): self.a = a\n'
              '    @property\n    def twice(self)->int: # the number\n        "Twice the number."\n        return 2*self.a\n')

@pytest.mark.parametrize('source,complaint', [
    (good_function, None), (good_class, None), ('class E(Exception):\n    "It is wrong."', None),
    ('def f(\n    a, # x\n):\n    "It does it."\n    print(a)', None), ('def _f(a): pass', None),
    (good_function.replace('    "Add one to `a`."\n', ''), 'docstring'), (good_function.replace('Add one to `a`.', 'add one'), 'docstring'),
    (good_function.replace(' # how many', ''), '`a` has no comment'), (good_function.replace(' # one more', ''), 'what it returns'),
    (good_function.replace('->int: # one more', ':'), 'what it returns'), (good_class.replace(' # the number\n    )', '\n    )'), '`a` has no comment'),
    (good_class.replace('    "It holds a number."\n', ''), 'A: the docstring'), (good_class.replace('        "Twice the number."\n', ''), 'A.twice: the docstring'),
    (good_class.replace('->int: # the number\n        "T', ':\n        "T'), 'A.twice: what it returns'),
    ('from dataclasses import dataclass\n@dataclass\nclass D:\n    a:int # the number\n', 'D: the docstring'),
    ('from dataclasses import dataclass\n@dataclass\nclass D:\n    "It holds a number."\n    a:int\n', '`a` has no comment')])
def test_sample_words(source, complaint, tmp_path):
    found = list(unspoken(sample_module(tmp_path, source)))
    assert (found == []) if complaint is None else any(complaint in o for o in found), found

def test_sample_wide(tmp_path):
    source = 'from dataclasses import dataclass\n@dataclass\nclass D:\n    a:int\n    b:int\n    c:int\n    d:int\n    e:int\n'
    assert list(wide(sample_module(tmp_path, source))) == ['D has 5 positional parameters']

@pytest.mark.parametrize('cell,missing', [('f(1); A(2).twice', 0), ('f(1); A', 1), ('from m import f, A\n# f A twice', 3), ('"f A twice"', 3), ('%time f(A.twice)', 0)])
def test_sample_shown(cell, missing, tmp_path):
    assert len(list(unshown(sample_module(tmp_path, good_function + good_class), [SimpleNamespace(source=cell)]))) == missing

def test_sample_visible():
    assert visible(directives('f()')) and visible(directives('#| slow\nf()')) and visible(directives('#| code-fold: true\nf()'))
    assert not any(visible(directives(f'#| {o}\nf()')) for o in ('export', 'exporti', 'hide', 'echo: false', 'default_exp x'))

def test_sample_lines(): assert exported_lines([SimpleNamespace(source='#| export\n\nx = 1\n# why\n\ny = 2')]) == 3

def test_sample_changes(tmp_path):
    samples = {
        'x = 1': [], 'import torch; torch.set_num_threads(torch.get_num_threads() + 1)': ['torch threads'], 'import random; random.seed(1)': ['random'],
        'import os; os.environ["A_NEW_ONE"] = "1"': ['environment'], 'import warnings; warnings.filterwarnings("ignore", "x")': ['warnings'],
        'import numpy as np; np.random.rand()': ['numpy random'], 'import torch; torch.rand(1)': ['torch random'],
        'from PIL import ImageFile; ImageFile.LOAD_TRUNCATED_IMAGES = True': ['Pillow'], 'import logging; logging.basicConfig()': ['logging']}
    for i, source in enumerate(samples): (tmp_path/f'sample_{i}.py').write_text(source)
    found = changes([f'sample_{i}' for i in range(len(samples))], [], tmp_path)
    assert found == {f'sample_{i}': bad for i, bad in enumerate(samples.values()) if bad}

def test_sample_loaded(): assert loaded_after(['json', 'fastcore.basics'], {'fastcore', 'decimal_'}) == {'json': [], 'fastcore.basics': ['fastcore']}
