"""The site that `make site` has built: whole, with its formulas, and nothing from a network."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.site
ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "site"
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """What a page loads, and its words."""

    def __init__(self, path):
        super().__init__()
        self.loads, self.text, self.formulas, self.redirect = [], "", 0, None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.formulas += tag == "math" and attributes.get("display") == "block"
        if tag == "meta" and attributes.get("http-equiv") == "refresh":
            self.redirect = attributes["content"].partition("url=")[2]
        address = attributes.get(LOADED.get(tag))
        if address and not address.startswith("data:"):
            self.loads.append(address)

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def pages():
    found = {path.relative_to(SITE).as_posix(): Page(path) for path in SITE.rglob("*.html")}
    assert found, "there is no site: make site"
    return found


def test_every_document_is_a_page(pages):
    documents = [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs/results").glob("*"),
    ]
    names = {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in documents}
    assert names - set(pages) == set()
    assert pages["index.html"].redirect in pages


def test_a_page_loads_only_what_lies_beside_it(pages):
    """No CDN, no web fonts: what is loaded is a file of the site."""
    absent = []
    for name, page in pages.items():
        for address in page.loads:
            path = (SITE / name).parent / re.sub(r"[?#].*", "", address)
            if "//" in address or not path.exists():
                absent.append((name, address))
    assert absent == []
    styles = "".join(path.read_text(encoding="utf-8") for path in SITE.rglob("*.css"))
    assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\"' ]*", styles) == []


def test_the_formulas_are_drawn(pages):
    page = pages["docs/concepts.html"]
    written = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8").count("\n$$\n") // 2
    assert page.formulas == written > 10
    assert "\\" not in page.text.partition("Prime embedding")[2]


def test_the_api_is_that_of_the_docstrings(pages):
    text = pages["docs/site/api/reso_llm.inference/reso_llm.inference.html"].text
    assert "The engine of a checkpoint, or of a run directory" in text
