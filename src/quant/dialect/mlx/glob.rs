//! Patterns over tensor names: `*` is any run of characters, dots included, `#` a run of digits.
//!
//! A template takes the captures of a pattern in order, so that one line renames a whole family.

/// What the wildcards of `pattern` stand for in `name`, in order; `None` where it does not match.
/// A `*` takes as little as it can.
pub(super) fn captures<'n>(pattern: &str, name: &'n str) -> Option<Vec<&'n str>> {
    let mut found = Vec::new();
    fits(pattern.as_bytes(), name, 0, &mut found).then_some(found)
}

/// Whether `name` matches.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    captures(pattern, name).is_some()
}

/// Whether `name` matches one of the patterns.
pub(super) fn any(patterns: &[&str], name: &str) -> bool {
    patterns.iter().any(|p| matches(p, name))
}

/// The template with its wildcards replaced by the captures, in order.
pub(super) fn fill(template: &str, captures: &[&str]) -> String {
    let mut next = captures.iter();
    template.chars().fold(String::new(), |mut out, c| {
        match c {
            '*' | '#' => out.push_str(next.next().copied().unwrap_or_default()),
            c => out.push(c),
        }
        out
    })
}

fn fits<'n>(pattern: &[u8], name: &'n str, at: usize, found: &mut Vec<&'n str>) -> bool {
    let literal = pattern.iter().position(|c| matches!(c, b'*' | b'#')).unwrap_or(pattern.len());
    let (head, rest) = pattern.split_at(literal);
    if !name.as_bytes()[at..].starts_with(head) {
        return false;
    }
    let at = at + literal;
    let Some((wild, rest)) = rest.split_first() else { return at == name.len() };
    let longest = match wild {
        b'#' => name.as_bytes()[at..].iter().take_while(|c| c.is_ascii_digit()).count(),
        _ => name.len() - at,
    };
    let lengths = if *wild == b'#' { longest.max(1)..=longest } else { 0..=longest };
    lengths.into_iter().filter(|n| name.is_char_boundary(at + n)).any(|n| {
        found.push(&name[at..at + n]);
        let fit = fits(rest, name, at + n, found);
        if !fit {
            found.pop();
        }
        fit
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_capture() {
        let name = "model.layers.11.mlp.experts.3.up_proj.weight";
        assert_eq!(captures("*.mlp.experts.#.*_proj.weight", name), Some(vec!["model.layers.11", "3", "up"]));
        assert_eq!(captures("*.experts.x", name), None);
        assert_eq!(captures("*.weight", ".weight"), Some(vec![""]));
        assert!(!matches("a.#", "a."), "digits are at least one");
        assert!(!matches("a.#b", "a.12"));
        assert!(matches("*é#", "ééé7"));
    }

    #[test]
    fn templates_take_captures_in_order() {
        assert_eq!(fill("*.switch_mlp.*_proj.weight", &["a.b", "up"]), "a.b.switch_mlp.up_proj.weight");
        assert_eq!(fill("plain", &[]), "plain");
    }
}
