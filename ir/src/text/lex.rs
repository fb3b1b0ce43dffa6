//! The lexer: words, strings, `%value`s, `@symbol`s and punctuation, one at a time, without a copy of the text.

/// Where a token starts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    pub(super) line: usize,
    line_start: usize,
    start: usize,
}

impl Span {
    /// `line:column` in `text`, both from 1, the column in characters.
    pub(super) fn place(self, text: &str) -> String {
        let before = text.get(self.line_start..self.start).unwrap_or_default();
        format!("{}:{}", self.line, before.chars().count() + 1)
    }
}

/// What a token is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind<'a> {
    /// A keyword, an op, a number, a shape: whatever stands between spaces and punctuation.
    Word(&'a str),
    /// A quoted string, unescaped.
    Str(String),
    /// `%7`, the result of a node.
    Result(u32),
    /// `%x` or `%"x"`, an input.
    Input(String),
    /// `@x` or `@"x"`.
    Symbol(String),
    /// One of `( ) { } [ ] < > , : =`.
    Punct(char),
    /// `->`.
    Arrow,
    /// Not a token; the reason.
    Bad(String),
    /// The text is over.
    End,
}

/// A token and its place.
#[derive(Clone, Debug)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind<'a>,
    pub(super) span: Span,
    /// Whether it is the first of its line.
    pub(super) first: bool,
}

/// Whether a byte may stand in a word.
pub(super) fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"_.$/-".contains(&b)
}

pub(super) struct Lexer<'a> {
    pub(super) text: &'a str,
    at: usize,
    line: usize,
    line_start: usize,
    first: bool,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Lexer<'a> {
        Lexer { text, at: 0, line: 1, line_start: 0, first: true }
    }

    fn rest(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.at..]
    }

    pub(super) fn next(&mut self) -> Token<'a> {
        self.skip_space();
        let span = Span { line: self.line, line_start: self.line_start, start: self.at };
        let first = std::mem::replace(&mut self.first, false);
        Token { kind: self.kind(), span, first }
    }

    fn skip_space(&mut self) {
        loop {
            match self.rest() {
                [b'\n', ..] => {
                    self.at += 1;
                    self.line += 1;
                    self.line_start = self.at;
                    self.first = true;
                }
                [b' ' | b'\t' | b'\r', ..] => self.at += 1,
                [b'/', b'/', ..] => self.skip_line(),
                _ => return,
            }
        }
    }

    fn skip_line(&mut self) {
        self.at += self.rest().iter().position(|&b| b == b'\n').unwrap_or(self.rest().len());
    }

    fn kind(&mut self) -> Kind<'a> {
        match self.rest() {
            [] => Kind::End,
            [b'-', b'>', ..] => {
                self.at += 2;
                Kind::Arrow
            }
            [b'"', ..] => self.string().map_or_else(Kind::Bad, Kind::Str),
            [b'%', ..] => self.value(),
            [b'@', ..] => self.symbol(),
            [b, ..] if b"(){}[]<>,:=".contains(b) => {
                self.at += 1;
                Kind::Punct(char::from(*b))
            }
            [b, ..] if is_word(*b) => Kind::Word(self.word()),
            _ => self.stray(),
        }
    }

    fn stray(&mut self) -> Kind<'a> {
        let c = self.text[self.at..].chars().next().unwrap_or(' ');
        self.at += c.len_utf8();
        Kind::Bad(format!("unexpected character {c:?}"))
    }

    /// The longest word from here, possibly empty; a comment or an arrow ends it.
    fn word(&mut self) -> &'a str {
        let (text, start) = (self.text, self.at);
        while let [b, next @ ..] = self.rest() {
            let ends = matches!((b, next), (b'/', [b'/', ..]) | (b'-', [b'>', ..]));
            if ends || !is_word(*b) {
                break;
            }
            self.at += 1;
        }
        &text[start..self.at]
    }

    fn value(&mut self) -> Kind<'a> {
        self.at += 1;
        if self.rest().first() == Some(&b'"') {
            return self.string().map_or_else(Kind::Bad, Kind::Input);
        }
        let word = self.word();
        if word.bytes().all(|b| b.is_ascii_digit()) && !word.is_empty() {
            return word.parse().map_or_else(|_| Kind::Bad(format!("%{word} is too large")), Kind::Result);
        }
        self.plain(word).map_or_else(Kind::Bad, Kind::Input)
    }

    fn symbol(&mut self) -> Kind<'a> {
        self.at += 1;
        if self.rest().first() == Some(&b'"') {
            return self.string().map_or_else(Kind::Bad, Kind::Symbol);
        }
        let word = self.word();
        self.plain(word).map_or_else(Kind::Bad, Kind::Symbol)
    }

    fn plain(&self, word: &str) -> Result<String, String> {
        if word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            Ok(word.into())
        } else {
            Err("a name starts with a letter or `_`; other names stand in quotes".into())
        }
    }

    /// A quoted string; it ends on its line.
    fn string(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let mut chars = self.text[self.at..].chars();
            match chars.next() {
                None | Some('\n') => return Err("a string without its closing quote".into()),
                Some('"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some('\\') => out.push(self.escape()?),
                Some(c) => {
                    self.at += c.len_utf8();
                    out.push(c);
                }
            }
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        let simple = match self.rest().get(1) {
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'u') => return self.code_point(),
            _ => return Err("an unknown escape".into()),
        };
        self.at += 2;
        Ok(simple)
    }

    fn code_point(&mut self) -> Result<char, String> {
        let form = "an escape is written \\u{1f600}";
        let [b'{', digits @ ..] = self.rest().get(2..).unwrap_or_default() else { return Err(form.into()) };
        let length = digits.iter().take(8).position(|&b| b == b'}').ok_or(form)?;
        let start = self.at + 3;
        let digits = self.text.get(start..start + length).ok_or(form)?;
        let code = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32);
        self.at = start + length + 1;
        code.ok_or_else(|| "an escape of no character".into())
    }
}
