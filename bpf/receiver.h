/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The receiver of a received packet: its socket is looked up as the kernel will do it a moment
 * later.
 *
 * TCP: by the flow, which was recorded when the connection was made, or by the listening socket for
 * a SYN. UDP: in the kernel's own table of sockets, by the kernel's rules (udp4_lib_lookup2,
 * udp6_lib_lookup2, compute_score in net/ipv4/udp.c and net/ipv6/udp.c). Echo replies: by the
 * request that was sent. If there are several candidates, Python finds what they have in common.
 * All other packets are unknown. skb->sk of a received packet can be that of the sender, on the
 * same machine: it is never used. All this is valid if nothing between the hook and the socket
 * redirects packets (guard.h); otherwise only path.h finds the receiver.
 */

/* An address to look up. */
struct wanted {
	u64 address[2];
	u32 family;
	u32 multicast;
};

/*
 * Whether the interface has the address: its own, or a multicast group that it has joined. A packet
 * for another address is not for this host, or the address is on another interface: both are "no".
 * Returns `unsure` if its list is too long.
 */
static inline int has_address(u64 dev, struct wanted *wanted, u64 nothing, const int unsure)
{
	u64 list = 0, node = 0, end = 0;
	u64 next = 0, address = 0; /* offsets from the node; modulo 2^64 */
	u64 mask0 = ~0ULL, mask1 = ~0ULL;

	if (wanted->family == AF_INET) {
		if (wanted->multicast && wanted->address[0] == INADDR_BROADCAST)
			return 1;
		list = LOAD(u64, dev + DEV_IN_DEVICE);
		node = LOAD(u64, list + (wanted->multicast ? IN_GROUPS : IN_ADDRESSES));
		next = wanted->multicast ? GROUP_NEXT : ADDRESS_NEXT;
		address = wanted->multicast ? GROUP_ADDRESS : ADDRESS_LOCAL;
		mask0 = 0xffffffff;
		mask1 = 0;
	} else {
		list = LOAD(u64, dev + DEV_IN6_DEVICE);
		node = LOAD(u64, list + (wanted->multicast ? IN6_GROUPS : IN6_ADDRESSES));
		/* Addresses have a list_head in each entry; the last one leads to that of the list. */
		end = wanted->multicast ? 0 : list + IN6_ADDRESSES;
		next = wanted->multicast ? GROUP6_NEXT : 0;
		address = wanted->multicast ? GROUP6_ADDRESS : ADDRESS6_LOCAL - ADDRESS6_LIST;
	}
	FORGET(next, nothing);
	FORGET(address, nothing);
	FORGET(mask0, nothing);
	FORGET(mask1, nothing);
	FORGET(end, nothing);
	for (int i = 0; i < ADDRESSES_MAX; i++) {
		u64 found[2] = {};

		FORGET(node, nothing);
		if (!node || node == end)
			return 0;
		LOAD_WORDS(found, sizeof(found), node + address);
		if (!((found[0] & mask0) ^ wanted->address[0] | (found[1] & mask1) ^ wanted->address[1]))
			return 1;
		node = LOAD(u64, node + next);
	}
	return unsure;
}

/* Whether the destination of the frame before `data` is the address of an interface (ETH_ALEN bytes). */
static inline int has_destination(u64 dev, u64 data)
{
	return (LOAD(u64, LOAD(u64, dev + DEV_ADDR)) ^ LOAD(u64, data - ETH_HLEN)) << 16 == 0;
}

#define MACVLAN 0x6e616c7663616dULL /* "macvlan" and its NUL, as a kind of interface */

/*
 * The macvlan interface above with the destination address of a frame; 0: there is none, and the
 * frame is for another machine. The kernel passes such a frame on without another hook
 * (macvlan_handle_frame in drivers/net/macvlan.c), so this is the only place where it is seen.
 */
static inline u64 find_above(u64 dev, u64 data, u64 nothing)
{
	u64 head = dev + DEV_UPPER, node = LOAD(u64, head);

	for (int i = 0; i < ABOVE_MAX; i++) {
		FORGET(node, nothing);
		if (!node || node == head)
			return 0;
		u64 above = LOAD(u64, node - ADJACENT_LIST + ADJACENT_DEV);
		u64 kind = LOAD(u64, LOAD(u64, LOAD(u64, above + DEV_LINK_OPERATIONS) + LINK_KIND));

		if (kind == MACVLAN && has_destination(above, data))
			return above;
		node = LOAD(u64, node);
	}
	return 0;
}

#define SCORE_BOUND 64 /* for a bound address; more than all other scores together */

/*
 * How well a UDP socket matches a packet, as in compute_score in net/ipv4/udp.c and net/ipv6/udp.c;
 * 0: it does not receive the packet. `v4` is 1 for an IPv4 packet, 0 for IPv6. `counts` is ~0; 0
 * for multicast, where all matching sockets are equal.
 */
static inline u64 score_udp_socket(struct sock_head *sock, struct flow *flow, u64 net, u32 ifindex, u64 v4,
				   u64 counts)
{
	/* Numbers instead of conditions: each branch would double the work of the verifier. */
	u64 is_v6 = 1 - any(SOCK(sock, u16, FAMILY) ^ AF_INET6);
	u64 *local = &SOCK(sock, u64, V6_RCV_SADDR), *remote = &SOCK(sock, u64, V6_DADDR);
	u64 bound0 = v4 * SOCK(sock, u32, RCV_SADDR) + (1 - v4) * local[0], bound1 = (1 - v4) * local[1];
	u64 peer0 = v4 * SOCK(sock, u32, DADDR) + (1 - v4) * remote[0], peer1 = (1 - v4) * remote[1];
	u64 is_bound = any(bound0 | bound1), has_peer = any(peer0 | peer1);
	u64 has_device = any(SOCK(sock, u32, BOUND_DEV_IF)), has_port = any(SOCK(sock, u16, DPORT));
	/* 0 as long as the socket can receive the packet. */
	u64 other = SOCK(sock, u16, NUM) ^ flow->local_port;

	other |= SOCK(sock, u64, NET) ^ net;
	other |= v4 * is_v6 * SOCK_BIT(sock, V6ONLY) | (1 - v4) * (1 - is_v6);
	other |= -has_device & (SOCK(sock, u32, BOUND_DEV_IF) ^ ifindex);
	other |= -has_port & (__builtin_bswap16(SOCK(sock, u16, DPORT)) ^ flow->remote_port);
	other |= -is_bound & (bound0 ^ flow->local[0] | bound1 ^ flow->local[1]);
	other |= -has_peer & (peer0 ^ flow->remote[0] | peer1 ^ flow->remote[1]);

	u64 score = is_bound * SCORE_BOUND + (has_peer + has_device + has_port) * 4 + v4 * (1 - is_v6);

	return (any(other) - 1) & ((score & counts) + 1);
}

/* The list of the kernel's UDP sockets that has those at a port: its first node. */
static inline u64 first_udp_socket(struct control *control, u64 net, u64 port)
{
#ifdef NET_UDP_TABLE
	u64 table = LOAD(u64, net + NET_UDP_TABLE);
#else
	u64 table = ONCE(control->udp_table);
#endif
	u64 slot = port + LOAD(u32, net + NET_HASH_MIX) & LOAD(u32, table + UDP_TABLE_MASK);

	return LOAD(u64, LOAD(u64, table + UDP_TABLE_HASH) + slot * UDP_SLOT_SIZE + UDP_SLOT_HEAD);
}

/*
 * The UDP socket that receives a packet; 0 if there is none. All candidates are in `group`: several
 * with SO_REUSEPORT, where the kernel chooses later, and with multicast, which all of them receive.
 * `wildcard`: whether it is bound to no address, so that the packet may be for another host.
 */
static inline u64 find_udp_socket(struct control *control, u64 net, u32 ifindex, struct flow *flow,
				  u32 multicast, struct sock_head *sock, u32 *wildcard, struct group *group)
{
	u64 best = 0, nothing = control->nothing;
	u64 best_score = 0, found = 0, v4 = flow->family == AF_INET, counts = multicast ? 0 : ~0ULL;
	u64 node = first_udp_socket(control, net, flow->local_port);

	FORGET(v4, nothing);
	FORGET(counts, nothing);
	for (int i = 0; i < UDP_CHAIN_MAX; i++) {
		FORGET(node, nothing);
		FORGET(best, nothing);
		FORGET(best_score, nothing);
		FORGET(found, nothing);
		if (!node)
			break;
		u64 sk = node - SOCK_NODE;

		if (READ(sock, sizeof(*sock), sk))
			return 0;
		node = SOCK(sock, u64, NODE);
		u64 score = score_udp_socket(sock, flow, net, ifindex, v4, counts);
		u64 is_better = best_score - score >> 63;

		u64 is_as_good = any(score) & 1 - any(score ^ best_score);

		found &= is_better - 1;
		/* The next one overwrites this one, if this one does not match. */
		group->sks[BOUND(found, GROUP_MAX - 1)] = sk;
		found += is_better | is_as_good;
		best += -is_better & (sk - best);
		best_score += -is_better & (score - best_score);
	}
	*wildcard = best_score < SCORE_BOUND;
	group->count = found;
	return node ? 0 : best;
}

/* Whether a flow leads to a multicast group. */
static inline int is_for_group(struct flow *flow)
{
	return flow->family == AF_INET ? ipv4_is_multicast(flow->local[0])
				       : ipv6_addr_is_multicast(flow->local);
}

#define MCAST_EXCLUDE 0

/*
 * Whether a socket certainly receives what is sent to a group: as in ip_mc_sf_allow and inet6_mc_check. It does not
 * without IP_MULTICAST_ALL if it has not joined the group; if it wants only some sources, that is
 * not certain.
 */
static inline int takes_group(u64 sk, struct flow *flow, u32 ifindex, u64 nothing)
{
	u64 v4 = flow->family == AF_INET, pinet6 = LOAD(u64, sk + SOCK_PINET6);
	u64 all = LOAD(u8, sk + SOCK_MC_ALL_BYTE) >> SOCK_MC_ALL_SHIFT & 1;
	u64 all6 = LOAD(u8, (MC6_ALL_IN_PINET6 ? pinet6 : sk) + MC6_ALL_BYTE) >> MC6_ALL_SHIFT & 1;
	u64 node = v4 ? LOAD(u64, sk + SOCK_GROUPS) : LOAD(u64, pinet6 + PINET6_GROUPS);
	u64 next = v4 ? JOINED_NEXT : JOINED6_NEXT, address = v4 ? JOINED_ADDRESS : JOINED6_ADDRESS;
	u64 mode = v4 ? JOINED_MODE : JOINED6_MODE, sources = v4 ? JOINED_SOURCES : JOINED6_SOURCES;
	u64 mask = v4 ? 0xffffffff : ~0ULL;

	FORGET(v4, nothing);
	FORGET(next, nothing);
	FORGET(address, nothing);
	FORGET(mode, nothing);
	FORGET(sources, nothing);
	FORGET(mask, nothing);
	for (int i = 0; i < JOINED_MAX; i++) {
		FORGET(node, nothing);
		if (!node)
			return v4 ? all : all6;
		u64 differs = (LOAD(u64, node + address) & mask) ^ flow->local[0];

		differs |= (1 - v4) * (LOAD(u64, node + address + 8) ^ flow->local[1]);
		differs |= v4 * (LOAD(u32, node + JOINED_IFINDEX) ^ ifindex);
		if (!differs)
			return !LOAD(u64, node + sources) && LOAD(u32, node + mode) == MCAST_EXCLUDE;
		node = LOAD(u64, node + next);
	}
	return 0;
}

/*
 * Whether a UDP socket can send from addresses of others (IP_TRANSPARENT; with IPv6 also IPV6_FREEBIND):
 * what answers it is for the socket that a TPROXY rule names.
 */
static inline int is_transparent(u64 sk)
{
	u32 is_v6 = LOAD(u16, sk + SOCK_FAMILY) == AF_INET6;

	return (LOAD(u8, sk + SOCK_TRANSPARENT_BYTE) >> SOCK_TRANSPARENT_SHIFT & 1) |
	       (LOAD(u8, sk + SOCK_FREEBIND_BYTE) >> SOCK_FREEBIND_SHIFT & is_v6);
}

/* 0 if two addresses are different, and neither of them is the wildcard. */
static inline u64 may_be_equal(u64 a0, u64 a1, u64 b0, u64 b1)
{
	return (1 - any(a0 | a1)) | (1 - any(b0 | b1)) | (1 - any(a0 ^ b0 | a1 ^ b1));
}

/*
 * Whether another socket than `sk`, which has sent a datagram, can receive the answer with this flow, because
 * it has the same port in the same namespace, and the same address or a wildcard. Sockets of one group
 * (SO_REUSEPORT) do not count. Also 1 if `sk` is not in the kernel's table: it is no UDP socket.
 */
static inline int shares_port(struct control *control, u64 sk, struct flow *flow, struct sock_head *sock)
{
	u64 nothing = control->nothing, net = LOAD(u64, sk + SOCK_NET), v4 = flow->family == AF_INET;
	u64 port = LOAD(u16, sk + SOCK_NUM), sharing = LOAD(u64, sk + SOCK_REUSEPORT), found = 0, others = 0;
	u64 dev = LOAD(u32, sk + SOCK_BOUND_DEV_IF), v4_address = LOAD(u32, sk + SOCK_RCV_SADDR);
	u64 own0 = v4 * v4_address + (1 - v4) * LOAD(u64, sk + SOCK_V6_RCV_SADDR);
	u64 own1 = (1 - v4) * LOAD(u64, sk + SOCK_V6_RCV_SADDR + 8);
	u64 node = first_udp_socket(control, net, port);

	FORGET(v4, nothing);
	FORGET(own0, nothing);
	FORGET(own1, nothing);
	FORGET(dev, nothing);
	FORGET(sharing, nothing);
	for (int i = 0; i < UDP_CHAIN_MAX; i++) {
		FORGET(node, nothing);
		FORGET(found, nothing);
		FORGET(others, nothing);
		if (!node)
			return !found || others;
		u64 other = node - SOCK_NODE;

		if (READ(sock, sizeof(*sock), other))
			return 1;
		node = SOCK(sock, u64, NODE);
		u64 *local = &SOCK(sock, u64, V6_RCV_SADDR), *remote = &SOCK(sock, u64, V6_DADDR);
		u64 is_v6 = 1 - any(SOCK(sock, u16, FAMILY) ^ AF_INET6), is_self = 1 - any(other ^ sk);
		u64 group = LOAD(u64, other + SOCK_REUSEPORT), other_dev = SOCK(sock, u32, BOUND_DEV_IF);
		u64 has_port = any(SOCK(sock, u16, DPORT)), has_peer = any(remote[0] | remote[1]);
		/* 0 as long as it can receive the packet. */
		u64 differs = SOCK(sock, u16, NUM) ^ port | SOCK(sock, u64, NET) ^ net;

		differs |= v4 * is_v6 * SOCK_BIT(sock, V6ONLY) | (1 - v4) * (1 - is_v6);
		differs |= -(any(dev) & any(other_dev)) & (dev ^ other_dev);
		differs |= -has_port & (__builtin_bswap16(SOCK(sock, u16, DPORT)) ^ flow->remote_port);
		differs |= v4 * any(SOCK(sock, u32, DADDR)) * (SOCK(sock, u32, DADDR) ^ flow->remote[0]);
		differs |=
			-((1 - v4) * has_peer) & (remote[0] ^ flow->remote[0] | remote[1] ^ flow->remote[1]);
		differs |= 1 - may_be_equal(own0, own1, v4 * SOCK(sock, u32, RCV_SADDR) + (1 - v4) * local[0],
					    (1 - v4) * local[1]);
		differs |= any(sharing) & (1 - any(sharing ^ group));
		found |= is_self;
		others |= (1 - is_self) & (1 - any(differs));
	}
	return 1;
}

/* The sockets that share a port with one: sets `group`; returns whether there are several. */
static inline int find_sharing(u64 sk, struct group *group)
{
	u64 sharing = LOAD(u64, sk + SOCK_REUSEPORT);

	group->count = sharing ? LOAD(u16, sharing + REUSEPORT_SOCKETS) : 0;
	if (group->count <= 1)
		return 0;
	READ(group->sks, sizeof(group->sks), sharing + REUSEPORT_LIST);
	return 1;
}

/*
 * The same for a packet with several candidate sockets: the group is identified by their inodes, in
 * any order.
 */
static inline enum via find_group(struct control *control, struct packet *packet)
{
	struct group *group = &packet->group;
	u64 number = 0, total = 0, nothing = control->nothing;

	if (group->count > GROUP_MAX)
		return VIA_UNKNOWN;
	for (u32 i = 0; i < GROUP_MAX; i++) {
		FORGET(number, nothing);
		FORGET(total, nothing);
		if (i >= group->count)
			break;
		u64 inode = socket_inode(group->sks[i]), references = references_of(group->sks[i]);

		if (!inode)
			return VIA_UNKNOWN;
		group->inodes[i] = inode | any(references >> 1) * OPEN_IN_SEVERAL;
		number += hash_inode(inode);
		total += references;
	}
	packet->sk = 0;
	return find_members(control, packet, number, total);
}

/* The socket that listens on an address: on the interface, otherwise on all interfaces. */
static inline struct owner *lookup_listener(struct flow *flow, u32 ifindex)
{
	struct owner *owner;

	flow->remote[1] = ifindex;
	owner = flows.lookup(flow);
	if (owner && !owner->time)
		return owner;
	flow->remote[1] = 0;
	owner = flows.lookup(flow);
	return owner && !owner->time ? owner : NULL;
}

/*
 * Whether a listener accepts IPv6 only; for one that Python has found, this is in the identity of
 * its record.
 */
static inline int is_v6_only(struct owner *owner)
{
	if (!owner->sk)
		return owner->identity != 0;
	return LOAD(u8, owner->sk + SOCK_V6ONLY_BYTE) >> SOCK_V6ONLY_SHIFT & 1;
}

/*
 * The record of the socket that listens for a connection; NULL if none is known. As in
 * __inet_lookup_listener.
 */
static inline struct owner *find_listener(struct flow *flow, u32 ifindex, u32 *wildcard)
{
	struct owner *owner;

	flow->remote[0] = flow->remote_port = 0;
	owner = lookup_listener(flow, ifindex);
	if (owner)
		return owner;
	*wildcard = 1;
	flow->local[0] = flow->local[1] = 0;
	owner = lookup_listener(flow, ifindex);
	if (owner || flow->family != AF_INET)
		return owner;
	flow->family = AF_INET6; /* a socket that also receives IPv4 */
	owner = lookup_listener(flow, ifindex);
	return owner && !is_v6_only(owner) ? owner : NULL;
}

/*
 * Whether a TCP segment rejects a SYN: a reset with ACK and the sequence number 0 (RFC 9293,
 * 3.10.7.1).
 */
static inline int refuses(u64 transport, struct headers *headers)
{
	return is_reset(headers) &&
	       !LOAD(u32, transport + __builtin_offsetof(union transport_header, tcp.seq));
}

/* The interface that receives a packet. */
struct destination {
	u64 dev;
	u64 net;
	u64 cookie; /* of `net` */
	u32 ifindex;
};

#ifdef DEV_VLANS
#define VLAN_PARTS	   8
#define VLAN_PART_LEN	   512
#define VLAN_NUMBER(proto) ((proto) == htons(ETH_P_8021AD)) /* as in vlan_proto_idx */

/*
 * The interface of a VLAN on top of an interface, or of its bond, team or bridge; 0: none. As in
 * __vlan_find_dev_deep_rcu (net/8021q/vlan_core.c).
 */
static inline u64 find_vlan(u64 dev, u32 protocol, u32 id)
{
	u64 place = VLANS + 8 * (VLAN_NUMBER(protocol) * VLAN_PARTS + id / VLAN_PART_LEN);
	u64 in_part = 8 * (id % VLAN_PART_LEN), head = dev + DEV_UPPER, node = LOAD(u64, head), found;

	found = LOAD(u64, LOAD(u64, LOAD(u64, dev + DEV_VLANS) + place) + in_part);
	if (found || node == head)
		return found;
	dev = LOAD(u64, node - ADJACENT_LIST + ADJACENT_DEV);
	return LOAD(u64, LOAD(u64, LOAD(u64, dev + DEV_VLANS) + place) + in_part);
}
#else
#define find_vlan(dev, protocol, id) 0 /* a kernel without VLANs */
#endif

/*
 * Sets the interface that receives a packet: that of the hook, that of its VLAN, or a macvlan interface
 * above it. Returns whether there is one where addresses prove the receiver.
 */
static inline int find_destination(struct control *control, struct packet *packet, struct skb *skb,
				   struct destination *to)
{
	u64 nothing = control->nothing;
	u32 vlan = vlan_of(skb), is_other = SKB_BITS(skb, PKT_TYPE) == PACKET_OTHERHOST;

	to->dev = packet->dev;
	to->net = packet->net;
	to->cookie = packet->key.net;
	to->ifindex = packet->key.ifindex;
	if (packet->guard)
		return 0;
	if (!vlan && !is_other)
		return 1;
	to->dev = vlan ? find_vlan(packet->dev, SKB(skb, u16, VLAN_PROTO), vlan)
		       : find_above(packet->dev, packet->data, nothing);
	/* The type is that for the address of the interface of the hook; that of the VLAN can have another. */
	if (!to->dev || (vlan && is_other && !has_destination(to->dev, packet->data)))
		return 0;
	to->net = LOAD(u64, to->dev + DEV_NET);
	to->cookie = LOAD(u64, to->net + NET_COOKIE);
	to->ifindex = LOAD(u32, to->dev + DEV_IFINDEX);
	return !may_be_stolen(to->dev, to->net, nothing);
}

/* Sets the key of a packet in fragments. */
static inline void set_fragment(struct fragment *fragment, u64 cookie, struct flow *flow,
				struct headers *headers)
{
	fragment->net = cookie;
	fragment->local[0] = flow->local[0];
	fragment->local[1] = flow->local[1];
	fragment->remote[0] = flow->remote[0];
	fragment->remote[1] = flow->remote[1];
	fragment->id = headers->id;
	fragment->protocol = flow->protocol;
	fragment->family = flow->family;
}

/* What the flow of a received packet leads to. */
struct match {
	struct owner *owner; /* record of the flow; NULL: none */
	u64 sk;		     /* UDP socket; 0: none */
	u32 wildcard;	     /* bound to no address: the packet may be for another host */
	u32 several;	     /* the candidates are in packet->group */
	u32 listens;	     /* `owner` is a listener */
};

/* Whether the listener of a record is open. */
static inline int is_listening(struct owner *owner)
{
	return LOAD(u8, owner->sk + SOCK_STATE) == TCP_LISTEN && socket_inode(owner->sk) == owner->inode;
}

#define TCP_HLEN	20
#define TCP_OPTIONS	40	 /* at most */
#define MPTCP_JOIN_LEN	12	 /* of the option in a SYN (RFC 8684, 3.2) */
#define MPTCP_JOIN_HEAD 0x100c1e /* kind 30, this length, subtype 1; of the third byte the upper half */

/*
 * Whether a SYN for a listener adds a subflow to a connection of MPTCP, as in is_joining. The option is
 * searched at each offset: what only looks like it makes the packet unknown.
 */
static inline int joins(struct packet *packet, struct headers *headers, u64 listener)
{
#ifdef TCP_IS_MPTCP
	u8 *options = (u8 *)&packet->work.owner;
	u64 len = tcp_header_len(headers) - TCP_HLEN, found = 0;

	if (listener && !LOAD(u8, listener + TCP_IS_MPTCP))
		return 0;
	LOAD_WORDS(options, TCP_OPTIONS, packet->data + headers->transport + TCP_HLEN);
	for (u64 i = 0; i <= TCP_OPTIONS - MPTCP_JOIN_LEN; i++) {
		u64 head = options[i] | options[i + 1] << 8 | (options[i + 2] & 0xf0) << 16;

		found |= (1 - any(head ^ MPTCP_JOIN_HEAD)) & (i + MPTCP_JOIN_LEN - len - 1) >> 63;
	}
	return found;
#else
	return 0;
#endif
}

/* The connection of a TCP segment, or the listener for a SYN. */
static inline void match_tcp(struct packet *packet, struct headers *headers, u32 ifindex, struct match *match)
{
	struct flow *flow = &packet->work.flow;

	match->owner = find_flow(flow);
	/* Its listener is closed: the request is nobody's, or that of another listener (tcp_migrate_req). */
	if (match->owner && match->owner->binding == OF_REQUEST && !is_listening(match->owner)) {
		match->owner = NULL;
		if (!is_syn(headers))
			return;
	}
	/*
	 * The same ports again: a new connection, also if only its answer is seen (directions: in).
	 */
	if (match->owner && match->owner->time &&
	    (headers->flag_word & TCP_FLAG_SYN || refuses(packet->data + headers->transport, headers))) {
		flows.delete(flow);
		match->owner = NULL;
	}
	if (match->owner || !is_syn(headers))
		return;
	match->owner = find_listener(flow, ifindex, &match->wildcard);
	if (match->owner && joins(packet, headers, ONCE(match->owner->sk)))
		match->owner = NULL;
	match->listens = 1;
	match->several = match->owner && find_sharing(match->owner->sk, &packet->group);
}

/* The record of an echo request, for its reply; NULL: none. */
static inline struct owner *match_echo_request(struct flow *flow)
{
	struct owner *owner = flows.lookup(flow);

	/* A closed socket gets no reply: the request of the next one may not have been seen. */
	return owner && owner->inode && socket_inode(owner->sk) != owner->inode ? NULL : owner;
}

/* The user of what the flow of a packet leads to. Returns how it was found. */
static inline enum via find_matched_user(struct control *control, struct packet *packet, struct match *match)
{
	struct sock_head *sock = &packet->work.sock;
	struct owner *owner = match->owner;
	u64 sk = match->sk;

	if (match->several)
		return find_group(control, packet);
	if (owner) {
		sk = ONCE(owner->sk);
		if (owner->user.tgid && !(match->listens && references_of(sk) > 1))
			return copy_user(&packet->user, owner, sk) ? VIA_FLOW : VIA_UNKNOWN;
		if (!sk) { /* several, as Python has found at the start; or none */
			packet->inode = owner->inode;
			return owner->inode ? find_holder(control, packet) : VIA_UNKNOWN;
		}
	}
	/*
	 * A UDP socket, or one whose connection is not accepted yet, or whose user was not known at
	 * the request.
	 */
	packet->sk = sk;
	if (READ(sock, sizeof(*sock), sk) || (owner && owner->identity != SOCK_IDENTITY(sock)))
		return VIA_UNKNOWN;
	packet->inode = socket_inode(sk);
	if (!owner && !is_user_socket(sock))
		return VIA_KERNEL;
	return find_user(control, packet, VIA_FLOW);
}

/*
 * Sets the receiver of a packet, and the key for its later fragments; zeros if it is not known.
 * Returns how it was found.
 */
static inline enum via find_receiver_of(struct control *control, struct packet *packet, struct skb *skb,
					struct headers *headers, struct fragment *fragment)
{
	struct flow *flow = &packet->work.flow;
	struct match match = {};
	struct destination to;
	struct wanted wanted;
	u64 nothing = control->nothing;
	u32 type = SKB_BITS(skb, PKT_TYPE);

	packet->sk = 0;
	if (!find_destination(control, packet, skb, &to))
		return VIA_UNKNOWN;
	flow_of_packet(packet->data, packet->linear_end - packet->data, SKB(skb, u16, PROTOCOL), IN, flow,
		       headers);
	if (headers->fragment)
		set_fragment(fragment, to.cookie, flow, headers);
	if (!headers->transport)
		return VIA_UNKNOWN;
	flow->net = to.cookie;
	wanted.address[0] = flow->local[0];
	wanted.address[1] = flow->local[1];
	wanted.family = flow->family;
	wanted.multicast = headers->multicast | type == PACKET_BROADCAST | type == PACKET_MULTICAST;
	if (flow->protocol == IPPROTO_UDP) {
		match.sk = find_udp_socket(control, to.net, to.ifindex, flow, wanted.multicast,
					   &packet->work.sock, &match.wildcard, &packet->group);
		match.several = packet->group.count > 1;
		match.wildcard |= wanted.multicast;
		if (is_encapsulating(match.sk) || (is_for_group(flow) && !match.several &&
						   !takes_group(match.sk, flow, to.ifindex, nothing)))
			return VIA_UNKNOWN;
	} else if (flow->protocol == IPPROTO_TCP) {
		match_tcp(packet, headers, to.ifindex, &match);
	} else if (is_icmp(flow->protocol)) {
		if (!to_echo_request(flow))
			return VIA_UNKNOWN;
		match.owner = match_echo_request(flow);
	}
	FORGET(match.wildcard, nothing);
	FORGET(match.sk, nothing);
	FORGET(match.several, nothing);
	FORGET(match.listens, nothing);
	if (!(match.owner || match.sk) || (match.wildcard && !has_address(to.dev, &wanted, nothing, 0)))
		return VIA_UNKNOWN;
	return find_matched_user(control, packet, &match);
}

#define FRAGMENT_LASTS_NS 1000000000ULL

/* The same for any packet: a later fragment has the receiver of the first one. */
static inline enum via find_receiver(struct control *control, struct packet *packet, struct skb *skb)
{
	struct headers headers = {};
	struct fragment fragment = {};
	struct owner *owner = &packet->work.owner;
	enum via via = find_receiver_of(control, packet, skb, &headers, &fragment);

	if (!fragment.family)
		return via;
	if (!(headers.fragment & IP_OFFSET)) {
		owner->user = packet->user;
		owner->inode = packet->inode;
		owner->identity = via;
		owner->sk = packet->sk;
		owner->time = packet->time;
		fragments.update(&fragment, owner);
		return via;
	}
	owner = fragments.lookup(&fragment);
	if (!owner || packet->time - owner->time > FRAGMENT_LASTS_NS)
		return VIA_UNKNOWN;
	packet->user = owner->user;
	packet->sk = owner->sk;
	packet->inode = owner->inode;
	if (owner->identity != VIA_UNRESOLVED)
		return owner->identity;
	READ(&packet->work.sock, sizeof(packet->work.sock), packet->sk);
	return find_holder(control, packet);
}
