//! The sockets of a namespace that no process holds, as its /proc/PID/net/tcp and tcp6 show: closed by their process and
//! not over, in TIME_WAIT, or not accepted yet.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    ops::RangeInclusive,
    path::Path,
};

use conntracer_common::tcp::{AF_INET, AF_INET6};

/// Lines of one file that are read, at some 1 µs each.
const MAX_LINES: usize = 65_536;

/// One of them. Addresses in network order words, as records have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Orphan {
    pub(crate) family: u16,
    pub(crate) local_addr: [u32; 4],
    pub(crate) local_port: u16,
    pub(crate) remote_addr: [u32; 4],
    pub(crate) remote_port: u16,
    pub(crate) state: u8,
}

/// Shows those at some ports; false where not all could be looked at.
pub(crate) fn orphans(
    net: &Path,
    ports: &RangeInclusive<u16>,
    see: &mut dyn FnMut(Orphan),
) -> bool {
    let mut complete = true;
    for (name, family) in [("tcp", AF_INET), ("tcp6", AF_INET6)] {
        let Ok(file) = File::open(net.join(name)) else {
            // Without IPv6 there is no such file.
            complete &= family == AF_INET6;
            continue;
        };
        let mut lines = BufReader::new(file).lines().map_while(Result::ok).skip(1);
        for line in lines.by_ref().take(MAX_LINES) {
            if let Some(orphan) = orphan(&line, family)
                && ports.contains(&orphan.local_port)
            {
                see(orphan);
            }
        }
        complete &= lines.next().is_none();
    }
    complete
}

/// A line, where no process holds its socket (`get_tcp4_sock` of net/ipv4/tcp_ipv4.c: the inode is the tenth column).
fn orphan(line: &str, family: u16) -> Option<Orphan> {
    let mut columns = line.split_ascii_whitespace().skip(1);
    let (local_addr, local_port) = end(columns.next()?)?;
    let (remote_addr, remote_port) = end(columns.next()?)?;
    let state = u8::from_str_radix(columns.next()?, 16).ok()?;
    (columns.nth(5)? == "0").then_some(Orphan {
        family,
        local_addr,
        local_port,
        remote_addr,
        remote_port,
        state,
    })
}

fn end(text: &str) -> Option<([u32; 4], u16)> {
    let (addr, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(addr.get(at..at + 8)?, 16).ok();
    let words = match addr.len() {
        8 => [0, 0, 0xffff_u32.to_be(), word(0)?],
        32 => [word(0)?, word(8)?, word(16)?, word(24)?],
        _ => return None,
    };
    Some((words, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        net::{Shutdown, TcpListener, TcpStream},
    };

    use conntracer_common::tcp::state;

    use super::*;

    #[test]
    fn a_line_without_a_process_is_one_and_a_listener_is_none() {
        let time_wait = "   1: 0100007F:1F90 0200007F:C001 06 00000000:00000000 03:00001234 00000000     0        0 0 3 0000";
        let expected = Orphan {
            family: AF_INET,
            local_addr: [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes([127, 0, 0, 1])],
            local_port: 8080,
            remote_addr: [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes([127, 0, 0, 2])],
            remote_port: 0xc001,
            state: state::TIME_WAIT,
        };
        assert_eq!(orphan(time_wait, AF_INET), Some(expected));
        let held = time_wait.replace(" 0 0 3 0000", " 0 77123 3 0000");
        assert_eq!(orphan(&held, AF_INET), None);
        for torn in ["", "  1: 01", "  1: 0100007F:1F90 0200007F:C0", "x: y z 0A"] {
            assert_eq!(orphan(torn, AF_INET), None, "{torn}");
        }
    }

    #[test]
    fn what_waits_after_a_close_is_found_by_its_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (server, _) = listener.accept().unwrap();
        let find = || {
            let mut found = Vec::new();
            let complete = orphans(Path::new("/proc/self/net"), &(port..=port), &mut |orphan| {
                found.push(orphan.state);
            });
            assert!(complete || fs::metadata("/proc/self/net/tcp").is_err());
            found
        };
        assert_eq!(find(), [0_u8; 0], "each is held");
        server.shutdown(Shutdown::Both).unwrap();
        drop(server);
        drop(client);
        assert_eq!(find(), [state::TIME_WAIT]);
    }
}
