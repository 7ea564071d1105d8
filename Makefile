# Everything a checkout needs; each target sets up what it uses. PYTHON=python3.12 chooses another.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ORACLES := .venv-oracles
NATIVE := $(wildcard build/*.* build/cdef/* llcuda/native/shim/*) pyproject.toml vendor/llama.cpp.toml

.PHONY: demo test lint oracles bench wheel wheel-cuda clean

demo: $(VENV)/installed
	$(BIN)/llcuda run --echo --seed 7 "Once upon a time"

test: $(VENV)/installed
	$(BIN)/python -m pytest tests/ -v

lint: $(VENV)/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

oracles: $(ORACLES)/installed
	$(ORACLES)/bin/python -m pytest tests/oracles -v

bench: $(VENV)/installed
	$(BIN)/python -m pytest tests/benchmarks -v -s --benchmark-enable --benchmark-disable-gc

wheel: $(VENV)/installed
	$(BIN)/python build/wheel.py --cuda=OFF

wheel-cuda: $(VENV)/installed
	$(BIN)/python build/wheel.py --cuda=ON

clean:
	rm -rf $(VENV) $(ORACLES) .build dist

$(VENV)/installed: $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@

# torch brings CUDA's libraries, and a build in their environment would turn CUDA on: they get one of
# their own, which sees the packages of the first.
$(ORACLES)/installed: pyproject.toml $(VENV)/installed
	$(PYTHON) -m venv $(ORACLES)
	$(ORACLES)/bin/python -m pip install --quiet --upgrade pip
	$(ORACLES)/bin/python -m pip install --quiet --group oracles
	echo "import site; site.addsitedir('$(abspath $(VENV))/lib/$$(ls $(VENV)/lib)/site-packages')" > \
	  $$(ls -d $(ORACLES)/lib/*/site-packages)/llcuda.pth
	touch $@
