"""What clients may ask for: OpenAI's request bodies, and a few fields more.

Fields that are not named here are let pass and change nothing (clients send many, such as `user`
and `metadata`); those that would change the answer, and that Cygnet does not have, are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

MAX_SEED = 2**63 - 1


def _refuse(value: Any) -> Any:
    if value not in (None, [], {}, ""):
        raise ValueError("is not supported here; leave it out")
    return None


Unsupported = Annotated[None, BeforeValidator(_refuse)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Count = Annotated[int, Field(ge=1, le=2**31)]
TokenId = Annotated[int, Field(ge=0, le=2**31)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Texts = str | list[str] | list[TokenId] | list[list[TokenId]]


class Loose(BaseModel):
    """Keeps unknown fields, which the chat template may use."""

    model_config = ConfigDict(extra="allow")


class TextPart(BaseModel):
    """A part of a message; only text can be read."""

    type: Literal["text"]
    text: str


class CalledFunction(Loose):
    """Which function the assistant called."""

    name: str
    arguments: str | dict[str, Any]


class ToolCall(Loose):
    """A call that an earlier answer made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(BaseModel):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class Function(Loose):
    """A function that the model may call."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Loose):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class FunctionName(BaseModel):
    """A function by its name."""

    name: str


class NamedTool(BaseModel):
    """The tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class JsonSchema(BaseModel):
    """A JSON schema that the answer must fit; it always does, whatever `strict` says."""

    name: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(BaseModel):
    """How to stream."""

    include_usage: bool = False


class SamplingBody(BaseModel):
    """What chats and completions share. Where a field is left out, the model's own
    generation_config.json decides."""

    model: str | None = Field(None, description="Left out: the first model that is served.")
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = Field(
        None, description="Not OpenAI's: keep this many of the likeliest tokens; 0 and -1: all."
    )
    min_p: Share | None = Field(
        None, description="Not OpenAI's: keep tokens at least this times as likely as the first."
    )
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10, allow_inf_nan=False)] | None = Field(
        None, description="Not OpenAI's: above 1, tokens that occurred become less likely."
    )
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=4096)] | None = None
    max_tokens: Count | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=MAX_SEED)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class ChatBody(SamplingBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Not OpenAI's: variables of the chat template, such as enable_thinking."
    )
    functions: Unsupported = None
    function_call: Unsupported = None
    audio: Unsupported = None
    prediction: Unsupported = None
    suffix: Unsupported = None


class CompletionBody(SamplingBody):
    """POST /v1/completions."""

    prompt: Texts = Field("", description="Text or token ids, one or several.")
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: Unsupported = None
    response_format: Unsupported = None
    tools: Unsupported = None


class EmbeddingBody(BaseModel):
    """POST /v1/embeddings."""

    model: str | None = None
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
