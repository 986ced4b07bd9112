// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Constant expressions. All arithmetic is in 64 bits and wraps, as the headers expect.

use crate::lex::{matching, split, Token};
use crate::{Error, Oracle};

/// Where a constant's value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Constant {
    /// An expression.
    Define(Vec<Token>),
    /// One more than another enumerator, or 0.
    After(Option<String>),
}

/// Constants may refer to others; a chain longer than this is a circle.
const DEPTH: u32 = 400;

/// Names that a cast may consist of.
const TYPES: [&str; 12] = [
    "u8", "u16", "u32", "u64", "__be16", "__be32", "__be64", "int", "unsigned", "long", "size_t",
    "__force",
];

/// Binary operators, by increasing strength.
const LEVELS: [&[&str]; 6] = [
    &["|"],
    &["^"],
    &["&"],
    &["<<", ">>"],
    &["+", "-"],
    &["*", "/", "%"],
];

/// The value of the constant `name`.
pub(crate) fn constant(oracle: &Oracle, name: &str) -> Result<u64, Error> {
    named(oracle, name, 0).map_err(|error| Error(format!("{name}: {error}")))
}

/// The value of an expression.
pub(crate) fn eval(oracle: &Oracle, tokens: &[Token]) -> Result<u64, Error> {
    evaluate(oracle, tokens, 0)
}

fn named(oracle: &Oracle, name: &str, depth: u32) -> Result<u64, Error> {
    if depth > DEPTH {
        return Err(Error(format!("{name} refers to itself")));
    }
    match oracle.constants.get(name) {
        None => Err(Error(format!("no constant {name}"))),
        Some(Constant::Define(tokens)) => evaluate(oracle, tokens, depth + 1),
        Some(Constant::After(None)) => Ok(0),
        Some(Constant::After(Some(previous))) => {
            Ok(named(oracle, previous, depth + 1)?.wrapping_add(1))
        }
    }
}

fn evaluate(oracle: &Oracle, tokens: &[Token], depth: u32) -> Result<u64, Error> {
    let mut parser = Parser {
        oracle,
        tokens,
        at: 0,
        depth,
    };
    let value = parser.binary(0)?;
    match parser.peek() {
        None => Ok(value),
        Some(token) => Err(Error(format!("unexpected {token}"))),
    }
}

struct Parser<'a> {
    oracle: &'a Oracle,
    tokens: &'a [Token],
    at: usize,
    depth: u32,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn binary(&mut self, level: usize) -> Result<u64, Error> {
        let Some(operators) = LEVELS.get(level) else {
            return self.unary();
        };
        let mut left = self.binary(level + 1)?;
        while let Some(Token::Punct(operator)) = self.peek() {
            let operator = *operator;
            if !operators.contains(&operator) {
                break;
            }
            self.at += 1;
            let right = self.binary(level + 1)?;
            left = apply(operator, left, right)?;
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<u64, Error> {
        let token = self.peek().ok_or("expression ends early")?.clone();
        self.at += 1;
        match token {
            Token::Number(number) => Ok(number),
            Token::Punct("~") => Ok(!self.unary()?),
            Token::Punct("-") => Ok(self.unary()?.wrapping_neg()),
            Token::Punct("+") => self.unary(),
            Token::Punct("(") => {
                let close = matching(self.tokens, self.at - 1)?;
                let inner = &self.tokens[self.at..close];
                self.at = close + 1;
                let cast = inner.iter().all(
                    |token| matches!(token, Token::Word(word) if TYPES.contains(&word.as_str())),
                );
                if cast && !inner.is_empty() {
                    self.unary()
                } else {
                    evaluate(self.oracle, inner, self.depth)
                }
            }
            Token::Word(word) if matches!(self.peek(), Some(Token::Punct("("))) => {
                let close = matching(self.tokens, self.at)?;
                let arguments = &self.tokens[self.at + 1..close];
                self.at = close + 1;
                self.call(&word, arguments)
            }
            Token::Word(word) => named(self.oracle, &word, self.depth + 1),
            token => Err(Error(format!("unexpected {token}"))),
        }
    }

    /// The few macros and operators with arguments that occur in constants.
    fn call(&self, name: &str, arguments: &[Token]) -> Result<u64, Error> {
        if name == "sizeof" {
            let name = match arguments {
                [Token::Word(kind), Token::Word(name)] if kind == "struct" || kind == "union" => {
                    name
                }
                [Token::Word(name)] => name,
                _ => return Err(Error::from("sizeof of an expression")),
            };
            return crate::layout::size_of(self.oracle, name);
        }
        let values = split(arguments, ",")
            .into_iter()
            .map(|argument| evaluate(self.oracle, argument, self.depth))
            .collect::<Result<Vec<_>, _>>()?;
        match (name, values.as_slice()) {
            ("BIT" | "BIT_ULL", [bit]) => apply("<<", 1, *bit),
            ("GENMASK" | "GENMASK_ULL", [high, low]) if *high < 64 && low <= high => {
                Ok(u64::MAX >> (63 - high) & u64::MAX << low)
            }
            // The value as the CPU sees it.
            ("cpu_to_be16" | "cpu_to_be32" | "cpu_to_be64", [value]) => Ok(*value),
            _ => Err(Error(format!("cannot evaluate {name}(...)"))),
        }
    }
}

fn apply(operator: &str, left: u64, right: u64) -> Result<u64, Error> {
    let shift = || u32::try_from(right).ok().filter(|shift| *shift < 64);
    match operator {
        "|" => Some(left | right),
        "^" => Some(left ^ right),
        "&" => Some(left & right),
        "<<" => shift().map(|shift| left << shift),
        ">>" => shift().map(|shift| left >> shift),
        "+" => Some(left.wrapping_add(right)),
        "-" => Some(left.wrapping_sub(right)),
        "*" => Some(left.wrapping_mul(right)),
        "/" => left.checked_div(right),
        "%" => left.checked_rem(right),
        _ => None,
    }
    .ok_or_else(|| Error(format!("{left:#x} {operator} {right:#x}")))
}
