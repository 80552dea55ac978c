"""A Ray cluster of three nodes on this machine."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def ray_cluster_of_two() -> Iterator[Any]:
    """Let Ray of this process and its children speak to a cluster of its own.

    What comes is the cluster: a head without cores, and two nodes of one core in `workers`.
    """
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80_000_000}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.workers = [
                cluster.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2)
            ]
            cluster.wait_for_nodes()
            patch.setenv("RAY_ADDRESS", cluster.address)
            yield cluster
        finally:
            cluster.shutdown()
