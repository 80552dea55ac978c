"""The engine: many requests through one model, which join and leave between steps.

A step lets every running request take its next token together (decoding), and those that have
just come read a chunk of their prompts (prefill), so that a long prompt never keeps the others
waiting for longer than a chunk takes. One thread calls it; a server drives it from one of its own.

An answer depends on its request alone. The company of other requests changes logits by rounding,
and random numbers come from each request's own seed, one for each token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cygnet.errors import UserError
from cygnet.generate.embed import embed
from cygnet.generate.quantize import Weights
from cygnet.generate.request import (
    Answer,
    Event,
    FinishReason,
    QueueFull,
    Request,
    TokenLogprob,
    Usage,
)
from cygnet.generate.row import Batch, Row
from cygnet.generate.runner import Part, Runner
from cygnet.generate.slots import SlotTable
from cygnet.generate.speculative import DRAWS_PER_TOKEN, Speculation
from cygnet.model.transformer import Transformer
from cygnet.text.tokenizer import Tokenizer

CHUNK_TOKENS = 256


class Engine:
    """Answers requests with the weights that the model has when the engine is made.

    An answer ends before `<|im_end|>` or `<|endoftext|>` and behind a stop text ("stop"), after
    `max_new_tokens` or where `max_len` ends ("length").

    Args:
        model: any device.
        tokenizer: of its ids.
        num_slots: requests that run at the same time.
        max_len: tokens that one request may have, prompt and answer; the model's context at most,
            and that if left out.
        max_waiting: requests that may wait for a slot; none for any number.
        chunk_tokens: tokens of prompts that one step reads.
        weights: see `Runner`.
        draft: a smaller model of the same tokenizer that proposes `num_proposals` tokens a step
            (`Speculation`): the same distribution, from other random numbers. A request with
            penalties, biases, a grammar or log-probabilities takes one token a step, as without it.

    Attributes:
        max_len, num_slots: as given.
        num_running, num_waiting: requests with and without a slot.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        num_slots: int,
        max_len: int | None = None,
        max_waiting: int | None = None,
        chunk_tokens: int = CHUNK_TOKENS,
        weights: Weights = "float",
        draft: Transformer | None = None,
        num_proposals: int = 4,
    ) -> None:
        context = model.config.max_position
        self.max_len = min(max_len or context, context)
        self.num_slots = num_slots
        self.tokenizer = tokenizer
        self._max_waiting = max_waiting
        self._chunk_tokens = chunk_tokens
        self._ends = {tokenizer.im_end_id, tokenizer.eos_id}
        # A model may have more outputs than the tokenizer has entries.
        self._num_outputs = min(tokenizer.vocab_size, model.config.vocab_size)
        # Proposals may stand beyond the end of an answer.
        length = self.max_len + (num_proposals if draft else 0)
        self._runner = Runner(model, num_slots, length, weights)
        self._speculation: Speculation | None = None
        runners = [self._runner]
        if draft is not None:
            if draft.config.vocab_size < self._num_outputs:
                raise UserError("the draft model has a smaller vocabulary than the model")
            runners.append(Runner(draft, num_slots, length))
            self._speculation = Speculation(runners[1], num_proposals, self._num_outputs)
        self._slots = SlotTable(runners, num_slots)
        self._waiting: deque[Answer] = deque()
        self._prefilling: list[Row] = []
        self._running: list[Row] = []  # the row in slot i at index i
        self._batch: Batch | None = None

    @property
    def num_running(self) -> int:
        """Requests that have a slot."""
        return len(self._prefilling) + len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""
        return not (self._waiting or self._prefilling or self._running)

    def submit(self, request: Request) -> Answer:
        """Queue a request and return its handle, which `step` fills.

        Raises:
            UserError: the prompt is empty, too long, or holds ids that the model does not know.
            QueueFull: as many wait as may.
        """
        return self.submit_many(request, 1)[0]

    def submit_many(self, request: Request, n: int) -> list[Answer]:
        """Queue n answers to one request, of seeds that count up; the prompt is read once.

        Raises:
            UserError, QueueFull: as `submit`; then none is queued.
        """
        self._check(request)
        self.check_room(n)
        answers = []
        for i in range(n):
            seed = request.sampling.seed
            sampling = replace(request.sampling, seed=None if seed is None else seed + i)
            one = request if i == 0 else replace(request, sampling=sampling)
            answers.append(Answer(one, Usage(prompt_tokens=len(request.prompt))))
        self._waiting.extend(answers)
        return answers

    def check_room(self, count: int) -> None:
        """Say whether so many more answers may be queued now.

        Raises:
            QueueFull: not now.
            UserError: never, even if nothing else waited.
        """
        if self._max_waiting is None:
            return
        most = self._max_waiting + self.num_slots
        if count > most:
            raise UserError(f"{count} answers at once, and this engine takes {most}")
        if count > self._max_waiting + self._slots.num_free - len(self._waiting):
            raise QueueFull(
                f"{len(self._waiting)} answers wait for a slot already; try again later"
            )

    def cancel(self, answer: Answer) -> None:
        """End an answer now and free its slot; an answer that is finished stays as it is."""
        if answer.finish_reason is not None:
            return
        answer.finish_reason = "cancelled"
        if answer in self._waiting:
            self._waiting.remove(answer)
        row = next((r for r in (*self._prefilling, *self._running) if r.answer is answer), None)
        if row is None:
            return
        answer.text += row.text.finish()
        self._leave(row)

    def run(self, request: Request) -> Iterator[Event]:
        """Yield one request's events until it is finished; others go on meanwhile.

        If the iterator is closed before, the request is cancelled.

        Raises:
            UserError, QueueFull: as `submit`.
        """
        answer = self.submit(request)
        try:
            while answer.finish_reason is None:
                yield from (event for event in self.step() if event.answer is answer)
        finally:
            self.cancel(answer)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Do one iteration and return what it brought, at most one event a request."""
        self._admit()
        events = self._decode() if self._running else []
        return [*events, *self._prefill()] if self._prefilling else events

    def embed(self, token_ids: Sequence[int]) -> list[float]:
        """Return a text's vector, see `cygnet.generate.embed`; it is read in one piece.

        Raises:
            UserError: it is empty, too long, or holds ids that the model does not know.
        """
        self._check_prompt(token_ids)
        return embed(self._runner.model, token_ids).tolist()

    def _check(self, request: Request) -> None:
        self._check_prompt(request.prompt)
        self._check_ids("logit_bias", request.logit_bias)

    def _check_prompt(self, prompt: Sequence[int]) -> None:
        if not len(prompt):
            raise UserError("the prompt is empty: give at least one token")
        if len(prompt) >= self.max_len:
            raise UserError(
                f"the prompt has {len(prompt)} tokens, and the model's context ends at "
                f"{self.max_len}"
            )
        self._check_ids("prompt", prompt)

    def _check_ids(self, name: str, ids: Collection[int]) -> None:
        if ids and not 0 <= min(ids) <= max(ids) < self._num_outputs:
            raise UserError(f"{name} holds ids beyond 0 to {self._num_outputs - 1}")

    def _admit(self) -> None:
        """Give free slots to those that wait, in the order in which they came."""
        for answer in list(self._waiting):
            if not self._slots.num_free:
                return
            slot = self._slots.take(answer.request.prompt)
            if slot is None:  # it pays to wait for a beginning that another one reads
                continue
            answer.usage.cached_tokens = slot.num_filled
            room = min(
                answer.request.sampling.max_new_tokens, self.max_len - len(answer.request.prompt)
            )
            draws = DRAWS_PER_TOKEN if self._speculation else 1
            # In this order, so that Ctrl-C in between loses no answer and no slot.
            try:
                self._prefilling.append(Row(answer, slot, room, self.tokenizer, draws))
            except BaseException:
                self._slots.release(slot, ())
                raise
            self._waiting.remove(answer)

    def _prefill(self) -> list[Event]:
        """Read a chunk of prompts; those read to their end get their first token."""
        parts, read, room = [], [], self._chunk_tokens
        for row in self._prefilling:
            tokens = row.tokens[row.slot.num_filled :][:room]
            if not tokens:
                break
            parts.append(Part(row.slot.index, row.slot.num_filled, tokens))
            read.append(row)
            room -= len(tokens)
        logits_SV = self._runner.prefill(parts)[:, : self._num_outputs]
        for row, part in zip(read, parts, strict=True):
            row.slot.num_filled += len(part.token_ids)
        if self._speculation:
            self._speculation.read(read, self._chunk_tokens)
        begun = [
            index for index, row in enumerate(read) if row.slot.num_filled == row.prompt_length
        ]
        if not begun:
            return []
        rows = [read[index] for index in begun]
        for row in rows:
            self._prefilling.remove(row)
            self._slots.move(row.slot, len(self._running))
            self._running.append(row)
        self._batch = None
        return self._choose(Batch(rows, self._runner.device), logits_SV[begun])

    def _decode(self) -> list[Event]:
        rows = list(self._running)
        if self._batch is None:
            self._batch = Batch(rows, self._runner.device)
        if self._speculation and any(row.speculates for row in rows):
            return self._speculate(self._speculation, self._batch)
        tokens = [[row.tokens[-1]] for row in rows]
        logits_RV = self._runner.decode(tokens, [row.slot.num_filled for row in rows])[:, 0]
        for row in rows:
            row.slot.num_filled += 1
        return self._choose(self._batch, logits_RV[:, : self._num_outputs])

    def _speculate(self, speculation: Speculation, batch: Batch) -> list[Event]:
        """Let the draft model propose and the model judge.

        Rows that take one token a step go along, for what a row gets must not depend on others.
        """
        rows = batch.rows
        proposals, proposed_RGV = speculation.propose(rows, batch.columns)
        tokens = [[row.tokens[-1], *own] for row, own in zip(rows, proposals, strict=True)]
        logits_RGV = self._runner.decode(tokens, [row.slot.num_filled for row in rows])
        logits_RGV = logits_RGV[..., : self._num_outputs]
        found = speculation.judge(rows, batch.columns, proposals, proposed_RGV, logits_RGV)
        logprobs: list[list[TokenLogprob]] = [[] for _ in rows]
        if not all(row.speculates for row in rows):
            chosen, told = self._chosen(batch, logits_RGV[:, 0])
            for index, row in enumerate(rows):
                if not row.speculates:
                    found[index], logprobs[index] = [chosen[index]], told[index]
        for row, own in zip(rows, found, strict=True):
            row.slot.num_filled += len(own)
            # The draft model has read all proposals but the last.
            row.slot.draft_filled = min(row.slot.draft_filled, row.slot.num_filled)
        return [
            self._take(row, own, own_logprobs)
            for row, own, own_logprobs in zip(rows, found, logprobs, strict=True)
        ]

    def _choose(self, batch: Batch, logits_RV: Tensor) -> list[Event]:
        """Let each row take its next token; those that are finished leave."""
        tokens, logprobs = self._chosen(batch, logits_RV)
        return [
            self._take(row, [token], own)
            for row, token, own in zip(batch.rows, tokens, logprobs, strict=True)
        ]

    def _chosen(
        self, batch: Batch, logits_RV: Tensor
    ) -> tuple[list[int], list[list[TokenLogprob]]]:
        """Return each row's next token, and its log-probability where that is asked for."""
        tokens = batch.choose(logits_RV, [row.next_draw for row in batch.rows])
        logprobs = batch.logprobs(logits_RV, tokens)
        return tokens, [[] if one is None else [one] for one in logprobs]

    def _take(self, row: Row, tokens: Sequence[int], logprobs: Sequence[TokenLogprob]) -> Event:
        """Append tokens to a row's answer as far as it goes on; return the event."""
        answer, taken, pieces = row.answer, 0, []
        for token in tokens:
            if token in self._ends and not answer.request.ignore_end:
                answer.finish_reason, answer.end_id = "stop", token
                answer.end_logprob = logprobs[taken].logprob if logprobs else None
                break
            row.note(token)
            pieces.append(row.text.push(token))
            taken += 1
            answer.finish_reason = self._finish_reason(row)
            if answer.finish_reason:
                break
        if answer.finish_reason:
            pieces.append(row.text.finish())
            self._leave(row)
        text = "".join(pieces)
        answer.text += text
        answer.logprobs += logprobs[:taken]
        answer.logprob_sum += sum(logprob.logprob for logprob in logprobs[:taken])
        return Event(
            answer, tuple(tokens[:taken]), text, tuple(logprobs[:taken]), answer.finish_reason
        )

    def _finish_reason(self, row: Row) -> FinishReason | None:
        """Say whether the last token ends the answer, and why."""
        if row.text.stopped:
            return "stop"
        if row.matcher is not None:
            row.matcher.accept(row.tokens[-1])
            if row.matcher.is_finished:
                return "stop"
        return "length" if len(row.answer.token_ids) >= row.room else None

    def _leave(self, row: Row) -> None:
        """Free a row's slot; the last running row takes its place, so that no gap is left."""
        if row in self._prefilling:
            self._prefilling.remove(row)
        else:
            index, last = row.slot.index, self._running[-1]
            self._slots.move(last.slot, index)
            self._running[index] = last
            self._running.pop()
            self._batch = None
        self._slots.release(row.slot, row.tokens)
