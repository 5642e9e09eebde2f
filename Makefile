# `make demo` and `make test` do everything from a fresh clone: they set up the environment first.
VENV ?= .venv
PY := $(VENV)/bin/python
PACKAGES := base export runtime fedproto agent coordinator experiments api
# What runs in one environment with Flower: the wire, both ends of it, whole federations; without what needs PyTorch or OpenVINO.
FLOWER_SUITE := tests/fedproto tests/coordinator tests/agent tests/federation $(addprefix --ignore=tests/agent/, \
	test_predict.py cli/test_backend_options.py $(addprefix training/, test_graph.py test_options.py test_private.py test_trainer.py))
# mypy takes modules by name: their files would be named after the folder of this checkout.
MODULES = $(shell find $(PACKAGES) docs/tooling -name '*.py' ! -name '*_pb2*' | sed -e 's,/__init__.py,,' -e 's,.py$$,,' -e 's,/,.,g' -e 's,^,-m flamest.,')
STAMP := $(VENV)/.flamest-dev
DEMO_STAMP := $(VENV)/.flamest-demo
# Of the packages for the GPU: 13 needs driver 580.
CUDA ?= 13
GPU_VENV ?= .venv-gpu$(if $(filter 12,$(CUDA)),-cu12)
GPU_STAMP := $(GPU_VENV)/.flamest-gpu
RIG := build/tensorrt/.installed
PROTOC := build/protoc/.installed
# Flower and this package in one environment; with the agent too, and with what runs tests, for `make flower`.
FLOWER := build/flower/.installed
FLOWER_TESTS := build/flower/.tests
# What builds a release: small, because a wheelhouse is made by administrators too.
RELEASE := build/release/.installed
RELEASE_PY := build/release/bin/python
ROLE ?= agent
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo setup test check flower upgrades soak pages docs bench reference protos bundle features \
	notebook screenshots dist requirements wheelhouse package-test gpu-setup gpu-check gpu-check-dry rig protoc clean

help:  ## list the targets
	@awk -F ':.*## ' '/^##@/ {print "\n" substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ To begin with

demo: $(DEMO_STAMP)  ## run the whole system on this machine: bundle, four silos, a coordinator, real video
	@rm -rf demo-out
	@PYTHONDONTWRITEBYTECODE= $(VENV)/bin/flamest-demo --out demo-out

# The demo needs what a silo and a coordinator need, without PyTorch; after `make setup` everything is there. Only what
# is imported gets compiled: that saves 90 MB.
ifneq ($(wildcard $(STAMP)),)
$(DEMO_STAMP): $(STAMP)
	@touch $@
else
$(DEMO_STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV) for the demo: downloads about 175 MB"
	@test -x $(PY) || python3 -m venv $(VENV)
	@$(PY) -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[agent,coordinator]'
	@touch $@
endif

setup: $(STAMP)  ## make the virtual environment with everything a developer needs

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV): downloads about 5 GB, because the exporter needs torch with torchvision"
	@test -x $(PY) || python3 -m venv $(VENV)
	@$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	@touch $@

# Hundreds of processes: where bytecode is written, each starts in two thirds of the time. The labelling page's browser
# wants the machine for itself: `make pages`.
test: setup rig protoc $(FLOWER)  ## run the test suite without the soak tests and the labelling page in a browser
	PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -m "not soak" --numprocesses=2 --dist=loadfile --no-loadscope-reorder \
		--durations=15 --ignore=tests/pages/test_labelling_in_browser.py

$(FLOWER): pyproject.toml constraints-flower.txt
	@test -x $(@D)/bin/python || python3 -m venv $(@D)
	@$(@D)/bin/pip install --quiet --constraint constraints-flower.txt flwr --editable '.[coordinator]'
	@touch $@

##@ Before a change is proposed

check: setup  ## check format, lint and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	@mkdir -p build/typing && ln -sfn ../.. build/typing/flamest
	@$(VENV)/bin/mypy $(MODULES)

flower: $(FLOWER_TESTS)  ## run tests in an environment with Flower and its versions of protobuf, typer and rich (300 MB)
	@build/flower/bin/pip check
	build/flower/bin/python -m pytest -m "not soak" $(FLOWER_SUITE) -k "not init_fills_in and not config_compares"

$(FLOWER_TESTS): $(FLOWER)
	@$(@D)/bin/pip install --quiet --constraint constraints-flower.txt --editable '.[agent,coordinator]' \
		hypothesis psutil pytest pytest-xdist trustme
	@touch $@

upgrades: setup  ## open and continue what release 0.2.0 wrote, made by the wheel of its tag
	$(PY) -m pytest -m "soak or not soak" tests/upgrades

soak: setup  ## run the soak tests
	$(PY) -m pytest -m soak

pages: setup  ## test the report pages and the labelling page in a browser: needs Chromium (apt install chromium)
	$(PY) -m pytest -m pages

docs: setup  ## build the documentation as a site: build/site
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "the documentation: build/site/index.html"

bench: setup  ## measure; results go to bench/results
	$(PY) -m bench

##@ What is made from something else

reference: setup  ## write the pages of docs/reference that are made from the code
	$(PY) -m flamest.docs.tooling

protos: setup protoc  ## regenerate the protobuf code from fedproto/flamest_v1.proto
	$(PY) -m flamest.fedproto.generate

bundle: setup  ## export the mini-world's bundle again, which comes with the package
	$(PY) -m flamest.export.packaged

features: setup  ## extract the mini-world's features again, which come with the package
	$(PY) -m flamest.experiments.miniworld.sample

notebook: setup  ## run examples/quickstart.ipynb and keep its outputs
	$(PY) -c "import nbclient, nbformat; path = 'examples/quickstart.ipynb'; book = nbformat.read(path, 4); \
	nbclient.NotebookClient(book, record_timing=False).execute(); nbformat.write(book, path)"

screenshots: setup  ## take the documentation's screenshots: of demo-out/report.html (after `make demo`), of the labelling page
	$(PY) -m flamest.experiments.report.screenshots demo-out/report.html docs/images
	$(PY) -m flamest.experiments.report.labelling_screenshots docs/images

##@ A release

$(RELEASE): constraints.txt
	@test -x $(RELEASE_PY) || python3 -m venv $(@D)
	@$(@D)/bin/pip install --quiet --constraint constraints.txt build uv
	@touch $@

dist: $(RELEASE)  ## build the wheel and the sdist: dist/
	@rm -rf dist/*.whl dist/*.tar.gz build/lib build/bdist.*
	@$(RELEASE_PY) -m build --outdir dist . >build/release/log 2>&1 || { cat build/release/log; exit 1; }

requirements: dist  ## a hashed requirements file for each role, next to the wheel: dist/requirements-ROLE.txt
	@$(RELEASE_PY) release/requirements.py --dist dist

wheelhouse: dist  ## every wheel of a role in one folder, for machines without a network: make wheelhouse ROLE=agent
	@$(RELEASE_PY) release/requirements.py --dist dist --role $(ROLE)
	@$(RELEASE_PY) release/wheelhouse.py --dist dist --role $(ROLE) $(if $(PYTHON),--python $(PYTHON))

package-test: requirements  ## install wheel, sdist and wheelhouses in clean environments, on every Python at hand
	$(RELEASE_PY) release/try_install.py --dist dist

##@ With an NVIDIA GPU

gpu-setup: $(GPU_STAMP)  ## an environment like that of setup, with TensorRT and ONNX Runtime for CUDA 13 (or CUDA=12): .venv-gpu (8 GB)

# Of its own: onnxruntime and onnxruntime-gpu have the same files, and only one of them may be installed. For CUDA 12
# PyTorch is an older one than the tests' (pyproject.toml says why).
$(GPU_STAMP): pyproject.toml constraints.txt
	@test -x $(GPU_VENV)/bin/python || python3 -m venv $(GPU_VENV)
	@grep -vE '^($(if $(filter 12,$(CUDA)),torch|torchvision,none))==' constraints.txt >$(GPU_VENV)/constraints.txt
	@$(GPU_VENV)/bin/pip install --quiet --constraint $(GPU_VENV)/constraints.txt \
		--editable '.[dev-gpu$(if $(filter 12,$(CUDA)),-cu12)]'
	@touch $@

gpu-check: gpu-setup  ## on a machine with an NVIDIA GPU: build, verify, measure; one report to send back
	$(GPU_VENV)/bin/flamest-export gpu-check --results bench/results

gpu-check-dry: setup rig  ## the steps of gpu-check here, with stand-ins for TensorRT and a GPU: build/gpu-check-dry
	$(PY) tests/tensorrt_rig/dry_gpu_check.py build/gpu-check-dry

##@ What the others set up by themselves

rig: $(RIG)  ## TensorRT's Python classes of three versions, for tests without a GPU (115 MB)

$(RIG): tests/tensorrt_rig/install.py | $(STAMP)
	@$(PY) tests/tensorrt_rig/install.py build/tensorrt
	@touch $@

protoc: $(PROTOC)  ## the protobuf compiler of make protos, in an environment of its own (11 MB)

$(PROTOC): fedproto/compiler.txt
	@python3 -m venv --clear $(@D)
	@$(@D)/bin/pip install --quiet --only-binary=:all: --requirement fedproto/compiler.txt \
		|| { rm -r $(@D)/bin; echo "no protobuf compiler for this Python (3.11 and 3.12 have one): a test is skipped"; }
	@touch $@

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(GPU_VENV) build dist demo-out *.egg-info
