"""Answers as OpenAI's JSON, whole or in chunks."""

from __future__ import annotations

import base64
import json
import struct
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cygnet import __version__
from cygnet.generate.reading import Call, Piece, Reader
from cygnet.generate.request import Answer, Event, TokenLogprob, best_of
from cygnet.serve.driver import Job
from cygnet.serve.offered import Offered
from cygnet.text.tokenizer import Tokenizer

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""Characters that JSON leaves as they are, and at which some clients cut a stream into lines."""
LEAST_LOGPROB = -9999.0
"""OpenAI's way of writing minus infinity, which JSON has not."""


class ChatWriter:
    """Writes the answers to one chat request.

    Args:
        model: that answers.
        job: the answers.
        thinks, reads_calls: see `Reader`.
        with_usage: a last chunk counts tokens.
    """

    kind = "chat.completion"

    def __init__(
        self, model: Offered, job: Job, thinks: bool, reads_calls: bool, with_usage: bool
    ) -> None:
        self.job = job
        self.with_usage = with_usage
        self._model = model
        self._head = _head(model, "chatcmpl", self.kind)
        self._readers = [Reader(thinks, reads_calls) for _ in job.answers]
        self._begun: set[int] = set()

    def whole(self) -> dict[str, Any]:
        """Return the finished job as one object."""
        choices = []
        for index, answer in enumerate(self.job.answers):
            reader = self._readers[index]
            pieces = [*reader.push(answer.text), *reader.finish()]
            choices.append(
                {
                    "index": index,
                    "message": _message(pieces),
                    "logprobs": self._logprobs(answer.logprobs, answer),
                    "finish_reason": _finish_reason(answer, reader.num_calls),
                }
            )
        return {**self._head, "choices": choices, "usage": usage(self.job.answers)}

    def choices(self, index: int, event: Event) -> Iterator[dict[str, Any]]:
        """Yield the choices of the chunks that an event makes."""
        reader = self._readers[index]
        num_calls = reader.num_calls
        pieces = reader.push(event.text)
        if event.finish_reason is not None:
            pieces += reader.finish()
        if index not in self._begun:
            self._begun.add(index)
            yield _chunk(index, {"role": "assistant", "content": ""})
        logprobs = self._logprobs(event.logprobs, event.answer)
        for piece in pieces:
            if piece.call:
                delta: dict[str, Any] = {"tool_calls": [_call(piece.call, num_calls)]}
                num_calls += 1
            elif piece.reasoning:
                delta = {"reasoning_content": piece.reasoning}
            else:
                delta = {"content": piece.content}
            yield _chunk(index, delta, logprobs)
            logprobs = None
        if event.finish_reason is not None:
            reason = _finish_reason(event.answer, reader.num_calls)
            yield _chunk(index, {}, logprobs, reason)
        elif logprobs is not None and logprobs["content"]:
            yield _chunk(index, {"content": ""}, logprobs)

    def chunk_head(self) -> dict[str, Any]:
        """Return what is the same in all chunks."""
        return {**self._head, "object": f"{self.kind}.chunk"}

    def _logprobs(self, own: Sequence[TokenLogprob], answer: Answer) -> dict[str, Any] | None:
        if answer.request.logprobs is None:
            return None
        tokenizer = self._model.tokenizer
        return {
            "content": [
                {
                    **_token(tokenizer, one.token_id, one.logprob),
                    "top_logprobs": [_token(tokenizer, *top) for top in one.top],
                }
                for one in own
            ],
            "refusal": None,
        }


class CompletionWriter:
    """Writes the answers to one request for completions.

    Args:
        model: that answers.
        job: the answers, `best_of` for each prompt.
        n: how many of them each prompt gets.
        echoes: begin with the prompt.
        shows_logprobs: they were asked for, and not only needed to choose.
        with_usage: a last chunk counts tokens.
    """

    kind = "text_completion"

    def __init__(
        self,
        model: Offered,
        job: Job,
        n: int,
        num_prompts: int,
        echoes: bool,
        shows_logprobs: bool,
        with_usage: bool,
    ) -> None:
        self.job = job
        self.with_usage = with_usage
        self._model = model
        self._head = _head(model, "cmpl", self.kind)
        self._n = n
        self._num_prompts = num_prompts
        self._echoes = echoes
        self._shows_logprobs = shows_logprobs
        self._offsets = [0] * len(job.answers)

    def whole(self) -> dict[str, Any]:
        """Return the finished job as one object."""
        answers = self.job.answers
        best = len(answers) // self._num_prompts
        chosen: list[Answer] = []
        for start in range(0, len(answers), best):
            own = answers[start : start + best]
            chosen += own if best == self._n else best_of(own, self._n)
        choices = [
            self._choice(i, self._echo(a) + a.text, a.logprobs, a, _finish_reason(a, 0))
            for i, a in enumerate(chosen)
        ]
        return {**self._head, "choices": choices, "usage": usage(answers)}

    def choices(self, index: int, event: Event) -> Iterator[dict[str, Any]]:
        """Yield the choices of the chunks that an event makes."""
        answer = event.answer
        text = event.text
        if self._offsets[index] == 0:
            text = self._echo(answer) + text
        reason = None if event.finish_reason is None else _finish_reason(answer, 0)
        if text or reason or (event.logprobs and self._shows_logprobs):
            yield self._choice(index, text, event.logprobs, answer, reason)

    def chunk_head(self) -> dict[str, Any]:
        """Return what is the same in all chunks."""
        return self._head

    def _echo(self, answer: Answer) -> str:
        return self._model.tokenizer.decode(answer.request.prompt) if self._echoes else ""

    def _choice(
        self,
        index: int,
        text: str,
        logprobs: Sequence[TokenLogprob],
        answer: Answer,
        reason: str | None,
    ) -> dict[str, Any]:
        shown = self._listed(index, logprobs) if self._shows_logprobs else None
        self._offsets[index] += max(len(text), 1)
        return {"index": index, "text": text, "logprobs": shown, "finish_reason": reason}

    def _listed(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        tokens = [_spelt(self._model.tokenizer, one.token_id) for one in logprobs]
        offsets, at = [], self._offsets[index]
        for token in tokens:
            offsets.append(at)
            at += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [max(one.logprob, LEAST_LOGPROB) for one in logprobs],
            "top_logprobs": [
                {
                    _spelt(self._model.tokenizer, token): max(value, LEAST_LOGPROB)
                    for token, value in one.top
                }
                for one in logprobs
            ],
            "text_offset": offsets,
        }


def usage(answers: Iterable[Answer]) -> dict[str, Any]:
    """Return the tokens of a job's answers; a prompt of several answers counts once."""
    answers = list(answers)
    prompts = {id(answer.request.prompt): answer for answer in reversed(answers)}.values()
    num_prompt = sum(answer.usage.prompt_tokens for answer in prompts)
    num_answer = sum(answer.usage.completion_tokens for answer in answers)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_answer,
        "total_tokens": num_prompt + num_answer,
        "prompt_tokens_details": {
            "cached_tokens": sum(answer.usage.cached_tokens for answer in prompts)
        },
    }


def embeddings(
    model: Offered, vectors: Sequence[Sequence[float]], num_tokens: int, as_base64: bool
) -> dict[str, Any]:
    """Return the vectors of a request's texts."""

    def spelt(vector: Sequence[float]) -> Any:
        packed = struct.pack(f"<{len(vector)}f", *vector)
        return base64.b64encode(packed).decode() if as_base64 else vector

    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": spelt(vector)}
            for index, vector in enumerate(vectors)
        ],
        "model": model.name,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


def compact(value: Any) -> bytes:
    """Return JSON without spaces."""
    return _ENCODER.encode(value).translate(_LINE_ENDS).encode()


def _head(model: Offered, prefix: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": f"cygnet-{__version__}",
    }


def _message(pieces: Sequence[Piece]) -> dict[str, Any]:
    calls = [piece.call for piece in pieces if piece.call]
    content = "".join(piece.content for piece in pieces)
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if reasoning := "".join(piece.reasoning for piece in pieces):
        message["reasoning_content"] = reasoning
    if calls:
        message["content"] = content or None
        message["tool_calls"] = [_call(call) for call in calls]
    return message


def _call(call: Call, index: int | None = None) -> dict[str, Any]:
    at = {} if index is None else {"index": index}
    function = {"name": call.name, "arguments": call.arguments}
    return {**at, "id": call.id, "type": "function", "function": function}


def _chunk(
    index: int,
    delta: dict[str, Any],
    logprobs: dict[str, Any] | None = None,
    reason: str | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _finish_reason(answer: Answer, num_calls: int) -> str:
    """Return OpenAI's word; what the time limit ended counts as ended by its length."""
    if answer.finish_reason == "stop":
        return "tool_calls" if num_calls else "stop"
    return "length"


def _spelt(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer.token_bytes(token_id).decode("utf-8", "replace")


def _token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": _spelt(tokenizer, token_id),
        "logprob": max(logprob, LEAST_LOGPROB),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }
