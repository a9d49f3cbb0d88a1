"""API keys: made, listed, revoked, and recognised in requests.

    loam-<id>-<secret>    the id finds the row, the secret is 256 random bits

A key is shown once and kept as the SHA-256 of itself, which is enough for random secrets: there is nothing to guess.
A row stays when its key is revoked, so that a gateway that has had keys never opens again by itself. Does not know what
an owner may do.
"""

import hashlib
import hmac
import ipaddress
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, RowMapping, text
from starlette.datastructures import Headers

from core.errors import ConfigError, NotFound
from core.layout import check_name
from retrieval.database import ChangeCounter, explain_database_errors, read_transaction, write_transaction
from serve.owners import LOCAL, Caller

KEY_PREFIX = "loam-"
MAX_OWNER_CHARS = 64
NO_KEY = "Wanted a valid API key as «Authorization: Bearer KEY», found none that is known."


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; the key itself is not.

    Attributes:
        id: The second part of the key; names it in lists and logs.
        owner: Whose requests carry it.
        is_admin: Whether it opens the operators' routes.
        created_at: Unix seconds.
        revoked_at: Unix seconds; None while it is good.
    """

    id: str
    owner: str
    is_admin: bool
    created_at: int
    revoked_at: int | None


def create_key(engine: Engine, owner: str, *, is_admin: bool = False) -> tuple[Key, str]:
    """Make a key.

    Args:
        engine: The database.
        owner: Whose requests will carry it.
        is_admin: Whether it opens the operators' routes.

    Returns:
        What is kept of it, and the key itself, which is kept nowhere.

    Raises:
        ConfigError: The owner's name cannot be part of a model's name.
    """
    check_name(owner, "owner")
    if len(owner) > MAX_OWNER_CHARS:
        raise ConfigError(f"owner: wanted at most {MAX_OWNER_CHARS} characters, found {len(owner)}.", param="owner")
    key = Key(secrets.token_hex(6), owner, is_admin, int(time.time()), None)
    token = f"{KEY_PREFIX}{key.id}-{secrets.token_hex(32)}"
    statement = text(
        "INSERT INTO keys (id, owner, sha256, is_admin, created_at) "
        "VALUES (:id, :owner, :sha256, :is_admin, :created_at)"
    )
    values = {"id": key.id, "owner": owner, "is_admin": is_admin, "created_at": key.created_at}
    with write_transaction(engine) as connection:
        connection.execute(statement, {**values, "sha256": hash_token(token).hex()})
    return key, token


def list_keys(engine: Engine) -> list[Key]:
    """Return every key that was ever made, the oldest first."""
    with read_transaction(engine) as connection:
        rows = connection.execute(text("SELECT * FROM keys ORDER BY created_at, id")).mappings()
        return [_to_key(row) for row in rows]


def revoke_key(engine: Engine, key_id: str) -> Key:
    """Make a key worthless, from the next request on; one that is already keeps its time.

    Raises:
        NotFound: There is none.
    """
    statement = text("UPDATE keys SET revoked_at = COALESCE(revoked_at, :now) WHERE id = :id RETURNING *")
    with write_transaction(engine) as connection:
        row = connection.execute(statement, {"id": key_id, "now": int(time.time())}).mappings().first()
    if row is None:
        raise NotFound(f"key {key_id!r}: there is none. List them: python scripts/keys.py list", param="id")
    return _to_key(row)


def _to_key(row: RowMapping) -> Key:
    return Key(row["id"], row["owner"], bool(row["is_admin"]), row["created_at"], row["revoked_at"])


def hash_token(token: str) -> bytes:
    """Return the SHA-256 of a key."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    digest: bytes
    is_revoked: bool


class KeyRing:
    """The keys as one gateway knows them; asks the database before each answer whether they have changed."""

    def __init__(self, engine: Engine, fixed_key: str | None) -> None:
        """Read the keys.

        Args:
            engine: The database.
            fixed_key: What LOAM_API_KEY holds: a key of the owner `local` that also is an administrator's.
        """
        self._engine = engine
        self._fixed = hash_token(fixed_key) if fixed_key else None
        self._counter = ChangeCounter(Path(str(engine.url.database)))
        self._seen = -1
        self._known: dict[str, _Known] = {}
        self._refresh()

    @property
    def has_keys(self) -> bool:
        """Whether a key was ever made, or LOAM_API_KEY is set: from then on every request needs one."""
        return self._fixed is not None or bool(self._known)

    @property
    def has_good_key(self) -> bool:
        """Whether anybody can ask with a key."""
        self._refresh()
        return self._fixed is not None or any(not known.is_revoked for known in self._known.values())

    def identify(self, headers: Headers, client_host: str | None) -> Caller | None:
        """Return who sends a request, None where its key is missing, unknown or revoked.

        While no key was ever made and LOAM_API_KEY is not set, whoever asks from this machine is `local`.

        Args:
            headers: Of the request.
            client_host: The peer's address; None where it has none.
        """
        self._refresh()
        if self._fixed is None and not self._known:
            return Caller(LOCAL, is_admin=True) if is_loopback(client_host) else None
        given = headers.getlist("authorization")
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != "bearer":
            return None
        raw = token.strip().encode("latin-1")  # as the header's bytes came
        digest = hashlib.sha256(raw).digest()
        if self._fixed is not None and hmac.compare_digest(digest, self._fixed):
            return Caller(LOCAL, is_admin=True)
        key_id = token.strip().removeprefix(KEY_PREFIX).partition("-")[0]
        known = self._known.get(key_id)
        is_same = hmac.compare_digest(digest, known.digest if known else bytes(len(digest)))
        return known.caller if known is not None and is_same and not known.is_revoked else None

    def close(self) -> None:
        """Give back what the ring holds of the database."""
        self._counter.close()

    def _refresh(self) -> None:
        with explain_database_errors(self._engine):
            version = self._counter.read()
        if version == self._seen:
            return
        with read_transaction(self._engine) as connection:
            rows = connection.execute(text("SELECT * FROM keys")).mappings().all()
        self._known = {
            row["id"]: _Known(
                Caller(row["owner"], bool(row["is_admin"]), row["id"]),
                bytes.fromhex(row["sha256"]),
                row["revoked_at"] is not None,
            )
            for row in rows
        }
        self._seen = version


def is_loopback(host: str | None) -> bool:
    """Tell whether an address is this machine's own."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
