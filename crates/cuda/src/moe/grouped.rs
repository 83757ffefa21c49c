//! Rows of tokens grouped by expert: the host's view of `moe_tokens.cuh`.

/// Rows of a group.
pub(crate) const GROUP_ROWS: usize = 8;
/// Columns of a panel.
pub(crate) const PANEL: usize = 64;
/// Elements of a 16-byte piece.
pub(crate) const PIECE: usize = 8;

/// Panels of so many columns.
pub(crate) fn panels(columns: usize) -> usize {
    columns.div_ceil(PANEL)
}

/// Elements of so many rows in panels: the operand of a dense product.
pub(crate) fn panels_len(n_rows: usize, columns: usize) -> usize {
    n_rows.next_multiple_of(GROUP_ROWS) * panels(columns) * PANEL
}

/// The most rows, filled up, that so many slots make: no more experts than slots have one, and each lacks 7 rows at most.
pub(crate) fn grouped_rows(n_slots: usize, experts: usize) -> usize {
    (n_slots + (GROUP_ROWS - 1) * experts.min(n_slots)).next_multiple_of(GROUP_ROWS)
}

/// Each group's place: the first group of its expert, and how many that has.
pub(crate) struct Groups(Vec<(usize, usize)>);

impl Groups {
    /// `counts` `[experts]`.
    pub fn new(counts: &[i32]) -> Self {
        let mut groups = Vec::new();
        for &count in counts {
            let (first, n) = (groups.len(), (count.max(0) as usize).div_ceil(GROUP_ROWS));
            groups.resize(first + n, (first, n));
        }
        Self(groups)
    }

    /// Where element `column` of grouped row `position`, of `n_panels` panels, lies; none if there is no such row.
    pub fn element(&self, position: usize, n_panels: usize, column: usize) -> Option<usize> {
        let (group, r) = (position / GROUP_ROWS, position % GROUP_ROWS);
        let (first, n) = *self.0.get(group)?;
        let (panel, piece) = (column / PANEL, column % PANEL / PIECE);
        let block = first * n_panels + panel * n + (group - first);
        Some((block * GROUP_ROWS + r) * PANEL + (piece ^ r) * PIECE + column % PIECE)
    }
}

#[cfg(test)]
mod tests {
    use super::{Groups, grouped_rows};

    #[test]
    fn no_counts_make_more_rows_than_there_is_room_for() {
        let rows = |counts: &[usize]| counts.iter().map(|count| count.next_multiple_of(8)).sum::<usize>();
        for counts in [[0, 0, 0], [1, 0, 0], [1, 1, 1], [8, 9, 1], [9, 9, 9], [1000, 1, 1]] {
            assert!(rows(&counts) <= grouped_rows(counts.iter().sum(), 3), "{counts:?}");
        }
        assert_eq!((grouped_rows(0, 32), grouped_rows(4, 32), grouped_rows(3, 3)), (0, 32, 24));
    }

    #[test]
    fn every_element_has_a_place_of_its_own() {
        let (counts, n_panels) = ([9, 0, 8, 1], 3);
        let groups = Groups::new(&counts);
        let mut seen = vec![false; 4 * 8 * n_panels * 64];
        for (position, column) in (0..4 * 8).flat_map(|p| (0..n_panels * 64).map(move |c| (p, c))) {
            let at = groups.element(position, n_panels, column).unwrap();
            assert!(!std::mem::replace(&mut seen[at], true), "({position}, {column})");
        }
        assert_eq!(groups.element(4 * 8, n_panels, 0), None);
    }
}
