/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A label that the program makes itself, because its comment needs only what the kernel knows: no
 * field of /proc, no rule. Its bytes are those that Python would write (skbcapd/pcapng/comment.py).
 *
 * Python makes the label if its names would need quotes, if the process is one of several, and for
 * the first packet of an interface.
 */

/* Fields of a comment, in control->naming: 4 bits for each, the first one in the lowest. */
enum field { FIELD_NONE, FIELD_COMM, FIELD_PID, FIELD_TGID, FIELD_PROCESS };

#define FIELD_BITS	     4
#define NTH_FIELD(naming, n) ((naming) >> FIELD_BITS * (n) & ((1 << FIELD_BITS) - 1))
#define NAMING_ON	     (1 << 16)
#define NAMING_VIA	     (1 << 17) /* the comment says how the process was found */
#define NAMING_DIFFERS	     (1 << 18) /* FIELD_PROCESS is left out if it equals FIELD_COMM */

/* Codes of options: pcapng.blocks. */
#define OPTION(code, len)      ((code) | (u32)(len) << 16)
#define OPT_COMMENT	       1
#define EPB_FLAGS	       2
#define EPB_PACKETID	       5
#define EPB_PROCESSID_THREADID 8

/* The options are shorter: a comment with four fields and `via`, flags, identifier, process, end. */
#define DRAFT_MAX 256
#define TEXT_AT	  4 /* of a comment, behind the head of its option */

/* A name, up to its NUL. */
struct text {
	u64 words[2]; /* zeros after its end */
	u64 len;
	u64 quoted; /* 1: in a comment it needs quotes */
};

/* A label in the making: in a map, for the reasons of struct packet. */
struct draft {
	struct text comm;
	struct text process;
	u64 at;	    /* where the next bytes of `label.options` go */
	u64 quoted; /* 1: a name in the comment needs quotes */
	struct label label;
};
BPF_PERCPU_ARRAY(drafts, struct draft, 3);

#define ONES	   0x0101010101010101ULL
#define EACH(byte) (ONES * (byte))
#define TEXT(a, b, c, d, e, f, g, h)                                                                    \
	((u64)(a) | (u64)(b) << 8 | (u64)(c) << 16 | (u64)(d) << 24 | (u64)(e) << 32 | (u64)(f) << 40 | \
	 (u64)(g) << 48 | (u64)(h) << 56)

/* The highest bit of the first byte that is 0, and perhaps of later ones; 0: no byte is. */
static inline u64 zero_bytes(u64 word)
{
	return (word - ONES) & ~word & EACH(0x80);
}

/* All bits of the bytes before the first one that is 0. */
static inline u64 before_zero(u64 word)
{
	u64 found = zero_bytes(word);

	return ((found & -found) >> 7) - 1;
}

/* Whether a word has a byte that would need quotes in a comment: pcapng.comment._BARE. */
static inline u64 has_odd_byte(u64 word)
{
	u64 low = (word - EACH(0x21)) & ~word & EACH(0x80);

	return any(low | (word & EACH(0x80)) | zero_bytes(word ^ EACH(0x7f)) | zero_bytes(word ^ EACH('"')) |
		   zero_bytes(word ^ EACH('=')) | zero_bytes(word ^ EACH('\\')));
}

/* A name up to its NUL; old bytes can be behind it. */
static inline void read_name(struct text *text, u64 *name)
{
	u64 first = before_zero(name[0]), second = before_zero(name[1]) & -(first >> 63);

	text->words[0] = name[0] & first;
	text->words[1] = name[1] & second;
	text->len = ((first & ONES) * ONES >> 56) + ((second & ONES) * ONES >> 56);
	text->quoted = has_odd_byte(text->words[0] | (~first & EACH('a'))) |
		       has_odd_byte(text->words[1] | (~second & EACH('a'))) | !text->len;
}

/* Appends 16 bytes to the options; `len` of them stay. */
static inline void append(struct draft *draft, u64 first, u64 second, u64 len)
{
	u8 *end = draft->label.options + BOUND(draft->at, DRAFT_MAX - 1);

	*(u64 *)end = first;
	*(u64 *)(end + 8) = second;
	draft->at += len;
	barrier();
}

/* Appends a field with a name. */
static inline void append_name(struct draft *draft, u64 first, u64 second, u64 len, struct text *text)
{
	append(draft, first, second, len);
	append(draft, text->words[0], text->words[1], text->len);
	draft->quoted |= text->quoted;
}

/* 1: a number is greater than `most`. Without a branch. */
static inline u64 exceeds(u64 number, u64 most)
{
	u64 difference = most - number;

	barrier_var(difference);
	return difference >> 63;
}

/* Appends a field of `len` bytes with a number of at most 8 digits: all digits at once, the first one lowest. */
static inline void append_number(struct draft *draft, u64 field, u64 len, u64 number)
{
	u64 upper = number / 10000, fours = upper | (number - upper * 10000) << 32;
	u64 hundreds = (fours * 10486 >> 20) & 0x7f0000007fULL; /* of both: divided by 100 */
	u64 twos = hundreds | (fours - hundreds * 100) << 16;
	u64 tens = (twos * 103 >> 10) & 0x000f000f000f000fULL; /* of all: divided by 10 */
	u64 digits = (tens | (twos - tens * 10) << 8) | EACH('0');
	u64 count = 1 + exceeds(number, 9) + exceeds(number, 99) + exceeds(number, 999) +
		    exceeds(number, 9999) + exceeds(number, 99999) + exceeds(number, 999999) +
		    exceeds(number, 9999999);

	append(draft, field, 0, len);
	append(draft, digits >> ((64 - 8 * count) & 63), 0, count);
	draft->quoted |= exceeds(number, 99999999);
}

/* Appends a field of the comment, if the process has it. */
static inline void append_field(struct draft *draft, struct packet *packet, u32 field, u32 naming)
{
	struct text *comm = &draft->comm, *process = &draft->process;

	if (field == FIELD_COMM) {
		append_name(draft, TEXT(' ', 'c', 'o', 'm', 'm', '=', 0, 0), 0, 6, comm);
	} else if (field == FIELD_PID) {
		if (packet->key.tid)
			append_number(draft, TEXT(' ', 'p', 'i', 'd', '=', 0, 0, 0), 5, packet->key.tid);
	} else if (field == FIELD_TGID) {
		append_number(draft, TEXT(' ', 't', 'g', 'i', 'd', '=', 0, 0), 6, packet->key.tgid);
	} else if (field == FIELD_PROCESS) {
		u64 differs = (comm->words[0] ^ process->words[0]) | (comm->words[1] ^ process->words[1]);

		if (process->len && (differs || !(naming & NAMING_DIFFERS)))
			append_name(draft, TEXT(' ', 'p', 'r', 'o', 'c', 'e', 's', 's'), '=', 9, process);
	}
}

/* Writes the comment into the options of the draft. */
static inline void write_comment(struct control *control, struct draft *draft, struct packet *packet,
				 u32 naming)
{
	u32 via = packet->key.via;

	read_name(&draft->comm, packet->user.comm);
	read_name(&draft->process, packet->user.process);
	draft->quoted = 0;
	draft->at = TEXT_AT - 1; /* each field begins with a space */
	barrier();
	if (packet->key.tgid) {
		append_field(draft, packet, NTH_FIELD(naming, 0), naming);
		append_field(draft, packet, NTH_FIELD(naming, 1), naming);
		append_field(draft, packet, NTH_FIELD(naming, 2), naming);
		append_field(draft, packet, NTH_FIELD(naming, 3), naming);
	}
	if (via != VIA_CURRENT && naming & NAMING_VIA) {
		u64 *words = control->via_texts + 2 * (via & 7);
		struct text text;

		read_name(&text, words);
		append(draft, text.words[0], text.words[1], text.len);
	}
}

/* Appends an option with a value of two words, or one (len 4). */
static inline void append_option(struct draft *draft, u32 code, u32 len, u32 first, u32 second)
{
	append(draft, OPTION(code, len) | (u64)first << 32, second, 4 + len);
}

/* Writes all options of the draft: pcapng.comment.packet_options. */
static inline void write_draft(struct control *control, struct draft *draft, struct packet *packet,
			       u32 naming)
{
	struct label *label = &draft->label;
	struct key *key = &packet->key;

	write_comment(control, draft, packet, naming);
	if (draft->at < TEXT_AT) {
		draft->at = 0;
	} else {
		u64 text = draft->at;

		append(draft, 0, 0, -text & 3);
		*(u32 *)label->options = OPTION(OPT_COMMENT, text - TEXT_AT);
	}
	barrier();
	label->flags_at = draft->at + 4;
	append_option(draft, EPB_FLAGS, 4, 0, 0);
	if (key->linked)
		append_option(draft, EPB_PACKETID, 8, 0, 0);
	if (key->tgid | key->tid)
		append_option(draft, EPB_PROCESSID_THREADID, 8, key->tgid, key->tid);
	append(draft, 0, 0, 4);
	label->options_len = draft->at;
}

/* Notes that a process has a label. */
static inline void note_labelled(u32 tgid)
{
	u32 place = tgid >> 6;
	u64 *word = labelled.lookup(&place);

	if (word)
		__sync_fetch_and_or(word, 1ULL << (tgid & 63));
}

/* Makes the label of the packet, if Python need not do that. */
static inline void make_label(struct control *control, struct packet *packet)
{
	u64 naming = ONCE(control->naming);
	struct device *device = find_device(packet);
	struct draft *draft = drafts.lookup(&packet->key.direction);
	u32 via = packet->key.via;

	if (!draft || !(naming & NAMING_ON) || via >= VIA_GROUP || !device || device->unwanted ||
	    device->generation != naming >> 32)
		return;
	write_draft(control, draft, packet, naming);
	if (draft->quoted)
		return;
	struct label *label = &draft->label;

	__builtin_memcpy(label->comm, packet->user.comm, 16);
	__builtin_memcpy(label->device, packet->device_name, 16);
	__builtin_memcpy(label->process, packet->user.process, 16);
	label->interface_id = device->interface_id;
	label->slot = device->slot;
	label->snaplen = control->snaplen;
	label->filter = 0;
	label->generation = naming >> 32;
	label->headers_only = control->headers_only;
	if (labels.update(&packet->key, label))
		return;
	if (packet->key.tgid)
		note_labelled(packet->key.tgid);
	count(label->slot, LABELS); /* last: Python counts the processes again when it has changed */
}
