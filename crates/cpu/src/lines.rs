//! Buffers that begin on a cache line, so that a vector load touches one line and not two.

use bytemuck::{Pod, Zeroable};

/// Bytes of a cache line, and of the widest vector.
const LINE: usize = 64;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// A growable buffer of plain numbers.
pub struct Lines<T> {
    lines: Vec<Line>,
    len: usize,
    marker: std::marker::PhantomData<T>,
}

impl<T: Pod> Lines<T> {
    /// Makes room for `len` elements; whatever stood there may stay.
    pub fn resize(&mut self, len: usize) {
        self.lines.resize((len * size_of::<T>()).div_ceil(LINE), Line::zeroed());
        self.len = len;
    }

    /// Makes room for `len` zeros.
    pub fn reset(&mut self, len: usize) {
        self.lines.clear();
        self.resize(len);
    }
}

impl<T> Default for Lines<T> {
    fn default() -> Self {
        Self { lines: Vec::new(), len: 0, marker: std::marker::PhantomData }
    }
}

impl<T: Pod> std::ops::Deref for Lines<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<T: Pod> std::ops::DerefMut for Lines<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
