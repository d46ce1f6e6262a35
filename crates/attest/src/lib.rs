//! What Stella Provenance believes, and why: the pure domain.
//!
//! Bytes from outside are parsed by `json`, `dsse`, `statement`, `evidence`, `event`, `note` and `checkpoint`; a value
//! that exists is valid. `verify` holds evidence against `trust` and returns a `report` and, if all holds, a proof;
//! `receipt` seals a proof onto an event; `slice` carries both to where there is no network.
//!
//! There is no IO here, no async and no clock: time is an argument, randomness is only in making keys and signatures.

pub mod canonical;
pub mod checkpoint;
pub mod cosignature;
pub mod digest;
pub mod dsse;
pub mod entry;
pub mod event;
pub mod evidence;
pub mod follows;
pub mod fork;
pub mod hashedrekord;
pub mod history;
pub mod json;
pub mod key;
pub mod merkle;
pub mod note;
pub mod pattern;
pub mod policy;
pub mod receipt;
pub mod rekor_v1;
pub mod report;
pub mod slice;
pub mod statement;
pub mod tile;
pub mod timestamp;
pub mod trust;
pub mod tsa;
pub mod verify;
