"""`report.html`: what became of the text, as one page that needs nothing else.

Style and drawings are inside it; whatever was read is escaped, and the page forbids scripts and
requests. Figures come from the numbers of all documents; texts are read for the samples alone.
Since it tells how long the run took, it is no output that two runs have alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from cygnet.corpus import dedup, drawings, facts, markup
from cygnet.corpus.clean.privacy import KINDS
from cygnet.corpus.clean.rules import BY_NAME
from cygnet.corpus.decide import REASONS
from cygnet.corpus.facts import Share
from cygnet.corpus.markup import size
from cygnet.corpus.page_rules import rule_sections
from cygnet.corpus.read.problems import FILE, LOST, MENDED, Problems, deed
from cygnet.corpus.table import KEPT, Category, DocumentTable
from cygnet.files import write_atomic

PAGE = "report.html"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
TOKENS = "<!--tokens-->", "<!--end of tokens-->"
"""What `put_tokens` writes between; no text on the page can hold them, for `<` is escaped."""
MAX_DOMAINS, MAX_SHARES, MAX_SOURCES, MAX_CLUSTERS = 12, 14, 20, 6
SIMILARITY_BINS = 25
KIND_OF = {
    **dict.fromkeys(BY_NAME, "rule"),
    **dict.fromkeys(REASONS, "rule"),
    **dict.fromkeys(dedup.REASONS, "copy"),
    **dict.fromkeys(("heldout_duplicate", "heldout_overlap", "contaminated"), "leak"),
    "train": "train",
    "heldout": "heldout",
}
"""The CSS class of each outcome."""
LEGEND = {
    "train": "trained on",
    "heldout": "held out",
    "rule": "dropped by a rule",
    "copy": "duplicate",
    "leak": "like held-out or evaluation text",
}
"""What each CSS class of `KIND_OF` means."""


def write_page(
    path: Path, table: DocumentTable, problems: Problems, cost: Mapping[str, Any], name: str
) -> None:
    """Write the page.

    Args:
        path: where to.
        table: all documents.
        problems: what went wrong while reading.
        cost: what `cost.json` says: bytes, and seconds of each step.
        name: of the data folder, as a person gives it to `--out`.
    """
    write_atomic(path, render_page(table, problems, cost, name))


def render_page(
    table: DocumentTable, problems: Problems, cost: Mapping[str, Any], name: str
) -> str:
    """Return the whole page; see `write_page`."""
    style = files("cygnet.corpus").joinpath("page.css").read_text(encoding="utf-8")
    title = markup.text(Path(name).name or name)
    body = "".join(
        (
            *_overview(table, problems, cost, name),
            *_waterfall(table),
            "<h2>Tokens</h2>\n" + "".join(TOKENS[:1]) + _no_tokens(name) + TOKENS[1],
            *rule_sections(table, name),
            *_distributions(table),
            *_duplicates(table),
            *_leaks(table),
            *_private(table),
            *_problems(problems),
            *_cost(table, cost),
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title} – Cygnet data report</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _overview(
    table: DocumentTable, problems: Problems, cost: Mapping[str, Any], name: str
) -> Iterator[str]:
    kept, total = int(table.is_kept.sum()), len(table)
    kept_bytes, all_bytes = int(table.bytes[table.is_kept].sum()), int(table.bytes.sum())
    copies = int(np.isin(table.outcome.astype(str), list(dedup.REASONS)).sum())
    heldout = int((table.outcome == "heldout").sum())
    lost = sum(problem.count for kind, problem in problems.kinds.items() if kind in LOST)
    yield '<div class="eyebrow">Cygnet data report</div>\n'
    yield f"<h1>{markup.text(Path(name).name or name)}</h1>\n"
    yield '<p class="lead">From raw files to text worth training on: what stayed, what went, '
    yield "and why.</p>\n"
    figures = [
        (f"{total:,}", "documents read"),
        (f"{kept:,}", f"documents stay ({markup.share(kept, total)}), {heldout:,} held out"),
        (size(kept_bytes), f"of text stay, of {size(all_bytes)} read"),
        (f"{total - kept - copies:,}", "documents dropped by rules"),
        (f"{copies:,}", "documents dropped as duplicates"),
        (f"{lost:,}", "files or rows could not be used"),
    ]
    yield markup.grid(markup.figure(*pair) for pair in figures)


def _waterfall(table: DocumentTable) -> Iterator[str]:
    counts = {
        name: (int(documents), int(num_bytes))
        for name, documents, num_bytes in zip(
            table.outcomes.names,
            table.outcomes.counts(np.ones(len(table))),
            table.outcomes.counts(table.bytes),
            strict=True,
        )
    }
    total = len(table), int(table.bytes.sum())
    yield "<h2>From raw to kept</h2>\n<p>Each document counts once: under the first rule that it "
    yield "breaks, as a duplicate, or as kept.</p>\n" + _legend()
    rows = [("read", f"{total[0]:,} · {size(total[1])}", [(float(total[1]), "")])]
    left = total[1]
    for name in facts.REASON_NAMES:
        if name in counts:
            documents, num_bytes = counts[name]
            lengths = [(float(left), KIND_OF[name]), (float(left - num_bytes), "")]
            rows.append((name, f"−{documents:,} · {size(num_bytes)}", lengths))
            left -= num_bytes
    heldout = counts.get("heldout", (0, 0))
    for name, length in (("train", float(left - heldout[1])), ("heldout", float(heldout[1]))):
        documents, num_bytes = counts.get(name, (0, 0))
        rows.append((name, f"{documents:,} · {size(num_bytes)}", [(length, name)]))
    yield f'<div class="card">{markup.bars(rows, total[1])}</div>\n'
    yield "<h3>By domain, in bytes</h3>\n" + f'<div class="scroll">{_flows(table)}</div>\n'
    yield _source_table(table)
    yield _epoch_table(table)


def _legend() -> str:
    marks = "".join(
        f'<span><i class="key {kind}"></i>{told}</span> ' for kind, told in LEGEND.items()
    )
    return f'<p class="small soft legend">{marks}</p>\n'


def _flows(table: DocumentTable) -> str:
    """Draw what of each domain becomes what; many domains and reasons are put together."""
    domains, outcomes = table.category("domain"), table.outcomes
    cells = domains.codes * len(outcomes.names) + outcomes.codes
    shape = len(domains.names), len(outcomes.names)
    documents, amounts = (
        np.bincount(cells, weights, minlength=shape[0] * shape[1]).reshape(shape)
        for weights in (np.ones(len(table)), table.bytes)
    )
    left, left_of = _largest(domains.names, amounts.sum(axis=1), MAX_DOMAINS)
    right, right_of = _largest(outcomes.names, amounts.sum(axis=0) + 1, MAX_DOMAINS)
    order = sorted(range(len(right)), key=lambda i: _rank(right[i]))
    place = {old: new for new, old in enumerate(order)}
    sums: dict[tuple[int, int], list[float]] = {}
    for i, j in zip(*np.nonzero(documents), strict=True):
        entry = sums.setdefault((left_of[i], place[right_of[j]]), [0.0, 0.0])
        entry[0] += documents[i, j]
        entry[1] += amounts[i, j]
    named = [right[i] for i in order]
    ribbons = [
        drawings.Flow(
            i, j, num_bytes, f"{left[i]} → {named[j]}: {count:,.0f} documents, {size(num_bytes)}"
        )
        for (i, j), (count, num_bytes) in sums.items()
    ]
    short = [_short(name, 24) for name in left]
    nodes = [(_short(name, 24), KIND_OF.get(name, "rule")) for name in named]
    return drawings.flows(short, nodes, ribbons, "bytes of each domain by what becomes of them")


def _largest(names: Sequence[str], amounts: Any, most: int) -> tuple[list[str], list[int]]:
    """Return the names of the largest amounts, `others` last, and where each name is among them."""
    order = np.argsort(-amounts, kind="stable").tolist()
    shown = order if len(order) <= most else order[: most - 1]
    where = {old: new for new, old in enumerate(shown)}
    labels = [names[i] for i in shown]
    if len(shown) < len(order):
        labels.append(f"{facts.OTHERS} ({len(order) - len(shown):,})")
    return labels, [where.get(i, len(shown)) for i in range(len(names))]


def _rank(outcome: str) -> int:
    order = (*KEPT, *facts.REASON_NAMES)
    return order.index(outcome) if outcome in order else len(order)


def _short(name: str, most: int) -> str:
    name = " ".join(name.split()).encode("utf-8", "replace").decode()
    return name if len(name) <= most else name[: most - 1] + "…"


def _source_table(table: DocumentTable) -> str:
    found = facts.shares(table, facts.sources(table), MAX_SOURCES)
    rows = [_share_row(share) for share in found]
    return "<h3>The largest files</h3>\n" + markup.table(
        ("file", "documents read", "kept", "bytes read", "kept", "share kept"), rows
    )


def _epoch_table(table: DocumentTable) -> str:
    found = facts.epoch(table)
    if not found:
        return ""
    total = sum(row.seen_bytes for row in found.values())
    rows = [
        [
            name, f"{row.documents:,}", f"{row.seen_documents:,}",
            size(row.bytes), size(row.seen_bytes), markup.share(row.seen_bytes, total),
        ]
        for name, row in list(found.items())[:MAX_SOURCES]
    ]  # fmt: skip
    return (
        "<h3>An epoch of training</h3>\n"
        + markup.note("A document is seen as often as the weight of its source says.")
        + markup.table(("domain", "documents", "seen", "bytes", "seen", "share"), rows)
    )


def _share_row(share: Share) -> list[str]:
    return [
        share.name,
        f"{share.read.documents:,}", f"{share.kept.documents:,}",
        size(share.read.bytes), size(share.kept.bytes),
        markup.share(share.kept.bytes, share.read.bytes),
    ]  # fmt: skip


def _distributions(table: DocumentTable) -> Iterator[str]:
    yield "<h2>Distributions</h2>\n<p>Coloured: what stays. Lengths in characters, on a "
    yield "logarithmic axis; heights are square roots of counts, so that few are seen too.</p>\n"
    found = facts.lengths(table)
    low = next((i for i, count in enumerate(found.read) if count), 0)
    ticks = [
        f"{2**i:,}" if (i - low) % 2 == 0 else "" for i in range(low, max(len(found.read), low + 1))
    ]
    drawn = drawings.histogram(found.read[low:], found.kept[low:], ticks, "lengths of documents")
    cards = [markup.card("Length", drawn)]
    for column, label in (
        ("domain", "Domain"), ("language", "Language"), ("licence", "Licence"),
        ("kind", "Kind of file"),
    ):  # fmt: skip
        cards.append(markup.card(label, _share_bars(facts.shares(table, column, MAX_SHARES))))
    sets: Category = table.sets
    cards.append(
        markup.card("Set of rules held to", _share_bars(facts.shares(table, sets, MAX_SHARES)))
    )
    yield markup.grid(cards, "wide")


def _share_bars(found: Sequence[Share]) -> str:
    found = [share for share in found if share.read.documents]
    rows = [
        (
            share.name or "not known",
            f"{share.kept.documents:,} of {share.read.documents:,} · {size(share.kept.bytes)}",
            [(float(share.read.bytes), ""), (float(share.kept.bytes), "stay")],
        )
        for share in found
    ]
    return markup.bars(rows, max((share.read.bytes for share in found), default=1))


def _duplicates(table: DocumentTable) -> Iterator[str]:
    found = facts.clusters(table)
    yield "<h2>Duplicates and repeated lines</h2>\n"
    yield f"<p>{markup.text(facts.repeated(table).told, 400)}</p>\n"
    if not len(found.kept):
        yield "<p>No duplicates.</p>\n"
        return
    is_copy = np.isin(table.outcome.astype(str), list(dedup.REASONS)) & (table.duplicate_of >= 0)
    goes, domain = np.flatnonzero(is_copy), table.category("domain").codes
    across = int((domain[goes] != domain[table.duplicate_of[goes]]).sum())
    yield f"<p>{len(goes):,} documents ({size(int(table.bytes[goes].sum()))}) repeat one of "
    yield f"{len(found.kept):,} others; {across:,} of them one of another domain.</p>\n"
    threshold = table.config.near_duplicate_threshold
    rows = [(label, f"{count:,}", [(count**0.5, "copy")]) for label, count in found.by_size()]
    most = max(count for _, count in found.by_size()) ** 0.5
    by_size = markup.bars(rows, most) + markup.note("Lengths are square roots of counts.")
    near, low = facts.similarities(table, SIMILARITY_BINS)
    ticks = [
        f"{low + i * (1 - low) / SIMILARITY_BINS:.2f}" if i % 4 == 0 else ""
        for i in range(len(near))
    ]
    drawn = drawings.histogram(near, [0] * len(near), ticks, "similarity of near duplicates")
    edits = table.config.near_duplicate_edits
    told = (
        f"Word pairs shared with the document that is kept. From {threshold:g} on two are "
        f"duplicates, or where at most {edits:.0%} of the words differ."
    )
    yield markup.grid(
        [
            markup.card("Documents in a cluster", by_size),
            markup.card("How like near duplicates are", drawn + markup.note(told)),
        ],
        "wide",
    )
    yield "<h3>The largest clusters</h3>\n"
    for kept, count in zip(found.kept[:MAX_CLUSTERS], found.sizes[:MAX_CLUSTERS], strict=True):
        yield _cluster(table, int(kept), int(count))


def _cluster(table: DocumentTable, kept: int, count: int) -> str:
    members = np.flatnonzero(table.duplicate_of == kept)
    goes = members[~table.is_kept[members]]
    places = [
        f"{table.word('source', int(i))} ({table.similarity[i]:.2f})" for i in goes[:MAX_CLUSTERS]
    ]
    more = f" and {len(goes) - len(places):,} more" if len(goes) > len(places) else ""
    body = markup.sample(table.word("source", kept), "is kept", table.excerpt(kept), "stayed")
    body += "".join(
        f'<div class="small soft">{markup.text(place, markup.SOURCE_CHARS)}</div>\n'
        for place in places
    )
    domain = table.word("domain", kept)
    return markup.fold(
        f"{count:,} documents", f"{domain}", body + markup.note(more) if more else body
    )


def _leaks(table: DocumentTable) -> Iterator[str]:
    """Tell what was taken from the training text because of held-out text and evaluation sets."""
    yield "<h2>Kept apart from held-out and evaluation text</h2>\n"
    words = table.outcome.astype(str)
    like, overlap, contaminated = (
        int((words == name).sum())
        for name in ("heldout_duplicate", "heldout_overlap", "contaminated")
    )
    yield markup.grid(
        [
            markup.figure(f"{like:,}", "went as the same as, or nearly, a held-out document"),
            markup.figure(f"{overlap:,}", "went for passages of held-out documents"),
            markup.figure(f"{contaminated:,}", "went for passages of an evaluation set"),
        ]
    )
    if not table.config.evaluation:
        yield markup.note("No evaluation set was given: --corpus.evaluation FILES looks for them.")
    of_sets = facts.contaminated_by(table, MAX_SHARES)
    if of_sets:
        rows = [[item, f"{count:,}"] for item, count in of_sets]
        yield markup.table(("evaluation item", "documents that went because of it"), rows)
    found = facts.clusters(table, ("heldout_duplicate",))
    pairs = list(zip(found.kept[:MAX_SHARES].tolist(), found.sizes[:MAX_SHARES], strict=True))
    if pairs:
        rows = [[table.word("source", kept), f"{count - 1:,}"] for kept, count in pairs]
        yield markup.table(("held-out document", "documents that went because of it"), rows)


def _private(table: DocumentTable) -> Iterator[str]:
    documents, finds = facts.private_data(table)
    privacy = table.config.privacy
    yield f"<h2>Private data</h2>\n<p>{finds:,} finds in {documents:,} documents; private data is "
    yield f"{facts.PRIVACY_TOLD[privacy]} (--corpus.privacy {privacy}).</p>\n"
    if documents:
        by_kind = [
            [f"[{kind.upper()}]", KINDS[kind], f"{each[0]:,}", f"{each[1]:,}"]
            for kind, each in facts.private_by_kind(table).items()
        ]
        yield markup.table(("kind", "what", "documents with finds", "finds"), by_kind, words=(1,))
        found = table.numbers["private"]
        domains = table.category("domain")
        counts = domains.counts((found > 0).astype(np.int64)), domains.counts(found)
        order = np.argsort(-counts[1], kind="stable")[:MAX_SHARES].tolist()
        rows = [
            [domains.names[i], f"{counts[0][i]:,}", f"{counts[1][i]:,}"]
            for i in order
            if counts[0][i]
        ]
        yield markup.table(("domain", "documents with finds", "finds"), rows)


def _problems(problems: Problems) -> Iterator[str]:
    yield "<h2>Problems while reading</h2>\n"
    if not problems.kinds:
        yield "<p>None.</p>\n"
    for kind, problem in sorted(problems.kinds.items()):
        shown = "".join(
            f'<div class="sample">{markup.text(place, 300)}</div>\n' for place in problem.examples
        )
        more = len(problem.places) - len(problem.examples)
        if more > 0:
            shown += markup.note(f"and {more:,} more, see {FILE}")
        yield markup.fold(
            f"{problem.count:,} × {kind}", f"{deed(kind)}: {(LOST | MENDED)[kind]}", shown
        )


def _cost(table: DocumentTable, cost: Mapping[str, Any]) -> Iterator[str]:
    """Tell what the run cost, and what more of the same would."""
    seconds = {str(step): float(value) for step, value in dict(cost.get("seconds", {})).items()}
    total, num_bytes = sum(seconds.values()), float(cost.get("bytes", 0))
    text_bytes = float(table.bytes.sum())
    yield "<h2>What it cost</h2>\n"
    if not total:
        yield "<p>Not known.</p>\n"
        return
    rows = [
        (step, f"{value:,.1f} s", [(value, "stay")])
        for step, value in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    each_byte = total / max(num_bytes, 1) / 3600
    lines = [
        ["whole run", f"{total:,.1f} s"],
        ["input files", f"{size(num_bytes)}, {num_bytes / total / 1e6:,.2f} MB/s"],
        ["text in them", f"{size(text_bytes)}, {text_bytes / total / 1e6:,.2f} MB/s"],
        ["hours for a GB of input", _hours(each_byte * 1e9)],
        ["hours for a TB of input", _hours(each_byte * 1e12)],
    ]
    yield markup.grid(
        [
            markup.card("Seconds of each step", markup.bars(rows, max(seconds.values()))),
            markup.card("More of the same", markup.table((), lines)),
        ],
        "wide",
    )
    yield markup.note(
        "On this machine, with this many workers. Hours are in proportion to bytes; what an "
        "earlier run had left ready was not read again and is not counted, so that a first run "
        "takes longer than a second."
    )


def _hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens of a part of the training text."""

    kind: str
    """`all`, `domain` or `language`."""
    name: str
    documents: int
    bytes: int
    tokens: float
    error: float
    """The standard error of `tokens`; 0 where every document was counted."""
    sampled: int
    """How many documents were counted."""
    epoch_tokens: float
    """What training sees in an epoch: a document counts as often as it is seen."""
    epoch_error: float
    """The standard error of `epoch_tokens`."""

    def told(self, in_epoch: bool) -> list[str]:
        """The tokens in words, with their standard error; by choice those of an epoch too."""
        pairs = [(self.tokens, self.error), (self.epoch_tokens, self.epoch_error)]
        return [
            f"{tokens:,.0f}" + (f" ± {error:,.0f}" if error else "")
            for tokens, error in pairs[: 1 + in_epoch]
        ]


def epochs_differ(counts: Sequence[TokenCount]) -> bool:
    """Say whether an epoch sees some documents more than once."""
    return any(count.epoch_tokens != count.tokens for count in counts)


def put_tokens(path: Path, counts: Sequence[TokenCount], tokenizer: str) -> None:
    """Write token counts onto a page, in the place of those that are there."""
    page = path.read_text(encoding="utf-8")
    before, _, rest = page.partition(TOKENS[0])
    after = rest.partition(TOKENS[1])[2]
    shown = f"<p>Of the training text, by <code>{markup.text(tokenizer, 200)}</code>."
    if any(count.error for count in counts):
        shown += " Counted on a sample, with the standard error of the estimate."
    in_epoch = epochs_differ(counts)
    if in_epoch:
        shown += " In an epoch a document counts as often as its source's weight has it seen."
    rows = [
        [
            count.name if count.kind != "all" else "all",
            count.kind if count.kind != "all" else "",
            f"{count.documents:,}", size(count.bytes), *count.told(in_epoch),
            f"{count.bytes / max(count.tokens, 1):.2f}", f"{count.sampled:,}",
        ]
        for count in counts
    ]  # fmt: skip
    tokens = ("tokens", "tokens in an epoch")[: 1 + in_epoch]
    headings = ("part", "by", "documents", "bytes", *tokens, "bytes per token", "counted")
    shown += "</p>\n" + markup.table(headings, rows)
    write_atomic(path, before + TOKENS[0] + shown + TOKENS[1] + after)


def _no_tokens(name: str) -> str:
    return (
        "<p>Bytes are told alone, since no tokenizer was given. To count tokens:</p>\n<pre><code>"
        f"cygnet data --out {markup.text(name, 300)} --tokenizer FOLDER</code></pre>\n"
    )
