import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from cygnet.corpus.clean import quality, quality_training
from cygnet.corpus.clean.quality import BUCKET_BITS, FILE, QualityModel
from cygnet.corpus.clean.quality_report import QualityReport, area_under_curve
from cygnet.corpus.clean.quality_training import MIN_EXAMPLES, train_quality
from cygnet.corpus.clean.words import TextBatch
from cygnet.errors import UserError

COMMON = "the a of to in on lake swan water reed wind boat shore bird north south".split()
GOOD = ["therefore", "because", "nest", "feather", "migrate"]
BAD = ["casino", "bonus", "click", "winner", "cheap"]


def made(telling: list[str], share: float, count: int, seed: int) -> list[str]:
    """Return texts of common words with a share of telling ones."""
    chooser = random.Random(seed)
    return [
        " ".join(
            chooser.choice(telling if chooser.random() < share else COMMON)
            for _ in range(chooser.randint(30, 120))
        )
        for _ in range(count)
    ]


def trained(seed: int = 0) -> tuple[QualityModel, QualityReport]:
    return train_quality(made(GOOD, 0.1, 400, 1), made(BAD, 0.1, 400, 2), seed)


@pytest.fixture(scope="module")
def model() -> QualityModel:
    return trained()[0]


def scores(model: QualityModel, *texts: str) -> list[float]:
    return model.scores(TextBatch(texts)).tolist()


def test_new_texts_are_told_apart(model: QualityModel) -> None:
    good, bad = made(GOOD, 0.1, 300, 3), made(BAD, 0.1, 300, 4)
    right = [s > 0.5 for s in scores(model, *good)] + [s < 0.5 for s in scores(model, *bad)]
    assert sum(right) > 0.98 * len(right)


def test_pairs_of_words_tell_where_words_cannot() -> None:
    chooser = random.Random(0)
    good = [" ".join(chooser.sample(["a b", "c d", "e f", "g h"], 4) * 4) for _ in range(80)]
    # The same words, as often; only their order differs.
    good = [f"{text} {i}" for i, text in enumerate(good)]
    swapped = str.maketrans("bdfh", "dfhb")
    bad = [text.translate(swapped) for text in good]
    bad = [f"{text} {i}" for i, text in enumerate(bad)]
    _, report = train_quality(good, bad, 0)
    assert report.accuracy > 0.95


def test_what_is_measured_is_true(model: QualityModel) -> None:
    _, report = trained()
    assert report.accuracy > 0.97 and report.auc > 0.99
    assert report.num_used == (400, 400) and report.num_held == (60, 60)
    words = {word for word, _ in report.telling_good[:8]}
    assert words & set(GOOD) and not words & set(BAD)
    words = {word for word, _ in report.telling_bad[:8]}
    assert words & set(BAD) and not words & set(GOOD)
    assert all(value > 0 for _, value in report.telling_good + report.telling_bad)
    good_kept = [kept for _, kept, _ in report.thresholds]
    assert good_kept == sorted(good_kept, reverse=True) and good_kept[0] >= 0.98
    assert sum(count for _, _, count in report.calibration) == 120


def test_texts_that_nothing_tells_apart_score_a_half() -> None:
    _, report = train_quality(made(COMMON, 0, 600, 1), made(COMMON, 0, 600, 2), 0)
    assert abs(report.auc - 0.5) < 0.15
    assert all(0.2 < mean < 0.8 for mean, _, _ in report.calibration)


def test_auc_counts_pairs_and_half_of_ties() -> None:
    good, bad = np.array([0.9, 0.5, 0.5, 0.1]), np.array([0.5, 0.2, 0.2])
    pairs = [(g > b) + 0.5 * (g == b) for g in good for b in bad]
    assert area_under_curve(good, bad) == pytest.approx(np.mean(pairs))


def test_the_gradient_is_that_of_the_loss() -> None:
    examples = quality_training.collect(made(GOOD, 0.2, 60, 1), made(BAD, 0.2, 90, 2), 0)
    matrix = quality_training._Matrix.of(examples)
    chooser = np.random.default_rng(0)
    weights = chooser.normal(size=(1 << BUCKET_BITS) + 1)
    direction = chooser.normal(size=len(weights))
    ahead, behind = weights + 1e-5 * direction, weights - 1e-5 * direction
    slope = (matrix.loss(ahead) - matrix.loss(behind)) / 2e-5
    assert slope == pytest.approx(matrix.gradient(weights) @ direction, rel=1e-5)


def test_training_scores_as_the_model_does(model: QualityModel) -> None:
    examples = quality_training.collect(made(GOOD, 0.2, 60, 1), made(BAD, 0.2, 60, 2), 0)
    weights = np.append(model.weights.astype(float), model.bias)
    logits = quality_training._Matrix.of(examples).logits(weights)
    expected = 1 / (1 + np.exp(-logits))
    assert model.scores(TextBatch(examples.texts)) == pytest.approx(expected, abs=1e-6)


def test_the_same_texts_give_the_same_bytes(model: QualityModel) -> None:
    assert trained()[0].to_bytes() == model.to_bytes()
    good, bad = made(GOOD, 0.1, 400, 1), made(BAD, 0.1, 400, 2)
    random.Random(5).shuffle(good)
    other_order, _ = train_quality(iter(good + good[:7]), reversed(bad), 0)
    assert other_order.to_bytes() == model.to_bytes()
    assert trained(seed=1)[0].sha256 != model.sha256


def test_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    good, bad = made(GOOD, 0.1, 60, 1), made(BAD, 0.1, 60, 2)
    (tmp_path / "texts.json").write_text(json.dumps([good, bad]))
    program = (
        "import json, sys; from cygnet.corpus.clean.quality_training import train_quality; "
        "print(train_quality(*json.load(open(sys.argv[1])), 0)[0].sha256)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "texts.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == train_quality(good, bad, 0)[0].sha256


WORDS = st.sampled_from([*COMMON, *GOOD, *BAD, "天鹅", "\n", "...", ""])
TEXTS = st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=30).map(" ".join))


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, max_size=6))
def test_a_score_does_not_depend_on_the_company(model: QualityModel, texts: list[str]) -> None:
    together = scores(model, *texts)
    assert together == [scores(model, text)[0] for text in texts]
    assert all(0 <= score <= 1 for score in together)


def test_length_does_not_matter(model: QualityModel) -> None:
    text = "the casino of the lake because a swan "
    once, often = scores(model, text * 20, text * 200)
    assert once == pytest.approx(often, abs=0.01)
    empty = 1 / (1 + np.exp(-model.bias))
    assert scores(model, "", " ... ") == pytest.approx([empty, empty])


def test_saved_is_loaded(model: QualityModel, tmp_path: Path) -> None:
    model.save(tmp_path / FILE)
    for path in (tmp_path, tmp_path / FILE):
        loaded = QualityModel.load(path)
        assert loaded.sha256 == model.sha256 and loaded.made_of == model.made_of
        texts = made(GOOD, 0.1, 20, 9)
        assert scores(loaded, *texts) == scores(model, *texts)


def _written(path: Path, tensors: dict[str, np.ndarray], **about: object) -> None:
    values = {"format": "cygnet-quality", "version": 1, "words": quality._probe(), **about}
    save_file(tensors, path, {"about": json.dumps(values)})


def test_another_file_is_refused_by_what_is_wrong(model: QualityModel, tmp_path: Path) -> None:
    file = tmp_path / FILE
    right = {"weights": model.weights, "bias": np.zeros(1)}

    def refused(because: str) -> None:
        with pytest.raises(UserError, match=because) as error:
            QualityModel.load(file)
        assert str(file) in str(error.value) and "\n" not in str(error.value)

    refused("no such quality filter")
    file.write_bytes(b"not a filter")
    refused("no whole safetensors file")
    file.write_bytes(model.to_bytes()[:5000])
    refused("no whole safetensors file")
    save_file(right, file)
    refused("no quality filter")
    save_file(right, file, {"about": "["})
    refused("no quality filter")
    _written(file, right, version=7)
    refused("of version 7, and this Cygnet reads version 1")
    _written(file, right, words="0")
    refused("cut text into other words")
    _written(file, {"weights": model.weights})
    refused("'bias' is not 1 numbers")
    _written(file, {**right, "weights": model.weights[:9]})
    refused("'weights' is not 262144 numbers")
    _written(file, {**right, "bias": np.array([np.nan])})
    refused("no number")
    _written(file, right)
    assert QualityModel.load(file).bias == 0
    file.unlink()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="no such quality filter"):
        QualityModel.load(tmp_path / "folder")


def test_sides_that_cannot_be_learnt_from_are_refused() -> None:
    good, bad = made(GOOD, 0.1, 80, 1), made(BAD, 0.1, 80, 2)
    for wrong, message in [
        (([], bad), "--good: not one text"),
        ((good, ["", "  "]), "--bad: not one text"),
        ((good, bad[: MIN_EXAMPLES - 1]), f"--bad: {MIN_EXAMPLES - 1} different texts are too few"),
        (([good[0]] * 500, bad), "--good: 1 different texts are too few"),
        ((good, bad + good[:5]), "5 texts are given as good and as bad, such as"),
    ]:
        with pytest.raises(UserError, match=message):
            train_quality(*wrong, 0)


def test_the_odd_text_on_both_sides_is_left_out() -> None:
    good, bad = made(GOOD, 0.1, 200, 1), made(BAD, 0.1, 200, 2)
    with_one, report = train_quality([*good, "404 not found"], [*bad, "404 not found"], 0)
    assert report.num_on_both == 1 and report.num_used == (200, 200)
    assert with_one.sha256 == train_quality(good, bad, 0)[0].sha256


def test_of_many_examples_a_fair_draw_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_training, "MAX_EXAMPLES", 60)
    good, bad = made(GOOD, 0.1, 300, 1), made(BAD, 0.1, 70, 2)
    first, report = train_quality(good, bad, 0)
    assert report.num_read == (300, 70) and report.num_used == (60, 60)
    assert first.sha256 == train_quality(good[::-1], bad, 0)[0].sha256


def test_the_report_is_a_table_that_markdown_can_hold() -> None:
    good = [f"{text} | {i}" for i, text in enumerate(made(GOOD, 0.1, 80, 1))]
    _, report = train_quality(good, made(BAD, 0.1, 80, 2), 0)
    assert "\\|" in report.to_markdown()
    rows = [line for line in report.to_markdown().splitlines() if line.startswith("|")]
    assert all(row.replace("\\|", "").count("|") in (4, 5) for row in rows)
    assert json.loads(json.dumps(report.to_json()))["auc"] == report.auc
