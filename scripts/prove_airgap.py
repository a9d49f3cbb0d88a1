"""Run a command where nothing but loopback exists, and count what tried to leave.

    python scripts/prove_airgap.py COMMAND …

The kernel counts: in a network namespace of its own every packet that has no way out is one more in OutNoRoutes,
whoever sends it, C code and grandchildren included; name servers are set to an address without a way, so that a look-up
counts too. Before the command, one connection and one look-up are tried on purpose, and must be counted, or nothing is
proved. Python processes tell beside it what they tried (closed_room/sitecustomize.py). Ends with the command's code, or
with 1 where something tried to leave. Needs unprivileged user namespaces (unshare -rnm) and Python's standard library.
"""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

AUDIT = Path(__file__).resolve().parent / "closed_room"
FOREIGN = ("192.0.2.1", 9)
"""An address that belongs to nobody (RFC 5737)."""
NAME_SERVER = "nameserver 192.0.2.53\noptions attempts:1 timeout:1\n"
INSIDE = "--inside"
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
SHOWN = 20


@dataclass(frozen=True, slots=True)
class Tally:
    """What tried to leave.

    Attributes:
        packets: That found no way out, by the kernel's count.
        told: What Python processes say that they tried.
    """

    packets: int
    told: list[dict[str, str]]


def main() -> None:
    """Go into the room, or do there what is to be done."""
    words = sys.argv[1:]
    if words[:1] == [INSIDE]:
        sys.exit(run_inside(words[1:]))
    if not words:
        sys.exit("error: wanted a command, found none. Example: prove_airgap.py make demo")
    with tempfile.TemporaryDirectory(prefix="loam-airgap-") as folder:
        servers = Path(folder, "resolv.conf")
        servers.write_text(NAME_SERVER, encoding="ascii")
        script = 'mount --bind "$1" "$(readlink -f /etc/resolv.conf)" && shift && exec "$@"'
        room = ["unshare", "-rnm", "sh", "-c", script, "sh", str(servers)]
        inside = [sys.executable, str(Path(__file__).resolve()), INSIDE, *words]
        environment = {
            **os.environ,
            "AIRGAP_AUDIT_LOG": str(Path(folder, "audit.jsonl")),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(AUDIT), os.environ.get("PYTHONPATH")])),
        }
        sys.exit(subprocess.run([*room, *inside], env=environment, check=False).returncode)


def run_inside(command: list[str]) -> int:
    """Try the counters, run the command, and tell what tried to leave.

    Returns:
        The command's exit code; 1 where something tried to leave although it ended well.
    """
    log = Path(os.environ["AIRGAP_AUDIT_LOG"])
    raise_loopback()
    try_counters(log)
    before = read_refusals()
    code = subprocess.run(command, check=False).returncode
    code = code if code >= 0 else 128 - code  # as a shell tells of a signal
    tally = Tally(read_refusals() - before, [json.loads(line) for line in log.read_text("utf-8").splitlines()])
    print(
        f"air gap: {tally.packets} packets without a way out, {len(tally.told)} attempts told by Python processes, "
        f"interfaces {', '.join(name for _, name in socket.if_nameindex())}; exit code {code}",
        file=sys.stderr,
    )
    for entry in tally.told[:SHOWN]:
        print(f"  {entry['tried']}  by {entry['by']}", file=sys.stderr)
    return code or int(bool(tally.packets or tally.told))


def raise_loopback() -> None:
    """Set the loopback interface up; a new namespace has it down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        found = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sH14s", b"lo", 0, b""))
        flags = struct.unpack("16sH14s", found)[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", flags | IFF_UP, b""))


def try_counters(log: Path) -> None:
    """Leave on purpose, once by address and once by name, and check that both are counted and told; forget them."""
    counts = [read_refusals()]
    with socket.socket() as probe, suppress(OSError):
        probe.connect(FOREIGN)
    counts.append(read_refusals())
    with suppress(OSError):
        socket.getaddrinfo("loam.invalid", 80)
    counts.append(read_refusals())
    told = log.read_text("utf-8").splitlines() if log.is_file() else []
    if not counts[0] < counts[1] < counts[2] or len(told) < 2:
        sys.exit(f"error: wanted two attempts on purpose to be counted, found {counts} and {told}: nothing is proved")
    log.write_text("", encoding="utf-8")


def read_refusals() -> int:
    """Return how many packets of this namespace had no way out, over IPv4 and IPv6."""
    names, values = (line.split() for line in Path("/proc/net/snmp").read_text("ascii").splitlines()[:2])
    count = int(dict(zip(names, values, strict=True))["OutNoRoutes"])
    six = Path("/proc/net/snmp6")
    if six.is_file():
        rows = dict(line.split() for line in six.read_text("ascii").splitlines())
        count += int(rows.get("Ip6OutNoRoutes", 0))
    return count


if __name__ == "__main__":
    main()
