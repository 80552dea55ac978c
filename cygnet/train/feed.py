"""The batches of a run, in the order of its steps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from cygnet.text.loader import Batch
from cygnet.train.stage import OnlineStage, Stage


class Batches:
    """The batches of a stage, one after the other; the next is made while a step computes.

    Those of an online stage hang on the step before, and are made when they are asked for.
    """

    def __init__(self, stage: Stage, loader: ThreadPoolExecutor, first: int) -> None:
        self.stage, self.loader, self.number = stage, loader, first
        self.is_online = isinstance(stage, OnlineStage)
        self.upcoming = None if self.is_online else loader.submit(stage.batch, first)

    def take(self) -> Batch:
        """Return the next batch."""
        number = self.number
        self.number += 1
        if self.upcoming is None:
            return self.stage.batch(number)
        batch = self.upcoming.result()
        self.upcoming = self.loader.submit(self.stage.batch, self.number)
        return batch
