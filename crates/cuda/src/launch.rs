//! Streams: kernels, graphs of them, and events that time them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::mem::size_of;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUresult};

use crate::cubins::CUBINS;
use crate::device::{Context, Device, Handle, HostMemory, check};
use crate::error::DeviceError;

/// A queue of work: kernels, copies, graphs, each after the one before.
pub struct Stream {
    pub(crate) raw: Handle<sys::CUstream>,
    pub(crate) context: Arc<Context>,
    /// Host memory that queued copies use, as far as is known; while a graph is recorded, that the graph uses.
    pub(crate) in_use: RefCell<Vec<Arc<HostMemory>>>,
}

/// A kernel whose one parameter is the struct `A`, by value: `const __grid_constant__ A args`.
pub struct Kernel<A> {
    function: Arc<Function>,
    context: Arc<Context>,
    args: PhantomData<fn(&A)>,
}

/// The shape of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks, in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block, in x, y and z.
    pub block: [u32; 3],
    /// Blocks of a cluster, in x, y and z; the grid must be a multiple.
    pub cluster: [u32; 3],
    /// Dynamic shared memory of a block.
    pub smem_bytes: u32,
    pub start: Start,
}

/// Two blocks with so much shared memory are too much for a multiprocessor, which has 228 KiB, 1 of them for itself of each
/// block. Beside one there is room for a block of 112 KiB.
pub(crate) const APART_SMEM_BYTES: u32 = 114 << 10;

/// When a kernel's blocks may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// After all work before it.
    InOrder,
    /// As soon as every block of the kernel before it has ended or executed `griddepcontrol.launch_dependents`. The kernel
    /// must execute `griddepcontrol.wait` before it touches what the one before writes or reads, unless that one tells it by a
    /// count in memory; and before it ends in any case.
    Early,
}

impl Launch {
    /// One-dimensional, without clusters and dynamic shared memory, in order.
    pub fn new(n_blocks: u32, n_threads: u32) -> Self {
        let [grid, block, cluster] = [n_blocks, n_threads, 1].map(|x| [x, 1, 1]);
        Self { grid, block, cluster, smem_bytes: 0, start: Start::InOrder }
    }

    /// The same with blocks that never share a multiprocessor. Of a kernel that starts early, some multiprocessors could have
    /// two blocks otherwise, and others none.
    pub fn apart(self) -> Self {
        Self { smem_bytes: self.smem_bytes.max(APART_SMEM_BYTES), ..self }
    }
}

impl Device {
    /// A stream of its own: work in it is ordered, and waits for no other stream.
    pub fn stream(&self) -> Result<Stream, DeviceError> {
        self.context.bind()?;
        let mut raw = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the driver writes one handle.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut raw, flags) })?;
        Ok(Stream { raw: Handle(raw), context: Arc::clone(&self.context), in_use: RefCell::default() })
    }

    /// The kernel of that name in `kernels/<file>.cu`; the module is loaded once. `A` must be as large as its parameter.
    pub fn kernel<A: Pod>(&self, file: &'static str, kernel: &'static str) -> Result<Kernel<A>, DeviceError> {
        self.context.bind()?;
        let function = {
            let mut loaded = self.context.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            loaded.function(file, kernel)?
        };
        if function.params_bytes != [size_of::<A>()] {
            let params_bytes = function.params_bytes.clone();
            return Err(DeviceError::Arguments { kernel, params_bytes, args_bytes: size_of::<A>() });
        }
        Ok(Kernel { function, context: Arc::clone(&self.context), args: PhantomData })
    }

    pub fn event(&self) -> Result<Event, DeviceError> {
        Event::new(&self.context)
    }
}

impl<A> Kernel<A> {
    /// Blocks of this many threads and dynamic shared memory that one multiprocessor holds at once.
    pub fn blocks_per_sm(&self, n_threads: u32, smem_bytes: u32) -> Result<usize, DeviceError> {
        self.context.bind()?;
        self.function.allow_smem(smem_bytes)?;
        let mut n_blocks = 0;
        // SAFETY: the function's module is loaded for as long as the context lives; the driver writes one number.
        let status = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut n_blocks,
                self.function.raw.0,
                n_threads as c_int,
                smem_bytes as usize,
            )
        };
        check("cuOccupancyMaxActiveBlocksPerMultiprocessor", status).map(|()| n_blocks as usize)
    }
}

impl Stream {
    /// Queues a kernel. That the addresses in `args` hold what the kernel reads and writes is the caller's business: an
    /// access to memory that is not allocated is an error of a later call, and the context is lost.
    pub fn launch<A: Pod>(&self, kernel: &Kernel<A>, launch: Launch, args: &A) -> Result<(), DeviceError> {
        self.context.bind()?;
        kernel.function.allow_smem(launch.smem_bytes)?;
        let (mut attributes, n_attributes) = attributes(&launch);
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.block[0],
            blockDimY: launch.block[1],
            blockDimZ: launch.block[2],
            sharedMemBytes: launch.smem_bytes,
            hStream: self.raw.0,
            attrs: attributes.as_mut_ptr(),
            numAttrs: n_attributes,
        };
        let mut params = [ptr::from_ref(args).cast_mut().cast::<c_void>()];
        // SAFETY: the kernel has one parameter of `A`'s size, as `Device::kernel` checked; the driver copies it, the
        // attributes and the configuration before it returns. Device code cannot reach this process's Rust objects: the
        // addresses that it gets are the GPU's.
        let status =
            unsafe { sys::cuLaunchKernelEx(&config, kernel.function.raw.0, params.as_mut_ptr(), ptr::null_mut()) };
        check("cuLaunchKernelEx", status)
    }

    /// Records what `queue` queues in this stream, without running it. Waiting is an error inside.
    ///
    /// The graph has the addresses of the buffers, not the buffers: keep them for as long as it is replayed.
    pub fn capture<E: From<DeviceError>>(&self, queue: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        self.context.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream exists.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.raw.0, mode) })?;
        let in_use = self.in_use.take();
        let queued = queue();
        let pinned = self.in_use.replace(in_use);
        let mut recorded = ptr::null_mut();
        // SAFETY: the stream is capturing; the driver writes one handle, null if the capture was invalid.
        let ended = check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.raw.0, &mut recorded) });
        let instantiated = queued.and(ended.map_err(E::from)).and_then(|()| {
            let mut exec = ptr::null_mut();
            // SAFETY: the recorded graph is valid; the driver writes one handle.
            let status = unsafe { sys::cuGraphInstantiateWithFlags(&mut exec, recorded, 0) };
            check("cuGraphInstantiate", status).map(|()| Handle(exec)).map_err(E::from)
        });
        if !recorded.is_null() {
            // SAFETY: ours, and not used any more: what was instantiated is a copy.
            unsafe { sys::cuGraphDestroy(recorded) };
        }
        let graph = Graph { raw: instantiated?, context: Arc::clone(&self.context), pinned };
        // SAFETY: both exist.
        check("cuGraphUpload", unsafe { sys::cuGraphUpload(graph.raw.0, self.raw.0) })?;
        Ok(graph)
    }

    /// Queues everything in the graph.
    pub fn replay(&self, graph: &Graph) -> Result<(), DeviceError> {
        self.context.bind()?;
        self.in_use.borrow_mut().extend(graph.pinned.iter().cloned());
        // SAFETY: both exist, and the stream keeps the host memory.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.raw.0, self.raw.0) })
    }

    /// Waits until everything queued is done. What went wrong in a kernel appears here at the latest.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.context.bind()?;
        // SAFETY: the stream exists.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.raw.0) })?;
        self.in_use.borrow_mut().clear();
        Ok(())
    }

    /// Queues the event: it happens when everything queued before is done.
    pub fn record(&self, event: &Event) -> Result<(), DeviceError> {
        self.context.bind()?;
        // SAFETY: both exist.
        check("cuEventRecord", unsafe { sys::cuEventRecord(event.raw.0, self.raw.0) })
    }

    /// Makes a new event a part of the graph that is being recorded: it happens when the graph is replayed, and must live
    /// as long as the graph.
    pub(crate) fn record_in_graph(&self) -> Result<Event, DeviceError> {
        let event = Event::new(&self.context)?;
        let flags = sys::CUevent_record_flags::CU_EVENT_RECORD_EXTERNAL as c_uint;
        // SAFETY: both exist.
        let status = unsafe { sys::cuEventRecordWithFlags(event.raw.0, self.raw.0, flags) };
        check("cuEventRecordWithFlags", status).map(|()| event)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.in_use.borrow().is_empty() && self.synchronize().is_err() {
            // Copies may still be under way: leaked.
            std::mem::forget(self.in_use.take());
        }
        // SAFETY: created in `Device::stream` and destroyed only here; what is queued still runs.
        _ = self.context.bind().map(|()| unsafe { sys::cuStreamDestroy_v2(self.raw.0) });
    }
}

/// What stands beside the configuration, and how much of it is used.
fn attributes(launch: &Launch) -> ([sys::CUlaunchAttribute; 2], c_uint) {
    use sys::{CUlaunchAttributeID as Id, CUlaunchAttributeValue as Value};
    let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
    let [x, y, z] = launch.cluster;
    let cluster = Value { clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z } };
    let early = Value { programmaticStreamSerializationAllowed: 1 };
    let cluster = attribute(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, cluster);
    let early = attribute(Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, early);
    match (launch.cluster == [1; 3], launch.start) {
        (true, Start::InOrder) => ([cluster, early], 0),
        (false, Start::InOrder) => ([cluster, early], 1),
        (true, Start::Early) => ([early, cluster], 1),
        (false, Start::Early) => ([cluster, early], 2),
    }
}

/// Recorded work that is queued as a whole, without the CPU's cost for each part.
pub struct Graph {
    raw: Handle<sys::CUgraphExec>,
    context: Arc<Context>,
    /// Host memory that the copies in it use.
    pinned: Vec<Arc<HostMemory>>,
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: instantiated in `Stream::capture` and destroyed only here; a replay under way ends undisturbed.
        _ = self.context.bind().map(|()| unsafe { sys::cuGraphExecDestroy(self.raw.0) });
    }
}

/// A moment in a stream.
pub struct Event {
    raw: Handle<sys::CUevent>,
    context: Arc<Context>,
}

impl Event {
    fn new(context: &Arc<Context>) -> Result<Self, DeviceError> {
        context.bind()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the driver writes one handle.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut raw, 0) })?;
        Ok(Self { raw: Handle(raw), context: Arc::clone(context) })
    }

    /// Waits until the event has happened; not at all if it was never recorded.
    pub fn wait(&self) -> Result<(), DeviceError> {
        self.context.bind()?;
        // SAFETY: the event exists.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.raw.0) })
    }

    /// Waits for this event and gives the time since `start`, to about half a microsecond. Both must have been recorded.
    pub fn ms_since(&self, start: &Event) -> Result<f32, DeviceError> {
        self.context.bind()?;
        let mut ms = 0.0;
        // SAFETY: both exist; the driver writes one number.
        unsafe {
            check("cuEventSynchronize", sys::cuEventSynchronize(self.raw.0))?;
            check("cuEventElapsedTime", sys::cuEventElapsedTime_v2(&mut ms, start.raw.0, self.raw.0))?;
        }
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created in `Device::event` and destroyed only here.
        _ = self.context.bind().map(|()| unsafe { sys::cuEventDestroy_v2(self.raw.0) });
    }
}

/// The modules and functions that were asked for so far.
#[derive(Default)]
pub(crate) struct Loaded {
    modules: HashMap<&'static str, Handle<sys::CUmodule>>,
    functions: HashMap<(&'static str, &'static str), Arc<Function>>,
}

struct Function {
    raw: Handle<sys::CUfunction>,
    /// The size of each parameter.
    params_bytes: Vec<usize>,
    /// The most dynamic shared memory that launches may ask for so far.
    smem_bytes: Mutex<u32>,
}

impl Loaded {
    fn function(&mut self, file: &'static str, kernel: &'static str) -> Result<Arc<Function>, DeviceError> {
        if let Some(function) = self.functions.get(&(file, kernel)) {
            return Ok(Arc::clone(function));
        }
        let unknown = DeviceError::UnknownKernel { file, kernel };
        let name = CString::new(kernel).map_err(|_| unknown.clone())?;
        let (_, image) = CUBINS.iter().find(|(name, _)| *name == file).ok_or_else(|| unknown.clone())?;
        let module = match self.modules.entry(file) {
            Entry::Occupied(entry) => entry.get().0,
            Entry::Vacant(entry) => entry.insert(load(image)?).0,
        };
        let mut raw = ptr::null_mut();
        // SAFETY: the module is loaded and the name ends with a zero; the driver writes one handle.
        match unsafe { sys::cuModuleGetFunction(&mut raw, module, name.as_ptr()) } {
            CUresult::CUDA_ERROR_NOT_FOUND => return Err(unknown),
            status => check("cuModuleGetFunction", status)?,
        }
        share_for_smem(raw)?;
        let function = Function { raw: Handle(raw), params_bytes: params_bytes(raw)?, smem_bytes: Mutex::new(0) };
        Ok(Arc::clone(self.functions.entry((file, kernel)).or_insert(Arc::new(function))))
    }

    /// To be called with the context bound, when no kernel is left that could be launched.
    pub(crate) fn unload(&mut self) {
        for (_, module) in self.modules.drain() {
            // SAFETY: loaded once, in `function`; kernels hold the context, whose drop this is part of.
            unsafe { sys::cuModuleUnload(module.0) };
        }
    }
}

impl Function {
    /// Raises the limit of dynamic shared memory where it is lower; it starts at 48 KiB less the static.
    fn allow_smem(&self, bytes: u32) -> Result<(), DeviceError> {
        let mut allowed = self.smem_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > *allowed {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function's module is loaded for as long as the context lives.
            let status = unsafe { sys::cuFuncSetAttribute(self.raw.0, attribute, bytes as c_int) };
            check("cuFuncSetAttribute", status)?;
            *allowed = bytes;
        }
        Ok(())
    }
}

fn load(image: &'static [u8]) -> Result<Handle<sys::CUmodule>, DeviceError> {
    let mut module = ptr::null_mut();
    // SAFETY: the image is a whole ELF file, aligned, that nvcc made; the driver writes one handle.
    check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) })?;
    Ok(Handle(module))
}

/// All that may be shared memory is. Left alone, the driver gives a kernel as much as its own blocks need: another's would have no
/// room beside them, and multiprocessors would have to be empty to change it.
fn share_for_smem(function: sys::CUfunction) -> Result<(), DeviceError> {
    const ALL_PERCENT: c_int = 100;
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
    // SAFETY: the function's module is loaded for as long as the context lives.
    check("cuFuncSetAttribute", unsafe { sys::cuFuncSetAttribute(function, attribute, ALL_PERCENT) })
}

/// The size of each parameter of a kernel.
fn params_bytes(function: sys::CUfunction) -> Result<Vec<usize>, DeviceError> {
    let mut params = Vec::new();
    loop {
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: the function is loaded; the driver writes two numbers, or says that there is no such parameter.
        match unsafe { sys::cuFuncGetParamInfo(function, params.len(), &mut offset, &mut bytes) } {
            CUresult::CUDA_ERROR_INVALID_VALUE => return Ok(params),
            status => check("cuFuncGetParamInfo", status)?,
        }
        params.push(bytes);
    }
}
