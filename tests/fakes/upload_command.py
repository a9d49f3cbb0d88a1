"""Takes files and tells each one's id and hash once it is kept: what the upload tests kill, trace and rob of its disk.

python -m tests.fakes.upload_command DATA_DIR SEED COUNT
"""

import random
import sys
from pathlib import Path

from core.layout import DataDir, sha256_bytes
from retrieval.database import open_database
from retrieval.uploads import save_upload

MAX_BYTES = 1 << 20


def main() -> None:
    """Keep COUNT files of random bytes."""
    data, chance = DataDir(Path(sys.argv[1])), random.Random(int(sys.argv[2]))
    engine = open_database(data.database)
    for number in range(int(sys.argv[3])):
        pieces = [chance.randbytes(chance.randrange(1, 4000)) for _ in range(chance.randrange(1, 6))]
        name = f"../{number}.txt"
        upload = save_upload(
            engine, data, iter(pieces), owner="local", name=name, purpose="assistants", max_bytes=MAX_BYTES
        )
        sys.stdout.write(f"kept {upload.id} {sha256_bytes(b''.join(pieces))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
