//! The memory and the requests that each remote address holds, and its rates: one account each.
//!
//! An account outlives its connections until its rates are those of an idle peer, so that a peer
//! does not get a new allowance by connecting again. A share of every total is reserved for
//! addresses that hold little, so that a new address is served however much the others take.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Refusal;
use crate::limits::{BURST_SECONDS, Limit, Limits};

/// One part in so many of a total is reserved for addresses that hold little.
const SHARE_KEPT: usize = 4;
/// An address that holds at most this many bytes may use the reserved share. The messages of
/// agents are shorter; a master's table of peers may be longer.
const SMALL_HOLDING_MAX: usize = 16 * 1024;
/// A body of at most this length needs no reservation, so that a registration is accepted however
/// much the other addresses hold. The limit on connections bounds the memory of such bodies.
const UNRESERVED_BODY_MAX: usize = 2 * 1024;
/// Accounts from which on those that are no longer needed are removed.
const SWEEP_FROM: usize = 1024;
/// Most accounts. Addresses beyond them share one.
const ACCOUNTS_MAX: usize = 64 * 1024;

/// What an address can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resource {
    /// Bytes of bodies that arrive, or that wait to be processed.
    RequestBytes,
    /// Bytes of responses that are not sent.
    ResponseBytes,
    /// Requests that wait for an answer which takes long.
    Requests,
}

impl Resource {
    const COUNT: usize = Self::Requests as usize + 1;

    const fn limits(self) -> (Limit, Limit) {
        match self {
            Self::RequestBytes => (Limit::RequestBytes, Limit::RequestBytesPerAddress),
            Self::ResponseBytes => (Limit::ResponseBytes, Limit::ResponseBytesPerAddress),
            Self::Requests => (Limit::Requests, Limit::RequestsPerAddress),
        }
    }
}

/// The accounts of all addresses.
#[derive(Debug)]
pub(super) struct Addresses {
    limits: Limits,
    start: Instant,
    totals: [AtomicUsize; Resource::COUNT],
    messages: RateState,
    registrations: RateState,
    accounts: Mutex<Accounts>,
}

#[derive(Debug)]
struct Accounts {
    by_address: HashMap<IpAddr, Arc<Account>>,
    sweep_at: usize,
    /// For addresses beyond the most accounts.
    others: Arc<Account>,
}

/// What one address holds, and how fast it sends.
#[derive(Debug, Default)]
pub(super) struct Account {
    held: [AtomicUsize; Resource::COUNT],
    messages: RateState,
    registrations: RateState,
}

impl Addresses {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        let accounts =
            Accounts { by_address: HashMap::new(), sweep_at: SWEEP_FROM, others: Arc::default() };
        Arc::new(Self {
            limits,
            start: Instant::now(),
            totals: Default::default(),
            messages: RateState::default(),
            registrations: RateState::default(),
            accounts: Mutex::new(accounts),
        })
    }

    /// The account of the address of a peer.
    pub(super) fn account(&self, peer: IpAddr) -> Arc<Account> {
        let address = host_of(peer);
        let mut accounts = self.accounts.lock();
        if let Some(account) = accounts.by_address.get(&address) {
            return Arc::clone(account);
        }
        if accounts.by_address.len() >= accounts.sweep_at {
            let now = self.nanoseconds();
            accounts.by_address.retain(|_, account| !account.is_idle(now));
            let next = accounts.by_address.len() * 2;
            accounts.sweep_at = next.clamp(SWEEP_FROM, ACCOUNTS_MAX);
        }
        if accounts.by_address.len() >= ACCOUNTS_MAX {
            return Arc::clone(&accounts.others);
        }
        Arc::clone(accounts.by_address.entry(address).or_default())
    }

    /// Counts a message, and a registration if it is one.
    ///
    /// # Errors
    /// When its address, or all together, sent too many.
    pub(super) fn count_message(
        &self,
        account: &Account,
        is_registration: bool,
    ) -> Result<(), Refusal> {
        let now = self.nanoseconds();
        if is_registration {
            let limits = (Limit::RegistrationsPerSecond, Limit::RegistrationsPerSecondPerAddress);
            self.count(now, (&self.registrations, &account.registrations), limits)?;
        }
        let limits = (Limit::MessagesPerSecond, Limit::MessagesPerSecondPerAddress);
        self.count(now, (&self.messages, &account.messages), limits)
    }

    fn count(
        &self,
        now: u64,
        (all, own): (&RateState, &RateState),
        (total, per_address): (Limit, Limit),
    ) -> Result<(), Refusal> {
        let own_rate = Rate::of(self.limits.get(per_address));
        let own_advance = own.advance(now);
        if !own.take(own_rate, own_rate.burst, now) {
            return Err(Refusal::Limit(per_address));
        }
        // The more an address has sent recently, the less of the total it may use. So a part of the
        // total is left for addresses that were silent.
        let rate = Rate::of(self.limits.get(total));
        let kept = rate.burst / 2 / BURST_SECONDS * (own_advance / NANOSECONDS).min(BURST_SECONDS);
        if all.take(rate, rate.burst - kept, now) { Ok(()) } else { Err(Refusal::Limit(total)) }
    }

    /// Counts an HTTP request, of which only the address is limited: no flood of messages keeps an
    /// operator from the health.
    ///
    /// # Errors
    /// When its address sent too many.
    pub(super) fn count_request(&self, account: &Account) -> Result<(), Refusal> {
        let limit = Limit::MessagesPerSecondPerAddress;
        let rate = Rate::of(self.limits.get(limit));
        let is_within = account.messages.take(rate, rate.burst, self.nanoseconds());
        if is_within { Ok(()) } else { Err(Refusal::Limit(limit)) }
    }

    /// Lets an address hold `amount` of a resource until the reservation is dropped.
    ///
    /// # Errors
    /// When the address, or all together, would hold too much.
    pub(super) fn reserve(
        self: &Arc<Self>,
        account: &Arc<Account>,
        resource: Resource,
        amount: usize,
    ) -> Result<Reservation, Refusal> {
        let mut reservation = self.empty_reservation(account, resource);
        reservation.grow_to(amount).map(|()| reservation)
    }

    /// A reservation that holds nothing yet.
    pub(super) fn empty_reservation(
        self: &Arc<Self>,
        account: &Arc<Account>,
        resource: Resource,
    ) -> Reservation {
        let (addresses, account) = (Arc::clone(self), Arc::clone(account));
        Reservation { addresses, account, resource, amount: 0 }
    }

    fn nanoseconds(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Account {
    /// Whether nobody uses it, and a new one would allow the same.
    fn is_idle(self: &Arc<Self>, now: u64) -> bool {
        Arc::strong_count(self) == 1
            && self.messages.advance(now) == 0
            && self.registrations.advance(now) == 0
    }
}

/// What an address holds of a resource; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    addresses: Arc<Addresses>,
    account: Arc<Account>,
    resource: Resource,
    amount: usize,
}

impl Reservation {
    /// Holds `amount` from now on, if that is more than before.
    ///
    /// # Errors
    /// When the address, or all together, would hold too much. It then holds what it held.
    pub(super) fn grow_to(&mut self, amount: usize) -> Result<(), Refusal> {
        let is_free = self.resource == Resource::RequestBytes && amount <= UNRESERVED_BODY_MAX;
        let more = amount.saturating_sub(self.amount);
        if more == 0 || is_free {
            return Ok(());
        }
        let index = self.resource as usize;
        let (total, per_address) = self.resource.limits();
        let limits = &self.addresses.limits;
        let (own, all) = (&self.account.held[index], &self.addresses.totals[index]);
        let own_before = own.fetch_add(more, Ordering::Relaxed);
        let all_before = all.fetch_add(more, Ordering::Relaxed);
        // The first reservation of an address may exceed the limit per address, because a single
        // response may be as long as the limit on all responses.
        let is_first = own_before == 0;
        let most = limits.size(total);
        let is_small = match self.resource {
            Resource::Requests | Resource::ResponseBytes => is_first,
            Resource::RequestBytes => own_before + more <= SMALL_HOLDING_MAX,
        };
        let kept = if is_small { 0 } else { most / SHARE_KEPT };
        let refused = if !is_first && own_before + more > limits.size(per_address) {
            Some(per_address)
        } else if all_before + more > most - kept {
            Some(total)
        } else {
            None
        };
        if let Some(limit) = refused {
            own.fetch_sub(more, Ordering::Relaxed);
            all.fetch_sub(more, Ordering::Relaxed);
            return Err(Refusal::Limit(limit));
        }
        self.amount += more;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let index = self.resource as usize;
        self.account.held[index].fetch_sub(self.amount, Ordering::Relaxed);
        self.addresses.totals[index].fetch_sub(self.amount, Ordering::Relaxed);
    }
}

/// Nanoseconds of a second.
const NANOSECONDS: u64 = 1_000_000_000;

/// How fast something may happen, in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Rate {
    /// What one event takes.
    interval: u64,
    /// What may be taken in advance.
    burst: u64,
}

impl Rate {
    const fn of(per_second: u64) -> Self {
        Self {
            interval: NANOSECONDS / if per_second == 0 { 1 } else { per_second },
            burst: BURST_SECONDS * NANOSECONDS,
        }
    }
}

/// When the events so far are paid for, in nanoseconds since the start: the generic cell rate
/// algorithm (ITU-T I.371).
#[derive(Debug, Default)]
struct RateState(AtomicU64);

impl RateState {
    /// How much was taken in advance, in nanoseconds.
    fn advance(&self, now: u64) -> u64 {
        self.0.load(Ordering::Relaxed).saturating_sub(now)
    }

    /// Counts one event, unless that would take more than `burst` in advance.
    fn take(&self, rate: Rate, burst: u64, now: u64) -> bool {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_until| {
            let next = paid_until.max(now) + rate.interval;
            (next <= now + burst).then_some(next)
        });
        taken.is_ok()
    }
}

/// What counts as one address: of IPv6 the network of a host, which has as many addresses as it
/// likes (RFC 4291, 2.5.4).
fn host_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn addresses(limits: &[(Limit, u64)]) -> Arc<Addresses> {
        let set = |all: Limits, (limit, value): &(Limit, u64)| all.with(*limit, *value);
        Addresses::new(limits.iter().fold(Limits::of_master(), set))
    }

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn address_holds_at_most_its_share_and_gives_it_back() {
        let all = addresses(&[(Limit::RequestsPerAddress, 3), (Limit::Requests, 8)]);
        let account = all.account(peer(1));
        let reserve = || all.reserve(&account, Resource::Requests, 1);
        let held: Vec<_> = (0..3).map(|_| reserve().unwrap()).collect();
        assert_eq!(reserve().unwrap_err(), Refusal::Limit(Limit::RequestsPerAddress));
        drop(held);
        assert!(reserve().is_ok());
    }

    #[test]
    fn new_address_finds_the_kept_share_of_a_total() {
        let all = addresses(&[(Limit::RequestsPerAddress, 8), (Limit::Requests, 8)]);
        let greedy = all.account(peer(1));
        let reserve = |account| all.reserve(account, Resource::Requests, 1);
        let _held: Vec<_> = (0..6).map(|_| reserve(&greedy).unwrap()).collect();
        assert_eq!(reserve(&greedy).unwrap_err(), Refusal::Limit(Limit::Requests));
        let (second, third) = (all.account(peer(2)), all.account(peer(3)));
        let _two = [reserve(&second).unwrap(), reserve(&third).unwrap()];
        assert_eq!(reserve(&all.account(peer(4))).unwrap_err(), Refusal::Limit(Limit::Requests));
    }

    #[test]
    fn first_reservation_may_exceed_the_share_of_an_address() {
        let limits = [(Limit::ResponseBytesPerAddress, 100), (Limit::ResponseBytes, 1000)];
        let all = addresses(&limits);
        let account = all.account(peer(1));
        let large = all.reserve(&account, Resource::ResponseBytes, 500).unwrap();
        let more = all.reserve(&account, Resource::ResponseBytes, 1);
        assert_eq!(more.unwrap_err(), Refusal::Limit(Limit::ResponseBytesPerAddress));
        drop(large);
        let too_large = all.reserve(&account, Resource::ResponseBytes, 1001);
        assert_eq!(too_large.unwrap_err(), Refusal::Limit(Limit::ResponseBytes));
    }

    #[test]
    fn small_bodies_find_room_when_many_addresses_hold_one_body_each() {
        let all = addresses(&[(Limit::RequestBytes, 4 * 1024 * 1024)]);
        let reserve =
            |last, amount| all.reserve(&all.account(peer(last)), Resource::RequestBytes, amount);
        let mut held = Vec::new();
        for (last, amount) in (1..200).zip([1024 * 1024, 100_000, 20_000].into_iter().cycle()) {
            held.extend(reserve(last, amount));
        }
        assert_eq!(reserve(201, 20_000).unwrap_err(), Refusal::Limit(Limit::RequestBytes));
        assert!(reserve(202, 10_000).is_ok(), "what an agent reports");
        for last in 0..=255 {
            held.extend(reserve(last, SMALL_HOLDING_MAX));
        }
        assert!(reserve(203, UNRESERVED_BODY_MAX).is_ok(), "a registration");
    }

    #[tokio::test(start_paused = true)]
    async fn address_sends_a_burst_and_then_at_its_rate() {
        let all = addresses(&[(Limit::MessagesPerSecondPerAddress, 2)]);
        let account = all.account(peer(1));
        let burst = (0..100).filter(|_| all.count_message(&account, false).is_ok()).count();
        assert_eq!(burst, 20);
        tokio::time::advance(Duration::from_secs(3)).await;
        let later = (0..100).filter(|_| all.count_message(&account, false).is_ok()).count();
        assert_eq!(later, 6);
        let refused = all.count_message(&account, false).unwrap_err();
        assert_eq!(refused, Refusal::Limit(Limit::MessagesPerSecondPerAddress));
        // The account is the same one after the address has connected again.
        drop(account);
        assert!(all.count_message(&all.account(peer(1)), false).is_err());
        assert!(all.count_message(&all.account(peer(2)), false).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_address_registers_while_others_use_up_the_total() {
        let limits =
            [(Limit::RegistrationsPerSecond, 10), (Limit::RegistrationsPerSecondPerAddress, 10)];
        let all = addresses(&limits);
        let greedy = all.account(peer(1));
        let taken = (0..200).filter(|_| all.count_message(&greedy, true).is_ok()).count();
        // At its own limit it finds half of the total.
        assert!((50..75).contains(&taken), "{taken}");
        assert!(all.count_message(&all.account(peer(2)), true).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn accounts_of_idle_addresses_are_removed() {
        let all = addresses(&[]);
        for number in 0..4096_u32 {
            let account = all.account(IpAddr::from(number.to_be_bytes()));
            all.count_message(&account, false).unwrap();
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        assert!(all.accounts.lock().by_address.len() <= SWEEP_FROM);
    }

    #[test]
    fn ipv6_addresses_of_one_network_share_an_account() {
        let all = addresses(&[]);
        let account = |text: &str| all.account(text.parse().unwrap());
        assert!(Arc::ptr_eq(&account("fd00::1"), &account("fd00::2")));
        assert!(Arc::ptr_eq(&account("::ffff:10.0.0.1"), &account("10.0.0.1")));
        assert!(!Arc::ptr_eq(&account("fd00::1"), &account("fd00:0:0:1::1")));
    }
}
