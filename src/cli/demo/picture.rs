//! A picture of the hosts for a terminal: how a packet gets from a container to another host.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::containers::Container;

/// Widest line.
const COLUMNS_MAX: usize = 100;
/// Columns for each container of a host: the longest name of a bridge.
const CELL: usize = 15;
/// Between two hosts.
const GAP: usize = 1;

/// A host with what is on it.
#[derive(Debug)]
pub(super) struct Host<'a> {
    pub(super) ip: Ipv4Addr,
    pub(super) uplink: &'a str,
    pub(super) vtep: String,
    pub(super) vtep_ip: String,
    pub(super) containers: Vec<&'a Container>,
}

/// As many of the hosts as there is room for, beside each other, on what connects them.
pub(super) fn draw(hosts: &[Host<'_>], master: SocketAddrV4, others: usize) -> Vec<String> {
    let cells = hosts.iter().map(|host| host.containers.len()).max().unwrap_or(0).max(1);
    let width = cells * CELL;
    let room = ((COLUMNS_MAX + GAP) / (width + 2 + GAP)).max(1);
    let shown = &hosts[..hosts.len().min(room)];
    let boxes: Vec<Vec<String>> = shown.iter().map(|host| draw_host(host, width)).collect();
    let height = boxes.first().map_or(0, Vec::len);
    let gap = " ".repeat(GAP);
    let line = |at: usize| {
        let parts: Vec<&str> = boxes.iter().map(|lines| lines[at].as_str()).collect();
        parts.join(&gap).trim_end().to_owned()
    };
    let mut lines: Vec<String> = (0..height).map(line).collect();
    let mut wire = vec!['═'; boxes.len() * (width + 2 + GAP) - GAP];
    for index in 0..boxes.len() {
        wire[index * (width + 2 + GAP) + 1 + centre(width)] = '╧';
    }
    lines.push(wire.into_iter().collect());
    lines.push(format!("underlay, with the master at {master}"));
    match others + hosts.len() - shown.len() {
        0 => {}
        1 => lines.push("and one more host like these".to_owned()),
        more => lines.push(format!("and {more} more hosts like these")),
    }
    lines
}

/// Where a single letter stands that is centred.
const fn centre(width: usize) -> usize {
    (width - 1) / 2
}

fn draw_host(host: &Host<'_>, width: usize) -> Vec<String> {
    let cells = |text: &dyn Fn(&Container) -> String| -> String {
        let cell = |container: &&Container| format!("{:^CELL$}", text(container));
        format!("{:^width$}", host.containers.iter().map(cell).collect::<String>())
    };
    let whole = |text: &str| format!("{text:^width$}");
    let inside = [
        cells(&|container| container.name.clone()),
        cells(&|container| container.address.to_string()),
        cells(&|_| "│".to_owned()),
        cells(&|container| container.bridge.clone()),
        cells(&|container| container.gateway.to_string()),
        join(host.containers.len(), width),
        whole(&host.vtep),
        whole(&host.vtep_ip),
        whole("│"),
        whole(&format!("{} {}", host.uplink, host.ip)),
    ];
    let title = format!(" host {} ", host.ip);
    let mut lines = vec![format!("┌{title:─<width$}┐")];
    lines.extend(inside.iter().map(|line| format!("│{line}│")));
    let bottom = |letter: char| {
        (0..width).map(|at| if at == centre(width) { letter } else { '─' }).collect::<String>()
    };
    lines.push(format!("└{}┘", bottom('┬')));
    lines.push(format!(" {} ", whole("│")));
    lines
}

/// From each of `count` cells to the middle of all.
fn join(count: usize, width: usize) -> String {
    if count < 2 {
        return format!("{:^width$}", "│");
    }
    let start = (width - count * CELL) / 2;
    let (first, last) = (start + centre(CELL), start + (count - 1) * CELL + centre(CELL));
    let letter = |at: usize| {
        let is_cell = at >= start && (at - start) % CELL == centre(CELL);
        match at {
            _ if at < first || at > last => ' ',
            _ if at == first => '└',
            _ if at == last => '┘',
            _ if at == centre(width) => {
                if is_cell {
                    '┼'
                } else {
                    '┬'
                }
            }
            _ if is_cell => '┴',
            _ => '─',
        }
    };
    (0..width).map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_joins_the_bridges_meets_them_all() {
        assert_eq!(join(1, 15), "       │       ");
        assert_eq!(join(2, 30), "       └──────┬───────┘       ");
        assert_eq!(join(3, 45), "       └──────────────┼──────────────┘       ");
        assert_eq!(join(4, 60), "       └──────────────┴──────┬───────┴──────────────┘       ");
    }

    #[test]
    fn a_host_without_containers_is_drawn_and_what_has_no_room_is_counted() {
        let host = |number| Host {
            ip: Ipv4Addr::new(10, 0, 0, number),
            uplink: "eth0",
            vtep: "vtep1024".to_owned(),
            vtep_ip: "44.128.0.1/16".to_owned(),
            containers: Vec::new(),
        };
        let hosts: Vec<Host<'_>> = (1..=7).map(host).collect();
        let master = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 254), 5050);
        let lines = draw(&hosts, master, 2);
        assert_eq!(lines.last().unwrap(), "and 4 more hosts like these");
        let widest = lines.iter().map(|line| line.chars().count()).max().unwrap();
        assert_eq!(widest, 5 * 17 + 4);
        assert!(lines[0].starts_with("┌ host 10.0.0.1 ┐ ┌ host 10.0.0.2"), "{}", lines[0]);
        assert!(lines.iter().any(|line| line.contains("│ eth0 10.0.0.5 │")), "{lines:?}");
        assert_eq!(draw(&hosts[..1], master, 0).len(), 15);
    }
}
