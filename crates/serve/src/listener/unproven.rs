//! Counts the connections that have not proven who they are, by the address they come from.
//!
//! Anybody can open connections. Whoever does nothing else takes half of the places at most from one address, so that
//! others still come in.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// The unproven connections of a server.
pub(crate) struct Unproven {
    most: usize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// One unproven connection, until it is dropped.
pub(super) struct Newcomer {
    unproven: Arc<Unproven>,
    address: IpAddr,
}

impl Unproven {
    /// For a server with so many places.
    pub(crate) fn of(places: usize) -> Arc<Self> {
        Arc::new(Self {
            most: (places / 2).max(1),
            by_address: Mutex::default(),
        })
    }

    /// `None` if this address has too many already.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Newcomer> {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_address.entry(address).or_default();
        if *count == self.most {
            return None;
        }
        *count += 1;
        Some(Newcomer {
            unproven: self.clone(),
            address,
        })
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        let mut by_address = self
            .unproven
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}
