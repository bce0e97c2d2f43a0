/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What kernel and Python share: the maps, and the records in them.
 *
 * Every size in CAPITALS is a -D from skbcapd/layout.py, which also holds the Python view of each record;
 * skbcapd/loader.py compares the sizes of both when the program is loaded.
 */

/* A value that the compiler knows too well is optimised until the verifier no longer sees its bound:
   launder it, then mask. `mask` is one less than a power of two. */
#define BOUND(value, mask)                         \
	({                                         \
		u64 _bounded = (value);            \
		asm volatile("" : "+r"(_bounded)); \
		_bounded &(mask);                  \
	})

/* Adds a zero that the verifier cannot know to be one: it then takes all ways to the end of a loop's turn for the same
   state, and verifies the next turn once. Without this the ways multiply. */
#define FORGET(value) ((value) += nothing)

/* Shared words are read once, where written, not when the compiler likes. */
#define ONCE(word) (*(volatile typeof(word) *)&(word))

enum direction { IN = 1, OUT = 2 };

/* How the process of a packet was found; the names are in skbcapd/label.py. */
enum via { VIA_CURRENT = 0, VIA_SOCKET = 1, VIA_KERNEL = 2, VIA_FORWARDED = 3, VIA_UNKNOWN = 4 };

/* What happened to the packets of an interface slot; indexes of struct counters. */
enum counter { SEEN, DELIVERED, FILTERED, LOST_FULL, LOST_CONTENDED, LOST_START };

/* Blocks of local types (most significant bit set): never in a file, always rewritten by Python. */
#define BLOCK_PACKET 6
#define BLOCK_UPCALL 0x80000001 /* an Enhanced Packet Block whose options are a struct upcall */
#define BLOCK_CUT    0x80000002 /* a labelled one whose frame could not be read to its end */

/* Whose packet, on which device, which way: what a label is found by. */
struct key {
	u64 net;     /* net_cookie of the device's network namespace: unique until reboot */
	u32 ifindex; /* device within that namespace */
	u32 direction;
	u32 tgid; /* process; 0 when not known */
	u32 tid;  /* thread; 0 when not known */
	u64 via;
};

/* What Python stamps on the packets of a key. */
struct label {
	u8 comm[16];	  /* the label holds only while thread and device keep these names */
	u8 device[16];	  /* */
	u32 id;		  /* Python's number for it */
	u32 interface_id; /* interface block in the file */
	u32 slot;	  /* row of `counters` */
	u32 snaplen;	  /* bytes of frame to keep; 0: the packet is not wanted */
	u32 options_len;  /* bytes of `options` in use, a multiple of 4 */
	u32 flags_at;	  /* where in `options` the u32 value of epb_flags lies */
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

/* The last user of a socket, and by what to know the socket again. */
struct owner {
	u32 tgid;
	u32 tid;
	u64 comm[2];
	u64 inode;    /* of the open socket */
	u64 identity; /* hash and ports, which stay when the socket is closed */
};

struct counters {
	u64 of[COUNTERS];
};

/* The trailer of a BLOCK_UPCALL: all that Python needs to make a label and an interface. */
struct upcall {
	struct key key;
	u8 comm[16];
	u8 device[16];
	u8 mac[8];	 /* the device's hardware address, addr_len bytes of it */
	u32 netns;	 /* inode number of the network namespace */
	u32 flags;	 /* epb_flags bits of this packet */
	u16 device_type; /* ARPHRD_* */
	u8 addr_len;
	u8 spare[5];
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
	u64 sleeping;	  /* 1: Python wants to be woken by the next packet */
	u64 wake_backlog; /* sealed segments waiting from which on each seal wakes Python */
	u64 clock_offset; /* CLOCK_REALTIME - CLOCK_MONOTONIC, ns */
	u64 page_base;	  /* address of the first struct page; 0: paged frames are cut at their linear part */
	u64 address_base; /* address of the byte that page_base describes */
	u64 entry_regs; /* bytes from the bottom of a task's stack to its user's system call number; 0: unknown */
	u64 stack_size;	   /* THREAD_SIZE */
	u64 snaplen;	   /* for packets without a label */
	u64 device_filter; /* 1: look at struct device.unwanted before all else */
	u64 nothing;	   /* always 0; see FORGET */
	u64 pad1[5];
	struct segment_state segments[SEGMENT_COUNT];
};

BPF_F_TABLE("array", u32, struct segment, segments, SEGMENT_COUNT, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct control, controls, 1, BPF_F_MMAPABLE);
BPF_TABLE("lru_hash", struct key, struct label, labels, LABELS_MAX);
BPF_TABLE("lru_hash", struct device_key, struct device, devices, DEVICES_MAX);
BPF_TABLE("lru_hash", u64, struct owner, owners, OWNERS_MAX);
BPF_PERCPU_ARRAY(counters, struct counters, SLOTS);
BPF_RINGBUF_OUTPUT(wakeups, 1);

/* Adds one to a counter of a slot. Atomic: a softirq may interrupt a system call that is counting on the same CPU. */
static inline void count(u32 slot, enum counter counter)
{
	struct counters *row = counters.lookup(&slot);

	if (row)
		__sync_fetch_and_add(&row->of[counter], 1);
}
