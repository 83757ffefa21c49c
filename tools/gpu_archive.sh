#!/usr/bin/env bash
# Packs the tests of crates/cuda for a machine with a GPU and without a Rust toolchain: target/gpu-tests.tar.gz. There:
#
#     tar xzf gpu-tests.tar.gz && gpu-tests/run.sh [arguments of the tests, such as a name]
#
# That machine needs the NVIDIA driver and a glibc that is no older than this one's.
set -euo pipefail
cd "$(dirname "$0")/.."

tools/cuda_toolchain.sh
binaries=$(cargo test --package tessera-cuda --no-run --locked --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')

folder=target/gpu-tests
rm -rf "$folder"
mkdir -p "$folder/bin"
cp $binaries "$folder/bin/"
cp -r fixtures "$folder/"
cat >"$folder/run.sh" <<'RUN'
#!/usr/bin/env bash
# Runs every test binary; fails if one does. One test at a time: they share the GPU's memory, and some measure time.
cd "$(dirname "$0")"
export REQUIRE_GPU=1 TESSERA_FIXTURES="$PWD/fixtures"
status=0
for binary in bin/*; do
    "$binary" --test-threads=1 "$@" || status=1
done
exit $status
RUN
chmod +x "$folder/run.sh"
tar -czf "$folder.tar.gz" -C target gpu-tests
ls -l "$folder.tar.gz"
