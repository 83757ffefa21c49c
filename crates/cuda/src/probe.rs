//! Probes: what a kernel must get right before its numbers are worth comparing.
//!
//! Each asks one thing of the machine code that runs, with operands for which the answer is known exactly: from the number
//! formats and the checkpoint's layout, never from what packs or multiplies here. A wrong address in a kernel shows as noise
//! in a result; here it shows as the permutation that it is. Probes stand in the order of what they rest on, so the first
//! that fails says where to look.

use crate::device::Device;
use crate::kernels::moe_gemm::MoeKernel;
use crate::moe::MoeError;

mod addresses;
mod map;
mod matrix;
mod numbers;
mod operands;
mod rig;
mod sums;

pub use matrix::Matrix;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Is the product of every bf16 and every power of two rounded right, subnormals included?
    Multiply,
    /// Does every thread decode its part of a record, under every code and scale?
    Decode,
    /// Does every weight meet the row and the column that it has in the checkpoint?
    Weights,
    /// Does every token's element meet the column of weights that it belongs to, whatever the width of the product?
    Tokens,
    /// Does every block of 32 weights have its own scale?
    Scales,
    /// Are all columns of a full-size matrix what they should be?
    Walk,
    /// Do sums have all terms, once, whatever the number of tokens, and nothing of what is no token?
    Sums,
    /// Are the bits the same however many blocks share the work?
    Blocks,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub probe: Probe,
    /// What was asked.
    pub subject: String,
    /// What is wrong: a permutation in words, or the first difference.
    pub fault: Option<String>,
}

/// What is done to operands on their way to the GPU: a probe that cannot fail proves nothing.
#[derive(Debug, Clone, Copy)]
pub enum Spoil {
    Nothing,
    /// Of the projection that is asked about.
    Weights(fn(&mut Matrix)),
    /// Of the down projection: `[tokens, columns]`, and how many columns.
    Tokens(fn(&mut [f32], usize)),
}

struct Bench<'a> {
    device: &'a Device,
    spoil: Spoil,
}

/// What is asked of one body of the matrix products; the answer is the fault.
type Ask = fn(&Bench, MoeKernel) -> Result<Option<String>, MoeError>;

impl Probe {
    /// In the order of what they rest on.
    pub const ALL: [Self; 8] =
        [Self::Multiply, Self::Decode, Self::Weights, Self::Tokens, Self::Scales, Self::Walk, Self::Sums, Self::Blocks];

    pub fn name(self) -> &'static str {
        match self {
            Self::Multiply => "multiply",
            Self::Decode => "decode",
            Self::Weights => "weights",
            Self::Tokens => "tokens",
            Self::Scales => "scales",
            Self::Walk => "walk",
            Self::Sums => "sums",
            Self::Blocks => "blocks",
        }
    }

    /// Asks everything, with operands as they should be.
    pub fn run(self, device: &Device) -> Result<Vec<Finding>, MoeError> {
        self.run_spoilt(device, Spoil::Nothing)
    }

    /// Asks everything, with operands that are spoilt.
    pub fn run_spoilt(self, device: &Device, spoil: Spoil) -> Result<Vec<Finding>, MoeError> {
        let bench = &Bench { device, spoil };
        match self {
            Self::Multiply => Ok(vec![self.finding(operands::MULTIPLY, operands::multiply(bench)?)]),
            Self::Decode => Ok(vec![self.finding(operands::DECODE, operands::decode(bench)?)]),
            Self::Weights => {
                self.every_body(bench, &[("gate", addresses::gate), ("up", addresses::up), ("down", addresses::down)])
            }
            Self::Tokens => self.every_body(bench, &[("down", addresses::tokens)]),
            Self::Scales => self.every_body(bench, &[("down", sums::scales)]),
            Self::Walk => self.every_body(bench, &[("down", sums::walk)]),
            Self::Sums => self.every_body(bench, &[("down", sums::counts)]),
            Self::Blocks => self.every_body(bench, &[("down", sums::blocks)]),
        }
    }

    fn every_body(self, bench: &Bench, asks: &[(&str, Ask)]) -> Result<Vec<Finding>, MoeError> {
        let mut findings = Vec::new();
        for (projection, ask) in asks {
            for kernel in MoeKernel::ALL {
                let body = format!("{kernel:?}").to_lowercase();
                findings.push(self.finding(format!("{projection}, {body}"), ask(bench, kernel)?));
            }
        }
        Ok(findings)
    }

    fn finding(self, subject: impl Into<String>, fault: Option<String>) -> Finding {
        Finding { probe: self, subject: subject.into(), fault }
    }
}
