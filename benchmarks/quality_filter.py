"""A quality filter against the field's own tools, on the same examples: how right, how fast.

python benchmarks/quality_filter.py
python benchmarks/quality_filter.py --good books/ --bad crawl.jsonl.gz

Without examples of your own, the built-in text gives three tasks: encyclopedia against recipes;
encyclopedia as it is against the same articles with a quarter of their words in another order,
which no count of single words can tell; and early against late letters of the alphabet, where
titles, not texts, decide and little is to be learnt. scikit-learn and fastText (the packages
scikit-learn and fasttext-wheel) are compared where they are installed; both get the words as
Cygnet cuts them.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cygnet.corpus.builtin import builtin_documents
from cygnet.corpus.clean.normalize import normalize
from cygnet.corpus.clean.quality import QualityModel
from cygnet.corpus.clean.quality_report import area_under_curve
from cygnet.corpus.clean.quality_training import train_quality
from cygnet.corpus.clean.words import TextBatch, words
from cygnet.corpus.read.find import find_files
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.readers import read_file

Score = Callable[[Sequence[str]], np.ndarray]
BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--good", nargs="*", default=[])
    parser.add_argument("--bad", nargs="*", default=[])
    parser.add_argument("--max_texts", type=int, default=3000)
    arguments = parser.parse_args()
    tasks = {"given": (read(arguments.good), read(arguments.bad))}
    if not arguments.good:
        tasks = builtin_tasks()
    print("| task | classifier | accuracy | AUC | training, s | scoring, MB/s |")
    print("|---|---|---:|---:|---:|---:|")
    for name, (good, bad) in tasks.items():
        compare(name, good[: arguments.max_texts], bad[: arguments.max_texts])
    speed()


def read(paths: Sequence[str]) -> list[str]:
    problems = Problems()
    files = find_files(paths, problems)
    return [normalize(d.text) for file in files for d in read_file(file, problems)]


def builtin_tasks() -> dict[str, tuple[list[str], list[str]]]:
    documents = list(builtin_documents())
    articles = [d for d in documents if d.domain == "encyclopedia_en"]
    recipes = [d.text for d in documents if d.domain == "recipes_en"]
    random.Random(0).shuffle(articles)
    half = len(articles) // 2
    texts = [d.text for d in articles]
    middle = sorted(d.title for d in articles)[half]
    return {
        "encyclopedia / recipes": (texts, recipes),
        "as it is / words moved": (texts[:half], list(map(moved, texts[half:]))),
        "A-L / M-Z": (
            [d.text for d in articles if d.title < middle],
            [d.text for d in articles if d.title >= middle],
        ),
    }


def moved(text: str) -> str:
    """Return a text with a quarter of its words swapped among themselves."""
    chooser, found = random.Random(text), text.split(" ")
    places = chooser.sample(range(len(found)), len(found) // 4)
    for left, right in zip(places, chooser.sample(places, len(places)), strict=True):
        found[left], found[right] = found[right], found[left]
    return " ".join(found)


def compare(task: str, good: list[str], bad: list[str]) -> None:
    cut = [int(0.85 * len(side)) for side in (good, bad)]
    held = good[cut[0] :] + bad[cut[1] :]
    is_good = np.repeat([True, False], [len(good) - cut[0], len(bad) - cut[1]])
    num_bytes = sum(len(text.encode()) for text in held)
    for name, train in (("cygnet", ours), ("scikit-learn", sklearn), ("fastText", fasttext)):
        started = time.process_time()
        try:
            score = train(good[: cut[0]], bad[: cut[1]])
        except ImportError:
            continue
        trained = time.process_time()
        scores = score(held)
        scored = time.process_time()
        right = ((scores >= 0.5) == is_good).mean()
        auc = area_under_curve(scores[is_good].astype(float), scores[~is_good].astype(float))
        rate = num_bytes / 1e6 / (scored - trained)
        cells = f"{right:.2%} | {auc:.4f} | {trained - started:.1f} | {rate:.1f}"
        print(f"| {task} | {name} | {cells} |", flush=True)


def ours(good: list[str], bad: list[str]) -> Score:
    model, _ = train_quality(good, bad, 0)

    def score(texts: Sequence[str]) -> np.ndarray:
        batches = (TextBatch(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH))
        return np.concatenate([model.scores(batch) for batch in batches])

    return score


def sklearn(good: list[str], bad: list[str]) -> Score:
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegressionCV

    vectorizer = HashingVectorizer(
        analyzer=lambda text: _grams(words(text)), n_features=1 << 18, alternate_sign=False
    )
    model = LogisticRegressionCV(Cs=[1, 10, 100, 1000], cv=3, max_iter=300)
    model.fit(vectorizer.transform(good + bad), [1] * len(good) + [0] * len(bad))
    return lambda texts: model.predict_proba(vectorizer.transform(texts))[:, 1]


def _grams(found: list[str]) -> list[str]:
    return found + [f"{a} {b}" for a, b in itertools.pairwise(found)]


def fasttext(good: list[str], bad: list[str]) -> Score:
    """Train as DCLM did: pairs of words, 2**18 buckets, the defaults else."""
    import fasttext as library

    lines = [f"__label__g {' '.join(words(text))}" for text in good]
    lines += [f"__label__b {' '.join(words(text))}" for text in bad]
    random.Random(0).shuffle(lines)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        model = library.train_supervised(
            Path(file.name).as_posix(), wordNgrams=2, bucket=1 << 18, thread=1, verbose=0
        )

    def score(texts: Sequence[str]) -> np.ndarray:
        found = []
        for text in texts:
            # Not through the package's own wrapper, which numpy 2 breaks.
            (best, label), *_ = model.f.predict(" ".join(words(text)) + "\n", 1, 0.0, "strict")
            found.append(best if label == "__label__g" else 1 - best)
        return np.array(found)

    return score


def speed() -> None:
    """Print what scoring costs beside the hashing of words, interleaved."""
    texts = [d.text for d in builtin_documents() if d.domain == "encyclopedia_en"][:4000]
    num_bytes = sum(len(text.encode()) for text in texts)
    model = QualityModel(
        weights=np.random.default_rng(0).normal(size=1 << 18).astype(np.float32), bias=0.0
    )
    hashing = scoring = 0.0
    for start in [*range(0, len(texts), BATCH)] * 3:
        begun = time.process_time()
        batch = TextBatch(texts[start : start + BATCH])
        _ = batch.word_hashes, batch.word_offsets
        hashed = time.process_time()
        model.scores(batch)
        hashing += hashed - begun
        scoring += time.process_time() - hashed
    rates = [3 * num_bytes / 1e6 / seconds for seconds in (hashing, scoring)]
    print(f"word hashing {rates[0]:.0f} MB/s, scoring on top {rates[1]:.0f} MB/s, one core")


if __name__ == "__main__":
    main()
