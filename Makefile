# `make quickstart` and `make test` need Python 3.11+, make and a C++ compiler; pip brings the rest into $(VENV).
# Overridable: PYTHON=python3.12  VENV=.venv  EPOCHS=5  JOBS=4 (processes that run the tests)

PYTHON ?= python3
VENV ?= .venv
EPOCHS ?= 5
JOBS ?= auto

TORCH := torch==2.13.0
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile  # Python compiles what it imports

# Folders are listed too: deleting a file changes the time stamp of its folder.
SOURCES := pyproject.toml CMakeLists.txt LICENSE \
	$(shell find src native -not -path '*/__pycache__*' -not -path '*/torchadder/lib*')
CXX_FILES = $(shell find native benchmarks src tests -name '*.cpp' -o -name '*.c' -o -name '*.h')
AVX2 := ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 TORCHADDER_ISA=avx2
RUNS := runs/quickstart
# Where quickstart trains: a run that is already there continues.
run = --out $(RUNS)/$(1)-$(EPOCHS) $(if $(wildcard $(RUNS)/$(1)-$(EPOCHS)/recipe.json),--resume)

VENV_MADE := $(VENV)/pyvenv.cfg
TORCH_INSTALLED := $(VENV)/.installed-torch
PACKAGE_INSTALLED := $(VENV)/.installed-torchadder
DEV_INSTALLED := $(VENV)/.installed-dev
BENCH_INSTALLED := $(VENV)/.installed-bench

.DELETE_ON_ERROR:
.PHONY: quickstart test lint bench bench-avx2 format clean

quickstart: $(PACKAGE_INSTALLED)  ## train LeNet-5-BN on MNIST as AdderNet and as CNN; print accuracies (8 bits too) and latencies; write a report
	$(BIN)/torchadder train lenet5bn-mnist --op adder --epochs $(EPOCHS) --no-report $(call run,adder)
	$(BIN)/torchadder train lenet5bn-mnist --op conv --epochs $(EPOCHS) --no-report $(call run,conv)
	@echo
	@$(BIN)/torchadder eval $(RUNS)/conv-$(EPOCHS)/last.pt
	@$(BIN)/torchadder eval $(RUNS)/adder-$(EPOCHS)/last.pt
	@$(BIN)/torchadder quantize $(RUNS)/conv-$(EPOCHS)/last.pt -o $(RUNS)/conv-$(EPOCHS)/int8.tadder
	@$(BIN)/torchadder quantize $(RUNS)/adder-$(EPOCHS)/last.pt -o $(RUNS)/adder-$(EPOCHS)/int8.tadder
	@echo
	@$(BIN)/torchadder bench latency lenet5bn --batch 1,64 --threads 1 --repetitions 5 --out $(RUNS)/latency.json
	@echo
	@$(BIN)/torchadder report $(RUNS)/adder-$(EPOCHS) $(RUNS)/conv-$(EPOCHS) -o $(RUNS)/report.html
	@echo "open it in a browser; to draw digits yourself: $(BIN)/torchadder demo $(RUNS)/adder-$(EPOCHS)/int8.tadder -o $(RUNS)/demo.html"

test: $(DEV_INSTALLED)  ## run the test suite on all cores, against the installed package
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: $(DEV_INSTALLED)  ## check style and types; change nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(DEV_INSTALLED)  ## repair what lint reports, as far as that is mechanical
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(BENCH_INSTALLED)  ## measure this machine, write results/, rebuild the tables of README and docs
	$(BIN)/python benchmarks/limits.py
	$(BIN)/torchadder bench layers --out results/bench-layers.json
	$(BIN)/torchadder bench family --out results/bench-family.json
	$(BIN)/torchadder bench train --out results/bench-train.json
	$(BIN)/torchadder bench kernels resnet20 resnet18 --out results/bench-kernels.json
	$(BIN)/torchadder bench latency --out results/bench-latency.json
	$(BIN)/python benchmarks/tables.py

bench-avx2: $(BENCH_INSTALLED)  ## the same, with torchadder and its rivals limited to AVX2
	$(AVX2) $(BIN)/torchadder bench layers --out results/bench-layers-avx2.json
	$(AVX2) $(BIN)/torchadder bench train --out results/bench-train-avx2.json
	$(AVX2) $(BIN)/torchadder bench kernels resnet20 resnet18 --out results/bench-kernels-avx2.json
	$(BIN)/torchadder bench latency --cpu avx2 --out results/bench-latency-avx2.json
	$(BIN)/python benchmarks/tables.py

clean:  ## remove what make has built; runs/ and results/ stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(VENV_MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: '$(PYTHON)' is missing or older than Python 3.11; name another one with PYTHON=python3.x"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "error: $(PYTHON) has no venv module; install it (Debian, Ubuntu: python3-venv) or set PYTHON="; exit 2; }
	@for name in $${CXX:-c++ g++ clang++}; do command -v $$name >/dev/null && exit; done; \
		echo "error: no C++ compiler found; install one (Debian, Ubuntu: apt install g++; macOS: xcode-select --install) or name it with CXX="; exit 2
	$(PYTHON) -m venv $(VENV)

# Installed before the package, which accepts a range of versions: this one is tested.
$(TORCH_INSTALLED): $(VENV_MADE) Makefile
	$(INSTALL) $(TORCH)
	@touch $@

$(PACKAGE_INSTALLED): $(TORCH_INSTALLED) $(SOURCES)
	$(INSTALL) '.[cli,report]'
	@touch $@

$(BENCH_INSTALLED): $(PACKAGE_INSTALLED) pyproject.toml
	$(INSTALL) 'torchadder[bench]'
	@touch $@

$(DEV_INSTALLED): $(PACKAGE_INSTALLED) pyproject.toml
	$(INSTALL) 'torchadder[dev]'
	@touch $@
