"""From what a client sent to what the engine is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cygnet.errors import UserError
from cygnet.generate.constrained import Grammar
from cygnet.generate.reading import opens_thinking
from cygnet.generate.request import Request
from cygnet.generate.sampling import Sampling
from cygnet.messages import Message as ChatMessage
from cygnet.messages import validate
from cygnet.serve.bodies import ChatBody, CompletionBody, Message, NamedTool, SamplingBody, Texts
from cygnet.serve.errors import ApiError
from cygnet.serve.offered import Offered
from cygnet.serve.settings import ServeConfig
from cygnet.text.chat import encode_chat

GREEDY_BELOW = 1e-4
"""A lower temperature would only divide by nearly nothing."""
COMPLETION_TOKENS = 16
"""OpenAI's default for completions; an answer of a chat ends where the context does."""
FEW_CHARACTERS = 4096
"""Bodies beyond this are encoded in a thread, so that other streams go on."""


@dataclass(frozen=True)
class Chat:
    """A chat request, ready for the engine."""

    request: Request
    thinks: bool
    """The prompt opened `<think>`."""
    reads_calls: bool


def prepare_chat(body: ChatBody, model: Offered, limits: ServeConfig) -> Chat:
    """Return what the engine is asked for a chat.

    A model that was only pretrained goes on from the text of the last message of the user.

    Raises:
        ApiError, UserError: a field does not fit the model or the limits.
    """
    uses_tools = bool(body.tools) and body.tool_choice != "none"
    if model.chats:
        prompt = _chat_prompt(body, model, uses_tools)
    elif uses_tools:
        raise ApiError(400, f"tools: {model.name} has not learnt to call any", param="tools")
    else:
        prompt = _last_text(body, model)
    _check_prompt(prompt, "messages", limits.max_prompt)
    _check_count(body.n or 1, "n", limits.max_n)
    most = body.max_completion_tokens or body.max_tokens
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs: set logprobs to true too", param="top_logprobs")
    request = Request(
        prompt=prompt,
        sampling=_sampling(body, most, model, limits),
        logit_bias=body.logit_bias or {},
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=_grammar(body, model, uses_tools),
        mark_special=model.chats,
    )
    return Chat(request, opens_thinking(model.tokenizer, prompt), uses_tools)


def prepare_completion(
    body: CompletionBody, model: Offered, limits: ServeConfig
) -> tuple[list[Request], int]:
    """Return what the engine is asked for each prompt, and how many answers each is to have.

    Raises:
        ApiError, UserError: a field does not fit the model or the limits.
    """
    n = body.n or 1
    best_of = body.best_of or n
    if best_of < n:
        raise ApiError(400, f"best_of: {best_of} is less than n, {n}", param="best_of")
    if best_of > n and body.stream:
        raise ApiError(400, "best_of: cannot be streamed beyond n", param="best_of")
    if body.echo and body.logprobs is not None:
        raise ApiError(400, "echo: not together with logprobs", param="echo")
    prompts = encode_texts(body.prompt, "prompt", model, limits.max_n, limits.max_prompt)
    _check_count(best_of * len(prompts), "best_of" if body.best_of else "n", limits.max_n)
    logprobs = body.logprobs if best_of == n else body.logprobs or 0
    most = body.max_tokens or min(COMPLETION_TOKENS, limits.max_tokens or COMPLETION_TOKENS)
    sampling = _sampling(body, most, model, limits)
    bias = body.logit_bias or {}
    requests = [
        Request(prompt=prompt, sampling=sampling, logit_bias=bias, logprobs=logprobs)
        for prompt in prompts
    ]
    return requests, best_of


def encode_texts(
    texts: Texts, field: str, model: Offered, most: int, longest: int | None
) -> list[list[int]]:
    """Return the token ids of one or several texts, which may be ids already.

    An empty text is the beginning of a document.

    Args:
        texts: what the client sent.
        field: in which field.
        model: whose tokenizer reads it.
        most: texts that are allowed.
        longest: tokens that each may have.

    Raises:
        ApiError: too many, or one is too long.
    """
    if isinstance(texts, str):
        texts = [texts]
    if not texts:
        raise ApiError(400, f"{field}: empty; give a text", param=field)
    if isinstance(texts[0], int):
        texts = [texts]
    _check_count(len(texts), field, most)
    encoded = [
        model.tokenizer.encode(text) if isinstance(text, str) else list(text) for text in texts
    ]
    encoded = [ids or [model.tokenizer.eos_id] for ids in encoded]
    for ids in encoded:
        _check_prompt(ids, field, longest)
    return encoded


def num_characters(body: ChatBody | CompletionBody) -> int:
    """Return about how much text there is to encode."""
    if isinstance(body, CompletionBody):
        return sum(len(text) for text in body.prompt if isinstance(text, str))
    told = len(str(body.tools)) if body.tools else 0
    return told + sum(len(_content(message)) for message in body.messages)


def _chat_prompt(body: ChatBody, model: Offered, uses_tools: bool) -> list[int]:
    messages = [_message(message, i) for i, message in enumerate(body.messages)]
    validate(messages, needs_answer=False)
    tools = [tool.model_dump(exclude_unset=True) for tool in body.tools or []]
    return encode_chat(
        model.tokenizer,
        messages,
        tools if uses_tools else None,
        add_generation_prompt=True,
        variables=body.chat_template_kwargs,
    ).ids


def _last_text(body: ChatBody, model: Offered) -> list[int]:
    asked = [message for message in body.messages if message.role == "user"]
    if not asked:
        raise ApiError(400, "messages: none is of the user", param="messages")
    return model.tokenizer.encode(_content(asked[-1])) or [model.tokenizer.eos_id]


def _message(message: Message, index: int) -> ChatMessage:
    if message.content is None and message.role != "assistant":
        field = f"messages[{index}].content"
        raise ApiError(400, f"{field}: missing; give the text", param=field)
    role = "system" if message.role == "developer" else message.role
    found: ChatMessage = {"role": role, "content": _content(message)}
    if message.tool_calls:
        found["tool_calls"] = [call.model_dump(exclude_unset=True) for call in message.tool_calls]
    for name in ("reasoning_content", "tool_call_id", "name"):
        if getattr(message, name) is not None:
            found[name] = getattr(message, name)
    return found


def _content(message: Message) -> str:
    content = message.content or ""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _sampling(
    body: SamplingBody, most: int | None, model: Offered, limits: ServeConfig
) -> Sampling:
    if limits.max_tokens is not None and (most or 0) > limits.max_tokens:
        raise ApiError(
            400, f"max_tokens: {most} is more than the {limits.max_tokens} that this server allows",
            param="max_tokens",
        )  # fmt: skip
    names = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty",
             "frequency_penalty", "seed")  # fmt: skip
    given = {name: getattr(body, name) for name in names if getattr(body, name) is not None}
    if given.get("temperature", 1) < GREEDY_BELOW:
        given["temperature"] = 0.0
    if body.top_k is not None:
        given["top_k"] = min(max(body.top_k, 0), model.tokenizer.vocab_size)
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    longest = most or limits.max_tokens or model.context
    return replace(model.sampling, **given, stop=tuple(stop), max_new_tokens=longest)


def _grammar(body: ChatBody, model: Offered, uses_tools: bool) -> Grammar | None:
    if uses_tools and (body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)):
        return model.grammars.call(_callable(body))
    if isinstance(body.tool_choice, NamedTool) or body.tool_choice == "required":
        raise ApiError(400, "tool_choice: there are no tools", param="tool_choice")
    wanted = body.response_format
    try:
        if wanted is not None and wanted.type == "json_object":
            return model.grammars.json_object()
        if wanted is not None and wanted.type == "json_schema":
            if wanted.json_schema is None:
                raise UserError("missing; give name and schema")
            return model.grammars.json_schema(wanted.json_schema.schema_)
    except UserError as error:
        field = "response_format.json_schema"
        raise ApiError(400, f"{field}: {error}", param=field, code="invalid_schema") from error
    return None


def _callable(body: ChatBody) -> Mapping[str, Mapping[str, Any]]:
    """Return the schemas of the functions of which one must be called."""
    schemas = {
        tool.function.name: tool.function.parameters or {"type": "object"}
        for tool in body.tools or []
    }
    if not isinstance(body.tool_choice, NamedTool):
        return schemas
    name = body.tool_choice.function.name
    if name not in schemas:
        raise ApiError(400, f"tool_choice: {name!r} is none of the tools", param="tool_choice")
    return {name: schemas[name]}


def _check_prompt(prompt: Sequence[int], field: str, longest: int | None) -> None:
    if longest is not None and len(prompt) > longest:
        raise ApiError(
            400, f"{field}: {len(prompt)} tokens, and this server takes {longest}",
            param=field, code="context_length_exceeded",
        )  # fmt: skip


def _check_count(count: int, field: str, most: int) -> None:
    if count > most:
        raise ApiError(
            400, f"{field}: {count} asked for, and this server takes {most} a request",
            param=field,
        )  # fmt: skip
