"""Black-box distillation: a teacher behind a server answers prompts, and its answers are learnt.

Its probabilities are not seen, so its tokenizer may be any (Kim and Rush 2016, "Sequence-Level
Knowledge Distillation"). What it has answered is kept line by line as it comes, under a hash of
prompt, server, model and settings: nothing is asked twice, whatever stops the work.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import cygnet
from cygnet.corpus.document import HELDOUT, TRAIN
from cygnet.errors import UserError
from cygnet.files import (
    JsonlWriter,
    digest_of,
    fair_draw,
    folder_atomic,
    sha256_file,
    write_json,
)
from cygnet.generate.conversation import TooLong
from cygnet.generate.sampling import Sampling
from cygnet.messages import Message
from cygnet.progress import progress, say
from cygnet.stages.reinforcement.rollout import prompt_messages

Row = Mapping[str, Any]
CACHE = "answers.jsonl"
HELDOUT_SHARE = 0.05
"""Of a person's own prompts, held out by a hash; and most held-out ones that are asked."""
WAIT_S = 0.5
"""Before the first try again; twice as long before each further one."""
FAILURES_IN_A_ROW = 8
"""Prompts that fail one after the other, with all their tries, after which the server is left."""


@dataclass(frozen=True, kw_only=True)
class AnswersConfig:
    """How a teacher behind a server is asked.

    Raises:
        UserError: a value is out of its range.
    """

    max_prompts: int = 2000
    """Most prompts to ask, taken by a hash; held-out prompts are asked beside them."""
    concurrency: int = 8
    """Requests under way at a time."""
    tries: int = 5
    """How often a prompt is asked until it is left out; the waits between double."""
    temperature: float = 0.7
    """At which the teacher draws its answers; 0 takes its likeliest."""
    top_p: float = 0.95
    """Keep its likeliest tokens that together have this probability."""
    max_new_tokens: int = 512
    """Longest answer in the teacher's tokens; answers that reach it are left out."""
    seed: int = 0
    """Sent with each request."""

    def __post_init__(self) -> None:
        for name in ("max_prompts", "concurrency", "tries", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"answers.{name} is {getattr(self, name)}: it must be at least 1")

    @property
    def sampling(self) -> Sampling:
        """How an answer is drawn."""
        names = ("temperature", "top_p", "max_new_tokens", "seed")
        return Sampling(**{name: getattr(self, name) for name in names})


class Teacher(Protocol):
    """A server's model (`cygnet.generate.remote.Server`)."""

    url: str
    model: str

    def whole_answer(self, messages: Sequence[Message], sampling: Sampling) -> tuple[Message, str]:
        """Return the answer as a message, and why it ended."""
        ...


@dataclass
class AnswerCounts:
    """What became of the prompts."""

    num_prompts: int = 0
    num_known: int = 0
    """Answered in an earlier run."""
    num_cut: int = 0
    """Answers that did not come to their end: not learnt."""
    num_empty: int = 0
    """Answers without a word: not learnt."""
    num_failed: int = 0
    """Prompts without an answer after all tries, or too long for the teacher."""
    failures: list[str] = field(default_factory=list)
    """The first few reasons."""


def ask_teacher(
    teacher: Teacher, rows: tuple[Sequence[Row], Sequence[Row]], out: Path, config: AnswersConfig
) -> Path:
    """Write `out/conversations`, prompts with the teacher's answers, as instruction tuning reads.

    Args:
        teacher: who is asked.
        rows: prompts to learn from, and held-out ones.
        out: also has the answers as they came, in `answers.jsonl`.
        config: how it is asked.

    Raises:
        UserError: the server keeps failing, or there is nothing to learn; what has been answered
            stays.
    """
    out.mkdir(parents=True, exist_ok=True)
    limit = math.ceil(HELDOUT_SHARE * config.max_prompts)
    asked = [[prompt_messages(row) for row in part] for part in rows]
    chosen = [fair_draw(asked[0], config.max_prompts), fair_draw(asked[1], limit)]
    cache = _Cache(out / CACHE, teacher, config)
    counts = AnswerCounts(num_prompts=sum(map(len, chosen)))
    waiting = [prompt for part in chosen for prompt in part if not cache.has(prompt)]
    counts.num_known = counts.num_prompts - len(waiting)
    if counts.num_known:
        say(f"teacher: {counts.num_known} of {counts.num_prompts} prompts are answered already")
    if waiting:
        _ask_all(teacher, waiting, cache, config, counts)
    conversations = [[_conversation(prompt, cache, counts) for prompt in part] for part in chosen]
    learnt, heldout = ([row for row in part if row] for part in conversations)
    _say_what_came(counts, len(learnt) + len(heldout))
    if not learnt:
        why = counts.failures[0] if counts.failures else "they were empty or cut"
        raise UserError(f"{teacher.url}: no answer to learn from; {why}")
    folder = out / "conversations"
    _write(folder, learnt, heldout, teacher, config, counts)
    return folder


def _ask_all(
    teacher: Teacher,
    prompts: Sequence[list[Message]],
    cache: _Cache,
    config: AnswersConfig,
    counts: AnswerCounts,
) -> None:
    """Ask some at a time, and keep each answer as it comes."""
    in_a_row = 0
    upcoming = iter(prompts)
    with (
        progress("teacher", len(prompts)) as advance,
        ThreadPoolExecutor(config.concurrency) as pool,
    ):

        def begin(count: int) -> dict[Future[Any], list[Message]]:
            return {
                pool.submit(_asked, teacher, prompt, config): prompt
                for prompt in islice(upcoming, count)
            }

        asked = begin(config.concurrency)
        while asked:
            done, _ = wait(asked, return_when=FIRST_COMPLETED)
            for future in done:
                prompt = asked.pop(future)
                try:
                    answer, reason = future.result()
                except UserError as error:
                    counts.num_failed += 1
                    counts.failures = [*counts.failures, str(error)][:5]
                    in_a_row = 0 if isinstance(error, TooLong) else in_a_row + 1
                else:
                    cache.add(prompt, answer, reason)
                    in_a_row = 0
                advance()
            if in_a_row >= FAILURES_IN_A_ROW or in_a_row == len(prompts):
                raise UserError(
                    f"{counts.failures[-1]}; {in_a_row} prompts in a row got no answer in "
                    f"{config.tries} tries each. What came is kept, and the same command asks for "
                    "the rest"
                )
            asked |= begin(len(done))


def _asked(
    teacher: Teacher, prompt: Sequence[Message], config: AnswersConfig
) -> tuple[Message, str]:
    """Ask, and again where the server fails."""
    jitter = random.Random(digest_of(prompt))
    for trial in range(config.tries):
        try:
            return teacher.whole_answer(prompt, config.sampling)
        except TooLong:
            raise
        except UserError:
            if trial == config.tries - 1:
                raise
            time.sleep(WAIT_S * 2**trial * jitter.uniform(0.5, 1.5))
    raise AssertionError


class _Cache:
    """Answers by prompt, in a file that grows by a line for each."""

    def __init__(self, path: Path, teacher: Teacher, config: AnswersConfig) -> None:
        self.path = path
        self.asked_of = {"url": teacher.url, "model": teacher.model, **asdict(config.sampling)}
        self.answers: dict[str, tuple[Message, str]] = {}
        whole = 0
        for line in self._lines():
            self.answers[line["key"]] = line["answer"], line["reason"]
            whole = line["end"]
        if path.exists() and path.stat().st_size > whole:
            with open(path, "r+b") as file:
                file.truncate(whole)  # half a line, of a run that was killed

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        end = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                try:
                    row = json.loads(line)
                    yield {name: row[name] for name in ("key", "answer", "reason")} | {"end": end}
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{self.path}, line {number}: damaged; delete the line, and its prompt is "
                        "asked again"
                    ) from error

    def _own_key(self, prompt: Sequence[Message]) -> str:
        return digest_of([self.asked_of, prompt])

    def has(self, prompt: Sequence[Message]) -> bool:
        return self._own_key(prompt) in self.answers

    def get(self, prompt: Sequence[Message]) -> tuple[Message, str] | None:
        return self.answers.get(self._own_key(prompt))

    def add(self, prompt: Sequence[Message], answer: Message, reason: str) -> None:
        key = self._own_key(prompt)
        self.answers[key] = answer, reason
        row = {"key": key, "prompt": prompt, "answer": answer, "reason": reason}
        with open(self.path, "ab") as file:
            file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


def _conversation(
    prompt: Sequence[Message], cache: _Cache, counts: AnswerCounts
) -> dict[str, Any] | None:
    found = cache.get(prompt)
    if found is None:
        return None
    answer, reason = found
    if reason == "length":
        counts.num_cut += 1
        return None
    if not answer["content"].strip():
        counts.num_empty += 1
        return None
    return {"messages": [*prompt, answer], "kind": "teacher"}


def _say_what_came(counts: AnswerCounts, num_used: int) -> None:
    left_out = {
        "without an answer": counts.num_failed,
        "cut at --answers.max_new_tokens": counts.num_cut,
        "empty": counts.num_empty,
    }
    told = "".join(f", {count} {why}" for why, count in left_out.items() if count)
    first = f" (first: {counts.failures[0]})" if counts.failures else ""
    say(f"teacher: {num_used} of {counts.num_prompts} prompts answered{told}{first}")


def _write(
    folder: Path,
    learnt: Sequence[Row],
    heldout: Sequence[Row],
    teacher: Teacher,
    config: AnswersConfig,
    counts: AnswerCounts,
) -> None:
    with folder_atomic(folder) as temporary:
        for name, rows in ((TRAIN, learnt), (HELDOUT, heldout)):
            with JsonlWriter(temporary / name) as writer:
                for row in rows:
                    writer.write(dict(row))
        manifest = {
            "made_by": "cygnet distill",
            "cygnet_version": cygnet.__version__,
            "teacher": teacher.model,
            "settings": asdict(config.sampling),
            "counts": {"train": len(learnt), "heldout": len(heldout)},
            "outputs": {name: sha256_file(temporary / name) for name in (TRAIN, HELDOUT)},
        }
        write_json(temporary / "manifest.json", manifest)
