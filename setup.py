"""Metadata, version and requirements come from `settings.ini`, which nbdev reads too."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).resolve().parent
cfg = ConfigParser(delimiters=['='])
cfg.read(root/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
lib = cfg['lib_path']
licences = {'apache2': 'Apache-2.0', 'mit': 'MIT', 'bsd3': 'BSD-3-Clause'}
statuses = {'1': '1 - Planning', '2': '2 - Pre-Alpha', '3': '3 - Alpha', '4': '4 - Beta', '5': '5 - Production/Stable'}


def words(key): return cfg.get(key, '').split()
def lines(key): return [o.strip() for o in cfg.get(key, '').splitlines() if o.strip()]


class BuildWithNotebooks(build_py):
    "Put the notebooks that people work through into the package, for `imgcls notebooks`; a checkout has them in nbs/"
    folders = 'tutorials', 'explanations'

    def notebooks(self):
        "Pairs of a notebook and its place in the package; none for an editable installation"
        if self.editable_mode: return []
        nbs, dest = root/cfg['nbs_path'], Path(self.build_lib)/lib/'notebooks'
        return [(o, dest/o.relative_to(nbs)) for name in self.folders for o in sorted((nbs/name).glob('*.ipynb'))]

    def run(self):
        super().run()
        for source, dest in self.notebooks():
            self.mkpath(str(dest.parent))
            self.copy_file(str(source), str(dest), preserve_mode=False)

    def get_outputs(self, include_bytecode=True):
        return super().get_outputs(include_bytecode) + [str(dest) for _, dest in self.notebooks()]


setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    long_description=(root/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], keywords=words('keywords'),
    project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl'], 'Changes': f'{cfg["git_url"]}/blob/{cfg["branch"]}/CHANGELOG.md'},
    license_expression=licences[cfg['license']], license_files=['LICENSE'],
    classifiers=[f'Programming Language :: Python :: {cfg["min_python"]}',
                 'Topic :: Scientific/Engineering :: Image Recognition', 'Typing :: Typed', f'Natural Language :: {cfg["language"]}',
                 f'Development Status :: {statuses[cfg["status"]]}', f'Intended Audience :: {cfg["audience"]}'],
    packages=find_packages(include=[lib, f'{lib}.*']), cmdclass={'build_py': BuildWithNotebooks},
    package_data={k: v.split(',') for k, _, v in (o.partition('=') for o in lines('package_data'))},
    python_requires=f'>={cfg["min_python"]}', install_requires=words('requirements'),
    extras_require={k.removesuffix('_requirements'): words(k) for k in cfg if k.endswith('_requirements')},
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': [f'{lib}={lib}._modidx:d']},
    zip_safe=False)
