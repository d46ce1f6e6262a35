//! The clients of logs elsewhere, against real logs, against logs whose answers are lost, cut, late or altered, and
//! against servers that are none.

mod door;
mod given;
mod hostile;
mod network;
mod v1;
mod v2;
