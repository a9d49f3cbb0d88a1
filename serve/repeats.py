"""POSTs that make something and are safe to repeat: one object, however often the request comes.

With an `Idempotency-Key`, the first answer is kept for a day and given again; the same key with another content is
refused, and so is a second one while the first is being answered. Without a key, a retry of the stock client
(`x-stainless-retry-count` of 1 and more) is taken for an earlier attempt of the same content whose connection was lost
before its answer was read, for ten minutes. Does not know what is made.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from fastapi import Request, Response
from sqlalchemy import Engine, text

from core.errors import Conflict, InputError, LoamError
from retrieval.database import write_transaction
from serve.archive import Archive

logger = logging.getLogger(__name__)

KEY_HEADER = "idempotency-key"
RETRY_HEADER = "x-stainless-retry-count"
KEY_LIFETIME_S = 86_400
RETRY_WINDOW_S = 600
MAX_KEY_CHARS = 255
MAX_ATTEMPTS = 10_000
"""Attempts that are remembered; the oldest go first."""
REPEATABLE_PATHS = frozenset(
    {
        "/v1/files",
        "/v1/vector_stores",
        "/v1/vector_stores/{vector_store_id}/files",
        "/v1/vector_stores/{vector_store_id}/file_batches",
        "/v1/fine_tuning/jobs",
        "/v1/loam/aliases",
        "/v1/loam/assistants",
    }
)
"""Whose whole answer is kept. Routes that keep less claim by themselves: of a response and of feedback only the id is
kept, because their words go when their owner deletes them. A new API key is kept nowhere."""

Place = tuple[str, str, str]
"""Owner, path and SHA-256 of the content: what makes two requests equal."""
KeyPlace = tuple[str, str]
"""Owner and key: what a key's row is found by."""


class KeyReused(InputError):
    """An Idempotency-Key came with another content before."""

    http_status = 422
    openai_code = "idempotency_key_reused"


@dataclass(slots=True)
class Attempt:
    """A request that makes something.

    Attributes:
        answer: Its answer, once there is one; cancelled where it failed.
        began_at: Monotonic seconds.
        states: Of the requests that the answer went to; `is_lost` stands in those whose connection was lost.
    """

    answer: "asyncio.Future[Response]"
    began_at: float = field(default_factory=time.monotonic)
    states: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        """Whether the answer is still to come, or has reached nobody."""
        return not self.answer.done() or all(state.get("is_lost") for state in self.states)


class Repeats:
    """What one gateway knows of earlier requests."""

    def __init__(self, archive: Archive) -> None:
        """Begin; keys whose answer an earlier gateway did not live to give are forgotten."""
        self._archive = archive
        self._attempts: dict[Place, Attempt] = {}
        self._unwritten: dict[KeyPlace, Response | None] = {}
        with write_transaction(archive.engine) as connection:
            connection.execute(text("DELETE FROM idempotency_keys WHERE status IS NULL"))

    async def answer(
        self, request: Request, owner: str, content: bytes, make: Callable[[], Awaitable[Response]]
    ) -> Response:
        """Answer a request that makes something, or give the answer to an earlier one like it.

        Args:
            request: Its headers and path count.
            owner: Who asks; nobody's request is taken for another's.
            content: What decides whether two requests want the same.
            make: Makes it and returns the answer; called once at most.

        Raises:
            KeyReused: The key came with another content before.
            Conflict: The key's first request is still being answered.
            InputError: The key is empty or too long.
        """
        claim = await self.claim(request, owner, content)
        if claim.earlier is not None:
            return claim.earlier
        try:
            response = await make()
        except BaseException:
            await claim.give_back()
            raise
        await claim.settle(response)
        return response

    async def claim(self, request: Request, owner: str, content: bytes) -> "Claim":
        """Claim to be the first request of its kind, or be told what an earlier one was answered.

        Returns:
            A claim; where nothing was answered earlier, the caller settles it or gives it back.

        Arguments and errors are those of `answer`.
        """
        digest = hashlib.sha256(request.url.path.encode() + b"\0" + content).hexdigest()
        key = request.headers.get(KEY_HEADER)
        if key is not None:
            if not 1 <= len(key) <= MAX_KEY_CHARS:
                raise InputError(f"Idempotency-Key: wanted 1 to {MAX_KEY_CHARS} characters, found {len(key)}.")
            await self._write_what_is_left((owner, key))
            known = await self._archive.run(take_key, self._archive.engine, owner, key, digest)
            return KeyClaim(known, self._archive, (owner, key), self._unwritten)
        state: dict[str, Any] = request.scope["state"]
        place = (owner, request.url.path, digest)
        if request.headers.get(RETRY_HEADER, "0").strip() not in ("", "0"):
            earlier = self._attempts.get(place)
            if earlier is not None and earlier.is_open and earlier.began_at > time.monotonic() - RETRY_WINDOW_S:
                await asyncio.wait({earlier.answer})
                if not earlier.answer.cancelled():
                    earlier.states.append(state)
                    state["when_read"] = partial(self._forget, place, earlier)
                    return AttemptClaim(copy_answer(earlier.answer.result()), earlier, self._attempts, place)
        attempt = Attempt(asyncio.get_running_loop().create_future(), states=[state])
        self._attempts.pop(place, None)
        self._attempts[place] = attempt  # the last, as the newest
        state["when_read"] = partial(self._forget, place, attempt)
        self._forget_old()
        return AttemptClaim(None, attempt, self._attempts, place)

    async def _write_what_is_left(self, place: KeyPlace) -> None:
        """Write into a key's row what could not be written when its request had ended.

        Raises:
            LoamError: It still cannot be; the key stays taken.
        """
        if place in self._unwritten:
            answer = self._unwritten.pop(place)  # first: of two requests that come now one writes
            try:
                await self._archive.run(settle_key, self._archive.engine, place, answer)
            except LoamError:
                self._unwritten[place] = answer
                raise

    def _forget(self, place: Place, attempt: Attempt) -> None:
        """Drop an attempt whose answer has been read: whoever asks the same again wants another one."""
        if self._attempts.get(place) is attempt and attempt.answer.done():
            del self._attempts[place]

    def _forget_old(self) -> None:
        """Drop the attempts that no retry is taken for any more, and the oldest of too many."""
        oldest = time.monotonic() - RETRY_WINDOW_S
        while self._attempts:
            place, attempt = next(iter(self._attempts.items()))
            if attempt.began_at > oldest and len(self._attempts) <= MAX_ATTEMPTS:
                return
            del self._attempts[place]


class Claim(Protocol):
    """A request's claim to be the first of its kind."""

    @property
    def earlier(self) -> Response | None:
        """What an earlier request like it was answered; None: it is the first."""

    async def settle(self, answer: Response) -> None:
        """Keep an answer for requests that come later."""

    async def give_back(self) -> None:
        """Let the next request be the first; does nothing once there is an answer."""


@dataclass(slots=True)
class KeyClaim:
    """A claim by an Idempotency-Key."""

    earlier: Response | None
    _archive: Archive
    _place: KeyPlace
    _unwritten: dict[KeyPlace, Response | None]
    _is_settled: bool = False

    async def settle(self, answer: Response) -> None:
        """Keep an answer in the key's row."""
        self._is_settled = True
        await self._write(answer)

    async def give_back(self) -> None:
        """Remove the key's row."""
        if not self._is_settled:
            self._is_settled = True
            await self._write(None)

    async def _write(self, answer: Response | None) -> None:
        """Write the row, or keep in memory what the key's next request is to write first: the disk may be full.

        What was made is made, and what failed has failed: neither answer turns into another by this.
        """
        try:
            await self._archive.run(settle_key, self._archive.engine, self._place, answer)
        except LoamError as error:
            logger.warning("what an Idempotency-Key was answered is not written yet: %s", error.message)
            self._unwritten[self._place] = answer
            while len(self._unwritten) > MAX_ATTEMPTS:
                del self._unwritten[next(iter(self._unwritten))]


@dataclass(slots=True)
class AttemptClaim:
    """A claim of a request without a key."""

    earlier: Response | None
    _attempt: Attempt
    _attempts: dict[Place, Attempt]
    _place: Place

    async def settle(self, answer: Response) -> None:
        """Keep an answer in memory."""
        self._attempt.answer.set_result(answer)

    async def give_back(self) -> None:
        """Forget the attempt; a retry that waits for it goes first now."""
        if not self._attempt.answer.done():
            self._attempt.answer.cancel()
            if self._attempts.get(self._place) is self._attempt:
                del self._attempts[self._place]


def copy_answer(answer: Response) -> Response:
    """Return an answer once more."""
    return Response(bytes(answer.body), answer.status_code, media_type="application/json")


def take_key(engine: Engine, owner: str, key: str, digest: str) -> Response | None:
    """Take a key for a request, or return what was answered to it before.

    Raises:
        KeyReused: It came with another content.
        Conflict: Its first request is still being answered.
    """
    now = int(time.time())
    place: dict[str, object] = {"owner": owner, "key": key}
    with write_transaction(engine) as connection:
        connection.execute(
            text("DELETE FROM idempotency_keys WHERE created_at < :limit"), {"limit": now - KEY_LIFETIME_S}
        )
        query = text("SELECT * FROM idempotency_keys WHERE owner = :owner AND key = :key")
        row = connection.execute(query, place).mappings().first()
        if row is None:
            statement = text(
                "INSERT INTO idempotency_keys (owner, key, content_sha256, created_at) "
                "VALUES (:owner, :key, :digest, :now)"
            )
            connection.execute(statement, {**place, "digest": digest, "now": now})
            return None
    if row["content_sha256"] != digest:
        raise KeyReused(
            "Idempotency-Key: it came with another request before. Take a new key for each new request.",
            param="Idempotency-Key",
        )
    if row["status"] is None:
        raise Conflict("Idempotency-Key: its first request is still being answered. Try again.", retry_after_s=1)
    return Response(row["body"], row["status"], media_type="application/json")


def settle_key(engine: Engine, key_place: KeyPlace, answer: Response | None) -> None:
    """Keep the answer to a key's request; None gives the key back."""
    place: dict[str, object] = {"owner": key_place[0], "key": key_place[1]}
    statement = text("DELETE FROM idempotency_keys WHERE owner = :owner AND key = :key")
    if answer is not None:
        statement = text(
            "UPDATE idempotency_keys SET status = :status, body = :body WHERE owner = :owner AND key = :key"
        )
        place |= {"status": answer.status_code, "body": bytes(answer.body)}
    with write_transaction(engine) as connection:
        connection.execute(statement, place)
