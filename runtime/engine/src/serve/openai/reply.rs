//! Answers in OpenAI's form.

use std::time::Duration;

use edge_lmm_models::prompt::{ToolCall, ToolSyntax, spaced};
use serde_json::{Map, Value, json};

use super::ask::Endpoint;
use crate::{Answer, AnswerPart, FinishReason, ScoredToken, TokenLogprobs, ToolCalls};

/// The log-probability that is written for a probability of 0, as JSON has no infinity.
const IMPOSSIBLE: f32 = -9999.0;

/// Writes the replies to one request.
#[derive(Debug, Clone)]
pub struct Replies {
    endpoint: Endpoint,
    id: String,
    created: u64,
    model: String,
    /// Characters of the text before, for the positions of `/v1/completions`.
    chars: usize,
    /// Parser of calls, if the request offers functions.
    calls: Option<ToolCalls>,
    /// Number of calls so far.
    called: usize,
}

impl Replies {
    /// Creates the replies to request `id`. `created` is in seconds since 1970.
    pub fn new(endpoint: Endpoint, id: &str, created: u64, model: &str) -> Self {
        let prefix = match endpoint {
            Endpoint::Chat => "chatcmpl",
            Endpoint::Completion => "cmpl",
        };
        Self {
            endpoint,
            id: format!("{prefix}-{id}"),
            created,
            model: model.to_owned(),
            chars: 0,
            calls: None,
            called: 0,
        }
    }

    /// Finds calls of functions in the answer.
    #[must_use]
    pub fn with_calls(mut self, syntax: &ToolSyntax) -> Self {
        self.calls = Some(ToolCalls::new(syntax));
        self
    }

    fn object(&self, is_chunk: bool, choices: Value) -> Value {
        let object = match (self.endpoint, is_chunk) {
            (Endpoint::Chat, true) => "chat.completion.chunk",
            (Endpoint::Chat, false) => "chat.completion",
            (Endpoint::Completion, _) => "text_completion",
        };
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    /// Returns a call in the form of a message, with its number among those of the answer.
    fn call(&self, number: usize, call: &ToolCall) -> Value {
        let id = self.id.rsplit_once('-').map_or(&*self.id, |(_, id)| id);
        json!({
            "id": format!("call_{id}_{number}"),
            "type": "function",
            "function": { "name": call.name, "arguments": spaced(&call.arguments) },
        })
    }

    fn chunk(&self, text: Option<&str>, logprobs: Value, finish_reason: Option<&str>) -> Value {
        let mut choice = json!({
            "index": 0,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        });
        match self.endpoint {
            Endpoint::Chat => {
                let delta = text.map(|text| ("content".to_owned(), text.into()));
                choice["delta"] = Value::Object(delta.into_iter().collect());
            }
            Endpoint::Completion => choice["text"] = text.unwrap_or_default().into(),
        }
        self.object(true, json!([choice]))
    }

    /// Returns the first event of a stream, which names the role; completions have none.
    pub fn first(&self) -> Option<Value> {
        (self.endpoint == Endpoint::Chat).then(|| {
            let mut chunk = self.chunk(Some(""), Value::Null, None);
            chunk["choices"][0]["delta"]["role"] = "assistant".into();
            chunk
        })
    }

    /// Returns the events of further text and the tokens since the last one. Text that may become a
    /// call is held back.
    pub fn delta(&mut self, text: &str, tokens: &[TokenLogprobs]) -> Vec<Value> {
        let logprobs = match tokens {
            [] => Value::Null,
            tokens => self.logprobs(tokens),
        };
        self.chars += text.chars().count();
        let parts = match &mut self.calls {
            Some(calls) => calls.push(text),
            None => vec![AnswerPart::Text(text.to_owned())],
        };
        let mut chunks = self.parts(parts);
        if chunks.is_empty() && !tokens.is_empty() {
            chunks.push(self.chunk(Some(""), Value::Null, None));
        }
        if let Some(first) = chunks.first_mut() {
            first["choices"][0]["logprobs"] = logprobs;
        }
        chunks
    }

    /// Returns an event for each part of an answer.
    fn parts(&mut self, parts: Vec<AnswerPart>) -> Vec<Value> {
        let mut chunks = Vec::with_capacity(parts.len());
        for part in parts {
            chunks.push(match part {
                AnswerPart::Text(text) => self.chunk(Some(&text), Value::Null, None),
                AnswerPart::Call(call) => {
                    let mut value = self.call(self.called, &call);
                    value["index"] = self.called.into();
                    self.called += 1;
                    let mut chunk = self.chunk(None, Value::Null, None);
                    chunk["choices"][0]["delta"] = json!({ "tool_calls": [value] });
                    chunk
                }
            });
        }
        chunks
    }

    /// Returns the events that end the answer, the last one with its figures.
    pub fn last(&mut self, answer: &Answer, queued: Duration) -> Vec<Value> {
        let held = self.calls.take().map(ToolCalls::finish);
        let mut chunks = self.parts(held.unwrap_or_default());
        let reason = finish_reason(answer, self.called > 0);
        let mut chunk = self.chunk(None, Value::Null, Some(reason));
        chunk["edge_lmm"] = figures(answer, queued);
        chunks.push(chunk);
        chunks
    }

    /// Returns the event with the numbers of tokens.
    pub fn usage(&self, answer: &Answer) -> Value {
        let mut chunk = self.object(true, json!([]));
        chunk["usage"] = usage(answer);
        chunk
    }

    /// Returns an event without text: how many requests are ahead, or the progress of a stage.
    pub fn progress(&self, progress: Value) -> Value {
        let mut chunk = self.object(true, json!([]));
        chunk["edge_lmm"] = json!({ "progress": progress });
        chunk
    }

    /// Returns the whole answer. `tokens` are those of all events, if they were asked for.
    pub fn whole(
        &self,
        answer: &Answer,
        tokens: Option<&[TokenLogprobs]>,
        queued: Duration,
    ) -> Value {
        let message = self.message(answer);
        let has_calls = message.get("tool_calls").is_some();
        let mut choice = json!({
            "index": 0,
            "logprobs": tokens.map(|tokens| self.logprobs(tokens)),
            "finish_reason": finish_reason(answer, has_calls),
        });
        match self.endpoint {
            Endpoint::Chat => choice["message"] = message,
            Endpoint::Completion => choice["text"] = answer.text.as_str().into(),
        }
        let mut reply = self.object(false, json!([choice]));
        reply["usage"] = usage(answer);
        reply["edge_lmm"] = figures(answer, queued);
        reply
    }

    /// Returns the message of a whole answer, with its calls.
    fn message(&self, answer: &Answer) -> Value {
        let mut text = String::new();
        let mut calls = Vec::new();
        match self.calls.clone() {
            None => text.push_str(&answer.text),
            Some(mut parser) => {
                let mut parts = parser.push(&answer.text);
                parts.extend(parser.finish());
                for part in parts {
                    match part {
                        AnswerPart::Text(more) => text.push_str(&more),
                        AnswerPart::Call(call) => calls.push(self.call(calls.len(), &call)),
                    }
                }
            }
        }
        let content = match text.is_empty() && !calls.is_empty() {
            true => Value::Null,
            false => text.into(),
        };
        let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        message
    }

    fn logprobs(&self, tokens: &[TokenLogprobs]) -> Value {
        match self.endpoint {
            Endpoint::Chat => {
                let content = tokens.iter().map(|position| {
                    let mut token = entry(&position.token);
                    token["top_logprobs"] = position.top.iter().map(entry).collect();
                    token
                });
                json!({ "content": content.collect::<Vec<_>>(), "refusal": null })
            }
            Endpoint::Completion => self.flat_logprobs(tokens),
        }
    }

    /// The older form: a list for each property.
    fn flat_logprobs(&self, tokens: &[TokenLogprobs]) -> Value {
        let mut offset = self.chars;
        let mut offsets = Vec::new();
        let mut tops = Vec::new();
        for position in tokens {
            offsets.push(offset);
            offset += text(&position.token).chars().count();
            let top: Map<String, Value> = position
                .top
                .iter()
                .map(|token| (text(token), logprob(token).into()))
                .collect();
            tops.push(top);
        }
        let texts: Vec<String> = tokens
            .iter()
            .map(|position| text(&position.token))
            .collect();
        let logprobs: Vec<f32> = tokens
            .iter()
            .map(|position| logprob(&position.token))
            .collect();
        json!({
            "tokens": texts,
            "token_logprobs": logprobs,
            "top_logprobs": tops,
            "text_offset": offsets,
        })
    }
}

fn text(token: &ScoredToken) -> String {
    String::from_utf8_lossy(&token.bytes).into_owned()
}

fn logprob(token: &ScoredToken) -> f32 {
    token.logprob.max(IMPOSSIBLE)
}

fn entry(token: &ScoredToken) -> Value {
    json!({ "token": text(token), "logprob": logprob(token), "bytes": token.bytes })
}

fn finish_reason(answer: &Answer, has_calls: bool) -> &'static str {
    match answer.finish_reason {
        FinishReason::Stop if has_calls => "tool_calls",
        FinishReason::Length | FinishReason::Context => "length",
        FinishReason::Stop | FinishReason::Canceled => "stop",
    }
}

fn usage(answer: &Answer) -> Value {
    let completion = answer.tokens.len();
    json!({
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": answer.prompt_tokens + completion,
        "prompt_tokens_details": { "cached_tokens": answer.reused_tokens },
    })
}

/// The extension field: what this program measures beyond OpenAI's interface.
fn figures(answer: &Answer, queued: Duration) -> Value {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let timing = &answer.timing;
    let stages = timing.stages().iter().filter(|stage| stage.is_top());
    let stages = stages.map(|stage| json!({ "stage": stage.name, "ms": stage.ms() }));
    json!({
        "finish_reason": answer.finish_reason,
        "visual_tokens": answer.visual_tokens,
        "cache": answer.reused_from,
        "reductions": answer.reductions,
        "speculation": answer.speculation,
        "queue_ms": ms(queued),
        "first_token_ms": ms(answer.first_token_after(timing)),
        "tokens_per_second": answer.tokens_per_second(timing),
        "timings": stages.collect::<Vec<_>>(),
    })
}
