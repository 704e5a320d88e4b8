//! Fields shared by the configurations of all image and video processors, in all their spellings.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::PreprocessError;
use super::filter::Filter;
use crate::settings::without_nulls;

/// Reads the configuration of a processor; nulls count as missing.
///
/// # Errors
/// If it is not an object or a field has the wrong type.
pub(super) fn parse_file<T: DeserializeOwned>(file: &Value) -> Result<T, PreprocessError> {
    if !file.is_object() {
        return Err(PreprocessError::config(format!(
            "found {file}, expected an object"
        )));
    }
    serde_json::from_value(without_nulls(file))
        .map_err(|error| PreprocessError::config(error.to_string()))
}

/// A size in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// A single number, whose meaning depends on the processor.
    Side(usize),
    /// Both sides.
    Exact { height: usize, width: usize },
    /// The length of the shorter side.
    Shortest(usize),
    /// The length of the shorter side, and a limit for the longer one.
    Bounded { shortest: usize, longest: usize },
}

impl Size {
    /// Reads the field `name`: a number, `[height, width]`, or an object with `height` and `width`,
    /// with `shortest_edge`, or with `shortest_edge` and `longest_edge`.
    ///
    /// # Errors
    /// If it has none of these forms.
    pub fn parse(name: &str, value: &Value) -> Result<Self, PreprocessError> {
        let number = |value: &Value| usize::try_from(value.as_u64()?).ok();
        let members = value.as_object().map_or(0, |members| members.len());
        let member = |key: &str| number(value.get(key)?);
        let pair = |first, second| Some((member(first)?, member(second)?));
        let size = if let Some(side) = number(value) {
            Some(Self::Side(side))
        } else if let Some([height, width]) = value.as_array().map(Vec::as_slice) {
            (number(height).zip(number(width))).map(|(height, width)| Self::Exact { height, width })
        } else if members == 2 {
            pair("height", "width")
                .map(|(height, width)| Self::Exact { height, width })
                .or_else(|| {
                    let (shortest, longest) = pair("shortest_edge", "longest_edge")?;
                    Some(Self::Bounded { shortest, longest })
                })
        } else {
            (members == 1)
                .then(|| member("shortest_edge"))
                .flatten()
                .map(Self::Shortest)
        };
        size.ok_or_else(|| {
            PreprocessError::config(format!(
                "{name} is {value}, expected a number, {{\"height\", \"width\"}}, \
                 {{\"shortest_edge\"}} or {{\"shortest_edge\", \"longest_edge\"}}"
            ))
        })
    }
}

/// Returns the filter named by the field `resample`.
///
/// # Errors
/// If no supported model uses it.
pub(super) fn filter(resample: Option<&Value>) -> Result<Filter, PreprocessError> {
    let Some(value) = resample else {
        return Ok(Filter::Bicubic);
    };
    match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
        Some(number) => Filter::from_pillow(number),
        None => Err(PreprocessError::config(format!(
            "resample is {value}, expected 1 (Lanczos), 2 (bilinear) or 3 (bicubic)"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sizes_are_read_in_all_spellings() {
        let exact = Size::Exact {
            height: 3,
            width: 4,
        };
        for (value, expected) in [
            (json!(5), Size::Side(5)),
            (json!([3, 4]), exact),
            (json!({"height": 3, "width": 4}), exact),
            (json!({"shortest_edge": 5}), Size::Shortest(5)),
            (
                json!({"shortest_edge": 5, "longest_edge": 9}),
                Size::Bounded {
                    shortest: 5,
                    longest: 9,
                },
            ),
        ] {
            assert_eq!(Size::parse("size", &value), Ok(expected));
        }
        for value in [
            json!("large"),
            json!([1, 2, 3]),
            json!({"longest_edge": 5}),
            json!({"max_height": 5, "max_width": 5}),
            json!({"height": 3, "width": 4, "shortest_edge": 5}),
            json!({"height": -3, "width": 4}),
            json!({}),
        ] {
            let error = Size::parse("crop_size", &value).unwrap_err().to_string();
            assert!(error.contains("crop_size is"), "{error}");
        }
    }
}
