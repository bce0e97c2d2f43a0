/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packet filters. Filter 0 runs before the process of the packet is known; the other filters belong
 * to labels.
 *
 * skbcapd/filter/packet_filter.py writes filters.h, the filters as C functions, and defines WINDOW,
 * a power of two: filters read fewer than WINDOW - 3 bytes of the frame. These are copied into a
 * window of this processor (window.h). So the result is that of libpcap for the file.
 */

struct window {
	u8 bytes[2 * WINDOW];
	struct skb chained;
};
/* Not a per-CPU map: for that a window can be too long, if a filter reads many bytes. */
BPF_ARRAY(windows, struct window, 2 * CPUS);

#include "filters.h"

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
	u32 have = fill_window(control, packet, skb, &frame, window->bytes, WINDOW, PIECES_MAX,
			       &window->chained);
	return packet_filter(packet->filter, FIELD(u16, device_of(packet, skb), DEV_TYPE), window->bytes,
			     have, frame.wire_len) ||
	       packet->key.net == control->own_net;
}
