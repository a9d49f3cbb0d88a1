"""A base model's folder without weights: what manifests and identities need, for tests in which nothing is computed."""

import json
from pathlib import Path

from core.layout import DataDir


def write_base(data: DataDir, name: str) -> Path:
    """Write models/<name> with a configuration, a tokenizer file and a chat template."""
    folder = data.model(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"name": name}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder
