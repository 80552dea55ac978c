"""Servers that several tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.running import Running, endless_model, running, save


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("serve") / "swan")


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("serve") / "endless", endless_model())


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[Running]:
    with running(folder, max_queue=8) as begun:
        yield begun
