"""What a run needs in memory, against what the machine has, and the micro-batch that follows.

The bytes are those of the tensors that the code really keeps: `saved_bytes_per_token` lists what
one layer leaves behind for the backward pass, line by line, and tests hold it against the tensors
that autograd saves. Peak memory of a process is higher, since the allocator leaves holes;
`HOLES` is that ratio as measured (docs/hardware.md has the table).

Letters: D hidden width, N query heads, K key/value heads, H head width, F feed-forward width,
V vocabulary, T tokens in a row; c is the size in bytes of the type of the computation.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cygnet.config import ModelConfig, TrainConfig
from cygnet.errors import UserError
from cygnet.model.attention import BLOCK_TOKENS
from cygnet.model.loss import CHUNK_POSITIONS
from cygnet.train.hardware import Hardware
from cygnet.train.held import Held, held, keeps_whole
from cygnet.train.layout import ALONE, Layout
from cygnet.train.optim import resolve_optimizer

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
HELDOUT_ROWS_AT_ONCE = 16
"""Rows of held-out text that go through the model at once, one layer after the other."""
USEFUL_TOKENS = {"cpu": 16_384, "cuda": 65_536}
"""Tokens in a micro-batch beyond which nothing gets faster."""
EAGER_SHARE, COMPILED_SHARE = 0.3, 0.45
"""Share of the machine's matrix rate that a step reaches, for estimates of time."""
GIB = 1 << 30
TEXT_WIDTH = 110


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
        layout: how processes share the model and the rows.
        micro_batch: rows that go through the model at once.
        rows_per_batch: rows of an optimizer step that this process takes.
        parts: what takes memory; not all of it at the same time.
        need_bytes: the largest sum at any time.
        reason: why this micro-batch, for people.
        fits: whether the peak is within SHARE of the memory.
    """

    model: ModelConfig
    train: TrainConfig
    hardware: Hardware
    layout: Layout
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
        each = "" if self.layout.data_size == 1 else " and process"
        if self.layout.model_processes > 1 and each:
            each = f" and {self.layout.model_processes} processes"
        return (
            f"plan: {self.model.num_parameters / 1e6:.2f} M parameters, {compute.dtype_name} on "
            f"{compute.device} ({compute.dtype_reason}); {self.rows_per_batch} rows of "
            f"{self.train.max_seq_len} tokens a step{each} {cut} ({self.reason}); "
            f"{size_of(self.need_bytes)} of {size_of(memory.free_bytes)} ({memory.limited_by})"
        )

    def describe(self) -> str:
        """Return the table and the summary as plain text."""
        return in_text(self.table(), self.summary())

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
            table.add_row(part.name, size_of(part.num_bytes), share, part.why)
        table.add_section()
        share = f"{100 * self.need_bytes / max(free, 1):.1f} %"
        table.add_row("peak", size_of(self.need_bytes), share, "the most at any one time")
        table.add_row("free", size_of(free), "", self.hardware.memory.limited_by)
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
    layout: Layout = ALONE,
    *,
    weights_loaded: bool = False,
) -> Plan:
    """Choose the micro-batch: the most rows that fit, divide the batch and still make it faster.

    Args:
        model: sizes of the model.
        train: `micro_batch`, where given, is taken as it is, and the plan says if it fits.
        hardware: what one process has, as `find_hardware` saw it.
        layout: how processes share the model and the rows.
        weights_loaded: the weights were in memory already when the free memory was measured.

    Raises:
        UserError: not even one row fits; the message says what would.
    """
    found = smallest_plan(model, train, hardware, layout, weights_loaded=weights_loaded)
    if not found.fits and train.micro_batch is None:
        raise UserError(_too_large(found, weights_loaded))
    return found


def smallest_plan(
    model: ModelConfig,
    train: TrainConfig,
    hardware: Hardware,
    layout: Layout = ALONE,
    *,
    weights_loaded: bool = False,
) -> Plan:
    """Return what `plan` does, or the plan of one row at a time where nothing fits."""
    rows = -(-train.rows_per_batch // layout.data_size)
    # Every process of a pipeline needs a micro-batch to work on.
    most = rows // layout.model_processes if layout.way == "pipeline" else rows
    choices = [n for n in range(1, max(most, 1) + 1) if rows % n == 0]
    allowed = int(SHARE * hardware.memory.free_bytes)

    def need(micro_batch: int) -> int:
        return _heaviest(model, train, hardware, layout, micro_batch, weights_loaded)[0]

    if train.micro_batch is not None:
        chosen, reason = train.micro_batch, "as asked for"
        if need(chosen) > allowed:
            reason = f"as asked for, though more than {SHARE:.0%} of the memory"
    else:
        fitting = [n for n in choices if need(n) <= allowed]
        useful = USEFUL_TOKENS[hardware.device.type] // train.max_seq_len
        chosen = max((n for n in fitting if n <= useful), default=(fitting or choices)[0])
        if not fitting:
            reason = f"not even one row fits into {SHARE:.0%} of the memory"
        elif chosen == choices[-1]:
            reason = "all of them fit" if chosen == rows else "one for each stretch of layers"
        elif chosen == fitting[-1]:
            reason = f"more does not fit into {SHARE:.0%} of the memory"
        else:
            reason = "more would not be faster"
    peak, parts = _heaviest(model, train, hardware, layout, chosen, weights_loaded)
    return Plan(
        model=model,
        train=train,
        hardware=hardware,
        layout=layout,
        micro_batch=chosen,
        rows_per_batch=rows,
        parts=tuple(part for part in parts.values() if part.num_bytes),
        need_bytes=peak,
        reason=reason,
        fits=peak <= allowed,
    )


def describe_plan(chosen: Plan) -> str:
    """Return what `cygnet plan` prints: the table, the choice, and about how long it takes."""
    hardware, processes = chosen.hardware, chosen.layout.processes
    million_s = chosen.estimate_seconds(1_000_000)
    speed = "" if processes == 1 else ", of one process that never waits for the others"
    return (
        f"{hardware.name}, {hardware.num_cores} cores, {hardware.matrix_rate / 1e12:.2f} TFLOP/s "
        f"in {hardware.dtype_name}\n{chosen.describe()}"
        + in_text(
            f"about {million_s:.0f} s for each million tokens, {1e6 / million_s:,.0f} tokens/s, "
            f"once compiled{speed}"
        )
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


def _heaviest(
    model: ModelConfig,
    train: TrainConfig,
    hardware: Hardware,
    layout: Layout,
    micro_batch: int,
    weights_loaded: bool,
) -> tuple[int, dict[str, Part]]:
    """Return the peak and parts of the process that needs most; in a pipeline they differ."""
    places = layout.model_processes if layout.way == "pipeline" else 1
    found = []
    for place in range(places):
        parts = _parts(model, train, hardware, layout, micro_batch, place)
        found.append((_peak(parts, weights_loaded), parts))
    return max(found, key=lambda pair: pair[0])


def _parts(
    model: ModelConfig,
    train: TrainConfig,
    hardware: Hardware,
    layout: Layout,
    micro_batch: int,
    place: int,
) -> dict[str, Part]:
    rows = -(-train.rows_per_batch // layout.data_size)
    number = -(-rows // micro_batch)
    optimizer = resolve_optimizer(train.optimizer, layout.way)
    keeps = keeps_whole(model, hardware.dtype, hardware.memory.free_bytes)
    own = held(model, layout, optimizer, hardware.dtype, number > 1, keeps, place)
    saved, why_saved = _activations(model, train, hardware, layout, own, micro_batch, place)
    logits, why_logits = 0, ""
    if layout.way != "pipeline" or place == layout.model_processes - 1:
        logits, why_logits = _logits(model, hardware.dtype.itemsize, micro_batch, train.max_seq_len)
    # The whole batch is made in every process, which takes its own rows of it.
    batches = (2 * train.rows_per_batch + rows) * train.max_seq_len * BATCH_BYTES
    compiler = 0 if train.compile == "off" else COMPILER_BYTES
    state, why_state = own.optimizer, own.notes["optimizer"]
    if layout.offloads and hardware.device.type != "cpu":
        state, why_state = 0, "in the machine's memory"
    copied = _copied(own, layout) if hardware.device.type == "cpu" else 0
    start = 4 * model.num_parameters if own.weights < 4 * model.num_parameters else 0
    parts = {
        "weights": Part("weights", own.weights, own.notes["weights"]),
        "gradients": Part("gradients", own.gradients, own.notes["gradients"]),
        "optimizer": Part("optimizer", state, why_state),
        "activations": Part("activations", saved, why_saved),
        "buffers": Part("buffers", own.buffers, own.notes.get("buffers", "")),
        "logits": Part("logits", logits, why_logits),
        "update": Part("update", own.update, "scratch of the optimizer; not beside logits"),
        "batches": Part("batches", batches, "this batch and the next"),
        "checkpoint": Part("checkpoint", copied, "what it writes, copied while training goes on"),
        "runtime": Part(
            "runtime",
            RUNTIME_BYTES + compiler,
            "torch" + (", its compiler while it works" if compiler else ""),
        ),
        "start": Part("start", start, "the whole model, before it is cut; beside weights alone"),
    }
    return parts


def _copied(own: Held, layout: Layout) -> int:
    """Return the bytes that a process copies to write its share of a checkpoint."""
    if layout.way == "ddp" or (layout.way == "deepspeed" and layout.stage == 0):
        return (own.weights + own.optimizer) // layout.processes
    if layout.way == "deepspeed":
        return own.optimizer * 3 // 2  # float32 weights beside AdamW's two buffers
    return own.weights + own.optimizer


def _logits(model: ModelConfig, c: int, micro_batch: int, seq_len: int) -> tuple[int, str]:
    tokens = micro_batch * seq_len
    positions = min(tokens, CHUNK_POSITIONS)
    # Logits in the type of the computation, and five arrays of float32 around the softmax; then
    # the gradients of hidden states and output matrix.
    size = positions * model.vocab_size * (20 + c) + tokens * model.hidden_size * 2 * c
    size += 2 * 4 * model.vocab_size * model.hidden_size
    return size, f"{positions} positions x {model.vocab_size} at once"


def _activations(
    model: ModelConfig,
    train: TrainConfig,
    hardware: Hardware,
    layout: Layout,
    own: Held,
    micro_batch: int,
    place: int,
) -> tuple[int, str]:
    c, seq_len, tokens = hardware.dtype.itemsize, train.max_seq_len, micro_batch * train.max_seq_len
    part = layout.part_of(model, place)
    per_token = saved_bytes_per_token(part, seq_len, c, hardware.device.type)
    per_token *= HOLES["compiled" if train.compile == "on" else "eager"]
    # Without gradients a layer's tensors go as the next ones come: half of them at a time.
    heldout = HELDOUT_ROWS_AT_ONCE * seq_len * per_token / part.num_layers / 2
    why = f"{micro_batch} x {seq_len} tokens, {per_token / 1024:.0f} KiB each"
    size, at_once = tokens * per_token, 1
    if layout.way == "pipeline":
        rows = -(-train.rows_per_batch // layout.data_size)
        number = max(-(-rows // micro_batch), layout.model_processes)
        at_once = min(layout.model_processes - place, number)
        # Hidden states that come in and their gradients have a place for every micro-batch.
        size = at_once * size + 2 * number * tokens * model.hidden_size * c
        why = f"{at_once} micro-batches under way, {why}"
    if own.casts:
        why += ", and the weights cast"
    return int(max(size, heldout)) + at_once * own.casts, why


def _peak(parts: dict[str, Part], weights_loaded: bool) -> int:
    size = {name: part.num_bytes for name, part in parts.items()}
    aside = ("activations", "logits", "update", "start")
    standing = sum(size.values()) - sum(size[name] for name in aside)
    # The allocator keeps the holes that activations leave, so they count beside the update too.
    peak = standing + size["activations"] + max(size["logits"], size["update"])
    peak = max(peak, size["start"] + size["weights"] + size["runtime"])
    return peak - (size["weights"] if weights_loaded else 0)


def _too_large(found: Plan, weights_loaded: bool) -> str:
    train, hardware = found.train, found.hardware

    def fits(seq_len: int) -> bool:
        shorter = dataclasses.replace(train, max_seq_len=seq_len)
        return smallest_plan(
            found.model, shorter, hardware, found.layout, weights_loaded=weights_loaded
        ).fits

    shorter = train.max_seq_len // 2
    while shorter >= 64 and not fits(shorter):
        shorter //= 2
    mend = (
        f"--max_seq_len {shorter} would fit"
        if shorter >= 64
        else "take a smaller --preset or a machine with more memory"
    )
    shared = f" on each of {found.layout.processes} processes" if found.layout is not ALONE else ""
    return (
        f"a model of {found.model.num_parameters / 1e6:.1f} M parameters with "
        f"{found.micro_batch} x {train.max_seq_len} tokens at once needs "
        f"{size_of(found.need_bytes)}{shared}, and {SHARE:.0%} of "
        f"{size_of(hardware.memory.free_bytes)} ({hardware.memory.limited_by}) is less: {mend}"
    )


def in_text(*things: Table | str) -> str:
    """Return tables and sentences as plain text, one below the other."""
    from rich.console import Console

    console = Console(width=TEXT_WIDTH, color_system=None, force_terminal=False)
    with console.capture() as capture:
        for thing in things:
            console.print(thing, markup=False, highlight=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def size_of(num_bytes: float) -> str:
    """Return a number of bytes for people."""
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB else f"{num_bytes / (1 << 20):.0f} MiB"
