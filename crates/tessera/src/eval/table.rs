//! Right answers by family.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::answers::Answer;
use super::check::Ending;

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
    count: Count,
}

#[derive(Clone, Copy, Default)]
struct Count {
    right: usize,
    /// Answers that the limit on their length ended.
    cut_off: usize,
    items: usize,
}

impl Table {
    /// For items of these families.
    pub fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut table = Self::default();
        for name in names {
            table.asked += 1;
            if !table.families.iter().any(|family| family.name == name) {
                table.families.push(Family { name: name.to_owned(), count: Count::default() });
            }
        }
        table
    }

    /// The item's family is one that the table was made with.
    pub fn add(&mut self, answer: &Answer) {
        let family = &answer.item.family;
        let found = self.families.iter_mut().find(|known| known.name == *family).expect("made with this family");
        found.count.items += 1;
        found.count.right += usize::from(answer.right);
        found.count.cut_off += usize::from(answer.ending == Ending::Length);
        self.tokens += answer.tokens.len();
    }

    /// What is to be said where items were left out.
    pub fn stopped(&self) -> Option<String> {
        let (items, asked) = (self.items(), self.asked);
        (items < asked).then(|| format!("stopped after {items} of {asked} items"))
    }

    pub fn items(&self) -> usize {
        self.all().items
    }

    pub fn wrong(&self) -> usize {
        self.all().items - self.all().right
    }

    pub fn cut_off(&self) -> usize {
        self.all().cut_off
    }

    fn all(&self) -> Count {
        self.families.iter().fold(Count::default(), |sum, Family { count, .. }| Count {
            right: sum.right + count.right,
            cut_off: sum.cut_off + count.cut_off,
            items: sum.items + count.items,
        })
    }

    pub fn to_json(&self, time: Duration) -> Value {
        let families: Map<String, Value> =
            self.families.iter().map(|family| (family.name.clone(), family.count.to_json())).collect();
        json!({
            "families": families,
            "all": self.all().to_json(),
            "asked": self.asked,
            "tokens": self.tokens,
            "seconds": time.as_secs_f64(),
        })
    }
}

impl Count {
    fn accuracy(self) -> f64 {
        if self.items == 0 { 0.0 } else { self.right as f64 / self.items as f64 }
    }

    fn to_json(self) -> Value {
        let Self { right, cut_off, items } = self;
        json!({"right": right, "cut_off": cut_off, "items": items, "accuracy": self.accuracy()})
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.families.iter().map(|family| family.name.chars().count()).max().unwrap_or(0).max(6);
        writeln!(f, "| {:width$} |  right | cut off |  items |   accuracy |", "family")?;
        writeln!(f, "|{}|-------:|--------:|-------:|-----------:|", "-".repeat(width + 2))?;
        for Family { name, count } in &self.families {
            write_row(f, width, name, *count)?;
        }
        write_row(f, width, "all", self.all())?;
        self.stopped().map_or(Ok(()), |stopped| writeln!(f, "{stopped}"))
    }
}

fn write_row(f: &mut fmt::Formatter<'_>, width: usize, name: &str, count: Count) -> fmt::Result {
    let (Count { right, cut_off, items }, percent) = (count, 100.0 * count.accuracy());
    writeln!(f, "| {name:width$} | {right:>6} | {cut_off:>7} | {items:>6} | {percent:>8.2} % |")
}
