import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.corpus import facts, markup
from cygnet.corpus.dedup import REASONS
from cygnet.corpus.facts import REASON_NAMES
from cygnet.corpus.page import TokenCount, put_tokens, render_page, write_page
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.table import DocumentTable
from tests.corpus.dirty_corpus import (
    HOSTILE,
    HOSTILE_FILE,
    HOSTILE_FOLDER,
    decided,
    drawn_table,
    parts_of,
    prepared,
    table_of,
)

COST = {"bytes": 4_000_000, "seconds": {"read": 3.0, "decide": 0.5, "write": 0.25}}
ELEMENTS = set(
    "html head meta title style body main div h1 h2 h3 p section span i b small code pre table "
    "thead tbody tr th td details summary svg path rect line text".split()
)
ATTRIBUTES = set(
    "lang charset http-equiv content name class style viewbox role aria-label x y x1 x2 y1 y2 "
    "width height d text-anchor".split()
)


class Reader(HTMLParser):
    """What a browser would make of a page: its elements, its attributes, its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attributes)
        if tag != "meta":
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open[-1:] in (["th"], ["td"]):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = prepared(tmp_path_factory.mktemp("corpus"))
    problems = Problems()
    problems.add("broken row", f"{HOSTILE_FOLDER}/{HOSTILE_FILE}:3", HOSTILE)
    write_page(out / "report.html", table_of(out), problems, COST, f"runs/{HOSTILE}")
    return out / "report.html"


def is_harmless(page: str) -> Reader:
    found = Reader(page)
    assert found.elements <= ELEMENTS
    assert found.attributes <= ATTRIBUTES
    return found


def test_what_was_read_is_text_on_the_page_and_never_markup(page: Path) -> None:
    found = is_harmless(page.read_text())
    for hostile in (HOSTILE, HOSTILE_FOLDER, HOSTILE_FILE):
        assert hostile in found.text


@given(text=st.text(max_size=60))
@settings(max_examples=30, deadline=None)
def test_no_text_breaks_the_page(text: str) -> None:
    problems = Problems()
    problems.add("broken row", text, text)
    page = render_page(drawn_table(40, 3, text), problems, COST, f"out/{text}")
    is_harmless(page)
    page.encode()


def test_a_run_and_its_folder_give_the_same_page(page: Path) -> None:
    out = page.parent
    table, parts = table_of(out), parts_of(out)
    fresh = DocumentTable.of(parts, decided(out, table.config), table.config)
    pages = [render_page(each, Problems(), COST, "out") for each in (table, fresh)]
    assert pages[0] == pages[1] and "no longer at hand" not in pages[0]


def test_the_page_needs_nothing_else(page: Path) -> None:
    content = page.read_text()
    assert "default-src &#x27;none&#x27;" in content
    assert not re.search(r"\b(?:src|href|srcset|action)\s*=\s*[\"']|url\(|@import", content)
    head = content[: content.index("<body>")]
    assert "://" not in head


def test_the_figures_on_the_page_add_up(page: Path) -> None:
    content = page.read_text()
    table = table_of(page.parent)
    card = content[content.index('class="bars"') :]
    found = re.findall(
        r'class="name">([^<]*)</div><div class="amount">(−?)([\d,]+) ·', card[: card.index("<h3>")]
    )
    counts = {name: int(value.replace(",", "")) for name, _, value in found}
    assert counts.pop("read") == len(table) == sum(counts.values())
    for name, count in counts.items():
        assert count == (table.outcome == name).sum()
    copies = sum(counts.get(name, 0) for name in REASONS)
    assert f"<p>{copies} documents (" in content
    width = re.search(r'class="train" style="width:([\d.]+)%', card)
    train = table.bytes[table.outcome == "train"].sum() / table.bytes.sum()
    assert width and float(width[1]) == pytest.approx(100 * train, abs=0.006)
    shown = {row[0]: row[1:] for row in Reader(content).rows if row}
    for name in REASON_NAMES:
        if name in table.broken(table.rules) and counts.get(name):
            assert int(shown[name][2].replace(",", "")) == counts[name]
    flows = re.findall(r"→ (\w+)[^:]*: ([\d,]+) documents", content)
    drawn: dict[str, int] = {}
    for name, value in flows:
        drawn[name] = drawn.get(name, 0) + int(value.replace(",", ""))
    assert sum(drawn.values()) == len(table)
    assert {name: counts[name] for name in drawn if name != "others"}.items() <= drawn.items()


def test_the_page_stays_small_whatever_the_corpus() -> None:
    table = drawn_table(4000, 3000, "<&\"'汉𝒳" * 2000)
    problems = Problems()
    for kind in ("broken row", "damaged file", "not text"):
        for _ in range(50):
            problems.add(kind, "<" * 5000, "&" * 5000)
    page = render_page(table, problems, COST, "out")
    assert len(page.encode()) < 3_000_000


@given(content=st.text(alphabet="<&\"' \n\ud800汉a", max_size=200), most=st.integers(1, 30))
@settings(deadline=None)
def test_texts_are_cut_to_their_bound(content: str, most: int) -> None:
    shown = unescape(markup.text(content, most))
    assert len(shown) <= most + 1 and "\n" not in shown
    whole = " ".join(content.split()).replace("\ud800", "?")
    assert shown == whole or (shown.endswith("…") and whole.startswith(shown[:-1]))


def test_samples_lie_on_the_sides_of_the_threshold_they_are_shown_for(page: Path) -> None:
    sections = re.findall(r"<details[^>]*>(.*?)</details>", page.read_text(), flags=re.DOTALL)
    seen = 0
    for rule in table_of(page.parent).rules:
        for section in sections:
            if f"<b>{rule.name}</b>" not in section:
                continue
            pattern = rf"(dropped|kept): {rule.number} is ([\d.,e+-]+)<"
            for deed, value in re.findall(pattern, section):
                seen += 1
                number = float(value.replace(",", ""))
                beyond = (
                    number < rule.threshold if rule.side == "below" else number > rule.threshold
                )
                assert beyond == (deed == "dropped") or abs(number - rule.threshold) < 1e-3 * number
    assert seen > 20


def test_rules_that_drop_nothing_lie_in_one_fold(page: Path) -> None:
    content = page.read_text()
    held = facts.rule_counts(table_of(page.parent))
    quiet = [count.rule.name for count in held if not count.first]
    before, _, behind = content.partition(f"<b>{len(quiet)} rules that drop nothing</b>")
    for count in held:
        assert f"<summary><b>{count.rule.name}</b>" in (before if count.first else behind)


def test_an_evaluation_items_passage_is_shown_beside_what_went_for_it(page: Path) -> None:
    section = page.read_text().partition("<summary><b>contaminated</b>")[2]
    told = re.search(r"dropped: contaminated is \d+ · in evaluation.jsonl:[12]: (.*?)<", section)
    assert told and len(told[1].split()) == 13


def test_token_counts_take_the_place_of_those_before(page: Path, tmp_path: Path) -> None:
    copy = tmp_path / "report.html"
    shutil.copy(page, copy)
    before = copy.read_text()
    assert "no tokenizer was given" in before
    for tokens in (1234.0, 5678.0):
        count = TokenCount("domain", HOSTILE, 3, 9000, tokens, 7.0, 2, tokens, 7.0)
        put_tokens(copy, [count], HOSTILE)
    found = is_harmless(copy.read_text())
    assert "5,678 ± 7" in found.text and "1,234 ± 7" not in found.text
    assert "no tokenizer was given" not in found.text
    put_tokens(copy, [], "none")
    assert copy.read_text().split("<h2>Rules")[1] == before.split("<h2>Rules")[1]


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_a_browser_shows_the_page_without_a_request_and_opens_its_parts(
    page: Path, width: int, scheme: str
) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        requests: list[str] = []
        said: list[str] = []
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.on("dialog", lambda dialog: said.append(dialog.message))
        tab.goto(page.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        part = tab.locator("details").first
        assert not part.locator(".sample").first.is_visible()
        part.locator("summary").click()
        assert part.locator(".sample").first.is_visible()
        assert part.locator("svg").first.is_visible()
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(20, 23, 28)") == (scheme == "dark")
        tab.emulate_media(media="print")
        assert tab.locator("details").nth(1).locator(".sample").first.is_visible()
        assert not tab.locator("details.quiet").first.is_visible()
        browser.close()
    assert requests == [page.as_uri()] and not said
