# make compare and make test make the environment they need: Python 3.10 or later and make are all that must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
TEST_WORKERS ?= 2
# By file, so that a module's processes start once; xdist 3.8 does not see its groups with pytest 9.2.
PYTEST = $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile
STRATEGIES := single,data_parallel,model_parallel,one_weird_trick,ddp
SWEEP := compare
RUNS := runs/$(SWEEP)

# Measuring coverage takes a third more time with Python 3.11's tracing, and little with the monitoring of 3.12.
ifdef COVERAGE
test: PYTEST += --cov --cov-report=term:skip-covered
test: export WORKER_COVERAGE := $(CURDIR)/setup.cfg
test: export COVERAGE_CORE ?= $(shell $(PYTHON) -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")')
endif

.PHONY: help install compare test test-slow clean

help:
	@echo "make compare   train AlexNet on the embedded digits with every strategy on two workers, and compare them"
	@echo "make test      lint, types and tests, on TEST_WORKERS=2 processes; COVERAGE=1 prints what they cover"
	@echo "make test-slow the tests that take longer: plans, simulations and optima as tests/data/golden.json has them"
	@echo "make install   only make the environment, $(VENV)"
	@echo "make clean     remove the environment and the caches; runs/ stays"
	@echo "PYTHON=python3.12 make …   chooses the interpreter of a new environment"

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.10 or later is needed; this is " + sys.version.split()[0] + \
		". Choose another: PYTHON=python3.12 make …" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): torch is large, this takes a minute or more"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

# What is finished already is not run again: `make compare` after an interruption goes on where it stopped.
# The second command is the baseline with all cores: what a user of this one machine would run instead.
compare: $(STAMP)
	$(BIN)/python -m parallel.train -m experiment=compare strategy=$(STRATEGIES) workers=2 \
		hydra/launcher=torchrun sweep=$(SWEEP)
	$(BIN)/python -m parallel.train -m experiment=compare strategy=single \
		'cluster.threads=choice('$$($(BIN)/python -c 'import os; print(len(os.sched_getaffinity(0)))')')' \
		hydra/launcher=torchrun sweep=$(SWEEP)
	$(BIN)/python -m parallel.compare $(RUNS)
	@echo "records:  $(RUNS)/*/record.json and epochs.csv"
	@echo "W&B runs: $(RUNS)/*/wandb (offline without a key: $(BIN)/wandb sync $(RUNS)/*/wandb/offline-run-*)"

test: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/lint-imports
	$(BIN)/mypy parallel scripts hydra_plugins
	$(PYTEST)

test-slow: $(STAMP)
	$(PYTEST) -m slow

clean:
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
