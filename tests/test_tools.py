"""The tools that write notebooks' outputs and the readme."""
import sys

import pytest
from project import root

pytest.importorskip('nbdev.clean', reason='no nbdev 2 here (it needs fastcore 1)', exc_type=Exception)
nbformat = pytest.importorskip('nbformat')
pytest.importorskip('nbclient')
sys.path.insert(0, str(root/'tools'))
import readme  # noqa: E402
import run_nbs  # noqa: E402


# --- run_nbs -------------------------------------------------------------------------------------------------------
def stream(text, name='stdout'): return nbformat.v4.new_output('stream', name=name, text=text)

def shown(**data): return nbformat.v4.new_output('display_data', data={k.replace('_', '/'): v for k, v in data.items()})

@pytest.mark.parametrize('before,after', [
    ('{root}/nbs/x.png', '…/nbs/x.png'), ('{home}/photos', '~/photos'), ("Path('{data}/clothing/train')", "Path('…/clothing/train')"),
    ('{cache}/digits', '~/.cache/imgcls/digits'), ('{tmp}/tmpab12_cd9/run', '…/run'), ('{tmp}/photos', '…/photos'), ('in {root}.', 'in ….'),
    ('{tmp}/ipykernel_123/456.py:3: UserWarning: x', '<cell>:3: UserWarning: x'), ('{home}2/x', '{home}2/x'), ('a{root}/x', 'a{root}/x'), ('1/2', '1/2')])
def test_strip_paths(before, after, monkeypatch, tmp_path):
    "Folders of this machine get short names, other paths stay"
    folders = dict(root=run_nbs.root, home='/var/ann', data='/big/photos', cache='/fast/cache', tmp='/var/tmp')
    monkeypatch.setattr(run_nbs.Path, 'home', classmethod(lambda cls: cls('/var/ann')))
    monkeypatch.setenv('IMGCLS_DATA', folders['data'])
    monkeypatch.setenv('IMGCLS_CACHE', folders['cache'])
    assert run_nbs.strip_paths(before.format(**folders), run_nbs.machine_paths('/var/tmp')) == after.format(**folders)

@pytest.mark.parametrize('text,after', [
    ('a\nb\n', 'a\nb\n'), ('12%|█▏  | 3/24 [00:00<00:01, 15it/s]\r100%|████| 24/24 [00:01<00:00, 15it/s]\n', ''),
    ('one\n100%|████| 24/24 [00:01<00:00, 15it/s]\ntwo\n', 'one\ntwo\n'), ('7it [00:00, 3.2it/s]\n', ''), ('reading 1\rreading 2\n', 'reading 2\n'),
    ('\x1b[32m100%|███| 2/2 [00:00<00:00]\x1b[0m', ''), ('50% of | them | [x]', '50% of | them | [x]')])
def test_stream_text(text, after): assert run_nbs.stream_text(text) == after

def test_tidy():
    "Bars go, streams are merged, fastai's table is kept as HTML and as text"
    table = '<table class="fastprogress"><tr><th>epoch</th><th>train_loss</th></tr><tr><td>0</td><td>0.5</td></tr></table>'
    outputs = [stream('a\n'), stream('b\n'), shown(text_html='\n<style>\n  progress { border: none; }\n</style>\n'), shown(text_html='<div></div>'),
               shown(text_html='<div><progress value="3"></progress></div>'), stream('7it [00:00, 3it/s]\n', 'stderr'),
               shown(text_html=table, text_plain=table, text_markdown='```html```'), shown(text_html='<b>kept</b>')]
    res = run_nbs.tidy(outputs)
    assert [o.output_type for o in res] == ['stream', 'display_data', 'display_data'] and res[0].text == 'a\nb\n'
    assert res[1].data == {'text/html': table, 'text/plain': 'epoch       train_loss\n0           0.5'} and res[2].data['text/html'] == '<b>kept</b>'

@pytest.mark.parametrize('a,b,same', [('took 1.2 s', 'took 3 s', True), ('00:03', '00:04', True), ('2026-01-02 03:04:05', '2026-06-07 08:09:10', True),
                                      ('accuracy 0.91', 'accuracy 0.92', False), ('3 images', '4 images', False)])
def test_same_but_times(a, b, same): assert run_nbs.same_but_times([stream(a)], [stream(b)]) is same

def make_notebook(path, *sources):
    cells = [nbformat.v4.new_code_cell(o, id=f'{i:08x}') for i, o in enumerate(sources)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python'))), path)
    return path

def texts(path): return [''.join(o.get('text', o.get('data', {}).get('text/plain', '')) for o in c.outputs) for c in nbformat.read(path, 4).cells]

def test_run(tmp_path, monkeypatch):
    "A notebook runs in its own folder with this checkout, `slow` and `data` cells only when asked for; the source stays when there is another place"
    monkeypatch.delenv('IMGCLS_DATA', raising=False)
    src = make_notebook(tmp_path/'a.ipynb', 'import os, imgcls\nfrom pathlib import Path\nprint(Path.cwd().name, Path(imgcls.__file__).parent)',
                        '#| slow\nprint("slow")', '#| data\nprint("data", os.environ["IMGCLS_DATA"])', '#| eval: false\n1/0')
    before, dest = src.read_text(), tmp_path/'out'/'a.ipynb'
    run_nbs.run(src, dest)
    assert texts(dest) == [f'{tmp_path.name} …/imgcls\n', '', '', ''] and src.read_text() == before
    monkeypatch.setenv('IMGCLS_DATA', str(tmp_path/'photos'))
    run_nbs.run(src, dest, ['slow'])
    assert texts(dest)[1] == 'slow\n' and texts(dest)[2].startswith('data ') and str(tmp_path) not in texts(dest)[2]

def test_run_failing(tmp_path):
    "A notebook that fails is left as it was"
    src = make_notebook(tmp_path/'a.ipynb', 'print(1)', '1/0')
    before = src.read_text()
    with pytest.raises(run_nbs.failures, match='ZeroDivisionError'): run_nbs.run(src, src)
    assert src.read_text() == before and [o.name for o in tmp_path.iterdir()] == ['a.ipynb']


# --- readme --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('text,after', [
    ('[a](tutorials/1_x.ipynb#part)', '[a](nbs/tutorials/1_x.ipynb#part)'), ('[a](../LICENSE)', '[a](LICENSE)'), ('[a](https://b.c)', '[a](https://b.c)'),
    ('[a](#part)', '[a](#part)'), ('```python\nx[0](y)\n```', '```python\nx[0](y)\n```'), ('![a](images/b.png)', '![a](nbs/images/b.png)'),
    ('::: {.callout-note}\n## Title\nText\n:::', '> [!NOTE]\n> **Title**\n>\n> Text'),
    ('::: {.callout-tip title="Title" collapse="true"}\nText\n\nmore\n:::', '> [!TIP]\n> **Title**\n>\n> Text\n>\n> more')])
def test_readme_markdown(text, after): assert readme.markdown(text) == after

def test_readme_table():
    html = '<style>x</style><table><tr><th></th><th>name</th><th>n</th></tr><tr><th>0</th><td>a | b</td><td>1,200</td></tr></table>'
    assert readme.Table(html).markdown() == '|  | name | n |\n| ---: | --- | ---: |\n| 0 | a \\| b | 1,200 |'

def test_readme_cells():
    "Hidden and exported cells stay out, outputs go in, a picture becomes a file"
    def cell(kind, source, *outputs): return nbformat.from_dict(dict(cell_type=kind, source=source, id='c1', outputs=list(outputs)))
    cells = [cell('markdown', '# Title'), cell('code', '#| hide\nsecret()'), cell('code', '#| echo: false\nquiet()', stream('said')), cell('code', 'f()', shown(image_png='aGk='))]
    files = readme.readme(cells)
    text = files[root/'README.md'].decode()
    assert '# Title' in text and 'secret' not in text and 'quiet()' not in text and 'said' in text and '```python\nf()\n```' in text
    assert files[root/'docs'/'readme'/'c1_0.png'] == b'hi' and '(docs/readme/c1_0.png)' in text


def test_photographs_are_saved_as_jpeg_and_plots_stay_png():
    "Noise for a photograph, a line for a plot"
    import base64, io
    import numpy as np
    from PIL import Image
    def png(values):
        file = io.BytesIO()
        Image.fromarray(values).save(file, 'PNG')
        return base64.b64encode(file.getvalue()).decode()
    photo = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    plot = np.full((300, 300, 3), 255, np.uint8)
    first, second = run_nbs.tidy([shown(image_png=png(photo)), shown(image_png=png(plot))])
    assert list(first['data']) == ['image/jpeg'] and Image.open(io.BytesIO(base64.b64decode(first['data']['image/jpeg']))).size == (300, 300)
    assert list(second['data']) == ['image/png']
