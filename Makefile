# Every target makes the environment that it needs: `make test` in a fresh clone is enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LIMIT ?= 12

.PHONY: demo test test-all soak lint check stubs bench study

demo: $(VENV)/.demo
	rm -f demo.jsonl*
	$(BIN)/psworker launch digits:task --app-dir examples --workers 4 --steps 1500 \
	  --local-server -- --rule adam -a learning_rate=2e-3 --max-staleness $(LIMIT) \
	  --metrics-file demo.jsonl
	$(BIN)/psserver report demo.jsonl -o demo.html
	@echo 'next: make demo LIMIT=off (drop nothing), or LIMIT=2 (drop the slow worker)'

# Whole files go to one process or another: some share what takes long to make. Tests wait a quarter of their time.
test: $(VENV)/.dev
	$(BIN)/pytest -n 3 --dist loadfile

# The guarantees that have a longer run: about an hour.
soak: $(VENV)/.dev
	$(BIN)/pytest --soak -m "soak or long" --timeout 0 -o faulthandler_timeout=0

# The same on every supported Python that this machine has.
test-all:
	@for version in 3.11 3.12 3.13; do \
	  if python$$version -c '' 2>/dev/null; then \
	    $(MAKE) test PYTHON=python$$version VENV=.venv-$$version || exit 1; \
	  else echo "python$$version: not found, left out"; fi; \
	done

lint: $(VENV)/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

check: lint test

# What a cycle costs against what this machine can do at best: some 30 minutes.
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

# What each limit costs, for docs/choosing-a-limit.md: some 25 minutes.
study: $(VENV)/.dev
	$(BIN)/python -m benchmarks.study
	$(BIN)/python -m benchmarks.study --write

# A test compares what this makes with what is committed.
stubs: $(VENV)/.dev
	cd proto && $(abspath $(BIN))/python -m grpc_tools.protoc \
	  -Ipswire/_generated=. --python_out=. --pyi_out=. --grpc_python_out=. \
	  pswire/_generated/parameter_server.proto

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --editable ".[examples]"
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/pip install --quiet --group dev --editable ".[examples]"
	touch $@
