//! The JSON of requests, as clients send it. Every field may be missing or null.

use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::serve::Stop;

/// The fields of both endpoints. Others are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wire {
    pub model: Option<String>,
    pub messages: Option<Vec<WireMessage>>,
    /// A text, or a list of one.
    pub prompt: Option<Value>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub max_tokens: Option<usize>,
    pub max_completion_tokens: Option<usize>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<i64>,
    pub min_p: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub seed: Option<i64>,
    pub stop: Option<Stop>,
    pub ignore_eos: Option<bool>,
    /// `true` for chats, a number for completions.
    pub logprobs: Option<Value>,
    pub top_logprobs: Option<usize>,
    pub n: Option<u64>,
    pub best_of: Option<u64>,
    pub echo: Option<bool>,
    pub suffix: Option<String>,
    pub logit_bias: Option<Value>,
    pub response_format: Option<Value>,
    pub tools: Option<Vec<WireTool>>,
    /// A text, or the name of a function.
    pub tool_choice: Option<Value>,
    pub parallel_tool_calls: Option<bool>,
    pub functions: Option<Vec<Value>>,
    pub modalities: Option<Vec<String>>,
    pub audio: Option<Value>,
    pub edge_lmm: Option<Extension>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamOptions {
    pub include_usage: Option<bool>,
}

/// Settings of this server.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Extension {
    pub progress: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WireMessage {
    pub role: Option<String>,
    pub content: Option<WireContent>,
    pub tool_calls: Option<Vec<WireCall>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WireTool {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub function: Option<Function>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Function {
    pub name: Option<String>,
    pub description: Option<String>,
    pub parameters: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WireCall {
    pub function: Option<CalledFunction>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CalledFunction {
    pub name: Option<String>,
    /// JSON as text.
    pub arguments: Option<String>,
}

/// Content of a message: text, or parts.
#[derive(Debug)]
pub(super) enum WireContent {
    Text(String),
    Parts(Vec<Part>),
}

impl<'de> Deserialize<'de> for WireContent {
    /// Unlike an untagged enum, reports the error of the part.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Contents;

        impl<'de> Visitor<'de> for Contents {
            type Value = WireContent;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of parts")
            }

            fn visit_str<E>(self, text: &str) -> Result<WireContent, E> {
                Ok(WireContent::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<WireContent, E> {
                Ok(WireContent::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<WireContent, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(parts)).map(WireContent::Parts)
            }
        }
        deserializer.deserialize_any(Contents)
    }
}

/// A part of a message; `type` names the field that it has.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Part {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub text: Option<String>,
    pub image_url: Option<Address>,
    pub video_url: Option<Address>,
    pub input_audio: Option<Sound>,
    pub file: Option<File>,
}

/// An address as `{"url": "..."}` or as text.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Address {
    Object { url: String },
    Text(String),
}

impl Address {
    pub fn into_url(self) -> String {
        match self {
            Self::Object { url } | Self::Text(url) => url,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Sound {
    pub data: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct File {
    pub file_data: Option<String>,
}
