//! Limits of what a chat template may compute.
//!
//! The engine's fuel pays for instructions, bytes and items, but not for what an operation visits
//! inside its operands. A list can hold another one several times, so that a few instructions make
//! a value whose text has gigabytes, or that takes hours to compare. [`guarded`] therefore changes
//! the syntax tree of a template: every operand that an operation may visit as a whole first
//! passes through the filter [`VISIT`], which pays for the visit or refuses it. Sequences that are
//! computed when they are read become lists at once ([`SETTLE`]), as long as the fuel pays for them.
//!
//! A value that is only passed on (assignments, items of literals, loops) needs no check. Constants
//! are folded when the tree is compiled, so this happens before.

use minijinja::formatting::{FormatStyle, format};
use minijinja::machinery::ast::{
    AutoEscape, BinOp, BinOpKind, Break, Call, CallArg, CallBlock, Compare, CompareOp, Const,
    Continue, Do, EmitExpr, EmitRaw, Expr, Filter, FilterBlock, ForLoop, GetAttr, GetItem, IfCond,
    IfExpr, List, Macro, Map, Set, SetBlock, Slice, Spanned, Stmt, Template, Test, Tuple, UnaryOp,
    UnaryOpKind, Var, WithBlock,
};
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};
use minijinja_contrib::pycompat;

/// Name of the filter that pays for the visit of a value.
const VISIT: &str = "visit";
/// Name of the filter that [`settle`] is.
const SETTLE: &str = "settle";

/// Most bytes of the texts inside one value, each counted as often as it is found.
const MAX_BYTES: usize = 8 << 20;
/// Deepest list or map.
const MAX_DEPTH: usize = 64;
/// Bytes that the engine creates for one fuel.
const BYTES_PER_FUEL: u64 = 64;
/// Blanks of a level that `pprint` writes.
const PPRINT_INDENT: usize = 4;

/// The filters and methods that limit a template, and those whose limits the engine lacks.
pub(crate) fn install(environment: &mut Environment) {
    environment.set_formatter(|output, state, value| {
        visit(state, value)?;
        minijinja::escape_formatter(output, state, value)
    });
    environment.add_filter(VISIT, |state: &State, value: Value| {
        visit(state, &value).map(|_| value)
    });
    environment.add_filter(SETTLE, settle);
    environment.add_filter(
        "format",
        |state: &State, text: &str, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            check_format(state, text, &args)?;
            format(FormatStyle::Printf, text, &args)
        },
    );
    environment.add_filter("tojson", to_json);
    environment.add_filter("pprint", |state: &State, value: &Value| {
        check_indent(state, value, PPRINT_INDENT).map(|()| filters::pprint(value))
    });
    // Jinja2 does not have these. The maps that the filter links are visited without any fuel.
    environment.remove_filter("chain");
    environment.remove_global("debug");
    environment.set_unknown_method_callback(|state, value, name, args| {
        if let ("format", Some(text)) = (name, value.as_str()) {
            check_format(state, text, args)?;
        }
        pycompat::unknown_method_callback(state, value, name, args)
    });
}

/// Size of a value, as [`visit`] counts it.
#[derive(Default)]
struct Size {
    /// Bytes of texts.
    bytes: usize,
    /// Members of lists and maps.
    members: usize,
}

/// Takes one fuel for every value inside `value`, as often as it is found there.
///
/// # Errors
/// If the fuel is used up, or the value is too large or too deep.
fn visit(state: &State, value: &Value) -> Result<Size, Error> {
    let refused = |limit: String| {
        let message = format!("a value has more than {limit}");
        Error::new(ErrorKind::InvalidOperation, message)
    };
    let mut size = Size::default();
    let mut open = vec![(value.clone(), 0)];
    while let Some((value, depth)) = open.pop() {
        size.bytes += value.as_str().map_or(0, str::len);
        if size.bytes > MAX_BYTES {
            return Err(refused(format!("{MAX_BYTES} bytes")));
        }
        let kind = value.kind();
        if !matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
            continue;
        }
        if depth == MAX_DEPTH {
            return Err(refused(format!("{MAX_DEPTH} levels")));
        }
        for item in value.try_iter()? {
            state.consume_fuel(1)?;
            size.members += 1;
            if kind == ValueKind::Map {
                open.push((value.get_item(&item)?, depth + 1));
            }
            open.push((item, depth + 1));
        }
    }
    Ok(size)
}

/// Pays for a text that `text` makes of `args`: each field may name the same one, and ask for a
/// width.
///
/// # Errors
/// If the fuel is used up, or an argument is too large.
fn check_format(state: &State, text: &str, args: &[Value]) -> Result<(), Error> {
    let mut field = 0;
    for value in args {
        field += visit(state, value)?.bytes as u64;
    }
    let numbers = text.split(|c: char| !c.is_ascii_digit());
    let widest = numbers
        .filter(|digits| !digits.is_empty())
        .map(|digits| digits.parse().unwrap_or(u64::MAX))
        .max();
    field = field.saturating_add(widest.unwrap_or_default());
    let fields = text.matches(['{', '%']).count() as u64;
    state.consume_fuel(field.saturating_mul(fields) / BYTES_PER_FUEL)
}

/// `tojson` of the engine.
fn to_json(
    state: &State,
    value: &Value,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    let named: Option<Value> = options.peek("indent")?;
    let wanted = indent.as_ref().or(named.as_ref()).and_then(Value::as_usize);
    check_indent(state, value, wanted.unwrap_or_default())?;
    let json = filters::tojson(value, indent, options)?;
    Ok(Value::from(without_html_escapes(
        json.as_str().unwrap_or_default(),
    )))
}

/// Restores the characters that the engine's `tojson` escapes for HTML, which that of transformers
/// does not.
fn without_html_escapes(json: &str) -> String {
    const ESCAPES: [(&str, char); 4] = [
        ("u003c", '<'),
        ("u003e", '>'),
        ("u0026", '&'),
        ("u0027", '\''),
    ];
    let mut plain = String::with_capacity(json.len());
    let mut rest = json;
    while let Some((before, escape)) = rest.split_once('\\') {
        plain.push_str(before);
        let known = ESCAPES.iter().find(|(code, _)| escape.starts_with(code));
        rest = match known {
            Some((code, c)) => {
                plain.push(*c);
                &escape[code.len()..]
            }
            None => {
                // The character after a backslash is no start of another escape.
                let length = escape.chars().next().map_or(0, char::len_utf8);
                plain.push('\\');
                plain.push_str(&escape[..length]);
                &escape[length..]
            }
        };
    }
    plain + rest
}

/// Pays for a text in which each member has a line that begins with up to `indent` blanks for each
/// of its levels.
///
/// # Errors
/// If the fuel is used up, or the value is too large.
fn check_indent(state: &State, value: &Value, indent: usize) -> Result<(), Error> {
    let members = visit(state, value)?.members as u64;
    let line = (MAX_DEPTH as u64).saturating_mul(indent as u64);
    // Braces have a line, too.
    state.consume_fuel(line.saturating_mul(2 * members + 2) / BYTES_PER_FUEL)
}

/// Makes a list of a lazy sequence, such as a slice or a sum of lists. Lazy sequences of lazy
/// sequences would take more time with every level, which the fuel does not pay for.
///
/// # Errors
/// If the fuel is used up.
fn settle(state: &State, value: Value) -> Result<Value, Error> {
    if value.kind() != ValueKind::Iterable {
        return Ok(value);
    }
    let mut items = Vec::new();
    for item in value.try_iter()? {
        // Half of `BYTES_PER_FUEL`.
        state.consume_fuel(u64::from(items.len() % 2 == 0))?;
        items.push(item);
    }
    Ok(items.into())
}

/// The template with [`VISIT`] where an operand may be visited.
pub(crate) fn guarded<'a>(stmt: &Stmt<'a>) -> Stmt<'a> {
    match stmt {
        Stmt::Template(node) => Stmt::Template(like(
            node,
            Template {
                children: body(&node.children),
            },
        )),
        Stmt::EmitExpr(node) => Stmt::EmitExpr(like(
            node,
            EmitExpr {
                expr: expr(&node.expr),
            },
        )),
        Stmt::EmitRaw(node) => Stmt::EmitRaw(like(node, EmitRaw { raw: node.raw })),
        Stmt::ForLoop(node) => Stmt::ForLoop(like(
            node,
            ForLoop {
                target: expr(&node.target),
                iter: expr(&node.iter),
                filter_expr: node.filter_expr.as_ref().map(expr),
                recursive: node.recursive,
                body: body(&node.body),
                else_body: body(&node.else_body),
            },
        )),
        Stmt::IfCond(node) => Stmt::IfCond(like(
            node,
            IfCond {
                expr: expr(&node.expr),
                true_body: body(&node.true_body),
                false_body: body(&node.false_body),
            },
        )),
        Stmt::WithBlock(node) => {
            let assignments = node.assignments.iter();
            Stmt::WithBlock(like(
                node,
                WithBlock {
                    assignments: assignments
                        .map(|(to, from)| (expr(to), expr(from)))
                        .collect(),
                    body: body(&node.body),
                },
            ))
        }
        Stmt::Set(node) => Stmt::Set(like(
            node,
            Set {
                target: expr(&node.target),
                expr: expr(&node.expr),
            },
        )),
        Stmt::SetBlock(node) => Stmt::SetBlock(like(
            node,
            SetBlock {
                target: expr(&node.target),
                filter: node.filter.as_ref().map(expr),
                body: body(&node.body),
            },
        )),
        Stmt::AutoEscape(node) => Stmt::AutoEscape(like(
            node,
            AutoEscape {
                enabled: expr(&node.enabled),
                body: body(&node.body),
            },
        )),
        Stmt::FilterBlock(node) => Stmt::FilterBlock(like(
            node,
            FilterBlock {
                filter: expr(&node.filter),
                filter_span: node.filter_span,
                body: body(&node.body),
            },
        )),
        Stmt::Macro(node) => Stmt::Macro(like(node, macro_node(node))),
        Stmt::CallBlock(node) => Stmt::CallBlock(like(
            node,
            CallBlock {
                call: like(&node.call, call(&node.call)),
                call_expr_span: node.call_expr_span,
                macro_decl: like(&node.macro_decl, macro_node(&node.macro_decl)),
            },
        )),
        Stmt::Continue(node) => Stmt::Continue(like(node, Continue)),
        Stmt::Break(node) => Stmt::Break(like(node, Break)),
        Stmt::Do(node) => Stmt::Do(like(
            node,
            Do {
                call: like(&node.call, call(&node.call)),
            },
        )),
    }
}

/// `node` where `old` was.
fn like<T, U>(old: &Spanned<T>, node: U) -> Spanned<U> {
    Spanned::new(node, old.span())
}

fn body<'a>(stmts: &[Stmt<'a>]) -> Vec<Stmt<'a>> {
    stmts.iter().map(guarded).collect()
}

fn macro_node<'a>(node: &Macro<'a>) -> Macro<'a> {
    Macro {
        name: node.name,
        args: exprs(&node.args),
        defaults: exprs(&node.defaults),
        body: body(&node.body),
    }
}

fn exprs<'a>(list: &[Expr<'a>]) -> Vec<Expr<'a>> {
    list.iter().map(expr).collect()
}

fn expr<'a>(old: &Expr<'a>) -> Expr<'a> {
    match old {
        Expr::Var(node) => Expr::Var(like(node, Var { id: node.id })),
        Expr::Const(node) => {
            let value = node.value.clone();
            Expr::Const(like(node, Const { value }))
        }
        Expr::Slice(node) => {
            let slice = Slice {
                expr: expr(&node.expr),
                start: node.start.as_ref().map(expr),
                stop: node.stop.as_ref().map(expr),
                step: node.step.as_ref().map(expr),
            };
            filtered(Expr::Slice(like(node, slice)), SETTLE)
        }
        Expr::UnaryOp(node) => {
            let op = match matches!(node.op, UnaryOpKind::Not) {
                true => UnaryOpKind::Not,
                false => UnaryOpKind::Neg,
            };
            let operand = expr(&node.expr);
            Expr::UnaryOp(like(node, UnaryOp { op, expr: operand }))
        }
        Expr::BinOp(node) => binary(node),
        Expr::Compare(node) => Expr::Compare(like(
            node,
            Compare {
                expr: visited(&node.expr),
                ops: (node.ops.iter())
                    .map(|next| CompareOp {
                        op: next.op,
                        expr: visited(&next.expr),
                    })
                    .collect(),
            },
        )),
        Expr::IfExpr(node) => Expr::IfExpr(like(
            node,
            IfExpr {
                test_expr: expr(&node.test_expr),
                true_expr: expr(&node.true_expr),
                false_expr: node.false_expr.as_ref().map(expr),
            },
        )),
        Expr::Filter(node) => {
            let filter = Filter {
                name: node.name,
                expr: node.expr.as_ref().map(visited),
                args: args(&node.args),
            };
            filtered(Expr::Filter(like(node, filter)), SETTLE)
        }
        Expr::Test(node) => Expr::Test(like(
            node,
            Test {
                name: node.name,
                expr: visited(&node.expr),
                args: args(&node.args),
            },
        )),
        Expr::GetAttr(node) => Expr::GetAttr(like(
            node,
            GetAttr {
                expr: expr(&node.expr),
                name: node.name,
            },
        )),
        Expr::GetItem(node) => Expr::GetItem(like(
            node,
            GetItem {
                expr: expr(&node.expr),
                subscript_expr: visited(&node.subscript_expr),
            },
        )),
        Expr::Call(node) => Expr::Call(like(node, call(node))),
        Expr::List(node) => Expr::List(like(
            node,
            List {
                items: exprs(&node.items),
            },
        )),
        Expr::Tuple(node) => Expr::Tuple(like(
            node,
            Tuple {
                items: exprs(&node.items),
            },
        )),
        Expr::Map(node) => Expr::Map(like(
            node,
            Map {
                keys: node.keys.iter().map(visited).collect(),
                values: exprs(&node.values),
            },
        )),
    }
}

/// The expression as the operand of an operation that may visit all of it.
fn visited<'a>(operand: &Expr<'a>) -> Expr<'a> {
    match expr(operand) {
        constant @ Expr::Const(_) => constant,
        inner => filtered(inner, VISIT),
    }
}

fn filtered<'a>(inner: Expr<'a>, name: &'a str) -> Expr<'a> {
    let span = inner.span();
    let filter = Filter {
        name,
        expr: Some(inner),
        args: Vec::new(),
    };
    Expr::Filter(Spanned::new(filter, span))
}

fn binary<'a>(node: &Spanned<BinOp<'a>>) -> Expr<'a> {
    let operand = match node.op {
        // These give one of their operands, or a sequence that refers to them.
        BinOpKind::ScAnd | BinOpKind::ScOr | BinOpKind::Add | BinOpKind::Mul => expr,
        _ => visited,
    };
    let operation = Expr::BinOp(like(
        node,
        BinOp {
            op: node.op,
            left: operand(&node.left),
            right: operand(&node.right),
        },
    ));
    match node.op {
        BinOpKind::Add | BinOpKind::Mul => filtered(operation, SETTLE),
        _ => operation,
    }
}

fn call<'a>(node: &Call<'a>) -> Call<'a> {
    let callee = match &node.expr {
        Expr::GetAttr(method) => Expr::GetAttr(like(
            method,
            GetAttr {
                expr: visited(&method.expr),
                name: method.name,
            },
        )),
        other => expr(other),
    };
    Call {
        expr: callee,
        args: args(&node.args),
    }
}

fn args<'a>(list: &[CallArg<'a>]) -> Vec<CallArg<'a>> {
    list.iter()
        .map(|arg| match arg {
            CallArg::Pos(value) => CallArg::Pos(visited(value)),
            CallArg::Kwarg(name, value) => CallArg::Kwarg(name, visited(value)),
            CallArg::PosSplat(value) => CallArg::PosSplat(visited(value)),
            CallArg::KwargSplat(value) => CallArg::KwargSplat(visited(value)),
        })
        .collect()
}
