use tessera_model::checkpoint::Part;

use crate::dense::DenseError;
use crate::error::DeviceError;
use crate::moe::MoeError;
use crate::pack::PackError;

/// Why a model's weights cannot be on the GPU.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum ModelWeightsError {
    #[error("{field} is {found}: the GPU's kernels need {expected}; run on the CPU")]
    Field { field: &'static str, expected: String, found: usize },
    #[error("weights of {found} layers: num_hidden_layers is {expected}")]
    Layers { expected: usize, found: usize },
    #[error("{}{part:?} has {found} bytes, expected {expected}", in_layer(layer))]
    Length { layer: Option<usize>, part: Part, expected: usize, found: usize },
    #[error("layer {layer}, {what}, expert {expert}: {source}")]
    Scale { layer: usize, what: &'static str, expert: usize, source: PackError },
    #[error("interrupted")]
    Interrupted,
    #[error(transparent)]
    Dense(#[from] DenseError),
    #[error(transparent)]
    Experts(#[from] MoeError),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

fn in_layer(layer: &Option<usize>) -> String {
    layer.map_or(String::new(), |layer| format!("layer {layer}: "))
}
