"""Whatever is wrong with a request, it is told in OpenAI's shape, and the server goes on."""

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cygnet.serve.driver import Driver
from tests.serve.running import Running, running

USER = {"role": "user", "content": "a swan"}
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def error_of(response: httpx.Response) -> dict[str, Any]:
    told = response.json()
    assert set(told) == {"error"} and set(told["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in told["error"]["message"]
    return told["error"]


def deep(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        (CHAT, {}, "messages", "messages: Field required"),
        (CHAT, {"messages": []}, "messages", "at least 1 item"),
        (CHAT, {"messages": [{"role": "robot"}]}, "messages[0].role", "'system', 'developer'"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        (CHAT, {"messages": [USER, {"role": "system", "content": "x"}]}, "messages[1].role",
         "stands first"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages[0].content[0].type", "Input should be 'text'"),
        (CHAT, {"messages": [{"role": "user", "content": "long " * 5000}]}, "messages",
         "the model's context ends"),
        (CHAT, {"messages": [USER], "temperature": -1}, "temperature", "greater than or equal"),
        (CHAT, {"messages": [USER], "temperature": 1e300}, "temperature", "less than or equal"),
        (CHAT, {"messages": [USER], "top_p": 0}, "top_p", "greater than 0"),
        (CHAT, {"messages": [USER], "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        (CHAT, {"messages": [USER], "max_tokens": 10**30}, "max_tokens", ""),
        (CHAT, {"messages": [USER], "n": 17}, "n", "17 asked for, and this server takes 16"),
        (CHAT, {"messages": [USER], "seed": 2**63}, "seed", ""),
        (CHAT, {"messages": [USER], "stop": ""}, "stop", "at least 1 character"),
        (CHAT, {"messages": [USER], "stop": ["a"] * 17}, "stop", "16"),
        (CHAT, {"messages": [USER], "logit_bias": {"9999": 1}}, "logit_bias", "beyond 0 to"),
        (CHAT, {"messages": [USER], "logit_bias": {"x": 1}}, "logit_bias.x", "valid integer"),
        (CHAT, {"messages": [USER], "top_logprobs": 2}, "top_logprobs", "set logprobs"),
        (CHAT, {"messages": [USER], "functions": [{"name": "f"}]}, "functions", "not supported"),
        (CHAT, {"messages": [USER], "tool_choice": "required"}, "tool_choice", "no tools"),
        (CHAT, {"messages": [USER], "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice",
         "'g' is none of the tools"),
        (CHAT, {"messages": [USER], "response_format": {"type": "json_schema"}},
         "response_format.json_schema", "missing"),
        (CHAT, {"messages": [USER], "response_format": {"type": "json_schema", "json_schema": {
            "schema": {"type": "nonsense"}}}}, "response_format.json_schema", "nonsense"),
        (CHAT, {"messages": [USER], "chat_template_kwargs": deep(260)}, None,
            "nested too deeply: at most 256"),
        (COMPLETIONS, {"prompt": []}, "prompt", "empty"),
        (COMPLETIONS, {"prompt": [1, 99999]}, "prompt", "beyond 0 to"),
        (COMPLETIONS, {"prompt": ["a"] * 20}, "prompt", "20 asked for"),
        (COMPLETIONS, {"prompt": ["a"] * 10, "n": 2}, "n", "20 asked for"),
        (COMPLETIONS, {"prompt": "a", "n": 3, "best_of": 2}, "best_of", "less than n"),
        (COMPLETIONS, {"prompt": "a", "best_of": 2, "stream": True}, "best_of", "streamed"),
        (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
        (COMPLETIONS, {"prompt": "a", "echo": True, "logprobs": 1}, "echo", "logprobs"),
        (EMBEDDINGS, {}, "input", "required"),
        (EMBEDDINGS, {"input": "a", "encoding_format": "hex"}, "encoding_format", "'float'"),
        (EMBEDDINGS, {"input": "a" * 9000}, "messages", "context ends"),
        (EMBEDDINGS, {"input": [[-1]]}, "input[0][0]", ""),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(
    server: Running, path: str, body: Any, param: str | None, message: str
) -> None:
    with server.http as http:
        response = http.post(path, json=body)
        assert response.status_code == 400, response.text
        error = error_of(response)
        assert error["param"] == param and message in error["message"]
        assert error["type"] == "invalid_request_error"
        assert http.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "must be a JSON object"),
        (b"{", 400, "the body is no JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b"\xff\xfe", 400, "the body is no UTF-8: byte 0 is 0xff"),
        (b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}', 400, "no UTF-8"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', 400, "holds \\ud83d without"),
        (b'{"messages": [{"role": "user", "content": "x"}], "tools": {"\\uDC00": 1}}', 400,
         "holds \\udc00 without"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', 400,
         "temperature"),
        (b"[" * 100_000, 400, "the body"),
        (b'{"messages": ' + b"1" * 5000 + b"}", 400, ""),
    ],
)  # fmt: skip
def test_a_body_that_is_no_json_or_no_text(
    server: Running, body: bytes, status: int, message: str
) -> None:
    with server.http as http:
        headers = {"content-type": "application/json"}
        response = http.post(CHAT, content=body, headers=headers)
        assert response.status_code == status, response.text
        assert message in error_of(response)["message"]


def test_surrogate_pairs_are_characters(server: Running) -> None:
    body = b'{"messages": [{"role": "user", "content": "\\ud83d\\ude00"}], "max_tokens": 1}'
    with server.http as http:
        headers = {"content-type": "application/json; charset=utf-8"}
        assert http.post(CHAT, content=body, headers=headers).status_code == 200


def test_unknown_models_paths_and_methods(server: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean 'swan'") as told:
        server.client.chat.completions.create(model="swann", messages=[USER])  # type: ignore[list-item]
    assert told.value.code == "model_not_found" and told.value.param == "model"
    with server.http as http:
        assert error_of(http.get("/v1/models/duck"))["code"] == "model_not_found"
        assert error_of(http.get("/v1/nothing"))["message"] == "there is no /v1/nothing here"
        assert http.get(CHAT).status_code == 405
        assert "takes no GET" in error_of(http.get(CHAT))["message"]
        assert http.post(CHAT, content=b"{}").status_code == 415
        left_out = http.post(CHAT, json={"messages": [USER], "max_tokens": 1, "model": None})
        assert left_out.json()["model"] == "swan"


def test_a_body_that_is_too_large(server: Running) -> None:
    text = "a" * 10_000_000
    with server.http as http:
        response = http.post(CHAT, json={"messages": [{"role": "user", "content": text}]})
        assert response.status_code == 413
        assert error_of(response)["code"] == "body_too_large"

        def pieces() -> Any:
            for _ in range(10):
                yield b"a" * 1_000_000

        headers = {"content-type": "application/json"}
        response = http.post(CHAT, content=pieces(), headers=headers)  # chunked: no length before
        assert response.status_code == 413
    with pytest.raises(openai.APIStatusError) as told:
        server.client.embeddings.create(model="swan", input=text)
    assert told.value.status_code == 413


def test_limits(folder: Path) -> None:
    with running(folder, max_prompt=20, max_tokens=5, max_n=1) as server, server.http as http:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "a swan " * 20}]}
        error = error_of(http.post(CHAT, json=body))
        assert error["param"] == "messages" and error["code"] == "context_length_exceeded"
        assert "this server takes 20" in error["message"]
        body = {"prompt": "a swan", "max_tokens": 6}
        assert "more than the 5" in error_of(http.post(COMPLETIONS, json=body))["message"]
        body = {"prompt": "a swan", "n": 2}
        assert error_of(http.post(COMPLETIONS, json=body))["param"] == "n"
        answer = http.post(COMPLETIONS, json={"prompt": "a swan", "logit_bias": {"70": 100}})
        assert answer.json()["usage"]["completion_tokens"] <= 5
        body = {"messages": [{"role": "user", "content": "a"}], "logit_bias": {"70": 100}}
        answer = http.post(CHAT, json=body)
        assert answer.json()["usage"]["completion_tokens"] == 5


def test_the_time_limit_gives_what_there_is(endless: Path) -> None:
    body = {"messages": [USER], "seed": 1, "top_k": 20}
    with running(endless, slots=1, request_s=1.0) as server, server.http as http:
        answer = http.post(CHAT, json=body).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] > 5
        whole = answer["choices"][0]["message"]["content"]
        with http.stream("POST", CHAT, json={**body, "stream": True}) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        streamed = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        shared = min(len(whole), len(streamed)) - 2  # the last character may be half
        assert shared > 5 and whole[:shared] == streamed[:shared]


def test_an_engine_that_fails_is_told_and_seen(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threading.excepthook", lambda *_: None)
    with running(folder) as server, server.http as http:
        driver: Driver = server.service.drivers[0]

        def fail() -> Any:
            raise RuntimeError("the step broke")

        monkeypatch.setattr(driver.engine, "step", fail)
        for stream in (False, True):
            response = http.post(CHAT, json={"messages": [USER], "stream": stream})
            told = response.text.removeprefix("data: ")
            assert json.loads(told)["error"]["code"] == "model_stopped"
        assert http.get("/healthz").status_code == 503
        assert http.get("/healthz").json() == {"status": "failed", "failed": ["swan"]}
