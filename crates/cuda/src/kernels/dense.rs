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
    /// For some: tiles of many rows and up to 128 tokens.
    Mid,
    /// For many: tiles of up to 256 tokens.
    Wide,
}

/// What a block of a Hopper GPU may have.
const MOST_SMEM_BYTES: usize = 227 << 10;
/// Of the barriers, before everything else.
const HEADER_BYTES: usize = 1024;
const GROUP_BYTES: usize = 1024;

/// As in `dense_stream.cu`.
const MAX_WARPS: usize = 4;
const CHUNK: usize = 4;
const STREAM_STAGE_BYTES: usize = CHUNK * 2 * GROUP_BYTES;
const MAX_STREAM_STAGES: usize = 20;
/// Two groups of tokens at most, and so many bytes of them: the rest of the shared memory has room for the rings.
const MAX_STREAM_TOKENS: usize = 16;
const MAX_STREAM_TOKEN_BYTES: usize = 128 << 10;

/// As in `dense_gemm.cu`: strips and bytes of a unit of 64 rows, columns by which products grow, stages.
const UNIT_STRIPS: usize = 4;
const UNIT_BYTES: usize = UNIT_STRIPS * 2 * GROUP_BYTES;
const STEP: usize = 32;
const MAX_GEMM_STAGES: usize = 16;

/// The geometry of a body of `dense_gemm.cu`.
struct Body {
    name: &'static str,
    /// Warpgroups.
    consumers: usize,
    /// Units of 64 rows that each takes at most.
    units: usize,
    /// Of a tile.
    max_tokens: usize,
}

const MID: Body = Body { name: "dense_gemm_mid", consumers: 3, units: 2, max_tokens: 128 };
const WIDE: Body = Body { name: "dense_gemm_wide", consumers: 3, units: 1, max_tokens: 256 };

impl DenseKernel {
    pub const ALL: [Self; 3] = [Self::Stream, Self::Mid, Self::Wide];

    /// The most tokens of one call.
    pub fn max_tokens(self, shape: DenseShape) -> usize {
        match self {
            Self::Stream => MAX_STREAM_TOKENS.min(MAX_STREAM_TOKEN_BYTES / (panels(shape.cols) * 128)),
            Self::Mid | Self::Wide => MAX_TOKENS,
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
    pub stages: u32, // these three are set by `launch`
    pub tile_units: u32,
    pub tile_groups: u32,
}

/// All bodies, loaded.
pub(crate) struct DenseKernels {
    stream_8: Kernel<DenseArgs>,
    stream_16: Kernel<DenseArgs>,
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
        let (name, kernel, (launch, args)) = match kernel {
            DenseKernel::Stream => {
                let plan = Rings::new(shape, n_tokens, self.n_blocks).launch(args);
                match n_tokens <= GROUP_ROWS {
                    true => ("dense_stream_8", &self.stream_8, plan),
                    false => ("dense_stream_16", &self.stream_16, plan),
                }
            }
            DenseKernel::Mid => (MID.name, &self.mid, MID.tile(shape, n_tokens, self.n_blocks).launch(&MID, args)),
            DenseKernel::Wide => (WIDE.name, &self.wide, WIDE.tile(shape, n_tokens, self.n_blocks).launch(&WIDE, args)),
        };
        stream.launch(kernel, launch, &args)?;
        Ok(name)
    }
}

fn auto(shape: DenseShape, n_tokens: usize, n_blocks: usize) -> DenseKernel {
    if n_tokens <= DenseKernel::Stream.max_tokens(shape) {
        return DenseKernel::Stream;
    }
    let clocks = |body: &Body| body.tile(shape, n_tokens, n_blocks).clocks;
    if clocks(&MID) <= clocks(&WIDE) { DenseKernel::Mid } else { DenseKernel::Wide }
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
    fn new(shape: DenseShape, n_tokens: usize, n_blocks: usize) -> Self {
        let (strips, k_records) = (shape.strips(), panels(shape.cols));
        let blocks = n_blocks.min(strips);
        let warps = strips.div_ceil(blocks).min(MAX_WARPS);
        let token_bytes = (k_records * n_tokens * 128).next_multiple_of(1024);
        let all = MAX_STREAM_STAGES.min((MOST_SMEM_BYTES - HEADER_BYTES - token_bytes) / STREAM_STAGE_BYTES);
        let needed = strips.div_ceil(blocks * warps) * k_records.div_ceil(CHUNK);
        Self { blocks, warps, stages: needed.min(all / warps), token_bytes }
    }

    fn launch(&self, args: DenseArgs) -> (Launch, DenseArgs) {
        let smem_bytes = HEADER_BYTES + self.token_bytes + self.warps * self.stages * STREAM_STAGE_BYTES;
        let launch = Launch {
            smem_bytes: smem_bytes as u32,
            start: Start::Early,
            // One more warp copies.
            ..Launch::new(self.blocks as u32, 32 * (self.warps + 1) as u32)
        };
        (launch, DenseArgs { stages: self.stages as u32, ..args })
    }
}

/// A tile of `dense_gemm.cu`: units of 64 rows, groups of 8 tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Tile {
    units: usize,
    groups: usize,
    blocks: usize,
    /// What the whole product should take.
    clocks: f64,
}

/// Clocks of a multiprocessor, and bytes that come in one of them, its own and those of all, from the L2 cache: estimates, of
/// which only the ratios count.
const SM_BYTES: f64 = 48.0;
const L2_BYTES: f64 = 32.0;
/// Before the first and after the last product of a tile, and to store a token's 64 sums.
const TILE_CLOCKS: f64 = 1500.0;
const STORE_CLOCKS: f64 = 10.0;

impl Body {
    /// The tile that should be the fastest: large ones read less, small ones leave nobody idle.
    fn tile(&self, shape: DenseShape, n_tokens: usize, n_blocks: usize) -> Tile {
        let groups = n_tokens.div_ceil(GROUP_ROWS);
        let fewest = groups.div_ceil(self.max_tokens / GROUP_ROWS);
        let sizes = (1..=self.consumers * self.units)
            .flat_map(|units| (fewest..=fewest + 4).map(move |n| (units, groups.div_ceil(n.min(groups)))));
        let tiles = sizes.map(|(units, groups)| Tile::new(shape, n_tokens, n_blocks, units, groups));
        tiles.min_by(|a, b| a.clocks.total_cmp(&b.clocks)).expect("one unit is a size")
    }
}

impl Tile {
    fn new(shape: DenseShape, n_tokens: usize, n_blocks: usize, units: usize, groups: usize) -> Self {
        let n_tiles = shape.strips().div_ceil(units * UNIT_STRIPS) * n_tokens.div_ceil(groups * GROUP_ROWS);
        let blocks = n_blocks.min(n_tiles);
        let (records, columns) = (panels(shape.cols) as f64, (units * width(groups)) as f64);
        let bytes = (units * UNIT_BYTES + groups * GROUP_BYTES) as f64;
        // A product of 64 rows, 64 columns of the matrix and a token takes two.
        let tile_clocks = records * f64::max(2.0 * columns, bytes / SM_BYTES) + STORE_CLOCKS * columns + TILE_CLOCKS;
        let l2_clocks = records * bytes * n_tiles as f64 / (L2_BYTES * n_blocks as f64);
        Self { units, groups, blocks, clocks: f64::max(n_tiles.div_ceil(n_blocks) as f64 * tile_clocks, l2_clocks) }
    }

    /// As many stages as there is room for.
    fn launch(&self, body: &Body, args: DenseArgs) -> (Launch, DenseArgs) {
        let stage_bytes = self.units * UNIT_BYTES + width(self.groups) * 128;
        let stages = MAX_GEMM_STAGES.min((MOST_SMEM_BYTES - HEADER_BYTES) / stage_bytes);
        let launch = Launch {
            smem_bytes: (HEADER_BYTES + stages * stage_bytes) as u32,
            start: Start::Early,
            ..Launch::new(self.blocks as u32, 128 * body.consumers as u32)
        };
        let (stages, tile_units, tile_groups) = (stages as u32, self.units as u32, self.groups as u32);
        (launch, DenseArgs { stages, tile_units, tile_groups, ..args })
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

    const QKV: DenseShape = DenseShape { rows: 5120, cols: 2880 };
    const O: DenseShape = DenseShape { rows: 2880, cols: 4096 };
    const HEAD: DenseShape = DenseShape { rows: 201_088, cols: 2880 };
    const SMALL: DenseShape = DenseShape { rows: 1, cols: 32 };
    const LONG: DenseShape = DenseShape { rows: 96, cols: crate::dense::MAX_COLS };
    const SHAPES: [DenseShape; 5] = [QKV, O, HEAD, SMALL, LONG];

    #[test]
    fn every_product_fits_a_multiprocessor() {
        for (shape, n_tokens) in
            SHAPES.into_iter().flat_map(|shape| (1..400).chain([8192, 65536]).map(move |n| (shape, n)))
        {
            let what = format!("{shape:?}, {n_tokens} tokens");
            if n_tokens <= DenseKernel::Stream.max_tokens(shape) {
                let (launch, args) = Rings::new(shape, n_tokens, 132).launch(DenseArgs::zeroed());
                assert!(launch.smem_bytes as usize <= MOST_SMEM_BYTES && args.stages >= 1, "{what}");
                assert!(args.stages * (launch.block[0] / 32 - 1) <= MAX_STREAM_STAGES as u32, "{what}");
            }
            for body in [&MID, &WIDE] {
                let (launch, args) = body.tile(shape, n_tokens, 132).launch(body, DenseArgs::zeroed());
                // A stage is free when the next one's products are on their way.
                assert!(launch.smem_bytes as usize <= MOST_SMEM_BYTES && args.stages >= 2, "{what}");
                assert!(args.tile_units as usize <= body.consumers * body.units, "{what}");
                assert!((1..=body.max_tokens / 8).contains(&(args.tile_groups as usize)), "{what}");
            }
        }
    }

    #[test]
    fn strips_are_spread_over_all_blocks_first() {
        let rings = |shape, n_tokens| Rings::new(shape, n_tokens, 132);
        assert_eq!(rings(QKV, 1), Rings { blocks: 132, warps: 3, stages: 6, token_bytes: 6 << 10 });
        assert_eq!(rings(O, 8), Rings { blocks: 132, warps: 2, stages: 10, token_bytes: 64 << 10 });
        assert_eq!(rings(HEAD, 1), Rings { blocks: 132, warps: 4, stages: 5, token_bytes: 6 << 10 });
        assert_eq!(rings(SMALL, 16), Rings { blocks: 1, warps: 1, stages: 1, token_bytes: 2 << 10 });
    }

    #[test]
    fn few_tokens_stream_and_many_have_wide_tiles() {
        for shape in [QKV, O, HEAD] {
            assert_eq!(auto(shape, 1, 132), DenseKernel::Stream);
            assert_eq!(auto(shape, 16, 132), DenseKernel::Stream);
            assert_eq!(auto(shape, 17, 132), DenseKernel::Mid);
            assert_eq!(auto(shape, 8192, 132), DenseKernel::Wide);
        }
        assert_eq!(DenseKernel::Stream.max_tokens(LONG), 8);
        assert_eq!(auto(LONG, 9, 132), DenseKernel::Mid);
    }

    #[test]
    fn numbers_are_those_of_the_kernels() {
        let stream = include_str!("../../kernels/dense_stream.cu");
        let gemm = include_str!("../../kernels/dense_gemm.cu");
        for (source, name, expect) in [
            (stream, "kMaxWarps", MAX_WARPS),
            (stream, "kChunk", CHUNK),
            (stream, "kMaxStages", MAX_STREAM_STAGES),
            (stream, "kHeaderBytes", HEADER_BYTES),
            (gemm, "kStep", STEP),
            (gemm, "kMaxStages", MAX_GEMM_STAGES),
            (gemm, "kHeaderBytes", HEADER_BYTES),
            (gemm, "kUnitStrips", UNIT_STRIPS),
        ] {
            let (_, rest) = source.split_once(&format!(" {name} = ")).expect(name);
            assert_eq!(rest.split([',', ';']).next().unwrap().parse(), Ok(expect), "{name}");
        }
        for (name, body) in [("Mid", MID), ("Wide", WIDE)] {
            let numbers = format!("{}, {}, {}", body.consumers, body.units, body.max_tokens);
            assert!(gemm.contains(&format!("using {name} = Body<{numbers}>;")), "{name}");
        }
    }
}
