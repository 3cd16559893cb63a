"""The notebooks are the tests: run each against the exported package.

Each exported cell is replaced by its own names, taken out of the exported module: what runs is what users install, and a notebook that
uses a name before the cell that defines it, or one that it never imports, fails here as it does in Jupyter. This needs IPython, but neither
nbdev nor a Jupyter server, so that the notebooks also run on the newest fastai and fastcore.

A cell with `#| eval: false` or a flag of `tst_flags` isn't run. `slow` runs with `--nb-flags slow`. `data` marks a cell that needs the photos in the
folder that IMGCLS_DATA names, or a name that such a cell makes: `test_notebook` runs without it, as on a machine with no data and no network,
and `test_data_cells` runs such notebooks with it. Where the variable is set they run with it alone, and both ways with IMGCLS_FULL=1. IMGCLS_QUICK=1 tells long notebooks to shrink.
"""
import ast, atexit, json, os, re, symtable, sys, textwrap, traceback, warnings

import pytest
from project import cfg, exports, flags, module_of, notebooks, read_cells, short

nbs = notebooks()
data_nbs = [p for p in nbs if any('data' in c.directives for c in read_cells(p))]


# --- One cell ------------------------------------------------------------------------------------------------------
def own_names(source):
    "The names that an exported cell binds at its top level, those of functions and classes first"
    patched = {o.name for o in ast.parse(source).body if any('patch' in ast.unparse(d) for d in getattr(o, 'decorator_list', []))}
    names = [s for s in symtable.symtable(source, '<cell>', 'exec').get_symbols() if s.is_assigned() or s.is_imported()]
    defined = {s.get_name() for s in names if s.is_namespace()} - patched
    return defined, {s.get_name() for s in names} - defined

def from_module(source, module):
    "The code that stands for an exported cell: its own names out of `module`, and `from __future__` as it was"
    defined, others = own_names(source)
    future = re.findall(r'^from __future__ .*\n?', source, re.M)
    return ''.join(future) + textwrap.dedent(f'''
        _module = __import__('importlib').import_module({module!r})
        for _name in {sorted(defined)!r}: globals()[_name] = getattr(_module, _name)
        for _name in {sorted(others)!r}:
            if hasattr(_module, _name): globals()[_name] = getattr(_module, _name)
        ''')

def to_run(cell, module, skip):
    "The code to run for a cell, or None"
    d = cell.directives
    if cell.kind != 'code' or d.get('eval') == 'false' or skip & d.keys(): return None
    source = re.sub(r'^(from nbdev|import nbdev|show_doc\().*\n?', '', cell.source, flags=re.M)
    return from_module(source, f'{cfg["lib_path"]}.{module}') if exports & d.keys() else source


# --- One notebook --------------------------------------------------------------------------------------------------
def files_beside(path): return {o for o in path.parent.rglob('*') if o.suffix != '.ipynb' and not {'__pycache__', '.ipynb_checkpoints'} & set(o.parts)}

@pytest.fixture
def shell(monkeypatch):
    "An IPython shell of its own; what a notebook may change in the process is put back afterwards"
    from IPython.core.interactiveshell import InteractiveShell
    import matplotlib, matplotlib.pyplot as plt
    import numpy, random, torch
    monkeypatch.setattr(sys, 'path', sys.path.copy())
    env, cwd, rc = os.environ.copy(), os.getcwd(), matplotlib.rcParams.copy()
    main, hooks = sys.modules['__main__'], (sys.displayhook, sys.excepthook)
    states, threads = (random.getstate(), numpy.random.get_state(), torch.get_rng_state()), torch.get_num_threads()
    shell = InteractiveShell()
    InteractiveShell._instance = shell  # for get_ipython and display
    shell.history_manager.enabled = False
    with warnings.catch_warnings(): yield shell
    InteractiveShell._instance = None
    atexit.unregister(shell.atexit_operations)
    shell.atexit_operations()
    sys.modules['__main__'], (sys.displayhook, sys.excepthook) = main, hooks
    random.setstate(states[0]), numpy.random.set_state(states[1]), torch.set_rng_state(states[2]), torch.set_num_threads(threads)
    plt.close('all')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        matplotlib.rcParams.update(rc)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)

def run_notebook(path, shell, monkeypatch, skip):
    "Run a notebook in its own folder; a failing cell fails the test with its number, its code and the traceback"
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv('IN_TEST', '1')
    monkeypatch.setenv('IMGCLS_QUICK', '1')
    monkeypatch.setattr(sys, 'path', [str(path.parent), *sys.path])
    from IPython.utils.capture import capture_output
    cells, before = read_cells(path), files_beside(path)
    for i, cell in enumerate(cells):
        if not (source := to_run(cell, module_of(cells), skip)): continue
        with capture_output(): res = shell.run_cell(source)
        if error := res.error_before_exec or res.error_in_exec:
            tb = ''.join(traceback.format_exception(error)[-12:])
            pytest.fail(f'{short(path)}, cell {i}:\n\n{textwrap.indent(cell.source, "    ")}\n\n{tb}', pytrace=False)
    assert not (new := files_beside(path) - before), f'left beside the notebook: {", ".join(map(str, new))}'

@pytest.mark.parametrize('path', nbs, ids=short)
def test_notebook(path, request, shell, monkeypatch):
    "Every notebook runs against the exported package, without data and without network"
    if path in data_nbs and os.environ.get('IMGCLS_DATA') and not os.environ.get('IMGCLS_FULL'): pytest.skip('runs once, with the photos; with IMGCLS_FULL=1 both ways')
    monkeypatch.delenv('IMGCLS_DATA', raising=False)
    run_notebook(path, shell, monkeypatch, flags - set(request.config.getoption('--nb-flags').split()) | {'data'})

@pytest.mark.parametrize('path', data_nbs, ids=short)
def test_data_cells(path, request, shell, monkeypatch):
    "Notebooks with cells for the photos in IMGCLS_DATA run with these cells too"
    if not os.environ.get('IMGCLS_DATA'): pytest.skip('IMGCLS_DATA is not set')
    run_notebook(path, shell, monkeypatch, flags - set(request.config.getoption('--nb-flags').split()) - {'data'})


# --- That these tests can fail -------------------------------------------------------------------------------------
def notebook(folder, *sources):
    "A notebook of code cells in a folder inside the project's tree of notebooks, as far as `short` can tell"
    cells = [dict(cell_type='code', id=str(i), metadata={}, outputs=[], execution_count=None, source=s) for i, s in enumerate(sources)]
    path = folder/'00_sample.ipynb'
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    return path

def test_own_names():
    defined, others = own_names('import a.b, c as d\nfrom e import f\nx, *y = 1, 2\nz: int = [w for w in x]\n'
                                '@patch\ndef g(self: A): h = 1\n@deco\ndef k(p): return p\nclass L: m = 1\nif x: n = 2')
    assert defined == {'k', 'L'} and others == {'a', 'd', 'f', 'x', 'y', 'z', 'g', 'n'}

head = '#| default_exp core', '#| export\nimport json\nclass ImgclsError(Exception): pass'

@pytest.mark.parametrize('sources,error', [
    ((*head, 'assert ImgclsError.__module__ == "imgcls.core" and json'), None),
    ((*head, '#| data\n1/0'), None), ((*head, '#| eval: false\n1/0'), None), ((*head, '#| slow\n1/0'), None),
    ((*head, '1/0'), 'ZeroDivisionError'), ((*head, 'def broken('), 'SyntaxError'),
    ((*head, 'check_option'), 'NameError'),  # in the module, but no cell of this notebook brings it
    ((head[0], 'ImgclsError', head[1]), 'NameError'),  # used above the cell that defines it
    ((*head, '#| export\ndef not_exported_yet(): pass'), 'AttributeError'),
    ((*head, 'import os; assert os.environ["IMGCLS_QUICK"] == "1" and "IMGCLS_DATA" not in os.environ'), None),
    ((*head, 'open("left.txt", "w").close()'), 'left beside the notebook'),
])
def test_sample_notebook(sources, error, tmp_path, shell, monkeypatch):
    "A good notebook passes, and one that Jupyter couldn't run fails"
    monkeypatch.setattr(sys.modules[__name__], 'short', str)
    monkeypatch.setenv('IMGCLS_DATA', str(tmp_path))
    monkeypatch.delenv('IMGCLS_DATA')
    path = notebook(tmp_path, *sources)
    if error is None: return run_notebook(path, shell, monkeypatch, flags)
    with pytest.raises((pytest.fail.Exception, AssertionError), match=error): run_notebook(path, shell, monkeypatch, flags)

def test_nothing_left(tmp_path, request):
    "The folder, the environment and the random state are as before a notebook that changes them"
    import random
    monkeypatch, before = pytest.MonkeyPatch(), (os.getcwd(), os.environ.copy(), random.getstate())
    monkeypatch.setattr(sys.modules[__name__], 'short', str)
    make = shell.__wrapped__ if hasattr(shell, '__wrapped__') else shell.__pytest_wrapped__.obj
    steps = make(monkeypatch)
    run_notebook(notebook(tmp_path, 'import os, random, sys; os.environ["A_NEW_ONE"] = "1"; os.chdir(".."); random.seed(3); random.random()'),
                 next(steps), monkeypatch, flags)
    next(steps, None)
    monkeypatch.undo()
    assert (os.getcwd(), os.environ.copy(), random.getstate()) == before
