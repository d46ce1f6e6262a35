//! The signing policy: who may have what signed, for which tenant, with which key.
//!
//! It is an allow-list: a call is allowed if one rule fits all four of its sides, and nothing else is. The digest of the
//! policy stands in every audit record that it allowed.

use serde::Deserialize;
use serde_json::json;
use stella_attest::canonical;
use stella_attest::digest::Digest;
use stella_attest::pattern;

/// One `[[policy.allow]]`. In each of the four, `*` stands for any run of characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Identity of the caller, `spiffe://…`.
    pub caller: String,
    /// Name of the tenant.
    pub tenant: String,
    /// The statement's predicateType.
    pub predicate_type: String,
    /// Name of the key slot.
    pub key_slot: String,
}

/// Why the policy refuses a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No rule lets this caller sign this predicateType for this tenant.
    Signing,
    /// A rule does, but with a key of another slot.
    Key,
}

/// All rules, and their digest.
#[derive(Clone, Debug)]
pub struct SigningPolicy {
    rules: Vec<Rule>,
    digest: Digest,
}

impl SigningPolicy {
    /// A policy of these rules. Their order does not matter; without any, nothing is allowed.
    pub fn new(mut rules: Vec<Rule>) -> Self {
        rules.sort();
        rules.dedup();
        let allow: Vec<_> = rules
            .iter()
            .map(|rule| {
                json!({
                    "caller": rule.caller,
                    "keySlot": rule.key_slot,
                    "predicateType": rule.predicate_type,
                    "tenant": rule.tenant,
                })
            })
            .collect();
        let digest = Digest::of(&canonical::to_vec(&json!({ "allow": allow })));
        Self { rules, digest }
    }

    /// SHA-256 of the policy's canonical form: RFC 8785 of `{"allow":[{caller,keySlot,predicateType,tenant}…]}`, sorted.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// True if some rule lets the caller sign anything for the tenant with the key of this slot. Who may not sign with a
    /// key may not rotate it either.
    pub fn may_use(&self, caller: &str, tenant: &str, slot: &str) -> bool {
        self.rules.iter().any(|rule| {
            pattern::matches(&rule.caller, caller)
                && pattern::matches(&rule.tenant, tenant)
                && pattern::matches(&rule.key_slot, slot)
        })
    }

    /// Decides one call.
    ///
    /// # Errors
    /// [`Refusal`] tells whether another slot would have been allowed.
    pub fn decide(
        &self,
        caller: &str,
        tenant: &str,
        predicate_type: &str,
        slot: &str,
    ) -> Result<(), Refusal> {
        let mut refusal = Refusal::Signing;
        for rule in &self.rules {
            let fits = pattern::matches(&rule.caller, caller)
                && pattern::matches(&rule.tenant, tenant)
                && pattern::matches(&rule.predicate_type, predicate_type);
            if fits && pattern::matches(&rule.key_slot, slot) {
                return Ok(());
            }
            if fits {
                refusal = Refusal::Key;
            }
        }
        Err(refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CI: &str = "spiffe://stella.local/ci";
    const BOM: &str = "https://cyclonedx.org/bom";

    fn rule(caller: &str, tenant: &str, predicate_type: &str, key_slot: &str) -> Rule {
        Rule {
            caller: caller.into(),
            tenant: tenant.into(),
            predicate_type: predicate_type.into(),
            key_slot: key_slot.into(),
        }
    }

    #[test]
    fn only_what_one_rule_allows_as_a_whole_is_allowed() {
        let policy = SigningPolicy::new(vec![
            rule(CI, "acme", "https://cyclonedx.org/bom*", "default"),
            rule("spiffe://stella.local/release/*", "*", "*", "release"),
            rule(CI, "umbrella", "*", "*"),
        ]);
        for (case, caller, tenant, predicate_type, slot, want) in [
            ("the rule itself", CI, "acme", BOM, "default", Ok(())),
            (
                "a version of the type",
                CI,
                "acme",
                "https://cyclonedx.org/bom/v1.6",
                "default",
                Ok(()),
            ),
            ("any type", CI, "umbrella", "x", "release", Ok(())),
            (
                "an identity below",
                "spiffe://stella.local/release/eu",
                "any",
                "x",
                "release",
                Ok(()),
            ),
            (
                "another caller",
                "spiffe://stella.local/c",
                "acme",
                BOM,
                "default",
                Err(Refusal::Signing),
            ),
            (
                "a longer caller",
                "spiffe://stella.local/ci2",
                "acme",
                BOM,
                "default",
                Err(Refusal::Signing),
            ),
            (
                "the parent identity",
                "spiffe://stella.local/release",
                "any",
                "x",
                "release",
                Err(Refusal::Signing),
            ),
            (
                "another tenant",
                CI,
                "acme2",
                BOM,
                "default",
                Err(Refusal::Signing),
            ),
            ("no tenant", CI, "", BOM, "default", Err(Refusal::Signing)),
            (
                "another type",
                CI,
                "acme",
                "https://spdx.dev/Document",
                "default",
                Err(Refusal::Signing),
            ),
            (
                "another case of letters",
                CI,
                "acme",
                "https://cyclonedx.org/BOM",
                "default",
                Err(Refusal::Signing),
            ),
            ("another slot", CI, "acme", BOM, "release", Err(Refusal::Key)),
            (
                "sides of two rules",
                CI,
                "acme",
                "x",
                "release",
                Err(Refusal::Signing),
            ),
        ] {
            assert_eq!(
                policy.decide(caller, tenant, predicate_type, slot),
                want,
                "{case}"
            );
        }
        let empty = SigningPolicy::new(Vec::new());
        assert_eq!(empty.decide(CI, "acme", BOM, "default"), Err(Refusal::Signing));
    }

    #[test]
    fn the_digest_is_of_the_rules_and_not_of_their_order() {
        let (one, two) = (rule("a", "b", "c", "d"), rule("a", "b", "c", "e"));
        let both = SigningPolicy::new(vec![one.clone(), two.clone()]);
        let written = br#"{"allow":[{"caller":"a","keySlot":"d","predicateType":"c","tenant":"b"},{"caller":"a","keySlot":"e","predicateType":"c","tenant":"b"}]}"#;
        assert_eq!(*both.digest(), Digest::of(written));
        for (case, rules, same) in [
            ("turned round", vec![two.clone(), one.clone()], true),
            ("said twice", vec![one.clone(), two.clone(), one.clone()], true),
            ("one left out", vec![one.clone()], false),
            ("one altered", vec![one, rule("a", "b", "c", "*")], false),
            ("none", Vec::new(), false),
        ] {
            assert_eq!(
                SigningPolicy::new(rules).digest() == both.digest(),
                same,
                "{case}"
            );
        }
    }
}
