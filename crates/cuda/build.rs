//! Compiles `kernels/*.cu` to cubins of sm_90a and writes the table of them that `src/cubins.rs` includes.
//!
//! Without nvcc the table is empty and the build succeeds: tessera then runs on the CPU. The environment variable
//! `TESSERA_CUDA_STRICT=1` turns what costs a kernel speed (local memory, serialised matrix instructions) into an error.

use std::env::var_os;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;

use ptxas::Ptxas;

#[path = "build/ptxas.rs"]
mod ptxas;

const KERNELS: &str = "kernels";
/// Where `just cuda-toolchain` installs nvcc.
const TOOLCHAIN: &str = "../../target/cuda-toolchain/cuda/bin";
/// wgmma and setmaxnreg need the `a`; the shorthand `-arch=sm_90a` makes some nvcc compile for plain sm_90, too.
const FLAGS: [&str; 6] =
    ["-O3", "-std=c++17", "-gencode=arch=compute_90a,code=sm_90a", "-cubin", "-Xptxas", "--verbose"];

/// One `.cu` file, compiled.
struct Cubin {
    name: String,
    path: PathBuf,
    ptxas: Ptxas,
}

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed={KERNELS}");
    for variable in ["NVCC", "CUDA_HOME", "TESSERA_CUDA_STRICT"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let Some(nvcc) = find_nvcc()? else {
        println!(
            "cargo::warning=nvcc was not found, this build has no GPU kernels: run `just cuda-toolchain` and rebuild"
        );
        return write_table(&out, &[], "no nvcc\n");
    };
    println!("cargo::rerun-if-changed={}", nvcc.display());
    let release = release(&nvcc)?;
    let cubins = compile_all(&nvcc, &sources()?, &out)?;
    check(&cubins)?;
    write_table(&out, &cubins, &report(&release, &cubins))
}

/// The first nvcc of `$NVCC`, `$CUDA_HOME`, `$PATH` and the project's own toolchain. `$NVCC` must be one if it is set.
fn find_nvcc() -> Result<Option<PathBuf>, String> {
    if let Some(nvcc) = var_os("NVCC").filter(|nvcc| !nvcc.is_empty()).map(PathBuf::from) {
        return match nvcc.is_file() {
            true => Ok(Some(nvcc)),
            false => Err(format!("NVCC is {}, which is no file: correct it, or unset it", nvcc.display())),
        };
    }
    let home = var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin"));
    let path = var_os("PATH").unwrap_or_default();
    let folders = home.into_iter().chain(std::env::split_paths(&path)).chain([PathBuf::from(TOOLCHAIN)]);
    Ok(folders.map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file()))
}

/// The line of `nvcc --version` that has the number.
fn release(nvcc: &Path) -> Result<String, String> {
    let text = run(Command::new(nvcc).arg("--version"))?;
    let line = text.lines().find(|line| line.contains("release")).unwrap_or("unknown nvcc");
    Ok(line.trim().to_owned())
}

/// `kernels/*.cu`, in the order of their names.
fn sources() -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(KERNELS).map_err(|reason| format!("cannot list {KERNELS}: {reason}"))?;
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut sources: Vec<_> = files.filter(|file| file.extension().is_some_and(|end| end == "cu")).collect();
    sources.sort();
    Ok(sources)
}

/// Compiles the sources on as many threads as cargo grants jobs; the errors of all of them, if there are any.
fn compile_all(nvcc: &Path, sources: &[PathBuf], out: &Path) -> Result<Vec<Cubin>, String> {
    let n_jobs = std::env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let next = Mutex::new(sources.iter().enumerate());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..sources.len().min(n_jobs) {
            scope.spawn(|| {
                while let Some((i, source)) = next.lock().ok().and_then(|mut next| next.next()) {
                    let cubin = compile(nvcc, source, out);
                    if let Ok(mut done) = done.lock() {
                        done.push((i, cubin));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().map_err(|_| "a compiling thread panicked")?;
    done.sort_by_key(|(i, _)| *i);
    let (cubins, errors): (Vec<_>, Vec<_>) = done.into_iter().map(|(_, cubin)| cubin).partition(Result::is_ok);
    match errors.is_empty() {
        true => Ok(cubins.into_iter().flatten().collect()),
        false => Err(errors.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("\n")),
    }
}

fn compile(nvcc: &Path, source: &Path, out: &Path) -> Result<Cubin, String> {
    let name = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let path = out.join(&name).with_extension("cubin");
    let output = run(Command::new(nvcc).args(FLAGS).arg("-I").arg(KERNELS).arg("-o").arg(&path).arg(source))?;
    for line in output.lines().filter(|line| line.contains(": warning")) {
        println!("cargo::warning={line}");
    }
    Ok(Cubin { name, path, ptxas: Ptxas::parse(&output) })
}

/// Both streams of a command that succeeds; both as an error if it does not.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|reason| format!("cannot run {command:?}: {reason}"))?;
    let text = [output.stdout, output.stderr].map(|stream| String::from_utf8_lossy(&stream).into_owned()).concat();
    match output.status.success() {
        true => Ok(text),
        false => Err(format!("{command:?} failed, {}:\n{text}", output.status)),
    }
}

/// What costs a kernel speed: an error where the build is strict, else a warning.
fn check(cubins: &[Cubin]) -> Result<(), String> {
    let mut faults = Vec::new();
    for Cubin { name, ptxas, .. } in cubins {
        faults.extend(ptxas.faults().into_iter().map(|fault| format!("{KERNELS}/{name}.cu: {fault}")));
    }
    if !faults.is_empty() && var_os("TESSERA_CUDA_STRICT").is_some_and(|strict| strict == "1") {
        return Err(faults.join("\n"));
    }
    for fault in faults {
        println!("cargo::warning={fault}");
    }
    Ok(())
}

/// A table of what the kernels use, for people.
fn report(release: &str, cubins: &[Cubin]) -> String {
    let mut report =
        format!("{release}\n{:<40} registers  smem bytes  stack bytes  spill store/load bytes\n", "kernel");
    for Cubin { name, ptxas, .. } in cubins {
        for kernel in &ptxas.kernels {
            let spills = format!("{}/{}", kernel.spill_store_bytes, kernel.spill_load_bytes);
            let kernel_name = format!("{name}::{}", kernel.name);
            let (registers, smem, stack) = (kernel.registers, kernel.smem_bytes, kernel.stack_bytes);
            _ = writeln!(report, "{kernel_name:<40} {registers:>9} {smem:>11} {stack:>12} {spills:>23}");
        }
    }
    report
}

fn write_table(out: &Path, cubins: &[Cubin], report: &str) -> Result<(), String> {
    let mut table = String::from("&[\n");
    for Cubin { name, path, .. } in cubins {
        _ = writeln!(table, "    ({name:?}, &Aligned(*include_bytes!({path:?})).0),");
    }
    table.push_str("]\n");
    for (file, text) in [("cubins.rs", table.as_str()), ("report.txt", report)] {
        let path = out.join(file);
        std::fs::write(&path, text).map_err(|reason| format!("cannot write {}: {reason}", path.display()))?;
    }
    Ok(())
}
