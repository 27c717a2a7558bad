//! A diagram of the hosts for a terminal: the path of a packet from a container to another host.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::containers::Container;

/// Width of the widest line.
pub(super) const COLUMNS_MAX: usize = 80;
/// Width of each container of a host: the longest name of a bridge.
const CELL_WIDTH: usize = 15;
/// Columns between two hosts.
const GAP: usize = 1;

/// A host with its devices and containers.
#[derive(Debug)]
pub(super) struct Host<'a> {
    pub(super) ip: Ipv4Addr,
    pub(super) uplink: &'a str,
    pub(super) vtep: String,
    pub(super) vtep_ip: String,
    pub(super) containers: Vec<&'a Container>,
}

/// Draws the hosts that fit, side by side, above the underlay. `omitted` is the number of further
/// hosts, which the last line counts.
pub(super) fn draw(hosts: &[Host<'_>], master: SocketAddrV4, omitted: usize) -> Vec<String> {
    let cells = hosts.iter().map(|host| host.containers.len()).max().unwrap_or(0).max(1);
    let width = cells * CELL_WIDTH;
    let fitting = ((COLUMNS_MAX + GAP) / (width + 2 + GAP)).max(1);
    let shown = &hosts[..hosts.len().min(fitting)];
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
        wire[index * (width + 2 + GAP) + 1 + center_column(width)] = '╧';
    }
    lines.push(wire.into_iter().collect());
    lines.push(format!("underlay, with the master at {master}"));
    match omitted + hosts.len() - shown.len() {
        0 => {}
        1 => lines.push("and one more host like these".to_owned()),
        more => lines.push(format!("and {more} more hosts like these")),
    }
    lines
}

/// Returns the column of a single centered character.
const fn center_column(width: usize) -> usize {
    (width - 1) / 2
}

fn draw_host(host: &Host<'_>, width: usize) -> Vec<String> {
    let cells = |text: &dyn Fn(&Container) -> String| -> String {
        let cell = |container: &&Container| format!("{:^CELL_WIDTH$}", text(container));
        format!("{:^width$}", host.containers.iter().map(cell).collect::<String>())
    };
    let centered = |text: &str| format!("{text:^width$}");
    let inside = [
        cells(&|container| container.name.clone()),
        cells(&|container| container.address.to_string()),
        cells(&|_| "│".to_owned()),
        cells(&|container| container.bridge.clone()),
        cells(&|container| container.gateway.to_string()),
        connector(host.containers.len(), width),
        centered(&host.vtep),
        centered(&host.vtep_ip),
        centered("│"),
        centered(&format!("{} {}", host.uplink, host.ip)),
    ];
    let title = format!(" host {} ", host.ip);
    let mut lines = vec![format!("┌{title:─<width$}┐")];
    lines.extend(inside.iter().map(|line| format!("│{line}│")));
    let bottom = |letter: char| {
        (0..width)
            .map(|at| if at == center_column(width) { letter } else { '─' })
            .collect::<String>()
    };
    lines.push(format!("└{}┘", bottom('┬')));
    lines.push(format!(" {} ", centered("│")));
    lines
}

/// Draws the line that connects each of `count` cells to the center of the host.
fn connector(count: usize, width: usize) -> String {
    if count < 2 {
        return format!("{:^width$}", "│");
    }
    let start = (width - count * CELL_WIDTH) / 2;
    let (first, last) = (
        start + center_column(CELL_WIDTH),
        start + (count - 1) * CELL_WIDTH + center_column(CELL_WIDTH),
    );
    let letter = |at: usize| {
        let is_cell = at >= start && (at - start) % CELL_WIDTH == center_column(CELL_WIDTH);
        match at {
            _ if at < first || at > last => ' ',
            _ if at == first => '└',
            _ if at == last => '┘',
            _ if at == center_column(width) => {
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
    fn connector_meets_every_bridge() {
        assert_eq!(connector(1, 15), "       │       ");
        assert_eq!(connector(2, 30), "       └──────┬───────┘       ");
        assert_eq!(connector(3, 45), "       └──────────────┼──────────────┘       ");
        assert_eq!(
            connector(4, 60),
            "       └──────────────┴──────┬───────┴──────────────┘       "
        );
    }

    #[test]
    fn hosts_that_do_not_fit_are_counted() {
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
        assert_eq!(lines.last().unwrap(), "and 5 more hosts like these");
        let widest = lines.iter().map(|line| line.chars().count()).max().unwrap();
        assert_eq!(widest, 4 * 17 + 3);
        assert!(lines[0].starts_with("┌ host 10.0.0.1 ┐ ┌ host 10.0.0.2"), "{}", lines[0]);
        assert!(lines.iter().any(|line| line.contains("│ eth0 10.0.0.4 │")), "{lines:?}");
        assert_eq!(draw(&hosts[..1], master, 0).len(), 15);
    }
}
