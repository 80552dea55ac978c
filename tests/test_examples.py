"""The command lines of docs and examples: every flag exists; the cluster files are well-formed."""

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from cygnet import cli
from cygnet.flags import parse

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "examples/cluster"
LAUNCH_FILES = {
    path.name: re.findall(r'verb="(\w+)"', path.read_text())[0] for path in ROOT.glob("train_*.py")
}


def code_of(path: Path) -> list[str]:
    """Return the commands of a document's or script's code, without placeholders."""
    text = path.read_text()
    if path.suffix == ".md":
        blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.S | re.M)
        inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M))
        text = "\n".join([*blocks, *inline])
    text = re.sub(r"\\\n#?\s*", " ", text)
    return [line.strip("# ").replace(" …", "").replace("NAME", "26m") for line in text.splitlines()]


def trainings(line: str) -> list[tuple[str, list[str]]]:
    """Return (verb, its arguments) of each Cygnet command in a line."""
    found = re.search(
        rf"(?:({'|'.join(map(re.escape, LAUNCH_FILES))})|(?:\bcygnet|slurm\.sh) ([a-z]+))( .*)?$",
        line,
    )
    if not found:
        return []
    verb = LAUNCH_FILES[found[1]] if found[1] else found[2]
    return [(verb, shlex.split(found[3] or "", comments=True))]


COMMANDS = [
    (path.name, verb, arguments)
    for path in (ROOT / "docs/distributed.md", CLUSTER / "slurm.sh", ROOT / "README.md")
    for line in code_of(path)
    for verb, arguments in trainings(line)
    if verb in cli.VERBS and "--help" not in arguments
]


def check_flags(verb: str, arguments: list[str]) -> None:
    entry = cli.VERBS[verb]
    command = getattr(importlib.import_module(entry.module), entry.settings)
    assert isinstance(parse(command, arguments, verb, entry.help, entry.examples), command)


def test_commands_are_found() -> None:
    assert {name for name, _, _ in COMMANDS} == {"distributed.md", "slurm.sh", "README.md"}
    assert len(COMMANDS) > 8


@pytest.mark.parametrize(("file", "verb", "arguments"), COMMANDS, ids=str)
def test_every_flag_of_the_documents_exists(
    file: str, verb: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    check_flags(verb, arguments)


def test_the_slurm_script_is_bash_and_names_real_options() -> None:
    script = CLUSTER / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert f'"$code" -eq {cli.TRY_AGAIN}' in text
    options = set(re.findall(r"^#SBATCH (--[\w-]+)", text, re.M))
    assert options <= {"--job-name", "--ntasks-per-node", "--signal", "--requeue", "--open-mode"}


def test_the_kubernetes_manifest_starts_a_command_that_exists() -> None:
    manifest = yaml.safe_load((CLUSTER / "kubernetes.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    spec = manifest["spec"]
    assert set(spec) == {"nprocPerNode", "elasticPolicy", "pytorchReplicaSpecs"}
    assert set(spec["elasticPolicy"]) <= {
        "rdzvBackend", "minReplicas", "maxReplicas", "maxRestarts", "rdzvConf",
    }  # fmt: skip
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    assert worker["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
    assert worker["replicas"] == spec["elasticPolicy"]["maxReplicas"]
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch"  # the operator looks for it by this name
    assert {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"} in container["env"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    launcher, *arguments = container["command"]
    assert launcher == "torchrun"
    (place,) = (i for i, word in enumerate(arguments) if word in LAUNCH_FILES)
    check_flags(LAUNCH_FILES[arguments[place]], arguments[place + 1 :])
