"""Quantized matrices: what is computed is what the codes say, and near the original."""

import pytest
import torch
import torch.nn.functional as F

from cygnet.errors import UserError
from cygnet.generate.quantize import QuantizedLinear, Weights
from cygnet.generate.runner import Part, Runner
from cygnet.model.transformer import Linear
from tests.models import random_model


@pytest.mark.parametrize(("weights", "step"), [("int8", 1 / 127), ("int4", 1 / 7)])
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_the_layer_multiplies_with_the_dequantized_matrix(
    weights: Weights, step: float, rows: int, bias: bool
) -> None:
    torch.manual_seed(0)
    linear = Linear(96, 64, bias)
    layer = QuantizedLinear(linear, weights)
    x = torch.randn(1, rows, 96).bfloat16()
    expected = F.linear(x.float(), layer.weight, linear.bias)
    torch.testing.assert_close(layer(x).float(), expected, atol=0.03, rtol=0.02)
    largest = linear.weight.abs().amax(1, keepdim=True)
    assert bool(((layer.weight - linear.weight).abs() <= 0.55 * step * largest + 1e-3).all())


@pytest.mark.parametrize(("weights", "far"), [("int8", 0.03), ("int4", 0.3)])
def test_a_quantized_model_is_near_the_model(weights: Weights, far: float) -> None:
    model = random_model()
    model.compute_dtype = torch.bfloat16
    logits = []
    for kept in ("float", weights):
        runner = Runner(model, 1, 32, weights=kept)
        with torch.inference_mode():
            logits.append(runner.prefill([Part(0, 0, list(range(20)))]))
            logits.append(runner.decode([[7]], [20])[:, 0])
    for full, quantized in zip(logits[:2], logits[2:], strict=True):
        assert 0 < (full - quantized).norm() / full.norm() < far


def test_widths_that_no_group_divides_are_refused() -> None:
    with pytest.raises(UserError, match="int4 needs widths that 32 divides, and one is 40"):
        QuantizedLinear(Linear(40, 64), "int4")
