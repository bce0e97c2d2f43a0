/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * skbcapd in the kernel: every packet, whole, with the process that sent it, written as pcapng into shared memory.
 *
 *   layout.h    what kernel and Python share
 *   frame.h     skb -> bytes of the frame
 *   owner.h     who sent it
 *   segment.h   room in the shared segments
 *   measure.h   what is measured once, at start
 *   this file   the way of one packet through them; probes last
 *
 * Compiled by bcc for the running kernel; skbcapd/loader.py joins the files and gives all sizes and offsets.
 */
#include "layout.h"
#include "frame.h"
#include "owner.h"
#include "segment.h"
#include "measure.h"

/* Where to count packets of a device that have no label: its own slot, or 0 for devices not yet known. */
static inline struct device *find_device(struct key *key)
{
	return devices.lookup((struct device_key *)key);
}

static inline int same_name(u8 *a, u8 *b)
{
	return ((u64 *)a)[0] == ((u64 *)b)[0] && ((u64 *)a)[1] == ((u64 *)b)[1];
}

/* Fills in what Python needs to know of a packet without a label. `address` is the net_device. */
static inline void describe(struct upcall *call, struct key *key, u64 names[4], u64 address, u64 net,
			    u32 flags)
{
	u64 mac = 0;

	call->key = *key;
	__builtin_memcpy(call->comm, names, 16);
	__builtin_memcpy(call->device, names + 2, 16);
	call->flags = flags;
	READ(&call->netns, 4, net + NET_INUM);
	READ(&call->device_type, 2, address + DEV_TYPE);
	READ(&call->addr_len, 1, address + DEV_ADDR_LEN);
	READ(&mac, 8, address + DEV_ADDR);
	READ(call->mac, 8, mac);
}

/*
 * One packet: who, wanted?, how long, room, copy, give to the reader. Counts exactly one outcome per packet.
 */
static inline void capture(void *ctx, u64 address, u32 direction)
{
	u32 zero = 0;
	struct control *control = controls.lookup(&zero);
	struct skb whole, *skb = &whole;
	struct shared info, *shared = &info;
	struct frame frame;
	struct reservation room;
	struct key key = {.direction = direction};
	struct label *label;
	struct device *device = NULL;
	u64 names[4] = {}; /* comm, device */
	u64 links[2] = {}; /* net_device, sock */
	u64 net = 0;
	u32 slot = 0, lost;

	if (!control)
		return;
	count(0, SEEN);
	READ(skb, sizeof(*skb), address + SKB_FIRST);
	READ(shared, sizeof(*shared), SKB(u64, HEAD) + SKB(u32, END));

	READ(links, sizeof(links), address + SKB_DEV);
	u64 dev = links[0];
	READ(&key.ifindex, 4, dev + DEV_IFINDEX);
	READ(&net, 8, dev + DEV_NET);
	READ(&key.net, 8, net + NET_COOKIE);
	READ(names + 2, 16, dev + DEV_NAME);
	if (control->device_filter) {
		device = find_device(&key);
		if (device && device->unwanted && same_name(device->name, (u8 *)(names + 2))) {
			count(device->slot, FILTERED);
			return;
		}
	}
	find_owner(ctx, control, skb, links[1], &key, names);
	label = labels.lookup(&key);
	if (label && !(same_name(label->comm, (u8 *)names) && same_name(label->device, (u8 *)(names + 2))))
		label = NULL;
	if (label) {
		slot = label->slot;
	} else {
		device = find_device(&key);
		if (device && same_name(device->name, (u8 *)(names + 2)))
			slot = device->slot;
	}
	if (label && !label->snaplen) {
		count(slot, FILTERED);
		return;
	}
	lost = find_frame(skb, direction, &frame);
	if (lost) {
		count(slot, lost);
		return;
	}
	u64 time_ns = bpf_ktime_get_ns() + ONCE(control->clock_offset);
	u32 flags = packet_flags(skb, shared, direction);
	u32 snaplen = label ? label->snaplen : control->snaplen;
	u32 options_len = label ? label->options_len : sizeof(struct upcall);
	u32 cap_len = frame.wire_len;

	if (cap_len > snaplen)
		cap_len = snaplen;
	if (cap_len > CAPTURE_MAX)
		cap_len = CAPTURE_MAX;
	if (!control->page_base && SKB(u32, DATA_LEN) && cap_len > frame.wire_len - SKB(u32, DATA_LEN))
		cap_len = frame.wire_len - SKB(u32, DATA_LEN);
	frame.cap_len = cap_len;

	u32 padded = (cap_len + 3) & ~3U;
	u32 size = 28 + padded + options_len + 4;

	lost = reserve(control, size, &room);
	if (lost) {
		count(slot, lost);
		return;
	}
	u32 index = BOUND(room.number, SEGMENT_COUNT - 1), at = room.at;
	struct segment *segment = segments.lookup(&index);
	if (!segment)
		return; /* cannot be: an array map has all its entries */

	/* All but the frame first, so that little has to be remembered while it is copied. */
	u32 *header = (u32 *)(segment->bytes + BOUND(at, SEGMENT_SIZE - 1));
	header[0] = label ? BLOCK_PACKET : BLOCK_UPCALL;
	header[1] = size;
	header[2] = label ? label->interface_id : slot;
	header[3] = time_ns >> 32;
	header[4] = time_ns;
	header[5] = cap_len;
	header[6] = frame.wire_len;
	u8 *options = segment->bytes + BOUND(at + 28 + padded, SEGMENT_SIZE - 1);
	if (label) {
		READ(options, BOUND(options_len, OPTIONS_MAX - 1), label->options);
		*(u32 *)(options + BOUND(label->flags_at, OPTIONS_MAX - 1)) |= flags;
	} else {
		describe((struct upcall *)options, &key, names, links[0], net, flags);
		list_upcall(control, segment, &room);
	}
	*(u32 *)(segment->bytes + BOUND(at + size - 4, SEGMENT_SIZE - 1)) = size;
	if (padded) /* the frame, or zeros behind it */
		*(u32 *)(segment->bytes + BOUND(at + 24 + padded, SEGMENT_SIZE - 1)) = 0;

	u32 got = copy_frame(control, segment, at + 28, &frame, skb, shared);
	if (got < cap_len) {
		header = (u32 *)(segment->bytes + BOUND(at, SEGMENT_SIZE - 1));
		header[5] = got;
		if (label) {
			/* Python writes the block anew: it finds the label by number, the flags behind the options. */
			header[0] = BLOCK_CUT;
			header[2] = label->id;
			*(u32 *)(segment->bytes + BOUND(at + size - 8, SEGMENT_SIZE - 1)) = flags;
			list_upcall(control, segment, &room);
		}
	}
	count(slot, DELIVERED);
	commit(control, &room, size);
}

/* Frames on loopback were captured when they left: they appear once. */
static inline int is_loopback(u64 address)
{
	u64 dev = 0;
	u32 flags = 0;

	READ(&dev, sizeof(dev), address + SKB_DEV);
	READ(&flags, sizeof(flags), dev + DEV_FLAGS);
	return flags & 8; /* IFF_LOOPBACK */
}

/* The first argument of the traced function: of a raw tracepoint, or from the registers at a kprobe. */
#ifdef KPROBE
#define FIRST_ARGUMENT(ctx) (*(u64 *)((u8 *)(ctx) + ARGUMENT_1))
#else
#define FIRST_ARGUMENT(ctx) (*(u64 *)(ctx))
#endif

int on_transmit(void *ctx)
{
	capture(ctx, FIRST_ARGUMENT(ctx), OUT);
	return 0;
}

/* __netif_receive_skb_core takes the address of a pointer to the skb, its tracepoint the skb. */
int on_receive(void *ctx)
{
	u64 address = FIRST_ARGUMENT(ctx);
#ifdef KPROBE
	READ(&address, sizeof(address), address);
#endif
	if (!is_loopback(address))
		capture(ctx, address, IN);
	return 0;
}

int on_measure(void *ctx)
{
	measure(ctx, (void *)FIRST_ARGUMENT(ctx));
	return 0;
}
