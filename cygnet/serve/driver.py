"""One thread for each engine, and jobs, through which asyncio learns what the engine brings.

The engine is called from its thread alone. What clients want done (submit, cancel) is put in an
inbox, which is emptied between two steps; what steps bring goes back in batches: waking the loop
and writing to many sockets costs more than a step of a small model may, so that the number of
chunks a second is bounded, whatever the number of streams and the speed of the model.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cygnet.errors import UserError
from cygnet.generate.engine import Engine
from cygnet.generate.request import Answer, Event, QueueFull, Request
from cygnet.serve.errors import ApiError

MAX_CHUNKS_PER_S = 500.0
"""Of all streams together, about 50 us of work each; a stream alone gets each token as it comes."""
Result = TypeVar("Result")


class ClientLeft(Exception):
    """Nobody waits for the job any more."""


class Job:
    """The answers of one HTTP request, on the side of asyncio.

    Attributes:
        answers: filled by the engine's thread; to be read of an answer that is finished.
        submitted_at, first_token_at, finished_at: `time.monotonic()`.
    """

    def __init__(self, streams: bool) -> None:
        self.answers: list[Answer] = []
        self.streams = streams
        self.submitted_at = time.monotonic()
        self.first_token_at: float | None = None
        self.finished_at: float | None = None
        self._num_unfinished = 1
        self._news: list[tuple[int, Event]] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_finished(self) -> bool:
        """Whether all answers are, or it has failed."""
        return self._num_unfinished == 0 or self._error is not None

    async def news(self) -> list[tuple[int, Event]]:
        """Wait, and return what has come since the last call, with each answer's index.

        An empty list is the end. Of a job that does not stream, only last events come.

        Raises:
            ClientLeft: `fail` said so.
            ApiError: the engine has stopped, or the server is about to.
        """
        while not self._news:
            if self._error is not None:
                raise self._error
            if self._num_unfinished == 0:
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        news, self._news = self._news, []
        return news

    def fail(self, error: Exception) -> None:
        """Let whoever waits get this error."""
        self._error = self._error or error
        self._wake()

    def begin(self, num_answers: int) -> None:
        """Take in how many answers there will be."""
        self._num_unfinished = num_answers

    def take(self, index: int, event: Event) -> None:
        """Take in an event of one answer."""
        self._news.append((index, event))
        if event.finish_reason is not None:
            self._num_unfinished -= 1
            if not self._num_unfinished:
                self.finished_at = time.monotonic()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Driver:
    """Runs an engine in a thread of its own.

    Made within the event loop that it reports to.

    Args:
        engine: not to be touched by anybody else from now on, but for its counts.

    Attributes:
        has_failed: a step went wrong; nothing more can be asked.
        mean_seconds: what jobs took lately, the last ones above all.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.has_failed = False
        self.mean_seconds = 1.0
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[Callable[[], bool | None] | None] = queue.SimpleQueue()
        self._owners: dict[Answer, tuple[Job, int]] = {}
        self._news: list[tuple[Job, int, Event]] = []
        self._handed_over_at = 0.0
        self._pending_calls: set[asyncio.Future[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def submit(self, requests: Sequence[Request], n: int, streams: bool) -> Job:
        """Queue n answers to each request, all or none; the first request's come first.

        Raises:
            UserError, QueueFull: as `Engine.submit_many`.
            ApiError: the engine has stopped.
        """
        job = Job(streams)

        def submit() -> None:
            try:
                self.engine.check_room(n * len(requests))
                for request in requests:
                    job.answers += self.engine.submit_many(request, n)
            except (UserError, QueueFull):
                for answer in job.answers:
                    self.engine.cancel(answer)
                raise
            job.begin(len(job.answers))
            for index, answer in enumerate(job.answers):
                self._owners[answer] = (job, index)

        try:
            await self.call(submit)
        except asyncio.CancelledError:
            self.cancel(job)
            raise
        return job

    def cancel(self, job: Job) -> None:
        """End a job of which nobody wants to hear any more, and free its slots before the next
        step."""
        if not job.is_finished:
            self._inbox.put(lambda: self._end(job, tells=False))
        job.fail(ClientLeft())

    def expire(self, job: Job) -> None:
        """End a job now; its answers are given as far as they came, "cancelled"."""
        self._inbox.put(lambda: self._end(job, tells=True))

    async def call(self, function: Callable[[], Result], takes_long: bool = False) -> Result:
        """Run a function in the engine's thread between two steps and return its result.

        Args:
            function: what to run; its exceptions of use to a client are raised here.
            takes_long: another step is made before the next of its kind.

        Raises:
            ApiError: the engine has stopped.
        """
        if self.has_failed:
            raise _stopped()
        future: asyncio.Future[Result] = self._loop.create_future()

        def run() -> bool:
            try:
                result = function()
            except (UserError, QueueFull, ApiError) as error:
                self._tell(_settle, future, None, error)
            else:
                self._tell(_settle, future, result, None)
            return takes_long

        self._inbox.put(run)
        self._pending_calls.add(future)
        future.add_done_callback(self._pending_calls.discard)
        return await future

    def abort(self, error: ApiError) -> None:
        """End all jobs; whoever waits for them gets the error."""

        def end_all() -> None:
            for job in {job for job, _ in self._owners.values()}:
                self._end(job, tells=False)
                self._tell(job.fail, error)

        self._inbox.put(end_all)

    def close(self) -> None:
        """End the thread and wait for its end; jobs that run are left as they are."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._empty_inbox():
                self._note(self.engine.step())
        except BaseException:
            self.has_failed = True
            self._tell(self._fail_all, list({job for job, _ in self._owners.values()}))
            raise

    def _empty_inbox(self) -> bool:
        """Do what was asked for; wait where there is nothing to step. False is the end."""
        while True:
            try:
                command = self._inbox.get(block=self.engine.is_idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            if command():
                return True

    def _note(self, events: Sequence[Event]) -> None:
        """Keep events until it is time to hand them over; first and last ones do not wait."""
        now = time.monotonic()
        is_urgent = False
        for event in events:
            job, index = self._owners[event.answer]
            if job.first_token_at is None:
                job.first_token_at = now
                is_urgent = True
            if event.finish_reason is not None:
                del self._owners[event.answer]
                is_urgent = True
                self.mean_seconds += 0.1 * (now - job.submitted_at - self.mean_seconds)
            elif not job.streams:
                continue
            self._news.append((job, index, event))
        if is_urgent or now - self._handed_over_at >= len(self._owners) / MAX_CHUNKS_PER_S:
            self._handed_over_at = now
            self._hand_over()

    def _hand_over(self) -> None:
        if self._news:
            news, self._news = self._news, []
            self._tell(_deliver, news)

    def _end(self, job: Job, tells: bool) -> None:
        """Cancel what of a job is not finished."""
        for index, answer in enumerate(job.answers):
            if self._owners.pop(answer, None) is None:
                continue
            told = len(answer.text)
            self.engine.cancel(answer)
            if tells:
                last = Event(answer, (), answer.text[told:], (), "cancelled")
                self._news.append((job, index, last))
        self._hand_over()

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        # A loop that was closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def _fail_all(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.fail(_stopped())
        for future in list(self._pending_calls):
            _settle(future, None, _stopped())


def joined(events: Sequence[Event]) -> Event:
    """Return one event for several of one answer that follow each other."""
    if len(events) == 1:
        return events[0]
    return Event(
        events[0].answer,
        tuple(token for event in events for token in event.token_ids),
        "".join(event.text for event in events),
        tuple(logprob for event in events for logprob in event.logprobs),
        events[-1].finish_reason,
    )


def _deliver(news: Sequence[tuple[Job, int, Event]]) -> None:
    for job, index, event in news:
        job.take(index, event)


def _settle(future: asyncio.Future[Result], result: Result, error: Exception | None) -> None:
    if future.done():  # whoever waited has left
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _stopped() -> ApiError:
    return ApiError(503, "this model has stopped; the server's log says why", code="model_stopped")
