"""The serving bench: what a round's turns come to."""

import pytest

from core.errors import ConfigError
from scripts.bench_serving import ALL, DIRECT, BenchConfig, judge


def test_an_arm_is_compared_with_the_base_of_its_own_round() -> None:
    speeds = {DIRECT: [[100.0, 100.0], [50.0, 50.0], [10.0, 30.0]], ALL: [[90.0, 90.0], [40.0, 50.0], [18.0, 18.0]]}
    base, adapters = judge(speeds)
    assert (base.of_base, base.low, base.high) == (1.0, 1.0, 1.0)
    assert base.tokens_per_s == 50.0
    assert adapters.of_base == 0.9
    assert adapters.low <= 0.9 <= adapters.high
    assert adapters.tokens_per_s == 45.0


def test_faults_of_the_configuration_come_together() -> None:
    with pytest.raises(ConfigError, match=r"(?s)adapters.*rounds"):
        BenchConfig(adapters=0, rounds=1)
