//! Policy gates: a YAML file of rules over an event's document.
//!
//! ```yaml
//! lists: { VendorAllowlist: ["cosign:SHA256-PKIX:…"] }
//! vars: { releaseFreeze: "2026-01-01T00:00:00Z" }
//! rules:
//!   - id: GATE-PROVEN-VEX
//!     when: { all: [ { kind: "VEX" }, { trust.verified: true }, "rekor.integratedTime <= releaseFreeze" ] }
//!     then: { decision: ALLOW }
//! ```
//!
//! A file is parsed once, into rules that can no longer be wrong: unknown members, operators, lists and variables are
//! refused with their path. `unlogged: allow` lets evidence without a log entry reach the rules, where `trust.verified` is
//! false and `key.*` is known; it never proves an event. FAIL beats ALLOW. If no rule matches the decision is FAIL, and the reasons name every value
//! that was looked for and is not there. A comparison with a missing value is false.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::digest::Digest;

mod condition;

use condition::Condition;

/// Largest policy file, in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Most rules of a file, and most conditions of a rule.
const MAX_RULES: usize = 1_000;
/// Most values and texts that aliases (`*name`) may repeat, so that a small file cannot grow into a huge one.
const MAX_REPLAYED: usize = 10_000;

/// Why a policy file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Larger than [`MAX_BYTES`].
    #[error("the policy is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// Not YAML, with duplicate keys, or not UTF-8.
    #[error("not valid YAML: {message}")]
    Yaml {
        /// What and where.
        message: String,
    },
    /// A member is missing, unknown or of the wrong form.
    #[error("`{path}` is missing, unknown or of the wrong form: {expected}")]
    Malformed {
        /// Path of the member.
        path: String,
        /// What should stand there.
        expected: &'static str,
    },
    /// A condition does not parse.
    #[error("the condition at `{path}` does not parse: {expected}")]
    Condition {
        /// Path of the condition.
        path: String,
        /// What should stand there.
        expected: &'static str,
    },
    /// A list that is not in `lists`.
    #[error("the condition at `{path}` names the list `{name}`, which is not in `lists`")]
    UnknownList {
        /// Path of the condition.
        path: String,
        /// The list's name.
        name: String,
    },
    /// A variable that is not in `vars`.
    #[error("the condition at `{path}` names `{name}`, which is not in `vars`; put literal text into quotes")]
    UnknownVariable {
        /// Path of the condition.
        path: String,
        /// The variable's name.
        name: String,
    },
}

impl PolicyError {
    /// The reason code.
    pub const fn reason(&self) -> &'static str {
        "BAD_POLICY"
    }

    /// Path of the member at fault, empty if the whole file is.
    pub fn field(&self) -> &str {
        match self {
            Self::TooLarge | Self::Yaml { .. } => "",
            Self::Malformed { path, .. }
            | Self::Condition { path, .. }
            | Self::UnknownList { path, .. }
            | Self::UnknownVariable { path, .. } => path,
        }
    }
}

/// What a policy decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may pass.
    Allow,
    /// It may not.
    Fail,
}

/// A decision with its reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What was decided.
    pub decision: Decision,
    /// Id of the rule that decided.
    pub rule: Option<String>,
    /// Reason codes: `RULE_FAILED`, or `NO_RULE` with `NO_TRUSTED_TIME` and `MISSING_PATH:<path>`; none for ALLOW.
    pub reasons: Vec<String>,
    /// The rule's own words.
    pub message: Option<String>,
}

/// A parsed policy file.
#[derive(Clone, Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    unlogged: bool,
    digest: Digest,
}

#[derive(Clone, Debug)]
struct Rule {
    id: String,
    /// All must hold, or any.
    all: bool,
    conditions: Vec<Condition>,
    decision: Decision,
    message: Option<String>,
}

/// The named values that conditions may use.
struct Names {
    lists: BTreeMap<String, Vec<String>>,
    vars: Map<String, Value>,
}

impl Policy {
    /// Parses a file.
    ///
    /// # Errors
    /// [`PolicyError`] names the member at fault.
    pub fn parse(yaml: &[u8]) -> Result<Self, PolicyError> {
        if yaml.len() > MAX_BYTES {
            return Err(PolicyError::TooLarge);
        }
        let text = std::str::from_utf8(yaml).map_err(|error| PolicyError::Yaml {
            message: error.to_string(),
        })?;
        let mut options = serde_saphyr::Options::default();
        options.alias_limits.max_total_replayed_events = MAX_REPLAYED;
        let read = serde_saphyr::from_str_with_options(text, options);
        let document: Value = read.map_err(|error| PolicyError::Yaml {
            message: first_line(&error.to_string()),
        })?;
        let root = object(&document, "", &["rules", "lists", "vars", "unlogged"])?;
        let unlogged = match root.get("unlogged").map(Value::as_str) {
            None | Some(Some("refuse")) => false,
            Some(Some("allow")) => true,
            Some(_) => return Err(malformed("unlogged", "`allow` or `refuse`")),
        };
        let names = Names {
            lists: lists(root)?,
            vars: vars(root)?,
        };
        let listed = root
            .get("rules")
            .and_then(Value::as_array)
            .filter(|rules| rules.len() <= MAX_RULES);
        let listed = listed.ok_or(malformed("rules", "a list of at most 1,000 rules"))?;
        let rules = listed
            .iter()
            .enumerate()
            .map(|(index, rule)| Rule::parse(rule, &format!("rules[{index}]"), &names))
            .collect::<Result<Vec<_>, _>>()?;
        for (index, rule) in rules.iter().enumerate() {
            if rules[..index].iter().any(|earlier| earlier.id == rule.id) {
                return Err(malformed(&format!("rules[{index}].id"), "an id of its own"));
            }
        }
        Ok(Self {
            rules,
            unlogged,
            digest: Digest::of(yaml),
        })
    }

    /// SHA-256 of the file's bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// True if evidence without a log entry may be judged by the rules, where no event is to be proven.
    pub fn allows_unlogged(&self) -> bool {
        self.unlogged
    }

    /// Decides over an event's document, whose `provenance` and `trust` must come from a verification.
    pub fn evaluate(&self, facts: &Value) -> Outcome {
        let mut missing: Vec<String> = Vec::new();
        let mut allowed: Option<&Rule> = None;
        for rule in &self.rules {
            if !rule.matches(facts, &mut missing) {
                continue;
            }
            match rule.decision {
                Decision::Fail => return rule.outcome(vec!["RULE_FAILED".into()]),
                Decision::Allow => allowed = allowed.or(Some(rule)),
            }
        }
        if let Some(rule) = allowed {
            return rule.outcome(Vec::new());
        }
        missing.sort();
        missing.dedup();
        let reasons =
            std::iter::once("NO_RULE".to_owned()).chain(missing.into_iter().map(|path| reason(&path)));
        Outcome {
            decision: Decision::Fail,
            rule: None,
            reasons: reasons.collect(),
            message: None,
        }
    }
}

fn reason(missing: &str) -> String {
    match missing {
        "provenance.dsse.rekor.integratedTime" => "NO_TRUSTED_TIME".to_owned(),
        path => format!("MISSING_PATH:{path}"),
    }
}

impl Rule {
    fn parse(value: &Value, path: &str, names: &Names) -> Result<Self, PolicyError> {
        let rule = object(value, path, &["id", "when", "then"])?;
        let id = text(rule, path, "id")?.to_owned();
        let (when_path, then_path) = (format!("{path}.when"), format!("{path}.then"));
        let when = object(
            rule.get("when").unwrap_or(&Value::Null),
            &when_path,
            &["all", "any"],
        )?;
        let one = "exactly one of `all` and `any`, a list of conditions";
        let (all, listed) = match (when.get("all"), when.get("any")) {
            (Some(listed), None) => (true, listed),
            (None, Some(listed)) => (false, listed),
            _ => return Err(malformed(&when_path, one)),
        };
        let listed = listed
            .as_array()
            .filter(|listed| (1..=MAX_RULES).contains(&listed.len()));
        let which = if all { "all" } else { "any" };
        let conditions = listed
            .ok_or(malformed(&when_path, one))?
            .iter()
            .enumerate()
            .map(|(index, value)| Condition::parse(value, &format!("{when_path}.{which}[{index}]"), names))
            .collect::<Result<_, _>>()?;
        let then = object(
            rule.get("then").unwrap_or(&Value::Null),
            &then_path,
            &["decision", "reason"],
        )?;
        let decision = match text(then, &then_path, "decision")? {
            "ALLOW" => Decision::Allow,
            "FAIL" => Decision::Fail,
            _ => return Err(malformed(&format!("{then_path}.decision"), "ALLOW or FAIL")),
        };
        let message = match then.get("reason") {
            None => None,
            Some(_) => Some(text(then, &then_path, "reason")?.to_owned()),
        };
        Ok(Self {
            id,
            all,
            conditions,
            decision,
            message,
        })
    }

    fn matches(&self, facts: &Value, missing: &mut Vec<String>) -> bool {
        let mut holds = self.all;
        for condition in &self.conditions {
            let held = condition.holds(facts, missing);
            holds = if self.all { holds && held } else { holds || held };
        }
        holds
    }

    fn outcome(&self, reasons: Vec<String>) -> Outcome {
        let rule = Some(self.id.clone());
        Outcome {
            decision: self.decision,
            rule,
            reasons,
            message: self.message.clone(),
        }
    }
}

fn malformed(path: &str, expected: &'static str) -> PolicyError {
    PolicyError::Malformed {
        path: path.to_owned(),
        expected,
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn object<'v>(value: &'v Value, path: &str, known: &[&str]) -> Result<&'v Map<String, Value>, PolicyError> {
    let members = value.as_object().ok_or(malformed(path, "a mapping"))?;
    match members.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(members),
        Some(unknown) if path.is_empty() => Err(malformed(unknown, "no such member is known")),
        Some(unknown) => Err(malformed(&format!("{path}.{unknown}"), "no such member is known")),
    }
}

fn text<'v>(members: &'v Map<String, Value>, path: &str, name: &str) -> Result<&'v str, PolicyError> {
    let found = members
        .get(name)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty());
    found.ok_or_else(|| malformed(&format!("{path}.{name}"), "a text"))
}

fn lists(root: &Map<String, Value>) -> Result<BTreeMap<String, Vec<String>>, PolicyError> {
    let mut lists = BTreeMap::new();
    let Some(value) = root.get("lists") else {
        return Ok(lists);
    };
    for (name, items) in value
        .as_object()
        .ok_or(malformed("lists", "a mapping of lists of texts"))?
    {
        let path = format!("lists.{name}");
        let items = items.as_array().ok_or(malformed(&path, "a list of texts"))?;
        let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
        let texts = texts
            .collect::<Option<Vec<_>>>()
            .ok_or(malformed(&path, "a list of texts"))?;
        lists.insert(name.clone(), texts);
    }
    Ok(lists)
}

fn vars(root: &Map<String, Value>) -> Result<Map<String, Value>, PolicyError> {
    let Some(value) = root.get("vars") else {
        return Ok(Map::new());
    };
    let vars = value
        .as_object()
        .ok_or(malformed("vars", "a mapping of values"))?;
    match vars
        .iter()
        .find(|(_, value)| !matches!(value, Value::String(_) | Value::Number(_) | Value::Bool(_)))
    {
        None => Ok(vars.clone()),
        Some((name, _)) => Err(malformed(
            &format!("vars.{name}"),
            "a text, a number, true or false",
        )),
    }
}

#[cfg(test)]
mod tests;
