"""The chat page in a browser: what a hostile model cannot do, and how it looks."""

from __future__ import annotations

import re

import pytest

from cygnet.serve.page_files import FOLDER
from tests.serve.scripted import MODEL, Answer

pytest.importorskip("playwright")
from playwright.sync_api import Page, expect

from tests.serve.page.chat import Chat

# --- hostile output -------------------------------------------------------------------------------

HOSTILE = [
    "<script>window.ran = 1; alert(1)</script>",
    "<img src=x onerror='window.ran = 1'><img src=https://evil.example/p.png>",
    "<svg onload='window.ran = 1'><iframe srcdoc='<script>parent.ran = 1</script>'></iframe></svg>",
    "<style>* { display: none }</style><link rel=stylesheet href=https://evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "<form action=https://evil.example/><button>press</button></form>",
    "[press](javascript:window.ran=1) [press](data:text/html,<script>alert(1)</script>)",
    "[press](JaVaScRiPt:window.ran=1) [press](\tjavascript:window.ran=1) [x](vbscript:x)",
    "![x](https://evil.example/p.png) ![x](x\" onerror=\"window.ran=1) ![](//evil.example/y)",
    '[x](https://evil.example/" onmouseover="window.ran=1) <https://evil.example/">',
    "```html\n<script>window.ran = 1</script>\n```\n```\"><img src=x onerror=window.ran=1>\nx\n```",
    "| <img src=x onerror=window.ran=1> | b |\n|---|---|\n| <script>window.ran = 1</script> | d |",
    "# <img src=x onerror=window.ran=1>\n> <script>window.ran = 1</script>\n- <b onclick=ran()>",
    "</div></article></main><h1>gone</h1><!-- ]]> --> &lt;script&gt; &#x3c;script&#x3e;",
    "\u202eevil\u202c \u0000\u0008\u001b[31m \ufeff\u2028\u2029 z\u0351\u0352\u0353\u0354" * 20,
    "W" * 5000,
    "https://example.com/" + "a" * 5000,
    "`" + "x" * 3000 + "`\n\n| " + "y" * 3000 + " | b |\n|---|---|\n| c | d |",
    "```\n" + "z" * 3000 + "\n```",
]  # fmt: skip


@pytest.mark.parametrize("options", [{"viewport": {"width": 360, "height": 640}}])
def test_nothing_that_a_model_writes_runs_leaves_or_breaks_the_page(chat, server):
    server.answer = lambda *_: Answer(pieces=[text], reasoning=[text])
    tags = "script, img, iframe, svg[onload], style, link, form, meta, object, embed, b, base"
    for i, text in enumerate(HOSTILE):
        chat.ask(f"question {i}")
        answer = chat.answers(count=i + 1).last
        answer.locator("summary").click()
        assert answer.locator(tags).count() == 0, text
        for href in answer.locator("a").evaluate_all("all => all.map(a => a.href)"):
            assert href.startswith("https://"), text
        names = answer.evaluate(
            "node => [...node.querySelectorAll('.prose *')].flatMap(n => n.getAttributeNames())"
        )
        assert not {name for name in names if name.startswith("on") or name == "style"}, text
        assert not scrolls_sideways(chat.page), text
    assert (
        "<script>window.ran = 1; alert(1)</script>"
        in chat.page.locator(".answer").first.inner_text()
    )
    chat.page.reload()
    chat.answers(count=len(HOSTILE))
    assert chat.page.evaluate("window.ran") is None
    chat.check()


@pytest.mark.parametrize("options", [{"viewport": {"width": 360, "height": 640}}])
def test_a_hostile_name_title_or_error_is_text_too(chat, server):
    name = "<img src=x onerror='window.ran = 1'>" + "n" * 300
    server.models = [{**MODEL, "id": name}, {**MODEL, "id": "<b>two</b>", "stage": "sft"}]
    server.answer = lambda *_: Answer(status=400, error={"message": name, "code": "<b>"})
    chat.page.reload()
    chat.page.get_by_role("button", name="Ask another model the same question").click()
    chat.ask(name)
    chat.answers("error", count=2)
    assert not scrolls_sideways(chat.page)
    chat.page.reload()
    expect(chat.page.locator(".bubble")).to_have_text(name)
    assert chat.page.locator("img, b").count() == 0
    assert not scrolls_sideways(chat.page)


def scrolls_sideways(page: Page) -> bool:
    return page.evaluate(
        """() => [document.scrollingElement, document.getElementById('scroll'), document.body]
            .some(node => node.scrollWidth > node.clientWidth)"""
    )


def test_half_characters_become_whole_and_lone_ones_do_no_harm(chat, server):
    server.answer = lambda *_: Answer(pieces=["a\ud83d", "\ude00b ", "\ud83d"])
    chat.ask("one")
    expect(chat.answers()).to_contain_text("a😀b")
    chat.page.reload()
    expect(chat.answers()).to_contain_text("a😀b")
    chat.ask("two")
    chat.answers(count=2)
    assert server.asked[1]["messages"][1]["content"] == "a😀b \ufffd"


SIZE = 100_000
HEAVY = {
    "[": "[" * SIZE, "[](": "[](" * SIZE, "*_": "*_" * SIZE, "**a ": "**a " * SIZE,
    "`": "".join("`" * (1 + i % 40) + " " for i in range(SIZE // 20)), "> ": "> " * SIZE,
    "- ": "- " * SIZE, "|": "|" * SIZE + "\n|" + "-|" * SIZE, "~": "~" * SIZE + "`",
    "~~a": "~~a" * SIZE, "http": "http://." + "." * SIZE + "x", "\\": "\\" * SIZE + "*",
    " ": " " * SIZE + "x" + "\n" * 10 + " " * SIZE, "lines": "a|b\n-\n" * (SIZE // 6),
    "nested": "".join(" " * i + "- x\n" for i in range(400)), "![": "![a](" * SIZE,
    "deep": "*a _b " * 2000 + "c_ d* " * 2000, "rules": "* * *\n" * 8000,
}  # fmt: skip


@pytest.mark.parametrize("name", HEAVY)
def test_no_text_makes_the_page_hang(chat, server, name):
    """Quadratic work would not end within the wait."""
    server.answer = lambda *_: Answer(pieces=[HEAVY[name]])
    chat.ask("one")
    chat.answers()
    assert chat.page.evaluate(DEPTH) < 60


WORK = """async (text) => {
    const { renderMarkdown } = await import('/page/markdown.js');
    let count = 0;
    for (const [owner, name] of [[RegExp, 'exec'], [String, 'trimStart']]) {
        const own = owner.prototype[name];
        owner.prototype[name] = function (...given) { count++; return own.apply(this, given); };
    }
    renderMarkdown(document.createElement('div'), text);
    return count;
}"""


@pytest.mark.parametrize(
    "text", ["* * *\n", "- a\n\nb\n\n", "> a\n\n", "# a\n", "a\n- b\n\n```\n```\n"]
)
def test_the_work_grows_with_the_length_alone(chat, text):
    few, many = (chat.open().evaluate(WORK, text * count) for count in (200, 2000))
    assert few > 0 and many < 11 * few


DEPTH = """() => {
    let deepest = 0;
    for (const leaf of document.querySelectorAll('.prose *')) {
        let depth = 0;
        for (let node = leaf; node; node = node.parentElement) depth++;
        deepest = Math.max(deepest, depth);
    }
    return deepest;
}"""

MARKDOWN = """# One
Line
line **bold *both*** `a*b` 2\\*3 https://example.com/a_b(c).

- a
  - b

    more
- [x] c
3. three

| a | b |
|:--|--:|
| 1 \\| 2 | 3 |

> quote

```py
if x:
    <y>
```
[text](https://example.com "t") snake_case_name **粗体。**后
***
"""


def test_markdown_becomes_the_elements_that_it_names(chat, server):
    # Piece by piece, since a stream must end up as the whole would.
    pieces = [MARKDOWN[i : i + 4] for i in range(0, len(MARKDOWN), 4)]
    server.answer = lambda *_: Answer(pieces=pieces, pause_s=0.01)
    chat.ask("one")
    chat.answers()
    html = chat.page.locator(".answer > .prose").evaluate("node => node.innerHTML")
    html = re.sub(r"<button.*?</button>", "", html)
    link = '<a href="{0}" target="_blank" rel="noopener noreferrer nofollow" title="{0}">{1}</a>'
    parts = [
        "<h3>One</h3>",
        "<p>Line<br>line <strong>bold <em>both</em></strong> <code>a*b</code> 2*3 ",
        link.format("https://example.com/a_b(c", "https://example.com/a_b(c") + ").</p>",
        '<ul><li>a<ul><li>b<p>more</p></li></ul></li><li class="task">☑ c</li></ul>',
        '<ol start="3"><li>three</li></ol>',
        "<table><thead><tr><th>a</th>",
        '<td>1 | 2</td><td class="right">3</td>',
        "<blockquote><p>quote</p></blockquote>",
        '<pre tabindex="0"><code>if x:\n    &lt;y&gt;</code></pre>',
        "<p>" + link.format("https://example.com/", "text"),
        "snake_case_name <strong>粗体。</strong>后</p><hr>",
    ]
    for part in parts:
        assert part in html, html


def test_code_and_answers_are_copied_as_they_were_written(browser, server):
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    chat = Chat(context, server.url)
    server.answer = lambda *_: Answer(pieces=["```\n  a  <b>\n```"])
    chat.ask("one")
    answer = chat.answers()
    for button, copied in (
        (answer.locator(".code"), "  a  <b>"),
        (answer.locator(".foot"), "```\n  a  <b>\n```"),
    ):
        button.get_by_role("button", name="Copy").click()
        expect(button.locator(".icon-done")).to_be_visible()
        assert chat.page.evaluate("navigator.clipboard.readText()") == copied
    context.close()
    chat.check()


def test_no_file_of_the_page_makes_html_of_text_or_asks_elsewhere():
    files = sorted(FOLDER.iterdir())
    assert {file.suffix for file in files} == {".html", ".css", ".js"}
    for file in files:
        text = file.read_text()
        unsafe = r"(inner|outer)HTML|insertAdjacent|document\.write|\beval\(|new Function|DOMParser"
        assert not re.search(unsafe, text), file
        assert not re.search(r"""https?://(?!www\.w3\.org/2000/svg)[a-z]""", text), file
        assert len(text.splitlines()) < 400, file
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", page)
    assert all('src="/page/' in tag for tag in re.findall("<script[^>]*>", page))


# --- how it looks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"viewport": {"width": 360, "height": 640}, "has_touch": True}]
)
def test_a_phone_has_everything_and_scrolls_down_only(chat, server):
    page = chat.page
    server.models = [{**MODEL, "id": f"a-model-with-a-long-name/{i}"} for i in range(3)]
    page.reload()
    expect(page.locator("#sidebar")).to_be_hidden()
    page.get_by_role("button", name="Ask another model the same question").click()
    assert not scrolls_sideways(page)
    chat.ask("a question that is long enough to need more than one line of this phone")
    shown = chat.answers(count=2)
    first, second = (one.bounding_box() for one in shown.all())
    assert second["y"] >= first["y"] + first["height"]
    assert not scrolls_sideways(page)
    box = page.locator("#send").bounding_box()
    assert box["x"] + box["width"] <= 360
    assert box["y"] + box["height"] <= 640
    for name, part in (("Show conversations", "#sidebar"), ("Settings", "#panel")):
        page.get_by_role("button", name=name, exact=True).click()
        expect(page.locator(part)).to_be_visible()
        assert page.locator(part).bounding_box()["width"] < 360
        page.keyboard.press("Escape")
        expect(page.locator(part)).to_be_hidden()


def brightness(page: Page) -> float:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 765


@pytest.mark.parametrize("options", [{"color_scheme": "dark"}, {"color_scheme": "light"}])
def test_the_theme_is_the_systems_until_one_is_chosen(chat, server, options):
    is_dark = options["color_scheme"] == "dark"
    assert (brightness(chat.page) < 0.3) == is_dark
    chat.page.get_by_role("button", name="Settings", exact=True).click()
    chat.page.get_by_label("Theme").select_option("light" if is_dark else "dark")
    assert (brightness(chat.page) < 0.3) != is_dark
    chat.page.reload()
    assert (brightness(chat.page) < 0.3) != is_dark


@pytest.mark.parametrize("options", [{"locale": "zh-CN"}])
def test_a_chinese_browser_gets_chinese_until_another_language_is_chosen(chat, server):
    page = chat.page
    expect(page.get_by_role("button", name="新对话")).to_be_visible()
    expect(page.get_by_placeholder("输入消息…")).to_be_visible()
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    chat.ask("问")
    expect(chat.answers()).to_contain_text("2 个 token")
    page.get_by_role("button", name="设置", exact=True).click()
    page.get_by_label("语言").select_option("en")
    expect(page.get_by_role("button", name="New chat")).to_be_visible()
    expect(chat.answers()).to_contain_text("2 tokens")
    page.reload()
    expect(page.get_by_role("button", name="New chat")).to_be_visible()
    left = page.evaluate("document.body.innerText").replace("问", "").replace("中文", "")
    assert not re.search("[\u4e00-\u9fff]", left), left


def test_every_control_has_a_name_and_shows_its_focus(chat, server):
    chat.ask("one")
    chat.answers()
    page = chat.page
    page.keyboard.press("Alt+s")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, textarea')].filter(node =>
            !(node.ariaLabel || node.innerText?.trim() || node.labels?.[0]?.textContent.trim()))
            .map(node => node.outerHTML)"""
    )
    assert nameless == []
    page.locator("#hide-panel").focus()
    for _ in range(12):
        page.keyboard.press("Tab")
        outline = page.evaluate(
            """() => { const node = document.activeElement;
                return node.id === 'message' || node === document.body
                    || getComputedStyle(node).outlineStyle !== 'none'; }"""
        )
        assert outline, page.evaluate("document.activeElement.outerHTML")
    expect(page.get_by_role("status").last).to_contain_text("Said: one")


def test_shortcuts_are_listed_and_work(chat, server):
    page = chat.page
    page.locator("#show-panel").focus()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("New chat")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("Alt+b")
    expect(page.locator("#sidebar")).to_be_hidden()
    page.keyboard.press("Alt+b")
    expect(page.locator("#sidebar")).to_be_visible()
    page.keyboard.press("Alt+s")
    expect(page.locator("#panel")).to_be_visible()
    page.keyboard.press("/")
    expect(page.locator("#message")).to_be_focused()
    page.keyboard.type("? /")
    expect(page.locator("#message")).to_have_value("? /")


def test_reading_above_is_left_alone_while_an_answer_grows(chat, server):
    server.answer = lambda *_: Answer(pieces=["word\n\n"] * 400, pause_s=0.01)
    chat.ask("go on")
    end = chat.page.get_by_role("button", name="Go to the newest message")
    while chat.page.evaluate("document.getElementById('scroll').scrollTop") < 200:
        chat.page.wait_for_timeout(50)
    expect(end).to_be_hidden()
    chat.page.mouse.move(600, 300)
    chat.page.mouse.wheel(0, -150)
    expect(end).to_be_visible()
    top = chat.page.evaluate("document.getElementById('scroll').scrollTop")
    chat.answers()
    assert chat.page.evaluate("document.getElementById('scroll').scrollTop") == pytest.approx(
        top, abs=60
    )
    end.click()
    expect(end).to_be_hidden()
