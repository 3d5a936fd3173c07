//! The published schema of the output contract, which every line is held against.

use std::{collections::BTreeMap, sync::LazyLock};

use anyhow::{Context, Result, anyhow};
use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::Value;

const PUBLISHED: &str = include_str!("../../tracer/schema/conntracer.schema.json");

/// The name under which the compiler keeps it: it is at no address.
const LOCATION: &str = "conntracer.schema.json";

/// The schemas of each kind of line: there are two sorts of gaps.
pub struct Schema {
    schemas: Schemas,
    kinds: BTreeMap<String, Vec<SchemaIndex>>,
}

impl Schema {
    /// As readers have it: a later conntracer may say more than it names.
    pub fn published() -> Result<Self> {
        Self::of(serde_json::from_str(PUBLISHED)?)
    }

    /// For a conntracer of its own version, which says nothing that it does not name.
    pub fn strict() -> Result<Self> {
        let mut schema = serde_json::from_str(PUBLISHED)?;
        close(&mut schema);
        Self::of(schema)
    }

    fn of(schema: Value) -> Result<Self> {
        let kinds = kinds(&schema)?;
        let mut schemas = Schemas::new();
        let mut compiler = Compiler::new();
        compiler.enable_format_assertions();
        compiler
            .add_resource(LOCATION, schema)
            .map_err(|error| anyhow!("{error:#}"))?;
        let mut indices: BTreeMap<String, Vec<SchemaIndex>> = BTreeMap::new();
        for (kind, reference) in kinds {
            let index = compiler
                .compile(&format!("{LOCATION}{reference}"), &mut schemas)
                .map_err(|error| anyhow!("{error:#}"))?;
            indices.entry(kind).or_default().push(index);
        }
        Ok(Self {
            schemas,
            kinds: indices,
        })
    }

    /// Whether `line` is one of the contract, of the kind that it says it is.
    pub fn accepts(&self, line: &Value) -> Result<()> {
        let kind = line["kind"].as_str().context("a line without a kind")?;
        let of_kind = self
            .kinds
            .get(kind)
            .with_context(|| format!("no line of the contract is a `{kind}`"))?;
        let mut refusals = Vec::new();
        for index in of_kind {
            match self.schemas.validate(line, *index) {
                Ok(()) => return Ok(()),
                Err(error) => refusals.push(format!("{error:#}")),
            }
        }
        Err(anyhow!("{}\n{line:#}", refusals.join("\n")))
    }
}

/// Holds `line` against the schema as [`Schema::strict`].
pub fn hold(line: &Value) -> Result<()> {
    static SCHEMA: LazyLock<Result<Schema>> = LazyLock::new(Schema::strict);
    match &*SCHEMA {
        Ok(schema) => schema.accepts(line),
        Err(error) => Err(anyhow!("compiling the schema: {error:#}")),
    }
}

/// Every kind that a line can be, and the reference to its schema.
fn kinds(schema: &Value) -> Result<Vec<(String, String)>> {
    schema["oneOf"]
        .as_array()
        .context("no list of lines")?
        .iter()
        .map(|line| {
            let reference = line["$ref"].as_str().context("a line without a name")?;
            let kind = schema
                .pointer(&format!("{}/properties/kind/const", &reference[1..]))
                .and_then(Value::as_str)
                .with_context(|| format!("{reference} names no kind"))?;
            Ok((kind.to_owned(), reference.to_owned()))
        })
        .collect()
}

/// Refuses what is not named, wherever names are given and others are not provided for.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.values_mut().for_each(close);
            if fields.contains_key("properties") {
                fields
                    .entry("additionalProperties")
                    .or_insert(Value::Bool(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}
