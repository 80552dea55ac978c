"""`cygnet data`: raw files to clean documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cygnet.commands.token_counts import count_tokens
from cygnet.corpus import builtin
from cygnet.corpus.clean.quality import QualityModel
from cygnet.corpus.clean.rules import RULES
from cygnet.corpus.page import PAGE, TokenCount, epochs_differ, put_tokens
from cygnet.corpus.parts import read_plan
from cygnet.corpus.pipeline import parts_folder, prepare
from cygnet.corpus.scale import ScaleConfig
from cygnet.corpus.settings import DataConfig
from cygnet.corpus.table import DocumentTable
from cygnet.corpus.what_if import aligned, what_if
from cygnet.errors import UserError
from cygnet.files import read_json
from cygnet.progress import say
from cygnet.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class DataCommand:
    """Clean raw files."""

    reads_yaml: ClassVar[bool] = True
    data: tuple[str, ...] = ()
    """Files, folders, globs, archives or addresses; none takes the built-in text."""
    out: Path = Path("runs/mine/data")
    """Folder for the clean documents and the report."""
    about: bool = False
    """Say where the built-in text comes from and under which licences, and stop."""
    rules: bool = False
    """List the rules that drop documents, with their thresholds and sets, and stop."""
    what_if: tuple[str, ...] = ()
    """Try other thresholds on the finished folder at --out, and stop: `gopher_min_words=30`, or
    `c4_curly_bracket=off`. Takes seconds, for no text is read again."""
    tokenizer: str = ""
    """A tokenizer's or model's folder: count the tokens of the training text for the report."""
    strict: bool = False
    """Stop at the first file or row that cannot be read, in place of counting it."""
    corpus: DataConfig = DataConfig()
    scale: ScaleConfig = ScaleConfig()


def data_command(config: DataCommand) -> None:
    """Write a data folder; or tell about the built-in text, the rules, or other thresholds.

    Raises:
        UserError: something given is wrong, cannot be read, or leaves no text.
    """
    if config.data and config.corpus.paths:
        raise UserError("--corpus.paths is another name of --data: give all under one of them")
    paths = config.data or config.corpus.paths
    corpus = dataclasses.replace(
        config.corpus, paths=paths, strict=config.strict or config.corpus.strict
    )
    if config.about:
        print(builtin.about())
        return
    if config.rules:
        print("\n".join(_rule_lines(corpus)))
        return
    if config.what_if:
        _try_thresholds(config, corpus)
        return
    tokenizer = Tokenizer.load(config.tokenizer) if config.tokenizer else None
    out = config.out
    if out.is_file():
        raise UserError(f"--out {out}: is a file; give a folder")
    own = [] if paths else _own_files(out)
    if own and config == DataCommand(out=out, tokenizer=config.tokenizer) and tokenizer is not None:
        _tell_tokens(out, tokenizer, config.tokenizer)
        return
    if own:
        raise UserError(
            f"--out {out}: was made of {own[0]}{f' and {len(own) - 1:,} more' if own[1:] else ''}; "
            "give --data again, or the built-in text would take their place"
        )
    if corpus.quality_filter:
        QualityModel.load(Path(corpus.quality_filter))  # before anything is read
    if not paths:
        say("data: no --data given: the built-in text")
    prepare(corpus, out, config.scale)
    print((out / "report.md").read_text(encoding="utf-8"))
    if tokenizer is not None:
        _tell_tokens(out, tokenizer, config.tokenizer)


def _try_thresholds(config: DataCommand, corpus: DataConfig) -> None:
    """Tell what `--what-if` would do."""
    work = parts_folder(config.out)
    table = DocumentTable.load(config.out, work)
    known = _known_config(work)
    if known is not None:  # what a manifest has the hashes of alone
        used = {name: getattr(known, name) for name in ("evaluation", "quality_filter")}
        table = dataclasses.replace(table, config=dataclasses.replace(table.config, **used))
    usual = DataConfig()
    others = [
        f"--corpus.{field.name.replace('_', '-')}"
        for field in dataclasses.fields(DataConfig)
        if field.name != "paths"
        and getattr(corpus, field.name) not in (
            getattr(usual, field.name), getattr(table.config, field.name)
        )
    ]  # fmt: skip
    others += ["--tokenizer"] if config.tokenizer else []
    if others:
        raise UserError(
            f"--what-if tries thresholds alone, on {config.out} as it is: leave out "
            f"{', '.join(others)}, or run with it first"
        )
    found = what_if(table, config.what_if)
    paths = corpus.paths or (known.paths if known is not None else ())
    print("\n".join(found.lines(paths, config.out)))


def _own_files(out: Path) -> list[str]:
    """Return the files that a finished folder was made of, but for those of the built-in text."""
    manifest = read_json(out / "manifest.json")
    if manifest.get("made_by") != "cygnet data":
        return []
    built_in = {f"builtin/{path.name}" for path in builtin.builtin_files()}
    return [entry["path"] for entry in manifest.get("inputs", []) if entry["path"] not in built_in]


def _tell_tokens(out: Path, tokenizer: Tokenizer, name: str) -> None:
    """Count the tokens of a data folder, and put them onto its page."""
    table = DocumentTable.load(out)
    counts = count_tokens(table, out, tokenizer, seed=table.config.seed)
    if (out / PAGE).is_file():
        put_tokens(out / PAGE, counts, name)
    print("\n".join(_token_lines(counts)))


def _known_config(work: Path) -> DataConfig | None:
    """Return the settings of the run that made a work folder, if it is there."""
    try:
        return read_plan(work)[0]
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None


def _rule_lines(config: DataConfig) -> Iterator[str]:
    held = {rule.name: rule for rule in config.rules_in_force()}
    rows = []
    for usual in RULES:
        rule = held.get(usual.name)
        sign = "<" if usual.side == "below" else ">"
        threshold = "off" if rule is None else f"{sign} {rule.threshold:g}"
        sets = ", ".join(usual.sets)
        rows.append([usual.name, f"{usual.number} {threshold}", sets, usual.why])
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    heads = ["rule", "drops a document where", "of", "because it has"]
    for row in (heads, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
        yield "  ".join([*cells, row[3]])
    yield ""
    yield "A file is held to the rules of its kind: WARC to `web`, source code to `code`, all else"
    yield "to `basic`; --corpus.rules holds all to one of them, or to `none`, which leaves what was"
    yield "asked for by itself: languages, filters, evaluation sets. The first rule that a document"
    yield "breaks is the reason it goes. Other thresholds:"
    yield "  --corpus.thresholds gopher_min_words=30 c4_curly_bracket=off"
    yield "  --what-if gopher_min_words=30     tries it on a finished folder, in seconds"


def _token_lines(counts: Sequence[TokenCount]) -> Iterator[str]:
    in_epoch = epochs_differ(counts)
    rows = [
        [
            f"{count.kind} {count.name}".strip(), f"{count.documents:,}", f"{count.bytes:,}",
            *count.told(in_epoch), f"{count.bytes / max(count.tokens, 1):.2f}",
            f"{count.sampled:,}",
        ]
        for count in counts
    ]  # fmt: skip
    tokens = ("tokens", "tokens in an epoch")[: 1 + in_epoch]
    headings = ("training text", "documents", "bytes", *tokens, "bytes per token", "counted")
    yield from aligned(headings, rows)
