"""An export is done when other engines compute what the model computes.

Each engine reloads the files and is held against our own model with the same rounded weights, so
that the bounds stay narrow whatever the weights were rounded to. What rounding itself changes is
told as a figure beside them.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cygnet.errors import UserError
from cygnet.model.transformer import Transformer
from cygnet.text.chat import encode_chat, render_chat
from cygnet.text.tokenizer import Tokenizer

HARD_TEXT = (
    "Hello, world! It's we'LL 'tis don\u2019T  two  spaces\tand\ttabs \n\n\r\n end.  ",
    "白日依山尽，黄河入海流。（公元７６２年）「你好」㊗️ 繁體字與简体字",
    "ﾊﾝｶｸ ひらがなカタカナ 한국어 조선글",
    "naïve café e\u0301 a\u030a\u0301 Ångström ﬁ ß İstanbul ǅ K Ω Πάντα ῥεῖ Съешь же ещё",
    "مَرْحَبًا بِالعَالَم ١٢٣٤ שָׁלוֹם עוֹלָם नमस्ते दुनिया १२३",
    "สวัสดีชาวโลก ਸਤ ਸ੍ਰੀ தமிழ் ქართული ሰላም",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇨🇭 ✈︎ 𝔘𝔫𝔦 𠮷野家 \u200b\u200d\ufeff\u2028\u00a0\u3000\u00ad|",
    "3.14159e-10 0x1F 1,234,567 ½ ² Ⅻ ① 12:30 50% $9.99 #tag @user a_b __init__ C++ -> != === ...",
    "def f(x):\n    if x:\n\t\treturn {'a': [1, 2]}  # x\n\n\nhttps://example.org/?q=a+b&c=%20#d",
)
"""Spaces, cases, scripts, combining marks, joined emoji, digits, code: where splitting differs."""
SPELT_CONTROL = "He typed <|im_start|>system and <think> </tool_call><|endoftext|>."
CONVERSATION = (
    {"role": "system", "content": "Be kind. 请用中文。"},
    {"role": "user", "content": "How do I make tea?"},
    {"role": "assistant", "content": "Boil water.\nPour it over the leaves."},
    {"role": "user", "content": "谢谢! And then? 🍵"},
)
GREEDY_TOKENS = 16
PROMPT_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table. `figure` is held against `bound`; a check without bound informs."""

    engine: str
    what: str
    figure: float | None = None
    bound: float | None = None
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the figure is within its bound; NaN is not."""
        return self.bound is None or (self.figure is not None and self.figure <= self.bound)


class Probe:
    """What engines are asked, and our own answers.

    Args:
        model: as trained.
        rounded: the same with the weights that the export holds, in float32.
        tokenizer: of the model.
    """

    def __init__(self, model: Transformer, rounded: Transformer, tokenizer: Tokenizer) -> None:
        self.model, self.rounded, self.tokenizer = model, rounded, tokenizer
        longest = min(PROMPT_TOKENS, model.config.max_position - GREEDY_TOKENS - 1)
        texts = [HARD_TEXT[0], HARD_TEXT[1], HARD_TEXT[-1]]
        prompts = [tokenizer.encode(text)[:longest] for text in texts]
        if tokenizer.chat_template:
            chat = encode_chat(tokenizer, self.conversation, add_generation_prompt=True).ids
            prompts.append(chat[-longest:])
        self.prompts = prompts

    @cached_property
    def conversation(self) -> list[dict[str, str]]:
        """Messages that the model's template can render: without a system turn if it has none."""
        try:
            render_chat(self.tokenizer, CONVERSATION)
        except UserError:
            return [dict(message) for message in CONVERSATION[1:]]
        return [dict(message) for message in CONVERSATION]

    @cached_property
    def rendered(self) -> str:
        """The conversation as the template spells it."""
        return render_chat(self.tokenizer, self.conversation, add_generation_prompt=True)

    @torch.inference_mode()
    def log_probs(self, tokens: Sequence[int], exact: bool = False) -> Tensor:
        """Return log-probabilities (T, V) float32 of each next token.

        Args:
            tokens: T ids.
            exact: of the model as trained, not of its rounded weights.
        """
        model = self.model if exact else self.rounded
        return model.logits(model(torch.tensor([list(tokens)])))[0].log_softmax(-1)

    def greedy_loss(self, prompt: Sequence[int], chosen: Sequence[int]) -> float:
        """Return how far an engine's likeliest tokens stay behind ours, at worst, in nats."""
        if not chosen:
            return float("nan")
        ours = self.log_probs([*prompt, *chosen])[len(prompt) - 1 : -1]
        taken = ours.gather(1, torch.tensor(list(chosen))[:, None])[:, 0]
        return (ours.max(-1).values - taken).max().item()

    def differing(self, encode: Callable[[str], Sequence[int]], texts: Sequence[str]) -> float:
        """Return how many of the texts an engine gives other ids than we do."""
        return float(sum(list(encode(text)) != self.tokenizer.encode(text) for text in texts))

    def rounding(self) -> Check:
        """Return what the rounding of weights changes: the mean divergence of the next token."""
        divergences = []
        for prompt in self.prompts:
            exact, found = self.log_probs(prompt, exact=True), self.log_probs(prompt)
            divergences.append((exact.exp() * (exact - found)).sum(-1))
        figure = torch.cat(divergences).mean().item()
        return Check("rounding", "mean KL divergence, nats", figure, note="information")


def judge(checks: Sequence[Check], title: str) -> None:
    """Print the table.

    Raises:
        UserError: a figure is out of its bounds; names the first.
    """
    table = Table(title=title)
    for name in ("engine", "check", "figure", "bound", ""):
        table.add_column(name, justify="right" if name in ("figure", "bound") else "left")
    for check in checks:
        verdict = check.note or ("ok" if check.passed else "OUT OF BOUNDS")
        table.add_row(check.engine, check.what, _shown(check.figure), _shown(check.bound), verdict)
    Console(stderr=True).print(table)
    failed = [check for check in checks if not check.passed]
    if failed:
        worst = failed[0]
        raise UserError(
            f"{worst.engine} differs from the model: {worst.what} {_shown(worst.figure)}, "
            f"allowed {_shown(worst.bound)}; nothing was written"
        )


def as_rows(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Return the checks as plain values for the manifest."""
    return [
        {"engine": c.engine, "check": c.what, "figure": c.figure, "bound": c.bound, "note": c.note}
        for c in checks
    ]


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
