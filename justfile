# Short names for what is done often. `just` lists them.

_default:
    @just --list --unsorted

# Every test
test *ARGS:
    cargo test --workspace {{ ARGS }}

# Formatting and lints, as CI has them
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# Rewrite the sources in the project's format
fmt:
    cargo fmt --all

# Everything that CI runs
ci:
    .ci/run

# Documentation of the libraries, private items included
doc:
    cargo doc --workspace --lib --no-deps --document-private-items --open

# Any command of the optimised binary: `just run inspect DIR`
run *ARGS:
    cargo run --release --quiet -- {{ ARGS }}

# Prefill and decode speed of a model
bench MODEL *ARGS:
    cargo run --release --quiet -- bench {{ MODEL }} {{ ARGS }}

# The fast path against the oracle on a model, stage by stage
verify MODEL *ARGS:
    cargo run --release --quiet -- verify {{ MODEL }} {{ ARGS }}

# Run one fuzz target for some seconds (cargo-fuzz and a nightly toolchain)
fuzz TARGET SECONDS="600":
    cargo +nightly fuzz run {{ TARGET }} -- -max_total_time={{ SECONDS }}

# NVIDIA's compiler, from its Python wheels into target/cuda-toolchain; the next build has the GPU kernels
cuda-toolchain:
    tools/cuda_toolchain.sh

# The GPU's tests and the program as target/gpu-tests.tar.gz, to be run on a machine that has a GPU and no Rust
test-gpu-archive:
    tools/gpu_archive.sh

# Licences, duplicates and origins of the dependencies (cargo-deny)
deny:
    cargo deny check licenses bans sources

_python:
    test -d target/python || python3 -m venv target/python

# Make fixtures/parity again; arguments name cases
golden *CASES: _python
    target/python/bin/pip install --quiet -r tools/requirements.txt
    target/python/bin/python tools/golden.py parity {{ CASES }}

# Make fixtures/harmony again
golden-harmony: _python
    cargo fetch
    target/python/bin/pip install --quiet "$(grep ^openai-harmony tools/requirements.txt)"
    TIKTOKEN_ENCODINGS_BASE="$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/tiktoken-rs-*/assets | tail -n 1)" \
        target/python/bin/python tools/harmony_golden.py
