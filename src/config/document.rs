//! JSON whose every key and value knows its place, and the list of what is wrong with it.
//!
//! A value is the slice of the text that it was written as, so its address tells line and column.
//! Objects are read one level at a time and only as deep as the configuration goes: serde_json
//! checks the rest without recursion, so no nesting overflows the stack.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::keys::{Schema, join};
use super::problem::{Problem, Problems, one_line};

/// Longest text that is read. The largest sensible file, with all the overlays that are allowed,
/// has a tenth of it; a wrong file, such as a log, is not worth a hundred thousand complaints.
pub(super) const FILE_MAX: usize = 256 * 1024;

/// The text, and what was found wrong with it so far.
#[derive(Debug)]
pub(super) struct Document<'a> {
    text: &'a str,
    refusals: Vec<Finding>,
    warnings: Vec<Finding>,
}

/// A problem whose offset is not yet turned into line and column: that is done for all at once.
#[derive(Debug)]
struct Finding {
    offset: usize,
    key: String,
    message: String,
}

/// A key or a value: its path and the slice of the text that it was written as.
#[derive(Debug, Clone)]
pub(super) struct Node<'a> {
    pub(super) path: String,
    pub(super) raw: &'a str,
}

/// The member of an object.
#[derive(Debug)]
pub(super) struct Member<'a> {
    pub(super) name: String,
    key: Node<'a>,
    value: Node<'a>,
}

/// An object with none but known keys, each once.
#[derive(Debug)]
pub(super) struct Object<'a> {
    pub(super) node: Node<'a>,
    members: Vec<Member<'a>>,
}

impl<'a> Document<'a> {
    /// The document and its root, where `text` is JSON.
    pub(super) fn open(text: &'a str) -> (Self, Option<Node<'a>>) {
        let mut document = Self { text, refusals: Vec::new(), warnings: Vec::new() };
        let root = document.root();
        (document, root)
    }

    /// What was `parsed`, with the warnings; or all the refusals.
    pub(super) fn close<T>(
        mut self,
        file: &str,
        parsed: Option<T>,
    ) -> Result<(T, Vec<Problem>), Problems> {
        debug_assert!(parsed.is_some() || !self.refusals.is_empty(), "refused without a reason");
        match parsed {
            Some(parsed) if self.refusals.is_empty() => {
                Ok((parsed, located(self.text, file, self.warnings)))
            }
            _ => {
                if self.refusals.is_empty() {
                    let message = "cannot be used: compare it with the documentation".to_owned();
                    self.refusals.push(Finding { offset: 0, key: String::new(), message });
                }
                let refusals = located(self.text, file, self.refusals);
                Err(Problems::new(refusals, located(self.text, file, self.warnings)))
            }
        }
    }

    /// The file cannot be used because of `node`.
    pub(super) fn refuse(&mut self, node: &Node<'_>, message: impl fmt::Display) {
        let finding = self.finding(node, message);
        self.refusals.push(finding);
    }

    /// The file can be used, but `node` is unwise.
    pub(super) fn warn(&mut self, node: &Node<'_>, message: impl fmt::Display) {
        let finding = self.finding(node, message);
        self.warnings.push(finding);
    }

    /// The members of the object `node`.
    pub(super) fn members(&mut self, node: &Node<'a>) -> Option<Vec<Member<'a>>> {
        if !node.raw.starts_with('{') {
            self.refuse(node, format_args!("is {}: write an object in {{ }}", node.shape()));
            return None;
        }
        let Pairs(pairs) = self.deserialize(node)?;
        let mut members = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let mut key = Node { path: node.path.clone(), raw: key.get() };
            if let Some(name) = self.deserialize::<Cow<'_, str>>(&key) {
                key.path = join(&node.path, &name);
                let value = Node { path: key.path.clone(), raw: value.get() };
                members.push(Member { name: name.into_owned(), key, value });
            }
        }
        Some(members)
    }

    /// The object `node` with these `members`; those that `schema` does not know and those given
    /// twice are refused.
    pub(super) fn object(
        &mut self,
        node: &Node<'a>,
        mut members: Vec<Member<'a>>,
        schema: &Schema,
    ) -> Object<'a> {
        let mut seen = HashSet::new();
        for member in &members {
            if !seen.insert(member.name.as_str()) {
                self.refuse(&member.key, "is given more than once: keep one of them");
            } else if !schema.has(&member.name) {
                self.refuse(&member.key, schema.unknown(&member.name));
            }
        }
        members.retain(|member| schema.has(&member.name));
        Object { node: node.clone(), members }
    }

    /// The object `node`, whose keys are those of `schema`.
    pub(super) fn read_object(&mut self, node: &Node<'a>, schema: &Schema) -> Option<Object<'a>> {
        let members = self.members(node)?;
        Some(self.object(node, members, schema))
    }

    /// The values of the list `node`.
    pub(super) fn list(&mut self, node: &Node<'a>) -> Option<Vec<Node<'a>>> {
        if !node.raw.starts_with('[') {
            self.refuse(node, format_args!("is {}: write a list in [ ]", node.shape()));
            return None;
        }
        let values: Vec<&RawValue> = self.deserialize(node)?;
        let numbered = values.into_iter().enumerate();
        Some(
            numbered
                .map(|(index, value)| Node {
                    path: format!("{}[{index}]", node.path),
                    raw: value.get(),
                })
                .collect(),
        )
    }

    /// The value of the key `name`; refused if it is not there, with `remedy`.
    pub(super) fn required(
        &mut self,
        object: &Object<'a>,
        name: &str,
        remedy: &str,
    ) -> Option<Node<'a>> {
        let value = object.value(name);
        if value.is_none() {
            self.refuse_missing(object, name, remedy);
        }
        value
    }

    /// The key `name` is not there; `remedy` says what to write.
    pub(super) fn refuse_missing(&mut self, object: &Object<'a>, name: &str, remedy: &str) {
        let missing = Node { path: join(&object.node.path, name), raw: object.node.raw };
        self.refuse(&missing, format_args!("is missing: {remedy}"));
    }

    /// Reads what has been checked to be JSON already; only an escape such as half a surrogate pair
    /// was not looked at before.
    pub(super) fn deserialize<T: Deserialize<'a>>(&mut self, node: &Node<'a>) -> Option<T> {
        serde_json::from_str(node.raw)
            .map_err(|error| self.refuse(node, format_args!("bad JSON: {}", syntax(&error))))
            .ok()
    }

    fn root(&mut self) -> Option<Node<'a>> {
        let whole = Node { path: String::new(), raw: self.text };
        if self.text.len() > FILE_MAX {
            let size = self.text.len();
            let message = format!("is {size} bytes long: write at most {FILE_MAX}");
            self.refuse(&whole, message);
            return None;
        }
        if self.text.starts_with('\u{feff}') {
            self.refuse(&whole, "starts with a byte order mark: save it as UTF-8 without one");
            return None;
        }
        if self.text.trim().is_empty() {
            self.refuse(&whole, "is empty: write a JSON object in { }");
            return None;
        }
        match serde_json::from_str::<&RawValue>(self.text) {
            Ok(value) => Some(Node { path: String::new(), raw: value.get() }),
            Err(error) => {
                let offset = offset_of(self.text, error.line(), error.column());
                let message = format!("bad JSON: {}", syntax(&error));
                self.refusals.push(Finding { offset, key: String::new(), message });
                None
            }
        }
    }

    fn finding(&self, node: &Node<'_>, message: impl fmt::Display) -> Finding {
        // Every node is a slice of the text.
        let offset = node.raw.as_ptr().addr().saturating_sub(self.text.as_ptr().addr());
        Finding { offset, key: node.path.clone(), message: one_line(&message.to_string()) }
    }
}

impl Node<'_> {
    /// What kind of value it is, for those who expected another.
    pub(super) fn shape(&self) -> &'static str {
        match self.raw.as_bytes().first() {
            Some(b'{') => "an object",
            Some(b'[') => "a list",
            Some(b'"') => "a string",
            Some(b't' | b'f') => "a boolean",
            Some(b'n') => "null",
            _ => "a number",
        }
    }
}

impl<'a> Object<'a> {
    /// The value of the key `name`. Null is as good as absent, as in Mesos.
    pub(super) fn value(&self, name: &str) -> Option<Node<'a>> {
        let member = self.members.iter().find(|member| member.name == name)?;
        (member.value.raw != "null").then(|| member.value.clone())
    }
}

/// The members of an object in the order of the text, the same key as often as it is there.
struct Pairs<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de> Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;

        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(PairsVisitor)
    }
}

/// The findings with their lines and columns, in the order of their places: one walk through the
/// text.
fn located(text: &str, file: &str, mut findings: Vec<Finding>) -> Vec<Problem> {
    findings.sort_by_key(|finding| finding.offset);
    let (mut offset, mut line, mut column) = (0, 1, 1);
    let mut problems = Vec::with_capacity(findings.len());
    for Finding { offset: target, key, message } in findings {
        for letter in text[offset..target].chars() {
            (line, column) = if letter == '\n' { (line + 1, 1) } else { (line, column + 1) };
        }
        offset = target;
        problems.push(Problem { file: one_line(file), line, column, key, message });
    }
    problems
}

/// The offset of what serde_json calls `line` and `column`: it counts columns in bytes, and calls a
/// place right after a line break column 0.
fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let lines = text.split_inclusive('\n');
    let start: usize = lines.take(line.saturating_sub(1)).map(str::len).sum();
    text.floor_char_boundary(start + column.saturating_sub(1))
}

/// What serde_json found, with the remedy.
fn syntax(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or(&text);
    let ours = match reason {
        "trailing comma" => "comma before a closing bracket: remove it",
        "trailing characters" => "text after the end of the object: remove it",
        "key must be a string" => {
            "no key here: write one in double quotes, and no comma after the last member"
        }
        "expected `:`" => "no ':' after the key: write \"key\": value",
        "expected `,` or `}`" => "neither ',' nor '}' after the value: write one of them",
        "expected `,` or `]`" => "neither ',' nor ']' after the value: write one of them",
        "expected value" | "expected ident" => {
            "no value here: write a string in double quotes, a number, true, false, a list or an \
             object, and no comma after the last"
        }
        "invalid number" => "no number: write digits, or a string in double quotes",
        "invalid escape" => "backslash that escapes nothing: write \\\\ for a backslash",
        _ if reason.starts_with("EOF") => "ends too early: close every quote and bracket",
        _ if reason.starts_with("control character") => {
            "line break or control character in a string: close its quotes, or write \\n"
        }
        _ if reason.contains("surrogate") || reason.contains("hex escape") => {
            "half a character: write the character itself instead of \\u"
        }
        other => other,
    };
    ours.to_owned()
}
