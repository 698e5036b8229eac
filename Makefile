# Everything happens in .venv; nothing outside of this folder is touched but pip's cache.
PYTHON ?= python3
THREADS ?= 1
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test long check slow serving cluster browser deepspeed faults docs clean

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

# Cells of a comparison on a Ray cluster, which is installed into .venv.
cluster: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[ray]'
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m cluster

# 200 kills, 50 signals, 50 full disks, every file of every method damaged, 25 pairs of writers, 15 stopped comparisons and
# measurements of headroom. LORANK_FAULTS=20 for a tenth of it.
faults: .venv/installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m faults tests/faults

# The report of a run in Chromium, which is not installed here: apt install chromium chromium-driver. LORANK_SCREENSHOTS=FOLDER keeps pictures.
browser: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[browser]'
	$(BIN)/python -m pytest -rs -m browser

# The documentation as HTML, build/docs/index.html. Sphinx is installed into .venv. A warning is an error, so links and anchors
# between pages resolve. Links to elsewhere are in build/docs/external_links.txt, and nobody follows them here.
docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	rm -rf build/docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -d build/doctrees -c docs . build/docs

# A plan trained under DeepSpeed's ZeRO-2 and ZeRO-3 in two processes on a CPU. It is installed beside .venv, not into it, and compiles nothing.
deepspeed: .venv-deepspeed/installed
	HF_HUB_OFFLINE=1 DS_ACCELERATOR=cpu .venv-deepspeed/bin/python -m pytest -m deepspeed

# What a command needs and .venv does not have, beside it: requirements-NAME.txt in .venv-NAME, which sees what .venv has.
.venv-%/installed: .venv/installed requirements-%.txt
	$(BIN)/python -m venv .venv-$*
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$(.venv-$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-$*.txt
	touch $@

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: lorank needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-serving .venv-deepspeed runs downloads build
