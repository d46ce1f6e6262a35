//! Every peer.

use super::Peer;
use super::recipe::Recipe::{
    Apt, Cargo, DocumentDb, FerretV1, Go, GoTogether, MongoJavaServer, Npm, Pip, TimestampServer,
};

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
        word: "\"curl\"",
    },
    Peer {
        name: "jq",
        version: "distribution",
        licence: "MIT",
        recipe: Apt {
            program: "jq",
            package: "jq",
        },
        word: "\"jq\"",
    },
    Peer {
        name: "openssl",
        version: "distribution",
        licence: "Apache-2.0",
        recipe: Apt {
            program: "openssl",
            package: "openssl",
        },
        word: "\"openssl\"",
    },
    Peer {
        name: "strace",
        version: "distribution",
        licence: "LGPL-2.1-or-later",
        recipe: Apt {
            program: "strace",
            package: "strace",
        },
        word: "\"strace\"",
    },
    Peer {
        name: "redis-server",
        version: "distribution",
        licence: "BSD-3-Clause",
        recipe: Apt {
            program: "redis-server",
            package: "redis-server",
        },
        word: "RekorV1",
    },
    Peer {
        name: "postgresql",
        version: "15",
        licence: "PostgreSQL",
        recipe: Apt {
            program: "/usr/lib/postgresql/15/bin/postgres",
            package: "postgresql-15",
        },
        word: "RekorV1",
    },
    Peer {
        name: "buf",
        version: "1.75.0",
        licence: "Apache-2.0",
        recipe: Npm {
            package: "@bufbuild/buf",
            program: "@bufbuild/buf-linux-x64/bin/buf",
        },
        word: "\"buf\"",
    },
    Peer {
        name: "cyclonedx",
        version: "11.12.0",
        licence: "Apache-2.0",
        recipe: Pip {
            package: "cyclonedx-python-lib[validation]",
        },
        word: "\"cyclonedx\"",
    },
    Peer {
        name: "pymongo",
        version: "4.20.0",
        licence: "Apache-2.0",
        recipe: Pip { package: "pymongo" },
        word: "\"pymongo\"",
    },
    Peer {
        name: "mongo-java-server",
        version: "1.47.0",
        licence: "BSD-3-Clause",
        recipe: MongoJavaServer,
        word: "JavaMongo",
    },
    Peer {
        name: "documentdb",
        version: "forky",
        licence: "MIT AND PostgreSQL",
        recipe: DocumentDb,
        word: "FerretV2",
    },
    Peer {
        name: "toxiproxy",
        version: "2.12.0",
        licence: "MIT",
        recipe: Go {
            package: "github.com/Shopify/toxiproxy/v2/cmd/server",
        },
        word: "Toxiproxy",
    },
    Peer {
        name: "grpcurl",
        version: "1.9.3",
        licence: "MIT",
        recipe: Go {
            package: "github.com/fullstorydev/grpcurl/cmd/grpcurl",
        },
        word: "\"grpcurl\"",
    },
    Peer {
        name: "ferretdb",
        version: "2.7.0",
        licence: "Apache-2.0",
        recipe: Go {
            package: "github.com/FerretDB/FerretDB/v2/cmd/ferretdb",
        },
        word: "FerretV2",
    },
    Peer {
        name: "ferretdb-v1",
        version: "1.24.2",
        licence: "Apache-2.0",
        recipe: FerretV1,
        word: "FerretV1",
    },
    Peer {
        name: "rekor-v2",
        version: "2.3.0",
        licence: "Apache-2.0",
        recipe: GoTogether {
            packages: &["github.com/sigstore/rekor-tiles/v2/cmd/rekor-server/posix"],
        },
        word: "RekorV2",
    },
    Peer {
        name: "tessera-fsck",
        version: "1.0.2",
        licence: "Apache-2.0",
        recipe: GoTogether {
            packages: &["github.com/transparency-dev/tessera/cmd/fsck"],
        },
        word: "\"tessera-fsck\"",
    },
    Peer {
        name: "timestamp-server",
        version: "2.1.3",
        licence: "Apache-2.0",
        recipe: TimestampServer,
        word: "Tsa",
    },
    Peer {
        name: "trillian",
        version: "1.7.3",
        licence: "Apache-2.0",
        recipe: GoTogether {
            packages: &[
                "github.com/google/trillian/cmd/trillian_log_server",
                "github.com/google/trillian/cmd/trillian_log_signer",
            ],
        },
        word: "RekorV1",
    },
    Peer {
        name: "rekor-v1",
        version: "1.5.4",
        licence: "Apache-2.0",
        recipe: GoTogether {
            packages: &[
                "github.com/sigstore/rekor/cmd/rekor-server",
                "github.com/sigstore/rekor/cmd/rekor-cli",
            ],
        },
        word: "RekorV1",
    },
    Peer {
        name: "cosign",
        version: "3.1.2",
        licence: "Apache-2.0",
        recipe: GoTogether {
            packages: &["github.com/sigstore/cosign/v3/cmd/cosign"],
        },
        word: "\"cosign\"",
    },
    Peer {
        name: "cargo-deny",
        version: "0.20.2",
        licence: "MIT OR Apache-2.0",
        recipe: Cargo,
        word: "\"cargo-deny\"",
    },
];
