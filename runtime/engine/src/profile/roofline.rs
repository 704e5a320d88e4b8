//! Peaks of the machine, and which of them limits a module.

use edge_lmm_kernels::peak::{self, Effort};
use edge_lmm_kernels::{memory, pool};
use edge_lmm_ops::Format;
use edge_lmm_ops::stage::Work;

use super::report::{Bound, Peak, Roofline};
use crate::report::reset_peak_resident;

/// A module that reaches less than this share of its roofline is limited by something else, such as
/// latency, work that is not counted, or waiting threads.
const LEAST_SHARE: f64 = 0.1;

/// Throughput of a module and its place under the roofline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Reached {
    pub gflops: Option<f64>,
    pub gbs: Option<f64>,
    pub bound: Bound,
    pub share: Option<f64>,
}

impl Roofline {
    /// Measures the peaks of the CPU with all threads of the process-wide pool, in about a second. This
    /// takes 256 MiB of memory and makes the peak resident memory of this process begin anew.
    pub fn measure() -> Self {
        let pool = pool::global();
        let peaks = Format::ALL.map(|format| Peak {
            format: format.to_string(),
            // Two operations per multiply-accumulate.
            macs_per_second: peak::operations_per_second_with(&pool, format, Effort::Quick)
                .map(|operations| operations / 2.0),
        });
        let bytes_per_second = peak::read_bandwidth_with(&pool, Effort::Quick);
        memory::release_free();
        reset_peak_resident();
        Self {
            bytes_per_second,
            peaks: peaks.to_vec(),
        }
    }

    /// Returns the shortest possible time of work in seconds: that of its arithmetic, and that of
    /// its memory traffic. `None` if the peak of a format is not known.
    fn shortest(&self, work: &Work) -> Option<[f64; 2]> {
        let mut compute = 0.0;
        for (format, &macs) in Format::ALL.iter().zip(&work.macs) {
            if macs > 0 {
                let name = format.to_string();
                let peak = self.peaks.iter().find(|peak| peak.format == name)?;
                compute += macs as f64 / peak.macs_per_second?;
            }
        }
        Some([compute, work.bytes as f64 / self.bytes_per_second])
    }
}

/// Compares work that took `seconds` with the peaks.
pub(super) fn reached(work: &Work, seconds: f64, roofline: Option<&Roofline>) -> Reached {
    let per_second = |count: u64, factor: f64| {
        (count > 0 && seconds > 0.0).then(|| factor * count as f64 / seconds / 1e9)
    };
    let (gflops, gbs) = (
        per_second(work.total_macs(), 2.0),
        per_second(work.bytes, 1.0),
    );
    let shortest = roofline.and_then(|roofline| roofline.shortest(work));
    let counted = gbs.and(shortest);
    let share = counted.map(|[compute, memory]| compute.max(memory) / seconds);
    let bound = match (counted, share) {
        (Some([compute, memory]), Some(share)) if share >= LEAST_SHARE => match memory > compute {
            true => Bound::Memory,
            false => Bound::Compute,
        },
        _ => Bound::Neither,
    };
    Reached {
        gflops,
        gbs,
        bound,
        share,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roofline() -> Roofline {
        let peak = |format: Format| Peak {
            format: format.to_string(),
            macs_per_second: Some(1e9),
        };
        Roofline {
            bytes_per_second: 1e9,
            peaks: Format::ALL.map(peak).to_vec(),
        }
    }

    fn work(macs: u64, bytes: u64) -> Work {
        let mut work = Work {
            bytes,
            ..Work::default()
        };
        work.macs[0] = macs;
        work
    }

    #[test]
    fn the_larger_time_is_the_bound() {
        let roofline = roofline();
        let memory = reached(&work(1_000, 1_000_000), 2e-3, Some(&roofline));
        assert_eq!((memory.bound, memory.share), (Bound::Memory, Some(0.5)));
        assert_eq!((memory.gflops, memory.gbs), (Some(1e-3), Some(0.5)));
        let compute = reached(&work(2_000_000, 1_000_000), 4e-3, Some(&roofline));
        assert_eq!((compute.bound, compute.share), (Bound::Compute, Some(0.5)));
    }

    #[test]
    fn slow_modules_are_limited_by_neither() {
        let slow = reached(&work(1_000, 1_000_000), 1.0, Some(&roofline()));
        assert_eq!((slow.bound, slow.share), (Bound::Neither, Some(1e-3)));
        let nothing = reached(&Work::default(), 1.0, Some(&roofline()));
        assert_eq!((nothing.bound, nothing.share), (Bound::Neither, None));
        let unknown = reached(&work(1_000, 1_000_000), 2e-3, None);
        assert_eq!((unknown.bound, unknown.share), (Bound::Neither, None));
        assert_eq!(unknown.gbs, Some(0.5));
    }

    #[test]
    fn formats_have_peaks_of_their_own() {
        let mut roofline = roofline();
        roofline.peaks[0].macs_per_second = Some(1e6);
        let reached = reached(&work(1_000, 1), 2e-3, Some(&roofline));
        assert_eq!(reached.share, Some(0.5));
        roofline.peaks[0].macs_per_second = None;
        assert_eq!(
            super::reached(&work(1_000, 1), 2e-3, Some(&roofline)).share,
            None
        );
    }
}
