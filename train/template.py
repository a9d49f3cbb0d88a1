"""Training chat templates: the model's own rendering, with the assistant's turns marked as what is to be learned.

A template is found by the text of the tokenizer's own template, never by the model's name: ours render the same bytes
(proven in the tests) and add generation marks, the stop token inside them. Does not know what a chat file is.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from core.errors import InputError
from core.layout import sha256_bytes
from core.manifest import read_chat_template

TEMPLATES_DIR = Path(__file__).resolve().parent / "templates"


@dataclass(frozen=True, slots=True)
class TrainingTemplate:
    """One of our templates.

    Attributes:
        name: For people.
        file: Below templates/.
        stop_token: What ends an assistant's turn; the last trained token of each.
        prints_date: Whether it prints a date, which training and serving must agree on.
        takes_tools: Whether it renders tool calls.
    """

    name: str
    file: str
    stop_token: str
    prints_date: bool
    takes_tools: bool

    def date(self, configured: str) -> str | None:
        """Return the date to render with, or None where the template prints none."""
        return configured if self.prints_date else None

    @property
    def text(self) -> str:
        """The template with generation marks."""
        return _read(self.file)


SMOLLM2 = TrainingTemplate("SmolLM2 (ChatML)", "smollm2.jinja", "<|im_end|>", prints_date=False, takes_tools=False)
LLAMA_3_2 = TrainingTemplate("Llama 3.2", "llama3_2.jinja", "<|eot_id|>", prints_date=True, takes_tools=True)

KNOWN_TEMPLATES = {
    "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": SMOLLM2,
    "d82792f95932f1c9cef5c4bd992f171225e3bf8c7b609b4557c9e1ec96be819f": LLAMA_3_2,
}
"""Our template by the SHA-256 of the original's text, spaces at its ends removed."""


def find_template(model_folder: Path) -> TrainingTemplate:
    """Return the training template for a model.

    Args:
        model_folder: A base model with its tokenizer.

    Raises:
        InputError: The model's chat template is none that we have a twin for.
        ContractError: The model has no chat template.
    """
    digest = sha256_bytes(read_chat_template(model_folder).strip().encode())
    template = KNOWN_TEMPLATES.get(digest)
    if template is None:
        raise InputError(
            f"model.name: wanted a model whose chat template is one of {', '.join(_known_names())}; the template of "
            f"{model_folder.name} (sha256 {digest[:12]}) is none of them. Choose another model, or add its template "
            "with generation marks to train/templates/ and its hash to train/template.py.",
            param="model.name",
        )
    return template


def _known_names() -> list[str]:
    return sorted({template.name for template in KNOWN_TEMPLATES.values()})


@cache
def _read(file: str) -> str:
    return (TEMPLATES_DIR / file).read_text(encoding="utf-8")
