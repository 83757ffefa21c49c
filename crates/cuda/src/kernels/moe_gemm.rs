use bytemuck::{Pod, Zeroable};

use crate::device::{Address, Device};
use crate::error::DeviceError;
use crate::launch::{Kernel, Launch, Start, Stream};
use crate::moe::MAX_EXPERTS;
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

/// The geometry of a body of `moe_gemm.cu`.
struct Body {
    gate_up: &'static str,
    down: &'static str,
    /// Warpgroups that multiply, a strip of 64 rows each; one more copies.
    consumers: usize,
    /// Of a tile.
    max_tokens: usize,
    /// Records of each strip in a stage.
    chunk: usize,
    stages: usize,
}

/// As in `moe_gemm.cu`, in the order of [`MoeKernel`].
#[rustfmt::skip]
const BODIES: [Body; 3] = [
    Body { gate_up: "moe_gate_up_stream",  down: "moe_down_stream",  consumers: 4, max_tokens: 24,  chunk: 3, stages: 5 },
    Body { gate_up: "moe_gate_up_mid",     down: "moe_down_mid",     consumers: 4, max_tokens: 48,  chunk: 3, stages: 4 },
    Body { gate_up: "moe_gate_up_prefill", down: "moe_down_prefill", consumers: 3, max_tokens: 176, chunk: 2, stages: 3 },
];

/// Tokens per expert, on average, up to which each kernel is the fastest.
const MAX_STREAM_TOKENS: usize = 12;
const MAX_MID_TOKENS: usize = 40;

/// What the copy engine's addresses in shared memory are aligned to.
const STAGE_ALIGN: usize = 1024;
const STRIP_ALIGN: usize = 128;
const WARPGROUP: usize = 128;

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

    /// The most tokens of one product.
    pub(crate) fn max_tokens(self) -> usize {
        BODIES[self as usize].max_tokens
    }
}

impl Body {
    fn threads(&self) -> usize {
        (self.consumers + 1) * WARPGROUP
    }

    /// `Shared` of `moe_gemm.cu`.
    fn smem_bytes(&self) -> usize {
        let tokens = self.chunk * self.max_tokens * TILE_K * 2;
        let weights = self.consumers * (self.chunk * RECORD_BYTES).next_multiple_of(STRIP_ALIGN);
        let stage = (tokens + weights).next_multiple_of(STAGE_ALIGN);
        let (barriers, plan) = (2 * 8, 2 * 4 * (MAX_EXPERTS + 1));
        self.stages * (stage + barriers) + plan
    }
}

/// `MoeGemmArgs` of `moe_gemm.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct GemmArgs {
    pub records: Address, // [experts, strips, k_records, 2176]
    pub bias: Address,    // [experts, strips * 64] float32, in the order of the packed rows
    pub tokens: Address,  // grouped rows of k_records panels
    pub counts: Address,  // [experts]
    pub out: Address,     // gate_up: grouped rows of ceil(strips / 2) panels; down: [grouped rows, out_columns] float32
    pub k_records: u32,
    pub strips: u32,
    pub out_columns: u32,
    pub experts: u32,
    pub weight_scale: f32,
    pub swiglu_limit: f32,
    pub swiglu_alpha: f32,
    pub padding: u32,
}

/// All bodies, loaded.
pub(crate) struct GemmKernels {
    gate_up: [Gemm; 3],
    down: [Gemm; 3],
}

struct Gemm {
    name: &'static str,
    kernel: Kernel<GemmArgs>,
    launch: Launch,
}

impl GemmKernels {
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        let [stream, mid, prefill] = &BODIES;
        let all = |name: fn(&Body) -> &'static str| {
            let load = |body| Gemm::load(device, body, name(body));
            Ok::<_, DeviceError>([load(stream)?, load(mid)?, load(prefill)?])
        };
        Ok(Self { gate_up: all(|body| body.gate_up)?, down: all(|body| body.down)? })
    }

    /// From now on so many blocks share the tiles, instead of one per multiprocessor. No bit of the result depends on it.
    pub fn set_blocks(&mut self, n_blocks: u32) {
        for gemm in self.gate_up.iter_mut().chain(&mut self.down) {
            gemm.launch.grid = [n_blocks, 1, 1];
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

impl Gemm {
    fn load(device: &Device, body: &Body, name: &'static str) -> Result<Self, DeviceError> {
        let n_blocks = device.properties().n_sms as u32; // persistent
        let launch = Launch {
            smem_bytes: body.smem_bytes() as u32,
            start: Start::Early,
            ..Launch::new(n_blocks, body.threads() as u32)
        };
        Ok(Self { name, kernel: device.kernel("moe_gemm", name)?, launch })
    }

    fn launch(&self, stream: &Stream, args: &GemmArgs) -> Result<&'static str, DeviceError> {
        stream.launch(&self.kernel, self.launch, args)?;
        Ok(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::{BODIES, MAX_MID_TOKENS, MAX_STREAM_TOKENS, MoeKernel};

    /// What a block of a Hopper GPU may have.
    const MOST_SMEM_BYTES: usize = 227 << 10;

    #[test]
    fn bodies_are_in_the_order_of_the_kernels_and_fit() {
        for (kernel, body) in MoeKernel::ALL.into_iter().zip(&BODIES) {
            let name = format!("{kernel:?}").to_lowercase();
            assert_eq!([body.gate_up, body.down], [format!("moe_gate_up_{name}"), format!("moe_down_{name}")]);
            assert!(body.smem_bytes() <= MOST_SMEM_BYTES && body.threads() <= 1024, "{kernel:?}");
            assert!(body.max_tokens.is_multiple_of(8), "{kernel:?}");
        }
    }

    /// `using Name = Body<consumers, max tokens, step, chunk, stages>;`
    #[test]
    fn bodies_are_those_of_the_kernels() {
        let source = include_str!("../../kernels/moe_gemm.cu");
        for (kernel, body) in MoeKernel::ALL.into_iter().zip(&BODIES) {
            let (_, rest) = source.split_once(&format!("using {kernel:?} = Body<")).unwrap();
            let (numbers, _) = rest.split_once('>').unwrap();
            let numbers: Vec<usize> = numbers.split(", ").map(|number| number.parse().unwrap()).collect();
            let [consumers, max_tokens, _, chunk, stages] = numbers[..] else { panic!("{numbers:?}") };
            let found = [body.consumers, body.max_tokens, body.chunk, body.stages];
            assert_eq!(found, [consumers, max_tokens, chunk, stages], "{kernel:?}");
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
