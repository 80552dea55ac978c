"""A model behind a server that speaks OpenAI's API: chat completions, streamed.

With the standard library alone. Each answer has a connection of its own; closing it is what stops
the answer.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import IO, Any, NoReturn
from urllib.parse import urlsplit

from cygnet import __version__
from cygnet.errors import UserError, nearest
from cygnet.generate.conversation import Pieces, TooLong
from cygnet.generate.reading import Piece
from cygnet.generate.sampling import Sampling

KEY_VARIABLE = "CYGNET_API_KEY"
"""Environment variable of the key, for `cygnet chat` and `cygnet serve`; other programs of a
machine can read its command lines."""
GREETING_S = 20.0
"""How long a server may take to say which models it has."""
SILENCE_S = 600.0
"""How long it may say nothing while it answers: prompts are read, others come first."""
MAX_LINE_BYTES = 4 * 2**20
MAX_NAMES = 10
EXTRAS = {
    "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "seed": None, "stop": (),
}  # fmt: skip
"""Settings that change nothing as they stand here; they are not sent then, for some servers refuse
what they do not know."""
_TOO_LONG = ("context_length", "exceed_context", "context length", "context size", "context ends")
"""What servers write into the error of a prompt that is too long."""


class _SameAddress(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: the key would go along."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Server:
    """A model that a server offers.

    Args:
        url: its API, such as http://127.0.0.1:8000/v1; of a bare address, /v1 is it.
        model: a name that it knows; none takes the only one.
        api_key: sent to `url` alone.

    Attributes:
        model: the name.
        is_only_pretrained: the server says so of the model, see `Source`.

    Raises:
        UserError: no such server is there, it wants a key, or the model must be named.
    """

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None) -> None:
        self.url = _api_address(url)
        self._headers = {"User-Agent": f"cygnet/{__version__}", "Content-Type": "application/json"}
        if api_key:
            if not (api_key.isascii() and api_key.isprintable()):
                raise UserError("the API key holds characters that no key has: copy it again")
            self._headers["Authorization"] = f"Bearer {api_key}"
        is_here = urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
        proxies = [urllib.request.ProxyHandler({})] if is_here else []
        self._opener = urllib.request.build_opener(_SameAddress, *proxies)
        offered = self._offered(is_needed=model is None)
        if model is None:
            if len(offered) != 1:
                raise UserError(f"{self.url}: say which model with --model; {_listed(offered)}")
            (model,) = offered
        self.model = model
        self.is_only_pretrained = offered.get(model, {}).get("stage") == "pretrain"

    def answer(self, messages: Sequence[dict[str, Any]], sampling: Sampling) -> Pieces:
        """See `Source.answer`."""
        yield from self._streamed(messages, sampling)

    def whole_answer(
        self, messages: Sequence[dict[str, Any]], sampling: Sampling
    ) -> tuple[dict[str, Any], str]:
        """Return the answer as a message, and why it ended: `stop`, `length`, ...

        Raises: as `Source.answer`.
        """
        pieces, content, reasoning = self._streamed(messages, sampling), "", ""
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                message = {"role": "assistant", "content": content}
                if reasoning:
                    message["reasoning_content"] = reasoning
                return message, end.value
            content += piece.content
            reasoning += piece.reasoning

    def _streamed(
        self, messages: Sequence[dict[str, Any]], sampling: Sampling
    ) -> Generator[Piece, None, str]:
        """Yield the answer piece by piece; return why it ended."""
        body = {"model": self.model, "messages": [*messages], "stream": True, **settings(sampling)}
        try:
            with self._open("/chat/completions", SILENCE_S, body) as response:
                if response.headers.get_content_type() != "text/event-stream":
                    raise self._foreign()
                ended = ""
                for delta, reason in self._deltas(response):
                    reasoning = delta.get("reasoning_content") or delta.get("reasoning")
                    if isinstance(reasoning, str) and reasoning:
                        yield Piece(reasoning=reasoning)
                    if isinstance(delta.get("content"), str) and delta["content"]:
                        yield Piece(content=delta["content"])
                    ended = ended or reason
        except urllib.error.HTTPError as error:
            self._refuse(error)
        if not ended:
            raise UserError(f"{self.url}: the server broke off in the middle of its answer")
        return ended

    def _deltas(self, response: IO[bytes]) -> Iterator[tuple[Mapping[str, Any], str]]:
        """Yield what each event adds and, where the answer is whole with it, why it ended."""
        for chunk in self._events(response):
            if chunk is None:
                yield {}, "stop"
                return
            if "error" in chunk:
                raise UserError(f"{self.url}: {_told(chunk)}")
            choices = chunk.get("choices")
            if choices and isinstance(choices, list) and isinstance(choices[0], dict):
                delta = choices[0].get("delta")
                reason = choices[0].get("finish_reason")
                ended = "" if reason is None else str(reason) or "stop"
                yield (delta if isinstance(delta, dict) else {}), ended

    def _events(self, response: IO[bytes]) -> Iterator[dict[str, Any] | None]:
        """Yield the objects of an event stream up to where it is cut, or none at its end."""
        while True:
            try:
                line = response.readline(MAX_LINE_BYTES)
            except TimeoutError as error:
                raise UserError(f"{self.url}: said nothing for {SILENCE_S:.0f} s") from error
            except (OSError, http.client.HTTPException):
                return
            name, _, data = line.decode(errors="replace").strip().partition(":")
            if not line:
                return
            if data.strip() == "[DONE]":
                yield None
                return
            if name in ("data", "error"):  # old servers of llama.cpp name errors so
                try:
                    chunk = json.loads(data)
                except ValueError:
                    chunk = None
                if not isinstance(chunk, dict):
                    raise self._foreign()
                yield {"error": chunk} if name == "error" else chunk

    def _offered(self, is_needed: bool = False) -> dict[str, Mapping[str, Any]]:
        """Return the server's models by name; a server need not tell unless it is needed."""
        try:
            with self._open("/models", GREETING_S) as response:
                found = json.load(response)["data"]
                return {str(model["id"]): model for model in found}
        except urllib.error.HTTPError as error:
            if error.code in (404, 405) and not is_needed:
                return {}
            self._refuse(error)
        except (ValueError, TypeError, KeyError, OSError, http.client.HTTPException) as error:
            raise self._foreign() from error

    def _open(self, path: str, patience_s: float, body: Any = None) -> Any:
        """Return the response.

        Raises:
            HTTPError: the server refuses.
            UserError: none answers.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self._headers)
        try:
            return self._opener.open(request, timeout=patience_s)
        except urllib.error.HTTPError:
            raise
        except TimeoutError as error:
            raise UserError(f"{self.url}: said nothing for {patience_s:.0f} s") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            told = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise UserError(f"{self.url}: no server answers there ({_one_line(told)})") from error

    def _refuse(self, error: urllib.error.HTTPError) -> NoReturn:
        """Say in one line what an error of the server means."""
        with error:
            try:
                answer = json.loads(error.read(MAX_LINE_BYTES))
            except (ValueError, OSError, http.client.HTTPException):
                answer = None
        told = _told(answer)
        if error.code in (401, 403):
            key = "refuses this API key" if "Authorization" in self._headers else "wants an API key"
            raise UserError(f"{self.url}: {key}; --api_key KEY, or the variable {KEY_VARIABLE}")
        if error.code in (301, 302, 303, 307, 308):
            target = _one_line(error.headers.get("Location", "elsewhere"))
            raise UserError(
                f"{self.url}: sends us on to {target}; if that is right, give it as --url"
            )
        if error.code == 429:
            wait = error.headers.get("Retry-After")
            later = f"in {_one_line(wait)} s" if wait else "later"
            raise UserError(f"{self.url}: is busy, try again {later} ({told})")
        if error.code in (400, 413, 422) and any(word in json.dumps(answer) for word in _TOO_LONG):
            raise TooLong(f"{self.url}: {told}")
        if error.code in (400, 404) and hasattr(self, "model"):
            offered = self._offered()
            if offered and self.model not in offered:
                close = nearest(self.model, offered)
                raise UserError(f"{self.url}: no model {self.model!r}{close}; {_listed(offered)}")
        if error.code in (404, 405) or answer is None:
            raise self._foreign(f" (it says {error.code} to {urlsplit(error.url).path})")
        raise UserError(f"{self.url}: {told} ({error.code})")

    def _foreign(self, details: str = "") -> UserError:
        return UserError(
            f"{self.url}: answers, and not as an OpenAI-compatible server{details}; its address "
            "often ends with /v1"
        )


def settings(sampling: Sampling) -> dict[str, Any]:
    """Return what a request says about how its answer is drawn."""
    extras = {name: getattr(sampling, name) for name in EXTRAS}
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
        **{name: value for name, value in extras.items() if value != EXTRAS[name]},
    }


def _api_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise UserError(f"--url {url}: give an address such as http://127.0.0.1:8000/v1")
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def _told(answer: Any) -> str:
    """Return the message of an error, wherever a server puts it."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return _one_line(str(error)) if error else "no reason given"


def _listed(offered: Mapping[str, Any]) -> str:
    if not offered:
        return "it lists none"
    names = [_one_line(name) for name in offered]
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"there are {', '.join(names[:MAX_NAMES])}{more}"


def _one_line(text: str) -> str:
    """Return a stranger's text as one short line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]
