#!/usr/bin/env bash
# Installs NVIDIA's compiler into target/cuda-toolchain, from its Python wheels; crates/cuda/build.rs looks for it there.
# Needs python3 with venv, and the gcc that nvcc calls; no GPU, no driver, no root. Returns at once if it is already there.
#
# The versions are pinned: ptxas of 13.3 and later gives the same kernels more registers. The disassembler has no wheels
# for 13.0; the one of 13.2 reads what nvcc 13.0 writes.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
    nvidia-cuda-cuobjdump==13.2.86
    nvidia-cuda-nvdisasm==13.2.86
)
folder=target/cuda-toolchain
# Written last, so a folder that is incomplete or of other versions is made again.
stamp=$folder/installed

if [[ -x $folder/cuda/bin/nvcc && "$(cat "$stamp" 2>/dev/null)" == "${packages[*]}" ]]; then
    exit 0
fi
rm -rf "$folder"
python3 -m venv "$folder"
# Without dependencies: all are named above, and nothing else is to come.
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "${packages[@]}"
site_packages=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
ln -s "$site_packages/nvidia/cu13" "$folder/cuda"
"$folder/cuda/bin/nvcc" --version | tail -n 1
printf '%s' "${packages[*]}" >"$stamp"
# A build without nvcc did not know what to watch for: let the next one look again.
touch crates/cuda/build.rs
