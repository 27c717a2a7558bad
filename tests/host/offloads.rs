//! Broken offloads: a network interface in user space computes checksums and divides large packets
//! as hardware does, or does it wrong.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{LinkAddr, SetSockOpt as _, bind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, eth, recv, send, socket_with,
};

use crate::doctor::{DiagnosedCluster, Diagnosis};
use crate::hosts::Underlay;
use crate::namespace::Namespace;
use crate::traffic::now;

#[derive(Debug, Clone, Copy)]
struct VirtioHeader;

nix::setsockopt_impl!(
    VirtioHeader,
    libc::SOL_PACKET,
    libc::PACKET_VNET_HDR,
    bool,
    nix::sys::socket::sockopt::SetBool
);

const VIRTIO: usize = 10;
const FRAME_MAX: usize = 80 * 1024;
const VXLAN_PORT: [u8; 2] = 64_000_u16.to_be_bytes();

/// What the interface does wrong, with packets inside of the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// It leaves the checksum as it is.
    Checksum,
    /// It loses large packets.
    Segmentation,
    /// It loses one of 20 packets at random, whatever they are.
    Loss,
}

const FAULTS: [Fault; 4] = [Fault::None, Fault::Checksum, Fault::Segmentation, Fault::Loss];

/// The interface between a host and the switch.
pub(crate) struct Interface {
    fault: Arc<AtomicU8>,
    /// Packets inside of the tunnel whose checksum, and whose segmentation, was left to it.
    counts: Arc<[AtomicU32; 2]>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Interface {
    /// Puts the interface between `port` and the switch.
    pub(crate) fn new(switch: &Namespace, port: &str) -> Self {
        switch.run("ip link add nic0 type veth peer name nic1");
        switch.run("ip link set nic0 up");
        switch.run("ip link set nic1 master br0 up");
        switch.run(&format!("ip link set {port} nomaster"));
        let sockets = switch.inside(|| [port, "nic0"].map(open));
        let fault = Arc::new(AtomicU8::new(0));
        let counts = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
        let ends = Arc::new(AtomicBool::new(false));
        let relay = Relay {
            sockets,
            fault: Arc::clone(&fault),
            counts: Arc::clone(&counts),
            ends: Arc::clone(&ends),
        };
        let thread = std::thread::Builder::new().spawn(move || relay.run()).expect("a thread");
        Self { fault, counts, ends, thread: Some(thread) }
    }

    pub(crate) fn set(&self, fault: Fault) {
        let number = FAULTS.iter().position(|known| *known == fault).expect("a known fault");
        self.fault.store(u8::try_from(number).expect("a small number"), Ordering::Relaxed);
    }

    /// Returns the packets with checksums and those with segments that were left to the interface
    /// since the last call.
    pub(crate) fn take_counts(&self) -> [u32; 2] {
        [0, 1].map(|index| self.counts[index].swap(0, Ordering::Relaxed))
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Opens a socket for all packets of a device, with the header of virtio.
fn open(device: &str) -> OwnedFd {
    let link: LinkAddr = getifaddrs()
        .expect("a list of devices")
        .filter(|interface| interface.interface_name == device)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .expect("a device");
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(eth::ALL));
    let socket = socket.expect("a packet socket");
    VirtioHeader.set(&socket, &true).expect("the header of virtio");
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 32 << 20).expect("a buffer");
    bind(socket.as_raw_fd(), &link).expect("a bound socket");
    socket
}

/// The offset of the outer UDP header in a frame.
const OUTER_UDP: usize = 34;

struct Relay {
    sockets: [OwnedFd; 2],
    fault: Arc<AtomicU8>,
    counts: Arc<[AtomicU32; 2]>,
    ends: Arc<AtomicBool>,
}

impl Relay {
    fn run(&self) {
        let mut buffer = vec![0; FRAME_MAX];
        while !self.ends.load(Ordering::Relaxed) {
            let mut ready: Vec<_> =
                self.sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
            let timeout = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            let _ = poll(&mut ready, Some(&timeout));
            for (from, to) in [(0, 1), (1, 0)] {
                while let Ok((_, length)) =
                    recv(&self.sockets[from], &mut buffer, RecvFlags::DONTWAIT)
                {
                    for frame in self.frames(&buffer[..length], from == 0) {
                        let packet = [&[0; VIRTIO][..], &frame].concat();
                        let _ = send(&self.sockets[to], &packet, SendFlags::empty());
                    }
                }
            }
        }
    }

    /// Returns the frames that the interface sends for a packet. Its faults concern the packets of
    /// its host: the interfaces of the other hosts work.
    fn frames(&self, packet: &[u8], is_of_host: bool) -> Vec<Vec<u8>> {
        let fault = FAULTS[usize::from(self.fault.load(Ordering::Relaxed))];
        let field = |at: usize| usize::from(u16::from_ne_bytes([packet[at], packet[at + 1]]));
        let (needs_checksum, kind) = (packet[0] & 1 != 0, packet[1]);
        let (size, start, offset) = (field(4), field(6), field(8));
        let frame = &packet[VIRTIO..];
        let is_tunneled = frame[12..14] == [8, 0] && frame[23] == 17 && frame[36..38] == VXLAN_PORT;
        // The checksum of a UDP header outside of a tunnel is one that every hardware computes.
        let is_inner = start > OUTER_UDP;
        if is_tunneled && is_of_host {
            let is_left = needs_checksum && is_inner && kind == 0;
            self.counts[0].fetch_add(u32::from(is_left), Ordering::Relaxed);
            self.counts[1].fetch_add(u32::from(kind != 0), Ordering::Relaxed);
        }
        let breaks = |broken: Fault| is_tunneled && is_of_host && fault == broken;
        if kind != 0 && breaks(Fault::Segmentation) {
            return Vec::new();
        }
        let mut frames = if kind == 0 {
            vec![frame.to_vec()]
        } else {
            segments(frame, size, start, is_tunneled)
        };
        if needs_checksum && !(is_inner && breaks(Fault::Checksum)) {
            for frame in &mut frames {
                let sum = checksum(&frame[start..]);
                frame[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
            }
        }
        if kind != 0 && is_tunneled {
            frames.iter_mut().for_each(|frame| fill_outer_checksum(frame));
        }
        frames.retain(|_| fault != Fault::Loss || fastrand::u32(..20) > 0);
        frames
    }
}

/// Computes the checksum of the outer UDP header of a segment, unless the tunnel omits it. Of a single
/// packet the kernel has computed it.
fn fill_outer_checksum(frame: &mut [u8]) {
    const FIELD: std::ops::Range<usize> = 40..42;
    if frame[FIELD] == [0, 0] {
        return;
    }
    frame[FIELD].fill(0);
    let mut bytes = frame[26..34].to_vec();
    bytes.extend([0, 17]);
    bytes.extend(&frame[38..40]);
    bytes.extend(&frame[34..]);
    let sum = checksum(&bytes);
    frame[FIELD].copy_from_slice(&sum.to_be_bytes());
}

/// Divides a packet of TCP over IPv4, as it is or in the tunnel. The checksum field of each segment
/// gets the sum of its addresses and length.
fn segments(frame: &[u8], size: usize, tcp: usize, is_tunneled: bool) -> Vec<Vec<u8>> {
    let ip = tcp - 20;
    let data = tcp + usize::from(frame[tcp + 12] >> 4) * 4;
    let sequence = u32::from_be_bytes(frame[tcp + 4..tcp + 8].try_into().expect("four bytes"));
    let chunks: Vec<&[u8]> = frame[data..].chunks(size).collect();
    let last = chunks.len() - 1;
    let mut offset = 0_u32;
    let mut result = Vec::new();
    for (index, chunk) in chunks.into_iter().enumerate() {
        let mut segment = [&frame[..data], chunk].concat();
        let end = segment.len();
        let mut set = |at: usize, value: u16| {
            segment[at..at + 2].copy_from_slice(&value.to_be_bytes());
        };
        let short = |length: usize| u16::try_from(length).expect("a length of a packet");
        if is_tunneled {
            set(16, short(end - 14));
            set(38, short(end - 34));
        }
        set(ip + 2, short(end - ip));
        for header in if is_tunneled { vec![14, ip] } else { vec![ip] } {
            segment[header + 10..header + 12].fill(0);
            let sum = checksum(&segment[header..header + 20]);
            segment[header + 10..header + 12].copy_from_slice(&sum.to_be_bytes());
        }
        let number = sequence.wrapping_add(offset);
        segment[tcp + 4..tcp + 8].copy_from_slice(&number.to_be_bytes());
        if index != last {
            // Only the last segment has FIN and PSH.
            segment[tcp + 13] &= !9;
        }
        let mut pseudo = segment[ip + 12..ip + 20].to_vec();
        pseudo.extend([0, 6]);
        pseudo.extend(short(end - tcp).to_be_bytes());
        let sum = !checksum(&pseudo);
        segment[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
        offset += u32::try_from(chunk.len()).expect("a length of a segment");
        result.push(segment);
    }
    result
}

/// Returns the internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("a folded sum")
}

/// Sends a megabyte by TCP from a container to a container of another host. Returns the time that
/// this takes, or `None` if it takes too long.
pub(crate) fn transfer(from: &Namespace, to: &Namespace, address: IpAddr) -> Option<Duration> {
    let limit = Some(Duration::from_secs(4));
    let listener = to.inside(|| TcpListener::bind("0.0.0.0:7000").expect("a port"));
    let address = SocketAddr::new(address, 7000);
    let receive = move || {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(limit)?;
        let mut data = vec![0; 1 << 20];
        stream.read_exact(&mut data)?;
        stream.write_all(b"received")
    };
    let receiver = std::thread::Builder::new().spawn(receive).expect("a thread");
    let start = now();
    let sent = from.inside(|| -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(4))?;
        stream.set_write_timeout(limit)?;
        stream.set_read_timeout(limit)?;
        stream.write_all(&vec![1; 1 << 20])?;
        stream.read_exact(&mut [0; 8])
    });
    let duration = start.elapsed();
    // A connection within the receiver's host ends its wait, if the first one was lost.
    let _ = to.inside(|| TcpStream::connect((Ipv4Addr::LOCALHOST, 7000)));
    let _ = receiver.join();
    sent.ok().map(|()| duration)
}

/// Returns the command of the only wrong finding, which names the offload.
fn command(diagnosis: &Diagnosis, offload: &str) -> String {
    let [wrong] = &diagnosis.wrong()[..] else { panic!("{:#?}", diagnosis.wrong()) };
    let start = format!("check: offload-probe\nwhat: {offload} of device vtep1024 is broken to ");
    assert!(wrong.starts_with(&start), "{wrong}");
    let command = wrong.lines().find_map(|line| line.strip_prefix("command: "));
    command.unwrap_or_else(|| panic!("{wrong}")).to_owned()
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn broken_offload_is_named_and_its_command_repairs_it() {
    let cluster = DiagnosedCluster::new(Underlay::V4);
    let (host, peer) = (cluster.host(1), cluster.host(2));
    let transfer = || transfer(&host.container, &peer.container, peer.address().into());
    let interface = Interface::new(cluster.switch(), "port1");

    let healthy = cluster.diagnose_with_probe(1);
    assert_eq!(healthy.wrong(), [""; 0]);
    let found = healthy.findings_of("offload-probe");
    println!("no fault: {found:?}");
    assert!(
        matches!(found[..], [one] if one.starts_with("offloads of device vtep1024 work to 2 peers; 4 MB each: 0 % lost at ")),
        "{found:?}"
    );
    let [checksums, segmented] = interface.take_counts();
    assert!(checksums > 1000 && segmented > 100, "the packets need the interface");
    assert!(transfer().is_some());

    interface.set(Fault::Loss);
    for _ in 0..3 {
        let lossy = cluster.diagnose_with_probe(1);
        println!("5 % loss: {:?}", lossy.findings_of("offload-probe"));
        assert!(!lossy.wrong().iter().any(|wrong| wrong.contains("offload")), "{lossy:?}");
    }

    interface.set(Fault::Checksum);
    let firewall = |line: &str| [2, 3].map(|number| cluster.host(number).namespace.run(line));
    firewall("nft add table inet closed");
    firewall("nft add chain inet closed in { type filter hook input priority 0 ; }");
    firewall("nft add rule inet closed in iifname vtep1024 meta l4proto tcp drop");
    let closed = cluster.diagnose_with_probe(1);
    assert_eq!(closed.wrong(), [""; 0]);
    let found = closed.findings_of("offload-probe");
    let start = "offloads of device vtep1024 were not tested to agents 10.0.0.2, 10.0.0.3: ";
    assert!(matches!(found[..], [one] if one.starts_with(start)), "{found:?}");
    firewall("nft delete table inet closed");

    for (fault, offload) in
        [(Fault::Checksum, "checksum offload"), (Fault::Segmentation, "segmentation offload")]
    {
        interface.set(fault);
        assert!(host.namespace.can_reach("44.128.0.2"), "pings arrive");
        let broken = transfer();
        let diagnosis = cluster.diagnose_with_probe(1);
        let command = command(&diagnosis, offload);
        println!("{fault:?}: {:?}", diagnosis.findings_of("offload-probe"));
        assert_eq!(command, "ethtool -K vtep1024 tx-checksum-ip-generic off");
        host.namespace.run(&command);
        interface.take_counts();
        let repaired = transfer().expect("a transfer");
        println!("{fault:?}: {broken:?}, repaired: {repaired:?}");
        // TCP sends the segments of a lost large packet again one by one, after a timeout.
        assert!(broken.is_none_or(|broken| broken > repaired * 3), "{fault:?}: {broken:?}");
        assert!(fault == Fault::Segmentation || broken.is_none());
        assert_eq!(interface.take_counts(), [0, 0], "nothing is left to the interface");
        let repaired = cluster.diagnose_with_probe(1);
        assert_eq!(repaired.wrong(), [""; 0]);
        host.namespace.run(&command.replace("off", "on"));
    }
}
