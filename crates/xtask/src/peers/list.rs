//! Every peer, with its version, licence and users.

use super::Peer;
use super::recipe::Recipe::{Apt, Cargo, DocumentDb, FerretV1, Go, GoTogether, MongoJavaServer, Npm, Pip};

const RUN: &str = ".ci/run";
const SMOKE: &str = "crates/testkit/tests/peers.rs";
const INTEROP: &str = "crates/e2e/tests/e2e/interop.rs";
const README: &str = "crates/e2e/tests/e2e/readme.rs";
const CRASH: &str = "crates/e2e/tests/e2e/crash/signing.rs";

/// In the order in which they are brought: the quick ones first.
pub(super) const PEERS: &[Peer] = &[
    Peer {
        name: "curl",
        version: "distribution",
        licence: "curl",
        recipe: Apt {
            program: "curl",
            package: "curl",
        },
        used_by: &[README],
    },
    Peer {
        name: "jq",
        version: "distribution",
        licence: "MIT",
        recipe: Apt {
            program: "jq",
            package: "jq",
        },
        used_by: &[README],
    },
    Peer {
        name: "openssl",
        version: "distribution",
        licence: "Apache-2.0",
        recipe: Apt {
            program: "openssl",
            package: "openssl",
        },
        used_by: &[SMOKE],
    },
    Peer {
        name: "strace",
        version: "distribution",
        licence: "LGPL-2.1-or-later",
        recipe: Apt {
            program: "strace",
            package: "strace",
        },
        used_by: &[CRASH],
    },
    Peer {
        name: "buf",
        version: "1.75.0",
        licence: "Apache-2.0",
        recipe: Npm {
            package: "@bufbuild/buf",
            program: "@bufbuild/buf-linux-x64/bin/buf",
        },
        used_by: &[RUN, INTEROP, README],
    },
    Peer {
        name: "cyclonedx",
        version: "11.12.0",
        licence: "Apache-2.0",
        recipe: Pip {
            package: "cyclonedx-python-lib[validation]",
        },
        used_by: &[INTEROP],
    },
    Peer {
        name: "pymongo",
        version: "4.20.0",
        licence: "Apache-2.0",
        recipe: Pip { package: "pymongo" },
        used_by: &[SMOKE],
    },
    Peer {
        name: "mongo-java-server",
        version: "1.47.0",
        licence: "BSD-3-Clause",
        recipe: MongoJavaServer,
        used_by: &["crates/testkit/src/peers/java_mongo.rs"],
    },
    Peer {
        name: "documentdb",
        version: "forky",
        licence: "MIT",
        recipe: DocumentDb,
        used_by: &["crates/testkit/src/peers/ferret_v2.rs"],
    },
    Peer {
        name: "grpcurl",
        version: "1.9.3",
        licence: "MIT",
        recipe: Go {
            package: "github.com/fullstorydev/grpcurl/cmd/grpcurl",
        },
        used_by: &[INTEROP, README],
    },
    Peer {
        name: "ferretdb",
        version: "2.7.0",
        licence: "Apache-2.0",
        recipe: Go {
            package: "github.com/FerretDB/FerretDB/v2/cmd/ferretdb",
        },
        used_by: &["crates/testkit/src/peers/ferret_v2.rs"],
    },
    Peer {
        name: "ferretdb-v1",
        version: "1.24.2",
        licence: "Apache-2.0",
        recipe: FerretV1,
        used_by: &["crates/testkit/src/peers/ferret_v1.rs"],
    },
    Peer {
        name: "rekor-v2",
        version: "2.3.0",
        licence: "Apache-2.0",
        recipe: GoTogether {
            packages: &["github.com/sigstore/rekor-tiles/v2/cmd/rekor-server/posix"],
        },
        used_by: &["crates/testkit/src/peers/rekor_v2.rs"],
    },
    Peer {
        name: "cosign",
        version: "3.1.2",
        licence: "Apache-2.0",
        recipe: GoTogether {
            packages: &["github.com/sigstore/cosign/v3/cmd/cosign"],
        },
        used_by: &[INTEROP, README],
    },
    Peer {
        name: "cargo-deny",
        version: "0.20.2",
        licence: "MIT OR Apache-2.0",
        recipe: Cargo,
        used_by: &[RUN],
    },
];
