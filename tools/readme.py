"""Write README.md, and its pictures in docs/readme, from nbs/index.ipynb and its saved outputs; `--check` only says if they are out of date."""
import base64, os, re, sys
from html.parser import HTMLParser
from pathlib import Path

from execnb.nbio import read_nb
from nbdev.config import get_config
from nbdev.process import extract_directives

cfg = get_config(path=Path(__file__).resolve().parent.parent)
root, nbs = cfg.config_path, cfg.nbs_path
pictures = root/'docs'/'readme'
fences = re.compile(r'^( *(`{3,}|~{3,}).*?^ *\2[`~]* *$)', re.M | re.S)


class Table(HTMLParser):
    "The first table of a piece of HTML, as rows of texts"
    def __init__(self, html):
        super().__init__()
        self.rows, self.cell, self.depth = [], None, 0
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        if tag == 'table': self.depth += 1
        if tag == 'tr': self.rows.append([])
        if tag in ('td', 'th'): self.cell = ''
    def handle_endtag(self, tag):
        if tag in ('td', 'th') and self.rows: self.rows[-1].append(' '.join((self.cell or '').split())); self.cell = None
    def handle_data(self, data):
        if self.cell is not None: self.cell += data
    def markdown(self):
        "As a table of Markdown, the columns that hold numbers to the right"
        width = max(map(len, self.rows))
        rows = [[o.replace('|', '\\|') for o in r] + ['']*(width-len(r)) for r in self.rows]
        number = [all(re.fullmatch(r'[-+]?[\d.,:%]*', r[i]) for r in rows[1:]) for i in range(width)]
        rows.insert(1, ['---:' if o else '---' for o in number])
        return '\n'.join(f'| {" | ".join(r)} |' for r in rows)


def callout(m):
    "A callout of Quarto as an alert of GitHub"
    kind, attrs, body = m[2].upper(), m[3], m[4].strip()
    title = re.search(r'title="([^"]*)"', attrs)
    if not title and (title := re.match(r'#+ +(.*)\n', body)): body = body[title.end():].strip()
    lines = ([f'**{title[1]}**', ''] if title else []) + body.splitlines()
    return '\n'.join([f'> [!{kind}]'] + [f'> {o}'.rstrip() for o in lines])

def link(m):
    "A link as seen from the root of the repository"
    path, hash, anchor = m[1].partition('#')
    return f']({Path(os.path.relpath(nbs/path, root)).as_posix()}{hash}{anchor})'

def markdown(text):
    "Quarto's Markdown as GitHub's, code left alone"
    text = re.sub(r'^(:{3,}) *\{\.callout-(\w+) *([^}\n]*)\} *\n(.*?)^\1 *$', callout, text, flags=re.M | re.S)
    parts = fences.split(text)  # text, fenced code, its fence, text …
    for i in range(0, len(parts), 3): parts[i] = re.sub(r'\]\((?![a-z]+:|#|/)([^)\s]+)\)', link, parts[i])
    return ''.join(o for i, o in enumerate(parts) if i % 3 < 2)

def output(o, name, files):
    "One output as Markdown; a picture is added to `files`"
    data, text = o.get('data', {}), ''.join
    if o.output_type == 'stream': return '' if o.name == 'stderr' else f'```text\n{text(o.text).rstrip()}\n```'
    if kind := next((o for o in ('png', 'jpeg') if f'image/{o}' in data), None):
        files[pictures/f'{name}.{kind}'] = base64.b64decode(text(data[f'image/{kind}']))
        return f'![made by the code above]({(pictures/name).relative_to(root).as_posix()}.{kind})'
    if '<table' in (html := text(data.get('text/html', ''))): return Table(html).markdown()
    if 'text/markdown' in data: return markdown(text(data['text/markdown']))
    return f'```text\n{text(data["text/plain"]).rstrip()}\n```' if 'text/plain' in data else ''

def readme(cells):
    "The files to write, as a dictionary of paths and bytes, from the cells of a notebook"
    parts, files = [f'<!-- Made from nbs/{cfg.readme_nb} by tools/readme.py: do not edit -->'], {}
    for c in cells:
        if c.cell_type == 'markdown': parts.append(markdown(c.source))
        if c.cell_type != 'code': continue
        d = extract_directives(c)
        if d.keys() & {'hide', 'export', 'exporti', 'default_exp'} or d.get('include:') == ['false']: continue
        src = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M).strip()
        if src and d.get('echo:') != ['false']: parts.append(f'```python\n{src}\n```')
        if d.get('output:') != ['false']: parts += [output(o, f'{c.id}_{j}', files) for j, o in enumerate(c.outputs)]
    return {root/'README.md': ('\n\n'.join(o.strip() for o in parts if o.strip()) + '\n').encode(), **files}

def main():
    if not (nbs/cfg.readme_nb).exists(): sys.exit(f'there is no {(nbs/cfg.readme_nb).relative_to(root)} to make the README from')
    files = readme(read_nb(nbs/cfg.readme_nb).cells)
    stale = [p for p, b in files.items() if not p.exists() or p.read_bytes() != b]
    gone = [p for p in pictures.glob('*.*') if p not in files]
    if '--check' not in sys.argv:
        for p in stale:
            p.parent.mkdir(parents=True, exist_ok=True)
            p.write_bytes(files[p])
        for p in gone: p.unlink()
    elif stale or gone: sys.exit(f'out of date: {", ".join(str(p.relative_to(root)) for p in stale + gone)}: run `python tools/readme.py`')

if __name__ == '__main__': main()
