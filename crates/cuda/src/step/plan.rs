//! Who works on which keys of a step's rows of one token, in full layers.
//!
//! Keys are summed in splits, splits in spans, in an order that depends on positions alone; see `attention.cuh`. So a row can
//! be one piece of work, or one for each span, or one for each split, and its result has the same bits.

use std::cmp::Reverse;

use crate::kernels::attention::SPAN_SPLITS;
pub(super) use crate::kernels::attention::SPLIT;

/// Pieces of work that a multiprocessor needs at once to have enough of the memory's answers under way.
const CHAINS_PER_SM: usize = 3;
/// Of all key-value heads together.
const MAX_HEAD_PARTIALS: usize = 16_384;

/// Partial results that the workspace has room for, of all query heads each.
pub(crate) fn max_partials(kv_heads: usize) -> usize {
    (MAX_HEAD_PARTIALS / kv_heads).max(1)
}

/// A row of one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    pub row: usize,
    pub n_splits: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The longest first.
    pub items: Vec<Run>,
    pub merges: Vec<Merge>,
}

/// Splits of a row that one item has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub row: usize,
    pub first_split: usize,
    pub n_splits: usize,
    /// None if these are all.
    pub part: Option<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub partial: usize,
    pub merge: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Merge {
    pub row: usize,
    pub first_partial: usize,
    pub n_partials: usize,
    /// Partial results that make a span.
    pub per_span: usize,
}

impl Plan {
    /// Whether a row has more than one span.
    pub fn merges_spans(&self) -> bool {
        self.merges.iter().any(|merge| merge.n_partials > merge.per_span)
    }
}

/// Rows that are longer than their share of the work are split: in spans where those that are whole are pieces enough, as partial
/// results are traffic, too; else in as many pieces as there are splits.
pub(super) fn plan(chains: &[Chain], kv_heads: usize, n_sms: usize) -> Plan {
    let total: usize = chains.iter().map(|chain| chain.n_splits).sum();
    let share = (total * kv_heads / (n_sms * CHAINS_PER_SM)).max(1);
    let long = chains.iter().map(|chain| chain.n_splits).filter(|&n| n > share);
    let n_spans: usize = long.map(|n| n / SPAN_SPLITS).sum();
    let run = if n_spans * kv_heads >= n_sms * CHAINS_PER_SM { SPAN_SPLITS } else { 1 };
    let mut plan = Plan::default();
    let mut n_partials = 0;
    for &Chain { row, n_splits } in chains {
        let n_runs = n_splits.div_ceil(run);
        if n_splits <= share || n_runs == 1 || n_partials + n_runs > max_partials(kv_heads) {
            plan.items.push(Run { row, first_split: 0, n_splits, part: None });
            continue;
        }
        let merge = plan.merges.len();
        plan.items.extend((0..n_runs).map(|i| {
            let (first_split, partial) = (i * run, n_partials + i);
            Run { row, first_split, n_splits: run.min(n_splits - first_split), part: Some(Part { partial, merge }) }
        }));
        plan.merges.push(Merge { row, first_partial: n_partials, n_partials: n_runs, per_span: SPAN_SPLITS / run });
        n_partials += n_runs;
    }
    plan.items.sort_by_key(|item| Reverse(item.n_splits));
    plan
}

#[cfg(test)]
mod tests {
    use super::{Chain, Plan, SPAN_SPLITS, max_partials, plan};

    const N_SMS: usize = 132;
    const KV_HEADS: usize = 8;

    fn of(rows: &[(usize, usize)]) -> Plan {
        let n_splits = rows.iter().flat_map(|&(n_rows, n_splits)| std::iter::repeat_n(n_splits, n_rows));
        let chains: Vec<Chain> = n_splits.enumerate().map(|(row, n_splits)| Chain { row, n_splits }).collect();
        let plan = plan(&chains, KV_HEADS, N_SMS);
        check(&plan, &chains);
        plan
    }

    /// Every split is somebody's, every partial result has a place of its own, merges know theirs.
    fn check(plan: &Plan, chains: &[Chain]) {
        let mut partials = vec![false; max_partials(KV_HEADS)];
        for chain in chains {
            let mut runs: Vec<_> = plan.items.iter().filter(|item| item.row == chain.row).collect();
            runs.sort_by_key(|run| run.first_split);
            let mut end = 0;
            for run in &runs {
                assert!(run.first_split == end && run.n_splits > 0, "{run:?}");
                end += run.n_splits;
                match run.part {
                    None => assert_eq!(runs.len(), 1),
                    Some(part) => {
                        assert!(!std::mem::replace(&mut partials[part.partial], true), "{run:?}");
                        let merge = plan.merges[part.merge];
                        assert_eq!((merge.row, merge.n_partials), (chain.row, runs.len()));
                        assert_eq!(
                            run.first_split / SPAN_SPLITS,
                            (part.partial - merge.first_partial) / merge.per_span
                        );
                        assert_eq!(run.first_split / SPAN_SPLITS, (run.first_split + run.n_splits - 1) / SPAN_SPLITS);
                    }
                }
            }
            assert_eq!(end, chain.n_splits);
        }
        assert!(plan.items.is_sorted_by(|a, b| a.n_splits >= b.n_splits));
    }

    #[test]
    fn short_rows_are_one_piece() {
        for rows in [1, 2, 8, 300] {
            let plan = of(&[(rows, 1)]);
            assert_eq!((plan.items.len(), plan.merges.len()), (rows, 0));
        }
    }

    #[test]
    fn few_rows_are_split_and_many_are_not() {
        assert_eq!(of(&[(1, 4)]).items.len(), 4);
        assert_eq!(of(&[(1, 128)]).items.len(), 128);
        assert!(of(&[(1, 128)]).merges_spans() && !of(&[(1, SPAN_SPLITS)]).merges_spans());
        assert_eq!(of(&[(64, 4)]).items.len(), 64);
        assert_eq!(of(&[(256, 4)]).items.len(), 256);
    }

    #[test]
    fn where_spans_are_pieces_enough_rows_are_split_in_those() {
        for rows in [1, 16] {
            let plan = of(&[(rows, 512)]);
            assert_eq!((plan.items.len(), plan.merges[0].per_span), (rows * 512 / SPAN_SPLITS, 1));
            assert!(plan.merges_spans());
        }
        // The last span of each is not whole.
        assert_eq!(of(&[(25, 17)]).items.len(), 25 * 3);
        assert_eq!(of(&[(16, 509), (1, 3)]).items.len(), 16 * 64 + 1);
        // Spans of one split are no pieces to speak of.
        assert_eq!(of(&[(26, 9)]).items.len(), 26 * 9);
    }

    #[test]
    fn a_long_row_among_short_ones_is_split_alone() {
        let plan = of(&[(40, 1), (1, 128), (3, 2)]);
        assert_eq!((plan.items.len(), plan.merges.len()), (40 + 128 + 3, 1));
    }

    #[test]
    fn without_room_rows_stay_whole() {
        let plan = of(&[(40, 1024)]);
        assert!(plan.items.iter().any(|item| item.part.is_none()) && !plan.merges.is_empty());
    }

    #[test]
    fn nothing_is_nothing() {
        assert_eq!(of(&[]), Plan::default());
    }
}
