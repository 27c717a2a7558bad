//! Generates the Rust types of `proto/*.proto` and, from the same descriptors, two features that
//! prost does not have: the check for missing required fields and the JSON form of Mesos.
//!
//! prost silently decodes a missing `required` field as its default. So this script makes every
//! field `optional` before prost reads the descriptors, which does not change the encoded bytes.
//! The generated `missing_required` names the missing fields.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use heck::{ToSnakeCase as _, ToUpperCamelCase as _};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

const PROTOS: [&str; 10] = [
    "overlay.proto",
    "messages.proto",
    "record.proto",
    "master_info.proto",
    PEERS,
    PROBLEMS,
    PROBES,
    AUTHENTICATION,
    LOG,
    REPLICA,
];
/// Files whose messages have neither a JSON form nor required fields.
const WITHOUT_MESSAGE_TRAITS: [&str; 6] = [PEERS, PROBLEMS, PROBES, AUTHENTICATION, LOG, REPLICA];
const PEERS: &str = "peers.proto";
const PROBLEMS: &str = "problems.proto";
const PROBES: &str = "probes.proto";
const AUTHENTICATION: &str = "authentication.proto";
const LOG: &str = "log.proto";
const REPLICA: &str = "replica.proto";

type Error = Box<dyn std::error::Error>;

#[expect(clippy::disallowed_methods, reason = "a build script writes the generated code")]
fn main() -> Result<(), Error> {
    let directory = Path::new("proto");
    for proto in PROTOS {
        println!("cargo:rerun-if-changed={}", directory.join(proto).display());
    }
    let mut descriptors = protox::compile(PROTOS, [directory])?;
    let code = generate_impls(&descriptors);
    make_all_optional(&mut descriptors);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    prost_build::Config::new().include_file("protobuf.rs").compile_fds(descriptors)?;
    fs::write(out.join("messages.rs"), code)?;
    Ok(())
}

fn make_all_optional(descriptors: &mut FileDescriptorSet) {
    fn make_optional(message: &mut DescriptorProto) {
        for field in &mut message.field {
            if field.label() == Label::Required {
                field.set_label(Label::Optional);
            }
        }
        message.nested_type.iter_mut().for_each(make_optional);
    }
    descriptors.file.iter_mut().flat_map(|file| &mut file.message_type).for_each(make_optional);
}

/// Generates the trait implementations of every message of every file.
fn generate_impls(descriptors: &FileDescriptorSet) -> String {
    let mut code = String::new();
    for file in
        descriptors.file.iter().filter(|file| !WITHOUT_MESSAGE_TRAITS.contains(&file.name()))
    {
        let package = file.package().replace('.', "::");
        for message in &file.message_type {
            generate_message_impls(&mut code, &package, file.package(), message);
        }
    }
    code
}

fn generate_message_impls(code: &mut String, module: &str, scope: &str, message: &DescriptorProto) {
    let name = message.name();
    // prost names types with heck: VxLANInfo becomes VxLanInfo.
    let type_name = name.to_upper_camel_case();
    let nested = format!("{module}::{}", name.to_snake_case());
    for nested_message in &message.nested_type {
        generate_message_impls(code, &nested, &format!("{scope}.{name}"), nested_message);
    }
    // Mesos prints JSON keys in byte order, because stout keeps them in a std::map.
    let mut fields: Vec<&FieldDescriptorProto> = message.field.iter().collect();
    fields.sort_by_key(|field| field.name());
    let body = |line: fn(&FieldDescriptorProto) -> String| {
        fields.iter().map(|field| line(field)).collect::<String>()
    };
    writeln!(
        code,
        "impl Message for {module}::{type_name} {{
    const NAME: &'static str = \"{scope}.{name}\";
    fn missing_required(&self, _missing: &mut Missing<'_>) {{
{}    }}
}}
impl JsonMessage for {module}::{type_name} {{
    fn write_json(&self, _object: &mut ObjectWriter<'_>) {{
{}    }}
    fn read_json(_object: &ObjectReader<'_>) -> Result<Self, JsonError> {{
        Ok(Self {{
{}        }})
    }}
}}",
        body(missing_line),
        body(write_line),
        body(read_line),
    )
    .expect("writing to a String never fails");
}

fn missing_line(field: &FieldDescriptorProto) -> String {
    let name = field.name();
    let is_message = field.r#type() == Type::Message;
    match field.label() {
        Label::Required if is_message => {
            format!("        _missing.required_message(\"{name}\", self.{name}.as_ref());\n")
        }
        Label::Required => {
            format!("        _missing.required(\"{name}\", self.{name}.is_some());\n")
        }
        Label::Optional if is_message => {
            format!("        _missing.message(\"{name}\", self.{name}.as_ref());\n")
        }
        Label::Repeated if is_message => {
            format!("        _missing.messages(\"{name}\", &self.{name});\n")
        }
        _ => String::new(),
    }
}

fn write_line(field: &FieldDescriptorProto) -> String {
    let name = field.name();
    let repeated = field.label() == Label::Repeated;
    match field.r#type() {
        Type::Message if repeated => {
            format!("        _object.messages(\"{name}\", &self.{name});\n")
        }
        Type::Message => format!("        _object.message(\"{name}\", self.{name}.as_ref());\n"),
        // Mesos prints the default of an unset field that declares one (stout, protobuf.hpp).
        Type::Enum if field.default_value.is_some() => {
            format!("        _object.string(\"{name}\", Some(self.{name}().as_str_name()));\n")
        }
        Type::String => format!("        _object.string(\"{name}\", self.{name}.as_deref());\n"),
        _ if field.default_value.is_some() => {
            format!("        _object.scalar(\"{name}\", Some(self.{name}()));\n")
        }
        _ => format!("        _object.scalar(\"{name}\", self.{name});\n"),
    }
}

fn read_line(field: &FieldDescriptorProto) -> String {
    let name = field.name();
    let repeated = field.label() == Label::Repeated;
    match field.r#type() {
        Type::Message if repeated => {
            format!("            {name}: _object.messages(\"{name}\")?,\n")
        }
        Type::Message => format!("            {name}: _object.message(\"{name}\")?,\n"),
        Type::String => format!("            {name}: _object.string(\"{name}\")?,\n"),
        Type::Bool => format!("            {name}: _object.bool(\"{name}\")?,\n"),
        Type::Enum => {
            let path = enum_path(field.type_name());
            format!(
                "            {name}: _object.enumeration(\"{name}\", {path}::from_str_name)?,\n"
            )
        }
        _ => format!("            {name}: _object.number(\"{name}\")?,\n"),
    }
}

/// Converts the protobuf name `.a.b.Outer.Inner` into the path `a::b::outer::Inner` of prost.
fn enum_path(type_name: &str) -> String {
    let names: Vec<&str> = type_name.trim_start_matches('.').split('.').collect();
    let (last, outer) = names.split_last().expect("a type has a name");
    let outer: Vec<String> = outer.iter().map(|name| name.to_snake_case()).collect();
    format!("{}::{last}", outer.join("::"))
}
