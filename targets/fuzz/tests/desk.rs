//! Runs the targets of commands for workstations.

use edge_lmm_fuzz::DESK_TARGETS;

mod support;

targets! {
    DESK_TARGETS,
    hub_files: 3000,
    dataset: 1500,
}
