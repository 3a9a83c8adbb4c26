# Every target installs what it needs into .venv first. PYTHON3 names the interpreter that makes it (3.11 or newer).
PYTHON3 ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test lint types pytest format test-comfyui bench chaos clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

$(VENV)/bin/python:
	@command -v $(PYTHON3) >/dev/null || { echo "error: $(PYTHON3) not found; install Python 3.11 or newer"; exit 1; }
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; name one with PYTHON3=/path/to/python3"; exit 1; }
	@$(PYTHON3) -m venv $(VENV) || { echo "error: could not make $(VENV); on Debian install python3-venv"; exit 1; }

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing Easel into $(VENV) ..."
	@$(PIP) -e '.[frontend]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing Easel and its development tools into $(VENV) ..."
	@$(PIP) -e '.[frontend,mysql,postgres,dev]'
	@touch $@ $(VENV)/.run

run: $(VENV)/.run ## a platform, a service, and an example workflow on an example photograph (ARGS=--once ends after it)
	@$(BIN)/easel demo $(ARGS)

test: lint types pytest ## everything that needs no special hardware

lint: $(VENV)/.dev ## format and lint, checked
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev ## types, checked
	$(BIN)/mypy

pytest: $(VENV)/.dev ## the tests alone (ARGS are passed on)
	$(BIN)/pytest -n 2 $(ARGS)

format: $(VENV)/.dev ## format and fix in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-comfyui: $(VENV)/.dev ## the tests against a real ComfyUI: COMFYUI=<its folder> PYTHON=<its interpreter>
	@test -n "$(COMFYUI)" -a -n "$(PYTHON)" || \
	  { echo "usage: make test-comfyui COMFYUI=<folder of ComfyUI> PYTHON=<its interpreter>"; exit 2; }
	EASEL_COMFYUI="$(COMFYUI)" EASEL_COMFYUI_PYTHON="$(PYTHON)" $(BIN)/pytest -m real_comfyui --timeout 600 $(ARGS)

bench: $(VENV)/.dev ## speed as ratios: agent, queue, gateway (needs nginx and wrk), platform
	$(BIN)/python -m tests.bench $(ARGS)
	$(BIN)/python -m tests.bench.lives
	$(BIN)/python -m tests.bench.proxy
	$(BIN)/python -m tests.bench.platform

chaos: $(VENV)/.dev ## everything killed at random while 2,000 tasks run (SEED=... for another course)
	EASEL_CHAOS_TASKS=2000 EASEL_CHAOS_SEED=$(or $(SEED),20261123) $(BIN)/pytest tests/chaos --timeout 1800 $(ARGS)

clean: ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
