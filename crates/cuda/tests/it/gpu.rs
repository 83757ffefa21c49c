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

/// All cases; or the first, the one in the middle and the last, where `TESSERA_FEW_CASES=1` asks for few: under
/// compute-sanitizer a launch takes hundreds of times as long.
pub fn cases<T>(all: impl IntoIterator<Item = T>) -> Vec<T> {
    let all: Vec<T> = all.into_iter().collect();
    if std::env::var_os("TESSERA_FEW_CASES").is_none_or(|few| few != "1") {
        return all;
    }
    let chosen = [0, all.len() / 2, all.len().saturating_sub(1)];
    all.into_iter().enumerate().filter(|(i, _)| chosen.contains(i)).map(|(_, case)| case).collect()
}
