"""What happened in a run between two lines of metrics.jsonl."""

from __future__ import annotations

import math
import time

from cygnet.text.loader import Batch


class Window:
    """What happened since the last logged line."""

    def __init__(self) -> None:
        self.steps = self.tokens = 0
        self.attended = self.seconds = 0.0
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.restart()

    def restart(self) -> None:
        """Do not count the time since the last step."""
        self.mark = time.monotonic()

    def add(self, batch: Batch, metrics: dict[str, float]) -> None:
        """Count a step."""
        now = time.monotonic()
        self.seconds += now - self.mark
        self.mark = now
        self.steps += 1
        self.tokens += batch.num_tokens
        self.attended += float((batch.positions + 1)[batch.document_ids >= 0].sum())
        for name, value in metrics.items():
            if math.isnan(value):
                continue  # the batch has nothing of the kind
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Return the mean of each metric over the steps that told it."""
        return {name: value / self.counts[name] for name, value in self.sums.items()}

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the batches, padding left out."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def mean_context(self) -> float:
        """How many tokens a token sees."""
        return self.attended / max(self.tokens, 1)
