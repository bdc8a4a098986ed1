"""The page of ``pyscore report`` in a browser: of any width, in the light and in the dark."""

import itertools
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest
from playwright.sync_api import Browser, Page
from psycopg import Connection

from pyscore.cluster import PrivateCluster
from pyscore.demo.builders import BUILDERS, load
from tests.browser import chromium
from tests.commands import ROOT, call, output
from tests.community import add_user, drain
from tests.conftest import janitor
from tests.report_picture import PICTURE

Scheme = Literal["light", "dark"]

AXE = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")

# what is seen of a text: its colour, and the first background behind it that is not transparent
_CONTRASTS = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [x, y, z] = [r, g, b].map(linear);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || element.closest("title, desc, .hidden")) continue;
    if (!element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const fore = rgb(element.closest("svg") ? style.fill : style.color);
    const ground = one => rgb(getComputedStyle(one).backgroundColor);
    let behind = element;
    while ((ground(behind)[3] ?? 1) === 0) behind = behind.parentElement;
    const back = ground(behind);
    const [a, b] = [light(fore), light(back)];
    found.push([walker.currentNode.textContent.trim().slice(0, 40),
                (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
  }
  return found;
}"""


# labels of a curve that stick out of the picture, or lie on another one
_MISPLACED = """() => [...document.querySelectorAll('svg.curve')].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  const boxes = [...svg.querySelectorAll('text')].map(
    one => [one.textContent, one.getBoundingClientRect()]);
  const sticksOut = box => box.left < frame.left - 1 || box.right > frame.right + 1
    || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
    && a.top < b.bottom - 3 && b.top < a.bottom - 3;
  const out = boxes.filter(([, box]) => sticksOut(box)).map(([text]) => text);
  const over = boxes.flatMap(([text, box], n) => boxes.slice(n + 1)
    .filter(([, other]) => meet(box, other)).map(([other]) => `${text} on ${other}`));
  return [...out, ...over];
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address(server: PrivateCluster, template: str) -> Iterator[str]:
    with janitor(server, "report_page", template=template) as found:
        with psycopg.connect(found, autocommit=True) as db:
            load(db, BUILDERS)
            for name in ("W" * 300, "a-very-long-name-without-a-blank" * 3, "\u202eabc", "<i>i"):
                add_user(db, name, bio="x")
            drain(db)
        yield found


@pytest.fixture(scope="module")
def pages(address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One for operators, one for everyone, one of an odd formula."""
    directory = tmp_path_factory.mktemp("report")
    found = {name: directory / f"{name}.html" for name in ("operators", "public", "odd")}
    output(call("report", "-o", str(found["operators"]), "--dsn", address))
    output(call("report", "--public", "-o", str(found["public"]), "--dsn", address))
    with psycopg.connect(address, autocommit=True) as db:
        kept = db.execute("select signal, max_points, scale from builder_score.signals").fetchall()
        _change(db, "age", 0, 10)
        _change(db, "vouches", 1, 0.05)
        _change(db, "impact", 33.3, 0.7)
        _change(db, "profile", 7, 100)
        output(call("report", "-o", str(found["odd"]), "--dsn", address))
        for signal, most, scale in kept:
            _change(db, signal, most, scale)
    return found


def _change(db: Connection[Any], signal: str, most: float, scale: float) -> None:
    db.execute(
        "update builder_score.signals set max_points = %s, scale = %s where signal = %s",
        [most, scale, signal],
    )


def opened(browser: Browser, file: Path, width: int = 1280, scheme: Scheme = "light") -> Page:
    """Open a page; its console must stay silent, and it may ask for nothing but itself."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    return page


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_sticks_out_at_any_width(
    browser: Browser, pages: dict[str, Path], width: int
) -> None:
    for file in pages.values():
        page = opened(browser, file, width)
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        wider = page.evaluate(
            "[...document.querySelectorAll('body *')]"
            ".filter(one => !one.closest('.hidden, .skip') &&"
            f" one.getBoundingClientRect().right > {width} + 0.5).map(one => one.outerHTML)"
        )
        assert wider == []
        clipped = page.evaluate(
            "[...document.querySelectorAll('th, td, p, li, dd, h1, h2, h3')].filter(one =>"
            " !one.closest('.hidden') && one.scrollWidth > one.clientWidth + 1 &&"
            " getComputedStyle(one).display !== 'inline').map(one => one.outerHTML)"
        )
        assert clipped == []
        page.close()


@pytest.mark.parametrize("name", ["operators", "public", "odd"])
def test_axes_labels_are_inside_the_picture_and_apart(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    for width in (320, 1280):
        page = opened(browser, pages[name], width)
        assert page.evaluate(_MISPLACED) == []
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_in_the_light_and_in_the_dark(
    browser: Browser, pages: dict[str, Path], scheme: Scheme
) -> None:
    page = opened(browser, pages["operators"], scheme=scheme)
    contrasts = page.evaluate(_CONTRASTS)
    assert len(contrasts) > 100
    assert [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (min(map(int, re.findall(r"\d+", paper))) > 200) == (scheme == "light")
    page.close()


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [("operators", 1280, "dark"), ("public", 320, "light"), ("odd", 768, "light")],
)
def test_axe_finds_nothing(
    browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: Scheme
) -> None:
    page = opened(browser, pages[name], width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.evaluate(AXE)
    found = page.evaluate("axe.run({resultTypes: ['violations']})")
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []
    assert len(found["passes"]) > 20
    page.close()


def test_it_is_heard_in_order(browser: Browser, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["operators"])
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map(one => Number(one.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for table in page.locator("table").all():
        assert table.locator("caption").count() == 1
    assert page.locator("svg[role=img]").count() == 5
    for picture in page.locator("svg[role=img]").all():
        assert picture.locator("title").count() == picture.locator("desc").count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.url.endswith("#content")
    for link in page.locator("nav a").all():
        target = link.get_attribute("href")
        assert page.locator(f"section{target}").count() == 1
    page.close()


def test_a_curve_is_drawn_to_where_the_database_says(
    browser: Browser, pages: dict[str, Path]
) -> None:
    page = opened(browser, pages["operators"])
    # 0 at 166, the most (30) at 16; 3 projects of 10 are worth 20
    places = [
        (float(one.get_attribute("cx") or "nan"), float(one.get_attribute("cy") or "nan"))
        for one in page.locator(".shipped svg circle").all()
    ]
    assert len(places) == 11
    across = (places[10][0] - places[0][0]) / 10
    (caption,) = opened(browser, pages["odd"]).locator(".vouches figcaption").all_inner_texts()
    assert caption == "Points, by people: each mark is 100 times the one before"
    assert places[3] == (pytest.approx(places[0][0] + 3 * across, abs=0.1), 66)  # pyright: ignore[reportUnknownMemberType]
    assert [places[n][1] for n in (0, 7, 10)] == [166, 16, 16]
    page.close()


def test_it_prints_without_what_is_of_no_use_on_paper(
    browser: Browser, pages: dict[str, Path]
) -> None:
    page = opened(browser, pages["public"], scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert page.locator("h1").is_visible()
    page.close()


def test_the_readme_shows_it() -> None:
    picture = str(PICTURE.relative_to(ROOT))
    assert re.search(rf"!\[[^\]]{{60,}}\]\({picture}\)", (ROOT / "README.md").read_text())
    data = PICTURE.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) < 200_000
