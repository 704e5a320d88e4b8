//! Functions that a request offers, and the form that it wants the answer to have.

use edge_lmm_models::prompt::{Tool, ToolCall, ToolSyntax};
use serde_json::{Value, json};

use super::error::ApiError;
use super::wire::{WireCall, WireTool};
use crate::Constraint;
use crate::tool_calls::constraint;

/// Most functions of a request.
const MAX_TOOLS: usize = 128;
/// Longest name of a function.
const MAX_NAME: usize = 64;

/// Functions and the calls that a request wants.
#[derive(Debug, Default)]
pub(super) struct Tools {
    /// The functions that the model sees; none if it may not call any.
    pub tools: Vec<Tool>,
    /// `true` if the answer has to be a call.
    is_required: bool,
    /// `true` if the answer may have several calls.
    is_parallel: bool,
}

impl Tools {
    /// Reads the functions of a request and its `tool_choice`.
    ///
    /// # Errors
    /// If a function or the choice is invalid.
    pub fn new(
        tools: Vec<WireTool>,
        choice: Option<&Value>,
        parallel: Option<bool>,
    ) -> Result<Self, ApiError> {
        if tools.len() > MAX_TOOLS {
            let message = format!("{} tools, at most {MAX_TOOLS} are accepted", tools.len());
            return Err(ApiError::field("tools", message));
        }
        let tools = tools.into_iter().enumerate();
        let mut tools: Vec<Tool> = tools
            .map(|(i, tool)| read_tool(tool, &format!("tools[{i}]")))
            .collect::<Result<_, _>>()?;
        for (i, tool) in tools.iter().enumerate() {
            if tools[..i].iter().any(|other| other.name == tool.name) {
                let message = format!("there are two tools {:?}", tool.name);
                return Err(ApiError::field(&format!("tools[{i}]"), message));
            }
        }
        let is_required = match Choice::new(choice)? {
            Choice::None => {
                tools.clear();
                false
            }
            Choice::Auto => false,
            Choice::Required => true,
            Choice::Named(name) => {
                tools.retain(|tool| tool.name == name);
                true
            }
        };
        if is_required && tools.is_empty() {
            let message = "\"tool_choice\" asks for a tool that \"tools\" does not have";
            return Err(ApiError::field("tool_choice", message));
        }
        Ok(Self {
            tools,
            is_required,
            is_parallel: parallel.unwrap_or(true),
        })
    }

    /// Returns the constraint of the answer. `format` is the one that the request asks for.
    ///
    /// # Errors
    /// If both cannot be combined.
    pub fn constraint(
        &self,
        syntax: &ToolSyntax,
        format: Option<Constraint>,
    ) -> Result<Option<Constraint>, ApiError> {
        let calls = |answer| constraint(syntax, &self.tools, self.is_parallel, answer);
        let object = json!({ "type": "object" });
        match format {
            _ if self.is_required => Ok(Some(calls(None))),
            Some(Constraint::JsonSchema(schema)) if !self.tools.is_empty() => {
                Ok(Some(calls(Some(&schema))))
            }
            Some(Constraint::JsonObject) if !self.tools.is_empty() => {
                Ok(Some(calls(Some(&object))))
            }
            Some(_) if !self.tools.is_empty() => Err(ApiError::unsupported(
                "response_format",
                "a regular expression or a grammar cannot be combined with tools, only JSON",
            )),
            format => Ok(format),
        }
    }

    /// Returns the text that ends the answer after its first call, if there may not be several.
    pub fn stop(&self, syntax: &ToolSyntax) -> Option<String> {
        let is_single = !self.is_parallel && !self.tools.is_empty();
        is_single.then(|| syntax.close.trim().to_owned())
    }
}

/// The value of `tool_choice`.
enum Choice {
    None,
    Auto,
    Required,
    Named(String),
}

impl Choice {
    fn new(choice: Option<&Value>) -> Result<Self, ApiError> {
        match choice {
            None | Some(Value::Null) => return Ok(Self::Auto),
            Some(Value::String(choice)) => match choice.as_str() {
                "none" => return Ok(Self::None),
                "auto" => return Ok(Self::Auto),
                "required" => return Ok(Self::Required),
                _ => {}
            },
            Some(choice) => {
                if let Some(name) = choice["function"]["name"].as_str() {
                    return Ok(Self::Named(name.to_owned()));
                }
            }
        }
        let message = "\"tool_choice\" is not \"none\", \"auto\", \"required\" or {\"type\": \
                       \"function\", \"function\": {\"name\": ...}}";
        Err(ApiError::field("tool_choice", message))
    }
}

fn read_tool(tool: WireTool, place: &str) -> Result<Tool, ApiError> {
    if tool.kind.as_deref().is_some_and(|kind| kind != "function") {
        let message = format!("{place}: only tools of type \"function\" are supported");
        return Err(ApiError::unsupported(place, message));
    }
    let missing = || {
        ApiError::field(
            place,
            format!("{place} has no \"function\" with a \"name\""),
        )
    };
    let function = tool.function.ok_or_else(missing)?;
    let name = function.name.ok_or_else(missing)?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_plain) {
        let message = format!(
            "the name of {place} is not 1 to {MAX_NAME} letters, digits, \"_\", \"-\" and \".\""
        );
        return Err(ApiError::field(place, message));
    }
    let parameters = function.parameters.filter(|schema| !schema.is_null());
    let parameters = parameters.unwrap_or_else(|| json!({ "type": "object", "properties": {} }));
    if !parameters.is_object() {
        let message = format!("the \"parameters\" of {place} are not a JSON schema");
        return Err(ApiError::field(place, message));
    }
    Ok(Tool {
        name,
        description: function.description,
        parameters,
    })
}

/// Reads a call in a message of the conversation so far.
///
/// # Errors
/// If it has no name, or its arguments are not a JSON object.
pub(super) fn read_call(call: WireCall, place: &str) -> Result<ToolCall, ApiError> {
    let invalid = |message: &str| ApiError::field(place, format!("{place} {message}"));
    let function = call
        .function
        .ok_or_else(|| invalid("has no \"function\""))?;
    let name = function.name.ok_or_else(|| invalid("has no name"))?;
    let text = function.arguments.unwrap_or_default();
    let arguments = match text.trim() {
        "" => json!({}),
        text => serde_json::from_str(text).unwrap_or(Value::Null),
    };
    match arguments.is_object() {
        true => Ok(ToolCall { name, arguments }),
        false => Err(invalid("has arguments that are not a JSON object as text")),
    }
}

/// Reads `response_format`.
///
/// # Errors
/// If its type is unknown or something is missing.
pub(super) fn read_format(format: Option<&Value>) -> Result<Option<Constraint>, ApiError> {
    let Some(format) = format.filter(|format| !format.is_null()) else {
        return Ok(None);
    };
    let text = |field: &str| {
        let text = format[field].as_str().map(str::to_owned);
        let message = format!("response_format has no text {field:?}");
        text.ok_or_else(|| ApiError::field("response_format", message))
    };
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Constraint::JsonObject)),
        Some("json_schema") => match &format["json_schema"]["schema"] {
            Value::Null => Err(ApiError::field(
                "response_format",
                "response_format has no schema: expected {\"type\": \"json_schema\", \
                 \"json_schema\": {\"name\": ..., \"schema\": {...}}}",
            )),
            schema => Ok(Some(Constraint::JsonSchema(schema.clone()))),
        },
        Some("regex") => Ok(Some(Constraint::Regex(text("pattern")?))),
        Some("grammar") => Ok(Some(Constraint::Grammar(text("grammar")?))),
        _ => Err(ApiError::field(
            "response_format",
            "the type of response_format is none of text, json_object, json_schema, regex and \
             grammar",
        )),
    }
}
