"""Typed settings: what a model is, how it is trained, and how both are read from YAML.

Every settings class is a frozen, keyword-only dataclass with a docstring under each field, which
the command line shows as its help. `load_settings` turns a YAML mapping into one, and names the
nearest allowed key when one is misspelt.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from cygnet.errors import UserError, nearest

Settings = TypeVar("Settings")
PRESETS = (Path(__file__).parent / "configs").resolve()
"""The folder of the preset files; in a checkout a link to the one at its root."""
STAGES = ("pretrain", "distill", "sft", "dpo", "ppo", "grpo")
"""Stages that make a language model, in their usual order; each has a folder in a whole run."""
LENGTHS = ("steps", "tokens", "epochs", "minutes")
"""Ways of saying how long a stage trains; at most one is given."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder of the Qwen3 architecture. The defaults are the `26m` preset: 25.83 M parameters.

    Without `qk_norm` it is a Llama, and with `qkv_bias` beside that a Qwen2: what
    `cygnet import` brings in.

    Raises:
        UserError: a size is not positive, the head counts do not divide, or settings contradict.
    """

    vocab_size: int = 6400
    """Entries of the vocabulary; the tokenizer's own size replaces it when a run starts."""
    hidden_size: int = 512
    """Width of the residual stream."""
    num_layers: int = 8
    """Transformer blocks."""
    num_heads: int = 8
    """Query heads."""
    num_kv_heads: int = 2
    """Key and value heads; each serves num_heads / num_kv_heads query heads."""
    head_dim: int | None = None
    """Width of a head; none means hidden_size / num_heads."""
    intermediate_size: int = 1408
    """Width of the feed-forward layer."""
    max_position: int = 2048
    """The longest context in tokens that the model is declared for."""
    rope_theta: float = 10_000.0
    """Base of the rotary position frequencies."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    tie_embeddings: bool = True
    """Use the embedding matrix as the output matrix too."""
    qk_norm: bool = True
    """Norm queries and keys (Qwen3); Qwen2 and Llama do not."""
    qkv_bias: bool = False
    """Add a bias to queries, keys and values (Qwen2)."""
    rope_scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    """How rotary frequencies are stretched for a longer context (cygnet/model/rope.py)."""
    rope_factor: float = 1.0
    """How many times longer; used with rope_scaling."""
    rope_original_max_position: int | None = None
    """The context before stretching; llama3 and yarn need it."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
                raise UserError(f"model.{field.name} is {value}: it must be above zero")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_heads {self.num_heads} is not a multiple of model.num_kv_heads "
                f"{self.num_kv_heads}: choose one that divides it"
            )
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise UserError(
                f"model.hidden_size {self.hidden_size} is not a multiple of model.num_heads "
                f"{self.num_heads}: change one, or set model.head_dim"
            )
        if self.head_size % 2:
            raise UserError(
                f"a head is {self.head_size} wide, and rotary positions need an even width: "
                "change model.hidden_size, model.num_heads or model.head_dim"
            )
        if self.qk_norm and self.qkv_bias:
            raise UserError(
                "model.qk_norm and model.qkv_bias are both set, which no architecture has: Qwen3 "
                "has the one, Qwen2 the other"
            )
        if self.rope_scaling in ("llama3", "yarn") and self.rope_original_max_position is None:
            raise UserError(
                f"model.rope_scaling {self.rope_scaling} needs model.rope_original_max_position"
            )

    @property
    def head_size(self) -> int:
        """Width of a head, given or derived."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def num_parameters(self) -> int:
        """Exact number of parameters, tied weights counted once."""
        attention = self.hidden_size * self.head_size * 2 * (self.num_heads + self.num_kv_heads)
        feed_forward = 3 * self.hidden_size * self.intermediate_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        per_layer = attention + feed_forward + self._vectors_per_layer
        return self.num_layers * per_layer + embeddings + self.hidden_size

    @property
    def _vectors_per_layer(self) -> int:
        """Parameters of a layer that are no matrices: norms and biases."""
        head_norms = 2 * self.head_size if self.qk_norm else 0
        biases = (self.num_heads + 2 * self.num_kv_heads) * self.head_size if self.qkv_bias else 0
        return 2 * self.hidden_size + head_norms + biases

    def flops_per_token(self, mean_context: float) -> float:
        """Model FLOPs to train on one token: forward and backward, matrix products alone.

        Six per weight that is multiplied (Kaplan et al. 2020, section 2.1), plus twelve per
        layer, hidden unit and position attended to.

        Args:
            mean_context: the mean number of positions that a token attends to; half the sequence
                length for plain causal attention.
        """
        vectors = self.num_layers * self._vectors_per_layer + self.hidden_size
        multiplied = self.num_parameters - vectors
        if not self.tie_embeddings:
            multiplied -= self.vocab_size * self.hidden_size
        attention_width = self.num_heads * self.head_size
        return 6 * multiplied + 12 * self.num_layers * attention_width * mean_context


Schedule = Literal["wsd", "cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a stage is trained. Every training command shares these flags.

    Raises:
        UserError: a value is out of its range, or two settings contradict each other.
    """

    epochs: float | None = None
    """Passes over the data. Give one of epochs, steps, tokens, minutes."""
    steps: int | None = None
    """Optimizer steps."""
    tokens: int | None = None
    """Training tokens, padding included."""
    minutes: float | None = None
    """Time to train for. The speed of the first steps decides the number of steps, once; the
    number is written to config.yaml, and `--steps` with it repeats the run exactly."""
    batch_tokens: int = 16_384
    """Tokens in one optimizer step, over all processes."""
    micro_batch: int | None = None
    """Rows that go through the model at once; none lets the planner choose from the memory."""
    max_seq_len: int = 512
    """Tokens in a row."""
    optimizer: Literal["auto", "muon", "adamw"] = "auto"
    """Muon for matrices and AdamW for the rest, or AdamW for all. `auto` is muon, and adamw with
    DeepSpeed's ZeRO, which cuts across matrices."""
    learning_rate: float = 4e-3
    """Peak learning rate, of Muon (scaled to the update size of AdamW) and of AdamW alike."""
    embedding_learning_rate: float | None = None
    """Peak learning rate of the embeddings; none means learning_rate."""
    schedule: Schedule = "wsd"
    """Shape after the warm-up: stable then decay to zero (wsd), cosine, or constant."""
    warmup_share: float = 0.02
    """Share of the steps in which the learning rate rises."""
    decay_share: float = 0.4
    """Share of the steps, at the end, in which a wsd schedule falls."""
    weight_decay: float = 0.01
    """Decoupled weight decay of the matrices."""
    grad_clip: float = 1.0
    """Largest global gradient norm; larger gradients are scaled down to it."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Type of the computation; weights and optimizer state stay fp32. `auto` takes bf16 where the
    hardware multiplies it."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU where there is one."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile each block with torch.compile; `auto` does where the run is long enough."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Go on from the newest whole checkpoint of this run folder, if there is one."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk."""
    eval_every: int = 250
    """Steps between looks at the held-out text."""
    log_every: int = 5
    """Steps between lines of metrics.jsonl."""
    seed: int = 0
    """Seed of the weights and of the order of the data."""
    threads: int | None = None
    """CPU threads; none leaves the choice to torch."""
    use_wandb: bool = False
    """Track with Weights & Biases; offline where there is no login or network."""
    wandb_project: str = "cygnet"
    """Project that the run appears under."""
    wandb_run_name: str | None = None
    """Name of the run; none takes the run folder's name."""
    parallel: Literal["auto", "ddp", "fsdp", "deepspeed", "tensor", "pipeline"] = "auto"
    """How several processes share the work (docs/distributed.md). `auto` is the
    first of ddp, fsdp, tensor and pipeline that fits, and deepspeed where `deepspeed` is given."""
    model_processes: int | None = None
    """Processes that hold one model together, with tensor and pipeline; none means all."""
    deepspeed: Path | None = None
    """DeepSpeed's JSON settings; configs/deepspeed/ has one for each stage of ZeRO."""
    timeout_s: float = 600.0
    """How long a process waits for the others inside a step before the run ends."""
    tracker: Literal["none", "wandb", "tensorboard", "swanlab", "trackio"] = "none"
    """Where metrics go besides metrics.jsonl. `--use_wandb` is `--tracker wandb`. `swanlab` and
    `trackio` need no account: both write on this machine alone."""

    def __post_init__(self) -> None:
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} are both set: give one length for the run")
        positive: tuple[str, ...] = (
            "batch_tokens",
            "max_seq_len",
            "learning_rate",
            "grad_clip",
            "log_every",
        )
        positive += ("checkpoint_every", "keep_checkpoints", "eval_every", "timeout_s")
        for name in (*given, *positive):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(
                    f"{name} is {getattr(self, name)}: it must be above zero and finite"
                )
        optional = ("micro_batch", "threads", "embedding_learning_rate", "model_processes")
        for name in optional:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name} is {value}: it must be above zero and finite, or left out")
        for name in ("warmup_share", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must lie between 0 and 1")
        if self.batch_tokens < self.max_seq_len:
            raise UserError(
                f"batch_tokens {self.batch_tokens} is less than max_seq_len {self.max_seq_len}: "
                "a step needs at least one row"
            )

    @property
    def rows_per_batch(self) -> int:
        """Rows of max_seq_len tokens in one optimizer step."""
        return self.batch_tokens // self.max_seq_len

    def refuse_tokens(self, stage: str) -> None:
        """Refuse a length in tokens where a step learns from answers that are not yet given.

        Raises:
            UserError: the length is given in tokens.
        """
        if self.tokens is not None:
            raise UserError(
                f"--tokens {self.tokens}: how many tokens a step of {stage} learns from is known "
                "when the model has answered; give --steps, --epochs or --minutes"
            )


TRAINING: dict[str, TrainConfig] = {
    "pretrain": TrainConfig(),
    "distill": TrainConfig(epochs=1),
    "sft": TrainConfig(epochs=2, learning_rate=1e-3),
    "dpo": TrainConfig(epochs=1, learning_rate=2e-4),
    "reward": TrainConfig(epochs=1, learning_rate=2e-3),
    "ppo": TrainConfig(epochs=1, learning_rate=1e-4, schedule="constant", eval_every=40),
    "grpo": TrainConfig(
        steps=40,
        learning_rate=2e-3,
        embedding_learning_rate=2e-4,
        max_seq_len=256,
        batch_tokens=4096,
    ),
}
"""What each stage trains with where nothing is said, as a command and in a recipe."""


def stages_of_run(run: Path) -> tuple[str, ...]:
    """Return the stages of a whole run that make language models, in the order it took them."""
    config = run / "config.yaml"
    named = read_yaml(config).get("stages") if config.is_file() else None
    after = [stage for stage in named or () if stage in STAGES]
    return ("pretrain", *after) if after else STAGES


def load_settings(
    kind: type[Settings], values: Mapping[str, Any], where: str, default: Settings | None = None
) -> Settings:
    """Build a settings dataclass from a mapping, nested ones too.

    Args:
        kind: the dataclass.
        values: its fields.
        where: file and section, named in errors.
        default: gives the fields that are left out; none takes the defaults of the class. A
            length in `values` (steps, tokens, epochs, minutes) takes the place of its length.

    Raises:
        UserError: an unknown key (the nearest allowed one is named) or a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected `key: value` lines, found {values!r}")
    hints = typing.get_type_hints(kind)
    arguments = {} if default is None else dict(vars(default))
    if any(values.get(name) is not None for name in LENGTHS):
        arguments = {name: value for name, value in arguments.items() if name not in LENGTHS}
    own = {field.name: field.default for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"{where}: unknown key {key!r}{nearest(str(key), hints)}")
        before = arguments.get(key, own.get(key))
        arguments[key] = _convert(hints[key], value, f"{where}.{key}", before)
    return kind(**arguments)


def _convert(hint: Any, value: Any, where: str, default: Any = None) -> Any:
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if dataclasses.is_dataclass(hint):
        start = default if isinstance(default, hint) else None  # type: ignore[arg-type]
        return load_settings(hint, value, where, start)  # type: ignore[arg-type]
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _convert(next(o for o in options if o is not type(None)), value, where)
    if origin is Literal:
        if value not in options:
            allowed = ", ".join(map(str, options))
            hint = nearest(str(value), options)
            raise UserError(f"{where}: {value!r} is not one of {allowed}{hint}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(options[0], item, where) for item in items)
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        # YAML 1.1 reads 1e-3, without a dot, as text.
        try:
            return float(value)
        except ValueError:
            pass
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UserError: no such file, or not YAML, or not a mapping; names file and line.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not text in UTF-8"
        raise UserError(f"{path}{line}: not valid YAML ({problem})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines")
    return values


def as_yaml(settings: Any) -> str:
    """Return a settings dataclass as YAML that `load_settings` reads back to an equal one."""
    return yaml.safe_dump(plain(settings), sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    """Return settings, nested ones too, as YAML holds them: mappings, lists, text and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
