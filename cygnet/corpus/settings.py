"""What a person can say about how text is read and cleaned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cygnet.corpus.clean.language_codes import CODES, nearest_codes
from cygnet.corpus.clean.privacy import KINDS
from cygnet.corpus.clean.rules import RULE_SETS, Rule, rules_with
from cygnet.corpus.read.readers import MAX_CHARS
from cygnet.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to read and how to clean it.

    Raises:
        UserError: a value is out of its range.
    """

    paths: tuple[str, ...] = ()
    """Files, folders, globs, archives, addresses, or a YAML file of sources.
    None given: the built-in text."""
    heldout_share: float = 0.02
    """The share of documents that are held out, chosen by a hash of their title or text."""
    min_chars: int = 20
    """Shorter documents are dropped."""
    max_chars: int = MAX_CHARS
    """Longer texts are cut into documents of at most so many characters."""
    text_field: str = ""
    """The field that holds the text of a row; empty for the usual names (text, content, ...)."""
    strict: bool = False
    """Stop at the first file or row that cannot be read, in place of counting it."""
    chinese: Literal["as_is", "simplified", "traditional"] = "as_is"
    """Write Chinese in one kind of characters."""

    rules: Literal["auto", "basic", "web", "code", "none"] = "auto"
    """Which set of rules drops documents: `auto` holds crawled pages (WARC) to `web`, source
    code to `code` and all else to `basic`. `cygnet data --rules` lists them."""
    thresholds: tuple[str, ...] = ()
    """Other thresholds for single rules, or none: `gopher_min_words=30 c4_curly_bracket=off`."""
    languages: tuple[str, ...] = ()
    """Keep documents in these languages alone, as ISO 639-1 codes: `en zh`; `und` is text without
    letters."""
    quality_filter: str = ""
    """A filter of `cygnet data train-filter`; what it finds poor is dropped."""
    privacy: Literal["mask", "drop", "keep"] = "mask"
    """Put placeholders in the place of private data, drop documents that hold any, or keep them."""
    private: tuple[str, ...] = tuple(KINDS)
    """Kinds of private data to look for."""

    near_duplicate_threshold: float = 0.75
    """The least share of common word pairs (Jaccard) at which a document counts as a duplicate;
    conversations from 0.8 on."""
    near_duplicate_edits: float = 0.2
    """Or the largest share of words that differ. Of conversations word pairs alone count."""
    repeated_spans: Literal["keep", "line", "paragraph"] = "keep"
    """Take out lines or paragraphs that stand in `repeated_in` documents or more, but for their
    first place: menus, licences, footers."""
    repeated_in: int = 10
    """In how many documents a line or paragraph must stand to be taken out."""
    evaluation: tuple[str, ...] = ()
    """Files of evaluation sets: documents that hold a passage of them are dropped, and named."""

    seed: int = 0
    """Another seed holds out other documents."""
    part_mb: float = 4
    """About so much of the input is one process's work at a time; take 64 for terabytes."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("heldout_share", 1e-6, 0.5),
            ("min_chars", 1, 10_000),
            ("max_chars", 200, 10_000_000),
            ("near_duplicate_threshold", 0.3, 1.0),
            ("near_duplicate_edits", 0.0, 0.4),
            ("repeated_in", 2, 1_000_000),
            ("part_mb", 1e-6, 100_000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"{name} is {value}; give a value from {low} to {high}")
        if self.min_chars > self.max_chars:
            raise UserError(f"min_chars ({self.min_chars}) is over max_chars ({self.max_chars})")
        for kind in self.private:
            if kind not in KINDS:
                raise UserError(
                    f"private: no kind {kind!r}{nearest(kind, KINDS)}; "
                    f"give some of {', '.join(KINDS)}"
                )
        if not self.private and self.privacy != "keep":
            raise UserError("private: no kind is given; to look for none, --corpus.privacy keep")
        if self.repeated_spans == "keep" and self.repeated_in != DataConfig.repeated_in:
            raise UserError(
                f"repeated_in is {self.repeated_in}, and nothing repeated is taken out; give "
                "--corpus.repeated-spans line or paragraph"
            )
        for language in self.languages:
            if language not in CODES:
                near = ", ".join(map(repr, nearest_codes(language)))
                raise UserError(
                    f"languages: no language {language!r} is told apart"
                    f"{f' (did you mean {near}?)' if near else ''}; give ISO 639 codes such as "
                    "en, zh, de"
                )
        assert self.rules in ("auto", *RULE_SETS)
        rules_with(self.thresholds, self.min_chars)

    def rules_in_force(self, changes: Sequence[str] = ()) -> tuple[Rule, ...]:
        """Return the rules with this one's thresholds and further changes of them."""
        rules = rules_with([*self.thresholds, *changes], self.min_chars)
        if self.privacy == "drop":
            return rules
        return tuple(rule for rule in rules if rule.name != "private")
