/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sockets and flows: the fields of a struct sock that identify its packets. headers.h has the same
 * for a packet.
 *
 * Both have one type (struct flow), so a packet can be used to look up a socket.
 */

#define AF_INET		 2
#define AF_INET6	 10
#define TCP_ESTABLISHED	 1
#define TCP_SYN_SENT	 2
#define TCP_SYN_RECV	 3
#define TCP_TIME_WAIT	 6
#define TCP_CLOSE	 7
#define TCP_LISTEN	 10
#define TCP_NEW_SYN_RECV 12

/*
 * The first bytes of struct sock_common, read at once: addresses, ports, hash, family, state,
 * flags, chain.
 */
struct sock_head {
	u8 bytes[SOCK_SPAN];
} __attribute__((aligned(8)));
#define SOCK(sock, type, field) (*(type *)((sock)->bytes + SOCK_##field))
/* What identifies a socket: the hash of its addresses, and its ports. */
#define SOCK_IDENTITY(sock)   (SOCK(sock, u32, HASH) | (u64)SOCK(sock, u32, DPORT) << 32)
#define IDENTITY_LOCAL_PORT   (0xffffULL << 48) /* of these, the local port */
#define SOCK_BIT(sock, field) (SOCK(sock, u8, field##_BYTE) >> SOCK_##field##_SHIFT & 1)

/*
 * Whether a socket is of a user: it holds a reference to its network namespace, and one of the kernel
 * does not. A TIME_WAIT socket, to which the kernel's last ACKs can lead since Linux 6.13, is a smaller
 * struct, in which the bit is never written.
 */
static inline int is_user_socket(struct sock_head *sock)
{
	return SOCK_BIT(sock, REFCNT) && SOCK(sock, u8, STATE) != TCP_TIME_WAIT;
}

/*
 * The inode number of an open socket, which differs from that of a later one at the same address.
 * 0: closed, or not yet accepted.
 */
static inline u64 socket_inode(u64 sk)
{
	u64 socket = LOAD(u64, sk + SOCK_SOCKET);

	return socket ? LOAD(u64, socket + SOCKET_INODE) : 0;
}

#define HASH_FACTOR 0x9e3779b97f4a7c15ULL /* 2^64 by the golden ratio: -GOLDEN_RATIO_64 */

/* A hash of an inode number. Hashes are added for a set of sockets, in any order. */
static inline u64 hash_inode(u64 inode)
{
	u64 mixed = inode * HASH_FACTOR;

	return (mixed ^ mixed >> 29) * HASH_FACTOR;
}

/* SOCK_IDENTITY of a socket whose first bytes are not copied. */
static inline u64 socket_identity(u64 sk)
{
	return LOAD(u32, sk + SOCK_HASH) | (u64)LOAD(u32, sk + SOCK_DPORT) << 32;
}

/* The protocol of a socket. */
static inline u32 socket_protocol(u64 sk)
{
	return LOAD(u16, sk + SOCK_PROTOCOL);
}

/*
 * The number of descriptors, messages with descriptors, and running calls that refer to an open
 * socket: with more than one, several processes may have it open. 0: it is not open.
 */
static inline u64 references_of(u64 sk)
{
	u64 socket = LOAD(u64, sk + SOCK_SOCKET), file = socket ? LOAD(u64, socket + SOCKET_FILE) : 0;

	return file ? LOAD(u64, file + FILE_COUNT) + FILE_COUNT_BIAS : 0;
}

/* Bytes 8 to 11 of an IPv4-mapped address (::ffff:0:0/96). */
#define IPV4_MAPPED_WORD __builtin_bswap32(0x0000ffff)

static inline int ipv6_addr_v4mapped(u64 *address)
{
	return !address[0] && (u32)address[1] == IPV4_MAPPED_WORD;
}

/*
 * Sets the flow of a socket; an IPv6 socket with an IPv4 address has an IPv4 flow, like its
 * packets. A listener on one interface only has the number of the interface in place of a remote
 * address.
 */
static inline void flow_of_socket(struct sock_head *sock, u32 protocol, struct flow *flow)
{
	u64 *remote = &SOCK(sock, u64, V6_DADDR), *local = &SOCK(sock, u64, V6_RCV_SADDR);
	u32 family = SOCK(sock, u16, FAMILY);

	if (family == AF_INET6 && (ipv6_addr_v4mapped(remote) || ipv6_addr_v4mapped(local)))
		family = AF_INET;
	flow->net = LOAD(u64, SOCK(sock, u64, NET) + NET_COOKIE);
	flow->local[0] = family == AF_INET ? SOCK(sock, u32, RCV_SADDR) : local[0];
	flow->local[1] = family == AF_INET ? 0 : local[1];
	flow->remote[0] = family == AF_INET ? SOCK(sock, u32, DADDR) : remote[0];
	flow->remote[1] = family == AF_INET ? 0 : remote[1];
	flow->local_port = SOCK(sock, u16, NUM);
	flow->remote_port = __builtin_bswap16(SOCK(sock, u16, DPORT));
	if (!flow->remote_port)
		flow->remote[1] = SOCK(sock, u32, BOUND_DEV_IF);
	flow->protocol = protocol;
	flow->family = family;
	flow->on_wire = 0;
}

/* Memory for the functions that record users; each program chooses where it is. */
struct workspace {
	struct sock_head sock;
	struct owner owner;
	struct flow flow;
};
