//! `--gpu-memory`: a share of the memory that is free, or a size.

use std::str::FromStr;

use tessera_cuda::Memory;

const UNITS: [(&str, u64); 5] =
    [("GiB", 1 << 30), ("MiB", 1 << 20), ("GB", 1_000_000_000), ("MB", 1_000_000), ("B", 1)];

/// The most GPU memory that a command may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GpuMemory {
    /// Of what is free when the command starts; above 0, at most 1.
    Share(f64),
    Bytes(u64),
}

/// Why a text is no [`GpuMemory`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GpuMemoryError {
    #[error("expected a share such as 90% or 0.9, or a size such as 60GB or 56GiB")]
    Format,
    #[error("a share is above 0 and at most 1, or 100%; a size has a unit: B, MB, GB, MiB or GiB")]
    Share,
    #[error("a size is above 0 and below 2^64 bytes")]
    Size,
}

impl GpuMemory {
    pub fn budget_bytes(self, memory: Memory) -> u64 {
        let free = memory.free_bytes as u64;
        match self {
            Self::Share(share) => (share * free as f64) as u64,
            Self::Bytes(bytes) => bytes.min(free),
        }
    }
}

impl FromStr for GpuMemory {
    type Err = GpuMemoryError;

    fn from_str(text: &str) -> Result<Self, GpuMemoryError> {
        let number = |digits: &str| match digits.trim().parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => Err(GpuMemoryError::Format),
        };
        let of_unit = |&(unit, bytes): &(&str, u64)| Some((split_unit(text, unit)?, bytes));
        if let Some((digits, unit_bytes)) = UNITS.iter().find_map(of_unit) {
            let bytes = number(digits)? * unit_bytes as f64;
            return match (1.0..u64::MAX as f64).contains(&bytes) {
                true => Ok(Self::Bytes(bytes as u64)),
                false => Err(GpuMemoryError::Size),
            };
        }
        let share = match text.strip_suffix('%') {
            Some(percent) => number(percent)? / 100.0,
            None => number(text)?,
        };
        if share > 0.0 && share <= 1.0 { Ok(Self::Share(share)) } else { Err(GpuMemoryError::Share) }
    }
}

/// What stands before the unit, in capital letters or not.
fn split_unit<'t>(text: &'t str, unit: &str) -> Option<&'t str> {
    let (digits, end) = text.split_at_checked(text.len().checked_sub(unit.len())?)?;
    end.eq_ignore_ascii_case(unit).then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Result<GpuMemory, GpuMemoryError>) {
        assert_eq!(text.parse(), expect, "{text:?}");
    }

    #[test]
    fn shares_and_sizes_are_read() {
        for text in ["0.9", "90%", "90 %", ".9", "90.0%"] {
            check(text, Ok(GpuMemory::Share(0.9)));
        }
        check("1", Ok(GpuMemory::Share(1.0)));
        check("100%", Ok(GpuMemory::Share(1.0)));
        for text in ["60GB", "60 GB", "60gb", "60000MB", "60e9B", "60000000000b"] {
            check(text, Ok(GpuMemory::Bytes(60_000_000_000)));
        }
        check("1.5GiB", Ok(GpuMemory::Bytes(3 << 29)));
        check("512MiB", Ok(GpuMemory::Bytes(512 << 20)));
    }

    #[test]
    fn what_is_neither_is_refused() {
        for text in ["", "%", "GB", "much", "9O%", "60TB", "-", "nan", "inf", "nanGB", "60GB%", "€B"] {
            check(text, Err(GpuMemoryError::Format));
        }
        for text in ["0", "0%", "-0.5", "1.01", "101%", "60", "60000000000"] {
            check(text, Err(GpuMemoryError::Share));
        }
        for text in ["0GB", "-1GB", "0.5B", "1e30GB"] {
            check(text, Err(GpuMemoryError::Size));
        }
    }

    #[test]
    fn the_budget_is_of_what_is_free() {
        let memory = Memory { free_bytes: 80_000_000_000, total_bytes: 100_000_000_000 };
        assert_eq!(GpuMemory::Share(0.5).budget_bytes(memory), 40_000_000_000);
        assert_eq!(GpuMemory::Bytes(60).budget_bytes(memory), 60);
        assert_eq!(GpuMemory::Bytes(90_000_000_000).budget_bytes(memory), 80_000_000_000);
    }
}
