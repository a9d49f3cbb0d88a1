"""A hook for schemathesis: most requests that it makes up ask for a model that is served, so that they come further.

Named by SCHEMATHESIS_HOOKS in tests/integration/test_serve_fuzz.py; which request gets which name depends on the
request alone, so that a seed replays. Does not know what is asked.
"""

import json
import zlib
from typing import Any

import schemathesis

NAMES = ("tiny-base", "tiny-base", "mine", "hash-embedder", None)
"""Of a base model, an alias, an embedder; None leaves what was made up."""


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: dict[str, Any]) -> None:
    """Put a name into a body that holds one."""
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        name = NAMES[zlib.crc32(json.dumps(body, sort_keys=True).encode()) % len(NAMES)]
        case.body = {**body, "model": name or body["model"]}
