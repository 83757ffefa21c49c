//! The GPU, its memory, and copies in the order of a stream.
//!
//! A thin layer over the driver API, which is loaded when it is first used: a binary starts on machines without a driver.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::mem::size_of;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::{Pod, Zeroable};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use crate::cubins::CUBINS;
use crate::error::DeviceError;
use crate::launch::{Loaded, Stream};

/// The GPU that is used: the first that the driver shows.
const ORDINAL: c_int = 0;
/// CUDA 13.0, as the driver counts: the release of the nvcc that the kernels are compiled with.
const DRIVER_VERSION: u32 = 13_000;
/// Cubins of sm_90a run on this compute capability and no other.
const COMPUTE_CAPABILITY: (u32, u32) = (9, 0);

/// An open GPU.
pub struct Device {
    pub(crate) context: Arc<Context>,
    properties: Properties,
}

/// What kernels are sized by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    pub name: String,
    /// Streaming multiprocessors.
    pub n_sms: usize,
    pub l2_bytes: usize,
    /// Shared memory of a multiprocessor.
    pub smem_bytes_per_sm: usize,
    /// The most shared memory that one block may have, static and dynamic.
    pub smem_bytes_per_block: usize,
}

/// The GPU's memory, all processes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub free_bytes: usize,
    pub total_bytes: usize,
}

impl Device {
    /// Opens the first GPU; the error says what is missing.
    pub fn open() -> Result<Self, DeviceError> {
        // SAFETY: loads a library by name and drops it; the driver's has no conditions on that.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError::NoDriver);
        }
        let found = driver_version()?;
        if found < DRIVER_VERSION {
            return Err(DeviceError::DriverTooOld { expected: DRIVER_VERSION, found });
        }
        let raw = first_device()?;
        let name = name(raw)?;
        let found = (
            attribute(raw, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            attribute(raw, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        );
        if found != COMPUTE_CAPABILITY {
            return Err(DeviceError::WrongDevice { name, expected: COMPUTE_CAPABILITY, found });
        }
        if CUBINS.is_empty() {
            return Err(DeviceError::NoKernels);
        }
        let properties = Properties {
            name,
            n_sms: attribute(raw, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            l2_bytes: attribute(raw, Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            smem_bytes_per_sm: attribute(raw, Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
            smem_bytes_per_block: attribute(raw, Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        };
        Ok(Self { context: Arc::new(Context::retain(raw)?), properties })
    }

    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    pub fn memory(&self) -> Result<Memory, DeviceError> {
        self.context.memory()
    }

    /// A buffer of `len` elements, all zero.
    pub fn alloc<T: Pod>(&self, len: usize) -> Result<Buffer<T>, DeviceError> {
        self.context.bind()?;
        let bytes = bytes_of::<T>(len);
        let mut address = 0;
        // SAFETY: the driver writes one address.
        let status = unsafe { sys::cuMemAlloc_v2(&mut address, bytes) };
        if status == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(DeviceError::OutOfMemory { bytes, free_bytes: self.memory()?.free_bytes });
        }
        check("cuMemAlloc", status)?;
        let buffer = Buffer { address, len, context: Arc::clone(&self.context), elements: PhantomData };
        // SAFETY: the range was just allocated; null is the default stream.
        unsafe {
            check("cuMemsetD8Async", sys::cuMemsetD8Async(address, 0, bytes, ptr::null_mut()))?;
            check("cuStreamSynchronize", sys::cuStreamSynchronize(ptr::null_mut()))?;
        }
        Ok(buffer)
    }

    /// Host memory of `len` elements, all zero, that the GPU copies from and to without the CPU's help.
    pub fn alloc_pinned<T: Pod>(&self, len: usize) -> Result<Pinned<T>, DeviceError> {
        self.context.bind()?;
        let bytes = bytes_of::<T>(len);
        let mut start = ptr::null_mut();
        // SAFETY: the driver writes one pointer; on success it points to `bytes` bytes that are this process's to write.
        unsafe {
            check("cuMemHostAlloc", sys::cuMemHostAlloc(&mut start, bytes, 0))?;
            ptr::write_bytes(start.cast::<u8>(), 0, bytes);
        }
        let memory = Arc::new(HostMemory { start: Handle(start), context: Arc::clone(&self.context) });
        Ok(Pinned { memory, len, elements: PhantomData })
    }
}

/// An array in the GPU's memory. Dropping it waits for the GPU.
pub struct Buffer<T> {
    address: u64,
    len: usize,
    context: Arc<Context>,
    elements: PhantomData<T>,
}

/// Where something lies in the GPU's memory, as kernels take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Address(u64);

impl Address {
    /// So many bytes further on.
    pub fn plus(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

impl<T: Pod> Buffer<T> {
    /// In elements.
    #[allow(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn address(&self) -> Address {
        Address(self.address)
    }

    /// As libraries take it.
    pub(crate) fn pointer(&self) -> *mut c_void {
        self.address as *mut c_void
    }

    /// The address of element `at`, or of the buffer's end.
    pub fn address_of(&self, at: usize) -> Result<Address, DeviceError> {
        bounds(at, 0, self.len)?;
        Ok(Address(self.address + (at * size_of::<T>()) as u64))
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `Device::alloc` and freed only here. An error has nobody to go to, and leaks at worst.
        _ = self.context.bind().map(|()| unsafe { sys::cuMemFree_v2(self.address) });
    }
}

/// An array in host memory that the GPU copies from and to by itself.
///
/// Nothing orders its contents against copies that a stream has not finished: synchronise the stream before reading what
/// it brings or writing what it takes.
pub struct Pinned<T> {
    memory: Arc<HostMemory>,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Pod> Pinned<T> {
    /// In elements.
    #[allow(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Writes `values` from element `at` on.
    pub fn write(&mut self, at: usize, values: &[T]) -> Result<(), DeviceError> {
        bounds(at, values.len(), self.len)?;
        // SAFETY: in bounds; nothing ever refers to this memory, the GPU's copies apart, and `values` lies elsewhere.
        unsafe { ptr::copy_nonoverlapping(values.as_ptr(), self.start().add(at), values.len()) };
        Ok(())
    }

    /// Reads from element `at` on.
    pub fn read(&self, at: usize, values: &mut [T]) -> Result<(), DeviceError> {
        bounds(at, values.len(), self.len)?;
        // SAFETY: as in `write`; any bytes are a `T`, and all were written at the start.
        unsafe { ptr::copy_nonoverlapping(self.start().add(at), values.as_mut_ptr(), values.len()) };
        Ok(())
    }

    fn start(&self) -> *mut T {
        self.memory.start.0.cast()
    }
}

/// Allocated for the GPU's copies. Streams and graphs that copy from or to it keep it, too.
pub(crate) struct HostMemory {
    start: Handle<*mut c_void>,
    context: Arc<Context>,
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `Device::alloc_pinned`, freed only here; streams keep it until no copy is under way.
        _ = self.context.bind().map(|()| unsafe { sys::cuMemFreeHost(self.start.0) });
    }
}

/// Copies; `launch` has the rest.
impl Stream {
    /// Copies `from` to the buffer's elements from `at` on, and waits.
    pub fn upload<T: Pod>(&self, from: &[T], to: &mut Buffer<T>, at: usize) -> Result<(), DeviceError> {
        bounds(at, from.len(), to.len)?;
        // SAFETY: both ranges are in bounds, and `from` is borrowed until the copy is done.
        unsafe { self.copy_in(from.as_ptr(), to.address_of(at)?, from.len())? };
        self.synchronize()
    }

    /// Copies the buffer's elements from `at` on to all of `to`, and waits.
    pub fn download<T: Pod>(&self, from: &Buffer<T>, at: usize, to: &mut [T]) -> Result<(), DeviceError> {
        bounds(at, to.len(), from.len)?;
        // SAFETY: both ranges are in bounds, `to` is borrowed until the copy is done, and any bytes are a `T`.
        unsafe { self.copy_out(from.address_of(at)?, to.as_mut_ptr(), to.len())? };
        self.synchronize()
    }

    /// Queues a copy of all of `from` to the start of `to`.
    pub fn send<T: Pod>(&self, from: &Pinned<T>, to: &mut Buffer<T>) -> Result<(), DeviceError> {
        self.send_first(from, from.len, to)
    }

    /// Queues a copy of the first `n` elements of `from` to the start of `to`.
    pub fn send_first<T: Pod>(&self, from: &Pinned<T>, n: usize, to: &mut Buffer<T>) -> Result<(), DeviceError> {
        bounds(0, n, from.len)?;
        bounds(0, n, to.len)?;
        self.in_use.borrow_mut().push(Arc::clone(&from.memory));
        // SAFETY: both ranges are in bounds, and the stream keeps the host's.
        unsafe { self.copy_in(from.start(), to.address(), n) }
    }

    /// Queues a copy of the start of `from` to all of `to`.
    pub fn fetch<T: Pod>(&self, from: &Buffer<T>, to: &mut Pinned<T>) -> Result<(), DeviceError> {
        bounds(0, to.len, from.len)?;
        self.in_use.borrow_mut().push(Arc::clone(&to.memory));
        // SAFETY: as in `send`.
        unsafe { self.copy_out(from.address(), to.start(), to.len) }
    }

    /// Queues zeros for the whole buffer.
    pub fn zero<T: Pod>(&self, buffer: &mut Buffer<T>) -> Result<(), DeviceError> {
        self.context.bind()?;
        // SAFETY: the range is the buffer's, which has a byte at least.
        let status = unsafe { sys::cuMemsetD8Async(buffer.address, 0, bytes_of::<T>(buffer.len), self.raw.0) };
        check("cuMemsetD8Async", status)
    }

    /// # Safety
    ///
    /// `n` elements are there on both sides, until the stream has been synchronised.
    unsafe fn copy_in<T>(&self, from: *const T, to: Address, n: usize) -> Result<(), DeviceError> {
        if n == 0 {
            return Ok(());
        }
        self.context.bind()?;
        // SAFETY: the caller's.
        let status = unsafe { sys::cuMemcpyHtoDAsync_v2(to.0, from.cast(), n * size_of::<T>(), self.raw.0) };
        check("cuMemcpyHtoDAsync", status)
    }

    /// # Safety
    ///
    /// As `copy_in`; any bytes are a `T`.
    unsafe fn copy_out<T>(&self, from: Address, to: *mut T, n: usize) -> Result<(), DeviceError> {
        if n == 0 {
            return Ok(());
        }
        self.context.bind()?;
        // SAFETY: the caller's.
        let status = unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from.0, n * size_of::<T>(), self.raw.0) };
        check("cuMemcpyDtoHAsync", status)
    }
}

/// The driver's state of this process on the GPU; everything that lives there keeps it.
pub(crate) struct Context {
    raw: Handle<sys::CUcontext>,
    device: sys::CUdevice,
    pub(crate) loaded: Mutex<Loaded>,
}

impl Context {
    fn retain(device: sys::CUdevice) -> Result<Self, DeviceError> {
        let mut raw = ptr::null_mut();
        // SAFETY: the driver writes one handle; `drop` gives it back.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut raw, device) })?;
        Ok(Self { raw: Handle(raw), device, loaded: Mutex::default() })
    }

    /// Makes this the calling thread's context, on which the driver's other calls work.
    pub(crate) fn bind(&self) -> Result<(), DeviceError> {
        // SAFETY: the context is retained for as long as `self` lives.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.raw.0) })
    }

    fn memory(&self) -> Result<Memory, DeviceError> {
        self.bind()?;
        let mut memory = Memory { free_bytes: 0, total_bytes: 0 };
        // SAFETY: the driver writes two numbers.
        let status = unsafe { sys::cuMemGetInfo_v2(&mut memory.free_bytes, &mut memory.total_bytes) };
        check("cuMemGetInfo", status).map(|()| memory)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.bind().is_ok() {
            self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner).unload();
        }
        // SAFETY: retained once, in `retain`. All that lived in the context has been dropped: it held this.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A handle of the driver, or an address that only it and raw copies use.
#[derive(Clone, Copy)]
pub(crate) struct Handle<H>(pub(crate) H);

// SAFETY: the driver API may be called from any thread with any handle, also from several at once.
unsafe impl<H> Send for Handle<H> {}
// SAFETY: as for `Send`.
unsafe impl<H> Sync for Handle<H> {}

/// The status of a driver call as a result.
pub(crate) fn check(call: &'static str, status: CUresult) -> Result<(), DeviceError> {
    if status == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let text = |get: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
        let mut text = ptr::null();
        // SAFETY: the driver writes a pointer to a string that lives as long as the process, or null.
        unsafe {
            get(status, &mut text);
            if text.is_null() { "unknown".to_owned() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        }
    };
    let (name, text) = (text(sys::cuGetErrorName), text(sys::cuGetErrorString));
    match is_lost(status) {
        true => Err(DeviceError::Lost { call, name, text }),
        false => Err(DeviceError::Driver { call, name, text }),
    }
}

/// Whether every later call of this process will fail, too: the hardware failed, or a kernel ended by a fault (CUDA driver API,
/// `CUresult`: "the process must be terminated and relaunched").
fn is_lost(status: CUresult) -> bool {
    use CUresult::*;
    matches!(
        status,
        CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
    )
}

/// Of an allocation: none has 0 bytes, which is an error to the driver, and one that overflows is too large for any memory.
fn bytes_of<T>(len: usize) -> usize {
    len.saturating_mul(size_of::<T>()).max(1)
}

fn bounds(at: usize, n: usize, len: usize) -> Result<(), DeviceError> {
    match at.checked_add(n).is_some_and(|end| end <= len) {
        true => Ok(()),
        false => Err(DeviceError::Bounds { at, n, len }),
    }
}

/// 1000 * major + 10 * minor of the CUDA release that the driver supports.
fn driver_version() -> Result<u32, DeviceError> {
    let mut version = 0;
    // SAFETY: the driver writes one number; this call works before `cuInit`.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) })?;
    Ok(version as u32)
}

fn first_device() -> Result<sys::CUdevice, DeviceError> {
    // SAFETY: no conditions.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_ERROR_NO_DEVICE => return Err(DeviceError::NoDevice),
        status => check("cuInit", status)?,
    }
    let (mut n_devices, mut device) = (0, 0);
    // SAFETY: the driver writes one number.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut n_devices) })?;
    if n_devices <= ORDINAL {
        return Err(DeviceError::NoDevice);
    }
    // SAFETY: the driver writes one handle.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ORDINAL) })?;
    Ok(device)
}

fn name(device: sys::CUdevice) -> Result<String, DeviceError> {
    let mut name = [0 as c_char; 256];
    // SAFETY: the driver writes at most `len` bytes.
    check("cuDeviceGetName", unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device) })?;
    let bytes: Vec<u8> = name.iter().map(|&byte| byte as u8).take_while(|&byte| byte != 0).collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn attribute(device: sys::CUdevice, attribute: Attribute) -> Result<usize, DeviceError> {
    let mut value = 0;
    // SAFETY: the driver writes one number.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
    Ok(value as usize)
}

#[cfg(test)]
mod tests {
    use super::{CUresult, is_lost};

    #[test]
    fn faults_lose_the_gpu_and_refusals_do_not() {
        for status in [CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, CUresult::CUDA_ERROR_ECC_UNCORRECTABLE] {
            assert!(is_lost(status), "{status:?}");
        }
        // The last two mean a GPU that is busy or not ready yet.
        for status in [
            CUresult::CUDA_ERROR_OUT_OF_MEMORY,
            CUresult::CUDA_ERROR_INVALID_VALUE,
            CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE,
            CUresult::CUDA_ERROR_SYSTEM_NOT_READY,
        ] {
            assert!(!is_lost(status), "{status:?}");
        }
    }
}
