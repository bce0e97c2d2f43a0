/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The first bytes of a frame in one piece, as they will be in the file: with the VLAN tag, linear or
 * paged. Programs that parse frames read them there.
 */

/*
 * Copies the first bytes of the frame to `bytes`; returns how many there are, at most size - 4.
 * `size` is a power of two; `bytes` has twice as many: the verifier only sees that a read may start
 * at bytes[size - 1]. At most `pieces` fragments are read. `chained` is used for the skbs in frag_list.
 */
static inline u32 fill_window(struct control *control, struct packet *packet, struct skb *skb,
			      struct frame *frame, u8 *bytes, const u32 size, const int pieces,
			      struct skb *chained)
{
	u32 tag = frame->vlan ? VLAN_HLEN : 0, linear = frame->linear + tag, end = SKB(skb, u32, END);
	u32 have = least(frame->wire_len, size - 4);
	u32 *words = (u32 *)bytes;

	if (!control->page_base)
		have = least(have, linear);
	if (linear < have) {
		LOAD_WORDS(&packet->shared, sizeof(packet->shared), packet->head + end);
		frame->cap_len = have;
		return copy_frame(control, bytes, size, size, pieces, 0, frame, packet->head, end, chained,
				  &packet->shared);
	}
	if (READ(bytes + tag, BOUND(have - tag, size - 1), frame->start))
		return 0;
	if (tag) {
		words[0] = words[1];
		words[1] = words[2];
		words[2] = words[3];
		words[3] = frame->vlan;
	}
	return have;
}
