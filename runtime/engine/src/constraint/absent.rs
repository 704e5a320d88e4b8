//! Stand-ins in builds without the feature `constraints`.

use edge_lmm_models::prompt::TextProcessor;

use super::{Constraint, ConstraintError};

/// A compiler, of which there are none.
pub(crate) enum Compiler {}

impl Compiler {
    pub fn new(_: &TextProcessor, _: &[u32]) -> Result<Self, ConstraintError> {
        Err(ConstraintError::NotBuilt)
    }

    pub fn compile(&self, _: &Constraint) -> Result<Matching, ConstraintError> {
        match *self {}
    }
}

/// The state of an answer with a constraint, of which there are none.
#[derive(Debug)]
pub(crate) enum Matching {}

impl Matching {
    pub fn after(self, _: usize) -> Self {
        match self {}
    }

    pub fn mask(&mut self, _: &mut [f32], _: &[u32]) -> Result<(), ConstraintError> {
        match *self {}
    }

    pub fn is_complete(&mut self, _: &[u32]) -> Result<bool, ConstraintError> {
        match *self {}
    }
}
