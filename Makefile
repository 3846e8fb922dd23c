# make demo plays the main job; make test passes the tests, or TESTS=…. Each installs what it needs into .venv by itself.
# make test-slow runs the tests, or TESTS=…, with every process slowed down to a third, or by TIMES=….
PYTHON ?= python3
# PyPI's torch for Linux brings CUDA along; TORCH_INDEX names another index, such as PyTorch's own of CPU builds.
TORCH_INDEX ?=
BIN := .venv/bin
INSTALLED := .venv/.installed
SUITE := --numprocesses $(or $(PROCESSES),5) --dist loadfile --no-loadscope-reorder

# Hundreds of processes import the same files, so their bytecode is kept. pip would compile four times what the demo imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow chaos bench-trainer bench-broker bench-metrics bench-study bench-bot pictures check clean

demo: $(INSTALLED)
	@$(BIN)/stoa demo $(if $(EXIT),--no-stay)

test: $(INSTALLED)
	$(BIN)/pytest $(or $(TESTS),$(SUITE))

test-slow: $(INSTALLED)
	$(BIN)/python -m tests.slow $(or $(TIMES),3) $(BIN)/pytest $(or $(TESTS),$(SUITE))

chaos: $(INSTALLED)
	$(BIN)/pytest -m chaos

bench-trainer: $(INSTALLED)
	$(BIN)/python -m bench.trainer

bench-broker: $(INSTALLED)
	$(BIN)/python -m bench.broker
	$(BIN)/python -m bench.launch
	$(BIN)/python -m bench.store

bench-metrics: $(INSTALLED)
	$(BIN)/python -m bench.metrics

bench-study: $(INSTALLED)
	$(BIN)/python -m bench.study

bench-bot: $(INSTALLED)
	$(BIN)/python -m bench.bot

pictures: $(INSTALLED)
	$(BIN)/python -m tests.pictures
	STOA_SCREENSHOTS=1 $(BIN)/pytest tests/page

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf .venv var

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Stoa needs Python 3.11 or newer; PYTHON=… names one.")'
	@echo "Setting up .venv with pinned versions; this takes one or two minutes, most of it PyTorch."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --no-compile $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) --constraint constraints.txt torch
	$(BIN)/pip install --no-compile --constraint constraints.txt --editable . --group dev
	@echo "Compiling the modules that Stoa imports."
	@$(BIN)/python -c 'import bot.client, cli.main, cli.services, trainer.engine.distributed, trainer.train'
	touch $@
