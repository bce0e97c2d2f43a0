/*
 * bpf/label.h as a library, for tests/unit/test_kernel_label.py: maps hold one entry.
 *
 * Compiled by tests/support/kernel_label.py, with the sizes of skbcapd/kernel/abi.py as -D.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t s64;

#define BPF_F_TABLE(...)
#define BPF_TABLE(...)
#define BPF_PERCPU_ARRAY(...)
#define BPF_RINGBUF_OUTPUT(...)

struct counters;
struct draft;
struct device;
struct key;
struct label;

static struct counters *find_counters(u32 *slot);
static struct draft *find_draft(u32 *direction);
static u64 *find_word(u32 *place);
static int store_label(struct key *key, struct label *label);

static struct {
	struct counters *(*lookup)(u32 *);
} counters = {find_counters};
static struct {
	struct draft *(*lookup)(u32 *);
} drafts = {find_draft};
static struct {
	u64 *(*lookup)(u32 *);
} labelled = {find_word};
static struct {
	int (*update)(struct key *, struct label *);
} labels = {store_label};

#include "verifier.h"
#include "layout.h"

struct packet {
	struct key key;
	struct user user;
	u64 device_name[2];
};

static struct device *find_device(struct packet *packet);

#include "label.h"

static struct counters row;
static struct draft draft;
static struct device *device;
static u64 words[LABELLED_WORDS];
static struct label stored;
static int has_label;

static struct counters *find_counters(u32 *slot)
{
	return slot ? &row : NULL;
}

static struct draft *find_draft(u32 *direction)
{
	return direction ? &draft : NULL;
}

static struct device *find_device(struct packet *packet)
{
	return packet ? device : NULL;
}

static u64 *find_word(u32 *place)
{
	return *place < LABELLED_WORDS ? &words[*place] : NULL;
}

static int store_label(struct key *key, struct label *label)
{
	stored = *label;
	has_label = key != NULL;
	return 0;
}

/* Makes a label, with the bytes of an earlier one still in memory; returns whether there is one. */
int make(struct control *control, struct packet *packet, struct device *known, u8 *label)
{
	has_label = 0;
	device = known;
	make_label(control, packet);
	memcpy(label, &stored, sizeof(stored));
	return has_label;
}

u64 labels_made(void)
{
	return row.of[LABELS];
}

int is_labelled(u32 tgid)
{
	return words[tgid >> 6] >> (tgid & 63) & 1;
}
