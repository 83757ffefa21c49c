//! The order of the GPU's choices against the trace's: a slot is `token * top_k + rank` with ranks by descending logit, a
//! pair of the trace is `token * top_k + i` with experts ascending.

/// The pair that each slot is, `[tokens, top_k]`.
pub struct Slots(Vec<usize>);

impl Slots {
    /// `ids` `[tokens, top_k]`, of different experts for each token.
    pub fn new(ids: &[i32], top_k: usize) -> Self {
        let of_token = |(token, ids): (usize, &[i32])| {
            let pair = |id: &i32| token * top_k + ids.iter().filter(|other| *other < id).count();
            ids.iter().map(pair).collect::<Vec<_>>()
        };
        Self(ids.chunks_exact(top_k).enumerate().flat_map(of_token).collect())
    }

    /// Values of slots in the order of pairs; both `[slots, width]`.
    pub fn to_pairs(&self, by_slot: &[f32], width: usize) -> Vec<f32> {
        let mut by_pair = vec![f32::NAN; by_slot.len()];
        for (&pair, row) in self.0.iter().zip(by_slot.chunks_exact(width)) {
            by_pair[pair * width..][..width].copy_from_slice(row);
        }
        by_pair
    }

    /// The reverse.
    pub fn to_slots(&self, by_pair: &[f32], width: usize) -> Vec<f32> {
        self.0.iter().flat_map(|&pair| &by_pair[pair * width..][..width]).copied().collect()
    }
}

/// Weights `[tokens, experts]`, 0 where an expert was not chosen, of `ids` and `weights` `[tokens, top_k]`. An id that is no
/// expert's adds nothing.
pub fn dense(ids: &[i32], weights: &[f32], top_k: usize, n_experts: usize) -> Vec<f32> {
    let mut dense = vec![0.0; ids.len() / top_k * n_experts];
    for (slot, (&id, weight)) in ids.iter().zip(weights).enumerate() {
        if let Some(expert) = usize::try_from(id).ok().filter(|&e| e < n_experts) {
            dense[slot / top_k * n_experts + expert] += weight;
        }
    }
    dense
}

/// Whether `ids` `[tokens, top_k]` are, for each token, different experts, and among them all that have a weight in `dense`
/// `[tokens, experts]`.
pub fn agree(ids: &[i32], dense: &[f32], top_k: usize, n_experts: usize) -> bool {
    ids.chunks_exact(top_k).zip(dense.chunks_exact(n_experts)).all(|(ids, weights)| {
        let chosen = |e: usize| ids.iter().filter(|&&id| id == e as i32).count();
        let n_different = (0..n_experts).filter(|&e| chosen(e) == 1).count();
        n_different == top_k && (0..n_experts).all(|e| weights[e] == 0.0 || chosen(e) == 1)
    })
}

/// Ids and weights `[tokens, top_k]` that make `dense`: the experts that have a weight, ascending, and if those are too few,
/// because weights have become 0, the first others.
pub fn choice(dense: &[f32], top_k: usize, n_experts: usize) -> (Vec<i32>, Vec<f32>) {
    let of_token = |weights: &[f32]| {
        let (chosen, others): (Vec<usize>, Vec<usize>) = (0..n_experts).partition(|&e| weights[e] != 0.0);
        let all = chosen.into_iter().chain(others).take(top_k);
        all.map(|e| (e as i32, weights[e])).collect::<Vec<_>>()
    };
    dense.chunks_exact(n_experts).flat_map(of_token).unzip()
}

/// `(ids, weights)` `[tokens, top_k]`, which are `found` `[tokens, experts]`, where `dense` was put in its place: tokens in which
/// nothing changed stay as they are, even without experts, and ids that agree stay in their order.
pub fn replaced(
    (ids, weights): (&[i32], &[f32]),
    found: &[f32],
    dense: &[f32],
    top_k: usize,
    n_experts: usize,
) -> (Vec<i32>, Vec<f32>) {
    let of_token = |token: usize| {
        let slots = token * top_k..(token + 1) * top_k;
        let experts = token * n_experts..(token + 1) * n_experts;
        let (ids, weights, found, dense) =
            (&ids[slots.clone()], &weights[slots], &found[experts.clone()], &dense[experts]);
        if found.iter().zip(dense).all(|(found, dense)| found.to_bits() == dense.to_bits()) {
            return (ids.to_vec(), weights.to_vec());
        }
        match agree(ids, dense, top_k, n_experts) {
            true => (ids.to_vec(), ids.iter().map(|&id| dense[id as usize]).collect()),
            false => choice(dense, top_k, n_experts),
        }
    };
    let (ids, weights): (Vec<_>, Vec<_>) = (0..ids.len() / top_k).map(of_token).unzip();
    (ids.concat(), weights.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [i32; 6] = [4, 0, 2, 1, 3, 0];
    const WEIGHTS: [f32; 6] = [0.5, 0.3, 0.2, 0.6, 0.3, 0.1];
    #[rustfmt::skip]
    const DENSE: [f32; 10] = [0.3, 0.0, 0.2, 0.0, 0.5,
                              0.1, 0.6, 0.0, 0.3, 0.0];

    #[test]
    fn slots_by_rank_are_pairs_by_expert() {
        let slots = Slots::new(&IDS, 3);
        let by_slot: Vec<f32> = IDS.iter().flat_map(|&id| [id as f32, -id as f32]).collect();
        let by_pair = [0.0, -0.0, 2.0, -2.0, 4.0, -4.0, 0.0, -0.0, 1.0, -1.0, 3.0, -3.0];
        assert_eq!(slots.to_pairs(&by_slot, 2), by_pair);
        assert_eq!(slots.to_slots(&by_pair, 2), by_slot);
    }

    #[test]
    fn weights_stand_at_their_experts() {
        assert_eq!(dense(&IDS, &WEIGHTS, 3, 5), DENSE);
        let nobody = dense(&[4, -1, 5, 1, 1, 0], &WEIGHTS, 3, 5);
        assert_eq!(nobody, [0.0, 0.0, 0.0, 0.0, 0.5, 0.1, 0.6 + 0.3, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn another_expert_twice_the_same_or_none_is_another_choice() {
        let agrees = |ids: &[i32]| agree(ids, &DENSE, 3, 5);
        assert!(agrees(&IDS) && agrees(&[0, 2, 4, 0, 1, 3]));
        for (slot, id) in [(0, 3), (0, 0), (0, -1), (4, 5), (5, 4)] {
            let mut ids = IDS;
            ids[slot] = id;
            assert!(!agrees(&ids), "{ids:?}");
        }
        let vanished: Vec<f32> = DENSE.iter().map(|&w| if w < 0.2 { 0.0 } else { w }).collect();
        assert!(agree(&IDS, &vanished, 3, 5), "a weight may be 0");
    }

    #[test]
    fn tokens_that_nobody_changed_stay_as_they_are() {
        let replaced =
            |ids: &[i32], dense: &[f32]| replaced((ids, &WEIGHTS), &super::dense(ids, &WEIGHTS, 3, 5), dense, 3, 5);
        assert_eq!(replaced(&IDS, &DENSE), (IDS.to_vec(), WEIGHTS.to_vec()));
        let nobody = [4, 0, 2, -1, -1, -1];
        let mut dense = dense(&nobody, &WEIGHTS, 3, 5);
        assert_eq!(replaced(&nobody, &dense), (nobody.to_vec(), WEIGHTS.to_vec()));
        dense[4] = 0.75;
        let (ids, weights) = replaced(&nobody, &dense);
        assert_eq!((&ids[..3], &weights[..3]), (&[4, 0, 2][..], &[0.75, 0.3, 0.2][..]), "their order is that of ranks");
        assert_eq!(replaced(&[4, 0, 1, 1, 3, 0], &DENSE).0, [0, 2, 4, 1, 3, 0]);
    }

    #[test]
    fn a_choice_makes_the_weights_it_is_made_from() {
        let (ids, weights) = choice(&DENSE, 3, 5);
        assert_eq!(ids, [0, 2, 4, 0, 1, 3]);
        assert_eq!(dense(&ids, &weights, 3, 5), DENSE);
        let (ids, weights) = choice(&[0.0, 0.0, f32::NAN, 0.0, 1.0], 3, 5);
        assert_eq!((ids, weights[0].is_nan(), &weights[1..]), (vec![2, 4, 0], true, &[1.0, 0.0][..]));
    }
}
