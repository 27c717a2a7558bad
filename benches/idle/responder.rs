//! Answers the echo requests that arrive in VXLAN packets, in the place of thousands of hosts. It
//! answers from the address that a packet was sent to, as the host with that address would.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use overlay_types::tunnel::PORT_DEFAULT;

/// Length of the VXLAN header (RFC 7348).
const VXLAN: usize = 8;
/// Length of the Ethernet header.
const ETHERNET: usize = 14;
/// Offset of the addresses in an IPv4 header.
const ADDRESSES: usize = 12;
/// Length of an IPv4 header without options.
const IPV4: usize = 20;
const ECHO_REQUEST: u8 = 8;

/// Answers until it is dropped.
pub(crate) struct Responder {
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        // Fails only if the thread panicked, which has printed the reason.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Starts a thread that answers in the network namespace of the calling thread.
pub(crate) fn start() -> io::Result<Responder> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT_DEFAULT))?;
    setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let is_stopped = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&is_stopped);
    let answer = move || {
        while !stop.load(Ordering::Relaxed) {
            // A timeout, or the error of an earlier answer.
            let _ = answer_one(&socket);
        }
    };
    let thread = thread::Builder::new().name("responder".to_owned()).spawn(answer)?;
    Ok(Responder { is_stopped, thread: Some(thread) })
}

fn answer_one(socket: &UdpSocket) -> io::Result<()> {
    let mut packet = [0; 1 << 16];
    let mut parts = [IoSliceMut::new(&mut packet)];
    let mut control = nix::cmsg_space!(libc::in_pktinfo);
    let descriptor = socket.as_raw_fd();
    let flags = MsgFlags::empty();
    let received = recvmsg::<SockaddrIn>(descriptor, &mut parts, Some(&mut control), flags)?;
    let (length, sender) = (received.bytes, received.address);
    let own = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(info.ipi_addr),
        _ => None,
    });
    let (Some(sender), Some(own)) = (sender, own) else { return Ok(()) };
    let Some(reply) = packet.get_mut(..length).filter(|packet| is_echo_request(packet)) else {
        return Ok(());
    };
    turn_around(reply);
    let info = libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: own,
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let receiver = SockaddrIn::from(std::net::SocketAddrV4::new(sender.ip(), PORT_DEFAULT));
    let control = [ControlMessage::Ipv4PacketInfo(&info)];
    sendmsg(descriptor, &[IoSlice::new(reply)], &control, flags, Some(&receiver))?;
    Ok(())
}

/// Returns whether a VXLAN packet has an echo request in IPv4.
fn is_echo_request(packet: &[u8]) -> bool {
    let inner = VXLAN + ETHERNET;
    packet.len() >= inner + IPV4 + 8
        && packet[inner] == 0x45
        && packet[inner + 9] == 1
        && packet[inner + IPV4] == ECHO_REQUEST
}

/// Turns an echo request into its reply. Exchanged addresses keep the checksum of the IPv4 header.
fn turn_around(packet: &mut [u8]) {
    let (macs, addresses) = (VXLAN, VXLAN + ETHERNET + ADDRESSES);
    packet[macs..macs + 12].rotate_left(6);
    packet[addresses..addresses + 8].rotate_left(4);
    let icmp = VXLAN + ETHERNET + IPV4;
    packet[icmp] = 0;
    // RFC 1624: the sum of the words has become less by 0x0800.
    let checksum = u16::from_be_bytes([packet[icmp + 2], packet[icmp + 3]]);
    let (sum, carry) = checksum.overflowing_add(0x0800);
    packet[icmp + 2..icmp + 4].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
}
