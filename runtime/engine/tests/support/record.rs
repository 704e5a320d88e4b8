//! Records of models that a test builds.

use std::path::Path;

use edge_lmm::output::Output;
use edge_lmm::record::{Description, PackedFormat, RecordInfo, schema, write_record};
use edge_lmm_kernels::Format;
use edge_lmm_kernels::format::MatrixShape;
use edge_lmm_kernels::pack::pack_rows;
use edge_lmm_models::family::ModelFiles;
use edge_lmm_models::weights::{Storage, WeightSpec};

/// Writes the record of a model with the weights `specs`. `format` returns the format of a packed
/// weight, `values` the values of any weight.
pub fn write(
    path: &Path,
    files: ModelFiles,
    (tokenizer, template): (&str, Option<&str>),
    specs: &[WeightSpec],
    format: impl Fn(&WeightSpec) -> Format,
    values: impl Fn(&WeightSpec) -> Vec<f32>,
) {
    let packed = specs
        .iter()
        .filter(|spec| matches!(spec.storage, Storage::Packed { .. }));
    let info = RecordInfo {
        format_version: schema::FORMAT_VERSION,
        files,
        formats: packed
            .map(|spec| (spec.name.clone(), PackedFormat(format(spec))))
            .collect(),
        sources: Vec::new(),
        converter: "test".to_owned(),
    };
    let bytes = |spec: &WeightSpec| -> Vec<u8> {
        let values = values(spec);
        match spec.storage {
            Storage::Packed { cols } => {
                let shape = MatrixShape::new(format(spec), spec.rows(), cols);
                let mut bytes = Vec::new();
                pack_rows(shape, &values, &mut bytes).expect("finite values");
                bytes
            }
            Storage::Dense { .. } => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    };
    let bytes: Vec<Vec<u8>> = specs.iter().map(bytes).collect();
    let description = Description {
        info: &info,
        tokenizer,
        template,
    };
    let output = Output::create(path, false).expect("a file");
    let weight = move |index: usize| Ok::<_, std::io::Error>(bytes[index].clone());
    write_record(output, description, specs, weight).expect("a record");
}
