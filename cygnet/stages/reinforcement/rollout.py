"""Letting the model answer: episodes with the log-probability of every token that it drew.

An episode is a conversation. Its tokens are kept as they were drawn: what an environment says is
encoded and appended, and nothing that the model wrote is ever encoded again, so that the log-
probabilities belong to exactly these tokens.

Shapes: B rows, T positions, M labels of a batch in the order of its rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from cygnet.errors import UserError
from cygnet.generate.engine import Engine
from cygnet.generate.generator import sized_engine
from cygnet.generate.reading import Reader, opens_thinking
from cygnet.generate.request import Answer, Request
from cygnet.generate.sampling import Sampling
from cygnet.messages import Message, validate
from cygnet.model.lora import merged
from cygnet.model.transformer import Transformer
from cygnet.stages.reinforcement.functions import raised, where_raised
from cygnet.stages.reinforcement.rewards.judge import shown
from cygnet.text.chat import encode_chat, encode_chats, find_turns
from cygnet.text.tokenizer import Tokenizer

Row = Mapping[str, Any]
"""A prompt's row: `prompt` (text or messages), perhaps `tools`, and what rewards read."""
MIN_ANSWER_TOKENS = 8
"""With less room than this left, no further turn is begun."""
_TURN_SEED = 0x9E3779B97F4A7C15
_WORKERS = 8


class Step(Protocol):
    """What an environment says to a message; see `Environment`."""

    messages: list[Message]
    """What comes next in the conversation, such as the results of tools; none ends the episode."""
    reward: float
    done: bool


class Environment(Protocol):
    """One episode's world."""

    def reset(self, row: Row) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """Begin an episode; return its first messages and the tools that may be called."""
        ...

    def step(self, message: Message) -> Step:
        """Take in what the assistant said."""
        ...


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How answers are drawn: from the whole distribution, so that it is the policy's own.

    Raises:
        UserError: a value is out of its range.
    """

    temperature: float = 1.0
    """Divides the logits, here and in the loss; 0 takes the likeliest token, to judge only."""
    max_new_tokens: int = 128
    """Longest answer of one turn, in tokens."""
    max_turns: int = 8
    """Most answers of one episode."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.max_new_tokens < 1 or self.max_turns < 1:
            raise UserError(
                f"rollouts: temperature {self.temperature} must not be below zero, max_new_tokens "
                f"{self.max_new_tokens} and max_turns {self.max_turns} must be at least 1"
            )


@dataclass(eq=False)
class Episode:
    """One conversation with the model.

    Attributes:
        row: the prompt's.
        messages: all of it.
        tools: that the model was offered.
        ids: its tokens.
        is_own: for each token, whether the model drew it, the closing `<|im_end|>` included.
        log_probs: of the own tokens, as the engine drew them.
        truncated: the last answer did not come to its end.
        rewards: by name; `environment` is the sum of what an environment gave.
        seed: of its random numbers.
        num_turns: answers.
        failure: one line: what its environment did wrong. Such an episode is dropped.
    """

    row: Row
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    ids: list[int]
    seed: int
    is_own: list[bool] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    truncated: bool = False
    rewards: dict[str, float] = field(default_factory=dict)
    num_turns: int = 0
    failure: str | None = None

    @property
    def answer(self) -> str:
        """The text of the last answer."""
        last = self.messages[-1]
        return str(last["content"]) if last["role"] == "assistant" else ""

    @property
    def num_own(self) -> int:
        """Tokens that the model drew."""
        return len(self.log_probs)

    @property
    def num_last(self) -> int:
        """Tokens of the last answer."""
        return next((at for at, own in enumerate(reversed(self.is_own)) if not own), self.num_own)

    def fail(self, what: str) -> None:
        """Note what the environment did wrong."""
        self.failure = f"environment: {what}; prompt: {shown(self.row)}"


class Roller:
    """Draws episodes.

    Args:
        tokenizer: its chat template encodes the prompts.
        config: how answers are drawn.
        max_len: tokens of an episode at most; the model's context if left out.

    Raises:
        UserError: the template marks turns with ordinary text, or there is none.
    """

    def __init__(
        self, tokenizer: Tokenizer, config: RolloutConfig, max_len: int | None = None
    ) -> None:
        self.tokenizer, self.config, self.max_len = tokenizer, config, max_len
        if find_turns(tokenizer) is None:
            raise UserError(
                "rollouts: the model's chat template does not close its turns with a control "
                "token; start from a model that has been through `cygnet sft`"
            )

    def encode(
        self, rows: Sequence[Row], environment: Callable[[], Environment] | None = None
    ) -> list[list[int]]:
        """Return the ids of each prompt, up to where the assistant's answer begins.

        None of a prompt whose environment fails, which rollouts drop and count.
        """
        worlds = [environment() for _ in rows] if environment else []
        return [episode.ids for episode in self._begun(rows, [0] * len(rows), worlds)]

    def roll(
        self,
        model: Transformer,
        rows: Sequence[Row],
        seeds: Sequence[int],
        environment: Callable[[], Environment] | None = None,
    ) -> list[Episode]:
        """Return an episode for each row, drawn with the weights that the model has now.

        The same row may come often: its prompt is read once. An episode depends on its row and
        seed; its company changes logits by rounding alone. One whose environment raises, or gives
        no finite number, ends there with a `failure`.

        Args:
            model: any device; an adapter is merged, which the engine reads faster.
            rows: prompts.
            seeds: one for each row.
            environment: makes the world of one episode; without, an episode is one answer.

        Raises:
            UserError: a prompt leaves no room for an answer.
        """
        if not rows:
            return []
        worlds = [environment() for _ in rows] if environment else []
        episodes = self._begun(rows, seeds, worlds)
        context = min(self.max_len or model.config.max_position, model.config.max_position)
        longest = max(len(episode.ids) for episode in episodes) + self.config.max_new_tokens
        engine = sized_engine(
            merged(model), self.tokenizer, len(rows), context if worlds else min(longest, context)
        )
        going = [at for at in range(len(rows)) if episodes[at].failure is None]
        while going:
            self._answer(engine, [episodes[at] for at in going])
            if not worlds:
                break
            # All of a turn together, so that the engine's batches do not depend on the clock.
            going = self._stepped(episodes, worlds, going, engine.max_len)
        return episodes

    def _begun(
        self, rows: Sequence[Row], seeds: Sequence[int], worlds: Sequence[Environment]
    ) -> list[Episode]:
        begun: list[Any]
        if worlds:
            begun = [_reset(world, row) for world, row in zip(worlds, rows, strict=True)]
        else:
            begun = [(prompt_messages(row), row.get("tools")) for row in rows]
        sound = [each for each in begun if not isinstance(each, str)]
        chats = iter(
            encode_chats(
                self.tokenizer,
                [messages for messages, _ in sound],
                [tools for _, tools in sound],
                add_generation_prompt=True,
            )
        )
        episodes = []
        for row, given, seed in zip(rows, begun, seeds, strict=True):
            if isinstance(given, str):
                episodes.append(Episode(row, [], None, [], seed))
                episodes[-1].fail(given)
                continue
            ids = next(chats).ids
            messages, tools = given
            episodes.append(Episode(row, list(messages), tools, ids, seed, [False] * len(ids)))
        return episodes

    def _answer(self, engine: Engine, episodes: Sequence[Episode]) -> None:
        """Let each episode have its next answer."""
        answers = [engine.submit(self._request(episode)) for episode in episodes]
        while not engine.is_idle:
            engine.step()
        for episode, answer in zip(episodes, answers, strict=True):
            self._take(episode, answer)

    def _request(self, episode: Episode) -> Request:
        seed = (episode.seed + episode.num_turns * _TURN_SEED) % 2**63
        sampling = Sampling(
            temperature=self.config.temperature,
            top_p=1.0,
            max_new_tokens=self.config.max_new_tokens,
            seed=seed,
        )
        return Request(
            prompt=list(episode.ids),
            sampling=sampling,
            logprobs=0,
            at_temperature=self.config.temperature > 0,
            mark_special=True,
        )

    def _take(self, episode: Episode, answer: Answer) -> None:
        reader = Reader(opens_thinking(self.tokenizer, episode.ids), bool(episode.tools))
        episode.messages.append(_message(reader, answer.text, len(episode.messages)))
        ids, log_probs = list(answer.token_ids), [one.logprob for one in answer.logprobs]
        if answer.end_id is not None and answer.end_logprob is not None:
            ids.append(answer.end_id)
            log_probs.append(answer.end_logprob)
        episode.truncated = answer.end_id is None
        episode.ids += ids
        episode.is_own += [True] * len(ids)
        episode.log_probs += log_probs
        episode.num_turns += 1

    def _stepped(
        self,
        episodes: Sequence[Episode],
        worlds: Sequence[Environment],
        going: Sequence[int],
        max_len: int,
    ) -> list[int]:
        """Ask the worlds of those that go on; return which have another turn."""
        with ThreadPoolExecutor(_WORKERS) as pool:
            steps = list(pool.map(lambda at: _step(worlds[at], episodes[at].messages[-1]), going))
        left = []
        for at, step in zip(going, steps, strict=True):
            episode = episodes[at]
            if isinstance(step, str):
                episode.fail(step)
                continue
            earned = episode.rewards.get("environment", 0.0)
            episode.rewards["environment"] = earned + float(step.reward)
            if step.done or episode.truncated or not step.messages:
                continue
            if episode.num_turns >= self.config.max_turns:
                episode.truncated = True
                continue
            try:
                said = self._said(episode, step.messages)
            except Exception as error:  # noqa: BLE001 (templates raise many kinds)
                episode.fail(f"its messages cannot be read: {raised(error)}")
                continue
            if len(episode.ids) + len(said) + MIN_ANSWER_TOKENS > max_len:
                episode.truncated = True
                continue
            episode.messages += step.messages
            episode.ids += said
            episode.is_own += [False] * len(said)
            left.append(at)
        return left

    def _said(self, episode: Episode, messages: Sequence[Message]) -> list[int]:
        """Return the ids of what follows the assistant's turn, and the opening of its next."""
        chat = encode_chat(
            self.tokenizer, [*episode.messages, *messages], episode.tools, True
        )  # fmt: skip
        last_label = max(at for at, is_label in enumerate(chat.is_label) if is_label)
        return chat.ids[last_label + 1 :]


def _reset(world: Environment, row: Row) -> tuple[Any, Any] | str:
    """Begin an episode; return messages and tools, or what went wrong."""
    try:
        given = world.reset(row)
    except UserError:
        raise  # the prompt is wrong, such as one that offers a tool which is not there
    except (Exception, SystemExit) as error:  # noqa: BLE001 (a person's code may raise anything)
        return f"{raised(error)}{where_raised(error)}"
    if not isinstance(given, tuple) or len(given) != 2:
        return f"{_named(world)}.reset gave {given!r:.60}; (messages, tools or None) is wanted"
    messages, tools = given
    try:
        validate(messages, needs_answer=False)
    except (UserError, TypeError, AttributeError) as error:
        return f"its first messages cannot be read: {raised(error)}"
    return messages, tools


def _step(world: Environment, message: Message) -> Step | str:
    """Take a step; return it, or what went wrong."""
    try:
        step = world.step(message)
    except (Exception, SystemExit) as error:  # noqa: BLE001 (a person's code may raise anything)
        return f"{raised(error)}{where_raised(error)}"
    if not all(hasattr(step, name) for name in ("messages", "reward", "done")):
        return f"{_named(world)}.step gave {step!r:.60}; a Step is wanted"
    try:
        reward = float(step.reward)
    except (TypeError, ValueError):
        return f"{_named(world)}.step gave the reward {step.reward!r:.60}; a number is wanted"
    return step if math.isfinite(reward) else f"gave the reward {reward}"


def _named(world: Environment) -> str:
    return type(world).__name__


def prompt_messages(row: Row) -> list[Message]:
    """Return the messages of a prompt's row.

    Raises:
        UserError: there is no prompt.
    """
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and prompt:
        return [dict(message) for message in prompt]
    raise UserError('a prompt row needs "prompt": a text, or a list of messages')


def _message(reader: Reader, text: str, number: int) -> Message:
    """Return an answer's text as a message; calls are numbered, for a drawn id repeats nothing."""
    pieces = [*reader.push(text), *reader.finish()]
    message: Message = {
        "role": "assistant",
        "content": "".join(piece.content for piece in pieces),
    }
    if reasoning := "".join(piece.reasoning for piece in pieces):
        message["reasoning_content"] = reasoning
    calls = [piece.call for piece in pieces if piece.call is not None]
    if calls:
        message["tool_calls"] = [
            {
                "id": f"call_{number}_{at}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for at, call in enumerate(calls)
        ]
    return message
