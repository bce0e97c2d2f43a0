/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packets that the kernel drops: counted by reason, interface, direction and process.
 *
 * The tracepoint kfree_skb runs where the kernel discards a packet, not where a packet has reached
 * its end (consume_skb). Anything can be in the packet then: its headers were pulled, and fields of
 * its sk_buff are in use for something else. So:
 *
 * - skb->dev shares its memory with numbers of UDP and with a tree of TCP. It is used only if it
 *   leads to a list whose elements lead back (is_device).
 * - The socket of a received packet is that which the kernel has chosen (since Linux 6.11 an
 *   argument). skb->sk is not used for these: it can be the socket of the sender.
 * - The process is the one that uses the socket in its system call, or the last user on record. It
 *   is never looked up in /proc: a flood of drops must not cost more than counting.
 *
 * Without `drops: count` or `capture`, nothing here is compiled. With `capture`, drop_frame.h takes the
 * packet from here.
 */

#define DROP_REASON_UNKNOWN 0xffffffff /* a kernel without reasons */

struct drop_key {
	u64 net;     /* net_cookie; 0: unknown */
	u32 ifindex; /* 0: unknown */
	u32 direction;
	u32 reason;
	u32 tgid; /* 0: unknown */
	u64 device[2];
	u64 process[2];
};

struct drop_count {
	u64 packets;
	u64 netns;   /* inode number of the network namespace */
	u64 limited; /* of these, not written before Python had decided about the interface (drop_frame.h) */
};

struct drop_work {
	struct packet packet;
	struct drop_key key;
	struct drop_count first;
	u64 location;	  /* where it was dropped: a return address */
	u64 is_admitted;  /* by the rate */
	u64 is_undecided; /* Python decides whether its interface is captured */
	u64 is_before;	  /* its interface would have captured it later */
	u64 is_of_others; /* its row is in `drops_of_others` */
	u64 is_full;	  /* no row of `drops` is ever free again */
	u32 link;	  /* kind of its first header, ARPHRD_* */
	u32 via;	  /* how its process was found */
};

BPF_TABLE("hash", struct drop_key, struct drop_count, drops, DROPS_MAX);
/* Those for which `drops` has no space, without their process: so totals by reason and interface stay right. */
BPF_TABLE("hash", struct drop_key, struct drop_count, drops_of_others, DROPS_OF_OTHERS_MAX);
/* Those for which neither has space. */
BPF_PERCPU_ARRAY(drops_unlisted, u64, 1);
BPF_PERCPU_ARRAY(drop_works, struct drop_work, 1);

/*
 * Whether an address is that of a struct net_device: the list of interfaces above it is closed. Other
 * contents of skb->dev are no address, or that of something without such a list.
 */
static inline int is_device(u64 dev)
{
	u64 head = dev + DEV_UPPER, next = dev ? LOAD(u64, head) : 0;

	return next && LOAD(u64, next + 8) == head && LOAD(u64, dev + DEV_NET);
}

/* The interface of a packet's route; 0: none. For a received packet it is that of its namespace. */
static inline u64 device_of_route(u64 route)
{
	u64 dev = route & ~1ULL ? LOAD(u64, (route & ~1ULL) + DST_DEV) : 0;

	return is_device(dev) ? dev : 0;
}

/*
 * Sets the user of packet->sk, if one is on record. Of a datagram socket, and of a listener for its
 * receiver (`receives`), only if no other process can use it; see find_user. Returns how it was found.
 */
static inline enum via find_recorded_user(struct packet *packet, u32 receives)
{
	struct sock_head *sock = &packet->work.sock;
	struct owner *owner = lookup_owner(&packet->sk);
	u32 is_datagram = socket_protocol(packet->sk) != IPPROTO_TCP;
	u32 is_open_to_all = is_datagram || (receives && SOCK(sock, u8, STATE) == TCP_LISTEN);
	struct user *holder;

	packet->inode = socket_inode(packet->sk);
	if (owner && is_owner_of(owner, sock, packet->inode)) {
		if (is_open_to_all && is_shared(packet->sk, owner))
			return VIA_UNKNOWN;
		/* It can have waited, and be of an earlier user of the socket. */
		if (!receives && owner->binding & OF_SEVERAL)
			return VIA_UNKNOWN;
		return copy_user(&packet->user, owner, packet->sk) ? VIA_SOCKET : VIA_UNKNOWN;
	}
	if (!packet->inode || (is_open_to_all && references_of(packet->sk) > 1))
		return VIA_UNKNOWN;
	holder = holders.lookup(&packet->inode);
	if (!holder || !holder->tgid || !holder->tid)
		return VIA_UNKNOWN;
	packet->user = *holder;
	return VIA_INODE;
}

/*
 * The process of packet->sk, on which the packet was sent, or which would have received it. Returns how
 * it was found.
 */
static inline enum via find_user_of_drop(void *ctx, struct control *control, struct packet *packet,
					 u32 receives)
{
	struct sock_head *sock = &packet->work.sock;
	u8 *task;

	if (READ(sock, sizeof(*sock), packet->sk) || !is_user_socket(sock) ||
	    SOCK(sock, u8, STATE) == TCP_NEW_SYN_RECV)
		return VIA_UNKNOWN;
	if (!receives && context_of(ctx, task = current_task(), control) == VIA_CURRENT) {
		u64 socket = LOAD(u64, packet->sk + SOCK_SOCKET);
		u64 file = socket ? LOAD(u64, socket + SOCKET_FILE) : 0;

		if (is_at_work_on(task, packet->sk, socket, file, control, &packet->work.owner, 0)) {
			set_current_user(task, &packet->user);
			return VIA_CURRENT;
		}
	}
	return find_recorded_user(packet, receives);
}

/*
 * The process that would have received a packet for which the kernel has not chosen a socket yet: by
 * the same rules as where packets are received, with the same guard. Returns how it was found.
 */
static inline enum via find_receiver_of_drop(struct control *control, struct packet *packet, struct skb *skb)
{
	enum via how;

	packet->data = packet->head + SKB(skb, u16, NETWORK_HEADER);
	if (!is_guard_known(packet))
		renew_guard(packet, control->nothing);
	how = find_receiver(control, packet, skb);
	if (how == VIA_UNRESOLVED) /* Python is not asked */
		__sync_fetch_and_add(&control->questions, 1);
	if (how <= VIA_PATH)
		return how;
	packet->user.tgid = 0;
	return how == VIA_KERNEL ? VIA_KERNEL : VIA_UNKNOWN;
}

/* Sets the interface of a packet, and its namespace, from the interface or from the socket. */
static inline void set_drop_place(struct packet *packet, struct drop_work *work, u64 net, u32 ifindex)
{
	struct drop_key *key = &work->key;
	struct device *device;

	packet->net = net;
	packet->key.net = key->net = LOAD(u64, net + NET_COOKIE);
	work->first.netns = LOAD(u32, net + NET_INUM);
	packet->key.ifindex = key->ifindex = ifindex;
	packet->key.direction = key->direction;
	if (packet->dev) {
		key->device[0] = LOAD(u64, packet->dev + DEV_NAME);
		key->device[1] = LOAD(u64, packet->dev + DEV_NAME + 8);
		return;
	}
	device = devices.lookup((struct device_key *)&packet->key);
	if (device)
		__builtin_memcpy(key->device, device->name, 16);
}

#define E2BIG 7

/* The row of a key; NULL if there is no space for it. */
static inline struct drop_count *find_drop_row(struct drop_work *work)
{
	struct drop_count *row = drops.lookup(&work->key);

	if (row || work->is_full)
		return row;
	if (drops.insert(&work->key, &work->first) == -E2BIG)
		work->is_full = 1; /* for this processor: no row is ever deleted */
	return drops.lookup(&work->key);
}

/* The row of all processes that have none of their own; NULL if there is no space for it. */
static inline struct drop_count *find_row_of_others(struct drop_work *work)
{
	struct drop_count *row;

	work->is_of_others = 1;
	work->key.tgid = 0;
	work->key.process[0] = work->key.process[1] = 0;
	row = drops_of_others.lookup(&work->key);
	if (row)
		return row;
	drops_of_others.insert(&work->key, &work->first);
	return drops_of_others.lookup(&work->key);
}

/* Adds one to the row of a key, or to what is not listed. */
static inline void add_drop(struct drop_work *work)
{
	u32 zero = 0;
	u64 *unlisted = drops_unlisted.lookup(&zero);
	struct drop_count *row = find_drop_row(work);

	work->is_of_others = 0;
	if (!row)
		row = find_row_of_others(work);
	if (row)
		__sync_fetch_and_add(&row->packets, 1);
	else if (unlisted)
		__sync_fetch_and_add(unlisted, 1);
}

/* Hooks that discard sent packets are before the queue, where they are captured; but after the kprobe. */
static inline u64 is_before_queue(u32 reason)
{
	u64 found = 0;

#ifndef KPROBE
#ifdef DROP_TC_EGRESS
	found |= reason == DROP_TC_EGRESS;
#endif
#ifdef DROP_NETFILTER_DROP
	found |= reason == DROP_NETFILTER_DROP;
#endif
#endif
	return found;
}

/* Sets what the sk_buff of a dropped packet says; `receiver` as in count_drop. */
static inline void read_dropped(struct packet *packet, struct skb *skb, void *argument, u64 *receiver)
{
	__builtin_memset(&packet->user, 0, sizeof(packet->user));
	packet->time = bpf_ktime_get_ns();
	packet->address = (u64)argument;
	packet->dev = SKB(skb, u64, DEV);
	packet->sk = receiver ? *receiver : 0;
	packet->inode = SKB(skb, u64, SK);
	packet->head = SKB(skb, u64, HEAD);
	packet->data = SKB(skb, u64, DATA);
	packet->passage.sk = SKB(skb, u64, REFDST);
	barrier(); /* from here on, addresses are numbers for the verifier */
	packet->linear_end = packet->data + SKB(skb, u32, LEN) - SKB(skb, u32, DATA_LEN);
}

/* Sets the process of a dropped packet in its row, if it is known. */
static inline void find_process_of_drop(void *ctx, struct control *control, struct drop_work *work,
					struct skb *skb)
{
	struct packet *packet = &work->packet;

	work->via = VIA_UNKNOWN;
	if (packet->sk)
		work->via = find_user_of_drop(ctx, control, packet, work->key.direction == IN);
	else if (work->key.direction == IN && packet->dev)
		work->via = find_receiver_of_drop(control, packet, skb);
	barrier();
	if (packet->user.tgid) {
		work->key.tgid = packet->user.tgid;
		work->key.process[0] = packet->user.process[0];
		work->key.process[1] = packet->user.process[1];
	}
}

/*
 * The kernel has dropped a packet. `receiver` is the socket that would have received it; 0: none.
 * Returns what was found out about it; NULL if it is no packet of a network.
 */
static inline struct drop_work *count_drop(void *ctx, void *argument, u64 *receiver, u32 reason)
{
	u32 zero = 0;
	struct control *control = controls.lookup(&zero);
	struct drop_work *work = drop_works.lookup(&zero);

	if (!control || !work)
		return NULL;
	struct packet *packet = &work->packet;
	struct skb *skb = get_skb(packet, argument);
	u32 iif = SKB(skb, u32, SKB_IIF);
	u64 net = 0;

	__builtin_memset(&work->key, 0, sizeof(work->key));
	__builtin_memset(&work->first, 0, sizeof(work->first));
	read_dropped(packet, skb, argument, receiver);
	u64 route = device_of_route(packet->passage.sk), sender = packet->inode;

	if (!is_device(packet->dev))
		packet->dev = iif ? 0 : route;
	u32 ifindex = packet->dev ? LOAD(u32, packet->dev + DEV_IFINDEX) : iif;
	/* Its link-layer header was taken off already, but no interface has passed it on: a full backlog. */
	u64 mac = SKB(skb, u16, MAC_HEADER);
	u64 is_early = !iif && mac != MAC_HEADER_UNSET && packet->head + mac < packet->data;
	u64 network = SKB(skb, u16, NETWORK_HEADER);
	/* A header of UDP or TCP; less is that of a tunnel, whose packets can be dropped behind it. */
	u64 passed = packet->data - packet->head - SKB(skb, u16, TRANSPORT_HEADER);
	u64 is_joined = passed == UDP_HLEN || passed >= TCP_HLEN;

	/*
	 * Received packets were joined to a list (GRO): only the first one still has its headers, and is the
	 * packet. The kernel frees the others with it, also when it has reached its end.
	 */
	if (is_early && mac < network && packet->head + network < packet->data && is_joined)
		return NULL;
	u64 receives = packet->sk || (iif && ifindex == iif) || is_early;

	if (!packet->sk && !receives)
		packet->sk = sender;
	u32 family = packet->sk ? LOAD(u16, packet->sk + SOCK_FAMILY) : 0;

	if (packet->dev)
		net = LOAD(u64, packet->dev + DEV_NET);
	else if (family == AF_INET || family == AF_INET6)
		net = LOAD(u64, packet->sk + SOCK_NET);
	else if (route)
		net = LOAD(u64, route + DEV_NET);
	else
		return NULL; /* a message of a UNIX or netlink socket */
	work->key.reason = reason;
	work->key.direction = receives ? IN : OUT;
	work->is_before = receives ? is_early : is_before_queue(reason);
	set_drop_place(packet, work, net, ifindex);
	barrier();
	find_process_of_drop(ctx, control, work, skb);
	add_drop(work);
	return work;
}
