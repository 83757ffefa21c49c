#!/usr/bin/env bash
# Packs the GPU's tests for a machine with a GPU and without a Rust toolchain: target/gpu-tests.tar.gz. There:
#
#     tar xzf gpu-tests.tar.gz && gpu-tests/run.sh [arguments of the kernels' tests, such as a name]
#     gpu-tests/sanitize.sh [tools of compute-sanitizer]
#
# That machine needs the NVIDIA driver and a glibc that is no older than this one's. In the archive are the tests of
# crates/cuda, those of the program that need a GPU, and the program: gpu-tests/bin/tessera.
set -euo pipefail
cd "$(dirname "$0")/.."

# Those of `cargo test`, without running them.
executables() {
    cargo test "$@" --no-run --locked --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p'
}

[[ -n "${NVCC:-}" ]] || tools/cuda_toolchain.sh
kernel_tests=$(executables --package tessera-cuda)
program_tests=$(executables --package tessera --bin tessera)
# The program comes with the tests that run it.
built=$(executables --package tessera --test it)
program=$(grep '/tessera$' <<<"$built")
command_tests=$(grep -v '/tessera$' <<<"$built")
for tests in "$program_tests" "$command_tests"; do
    if [[ "$("$tests" --list on_the_gpu)" != *': test'* ]]; then
        echo "no test of $tests is named on_the_gpu" >&2
        exit 1
    fi
done

folder=target/gpu-tests
rm -rf "$folder"
mkdir -p "$folder/bin" "$folder/kernel-tests"
cp $kernel_tests "$folder/kernel-tests/"
cp "$program_tests" "$folder/program-tests"
cp "$command_tests" "$folder/command-tests"
cp "$program" "$folder/bin/tessera"
strip --strip-debug "$folder"/bin/* "$folder"/kernel-tests/* "$folder"/{program,command}-tests # half the size, the same messages
cp -r fixtures "$folder/"
cat >"$folder/run.sh" <<'RUN'
#!/usr/bin/env bash
# Runs every test that needs a GPU; fails if one does. One test at a time: they share the GPU's memory, and some measure
# time. With arguments, which are passed on, the kernels' tests alone.
cd "$(dirname "$0")"
export REQUIRE_GPU=1 TESSERA_FIXTURES="$PWD/fixtures" XDG_CACHE_HOME="$PWD/cache"
export TESSERA_TEST_PROGRAM="$PWD/bin/tessera" TESSERA_TEST_SCRATCH="$PWD/scratch"
mkdir -p scratch
status=0
for binary in kernel-tests/*; do
    "$binary" --test-threads=1 "$@" || status=1
done
if (($# == 0)); then
    ./program-tests --test-threads=1 on_the_gpu || status=1
    ./command-tests --test-threads=1 on_the_gpu || status=1
    bin/tessera verify demo --moe-only --device cuda || status=1
    bin/tessera verify demo --device cuda || status=1
fi
exit $status
RUN
cat >"$folder/sanitize.sh" <<'SANITIZE'
#!/usr/bin/env bash
# Runs the kernels' tests, few cases of each, under NVIDIA's compute-sanitizer, but for those that would take many minutes so and
# those of graphs, which launch the same kernels: accesses out of bounds, reads of what nobody wrote, races in shared memory.
# Arguments choose among its tools; without any, all three are run.
cd "$(dirname "$0")"
export REQUIRE_GPU=1 TESSERA_FIXTURES="$PWD/fixtures" TESSERA_FEW_CASES=1
tools=("$@")
((${#tools[@]})) || tools=(memcheck initcheck racecheck)
# What errors of calls the tests provoke is no matter here; by itself racecheck counts fewer barriers than some kernels have.
options=(--report-api-errors no --num-cuda-barriers 128 --error-exitcode 9)
long=(among_thousands alone_and_in_batches thousands_of_tokens the_published_widths the_longest_context in_long_contexts
    the_published_vocabulary of_a_wide_model long_yarn graph)
status=0
for tool in "${tools[@]}"; do
    echo "== $tool"
    skipped=("${long[@]}")
    # It does not come back, within minutes for one launch, from sampling: blocks of a cluster that write to each other's memory.
    [[ $tool == racecheck ]] && skipped+=(sample sampling steps::chain)
    compute-sanitizer "${options[@]}" --tool "$tool" kernel-tests/it-* --test-threads=1 "${skipped[@]/#/--skip=}" || status=1
done
exit $status
SANITIZE
chmod +x "$folder"/{run,sanitize}.sh
tar -czf "$folder.tar.gz" -C target gpu-tests
ls -l "$folder.tar.gz"
