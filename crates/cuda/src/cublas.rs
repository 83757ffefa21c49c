//! NVIDIA's dense matrix product, as a measure of what the tensor cores give. Nothing else uses it, and nobody needs it.

use std::ffi::{c_int, c_void};

use cudarc::cublas::result::CublasError;
use cudarc::cublas::{result, sys};
use half::bf16;

use crate::device::{Buffer, Device};
use crate::error::DeviceError;
use crate::launch::Stream;

/// Products of square BF16 matrices on one stream.
pub(crate) struct Cublas {
    handle: sys::cublasHandle_t,
}

impl Cublas {
    /// None where the library is not on the loader's path.
    pub fn open(device: &Device, stream: &Stream) -> Result<Option<Self>, DeviceError> {
        device.context.bind()?;
        // SAFETY: loads a library by name and drops it; it has no conditions on that.
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        let handle = check("cublasCreate", result::create_handle())?;
        let cublas = Self { handle };
        // SAFETY: both exist; the caller synchronises the stream before it drops either.
        check("cublasSetStream", unsafe { result::set_stream(cublas.handle, stream.raw.0.cast()) })?;
        Ok(Some(cublas))
    }

    /// Queues `c = a b`, each `[n, n]`.
    pub fn multiply(
        &self,
        n: usize,
        a: &Buffer<bf16>,
        b: &Buffer<bf16>,
        c: &mut Buffer<bf16>,
    ) -> Result<(), DeviceError> {
        for len in [a.len(), b.len(), c.len()] {
            if len < n * n {
                return Err(DeviceError::Bounds { at: 0, n: n * n, len });
            }
        }
        let (one, zero, width) = (1.0_f32, 0.0_f32, n as c_int);
        let (scalar, matrix) = (|x: &f32| std::ptr::from_ref(x).cast::<c_void>(), sys::cudaDataType::CUDA_R_16BF);
        // SAFETY: the handle and its stream exist, all three buffers have `n * n` elements, and the scalars are read
        // before the call returns, as is the default for host pointers.
        let status = unsafe {
            result::gemm_ex(
                self.handle,
                sys::cublasOperation_t::CUBLAS_OP_T,
                sys::cublasOperation_t::CUBLAS_OP_N,
                width,
                width,
                width,
                scalar(&one),
                a.pointer(),
                matrix,
                width,
                b.pointer(),
                matrix,
                width,
                scalar(&zero),
                c.pointer(),
                matrix,
                width,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        check("cublasGemmEx", status)
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        // SAFETY: created in `open` and destroyed only here. An error has nobody to go to.
        _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn check<T>(call: &'static str, status: Result<T, CublasError>) -> Result<T, DeviceError> {
    status.map_err(|CublasError(status)| DeviceError::Driver {
        call,
        name: format!("{status:?}"),
        text: "the cuBLAS library".into(),
    })
}
