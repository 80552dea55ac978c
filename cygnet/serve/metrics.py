"""What `/metrics` tells Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from cygnet.serve.driver import Job
from cygnet.serve.offered import Offered

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counts of one server.

    Args:
        offered: the models, whose engines are looked at when the counts are read.
    """

    def __init__(self, offered: Iterable[Offered]) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cygnet_requests", "HTTP requests by path and status (499: the client left)",
            ("path", "status"), registry=self.registry,
        )  # fmt: skip
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self.cached_tokens = self._counter(
            "cached_prompt_tokens", "Tokens of prompts that were read before"
        )
        self.completion_tokens = self._counter("completion_tokens", "Tokens of answers")
        self.first_token = self._histogram("time_to_first_token", "Seconds to the first token")
        self.duration = self._histogram("request_duration", "Seconds to the last token")
        running = Gauge("cygnet_running", "Answers that have a slot", ("model",), registry=None)
        waiting = Gauge("cygnet_waiting", "Answers that wait for one", ("model",), registry=None)
        slots = Gauge("cygnet_slots", "Slots", ("model",), registry=None)
        for gauge in (running, waiting, slots):
            self.registry.register(gauge)
        own = {model.driver: model for model in reversed(list(offered))}
        for model in own.values():  # a model of two names is counted under the first
            engine = model.driver.engine
            slots.labels(model.name).set(engine.num_slots)
            running.labels(model.name).set_function(partial(getattr, engine, "num_running"))
            waiting.labels(model.name).set_function(partial(getattr, engine, "num_waiting"))

    def note(self, model: str, job: Job) -> None:
        """Take in a job that is done, or that its client has left."""
        for answer in job.answers:
            self.completion_tokens.labels(model).inc(answer.usage.completion_tokens)
        prompts = {id(answer.request.prompt): answer for answer in reversed(job.answers)}
        for answer in prompts.values():
            self.prompt_tokens.labels(model).inc(answer.usage.prompt_tokens)
            self.cached_tokens.labels(model).inc(answer.usage.cached_tokens)
        if job.first_token_at is not None:
            self.first_token.labels(model).observe(job.first_token_at - job.submitted_at)
        if job.finished_at is not None:
            self.duration.labels(model).observe(job.finished_at - job.submitted_at)

    def text(self) -> bytes:
        """Return all counts in Prometheus' text form."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help: str) -> Counter:
        return Counter(f"cygnet_{name}", help, ("model",), registry=self.registry)

    def _histogram(self, name: str, help: str) -> Histogram:
        return Histogram(
            f"cygnet_{name}_seconds", help, ("model",), buckets=_SECONDS, registry=self.registry
        )
