"""Keys: kept as hashes only, known at once, worthless at once, and no guess of an owner from anything else."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from starlette.datastructures import Headers

from core.errors import ConfigError, NotFound
from retrieval.database import open_database, truncate_log
from serve.keys import KeyRing, create_key, is_loopback, list_keys, revoke_key
from serve.owners import LOCAL, Caller

HERE = "127.0.0.1"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(tmp_path / "loam.db")
    yield engine
    engine.dispose()


def ask(keys: KeyRing, *values: str, host: str | None = HERE) -> Caller | None:
    """Return who the ring takes the bearer of some Authorization headers for."""
    return keys.identify(Headers(raw=[(b"authorization", value.encode("latin-1")) for value in values]), host)


def test_a_key_of_another_process_is_known_and_refused_without_a_restart(tmp_path: Path, database: Engine) -> None:
    keys = KeyRing(database, None)
    assert ask(keys) == Caller(LOCAL, is_admin=True)
    other = open_database(tmp_path / "loam.db")
    key, token = create_key(other, "sales", is_admin=True)
    assert ask(keys, f"Bearer {token}") == Caller("sales", is_admin=True, key_id=key.id)
    assert ask(keys, f"bearer  {token} ") == Caller("sales", is_admin=True, key_id=key.id)
    assert ask(keys) is None
    revoke_key(other, key.id)
    assert ask(keys, f"Bearer {token}") is None
    assert ask(keys) is None, "a gateway that has had keys must not open when the last one is revoked"
    keys.close()
    other.dispose()


def test_while_there_is_no_key_only_this_machine_is_local(database: Engine) -> None:
    keys = KeyRing(database, None)
    found = {host: ask(keys, "Bearer anything", host=host) is not None for host in (HERE, "::1", "10.0.0.9", None)}
    assert found == {HERE: True, "::1": True, "10.0.0.9": False, None: False}
    assert not keys.has_good_key
    keys.close()


def test_the_key_of_the_environment_is_locals_beside_those_of_the_database(database: Engine) -> None:
    keys = KeyRing(database, "s3cret-ü")
    assert keys.has_good_key
    as_it_comes = "Bearer " + "s3cret-ü".encode().decode("latin-1")
    assert ask(keys, as_it_comes) == Caller(LOCAL, is_admin=True)
    key, token = create_key(database, "sales")
    assert ask(keys, f"Bearer {token}") == Caller("sales", is_admin=False, key_id=key.id)
    assert ask(keys, as_it_comes) == Caller(LOCAL, is_admin=True)
    assert ask(keys) is None
    keys.close()


def test_what_is_not_the_key_is_refused(database: Engine) -> None:
    key, token = create_key(database, "sales")
    _, other = create_key(database, "other")
    keys = KeyRing(database, None)
    secret = token.rpartition("-")[2]
    wrong = (
        "", token, "Bearer", "Bearer ", f"Basic {token}", f"Bearer {token[:-1]}", f"Bearer {token}0",
        f"Bearer {secret}",
        f"Bearer loam-{key.id}-", f"Bearer loam-{key.id}-{other.rpartition('-')[2]}", f"Bearer {token.upper()}",
        f"Bearer {token} {token}", "Bearer \u00fc",
    )  # fmt: skip
    assert [value for value in wrong if ask(keys, value) is not None] == []
    assert ask(keys, f"Bearer {token}", f"Bearer {token}") is None
    assert ask(keys, f"Bearer {token}") is not None
    keys.close()


def test_no_file_holds_a_key(tmp_path: Path, database: Engine) -> None:
    tokens = [create_key(database, "sales")[1] for _ in range(20)]
    assert len(set(tokens)) == 20
    assert all(len(token.rpartition("-")[2]) == 64 for token in tokens)
    truncate_log(database)
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"sales" in written
    assert [token for token in tokens if token.rpartition("-")[2].encode() in written] == []


def test_keys_are_listed_and_revoked_by_id(database: Engine) -> None:
    key, _ = create_key(database, "sales")
    assert list_keys(database) == [key]
    revoked = revoke_key(database, key.id)
    assert revoked.revoked_at is not None
    assert revoke_key(database, key.id) == revoked
    with pytest.raises(NotFound, match=r"keys\.py list"):
        revoke_key(database, "none")


@pytest.mark.parametrize("owner", ["", "a:b", "../a", "a" * 65, "a b", "ü"])
def test_an_owner_is_a_name_that_can_be_part_of_a_models(database: Engine, owner: str) -> None:
    with pytest.raises(ConfigError, match="owner"):
        create_key(database, owner)
    assert list_keys(database) == []


def test_an_address_is_loopback_only_as_one() -> None:
    good = [host for host in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1") if not is_loopback(host)]
    others = ("localhost", "", "0.0.0.0", "::", "10.1.1.1", "::ffff:10.1.1.1", None)
    bad = [host for host in others if is_loopback(host)]
    assert (good, bad) == ([], [])
