"""Make, list and revoke the gateway's API keys; a running gateway knows at once.

    python scripts/keys.py create --owner NAME [--admin] [--data-dir data]   prints the key, this once and never again
    python scripts/keys.py list                                              every key by its id, without its secret
    python scripts/keys.py revoke ID                                         refused from the next request on

The key goes to standard output, the rest to standard error: KEY=$(python scripts/keys.py create --owner sales)
"""

from core.entry import begin_program

begin_program()

import argparse
import shlex
import sys
import time
from pathlib import Path

from sqlalchemy import Engine

from core.config import run_command
from core.errors import NotFound
from core.layout import DataDir, default_data_dir
from retrieval.database import open_database
from serve.keys import Key, create_key, list_keys, revoke_key


def main() -> None:
    """Read the command line and do it."""
    arguments = parse_arguments()
    database = DataDir(arguments.data_dir).database
    if arguments.run is not run_create and not database.is_file():  # the first key makes one
        raise NotFound(
            f"data_dir: wanted a database with keys, found none at {database}. Name the data directory by --data-dir "
            "or LOAM_DATA_DIR; where there is none yet: python scripts/keys.py create --owner NAME",
            param="data_dir",
        )
    engine = open_database(database)
    try:
        arguments.run(engine, arguments)
    finally:
        engine.dispose()


def parse_arguments() -> argparse.Namespace:
    """Return the command line's values."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data-dir", type=Path, default=default_data_dir(), help="default: LOAM_DATA_DIR, else data")
    parser = argparse.ArgumentParser(description="Make, list and revoke the gateway's API keys.")
    commands = parser.add_subparsers(required=True)
    create = commands.add_parser("create", parents=[shared], help="make a key and print it once")
    create.add_argument("--owner", required=True, help="whose objects its requests see and make")
    create.add_argument("--admin", action="store_true", help="open the operators' routes, too")
    create.set_defaults(run=run_create)
    commands.add_parser("list", parents=[shared], help="show every key without its secret").set_defaults(run=run_list)
    revoke = commands.add_parser("revoke", parents=[shared], help="make a key worthless")
    revoke.add_argument("id", help="as `list` shows it; the middle part of the key")
    revoke.set_defaults(run=run_revoke)
    return parser.parse_args()


def run_create(engine: Engine, arguments: argparse.Namespace) -> None:
    """Make a key and print it."""
    key, token = create_key(engine, arguments.owner, is_admin=arguments.admin)
    print(token)
    tell(f"key {key.id} of owner {key.owner}{' (admin)' if key.is_admin else ''}. It is kept nowhere: copy it now.")
    tell("To use it: export OPENAI_API_KEY=KEY")


def run_list(engine: Engine, arguments: argparse.Namespace) -> None:
    """Print a line for each key."""
    keys = list_keys(engine)
    for key in keys:
        print(describe_key(key))
    if not keys:
        where = shlex.quote(str(arguments.data_dir))
        tell(f"There are no keys. Make one: python scripts/keys.py create --owner NAME --data-dir {where}")


def run_revoke(engine: Engine, arguments: argparse.Namespace) -> None:
    """Revoke a key."""
    print(describe_key(revoke_key(engine, arguments.id)))


def describe_key(key: Key) -> str:
    """Return a key as one line."""
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(key.created_at))
    state = "good"
    if key.revoked_at is not None:
        state = time.strftime("revoked %Y-%m-%d %H:%M:%S", time.gmtime(key.revoked_at))
    return f"{key.id}  {key.owner}  {'admin' if key.is_admin else 'user'}  made {made}  {state}"


def tell(words: str) -> None:
    """Say something that is no result."""
    print(words, file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
