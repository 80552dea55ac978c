"""The chat page in a browser: what a person does, and what a hostile model cannot do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from cygnet.messages import parse_messages, validate
from cygnet.serve.page_files import FOLDER
from tests.serve.running import running, wait_for
from tests.serve.scripted import MODEL, Answer, ScriptedServer, scripted

pytest.importorskip("playwright")
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
WAIT_MS = 60_000
expect.set_options(timeout=WAIT_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Chat:
    """A page, and everything that it asked for, said to the console, or let run."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.context = context
        self.requested: list[str] = []
        self.troubles: list[str] = []
        context.on("request", lambda request: self.requested.append(request.url))
        context.on("weberror", lambda error: self.troubles.append(str(error.error)))
        context.on("console", lambda message: self._heard(message.type, message.text))
        context.on("dialog", lambda dialog: (self.troubles.append("dialog"), dialog.dismiss()))
        context.set_default_timeout(WAIT_MS)
        self.page = self.open()

    def _heard(self, kind: str, text: str) -> None:
        # The browser itself reports each answer that is an error.
        if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
            self.troubles.append(text)

    def open(self) -> Page:
        page = self.context.new_page()
        page.goto(self.url)
        return page

    def ask(self, text: str) -> None:
        self.page.locator("#message").fill(text)
        self.page.locator("#message").press("Enter")

    def answers(self, state: str = "done", count: int = 1) -> Locator:
        """Wait for so many answers in this state."""
        found = self.page.locator(f'.answer[data-state="{state}"]')
        expect(found).to_have_count(count)
        return found

    def stored(self) -> dict[str, str]:
        return self.page.evaluate("({...localStorage})")

    def check(self) -> None:
        assert self.troubles == []
        assert [url for url in self.requested if not url.startswith((self.url, "data:"))] == []


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted(lambda body, _: Answer(pieces=["Said: ", said(body)])) as serving:
        yield serving


@pytest.fixture
def options() -> dict[str, Any]:
    """How the browser is; a test may parametrize it."""
    return {}


@pytest.fixture
def chat(browser: Browser, server: ScriptedServer, options: dict[str, Any]) -> Iterator[Chat]:
    context = browser.new_context(**options)
    opened = Chat(context, server.url)
    yield opened
    context.close()
    opened.check()


def said(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"]


# --- with real models ---------------------------------------------------------------------------


def test_a_real_model_is_talked_to_stopped_compared_and_asked_for_its_key(browser, endless):
    names = (f"one={endless}", f"two={endless}")
    with running(*names, api_key=("secret",)) as real:
        context = browser.new_context()
        chat = Chat(context, f"{real.url}/")
        assert "script-src 'self'" in chat.page.goto(chat.url).headers["content-security-policy"]
        chat.page.get_by_label("API key").fill("secret")
        chat.page.get_by_label("API key").press("Enter")
        chat.page.keyboard.press("Alt+s")
        for label, value in (("Longest answer", "30"), ("Seed", "3"), ("Temperature", "1")):
            chat.page.get_by_role("spinbutton", name=label).fill(value)
            chat.page.get_by_role("spinbutton", name=label).press("Tab")
        chat.ask("天鹅 on a lake")
        figures = chat.answers().locator(".figures")
        expect(figures).to_contain_text(
            re.compile(r"\d tokens/s · \d+ tokens · context \d+ of \d+")
        )
        first = chat.answers().locator(".prose:visible").inner_text()
        chat.page.get_by_role("button", name="Regenerate").click()
        expect(chat.page.locator(".tries")).to_contain_text("2/2")
        assert chat.answers().locator(".prose:visible").inner_text() == first

        chat.page.get_by_role("button", name="Ask another model the same question").click()
        chat.page.get_by_role("button", name="Reset").click()
        for label, value in (("Longest answer", "40000"), ("Top-k", "20")):  # it never ends then
            chat.page.get_by_role("spinbutton", name=label).fill(value)
            chat.page.get_by_role("spinbutton", name=label).press("Tab")
        chat.ask("and now")
        for answer in chat.page.locator(".turn").nth(1).locator(".answer").all():
            expect(answer.locator(".figures")).to_contain_text("tokens/s")
        chat.page.get_by_role("button", name="Stop").click()
        expect(chat.page.get_by_role("button", name="Send")).to_be_visible()
        wait_for(lambda: all(driver.engine.is_idle for driver in real.service.drivers))
        kept = chat.page.locator("#turns").inner_text()
        chat.page.reload()
        expect(chat.page.locator(".answer")).to_have_count(3)
        expect(chat.page.get_by_role("combobox", name="Model")).to_have_count(2)
        assert chat.page.locator("#turns").inner_text() == kept
        context.close()
        chat.check()


# --- a conversation -----------------------------------------------------------------------------


def test_a_conversation_goes_on_and_outlives_a_reload(chat, server):
    chat.ask("one")
    expect(chat.answers()).to_contain_text("Said: one")
    expect(chat.page.locator(".figures")).to_contain_text("2 tokens · context 9 of 512")
    chat.ask("two")
    chat.answers(count=2)
    assert server.asked[1]["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "Said: one"},
        {"role": "user", "content": "two"},
    ]
    chat.page.reload()
    expect(chat.answers(count=2).nth(1)).to_contain_text("Said: two")
    chat.ask("three")
    chat.answers(count=3)
    assert len(server.asked[2]["messages"]) == 5
    assert chat.page.title() == "one · Cygnet"


def test_shift_enter_and_the_enter_of_an_input_method_send_nothing(chat, server):
    field = chat.page.locator("#message")
    field.fill("first")
    field.press("Shift+Enter")
    field.type("second")
    composing = {"key": "Enter", "isComposing": True, "bubbles": True, "cancelable": True}
    field.dispatch_event("keydown", composing)
    assert field.input_value() == "first\nsecond"
    assert server.asked == []
    field.press("Enter")
    chat.answers()
    assert said(server.asked[0]) == "first\nsecond"


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stop_keeps_what_came_and_leaves_the_server(chat, server, how):
    server.answer = lambda *_: Answer(pieces=["word "] * 10_000, pause_s=0.02)
    chat.ask("go on")
    expect(chat.answers("streaming")).to_contain_text("word word")
    expect(chat.page.locator(".figures")).to_contain_text("tokens/s")
    if how == "button":
        chat.page.get_by_role("button", name="Stop").click()
    else:
        chat.page.keyboard.press("Escape")
    expect(chat.answers("stopped")).to_contain_text("stopped")
    assert server.dropped.wait(60)
    chat.page.reload()
    expect(chat.answers("stopped")).to_contain_text("word word")


def test_an_answer_that_a_reload_cut_is_kept_and_can_be_asked_again(chat, server):
    server.answer = lambda *_: Answer(pieces=["word "] * 10_000, pause_s=0.02)
    chat.ask("go on")
    expect(chat.answers("streaming")).to_contain_text("word word")
    chat.page.reload()
    expect(chat.answers("interrupted")).to_contain_text("word word")
    server.answer = lambda *_: Answer(pieces=["whole"])
    chat.page.get_by_role("button", name="Regenerate").click()
    expect(chat.answers()).to_contain_text("whole")


def test_answering_goes_on_while_another_conversation_is_open(chat, server):
    server.answer = lambda *_: Answer(pieces=["word "] * 100 + ["end"], pause_s=0.02)
    chat.ask("go on")
    chat.answers("streaming")
    chat.page.keyboard.press("Alt+n")
    expect(chat.page.locator("#welcome")).to_be_visible()
    expect(chat.page.get_by_role("button", name="Send")).to_be_visible()
    chat.page.locator(".chat").click()
    expect(chat.answers()).to_contain_text("end")


def test_regenerating_keeps_the_earlier_answer_and_the_chosen_one_counts(chat, server):
    server.answer = lambda *_: Answer(pieces=[f"try {len(server.asked)}"])
    chat.ask("something")
    chat.answers()
    chat.page.get_by_role("button", name="Regenerate").click()
    expect(chat.answers()).to_contain_text("try 2")
    assert server.asked[0] == server.asked[1]
    chat.page.get_by_role("button", name="Earlier answer").click()
    expect(chat.answers()).to_contain_text("try 1")
    chat.page.reload()
    expect(chat.answers()).to_contain_text("try 1")
    chat.ask("more")
    chat.answers(count=2)
    assert server.asked[2]["messages"][1]["content"] == "try 1"


def test_an_edited_message_replaces_what_followed_until_undone(chat, server):
    for text in ("one", "two", "three"):
        chat.ask(text)
        expect(chat.page.locator(".answer").last).to_contain_text(f"Said: {text}")
    chat.answers(count=3)
    chat.page.locator(".question").nth(1).hover()
    chat.page.get_by_role("button", name="Edit").nth(1).click()
    field = chat.page.get_by_role("textbox", name="Edit the message")
    assert field.input_value() == "two"
    field.fill("other")
    field.press("Enter")
    expect(chat.answers(count=2).nth(1)).to_contain_text("Said: other")
    messages = [message["content"] for message in server.asked[-1]["messages"]]
    assert messages == ["one", "Said: one", "other"]
    chat.page.get_by_role("button", name="Undo").click()
    expect(chat.answers(count=3).nth(2)).to_contain_text("Said: three")
    chat.page.reload()
    chat.answers(count=3)


def test_escape_leaves_a_message_as_it_was(chat, server):
    chat.ask("one")
    chat.answers()
    chat.page.locator("#message").press("ArrowUp")
    field = chat.page.get_by_role("textbox", name="Edit the message")
    field.fill("other")
    # A new drawing of the page does not take away what is being written.
    chat.page.keyboard.press("Alt+s")
    chat.page.get_by_label("Language").select_option("zh")
    chat.page.get_by_label("语言").select_option("en")
    expect(field).to_have_value("other")
    field.press("Escape")
    expect(chat.page.locator(".bubble")).to_have_text("one")
    assert len(server.asked) == 1


def test_thinking_is_folded_and_is_not_sent_back(chat, server):
    server.answer = lambda *_: Answer(reasoning=["Let me ", "*think*"], pieces=["Done."])
    chat.ask("why")
    answer = chat.answers()
    thoughts = answer.locator("details")
    assert thoughts.get_attribute("open") is None
    expect(thoughts.get_by_text("Let me")).to_be_hidden()
    thoughts.locator("summary").click()
    expect(thoughts.locator("em")).to_have_text("think")
    chat.ask("and")
    chat.answers(count=2)
    assert server.asked[1]["messages"][1] == {"role": "assistant", "content": "Done."}


def test_system_prompt_and_sampling_are_sent_until_reset(chat, server):
    chat.page.get_by_role("button", name="Settings", exact=True).click()
    chat.page.get_by_label("System prompt").fill("Be brief.")
    values = {"Temperature": "0.3", "Top-p": "0.5", "Top-k": "7", "Min-p": "0.05",
              "Longest answer": "9", "Seed": "0", "Repetition penalty": "1.1",
              "Presence penalty": "-1", "Frequency penalty": "99"}  # fmt: skip
    for label, value in values.items():
        field = chat.page.get_by_role("spinbutton", name=label, exact=True)
        field.fill(value)
        field.press("Tab")
    chat.page.get_by_label("Thinking", exact=True).select_option("off")
    chat.page.reload()
    chat.page.get_by_label("System prompt").fill("Be brief.")
    chat.ask("one")
    chat.answers()
    sent = {name: value for name, value in server.asked[0].items() if name != "messages"}
    assert sent == {
        "model": "tiny", "stream": True, "stream_options": {"include_usage": True},
        "temperature": 0.3, "top_p": 0.5, "top_k": 7, "min_p": 0.05, "max_tokens": 9, "seed": 0,
        "repetition_penalty": 1.1, "presence_penalty": -1, "frequency_penalty": 2,
        "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip
    assert server.asked[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    chat.page.get_by_role("button", name="Reset").click()
    chat.ask("two")
    chat.answers(count=2)
    assert set(server.asked[1]) == {"model", "messages", "stream", "stream_options"}


def test_stages_side_by_side_each_go_on_from_their_own_answers(chat, server):
    stages = ["pretrain", "sft", "dpo"]
    server.models = [{**MODEL, "id": f"run/{stage}", "stage": stage} for stage in stages]
    server.answer = lambda body, _: Answer(pieces=[f"{body['model']} to {said(body)}"])
    chat.page.reload()
    expect(chat.page.get_by_role("combobox", name="Model")).to_have_value("run/dpo")
    chat.page.get_by_role("button", name="Compare how training changed the answer").click()
    chat.ask("one")
    shown = chat.answers(count=3)
    assert shown.locator(".prose:visible").all_inner_texts() == [
        "run/pretrain to one", "run/sft to one", "run/dpo to one",
    ]  # fmt: skip
    assert shown.locator(".stage").all_inner_texts() == ["pretrained", "tuned", "aligned"]
    tops = [one.bounding_box()["y"] for one in shown.all()]
    assert len(set(tops)) == 1
    chat.page.get_by_role("button", name="Leave out run/pretrain").click()
    chat.ask("two")
    chat.answers(count=5)
    sent = {body["model"]: body["messages"][1]["content"] for body in server.asked[3:]}
    assert sent == {"run/sft": "run/sft to one", "run/dpo": "run/dpo to one"}


# --- what the browser keeps ---------------------------------------------------------------------


def test_conversations_are_renamed_saved_deleted_and_brought_back(chat, server):
    chat.ask("one")
    chat.answers()
    menu = chat.page.get_by_role("button", name="More about “one”")
    menu.click()
    chat.page.get_by_role("menuitem", name="Rename").click()
    chat.page.get_by_role("textbox", name="Title").fill("A/new: name")
    chat.page.keyboard.press("Enter")
    chat.page.reload()
    server.answer = lambda *_: Answer(status=400, error={"message": "no"})
    chat.ask("a question without an answer")
    chat.answers("error")
    menu = chat.page.get_by_role("button", name="More about “A/new: name”")
    menu.click()
    with chat.page.expect_download() as download:
        chat.page.get_by_role("menuitem", name="JSONL").click()
    assert download.value.suggested_filename == "A new name.jsonl"
    rows = download.value.path().read_text().splitlines()
    assert [json.loads(row)["messages"] for row in rows] == [
        [{"role": "user", "content": "one"}, {"role": "assistant", "content": "Said: one"}]
    ]
    validate(parse_messages(json.loads(rows[0])))  # ready to be learnt from
    menu.click()
    with chat.page.expect_download() as download:
        chat.page.get_by_role("menuitem", name="Markdown").click()
    assert "Said: one" in download.value.path().read_text()
    menu.click()
    chat.page.get_by_role("menuitem", name="Delete").click()
    expect(chat.page.locator(".chat")).to_have_count(0)
    assert not any(key.startswith("cygnet.chat.") for key in chat.stored())
    chat.page.get_by_role("button", name="Undo").click()
    expect(chat.answers()).to_contain_text("Said: one")
    expect(chat.answers("error")).to_have_count(1)
    assert any(key.startswith("cygnet.chat.") for key in chat.stored())


DAMAGED = ["", "{", "null", "[]", '{"id": "x"}', '"\ud83d"', '{"turns": [{"answers": 3}]}']


def test_what_is_damaged_in_storage_costs_nothing_else_and_stays(chat, server):
    chat.ask("whole")
    chat.answers()
    stored = {f"cygnet.chat.damaged{i}": text for i, text in enumerate(DAMAGED)}
    whole = json.loads(next(v for k, v in chat.stored().items() if k.startswith("cygnet.chat.")))
    stored[f"cygnet.chat.{whole['id']}y"] = json.dumps(whole)  # under another's key
    whole["turns"][0]["answers"][0]["chosen"] = 5
    stored[f"cygnet.chat.{whole['id']}x"] = json.dumps({**whole, "id": whole["id"] + "x"})
    stored["cygnet.settings"] = '{"models": {"a": 1}, "sampling": [], "theme": 7, "language": []}'
    script = "all => Object.entries(all).forEach(([k, v]) => localStorage.setItem(k, v))"
    chat.page.evaluate(script, stored)
    chat.page.reload()
    expect(chat.answers()).to_contain_text("Said: whole")
    expect(chat.page.locator(".damaged")).to_contain_text(f"{len(stored) - 1} stored")
    chat.ask("more")
    chat.answers(count=2)
    with chat.page.expect_download() as download:
        chat.page.get_by_role("button", name="Save to a file").click()
    kept = json.loads(download.value.path().read_text())
    assert kept == {key: text for key, text in stored.items() if "chat" in key}
    assert {key: chat.stored()[key] for key in kept} == kept
    chat.page.evaluate("localStorage.setItem('cygnet.settings', '{')")
    chat.page.reload()
    chat.answers(count=2)
    chat.page.locator(".damaged").get_by_role("button", name="Delete").click()
    assert sum(key.startswith("cygnet.chat.") for key in chat.stored()) == 1


def test_a_full_storage_is_said_and_the_conversation_goes_on(chat, server):
    fill = """() => { for (let size = 1 << 20, i = 0; size >= 1; ) {
        try { localStorage.setItem(`fill${i++}`, 'x'.repeat(size)); } catch { size >>= 1; } } }"""
    chat.page.evaluate(fill)
    chat.ask("one")
    expect(chat.answers()).to_contain_text("Said: one")
    expect(chat.page.locator("#banner")).to_contain_text("storage is full")
    chat.ask("two")
    chat.answers(count=2)


def test_two_tabs_do_not_overwrite_each_other(chat, server):
    other = chat.open()
    chat.ask("in the first")
    chat.answers()
    expect(other.locator(".chat")).to_have_text("in the first")
    other.locator("#message").fill("in the second")
    other.locator("#message").press("Enter")
    expect(chat.page.locator(".chat")).to_have_count(2)
    expect(chat.page.locator(".bubble")).to_have_text("in the first")


def test_what_was_typed_outlives_a_reload(chat, server):
    chat.page.locator("#message").fill("half a thought")
    chat.page.reload()
    expect(chat.page.locator("#message")).to_have_value("half a thought")
    chat.page.locator("#message").press("Enter")
    chat.answers()
    expect(chat.page.locator("#message")).to_have_value("")
    chat.page.reload()
    expect(chat.page.locator("#message")).to_have_value("")


# --- what can go wrong ----------------------------------------------------------------------------


def test_a_busy_server_is_asked_again_after_the_time_that_it_names(chat, server):
    busy = Answer(status=429, error={"message": "full"}, headers={"Retry-After": "2"})
    server.answer = lambda *_: busy if len(server.asked) < 3 else Answer(pieces=["at last"])
    chat.ask("one")
    expect(chat.page.locator(".busy")).to_contain_text(re.compile("again in [12] s"))
    expect(chat.answers()).to_contain_text("at last")
    assert len(server.asked) == 3
    expect(chat.page.locator(".busy")).to_have_count(0)


FAILURES = {
    "refused": (Answer(status=400, error={"message": "no <b>such</b> thing"}), "no <b>such</b>"),
    "server": (Answer(status=500, error={"message": "a mistake"}), "The server failed"),
    "no words": (Answer(status=502, error={}), "HTTP 502"),
    "cut": (Answer(pieces=["begun "] * 3, is_cut=True), "begun begun"),
    "context": (
        Answer(status=400, error={"message": "700", "code": "context_length_exceeded"}),
        "too long for the model's context",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_an_error_is_shown_and_loses_nothing(chat, server, name):
    failure, words = FAILURES[name]
    server.answer = lambda *_: failure
    chat.ask("a long question")
    expect(chat.answers("error")).to_contain_text(words)
    chat.page.reload()
    expect(chat.page.locator(".bubble")).to_have_text("a long question")
    expect(chat.answers("error")).to_contain_text(words)
    server.answer = lambda body, _: Answer(pieces=[f"Said: {said(body)}"])
    chat.page.get_by_role("button", name="Try again").click()
    expect(chat.answers()).to_contain_text("Said: a long question")


def test_a_server_that_went_away_is_said_and_can_be_asked_again(chat, server):
    chat.page.context.set_offline(True)
    chat.ask("a question")
    expect(chat.answers("error")).to_contain_text("The server can't be reached")
    expect(chat.page.locator(".bubble")).to_have_text("a question")
    chat.page.context.set_offline(False)
    chat.page.get_by_role("button", name="Try again").click()
    expect(chat.answers()).to_contain_text("Said: a question")


def test_what_cannot_be_sent_yet_stays_in_its_field(chat, server):
    server.models = []
    chat.page.reload()
    expect(chat.page.locator("#banner")).to_contain_text("offers no model")
    chat.ask("early")
    expect(chat.page.locator("#message")).to_have_value("early")
    server.models = [MODEL]
    chat.page.locator("#message").press("Enter")
    expect(chat.answers()).to_contain_text("Said: early")
    expect(chat.page.locator("#banner")).to_be_empty()
    expect(chat.page.locator("#message")).to_have_value("")


def test_what_is_sent_before_the_models_are_known_waits_for_them(chat, server):
    server.models_known.clear()
    chat.page.reload()
    chat.ask("early")
    server.models_known.set()
    expect(chat.answers()).to_contain_text("Said: early")


def test_the_oldest_turns_make_room_where_the_context_is_short(chat, server):
    too_long = Answer(status=400, error={"message": "", "code": "context_length_exceeded"})
    server.answer = lambda body, _: (
        too_long if len(body["messages"]) > 3 else Answer(pieces=[f"Said: {said(body)}"])
    )
    for text in ("one", "two"):
        chat.ask(text)
        expect(chat.page.locator(".answer").last).to_contain_text(f"Said: {text}")
    chat.answers(count=2)
    chat.ask("three")
    expect(chat.answers(count=3).last).to_contain_text("The oldest 1 exchanges")
    contents = [message["content"] for message in server.asked[-1]["messages"]]
    assert contents == ["two", "Said: two", "three"]


def test_the_key_is_asked_once_and_kept_for_the_tab_alone(chat, server):
    server.key = "secret-1"
    chat.page.reload()
    dialog = chat.page.get_by_role("dialog")
    dialog.get_by_label("API key").fill("wrong")
    dialog.get_by_label("API key").press("Enter")
    expect(dialog).to_contain_text("wrong key")
    dialog.get_by_label("API key").fill("密钥")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog).to_contain_text("without spaces")
    dialog.get_by_label("API key").fill("secret-1")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog).to_be_hidden()
    chat.ask("one")
    chat.answers()
    chat.page.reload()
    chat.ask("two")
    chat.answers(count=2)
    assert not any("secret-1" in value for value in chat.stored().values())
    server.key = "secret-2"
    chat.ask("three")
    dialog.get_by_label("API key").fill("secret-2")
    dialog.get_by_label("Remember it in this browser").check()
    dialog.get_by_role("button", name="Use this key").click()
    expect(chat.answers(count=3).last).to_contain_text("Said: three")
    assert chat.stored()["cygnet.key"] == "secret-2"


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
