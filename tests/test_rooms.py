"""Which room may import what, beyond what import-linter can say."""

import ast
from pathlib import Path

import pytest

import cygnet

PACKAGE = Path(cygnet.__file__).parent
ALLOWED = PACKAGE / "train" / "parallel"


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            names.add("torch.distributed")
    return names


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_processes_talk_to_each_other_in_one_room_alone(path: Path) -> None:
    found = {name for name in imported(path) if name.startswith(("torch.distributed", "deepspeed"))}
    assert not found or path.is_relative_to(ALLOWED)
