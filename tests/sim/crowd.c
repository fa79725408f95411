/*
 * Crowds: see crowd.h.
 */
#include "tests/sim/crowd.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/iov.h"
#include "core/loop.h"
#include "core/memory.h"
#include "tests/sim/ring_sim.h"

#define CROWD_NEAR (24u * 1024) /* how far around a hot place requests go */

static const char *crowd_name(const struct consumer *consumer)
{
    (void)consumer;
    return "crowd";
}

static const struct consumer_ops crowd_ops = {.kind = "client", .name = crowd_name};

static bool slot_writes(const struct crowd_slot *slot)
{
    return REQ_BIT(slot->op) & REQ_BITS_WRITING;
}

/* Beginnings */

/* Who reads there now may see the old or the new, or half of each. */
static void slot_mask_readers(const struct crowd_slot *slot)
{
    struct crowd *crowd = slot->crowd;
    uint64_t end = slot->offset + slot->length;

    for (unsigned i = 0; i < CROWD_LOOPS * CROWD_SLOTS; i++) {
        struct crowd_slot *other = &crowd->slots[i / CROWD_SLOTS][i % CROWD_SLOTS];
        uint64_t from = other->offset > slot->offset ? other->offset : slot->offset;
        uint64_t to = other->offset + other->length < end ? other->offset + other->length : end;

        if (other->busy && !slot_writes(other) && from < to)
            memset(other->masked + (from - other->offset), 1, to - from);
    }
}

static void slot_begin(struct crowd_slot *slot)
{
    struct crowd *crowd = slot->crowd;

    slot->began = ++crowd->now;
    if (!slot_writes(slot)) {
        for (uint64_t i = 0; i < slot->length; i++)
            slot->masked[i] = crowd->writers[slot->offset + i] != 0;
        return;
    }
    slot_mask_readers(slot);
    for (uint64_t at = slot->offset; at < slot->offset + slot->length; at++) {
        crowd->mixed[at] |= crowd->writers[at] != 0;
        crowd->writers[at]++;
    }
}

/* Ends */

static void slot_check_byte(const struct crowd_slot *slot, uint64_t i)
{
    struct crowd *crowd = slot->crowd;
    uint64_t at = slot->offset + i;
    unsigned char value = slot->data[i];

    if (crowd->kinds[at] == CROWD_UNKNOWN || value == crowd->bytes[at] ||
        (crowd->kinds[at] == CROWD_OR_ZERO && value == 0))
        return;
    ck_abort_msg("read 0x%02x instead of 0x%02x at %llu, in [%llu, +%llu), after %llu requests", value,
                 crowd->bytes[at], (unsigned long long)at, (unsigned long long)slot->offset,
                 (unsigned long long)slot->length, (unsigned long long)crowd->ended_count);
}

static bool byte_is_wild(const struct crowd *crowd, uint64_t at)
{
    return at >= crowd->wild && at < crowd->wild_end;
}

/* What was not known is known now. */
static void slot_was_read(const struct crowd_slot *slot)
{
    struct crowd *crowd = slot->crowd;

    for (uint64_t i = 0; i < slot->length; i++) {
        uint64_t at = slot->offset + i;

        if (slot->masked[i] || byte_is_wild(crowd, at))
            continue;
        slot_check_byte(slot, i);
        crowd->bytes[at] = slot->data[i];
        crowd->kinds[at] = CROWD_KNOWN;
    }
}

static void slot_had_status(const struct crowd_slot *slot)
{
    const struct crowd *crowd = slot->crowd;
    uint64_t i = 0;

    ENSURE(slot->list.count > 0);
    for (unsigned e = 0; e < slot->list.count; e++) {
        uint64_t end = i + slot->extents[e].length;

        ENSURE(end > i && end <= slot->length);
        for (; i < end; i++) {
            if (slot->extents[e].flags & EXTENT_ZERO && !slot->masked[i] && !byte_is_wild(crowd, slot->offset + i))
                ENSURE(crowd->kinds[slot->offset + i] != CROWD_KNOWN || crowd->bytes[slot->offset + i] == 0);
        }
    }
}

static void byte_written(struct crowd *crowd, const struct crowd_slot *slot, uint64_t at)
{
    if (crowd->mixed[at] || slot->result < 0) {
        crowd->kinds[at] = CROWD_UNKNOWN;
    } else if (slot->op == REQ_DISCARD) {
        if (crowd->kinds[at] == CROWD_KNOWN)
            crowd->kinds[at] = CROWD_OR_ZERO;
    } else {
        crowd->bytes[at] = slot->op == REQ_WRITE ? slot->data[at - slot->offset] : 0;
        crowd->kinds[at] = CROWD_KNOWN;
    }
}

static void slot_was_written(const struct crowd_slot *slot, bool refused)
{
    struct crowd *crowd = slot->crowd;
    uint32_t now = ++crowd->now;

    for (uint64_t at = slot->offset; at < slot->offset + slot->length; at++) {
        if (!refused) {
            bool durable = slot->flags & REQ_FUA && slot->result == 0 && !crowd->mixed[at];

            byte_written(crowd, slot, at);
            crowd->ended[at] = durable ? 0 : now;
        }
        if (--crowd->writers[at] == 0)
            crowd->mixed[at] = 0;
    }
}

static bool slot_refused(const struct crowd_slot *slot)
{
    bool outside = slot->offset + slot->length > consumer_size(&slot->crowd->consumer);
    bool refused = slot->parked && slot->result == -EIO && outside;
    bool broken = slot->crowd->faulty && (slot->result == -EIO || slot->result == -ENOSPC);
    bool no_way = slot->flags & REQ_FAST_ONLY && slot->result == -ENOTSUP;

    if (!refused && !broken && !no_way)
        ck_abort_msg("op %u failed: %s", slot->op, strerror(-slot->result));
    return refused;
}

static void slot_done(struct request *req)
{
    struct crowd_slot *slot = *(struct crowd_slot **)(void *)((char *)(req + 1) + CROWD_SCRATCH);
    struct crowd *crowd = slot->crowd;

    ENSURE(slot->busy && slot->request == req && req->scratch_used == 0);
    slot->result = req->result;
    slot->busy = false;
    crowd->ended_count++;
    bool refused = req->result < 0 && slot_refused(slot);

    if (slot_writes(slot))
        slot_was_written(slot, refused);
    else if (req->result < 0)
        return;
    else if (slot->op == REQ_READ)
        slot_was_read(slot);
    else if (slot->op == REQ_STATUS)
        slot_had_status(slot);
    else if (slot->op == REQ_FLUSH && slot->began > crowd->promised)
        crowd->promised = slot->began;
}

/* Submission */

static bool slot_overlaps_writer(const struct crowd_slot *slot)
{
    const struct crowd *crowd = slot->crowd;

    for (uint64_t at = slot->offset; at < slot->offset + slot->length; at += 512) {
        if (crowd->writers[at])
            return true;
    }
    return slot->length && crowd->writers[slot->offset + slot->length - 1];
}

static void slot_choose_range(struct crowd_slot *slot)
{
    struct crowd *crowd = slot->crowd;
    struct sim *sim = crowd->sim;
    uint64_t size = consumer_size(&crowd->consumer), unit = sim_chance(sim, 250) ? 1 : 512;
    uint64_t most = sim_chance(sim, 100) ? CROWD_REQUEST_MAX : 8192;
    uint64_t length = unit * (1 + sim_random(sim, sim_random(sim, most / unit))), offset;

    if (sim_chance(sim, 200))
        length = 4096u << sim_random(sim, 5);
    if (length > size)
        length = size;
    offset = sim_random(sim, size - length + 1);
    if (sim_chance(sim, 750))
        offset = (crowd->hot[sim_random(sim, CROWD_HOT)] + sim_random(sim, CROWD_NEAR)) % (size - length + 1);
    slot->offset = offset / unit * unit;
    if (sim_chance(sim, 200))
        slot->offset = offset / 4096 * 4096;
    slot->length = length;
}

static bool slot_choose(struct crowd_slot *slot)
{
    static const uint8_t ops[] = {
        REQ_READ,  REQ_READ,  REQ_READ,  REQ_READ,  REQ_WRITE, REQ_WRITE,        REQ_WRITE,        REQ_WRITE,
        REQ_WRITE, REQ_WRITE, REQ_WRITE, REQ_WRITE, REQ_FLUSH, REQ_WRITE_ZEROES, REQ_WRITE_ZEROES, REQ_STATUS,
    };
    struct crowd *crowd = slot->crowd;
    struct sim *sim = crowd->sim;

    slot->op = sim_chance(sim, 20) ? REQ_PREFETCH : ops[sim_random(sim, array_size(ops))];
    if (sim_chance(sim, crowd->discards))
        slot->op = REQ_DISCARD;
    slot->flags = slot_writes(slot) && slot->op != REQ_DISCARD && sim_chance(sim, 60) ? REQ_FUA : 0;
    if (slot->op == REQ_WRITE_ZEROES) {
        slot->flags |= sim_chance(sim, 500) ? REQ_MAY_UNMAP : 0;
        slot->flags |= sim_chance(sim, 100) ? REQ_FAST_ONLY : 0;
    }
    if (slot->op == REQ_WRITE && sim_chance(sim, crowd->compressed))
        slot->flags |= REQ_COMPRESSED;
    slot->offset = slot->length = 0;
    if (slot->op == REQ_FLUSH)
        return true;
    slot_choose_range(slot);
    return slot->length && (!slot_writes(slot) || !slot_overlaps_writer(slot) || sim_chance(sim, 150));
}

static void slot_fill(struct crowd_slot *slot)
{
    struct sim *sim = slot->crowd->sim;
    uint64_t value = sim_chance(sim, 50) ? 0 : sim_random(sim, UINT64_MAX) | 1;
    uint64_t step = sim_chance(sim, 500) ? 2 : 0; /* what repeats can be compressed */
    uint64_t first = sim_random(sim, slot->length), second = sim_random(sim, slot->length - first);

    if (slot->op == REQ_READ)
        memset(slot->data, 0xa5, slot->length);
    for (uint64_t i = 0; slot->op == REQ_WRITE && i < slot->length; i += sizeof(value), value += value ? step : 0)
        memcpy(slot->data + i, &value, slot->length - i < sizeof(value) ? slot->length - i : sizeof(value));
    slot->iov[0] = (struct iovec){slot->data, first};
    slot->iov[1] = (struct iovec){slot->data + first, second};
    slot->iov[2] = (struct iovec){slot->data + first + second, slot->length - first - second};
}

static void slot_submit(struct crowd_slot *slot)
{
    struct request *req = slot->request;

    slot->busy = true;
    slot->parked = consumer_paused(&slot->crowd->consumer, loop_current());
    if (slot->length)
        slot_fill(slot);
    slot_begin(slot);
    slot->list = (struct extent_list){.limit = array_size(slot->extents), .extents = slot->extents};
    memset(req, 0, sizeof(*req));
    req->op = slot->op;
    req->flags = slot->flags;
    req->offset = slot->offset;
    req->length = slot->length;
    if (slot->op == REQ_READ || slot->op == REQ_WRITE) {
        req->iov = slot->iov;
        req->iov_count = array_size(slot->iov);
    }
    req->extents = &slot->list;
    req->scratch_size = CROWD_SCRATCH;
    req->done = slot_done;
    consumer_submit(&slot->crowd->consumer, req);
}

bool crowd_work(struct loop *loop, void *arg)
{
    struct crowd *crowd = arg;
    bool any = false;

    if (crowd->stopped || crowd->ended_count >= crowd->limit || !consumer_size(&crowd->consumer))
        return false;
    for (unsigned i = 0; i < CROWD_SLOTS; i++) {
        struct crowd_slot *slot = &crowd->slots[loop->index][i];
        unsigned often = consumer_paused(&crowd->consumer, loop) ? 20 : 300;

        if (slot->busy || !sim_chance(crowd->sim, often) || !slot_choose(slot))
            continue;
        slot_submit(slot);
        any = true;
    }
    return any;
}

struct crowd_slot *crowd_submit(struct crowd *crowd, uint8_t op, uint32_t flags, uint64_t offset, uint64_t length)
{
    struct crowd_slot *slot = crowd->slots[loop_current()->index];

    while (slot->busy)
        slot++;
    slot->op = op;
    slot->flags = flags;
    slot->offset = offset;
    slot->length = length;
    slot_submit(slot);
    return slot;
}

bool crowd_is_idle(const struct crowd *crowd)
{
    for (unsigned i = 0; i < CROWD_LOOPS * CROWD_SLOTS; i++) {
        if (crowd->slots[i / CROWD_SLOTS][i % CROWD_SLOTS].busy)
            return false;
    }
    return true;
}

void crowd_resizing(struct crowd *crowd, uint64_t before, uint64_t size)
{
    crowd->wild = size;
    crowd->wild_end = before;
}

void crowd_resized(struct crowd *crowd, uint64_t before, uint64_t size, bool failed)
{
    crowd->wild = crowd->wild_end = 0;
    if (failed) {
        uint64_t from = size < before ? size : before, end = size < before ? before : size;

        memset(crowd->kinds + from, CROWD_UNKNOWN, end - from);
        return;
    }
    memset(crowd->bytes + size, 0, CROWD_DISK_MAX - size);
    memset(crowd->kinds + size, CROWD_KNOWN, CROWD_DISK_MAX - size);
    memset(crowd->ended + size, 0, (CROWD_DISK_MAX - size) * sizeof(*crowd->ended));
}

bool crowd_is_promised(const struct crowd *crowd, uint64_t at)
{
    return crowd->kinds[at] == CROWD_KNOWN && !crowd->writers[at] && crowd->ended[at] <= crowd->promised;
}

struct crowd *crowd_new(struct sim *sim)
{
    struct crowd *crowd = memory_new(struct crowd);
    struct permission want = {.taken = PERM_READ | PERM_WRITE, .shared = PERM_ALL};

    crowd->sim = sim;
    crowd->limit = UINT64_MAX;
    crowd->discards = (unsigned)sim_random(sim, 150);
    crowd->compressed = sim_chance(sim, 300) ? 300 : 0;
    for (unsigned i = 0; i < CROWD_HOT; i++)
        crowd->hot[i] = sim_random(sim, CROWD_DISK_MAX);
    crowd->bytes = memory_zero(CROWD_DISK_MAX);
    crowd->kinds = memory_zero(CROWD_DISK_MAX);
    crowd->writers = memory_zero(CROWD_DISK_MAX);
    crowd->mixed = memory_zero(CROWD_DISK_MAX);
    crowd->ended = memory_array(CROWD_DISK_MAX, sizeof(*crowd->ended));
    consumer_init(&crowd->consumer, &crowd_ops, crowd, want);
    for (unsigned i = 0; i < CROWD_LOOPS * CROWD_SLOTS; i++) {
        struct crowd_slot *slot = &crowd->slots[i / CROWD_SLOTS][i % CROWD_SLOTS];

        slot->crowd = crowd;
        slot->data = memory_zero(CROWD_REQUEST_MAX);
        slot->masked = memory_zero(CROWD_REQUEST_MAX);
        slot->request = memory_aligned(sizeof(struct request) + CROWD_SCRATCH + sizeof(slot), 64);
        memcpy((char *)(slot->request + 1) + CROWD_SCRATCH, &slot, sizeof(slot));
    }
    return crowd;
}

void crowd_free(struct crowd *crowd)
{
    consumer_destroy(&crowd->consumer);
    for (unsigned i = 0; i < CROWD_LOOPS * CROWD_SLOTS; i++) {
        struct crowd_slot *slot = &crowd->slots[i / CROWD_SLOTS][i % CROWD_SLOTS];

        free(slot->data);
        free(slot->masked);
        free(slot->request);
    }
    free(crowd->bytes);
    free(crowd->kinds);
    free(crowd->writers);
    free(crowd->mixed);
    free(crowd->ended);
    free(crowd);
}
