"""The command line as a person meets it."""

import importlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cygnet import cli
from cygnet.flags import flag_names, parse

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cygnet", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    program = (
        "import sys; from cygnet.cli import main; main(['--help']); "
        "heavy = {'torch', 'numpy', 'tyro', 'pyarrow', 'rich'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for verb in cli.VERBS:
        assert f"  {verb} " in done.stdout


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_command_explains_itself_with_examples(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "Examples:" in shown and cli.VERBS[verb].examples[0][:30] in shown


@pytest.mark.parametrize("line", [line for verb in cli.VERBS.values() for line in verb.examples])
def test_every_example_of_the_help_is_understood(line: str) -> None:
    words = shlex.split(line.rpartition("| ")[2])
    name, *arguments = words[words.index("cygnet") + 1 :]
    verb = cli.VERBS[name]
    command = getattr(importlib.import_module(verb.module), verb.settings)
    assert isinstance(parse(command, arguments, name, verb.help, verb.examples), command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrian"], "no command 'pretrian' (did you mean 'pretrain'?)"),
        (["pretrain", "--preset", "62m"], "--preset 62m: there are"),
        (["sft"], "needs a model to start from"),
        (["sft", "--from", "tests"], "tests: holds no model"),
        (["plan", "--model.num-heads", "7"], "model.num_heads 7 is not a multiple"),
        (["pretrain", "--steps", "3", "--epochs", "1"], "steps and epochs are both set"),
        (["chat", "nowhere"], "nowhere"),
        (["data", "--data", "nowhere.txt"], "nowhere.txt"),
        (["pretrain", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (
            ["pretrain", "--lerning_rate", "0.1"],
            "no flag --lerning_rate (did you mean --learning-rate?); see cygnet pretrain --help",
        ),
        (["run", "--learning-rate=3"], "(did you mean --pretrain.learning-rate or --sft.learning"),
        (["run", "--sft.learnin-rate", "3"], "(did you mean --sft.learning-rate?)"),
        (["eval", "--num_poms", "3"], "no flag --num_poms (did you mean --num-poems?)"),
        (["pretrain", "--prest", "26m"], "no flag --prest (did you mean --preset?)"),
        (["sft", "--xyzzy"], "no flag --xyzzy; see cygnet sft --help"),
        (["pretrain", "foo"], "'foo' belongs to no flag; see cygnet pretrain --help"),
        (["pretrain", "--steps", "abc"], "Error parsing --steps: "),
        (["pretrain", "--steps"], "Missing value for argument '--steps'"),
        (["pretrain", "--optimizer", "adam"], "Expected one of ('auto', 'muon', 'adamw')"),
        (["eval"], "PATH Folder of a whole run"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("cygnet: ") and error.count("\n") == 1


def test_a_misspelt_key_is_named_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("pretrain:\n  lerning_rate: 0.1\n")
    with pytest.raises(SystemExit):
        cli.main(["run", str(path)])
    error = capsys.readouterr().err
    assert "unknown key 'lerning_rate' (did you mean 'learning_rate'?)" in error
    assert str(path) in error


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("train_*.py")))
def test_launch_files_take_the_flags_of_their_command(name: str) -> None:
    done = subprocess.run(
        [sys.executable, name, "--help"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0
    assert name in done.stdout
    if name != "train_tokenizer.py":
        for flag in ("--use-wandb", "--wandb-project", "--wandb-run-name", "--epochs"):
            assert flag in done.stdout


def test_the_flags_of_a_command_are_those_of_its_help() -> None:
    names = flag_names(importlib.import_module("cygnet.recipe").RunCommand)
    for name in ("--data", "--out", "--pretrain.use-wandb", "--pretrain.no-use-wandb", "--help"):
        assert name in names
    assert all(parts.count("--") == 1 and not parts.endswith(".") for parts in names)


def test_about_shows_sources_and_licences() -> None:
    shown = run("data", "--about").stdout
    for word in ("Wikibooks", "Wikipedia", "CC BY-SA 4.0", "chinese-poetry"):
        assert word in shown
