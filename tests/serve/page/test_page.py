"""The chat page in a browser: what a person does, and what can go wrong."""

from __future__ import annotations

import json
import re

import pytest

from cygnet.messages import parse_messages, validate
from tests.serve.running import running, wait_for
from tests.serve.scripted import MODEL, Answer

pytest.importorskip("playwright")
from playwright.sync_api import expect

from tests.serve.page.chat import Chat, said

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
