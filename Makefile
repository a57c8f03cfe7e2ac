# make test and make bench each build the environment they need; nothing else is required but
# Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help bench test lint types unit sanitize readme reports models docs notebook pictures clean

help: ## show this help
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 10

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "flashmix needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

bench: $(READY) ## measure all mixers on this machine, in about three minutes
	$(BIN)/flashmix bench quick

test: lint types unit ## everything CI runs

lint: $(READY) ## style, formatting, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache > .lint-imports.log || { cat .lint-imports.log; exit 1; }
	@rm -f .lint-imports.log

types: $(READY) ## strict type check
	$(BIN)/mypy

unit: $(READY) ## tests, and the GPU kernels' arithmetic in Triton's interpreter
	$(BIN)/pytest -n 2
	TRITON_INTERPRET=1 $(BIN)/pytest -n 2 tests/test_triton_*.py

SANITIZE := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined

sanitize: $(READY) ## the native kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 FLASHMIX_REQUIRE_NATIVE=1 CXX=g++ FLASHMIX_CXXFLAGS="$(SANITIZE)" \
		$(BIN)/pytest -k "cpu and not compiles and not opcheck" tests/test_cpu.py tests/test_fnet.py \
		tests/test_local.py tests/test_topk.py tests/test_spectral.py tests/test_fourier.py \
		tests/test_gradients.py

readme: $(READY) ## write the README's tables and picture anew from the committed results
	$(BIN)/python scripts/update_readme.py

reports: $(READY) ## rebuild the reports of the committed runs, and the tables of README and docs/
	for run in benchmarks/results/*/*/; do \
		$(BIN)/flashmix report --no-figures $$run > /dev/null || exit 1; done
	$(BIN)/python scripts/update_readme.py
	$(BIN)/python scripts/update_kernel_tables.py

models: $(READY) ## write docs/models.md anew, in about a minute
	$(BIN)/python scripts/update_models.py

docs: $(READY) ## build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebook: $(READY) ## execute the notebook and keep its outputs, in about a minute
	$(BIN)/python scripts/run_notebook.py notebooks/main_benchmark.ipynb

pictures: $(READY) ## draw the pictures of docs/show.md anew
	$(BIN)/python scripts/draw_pictures.py

clean: ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
