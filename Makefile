# What a user and a developer call. `make help` lists it; everything is installed into .venv, nothing elsewhere.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.fedsparse-installed
BUILD_REQUIREMENTS := setuptools wheel torch numpy pybind11 ninja
CXX_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
# As root, and with more ranks than cores, Open MPI has to be told that this is meant.
MPI_ENVIRONMENT := OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
	PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
# Most tests keep one core busy.
TEST_PROCESSES ?= 2
RESULTS := benchmarks/results/cpu
SPARSEPROP ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fedsparse/rivals/sparseprop-0.1.14
HAS_GPU := import sys, torch; sys.exit(not torch.cuda.is_available())

.DEFAULT_GOAL := help
.PHONY: help install demo test bench bench-engine rivals gpu-check lint clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

install: $(INSTALLED) ## Install fedsparse and all it needs into .venv (once: 6 GB, 5 minutes)

$(INSTALLED): constraints.txt pyproject.toml setup.py $(CXX_SOURCES)
	@if ls -d .venv/lib/python3.*/site-packages/torch >/dev/null 2>&1; then \
		echo "Installing fedsparse into .venv again: what is compiled or pinned has changed (1 to 3 minutes)."; \
	else \
		echo "Installing into .venv, once: about 6 GB of disk (PyTorch and its CUDA libraries) and about 5 minutes."; \
		$(PYTHON) -m venv .venv; \
	fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(BUILD_REQUIREMENTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt \
		-e '.[mpi,gpu,dev]'
	@touch $@

demo: $(INSTALLED) ## Train dense, on a fixed mask and with FedTiny, and put the three side by side (3 minutes)
	$(BIN)/fedsparse compare experiments/demo/*.toml

test: $(INSTALLED) ## Run all tests
	$(MPI_ENVIRONMENT) GOMP_SPINCOUNT=5000 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal

bench: $(INSTALLED) ## Measure layers, steps, memory, an adjustment and messages against the best dense torch and public rivals
	$(BIN)/python -m benchmarks.layers --csv $(RESULTS)/layers.csv $(if $(wildcard $(SPARSEPROP)),--sparseprop $(SPARSEPROP))
	$(BIN)/python -m benchmarks.linear --csv $(RESULTS)/linear.csv
	for model in resnet18 vgg11 resnet20; do \
		$(BIN)/python -m benchmarks.steps --model $$model --csv $(RESULTS)/$$model.csv || exit 1; \
	done
	$(BIN)/python -m benchmarks.steps --threads 2 --csv $(RESULTS)/resnet18-2-threads.csv
	$(BIN)/python -m benchmarks.memory --csv $(RESULTS)/memory.csv
	$(BIN)/python -m benchmarks.adjustment --csv $(RESULTS)/adjustment.csv
	$(BIN)/python -m benchmarks.wire
	$(BIN)/python -m benchmarks.plot $(RESULTS)

bench-engine: $(INSTALLED) ## Measure a round beside pfl-research and Flower, bytes, memory and messages (half an hour)
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.bytes
	$(BIN)/python -m benchmarks.scale
	$(MPI_ENVIRONMENT) $(BIN)/mpirun -n 2 $(BIN)/python -m benchmarks.mpi_send

rivals: $(INSTALLED) ## Build SparseProp, a rival of `make bench`, outside the tree (about 5 minutes)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $(SPARSEPROP) sparseprop==0.1.14

gpu-check: ## Check and measure the GPU back ends; "not measured" where no GPU is visible
	@python="$${FEDSPARSE_PYTHON:-python3}"; \
	if "$$python" -c '$(HAS_GPU)' 2>/dev/null; then \
		echo "gpu-check: with $$python, which has a torch that sees a GPU."; \
		"$$python" -m benchmarks.gpu_check; \
	elif nvidia-smi -L >/dev/null 2>&1 || [ -e $(INSTALLED) ]; then \
		$(MAKE) --no-print-directory install && $(BIN)/python -m benchmarks.gpu_check; \
	else \
		echo "gpu-check: not measured, because no GPU is visible."; \
	fi

lint: $(INSTALLED) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

clean: ## Remove what was built; .venv and runs stay
	rm -rf build dist *.egg-info fedsparse/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f $(INSTALLED)
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
