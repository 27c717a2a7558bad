//! Compares both pools, in both families, with a naive model: a list of all items that a pool can
//! allocate, which every operation scans from the start.

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use overlay_types::addr::Subnet;
use overlay_types::protocol::AddressRange;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::{Allocated, Layout, Pool, PoolError, SubnetPool, VtepPool};

fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

fn range(text: &str, prefix: u8) -> AddressRange {
    AddressRange { subnet: subnet(text), prefix }
}

/// The operations of a pool, with errors as words.
trait TestPool {
    type Item: Copy + Eq + Debug;

    fn peek(&self) -> Option<Allocated<Self::Item>>;
    fn allocate(&mut self) -> Option<Allocated<Self::Item>>;
    fn reserve(&mut self, item: Self::Item) -> Result<(), &'static str>;
    fn free(&mut self, item: Self::Item, now: u64) -> Result<(), &'static str>;
    /// Capacity, in use, available.
    fn counts(&self) -> [u128; 3];
}

/// Returns an error of a pool as words.
const fn words(error: &PoolError) -> &'static str {
    match error {
        PoolError::Foreign { .. } => "foreign",
        PoolError::InUse { .. } => "in use",
        PoolError::NotInUse { .. } => "not in use",
    }
}

impl<L: Layout<Item: Eq + Debug>> TestPool for Pool<L> {
    type Item = L::Item;

    fn peek(&self) -> Option<Allocated<L::Item>> {
        self.peek()
    }

    fn allocate(&mut self) -> Option<Allocated<L::Item>> {
        self.allocate()
    }

    fn reserve(&mut self, item: L::Item) -> Result<(), &'static str> {
        self.reserve(item).map_err(|error| words(&error))
    }

    fn free(&mut self, item: L::Item, now: u64) -> Result<(), &'static str> {
        self.free(item, now).map_err(|error| words(&error))
    }

    fn counts(&self) -> [u128; 3] {
        [self.capacity(), self.in_use(), self.available()]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    NeverUsed,
    InUse,
    /// The time, and the number of releases before.
    Freed(u64, usize),
}

/// The model.
struct Naive<T> {
    slots: Vec<(T, State)>,
    frees: usize,
}

impl<T: Copy + Eq + Debug> Naive<T> {
    fn of(items: impl IntoIterator<Item = T>) -> Self {
        Self { slots: items.into_iter().map(|item| (item, State::NeverUsed)).collect(), frees: 0 }
    }

    fn allocate(&mut self) -> Option<Allocated<T>> {
        let never_used = self.slots.iter().position(|(_, state)| *state == State::NeverUsed);
        let longest_freed = || {
            let freed =
                self.slots.iter().enumerate().filter_map(|(slot, (_, state))| match state {
                    State::Freed(at, order) => Some((*at, *order, slot)),
                    State::NeverUsed | State::InUse => None,
                });
            freed.min().map(|(_, _, slot)| slot)
        };
        let slot = never_used.or_else(longest_freed)?;
        let (item, state) = self.slots[slot];
        self.slots[slot].1 = State::InUse;
        let freed_at = match state {
            State::Freed(at, _) => Some(at),
            State::NeverUsed | State::InUse => None,
        };
        Some(Allocated { item, freed_at })
    }

    fn reserve(&mut self, item: T) -> Result<(), &'static str> {
        let (_, state) = self.slots.iter_mut().find(|slot| slot.0 == item).ok_or("foreign")?;
        if *state == State::InUse {
            return Err("in use");
        }
        *state = State::InUse;
        Ok(())
    }

    fn free(&mut self, item: T, now: u64) -> Result<(), &'static str> {
        let (_, state) = self.slots.iter_mut().find(|slot| slot.0 == item).ok_or("foreign")?;
        if *state != State::InUse {
            return Err("not in use");
        }
        *state = State::Freed(now, self.frees);
        self.frees += 1;
        Ok(())
    }

    fn counts(&self) -> [u128; 3] {
        let in_use = self.slots.iter().filter(|(_, state)| *state == State::InUse).count();
        [self.slots.len(), in_use, self.slots.len() - in_use].map(|count| count as u128)
    }
}

#[derive(Debug, Clone)]
enum Operation {
    /// Repetitions: the pools have hundreds of slots, and some sequences exhaust them.
    Allocate(usize),
    Reserve(Index),
    Free(Index, u64),
}

/// Returns sequences of operations. Times go forward and back, with several releases in one second.
fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let operation = prop_oneof![
        2 => (1..8_usize).prop_map(Operation::Allocate),
        1 => (100..300_usize).prop_map(Operation::Allocate),
        4 => any::<Index>().prop_map(Operation::Reserve),
        8 => (any::<Index>(), 0..8_u64).prop_map(|(item, now)| Operation::Free(item, now)),
    ];
    prop::collection::vec(operation, 1..80)
}

/// Runs the operations on the pool and on the model. `items` are all items that the pool can
/// allocate, in order. `foreign` items are not in the pool.
fn compare<P: TestPool>(
    mut pool: P,
    items: &[P::Item],
    foreign: &[P::Item],
    operations: Vec<Operation>,
) -> Result<(), TestCaseError> {
    let mut model = Naive::of(items.iter().copied());
    // Few of the items are foreign, so that most operations can succeed.
    let subjects: Vec<P::Item> = items.iter().chain(foreign).copied().collect();
    for operation in operations {
        match operation {
            Operation::Allocate(times) => {
                for _ in 0..times {
                    let (peeked, allocated) = (pool.peek(), pool.allocate());
                    prop_assert_eq!(peeked, allocated);
                    prop_assert_eq!(allocated, model.allocate());
                }
            }
            Operation::Reserve(which) => {
                let item = *which.get(&subjects);
                prop_assert_eq!(pool.reserve(item), model.reserve(item), "reserve {:?}", item);
            }
            Operation::Free(which, now) => {
                let item = *which.get(&subjects);
                prop_assert_eq!(pool.free(item, now), model.free(item, now), "free {:?}", item);
            }
        }
        prop_assert_eq!(pool.counts(), model.counts());
    }
    for item in foreign {
        prop_assert_eq!(pool.reserve(*item), Err("foreign"));
        prop_assert_eq!(pool.free(*item, 0), Err("foreign"));
    }
    Ok(())
}

/// Computes the subnets of a range by addition, not as the pool does.
fn subnets_by_adding(range: AddressRange) -> Vec<Subnet> {
    let mut subnets = Vec::new();
    let bits = range.subnet.family().bits();
    let step = 1_u128 << (bits - range.prefix);
    let mut address = range.subnet.first();
    while range.subnet.contains(address) {
        subnets.push(Subnet::containing(address, range.prefix).unwrap());
        address = match address {
            IpAddr::V4(ip) => {
                let next = u128::from(u32::from(ip)) + step;
                Ipv4Addr::from(u32::try_from(next).unwrap()).into()
            }
            IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) + step).into(),
        };
    }
    subnets
}

proptest! {
    #[test]
    fn subnet_pool_matches_model(
        range in select(vec![
            range("192.168.0.0/17", 24),
            range("10.0.252.0/22", 30),
            range("9.254.0.0/15", 25),
            range("172.16.0.0/16", 16),
            range("10.1.0.0/24", 31),
            range("fd01:b:0:fe00::/55", 64),
            range("fd01:b::/64", 73),
            range("fd01:b::ff00:0/104", 111),
            range("fd01:b::fffe:0/119", 127),
        ]),
        operations in operations(),
    ) {
        let whole = range.subnet;
        let shorter = Subnet::containing(whole.first(), range.prefix - 1).unwrap();
        let longer = Subnet::containing(whole.last(), range.prefix + 1).unwrap();
        let foreign = [
            shorter,
            longer,
            subnet("11.0.0.0/24"),
            subnet("fd02::/80"),
            Subnet::containing("203.0.113.0".parse().unwrap(), range.prefix.min(32)).unwrap(),
            Subnet::containing("2001:db8::".parse().unwrap(), range.prefix).unwrap(),
        ];
        compare(SubnetPool::new(range), &subnets_by_adding(range), &foreign, operations)?;
    }

    #[test]
    fn ipv4_vtep_pool_matches_model(
        text in select(vec!["44.128.0.0/22", "10.255.254.0/23", "192.0.2.0/30", "192.0.2.8/29"]),
        operations in operations(),
    ) {
        let whole = subnet(text);
        let (first, last) = match (whole.first(), whole.last()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => (u32::from(first), u32::from(last)),
            other => panic!("{other:?}"),
        };
        let hosts: Vec<Ipv4Addr> = (first + 1..last).map(Ipv4Addr::from).collect();
        let foreign = [first - 1, first, last, last + 1].map(Ipv4Addr::from);
        compare(VtepPool::new(whole), &hosts, &foreign, operations)?;
    }

    #[test]
    fn ipv6_vtep_pool_matches_model(
        text in select(vec!["fd01:a::/118", "fd01:a::fffe:fe00/119", "fd01:a::/127"]),
        operations in operations(),
    ) {
        let whole = subnet(text);
        let (first, last) = match (whole.first(), whole.last()) {
            (IpAddr::V6(first), IpAddr::V6(last)) => (u128::from(first), u128::from(last)),
            other => panic!("{other:?}"),
        };
        let hosts: Vec<Ipv6Addr> = (first + 1..=last).map(Ipv6Addr::from).collect();
        let foreign = [first - 1, first, last + 1].map(Ipv6Addr::from);
        compare(VtepPool::new(whole), &hosts, &foreign, operations)?;
    }
}

#[test]
fn first_addresses_match_recorded_traffic() {
    let first = |text: &str, prefix| SubnetPool::new(range(text, prefix)).peek().unwrap().item;
    assert_eq!(first("192.168.0.0/17", 24), subnet("192.168.0.0/24"));
    assert_eq!(first("fd01:b::/64", 80), subnet("fd01:b::/80"));
    let vtep = VtepPool::<Ipv4Addr>::new(subnet("44.128.0.0/16")).peek().unwrap();
    assert_eq!(vtep, Allocated { item: Ipv4Addr::new(44, 128, 0, 1), freed_at: None });
    let vtep = VtepPool::<Ipv6Addr>::new(subnet("fd01:a::/64")).peek().unwrap();
    assert_eq!(vtep.item.to_string(), "fd01:a::1");
}

#[test]
fn subnets_with_carry_are_all_allocated() {
    let mut pool = SubnetPool::new(range("fd01:b::/64", 80));
    let subnets: Vec<Subnet> =
        std::iter::from_fn(|| pool.allocate()).map(|allocated| allocated.item).collect();
    assert_eq!(subnets.len(), 65536);
    assert_eq!(subnets[256], subnet("fd01:b:0:0:100::/80"));
    assert_eq!(subnets[65535], subnet("fd01:b:0:0:ffff::/80"));
    assert!(subnets.is_sorted_by(|left, right| left < right));
}

#[test]
fn capacity_is_number_of_agents() {
    let subnets = |text: &str, prefix| SubnetPool::new(range(text, prefix)).capacity();
    assert_eq!(subnets("9.0.0.0/8", 24), 65536);
    assert_eq!(subnets("9.0.0.0/8", 7), 0);
    assert_eq!(subnets("9.0.0.0/8", 33), 0);
    assert_eq!(subnets("fd00::/8", 127), 1 << 119);
    assert_eq!(subnets("::/0", 128), u128::MAX);
    let vteps = |text: &str| VtepPool::<Ipv4Addr>::new(subnet(text)).capacity();
    assert_eq!(vteps("44.0.0.0/8"), (1 << 24) - 2);
    assert_eq!(vteps("44.0.0.0/30"), 2);
    assert_eq!(vteps("44.0.0.0/31"), 0);
    assert_eq!(vteps("44.0.0.0/32"), 0);
    assert_eq!(vteps("0.0.0.0/0"), (1 << 32) - 2);
    assert_eq!(vteps("fd01:a::/64"), 0, "IPv6 in a pool of IPv4");
    let vteps6 = |text: &str| VtepPool::<Ipv6Addr>::new(subnet(text)).capacity();
    assert_eq!(vteps6("fd01:a::/64"), (1 << 64) - 1);
    assert_eq!(vteps6("fd01:a::/128"), 0);
    assert_eq!(vteps6("::/0"), u128::MAX - 1);
}

#[test]
fn error_names_address_and_pool() {
    let mut pool = SubnetPool::new(range("192.168.0.0/17", 24));
    let mut refused = |text: &str| pool.reserve(subnet(text)).err().map(|e| e.to_string());
    assert_eq!(
        refused("192.168.128.0/24").as_deref(),
        Some("192.168.128.0/24 is none of the /24 subnets of 192.168.0.0/17")
    );
    assert_eq!(
        refused("192.168.0.0/25").as_deref(),
        Some("192.168.0.0/25 is none of the /24 subnets of 192.168.0.0/17")
    );
    assert_eq!(refused("192.168.1.0/24"), None);
    assert_eq!(
        refused("192.168.1.0/24").as_deref(),
        Some("192.168.1.0/24 of 192.168.0.0/17 is already in use")
    );
    assert_eq!(
        pool.free(subnet("192.168.2.0/24"), 0).unwrap_err().to_string(),
        "192.168.2.0/24 of 192.168.0.0/17 is not in use"
    );

    let mut vteps = VtepPool::new(subnet("44.128.0.0/16"));
    let broadcast = Ipv4Addr::new(44, 128, 255, 255);
    assert_eq!(
        vteps.reserve(broadcast).unwrap_err().to_string(),
        "44.128.255.255 is no host address of the VTEP subnet 44.128.0.0/16"
    );
    let address = Ipv4Addr::new(44, 128, 0, 1);
    assert_eq!(
        vteps.free(address, 0).unwrap_err().to_string(),
        "44.128.0.1 of the VTEP subnet 44.128.0.0/16 is not in use"
    );
    assert_eq!(vteps.reserve(address), Ok(()));
    assert_eq!(
        vteps.reserve(address).unwrap_err().to_string(),
        "44.128.0.1 of the VTEP subnet 44.128.0.0/16 is already in use"
    );
}

#[test]
fn reuse_is_early_until_cooldown_ends() {
    let reused = |freed_at, now| {
        Allocated { item: (), freed_at }.is_reused_early(now, Duration::from_secs(60))
    };
    assert!(!reused(None, 0));
    assert!(reused(Some(100), 159));
    assert!(!reused(Some(100), 160));
    assert!(reused(Some(100), 50), "the clock was set back");
}

#[test]
fn reserve_overlaps_blocks_overlapping_items() {
    let left = |reserved: &str| {
        let subnet = "10.0.0.0/22".parse().unwrap();
        let mut pool = SubnetPool::new(AddressRange { subnet, prefix: 24 });
        pool.reserve_overlaps(&reserved.parse().unwrap());
        let all = std::iter::from_fn(|| pool.allocate()).map(|one| one.item.to_string());
        all.collect::<Vec<_>>()
    };
    let all = ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24"];
    assert_eq!(left("10.0.1.0/24"), [all[0], all[2], all[3]]);
    assert_eq!(left("10.0.1.128/26"), [all[0], all[2], all[3]]);
    assert_eq!(left("10.0.2.0/23"), all[..2]);
    assert_eq!(left("10.0.0.0/8"), [""; 0]);
    assert_eq!(left("11.0.0.0/8"), all);
    assert_eq!(left("fd00::/8"), all);

    let mut vteps = VtepPool::<Ipv4Addr>::new("44.128.0.0/29".parse().unwrap());
    vteps.reserve_overlaps(&"44.128.0.0/31".parse().unwrap());
    vteps.reserve_overlaps(&"44.128.0.3/32".parse().unwrap());
    vteps.reserve_overlaps(&"44.128.0.7/32".parse().unwrap());
    let left: Vec<String> =
        std::iter::from_fn(|| vteps.allocate()).map(|one| one.item.to_string()).collect();
    assert_eq!(left, ["44.128.0.2", "44.128.0.4", "44.128.0.5", "44.128.0.6"]);
}
