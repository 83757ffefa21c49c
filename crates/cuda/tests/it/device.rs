//! The device layer: errors, memory, copies, launches, graphs.

use std::path::PathBuf;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use tessera_cuda::{Address, CUBINS, Copier, Device, DeviceError, Launch, Start, copy_bandwidth};

use crate::gpu::{gpu, skip};

/// Below what any H100 or H200 copies: 2.5 TB/s is the least that a healthy one should reach (datasheets: 3.35 and 4.8).
const LEAST_COPY_BANDWIDTH: f64 = 2.5e12;
/// Above the datasheet of the H200: a figure beyond it was not measured.
const MOST_COPY_BANDWIDTH: f64 = 4.8e12;

/// `CopyArgs` of `copy.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct CopyArgs {
    source: Address,
    target: Address,
    n: u64,
}

#[track_caller]
fn check_message(error: &DeviceError, expect: &str) {
    assert_eq!(error.to_string(), expect);
}

#[test]
fn messages_say_what_is_missing_and_what_to_do() {
    check_message(
        &DeviceError::NoDriver,
        "the NVIDIA driver is missing: libcuda.so.1 could not be loaded; install it for an H100 or H200 (release 580 or \
         later)",
    );
    check_message(
        &DeviceError::DriverTooOld { expected: 13_000, found: 12_080 },
        "the NVIDIA driver is too old: it supports CUDA 12.8, the kernels need 13.0; install release 580 or later",
    );
    check_message(
        &DeviceError::NoDevice,
        "no NVIDIA GPU: the driver is there but shows no device; look at `nvidia-smi` and CUDA_VISIBLE_DEVICES",
    );
    let ada = DeviceError::WrongDevice { name: "NVIDIA L40S".to_owned(), expected: (9, 0), found: (8, 9) };
    check_message(
        &ada,
        "the GPU is NVIDIA L40S of compute capability 8.9, the kernels need 9.0 (H100, H200): run on the CPU",
    );
    check_message(
        &DeviceError::NoKernels,
        "this build has no GPU kernels: nvcc was missing; install it with `just cuda-toolchain`, and build again",
    );
    let (name, text) = ("CUDA_ERROR_ECC_UNCORRECTABLE".to_owned(), "uncorrectable ECC error encountered".to_owned());
    check_message(
        &DeviceError::Lost { call: "cuStreamSynchronize", name, text },
        "the GPU is lost to this program: cuStreamSynchronize failed with CUDA_ERROR_ECC_UNCORRECTABLE, uncorrectable ECC \
         error encountered; start it again, and if that comes back, look for Xid in the kernel's log (dmesg) and at `nvidia-smi`",
    );
}

#[test]
fn a_machine_without_a_driver_gets_the_error_of_a_missing_driver() {
    let folders =
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"].map(PathBuf::from);
    let searched = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    if folders.into_iter().chain(std::env::split_paths(&searched)).any(|folder| folder.join("libcuda.so.1").exists()) {
        return skip("this machine has a driver");
    }
    assert_eq!(Device::open().err(), Some(DeviceError::NoDriver));
}

#[test]
fn a_gpu_says_what_it_has() {
    let Some(device) = gpu() else { return };
    let properties = device.properties();
    eprintln!("{properties:?}");
    assert!(properties.n_sms >= 78 && properties.l2_bytes >= 25 << 20, "{properties:?}");
    assert_eq!((properties.smem_bytes_per_sm, properties.smem_bytes_per_block), (228 << 10, 227 << 10));
    let memory = device.memory().unwrap();
    assert!(memory.free_bytes <= memory.total_bytes && memory.total_bytes >= 60 << 30, "{memory:?}");
}

#[test]
fn buffers_begin_as_zeros_and_keep_what_is_copied_in() {
    let Some(device) = gpu() else { return };
    let stream = device.stream().unwrap();
    let mut buffer = device.alloc::<u16>(1000).unwrap();
    let mut all = vec![1; 1000];
    stream.download(&buffer, 0, &mut all).unwrap();
    assert_eq!(all, [0; 1000]);
    stream.upload(&[7, 8, 9], &mut buffer, 997).unwrap();
    stream.download(&buffer, 995, &mut all[..5]).unwrap();
    assert_eq!(all[..5], [0, 0, 7, 8, 9]);
    stream.zero(&mut buffer).unwrap();
    stream.download(&buffer, 997, &mut all[..3]).unwrap();
    assert_eq!(all[..3], [0; 3]);
    stream.upload(&[], &mut buffer, 1000).unwrap();
    let beyond = DeviceError::Bounds { at: 998, n: 3, len: 1000 };
    assert_eq!(stream.upload(&[7, 8, 9], &mut buffer, 998), Err(beyond.clone()));
    assert_eq!(stream.download(&buffer, 998, &mut all[..3]), Err(beyond));
    assert!(stream.download(&buffer, usize::MAX, &mut all[..1]).is_err());
    assert!(buffer.address_of(1000).is_ok() && buffer.address_of(1001).is_err());
}

#[test]
fn too_large_an_allocation_is_out_of_memory() {
    let Some(device) = gpu() else { return };
    let Err(DeviceError::OutOfMemory { bytes, free_bytes }) = device.alloc::<u64>(1 << 40).map(|_| ()) else {
        panic!("8 TiB were allocated");
    };
    assert!(bytes == 8 << 40 && free_bytes > 0);
    assert!(device.alloc::<u8>(1 << 20).is_ok(), "the device is usable after that");
}

/// Copies `n` elements of 16 bytes, in a graph, through pinned memory on both ends.
fn check_copy(device: &Device, n: usize) {
    let stream = device.stream().unwrap();
    let copier = Copier::load(device).unwrap();
    let mut source = device.alloc_pinned(n).unwrap();
    let mut target = device.alloc_pinned(n).unwrap();
    let (mut from, mut to) = (device.alloc(n).unwrap(), device.alloc::<[u32; 4]>(n + 1).unwrap());
    let graph = stream
        .capture(|| {
            stream.send(&source, &mut from)?;
            copier.launch(&stream, &from, &mut to)?;
            stream.fetch(&to, &mut target)
        })
        .unwrap();
    let mut found = vec![[1; 4]; n];
    target.read(0, &mut found).unwrap();
    assert_eq!(found, vec![[0; 4]; n], "a capture runs nothing");
    for round in 0..2 {
        let values: Vec<[u32; 4]> = (0..n as u32).map(|i| [i, !i, round, i.wrapping_mul(2_654_435_761)]).collect();
        source.write(0, &values).unwrap();
        stream.replay(&graph).unwrap();
        stream.synchronize().unwrap();
        target.read(0, &mut found).unwrap();
        assert!(found == values, "{n} elements, round {round}");
        let mut last = [[1; 4]];
        stream.download(&to, n, &mut last).unwrap();
        assert_eq!(last, [[0; 4]], "written beyond the end");
    }
}

#[test]
fn a_graph_copies_every_element_and_no_other() {
    let Some(device) = gpu() else { return };
    let whole_grid = device.properties().n_sms * 2048;
    for n in [0, 1, 511, 512, 513, whole_grid - 1, whole_grid, 4 * whole_grid, 5 * whole_grid + 3] {
        check_copy(&device, n);
    }
}

#[test]
fn a_graph_keeps_its_pinned_memory() {
    let Some(device) = gpu() else { return };
    let stream = device.stream().unwrap();
    let mut buffer = device.alloc(4).unwrap();
    let mut source = device.alloc_pinned(4).unwrap();
    source.write(0, &[1, 2, 3, 4]).unwrap();
    let graph = stream.capture(|| stream.send(&source, &mut buffer)).unwrap();
    drop(source);
    stream.replay(&graph).unwrap();
    let mut found = [0; 4];
    stream.download(&buffer, 0, &mut found).unwrap();
    assert_eq!(found, [1, 2, 3, 4]);
}

#[test]
fn clusters_shared_memory_and_early_starts_are_launched() {
    let Some(device) = gpu() else { return };
    let stream = device.stream().unwrap();
    let kernel = device.kernel::<CopyArgs>("copy", "copy16").unwrap();
    let values: Vec<[u32; 4]> = (0..10_000).map(|i| [i; 4]).collect();
    let mut from = device.alloc(values.len()).unwrap();
    stream.upload(&values, &mut from, 0).unwrap();
    let smem_bytes = device.properties().smem_bytes_per_block as u32;
    let plain = Launch::new(8, 512);
    let early = Launch { start: Start::Early, ..plain };
    let cluster = Launch { cluster: [4, 1, 1], smem_bytes, ..plain };
    for launch in [plain, early, cluster, Launch { start: Start::Early, ..cluster }] {
        let to = device.alloc(values.len()).unwrap();
        let args = CopyArgs { source: from.address(), target: to.address(), n: values.len() as u64 };
        stream.launch(&kernel, launch, &args).unwrap();
        let mut found = vec![[0; 4]; values.len()];
        stream.download(&to, 0, &mut found).unwrap();
        assert!(found == values, "{launch:?}");
    }
    assert_eq!(kernel.blocks_per_sm(512, smem_bytes), Ok(1));
    let uneven = Launch { cluster: [3, 1, 1], ..plain };
    let args = CopyArgs { source: from.address(), target: from.address(), n: 0 };
    assert!(matches!(stream.launch(&kernel, uneven, &args), Err(DeviceError::Driver { call: "cuLaunchKernelEx", .. })));
    stream.launch(&kernel, plain, &args).unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn kernels_are_found_by_name_and_by_the_size_of_their_arguments() {
    let Some(device) = gpu() else { return };
    for (file, kernel) in [("copy", "nonsense"), ("nonsense", "copy16"), ("copy", "copy16\0")] {
        let error = device.kernel::<CopyArgs>(file, kernel).map(|_| ()).unwrap_err();
        assert_eq!(error, DeviceError::UnknownKernel { file, kernel });
    }
    let error = device.kernel::<[u64; 2]>("copy", "copy16").map(|_| ()).unwrap_err();
    assert_eq!(error, DeviceError::Arguments { kernel: "copy16", params_bytes: vec![24], args_bytes: 16 });
    check_message(&error, "kernel copy16 has parameters of [24] bytes, its caller has one of 16: their structs differ");
}

#[test]
fn waiting_in_a_capture_is_an_error_and_the_stream_lives_on() {
    let Some(device) = gpu() else { return };
    let stream = device.stream().unwrap();
    let mut buffer = device.alloc(4).unwrap();
    assert!(stream.capture(|| stream.synchronize()).is_err());
    assert!(stream.capture(|| Err(DeviceError::NoKernels)).is_err_and(|error| error == DeviceError::NoKernels));
    stream.upload(&[5, 6, 7, 8], &mut buffer, 0).unwrap();
    let mut found = [0; 4];
    stream.download(&buffer, 0, &mut found).unwrap();
    assert_eq!(found, [5, 6, 7, 8]);
}

#[test]
fn a_device_is_used_from_any_thread() {
    let Some(device) = gpu() else { return };
    let device = Arc::new(device);
    let threads: Vec<_> = (0..4_u64)
        .map(|i| {
            let device = Arc::clone(&device);
            std::thread::spawn(move || {
                let stream = device.stream().unwrap();
                let mut buffer = device.alloc(1 << 16).unwrap();
                stream.upload(&vec![i; 1 << 16], &mut buffer, 0).unwrap();
                let mut found = vec![0; 1 << 16];
                stream.download(&buffer, 0, &mut found).unwrap();
                found == vec![i; 1 << 16]
            })
        })
        .collect();
    assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
}

#[test]
fn copying_is_as_fast_as_the_memory_allows() {
    let Some(device) = gpu() else { return };
    let bandwidth = copy_bandwidth(&device).unwrap();
    let name = &device.properties().name;
    eprintln!("{name}: copy bandwidth {:.3} TB/s", bandwidth / 1e12);
    assert!((LEAST_COPY_BANDWIDTH..MOST_COPY_BANDWIDTH).contains(&bandwidth), "{name}: {bandwidth:.3e} bytes/s");
}

#[test]
fn every_module_of_the_build_loads() {
    let Some(device) = gpu() else { return };
    for (file, _) in CUBINS {
        // The module is loaded before the name is looked up in it; an image that does not load is another error.
        let error = device.kernel::<[u64; 1]>(file, "nonsense").map(|_| ()).unwrap_err();
        assert_eq!(error, DeviceError::UnknownKernel { file, kernel: "nonsense" });
    }
}
