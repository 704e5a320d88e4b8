//! A step of several tokens gives bitwise the scores of single steps with quantized weights, on every
//! instruction set of this machine.

mod support;

use edge_lmm::{Message, OutputRows, Request, Role, Speculation};

use support::{engine, go_on, on_every_isa};

#[test]
fn every_instruction_set_verifies_exactly() {
    on_every_isa("rows_are_those_of_single_steps");
    on_every_isa("answers_stay_the_same");
}

/// Steps of 1 to 9 tokens at different lengths of the conversation.
#[test]
#[ignore = "is run by every_instruction_set_verifies_exactly"]
fn rows_are_those_of_single_steps() {
    let mut session = engine().session();
    let messages = [Message::text(Role::User, "list the shapes.")];
    session
        .prefill(&Request::new(&messages), go_on)
        .expect("a prompt");
    for count in 1..=9 {
        let start = session.len();
        let ids: Vec<u32> = (0..count).map(|i| 20 + 7 * i).collect();
        let single: Vec<Vec<f32>> = ids
            .iter()
            .map(|&id| {
                let logits = session.step(&[id], OutputRows::Last).expect("scores");
                logits.last().to_vec()
            })
            .collect();
        session.truncate(start).expect("no recurrent layers");
        let rows = session.step(&ids, OutputRows::All).expect("scores");
        for (row, single) in single.iter().enumerate() {
            assert_eq!(rows.row(row), single, "row {row} of {count}");
        }
    }
}

#[test]
#[ignore = "is run by every_instruction_set_verifies_exactly"]
fn answers_stay_the_same() {
    let mut session = engine().session();
    let text = "list the shapes. list the shapes. list the shapes.";
    let messages = [Message::text(Role::User, text)];
    let mut tokens = |speculation| {
        let request = Request {
            max_tokens: 80,
            ignore_eos: true,
            speculation,
            ..Request::new(&messages)
        };
        session.forget();
        let answer = session.answer(&request, go_on).expect("an answer");
        let counts = answer.speculation.unwrap_or_default();
        (answer.tokens, counts.accepted)
    };
    let (expected, _) = tokens(Speculation::Off);
    let mut accepted = 0;
    for speculation in ["1", "4", "7", "15", "auto"] {
        let speculation = speculation.parse().expect("a setting");
        let (found, more) = tokens(speculation);
        assert_eq!(found, expected, "{speculation:?}");
        accepted += more;
    }
    assert!(accepted > 0);
}
