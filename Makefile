# Every target sets up what it needs by itself (.ci/setup); a second run starts at once.
PY = .venv/bin/python
C_SHIPPED = $(wildcard runtime_c/src/*.[ch] runtime_c/static/*.c runtime_c/vulkan/*.[ch] runtime_c/rpc/*.[ch] \
  runtime_c/serve/*.[ch] runtime_c/cli/*.[ch])
C_FILES = $(C_SHIPPED) $(wildcard runtime_c/tests/*.[ch] runtime_c/probe/*.c) \
  $(wildcard runtime_c/bionic/*.c runtime_c/bionic/include/*.h runtime_c/bionic/include/*/*.h) edgellm/virtual_bionic.c
PYTHON_FILES = edgellm crosscompile ansible_collections tests examples
CAMPAIGNS = tokenizer template gguf importers
# One process per core; a file's tests, which share what they compile, stay together. Files keep their order: short ones come
# last, so that no process waits long for the other. A process that crashes ends the run, which would wait forever for
# another one to take its file.
PARALLEL ?= -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0
TIME ?= 300
N ?= 100000
SESSIONS ?= 1000
SEED ?= 1
BOARDS ?= 60
ROUNDS ?= 5
FAULTS ?= 200
SECONDS ?= 600
BUNDLE ?= bundle
BOARD ?= virtual-rpi5
SHAPES ?= smollm2-135m qwen2.5-0.5b-like tinyllama-1.1b llama-2-7b
PEER ?= llama.cpp
MODEL = examples/voice_assistant/model

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: setup-demo ## compile a model for a Raspberry Pi 5, deploy it to an emulated one over SSH, and ask it
	@$(PY) examples/demo.py

test: setup-test ## every test that needs no board, no GPU and no torch
	@$(PY) -m pytest $(PARALLEL) -m "not board and not gpu and not oracle"

test-full: oracle ## make the golden files anew with transformers, then every test against them
	@$(PY) -m pytest $(PARALLEL) -m "not board and not gpu"

oracle: setup-oracle ## make the golden files in tests/data anew (needs torch and transformers)
	@$(PY) -m tests.oracle

lint: setup-lint ## ruff, mypy, clang-format, clang-tidy, taplo
	.venv/bin/ruff check $(PYTHON_FILES)
	.venv/bin/ruff format --check $(PYTHON_FILES)
	.venv/bin/mypy
	.venv/bin/clang-format --dry-run -Werror $(C_FILES)
	@$(MAKE) --silent --no-print-directory -C runtime_c page PYTHON=$(abspath $(PY))
	@.ci/tidy $(filter %.c,$(C_SHIPPED)) -- -std=c11 -DELLM_RPC -DELLM_SERVE -DELLM_VULKAN -Iruntime_c/include \
	  -Iruntime_c/src -Iruntime_c/rpc -Iruntime_c/serve -Iruntime_c/cli \
	  -Iruntime_c/build/page -isystem runtime_c/third_party/monocypher \
	  -Iruntime_c/vulkan -isystem runtime_c/third_party/vulkan
	.venv/bin/taplo fmt --check pyproject.toml boards/*.toml

format: setup-lint ## put everything into house style
	.venv/bin/ruff check --fix --quiet $(PYTHON_FILES)
	.venv/bin/ruff format --quiet $(PYTHON_FILES)
	.venv/bin/clang-format -i $(C_FILES)
	.venv/bin/taplo fmt pyproject.toml boards/*.toml

bench: setup-demo ## speed and memory of the demo model on BOARD
	@.venv/bin/edgellm deploy --board $(BOARD) $(MODEL) && .venv/bin/edgellm bench --board $(BOARD)

bench-peer: setup-bench ## SHAPES here and with PEER, in one interleaved run; fills docs/performance.md
	@.venv/bin/edgellm bench --peer $(PEER) $(SHAPES:%=random:%) -o docs

fuzz: setup-fuzz setup-test ## each fuzz target of runtime_c for TIME seconds, then N texts per campaign from SEED
	@$(MAKE) --silent --no-print-directory -C runtime_c fuzz TIME=$(TIME)
	@for name in $(CAMPAIGNS); do $(PY) -m tests.campaigns.$$name --n $(N) --seed $(SEED) || exit 1; done

sessions: setup-test ## SESSIONS sessions with one RPC agent, crashing ones too; nothing may stay behind
	@$(PY) -m tests.campaigns.rpc_sessions --n $(SESSIONS)

faults: setup-faults ## deployments hurt at N places from SEED: cut links, full disks, power cuts (faults.py explains)
	@$(PY) -m tests.campaigns.faults --n $(FAULTS) --seed $(SEED)

fleet: setup-test ## ROUNDS rollouts from SEED to BOARDS boards of which some are broken; each has what was promised
	@$(PY) -m tests.campaigns.fleet --boards $(BOARDS) --rounds $(ROUNDS) --seed $(SEED)

upload: setup-demo ## how fast BOARD is sent to, beside plain sftp in turn; fails below 90 %
	@$(PY) -m tests.emulated.measure_upload --board $(BOARD)

load: setup-test ## 64 clients for SECONDS with BUNDLE served on this machine: slow, rude and leaving ones among them
	@$(PY) -m tests.campaigns.load $(BUNDLE) --seconds $(SECONDS) --seed $(SEED)

shaders: setup-test ## N random kernels from SEED (N=100: two minutes): SPIR-V on lavapipe against LLVM's code here
	@$(PY) -m tests.campaigns.shaders --n $(N) --seed $(SEED)

matrices: setup-test ## kernels for matrix units on a driver that has some: Debian sid's lavapipe (x86-64; 350 MB)
	@$(PY) -m tests.campaigns.matrices

families: setup-test ## small networks of all families on SwiftShader, or with every access checked (WHERE=bounds)
	@$(PY) -m tests.campaigns.gpu_families $(or $(WHERE),swiftshader)

drivers: setup-test ## all kernels with the compilers of real boards' drivers: V3D, Mali, Adreno, AMD, … (x86-64; 700 MB; CHIPS=)
	@$(PY) -m tests.campaigns.drivers $(if $(CHIPS),--chips $(CHIPS))

cycles: setup-bench ## cycles of boards' cores by LLVM's models of them, ours and llama.cpp's (CORES=; builds llama.cpp)
	@$(PY) -m tests.campaigns.cycles $(if $(CORES),--cores $(CORES))

service: setup-test ## BUNDLE as a service under this machine's systemd, booted in namespaces of its own (needs root)
	@$(PY) -m tests.campaigns.service $(BUNDLE)

service-board: setup-test setup-faults ## the demo model as a service under systemd on the full-system board (needs root)
	@$(PY) -m tests.campaigns.service

voice-board: setup-test setup-faults ## the voice assistant as a service under systemd on the full-system board (needs root)
	@$(PY) -m tests.campaigns.voice_service

voice-service: setup-test ## the same under this machine's systemd, booted in namespaces of its own (needs root)
	@$(PY) -m tests.campaigns.voice_service here

voice: setup-test ## the voice assistant with other speakers than it was tuned with, then interrupted, with BUNDLE on this machine
	@cd examples/voice_assistant && for name in accuracy live; do \
	  $(abspath $(PY)) -m evaluation.$$name $(abspath $(BUNDLE)) || exit 1; done

size: setup-demo ## edgellm-rt stripped for aarch64, part by part, against its budget
	@$(MAKE) --no-print-directory -C runtime_c size PYTHON=$(abspath $(PY))

setup-%:
	@.ci/setup $*

.PHONY: help demo test test-full oracle lint format bench bench-peer fuzz sessions faults fleet upload load matrices families drivers cycles service service-board shaders voice voice-board voice-service size
