/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The frames of packets that the kernel drops: from the best header that they have, as blocks for
 * Python.
 *
 * Each becomes a BLOCK_DROP, which Python writes again: the rate is limited, so there are no labels.
 * It is a packet of an interface of its own (DROPS_ETHERNET, DROPS_RAW), which is counted as any
 * other: seen once, with exactly one outcome. The interface where it was dropped decides whether it
 * is captured.
 *
 * A header is used only if it is certainly that of the packet. The link-layer header of a packet
 * that is on its way out again is that of the interface where it was received: such a packet has
 * only a network header, until the next link-layer header is before it.
 *
 * The record of a packet is that of the program at kfree_skb (drops.h), which the kernel never runs
 * twice at the same time on a processor. Windows and stages are its own, too: it can run between
 * two stages of a captured packet.
 */

#define DROP_RATES_MAX 2048	  /* two for each reason, and two for all reasons */
#define DROP_RATE_ALL  0xfffffffe /* all reasons; in place of a reason */
#define DROP_RATES     4	  /* all reasons together may be as many as so many of them */
#define NS_PER_S       1000000000ULL
#define DROPS_NAME     0x73706f7264ULL /* "drops" and its NUL, as the name of their interfaces */
#define ARPHRD_NONE    0xfffe
#define ETHERTYPE_AT   ETH_ADDRESSES
#define ETHERTYPE_MIN  0x0600 /* below, it is the length of an IEEE 802.3 frame */

/* The packets of one reason, or of all reasons, in the current second. */
struct drop_rate {
	u64 second;
	u64 packets;
};
BPF_TABLE("hash", u64, struct drop_rate, drop_rates, DROP_RATES_MAX);
BPF_PROG_ARRAY(stages_drop, STAGES);

/* Whether the packet has a header of IP at an address, as its protocol says. */
static inline int is_ip_at(struct skb *skb, u64 at)
{
	u32 version = LOAD(u8, at) >> 4, protocol = SKB(skb, u16, PROTOCOL);

	return (protocol == htons(ETH_P_IP) && version == 4) ||
	       (protocol == htons(ETH_P_IPV6) && version == 6);
}

/*
 * Whether the Ethernet header of a packet is at `mac`. `kind` is the type of its interface; 0: unknown.
 * An EtherType that is that of the packet proves it.
 */
static inline int is_ethernet_at(struct skb *skb, u64 mac, u64 data, u64 network, u32 kind, u32 direction)
{
	u32 type = LOAD(u16, mac + ETHERTYPE_AT);
	u64 end = mac + ETH_HLEN;

	if (SKB(skb, u16, MAC_HEADER) == MAC_HEADER_UNSET || (kind && !IS_ETHERNET(kind)))
		return 0;
	if (direction == OUT ? mac != data || end > network : mac > data || (end > network && end != data))
		return 0;
	if (type == SKB(skb, u16, PROTOCOL))
		return 1;
	return kind && (direction == OUT || ntohs(type) < ETHERTYPE_MIN || is_tag(ntohs(type)));
}

/*
 * Finds the start and the length of a dropped packet, and the kind of its first header (ARPHRD_*).
 * Returns 0, or LOST_START if no header is certain.
 */
static inline int find_dropped_frame(struct packet *packet, struct skb *skb, struct drop_work *work)
{
	struct frame *frame = &packet->frame;
	u64 mac = packet->head + SKB(skb, u16, MAC_HEADER), data = packet->data;
	u64 network = packet->head + SKB(skb, u16, NETWORK_HEADER);
	u32 kind = packet->dev ? LOAD(u16, packet->dev + DEV_TYPE) : 0;
	/* Before an interface has passed it on, the position of its network header is not set. */
	u64 start = SKB(skb, u16, NETWORK_HEADER) ? network : data;

	work->link = ARPHRD_NONE;
	if (is_ethernet_at(skb, mac, data, network, kind, work->key.direction)) {
		start = mac;
		work->link = ARPHRD_ETHER;
	} else if (!is_ip_at(skb, start)) {
		return LOST_START;
	}
	if (start >= packet->linear_end)
		return LOST_START;
	frame->start = start;
	frame->linear = packet->linear_end - start;
	frame->wire_len = frame->linear + SKB(skb, u32, DATA_LEN);
	frame->vlan = 0;
	if (work->link == ARPHRD_ETHER && has_vlan_tag(skb))
		insert_vlan_tag(skb, frame);
	return 0;
}

/*
 * Sets the identifier of a packet that was captured before, and forgets where it was: its address is
 * free now. A packet that has not been at an interface yet was not captured.
 */
static inline void take_sighting(struct packet *packet, struct skb *skb, struct drop_work *work)
{
	struct sighting *sighting = find_sighting(packet->address);
	/* What is seen at an interface has a position for its link-layer header. */
	u64 is_inside = work->key.direction == OUT && !SKB(skb, u32, SKB_IIF) &&
			SKB(skb, u16, MAC_HEADER) == MAC_HEADER_UNSET;

	packet->packet_id = 0;
	if (!sighting || sighting->skb != packet->address)
		return;
	packet->data = packet->head + SKB(skb, u16, NETWORK_HEADER);
	packet->fingerprint = fingerprint_of(packet, skb);
	/* Seen on the interface that it has not reached yet, it is another packet with the same content. */
	is_inside |= work->is_before && was_at(sighting, place_of(&packet->key, work->key.direction));
	if (sighting->fingerprint == packet->fingerprint && !is_inside &&
	    packet->time - sighting->time <= SIGHTING_LASTS_NS)
		packet->packet_id = sighting->id;
	sighting->skb = 0;
}

/*
 * What Python has stored about the interface where the packet was dropped; NULL: nothing yet. Then
 * Python decides whether it is captured.
 */
static inline struct device *find_drop_device(struct packet *packet, struct drop_work *work)
{
	struct device *device = devices.lookup((struct device_key *)&packet->key);

	return device && is_same_name(device->name, work->key.device) ? device : NULL;
}

/* The row of counters for a dropped packet; 0 if its interface, or that of the drop, is not known yet. */
static inline u32 find_drop_slot(struct packet *packet, struct drop_work *work)
{
	return work->is_undecided ? 0 : find_slot(packet);
}

/* Whether fewer packets than `most` have this key in this second, which then has one more. */
static inline int is_below(u64 key, u64 second, u64 most)
{
	struct drop_rate first = {.second = second};
	struct drop_rate *rate = drop_rates.lookup(&key);

	if (!rate) {
		drop_rates.insert(&key, &first);
		rate = drop_rates.lookup(&key);
	}
	if (!rate)
		return 0;
	u64 known = ONCE(rate->second);

	if (second > known && __sync_val_compare_and_swap(&rate->second, known, second) == known)
		ONCE(rate->packets) = 0;
	return __sync_fetch_and_add(&rate->packets, 1) < most;
}

/* Whether fewer packets of this reason, and of all reasons, than allowed were written in this second. */
static inline int is_within_rate(struct control *control, struct packet *packet, struct drop_work *work)
{
	u64 second = packet->time / NS_PER_S, most = control->drops_rate;
	u64 others = work->is_undecided << 32; /* packets of other interfaces leave the rates alone */

	return is_below(work->key.reason | others, second, most) &&
	       is_below(DROP_RATE_ALL | others, second, most * DROP_RATES);
}

/* Stores where a packet over the rate was dropped, if Python has not decided about the interface. */
static inline void note_limited(struct drop_work *work)
{
	struct drop_count *row;

	if (!work->is_undecided)
		return;
	row = work->is_of_others ? drops_of_others.lookup(&work->key) : drops.lookup(&work->key);
	if (row)
		__sync_fetch_and_add(&row->limited, 1);
}

/* A dropped packet that was counted: the first stage of its frame. `location` is where it was dropped. */
static inline void stage_drop(void *ctx, void *argument, struct drop_work *work, u64 location)
{
	u32 zero = 0, lost;
	struct control *control = controls.lookup(&zero);
	struct packet *packet = &work->packet;
	struct skb *skb = get_skb_again(packet, argument);
	struct device *device;

	if (!control || packet->key.net == control->own_net)
		return;
	count(0, SEEN);
	device = control->device_filter ? find_drop_device(packet, work) : NULL;
	if (device && device->unwanted) {
		count(device->slot, OTHER_INTERFACES);
		return;
	}
	work->is_undecided = control->device_filter && !device;
	packet->data = SKB(skb, u64, DATA);
	barrier();
	lost = find_dropped_frame(packet, skb, work);
	barrier();
	take_sighting(packet, skb, work);
	barrier();
	work->location = location;
	work->is_admitted = packet->payload = packet->filter = 0;
	packet->key.ifindex = work->link == ARPHRD_ETHER ? DROPS_ETHERNET : DROPS_RAW;
	packet->key.tgid = packet->user.tgid;
	packet->key.tid = packet->user.tid;
	packet->key.start = packet->user.start;
	packet->key.via = work->via;
	packet->key.linked = packet->packet_id != 0;
	packet->device_name[0] = DROPS_NAME;
	packet->device_name[1] = 0;
	if (lost) {
		count(find_drop_slot(packet, work), work->is_undecided ? OTHER_INTERFACES : lost);
		return;
	}
	if (control->filtered)
		stages_drop.call(ctx, STAGE_FILTER);
	stages_drop.call(ctx, STAGE_BLOCK);
}

/* Writes the block except the frame. */
static inline void write_drop(struct control *control, struct packet *packet, struct skb *skb,
			      struct drop_work *work, u32 slot)
{
	struct reservation *reservation = &packet->reservation;
	struct frame *frame = &packet->frame;
	struct segment *segment = find_segment(reservation);
	u64 time_ns = packet->time + ONCE(control->clock_offset);
	u32 at = reservation->at, padded = padded_len(frame), size = packet->size;
	u32 checksum = control->fill ? unfinished_checksum(skb, packet->head, frame) : 0;
	u32 flags = packet_flags(skb, &packet->shared, work->key.direction);

	if (!segment)
		return;
	struct block_head *head = in_segment(segment, at);
	struct dropped *dropped = in_segment(segment, at + sizeof(*head) + padded);

	head->type = BLOCK_DROP;
	head->size = size;
	head->interface_id = slot;
	head->time_high = time_ns >> 32;
	head->time_low = time_ns;
	head->cap_len = frame->cap_len;
	head->wire_len = frame->wire_len;
	dropped->location = work->location;
	dropped->reason = work->key.reason;
	dropped->ifindex = work->key.ifindex;
	__builtin_memcpy(dropped->device, work->key.device, 16);
	struct upcall *call = in_segment(segment, at + sizeof(*head) + padded + sizeof(*dropped));

	write_upcall(call, packet, flags, checksum);
	call->device_type = work->link;
	call->addr_len = 0;
	*(u32 *)in_segment(segment, at + size - sizeof(u32)) = size;
	if (padded) /* the last word of the frame: the zeros after the frame stay */
		*(u32 *)in_segment(segment, at + sizeof(*head) + padded - sizeof(u32)) = 0;
	list_upcall(control, segment, reservation);
}

/* Block: reserves space, and writes all of the block except the frame. */
static inline void stage_block_drop(void *ctx, void *argument)
{
	u32 zero = 0;
	struct control *control = controls.lookup(&zero);
	struct drop_work *work = drop_works.lookup(&zero);

	if (!control || !work)
		return;
	struct packet *packet = &work->packet;
	struct skb *skb = get_skb_again(packet, argument);
	struct frame *frame = &packet->frame;
	u32 slot = find_drop_slot(packet, work), lost;

	if (!work->is_admitted) {
		if (!is_within_rate(control, packet, work)) {
			note_limited(work);
			count(slot, LIMITED);
			return;
		}
		work->is_admitted = 1;
		stages_drop.call(ctx, STAGE_PAYLOAD); /* which calls this stage again */
	}
	LOAD_WORDS(&packet->shared, sizeof(packet->shared), packet->head + SKB(skb, u32, END));
	frame->cap_len = captured_len(control, skb, frame, control->snaplen);
	if (control->headers_only)
		cut_payload(packet, frame);
	packet->size = block_size(frame, sizeof(struct dropped) + sizeof(struct upcall));
	lost = reserve(control, packet->size, &packet->reservation);
	if (lost) {
		count(slot, lost);
		return;
	}
	packet->slot = slot;
	packet->is_upcall = 1;
	write_drop(control, packet, skb, work, slot);
	stages_drop.call(ctx, STAGE_FRAME);
}

/* Payload: where does it begin? */
static inline void stage_payload_drop(void *ctx, void *argument)
{
	u32 zero = 0;
	struct control *control = controls.lookup(&zero);
	struct drop_work *work = drop_works.lookup(&zero);
	struct headers_window *window = headers_windows.lookup(&zero); /* 0: no captured packet uses it */

	if (!control || !work || !window)
		return;
	struct packet *packet = &work->packet;
	struct skb *skb = get_skb_again(packet, argument);
	u64 have = fill_window(control, packet, skb, &packet->frame, window->bytes, HEADERS_WINDOW,
			       HEADERS_PIECES, &window->chained);

	FORGET(have, control->nothing);
	packet->payload = PAYLOAD_FOUND | find_payload(window->bytes, have, work->link, control->nothing);
	stages_drop.call(ctx, STAGE_BLOCK);
}

/* Frame: copies the frame, and commits the block. */
static inline void stage_frame_drop(void *argument)
{
	u32 zero = 0;
	struct control *control = controls.lookup(&zero);
	struct drop_work *work = drop_works.lookup(&zero);

	if (!control || !work)
		return;
	struct packet *packet = &work->packet;
	struct skb *skb = get_skb_again(packet, argument);
	struct segment *segment = find_segment(&packet->reservation);

	if (!segment)
		return; /* impossible: an array map has all its entries */
	u32 copied = copy_frame(control, segment->bytes, SEGMENT_SIZE, CAPTURE_MAX, PIECES_MAX,
				packet->reservation.at + sizeof(struct block_head), &packet->frame,
				packet->head, SKB(skb, u32, END), &packet->skb, &packet->shared);

	if (copied < packet->frame.cap_len)
		cut_block(control, segment, packet, copied);
	count_delivered(packet->slot, packet->frame.wire_len);
	commit(control, &packet->reservation, packet->size);
}

#ifdef WINDOW
struct drop_window {
	u8 bytes[2 * WINDOW];
	struct skb chained;
};
BPF_ARRAY(drop_windows, struct drop_window, CPUS);

/* Filter: does the packet match? If not, it is counted. */
static inline void stage_filter_drop(void *ctx, void *argument)
{
	u32 zero = 0, index = bpf_get_smp_processor_id();
	struct control *control = controls.lookup(&zero);
	struct drop_work *work = drop_works.lookup(&zero);
	struct drop_window *window = drop_windows.lookup(&index);

	if (!control || !work || !window)
		return;
	struct packet *packet = &work->packet;
	struct skb *skb = get_skb_again(packet, argument);
	u32 have = fill_window(control, packet, skb, &packet->frame, window->bytes, WINDOW, PIECES_MAX,
			       &window->chained);

	if (packet_filter(0, work->link, window->bytes, have, packet->frame.wire_len))
		stages_drop.call(ctx, STAGE_BLOCK);
	else
		count(find_drop_slot(packet, work), FILTERED);
}
#endif
