//! What every log promises, and the clients of logs elsewhere: against real logs, against logs whose answers are lost,
//! cut, late or altered, and against servers that are none.

mod door;
mod given;
mod history;
mod hostile;
mod network;
mod suite;
mod tsa;
mod v1;
mod v2;
mod witnesses;
