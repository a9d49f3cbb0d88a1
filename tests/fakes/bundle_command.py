"""Makes a small bundle in a process of its own, so that a test can kill it: -m tests.fakes.bundle_command ROOT."""

import sys
from pathlib import Path

from scripts.bundle_create import create_bundle
from tests.fakes.bundles import make_order

create_bundle(make_order(Path(sys.argv[1]), [], models=("mini",)))
