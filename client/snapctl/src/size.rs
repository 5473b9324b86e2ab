//! Sizes and rates on the command line: bytes, or a number with a unit.

/// Reads `512M`, `10G`, `1TiB` or plain bytes. Units are binary, as disks of virtual machines are
/// sized.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    const HOW: &str = "write a number of bytes, or a number with the suffix K, M, G or T, as in \
                       10G";
    let digits = text
        .find(|char: char| !char.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(HOW.to_owned()),
    };
    if number.is_empty() {
        return Err(HOW.to_owned());
    }
    let number = number.parse::<u64>().ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| "the number of bytes is too large".to_owned())
}

/// The size of a volume.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        0 => Err("a volume has more than 0 bytes".to_owned()),
        bytes => Ok(bytes),
    }
}

/// Bytes a second; `none` is 0.
pub(crate) fn parse_rate(text: &str) -> Result<u64, String> {
    match text {
        "none" => Ok(0),
        text => match parse_bytes(text)? {
            0 => Err("write none for no limit".to_owned()),
            bytes => Ok(bytes),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_binary_units() {
        for (text, bytes) in [
            ("512", 512),
            ("1K", 1 << 10),
            ("512M", 512 << 20),
            ("10g", 10 << 30),
            ("10GiB", 10 << 30),
            ("2tib", 2 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for (text, why) in [
            ("", "write a number"),
            ("G", "write a number"),
            ("-1", "write a number"),
            ("+1", "write a number"),
            ("1.5G", "write a number"),
            ("1 G", "write a number"),
            ("1GB", "write a number"),
            ("10P", "write a number"),
            ("0", "more than 0"),
            ("0G", "more than 0"),
            ("18446744073709551616", "too large"),
            ("16777216T", "too large"),
        ] {
            match parse_size(text) {
                Err(said) => assert!(said.contains(why), "{text}: {said}"),
                Ok(bytes) => panic!("{text} is taken for {bytes}"),
            }
        }
    }

    #[test]
    fn limits_are_read() {
        assert_eq!(parse_rate("none"), Ok(0));
        assert_eq!(parse_rate("100M"), Ok(100 << 20));
        assert_eq!(parse_rate("0"), Err("write none for no limit".to_owned()));
        assert!(parse_rate("fast").is_err());
    }
}
