/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where the payload of a packet begins, for the setting `payload: none`.
 *
 * What is not known to be a header is payload: the frame is cut behind its last known header. Known
 * are Ethernet with VLAN tags, ARP, IPv4, IPv6 with its extension headers, AH, and the headers of
 * TCP, UDP, UDP-Lite, SCTP, DCCP, ICMP and ICMPv6. Of a tunnel only the outer headers are read. A
 * header of a wrong length is none, such as one that would end after its IP packet. So each mistake
 * cuts too much, never too little.
 *
 * skbcapd/frames/headers.py does the same for `skbcapd extract`; tests/kernel/test_payload.py
 * compares both. That a frame has longer headers than the window is the only difference: it is cut
 * there.
 */

#define HEADERS_WINDOW 512 /* bytes; a power of two */
#define HEADERS_PIECES 8   /* fragments that are read for them */

#define ETH_P_QINQ1	0x9100
#define ETH_P_ARP	0x0806
#define TAGS_MAX	8
#define IPPROTO_DCCP	33
#define IPPROTO_AH	51
#define IPPROTO_SCTP	132
#define IPPROTO_UDPLITE 136
#define IPV6_HIP	139
#define IPV6_SHIM6	140
#define HEADERS_BEHIND	16 /* at most so many headers between the one of IP and the transport header */
#define UDP_HLEN	8
#define ICMP_HLEN	8
#define SCTP_HLEN	12
#define TCP_HLEN	20
#define TCP_OFFSET_AT	12
#define DCCP_HLEN	12
#define DCCP_OFFSET_AT	4
#define NO_END		(1ULL << 32) /* of a packet longer than 64 KiB (BIG TCP), whose length field is 0 */

/* The 4 bytes of a VLAN tag behind the addresses, or behind another tag. */
struct vlan_hdr {
	__be16 h_vlan_TCI;
	__be16 h_vlan_encapsulated_proto;
};

/* A header of ARP, without its addresses. */
struct arphdr {
	__be16 ar_hrd;
	__be16 ar_pro;
	u8 ar_hln; /* bytes of a hardware address */
	u8 ar_pln; /* bytes of a protocol address */
	__be16 ar_op;
};

struct headers_window {
	u8 bytes[2 * HEADERS_WINDOW];
	struct skb chained;
};
BPF_PERCPU_ARRAY(headers_windows, struct headers_window, 3); /* by direction, as `packets` */

/* How far the headers of a frame are known. All are offsets in the frame. */
struct known {
	u64 at;	      /* end of the known headers */
	u64 have;     /* bytes of the frame that can be read */
	u64 end;      /* of the IP packet, whose trailer can follow */
	u64 protocol; /* of the header at `at`: EtherType, then IP protocol */
	u64 is_v6;
};

static inline u64 byte_at(u8 *bytes, u64 at)
{
	return bytes[BOUND(at, HEADERS_WINDOW - 1)];
}

static inline u64 word_at(u8 *bytes, u64 at)
{
	return byte_at(bytes, at) << 8 | byte_at(bytes, at + 1);
}

static inline int is_tag(u64 ether_type)
{
	return ether_type == ETH_P_8021Q || ether_type == ETH_P_8021AD || ether_type == ETH_P_QINQ1;
}

/* Reads the link-layer header. Returns whether a network header can follow. */
static inline int read_link(u8 *bytes, u32 device_type, u64 nothing, struct known *known)
{
	u64 at = 0, type = 0;

	if (IS_RAW(device_type)) {
		u64 version = byte_at(bytes, 0) >> 4;

		known->protocol = version == 4 ? ETH_P_IP : version == 6 ? ETH_P_IPV6 : 0;
		return known->have > 0;
	}
	if (!IS_ETHERNET(device_type))
		return 0;
	if (known->have < ETH_HLEN) {
		known->at = known->have;
		return 0;
	}
	type = word_at(bytes, ETH_ADDRESSES);
	at = ETH_HLEN;
	for (int i = 0; i < TAGS_MAX; i++) {
		FORGET(at, nothing);
		if (!is_tag(type) || at + VLAN_HLEN > known->have)
			break;
		type = word_at(bytes, at + __builtin_offsetof(struct vlan_hdr, h_vlan_encapsulated_proto));
		at += VLAN_HLEN;
	}
	known->at = at;
	known->protocol = type;
	return at < known->have;
}

/* Reads the header of IPv4. Returns whether another header can follow. */
static inline int read_ipv4_end(u8 *bytes, struct known *known)
{
	u64 at = known->at, first = byte_at(bytes, at), size = (first & 15) * 4, total, fragment;

	if (first >> 4 != 4 || size < sizeof(struct iphdr))
		return 0;
	if (at + sizeof(struct iphdr) > known->have) {
		known->at = known->have;
		return 0;
	}
	total = word_at(bytes, at + __builtin_offsetof(struct iphdr, tot_len));
	if (total && total < size)
		return 0;
	if (total)
		known->end = at + total;
	known->at = least(known->have, at + size);
	known->protocol = byte_at(bytes, at + __builtin_offsetof(struct iphdr, protocol));
	fragment = word_at(bytes, at + __builtin_offsetof(struct iphdr, frag_off));
	return at + size <= known->have && !(fragment & IP_OFFSET);
}

/* Reads the header of IPv6. Returns whether another header can follow. */
static inline int read_ipv6_end(u8 *bytes, struct known *known)
{
	u64 at = known->at, size = sizeof(struct ipv6hdr), len;

	if (byte_at(bytes, at) >> 4 != 6)
		return 0;
	known->at = least(known->have, at + size);
	if (at + size > known->have)
		return 0;
	len = word_at(bytes, at + __builtin_offsetof(struct ipv6hdr, payload_len));
	if (len)
		known->end = at + size + len;
	known->protocol = byte_at(bytes, at + __builtin_offsetof(struct ipv6hdr, nexthdr));
	known->is_v6 = 1;
	return 1;
}

/* 1 if both are equal. Without a branch, as each in the loop below multiplies the verifier's work. */
static inline u64 is_equal(u64 a, u64 b)
{
	return 1 ^ any(a ^ b);
}

/* The numbers of headers of known length that come before the transport header, as bits. */
#define BEFORE_IN_V6 \
	(1ULL << IPV6_HOP_BY_HOP | 1ULL << IPV6_ROUTING | 1ULL << IPV6_FRAGMENT | 1ULL << IPV6_DESTINATION)
#define BEFORE_IN_V6_FROM_128 \
	(1ULL << (IPV6_MOBILITY - 128) | 1ULL << (IPV6_HIP - 128) | 1ULL << (IPV6_SHIM6 - 128))

static inline u64 is_before_transport(u64 protocol, u64 is_v6)
{
	u64 in_v6 = BEFORE_IN_V6 * is_equal(protocol >> 6, 0) +
		    BEFORE_IN_V6_FROM_128 * is_equal(protocol >> 6, 2);

	return is_equal(protocol, IPPROTO_AH) | (is_v6 & in_v6 >> (protocol & 63));
}

/* Skips extension headers and AH. Returns whether a transport header can follow. */
static inline int skip_to_transport(u8 *bytes, u64 nothing, struct known *known)
{
	u64 last = least(known->have, known->end);

	FORGET(last, nothing);
	for (int i = 0; i < HEADERS_BEHIND; i++) {
		u64 at = known->at + nothing, protocol = known->protocol;
		u64 is_ah = is_equal(protocol, IPPROTO_AH), is_fragment = is_equal(protocol, IPV6_FRAGMENT);
		u64 units, size, offset, is_later;

		if (!is_before_transport(protocol, known->is_v6))
			return 1;
		if (at + 8 > last) {
			if (at + 8 <= known->end)
				known->at = known->have;
			return 0;
		}
		/* 8 * (units + 1); of AH 4 * (units + 2); of a fragment header 8 */
		units = byte_at(bytes, at + __builtin_offsetof(union extension_header, any.hdrlen)) &
			(is_fragment - 1);
		size = (units + 1 + is_ah) << (3 - is_ah);
		offset = word_at(bytes, at + __builtin_offsetof(union extension_header, fragment.frag_off));
		is_later = -is_fragment & offset >> IP6_OFFSET_SHIFT;
		if (at + size > known->end)
			return 0;
		known->protocol = byte_at(bytes, at);
		known->at = least(known->have, at + size);
		if (any(is_later) | (at + size > known->have))
			return 0;
	}
	return 1;
}

/* The size of a header that says it in words of 4 bytes; 0: it is wrong. */
static inline u64 size_by_offset(struct known *known, u64 words, u64 smallest)
{
	return words * 4 < smallest || known->at + words * 4 > known->end ? 0 : words * 4;
}

/* The size of the transport header; 0: it is not known, or wrong. */
static inline u64 transport_size(u8 *bytes, struct known *known)
{
	u64 at = known->at, protocol = known->protocol, last = least(known->have, known->end);

	if (protocol == IPPROTO_TCP)
		return at + TCP_OFFSET_AT >= last
			       ? TCP_HLEN
			       : size_by_offset(known, byte_at(bytes, at + TCP_OFFSET_AT) >> 4, TCP_HLEN);
	if (protocol == IPPROTO_DCCP)
		return at + DCCP_OFFSET_AT >= last
			       ? DCCP_HLEN
			       : size_by_offset(known, byte_at(bytes, at + DCCP_OFFSET_AT), DCCP_HLEN);
	if (protocol == IPPROTO_SCTP)
		return SCTP_HLEN;
	if (protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE)
		return UDP_HLEN;
	return is_icmp(protocol) ? ICMP_HLEN : 0;
}

/*
 * The offset of the payload in a frame, of which `bytes` has the first `have` bytes; at most `have`.
 */
static inline u32 find_payload(u8 *bytes, u64 have, u32 device_type, u64 nothing)
{
	struct known known = {.have = have, .end = NO_END};
	u64 kind;

	if (!read_link(bytes, device_type, nothing, &known))
		return known.at;
	kind = known.protocol;
	if (kind == ETH_P_ARP) {
		u64 addresses = byte_at(bytes, known.at + __builtin_offsetof(struct arphdr, ar_hln)) +
				byte_at(bytes, known.at + __builtin_offsetof(struct arphdr, ar_pln));
		u64 end = known.at + sizeof(struct arphdr);

		return end > have ? have : least(have, end + 2 * addresses);
	}
	if (kind == ETH_P_IP) {
		if (!read_ipv4_end(bytes, &known))
			return known.at;
	} else if (kind != ETH_P_IPV6 || !read_ipv6_end(bytes, &known)) {
		return known.at;
	}
	FORGET(known.at, nothing);
	FORGET(known.end, nothing);
	FORGET(known.protocol, nothing);
	FORGET(known.is_v6, nothing);
	if (!skip_to_transport(bytes, nothing, &known))
		return known.at;
	return least(least(known.have, known.end), known.at + transport_size(bytes, &known));
}

/* Sets packet->payload. If the frame cannot be read, all of it is payload. */
static inline void measure_headers(struct control *control, struct packet *packet, struct skb *skb,
				   u32 direction)
{
	struct headers_window *window = headers_windows.lookup(&direction);
	struct frame frame;
	u64 have;

	packet->payload = PAYLOAD_FOUND;
	if (!window || find_frame(skb, packet->dev, packet->head, packet->data, direction, &frame))
		return;
	have = fill_window(control, packet, skb, &frame, window->bytes, HEADERS_WINDOW, HEADERS_PIECES,
			   &window->chained);
	FORGET(have, control->nothing);
	packet->payload |= find_payload(window->bytes, have, FIELD(u16, device_of(packet, skb), DEV_TYPE),
					control->nothing);
}
