/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Records shared by kernel and Python: the maps and their content.
 *
 * Every size in CAPITALS is a -D from skbcapd/kernel/abi.py, which also has the Python view of each
 * record; skbcapd/kernel/program.py compares the sizes of both when the program is loaded.
 */

enum direction { IN = 1, OUT = 2 };

/* How the process of a packet was found; the words are in skbcapd/capture/record.py. */
enum via {
	VIA_CURRENT,   /* it used the packet's socket, in a system call */
	VIA_SOCKET,    /* the socket's last user */
	VIA_FLOW,      /* the last user of the socket with these addresses and ports */
	VIA_INODE,     /* Python found the process that has the socket open */
	VIA_PATH,      /* found when the packet was on another interface */
	VIA_KERNEL,    /* sent or received by the kernel itself */
	VIA_FORWARDED, /* received on one interface, sent on another */
	VIA_UNKNOWN,
	VIA_GROUP,	/* one of several candidates; has the tgid and comm that all have */
	VIA_UNRESOLVED, /* Python must look it up: never in a label */
};

/* Which packet wakes Python; see struct control. A buffer that fills up always does. */
enum sleep { SLEEP_NOT, SLEEP_UNTIL_PACKET, SLEEP_UNTIL_UPCALL };

/*
 * Outcomes of the packets of an interface slot; indexes of struct counters. WIRE_BYTES: the lengths
 * of the delivered packets on the wire, added up. OTHER_INTERFACES: the interface is not captured.
 * UNATTRIBUTED: rules keep the packets of some processes, and the packet's process is not known.
 * LIMITED: the kernel dropped more packets for one reason than drops_rate. LABELS is no outcome: the
 * labels that the program has made.
 */
enum counter {
	SEEN,
	DELIVERED,
	WIRE_BYTES,
	FILTERED,
	LOST_FULL,
	LOST_CONTENDED,
	LOST_START,
	DUPLICATE,
	OTHER_INTERFACES,
	UNATTRIBUTED,
	LIMITED,
	LABELS,
};

/* Blocks of local types (most significant bit set): never in a file, always rewritten by Python. */
#define BLOCK_PACKET 6
#define BLOCK_UPCALL 0x80000001 /* an Enhanced Packet Block whose options are a struct upcall */
/*
 * A packet with a label whose frame could not be read to its end, or whose checksum must be computed;
 * BLOCK_CUT | length of its options << CUT_OPTIONS_BIT. They are where they would be in the complete
 * block, and the checksum, as in struct upcall, is in place of the size at the end.
 */
#define BLOCK_CUT	0x80000002
#define CUT_OPTIONS_BIT 8

#define BLOCK_DROP 0x80000003 /* a packet that the kernel dropped: a struct dropped, then a struct upcall */

/* The interfaces of dropped packets, in each namespace: numbers that no interface has. */
#define DROPS_ETHERNET 0xffffffff
#define DROPS_RAW      0xfffffffe

/*
 * The beginning of a packet's block: an Enhanced Packet Block (draft-ietf-opsawg-pcapng, 4.3).
 * After it there are the frame, padded to 4 bytes, the options, and the size again.
 */
struct block_head {
	u32 type;	  /* BLOCK_PACKET, BLOCK_UPCALL, BLOCK_CUT | length of options << CUT_OPTIONS_BIT */
	u32 size;	  /* of the block in bytes, a multiple of 4 */
	u32 interface_id; /* BLOCK_UPCALL: row of `counters` */
	u32 time_high;	  /* ns since the epoch, the upper half */
	u32 time_low;
	u32 cap_len;
	u32 wire_len;
};

/* The key of a label: process, interface and direction. */
struct key {
	u64 net;     /* net_cookie of the network namespace of the interface: unique until reboot */
	u32 ifindex; /* interface within that namespace */
	u32 direction;
	u32 tgid;  /* process id; 0 if not known */
	u32 tid;   /* thread id; 0 if not known */
	u64 start; /* of the thread, ns since boot, because ids are reused */
	u32 via;
	u32 linked; /* packets have an identifier, because they can be on several interfaces */
};

/* A label: what the program writes into all packets of a key. */
struct label {
	/* The label is valid only while thread, interface and process have these names. */
	u8 comm[16];
	u8 device[16];
	u8 process[16];
	u32 interface_id; /* interface block in the file */
	u32 slot;	  /* row of `counters` */
	u32 snaplen;	  /* bytes of the frame to keep; 0: drop the packet */
	u32 filter; /* number of the packet filter for its packets; 0: none. Of dropped packets: whether they are UNATTRIBUTED */
	u32 generation;	 /* of its rules */
	u32 options_len; /* bytes of `options`, a multiple of 4; 0: Python decides each time */
	u32 flags_at;	 /* offset in `options` of epb_flags; 8 bytes later: epb_packetid */
	u8 spare[4];
	u64 headers_only; /* 1: nothing behind the last known header is kept (payload.h) */
	u8 options[OPTIONS_MAX];
};

/* An interface that Python knows: its row of counters, and whether it is excluded. */
struct device_key { /* the same as the beginning of struct key */
	u64 net;
	u32 ifindex;
	u32 direction;
};
struct device {
	u8 name[16]; /* the entry is valid only while the interface has this name */
	u32 slot;
	u32 unwanted;
	u32 interface_id; /* interface block in the file, */
	u32 generation;	  /* for labels of this generation */
};

/* A thread that uses a socket. */
struct user {
	u32 tgid;
	u32 tid;
	u64 start; /* ns since boot */
	u64 comm[2];
	u64 process[2]; /* name of the thread group leader: the process name */
};

/* The last user of a socket, and the values that identify the socket. */
struct owner {
	/*
	 * First: where an entry of a map is used again, this is written before the rest, so who has copied
	 * the user before that sees it (copy_user).
	 */
	u64 sk;
	struct user user;
	u64 inode;    /* of the open socket */
	u64 identity; /* hash and ports, which do not change when the socket is closed */
	/*
	 * In ns since boot. Of a flow: when its socket was closed; 0: it is open. Of a socket: when
	 * its user was recorded, or SHARED_AT_USE.
	 */
	u64 time;
	u64 conntrack; /* of a flow on the wire: the entry that has translated it, see conntrack_of */
	/*
	 * Of a flow on the wire: how its socket was bound (binding_of); of two senders: the last socket. Of a
	 * connection: OF_REQUEST, or 0. Of a socket: the version of the record, which is never the same for another
	 * user or another name, and OF_SEVERAL.
	 */
	u64 binding;
};

/*
 * The flow of a socket or packet: addresses and ports as seen from this host. IPv4 addresses are in
 * the first four bytes.
 */
struct flow {
	u64 net; /* net_cookie */
	u64 local[2];
	u64 remote[2];
	u16 local_port;
	u16 remote_port;
	u8 protocol;
	u8 family;
	u16 on_wire; /* 1 + VLAN: as in a sent packet, after translation; 0: as in the socket */
};

/* Bits of the key of a group: different from inode numbers, and from the keys that Python makes. */
#define IS_GROUP	     (1ULL << 63)
#define MADE_BY_PYTHON	     (1ULL << 62)
#define GROUP_NUMBER(number) ((number) & ~MADE_BY_PYTHON | IS_GROUP)

/*
 * The candidate sockets of a packet (SO_REUSEPORT, multicast), or one socket that several processes
 * have open.
 */
struct group {
	u64 references; /* number of references to the sockets at the last lookup, */
	u64 time;	/* and the time of that lookup, ns since boot */
	u64 count;
	u64 sks[GROUP_MAX];
	u64 inodes[GROUP_MAX]; /* OPEN_IN_SEVERAL: several processes may have it open */
};

/* A packet in fragments: only the first one has ports. */
struct fragment {
	u64 net;
	u64 local[2];
	u64 remote[2];
	u32 id;
	u16 protocol;
	u16 family; /* 0: not in fragments */
};

struct counters {
	u64 of[COUNTERS];
};

/* A process of which Python wants to know the descendants (`root`), or one of these. */
struct descendant {
	u64 start; /* of the process, ns since boot, or somewhat less */
	u64 root;  /* process id */
};

/* The end of a BLOCK_UPCALL: all data that Python needs to make a label and an interface. */
struct upcall {
	struct key key;
	u8 comm[16];
	u8 device[16];
	u8 process[16];
	u8 mac[8];	 /* hardware address of the interface, addr_len bytes */
	u64 packet_id;	 /* epb_packetid; 0: none */
	u64 sk;		 /* if Python must look up the process: the socket, */
	u64 inode;	 /* its inode number (0: none), */
	u64 identity;	 /* and its identity, as in struct owner */
	u32 checksum;	 /* see skbcapd/capture/checksum.py */
	u32 netns;	 /* inode number of the network namespace */
	u32 flags;	 /* epb_flags bits of this packet */
	u16 device_type; /* ARPHRD_* */
	u8 addr_len;
	u8 spare[1];
	u64 payload; /* offset of the payload in the frame */
};

/* Of a BLOCK_DROP, after the frame; then a struct upcall. */
struct dropped {
	u64 location;  /* where it was dropped: a return address */
	u32 reason;    /* as in the kernel; DROP_REASON_UNKNOWN */
	u32 ifindex;   /* interface where it was dropped; 0: unknown */
	u8 device[16]; /* its name; empty: unknown */
};

/*
 * Blocks, then slack that only the verifier can see being written, then the offsets of the first
 * local blocks.
 */
struct segment {
	u8 bytes[SEGMENT_SIZE + SLACK];
	u64 upcall_at[UPCALLS_LISTED]; /* segment number << 32 | offset: entries may be old */
};

/* The state of a segment. The reader resets it before it moves `tail`. */
struct segment_state {
	u64 used;      /* its end once sealed; 0 while open */
	u64 committed; /* bytes that are completely written */
	u64 upcalls;   /* local blocks in it */
	u64 begin;     /* offset of its first block, below DISK_BLOCK; and `placed` << 32 */
};

struct control {
	/* Written for each packet. */
	u64 cursor; /* segment number << 32 | offset of the next block */
	u64 pad0[7];
	/* Written by Python. */
	u64 tail;	   /* segments before this number are free */
	u64 sleeping;	   /* enum sleep; the program sets SLEEP_NOT when it wakes Python */
	u64 wake_at;	   /* each new segment from this number on wakes Python */
	u64 clock_offset;  /* CLOCK_REALTIME - CLOCK_MONOTONIC, ns */
	u64 page_base;	   /* address of the first struct page; 0: only linear parts are captured */
	u64 address_base;  /* address of the byte that page_base describes */
	u64 entry_regs;	   /* offset in a task's stack of the system call number; 0: unknown */
	u64 stack_size;	   /* THREAD_SIZE */
	u64 snaplen;	   /* for packets without a label */
	u64 device_filter; /* version of all device.unwanted; 0: no interface is excluded */
	u64 nothing;	   /* always 0; see FORGET */
	u64 udp_table;	   /* address of struct udp_table; since Linux 6.2 in struct net */
	u64 dedup;	   /* 1: a packet that was captured before is a DUPLICATE */
	u64 fill;	   /* 1: Python computes checksums */
	u64 late;	   /* 1: the hook is after the queue, where `current` can be any process */
	u64 own_net;	   /* net_cookie of the self-test: its packets pass all filters; 0: none */
	u64 filtered;	   /* 1: there is a packet filter 0, for all packets */
	u64 generation;	   /* of the rules: labels of another generation are not valid */
	u64 wired;	   /* number of changes of flows on the wire (written by the program) */
	u64 headers_only;  /* as in struct label, for packets without a label */
	u64 drops_rate;	   /* dropped packets of one reason per second; see drop_frame.h */
	u64 naming;	   /* generation << 32 | which labels the program makes (label.h); 0: none */
	u64 placed;	   /* of the next segment; see begin_of_next */
	u64 pad1[1];
	u64 via_texts[16]; /* of each enum via below VIA_GROUP: two words, the end of its comment */
	/* Written by both. */
	u64 questions; /* number of sockets that Python may still look up; set in each drain */
	u64 pad2[7];
	struct segment_state segments[SEGMENT_COUNT];
};

/*
 * Sizes with names are 1 for the maps of bcc; skbcapd/kernel/loader.py makes the real maps, with
 * the real sizes.
 */
BPF_F_TABLE("array", u32, struct segment, segments, SEGMENTS_MADE, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct control, controls, 1, BPF_F_MMAPABLE);
BPF_TABLE("lru_hash", struct key, struct label, labels, LABELS_MAX);
BPF_TABLE("lru_hash", struct device_key, struct device, devices, DEVICES_MAX);
BPF_TABLE("lru_hash", u64, struct owner, owners, OWNERS_MAX);
BPF_TABLE("lru_hash", struct flow, struct owner, flows, FLOWS_MAX);
BPF_TABLE("lru_hash", u64, struct user, holders, HOLDERS_MAX);
BPF_TABLE("lru_hash", u64, struct group, groups, GROUPS_MAX);
/* By process id: the time of its last fork, ns since boot; 0: never. */
BPF_TABLE("lru_hash", u32, u64, forks, FORKS_MAX);
BPF_TABLE("lru_hash", struct fragment, struct owner, fragments, FRAGMENTS_MAX);
BPF_TABLE("lru_hash", u32, struct descendant, descendants, DESCENDANTS_MAX); /* by process id */
/* By tgid / 64: a bit for each process that has a label of the program. */
BPF_F_TABLE("array", u32, u64, labelled, LABELLED_WORDS, BPF_F_MMAPABLE);
BPF_PERCPU_ARRAY(counters, struct counters, SLOTS);
BPF_RINGBUF_OUTPUT(wakeups, 1);

/*
 * Adds one to a counter of a slot. Atomic, because a softirq can interrupt a system call that is
 * counting on the same CPU.
 */
static inline void count(u32 slot, enum counter counter)
{
	struct counters *row = counters.lookup(&slot);

	if (row)
		__sync_fetch_and_add(&row->of[counter], 1);
}

/* Counts a packet of a slot as delivered, with its length on the wire. */
static inline void count_delivered(u32 slot, u32 wire_len)
{
	struct counters *row = counters.lookup(&slot);

	if (row) {
		__sync_fetch_and_add(&row->of[DELIVERED], 1);
		__sync_fetch_and_add(&row->of[WIRE_BYTES], wire_len);
	}
}
