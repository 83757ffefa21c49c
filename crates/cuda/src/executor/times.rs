//! How long each stage of a step takes.

use tessera_model::{Batch, Executor, StepError};

use super::{CudaError, CudaExecutor, bucket, queue_tokens};
use crate::error::DeviceError;
use crate::launch::Event;

/// A stage of a step, or several that are fused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageTime {
    pub layer: Option<usize>,
    /// Names of stages, by commas.
    pub name: &'static str,
    pub ms: f32,
}

/// What stands first: the time that passes between two events with nothing between them. Every other time has it, too.
const NOTHING: &str = "nothing";

impl CudaExecutor {
    /// Runs the step as [`Executor::step`] does, and times each stage, in the order in which they run. The stages do not
    /// overlap here as they do in a step, so that together they take longer.
    pub fn time_stages(&mut self, batch: &Batch) -> Result<Vec<StageTime>, StepError> {
        self.check(batch)?;
        if batch.rows.is_empty() {
            return Ok(Vec::new());
        }
        let times = self.timed(batch)?;
        self.tokens(batch).map(|_| times)
    }

    /// In a graph, whose kernels do not wait for the CPU to queue them.
    fn timed(&mut self, batch: &Batch) -> Result<Vec<StageTime>, CudaError> {
        self.send(batch, bucket(batch, self.max_step_tokens()))?;
        let Self { stream, forward, sampled, .. } = self;
        let mut marks = Vec::new();
        let mut mark = |layer, name| -> Result<(), DeviceError> {
            marks.push((layer, name, stream.record_in_graph()?));
            Ok(())
        };
        let graph = stream.capture(|| -> Result<(), CudaError> {
            mark(None, "")?;
            mark(None, NOTHING)?;
            forward.run_with(stream, &mut mark)?;
            queue_tokens(stream, forward, sampled)
        })?;
        stream.replay(&graph)?;
        stream.synchronize()?;
        Ok(between(&marks)?)
    }
}

/// From each mark to the next.
fn between(marks: &[(Option<usize>, &'static str, Event)]) -> Result<Vec<StageTime>, DeviceError> {
    let pairs = marks.iter().zip(&marks[1..]);
    pairs
        .map(|((.., start), (layer, name, end))| Ok(StageTime { layer: *layer, name, ms: end.ms_since(start)? }))
        .collect()
}
