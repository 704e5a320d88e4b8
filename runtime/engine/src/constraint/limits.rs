//! Limits on constraints that the parser does not check itself: without them, a small schema could
//! take gigabytes or hours.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::Constraint;

/// Longest JSON schema in bytes, or of all schemas of a grammar together.
const MAX_SCHEMA: usize = 128 << 10;
/// Longest regular expression in bytes.
const MAX_REGEX: usize = 16 << 10;
/// Longest grammar in bytes, not counting JSON schemas. Every nesting level takes at least one byte,
/// and the stack of the compilation holds that many levels.
const MAX_GRAMMAR: usize = 32 << 10;
/// Most combinations of alternatives at one place of a schema: `allOf` of several `anyOf` is
/// expanded to all of them.
const MAX_COMBINATIONS: f64 = 20_000.0;
/// Most patterns of property names of an object, which are compared with each other.
const MAX_PATTERNS: usize = 32;
/// Most properties of an object. If many are optional, each may follow each other.
const MAX_PROPERTIES: usize = 1000;
/// Largest number of items or properties that a schema may ask for.
const MAX_COUNT: u64 = 10_000;

/// Checks a constraint before it is compiled.
///
/// # Errors
/// The limit that it exceeds.
pub(super) fn check(constraint: &Constraint) -> Result<(), String> {
    match constraint {
        Constraint::JsonSchema(schema) => check_schemas(std::slice::from_ref(schema)),
        Constraint::JsonObject => Ok(()),
        Constraint::Regex(pattern) => check_length(pattern.len(), MAX_REGEX),
        Constraint::Grammar(text) => {
            let (rest, schemas) = without_schemas(text);
            check_length(rest, MAX_GRAMMAR)?;
            check_schemas(&schemas)
        }
    }
}

fn check_length(bytes: usize, limit: usize) -> Result<(), String> {
    match bytes > limit {
        true => Err(format!(
            "it is {bytes} bytes long, at most {limit} are accepted"
        )),
        false => Ok(()),
    }
}

/// Returns the length of a grammar without its JSON schemas, and these. A schema that is not JSON is
/// left to the parser, which reports its place.
fn without_schemas(grammar: &str) -> (usize, Vec<Value>) {
    let mut length = grammar.len();
    let mut schemas = Vec::new();
    for (at, mark) in grammar.match_indices("%json") {
        let text = &grammar[at + mark.len()..];
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        if let Some(Ok(schema)) = values.next() {
            length = length.saturating_sub(values.byte_offset());
            schemas.push(schema);
        }
    }
    (length, schemas)
}

fn check_schemas(schemas: &[Value]) -> Result<(), String> {
    let bytes = schemas.iter().map(|schema| schema.to_string().len()).sum();
    check_length(bytes, MAX_SCHEMA)?;
    schemas.iter().try_for_each(|schema| {
        let mut walk = Walk {
            root: schema,
            referenced: HashMap::new(),
        };
        walk.combinations(schema).map(|_| ())
    })
}

/// A walk over a schema that counts alternatives.
struct Walk<'s> {
    root: &'s Value,
    /// Alternatives of the schemas that `$ref` names; 1 while they are counted, as in a recursion.
    referenced: HashMap<&'s str, f64>,
}

impl<'s> Walk<'s> {
    /// Counts how many schemas the parser makes of `schema` in the worst case.
    ///
    /// # Errors
    /// The limit that is exceeded.
    fn combinations(&mut self, schema: &'s Value) -> Result<f64, String> {
        let Some(keywords) = schema.as_object() else {
            return Ok(1.0);
        };
        check_counts(keywords)?;
        let mut factors = Vec::new();
        for (keyword, value) in keywords {
            match (keyword.as_str(), value) {
                ("allOf", Value::Array(members)) => {
                    for member in members {
                        factors.push(self.combinations(member)?);
                    }
                }
                ("anyOf" | "oneOf", Value::Array(members)) => {
                    let mut sum = 0.0;
                    for member in members {
                        sum += self.combinations(member)?;
                    }
                    factors.push(sum);
                }
                ("enum", Value::Array(values)) => factors.push(values.len() as f64),
                ("$ref", Value::String(name)) => factors.push(self.referenced(name)?),
                _ => {}
            }
        }
        let several = factors.iter().filter(|&&factor| factor > 1.0).count() > 1;
        let own: f64 = factors.iter().map(|factor| factor.max(1.0)).product();
        if several && own > MAX_COMBINATIONS {
            return Err(format!(
                "allOf, anyOf, oneOf, enum and $ref at one place have more than \
                 {MAX_COMBINATIONS} combinations"
            ));
        }
        let mut inner: f64 = 1.0;
        for child in children(keywords) {
            inner = inner.max(self.combinations(child)?);
        }
        Ok(own * inner)
    }

    /// Counts the alternatives of a schema of the same document.
    fn referenced(&mut self, name: &'s str) -> Result<f64, String> {
        if let Some(&count) = self.referenced.get(name) {
            return Ok(count);
        }
        self.referenced.insert(name, 1.0);
        let pointer = name.strip_prefix('#').unwrap_or_default();
        let count = match self.root.pointer(pointer) {
            Some(schema) => self.combinations(schema)?,
            // The parser reports it.
            None => 1.0,
        };
        self.referenced.insert(name, count);
        Ok(count)
    }
}

/// Checks the numbers of an object's or list's members.
fn check_counts(keywords: &Map<String, Value>) -> Result<(), String> {
    for keyword in ["minItems", "minProperties", "maxItems", "maxProperties"] {
        let count = keywords.get(keyword).and_then(Value::as_u64);
        if count.is_some_and(|count| count > MAX_COUNT) {
            return Err(format!("{keyword} is larger than {MAX_COUNT}"));
        }
    }
    let limits = [
        ("properties", MAX_PROPERTIES),
        ("patternProperties", MAX_PATTERNS),
    ];
    for (keyword, limit) in limits {
        let members = keywords.get(keyword).and_then(Value::as_object);
        let count = members.map_or(0, Map::len);
        if count > limit {
            return Err(format!(
                "{keyword} has {count} members, at most {limit} are accepted"
            ));
        }
    }
    Ok(())
}

/// Returns the schemas of members.
fn children(keywords: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    const MAPS: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
    const LISTS: [&str; 2] = ["prefixItems", "items"];
    const SINGLE: [&str; 3] = ["items", "additionalItems", "additionalProperties"];
    let maps = MAPS.iter().filter_map(|keyword| keywords.get(*keyword));
    let in_maps = maps.filter_map(Value::as_object).flat_map(Map::values);
    let lists = LISTS.iter().filter_map(|keyword| keywords.get(*keyword));
    let in_lists = lists.filter_map(Value::as_array).flatten();
    let single = SINGLE.iter().filter_map(|keyword| keywords.get(*keyword));
    in_maps.chain(in_lists).chain(single)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn error(schema: Value) -> String {
        check(&Constraint::JsonSchema(schema))
            .err()
            .unwrap_or_default()
    }

    #[test]
    fn combinations_are_multiplied_where_schemas_meet() {
        let any = json!({ "anyOf": vec![json!({ "minimum": 1 }); 10] });
        assert_eq!(error(json!({ "allOf": vec![any.clone(); 4] })), "");
        let many = error(json!({ "allOf": vec![any.clone(); 5] }));
        assert!(many.contains("combinations"), "{many}");
        // Alternatives inside alternatives are no product.
        let nested = json!({ "anyOf": vec![json!({ "anyOf": vec![any.clone(); 15] }); 15] });
        assert_eq!(error(nested), "");
        let referenced = json!({
            "$defs": { "a": any },
            "properties": { "x": { "allOf": vec![json!({ "$ref": "#/$defs/a" }); 9] } },
        });
        assert!(error(referenced).contains("combinations"));
        let recursive = json!({ "allOf": [{ "$ref": "#" }, { "type": "object" }] });
        assert_eq!(error(recursive), "");
    }

    #[test]
    fn schemas_in_grammars_are_checked() {
        let any = json!({ "anyOf": vec![json!({ "minimum": 1 }); 100] });
        let grammar = format!("start: %json {}", json!({ "allOf": vec![any; 9] }));
        assert!(check(&Constraint::Grammar(grammar)).is_err());
        let long = format!("start: %json {}", json!({ "enum": vec!["a"; 20_000] }));
        assert_eq!(check(&Constraint::Grammar(long)), Ok(()));
        assert!(check(&Constraint::Grammar(" ".repeat(40_000))).is_err());
    }
}
