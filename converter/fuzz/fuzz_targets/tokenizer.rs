//! The tokenizer made from a GGUF vocabulary: whatever the vocabulary says, an error or a tokenizer that works.
#![no_main]

use arbitrary::Arbitrary;
use edge_lmm_convert::scratch;
use edge_lmm_convert::source::Checkpoint;
use edge_lmm_convert::source_support::GgufBuilder;
use libfuzzer_sys::fuzz_target;
use tokenizers::Tokenizer;

#[derive(Arbitrary, Debug)]
struct Vocabulary {
    sentencepiece: bool,
    pre: u8,
    tokens: Vec<(String, i8, f32)>,
    /// Tokens by number, so that many merges are sound, and a few that are any text.
    merges: Vec<(u8, u8)>,
    odd_merges: Vec<String>,
    bos: Option<u8>,
    eos: Option<u8>,
    add_bos: Option<bool>,
    add_eos: Option<bool>,
    space_prefix: Option<bool>,
    text: String,
}

impl Vocabulary {
    fn file(&self) -> GgufBuilder {
        let tokens: Vec<String> = self.tokens.iter().map(|token| token.0.clone()).collect();
        let kinds: Vec<i32> = self.tokens.iter().map(|token| i32::from(token.1)).collect();
        let scores: Vec<f32> = self.tokens.iter().map(|token| token.2).collect();
        let token = |number: u8| tokens.get(usize::from(number) % tokens.len().max(1));
        let sound = self
            .merges
            .iter()
            .filter_map(|&(a, b)| Some(format!("{} {}", token(a)?, token(b)?)));
        let merges: Vec<String> = sound.chain(self.odd_merges.iter().cloned()).collect();
        let pres = ["qwen2", "llama-bpe", "gpt-2", "default", "smaug-bpe"];
        let mut builder = GgufBuilder::new()
            .small_model(tokens.len().max(1))
            .text(
                "tokenizer.ggml.model",
                if self.sentencepiece { "llama" } else { "gpt2" },
            )
            .text(
                "tokenizer.ggml.pre",
                pres[usize::from(self.pre) % pres.len()],
            )
            .texts("tokenizer.ggml.tokens", &tokens)
            .i32s("tokenizer.ggml.token_type", &kinds)
            .f32s("tokenizer.ggml.scores", &scores)
            .texts("tokenizer.ggml.merges", &merges);
        for (key, id) in [("bos", self.bos), ("eos", self.eos)] {
            if let Some(id) = id {
                builder = builder.u32(&format!("tokenizer.ggml.{key}_token_id"), id.into());
            }
        }
        let flags = [
            ("add_bos_token", self.add_bos),
            ("add_eos_token", self.add_eos),
            ("add_space_prefix", self.space_prefix),
        ];
        for (key, flag) in flags {
            if let Some(flag) = flag {
                builder = builder.flag(&format!("tokenizer.ggml.{key}"), flag);
            }
        }
        builder
    }
}

fuzz_target!(|vocabulary: Vocabulary| {
    let folder = scratch();
    let path = vocabulary.file().write(folder.path(), "model.gguf");
    let Ok(checkpoint) = Checkpoint::open(&path, None) else {
        return;
    };
    let tokenizer: Tokenizer = checkpoint
        .tokenizer
        .parse()
        .expect("what was checked loads");
    if let Ok(encoding) = tokenizer.encode(&*vocabulary.text, true) {
        for &id in encoding.get_ids() {
            assert!((id as usize) < vocabulary.tokens.len());
        }
        let _ = tokenizer.decode(encoding.get_ids(), false);
    }
});
