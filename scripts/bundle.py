"""Carry Loam into a room without a network: make a bundle, check every byte of it, install from it, go back.

    python scripts/bundle.py create profile=cpu|cuda models=[NAME,…] out=DIR [piece_mib=N] [image=FILE] [sign=KEY]
    python3.11 bundle.py verify [BUNDLE] [signers=FILE]
    python3.11 bundle.py install to=PREFIX [BUNDLE] [signers=FILE]
    python3.11 bundle.py rollback to=PREFIX

This file lies at the top of every bundle, with the few modules that it needs: all but `create` runs on Python 3.11 and
its standard library (bundle_create.CARRIED names them, and a test holds them to it).
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  (what it is run by in the closed room may be anything)
    sys.exit("error: wanted Python 3.11 or later, found " + sys.version.split()[0] + ". Run: python3.11 bundle.py …")
sys.dont_write_bytecode = True  # a bundle holds what its manifest names, and no __pycache__

import importlib.util
import os
import shlex
import signal
from pathlib import Path
from typing import NoReturn

from core.errors import ConfigError, LoamError, describe_os_error

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
OPTIONS = {"verify": {"signers"}, "install": {"signers", "to"}, "rollback": {"to"}}


def read_options(words: list[str], known: set[str]) -> tuple[list[str], dict[str, str]]:
    """Return the plain words and the `key=value` ones of a command line.

    Raises:
        ConfigError: A key is not known.
    """
    plain = [word for word in words if "=" not in word]
    options = dict(word.split("=", 1) for word in words if "=" in word)
    odd = [key for key in options if key not in known] + [word for word in plain if word.startswith("-")]
    if odd:
        raise ConfigError(f"wanted only {', '.join(f'{key}=…' for key in sorted(known))}; found {', '.join(odd)}.")
    return plain, options


def run(words: list[str]) -> None:
    """Do what the command line says.

    Raises:
        LoamError: It was refused.
    """
    action, rest = (words[0], words[1:]) if words else ("", [])
    if action == "create":
        if importlib.util.find_spec("scripts.bundle_create") is None:
            raise ConfigError("create: wanted a checkout with its environment, found a bundle. Run it there.")
        from scripts.bundle_create import run_create

        run_create(rest)
        return
    if action not in OPTIONS:
        raise ConfigError(f"wanted create, verify, install or rollback; found {action!r}.\n\n{__doc__}")
    from scripts.bundle_format import verify_bundle
    from scripts.bundle_install import install, rollback

    plain, options = read_options(rest, OPTIONS[action])
    if action != "verify" and not options.get("to"):
        raise ConfigError(f"{action}: wanted to=PREFIX, found none.")
    bundle = Path(plain[0]) if plain else Path(__file__).resolve().parent
    signers = Path(options["signers"]) if "signers" in options else None
    if action == "verify":
        manifest = verify_bundle(bundle, signers)
        print(f"{bundle}: {manifest.release}, {len(manifest.files)} files, {manifest.size_bytes / 2**30:.2f} GiB, well")
        again = [f"signers={signers}"] if signers else []  # else the installation would compare with nobody
        print("next: " + shlex.join(["python3.11", str(bundle / "bundle.py"), "install", "to=PREFIX", *again]))
    elif action == "install":
        os.umask(0o022)  # every user of the machine may run a release; data/ is made for its owner alone
        install(bundle, Path(options["to"]), signers)
    else:
        print(f"{rollback(Path(options['to']))} is current again")


def main() -> None:
    """Run, and end with one sentence and the right code where something is refused."""
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    try:
        run(sys.argv[1:])
    except (LoamError, OSError) as error:
        refusal = error if isinstance(error, LoamError) else describe_os_error(error, " ".join(sys.argv[1:2]))
        print(f"error: {refusal.message}", file=sys.stderr)
        sys.exit(refusal.exit_code)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


def _stop(number: int, _: object) -> NoReturn:
    """End so that what was begun is taken back; a second signal does not disturb that."""
    for other in STOP_SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    main()
