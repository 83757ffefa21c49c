use bytemuck::{Pod, Zeroable};

use crate::device::{Address, Device};
use crate::error::DeviceError;
use crate::launch::{Kernel, Launch, Start, Stream};
use crate::moe::grouped::{GROUP_ROWS, panels};
use crate::moe::{MAX_EXPERTS, MAX_TOP_K, MAX_WIDTH};
use crate::pack::{RECORD_BYTES, TILE_K};

/// Which of the experts' matrix products: they differ in how many tokens share a decoded weight, and in no bit of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoeKernel {
    /// For few tokens per expert: weights stream through as fast as memory gives them.
    Stream,
    Mid,
    /// For many: weights are decoded once for a whole tile of tokens.
    Prefill,
}

/// The geometry of a body: a block's warpgroups that multiply, a strip of 64 rows at a time each, and its shared memory.
struct Body {
    file: &'static str,
    gate_up: &'static str,
    down: &'static str,
    consumers: usize,
    /// Of a tile.
    max_tokens: usize,
    /// Records of a strip in a stage.
    chunk: usize,
    /// Of all rings.
    stages: usize,
    sharing: Sharing,
}

/// What a body's warpgroups have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// The tokens over the whole of k; the stages are divided among rings of their own for their weights.
    Tokens,
    /// One ring for weights and tokens.
    Ring,
}

/// As in `moe_stream.cu` and `moe_gemm.cu`, in the order of [`MoeKernel`].
const BODIES: [Body; 3] = [
    Body {
        file: "moe_stream",
        gate_up: "moe_gate_up_stream",
        down: "moe_down_stream",
        consumers: 4,
        max_tokens: 16,
        chunk: 3,
        stages: 20,
        sharing: Sharing::Tokens,
    },
    Body {
        file: "moe_gemm",
        gate_up: "moe_gate_up_mid",
        down: "moe_down_mid",
        consumers: 4,
        max_tokens: 48,
        chunk: 5,
        stages: 3,
        sharing: Sharing::Ring,
    },
    Body {
        file: "moe_gemm",
        gate_up: "moe_gate_up_prefill",
        down: "moe_down_prefill",
        consumers: 3,
        max_tokens: 176,
        chunk: 2,
        stages: 3,
        sharing: Sharing::Ring,
    },
];

/// [`MoeKernel::Stream`] for [`MAX_FEW_TOKENS`] at most: a block of gate_up and one of down share a multiprocessor.
const FEW: Body = Body {
    file: "moe_few",
    gate_up: "moe_gate_up_few",
    down: "moe_down_few",
    consumers: 3,
    max_tokens: 8,
    chunk: 3,
    stages: 9,
    sharing: Sharing::Tokens,
};

/// Tokens per expert, on average, up to which each kernel is the fastest.
const MAX_STREAM_TOKENS: usize = 10;
const MAX_MID_TOKENS: usize = 40;

/// Parts of k in which `moe_stream.cu` lets tokens come and go.
const SEGMENTS: usize = 3;
/// Up to here, the stream kernels choose the experts by themselves.
pub(crate) const MAX_ROUTED_TOKENS: usize = 16;
/// Up to here, the blocks of down beside those of gate_up are worth their smaller rings.
const MAX_FEW_TOKENS: u32 = 8;

/// What the copy engine's addresses in shared memory are aligned to.
const STAGE_ALIGN: usize = 1024;
const STRIP_ALIGN: usize = 128;
const WARPGROUP: usize = 128;
const WARP: usize = 32;

impl MoeKernel {
    pub const ALL: [Self; 3] = [Self::Stream, Self::Mid, Self::Prefill];

    /// The one for so many slots (a slot is one choice of a token), by the average of tokens per expert.
    pub fn auto(n_slots: usize, experts: usize) -> Self {
        if n_slots <= MAX_STREAM_TOKENS * experts {
            Self::Stream
        } else if n_slots <= MAX_MID_TOKENS * experts {
            Self::Mid
        } else {
            Self::Prefill
        }
    }

    /// Whether gate_up can count its strips for down to go on with.
    pub(crate) fn counts_strips(self) -> bool {
        self == Self::Prefill
    }

    /// The most tokens of one product.
    pub(crate) fn max_tokens(self) -> usize {
        BODIES[self as usize].max_tokens
    }
}

impl Body {
    fn threads(&self) -> usize {
        match self.sharing {
            // A warp copies for each, and one copies the tokens.
            Sharing::Tokens => self.consumers * WARPGROUP + (self.consumers + 1) * WARP,
            Sharing::Ring => (self.consumers + 1) * WARPGROUP,
        }
    }

    /// `Shared` of the kernel, or a little more.
    fn smem_bytes(&self) -> usize {
        let weights = (self.chunk * RECORD_BYTES).next_multiple_of(STRIP_ALIGN);
        let tiles = 4 * (MAX_EXPERTS + 2 * (MAX_EXPERTS + 1));
        match self.sharing {
            Sharing::Tokens => {
                let tokens = panels(MAX_WIDTH) * self.max_tokens * TILE_K * 2;
                let barriers = 2 * 8 * (self.stages + self.max_tokens / GROUP_ROWS * SEGMENTS);
                let routing = 4 * MAX_EXPERTS + (4 + 4 + GROUP_ROWS) * MAX_ROUTED_TOKENS * MAX_TOP_K;
                (tokens + self.stages * weights + barriers + tiles + routing).next_multiple_of(STAGE_ALIGN)
            }
            Sharing::Ring => {
                let tokens = self.chunk * self.max_tokens * TILE_K * 2;
                let stage = (tokens + self.consumers * weights).next_multiple_of(STAGE_ALIGN);
                self.stages * (stage + 2 * 8) + 2 * 8 + tiles
            }
        }
    }
}

/// `MoeGemmArgs` of `moe_gemm.cuh`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct GemmArgs {
    pub records: Address,     // [experts, strips, k_records, 2176]
    pub bias: Address,        // [experts, strips * 64] float32, in the order of the packed rows
    pub tokens: Address,      // grouped rows of k_records panels
    pub counts: Address,      // [experts]
    pub strips_done: Address, // [experts + 1], or null: down waits for the end of gate_up
    pub out: Address, // gate_up: grouped rows of ceil(strips / 2) panels; down: [grouped rows, out_columns] float32
    pub k_records: u32,
    pub strips: u32,
    pub out_columns: u32,
    pub experts: u32,
    pub weight_scale: f32,
    pub swiglu_limit: f32,
    pub swiglu_alpha: f32,
    pub strips_before: u32, // of gate_up; read by down alone
}

/// `MoeRoutedArgs` of `moe_gemm.cuh`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct RoutedArgs {
    pub gemm: GemmArgs,
    pub logits: Address,    // [tokens, experts]
    pub x: Address,         // [tokens, hidden] bfloat16; read by gate_up alone
    pub ids: Address,       // [tokens, top_k]; written by gate_up, as are those that follow
    pub weights: Address,   // [tokens, top_k]
    pub positions: Address, // [tokens, top_k]
    pub counts: Address,    // [experts]
    pub tokens: u32,
    pub top_k: u32,
    pub hidden: u32,
    pub padding: u32,
}

/// All bodies, loaded.
pub(crate) struct GemmKernels {
    gate_up: [Gemm<GemmArgs>; 3],
    down: [Gemm<GemmArgs>; 3],
    routed: Routed,
    few: Routed,
}

/// Both products, with routing.
struct Routed {
    gate_up: Gemm<RoutedArgs>,
    down: Gemm<RoutedArgs>,
}

struct Gemm<A> {
    name: &'static str,
    kernel: Kernel<A>,
    launch: Launch,
}

impl GemmKernels {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        let [stream, mid, prefill] = &BODIES;
        let all = |name: fn(&Body) -> &'static str| {
            let load = |body| Gemm::load(device, body, name(body));
            Ok::<_, DeviceError>([load(stream)?, load(mid)?, load(prefill)?])
        };
        Ok(Self {
            gate_up: all(|body| body.gate_up)?,
            down: all(|body| body.down)?,
            routed: Routed {
                gate_up: Gemm::load(device, stream, "moe_gate_up_routed")?,
                down: Gemm::load(device, stream, "moe_down_routed")?,
            },
            few: Routed {
                gate_up: Gemm::load(device, &FEW, FEW.gate_up)?.apart(),
                down: Gemm::load(device, &FEW, FEW.down)?,
            },
        })
    }

    /// From now on so many blocks share the tiles, instead of one per multiprocessor. No bit of the result depends on it.
    pub fn set_blocks(&mut self, n_blocks: u32) {
        for gemm in self.gate_up.iter_mut().chain(&mut self.down) {
            gemm.launch.grid = [n_blocks, 1, 1];
        }
        for routed in [&mut self.routed, &mut self.few] {
            routed.gate_up.launch.grid = [n_blocks, 1, 1];
            routed.down.launch.grid = [n_blocks, 1, 1];
        }
    }

    /// The name of the kernel that was launched; so does `down`.
    pub fn gate_up(&self, stream: &Stream, kernel: MoeKernel, args: &GemmArgs) -> Result<&'static str, DeviceError> {
        self.gate_up[kernel as usize].launch(stream, args)
    }

    pub fn down(&self, stream: &Stream, kernel: MoeKernel, args: &GemmArgs) -> Result<&'static str, DeviceError> {
        self.down[kernel as usize].launch(stream, args)
    }
}

/// The same with routing, for [`MAX_ROUTED_TOKENS`] at most.
impl GemmKernels {
    pub fn gate_up_routed(&self, stream: &Stream, args: &RoutedArgs) -> Result<&'static str, DeviceError> {
        self.routed(args).gate_up.launch(stream, args)
    }

    pub fn down_routed(&self, stream: &Stream, args: &RoutedArgs) -> Result<&'static str, DeviceError> {
        self.routed(args).down.launch(stream, args)
    }

    fn routed(&self, args: &RoutedArgs) -> &Routed {
        if args.tokens <= MAX_FEW_TOKENS { &self.few } else { &self.routed }
    }
}

impl<A: Pod> Gemm<A> {
    fn load(device: &Device, body: &Body, name: &'static str) -> Result<Self, DeviceError> {
        let n_blocks = device.properties().n_sms as u32; // persistent
        let launch = Launch {
            smem_bytes: body.smem_bytes() as u32,
            start: Start::Early,
            ..Launch::new(n_blocks, body.threads() as u32)
        };
        Ok(Self { name, kernel: device.kernel(body.file, name)?, launch })
    }

    fn apart(self) -> Self {
        Self { launch: self.launch.apart(), ..self }
    }

    fn launch(&self, stream: &Stream, args: &A) -> Result<&'static str, DeviceError> {
        stream.launch(&self.kernel, self.launch, args)?;
        Ok(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::{BODIES, Body, FEW, MAX_MID_TOKENS, MAX_STREAM_TOKENS, MoeKernel, Sharing};
    use crate::launch::Launch;
    use crate::moe::MAX_WIDTH;
    use crate::moe::grouped::{GROUP_ROWS, PANEL};

    /// What a block of a Hopper GPU may have.
    const MOST_SMEM_BYTES: usize = 227 << 10;
    /// What a multiprocessor has, and what each of its blocks costs beside what it asked for.
    const SM_SMEM_BYTES: usize = 228 << 10;
    const BLOCK_SMEM_BYTES: usize = 1 << 10;

    #[test]
    fn bodies_are_in_the_order_of_the_kernels_and_fit() {
        for (kernel, body) in MoeKernel::ALL.into_iter().zip(&BODIES) {
            let name = format!("{kernel:?}").to_lowercase();
            assert_eq!([body.gate_up, body.down], [format!("moe_gate_up_{name}"), format!("moe_down_{name}")]);
            assert!(body.smem_bytes() <= MOST_SMEM_BYTES && body.threads() <= 1024, "{kernel:?}");
            assert!(body.max_tokens.is_multiple_of(8), "{kernel:?}");
        }
        let gate_up = Launch { smem_bytes: FEW.smem_bytes() as u32, ..Launch::new(1, 1) }.apart().smem_bytes as usize;
        assert!(gate_up + FEW.smem_bytes() + 2 * BLOCK_SMEM_BYTES <= SM_SMEM_BYTES);
        assert!(2 * (gate_up + BLOCK_SMEM_BYTES) > SM_SMEM_BYTES);
    }

    #[test]
    fn bodies_are_those_of_the_kernels() {
        let [stream, mid, prefill] = BODIES.each_ref().map(numbers);
        assert_eq!(stream, in_moe_stream());
        assert_eq!(numbers(&FEW), in_moe_few());
        assert_eq!(mid, in_moe_gemm("Mid"));
        assert_eq!(prefill, in_moe_gemm("Prefill"));
        assert_eq!(BODIES.each_ref().map(|body| body.file), ["moe_stream", "moe_gemm", "moe_gemm"]);
        let counting = MoeKernel::ALL.map(|kernel| kernel.counts_strips());
        let source = include_str!("../../kernels/moe_gemm.cu");
        assert!(counting == [false, false, true] && source.contains("kCountsStrips = std::is_same_v<B, Prefill>;"));
        assert!(BODIES.iter().all(|body| (body.file == "moe_stream") == (body.sharing == Sharing::Tokens)));
    }

    /// Consumers, tokens, chunk, stages.
    fn numbers(body: &Body) -> [usize; 4] {
        [body.consumers, body.max_tokens, body.chunk, body.stages]
    }

    /// `using Name = Body<consumers, max tokens, step, chunk, stages, operands>;`
    fn in_moe_gemm(name: &str) -> [usize; 4] {
        let source = include_str!("../../kernels/moe_gemm.cu");
        let (_, rest) = source.split_once(&format!("using {name} = Body<")).unwrap();
        let (numbers, _) = rest.split_once('>').unwrap();
        let numbers: Vec<usize> = numbers.split(", ").map(|number| number.parse().unwrap()).collect();
        let [consumers, max_tokens, _, chunk, stages, _] = numbers[..] else { panic!("{numbers:?}") };
        [consumers, max_tokens, chunk, stages]
    }

    /// There each consumer has so many stages.
    fn in_moe_stream() -> [usize; 4] {
        let of = |name| constant(include_str!("../../kernels/moe_stream.cu"), name);
        [of("kConsumers"), of("kBuffers") * GROUP_ROWS, of("kChunk"), of("kConsumers") * of("kStages")]
    }

    fn in_moe_few() -> [usize; 4] {
        ["kConsumers", "kMaxTokens", "kChunk", "kStages"]
            .map(|name| constant(include_str!("../../kernels/moe_few.cu"), name))
    }

    /// `constexpr uint32_t kName = number, kOther = number;`
    fn constant(source: &str, name: &str) -> usize {
        let (_, rest) = source.split_once(&format!(" {name} = ")).expect(name);
        rest.split([',', ';']).next().unwrap().parse().expect(name)
    }

    #[test]
    fn the_widest_rows_are_those_that_there_is_room_for() {
        for source in [include_str!("../../kernels/moe_stream.cu"), include_str!("../../kernels/moe_few.cu")] {
            assert_eq!(MAX_WIDTH, constant(source, "kMaxPanels") * PANEL);
        }
    }

    #[test]
    fn auto_goes_by_the_tokens_of_an_expert() {
        for experts in [1, 32, 128] {
            let (stream, mid) = (MAX_STREAM_TOKENS * experts, MAX_MID_TOKENS * experts);
            for (n_slots, expect) in [
                (0, MoeKernel::Stream),
                (stream, MoeKernel::Stream),
                (stream + 1, MoeKernel::Mid),
                (mid, MoeKernel::Mid),
                (mid + 1, MoeKernel::Prefill),
            ] {
                assert_eq!(MoeKernel::auto(n_slots, experts), expect, "{n_slots} slots, {experts} experts");
            }
        }
    }
}
