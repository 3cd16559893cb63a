"""The review of labels in a real JupyterLab, in a browser that can reach nothing but this machine: keys and buttons, a kernel that is restarted, both themes."""
import json, os, secrets, socket, subprocess, sys, time, urllib.request
from contextlib import contextmanager

import pytest
import test_docs as browser
from imgcls.evaluate.clean import read_decisions
from project import root

pytest.importorskip('jupyterlab', reason='no JupyterLab here')
pytest.importorskip('ipywidgets', reason='no ipywidgets here')
context = browser.context  # fixture

code = '''import pandas as pd
from imgcls.data.samples import sample
from imgcls.evaluate.review import review
digits = '0123456789'
suspects = pd.DataFrame(dict(file=[f'{o}/000{o}.png' for o in digits], label=[*digits], suggested=[*digits[1:], '0'], probability=0.1, suggested_probability=0.8))
suspects.loc[7, 'file'] = 'gone_'*40 + '.png'
suspects.attrs.update(root=sample('digits'), vocab=[*digits, 'dress'])
screen = review(suspects, 'decisions.csv', side=200)
screen'''
settings = {'themes': {'adaptive-theme': True}, 'notification': {'fetchNews': 'false', 'checkForUpdates': False, 'doNotDisturbMode': True}}
places = dict(HOME='', IPYTHONDIR='ipython', JUPYTER_CONFIG_DIR='config', JUPYTER_DATA_DIR='data', JUPYTER_RUNTIME_DIR='runtime', JUPYTERLAB_SETTINGS_DIR='settings',
              JUPYTERLAB_WORKSPACES_DIR='workspaces')


# --- JupyterLab ----------------------------------------------------------------------------------------------------
def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def notebook(*cells):
    made = [dict(cell_type='code', id=f'cell-{i}', source=o, metadata={}, outputs=[], execution_count=None) for i, o in enumerate(cells)]
    return dict(cells=made, metadata=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python')), nbformat=4, nbformat_minor=5)

def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))

def answers(url):
    try: return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError: return False

@contextmanager
def jupyterlab(folder):
    "Until the `with` block ends, a server of `folder/work`; its settings and everything that it writes are beside that"
    home, token, port = folder/'home', secrets.token_hex(8), free_port()
    for name, o in settings.items(): write(home/f'settings/@jupyterlab/apputils-extension/{name}.jupyterlab-settings', o)
    options = {'ServerApp.ip': '127.0.0.1', 'ServerApp.port': port, 'ServerApp.port_retries': 0, 'ServerApp.root_dir': folder/'work', 'ServerApp.open_browser': False,
               'ServerApp.allow_root': True, 'IdentityProvider.token': token, 'LabApp.extension_manager': 'readonly'}
    env = {**os.environ, **{k: str(home/o) for k, o in places.items()}, 'PYTHONPATH': str(root)}
    with open(home/'log', 'wb') as log:
        server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', *(f'--{k}={v}' for k, v in options.items())], env=env, cwd=folder/'work', stdout=log, stderr=log)
    url, end = f'http://127.0.0.1:{port}/', time.monotonic() + 60
    try:
        while not answers(f'{url}api/status?token={token}'):
            assert server.poll() is None and time.monotonic() < end, (home/'log').read_text()
            time.sleep(0.1)
        yield f'{url}lab/tree/review.ipynb?token={token}', url
    finally:
        server.terminate()  # which ends its kernels too
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()

class Lab:
    "The notebook in the browser, and the file of decisions"
    def __init__(self, visit, folder): self.visit, self.page, self.path = visit, visit.page, folder/'work/decisions.csv'

    def run(self):
        "Run the first cell as soon as the kernel can; then the review is there"
        self.page.get_by_text('(ipykernel) | Idle').wait_for(timeout=40_000)
        self.page.locator('.jp-CodeCell .cm-content').first.click()
        self.page.keyboard.press('Shift+Enter')
        self.keys.wait_for(timeout=40_000)

    @property
    def keys(self): return self.page.get_by_role('textbox', name='keys')
    def text(self): return self.page.locator('.widget-html-content').inner_text()
    def wait(self, text): self.page.locator('.widget-html-content', has_text=text).wait_for(timeout=20_000)
    def button(self, name): self.page.locator('.widget-button', has_text=name).click()
    def decisions(self): return {o.file[0]: f'{o.decision} {o.new_label}'.strip() for o in read_decisions(self.path).itertuples()}
    def cells(self): return self.page.locator('.jp-Notebook .jp-Cell').count(), self.page.locator('.jp-Notebook .jp-Cell').evaluate_all('l => l.map(o => o.className.match(/jp-(Code|Markdown|Raw)Cell/)[0])')

    def press(self, *keys, then):
        for o in keys: self.page.keyboard.press(o)
        self.wait(then)

@pytest.fixture
def lab(context, tmp_path):
    write(tmp_path/'work/review.ipynb', notebook(code, '1 + 1'))
    with jupyterlab(tmp_path) as (address, home):
        visit = browser.Visit(context, home).open(address, 'load')
        yield Lab(visit, tmp_path)
        visit.page.close()


# --- The steps, in one test: they follow each other, and the tests of a module may be shared out ----------------------
def keys_and_buttons(lab):
    "Each key and button does what it says and nothing else, above all none of JupyterLab's commands"
    lab.run()
    before = lab.cells()
    assert before == (2, ['jp-CodeCell']*2) and '0 of 10 decided; suspect 1: 0/0000.png' in lab.text()
    lab.keys.click()
    lab.press('k', then='1 of 10 decided; suspect 2')
    lab.press('r', 'x', 'n', then='3 of 10 decided; suspect 5')                            # faster than the kernel answers
    lab.press('b', '9', then='4 of 10 decided; suspect 5')                                 # 3 is an 8
    assert lab.decisions() == {'0': 'keep', '1': 'relabel 2', '2': 'remove', '3': 'relabel 8'}
    lab.press('d', 'd', 'a', 'm', 'y', 'c', 'v', 'z', 'ArrowUp', 'ArrowDown', 'Escape', 'Home', then='this key has nothing to do here')
    lab.press('k', then='5 of 10 decided; suspect 6')                                      # with the cursor at the beginning of what was typed
    lab.press('u', then='4 of 10 decided; suspect 5')
    assert lab.cells() == before and list(lab.decisions()) == [*'0123']
    lab.button('keep')
    lab.wait('5 of 10 decided; suspect 6')
    lab.page.wait_for_function('() => document.activeElement.matches(".widget-text input")')
    lab.press('x', then='6 of 10 decided; suspect 7')                                      # on a button, JupyterLab would have cut the cell
    lab.button('undo')
    lab.wait('5 of 10 decided; suspect 6')
    chosen = lab.page.get_by_role('combobox', name='class')
    chosen.click()
    lab.page.keyboard.type('dress')                                                        # in a list, JupyterLab would take the d's and so on
    lab.press('Enter', then='6 of 10 decided; suspect 7')
    assert chosen.input_value() == '' and lab.decisions()['5'] == 'relabel dress' and lab.cells() == before

def restart(lab):
    "A new kernel goes on where the old one was"
    page, decided = lab.page, lab.decisions()
    page.get_by_role('menuitem', name='Kernel', exact=True).click()
    page.get_by_text('Restart Kernel and Clear Outputs of All Cells').click()
    page.locator('.jp-Dialog button.jp-mod-warn').click()
    lab.keys.wait_for(state='detached')
    lab.run()
    lab.wait('6 of 10 decided; suspect 7')
    lab.keys.click()
    lab.press('u', then='5 of 10 decided; suspect 6')                                      # even the last decision of the old kernel can be taken back
    lab.press('r', 'k', then='This photo can’t be read.')                                  # the eighth is gone
    assert lab.decisions() == decided | {'5': 'relabel 6', '6': 'keep'} and lab.path.read_text().count('\n') == 8

def looks_well(lab, theme):
    "All can be read and nothing sticks out; nothing was asked for elsewhere, and nothing complained"
    page = lab.page
    page.emulate_media(color_scheme=theme)
    page.wait_for_function('theme => document.body.dataset.jpThemeLight == String(theme == "light")', arg=theme)
    page.wait_for_timeout(300)
    lab.keys.click()
    lab.press('q', then='this key has nothing to do here')
    style = page.add_style_tag(content='body * { visibility: hidden } .jp-OutputArea .jupyter-widgets, .jp-OutputArea .jupyter-widgets * { visibility: visible }')
    found = page.evaluate(browser.low_contrast, 4)
    style.evaluate('o => o.remove()')
    page.set_viewport_size(dict(width=900, height=900))
    page.wait_for_timeout(300)
    ends = page.locator('.jp-OutputArea-output').first.evaluate('o => [...o.querySelectorAll("*"), o].map(p => p.getBoundingClientRect().right)')
    page.set_viewport_size(browser.wide)
    assert max(ends) <= ends[-1] + 1 and not found
    assert not lab.visit.foreign() and not [o for o in lab.visit.complaints if 'error:' in o]

def test_review_in_jupyterlab(lab):
    keys_and_buttons(lab)
    restart(lab)
    for theme in ('light', 'dark'): looks_well(lab, theme)
