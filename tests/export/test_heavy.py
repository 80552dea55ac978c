"""Engines that are too heavy for the ordinary run load the exported folder (invariant 7).

Not part of the `dev` extra. All but one come with
`pip install onnxruntime-genai onnx onnx-ir mistralrs 'mlx[cpu]' mlx-lm`; vLLM pins versions of its
own: give the Python of its environment in CYGNET_VLLM_PYTHON.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cygnet.config import ModelConfig
from cygnet.export.engines import LOG_PROB_BOUND
from cygnet.export.huggingface import save_folder
from cygnet.export.verify import Probe
from cygnet.text.chat import encode_chat
from cygnet.text.tokenizer import train_tokenizer
from tests.export.foreign import TEXTS
from tests.models import random_model

pytestmark = pytest.mark.slow
KINDS = {
    "qwen3": {},
    "qwen2": {"qk_norm": False, "qkv_bias": True, "tie_embeddings": False},
    "llama": {"qk_norm": False},
}


@pytest.fixture(scope="module", params=KINDS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Probe]:
    config = ModelConfig(
        vocab_size=320, hidden_size=128, num_layers=2, num_heads=4, num_kv_heads=2,
        intermediate_size=256, max_position=256, **KINDS[request.param],
    )  # fmt: skip
    model, tokenizer = random_model(config), train_tokenizer(TEXTS, 300)
    folder = save_folder(model, tokenizer, tmp_path_factory.mktemp("heavy") / request.param)
    return folder, Probe(model, model, tokenizer)


def test_onnxruntime_genai_is_the_model(exported: tuple[Path, Probe], tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    folder, probe = exported
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(folder)]
    command += ["-o", str(tmp_path / "onnx"), "-p", "fp32", "-e", "cpu", "-c", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    model = genai.Model(str(tmp_path / "onnx"))
    distances = []
    for prompt in probe.prompts:
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + 1)
        generator = genai.Generator(model, params)
        generator.append_tokens(prompt)
        found = torch.from_numpy(generator.get_logits().copy()).float()[0, -1].log_softmax(-1)
        distances.append((found - probe.log_probs(prompt)[-1]).abs().max().item())
    print(f"onnxruntime-genai {folder.name}: {max(distances):.1e}")
    assert max(distances) < LOG_PROB_BOUND


def test_mistralrs_is_the_model(exported: tuple[Path, Probe]) -> None:
    mistralrs = pytest.importorskip("mistralrs")
    folder, probe = exported
    kind = getattr(mistralrs.Architecture, folder.name.capitalize())
    runner = mistralrs.Runner(
        which=mistralrs.Which.Plain(model_id=str(folder), arch=kind, dtype=mistralrs.ModelDType.F32)
    )
    answer = runner.send_chat_completion_request(
        mistralrs.ChatCompletionRequest(
            model="default", messages=probe.conversation, max_tokens=1, temperature=0.0,
            logprobs=True, top_logprobs=5,
        )
    )  # fmt: skip
    ids = encode_chat(probe.tokenizer, probe.conversation, add_generation_prompt=True).ids
    assert answer.usage.prompt_tokens == len(ids)
    ours = probe.log_probs(ids)[-1]
    (step,) = answer.choices[0].logprobs.content
    print(f"mistralrs {folder.name}: {abs(step.logprob - ours.max().item()):.1e}")
    assert abs(step.logprob - ours.max().item()) < LOG_PROB_BOUND


def test_mlx_lm_is_the_model(exported: tuple[Path, Probe]) -> None:
    """MLX has a build for the CPU on Linux too; on Apple hardware it was not tried."""
    pytest.importorskip("mlx_lm")
    import mlx.core as mx
    import numpy as np
    from mlx_lm import load

    mx.set_default_device(mx.cpu)
    folder, probe = exported
    model, _ = load(str(folder))
    distances = []
    for prompt in probe.prompts:
        logits = np.array(model(mx.array([prompt])).astype(mx.float32))
        found = torch.from_numpy(logits)[0].log_softmax(-1)
        distances.append((found - probe.log_probs(prompt)).abs().max().item())
    print(f"mlx_lm {folder.name}: {max(distances):.1e}")
    assert max(distances) < LOG_PROB_BOUND


def test_vllm_is_the_model(exported: tuple[Path, Probe]) -> None:
    python = os.environ.get("CYGNET_VLLM_PYTHON")
    if not python:
        pytest.skip("CYGNET_VLLM_PYTHON is not set")
    folder, probe = exported
    done = subprocess.run(
        [python, str(Path(__file__).with_name("vllm_runner.py"))],
        input=json.dumps({"folder": str(folder), "prompts": probe.prompts}),
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": "", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(text for text in done.stdout.splitlines() if text.startswith("ANSWERS "))
    distances = []
    for prompt, answer in zip(probe.prompts, json.loads(line[8:]), strict=True):
        ours = probe.log_probs([*prompt, *answer["ids"]])[len(prompt) - 1 : -1]
        for step, log_probs in zip(answer["steps"], ours, strict=True):
            distances += [abs(found - log_probs[int(i)].item()) for i, found in step.items()]
        assert probe.greedy_loss(prompt, answer["ids"]) < 2 * LOG_PROB_BOUND
    print(f"vLLM {folder.name}: {max(distances):.1e}")
    assert max(distances) < LOG_PROB_BOUND
