#!/usr/bin/env bash
# Looks into the machine code of the kernels that the last build of tessera-cuda made: no instruction of local memory, which
# is where registers spill to, and the tensor cores' instructions in every file that includes them: HGMMA is wgmma, which
# Hopper brought, HMMA is mma.sync.
set -euo pipefail
cd "$(dirname "$0")/.."

cuobjdump=target/cuda-toolchain/cuda/bin/cuobjdump
out=$(cargo build --package tessera-cuda --locked --message-format=json |
    sed -n '/"build-script-executed"/{/tessera-cuda/s/.*"out_dir":"\([^"]*\)".*/\1/p}')

# Instructions of that name in $code.
count() {
    grep -cE "^$1(\.|$)" <<<"$code" || true
}

status=0
for source in crates/cuda/kernels/*.cu; do
    name=$(basename "$source" .cu)
    # The address and the predicate go; what is left begins with the instruction's name.
    code=$("$cuobjdump" --dump-sass "$out/$name.cubin" | sed -nE 's|^\s*/\*[0-9a-f]+\*/\s+(@!?U?P\w+ +)?([A-Z][A-Z0-9_.]*).*|\2|p')
    grep -q '^EXIT' <<<"$code" || { echo "$name: cannot read what cuobjdump prints" >&2; exit 1; }
    local_memory=$(grep -cE '^(LDL|STL)(\.|$)' <<<"$code" || true)
    printf '%-24s %6d instructions, %4d HGMMA, %4d HMMA, %d of local memory\n' "$name" "$(wc -l <<<"$code")" \
        "$(count HGMMA)" "$(count HMMA)" "$local_memory"
    if ((local_memory > 0)); then
        echo "$source: its machine code has LDL or STL: registers spill, or an array is indexed at run time" >&2
        status=1
    fi
    for pair in wgmma:HGMMA wgmma_ss:HGMMA mma:HMMA; do
        header="ptx/${pair%:*}.cuh" instruction=${pair#*:}
        if grep -qF "#include \"$header\"" "$source" && (($(count "$instruction") == 0)); then
            echo "$source: includes $header, but its machine code has no $instruction" >&2
            status=1
        fi
    done
done
cat "$out/report.txt"
exit $status
