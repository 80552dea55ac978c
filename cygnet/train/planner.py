"""What a run needs in memory, against what the machine has, and the micro-batch that follows.

The bytes are those of the tensors that the code really keeps: `saved_bytes_per_token` lists what
one layer leaves behind for the backward pass, line by line, and tests hold it against the tensors
that autograd saves. Peak memory of a process is higher, since the allocator leaves holes;
`HOLES` is that ratio as measured (docs/hardware.md has the table).

Letters: D hidden width, N query heads, K key/value heads, H head width, F feed-forward width,
V vocabulary, T tokens in a row; c is the size in bytes of the type of the computation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cygnet.config import ModelConfig, TrainConfig
from cygnet.errors import UserError
from cygnet.model.attention import BLOCK_TOKENS
from cygnet.model.loss import CHUNK_POSITIONS
from cygnet.train.hardware import Hardware

if TYPE_CHECKING:
    from rich.table import Table

SHARE = 0.8
"""Share of the free memory that a plan may take; the rest is for all else that runs."""
HOLES = {"eager": 1.45, "compiled": 1.0}
"""Peak of the process over the bytes that eager blocks keep; compiled blocks keep less."""
RUNTIME_BYTES = 300 << 20
"""Libraries, threads and scratch space that the first steps bring in."""
COMPILER_BYTES = 700 << 20
"""torch.compile's worker processes and the C++ compiler, while they work."""
BATCH_BYTES = 28
"""Bytes of a token of a batch: ids, labels and positions of 8, a document of 4."""
HELDOUT_ROWS = 16
"""Rows of held-out text that go through the model at once, one layer after the other."""
USEFUL_TOKENS = {"cpu": 16_384, "cuda": 65_536}
"""Tokens in a micro-batch beyond which nothing gets faster."""
EAGER_SHARE, COMPILED_SHARE = 0.3, 0.45
"""Share of the machine's matrix rate that a step reaches, for estimates of time."""
GIB = 1 << 30


@dataclass(frozen=True)
class Part:
    """One line of the table: what takes memory, how much, and why that much."""

    name: str
    num_bytes: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run takes and how it is cut to fit.

    Attributes:
        micro_batch: rows that go through the model at once.
        rows_per_batch: rows in an optimizer step.
        parts: what takes memory; not all of it at the same time.
        need_bytes: the largest sum at any time.
        reason: why this micro-batch, for people.
        fits: False only for a micro-batch that was asked for and is too large.
    """

    model: ModelConfig
    train: TrainConfig
    hardware: Hardware
    micro_batch: int
    rows_per_batch: int
    parts: tuple[Part, ...]
    need_bytes: int
    reason: str
    fits: bool

    def summary(self) -> str:
        """Return the choice in one line."""
        memory, compute = self.hardware.memory, self.hardware
        number = -(-self.rows_per_batch // self.micro_batch)
        cut = "at once" if number == 1 else f"in {number} micro-batches of {self.micro_batch}"
        return (
            f"plan: {self.model.num_parameters / 1e6:.2f} M parameters, {compute.dtype_name} on "
            f"{compute.device} ({compute.dtype_reason}); {self.rows_per_batch} rows of "
            f"{self.train.max_seq_len} tokens a step {cut} ({self.reason}); "
            f"{_size(self.need_bytes)} of {_size(memory.free_bytes)} ({memory.limited_by})"
        )

    def describe(self) -> str:
        """Return the table and the summary as plain text."""
        from rich.console import Console

        console = Console(width=110, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(self.table())
            console.print(self.summary(), markup=False, highlight=False)
        return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"

    def table(self) -> Table:
        """Return the parts as a rich table."""
        from rich import box
        from rich.table import Table

        free = self.hardware.memory.free_bytes
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("what")
        table.add_column("memory", justify="right")
        table.add_column("of free", justify="right")
        table.add_column("why")
        for part in self.parts:
            share = f"{100 * part.num_bytes / max(free, 1):.1f} %"
            table.add_row(part.name, _size(part.num_bytes), share, part.why)
        table.add_section()
        share = f"{100 * self.need_bytes / max(free, 1):.1f} %"
        table.add_row("peak", _size(self.need_bytes), share, "the most at any one time")
        table.add_row("free", _size(free), "", self.hardware.memory.limited_by)
        return table

    def estimate_seconds(self, tokens: int, compiled: bool = True) -> float:
        """Return about how long training on that many tokens takes, start-up left out."""
        return estimate_seconds(self.model, self.train, self.hardware, tokens, compiled)


def estimate_seconds(
    model: ModelConfig, train: TrainConfig, hardware: Hardware, tokens: int, compiled: bool = True
) -> float:
    """Return about how many seconds it takes to train on `tokens`, from the measured rate."""
    flops = tokens * model.flops_per_token(train.max_seq_len / 2)
    return flops / (hardware.matrix_rate * (COMPILED_SHARE if compiled else EAGER_SHARE))


def plan(
    model: ModelConfig,
    train: TrainConfig,
    hardware: Hardware,
    *,
    weights_loaded: bool = False,
    rows_together: int = 1,
    whole_logits: bool = False,
) -> Plan:
    """Choose the micro-batch: the most rows that fit, divide the batch and still make it faster.

    Args:
        model: sizes of the model.
        train: `micro_batch`, where given, is taken as it is, and the plan says if it fits.
        hardware: the machine, as `find_hardware` saw it.
        weights_loaded: the weights were in memory already when the free memory was measured.
        rows_together: rows that a micro-batch must not part, such as the two of a pair.
        whole_logits: the stage computes the logits of all its positions at once.

    Raises:
        UserError: not even one row fits; the message says what would.
    """
    rows = train.rows_per_batch
    choices = [n for n in range(rows_together, rows + 1, rows_together) if rows % n == 0]
    choices = choices or [rows]
    allowed = int(SHARE * hardware.memory.free_bytes)

    def need(micro_batch: int, seq_len: int = train.max_seq_len) -> int:
        parts = _parts(model, train, hardware, micro_batch, seq_len, whole_logits)
        return _peak(parts, weights_loaded)

    if train.micro_batch is not None:
        chosen, reason = train.micro_batch, "as asked for"
        if need(chosen) > allowed:
            reason = f"as asked for, though more than {SHARE:.0%} of the memory"
    else:
        fitting = [n for n in choices if need(n) <= allowed]
        if not fitting:
            raise UserError(_too_large(model, train, hardware, need, choices[0]))
        useful = USEFUL_TOKENS[hardware.device.type] // train.max_seq_len
        chosen = max((n for n in fitting if n <= useful), default=fitting[0])
        if chosen == choices[-1]:
            reason = "all of them fit"
        elif chosen == fitting[-1]:
            reason = f"more does not fit into {SHARE:.0%} of the memory"
        else:
            reason = "more would not be faster"
    parts = _parts(model, train, hardware, chosen, train.max_seq_len, whole_logits)
    peak = _peak(parts, weights_loaded)
    return Plan(
        model=model,
        train=train,
        hardware=hardware,
        micro_batch=chosen,
        rows_per_batch=rows,
        parts=tuple(parts.values()),
        need_bytes=peak,
        reason=reason,
        fits=peak <= allowed,
    )


def describe_plan(model: ModelConfig, train: TrainConfig, hardware: Hardware) -> str:
    """Return what `cygnet plan` prints: the table, the choice, and about how long it takes."""
    chosen = plan(model, train, hardware)
    rate = hardware.matrix_rate
    million_s = chosen.estimate_seconds(1_000_000)
    return (
        f"{hardware.name}, {hardware.num_cores} cores, {rate / 1e12:.2f} TFLOP/s in "
        f"{hardware.dtype_name}\n{chosen.describe()}about {million_s:.0f} s for each million "
        f"tokens, {1e6 / million_s:,.0f} tokens/s, once compiled\n"
    )


def saved_bytes_per_token(
    model: ModelConfig, seq_len: int, dtype_bytes: int, device: str = "cpu"
) -> float:
    """Return the bytes that the model keeps of one token until the backward pass, uncompiled.

    They are those of `cygnet.model.transformer`, mostly of its blocks; compiled blocks keep less.
    """
    c, T = dtype_bytes, seq_len
    D, H, F = model.hidden_size, model.head_size, model.intermediate_size
    queries, keys = model.num_heads * H, model.num_kv_heads * H
    norms = 2 * (8 + c) * D  # two float32 stages and the output
    head_norms = 8 * (queries + keys)
    if device == "cpu":
        starts = range(0, T, BLOCK_TOKENS)
        ends = [min(start + BLOCK_TOKENS, T) for start in starts]
        blocks = len(ends)
        mean_keys = sum((end - start) * end for start, end in zip(starts, ends, strict=True)) / T
        softmax = model.num_heads * mean_keys * (4 + (c if c < 4 else 0))
        mask = mean_keys
        # Each block of queries copies the values that it sees.
        attended = 2 * c * queries + c * keys * (1 + (blocks + 1) / 2)
    else:
        # torch's kernels keep queries, output and the keys and values of every query head; a mask
        # of documents costs T bytes a token, and T more in the type of the computation.
        softmax, mask = 4.0 * model.num_heads, float((1 + c) * T)
        attended = 5.0 * c * queries
    feed_forward = 4 * c * F
    layer = norms + head_norms + attended + softmax + mask + feed_forward
    outside = 8 * D + 4 * H  # the final norm, and cosine and sine of the position
    return model.num_layers * layer + outside


def _parts(
    model: ModelConfig,
    train: TrainConfig,
    hardware: Hardware,
    micro_batch: int,
    seq_len: int,
    whole_logits: bool,
) -> dict[str, Part]:
    count, c = model.num_parameters, hardware.dtype.itemsize
    tokens = micro_batch * seq_len
    positions = tokens if whole_logits else min(tokens, CHUNK_POSITIONS)
    saved, why_saved = _activations(model, train, hardware, tokens, seq_len)
    state, why_state, update = _optimizer(model, train, c)
    # Logits in the type of the computation, and five arrays of float32 around the softmax; then
    # the gradients of hidden states and output matrix.
    logits = positions * model.vocab_size * (20 + c) + tokens * model.hidden_size * 2 * c
    logits += 2 * 4 * model.vocab_size * model.hidden_size
    batches = 3 * train.rows_per_batch * train.max_seq_len * BATCH_BYTES
    compiler = 0 if train.compile == "off" else COMPILER_BYTES
    parts = {
        "weights": Part("weights", 4 * count, "float32, 4 bytes a parameter"),
        "gradients": Part("gradients", 4 * count, "float32, 4 bytes a parameter"),
        "optimizer": Part("optimizer", state, why_state),
        "activations": Part("activations", saved, why_saved),
        "logits": Part("logits", logits, f"{positions} positions x {model.vocab_size} at once"),
        "update": Part("update", update, "scratch of the optimizer; not beside logits"),
        "batches": Part("batches", batches, "this batch and the next"),
        "runtime": Part(
            "runtime",
            RUNTIME_BYTES + compiler,
            "torch" + (", its compiler while it works" if compiler else ""),
        ),
    }
    if train.minutes is not None:
        # A length in minutes becomes steps by a trial, before which the weights are put aside.
        parts["copy"] = Part("copy of weights", 4 * count, "while the first steps are timed")
    return parts


def _activations(
    model: ModelConfig, train: TrainConfig, hardware: Hardware, tokens: int, seq_len: int
) -> tuple[int, str]:
    c = hardware.dtype.itemsize
    per_token = saved_bytes_per_token(model, seq_len, c, hardware.device.type)
    per_token *= HOLES["compiled" if train.compile == "on" else "eager"]
    # Without gradients a layer's tensors go as the next ones come: half of them at a time.
    heldout = HELDOUT_ROWS * seq_len * per_token / model.num_layers / 2
    casts = c * model.num_parameters if c < 4 else 0
    why = f"{tokens // seq_len} x {seq_len} tokens, {per_token / 1024:.0f} KiB each"
    if casts:
        why += ", and the weights cast"
    return int(max(tokens * per_token, heldout)) + casts, why


def _optimizer(model: ModelConfig, train: TrainConfig, c: int) -> tuple[int, str, int]:
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_embeddings else 2)
    if train.optimizer == "adamw":
        # The square roots of one group's second moments.
        return 8 * model.num_parameters, "two float32 buffers, AdamW", 4 * model.num_parameters
    state = 4 * (model.num_parameters + embeddings)
    # Muon stacks all matrices of a shape; gate and up are the largest such group.
    group = 2 * model.num_layers * model.hidden_size * model.intermediate_size
    return state, "one float32 buffer for Muon's matrices, two for AdamW's", group * (8 + 4 * c)


def _peak(parts: dict[str, Part], weights_loaded: bool) -> int:
    size = {name: part.num_bytes for name, part in parts.items()}
    taken = sum(size.values()) - size["activations"] - size["logits"] - size["update"]
    standing = taken - (size["weights"] if weights_loaded else 0)
    # The allocator keeps the holes that activations leave, so they count beside the update too.
    return standing + size["activations"] + max(size["logits"], size["update"])


def _too_large(
    model: ModelConfig,
    train: TrainConfig,
    hardware: Hardware,
    need: Callable[..., int],
    smallest: int,
) -> str:
    shorter = train.max_seq_len // 2
    while shorter >= 64 and need(smallest, shorter) > SHARE * hardware.memory.free_bytes:
        shorter //= 2
    mend = (
        f"--max_seq_len {shorter} would fit"
        if shorter >= 64
        else "take a smaller --preset or a machine with more memory"
    )
    return (
        f"a model of {model.num_parameters / 1e6:.1f} M parameters with {smallest} x "
        f"{train.max_seq_len} tokens at once needs {_size(need(smallest))}, and {SHARE:.0%} of "
        f"{_size(hardware.memory.free_bytes)} ({hardware.memory.limited_by}) is less: {mend}"
    )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB else f"{num_bytes / (1 << 20):.0f} MiB"
