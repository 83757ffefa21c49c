//! What `verify` prints.

use std::collections::BTreeSet;
use std::fmt;

use clap::ValueEnum;
use serde_json::{Value, json};
use tessera_cpu::CpuOptions;
use tessera_model::checkpoint::Checkpoint;
use tessera_model::{Site, Stage};

use super::cuda::Launched;
use super::lockstep::{Filter, Record};
use super::measure::{Finding, Kind, Measure, Place};
use crate::args::MoeKernelArg;

pub struct Report<'a> {
    pub model: &'a str,
    pub checkpoint: &'a Checkpoint,
    pub fast: FastPath<'a>,
    pub filter: Filter,
    pub sections: Vec<Section>,
}

/// What was held against the oracle.
pub enum FastPath<'a> {
    Cpu(CpuOptions),
    /// The whole model.
    CudaModel {
        /// The GPU's.
        name: &'a str,
    },
    CudaExperts {
        name: &'a str,
        kernel: MoeKernelArg,
        launched: &'a Launched,
    },
}

/// One comparison: of the whole model, or of its mixtures of experts.
pub struct Section {
    pub name: &'static str,
    /// What was run, in words.
    pub probe: String,
    pub layers: usize,
    pub record: Record,
    /// What became of the stages' fusion, where there is any.
    pub bits: Option<Bits>,
}

/// Whether steps have the same bits when their stages are fused.
pub struct Bits {
    /// Logits that were compared.
    pub values: usize,
    /// The first that differs.
    pub differs: Option<String>,
}

impl Report<'_> {
    /// The first failure as an error, or one for having compared nothing.
    pub fn verdict(&self) -> anyhow::Result<()> {
        for Section { name, record, bits, .. } in &self.sections {
            if let Some(failure) = &record.first_failure {
                match self.sections.len() {
                    1 => anyhow::bail!("{failure}"),
                    _ => anyhow::bail!("{name}: {failure}"),
                }
            }
            if let Some(differs) = bits.as_ref().and_then(|bits| bits.differs.as_ref()) {
                anyhow::bail!("fused stages have other bits: {differs}");
            }
        }
        if self.sections.iter().all(|s| s.record.sites.is_empty()) {
            anyhow::bail!("nothing was compared: the model has no stage that the flags ask for");
        }
        Ok(())
    }

    pub fn json(&self) -> Value {
        let c = self.checkpoint;
        let failures = || self.sections.iter().filter_map(|s| s.record.first_failure.as_ref());
        let not_finite = || self.sections.iter().filter_map(|s| s.record.first_not_finite.as_ref());
        json!({
            "model": self.model,
            "ok": self.verdict().is_ok(),
            "structure": {
                "layout": c.layout().to_string(),
                "tensors": c.tensors().len(),
                "notes": c.notes(),
            },
            "fast_path": self.fast.json(),
            "first_failure": failures().next().map(finding_json),
            "first_not_finite": not_finite().next().map(finding_json),
            "sections": self.sections.iter().map(|s| s.json(self.filter, c.config().num_local_experts)).collect::<Vec<_>>(),
        })
    }
}

impl FastPath<'_> {
    fn json(&self) -> Value {
        match self {
            Self::Cpu(options) => json!({"device": "cpu", "isa": options.isa.name(), "threads": options.threads}),
            Self::CudaModel { name } => json!({"device": "cuda", "name": name}),
            Self::CudaExperts { name, kernel, launched } => json!({
                "device": "cuda",
                "name": name,
                "moe_kernel": kernel_name(*kernel),
                "launched": {"gate_up": launched.gate_up, "down": launched.down},
            }),
        }
    }
}

impl fmt::Display for FastPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(options) => {
                writeln!(f, "fast path: {} with {} threads, against float32", options.isa.name(), options.threads)
            }
            Self::CudaModel { name } => {
                writeln!(f, "fast path: {name}, against float32 on the CPU")?;
                f.write_str(
                    "not judged: gate_up, which is part of swiglu's kernel\n\
                     norms, rope_store, attend, swiglu and attention's weights are bf16, which is no error\n",
                )
            }
            Self::CudaExperts { name, kernel, launched } => {
                writeln!(f, "fast path: {name}, --moe-kernel {}, against float32 on the CPU", kernel_name(*kernel))?;
                writeln!(f, "launched: gate_up by {}; down by {}", list(&launched.gate_up), list(&launched.down))?;
                f.write_str(
                    "not judged: mlp_norm and router, which the GPU is given; gate_up, which is part of swiglu's kernel\n\
                     swiglu and the experts' sum are bf16, which is no error; combine has the residual added in float32\n",
                )
            }
        }
    }
}

fn kernel_name(kernel: MoeKernelArg) -> String {
    kernel.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
}

/// The names of the kernels of a projection that ran.
fn list(names: &BTreeSet<&'static str>) -> String {
    if names.is_empty() { "none".into() } else { names.iter().copied().collect::<Vec<_>>().join(", ") }
}

impl Section {
    /// Sites to show: one for each stage with the worst of all layers, or every layer of the one stage asked for.
    fn rows(&self, filter: Filter) -> Vec<(Site, Measure)> {
        let sites = &self.record.sites;
        if filter.stage.is_some() {
            return sites.clone();
        }
        let merged = |stage: Stage| {
            let of_stage: Vec<_> = sites.iter().filter(|(site, _)| site.stage == stage).collect();
            let worst = of_stage.iter().max_by(|a, b| a.1.max_relative.total_cmp(&b.1.max_relative))?;
            let mut sum = Measure::default();
            of_stage.iter().for_each(|(_, m)| sum.merge(m.clone()));
            Some((worst.0, sum))
        };
        Stage::ALL.into_iter().filter_map(merged).collect()
    }

    fn json(&self, filter: Filter, experts: usize) -> Value {
        let stages: Vec<Value> = self.rows(filter).iter().map(|(site, m)| row_json(*site, m)).collect();
        json!({
            "name": self.name,
            "probe": self.probe,
            "fused": self.bits.as_ref().map(|bits| json!({"logits": bits.values, "differs": bits.differs})),
            "experts_visited": self.record.experts.len(),
            "experts": self.layers * experts,
            "stages": stages,
        })
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, filter: Filter, experts: usize) -> fmt::Result {
        writeln!(f, "\n{}: {}", self.name, self.probe)?;
        let (visited, all) = (self.record.experts.len(), self.layers * experts);
        let hint = if visited < all { "; --moe-only visits all" } else { "" };
        writeln!(f, "experts visited: {visited} of {all}{hint}\n")?;
        writeln!(f, "  stage        max abs   rel rms   max rel  tolerance  worst at")?;
        for (site, m) in self.rows(filter) {
            let layer = site.layer.map_or(String::new(), |l| format!("layer {l}, "));
            let at = match (&m.not_finite, m.max_relative) {
                (Some(_), _) => "not finite".into(),
                (None, 0.0) => "equal".into(),
                (None, _) => format!("{layer}{}, row {}, column {}", m.worst.step, m.worst.row, m.worst.column),
            };
            writeln!(
                f,
                "  {:10} {:9.2e} {:9.2e} {:9.2e}  {:9.1e}  {}{at}",
                site.stage,
                m.max_abs,
                m.rms_relative(),
                m.max_relative,
                m.tolerance,
                if m.fails() { "FAILED " } else { "" },
            )?;
        }
        match &self.bits {
            None => Ok(()),
            Some(Bits { values, differs: None }) => {
                writeln!(f, "\n  with stages fused, and from graphs, {values} logits have the same bits")
            }
            Some(Bits { differs: Some(differs), .. }) => writeln!(f, "\n  with stages fused FAILED: {differs}"),
        }
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = self.checkpoint;
        let (tensors, layout) = (c.tensors().len(), c.layout());
        writeln!(f, "structure: {tensors} tensors in the {layout} layout, complete and well formed")?;
        self.fast.fmt(f)?;
        for section in &self.sections {
            section.write(f, self.filter, c.config().num_local_experts)?;
        }
        if self.verdict().is_ok() {
            let values: usize = self.sections.iter().flat_map(|s| &s.record.sites).map(|(_, m)| m.count).sum();
            writeln!(f, "\nok: {values} values are within tolerance")?;
        }
        Ok(())
    }
}

fn row_json(site: Site, m: &Measure) -> Value {
    json!({
        "stage": site.stage.name(),
        "layer": site.layer,
        "values": m.count,
        "max_abs": number(m.max_abs),
        "rms_relative": m.rms_relative(),
        "max_relative": number(m.max_relative),
        "tolerance": m.tolerance,
        "worst": place_json(&m.worst),
        "not_finite": m.not_finite.as_ref().map(place_json),
    })
}

fn finding_json(finding: &Finding) -> Value {
    json!({
        "layer": finding.site.layer,
        "stage": finding.site.stage.name(),
        "kind": match finding.kind {
            Kind::NotFinite => "not finite",
            Kind::Differs { .. } => "differs",
        },
        "place": place_json(&finding.place),
        "line": finding.to_string(),
    })
}

fn place_json(place: &Place) -> Value {
    json!({
        "step": place.step,
        "row": place.row,
        "expert": place.expert,
        "column": place.column,
        "value": number(place.value),
        "expected": number(place.expected),
    })
}

/// JSON has no NaN and no infinities: those become text.
fn number(v: f32) -> Value {
    if v.is_finite() { json!(v) } else { json!(v.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_and_the_kernels_that_ran_are_named() {
        let mut launched = Launched::default();
        launched.gate_up.extend(["moe_gate_up_stream", "moe_gate_up_mid"]);
        let fast = FastPath::CudaExperts { name: "NVIDIA H100", kernel: MoeKernelArg::Auto, launched: &launched };
        let text = fast.to_string();
        assert!(text.starts_with("fast path: NVIDIA H100, --moe-kernel auto, "), "{text}");
        assert!(text.contains("\nlaunched: gate_up by moe_gate_up_mid, moe_gate_up_stream; down by none\n"), "{text}");
        let json = fast.json();
        assert_eq!(
            (&json["device"], &json["name"], &json["moe_kernel"]),
            (&json!("cuda"), &json!("NVIDIA H100"), &json!("auto"))
        );
        assert_eq!(json["launched"], json!({"gate_up": ["moe_gate_up_mid", "moe_gate_up_stream"], "down": []}));
    }
}
