# `make demo` and `make test` do everything from a fresh clone: they set up the environment first.
VENV ?= .venv
PY := $(VENV)/bin/python
PACKAGES := base export runtime fedproto agent coordinator experiments
# mypy takes modules by name: their files would be named after the folder of this checkout.
MODULES = $(shell find $(PACKAGES) -name '*.py' ! -name '*_pb2*' | sed -e 's,/__init__.py,,' -e 's,.py$$,,' -e 's,/,.,g' -e 's,^,-m flamest.,')
STAMP := $(VENV)/.flamest-dev
DEMO_STAMP := $(VENV)/.flamest-demo
GPU_STAMP := $(VENV)/.flamest-gpu
RIG := build/tensorrt/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo rig test check bench gpu-setup gpu-check protos bundle docs reference pages screenshots soak clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## make the virtual environment with everything a developer needs

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV): downloads about 5 GB, because the exporter needs torch with torchvision"
	@test -x $(PY) || python3 -m venv $(VENV)
	@$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	@touch $@

demo: $(DEMO_STAMP)  ## run the whole system on this machine: bundle, four silos, a coordinator, real video
	@rm -rf demo-out
	@$(VENV)/bin/flamest-demo --out demo-out

# The demo needs what a silo and a coordinator need, without PyTorch; after `make setup` everything is there.
$(DEMO_STAMP): pyproject.toml constraints.txt
	@set -e; if test -e $(STAMP); then $(MAKE) --no-print-directory setup; else \
	    echo "setting up $(VENV) for the demo: downloads about 180 MB"; \
	    test -x $(PY) || python3 -m venv $(VENV); \
	    $(PY) -m pip install --quiet --constraint constraints.txt --editable '.[agent,coordinator]'; \
	fi
	@touch $@

rig: $(RIG)  ## TensorRT's Python classes of three versions, for tests without a GPU (115 MB)

$(RIG): tests/tensorrt_rig/install.py | $(STAMP)
	@$(PY) tests/tensorrt_rig/install.py build/tensorrt
	@touch $@

test: setup rig  ## run the test suite without the soak tests
	$(PY) -m pytest -m "not soak" --durations=15

check: setup  ## check format, lint and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	@mkdir -p build/typing && ln -sfn ../.. build/typing/flamest
	@$(VENV)/bin/mypy $(MODULES)

bench: setup  ## measure; results go to bench/results
	$(PY) -m bench

gpu-setup: $(GPU_STAMP)  ## setup, with TensorRT and ONNX Runtime CUDA (large downloads)

# onnxruntime and onnxruntime-gpu share a folder: uninstall both before installing one, or one's files overwrite the other's.
$(GPU_STAMP): $(STAMP)
	@$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[all,tensorrt]'
	@$(PY) -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu
	@$(PY) -m pip install --quiet 'onnxruntime-gpu[cuda,cudnn]>=1.23'
	@touch $@

gpu-check: gpu-setup  ## on a machine with an NVIDIA GPU: build, verify, measure; one report to send back
	$(VENV)/bin/flamest-export gpu-check --results bench/results

protos: setup  ## regenerate the protobuf code from fedproto/flamest_v1.proto
	$(PY) -m flamest.fedproto.generate

docs: setup  ## build the documentation as a site: build/site
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "the documentation: build/site/index.html"

reference: setup  ## write the pages of docs/reference that are made from the code
	$(PY) -m flamest.docs.tooling

bundle: setup  ## export the mini-world's bundle again, which comes with the package
	$(PY) -m flamest.export.packaged

pages: setup  ## test the report pages in a browser: needs Chromium (apt install chromium)
	$(PY) -m pytest -m pages

screenshots: setup  ## take the documentation's screenshots of demo-out/report.html (after `make demo`)
	$(PY) -m flamest.experiments.report.screenshots demo-out/report.html docs/images

soak: setup  ## run the soak tests
	$(PY) -m pytest -m soak

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist demo-out *.egg-info
