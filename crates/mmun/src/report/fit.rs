//! Other people's text in a line of ours: it does nothing to the terminal, and is no longer than there is
//! room.

/// The text with control characters (and those that reverse the reading direction) made visible.
pub fn printable(text: &str) -> String {
    let acts = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(acts) {
        return text.to_owned();
    }
    let shown = |c: char| match c {
        '\n' | '\t' | '\r' => c.escape_default().to_string(),
        c if acts(c) => c.escape_unicode().to_string(),
        c => c.to_string(),
    };
    text.chars().map(shown).collect()
}

/// The first characters, with an ellipsis in place of what had to go.
pub fn keep_front(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// The last characters, with an ellipsis in place of what had to go: for paths.
pub fn keep_back(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    ['…'].into_iter().chain(text.chars().skip(length - width.saturating_sub(1))).collect()
}

/// Lines of at most `width` characters, broken at spaces; a longer word loses its beginning.
pub fn folded(sentence: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in sentence.split(' ') {
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() {
            *line = keep_back(word, width);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(keep_back(word, width));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_act_on_the_terminal() {
        assert_eq!(printable("a\x1b[31mb"), "a\\u{1b}[31mb");
        assert_eq!(printable("grün"), "grün");
    }

    #[test]
    fn cutting_keeps_the_telling_end() {
        assert_eq!(keep_front("abcdef", 4), "abc…");
        assert_eq!(keep_back("/usr/lib/libc.so.6", 10), "…libc.so.6");
        assert_eq!(keep_back("abc", 3), "abc");
    }
}
