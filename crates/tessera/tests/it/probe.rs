//! `tessera probe`, with a GPU and without.

use serde_json::Value;
use tessera_cuda::Device;

use crate::runner::run_with_driver;

#[test]
fn all_pass_or_one_error_says_what_is_missing() {
    match Device::open() {
        Ok(_) => {
            assert!(run_with_driver(&["probe"]).ok().ends_with(" probes passed\n"));
            let report: Value = run_with_driver(&["probe", "--json"]).json();
            assert_eq!(report["ok"], true);
            assert!(report["findings"].as_array().unwrap().len() > 8);
        }
        Err(missing) => {
            for args in [&["probe"][..], &["probe", "--json"]] {
                run_with_driver(args).fails_with(&[&missing.to_string()]);
            }
        }
    }
}
