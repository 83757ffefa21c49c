#!/usr/bin/env bash
# Looks into the machine code of the kernels that the last build of tessera-cuda made: no instruction of local memory, which
# is where registers spill to, and tensor core instructions of Hopper in every file that asks for them.
set -euo pipefail
cd "$(dirname "$0")/.."

cuobjdump=target/cuda-toolchain/cuda/bin/cuobjdump
out=$(cargo build --package tessera-cuda --locked --message-format=json |
    sed -n '/"build-script-executed"/{/tessera-cuda/s/.*"out_dir":"\([^"]*\)".*/\1/p}')

status=0
for source in crates/cuda/kernels/*.cu; do
    name=$(basename "$source" .cu)
    # The address and the predicate go; what is left begins with the instruction's name.
    code=$("$cuobjdump" --dump-sass "$out/$name.cubin" | sed -nE 's|^\s*/\*[0-9a-f]+\*/\s+(@!?U?P\w+ +)?([A-Z][A-Z0-9_.]*).*|\2|p')
    grep -q '^EXIT' <<<"$code" || { echo "$name: cannot read what cuobjdump prints" >&2; exit 1; }
    local_memory=$(grep -cE '^(LDL|STL)(\.|$)' <<<"$code" || true)
    wgmma=$(grep -c '^HGMMA' <<<"$code" || true)
    printf '%-24s %6d instructions, %4d HGMMA, %d of local memory\n' "$name" "$(wc -l <<<"$code")" "$wgmma" "$local_memory"
    if ((local_memory > 0)); then
        echo "$source: its machine code has LDL or STL: registers spill, or an array is indexed at run time" >&2
        status=1
    fi
    if grep -q wgmma "$source" && ((wgmma == 0)); then
        echo "$source: names wgmma, but its machine code has no HGMMA" >&2
        status=1
    fi
done
cat "$out/report.txt"
exit $status
