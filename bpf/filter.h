/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packet filters. Filter 0 runs before the process of the packet is known; the other filters belong
 * to labels.
 *
 * skbcapd/filter/packet_filter.py writes filters.h, the filters as C functions, and defines WINDOW,
 * a power of two: filters read fewer than WINDOW - 3 bytes of the frame. These are copied into a
 * window of this processor as they will be in the file: with the VLAN tag, linear or paged. So the
 * result is that of libpcap for the file.
 */

struct window {
	u8 bytes[2 * WINDOW]; /* the verifier only sees that a read may start at WINDOW - 1 */
	struct skb chained;
};
/* Not a per-CPU map: for that a window can be too long, if a filter reads many bytes. */
BPF_ARRAY(windows, struct window, 2 * CPUS);

#include "filters.h"

/* Copies the first bytes of the frame into the window; returns how many there are. */
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
 * Returns whether the packet is captured further. A packet without a start passes, and is counted
 * as dropped later. Packets of the self-test pass, too.
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
