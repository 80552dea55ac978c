from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cygnet.errors import UserError
from cygnet.evals.bootstrap import estimate
from cygnet.evals.report import write_report
from cygnet.evals.result import Sample, StageResult

HOSTILE = (
    "</div><script>alert(1)</script><img src=x onerror=alert(2)>&amp; | \u0000"
    "\n```\n<script>alert(3)</script>"
)


def make_stage(run: Path, name: str, share: float, answer: str = "an answer") -> None:
    items = [(float(i < 40 * share), 1.0) for i in range(40)]
    bits = [(1000.0 + i, 600.0) for i in range(20)]
    accuracy, bits_per_byte = estimate(items), estimate(bits)
    assert accuracy and bits_per_byte
    StageResult(
        metrics={"poem_form_accuracy": accuracy, "bits_per_byte/notes": bits_per_byte},
        samples=[Sample("poem", "写一首诗 " + HOSTILE, answer, HOSTILE, "五言绝句", False)],
        yardsticks={"notes": {"xz": 2.5, "zstd": 2.75, "num_bytes": 12_000}},
        items={"poem_form_accuracy": {"of": "x", "shares": items}},
    ).save(run / name / "eval.json")
    rows = [
        {"step": s, "tokens": 100 * s, "loss": 9 - s, "lr": 0.001, "tokens_per_second": 50.0,
         "epoch_time": 3.0, "heldout_loss": 9.5 - s, "elapsed_s": 6.0 * s}
        for s in range(1, 6)
    ]  # fmt: skip
    if name == "sft":
        rows[0] |= {"heldout_loss/poem": 3.0, f"heldout_loss/{HOSTILE}": 2.5}
        rows[4] |= {"heldout_loss/poem": 2.0, "heldout_loss/诗": 1.5}
    (run / name / "config.yaml").write_text("model:\n  hidden_size: 512\n")
    (run / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "demo <b>"
    make_stage(folder, "pretrain", 0.9)
    make_stage(folder, "sft", 0.2, HOSTILE)
    return folder


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text += data


def read(page: Path) -> Seen:
    seen = Seen()
    seen.feed(page.read_text(encoding="utf-8"))
    return seen


def test_planted_regression_is_said_plainly(run):
    page = write_report(run, ["pretrain", "sft", "dpo"])
    for text in (read(page).text, (run / "report.md").read_text(encoding="utf-8")):
        assert "It did not improve what it is for." in text
        assert "did not improve, it became worse" in text


def test_hostile_text_stays_text(run):
    seen = read(write_report(run, ["pretrain", "sft"]))
    assert "script" not in seen.tags and "img" not in seen.tags and "b" not in seen.tags
    assert not any(name.startswith("on") for name, _ in seen.attributes)
    assert "<script>alert(1)</script>" in seen.text
    markdown = (run / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r"(`{3,})text\n.*?\n\1\n", "", markdown, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<(script|img)", outside)


def test_page_asks_nobody_for_anything(run):
    page = write_report(run, ["pretrain", "sft"])
    text = page.read_text(encoding="utf-8")
    assert "http" not in text.replace("http-equiv", "")
    assert not re.search(r"url\((?!#)", text) and "@import" not in text
    assert "link" not in read(page).tags
    references = [value for name, value in read(page).attributes if name in ("href", "src")]
    assert all(value.startswith("#") for value in references)


def test_ids_in_the_page_are_unique_and_found(run):
    page = write_report(run, ["pretrain", "sft"])
    ids = [value for name, value in read(page).attributes if name == "id"]
    assert ids and len(ids) == len(set(ids))
    text = page.read_text(encoding="utf-8")
    wanted = re.findall(r"url\(#([^)]*)\)", text) + re.findall(r'href="#([^"]*)"', text)
    assert set(wanted) <= set(ids)


def test_table_has_stages_down_and_compressors_beneath(run):
    write_report(run, ["pretrain", "sft"])
    markdown = (run / "report.md").read_text(encoding="utf-8")
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    names = [row.split("|")[1].strip() for row in rows[:5]]
    assert names == ["", "pretrain", "sft", "xz -9", "zstd -19"]
    assert "2.500" in rows[3] and "2.750" in rows[4]
    assert "preference accuracy" in markdown.split("Not measured")[1].splitlines()[0]


def test_sizes_stand_at_the_top(run):
    text = read(write_report(run, ["pretrain", "sft"])).text
    assert "25.83 M" in text and "1.0 min" in text


def test_curves_of_each_stage(run):
    seen = read(write_report(run, ["pretrain", "sft"]))
    assert seen.tags.count("svg") == 8 + 1
    for name in ("loss", "heldout_kinds", "learning_rate", "tokens_per_second", "epoch_time"):
        content = (run / "sft" / "plots" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")


def test_same_run_gives_the_same_bytes(run):
    page = write_report(run, ["pretrain", "sft"])
    before = page.read_bytes(), (run / "sft" / "plots" / "loss.png").read_bytes()
    write_report(run, ["pretrain", "sft"])
    assert before == (page.read_bytes(), (run / "sft" / "plots" / "loss.png").read_bytes())


def test_stage_without_evaluation_or_log(run):
    (run / "sft" / "eval.json").unlink()
    (run / "pretrain" / "metrics.jsonl").unlink()
    seen = read(write_report(run, ["pretrain", "sft"]))
    assert "It was not evaluated." in seen.text
    assert seen.tags.count("svg") == 4 + 1


def test_text_without_questions_or_poems(tmp_path):
    bits = estimate([(1000.0, 600.0)] * 3)
    assert bits
    found = StageResult(metrics={"bits_per_byte/notes": bits}, yardsticks={})
    for stage in ("pretrain", "sft"):
        found.save(tmp_path / stage / "eval.json")
    text = read(write_report(tmp_path, ["pretrain", "sft"])).text
    assert "answer log-likelihood: not measured, there is no held-out conversations" in text
    assert "It cannot be judged." in text


def test_no_stage_and_damaged_files_are_named(run):
    with pytest.raises(UserError, match="holds none of the stages grpo"):
        write_report(run, ["grpo"])
    (run / "sft" / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    with pytest.raises(UserError, match=r"metrics\.jsonl: damaged"):
        write_report(run, ["sft"])
    (run / "sft" / "eval.json").write_text('{"metrics": {"x": 1}}')
    with pytest.raises(UserError, match=r"eval\.json: not a result"):
        write_report(run, ["sft"])
