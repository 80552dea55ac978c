from hypothesis import given
from hypothesis import strategies as st

from cygnet.config import TrainConfig
from cygnet.train.schedule import rate_scale

SHAPES = st.sampled_from(["wsd", "cosine", "constant"])


@given(SHAPES, st.integers(1, 300), st.floats(0, 0.5), st.floats(0, 1))
def test_the_rate_stays_in_range_and_never_rises_after_the_warm_up(
    schedule: str, total: int, warmup: float, decay: float
) -> None:
    config = TrainConfig(schedule=schedule, warmup_share=warmup, decay_share=decay)
    scales = [rate_scale(step, total, config) for step in range(total)]
    assert all(0 < scale <= 1 for scale in scales)
    top = scales.index(max(scales))
    assert scales[:top] == sorted(scales[:top])
    assert scales[top:] == sorted(scales[top:], reverse=True)


def test_wsd_is_flat_and_then_falls_to_almost_nothing() -> None:
    config = TrainConfig(warmup_share=0.1, decay_share=0.4)
    scales = [rate_scale(step, 100, config) for step in range(100)]
    assert scales[9:60] == [1.0] * 51
    assert 0 < scales[-1] < 0.03
