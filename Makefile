# `make demo` and `make test` work on a fresh checkout: they install what they need into .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: setup demo test test-all test-browser lint format types imports docs check fuzz fuzz-guided chaos chaos-short bench bench-step bench-speed assets clean

setup: $(INSTALLED)

# torch comes first and alone: where the package index offers a CPU build, this version takes it, and nothing
# else then asks for a larger one.
$(INSTALLED): pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[onnx]'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement requirements-dev.txt
	touch $(INSTALLED)

demo: setup  ## learn horse, ship, truck; forget cat, frog; retain the other five classes
	$(BIN)/kswap demo classification --output runs/demo

test: setup  ## the default tests: under 5 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: setup  ## all tests, with coverage
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report term

test-browser: setup  ## the page of a run in a real Chromium, which is installed if it is missing (Debian, as root)
	test -x /usr/bin/chromium || (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium)
	KSWAP_NEEDS_BROWSER=1 $(BIN)/python -m pytest -n 0 tests/browser

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/make_docs.py --check

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

docs: setup  ## redraw what in docs/ is made from the code
	$(BIN)/python scripts/make_docs.py

check: lint types imports test

CASES ?= 108000
fuzz: setup  ## CASES damaged configs, annotations, label maps and pictures, on 12 targets
	FUZZ_CASES=$$(( ($(CASES) + 11) / 12 )) $(BIN)/python -m pytest -n 2 --dist worksteal tests/fuzz

fuzz-guided: setup  ## the same guided by coverage: CASES in all on 5 targets (atheris, where PyPI has it)
	$(BIN)/pip install --quiet --disable-pip-version-check atheris
	for target in config coco voc yolo picture; do \
	  PYTHONPATH=tests $(BIN)/python tests/fuzz/guided.py $$target -runs=$$(( ($(CASES) + 4) / 5 )) -timeout=2 -rss_limit_mb=2048 || exit 1; \
	done

KILLS ?= 100
ROUNDS ?= 3
chaos: setup  ## KILLS by SIGKILL at random moments, each gone on from; a full disk, damage, SIGTERM, ROUNDS times
	PYTHONPATH=tests $(BIN)/python -m chaos --kills $(KILLS) --output runs/chaos
	OMP_NUM_THREADS=1 CHAOS_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest -n 0 tests/chaos

chaos-short: setup  ## 9 kills, and one damaged file of each kind
	PYTHONPATH=tests $(BIN)/python -m chaos --kills 9 --output runs/chaos
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 tests/chaos/test_damage.py

bench: setup  ## the tables of docs/results.md: hours on 2 cores, goes on where it was stopped
	$(BIN)/python scripts/make_benchmark.py
	for task in classification segmentation detection; do \
	  $(BIN)/python benchmarks/swaps.py $$task --jobs 2 || exit 1; \
	done
	$(BIN)/python benchmarks/demo.py
	$(BIN)/python benchmarks/order_study.py --jobs 2
	$(BIN)/python benchmarks/methods.py --jobs 2

bench-step: setup  ## cost of a training step against two bare forwards
	$(BIN)/python benchmarks/step.py

bench-speed: setup  ## every table of docs/performance.md and docs/scale.md: hours on 2 cores
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/gpu.py
	$(BIN)/python benchmarks/ranks.py
	$(BIN)/python benchmarks/streaming.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python scripts/make_benchmark.py
	for task in classification segmentation detection; do \
	  $(BIN)/python benchmarks/time_to_score.py $$task || exit 1; \
	done
	$(BIN)/python benchmarks/retraining.py fine-tuning --seeds 0 1 2
	$(BIN)/python benchmarks/retraining.py scratch

assets: setup  ## make the embedded demo models and images again (hours)
	$(BIN)/python scripts/make_demo_classification.py
	$(BIN)/python scripts/make_demo_scenes.py
	$(BIN)/python scripts/write_assets_readme.py

clean:
	rm -rf .venv build dist runs .pytest_cache .mypy_cache .ruff_cache
