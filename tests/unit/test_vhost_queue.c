/*
 * The driver's side of virtqueues (tests/bench/vhost/queue.h) against a device
 * made from the other half of the specification: every shape of ring, random
 * batches, requests returned in any order, and what must not be believed.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "tests/bench/vhost/queue.h"

#define TURNS 3000
#define PIECES 5

/* A device that holds requests for as long as it likes. */
struct device {
    struct front_queue *queue;
    struct front_memory *memory;
    uint16_t next, used;                /* split: indices; packed: places */
    bool next_wrap, used_wrap;
    unsigned held;
    struct device_chain {
        uint16_t id, descriptors;
        uint32_t slot;                  /* what the first buffer says */
        uint32_t writable;
    } chains[256];
};

static const struct front_queue_shape shapes[] = {
    {.size = 64, .slots = 64, .pieces = PIECES, .indirect = true},
    {.size = 64, .slots = 64, .pieces = PIECES, .indirect = true, .event_idx = true},
    {.size = 64, .slots = 12, .pieces = PIECES},
    {.size = 1, .slots = 1, .pieces = PIECES, .indirect = true},
    {.size = 16, .slots = 16, .pieces = PIECES, .indirect = true, .in_order = true, .event_idx = true},
    {.size = 64, .slots = 64, .pieces = PIECES, .packed = true, .indirect = true},
    {.size = 61, .slots = 12, .pieces = PIECES, .packed = true},
    {.size = 61, .slots = 12, .pieces = PIECES, .packed = true, .event_idx = true},
    {.size = 7, .slots = 1, .pieces = PIECES, .packed = true},
    {.size = 61, .slots = 12, .pieces = PIECES, .packed = true, .in_order = true},
    {.size = 1, .slots = 1, .pieces = PIECES, .packed = true, .indirect = true},
};

static void *device_at(const struct device *device, uint64_t guest)
{
    ck_assert_uint_ge(guest, FRONT_GUEST_BASE);
    ck_assert_uint_lt(guest - FRONT_GUEST_BASE, device->memory->size);
    return device->memory->base + (guest - FRONT_GUEST_BASE);
}

/* One buffer of a chain: readable ones first; the first says which slot sent it. */
static void device_piece(const struct device *device, struct device_chain *chain, unsigned index, uint64_t guest,
                         uint32_t size, bool writable)
{
    ck_assert(writable || !chain->writable);
    ck_assert_uint_gt(size, 0);
    if (index == 0)
        memcpy(&chain->slot, device_at(device, guest), sizeof(chain->slot));
    chain->writable += writable ? size : 0;
}

static void device_take_split(struct device *device, struct device_chain *chain)
{
    const struct front_queue *queue = device->queue;
    uint16_t head = queue->split.avail->ring[device->next++ & (queue->shape.size - 1)], at = head;
    const struct vring_desc *table = queue->split.desc;

    *chain = (struct device_chain){.id = head};
    ck_assert_uint_lt(head, queue->shape.size);
    if (table[head].flags == VRING_DESC_F_INDIRECT) {
        ck_assert(queue->shape.indirect);
        ck_assert_uint_eq(table[head].len % sizeof(*table), 0);
        table = device_at(device, table[head].addr);
        at = 0;
    }
    for (unsigned i = 0;; i++) {
        ck_assert_uint_lt(i, PIECES);
        device_piece(device, chain, i, table[at].addr, table[at].len, table[at].flags & VRING_DESC_F_WRITE);
        if (!(table[at].flags & VRING_DESC_F_NEXT))
            break;
        at = table[at].next;
    }
}

static bool device_packed_ready(const struct device *device)
{
    uint16_t flags = device->queue->packed.desc[device->next].flags;
    bool avail = flags & 1u << VRING_PACKED_DESC_F_AVAIL, used = flags & 1u << VRING_PACKED_DESC_F_USED;

    return avail == device->next_wrap && used != device->next_wrap;
}

static void device_step(const struct device *device, uint16_t *place, bool *wrap, unsigned count)
{
    while (count--)
        if (++*place == device->queue->shape.size) {
            *place = 0;
            *wrap = !*wrap;
        }
}

static void device_take_packed(struct device *device, struct device_chain *chain)
{
    const struct vring_packed_desc *ring = device->queue->packed.desc;

    *chain = (struct device_chain){0};
    if (ring[device->next].flags & VRING_DESC_F_INDIRECT) {
        const struct vring_packed_desc *table = device_at(device, ring[device->next].addr);

        for (unsigned i = 0; i < ring[device->next].len / sizeof(*table); i++)
            device_piece(device, chain, i, table[i].addr, table[i].len, table[i].flags & VRING_DESC_F_WRITE);
        chain->id = ring[device->next].id;
        chain->descriptors = 1;
        device_step(device, &device->next, &device->next_wrap, 1);
        return;
    }
    for (bool more = true; more; chain->descriptors++) {
        ck_assert(device_packed_ready(device));
        const struct vring_packed_desc *desc = &ring[device->next];
        device_piece(device, chain, chain->descriptors, desc->addr, desc->len, desc->flags & VRING_DESC_F_WRITE);
        more = desc->flags & VRING_DESC_F_NEXT;
        chain->id = desc->id;
        device_step(device, &device->next, &device->next_wrap, 1);
    }
}

static unsigned device_take_all(struct device *device)
{
    const struct front_queue *queue = device->queue;
    unsigned taken = 0;

    while (queue->shape.packed ? device_packed_ready(device) : device->next != queue->split.avail->idx) {
        struct device_chain *chain = &device->chains[device->held++];

        if (queue->shape.packed)
            device_take_packed(device, chain);
        else
            device_take_split(device, chain);
        taken++;
    }
    return taken;
}

/* Returns the first `count` of those it holds by one entry if in order, else each by its own. */
static void device_return(struct device *device, unsigned count)
{
    struct front_queue *queue = device->queue;
    bool in_order = queue->shape.in_order;

    for (unsigned i = in_order ? count - 1 : 0; i < count; i++) {
        const struct device_chain *chain = &device->chains[i];
        unsigned step = 0;

        for (unsigned j = in_order ? 0 : i; j <= i; j++)
            step += device->chains[j].descriptors;
        if (queue->shape.packed) {
            unsigned mark = 1u << VRING_PACKED_DESC_F_AVAIL | 1u << VRING_PACKED_DESC_F_USED;

            queue->packed.desc[device->used] = (struct vring_packed_desc){
                .id = chain->id, .len = chain->writable, .flags = (uint16_t)(device->used_wrap ? mark : 0)};
            device_step(device, &device->used, &device->used_wrap, step);
        } else {
            queue->split.used->ring[device->used & (queue->shape.size - 1)] =
                (struct vring_used_elem){chain->id, chain->writable};
            device->used = (uint16_t)(device->used + (in_order ? count : 1));
        }
    }
    if (!queue->shape.packed)
        queue->split.used->idx = device->used;
    device->held -= count;
    memmove(device->chains, device->chains + count, device->held * sizeof(device->chains[0]));
}

static void device_shuffle(struct device *device)
{
    for (unsigned i = device->held; !device->queue->shape.in_order && i > 1; i--) {
        unsigned other = (unsigned)rand() % i;
        struct device_chain chain = device->chains[other];

        device->chains[other] = device->chains[i - 1];
        device->chains[i - 1] = chain;
    }
}

struct fixture {
    struct front_memory memory;
    struct front_queue queue;
    struct device device;
    unsigned char *buffers;
    uint32_t writable[256];
    bool sent[256];
};

static void fixture_open(struct fixture *fixture, const struct front_queue_shape *shape, unsigned regions)
{
    AUTO_ERROR struct error err = {0};
    size_t rings = front_queue_ring_bytes(shape);

    memset(fixture, 0, sizeof(*fixture));
    ck_assert_int_eq(front_memory_create(&fixture->memory, rings, (1 << 18), regions, &err), 0);
    void *at = front_memory_take(&fixture->memory, rings, 64);
    ck_assert_int_eq(front_queue_create(&fixture->queue, &fixture->memory, at, shape, &err), 0);
    fixture->buffers = front_memory_take(&fixture->memory, (size_t)shape->slots * PIECES * 64, 64);
    fixture->device =
        (struct device){.queue = &fixture->queue, .memory = &fixture->memory, .next_wrap = true, .used_wrap = true};
}

static void fixture_close(struct fixture *fixture)
{
    front_queue_destroy(&fixture->queue);
    front_memory_destroy(&fixture->memory);
}

static bool fixture_send(struct fixture *fixture)
{
    struct front_piece pieces[PIECES];
    int slot = front_queue_take(&fixture->queue);

    if (slot < 0)
        return false;
    unsigned count = 1 + (unsigned)rand() % PIECES, readable = 1 + (unsigned)rand() % count;
    ck_assert(!fixture->sent[slot]);
    fixture->sent[slot] = true;
    fixture->writable[slot] = 0;
    for (unsigned i = 0; i < count; i++) {
        unsigned char *at = fixture->buffers + ((unsigned)slot * PIECES + i) * 64;
        uint32_t size = 4 + (uint32_t)rand() % 60;

        pieces[i] = (struct front_piece){front_memory_guest(&fixture->memory, at), size, i >= readable};
        fixture->writable[slot] += i >= readable ? size : 0;
        memcpy(at, &slot, sizeof(slot));
    }
    front_queue_set(&fixture->queue, (uint16_t)slot, pieces, count);
    front_queue_push(&fixture->queue, (uint16_t)slot);
    return true;
}

static unsigned fixture_reap(struct fixture *fixture)
{
    struct front_done done[256];
    int count = front_queue_reap(&fixture->queue, done);

    ck_assert_int_ge(count, 0);
    for (int i = 0; i < count; i++) {
        ck_assert(fixture->sent[done[i].slot]);
        fixture->sent[done[i].slot] = false;
        if (!fixture->queue.shape.in_order || i == count - 1)
            ck_assert_uint_eq(done[i].written, fixture->writable[done[i].slot]);
        front_queue_give(&fixture->queue, done[i].slot);
    }
    return (unsigned)count;
}

START_TEST(requests_come_and_go)
{
    struct fixture fixture;

    srand((unsigned)_i + 1);
    fixture_open(&fixture, &shapes[_i], 1 + (unsigned)_i % 3);
    for (unsigned turn = 0; turn < TURNS; turn++) {
        unsigned want = (unsigned)rand() % 8, sent = 0;

        while (sent < want && fixture_send(&fixture))
            sent++;
        front_queue_publish(&fixture.queue);
        ck_assert_uint_eq(device_take_all(&fixture.device), sent);
        for (unsigned i = fixture.device.held - sent; i < fixture.device.held; i++)
            ck_assert_uint_eq(fixture.device.chains[i].writable, fixture.writable[fixture.device.chains[i].slot]);
        device_shuffle(&fixture.device);
        unsigned back = (unsigned)rand() % (fixture.device.held + 1);
        if (back)
            device_return(&fixture.device, back);
        ck_assert_uint_eq(fixture_reap(&fixture), back);
        ck_assert_uint_eq(fixture.queue.flying_count, fixture.device.held);
    }
    fixture_close(&fixture);
}
END_TEST

/* Where the device would go on after the last request that it returned. */
START_TEST(base_is_behind_what_came_back)
{
    struct fixture fixture;

    fixture_open(&fixture, &shapes[_i], 1);
    for (unsigned turn = 0; turn < 300; turn++) {
        fixture_send(&fixture);
        front_queue_publish(&fixture.queue);
        device_take_all(&fixture.device);
        device_return(&fixture.device, 1);
        fixture_reap(&fixture);
        uint32_t base = fixture.device.used | (uint32_t)fixture.device.used_wrap << 15;
        ck_assert_uint_eq(front_queue_base(&fixture.queue),
                          shapes[_i].packed ? base | base << 16 : fixture.device.used);
    }
    fixture_close(&fixture);
}
END_TEST

START_TEST(nonsense_is_not_believed)
{
    static const uint32_t ids[] = {1, 63, 64, 0xffff, 0x10000, UINT32_MAX};
    struct front_done done[256];
    struct fixture fixture;

    for (unsigned i = 0; i < array_size(ids); i++) {
        fixture_open(&fixture, &shapes[0], 1);
        fixture_send(&fixture);
        front_queue_publish(&fixture.queue);
        fixture.queue.split.used->ring[0].id = ids[i];
        fixture.queue.split.used->idx = 1;
        ck_assert_int_eq(front_queue_reap(&fixture.queue, done), -EPROTO);
        fixture_close(&fixture);
    }
    /* More than are in flight. */
    fixture_open(&fixture, &shapes[0], 1);
    fixture_send(&fixture);
    front_queue_publish(&fixture.queue);
    fixture.queue.split.used->idx = 2;
    ck_assert_int_eq(front_queue_reap(&fixture.queue, done), -EPROTO);
    fixture_close(&fixture);
    /* A packed ring, where only the id can be wrong. */
    fixture_open(&fixture, &shapes[5], 1);
    fixture_send(&fixture);
    front_queue_publish(&fixture.queue);
    fixture.queue.packed.desc[0].id = 9;
    fixture.queue.packed.desc[0].flags = 1u << VRING_PACKED_DESC_F_AVAIL | 1u << VRING_PACKED_DESC_F_USED;
    ck_assert_int_eq(front_queue_reap(&fixture.queue, done), -EPROTO);
    fixture_close(&fixture);
}
END_TEST

/* The device asks to be kicked for one certain request, or never. */
START_TEST(kicks_are_sent_when_asked_for)
{
    struct fixture fixture;

    fixture_open(&fixture, &shapes[1], 1);
    uint16_t *event = (uint16_t *)&fixture.queue.split.used->ring[shapes[1].size];
    for (unsigned i = 0; i < 10; i++) {
        *event = 5;
        fixture_send(&fixture);
        ck_assert(front_queue_publish(&fixture.queue) == (i == 5));
        ck_assert(!front_queue_publish(&fixture.queue));
    }
    fixture_close(&fixture);
    fixture_open(&fixture, &shapes[0], 1);
    fixture_send(&fixture);
    ck_assert(front_queue_publish(&fixture.queue));
    fixture.queue.split.used->flags = VRING_USED_F_NO_NOTIFY;
    fixture_send(&fixture);
    ck_assert(!front_queue_publish(&fixture.queue));
    fixture_close(&fixture);
}
END_TEST

/* The same in a packed ring: a place and the lap it belongs to. */
START_TEST(packed_kicks_are_sent_when_asked_for)
{
    const struct front_queue_shape shape = {
        .size = 8, .slots = 8, .pieces = PIECES, .packed = true, .indirect = true, .event_idx = true};
    struct fixture fixture;

    fixture_open(&fixture, &shape, 1);
    for (unsigned i = 0; i < 40; i++) {
        const unsigned wanted = 19;     /* place 3 of a lap whose wrap counter is 1: every other one */

        *fixture.queue.packed.device = (struct vring_packed_desc_event){
            .off_wrap = wanted % 8 | 1u << VRING_PACKED_EVENT_F_WRAP_CTR, .flags = VRING_PACKED_EVENT_FLAG_DESC};
        fixture_send(&fixture);
        bool kick = front_queue_publish(&fixture.queue);
        ck_assert(kick == (i % 16 == wanted % 16));
        device_take_all(&fixture.device);
        device_return(&fixture.device, 1);
        fixture_reap(&fixture);
    }
    fixture.queue.packed.device->flags = VRING_PACKED_EVENT_FLAG_DISABLE;
    fixture_send(&fixture);
    ck_assert(!front_queue_publish(&fixture.queue));
    fixture.queue.packed.device->flags = VRING_PACKED_EVENT_FLAG_ENABLE;
    fixture_send(&fixture);
    ck_assert(front_queue_publish(&fixture.queue));
    fixture_close(&fixture);
}
END_TEST

/* Sleep only when nothing came back, and tell the device that a call is wanted. */
START_TEST(arming_looks_once_more)
{
    struct fixture fixture;

    fixture_open(&fixture, &shapes[_i], 1);
    fixture_send(&fixture);
    front_queue_publish(&fixture.queue);
    ck_assert(front_queue_arm(&fixture.queue));
    device_take_all(&fixture.device);
    device_return(&fixture.device, 1);
    ck_assert(!front_queue_arm(&fixture.queue));
    front_queue_disarm(&fixture.queue);
    ck_assert_uint_eq(fixture_reap(&fixture), 1);
    ck_assert(front_queue_arm(&fixture.queue));
    fixture_close(&fixture);
}
END_TEST

START_TEST(shapes_that_cannot_be)
{
    static const struct front_queue_shape bad[] = {
        {.size = 0, .slots = 1, .pieces = 1},
        {.size = 48, .slots = 1, .pieces = 1},
        {.size = 16, .slots = 6, .pieces = 3},
        {.size = 16, .slots = 17, .pieces = 3, .indirect = true},
        {.size = 16, .slots = 8, .pieces = 3, .indirect = true, .in_order = true},
        {.size = 16, .slots = 4, .pieces = 4, .in_order = true},
    };

    for (unsigned i = 0; i < array_size(bad); i++) {
        AUTO_ERROR struct error err = {0};
        struct front_queue queue;

        ck_assert_int_eq(front_queue_create(&queue, NULL, NULL, &bad[i], &err), -EINVAL);
        ck_assert_ptr_nonnull(err.text);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("vhost queue");
    TCase *tests = tcase_create("vhost queue");
    int all = (int)array_size(shapes);

    tcase_add_loop_test(tests, requests_come_and_go, 0, all);
    tcase_add_loop_test(tests, base_is_behind_what_came_back, 0, all);
    tcase_add_test(tests, nonsense_is_not_believed);
    tcase_add_test(tests, kicks_are_sent_when_asked_for);
    tcase_add_test(tests, packed_kicks_are_sent_when_asked_for);
    tcase_add_loop_test(tests, arming_looks_once_more, 0, all);
    tcase_add_test(tests, shapes_that_cannot_be);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
