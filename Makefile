# Every target sets up what it needs: a machine with Python 3.11+ and make is enough.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: install demo test check bench chaos clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt "torch==$(shell sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $(INSTALLED)

demo: $(INSTALLED)  ## all of it in two minutes
	$(BIN)/orchestrator demo

test: $(INSTALLED)  ## with a real local Ray cluster and a real S3 server
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --max-worker-restart 0

check: $(INSTALLED)  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED)  ## side-by-side measurements; figures of a full run go into docs/benchmarks.md
	for name in train start steps sweep replicates reduction why streaming push batch_predict; do $(BIN)/python -m tests.benchmarks.$$name --quick || exit 1; done

chaos: $(INSTALLED)  ## 100 kills of training processes, half an hour, then of servers under load; writes the tables in docs/reliability.md
	$(BIN)/python -m tests.chaos_run --kills 100 --seed 0
	$(BIN)/python -m tests.chaos_soak

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
