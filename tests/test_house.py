"""The set-up of a checkout: what `make` does before it installs anything, and that the files around the code agree with each other."""
import os, re, shutil, subprocess, sys

import pytest
from project import cfg, root

makefile = (root/'Makefile').read_text(encoding='utf-8')
needs_make = pytest.mark.skipif(not shutil.which('make'), reason='make is not on this machine')


@pytest.fixture
def checkout(tmp_path):
    "A folder with all that the Makefile looks at, and a whole environment as it seems"
    for o in ('Makefile', 'settings.ini', 'setup.py'): shutil.copy(root/o, tmp_path)
    bin, site = tmp_path/'.venv/bin', tmp_path/'.venv/lib/python3/site-packages'
    for o in (bin, site/'one-1.0.dist-info'): o.mkdir(parents=True)
    (site/'one-1.0.dist-info/RECORD').write_text('one.py,,\n')
    script(bin/'python', f'exec {sys.executable} "$@"')
    script(bin/'pip', f'echo pip 23.0 from {tmp_path.resolve()}/.venv/lib/python3/site-packages/pip')
    (tmp_path/'.venv/.made').write_text(f'{tmp_path.resolve()}\n')
    for o in ('settings.ini', 'setup.py', '.venv/.made'): os.utime(tmp_path/o, (1, 1))
    for o in ('.has-demo', '.has-dev'): (tmp_path/'.venv'/o).touch()
    return tmp_path

def script(path, text):
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)

def make(folder, *args, env=()):
    keep = {k: v for k, v in os.environ.items() if not k.startswith(('MAKE', 'MFLAGS')) and k != 'PYTHON'}
    return subprocess.run(['make', *args], cwd=folder, env=keep | dict(env), capture_output=True, text=True, stdin=subprocess.DEVNULL)

def planned(folder, *args):
    "What make would do: look at the environment, install, and the commands of the target"
    out = make(folder, '-n', *args).stdout
    return 'venv' if '-m venv' in out else 'install' if 'pip install' in out else 'run'


@needs_make
def test_help_is_the_default(checkout):
    out = make(checkout).stdout
    for target in ('demo', 'test', 'test-full', 'docs', 'readme', 'clean', 'bench', 'help'):
        assert re.search(rf'^  make {target} +\w.{{8,}}$', out, re.M), target


@needs_make
def test_nothing_is_done_twice(checkout):
    assert [planned(checkout, o) for o in ('demo', 'test', 'docs')] == ['run']*3
    (checkout/'.venv/.has-dev').unlink()
    assert [planned(checkout, o) for o in ('demo', 'test')] == ['run', 'install']


@needs_make
@pytest.mark.parametrize('name', ['settings.ini', 'setup.py'])
def test_changed_requirements_are_installed(checkout, name):
    (checkout/name).touch()
    for o in ('.has-demo', '.has-dev'): os.utime(checkout/'.venv'/o, (2, 2))
    assert [planned(checkout, o) for o in ('demo', 'test')] == ['install']*2


def interrupted(o): (o/'.venv/.has-demo').unlink(), (o/'.venv/lib/python3/site-packages/one-1.0.dist-info/RECORD').unlink()
def replaced(o): (o/'.venv/.has-demo').unlink(), (o/'.venv/lib/python3/site-packages/~ne').mkdir()
def moved(o): (o/'.venv/.made').write_text('/elsewhere\n'), script(o/'.venv/bin/pip', 'echo pip 23.0 from /elsewhere/.venv/lib')
def no_python(o): (o/'.venv/bin/python').unlink()
def no_pip(o): (o/'.venv/.made').unlink(), script(o/'.venv/bin/pip', 'exit 1')


@needs_make
@pytest.mark.parametrize('harm', [interrupted, replaced, moved, no_python, no_pip])
def test_broken_environment_is_made_anew(checkout, harm):
    harm(checkout)
    fake = checkout/'fake'
    script(fake, f'case "$*" in *"-m venv"*) mkdir .venv; echo new > .venv/new;; *) exec {sys.executable} "$@";; esac')
    res = make(checkout, '.venv/.made', f'PYTHON={fake}')
    assert res.returncode == 0 and 'Making the environment' in res.stdout
    assert (checkout/'.venv/new').exists() and not (checkout/'.venv/bin').exists()


@needs_make
def test_whole_environment_is_kept(checkout):
    for o in ('.made', '.has-demo', '.has-dev'): (checkout/'.venv'/o).unlink()
    res = make(checkout, '.venv/.made', 'PYTHON=/nowhere')
    assert res.returncode == 0 and (checkout/'.venv/bin/pip').exists()


@needs_make
@pytest.mark.parametrize('python', ['exit 127', f'case "$*" in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"'], ids=['none', 'no venv'])
def test_missing_venv_says_the_line(checkout, python):
    shutil.rmtree(checkout/'.venv')
    (checkout/'path').mkdir()
    for o in ('python3', f'python{cfg["min_python"]}'): script(checkout/'path'/o, python)
    res = make(checkout, 'demo', env={'PATH': f'{checkout/"path"}{os.pathsep}{os.environ["PATH"]}'})
    assert res.returncode == 2 and 'sudo apt-get install python3.11-venv' in res.stderr.splitlines()
    assert not (checkout/'.venv').exists()


def test_ci_runs_make_test():
    run = root/'.ci/run'
    assert os.access(run, os.X_OK) and run.read_text(encoding='utf-8').rstrip().endswith('exec make test')


def test_versions_agree():
    said = re.findall(r'^## \[([\d.]+)\]', (root/'CHANGELOG.md').read_text(encoding='utf-8'), re.M)
    assert said and said[0] == cfg['version']
    assert f'python{cfg["min_python"]}' in (root/'.ci/run').read_text(encoding='utf-8')


@pytest.mark.parametrize('name', ['CONTRIBUTING.md', 'STYLE.md', 'CHANGELOG.md', 'README.md', 'benchmarks/README.md'])
def test_pages_name_what_exists(name):
    "Each `make` target, relative link and file in backticks is there"
    text = (root/name).read_text(encoding='utf-8')
    targets = set(re.findall(r'^([a-z][\w-]*):', makefile, re.M))
    code = ' '.join(re.findall(r'```.*?```|`[^`\n]+`', text, re.S))
    missing = [f'make {o}' for o in re.findall(r'\bmake ([a-z][a-z-]+)(?=[`\s])', code) if o not in targets]
    links = [o.partition('#')[0] for o in re.findall(r'\]\((?![a-z]+:|#)([^)\s]+)\)', text)]
    paths = re.findall(r'`((?:nbs|imgcls|tests|docs|tools|benchmarks)/[\w./]+)`', text)
    missing += [o for o in links if not ((root/name).parent/o).exists()] + [o for o in paths if not (root/o).exists()]
    assert not set(missing) - {'tests/last_full_run.txt'}, 'the result of `make test-full` is there after its first run'
