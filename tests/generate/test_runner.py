"""Compiled steps give the logits of eager ones (invariant 6)."""

import pytest
import torch

from cygnet.generate.runner import Part, Runner
from tests.models import random_model


@pytest.mark.slow
def test_compiled_is_eager() -> None:
    """For one row, several and many, any length, one prompt and several, from any start."""
    eager, compiled = (Runner(random_model(), 6, 64, compile=c) for c in (False, True))
    steps = [
        lambda r: r.prefill([Part(0, 0, list(range(30)))]),
        lambda r: r.prefill([Part(1, 0, [5, 6]), Part(2, 0, list(range(9)))]),
        lambda r: r.prefill([Part(2, 9, [1, 2, 3]), Part(3, 0, [4]), Part(4, 0, [5, 6, 7])]),
        lambda r: r.prefill([Part(5, 0, [9])]),
        lambda r: r.decode([[7]], [30])[:, 0],
        lambda r: r.decode([[7], [8], [9], [1], [2]], [31, 2, 12, 1, 3])[:, 0],
        lambda r: r.decode([[3], [4]], [32, 3])[:, 0],
    ]
    with torch.inference_mode():
        for step in steps:
            torch.testing.assert_close(step(compiled), step(eager), atol=1e-4, rtol=1e-4)
