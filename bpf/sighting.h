/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One packet on several interfaces: veth pairs, bridges, bonds, VLANs, tunnels, the routing of this
 * host.
 *
 * On its way through the machine, also through NAT and between network namespaces, a packet keeps
 * its sk_buff; a copy (by a bridge that floods) keeps the address of the data. Later packets reuse
 * addresses within microseconds, so three more conditions must be true, within a second:
 *
 * - The fields that neither an interface nor NAT changes are equal (fingerprint_of): for IPv4
 *   identification and length, for TCP numbers, flags and window, for UDP length and first bytes,
 *   for ICMP type and sequence number, and for all of them the last bytes. In a tunnel, those of
 *   the inner packet.
 * - The path is possible: a packet at an interface where this one was already is another one (the
 *   next of the flow, or a retransmission). A packet that is sent on a socket is new, unless it was
 *   sent on the same one just before. A received packet is new on an interface that gets no packets
 *   from this machine (a network card, a tun or tap device), and where it was sent by the same
 *   interface, like an answer.
 * - There is one entry for each address: that of the later packet.
 */

#define SIGHTING_LASTS_NS 1000000000ULL

/* A packet that is followed by its sk_buff: its identity, where it was seen, its process. */
struct sighting {
	u64 skb;		     /* address of its sk_buff */
	u64 head;		     /* address of its data: the same for the copies of a bridge */
	u64 fingerprint;	     /* hash of the fields that neither interfaces nor NAT change */
	u64 id;			     /* epb_packetid */
	u64 time;		     /* ns since boot */
	u64 places[SIGHTING_PLACES]; /* interfaces and directions where it was seen */
	u64 count;		     /* used entries of places */
	u64 taken;		     /* whether it was captured there */
	u64 sk;			     /* the socket on which it was sent */
	struct user user;
	u64 via;
	struct origin origin;
};

/* Whether a packet is in the file: Python can still drop a packet without a label. */
enum taken { NOT_TAKEN, ASKED, TAKEN };

BPF_ARRAY(sightings, struct sighting, SIGHTINGS);
BPF_ARRAY(heads, u64, SIGHTINGS); /* the first sk_buff with data at an address */

/*
 * Whether the packets of an interface can be on another one, too: it is on top of another one
 * (VLAN, bond, bridge, tunnel) or one end of a pair (all these are made by rtnetlink), or another
 * one is on top of it.
 */
static inline int is_stacked(u8 *dev)
{
	return FIELD(u64, dev, DEV_LINK_OPERATIONS) || FIELD(u64, dev, DEV_UPPER) != (u64)(dev + DEV_UPPER);
}

#define TUN 0x006e7574U /* "tun" and its NUL, as a kind of interface; tap has the same kind */

/* Whether a packet received on an interface can come from another interface of this machine. */
static inline int is_handed_on(u8 *dev)
{
	u64 operations = FIELD(u64, dev, DEV_LINK_OPERATIONS);

	return operations && LOAD(u32, LOAD(u64, operations + LINK_KIND)) != TUN;
}

#define VETH 0x68746576U /* "veth", as a kind of interface */

/*
 * Whether a received packet was sent by the other end of a veth pair, and is not for this machine: so
 * it was sent by a process of this machine, or seen on another interface.
 */
static inline int is_from_pair(u8 *dev, struct skb *skb)
{
	u64 operations = FIELD(u64, dev, DEV_LINK_OPERATIONS);

	return SKB_BITS(skb, PKT_TYPE) == PACKET_OTHERHOST && operations &&
	       LOAD(u32, LOAD(u64, operations + LINK_KIND)) == VETH;
}

/* The lower bits of the address are always 0; the upper bits of the product depend on all bits. */
static inline u32 index_of(u64 address)
{
	return (address * HASH_FACTOR >> 32) & (SIGHTINGS - 1);
}

/* The entry of the table for an sk_buff; it can be of another packet. */
static inline struct sighting *find_sighting(u64 skb)
{
	u32 index = index_of(skb);

	return sightings.lookup(&index);
}

/*
 * Mask of the first word of an ICMP header: type, code and sequence number, but not checksum and
 * identifier, which NAT changes. With zeros in the struct instead, the verifier has a fifth more
 * work.
 */
#define ICMP_KEPT 0xffff00000000ffffULL

/* Keeps only the fields of a transport header that neither an interface nor NAT changes. */
static inline void mask_transport(union transport_header *header, u32 protocol)
{
	if (protocol == IPPROTO_TCP) {
		header->words[0] = header->tcp.seq | (u64)header->tcp.ack_seq << 32;
		header->words[1] = header->tcp.flag_word;
	} else if (protocol == IPPROTO_UDP) {
		header->words[0] = header->udp.len;
	} else if (is_icmp(protocol)) {
		header->words[0] &= ICMP_KEPT;
	}
}

/*
 * The VLAN of a received frame, 0 if it has none. A tag in the bytes of the frame is skipped: then `at`,
 * the network header, and its `ether_type` are those after it. With a second tag, there is none.
 */
static inline u32 skip_tag(struct skb *skb, u64 *at, u32 *ether_type)
{
	if (has_vlan_tag(skb) || (*ether_type != htons(ETH_P_8021Q) && *ether_type != htons(ETH_P_8021AD)))
		return vlan_of(skb);
	u32 tag = LOAD(u32, *at);

	*at += VLAN_HLEN;
	*ether_type = tag >> 16;
	return ntohs(tag) & VLAN_ID_MASK;
}

#define NETWORK_SPAN 24 /* bytes of the network header that are read */

/* An interface and direction, as they are stored where a packet was seen. */
static inline u64 place_of(struct key *key, u32 direction)
{
	return key->net << 33 ^ (u64)key->ifindex << 1 ^ direction & 1;
}

/* Whether a packet was seen there. */
static inline u64 was_at(struct sighting *entry, u64 place)
{
	u64 visited = 0;

	for (int i = 0; i < SIGHTING_PLACES; i++)
		visited |= entry->places[i] == place;
	return visited;
}

/* A hash of the fields of a packet that neither an interface nor NAT changes. */
static inline u64 fingerprint_of(struct packet *packet, struct skb *skb)
{
	u64 at = packet->key.direction == IN ? packet->data : packet->head + SKB(skb, u16, NETWORK_HEADER);
	union network_header network = {};
	union transport_header transport = {};
	u64 end = packet->linear_end, start, length, what, last = 0;
	u32 protocol, ether_type = SKB(skb, u16, PROTOCOL);

	if (packet->key.direction == IN)
		skip_tag(skb, &at, &ether_type);
	else if (SKB_BITS(skb, ENCAPSULATION))
		at = packet->head + SKB(skb, u16, INNER_NETWORK_HEADER);
	LOAD_WORDS(network.words, NETWORK_SPAN, at);
	if (network.v4.version == 4) {
		start = at + network.v4.ihl * 4;
		length = ntohs(network.v4.tot_len);
		protocol = network.v4.protocol;
		what = network.v4.tot_len | (u64)network.v4.id << 16;
	} else {
		start = at + sizeof(network.v6);
		length = ntohs(network.v6.payload_len) + sizeof(network.v6);
		protocol = network.v6.nexthdr;
		what = network.v6.payload_len;
	}
	what |= (u64)protocol << 32;
	LOAD_WORDS(transport.words, sizeof(transport), start);
	if (SKB_BITS(skb, ENCAPSULATION) || ether_type == htons(ETH_P_IP) ||
	    ether_type == htons(ETH_P_IPV6)) {
		mask_transport(&transport, protocol);
		if (protocol == IPPROTO_TCP)
			start += 4;
		else if (start + sizeof(transport) > end || length < start + sizeof(transport) - at)
			transport.words[1] = 0;
	} else { /* nothing that NAT changes */
		what = network.words[0];
		transport.words[0] = network.words[1];
		transport.words[1] = network.words[2];
		length = end - at;
		start = at + 8;
	}
	if (at + length < end) /* padding */
		end = at + length;
	if (!SKB(skb, u32, DATA_LEN) && start + 24 <= end)
		last = LOAD(u64, end - 8);
	return (((what * HASH_FACTOR + transport.words[0]) * HASH_FACTOR + transport.words[1]) * HASH_FACTOR +
		last) *
	       HASH_FACTOR;
}

/*
 * Whether an entry is of this packet, seen on another interface shortly before. `sk` is the socket
 * on which it is sent.
 */
static inline int is_continued(struct sighting *entry, struct packet *packet, u64 place, u64 sk)
{
	u64 visited = entry->count >= SIGHTING_PLACES; /* there is no space for more interfaces */

	if (packet->time - entry->time > SIGHTING_LASTS_NS || entry->fingerprint != packet->fingerprint ||
	    (sk && entry->sk != sk))
		return 0;
	/* For a received one: it was here, in either direction. */
	for (int i = 0; i < SIGHTING_PLACES; i++)
		visited |= (entry->places[i] | (place & 1)) == place;
	return !visited;
}

/*
 * Whether the packet was seen before; then `entry`, that of its sk_buff, is of this packet.
 * Otherwise `entry` is of an earlier packet.
 */
static inline int is_seen_before(struct sighting *entry, struct packet *packet, u64 skb, u64 place, u64 sk)
{
	struct sighting *known = entry;

	/* A copy of another one with the same data? */
	if (entry->skb != skb || entry->fingerprint != packet->fingerprint) {
		u32 index = index_of(packet->head);
		u64 *first = heads.lookup(&index);

		if (sk || !first)
			return 0;
		known = find_sighting(*first);
		if (!known || known->skb != *first || known->head != packet->head)
			return 0;
	}
	if (!is_continued(known, packet, place, sk))
		return 0;
	if (known != entry)
		*entry = *known;
	return 1;
}

/*
 * Stores where the packet is seen: as a new one, or on its way; or only that it exists, at no
 * interface.
 */
static inline void note_sighting(struct sighting *entry, struct packet *packet, u64 skb, u64 place,
				 int is_known, int nowhere)
{
	if (!is_known) {
		entry->fingerprint = packet->fingerprint;
		entry->id = packet->time << 6 | bpf_get_smp_processor_id() & 63;
		entry->count = entry->taken = 0;
		for (int i = 0; i < SIGHTING_PLACES; i++)
			entry->places[i] = 0;
	}
	entry->skb = skb;
	if (!is_known || entry->head != packet->head) {
		u32 index = index_of(packet->head);
		u64 *first = heads.lookup(&index); /* not update, which is a call */

		entry->head = packet->head;
		if (first)
			*first = skb;
	}
	entry->time = packet->time;
	if (!nowhere)
		entry->places[entry->count++ & (SIGHTING_PLACES - 1)] = place;
}

/* Stores that a packet is in the file, or that Python decides about it. */
static inline void note_taken(u64 skb, enum taken taken)
{
	struct sighting *entry = find_sighting(skb);

	if (entry && entry->skb == skb)
		entry->taken = taken;
}
