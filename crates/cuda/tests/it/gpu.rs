use std::io::Write;

use tessera_cuda::Device;

/// The GPU; none where there is none. With `REQUIRE_GPU=1` in the environment that is a failure.
#[track_caller]
pub fn gpu() -> Option<Device> {
    let reason = match Device::open() {
        Ok(device) => return Some(device),
        Err(reason) => reason,
    };
    if std::env::var_os("REQUIRE_GPU").is_some_and(|required| required == "1") {
        panic!("REQUIRE_GPU=1, but {reason}");
    }
    skip(&format!("no GPU ({reason})"));
    None
}

/// Says so on the real stderr: libtest hides what a passing test prints.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // In one piece: stderr has no buffer, and tests run side by side.
    let line = format!("SKIPPED: {reason}: {test}\n");
    std::io::stderr().write_all(line.as_bytes()).expect("stderr can be written");
}
