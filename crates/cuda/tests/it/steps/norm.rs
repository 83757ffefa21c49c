//! Embedding and norms.

use half::bf16;
use tessera_cuda::NormOut;

use super::rig::{EPS, HIDDEN, Rig, TOKENS, UNTOUCHED, bf16_bits, bits, from_panels, normal, panels_len, pick};
use crate::random::Random;

/// Of the elements: so many, at least, are no further than one unit in the last place from the rounded exact number.
const WITHIN_ONE_ULP: f64 = 0.999;
/// And all no further than this: float32 is 256 times as fine as bf16, the two roundings can differ by one unit.
const MAX_ULPS: i32 = 2;
const NOBODY: u32 = u32::MAX;

#[test]
fn embedding_is_exact() {
    let Some(rig) = Rig::new() else { return };
    let mut random = Random(1);
    for (hidden, n_tokens) in HIDDEN.iter().flat_map(|&h| TOKENS.map(|t| (h, t))) {
        let vocab = 57;
        // Any bits: subnormals, infinities and NaN, too.
        let table: Vec<bf16> =
            random.bytes(2 * vocab * hidden).chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]])).collect();
        let mut tokens: Vec<u32> = (0..n_tokens).map(|_| (random.next() % vocab as u64) as u32).collect();
        tokens[n_tokens / 2] = vocab as u32 - 1;
        tokens[n_tokens - 1] = if n_tokens > 1 { NOBODY } else { 0 };
        let (table_there, tokens_there) = (rig.upload(&table), rig.upload(&tokens));
        let mut residual = rig.target(n_tokens * hidden, 7.0);
        rig.steps(hidden).embed(&rig.stream, tokens_there.address(), n_tokens, &table_there, &mut residual).unwrap();
        let found = rig.written(&residual, 7.0);
        for (token, row) in tokens.iter().zip(found.chunks_exact(hidden)) {
            if *token == NOBODY {
                assert!(row.iter().all(|value| value.is_nan()), "{hidden}, {n_tokens} tokens: nobody's has numbers");
                continue;
            }
            let expect = &table[*token as usize * hidden..][..hidden];
            let expect: Vec<u32> = expect.iter().map(|value| u32::from(value.to_bits()) << 16).collect();
            assert!(bits(row) == expect, "{hidden}, {n_tokens} tokens: token {token}");
        }
    }
}

/// `[tokens, hidden]`
fn exact_norm(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let row = |row: &[f32]| {
        let squares: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
        let scale = (squares / row.len() as f64 + f64::from(EPS)).sqrt().recip();
        row.iter().zip(weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)).collect::<Vec<_>>()
    };
    x.chunks_exact(weight.len()).flat_map(row).collect()
}

/// Distance in numbers of the format.
fn ulps(found: bf16, expect: bf16) -> i32 {
    let order = |value: bf16| {
        let bits = i32::from(value.to_bits());
        if bits & 0x8000 == 0 { bits } else { 0x8000 - bits }
    };
    (order(found) - order(expect)).abs()
}

#[track_caller]
fn check_norm(found: &[bf16], expect: &[f64], what: &str) {
    let far = |(found, expect): (&bf16, &f64)| {
        if found.is_finite() { ulps(*found, bf16::from_f64(*expect)) } else { i32::MAX }
    };
    let distances: Vec<i32> = found.iter().zip(expect).map(far).collect();
    let worst = distances.iter().copied().max().unwrap();
    let near = distances.iter().filter(|&&distance| distance <= 1).count();
    assert!(worst <= MAX_ULPS, "{what}: {worst} units off");
    assert!(near as f64 >= WITHIN_ONE_ULP * found.len() as f64, "{what}: {near} of {} are near", found.len());
}

#[test]
fn norms_against_float64() {
    let Some(rig) = Rig::new() else { return };
    let mut random = Random(2);
    for hidden in HIDDEN {
        let steps = rig.steps(hidden);
        let weight = normal(&mut random, hidden, 1.0);
        let weight_there = rig.upload(&weight);
        for (n_tokens, scale) in TOKENS.into_iter().zip([1.0, 1e-3, 300.0].into_iter().cycle()) {
            let x = normal(&mut random, n_tokens * hidden, scale);
            let x_there = rig.upload(&x);
            let (mut panels, mut rows) =
                (rig.target(panels_len(n_tokens, hidden), UNTOUCHED), rig.target(n_tokens * hidden, UNTOUCHED));
            let out = NormOut::Both { panels: &mut panels, rows: &mut rows };
            steps.rms_norm(&rig.stream, &x_there, &weight_there, n_tokens, out).unwrap();
            let what = format!("hidden {hidden}, {n_tokens} tokens");
            let rows = rig.written(&rows, UNTOUCHED);
            check_norm(&rows, &exact_norm(&x, &weight), &what);
            let columns = hidden.next_multiple_of(64);
            let panels = from_panels(&rig.written(&panels, UNTOUCHED), n_tokens, hidden);
            for (panel_row, row) in panels.chunks_exact(columns).zip(rows.chunks_exact(hidden)) {
                assert!(bf16_bits(&panel_row[..hidden]) == bf16_bits(row), "{what}: panels differ from rows");
                assert!(panel_row[hidden..].iter().all(|value| value.to_bits() == 0), "{what}: padding");
            }
        }
    }
}

#[test]
fn norms_of_some_tokens_are_the_same_bits() {
    let Some(rig) = Rig::new() else { return };
    let mut random = Random(3);
    for hidden in [96, 2880] {
        let (steps, n_tokens) = (rig.steps(hidden), 333);
        let (x, weight) = (normal(&mut random, n_tokens * hidden, 2.0), normal(&mut random, hidden, 1.0));
        let (x_there, weight) = (rig.upload(&x), rig.upload(&weight));
        let mut all = rig.target(n_tokens * hidden, UNTOUCHED);
        steps.rms_norm(&rig.stream, &x_there, &weight, n_tokens, NormOut::Rows(&mut all)).unwrap();
        let all = rig.written(&all, UNTOUCHED);
        for n in [1, 2, 9, 40] {
            let places: Vec<usize> = (0..n).map(|_| (random.next() % n_tokens as u64) as usize).collect();
            let expect = bf16_bits(&pick(&all, hidden, &places));
            // By their indices.
            let tokens: Vec<u32> = places.iter().map(|&place| place as u32).collect();
            let tokens = rig.upload(&tokens);
            let mut panels = rig.target(panels_len(n, hidden), UNTOUCHED);
            let out = NormOut::Panels(&mut panels);
            steps.rms_norm_of(&rig.stream, &x_there, &weight, tokens.address(), n, out).unwrap();
            let found = from_panels(&rig.written(&panels, UNTOUCHED), n, hidden);
            let found: Vec<bf16> =
                found.chunks_exact(hidden.next_multiple_of(64)).flat_map(|row| row[..hidden].to_vec()).collect();
            assert!(bf16_bits(&found) == expect, "hidden {hidden}, {n} rows by index");
            // By themselves.
            let alone = rig.upload(&pick(&x, hidden, &places));
            let mut rows = rig.target(n * hidden, UNTOUCHED);
            steps.rms_norm(&rig.stream, &alone, &weight, n, NormOut::Rows(&mut rows)).unwrap();
            assert!(bf16_bits(&rig.written(&rows, UNTOUCHED)) == expect, "hidden {hidden}, {n} rows by themselves");
        }
    }
}
