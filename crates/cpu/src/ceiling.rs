//! What the machine's memory allows.

use std::time::Instant;

use crate::executor::CpuOptions;

/// Bytes that each pass reads: beyond the caches of most machines.
const BUFFER_BYTES: usize = 1 << 30;
/// Passes; the fastest counts.
const PASSES: usize = 5;

/// Bytes a second that the options' threads read when they do nothing else: the ceiling of decoding.
pub fn memory_read_rate(options: &CpuOptions) -> f64 {
    let buffer: Vec<u64> = (0..BUFFER_BYTES as u64 / 8).collect();
    let part = buffer.len().div_ceil(options.threads.max(1));
    let fold = options.isa.kernels().fold;
    let pass = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in buffer.chunks(part) {
                scope.spawn(move || std::hint::black_box(fold(part)));
            }
        });
        BUFFER_BYTES as f64 / start.elapsed().as_secs_f64()
    };
    (0..PASSES).map(|_| pass()).fold(0.0, f64::max)
}
