//! `tessera probe`, with a GPU and without.

use serde_json::Value;
use tessera_cuda::Device;

use crate::runner::{Output, finish, tessera};

/// What tells the driver where the GPU is, unlike the rest of the caller's environment.
const DRIVER: [&str; 2] = ["LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"];

fn probe(args: &[&str]) -> Output {
    let mut command = tessera(&[&["probe"], args].concat());
    command.envs(DRIVER.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    finish(command)
}

#[test]
fn all_pass_or_one_error_says_what_is_missing() {
    match Device::open() {
        Ok(_) => {
            assert!(probe(&[]).ok().ends_with(" probes passed\n"));
            let report: Value = probe(&["--json"]).json();
            assert_eq!(report["ok"], true);
            assert!(report["findings"].as_array().unwrap().len() > 8);
        }
        Err(missing) => {
            for args in [&[][..], &["--json"]] {
                probe(args).fails_with(&[&missing.to_string()]);
            }
        }
    }
}
