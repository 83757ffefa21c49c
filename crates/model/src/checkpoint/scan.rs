//! Looks for values that no finite computation survives: NaN scale bytes and small tensors that are not finite.
//!
//! The large matrices are not read: a full-size checkpoint's scales and small tensors are 4 % of it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::bf16;

use super::CheckpointError;
use super::layout::Part;
use crate::mxfp4::SCALE_NAN;

/// Bytes that a thread looks at between two looks at the common counter.
const CHUNK_BYTES: usize = 4 << 20;
/// Bits of a BF16 without its sign, and those of infinity: everything from there on is not finite.
const MAGNITUDE: u16 = 0x7fff;
const INFINITY: u16 = 0x7f80;

/// One tensor to look through.
pub(super) struct Scanned<'a> {
    pub name: &'a str,
    pub part: Part,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

/// Whether a part's values are looked at when a checkpoint is opened.
pub(super) fn is_scanned(part: Part) -> bool {
    use Part::*;
    !matches!(part, Embed | LmHead | Q | K | V | Qkv | O | GateUpBlocks | DownBlocks | GateUp | Down)
}

/// The first bad value of each tensor that has one, in the order of `tensors`.
pub(super) fn scan(tensors: &[Scanned]) -> Vec<CheckpointError> {
    let firsts = in_chunks(
        tensors,
        || vec![usize::MAX; tensors.len()],
        |firsts, i, start, chunk| {
            if let Some(at) = first_bad(tensors[i].part, chunk) {
                firsts[i] = firsts[i].min(start + at);
            }
        },
    );
    let first = |i: usize| firsts.iter().map(|f| f[i]).min().unwrap_or(usize::MAX);
    tensors.iter().enumerate().filter(|(i, _)| first(*i) != usize::MAX).map(|(i, t)| t.refusal(first(i))).collect()
}

/// How often each scale byte occurs in the given tensors together.
pub(super) fn histogram(tensors: &[Scanned]) -> [u64; 256] {
    let counts = in_chunks(
        tensors,
        || [[0u64; 256]; 2],
        |counts, _, _, chunk| {
            // Two tables, so that runs of one byte do not wait for their own last increment.
            for pair in chunk.chunks(2) {
                for (table, &byte) in counts.iter_mut().zip(pair) {
                    table[byte as usize] += 1;
                }
            }
        },
    );
    let sum = |byte: usize| counts.iter().flatten().map(|table| table[byte]).sum();
    std::array::from_fn(sum)
}

impl Scanned<'_> {
    /// What is wrong with the element (byte or BF16) that starts at a byte.
    fn refusal(&self, at: usize) -> CheckpointError {
        let tensor = self.name.to_owned();
        if self.part.element_bytes() == 1 {
            let (rows, blocks) = (self.shape[1], self.shape[2]);
            let (expert, row, block) = (at / blocks / rows, at / blocks % rows, at % blocks);
            return CheckpointError::NanScale { tensor, expert, row, block };
        }
        let value = bf16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]).to_f32();
        CheckpointError::NotFinite { tensor, index: at / 2, value }
    }
}

/// The byte where the first bad element of a chunk starts. A pass without branches finds whether there is one.
fn first_bad(part: Part, chunk: &[u8]) -> Option<usize> {
    if part.element_bytes() == 1 {
        let largest = chunk.iter().fold(0, |m: u8, &b| m.max(b));
        return if largest == SCALE_NAN { chunk.iter().position(|&b| b == SCALE_NAN) } else { None };
    }
    let magnitudes = chunk.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]) & MAGNITUDE);
    let largest = magnitudes.clone().fold(0, u16::max);
    if largest >= INFINITY { magnitudes.into_iter().position(|m| m >= INFINITY).map(|i| 2 * i) } else { None }
}

/// Runs `look` over all tensors' chunks on every core; each thread has a state of its own. `look` gets the state, the
/// tensor's position, the chunk's start in the tensor, and the chunk.
fn in_chunks<S: Send>(
    tensors: &[Scanned],
    new_state: impl Fn() -> S + Sync,
    look: impl Fn(&mut S, usize, usize, &[u8]) + Sync,
) -> Vec<S> {
    let starts = |t: &Scanned| (0..t.bytes.len()).step_by(CHUNK_BYTES);
    let jobs: Vec<(usize, usize)> = (0..tensors.len()).flat_map(|i| starts(&tensors[i]).map(move |s| (i, s))).collect();
    let (next, states) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let worker = || {
        let mut state = new_state();
        while let Some(&(i, start)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let bytes = &tensors[i].bytes[start..];
            look(&mut state, i, start, &bytes[..bytes.len().min(CHUNK_BYTES)]);
        }
        states.lock().unwrap_or_else(|e| e.into_inner()).push(state);
    };
    // A thread costs more than a chunk of work does.
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(jobs.len().div_ceil(16));
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(worker);
        }
        worker();
    });
    states.into_inner().unwrap_or_else(|e| e.into_inner())
}
