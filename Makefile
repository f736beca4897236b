# Everything a fresh machine needs: Python 3.11 or newer and make. `make demo` runs, `make check` tests
# (in two processes, each whole files, since their fixtures are made once).
PYTHON ?= python3
BIN := .venv/bin
NATIVE := hatch_build.py puna/kernels/compiling.py $(wildcard puna/kernels/src/*)

.PHONY: demo check slow peers format clean

demo: .venv/train.done
	$(BIN)/puna complete

check: .venv/dev.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile

# What takes minutes each: thousands of requests at once, clients that leave, the API's description tried
# at random, replicas on Ray (skipped without puna[ray]), data builds on Ray and by Slurm's scripts, every
# layout of training for 20 steps, killed and hung processes.
slow: .venv/dev.done
	$(BIN)/pytest -m slow tests

# Against llama.cpp, AutoGPTQ, PEFT and lm-eval; compiles the first, which takes ten minutes. What GPTQModel's
# tests need is in tests/peers/test_gptq_peers.py; without it they skip. Processor features are named
# because GGML_NATIVE asks the compiler, which in some virtual machines names more than there are.
LLAMA_CPP := -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DLLAVA_BUILD=OFF

peers: .venv/peers.done
	$(BIN)/pytest -m peers tests

.venv/peers.done: .venv/dev.done
	CMAKE_ARGS='$(LLAMA_CPP)' $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt llama-cpp-python
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps auto-gptq==0.7.1 peft trl accelerate psutil
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt 'lm_eval[api,hf]==0.4.13'
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
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[serve,train]'
	@touch $@

.venv/dev.done: $(BIN)/python pyproject.toml constraints.txt $(NATIVE)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
