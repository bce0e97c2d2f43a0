/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The headers of a packet, and its flow: addresses, protocol and ports.
 *
 * Structs and names are those of the kernel (include/uapi/linux/ip.h, ipv6.h, tcp.h, udp.h,
 * icmp.h), for little-endian processors. Values in them are in network byte order.
 */

#define ETH_HLEN	    14
#define ETH_P_IP	    0x0800
#define ETH_P_IPV6	    0x86dd
#define ETH_P_8021Q	    0x8100
#define ETH_P_8021AD	    0x88a8
#define IPPROTO_ICMP	    1
#define IPPROTO_TCP	    6
#define IPPROTO_UDP	    17
#define IPPROTO_ICMPV6	    58
#define ICMP_ECHOREPLY	    0
#define ICMP_ECHO	    8
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY   129
#define IP_MF		    0x2000 /* in frag_off of IPv4: more fragments follow */
#define IP_OFFSET	    0x1fff
#define IP6_MF		    0x0001 /* in frag_off of IPv6 */
#define IP6_OFFSET_SHIFT    3
#define INADDR_BROADCAST    0xffffffff

/* IPv6 extension headers (RFC 8200, 4): 8 bytes, and 8 more for each unit in their second byte. */
#define IPV6_HOP_BY_HOP	    0
#define IPV6_ROUTING	    43
#define IPV6_FRAGMENT	    44 /* always of 8 bytes */
#define IPV6_DESTINATION    60
#define IPV6_MOBILITY	    135
#define IPV6_EXTENSIONS_MAX 4

struct iphdr {
	u8 ihl : 4; /* words of 4 bytes */
	u8 version : 4;
	u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	u8 ttl;
	u8 protocol;
	__sum16 check;
	__be32 saddr;
	__be32 daddr;
};

struct ipv6hdr {
	u8 priority : 4;
	u8 version : 4;
	u8 flow_lbl[3];
	__be16 payload_len;
	u8 nexthdr;
	u8 hop_limit;
	u64 saddr[2];
	u64 daddr[2];
};

/* The longer of both, read in words. */
union network_header {
	u64 words[5];
	struct iphdr v4;
	struct ipv6hdr v6;
};

/* An extension header of IPv6. */
union extension_header {
	u64 word;
	struct {
		u8 nexthdr;
		u8 hdrlen;
	} any;
	struct {
		u8 nexthdr;
		u8 hdrlen;
		u8 type;
		u8 segments_left;
	} routing;
	struct {
		u8 nexthdr;
		u8 reserved;
		__be16 frag_off;
		__be32 identification;
	} fragment;
};

/* The first 16 bytes of a transport header. A datagram can have fewer. */
union transport_header {
	u64 words[2];
	struct {
		__be16 source; /* also of UDP */
		__be16 dest;
		__be32 seq;
		__be32 ack_seq;
		__be32 flag_word; /* offset of the data, flags, window */
	} tcp;
	struct {
		__be16 source;
		__be16 dest;
		__be16 len;
		__sum16 check;
	} udp;
	struct {
		u8 type;
		u8 code;
		__sum16 checksum;
		__be16 id; /* of an echo */
		__be16 sequence;
	} icmp; /* also of IPv6 */
};

static inline u16 ntohs(__be16 value)
{
	return __builtin_bswap16(value);
}
#define htons(value) ((__be16)__builtin_bswap16(value))
#define htonl(value) ((__be32)__builtin_bswap32(value))

static inline int is_icmp(u32 protocol)
{
	return protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6;
}

/* The type of an ICMP echo request, and of its reply. */
static inline u32 echo_request(u32 protocol)
{
	return protocol == IPPROTO_ICMP ? ICMP_ECHO : ICMPV6_ECHO_REQUEST;
}

static inline u32 echo_reply(u32 protocol)
{
	return protocol == IPPROTO_ICMP ? ICMP_ECHOREPLY : ICMPV6_ECHO_REPLY;
}

/* Whether a flow is that of an echo reply; makes it the flow of the request that this answers. */
static inline int to_echo_request(struct flow *flow)
{
	if (flow->remote_port != echo_reply(flow->protocol))
		return 0;
	flow->remote_port = echo_request(flow->protocol);
	return 1;
}

/* Values of a packet's headers besides its flow. */
struct headers {
	u32 transport; /* offset of the transport header from the network header; 0: no flow */
	u32 flag_word; /* bytes 12 to 15 of the transport header: of TCP, offset and flags */
	u32 multicast; /* the destination is a multicast or broadcast address */
	u32 fragment;  /* IP_MF and IP_OFFSET, also of IPv6; 0: the packet is not in fragments */
	u32 id;	       /* of that packet */
};
#define TCP_FLAG_FIN	htonl(0x00010000)
#define TCP_FLAG_SYN	htonl(0x00020000)
#define TCP_FLAG_RST	htonl(0x00040000)
#define TCP_FLAG_ACK	htonl(0x00100000)
#define TCP_DATA_OFFSET htonl(0xf0000000) /* in words of 4 bytes */

/* Whether a TCP segment requests a connection. */
static inline int is_syn(struct headers *headers)
{
	return (headers->flag_word & (TCP_FLAG_SYN | TCP_FLAG_ACK)) == TCP_FLAG_SYN;
}

/* Whether a TCP segment is a reset that acknowledges data, or rejects a SYN. */
static inline int is_reset(struct headers *headers)
{
	u32 both = TCP_FLAG_RST | TCP_FLAG_ACK;

	return (headers->flag_word & both) == both;
}

/* The length of a TCP header, in bytes. */
static inline u32 tcp_header_len(struct headers *headers)
{
	return (headers->flag_word & TCP_DATA_OFFSET) >> 2;
}

/* Values of a network header. IPv4 addresses are in the first four bytes. */
struct network {
	u64 source[2];
	u64 dest[2];
	u32 family;
	u32 protocol;
	u32 transport; /* as in struct headers */
	u32 multicast;
	u32 fragment; /* as in struct headers */
	u32 id;
};

static inline int ipv4_is_multicast(__be32 address)
{
	return (address & htonl(0xf0000000)) == htonl(0xe0000000);
}

static inline int ipv6_addr_is_multicast(u64 *address)
{
	return (address[0] & htonl(0xff000000)) == htonl(0xff000000);
}

/* Reads an IPv4 header. Returns whether it is one. */
static inline int read_ipv4(struct iphdr *header, struct network *network)
{
	if (header->version != 4 || header->ihl * 4 < sizeof(*header))
		return 0;
	network->family = AF_INET;
	network->transport = header->ihl * 4;
	network->protocol = header->protocol;
	network->source[0] = header->saddr;
	network->dest[0] = header->daddr;
	network->multicast = ipv4_is_multicast(header->daddr) || header->daddr == INADDR_BROADCAST;
	network->fragment = ntohs(header->frag_off) & (IP_MF | IP_OFFSET);
	network->id = header->id;
	return 1;
}

static inline int is_extension(u32 protocol)
{
	return protocol == IPV6_HOP_BY_HOP || protocol == IPV6_ROUTING || protocol == IPV6_FRAGMENT ||
	       protocol == IPV6_DESTINATION || protocol == IPV6_MOBILITY;
}

/*
 * Reads an IPv6 header at `at` and the extension headers after it, at most `size` bytes. Returns
 * whether it is one, and could be read completely.
 */
static inline int read_ipv6(u64 at, u64 size, struct ipv6hdr *header, struct network *network)
{
	u32 transport = sizeof(*header), protocol = header->nexthdr;
	u32 fragment = size >> 63; /* 0; FORGET without a record of control */

	if (header->version != 6)
		return 0;
	network->family = AF_INET6;
	network->source[0] = header->saddr[0];
	network->source[1] = header->saddr[1];
	network->dest[0] = header->daddr[0];
	network->dest[1] = header->daddr[1];
	network->multicast = ipv6_addr_is_multicast(header->daddr);
	for (int i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
		union extension_header extension;

		if (!is_extension(protocol))
			break;
		if (transport + sizeof(extension) > size)
			return 0;
		extension.word = LOAD(u64, at + transport);
		/* It goes on to another address, which is in the header. */
		if (protocol == IPV6_ROUTING && extension.routing.segments_left)
			return 0;
		transport += sizeof(extension);
		if (protocol == IPV6_FRAGMENT) {
			u32 offset = ntohs(extension.fragment.frag_off);

			fragment = offset >> IP6_OFFSET_SHIFT | (offset & IP6_MF) * IP_MF;
			network->id = extension.fragment.identification;
		} else {
			transport += extension.any.hdrlen * 8;
		}
		protocol = extension.any.nexthdr;
		if (fragment & IP_OFFSET)
			break;
	}
	network->transport = transport;
	network->protocol = protocol;
	network->fragment = fragment;
	return 1;
}

/*
 * Reads the flow of a packet whose network header is at `at`, with `size` bytes in the linear part
 * from there. Ports are those of TCP and UDP; the identifier of an echo is used as local port.
 * Later fragments, more than IPV6_EXTENSIONS_MAX extension headers, and headers outside of the
 * linear part have no ports (transport 0).
 */
static inline void flow_of_packet(u64 at, u64 size, u32 ether_type, u32 direction, struct flow *flow,
				  struct headers *headers)
{
	union network_header header;
	union transport_header transport;
	struct network network = {};

	headers->transport = headers->fragment = 0;
	LOAD_WORDS(header.words, sizeof(header), at);
	if (ether_type == htons(ETH_P_IP)) {
		if (!read_ipv4(&header.v4, &network))
			return;
	} else if (ether_type != htons(ETH_P_IPV6) || !read_ipv6(at, size, &header.v6, &network)) {
		return;
	}
	headers->fragment = network.fragment;
	headers->id = network.id;
	headers->multicast = network.multicast;
	flow->protocol = network.protocol;
	flow->family = network.family;
	flow->on_wire = 0;
	flow->local[0] = direction == IN ? network.dest[0] : network.source[0];
	flow->local[1] = direction == IN ? network.dest[1] : network.source[1];
	flow->remote[0] = direction == IN ? network.source[0] : network.dest[0];
	flow->remote[1] = direction == IN ? network.source[1] : network.dest[1];
	if (network.fragment & IP_OFFSET || network.transport + sizeof(transport.udp) > size)
		return;
	transport.words[0] = transport.words[1] = 0;
	LOAD_WORDS(transport.words, sizeof(transport), at + network.transport);
	u16 source = ntohs(transport.tcp.source), dest = ntohs(transport.tcp.dest);

	headers->transport = network.transport;
	headers->flag_word = transport.tcp.flag_word;
	flow->local_port = direction == IN ? dest : source;
	flow->remote_port = direction == IN ? source : dest;
	if (is_icmp(network.protocol)) {
		/*
		 * Type of the message, and identifier of an echo. A ping can have been sent from
		 * any of our addresses.
		 */
		flow->remote_port = transport.icmp.type;
		flow->local_port = transport.icmp.id;
		flow->local[0] = flow->local[1] = 0;
	}
}
