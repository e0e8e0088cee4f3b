//! Sizes as people type and read them: `5GB`, `64MiB`, `1.5G`.

/// Bytes of a text. `K M G T` and `KB MB GB TB` count in thousands, `KiB MiB GiB TiB` in 1024s.
///
/// # Errors
/// What is wrong with the text.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err(format!("unknown unit `{unit}`; sizes end in K, M, G, T, KiB, MiB, GiB or TiB")),
    };
    let number: f64 = number.parse().map_err(|_| "a size is a number and a unit, 64MiB say".to_owned())?;
    let bytes = number * scale;
    if !(1.0..9e18).contains(&bytes) {
        return Err("a size lies between one byte and 9 EB".to_owned());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to lie in the range of u64")]
    Ok(bytes.round() as u64)
}

/// Bytes for people, in decimal units: `4.21 GB`.
#[must_use]
pub fn render(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::{parse, render};

    #[test]
    fn sizes_parse() {
        assert_eq!(parse("5GB"), Ok(5_000_000_000));
        assert_eq!(parse("64MiB"), Ok(64 << 20));
        assert_eq!(parse("1.5k"), Ok(1500));
        assert_eq!(parse("123"), Ok(123));
        for bad in ["", "GB", "5XB", "-1", "0", "1.2.3", "99999999999T"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_render() {
        assert_eq!(render(999), "999 B");
        assert_eq!(render(4_210_000_000), "4.21 GB");
    }
}
