//! Answers that are decoded together are those that are decoded alone.

use edge_lmm::{Generation, Sampling, Token};

use super::*;

/// Asks about different numbers of images, with prompts and answers of different lengths, and
/// compares the answers that are decoded together with those that are decoded alone.
fn compare(engine: &Engine<Cpu>) {
    let media = [image(), image()];
    let messages = [
        ask(0, "what is this what is"),
        ask(1, "a pixel"),
        ask(2, "what is this"),
        ask(0, "pixel end row a"),
    ];
    let request = |i: usize| {
        let images = messages[i][0].content.len() - 1;
        Request {
            media: &media[..images],
            max_tokens: 10 + 15 * i,
            ignore_eos: i != 3,
            logprobs: Some(2),
            sampling: Sampling {
                temperature: if i == 1 { 0.7 } else { 0.0 },
                seed: 3,
                ..Sampling::default()
            },
            ..Request::new(&messages[i])
        }
    };
    let requests: Vec<Request<'_>> = (0..messages.len()).map(request).collect();
    let alone = |request: &Request<'_>| -> (Vec<Token>, Vec<f32>) {
        let mut session = engine.session();
        let generation = session.generate(request, Vec::new(), go_on);
        let tokens = generation.expect("a prompt");
        let tokens = tokens.map(|token| token.expect("a token")).collect();
        let next = session.step(&[3], OutputRows::Last).expect("scores");
        (tokens, next.last().to_vec())
    };
    let expected: Vec<_> = requests.iter().map(alone).collect();
    let mut sessions: Vec<Session<Cpu>> = requests.iter().map(|_| engine.session()).collect();
    let mut tokens = vec![Vec::new(); requests.len()];
    {
        let generations = sessions.iter_mut().zip(&requests);
        let generations = generations.map(|(session, request)| {
            let generation = session.generate(request, Vec::new(), go_on);
            generation.expect("a prompt")
        });
        let mut generations: Vec<_> = generations.collect();
        // The second answer begins later.
        tokens[0].extend(generations[0].next().map(|token| token.expect("a token")));
        while tokens
            .iter()
            .zip(&expected)
            .any(|(found, (all, _))| found.len() < all.len())
        {
            let next = Generation::next_together(&mut generations);
            for (tokens, token) in tokens.iter_mut().zip(next) {
                tokens.extend(token.map(|token| token.expect("a token")));
            }
        }
        let next = Generation::next_together(&mut generations);
        assert!(next.iter().all(Option::is_none));
    }
    for ((session, found), (tokens, next)) in sessions.iter_mut().zip(&tokens).zip(&expected) {
        assert_eq!(found, tokens);
        let step = session.step(&[3], OutputRows::Last).expect("scores");
        assert_eq!(step.last(), next);
    }
}

#[test]
fn windows_and_images_do_not_change_answers() {
    compare(&engine(|_, _| {}));
}

/// Recurrent layers are computed in turn.
#[test]
fn recurrent_states_are_continued_in_turn() {
    let mut files = files();
    files.config["convolves"] = json!(true);
    compare(&engine_of(files, |_, _| {}));
}

/// A conversation that becomes long is computed anew, while the others go on.
#[test]
fn conversations_become_long_at_different_steps() {
    let mut files = files();
    files.config["border"] = json!(30);
    compare(&engine_of(files, |_, _| {}));
}

/// A device's failure in a common step ends all of its answers and leaves the sessions usable.
#[test]
fn the_answers_of_a_failed_step_end() {
    let mut files = files();
    files.config["fails"] = json!(true);
    let engine = engine_of(files, |_, _| {});
    let messages = ask(0, "what is this");
    let request = Request {
        ignore_eos: true,
        ..Request::new(&messages)
    };
    let mut sessions = [engine.session(), engine.session()];
    let generations = sessions.iter_mut().map(|session| {
        let generation = session.generate(&request, Vec::new(), go_on);
        generation.expect("a prompt")
    });
    let mut generations: Vec<_> = generations.collect();
    let first = Generation::next_together(&mut generations);
    assert!(first.iter().all(|token| matches!(token, Some(Ok(_)))));
    for failed in Generation::next_together(&mut generations) {
        let error = failed.expect("a result").unwrap_err();
        assert!(error.to_string().contains("out of order"), "{error}");
    }
    let after = Generation::next_together(&mut generations);
    assert!(after.iter().all(Option::is_none));
    drop(generations);
    for session in &mut sessions {
        assert!(session.is_empty());
        session.prefill(&request, go_on).expect("a prompt");
    }
}
