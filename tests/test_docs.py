"""The documentation site: it builds without a warning, and every page is well in a browser that can reach nothing but this machine.

The browser is a Chromium or Chrome that is on the machine; without one, or without Sphinx, these tests are skipped.
"""
import shutil, subprocess, sys, threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from project import cfg, notebooks, root, short

pytest.importorskip('sphinx', reason='no Sphinx here')
pytest.importorskip('myst_nb', reason='no myst-nb here')
browsers = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome'
arguments = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
             '--disable-sync', '--disable-default-apps', '--no-proxy-server']
wide, narrow = dict(width=1280, height=900), dict(width=390, height=844)


# --- Building and serving ------------------------------------------------------------------------------------------
def build(folder):
    "Build the site into `folder`, as `make docs` does"
    return subprocess.run([sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-c', 'docs', '-d', str(folder/'doctrees'), cfg['nbs_path'], str(folder/'site')],
                          cwd=root, capture_output=True, text=True)

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

def serve(folder):
    "A server of the files in `folder` on a free port of this machine, and its address"
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f'http://127.0.0.1:{server.server_port}/'

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The built site: its folder and address"
    folder = tmp_path_factory.mktemp('docs')
    res = build(folder)
    assert res.returncode == 0, f'{res.stdout}\n{res.stderr}'
    server, url = serve(folder/'site')
    yield SimpleNamespace(folder=folder/'site', url=url)
    server.shutdown()

@pytest.fixture(scope='module')
def context(tmp_path_factory):
    "A browser with a new profile"
    api = pytest.importorskip('playwright.sync_api', reason='no Playwright here')
    path = next((p for o in browsers if (p := shutil.which(o))), None)
    if path is None: pytest.skip(f'no browser here ({", ".join(browsers)})')
    with api.sync_playwright() as p:
        res = p.chromium.launch_persistent_context(tmp_path_factory.mktemp('profile'), executable_path=path, headless=True, args=arguments, viewport=wide)
        yield res
        res.close()


# --- What a page is looked at for ----------------------------------------------------------------------------------
class Visit:
    "A page and everything that it asked for or complained of"
    def __init__(self, context, home):
        self.home, self.requests, self.complaints, self.page = home, [], [], context.new_page()
        self.page.on('request', lambda r: self.requests.append(r.url))
        self.page.on('requestfailed', lambda r: self.complaints.append(f'failed: {r.url}'))
        self.page.on('response', lambda r: r.status >= 400 and self.complaints.append(f'{r.status}: {r.url}'))
        self.page.on('console', lambda m: m.type == 'error' and self.complaints.append(f'console: {m.text}'))
        self.page.on('pageerror', lambda e: self.complaints.append(f'error: {e}'))

    def open(self, url, until='networkidle'):
        self.page.goto(url, wait_until=until)
        return self

    def foreign(self): return [u for u in self.requests if not u.startswith((self.home, 'data:', 'blob:'))]

missing_pictures = '''async () => {
    const all = [...document.images];
    for (const o of all) { o.loading = "eager"; try { await o.decode(); } catch {} }
    return all.filter(o => !o.naturalWidth).map(o => o.src); }'''

# what sticks out of the window to the right, without what lies in a box that scrolls or hides
too_wide = '''() => {
    const width = document.documentElement.clientWidth, res = [];
    if (document.documentElement.scrollWidth > width + 1) res.push(`page: ${document.documentElement.scrollWidth} of ${width}`);
    for (const o of document.querySelectorAll(".bd-article *")) {
        const box = o.getBoundingClientRect();
        if (!box.width || box.right <= width + 1) continue;
        let up = o.parentElement, held = false;
        for (; up && !held; up = up.parentElement) held = /auto|scroll|hidden|clip/.test(getComputedStyle(up).overflowX) && up.getBoundingClientRect().right <= width + 1;
        if (!held) res.push(`${o.tagName}.${o.className}: ${Math.round(box.right)} of ${width}`);
    }
    return res.slice(0, 5); }'''

# the lowest contrast of text against what lies behind it, by WCAG's formula, and where
low_contrast = '''(least) => {
    const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true});
    const rgba = s => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = s; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
    const over = (a, b) => { const f = a[3]/255; return [0, 1, 2].map(i => a[i]*f + b[i]*(1-f)).concat(255); };
    const light = c => c.slice(0, 3).map(v => (v /= 255) <= .04045 ? v/12.92 : ((v+.055)/1.055)**2.4).reduce((s, v, i) => s + v*[.2126, .7152, .0722][i], 0);
    const behind = o => { const layers = [];
        for (; o; o = o.parentElement) { const c = rgba(getComputedStyle(o).backgroundColor); if (c[3]) layers.push(c); if (c[3] == 255) break; }
        return layers.reverse().reduce((b, c) => over(c, b), [255, 255, 255, 255]); };
    const res = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let t; t = walk.nextNode();) {
        const o = t.parentElement;
        if (!t.textContent.trim() || !o.checkVisibility({opacityProperty: true, visibilityProperty: true}) || o.closest(".headerlink, svg, math, script, style")) continue;
        const back = behind(o), a = light(over(rgba(getComputedStyle(o).color), back)), b = light(back), ratio = (Math.max(a, b)+.05)/(Math.min(a, b)+.05);
        if (ratio < least) res.push(`${ratio.toFixed(2)}: ${o.tagName}.${o.className} "${t.textContent.trim().slice(0, 40)}"`);
    }
    return [...new Set(res)].slice(0, 8); }'''

def set_theme(page, mode): page.evaluate('mode => { document.documentElement.dataset.mode = mode; document.documentElement.dataset.theme = mode; }', mode)

def look(visit):
    "Complaints about the page that `visit` has opened: what it asked for, its pictures, wide, narrow, light and dark"
    page, res = visit.page, [*visit.complaints, *(f'foreign: {o}' for o in visit.foreign())]
    page.set_viewport_size(wide)
    page.add_style_tag(content='*, ::before, ::after { transition: none !important; animation: none !important; }')
    res += [f'no picture: {o}' for o in page.evaluate(missing_pictures)]
    for size in (wide, narrow):
        page.set_viewport_size(size)
        res += [f'{size["width"]} px: sticks out: {o}' for o in page.evaluate(too_wide)]
        for mode in ('light', 'dark'):
            set_theme(page, mode)
            page.wait_for_timeout(50)
            res += [f'{size["width"]} px, {mode}: contrast {o}' for o in page.evaluate(low_contrast, 4)]
    return list(dict.fromkeys(res))


# --- Markup --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def nbdoc():
    sys.path.insert(0, str(root/'docs'))
    try: return __import__('nbdoc')
    finally: sys.path.remove(str(root/'docs'))

core = f'{cfg["lib_path"]}.core'

@pytest.mark.parametrize('md,after', [
    ('see `check_option`', f'see {{py:obj}}`check_option <{core}.check_option>`'), ('`check_option()` and', f'{{py:obj}}`check_option() <{core}.check_option>` and'),
    (f'in `{core}`', f'in {{py:mod}}`{core}`'), ('a `valid` split, a `train` split', 'a `valid` split, a `train` split'), ('`first` of `L`', '`first` of `L`'),
    ('# `check_option`\n`check_option`', f'# `check_option`\n{{py:obj}}`check_option <{core}.check_option>`'), ('```\n`check_option`\n```', '```\n`check_option`\n```'),
    ('`DataBlock`', '[`DataBlock`](https://docs.fast.ai/data.block.html#datablock)'), ('[`check_option`](x)', '[`check_option`](x)'),
    ('::: {.callout-note}\n## Title\nText\n:::', ':::{admonition} Title\n:class: note\n\nText\n:::'),
    ('::: {.callout-tip title="T" collapse="true"}\nText\n:::', ':::{admonition} T\n:class: tip\n:collapsible: closed\n\nText\n:::'),
    ('$$ x $$ {#eq-a}\nsee @eq-a', '$$ x $$ (eq-a)\nsee {eq}`eq-a`')])
def test_markup(md, after, nbdoc): assert nbdoc.markdown(md) == after

def test_constants(nbdoc):
    cell = SimpleNamespace(source="#| export\nNAMES = 'a', 'é' # what there is\n_OWN = 1\nlog = 2\nMORE: dict = {\n    1: 2}")
    assert list(nbdoc.constants(cell)) == [('NAMES', "'a', 'é'", 'what there is'), ('MORE', '{\n    1: 2}', '')]


# --- The tests -----------------------------------------------------------------------------------------------------
def test_site_builds(site):
    "Every notebook has its page, and the sidebar of the front page names them all"
    names = [p.relative_to(root/cfg['nbs_path']).with_suffix('.html').as_posix() for p in notebooks()]
    front = (site.folder/'index.html').read_text(encoding='utf-8')
    assert names and not [o for o in names if not (site.folder/o).exists()] and not [o for o in names if o != 'index.html' and f'href="{o}"' not in front]

@pytest.mark.parametrize('path', notebooks(), ids=short)
def test_page(path, site, context):
    visit = Visit(context, site.url).open(site.url + path.relative_to(root/cfg['nbs_path']).with_suffix('.html').as_posix())
    try: assert not look(visit)
    finally: visit.page.close()

def test_other_pages(site, context):
    "The index, the search page and the pages of source code"
    names = ['genindex.html', 'search.html', *(p.relative_to(site.folder).as_posix() for p in sorted((site.folder/'_modules').rglob('*.html')))]
    bad = {}
    for name in names:
        visit = Visit(context, site.url).open(site.url + name, 'load')
        if complaints := [*visit.complaints, *visit.foreign(), *visit.page.evaluate(missing_pictures)]: bad[name] = complaints
        visit.page.close()
    assert not bad

def find(context, url, words):
    "The pages that the site's search names, as their addresses, and the visit"
    visit = Visit(context, url).open(f'{url}search.html?q={words}')
    visit.page.wait_for_function('() => document.querySelector("#search-results p.search-summary")?.textContent.match(/finished|did not match|found/i)')
    visit.page.wait_for_timeout(500)
    return visit, visit.page.eval_on_selector_all('#search-results li a', 'l => l.map(o => o.href)')

def test_search(site, context):
    visit, found = find(context, site.url, 'image_loaders')
    try: assert any('loaders.html' in o for o in found) and not visit.complaints and not visit.foreign()
    finally: visit.page.close()
    visit, found = find(context, site.url, 'zzyzxqq')
    visit.page.close()
    assert not found

def test_api_entry(site, context):
    "An entry has its signature, its parameters with their meaning, and a link to the source that opens at the right place"
    visit = Visit(context, site.url).open(f'{site.url}api/00_core.html')
    entry = visit.page.locator('dl.py.function', has=visit.page.locator(f'dt#{cfg["lib_path"]}\\.core\\.check_option'))
    signature, body = entry.locator('dt').first.inner_text(), entry.locator('dd').first.inner_text()
    assert all(o in signature for o in ('check_option', 'name', 'options', '[source]')) and all(o in body for o in ('Parameters', 'options', 'Returns'))
    entry.locator('a', has_text='[source]').click()
    visit.page.wait_for_load_state('networkidle')
    assert visit.page.url.endswith('core.html#check_option') or 'check_option' in visit.page.url
    assert 'def check_option' in visit.page.locator('.highlight').inner_text() and not visit.complaints and not visit.foreign()
    visit.page.close()

def test_buttons(site, context):
    "The button for light and dark works, and so does the sidebar on a narrow window"
    visit = Visit(context, site.url).open(site.url)
    for mode in ('dark', 'light'):
        visit.page.locator('button.theme-switch-button:visible').first.click()
        visit.page.locator(f'button.theme-change-button[data-mode={mode}]:visible').first.click()
        assert visit.page.evaluate('document.documentElement.dataset.theme') == mode
    visit.page.set_viewport_size(narrow)
    visit.page.locator('button.primary-toggle:visible').first.click()
    visit.page.locator('nav.bd-links a:visible').nth(1).wait_for(timeout=5000)
    visit.page.close()


# --- That these tests can fail -------------------------------------------------------------------------------------
good_page = '<title>t</title><link rel="icon" href="data:,"><article><p style="color: #111">Text</p><img src="data:image/svg+xml,<svg xmlns=\'http://www.w3.org/2000/svg\' width=\'9\' height=\'9\'/>">'

@pytest.mark.parametrize('addition,complaint', [
    ('', None), ('<div style="overflow-x: auto"><div style="width: 3000px">a</div></div>', None),
    ('<div style="width: 600px">a</div>', '390 px: sticks out'), ('<div style="width: 3000px">a</div>', '1280 px: sticks out'),
    ('<p style="color: #999">grey</p>', 'contrast 2.85'), ('<p style="background: #222; color: #444">grey</p>', 'contrast'),
    ('<style>[data-theme=dark] article { background: #000 }</style>', 'dark: contrast'), ('<img src="gone.png">', 'no picture'), ('<img src="gone.png">', '404'),
    ('<script>console.error("broken")</script>', 'console: broken'), ('<script>nothing.there()</script>', 'error: nothing is not defined'),
    ('<img src="http://127.0.0.2:9/x.png">', 'foreign: http://127.0.0.2:9/x.png')])
def test_sample_page(addition, complaint, context, tmp_path):
    (tmp_path/'index.html').write_text(f'<!doctype html><meta charset="utf-8">{good_page}{addition}</article>')
    server, url = serve(tmp_path)
    visit = Visit(context, url).open(url)
    found = look(visit)
    visit.page.close()
    server.shutdown()
    assert (found == []) if complaint is None else any(complaint in o for o in found), found
