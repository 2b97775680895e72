# make demo | test | check | coverage | mutation | format | bench | peers | soak | release
#     ARGS="..." goes to the command behind
#
# Needs Python 3.11 or newer and a C/C++ compiler, nothing else: each target makes the environment
# it needs in .venv and installs into it again only when pyproject.toml has changed.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell sh scripts/find_python.sh)
ARGS ?=

.PHONY: demo test check coverage mutation format bench peers soak release clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.demo
	@$(BIN)/overspill demo $(ARGS)

# A file's tests stay in one process: they share its engines and daemons.
test: $(VENV)/.test
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check

COVERAGE_TESTS := tests/trust tests/sealing tests/trust_log tests/attester tests/cli/test_trust_verify.py

# Every line of trust and sealing is run by these tests, or this fails.
coverage: $(VENV)/.test
	@mkdir -p build/coverage
	$(BIN)/python -m coverage run -m pytest -q $(COVERAGE_TESTS) $(ARGS)
	$(BIN)/python -m coverage report

mutation: $(VENV)/.test
	$(BIN)/python scripts/mutation.py $(ARGS)

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.test
	@mkdir -p build/bench
	@$(BIN)/overspill bench --out build/bench $(ARGS)

peers: $(VENV)/.test
	@$(BIN)/python scripts/build_peers.py $(ARGS)

soak: $(VENV)/.test
	@mkdir -p build
	@$(BIN)/python tests/faults/soak.py $(ARGS)

# The wheel and the sdist, whose they are made of (NOTICE, bill of materials), and all digests.
release: $(VENV)/.test
	rm -rf build/release
	$(BIN)/python -m build --no-isolation --outdir build/release . >/dev/null
	$(BIN)/python scripts/release_papers.py --out build/release
	@cd build/release && sha256sum * > SHA256SUMS && cat SHA256SUMS

clean:
	rm -rf $(VENV) build dist

# .venv/.demo and .venv/.test: newer than pyproject.toml where the environment is current.
$(VENV)/.%: pyproject.toml scripts/setup_env.py
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer on PATH; install one, or name it: make $* PYTHON=/path/to/python3" >&2; exit 2; }
	@"$(PYTHON)" scripts/setup_env.py $(VENV) $*
	@touch $@
