"""Everything that is checked before anything starts: all faults at once, and what will be served if there are none.

Looks at folders, manifests and sockets only: loads no weight and starts no process. Does not know the engine's options.
"""

import errno
import shutil
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.config import CONF_DIR, PathsConfig
from core.errors import ConfigError, LoamError
from core.layout import DataDir, check_name, sha256_bytes
from core.manifest import AdapterManifest, BaseIdentity, ModelKind, ModelManifest, read_chat_template
from retrieval.config import ChunkingConfig, EmbedderConfig, ParsingConfig, SearchConfig, check_language
from serve.adapter_check import check_served_adapter
from serve.answering import Assistant, AssistantConfig
from serve.catalog import CHATTING, Catalog, Entry, EntryKind
from serve.engine_command import LORA_RANKS, EngineConfig
from serve.gateway import LOOPBACK_HOSTS, GatewayConfig
from serve.job_command import JobsConfig
from serve.jobs import ID_PREFIX
from serve.tuned_models import TunedModel, list_model

DEFAULT_MODEL = "llama-3.2-3b-instruct"
MIN_FREE_BYTES = 256 * 2**20
MIN_LORA_RANK = 16
LEAST_LORAS, MOST_LORAS = 4, 32


@dataclass(slots=True)
class ModelChoice:
    """What stands under `model`."""

    name: str = DEFAULT_MODEL


@dataclass(slots=True)
class ServeConfig:
    """The whole configuration of serve/run.py.

    Attributes:
        paths: Where the data directory is.
        model: The base model; None: the adapters' base, else the only model there is, else DEFAULT_MODEL.
        hardware: The profile of the machine; it has chosen `engine`, and training reads its other values.
        engine: vLLM.
        gateway: The endpoint.
        adapters: Run ids; None: every finished run that fits.
        assistants: By name.
        embedder: What the stores were embedded with; /v1/embeddings serves it, citations are checked with it.
        search: How passages are found.
        chunking: How uploaded documents are cut where the request does not say.
        parsing: What parsing one of them may cost.
        language: What the words of vector stores that are made are stemmed as; None: english.
        template_date: What Llama 3 templates print, where no adapter says otherwise.
        jobs: Fine-tuning through the API.
    """

    paths: PathsConfig = field(default_factory=PathsConfig)
    model: ModelChoice | None = None
    hardware: dict[str, Any] = field(default_factory=dict)
    engine: EngineConfig = field(default_factory=EngineConfig)
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    adapters: list[str] | None = None
    assistants: dict[str, AssistantConfig] = field(default_factory=dict)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    chunking: ChunkingConfig = field(default_factory=ChunkingConfig)
    parsing: ParsingConfig = field(default_factory=ParsingConfig)
    language: str | None = None
    template_date: str = "26 Jul 2024"
    jobs: JobsConfig = field(default_factory=JobsConfig)

    def __post_init__(self) -> None:
        """Check the language."""
        check_language(self.language)


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """An adapter that will be served.

    Attributes:
        run_id: Its alias.
        name: Its own name, `ft:<base>:<owner>:<suffix>:<id>`.
        path: Its folder.
        manifest: What stands beside it.
    """

    run_id: str
    name: str
    path: Path
    manifest: AdapterManifest


@dataclass(slots=True)
class Plan:
    """What will be served.

    Attributes:
        model: The base model's folder.
        adapters: The adapters, by run id.
        left_out: Of the runs that were not asked for by name: which do not fit, with the reason.
        max_lora_rank: What the engine is started for.
        template_date: What the chat template prints; None where it prints no date.
        catalog: Every name that is served.
        assistants: The assistants, by name.
        listener: The bound socket.
    """

    model: Path
    adapters: list[ServedAdapter]
    left_out: list[str]
    max_lora_rank: int
    template_date: str | None
    catalog: Catalog
    assistants: dict[str, Assistant]
    listener: socket.socket


def make_plan(
    config: ServeConfig, data: DataDir, stores: set[str], *, has_key: bool, tuned: Sequence[TunedModel] = ()
) -> Plan:
    """Check everything that serving needs.

    Args:
        config: The configuration.
        data: The data directory.
        stores: Names of the stores that exist.
        has_key: Whether anybody has a key that the gateway would take.
        tuned: Models that came of fine-tuning jobs; they are checked when everything else is known.

    Returns:
        What will be served.

    Raises:
        ConfigError: One or more faults; all are listed.
    """
    faults: list[str] = []
    faults += find_gateway_faults(config.gateway, has_key=has_key) + find_disk_faults(data.root)
    model = choose_model(config, data, faults)
    embedder = find_model(data, config.embedder.name, ModelKind.EMBEDDER, faults)
    reranker = None
    if config.search.reranker is not None:
        reranker = find_model(data, config.search.reranker, ModelKind.RERANKER, faults)
    adapters, left_out = ([], []) if model is None else choose_adapters(config, data, model, faults)
    ranks = [int(adapter.manifest.lora["rank"]) for adapter in adapters] + read_ranks(data, model, tuned)
    max_rank = config.engine.max_lora_rank or fit_rank(ranks)
    catalog = Catalog()
    if model is not None and embedder is not None:
        fill_catalog(catalog, model, adapters, config.gateway.granted_adapters)
        add_search_models(catalog, embedder, reranker)
        faults += find_grant_faults(config.gateway.granted_adapters, adapters)
        for made in tuned:
            list_model(catalog, made)
        faults += add_assistants(catalog, config.assistants, stores)
    date = choose_template_date(config, model, adapters, faults)
    listener = bind_listener(config.gateway, faults)
    if faults or model is None or listener is None:
        if listener is not None:
            listener.close()
        raise ConfigError(faults[0] if len(faults) == 1 else "".join(f"\n  {fault}" for fault in faults))
    assistants = {entry.name: entry.assistant for entry in catalog.entries.values() if entry.assistant is not None}
    return Plan(model, adapters, left_out, max_rank, date, catalog, assistants, listener)


def find_gateway_faults(config: GatewayConfig, *, has_key: bool) -> list[str]:
    """Check that nobody but this machine can ask without a key, and that the certificate can be used."""
    faults = []
    if config.host not in LOOPBACK_HOSTS and not has_key:
        faults.append(
            f"gateway.host: {config.host} is not loopback, and there is no key. Make one: python scripts/keys.py "
            "create --owner NAME; or use 127.0.0.1"
        )
    if config.tls_cert is not None and config.tls_key is not None:
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(config.tls_cert, config.tls_key, password=lambda: "")  # else it would ask here
        except (OSError, ValueError) as error:
            found = error.strerror if isinstance(error, FileNotFoundError) else str(error) or type(error).__name__
            faults.append(
                f"gateway.tls_cert, gateway.tls_key: wanted a certificate and its key as PEM files, found {found} in "
                f"{config.tls_cert} and {config.tls_key}"
            )
    return faults


def find_disk_faults(root: Path) -> list[str]:
    """Check that the data directory has room for logs and the database."""
    free = shutil.disk_usage(root).free
    if free >= MIN_FREE_BYTES:
        return []
    return [f"{root}: wanted {MIN_FREE_BYTES // 2**20} MiB of free disk, found {free // 2**20}. Free some space"]


def bind_listener(config: GatewayConfig, faults: list[str]) -> socket.socket | None:
    """Bind the gateway's socket at once, so that nobody takes the port while the engine starts."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        found = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror
        faults.append(f"gateway.port: wanted {config.host}:{config.port}, found that {found}. Choose another port")
        return None
    return listener


def choose_model(config: ServeConfig, data: DataDir, faults: list[str]) -> Path | None:
    """Return the base model's folder, or None with a fault."""
    if config.model is not None:
        return find_model(data, config.model.name, ModelKind.LLM, faults)
    bases = {base for run_id in config.adapters or [] if (base := read_base_name(data, run_id))}
    present = list_models(data, ModelKind.LLM)
    if len(bases) > 1:
        faults.append(
            f"adapters: wanted adapters of one base model, found {', '.join(sorted(bases))}. Serve one at a time"
        )
        return None
    if bases:
        return find_model(data, bases.pop(), ModelKind.LLM, faults)
    name = present[0] if len(present) == 1 else DEFAULT_MODEL
    return find_model(data, name, ModelKind.LLM, faults)


def read_base_name(data: DataDir, run_id: str) -> str | None:
    """Return the name of the base model that a run was trained on, or None where there is no such adapter."""
    try:
        return AdapterManifest.read(data.run(run_id) / "adapter").base.name
    except LoamError:
        return None  # choose_adapters reports it


def list_models(data: DataDir, kind: ModelKind) -> list[str]:
    """Return the names of the models of a kind that are there."""
    names = []
    for folder in sorted(data.models.glob("*/")):
        try:
            manifest = ModelManifest.read(folder)
        except LoamError:
            continue
        if manifest.kind is kind:
            names.append(folder.name)
    return names


def find_model(data: DataDir, name: str, kind: ModelKind, faults: list[str]) -> Path | None:
    """Return a model's folder if its manifest is of the right kind and its files are there, else None with a fault."""
    try:
        folder = data.model(name)
        manifest = ModelManifest.read(folder)
    except LoamError as error:
        there = ", ".join(list_models(data, kind)) or "none"
        config_names = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml"))
        faults.append(
            f"{error.message.rstrip('.')}. Models of this kind that are there: {there}. To get {name}: "
            f"python scripts/models.py get {name}. Choices of model=…: {', '.join(config_names)}"
        )
        return None
    missing = [file for file in manifest.files if not (folder / file).is_file()]
    if manifest.kind is not kind:
        faults.append(f"{folder}: wanted a model of the kind {kind.value}, found {manifest.kind.value}")
    elif missing:
        faults.append(
            f"{folder}: {', '.join(missing)} missing. Get the model again: python scripts/models.py get {name}"
        )
    else:
        return folder
    return None


def choose_adapters(
    config: ServeConfig, data: DataDir, model: Path, faults: list[str]
) -> tuple[list[ServedAdapter], list[str]]:
    """Return the adapters to serve, and why others are left out.

    An adapter that was asked for by name and does not fit is a fault; one that was merely found is left out.
    """
    try:
        base = BaseIdentity.of(model)
    except LoamError as error:
        faults.append(error.message)
        return [], []
    asked = config.adapters
    run_ids = asked if asked is not None else find_finished_runs(data)
    served, refused = [], []
    for run_id in dict.fromkeys(run_ids):
        try:
            served.append(check_run(data, run_id, base, config.engine.max_lora_rank or max(LORA_RANKS)))
        except LoamError as error:
            refused.append(error.message)
    if asked is None:
        return served, refused
    faults += refused
    return served, []


def find_finished_runs(data: DataDir) -> list[str]:
    """Return the ids of the command line's runs that have published an adapter; those of jobs have owners."""
    found = sorted(path.parent.parent.name for path in data.runs.glob("*/adapter/manifest.json"))
    return [run_id for run_id in found if not run_id.startswith(ID_PREFIX)]


def read_ranks(data: DataDir, model: Path | None, tuned: Sequence[TunedModel]) -> list[int]:
    """Return the ranks of the jobs' models on a base model; what cannot be read is reported when it is checked."""
    ranks = []
    for made in tuned:
        try:
            manifest = AdapterManifest.read(data.run(made.job_id) / made.folder)
        except LoamError:
            continue
        if model is not None and manifest.base.name == model.name:
            ranks.append(int(manifest.lora["rank"]))
    return ranks


def check_run(data: DataDir, run_id: str, base: BaseIdentity, max_rank: int) -> ServedAdapter:
    """Check that a run's adapter fits the base model and that vLLM can serve it.

    Raises:
        LoamError: It does not; the message says what differs.
    """
    folder = data.run(run_id) / "adapter"
    if run_id.startswith(ID_PREFIX):
        raise ConfigError(f"adapter {run_id}: it came of a fine-tuning job and is its owner's. Leave it out")
    manifest = check_served_adapter(folder, base, max_rank)
    identity = sha256_bytes("".join(sorted(manifest.files.values())).encode())[:8]
    return ServedAdapter(run_id, f"ft:{base.name}:local:{run_id}:{identity}", folder, manifest)


def fit_loras(count: int) -> int:
    """Return how many adapters the engine runs in one batch: as many as are served, and room for some that come later.

    Each has a place in the card's memory; more than there are cost memory for nothing.
    """
    return min(MOST_LORAS, max(LEAST_LORAS, count))


def fit_rank(ranks: list[int]) -> int:
    """Return the smallest rank that vLLM can be started for and that holds every adapter's.

    The engine pads every adapter to this rank, so that a larger one costs time and memory for nothing.
    """
    largest = max([MIN_LORA_RANK, *ranks])
    return next(rank for rank in LORA_RANKS if rank >= largest)


def choose_template_date(
    config: ServeConfig, model: Path | None, adapters: list[ServedAdapter], faults: list[str]
) -> str | None:
    """Return the one date that the base's template must print for all adapters; None where it prints none."""
    if model is None or "date_string" not in read_chat_template(model):
        return None
    dates = {date for adapter in adapters if (date := adapter.manifest.template_date) is not None}
    if len(dates) > 1:
        faults.append(
            f"adapters: wanted one template date, found {', '.join(sorted(dates))}. Serve one at a time, or "
            "train again with the same data.template_date"
        )
    return min(dates, default=config.template_date)


def find_grant_faults(granted: list[str], adapters: list[ServedAdapter]) -> list[str]:
    """Check that what is granted is there."""
    there = [adapter.run_id for adapter in adapters]
    known = ", ".join(there) or "there are none"
    return [
        f"gateway.granted_adapters: wanted run ids that are served ({known}), found {name}"
        for name in granted
        if name not in there
    ]


def fill_catalog(catalog: Catalog, model: Path, adapters: list[ServedAdapter], granted: list[str]) -> None:
    """List the base model, and the adapters with their aliases."""
    created = int((model / "config.json").stat().st_mtime)
    catalog.add(Entry(model.name, EntryKind.BASE, model.name, created))
    for adapter in adapters:
        made, is_granted = adapter.manifest.created_at, adapter.run_id in granted
        catalog.add(Entry(adapter.name, EntryKind.ADAPTER, adapter.name, made, is_granted=is_granted))
        if adapter.run_id not in catalog.entries:
            catalog.add(Entry(adapter.run_id, EntryKind.ALIAS, adapter.name, made, is_granted=is_granted))


def add_search_models(catalog: Catalog, embedder: Path, reranker: Path | None) -> None:
    """List the embedder and, where there is one, the reranker."""
    for folder, kind in ((embedder, EntryKind.EMBEDDER), (reranker, EntryKind.RERANKER)):
        if folder is not None and folder.name not in catalog.entries:
            catalog.add(Entry(folder.name, kind, folder.name, int(folder.stat().st_mtime)))


def add_assistants(catalog: Catalog, assistants: dict[str, AssistantConfig], stores: set[str]) -> list[str]:
    """List the assistants; return the faults of those that cannot work."""
    faults = []
    models = {name: entry for name, entry in catalog.entries.items() if entry.kind in CHATTING}
    for name, assistant in assistants.items():
        key = f"assistants.{name}"
        try:
            check_name(name, key)
        except ConfigError as error:
            faults.append(error.message)
        if name in catalog.entries:
            faults.append(f"{key}: the name is taken by a model. Choose another name")
            continue
        if assistant.model not in models:
            faults.append(f"{key}.model: wanted one of {', '.join(models)}; found {assistant.model!r}")
            continue
        missing = [store for store in assistant.stores if store not in stores]
        if missing:
            faults.append(
                f"{key}.stores: wanted stores that exist ({', '.join(sorted(stores)) or 'there are none'}), found "
                f"{', '.join(missing)}. Make it: python retrieval/run.py action=ingest store={missing[0]} source=FOLDER"
            )
        target = catalog.entries[assistant.model].target
        made = catalog.entries[target].created
        served = Assistant(name, target, assistant)
        catalog.add(Entry(name, EntryKind.ASSISTANT, target, made, assistant=served))
    return faults
