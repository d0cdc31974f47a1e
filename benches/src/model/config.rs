//! A Hugging Face `config.json` as named, typed and bounded fields.
//!
//! For reading fields with errors that name file, field and value. Not for knowing what they mean:
//! see `layout`. Invariant: a `null` is the same as an absent field, as it is for those who write
//! these files.

use std::fs::File;
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use super::{ConfigProblem, Dtype, ModelError};

/// Most bytes read of a configuration; real ones have a few thousand.
const MOST_BYTES: u64 = 1 << 20;

/// The fields of one file.
pub(super) struct Config {
    file: String,
    fields: Map<String, Value>,
}

impl Config {
    /// Reads `path`, or `config.json` in it when it is a folder.
    pub(super) fn read(path: &Path) -> Result<Self, ModelError> {
        let path = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        let file = path.display().to_string();
        let text = read_text(&path);
        let text = text.map_err(|source| ModelError::Unreadable { file: file.clone(), source })?;
        Self::parse(file, &text)
    }

    /// Takes the text of a file as its fields.
    pub(super) fn parse(file: String, text: &str) -> Result<Self, ModelError> {
        match fields(text) {
            Ok(fields) => Ok(Self { file, fields }),
            Err(problem) => Err(ModelError::Config { file, problem }),
        }
    }

    /// The error that says so of this file.
    pub(super) fn error(&self, problem: ConfigProblem) -> ModelError {
        ModelError::Config { file: self.file.clone(), problem }
    }

    /// A number that must be there and in `range`.
    pub(super) fn number(
        &self,
        field: &'static str,
        range: RangeInclusive<u32>,
    ) -> Result<u32, ModelError> {
        self.optional_number(field, range)?.ok_or_else(|| self.missing(field))
    }

    /// A number in `range`, if it is there.
    pub(super) fn optional_number(
        &self,
        field: &'static str,
        range: RangeInclusive<u32>,
    ) -> Result<Option<u32>, ModelError> {
        let Some(found) = self.field(field) else { return Ok(None) };
        let value = found.as_u64();
        let value = value.ok_or_else(|| self.ill_typed(field, "a whole number", found))?;
        let small = u32::try_from(value).ok().filter(|small| range.contains(small));
        small.map(Some).ok_or_else(|| self.error(ConfigProblem::OutOfRange { field, value, range }))
    }

    /// True or false, if it is there.
    pub(super) fn flag(&self, field: &'static str) -> Result<Option<bool>, ModelError> {
        let Some(found) = self.field(field) else { return Ok(None) };
        found.as_bool().map(Some).ok_or_else(|| self.ill_typed(field, "true or false", found))
    }

    /// A text that must be there.
    pub(super) fn text(&self, field: &'static str) -> Result<&str, ModelError> {
        self.optional_text(field)?.ok_or_else(|| self.missing(field))
    }

    /// A list of texts, if it is there.
    pub(super) fn texts(&self, field: &'static str) -> Result<Option<Vec<&str>>, ModelError> {
        let Some(found) = self.field(field) else { return Ok(None) };
        let texts = found.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        texts.map(Some).ok_or_else(|| self.ill_typed(field, "a list of texts", found))
    }

    /// An element type, if it is there.
    pub(super) fn dtype(&self, field: &'static str) -> Result<Option<Dtype>, ModelError> {
        let Some(name) = self.optional_text(field)? else { return Ok(None) };
        let unknown = || ConfigProblem::UnknownDtype { field, value: name.to_owned() };
        Dtype::from_name(name).map(Some).ok_or_else(|| self.error(unknown()))
    }

    /// The error for a field that has to be there.
    pub(super) fn missing(&self, field: &'static str) -> ModelError {
        self.error(ConfigProblem::Missing { field })
    }

    fn optional_text(&self, field: &'static str) -> Result<Option<&str>, ModelError> {
        let Some(found) = self.field(field) else { return Ok(None) };
        found.as_str().map(Some).ok_or_else(|| self.ill_typed(field, "a text", found))
    }

    fn field(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    fn ill_typed(&self, field: &'static str, expected: &'static str, found: &Value) -> ModelError {
        self.error(ConfigProblem::IllTyped { field, expected, found: kind(found) })
    }
}

/// At most one byte more than is allowed, so that `fields` can tell.
fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MOST_BYTES + 1).read_to_string(&mut text)?;
    Ok(text)
}

fn fields(text: &str) -> Result<Map<String, Value>, ConfigProblem> {
    if text.len() as u64 > MOST_BYTES {
        return Err(ConfigProblem::TooLarge { limit: MOST_BYTES });
    }
    match serde_json::from_str(text)? {
        Value::Object(fields) => Ok(fields),
        other => Err(ConfigProblem::NotAnObject { found: kind(&other) }),
    }
}

/// What a value is, in words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(number) if number.is_u64() => "a whole number",
        Value::Number(number) if number.is_i64() => "a negative number",
        Value::Number(_) => "a fraction",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
