//! How long each stage of a step of decoding takes on the GPU, by itself.

use std::fmt;

use serde::Serialize;
use tessera_cuda::{CudaExecutor, StageTime};
use tessera_model::{Batch, StepError};

/// Whether a bench times them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stages {
    Timed,
    Untimed,
}

/// The stages of a step of so many rows.
#[derive(Debug, PartialEq, Serialize)]
pub struct StepStages {
    batch: usize,
    /// In the order in which they first run.
    stages: Vec<StageSum>,
}

/// A stage, of all layers together.
#[derive(Debug, PartialEq, Serialize)]
struct StageSum {
    /// Fused stages by commas.
    stage: &'static str,
    runs: usize,
    us: f64,
}

impl StepStages {
    /// Of each stage the median, after a run that does not count.
    pub fn measure(executor: &mut CudaExecutor, batch: &Batch, repetitions: usize) -> Result<Self, StepError> {
        executor.time_stages(batch)?;
        let runs: Vec<_> =
            (0..repetitions).map(|_| Ok(sums(&executor.time_stages(batch)?))).collect::<Result<_, StepError>>()?;
        Ok(Self { batch: batch.rows.len(), stages: medians(&runs) })
    }

    fn us(&self, stage: &str) -> Option<f64> {
        self.stages.iter().find(|sum| sum.stage == stage).map(|sum| sum.us)
    }
}

/// The times of each stage without what an event itself takes, which is the first.
fn sums(times: &[StageTime]) -> Vec<StageSum> {
    let (nothing, times) = times.split_first().expect("a step has stages");
    let mut sums: Vec<StageSum> = Vec::new();
    for time in times {
        let us = 1e3 * f64::from((time.ms - nothing.ms).max(0.0));
        match sums.iter_mut().find(|sum| sum.stage == time.name) {
            Some(sum) => (sum.runs, sum.us) = (sum.runs + 1, sum.us + us),
            None => sums.push(StageSum { stage: time.name, runs: 1, us }),
        }
    }
    sums
}

/// Of runs that have the same stages.
fn medians(runs: &[Vec<StageSum>]) -> Vec<StageSum> {
    let median = |(i, first): (usize, &StageSum)| {
        let mut us: Vec<f64> = runs.iter().map(|run| run[i].us).collect();
        us.sort_by(f64::total_cmp);
        StageSum { us: us[us.len() / 2], ..*first }
    };
    runs[0].iter().enumerate().map(median).collect()
}

/// A column for each batch.
pub fn write(f: &mut fmt::Formatter<'_>, steps: &[StepStages]) -> fmt::Result {
    if steps.is_empty() {
        return Ok(());
    }
    writeln!(f, "\nEach stage of a step of decoding by itself, us of all layers; together they gain from overlapping")?;
    let stages: Vec<_> =
        stages_of(steps).into_iter().map(|(stage, runs)| (stage, format!("{stage}, {runs} times"))).collect();
    let width = stages.iter().map(|(_, label)| label.len()).max().unwrap_or(0).max("stage".len());
    write!(f, "| {:width$} |", "stage")?;
    steps.iter().try_for_each(|step| write!(f, " {:>9} |", format!("x{}", step.batch)))?;
    write!(f, "\n|-{:-<width$}-|", "")?;
    steps.iter().try_for_each(|_| write!(f, "----------:|"))?;
    for (stage, label) in stages {
        write!(f, "\n| {label:width$} |")?;
        for step in steps {
            write!(f, " {:>9} |", step.us(stage).map_or(String::new(), |us| format!("{us:.1}")))?;
        }
    }
    write!(f, "\n| {:width$} |", "all")?;
    let total = |step: &StepStages| step.stages.iter().map(|sum| sum.us).sum::<f64>();
    steps.iter().try_for_each(|step| write!(f, " {:>9.1} |", total(step)))?;
    writeln!(f)
}

/// The stages that any of the steps has, and how often: which are fused goes by the number of rows.
fn stages_of(steps: &[StepStages]) -> Vec<(&'static str, usize)> {
    let mut stages: Vec<(&'static str, usize)> = Vec::new();
    for step in steps {
        let mut next = 0;
        for sum in &step.stages {
            next = 1 + stages.iter().position(|(stage, _)| *stage == sum.stage).unwrap_or_else(|| {
                stages.insert(next, (sum.stage, sum.runs));
                next
            });
        }
    }
    stages
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn times(factor: f32) -> Vec<StageTime> {
        let stage = |layer, name, ms: f32| StageTime { layer, name, ms: 0.001 + ms * factor };
        vec![
            stage(None, "nothing", 0.0),
            stage(None, "embed", 0.002),
            stage(Some(0), "qkv", 0.010),
            stage(Some(1), "qkv", 0.012),
        ]
    }

    pub fn some(batch: usize, factor: f32) -> StepStages {
        let run = |noise: f32| sums(&times(factor * noise));
        StepStages { batch, stages: medians(&[run(1.1), run(0.9), run(1.0)]) }
    }

    #[test]
    fn a_stage_that_only_some_steps_have_has_its_row() {
        let step = |stages: &[&'static str]| {
            let sum = |&stage: &&'static str| StageSum { stage, runs: 1, us: 1.0 };
            StepStages { batch: 1, stages: stages.iter().map(sum).collect() }
        };
        let steps = [step(&["a", "b, c", "d", "f"]), step(&["a", "b", "c", "d", "e", "f"]), step(&["g", "a", "f"])];
        let names: Vec<_> = stages_of(&steps).into_iter().map(|(stage, _)| stage).collect();
        assert_eq!(names, ["g", "a", "b", "c", "b, c", "d", "e", "f"]);
    }

    #[test]
    fn the_table_is_as_wide_as_its_longest_stage() {
        struct Table(Vec<StepStages>);
        impl fmt::Display for Table {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write(f, &self.0)
            }
        }
        let sum = |stage| StageSum { stage, runs: 24, us: 1.0 };
        let stages = vec![sum("qkv"), sum("rope_store, attend sliding"), sum("attn_out")];
        let table = Table(vec![StepStages { batch: 1, stages }]).to_string();
        let lines: Vec<&str> = table.lines().filter(|line| line.starts_with('|')).collect();
        assert!(lines.len() == 6 && lines.iter().all(|line| line.len() == lines[0].len()), "{table}");
        assert!(table.contains("\n| rope_store, attend sliding, 24 times |       1.0 |\n"), "{table}");
    }

    #[test]
    fn stages_are_summed_over_layers_without_what_events_take() {
        let StepStages { stages, .. } = some(1, 1.0);
        assert_eq!(stages.iter().map(|sum| (sum.stage, sum.runs)).collect::<Vec<_>>(), [("embed", 1), ("qkv", 2)]);
        // Times are float32.
        assert!((stages[0].us - 2.0).abs() < 1e-3 && (stages[1].us - 22.0).abs() < 1e-3, "{stages:?}");
    }
}
