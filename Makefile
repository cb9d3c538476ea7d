# From a bare machine to a trained detector (make demo) and to all tests (make test).
PYTHON ?= python3
JOBS ?= 2
MINUTES ?= 60

help:
	@echo 'make demo        train, evaluate and draw FocalNet-T Mask R-CNN on the mini dataset'
	@echo 'make study       train small networks: do fitted weights of a classifier help a detector?'
	@echo 'make test        all tests, in .venv with the OneDL stack'
	@echo 'make test-stock  the tests marked stock, in .venv-stock with the stock OpenMMLab stack'
	@echo 'make test-newest the core tests, in .venv-newest with the newest torch'
	@echo 'make gpu         everything that a first hour on a GPU shows, on one page'
	@echo 'make faults      kill runs, fill disks, break files; write docs/faults.md (ARGS="The disk": some)'
	@echo 'make fuzz        random files for every reader, for MINUTES=60'
	@echo 'make lint        ruff and mypy; make format lets ruff rewrite the files'
	@echo 'make docs        the pages of docs/ as HTML in build/docs, warnings are errors'
	@echo 'make clean       delete the environments and what builds left'
	@echo 'PYTHON=python3.11 chooses the Python of a new environment, ARGS="-k ops" goes to pytest,'
	@echo 'which runs JOBS=2 tests at once.'

demo: .venv/installed
	@echo 'make: training the demo'
	@.venv/bin/python tools/demo.py

study: .venv/installed
	@echo 'make: the study of transfer, 12 to 21 minutes a family on two cores'
	@.venv/bin/focal-mm study $(ARGS)

test: .venv/installed
	@echo 'make: all tests on the OneDL stack'
	@.venv/bin/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-stock: .venv-stock/installed
	@echo 'make: the tests marked stock, on the stock OpenMMLab stack'
	@.venv-stock/bin/python -m pytest -n $(JOBS) --dist worksteal -m 'stock and not onedl' $(ARGS)

test-newest: .venv-newest/installed
	@echo 'make: the core tests on the OneDL stack with the newest torch'
	@.venv-newest/bin/python -m pytest -n $(JOBS) --dist worksteal \
	    tests/backbones tests/kernels tests/weights tests/compat $(ARGS)

gpu: .venv/installed
	@echo 'make: golden cases, kernels, networks and training on the GPU'
	@PYTHONPATH=.:tests/data/golden .venv/bin/python tests/gpu.py $(ARGS)

faults: .venv/installed
	@echo 'make: injecting the faults of docs/faults.md, and writing what came of them'
	@OMP_NUM_THREADS=1 .venv/bin/python -W ignore tests/faults/table.py $(ARGS)

fuzz: .venv/installed
	@echo 'make: random files for every reader, $(MINUTES) minutes'
	@FOCAL_MM_FUZZ_MINUTES=$(MINUTES) .venv/bin/python -m pytest -n $(JOBS) --dist load \
	    tests/fuzz $(ARGS)

lint: .venv/installed
	@echo 'make: ruff check, ruff format --check, mypy'
	@.venv/bin/python -m ruff check .
	@.venv/bin/python -m ruff format --check .
	@.venv/bin/python -m mypy

format: .venv/installed
	@.venv/bin/python -m ruff check --fix .
	@.venv/bin/python -m ruff format .

docs: .venv/installed
	@echo 'make: building the pages of docs/'
	@.venv/bin/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo 'make: build/docs/index.html'

clean:
	rm -rf .venv .venv-stock .venv-newest .mypy_cache .ruff_cache build docs/generated focal_mm.egg-info

.venv/installed: EXTRAS = onedl,test,keypoints,lint,docs
.venv/installed: CONSTRAINTS = constraints.txt
.venv-stock/installed: EXTRAS = openmmlab,test,keypoints
.venv-stock/installed: CONSTRAINTS = constraints.txt
.venv-newest/installed: EXTRAS = onedl,test,keypoints
.venv-newest/installed: CONSTRAINTS = .venv-newest/constraints.txt
.venv-newest/installed: constraints-newest.txt

# The file `installed` is written last; until then `unfinished` marks a new environment, because pip
# accepts a partly unpacked package as installed.
.venv/installed .venv-stock/installed .venv-newest/installed: constraints.txt pyproject.toml setup.py
	@if [ -e $(@D)/unfinished ]; then \
	    echo 'make: the last installation into $(@D) was interrupted; starting over'; \
	    rm -rf $(@D); \
	fi
	@if [ ! -e $(@D) ]; then \
	    version=$$("$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' || echo none); \
	    case $$version in \
	        3.10 | 3.11 | 3.12 | 3.13) ;; \
	        *) echo "make: focal_mm needs Python 3.10 to 3.13, and $(PYTHON) is $$version;" \
	                'choose another: make PYTHON=python3.11 $(MAKECMDGOALS)' >&2; exit 1;; \
	    esac; \
	    echo "make: new environment $(@D) with Python $$version"; \
	    mkdir $(@D) && touch $(@D)/unfinished && "$(PYTHON)" -m venv $(@D); \
	fi
	@echo 'make: installing torch, OpenMMLab and focal_mm [$(EXTRAS)] into $(@D)' \
	    '(6 GB on disk; a few minutes from nothing)'
# constraints-newest.txt, and the lines of constraints.txt whose package it does not name.
	@awk -F== 'FNR == NR { newer[$$1]; print; next } !($$1 in newer)' \
	    constraints-newest.txt constraints.txt > $(@D)/constraints.txt
	@$(@D)/bin/python -m pip install --disable-pip-version-check --no-compile -c $(CONSTRAINTS) \
	    -e '.[$(EXTRAS)]'
	@$(@D)/bin/python -m pip install --disable-pip-version-check --no-compile -c $(CONSTRAINTS) \
	    --no-deps mmpose
# Bytecode, without which each import compiles thousands of files again where Python may not write
# any itself (PYTHONDONTWRITEBYTECODE). compileall uses all cores, and pip one. It fails on the few
# files in site-packages that are templates or Python 2.
	@echo 'make: compiling the packages of $(@D) to bytecode'
	@$(@D)/bin/python -m compileall -qq -j 0 $(@D)/lib || true
	@rm -f $(@D)/unfinished
	@touch $@

.PHONY: help demo study gpu test test-stock test-newest faults fuzz lint format docs clean
