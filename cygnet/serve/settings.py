"""What `cygnet serve` can be told."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import tyro

from cygnet.errors import UserError
from cygnet.generate.remote import KEY_VARIABLE


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Which models to serve, where, and how much one client may ask for."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Run folders or model folders, each as FOLDER or NAME=FOLDER; without a name, that of the
    folder. A whole run offers its newest model."""
    stages: bool = False
    """Offer every stage of a run too, as NAME/pretrain, NAME/sft, NAME/dpo."""
    adapter: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A LoRA adapter on the model, as NAME=FOLDER or FOLDER, offered under its own name; may be
    given several times."""
    host: str = "127.0.0.1"
    """Address to serve on; 0.0.0.0 lets other machines in."""
    port: int = 8000
    """Port; 0 takes any that is free."""
    api_key: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A key that clients must send; may be given several times. Other programs of this machine can
    read a command line, so that CYGNET_API_KEY or --api_key_file is better."""
    api_key_file: Path | None = None
    """File with one key a line."""
    cors_origin: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An origin whose pages may call the server from a browser, such as https://example.org; * for
    any; may be given several times. The server's own page needs none."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of the computation; auto takes bf16 where the processor has it in hardware."""
    weights: Literal["float", "int8", "int4"] = "float"
    """Keep the matrices in 8 or 4 bits: smaller, and a little less exact."""
    draft: Path | None = None
    """A smaller model of the same tokenizer that proposes tokens (speculative decoding)."""
    yarn_factor: float | None = None
    """Stretch the models' contexts by so much with YaRN, without training; 4 is usual."""
    slots: int | None = None
    """Answers that run at the same time, for each model; none takes up to 32 that fit cache_gb."""
    max_len: int | None = None
    """Tokens of a prompt and its answer together; none takes the model's context, or as much of it
    as gives four slots."""
    cache_gb: float = 1.0
    """Memory for keys and values of each model, where slots or max_len are left open."""
    max_queue: int = 64
    """Answers that may wait for a slot of a model; beyond, clients are told to come back (429)."""
    max_prompt: int | None = None
    """Longest prompt in tokens; none for as many as the context holds."""
    max_tokens: int | None = None
    """Longest answer in tokens that a client may ask for; none for as many as the context holds."""
    max_n: int = 16
    """Most answers to all prompts of one request."""
    max_texts: int = 256
    """Most texts to embed of one request."""
    max_body_mb: float = 4.0
    """Largest request body."""
    request_s: float = 600.0
    """Seconds that a request may take; an answer ends there as if it had reached its length."""
    stall_s: float = 30.0
    """Seconds for which a client may leave what it was sent unread, or its own body unfinished."""
    drain_s: float = 30.0
    """Seconds that running requests get after SIGTERM."""

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError("give a run folder or model folder to serve")
        if not 0 <= self.port <= 65_535:
            raise UserError(f"--port {self.port}: it must be from 0 to 65535")
        above_zero = (
            "slots", "max_len", "cache_gb", "max_prompt", "max_tokens", "max_n", "max_texts",
            "max_body_mb", "request_s", "stall_s",
        )  # fmt: skip
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in above_zero and value is not None and value <= 0:
                raise UserError(f"--{field.name} {value}: it must be above zero")
            if field.name in ("max_queue", "drain_s") and value < 0:
                raise UserError(f"--{field.name} {value}: it must not be below zero")

    def keys(self) -> list[str]:
        """Return all keys, of the flags, the environment and the file; none means open to all.

        Raises:
            UserError: the file cannot be read or holds no key, or a key cannot stand in a header.
        """
        keys = [*self.api_key]
        if from_environment := os.environ.get(KEY_VARIABLE):
            keys.append(from_environment)
        if self.api_key_file is not None:
            try:
                lines = self.api_key_file.read_text(encoding="utf-8").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"--api_key_file {self.api_key_file}: {error}") from error
            own = [line.strip() for line in lines if line.strip()]
            if not own:
                raise UserError(f"--api_key_file {self.api_key_file}: holds no key")
            keys += own
        for key in keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise UserError("an API key must be printable ASCII without spaces")
        return keys
