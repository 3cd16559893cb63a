"""The wheel as users get it: built from the sdist, looked into, and run in a new environment with the newest fastai and fastcore.

torch and whatever else doesn't stand on fastcore is shared with this environment, so that a few megabytes are installed and not gigabytes.
"""
import os, shutil, subprocess, sys, tarfile, zipfile
from email.parser import HeaderParser
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from project import cfg, nbs_folder, notebooks, pkg, root

not_project = shutil.ignore_patterns('.*', '_docs', '_proc', 'build', 'dist', '*.egg-info', '__pycache__', 'imgcls-*')
travelling = [o.relative_to(nbs_folder).as_posix() for folder in ('tutorials', 'explanations') for o in notebooks(folder)]
near_fastai = '15_data.loaders', '35_train.learner'  # what the demo doesn't reach: blocks, lr_find, the manual way


def run(*args, cwd, env=None, timeout=900):
    "What a command in its own process prints; a failure shows all of it"
    res = subprocess.run([str(o) for o in args], cwd=cwd, env=env, timeout=timeout, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, encoding='utf-8', errors='replace')
    assert res.returncode == 0, f'{" ".join(map(str, args))}\n{res.stdout}'
    return res.stdout


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "The sdist made from a copy of the project, and the wheel made from that sdist"
    tmp = tmp_path_factory.mktemp('build')
    shutil.copytree(root, tmp/'project', ignore=not_project)
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', tmp/'dist', cwd=tmp/'project')
    (sdist,), (wheel,) = (tmp/'dist').glob('*.tar.gz'), (tmp/'dist').glob('*.whl')
    return sdist, wheel


def test_sdist(built):
    with tarfile.open(built[0]) as f: names = {o.partition('/')[2] for o in f.getnames()}
    assert {'settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE', *(f'{nbs_folder.name}/{o}' for o in travelling)} <= names
    assert not [o for o in names if o.startswith(('tests', 'tools', 'docs', 'benchmarks')) or '.ipynb_checkpoints' in o]


def test_wheel_content(built):
    with zipfile.ZipFile(built[1]) as f:
        names, info = set(f.namelist()), f'{cfg["lib_name"]}-{cfg["version"]}.dist-info'
        meta, entries = HeaderParser().parsestr(f.read(f'{info}/METADATA').decode()), f.read(f'{info}/entry_points.txt').decode()
    modules = {o.relative_to(root).as_posix() for o in pkg.rglob('*.py')}
    notebooks = {f'{pkg.name}/notebooks/{o}' for o in travelling}
    assert {o for o in names if not o.startswith(info)} == modules | notebooks | {f'{pkg.name}/py.typed'}
    assert f'{info}/licenses/LICENSE' in names
    assert (meta['Version'], meta['License-Expression'], meta['Requires-Python']) == (cfg['version'], 'Apache-2.0', f'>={cfg["min_python"]}')
    assert set(meta.get_all('Provides-Extra')) == {o.removesuffix('_requirements') for o in cfg if o.endswith('_requirements')}
    needed = {Requirement(o).name for o in meta.get_all('Requires-Dist') if 'extra ==' not in o}
    assert needed == {Requirement(o).name for o in cfg['requirements'].split()}
    assert cfg['console_scripts'].split('=')[1] in entries and f'{pkg.name}._modidx:d' in entries


def shared_packages():
    "The distributions here that need fastcore neither directly nor through others"
    dists = {canonicalize_name(o.name): o for o in distributions()}
    needs = {n: {canonicalize_name(q.name) for q in map(Requirement, o.requires or []) if not q.marker or q.marker.evaluate({'extra': ''})}
             for n, o in dists.items()}
    own = {'fastcore', canonicalize_name(cfg['lib_name']), 'pip'}
    while more := {n for n in dists if needs[n] & own} - own: own |= more
    return [o for n, o in dists.items() if n not in own]


@pytest.fixture(scope='module')
def newest(built, tmp_path_factory):
    "The folder of a new environment: the wheel, the newest fastai and fastcore, and by a .pth file what is shared"
    tmp = tmp_path_factory.mktemp('newest')
    run(sys.executable, '-m', 'venv', '--without-pip', tmp/'venv', cwd=tmp)
    shared = tmp/'shared'
    shared.mkdir()
    for o in shared_packages():
        for name in {q.parts[0] for q in o.files or ()} - {'..', '__pycache__'}:
            if not (shared/name).exists(): (shared/name).symlink_to(o.locate_file(name))
    (site,) = (tmp/'venv').glob('[Ll]ib/**/site-packages')
    (site/'shared.pth').write_text(str(shared))
    pip = [sys.executable, '-m', 'pip', '--python', tmp/'venv/bin/python', '--disable-pip-version-check', '--no-input', 'install', '-qq']
    probe = subprocess.run([*map(str, pip), '--retries=1', '--no-deps', '--dry-run', 'fastcore'], capture_output=True, text=True)
    if probe.returncode: pytest.skip('no package index can be reached, so there is no environment with the newest fastai')
    run(*pip, '--upgrade', f'{built[1]}[demo]', 'fastai', 'fastcore', 'execnb', cwd=tmp)
    return tmp/'venv'


def clean_env(folder):
    "The environment variables without those that lead to this checkout or to photos and caches outside `folder`"
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'IMGCLS_DATA', 'VIRTUAL_ENV')}
    return env | dict(IMGCLS_CACHE=str(folder/'cache'))


def test_newest_versions(newest, tmp_path, record_testsuite_property):
    code = 'import fastcore, fastai, imgcls, torch\nfor o in (fastcore, fastai, imgcls, torch): print(o.__name__, o.__version__, o.__file__)'
    rows = [o.split() for o in run(newest/'bin/python', '-c', code, cwd=tmp_path, env=clean_env(tmp_path)).splitlines()]
    got = {name: (number, Path(file)) for name, number, file in rows}
    assert int(got['fastcore'][0].split('.')[0]) >= 2 > int(version('fastcore').split('.')[0])
    assert all(got[o][1].is_relative_to(newest) for o in ('fastcore', 'fastai', 'imgcls')), 'these come out of the new environment'
    assert got['imgcls'][0] == cfg['version'] and got['torch'][0].startswith(version('torch'))
    record_testsuite_property('newest stack', ', '.join(f'{o} {got[o][0]}' for o in ('fastai', 'fastcore')))


def test_newest_demo(newest, tmp_path):
    "The demo from end to end: on a dozen photos a class, or on the whole of the digits with IMGCLS_FULL=1"
    env = clean_env(tmp_path)
    code = 'from imgcls.data.samples import sample; print(sample("digits"))'
    digits = Path(run(newest/'bin/python', '-c', code, cwd=tmp_path, env=env).splitlines()[-1])
    for folder in digits.glob('*/'):
        (tmp_path/'photos'/folder.name).mkdir(parents=True)
        for o in sorted(folder.iterdir())[:12]: shutil.copy(o, tmp_path/'photos'/folder.name)
    photos = [] if os.environ.get('IMGCLS_FULL') == '1' else [tmp_path/'photos']
    run(newest/'bin/imgcls', 'demo', *photos, '--out', tmp_path/'demo', cwd=tmp_path, env=env)
    assert {'model.safetensors', 'classifier.json'} <= {o.name for o in (tmp_path/'demo/bundle').iterdir()}
    assert len(list((tmp_path/'demo/figures').glob('*.png'))) >= 3


def test_newest_notebooks_command(newest, tmp_path):
    run(newest/'bin/imgcls', 'notebooks', tmp_path/'mine', cwd=tmp_path, env=clean_env(tmp_path))
    assert sorted(o.relative_to(tmp_path/'mine').as_posix() for o in (tmp_path/'mine').rglob('*.ipynb')) == sorted(travelling)


def test_newest_runs_notebooks(newest, tmp_path):
    "Notebooks near to fastai, or all of them with IMGCLS_FULL=1, against the installed wheel"
    shutil.copytree(nbs_folder, tmp_path/nbs_folder.name, ignore=not_project)
    shutil.copytree(root/'tests', tmp_path/'tests', ignore=not_project)
    shutil.copy(root/'settings.ini', tmp_path)
    chosen = [] if os.environ.get('IMGCLS_FULL') == '1' else ['-k', ' or '.join(near_fastai)]
    run(newest/'bin/python', '-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'tests/test_notebooks.py', *chosen,
        cwd=tmp_path, env=clean_env(tmp_path), timeout=3600)
