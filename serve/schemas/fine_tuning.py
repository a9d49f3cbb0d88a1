"""The bodies and queries of the fine-tuning jobs' routes. Does not know what they do."""

import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from serve.schemas.files import QueryModel
from serve.schemas.strict import StrictModel
from serve.schemas.vector_stores import FileId, Metadata

Suffix = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Auto = Literal["auto"]
NOTE_FILTER = re.compile(r"metadata\[.{1,64}\]", re.DOTALL)


class SupervisedHyperparameters(StrictModel):
    """What is learned how often, in what steps; `auto` is the profile's value."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] | None = None
    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] | None = None
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=1000)] | None = None


class DpoHyperparameters(SupervisedHyperparameters):
    """The same for pairs, and how closely to stay by the base model."""

    beta: Auto | Annotated[float, Field(ge=1e-4, le=2)] | None = None


class SupervisedPart(StrictModel):
    """Of a supervised job."""

    hyperparameters: SupervisedHyperparameters | None = None


class DpoPart(StrictModel):
    """Of a DPO job."""

    hyperparameters: DpoHyperparameters | None = None


class Method(StrictModel):
    """How a job learns."""

    type: Literal["supervised", "dpo"]
    supervised: SupervisedPart | None = None
    dpo: DpoPart | None = None

    @model_validator(mode="after")
    def check_part(self) -> "Method":
        """Refuse the part of the other method."""
        if (self.dpo if self.type == "supervised" else self.supervised) is not None:
            raise ValueError(f"wanted the hyperparameters of {self.type} only")
        return self


class JobCreate(StrictModel):
    """A new job."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    training_file: FileId
    validation_file: FileId | None = None
    suffix: Suffix | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    method: Method | None = None
    hyperparameters: SupervisedHyperparameters | None = None
    metadata: Metadata | None = None
    integrations: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def check_one_home(self) -> "JobCreate":
        """Refuse hyperparameters in both places, where they could contradict each other."""
        if self.method is not None and self.hyperparameters is not None:
            raise ValueError("hyperparameters: wanted them in method alone")
        return self

    @property
    def kind(self) -> str:
        """The method's name."""
        return self.method.type if self.method else "supervised"

    def read_hyperparameters(self) -> dict[str, Any]:
        """Return what was asked for, under OpenAI's names."""
        given: SupervisedHyperparameters | None = self.hyperparameters
        if self.method is not None:
            part = self.method.dpo if self.method.type == "dpo" else self.method.supervised
            given = part.hyperparameters if part else None
        return given.model_dump(exclude_none=True) if given else {}


class PageQuery(QueryModel):
    """Which part of a job's events is wanted."""

    after: str | None = Field(None, max_length=256)
    limit: int = Field(20, ge=1, le=1000)


class CheckpointQuery(QueryModel):
    """Which part of a job's checkpoints is wanted."""

    after: str | None = Field(None, max_length=256)
    limit: int = Field(10, ge=1, le=100)


class JobListQuery(QueryModel):
    """Which jobs are wanted: `metadata[key]=value` those with a note, `metadata=null` those without any."""

    model_config = ConfigDict(extra="allow")

    after: str | None = Field(None, max_length=256)
    limit: int = Field(20, ge=1, le=100)
    metadata: Literal["null"] | None = None

    @model_validator(mode="after")
    def check_notes(self) -> "JobListQuery":
        """Refuse whatever is no filter by a note."""
        for name, value in (self.model_extra or {}).items():
            if not NOTE_FILTER.fullmatch(name) or not isinstance(value, str):
                raise ValueError(f"unknown parameter {name[:64]!r}")
        return self

    @property
    def notes(self) -> dict[str, str]:
        """The notes that a job must have."""
        return {name[len("metadata[") : -1]: str(value) for name, value in (self.model_extra or {}).items()}
