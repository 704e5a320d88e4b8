//! The chain of methods of a request.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::anchors::Anchors;
use super::duplicates::Novel;
use super::language::LanguageReduction;
use super::merge::Merge;
use super::share::Share;

/// A method and how much it reduces.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Reduction {
    /// Drops units that equal their left or upper neighbor.
    Duplicates(Novel),
    /// Drops units of a video that equal those at the same place of the frames before.
    Still(Novel),
    /// Merges similar units within the encoder.
    Merge(Merge),
    /// Keeps tokens whose features differ most.
    Diverse(Share),
    /// Keeps the tokens that receive most attention in the encoder's last layer.
    Attention(Share),
    /// Keeps random tokens: a baseline.
    Random(Share),
    /// Keeps tokens at equal distances: a baseline.
    Stride(Share),
    /// Keeps the tokens that the last token of the prompt attends to, in a layer of the language
    /// model.
    Language(LanguageReduction),
    /// Keeps diverse tokens that are relevant to the question.
    Question(Share),
    /// Protects tokens at the positions that serve as coordinates from the methods after the
    /// projector and within the language model.
    Anchors(Anchors),
}

/// Methods in the order in which they run: before, within and after the encoder, within the
/// language model. There is at most one of each.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reductions(Vec<Reduction>);

/// Number of tokens that a method left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ReductionStep {
    /// Name of the method.
    pub method: &'static str,
    /// Stage of the timing that the tokens of the next stage are counted after.
    pub stage: &'static str,
    /// Tokens left. Before the projector, the units of the encoder.
    pub tokens: usize,
}

/// A chain of methods that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReductionError {
    /// The method does not exist.
    #[error(
        "there is no method {0:?}: expected duplicates, still, merge, diverse, attention, question, \
         random, stride, anchors or language"
    )]
    UnknownMethod(String),
    /// The arguments of a method are wrong.
    #[error("{found:?}: expected {expected}")]
    Arguments {
        /// The text.
        found: String,
        /// The arguments that the method takes.
        expected: &'static str,
    },
    /// A method occurs twice.
    #[error("{0} occurs twice")]
    Twice(&'static str),
    /// There is nothing that anchors are protected from.
    #[error(
        "anchors protects tokens from the methods after the projector and within the language \
         model: add one of them, such as diverse:0.25,anchors"
    )]
    NothingToProtectFrom,
}

/// Names of the methods, and the stages that they are part of. Files have their indices.
const METHODS: [(&str, &str); 10] = [
    ("duplicates", "preprocess"),
    ("still", "preprocess"),
    ("merge", "vision"),
    ("diverse", "projector"),
    ("attention", "projector"),
    ("random", "projector"),
    ("stride", "projector"),
    ("language", "prefill"),
    ("question", "projector"),
    ("anchors", "projector"),
];

impl ReductionStep {
    /// Returns a number that stands for the method in files.
    pub fn number(&self) -> usize {
        let is_own = |(name, _): &(&str, &str)| *name == self.method;
        METHODS.iter().position(is_own).unwrap_or(METHODS.len())
    }

    /// Returns the step of the method with a number; `None` if there is no such method.
    pub fn from_number(number: usize, tokens: usize) -> Option<Self> {
        let (method, stage) = *METHODS.get(number)?;
        Some(Self {
            method,
            stage,
            tokens,
        })
    }
}

impl Reduction {
    /// Returns the name of the method.
    pub fn name(&self) -> &'static str {
        METHODS[self.number()].0
    }

    /// Returns the stage that the method is part of.
    pub fn stage(&self) -> &'static str {
        METHODS[self.number()].1
    }

    /// Returns the index in [`METHODS`].
    fn number(&self) -> usize {
        match self {
            Self::Duplicates(_) => 0,
            Self::Still(_) => 1,
            Self::Merge(_) => 2,
            Self::Diverse(_) => 3,
            Self::Attention(_) => 4,
            Self::Random(_) => 5,
            Self::Stride(_) => 6,
            Self::Language(_) => 7,
            Self::Question(_) => 8,
            Self::Anchors(_) => 9,
        }
    }

    /// Returns the share of tokens that a choice after the projector keeps.
    pub fn chosen_share(&self) -> Option<Share> {
        match self {
            Self::Diverse(share)
            | Self::Attention(share)
            | Self::Question(share)
            | Self::Random(share)
            | Self::Stride(share) => Some(*share),
            _ => None,
        }
    }

    /// Returns the record of a step that left `tokens` tokens.
    pub fn left(&self, tokens: usize) -> ReductionStep {
        ReductionStep {
            method: self.name(),
            stage: self.stage(),
            tokens,
        }
    }

    fn place(&self) -> usize {
        let places = ["preprocess", "vision", "projector", "prefill"];
        let place = places.iter().position(|stage| *stage == self.stage());
        place.unwrap_or(places.len())
    }
}

impl Reductions {
    /// Creates a chain; methods of the same place run in the given order.
    ///
    /// # Errors
    /// If a method occurs twice.
    pub fn new(mut methods: Vec<Reduction>) -> Result<Self, ReductionError> {
        methods.sort_by_key(Reduction::place);
        for (i, method) in methods.iter().enumerate() {
            let same = |other: &Reduction| other.name() == method.name();
            if methods[..i].iter().any(same) {
                return Err(ReductionError::Twice(method.name()));
            }
        }
        Ok(Self(methods))
    }

    /// Returns the methods in the order in which they run.
    pub fn methods(&self) -> &[Reduction] {
        &self.0
    }

    /// Returns `true` if nothing is reduced.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the methods whose result does not depend on the prompt: those before and within the
    /// encoder, and those after the projector before the first one that does.
    #[must_use]
    pub fn before_prompt(&self) -> Self {
        Self(self.0[..self.first_of_prompt()].to_vec())
    }

    /// Returns the methods after the projector that depend on the prompt or follow one that does.
    /// With [`Reduction::Anchors`], all of them depend on the positions of the tokens in it.
    #[must_use]
    pub fn of_prompt(&self) -> Self {
        let rest = self.0[self.first_of_prompt()..].iter();
        let after_projector = rest.filter(|method| method.stage() == "projector");
        Self(after_projector.copied().collect())
    }

    fn first_of_prompt(&self) -> usize {
        let depends = |method: &Reduction| match method.stage() {
            "projector" => self.anchors().is_some() || matches!(method, Reduction::Question(_)),
            stage => stage == "prefill",
        };
        let first = self.0.iter().position(depends);
        first.unwrap_or(self.0.len())
    }

    /// Returns the protection of anchors.
    pub fn anchors(&self) -> Option<Anchors> {
        self.0.iter().find_map(|method| match method {
            Reduction::Anchors(anchors) => Some(*anchors),
            _ => None,
        })
    }

    /// Returns `true` if a choice depends on the question.
    pub fn asks_question(&self) -> bool {
        let asks = |method: &Reduction| matches!(method, Reduction::Question(_));
        self.0.iter().any(asks)
    }

    /// Returns the merging within the encoder, even if it is to keep all units.
    pub fn merge(&self) -> Option<Merge> {
        self.0.iter().find_map(|method| match method {
            Reduction::Merge(merge) => Some(*merge),
            _ => None,
        })
    }

    /// Returns the reduction within the language model.
    pub fn language(&self) -> Option<LanguageReduction> {
        self.0.iter().find_map(|method| match method {
            Reduction::Language(language) => Some(*language),
            _ => None,
        })
    }

    /// Returns `true` if units are merged within the encoder.
    pub fn merges(&self) -> bool {
        self.merge().is_some_and(|merge| merge.share < Share::ALL)
    }

    /// Returns `true` if the encoder has to report the attention that its tokens receive.
    pub fn needs_attention(&self) -> bool {
        let needs = |method: &Reduction| matches!(method, Reduction::Attention(share) if *share < Share::ALL);
        self.0.iter().any(needs)
    }

    /// Returns an upper bound of the share of tokens that reach the language model.
    pub fn most(&self) -> f64 {
        let share = |method: &Reduction| match method {
            Reduction::Duplicates(Novel::Share(share)) | Reduction::Still(Novel::Share(share)) => {
                share.get()
            }
            Reduction::Merge(merge) => merge.share.get(),
            other => other.chosen_share().map_or(1.0, Share::get),
        };
        self.0.iter().map(share).product()
    }
}

impl fmt::Display for Reductions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, method) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{}:", method.name())?;
            match method {
                Reduction::Duplicates(novel) | Reduction::Still(novel) => novel.fmt(f)?,
                Reduction::Merge(merge) => merge.fmt(f)?,
                Reduction::Diverse(share)
                | Reduction::Attention(share)
                | Reduction::Question(share)
                | Reduction::Random(share)
                | Reduction::Anchors(Anchors(share))
                | Reduction::Stride(share) => share.fmt(f)?,
                Reduction::Language(language) => language.fmt(f)?,
            }
        }
        Ok(())
    }
}

impl FromStr for Reductions {
    type Err = ReductionError;

    /// Parses `METHOD[:ARGUMENT...][,METHOD...]`.
    fn from_str(text: &str) -> Result<Self, ReductionError> {
        let chain = Self::new(text.split(',').map(parse).collect::<Result<_, _>>()?)?;
        let chooses = |method: &Reduction| match method {
            Reduction::Anchors(_) => false,
            method => ["projector", "prefill"].contains(&method.stage()),
        };
        match chain.anchors().is_some() && !chain.0.iter().any(chooses) {
            true => Err(ReductionError::NothingToProtectFrom),
            false => Ok(chain),
        }
    }
}

fn parse(text: &str) -> Result<Reduction, ReductionError> {
    let text = text.trim();
    let (name, arguments) = match text.split_once(':') {
        Some((name, arguments)) => (name, Some(arguments)),
        None => (text, None),
    };
    let wrong = |expected| ReductionError::Arguments {
        found: text.to_owned(),
        expected,
    };
    let share = || {
        let share = arguments.and_then(|text| text.parse().ok());
        share.ok_or_else(|| wrong("METHOD:RATIO, the share of tokens to keep, such as 0.25 or 25%"))
    };
    let novel = || match arguments {
        None => Ok(Novel::EXACT),
        Some(text) => text.parse().map_err(|()| {
            wrong(
                "the largest difference of equal units, from 0 to 255, or the share of units to \
                 keep, such as 50%",
            )
        }),
    };
    Ok(match name {
        "duplicates" => Reduction::Duplicates(novel()?),
        "still" => Reduction::Still(novel()?),
        "merge" => Reduction::Merge(
            arguments
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| {
                    wrong(
                        "merge:RATIO or merge:RATIO:LAYERS, the share of units to keep and the \
                         layers to merge them in, a number or a percentage",
                    )
                })?,
        ),
        "diverse" => Reduction::Diverse(share()?),
        "attention" => Reduction::Attention(share()?),
        "question" => Reduction::Question(share()?),
        "anchors" => Reduction::Anchors(match arguments {
            None => Anchors::DEFAULT,
            Some(text) => Anchors(text.parse().map_err(|()| {
                wrong("anchors or anchors:RATIO, the share of anchors among the tokens to keep")
            })?),
        }),
        "random" => Reduction::Random(share()?),
        "stride" => Reduction::Stride(share()?),
        "language" => Reduction::Language(
            arguments
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| {
                    wrong("language:LAYER:RATIO, the layers before the reduction, at least 1, and the share of tokens to keep")
                })?,
        ),
        other => return Err(ReductionError::UnknownMethod(other.to_owned())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(text: &str) -> Result<Reductions, ReductionError> {
        text.parse()
    }

    #[test]
    fn methods_run_in_the_order_of_their_places() {
        let chain =
            chain("language:2:0.5,random:10%,diverse:0.5,merge:0.5:25%,duplicates").unwrap();
        let text = "duplicates:0,merge:0.5:25%,random:0.1,diverse:0.5,language:2:0.5";
        assert_eq!(chain.to_string(), text);
        assert_eq!(text.parse(), Ok(chain.clone()));
        assert_eq!(chain.before_prompt().methods().len(), 4);
        assert_eq!(chain.language().map(|language| language.layer), Some(2));
        assert!((chain.most() - 0.025).abs() < 1e-12);
    }

    #[test]
    fn methods_that_depend_on_the_prompt_are_told_apart() {
        let parts = |text: &str| {
            let chain = chain(text).unwrap();
            [chain.before_prompt(), chain.of_prompt()].map(|part| part.to_string())
        };
        assert_eq!(
            parts("question:0.5,merge:0.5,language:2:0.5"),
            ["merge:0.5", "question:0.5"]
        );
        assert_eq!(
            parts("diverse:0.5,question:0.5,random:0.5"),
            ["diverse:0.5", "question:0.5,random:0.5"]
        );
        assert_eq!(
            parts("duplicates,diverse:0.5,anchors"),
            ["duplicates:0", "diverse:0.5,anchors:0.2"]
        );
        assert_eq!(
            parts("anchors:50%,language:2:0.5"),
            [String::new(), "anchors:0.5".to_owned()]
        );
        assert_eq!(parts("diverse:0.5,language:2:0.5"), ["diverse:0.5", ""]);
    }

    #[test]
    fn arguments_are_checked() {
        for wrong in [
            "",
            "merge",
            "merge:0",
            "merge:0.5:0",
            "merge:0.5:101%",
            "diverse:2",
            "language:0.5",
            "language:0:0.5",
            "duplicates:256",
            "duplicates:-1",
            "still:nan",
            "prune:0.5",
            "diverse:0.5,",
            "stride:0.5:0.5",
            "question",
            "question:0",
            "anchors",
            "merge:0.5,anchors",
            "diverse:0.5,anchors:1.5",
        ] {
            assert!(chain(wrong).is_err(), "{wrong}");
        }
        assert_eq!(chain("anchors"), Err(ReductionError::NothingToProtectFrom));
        let twice = chain("random:0.5,random:0.25").unwrap_err();
        assert_eq!(twice, ReductionError::Twice("random"));
    }
}
