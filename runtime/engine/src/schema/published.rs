//! Comparison of a published JSON Schema with the type that it describes.

use std::fs;
use std::path::Path;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use serde_json::Value;

/// Asserts that a file of `folder` is the schema of `T`, which is identified by `id`. Writes
/// the file instead if `EDGE_LMM_WRITE_SCHEMAS` is set.
pub fn check<T: JsonSchema>(folder: &Path, file: &str, id: &str) {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.insert("$id".to_owned(), id.into());
    RecursiveTransform(closed).transform(&mut schema);
    let text = format!("{:#}\n", schema.as_value());
    let path = folder.join(file);
    if std::env::var_os("EDGE_LMM_WRITE_SCHEMAS").is_some() {
        fs::write(&path, &text).expect("the schema is written");
    }
    let published = fs::read_to_string(&path).expect("the published schema");
    assert!(
        published == text,
        "{file} differs from the types. If the change is intended, write it: \
         set EDGE_LMM_WRITE_SCHEMAS=1 for this test"
    );
}

/// Refuses unknown fields, and turns the links of doc comments into text.
fn closed(schema: &mut schemars::Schema) {
    if schema.get("properties").is_some() {
        schema.insert("additionalProperties".to_owned(), false.into());
    }
    if let Some(Value::String(text)) = schema.get("description") {
        let text = without_links(text);
        schema.insert("description".to_owned(), text.into());
    }
}

/// Replaces Markdown links by their text.
fn without_links(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once("[`") {
        let Some((name, after)) = link.split_once("`]") else {
            break;
        };
        plain += &format!("{before}`{name}`");
        let target = after
            .strip_prefix('(')
            .and_then(|after| after.split_once(')'));
        rest = target.map_or(after, |(_, after)| after);
    }
    plain + rest
}

#[test]
fn links_become_text() {
    assert_eq!(
        without_links("peak above [`held`](Self::held)."),
        "peak above `held`."
    );
    assert_eq!(without_links("[`A`] (b) [c]"), "`A` (b) [c]");
}
