/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The frame of an sk_buff: linear part, page fragments, then the skbs of frag_list, with the VLAN
 * tag inserted.
 *
 * Offsets of kernel fields are definitions (-D) that skbcapd/kernel/abi.py takes from BTF.
 */

/*
 * A packet's sk_buff, up to the last field that is needed: the one of the kernel if the program can
 * read it in place, otherwise a copy.
 */
struct skb {
	u8 bytes[SKB_SPAN];
} __attribute__((aligned(8)));
#define SKB(skb, type, field) (*(type *)((skb)->bytes + SKB_##field))
#define SKB_BITS(skb, field) \
	(SKB(skb, u8, field##_BYTE) >> SKB_##field##_SHIFT & ((1 << SKB_##field##_WIDTH) - 1))

/*
 * Helper functions of the kernel, declared once more: under their own names, bcc would search the symbols of the kernel
 * for them.
 */
static int (*read_kernel)(void *into, u32 size, const void *from) = (void *)BPF_FUNC_probe_read_kernel;
static int (*read_user)(void *into, u32 size, const void *from) = (void *)BPF_FUNC_probe_read_user;

/* Reads `size` bytes of kernel memory; 0, or -EFAULT and zeros. */
#define READ(into, size, from) read_kernel(into, size, (void *)(from))

/*
 * One number of kernel memory; 0 if it cannot be read. bpf_rdonly_cast (Linux 6.2) makes any
 * address readable in place, and costs nothing. READ is a call: about 30 ns if returns are slow
 * (mitigations). The calls can be removed when the oldest supported kernel is 6.2 and has the JIT.
 */
#ifdef RDONLY_CAST
static u8 *(*bpf_rdonly_cast)(u64 address, u32 type) = (void *)CALL_RDONLY_CAST;

/* Memory at an address as a kernel's type; WORDS_TYPE is of 16 bytes of numbers. */
static inline u8 *memory_at(u64 address, const u32 type)
{
	u8 *object = bpf_rdonly_cast(address, type);

	IN_KERNEL(object);
	return object;
}
#define LOAD(type, address) (*(type *)memory_at((u64)(address), WORDS_TYPE))
/* Several numbers, `size` bytes: a multiple of 8, known to the compiler. */
#define LOAD_WORDS(into, size, address)                  \
	for (u32 _word = 0; _word < (size) / 8; _word++) \
	((u64 *)(into))[_word] = LOAD(u64, (u64)(address) + 8 * _word)
#else
#define LOAD_WORDS READ
#define LOAD(type, address)                               \
	({                                                \
		type _loaded = 0;                         \
		READ(&_loaded, sizeof(_loaded), address); \
		_loaded;                                  \
	})
#endif

/*
 * Whether the objects that a program gets as arguments can be read in place, because the verifier
 * knows their types. The other case can be removed together with that of LOAD.
 */
#if !defined(KPROBE) || defined(RDONLY_CAST)
#define IN_PLACE
#endif

/* A field of an object that the program got as an argument, or that such a field points to. */
#ifdef IN_PLACE
#define FIELD(type, object, offset) (*(type *)((u8 *)(object) + (offset)))
#else
#define FIELD(type, object, offset) LOAD(type, (u64)(object) + (offset))
#endif

/*
 * The start of skb_shared_info: nr_frags, gso_size and frag_list are in it on all kernels so far.
 */
struct shared {
	u8 bytes[SHARED_SPAN];
} __attribute__((aligned(8)));
#define SHARED(shared, type, field) (*(type *)((shared)->bytes + SHARED_##field))

#define ETH_ALEN      6
#define ETH_ADDRESSES (2 * ETH_ALEN) /* bytes before a VLAN tag */
#define VLAN_HLEN     4

struct frame {
	u64 start;    /* address of the first byte of the link-layer header */
	u32 linear;   /* bytes from there to the end of the linear part */
	u32 wire_len; /* bytes of the complete frame, including the VLAN tag */
	u32 cap_len;  /* bytes to keep */
	u32 vlan;     /* tag as on the wire, in network order; 0: none */
};

#define CHECKSUM_PARTIAL	   3
#define EPB_RECEPTION_SHIFT	   2
#define EPB_UNICAST		   (1 << EPB_RECEPTION_SHIFT)
#define EPB_MULTICAST		   (2 << EPB_RECEPTION_SHIFT)
#define EPB_BROADCAST		   (3 << EPB_RECEPTION_SHIFT)
#define EPB_PROMISCUOUS		   (4 << EPB_RECEPTION_SHIFT)
#define EPB_CHECKSUM_NOT_READY	   (1 << 9)
#define EPB_SEGMENTATION_OFFLOADED (1 << 11)

/* skb->pkt_type */
#define PACKET_HOST	 0
#define PACKET_BROADCAST 1
#define PACKET_MULTICAST 2
#define PACKET_OTHERHOST 3
#define PACKET_LOOPBACK	 5

/*
 * The bits of epb_flags that differ between packets (draft-ietf-opsawg-pcapng, epb_flags). Returns
 * them.
 */
static inline u32 packet_flags(struct skb *skb, struct shared *shared, u32 direction)
{
	u32 flags = direction, type = SKB_BITS(skb, PKT_TYPE);

	if (direction == IN)
		flags |= type == PACKET_HOST	    ? EPB_UNICAST
			 : type == PACKET_BROADCAST ? EPB_BROADCAST
			 : type == PACKET_MULTICAST ? EPB_MULTICAST
			 : type == PACKET_OTHERHOST ? EPB_PROMISCUOUS
						    : 0;
	if (SKB_BITS(skb, IP_SUMMED) == CHECKSUM_PARTIAL)
		flags |= EPB_CHECKSUM_NOT_READY;
	if (SHARED(shared, u16, GSO_SIZE))
		flags |= EPB_SEGMENTATION_OFFLOADED;
	return flags;
}

/*
 * The position of a checksum that the hardware would compute, from the start of the frame. Lower
 * half: the offset at which the sum begins; upper half: the offset of the checksum field from
 * there. 0: nothing to do, or a checksum of another kind (SCTP).
 */
static inline u32 unfinished_checksum(struct skb *skb, u64 head, struct frame *frame)
{
	u64 start = head + SKB(skb, u16, CSUM_START) - frame->start + (frame->vlan ? VLAN_HLEN : 0);

	if (SKB_BITS(skb, IP_SUMMED) != CHECKSUM_PARTIAL || start > 0xffff)
		return 0;
#ifdef SKB_CSUM_NOT_INET_BYTE
	if (SKB_BITS(skb, CSUM_NOT_INET))
		return 0;
#endif
	return start | (u32)SKB(skb, u16, CSUM_OFFSET) << 16;
}

#define ARPHRD_ETHER	 1
#define MAC_HEADER_UNSET 0xffff /* skb_mac_header_was_set */

/*
 * Frames of at most this size are copied without a call: acknowledgements, DNS queries and similar.
 */
#define SHORT_FRAME 128

/*
 * Whether frames of an interface start with a link-layer header; checked as for an AF_PACKET socket
 * (dev_has_header): an interface without one (tun, wireguard, ipip, ...) has no function that
 * creates it.
 */
static inline int has_header(u64 dev)
{
	if (LOAD(u16, dev + DEV_TYPE) == ARPHRD_ETHER)
		return 1;
	u64 operations = LOAD(u64, dev + DEV_HEADER_OPERATIONS);

	return LOAD(u64, operations + HEADER_CREATE) != 0; /* NULL is not readable: 0 */
}

/* Whether the tag of a VLAN belongs to the frame, and is not in its bytes. */
static inline int has_vlan_tag(struct skb *skb)
{
#ifdef SKB_VLAN_PRESENT_BYTE /* up to Linux 6.1 */
	return SKB_BITS(skb, VLAN_PRESENT);
#else
	return SKB(skb, u32, VLAN_ALL) != 0;
#endif
}

#define VLAN_ID_MASK 0x0fff

/* The VLAN of a frame whose tag is not in its bytes; 0: none, or only a priority. */
static inline u32 vlan_of(struct skb *skb)
{
	return has_vlan_tag(skb) ? SKB(skb, u16, VLAN_TCI) & VLAN_ID_MASK : 0;
}

/* Makes the tag of a VLAN, which is not in the bytes of the frame, a part of it. */
static inline void insert_vlan_tag(struct skb *skb, struct frame *frame)
{
	if (frame->linear < ETH_ADDRESSES)
		return;
	frame->vlan = SKB(skb, u16, VLAN_PROTO) | (u32)__builtin_bswap16(SKB(skb, u16, VLAN_TCI)) << 16;
	frame->wire_len += VLAN_HLEN;
}

/*
 * Finds the start and the length of the frame. Sent: `data` is the start of the frame; mac_header
 * is not set yet at the entry of __dev_queue_xmit, and outdated in a forwarded packet. Received:
 * `data` is after the link-layer header, mac_header is its start; but a packet from a tunnel can
 * have that of the outer packet (sit). Returns 0, or LOST_START if no start is certain.
 */
static inline int find_frame(struct skb *skb, u64 dev, u64 head, u64 data, u32 direction, struct frame *frame)
{
	u32 before_data = 0;

	if (direction == IN && has_header(dev)) {
		u16 mac_header = SKB(skb, u16, MAC_HEADER);
		u64 start = head + mac_header;

		if (mac_header == MAC_HEADER_UNSET || start > data)
			return LOST_START;
		before_data = data - start;
	}
	frame->start = data - before_data;
	frame->linear = SKB(skb, u32, LEN) - SKB(skb, u32, DATA_LEN) + before_data;
	frame->wire_len = SKB(skb, u32, LEN) + before_data;
	frame->vlan = 0;
	if (has_vlan_tag(skb))
		insert_vlan_tag(skb, frame);
	return 0;
}

/*
 * Copies a frame that is short and completely in its linear part to bytes[to], word by word, and
 * pads it with zeros to a multiple of 4 bytes. Returns whether it is such a frame. A linear part
 * can be read to its end, and some bytes further.
 */
static inline int copy_short_frame(u8 *bytes, const u32 places, u32 to, struct frame *frame)
{
#ifdef RDONLY_CAST
	u32 size = frame->cap_len, last = ((size + 3) & ~3U) - 8;

	if (size < 8 || size > SHORT_FRAME || size > frame->linear || frame->vlan)
		return 0;
	u64 start = frame->start;
	u8 *into = bytes + BOUND(to, places - 1);

	for (u32 i = 0; i < SHORT_FRAME && i < last; i += 8)
		*(u64 *)(into + i) = LOAD(u64, start + i);
	*(u64 *)(into + BOUND(last, SHORT_FRAME - 1)) = LOAD(u64, start + last) & (u64)-1 >> (-size & 3) * 8;
	return 1;
#else
	return 0;
#endif
}

#define NET_IOV 1ULL /* bit of a netmem: it is device memory, not a page (Linux 6.9) */

/* The address of a page fragment; 0: in device memory, which cannot be read. */
static inline u64 fragment_address(struct control *control, u8 *fragment)
{
	u64 page = *(u64 *)(fragment + FRAGMENT_PAGE);
	u64 address = control->address_base + (page - control->page_base) / PAGE_STRUCT_SIZE * PAGE_BYTES +
		      *(u32 *)(fragment + FRAGMENT_OFFSET);

	return address & ((page & NET_IOV) - 1);
}

/* Reads the description of a page fragment: returns its address, and sets its length. */
static inline u64 read_fragment(struct control *control, u64 at, u64 *len)
{
	u8 fragment[FRAGMENT_SIZE] __attribute__((aligned(8)));

	READ(fragment, sizeof(fragment), at);
	*len = *(u32 *)(fragment + FRAGMENT_LEN);
	return fragment_address(control, fragment);
}

/*
 * Copies the frame to bytes[to], where frame->cap_len bytes are reserved. `head` and `shared`
 * belong to the first skb; those of a chain are read into `chained` and `shared`. For the verifier,
 * `places` and `most` are powers of two: `to` and all copied bytes are below bytes[places], and one
 * read has at most `most` - 4 bytes. Returns the number of copied bytes: less than cap_len if
 * memory could not be read (a fault, device memory) or the bytes are in more than `pieces`
 * fragments. Never fills the gap with zeros.
 */
static inline u32 copy_frame(struct control *control, u8 *bytes, const u32 places, const u32 most,
			     const int pieces, u32 to, struct frame *frame, u64 head, u32 end,
			     struct skb *chained, struct shared *shared)
{
	u64 cap_len = frame->cap_len, done = 0, left = frame->linear;
	u64 from = frame->start, nothing = control->nothing;
	/*
	 * Counted down from what was read, not up from 0: the verifier would check the loop for
	 * each value of a known counter.
	 */
	u64 fragments = SHARED(shared, u8, NR_FRAGS), fragment = head + end + SHARED_FRAGS,
	    next = SHARED(shared, u64, FRAG_LIST);

	if (frame->vlan) {
		if (READ(bytes + BOUND(to, places - 1), ETH_ADDRESSES, from))
			return 0;
		*(u32 *)(bytes + BOUND(to + ETH_ADDRESSES, places - 1)) = frame->vlan;
		from += ETH_ADDRESSES;
		left -= ETH_ADDRESSES;
		done = ETH_ADDRESSES + VLAN_HLEN;
	}
	for (int i = 0; i < pieces; i++) {
		FORGET(done, nothing);
		FORGET(left, nothing);
		FORGET(from, nothing);
		FORGET(fragment, nothing);
		FORGET(fragments, nothing);
		FORGET(next, nothing);
		u64 size = least(least(left, cap_len - done), most - 4);
		if (READ(bytes + BOUND(to + done, places - 1), BOUND(size, most - 1), from))
			break;
		done += size;
		if (done >= cap_len)
			break;
		/*
		 * The next fragment. If its description cannot be read it is zeros: then the read
		 * above fails, or has no bytes.
		 */
		if (fragments) {
			from = read_fragment(control, fragment, &left);
			fragment += FRAGMENT_SIZE;
			fragments--;
		} else {
			READ(chained, sizeof(*chained), next);
			next = SKB(chained, u64, NEXT);
			from = SKB(chained, u64, DATA);
			left = SKB(chained, u32, LEN) - SKB(chained, u32, DATA_LEN);
			fragment = SKB(chained, u64, HEAD) + SKB(chained, u32, END);
			READ(shared, sizeof(*shared), fragment);
			fragment += SHARED_FRAGS;
			fragments = SHARED(shared, u8, NR_FRAGS);
		}
	}
	return done > cap_len ? cap_len : done;
}
