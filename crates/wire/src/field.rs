//! Converts single fields. Errors name the field.

use std::fmt::Display;
use std::str::FromStr;

use overlay_types::addr::{Family, Subnet};

use super::error::ConvertError;

/// Formats a value for a text field.
pub(super) fn to_text(value: impl ToString) -> String {
    value.to_string()
}

/// Parses the text of `field`.
pub(super) fn parse_field<T: FromStr<Err: Display>>(
    field: &str,
    text: &str,
) -> Result<T, ConvertError> {
    text.parse().map_err(|error| ConvertError::field(field, error))
}

/// Parses the text of the optional `field`.
pub(super) fn parse_optional<T: FromStr<Err: Display>>(
    field: &str,
    text: Option<&str>,
) -> Result<Option<T>, ConvertError> {
    text.map(|text| parse_field(field, text)).transpose()
}

/// Parses the text of the optional `field` as a subnet of `family`.
pub(super) fn parse_subnet(
    field: &str,
    text: Option<&str>,
    family: Family,
) -> Result<Option<Subnet>, ConvertError> {
    let Some(text) = text else {
        return Ok(None);
    };
    let subnet: Subnet = parse_field(field, text)?;
    if subnet.family() == family {
        Ok(Some(subnet))
    } else {
        Err(ConvertError::field(field, format!("'{text}' is no {family} subnet")))
    }
}

/// Converts each item of the list `field`. Errors name the index of the item.
pub(super) fn convert_list<T, U>(
    field: &str,
    list: &[T],
    convert: impl Fn(&T) -> Result<U, ConvertError>,
) -> Result<Vec<U>, ConvertError> {
    // Without the capacity, the vector would take up to three times the memory while it grows.
    let mut converted = Vec::with_capacity(list.len());
    for (index, item) in list.iter().enumerate() {
        let item = convert(item);
        converted.push(item.map_err(|error| error.within(format_args!("{field}[{index}]")))?);
    }
    Ok(converted)
}
