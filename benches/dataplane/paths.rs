//! Compares the agent's overlay, with and without direct routing, with Docker Swarm's and with the
//! bare hosts: throughput, requests and connects, in alternating turns of one run.

use std::time::Duration;

use crate::measures::{Link, MEASURES, Measure};
use crate::pair::Pair;
use crate::swarm::{Swarm, missing_programs};
use crate::{median, pin_to_processor, verdict};

/// Number and duration of the turns of each path.
const TURNS: usize = 40;
const TURN: Duration = Duration::from_millis(150);
/// The least median of our rate relative to that of Swarm, in all measures.
const SWARM_LIMIT: f64 = 1.0;

/// The least medians of our rate with direct routing relative to that of Swarm, and to that of the
/// hosts, in all measures.
const DIRECT_LIMITS: [f64; 2] = [1.15, 0.8];

/// The MTU that the agent gives to containers over an underlay of 1500.
const CONTAINERS_MTU: u32 = 1420;

/// Measures all paths. Prints that Docker Swarm is skipped if its programs are not installed.
pub(crate) fn measure_paths() {
    println!("\nTCP between two hosts, {TURNS} turns of {TURN:?}, alternating; firewall on");
    let pair = Pair::new(CONTAINERS_MTU);
    pair.connect_by_agent();
    let direct = Pair::new(CONTAINERS_MTU);
    direct.connect_directly();
    let missing = missing_programs();
    let swarm = missing.is_empty().then(Swarm::start);
    pin_to_processor(0);
    let [host_one, host_two] = &pair.hosts;
    let [one, two] = &pair.containers;
    let [direct_one, direct_two] = &direct.containers;
    let mut links = vec![
        ("host to host", Link::open(host_one, host_two, [10, 0, 0, 2].into())),
        ("mesos-overlay", Link::open(one, two, [9, 0, 2, 2].into())),
        ("direct routing", Link::open(direct_one, direct_two, [9, 0, 2, 2].into())),
    ];
    match &swarm {
        Some(Swarm { containers: [one, two], address, .. }) => {
            links.push(("Docker Swarm", Link::open(one, two, *address)));
        }
        None => println!("  Docker Swarm: skipped, {} is missing", missing.join(", ")),
    }
    for measure in &MEASURES {
        report(measure, &mut links);
    }
}

/// Measures one quantity on all links in turns of random order, and prints the medians and ratios.
fn report(measure: &Measure, links: &mut [(&str, Link<'_>)]) {
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); links.len()];
    let mut order: Vec<usize> = (0..links.len()).collect();
    // The first turn warms up and does not count.
    for turn in 0..=TURNS {
        // The buffers of the previous link delay the next one.
        fastrand::shuffle(&mut order);
        for &index in &order {
            let rate = (measure.run)(&mut links[index].1, TURN);
            if turn > 0 {
                rates[index].push(rate);
            }
        }
    }
    println!("  {} ({})", measure.name, measure.unit);
    for ((name, _), rates) in links.iter().zip(&rates) {
        println!("    {name:<16} {:>10.2}", median(rates.clone()));
    }
    let ratio = |of: usize, to: usize| {
        let pairs = rates[of].iter().zip(&rates[to]);
        let mut ratios: Vec<f64> = pairs.map(|(of, to)| of / to).collect();
        ratios.sort_by(f64::total_cmp);
        let [low, middle, high] = [1, 2, 3].map(|part| ratios[part * ratios.len() / 4]);
        (middle, format!("{middle:.2} (quartiles {low:.2} and {high:.2})"))
    };
    println!("    mesos-overlay / host to host  {}", ratio(1, 0).1);
    let print_direct = |to: usize, limit: f64| {
        let (middle, text) = ratio(2, to);
        let (path, verdict) = (links[to].0, verdict(middle >= limit));
        println!("    direct routing / {path:<12} {text}, at least {limit}: {verdict}");
    };
    print_direct(0, DIRECT_LIMITS[1]);
    if rates.len() > 3 {
        let (middle, text) = ratio(1, 3);
        let verdict = verdict(middle >= SWARM_LIMIT);
        println!("    mesos-overlay / Docker Swarm  {text}, at least {SWARM_LIMIT}: {verdict}");
        print_direct(3, DIRECT_LIMITS[0]);
    }
}
