//! Reading the settings in the JSON files of a checkpoint as `transformers` reads them.

use serde_json::Value;

/// Returns `value` without the members that are null. Files of some versions contain nulls for unset
/// members.
pub fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(members) => members
            .iter()
            .filter(|(_, member)| !member.is_null())
            .map(|(key, member)| (key.clone(), without_nulls(member)))
            .collect(),
        other => other.clone(),
    }
}

/// Describes the first of some sizes, given as `(field, value, largest)`, that is not between 1 and
/// the largest value.
pub fn out_of_range(sizes: &[(&str, usize, usize)]) -> Option<String> {
    sizes
        .iter()
        .find(|(_, size, largest)| !(1..=*largest).contains(size))
        .map(|(name, size, largest)| format!("{name} is {size}, expected 1 to {largest}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nulls_in_lists_stay() {
        let file = json!({"a": null, "b": {"c": null, "d": [null, 1]}, "e": 2});
        assert_eq!(without_nulls(&file), json!({"b": {"d": [null, 1]}, "e": 2}));
    }

    #[test]
    fn the_first_size_out_of_range_is_named() {
        assert_eq!(out_of_range(&[("width", 1, 4), ("height", 4, 4)]), None);
        let message = out_of_range(&[("width", 1, 4), ("height", 5, 4), ("depth", 0, 4)]);
        assert_eq!(message.as_deref(), Some("height is 5, expected 1 to 4"));
    }
}
