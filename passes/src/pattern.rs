//! Names of nodes by pattern.

/// Whether a name is one of a pattern, in which `*` stands for any characters.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => name.strip_prefix(head).is_some_and(|tail| {
            tail.char_indices().map(|(i, _)| i).chain([tail.len()]).any(|i| matches(rest, &tail[i..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("/head", "/head", true),
            ("/head", "/head/MatMul", false),
            ("/blocks.*/mlp/*", "/blocks.11/mlp/fc1/MatMul", true),
            ("/blocks.*/mlp/*", "/blocks.11/attn/qkv/MatMul", false),
            ("*fc2*", "/blocks.0/mlp/fc2/MatMul", true),
            ("*a*b", "xaayb", true),
            ("*a*b", "xaaybc", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
