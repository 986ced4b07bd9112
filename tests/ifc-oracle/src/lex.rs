// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! C source into tokens, macro definitions aside.

use std::fmt;

use crate::Error;

/// Longest first, so that a prefix does not win.
const PUNCTUATION: [&str; 37] = [
    "<<=", ">>=", "...", "<<", ">>", "<=", ">=", "==", "!=", "&&", "||", "->", "+=", "-=", "|=",
    "&=", "++", "--", "{", "}", "(", ")", "[", "]", ";", ",", ":", "=", "+", "-", "*", "/", "%",
    "<", ">", "|", "&",
];

/// Characters that stand alone and are in no constant or layout that matters, or need no care.
const OTHER: [&str; 6] = ["~", "!", "?", ".", "^", "\\"];

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// Identifier or keyword.
    Word(String),
    /// Integer.
    Number(u64),
    /// String, character constant or number that is no integer; its text does not matter.
    Text,
    /// Anything else.
    Punct(&'static str),
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => f.write_str(word),
            Self::Number(number) => write!(f, "{number:#x}"),
            Self::Text => f.write_str("a text"),
            Self::Punct(punct) => f.write_str(punct),
        }
    }
}

/// A macro without parameters, and what it stands for.
type Define = (String, Vec<Token>);

/// Tokens of `source` outside of preprocessor lines, and its macros without parameters.
pub(crate) fn lex(source: &str) -> Result<(Vec<Token>, Vec<Define>), Error> {
    let source = without_comments(&source.replace("\\\n", " "));
    let mut tokens = Vec::new();
    let mut defines = Vec::new();
    for line in source.lines() {
        let line = line.trim();
        let Some(directive) = line.strip_prefix('#') else {
            lex_line(line, &mut tokens)?;
            continue;
        };
        let Some(definition) = directive.trim_start().strip_prefix("define ") else {
            continue;
        };
        let definition = definition.trim_start();
        let end = definition
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(definition.len());
        let (name, value) = definition.split_at(end);
        if value.starts_with('(') {
            continue;
        }
        let mut body = Vec::new();
        // A macro may be no expression at all; such a one is not a constant.
        if lex_line(value, &mut body).is_ok() && !body.is_empty() {
            defines.push((name.to_owned(), body));
        }
    }
    Ok((tokens, defines))
}

fn without_comments(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    loop {
        let block = rest.find("/*").unwrap_or(rest.len());
        let line = rest.find("//").unwrap_or(rest.len());
        let start = block.min(line);
        out.push_str(&rest[..start]);
        if start == rest.len() {
            return out;
        }
        let (terminator, keep) = if block < line { ("*/", 2) } else { ("\n", 0) };
        let comment = &rest[start..];
        let end = comment
            .find(terminator)
            .map_or(comment.len(), |end| end + keep);
        // Line structure matters to the preprocessor.
        out.extend(comment[..end].chars().filter(|c| *c == '\n'));
        out.push(' ');
        rest = &comment[end..];
    }
}

fn lex_line(line: &str, tokens: &mut Vec<Token>) -> Result<(), Error> {
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let len;
        if first.is_ascii_alphabetic() || first == '_' {
            len = word_len(rest);
            tokens.push(Token::Word(rest[..len].to_owned()));
        } else if first.is_ascii_digit() {
            len = word_len(rest);
            tokens.push(number(&rest[..len]).map_or(Token::Text, Token::Number));
        } else if first == '"' || first == '\'' {
            len = rest[1..]
                .find(first)
                .map(|end| end + 2)
                .ok_or_else(|| Error(format!("unterminated: {rest}")))?;
            tokens.push(Token::Text);
        } else if let Some(punct) = PUNCTUATION
            .iter()
            .chain(&OTHER)
            .find(|punct| rest.starts_with(**punct))
        {
            len = punct.len();
            tokens.push(Token::Punct(punct));
        } else {
            return Err(Error(format!("not C: {rest}")));
        }
        rest = rest[len..].trim_start();
    }
    Ok(())
}

fn word_len(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(text.len())
}

fn number(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['u', 'U', 'l', 'L']);
    if let Some(hex) = digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        u64::from_str_radix(hex, 16)
    } else if digits.len() > 1 && digits.starts_with('0') {
        u64::from_str_radix(digits, 8)
    } else {
        digits.parse()
    }
    .ok()
}

/// Index of the bracket that closes the one at `open`.
pub(crate) fn matching(tokens: &[Token], open: usize) -> Result<usize, Error> {
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token {
            Token::Punct("{" | "(" | "[") => depth += 1,
            Token::Punct("}" | ")" | "]") => {
                depth = depth.checked_sub(1).ok_or("brackets do not match")?;
                if depth == 0 {
                    return Ok(at);
                }
            }
            _ => {}
        }
    }
    Err(Error::from("a bracket is not closed"))
}

/// Pieces of `tokens` between separators that are in no bracket.
pub(crate) fn split<'a>(tokens: &'a [Token], separator: &str) -> Vec<&'a [Token]> {
    let mut depth = 0usize;
    tokens
        .split(|token| {
            match token {
                Token::Punct("{" | "(" | "[") => depth += 1,
                Token::Punct("}" | ")" | "]") => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0 && matches!(token, Token::Punct(punct) if *punct == separator)
        })
        .collect()
}
