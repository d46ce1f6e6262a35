//! One condition of a rule: a path, and what its value must be.

use std::cmp::Ordering;

use serde_json::Value;

use super::{Names, PolicyError};
use crate::timestamp::Timestamp;

const EXPECTED: &str = "`path: value`, `path missing`, `path exists`, `path in List`, `path not in List`, or \
                        `path OP value` with ==, !=, <, <=, > or >=";

/// The one path that every document has: what was not verified is not verified.
const VERIFIED: &str = "trust.verified";

/// A path as documents have it, aliases put in full, and the test of its value.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    path: String,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Missing,
    Exists,
    In(Vec<String>),
    NotIn(Vec<String>),
    Compare(Operator, Value),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Condition {
    pub(super) fn parse(value: &Value, path: &str, names: &Names) -> Result<Self, PolicyError> {
        let refused = || PolicyError::Condition {
            path: path.to_owned(),
            expected: EXPECTED,
        };
        match value {
            Value::Object(members) if members.len() == 1 => {
                let (name, wanted) = members.iter().next().ok_or_else(refused)?;
                if matches!(wanted, Value::Object(_) | Value::Array(_) | Value::Null) {
                    return Err(refused());
                }
                let path = full_path(name).ok_or_else(refused)?;
                Ok(Self {
                    path,
                    test: Test::Compare(Operator::Equal, wanted.clone()),
                })
            }
            Value::String(text) => {
                let (name, rest) = text.trim().split_once(char::is_whitespace).ok_or_else(refused)?;
                let full = full_path(name).ok_or_else(refused)?;
                Ok(Self {
                    path: full,
                    test: Test::parse(rest.trim(), path, names)?,
                })
            }
            _ => Err(refused()),
        }
    }

    /// Whether it holds; a value that a comparison needs and does not find is added to `missing`.
    pub(super) fn holds(&self, facts: &Value, missing: &mut Vec<String>) -> bool {
        let value = lookup(facts, &self.path).or((self.path == VERIFIED).then_some(&Value::Bool(false)));
        match &self.test {
            Test::Missing => return value.is_none(),
            Test::Exists => return value.is_some(),
            Test::In(_) | Test::NotIn(_) | Test::Compare(..) => {}
        }
        let Some(found) = value else {
            missing.push(self.path.clone());
            return false;
        };
        match &self.test {
            Test::In(list) => found
                .as_str()
                .is_some_and(|text| list.iter().any(|item| item == text)),
            Test::NotIn(list) => found
                .as_str()
                .is_some_and(|text| list.iter().all(|item| item != text)),
            Test::Compare(operator, wanted) => compare(*operator, found, wanted),
            Test::Missing | Test::Exists => false,
        }
    }
}

impl Test {
    fn parse(text: &str, path: &str, names: &Names) -> Result<Self, PolicyError> {
        let list = |name: &str| {
            let found = names.lists.get(name).cloned();
            found.ok_or_else(|| PolicyError::UnknownList {
                path: path.to_owned(),
                name: name.to_owned(),
            })
        };
        match text {
            "missing" => return Ok(Self::Missing),
            "exists" => return Ok(Self::Exists),
            _ => {}
        }
        if let Some(name) = text.strip_prefix("in ") {
            return Ok(Self::In(list(name.trim())?));
        }
        if let Some(name) = text.strip_prefix("not in ") {
            return Ok(Self::NotIn(list(name.trim())?));
        }
        const OPERATORS: [(&str, Operator); 6] = [
            ("==", Operator::Equal),
            ("!=", Operator::NotEqual),
            ("<=", Operator::LessOrEqual),
            (">=", Operator::GreaterOrEqual),
            ("<", Operator::Less),
            (">", Operator::Greater),
        ];
        let parsed = OPERATORS
            .iter()
            .find_map(|(sign, operator)| Some((*operator, text.strip_prefix(sign)?)));
        let refused = || PolicyError::Condition {
            path: path.to_owned(),
            expected: EXPECTED,
        };
        let (operator, operand) = parsed.ok_or_else(refused)?;
        Ok(Self::Compare(operator, value_of(operand.trim(), path, names)?))
    }
}

/// A literal (number, `true`, `false`, quoted text) or the value of a variable.
fn value_of(text: &str, path: &str, names: &Names) -> Result<Value, PolicyError> {
    let quoted = [('"', '"'), ('\'', '\'')]
        .into_iter()
        .find_map(|(open, close)| text.strip_prefix(open)?.strip_suffix(close));
    if let Some(literal) = quoted {
        return Ok(literal.into());
    }
    match text {
        "true" => return Ok(true.into()),
        "false" => return Ok(false.into()),
        "" => {
            return Err(PolicyError::Condition {
                path: path.to_owned(),
                expected: EXPECTED,
            });
        }
        _ => {}
    }
    if let Ok(number) = text.parse::<i64>() {
        return Ok(number.into());
    }
    if let Ok(number) = text.parse::<f64>()
        && let Some(number) = serde_json::Number::from_f64(number)
    {
        return Ok(Value::Number(number));
    }
    let known = names.vars.get(text).cloned();
    known.ok_or_else(|| PolicyError::UnknownVariable {
        path: path.to_owned(),
        name: text.to_owned(),
    })
}

/// The path with `key.` and `rekor.` put in full; `None` if it is not a path.
fn full_path(path: &str) -> Option<String> {
    let well_formed = path
        .split('.')
        .all(|part| !part.is_empty() && !part.contains(char::is_whitespace));
    if !well_formed {
        return None;
    }
    let is_alias = path.starts_with("key.") || path.starts_with("rekor.");
    Some(if is_alias {
        format!("provenance.dsse.{path}")
    } else {
        path.to_owned()
    })
}

fn lookup<'v>(facts: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.')
        .try_fold(facts, |value, part| value.get(part))
        .filter(|value| !value.is_null())
}

fn compare(operator: Operator, found: &Value, wanted: &Value) -> bool {
    let (Some(left), Some(right)) = (number(found), number(wanted)) else {
        return match operator {
            Operator::Equal => found == wanted,
            Operator::NotEqual => found != wanted,
            Operator::Less | Operator::LessOrEqual | Operator::Greater | Operator::GreaterOrEqual => false,
        };
    };
    let Some(order) = left.partial_cmp(&right) else {
        return false;
    };
    match operator {
        Operator::Equal => order == Ordering::Equal,
        Operator::NotEqual => order != Ordering::Equal,
        Operator::Less => order == Ordering::Less,
        Operator::LessOrEqual => order != Ordering::Greater,
        Operator::Greater => order == Ordering::Greater,
        Operator::GreaterOrEqual => order != Ordering::Less,
    }
}

/// Numbers are themselves, times are their Unix seconds.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse::<Timestamp>().ok().map(|time| time.unix() as f64),
        _ => None,
    }
}
