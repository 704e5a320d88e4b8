//! Run-time detection and selection of the instruction set.

#[cfg(target_arch = "aarch64")]
use crate::aarch64::{Neon, NeonDotprod};
use crate::cpu::{Isa, Kernels};
use crate::generic::Generic;
#[cfg(target_arch = "x86_64")]
use crate::x86_64::{Avx2, Avx512Vnni, AvxVnni};
use std::sync::OnceLock;

/// Environment variable that overrides the selection: the name of an [`Isa`].
pub const ISA_VARIABLE: &str = "EDGE_LMM_ISA";

impl Isa {
    /// The instruction sets of this machine, in ascending order of speed.
    pub fn available() -> Vec<Isa> {
        Isa::ALL
            .into_iter()
            .filter(|isa| isa.find().is_some())
            .collect()
    }

    /// The fastest instruction set of this machine.
    pub fn best() -> Isa {
        Isa::available().pop().unwrap_or(Isa::Generic)
    }

    /// The instruction set in use: [`best`](Self::best) unless [`ISA_VARIABLE`] names another one.
    pub fn selected() -> &'static Selection {
        static SELECTED: OnceLock<Selection> = OnceLock::new();
        SELECTED.get_or_init(|| select(std::env::var(ISA_VARIABLE).ok().as_deref()))
    }

    /// The kernels of the instruction set, or the portable ones if this machine does not have it.
    pub fn kernels(self) -> &'static dyn Kernels {
        self.find().unwrap_or(&Generic)
    }

    fn find(self) -> Option<&'static dyn Kernels> {
        match self {
            Isa::Generic => Some(&Generic),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Avx2::detect().map(kernels),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => AvxVnni::detect().map(kernels),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Avx512Vnni::detect().map(kernels),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni => None,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Neon::detect().map(kernels),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => NeonDotprod::detect().map(kernels),
            #[cfg(not(target_arch = "aarch64"))]
            Isa::Neon | Isa::NeonDotprod => None,
        }
    }
}

/// The kernels that a token of a detected instruction set gives access to. Tokens are zero-sized, so
/// that this allocates nothing.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn kernels<T: Kernels + 'static>(token: T) -> &'static dyn Kernels {
    const { assert!(size_of::<T>() == 0) };
    Box::leak(Box::new(token))
}

/// The selected instruction set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The instruction set in use.
    pub isa: Isa,
    /// The reason why it is not the one that [`ISA_VARIABLE`] names.
    pub error: Option<String>,
}

fn select(wanted: Option<&str>) -> Selection {
    let Some(wanted) = wanted else {
        return Selection {
            isa: Isa::best(),
            error: None,
        };
    };
    match wanted.parse::<Isa>() {
        Ok(isa) if isa.find().is_some() => Selection { isa, error: None },
        failed => {
            let isa = Isa::best();
            let reason = if failed.is_ok() {
                "not available on this machine"
            } else {
                "unknown"
            };
            let available: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
            let available = available.join(", ");
            Selection {
                isa,
                error: Some(format!(
                    "{ISA_VARIABLE}={wanted} is {reason} (it has {available}): using {isa}"
                )),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_report_their_instruction_set() {
        for isa in Isa::available() {
            assert_eq!(isa.kernels().isa(), isa);
        }
        let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
        println!("instruction sets: {}", names.join(", "));
        assert_eq!(Isa::available()[0], Isa::Generic);
        assert!(Isa::available().contains(&Isa::best()));
    }

    #[test]
    fn an_unavailable_choice_is_refused_with_a_reason() {
        assert_eq!(
            select(Some("generic")),
            Selection {
                isa: Isa::Generic,
                error: None
            }
        );
        let unknown = select(Some("mmx"));
        assert_eq!(unknown.isa, Isa::best());
        assert!(
            unknown
                .error
                .unwrap()
                .contains("EDGE_LMM_ISA=mmx is unknown")
        );
        let missing = Isa::ALL
            .into_iter()
            .find(|isa| !Isa::available().contains(isa))
            .unwrap();
        let refused = select(Some(missing.name()));
        assert_eq!(refused.isa, Isa::best());
        assert!(refused.error.unwrap().contains("not available"));
    }
}
