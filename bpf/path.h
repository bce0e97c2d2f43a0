/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The process of a packet that passes through, or whose addresses prove nothing.
 *
 * A packet is followed by its sk_buff (sighting.h) from the socket of its sender: as long as it is
 * on its way out, it belongs to its sender, on all interfaces. Where it leaves, the flow is stored
 * *as it is on that interface*, after NAT, for the namespace of the interface: the answer that
 * arrives there belongs to the same process (a flow on the wire). From there the answer is followed
 * in turn.
 *
 * A flow on the wire is valid for 30 s after its last packet (TCP: until the next SYN). A sent
 * packet with the same addresses and ports and an unknown process ends it: with masquerade, another
 * process may use the port by then. If two open sockets send with the same addresses and ports, as
 * two separate containers can, the answers are unknown.
 */

#define WIRE_LASTS_NS  (30 * 1000000000ULL)
#define WIRE_RENEWS_NS 1000000000ULL /* an entry is not written for every packet */

/*
 * Bit 0 of the time of a flow on the wire: its user is a listener, so the process that accepts the
 * connection is not certain.
 */
#define WIRE_IS_REQUEST 1ULL

/* include/linux/netfilter/nf_conntrack_common.h */
#define NFCT_INFOMASK  7ULL
#define IP_CT_IS_REPLY 3
#define IPS_CONFIRMED  (1 << 3)
#define IPS_DYING      (1 << 9)

#define ON_WIRE(vlan) (1 + (vlan)) /* each VLAN can have its own host at an address */
#define DOMAIN_SHIFT  48	   /* of a net_cookie, which counts the namespaces */

/*
 * What distinguishes the addresses of a VRF from those of others in its network namespace, to be added
 * to the net_cookie. 0: the interface is in no VRF. A master is the first interface above
 * (__netdev_adjacent_dev_insert in net/core/dev.c).
 */
static inline u64 domain_of(u64 dev)
{
	u32 flags = LOAD(u32, dev + DEV_PRIVATE_FLAGS);

	if (flags & IFF_L3MDEV_SLAVE)
		dev = LOAD(u64, LOAD(u64, dev + DEV_UPPER) - ADJACENT_LIST + ADJACENT_DEV);
	else if (!(flags & IFF_L3MDEV_MASTER))
		return 0;
	return (u64)LOAD(u32, dev + DEV_IFINDEX) << DOMAIN_SHIFT;
}

/*
 * The user of the socket of a packet, which was not known when the packet was first seen: it may be
 * recorded by now, or Python looks it up. `found` is the way if it is recorded.
 */
static inline enum via resolve_socket(struct control *control, struct packet *packet, u64 sk, u64 identity,
				      enum via found)
{
	struct sock_head *sock = &packet->work.sock;

	packet->sk = sk;
	if (READ(sock, sizeof(*sock), sk) || SOCK_IDENTITY(sock) != identity)
		return VIA_UNKNOWN;
	packet->inode = socket_inode(sk);
	return find_user(control, packet, found);
}

/*
 * A packet that was seen before: how its process, now its user, was found. `sk` is the socket on
 * which it is sent.
 */
static inline enum via find_followed(struct control *control, struct packet *packet, struct skb *skb,
				     struct sighting *sighting, u64 sk, u32 direction)
{
	u64 last = sighting->places[sighting->count - 1 & (SIGHTING_PLACES - 1)];

	if (sighting->via == VIA_GROUP)
		return VIA_GROUP;
	if (packet->user.tgid)
		/* Without `last & 1` it is still on its way through stacked interfaces. */
		return sk && !(last & 1) ? sighting->via : VIA_PATH;
	if (sk)
		return sighting->via;
	if (sighting->via == VIA_UNRESOLVED)
		return resolve_socket(control, packet, sighting->origin.sk, sighting->origin.identity,
				      VIA_PATH);
	if (direction == IN)
		return VIA_UNKNOWN;
	return SKB(skb, u32, SKB_IIF) ? VIA_FORWARDED : VIA_KERNEL;
}

/*
 * Whether the sent packet can still be translated: the kprobe is before the hooks at the
 * interface's egress.
 */
static inline int may_change(struct packet *packet)
{
	u64 changes = 0;

#ifdef KPROBE
#ifdef DEV_TC_EGRESS
	changes |= LOAD(u64, packet->dev + DEV_TC_EGRESS);
#endif
#ifdef DEV_NF_EGRESS
	changes |= LOAD(u64, packet->dev + DEV_NF_EGRESS);
#endif
#endif
	return changes != 0;
}

/* Whether the socket of a record is open, and still the same. */
static inline int is_still_open(struct owner *known)
{
	return known->inode && socket_inode(known->sk) == known->inode;
}

/* Whether a TCP socket is a connection that has not ended. */
static inline int is_connection(u64 sk)
{
	u32 state = LOAD(u8, sk + SOCK_STATE);

	return is_tcp_socket(sk) && state != TCP_CLOSE && state != TCP_LISTEN;
}

/* Whether a sent packet can have an answer with its flow. */
static inline int can_have_answer(struct flow *flow)
{
	if (is_icmp(flow->protocol))
		return flow->remote_port == echo_request(flow->protocol);
	return flow->protocol == IPPROTO_TCP || flow->protocol == IPPROTO_UDP;
}

#define UDP_ENCAP_PORT 4500 /* RFC 3948 */

/*
 * Whether a packet can be one that IPsec has put into UDP: it is still on the socket of its sender, and
 * what answers it can be for any process. So can be packets of the key daemon at this port.
 */
static inline int is_nat_traversal(struct flow *flow)
{
	return flow->protocol == IPPROTO_UDP &&
	       (flow->local_port == UDP_ENCAP_PORT || flow->remote_port == UDP_ENCAP_PORT);
}

/*
 * The conntrack entry (struct nf_conn) of a sent packet, and in bit 0 its direction there: 1 is that of
 * answers. 0: it has none.
 */
static inline u64 conntrack_of(struct skb *skb)
{
#ifdef CONNTRACK_TUPLES
	u64 nfct = SKB(skb, u64, CONNTRACK), entry = nfct & ~NFCT_INFOMASK;

	return -any(entry) & (entry | (nfct & NFCT_INFOMASK) >= IP_CT_IS_REPLY);
#else
	return 0;
#endif
}

#ifdef CONNTRACK_TUPLES
/*
 * Whether the answers to the packets of a conntrack entry have a flow: the kernel finds the entry by these
 * addresses and ports.
 */
static inline int is_of_entry(u64 conntrack, struct flow *flow)
{
	u64 entry = conntrack & ~1ULL;
	u64 at = entry + CONNTRACK_TUPLES + (1 - (conntrack & 1)) * TUPLE_HASH_SIZE + TUPLE_HASH_TUPLE;
	u64 source[2], to[2], has_ports = !is_icmp(flow->protocol);
	u32 ports = __builtin_bswap16(flow->remote_port) | (u32)__builtin_bswap16(flow->local_port) << 16;

	LOAD_WORDS(source, sizeof(source), at);
	LOAD_WORDS(to, sizeof(to), at + TUPLE_TO);
	u64 differs = source[0] ^ flow->remote[0] | source[1] ^ flow->remote[1];

	/* The flow of an echo has no local address. */
	differs |= -has_ports & (to[0] ^ flow->local[0] | to[1] ^ flow->local[1]);
	differs |= -has_ports &
		   (ports ^ (LOAD(u16, at + TUPLE_PORT) | (u32)LOAD(u16, at + TUPLE_TO + TUPLE_PORT) << 16));
	return !differs;
}

/*
 * Whether what answers a sent packet with a flow is still translated by the same conntrack entry. An
 * administrator or kube-proxy can delete it (`conntrack -D`), and it expires; then the next packet is
 * translated by the rules of that time, possibly for another process. An entry that was freed and used
 * again has other addresses.
 */
static inline int is_tracked(u64 conntrack, struct flow *flow)
{
	u64 entry = conntrack & ~1ULL;
	s32 remains = LOAD(u32, entry + CONNTRACK_TIMEOUT) - (u32)bpf_jiffies64();

	return is_of_entry(conntrack, flow) && remains > 0 &&
	       (LOAD(u32, entry + CONNTRACK_STATUS) & (IPS_CONFIRMED | IPS_DYING)) == IPS_CONFIRMED;
}

/* Whether a conntrack entry translates: the addresses and ports of its directions differ. */
static inline int is_translating(u64 conntrack)
{
	u64 at = (conntrack & ~1ULL) + CONNTRACK_TUPLES + TUPLE_HASH_TUPLE, back = at + TUPLE_HASH_SIZE;
	u64 differs = 0;

	for (u32 i = 0; i < 16; i += 8)
		differs |= LOAD(u64, at + i) ^ LOAD(u64, back + TUPLE_TO + i) |
			   LOAD(u64, at + TUPLE_TO + i) ^ LOAD(u64, back + i);
	differs |= LOAD(u16, at + TUPLE_PORT) ^ LOAD(u16, back + TUPLE_TO + TUPLE_PORT) |
		   LOAD(u16, at + TUPLE_TO + TUPLE_PORT) ^ LOAD(u16, back + TUPLE_PORT);
	return conntrack && differs;
}
#else
#define is_of_entry(conntrack, flow) 1
#define is_tracked(conntrack, flow)  1
#define is_translating(conntrack)    0
#endif

/*
 * Whether the answer to what a UDP socket has sent can be for another process, however many sockets have
 * the port. A connected socket is looked up before TPROXY and sk_lookup choose another one, in its own
 * namespace (nft_tproxy_eval_v4, udp4_lib_lookup). IPVS can send each datagram to another server, or
 * forget which one it has chosen; it does not if conntrack translates, or if our side has begun.
 */
static inline int is_answer_for_others(struct control *control, struct packet *packet, struct owner *owner)
{
	u64 sk = owner->sk, net = LOAD(u64, sk + SOCK_NET), guard = packet->guard;
	u32 is_connected = LOAD(u8, sk + SOCK_STATE) == TCP_ESTABLISHED, is_here = net == packet->net;

	if (guard & GUARD_BALANCES && (!owner->conntrack || owner->conntrack & 1) &&
	    !is_translating(owner->conntrack))
		return 1;
	if (is_connected && is_here)
		return 0;
	if (!is_here && !is_connected)
		guard |= guard_of_other(packet, net, control->nothing);
	return any(guard & GUARD_ANSWERS);
}

/*
 * How a UDP socket is bound and connected: its ports, and a hash of the address of its peer. It changes when
 * the socket is connected again; then what comes to the earlier port, or from the earlier peer, is for others.
 */
static inline u64 binding_of(u64 sk)
{
	u64 peer = (LOAD(u64, sk + SOCK_V6_DADDR) * HASH_FACTOR + LOAD(u64, sk + SOCK_V6_DADDR + 8)) *
			   HASH_FACTOR +
		   LOAD(u32, sk + SOCK_DADDR);

	return LOAD(u16, sk + SOCK_NUM) | (u64)LOAD(u16, sk + SOCK_DPORT) << 16 |
	       peer * HASH_FACTOR >> 32 << 32;
}

/* The first interface above another one, such as its bridge, bond or VRF; 0: none. */
static inline u32 upper_of(u64 dev)
{
	u64 head = dev + DEV_UPPER, node = LOAD(u64, head);

	return node == head ? 0 : LOAD(u32, LOAD(u64, node - ADJACENT_LIST + ADJACENT_DEV) + DEV_IFINDEX);
}

/*
 * Whether the UDP socket of a flow on the wire receives what answers. In its own namespace, and if nothing
 * translates, its addresses and its interface show it; otherwise it must be bound as it was when the packet left.
 */
static inline int takes_answer(struct packet *packet, struct owner *owner, struct flow *flow)
{
	u64 sk = owner->sk, v4 = flow->family == AF_INET, dev = LOAD(u32, sk + SOCK_BOUND_DEV_IF);
	u64 v4_local = LOAD(u32, sk + SOCK_RCV_SADDR), v4_peer = LOAD(u32, sk + SOCK_DADDR);
	u64 port = LOAD(u16, sk + SOCK_NUM), peer_port = __builtin_bswap16(LOAD(u16, sk + SOCK_DPORT));
	u64 local0 = v4 * v4_local + (1 - v4) * LOAD(u64, sk + SOCK_V6_RCV_SADDR);
	u64 local1 = (1 - v4) * LOAD(u64, sk + SOCK_V6_RCV_SADDR + 8);
	u64 peer0 = v4 * v4_peer + (1 - v4) * LOAD(u64, sk + SOCK_V6_DADDR);
	u64 peer1 = (1 - v4) * LOAD(u64, sk + SOCK_V6_DADDR + 8);
	u64 differs = port ^ flow->local_port;

	if (LOAD(u64, sk + SOCK_NET) != packet->net || is_translating(owner->conntrack))
		return binding_of(sk) == owner->binding;
	differs |= -any(peer_port) & (peer_port ^ flow->remote_port);
	differs |= -any(local0 | local1) & (local0 ^ flow->local[0] | local1 ^ flow->local[1]);
	differs |= -any(peer0 | peer1) & (peer0 ^ flow->remote[0] | peer1 ^ flow->remote[1]);
	differs |= any(dev) & any(dev ^ packet->key.ifindex) & any(dev ^ upper_of(packet->dev));
	return !differs;
}

#define RENEWED_SHIFT 30 /* of a time in ns: about a second */

/* A part of a hash: products with different odd factors are added, in any order. */
#define PART(value, number) ((value) * (HASH_FACTOR + 0x632be59bd9b4e019ULL * 2 * (number)))

/*
 * A hash of a sent packet: its addresses and ports, its socket, the record of its user, its conntrack entry, the number of
 * changes of flows on the wire, and the second. It must be short: this code runs for each packet, and is mostly not in the cache
 * of the processor. So headers are read as if they were plain, because others are not stored under
 * their hash (note_entered).
 */
static inline u64 hash_sent(struct control *control, struct packet *packet, struct skb *skb,
			    struct origin *origin)
{
	u64 at = packet->head + SKB(skb, u16, NETWORK_HEADER);
	u64 sum = PART(origin->sk, 0) + PART(origin->version, 1) + PART(packet->dev, 2) +
		  PART(conntrack_of(skb), 3) +
		  PART(ONCE(control->wired) << 32 ^ packet->time >> RENEWED_SHIFT, 4);

	if (SKB(skb, u16, PROTOCOL) == htons(ETH_P_IP)) {
		sum += PART(LOAD(u32, at + __builtin_offsetof(struct iphdr, saddr)), 5);
		/* and the ports */
		sum += PART(LOAD(u64, at + __builtin_offsetof(struct iphdr, daddr)), 6);
	} else {
		sum += PART(LOAD(u64, at + __builtin_offsetof(struct ipv6hdr, saddr)), 5);
		sum += PART(LOAD(u64, at + __builtin_offsetof(struct ipv6hdr, saddr) + 8), 6);
		sum += PART(LOAD(u64, at + __builtin_offsetof(struct ipv6hdr, daddr)), 7);
		sum += PART(LOAD(u64, at + __builtin_offsetof(struct ipv6hdr, daddr) + 8), 8);
		sum += PART(LOAD(u32, at + sizeof(struct ipv6hdr)), 9);
	}
	return sum;
}

/* The place of a hash in the table of this processor. */
static inline u64 *find_entered(struct packet *packet, u64 hash)
{
	return &packet->entered[BOUND(hash >> (64 - ENTERED_BITS), (1 << ENTERED_BITS) - 1)];
}

/*
 * Stores that the flow of a packet is entered, if its headers are plain and its user is certain. So most
 * packets need no lookup.
 */
static inline void note_entered(struct packet *packet, struct flow *flow, struct headers *headers,
				struct origin *origin, u64 hash)
{
	u64 is_v6 = 1 - any(flow->family ^ AF_INET6);
	u64 length = is_v6 * sizeof(struct ipv6hdr) + (1 - is_v6) * sizeof(struct iphdr);
	u64 is_odd = (headers->transport ^ length) | headers->fragment | is_icmp(flow->protocol) |
		     origin->is_request | (any(packet->user.tgid & -any(origin->version)) ^ 1);

	*find_entered(packet, hash) = (any(is_odd) - 1) & hash;
}

/* Ends a flow on the wire. */
static inline void end_wire_flow(struct control *control, struct flow *flow)
{
	flows.delete(flow);
	__sync_fetch_and_add(&control->wired, 1);
}

/*
 * Sets the flow in `work` to that of a sent packet on the wire, and reads its headers. Returns whether what
 * answers it can only be for its sender.
 */
static inline int flow_on_wire(struct packet *packet, struct skb *skb, struct headers *headers)
{
	struct flow *flow = &packet->work.flow;

	/* What answers the outer packet of a tunnel can be for any process behind the tunnel. */
	if (SKB_BITS(skb, ENCAPSULATION))
		return 0;
	flow_of_sent(packet, skb, headers);
	if (!headers->transport || !can_have_answer(flow) || is_nat_traversal(flow) || may_change(packet))
		return 0;
	flow->on_wire = ON_WIRE(vlan_of(skb));
	flow->net ^= domain_of(packet->dev);
	return 1;
}

/*
 * The conntrack entry that translates what answers a sent packet with a flow, as from conntrack_of; 0: none.
 * If tc or nftables at the egress has translated the packet, too, its answer does not have the addresses of
 * the entry.
 */
static inline u64 conntrack_of_answer(struct skb *skb, struct flow *flow)
{
	u64 conntrack = conntrack_of(skb);

	if (conntrack && !is_of_entry(conntrack, flow))
		conntrack = 0;
	return conntrack;
}

/*
 * Whether a flow on the wire stays one of two senders when a packet is sent on `sk`, `age` after the last
 * one; stores which of them has sent it. `is_new`: it begins a connection.
 */
static inline int stays_of_two(struct packet *packet, struct owner *known, u64 sk, u64 is_new, u64 age)
{
	u64 is_tcp = packet->work.flow.protocol == IPPROTO_TCP, last = known->binding;

	if (known->user.tgid || known->identity || known->sk)
		return 0;
	if (is_tcp ? is_new && !is_connection(last) : age >= WIRE_LASTS_NS)
		return 0;
	if (!is_tcp && last != sk) {
		known->binding = sk;
		known->time = packet->time & ~WIRE_IS_REQUEST;
	}
	return 1;
}

/*
 * Renews a flow on the wire, `age` after its last packet, if it is of the sender of this one: of the same
 * socket and user as in `owner`. Returns whether it is.
 */
static inline int renew_wire_flow(struct packet *packet, struct owner *known, struct owner *owner,
				  struct origin *origin, u64 age, u64 conntrack, u64 binding)
{
	u64 was_request = known->time & WIRE_IS_REQUEST;

	if ((known->sk != origin->sk && origin->sk) || was_request != origin->is_request ||
	    !is_same_user(&known->user, &owner->user))
		return 0;
	if (age > WIRE_RENEWS_NS)
		known->time = packet->time & ~WIRE_IS_REQUEST | was_request;
	known->conntrack = conntrack;
	known->binding = binding;
	return 1;
}

/* Whether the flow on the wire of another open socket and process becomes one of two senders. */
static inline u64 becomes_of_two(struct owner *known, struct owner *owner, struct flow *flow, u64 sk, u64 age)
{
	return known && known->sk != sk && !(known->time & WIRE_IS_REQUEST) && owner->user.tgid &&
	       known->user.tgid && known->user.tgid != owner->user.tgid && is_still_open(known) &&
	       (flow->protocol == IPPROTO_TCP ? is_connection(known->sk) : age < WIRE_LASTS_NS);
}

/* A packet is sent: stores the process for its answer. */
static inline void enter_wire_flow(struct control *control, struct packet *packet, struct skb *skb,
				   struct origin *origin)
{
	struct workspace *work = &packet->work;
	struct flow *flow = &work->flow;
	struct owner *owner = &work->owner, *known;
	struct headers headers;
	/* First: a change from now on is noticed with the next packet. */
	u64 hash = hash_sent(control, packet, skb, origin);

	if (*find_entered(packet, hash) == hash || !flow_on_wire(packet, skb, &headers))
		return;
	known = flows.lookup(flow);
	if (packet->key.via == VIA_GROUP) /* a group is no user: it is looked up for each answer */
		__builtin_memset(&owner->user, 0, sizeof(owner->user));
	else
		owner->user = packet->user;
	if (!owner->user.tgid && !origin->identity) {
		if (known)
			end_wire_flow(control, flow);
		return;
	}
	u64 is_known_user = owner->user.tgid;
	u64 is_new = flow->protocol == IPPROTO_TCP && is_syn(&headers);
	u64 sk = origin->sk, conntrack = conntrack_of_answer(skb, flow), binding = binding_of(sk);

	/*
	 * Forged (AF_PACKET, SOCK_RAW): what answers is for the connection with these addresses, if there is one;
	 * it can be older than the capture, or not accepted yet.
	 */
	if (flow->protocol == IPPROTO_TCP && sk && !is_tcp_socket(sk)) {
		if (is_new && known && !is_still_open(known))
			end_wire_flow(control, flow);
		return;
	}
	u64 age = known ? packet->time - known->time : WIRE_LASTS_NS;

	if (known && stays_of_two(packet, known, sk, is_new, age))
		return;
	if (known && !is_new && renew_wire_flow(packet, known, owner, origin, age, conntrack, binding)) {
		if (packet->key.via != VIA_GROUP)
			note_entered(packet, flow, &headers, origin, hash);
		return;
	}
	if (becomes_of_two(known, owner, flow, sk, age)) { /* whoever of them sends next */
		__builtin_memset(&owner->user, 0, sizeof(owner->user));
		binding = flow->protocol == IPPROTO_TCP ? known->sk : sk;
		sk = conntrack = 0;
	}
	owner->sk = sk;
	owner->inode = socket_inode(sk);
	owner->identity = is_known_user ? 0 : origin->identity;
	owner->time = packet->time & ~WIRE_IS_REQUEST | origin->is_request;
	owner->conntrack = conntrack;
	owner->binding = binding;
	flows.update(flow, owner);
	__sync_fetch_and_add(&control->wired, 1);
}

/*
 * Whether the connection of the flow in `work` is one of another socket than that of its record, which is closed: a
 * process has made it again without a packet (TCP_REPAIR), and has sent nothing yet. Overwrites the flow.
 */
static inline int is_taken_over(struct packet *packet, struct owner *owner)
{
	struct flow *flow = &packet->work.flow;
	struct owner *known;

	flow->net = packet->key.net;
	flow->on_wire = 0;
	known = lookup_flow(flow);
	return known && !known->time && known->inode != owner->inode;
}

/* Whether what answers is for the UDP socket of a flow on the wire, or for its group (SO_REUSEPORT). */
static inline int is_for_socket(struct control *control, struct packet *packet, struct owner *owner)
{
	struct flow *flow = &packet->work.flow;

	return takes_answer(packet, owner, flow) && !is_encapsulating(owner->sk) &&
	       !is_transparent(owner->sk) && !is_answer_for_others(control, packet, owner) &&
	       !shares_port(control, owner->sk, flow, &packet->work.sock);
}

/* The user of a flow on the wire, for an answer to it. Returns how it was found. */
static inline enum via find_user_of_wire_flow(struct control *control, struct packet *packet,
					      struct owner *owner)
{
	struct flow *flow = &packet->work.flow;
	u64 sk = ONCE(owner->sk);

	if (flow->protocol == IPPROTO_TCP && sk && owner->inode && !is_still_open(owner) &&
	    is_taken_over(packet, owner))
		return VIA_UNKNOWN;
	struct owner *last = owners.lookup(&sk);

	if (flow->protocol != IPPROTO_TCP && (owner->user.tgid || owner->identity)) {
		/* Its socket is closed: nobody gets the packet, or who has the port now. */
		if (owner->sk && !is_still_open(owner))
			return VIA_UNKNOWN;
		packet->inode = owner->inode;
		if (flow->protocol == IPPROTO_UDP && owner->sk) {
			if (!is_for_socket(control, packet, owner))
				return VIA_UNKNOWN;
			if (find_sharing(owner->sk, &packet->group))
				return find_group(control, packet);
		}
		if (flow->protocol == IPPROTO_UDP && owner->user.tgid && last &&
		    last->inode == owner->inode && is_shared(owner->sk, last)) {
			packet->sk = owner->sk;
			return find_sharers(control, packet, last, VIA_FLOW);
		}
	}
	/* Who has sent may have passed the socket on: its last user receives. */
	if (!is_icmp(flow->protocol) && owner->user.tgid && !(owner->time & WIRE_IS_REQUEST) &&
	    owner->inode && last && last->inode == owner->inode && last->user.tgid)
		return copy_user(&packet->user, last, sk) ? VIA_FLOW : VIA_UNKNOWN;
	if (!copy_user(&packet->user, owner, sk))
		return VIA_UNKNOWN;
	if (packet->user.tgid)
		return VIA_FLOW;
	return owner->identity ? resolve_socket(control, packet, sk, owner->identity, VIA_FLOW) : VIA_UNKNOWN;
}

/*
 * A packet arrives: its process by the flow on the wire. Sets zeros if it is not known; returns how
 * it was found.
 */
static inline enum via find_by_wire_flow(struct control *control, struct packet *packet, struct skb *skb)
{
	struct flow *flow = &packet->work.flow;
	struct headers headers;
	struct owner *owner;

	packet->sk = 0;
	if (!control->wired || packet->guard & GUARD_RULES)
		return VIA_UNKNOWN;
	u64 at = packet->data;
	u32 ether_type = SKB(skb, u16, PROTOCOL), vlan = skip_tag(skb, &at, &ether_type);

	flow_of_packet(at, packet->linear_end - at, ether_type, IN, flow, &headers);
	if (!headers.transport)
		return VIA_UNKNOWN;
	flow->net = packet->key.net ^ domain_of(packet->dev);
	flow->on_wire = ON_WIRE(vlan);
	if (is_icmp(flow->protocol) && !to_echo_request(flow))
		return VIA_UNKNOWN;
	owner = lookup_flow(flow);
	if (!owner)
		return VIA_UNKNOWN;
	if (owner->conntrack && !is_tracked(owner->conntrack, flow)) {
		end_wire_flow(control, flow);
		return VIA_UNKNOWN;
	}
	if (flow->protocol != IPPROTO_TCP) {
		if (packet->time - owner->time > WIRE_LASTS_NS)
			return VIA_UNKNOWN;
	} else if (is_syn(&headers)) {
		/*
		 * A connection that begins from outside: the flow belonged to an earlier one with
		 * these ports.
		 */
		if (!(owner->time & WIRE_IS_REQUEST) || (owner->sk && !is_listening(owner))) {
			end_wire_flow(control, flow);
			return VIA_UNKNOWN;
		}
	} else if (owner->time & WIRE_IS_REQUEST && owner->sk && !is_listening(owner)) {
		return VIA_UNKNOWN; /* the request is nobody's, or that of another listener */
	} else if (owner->time & WIRE_IS_REQUEST &&
		   (headers.flag_word & TCP_FLAG_FIN ||
		    SKB(skb, u32, LEN) > at - packet->data + headers.transport + tcp_header_len(&headers))) {
		/*
		 * For a connection without a known user: the process that has the listener open, if
		 * there is only one.
		 */
		packet->inode = owner->inode;
		return owner->inode ? find_holder(control, packet) : VIA_UNKNOWN;
	}
	return find_user_of_wire_flow(control, packet, owner);
}

/*
 * Whether a received packet is not for an address of the interface: it passes through, or is for an
 * address of another interface.
 */
static inline int is_passing(struct control *control, struct packet *packet, struct skb *skb)
{
	struct wanted wanted = {};
	union network_header header = {};
	u32 type = SKB_BITS(skb, PKT_TYPE), ether_type = SKB(skb, u16, PROTOCOL);

	/* A macvlan interface above may receive it (find_destination). */
	if (type == PACKET_OTHERHOST)
		return !(LOAD(u32, packet->dev + DEV_PRIVATE_FLAGS) & IFF_MACVLAN_PORT);
	if (type != PACKET_HOST)
		return 0;
	LOAD_WORDS(header.words, sizeof(header), packet->data);
	if (ether_type == htons(ETH_P_IP)) {
		wanted.family = AF_INET;
		wanted.address[0] = header.v4.daddr;
	} else if (ether_type == htons(ETH_P_IPV6)) {
		wanted.family = AF_INET6;
		wanted.address[0] = header.v6.daddr[0];
		wanted.address[1] = header.v6.daddr[1];
	} else {
		return 0;
	}
	return !has_address(packet->dev, &wanted, control->nothing, 1);
}
