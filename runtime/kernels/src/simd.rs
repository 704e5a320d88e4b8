//! Code shared by all SIMD instruction sets, as macros: the bodies differ only by the vector type
//! and its intrinsics, and `#[target_feature]` needs literals.

use crate::cpu::Strided;
use crate::format::PANEL;

/// Panics unless the operands of a matrix product have the lengths that its size requires.
pub(crate) fn check_matmul<T>(
    [m, n, k]: [usize; 3],
    a: Strided<'_>,
    b: Strided<'_, T>,
    c: &[f32],
    c_stride: usize,
) {
    let fits = |rows: usize, cols: usize, stride: usize, len: usize| {
        rows == 0
            || cols == 0
            || (rows - 1)
                .checked_mul(stride)
                .and_then(|n| n.checked_add(cols))
                .is_some_and(|n| n <= len)
    };
    assert!(n.is_multiple_of(PANEL), "{n} columns");
    assert!(
        fits(m, k, a.stride, a.data.len()),
        "left operand of {m} x {k}"
    );
    assert!(
        fits(k, n, b.stride, b.data.len()),
        "right operand of {k} x {n}"
    );
    assert!(fits(m, n, c_stride, c.len()), "result of {m} x {n}");
}

/// Defines `tile`, a matrix product whose result stays in registers, for a vector type:
/// - `load`: converts `lanes` elements to a vector of floats,
/// - `load_floats`, `store`: the same for `f32`, and the reverse,
/// - `splat(x)`: the left operand of `fma`,
/// - `fma(x, b, c)`: `x * b + c`.
macro_rules! float_tile {
    (
        features: $features:literal,
        vector: $vector:ty,
        lanes: $lanes:literal,
        zero: $zero:expr,
        load: $load:ident,
        load_floats: $load_floats:ident,
        store: $store:ident,
        splat: $splat:expr,
        fma: $fma:expr $(,)?
    ) => {
        /// Computes `R` rows and `V` vectors of columns of a matrix product in registers.
        ///
        /// # Safety
        /// `a` must be readable for `R` rows of `k` elements, `b` for `k` rows of `V` vectors, and `c`
        /// writable for `R` rows of `V` vectors.
        #[inline]
        #[target_feature(enable = $features)]
        // The operands are passed one by one so that they stay in registers.
        #[allow(clippy::too_many_arguments)]
        pub(crate) unsafe fn tile<const R: usize, const V: usize, T: Element>(
            k: usize,
            a: *const f32,
            a_stride: usize,
            b: *const T,
            b_stride: usize,
            add: bool,
            c: *mut f32,
            c_stride: usize,
        ) {
            // SAFETY: as promised by the caller.
            unsafe {
                let mut acc: [[$vector; V]; R] = [[$zero; V]; R];
                for r in 0..if add { R } else { 0 } {
                    for v in 0..V {
                        acc[r][v] = $load_floats(c.add(r * c_stride + $lanes * v));
                    }
                }
                for p in 0..k {
                    let mut row = [$zero; V];
                    for (v, row) in row.iter_mut().enumerate() {
                        *row = $load(b.add(p * b_stride + $lanes * v));
                    }
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let x = $splat(*a.add(r * a_stride + p));
                        for v in 0..V {
                            acc[v] = $fma(x, row[v], acc[v]);
                        }
                    }
                }
                for r in 0..R {
                    for v in 0..V {
                        $store(c.add(r * c_stride + $lanes * v), acc[r][v]);
                    }
                }
            }
        }
    };
}

/// Defines `matmul`, a matrix product that is divided into strips of columns and those into tiles:
/// for each kind of strip the `tile` function, its vectors and columns, and the numbers of rows that
/// it is compiled for, which must be `1, 2, ..`.
macro_rules! matmul {
    ($features:literal; $($tile:ident, $vectors:literal, $columns:literal, [$($rows:literal)+]);+ $(;)?) => {
        /// Matrix product; see [`Kernels::matmul`](crate::cpu::Kernels::matmul).
        #[target_feature(enable = $features)]
        pub(crate) fn matmul<T: Element>(
            size: [usize; 3],
            a: Strided<'_>,
            b: Strided<'_, T>,
            add: bool,
            c: &mut [f32],
            c_stride: usize,
        ) {
            $crate::simd::check_matmul(size, a, b, c, c_stride);
            let [m, n, k] = size;
            let (c, mut j) = (c.as_mut_ptr(), 0);
            // SAFETY: the operands are checked above.
            unsafe {
                $(while j + $columns <= n {
                    let mut i = 0;
                    while i < m {
                        const MAX: usize = [$($rows),+].len();
                        let a_rows = a.data.as_ptr().wrapping_add(i * a.stride);
                        let b_columns = b.data.as_ptr().wrapping_add(j);
                        let c = c.add(i * c_stride + j);
                        let rows = (m - i).min(MAX);
                        match rows {
                            $($rows => $tile::<$rows, $vectors, T>(
                                k, a_rows, a.stride, b_columns, b.stride, add, c, c_stride,
                            ),)+
                            _ => unreachable!("at most {MAX} rows"),
                        }
                        i += rows;
                    }
                    j += $columns;
                })+
            }
        }
    };
}

/// Defines `float_gemv`, products of float panels with one token, and `widen`, the conversion of
/// half-precision numbers, from parts as in [`float_tile`] and `load_row`, which converts 8 elements to
/// vectors of floats.
macro_rules! float_rows {
    (
        features: $features:literal,
        vector: $vector:ty,
        lanes: $lanes:literal,
        zero: $zero:expr,
        load_row: $load_row:ident,
        store: $store:ident,
        splat: $splat:expr,
        fma: $fma:expr $(,)?
    ) => {
        /// Vectors of the 8 rows of a panel.
        const VECTORS: usize = PANEL / $lanes;

        /// Multiplies `N` panels by one token, so that `N * VECTORS` independent accumulators hide the
        /// latency of the multiply-adds.
        ///
        /// # Safety
        /// `panels` must be readable for `N` panels of `x.len()` inputs, `acc` writable for `8 N`
        /// floats.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn gemv<const N: usize, T: Element>(
            panels: *const u8,
            panel_bytes: usize,
            x: &[f32],
            acc: *mut f32,
        ) {
            let mut sums: [[$vector; VECTORS]; N] = [[$zero; VECTORS]; N];
            for (i, x) in x.iter().enumerate() {
                let x = $splat(*x);
                for (p, sums) in sums.iter_mut().enumerate() {
                    let w = panels.wrapping_add(p * panel_bytes).cast::<T>();
                    // SAFETY: as promised by the caller.
                    let w: [$vector; VECTORS] = unsafe { $load_row(w.add(i * PANEL)) };
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = $fma(x, w, *sum);
                    }
                }
            }
            for (p, sums) in sums.into_iter().enumerate() {
                for (v, sum) in sums.into_iter().enumerate() {
                    // SAFETY: as promised by the caller.
                    unsafe { $store(acc.add(p * PANEL + $lanes * v), sum) };
                }
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn gemv_all<T: Element>(panels: &[u8], panel_bytes: usize, x: &[f32], acc: &mut [f32]) {
            let count = acc.len() / PANEL;
            assert!(
                panel_bytes >= x.len() * size_of::<T>() * PANEL
                    && panels.len() >= count * panel_bytes,
                "{count} panels"
            );
            let mut p = 0;
            // SAFETY: the operands are checked above.
            unsafe {
                while p + 4 <= count {
                    let (panels, acc) = (&panels[p * panel_bytes..], &mut acc[p * PANEL..]);
                    gemv::<4, T>(panels.as_ptr(), panel_bytes, x, acc.as_mut_ptr());
                    p += 4;
                }
                while p < count {
                    let (panels, acc) = (&panels[p * panel_bytes..], &mut acc[p * PANEL..]);
                    gemv::<1, T>(panels.as_ptr(), panel_bytes, x, acc.as_mut_ptr());
                    p += 1;
                }
            }
        }

        /// Products of float panels with one token; see
        /// [`Kernels::float_gemv`](crate::cpu::Kernels::float_gemv).
        #[target_feature(enable = $features)]
        pub(crate) fn float_gemv(
            format: FloatFormat,
            panels: &[u8],
            panel_bytes: usize,
            x: &[f32],
            acc: &mut [f32],
        ) {
            match format {
                FloatFormat::F32 => gemv_all::<f32>(panels, panel_bytes, x, acc),
                FloatFormat::F16 => gemv_all::<f16>(panels, panel_bytes, x, acc),
            }
        }

        /// Converts little-endian half-precision numbers.
        #[target_feature(enable = $features)]
        pub(crate) fn widen(halves: &[u8], out: &mut [f32]) {
            assert_eq!(halves.len(), 2 * out.len(), "two bytes per number");
            let whole = out.len() / PANEL * PANEL;
            for i in (0..whole).step_by(PANEL) {
                // SAFETY: both slices have 8 numbers at `i`.
                unsafe {
                    let wide: [$vector; VECTORS] = $load_row(halves.as_ptr().cast::<f16>().add(i));
                    for (v, wide) in wide.into_iter().enumerate() {
                        $store(out.as_mut_ptr().add(i + $lanes * v), wide);
                    }
                }
            }
            $crate::generic::widen(&halves[2 * whole..], &mut out[whole..]);
        }
    };
}

/// Defines `delta_rule`, the gated delta rule on some columns of a state, from parts as in [`float_tile`];
/// `mul(x, b)` is `x * b`.
macro_rules! delta_rule {
    (
        features: $features:literal,
        vector: $vector:ty,
        lanes: $lanes:literal,
        zero: $zero:expr,
        load: $load:ident,
        store: $store:ident,
        splat: $splat:expr,
        fma: $fma:expr,
        mul: $mul:expr $(,)?
    ) => {
        /// Vectors of a row of the state.
        const VECTORS: usize = COLUMNS / $lanes;

        /// One pass over the state; the slices of `added` and `next` count only if there is such a token.
        #[target_feature(enable = $features)]
        fn pass<const ADDED: bool, const NEXT: bool>(
            state: &mut [Row],
            added: Added<'_>,
            next: Next<'_>,
        ) -> [Row; 2] {
            let rows = state.len();
            let (key, query) = (&added.key[..rows], &added.query[..rows]);
            let next_key = &next.key[..rows];
            let decay = $splat(next.decay);
            let mut update = [$zero; VECTORS];
            let mut sums = [[$zero; VECTORS]; 2];
            // SAFETY: a row has `VECTORS` vectors.
            unsafe {
                for (v, update) in update.iter_mut().enumerate() {
                    *update = $load(added.update.as_ptr().add($lanes * v));
                }
                for i in 0..rows {
                    let row = state[i].as_mut_ptr();
                    for v in 0..VECTORS {
                        let mut x = $load(row.add($lanes * v));
                        if ADDED {
                            x = $fma($splat(key[i]), update[v], x);
                            sums[0][v] = $fma($splat(query[i]), x, sums[0][v]);
                        }
                        if NEXT {
                            x = $mul(decay, x);
                            sums[1][v] = $fma($splat(next_key[i]), x, sums[1][v]);
                        }
                        $store(row.add($lanes * v), x);
                    }
                }
                let mut results = [[0.0; COLUMNS]; 2];
                for (result, sums) in results.iter_mut().zip(sums) {
                    for (v, sum) in sums.into_iter().enumerate() {
                        $store(result.as_mut_ptr().add($lanes * v), sum);
                    }
                }
                results
            }
        }

        /// The gated delta rule; see [`Kernels::delta_rule`](crate::cpu::Kernels::delta_rule).
        #[target_feature(enable = $features)]
        pub(crate) fn delta_rule(steps: DeltaSteps<'_>, state: &mut [f32], out: &mut [f32]) {
            passes(steps, state, out, |state, added, next| {
                match (added, next) {
                    (Some(added), Some(next)) => pass::<true, true>(state, added, next),
                    (Some(added), None) => {
                        let (decay, key) = (1.0, added.key);
                        pass::<true, false>(state, added, Next { decay, key })
                    }
                    (None, Some(next)) => {
                        let (key, query) = (next.key, next.key);
                        let update = [0.0; COLUMNS];
                        pass::<false, true>(state, Added { key, update, query }, next)
                    }
                    (None, None) => [[0.0; COLUMNS]; 2],
                }
            });
        }
    };
}

/// Implements [`Kernels`](crate::cpu::Kernels) for a token, whose existence proves that this machine
/// has `features`. `quantized` lists the kernel of each quantized format, `peak` the loop of each.
macro_rules! simd_kernels {
    (
        $token:ident,
        features: $features:literal,
        scheme: $scheme:expr,
        quantized: { Q8: $q8:expr, Q4: $q4:expr },
        matmul: $matmul:path,
        gemv: $gemv:path,
        widen: $widen:path,
        delta_rule: $delta_rule:path,
        peak: { Float: $peak_float:path, Q8: $peak_q8:path, Q4: $peak_q4:path } $(,)?
    ) => {
        impl Kernels for $token {
            fn isa(&self) -> Isa {
                Isa::$token
            }

            fn activation_scheme(&self, format: QuantFormat) -> ActivationScheme {
                $scheme(format)
            }

            fn quantized(
                &self,
                panels: Panels<'_>,
                range: Range<usize>,
                tile: Tile<'_>,
                acc: &mut [f32],
            ) {
                let operands = Operands::new(panels, range, tile, acc);
                // SAFETY: the operands are checked, and the token proves that this machine has the
                // features.
                unsafe {
                    match panels.format {
                        QuantFormat::Q8 => $q8(operands, panels.count()),
                        QuantFormat::Q4 => $q4(operands, panels.count()),
                    }
                }
            }

            fn matmul(
                &self,
                size: [usize; 3],
                a: Strided<'_>,
                b: Strided<'_>,
                add: bool,
                c: &mut [f32],
                c_stride: usize,
            ) {
                // SAFETY: the token proves that this machine has the features.
                unsafe { $matmul(size, a, b, add, c, c_stride) }
            }

            fn matmul_half(
                &self,
                size: [usize; 3],
                a: Strided<'_>,
                b: Strided<'_, f16>,
                c: &mut [f32],
                c_stride: usize,
            ) {
                // SAFETY: the token proves that this machine has the features.
                unsafe { $matmul(size, a, b, false, c, c_stride) }
            }

            fn float_gemv(
                &self,
                format: FloatFormat,
                panels: &[u8],
                panel_bytes: usize,
                x: &[f32],
                acc: &mut [f32],
            ) {
                // SAFETY: the token proves that this machine has the features.
                unsafe { $gemv(format, panels, panel_bytes, x, acc) }
            }

            fn widen(&self, halves: &[u8], out: &mut [f32]) {
                // SAFETY: the token proves that this machine has the features.
                unsafe { $widen(halves, out) }
            }

            fn delta_rule(&self, steps: DeltaSteps<'_>, state: &mut [f32], out: &mut [f32]) {
                // SAFETY: the token proves that this machine has the features.
                unsafe { $delta_rule(steps, state, out) }
            }

            row_kernels!(true, $features);

            fn peak_loop(&self, format: Format, rounds: u32) -> Option<u64> {
                // SAFETY: the token proves that this machine has the features.
                Some(unsafe {
                    match format.kind() {
                        FormatKind::Float(FloatFormat::F32 | FloatFormat::F16) => {
                            $peak_float(rounds)
                        }
                        FormatKind::Quant(QuantFormat::Q8) => $peak_q8(rounds),
                        FormatKind::Quant(QuantFormat::Q4) => $peak_q4(rounds),
                    }
                })
            }
        }
    };
}

/// Defines a function that runs `rounds` rounds of independent chains of instructions on registers
/// and returns the number of operations:
/// - `chains`: the accumulator registers,
/// - `chain`: a macro that gives the instructions of one chain for its accumulator,
/// - `inputs`: registers and their values,
/// - `clobbers`: temporary registers,
/// - `count`: the instructions that decrement `{rounds}` and branch to label `2`,
/// - `operations`: operations of one chain and round.
macro_rules! peak_loop {
    (
        $(#[$meta:meta])*
        $name:ident,
        features: $features:literal,
        chain: $chain:ident,
        chains: [$($register:tt)+],
        inputs: [$($input:tt = $value:expr),+],
        clobbers: [$($clobber:tt)*],
        count: [$($count:literal)+],
        operations: $operations:literal $(,)?
    ) => {
        $(#[$meta])*
        #[target_feature(enable = $features)]
        pub(crate) fn $name(rounds: u32) -> u64 {
            // The loop runs at least once.
            let rounds = rounds.max(1);
            // SAFETY: the instructions work on registers only and are of features that this function
            // requires.
            unsafe {
                asm!(
                    "2:",
                    $($chain!($register),)+
                    $($count,)+
                    rounds = inout(reg) rounds => _,
                    $(in($input) $value,)+
                    $(out($register) _,)+
                    $(out($clobber) _,)*
                    options(nomem, nostack),
                );
            }
            const OPERATIONS: u64 = [$($register),+].len() as u64 * $operations;
            u64::from(rounds) * OPERATIONS
        }
    };
}

pub(crate) use {delta_rule, float_rows, float_tile, matmul, peak_loop, simd_kernels};
