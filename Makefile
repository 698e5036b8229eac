# Everything happens in .venv and in environments beside it; nothing outside of this folder is touched but the caches of pip and uv.
PYTHON ?= python3
THREADS ?= 1
BIN := .venv/bin
# Files are installed only if their SHA-256 is in a lock. A lock names all that is needed, and setuptools of the lock builds what is source.
HASHED := -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes --no-deps --no-build-isolation
UV := .venv-tools/bin/uv
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test long check slow serving cluster browser deepspeed faults fuzz docs lock audit lowest newest clean

quickstart: .venv/installed
	$(BIN)/python examples/prepare_quickstart.py downloads
	HF_HUB_OFFLINE=1 $(BIN)/lorank run examples/quickstart.yaml --output runs/quickstart

# Two processes with a thread each: most tests keep one core busy. Threads that wait sleep, so that more threads than cores are slow at most.
test: .venv/installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$(THREADS) OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses 2

# Tests that take longer: runs and grids that are killed and continued, several processes, more cases of what `make test` has one of.
long: .venv/installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$(THREADS) OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses 2 -m long

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tests on real models: what `make quickstart` downloads, and more. CoLA is in no package: put train.tsv and validation.tsv (sentence, label)
# into downloads/cola, or give their folder as LORANK_COLA; without it its test is skipped.
slow: .venv/installed
	$(BIN)/python examples/prepare_quickstart.py downloads
	$(BIN)/python examples/prepare_more.py downloads
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -rs -m real_model

# Exported adapters in real engines, and in engines' and tools' own readers. They are installed beside .venv, not into it.
serving: .venv-serving/installed
	$(BIN)/python examples/prepare_more.py downloads smollm2 smollm2-gguf
	HF_HUB_OFFLINE=1 .venv-serving/bin/python -m pytest -m serving

# Cells of a comparison on a Ray cluster.
cluster: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m cluster

# 200 kills, 50 signals, 50 full disks, every file of every method damaged, 25 pairs of writers, 15 stopped comparisons and
# measurements of headroom. LORANK_FAULTS=20 for a tenth of it.
faults: .venv/installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m faults tests/faults

# Mutations of all files that are read, guided by what of lorank they reach: 3,000 of each kind, or 400 seconds. LOADERS="recipes csv" for some kinds.
fuzz: .venv-fuzz/installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv-fuzz/bin/python -m tests.fuzz_loaders -runs=3000 -max_total_time=400 $(LOADERS)

# The report of a run in Chromium, which is not installed here: apt install chromium chromium-driver. LORANK_SCREENSHOTS=FOLDER keeps pictures.
browser: .venv/installed
	$(BIN)/python -m pytest -rs -m browser

# The documentation as HTML, build/docs/index.html. A warning is an error, so links and anchors between pages resolve. Links to elsewhere are in build/docs/external_links.txt, and nobody follows them here.
docs: .venv/installed
	rm -rf build/docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -d build/doctrees -c docs . build/docs

# A plan trained under DeepSpeed's ZeRO-2 and ZeRO-3 in two processes on a CPU. It is installed beside .venv, not into it, and compiles nothing.
deepspeed: .venv-deepspeed/installed
	HF_HUB_OFFLINE=1 DS_ACCELERATOR=cpu .venv-deepspeed/bin/python -m pytest -m deepspeed

# The locks, from pyproject.toml. Versions stay where they fit: UPGRADE='--upgrade-package trl' moves one, UPGRADE=--upgrade all.
# They hold for Python 3.11.5 and newer, as soupsieve, which the documentation needs, does.
LOCK = $(UV) pip compile --quiet --universal --python-version 3.11.5 --generate-hashes --no-annotate --custom-compile-command 'make lock' $(UPGRADE)
lock: .venv-tools/installed
	$(LOCK) --all-extras pyproject.toml --output-file locks/dev.txt
	$(LOCK) --group tools --output-file locks/tools.txt
	$(LOCK) --no-deps --group serving --output-file locks/serving.txt
	$(LOCK) --no-deps --group deepspeed --output-file locks/deepspeed.txt
	$(LOCK) --no-deps --group fuzz --output-file locks/fuzz.txt

# Known vulnerabilities of everything in the locks, as PyPI tells them. A package that PyPI does not answer for is a failure.
audit: .venv-tools/installed
	.venv-tools/bin/pip-audit --strict --progress-spinner off --disable-pip --require-hashes \
		--requirement locks/dev.txt --requirement locks/tools.txt --requirement locks/serving.txt --requirement locks/deepspeed.txt \
		--requirement locks/fuzz.txt

# The tests with the lowest versions that pyproject.toml allows, and with the newest releases that go together. No lock: what is released moves.
# The environments are .venv-lowest and .venv-newest; PYTHON_LOWEST and PYTHON_NEWEST are versions that uv finds, or interpreters.
PYTHON_LOWEST ?= 3.11
PYTHON_NEWEST ?= 3.13
# transformers 5.24.0 asks for PEFT 0.22, which is not released. `make newest BUT=` takes the newest of everything.
BUT ?= 'transformers<5.24'
lowest: .venv-tools/installed
	$(UV) venv --quiet --clear --no-python-downloads --python $(PYTHON_LOWEST) .venv-lowest
	$(UV) pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$(THREADS) OMP_WAIT_POLICY=PASSIVE .venv-lowest/bin/python -m pytest --numprocesses 2 $(TESTS)

newest: .venv-tools/installed
	$(UV) venv --quiet --clear --no-python-downloads --python $(PYTHON_NEWEST) .venv-newest
	$(UV) pip install --quiet --python .venv-newest/bin/python --upgrade --editable '.[dev]' $(BUT)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$(THREADS) OMP_WAIT_POLICY=PASSIVE .venv-newest/bin/python -m pytest --numprocesses 2 $(TESTS)

.venv-tools/installed: locks/tools.txt
	$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/python $(HASHED) --requirement locks/tools.txt
	touch $@

# What a command needs and .venv does not have, beside it: locks/NAME.txt in .venv-NAME, which sees what .venv has.
.venv-%/installed: .venv/installed locks/%.txt
	$(BIN)/python -m venv .venv-$*
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$(.venv-$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	.venv-$*/bin/python $(HASHED) --requirement locks/$*.txt
	touch $@

# Where pip finds the CPU wheel of torch it is taken, and CUDA's libraries of the lock are left out. setuptools is first: it builds.
.venv/installed: pyproject.toml locks/dev.txt locks/torch-cpu.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11, 5) else "error: this needs Python 3.11.5 or newer")'
	$(PYTHON) -m venv .venv
	sed -n '/^setuptools==/,/[^\\]$$/p' locks/dev.txt > .venv/locked.txt
	$(BIN)/python $(HASHED) --requirement .venv/locked.txt
	if $(BIN)/python $(HASHED) --requirement locks/torch-cpu.txt; \
		then sed -E '/^(torch==|triton==|cuda-|nvidia-)/,/[^\\]$$/d' locks/dev.txt > .venv/locked.txt; \
		else echo "pip finds no CPU wheel of torch (locks/torch-cpu.txt): PyPI's torch is installed"; cp locks/dev.txt .venv/locked.txt; fi
	$(BIN)/python $(HASHED) --requirement .venv/locked.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check --disable-pip-version-check
	touch $@

clean:
	rm -rf .venv .venv-serving .venv-deepspeed .venv-fuzz .venv-tools .venv-lowest .venv-newest runs downloads build
