//! One step after the other in a graph, each started before the one before has ended.

use half::bf16;
use tessera_cuda::{DenseWeights, NormOut, RowSampling, Sampled, Sampler, StepsError};
use tessera_model::{Linear, Matrix, Sampling};

use super::rig::{Rig, bf16_bits, bits, normal, panels_len, rounded};
use crate::random::Random;

const HIDDEN: usize = 2880;
const EXPERTS: usize = 128;
const VOCAB: usize = 500;

#[test]
fn in_graphs() {
    let Some(rig) = Rig::new() else { return };
    let mut random = Random(40);
    let steps = rig.steps(HIDDEN);
    let sampler = Sampler::load(&rig.device, EXPERTS).unwrap();
    let table = rig.upload(&rounded(&normal(&mut random, VOCAB * HIDDEN, 1.0)));
    let norm = rig.upload(&normal(&mut random, HIDDEN, 1.0));
    let (weight, bias) =
        (rounded(&normal(&mut random, EXPERTS * HIDDEN, 0.1)), rounded(&normal(&mut random, EXPERTS, 1.0)));
    let weight = Matrix { data: &weight, rows: EXPERTS, cols: HIDDEN };
    let router = DenseWeights::upload(&rig.device, &rig.stream, &[Linear { weight, bias: &bias }]).unwrap();
    for n in [1, 8, 33, 300] {
        let tokens: Vec<u32> = (0..n).map(|_| (random.next() % VOCAB as u64) as u32).collect();
        let sampling = Sampling { temperature: 1.0, top_k: 20, top_p: 0.9, seed: 3 };
        let samplings: Vec<_> = (0..n).map(|i| RowSampling::new(&sampling, i as u32, i)).collect();
        let (tokens, samplings) = (rig.upload(&tokens), rig.upload(&samplings));
        let mut residual = rig.device.alloc::<f32>(n * HIDDEN).unwrap();
        let mut panels = rig.device.alloc::<bf16>(panels_len(n, HIDDEN)).unwrap();
        let mut x = rig.device.alloc::<bf16>(n * HIDDEN).unwrap();
        let mut logits = rig.device.alloc::<f32>(n * EXPERTS).unwrap();
        let mut chosen = rig.device.alloc::<Sampled>(n).unwrap();
        let mut forward = || {
            let stream = &rig.stream;
            steps.embed(stream, tokens.address(), n, &table, &mut residual)?;
            steps.rms_norm(stream, &residual, &norm, n, NormOut::Panels(&mut panels))?;
            steps.norm_router(stream, &residual, &norm, &router, n, &mut x, &mut logits)?;
            sampler.sample(stream, &logits, n, samplings.address(), n, &mut chosen)
        };
        forward().unwrap();
        // Each run overwrites what the one before reads, unless it waits.
        let graph = rig.stream.capture(|| (0..3).try_for_each(|_| forward())).unwrap();
        let eager = (rig.download(&panels), rig.download(&x), rig.download(&logits), rig.download(&chosen));
        for (values, poison) in [(&mut residual, n * HIDDEN), (&mut logits, n * EXPERTS)] {
            rig.stream.upload(&vec![f32::NAN; poison], values, 0).unwrap();
        }
        for values in [&mut panels, &mut x] {
            rig.stream.upload(&vec![bf16::NAN; values.len()], values, 0).unwrap();
        }
        for _ in 0..5 {
            rig.stream.replay(&graph).unwrap();
        }
        let rows = |values: &[bf16]| bf16_bits(&super::rig::from_panels(values, n, HIDDEN));
        assert!(rows(&rig.download(&panels)) == rows(&eager.0), "{n} tokens: panels");
        assert!(bf16_bits(&rig.download(&x)) == bf16_bits(&eager.1), "{n} tokens: normed rows");
        assert!(bits(&rig.download(&logits)) == bits(&eager.2), "{n} tokens: logits");
        assert!(rig.download(&chosen) == eager.3, "{n} tokens: tokens");
    }
    // The last step of all waits, too.
    assert_eq!(rig.stream.synchronize().map_err(StepsError::from), Ok(()));
}
