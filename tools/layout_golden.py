"""Weights in the order of triton_kernels' kernels for Hopper, as triton_kernels itself makes it.

    pip download --no-deps vllm==0.33.0 -d DIR       the wheel carries triton_kernels; nothing is installed
    unzip DIR/vllm-*.whl 'vllm/third_party/triton_kernels/*' -d DIR
    python tools/layout_golden.py DIR/vllm/third_party

writes fixtures/layout/hopper_*.bin and hopper.json. It needs torch on the CPU, and the triton that torch comes with to be
importable. golden_record.bin is not from here: see tools/README.md.
"""

import argparse
import hashlib
import importlib
import json
import pathlib
import sys

import torch

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "layout"
SOURCES = "triton_kernels.tensor_details.layout_details"
VALUES = [(256, 128), (48, 160)]  # rows, k
SCALES = [(200, 160, 4), (300, 96, 8)]  # rows, k, warps


def sample(n):
    """n bytes; crates/cuda/tests/it/triton.rs has the formula, too."""
    i = torch.arange(n, dtype=torch.int64)
    return ((i * i * 31 + i * 7 + (i >> 8) * 13 + (i >> 3)) & 255).to(torch.uint8)


def swizzle(make, data):
    """data [rows, columns], packed along columns. Both axes must mean the same memory, and the way back lead back."""
    along_columns, along_rows = make(data.shape, 1), make(data.mT.shape, 0)
    out = along_columns.swizzle_data(data).contiguous()
    transposed = along_rows.swizzle_data(data.mT).mT.contiguous()
    if not torch.equal(out, transposed):
        raise SystemExit("the layout depends on the axis")
    back = along_columns.unswizzle_data(out)[: data.shape[0], : data.shape[1]]
    if not torch.equal(back, data):
        raise SystemExit("unswizzle_data does not lead back")
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="the folder that has triton_kernels")
    folder = parser.parse_args().folder
    sys.path.insert(0, str(folder))
    value = importlib.import_module(f"{SOURCES}.hopper_value").HopperMXValueLayout
    scale = importlib.import_module(f"{SOURCES}.hopper_scale").HopperMXScaleLayout
    FIXTURES.mkdir(parents=True, exist_ok=True)
    shapes = {}

    def write(name, out):
        (FIXTURES / name).write_bytes(out.numpy().tobytes())
        shapes[name] = list(out.shape)

    for rows, k in VALUES:
        data = sample(rows * k // 2).view(rows, k // 2)
        out = swizzle(lambda shape, axis: value(list(shape), mx_axis=axis, mma_version=3), data)
        write(f"hopper_values_{rows}x{k}.bin", out)
    for rows, k, warps in SCALES:
        data = sample(rows * k // 32).view(rows, k // 32)
        out = swizzle(lambda shape, axis: scale(list(shape), mx_axis=axis, num_warps=warps), data)
        write(f"hopper_scales_{rows}x{k}_warps{warps}.bin", out)
    package = folder.joinpath(*SOURCES.split("."))
    digests = {f: hashlib.sha256((package / f).read_bytes()).hexdigest() for f in ("hopper_value.py", "hopper_scale.py")}
    meta = {"torch": torch.__version__.split("+")[0], "sha256": digests, "shapes": shapes}
    (FIXTURES / "hopper.json").write_text(json.dumps(meta, indent=1) + "\n")


if __name__ == "__main__":
    main()
