use bytemuck::{Pod, Zeroable};

use crate::dense::DenseShape;
use crate::device::{Address, Device};
use crate::error::DeviceError;
use crate::launch::{Kernel, Launch, Start, Stream};
use crate::moe::MAX_TOKENS;
use crate::moe::grouped::{GROUP_ROWS, panels};

/// Which product: they differ in how many tokens share a weight, and in no bit of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenseKernel {
    /// For few tokens: weights stream through as fast as memory gives them.
    Stream,
    /// For some: tiles of 64 rows and up to 64 tokens, whose blocks leave room for another kernel's.
    Small,
    /// For more: tiles of up to 256 rows and 128 tokens.
    Mid,
    /// For many: tiles of up to 256 tokens.
    Wide,
}

/// What a block of a Hopper GPU may have, and of two on one multiprocessor each.
const MOST_SMEM_BYTES: usize = 227 << 10;
const HALF_SMEM_BYTES: usize = 113 << 10;
/// Of the barriers, before everything else.
const HEADER_BYTES: usize = 1024;
const GROUP_BYTES: usize = 1024;

/// As in `dense_stream.cu`.
const MAX_WARPS: usize = 4;
const COPIERS: usize = 4;
const CHUNK: usize = 4;
const STREAM_STAGE_BYTES: usize = CHUNK * 2 * GROUP_BYTES;
const MAX_STREAM_STAGES: usize = 20;
/// Two groups of tokens at most, and so many bytes of them: the rest of the shared memory has room for the rings.
const MAX_STREAM_TOKENS: usize = 16;
const MAX_STREAM_TOKEN_BYTES: usize = 128 << 10;
/// Of a warp's ring: fewer cannot hide the memory's latency.
const FEWEST_STREAM_STAGES: usize = 3;

/// As in `dense_gemm.cu`: strips and bytes of a unit of 64 rows, columns by which products grow, stages.
const UNIT_STRIPS: usize = 4;
const UNIT_BYTES: usize = UNIT_STRIPS * 2 * GROUP_BYTES;
const STEP: usize = 32;
const MAX_GEMM_STAGES: usize = 16;
/// Blocks of a cluster.
const PAIR: usize = 2;

/// The geometry of a body of `dense_gemm.cu`.
struct Body {
    name: &'static str,
    /// Warpgroups.
    consumers: usize,
    /// Units of 64 rows that each takes at most.
    units: usize,
    /// Of a tile.
    max_tokens: usize,
    /// Warps that only copy, each every so many stages.
    copiers: usize,
    /// What its blocks may have.
    smem_bytes: usize,
    /// That a stage takes at least: its barriers and copies, one after the other where a warp that multiplies copies as well.
    stage_clocks: f64,
}

const SMALL: Body = Body {
    name: "dense_gemm_small",
    consumers: 1,
    units: 1,
    max_tokens: 64,
    copiers: 2,
    smem_bytes: HALF_SMEM_BYTES,
    stage_clocks: 200.0,
};
const MID: Body =
    Body { name: "dense_gemm_mid", consumers: 2, units: 2, max_tokens: 128, smem_bytes: MOST_SMEM_BYTES, ..SMALL };
const WIDE: Body = Body {
    name: "dense_gemm_wide",
    consumers: 3,
    units: 1,
    max_tokens: 256,
    copiers: 0,
    smem_bytes: MOST_SMEM_BYTES,
    stage_clocks: 800.0,
};

impl DenseKernel {
    pub const ALL: [Self; 4] = [Self::Stream, Self::Small, Self::Mid, Self::Wide];

    /// The most tokens of one call.
    pub fn max_tokens(self, shape: DenseShape) -> usize {
        match self {
            Self::Stream => MAX_STREAM_TOKENS.min(MAX_STREAM_TOKEN_BYTES / (panels(shape.cols) * 128)),
            Self::Small | Self::Mid | Self::Wide => MAX_TOKENS,
        }
    }
}

/// `DenseArgs` of `dense.cuh`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct DenseArgs {
    pub records: Address, // [strips, k_records, 2048]
    pub bias: Address,    // [strips * 16] float32
    pub tokens: Address,  // panels of [n_tokens, 64 * k_records]
    pub out: Address,     // [n_tokens, rows] float32
    pub k_records: u32,
    pub strips: u32,
    pub rows: u32,
    pub n_tokens: u32,
    pub adds: u32,
    pub stages: u32, // these four are set by `launch`
    pub tile_units: u32,
    pub tile_groups: u32,
    pub same_rows: u32,
    pub unused: u32,
}

/// All bodies, loaded.
pub(crate) struct DenseKernels {
    stream_8: Kernel<DenseArgs>,
    stream_16: Kernel<DenseArgs>,
    small: Kernel<DenseArgs>,
    mid: Kernel<DenseArgs>,
    wide: Kernel<DenseArgs>,
    /// That share a product.
    n_blocks: usize,
}

impl DenseKernels {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Ok(Self {
            stream_8: device.kernel("dense_stream", "dense_stream_8")?,
            stream_16: device.kernel("dense_stream", "dense_stream_16")?,
            small: device.kernel("dense_gemm", SMALL.name)?,
            mid: device.kernel("dense_gemm", MID.name)?,
            wide: device.kernel("dense_gemm", WIDE.name)?,
            n_blocks: device.properties().n_sms,
        })
    }

    pub fn set_blocks(&mut self, n_blocks: usize) {
        self.n_blocks = n_blocks;
    }

    pub fn auto(&self, shape: DenseShape, n_tokens: usize) -> DenseKernel {
        auto(shape, n_tokens, self.n_blocks)
    }

    /// The name of the kernel. There is a token at least, and no more than the kernel's `max_tokens`.
    pub fn launch(
        &self,
        stream: &Stream,
        kernel: DenseKernel,
        shape: DenseShape,
        args: DenseArgs,
    ) -> Result<&'static str, DeviceError> {
        let n_tokens = args.n_tokens as usize;
        let tiled = |body: &Body| body.tile(shape, n_tokens, self.n_blocks).launch(body, args);
        let (name, kernel, (launch, args)) = match kernel {
            DenseKernel::Stream => {
                let plan = Rings::new(shape, n_tokens, self.n_blocks).launch(args);
                match n_tokens <= GROUP_ROWS {
                    true => ("dense_stream_8", &self.stream_8, plan),
                    false => ("dense_stream_16", &self.stream_16, plan),
                }
            }
            DenseKernel::Small => (SMALL.name, &self.small, tiled(&SMALL)),
            DenseKernel::Mid => (MID.name, &self.mid, tiled(&MID)),
            DenseKernel::Wide => (WIDE.name, &self.wide, tiled(&WIDE)),
        };
        stream.launch(kernel, launch, &args)?;
        Ok(name)
    }
}

fn auto(shape: DenseShape, n_tokens: usize, n_blocks: usize) -> DenseKernel {
    if n_tokens <= DenseKernel::Stream.max_tokens(shape) {
        return DenseKernel::Stream;
    }
    let [small, mid, wide] = [&SMALL, &MID, &WIDE].map(|body| body.tile(shape, n_tokens, n_blocks));
    // One short tile for each block: another kernel's finds room beside it.
    if small.tiles_each == 1 && small.clocks <= mid.clocks {
        DenseKernel::Small
    } else if mid.clocks <= wide.clocks {
        DenseKernel::Mid
    } else {
        DenseKernel::Wide
    }
}

/// How the stream body shares the strips.
#[derive(Debug, PartialEq, Eq)]
struct Rings {
    blocks: usize,
    warps: usize,
    /// Of each warp.
    stages: usize,
    token_bytes: usize,
}

impl Rings {
    /// Every block has a strip before any has two, and a warp for each up to the most: the fewer warps, the longer their rings.
    /// A short product leaves room for the next kernel's blocks, so that their weights are on their way before it ends.
    fn new(shape: DenseShape, n_tokens: usize, n_blocks: usize) -> Self {
        let (strips, k_records) = (shape.strips(), panels(shape.cols));
        let blocks = n_blocks.min(strips);
        let warps = strips.div_ceil(blocks).min(MAX_WARPS);
        let token_bytes = (k_records * n_tokens * 128).next_multiple_of(1024);
        let room = |bytes: usize| {
            let stages = bytes.saturating_sub(HEADER_BYTES + token_bytes) / STREAM_STAGE_BYTES;
            stages.min(MAX_STREAM_STAGES) / warps
        };
        let strips_each = strips.div_ceil(blocks * warps);
        let (all, half) = (room(MOST_SMEM_BYTES), room(HALF_SMEM_BYTES));
        let most = if strips_each == 1 && half >= FEWEST_STREAM_STAGES { half } else { all };
        Self { blocks, warps, stages: most.min(strips_each * k_records.div_ceil(CHUNK)), token_bytes }
    }

    fn launch(&self, args: DenseArgs) -> (Launch, DenseArgs) {
        let smem_bytes = HEADER_BYTES + self.token_bytes + self.warps * self.stages * STREAM_STAGE_BYTES;
        let launch = Launch {
            smem_bytes: smem_bytes as u32,
            start: Start::Early,
            ..Launch::new(self.blocks as u32, 32 * (self.warps + COPIERS) as u32)
        };
        (launch.apart(), DenseArgs { stages: self.stages as u32, ..args })
    }
}

/// A tile of `dense_gemm.cu`: units of 64 rows, groups of 8 tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Tile {
    units: usize,
    groups: usize,
    /// Of the two blocks of a pair; else the same tokens.
    same_rows: bool,
    pairs: usize,
    /// That a pair has.
    tiles_each: usize,
    /// What the whole product should take.
    clocks: f64,
}

/// Bytes that come to a multiprocessor in one of its clocks, and a multiprocessor's share of what the L2 cache gives to all:
/// the second is measured, the first an estimate.
const SM_BYTES: f64 = 48.0;
const L2_BYTES: f64 = 24.0;
/// The most tiles of tokens beyond the fewest that are considered.
const MORE_TOKEN_TILES: usize = 8;
/// Before the first and after the last product of a tile, and to store a token's 64 sums.
const TILE_CLOCKS: f64 = 1500.0;
const STORE_CLOCKS: f64 = 10.0;

impl Body {
    /// The tile that should be the fastest: large ones read less, small ones leave nobody idle.
    fn tile(&self, shape: DenseShape, n_tokens: usize, n_blocks: usize) -> Tile {
        let groups = n_tokens.div_ceil(GROUP_ROWS);
        let fewest = groups.div_ceil(self.max_tokens / GROUP_ROWS);
        let splits = fewest..=(fewest + MORE_TOKEN_TILES).min(groups);
        let sizes = (1..=self.consumers * self.units)
            .flat_map(|units| splits.clone().map(move |n| (units, groups.div_ceil(n))))
            .flat_map(|(units, groups)| [false, true].map(|same_rows| (units, groups, same_rows)));
        let tiles = sizes.map(|(units, groups, same_rows)| {
            let tile = Tile { units, groups, same_rows, pairs: 0, tiles_each: 0, clocks: 0.0 };
            tile.planned(self, shape, n_tokens, n_blocks)
        });
        tiles.min_by(|a, b| a.clocks.total_cmp(&b.clocks)).expect("one unit is a size")
    }
}

impl Tile {
    /// For a product of that shape.
    fn planned(self, body: &Body, shape: DenseShape, n_tokens: usize, n_blocks: usize) -> Self {
        let row_tiles = shape.strips().div_ceil(self.units * UNIT_STRIPS);
        let token_tiles = n_tokens.div_ceil(self.groups * GROUP_ROWS);
        let n_pairs = match self.same_rows {
            true => row_tiles * token_tiles.div_ceil(PAIR),
            false => row_tiles.div_ceil(PAIR) * token_tiles,
        };
        let most = (n_blocks / PAIR).max(1);
        let pairs = most.min(n_pairs);
        // What a record takes: to multiply, where 64 rows of it and a token take two clocks, or to read.
        let columns = (self.units * width(self.groups)) as f64;
        let (weights, tokens) = (self.units * UNIT_BYTES, self.groups * GROUP_BYTES);
        let both = if self.same_rows { weights + PAIR * tokens } else { PAIR * weights + tokens };
        let to_sm = (weights + tokens) as f64 / SM_BYTES;
        let from_l2 = (both * pairs) as f64 / (L2_BYTES * (most * PAIR) as f64);
        let record = [2.0 * columns, to_sm, from_l2, body.stage_clocks].into_iter().fold(0.0, f64::max);
        let tile = panels(shape.cols) as f64 * record + STORE_CLOCKS * columns + TILE_CLOCKS;
        let tiles_each = n_pairs.div_ceil(most);
        Self { pairs, tiles_each, clocks: tiles_each as f64 * tile, ..self }
    }

    fn stage_bytes(&self) -> usize {
        self.units * UNIT_BYTES + width(self.groups) * 128
    }

    /// As many as there is room for, and as many for each warp that copies.
    fn stages(&self, body: &Body) -> usize {
        let stages = MAX_GEMM_STAGES.min((body.smem_bytes - HEADER_BYTES) / self.stage_bytes());
        stages - stages % body.copiers.max(1)
    }

    fn launch(&self, body: &Body, args: DenseArgs) -> (Launch, DenseArgs) {
        let stages = self.stages(body);
        let n_threads = 128 * body.consumers + 32 * body.copiers;
        let launch = Launch {
            smem_bytes: (HEADER_BYTES + stages * self.stage_bytes()) as u32,
            start: Start::Early,
            cluster: [PAIR as u32, 1, 1],
            ..Launch::new((self.pairs * PAIR) as u32, n_threads as u32)
        };
        let args = DenseArgs {
            stages: stages as u32,
            tile_units: self.units as u32,
            tile_groups: self.groups as u32,
            same_rows: u32::from(self.same_rows),
            ..args
        };
        (launch.apart(), args)
    }
}

/// Columns of a product for so many groups.
fn width(groups: usize) -> usize {
    (groups * GROUP_ROWS).next_multiple_of(STEP)
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;
    use crate::launch::APART_SMEM_BYTES;

    const QKV: DenseShape = DenseShape { rows: 5120, cols: 2880 };
    const O: DenseShape = DenseShape { rows: 2880, cols: 4096 };
    const HEAD: DenseShape = DenseShape { rows: 201_088, cols: 2880 };
    const TINY: DenseShape = DenseShape { rows: 1, cols: 32 };
    const LONG: DenseShape = DenseShape { rows: 96, cols: crate::dense::MAX_COLS };
    const SHAPES: [DenseShape; 5] = [QKV, O, HEAD, TINY, LONG];
    /// With fewer, [`SMALL`] does not read fast enough.
    const FEWEST_SMALL_STAGES: u32 = 6;

    #[test]
    fn every_product_fits_a_multiprocessor() {
        for (shape, n_tokens) in
            SHAPES.into_iter().flat_map(|shape| (1..400).chain([8192, 65536]).map(move |n| (shape, n)))
        {
            let what = format!("{shape:?}, {n_tokens} tokens");
            if n_tokens <= DenseKernel::Stream.max_tokens(shape) {
                let (launch, args) = Rings::new(shape, n_tokens, 132).launch(DenseArgs::zeroed());
                assert!(launch.smem_bytes as usize <= MOST_SMEM_BYTES && args.stages >= 1, "{what}");
                assert!(args.stages * (launch.block[0] / 32 - COPIERS as u32) <= MAX_STREAM_STAGES as u32, "{what}");
            }
            for body in [&SMALL, &MID, &WIDE] {
                let (launch, args) = body.tile(shape, n_tokens, 132).launch(body, DenseArgs::zeroed());
                // A stage is free when the next one's products are on their way.
                let fewest = if body.name == SMALL.name { FEWEST_SMALL_STAGES } else { 2 };
                assert!(args.stages >= fewest, "{what}");
                assert!((launch.smem_bytes as usize) <= body.smem_bytes.max(APART_SMEM_BYTES as usize), "{what}");
                assert_eq!(args.stages as usize % body.copiers.max(1), 0, "{what}");
                assert!(args.tile_units as usize <= body.consumers * body.units, "{what}");
                assert!((1..=body.max_tokens / 8).contains(&(args.tile_groups as usize)), "{what}");
            }
        }
    }

    #[test]
    fn strips_are_spread_over_all_blocks_first() {
        let rings = |shape, n_tokens| Rings::new(shape, n_tokens, 132);
        // One strip for each warp: half of the shared memory is the next kernel's, where the rest is enough.
        assert_eq!(rings(QKV, 1), Rings { blocks: 132, warps: 3, stages: 4, token_bytes: 6 << 10 });
        assert_eq!(rings(QKV, 8), Rings { blocks: 132, warps: 3, stages: 6, token_bytes: 45 << 10 });
        assert_eq!(rings(O, 1), Rings { blocks: 132, warps: 2, stages: 6, token_bytes: 8 << 10 });
        assert_eq!(rings(O, 8), Rings { blocks: 132, warps: 2, stages: 3, token_bytes: 64 << 10 });
        assert_eq!(rings(HEAD, 1), Rings { blocks: 132, warps: 4, stages: 5, token_bytes: 6 << 10 });
        assert_eq!(rings(TINY, 16), Rings { blocks: 1, warps: 1, stages: 1, token_bytes: 2 << 10 });
    }

    #[test]
    fn some_tokens_have_tiles_for_most_blocks() {
        let tile = |shape, n_tokens| MID.tile(shape, n_tokens, 132);
        for (shape, n_tokens, pairs) in
            [(QKV, 17, 40), (QKV, 64, 40), (O, 17, 45), (O, 64, 45), (O, 256, 46), (HEAD, 64, 66)]
        {
            assert_eq!(tile(shape, n_tokens).pairs, pairs, "{shape:?}, {n_tokens} tokens");
        }
        // Where there are few rows, tokens are shared out.
        assert!(tile(O, 64).same_rows && tile(O, 64).groups == 4);
        assert!(!tile(QKV, 64).same_rows && tile(QKV, 64).groups == 8);
        // A pair is the least there is.
        assert_eq!(MID.tile(O, 64, 1).pairs, 1);
    }

    #[test]
    fn few_tokens_stream_and_many_have_wide_tiles() {
        for shape in [QKV, O, HEAD] {
            assert_eq!(auto(shape, 1, 132), DenseKernel::Stream);
            assert_eq!(auto(shape, 16, 132), DenseKernel::Stream);
            assert_eq!(auto(shape, 8192, 132), DenseKernel::Wide);
        }
        for (shape, n_tokens, expect) in [
            (QKV, 17, DenseKernel::Small),
            (QKV, 64, DenseKernel::Small),
            (QKV, 128, DenseKernel::Mid),
            (O, 17, DenseKernel::Small),
            (O, 128, DenseKernel::Small),
            (O, 256, DenseKernel::Mid),
            (HEAD, 17, DenseKernel::Mid),
            (HEAD, 64, DenseKernel::Mid),
        ] {
            assert_eq!(auto(shape, n_tokens, 132), expect, "{shape:?}, {n_tokens} tokens");
        }
        assert_eq!(DenseKernel::Stream.max_tokens(LONG), 8);
        assert_eq!(auto(LONG, 9, 132), DenseKernel::Small);
    }

    #[test]
    fn numbers_are_those_of_the_kernels() {
        let stream = include_str!("../../kernels/dense_stream.cu");
        let gemm = include_str!("../../kernels/dense_gemm.cu");
        for (source, name, expect) in [
            (stream, "kMaxWarps", MAX_WARPS),
            (stream, "kCopiers", COPIERS),
            (stream, "kChunk", CHUNK),
            (stream, "kMaxStages", MAX_STREAM_STAGES),
            (stream, "kHeaderBytes", HEADER_BYTES),
            (gemm, "kStep", STEP),
            (gemm, "kMaxStages", MAX_GEMM_STAGES),
            (gemm, "kHeaderBytes", HEADER_BYTES),
            (gemm, "kUnitStrips", UNIT_STRIPS),
            (gemm, "kPair", PAIR),
        ] {
            let (_, rest) = source.split_once(&format!(" {name} = ")).expect(name);
            assert_eq!(rest.split([',', ';']).next().unwrap().parse(), Ok(expect), "{name}");
        }
        for (name, body) in [("Small", SMALL), ("Mid", MID), ("Wide", WIDE)] {
            let numbers = format!("{}, {}, {}, {}", body.consumers, body.units, body.max_tokens, body.copiers);
            assert!(gemm.contains(&format!("using {name} = Body<{numbers}>;")), "{name}");
        }
    }
}
