use std::iter::repeat_n;

use half::bf16;

use super::grouped::{Groups, PANEL, grouped_rows, panels};
use super::shape::MAX_TOKENS;
use super::{MoeError, MoeShape, exact};
use crate::device::{Buffer, Device};
use crate::error::DeviceError;
use crate::launch::Stream;

/// What the stages hand on to each other, for so many tokens at most. A slot is one choice of a token, `token * top_k + rank`.
pub struct MoeWorkspace {
    pub(crate) shape: MoeShape,
    max_tokens: usize,
    /// Of the last routing.
    pub(crate) n_tokens: usize,
    pub(super) ids: Buffer<i32>,         // [tokens, top_k]
    pub(crate) weights: Buffer<f32>,     // [tokens, top_k]
    pub(super) counts: Buffer<i32>,      // [experts]
    pub(super) strips_done: Buffer<u32>, // [experts + 1], of gate_up
    pub(super) slots: Buffer<i32>,       // [experts, tokens * top_k]
    pub(crate) positions: Buffer<i32>,   // [tokens, top_k]: grouped rows, -1 for a skipped slot
    pub(super) x: Buffer<bf16>,          // grouped rows of hidden columns
    pub(super) h: Buffer<bf16>,          // grouped rows of intermediate columns
    pub(crate) y: Buffer<f32>,           // [grouped rows, hidden]
}

impl MoeWorkspace {
    pub fn new(device: &Device, shape: MoeShape, max_tokens: usize) -> Result<Self, MoeError> {
        let shape = shape.checked()?;
        if max_tokens > MAX_TOKENS {
            return Err(MoeError::Size {
                what: "workspace",
                expected: format!("at most {MAX_TOKENS} tokens"),
                found: max_tokens,
            });
        }
        let n_slots = max_tokens * shape.top_k;
        let n_rows = grouped_rows(n_slots, shape.experts);
        Ok(Self {
            shape,
            max_tokens,
            n_tokens: 0,
            ids: device.alloc(n_slots)?,
            weights: device.alloc(n_slots)?,
            counts: device.alloc(shape.experts)?,
            strips_done: device.alloc(shape.experts + 1)?,
            slots: device.alloc(shape.experts * n_slots)?,
            positions: device.alloc(n_slots)?,
            x: device.alloc(n_rows * panels(shape.hidden) * PANEL)?,
            h: device.alloc(n_rows * panels(shape.intermediate) * PANEL)?,
            y: device.alloc(n_rows * shape.hidden)?,
        })
    }

    pub fn shape(&self) -> MoeShape {
        self.shape
    }

    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Fills everything with NaN and ids of nobody, and waits: whatever is read without having been written then shows.
    pub fn poison(&mut self, stream: &Stream) -> Result<(), DeviceError> {
        for buffer in [&mut self.ids, &mut self.counts, &mut self.slots, &mut self.positions] {
            stream.upload(&vec![-1; buffer.len()], buffer, 0)?;
        }
        stream.upload(&vec![u32::MAX; self.strips_done.len()], &mut self.strips_done, 0)?;
        for buffer in [&mut self.weights, &mut self.y] {
            stream.upload(&vec![f32::NAN; buffer.len()], buffer, 0)?;
        }
        for buffer in [&mut self.x, &mut self.h] {
            stream.upload(&vec![bf16::NAN; buffer.len()], buffer, 0)?;
        }
        self.n_tokens = 0;
        Ok(())
    }

    pub(super) fn n_slots(&self) -> usize {
        self.n_tokens * self.shape.top_k
    }

    pub(super) fn has_room(&self, n_tokens: usize) -> Result<(), MoeError> {
        match n_tokens <= self.max_tokens {
            true => Ok(()),
            false => Err(MoeError::TooManyTokens { limit: self.max_tokens, found: n_tokens }),
        }
    }
}

/// The stages' results on the host; each waits for the stream.
impl MoeWorkspace {
    /// `[tokens, top_k]`
    pub fn ids(&self, stream: &Stream) -> Result<Vec<i32>, DeviceError> {
        download(stream, &self.ids, self.n_slots())
    }

    /// `[tokens, top_k]`
    pub fn weights(&self, stream: &Stream) -> Result<Vec<f32>, DeviceError> {
        download(stream, &self.weights, self.n_slots())
    }

    /// Rows of each expert, `[experts]`.
    pub fn counts(&self, stream: &Stream) -> Result<Vec<i32>, DeviceError> {
        match self.n_tokens {
            0 => Ok(vec![0; self.shape.experts]),
            _ => download(stream, &self.counts, self.shape.experts),
        }
    }

    /// What SwiGLU gave, `[slots, intermediate]`; NaN for skipped slots.
    pub fn h(&self, stream: &Stream) -> Result<Vec<f32>, DeviceError> {
        let (width, n_panels) = (self.shape.intermediate, panels(self.shape.intermediate));
        let h = download(stream, &self.h, self.h_len())?;
        let groups = Groups::new(&self.counts(stream)?);
        self.by_slot(stream, width, |position, column| {
            let at = groups.element(position, n_panels, column)?;
            h.get(at).map(|value| value.to_f32())
        })
    }

    /// What the down projection gave, `[slots, hidden]`, not yet weighted; NaN for skipped slots.
    pub fn y(&self, stream: &Stream) -> Result<Vec<f32>, DeviceError> {
        let width = self.shape.hidden;
        let y = download(stream, &self.y, self.n_rows() * width)?;
        self.by_slot(stream, width, |position, column| y.get(position * width + column).copied())
    }

    fn n_rows(&self) -> usize {
        grouped_rows(self.n_slots(), self.shape.experts)
    }

    fn h_len(&self) -> usize {
        self.n_rows() * panels(self.shape.intermediate) * PANEL
    }

    /// `[slots, width]` of what `value` gives for a grouped row and a column.
    fn by_slot(
        &self,
        stream: &Stream,
        width: usize,
        value: impl Fn(usize, usize) -> Option<f32>,
    ) -> Result<Vec<f32>, DeviceError> {
        let positions = download(stream, &self.positions, self.n_slots())?;
        let value = |position: i32, column| value(usize::try_from(position).ok()?, column).or(Some(f32::NAN));
        let row = |position| (0..width).map(move |column| value(position, column).unwrap_or(f32::NAN));
        Ok(positions.into_iter().flat_map(row).collect())
    }
}

/// Puts other values in a stage's place, for the next one to read; each waits for the stream. Values of skipped slots are
/// ignored.
impl MoeWorkspace {
    /// `[slots, intermediate]`, rounded to bf16.
    pub fn set_h(&mut self, stream: &Stream, values: &[f32]) -> Result<(), MoeError> {
        let (width, n_panels) = (self.shape.intermediate, panels(self.shape.intermediate));
        exact("values of h", values.len(), self.n_slots() * width)?;
        let mut h = download(stream, &self.h, self.h_len())?;
        let groups = Groups::new(&self.counts(stream)?);
        // The padding of a row meets weights of 0, which make NaN of what is not finite.
        let padding = n_panels * PANEL - width;
        let rows = values.chunks_exact(width);
        let padded: Vec<f32> = rows.flat_map(|row| row.iter().copied().chain(repeat_n(0.0, padding))).collect();
        self.to_rows(stream, &padded, width + padding, |position, column, value| {
            if let Some(h) = groups.element(position, n_panels, column).and_then(|at| h.get_mut(at)) {
                *h = bf16::from_f32(value);
            }
        })?;
        Ok(stream.upload(&h, &mut self.h, 0)?)
    }

    /// `[slots, hidden]`
    pub fn set_y(&mut self, stream: &Stream, values: &[f32]) -> Result<(), MoeError> {
        let width = self.shape.hidden;
        exact("values of y", values.len(), self.n_slots() * width)?;
        let mut y = download(stream, &self.y, self.n_rows() * width)?;
        self.to_rows(stream, values, width, |position, column, value| {
            if let Some(y) = y.get_mut(position * width + column) {
                *y = value;
            }
        })?;
        Ok(stream.upload(&y, &mut self.y, 0)?)
    }

    /// `put(grouped row, column, value)` for each value `[slots, width]` of a slot that is not skipped.
    fn to_rows(
        &self,
        stream: &Stream,
        values: &[f32],
        width: usize,
        mut put: impl FnMut(usize, usize, f32),
    ) -> Result<(), DeviceError> {
        let positions = download(stream, &self.positions, self.n_slots())?;
        for (position, row) in positions.into_iter().zip(values.chunks_exact(width)) {
            let Ok(position) = usize::try_from(position) else { continue };
            row.iter().enumerate().for_each(|(column, &value)| put(position, column, value));
        }
        Ok(())
    }
}

fn download<T: bytemuck::Pod>(stream: &Stream, from: &Buffer<T>, n: usize) -> Result<Vec<T>, DeviceError> {
    let mut to = vec![T::zeroed(); n];
    stream.download(from, 0, &mut to)?;
    Ok(to)
}
