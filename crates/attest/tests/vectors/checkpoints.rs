//! 10-checkpoints: signed notes, checkpoint texts, tlog-proofs, and a whole log in tiles.

use std::collections::BTreeMap;
use std::path::Path;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::Value;
use stella_attest::checkpoint::{Checkpoint, CheckpointText, TlogProof};
use stella_attest::key::SigningKey;
use stella_attest::merkle::{self, Hash, MemoryTree};
use stella_attest::note::{Note, NoteKey, NoteSigner};
use stella_attest::tile::{self, TileKind, TilePath};

use crate::support::{Run, folder, read, walk};

#[test]
fn notes_checkpoints_and_a_whole_log_read_as_stated() {
    let Some(root) = folder("10-checkpoints") else {
        return;
    };
    let mut run = Run::new("10-checkpoints");
    let mut log_keys = Vec::new();
    for file in walk(&root) {
        if file.extension().is_some_and(|extension| extension == "json") {
            let list: Value = serde_json::from_slice(&read(&file)).unwrap();
            judge_list(&list, &mut log_keys, &mut run);
        }
    }
    for file in walk(&root) {
        if file.extension().is_some_and(|extension| extension == "txt") {
            signed_checkpoint(&root, &file, &mut run);
        }
        // Every folder with a checkpoint and tiles is a log.
        if file.file_name().is_some_and(|name| name == "checkpoint") {
            let log = file.parent().unwrap();
            if log.join("tile").is_dir() {
                whole_log(log, &log_keys, &mut run);
            }
        }
    }
    run.finish();
}

/// Which list it is follows from the members of its cases.
fn judge_list(list: &Value, log_keys: &mut Vec<NoteKey>, run: &mut Run) {
    if let Some(cases) = list.as_array() {
        for case in cases {
            checkpoint_text(case, run);
        }
    } else if list.get("skey").is_some() {
        signing(list, run);
    } else if let Some(cases) = list["cases"].as_array() {
        for case in cases {
            if case.get("vkeys").is_some() {
                open_note(case, log_keys, run);
            } else {
                let parsed = TlogProof::parse(case["text"].as_str().unwrap());
                if let Ok(proof) = &parsed {
                    run.expect_text(id(case), case["text"].as_str().unwrap(), &proof.to_string());
                }
                run.expect(id(case), must_pass(case), parsed.is_ok());
            }
        }
    }
}

fn id(case: &Value) -> &str {
    case["id"].as_str().unwrap()
}

fn must_pass(case: &Value) -> bool {
    case["expect"] == "pass"
}

fn open_note(case: &Value, log_keys: &mut Vec<NoteKey>, run: &mut Run) {
    let bytes = match case["note_b64"].as_str() {
        Some(encoded) => BASE64_STANDARD.decode(encoded).unwrap(),
        None => case["note"].as_str().unwrap().as_bytes().to_vec(),
    };
    let texts = case["vkeys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key.as_str().unwrap());
    let keys: Vec<NoteKey> = texts.map(|text| NoteKey::parse(text).unwrap()).collect();
    let known: Vec<&NoteKey> = keys.iter().collect();
    let opened = Note::parse(&bytes).and_then(|note| {
        note.open(&known)?;
        Ok(note)
    });
    if let Ok(note) = &opened {
        run.expect_text(id(case), std::str::from_utf8(&bytes).unwrap(), &note.to_string());
    }
    run.expect(id(case), must_pass(case), opened.is_ok());
    log_keys.extend(keys);
}

/// The verdicts are of parsers that differ: in the go.sum one the origin is fixed and the root has 32 bytes, in the
/// others both are free, and a signed one is a note.
fn checkpoint_text(case: &Value, run: &mut Run) {
    let text = case["text"].as_str().unwrap();
    let signed;
    let text = if case["signed"] == true {
        match Note::parse(text.as_bytes()) {
            Ok(note) => {
                signed = note;
                signed.text()
            }
            Err(_) => return run.expect(id(case), must_pass(case), false),
        }
    } else {
        text
    };
    let parsed = CheckpointText::parse(text);
    let is_gosum = id(case).starts_with("gosum");
    let passes = parsed.as_ref().is_ok_and(|checkpoint| {
        !is_gosum || (checkpoint.origin == "go.sum database tree" && checkpoint.root.len() == 32)
    });
    run.expect(id(case), must_pass(case), passes);
    // A whole checkpoint besides: a root of SHA-256, every line ended.
    let is_whole = parsed.is_ok_and(|checkpoint| checkpoint.root.len() == 32) && text.ends_with('\n');
    match Checkpoint::parse(text) {
        Ok(checkpoint) => run.expect_text(id(case), text, &checkpoint.to_text()),
        Err(_) => run.expect(id(case), false, is_whole),
    }
}

fn signing(case: &Value, run: &mut Run) {
    let text = case["text"].as_str().unwrap();
    let skey = case["skey"]
        .as_str()
        .unwrap()
        .strip_prefix("PRIVATE+KEY+")
        .unwrap();
    let (name, rest) = skey.split_once('+').unwrap();
    let blob = BASE64_STANDARD.decode(rest.split_once('+').unwrap().1).unwrap();
    let key = ed25519_from_seed(&blob[1..]);
    let signer = NoteSigner::new(name, &key).unwrap();
    run.expect_text(
        "sign",
        case["expect_note"].as_str().unwrap(),
        &Note::sign(text, &signer).unwrap().to_string(),
    );
    run.expect_text(
        "sign: key id",
        rest.split_once('+').unwrap().0,
        &hex::encode(signer.public().id()),
    );
    for key in case["vkey_bad"].as_array().unwrap() {
        let key = key.as_str().unwrap();
        run.expect(key, false, NoteKey::parse(key).is_ok());
    }
    for (member, paths) in case.as_object().unwrap() {
        if member.starts_with("tile_paths") {
            for path in paths.as_array().unwrap() {
                let text = path["path"].as_str().unwrap();
                run.expect(text, path["valid"] == true, is_gosum_tile(text));
            }
        }
    }
}

fn ed25519_from_seed(seed: &[u8]) -> SigningKey {
    let prefix = hex::decode("302e020100300506032b657004220420").unwrap();
    let der = BASE64_STANDARD.encode([&prefix, seed].concat());
    SigningKey::from_pkcs8_pem(&format!(
        "-----BEGIN PRIVATE KEY-----\n{der}\n-----END PRIVATE KEY-----\n"
    ))
    .unwrap()
}

/// The older grammar has the tiles' height before the level, and `data` for entries.
fn is_gosum_tile(text: &str) -> bool {
    let Some((height, rest)) = text.strip_prefix("tile/").and_then(|rest| rest.split_once('/')) else {
        return false;
    };
    let Ok(height @ 1..=30) = height.parse::<u32>() else {
        return false;
    };
    let rest = rest
        .strip_prefix("data/")
        .map_or(rest.to_owned(), |rest| format!("entries/{rest}"));
    let parsed = format!("tile/{rest}").parse::<TilePath>();
    parsed.is_ok_and(|path| !path.is_partial() || u32::from(path.width) < 1 << height)
}

fn signed_checkpoint(root: &Path, file: &Path, run: &mut Run) {
    let name = file.strip_prefix(root).unwrap_or(file).display().to_string();
    let bytes = read(file);
    let parsed = Note::parse(&bytes).ok().and_then(|note| {
        Checkpoint::parse(note.text())
            .ok()
            .filter(|checkpoint| checkpoint.to_text() == note.text())?;
        Some(note.to_string())
    });
    run.expect_text(
        &name,
        std::str::from_utf8(&bytes).unwrap(),
        &parsed.unwrap_or_default(),
    );
}

/// Reads every tile and every checkpoint of a log, and holds them against each other.
fn whole_log(log: &Path, keys: &[NoteKey], run: &mut Run) {
    let tiles = tiles_of(log, run);
    let tree = tree_of(&tiles, run);
    for (path, bytes) in &tiles {
        if let TileKind::Hashes(level) = path.kind {
            let nodes = tree.level(level * 8);
            let first = path.index as usize * 256;
            let wanted = nodes
                .get(first..first + usize::from(path.width))
                .map(<[Hash]>::concat);
            run.expect(&path.to_string(), true, wanted.as_deref() == Some(&bytes[..]));
        }
    }
    let checkpoints = checkpoints_of(log, keys, &tree, run);
    for (size, root) in &checkpoints {
        for index in 0..*size {
            let proof = merkle::inclusion_proof(&tree, index, *size).unwrap();
            let leaf = tree.leaf(index).unwrap();
            let included = merkle::verify_inclusion(leaf, index, *size, &proof, root);
            run.expect(&format!("{index} of {size}"), true, included.is_ok());
        }
        for (larger, its_root) in checkpoints.range(*size..) {
            let proof = merkle::consistency_proof(&tree, *size, *larger).unwrap();
            let consistent = merkle::verify_consistency(*size, *larger, &proof, root, its_root);
            run.expect(&format!("{size} to {larger}"), *size != 0, consistent.is_ok());
        }
    }
}

fn tiles_of(log: &Path, run: &mut Run) -> BTreeMap<TilePath, Vec<u8>> {
    let mut tiles = BTreeMap::new();
    for file in walk(&log.join("tile")) {
        let name = file.strip_prefix(log).unwrap().to_str().unwrap().to_owned();
        match name.parse::<TilePath>() {
            Ok(path) => {
                tiles.insert(path, read(&file));
            }
            Err(_) => run.expect(&name, true, false),
        }
    }
    tiles
}

/// The tree over the widest bundles; narrower ones must be beginnings of them.
fn tree_of(tiles: &BTreeMap<TilePath, Vec<u8>>, run: &mut Run) -> MemoryTree {
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for (path, bytes) in tiles.iter().filter(|(path, _)| path.kind == TileKind::Entries) {
        let first = path.index as usize * 256;
        let read = tile::read_entries(bytes, path.width).unwrap_or_default();
        let mut agrees = read.len() == usize::from(path.width) && first <= entries.len();
        for (offset, entry) in read.iter().enumerate() {
            match entries.get(first + offset) {
                Some(known) => agrees &= known == entry,
                None => entries.push(entry.to_vec()),
            }
        }
        run.expect(&path.to_string(), true, agrees);
    }
    let mut tree = MemoryTree::new();
    for entry in &entries {
        tree.push(merkle::leaf_hash(entry));
    }
    tree
}

fn checkpoints_of(log: &Path, keys: &[NoteKey], tree: &MemoryTree, run: &mut Run) -> BTreeMap<u64, Hash> {
    let mut checkpoints = BTreeMap::new();
    for file in walk(log) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.starts_with("checkpoint") {
            continue;
        }
        let checkpoint = Note::parse(&read(&file)).ok().and_then(|note| {
            let checkpoint = Checkpoint::parse(note.text()).ok()?;
            let mut signer = keys.iter().filter(|key| key.name() == checkpoint.origin);
            signer.any(|key| note.verify(key).is_ok()).then_some(checkpoint)
        });
        let root = checkpoint
            .as_ref()
            .and_then(|checkpoint| merkle::root(tree, checkpoint.size).ok());
        run.expect(
            &name,
            true,
            checkpoint.is_some() && root == checkpoint.as_ref().map(|checkpoint| checkpoint.root),
        );
        checkpoints.extend(checkpoint.map(|checkpoint| (checkpoint.size, checkpoint.root)));
    }
    checkpoints
}
