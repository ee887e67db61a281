//! What two peers say to each other about their documents, without any I/O.
//!
//! [`hello`] comes first. [`wire`] is the language: the frames of the control stream, the document streams and the catch-up streams.
//! [`tokens`] tells which documents two peers share without naming the others. [`delivery`] decides, for one peer and
//! one document, which operation to send next and on which stream. All of it is pure: the drivers in `documents/` own the
//! sockets, the store and the clock.

pub mod delivery;
pub mod hello;
pub mod tokens;
pub mod wire;
