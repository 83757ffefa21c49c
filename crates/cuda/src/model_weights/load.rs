//! A checkpoint through pinned memory to its packed forms.
//!
//! The work is cut into pieces of a few MB. Each thread has a stream and two slots of pinned memory and its copy on the
//! device: it fills one while the GPU takes and packs the other.

use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use bytemuck::Zeroable;
use half::bf16;
use tessera_model::mxfp4::BLOCK;
use tessera_model::{Config, Weights};

use super::ModelWeightsError;

use super::placement::{Form, Placement, part_bytes};
use crate::dense::DenseShape;
use crate::device::{Address, Buffer, Device, Pinned};
use crate::error::DeviceError;
use crate::kernels::copy::Copier;
use crate::kernels::pack::{DENSE_ROWS, PackDenseArgs, PackExpertsArgs, PackKernels, WidenArgs, order};
use crate::launch::{Event, Stream};
use crate::moe::Tiles;
use crate::pack::{Rows, ScaleShift, TILE_ROWS};

/// Of one piece: the published gate_up matrix of an expert is two, its down matrix one.
const PIECE_BYTES: usize = 9 << 19;
/// More do not copy faster.
const MAX_THREADS: usize = 32;
/// Slots of a thread.
const SLOTS: usize = 2;
/// What a `Copier` copies at a time.
const COPY_BYTES: usize = 16;
/// Where a source begins in a slot: a multiple.
const SLOT_ALIGNMENT: usize = 256;

/// Loads all placements, and returns when the GPU is done.
pub(super) fn run(
    device: &Device,
    config: &Config,
    weights: &Weights,
    placements: &[Placement],
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(), ModelWeightsError> {
    let mut pieces = Vec::new();
    for placement in placements {
        cut(config, weights, placement, &mut pieces)?;
    }
    let kernels = Kernels { pack: PackKernels::load(device)?, copy: Copier::load(device)? };
    let slot_bytes = pieces.iter().map(Piece::slot_bytes).max().unwrap_or(0);
    let loader =
        Loader { device, kernels, pieces, slot_bytes, next: AtomicUsize::new(0), stopped: AtomicBool::new(false) };
    loader.run(progress)
}

/// What is copied at once, and what is made of it.
struct Piece<'a> {
    sources: [&'a [u8]; 2],
    work: Work,
}

/// The kernels' arguments, without the addresses of their sources.
enum Work {
    /// So many times 16 bytes, as they are.
    Plain {
        target: Address,
        n: usize,
    },
    Dense(PackDenseArgs),
    Values {
        matrices: usize,
        args: WidenArgs,
    },
    Experts(PackExpertsArgs),
}

impl Piece<'_> {
    fn bytes(&self) -> usize {
        self.sources.iter().map(|source| source.len()).sum()
    }

    fn slot_bytes(&self) -> usize {
        self.sources.iter().map(|source| source.len().next_multiple_of(SLOT_ALIGNMENT)).sum()
    }
}

fn cut<'a>(
    config: &Config,
    weights: &Weights<'a>,
    placement: &Placement,
    pieces: &mut Vec<Piece<'a>>,
) -> Result<(), ModelWeightsError> {
    let &Placement { layer, part, form } = placement;
    let source = part_bytes(config, weights, layer, part)?;
    match form {
        Form::Plain { target, .. } => pieces.extend(cut_plain(source, target)),
        Form::Dense { records, rows, cols } => pieces.extend(cut_dense(source, records, rows, cols)),
        Form::Values { target, matrices, rows, packed_rows, order } => {
            pieces.extend(cut_values(source, target, matrices, rows, packed_rows, order));
        }
        Form::Experts { records, tiles, scales, shift, .. } => {
            let scales = part_bytes(config, weights, layer, scales)?;
            let blocks = source.chunks(tiles.rows * tiles.cols / 2);
            let scales = scales.chunks(tiles.rows * tiles.cols / BLOCK);
            for (e, (blocks, scales)) in blocks.zip(scales).enumerate() {
                let records = records.plus(e * tiles.record_bytes());
                pieces.extend(cut_expert(blocks, scales, records, tiles, shift));
            }
        }
    }
    Ok(())
}

fn cut_plain(source: &[u8], target: Address) -> impl Iterator<Item = Piece<'_>> {
    let n_bytes = per_piece(source.len() / COPY_BYTES, COPY_BYTES) * COPY_BYTES;
    source.chunks(n_bytes).enumerate().map(move |(i, source)| Piece {
        sources: [source, &[]],
        work: Work::Plain { target: target.plus(i * n_bytes), n: source.len() / COPY_BYTES },
    })
}

fn cut_dense(source: &[u8], records: Address, rows: usize, cols: usize) -> impl Iterator<Item = Piece<'_>> {
    let row_bytes = cols * size_of::<bf16>();
    let n_strips = per_piece(rows.div_ceil(DENSE_ROWS), DENSE_ROWS * row_bytes);
    source.chunks(n_strips * DENSE_ROWS * row_bytes).enumerate().map(move |(i, source)| Piece {
        sources: [source, &[]],
        work: Work::Dense(PackDenseArgs {
            source: Address::zeroed(),
            records: records.plus(i * n_strips * DenseShape { rows, cols }.strip_bytes()),
            rows: (source.len() / row_bytes) as u32,
            cols: cols as u32,
        }),
    })
}

fn cut_values(
    source: &[u8],
    target: Address,
    matrices: usize,
    rows: usize,
    packed_rows: usize,
    rows_order: Rows,
) -> impl Iterator<Item = Piece<'_>> {
    let matrix_bytes = rows * size_of::<bf16>();
    let n_matrices = per_piece(matrices, matrix_bytes);
    source.chunks(n_matrices * matrix_bytes).enumerate().map(move |(i, source)| Piece {
        sources: [source, &[]],
        work: Work::Values {
            matrices: source.len() / matrix_bytes,
            args: WidenArgs {
                source: Address::zeroed(),
                target: target.plus(i * n_matrices * packed_rows * size_of::<f32>()),
                rows: rows as u32,
                packed_rows: packed_rows as u32,
                order: order(rows_order),
                padding: 0,
            },
        },
    })
}

/// Strips of packed rows are runs of the checkpoint's rows in either order.
fn cut_expert<'a>(
    blocks: &'a [u8],
    scales: &'a [u8],
    records: Address,
    tiles: Tiles,
    shift: ScaleShift,
) -> impl Iterator<Item = Piece<'a>> {
    let (code_bytes, scale_bytes) = (tiles.cols / 2, tiles.cols / BLOCK); // of a row
    let n_strips = per_piece(tiles.strips, TILE_ROWS * (code_bytes + scale_bytes));
    let n_rows = n_strips * TILE_ROWS;
    let sources = blocks.chunks(n_rows * code_bytes).zip(scales.chunks(n_rows * scale_bytes));
    sources.enumerate().map(move |(i, (blocks, scales))| Piece {
        sources: [blocks, scales],
        work: Work::Experts(PackExpertsArgs {
            blocks: Address::zeroed(),
            scales: Address::zeroed(),
            records: records.plus(i * n_strips * tiles.strip_bytes()),
            rows: (blocks.len() / code_bytes) as u32,
            cols: tiles.cols as u32,
            order: order(tiles.order),
            field_offset: u32::from(shift.field_offset()),
            padding_field: u32::from(shift.field(shift.lowest())),
            padding: 0,
        }),
    })
}

/// How many of `n` equal parts go into a piece, so that pieces are about as large as each other.
fn per_piece(n: usize, part_bytes: usize) -> usize {
    let most = ((PIECE_BYTES - SLOT_ALIGNMENT) / part_bytes).max(1);
    n.div_ceil(n.div_ceil(most).max(1)).max(1)
}

struct Kernels {
    pack: PackKernels,
    copy: Copier,
}

/// What the threads share.
struct Loader<'a> {
    device: &'a Device,
    kernels: Kernels,
    pieces: Vec<Piece<'a>>,
    slot_bytes: usize,
    /// The piece that nobody has begun.
    next: AtomicUsize,
    stopped: AtomicBool,
}

/// Pinned memory and its copy on the device.
struct Slot {
    pinned: Pinned<u8>,
    staged: Buffer<u8>,
    /// When the GPU needs neither any more.
    done: Event,
}

impl Loader<'_> {
    fn run(&self, progress: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<(), ModelWeightsError> {
        let n_threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS).min(self.pieces.len());
        let (sender, copied) = channel();
        thread::scope(|scope| {
            let threads: Vec<_> = (0..n_threads)
                .map(|_| {
                    let sender = sender.clone();
                    scope.spawn(move || self.load_pieces(&sender))
                })
                .collect();
            drop(sender); // so that `copied` ends with the threads
            let mut n_bytes = 0;
            let mut flow = ControlFlow::Continue(());
            for n in copied {
                n_bytes += n;
                if flow.is_continue() {
                    flow = progress(n_bytes);
                }
                if flow.is_break() {
                    self.stopped.store(true, Ordering::Relaxed);
                }
            }
            for thread in threads {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic))?;
            }
            match flow {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(ModelWeightsError::Interrupted),
            }
        })
    }

    /// What one thread does; the others stop at its error.
    fn load_pieces(&self, copied: &Sender<u64>) -> Result<(), DeviceError> {
        let result = self.load_pieces_until_stopped(copied);
        if result.is_err() {
            self.stopped.store(true, Ordering::Relaxed);
        }
        result
    }

    fn load_pieces_until_stopped(&self, copied: &Sender<u64>) -> Result<(), DeviceError> {
        let stream = self.device.stream()?;
        let mut slots: [Slot; SLOTS] =
            [Slot::new(self.device, self.slot_bytes)?, Slot::new(self.device, self.slot_bytes)?];
        for i in (0..SLOTS).cycle() {
            let Some(piece) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)) else { break };
            if self.stopped.load(Ordering::Relaxed) {
                break;
            }
            slots[i].load(&stream, &self.kernels, piece)?;
            _ = copied.send(piece.bytes() as u64); // whoever counts waits for this thread
        }
        stream.synchronize()
    }
}

impl Slot {
    fn new(device: &Device, n_bytes: usize) -> Result<Self, DeviceError> {
        Ok(Self { pinned: device.alloc_pinned(n_bytes)?, staged: device.alloc(n_bytes)?, done: device.event()? })
    }

    /// Copies the piece when the GPU is done with the one before, and queues the rest.
    fn load(&mut self, stream: &Stream, kernels: &Kernels, piece: &Piece) -> Result<(), DeviceError> {
        self.done.wait()?;
        let (mut staged, mut at, mut end) = ([Address::zeroed(); 2], 0, 0);
        for (staged, source) in staged.iter_mut().zip(piece.sources) {
            self.pinned.write(at, source)?;
            *staged = self.staged.address_of(at)?;
            end = at + source.len();
            at = end.next_multiple_of(SLOT_ALIGNMENT);
        }
        stream.send_first(&self.pinned, end, &mut self.staged)?;
        kernels.launch(stream, staged, &piece.work)?;
        stream.record(&self.done)
    }
}

impl Kernels {
    fn launch(&self, stream: &Stream, [first, second]: [Address; 2], work: &Work) -> Result<(), DeviceError> {
        match *work {
            Work::Plain { target, n } => self.copy.launch_at(stream, first, target, n),
            Work::Dense(args) => self.pack.dense(stream, &PackDenseArgs { source: first, ..args }),
            Work::Values { matrices, args } => self.pack.widen(stream, matrices, &WidenArgs { source: first, ..args }),
            Work::Experts(args) => {
                self.pack.experts(stream, &PackExpertsArgs { blocks: first, scales: second, ..args })
            }
        }
    }
}
