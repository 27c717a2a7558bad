//! Accounts of remote addresses: the memory and requests that each address holds, and its rates.
//!
//! An account exists until its connections are closed and its rates are those of an idle peer. A
//! peer therefore cannot reset its rates by connecting again. A part of every total is reserved for
//! addresses that hold little, so that a new address is served while other addresses are at their
//! limits. The clients of the Unix socket have an account of their own, to which the totals do not
//! apply: only the owner of this process can use the socket, also while all other clients are
//! refused.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Rejection;
use crate::limits::{BURST_SECONDS, Limit, Limits};

/// The reserved part of a total is one divided by this number.
const RESERVED_DIVISOR: usize = 4;
/// An address that holds at most this many bytes may use the reserved part. Most messages are
/// shorter.
const SMALL_HOLDING_MAX: usize = 16 * 1024;
/// A body of at most this length needs no reservation. A short registration is therefore accepted
/// even if other addresses hold all the memory. The limit on connections bounds the memory of such
/// bodies.
const UNRESERVED_BODY_MAX: usize = 2 * 1024;
/// Number of accounts at which idle accounts are removed for the first time.
const SWEEP_FROM: usize = 1024;
/// Maximum number of accounts. Further addresses share one account.
const ACCOUNTS_MAX: usize = 64 * 1024;
/// Failed logins of one address per second. A burst of [`BURST_SECONDS`] is allowed, for a script
/// with an outdated secret.
const FAILED_LOGINS_PER_SECOND: u64 = 1;

/// A limited resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Bytes of request bodies that are received or wait for processing.
    RequestBytes,
    /// Bytes of responses that are not sent yet.
    ResponseBytes,
    /// Expensive requests that wait for a response.
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
pub struct Addresses {
    limits: Limits,
    start: Instant,
    totals: [AtomicUsize; Resource::COUNT],
    messages: RateState,
    registrations: RateState,
    accounts: Mutex<Accounts>,
    /// Account of the clients of the Unix socket.
    unix: Arc<Account>,
}

#[derive(Debug)]
struct Accounts {
    by_address: HashMap<IpAddr, Arc<Account>>,
    sweep_at: usize,
    /// Account of all addresses beyond the maximum number of accounts.
    shared: Arc<Account>,
}

/// The held resources and the rates of one address.
#[derive(Debug, Default)]
pub struct Account {
    held: [AtomicUsize; Resource::COUNT],
    messages: RateState,
    registrations: RateState,
    failed_logins: RateState,
    /// Whether the totals do not apply to the account.
    is_exempt: bool,
}

impl Addresses {
    /// Creates an empty set of accounts with the given limits.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Self> {
        let accounts =
            Accounts { by_address: HashMap::new(), sweep_at: SWEEP_FROM, shared: Arc::default() };
        Arc::new(Self {
            limits,
            start: Instant::now(),
            totals: Default::default(),
            messages: RateState::default(),
            registrations: RateState::default(),
            accounts: Mutex::new(accounts),
            unix: Arc::new(Account { is_exempt: true, ..Account::default() }),
        })
    }

    /// Returns the account of the clients of the Unix socket.
    pub fn unix_account(&self) -> Arc<Account> {
        Arc::clone(&self.unix)
    }

    /// Returns the account of the address of a peer.
    pub fn account(&self, peer: IpAddr) -> Arc<Account> {
        let address = account_address(peer);
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
            return Arc::clone(&accounts.shared);
        }
        Arc::clone(accounts.by_address.entry(address).or_default())
    }

    /// Counts a message against the rate limits.
    ///
    /// # Errors
    /// If the address or all addresses exceed a rate limit.
    pub fn count_message(&self, account: &Account, is_registration: bool) -> Result<(), Rejection> {
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
    ) -> Result<(), Rejection> {
        let own_rate = Rate::of(self.limits.get(per_address));
        let own_advance = own.advance(now);
        if !own.take(own_rate, own_rate.burst, now) {
            return Err(Rejection::Limit(per_address));
        }
        // The more an address has sent recently, the less of the total it may use. A part of the
        // total remains for addresses that were idle.
        let rate = Rate::of(self.limits.get(total));
        let used_seconds = (own_advance / NANOSECONDS).min(BURST_SECONDS);
        let reserved = rate.burst / 2 / BURST_SECONDS * used_seconds;
        if all.take(rate, rate.burst - reserved, now) {
            Ok(())
        } else {
            Err(Rejection::Limit(total))
        }
    }

    /// Counts an HTTP request against the rate limit of its address. The total limit does not
    /// apply, so a flood of messages from other addresses does not block monitoring.
    ///
    /// # Errors
    /// If the address exceeds its rate limit.
    pub fn count_request(&self, account: &Account) -> Result<(), Rejection> {
        let limit = Limit::MessagesPerSecondPerAddress;
        let rate = Rate::of(self.limits.get(limit));
        let is_within = account.messages.take(rate, rate.burst, self.nanoseconds());
        if is_within { Ok(()) } else { Err(Rejection::Limit(limit)) }
    }

    /// Checks that not too many logins of the address have failed recently. Otherwise an attacker
    /// could try secrets at the rate of requests.
    ///
    /// # Errors
    /// If too many have failed.
    pub fn check_logins(&self, account: &Account) -> Result<(), Rejection> {
        let rate = Rate::of(FAILED_LOGINS_PER_SECOND);
        let is_within = account.failed_logins.has(rate, self.nanoseconds());
        if is_within { Ok(()) } else { Err(Rejection::FailedLogins) }
    }

    /// Counts a failed login of the address.
    pub fn count_failed_login(&self, account: &Account) {
        let rate = Rate::of(FAILED_LOGINS_PER_SECOND);
        account.failed_logins.take(rate, rate.burst, self.nanoseconds());
    }

    /// Reserves `amount` of a resource until the reservation is dropped.
    ///
    /// # Errors
    /// If the address or all addresses would exceed a limit.
    pub fn reserve(
        self: &Arc<Self>,
        account: &Arc<Account>,
        resource: Resource,
        amount: usize,
    ) -> Result<Reservation, Rejection> {
        let mut reservation = self.empty_reservation(account, resource);
        reservation.grow_to(amount).map(|()| reservation)
    }

    /// Creates a reservation of size 0.
    pub fn empty_reservation(
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
    /// Whether the account is unused and equivalent to a new account.
    fn is_idle(self: &Arc<Self>, now: u64) -> bool {
        Arc::strong_count(self) == 1
            && self.messages.advance(now) == 0
            && self.registrations.advance(now) == 0
            && self.failed_logins.advance(now) == 0
    }
}

/// A reserved amount of a resource. Dropping the reservation releases the amount.
#[derive(Debug)]
pub struct Reservation {
    addresses: Arc<Addresses>,
    account: Arc<Account>,
    resource: Resource,
    amount: usize,
}

impl Reservation {
    /// Grows the reservation to `amount`. A larger reservation is unchanged.
    ///
    /// # Errors
    /// If the address or all addresses would exceed a limit. The reservation is then unchanged.
    pub fn grow_to(&mut self, amount: usize) -> Result<(), Rejection> {
        let needs_no_reservation =
            self.resource == Resource::RequestBytes && amount <= UNRESERVED_BODY_MAX;
        let more = amount.saturating_sub(self.amount);
        if more == 0 || needs_no_reservation {
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
        let reserved = if is_small { 0 } else { most / RESERVED_DIVISOR };
        let used = if self.account.is_exempt { own_before } else { all_before };
        let exceeded = if !is_first && own_before + more > limits.size(per_address) {
            Some(per_address)
        } else if used + more > most - reserved {
            Some(total)
        } else {
            None
        };
        if let Some(limit) = exceeded {
            own.fetch_sub(more, Ordering::Relaxed);
            all.fetch_sub(more, Ordering::Relaxed);
            return Err(Rejection::Limit(limit));
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

/// A rate limit, in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Rate {
    /// Time between two events.
    interval: u64,
    /// Maximum time in advance.
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

/// The theoretical arrival time of the generic cell rate algorithm (ITU-T I.371), in nanoseconds
/// since the start.
#[derive(Debug, Default)]
struct RateState(AtomicU64);

impl RateState {
    /// Returns how far the sender is in advance of its rate, in nanoseconds.
    fn advance(&self, now: u64) -> u64 {
        self.0.load(Ordering::Relaxed).saturating_sub(now)
    }

    /// Whether another event is within the rate.
    fn has(&self, rate: Rate, now: u64) -> bool {
        self.advance(now) + rate.interval <= rate.burst
    }

    /// Counts an event. Returns false if the sender would be more than `burst` in advance.
    fn take(&self, rate: Rate, burst: u64, now: u64) -> bool {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |arrival| {
            let next = arrival.max(now) + rate.interval;
            (next <= now + burst).then_some(next)
        });
        taken.is_ok()
    }
}

/// Returns the address of the account of `peer`. An IPv6 host can use every address of its /64
/// (RFC 4291, 2.5.4), so all of them share one account.
fn account_address(peer: IpAddr) -> IpAddr {
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
        Addresses::new(limits.iter().fold(Limits::for_server(), set))
    }

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn reserve_at_address_limit_is_rejected_until_release() {
        let all = addresses(&[(Limit::RequestsPerAddress, 3), (Limit::Requests, 8)]);
        let account = all.account(peer(1));
        let reserve = || all.reserve(&account, Resource::Requests, 1);
        let held: Vec<_> = (0..3).map(|_| reserve().unwrap()).collect();
        assert_eq!(reserve().unwrap_err(), Rejection::Limit(Limit::RequestsPerAddress));
        drop(held);
        assert!(reserve().is_ok());
    }

    #[test]
    fn reserve_new_address_uses_reserved_part_of_total() {
        let all = addresses(&[(Limit::RequestsPerAddress, 8), (Limit::Requests, 8)]);
        let greedy = all.account(peer(1));
        let reserve = |account| all.reserve(account, Resource::Requests, 1);
        let _held: Vec<_> = (0..6).map(|_| reserve(&greedy).unwrap()).collect();
        assert_eq!(reserve(&greedy).unwrap_err(), Rejection::Limit(Limit::Requests));
        let (second, third) = (all.account(peer(2)), all.account(peer(3)));
        let _two = [reserve(&second).unwrap(), reserve(&third).unwrap()];
        assert_eq!(reserve(&all.account(peer(4))).unwrap_err(), Rejection::Limit(Limit::Requests));
    }

    #[test]
    fn reserve_first_amount_may_exceed_address_limit() {
        let limits = [(Limit::ResponseBytesPerAddress, 100), (Limit::ResponseBytes, 1000)];
        let all = addresses(&limits);
        let account = all.account(peer(1));
        let large = all.reserve(&account, Resource::ResponseBytes, 500).unwrap();
        let more = all.reserve(&account, Resource::ResponseBytes, 1);
        assert_eq!(more.unwrap_err(), Rejection::Limit(Limit::ResponseBytesPerAddress));
        drop(large);
        let too_large = all.reserve(&account, Resource::ResponseBytes, 1001);
        assert_eq!(too_large.unwrap_err(), Rejection::Limit(Limit::ResponseBytes));
    }

    #[test]
    fn reserve_small_body_succeeds_at_total_limit() {
        let all = addresses(&[(Limit::RequestBytes, 4 * 1024 * 1024)]);
        let reserve =
            |last, amount| all.reserve(&all.account(peer(last)), Resource::RequestBytes, amount);
        let mut held = Vec::new();
        for (last, amount) in (1..200).zip([1024 * 1024, 100_000, 20_000].into_iter().cycle()) {
            held.extend(reserve(last, amount));
        }
        assert_eq!(reserve(201, 20_000).unwrap_err(), Rejection::Limit(Limit::RequestBytes));
        assert!(reserve(202, 10_000).is_ok(), "a short message");
        for last in 0..=255 {
            held.extend(reserve(last, SMALL_HOLDING_MAX));
        }
        assert!(reserve(203, UNRESERVED_BODY_MAX).is_ok(), "a registration");
    }

    #[test]
    fn reserve_for_unix_socket_ignores_totals() {
        let all = addresses(&[(Limit::RequestsPerAddress, 2), (Limit::Requests, 4)]);
        let reserve = |account: &Arc<Account>| all.reserve(account, Resource::Requests, 1);
        let _held: Vec<_> =
            (1..=4).map(|last| reserve(&all.account(peer(last))).unwrap()).collect();
        assert_eq!(reserve(&all.account(peer(5))).unwrap_err(), Rejection::Limit(Limit::Requests));
        let unix = all.unix_account();
        let _own = [reserve(&unix).unwrap(), reserve(&unix).unwrap()];
        let limit = Rejection::Limit(Limit::RequestsPerAddress);
        assert_eq!(reserve(&unix).unwrap_err(), limit);
    }

    #[tokio::test(start_paused = true)]
    async fn failed_logins_beyond_burst_refuse_logins_of_address() {
        let all = addresses(&[]);
        let account = all.account(peer(1));
        for _ in 0..BURST_SECONDS {
            assert_eq!(all.check_logins(&account), Ok(()));
            all.count_failed_login(&account);
        }
        assert_eq!(all.check_logins(&account), Err(Rejection::FailedLogins));
        assert_eq!(all.check_logins(&all.account(peer(2))), Ok(()));
        // Refused logins do not prolong the time, and a new connection does not end it.
        drop(account);
        let account = all.account(peer(1));
        assert_eq!(all.check_logins(&account), Err(Rejection::FailedLogins));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(all.check_logins(&account), Ok(()));
        all.count_failed_login(&account);
        assert_eq!(all.check_logins(&account), Err(Rejection::FailedLogins));
    }

    #[tokio::test(start_paused = true)]
    async fn count_message_allows_burst_then_rate() {
        let all = addresses(&[(Limit::MessagesPerSecondPerAddress, 2)]);
        let account = all.account(peer(1));
        let burst = (0..100).filter(|_| all.count_message(&account, false).is_ok()).count();
        assert_eq!(burst, 20);
        tokio::time::advance(Duration::from_secs(3)).await;
        let later = (0..100).filter(|_| all.count_message(&account, false).is_ok()).count();
        assert_eq!(later, 6);
        let rejected = all.count_message(&account, false).unwrap_err();
        assert_eq!(rejected, Rejection::Limit(Limit::MessagesPerSecondPerAddress));
        // The account is the same one after the address has connected again.
        drop(account);
        assert!(all.count_message(&all.account(peer(1)), false).is_err());
        assert!(all.count_message(&all.account(peer(2)), false).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn count_message_idle_address_is_served_at_total_limit() {
        let limits =
            [(Limit::RegistrationsPerSecond, 10), (Limit::RegistrationsPerSecondPerAddress, 10)];
        let all = addresses(&limits);
        let greedy = all.account(peer(1));
        let taken = (0..200).filter(|_| all.count_message(&greedy, true).is_ok()).count();
        // At its own limit the address can use half of the total.
        assert!((50..75).contains(&taken), "{taken}");
        assert!(all.count_message(&all.account(peer(2)), true).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn account_of_idle_address_is_removed() {
        let all = addresses(&[]);
        for number in 0..4096_u32 {
            let account = all.account(IpAddr::from(number.to_be_bytes()));
            all.count_message(&account, false).unwrap();
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        assert!(all.accounts.lock().by_address.len() <= SWEEP_FROM);
    }

    #[test]
    fn account_is_shared_by_ipv6_network() {
        let all = addresses(&[]);
        let account = |text: &str| all.account(text.parse().unwrap());
        assert!(Arc::ptr_eq(&account("fd00::1"), &account("fd00::2")));
        assert!(Arc::ptr_eq(&account("::ffff:10.0.0.1"), &account("10.0.0.1")));
        assert!(!Arc::ptr_eq(&account("fd00::1"), &account("fd00:0:0:1::1")));
    }
}
