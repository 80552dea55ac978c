"""`cygnet data train-filter`: a quality filter from a person's own good and bad texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cygnet.corpus.clean.quality import FILE
from cygnet.corpus.clean.quality_training import train_quality
from cygnet.corpus.cleaning import Cleaner
from cygnet.corpus.parts import member_kind, rule_set
from cygnet.corpus.read.find import find_files
from cygnet.corpus.read.kinds import ARCHIVES
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.readers import read_file
from cygnet.corpus.settings import DataConfig
from cygnet.errors import UserError
from cygnet.files import folder_atomic, write_json
from cygnet.progress import progress, say


@dataclass(frozen=True, kw_only=True)
class TrainFilterCommand:
    """Train a quality filter."""

    good: tuple[str, ...] = ()
    """Files, folders or globs with text worth training on."""
    bad: tuple[str, ...] = ()
    """The same with text to drop. What the filter shall judge, unsorted, serves too."""
    out: Path = Path("filters/mine")
    """Folder for the filter and its report; the pipeline takes it by --corpus.quality-filter."""
    text_field: str = ""
    """Field of a row that holds the text; the usual names are found without."""
    seed: int = 0
    """Decides which examples are kept aside for measuring."""


def train_filter_command(config: TrainFilterCommand) -> None:
    """Write a filter's folder and print its report.

    Raises:
        UserError: a side is not given, cannot be read or has too few texts; many texts stand on
            both sides; `out` is a folder of something else.
    """
    for name, paths in (("good", config.good), ("bad", config.bad)):
        if not paths:
            raise UserError(f"--{name}: give files, folders or globs with examples of {name} text")
    _refuse_foreign_folder(config.out)
    problems = Problems()
    try:
        model, report = train_quality(
            _texts("good", config.good, config, problems),
            _texts("bad", config.bad, config, problems),
            config.seed,
        )
    finally:  # what could not be read may be why a side is empty
        for line in problems.lines():
            say(line)
    with folder_atomic(config.out) as folder:
        model.save(folder / FILE)
        write_json(folder / "report.json", report.to_json() | {"sha256": model.sha256})
        (folder / "report.md").write_text(report.to_markdown(), encoding="utf-8")
    print(report.to_markdown())
    print(f"filter: {config.out / FILE} (sha256 {model.sha256[:16]})")
    print(f"next: cygnet data --data ... --corpus.quality-filter {config.out}")


def _refuse_foreign_folder(out: Path) -> None:
    """Keep what is no filter from being replaced by one."""
    is_filter = (out / FILE).is_file()
    if out.exists() and not is_filter and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out}: is there already and is no quality filter; name another")


def _texts(
    name: str, paths: Sequence[str], config: TrainFilterCommand, problems: Problems
) -> Iterator[str]:
    """Yield the texts of one side as `cygnet data` would judge them: cleaned as it does."""
    cleaning = DataConfig()
    files = find_files(paths, problems, exclude=config.out)
    total = sum(file.num_bytes() for file in files)
    with progress(f"reading {name}", total or None) as advance:
        for file in files:
            for document in read_file(
                file, problems, text_field=config.text_field, advance=advance
            ):
                kind = member_kind(document.source, file) if file.kind in ARCHIVES else file.kind
                of_web = rule_set(kind, file.rules, cleaning) == "web"
                yield Cleaner(cleaning, of_web).document(document).text
