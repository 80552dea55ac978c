"""The one loop that every stage trains in.

A step takes the batch of its number, sums the loss over micro-batches divided by the weight of
the whole batch (so that any number of micro-batches gives the same gradient), checks that all is
finite, clips, updates, and logs. Everything that decides the next step is in the checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cygnet.config import TrainConfig, read_yaml
from cygnet.errors import InterruptedRun, UserError
from cygnet.model.transformer import Transformer
from cygnet.progress import progress, say
from cygnet.text.loader import Batch
from cygnet.train.checkpoint import Checkpoint, CheckpointWriter, Piece, newest_checkpoint
from cygnet.train.feed import Batches
from cygnet.train.guards import DivergedError, RunStopped, blame, check_batch, interruptible
from cygnet.train.hardware import (
    DTYPES,
    find_hardware,
    generator_state,
    peak_memory_bytes,
    set_generator_state,
)
from cygnet.train.layout import layout_of
from cygnet.train.optim import resolve_optimizer
from cygnet.train.parallel.choose import SEVERAL_NEEDED, choose_parallel, spread
from cygnet.train.parallel.group import (
    any_of,
    check_shared,
    connect,
    explained_time_outs,
    gather,
    largest,
    note_step,
    on_rank_zero,
)
from cygnet.train.planner import estimate_seconds, plan
from cygnet.train.run_folder import changes, claim_run_folder, write_config
from cygnet.train.schedule import rate_scale
from cygnet.train.stage import OnlineStage, Stage, WatchedStage
from cygnet.train.trackers import Tracker, make_trackers
from cygnet.train.window import Window

COMPILE_REPAYS_S = 60.0
"""Eager training time above which compiling is worth its start-up; see docs/lab-book.md."""
TIMED_STEPS = 3
COLLECTED = "collected"
"""The kind of a checkpoint's tensors that an online stage has collected."""


class Engine:
    """Trains one model in one stage.

    Args:
        model: float32 weights, initialised or loaded; trained in place.
        stage: batches and loss.
        config: the settings as asked for.
        run: the run folder.
        origin: what else decides the result (data, starting model, ...), kept in config.yaml.

    Attributes:
        config: the settings as resolved: micro_batch, steps, dtype, device, compile.
        step: optimizer steps done.
    """

    def __init__(
        self,
        model: Transformer,
        stage: Stage,
        config: TrainConfig,
        run: Path,
        origin: dict[str, Any],
    ) -> None:
        self.started = time.monotonic()
        self.run, self.stage, self.requested, self.origin = run, stage, config, origin
        self.step = self.tokens = 0
        self.world = connect(config.timeout_s)
        self.hardware = find_hardware(config).shared_by(self.world.local_size)
        # What is measured now must be of the threads that will train.
        torch.set_num_threads(config.threads or self._allowed_threads())
        # The same choice in every process, whatever each has measured.
        self.config = on_rank_zero(lambda: self._resolve(config, model))
        self.hardware = dataclasses.replace(self.hardware, dtype=DTYPES[self.config.dtype])
        torch.set_num_threads(self.config.threads or 1)
        self.model = model.to(self.hardware.device)
        self.model.compute_dtype = self.hardware.dtype
        self.spread = spread(self.config.parallel, self.model, self.config, self.hardware)

    def train(self) -> None:
        """Train to the end, from the newest checkpoint if there is one.

        Raises:
            DivergedError: a loss or gradient is not finite.
            InterruptedRun: SIGINT or SIGTERM came; a checkpoint has been written.
            UserError: the run folder belongs to other settings, or cannot be written, or another
                process does not answer.
        """
        torch.manual_seed(self.config.seed)
        with explained_time_outs(lambda: self.step):
            self._begin()
        exit_code = 1
        try:
            with explained_time_outs(lambda: self.step):
                self._loop(self.config.steps or 0)
            exit_code = 0
        finally:
            for tracker in self.trackers:
                tracker.finish(exit_code)

    def _begin(self) -> None:
        state = self._resume()
        if self.config.compile == "on":
            self._compile()
        if self.config.steps is None:
            steps = self._steps_in(self.requested.minutes or 0)
            self.config = dataclasses.replace(self.config, minutes=None, steps=steps)
        self.writer = CheckpointWriter(
            self.run / "checkpoints", self.config.keep_checkpoints, self.world.rank,
            self.world.size, on_rank_zero(lambda: secrets.token_hex(4)), self.config.timeout_s,
        )  # fmt: skip
        self.trackers: list[Tracker] = []
        if self.world.rank == 0:
            settings = write_config(self.run, self.origin, self.requested, self.config)
            self.trackers = make_trackers(
                self.config, self.run, settings, state.get("trackers", {}), self.step
            )

    # Before the first step

    def _resolve(self, config: TrainConfig, model: Transformer) -> TrainConfig:
        """Fill in what the settings leave to the machine and to the data."""
        threads = torch.get_num_threads()
        config = self._with_recorded_optimizer(config)
        config, why = choose_parallel(
            config, model.config, self.hardware, self.world.size, weights_loaded=True
        )
        if self.world.size > 1:
            say(f"{self.world.size} processes: {config.parallel} ({why})")
        elif config.parallel in SEVERAL_NEEDED:
            say(
                f"--parallel {config.parallel}: one process alone holds everything; start several "
                "with torchrun or deepspeed"
            )
        steps = config.steps
        if config.tokens is not None:
            steps = math.ceil(config.tokens / (config.rows_per_batch * config.max_seq_len))
        elif config.minutes is None and steps is None:
            steps = math.ceil((config.epochs or 1) * self.stage.batches_per_epoch)
        resolved = dataclasses.replace(
            config,
            steps=steps,
            threads=threads,
            optimizer=resolve_optimizer(config.optimizer, config.parallel),
            epochs=None,
            tokens=None,
            device=str(self.hardware.device),
            dtype=self.hardware.dtype_name,  # type: ignore[arg-type]
        )
        if config.micro_batch is None:
            layout = layout_of(resolved, self.world.size)
            chosen = plan(model.config, resolved, self.hardware, layout, weights_loaded=True)
            say(chosen.summary())
            resolved = dataclasses.replace(resolved, micro_batch=chosen.micro_batch)
        return dataclasses.replace(resolved, compile=self._choose_compile(resolved, model))

    def _with_recorded_optimizer(self, config: TrainConfig) -> TrainConfig:
        """Keep the optimizer that the run in this folder began with, whatever now spreads it."""
        path = self.run / "config.yaml"
        if config.optimizer != "auto" or config.resume == "never" or not path.exists():
            return config
        if changes(self.run, self.origin, self.requested):
            return config  # not a run to go on with, which `_resume` says
        began = read_yaml(path)["train"]["optimizer"]
        if began != resolve_optimizer("auto", config.parallel):
            say(f"{self.run}: goes on with --optimizer {began}, as it began")
        return dataclasses.replace(config, optimizer=began)

    def _allowed_threads(self) -> int:
        # torch counts the machine's cores, also where a container may use fewer.
        return min(torch.get_num_threads(), self.hardware.num_cores)

    def _choose_compile(self, config: TrainConfig, model: Transformer) -> Any:
        if config.compile == "off":
            return "off"
        problem = self.hardware.compile_problem()
        if problem:
            say(problem)
            return "off"
        if config.compile == "on":
            return "on"
        if isinstance(self.stage, OnlineStage):
            return "off"  # how many rows the answers fill changes from step to step
        if config.minutes is not None:
            eager_s = 60 * config.minutes
        else:
            tokens = (config.steps or 0) * config.rows_per_batch * config.max_seq_len
            eager_s = estimate_seconds(model.config, config, self.hardware, tokens, compiled=False)
        return "on" if eager_s > COMPILE_REPAYS_S else "off"

    def _compile(self) -> None:
        """Compile one block; all others are the same code and use the result."""
        self.stage.compile()
        for block in self.model.model.layers:
            block.compile(dynamic=False)

    def _resume(self) -> dict[str, Any]:
        """Load the newest whole checkpoint, if there is one, and return its state."""
        on_rank_zero(lambda: claim_run_folder(self.run, self.origin, self.requested))
        on_rank_zero(lambda: self.run.mkdir(parents=True, exist_ok=True))
        check_shared(self.run)
        checkpoint = on_rank_zero(lambda: newest_checkpoint(self.run / "checkpoints"))
        if checkpoint is None:
            if self.config.resume == "must":
                raise UserError(f"{self.run}: --resume must, but there is no whole checkpoint")
            self._take_recorded()
            if isinstance(self.stage, OnlineStage):
                self.stage.load_state({})
            return {}
        self._take_recorded()
        with Checkpoint(checkpoint) as opened:
            state = opened.state
            torch.set_rng_state(opened.generator)
            set_generator_state(self.hardware.device, state.get("device_generator"))
            self.spread.load(opened.keys, opened.read, state["optimizer"])
            if isinstance(self.stage, OnlineStage):
                self.stage.load_state(opened.whole(COLLECTED))
        if isinstance(self.stage, WatchedStage) and "watch" in state:
            self.stage.load_watch_state(state["watch"])
        self.step, self.tokens = state["step"], state["tokens"]
        self.spread.load_loss_scale_state(state["scaler"])
        say(f"{self.run}: going on from step {self.step} of {self.config.steps}")
        return state

    def _take_recorded(self) -> None:
        """Take what the run in this folder chose when it began: a choice is made once."""
        if not (self.run / "config.yaml").exists():
            return
        began = read_yaml(self.run / "config.yaml")["train"]
        for name in ("dtype", "threads"):
            now = getattr(self.config, name)
            if began.get(name) != now:
                say(f"going on with {name} {now} in a run that began with {began.get(name)}")
        same = {name: began[name] for name in ("steps", "micro_batch", "compile")}
        self.config = dataclasses.replace(self.config, minutes=None, **same)

    def _steps_in(self, minutes: float) -> int:
        """Time a few real steps at rate zero, and say how many fit into the minutes."""
        per_step = self._timed_cycle() if isinstance(self.stage, OnlineStage) else self._timed()
        self.spread.reset_optimizer()
        before = time.monotonic()
        self._heldout()
        self._samples()
        heldout_s = time.monotonic() - before
        if isinstance(self.stage, OnlineStage):
            self.stage.load_state({})  # nothing of the timing stays
        step_s = per_step + heldout_s / self.config.eval_every
        left_s = 60 * minutes - (time.monotonic() - self.started) - 2 * heldout_s
        steps = on_rank_zero(lambda: max(int(left_s / step_s), 1))
        say(f"{step_s:.2f} s a step: {steps} steps fit into {minutes:g} minutes")
        return steps

    def _timed(self) -> float:
        """Return the seconds of a step; the first, which sets things up, is not counted."""
        seconds = []
        for _ in range(TIMED_STEPS + 1):
            before = time.monotonic()
            self._update(self.stage.batch(0), scale=0.0)
            seconds.append(time.monotonic() - before)
        return median(seconds[1:])

    def _timed_cycle(self) -> float:
        """Return the mean seconds of a step of a stage that answers before some of them.

        The steps behind the first one are counted, up to one that answers anew: whole cycles.
        """
        number, answers, total = 0, True, 0.0
        while number <= TIMED_STEPS or not answers:
            before = time.monotonic()
            answers = bool(self._collect(number))
            self._update(self.stage.batch(number), scale=0.0)
            total += time.monotonic() - before if number else 0.0
            number += 1
        return total / (number - 1)

    # The loop

    def _loop(self, total: int) -> None:
        with (
            interruptible() as interrupt,
            progress(self.stage.name, total) as advance,
            ThreadPoolExecutor(1) as loader,
        ):
            advance(self.step)
            if self.step == 0:
                self._log(self._heldout())
                self._log_samples()
            batches = Batches(self.stage, loader, self.step)
            window = Window()
            while self.step < total:
                note_step(self.step)
                collected = self._collect_or_stop()
                batch = batches.take()
                metrics = self._update(batch, rate_scale(self.step, total, self.config))
                metrics |= collected
                self.step += 1
                self.tokens += batch.num_tokens
                window.add(batch, metrics)
                last = self.step == total
                note = f"loss {metrics['loss']:.3f}  {window.tokens_per_second:,.0f} tokens/s"
                advance(1, note)
                values: dict[str, float] = {}
                if last or self.step % self.config.log_every == 0:
                    values = self._measures(window)
                    window = Window()
                evaluates = last or self.step % self.config.eval_every == 0
                if evaluates:
                    values |= self._heldout()
                if values:
                    self._log(values)
                if evaluates:
                    self._log_samples()
                    window.restart()
                stop = any_of(interrupt.signal_number is not None)
                kept = isinstance(self.stage, OnlineStage) and self.stage.must_keep
                if last or stop or kept or self.step % self.config.checkpoint_every == 0:
                    self._save(kept)
                    window.restart()
                if last or stop:
                    self.writer.wait()
                    gather(None)  # rank 0 has now given the checkpoint its name
                if stop:
                    raise InterruptedRun(
                        interrupt.signal_number or signal.SIGTERM,
                        f"{self.run}: stopped after step {self.step} of {total}; the same command "
                        "goes on from there",
                    )

    def _collect(self, number: int) -> dict[str, float]:
        """Let a stage that learns from the model's answers make ready for step `number`."""
        if not isinstance(self.stage, OnlineStage):
            return {}
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            return self.stage.collect(number, self.spread.whole)

    def _collect_or_stop(self) -> dict[str, float]:
        try:
            return self._collect(self.step)
        except RunStopped:
            self._save()
            self.writer.wait()
            gather(None)
            raise

    def _update(self, batch: Batch, scale: float) -> dict[str, float]:
        """Make one optimizer step; return the mean loss, gradient norm and stage metrics.

        Raises:
            DivergedError: before the weights are touched, when something is not finite.
        """
        weight = check_batch(self.stage, batch, self.step, self.model.config.vocab_size)
        rows = self.spread.own_rows(batch)
        sums = self.spread.accumulate(self.stage, rows, weight)
        own = {name: float(value) for name, value in sums.items()}
        means = {name: value / weight for name, value in self.spread.total(own).items()}
        if not math.isfinite(means["loss"]):
            raise self._diverged(batch, means["loss"], own)
        norm = self.spread.update(scale, self.config.grad_clip)
        if not (math.isfinite(norm) or self.spread.scaler.is_enabled()):
            raise self._diverged(batch, means["loss"], own)
        return {**means, "grad_norm": norm}

    def _diverged(self, batch: Batch, loss: float, own: dict[str, float]) -> DivergedError:
        """Find which row or parameter is to blame, or with several processes which of them."""
        if self.world.size == 1:
            return blame(self.model, self.stage, batch, self.step, loss)
        losses = gather(own.get("loss", 0.0))
        broken = [str(rank) for rank, value in enumerate(losses) if not math.isfinite(value)]
        where = f"in the rows of rank {', '.join(broken)}" if broken else "in the gradient alone"
        return DivergedError(
            f"step {self.step}: not finite {where} (loss {loss:.4g}); the last checkpoint stands. "
            "Lower --learning_rate, or run the step on one process, which names the row"
        )

    def _heldout(self) -> dict[str, float]:
        """Run the stage's held-out metrics, uncompiled: another mode would be compiled anew."""
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            values = self.spread.call(self.stage.heldout)
            if isinstance(self.stage, OnlineStage):
                values |= self.stage.judge(self.spread.whole)
            return values

    def _samples(self) -> list[dict[str, Any]]:
        """Return the stage's answers to its prompts, which all processes compute together."""
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            return self.stage.samples(self.spread.call)

    def _measures(self, window: Window) -> dict[str, float]:
        """Return what a line of metrics.jsonl says beyond the step's own means."""
        flops = self.model.config.flops_per_token(window.mean_context)
        speed = window.tokens_per_second
        seconds_per_step = window.seconds / window.steps
        return {
            **window.means(),
            "lr": self.spread.optimizer.param_groups[0]["lr"],
            "tokens_per_second": speed,
            "mfu": speed * flops / (self.hardware.matrix_rate * self.world.size),
            "epoch_time": seconds_per_step * self.stage.batches_per_epoch,
            "epoch": self.step / self.stage.batches_per_epoch,
            "elapsed_s": time.monotonic() - self.started,
            "peak_memory_bytes": largest(peak_memory_bytes(self.hardware.device)),
        }

    def _log(self, values: dict[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log({"step": self.step, "tokens": self.tokens, **values}, self.step)
        if self.world.rank == 0 and isinstance(self.stage, WatchedStage):
            self.stage.watch(self.step, values)

    def _log_samples(self) -> None:
        rows = self._samples()
        for tracker in self.trackers:
            tracker.samples(rows, self.step)

    def _save(self, kept: bool = False) -> None:
        """Write a checkpoint; one that is `kept` stays whatever comes after it."""
        state: dict[str, Any] = {
            "tokens": self.tokens,
            "scaler": self.spread.loss_scale_state(),
            "optimizer": self.spread.counters(),
            "trackers": {
                key: value for tracker in self.trackers for key, value in tracker.state().items()
            },
        }
        drawn_there = generator_state(self.hardware.device)
        if drawn_there is not None:
            state["device_generator"] = drawn_there

        if isinstance(self.stage, WatchedStage):
            state["watch"] = self.stage.watch_state()
        pieces = self.spread.pieces()
        if isinstance(self.stage, OnlineStage):
            self.stage.must_keep = False
            if self.world.rank == 0:
                collected = self.stage.state().items()
                pieces = chain(pieces, (Piece(COLLECTED, name, t) for name, t in collected))
        self.writer.save(self.step, pieces, state, kept)
