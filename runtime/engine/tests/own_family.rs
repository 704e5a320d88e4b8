//! A family of the test's own, which uses what the interface offers beyond the shipped families:
//! several runs of tokens with text between them, dropped tokens whose neighbors keep their
//! positions, features for a deeper layer, a layer with a sliding window, tokens that attend to each
//! other in both directions, and a recurrent state.
//!
//! The model sees an image as one token for each pixel, in two runs (the upper and the lower half)
//! with the word `row` between them. Black pixels are dropped by the encoder.

#[path = "support/logprobs.rs"]
mod logprobs;
#[path = "support/record.rs"]
mod record;
#[path = "own_family/reduction.rs"]
mod reduction;
#[path = "own_family/speculation.rs"]
mod speculation;
#[path = "own_family/together.rs"]
mod together;

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use edge_lmm::output::Output;
use edge_lmm::processors::AllowedTokens;
use edge_lmm::store::DEFAULT_LIMIT;
use edge_lmm::{
    Cpu, Engine, EngineError, Event, FinishReason, LogitsProcessor, Media, Record, Request,
    Session, Store,
};
use edge_lmm_kernels::Format;
use edge_lmm_models::ModelError;
use edge_lmm_models::families::{Family, Registry};
use edge_lmm_models::family::{FamilyInfo, ModelFiles};
use edge_lmm_models::language::{
    DecoderState, LanguageModel, OutputRows, PREFILL_CHUNK, RecurrentState, StepInput, step_in_turn,
};
use edge_lmm_models::layers::Linear;
use edge_lmm_models::layout::{Layout, Piece, Run};
use edge_lmm_models::media::{InputReduction, MediaInput, MediaKind, MediaOptions};
use edge_lmm_models::model::{Encoded, Model};
use edge_lmm_models::monitor::Monitor;
use edge_lmm_models::preprocess::RgbImage;
use edge_lmm_models::prompt::{
    Content, Conversation, Message, Prompt, Role, TextProcessor, expand_placeholders,
};
use edge_lmm_models::reduce::language::DecoderLayers;
use edge_lmm_models::text::decoder::{
    Decoder, DecoderConfig, DecoderNames, DecoderNorms, RotaryKind, ScaledRotary, SlidingWindow,
};
use edge_lmm_models::text::rotary::{LongRope, RotaryScaling};
use edge_lmm_models::weights::{Part, Storage, WeightSpec, Weights};
use edge_lmm_ops::{Activation, CacheShape, KernelBackend};
use serde_json::json;

const INFO: FamilyInfo = FamilyInfo {
    model_type: "pixels",
    title: "Pixels",
    parts: &[],
};

/// Layer before which further features are added.
const DEEP_LAYER: usize = 2;
/// Layer with a sliding window, and its size.
const WINDOW_LAYER: usize = 1;
const WINDOW: usize = 4;
const LAYERS: usize = 3;
const HIDDEN: usize = 8;
const WORDS: [&str; 8] = ["<image>", "row", "what", "is", "this", "a", "pixel", "end"];

#[derive(Module, Debug)]
struct Pixels<B: KernelBackend> {
    projector: Linear<B>,
    deep: Linear<B>,
    text: Decoder<B>,
    /// Lets the pixels of a run attend to each other in both directions.
    #[module(skip)]
    bidirectional: bool,
    /// Adds half of the previous embedding to each embedding.
    #[module(skip)]
    convolves: bool,
    /// Fails in steps for several conversations.
    #[module(skip)]
    fails: bool,
    /// Tokens that a prefill processes at once.
    #[module(skip)]
    chunk: usize,
}

/// The last embedding, which a convolution over two tokens has to know.
struct Tail<B: KernelBackend>(Tensor<B, 2>);

impl<B: KernelBackend> RecurrentState for Tail<B> {
    fn bytes(&self) -> usize {
        self.0.shape().num_elements() * size_of::<f32>()
    }

    fn fork(&self) -> Box<dyn RecurrentState> {
        Box::new(Self(self.0.clone()))
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

impl<B: KernelBackend> LanguageModel<B> for Pixels<B> {
    fn hidden_size(&self) -> usize {
        self.text.hidden_size()
    }

    fn vocabulary(&self) -> usize {
        self.text.vocabulary()
    }

    fn context_length(&self) -> usize {
        self.text.context_length()
    }

    fn cache_shape(&self, capacity: usize) -> CacheShape {
        self.text.cache_shape(capacity)
    }

    fn is_long(&self, tokens: usize) -> bool {
        self.text.is_long(tokens)
    }

    fn recurrent_states(&self, device: &B::Device) -> Vec<Box<dyn RecurrentState>> {
        let tail = || Box::new(Tail::<B>(Tensor::zeros([1, HIDDEN], device))) as Box<_>;
        self.convolves.then(tail).into_iter().collect()
    }

    fn decoder_layers(&self) -> Option<&dyn DecoderLayers<B>> {
        match self.convolves {
            true => None,
            false => self.text.decoder_layers(),
        }
    }

    fn prefill_chunk(&self) -> usize {
        self.chunk
    }

    fn embed(&self, ids: &[u32]) -> Tensor<B, 2> {
        self.text.embed(ids)
    }

    fn step(
        &self,
        mut input: StepInput<'_, B>,
        state: &mut DecoderState<B>,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        if let Some(tail) = state.recurrent.first_mut() {
            let tail = tail.as_any_mut().downcast_mut::<Tail<B>>();
            let tail = tail.expect("the state of this model");
            let (x, last) = (input.embeddings, input.positions.len() - 1);
            let mut before = vec![tail.0.clone()];
            if last > 0 {
                before.push(x.clone().narrow(0, 0, last));
            }
            tail.0 = x.clone().narrow(0, last, 1);
            let before = Tensor::cat(before, 0);
            input.embeddings = x + before * 0.5;
        }
        self.text.step(input, state, monitor)
    }

    fn step_together(
        &self,
        input: StepInput<'_, B>,
        states: &mut [&mut DecoderState<B>],
    ) -> Result<Tensor<B, 2>, ModelError> {
        if self.fails {
            return Err(ModelError::Compute("out of order".to_owned()));
        }
        match self.convolves {
            true => step_in_turn(self, &input, states),
            false => self.text.step_together(input, states),
        }
    }

    fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        self.text.logits(hidden)
    }
}

impl<B: KernelBackend> Pixels<B> {
    fn init(files: &ModelFiles, weights: &Weights<'_, B>) -> Result<Self, ModelError> {
        let config = DecoderConfig {
            hidden_size: HIDDEN,
            layers: LAYERS,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            intermediate_size: 16,
            vocabulary: WORDS.len(),
            rms_norm_eps: 1e-6,
            norms: DecoderNorms::Pre,
            activation: Activation::Silu,
            embedding_scale: 1.0,
            attention_scale: 0.5,
            rope_theta: 1e4,
            rotary: RotaryKind::Scaled(ScaledRotary {
                dim: 4,
                scaling: match files.config["border"].as_u64() {
                    Some(border) => RotaryScaling::LongRope(LongRope {
                        short: vec![1.0; 2],
                        long: vec![4.0; 2],
                        border: border as usize,
                        attention_factor: 1.0,
                    }),
                    None => RotaryScaling::None,
                },
            }),
            qkv_bias: false,
            qk_norm: false,
            tied: false,
            context_length: 512,
            sliding_window: Some(SlidingWindow {
                size: WINDOW,
                layers: (0..LAYERS).map(|layer| layer == WINDOW_LAYER).collect(),
                rope_theta: None,
            }),
        };
        let names = DecoderNames {
            model: "model",
            head: "lm_head",
        };
        let root = weights.root(Part::Projector);
        Ok(Self {
            projector: root.linear("projector", &[("projector", HIDDEN)], 3, false)?,
            deep: root.linear("deep", &[("deep", HIDDEN)], 3, false)?,
            text: Decoder::init(config, names, &root)?,
            bidirectional: files.config["bidirectional"] == true,
            convolves: files.config["convolves"] == true,
            fails: files.config["fails"] == true,
            chunk: match files.config["chunk"].as_u64() {
                Some(chunk) => chunk as usize,
                None => PREFILL_CHUNK,
            },
        })
    }

    fn run(&self, pixels: &[usize], width: usize, rows: std::ops::Range<usize>) -> Run {
        let all = match self.bidirectional {
            true => Run::grid([1, rows.len(), width], 1).bidirectional(),
            false => Run::grid([1, rows.len(), width], 1),
        };
        let range = rows.start * width..rows.end * width;
        let kept = pixels.iter().filter(|pixel| range.contains(pixel));
        all.keep(&kept.map(|pixel| pixel - range.start).collect::<Vec<_>>())
    }

    /// The two halves of an image of which some pixels are left.
    fn layout(&self, pixels: &[usize], width: usize, height: usize) -> Layout {
        let half = height / 2;
        Layout::new(vec![
            Piece::Run(self.run(pixels, width, 0..half)),
            Piece::Text("row".to_owned()),
            Piece::Run(self.run(pixels, width, half..height)),
        ])
    }
}

impl<B: KernelBackend> Model<B> for Pixels<B> {
    fn language(&self) -> &dyn LanguageModel<B> {
        self
    }

    fn image(&self, image: &RgbImage, _options: &MediaOptions) -> Result<MediaInput, ModelError> {
        let (width, height) = (image.width(), image.height());
        let pixels: Vec<usize> = (0..width * height).collect();
        Ok(MediaInput {
            kind: MediaKind::Image,
            values: image
                .pixels()
                .iter()
                .map(|&v| f32::from(v) / 128.0)
                .collect(),
            shape: vec![width * height, 3],
            grid: [1, height, width],
            layout: self.layout(&pixels, width, height),
            reduction: InputReduction::default(),
            piece: None,
        })
    }

    fn encode(
        &self,
        medium: &MediaInput,
        monitor: &mut Monitor<'_>,
    ) -> Result<Encoded<B>, ModelError> {
        monitor.report(0, 1)?;
        let [_, height, width] = medium.grid;
        let rows = medium.values.chunks_exact(3).enumerate();
        let (kept, values): (Vec<usize>, Vec<&[f32]>) = rows
            .filter(|(_, pixel)| pixel.iter().any(|&v| v > 0.0))
            .unzip();
        let data = TensorData::new(values.concat(), [kept.len(), 3]);
        let pixels = Tensor::<B, 2>::from_data(data, &self.text.embed(&[0]).device());
        Ok(Encoded {
            layout: self.layout(&kept, width, height),
            features: self.projector.forward(pixels.clone()),
            deep: vec![(DEEP_LAYER, self.deep.forward(pixels))],
            attention: None,
            steps: Vec::new(),
        })
    }

    fn prompt(
        &self,
        text: &TextProcessor,
        conversation: Conversation<'_>,
        media: &[&Layout],
    ) -> Result<Prompt, ModelError> {
        let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
        let rendered = text.render(conversation, template, |_| " <image> ".to_owned())?;
        let rendered = rendered.with_media("<image>", media, " <image> ")?;
        let image = text.id("<image>")?;
        expand_placeholders(&text.encode(&rendered)?, |id| id == image, media)
    }
}

fn registry() -> Registry<Cpu> {
    Registry::default().with(Family {
        info: INFO,
        init: |files, weights| Ok(Box::new(Pixels::init(files, weights)?)),
    })
}

fn files() -> ModelFiles {
    ModelFiles {
        config: json!({"model_type": "pixels", "eos_token_id": 7}),
        ..ModelFiles::default()
    }
}

fn tokenizer() -> String {
    let vocab: BTreeMap<&str, usize> = WORDS.iter().enumerate().map(|(i, &w)| (w, i)).collect();
    json!({
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": "<image>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "a"},
    })
    .to_string()
}

/// Values of a weight, multiples of 1/64, the same ones for the same name; the norms are 1.
fn values(spec: &WeightSpec) -> Vec<f32> {
    let mut state = spec
        .name
        .bytes()
        .fold(7u64, |h, b| h.wrapping_mul(31) + u64::from(b));
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        ((state >> 40) % 65) as f32 / 64.0 - 0.5
    };
    let count = spec.rows() * spec.cols();
    match spec.storage {
        Storage::Packed { .. } => (0..count).map(|_| next()).collect(),
        Storage::Dense { .. } => vec![1.0; count],
    }
}

/// A session with a model whose weights `change` may replace.
fn engine(change: impl Fn(&WeightSpec, &mut Vec<f32>)) -> Engine<Cpu> {
    engine_of(files(), change)
}

fn engine_of(files: ModelFiles, change: impl Fn(&WeightSpec, &mut Vec<f32>)) -> Engine<Cpu> {
    let weights = Weights::<Cpu>::new(Default::default(), |_| Ok(Format::F32));
    registry().build(&files, &weights).expect("a model");
    let specs = weights.into_specs();
    let values = |spec: &WeightSpec| {
        let mut values = values(spec);
        change(spec, &mut values);
        values
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("pixels.bpk");
    let texts = (&*tokenizer(), None);
    record::write(&path, files, texts, &specs, |_| Format::F32, values);
    let record = Record::open(&path).expect("the record opens");
    let engine = Engine::load_with(&registry(), &record, Default::default());
    engine.expect("the model loads")
}

fn session(change: impl Fn(&WeightSpec, &mut Vec<f32>)) -> Session<Cpu> {
    engine(change).session()
}

/// Layers that let their input through unchanged, all but `layers`.
fn only(layers: &'static [usize]) -> impl Fn(&WeightSpec, &mut Vec<f32>) {
    move |spec, values| {
        let own = |layer: &usize| spec.name.starts_with(&format!("text.layers.{layer}."));
        let residual = spec.name.contains(".out.") || spec.name.contains(".down.");
        if residual && !layers.iter().any(own) {
            values.fill(0.0);
        }
    }
}

/// An image of 2x4 pixels, of which the second and the last are black.
fn image() -> Media {
    let mut pixels: Vec<u8> = (1..=24).map(|i| i * 8).collect();
    pixels[3..6].fill(0);
    pixels[21..].fill(0);
    Media::image(RgbImage::new(2, 4, pixels).expect("an image"))
}

fn ask(images: usize, text: &str) -> [Message; 1] {
    let images = std::iter::repeat_n(Content::Media(MediaKind::Image), images);
    [Message {
        role: Role::User,
        content: images.chain([Content::Text(text.to_owned())]).collect(),
    }]
}

fn go_on(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Scores after a prompt.
fn scores(session: &mut Session<Cpu>, media: &[Media], text: &str) -> Vec<f32> {
    let messages = ask(media.len(), text);
    let request = Request {
        media,
        ..Request::new(&messages)
    };
    let prefilled = session.prefill(&request, go_on).expect("a prompt");
    prefilled.logits.last().to_vec()
}

#[test]
fn runs_with_text_between_them_keep_their_positions() {
    let weights = Weights::<Cpu>::new(Default::default(), |_| Ok(Format::F32));
    let model = Pixels::init(&files(), &weights).expect("a model");
    let text = TextProcessor::new(&tokenizer(), None).expect("a tokenizer");
    let layout = model.layout(&[0, 2, 3, 4, 5, 6], 2, 4);
    let messages = ask(1, "what is this");
    let prompt = model
        .prompt(&text, Conversation::from(&messages), &[&layout])
        .expect("a prompt");
    assert_eq!(prompt.ids, [0, 0, 0, 1, 0, 0, 0, 2, 3, 4]);
    let positions: Vec<[u32; 3]> = vec![
        // The upper half begins at 0 and is two positions high and wide, without its pixel 1.
        [0, 0, 0],
        [0, 1, 0],
        [0, 1, 1],
        [2; 3],
        // The lower half begins at 3, without its last pixel.
        [3, 3, 3],
        [3, 3, 4],
        [3, 4, 3],
        [5; 3],
        [6; 3],
        [7; 3],
    ];
    assert_eq!(prompt.positions, positions);
    assert_eq!(prompt.next_position, 8);
    let spans: Vec<_> = prompt
        .spans
        .iter()
        .map(|s| (s.start, s.len, s.row))
        .collect();
    assert_eq!(spans, [(0, 3, 0), (4, 3, 3)]);
}

/// The encoder drops the black pixels, so that the prompt is shorter than foreseen.
#[test]
fn the_content_of_an_image_decides_its_tokens() {
    let mut session = session(|_, _| {});
    let (messages, media) = (ask(1, "what is this"), [image()]);
    let request = Request {
        media: &media,
        max_tokens: 5,
        ignore_eos: true,
        ..Request::new(&messages)
    };
    let mut bound = 0;
    let answer = session.answer(&request, |event| {
        if let Event::Prepared { prompt_tokens, .. } = event {
            bound = prompt_tokens;
        }
        ControlFlow::Continue(())
    });
    let answer = answer.expect("an answer");
    assert_eq!(
        (bound, answer.prompt_tokens, answer.visual_tokens),
        (12, 10, 6)
    );
    assert_eq!(answer.tokens.len(), 5);
    // The same question again needs neither encoder nor prefill.
    let again = session.answer(&request, |event| {
        if let Event::Prepared { media, .. } = event {
            assert!(media.is_empty());
        }
        ControlFlow::Continue(())
    });
    let again = again.expect("an answer");
    assert_eq!((again.reused_tokens, &again.tokens), (9, &answer.tokens));
}

/// With layers before it that let their input through, features for layer 2 are the same as features
/// added to the embeddings. All values are multiples of 2^-12, so that the sums are exact.
#[test]
fn features_reach_the_deeper_layer() {
    let last = only(&[DEEP_LAYER]);
    let mut deep = session(&last);
    let mut shallow = session(|spec, values| {
        last(spec, values);
        match spec.name.as_str() {
            "projector.weight" => {
                let other = WeightSpec {
                    name: "deep.weight".to_owned(),
                    ..spec.clone()
                };
                let sums = values.iter().zip(self::values(&other)).map(|(a, b)| a + b);
                *values = sums.collect();
            }
            "deep.weight" => values.fill(0.0),
            _ => {}
        }
    });
    let mut none = session(|spec, values| {
        last(spec, values);
        if spec.name == "deep.weight" {
            values.fill(0.0);
        }
    });
    let media = [image()];
    let expected = scores(&mut shallow, &media, "what is this");
    assert_eq!(scores(&mut deep, &media, "what is this"), expected);
    assert_ne!(scores(&mut none, &media, "what is this"), expected);
}

/// A model of one layer with a window of four tokens does not see the fifth last.
#[test]
fn the_window_hides_old_tokens() {
    let mut near = session(only(&[WINDOW_LAYER]));
    let mut far = session(only(&[0]));
    let long = "this is a pixel ".repeat(20);
    let ask = |session: &mut Session<Cpu>, start: &str, end: &str| {
        scores(session, &[], &format!("{long}{start} {end}"))
    };
    let (a, b) = ("what what", "is is");
    let hidden = "a pixel this is";
    assert_eq!(ask(&mut near, a, hidden), ask(&mut near, b, hidden));
    assert_ne!(ask(&mut near, a, "this is"), ask(&mut near, b, "this is"));
    assert_ne!(ask(&mut far, a, hidden), ask(&mut far, b, hidden));
}

/// Steps of any number of tokens over the window, features and all layers give the same scores.
#[test]
fn scores_of_several_rows_are_those_of_single_steps() {
    let mut session = session(|_, _| {});
    scores(&mut session, &[image()], "what is this");
    let start = session.snapshot().expect("memory");
    let ids = [5, 6, 3, 4, 2, 5, 6, 3];
    let mut singles = Vec::new();
    for id in ids {
        let logits = session.step(&[id], OutputRows::Last).expect("scores");
        singles.push(logits.last().to_vec());
    }
    for count in 1..=ids.len() {
        session.restore(&start).expect("memory");
        let logits = session
            .step(&ids[..count], OutputRows::All)
            .expect("scores");
        assert_eq!(logits.rows(), count);
        for (row, expected) in singles[..count].iter().enumerate() {
            assert_eq!(logits.row(row), expected, "row {row} of {count}");
        }
    }
    // A fork goes its own way.
    let mut fork = session.fork().expect("memory");
    fork.step(&[2, 2], OutputRows::Last).expect("scores");
    let next = session.step(&[7], OutputRows::Last).expect("scores");
    fork.truncate(fork.len() - 2).expect("no recurrent layers");
    assert_eq!(fork.step(&[7], OutputRows::Last).expect("scores"), next);
}

#[test]
fn steps_that_cannot_be_taken_are_refused() {
    let mut session = session(|_, _| {});
    let step = |session: &mut Session<Cpu>, ids: &[u32]| session.step(ids, OutputRows::Last);
    let error = step(&mut session, &[1]).unwrap_err();
    assert!(matches!(error, EngineError::NothingToContinue), "{error}");
    scores(&mut session, &[], "what is this");
    for ids in [&[][..], &[8]] {
        assert!(step(&mut session, ids).is_err());
    }
    assert_eq!(session.len(), 3);
    step(&mut session, &[1; 509]).expect("room");
    let error = step(&mut session, &[1]).unwrap_err();
    assert!(matches!(error, EngineError::ContextFull { .. }), "{error}");
    assert_eq!(session.len(), 512);
}

/// Pixels that see each other in both directions are computed together, also where a prompt ends with
/// them and begins like the one before.
#[test]
fn a_bidirectional_run_is_computed_as_a_whole() {
    let mut both = files();
    both.config["bidirectional"] = json!(true);
    let mut both = engine_of(both, |_, _| {}).session();
    let mut causal = session(|_, _| {});
    let media = [image()];
    let ask = |session: &mut Session<Cpu>, text: &str| {
        let messages = [Message {
            role: Role::User,
            content: vec![
                Content::Text(text.to_owned()),
                Content::Media(MediaKind::Image),
            ],
        }];
        let request = Request {
            media: &media,
            ..Request::new(&messages)
        };
        session.prefill(&request, go_on).expect("a prompt")
    };
    let first = ask(&mut both, "what is this");
    let again = ask(&mut both, "what is this");
    assert_eq!(again.logits, first.logits);
    // The last run has three tokens.
    assert_eq!((first.prompt_tokens, again.reused_tokens), (10, 7));
    assert_ne!(ask(&mut causal, "what is this").logits, first.logits);
    assert_eq!(ask(&mut causal, "what is this").reused_tokens, 9);
    assert_eq!(ask(&mut both, "what is a").reused_tokens, 2);
}

/// A recurrent state is copied and restored, but it cannot go back: a prompt that differs from the
/// one before is computed anew.
#[test]
fn a_recurrent_state_is_never_truncated() {
    let mut files = files();
    files.config["convolves"] = json!(true);
    let engine = engine_of(files, |_, _| {});
    let (mut session, mut fresh) = (engine.session(), engine.session());
    let plain = scores(&mut self::session(|_, _| {}), &[], "what is this");
    assert_ne!(scores(&mut session, &[], "what is this"), plain);
    let start = session.snapshot().expect("memory");
    let ids = [5, 6, 3, 4];
    let single = ids.map(|id| session.step(&[id], OutputRows::Last).expect("scores"));
    session.restore(&start).expect("memory");
    let rows = session.step(&ids, OutputRows::All).expect("scores");
    for (row, single) in single.iter().enumerate() {
        assert_eq!(rows.row(row), single.last());
    }
    let error = session.truncate(3).expect_err("the state cannot go back");
    let is_expected = matches!(error, EngineError::Model(ModelError::CannotTruncate));
    assert!(is_expected && session.len() == 7, "{error}");
    let messages = ask(0, "what is a pixel");
    let request = Request::new(&messages);
    let again = session.prefill(&request, go_on).expect("a prompt");
    assert_eq!(again.reused_tokens, 0);
    let expected = fresh.prefill(&request, go_on).expect("a prompt");
    assert_eq!(again.logits, expected.logits);
}

/// A sequence that becomes long is computed anew with the features of its image, also where the image
/// was cut off in the middle of a run, and no others.
#[test]
fn a_conversation_that_becomes_long_keeps_its_features() {
    let mut files = files();
    files.config["border"] = json!(12);
    let engine = engine_of(files, |_, _| {});
    let long = |pixel: usize, kept: usize| {
        let mut pixels: Vec<u8> = (1..=24).map(|i| i * 8).collect();
        pixels[3 * pixel] = 255;
        let image = Media::image(RgbImage::new(2, 4, pixels).expect("an image"));
        let mut session = engine.session();
        let messages = ask(1, "what");
        let request = Request {
            media: std::slice::from_ref(&image),
            ..Request::new(&messages)
        };
        session.prefill(&request, go_on).expect("a prompt");
        session.truncate(kept).expect("no recurrent layers");
        let ids: Vec<u32> = (0..14 - kept as u32).map(|i| 1 + i % 6).collect();
        let logits = session.step(&ids, OutputRows::Last).expect("scores");
        assert_eq!(session.len(), 14);
        logits
    };
    // Four pixels, `row`, four pixels, `what`.
    for kept in [2, 7, 10] {
        assert_ne!(long(0, kept), long(1, kept), "the first {kept} tokens");
    }
    assert_eq!(long(2, 2), long(7, 2));
    assert_eq!(long(6, 7), long(7, 7));
    assert_ne!(long(5, 7), long(7, 7));
}

/// Takes the prompt of an image and a word in, and `steps` further tokens; returns the number of
/// reused tokens and the last scores.
fn continued(session: &mut Session<Cpu>, word: &str, steps: usize) -> (usize, Vec<f32>) {
    let messages = ask(1, word);
    let request = Request {
        media: &[image()],
        ..Request::new(&messages)
    };
    let prefilled = session.prefill(&request, go_on).expect("a prompt");
    let ids: Vec<u32> = (1..7).cycle().take(steps).collect();
    let logits = session.step(&ids, OutputRows::Last).expect("scores");
    (prefilled.reused_tokens, logits.last().to_vec())
}

/// Opens a session like another process, with the same cache folder.
fn with_store(files: &ModelFiles, folder: &std::path::Path) -> Session<Cpu> {
    let engine = engine_of(files.clone(), |_, _| {});
    engine.use_store(Store::open(folder, DEFAULT_LIMIT).expect("a folder"));
    engine.session()
}

/// A prefix in a file is continued beyond the border of long sequences with the features of its
/// image, whether these are in a file or have to be computed.
#[test]
fn a_stored_prefix_that_becomes_long_has_its_features() {
    let mut files = files();
    files.config["border"] = json!(12);
    let folder = tempfile::tempdir().expect("a folder");
    let anew = |word: &str| {
        let engine = engine_of(files.clone(), |_, _| {});
        continued(&mut engine.session(), word, 5).1
    };
    let stored = continued(&mut with_store(&files, folder.path()), "what", 5);
    assert_eq!(stored, (0, anew("what")));
    let again = continued(&mut with_store(&files, folder.path()), "this", 5);
    assert_eq!(again, (7, anew("this")));
    let snapshot = folder.path().join("snapshot");
    let mut session = with_store(&files, folder.path());
    continued(&mut session, "what", 1);
    let output = Output::private(&snapshot, false).expect("a file");
    session
        .save_snapshot(output, usize::MAX)
        .expect("it is saved");
    let mut loaded = engine_of(files.clone(), |_, _| {}).session();
    assert_eq!(loaded.load_snapshot(&snapshot).expect("a snapshot"), 9);
    assert_eq!(continued(&mut loaded, "this", 5), (7, anew("this")));
    // Without a request, the features are not known.
    loaded.load_snapshot(&snapshot).expect("a snapshot");
    let error = loaded.step(&[1; 5], OutputRows::Last).unwrap_err();
    assert!(error.to_string().contains("not known"), "{error}");
}

/// A recurrent state is not stored, but encoder outputs are.
#[test]
fn a_recurrent_state_is_computed_anew_in_another_process() {
    let mut files = files();
    files.config["convolves"] = json!(true);
    let folder = tempfile::tempdir().expect("a folder");
    let first = continued(&mut with_store(&files, folder.path()), "what", 1);
    let mut session = with_store(&files, folder.path());
    assert_eq!(continued(&mut session, "what", 1), first);
    assert_eq!(first.0, 0);
    assert_eq!(
        std::fs::read_dir(folder.path())
            .expect("the folder")
            .count(),
        1
    );
    assert!(!session.can_be_saved());
}

/// A conversation stays as it is if a request shares a small part of it; a request that shares most
/// of it continues it.
#[test]
fn conversations_are_cut_off_only_by_their_own_continuation() {
    let mut session = session(|_, _| {});
    session.keep_conversations(2, usize::MAX);
    let words = |word: &str, count: usize| vec![word; count].join(" ");
    let reused = |session: &mut Session<Cpu>, text: &str| {
        let messages = ask(0, text);
        let prefilled = session.prefill(&Request::new(&messages), go_on);
        let prefilled = prefilled.expect("a prompt");
        let alone = scores(&mut self::session(|_, _| {}), &[], text);
        assert_eq!(prefilled.logits.last(), alone);
        prefilled.reused_tokens
    };
    let long = format!("{} {}", words("what", 40), words("is", 60));
    assert_eq!(reused(&mut session, &long), 0);
    // 40 of 100 tokens are copied; both conversations can be continued.
    let other = format!("{} {}", words("what", 40), words("this", 60));
    assert_eq!(reused(&mut session, &other), 40);
    assert_eq!(reused(&mut session, &format!("{long} a")), 100);
    assert_eq!(reused(&mut session, &format!("{other} a")), 100);
    // Ten tokens are not worth a copy; the least recently used conversation is forgotten.
    let short = format!("{} {}", words("what", 10), words("pixel", 50));
    assert_eq!(reused(&mut session, &short), 0);
    assert_eq!(reused(&mut session, &format!("{other} a is")), 101);
    assert!(session.forget_others() && !session.forget_others());
    assert_eq!(reused(&mut session, &format!("{short} a")), 0);
    // Without memory for two, the last one is kept.
    session.keep_conversations(2, 1);
    assert_eq!(reused(&mut session, &long), 0);
    assert!(!session.forget_others());
}

/// Conversations on several threads share the weights and do not disturb each other.
#[test]
fn sessions_on_threads_share_a_model() {
    let engine = engine(|_, _| {});
    let questions = ["what is this", "a pixel", "this is a pixel what is", "end"];
    let ask = |mut session: Session<Cpu>, question: &str| {
        let mut all = Vec::new();
        for _ in 0..5 {
            session.forget();
            all.push(scores(&mut session, &[image()], question));
        }
        all
    };
    let alone = questions.map(|question| ask(engine.session(), question));
    let together = std::thread::scope(|scope| {
        let threads = questions.map(|question| {
            let session = engine.clone().session();
            scope.spawn(move || ask(session, question))
        });
        threads.map(|thread| thread.join().expect("an answer"))
    });
    assert_eq!(together, alone);
}

#[test]
fn an_answer_ends_before_its_stop_string() {
    let mut session = session(|_, _| {});
    let messages = ask(0, "what is this");
    let mut request = Request {
        max_tokens: 12,
        ignore_eos: true,
        ..Request::new(&messages)
    };
    let whole = session.answer(&request, go_on).expect("an answer").text;
    let middle = whole.char_indices().nth(whole.len() / 2).expect("text").0;
    let stop = [whole[middle..].chars().take(3).collect::<String>()];
    request.stop = &stop;
    let mut streamed = String::new();
    let answer = session.answer(&request, |event| {
        if let Event::Text(text) = event {
            streamed.push_str(text);
        }
        ControlFlow::Continue(())
    });
    let answer = answer.expect("an answer");
    let expected = &whole[..whole.find(&stop[0]).expect("the stop string")];
    assert_eq!(
        (answer.text.as_str(), streamed.as_str()),
        (expected, expected)
    );
    assert_eq!(answer.finish_reason, FinishReason::Stop);
    assert!(answer.tokens.len() < 12);
}

/// Only allowed tokens are generated.
#[test]
fn a_processor_of_the_callers_changes_the_tokens() {
    let mut session = session(|_, _| {});
    let messages = ask(0, "what is this");
    let request = Request {
        max_tokens: 6,
        ignore_eos: true,
        ..Request::new(&messages)
    };
    let allowed: Vec<Box<dyn LogitsProcessor>> = vec![Box::new(AllowedTokens::new(8, [3, 6]))];
    let generation = session
        .generate(&request, allowed, go_on)
        .expect("a prompt");
    let ids: Vec<u32> = generation.map(|token| token.expect("a token").id).collect();
    assert_eq!(ids.len(), 6);
    assert!(ids.iter().all(|id| [3, 6].contains(id)), "{ids:?}");
}

/// The shipped families do not know the test's.
#[test]
fn a_family_has_to_be_registered() {
    let error = edge_lmm_models::families::info(&files()).unwrap_err();
    assert!(error.to_string().contains("\"pixels\""), "{error}");
}
