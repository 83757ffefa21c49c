//! Right answers by family.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::answers::Answer;

/// Counts by family, in the order in which the items name them.
#[derive(Default)]
pub struct Table {
    families: Vec<Family>,
    /// Items that were to be asked.
    asked: usize,
    /// Tokens generated.
    pub tokens: usize,
}

struct Family {
    name: String,
    right: usize,
    items: usize,
}

impl Table {
    /// For items of these families.
    pub fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut table = Self::default();
        for name in names {
            table.asked += 1;
            if !table.families.iter().any(|family| family.name == name) {
                table.families.push(Family { name: name.to_owned(), right: 0, items: 0 });
            }
        }
        table
    }

    /// The item's family is one that the table was made with.
    pub fn add(&mut self, answer: &Answer) {
        let family = &answer.item.family;
        let found = self.families.iter_mut().find(|known| known.name == *family).expect("made with this family");
        found.items += 1;
        found.right += usize::from(answer.right);
        self.tokens += answer.tokens.len();
    }

    /// What is to be said where items were left out.
    pub fn stopped(&self) -> Option<String> {
        let (items, asked) = (self.items(), self.asked);
        (items < asked).then(|| format!("stopped after {items} of {asked} items"))
    }

    pub fn items(&self) -> usize {
        self.families.iter().map(|family| family.items).sum()
    }

    pub fn wrong(&self) -> usize {
        self.families.iter().map(|family| family.items - family.right).sum()
    }

    pub fn to_json(&self, time: Duration) -> Value {
        let row = |right: usize, items: usize| json!({"right": right, "items": items, "accuracy": share(right, items)});
        let families: Map<String, Value> =
            self.families.iter().map(|family| (family.name.clone(), row(family.right, family.items))).collect();
        let all = row(self.items() - self.wrong(), self.items());
        json!({
            "families": families,
            "all": all,
            "asked": self.asked,
            "tokens": self.tokens,
            "seconds": time.as_secs_f64(),
        })
    }
}

fn share(right: usize, items: usize) -> f64 {
    if items == 0 { 0.0 } else { right as f64 / items as f64 }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.families.iter().map(|family| family.name.chars().count()).max().unwrap_or(0).max(6);
        writeln!(f, "| {:width$} |  right |  items |   accuracy |", "family")?;
        writeln!(f, "|{}|-------:|-------:|-----------:|", "-".repeat(width + 2))?;
        for family in &self.families {
            write_row(f, width, &family.name, family.right, family.items)?;
        }
        write_row(f, width, "all", self.items() - self.wrong(), self.items())?;
        self.stopped().map_or(Ok(()), |stopped| writeln!(f, "{stopped}"))
    }
}

fn write_row(f: &mut fmt::Formatter<'_>, width: usize, name: &str, right: usize, items: usize) -> fmt::Result {
    writeln!(f, "| {name:width$} | {right:>6} | {items:>6} | {:>8.2} % |", 100.0 * share(right, items))
}
