//! Rounding of weights so that the outputs of their layer change little.
//!
//! [`gptq`] rounds the inputs of a row one after the other and moves the error of each to the inputs
//! that are left (Frantar et al. 2023, [arXiv:2210.17323](https://arxiv.org/abs/2210.17323), in the
//! equivalent form of LDLQ, Chee et al. 2023, [arXiv:2307.13304](https://arxiv.org/abs/2307.13304)).
//! The scales are chosen before, so that the order of rounding is free and costs nothing at run time.
//! [`improve`] then changes quants, sub-block scales and group scales one at a time wherever that
//! makes the objective smaller.

use std::sync::Mutex;

use edge_lmm_kernels::format::{BLOCK, GROUP, LEVELS, MAX_SUB_SCALE};
use edge_lmm_kernels::pack::Quantized;
use edge_lmm_kernels::pool;
use half::f16;

use super::hessian::Hessian;
use super::products::{columns, product_transposed};

/// Inputs of a group, which share a scale.
pub(super) const WIDTH: usize = GROUP * BLOCK;
/// Largest number of passes of [`improve`] over all groups.
const SWEEPS: usize = 4;

/// Returns the q4 level nearest to `x`.
#[inline(always)]
pub(super) fn nearest(x: f32) -> f32 {
    let x = x.max(f32::from(LEVELS[0])).min(f32::from(LEVELS[15]));
    let fine = x.clamp(-6.0, 5.0);
    fine.round() + 2.0 * ((x - fine) * 0.5).round()
}

/// The quantized rows of a q4 matrix, with access by input.
struct Rows<'a> {
    n: usize,
    blocks: usize,
    groups: usize,
    quantized: &'a mut Quantized,
}

impl<'a> Rows<'a> {
    fn new(n: usize, quantized: &'a mut Quantized) -> Self {
        let blocks = n.div_ceil(BLOCK);
        Self {
            n,
            blocks,
            groups: blocks.div_ceil(GROUP),
            quantized,
        }
    }

    fn scale(&self, row: usize, input: usize) -> f32 {
        let sub_scale = self.quantized.sub_scales[row * self.blocks + input / BLOCK];
        self.quantized.scales[row * self.groups + input / WIDTH].to_f32() * f32::from(sub_scale)
    }

    fn value(&self, row: usize, input: usize) -> f32 {
        f32::from(self.quantized.quants[row * self.n + input]) * self.scale(row, input)
    }
}

fn inverse(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// Replaces the quants of `quantized` by those of GPTQ with its scales.
///
/// # Shapes
/// - weights: `[rows, hessian.n]`
pub(super) fn gptq(weights: &[f32], hessian: &Hessian, quantized: &mut Quantized) {
    let n = hessian.n;
    let rows = weights.len() / n;
    let out = Rows::new(n, quantized);
    let mut state: Vec<Mutex<Target>> = (0..rows)
        .map(|row| {
            let own = &weights[row * n..][..n];
            let target =
                |values: &dyn Fn(usize) -> f32| hessian.order.iter().map(|&i| values(i)).collect();
            Mutex::new(Target {
                weights: target(&|i| own[i]),
                moved: target(&|i| own[i]),
                scales: target(&|i| out.scale(row, i)),
                quants: vec![0; n],
                errors: Vec::new(),
            })
        })
        .collect();
    for start in (0..n).step_by(WIDTH) {
        let end = (start + WIDTH).min(n);
        pool::global().run(rows, |row| {
            let mut target = state[row].lock().expect("no task panics with the lock");
            target.round(hessian, start, end);
        });
        if end == n {
            break;
        }
        let errors: Vec<f32> = (state.iter_mut())
            .flat_map(|target| {
                target
                    .get_mut()
                    .expect("no task panics with the lock")
                    .errors
                    .drain(..)
            })
            .collect();
        let feedback = columns(&hessian.feedback[end * n..], n, start..end);
        let sums = product_transposed(&errors, &feedback, end - start);
        for (target, sums) in state.iter_mut().zip(sums.chunks_exact(n - end)) {
            let target = target.get_mut().expect("no task panics with the lock");
            for (moved, sum) in target.moved[end..].iter_mut().zip(sums) {
                *moved += sum;
            }
        }
    }
    for (row, target) in state.into_iter().enumerate() {
        let target = target.into_inner().expect("no task panics with the lock");
        for (&input, q) in hessian.order.iter().zip(target.quants) {
            out.quantized.quants[row * n + input] = q;
        }
    }
}

/// A row in the order of rounding.
struct Target {
    weights: Vec<f32>,
    /// The weights plus what the errors of the inputs before require.
    moved: Vec<f32>,
    scales: Vec<f32>,
    quants: Vec<i8>,
    /// Errors of the block that was rounded last.
    errors: Vec<f32>,
}

impl Target {
    fn round(&mut self, hessian: &Hessian, start: usize, end: usize) {
        self.errors.clear();
        for k in start..end {
            let feedback = &hessian.feedback[k * hessian.n + start..k * hessian.n + k];
            let sum: f32 = self.errors.iter().zip(feedback).map(|(e, u)| e * u).sum();
            let q = nearest((self.moved[k] + sum) * inverse(self.scales[k]));
            self.quants[k] = q as i8;
            self.errors.push(self.weights[k] - q * self.scales[k]);
        }
    }
}

/// Makes the objective of every row smaller by changes of single quants, sub-block scales and group
/// scales, until there is none or [`SWEEPS`] passes are done.
///
/// # Shapes
/// - weights: `[rows, hessian.n]`
pub(super) fn improve(weights: &[f32], hessian: &Hessian, quantized: &mut Quantized) {
    let n = hessian.n;
    let rows = weights.len() / n;
    let mut out = Rows::new(n, quantized);
    let errors: Vec<f32> = (0..rows * n)
        .map(|at| out.value(at / n, at % n) - weights[at])
        .collect();
    // The matrix is symmetric.
    let mut gradient = product_transposed(&errors, &hessian.values, n);
    drop(errors);
    for _ in 0..SWEEPS {
        let mut changed = false;
        for g in 0..out.groups {
            let inputs = g * WIDTH..((g + 1) * WIDTH).min(n);
            let width = inputs.len();
            let own_rows = &hessian.values[inputs.start * n..inputs.end * n];
            let local = columns(own_rows, n, inputs.clone());
            let slots: Vec<Mutex<Option<Group>>> = (0..rows).map(|_| Mutex::default()).collect();
            pool::global().run(rows, |row| {
                let gradient = &gradient[row * n + inputs.start..][..width];
                let mut group = Group::new(&out, row, g, gradient, &local);
                group.improve();
                *slots[row].lock().expect("no task panics with the lock") = Some(group);
            });
            let (mut changed_rows, mut changes) = (Vec::new(), Vec::new());
            for (row, slot) in slots.into_iter().enumerate() {
                let group = slot.into_inner().expect("no task panics with the lock");
                let group = group.expect("every task fills its slot");
                if group.changed() {
                    changed_rows.push(row);
                    group.store(&mut out, row, g, &mut changes);
                }
            }
            if changed_rows.is_empty() {
                continue;
            }
            changed = true;
            let coupling = columns(&hessian.values, n, inputs);
            let sums = product_transposed(&changes, &coupling, width);
            for (row, sums) in changed_rows.into_iter().zip(sums.chunks_exact(n)) {
                let gradient = gradient[row * n..][..n].iter_mut();
                gradient.zip(sums).for_each(|(g, sum)| *g += sum);
            }
        }
        if !changed {
            return;
        }
    }
}

/// A row and group while it is improved.
struct Group<'a> {
    width: usize,
    scale: f16,
    sub_scales: [i8; GROUP],
    quants: [f32; WIDTH],
    /// Values before all changes.
    before: [f32; WIDTH],
    /// Half the derivative of the objective by each value.
    gradient: [f32; WIDTH],
    /// The objective's matrix for the group's inputs: `[width, width]`.
    hessian: &'a [f32],
}

impl<'a> Group<'a> {
    fn new(rows: &Rows<'_>, row: usize, g: usize, gradient: &[f32], hessian: &'a [f32]) -> Self {
        let width = gradient.len();
        let mut group = Self {
            width,
            scale: rows.quantized.scales[row * rows.groups + g],
            sub_scales: [0; GROUP],
            quants: [0.0; WIDTH],
            before: [0.0; WIDTH],
            gradient: [0.0; WIDTH],
            hessian,
        };
        let blocks = width.div_ceil(BLOCK);
        let first = row * rows.blocks + g * GROUP;
        group.sub_scales[..blocks].copy_from_slice(&rows.quantized.sub_scales[first..][..blocks]);
        group.gradient[..width].copy_from_slice(gradient);
        for i in 0..width {
            group.quants[i] = f32::from(rows.quantized.quants[row * rows.n + g * WIDTH + i]);
            group.before[i] = group.value(i);
        }
        group
    }

    fn step(&self, i: usize) -> f32 {
        self.scale.to_f32() * f32::from(self.sub_scales[i / BLOCK])
    }

    fn value(&self, i: usize) -> f32 {
        self.quants[i] * self.step(i)
    }

    fn changed(&self) -> bool {
        (0..self.width).any(|i| self.value(i) != self.before[i])
    }

    fn improve(&mut self) {
        while self.round_again(0..self.width) < 0.0 {}
        for b in 0..self.width.div_ceil(BLOCK) {
            for step in [-1, 1] {
                self.try_sub_scale(b, step);
            }
        }
        self.try_scale();
        while self.round_again(0..self.width) < 0.0 {}
    }

    /// Adds `change` to value `i`; returns the change of the objective.
    #[inline(always)]
    fn shift(&mut self, i: usize, change: f32) -> f32 {
        let row = &self.hessian[i * self.width..][..self.width];
        let objective = change * (2.0 * self.gradient[i] + change * row[i]);
        for (gradient, h) in self.gradient[..self.width].iter_mut().zip(row) {
            *gradient += change * h;
        }
        objective
    }

    /// Moves each value to the level that is best while the others stay. Returns the change of the
    /// objective; 0 if no value has moved.
    fn round_again(&mut self, inputs: std::ops::Range<usize>) -> f32 {
        let mut objective = 0.0;
        for i in inputs {
            let step = self.step(i);
            let pivot = self.hessian[i * self.width + i];
            let best = self.quants[i] * step - self.gradient[i] / pivot;
            let q = nearest(best * inverse(step));
            if q != self.quants[i] {
                let change = (q - self.quants[i]) * step;
                // Rounding errors must not make values alternate.
                let gain = change * (2.0 * self.gradient[i] + change * pivot);
                if gain < -1e-5 * pivot * change * change {
                    objective += self.shift(i, change);
                    self.quants[i] = q;
                }
            }
        }
        objective
    }

    /// Changes the scale of block `b` by `step` if the objective is then smaller.
    fn try_sub_scale(&mut self, b: usize, step: i8) {
        let sub_scale = self.sub_scales[b] + step;
        if sub_scale.abs() > MAX_SUB_SCALE {
            return;
        }
        let before = (self.sub_scales[b], self.quants, self.gradient);
        let inputs = b * BLOCK..((b + 1) * BLOCK).min(self.width);
        let old = self.scale.to_f32() * f32::from(self.sub_scales[b]);
        self.sub_scales[b] = sub_scale;
        let new = self.scale.to_f32() * f32::from(sub_scale);
        let mut objective = 0.0;
        for i in inputs.clone() {
            let pivot = self.hessian[i * self.width + i];
            let value = self.quants[i] * old;
            let q = nearest((value - self.gradient[i] / pivot) * inverse(new));
            objective += self.shift(i, q * new - value);
            self.quants[i] = q;
        }
        objective += self.round_again(inputs);
        if objective >= 0.0 {
            (self.sub_scales[b], self.quants, self.gradient) = before;
        }
    }

    /// Takes the group scale that is best for the quants if the objective is then smaller.
    fn try_scale(&mut self) {
        let unit = |i: usize| self.quants[i] * f32::from(self.sub_scales[i / BLOCK]);
        let units: Vec<f32> = (0..self.width).map(unit).collect();
        let units = &*units;
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let slope: Vec<f32> = (self.hessian.chunks_exact(self.width))
            .map(|row| dot(row, units))
            .collect();
        let curvature = dot(&slope, units);
        let gradient = dot(&self.gradient[..self.width], units);
        let scale = f16::from_f32(self.scale.to_f32() - gradient / curvature);
        if !(curvature > 0.0 && scale.is_finite()) {
            return;
        }
        let change = scale.to_f32() - self.scale.to_f32();
        if change * (2.0 * gradient + change * curvature) < 0.0 {
            self.scale = scale;
            for (gradient, slope) in self.gradient.iter_mut().zip(&slope) {
                *gradient += change * slope;
            }
        }
    }

    /// Writes the group to row `row` and appends the changes of its values.
    fn store(&self, rows: &mut Rows<'_>, row: usize, g: usize, changes: &mut Vec<f32>) {
        rows.quantized.scales[row * rows.groups + g] = self.scale;
        let blocks = self.width.div_ceil(BLOCK);
        let first = row * rows.blocks + g * GROUP;
        rows.quantized.sub_scales[first..][..blocks].copy_from_slice(&self.sub_scales[..blocks]);
        for i in 0..self.width {
            rows.quantized.quants[row * rows.n + g * WIDTH + i] = self.quants[i] as i8;
            changes.push(self.value(i) - self.before[i]);
        }
    }
}
