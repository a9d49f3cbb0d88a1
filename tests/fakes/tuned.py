"""A fine-tuned model that no job trained: files, rows, loaded into the fake vLLM, listed."""

import time

from sqlalchemy import text

from core.manifest import AdapterManifest, BaseIdentity, name_checkpoint_adapter
from retrieval.database import write_transaction
from serve.model_server import Adapter
from serve.tuned_models import TunedModel, list_model
from tests.fakes.engine import BASE
from tests.fakes.gateway import RunningGateway
from tests.fakes.trainer import write_adapter_config, write_weights


def add_tuned(gateway: RunningGateway, owner: str, job_id: str, step: int | None = None) -> TunedModel:
    """Make a model of a job that is there."""
    data = gateway.parts.archive.data
    folder = data.run(job_id) / ("adapter" if step is None else name_checkpoint_adapter(step))
    folder.mkdir(parents=True)
    write_weights(folder / "adapter_model.safetensors", 8, 1.0)
    write_adapter_config(folder / "adapter_config.json", BASE, 8)
    base = BaseIdentity.of(data.model(BASE))
    AdapterManifest(job_id, base, "sft", {"rank": 8}, {}, {}, 1, None, {}, {}, int(time.time())).write(folder)
    name = f"ft:{BASE}:{owner}:s:{job_id.rpartition('-')[2][:8]}" + (f":ckpt-step-{step}" if step else "")
    model = TunedModel(name, owner, job_id, step, folder.name, int(time.time()))
    with write_transaction(gateway.database) as connection:
        connection.execute(
            text(
                "INSERT INTO fine_tuned_models (name, owner, job_id, step, folder, created_at) "
                "VALUES (:name, :owner, :job_id, :step, :folder, :created_at)"
            ),
            {key: getattr(model, key) for key in TunedModel.__slots__},
        )
    gateway.run(gateway.engine.add_adapter(Adapter(name, folder)))
    list_model(gateway.parts.catalog, model)
    return model
