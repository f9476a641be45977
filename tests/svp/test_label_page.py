"""The labelling page in a real browser: by keyboard, reloaded, in the dark, on a narrow screen.

Needs playwright and a Chromium of the system; SVP_SCREENSHOTS names a folder to keep pictures in.
"""

import os
import shutil
import threading
from pathlib import Path

import pytest
from label_material import add_round, new_study, pool_ids

from svp.study.label import label_round
from svp.study.labels import read_labels

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
]
KEY = {"blue": "1", "green": "2", "red": "3"}
ITEMS = 51


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def served(tmp_path):
    study = new_study(tmp_path, train=ITEMS // 3)
    ids = pool_ids(study)
    order = [ids[(7 * place) % len(ids)] for place in range(len(ids))]
    add_round(study, order)
    opened, said = threading.Event(), []

    def announce(url):
        said.append(url)
        opened.set()

    thread = threading.Thread(
        target=label_round, args=(study,), kwargs={"opened": announce, "idle_s": 120}
    )
    thread.start()
    assert opened.wait(60)
    yield study, order, said[0]
    thread.join(150)


def _is_at(page, rank):
    playwright.expect(page.locator("#rank")).to_have_text(f"Image {rank} of {ITEMS}")


def _picture(page, name):
    folder = os.environ.get("SVP_SCREENSHOTS")
    if folder:
        page.wait_for_load_state("networkidle")
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def test_fifty_images_by_keyboard_with_a_reload_in_the_middle(browser, served):
    study, order, url = served
    truth = {name: name.split("/")[1] for name in order}
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.goto(url)
    _is_at(page, 1)
    assert "token" not in page.url
    keyboard = page.keyboard
    for name in order[:20]:
        keyboard.press(KEY[truth[name]])
    _is_at(page, 21)
    _picture(page, "light")
    page.emulate_media(color_scheme="dark")
    _picture(page, "dark")
    page.emulate_media(color_scheme="light")
    page.reload()
    _is_at(page, 21)
    assert read_labels(study) == {name: truth[name] for name in order[:20]}
    # Keys faster than the disk, and a reload right behind them: what was acknowledged is there.
    for name in order[20:30]:
        keyboard.press(KEY[truth[name]])
    playwright.expect(page.locator("#count")).to_contain_text("30 of")
    page.reload()
    _is_at(page, 31)
    # A wrong answer, taken back.
    wrong = "red" if truth[order[30]] != "red" else "blue"
    keyboard.press(KEY[wrong])
    _is_at(page, 32)
    keyboard.press("u")
    _is_at(page, 31)
    keyboard.press(KEY[truth[order[30]]])
    _is_at(page, 32)
    # A skipped one comes back at the end; the guess is shown when asked for, and accepted.
    keyboard.press("Space")
    _is_at(page, 33)
    playwright.expect(page.locator("#count")).to_contain_text("1 skipped")
    playwright.expect(page.locator("#guess-text")).to_be_empty()
    keyboard.press("g")
    playwright.expect(page.locator("#guess-text")).to_contain_text("red, 75 %")
    keyboard.press("Enter")
    _is_at(page, 34)
    keyboard.press("ArrowLeft")
    _is_at(page, 33)
    keyboard.press(KEY[truth[order[32]]])
    _is_at(page, 34)
    # A class that nobody thought of.
    keyboard.press("n")
    keyboard.type("deep teal")
    playwright.expect(page.locator("#matches")).to_contain_text("New class “deep teal”")
    _picture(page, "typing")
    keyboard.press("Enter")
    _is_at(page, 35)
    keyboard.press("4")
    _is_at(page, 36)
    keyboard.press("?")
    playwright.expect(page.locator("#help")).to_be_visible()
    _picture(page, "help")
    keyboard.press("1")  # not an answer while the keys are shown
    keyboard.press("Escape")
    playwright.expect(page.locator("#help")).to_be_hidden()
    _is_at(page, 36)
    for name in order[35:50]:
        keyboard.press(KEY[truth[name]])
    _is_at(page, 51)
    playwright.expect(page.locator("#count")).to_contain_text("49 of")
    keyboard.press(KEY[truth[order[50]]])
    _is_at(page, 32)  # the skipped one
    page.set_viewport_size({"width": 390, "height": 844})
    _picture(page, "narrow")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    expected = {name: truth[name] for name in order if name != order[31]}
    expected |= {order[33]: "deep teal", order[34]: "deep teal"}
    assert read_labels(study) == expected
    assert len(expected) == 50
    # Somebody without the token, on the same machine.
    stranger = browser.new_context().new_page()
    address = url.partition("?")[0]
    assert stranger.goto(address).status == 403
    assert stranger.goto(f"{address}state").status == 403
    assert "Label" not in stranger.title()
    assert all(link.startswith(address) for link in asked)
    assert errors == []
    page.click("#finish")
    playwright.expect(page.locator("#done")).to_contain_text("50 of 51 labelled")
    context.close()
