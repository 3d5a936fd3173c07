//! Sockets that are inherited, passed on and shared: whose they are by now, and who else holds them.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::net::UnixDatagram,
    },
};

use anyhow::{Context as _, Result};
use conntracer_tests::{
    family::Family,
    forked::{self, Forked},
    line::{Finding, Subject},
    netns::{COMM, NetNs},
    scenario::accept_queue::AcceptQueueFull,
    socket::{deafen, listen, tcp},
    tracer::{Run, Tracer},
    wait::{EVENTUALLY, SOON},
};
use socket2::Socket;

use crate::support::{assert_sound, binary, is_syn_drop, trace};

/// A listener that this process holds, and clients of it.
struct Served {
    netns: NetNs,
    address: SocketAddr,
    listener: Socket,
}

impl Served {
    fn new() -> Self {
        let netns = NetNs::new().unwrap();
        let address = Family::V4.loopback_listener();
        let listener = netns.run(|| listen(Family::V4, address, 16)).unwrap();
        Self {
            netns,
            address,
            listener,
        }
    }

    fn fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// Connects, and hears from whom it is served.
    fn client(&self) -> Result<(Socket, u32)> {
        let mut client = self.netns.run(|| tcp(Family::V4))?;
        client.set_nonblocking(false)?;
        client.connect(&self.address.into())?;
        let mut pid = [0; 4];
        client.read_exact(&mut pid).context("who serves")?;
        Ok((client, u32::from_ne_bytes(pid)))
    }
}

/// What a server says that hears anything: less than a segment, and nobody acknowledges it.
const ANSWER: [u8; 100] = [0x5a; 100];

/// Says who serves. What fails here shows as a client that hears nothing.
fn say_who(fd: RawFd) -> bool {
    // SAFETY: system calls with a number and a buffer that lives.
    unsafe {
        let pid = libc::getpid().to_ne_bytes();
        libc::write(fd, pid.as_ptr().cast(), pid.len()) == 4
    }
}

/// Waits for a byte from `heard`, and answers to `fd`.
fn answer(heard: RawFd, fd: RawFd) -> bool {
    let mut byte = [0_u8; 1];
    // SAFETY: as above.
    unsafe {
        libc::read(heard, byte.as_mut_ptr().cast(), 1) == 1
            && libc::write(fd, ANSWER.as_ptr().cast(), ANSWER.len()) == 100
    }
}

fn accept(listener: RawFd) -> RawFd {
    // SAFETY: a number, and no address asked for.
    unsafe { libc::accept(listener, std::ptr::null_mut(), std::ptr::null_mut()) }
}

fn close(fd: RawFd) {
    // SAFETY: a number.
    unsafe { libc::close(fd) };
}

fn retransmitted(tracer: &mut Tracer, pid: u32) {
    tracer
        .wait_for_event("a retransmission", SOON, "retransmit", |event| {
            event["process.pid"] == pid
        })
        .unwrap();
}

/// Whose the retransmissions to each client were.
fn owners(run: &Run, client: &Socket) -> Vec<Option<u64>> {
    let port = client.local_addr().unwrap().as_socket().unwrap().port();
    run.events()
        .filter(|(kind, event)| *kind == "retransmit" && event["network.peer.port"] == port)
        .map(|(_, event)| event["process.pid"].as_u64())
        .collect()
}

/// About the server's end: what the client sends is not acknowledged to it either.
fn is_dead_client(finding: &Finding, served: &Served) -> bool {
    let Subject::Connection { local, .. } = &finding.subject else {
        return false;
    };
    finding.cause == "dead_peer" && *local == served.address
}

/// Workers that inherit a listener each own what they accept, and the listener is theirs together.
#[test]
fn each_worker_of_a_preforked_server_owns_what_it_accepts() {
    const WORKERS: usize = 3;
    let Some(binary) = binary() else { return };
    let served = Served::new();
    let Some(mut tracer) = trace(&binary, &served.netns, &["--emit", "retransmit"]) else {
        return;
    };
    let fd = served.fd();
    let mut clients = Vec::new();
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        let worker = Forked::run(c"ct-worker", &[fd], || {
            let accepted = accept(fd);
            // It has one connection and no time for more.
            if say_who(accepted) && answer(accepted, accepted) {
                return forked::pause();
            }
            1
        })
        .unwrap();
        let (client, pid) = served.client().unwrap();
        assert_eq!(pid, worker.pid());
        workers.push(worker);
        clients.push(client);
    }
    for (client, worker) in clients.iter().zip(&workers) {
        deafen(client).unwrap();
        (&*client).write_all(b"x").unwrap();
        retransmitted(&mut tracer, worker.pid());
    }
    let run = tracer.stop().unwrap();

    for (client, worker) in clients.iter().zip(&workers) {
        let owners = owners(&run, client);
        let expected = Some(u64::from(worker.pid()));
        assert_eq!(owners, vec![expected; owners.len()], "{run:#?}");
    }
    assert_sound(&run, &served.netns);
}

/// A listener in trouble is said to be shared by everybody who holds it.
#[test]
fn a_listener_that_workers_inherited_is_said_to_be_shared() {
    const WORKERS: usize = 10;
    let Some(binary) = binary() else { return };
    let mut full = AcceptQueueFull::new(Family::V4).unwrap();
    full.open().unwrap();
    let fd = full.listener().unwrap();
    let workers: Vec<Forked> = (0..WORKERS)
        .map(|_| Forked::run(c"ct-worker", &[fd], forked::pause).unwrap())
        .collect();
    let netns = full.netns.clone();
    let Some(mut tracer) = trace(&binary, &netns, &[]) else {
        return;
    };
    full.provoke().unwrap();
    let shared = tracer
        .wait_for("a shared listener", SOON, |finding| {
            is_syn_drop(finding) && finding.holders == Some(11)
        })
        .unwrap();
    full.quiet().unwrap();
    let run = tracer.stop().unwrap();

    let owner = shared.owner.as_ref().expect("this process listens");
    assert_eq!((owner.pid, owner.comm.as_str()), (std::process::id(), COMM));
    let told: Vec<u32> = shared.owners.iter().map(|owner| owner.pid).collect();
    assert_eq!((told.len(), told[0]), (8, owner.pid), "{shared:#?}");
    let mut pids: Vec<u32> = workers.iter().map(Forked::pid).collect();
    pids.sort_unstable();
    assert_eq!(told[1..], pids[..7], "{shared:#?}");
    assert!(
        shared.owners[1..]
            .iter()
            .all(|owner| owner.comm == "ct-worker"),
        "{shared:#?}"
    );
    assert_sound(&run, &netns);
}

/// A descriptor that is passed to another process is that one's from then on.
#[test]
fn a_connection_is_its_receivers_once_it_was_passed() {
    let Some(binary) = binary() else { return };
    let served = Served::new();
    let Some(mut tracer) = trace(&binary, &served.netns, &["--emit", "retransmit"]) else {
        return;
    };
    let fd = served.fd();
    let (here, there) = UnixDatagram::pair().unwrap();
    let (here, there) = (here.as_raw_fd(), there.as_raw_fd());
    let acceptor = Forked::run(c"ct-acceptor", &[fd, here], || {
        let accepted = accept(fd);
        if passed::send(here, accepted) {
            close(accepted);
            return forked::pause();
        }
        1
    })
    .unwrap();
    let receiver = Forked::run(c"ct-receiver", &[there], || {
        let received = passed::receive(there);
        if say_who(received) && answer(received, received) {
            return forked::pause();
        }
        1
    })
    .unwrap();
    let (client, pid) = served.client().unwrap();
    assert_eq!(pid, receiver.pid());
    deafen(&client).unwrap();
    (&client).write_all(b"x").unwrap();
    let finding = tracer
        .wait_for("a silent peer of one process", EVENTUALLY, |finding| {
            is_dead_client(finding, &served) && finding.holders == Some(1)
        })
        .unwrap();
    // Elsewhere the first to receive from it is taken for who accepted it.
    let source = if tracer.has_hook("pass") {
        "passed"
    } else {
        "accept"
    };
    let run = tracer.stop().unwrap();

    let owner = finding.owner.as_ref().expect("it was passed to a process");
    assert_eq!(
        (owner.pid, owner.comm.as_str(), owner.source.as_str()),
        (receiver.pid(), "ct-receiver", source),
        "not {acceptor:?}: {finding:#?}"
    );
    assert!(finding.owners.is_empty(), "{finding:#?}");
    let owners = owners(&run, &client);
    assert!(owners.len() >= 3, "{owners:?}");
    assert_eq!(owners, vec![Some(u64::from(receiver.pid())); owners.len()]);
    assert_sound(&run, &served.netns);
}

/// A connection whose acceptor forked a process for it and closed its own descriptor is that process's: no
/// hook tells, and the search does.
#[test]
fn an_inherited_connection_is_found_to_be_the_heirs() {
    let Some(binary) = binary() else { return };
    let served = Served::new();
    let Some(mut tracer) = trace(&binary, &served.netns, &["--emit", "retransmit"]) else {
        return;
    };
    let fd = served.fd();
    let (mut here, there) = std::io::pipe().map(|(read, write)| (write, read)).unwrap();
    let order = there.as_raw_fd();
    let acceptor = Forked::run(c"ct-acceptor", &[fd, order], || {
        let accepted = accept(fd);
        // SAFETY: the copy makes system calls only, and goes when this one does.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: arguments as prctl(2) wants them.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::prctl(libc::PR_SET_NAME, c"ct-heir".as_ptr());
            }
            // It never receives anything from the connection.
            if say_who(accepted) && answer(order, accepted) {
                return forked::pause();
            }
            return 1;
        }
        close(accepted);
        forked::pause()
    })
    .unwrap();
    let (client, heir) = served.client().unwrap();
    assert_ne!(heir, acceptor.pid());
    deafen(&client).unwrap();
    here.write_all(b"x").unwrap();
    let finding = tracer
        .wait_for("a silent peer of one process", EVENTUALLY, |finding| {
            is_dead_client(finding, &served) && finding.holders == Some(1)
        })
        .unwrap();
    // The kernel half knows by then.
    retransmitted(&mut tracer, heir);
    let run = tracer.stop().unwrap();

    let owner = finding.owner.as_ref().expect("a process holds it");
    assert_eq!(
        (owner.pid, owner.comm.as_str(), owner.source.as_str()),
        (heir, "ct-heir", "seeded"),
        "{finding:#?}"
    );
    assert!(finding.owners.is_empty(), "{finding:#?}");
    // Whose it was when nobody had looked yet is not said to have been looked for.
    let mut looked_for = false;
    for (_, event) in run.events() {
        looked_for |= event.get("holders").is_some();
        let pid = if looked_for {
            u64::from(heir)
        } else {
            event["process.pid"].as_u64().unwrap()
        };
        assert_eq!(event["process.pid"], pid, "{event}");
    }
    assert!(looked_for, "{run:#?}");
    assert_sound(&run, &served.netns);
}

/// A descriptor in a message (unix(7)), by system calls alone.
mod passed {
    use std::{mem, os::fd::RawFd, ptr};

    /// Room for one descriptor: `CMSG_SPACE(sizeof(int))` is 24.
    #[repr(C, align(8))]
    struct Control([u8; 24]);

    fn with_message<T>(control: &mut Control, act: impl FnOnce(&mut libc::msghdr) -> T) -> T {
        let mut byte = 0_u8;
        let mut part = libc::iovec {
            iov_base: ptr::from_mut(&mut byte).cast(),
            iov_len: 1,
        };
        // SAFETY: a plain structure of numbers and pointers.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len();
        act(&mut message)
    }

    pub(super) fn send(through: RawFd, fd: RawFd) -> bool {
        let mut control = Control([0; 24]);
        with_message(&mut control, |message| {
            // SAFETY: the control buffer has room for one header and one descriptor.
            unsafe {
                let header = libc::CMSG_FIRSTHDR(message);
                (*header).cmsg_level = libc::SOL_SOCKET;
                (*header).cmsg_type = libc::SCM_RIGHTS;
                (*header).cmsg_len = libc::CMSG_LEN(4) as usize;
                libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
                libc::sendmsg(through, message, 0) == 1
            }
        })
    }

    /// -1 when none came.
    pub(super) fn receive(through: RawFd) -> RawFd {
        let mut control = Control([0; 24]);
        with_message(&mut control, |message| {
            // SAFETY: as above; without a header nothing is read.
            unsafe {
                if libc::recvmsg(through, message, 0) != 1 {
                    return -1;
                }
                let header = libc::CMSG_FIRSTHDR(message);
                if header.is_null() || (*header).cmsg_type != libc::SCM_RIGHTS {
                    return -1;
                }
                libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()
            }
        })
    }
}
