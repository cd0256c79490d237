# The two commands are `make train` and `make test`; each sets itself up first. Everything lives in .venv and runs/.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
ARGS ?=
JOBS ?= 2

# Tests are many and small: processes share the cores better than threads, and a waiting OpenMP team must not spin.
TEST_ENV := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
PYTEST := $(PY) -m pytest -q -n $(JOBS)
# a file stays with one worker: its kernels compile once, and its fixtures are made once
BY_FILE := --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup peers train test slow teacher data bench gpu lint format docs aot check clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1|/' | column -t -s '|'

setup: $(STAMP) ## make .venv with pinned dependencies, and install both packages in it

$(STAMP): pyproject.toml kernels/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("fastkd needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; say make PYTHON=python3.11")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -c constraints.txt "torch>=2.10"
	$(PY) -m pip install --quiet -c constraints.txt -e "./kernels[cpu,gpu]" -e ".[dev,peers,labels]"
	@touch $@

# Without dependencies, because they pin older torch, numpy and sympy (docs/decisions/0012-peers-without-dependencies.md).
peers: $(STAMP) ## add schnetpack and fairchem-core 1.x, whose models the tests and benchmarks patch
	$(PY) -m pip install --quiet --no-deps schnetpack==2.1.1 fairchem-core==1.10.0

train: $(STAMP) ## distil the embedded teacher into a small student (ARGS="a.b=c" changes options)
	$(PY) -m fastkd.train $(ARGS)

test: $(STAMP) ## run the tests, Triton kernels in the interpreter included
	TRITON_INTERPRET=1 $(TEST_ENV) $(PYTEST) -m "triton and not slow and not gpu" tests/kernels
	$(TEST_ENV) $(PYTEST) $(BY_FILE) -m "not slow and not gpu and not triton" $(ARGS)

slow: $(STAMP) ## run the long tests
	TRITON_INTERPRET=1 $(TEST_ENV) $(PYTEST) -m "triton and slow and not gpu" tests/kernels || test $$? -eq 5
	$(TEST_ENV) $(PYTEST) -m "slow and not gpu and not triton" $(ARGS)

teacher: $(STAMP) ## train the embedded teacher again, into runs/teacher
	$(PY) -m fastkd.train examples/teacher.yaml $(ARGS)
	$(PY) scripts/ship_teacher.py runs/teacher

data: $(STAMP) ## make the embedded data set again (GFN2-xTB molecular dynamics)
	$(PY) scripts/make_data.py $(ARGS)

bench: $(STAMP) ## benchmarks on this machine, interleaved with their peers
	$(PY) -m bench $(ARGS)

gpu: $(STAMP) ## everything that needs a GPU: its tests, check, benchmarks and goals, in nine minutes (logs in runs/gpu)
	$(PY) -m bench.gpu $(ARGS)

lint: $(STAMP) ## ruff and mypy, as CI runs them
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP) ## let ruff mend what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

check: $(STAMP) ## every kernel against its float64 reference on this device
	$(PY) -m fastkd_kernels.check $(ARGS)

aot: $(STAMP) ## compile every Triton kernel for four GPU targets, without a GPU
	$(PY) -m fastkd_kernels.aot $(ARGS)

docs: $(STAMP) ## write the generated pages (options, JSON schema) and check every link of the docs
	$(PY) scripts/make_docs.py $(ARGS)

clean: ## remove caches and the environment, keep runs/
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .benchmarks build *.egg-info kernels/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
