/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel program of skbcapd: writes each packet with its process as a pcapng block into shared
 * memory. The stages of a packet are:
 *
 * 1. interface: the hook. Is the packet's interface captured?
 * 2. guard: can its packets be redirected? Checked once a millisecond for each interface.
 * 3. filter: does the packet match? Only with a packet filter.
 * 4. process: who sent it, or will get it?
 * 5. block: its label, space in a segment, all of the block but the frame.
 *    payload: where its payload begins. Only if the label does not allow payload, or without a label;
 *    then stage 5 again.
 *    label: the program makes its label. Only if there is none; then stage 5 again.
 * 6. frame: the frame is copied, and the block is given to the reader.
 *
 * This file has the stages in that order, and at its end the programs that the kernel calls. The
 * parts of the stages are in:
 *
 *   verifier.h  what makes compiler and verifier agree
 *   layout.h    maps and records shared with Python
 *   frame.h     the frame of an sk_buff
 *   socket.h    sockets and flows
 *   headers.h   headers of a packet, and its flow
 *   segment.h   reservations in the shared segments
 *   packet.h    the record of a packet
 *   owner.h     the users of sockets, and the sender of a packet
 *   guard.h     whether the addresses of a packet prove its receiver
 *   receiver.h  the receiver of a packet
 *   sighting.h  packets that were seen on another device
 *   path.h      the process of a packet that only passes
 *   window.h    the first bytes of a frame in one piece
 *   payload.h   where the payload of a packet begins
 *   block.h     the label and the block of a packet
 *   label.h     labels that the program makes itself
 *   filter.h    packet filters
 *   measure.h   what is measured once, at start
 *   tap.h       packets that an interface above another one receives; only with such an interface
 *   drops.h     packets that the kernel drops; only with `drops: count` or `capture`
 *   drop_frame.h  their frames; only with `drops: capture`
 *
 * bcc compiles it for the running kernel. skbcapd/kernel/compiler.py joins the files;
 * skbcapd/kernel/abi.py gives all sizes and offsets.
 */
#include "verifier.h"
#include "layout.h"
#include "frame.h"
#include "socket.h"
#include "headers.h"
#include "segment.h"
#include "packet.h"
#include "owner.h"
#include "guard.h"
#include "receiver.h"
#include "sighting.h"
#include "path.h"
#include "window.h"
#include "payload.h"
#include "block.h"
#include "label.h"
#include "measure.h"
#ifdef TAP
#include "tap.h"
#endif

/*
 * The stages after the first one, in their order; the first, stage_interface, is called by the
 * kernel. Each stage is a function stage_NAME, and a program NAME_DIRECTION, which the stage before
 * calls. Several programs are verified faster than one: the paths through the first are not checked
 * again for each path through the second. The programs of STAGE_FILTER only exist with packet
 * filters, and can be replaced between two packets. All programs of such a map must be for
 * functions of one type, and the hook at the driver has another type than the one for received
 * frames: so there are two maps.
 */
enum stage { STAGE_GUARD, STAGE_FILTER, STAGE_PROCESS, STAGE_BLOCK, STAGE_FRAME, STAGE_PAYLOAD, STAGE_LABEL };
#define STAGES 7
BPF_PROG_ARRAY(stages_out, STAGES);
BPF_PROG_ARRAY(stages_in, STAGES);

/* Calls the next stage. Returns only if its program is missing, which does not happen. */
static inline void call_stage(void *ctx, const u32 direction, const enum stage stage)
{
	if (direction == OUT)
		stages_out.call(ctx, stage);
	else
		stages_in.call(ctx, stage);
}

#define IFF_LOOPBACK (1 << 3)

/*
 * Frames on loopback are captured only when they are sent. So are multicasts and broadcasts that
 * the host sends back to itself on any interface (dev_loopback_xmit): the received frame has no
 * link-layer header, and no AF_PACKET socket sees it.
 */
static inline int is_loopback(struct skb *skb)
{
	return FIELD(u32, SKB(skb, u8 *, DEV), DEV_FLAGS) & IFF_LOOPBACK ||
	       SKB_BITS(skb, PKT_TYPE) == PACKET_LOOPBACK;
}

/*
 * Whether a received frame comes back from an ifb interface to the one that it was redirected from (mirred of tc, fwd
 * of nftables), where it was captured before: AF_PACKET sockets do not get it again. A sent frame can have this bit,
 * too, although it is sent for the first time.
 */
static inline int is_back_from_ifb(struct skb *skb)
{
#ifdef SKB_TC_SKIP_CLASSIFY_BYTE
	return SKB_BITS(skb, TC_SKIP_CLASSIFY);
#else
	return 0;
#endif
}

/*
 * Whether a packet that was seen before keeps the process that was found then. `sk` is the socket
 * on which it is sent, if any.
 */
static inline int is_process_kept(struct control *control, struct packet *packet, struct skb *skb,
				  struct sighting *sighting, u64 sk, const u32 direction)
{
	if (sk)
		return sighting->via != VIA_UNRESOLVED;
	if (sighting->origin.role != SENDS && !sighting->user.tgid && sighting->via != VIA_GROUP)
		return 0;
	return direction == OUT || is_passing(control, packet, skb);
}

/*
 * Finds the process of a packet that does not keep one, and sets `origin` of its passage, with which
 * the packet is followed. Returns how the process was found.
 */
static inline enum via find_process(void *ctx, struct control *control, struct packet *packet,
				    struct skb *skb, const u32 direction, const int only_record)
{
	struct sock_head *sock = &packet->work.sock;
	struct passage *passage = &packet->passage;
	struct origin *origin = &passage->origin;
	enum via via;

	__builtin_memset(&packet->user, 0, sizeof(packet->user));
	if (direction == OUT) {
		via = find_sender(ctx, control, packet, skb, only_record || !control->late);
		/*
		 * If no process has sent the packet, it is followed for its receiver, once that is
		 * known.
		 */
		origin->role = via == VIA_KERNEL ? GETS : SENDS;
		origin->sk = via == VIA_FLOW ? 0 : packet->sk;
		origin->version = packet->version;
		origin->is_request = packet->sk != passage->sk;
		origin->identity = via == VIA_UNRESOLVED || via == VIA_GROUP ? SOCK_IDENTITY(sock) : 0;
		return via;
	}
	origin->role = GETS;
	via = find_receiver(control, packet, skb);
	/* There the sender is wanted. It is not known, because the packet was not seen before. */
	if (via != VIA_UNKNOWN || (!packet->is_known && is_from_pair(device_of(packet, skb), skb)))
		return via;
	return find_by_wire_flow(control, packet, skb);
}

/* Whether the packet was seen before, and keeps the process that was found then. */
static inline void begin_passage(struct control *control, struct packet *packet, struct skb *skb,
				 struct sighting *sighting, const u32 direction, const int only_record)
{
	struct passage *passage = &packet->passage;
	struct key *key = &packet->key;
	u64 address = packet->address;
	u8 *dev = device_of(packet, skb);
	/* The socket of a received packet belongs to its sender, if it has one. */
	u64 place = place_of(key, direction), sk = direction == OUT ? packet->sk : 0, is_known = 0;
	/*
	 * What a socket sends on an interface like a network card is on no other interface later. What is
	 * received there can be, where it is translated.
	 */
	u32 linked =
		is_stacked(dev) | (direction == IN ? any(packet->guard | control->wired) : control->nothing);

#ifdef DROPS_CAPTURED
	linked = 1; /* it has an identifier, because it can be dropped later */
#endif
	if (only_record || linked || sighting->skb == address || (control->wired && !sk)) {
		packet->fingerprint = fingerprint_of(packet, skb);
		if (direction == OUT || is_handed_on(dev))
			is_known = is_seen_before(sighting, packet, address, place, sk);
		/* It was in the queue, and is there again: the earlier packet was dropped there. */
		if (only_record && sk && !sighting->count)
			is_known = 0;
	}
	packet->is_known = is_known && sighting->count;
	packet->taken = is_known ? sighting->taken : NOT_TAKEN;
	passage->place = place;
	passage->sk = sk;
	passage->is_known = is_known;
	passage->linked = linked | packet->is_known;
	passage->follows = is_known && is_process_kept(control, packet, skb, sighting, sk, direction);
	__builtin_memset(&passage->origin, 0, sizeof(passage->origin));
}

/* Stores where the packet was seen, its process, and, where it leaves, the process for its answer. */
static inline void end_passage(struct control *control, struct packet *packet, struct skb *skb,
			       struct sighting *sighting, const u32 direction, const int only_record)
{
	struct passage *passage = &packet->passage;
	struct origin *origin = &passage->origin;
	u64 address = packet->address;
	u32 via = packet->key.via;

	if (direction == OUT && !only_record && origin->role == SENDS &&
	    ((packet->guard && via != VIA_KERNEL && (origin->sk || via != VIA_UNKNOWN)) ||
	     (passage->follows && !passage->sk) || (control->wired && via == VIA_FORWARDED)))
		enter_wire_flow(control, packet, skb, origin);
	barrier();
	if (!passage->linked && !only_record) {
		if (sighting->skb == address) /* it belongs to another packet now */
			sighting->skb = 0;
		return;
	}
	note_sighting(sighting, packet, address, passage->place, passage->is_known, only_record);
	packet->packet_id = passage->linked ? sighting->id : 0;
	if (passage->is_known && direction == IN && !passage->follows && sighting->origin.role == SENDS)
		return; /* it has been received: its sender stays known */
	if (!passage->is_known || passage->sk)
		sighting->sk = passage->sk;
	if (passage->follows && !packet->user.tgid)
		return; /* it is not decided yet */
	sighting->user = packet->user;
	sighting->via = packet->key.via;
	sighting->origin = *origin;
}

/*
 * At the driver, for a packet whose entry of the table belongs to another one: the record of the queue on this
 * processor, if it is of this packet; else NULL.
 */
static inline struct packet *find_queued(struct packet *packet)
{
	u32 queue = 0;
	struct packet *queued = packets.lookup(&queue);

	if (!queued || packet->passage.is_known || queued->address != packet->address ||
	    queued->passage.sk != packet->passage.sk || queued->fingerprint != packet->fingerprint ||
	    packet->time - queued->time > SIGHTING_LASTS_NS)
		return NULL;
	return queued;
}

/*
 * Finds the process of the packet, and stores where the packet was seen. With `only_record`, it
 * does only that: at the queue, for the hook at the driver, where another process may be running.
 */
static inline void identify(void *ctx, struct control *control, struct packet *packet, struct skb *skb,
			    const u32 direction, const int only_record)
{
	struct passage *passage = &packet->passage;
	struct sighting *sighting = find_sighting(packet->address);
	struct packet *queued;
	struct key *key = &packet->key;
	u32 via;

	if (!sighting)
		return;
	begin_passage(control, packet, skb, sighting, direction, only_record);
	barrier();
	queued = direction == OUT && !only_record && control->late ? find_queued(packet) : NULL;
	if (queued) {
		passage->origin = queued->passage.origin;
		packet->user = queued->user;
		via = queued->key.via;
	} else if (passage->follows) {
		passage->origin = sighting->origin;
		packet->user = sighting->user;
		via = find_followed(control, packet, skb, sighting, passage->sk, direction);
	} else {
		via = find_process(ctx, control, packet, skb, direction, only_record);
	}
	key->tgid = packet->user.tgid;
	key->tid = packet->user.tid;
	key->start = packet->user.start;
	key->via = via;
	key->linked = passage->linked;
	barrier();
	end_passage(control, packet, skb, sighting, direction, only_record);
}

/*
 * Whether the packet's interface is excluded: its slot * 2 + 1; 0: it is not, or is not known yet.
 * The result is reused for consecutive packets of one interface.
 */
static inline u64 is_unwanted(struct control *control, struct packet *packet)
{
	u64 version = ONCE(control->device_filter);

	if (packet->verdict != version) {
		struct device *device = find_device(packet);

		packet->unwanted = 0;
		if (device && device->unwanted)
			packet->unwanted = (u64)device->slot << 1 | 1;
		packet->verdict = version;
	}
	return packet->unwanted;
}

/*
 * Whether an excluded packet is followed: it may reach an interface that is captured. Its process
 * is known where it leaves the socket of its sender, which is on an interface of the sender, such
 * as that of a container.
 */
static inline int is_followed(struct packet *packet, struct skb *skb, const u32 direction)
{
	return packet->guard || (direction == OUT && is_stacked(device_of(packet, skb)));
}

/* The next stage of a packet, once the guard of its interface is known. */
static inline void proceed(void *ctx, struct control *control, struct packet *packet, struct skb *skb,
			   const u32 direction)
{
	if (control->device_filter && is_unwanted(control, packet)) {
		struct sighting *sighting = find_sighting(packet->address);

		packet->refused = packet->unwanted;
		if (is_followed(packet, skb, direction))
			call_stage(ctx, direction, STAGE_PROCESS);
		if (sighting && sighting->skb == packet->address && direction == IN &&
		    !is_stacked(device_of(packet, skb)))
			sighting->skb = 0; /* it belongs to another packet now */
		count(packet->unwanted >> 1, OTHER_INTERFACES);
		return;
	}
	if (control->filtered)
		call_stage(ctx, direction, STAGE_FILTER);
	call_stage(ctx, direction, STAGE_PROCESS);
}

/*
 * Interface: is the packet's interface captured? Together, the stages count exactly one outcome for
 * each packet.
 */
static inline void stage_interface(void *ctx, void *argument, const u32 direction)
{
	u32 zero = 0;
	struct control *control = controls.lookup(&zero);
	struct packet *packet = get_packet(direction);

	if (!control || !packet)
		return;
	struct skb *skb = get_skb(packet, argument);

	if (direction == IN && (is_loopback(skb) || is_back_from_ifb(skb)))
		return;
#ifdef TAP
	if (is_captured(skb, argument))
		return;
#endif
	count(0, SEEN);
	init_packet(packet, skb, argument, direction);
	if (!is_guard_known(packet))
		call_stage(ctx, direction, STAGE_GUARD);
	proceed(ctx, control, packet, skb, direction);
}

/*
 * Guard: can something redirect the packets that the interface receives? Only if it was not checked
 * in the last millisecond.
 */
static inline void stage_guard(void *ctx, void *argument, const u32 direction)
{
	u32 zero = 0;
	struct control *control = controls.lookup(&zero);
	struct packet *packet = get_packet(direction);

	if (!control || !packet)
		return;
	renew_guard(packet, control->nothing);
	proceed(ctx, control, packet, get_skb_again(packet, argument), direction);
}

#ifdef WINDOW
#include "filter.h"

/* Filter: does the packet match? If not, it is counted on its interface, if that is known. */
static inline void stage_filter(void *ctx, void *argument, const u32 direction)
{
	u32 zero = 0;
	struct control *control = controls.lookup(&zero);
	struct packet *packet = get_packet(direction);

	if (!control || !packet)
		return;
	struct skb *skb = get_skb_again(packet, argument);

	if (is_wanted(control, packet, skb, direction)) {
		if (packet->filter)
			call_stage(ctx, direction, STAGE_BLOCK);
		else
			call_stage(ctx, direction, STAGE_PROCESS);
		return;
	}
	u32 slot = find_slot(packet);

	if (!packet->filter && is_followed(packet, skb, direction)) {
		packet->refused = (u64)slot << 1 | 1;
		call_stage(ctx, direction, STAGE_PROCESS);
	}
	count(slot, FILTERED);
}
#endif

/* Process: who sent the packet, or will receive it? */
static inline void stage_process(void *ctx, void *argument, const u32 direction)
{
	u32 zero = 0;
	struct control *control = controls.lookup(&zero);
	struct packet *packet = get_packet(direction);

	if (!control || !packet)
		return;
	identify(ctx, control, packet, get_skb_again(packet, argument), direction, 0);
	if (packet->refused)
		count(packet->refused >> 1, packet->unwanted ? OTHER_INTERFACES : FILTERED);
	else
		call_stage(ctx, direction, STAGE_BLOCK);
}

/*
 * Block: finds the label of the packet, how much of it is captured, and where; writes the block
 * except the frame.
 */
static inline void stage_block(void *ctx, void *argument, const u32 direction)
{
	u32 zero = 0;
	struct control *control = controls.lookup(&zero);
	struct packet *packet = get_packet(direction);

	if (!control || !packet)
		return;
	struct skb *skb = get_skb_again(packet, argument);
	struct frame *frame = &packet->frame;
	struct label *label = find_label(control, packet);
	u32 slot = label ? label->slot : find_slot(packet), size, lost;

	if (label && !label->snaplen) {
		count(slot, label->filter ? UNATTRIBUTED : FILTERED);
		return;
	}
	if (label && label->filter && packet->filter != label->filter) {
		packet->filter = label->filter;
		call_stage(ctx, direction, STAGE_FILTER); /* which calls this stage again */
	}
	if (control->dedup && packet->taken == TAKEN) {
		count(slot, DUPLICATE);
		return;
	}
	if (!label && control->naming && !packet->named) {
		packet->named = 1;
		call_stage(ctx, direction, STAGE_LABEL); /* which calls this stage again */
	}
	if (is_for_python(control, packet, label))
		label = NULL;
	if (!packet->payload && (!label || label->headers_only))
		call_stage(ctx, direction, STAGE_PAYLOAD); /* which calls this stage again */
	LOAD_WORDS(&packet->shared, sizeof(packet->shared), packet->head + SKB(skb, u32, END));
	lost = find_frame(skb, packet->dev, packet->head, packet->data, direction, frame);
	if (!lost) {
		frame->cap_len = captured_len(control, skb, frame, label ? label->snaplen : control->snaplen);
		if (label ? label->headers_only : control->headers_only)
			cut_payload(packet, frame);
		size = block_size(frame, label ? label->options_len : sizeof(struct upcall));
		lost = reserve(control, size, &packet->reservation);
	}
	if (lost) {
		count(slot, lost);
		return;
	}
	if (control->dedup && packet->key.linked)
		note_taken(packet->address, label ? TAKEN : ASKED);
	if (write_block(control, packet, skb, label, slot, size, direction)) {
		count_delivered(slot, frame->wire_len);
		commit(control, &packet->reservation, size);
		return;
	}
	packet->size = size;
	packet->slot = slot;
	packet->is_upcall = !label;
	call_stage(ctx, direction, STAGE_FRAME);
}

/* Payload: where does it begin? */
static inline void stage_payload(void *ctx, void *argument, const u32 direction)
{
	u32 zero = 0;
	struct control *control = controls.lookup(&zero);
	struct packet *packet = get_packet(direction);

	if (!control || !packet)
		return;
	measure_headers(control, packet, get_skb_again(packet, argument), direction);
	call_stage(ctx, direction, STAGE_BLOCK);
}

/* Label: made here if it needs only what the kernel knows. */
static inline void stage_label(void *ctx, const u32 direction)
{
	u32 zero = 0;
	struct control *control = controls.lookup(&zero);
	struct packet *packet = get_packet(direction);

	if (!control || !packet)
		return;
	make_label(control, packet);
	call_stage(ctx, direction, STAGE_BLOCK);
}

/* Frame: copies the frame, and commits the block. */
static inline void stage_frame(void *argument, const u32 direction)
{
	u32 zero = 0;
	struct control *control = controls.lookup(&zero);
	struct packet *packet = get_packet(direction);

	if (!control || !packet)
		return;
	struct skb *skb = get_skb_again(packet, argument);
	struct segment *segment = find_segment(&packet->reservation);

	if (!segment)
		return; /* impossible: an array map has all its entries */
	u32 copied = copy_frame(control, segment->bytes, SEGMENT_SIZE, CAPTURE_MAX, PIECES_MAX,
				packet->reservation.at + sizeof(struct block_head), &packet->frame,
				packet->head, SKB(skb, u32, END), &packet->skb, &packet->shared);

	if (copied < packet->frame.cap_len || packet->checksum)
		cut_block(control, segment, packet, copied);
	count_delivered(packet->slot, packet->frame.wire_len);
	commit(control, &packet->reservation, packet->size);
}

/*
 * The first argument of the traced function: from a raw tracepoint, or from the registers of a
 * kprobe.
 */
#define TRACEPOINT_ARGUMENT(ctx, n) (((u64 *)(ctx))[n])
#define KPROBE_ARGUMENT(ctx)	    (*(u64 *)((u8 *)(ctx) + ARGUMENT_1))
#ifdef TAP
#define RECEIVED(ctx) (ctx) /* the sk_buff: tap.h */
#elif defined(KPROBE)
#define FIRST_ARGUMENT(ctx) ((void *)KPROBE_ARGUMENT(ctx))
/*
 * __netif_receive_skb_core gets the address of a pointer to the skb, its tracepoint gets the skb.
 */
#define RECEIVED(ctx)	    ((void *)LOAD(u64, KPROBE_ARGUMENT(ctx)))
#else
#define FIRST_ARGUMENT(ctx) ((void *)TRACEPOINT_ARGUMENT(ctx, 0))
#define RECEIVED(ctx)	    FIRST_ARGUMENT(ctx)
#endif

int on_transmit(void *ctx)
{
	stage_interface(ctx, FIRST_ARGUMENT(ctx), OUT);
	return 0;
}

int process_out(void *ctx)
{
	stage_process(ctx, FIRST_ARGUMENT(ctx), OUT);
	return 0;
}

int guard_out(void *ctx)
{
	stage_guard(ctx, FIRST_ARGUMENT(ctx), OUT);
	return 0;
}

int block_out(void *ctx)
{
	stage_block(ctx, FIRST_ARGUMENT(ctx), OUT);
	return 0;
}

int payload_out(void *ctx)
{
	stage_payload(ctx, FIRST_ARGUMENT(ctx), OUT);
	return 0;
}

int label_out(void *ctx)
{
	stage_label(ctx, OUT);
	return 0;
}

int frame_out(void *ctx)
{
	stage_frame(FIRST_ARGUMENT(ctx), OUT);
	return 0;
}

/* At the queue, if frames are captured at the driver: only here can the process be found. */
int on_queue(void *ctx)
{
	u32 zero = 0;
	struct control *control = controls.lookup(&zero);
	struct packet *packet = get_packet(0);

	if (!control || !packet)
		return 0;
	struct skb *skb = get_skb(packet, FIRST_ARGUMENT(ctx));

	init_packet(packet, skb, FIRST_ARGUMENT(ctx), OUT);
	packet->guard = 0; /* the hook at the driver checks it */
	identify(ctx, control, packet, skb, OUT, 1);
	return 0;
}

int on_receive(void *ctx)
{
	stage_interface(ctx, RECEIVED(ctx), IN);
	return 0;
}

/* The filter of a packet socket. Returns 0: the socket itself gets no packet. */
int on_tap(void *ctx)
{
	stage_interface(ctx, RECEIVED(ctx), IN);
	return 0;
}

int process_in(void *ctx)
{
	stage_process(ctx, RECEIVED(ctx), IN);
	return 0;
}

int guard_in(void *ctx)
{
	stage_guard(ctx, RECEIVED(ctx), IN);
	return 0;
}

int block_in(void *ctx)
{
	stage_block(ctx, RECEIVED(ctx), IN);
	return 0;
}

int payload_in(void *ctx)
{
	stage_payload(ctx, RECEIVED(ctx), IN);
	return 0;
}

int label_in(void *ctx)
{
	stage_label(ctx, IN);
	return 0;
}

int frame_in(void *ctx)
{
	stage_frame(RECEIVED(ctx), IN);
	return 0;
}

#ifdef WINDOW
int filter_out(void *ctx)
{
	stage_filter(ctx, FIRST_ARGUMENT(ctx), OUT);
	return 0;
}

int filter_in(void *ctx)
{
	stage_filter(ctx, RECEIVED(ctx), IN);
	return 0;
}
#endif

/* inet_sendmsg, inet_recvmsg and similar: a struct socket. */
int on_use(void *ctx)
{
	struct workspace work;
	u64 sk = 0;

	READ(&sk, sizeof(sk), KPROBE_ARGUMENT(ctx) + SOCKET_SK);
	record_use_at(ctx, sk, &work, 0, 0);
	return 0;
}

/* security_sock_graft: a struct sock that was accepted. */
int on_accept(void *ctx)
{
	struct workspace work;

	record_use_at(ctx, KPROBE_ARGUMENT(ctx), &work, 0, 1);
	return 0;
}

/* sock_send_length, sock_recv_length: a struct sock after its use. */
int on_used(void *ctx)
{
	struct workspace work;
	struct sock_head *sock = (void *)TRACEPOINT_ARGUMENT(ctx, 0);
	struct packet *packet = get_packet(OUT);

	IN_KERNEL(sock);
	if (packet && was_use_noted(packet, (u64)sock))
		return 0;
	record_use(ctx, (u64)sock, sock, &work, 0, 0);
	return 0;
}

/* inet_sock_set_state: a struct sock, its state, its next one. */
int on_state(void *ctx)
{
	struct workspace work;

	record_state(ctx, TRACEPOINT_ARGUMENT(ctx, 0), TRACEPOINT_ARGUMENT(ctx, 1),
		     TRACEPOINT_ARGUMENT(ctx, 2), &work);
	return 0;
}

/* sched_process_fork: the parent, the child. */
int on_fork(void *ctx)
{
	u8 *child = (u8 *)TRACEPOINT_ARGUMENT(ctx, 1);

	IN_KERNEL(child);
	record_fork(child);
	return 0;
}

int on_measure(void *ctx)
{
	measure(ctx, FIRST_ARGUMENT(ctx));
	return 0;
}

#ifdef DROPS_MAX
#include "drops.h"

#ifdef DROP_REASON
#define REASON(ctx) ((u32)TRACEPOINT_ARGUMENT(ctx, DROP_REASON))
#else
#define REASON(ctx) DROP_REASON_UNKNOWN
#endif
#ifdef DROP_RECEIVER
#define RECEIVER(ctx) ((u64 *)(ctx) + DROP_RECEIVER)
#else
#define RECEIVER(ctx) NULL
#endif

#define DROPPED(ctx) ((void *)TRACEPOINT_ARGUMENT(ctx, 0))

/* kfree_skb: an sk_buff; further arguments differ between kernels. */
int on_drop(void *ctx)
{
	count_drop(ctx, DROPPED(ctx), RECEIVER(ctx), REASON(ctx));
	return 0;
}

#ifdef DROPS_CAPTURED
#include "drop_frame.h"

#ifdef DROP_LOCATION
#define LOCATION(ctx) TRACEPOINT_ARGUMENT(ctx, DROP_LOCATION)
#else
#define LOCATION(ctx) 0
#endif

int on_dropped(void *ctx)
{
	struct drop_work *work = count_drop(ctx, DROPPED(ctx), RECEIVER(ctx), REASON(ctx));

	if (work)
		stage_drop(ctx, DROPPED(ctx), work, LOCATION(ctx));
	return 0;
}

int block_drop(void *ctx)
{
	stage_block_drop(ctx, DROPPED(ctx));
	return 0;
}

int payload_drop(void *ctx)
{
	stage_payload_drop(ctx, DROPPED(ctx));
	return 0;
}

int frame_drop(void *ctx)
{
	stage_frame_drop(DROPPED(ctx));
	return 0;
}

#ifdef WINDOW
int filter_drop(void *ctx)
{
	stage_filter_drop(ctx, DROPPED(ctx));
	return 0;
}
#endif
#endif
#endif
