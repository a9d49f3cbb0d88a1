"""Fine-tuned models that came of jobs: checked, loaded into the engine, listed; retired when nobody uses them.

    adapter on disk → checked → loaded, and seen to answer otherwise than the base → one transaction: listed, job done

What stands in the table is served again after a restart; what does not is invisible. The newest model of an owner's
suffix also answers to `ft:<base>:<owner>:<suffix>`, moved in one step while requests go on with what they began with.
Does not know how a model was trained, nor HTTP.
"""

import asyncio
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy
from sqlalchemy import RowMapping, text

from core.errors import ConfigError, Conflict, EngineUnavailable, LoamError, ModelNotFound
from core.failpoints import reach
from core.layout import sha256_file, sync_directory, write_folder
from core.manifest import AdapterManifest, BaseIdentity, name_checkpoint_adapter
from retrieval.database import read_transaction, write_transaction
from retrieval.uploads import Upload, list_uploads, save_upload
from serve.adapter_check import CONFIG_FILE, WEIGHTS_FILE, check_served_adapter
from serve.archive import Archive
from serve.catalog import Catalog, Entry, EntryKind
from serve.job_events import Figures
from serve.jobs import ID_PREFIX, Job, begin_publishing, find_job, succeed_job, tell
from serve.model_server import Adapter, Upstream

logger = logging.getLogger(__name__)

RESULT_PURPOSE = "fine-tune-results"
CHECKPOINT_MARKER = "COMPLETE.json"
"""The last file of a whole checkpoint; train/checkpoint.py writes it."""
DRAIN_POLL_S = 0.05
SERVER_POLL_S = 0.2
RETIRE_PATIENCE_S = 5.0
"""How long a request that takes a model away waits for those that use it; what is left is done behind it."""


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A row of the table.

    Attributes:
        name: `ft:<base>:<owner>:<suffix>:<id>`, with `:ckpt-step-<n>` behind it for a checkpoint.
        owner: Whose it is.
        job_id: The job that made it; also the training run.
        step: Of a checkpoint; None for what the job was for.
        folder: The adapter's folder in the run's.
        created_at: Unix seconds.
    """

    name: str
    owner: str
    job_id: str
    step: int | None
    folder: str
    created_at: int

    @property
    def alias(self) -> str | None:
        """The name that the newest model of its owner and suffix answers to; None for checkpoints and no suffix."""
        parts = self.name.split(":")
        return ":".join(parts[:4]) if self.step is None and parts[3] else None


def list_tuned(engine: sqlalchemy.Engine) -> list[TunedModel]:
    """Return every model that is to be served, the oldest first."""
    query = text(
        "SELECT m.* FROM fine_tuned_models m JOIN fine_tuning_jobs j ON j.id = m.job_id WHERE m.is_retired = 0 "
        "ORDER BY m.created_at, j.number, m.step IS NULL, m.step"
    )
    with read_transaction(engine) as connection:
        return [_to_model(row) for row in connection.execute(query).mappings()]


def _to_model(row: RowMapping) -> TunedModel:
    return TunedModel(**{key: row[key] for key in TunedModel.__slots__})


def list_model(catalog: Catalog, model: TunedModel) -> None:
    """Let requests find a model, and its alias lead to it."""
    catalog.add(Entry(model.name, EntryKind.ADAPTER, model.name, model.created_at, model.owner))
    if model.alias is not None:
        catalog.add(Entry(model.alias, EntryKind.ALIAS, model.name, model.created_at, model.owner))


class TunedModels:
    """The fine-tuned models of one gateway."""

    def __init__(
        self, archive: Archive, engine: Upstream, catalog: Catalog, base: BaseIdentity, *, max_rank: int
    ) -> None:
        """Begin; `restore` looks at what is there.

        Args:
            archive: The database and the data directory.
            engine: What they are loaded into.
            catalog: Where they are listed.
            base: Identity of the base model that is served.
            max_rank: Largest rank that the engine was started for.
        """
        self.base = base
        self.max_rank = max_rank
        self._archive = archive
        self._engine = engine
        self._catalog = catalog
        self._uses: Counter[str] = Counter()
        self._removals: set[asyncio.Task[None]] = set()

    def restore(self, models: Sequence[TunedModel]) -> list[str]:
        """Check what the table has, and take what cannot be served out of the catalogue; blocks.

        Args:
            models: What `list_tuned` returned and the catalogue lists.

        Returns:
            Why some are left out; the others are loaded when the engine starts.
        """
        left_out = []
        for model in models:
            try:
                manifest = check_served_adapter(self.find_folder(model), self.base, self.max_rank)
            except LoamError as error:
                left_out.append(error.message)
                self._unlist(model)
                continue
            self._engine.expect(Adapter(model.name, self.find_folder(model), manifest.canary, is_needed=False))
        self._remove_leftovers()
        return left_out

    def drop_refused(self) -> None:
        """Take what the engine has refused at its start out of the catalogue."""
        for name in self._engine.refused:
            self._catalog.remove(name)

    def find_folder(self, model: TunedModel) -> Path:
        """Return where a model's adapter lies."""
        return self._archive.data.run(model.job_id) / model.folder

    def _remove_leftovers(self) -> None:
        """Remove the folders of models that were retired when a gateway was killed."""
        query = text("SELECT * FROM fine_tuned_models WHERE is_retired")
        with read_transaction(self._archive.engine) as connection:
            rows = connection.execute(query).mappings().all()
        for row in rows:
            self._remove_files(_to_model(row))

    async def publish(self, job: Job) -> None:
        """Validate and serve what a job has trained, and end the job; everything happens or nothing that anybody sees.

        Its events say what happens, and that nothing happens while no model server can be asked. May be cancelled once
        the job shall be.

        Raises:
            LoamError: The adapter cannot be served; it stays where it is.
        """
        run = self._archive.data.run(job.id)
        models = await self._archive.run(self._prepare, job)
        if not await self._archive.run(begin_publishing, self._archive.engine, job.id, len(models) - 1):
            return
        await self._wait_for_server(job)
        loaded: list[TunedModel] = []
        is_done = False
        try:
            for model in models:
                manifest = await self._archive.run(
                    check_served_adapter, self.find_folder(model), self.base, self.max_rank
                )
                loaded.append(model)  # whatever comes of it: an answer that is not waited for may still load it
                await self._engine.add_adapter(Adapter(model.name, self.find_folder(model), manifest.canary))
            words = "Loaded into the model server: seeing that it answers otherwise than the base model"
            await self._archive.run(tell, self._archive.engine, job.id, words)
            await self._wait_for_server(job)
            await self._engine.check_difference(models[-1].name)
            reach("job.loaded")
            figures = await self._archive.run(Figures.read, run / "events.jsonl")
            result = await self._archive.run(self._keep_results, job, figures)
            reach("job.results_kept")
            is_done = await self._archive.run(self._settle, job, models, result, figures)
        finally:
            if is_done:
                for model in models:
                    list_model(self._catalog, model)
            else:
                for model in loaded:
                    await self._engine.remove_adapter(model.name)

    async def _wait_for_server(self, job: Job) -> None:
        """Wait until a model server can be asked: without one, nothing would be seen of what a model answers."""
        is_told = False
        while True:
            try:
                return self._engine.check_ready()
            except EngineUnavailable as error:
                if not is_told:
                    words = f"Waiting for the model server: {error.message}"
                    await self._archive.run(tell, self._archive.engine, job.id, words)
                is_told = True
                await asyncio.sleep(SERVER_POLL_S)

    def _prepare(self, job: Job) -> list[TunedModel]:
        """Return the models of a finished run, its checkpoints first, each with a folder of its own."""
        run = self._archive.data.run(job.id)
        now = int(time.time())
        name = f"ft:{job.model}:{job.owner}:{job.suffix or ''}:{job.id.removeprefix(ID_PREFIX)[:8]}"
        for partial in run.glob(".adapter*.tmp"):
            shutil.rmtree(partial)  # of a gateway that was killed in the middle of this
        models = []
        for checkpoint in sorted((run / "checkpoints").glob("checkpoint-*"), key=_step_of):
            if is_whole(checkpoint):
                step = _step_of(checkpoint)
                folder = name_checkpoint_adapter(step)
                if not (run / folder).is_dir():
                    copy_checkpoint(checkpoint, run / folder, run / "adapter")
                models.append(TunedModel(f"{name}:ckpt-step-{step}", job.owner, job.id, step, folder, now))
        return [*models, TunedModel(name, job.owner, job.id, None, "adapter", now)]

    def _keep_results(self, job: Job, figures: Figures) -> Upload:
        """Keep the run's figures as a file of the owner's; the one of an attempt that was killed counts."""
        name = f"step_metrics_{job.id}.csv"
        for known in list_uploads(self._archive.engine, job.owner):
            if known.name == name and known.purpose == RESULT_PURPOSE:
                return known
        content = figures.write_results()
        return save_upload(
            self._archive.engine, self._archive.data, [content], owner=job.owner, name=name, purpose=RESULT_PURPOSE,
            max_bytes=max(len(content), self._archive.max_file_bytes),
        )  # fmt: skip

    def _settle(self, job: Job, models: list[TunedModel], result: Upload, figures: Figures) -> bool:
        """Put the models into the table and end the job, together; return whether the job still wanted that."""
        statement = text(
            "INSERT INTO fine_tuned_models (name, owner, job_id, step, folder, created_at) "
            "VALUES (:name, :owner, :job_id, :step, :folder, :created_at)"
        )
        tokens = max((event["tokens"] for event in figures.steps.values()), default=None)
        with write_transaction(self._archive.engine) as connection:
            is_done = succeed_job(
                connection, job.id, fine_tuned_model=models[-1].name, result_file=result.id, trained_tokens=tokens
            )
            if is_done:
                for model in models:
                    connection.execute(statement, {key: getattr(model, key) for key in TunedModel.__slots__})
                reach("job.written")
        reach("job.settled")
        return is_done

    def list_checkpoints(self, job_id: str, owner: str) -> list[TunedModel]:
        """Return a job's checkpoints that are served, the newest first; blocks.

        Raises:
            NotFound: There is no such job, or it is another's.
        """
        find_job(self._archive.engine, job_id, owner)
        query = text(
            "SELECT * FROM fine_tuned_models WHERE job_id = :job AND step IS NOT NULL AND NOT is_retired "
            "ORDER BY step DESC"
        )
        with read_transaction(self._archive.engine) as connection:
            rows = connection.execute(query, {"job": job_id}).mappings().all()
        return [_to_model(row) for row in rows]

    def hold(self, name: str) -> Callable[[], None]:
        """Note that a request uses a name; return what takes the note back. No await may lie between finding and this.

        Args:
            name: The adapter's own name, or any other.
        """
        self._uses[name] += 1

        def release() -> None:
            self._uses[name] -= 1
            if not self._uses[name]:
                del self._uses[name]

        return release

    async def drain(self, patience_s: float) -> None:
        """Wait until no request uses any model, for some seconds at most."""
        deadline = time.monotonic() + patience_s
        while self._uses.total() > 0 and time.monotonic() < deadline:  # noqa: ASYNC110  (as in _remove)
            await asyncio.sleep(DRAIN_POLL_S)

    async def retire(self, name: str, owner: str) -> None:
        """Take a model away for good: no new request finds it, those that use it end, then it is unloaded and removed.

        Raises:
            ModelNotFound: There is none, or it is another's.
            ConfigError: It did not come of a job.
            Conflict: An assistant answers with it, or its owner has given it a name.
        """
        entry = self._catalog.get(name, owner)
        entry = self._catalog.get(entry.target, owner) if entry.kind is EntryKind.ALIAS else entry
        model = await self._archive.run(self._find_own, entry.name, owner)
        if model is None:
            raise ConfigError(
                f"The model {name!r} did not come of a fine-tuning job: only the operator can take it away.",
                param="model",
            )
        users = ", ".join(f"{user.kind.value} {user.name}" for user in self._catalog.list_users(model.name))
        if users:
            raise Conflict(f"The model {name!r} is what {users} stands for. Move or delete that first.")
        await self._archive.run(self._mark_retired, model)
        reach("model.retired")
        self._unlist(model)
        removal = asyncio.create_task(self._remove(model), name=f"remove {model.name}")
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        await asyncio.wait({removal}, timeout=RETIRE_PATIENCE_S)

    async def _remove(self, model: TunedModel) -> None:
        """Wait for the requests that use a model, then unload it and remove its files."""
        while self._uses[model.name] > 0:  # noqa: ASYNC110  (an event for each request would cost each request)
            await asyncio.sleep(DRAIN_POLL_S)
        await self._engine.remove_adapter(model.name)
        await self._archive.run(self._remove_files, model)

    async def close(self) -> None:
        """Leave what is still in use to the next start."""
        for removal in self._removals:
            removal.cancel()
        await asyncio.gather(*self._removals, return_exceptions=True)

    def _find_own(self, name: str, owner: str) -> TunedModel | None:
        query = text("SELECT * FROM fine_tuned_models WHERE name = :name AND owner = :owner AND NOT is_retired")
        with read_transaction(self._archive.engine) as connection:
            row = connection.execute(query, {"name": name, "owner": owner}).mappings().first()
        return None if row is None else _to_model(row)

    def _mark_retired(self, model: TunedModel) -> None:
        statement = text("UPDATE fine_tuned_models SET is_retired = 1 WHERE name = :name AND NOT is_retired")
        with write_transaction(self._archive.engine) as connection:
            if not connection.execute(statement, {"name": model.name}).rowcount:
                raise ModelNotFound(f"The model {model.name!r} does not exist.", param="model")

    def _unlist(self, model: TunedModel) -> None:
        """Take a model out of the catalogue; its alias leads to the newest one that is left."""
        self._catalog.remove(model.name)
        alias = model.alias
        known = self._catalog.entries.get(alias) if alias is not None else None
        if alias is None or known is None or known.target != model.name:
            return
        left = [
            entry
            for name, entry in self._catalog.entries.items()
            if entry.kind is EntryKind.ADAPTER
            and name.startswith(f"{alias}:")
            and name.count(":") == alias.count(":") + 1
        ]
        if left:
            newest = left[-1]  # the catalogue keeps the order in which they came
            self._catalog.add(Entry(alias, EntryKind.ALIAS, newest.name, newest.created, newest.owner))
        else:
            self._catalog.remove(alias)

    def _remove_files(self, model: TunedModel) -> None:
        """Remove a retired model's weights; with the job's last model, what it was trained from goes, too."""
        folder = self.find_folder(model)
        run = folder.parent
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)
        query = text("SELECT EXISTS (SELECT 1 FROM fine_tuned_models WHERE job_id = :job AND NOT is_retired)")
        with read_transaction(self._archive.engine) as connection:
            is_used = connection.execute(query, {"job": model.job_id}).scalar_one()
        if not is_used:
            shutil.rmtree(run / "checkpoints", ignore_errors=True)
        if run.is_dir():
            sync_directory(run)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def is_whole(checkpoint: Path) -> bool:
    """Tell whether a checkpoint was saved to its end and its weights are what was saved."""
    try:
        marker = json.loads((checkpoint / CHECKPOINT_MARKER).read_text(encoding="utf-8"))
        return bool(marker["files"][WEIGHTS_FILE] == sha256_file(checkpoint / WEIGHTS_FILE))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def copy_checkpoint(checkpoint: Path, folder: Path, published: Path) -> None:
    """Make an adapter of a whole checkpoint, with the run's manifest and the hashes of its own files.

    Args:
        checkpoint: A checkpoint of the run; its optimizer and random states stay there.
        folder: Where the adapter goes, whole or not at all.
        published: What the run has published: its manifest and its configuration hold for each checkpoint.
    """
    manifest = AdapterManifest.read(published)
    manifest.parity = manifest.canary = None
    manifest.metrics = {"step": _step_of(checkpoint)}
    with write_folder(folder) as partial:
        shutil.copyfile(checkpoint / WEIGHTS_FILE, partial / WEIGHTS_FILE)
        shutil.copyfile(published / CONFIG_FILE, partial / CONFIG_FILE)
        manifest.write(partial)
