//! Running the binary, and checkpoints to run it on.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a run left behind.
pub struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Where the program is, if not where cargo put it, and where tests may write: on machines to which the tests were carried.
const MOVED: [&str; 2] = ["TESSERA_TEST_PROGRAM", "TESSERA_TEST_SCRATCH"];

fn moved(variable: &str, from: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| from.into(), PathBuf::from)
}

fn program() -> PathBuf {
    moved(MOVED[0], env!("CARGO_BIN_EXE_tessera"))
}

pub fn scratch_folder() -> PathBuf {
    moved(MOVED[1], env!("CARGO_TARGET_TMPDIR"))
}

/// The binary in a clean environment: nothing of the caller's hub, model or proxy settings, and no GPU.
pub fn tessera(args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(args).env_clear().env("HOME", scratch_folder()).env("TESSERA_THREADS", "1");
    command.env("CUDA_VISIBLE_DEVICES", "-1").stdin(Stdio::null());
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

pub fn run(args: &[&str]) -> Output {
    finish(tessera(args))
}

pub fn finish(mut command: Command) -> Output {
    let output = command.output().unwrap();
    Output {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// What tells the driver where the GPU is, unlike the rest of the caller's environment.
const DRIVER: [&str; 2] = ["LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"];

pub fn run_with_driver(args: &[&str]) -> Output {
    let mut command = tessera(args);
    command.env_remove("CUDA_VISIBLE_DEVICES").envs(driver());
    finish(command)
}

pub fn driver() -> impl Iterator<Item = (&'static str, OsString)> {
    DRIVER.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)))
}

pub fn run_with_stdin(args: &[&str], stdin: &str) -> Output {
    let mut command = tessera(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Output {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[track_caller]
pub fn wait(child: &mut Child) -> Option<i32> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if started.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("the command did not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn interrupt(child: &Child) {
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

impl Output {
    /// The run's stdout, if it went well.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "stderr: {}", self.stderr);
        self.stdout
    }

    #[track_caller]
    pub fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// Exit status 1, nothing on stdout, and one line that has all of `parts`.
    #[track_caller]
    pub fn fails_with(self, parts: &[&str]) {
        assert_eq!(self.code, Some(1), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "");
        let errors: Vec<&str> = self.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{}", self.stderr);
        assert_eq!(self.stderr.lines().last(), Some(errors[0]), "an error is one line: {}", self.stderr);
        for part in parts {
            assert!(errors[0].contains(part), "{part:?} is not in {:?}", errors[0]);
        }
    }
}

/// A checkpoint folder of its own for each test.
pub struct Model {
    folder: TempDir,
    path: String,
}

impl Model {
    /// Random weights, a tokenizer of bytes; as likely as not to stop at any moment.
    pub fn tiny() -> Self {
        let folder = tempfile::tempdir_in(scratch_folder()).unwrap();
        let path = folder.path().join("model").to_str().unwrap().to_owned();
        let model = Self { folder, path };
        run(&["synth", "--like", "tiny", model.arg()]).ok();
        model
    }

    /// A model that goes on to the end of its context when it always takes the most probable token, and with `--tokens`
    /// always: its config names no stop token, and those of its tokenizer have the logit 0.
    pub fn endless() -> Self {
        let model = Self::tiny();
        for file in ["config.json", "generation_config.json"] {
            model.edit(file, |json| json["eos_token_id"] = json!(99_999));
        }
        let tokenizer = read_json(&model.path().join("tokenizer.json"));
        let added = tokenizer["added_tokens"].as_array().unwrap();
        let stops = ["<|return|>", "<|call|>", "<|endoftext|>"];
        let ids = added.iter().filter(|t| stops.contains(&t["content"].as_str().unwrap()));
        model.zero_lm_head_rows(ids.map(|t| t["id"].as_u64().unwrap() as usize));
        model
    }

    fn zero_lm_head_rows(&self, rows: impl Iterator<Item = usize>) {
        let path = self.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
        let lm_head = &header["lm_head.weight"];
        let number = |value: &Value| value.as_u64().unwrap() as usize;
        let row_bytes = number(&lm_head["shape"][1]) * 2;
        let start = 8 + header_len + number(&lm_head["data_offsets"][0]);
        for row in rows {
            bytes[start + row * row_bytes..][..row_bytes].fill(0);
        }
        std::fs::write(&path, bytes).unwrap();
    }

    pub fn path(&self) -> &Path {
        Path::new(&self.path)
    }

    pub fn arg(&self) -> &str {
        &self.path
    }

    /// A file beside the checkpoint.
    pub fn beside(&self, name: &str, content: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub fn edit(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let path = self.path().join(file);
        let mut json = read_json(&path);
        change(&mut json);
        std::fs::write(&path, json.to_string()).unwrap();
    }
}

pub fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
