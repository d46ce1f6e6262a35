//! Patterns of scopes and policies: `*` stands for any run of characters, everything else for itself.

/// True if `text` is what `pattern` describes.
///
/// Runs in time linear in `pattern` times `text` at worst, and needs no memory.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            retry = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((star, from)) = retry {
            p = star + 1;
            t = from + 1;
            retry = Some((star, from + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// True if any of `patterns` matches `text`.
pub fn any_matches(patterns: &[String], text: &str) -> bool {
    patterns.iter().any(|pattern| matches(pattern, text))
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_stands_for_any_run_and_nothing_else_is_special() {
        for (pattern, text, want) in [
            ("*", "", true),
            ("*", "anything", true),
            ("https://cyclonedx.org/bom", "https://cyclonedx.org/bom", true),
            ("https://*/bom*", "https://cyclonedx.org/bom/v1.6", true),
            ("a*b*c", "a-b-b-c", true),
            ("", "", true),
            ("", "a", false),
            ("a", "", false),
            ("a*", "ba", false),
            ("*a", "ab", false),
            ("a?c", "abc", false),
            ("A", "a", false),
            ("a*b*c", "a-c-b", false),
        ] {
            assert_eq!(matches(pattern, text), want, "{pattern} on {text}");
        }
    }
}
