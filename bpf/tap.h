/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packets that an interface above another one receives (VLAN, bond, team, macvlan, ipvlan).
 *
 * The kernel gives them to it in "another round" inside __netif_receive_skb_core, which passes
 * neither its kprobe nor its tracepoint again. So each such interface has a packet socket, whose
 * filter is the program: it runs where tcpdump gets its packets (skbcapd/kernel/taps.py). All stages
 * of it are programs of that type, which get the sk_buff itself as their context.
 */

/*
 * Whether the hook for received packets has seen the packet on this interface: a macvlan or ipvlan
 * interface gets multicasts and some others by netif_rx. That hook runs right before the taps, on the
 * same processor, so the last packet of the hook is this one.
 */
static inline int is_captured(struct skb *skb, void *argument)
{
	u32 direction = IN;
	struct packet *last = packets.lookup(&direction);

	return last && last->address == (u64)argument && last->dev == SKB(skb, u64, DEV);
}
