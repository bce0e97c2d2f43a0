/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Is the packet wanted? Filter 0 is asked before it is known whose the packet is, another one by
 * the label that it has.
 *
 * skbcapd/filter/packet_filter.py writes filters.h, the filter as C functions, and defines WINDOW,
 * a power of two: filters look at fewer than WINDOW - 3 bytes from the frame's start. Those are
 * copied into a window of this processor as they will stand in the file: VLAN tag in place, linear
 * or paged alike. So what is chosen is what libpcap chooses from the file.
 */

struct window {
	u8 bytes[2 * WINDOW]; /* the verifier only sees that a read may start at WINDOW - 1 */
	struct skb chained;
};
BPF_ARRAY(windows, struct window, 2 * CPUS); /* too long for a per-CPU map, if a filter looks far */

#include "filters.h"

/* Copies the frame's first bytes into the window; returns how many are there. */
static inline u32 fill_window(struct control *control, struct packet *packet, struct skb *skb,
			      struct frame *frame, struct window *window)
{
	u32 tag = frame->vlan ? VLAN_HLEN : 0, linear = frame->linear + tag, end = SKB(skb, u32, END);
	u32 have = least(frame->wire_len, WINDOW - 4);
	u32 *words = (u32 *)window->bytes;

	if (!control->page_base)
		have = least(have, linear);
	if (linear < have) {
		LOAD_WORDS(&packet->shared, sizeof(packet->shared), packet->head + end);
		frame->cap_len = have;
		return copy_frame(control, window->bytes, WINDOW, WINDOW, 0, frame, packet->head, end,
				  &window->chained, &packet->shared);
	}
	if (READ(window->bytes + tag, BOUND(have - tag, WINDOW - 1), frame->start))
		return 0;
	if (tag) {
		words[0] = words[1];
		words[1] = words[2];
		words[2] = words[3];
		words[3] = frame->vlan;
	}
	return have;
}

/*
 * Returns whether the packet goes on to be captured. One without a start goes on, to be counted as
 * lost. So do those of the self-test.
 */
static inline int is_wanted(struct control *control, struct packet *packet, struct skb *skb, u32 direction)
{
	u32 index = 2 * bpf_get_smp_processor_id() + (direction & 1);
	struct window *window = windows.lookup(&index);
	struct frame frame;

	if (!window || find_frame(skb, packet->dev, packet->head, packet->data, direction, &frame))
		return 1;
	u32 have = fill_window(control, packet, skb, &frame, window);
	return packet_filter(packet->filter, FIELD(u16, SKB(skb, u8 *, DEV), DEV_TYPE), window->bytes, have,
			     frame.wire_len) ||
	       packet->key.net == control->own_net;
}
