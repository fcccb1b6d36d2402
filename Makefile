# make compare and make test create the environment that they need. They require only Python 3.10 or later and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# One more than the two cores of a small machine: many tests wait, for processes that start, hang or end.
TEST_WORKERS ?= 3
# Distribute tests by file, so that a module starts its processes once; xdist 3.8 ignores its groups with pytest 9.2.
# Not reordered: the files that take longest come first, and none of them is left for the end.
PYTEST = $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

# Coverage takes a third more time with the tracing of Python 3.11, and little with the monitoring of 3.12.
ifdef COVERAGE
test: PYTEST += --cov --cov-report=term:skip-covered
test: export WORKER_COVERAGE := $(CURDIR)/setup.cfg
test: export COVERAGE_CORE ?= $(shell $(PYTHON) -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")')
endif

.PHONY: help install compare test test-slow clean

help:
	@echo "make compare    calibrate this machine, train AlexNet with every strategy, print the table, write the report"
	@echo "                WORKERS=4 DEVICE=cpu|cuda: other workers than all GPUs or all cores (at most 8)"
	@echo "make test       lint, types and tests, on TEST_WORKERS=3 processes; COVERAGE=1 prints what they cover"
	@echo "make test-slow  the slow tests: training to 90 % accuracy, all of tests/data/golden.json, more random plans"
	@echo "make install    only create the environment $(VENV); PYTHON=python3.12 chooses its interpreter"
	@echo "make clean      remove the environment and the caches; runs/ stays"

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.10 or later is needed; this is " + sys.version.split()[0] + \
		". Choose another: PYTHON=python3.12 make …" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): torch is large, this takes a minute or more"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

# Finished jobs are skipped, so `make compare` continues after an interruption.
compare: $(STAMP)
	$(BIN)/python -m parallel.benchmark $(if $(WORKERS),workers=$(WORKERS)) $(if $(DEVICE),device=$(DEVICE))

test: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check --quiet
	$(BIN)/lint-imports
	$(BIN)/mypy parallel scripts hydra_plugins
	$(PYTEST)

test-slow: $(STAMP)
	$(PYTEST) -m slow

clean:
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
