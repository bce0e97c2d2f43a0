/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The record of a packet: its addresses in the kernel, its interface, and all results of the
 * stages.
 *
 * It is in a per-CPU map, because the stack is too small, and is passed from one program to the
 * next.
 */

#define GUARDS	      8 /* a power of two */
#define PAYLOAD_FOUND (1ULL << 32)

/* Whether addresses prove the receiver on an interface (guard.h). */
struct guard {
	u64 dev;
	u64 until; /* ns since boot, without suspend */
	u64 found; /* 0: they do; otherwise GUARD_* */
};

enum role { SENDS, GETS };

/* The origin of a followed packet. */
struct origin {
	u64 role;	/* enum role of the process */
	u64 sk;		/* the socket that it uses, if known; for a SYN-ACK the listener */
	u64 identity;	/* of that socket, if Python must look up its process; otherwise 0 */
	u64 version;	/* of the record of the user of `sk`; 0: it is not from there */
	u64 is_request; /* a SYN-ACK: the process that will accept the connection is not certain */
};

#define ENTERED_BITS 4

/*
 * A packet on one of the interfaces that it passes. It is in the record of the packet and not in
 * variables, because the verifier does not follow values in maps: all paths that have set it have
 * one state after a barrier(), and the code after that is verified once.
 */
struct passage {
	u64 place;    /* namespace, interface, and direction */
	u64 sk;	      /* the socket on which it is sent, if any */
	u64 is_known; /* it was seen before */
	u64 follows;  /* it keeps the process that was found then */
	u64 linked;   /* it can be on another interface, too */
	struct origin origin;
};

/*
 * The label of a key that the last packet had, too: a copy of it is cheaper than a lookup. It is valid as the
 * label itself is: while its generation and names are those of the packet.
 */
struct recent {
	struct key key; /* of the last packet */
	u64 is_kept;	/* 1: the label is that of the key */
	struct label label;
};

struct packet {
	struct reservation reservation; /* of the block */
	struct frame frame;
	u32 size;			/* of the block */
	u32 slot;			/* row of `counters` */
	u32 is_upcall;			/* 1: Python will write the block again */
	u32 checksum;			/* as in struct upcall */
	u32 named;			/* 1: the label stage has seen it */
	u64 dev;			/* net_device */
	u64 net;			/* its network namespace */
	u64 sk;				/* its socket; later the one whose user is looked up */
	u64 inode;			/* of that socket; 0: none */
	u64 version;			/* of the record with its user; 0: it is not from there */
	u64 address;			/* of its sk_buff */
	u64 head;			/* skb->head: start of its memory */
	u64 data;			/* skb->data: current position of the network stack in it */
	u64 linear_end;			/* address of the end of the linear part */
	u64 time;			/* ns since boot, without suspend */
	u64 packet_id;			/* epb_packetid; 0: none */
	u64 payload;			/* PAYLOAD_FOUND | its offset in the frame; 0: not searched */
	u64 filter;			/* number of the packet filter to run, then of the last one */
	u64 is_known;			/* seen before, on another interface */
	u64 taken;			/* enum taken, on that interface */
	u64 fingerprint;		/* hash of the fields that neither interfaces nor NAT change */
	u64 refused;			/* excluded, so it is only followed: slot * 2 + 1; else 0 */
	u64 unwanted;			/* its interface is excluded: slot * 2 + 1; else 0 */
	u64 verdict;			/* control->device_filter when `unwanted` was set */
	u64 guard;			/* not 0: its addresses do not prove its receiver (guard.h) */
	u64 entered[1 << ENTERED_BITS]; /* flows that this processor entered lately: hash_sent in path.h */
	struct guard guards[GUARDS];	/* results for some interfaces */
	struct guard other;		/* the result for a namespace, in `dev` */
	u64 sent[3];			/* the last recorded use of a socket: see note_use */
	struct key key;
	struct recent recent;
	struct user user;
	struct passage passage;
	u64 device_name[2];
	struct shared shared;
	struct workspace work;
	struct group group; /* its candidates */
	struct skb skb;	    /* a copy, if not IN_PLACE; later of the skbs in frag_list */
};
BPF_PERCPU_ARRAY(packets, struct packet, 4);
#define TAPPED 3 /* the record of what an interface above another one receives: tap.h */

/*
 * The record of a processor for one direction; 0 is for the queue, if frames are captured at the
 * driver. All stages of a direction are called by one program, and on a processor the kernel does not
 * start a program again before it has returned: it counts the packet as missed (`active` of struct
 * bpf_prog in __bpf_trace_run, for kprobes bpf_prog_active in trace_call_bpf; kernel/trace/bpf_trace.c).
 * That is also true where another task preempts the program (PREEMPT_RT, in tracepoints since Linux
 * 7), because a program stays on its processor. Without that check (tracepoints before Linux 6.1),
 * it cannot be preempted, and no packet of a direction is passed on inside the hook of another one.
 * The filter of a tap has no such check, and a record of its own: so it is not used with PREEMPT_RT.
 */
static inline struct packet *get_packet(u32 direction)
{
#ifdef TAP
	direction = TAPPED;
#endif
	return packets.lookup(&direction);
}

/* The packet's sk_buff from the program's first argument: in place, or copied. */
static inline struct skb *get_skb(struct packet *packet, void *argument)
{
#ifndef IN_PLACE
	READ(&packet->skb, sizeof(packet->skb), argument);
	return &packet->skb;
#elif defined(KPROBE)
	return (struct skb *)memory_at((u64)argument, SKB_TYPE);
#else
	struct skb *skb = argument;

	IN_KERNEL(skb);
	return skb;
#endif
}

/* The packet's sk_buff in the program of a later stage: a copy exists. */
static inline struct skb *get_skb_again(struct packet *packet, void *argument)
{
#ifndef IN_PLACE
	return &packet->skb;
#else
	return get_skb(packet, argument);
#endif
}

/*
 * The first bytes of the packet's socket, in place or copied; NULL without a socket. Only single
 * fields may be read.
 */
static inline struct sock_head *socket_of(struct packet *packet, struct skb *skb)
{
#ifndef IN_PLACE
	if (!packet->sk || READ(&packet->work.sock, sizeof(packet->work.sock), packet->sk))
		return NULL;
	return &packet->work.sock;
#else
	return SKB(skb, struct sock_head *, SK);
#endif
}

/*
 * The packet's interface. The verifier compares the names of all types of the kernel (0.5 ms) whenever it follows a
 * read of a pointer to an object, as in a sk_buff or a task. So the address is taken as a number where it is known.
 */
static inline u8 *device_of(struct packet *packet, struct skb *skb)
{
#ifdef RDONLY_CAST
	return memory_at(packet->dev, DEVICE_TYPE);
#else
	return SKB(skb, u8 *, DEV);
#endif
}

/* Sets the record of a new packet, from its sk_buff and its interface. */
static inline void init_packet(struct packet *packet, struct skb *skb, void *argument, u32 direction)
{
	u8 *dev = SKB(skb, u8 *, DEV);
	u8 *net = FIELD(u8 *, dev, DEV_NET);
	u32 ifindex = FIELD(u32, dev, DEV_IFINDEX);
	u64 cookie = FIELD(u64, net, NET_COOKIE), name0 = FIELD(u64, dev, DEV_NAME),
	    name1 = FIELD(u64, dev, DEV_NAME + 8);

	if (packet->key.ifindex != ifindex || packet->key.net != cookie || packet->device_name[0] != name0 ||
	    packet->device_name[1] != name1)
		packet->verdict = 0;
	packet->inode = packet->version = packet->packet_id = packet->is_known = packet->filter =
		packet->refused = packet->payload = packet->named = 0;
	packet->time = bpf_ktime_get_ns();
	packet->dev = (u64)dev;
	packet->net = (u64)net;
	packet->sk = SKB(skb, u64, SK);
	/*
	 * IN_PLACE, the verifier knows these fields as pointers, and restricts arithmetic on
	 * them. Values from a map are numbers.
	 */
	packet->address = (u64)argument;
	packet->head = SKB(skb, u64, HEAD);
	packet->data = SKB(skb, u64, DATA);
	barrier();
	packet->linear_end = packet->data + SKB(skb, u32, LEN) - SKB(skb, u32, DATA_LEN);
	packet->key.direction = direction;
	packet->key.ifindex = ifindex;
	packet->key.net = cookie;
	packet->device_name[0] = name0;
	packet->device_name[1] = name1;
}

/* The flow of a sent packet, in its workspace. */
static inline void flow_of_sent(struct packet *packet, struct skb *skb, struct headers *headers)
{
	u64 at = packet->head + SKB(skb, u16, NETWORK_HEADER);

	flow_of_packet(at, packet->linear_end - at, SKB(skb, u16, PROTOCOL), OUT, &packet->work.flow,
		       headers);
	packet->work.flow.net = packet->key.net;
}
