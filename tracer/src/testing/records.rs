//! Records of each kind, as the eBPF side would tell them of a plain case.

use std::time::Duration;

use conntracer_common::{
    netns::{NetnsId, kernel},
    record::{self, Owner, Socket, Tcp, kind, owner_source, role, socket_flag, syn_evidence},
    sketch,
    tcp::{ca, state},
    undo::way,
};

use super::{REASONS, Run, START_NS, listener, owner};

fn any_of(local: &str) -> &'static str {
    if local.starts_with('[') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    }
}

impl Run {
    pub(crate) fn syn(&mut self, socket: Socket, change: impl FnOnce(&mut record::Syn)) {
        let mut record = record::Syn {
            header: self.header::<record::Syn>(kind::SYN),
            socket,
            owner: owner(),
            last_ns: self.ktime_ns,
            max_ack_backlog: 1,
            ack_backlog: 2,
            peak_ack_backlog: 2,
            max_syn_backlog: 1024,
            outcome: u8::MAX,
            evidence: syn_evidence::COUNTERS,
            syncookies: 1,
            ..record::Syn::default()
        };
        change(&mut record);
        self.record(&record);
    }

    /// The registers that SYNs from these addresses leave at a listener.
    pub(crate) fn sources(&mut self, socket: Socket, from: impl Iterator<Item = [u32; 4]>) {
        let mut record = record::Sources {
            header: self.header::<record::Sources>(kind::SOURCES),
            socket,
            since_ns: self.ktime_ns,
            last_ns: self.ktime_ns,
            syns: 0,
            addresses: [0; sketch::ADDRESSES],
            prefixes: [0; sketch::PREFIXES],
        };
        let raise = |registers: &mut [u8], hash: u64| {
            let count = registers.len();
            let register =
                &mut registers[usize::try_from(hash % count as u64).expect("a register")];
            *register = (*register).max(sketch::rank(hash, count));
        };
        for source in from {
            record.syns += 1;
            raise(&mut record.addresses, sketch::hash(&source, 7));
            raise(
                &mut record.prefixes,
                sketch::hash(&sketch::prefix(&source), 7),
            );
        }
        self.record(&record);
    }

    pub(crate) fn syn_ack(&mut self, socket: Socket, num_retrans: u8, acked: bool) {
        let record = record::SynAck {
            header: self.header::<record::SynAck>(kind::SYNACK),
            socket,
            owner: owner(),
            request: 0x1000 + u64::from(socket.remote_port),
            max_ack_backlog: 128,
            syn_qlen: 1,
            num_retrans,
            num_timeout: num_retrans,
            acked: acked.into(),
            ..record::SynAck::default()
        };
        self.record(&record);
    }

    pub(crate) fn retransmit(
        &mut self,
        socket: Socket,
        change: impl FnOnce(&mut record::Retransmit),
    ) {
        let mut record = self.repeated(socket);
        change(&mut record);
        self.record(&record);
    }

    /// The kernel takes back what it did about a loss, `change`d from one that repeated a segment.
    pub(crate) fn undo(&mut self, socket: Socket, change: impl FnOnce(&mut record::Undo)) {
        let mut record = record::Undo {
            header: self.header::<record::Undo>(kind::UNDO),
            socket,
            owner: owner(),
            ..record::Undo::default()
        };
        record.totals.count(way::LOSS, 1);
        change(&mut record);
        self.record(&record);
    }

    /// One segment that is sent again now.
    pub(crate) fn repeated(&self, socket: Socket) -> record::Retransmit {
        record::Retransmit {
            header: self.header::<record::Retransmit>(kind::RETRANSMIT),
            socket,
            owner: owner(),
            tcp: Tcp {
                snd_una: 1000,
                snd_nxt: 3000,
                snd_wnd: 64_000,
                mss: 1448,
                ca_state: ca::LOSS,
                retransmits: 1,
                data_segs_out: 100,
                ..Tcp::default()
            },
            seq: 1000,
            end_seq: 1100,
            segs: 1,
            ..record::Retransmit::default()
        }
    }

    /// What a search found: the pids of those who hold `socket`, of `count` in all.
    pub(crate) fn holders(&mut self, socket: Socket, pids: &[u32], count: u32) {
        self.holders_instead_of(0, socket, pids, count);
    }

    /// The same of a socket that was said to be another's.
    pub(crate) fn holders_instead_of(
        &mut self,
        said_pid: u32,
        socket: Socket,
        pids: &[u32],
        count: u32,
    ) {
        let mut owners = [Owner::default(); record::MAX_HOLDERS];
        for (place, pid) in owners.iter_mut().zip(pids) {
            *place = Owner {
                pid: *pid,
                source: owner_source::SEEDED,
                ..owner()
            };
        }
        let record = record::Holders {
            header: self.header::<record::Holders>(kind::HOLDERS),
            socket,
            owners,
            count,
            said_pid,
        };
        self.record(&record);
    }

    /// One process of a look at a listener: alone, running, with descriptors to spare.
    pub(crate) fn acceptor(
        &mut self,
        listener: Socket,
        change: impl FnOnce(&mut record::Acceptor),
    ) {
        let mut record = record::Acceptor {
            header: self.header::<record::Acceptor>(kind::ACCEPTOR),
            socket: listener,
            pid: owner().pid,
            parent_pid: 1,
            descriptors: 5,
            descriptor_limit: 1024,
            threads: 1,
            owner_pid: owner().pid,
            comm: owner().comm,
            state: b'S',
            flags: record::acceptor_flag::HOLDS | record::acceptor_flag::LAST,
            ..record::Acceptor::default()
        };
        change(&mut record);
        self.record(&record);
    }

    /// A look at the accept queue of a listener: one waits there, for two seconds.
    pub(crate) fn accept_queue(
        &mut self,
        listener: Socket,
        change: impl FnOnce(&mut record::AcceptQueue),
    ) {
        let mut record = record::AcceptQueue {
            header: self.header::<record::AcceptQueue>(kind::ACCEPT_QUEUE),
            socket: listener,
            owner: owner(),
            oldest_ns: 2_000_000_000,
            ack_backlog: 1,
            max_ack_backlog: 128,
            waiting: 1,
            ..record::AcceptQueue::default()
        };
        change(&mut record);
        if record.oldest_ns >= 1_000_000_000 {
            record.flags |= record::accept_queue_flag::LATE;
        }
        self.record(&record);
    }

    /// A look at the namespace of all tests, of which nothing is known but what `change` says.
    pub(crate) fn netns_facts(&mut self, change: impl FnOnce(&mut record::NetnsFacts)) {
        let mut record = record::NetnsFacts {
            header: self.header::<record::NetnsFacts>(kind::NETNS_FACTS),
            figures: [record::UNKNOWN_TOTAL; record::netns_fact::COUNT],
            netns: 4026,
            pad: 0,
        };
        change(&mut record);
        self.record(&record);
    }

    /// Four segments to `socket` that a rule of its namespace dropped at input until now.
    pub(crate) fn dropped(&mut self, socket: Socket, change: impl FnOnce(&mut record::Dropped)) {
        let header = self.header::<record::Dropped>(kind::DROPPED);
        let mut record = record::Dropped {
            header,
            count: 4,
            first_ns: header.ktime_ns,
            last_ns: header.ktime_ns,
            rule_handle: 5,
            local_addr: socket.local_addr,
            remote_addr: socket.remote_addr,
            netns: socket.netns,
            reason: u32::MAX,
            local_port: socket.local_port,
            remote_port: socket.remote_port,
            family: socket.family,
            layer: record::drop_layer::NETFILTER,
            hook: record::drop_hook::INPUT,
            rule: record::drop_rule::RULE,
            table_family: 1,
            ..record::Dropped::default()
        };
        record.table[..6].copy_from_slice(b"filter");
        record.chain[..2].copy_from_slice(b"in");
        change(&mut record);
        self.record(&record);
    }

    /// A look at a connection whose window is shut, on which data last came two seconds ago.
    pub(crate) fn receive(&mut self, socket: Socket, change: impl FnOnce(&mut record::Receive)) {
        let mut record = record::Receive {
            header: self.header::<record::Receive>(kind::RECEIVE),
            socket,
            owner: owner(),
            data_idle_ns: 2_000_000_000,
            copied_seq: 7000,
            unread: 60_000,
            mss: 1448,
            memory: 130_000,
            memory_max: 131_072,
            flags: record::receive_flag::SHUT,
            ..record::Receive::default()
        };
        change(&mut record);
        self.record(&record);
    }

    pub(crate) fn probe(&mut self, socket: Socket, change: impl FnOnce(&mut record::Probe)) {
        let mut record = record::Probe {
            header: self.header::<record::Probe>(kind::PROBE),
            socket,
            owner: owner(),
            keepalive: 1,
            ..record::Probe::default()
        };
        change(&mut record);
        self.record(&record);
    }

    pub(crate) fn snapshot(&mut self, socket: Socket, change: impl FnOnce(&mut record::Snapshot)) {
        let mut record = record::Snapshot {
            header: self.header::<record::Snapshot>(kind::SNAPSHOT),
            socket,
            owner: owner(),
            received_idle_ns: u64::MAX,
            sent_idle_ns: u64::MAX,
            heard_idle_ns: u64::MAX,
            ..record::Snapshot::default()
        };
        change(&mut record);
        self.record(&record);
    }

    /// A connection that the audit found: idle for `idle`, keepalive off.
    pub(crate) fn idle(
        &mut self,
        socket: Socket,
        idle: Duration,
        change: impl FnOnce(&mut record::Idle),
    ) {
        let mut record = record::Idle {
            header: self.header::<record::Idle>(kind::IDLE),
            socket,
            owner: owner(),
            idle_ns: u64::try_from(idle.as_nanos()).expect("a test's duration"),
            flags: record::idle_flag::KEEPALIVE_OFF,
            ..record::Idle::default()
        };
        change(&mut record);
        self.record(&record);
    }

    /// The end of an audit, which lost so many.
    pub(crate) fn idle_totals(&mut self, lost: u32) {
        let record = record::IdleTotals {
            header: self.header::<record::IdleTotals>(kind::IDLE_TOTALS),
            lost,
            limit_ns: 900_000_000_000,
            ..record::IdleTotals::default()
        };
        self.record(&record);
    }

    /// What other connections to an address show: how many there are in all, how many heard of it within the silence, and
    /// how long ago one did.
    pub(crate) fn beside(
        &mut self,
        socket: Socket,
        (connections, answered): (u32, u32),
        ago: Duration,
    ) {
        let record = record::Beside {
            header: self.header::<record::Beside>(kind::BESIDE),
            remote_addr: socket.remote_addr,
            netns: socket.netns,
            family: socket.family,
            connections,
            answered,
            heard_idle_ns: u64::try_from(ago.as_nanos()).expect("a test's duration"),
            ..record::Beside::default()
        };
        self.record(&record);
    }

    /// The comparison of a namespace, which counted nothing.
    pub(crate) fn netns(&mut self, inode: u32, mix: u32) {
        self.netns_with(inode, mix, 0);
    }

    /// With bits of `netns_flag`.
    pub(crate) fn netns_with(&mut self, inode: u32, mix: u32, flags: u8) {
        let record = record::Netns {
            header: self.header::<record::Netns>(kind::NETNS),
            id: NetnsId { inode, mix },
            flags,
            ..record::Netns::default()
        };
        self.record(&record);
    }

    /// So many sockets in `half` of [`owner`]'s process that a poll does not list.
    pub(crate) fn half_closed(&mut self, half: u8, count: u64) {
        let record = record::HalfClosed {
            header: self.header::<record::HalfClosed>(kind::HALF_CLOSED),
            owner: owner(),
            count,
            state: half,
            ..record::HalfClosed::default()
        };
        self.record(&record);
    }

    /// A socket that was there before.
    pub(crate) fn seed(&mut self, socket: Socket, change: impl FnOnce(&mut record::Seed)) {
        let mut record = record::Seed {
            header: self.header::<record::Seed>(kind::SEED),
            socket: Socket {
                flags: socket_flag::OLDER,
                ..socket
            },
            owner: owner(),
            active_ns: self.ktime_ns,
            holders: 1,
            heard_idle_ns: u64::MAX,
            ..record::Seed::default()
        };
        change(&mut record);
        self.record(&record);
    }

    pub(crate) fn closed(&mut self, socket: Socket, change: impl FnOnce(&mut record::State)) {
        let mut record = record::State {
            header: self.header::<record::State>(kind::STATE),
            socket,
            owner: owner(),
            old_state: state::ESTABLISHED,
            new_state: state::CLOSE,
            ..record::State::default()
        };
        change(&mut record);
        self.record(&record);
    }

    pub(crate) fn reset_received(&mut self, socket: Socket) {
        let record = record::Reset {
            header: self.header::<record::Reset>(kind::RESET),
            socket,
            owner: owner(),
            reason: u32::MAX,
            received: 1,
            ..record::Reset::default()
        };
        self.record(&record);
    }

    /// Dropped SYNs, `count` in all since the test began, for `reason` of [`REASONS`].
    pub(crate) fn early_drop(
        &mut self,
        socket: Socket,
        count: u64,
        reason: &str,
        change: impl FnOnce(&mut record::EarlyDrop),
    ) {
        let reason = (0..).zip(REASONS).find(|(_, name)| *name == reason);
        let mut record = record::EarlyDrop {
            header: self.header::<record::EarlyDrop>(kind::EARLY_DROP),
            socket: Socket {
                sk: 0,
                born_ns: 0,
                state: state::CLOSE,
                role: role::UNKNOWN,
                ..socket
            },
            count,
            first_ns: START_NS,
            last_ns: self.ktime_ns,
            remotes: 1,
            device: *b"eth0\0\0\0\0\0\0\0\0\0\0\0\0",
            ifindex: 2,
            reason: reason.map_or(u32::MAX, |(number, _)| number),
            path: record::path::INPUT,
            ..record::EarlyDrop::default()
        };
        change(&mut record);
        self.record(&record);
    }

    /// Failed attempts to connect from `socket`, `count` in all since the test began.
    pub(crate) fn failure(
        &mut self,
        socket: Socket,
        count: u64,
        change: impl FnOnce(&mut record::Failure),
    ) {
        let mut record = record::Failure {
            header: self.header::<record::Failure>(kind::FAILURE),
            socket: Socket {
                state: state::SYN_SENT,
                role: role::ACTIVE,
                ..socket
            },
            owner: Owner {
                source: owner_source::CONNECT,
                ..owner()
            },
            count,
            first_ns: START_NS,
            last_ns: self.ktime_ns,
            longest_ns: 2_000_000,
            syns: 1,
            ..record::Failure::default()
        };
        change(&mut record);
        self.record(&record);
    }

    /// A call of bind() that found the port taken; with error 0, one that succeeded.
    pub(crate) fn bind(&mut self, local: &str, change: impl FnOnce(&mut record::Bind)) {
        let mut record = record::Bind {
            header: self.header::<record::Bind>(kind::BIND),
            socket: Socket {
                state: state::CLOSE,
                born_ns: 0,
                ..listener(local, any_of(local))
            },
            owner: Owner {
                source: owner_source::LISTENER,
                ..owner()
            },
            count: 1,
            first_ns: self.ktime_ns,
            last_ns: self.ktime_ns,
            error: 98,
            unprivileged_start: 1024,
            range: [32_768, 60_999],
            call: record::bind_call::BIND,
            ..record::Bind::default()
        };
        change(&mut record);
        self.record(&record);
    }

    /// A look at who holds a port: one listener of another process, at `holder`.
    pub(crate) fn bind_holders(
        &mut self,
        local: &str,
        holder: &str,
        change: impl FnOnce(&mut record::BindHolders),
    ) {
        let (asked, held) = (
            listener(local, any_of(local)),
            listener(holder, any_of(holder)),
        );
        let first = record::BindHolder {
            owner: Owner {
                comm: *b"holder\0\0\0\0\0\0\0\0\0\0",
                pid: 77,
                source: owner_source::SEEDED,
                ..owner()
            },
            local_addr: held.local_addr,
            local_port: held.local_port,
            family: held.family,
            state: state::LISTEN,
            ports: 1,
            ..record::BindHolder::default()
        };
        let mut record = record::BindHolders {
            header: self.header::<record::BindHolders>(kind::BIND_HOLDERS),
            local_addr: asked.local_addr,
            netns: asked.netns,
            port: asked.local_port,
            family: asked.family,
            listeners: 1,
            named: 1,
            ..record::BindHolders::default()
        };
        record.holders[0] = first;
        change(&mut record);
        self.record(&record);
    }

    /// The end of `socket`: a RST came, unless changed.
    pub(crate) fn close(&mut self, socket: Socket, change: impl FnOnce(&mut record::Close)) {
        let mut record = record::Close {
            header: self.header::<record::Close>(kind::CLOSE),
            socket,
            owner: owner(),
            bytes_received: 4096,
            idle_ns: 1_000_000,
            unanswered_ns: u64::MAX,
            error: 104,
            reason: u32::MAX,
            sender_reason: u32::MAX,
            old_state: state::ESTABLISHED,
            flags: record::close_flag::RST_RECEIVED,
            ..record::Close::default()
        };
        change(&mut record);
        self.record(&record);
    }

    /// So many records of a hook are lost, of which no program saw `missed`.
    pub(crate) fn lost(&mut self, hook: u32, lost: u64, missed: u32) {
        let header = self.header::<record::Loss>(kind::LOSS);
        self.record(&record::Loss {
            header,
            lost,
            hook,
            missed,
        });
    }

    /// The comparison of a namespace, whose kernel counted so many retransmissions more than conntracer.
    pub(crate) fn compared(&mut self, inode: u32, residue: u64) {
        let mut record = record::Netns {
            header: self.header::<record::Netns>(kind::NETNS),
            id: NetnsId { inode, mix: 1 },
            ..record::Netns::default()
        };
        record.kernel[kernel::RETRANS_SEGS] = residue;
        self.record(&record);
    }

    pub(crate) fn loss(&mut self, hook: u32, lost: u64) {
        let header = self.header::<record::Loss>(kind::LOSS);
        self.record(&record::Loss {
            header,
            lost,
            hook,
            missed: 0,
        });
    }
}
