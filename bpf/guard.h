/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Whether a received packet can reach another socket than its addresses show.
 *
 * The hook sees a packet before netfilter, tc and the lookup of its socket. If one of them can
 * translate, redirect or steal it, its addresses do not prove which socket gets it. Then only a
 * flow on the wire (path.h) shows the receiver.
 *
 * The following is checked, once a millisecond for each interface:
 * - PRE_ROUTING of netfilter in the namespace. Defragmentation, conntrack and the hook of bridges
 *   (ip_sabotage_in) change nothing. NAT has a hook as soon as there is a chain of type nat,
 *   whatever its rules.
 * - IPVS, which is in LOCAL_IN.
 * - netfilter and tc at the ingress of the interface, generic XDP, Open vSwitch.
 * - VRF: its sockets have addresses of their own.
 * - sk_lookup programs of the namespace.
 */

#define GUARD_LASTS_NS 1000000ULL

#define PRIORITY_FIRST	   (-2147483647LL - 1)
#define PRIORITY_DEFRAG	   -400
#define PRIORITY_CONNTRACK -200
#define PRIORITY_IPVS	   98 /* and 99 */
#define IFF_MACVLAN_PORT   (1 << 8)
#define IFF_OVS_DATAPATH   (1 << 10)
#define IFF_L3MDEV_MASTER  (1 << 18)
#define IFF_L3MDEV_SLAVE   (1 << 21)

#define NF_INET_PRE_ROUTING 0
#define NF_INET_LOCAL_IN    1
#define NETNS_BPF_SK_LOOKUP 1

#ifdef NET_HOOKS_V4
/*
 * Not 0 if one of the functions at a hook of netfilter can pass a packet to another socket.
 * `entries` is the struct nf_hook_entries of the hook; its operations follow its functions
 * (nf_hook_entries_get_hook_ops).
 */
static inline u64 may_steal(u64 entries, u64 is_local, u64 nothing)
{
	u64 stealing = 0, count = entries ? LOAD(u16, entries + ENTRIES_COUNT) : 0;
	u64 at = entries + ENTRIES_HOOKS + count * ENTRY_SIZE;

	FORGET(count, nothing);
	for (int i = 0; i < HOOKS_MAX; i++) {
		FORGET(stealing, nothing);
		FORGET(at, nothing);
		if (i >= count)
			return stealing;
		u64 operations = LOAD(u64, at);
		/* Not 0: nftables, BPF. */
		u64 type = LOAD(u8, operations + HOOK_TYPE) & HOOK_TYPE_MASK;
		s64 priority = LOAD(s32, operations + HOOK_PRIORITY);
		u64 is_harmless = (any(priority - PRIORITY_FIRST) & any(priority - PRIORITY_DEFRAG) &
				   any(priority - PRIORITY_CONNTRACK)) ^
				  1;
		u64 is_ipvs = any(priority - PRIORITY_IPVS) & any(priority - PRIORITY_IPVS - 1) ^ 1;

		is_harmless &= any(type) ^ 1;
		is_ipvs &= any(type) ^ 1;
		stealing |= is_local * is_ipvs | (1 - is_local) * (1 - is_harmless);
		at += 8;
	}
	return 1;
}
#endif

/*
 * Not 0 if a packet received on an interface of a namespace can reach another socket than its
 * addresses show.
 */
static inline u64 may_be_stolen(u64 dev, u64 net, u64 nothing)
{
	u64 stealing = 0;

#ifdef DEV_TC_INGRESS
	stealing |= LOAD(u64, dev + DEV_TC_INGRESS);
#endif
#ifdef DEV_NF_INGRESS
	stealing |= LOAD(u64, dev + DEV_NF_INGRESS);
#endif
#ifdef DEV_XDP
	stealing |= LOAD(u64, dev + DEV_XDP);
#endif
	stealing |= LOAD(u32, dev + DEV_PRIVATE_FLAGS) & (IFF_OVS_DATAPATH | IFF_L3MDEV_SLAVE);
#ifdef NET_BPF
	stealing |= LOAD(u64, net + NET_BPF + 8 * NETNS_BPF_SK_LOOKUP);
#endif
	stealing = any(stealing);
#ifdef NET_HOOKS_V4
	for (int i = 0; i < 4; i++) { /* both families, at PRE_ROUTING and LOCAL_IN */
		u64 hooks = net + (i & 1 ? NET_HOOKS_V6 : NET_HOOKS_V4);

		FORGET(stealing, nothing);
		stealing |= may_steal(LOAD(u64, hooks + 8 * (i >> 1)), i >> 1, nothing);
	}
#endif
	return any(stealing);
}

/* The cached result of this processor for the packet's interface. */
static inline struct guard *find_guard(struct packet *packet)
{
	return &packet->guards[BOUND(packet->key.ifindex, GUARDS - 1)];
}

/* Whether there is a cached result, which is then set for the packet. */
static inline int is_guard_known(struct packet *packet)
{
	struct guard *guard = find_guard(packet);

	packet->guard = guard->is_up;
	return guard->dev == packet->dev && packet->time < guard->until;
}

/* Checks the interface, and caches the result. */
static inline void renew_guard(struct packet *packet, u64 nothing)
{
	struct guard *guard = find_guard(packet);

	guard->dev = packet->dev;
	guard->until = packet->time + GUARD_LASTS_NS;
	guard->is_up = packet->guard = may_be_stolen(packet->dev, packet->net, nothing);
}
