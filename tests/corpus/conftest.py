"""Clusters for the tests of this room, skipped where their programs are not installed."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from cygnet.corpus.scale import ScaleConfig
from tests.corpus.ray_cluster import ray_cluster_of_two
from tests.corpus.slurm_cluster import slurm_cluster


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScaleConfig]:
    """How to run tasks on a Slurm cluster of one node of two cores."""
    missing = [name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (Debian: slurm-wlm, munge)")
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), cores=2):
        yield ScaleConfig(executor="slurm", memory_per_task_gb=0.2, poll_s=0.5)


@pytest.fixture
def ray_cluster() -> Iterator[Any]:
    """A head without cores and two nodes of one core each."""
    pytest.importorskip("ray")
    with ray_cluster_of_two() as cluster:
        yield cluster
