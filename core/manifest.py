"""Manifests: what a folder of weights is, proven by SHA-256, in `model.json` and `adapter/manifest.json`.

A model manifest names every file of a base model, embedder or reranker. An adapter manifest says which base model,
tokenizer and chat template an adapter was trained against; serving refuses one that does not fit, and says what
differs. Reads JSON and hashes bytes only: never loads a weight.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from core.errors import AdapterMismatch, ContractError, InvalidFile, NotFound
from core.layout import sha256_bytes, sha256_file, write_json

MODEL_MANIFEST = "model.json"
ADAPTER_MANIFEST = "manifest.json"
ADAPTER_FOLDER = re.compile(r"adapter(-\d+)?")
"""What a run calls its adapter, and a job those of its checkpoints: see `name_checkpoint_adapter`."""
CODE_BEARING_SUFFIXES = frozenset(
    {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".msgpack", ".h5"}
)
"""Weight formats that can carry code, or that nothing here reads: refused by name."""


class ModelKind(Enum):
    """What a model folder holds."""

    LLM = "llm"
    EMBEDDER = "embedder"
    RERANKER = "reranker"


@dataclass(slots=True)
class ModelManifest:
    """What stands in models/<name>/model.json.

    Attributes:
        name: The folder's name, which is the model's name everywhere.
        kind: What the folder holds.
        source: Where it came from: a package and version, a path, or a hub id.
        revision: Commit of the hub repository, or None.
        licence: SPDX name or the licence's own name, for the bundle's notice.
        files: SHA-256 of every file, by its path inside the folder.
    """

    name: str
    kind: ModelKind
    source: str
    revision: str | None
    licence: str
    files: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write the manifest into the model's folder, whole or not at all."""
        write_json(folder / MODEL_MANIFEST, {**asdict(self), "kind": self.kind.value})

    @classmethod
    def read(cls, folder: Path) -> "ModelManifest":
        """Read the manifest of a model folder.

        Raises:
            NotFound: There is no manifest.
            ContractError: It cannot be understood.
        """
        values = _read_json(folder / MODEL_MANIFEST, "python scripts/models.py list")
        try:
            _refuse_odd_files(values["files"])
            return cls(**{**values, "kind": ModelKind(values["kind"])})
        except (KeyError, TypeError, ValueError) as error:
            raise ContractError(
                f"{folder / MODEL_MANIFEST}: not a model manifest ({error}). Import the model again."
            ) from error


@dataclass(slots=True)
class BaseIdentity:
    """What an adapter depends on in its base model; equal identities mean that the adapter fits.

    Attributes:
        name: The base model's name.
        config_sha256: Of config.json.
        tokenizer_sha256: Of tokenizer.json.
        chat_template_sha256: Of the chat template's text.
    """

    name: str
    config_sha256: str
    tokenizer_sha256: str
    chat_template_sha256: str

    @classmethod
    def of(cls, folder: Path) -> "BaseIdentity":
        """Compute the identity of a model folder, named as the folder is."""
        for name in ("config.json", "tokenizer.json"):
            if not (folder / name).is_file():
                raise NotFound(f"{folder}: wanted a model with {name}, found none. Run: python scripts/models.py list")
        return cls(
            name=folder.name,
            config_sha256=sha256_file(folder / "config.json"),
            tokenizer_sha256=sha256_file(folder / "tokenizer.json"),
            chat_template_sha256=sha256_bytes(read_chat_template(folder).encode()),
        )


@dataclass(slots=True)
class Parity:
    """How alike PEFT and vLLM answer with an adapter, greedily, on held prompts (scripts/parity.py).

    Attributes:
        prompts: How many were asked.
        equal_prompts: Share of them that both answered with the same tokens to the end.
        tokens: Tokens that PEFT answered.
        equal_tokens: Share of them up to the first difference in each answer; what follows one has another context.
        mean_difference: Mean absolute difference of the log-probabilities of the equal tokens, in nats.
        max_difference: The largest.
        largest_gap: Where the answers part: by how much PEFT held its own token for more likely than vLLM's, in nats,
            at most; a small one is a tie that rounding decides. None where they never part.
        dtype: Of the base's weights on both sides.
        versions: Of the packages on both sides.
        measured_at: Unix seconds.
    """

    prompts: int
    equal_prompts: float
    tokens: int
    equal_tokens: float
    mean_difference: float
    max_difference: float
    largest_gap: float | None
    dtype: str
    versions: dict[str, str]
    measured_at: int


@dataclass(slots=True)
class Canary:
    """A prompt that shows whether an adapter is at work: with it the answer begins otherwise than without.

    Attributes:
        prompt_ids: Token ids of the prompt.
        tokens: What the adapter answers first, greedily.
        base_tokens: What the base answers instead.
        text: The adapter's tokens as text.
        base_text: The base's.
        margin: Lead of the adapter's tokens over the second most likely ones, the smallest, in nats.
    """

    prompt_ids: list[int]
    tokens: list[int]
    base_tokens: list[int]
    text: str
    base_text: str
    margin: float


@dataclass(slots=True)
class AdapterManifest:
    """What stands in runs/<run_id>/adapter/manifest.json.

    Attributes:
        run_id: The run that made the adapter.
        base: The base model that it was trained on.
        method: `sft` or `dpo`.
        lora: rank, alpha, dropout, rslora and targets.
        quantization: How the base was held in training: `nf4` with its settings, or `none`.
        data: For `train` and `valid`: path, SHA-256, rows, tokens.
        seed: Of the run.
        template_date: The date that the chat template was given (Llama 3 prints it), as `26 Jul 2024`; None where the
            template has none.
        metrics: Final figures: steps, losses, tokens/s.
        versions: Of the packages that decide the result.
        files: SHA-256 of every other file in the adapter's folder.
        created_at: Unix seconds.
        parity: How alike PEFT and vLLM answer with it; None where nobody has measured.
        canary: What the server asks to see that the adapter is at work; None where none was found or looked for.
        hardware: What the run ended on: name, threads and processes. Other threads sum in another order, so equal bytes
            can be expected of equal ones only.
    """

    run_id: str
    base: BaseIdentity
    method: str
    lora: dict[str, Any]
    quantization: dict[str, Any]
    data: dict[str, Any]
    seed: int
    template_date: str | None
    metrics: dict[str, Any]
    versions: dict[str, str]
    created_at: int
    files: dict[str, str] = field(default_factory=dict)
    parity: Parity | None = None
    canary: Canary | None = None
    hardware: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Hash the folder's files into the manifest and write it, whole or not at all."""
        self.files = hash_files(folder)
        self.save(folder)

    def save(self, folder: Path) -> None:
        """Write the manifest with the hashes that it has, whole or not at all: what is found out later goes in so."""
        write_json(folder / ADAPTER_MANIFEST, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "AdapterManifest":
        """Read the manifest of an adapter folder.

        Raises:
            NotFound: There is no manifest.
            ContractError: It cannot be understood.
        """
        values = _read_json(folder / ADAPTER_MANIFEST, "python train/run.py")
        parity, canary = values.get("parity"), values.get("canary")
        try:
            parts = {
                "base": BaseIdentity(**values["base"]),
                "parity": Parity(**parity) if parity else None,
                "canary": Canary(**canary) if canary else None,
            }
            _refuse_odd_files(values.get("files", {}))
            return cls(**{**values, **parts})
        except (KeyError, TypeError) as error:
            raise ContractError(
                f"{folder / ADAPTER_MANIFEST}: not an adapter manifest ({error}). Train again."
            ) from error


def read_chat_template(folder: Path) -> str:
    """Return the text of a model folder's chat template.

    Raises:
        ContractError: The folder has none.
    """
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    tokenizer_config = folder / "tokenizer_config.json"
    if tokenizer_config.is_file():
        template = json.loads(tokenizer_config.read_text(encoding="utf-8")).get("chat_template")
        if isinstance(template, str):
            return template
    raise ContractError(f"{folder}: wanted a chat template, found none. Fine-tuning and chat need an instruct model.")


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder by relative path, the manifests themselves left out.

    Raises:
        InvalidFile: A file is a link or of a format that can carry code.
    """
    refuse_code_bearing(folder)
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MODEL_MANIFEST, ADAPTER_MANIFEST)
    }


def refuse_code_bearing(folder: Path) -> None:
    """Check that a folder holds no weights in a format that can carry code, and no link out of it.

    Raises:
        InvalidFile: It does; every such file is named.
    """
    refused = [path for path in folder.rglob("*") if path.suffix.lower() in CODE_BEARING_SUFFIXES or path.is_symlink()]
    if refused:
        names = ", ".join(sorted(str(path.relative_to(folder)) for path in refused))
        raise InvalidFile(
            f"{folder}: wanted safetensors weights only, found {names}. Such files can carry code or lead elsewhere; "
            "save the model again with safe_serialization=True."
        )


def verify_files(folder: Path, expected: dict[str, str]) -> None:
    """Check that a folder holds exactly the files that its manifest names, byte for byte.

    Args:
        folder: A model's or adapter's folder.
        expected: SHA-256 by relative path.

    Raises:
        ContractError: A file is missing, changed or extra; all are named.
    """
    found = hash_files(folder)
    faults = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    faults += [f"{name} is not in the manifest" for name in sorted(found.keys() - expected.keys())]
    faults += [
        f"{name} has changed" for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name]
    ]
    if faults:
        raise ContractError(f"{folder}: {'; '.join(faults)}. Import or train it again.")


def check_adapter(folder: Path, base: BaseIdentity, max_rank: int) -> AdapterManifest:
    """Check that an adapter is whole and fits a base model, before it is served.

    Args:
        folder: The adapter's folder.
        base: The identity of the base model that is served.
        max_rank: The largest LoRA rank that the engine was started for.

    Returns:
        The adapter's manifest.

    Raises:
        AdapterMismatch: It was trained against something else, or its rank is too large; every difference is named.
        ContractError: Its files are not those of its manifest.
    """
    manifest = AdapterManifest.read(folder)
    verify_files(folder, manifest.files)
    differences = [
        f"{key}: trained on {trained!r}, served is {served!r}"
        for (key, trained), served in zip(asdict(manifest.base).items(), asdict(base).values(), strict=True)
        if trained != served
    ]
    rank = int(manifest.lora["rank"])
    if rank > max_rank:
        differences.append(f"LoRA rank: trained with {rank}, served at most {max_rank} (engine.max_lora_rank)")
    if differences:
        raise AdapterMismatch(
            f"adapter {manifest.run_id} does not fit base model {base.name}: {'; '.join(differences)}. "
            "Serve the base that it was trained on, or train it again on this one."
        )
    return manifest


def name_checkpoint_adapter(step: int) -> str:
    """Return what a job calls the adapter of its checkpoint at a step, as ADAPTER_FOLDER reads it."""
    return f"adapter-{step}"


def list_adapters(run: Path) -> list[Path]:
    """Return the folders of the adapters that a run has published: its own, and those of a job's checkpoints."""
    return sorted(path for path in run.glob("adapter*") if ADAPTER_FOLDER.fullmatch(path.name) and path.is_dir())


def _refuse_odd_files(files: object) -> None:
    """Refuse a manifest whose `files` are no object.

    Raises:
        TypeError: They are something else.
    """
    if not isinstance(files, dict):
        raise TypeError(f"files: wanted an object, found {type(files).__name__}")


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    if not path.is_file():
        raise NotFound(f"{path}: wanted a manifest, found none. Run: {remedy}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ContractError(f"{path}: not JSON ({error}). Make it again: {remedy}") from error
    if not isinstance(values, dict):
        raise ContractError(f"{path}: wanted a JSON object, found {type(values).__name__}. Make it again: {remedy}")
    return values
