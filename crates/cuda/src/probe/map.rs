//! Whose element each place got, told in words.
//!
//! An operand's element has an address, `row * columns + k`. Products that multiply nothing but one bit of every element's own
//! address, one bit after the other, tell for each place which element it got. Where that is always the same permutation of
//! the address' bits, its cycles say what is wrong.

#[cfg(test)]
mod tests;

/// Places told one by one where no rule is found.
const TOLD: usize = 3;

/// The bits of an address: those of the column `k`, then those of the row. Beside each stands what it selects; the last one
/// holds for all above.
pub struct Axes {
    pub k_bits: usize,
    pub k_parts: &'static [&'static str],
    pub row: &'static str,
    pub row_parts: &'static [&'static str],
}

const WEIGHT_K: &[&str] = &["half", "lane", "lane", "register", "word", "word pair", "record"];

impl Axes {
    /// Rows in the order in which they are packed.
    pub const fn weights(k_bits: usize) -> Self {
        let row_parts = &["lane", "lane", "lane", "register", "warp", "warp", "strip"];
        Self { k_bits, k_parts: WEIGHT_K, row: "row", row_parts }
    }

    /// Gates, or ups: every other row of gate_up, 32 of a strip.
    pub const fn channels(k_bits: usize) -> Self {
        let row_parts = &["lane", "lane", "lane", "warp", "warp", "strip"];
        Self { k_bits, k_parts: WEIGHT_K, row: "channel", row_parts }
    }

    /// Of a tile: pieces are of 16 bytes.
    pub const fn tokens(k_bits: usize) -> Self {
        let k_parts = &["in a piece", "in a piece", "in a piece", "piece", "piece", "piece", "panel"];
        Self { k_bits, k_parts, row: "token", row_parts: &["row", "row", "row", "group"] }
    }

    /// Bits of the addresses of `n_rows` rows.
    pub fn n_bits(&self, n_rows: usize) -> usize {
        bits_below(n_rows << self.k_bits)
    }

    fn address(&self, row: usize, k: usize) -> usize {
        row << self.k_bits | k
    }

    fn place(&self, address: usize) -> String {
        format!("{} {}, k {}", self.row, address >> self.k_bits, address & ((1 << self.k_bits) - 1))
    }

    fn bit(&self, bit: usize) -> String {
        let part = |parts: &[&'static str], bit: usize| parts[bit.min(parts.len() - 1)];
        match bit.checked_sub(self.k_bits) {
            None => format!("k bit {bit} ({})", part(self.k_parts, bit)),
            Some(bit) => format!("{} bit {bit} ({})", self.row, part(self.row_parts, bit)),
        }
    }

    fn bits(&self, set: usize) -> String {
        let names: Vec<String> = bits_of(set).map(|bit| self.bit(bit)).collect();
        if names.is_empty() { "nothing".into() } else { names.join(" ^ ") }
    }
}

/// What came back, bit after bit.
pub struct Reading<'a> {
    axes: &'a Axes,
    found: Vec<usize>, // [rows, columns], addresses
    odd: Option<String>,
}

impl<'a> Reading<'a> {
    pub fn new(axes: &'a Axes, n_rows: usize) -> Self {
        Self { axes, found: vec![0; n_rows << axes.k_bits], odd: None }
    }

    /// Adds bit `bit` of what each row and column got: `value` should be 0 or 1.
    pub fn take(&mut self, bit: usize, value: impl Fn(usize, usize) -> f32) {
        for (address, found) in self.found.iter_mut().enumerate() {
            let value = value(address >> self.axes.k_bits, address & ((1 << self.axes.k_bits) - 1));
            if value == 1.0 {
                *found |= 1 << bit;
            } else if value != 0.0 && self.odd.is_none() {
                let (place, bit) = (self.axes.place(address), self.axes.bit(bit));
                self.odd = Some(format!("{place}: {value}, expected 0 or 1 for {bit} of the address"));
            }
        }
    }

    /// What is wrong, if something is.
    pub fn fault(self) -> Option<String> {
        self.odd.or_else(|| explain(&self.found, self.axes))
    }
}

/// What is wrong with a map of which element each place has.
fn explain(found: &[usize], axes: &Axes) -> Option<String> {
    if found.iter().enumerate().all(|(address, &found)| found == address) {
        return None;
    }
    Some(match BitMap::of(found) {
        Some(map) => map.words(axes),
        None => wrong_places(found, axes),
    })
}

/// A map that is linear in the bits of the address, but for bits that are flipped.
struct BitMap {
    flipped: usize,
    /// What a bit of the address turns into, by bit.
    images: Vec<usize>,
}

impl BitMap {
    /// None if the map is no such.
    fn of(found: &[usize]) -> Option<Self> {
        let flipped = *found.first()?;
        let images = (0..bits_below(found.len())).map(|bit| found[1 << bit] ^ flipped).collect();
        let map = Self { flipped, images };
        found.iter().enumerate().all(|(address, &found)| map.at(address) == found).then_some(map)
    }

    fn at(&self, address: usize) -> usize {
        bits_of(address).fold(self.flipped, |found, bit| found ^ self.images[bit])
    }

    fn words(&self, axes: &Axes) -> String {
        if self.images.iter().all(|&image| image == 0) {
            return format!("every place has {}", axes.place(self.flipped));
        }
        let moved = if self.is_permutation() { self.cycles(axes) } else { self.sums(axes) };
        let flipped = bits_of(self.flipped).map(|bit| format!("{} flipped", axes.bit(bit)));
        moved.into_iter().chain(flipped).collect::<Vec<_>>().join("; ")
    }

    fn is_permutation(&self) -> bool {
        let seen = self.images.iter().fold(0, |seen, image| seen | image);
        self.images.iter().all(|image| image.is_power_of_two()) && seen.count_ones() as usize == self.images.len()
    }

    /// The bits that are exchanged.
    fn cycles(&self, axes: &Axes) -> Vec<String> {
        let mut told = 0_usize;
        let mut cycles = Vec::new();
        for first in 0..self.images.len() {
            let mut cycle = vec![first];
            let mut at = self.images[first].trailing_zeros() as usize;
            while told >> first & 1 == 0 && at != first {
                cycle.push(at);
                told |= 1 << at;
                at = self.images[at].trailing_zeros() as usize;
            }
            let names: Vec<String> = cycle.iter().map(|&bit| axes.bit(bit)).collect();
            match &names[..] {
                [_] => {}
                [one, other] => cycles.push(format!("{one} <-> {other}")),
                [one, ..] => cycles.push(format!("{} -> {one}", names.join(" -> "))),
                [] => unreachable!("a cycle has its first bit"),
            }
        }
        cycles
    }

    /// The bits that are not what they should be.
    fn sums(&self, axes: &Axes) -> Vec<String> {
        let wrong = self.images.iter().enumerate().filter(|&(bit, &image)| image != 1 << bit);
        wrong.map(|(bit, &image)| format!("{} -> {}", axes.bit(bit), axes.bits(image))).collect()
    }
}

fn wrong_places(found: &[usize], axes: &Axes) -> String {
    let wrong: Vec<(usize, usize)> =
        found.iter().copied().enumerate().filter(|(address, found)| address != found).collect();
    let told = wrong.iter().take(TOLD);
    let told: Vec<String> = told.map(|&(at, found)| format!("{} has {}", axes.place(at), axes.place(found))).collect();
    format!("{} of {} places are wrong: {}", wrong.len(), found.len(), told.join("; "))
}

/// The value that tells bit `bit` of an element's address.
pub fn address_bit(axes: &Axes, bit: usize, row: usize, k: usize) -> bool {
    axes.address(row, k) >> bit & 1 == 1
}

/// Bits of the numbers below `n`.
fn bits_below(n: usize) -> usize {
    (usize::BITS - n.saturating_sub(1).leading_zeros()) as usize
}

fn bits_of(set: usize) -> impl Iterator<Item = usize> {
    (0..usize::BITS as usize).filter(move |bit| set >> bit & 1 == 1)
}
