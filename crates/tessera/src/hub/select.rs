//! Which of a repository's files a checkpoint needs.

use std::collections::BTreeSet;

pub const INDEX: &str = "model.safetensors.index.json";

/// Small files, fetched before any weights.
const SMALL_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    INDEX,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];
const ORIGINAL: &str = "original/";

/// What to fetch, in this order.
#[derive(Debug, PartialEq)]
pub struct Selection {
    pub small: Vec<String>,
    pub weights: Vec<String>,
    /// Folder of the checkpoint within the snapshot: empty, or `original`.
    pub folder: &'static str,
}

/// Chooses from the names that the hub lists. The Hugging Face layout at the top is taken where it is there; `original/`
/// only where nothing else is; `metal/` and other formats never. `None` without weights.
pub fn select(files: &[String]) -> Option<Selection> {
    let is_weights = |name: &str| name.ends_with(".safetensors") && !name.starts_with('.');
    let small = || files.iter().filter(|f| SMALL_FILES.contains(&f.as_str())).cloned();
    let top: Vec<String> = files.iter().filter(|f| !f.contains('/') && is_weights(f)).cloned().collect();
    if !top.is_empty() {
        return Some(Selection { small: small().collect(), weights: top, folder: "" });
    }
    let inner = |f: &String| f.strip_prefix(ORIGINAL).filter(|rest| !rest.contains('/')).map(str::to_owned);
    let weights: Vec<String> = files.iter().filter(|f| inner(f).is_some_and(|f| is_weights(&f))).cloned().collect();
    let beside = files.iter().filter(|f| inner(f).is_some_and(|f| f.ends_with(".json"))).cloned();
    let small = small().chain(beside).collect();
    (!weights.is_empty()).then_some(Selection { small, weights, folder: "original" })
}

/// The weight files that an index names; `None` if it is not an index, or names anything but files beside itself.
pub fn shards_of_index(index: &[u8]) -> Option<BTreeSet<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).ok()?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    shards.iter().all(|shard| super::is_name(shard)).then_some(shards)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[&str], expect: Option<(&[&str], &[&str], &str)>) {
        let files: Vec<String> = files.iter().map(|f| (*f).to_owned()).collect();
        let got = select(&files);
        let got = got.as_ref().map(|s| (s.small.iter().map(String::as_str).collect(), s.weights.clone(), s.folder));
        let owned = |list: &[&str]| list.iter().map(|f| (*f).to_owned()).collect();
        let expect: Option<(Vec<&str>, Vec<String>, &str)> = expect.map(|(s, w, f)| (s.to_vec(), owned(w), f));
        assert_eq!(got, expect);
    }

    #[test]
    fn the_converted_layout_wins_over_original_and_metal() {
        check(
            &[
                ".gitattributes",
                "README.md",
                "config.json",
                "metal/model.bin",
                "model-00000-of-00002.safetensors",
                "model-00001-of-00002.safetensors",
                INDEX,
                "original/config.json",
                "original/model.safetensors",
                "tokenizer.json",
            ],
            Some((
                &["config.json", INDEX, "tokenizer.json"],
                &["model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors"],
                "",
            )),
        );
    }

    #[test]
    fn original_is_taken_alone() {
        check(
            &["tokenizer.json", "original/config.json", "original/dtypes.json", "original/model--00001.safetensors"],
            Some((
                &["tokenizer.json", "original/config.json", "original/dtypes.json"],
                &["original/model--00001.safetensors"],
                "original",
            )),
        );
    }

    #[test]
    fn no_weights_is_no_checkpoint() {
        check(&["config.json", "model.gguf", "metal/model.bin", "a/b/model.safetensors"], None);
    }

    #[test]
    fn an_index_cannot_lead_out_of_its_folder() {
        let index = |shard: &str| format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#);
        assert!(shards_of_index(index("model-1.safetensors").as_bytes()).is_some());
        assert!(shards_of_index(index("../../x").as_bytes()).is_none());
        assert!(shards_of_index(b"[]").is_none());
    }
}
