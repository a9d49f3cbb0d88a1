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
        takes_parallel_calls: Whether it renders several of them in one turn.
    """

    name: str
    file: str
    stop_token: str
    prints_date: bool
    takes_tools: bool
    takes_parallel_calls: bool = False

    def date(self, configured: str) -> str | None:
        """Return the date to render with, or None where the template prints none."""
        return configured if self.prints_date else None

    @property
    def text(self) -> str:
        """The template with generation marks."""
        return _read(self.file)


SMOLLM2 = TrainingTemplate("SmolLM2 (ChatML)", "smollm2.jinja", "<|im_end|>", prints_date=False, takes_tools=False)
CHATML = TrainingTemplate("ChatML", "chatml.jinja", "<|im_end|>", prints_date=False, takes_tools=False)
LLAMA_3_1 = TrainingTemplate("Llama 3.1", "llama3_1.jinja", "<|eot_id|>", prints_date=True, takes_tools=True)
LLAMA_3_2 = TrainingTemplate("Llama 3.2", "llama3_2.jinja", "<|eot_id|>", prints_date=True, takes_tools=True)
QWEN_2_5 = TrainingTemplate(
    "Qwen 2.5", "qwen2_5.jinja", "<|im_end|>", prints_date=False, takes_tools=True, takes_parallel_calls=True
)
QWEN_3 = TrainingTemplate(
    "Qwen 3 Instruct 2507",
    "qwen3_instruct_2507.jinja",
    "<|im_end|>",
    prints_date=False,
    takes_tools=True,
    takes_parallel_calls=True,
)

KNOWN_TEMPLATES = {
    "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": SMOLLM2,
    # Plain ChatML as tokenizers carry it: line breaks as such or escaped, with and without a default for the prompt.
    "153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3": CHATML,
    "fcf7a096fe99a48fd9ad2b250bf9237e96e8f48bffec1c7ea4d3f225176cd40e": CHATML,
    "58c1a1f04baa7adaeaba1f90267c3d57d9396f0c1f0129bdde9e76d3c6784af7": CHATML,
    "d7b5b8c7b58f7a6bf868aa46a5f73ee976d7292f40fcb9c3e7a1defd8d235cfb": CHATML,
    "93c0e9aa3629bbd77e68dbc0f5621f6e6b23aa8d74b932595cdb8d64684526d7": LLAMA_3_1,
    "d82792f95932f1c9cef5c4bd992f171225e3bf8c7b609b4557c9e1ec96be819f": LLAMA_3_2,
    "55b2f4a26ac9ee719330a61a0c39d9e538b0e9322212f048326318cff4f8674a": QWEN_2_5,
    "64f85b198065d0fba2a81f37e10ed68161ce2c19a754c7100e67e0ca2ee9c326": QWEN_3,
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
