"""The command line: one verb per command, and no logic.

Everything heavy is imported when its verb runs, so that `cygnet --help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cygnet import __version__

TRY_AGAIN = 75
"""Exit code after SIGTERM, `EX_TEMPFAIL` of sysexits.h: a checkpoint was written, requeue me."""

LAST_WORD_S = 1.0
"""How long rank 0, which keeps what all processes share, stays for the others to learn why."""


@dataclass(frozen=True)
class Verb:
    """A command: what it does, where it is (module, settings class, function), how it is typed."""

    help: str
    module: str
    settings: str
    function: str
    examples: tuple[str, ...]


VERBS = {
    "run": Verb(
        "the whole way: raw text to a model that answers, with a report",
        "cygnet.recipe", "RunCommand", "run_command",
        ("cygnet run configs/demo.yaml", "cygnet run --data notes/ more/*.txt.gz --out runs/mine",
         "cygnet run configs/demo.yaml --pretrain.minutes 20 --model.num-layers 6"),
    ),
    "data": Verb(
        "raw files to clean documents, with a report of what was dropped (train-filter: learn what "
        "is good text from examples)",
        "cygnet.commands.data", "DataCommand", "data_command",
        ("cygnet data --about", "cygnet data --rules",
         "cygnet data --data notes/ --out runs/mine/data",
         "cygnet data --data sources.yaml 'crawl/*.warc.gz' --corpus.evaluation exams.jsonl",
         "cygnet data --out runs/mine/data --what-if gopher_min_words=30 c4_curly_bracket=off"),
    ),
    "tokenizer": Verb(
        "train a byte-level BPE tokenizer on clean documents",
        "cygnet.commands.tokenizer", "TokenizerCommand", "tokenizer_command",
        ("cygnet tokenizer --data runs/mine/data --out runs/mine/tokenizer --vocab-size 8000",
         "cygnet tokenizer --data runs/mine/data --compare known/ --sweep 1000 2000 4000 8000"),
    ),
    "pretrain": Verb(
        "learn language from text",
        "cygnet.commands.pretrain", "PretrainCommand", "pretrain_command",
        ("cygnet pretrain --preset 26m --epochs 1 --out runs/first",
         "cygnet pretrain --data notes/ --preset 64m --tokens 200_000_000 --use_wandb"),
    ),
    "sft": Verb(
        "learn to answer: instruction tuning on conversations",
        "cygnet.commands.sft", "SftCommand", "sft_command",
        ("cygnet sft --from runs/first --out runs/first-sft",
         "cygnet sft --from runs/first --data chats.jsonl --epochs 2 --out runs/mine-sft",
         "cygnet sft --lora --from models/qwen3 --data chats.jsonl --learning_rate 2e-3"),
    ),
    "dpo": Verb(
        "learn to prefer: direct preference optimization on pairs",
        "cygnet.commands.dpo", "DpoCommand", "dpo_command",
        ("cygnet dpo --from runs/first-sft --out runs/first-dpo",
         "cygnet dpo --from runs/first-sft --data pairs.jsonl --beta 0.2"),
    ),
    "distill": Verb(
        "learn from a larger model: from its probabilities, or from its answers",
        "cygnet.commands.distill", "DistillCommand", "distill_command",
        ("cygnet distill --teacher runs/large --preset 26m --out runs/small",
         "cygnet distill --teacher runs/large-sft --from runs/small-sft "
         "--learn_from conversations --on_policy 0.5",
         "cygnet distill --teacher_url http://127.0.0.1:8000/v1 --from runs/small-sft "
         "--data prompts.jsonl"),
    ),
    "reward": Verb(
        "learn to judge: a reward model from pairs or ratings",
        "cygnet.commands.reward", "RewardCommand", "reward_command",
        ("cygnet reward --from runs/first-sft --out runs/first-reward",
         "cygnet reward --from runs/first-sft --data ratings.jsonl --epochs 1"),
    ),
    "ppo": Verb(
        "raise what a reward model gives: proximal policy optimization (RLHF)",
        "cygnet.commands.ppo", "PpoCommand", "ppo_command",
        ("cygnet ppo --from runs/first-sft --reward_model runs/first-reward",
         "cygnet ppo --from runs/first-sft --reward_model runs/first-reward "
         "--judge_model runs/second-reward --target_kl 6 --data prompts.jsonl"),
    ),
    "grpo": Verb(
        "get better at what can be checked: reinforcement learning from rewards",
        "cygnet.commands.grpo", "GrpoCommand", "grpo_command",
        ("cygnet grpo --from runs/first-sft --reward poem_form --out runs/first-grpo",
         "cygnet grpo --from runs/first-sft --data prompts.jsonl --reward my_rewards.py:short "
         "length=0.1 --loss dapo"),
    ),
    "eval": Verb(
        "measure a model on held-out text, instructions and pairs",
        "cygnet.commands.eval", "EvalCommand", "eval_command",
        ("cygnet eval runs/demo", "cygnet eval runs/demo --num-poems 200"),
    ),
    "chat": Verb(
        "talk to a model, of this machine or of a server, in the terminal",
        "cygnet.generate.chat", "ChatConfig", "chat",
        ("cygnet chat runs/demo", 'cygnet chat runs/demo --prompt "How do I make pancakes?"',
         "echo 'What is a comet?' | cygnet chat runs/demo",
         "cygnet chat --url http://127.0.0.1:8000/v1 --model demo"),
    ),
    "serve": Verb(
        "offer models to OpenAI's clients, and a chat page in the browser",
        "cygnet.serve.command", "ServeConfig", "serve",
        ("cygnet serve runs/demo", "cygnet serve runs/demo --stages",
         "cygnet serve small=runs/demo/sft large=models/Qwen3-0.6B --port 9000",
         "cygnet serve models/qwen3 --adapter poems=runs/poems/adapter",
         "cygnet serve runs/demo --host 0.0.0.0 --api_key_file keys.txt"),
    ),
    "export": Verb(
        "write a model for transformers, llama.cpp, Ollama or MLX, and check it there",
        "cygnet.export.command", "ExportCommand", "export_command",
        ("cygnet export runs/demo --to hf --dtype bf16",
         "cygnet export runs/demo --to gguf --quantize q8_0 --out demo.gguf",
         "cygnet export runs/demo --to ollama"),
    ),
    "import": Verb(
        "take a Qwen3, Qwen2 or Llama of another maker, to tune, evaluate and serve it",
        "cygnet.export.command", "ImportCommand", "import_command",
        ("cygnet import ~/models/Qwen3-0.6B", "cygnet import Qwen3-0.6B --out models/qwen3"),
    ),
    "plan": Verb(
        "what a training run needs, against what this machine has",
        "cygnet.commands.plan", "PlanCommand", "plan_command",
        ("cygnet plan --preset 104m --batch_tokens 32768",
         "cygnet plan --preset 104m --processes 64 --parallel fsdp",
         "cygnet plan --processes 2 --deepspeed configs/deepspeed/zero1.json"),
    ),
    "tasks": Verb(
        "questions with answers that can be checked, to try reinforcement learning on",
        "cygnet.commands.tasks", "TasksCommand", "tasks_command",
        ("cygnet tasks --task arithmetic --out runs/tasks/arithmetic",
         "cygnet tasks --task tools --num_sft 200 --two_calls 0"),
    ),
    "compare": Verb(
        "training runs side by side: a table, and a picture of their losses",
        "cygnet.evals.compare", "CompareCommand", "compare_command",
        ("cygnet compare runs/first runs/second", "cygnet compare runs/demo",
         "cygnet compare runs/demo runs/longer --out longer.png"),
    ),
    "board": Verb(
        "a live page of all runs, while they train",
        "cygnet.evals.board", "BoardCommand", "board_command",
        ("cygnet board", "cygnet board runs/demo --port 6007"),
    ),
}  # fmt: skip

SUBVERBS = {
    ("data", "train-filter"): Verb(
        "learn to tell good text from bad, from examples of both",
        "cygnet.commands.train_filter", "TrainFilterCommand", "train_filter_command",
        ("cygnet data train-filter --good books/ notes.txt --bad spam.jsonl --out filters/mine",
         "cygnet data train-filter --good 'wiki/*.parquet' --bad crawl.jsonl.zst --seed 1"),
    ),
}  # fmt: skip


def main(arguments: list[str] | None = None, verb: str | None = None) -> None:
    """Run `cygnet VERB ...`.

    Args:
        arguments: what follows `cygnet`; none means the command line's own.
        verb: of the launch files, whose arguments begin behind it.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # The deepspeed launcher adds it; the environment says the same.
    arguments = [word for word in arguments if not word.startswith("--local_rank")]
    program = os.path.basename(sys.argv[0]) if verb else f"cygnet {' '.join(arguments[:1])}"
    if verb is None:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            with guarded():
                print(overview(), flush=True)
            return
        if arguments[0] in ("-V", "--version", "version"):
            print(f"cygnet {__version__}")
            return
        verb, arguments = arguments[0], arguments[1:]
        subverb = SUBVERBS.get((verb, "".join(arguments[:1])))
        if subverb is not None:
            with guarded():
                _run(subverb, f"{program} {arguments[0]}", arguments[1:])
            return
    with guarded():
        if verb not in VERBS:
            from cygnet.errors import UserError, nearest

            raise UserError(f"no command {verb!r}{nearest(verb, VERBS)}; see cygnet --help")
        _run(VERBS[verb], program.strip(), arguments)


@contextmanager
def guarded() -> Iterator[None]:
    """Turn what ends a command into one line and an exit code: 2 for a mistake, 75 to try again."""
    from cygnet.errors import InterruptedRun, UserError

    try:
        yield
    except UserError as error:
        _fail(str(error), 2)
    except InterruptedRun as stop:
        code = TRY_AGAIN if stop.signal_number == signal.SIGTERM else 128 + stop.signal_number
        _fail(str(stop), code)
    except KeyboardInterrupt:
        _fail("stopped", 128 + signal.SIGINT)
    except BrokenPipeError:
        # Whoever read our output (`| head`) has left; Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception:
        if not _is_one_of_several():
            raise
        traceback.print_exc()
        _leave(1)


def overview() -> str:
    """Return what `cygnet --help` prints."""
    verbs = "\n".join(f"  {name:<10} {verb.help}" for name, verb in VERBS.items())
    return (
        f"Cygnet {__version__}: raise a language model of your own, from raw text to a chat.\n\n"
        f"cygnet VERB [options]          cygnet VERB --help for the options and examples\n\n"
        f"{verbs}\n\n"
        "Start here:\n"
        "  cygnet run configs/demo.yaml   about ten minutes on a laptop\n"
        "  cygnet chat runs/demo"
    )


def _run(verb: Verb, program: str, arguments: list[str]) -> None:
    from cygnet.flags import parse

    module = importlib.import_module(verb.module)
    command = getattr(module, verb.settings)
    getattr(module, verb.function)(parse(command, arguments, program, verb.help, verb.examples))


def _fail(message: str, code: int) -> None:
    print(f"cygnet: {message}", file=sys.stderr)
    if _is_one_of_several():
        _leave(code)
    sys.exit(code)


def _is_one_of_several() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _leave(code: int) -> None:
    """End at once: leaving in the ordinary way would wait for processes that may hang."""
    sys.stderr.flush()
    if os.environ.get("RANK") == "0":
        time.sleep(LAST_WORD_S)
    os._exit(code)
