"""The page in Chromium: it sorts, filters, shows samples, copies, and is used by keyboard alone; nothing is fetched."""

import numpy as np
import pytest
from helpers.browser import FOUND, Browser
from helpers.fake_records import comparison
from PIL import Image
from safetensors.numpy import save

from qdit.cli.recall import command
from qdit.report import page
from qdit.storage.run_folder import IMAGES
from qdit.tables import load_results

pytestmark = [pytest.mark.browser, pytest.mark.skipif(FOUND is None, reason="no Chromium")]
METHODS = ("rtn", "quarot", "q_dit", "tq_dit", "qdit_w4a8")


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    file = folder / "s.html"
    file.write_text(page(load_results(comparison(folder, METHODS), "s"), "s", command))
    return file


@pytest.fixture(scope="module")
def browser():
    with Browser() as found:
        yield found


@pytest.fixture
def opened(browser, html):
    browser.look(html)
    yield browser
    assert browser.problems() == []


def names(browser, column=1):
    script = "[...document.querySelectorAll('#results tbody tr')].filter(row => row.offsetParent)"
    return browser.run(f"{script}.map(row => row.cells[{column - 1}].textContent.trim())")


def click(browser, selector):
    browser.run(f"document.querySelector({selector!r}).click()")


def test_columns_sort_with_families_together_or_not(opened):
    click(opened, "[data-sort='0']")  # the best SQNR first
    assert names(opened)[:3] == ["full precision", "quarot", "rtn"]
    assert opened.run("document.querySelector('th [data-sort=\"0\"]').parentElement.ariaSort") == "descending"
    click(opened, "#together")
    assert names(opened)[:2] == ["full precision", "qdit_w4a8"]
    values = [float(text.split()[0]) for text in names(opened, 5)[1:]]
    assert values == sorted(values, reverse=True)
    click(opened, "[data-sort='0']")
    assert names(opened)[-1] == "qdit_w4a8"


def test_filters_hold_in_the_table_and_in_the_chart(opened):
    assert opened.run("document.querySelectorAll('.point').length") == 20
    click(opened, "[data-filter=bits][value=w4a4]")
    click(opened, "[data-filter=family][value=Hybrids]")
    assert len(names(opened)) == 1 + 4 * 3
    assert opened.run("document.querySelectorAll('.point').length") == 12


def test_columns_are_chosen(opened):
    shown = (
        "[...document.querySelectorAll('#results thead th')].filter(th => th.offsetParent).map(th => th.textContent)"
    )
    assert not any(text.startswith("SSIM") for text in opened.run(shown))
    place = opened.run(
        "[...document.querySelectorAll('[data-column]')].findIndex(b => /SSIM/.test(b.parentElement.textContent))"
    )
    click(opened, f"[data-column='{place}']")
    assert any(text.startswith("SSIM") for text in opened.run(shown))


@pytest.mark.parametrize("allowed", [True, False])
def test_the_command_is_copied(opened, allowed):
    """Also where a page that was opened from a file may not write to the clipboard by itself."""
    writes = "async text => { window.copied = text; }" if allowed else "async () => { throw new Error('not allowed'); }"
    opened.run(f"navigator.clipboard.writeText = {writes}")
    opened.run("document.addEventListener('copy', () => { window.copied = getSelection().toString(); })")
    click(opened, "#row-1 .copy")
    after = "new Promise(done => setTimeout(() => done(window.copied), 100))"
    assert opened.run(after).startswith("qdit quantizer=rtn bits=w8a8 ")
    assert opened.run("document.querySelector('#row-1 .copy').textContent") == "copied"
    assert opened.run("document.querySelector('#said').textContent").startswith("Copied: qdit quantizer=rtn")


def test_the_slider_shows_more_or_less_of_the_quantized_samples(opened):
    cut = "getComputedStyle(document.querySelector('.pair .own')).clipPath"
    assert "50%" in opened.run(cut)
    opened.run("document.querySelector('#wipe').focus()")
    opened.press("ArrowRight", "ArrowRight")
    assert "48%" in opened.run(cut)
    assert opened.run("document.querySelectorAll('#tiles figure').length") == 16
    assert opened.run("document.querySelectorAll('#worst figure').length") == 8


def test_the_chart_and_the_samples_are_reached_by_keyboard(opened):
    opened.run("document.querySelector('#pareto-y').focus()")
    opened.press("Tab")
    first = opened.run("document.activeElement.ariaLabel")
    opened.press("ArrowRight")
    second = opened.run("document.activeElement.ariaLabel")
    assert first != second
    assert opened.run("document.querySelector('.tip strong').textContent") == second.split(":")[0]
    opened.press("Enter")
    shown = opened.run("document.querySelector('#run').selectedOptions[0].textContent")
    assert shown == second.split(":")[0]
    assert opened.run("document.querySelector('tr.chosen').dataset.name") == shown.split()[0]


def test_a_point_tells_its_numbers_to_the_mouse(opened):
    opened.run("document.querySelector('#cost').scrollIntoView({behavior: 'instant'})")
    where = "(box => [box.x + box.width / 2, box.y + box.height / 2])"
    x, y = opened.run(f"{where}(document.querySelectorAll('.point .shape')[3].getBoundingClientRect())")
    opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert "SQNR (dB) ↑: " in opened.run("document.querySelector('.tip').textContent")
    opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    assert opened.run("document.querySelector('.tip')") is None


def test_the_cost_axis_is_chosen(opened):
    assert opened.run("[...document.querySelectorAll('#pareto-x option')].map(o => o.textContent)") == [
        *("W bits (model)", "MB", "GBOPs")
    ]
    labels = "[...document.querySelectorAll('#pareto svg > text')].map(t => t.textContent)"
    assert "GBOPs" not in opened.run(labels)
    opened.run("const x = document.querySelector('#pareto-x'); x.value = 'gbops'; x.dispatchEvent(new Event('change'))")
    assert "GBOPs" in opened.run(labels)


def test_error_maps_are_read_by_keyboard(opened):
    opened.run("document.querySelector('#map-time td.cell').focus()")
    opened.press("ArrowRight", "ArrowDown")
    said = opened.run("document.querySelector('#map-time output').textContent")
    assert said.startswith("quarot w4a4, timestep 949: ")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1400, 400])
def test_nothing_is_wider_than_the_window(browser, html, width, dark):
    browser.look(html, width, 900, dark)
    assert browser.run("document.documentElement.scrollWidth") == width
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")


def test_clips_play_and_halt(browser, tmp_path):
    runs = comparison(tmp_path, ("rtn",))
    for file in runs.glob(f"s/*/{IMAGES}"):
        own = 0 if "rtn" in str(file) else 255
        clips = np.stack([np.full((4, 3, 32, 32), own * (time % 2), np.uint8) for time in range(6)], 1)
        file.write_bytes(save({"images": clips}))
    html = tmp_path / "clips.html"
    html.write_text(page(load_results(runs, "s"), "s", command))
    browser.look(html)
    place = (
        "new Promise(d => setTimeout(() => d(document.querySelector('#tiles .base').style.backgroundPositionY), 400))"
    )
    assert browser.run(place) != browser.run(place)
    click(browser, "#play")
    assert browser.run(place) == browser.run(place)
    assert browser.run("document.querySelector('#play').textContent") == "Play"
    browser.run("document.querySelector('#tiles').scrollIntoView()")
    browser.photograph(tmp_path / "clips.png")
    assert Image.open(tmp_path / "clips.png").size == (1400, 1000)
    assert browser.problems() == []
