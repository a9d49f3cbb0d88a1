"""Quotas: how many requests and tokens a minute each key may take, told in OpenAI's headers and refused with its 429.

Counts in memory, in windows of a minute that begin with a key's first request. A request is counted when it comes, its
tokens when they have been answered: a key that has spent its minute waits for the next. Does not know what a request
asks for.
"""

import math
import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from core.errors import LoamError
from serve.owners import Caller

REQUESTS, TOKENS = "requests", "tokens"


class RequestsSpent(LoamError):
    """The key has sent all the requests that it may send in this minute."""

    http_status = 429
    openai_type = REQUESTS
    openai_code = "rate_limit_exceeded"


class TokensSpent(LoamError):
    """The key has used all the tokens that it may use in this minute."""

    http_status = 429
    openai_type = TOKENS
    openai_code = "rate_limit_exceeded"


class Quotas:
    """The quotas of every key of one gateway."""

    def __init__(self, requests_per_minute: int | None = None, tokens_per_minute: int | None = None) -> None:
        """Begin with every key's minute unspent.

        Args:
            requests_per_minute: For each key, at least 1; None: as many as it likes.
            tokens_per_minute: Of prompts and answers together, likewise.
        """
        limits = {REQUESTS: requests_per_minute, TOKENS: tokens_per_minute}
        self._limits = {kind: RateLimitItemPerMinute(limit) for kind, limit in limits.items() if limit is not None}
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self.is_limiting = bool(self._limits)

    def admit(self, caller: Caller) -> dict[str, str]:
        """Count a request.

        Args:
            caller: Who sends it.

        Returns:
            The headers that tell the client what is left; none where nothing is limited.

        Raises:
            RequestsSpent: One too many.
            TokensSpent: Nothing is left for its answer.
        """
        name = caller.key_id or caller.owner
        requests, tokens = self._limits.get(REQUESTS), self._limits.get(TOKENS)
        if requests is not None and not self._limiter.hit(requests, REQUESTS, name):
            raise RequestsSpent(self._describe(REQUESTS, name), retry_after_s=math.ceil(self._wait_s(REQUESTS, name)))
        if tokens is not None and not self._limiter.test(tokens, TOKENS, name):
            raise TokensSpent(self._describe(TOKENS, name), retry_after_s=math.ceil(self._wait_s(TOKENS, name)))
        return self.describe(caller)

    def spend(self, caller: Caller, tokens: int) -> None:
        """Count the tokens of an answer."""
        limit = self._limits.get(TOKENS)
        if limit is not None and tokens > 0:
            self._limiter.hit(limit, TOKENS, caller.key_id or caller.owner, cost=tokens)

    def describe(self, caller: Caller) -> dict[str, str]:
        """Return OpenAI's headers for what a key has left."""
        headers = {}
        for kind, limit in self._limits.items():
            stats = self._limiter.get_window_stats(limit, kind, caller.key_id or caller.owner)
            headers[f"x-ratelimit-limit-{kind}"] = str(limit.amount)
            headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, stats.remaining))
            headers[f"x-ratelimit-reset-{kind}"] = f"{max(0.0, stats.reset_time - time.time()):.3f}s"
        return headers

    def _wait_s(self, kind: str, name: str) -> float:
        return max(1.0, self._limiter.get_window_stats(self._limits[kind], kind, name).reset_time - time.time())

    def _describe(self, kind: str, name: str) -> str:
        wait_s = math.ceil(self._wait_s(kind, name))
        return (
            f"Rate limit reached: this key may take {self._limits[kind].amount} {kind} a minute "
            f"(gateway.{kind}_per_minute). Try again in {wait_s} s."
        )
