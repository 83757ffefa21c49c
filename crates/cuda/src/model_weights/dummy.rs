//! Weights made where they are used, in the forms of the kernels.

use std::ops::ControlFlow;

use tessera_model::Config;
use tessera_model::checkpoint::Part;
use tessera_model::synth::Source;

use super::placement::{Form, Placement, source_bytes};
use super::{LayerShifts, ModelWeightsError};
use crate::device::Device;
use crate::error::DeviceError;
use crate::kernels::dummy::{
    Distribution, DummyDenseArgs, DummyExpertsArgs, DummyKernels, DummyRowsArgs, DummyWidenArgs,
};
use crate::kernels::pack::order;
use crate::launch::Stream;
use crate::pack::ScaleShift;

/// Of every layer.
pub(super) fn shifts(config: &Config, seed: u64) -> Vec<LayerShifts> {
    let source = Source::new(config, seed);
    let shift = |part| ScaleShift::of(&source.scale_range(part), 2).expect("made scales are near 120");
    let shifts = LayerShifts { gate_up: shift(Part::GateUpScales), down: shift(Part::DownScales) };
    vec![shifts; config.num_hidden_layers]
}

pub(super) fn run(
    device: &Device,
    config: &Config,
    seed: u64,
    placements: &[Placement],
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(), ModelWeightsError> {
    let (kernels, stream) = (DummyKernels::load(device)?, device.stream()?);
    let source = Source::new(config, seed);
    let mut bytes = 0;
    for placement in placements {
        make(&kernels, &stream, &source, placement)?;
        bytes += placement.parts().map(|part| source_bytes(config, part) as u64).sum::<u64>();
        stream.synchronize()?;
        if progress(bytes).is_break() {
            return Err(ModelWeightsError::Interrupted);
        }
    }
    Ok(())
}

fn make(
    kernels: &DummyKernels,
    stream: &Stream,
    source: &Source,
    &Placement { layer, part, form }: &Placement,
) -> Result<(), DeviceError> {
    let from = || {
        let (mean, deviation) = source.distribution(part);
        Distribution { key: source.key(part, layer), mean, deviation }
    };
    match form {
        Form::Plain { target, n } => kernels.rows(stream, &DummyRowsArgs { from: from(), target, n: n as u64 }),
        Form::Dense { records, rows, cols } => {
            kernels.dense(stream, &DummyDenseArgs { from: from(), records, rows: rows as u32, cols: cols as u32 })
        }
        Form::Values { target, matrices, rows, packed_rows, order: rows_order } => {
            let (rows, packed_rows, order) = (rows as u32, packed_rows as u32, order(rows_order));
            let args = DummyWidenArgs { from: from(), target, rows, packed_rows, order, padding: 0 };
            kernels.widen(stream, matrices, &args)
        }
        Form::Experts { records, tiles, experts, scales, shift } => {
            let args = DummyExpertsArgs {
                block_key: source.key(part, layer),
                scale_key: source.key(scales, layer),
                records,
                rows: tiles.rows as u32,
                cols: tiles.cols as u32,
                order: order(tiles.order),
                base_field: u32::from(shift.field(source.scale_base(scales))),
                padding_field: u32::from(shift.field(shift.lowest())),
                padding: 0,
            };
            kernels.experts(stream, experts, &args)
        }
    }
}
