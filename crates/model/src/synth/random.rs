//! A counter-based generator: word `i` of a stream is a function of the stream's key and `i`.

/// Output function and increment of splitmix64 (Steele, Lea, Flood 2014), whose state after `i` steps is a product.
pub fn word(key: u64, i: u64) -> u64 {
    mix(key.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// The key of a stream.
pub fn key(seed: u64, part: u64, layer: u64) -> u64 {
    mix(mix(mix(seed ^ 0x7465_7373_6572_6121) ^ part) ^ layer)
}

/// Two nearly normal numbers of mean 0 and deviation 1 from a word: each the sum of four bytes (Irwin-Hall), within
/// 3.46 deviations.
pub fn normals(word: u64) -> [f32; 2] {
    // Bytes, then 16-bit pairs, then 32-bit halves are added side by side.
    let pairs = (word & 0x00ff_00ff_00ff_00ff) + ((word >> 8) & 0x00ff_00ff_00ff_00ff);
    let sums = (pairs & 0x0000_ffff_0000_ffff) + ((pairs >> 16) & 0x0000_ffff_0000_ffff);
    [sums as u32, (sums >> 32) as u32].map(|sum| (sum as f32 - 4.0 * 127.5) * (1.0 / SUM_DEVIATION))
}

/// `sqrt(4 (256^2 - 1) / 12)`.
const SUM_DEVIATION: f32 = 147.799_41;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_have_mean_zero_and_deviation_one() {
        let values: Vec<f64> = (0..50_000).flat_map(|i| normals(word(7, i))).map(f64::from).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        // Standard errors are 0.003 and 0.004 over 100,000 values.
        assert!(mean.abs() < 0.015 && (variance - 1.0).abs() < 0.02, "mean {mean}, variance {variance}");
    }

    #[test]
    fn streams_differ_by_seed_part_and_layer() {
        let keys = [key(1, 2, 3), key(2, 2, 3), key(1, 3, 3), key(1, 2, 4), key(2, 1, 3), key(3, 2, 1)];
        for (i, a) in keys.iter().enumerate() {
            assert!(keys[..i].iter().all(|b| a != b));
        }
    }
}
