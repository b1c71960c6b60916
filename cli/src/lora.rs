//! LoRA files and their strengths on the command line: `FILE`, `FILE=STRENGTH` or `FILE:STRENGTH`.

/// The file, and the strength, which is 1 where none is given. A name may hold both signs: only a number that follows
/// the last one is a strength.
pub fn split(text: &str) -> (&str, f32) {
    let strength = text.rfind(['=', ':']).and_then(|at| Some((&text[..at], text[at + 1..].parse().ok()?)));
    strength.filter(|(path, strength): &(&str, f32)| !path.is_empty() && strength.is_finite()).unwrap_or((text, 1.0))
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn a_strength_is_what_follows_the_last_sign_if_it_is_a_number() {
        assert_eq!(split("lora.pt"), ("lora.pt", 1.0));
        assert_eq!(split("a:b/lora.pt:0.5"), ("a:b/lora.pt", 0.5));
        assert_eq!(split("a=b/lora.pt=0.5"), ("a=b/lora.pt", 0.5));
        assert_eq!(split("C:\\lora.pt"), ("C:\\lora.pt", 1.0));
        assert_eq!(split("C:\\lora.pt=2"), ("C:\\lora.pt", 2.0));
        assert_eq!(split("lora.pt:-1"), ("lora.pt", -1.0));
        assert_eq!(split("lora.pt:nan"), ("lora.pt:nan", 1.0));
        assert_eq!(split("=0.5"), ("=0.5", 1.0));
    }
}
