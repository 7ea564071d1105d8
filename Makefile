# Everything a checkout needs; each target sets up what it uses. PYTHON=python3.12 chooses another.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ORACLES := .venv-oracles
DOCS   := .venv-docs
SANITIZE := .venv-sanitize
RELEASE := .venv-release
NATIVE := $(shell find build llcuda/native/shim -type f -not -name '*.pyc') pyproject.toml vendor/llama.cpp.toml
# An editable install has a list of the modules: other names need another install, edits do not.
MODULES := $(shell find llcuda -name '*.py' -not -path 'llcuda/lib/*' | LC_ALL=C sort | cksum | cut -d ' ' -f 1)
INSTALLED := $(VENV)/installed-$(MODULES)

.PHONY: demo test real ray foreign clients peer-tests peer-texts page stress fuzz shuffle lint docs oracles sanitize sanitize-cuda bench wheel wheel-cuda release clean

demo: $(INSTALLED)
	$(BIN)/llcuda run --echo --seed 7 "Once upon a time"

# Two at once; the tests of a file stay together, as they share models. tests/conftest.py gives each its processor.
AT_ONCE := -n 2 --dist loadfile

test: $(INSTALLED)
	$(BIN)/python -m pytest tests/ -v $(AT_ONCE)

# MODELS: a folder with gemma-3-270m-q4_k_m.gguf and qwen2.5-coder-0.5b-instruct-q4_k_m.gguf
real: $(INSTALLED)
	$(if $(MODELS),,$(error make real MODELS=FOLDER: a folder with the two models that the Makefile names))
	LLCUDA_REAL_MODELS="$(abspath $(MODELS))" $(BIN)/python -m pytest tests/real -v $(AT_ONCE)

# A Ray cluster of this machine. `make test` skips these tests where the extra ray is not installed.
ray: $(INSTALLED)
	$(BIN)/python -m pip install --quiet 'llcuda[ray]'
	$(BIN)/python -m pytest tests/ray -v

# The chat page in Chromium; pictures of it are left in .build/page.
page: $(INSTALLED)
	mkdir -p .build/page
	LLCUDA_PAGE_SHOTS="$(abspath .build/page)" $(BIN)/python -m pytest tests/server/test_page.py tests/server/test_page_browser.py -v -rs

# llama-cpp-python's own tests of its classes on llcuda's, and the tokens of both; MODELS as above
peer-tests: $(INSTALLED)
	$(if $(MODELS),,$(error make peer-tests MODELS=FOLDER: a folder with the models of "make real"))
	$(BIN)/python -m tests.peers.llama_cpp_tests --models "$(MODELS)"

peer-texts: $(INSTALLED)
	$(if $(MODELS),,$(error make peer-texts MODELS=FOLDER: a folder with the models of "make real"))
	$(BIN)/python -m pip install --quiet --group peer-llama-cpp-python
	$(BIN)/python -m tests.peers.llama_cpp_texts --models "$(MODELS)"

foreign: $(INSTALLED)
	$(if $(MODELS),,$(error make foreign MODELS=FOLDER: a folder with the models of "make real"))
	$(BIN)/python -m pip install --quiet --group foreign
	$(BIN)/python -m tests.foreign.llama_server_tests --models "$(MODELS)"

# Clients of other projects at pinned versions, against llcuda serve; writes their table into docs/server.md.
clients: $(INSTALLED)
	$(if $(MODELS),,$(error make clients MODELS=FOLDER: a folder with the models of "make real"))
	$(BIN)/python -m pip install --quiet --group clients
	$(BIN)/python -m tests.clients.run --models "$(MODELS)"

# REQUESTS, INPUTS: how many of each
stress: $(INSTALLED)
	$(BIN)/python -m tests.stress.random_requests --requests $(or $(REQUESTS),20000)
	$(BIN)/python -m tests.stress.hostile_inputs --inputs $(or $(INPUTS),30000)

# EXAMPLES: how many random requests of each kind for each path of the server
fuzz: $(INSTALLED)
	LLCUDA_FUZZ_EXAMPLES=$(or $(EXAMPLES),200) HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest tests/server/test_every_path.py -v --timeout 0

# RUNS: how often; TESTS: of what. A run prints its seed; --randomly-seed=SEED repeats it.
shuffle: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .build/randomly 'pytest-randomly>=4,<6'
	for run in $$(seq $(or $(RUNS),30)); do \
	    PYTHONPATH=.build/randomly $(BIN)/python -m pytest $(or $(TESTS),tests) -v $(AT_ONCE) || exit 1; done

lint: $(INSTALLED)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# The warning is about MkDocs 2, which the group's bounds keep out.
docs: $(DOCS)/installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

oracles: $(ORACLES)/installed
	$(ORACLES)/bin/python -m pytest tests/oracles -v

# Wrong memory accesses and undefined behaviour of llcuda's own C++; GCC's libraries must be loaded first. The faults of damaged
# files are llcuda's to handle, and tests of too little memory need more of it here.
SANITIZED := tests/native tests/tensor tests/test_tensor_api.py tests/test_gguf_parser.py tests/test_nf4.py tests/embeddings
sanitize: $(SANITIZE)/installed-$(MODULES)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0:handle_segv=0:handle_sigbus=0:handle_sigfpe=0:quarantine_size_mb=8 \
	  UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
	  $(SANITIZE)/bin/python -m pytest $(SANITIZED) --ignore tests/native/test_recovery.py -v

# Wrong accesses of the kernels to the GPU's memory, then races in their shared memory. COMPUTE_SANITIZER: where it is.
sanitize-cuda: $(INSTALLED)
	for tool in memcheck racecheck; do \
	  $(or $(COMPUTE_SANITIZER),compute-sanitizer) --tool $$tool --error-exitcode 9 --report-api-errors no \
	    $(BIN)/python -m pytest tests/gpu -m sanitizer -q || exit 1; done

bench: $(INSTALLED)
	$(BIN)/python -m pytest tests/benchmarks -v -s --benchmark-enable --benchmark-disable-gc

wheel: $(RELEASE)/installed
	$(RELEASE)/bin/python build/wheel.py --cuda=OFF

# CUDA: 12 or 13; ARCHITECTURES: separated by ;
wheel-cuda: $(RELEASE)/installed
	$(RELEASE)/bin/python build/wheel.py --cuda=ON --cuda-version=$(or $(CUDA),12) --architectures='$(or $(ARCHITECTURES),75)'

# The CUDA wheels that `make wheel-cuda` has made are part of it.
release: $(RELEASE)/installed
	$(RELEASE)/bin/python build/release.py

clean:
	rm -rf $(VENV) $(ORACLES) $(DOCS) $(SANITIZE) $(RELEASE) .build dist site

$(INSTALLED): $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[dev]'
	rm -f $(VENV)/installed*
	touch $@

$(SANITIZE)/installed-$(MODULES): $(NATIVE)
	$(PYTHON) -m venv $(SANITIZE)
	$(SANITIZE)/bin/python -m pip install --quiet --upgrade pip
	$(SANITIZE)/bin/python -m pip install --editable '.[dev]' --config-settings=build-dir=.build/sanitize \
	  --config-settings=cmake.define.LLCUDA_SANITIZE=ON --config-settings=cmake.define.LLCUDA_CUDA=OFF
	rm -f $(SANITIZE)/installed*
	touch $@

# Only mkdocs and what it needs: the pages are made from the source, without building llcuda.
$(DOCS)/installed: pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --upgrade pip
	$(DOCS)/bin/python -m pip install --quiet --group docs
	touch $@

# What builds and checks wheels, without llcuda itself.
$(RELEASE)/installed: pyproject.toml
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet --upgrade pip
	$(RELEASE)/bin/python -m pip install --quiet --group release
	touch $@

# torch brings CUDA's libraries, and a build in their environment would turn CUDA on: they get one of
# their own, which sees the packages of the first.
$(ORACLES)/installed: pyproject.toml $(INSTALLED)
	$(PYTHON) -m venv $(ORACLES)
	$(ORACLES)/bin/python -m pip install --quiet --upgrade pip
	$(ORACLES)/bin/python -m pip install --quiet --group oracles
	echo "import site; site.addsitedir('$(abspath $(VENV))/lib/$$(ls $(VENV)/lib)/site-packages')" > \
	  $$(ls -d $(ORACLES)/lib/*/site-packages)/llcuda.pth
	touch $@
