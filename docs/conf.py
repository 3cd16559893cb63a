"""How the documentation site is made: `sphinx-build -W --keep-going -q -c docs nbs _docs`."""
import sys, warnings
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(root), str(root/'docs')]
warnings.filterwarnings('ignore', category=FutureWarning, module='torch')  # what fastai's imports use of it
cfg = ConfigParser(delimiters=['='])
cfg.read(root/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

project, author, release = cfg['title'], cfg['author'], cfg['version']
copyright = cfg['copyright']
extensions = ['myst_nb', 'sphinx_copybutton', 'sphinx.ext.viewcode', 'nbdoc']
exclude_patterns = ['**/.ipynb_checkpoints', '_*']
suppress_warnings = ['myst.header']  # nbdev's habit: `####` below the `##` of a name

nb_execution_mode = 'off'
nb_merge_streams = True
nb_render_markdown_format = 'myst'
myst_enable_extensions = ['amsmath', 'attrs_block', 'attrs_inline', 'colon_fence', 'dollarmath', 'fieldlist', 'tasklist']
myst_heading_anchors = 4

add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
toc_object_entries = False  # the headings name them
modindex_common_prefix = [f'{cfg["lib_path"]}.']

html_theme = 'sphinx_book_theme'
html_title = project
html_favicon = html_logo = 'static/logo.svg'
html_static_path = ['static']
html_css_files = ['custom.css']
html_math_renderer = 'mathml'
html_sourcelink_suffix = ''
html_context = dict(default_mode='auto')
html_theme_options = dict(
    repository_url=cfg['git_url'], repository_branch=cfg['branch'], path_to_docs=cfg['nbs_path'],
    use_repository_button=True, use_issues_button=True, use_download_button=True, show_toc_level=2, home_page_in_toc=True, navbar_persistent=[],
    logo=dict(text=project), pygments_light_style='a11y-high-contrast-light', pygments_dark_style='a11y-high-contrast-dark',
    launch_buttons=dict(colab_url='https://colab.research.google.com', notebook_interface='jupyterlab'))
