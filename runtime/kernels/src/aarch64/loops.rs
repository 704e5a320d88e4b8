//! Loops over the panels, groups and blocks of products with quantized weights, as macros: the bodies differ
//! by their target features.

/// Defines a function that multiplies a panel by one token, with the sums in registers:
/// - `unpack`: loads the vectors of a block,
/// - `add(sums, w, operands)`: adds the products of a block to the sums of the group.
///
/// The function prefetches the panel `ahead` panels ahead; 0 after the last panel, because the next one
/// belongs to another task.
macro_rules! one_token {
    ($name:ident, $features:literal, $bytes:literal, $unpack:ident, $add:expr) => {
        /// Multiplies a panel by one token.
        ///
        /// # Safety
        /// The operands must be those of [`Operands::new`].
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $name(mut operands: Operands, ahead: usize) {
            // SAFETY: as promised by the caller.
            unsafe {
                let mut acc = load_floats(operands.acc);
                while operands.blocks > 0 {
                    let mut group = [vdupq_n_s32(0); 2];
                    prefetch_header(&operands, ahead);
                    for _ in 0..operands.group_blocks() {
                        prefetch::<$bytes>(operands.ahead(ahead));
                        let w = $unpack(&operands);
                        group = $add(group, &w, &operands);
                        operands.advance_block();
                    }
                    let w_scale = load_halves(operands.scales);
                    acc = scaled(group, w_scale, *operands.x_scale, acc);
                    operands.advance_group();
                }
                store_floats(operands.acc, acc);
            }
        }
    };
}

/// Defines a function that multiplies a panel by a tile. The weights of a block stay in registers for all
/// tokens:
/// - `unpack`: loads the vectors of a block,
/// - `sub_scales`: loads its sub-block scales,
/// - `add(sums, w, x, sub_scales)`: adds the products of a block and a token to the sums of the
///   group.
macro_rules! many_tokens {
    ($name:ident, $features:literal, $bytes:literal, $unpack:ident, $sub_scales:ident, $add:ident) => {
        /// Multiplies a panel by a tile.
        ///
        /// # Safety
        /// The operands must be those of [`Operands::new`].
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $name(mut operands: Operands) {
            let mut group = [[vdupq_n_s32(0); 2]; TILE_TOKENS];
            // SAFETY: as promised by the caller.
            unsafe {
                while operands.blocks > 0 {
                    for _ in 0..operands.group_blocks() {
                        prefetch::<$bytes>(operands.ahead(1));
                        let w = $unpack(&operands);
                        let sub_scales = $sub_scales(&operands);
                        for (t, group) in group.iter_mut().enumerate().take(operands.tokens) {
                            let x = operands.x.add(BLOCK * t);
                            *group = $add(*group, &w, x, sub_scales);
                        }
                        operands.advance_block();
                    }
                    let w_scale = load_halves(operands.scales);
                    for (t, group) in group.iter_mut().enumerate().take(operands.tokens) {
                        let acc = operands.acc.add(t * operands.stride);
                        let x_scale = *operands.x_scale.add(t);
                        store_floats(acc, scaled(*group, w_scale, x_scale, load_floats(acc)));
                        *group = [vdupq_n_s32(0); 2];
                    }
                    operands.advance_group();
                }
            }
        }
    };
}

/// Defines a function that multiplies `count` panels by a tile, from functions for one panel.
macro_rules! panels {
    ($name:ident, $features:literal, $one_token:ident, $many_tokens:expr) => {
        /// Multiplies `count` panels by a tile.
        ///
        /// # Safety
        /// The operands must be those of [`Operands::new`], for `count` panels.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(operands: Operands, count: usize) {
            // SAFETY: as promised by the caller.
            unsafe {
                for panel in 0..count {
                    if operands.tokens == 1 {
                        $one_token(operands.panel(panel), usize::from(panel + 1 < count));
                    } else {
                        $many_tokens(operands.panel(panel));
                    }
                }
            }
        }
    };
}

pub(super) use {many_tokens, one_token, panels};
