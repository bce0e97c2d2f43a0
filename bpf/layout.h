/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What kernel and Python share: the maps, and the records in them.
 *
 * Every size in CAPITALS is a -D from skbcapd/kernel/abi.py, which also holds the Python view of each record;
 * skbcapd/kernel/program.py compares the sizes of both when the program is loaded.
 */

enum direction { IN = 1, OUT = 2 };

/* How the process of a packet was found; the names are in skbcapd/pcapng/comment.py. */
enum via {
	VIA_CURRENT,   /* at work on the packet's socket, in a system call */
	VIA_SOCKET,    /* the socket's last user */
	VIA_FLOW,      /* the last user of the socket that the addresses and ports belong to */
	VIA_INODE,     /* Python knows who holds the socket */
	VIA_PATH,      /* known from where the packet was before, on this machine */
	VIA_KERNEL,    /* */
	VIA_FORWARDED, /* */
	VIA_UNKNOWN,   /* */
	VIA_GROUP, /* one of several, of whom it is said what they have in common: tgid, comm, or neither; for a start
			   they have Python's number for them */
	VIA_UNRESOLVED, /* Python shall find out: never in a label */
};

/* Which packet wakes Python; see struct control. A buffer that fills up always does. */
enum sleep { SLEEP_NOT, SLEEP_UNTIL_PACKET, SLEEP_UNTIL_UPCALL };

/* What happened to the packets of an interface slot; indexes of struct counters. */
enum counter { SEEN, DELIVERED, FILTERED, LOST_FULL, LOST_CONTENDED, LOST_START, DUPLICATE };

/* Blocks of local types (most significant bit set): never in a file, always rewritten by Python. */
#define BLOCK_PACKET 6
#define BLOCK_UPCALL 0x80000001 /* an Enhanced Packet Block whose options are a struct upcall */
#define BLOCK_CUT    0x80000002 /* a labelled one whose frame could not be read to its end */

/* The beginning of a packet's block: an Enhanced Packet Block (draft-ietf-opsawg-pcapng, 4.3). Behind it come the frame, padded to
   4 bytes, the options, and the size again. */
struct block_head {
	u32 type;	  /* BLOCK_PACKET, BLOCK_UPCALL, BLOCK_CUT */
	u32 size;	  /* of the block in bytes, a multiple of 4 */
	u32 interface_id; /* of BLOCK_UPCALL: row of `counters`; of BLOCK_CUT: number of the label */
	u32 time_high;	  /* ns since the epoch, the upper half */
	u32 time_low;
	u32 cap_len;
	u32 wire_len;
};

/* The end of a BLOCK_CUT, over that of its options. */
struct cut_tail {
	u64 packet_id; /* epb_packetid, if the label's key is `linked` */
	u32 unused;
	u32 checksum; /* as in struct upcall */
	u32 flags;    /* as in struct upcall */
	u32 size;     /* of the block */
};

/* Whose packet, on which device, which way: what a label is found by. */
struct key {
	u64 net;     /* net_cookie of the device's network namespace: unique until reboot */
	u32 ifindex; /* device within that namespace */
	u32 direction;
	u32 tgid;  /* process; 0 when not known */
	u32 tid;   /* thread; 0 when not known */
	u64 start; /* of the thread, ns since boot: ids are used again */
	u32 via;
	u32 linked; /* packets carry an identifier, because more than one device may see them */
};

/* What Python stamps on the packets of a key. */
struct label {
	u8 comm[16];	  /* the label holds only while thread, device and process keep these names */
	u8 device[16];	  /* */
	u8 process[16];	  /* */
	u32 id;		  /* Python's number for it */
	u32 interface_id; /* interface block in the file */
	u32 slot;	  /* row of `counters` */
	u32 snaplen;	  /* bytes of frame to keep; 0: the packet is not wanted */
	u32 filter;	  /* number of the packet filter that chooses among its packets; 0: none */
	u32 generation;	  /* of the rules that it comes from */
	u32 options_len; /* bytes of `options` in use, a multiple of 4; 0: Python is asked about each packet */
	u32 flags_at; /* where in `options` the u32 value of epb_flags lies; 8 behind it the u64 epb_packetid, if
			     the key is `linked` */
	u8 options[OPTIONS_MAX];
};

/* A device that Python has seen: where to count its packets, and whether they are wanted at all. */
struct device_key { /* as struct key begins: the one is looked up by the other */
	u64 net;
	u32 ifindex;
	u32 direction;
};
struct device {
	u8 name[16]; /* the entry holds only while the device keeps this name */
	u32 slot;
	u32 unwanted;
};

/* A thread that uses a socket. */
struct user {
	u32 tgid;
	u32 tid;
	u64 start; /* ns since boot */
	u64 comm[2];
	u64 process[2]; /* name of the thread group's leader: what people call the process */
};

/* The last user of a socket, and by what to know the socket again. */
struct owner {
	struct user user;
	u64 inode;    /* of the open socket */
	u64 identity; /* hash and ports, which stay when the socket is closed */
	u64 sk;
	u64 time; /* of a flow: when its socket was closed, ns since boot; else 0. Of a socket: when it was learned; SHARED_AT_USE */
};

/* Whose packets belong to a socket: addresses and ports as seen from this host. IPv4 addresses stand in the first four bytes. */
struct flow {
	u64 net; /* net_cookie */
	u64 local[2];
	u64 remote[2];
	u16 local_port;
	u16 remote_port;
	u8 protocol;
	u8 family;
	u16 on_wire; /* 1: as on a packet that left, whoever translated it; 0: as the socket has it */
};

/* Its key: no inode's number, and none that Python makes. */
#define GROUP_NUMBER(number) ((number) & ~(1ULL << 62) | 1ULL << 63)

/* The sockets of which any may get a packet: SO_REUSEPORT, multicast. Or one that several processes have open. */
struct group {
	u64 references; /* how many led to the sockets when Python was asked, */
	u64 time;	/* and when that was, ns since boot */
	u64 count;
	u64 sks[GROUP_MAX];
	u64 inodes[GROUP_MAX]; /* OPEN_IN_SEVERAL marks one that several processes may have open */
};

/* A packet in fragments: only the first has ports. */
struct fragment {
	u64 net;
	u64 local[2];
	u64 remote[2];
	u32 id;
	u16 protocol;
	u16 family; /* 0: not in fragments */
};

/* What the process of a followed packet has to do with it. */
enum role { SENDS, GETS };

/* Where a followed packet comes from. */
struct origin {
	u64 role;	/* enum role of the process */
	u64 sk;		/* the socket that it uses, as far as known; the listener of a SYN-ACK's */
	u64 identity;	/* of that, where Python is asked whose it is; else 0 */
	u64 is_request; /* a SYN-ACK: who will accept the connection is not certain */
};

/* A packet on its way through the machine, by its sk_buff: what it is, where it was, whose it is. */
struct sighting {
	u64 skb;		     /* address of its sk_buff */
	u64 head;		     /* address of its data: the same for the copies that a bridge makes */
	u64 print;		     /* of what no device changes, nor NAT */
	u64 id;			     /* epb_packetid */
	u64 time;		     /* ns since boot */
	u64 places[SIGHTING_PLACES]; /* devices and directions it was seen at */
	u64 count;		     /* of places in use */
	u64 taken;		     /* whether it was captured at one of them */
	u64 sk;			     /* the socket that it left on */
	struct user user;
	u64 via;
	struct origin origin;
};

/* Whether a packet stands in the file: Python may still refuse what has no label. */
enum taken { NOT_TAKEN, ASKED, TAKEN };

struct counters {
	u64 of[COUNTERS];
};

/* The trailer of a BLOCK_UPCALL: all that Python needs to make a label and an interface. */
struct upcall {
	struct key key;
	u8 comm[16];
	u8 device[16];
	u8 process[16];
	u8 mac[8];	 /* the device's hardware address, addr_len bytes of it */
	u64 packet_id;	 /* epb_packetid; 0: none */
	u64 sk;		 /* of a packet whose process Python shall find: its socket, */
	u64 inode;	 /* that socket's inode; 0: none, */
	u64 identity;	 /* and its identity, as in struct owner */
	u32 checksum;	 /* see fill_checksum in skbcapd/capture/capture.py */
	u32 netns;	 /* inode number of the network namespace */
	u32 flags;	 /* epb_flags bits of this packet */
	u16 device_type; /* ARPHRD_* */
	u8 addr_len;
	u8 spare[1];
};

/* Blocks, then slack that only the verifier can see being written, then where the first local blocks start. */
struct segment {
	u8 bytes[SEGMENT_SIZE + SLACK];
	u64 upcall_at
		[UPCALLS_LISTED]; /* segment number << 32 | offset: an entry of an earlier round tells itself apart */
};

/* One segment's progress. The reader resets it and only then moves `tail`. */
struct segment_state {
	u64 used;      /* bytes in it once sealed; 0 while open */
	u64 committed; /* bytes whose writers are done */
	u64 upcalls;   /* local blocks in it */
};

struct control {
	/* Written by every packet. */
	u64 cursor; /* segment number << 32 | offset: where the next block goes */
	u64 pad0[7];
	/* Written by Python. */
	u64 tail;	  /* segments before this number are free again */
	u64 sleeping;	  /* enum sleep: which packet wakes Python; the program sets NOT when it does */
	u64 wake_backlog; /* sealed segments waiting from which on each seal wakes Python */
	u64 clock_offset; /* CLOCK_REALTIME - CLOCK_MONOTONIC, ns */
	u64 page_base;	  /* address of the first struct page; 0: paged frames are cut at their linear part */
	u64 address_base; /* address of the byte that page_base describes */
	u64 entry_regs; /* bytes from the bottom of a task's stack to its user's system call number; 0: unknown */
	u64 stack_size;	   /* THREAD_SIZE */
	u64 snaplen;	   /* for packets without a label */
	u64 device_filter; /* not 0: look at struct device.unwanted before all else; it rises as those change */
	u64 nothing;	   /* always 0; see FORGET */
	u64 udp_table; /* address of the kernel's struct udp_table; on newer kernels each namespace knows its own */
	u64 dedup;	/* 1: count a packet that was seen before, and do not take it again */
	u64 fill;	/* 1: Python completes checksums */
	u64 late;	/* 1: frames are taken behind the queue, where `current` may be anybody */
	u64 own_net;	/* network namespace of the self-test, whose packets no filter refuses; 0: none */
	u64 filtered;	/* 1: packet filter 0 is there, and asked about every packet */
	u64 generation; /* of the rules: labels of another one do not hold */
	u64 wired;	/* 1: there are flows on the wire (written by the program) */
	u64 pad1[5];
	/* Written by both. */
	u64 questions; /* how many more sockets Python may be asked about; it sets the number anew with each round */
	u64 pad2[7];
	struct segment_state segments[SEGMENT_COUNT];
};

/* The sizes that have names are 1 where bcc makes maps; the maps in use are made by skbcapd/kernel/loader.py, of the true sizes. */
BPF_F_TABLE("array", u32, struct segment, segments, SEGMENTS_MADE, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct control, controls, 1, BPF_F_MMAPABLE);
BPF_TABLE("lru_hash", struct key, struct label, labels, LABELS_MAX);
BPF_TABLE("lru_hash", struct device_key, struct device, devices, DEVICES_MAX);
BPF_TABLE("lru_hash", u64, struct owner, owners, OWNERS_MAX);
BPF_TABLE("lru_hash", struct flow, struct owner, flows, FLOWS_MAX);
BPF_TABLE("lru_hash", u64, struct user, holders, HOLDERS_MAX);
BPF_TABLE("lru_hash", u64, struct group, groups, GROUPS_MAX);
BPF_TABLE("lru_hash", u32, u64, forks,
	  FORKS_MAX); /* process to when it last made another one, ns since boot; 0: never */
BPF_TABLE("lru_hash", struct fragment, struct owner, fragments, FRAGMENTS_MAX);
BPF_ARRAY(sightings, struct sighting, SIGHTINGS);
BPF_ARRAY(heads, u64, SIGHTINGS); /* the first sk_buff with data at an address */
BPF_PERCPU_ARRAY(counters, struct counters, SLOTS);
BPF_RINGBUF_OUTPUT(wakeups, 1);

/* Adds one to a counter of a slot. Atomic: a softirq may interrupt a system call that is counting on the same CPU. */
static inline void count(u32 slot, enum counter counter)
{
	struct counters *row = counters.lookup(&slot);

	if (row)
		__sync_fetch_and_add(&row->of[counter], 1);
}
