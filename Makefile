# From a bare machine to a trained detector (make demo) and to all tests (make test).
PYTHON ?= python3
JOBS ?= 2

help:
	@echo 'make demo        train, evaluate and draw FocalNet-T Mask R-CNN on the mini dataset'
	@echo 'make test        all tests, in .venv with the OneDL stack'
	@echo 'make test-stock  the tests marked stock, in .venv-stock with the stock OpenMMLab stack'
	@echo 'make clean       delete both environments and what builds left'
	@echo 'PYTHON=python3.11 chooses the Python of a new environment, ARGS="-k ops" goes to pytest,'
	@echo 'which runs JOBS=2 tests at once.'

demo: .venv/installed
	@echo 'make: training the demo'
	@.venv/bin/python tools/demo.py

test: .venv/installed
	@echo 'make: all tests on the OneDL stack'
	@.venv/bin/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-stock: .venv-stock/installed
	@echo 'make: the tests marked stock, on the stock OpenMMLab stack'
	@.venv-stock/bin/python -m pytest -n $(JOBS) --dist worksteal -m stock $(ARGS)

clean:
	rm -rf .venv .venv-stock build focal_mm.egg-info

.venv/installed: STACK = onedl
.venv-stock/installed: STACK = openmmlab

# The file `installed` is the last thing that an installation writes; `unfinished` marks a new
# environment until then, because pip takes half a package for a whole one.
.venv/installed .venv-stock/installed: constraints.txt pyproject.toml setup.py
	@if [ -e $(@D)/unfinished ]; then \
	    echo 'make: an installation into $(@D) was cut short; starting over'; \
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
	@echo 'make: installing torch, the $(STACK) stack and focal_mm into $(@D)' \
	    '(6 GB on disk; a few minutes from nothing)'
	@$(@D)/bin/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt \
	    -e '.[$(STACK),test,keypoints]'
	@$(@D)/bin/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt \
	    --no-deps mmpose
	@rm -f $(@D)/unfinished
	@touch $@

.PHONY: help demo test test-stock clean
