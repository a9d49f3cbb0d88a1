"""Compare PEFT and vLLM on a run's adapter: `python scripts/parity.py run=ID [prompts=FILE]`.

Both answer the same held prompts greedily, from the same token ids, with the base in the dtype in which it is served:
PEFT in this process, then vLLM started as serving starts it. What they agree on is written into the adapter's manifest,
and so is a canary: the prompt on which adapter and base differ most surely, which the server asks after each start.
Exit code 6 where they differ by more than rounding explains. Keys stand in conf/parity.yaml.
"""

from core.entry import begin_program

begin_program()

import asyncio
import dataclasses
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING, DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from core.config import PathsConfig, load_config, run_app
from core.errors import ConfigError, ContractError, InputError
from core.layout import DataDir
from core.logs import configure_logging
from core.manifest import AdapterManifest, BaseIdentity, Canary, Parity
from core.next_command import write_next_command
from serve.engine import Engine
from serve.engine_command import LORA_RANKS, EngineConfig
from serve.hardware import fill_engine_config
from serve.model_server import Adapter
from serve.preflight import ServedAdapter, check_run, fit_rank
from serve.progress import CountProgress
from serve.trial import ask, run_engine
from train.config import TrainConfig, resolve_path
from train.export import read_versions
from train.template import find_template

if TYPE_CHECKING:
    from peft import PeftModel

CANARY_TOKENS = 8
"""Tokens of an answer that the server asks for: adapter and base must differ within them."""
TOP_TOKENS = 20
TOLERANCES = {"float32": 0.01, "bfloat16": 0.5, "float16": 0.1}
"""Nats by which two right programs may differ on one token, by dtype: sums in another order, rounded."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@dataclass(slots=True)
class ParityConfig:
    """What scripts/parity.py can be told.

    Attributes:
        run: Id of the finished run.
        prompts: File of rows whose prompts are asked, in any format that training reads; None: the run's held-out rows.
        rows: How many, spread evenly over the file.
        max_tokens: Most tokens of an answer.
        tolerance: Largest difference of a log-probability, in nats; None: by the dtype.
        paths: Where the data directory is.
        hardware: The profile of the machine; it has chosen `engine`.
        engine: vLLM, as in serving.
    """

    run: str = MISSING
    prompts: str | None = None
    rows: int = 16
    max_tokens: int = 32
    tolerance: float | None = None
    paths: PathsConfig = field(default_factory=PathsConfig)
    hardware: dict[str, Any] = field(default_factory=dict)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for key, value, low in (("rows", self.rows, 1), ("max_tokens", self.max_tokens, 1)):
            if value < low:
                raise ConfigError(f"{key}: wanted at least {low}, found {value}", param=key)
        if self.tolerance is not None and self.tolerance <= 0:
            raise ConfigError(f"tolerance: wanted more than 0, found {self.tolerance}", param="tolerance")


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer.

    Attributes:
        tokens: Its token ids, a stop token included.
        logprobs: Log-probability of each.
        tops: For each position the most likely tokens with their log-probabilities, in order; empty where not asked.
    """

    tokens: list[int]
    logprobs: list[float]
    tops: list[dict[int, float]]

    def read_margin(self, position: int) -> float:
        """Return the lead of the most likely token over the second."""
        first, second = list(self.tops[position].values())[:2]
        return first - second


def read_prompts(config: ParityConfig, data: DataDir, model: Path) -> list[list[int]]:
    """Return the token ids of the prompts: everything before the last answer, rendered as in training.

    Raises:
        InputError: There is no file of prompts.
    """
    from train.data import check_data
    from train.encoding import encode_chat
    from train.model import load_tokenizer
    from train.tokens import IGNORED

    trained = load_config(DictConfig(OmegaConf.load(data.run(config.run) / "config.yaml")), TrainConfig)
    path = config.prompts or trained.data.valid
    if path is None:
        raise InputError("prompts: the run has no held-out rows. Give a file of chats: prompts=chats.jsonl")
    template = find_template(model)
    tokenizer, date = load_tokenizer(model), template.date(trained.data.template_date)
    file = check_data(resolve_path(path), trained.data, template, "prompts")
    wanted = {index * file.rows // config.rows for index in range(min(config.rows, file.rows))}
    prompts = []
    for index, (_, row) in enumerate(file.read()):
        if index in wanted or file.rows <= config.rows:
            chat = row if "messages" in row else {**row, "messages": [*row["prompt"], *row["chosen"]]}
            example = encode_chat(chat, tokenizer, template, date)
            learned = [place for place, label in enumerate(example["labels"]) if label != IGNORED]
            start = max(place for place in learned if place - 1 not in learned)  # of the last answer
            prompts.append(example["input_ids"][:start])
    return prompts


def load_peft(model: Path, adapter: Path, config: EngineConfig) -> "PeftModel":
    """Return the base in its served dtype with the adapter on it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from train.model import quiet_libraries

    quiet_libraries()
    device = "cuda" if config.device == "cuda" else "cpu"
    base = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=getattr(torch, config.dtype) if config.dtype else "auto",
        device_map={"": device},
        local_files_only=True,
        use_safetensors=True,
    )
    return PeftModel.from_pretrained(base, adapter, local_files_only=True).eval()


def answer_by_peft(model: "PeftModel", prompt: list[int], max_tokens: int, stop_tokens: set[int]) -> Answer:
    """Answer a prompt greedily, token by token."""
    import torch

    answer = Answer([], [], [])
    ids, cache = torch.tensor([prompt], device=model.device), None
    with torch.inference_mode():
        while len(answer.tokens) < max_tokens and not stop_tokens & set(answer.tokens[-1:]):
            step = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            log_p = torch.log_softmax(step.logits[0, -1].float(), dim=0)  # (V,)
            values, tokens = log_p.topk(TOP_TOKENS)
            answer.tokens.append(int(tokens[0]))
            answer.logprobs.append(float(values[0]))
            answer.tops.append(dict(zip(tokens.tolist(), values.tolist(), strict=True)))
            ids, cache = tokens[None, :1], step.past_key_values
    return answer


async def answer_by_vllm(
    engine: Engine, name: str, prompt: list[int], max_tokens: int, stop_tokens: set[int]
) -> Answer:
    """Let the engine answer a prompt greedily."""
    body = {"model": name, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "logprobs": 1}
    body |= {"return_token_ids": True, "add_special_tokens": False, "stop_token_ids": sorted(stop_tokens)}
    choice = (await ask(engine, "/v1/completions", body))["choices"][0]
    return Answer(choice["token_ids"], choice["logprobs"]["token_logprobs"], [])


def count_common(left: list[int], right: list[int]) -> int:
    """Return how many tokens two answers begin with in common."""
    pairs = zip(left, right, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def compare(ours: list[Answer], served: list[Answer], dtype: str, versions: dict[str, str]) -> Parity:
    """Return how alike two sets of answers to the same prompts are.

    Args:
        ours: PEFT's, with the most likely tokens at each position.
        served: vLLM's.
        dtype: Of the base's weights.
        versions: Of the packages.
    """
    equal, common, differences, gaps = 0, 0, [], []
    for mine, theirs in zip(ours, served, strict=True):
        length = count_common(mine.tokens, theirs.tokens)
        common += length
        equal += mine.tokens == theirs.tokens
        differences += [abs(mine.logprobs[place] - theirs.logprobs[place]) for place in range(length)]
        if length < min(len(mine.tokens), len(theirs.tokens)):
            top = mine.tops[length]
            gaps.append(mine.logprobs[length] - top.get(theirs.tokens[length], min(top.values())))
    tokens = sum(len(answer.tokens) for answer in ours)
    return Parity(
        prompts=len(ours),
        equal_prompts=round(equal / len(ours), 4),
        tokens=tokens,
        equal_tokens=round(common / tokens, 4),
        mean_difference=round(sum(differences) / max(1, len(differences)), 6),
        max_difference=round(max(differences, default=0.0), 6),
        largest_gap=round(max(gaps), 6) if gaps else None,
        dtype=dtype,
        versions=versions,
        measured_at=int(time.time()),
    )


def choose_canary(
    prompts: list[list[int]], ours: list[Answer], served: list[Answer], base: list[Answer], tokenizer: Any
) -> Canary | None:
    """Return the prompt on which adapter and base differ most surely, or None where they nowhere do.

    Both sides must agree on the adapter's first tokens, the base must part from them, and of these prompts the one is
    taken whose closest decision is the clearest.
    """
    found = []
    for prompt, mine, theirs, plain in zip(prompts, ours, served, base, strict=True):
        length = min(CANARY_TOKENS, len(mine.tokens))
        tokens = mine.tokens[:length]
        if tokens == theirs.tokens[:length] and tokens != plain.tokens[:length]:
            margin = min(mine.read_margin(place) for place in range(length))
            texts = (tokenizer.decode(tokens), tokenizer.decode(plain.tokens[:length]))
            found.append(Canary(prompt, tokens, plain.tokens[:length], *texts, round(margin, 4)))
    return max(found, key=lambda canary: canary.margin, default=None)


async def ask_vllm(
    engine: Engine, name: str, prompts: list[list[int]], max_tokens: int, stop_tokens: set[int]
) -> list[Answer]:
    """Let the engine answer every prompt, one after the other: alone in its batch, each has the same sums."""
    progress = CountProgress(f"vLLM         {name}", len(prompts))
    answers = []
    for prompt in prompts:
        answers.append(await answer_by_vllm(engine, name, prompt, max_tokens, stop_tokens))
        progress.advance()
    return answers


def ask_peft(model: "PeftModel", prompts: list[list[int]], max_tokens: int, stop_tokens: set[int]) -> list[Answer]:
    """Let PEFT answer every prompt."""
    progress = CountProgress("PEFT", len(prompts))
    answers = []
    for prompt in prompts:
        answers.append(answer_by_peft(model, prompt, max_tokens, stop_tokens))
        progress.advance()
    return answers


def find_stop_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return every token that ends an answer, by the tokenizer and by the model's own settings."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in [tokenizer.eos_token_id, *listed] if token is not None}


async def measure_served(
    config: ParityConfig,
    engine_config: EngineConfig,
    served: ServedAdapter,
    model: Path,
    prompts: list[list[int]],
    stop_tokens: set[int],
) -> tuple[list[Answer], list[Answer]]:
    """Start vLLM with the adapter and return its answers with it and without."""
    rank = engine_config.max_lora_rank or fit_rank([int(served.manifest.lora["rank"])])
    ready = dataclasses.replace(engine_config, max_lora_rank=rank)
    log = DataDir(Path(config.paths.data_dir)).root / "logs" / "vllm-parity.log"
    date = served.manifest.template_date or ""
    async with run_engine(ready, model, [Adapter(served.name, served.path)], date, log) as engine:
        adapter = await ask_vllm(engine, served.name, prompts, config.max_tokens, stop_tokens)
        base = await ask_vllm(engine, model.name, prompts, config.max_tokens, stop_tokens)
    return adapter, base


def draw_parity(parity: Parity) -> Table:
    """Return the figures as a table."""
    table = Table("PEFT and vLLM", parity.dtype)
    table.add_row("prompts answered alike to the end", f"{parity.equal_prompts:.1%} of {parity.prompts}")
    table.add_row("tokens alike before answers part", f"{parity.equal_tokens:.1%} of {parity.tokens:,}")
    table.add_row("log-probability, mean difference", f"{parity.mean_difference:.5f}")
    table.add_row("log-probability, largest difference", f"{parity.max_difference:.5f}")
    gap = "they never part" if parity.largest_gap is None else f"{parity.largest_gap:.5f}"
    table.add_row("largest gap where answers part", gap)
    return table


def check_parity(parity: Parity, tolerance: float) -> None:
    """Check that what differs is no more than rounding.

    Raises:
        ContractError: It is more.
    """
    worst = max(parity.max_difference, parity.largest_gap or 0.0)
    if worst > tolerance:
        raise ContractError(
            f"parity: wanted PEFT and vLLM within {tolerance:g} nats in {parity.dtype}, found {worst:.4f}. The figures "
            "stand in the adapter's manifest; compare with engine.dtype=float32, and judge the adapter by its answers "
            "through the server."
        )


def main(composed: DictConfig) -> None:
    """Check, ask both, compare, write."""
    configure_logging(level="WARNING")
    config = load_config(composed, ParityConfig)
    data = DataDir(Path(config.paths.data_dir))
    model = data.model(AdapterManifest.read(data.run(config.run) / "adapter").base.name)
    served = check_run(data, config.run, BaseIdentity.of(model), config.engine.max_lora_rank or max(LORA_RANKS))
    engine_config = fill_engine_config(config.engine)
    prompts = read_prompts(config, data, model)
    from train.model import load_tokenizer

    tokenizer = load_tokenizer(model)
    peft = load_peft(model, served.path, engine_config)
    stop_tokens = find_stop_tokens(peft, tokenizer)
    dtype = str(peft.dtype).removeprefix("torch.")
    ours = ask_peft(peft, prompts, config.max_tokens, stop_tokens)
    del peft  # before vLLM takes its memory
    adapter, base = asyncio.run(measure_served(config, engine_config, served, model, prompts, stop_tokens))
    manifest = AdapterManifest.read(served.path)
    manifest.parity = compare(ours, adapter, dtype, read_served_versions())
    manifest.canary = choose_canary(prompts, ours, adapter, base, tokenizer)
    manifest.save(served.path)
    console.print(draw_parity(manifest.parity))
    show_canary(manifest.canary)
    console.print(f"wrote {served.path / 'manifest.json'}", soft_wrap=True)
    check_parity(manifest.parity, config.tolerance or TOLERANCES[dtype])
    following = write_next_command("serve/run.py", f"adapters=[{config.run}]", data_dir=config.paths.data_dir)
    console.print(f"next: {following}", soft_wrap=True, markup=False)


def show_canary(canary: Canary | None) -> None:
    """Print what the server will ask."""
    if canary is None:
        console.print(
            "canary: none. On no prompt do adapter and base differ and PEFT and vLLM agree: the server cannot see "
            "whether the adapter is at work. Give other prompts=FILE, or more rows."
        )
        return
    console.print(f"canary: the adapter begins {canary.text!r}, the base {canary.base_text!r}", markup=False)


def read_served_versions() -> dict[str, str]:
    """Return the versions of the packages on both sides."""
    from importlib.metadata import packages_distributions, version

    name = packages_distributions()["vllm"][0]  # the CPU build has a name of its own
    return {**read_versions(), name: version(name)}


if __name__ == "__main__":
    run_app("parity", main)
