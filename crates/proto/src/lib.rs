//! The contracts of `proto/`, generated, and the way between wire and domain.
//!
//! `bytes` fields are `bytes::Bytes`, so that a document is not copied on its way in.

pub mod status;

/// Descriptors of every contract, for reflection and for the compatibility test.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));

/// `stella.types`, by version.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod types {
    pub mod v1 {
        tonic::include_proto!("stella.types.v1");
    }
}
/// `stella.signer`, by version.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod signer {
    pub mod v1 {
        tonic::include_proto!("stella.signer.v1");
    }
}
/// `stella.verifier`, by version.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod verifier {
    pub mod v1 {
        tonic::include_proto!("stella.verifier.v1");
    }
}
/// `stella.feedser`, by version.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod feedser {
    pub mod v1 {
        tonic::include_proto!("stella.feedser.v1");
    }
}
/// `stella.backfill`, by version.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod backfill {
    pub mod v1 {
        tonic::include_proto!("stella.backfill.v1");
    }
}
