//! Logs with keys of our own, which therefore can lie about their history: what is an alarm, what is none, and how
//! long it lasts.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stella_attest::checkpoint::Checkpoint;
use stella_attest::evidence::LogEntry;
use stella_attest::fork::ForkProof;
use stella_attest::key::{Algorithm, SigningKey};
use stella_attest::merkle::{self, MemoryTree};
use stella_attest::note::NoteSignature;
use stella_attest::tile::{TILE_WIDTH, TileKind, TilePath, push_entry};
use stella_attest::trust::TrustedLog;
use stella_tlog::LogError;
use stella_tlog::rekor::tiles::TileReader;
use stella_tlog::rekor::v1::RekorV1;
use stella_tlog::rekor::{LogReader, OpenError, RekorConfig};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::door::{Asked, Deed, Door, answer};
use crate::given::{config, inner_reason, trusted};

/// What both logs call themselves; a Rekor v1 adds the number of its tree.
const ORIGIN: &str = "log.example.com";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Generation {
    V1,
    V2,
}

/// Who can sign anything in the name of a log.
struct Forger {
    generation: Generation,
    key: SigningKey,
}

/// What a log shows at one time.
#[derive(Clone)]
struct Shown {
    note: String,
    tree: MemoryTree,
    bodies: Vec<Vec<u8>>,
    /// Notes of the trees that it says it has replaced.
    replaced: Vec<String>,
}

impl Forger {
    fn new(generation: Generation) -> Self {
        let algorithm = match generation {
            Generation::V1 => Algorithm::EcdsaP256,
            Generation::V2 => Algorithm::Ed25519,
        };
        let key = SigningKey::generate(algorithm).expect("a key");
        Self { generation, key }
    }

    fn log(&self) -> TrustedLog {
        trusted(ORIGIN, &self.key.verifying_key().to_pem())
    }

    /// A tree of `size` entries, which is the beginning of every larger one called `name`.
    fn shows(&self, name: &str, size: u64) -> Shown {
        self.shows_tree(7, name, size)
    }

    /// The same in another of the trees of a Rekor v1.
    fn shows_tree(&self, number: u64, name: &str, size: u64) -> Shown {
        let (mut tree, mut bodies) = (MemoryTree::new(), Vec::new());
        for index in 0..size {
            let body =
                format!("{{\"apiVersion\":\"0.0.2\",\"kind\":\"hashedrekord\",\"spec\":\"{name} {index}\"}}");
            tree.push(merkle::leaf_hash(body.as_bytes()));
            bodies.push(body.into_bytes());
        }
        let origin = match self.generation {
            Generation::V1 => format!("{ORIGIN} - {number}"),
            Generation::V2 => ORIGIN.to_owned(),
        };
        let checkpoint = Checkpoint {
            origin,
            size,
            root: tree.root(),
            extensions: Vec::new(),
        };
        let text = checkpoint.to_text();
        let signature = NoteSignature {
            name: ORIGIN.to_owned(),
            id: *self.log().key.log_id.first_chunk().expect("32 bytes"),
            bytes: self.key.sign(text.as_bytes()).expect("signed"),
        };
        Shown {
            note: format!("{text}\n{signature}"),
            tree,
            bodies,
            replaced: Vec::new(),
        }
    }

    fn client(&self, url: &str, state: Option<&Path>) -> Client {
        self.open(config(url, self.log(), state)).expect("a client")
    }

    fn open(&self, config: RekorConfig) -> Result<Client, OpenError> {
        Ok(match self.generation {
            Generation::V1 => Client::V1(RekorV1::open(config)?),
            Generation::V2 => Client::V2(TileReader::open(config)?),
        })
    }
}

impl Shown {
    fn answer(&self, asked: &Asked) -> Vec<u8> {
        let path = asked.line.strip_prefix("GET /").expect("nothing is written");
        if path == "checkpoint" {
            return answer("200 OK", "", self.note.as_bytes());
        }
        if path == "api/v1/log" {
            let mut replaced = Vec::new();
            for note in &self.replaced {
                replaced.push(json!({"signedTreeHead": note}));
            }
            return json_answer(&json!({"inactiveShards": replaced, "signedTreeHead": self.note}));
        }
        if let Some(query) = path.strip_prefix("api/v1/log/proof?") {
            let number = |name: &str| -> u64 {
                let mut members = query.split('&').filter_map(|member| member.split_once('='));
                let (_, value) = members.find(|(found, _)| *found == name).expect(name);
                value.parse().expect("a number")
            };
            // A log that forks has nothing better to show than this.
            let (old, new) = (number("firstSize"), number("lastSize"));
            if new > self.tree.size() {
                return answer(
                    "400 Bad Request",
                    "",
                    b"{\"code\":400,\"message\":\"beyond the tree\"}",
                );
            }
            let proof = merkle::consistency_proof(&self.tree, old, new).expect("nodes of the tree");
            let hashes: Vec<String> = proof.iter().map(hex::encode).collect();
            return json_answer(&json!({"hashes": hashes}));
        }
        match path.parse().ok().and_then(|tile| self.tile(&tile)) {
            Some(bytes) => answer("200 OK", "", &bytes),
            None => answer("404 Not Found", "", b""),
        }
    }

    /// The tile, if the tree has it and no full one has taken its place.
    fn tile(&self, path: &TilePath) -> Option<Vec<u8>> {
        let first = usize::try_from(path.index).ok()? * usize::from(TILE_WIDTH);
        let (last, full) = (first + usize::from(path.width), first + usize::from(TILE_WIDTH));
        let width = match path.kind {
            TileKind::Hashes(level) => self.tree.level(level * 8).len(),
            TileKind::Entries => self.bodies.len(),
        };
        if last > width || (path.is_partial() && full <= width) {
            return None;
        }
        let mut bytes = Vec::new();
        match path.kind {
            TileKind::Hashes(level) => bytes = self.tree.level(level * 8)[first..last].concat(),
            TileKind::Entries => {
                for body in &self.bodies[first..last] {
                    push_entry(&mut bytes, body).expect("small");
                }
            }
        }
        Some(bytes)
    }
}

fn json_answer(document: &Value) -> Vec<u8> {
    answer("200 OK", "", document.to_string().as_bytes())
}

enum Client {
    V1(RekorV1),
    V2(TileReader),
}

impl Client {
    /// Looks at the log; the reason if that fails.
    async fn look(&self) -> Looked {
        match self {
            Self::V1(client) => client.look().await.map(|_| ()).map_err(|error| error.reason()),
            // What is beyond any tree makes it look.
            Self::V2(reader) => match reader.entry_by_index(1 << 40).await {
                Err(LogError::EntryNotFound) => Ok(()),
                outcome => outcome.map(|_| ()).map_err(|error| error.reason()),
            },
        }
    }

    /// The proof of the fork that was seen.
    fn fork(&self) -> Option<Arc<ForkProof>> {
        let forks = match self {
            Self::V1(client) => LogReader::forks(client),
            Self::V2(reader) => reader.forks(),
        };
        forks.expect("it is watched").borrow().clone()
    }
}

fn show(door: &Door, shown: Shown) {
    door.rule(move |asked| Deed::Say(shown.answer(asked)));
}

#[tokio::test]
async fn a_log_that_forks_or_shrinks_is_an_alarm_and_one_that_grows_is_none() {
    // The sizes of the two checkpoints of a fork that can be proven to others.
    let rows: [(&str, Steps, Looked, Option<Sizes>); 9] = [
        (
            "grows",
            &[("a", 3), ("a", 5), ("a", 5), ("a", 300), ("a", 600)],
            Ok(()),
            None,
        ),
        ("grows from nothing", &[("a", 0), ("a", 5)], Ok(()), None),
        (
            "two roots for a size",
            &[("a", 5), ("b", 5)],
            Err("LOG_FORK"),
            Some((5, 5)),
        ),
        (
            "two roots for a size seen before",
            &[("a", 3), ("a", 5), ("b", 3)],
            Err("LOG_FORK"),
            None,
        ),
        (
            "does not extend",
            &[("a", 3), ("b", 5)],
            Err("LOG_FORK"),
            Some((3, 5)),
        ),
        (
            "does not extend, by several tiles",
            &[("a", 300), ("b", 900)],
            Err("LOG_FORK"),
            Some((300, 900)),
        ),
        ("shrinks", &[("a", 5), ("a", 3)], Err("LOG_ROLLED_BACK"), None),
        (
            "shrinks to a size seen before",
            &[("a", 3), ("a", 5), ("a", 3)],
            Err("LOG_ROLLED_BACK"),
            None,
        ),
        ("is emptied", &[("a", 5), ("a", 0)], Err("LOG_ROLLED_BACK"), None),
    ];
    let mut running = JoinSet::new();
    for generation in [Generation::V1, Generation::V2] {
        for (case, steps, want, fork) in rows {
            running.spawn(assert_looks(generation, case, steps, want, fork));
        }
    }
    running.join_all().await;
}

/// What comes of a look; the reason if it failed.
type Looked = Result<(), &'static str>;

/// The sizes of two checkpoints.
type Sizes = (u64, u64);

/// What a log shows one after the other: trees by their names and sizes.
type Steps = &'static [(&'static str, u64)];

/// Each of `steps` but the last is believed, and the last as `want` says; `fork` are the sizes of what proves a fork.
async fn assert_looks(
    generation: Generation,
    case: &'static str,
    steps: Steps,
    want: Looked,
    fork: Option<Sizes>,
) {
    let forger = Forger::new(generation);
    let door = Door::alone(|_| Deed::Say(answer("404 Not Found", "", b""))).await;
    let state = tempfile::tempdir().expect("a directory");
    // One that keeps what it sees, one that does not, and one that is opened anew for every look.
    let (kept, forgetful) = (
        forger.client(&door.url, Some(state.path())),
        forger.client(&door.url, None),
    );
    let other_state = tempfile::tempdir().expect("a directory");
    let (last, before) = steps.split_last().expect("steps");
    for (name, size) in before {
        show(&door, forger.shows(name, *size));
        assert_eq!(kept.look().await, Ok(()), "{generation:?} {case}");
        assert_eq!(forgetful.look().await, Ok(()), "{generation:?} {case}");
        let anew = forger.client(&door.url, Some(other_state.path()));
        assert_eq!(anew.look().await, Ok(()), "{generation:?} {case}");
    }
    show(&door, forger.shows(last.0, last.1));
    let anew = forger.client(&door.url, Some(other_state.path()));
    let looked = tokio::join!(kept.look(), forgetful.look(), anew.look());
    // What is kept on disk is the newest checkpoint alone; to that one, this is a smaller tree.
    let wanted_anew = match case {
        "two roots for a size seen before" => Err("LOG_ROLLED_BACK"),
        _ => want,
    };
    assert_eq!(looked, (want, want, wanted_anew), "{generation:?} {case}");
    let reopened = forger.client(&door.url, Some(state.path()));
    for client in [&kept, &forgetful, &anew, &reopened] {
        let proven = client.fork().map(|proof| {
            let (first, second) = proof.verify(&forger.log().key).expect("it proves the fork");
            (first.size, second.size)
        });
        assert_eq!(proven, fork, "{generation:?} {case}");
    }
}

#[tokio::test]
async fn an_alarm_lasts_whatever_the_log_shows_then_until_its_file_is_removed() {
    for generation in [Generation::V1, Generation::V2] {
        let forger = Forger::new(generation);
        let door = Door::alone(|_| Deed::Say(answer("404 Not Found", "", b""))).await;
        let state = tempfile::tempdir().expect("a directory");
        let file = state
            .path()
            .join(format!("{}.json", hex::encode(forger.log().key.log_id)));
        let client = forger.client(&door.url, Some(state.path()));
        show(&door, forger.shows("a", 5));
        assert_eq!(client.look().await, Ok(()));
        let lie = forger.shows("b", 8);
        show(&door, lie.clone());
        assert_eq!(client.look().await, Err("LOG_FORK"));
        let told: Value = serde_json::from_slice(&std::fs::read(&file).expect("kept")).expect("JSON");
        assert_eq!(told["alarm"]["reason"], "LOG_FORK");
        assert_eq!(told["alarm"]["checkpoint"], lie.note, "the evidence is kept");

        show(&door, forger.shows("a", 8));
        let asked = door.asked();
        assert_eq!(client.look().await, Err("LOG_FORK"), "it behaves again");
        let reopened = forger.client(&door.url, Some(state.path()));
        assert_eq!(
            reopened.look().await,
            Err("LOG_FORK"),
            "the alarm outlives the client"
        );
        assert_eq!(door.asked(), asked, "a log that is not trusted is not even asked");

        assert!(client.fork().is_some() && reopened.fork().is_some());
        std::fs::remove_file(&file).expect("the operator looked");
        assert_eq!(client.look().await, Ok(()), "trusted anew");
        assert_eq!(client.fork(), None, "trusted anew");
    }
}

/// A liar that does not help to prove its lie must not get away with it because its caller has gone.
#[tokio::test]
async fn an_alarm_is_raised_before_the_log_is_asked_for_the_proof() {
    for generation in [Generation::V1, Generation::V2] {
        let forger = Forger::new(generation);
        let door = Door::alone(|_| Deed::Say(answer("404 Not Found", "", b""))).await;
        let client = forger.client(&door.url, None);
        for size in [3, 5] {
            show(&door, forger.shows("a", size));
            assert_eq!(client.look().await, Ok(()));
        }
        let lie = forger.shows("b", 3);
        door.rule(
            move |asked| match asked.line.contains("tile") || asked.line.contains("proof") {
                true => Deed::Say(answer("503 Service Unavailable", "", b"")),
                false => Deed::Say(lie.answer(asked)),
            },
        );
        let looked = timeout(Duration::from_millis(100), client.look()).await;
        assert!(
            looked.is_err(),
            "{generation:?} the proof is waited for: {looked:?}"
        );
        let asked = door.asked();
        assert_eq!(client.look().await, Err("LOG_FORK"), "{generation:?}");
        assert_eq!(door.asked(), asked, "{generation:?} it is not asked any more");
    }
}

#[tokio::test]
async fn a_checkpoint_that_strangers_blew_up_is_refused_by_name_and_is_no_alarm() {
    for generation in [Generation::V1, Generation::V2] {
        let forger = Forger::new(generation);
        let door = Door::alone(|_| Deed::Say(answer("404 Not Found", "", b""))).await;
        let state = tempfile::tempdir().expect("a directory");
        let client = forger.client(&door.url, Some(state.path()));
        let honest = forger.shows("a", 5);
        let mut blown_up = honest.clone();
        for number in 0..90 {
            let line = NoteSignature {
                name: format!("stranger-{number}"),
                id: [7; 4],
                bytes: vec![7; 800],
            };
            blown_up.note.push_str(&line.to_string());
        }
        show(&door, blown_up);
        let refused = match &client {
            Client::V1(client) => inner_reason(client.look().await),
            Client::V2(reader) => inner_reason(reader.entry_by_index(0).await),
        };
        assert_eq!(refused, "CHECKPOINT_TOO_LARGE", "{generation:?}");
        show(&door, honest);
        assert_eq!(client.look().await, Ok(()), "{generation:?}");
    }
}

#[tokio::test]
async fn an_old_copy_that_gives_way_in_time_is_no_alarm() {
    for generation in [Generation::V1, Generation::V2] {
        let forger = Forger::new(generation);
        let (old, new) = (forger.shows("a", 3), forger.shows("a", 5));
        let door = Door::alone(|_| Deed::Say(answer("404 Not Found", "", b""))).await;
        let client = forger.client(&door.url, None);
        show(&door, old.clone());
        assert_eq!(client.look().await, Ok(()));
        show(&door, new.clone());
        assert_eq!(client.look().await, Ok(()));
        let first = door.asked();
        door.rule(move |asked| match asked.number == first {
            true => Deed::Say(old.answer(asked)),
            false => Deed::Say(new.answer(asked)),
        });
        assert_eq!(client.look().await, Ok(()), "{generation:?}");
    }
}

#[tokio::test]
async fn a_rekor_v1_may_begin_a_new_tree_if_it_shows_the_old_one_whole() {
    for (case, replaced, want) in [
        ("as it was seen", Some(("a", 5)), Ok(())),
        ("grown since", Some(("a", 9)), Ok(())),
        ("not named", None, Err("LOG_FORK")),
        ("cut", Some(("a", 4)), Err("LOG_FORK")),
        ("another one", Some(("b", 5)), Err("LOG_FORK")),
        ("another one, grown", Some(("b", 9)), Err("LOG_FORK")),
    ] {
        let forger = Forger::new(Generation::V1);
        let door = Door::alone(|_| Deed::Say(answer("404 Not Found", "", b""))).await;
        let state = tempfile::tempdir().expect("a directory");
        show(&door, forger.shows("a", 5));
        let client = forger.client(&door.url, Some(state.path()));
        assert_eq!(client.look().await, Ok(()));
        let mut next = forger.shows_tree(8, "next", 2);
        let mut old = next.clone();
        if let Some((name, size)) = replaced {
            old = forger.shows(name, size);
            next.replaced.push(old.note.clone());
        }
        door.rule(move |asked| match asked.line.contains("treeID=7") {
            true => Deed::Say(old.answer(asked)),
            false => Deed::Say(next.answer(asked)),
        });
        assert_eq!(client.look().await, want, "{case}");
        let reopened = forger.client(&door.url, Some(state.path()));
        assert_eq!(reopened.look().await, want, "{case}, opened anew");
    }
}

#[tokio::test]
async fn a_consistency_proof_that_is_spoilt_once_is_asked_for_again_and_one_that_is_none_is_no_alarm() {
    let forger = Forger::new(Generation::V1);
    let door = Door::alone(|_| Deed::Say(answer("404 Not Found", "", b""))).await;
    let client = forger.client(&door.url, None);
    show(&door, forger.shows("a", 3));
    assert_eq!(client.look().await, Ok(()));
    let next = forger.shows("a", 5);
    for (case, said) in [
        ("no hashes", "{}"),
        ("null", "{\"hashes\":null}"),
        ("no hex", "{\"hashes\":[\"xy\"]}"),
        ("short", "{\"hashes\":[\"abab\"]}"),
    ] {
        let next = next.clone();
        door.rule(move |asked| match asked.line.contains("/proof?") {
            true => Deed::Say(answer("200 OK", "", said.as_bytes())),
            false => Deed::Say(next.answer(asked)),
        });
        let Client::V1(client) = &client else {
            unreachable!("opened above")
        };
        assert_eq!(inner_reason(client.look().await), "ANSWER_MALFORMED", "{case}");
    }
    let spoilt = door.asked() + 1;
    door.rule(move |asked| match asked.number == spoilt {
        true => {
            assert!(asked.line.contains("/proof?"), "{}", asked.line);
            Deed::Say(json_answer(&json!({"hashes": ["ab".repeat(32)]})))
        }
        false => Deed::Say(next.answer(asked)),
    });
    assert_eq!(client.look().await, Ok(()));
}

#[tokio::test]
async fn a_state_file_that_is_not_what_was_written_keeps_the_client_from_opening() {
    for generation in [Generation::V1, Generation::V2] {
        let (forger, other) = (Forger::new(generation), Forger::new(generation));
        let true_note = forger.shows("a", 5).note;
        let state = |notes: &[&str], alarm: Value| json!({"alarm": alarm, "checkpoints": notes}).to_string();
        let altered = true_note.replacen("\n5\n", "\n6\n", 1);
        let opens = [
            ("as written", state(&[&true_note], Value::Null)),
            ("of a log not looked at yet", state(&[], Value::Null)),
        ];
        for (case, text) in opens {
            let kept = tempfile::tempdir().expect("a directory");
            let file = kept
                .path()
                .join(format!("{}.json", hex::encode(forger.log().key.log_id)));
            std::fs::write(&file, text).expect("written");
            let opened = forger.open(config("http://127.0.0.1:1", forger.log(), Some(kept.path())));
            assert!(opened.is_ok(), "{case}");
        }
        for (case, text, want) in [
            ("empty", String::new(), "not valid JSON"),
            (
                "cut",
                state(&[&true_note], Value::Null)[..40].to_owned(),
                "not valid JSON",
            ),
            ("without checkpoints", "{}".to_owned(), "it has no checkpoints"),
            (
                "altered checkpoint",
                state(&[&altered], Value::Null),
                "CHECKPOINT_SIGNATURE",
            ),
            (
                "of another log",
                state(&[&other.shows("a", 5).note], Value::Null),
                "CHECKPOINT_SIGNATURE",
            ),
            ("no note", state(&["x"], Value::Null), "CHECKPOINT_MALFORMED"),
            (
                "fork of no form",
                state(
                    &[&true_note],
                    json!({"checkpoint": "", "detail": "", "fork": {"first": true_note}, "reason": "LOG_FORK"}),
                ),
                "its fork is malformed",
            ),
            (
                "alarm that is none",
                state(&[&true_note], json!("all is well")),
                "its alarm is of no known kind",
            ),
            (
                "alarm of no kind",
                state(&[&true_note], json!({"reason": "X"})),
                "its alarm is of no known kind",
            ),
            (
                "too many",
                state(&vec![&true_note[..]; 65], Value::Null),
                "it has too many checkpoints",
            ),
        ] {
            let kept = tempfile::tempdir().expect("a directory");
            let file = kept
                .path()
                .join(format!("{}.json", hex::encode(forger.log().key.log_id)));
            std::fs::write(&file, text).expect("written");
            let opened = forger.open(config("http://127.0.0.1:1", forger.log(), Some(kept.path())));
            let Err(OpenError::State { file: named, detail }) = opened else {
                panic!("{case}");
            };
            assert_eq!(named, file, "{case}");
            assert!(detail.contains(want), "{case}: {detail}");
        }
    }
}

/// A log in tiles with more entries than one tile holds.
fn tiled(size: u64) -> (Forger, Shown) {
    let forger = Forger::new(Generation::V2);
    let shown = forger.shows("a", size);
    (forger, shown)
}

fn reader(forger: &Forger, url: &str, budget: Duration) -> TileReader {
    let mut config = config(url, forger.log(), None);
    config.budget = budget;
    TileReader::open(config).expect("a reader")
}

fn body(read: Result<LogEntry, LogError>) -> String {
    String::from_utf8(read.expect("read").body).expect("JSON")
}

#[tokio::test]
async fn entries_on_both_sides_of_a_tile_are_read_and_tiles_that_gave_way_to_full_ones_too() {
    let (forger, shown) = tiled(300);
    let door = Door::alone(|_| Deed::Say(answer("404 Not Found", "", b""))).await;
    show(&door, shown);
    let reader = reader(&forger, &door.url, Duration::from_secs(20));
    for index in [0, 255, 256, 299] {
        let read = body(reader.entry_by_index(index).await);
        assert!(read.contains(&format!("\"a {index}\"")), "{read}");
    }
    let beyond = reader.entry_by_index(300).await.map_err(|error| error.reason());
    assert_eq!(beyond.map(|_| ()), Err("LOG_ENTRY_NOT_FOUND"));
    // The tiles of the old right edge are gone, the checkpoint that the reader knows is of the old size.
    show(&door, forger.shows("a", 600));
    let read = body(reader.entry_by_index(298).await);
    assert!(read.contains("\"a 298\""), "{read}");
    let read = body(reader.entry_by_index(599).await);
    assert!(read.contains("\"a 599\""), "{read}");
}

#[tokio::test]
async fn a_full_tile_that_was_altered_once_is_read_again_by_the_client_itself() {
    let (forger, shown) = tiled(300);
    let door = Door::alone(|_| Deed::Say(answer("404 Not Found", "", b""))).await;
    let first = std::sync::atomic::AtomicBool::new(true);
    door.rule(move |asked| {
        let mut said = shown.answer(asked);
        let is_full = asked.line == "GET /tile/0/000";
        if is_full && first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            let end = said.len() - 1;
            said[end] ^= 1;
        }
        Deed::Say(said)
    });
    let reader = reader(&forger, &door.url, Duration::from_secs(20));
    let read = body(reader.entry_by_index(7).await);
    assert!(read.contains("\"a 7\""), "{read}");
}

#[tokio::test]
async fn a_tile_that_stays_away_is_named_at_the_deadline() {
    let (forger, shown) = tiled(300);
    let door = Door::alone(|_| Deed::Say(answer("404 Not Found", "", b""))).await;
    door.rule(move |asked| match asked.line.contains("/tile/0/000") {
        true => Deed::Say(answer("404 Not Found", "", b"")),
        false => Deed::Say(shown.answer(asked)),
    });
    let reader = reader(&forger, &door.url, Duration::from_millis(400));
    let refused = inner_reason(reader.entry_by_index(7).await);
    assert_eq!(
        refused,
        "LOG_UNAVAILABLE: the log does not answer: there is no tile/0/000"
    );
}
