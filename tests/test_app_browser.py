"""The app in a real browser: upload, ask, see the answers, what goes wrong, two users at once, a prompt learned live."""

from __future__ import annotations

import io
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image


pytest.importorskip("gradio", reason='the app is an extra: pip install "transferable-vp[app]"')
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright import sync_api as api

from transferable_vp.app import launch, make_app


NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
# None of them is about what is tested: a container has no sandbox, and the browser's own services want a network.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
# A machine may be busy; nothing here is about speed.
PATIENCE = 180_000

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {', '.join(NAMES)} is installed"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("prompts") / "noise"
    tiny.noise_prompt(canvas_size=64, border_size=8).save_pretrained(folder)
    app = make_app([str(folder)], runs=None, n_train=32, n_test=4)
    _, local, _ = launch(app, prevent_thread_lock=True, quiet=True)
    yield local
    app.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the app as a new user. At the end nothing may have been asked of another machine, and no script failed."""
    contexts, outside, failed = [], [], []

    def open_page(width: int = 1280, height: int = 900) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: outside.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(address)
        # Once the prompt is described, the page has all that it begins with.
        page.wait_for_selector("#try-about p")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in outside if not url.startswith((address, "data:", "blob:"))] == []
    assert failed == []


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind)
    return file.getvalue()


def upload(page: Any, name: str, data: bytes, kind: str = "image/png") -> None:
    page.set_input_files("#try-picture input[type=file]", {"name": name, "mimeType": kind, "buffer": data})


def error(page: Any, where: str) -> str:
    text = page.wait_for_selector(f"{where} .tvp-error").inner_text()
    assert "Traceback" not in text and "\n" not in text
    return text


def ask(page: Any, models: int = 3) -> str:
    page.click("#try-run")
    page.wait_for_selector(f"#try-answers .tvp-card:nth-of-type({models})")
    return page.inner_text("#try-answers table")


def test_upload_ask_and_see(visit: Any, tmp_path: Path) -> None:
    page = visit()
    upload(page, "photo.png", encoded(tiny.picture(120, 90)))
    page.wait_for_selector("#try-preview img")
    table = ask(page)
    for name in ("llava", "idefics3", "paligemma"):
        assert re.search(rf"{name}(\s+\w+ [<>]?\d+ %){{3}}", table), table
    # What is shown is what the models saw, to the bit: a PNG of the canvas's own size.
    with page.expect_download() as download:
        page.click("#try-prompted button[aria-label='Download']")
    download.value.save_as(tmp_path / "prompted.png")
    with Image.open(tmp_path / "prompted.png") as shown:
        expected = tiny.noise_prompt(canvas_size=64, border_size=8).apply(tiny.picture(120, 90))
        assert shown.format == "PNG" and shown.convert("RGB").tobytes() == expected.tobytes()


def test_an_example_is_one_click_away(visit: Any) -> None:
    page = visit()
    page.locator("#try-examples button.gallery-item").first.click()
    page.wait_for_selector("#try-preview img")
    for name in ("llava", "idefics3"):
        page.get_by_label(name, exact=True).first.uncheck()
    assert "llava" not in ask(page, models=1)


def test_pictures_that_cannot_be_used(visit: Any) -> None:
    page = visit()
    upload(page, "garbage.png", b"not a picture")
    assert error(page, "#try-preview").startswith("garbage.png is not an image: give a PNG")
    page.click("#try-run")
    assert error(page, "#try-message").startswith("There is no picture: drop one")
    whole = encoded(tiny.picture(300, 200))
    upload(page, "cut.png", whole[: len(whole) // 2])
    page.wait_for_selector("text=cut.png is damaged or cut off")
    # 40 million pixels are shrunk, more than 50 are refused.
    upload(page, "large.jpg", encoded(Image.new("RGB", (8000, 5000), (200, 30, 30)), "JPEG"), "image/jpeg")
    page.wait_for_selector("text=The picture was shrunk from 8000 × 5000 to 2048 × 1280 pixels.")
    assert "llava" in ask(page)
    upload(page, "huge.png", encoded(Image.new("1", (8000, 6400))))
    page.wait_for_selector("text=huge.png has more than 50 million pixels: shrink it and give it again.")


def test_words_that_cannot_be_used(visit: Any) -> None:
    page = visit()
    page.locator("#try-examples button.gallery-item").first.click()
    page.wait_for_selector("#try-preview img")
    for field, text, told in [
        ("#try-candidates textarea", "", "There are fewer than two answers to choose from"),
        ("#try-question textarea", " ", "There is no question"),
    ]:
        before = page.input_value(field)
        page.fill(field, text)
        page.click("#try-run")
        page.wait_for_selector(f"#try-message >> text={told}")
        page.fill(field, before)
    # The tests are offline, so no Hub id can be had.
    page.fill("#try-prompt input", "org/none")
    page.press("#try-prompt input", "Enter")
    assert error(page, "#try-about").startswith("Could not load config.json of org/none: it is not")
    page.fill("#try-prompt input", "/etc")
    page.press("#try-prompt input", "Enter")
    page.wait_for_selector("#try-about >> text=/etc is neither one of the prompts listed nor a Hub id")


def test_two_users_at_once(visit: Any) -> None:
    users = [(visit(), (220, 20, 20), "red\ngreen"), (visit(), (20, 20, 220), "circle\nsquare")]
    for page, color, candidates in users:
        upload(page, "mine.png", encoded(Image.new("RGB", (48, 48), color)))
        page.fill("#try-candidates textarea", candidates)
        page.wait_for_selector("#try-preview img")
    for page, _, _ in users:
        page.click("#try-run")
    for page, color, candidates in users:
        page.wait_for_selector("#try-answers .tvp-card:nth-of-type(3)")
        said = set(page.locator("#try-answers table b").all_inner_texts())
        assert said and said <= set(candidates.split("\n"))
        source = page.get_attribute("#try-prompted img", "src")
        with Image.open(io.BytesIO(page.request.get(source).body())) as shown:
            assert shown.convert("RGB").getpixel((32, 32)) == color


def test_gallery_shows_the_prompt(visit: Any) -> None:
    page = visit()
    page.get_by_role("tab", name="Gallery").click()
    page.wait_for_selector("#gallery .tvp-card img")
    assert "a border of 8" in page.inner_text("#gallery")
    assert "Nothing was measured with it" in page.inner_text("#gallery")


def test_learning_live(visit: Any, tmp_path: Path) -> None:
    page, other = visit(), visit()
    page.get_by_role("tab", name="Learn one").click()
    page.get_by_label("llava", exact=True).last.uncheck()
    page.click("#train-start")
    assert error(page, "#train-message").startswith("No model is chosen")
    page.get_by_label("llava", exact=True).last.check()
    # Both are off by default, and a term that is off has no chart.
    page.fill("#train-fca input", "0.005")
    page.fill("#train-tse input", "0.001")
    page.fill("#train-steps input[type=number]", "3")
    page.press("#train-steps input[type=number]", "Tab")
    page.click("#train-start")
    page.wait_for_selector("#train-live figure img")
    page.wait_for_selector("#train-result h3")
    assert "Done: learned in 3 steps." in page.inner_text("#train-live")
    assert page.locator("#train-live svg").count() == 3
    assert re.search(r"Gain on models that it was not learned on.*idefics3 [+-]", page.inner_text("#train-result"))
    with page.expect_download() as download:
        page.click("#train-download")
    download.value.save_as(tmp_path / "prompt.zip")
    with zipfile.ZipFile(tmp_path / "prompt.zip") as archive:
        assert "prompt/model.safetensors" in archive.namelist()
    # It can be tried by this user, and by this user alone.
    page.get_by_role("tab", name="Try").click()
    page.wait_for_selector("#try-about >> text=Question and answers are those of its card")
    assert page.input_value("#try-prompt input") == "learned here, 1"
    other.click("#try-prompt input")
    assert other.locator("ul[role=listbox] li").count() == 1


def test_learning_is_stopped(visit: Any) -> None:
    page = visit()
    page.get_by_role("tab", name="Learn one").click()
    page.fill("#train-steps input[type=number]", "200")
    page.press("#train-steps input[type=number]", "Tab")
    page.click("#train-start")
    page.wait_for_selector("#train-live svg")
    page.click("#train-stop")
    page.wait_for_selector("#train-result h3")
    steps = re.search(r"Done: learned in (\d+) steps", page.inner_text("#train-live"))
    assert steps is not None and int(steps[1]) < 200
    assert page.is_enabled("#train-start") and page.is_disabled("#train-stop")


def test_nothing_is_wider_than_a_phone(visit: Any) -> None:
    page = visit(390, 844)
    page.locator("#try-examples button.gallery-item").first.click()
    page.wait_for_selector("#try-preview img")
    ask(page)
    for tab in ("Try", "Gallery", "Learn one"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
