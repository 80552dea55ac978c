"""The engines that check an export, each behind one function: files in, checks out."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cygnet.export.verify import GREEDY_TOKENS, HARD_TEXT, SPELT_CONTROL, Check, Probe
from cygnet.text.chat import encode_chat

LOG_PROB_BOUND = 2e-3
"""Nats; float32 weights and arithmetic in another order of operations."""
LLAMA_CPP_BOUNDS = {"f32": 2e-3, "f16": 0.02, "bf16": 0.1}
"""llama.cpp rounds activations too, to the type of the weights or to blocks of 8 bits; the bounds
are about five times what a trained model shows (docs/lab-book.md)."""
LLAMA_CPP_QUANTIZED_BOUND = 0.5
MAX_LISTED = 1000
"""Log-probabilities that llama.cpp is asked for at a position."""


def check_transformers(folder: Path, probe: Probe) -> list[Check]:
    """Hold transformers against the model: logits, greedy text, ids, chat."""
    import transformers

    engine = f"transformers {transformers.__version__}"
    with _quiet_transformers(transformers):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()
        theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        distances, lags = [], []
        with torch.inference_mode():
            for prompt in probe.prompts:
                found = model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
                distances.append(_distance(found, probe.log_probs(prompt)))
                tokens = torch.tensor([prompt])
                answer = model.generate(
                    tokens, attention_mask=torch.ones_like(tokens), do_sample=False,
                    max_new_tokens=GREEDY_TOKENS, temperature=None, top_p=None, top_k=None,
                )  # fmt: skip
                lags.append(probe.greedy_loss(prompt, answer[0, len(prompt) :].tolist()))
        checks = _figures(engine, distances, lags, LOG_PROB_BOUND)

        def encode(text: str) -> list[int]:
            return theirs.encode(text, add_special_tokens=False)

        checks.append(_ids_check(engine, probe, encode, HARD_TEXT))
        template = probe.tokenizer.chat_template
        if "strftime_now" in template:
            checks.append(Check(engine, "chat", note="not compared: the template writes the date"))
        elif template:
            ids = theirs.apply_chat_template(
                probe.conversation, add_generation_prompt=True, tokenize=True, return_dict=False
            )
            ours = encode_chat(probe.tokenizer, probe.conversation, add_generation_prompt=True).ids
            checks.append(Check(engine, "chat, other ids", float(ids != ours), 0))
    return checks


def check_ctranslate2(folder: Path, probe: Probe) -> list[Check]:
    """Hold CTranslate2 against the model: logits and greedy text."""
    import ctranslate2
    import transformers

    engine = f"ctranslate2 {ctranslate2.__version__}"
    with tempfile.TemporaryDirectory() as temporary, _quiet_transformers(transformers):
        converted = Path(temporary) / "model"
        converter = ctranslate2.converters.TransformersConverter(str(folder))
        converter.convert(str(converted), quantization="float32")
        generator = ctranslate2.Generator(
            str(converted), device="cpu", compute_type="float32",
            inter_threads=1, intra_threads=torch.get_num_threads(),
        )  # fmt: skip
        names = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        distances, lags = [], []
        for prompt in probe.prompts:
            scores = generator.forward_batch([prompt], return_log_probs=True)
            found = torch.from_numpy(np.array(scores))[0, :, : probe.rounded.config.vocab_size]
            distances.append(_distance(found, probe.log_probs(prompt)))
            (result,) = generator.generate_batch(
                [names.convert_ids_to_tokens(prompt)], max_length=GREEDY_TOKENS, sampling_topk=1,
                include_prompt_in_result=False, end_token=[probe.tokenizer.im_end_id],
                return_end_token=True,
            )  # fmt: skip
            lags.append(probe.greedy_loss(prompt, result.sequences_ids[0]))
    return _figures(engine, distances, lags, LOG_PROB_BOUND)


def check_llama_cpp(file: Path, probe: Probe, quantization: str) -> list[Check]:
    """Hold llama.cpp against the model: log-probabilities of greedy text, ids, chat."""
    engine = f"llama.cpp (xllamacpp {importlib.metadata.version('xllamacpp')})"
    bound = LLAMA_CPP_BOUNDS.get(quantization, LLAMA_CPP_QUANTIZED_BOUND)
    listed = min(probe.rounded.config.vocab_size, MAX_LISTED)
    distances, lags = [], []
    with _llama_server(file, probe) as ask:
        for prompt in probe.prompts:
            chosen: list[int] = []
            steps = []
            for _ in range(GREEDY_TOKENS):
                steps.append(_next_log_probs(ask, probe, [*prompt, *chosen], listed))
                chosen.append(next(iter(steps[-1])))
            lags.append(probe.greedy_loss(prompt, chosen))
            ours = probe.log_probs([*prompt, *chosen])[len(prompt) - 1 : -1]
            for step, log_probs in zip(steps, ours, strict=True):
                expected = log_probs[list(step)]
                # What is next to impossible says nothing about a text, and rounds worst.
                likely = expected > -12
                found = torch.tensor(list(step.values()))
                distances.append(_distance(found[likely], expected[likely]))

        def encode(text: str) -> list[int]:
            request = {"content": text, "add_special": False, "parse_special": False}
            return ask("/tokenize", request)["tokens"]

        checks = [
            *_figures(engine, distances, lags, bound),
            _ids_check(engine, probe, encode, (*HARD_TEXT, SPELT_CONTROL)),
        ]
        if probe.tokenizer.chat_template:
            rendered = ask("/apply-template", {"messages": probe.conversation})["prompt"]
            expected = probe.rendered
            if probe.tokenizer.begins_texts:
                # llama.cpp puts this token before the prompt when it reads it.
                begin = probe.tokenizer.named_tokens.get("bos_token", "")
                rendered, expected = rendered.removeprefix(begin), expected.removeprefix(begin)
            checks.append(Check(engine, "chat, other text", float(rendered != expected), 0))
    return checks


def _next_log_probs(
    ask: Callable[[str, Any], Any], probe: Probe, tokens: Sequence[int], listed: int
) -> dict[int, float]:
    """Return llama.cpp's log-probabilities of the next token, the likeliest first.

    The server tells none for an end or for half a character; it is made to write an `a` each time,
    which the log-probabilities that it tells do not know of.
    """
    written = probe.tokenizer.encode("a")[0]
    request = {
        "prompt": list(tokens), "n_predict": 1, "temperature": 0, "n_probs": listed,
        "cache_prompt": True, "logit_bias": [[written, 1e6]],
    }  # fmt: skip
    (step,) = ask("/completion", request)["completion_probabilities"]
    return {entry["id"]: entry["logprob"] for entry in step["top_logprobs"]}


def installed(module: str) -> bool:
    """Say whether a package can be imported."""
    return importlib.util.find_spec(module) is not None


def missing(engine: str) -> Check:
    """Return the line of an engine that is not installed."""
    return Check(engine, "not installed (pip install 'cygnet[export]')", note="not checked")


@contextmanager
def _llama_server(file: Path, probe: Probe) -> Iterator[Callable[[str, Any], Any]]:
    """Start llama.cpp's server on a free port of this machine; give a function that asks it."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    longest = max(map(len, probe.prompts)) + GREEDY_TOKENS + 1
    params.n_ctx = min(probe.rounded.config.max_position, 64 * (longest // 64 + 1))
    params.n_parallel = 1
    params.warmup = False
    params.verbosity = -1
    # Its flash attention rounds to f16: 4e-3 instead of 7e-5 in float32.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    server = xllamacpp.Server(params)
    address = server.listening_address

    def ask(path: str, request: Any) -> Any:
        body = json.dumps(request).encode()
        headers = {"Content-Type": "application/json"}
        posted = urllib.request.Request(address + path, body, headers)
        with urllib.request.urlopen(posted, timeout=600) as answer:
            return json.load(answer)

    try:
        yield ask
    finally:
        del server


@contextmanager
def _quiet_transformers(transformers: Any) -> Iterator[None]:
    """Keep its bars and warnings off the terminal."""
    logging = transformers.utils.logging
    before, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if had_bars:
            logging.enable_progress_bar()


def _figures(
    engine: str, distances: Sequence[float], lags: Sequence[float], bound: float
) -> list[Check]:
    # torch's maximum is NaN if any is.
    farthest, behind = (torch.tensor(found).max().item() for found in (distances, lags))
    return [
        Check(engine, "log-probabilities, largest difference", farthest, bound),
        Check(engine, "greedy text, behind ours in nats", behind, 2 * bound),
    ]


def _ids_check(
    engine: str, probe: Probe, encode: Callable[[str], Sequence[int]], texts: Sequence[str]
) -> Check:
    what = f"ids of {len(texts)} hard texts, texts that differ"
    return Check(engine, what, probe.differing(encode, texts), 0)


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item() if one.numel() else 0.0
