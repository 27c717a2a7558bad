//! JSON whose every key and value knows its place, and the list of what is wrong with it.
//!
//! A value is the slice of the text that it was written as, so its address tells line and column.
//! Objects are read one level at a time and only as deep as the configuration goes: serde_json
//! checks the rest without recursion, so no nesting overflows the stack.
//!
//! A document may have several sources: a file, the parameters of a Mesos module, the environment.
//! Keys are unique across all objects, so a parameter is a member of whichever object knows it: it
//! joins that object when it is read, and the readers of objects need not know of it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::keys::{Schema, join};
use super::problem::{Problem, Problems, one_line};
use super::source::{Finding, Findings, Origin, Source, located};

/// Longest text that is read. The largest sensible file, with all the overlays that are allowed,
/// has a tenth of it; a wrong file, such as a log, is not worth a hundred thousand complaints.
pub(super) const FILE_MAX: usize = 256 * 1024;

/// All texts, and what was found wrong with them so far.
#[derive(Debug, Default)]
pub(super) struct Document<'a> {
    /// In the order in which their problems are told.
    sources: Vec<Source<'a>>,
    /// What wins over the members of the objects that know it.
    overrides: Vec<Member<'a>>,
    /// What counts where the object that knows it has no such member.
    fallbacks: Vec<Member<'a>>,
    /// Whether there is a file that could not be read, so that nothing is known to be missing.
    is_partial: bool,
    refusals: Findings,
    warnings: Findings,
}

/// A key or a value: its path and the slice of the text that it was written as.
#[derive(Debug, Clone)]
pub(super) struct Node<'a> {
    pub(super) path: String,
    pub(super) raw: &'a str,
    form: Form,
    /// Index of its source.
    source: usize,
}

/// How a node was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As JSON.
    Json,
    /// As the whole text of its source: a string without its quotes, or else still to be proved to
    /// be JSON.
    Plain,
}

/// The member of an object.
#[derive(Debug, Clone)]
pub(super) struct Member<'a> {
    pub(super) name: String,
    key: Node<'a>,
    pub(super) value: Node<'a>,
}

/// An object with none but known keys, each once in each kind of source.
#[derive(Debug)]
pub(super) struct Object<'a> {
    pub(super) node: Node<'a>,
    /// What wins comes first.
    members: Vec<Member<'a>>,
}

impl<'a> Document<'a> {
    /// The document and its root, where `text`, the content of `file`, is JSON.
    pub(super) fn open(file: &'a str, text: &'a str) -> (Self, Option<Node<'a>>) {
        let mut document = Self::default();
        let whole = document.add(Origin::File(file), String::new(), text);
        let root = document.json(&whole, "object in { }");
        (document, root)
    }

    /// A document of no file, and its root: an object without members.
    pub(super) fn without_file() -> (Self, Node<'a>) {
        let mut document = Self::default();
        let root = document.add_empty();
        (document, root)
    }

    /// The root in place of that of a file which could not be read.
    pub(super) fn root_of_unread(&mut self) -> Node<'a> {
        self.is_partial = true;
        self.add_empty()
    }

    /// Whether this document has no file.
    pub(super) fn has_no_file(&self) -> bool {
        self.sources.first().is_none_or(|source| matches!(source.origin, Origin::NoFile))
    }

    /// The parameter `name` as a member of an object.
    pub(super) fn parameter(&mut self, name: &str, value: &'a str) -> Member<'a> {
        let path = join("", name);
        let value = self.add(Origin::Parameter(path.clone()), path, value);
        Member { name: name.to_owned(), key: value.clone(), value }
    }

    /// Lets `members` win over those of the same name.
    pub(super) fn override_with(&mut self, members: Vec<Member<'a>>) {
        self.overrides.extend(members);
    }

    /// Lets the `value` of an environment variable count where there is no other of `key`. An empty
    /// one is as good as none.
    pub(super) fn fall_back(
        &mut self,
        key: &'static str,
        variable: &'static str,
        value: Option<&'a str>,
    ) {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            let value = self.add(Origin::Variable(variable), key.to_owned(), value);
            self.fallbacks.push(Member { name: key.to_owned(), key: value.clone(), value });
        }
    }

    /// The environment variables that count in `object`.
    pub(super) fn variables_in(&self, object: &Object<'_>) -> Vec<&'static str> {
        let counts = |member: &&Member<'_>| {
            let value = object.value(&member.name);
            value.is_some_and(|value| value.source == member.value.source)
        };
        let variable = |member: &Member<'_>| match self.sources[member.value.source].origin {
            Origin::Variable(name) => Some(name),
            _ => None,
        };
        self.fallbacks.iter().filter(counts).filter_map(variable).collect()
    }

    fn add_empty(&mut self) -> Node<'a> {
        let whole = self.add(Origin::NoFile, String::new(), "{}");
        Node { form: Form::Json, ..whole }
    }

    fn add(&mut self, origin: Origin<'a>, path: String, text: &'a str) -> Node<'a> {
        self.sources.push(Source { origin, text });
        Node { path, raw: text, form: Form::Plain, source: self.sources.len() - 1 }
    }

    /// What was `parsed`, with the warnings; or all the refusals.
    pub(super) fn close<T>(mut self, parsed: Option<T>) -> Result<(T, Vec<Problem>), Problems> {
        debug_assert!(parsed.is_some() || !self.refusals.is_empty(), "refused without a reason");
        let (warnings, _) = located(&self.sources, self.warnings, "warning");
        match parsed {
            Some(parsed) if self.refusals.is_empty() => Ok((parsed, warnings)),
            _ => {
                if self.refusals.is_empty() {
                    let message = "cannot be used: compare it with the documentation".to_owned();
                    let key = String::new();
                    self.refusals.push(|| Finding { source: 0, offset: 0, key, message });
                }
                let (problems, count) = located(&self.sources, self.refusals, "problem");
                Err(Problems::new(problems, count, warnings))
            }
        }
    }

    /// The configuration cannot be used because of `node`.
    pub(super) fn refuse(&mut self, node: &Node<'_>, message: impl fmt::Display) {
        self.refusals.push(|| finding(&self.sources, node, message));
    }

    /// The configuration can be used, but `node` is unwise.
    pub(super) fn warn(&mut self, node: &Node<'_>, message: impl fmt::Display) {
        self.warnings.push(|| finding(&self.sources, node, message));
    }

    /// The members of the object `node`.
    pub(super) fn members(&mut self, node: &Node<'a>) -> Option<Vec<Member<'a>>> {
        let node = &self.json(node, "object in { }")?;
        if !node.raw.starts_with('{') {
            self.refuse(node, format_args!("is {}: write an object in {{ }}", node.shape()));
            return None;
        }
        let Pairs(pairs) = self.deserialize(node)?;
        let mut members = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let mut key = node.part(node.path.clone(), key);
            if let Some(name) = self.deserialize::<Cow<'_, str>>(&key) {
                key.path = join(&node.path, &name);
                let value = node.part(key.path.clone(), value);
                members.push(Member { name: name.into_owned(), key, value });
            }
        }
        Some(members)
    }

    /// Those of `members` that `schema` knows, each once; the others are refused.
    pub(super) fn known(
        &mut self,
        mut members: Vec<Member<'a>>,
        schema: &Schema,
    ) -> Vec<Member<'a>> {
        let mut seen = HashSet::new();
        members.retain(|member| {
            if !seen.insert(member.name.clone()) {
                self.refuse(&member.key, "is given more than once: keep one of them");
            } else if !schema.has(&member.name) {
                let advice = fmt::from_fn(|f| f.write_str(&schema.unknown(&member.name)));
                self.refuse(&member.key, advice);
            } else {
                return true;
            }
            false
        });
        members
    }

    /// The object `node` with those of `members` that `schema` knows, and with what wins over them
    /// or counts beside them.
    pub(super) fn object(
        &mut self,
        node: &Node<'a>,
        members: Vec<Member<'a>>,
        schema: &Schema,
    ) -> Object<'a> {
        let mut members = self.known(members, schema);
        let is_known = |member: &&Member<'_>| schema.has(&member.name);
        members.splice(0..0, self.overrides.iter().filter(is_known).cloned());
        members.extend(self.fallbacks.iter().filter(is_known).cloned());
        Object { node: node.clone(), members }
    }

    /// The object `node`, whose keys are those of `schema`.
    pub(super) fn read_object(&mut self, node: &Node<'a>, schema: &Schema) -> Option<Object<'a>> {
        let members = self.members(node)?;
        Some(self.object(node, members, schema))
    }

    /// The object that is the value of the key `name`, whose keys are those of `schema`. It is also
    /// there where only other sources have some of its keys.
    pub(super) fn inner(
        &mut self,
        object: &Object<'a>,
        name: &str,
        schema: &Schema,
    ) -> Option<Object<'a>> {
        if let Some(node) = object.value(name) {
            return self.read_object(&node, schema);
        }
        let mut others = self.overrides.iter().chain(&self.fallbacks);
        let node = Node { path: join(&object.node.path, name), ..object.node.clone() };
        others
            .any(|member| schema.has(&member.name))
            .then(|| self.object(&node, Vec::new(), schema))
    }

    /// The values of the list `node`.
    pub(super) fn list(&mut self, node: &Node<'a>) -> Option<Vec<Node<'a>>> {
        let node = &self.json(node, "list in [ ]")?;
        if !node.raw.starts_with('[') {
            self.refuse(node, format_args!("is {}: write a list in [ ]", node.shape()));
            return None;
        }
        let values: Vec<&RawValue> = self.deserialize(node)?;
        let numbered = values.into_iter().enumerate();
        Some(
            numbered
                .map(|(index, value)| node.part(format!("{}[{index}]", node.path), value))
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
        if !self.is_partial {
            let missing = Node { path: join(&object.node.path, name), ..object.node.clone() };
            self.refuse(&missing, format_args!("is missing: {remedy}"));
        }
    }

    /// Reads what has been checked to be JSON already; only an escape such as half a surrogate pair
    /// was not looked at before.
    pub(super) fn deserialize<T: Deserialize<'a>>(&mut self, node: &Node<'a>) -> Option<T> {
        serde_json::from_str(node.raw)
            .map_err(|error| self.refuse(node, format_args!("bad JSON: {}", syntax(&error))))
            .ok()
    }

    /// `node` as JSON, if it is; `expected` says what to write.
    fn json(&mut self, node: &Node<'a>, expected: &str) -> Option<Node<'a>> {
        let text = node.raw;
        if node.form == Form::Json {
            return Some(node.clone());
        }
        if text.len() > FILE_MAX {
            let size = text.len();
            self.refuse(node, format_args!("is {size} bytes long: write at most {FILE_MAX}"));
            return None;
        }
        if text.starts_with('\u{feff}') {
            self.refuse(node, "starts with a byte order mark: save it as UTF-8 without one");
            return None;
        }
        if text.trim().is_empty() {
            self.refuse(node, format_args!("is empty: write a JSON {expected}"));
            return None;
        }
        match serde_json::from_str::<&RawValue>(text) {
            Ok(value) => Some(node.part(node.path.clone(), value)),
            Err(error) => {
                let offset = offset_of(text, error.line(), error.column());
                let place = Node { raw: &text[offset..], ..node.clone() };
                let within = match self.sources[node.source].origin {
                    Origin::File(_) => String::new(),
                    // Here line and column of the place tell nothing.
                    _ => format!(" at character {}", text[..offset].chars().count() + 1),
                };
                self.refuse(&place, format_args!("bad JSON{within}: {}", syntax(&error)));
                None
            }
        }
    }
}

impl<'a> Node<'a> {
    /// The text, where it is meant without quotes.
    pub(super) fn plain(&self) -> Option<&'a str> {
        (self.form == Form::Plain).then_some(self.raw)
    }

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

    fn part(&self, path: String, value: &'a RawValue) -> Self {
        Node { path, raw: value.get(), form: Form::Json, source: self.source }
    }

    /// Null is as good as absent, as in Mesos.
    fn is_null(&self) -> bool {
        self.form == Form::Json && self.raw == "null"
    }
}

impl<'a> Object<'a> {
    /// The value of the key `name`.
    pub(super) fn value(&self, name: &str) -> Option<Node<'a>> {
        let mut named = self.members.iter().filter(|member| member.name == name);
        named.find(|member| !member.value.is_null()).map(|member| member.value.clone())
    }

    /// Whether no source has any of its keys.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
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

fn finding(sources: &[Source<'_>], node: &Node<'_>, message: impl fmt::Display) -> Finding {
    let offset = sources[node.source].offset_of(node.raw);
    let message = one_line(&message.to_string());
    Finding { source: node.source, offset, key: node.path.clone(), message }
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
        "trailing characters" => "text after the last bracket: remove it",
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
