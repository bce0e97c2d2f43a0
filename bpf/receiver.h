/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who will get a received packet? The socket is looked up as the kernel will do it a moment later.
 *
 * TCP: by the flow, which was learned when the connection was made, or by the listening socket for a SYN. UDP: in the
 * kernel's own table of sockets, by the kernel's rules (udp4_lib_lookup2, udp6_lib_lookup2, compute_score in net/ipv4/udp.c
 * and net/ipv6/udp.c). Echo replies: by the request that left. All else, and whatever has more than one candidate, is unknown.
 * skb->sk of a received packet may be the sender's, on this very machine: it is never looked at.
 */

/* Whether the device has the address: of the flow's local end, or a multicast group that it has joined. A packet for
   another one is not for this host, or the answer stands on another device: both are "no". */
static inline int has_address(u64 dev, struct flow *flow, u32 multicast, u64 nothing)
{
	u64 list = 0, node = 0;
	u64 next = 0, address = 0; /* offsets from the node; modulo 2^64 */

	if (flow->family == AF_INET) {
		READ(&list, 8, dev + DEV_IN_DEVICE);
		READ(&node, 8, list + (multicast ? IN_GROUPS : IN_ADDRESSES));
		next = multicast ? GROUP_NEXT : ADDRESS_NEXT;
		address = multicast ? GROUP_ADDRESS : ADDRESS_LOCAL;
	} else {
		READ(&list, 8, dev + DEV_IN6_DEVICE);
		READ(&node, 8, list + (multicast ? IN6_GROUPS : IN6_ADDRESSES));
		next = multicast ? GROUP6_NEXT : 0; /* addresses: a list_head inside each entry */
		address = multicast ? GROUP6_ADDRESS : ADDRESS6_LOCAL - ADDRESS6_LIST;
	}
	if (flow->family == AF_INET && multicast && flow->local[0] == 0xffffffff)
		return 1;
	u64 wanted0 = flow->local[0], wanted1 = flow->local[1],
	    mask0 = flow->family == AF_INET ? 0xffffffff : ~0ULL, mask1 = flow->family == AF_INET ? 0 : ~0ULL;

	for (int i = 0; i < ADDRESSES_MAX; i++) {
		u64 found[2] = {};

		FORGET(node);
		FORGET(next);
		FORGET(address);
		if (READ(found, sizeof(found), node + address))
			return 0;
		if (!((found[0] & mask0) ^ wanted0 | (found[1] & mask1) ^ wanted1))
			return 1;
		READ(&node, 8, node + next);
	}
	return 0;
}

/*
 * The UDP socket that takes a packet; 0 where there is none or more than one.
 * `wildcard` tells whether it is bound to no address, so that the packet may be for another host.
 */
static inline u64 find_udp_socket(struct control *control, u64 net, u32 ifindex, struct flow *flow, u32 multicast,
				  struct sock_head *sock, u32 *wildcard)
{
	u64 table = ONCE(control->udp_table), slots = 0, node = 0, best = 0, nothing = control->nothing;
	u32 mask = 0, mix = 0;
	u64 score_of_best = 0, ties = 0;

#ifdef NET_UDP_TABLE
	READ(&table, 8, net + NET_UDP_TABLE);
#endif
	READ(&slots, 8, table + UDP_TABLE_HASH);
	READ(&mask, 4, table + UDP_TABLE_MASK);
	READ(&mix, 4, net + NET_HASH_MIX);
	READ(&node, 8, slots + (u64)(flow->local_port + mix & mask) * UDP_SLOT_SIZE + UDP_SLOT_HEAD);
	for (int i = 0; i < UDP_CHAIN_MAX; i++) {
		FORGET(node);
		FORGET(best);
		FORGET(score_of_best);
		FORGET(ties);
		if (!node)
			break;
		u64 sk = node - SOCK_NODE, score = 0, same;

		if (READ(sock, sizeof(*sock), sk))
			return 0;
		node = SOCK(u64, NODE);
		u64 v6 = SOCK(u16, FAMILY) == AF_INET6, *local = &SOCK(u64, V6_RCV_SADDR),
		    *remote = &SOCK(u64, V6_DADDR);

		/* `same`: 0 as long as the socket can take the packet; each match beyond that scores. */
		same = SOCK(u16, NUM) ^ flow->local_port;
		same |= SOCK(u64, NET) ^ net;
		same |= (u64)SOCK(u32, BOUND_DEV_IF) && (SOCK(u32, BOUND_DEV_IF) ^ ifindex);
		score = !!SOCK(u32, BOUND_DEV_IF) * 4;
		u64 dport = __builtin_bswap16(SOCK(u16, DPORT));
		same |= dport && (dport ^ flow->remote_port);
		score += !!dport * 4;
		if (flow->family == AF_INET) {
			u64 bound = SOCK(u32, RCV_SADDR), peer = SOCK(u32, DADDR);

			same |= v6 & SOCK_BIT(V6ONLY);
			same |= bound && (bound ^ flow->local[0]);
			same |= peer && (peer ^ flow->remote[0]);
			score += !!bound * 64 + !!peer * 4 + (v6 ^ 1);
		} else {
			u64 bound = local[0] | local[1], peer = remote[0] | remote[1];

			same |= v6 ^ 1;
			same |= bound && (local[0] ^ flow->local[0] | local[1] ^ flow->local[1]);
			same |= peer && (remote[0] ^ flow->remote[0] | remote[1] ^ flow->remote[1]);
			score += !!bound * 64 + !!peer * 4;
		}
		score = same ? 0 : multicast ? 1 : score + 1;
		ties = score && score == score_of_best ? 1 : score > score_of_best ? 0 : ties;
		best = score > score_of_best ? sk : best;
		score_of_best = score > score_of_best ? score : score_of_best;
	}
	*wildcard = score_of_best < 64;
	return node || ties ? 0 : best;
}

/* The socket that listens for a connection: its record; NULL where none is known, or several share the port. */
static inline struct owner *find_listener(struct flow *flow, u64 dev, u64 nothing)
{
	struct owner *owner;
	u64 group = 0;
	u16 members = 0;

	flow->remote[0] = flow->remote[1] = flow->remote_port = 0;
	owner = flows.lookup(flow);
	if (!owner) {
		if (!has_address(dev, flow, 0, nothing))
			return NULL;
		flow->local[0] = flow->local[1] = 0;
		owner = flows.lookup(flow);
		if (!owner && flow->family == AF_INET) { /* an IPv6 socket that takes IPv4, too */
			flow->family = AF_INET6;
			owner = flows.lookup(flow);
		}
	}
	if (!owner || owner->time)
		return NULL;
	READ(&group, sizeof(group), owner->sk + SOCK_REUSEPORT);
	if (group)
		READ(&members, sizeof(members), group + REUSEPORT_SOCKETS);
	return members > 1 ? NULL : owner;
}

/* Fills in who will get a packet; leaves zeros where it is not known. Returns how it was found. */
static inline enum via find_receiver(struct control *control, struct skb *skb, u64 dev, u64 net, struct key *key,
				     u64 *sk, u64 *inode, struct user *user, struct workspace *work)
{
	struct flow *flow = &work->flow;
	struct headers headers;
	struct owner *owner = NULL;
	u64 at = SKB(u64, DATA), nothing = control->nothing;
	u32 type = SKB_BITS(PKT_TYPE), wildcard = 0;

	if (type == 3) /* PACKET_OTHERHOST: for another machine */
		return VIA_UNKNOWN;
	flow_of_packet(at, SKB(u32, LEN) - SKB(u32, DATA_LEN), SKB(u16, PROTOCOL), IN, flow, &headers);
	if (!headers.transport)
		return VIA_UNKNOWN;
	flow->net = key->net;
	if (flow->protocol == IPPROTO_UDP) {
		headers.multicast |= type == 1 || type == 2;
		*sk = find_udp_socket(control, net, key->ifindex, flow, headers.multicast, &work->sock, &wildcard);
		if (!*sk || ((wildcard || headers.multicast) &&
			     !has_address(dev, flow, headers.multicast, nothing)))
			return VIA_UNKNOWN;
		struct sock_head *sock = &work->sock;

		READ(sock, sizeof(*sock), *sk);
		if (!SOCK_BIT(REFCNT))
			return VIA_KERNEL;
		*inode = socket_inode(*sk);
		owner = owners.lookup(sk);
		if (owner && !is_owner_of(owner, sock, *inode))
			owner = NULL;
	} else if (flow->protocol == IPPROTO_TCP) {
		owner = find_flow(flow);
		if ((headers.word & (TCP_SYN_IN_WORD | TCP_ACK_IN_WORD)) == TCP_SYN_IN_WORD) {
			if (owner && owner->time) { /* the same ports again: a new connection */
				flows.delete(flow);
				owner = NULL;
			}
			if (!owner)
				owner = find_listener(flow, dev, nothing);
		}
		if (!owner)
			return VIA_UNKNOWN;
		if (!owner->user.tgid) { /* accepted by nobody yet, or not used since */
			struct sock_head *sock = &work->sock;

			*sk = owner->sk;
			if (READ(sock, sizeof(*sock), *sk) || owner->identity != SOCK(u64, HASH))
				return VIA_UNKNOWN;
			*inode = socket_inode(*sk);
		}
	} else if (flow->protocol == IPPROTO_ICMP || flow->protocol == IPPROTO_ICMPV6) {
		/* A reply's type is the request's but for one: look for the request. */
		u32 reply = flow->protocol == IPPROTO_ICMP ? 0 : 129;

		if (flow->remote_port != reply)
			return VIA_UNKNOWN;
		flow->remote_port = flow->protocol == IPPROTO_ICMP ? 8 : 128;
		owner = flows.lookup(flow);
		if (!owner || !owner->user.tgid)
			return VIA_UNKNOWN;
	} else {
		return VIA_UNKNOWN;
	}
	if (owner && owner->user.tgid) {
		*user = owner->user;
		return VIA_FLOW;
	}
	return find_holder(control, *sk, *inode, user);
}
