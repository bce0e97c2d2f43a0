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

#define RENEWED_SHIFT 30 /* of a time in ns: about a second */

/*
 * A hash of a sent packet: its addresses and ports, its socket and user, the number of changes of
 * flows on the wire, and the second. It must be short: this code runs for each packet, and is mostly not in the cache
 * of the processor. So headers are read as if they were plain, because others are not stored under
 * their hash (note_entered).
 */
static inline u64 hash_sent(struct control *control, struct packet *packet, struct skb *skb, u64 sk)
{
	u64 at = packet->head + SKB(skb, u16, NETWORK_HEADER), flow, ports;
	struct user *user = &packet->user;
	u64 names = user->comm[0] ^ user->comm[1] << 1 ^ user->process[0] << 2 ^ user->process[1] << 3;
	u64 rest = packet->dev ^ ONCE(control->wired) << 32 ^ user->start ^ (u64)user->tid << 32 ^
		   packet->time >> RENEWED_SHIFT;

	if (SKB(skb, u16, PROTOCOL) == htons(ETH_P_IP)) {
		flow = LOAD(u32, at + __builtin_offsetof(struct iphdr, saddr));
		ports = LOAD(u64, at + __builtin_offsetof(struct iphdr, daddr)); /* and the destination */
	} else {
		flow = LOAD(u64, at + __builtin_offsetof(struct ipv6hdr, saddr));
		flow = flow * HASH_FACTOR + LOAD(u64, at + __builtin_offsetof(struct ipv6hdr, saddr) + 8);
		flow = flow * HASH_FACTOR + LOAD(u64, at + __builtin_offsetof(struct ipv6hdr, daddr));
		flow = flow * HASH_FACTOR + LOAD(u64, at + __builtin_offsetof(struct ipv6hdr, daddr) + 8);
		ports = LOAD(u32, at + sizeof(struct ipv6hdr));
	}
	return (((flow ^ sk) * HASH_FACTOR + ports) * HASH_FACTOR + (names ^ rest)) * HASH_FACTOR;
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
		     origin->is_request | (any(packet->user.tgid) ^ 1);

	*find_entered(packet, hash) = (any(is_odd) - 1) & hash;
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
	u64 hash = hash_sent(control, packet, skb, origin->sk);

	if (*find_entered(packet, hash) == hash)
		return;
	/* What answers the outer packet of a tunnel can be for any process behind the tunnel. */
	if (SKB_BITS(skb, ENCAPSULATION))
		return;
	flow_of_sent(packet, skb, &headers);
	if (!headers.transport || !can_have_answer(flow) || is_nat_traversal(flow) || may_change(packet))
		return;
	flow->on_wire = ON_WIRE(vlan_of(skb));
	flow->net ^= domain_of(packet->dev);
	known = flows.lookup(flow);
	if (packet->key.via == VIA_GROUP) /* a group is no user: it is looked up for each answer */
		__builtin_memset(&owner->user, 0, sizeof(owner->user));
	else
		owner->user = packet->user;
	if (!owner->user.tgid && !origin->identity) {
		if (known) {
			flows.delete(flow);
			__sync_fetch_and_add(&control->wired, 1);
		}
		return;
	}
	u64 is_known_user = owner->user.tgid;
	u64 is_new = flow->protocol == IPPROTO_TCP && is_syn(&headers);
	u64 sk = origin->sk;

	/* A forged SYN (AF_PACKET, IPPROTO_RAW) does not change the user of an open connection. */
	if (is_new && known && sk && socket_protocol(sk) != IPPROTO_TCP && is_still_open(known))
		return;
	u64 age = known ? packet->time - known->time : WIRE_LASTS_NS;
	u64 was_request = known ? known->time & WIRE_IS_REQUEST : 0;

	if (known && !is_new) {
		if ((known->sk == sk || !sk) && was_request == origin->is_request &&
		    is_same_user(&known->user, &owner->user)) {
			if (age > WIRE_RENEWS_NS)
				known->time = packet->time & ~WIRE_IS_REQUEST | was_request;
			if (packet->key.via != VIA_GROUP)
				note_entered(packet, flow, &headers, origin, hash);
			return;
		}
		if (age < WIRE_LASTS_NS && known->sk != sk && !was_request) {
			if (!known->user.tgid && !known->identity) /* of two senders */
				return;
			if (owner->user.tgid && known->user.tgid && known->user.tgid != owner->user.tgid &&
			    is_still_open(known)) {
				__builtin_memset(&owner->user, 0, sizeof(owner->user));
				sk = 0; /* of two, whoever of them sends next */
			}
		}
	}
	owner->sk = sk;
	owner->inode = socket_inode(sk);
	owner->identity = is_known_user ? 0 : origin->identity;
	owner->time = packet->time & ~WIRE_IS_REQUEST | origin->is_request;
	flows.update(flow, owner);
	__sync_fetch_and_add(&control->wired, 1);
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
	if (!control->wired)
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
	if (flow->protocol != IPPROTO_TCP) {
		if (packet->time - owner->time > WIRE_LASTS_NS)
			return VIA_UNKNOWN;
	} else if (is_syn(&headers)) {
		/*
		 * A connection that begins from outside: the flow belonged to an earlier one with
		 * these ports.
		 */
		if (!(owner->time & WIRE_IS_REQUEST)) {
			flows.delete(flow);
			__sync_fetch_and_add(&control->wired, 1);
			return VIA_UNKNOWN;
		}
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
	if (flow->protocol != IPPROTO_TCP && owner->user.tgid) {
		struct owner *last = owners.lookup(&owner->sk);

		/* Its socket is closed: nobody gets the packet, or who has the port now. */
		if (owner->sk && !is_still_open(owner))
			return VIA_UNKNOWN;
		packet->inode = owner->inode;
		if (flow->protocol == IPPROTO_UDP && last && last->inode == owner->inode &&
		    is_shared(owner->sk, last)) {
			packet->sk = owner->sk;
			return find_sharers(control, packet, last, VIA_FLOW);
		}
	}
	packet->user = owner->user;
	if (packet->user.tgid)
		return VIA_FLOW;
	return owner->identity ? resolve_socket(control, packet, owner->sk, owner->identity, VIA_FLOW)
			       : VIA_UNKNOWN;
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
	return !has_address(packet->dev, &wanted, control->nothing);
}
