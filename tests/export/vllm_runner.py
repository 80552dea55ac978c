"""Runs in vLLM's own environment, without Cygnet: FOLDER and prompts in, log-probabilities out."""

import json
import sys


def main() -> None:
    """Read {"folder", "prompts"} from stdin; print one JSON line of {id: log-probability} lists."""
    from vllm import LLM, SamplingParams

    request = json.load(sys.stdin)
    model = LLM(
        model=request["folder"], dtype="float32", enforce_eager=True, max_model_len=128,
        max_logprobs=50, gpu_memory_utilization=0.1, max_num_seqs=4, max_num_batched_tokens=256,
    )  # fmt: skip
    sampling = SamplingParams(temperature=0, max_tokens=4, logprobs=50, ignore_eos=True)
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    answers = []
    for result in model.generate(prompts, sampling, use_tqdm=False):
        given = result.outputs[0]
        steps = [{str(i): found.logprob for i, found in s.items()} for s in given.logprobs]
        answers.append({"ids": list(given.token_ids), "steps": steps})
    print("ANSWERS " + json.dumps(answers))


if __name__ == "__main__":
    main()
