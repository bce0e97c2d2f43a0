/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Is the packet wanted? Asked before anything else is done for it, where there is a packet filter.
 *
 * skbcapd/filter.py puts the filters, as C functions, in place of filters.h, and defines WINDOW: a power of two, more
 * than the number of bytes from the frame's start that they look at. Those bytes are copied into a window of this CPU,
 * as they will stand in the file: VLAN tag in place, linear or paged alike. So a filter chooses live what `tcpdump -r`
 * chooses from the file.
 *
 * The window is safe: nothing runs between its filling and its last use. The raw tracepoints run with softirqs off, a
 * kprobe program does not run inside another (it is counted as missed).
 */

struct window {
	u8 bytes[2 * WINDOW];
};
BPF_ARRAY(windows, struct window, CPUS);

#include "filters.h"

/* Copies the frame's first bytes into the window; returns how many are there. Uses up `skb` and `shared`. */
static inline u32 fill_window(struct control *control, u8 *bytes, struct frame *frame, struct skb *skb,
			      struct shared *shared)
{
	u32 tag = frame->vlan ? 4 : 0, linear = frame->linear + tag;
	u32 have = least(frame->wire_len, WINDOW - 1);
	u32 *words = (u32 *)bytes;

	if (!control->page_base)
		have = least(have, linear);
	if (linear < have) {
		READ(shared, sizeof(*shared), SKB(u64, HEAD) + SKB(u32, END));
		frame->cap_len = have;
		return copy_frame(control, bytes, WINDOW, WINDOW, 0, frame, skb, shared);
	}
	if (READ(bytes + tag, BOUND(have - tag, WINDOW - 1), frame->start))
		return 0;
	if (tag) {
		words[0] = words[1];
		words[1] = words[2];
		words[2] = words[3];
		words[3] = frame->vlan;
	}
	return have;
}

/* Counts a packet that no filter wants on its device, where that is known. Returns 0 for one of the self-test. */
static inline int refuse(struct control *control, u64 dev, struct key *key)
{
	struct device *device;
	u64 net = 0;

	READ(&key->ifindex, 4, dev + DEV_IFINDEX);
	READ(&net, 8, dev + DEV_NET);
	READ(&key->net, 8, net + NET_COOKIE);
	if (key->net == control->own_net)
		return 0;
	device = find_device(key);
	count(0, SEEN);
	count(device ? device->slot : 0, FILTERED);
	return 1;
}

/* Returns whether the packet goes on to be captured. One without a start goes on, to be counted as lost there. */
static inline int is_wanted(u64 address, u32 direction)
{
	u32 zero = 0, cpu = bpf_get_smp_processor_id(), type = 0;
	struct control *control = controls.lookup(&zero);
	struct window *window = windows.lookup(&cpu);
	struct skb whole, *skb = &whole;
	struct shared info, *shared = &info;
	struct frame frame;
	struct key key = {.direction = direction};
	u64 dev = 0;

	if (!control || !window)
		return 1;
	READ(skb, sizeof(*skb), address + SKB_FIRST);
	READ(&dev, sizeof(dev), address + SKB_DEV);
	READ(&type, 2, dev + DEV_TYPE);
	if (find_frame(skb, direction, &frame))
		return 1;
	u32 have = fill_window(control, window->bytes, &frame, skb, shared);
	return packet_filter(type, window->bytes, have, frame.wire_len) || !refuse(control, dev, &key);
}
