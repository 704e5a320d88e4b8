//! Reports that the program writes: their JSON Schemas, their pages, and comparisons of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Map, Value};

/// Path of a file of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

/// Runs the program; the demo's model replaces `MODEL`.
fn run(arguments: &[&str]) -> Output {
    let model = repository("models/demo/qwen2vl-tiny.bpk");
    let arguments = arguments.iter().map(|&argument| match argument {
        "MODEL" => model.as_os_str(),
        other => other.as_ref(),
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge-lmm"));
    command
        .args(arguments)
        .output()
        .expect("the program starts")
}

/// Standard output of the program.
fn text(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Output of the program as JSON.
fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&text(arguments)).expect("JSON")
}

/// A validator of the keywords that the published schemas use.
struct Schema(Value);

impl Schema {
    fn open(name: &str) -> Self {
        let path = repository("docs/schema").join(name);
        let text = fs::read_to_string(path).expect("the schema");
        Self(serde_json::from_str(&text).expect("the schema is JSON"))
    }

    /// Returns the first violation.
    fn check(&self, value: &Value) -> Result<(), String> {
        self.check_part(&self.0, value, "")
    }

    fn check_part(&self, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
        let keywords = match schema {
            Value::Bool(true) => return Ok(()),
            Value::Bool(false) => return Err(format!("{place}: not allowed")),
            Value::Object(keywords) => keywords,
            other => panic!("{place}: invalid schema {other}"),
        };
        for (keyword, argument) in keywords {
            let holds = match keyword.as_str() {
                "$schema" | "$id" | "$defs" | "title" | "description" | "format" => true,
                "$ref" => {
                    let path = argument.as_str().and_then(|path| path.strip_prefix('#'));
                    let target = path.and_then(|path| self.0.pointer(path));
                    self.check_part(target.expect("a definition"), value, place)?;
                    true
                }
                "type" => match argument {
                    Value::Array(names) => names.iter().any(|name| has_type(value, name)),
                    name => has_type(value, name),
                },
                "const" => value == argument,
                "enum" => list(argument).contains(value),
                "minimum" => value.as_f64().is_none_or(|n| Some(n) >= argument.as_f64()),
                "anyOf" | "oneOf" => {
                    let mut options = list(argument).iter();
                    options.any(|option| self.check_part(option, value, place).is_ok())
                }
                "minItems" => value.as_array().is_none_or(|v| v.len() >= number(argument)),
                "maxItems" => value.as_array().is_none_or(|v| v.len() <= number(argument)),
                "prefixItems" => {
                    let items = value.as_array().into_iter().flatten();
                    for (item, schema) in items.zip(list(argument)) {
                        self.check_part(schema, item, place)?;
                    }
                    true
                }
                "items" => {
                    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check_part(argument, item, &format!("{place}/{i}"))?;
                    }
                    true
                }
                "required" => {
                    let missing = |name: &&Value| value.get(name.as_str().unwrap_or("")).is_none();
                    if let Some(name) = list(argument).iter().find(missing) {
                        return Err(format!("{place}: {name} is missing"));
                    }
                    true
                }
                "properties" | "additionalProperties" => {
                    self.check_properties(keywords, value, place)?;
                    true
                }
                other => panic!("{place}: the validator does not know `{other}`"),
            };
            if !holds {
                return Err(format!("{place}: {value} violates {keyword}: {argument}"));
            }
        }
        Ok(())
    }

    fn check_properties(
        &self,
        keywords: &Map<String, Value>,
        value: &Value,
        place: &str,
    ) -> Result<(), String> {
        for (name, property) in value.as_object().into_iter().flatten() {
            let known = keywords.get("properties").and_then(|known| known.get(name));
            let other = keywords.get("additionalProperties");
            if let Some(schema) = known.or(other) {
                self.check_part(schema, property, &format!("{place}/{name}"))?;
            }
        }
        Ok(())
    }
}

fn list(argument: &Value) -> &[Value] {
    argument.as_array().expect("a list")
}

fn number(argument: &Value) -> usize {
    argument.as_u64().expect("a number") as usize
}

fn has_type(value: &Value, name: &Value) -> bool {
    match name.as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        other => panic!("unknown type {other:?}"),
    }
}

/// Asserts that a report is valid, and no longer is with another field or without one.
fn assert_valid(schema: &Schema, report: &Value, within: &str) {
    assert_eq!(schema.check(report), Ok(()));
    let change = |change: fn(&mut Map<String, Value>)| {
        let mut report = report.clone();
        let part = report.pointer_mut(within).expect("the part");
        change(part.as_object_mut().expect("an object"));
        schema.check(&report)
    };
    let error = change(|part| {
        part.insert("more".to_owned(), Value::Null);
    });
    assert_eq!(error, Err(format!("{within}/more: not allowed")));
    let error = change(|part| {
        let last = part.keys().next_back().expect("a field").clone();
        part.remove(&last);
    });
    assert!(error.is_err_and(|error| error.contains("is missing")));
    let error = change(|part| part.values_mut().for_each(|value| *value = "?".into()));
    assert!(error.is_err_and(|error| error.contains("violates")));
}

/// Returns the JSON of a page, which must refer to nothing outside of it.
fn data(page: &Path) -> Value {
    let page = fs::read_to_string(page).expect("the page");
    for reference in ["http:", "https:", "url(", "@import", "src="] {
        assert!(!page.contains(reference), "{reference}");
    }
    let (_, rest) = page.split_once("id=\"data\">").expect("the data");
    let (json, _) = rest.split_once("</script>").expect("its end");
    serde_json::from_str(json).expect("JSON")
}

/// Options that make profiles quick.
const QUICK: [&str; 3] = ["--ignore-eos", "--no-roofline", "--json"];

#[test]
fn profiles_are_valid_and_have_pages() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("page.html");
    let report = json(&[
        "profile",
        "MODEL",
        "--image-size",
        "56,112",
        "--prompt",
        "</script><script>\u{2028}",
        "--turn",
        "and now?",
        "--repeat",
        "2",
        "--max-tokens",
        "3",
        "--json",
        "--html",
        page.to_str().expect("UTF-8"),
    ]);
    let schema = Schema::open("profile.schema.json");
    assert_valid(&schema, &report, "/runs/0/modules/0");
    assert_valid(&schema, &report, "/environment");
    assert_eq!(report["runs"].as_array().map(Vec::len), Some(4));
    assert_eq!(data(&page), report);
}

#[test]
fn experiments_are_valid_and_have_pages() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("page.html");
    let schema = Schema::open("experiment.schema.json");
    for experiment in [
        &["resolution", "--values", "56,112"][..],
        &["module-profile"],
    ] {
        let options = [
            "MODEL",
            "--repeat",
            "1",
            "--warmup",
            "0",
            "--max-tokens",
            "2",
            "--json",
            "--html",
            page.to_str().expect("UTF-8"),
        ];
        let report = json(&[&["bench"], experiment, &options].concat());
        assert_valid(&schema, &report, "/table/columns/0");
        assert_eq!(data(&page)["reports"][0], report);
    }
}

#[test]
fn profiles_are_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (before, after, page) = (path("before.json"), path("after.json"), path("page.html"));
    for (file, threads, tokens) in [(&before, "1", "2"), (&after, "2", "3")] {
        let options = ["profile", "MODEL", "--repeat", "2", "--threads", threads];
        let profile = text(&[&options[..], &QUICK, &["--max-tokens", tokens][..]].concat());
        fs::write(file, profile).expect("the profile is written");
    }
    let compare = ["profile", "--compare", &before, &after];
    let changes = json(&[&compare[..], &["--json", "--html", &page]].concat());
    assert_eq!(data(Path::new(&page)), changes);
    let profile = &changes["profiles"][0];
    let warnings = profile["warnings"].to_string();
    for warning in [
        "different threads: 1 -> 2",
        "different number of generated tokens",
    ] {
        assert!(warnings.contains(warning), "{warnings}");
    }
    let modules = profile["runs"][0]["modules"].as_array().expect("modules");
    let decode = modules.iter().find(|change| change["name"] == "decode");
    let decode = decode.expect("the stage");
    let value = |field: &str| decode[field].as_f64().expect("a number");
    let difference = value("after") - value("before");
    assert!((value("difference") - difference).abs() < 1e-9, "{decode}");
    assert!(value("noise") >= 0.0);

    let table = text(&["profile", "--compare", &before, &before]);
    assert!(
        table.contains("within noise") && !table.contains("warning:"),
        "{table}"
    );

    fs::write(&after, "{}").expect("the file is written");
    let refused = run(&compare);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{error}");
    assert!(
        error.contains("after.json") && error.contains("`format`"),
        "{error}"
    );
}
