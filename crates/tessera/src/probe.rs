//! `tessera probe`: what the GPU's kernels must get right before anything else, asked one by one.

use std::fmt;
use std::io::{self, Write};

use anyhow::Context;
use serde_json::{Value, json};
use tessera_cuda::Device;
use tessera_cuda::probe::{Finding, Probe};

use crate::progress;

/// Check the kernels on the GPU that is present, one property at a time
///
/// Products of every number, the decode of every code and scale, and then the experts' matrix products themselves with operands
/// whose results are known exactly: which weight meets which token, whose scale it has, whether sums have all terms, and
/// whether bits depend on how the work is shared. Takes seconds, and needs no model. What is wrong is told by name: the first
/// difference, or the permutation that was found where there should be none. The exit status is then 1.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tessera probe
  tessera probe --json | jq '.findings[] | select(.fault)'")]
pub struct Args {
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

struct Report {
    gpu: String,
    findings: Vec<Finding>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let device = Device::open().context("probe needs a GPU")?;
    let bar = progress::steps("probing [{bar:40}] {pos}/{len} {msg}", Probe::ALL.len());
    let mut report = Report { gpu: device.properties().name.clone(), findings: Vec::new() };
    for probe in Probe::ALL {
        bar.set_message(probe.name());
        report.findings.extend(probe.run(&device)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let text = if args.json { format!("{:#}\n", report.json()) } else { report.to_string() };
    let shown = io::stdout().write_all(text.as_bytes());
    // A reader that has closed the pipe must not turn a failure into success.
    report.verdict()?;
    Ok(shown?)
}

impl Report {
    /// The first fault as an error.
    fn verdict(&self) -> anyhow::Result<()> {
        let mut faults = self.findings.iter().filter_map(|finding| Some((finding, finding.fault.as_ref()?)));
        let Some((Finding { probe, subject, .. }, fault)) = faults.next() else { return Ok(()) };
        let n_failed = 1 + faults.count();
        anyhow::bail!(
            "{n_failed} of {} probes failed, {} ({subject}) first: {fault}",
            self.findings.len(),
            probe.name()
        )
    }

    fn json(&self) -> Value {
        let finding = |f: &Finding| json!({ "probe": f.probe.name(), "subject": f.subject, "fault": f.fault });
        json!({
            "gpu": self.gpu,
            "ok": self.verdict().is_ok(),
            "findings": self.findings.iter().map(finding).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.gpu)?;
        let width = self.findings.iter().map(|finding| finding.subject.len()).max().unwrap_or(0);
        for Finding { probe, subject, fault } in &self.findings {
            let verdict = fault.as_ref().map_or("pass".into(), |fault| format!("FAILED  {fault}"));
            writeln!(f, "  {:8}  {subject:width$}  {verdict}", probe.name())?;
        }
        match self.verdict() {
            Ok(()) => writeln!(f, "\nok: {} probes passed", self.findings.len()),
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(faults: [Option<&str>; 3]) -> Report {
        let finding = |(probe, subject, fault): (Probe, &str, Option<&str>)| Finding {
            probe,
            subject: subject.into(),
            fault: fault.map(str::to_owned),
        };
        let subjects = [(Probe::Multiply, "every bf16"), (Probe::Weights, "gate, mid"), (Probe::Sums, "down, mid")];
        let findings = subjects.into_iter().zip(faults).map(|((probe, subject), fault)| (probe, subject, fault));
        Report { gpu: "NVIDIA H200".into(), findings: findings.map(finding).collect() }
    }

    #[test]
    fn all_is_well() {
        let report = report([None; 3]);
        assert!(report.verdict().is_ok());
        let expect = "NVIDIA H200\n\n  multiply  every bf16  pass\n  weights   gate, mid   pass\n  sums      down, mid   pass\n\n\
                      ok: 3 probes passed\n";
        assert_eq!(report.to_string(), expect);
        assert_eq!(report.json()["ok"], true);
        assert_eq!(report.json()["findings"][1], json!({ "probe": "weights", "subject": "gate, mid", "fault": null }));
    }

    #[test]
    fn a_fault_is_told_and_is_the_error() {
        let report = report([None, Some("64 x 64: k bit 0 (half) flipped"), Some("NaN")]);
        let verdict = report.verdict().unwrap_err().to_string();
        assert_eq!(verdict, "2 of 3 probes failed, weights (gate, mid) first: 64 x 64: k bit 0 (half) flipped");
        let text = report.to_string();
        assert!(text.contains("  weights   gate, mid   FAILED  64 x 64: k bit 0 (half) flipped\n"), "{text}");
        assert!(text.ends_with("FAILED  NaN\n"), "{text}");
        assert_eq!(report.json()["ok"], false);
    }
}
