/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A packet as it is met: where it is, on which device, and all that is found out about it on its way.
 *
 * It lies in a per-CPU record, as there is room for half of it on the stack, and goes from one program to the next.
 */

/* Whether addresses prove the receiver on a device: see guard.h. */
#define GUARDS 8 /* a power of two */
struct guard {
	u64 dev;
	u64 until; /* ns since boot */
	u64 is_up;
};

struct packet {
	struct reservation room; /* in the segments, of the block */
	struct frame frame;
	u32 size;      /* of the block */
	u32 slot;      /* row of counters */
	u32 label;     /* its number; valid if not `is_upcall` */
	u32 is_upcall; /* Python will write the block anew */
	u32 checksum;
	u32 flags;
	u64 dev;   /* net_device */
	u64 net;   /* its network namespace */
	u64 sk;	   /* the packet's socket; then the one whose user was looked for, whose head is in `work` */
	u64 inode; /* of that one; 0: none */
	u64 address;	/* of its sk_buff */
	u64 head;	/* of the data's memory */
	u64 data;	/* where the stack has arrived in it */
	u64 linear_end; /* of the linear part */
	u64 time;	/* ns since boot, suspend left out */
	u64 packet_id;	/* epb_packetid; 0: none */
	u64 filter;	/* number of the packet filter to ask, then of the last one asked */
	u64 is_known;	/* seen before, on another device */
	u64 taken;	/* enum taken, there */
	u64 print;	/* of what no device changes, nor NAT */
	u64 refused;	/* its device or a filter is not wanted: slot * 2 + 1; it is only remembered */
	u64 unwanted;	/* its device is, as of `verdict` */
	u64 verdict;	/* control->device_filter, when `unwanted` was found out; 0: this is another device */
	u64 guard;	/* 1: its addresses prove no receiver, see guard.h */
	struct guard guards[GUARDS]; /* what was found out of some devices */
	u64 sent[3];		     /* the last use of a socket that was learned: see note_use */
	struct key key;
	struct user user;
	u64 device_name[2];
	struct shared shared;
	struct workspace work;
	struct group group; /* of those who may get it */
	struct skb skb; /* a copy of it, where it cannot be looked at in place; then of those of its chain */
};
BPF_PERCPU_ARRAY(packets, struct packet, 3);

/* A processor's record for one direction; 0 is the queue's, when frames are taken at the driver. Two programs for one
   direction never run inside one another on a processor: the kernel keeps a program from running inside itself, and packets
   leave with softirqs off. */
static inline struct packet *get_packet(u32 direction)
{
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

/* The sk_buff of a packet that an earlier program has met. */
static inline struct skb *get_met_skb(struct packet *packet, void *argument)
{
#ifndef IN_PLACE
	return &packet->skb;
#else
	return get_skb(packet, argument);
#endif
}

/* The head of the packet's socket, in place or copied; NULL without a socket. Only single fields may be looked at. */
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

/* Reads the packet's own record and finds its device. */
static inline void meet(struct packet *packet, struct skb *skb, void *argument, u32 direction)
{
	u8 *dev = SKB(skb, u8 *, DEV);
	u8 *net = FIELD(u8 *, dev, DEV_NET);
	u32 ifindex = FIELD(u32, dev, DEV_IFINDEX);
	u64 cookie = FIELD(u64, net, NET_COOKIE), name0 = FIELD(u64, dev, DEV_NAME),
	    name1 = FIELD(u64, dev, DEV_NAME + 8);

	if (packet->key.ifindex != ifindex || packet->key.net != cookie || packet->device_name[0] != name0 ||
	    packet->device_name[1] != name1)
		packet->verdict = 0;
	packet->inode = packet->packet_id = packet->is_known = packet->filter = packet->refused = 0;
	packet->time = bpf_ktime_get_ns();
	packet->dev = (u64)dev;
	packet->net = (u64)net;
	packet->sk = SKB(skb, u64, SK);
	/* The verifier takes some addresses for pointers until they have been in memory. */
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

/* The flow of a packet on its way out, into its workspace. */
static inline void flow_of_sent(struct packet *packet, struct skb *skb, struct headers *headers)
{
	u64 at = packet->head + SKB(skb, u16, NETWORK_HEADER);

	flow_of_packet(at, packet->linear_end - at, SKB(skb, u16, PROTOCOL), OUT, &packet->work.flow,
		       headers);
	packet->work.flow.net = packet->key.net;
}
