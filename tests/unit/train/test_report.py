"""The report tells what was run, how it went and how to do it again."""

from pathlib import Path

from core.events import EventWriter
from core.manifest import AdapterManifest, BaseIdentity
from train.report import describe_samples, write_report


def make_manifest() -> AdapterManifest:
    part = {"path": "a.jsonl", "sha256": "ab" * 32, "rows": 290, "tokens": 51_537, "trained_tokens": 15_822}
    return AdapterManifest(
        run_id="mine",
        base=BaseIdentity("small", "1", "2", "3"),
        method="sft",
        lora={"rank": 16},
        quantization={"kind": "nf4"},
        data={"train": {**part, "longest": 358, "cut_rows": 2}, "valid": None},
        seed=17,
        template_date=None,
        metrics={
            "steps": 2,
            "loss_first": 3.0,
            "loss_last": 1.25,
            "tokens_per_s": 256.4,
            "seconds": 95.0,
            "eval_loss": None,
            "eval_token_accuracy": None,
        },
        versions={"torch": "2.13.0"},
        created_at=0,
    )


def test_the_report_holds_figures_plots_and_commands(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as events:
        for step in (1, 2):
            events.write("step", step=step, loss=3.0 / step, learning_rate=1e-3, tokens_per_s=250.0)
        events.write("eval", step=2, loss=2.0, token_accuracy=0.5)
    arguments = ["run_id=mine", "resume=auto", "data.train=my chats.jsonl", "paths.data_dir=my data"]
    text = write_report(tmp_path, make_manifest(), {"seed": 17}, arguments, "a machine", [12, 40]).read_text()
    assert "2 steps in 1 min 35 s" in text
    assert "290 chats (51,537 tokens)" in text
    assert "| loss | 3.0000 | 1.5000 | 2.0000 |" in text
    assert "31% of them learned" in text
    assert "2 rows were longer" in text
    assert "python train/run.py 'data.train=my chats.jsonl' 'paths.data_dir=my data' run_id=mine-again" in text
    assert "python serve/run.py adapters=[mine] 'paths.data_dir=my data'\n" in text
    assert "seed: 17" in text
    for name in ("loss", "learning_rate", "tokens_per_s"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"({name}.png)" in text


def test_answers_stand_side_by_side(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as events:
        for step in (0, 2, 4, 6, 8, 10):
            answer = f"a | <b>\nstep {step}"
            events.write("sample", step=step, index=0, prompt="Why <i>?\nReally?", answer=answer, wanted="x" * 1000)
    text = describe_samples(tmp_path, 4)
    assert "> Why &lt;i>?\n> Really?" in text
    assert "| before | step 4 (published) | step 6 | step 10 | in the data |" in text
    assert "a \\| &lt;b><br>step 4" in text
    assert "x" * 400 + " …" in text
    assert describe_samples(tmp_path / "nothing", 4) == ""


def test_the_report_says_where_a_better_adapter_was(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as events:
        events.write("step", step=1, loss=3.0, learning_rate=1e-3, tokens_per_s=250.0)
        for step, loss in ((0, 9.0), (1, 1.5), (2, 2.0)):
            events.write("eval", step=step, loss=loss, token_accuracy=0.5)
    text = write_report(tmp_path, make_manifest(), {}, [], "a machine", []).read_text()
    assert "on the held-out rows step 1 was better (loss 1.5000)" in text
    assert "| loss | 3.0000 | 3.0000 | 9.0000 | 2.0000 |" in text
