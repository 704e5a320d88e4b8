//! Answers whose device is chosen at run time.

use edge_lmm_ops::KernelBackend;

use crate::Cpu;
use crate::any_device::after_failure;
use crate::device::Device;
use crate::error::EngineError;
use crate::request::Answer;
use crate::session::{Generation, Token};

/// An answer of a model on one of the devices that this program was built for, begun by
/// [`AnySession::begin`](crate::AnySession::begin).
#[non_exhaustive]
pub enum AnyGeneration {
    /// On the processor.
    Cpu(Generation<'static, Cpu>),
    /// On an NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(Generation<'static, crate::Cuda>),
    /// On a Vulkan device.
    #[cfg(feature = "vulkan")]
    Vulkan(Generation<'static, crate::Vulkan>),
}

/// The same expression for the answer of any device.
macro_rules! each {
    ($self:expr, $answer:ident => $do:expr) => {
        match $self {
            AnyGeneration::Cpu($answer) => $do,
            #[cfg(feature = "cuda")]
            AnyGeneration::Cuda($answer) => $do,
            #[cfg(feature = "vulkan")]
            AnyGeneration::Vulkan($answer) => $do,
        }
    };
}

/// Tokens with the places of their answers.
type Placed = (usize, Option<Result<Token, EngineError>>);

impl AnyGeneration {
    /// Returns the next token of each of the answers, see [`Generation::next_together`].
    pub fn next_together<'a>(
        answers: impl IntoIterator<Item = &'a mut Self>,
    ) -> Vec<Option<Result<Token, EngineError>>> {
        let mut cpu = Vec::new();
        #[cfg(feature = "cuda")]
        let mut cuda = Vec::new();
        #[cfg(feature = "vulkan")]
        let mut vulkan = Vec::new();
        for (place, answer) in answers.into_iter().enumerate() {
            match answer {
                Self::Cpu(answer) => cpu.push((place, answer)),
                #[cfg(feature = "cuda")]
                Self::Cuda(answer) => cuda.push((place, answer)),
                #[cfg(feature = "vulkan")]
                Self::Vulkan(answer) => vulkan.push((place, answer)),
            }
        }
        let tokens = of_device(cpu);
        #[cfg(feature = "cuda")]
        let tokens = tokens.chain(of_device(cuda));
        #[cfg(feature = "vulkan")]
        let tokens = tokens.chain(of_device(vulkan));
        let mut tokens: Vec<Placed> = tokens.collect();
        tokens.sort_by_key(|&(place, _)| place);
        tokens.into_iter().map(|(_, token)| token).collect()
    }

    /// See [`Generation::has_ended`].
    pub fn has_ended(&self) -> bool {
        each!(self, answer => answer.has_ended())
    }

    /// Returns the bytes of memory that the conversation may still take: keys and values that are
    /// reserved and not in use yet. On a GPU they are allocated from the start.
    pub fn reserved_bytes(&self) -> usize {
        match self {
            Self::Cpu(answer) => answer.reserved_bytes(),
            #[cfg(any(feature = "cuda", feature = "vulkan"))]
            _ => 0,
        }
    }

    /// See [`Generation::finish`].
    ///
    /// # Errors
    /// As [`Generation::finish`].
    pub fn finish(self) -> Result<(Answer, String), EngineError> {
        each!(self, answer => answer.finish())
    }

    /// Ends the answer after an error of its last step. Returns the error; one of the device with
    /// the memory that is free after all conversations were forgotten.
    #[must_use]
    pub fn fail(mut self, error: EngineError) -> EngineError {
        let device = self.device();
        after_failure(error, device, || {
            each!(&mut self, answer => answer.forget());
        })
    }

    fn device(&self) -> Device {
        match self {
            Self::Cpu(_) => Device::Cpu,
            #[cfg(feature = "cuda")]
            Self::Cuda(answer) => Device::Cuda(answer.device().index),
            #[cfg(feature = "vulkan")]
            Self::Vulkan(_) => Device::Vulkan,
        }
    }
}

/// Returns the next token of answers on one device, with their places.
fn of_device<B: KernelBackend>(
    answers: Vec<(usize, &mut Generation<'static, B>)>,
) -> impl Iterator<Item = Placed> + use<B> {
    let (places, answers): (Vec<usize>, Vec<_>) = answers.into_iter().unzip();
    places.into_iter().zip(Generation::next_together(answers))
}
