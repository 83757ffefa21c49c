//! As much of XML as the drawings use.

use std::collections::BTreeMap;

/// An element of an XML document.
#[derive(Debug, Default)]
pub struct Element {
    pub name: String,
    pub attributes: BTreeMap<String, String>,
    pub text: String,
    pub children: Vec<Element>,
}

/// Reads a document and insists on what XML demands of it: one root, balanced tags, quoted attributes with names of their
/// own, no bare `<` or `&`, and none of the characters that it forbids.
pub fn parse(document: &str) -> Element {
    let allowed =
        |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    assert!(document.chars().all(allowed), "a character that XML does not allow");
    let mut rest = document.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>").expect("a declaration");
    let mut open = vec![Element::default()];
    while let Some((text, after)) = rest.split_once('<') {
        open.last_mut().unwrap().text.push_str(&unescape(text));
        let (tag, after) = after.split_once('>').expect("a tag ends");
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            let element = open.pop().unwrap();
            assert_eq!(element.name, name, "tags are balanced");
            open.last_mut().expect("one root").children.push(element);
            continue;
        }
        let element = start_tag(tag.trim_end_matches('/'));
        match tag.ends_with('/') {
            true => open.last_mut().unwrap().children.push(element),
            false => open.push(element),
        }
    }
    assert_eq!((open.len(), rest.trim()), (1, ""), "all is closed");
    let mut outside = open.pop().unwrap();
    assert_eq!((outside.children.len(), outside.text.trim()), (1, ""));
    outside.children.pop().unwrap()
}

fn start_tag(tag: &str) -> Element {
    let (name, mut rest) = tag.split_once(' ').unwrap_or((tag, ""));
    assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric()), "{tag}");
    let mut attributes = BTreeMap::new();
    while !rest.trim().is_empty() {
        let (name, after) = rest.split_once("=\"").expect("a quoted value");
        let (value, after) = after.split_once('"').expect("a closing quote");
        assert!(after.is_empty() || after.starts_with(' '), "{tag}");
        assert!(attributes.insert(name.trim().to_owned(), unescape(value)).is_none(), "{name} twice: {tag}");
        rest = after;
    }
    Element { name: name.to_owned(), attributes, ..Element::default() }
}

fn unescape(text: &str) -> String {
    let mut parts = text.split('&');
    let mut out = parts.next().unwrap().to_owned();
    for part in parts {
        let (entity, after) = part.split_once(';').unwrap_or_else(|| panic!("a bare & before {part:?}"));
        out.push(match entity {
            "lt" => '<',
            "gt" => '>',
            "amp" => '&',
            "quot" => '"',
            "#39" => '\'',
            _ => panic!("&{entity};"),
        });
        out.push_str(after);
    }
    out
}

impl Element {
    fn all<'a>(&'a self, class: &str, found: &mut Vec<&'a Element>) {
        if self.attributes.get("class").is_some_and(|c| c == class) {
            found.push(self);
        }
        self.children.iter().for_each(|child| child.all(class, found));
    }

    /// Elements of this class, in the order of the document.
    pub fn of_class(&self, class: &str) -> Vec<&Element> {
        let mut found = Vec::new();
        self.all(class, &mut found);
        found
    }

    pub fn title(&self) -> &str {
        &self.children.iter().find(|child| child.name == "title").expect("a title").text
    }

    pub fn number(&self, attribute: &str) -> f64 {
        self.attributes[attribute].parse().unwrap()
    }
}
