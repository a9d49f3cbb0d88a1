#!/usr/bin/env bash
# From a bundle to the demo's answers, as an operator would type it; make test-airgap runs it where only loopback exists.
#   scripts/install_and_demo.sh BUNDLE PREFIX
set -euo pipefail
bundle=$(realpath "$1") prefix=$(realpath -m "$2")

python3.11 "$bundle/bundle.py" verify
python3.11 "$bundle/bundle.py" install to="$prefix"
cd "$prefix/current"
.venv/bin/python scripts/doctor.py
make demo
.venv/bin/python -m pytest -q tests/e2e
