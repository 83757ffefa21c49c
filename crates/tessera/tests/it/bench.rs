//! `tessera bench moe`, with a GPU and without; what `bench` refuses.

use serde_json::Value;
use tessera_cuda::Device;

use crate::runner::{run, run_with_driver};

#[test]
fn the_experts_are_measured_or_one_error_says_what_is_missing() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let plot = folder.path().join("roofline.svg");
    let quick = ["bench", "moe", "--tokens", "1,9", "--layers", "1", "-r", "1", "--plot", plot.to_str().unwrap()];
    match Device::open() {
        Ok(_) => {
            let table = run_with_driver(&quick).ok();
            assert!(table.contains("moe_gate_up_") && table.contains("32 experts"), "{table}");
            assert!(std::fs::read_to_string(&plot).unwrap().starts_with("<svg"));
            let report: Value = run_with_driver(&[&quick[..], &["--json", "--stages"]].concat()).json();
            let tests = report["tests"].as_array().unwrap();
            assert_eq!(tests.iter().map(|test| test["tokens"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 9]);
            assert!(tests.iter().all(|test| test["us"].as_f64().unwrap() > 0.0 && test["stages_us"].is_object()));
        }
        Err(missing) => {
            for args in [&["bench", "moe"][..], &quick, &["bench", "moe", "--shape", "120b", "--json"]] {
                run_with_driver(args).fails_with(&[&missing.to_string()]);
            }
            assert!(!plot.exists());
        }
    }
}

#[test]
fn without_a_test_there_is_nothing_to_measure() {
    run(&["bench", "demo", "-p", "0", "-n", "0"]).fails_with(&["-p and -n leave nothing to measure"]);
}
