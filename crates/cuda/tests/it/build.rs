//! What the build script reads in the compiler's output.

use ptxas::{KernelUse, Ptxas};
use tessera_cuda::{CUBINS, REPORT};

#[path = "../../build/ptxas.rs"]
mod ptxas;

/// As ptxas 13.0.88 printed it for kernels made to earn each line.
const BAD: &str = "\
ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to determine register count at entry.
ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized due to insufficient \
register resources for the wgmma pipeline in the function 'bad'
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'with_smem' for 'sm_90a'
ptxas info    : Function properties for with_smem
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 1200 bytes smem
ptxas info    : Compile time = 2.452 ms
ptxas info    : Compiling entry function 'spill' for 'sm_90a'
ptxas info    : Function properties for spill
    304 bytes stack frame, 568 bytes spill stores, 600 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 304 bytes cumulative stack size
ptxas info    : Compile time = 15.297 ms
";

#[test]
fn spills_and_serialised_matrix_instructions_are_faults() {
    let ptxas = Ptxas::parse(BAD);
    let with_smem = KernelUse { name: "with_smem".to_owned(), registers: 10, smem_bytes: 1200, ..KernelUse::default() };
    let spill = KernelUse {
        name: "spill".to_owned(),
        registers: 32,
        smem_bytes: 0,
        stack_bytes: 304,
        spill_store_bytes: 568,
        spill_load_bytes: 600,
    };
    assert_eq!(ptxas.kernels, [with_smem, spill]);
    let faults = ptxas.faults();
    assert_eq!(faults.len(), 3, "{faults:?}");
    assert!(faults[0].contains("'setmaxnreg' ignored") && faults[1].contains("are serialized"), "{faults:?}");
    assert_eq!(
        faults[2],
        "kernel spill uses local memory: 304 bytes of stack, 568 bytes of spill stores, 600 bytes of spill loads"
    );
}

#[test]
fn a_kernel_that_keeps_its_registers_has_no_fault() {
    let (_, clean) = BAD.split_once("0 bytes gmem").unwrap();
    let (clean, _) = clean.split_once("ptxas info    : Compiling entry function 'spill'").unwrap();
    let ptxas = Ptxas::parse(clean);
    assert_eq!((ptxas.kernels.len(), ptxas.faults()), (1, vec![]));
}

#[test]
fn the_report_has_every_kernel_of_the_build() {
    for (file, image) in CUBINS {
        assert!(REPORT.contains(&format!("\n{file}::")), "{file} is not in:\n{REPORT}");
        assert!(image.starts_with(b"\x7FELF") && image.as_ptr().addr().is_multiple_of(64), "{file}");
    }
}

/// Of a kernel, as the report tells.
fn registers(kernel: &str) -> usize {
    let line = REPORT.lines().find(|line| line.split_whitespace().next() == Some(kernel));
    let line = line.unwrap_or_else(|| panic!("{kernel} is not in:\n{REPORT}"));
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A block of attn_out reads lines of the residual stream that others write half of. A kernel that has been on its multiprocessor
/// since before may find them in the first-level cache, old: those that read the stream next must not fit beside it.
#[test]
fn norm_and_router_never_share_a_multiprocessor_with_attn_out() {
    const SM_REGISTERS: usize = 65_536;
    const NORM_THREADS: usize = 384;
    // With one warp that multiplies and the four that copy.
    const LEAST_STREAM_THREADS: usize = 160;
    if CUBINS.is_empty() {
        return eprintln!("skipped: this build has no kernels");
    }
    for attn_out in ["dense_stream::dense_stream_8", "dense_stream::dense_stream_16"] {
        let both = registers("router::norm_router") * NORM_THREADS + registers(attn_out) * LEAST_STREAM_THREADS;
        assert!(both > SM_REGISTERS, "{attn_out}: {both} registers");
    }
}
