# Everything a fresh machine needs: Python 3.11 or newer and make. `make demo` runs, `make check` tests.
PYTHON ?= python3
BIN := .venv/bin
NATIVE := hatch_build.py puna/kernels/compiling.py $(wildcard puna/kernels/src/*)

.PHONY: demo check peers format clean

demo: .venv/train.done
	$(BIN)/puna complete

check: .venv/dev.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

# Against llama.cpp, AutoGPTQ and PEFT; compiles the first, which takes ten minutes.
peers: .venv/peers.done
	$(BIN)/pytest -m peers tests

.venv/peers.done: .venv/dev.done
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt llama-cpp-python
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps auto-gptq peft
	@touch $@

format: .venv/dev.done
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Puna needs Python 3.11 or newer: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

.venv/train.done: $(BIN)/python pyproject.toml constraints.txt $(NATIVE)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[train]'
	@touch $@

.venv/dev.done: $(BIN)/python pyproject.toml constraints.txt $(NATIVE)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
