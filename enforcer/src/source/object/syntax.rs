//! The API server's rules for names, labels and ports, as far as they protect meaning.

/// A label's key: `[prefix/]name`.
pub(super) fn label_key(key: &str) -> Result<(), String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if prefix.is_some_and(|p| subdomain(p).is_err()) || !word(name) {
        return Err(format!("{key:?} is not a label key"));
    }
    Ok(())
}

/// A label's value; it may be empty.
pub(super) fn label_value(value: &str) -> Result<(), String> {
    if value.is_empty() || word(value) { Ok(()) } else { Err(format!("{value:?} is not a label value")) }
}

/// 1 to 63 of `[-_.A-Za-z0-9]`, an alphanumeric at both ends.
fn word(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && ends(text.chars().next())
        && ends(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// An object's name: an RFC 1123 subdomain of at most 253 characters.
pub(super) fn subdomain(name: &str) -> Result<(), String> {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let part = |part: &str| {
        ends(part.chars().next())
            && ends(part.chars().next_back())
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    if name.len() <= 253 && name.split('.').all(part) {
        Ok(())
    } else {
        Err(format!("{name:?} is not a name"))
    }
}

/// A port's name (`IANA_SVC_NAME`): 1 to 15 of `[-a-z0-9]`, at least one letter, no hyphen at an end or
/// beside another.
pub(super) fn port_name(name: &str) -> Result<(), String> {
    let valid = (1..=15).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && name.chars().any(|c| c.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--");
    if valid { Ok(()) } else { Err(format!("{name:?} is not a port name")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_api_servers_rules() {
        let long = "a".repeat(64);
        for (text, key, value, name, port) in [
            ("app", true, true, true, true),
            ("", false, true, false, false),
            ("example.com/app", true, false, false, false),
            ("Example.com/app", false, false, false, false),
            ("a/b/c", false, false, false, false),
            ("/app", false, false, false, false),
            ("App_1.x", true, true, false, false),
            ("-app", false, false, false, false),
            ("a.b", true, true, true, false),
            ("80", true, true, true, false),
            ("http-80", true, true, true, true),
            ("a--b", true, true, true, false),
            ("sixteen-letters-", false, false, false, false),
            ("sixteenlettersss", true, true, true, false),
            ("ä", false, false, false, false),
            (&long, false, false, true, false),
        ] {
            let got = (
                label_key(text).is_ok(),
                label_value(text).is_ok(),
                subdomain(text).is_ok(),
                port_name(text).is_ok(),
            );
            assert_eq!(got, (key, value, name, port), "{text:?}");
        }
    }
}
