//! JSON nodes with their locations in the source text, and the list of problems.
//!
//! A value is a slice of the source text, so its address gives line and column. Objects are read
//! one level at a time and only as deep as the configuration requires. serde_json checks the rest
//! without recursion, so no nesting overflows the stack.
//!
//! A document may have several sources: a file, the parameters of a Mesos module, the environment.
//! No two objects of one module have the same key, so a parameter belongs to exactly one object.
//! [`Document::object`] adds the parameter to this object. For readers of objects, parameters and
//! keys of the file are the same.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use overlay_types::secret;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::keys::{Schema, join};
use super::problem::{Problem, Problems};
use super::source::{Finding, Findings, Origin, Source, locate};
use super::text::one_line;

/// Maximum length of a text. The largest sensible file, with the maximum number of overlays, has a
/// tenth of this length. A wrong file, such as a log, must not cause 100,000 problems.
pub(super) const FILE_MAX: usize = 256 * 1024;

/// All source texts, and the problems found in them so far.
#[derive(Debug, Default)]
pub(super) struct Document<'a> {
    /// Sources in the order in which their problems are reported.
    sources: Vec<Source<'a>>,
    /// Members that take precedence over members of the file with the same name.
    overrides: Vec<Member<'a>>,
    /// Members that apply if no other source has a member with the same name.
    fallbacks: Vec<Member<'a>>,
    /// Whether a file could not be read. Then no key can be reported as missing.
    is_partial: bool,
    refusals: Findings,
    warnings: Findings,
}

/// A key or a value: its path and its slice of the source text.
#[derive(Debug, Clone)]
pub(super) struct Node<'a> {
    pub(super) path: String,
    pub(super) raw: &'a str,
    encoding: Encoding,
    /// Index of the source.
    source: usize,
}

/// How the text of a node is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    /// Valid JSON.
    Json,
    /// The entire text of the source: a string without quotes, or text that is not yet known to be
    /// valid JSON.
    Plain,
}

/// The member of an object.
#[derive(Debug, Clone)]
pub(super) struct Member<'a> {
    pub(super) name: String,
    key: Node<'a>,
    pub(super) value: Node<'a>,
}

/// An object that has only known keys. Each kind of source has each key at most once.
#[derive(Debug)]
pub(super) struct Object<'a> {
    pub(super) node: Node<'a>,
    /// Members in order of precedence, the highest first.
    members: Vec<Member<'a>>,
}

impl<'a> Document<'a> {
    /// Parses `text`, the content of `file`. Returns the document, and its root if `text` is JSON.
    pub(super) fn parse(file: &'a str, text: &'a str) -> (Self, Option<Node<'a>>) {
        let mut document = Self::default();
        let content = document.add(Origin::File(file), String::new(), text);
        let root = document.read_json(&content, "object in { }");
        (document, root)
    }

    /// Creates a document without a file. Its root is an object without members.
    pub(super) fn without_file() -> (Self, Node<'a>) {
        let mut document = Self::default();
        let root = document.add_empty();
        (document, root)
    }

    /// Creates an empty root that replaces the root of a file that could not be read.
    pub(super) fn replace_unreadable_root(&mut self) -> Node<'a> {
        self.is_partial = true;
        self.add_empty()
    }

    /// Whether no file was given for this document.
    pub(super) fn has_no_file(&self) -> bool {
        self.sources.first().is_none_or(|source| matches!(source.origin, Origin::NoFile))
    }

    /// Adds the parameter `name` as a source and returns it as a member.
    pub(super) fn add_parameter(&mut self, name: &str, value: &'a str) -> Member<'a> {
        let path = join("", name);
        let value = self.add(Origin::Parameter(path.clone()), path, value);
        Member { name: name.to_owned(), key: value.clone(), value }
    }

    /// Adds members that take precedence over members of the file with the same name.
    pub(super) fn add_overrides(&mut self, members: Vec<Member<'a>>) {
        self.overrides.extend(members);
    }

    /// Adds the `value` of an environment variable, which applies if no other source has `key`. An
    /// empty value counts as unset.
    pub(super) fn add_fallback(
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

    /// Returns the environment variables whose values apply in `object`.
    pub(super) fn variables_in(&self, object: &Object<'_>) -> Vec<&'static str> {
        let applies = |member: &&Member<'_>| {
            let value = object.value(&member.name);
            value.is_some_and(|value| value.source == member.value.source)
        };
        let variable = |member: &Member<'_>| match self.sources[member.value.source].origin {
            Origin::Variable(name) => Some(name),
            _ => None,
        };
        self.fallbacks.iter().filter(applies).filter_map(variable).collect()
    }

    fn add_empty(&mut self) -> Node<'a> {
        let content = self.add(Origin::NoFile, String::new(), "{}");
        Node { encoding: Encoding::Json, ..content }
    }

    fn add(&mut self, origin: Origin<'a>, path: String, text: &'a str) -> Node<'a> {
        self.sources.push(Source { origin, text });
        Node { path, raw: text, encoding: Encoding::Plain, source: self.sources.len() - 1 }
    }

    /// Returns the `parsed` value with the warnings, or all refusals.
    pub(super) fn finish<T>(mut self, parsed: Option<T>) -> Result<(T, Vec<Problem>), Problems> {
        debug_assert!(parsed.is_some() || !self.refusals.is_empty(), "refused without a reason");
        let (warnings, _) = locate(&self.sources, self.warnings, "warning");
        match parsed {
            Some(parsed) if self.refusals.is_empty() => Ok((parsed, warnings)),
            _ => {
                if self.refusals.is_empty() {
                    let message = "cannot be used: compare it with the documentation".to_owned();
                    let key = String::new();
                    self.refusals.push(|| Finding { source: 0, offset: 0, key, message });
                }
                let (problems, count) = locate(&self.sources, self.refusals, "problem");
                Err(Problems::new(problems, count, warnings))
            }
        }
    }

    /// Adds a refusal: the configuration cannot be used because of `node`.
    pub(super) fn refuse(&mut self, node: &Node<'_>, message: impl fmt::Display) {
        self.refusals.push(|| finding(&self.sources, node, message));
    }

    /// Adds a warning: the configuration can be used, but `node` is unwise.
    pub(super) fn warn(&mut self, node: &Node<'_>, message: impl fmt::Display) {
        self.warnings.push(|| finding(&self.sources, node, message));
    }

    /// Returns the members of the object `node`.
    pub(super) fn read_members(&mut self, node: &Node<'a>) -> Option<Vec<Member<'a>>> {
        let node = &self.read_json(node, "object in { }")?;
        if !node.raw.starts_with('{') {
            self.refuse(node, format_args!("is {}: write an object in {{ }}", node.type_name()));
            return None;
        }
        let Pairs(pairs) = self.deserialize(node)?;
        let mut members = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let mut key = node.child(node.path.clone(), key);
            if let Some(name) = self.deserialize::<Cow<'_, str>>(&key) {
                key.path = join(&node.path, &name);
                let value = node.child(key.path.clone(), value);
                members.push(Member { name: name.into_owned(), key, value });
            }
        }
        Some(members)
    }

    /// Returns the `members` that `schema` knows. Refuses duplicate and unknown members.
    pub(super) fn known_members(
        &mut self,
        mut members: Vec<Member<'a>>,
        schema: &Schema,
    ) -> Vec<Member<'a>> {
        let mut seen = HashSet::new();
        members.retain(|member| {
            if !seen.insert(member.name.clone()) {
                self.refuse(&member.key, "is given more than once: keep one of them");
            } else if !schema.has(&member.name) {
                let message = fmt::from_fn(|f| f.write_str(&schema.describe_unknown(&member.name)));
                self.refuse(&member.key, message);
            } else {
                return true;
            }
            false
        });
        members
    }

    /// Builds the object `node` from the `members` that `schema` knows, plus the overrides and
    /// fallbacks that `schema` knows.
    pub(super) fn object(
        &mut self,
        node: &Node<'a>,
        members: Vec<Member<'a>>,
        schema: &Schema,
    ) -> Object<'a> {
        let mut members = self.known_members(members, schema);
        let is_known = |member: &&Member<'_>| schema.has(&member.name);
        members.splice(0..0, self.overrides.iter().filter(is_known).cloned());
        members.extend(self.fallbacks.iter().filter(is_known).cloned());
        Object { node: node.clone(), members }
    }

    /// Reads the object `node`, which has the keys of `schema`.
    pub(super) fn read_object(&mut self, node: &Node<'a>, schema: &Schema) -> Option<Object<'a>> {
        let members = self.read_members(node)?;
        Some(self.object(node, members, schema))
    }

    /// Reads the object at the key `name`, which has the keys of `schema`. The object also exists
    /// if only overrides or fallbacks have some of its keys.
    pub(super) fn nested_object(
        &mut self,
        object: &Object<'a>,
        name: &str,
        schema: &Schema,
    ) -> Option<Object<'a>> {
        if let Some(node) = object.value(name) {
            return self.read_object(&node, schema);
        }
        let mut additions = self.overrides.iter().chain(&self.fallbacks);
        let node = Node { path: join(&object.node.path, name), ..object.node.clone() };
        additions
            .any(|member| schema.has(&member.name))
            .then(|| self.object(&node, Vec::new(), schema))
    }

    /// Returns the values of the list `node`.
    pub(super) fn read_list(&mut self, node: &Node<'a>) -> Option<Vec<Node<'a>>> {
        let node = &self.read_json(node, "list in [ ]")?;
        if !node.raw.starts_with('[') {
            self.refuse(node, format_args!("is {}: write a list in [ ]", node.type_name()));
            return None;
        }
        let values: Vec<&RawValue> = self.deserialize(node)?;
        let numbered = values.into_iter().enumerate();
        Some(
            numbered
                .map(|(index, value)| node.child(format!("{}[{index}]", node.path), value))
                .collect(),
        )
    }

    /// Returns the value of the key `name`. Refuses a missing key with `remedy`.
    pub(super) fn require(
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

    /// Refuses the missing key `name`. `remedy` says what to write.
    pub(super) fn refuse_missing(&mut self, object: &Object<'a>, name: &str, remedy: &str) {
        if !self.is_partial {
            let missing = Node { path: join(&object.node.path, name), ..object.node.clone() };
            self.refuse(&missing, format_args!("is missing: {remedy}"));
        }
    }

    /// Deserializes a node that is already checked to be JSON. Only escapes, such as half a
    /// surrogate pair, are not checked before.
    pub(super) fn deserialize<T: Deserialize<'a>>(&mut self, node: &Node<'a>) -> Option<T> {
        serde_json::from_str(node.raw)
            .map_err(|error| {
                self.refuse(node, format_args!("bad JSON: {}", describe_syntax_error(&error)))
            })
            .ok()
    }

    /// Returns `node` as JSON, if its text is JSON. `expected` says what to write instead.
    fn read_json(&mut self, node: &Node<'a>, expected: &str) -> Option<Node<'a>> {
        let text = node.raw;
        if node.encoding == Encoding::Json {
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
            Ok(value) => Some(node.child(node.path.clone(), value)),
            Err(error) => {
                let offset = offset_of(text, error.line(), error.column());
                let rest = Node { raw: &text[offset..], ..node.clone() };
                let within = match self.sources[node.source].origin {
                    Origin::File(_) => String::new(),
                    // The location of a parameter or variable has no line and column.
                    _ => format!(" at character {}", text[..offset].chars().count() + 1),
                };
                self.refuse(
                    &rest,
                    format_args!("bad JSON{within}: {}", describe_syntax_error(&error)),
                );
                None
            }
        }
    }
}

impl<'a> Node<'a> {
    /// Returns the text if it is a string without quotes.
    pub(super) fn plain(&self) -> Option<&'a str> {
        (self.encoding == Encoding::Plain).then_some(self.raw)
    }

    /// Returns the JSON type of the value, with its article, for a message.
    pub(super) fn type_name(&self) -> &'static str {
        match self.raw.as_bytes().first() {
            Some(b'{') => "an object",
            Some(b'[') => "a list",
            Some(b'"') => "a string",
            Some(b't' | b'f') => "a boolean",
            Some(b'n') => "null",
            _ => "a number",
        }
    }

    fn child(&self, path: String, value: &'a RawValue) -> Self {
        Node { path, raw: value.get(), encoding: Encoding::Json, source: self.source }
    }

    /// Whether the value is null, which counts as absent, as in Mesos.
    fn is_null(&self) -> bool {
        self.encoding == Encoding::Json && self.raw == "null"
    }
}

impl<'a> Object<'a> {
    /// Returns the value of the key `name`.
    pub(super) fn value(&self, name: &str) -> Option<Node<'a>> {
        let mut named = self.members.iter().filter(|member| member.name == name);
        named.find(|member| !member.value.is_null()).map(|member| member.value.clone())
    }

    /// Whether no source has a key of this object.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}

/// The members of an object in the order of the text, including duplicate keys.
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

/// Begins the messages about text that is no JSON.
const BAD_JSON: &str = "bad JSON";

/// Keys whose values may contain a password. Their readers never quote a value.
const ADDRESS_KEYS: [&str; 3] = ["master", "store", "url"];

/// The message about a text that another key than an address has, and that may contain a password.
const NOT_REPEATED: &str = "looks like an address with a password, which this key does not take, \
                            and is not repeated: write the address as 'master', 'store' or 'url'";

fn finding(sources: &[Source<'_>], node: &Node<'_>, message: impl fmt::Display) -> Finding {
    let offset = sources[node.source].offset_of(node.raw);
    let mut message = one_line(&message.to_string());
    let key = node.path.rsplit('.').next().unwrap_or_default();
    let is_address = ADDRESS_KEYS.contains(&key);
    if !is_address && has_secret_text(&sources[node.source], node, &message) {
        NOT_REPEATED.clone_into(&mut message);
    }
    Finding { source: node.source, offset, key: node.path.clone(), message }
}

/// Whether `node` is a text that may contain a password, and that `message` may quote.
fn has_secret_text(source: &Source<'_>, node: &Node<'_>, message: &str) -> bool {
    match node.encoding {
        // The messages about a whole file, or about bad JSON, do not quote it.
        Encoding::Plain => {
            let is_value = matches!(source.origin, Origin::Parameter(_) | Origin::Variable(_));
            is_value && !message.starts_with(BAD_JSON) && secret::may_contain(node.raw)
        }
        Encoding::Json if node.raw.starts_with('"') => {
            let text = serde_json::from_str::<Cow<'_, str>>(node.raw);
            secret::may_contain(text.as_deref().unwrap_or(node.raw))
        }
        Encoding::Json => false,
    }
}

/// Converts `line` and `column` of serde_json into an offset. serde_json counts columns in bytes;
/// the position right after a line break is column 0.
fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let lines = text.split_inclusive('\n');
    let start: usize = lines.take(line.saturating_sub(1)).map(str::len).sum();
    text.floor_char_boundary(start + column.saturating_sub(1))
}

/// Translates an error of serde_json into a message with a remedy.
fn describe_syntax_error(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or(&text);
    let message = match reason {
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
    message.to_owned()
}
