//! Contracts only grow: nothing in the committed baseline may be removed, renumbered or retyped.
//!
//! `proto/baseline.binpb` is the image of what was released (`buf build -o proto/baseline.binpb --exclude-source-info`).

use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};

const BASELINE: &[u8] = include_bytes!("../../../proto/baseline.binpb");

/// Everything that a peer relies on, as `place -> what stands there`.
fn promises(set: &FileDescriptorSet) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for file in &set.file {
        let package = file.package();
        for message in &file.message_type {
            message_promises(package, message, &mut found);
        }
        for listed in &file.enum_type {
            enum_promises(package, listed, &mut found);
        }
        for service in &file.service {
            for method in &service.method {
                let place = format!("{package}.{}/{}", service.name(), method.name());
                let streams = (method.client_streaming(), method.server_streaming());
                let what = format!("{} -> {} {streams:?}", method.input_type(), method.output_type());
                found.insert(place, what);
            }
        }
    }
    found
}

fn message_promises(parent: &str, message: &DescriptorProto, found: &mut BTreeMap<String, String>) {
    let name = format!("{parent}.{}", message.name());
    for field in &message.field {
        let place = format!("{name}#{}", field.number());
        let what = format!(
            "{} {:?} {:?} {}",
            field.name(),
            field.r#type(),
            field.label(),
            field.type_name()
        );
        found.insert(place, what);
    }
    for nested in &message.nested_type {
        message_promises(&name, nested, found);
    }
    for listed in &message.enum_type {
        enum_promises(&name, listed, found);
    }
}

fn enum_promises(parent: &str, listed: &EnumDescriptorProto, found: &mut BTreeMap<String, String>) {
    for value in &listed.value {
        let place = format!("{parent}.{}={}", listed.name(), value.number());
        found.insert(place, value.name().to_owned());
    }
}

/// What `new` no longer keeps of `old`.
fn broken(old: &FileDescriptorSet, new: &FileDescriptorSet) -> Vec<String> {
    let new = promises(new);
    let kept = |place: &String, what: &String| new.get(place) == Some(what);
    promises(old)
        .into_iter()
        .filter(|(place, what)| !kept(place, what))
        .map(|(place, _)| place)
        .collect()
}

fn decoded(bytes: &[u8]) -> FileDescriptorSet {
    FileDescriptorSet::decode(bytes).expect("a descriptor set")
}

#[test]
fn nothing_of_the_baseline_is_removed_renumbered_or_retyped() {
    let current = decoded(stella_proto::DESCRIPTORS);
    assert_eq!(broken(&decoded(BASELINE), &current), Vec::<String>::new());
    assert!(promises(&current).len() > 100, "the contracts were read");
}

#[test]
fn an_incompatible_change_is_named_by_its_place() {
    let baseline = decoded(BASELINE);
    let signer = |set: &mut FileDescriptorSet, change: &dyn Fn(&mut prost_types::FileDescriptorProto)| {
        let file = set
            .file
            .iter_mut()
            .find(|file| file.package() == "stella.signer.v1");
        change(file.expect("the Signer's contract"));
    };
    type Change = fn(&mut prost_types::FileDescriptorProto);
    fn request(file: &mut prost_types::FileDescriptorProto) -> &mut DescriptorProto {
        let found = file
            .message_type
            .iter_mut()
            .find(|message| message.name() == "SignRequest");
        found.expect("SignRequest")
    }
    let rows: [(&str, Change, &[&str]); 5] = [
        (
            "removed field",
            |file| drop(request(file).field.remove(0)),
            &["stella.signer.v1.SignRequest#1"],
        ),
        (
            "renumbered field",
            |file| request(file).field[0].number = Some(99),
            &["stella.signer.v1.SignRequest#1"],
        ),
        (
            "retyped field",
            |file| request(file).field[0].set_type(prost_types::field_descriptor_proto::Type::Uint32),
            &["stella.signer.v1.SignRequest#1"],
        ),
        (
            "removed method",
            |file| drop(file.service[0].method.remove(0)),
            &["stella.signer.v1.SignerService/Sign"],
        ),
        (
            "renumbered value",
            |file| file.enum_type[0].value[1].number = Some(9),
            &["stella.signer.v1.Transparency=1"],
        ),
    ];
    for (case, change, want) in rows {
        let mut changed = baseline.clone();
        signer(&mut changed, &change);
        assert_eq!(broken(&baseline, &changed), want, "{case}");
    }
    let mut grown = baseline.clone();
    signer(&mut grown, &|file| {
        let mut more = request(file).field[0].clone();
        more.number = Some(99);
        request(file).field.push(more);
    });
    assert_eq!(
        broken(&baseline, &grown),
        Vec::<String>::new(),
        "an added field breaks nothing"
    );
}
