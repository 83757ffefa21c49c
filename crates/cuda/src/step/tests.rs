use bytemuck::Pod;
use tessera_model::synth::Like;
use tessera_model::{BlockTables, Row, Sampling};

use super::image::Size;
use super::*;

const WINDOW: usize = 20;

fn config() -> Config {
    Config {
        vocab_size: 100,
        hidden_size: 32,
        intermediate_size: 32,
        num_hidden_layers: 1,
        num_attention_heads: 8,
        num_key_value_heads: 2,
        head_dim: 64,
        num_local_experts: 1,
        num_experts_per_tok: 1,
        max_position_embeddings: 2048,
        sliding_window: WINDOW,
        layer_types: vec![LayerType::Sliding],
        ..Like::Gpt20b.config()
    }
}

const LIMITS: Limits = Limits { full_blocks: 400, sliding_blocks: 50, max_step_tokens: 256 };

fn image() -> Image {
    Image::new(Capacity::new(&config(), &LIMITS, 16, 132).unwrap())
}

/// Block `b` is `first + b` in full layers and `first + b % 7` in sliding ones.
fn row(start: usize, n_tokens: usize, first: u32, n_logits: usize, sampling: Option<Sampling>) -> Row {
    let n = (start + n_tokens).div_ceil(BLOCK_SIZE) as u32;
    let (full, sliding) = ((0..n).map(|b| first + b).collect(), (0..n).map(|b| first + b % 7).collect());
    Row { n_tokens, start, block_tables: BlockTables { full, sliding }, n_logits, sampling }
}

fn batch(rows: Vec<Row>) -> Batch {
    let n_tokens = rows.iter().map(|row| row.n_tokens as u32).sum();
    Batch { tokens: (0..n_tokens).map(|i| i % 90).collect(), rows }
}

fn mixed() -> Batch {
    let draw = Sampling { temperature: 0.5, top_k: 7, top_p: 0.25, seed: u64::MAX - 1 };
    batch(vec![
        row(40, 70, 10, 3, Some(draw)),
        row(1000, 1, 100, 1, None),
        row(0, 1, 0, 0, None),
        row(33, 1, 7, 1, Some(Sampling::GREEDY)),
    ])
}

fn read<T: Pod>(image: &Image, at: usize, n: usize) -> Vec<T> {
    let bytes: &[u8] = bytemuck::cast_slice(&image.words()[at..at + n * size_of::<T>() / 4]);
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

#[test]
fn tokens_have_positions_and_slots() {
    let (mut image, batch) = (image(), mixed());
    image.fill(&batch, None).unwrap();
    let size = image.size();
    assert_eq!(read::<u32>(&image, size.tokens(), 73), batch.tokens);
    let expect: Vec<u32> = (40..110).chain([1000, 0, 33]).collect();
    assert_eq!(read::<u32>(&image, size.positions(), 73), expect);
    let full: Vec<u32> = (40..110).map(|p| 160 + p).chain([1600 + 1000, 0, 112 + 33]).collect();
    assert_eq!(read::<u32>(&image, size.slots(LayerType::Full), 73), full);
    let sliding = read::<u32>(&image, size.slots(LayerType::Sliding), 73);
    assert_eq!(sliding[70], (100 + 62 % 7) * 16 + 1000 % 16);
    assert_eq!(read::<u32>(&image, size.logit_tokens(), 5), [67, 68, 69, 70, 72]);
}

#[test]
fn rows_that_sample_say_how() {
    let (mut image, batch) = (image(), mixed());
    image.fill(&batch, None).unwrap();
    assert_eq!((image.size().n_samplings, image.sampling_rows()), (2, &[0, 3][..]));
    let draw = RowSampling { temperature: 0.5, top_p: 0.25, top_k: 7, logit: 2, seed: u64::MAX - 1, position: 110 };
    let greedy = RowSampling { temperature: 0.0, top_p: 1.0, top_k: 0, logit: 4, seed: 0, position: 34 };
    assert_eq!(read::<RowSampling>(&image, image.size().samplings(), 2), [draw, greedy]);
}

#[test]
fn work_finds_its_blocks() {
    let (mut image, batch) = (image(), mixed());
    image.fill(&batch, None).unwrap();
    let header = image.header();
    let table = |table: u32, block: u32| image.words()[table.wrapping_add(block) as usize];
    let items: Vec<DecodeItem> = read(&image, header.full_items as usize, header.n_full_items as usize);
    assert_eq!(items.iter().map(|item| item.n_splits).sum::<u32>(), 4 + 1 + 1);
    for item in items {
        let row = &batch.rows[item.token as usize - 69];
        assert_eq!(item.position as usize, row.start);
        (0..row.block_tables.full.len())
            .for_each(|b| assert_eq!(table(item.table, b as u32), row.block_tables.full[b]));
    }
    let items: Vec<DecodeItem> = read(&image, header.sliding_items as usize, header.n_sliding_items as usize);
    assert_eq!(
        items.iter().map(|item| (item.first_split, item.n_splits)).collect::<Vec<_>>(),
        [(3, 1), (0, 1), (0, 1)]
    );
    for item in items {
        let row = &batch.rows[item.token as usize - 69];
        let first = (row.start + 1).saturating_sub(WINDOW) / 16;
        for b in first..=row.start / 16 {
            assert_eq!(table(item.table, b as u32), row.block_tables.sliding[b]);
        }
    }
    // A group of 4 heads: 32 tokens a tile, the last ones first.
    let tiles: Vec<PrefillTile> = read(&image, header.tiles as usize, header.n_tiles as usize);
    let places: Vec<_> = tiles.iter().map(|tile| (tile.token, tile.n_tokens, tile.position)).collect();
    assert_eq!(places, [(64, 6, 104), (32, 32, 72), (0, 32, 40)]);
    assert_eq!((table(tiles[0].full_table, 3), table(tiles[0].sliding_table, 2)), (13, 12));
}

#[test]
fn a_bucket_has_one_layout_whatever_its_rows() {
    let mut image = image();
    let mut sizes = Vec::new();
    for n_rows in [1, 3, 8] {
        let rows = (0..n_rows).map(|i| row(i * 300, 1, 20, i % 2, None)).collect();
        image.fill(&batch(rows), Some(8)).unwrap();
        sizes.push(image.size());
        let size = image.size();
        assert_eq!(read::<u32>(&image, size.tokens(), 8)[n_rows..], vec![PAD_TOKEN; 8 - n_rows]);
        for kind in [LayerType::Full, LayerType::Sliding] {
            assert_eq!(read::<u32>(&image, size.slots(kind), 8)[n_rows..], vec![NO_SLOT; 8 - n_rows]);
        }
        assert!(read::<u32>(&image, size.logit_tokens(), 8).iter().all(|&token| token < 8));
        assert!(
            read::<RowSampling>(&image, size.samplings(), 8)[n_rows..]
                .iter()
                .all(|sampling| *sampling == RowSampling::NOBODY)
        );
        assert_eq!(image.header().n_sliding_items as usize, n_rows);
    }
    assert!(sizes.iter().all(|size| *size == Size { n_tokens: 8, n_logits: 8, n_samplings: 8 }));
}

#[test]
fn what_has_no_room_is_refused() {
    let mut image = image();
    let mut check = |batch: Batch, bucket, expect: &str| {
        assert_eq!(image.fill(&batch, bucket).unwrap_err().to_string(), expect);
    };
    let rows = |n: usize| (0..n).map(|_| row(0, 1, 0, 0, None)).collect();
    check(batch(rows(17)), None, "the batch has 17 rows, more than the limit of 16");
    check(batch(vec![row(0, 257, 0, 0, None)]), None, "the batch has 257 tokens, more than the limit of 256");
    check(batch(rows(9)), Some(8), "the bucket is 8: expected 9 to 16");
    check(batch(rows(9)), Some(17), "the bucket is 17: expected 9 to 16");
    check(mixed(), Some(16), "row 0 has 70 tokens: in a padded step, expected 1");
}

#[test]
fn the_largest_steps_fit() {
    let mut image = image();
    let n_words = image.capacity().words();
    let mut check = |rows: Vec<Row>| {
        image.fill(&batch(rows), None).unwrap();
        assert!(image.words().len() <= n_words, "{} of {n_words}", image.words().len());
    };
    check((0..16).map(|_| row(2047, 1, 0, 1, Some(Sampling::GREEDY))).collect());
    check((0..16).map(|_| row(2048 - 16, 16, 0, 16, Some(Sampling::GREEDY))).collect());
    check(vec![row(2048 - 256, 256, 0, 256, Some(Sampling::GREEDY))]);
    check(vec![]);
}
