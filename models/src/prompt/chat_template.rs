//! Chat templates, which render messages to the text of a prompt.
//!
//! A template is probed once, with fixed messages, to find the form of contents that it expects
//! ([`Forms`]). User text does not influence the result.

use std::collections::BTreeMap;

use minijinja::machinery::{CodeGenerator, Instructions, eval, make_string_output, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, context};
use serde_json::{Value, json};

use crate::error::ModelError;
use crate::guard;
use crate::media::MediaKind;
use crate::prompt::message::{Content, Message, Role};
use crate::prompt::template_limits;
use crate::prompt::tools::ToolCall;

/// Maximum length of a template in bytes. Published ones are up to 30 kB. Every nesting level takes
/// at least one byte, and the stack of [`guard::on_large_stack`] holds that many levels.
const MAX_SOURCE: usize = 128 << 10;
/// Maximum characters of an expression or statement, not counting strings. Parsing a chain of
/// constants takes time cubic in its length.
const MAX_TAG: usize = 4 << 10;
/// Maximum length of a prompt in bytes, more than the longest context of a supported model.
const MAX_OUTPUT: usize = 8 << 20;
/// Maximum steps of rendering; 64 bytes of intermediate text also count as one step.
const FUEL: u64 = 1_000_000;
/// Name of the template in error messages.
const NAME: &str = "<string>";

/// Texts of the BOS and EOS tokens, which templates may use.
#[derive(Debug, Clone, Default)]
pub(crate) struct EdgeTokens {
    pub begin: Option<String>,
    pub end: Option<String>,
}

/// A chat template in Jinja.
#[derive(Debug, Clone)]
pub(crate) struct ChatTemplate {
    source: String,
}

impl ChatTemplate {
    /// Checks that `source` can be parsed.
    ///
    /// # Errors
    /// If it cannot, or if it is too large.
    pub fn new(source: &str) -> Result<Self, ModelError> {
        let source = without_training_marks(source);
        check_size(&source).map_err(ModelError::Template)?;
        let template = Self { source };
        template.open(|_| Ok(()))?;
        Ok(template)
    }

    /// Parses the template for `work`, which renders it as often as it needs, on a thread with a
    /// large stack.
    ///
    /// # Errors
    /// If `work` fails.
    pub fn open<T: Send>(
        &self,
        work: impl FnOnce(&Parsed) -> Result<T, ModelError> + Send,
    ) -> Result<T, ModelError> {
        let parsed = || {
            let failed = |error| ModelError::Template(one_line(error));
            let syntax = syntax().map_err(failed)?;
            let tree = parse(&self.source, NAME, syntax).map_err(failed)?;
            let mut compiler = CodeGenerator::new(NAME, &self.source);
            compiler.compile_stmt(&template_limits::guarded(&tree));
            let (instructions, blocks) = compiler.finish();
            work(&Parsed {
                environment: &environment(),
                instructions,
                blocks,
            })
        };
        guard::on_large_stack(parsed).map_err(ModelError::Template)?
    }
}

/// A template that is ready to be rendered.
pub(crate) struct Parsed<'a> {
    environment: &'a Environment<'a>,
    instructions: Instructions<'a>,
    blocks: BTreeMap<&'a str, Instructions<'a>>,
}

impl Parsed<'_> {
    /// Renders messages from [`Forms::values`], ending with the start of the assistant's turn.
    /// Without `tools`, the template sees none, as in transformers.
    ///
    /// # Errors
    /// If the template fails or exceeds a limit.
    pub fn fill(
        &self,
        messages: &[Value],
        tools: &[Value],
        edges: &EdgeTokens,
    ) -> Result<String, ModelError> {
        let tools = (!tools.is_empty()).then(|| minijinja::Value::from(Serde(tools)));
        let context = context! {
            messages => minijinja::Value::from(Serde(messages)),
            tools => tools.unwrap_or_else(|| minijinja::Value::from(())),
            add_generation_prompt => true,
            bos_token => edges.begin.as_deref().unwrap_or_default(),
            eos_token => edges.end.as_deref().unwrap_or_default(),
        };
        let mut prompt = String::new();
        eval(
            self.environment,
            &self.instructions,
            context,
            &self.blocks,
            &mut make_string_output(&mut prompt),
            AutoEscape::None,
        )
        .map_err(|error| ModelError::Template(one_line(error)))?;
        if prompt.len() > MAX_OUTPUT {
            let message = format!("the prompt is longer than {MAX_OUTPUT} bytes");
            return Err(ModelError::Template(message));
        }
        Ok(prompt)
    }
}

/// Configures Jinja as transformers does.
fn syntax() -> Result<SyntaxConfig, Error> {
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    syntax.build()
}

/// Configures what templates may use.
fn environment<'a>() -> Environment<'a> {
    let mut environment = Environment::new();
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    template_limits::install(&mut environment);
    environment.set_fuel(Some(FUEL));
    environment
}

/// Joins the messages of an error and its causes.
fn one_line(error: Error) -> String {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        message.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    message.replace(['\n', '\r'], " ")
}

/// Rejects templates that nest deeper than the stack allows or take long to parse.
fn check_size(source: &str) -> Result<(), String> {
    if source.len() > MAX_SOURCE {
        return Err(format!(
            "it is {} bytes long, at most {MAX_SOURCE} are supported",
            source.len()
        ));
    }
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        rest = &rest[start + 1..];
        if !rest.starts_with(['{', '%']) {
            continue;
        }
        let (len, end) = tag_length(&rest[1..]);
        if len > MAX_TAG {
            return Err(format!(
                "an expression or statement has more than {MAX_TAG} characters outside strings"
            ));
        }
        rest = &rest[1 + end..];
    }
    Ok(())
}

/// Returns the characters of a tag outside strings, and the byte offset of its end.
fn tag_length(tag: &str) -> (usize, usize) {
    let (mut len, mut quote) = (0, None);
    let mut chars = tag.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            Some(_) if c == '\\' => drop(chars.next()),
            Some(end) => quote = (c != end).then_some(end),
            None if matches!(c, '"' | '\'') => quote = Some(c),
            None if tag[at..].starts_with("}}") || tag[at..].starts_with("%}") => {
                return (len, at);
            }
            None => len += 1,
        }
    }
    (len, tag.len())
}

/// The form in which a template expects the content of messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forms {
    /// Roles whose content is a list of items; for the others it is a string.
    lists: Vec<Role>,
    /// Media that the template renders itself from items of a user's list.
    media: Vec<MediaKind>,
    /// `true` if system messages appear in the prompt.
    system: bool,
    /// A prompt without user text, empty if the template failed.
    pub skeleton: String,
}

/// Texts of probe messages: digits, which case and whitespace filters do not change, and quotes,
/// which the printed form of a list escapes.
const SAID: [&str; 3] = ["7\"1'7", "8\"2'8", "9\"3'9"];

impl Forms {
    /// Probes a template, which `fill` renders; `placeholder` returns the text of an image, video
    /// or audio clip.
    pub fn probe(
        fill: impl Fn(&[Value]) -> Result<String, ModelError>,
        placeholder: impl Fn(MediaKind) -> String,
    ) -> Self {
        let said = |role: Role, at: usize| Message::text(role, SAID[at]);
        let mut forms = Self {
            lists: Vec::new(),
            media: Vec::new(),
            system: true,
            skeleton: String::new(),
        };
        let shows = |forms: &Self, messages: &[Message], words: &[&str]| {
            fill(&forms.values(messages, &placeholder))
                .is_ok_and(|text| words.iter().all(|word| text.contains(word)))
        };
        let with_list = |forms: &Self, role: Role| {
            let mut changed = forms.clone();
            changed.lists.push(role);
            changed
        };
        let question = [said(Role::User, 0)];
        let changed = with_list(&forms, Role::User);
        if shows(&changed, &question, &SAID[..1]) {
            forms = changed;
        }
        let turns = [
            said(Role::User, 0),
            said(Role::Assistant, 1),
            said(Role::User, 2),
        ];
        let changed = with_list(&forms, Role::Assistant);
        if shows(&changed, &turns, &SAID) {
            forms = changed;
        }
        let instructed = [said(Role::System, 0), said(Role::User, 1)];
        let changed = with_list(&forms, Role::System);
        if shows(&changed, &instructed, &SAID[..2]) {
            forms = changed;
        } else {
            forms.system = shows(&forms, &instructed, &SAID[..2]);
        }
        for kind in [MediaKind::Image, MediaKind::Video, MediaKind::Audio] {
            let mark = placeholder(kind);
            let shown = [Message {
                role: Role::User,
                content: vec![Content::Media(kind), Content::Text(SAID[0].to_owned())],
            }];
            let mut changed = forms.clone();
            changed.media.push(kind);
            let listed = forms.lists.contains(&Role::User) && !mark.trim().is_empty();
            if listed && shows(&changed, &shown, &[SAID[0], mark.trim()]) {
                forms = changed;
            }
        }
        forms.skeleton = fill(&forms.values(&turns, &placeholder)).unwrap_or_default();
        forms
    }

    /// Converts `messages` to the form that the template expects. Media that it does not render
    /// itself become text.
    pub fn values(
        &self,
        messages: &[Message],
        placeholder: impl Fn(MediaKind) -> String,
    ) -> Vec<Value> {
        let joined;
        let messages = match self.system {
            true => messages,
            false => {
                joined = instructions_in_first_question(messages);
                &joined
            }
        };
        messages
            .iter()
            .map(|message| {
                let content = match self.lists.contains(&message.role) {
                    true => self.list(message, &placeholder),
                    false => json!(message.flat(&placeholder)),
                };
                let mut value = json!({ "role": message.role.as_str(), "content": content });
                let calls = message.content.iter().filter_map(Content::as_tool_call);
                let calls: Vec<Value> = calls.map(ToolCall::value).collect();
                if !calls.is_empty() {
                    value["tool_calls"] = calls.into();
                }
                value
            })
            .collect()
    }

    fn list(&self, message: &Message, placeholder: impl Fn(MediaKind) -> String) -> Value {
        let mut items: Vec<Value> = Vec::new();
        let mut pending = String::new();
        let shown = message.content.iter();
        for content in shown.filter(|content| content.as_tool_call().is_none()) {
            match content.media_kind() {
                Some(kind) if self.media.contains(&kind) => {
                    items.push(json!({ "type": kind.as_str() }));
                }
                Some(kind) => pending.push_str(&placeholder(kind)),
                None => {
                    let text = content.as_text().unwrap_or_default();
                    let text = std::mem::take(&mut pending) + text;
                    items.push(json!({ "type": "text", "text": text }));
                }
            }
        }
        if !pending.is_empty() {
            items.push(json!({ "type": "text", "text": pending }));
        }
        Value::Array(items)
    }
}

/// Prepends system messages to the first question, for templates without system messages.
fn instructions_in_first_question(messages: &[Message]) -> Vec<Message> {
    let (system, mut others): (Vec<Message>, Vec<Message>) = messages
        .iter()
        .cloned()
        .partition(|message| message.role == Role::System);
    let instructions: Vec<String> = system
        .iter()
        .map(|message| message.flat(|_| String::new()))
        .collect();
    let first = others.iter_mut().find(|message| message.role == Role::User);
    match first {
        Some(question) if !instructions.is_empty() => {
            let instructions = instructions.join("\n\n") + "\n\n";
            let text = question
                .content
                .iter_mut()
                .find_map(|content| match content {
                    Content::Text(text) => Some(text),
                    Content::Media(_) | Content::SoundTrack | Content::ToolCall(_) => None,
                });
            match text {
                Some(text) => text.insert_str(0, &instructions),
                None => question.content.push(Content::Text(instructions)),
            }
            others
        }
        _ => messages.to_vec(),
    }
}

/// Removes `{% generation %}` and `{% endgeneration %}`, which mark the text that transformers
/// trains on and print nothing. If such a tag trims whitespace around it or ends its line, whose
/// newline Jinja drops, a comment with the same effect replaces it.
fn without_training_marks(template: &str) -> String {
    let mut cleaned = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let Some((inner, _)) = rest[start + 2..].split_once("%}") else {
            break;
        };
        let end = start + 2 + inner.len() + 2;
        let word = inner.trim_matches(['-', '+']).trim();
        if matches!(word, "generation" | "endgeneration") {
            cleaned.push_str(&rest[..start]);
            cleaned.push_str(&format!(
                "{{#{}{}#}}",
                trim_mark(inner.chars().next()),
                trim_mark(inner.chars().last())
            ));
        } else {
            cleaned.push_str(&rest[..end]);
        }
        rest = &rest[end..];
    }
    cleaned + rest
}

fn trim_mark(edge: Option<char>) -> &'static str {
    match edge {
        Some('-') => "-",
        Some('+') => "+",
        _ => " ",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(source: &str, messages: &[Value]) -> Result<String, ModelError> {
        ChatTemplate::new(source)?.open(|parsed| parsed.fill(messages, &[], &EdgeTokens::default()))
    }

    fn forms(source: &str) -> Forms {
        let template = ChatTemplate::new(source).expect("a template");
        let forms = template.open(|parsed| {
            let fill = |values: &[Value]| parsed.fill(values, &[], &EdgeTokens::default());
            Ok(Forms::probe(fill, |kind| format!("<{}>", kind.as_str())))
        });
        forms.expect("a template")
    }

    #[test]
    fn marks_for_training_print_nothing() {
        let template = "a {% generation %}b{% if x %}c{% endif %} {%- endgeneration -%} d";
        assert_eq!(
            without_training_marks(template),
            "a {#  #}b{% if x %}c{% endif %} {#--#} d"
        );
        for unchanged in ["{% generation", "{%}", "{%}{% %}", "{%%}", "a{%} b %}"] {
            assert_eq!(without_training_marks(unchanged), unchanged);
        }
    }

    #[test]
    fn a_template_shows_which_contents_it_takes() {
        let strings =
            forms("{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}");
        assert_eq!((strings.lists, strings.media), (vec![], vec![]));
        let lists = forms(
            "{% for m in messages %}{% for c in m.content | selectattr('type', 'equalto', 'image') %}<image>\
             {% endfor %}{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ c.text.upper() }}\
             {% endfor %}{% endfor %}",
        );
        assert_eq!(lists.lists, [Role::User, Role::Assistant, Role::System]);
        assert_eq!(lists.media, [MediaKind::Image]);
        let mixed = forms(
            "{% for m in messages %}{% if m.role == 'user' %}{% for c in m.content %}{{ c.text }}{% endfor %}\
             {% else %}{{ m.content + '' }}{% endif %}{% endfor %}",
        );
        assert_eq!((mixed.lists, mixed.system), (vec![Role::User], true));
    }

    #[test]
    fn media_that_a_template_does_not_write_become_text() {
        let forms = forms(
            "{% for m in messages %}{% for c in m.content %}{{ c.text }};{% endfor %}{% endfor %}",
        );
        let message = Message {
            role: Role::User,
            content: vec![
                Content::Media(MediaKind::Image),
                Content::Text("hello".to_owned()),
            ],
        };
        let values = forms.values(&[message], |_| "<image>\n".to_owned());
        let expected = json!([{"type": "text", "text": "<image>\nhello"}]);
        assert_eq!(values[0]["content"], expected);
    }

    #[test]
    fn instructions_are_not_lost() {
        let system = Message::text(Role::System, "be brief");
        let messages = [system, Message::text(Role::User, "hello")];
        for source in [
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}\
             {% endif %}{{ m.content }}{% endfor %}",
        ] {
            let values = forms(source).values(&messages, |_| String::new());
            assert_eq!(fill(source, &values).unwrap(), "be brief\n\nhello");
        }
        let source = "{% for m in messages %}{{ m.content }}|{% endfor %}";
        let values = forms(source).values(&messages, |_| String::new());
        assert_eq!(fill(source, &values).unwrap(), "be brief|hello|");
    }

    /// Each of these templates would overflow a thread's default stack or exhaust memory.
    #[test]
    fn rude_templates_are_refused_or_rendered() {
        let doubled = "{% set n = namespace(x=['a' * 1000]) %}{% for i in range(30) %}\
                       {% set n.x = [n.x, n.x] %}{% endfor %}";
        for (source, error) in [
            (format!("{{{{ {}1 }}}}", "not ".repeat(100_000)), "bytes"),
            (format!("{{{{ {}1 }}}}", "-".repeat(100_000)), "characters"),
            (format!("{{{{ 1{} }}}}", "~1".repeat(60_000)), "characters"),
            // A quote in a raw block hides the following tags from the length check.
            (format!("{{% raw %}}{{{{ ' {{% endraw %}}{{{{ {}1 }}}}", "-".repeat(100_000)), ""),
            (format!("{{% if 0 %}}{}{{% endif %}}", "{%elif 0%}".repeat(13_000)), ""),
            (format!("{doubled}{{{{ n.x }}}}"), "more than"),
            (format!("{doubled}{{{{ n.x | string }}}}"), "more than"),
            (format!("{doubled}{{% set y %}}{{{{ n.x }}}}{{% endset %}}"), "more than"),
            (format!("{doubled}{{{{ n.x | tojson }}}}"), "more than"),
            ("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}".to_owned(), "fuel"),
            ("{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}".to_owned(), "fuel"),
            ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}".to_owned(), "recursion"),
            ("{{ 1".to_owned(), "syntax error"),
            ("{% set n = namespace(x=[]) %}{% for i in range(90) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}".to_owned(), "levels"),
        ] {
            let start: String = source.chars().take(60).collect();
            match fill(&source, &[]) {
                Ok(_) => assert_eq!(error, "", "{start}"),
                Err(found) => assert!(!error.is_empty() && found.to_string().contains(error), "{start}: {found}"),
            }
        }
    }

    /// A value that holds another one many times, or whose text is far longer than the value, is
    /// neither printed nor compared. Without limits, each of these takes gigabytes or hours.
    #[test]
    fn values_of_hidden_size_are_refused() {
        let both = |start: &str, times: usize, step: &str| {
            let [x, y] = ["n.x", "n.y"].map(|name| step.replace("it", name));
            format!(
                "{{% set n = namespace(x={start}, y={start}) %}}{{% for i in range({times}) %}}\
                 {{% set n.x = {x} %}}{{% set n.y = {y} %}}{{% endfor %}}"
            )
        };
        let doubled = both("['a']", 40, "[it, it]");
        let compared = "{{ n.x == n.y }}";
        let printed = "{{ n.x ~ '' }}";
        let cases = [
            (both("['a']", 40, "it + it"), printed),
            (both("['a']", 5, "[it] * 1000"), printed),
            (both("{'a': 1}", 40, "{'a': it, 'b': it}"), compared),
            (both("{'a': 1}", 40, "it | chain(it)"), compared),
            (both("['a']", 99_999, "it[0:]"), printed),
            (doubled.clone(), printed),
            (doubled.clone(), compared),
            (doubled.clone(), "{{ 1 < n.x < n.y }}"),
            (doubled.clone(), "{{ n.x in [n.y] }}"),
            (doubled.clone(), "{{ [n.x] | join(',') }}"),
            (doubled.clone(), "{{ ','.join([n.x]) }}"),
            (doubled.clone(), "{{ n.x | pprint }}"),
            (doubled.clone(), "{{ 'a' | replace('a', n.x) }}"),
            (doubled.clone(), "{{ '%s' | format(n.x) }}"),
            (doubled.clone(), "{{ '{}'.format(n.x) }}"),
            (doubled.clone(), "{{ [n.x] | map('string') | list }}"),
            (doubled.clone(), "{{ {n.x: 1} }}"),
            (doubled, "{{ n.x is eq(n.y) }}"),
            (String::new(), "{{ ['a'] * 99999999 ~ '' }}"),
            (
                String::new(),
                "{% set x %}{{ ['a'] * 99999999 }}{% endset %}",
            ),
            (String::new(), "{{ '{:>900000000}'.format(1) }}"),
            (
                String::new(),
                "{{ ('{0}' * 100000).format('b' * 1000000) }}",
            ),
            (String::new(), "{{ '%900000000d' | format(1) }}"),
            (String::new(), "{{ [[1]] | tojson(900000000) }}"),
            (String::new(), "{{ [[1]] | tojson(indent=900000000) }}"),
            (
                String::new(),
                "{% set n = namespace() %}{% set n.x = n %}{{ n ~ '' }}",
            ),
        ];
        for (made, used) in cases {
            let source = format!("{made}{used}");
            let error = fill(&source, &[]).expect_err(&source).to_string();
            let is_limit = ["fuel", "levels", "unknown filter"]
                .iter()
                .any(|word| error.contains(word));
            assert!(is_limit && !error.contains('\n'), "{source}: {error}");
        }
    }

    /// The limits do not change the results of operations on lists, strings and formats.
    #[test]
    fn limits_change_no_results() {
        for (source, expected) in [
            (
                "{{ [1, 2, 3][1:] }}{{ [1, 2][::-1] | length }}{{ 'abc'[1:] }}",
                "[2, 3]2bc",
            ),
            (
                "{{ [1] + [2] }}{{ [1] * 2 }}{{ 'a' * 3 }}{{ 1 + 2 * 3 }}",
                "[1, 2][1, 1]aaa7",
            ),
            (
                "{{ '%s-%d' | format('x', 3) }}{{ '%(a)s' | format(a=1) }}{{ '{:>3}{a}'.format(1, a='z') }}",
                "x-31  1z",
            ),
            (
                "{{ {'a': [1]} | tojson }}{{ [1] | tojson(indent=1) }}",
                "{\"a\": [1]}[\n 1\n]",
            ),
            (
                "{{ \"<a> & 'b' \\\\u003c\" | tojson }}",
                "\"<a> & 'b' \\\\u003c\"",
            ),
            (
                "{{ 'b' in 'abc' }}{{ 2 not in [1] }}{{ 1 < 2 < 3 }}{{ x is defined }}",
                "TrueTrueTrueFalse",
            ),
            (
                "{{ x | default('d') }}{{ 'a,b'.split(',') | join('-') }}{{ ' a '.strip() }}",
                "da-ba",
            ),
            (
                "{% for i in [1, [2]] recursive %}{{ loop(i) if i is sequence else i }}{% endfor %}",
                "12",
            ),
            (
                "{% macro f(x, y=2) %}{{ x ~ y }}{{ caller() }}{% endmacro %}{% call f('a') %}c{% endcall %}",
                "a2c",
            ),
            (
                "{% set n = namespace(a=[]) %}{% for i in range(3) %}{% set n.a = n.a + [i] %}{% endfor %}{{ n.a }}",
                "[0, 1, 2]",
            ),
            (
                "{% set t %}a{% endset %}{% filter upper %}{{ t }}b{% endfilter %}{% with z = 1 %}{{ z }}{% endwith %}",
                "AB1",
            ),
            (
                "{% for k, v in {'a': 1}.items() if v == 1 %}{{ k }}{{ v }}{% else %}-{% endfor %}",
                "a1",
            ),
        ] {
            assert_eq!(fill(source, &[]).expect(source), expected, "{source}");
        }
    }
}
