"""The site as it is read: built, opened from disk in a browser without network, every page at three widths."""

import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from paperlib.companion import notebooks
from tools import equations, mathjax

browser = pytest.importorskip("browser", reason="needs websocket-client, which comes with JupyterLab")
site = pytest.importorskip("tools.site", reason="needs Sphinx")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not browser.PROGRAM, reason="needs Chromium"),
    pytest.mark.skipif(
        not (mathjax.TARGET.is_file() or mathjax.shutil.which("npm")), reason="needs npm, for the site's MathJax"
    ),
]

WIDTHS = (390, 768, 1300)
READY = """(async () => {
    document.head.append(Object.assign(document.createElement("style"), {
        textContent: "* { transition: none !important; animation: none !important }" }));
    await document.fonts.ready;
    if (window.MathJax) await MathJax.startup.promise;
    await Promise.allSettled([...document.images].map(image => image.decode()));
})()"""
LOOK = """(() => {
    const article = document.querySelector(".bd-article") ?? document.querySelector("main") ?? document.body;
    const scrolls = element => element !== article && (
        ["auto", "scroll"].includes(getComputedStyle(element).overflowX) || scrolls(element.parentElement));
    const shown = element => element.getBoundingClientRect();
    return {
        width: document.scrollingElement.scrollWidth,
        cut: [...article.querySelectorAll("*")].filter(element =>
            !element.closest("mjx-assistive-mml, svg, .visually-hidden") && shown(element).width > 1
            && (shown(element).right > innerWidth + 1 || shown(element).left < shown(article).left - 1)
            && !scrolls(element.parentElement)
        ).slice(0, 3).map(element => element.outerHTML.slice(0, 160)),
        raw: [...document.querySelectorAll(".math")].filter(element =>
            !element.querySelector("mjx-container svg")).map(element => element.textContent.slice(0, 80)),
        wrong: [...document.querySelectorAll("mjx-merror, [data-mml-node=merror]")].map(error => error.textContent),
        broken: [...document.images].filter(image => !image.naturalWidth).map(image => image.src.slice(0, 200)),
        mute: [...article.querySelectorAll("img")].filter(image =>
            image.alt.trim().split(/\\s+/).length < 3).map(image => `${image.src.slice(-80)}: ${image.alt}`),
    };
})()"""


@pytest.fixture(scope="module")
def built(repository: Path) -> Path:
    """The site of this checkout, warnings being errors."""
    command = ["make", "--assume-old", ".venv/ready", f"BIN={shlex.quote(str(Path(sys.executable).parent))}", "site"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return repository / "docs" / "_build" / "html"


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[str, BeautifulSoup]:
    """Every page by its path, sources of modules included."""
    found = sorted(path for path in built.rglob("*.html") if "_static" not in path.parts)
    return {
        path.relative_to(built).as_posix(): BeautifulSoup(path.read_bytes(), "html.parser", from_encoding="utf-8")
        for path in found
    }


@pytest.fixture(scope="module")
def visits(
    built: Path, pages: dict[str, BeautifulSoup], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, browser.Visit]]:
    """Every page, looked at; of listings of source and the tool pages of Sphinx, one each."""
    chosen = [page for page in pages if not page.startswith("_modules/")] + ["_modules/paperlib/elbo.html"]
    with browser.Browser(tmp_path_factory.mktemp("chromium")) as chromium:
        yield {page: chromium.visit((built / page).as_uri(), READY, LOOK, WIDTHS) for page in chosen}


def test_no_page_says_an_error_or_asks_the_network(visits: dict[str, browser.Visit]) -> None:
    assert len(visits) > 70
    errors = {page: visit.errors for page, visit in visits.items() if visit.errors}
    assert not errors
    outside = {
        page: [u for u in visit.requests if urlsplit(u).scheme not in ("file", "data")]
        for page, visit in visits.items()
    }
    assert not {page: found for page, found in outside.items() if found}
    assert all(visit.requests for visit in visits.values())


@pytest.mark.parametrize("what", ["cut", "raw", "wrong", "broken", "mute"])
def test_mathematics_is_drawn_figures_are_there_and_nothing_is_cut(visits: dict[str, browser.Visit], what: str) -> None:
    found = {(page, width): look[what] for page, visit in visits.items() for width, look in visit.found.items()}
    assert not {where: bad for where, bad in found.items() if bad}
    widths = {(page, width): look["width"] for page, visit in visits.items() for width, look in visit.found.items()}
    assert not {where: width for where, width in widths.items() if width > where[1]}


def test_there_is_mathematics(pages: dict[str, BeautifulSoup]) -> None:
    assert sum(len(page.select(".math")) for page in pages.values()) > 500
    assert 'src="_static/mathjax' in str(pages["index.html"]) or "mathjax" in str(pages["notebooks/03_invariance.html"])


def test_no_figure_is_empty(built: Path, pages: dict[str, BeautifulSoup]) -> None:
    pictures = {
        (built / page).parent / unquote(image["src"])
        for page, content in pages.items()
        for image in content.select("article img[src]")
        if image["src"].endswith((".png", ".jpg"))
    }
    assert len(pictures) > 30
    for picture in pictures:
        with Image.open(picture) as opened:
            pixels = np.asarray(opened.convert("L"))
        assert pixels.std() > 1, picture


def test_every_link_within_the_site_resolves(built: Path, pages: dict[str, BeautifulSoup]) -> None:
    anchors = {
        page: {tag.get(key) for tag in content.find_all(True) for key in ("id", "name") if tag.get(key)}
        for page, content in pages.items()
    }
    lost, count = set(), 0
    for page, content in pages.items():
        for tag in content.find_all(["a", "img", "link", "script"]):
            address = tag.get("href") or tag.get("src") or "#"
            if (parts := urlsplit(address)).scheme or address in ("#", ""):
                assert parts.scheme in ("", "data", "mailto") or tag.name == "a", f"{page} loads {address}"
                continue
            count += 1
            target = ((built / page).parent / unquote(parts.path)).resolve() if parts.path else built / page
            name = target.relative_to(built).as_posix()
            if not target.is_file() or (
                name in anchors and parts.fragment and unquote(parts.fragment) not in anchors[name]
            ):
                lost.add((page, address))
    assert count > 5000
    assert not lost


def test_every_module_is_found_and_has_a_tier(tmp_path: Path, repository: Path) -> None:
    package = tmp_path / "paperlib"
    for name in ("__init__", "__main__", "elbo", "engine/__init__", "engine/data"):
        (package / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (package / f"{name}.py").touch()
    assert site.modules(package) == ["paperlib", "paperlib.elbo", "paperlib.engine", "paperlib.engine.data"]
    packages = {path.parent.name for path in (repository / "paperlib").glob("*/__init__.py")}
    assert packages == set(site.PACKAGES)
    assert set(site.PACKAGES.values()) <= set(site.TIERS)


def test_every_module_has_a_page(pages: dict[str, BeautifulSoup], repository: Path) -> None:
    for module in site.modules(repository / "paperlib"):
        assert pages[f"api/{module}.html"].find(id=f"module-{module}"), module
        assert pages["api/index.html"].find("a", href=f"{module}.html#module-{module}"), module
    tiers = [heading.get_text().rstrip("#") for heading in pages["api/index.html"].select("article h2")]
    assert tiers == list(site.TIERS)


def test_no_sentence_about_a_constant_is_taken_for_its_type(pages: dict[str, BeautifulSoup]) -> None:
    """Napoleon reads "The budget: that of the profile" so; annotations say the types."""
    taken = [
        (page, field.find_next("dd").get_text())
        for page, content in pages.items()
        for field in content.select("article dl.field-list dt")
        if field.get_text().startswith("Type")
    ]
    assert taken == []


def test_the_index_of_equations_is_linked_both_ways(pages: dict[str, BeautifulSoup]) -> None:
    listed = pages["equations.html"]
    addresses = {link["href"] for link in listed.select("article a[href]")}
    for entry in equations.index().values():
        if entry.place.kind == "section":
            continue
        assert listed.find(id=entry.place.anchor), entry.place.place
        for name in entry.functions:
            found = [address for address in addresses if address.partition("#")[2] in (name, f"module-{name}")]
            assert len(found) == 1, (name, found)
            page = found[0].partition("#")[0]
            assert pages[page].find("a", href=f"../equations.html#{entry.place.anchor}"), (name, entry.place.place)
        for cell in entry.cells:
            page = f"notebooks/{cell.partition(', ')[0]}.html"
            assert any(address.startswith(f"{page}#") for address in addresses), cell
            assert pages[page].find("a", href=f"../equations.html#{entry.place.anchor}"), (cell, entry.place.place)


def test_the_front_page_shows_a_picture_an_example_and_every_notebook(pages: dict[str, BeautifulSoup]) -> None:
    front = pages["index.html"]
    assert front.select("article img[alt]")
    assert "paperlib.audit" in front.select_one("article .highlight-python").get_text()
    links = {link["href"] for link in front.select("a[href]")}
    assert {f"notebooks/{name}.html" for name in notebooks.names()} <= links


def test_the_buttons_of_a_notebook_open_it(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERLIB_REPOSITORY", "https://github.com/somebody/companion")
    options = runpy.run_path(str(repository / "docs" / "conf.py"))["html_theme_options"]
    assert options["launch_buttons"].keys() >= {"binderhub_url", "colab_url"}
    for name in notebooks.names():
        assert (repository / options["path_to_docs"] / "notebooks" / f"{name}.ipynb").is_file()
