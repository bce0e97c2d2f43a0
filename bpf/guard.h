/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Whether a received packet can reach another socket than its addresses show.
 *
 * The hook sees a packet before netfilter, tc and the lookup of its socket. If one of them can
 * translate, redirect or steal it, its addresses do not prove which socket gets it. Then only a
 * flow on the wire (path.h) shows the receiver. Some of them can also give what is for the socket
 * that answers to another one: TPROXY and sk_lookup (GUARD_ANSWERS), IPVS (GUARD_BALANCES), rules at the ingress of
 * the interface (GUARD_RULES).
 *
 * The following is checked, once a millisecond for each interface:
 * - PRE_ROUTING of netfilter in the namespace. Defragmentation, conntrack and the hook of bridges
 *   (ip_sabotage_in) change nothing. NAT has a hook as soon as there is a chain of type nat,
 *   whatever its rules.
 * - IPVS, which is in LOCAL_IN.
 * - TPROXY: each of its rules enables defragmentation, and so does conntrack, once (netns_nf counts
 *   it).
 * - netfilter and tc at the ingress of the interface, generic XDP, Open vSwitch.
 * - VRF: its sockets have addresses of their own.
 * - sk_lookup programs of the namespace.
 */

#define GUARD_LASTS_NS 1000000ULL

/* What a guard finds. */
#define GUARD_ADDRESSES 1 /* addresses do not prove the receiver */
#define GUARD_ANSWERS	2 /* an answer to a UDP socket can reach another socket */
#define GUARD_BALANCES	4 /* so can an answer to a server behind IPVS, if nothing has translated it */
#define GUARD_RULES	8 /* any answer can reach another socket: the rules keep no state */
#define GUARD_ALL	7 /* of a namespace */

#define PRIORITY_FIRST	   (-2147483647LL - 1)
#define PRIORITY_DEFRAG	   -400
#define PRIORITY_CONNTRACK -200
#define PRIORITY_IPVS	   98 /* and 99 */
#define IFF_MACVLAN_PORT   (1 << 8)
#define IFF_OVS_DATAPATH   (1 << 10)
#define IFF_L3MDEV_MASTER  (1 << 18)
#define IFF_L3MDEV_SLAVE   (1 << 21)

#define NETNS_BPF_SK_LOOKUP 1

#ifdef NET_HOOKS_V4
#define HOOK_CONNTRACK 8 /* beside the bits of a guard */

/*
 * Whether one of the functions at a hook of netfilter can pass a packet to another socket: bits of a
 * guard; and whether one of them is conntrack. `entries` is the struct nf_hook_entries of the hook; its operations follow its functions
 * (nf_hook_entries_get_hook_ops).
 */
static inline u64 may_steal(u64 entries, u64 is_local, u64 nothing)
{
	u64 found = 0, count = entries ? LOAD(u16, entries + ENTRIES_COUNT) : 0;
	u64 at = entries + ENTRIES_HOOKS + count * ENTRY_SIZE;

	FORGET(count, nothing);
	for (int i = 0; i < HOOKS_MAX; i++) {
		FORGET(found, nothing);
		FORGET(at, nothing);
		if (i >= count)
			return found;
		u64 operations = LOAD(u64, at);
		/* Not 0: nftables, BPF. */
		u64 type = LOAD(u8, operations + HOOK_TYPE) & HOOK_TYPE_MASK;
		s64 priority = LOAD(s32, operations + HOOK_PRIORITY);
		u64 is_conntrack = 1 - any(priority - PRIORITY_CONNTRACK);
		u64 is_harmless =
			is_conntrack | (any(priority - PRIORITY_FIRST) & any(priority - PRIORITY_DEFRAG)) ^ 1;
		u64 is_ipvs = any(priority - PRIORITY_IPVS) & any(priority - PRIORITY_IPVS - 1) ^ 1;

		is_conntrack &= any(type) ^ 1;
		is_harmless &= any(type) ^ 1;
		is_ipvs &= any(type) ^ 1;
		found |= is_local * is_ipvs * (GUARD_ADDRESSES | GUARD_BALANCES) |
			 (1 - is_local) * ((1 - is_harmless) | is_conntrack * HOOK_CONNTRACK);
		at += 8;
	}
	return GUARD_ALL;
}
#endif

/* The guard of all interfaces of a namespace. */
static inline u64 guard_of_namespace(u64 net, u64 nothing)
{
	u64 guard = 0;

#ifdef NET_BPF
	guard = any(LOAD(u64, net + NET_BPF + 8 * NETNS_BPF_SK_LOOKUP)) * (GUARD_ADDRESSES | GUARD_ANSWERS);
#endif
#ifdef NET_HOOKS_V4
	for (int i = 0; i < 4; i++) { /* both families, at PRE_ROUTING and LOCAL_IN */
		u64 hooks = net + (i & 1 ? NET_HOOKS_V6 : NET_HOOKS_V4), found, users = 0;

		FORGET(guard, nothing);
		found = may_steal(LOAD(u64, hooks + 8 * (i >> 1)), i >> 1, nothing);
#ifdef NET_DEFRAG_USERS_V4
		if (i < 2)
			users = LOAD(u32, net + (i ? NET_DEFRAG_USERS_V6 : NET_DEFRAG_USERS_V4));
#endif
		guard |= found & GUARD_ALL;
		/* more users than conntrack */
		guard |= (any(found & HOOK_CONNTRACK) - users >> 63) * GUARD_ANSWERS;
	}
#endif
	return guard;
}

#define FILTERS_MAX	  8
#define CLASSIFIER_BPF	  0x00667062U /* "bpf" and its NUL, as a kind of filter */
#define HOOK_OF_NF_TABLES 1	      /* enum nf_hook_ops_type */

/*
 * Whether rules at the ingress of an interface can give a packet to others, whoever has sent what it answers: filters of
 * tc (mirred, pedit), chains of nftables (fwd). Flow tables of nftables have a memory, and so has, we
 * suppose, a program of BPF: such programs do what NAT does, for the networks of Kubernetes.
 */
static inline u64 has_ingress_rules(u64 dev, u64 nothing)
{
	u64 found = 0;

#if defined(DEV_NF_INGRESS) && defined(NET_HOOKS_V4)
	u64 entries = LOAD(u64, dev + DEV_NF_INGRESS),
	    count = entries ? LOAD(u16, entries + ENTRIES_COUNT) : 0;
	u64 at = entries + ENTRIES_HOOKS + count * ENTRY_SIZE;

	found = any(count & ~(FILTERS_MAX - 1ULL)); /* more than are checked */
	for (int i = 0; i < FILTERS_MAX; i++) {
		FORGET(found, nothing);
		FORGET(at, nothing);
		if (i >= count)
			break;
		u64 type = LOAD(u8, LOAD(u64, at) + HOOK_TYPE) & HOOK_TYPE_MASK;

		found |= 1 - any(type ^ HOOK_OF_NF_TABLES);
		at += 8;
	}
#endif
#ifdef FILTERS
	u64 qdisc = LOAD(u64, dev + DEV_TC_INGRESS);
#ifdef TCX_PARENT
	u64 parent = qdisc ? LOAD(u64, qdisc + TCX_PARENT) : 0;

	qdisc = parent ? LOAD(u64, parent - TCX_QDISC) : 0;
#endif
	u64 filter = qdisc ? LOAD(u64, qdisc + FILTERS) : 0;

	for (int i = 0; i < FILTERS_MAX; i++) {
		FORGET(found, nothing);
		FORGET(filter, nothing);
		if (!filter)
			return found;
		found |= any(LOAD(u32, LOAD(u64, filter + FILTER_OPERATIONS) + FILTER_KIND) ^ CLASSIFIER_BPF);
		filter = LOAD(u64, filter + FILTER_NEXT);
	}
	found |= any(filter);
#endif
	return found;
}

/*
 * The guard of an interface of a namespace: not 0 if a packet received there can reach another socket
 * than its addresses show.
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
	stealing |= LOAD(u32, dev + DEV_PRIVATE_FLAGS) &
		    (IFF_OVS_DATAPATH | IFF_L3MDEV_SLAVE | IFF_L3MDEV_MASTER);
	return any(stealing) | has_ingress_rules(dev, nothing) * GUARD_RULES |
	       guard_of_namespace(net, nothing);
}

/* The guard of another namespace than that of the interface, cached in the same way. */
static inline u64 guard_of_other(struct packet *packet, u64 net, u64 nothing)
{
	struct guard *guard = &packet->other;

	if (guard->dev != net || packet->time >= guard->until) {
		guard->dev = net;
		guard->until = packet->time + GUARD_LASTS_NS;
		guard->found = guard_of_namespace(net, nothing);
	}
	return guard->found;
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

	packet->guard = guard->found;
	return guard->dev == packet->dev && packet->time < guard->until;
}

/* Checks the interface, and caches the result. */
static inline void renew_guard(struct packet *packet, u64 nothing)
{
	struct guard *guard = find_guard(packet);

	guard->dev = packet->dev;
	guard->until = packet->time + GUARD_LASTS_NS;
	guard->found = packet->guard = may_be_stolen(packet->dev, packet->net, nothing);
}
