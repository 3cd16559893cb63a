"""The report of a run in a browser that can reach nothing: wide and narrow, light and dark, on paper, by the keyboard, and attacked."""
import re

import pytest
import test_docs as browser
import test_report as world
from imgcls.core import figure
from imgcls.evaluate.page import html_chart, html_images, html_page

context, made = browser.context, world.made  # fixtures

@pytest.fixture
def visit(made, context):
    res = browser.Visit(context, made.path.as_uri()).open(made.path.as_uri())
    yield res
    res.page.close()

def test_looks_well(visit):
    "No request, no complaint, nothing that sticks out, enough contrast: wide and narrow, light and dark"
    visit.page.evaluate('document.querySelector("main").classList.add("bd-article")')
    assert not browser.look(visit) and set(visit.requests) - {o for o in visit.requests if o.startswith('data:')} == {visit.home}

def column(page, table, i): return page.evaluate('([t, i]) => [...document.querySelectorAll("table")[t].tBodies[0].rows].map(o => o.cells[i].dataset.v ?? o.cells[i].textContent)', [table, i])

def test_sorting(visit):
    "By the keyboard: numbers the largest first, then the smallest; text from A to Z"
    page = visit.page
    titles = page.locator('caption').all_text_contents()
    table = next(i for i, o in enumerate(titles) if o.startswith('Metrics on valid'))
    heads = page.locator('table').nth(table).locator('th')
    before = column(page, table, 1)
    heads.nth(1).locator('button').focus()
    page.keyboard.press('Enter')
    assert heads.nth(1).get_attribute('aria-sort') == 'descending' and column(page, table, 1) == sorted(before, key=float, reverse=True)
    page.keyboard.press('Enter')
    assert heads.nth(1).get_attribute('aria-sort') == 'ascending' and column(page, table, 1) == sorted(before, key=float)
    heads.nth(0).locator('button').click()
    assert heads.nth(1).get_attribute('aria-sort') is None and column(page, table, 0) == sorted(column(page, table, 0))

def test_theme(visit):
    "It follows the system, until the button is pressed"
    page, ground = visit.page, 'getComputedStyle(document.body).backgroundColor'
    page.emulate_media(color_scheme='dark')
    dark = page.evaluate(ground)
    page.emulate_media(color_scheme='light')
    light = page.evaluate(ground)
    assert (light, dark) == ('rgb(255, 255, 255)', 'rgb(21, 24, 28)')
    page.locator('#theme').click()
    assert page.evaluate(ground) == dark and page.locator('#theme').inner_text() == 'Light colours'

def test_print(visit):
    "On paper: light even from a dark screen, no button, whole tables, nothing wider than the paper"
    page = visit.page
    page.set_viewport_size(dict(width=680, height=960))
    browser.set_theme(page, 'dark')
    page.emulate_media(media='print')
    assert page.evaluate('getComputedStyle(document.body).backgroundColor') == 'rgb(255, 255, 255)' and not page.locator('#theme').is_visible()
    assert page.evaluate('document.documentElement.scrollWidth') <= 681
    assert page.evaluate('[...document.querySelectorAll(".scroll")].every(o => o.scrollHeight <= o.clientHeight + 1)')
    data = page.pdf(format='A4')
    assert data[:5] == b'%PDF-' and 2 < len(re.findall(rb'/Type\s*/Page\b', data)) < 30

def test_no_foreign_script(made, context, tmp_path):
    "If the escaping failed, the policy would still run nothing and ask for nothing"
    path = tmp_path/'attacked.html'
    path.write_text(made.text.replace('</main>', '<script>document.title = "taken"</script><img src="http://127.0.0.2:9/x.png" onerror="document.title = 1"></main>'), encoding='utf-8')
    visit = browser.Visit(context, path.as_uri()).open(path.as_uri())
    try: assert visit.page.title().startswith('Report of') and sum('Content Security Policy' in o for o in visit.complaints) >= 2
    finally: visit.page.close()

def test_chart_and_sheet_in_a_page(context, tmp_path):
    "The parts by themselves: a figure with a Chinese title, a sheet with a photo and one that is gone"
    fig, ax = figure(width=3, height=2)
    ax.plot([1, 2])
    path = tmp_path/'page.html'
    path.write_text(html_page('T', {'A': html_chart(fig, 'a line that rises'), 'B': html_images([(world.photo(), ['a.jpg']), (tmp_path/'gone.jpg', ['gone.jpg'])])}), encoding='utf-8')
    visit = browser.Visit(context, path.as_uri()).open(path.as_uri())
    try: assert not browser.look(visit) and visit.page.locator('.gone').inner_text() == 'missing'
    finally: visit.page.close()
