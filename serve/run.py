"""Serve a base model, its adapters and assistants behind one OpenAI-compatible endpoint.

    python serve/run.py [model=smollm2_135m] [adapters=[RUN_ID,…]] [gateway.port=8000]
        [+assistants.NAME='{model: RUN_ID, stores: [STORE], instructions: …}'] [engine.*=…] [hardware=auto]

Reads conf/serve.yaml. Everything is checked before anything starts, and all faults are named at once. Ctrl-C stops
the gateway and vLLM and leaves no process behind. What is served, and how it starts and stops, is serve/program.py.
"""

from core.entry import begin_program

begin_program()

from pathlib import Path

from omegaconf import DictConfig

from core.config import run_app
from serve.lock import refuse_second


def main(composed: DictConfig) -> None:
    """Refuse a second gateway at once, and import what serves only then: that takes a second or more."""
    data_dir = composed.paths.data_dir
    if isinstance(data_dir, str):  # else the program says what is wrong with it
        refuse_second(Path(data_dir))
    from serve.program import run

    run(composed)


if __name__ == "__main__":
    run_app("serve", main)
