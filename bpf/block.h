/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The block of a packet: its label, how much of the frame is captured, and all of the block except
 * the frame.
 *
 * A packet with a label becomes a BLOCK_PACKET, which is written to the file unchanged. One without
 * a label becomes a BLOCK_UPCALL: Python decides about it. A BLOCK_PACKET whose frame could not be
 * read to its end becomes a BLOCK_CUT afterwards.
 */

/*
 * The segment of a reservation. An array map has all its entries: only the verifier expects NULL.
 */
static inline struct segment *find_segment(struct reservation *reservation)
{
	u32 index = BOUND(reservation->number, SEGMENT_COUNT - 1);

	return segments.lookup(&index);
}

/*
 * Memory in a segment. The verifier knows that it begins within the segment, and SLACK follows it.
 */
static inline void *in_segment(struct segment *segment, u64 offset)
{
	return segment->bytes + BOUND(offset, SEGMENT_SIZE - 1);
}

static inline int is_same_name(u8 *a, u64 *b)
{
	return ((u64 *)a)[0] == b[0] && ((u64 *)a)[1] == b[1];
}

/*
 * What Python has stored about the packet's interface; NULL: nothing yet, or the interface was
 * renamed.
 */
static inline struct device *find_device(struct packet *packet)
{
	struct device *device = devices.lookup((struct device_key *)&packet->key);

	return device && is_same_name(device->name, packet->device_name) ? device : NULL;
}

/*
 * The row of counters for packets of the interface without a label; 0 for interfaces that are not
 * known yet.
 */
static inline u32 find_slot(struct packet *packet)
{
	struct device *device = find_device(packet);

	return device ? device->slot : 0;
}

/* Whether a label of the packet's key is valid for its names, and for the present rules. */
static inline int is_valid_label(struct control *control, struct packet *packet, struct label *label)
{
	return label->generation == control->generation && is_same_name(label->comm, packet->user.comm) &&
	       is_same_name(label->device, packet->device_name) &&
	       is_same_name(label->process, packet->user.process);
}

static inline int is_same_key(struct key *a, struct key *b)
{
	u64 *one = (u64 *)a, *other = (u64 *)b;

	return !((one[0] ^ other[0]) | (one[1] ^ other[1]) | (one[2] ^ other[2]) | (one[3] ^ other[3]) |
		 (one[4] ^ other[4]));
}

/* Writes `options_len` bytes of the options of a label, in whole words. */
static inline void copy_options(u8 *options, u32 options_len, struct label *label)
{
	/* Cheaper than a call of READ. */
	for (u32 i = 0; i < OPTIONS_MAX && i < options_len; i += 8)
		*(u64 *)(options + i) = *(u64 *)(label->options + i);
}

/*
 * Keeps a copy of a label. The kernel can use the memory of an entry again at any time, for another
 * key: so the copy is only used if the entry is still that of the key.
 */
static inline void keep_label(struct recent *recent, struct packet *packet, struct label *label)
{
	__builtin_memcpy(&recent->label, label, __builtin_offsetof(struct label, options));
	copy_options(recent->label.options, recent->label.options_len, label);
	barrier();
	recent->is_kept = labels.lookup(&packet->key) == label;
}

/* The packet's label; NULL if there is none, or none for these names and rules. */
static inline struct label *find_label(struct control *control, struct packet *packet)
{
	struct recent *recent = &packet->recent;
	struct label *label;
	u32 is_repeated;

	if (packet->key.via == VIA_UNRESOLVED)
		return NULL;
	is_repeated = is_same_key(&recent->key, &packet->key);
	if (is_repeated && recent->is_kept && is_valid_label(control, packet, &recent->label))
		return &recent->label;
	recent->is_kept = 0;
	label = labels.lookup(&packet->key);
	if (!label || !is_valid_label(control, packet, label))
		return NULL;
	if (is_repeated)
		keep_label(recent, packet, label);
	else
		recent->key = packet->key;
	return label;
}

/* How many bytes of the frame are captured, at most `snaplen`. */
static inline u32 captured_len(struct control *control, struct skb *skb, struct frame *frame, u32 snaplen)
{
	u32 cap_len = frame->wire_len, linear = frame->wire_len - SKB(skb, u32, DATA_LEN);

	if (cap_len > snaplen)
		cap_len = snaplen;
	if (cap_len > CAPTURE_MAX)
		cap_len = CAPTURE_MAX;
	if (!control->page_base && SKB(skb, u32, DATA_LEN) && cap_len > linear)
		cap_len = linear;
	return cap_len;
}

/*
 * Leaves the payload out of the captured bytes. Without the payload stage, which cannot be missing,
 * nothing of the frame is kept.
 */
static inline void cut_payload(struct packet *packet, struct frame *frame)
{
	u32 payload = packet->payload & ~PAYLOAD_FOUND;

	if (frame->cap_len > payload)
		frame->cap_len = payload;
	if (frame->cap_len < ETH_ADDRESSES + VLAN_HLEN)
		frame->vlan = 0; /* the copy loop writes a complete tag */
}

/*
 * Whether Python decides about a packet: if it has no label, or a label without options. With
 * `dedup` also if Python got it on another interface: only Python knows its outcome.
 */
static inline int is_for_python(struct control *control, struct packet *packet, struct label *label)
{
	return !label || !label->options_len || (control->dedup && packet->taken == ASKED);
}

/* The bytes of the frame in its block: a multiple of 4. */
static inline u32 padded_len(struct frame *frame)
{
	return (frame->cap_len + 3) & ~3U;
}

/* The size of the block of a frame, in bytes. */
static inline u32 block_size(struct frame *frame, u32 options_len)
{
	return sizeof(struct block_head) + padded_len(frame) + options_len + sizeof(u32);
}

/*
 * Writes the options of a packet with a label: those of the label, and the values that differ
 * between packets.
 */
static inline void write_options(u8 *options, u32 options_len, struct label *label, struct packet *packet,
				 u32 flags)
{
	copy_options(options, options_len, label);
	*(u32 *)(options + BOUND(label->flags_at, OPTIONS_MAX - 1)) |= flags;
	if (packet->key.linked)
		*(u64 *)(options + BOUND(label->flags_at + 8, OPTIONS_MAX - 1)) = packet->packet_id;
}

/* Writes the data that Python needs about a packet without a label. */
static inline void write_upcall(struct upcall *call, struct packet *packet, u32 flags, u32 checksum)
{
	struct sock_head *sock = &packet->work.sock;
	u64 mac = 0;

	call->key = packet->key;
	__builtin_memcpy(call->comm, packet->user.comm, 16);
	__builtin_memcpy(call->device, packet->device_name, 16);
	__builtin_memcpy(call->process, packet->user.process, 16);
	call->flags = flags;
	call->checksum = checksum;
	call->sk = packet->sk;
	call->inode = packet->inode;
	call->identity = SOCK_IDENTITY(sock);
	call->packet_id = packet->packet_id;
	call->payload = packet->payload & ~PAYLOAD_FOUND;
	READ(&call->netns, 4, packet->net + NET_INUM);
	READ(&call->device_type, 2, packet->dev + DEV_TYPE);
	READ(&call->addr_len, 1, packet->dev + DEV_ADDR_LEN);
	READ(&mac, 8, packet->dev + DEV_ADDR);
	READ(call->mac, 8, mac);
}

/*
 * Stores that only `copied` bytes of the frame are in the packet's block, or that its checksum must
 * be computed: Python writes the block again.
 */
static inline void cut_block(struct control *control, struct segment *segment, struct packet *packet,
			     u32 copied)
{
	struct reservation *reservation = &packet->reservation;
	struct block_head *head = in_segment(segment, reservation->at);

	head->cap_len = copied;
	if (packet->is_upcall)
		return;
	head->type = BLOCK_CUT | (packet->size - block_size(&packet->frame, 0)) << CUT_OPTIONS_BIT;
	*(u32 *)in_segment(segment, reservation->at + packet->size - sizeof(u32)) = packet->checksum;
	list_upcall(control, segment, reservation);
}

/*
 * Writes a packet's block of `size` bytes to the reserved space; a block without a label has `slot`
 * as its interface. Returns whether the block is complete: everything but the frame is written, and
 * a short frame, too.
 */
static inline int write_block(struct control *control, struct packet *packet, struct skb *skb,
			      struct label *label, u32 slot, u32 size, const u32 direction)
{
	struct reservation *reservation = &packet->reservation;
	struct frame *frame = &packet->frame;
	struct segment *segment = find_segment(reservation);
	u64 time_ns = packet->time + ONCE(control->clock_offset);
	u32 at = reservation->at, padded = padded_len(frame);
	u32 checksum = control->fill ? unfinished_checksum(skb, packet->head, frame) : 0;
	u32 flags = packet_flags(skb, &packet->shared, direction);

	if (!segment)
		return 0;
	struct block_head *head = in_segment(segment, at);
	u8 *options = in_segment(segment, at + sizeof(*head) + padded);

	head->type = label ? BLOCK_PACKET : BLOCK_UPCALL;
	head->size = size;
	head->interface_id = label ? label->interface_id : slot;
	head->time_high = time_ns >> 32;
	head->time_low = time_ns;
	head->cap_len = frame->cap_len;
	head->wire_len = frame->wire_len;
	if (label) {
		/* The length from the reservation: that of the label can have changed since then. */
		write_options(options, size - block_size(frame, 0), label, packet, flags);
	} else {
		write_upcall((struct upcall *)options, packet, flags, checksum);
		list_upcall(control, segment, reservation);
	}
	*(u32 *)in_segment(segment, at + size - sizeof(u32)) = size;
	if (padded) /* the last word of the frame: the zeros after the frame stay */
		*(u32 *)in_segment(segment, at + sizeof(*head) + padded - sizeof(u32)) = 0;
	if (!checksum && copy_short_frame(segment->bytes, SEGMENT_SIZE, at + sizeof(*head), frame))
		return 1;
	packet->checksum = checksum;
	return 0;
}
