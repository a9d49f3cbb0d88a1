"""Costs equal sums done by hand, and break-even volumes are where the lines cross."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from core.config import CONF_DIR
from core.errors import ConfigError
from evaluation.cost import (
    CostConfig,
    HostedPrices,
    LocalPrices,
    MonthlyCost,
    Usage,
    find_break_even,
    find_break_evens,
    price_arms,
    price_hosted,
    price_locally,
)

PLAIN = CostConfig(
    monthly_answers=10_000,
    updates_per_month=1.75,
    setup_months=4,
    local=LocalPrices(hardware_usd=3600, depreciation_months=36, watts_idle=100, watts_busy=300, usd_per_kwh=0.5,
                      busy_share=0.5),
    hosted=HostedPrices(input_usd_per_1k_tokens=0.001, output_usd_per_1k_tokens=0.002),
)  # fmt: skip


def test_a_local_month_is_the_sum_done_by_hand() -> None:
    usage = Usage(400, 100, busy_s=1.8, is_tuned=True, training_s=3600, ingest_s=0)
    cost = price_locally(usage, PLAIN)
    assert cost.machine_usd == pytest.approx(100 + 0.1 * 730 * 0.5)  # price over months, and power while idle
    assert cost.per_answer_usd == pytest.approx(1.8 * 0.2 / 3600 * 0.5)  # 200 W more for 1.8 s
    assert cost.fixed_usd == pytest.approx(2 * 1 * 0.2 * 0.5)  # two hours: 1.75 updates, a quarter of the first
    assert cost.capacity == pytest.approx((730 * 3600 * 0.5 - 2 * 3600) / 1.8)
    assert cost.monthly_usd(10_000) == pytest.approx(0.2 + 0.5 + 136.5)
    assert cost.usd_per_thousand(10_000) == pytest.approx(13.72)
    assert cost.usd_per_correct(10_000, 0.5) == pytest.approx(137.2 / 5000)
    assert cost.usd_per_correct(10_000, 0) is None


def test_where_nothing_changes_the_first_training_and_ingestion_are_paid_all_the_same() -> None:
    still = CostConfig(updates_per_month=0, setup_months=24, local=PLAIN.local)
    tuned = Usage(30, 100, is_tuned=True, training_tokens=3_000_000, training_s=48 * 3600)
    rag = Usage(900, 100, uses_documents=True, corpus_tokens=48_000_000, ingest_s=24 * 3600)
    assert price_hosted(tuned, still).fixed_usd == pytest.approx(24 / 24)  # 3 million tokens at 8 USD a million
    assert price_hosted(rag, still).fixed_usd == pytest.approx(50 + 4.8 / 24)
    assert price_locally(tuned, still).fixed_usd == pytest.approx(48 * 0.2 * 0.5 / 24)  # 48 hours of 200 W more
    assert price_locally(rag, still).fixed_usd == pytest.approx(24 * 0.2 * 0.5 / 24)
    base = price_hosted(Usage(60, 100), still)
    trained = price_hosted(Usage(30, 40, is_tuned=True, training_tokens=3_000_000), still)
    assert find_break_even(base, trained) == pytest.approx(25_001, abs=1)  # 1 USD over 0.00004 an answer


def test_past_its_capacity_a_second_machine_is_bought() -> None:
    cost = MonthlyCost(0, 0, machine_usd=100, capacity=1000)
    assert [cost.monthly_usd(volume) for volume in (1, 1000, 1001, 2500)] == [100, 100, 200, 300]


def test_hosted_figures_are_the_owners() -> None:
    usage = Usage(1000, 100, question_tokens=20, uses_documents=True, corpus_tokens=1_000_000, training_tokens=500_000)
    plain = CostConfig(updates_per_month=0.5, setup_months=2)  # one round a month
    rag = price_hosted(usage, plain)
    assert rag.fixed_usd == pytest.approx(50 + 0.1)  # the database, and a million tokens embedded
    assert price_hosted(usage, plain, database="high").fixed_usd == pytest.approx(500.1)
    assert rag.per_answer_usd == pytest.approx(0.0015 + 0.0002 + 0.000002)
    tuned = price_hosted(Usage(30, 100, is_tuned=True, training_tokens=500_000), plain)
    assert tuned.fixed_usd == pytest.approx(4.0)  # 500 thousand tokens at 0.008 USD a thousand
    assert tuned.per_answer_usd == pytest.approx(2 * (0.000045 + 0.0002))


def test_what_stands_in_conf_is_what_the_dataclass_says() -> None:
    values = OmegaConf.load(CONF_DIR / "cost" / "default.yaml")
    loaded = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CostConfig), values))
    assert loaded == CostConfig()


def test_a_break_even_is_where_the_lines_cross() -> None:
    assert find_break_even(MonthlyCost(50, 0.001), MonthlyCost(4, 0.003)) == 23_001  # 46 / 0.002, and one more
    assert find_break_even(MonthlyCost(4, 0.003), MonthlyCost(50, 0.001)) == 23_001
    assert find_break_even(MonthlyCost(50, 0.003), MonthlyCost(4, 0.001)) is None


def test_the_first_machine_can_pay_for_itself_before_the_second_is_bought() -> None:
    local, hosted = MonthlyCost(0, 0, machine_usd=100, capacity=1000), MonthlyCost(0, 0.15)
    assert find_break_even(local, hosted) == 667
    assert find_break_even(MonthlyCost(0, 0, machine_usd=100, capacity=500), hosted) is None


@given(
    st.tuples(st.floats(0, 500), st.floats(0, 0.1)),
    st.tuples(st.floats(0, 50), st.floats(0.0001, 0.1), st.floats(1, 300), st.floats(10, 1e6)),
)
def test_costs_change_places_at_a_break_even_and_not_before(
    hosted: tuple[float, float], local: tuple[float, float, float, float]
) -> None:
    first, second = MonthlyCost(*hosted), MonthlyCost(*local)
    sign = 1 if first.monthly_usd(1) > second.monthly_usd(1) else -1
    volume = find_break_even(first, second, 1_000_000)
    probes = {1 << power for power in range(20)} | ({volume - 1} if volume else set())
    before = [probe for probe in probes if probe >= 1 and (volume is None or probe < volume)]
    assert all(sign * (first.monthly_usd(probe) - second.monthly_usd(probe)) >= -1e-9 for probe in before)
    if volume is not None:
        assert sign * (first.monthly_usd(volume) - second.monthly_usd(volume)) <= 0


def test_every_two_arms_have_a_break_even_local_and_hosted() -> None:
    usages = {
        "rag": Usage(900, 60, question_tokens=15, busy_s=2, uses_documents=True, corpus_tokens=20_000, ingest_s=30),
        "fine-tuned": Usage(30, 60, busy_s=1, is_tuned=True, training_tokens=100_000, training_s=600),
    }
    costs = price_arms(usages, PLAIN)
    found = {(one.cheaper_below, one.cheaper_above): one.volume for one in find_break_evens(costs)}
    assert len(found) == 2 + 2
    hosted = found[("fine-tuned, hosted", "rag, hosted")]
    tuned, rag = costs[1].hosted_low, costs[0].hosted_low
    assert hosted is None or tuned.monthly_usd(hosted) > rag.monthly_usd(hosted)
    assert tuned.monthly_usd(1) < rag.monthly_usd(1)


def test_updates_that_leave_no_time_to_answer_are_refused() -> None:
    with pytest.raises(ConfigError, match="updates that leave time to answer, found 730 hours of training"):
        price_locally(Usage(1, 1, training_s=365 * 3600), PLAIN)


def test_wrong_prices_are_named_together() -> None:
    with pytest.raises(ConfigError) as fault:
        CostConfig(
            as_of="yesterday",
            monthly_answers=0,
            setup_months=0,
            local=LocalPrices(busy_share=2, watts_busy=1),
            hosted=HostedPrices(vector_database_usd_per_month=[500.0, 50.0], training_usd_per_1k_tokens=-1),
        )
    for key in ("as_of", "monthly_answers", "setup_months", "local.busy_share", "local.watts_busy",
                "hosted.vector_database_usd_per_month", "hosted.training_usd_per_1k_tokens"):  # fmt: skip
        assert f"cost.{key}: wanted" in fault.value.message


@pytest.mark.parametrize("price", [float("nan"), float("inf")])
def test_a_price_that_is_no_number_is_refused(price: float) -> None:
    with pytest.raises(ConfigError) as fault:
        CostConfig(
            local=LocalPrices(hardware_usd=price, watts_busy=price, seconds_factor=price),
            hosted=HostedPrices(vector_database_usd_per_month=[50.0, price], tuned_price_factor=price),
        )
    for key in ("local.hardware_usd", "local.watts_busy", "local.seconds_factor", "hosted.tuned_price_factor",
                "hosted.vector_database_usd_per_month"):  # fmt: skip
        assert f"cost.{key}: wanted" in fault.value.message
