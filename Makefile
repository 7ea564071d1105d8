# Everything a checkout needs; each target sets up what it uses. PYTHON=python3.12 chooses another.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
NATIVE := $(wildcard build/*.* build/cdef/* llcuda/native/shim/*) pyproject.toml vendor/llama.cpp.toml

.PHONY: demo test lint bench wheel wheel-cuda clean

demo: $(VENV)/installed
	$(BIN)/llcuda run --echo --seed 7 "Once upon a time"

test: $(VENV)/installed
	$(BIN)/python -m pytest tests/ -v

lint: $(VENV)/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python -m pytest tests/benchmarks -v -s --benchmark-enable --benchmark-disable-gc

wheel: $(VENV)/installed
	$(BIN)/python build/wheel.py --cuda=OFF

wheel-cuda: $(VENV)/installed
	$(BIN)/python build/wheel.py --cuda=ON

clean:
	rm -rf $(VENV) .build dist

$(VENV)/installed: $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@
