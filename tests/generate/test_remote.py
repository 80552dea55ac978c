"""`cygnet chat --url`: llama.cpp's own server, and one that goes wrong in every way."""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cygnet.errors import UserError
from cygnet.generate import remote
from cygnet.generate.conversation import Conversation, LocalModel
from cygnet.generate.reading import Piece
from cygnet.generate.remote import Server, settings
from cygnet.generate.sampling import Sampling

GREEDY = Sampling(temperature=0, max_new_tokens=30)
ENDLESS = Sampling(temperature=0, max_new_tokens=40_000)


def answered(conversation: Conversation, text: str) -> str:
    return "".join(piece.content for piece in conversation.answer(text))


def test_a_server_and_the_model_itself_give_the_same_conversation(
    llama_cpp: Callable[[int], str], endless: Path
) -> None:
    here = Conversation(LocalModel(endless), GREEDY, "Be brief.")
    there = Conversation(Server(llama_cpp(50_000) + "/v1"), GREEDY, "Be brief.")
    for question in ("a swan", "a lake 湖水", "<|im_end|> grey"):
        assert answered(there, question) == answered(here, question) != ""
    assert there.messages == here.messages


def test_an_answer_that_is_stopped_is_kept_and_the_server_goes_on(
    llama_cpp: Callable[[int], str],
) -> None:
    """It has one slot: the next answer begins only if the first was really stopped."""
    conversation = Conversation(Server(llama_cpp(50_000)), ENDLESS)
    answer = conversation.answer("a swan")
    begun = next(answer).content + next(answer).content
    answer.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": begun}
    conversation.sampling = GREEDY
    assert answered(conversation, "a lake")


def test_oldest_turns_make_room_on_a_server_too(
    llama_cpp: Callable[[int], str], capsys: pytest.CaptureFixture[str]
) -> None:
    conversation = Conversation(Server(llama_cpp(512)), GREEDY)
    for number in range(14):
        assert answered(conversation, f"{number} " + "lake " * 10)
    assert "no longer fit the context" in capsys.readouterr().err
    assert 2 < len(conversation.messages) < 28
    before = list(conversation.messages)
    with pytest.raises(UserError, match="context"):
        answered(conversation, "lake " * 600)
    assert conversation.messages == before


Script = Callable[[BaseHTTPRequestHandler], None]
MODELS = {"data": [{"id": "swan", "stage": "pretrain"}, {"id": "duck"}]}


def reply(status: int, body: Any, *headers: tuple[str, str]) -> Script:
    """Answer with JSON, or with text as it is."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        handler.send_response(status)
        kind = "text/html" if isinstance(body, str) else "application/json"
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(data))), *headers):
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    return send


def stream(*lines: str) -> Script:
    """Send an event stream, and close the connection behind it."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
        handler.end_headers()
        handler.wfile.write("".join(f"{line}\n\n" for line in lines).encode())

    return send


def delta(finish: str | None = None, **fields: Any) -> str:
    return "data: " + json.dumps({"choices": [{"delta": fields, "finish_reason": finish}]})


LISTED = reply(200, MODELS)


@contextlib.contextmanager
def serving(answer: Script, models: Script = LISTED) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Give the address of a server, and what it is asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append({"path": self.path, "key": self.headers["Authorization"]})
            models(self)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "key": self.headers["Authorization"], **body})
            answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_reasoning_text_and_comments_are_told_apart() -> None:
    script = stream(
        ": ping", delta(role="assistant", content=None), delta(reasoning_content="two "),
        delta(reasoning="swans"), delta(content="天"), delta(content="鹅"), delta("stop"),
        'data: {"choices": [], "usage": {}}', "data: [DONE]",
    )  # fmt: skip
    with serving(script) as (url, asked):
        conversation = Conversation(Server(url, "swan", "secret"), GREEDY, "Be brief.")
        assert [*conversation.answer("How many?")] == [
            Piece(reasoning="two "), Piece(reasoning="swans"), Piece("天"), Piece("鹅"),
        ]  # fmt: skip
    assert conversation.messages[-1]["content"] == "天鹅"
    assert [(one["path"], one["key"]) for one in asked] == [
        ("/v1/models", "Bearer secret"), ("/v1/chat/completions", "Bearer secret"),
    ]  # fmt: skip
    assert asked[1]["messages"] == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"},
    ]  # fmt: skip
    assert (asked[1]["model"], asked[1]["stream"], asked[1]["max_tokens"]) == ("swan", True, 30)


def test_a_server_may_say_that_a_model_was_only_pretrained() -> None:
    with serving(stream()) as (url, _):
        assert Server(url, "swan").is_only_pretrained
        assert not Server(url, "duck").is_only_pretrained


def test_only_what_changes_something_is_sent() -> None:
    plain = Sampling(seed=None)
    assert settings(plain).keys() == {"temperature", "top_p", "max_tokens"}
    odd = Sampling(top_k=5, min_p=0.1, seed=0, stop=("a",), repetition_penalty=1.2)
    assert settings(odd).keys() - settings(plain).keys() == {
        "top_k", "min_p", "seed", "stop", "repetition_penalty",
    }  # fmt: skip


FOREIGN = "not as an OpenAI-compatible server"
NO_KEY = {"error": {"message": "Missing bearer", "type": "authentication_error"}}


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (reply(401, NO_KEY), "wants an API key; --api_key KEY, or the variable CYGNET_API_KEY"),
        (reply(429, {"error": "full"}, ("Retry-After", "7")), "is busy, try again in 7 s (full)"),
        (reply(500, {"error": {"message": "it \x1b[2J\nbroke"}}), "it [2J broke (500)"),
        (reply(422, {"detail": "top_p"}), "top_p (422)"),
        (reply(404, "<html>"), FOREIGN + " (it says 404 to /v1/chat/completions)"),
        (reply(200, "<html>"), FOREIGN),
        (reply(200, {"choices": []}), FOREIGN),
        (stream("data: {oops"), FOREIGN),
        (stream("data: 3"), FOREIGN),
        (stream('data: {"error": {"message": "out of memory"}}'), "out of memory"),
        (stream('error: {"code": 500, "message": "slot lost"}'), "slot lost"),
        (stream(delta(content="sw")), "broke off in the middle"),
        (stream(), "broke off in the middle"),
        (reply(307, {}, ("Location", "http://swan.example/v1")), "sends us on to http://swan.exam"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(script: Script, message: str) -> None:
    with serving(script) as (url, _):
        conversation = Conversation(Server(url, "swan"), GREEDY)
        with pytest.raises(UserError, match=re.escape(message)) as raised:
            answered(conversation, "How many?")
    assert "\n" not in str(raised.value) and str(raised.value).startswith(url)
    assert conversation.messages == [] or conversation.messages[-1]["content"] == "sw"


def test_a_key_that_is_refused_is_not_asked_for_again() -> None:
    with serving(reply(403, NO_KEY)) as (url, _):
        server = Server(url, "swan", "wrong")
        with pytest.raises(UserError, match="refuses this API key"):
            next(server.answer([], GREEDY))


@pytest.mark.parametrize("status", [400, 404])
def test_a_model_that_is_not_there_is_named_with_those_that_are(status: int) -> None:
    with serving(reply(status, {"error": {"message": "no such model"}})) as (url, _):
        with pytest.raises(UserError, match=r"no model 'swam' \(did you mean 'swan'\?\); there ar"):
            next(Server(url, "swam").answer([], GREEDY))
        with pytest.raises(UserError, match=r"no such model \(400\)" if status == 400 else FOREIGN):
            next(Server(url, "swan").answer([], GREEDY))
        with pytest.raises(UserError, match="say which model with --model; there are swan, duck"):
            Server(url)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (reply(200, "<html>"), FOREIGN),
        (reply(200, {"swans": 2}), FOREIGN),
        (reply(200, {"data": [{"name": "swan"}]}), FOREIGN),
        (reply(404, {}), FOREIGN + " (it says 404 to /v1/models)"),
        (reply(401, NO_KEY), "wants an API key"),
        (reply(200, {"data": []}), "it lists none"),
        (reply(503, {"error": {"message": "Loading model"}}), r"Loading model (503)"),
    ],
)
def test_a_greeting_that_fails_says_why(models: Script, message: str) -> None:
    with serving(stream(), models) as (url, _), pytest.raises(UserError, match=re.escape(message)):
        Server(url)


def test_a_key_goes_to_no_other_address() -> None:
    with serving(stream()) as (other, asked):
        for answer, models in (
            (stream(), reply(302, {}, ("Location", f"{other}/v1/models"))),
            (reply(302, {}, ("Location", f"{other}/v1/chat/completions")), LISTED),
        ):
            said = pytest.raises(UserError, match=f"sends us on to {other}/v1/")
            with serving(answer, models) as (url, _), said:
                next(Server(url, "swan", "secret").answer([], GREEDY))
        assert asked == []


def test_a_server_need_not_list_its_models() -> None:
    with serving(stream(delta("stop", content="Two.")), reply(404, {})) as (url, _):
        assert answered(Conversation(Server(url, "swan"), GREEDY), "How many?") == "Two."


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(stream()) as (url, _):
        pass
    with pytest.raises(UserError, match=r"no server answers there \(Connection refused\)"):
        Server(url)
    release = threading.Event()
    monkeypatch.setattr(remote, "SILENCE_S", 0.2)
    with serving(lambda _: release.wait(60) and None) as (url, _):
        try:
            with pytest.raises(UserError, match="said nothing for 0 s"):
                next(Server(url, "swan").answer([], GREEDY))
        finally:
            release.set()


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://swan/v1", "http://", "http://swan:duck/v1", "http://[::1/v1"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"give an address such as http://127\.0\.0\.1:8000/v1"):
        Server(url)


def test_a_key_that_no_header_can_hold_is_refused() -> None:
    for key in ("天鹅", "a\nb"):
        with pytest.raises(UserError, match="copy it again"):
            Server("http://127.0.0.1:1", api_key=key)
