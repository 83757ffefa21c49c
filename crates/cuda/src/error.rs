/// Why the GPU cannot be used, or an operation on it failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error(
        "the NVIDIA driver is missing: libcuda.so.1 could not be loaded; install it for an H100 or H200 (release 580 or \
         later)"
    )]
    NoDriver,
    #[error(
        "the NVIDIA driver is too old: it supports CUDA {}.{}, the kernels need {}.{}; install release 580 or later",
        found / 1000, found % 1000 / 10, expected / 1000, expected % 1000 / 10
    )]
    DriverTooOld { expected: u32, found: u32 },
    #[error("no NVIDIA GPU: the driver is there but shows no device; look at `nvidia-smi` and CUDA_VISIBLE_DEVICES")]
    NoDevice,
    #[error(
        "the GPU is {name} of compute capability {}.{}, the kernels need {}.{} (H100, H200): run on the CPU",
        found.0, found.1, expected.0, expected.1
    )]
    WrongDevice { name: String, expected: (u32, u32), found: (u32, u32) },
    #[error("this build has no GPU kernels: nvcc was missing; install it with `just cuda-toolchain`, and build again")]
    NoKernels,
    #[error("this build has no kernel {kernel} in kernels/{file}.cu")]
    UnknownKernel { file: &'static str, kernel: &'static str },
    #[error(
        "kernel {kernel} has parameters of {params_bytes:?} bytes, its caller has one of {args_bytes}: their structs differ"
    )]
    Arguments { kernel: &'static str, params_bytes: Vec<usize>, args_bytes: usize },
    #[error("the GPU's memory is too small: {bytes} bytes were asked for, {free_bytes} are free")]
    OutOfMemory { bytes: usize, free_bytes: usize },
    #[error("{n} elements at {at} are beyond the {len} of the buffer")]
    Bounds { at: usize, n: usize, len: usize },
    #[error(
        "the GPU is lost to this program: {call} failed with {name}, {text}; start it again, and if that comes back, look for \
         Xid in the kernel's log (dmesg) and at `nvidia-smi`"
    )]
    Lost { call: &'static str, name: String, text: String },
    #[error("{call} failed: {name}, {text}")]
    Driver { call: &'static str, name: String, text: String },
}
