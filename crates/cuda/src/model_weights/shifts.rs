//! The scales of a checkpoint, looked through before anything is loaded.

use std::panic::resume_unwind;
use std::thread;

use tessera_model::checkpoint::Part;
use tessera_model::{Config, Weights};

use super::placement::part_bytes;
use super::{LayerShifts, ModelWeightsError};
use crate::pack::{PackError, ScaleShift};

/// Of every layer; the first layer's error, if there are some.
pub(super) fn of(config: &Config, weights: &Weights) -> Result<Vec<LayerShifts>, ModelWeightsError> {
    let n_layers = config.num_hidden_layers;
    let n_threads = thread::available_parallelism().map_or(1, usize::from).min(n_layers);
    let per_thread = n_layers.div_ceil(n_threads);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..n_layers)
            .step_by(per_thread)
            .map(|first| {
                let layers = first..n_layers.min(first + per_thread);
                scope.spawn(move || layers.map(|layer| of_layer(config, weights, layer)).collect::<Vec<_>>())
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

fn of_layer(config: &Config, weights: &Weights, layer: usize) -> Result<LayerShifts, ModelWeightsError> {
    let (hidden, inter) = (config.hidden_size, config.intermediate_size);
    let shift = |what, part, rows, cols: usize| {
        let scales = part_bytes(config, weights, Some(layer), part)?;
        ScaleShift::of(scales, cols / tessera_model::mxfp4::BLOCK).map_err(|error| {
            let (expert, source) = in_expert(error, rows);
            ModelWeightsError::Scale { layer, what, expert, source }
        })
    };
    Ok(LayerShifts {
        gate_up: shift("gate_up", Part::GateUpScales, 2 * inter, hidden)?,
        down: shift("down", Part::DownScales, hidden, inter)?,
    })
}

/// The expert of an error about a row of all experts', and the error about that expert's row.
fn in_expert(error: PackError, rows: usize) -> (usize, PackError) {
    match error {
        PackError::ScaleNan { row, block } => (row / rows, PackError::ScaleNan { row: row % rows, block }),
        PackError::ScaleSpan { row, block, scale, lowest, highest } => {
            (row / rows, PackError::ScaleSpan { row: row % rows, block, scale, lowest, highest })
        }
        other => (0, other),
    }
}
