//! Numbers for people.

/// Formats a number of bytes.
pub fn bytes(n: usize) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Parses a number of bytes such as `512M`, `1GiB` or `1.2GB`: the units K, M and G, alone or with
/// iB, are powers of 1024, KB, MB and GB powers of 1000.
///
/// # Errors
/// If it has another form or is zero.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let factor: Option<u64> = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "k" | "kib" => Some(1 << 10),
        "m" | "mib" => Some(1 << 20),
        "g" | "gib" => Some(1 << 30),
        "kb" => Some(1_000),
        "mb" => Some(1_000_000),
        "gb" => Some(1_000_000_000),
        _ => None,
    };
    let bytes = factor.and_then(|factor| match number.parse::<u64>() {
        Ok(number) => number.checked_mul(factor),
        // Products below 2^53 are exact enough.
        Err(_) => (number.parse::<f64>().ok())
            .map(|number| number * factor as f64)
            .filter(|bytes| *bytes < 9e15)
            .map(|bytes| bytes as u64),
    });
    match bytes {
        Some(bytes @ 1..) => Ok(bytes),
        _ => Err("expected a size such as 512MiB or 1GiB".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [
            ("1GiB", Some(1 << 30)),
            ("512m", Some(512 << 20)),
            ("3 KiB", Some(3072)),
            ("7", Some(7)),
            ("0", None),
            ("1.5G", Some(3 << 29)),
            ("1.2GB", Some(1_200_000_000)),
            ("1.2.3", None),
            ("1TB", None),
            ("", None),
            (".", None),
            ("99999999999G", None),
            ("9999999999.5G", None),
        ] {
            assert_eq!(parse_bytes(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(bytes(12), "12 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 30), "5.0 GiB");
    }
}
