"""Quotas: what a key has spent is refused until its minute is over, and every answer tells what is left."""

import pytest

from core.errors import LoamError
from serve.owners import Caller
from serve.quotas import Quotas, RequestsSpent, TokensSpent

SALES = Caller("sales", is_admin=False, key_id="k1")
OTHER = Caller("sales", is_admin=False, key_id="k2")


def test_without_limits_nothing_is_counted_or_told() -> None:
    quotas = Quotas()
    for _ in range(1000):
        quotas.admit(SALES)
    quotas.spend(SALES, 10**9)
    assert quotas.describe(SALES) == {}
    assert not quotas.is_limiting


def test_each_key_has_its_own_requests() -> None:
    quotas = Quotas(requests_per_minute=3)
    for _ in range(3):
        quotas.admit(SALES)
    with pytest.raises(RequestsSpent, match="3 requests a minute") as caught:
        quotas.admit(SALES)
    assert 1 <= (caught.value.retry_after_s or 0) <= 60
    assert (caught.value.http_status, caught.value.openai_code) == (429, "rate_limit_exceeded")
    quotas.admit(OTHER)
    headers = quotas.describe(OTHER)
    assert headers["x-ratelimit-limit-requests"] == "3"
    assert headers["x-ratelimit-remaining-requests"] == "2"
    assert 0 < float(headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60


def test_an_answer_may_overdraw_and_the_next_one_waits() -> None:
    quotas = Quotas(tokens_per_minute=100)
    quotas.admit(SALES)
    quotas.spend(SALES, 99)
    quotas.admit(SALES)
    quotas.spend(SALES, 500)  # counted although it is more than was left
    assert quotas.describe(SALES)["x-ratelimit-remaining-tokens"] == "0"
    with pytest.raises(TokensSpent) as caught:
        quotas.admit(SALES)
    assert caught.value.openai_type == "tokens"
    quotas.admit(OTHER)


def test_the_minute_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    quotas = Quotas(requests_per_minute=1)
    quotas.admit(SALES)
    with pytest.raises(LoamError):
        quotas.admit(SALES)
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    quotas.admit(SALES)
