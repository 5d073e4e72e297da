# make demo    train, attack, transfer, report; under ten minutes on two cores
# make test    the test suite
# make lint    ruff, mypy, clang-format
# make docs    these pages as a site, in build/docs
# make bench   the benchmarks whose results are in bench/results
# Each creates .venv first if it is not there.

VENV := .venv
# The first that runs and is new enough: a name on PATH may be a shim without a Python.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; \
  done)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
NATIVE := CMakeLists.txt setup.py $(wildcard csrc/*/*)
FORMATTED := $(wildcard csrc/*/*) tests/kernels/cuda_emulator.h
# What attacks are compared with, in tests and benchmarks. Without dependencies: their pins
# conflict with each other and with current torch. The second line is for `import foolbox`.
PEERS := torchattacks foolbox eagerpy robustness adversarial-robustness-toolbox adv-lib \
         GitPython gitdb smmap requests charset_normalizer urllib3 certifi \
         cox dill pandas tensorboardX protobuf dattri pytorch-cka

.PHONY: demo test lint docs bench clean

$(VENV)/.installed: pyproject.toml constraints.txt $(NATIVE)
	@echo "installing fastadv into $(VENV); torch and its libraries take about two minutes"
	@test -n "$(PYTHON)" || \
	  { echo "no Python >= 3.11 found; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) -e '.[test,lint,docs]'
	@$(PIP) --no-deps $(PEERS)
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/fastadv-demo

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)

docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

bench: $(VENV)/.installed-dev
	$(BIN)/python bench/bench_pgd_step.py
	$(BIN)/python bench/bench_attack.py
	$(BIN)/python bench/tables.py

clean:
	rm -rf $(VENV) build dist *.egg-info kernels/*.so
