//! Crashes, old copies and altered files.

use std::path::PathBuf;

use super::*;

fn journal_of(dir: &Path) -> PathBuf {
    let mut segments: Vec<PathBuf> = fs::read_dir(dir.join("journal"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    segments.sort();
    segments.pop().unwrap()
}

/// Every file below `dir`, relative to it.
fn files_below(dir: &Path, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir.join(name)).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{name}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            found.extend(files_below(dir, &name))
        } else {
            found.push(name)
        }
    }
    found.sort();
    found
}

/// Another byte, and not the zero that a crash leaves.
fn bent(byte: u8) -> u8 {
    if byte == 0xff { 1 } else { !byte }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_cut_at_any_byte_is_whole_or_was_never_there() {
    let bench = Bench::new();
    let log = bench.open();
    bench.fill(&log, 2).await;
    published(&log).await;
    let before = killed(bench.path());
    let whole_before = fs::read(journal_of(before.path())).unwrap();
    let third = bench.submission(2);
    log.submit(third.clone()).await.unwrap();
    let whole = fs::read(journal_of(bench.path())).unwrap();
    assert_eq!(whole[..whole_before.len()], whole_before);
    let name = journal_of(before.path())
        .strip_prefix(before.path())
        .unwrap()
        .to_owned();
    for cut in whole_before.len()..=whole.len() {
        let crashed = killed(before.path());
        fs::write(crashed.path().join(&name), &whole[..cut]).unwrap();
        let config = EmbeddedConfig::new(crashed.path(), ORIGIN);
        let opened = open::open(&config, &bench.log_key(), None).unwrap();
        let size = if cut == whole.len() { 3 } else { 2 };
        assert_eq!(opened.signed.checkpoint.size, size, "cut at {cut}");
        assert_eq!(
            root_of_bundles(crashed.path(), size),
            opened.signed.checkpoint.root,
            "cut at {cut}"
        );
        drop(opened);
        if cut % 97 == 0 || cut == whole.len() {
            let log = bench.open_at(crashed.path());
            assert_eq!(
                proven(log.log_key(), &third, &log.submit(third.clone()).await.unwrap()),
                2,
                "cut at {cut}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_was_answered_before_a_kill_is_there_after_it() {
    let bench = Arc::new(Bench::new());
    let log = Arc::new(bench.open());
    let answered = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for worker in 0..8 {
        let (bench, log, answered) = (bench.clone(), log.clone(), answered.clone());
        tasks.push(tokio::spawn(async move {
            for number in 0..100 {
                let submission = bench.submission(worker * 1000 + number);
                let entry = log.submit(submission.clone()).await.unwrap();
                answered.lock().unwrap().push((submission, entry.log_index));
            }
        }));
    }
    let mut kills = 0;
    while !tasks.iter().all(|task| task.is_finished()) {
        let known = answered.lock().unwrap().clone();
        let dir = killed(bench.path());
        let reopened = bench.open_at(dir.path());
        for (submission, index) in known.iter().rev().take(20) {
            let entry = reopened.submit(submission.clone()).await.unwrap();
            assert_eq!(proven(reopened.log_key(), submission, &entry), *index);
        }
        kills += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(kills > 0);
    assert_eq!(size_of(&log), 800);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_power_failure_leaves_is_written_again() {
    let bench = Bench::new();
    let log = Arc::new(bench.open());
    let answers = submit_all(&log, (0..300).map(|number| bench.submission(number)).collect()).await;
    assert_eq!(answers.into_iter().filter(Result::is_ok).count(), 300);
    let wanted = published(&log).await;
    // The log goes on tidying up; what it left at one moment is what is damaged.
    let left = killed(bench.path());
    for name in files_below(left.path(), "tile")
        .iter()
        .map(String::as_str)
        .chain(["checkpoint"])
    {
        let tile = name.parse::<TilePath>().ok();
        for (case, damage) in [
            ("gone", None),
            ("empty", Some((0, 0))),
            ("cut", Some((7, 7))),
            ("zeros", Some((0, usize::MAX))),
            ("zeros at the end", Some((7, usize::MAX))),
        ] {
            let dir = killed(left.path());
            let path = dir.path().join(name);
            let bytes = fs::read(&path).unwrap();
            match damage {
                None => fs::remove_file(&path).unwrap(),
                Some((kept, length)) => {
                    let mut torn = bytes[..kept].to_vec();
                    torn.resize(bytes.len().min(length), 0);
                    fs::write(&path, torn).unwrap();
                }
            }
            // The checkpoint is replaced as a whole: a crash leaves an old one or a new one, or none.
            let wanted_refusal = (tile.is_none() && damage.is_some()).then_some("LOG_CORRUPT");
            assert_eq!(bench.refusal(dir.path(), None), wanted_refusal, "{name}: {case}");
            let is_of_this_tree = tile.is_none_or(|tile| files::tiles_between(0, 300).contains(&tile));
            if wanted_refusal.is_none() && is_of_this_tree {
                assert_eq!(fs::read(&path).unwrap(), bytes, "{name}: {case}");
            }
        }
    }
    assert_eq!(wanted.checkpoint.size, 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_altered_file_is_found_whether_the_log_was_closed_or_killed() {
    let bench = Bench::new();
    let log = bench.open();
    bench.fill(&log, 3).await;
    published(&log).await;
    let dead = killed(bench.path());
    drop(log);
    for dir in [bench.path(), dead.path()] {
        assert_eq!(bench.refusal(dir, None), None);
        let names = ["checkpoint", "tile/0/000.p/3", "tile/entries/000.p/3"];
        for name in names {
            let whole = fs::read(dir.join(name)).unwrap();
            for place in (0..whole.len()).step_by(5) {
                let altered = killed(dir);
                let mut bytes = whole.clone();
                bytes[place] = bent(bytes[place]);
                fs::write(altered.path().join(name), bytes).unwrap();
                assert_eq!(
                    bench.refusal(altered.path(), None),
                    Some("LOG_CORRUPT"),
                    "{name}, byte {place}"
                );
            }
        }
    }
    for name in ["checkpoint", "tile/entries/000.p/3", "vkey"] {
        let altered = killed(bench.path());
        fs::remove_dir_all(altered.path().join("journal")).unwrap();
        fs::remove_file(altered.path().join(name)).unwrap();
        assert_eq!(
            bench.refusal(altered.path(), None),
            Some("LOG_CORRUPT"),
            "{name} removed"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bent_journal_is_no_torn_one() {
    let bench = Bench::new();
    let log = bench.open();
    bench.fill(&log, 3).await;
    published(&log).await;
    let whole = fs::read(journal_of(bench.path())).unwrap();
    for place in (0..whole.len()).step_by(11) {
        let altered = killed(bench.path());
        let mut bytes = whole.clone();
        bytes[place] = bent(bytes[place]);
        fs::write(journal_of(altered.path()), bytes).unwrap();
        let found = bench.refusal(altered.path(), None);
        // Bent in its first record, the journal is as if it were not there: then the tiles speak for themselves.
        assert!(
            found == Some("LOG_CORRUPT") || bench.open_at(altered.path()).checkpoint() == log.checkpoint(),
            "byte {place}: {found:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_not_the_remembered_one_does_not_open() {
    let bench = Bench::new();
    let log = bench.open();
    bench.fill(&log, 2).await;
    log.close();
    let older = killed(bench.path());
    drop(log);
    let log = bench.open();
    bench.fill(&log, 3).await;
    let floor = log.checkpoint().checkpoint.clone();
    drop(log);

    let second = tempfile::tempdir().unwrap();
    let other_tree = bench.open_at(second.path());
    bench.fill(&other_tree, 8).await;
    drop(other_tree);
    let nothing = tempfile::tempdir().unwrap();
    let foreign = Checkpoint {
        origin: "log.example".into(),
        ..floor.clone()
    };
    for (case, dir, floor, wanted) in [
        ("itself", bench.path(), &floor, None),
        ("an older copy", older.path(), &floor, Some("LOG_ROLLED_BACK")),
        (
            "a second tree by the same key",
            second.path(),
            &floor,
            Some("LOG_ROLLED_BACK"),
        ),
        (
            "an empty directory",
            nothing.path(),
            &floor,
            Some("LOG_ROLLED_BACK"),
        ),
        (
            "a remembered log of another origin",
            bench.path(),
            &foreign,
            Some("LOG_ORIGIN_CHANGED"),
        ),
    ] {
        assert_eq!(bench.refusal(dir, Some(floor)), wanted, "{case}");
    }

    let other_key = SigningKey::generate(Algorithm::Ed25519).unwrap();
    let ecdsa = SigningKey::generate(Algorithm::EcdsaP256).unwrap();
    for (case, origin, key, wanted) in [
        (
            "another origin",
            "log.example",
            bench.log_key(),
            "LOG_ORIGIN_CHANGED",
        ),
        ("another key", ORIGIN, other_key, "LOG_ORIGIN_CHANGED"),
        ("a key that cannot sign notes", ORIGIN, ecdsa, "LOG_KEY_UNUSABLE"),
        (
            "a name that cannot stand in a note",
            "log example",
            bench.log_key(),
            "LOG_KEY_UNUSABLE",
        ),
    ] {
        let config = EmbeddedConfig::new(bench.path(), origin);
        let refused = open::open(&config, &key, None).err().map(|error| error.reason());
        assert_eq!(refused, Some(wanted), "{case}");
    }
    let held = bench.open();
    assert_eq!(bench.refusal(bench.path(), None), Some("LOG_LOCKED"));
    drop(held);
    assert_eq!(bench.refusal(bench.path(), None), None);
}
