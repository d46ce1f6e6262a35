//! 04-rfc6962-merkle: proofs of transparency-dev/merkle and sigstore-ruby, and the reference roots.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::Value;
use stella_attest::merkle::{self, EMPTY_ROOT, Hash, MemoryTree};

use crate::support::{Run, folder, lines_of, read, walk};

/// What the case says about itself: the proof holds or not. `None`: the case is about something that we do not have.
type Verdict = Option<bool>;

#[test]
fn merkle_proofs_hold_or_fail_as_stated() {
    let Some(root) = folder("04-rfc6962-merkle") else {
        return;
    };
    let mut run = Run::new("04-rfc6962-merkle");
    for file in walk(&root) {
        let name = file.strip_prefix(&root).unwrap_or(&file).display().to_string();
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("json") => {
                let case: Value = serde_json::from_slice(&read(&file)).unwrap();
                if case.get("roots_by_size_0_to_8").is_some() {
                    reference(&case, &mut run);
                } else {
                    judge(&name, &case, &mut run);
                }
            }
            Some("jsonl") => {
                for (number, case) in lines_of(&file).iter().enumerate() {
                    judge(&format!("{name}:{}", number + 1), case, &mut run);
                }
            }
            _ => {}
        }
    }
    run.finish();
}

fn judge(name: &str, case: &Value, run: &mut Run) {
    let must_fail = case
        .get("wantErr")
        .and_then(Value::as_bool)
        .unwrap_or(!case["expected_error"].is_null());
    match holds(case) {
        Some(holds) => run.expect(name, !must_fail, holds),
        None => run.skip(
            name,
            "a subtree that does not begin at the first leaf, or is empty",
        ),
    }
}

/// The shape of a case follows from its members.
fn holds(case: &Value) -> Verdict {
    let has = |member: &str| case.get(member).is_some();
    let number = |member: &str| case[member].as_u64().unwrap();
    if has("treeSize") {
        Some(included(case, "leafHash", number("leafIdx"), number("treeSize")))
    } else if has("leaf_hash") {
        Some(included(case, "leaf_hash", number("index"), number("size")))
    } else if has("leafIdx") {
        // A subtree is a tree by itself, if it begins where one of its length can begin.
        let (start, end, index) = (number("start"), number("end"), number("leafIdx"));
        let fits = start < end
            && start.is_multiple_of((end - start).checked_next_power_of_two().unwrap_or(u64::MAX));
        Some(fits && index >= start && included(case, "leafHash", index - start, end - start))
    } else if has("size1") {
        Some(consistent(case, number("size1"), number("size2")))
    } else if number("start") == 0 && number("end") > 0 {
        Some(consistent(case, number("end"), number("size")))
    } else {
        None
    }
}

fn included(case: &Value, leaf: &str, index: u64, size: u64) -> bool {
    let (Some(leaf), Some(proof)) = (hash(&case[leaf]), proof(case)) else {
        return false;
    };
    merkle::verify_inclusion(&leaf, index, size, &proof, &any_root(&case["root"])).is_ok()
}

fn consistent(case: &Value, old: u64, new: u64) -> bool {
    let Some(proof) = proof(case) else { return false };
    merkle::verify_consistency(
        old,
        new,
        &proof,
        &any_root(&case["root1"]),
        &any_root(&case["root2"]),
    )
    .is_ok()
}

fn proof(case: &Value) -> Option<Vec<Hash>> {
    case["proof"]
        .as_array()
        .map_or(Some(Vec::new()), |hashes| hashes.iter().map(hash).collect())
}

fn hash(value: &Value) -> Option<Hash> {
    BASE64_STANDARD.decode(value.as_str()?).ok()?.try_into().ok()
}

/// Some cases have texts where roots stand ("don't care"): they only mean roots that differ or do not.
fn any_root(value: &Value) -> Hash {
    let text = value.as_str().unwrap();
    hash(value).unwrap_or_else(|| merkle::leaf_hash(text.as_bytes()))
}

fn reference(case: &Value, run: &mut Run) {
    let hex_of = |hash: &Hash| hex::encode(hash);
    let mut tree = MemoryTree::new();
    let mut roots = vec![hex_of(&tree.root())];
    for input in case["leaf_inputs_hex"].as_array().unwrap() {
        tree.push(merkle::leaf_hash(&hex::decode(input.as_str().unwrap()).unwrap()));
        roots.push(hex_of(&tree.root()));
    }
    for (size, wanted) in case["roots_by_size_0_to_8"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
    {
        run.expect_text(&format!("root of {size}"), wanted.as_str().unwrap(), &roots[size]);
        let again = merkle::root(&tree, size as u64).unwrap();
        run.expect_text(
            &format!("root of the first {size}"),
            wanted.as_str().unwrap(),
            &hex_of(&again),
        );
    }
    for (what, wanted) in case["hasher"].as_object().unwrap() {
        let Some(found) = hasher(what) else {
            run.skip(what, "a node whose children are no hashes");
            continue;
        };
        run.expect_text(what, wanted.as_str().unwrap(), &hex_of(&found));
    }
}

/// `empty_root`, or `leaf(…)` of "empty" or a text. `node(…)` is of two texts that are no hashes, which no tree has; the
/// reference roots hold ours to its definition.
fn hasher(what: &str) -> Option<Hash> {
    if what == "empty_root" {
        return Some(EMPTY_ROOT);
    }
    let (function, arguments) = what.strip_suffix(')')?.split_once('(')?;
    let texts: Vec<&str> = arguments
        .split(',')
        .map(|argument| argument.trim_matches('"'))
        .collect();
    match (function, &texts[..]) {
        ("leaf", ["empty"]) => Some(merkle::leaf_hash(b"")),
        ("leaf", [text]) => Some(merkle::leaf_hash(text.as_bytes())),
        _ => None,
    }
}
