//! Counts arrivals and notices what must not happen: an operation twice, or one skipped. Pure.

use std::collections::BTreeMap;

/// How many operations of each agent arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    next: BTreeMap<u8, u32>,
    skipped_of: BTreeMap<u8, u32>,
    /// Arrived a second time, or after a later one of the same agent.
    pub duplicates: u32,
}

impl Ledger {
    /// Notes an arrival; numbers of one agent should come from 0 without gaps. False when it came before.
    pub fn note(&mut self, agent: u8, number: u32) -> bool {
        let next = self.next.entry(agent).or_default();
        if number < *next {
            self.duplicates += 1;
            return false;
        }
        *self.skipped_of.entry(agent).or_default() += number - *next;
        *next = number + 1;
        true
    }

    /// The number that an agent's next operation should have.
    pub fn next(&self, agent: u8) -> u32 {
        self.next.get(&agent).copied().unwrap_or(0)
    }

    /// How many of each agent arrived, each counted once.
    pub fn arrived(&self) -> BTreeMap<u8, u32> {
        let skipped = |agent| self.skipped_of.get(agent).copied().unwrap_or(0);
        self.next.iter().map(|(agent, next)| (*agent, next - skipped(agent))).collect()
    }

    /// How many were skipped.
    pub fn skipped(&self) -> u32 {
        self.skipped_of.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_and_a_repetition_are_noticed() {
        let mut ledger = Ledger::default();
        assert!(ledger.note(0, 0) && ledger.note(0, 1) && ledger.note(1, 0));
        assert!(!ledger.note(0, 1));
        assert!(ledger.note(0, 5));
        assert_eq!((ledger.duplicates, ledger.skipped(), ledger.next(0)), (1, 3, 6));
        assert_eq!(ledger.arrived(), BTreeMap::from([(0, 3), (1, 1)]));
    }
}
