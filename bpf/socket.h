/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sockets and flows: the fields of a struct sock that tell whose packets are its own, and the same of a packet.
 *
 * Both sides of a flow have one shape (struct flow), so that what a socket is known by can be looked up by a packet.
 */

#define AF_INET		    2
#define AF_INET6	    10
#define IPPROTO_ICMP	    1
#define IPPROTO_TCP	    6
#define IPPROTO_UDP	    17
#define IPPROTO_ICMPV6	    58
#define ICMP_ECHO	    8
#define ICMPV6_ECHO_REQUEST 128
#define TCP_ESTABLISHED	    1
#define TCP_SYN_SENT	    2
#define TCP_SYN_RECV	    3
#define TCP_TIME_WAIT	    6
#define TCP_CLOSE	    7
#define TCP_LISTEN	    10
#define TCP_NEW_SYN_RECV    12

/* The start of struct sock_common, read at once: addresses, ports, hash, family, state, flags, chain. */
struct sock_head {
	u8 bytes[SOCK_SPAN];
} __attribute__((aligned(8)));
#define SOCK(sock, type, field) (*(type *)((sock)->bytes + SOCK_##field))
/* What tells one socket from another: the hash of its addresses, and its ports. */
#define SOCK_IDENTITY(sock)   (SOCK(sock, u32, HASH) | (u64)SOCK(sock, u32, DPORT) << 32)
#define SOCK_BIT(sock, field) (SOCK(sock, u8, field##_BYTE) >> SOCK_##field##_SHIFT & 1)

/* The inode number of an open socket: it tells a socket from a later one at the same address.
   0: closed by its users, or not yet accepted. */
static inline u64 socket_inode(u64 sk)
{
	u64 socket = LOAD(u64, sk + SOCK_SOCKET);

	return socket ? LOAD(u64, socket + SOCKET_INODE) : 0;
}

#define PRINT_FACTOR 0x9e3779b97f4a7c15ULL /* odd, its bits well mixed: 2^64 by the golden ratio */

/* Which protocol a socket speaks. */
static inline u32 socket_protocol(u64 sk)
{
	return LOAD(u16, sk + SOCK_PROTOCOL);
}

/* Fills in the flow of a socket; an IPv6 socket that speaks to an IPv4 address has an IPv4 flow, as its packets do. */
static inline void flow_of_socket(struct sock_head *sock, u32 protocol, struct flow *flow)
{
	u64 *remote = &SOCK(sock, u64, V6_DADDR), *local = &SOCK(sock, u64, V6_RCV_SADDR);
	u32 family = SOCK(sock, u16, FAMILY);

	if (family == AF_INET6 && !remote[0] && (u32)remote[1] == 0xffff0000)
		family = AF_INET;
	flow->net = LOAD(u64, SOCK(sock, u64, NET) + NET_COOKIE);
	flow->local[0] = family == AF_INET ? SOCK(sock, u32, RCV_SADDR) : local[0];
	flow->local[1] = family == AF_INET ? 0 : local[1];
	flow->remote[0] = family == AF_INET ? SOCK(sock, u32, DADDR) : remote[0];
	flow->remote[1] = family == AF_INET ? 0 : remote[1];
	flow->local_port = SOCK(sock, u16, NUM);
	flow->remote_port = __builtin_bswap16(SOCK(sock, u16, DPORT));
	flow->protocol = protocol;
	flow->family = family;
	flow->on_wire = 0;
}

/* What a packet's headers say beside its flow. */
struct headers {
	u32 transport; /* bytes from the network header to the transport header; 0: no flow can be read */
	u32 word;      /* bytes 12 to 15 of the transport header: of TCP, offset and flags */
	u32 multicast; /* the destination is a multicast or broadcast address */
	u32 fragment;  /* of a packet in several: FIRST_FRAGMENT or LATER_FRAGMENT; 0: it is whole */
	u32 id;	       /* of that packet */
};
enum fragment_place { FIRST_FRAGMENT = 1, LATER_FRAGMENT };
#define TCP_FIN_IN_WORD 0x0100 /* flags stand in the second byte of the word as it lies in memory */
#define TCP_SYN_IN_WORD 0x0200
#define TCP_RST_IN_WORD 0x0400
#define TCP_ACK_IN_WORD 0x1000

/* IPv6 extension headers (RFC 8200, 4): of 8 bytes, and 8 more for each that their second byte counts. */
#define IPV6_HOP_BY_HOP	    0
#define IPV6_ROUTING	    43
#define IPV6_FRAGMENT	    44 /* always of 8 bytes */
#define IPV6_DESTINATION    60
#define IPV6_MOBILITY	    135
#define IPV6_EXTENSIONS_MAX 4

/*
 * Reads the flow of a packet whose network header is at `at`, with `size` bytes in the linear part from there.
 * Ports are those of TCP and UDP; an echo's identifier stands for the local port. Fragments but the first, more than
 * IPV6_EXTENSIONS_MAX extension headers, and headers that are not in the linear part give no ports (transport 0).
 */
static inline void flow_of_packet(u64 at, u64 size, u32 ether_type, u32 direction, struct flow *flow,
				  struct headers *headers)
{
	u64 packet[5], from[2] = {}, to[2] = {}; /* 40 bytes */
	u8 *bytes = (u8 *)packet;
	u32 transport = 0, family = 0, protocol = 0, multicast = 0, fragment = 0, id = 0;
	u64 words[2] = {};

	headers->transport = headers->fragment = 0;
	LOAD_WORDS(packet, sizeof(packet), at);
	if (ether_type == 0x0008 && bytes[0] >> 4 == 4) {
		u32 offset =
			__builtin_bswap16(*(u16 *)(bytes + 6)) & 0x3fff; /* in its upper bit: more follow */

		family = AF_INET;
		transport = (bytes[0] & 15) * 4;
		protocol = bytes[9];
		from[0] = *(u32 *)(bytes + 12);
		to[0] = *(u32 *)(bytes + 16);
		multicast = bytes[16] >> 4 == 14 || to[0] == 0xffffffff;
		if (transport < 20)
			return;
		if (offset)
			fragment = offset & 0x1fff ? LATER_FRAGMENT : FIRST_FRAGMENT;
		id = *(u16 *)(bytes + 4);
	} else if (ether_type == 0xdd86 && bytes[0] >> 4 == 6) {
		family = AF_INET6;
		transport = 40;
		protocol = bytes[6];
		from[0] = packet[1];
		from[1] = packet[2];
		to[0] = packet[3];
		to[1] = packet[4];
		multicast = bytes[24] == 0xff;
		for (int i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
			if (protocol != IPV6_HOP_BY_HOP && protocol != IPV6_ROUTING &&
			    protocol != IPV6_FRAGMENT && protocol != IPV6_DESTINATION &&
			    protocol != IPV6_MOBILITY)
				break;
			if (transport + 8 > size || fragment == LATER_FRAGMENT)
				return;
			u64 extension = LOAD(u64, at + transport);

			if (protocol == IPV6_FRAGMENT) {
				u32 offset = __builtin_bswap16(extension >> 16);

				if (offset & 0xfff9)
					fragment = offset & 0xfff8 ? LATER_FRAGMENT : FIRST_FRAGMENT;
				id = extension >> 32;
				transport += 8;
			} else {
				transport += 8 + (extension >> 8 & 0xff) * 8;
			}
			protocol = extension & 0xff;
			if (fragment == LATER_FRAGMENT)
				break;
		}
	} else {
		return;
	}
	headers->fragment = fragment;
	headers->id = id;
	headers->multicast = multicast;
	flow->protocol = protocol;
	flow->family = family;
	flow->on_wire = 0;
	flow->local[0] = direction == IN ? to[0] : from[0];
	flow->local[1] = direction == IN ? to[1] : from[1];
	flow->remote[0] = direction == IN ? from[0] : to[0];
	flow->remote[1] = direction == IN ? from[1] : to[1];
	if (fragment == LATER_FRAGMENT || transport + 8 > size)
		return;
	LOAD_WORDS(words, sizeof(words), at + transport);
	u16 source = __builtin_bswap16(words[0]), destination = __builtin_bswap16(words[0] >> 16);

	headers->transport = transport;
	headers->word = words[1] >> 32;
	flow->local_port = direction == IN ? destination : source;
	flow->remote_port = direction == IN ? source : destination;
	if (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6) {
		/* Type of the message; an echo's identifier. A ping may have been sent from any of our addresses. */
		flow->remote_port = words[0] & 0xff;
		flow->local_port = words[0] >> 32;
		flow->local[0] = flow->local[1] = 0;
	}
}

/* Room for what the functions that learn need, so that each program chooses where it lies. */
struct workspace {
	struct sock_head sock;
	struct owner owner;
	struct flow flow;
};
