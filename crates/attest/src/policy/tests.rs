//! What policies decide over events, and which policy files are refused.

use serde_json::json;

use super::*;

/// The two rules of the specification, to the letter.
fn seed(freeze: &str) -> String {
    format!(
        r#"
lists: {{ VendorAllowlist: ["cosign:SHA256-PKIX:vendor"] }}
vars: {{ releaseFreeze: {freeze} }}
rules:
- id: GATE-PROVEN-VEX
  when:
    all:
    - kind: "VEX"
    - trust.verified: true
    - key.keyId in VendorAllowlist
    - rekor.integratedTime <= releaseFreeze
  then:
    decision: ALLOW
- id: BLOCK-UNPROVEN
  when:
    any:
    - trust.verified != true
    - provenance.dsse.rekor.logIndex missing
  then:
    decision: FAIL
    reason: "Unproven evidence influences decision; require Rekor-backed attestation."
"#
    )
}

fn proven(integrated_time: Option<i64>) -> Value {
    let mut rekor = json!({"logIndex": 0});
    if let Some(time) = integrated_time {
        rekor["integratedTime"] = time.into();
    }
    json!({
        "kind": "VEX", "trust": {"verified": true},
        "provenance": {"dsse": {"key": {"keyId": "cosign:SHA256-PKIX:vendor"}, "rekor": rekor}},
    })
}

fn outcome(yaml: &str, facts: &Value) -> (Decision, Option<String>, Vec<String>) {
    let outcome = Policy::parse(yaml.as_bytes()).expect("a policy").evaluate(facts);
    (outcome.decision, outcome.rule, outcome.reasons)
}

#[test]
fn the_two_rules_of_the_specification_decide_as_it_says() {
    let after = seed("\"2026-06-01T00:00:00Z\"");
    let before = seed("1");
    let witnessed = proven(Some(1_764_000_000));
    let mut stranger = witnessed.clone();
    stranger["provenance"]["dsse"]["key"]["keyId"] = json!("cosign:SHA256-PKIX:other");
    let unproven = json!({"kind": "VEX", "trust": {"verified": false}});
    let no_rule = |more: &[&str]| {
        let reasons = std::iter::once("NO_RULE")
            .chain(more.iter().copied())
            .map(str::to_owned)
            .collect();
        (Decision::Fail, None, reasons)
    };
    let rule = |decision, id: &str, reasons: Vec<String>| (decision, Some(id.to_owned()), reasons);
    for (case, yaml, facts, want) in [
        (
            "freeze after",
            &after,
            &witnessed,
            rule(Decision::Allow, "GATE-PROVEN-VEX", vec![]),
        ),
        ("freeze before", &before, &witnessed, no_rule(&[])),
        ("no time", &after, &proven(None), no_rule(&["NO_TRUSTED_TIME"])),
        ("another key", &after, &stranger, no_rule(&[])),
        (
            "unproven",
            &after,
            &unproven,
            rule(Decision::Fail, "BLOCK-UNPROVEN", vec!["RULE_FAILED".into()]),
        ),
    ] {
        assert_eq!(outcome(yaml, facts), want, "{case}");
    }
    let message = Policy::parse(after.as_bytes())
        .expect("a policy")
        .evaluate(&unproven)
        .message;
    let want = "Unproven evidence influences decision; require Rekor-backed attestation.";
    assert_eq!(message.as_deref(), Some(want));
}

#[test]
fn each_operator_compares_and_a_missing_value_is_never_true() {
    let facts = json!({"n": 5, "t": "2026-01-01T00:00:00Z", "s": "x", "b": true, "o": {"p": "q"}});
    for (condition, want) in [
        ("n == 5", true),
        ("n != 5", false),
        ("n < 5.5", true),
        ("n <= 4", false),
        ("n > four", true),
        ("n >= 6", false),
        ("t <= 1767225600", true),
        ("t < 1767225600", false),
        ("t > \"2025-12-31T23:59:59Z\"", true),
        ("s == 'x'", true),
        ("s == \"y\"", false),
        ("s < 'y'", false),
        ("s in Letters", true),
        ("s not in Letters", false),
        ("o.p not in Letters", true),
        ("b == true", true),
        ("b == 'true'", false),
        ("o.p exists", true),
        ("o.r exists", false),
        ("o.r missing", true),
        ("o.r == 1", false),
        ("o.r != 1", false),
        ("o.r not in Letters", false),
        ("n in Letters", false),
    ] {
        let yaml = format!(
            "lists: {{Letters: [x]}}\nvars: {{four: 4}}\nrules:\n- id: R\n  when:\n    all:\n    - {}\n  \
             then: {{decision: ALLOW}}\n",
            serde_json::to_string(condition).expect("a text"),
        );
        assert_eq!(outcome(&yaml, &facts).0 == Decision::Allow, want, "{condition}");
    }
    let yaml = "rules:\n- id: R\n  when: {all: [\"a.b == 1\", \"a.b < 2\", \"c == 1\"]}\n  then: {decision: ALLOW}\n";
    let want = ["NO_RULE", "MISSING_PATH:a.b", "MISSING_PATH:c"]
        .map(str::to_owned)
        .to_vec();
    assert_eq!(outcome(yaml, &json!({})), (Decision::Fail, None, want));
}

#[test]
fn what_says_nothing_of_its_verification_is_unverified() {
    let yaml = seed("1");
    for facts in [
        json!({}),
        json!({"trust": {}}),
        json!({"trust": {"verified": null}}),
        json!({"trust": true}),
    ] {
        let want = (
            Decision::Fail,
            Some("BLOCK-UNPROVEN".to_owned()),
            vec!["RULE_FAILED".to_owned()],
        );
        assert_eq!(outcome(&yaml, &facts), want, "{facts}");
    }
    let claims = "rules:\n- {id: A, when: {all: [trust.verified: true]}, then: {decision: ALLOW}}\n";
    for claim in [json!("true"), json!(1), json!({"verified": true})] {
        let facts = json!({"trust": {"verified": claim}});
        assert_eq!(
            outcome(claims, &facts),
            (Decision::Fail, None, vec!["NO_RULE".to_owned()]),
            "{facts}"
        );
    }
}

#[test]
fn fail_beats_allow_whatever_the_order() {
    let allow = "- {id: A, when: {any: [x exists]}, then: {decision: ALLOW}}";
    let fail = "- {id: F, when: {any: [x exists]}, then: {decision: FAIL}}";
    for order in [[allow, fail], [fail, allow]] {
        let (decision, rule, _) = outcome(&format!("rules:\n{}\n", order.join("\n")), &json!({"x": 1}));
        assert_eq!((decision, rule.as_deref()), (Decision::Fail, Some("F")));
    }
}

#[test]
fn a_wrong_file_is_refused_with_its_place() {
    let rule = |when: &str, then: &str| format!("rules:\n- id: R\n  when: {when}\n  then: {then}\n");
    let allow = "{decision: ALLOW}";
    let twice = format!(
        "{}- id: R\n  when: {{all: [a exists]}}\n  then: {allow}\n",
        rule("{all: [a exists]}", allow)
    );
    for (yaml, want) in [
        ("rules: {}".to_owned(), "rules"),
        ("{}".to_owned(), "rules"),
        ("[]".to_owned(), ""),
        ("rulez: []".to_owned(), "rulez"),
        ("rules: []\nlists: {L: [1]}".to_owned(), "lists.L"),
        ("rules: []\nvars: {v: [1]}".to_owned(), "vars.v"),
        ("rules: [{when: {}, then: {}}]".to_owned(), "rules[0].id"),
        (rule("{}", allow), "rules[0].when"),
        (rule("{all: []}", allow), "rules[0].when"),
        (rule("{all: [a exists], any: [b exists]}", allow), "rules[0].when"),
        (rule("{cel: 'true'}", allow), "rules[0].when.cel"),
        (
            rule("{all: [a exists]}", "{decision: MAYBE}"),
            "rules[0].then.decision",
        ),
        (
            rule("{all: [a exists]}", "{decision: ALLOW, why: x}"),
            "rules[0].then.why",
        ),
        (rule("{all: [a]}", allow), "rules[0].when.all[0]"),
        (rule("{all: [a ~ 1]}", allow), "rules[0].when.all[0]"),
        (rule("{all: ['a ==']}", allow), "rules[0].when.all[0]"),
        (rule("{all: [a.. exists]}", allow), "rules[0].when.all[0]"),
        (rule("{all: [7]}", allow), "rules[0].when.all[0]"),
        (rule("{all: [{a: 1, b: 2}]}", allow), "rules[0].when.all[0]"),
        (
            rule("{any: [a exists, a in Nobody]}", allow),
            "rules[0].when.any[1]",
        ),
        (rule("{any: [a == nothing]}", allow), "rules[0].when.any[0]"),
        (twice, "rules[1].id"),
        ("rules: []\nrules: []".to_owned(), ""),
        ("rules: [".to_owned(), ""),
        ("a: &a [x, x]\nrules: *b".to_owned(), ""),
    ] {
        let refused = Policy::parse(yaml.as_bytes())
            .map(|_| ())
            .map_err(|error| error.field().to_owned());
        assert_eq!(refused, Err(want.to_owned()), "{yaml}");
    }
    assert_eq!(
        Policy::parse(&vec![b' '; MAX_BYTES + 1]).map(|_| ()),
        Err(PolicyError::TooLarge)
    );
}

#[test]
fn a_refusal_says_what_it_is() {
    let rule = |condition: &str| {
        format!("rules: [{{id: R, when: {{all: [{condition}]}}, then: {{decision: ALLOW}}}}]")
    };
    let (path, many) = (
        "rules[0].when.all[0]".to_owned(),
        "- {id: R}\n".repeat(MAX_RULES + 1),
    );
    for (yaml, want, text) in [
        (
            rule("'a in Vendors'"),
            PolicyError::UnknownList {
                path: path.clone(),
                name: "Vendors".into(),
            },
            "the condition at `rules[0].when.all[0]` names the list `Vendors`, which is not in `lists`",
        ),
        (
            rule("'a <= releaseFreeze'"),
            PolicyError::UnknownVariable {
                path,
                name: "releaseFreeze".into(),
            },
            "the condition at `rules[0].when.all[0]` names `releaseFreeze`, which is not in `vars`; put literal text \
             into quotes",
        ),
        (
            "rulez: []".into(),
            PolicyError::Malformed {
                path: "rulez".into(),
                expected: "no such member is known",
            },
            "`rulez` is missing, unknown or of the wrong form: no such member is known",
        ),
        (
            format!("rules:\n{many}"),
            PolicyError::Malformed {
                path: "rules".into(),
                expected: "a list of at most 1,000 rules",
            },
            "`rules` is missing, unknown or of the wrong form: a list of at most 1,000 rules",
        ),
    ] {
        let refused = Policy::parse(yaml.as_bytes()).map(|_| ());
        assert_eq!(
            refused.as_ref().map_err(ToString::to_string),
            Err(text.to_owned())
        );
        assert_eq!(refused, Err(want));
    }
}

#[test]
fn yaml_that_grows_or_repeats_is_refused_while_it_is_read() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let last = format!("*a{}, ", level - 1).repeat(10);
        bomb.push_str(&format!("a{level}: &a{level} [{last}]\n"));
    }
    let deep = format!("rules: {}{}", "[".repeat(50_000), "]".repeat(50_000));
    for (case, yaml) in [
        ("aliases of aliases", bomb),
        ("an alias within itself", "rules: &a [*a]".to_owned()),
        ("too deep", deep),
        (
            "a key twice in a rule",
            "rules: [{id: A, id: B, when: {all: [a exists]}, then: {}}]".to_owned(),
        ),
        ("a list twice", "rules: []\nlists: {L: [a], L: [b]}".to_owned()),
        ("a variable twice", "rules: []\nvars: {v: 1, v: 2}".to_owned()),
        ("two documents", "rules: []\n---\nrules: []\n".to_owned()),
    ] {
        let refused = Policy::parse(yaml.as_bytes()).map(|_| ());
        assert!(
            matches!(refused, Err(PolicyError::Yaml { .. })),
            "{case}: {refused:?}"
        );
    }
    assert_eq!(
        Policy::parse(&[b'r', 0xff])
            .map(|_| ())
            .map_err(|error| error.reason()),
        Err("BAD_POLICY")
    );
}
