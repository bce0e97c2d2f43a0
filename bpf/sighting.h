/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One packet on several devices: a bond, a bridge, a VLAN, a veth pair hand the same data from one to the next.
 *
 * A packet is known again by the address of its data and by a few of its bytes that no device changes, within a second,
 * and as long as the place is a new one: at a place where it was before, it is another packet in the same memory (the next
 * one of the flow, or the same data sent again). Each data address has one entry; when two share it, the older packet is
 * forgotten and its next sighting has a new identifier. Addresses are among the bytes: what comes out of NAT or goes into a
 * tunnel is another packet.
 */

#define SIGHTING_LASTS_NS 1000000000ULL

/*
 * Whether the packets of a device may be seen on another one, too: it lies on top of another (VLAN, bond, bridge, tunnel) or
 * is one end of a pair - all these are made by rtnetlink - or another lies on top of it.
 */
static inline int is_stacked(u8 *dev)
{
	return FIELD(u64, dev, DEV_LINK_OPERATIONS) || FIELD(u64, dev, DEV_UPPER) != (u64)(dev + DEV_UPPER);
}

/* The entry of a packet's data, whosever it is. */
static inline struct sighting *find_sighting(u64 head)
{
	u32 index = (head >> 6 ^ head >> 20) & (SIGHTINGS - 1);

	return sightings.lookup(&index);
}

/*
 * A packet by its last linear bytes, the length of the rest, and the bytes of its network header that hold IPv4's addresses
 * and ports, or the end of IPv6's destination and the ports. The last bytes alone are not enough: memory that is free is
 * soon taken again, and questions of two containers for one name end alike.
 */
static inline u64 print_of(struct packet *packet, struct skb *skb)
{
	u64 inner = packet->key.direction == IN ? packet->data : packet->head + SKB(u16, NETWORK_HEADER);
	u64 last = LOAD(u64, packet->linear_end - 8) ^ (u64)SKB(u32, DATA_LEN) << 32;

	inner += SKB(u16, PROTOCOL) == __builtin_bswap16(0x86dd) ? 32 : 12;
	return ((last * PRINT_FACTOR + LOAD(u64, inner)) * PRINT_FACTOR + LOAD(u32, inner + 8)) *
	       PRINT_FACTOR;
}

/* Whether the entry is this packet's, seen elsewhere shortly before. */
static inline int is_seen_before(struct sighting *entry, struct packet *packet, struct skb *skb, u64 place)
{
	u64 visited = entry->count >= SIGHTING_PLACES; /* there is no room to know all its places */

	if (entry->head != packet->head || packet->time - entry->time > SIGHTING_LASTS_NS ||
	    entry->print != print_of(packet, skb))
		return 0;
	for (int i = 0; i < SIGHTING_PLACES; i++)
		visited |= entry->places[i] == place;
	return !visited;
}

/* Notes where the packet is seen now: as a new one, or further on its way; or only that it is, at no place. */
static inline void note_sighting(struct sighting *entry, struct packet *packet, struct skb *skb, u64 place,
				 int is_known, int nowhere)
{
	if (!is_known) {
		entry->head = packet->head;
		entry->print = print_of(packet, skb);
		entry->id = packet->time << 6 | bpf_get_smp_processor_id() & 63;
		entry->count = 0;
		for (int i = 0; i < SIGHTING_PLACES; i++)
			entry->places[i] = 0;
	}
	entry->time = packet->time;
	if (!nowhere)
		entry->places[entry->count++ & (SIGHTING_PLACES - 1)] = place;
}
