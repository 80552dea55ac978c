"""The command lines of docs and examples: every flag exists; the files beside are well-formed."""

import fnmatch
import importlib
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from cygnet import cli
from cygnet.flags import parse
from cygnet.serve.settings import ServeConfig

ROOT = Path(__file__).parent.parent
CLUSTER, DOCKER = ROOT / "examples/cluster", ROOT / "examples/docker"
DOCUMENTS = [
    ROOT / "README.md", ROOT / "README.zh.md",
    *sorted(path for path in ROOT.glob("docs/**/*.md") if path.name != "lab-book.md"),
]  # fmt: skip
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
    for path in (*DOCUMENTS, CLUSTER / "slurm.sh")
    for line in code_of(path)
    for verb, arguments in trainings(line)
    if verb in cli.VERBS and "--help" not in arguments
    if len(arguments) > 1  # `cygnet eval` in a sentence only names the command
]


def check_flags(verb: str, arguments: list[str]) -> None:
    entry = cli.SUBVERBS.get((verb, "".join(arguments[:1])))
    arguments = arguments[1:] if entry else arguments
    entry = entry or cli.VERBS[verb]
    command = getattr(importlib.import_module(entry.module), entry.settings)
    assert isinstance(parse(command, arguments, verb, entry.help, entry.examples), command)


def test_commands_are_found() -> None:
    named = {name for name, _, _ in COMMANDS}
    assert named > {"README.md", "README.zh.md", "distributed.md", "grpo.md", "slurm.sh"}
    assert len(COMMANDS) > 60


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


def instructions_of(dockerfile: Path) -> list[tuple[str, str]]:
    """Return each instruction of a Dockerfile and what follows it on its line."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line]


def test_the_dockerfile_copies_what_there_is_and_starts_a_command_that_exists() -> None:
    instructions = instructions_of(DOCKER / "Dockerfile")
    names = [name for name, _ in instructions]
    assert names[0] == "FROM" and names.count("ENTRYPOINT") == names.count("CMD") == 1
    assert set(names) <= {
        "FROM", "RUN", "ARG", "WORKDIR", "COPY", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT",
        "CMD",
    }  # fmt: skip
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    copied = []
    for name, rest in instructions:
        if name == "COPY":
            *sources, _ = rest.split()
            copied += sources
        if name == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True)
        if name == "HEALTHCHECK":
            program = json.loads(rest[rest.index("[") :])[2]
            compile(program, "healthcheck", "exec")
            assert "/healthz" in program
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), source
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = re.findall(r"\.\[(\w+)\]", " ".join(rest for _, rest in instructions))
    assert installed and set(installed) <= extras["optional-dependencies"].keys()
    found = {name: json.loads(rest) for name, rest in instructions if name in ("ENTRYPOINT", "CMD")}
    assert found["ENTRYPOINT"] == ["cygnet", "serve"]
    check_flags("serve", found["CMD"])


def test_the_compose_file_builds_that_image_and_starts_that_command() -> None:
    (service,) = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"].values()
    assert set(service) <= {
        "build", "command", "environment", "volumes", "ports", "stop_grace_period", "restart",
    }  # fmt: skip
    context = (DOCKER / service["build"]["context"]).resolve()
    assert context == ROOT and (context / service["build"]["dockerfile"]).is_file()
    check_flags("serve", service["command"])
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    source, target, mode = service["volumes"][0].split(":")
    assert (DOCKER / source).resolve() == ROOT / "runs" and mode == "ro"
    assert service["command"][0].startswith(target)
    variable = service["environment"]["CYGNET_API_KEY"]
    assert re.fullmatch(r"\$\{CYGNET_API_KEY:\?[^}]+\}", variable)
    assert int(service["stop_grace_period"].rstrip("s")) > ServeConfig(models=("a",)).drain_s
