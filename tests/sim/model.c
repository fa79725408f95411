/*
 * Disks and clients: see model.h.
 */
#include "tests/sim/model.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/error.h"
#include "core/loop.h"
#include "core/memory.h"
#include "core/node.h"
#include "tests/sim/ring_sim.h"

/* From one word of written data to the next. */
#define STRIDE 0x0101010101010101u

static struct model_client *client_of(const struct consumer *consumer)
{
    return consumer->object;
}

static const char *client_name(const struct consumer *consumer)
{
    return client_of(consumer)->name;
}

static void client_resumed(struct consumer *consumer, struct loop *loop)
{
    struct model_client *client = client_of(consumer);

    ENSURE(loop_current() == loop);
    for (unsigned i = 0; i < MODEL_SLOTS; i++)
        client->slots[loop->index][i].waiting = false;
}

static void client_resized(struct consumer *consumer, uint64_t size)
{
    ENSURE(loop_current() == loop_main);
    ENSURE(consumer_size(consumer) == size);
}

static int client_scratch(struct consumer *consumer, unsigned scratch, struct error *err)
{
    struct model *model = client_of(consumer)->model;

    ENSURE(scratch <= MODEL_SCRATCH);
    if (sim_chance(model->sim, model->refuse_scratch))
        return error_set(err, -ENOMEM, "No memory for requests of %u bytes more", scratch);
    return 0;
}

static const struct consumer_ops client_ops = {
    .kind = "client",
    .name = client_name,
    .resumed = client_resumed,
    .resized = client_resized,
    .scratch = client_scratch,
};

/* What a slot's request does to the model. Ranges are in the disk. */

static bool slot_writes(const struct model_slot *slot)
{
    return REQ_BIT(slot->op) & REQ_BITS_WRITING;
}

static bool slot_looks(const struct model_slot *slot)
{
    return slot->op == REQ_READ || slot->op == REQ_STATUS;
}

static bool slot_overlaps(const struct model_slot *slot, const struct model_slot *other)
{
    uint64_t start = slot->client->offset + slot->offset, other_start = other->client->offset + other->offset;

    return other->busy && other->client->disk == slot->client->disk && start < other_start + other->length &&
           other_start < start + slot->length;
}

/* Whether the answers do not depend on which of slot and those in flight comes first. */
static bool slot_is_free(const struct model_slot *slot)
{
    struct model *model = slot->client->model;

    for (unsigned i = 0; i < MODEL_CLIENTS * MODEL_LOOPS * MODEL_SLOTS; i++) {
        const struct model_client *client = &model->clients[i / (MODEL_LOOPS * MODEL_SLOTS)];
        const struct model_slot *other = &client->slots[i / MODEL_SLOTS % MODEL_LOOPS][i % MODEL_SLOTS];

        if (!slot_overlaps(slot, other))
            continue;
        if ((slot_writes(slot) && (slot_writes(other) || slot_looks(other))) ||
            (slot_looks(slot) && slot_writes(other)))
            return false;
    }
    return true;
}

static void slot_assert_bytes(const struct model_slot *slot)
{
    const struct model_disk *disk = slot->client->disk;
    uint64_t start = slot->client->offset + slot->offset;

    if (memcmp(slot->data, disk->bytes + start, slot->length) == 0)
        return;
    for (uint64_t i = 0; i < slot->length; i++) {
        if (!disk->unknown[start + i] && slot->data[i] != disk->bytes[start + i])
            ck_abort_msg("%s read 0x%02x instead of 0x%02x at %llu of %s, in [%llu, +%llu)", slot->client->name,
                         slot->data[i], disk->bytes[start + i], (unsigned long long)(start + i), disk->node,
                         (unsigned long long)slot->offset, (unsigned long long)slot->length);
    }
}

static void slot_assert_extents(const struct model_slot *slot)
{
    const struct model_disk *disk = slot->client->disk;
    uint64_t at = slot->client->offset + slot->offset, total = 0;

    ENSURE(slot->list.count > 0);
    for (unsigned e = 0; e < slot->list.count; e++) {
        const struct extent *extent = &slot->extents[e];

        total += extent->length;
        ENSURE(extent->length > 0 && total <= slot->length);
        for (uint64_t i = 0; extent->flags & EXTENT_ZERO && i < extent->length; i++)
            ENSURE(disk->unknown[at + i] || disk->bytes[at + i] == 0);
        at += extent->length;
    }
}

static void slot_written(const struct model_slot *slot)
{
    struct model_disk *disk = slot->client->disk;
    uint64_t start = slot->client->offset + slot->offset;

    if (disk->fd < 0)
        return;
    switch (slot->op) {
    case REQ_WRITE:
        memcpy(disk->bytes + start, slot->data, slot->length);
        memset(disk->unknown + start, 0, slot->length);
        break;
    case REQ_WRITE_ZEROES:
        memset(disk->bytes + start, 0, slot->length);
        memset(disk->unknown + start, 0, slot->length);
        break;
    case REQ_DISCARD:
        if (disk->unmaps)
            memset(disk->unknown + start, 1, slot->length);
        break;
    default:
        break;
    }
}

static void slot_failed(const struct model_slot *slot, int result)
{
    const struct model_client *client = slot->client;
    struct model_disk *disk = client->disk;
    bool outside = slot->offset + slot->length > consumer_size(&client->consumer);
    bool refused = slot->parked && (result == -ESHUTDOWN || (result == -EIO && outside));
    bool broken = disk->faulty && (result == -EIO || result == -ENOSPC);

    if (!refused && !broken)
        ck_abort_msg("op %u of %s on %s failed: %s", slot->op, client->name, disk->node, strerror(-result));
    if (!refused && slot_writes(slot))
        memset(disk->unknown + client->offset + slot->offset, 1, slot->length);
}

static void slot_done(struct request *req)
{
    struct loop *loop = loop_current();
    struct model_slot *slot = NULL;
    struct model_client *client = client_of(req->consumer);

    for (unsigned i = 0; i < MODEL_SLOTS; i++) {
        if (client->slots[loop->index][i].request == req)
            slot = &client->slots[loop->index][i];
    }
    ENSURE(slot && slot->busy);     /* else it ended twice, or on another loop */
    ENSURE(req->scratch_used == 0);
    if (req->result < 0) {
        slot_failed(slot, req->result);
    } else {
        if (slot->op == REQ_READ)
            slot_assert_bytes(slot);
        else if (slot->op == REQ_STATUS)
            slot_assert_extents(slot);
        slot_written(slot);
    }
    slot->busy = slot->waiting = false;
    slot->generation++;
    client->model->requests++;
}

/* Submission. */

static void slot_fill(struct model_slot *slot)
{
    struct sim *sim = slot->client->model->sim;
    uint64_t value = sim_chance(sim, 100) ? 0 : sim_random(sim, UINT64_MAX), first, second;

    if (slot->op == REQ_READ)
        memset(slot->data, 0xa5, slot->length);
    for (uint64_t i = 0; slot->op == REQ_WRITE && i < slot->length; i += sizeof(value), value += value ? STRIDE : 0)
        memcpy(slot->data + i, &value, sizeof(value));
    first = sim_random(sim, slot->length);
    second = sim_random(sim, slot->length - first);
    slot->iov[0] = (struct iovec){slot->data, first};
    slot->iov[1] = (struct iovec){slot->data + first, second};
    slot->iov[2] = (struct iovec){slot->data + first + second, slot->length - first - second};
}

static bool slot_choose(struct model_slot *slot)
{
    static const uint8_t ops[] = {
        REQ_READ,  REQ_READ,  REQ_READ,  REQ_READ,         REQ_READ,    REQ_READ,  REQ_READ,  REQ_STATUS,
        REQ_WRITE, REQ_WRITE, REQ_WRITE, REQ_WRITE_ZEROES, REQ_DISCARD, REQ_FLUSH, REQ_WRITE, REQ_PREFETCH,
    };
    struct sim *sim = slot->client->model->sim;
    uint64_t size = consumer_size(&slot->client->consumer), unit = sim_chance(sim, 500) ? 1 : 512;

    slot->op = ops[sim_random(sim, array_size(ops))];
    if (slot_writes(slot) && !slot->client->writes)
        slot->op = REQ_READ;
    slot->flags = slot_writes(slot) && slot->op != REQ_DISCARD && sim_chance(sim, 100) ? REQ_FUA : 0;
    if (slot->op == REQ_WRITE_ZEROES && sim_chance(sim, 500))
        slot->flags |= REQ_MAY_UNMAP;
    slot->offset = slot->length = 0;
    if (slot->op == REQ_FLUSH)
        return true;
    slot->length = unit * (1 + sim_random(sim, sim_random(sim, MODEL_REQUEST_MAX / unit)));
    if (slot->length > size)
        return false;
    slot->offset = sim_random(sim, (size - slot->length) / unit + 1) * unit;
    return slot_is_free(slot);
}

static void slot_submit(struct model_slot *slot)
{
    struct model_client *client = slot->client;
    struct request *req = slot->request;

    slot->busy = true;
    slot->parked = slot->waiting = consumer_paused(&client->consumer, loop_current());
    if (slot->length)
        slot_fill(slot);
    slot->list = (struct extent_list){.limit = array_size(slot->extents), .extents = slot->extents};
    memset(req, 0, sizeof(*req) + MODEL_SCRATCH);
    req->op = slot->op;
    req->flags = slot->flags;
    req->offset = slot->offset;
    req->length = slot->length;
    if (slot->op == REQ_READ || slot->op == REQ_WRITE) {
        req->iov = slot->iov;
        req->iov_count = array_size(slot->iov);
    }
    req->extents = &slot->list;
    req->scratch_size = MODEL_SCRATCH;
    req->done = slot_done;
    consumer_submit(&client->consumer, req);
}

bool model_work(struct loop *loop, void *arg)
{
    struct model *model = arg;
    bool any = false;

    for (unsigned c = 0; c < MODEL_CLIENTS && !model->stopped; c++) {
        struct model_client *client = &model->clients[c];
        bool paused = consumer_paused(&client->consumer, loop);

        if (!client->attached || !(client->loops >> loop->index & 1))
            continue;
        for (unsigned i = 0; i < MODEL_SLOTS; i++) {
            struct model_slot *slot = &client->slots[loop->index][i];

            if (slot->busy || !sim_chance(model->sim, paused ? 20 : 300) || !slot_choose(slot))
                continue;
            slot_submit(slot);
            any = true;
        }
    }
    return any;
}

/* Life. */

static void model_disk_init(struct model *model, unsigned index)
{
    struct model_disk *disk = &model->disks[index];

    snprintf(disk->node, sizeof(disk->node), "disk%u", index);
    disk->fd = -1;
    if (sim_chance(model->sim, 150))
        return;
    disk->fd = memfd_create(disk->node, MFD_CLOEXEC);
    ck_assert_int_ge(disk->fd, 0);
    ck_assert_int_eq(ftruncate(disk->fd, (off_t)(4096 + sim_random(model->sim, MODEL_DISK_MAX / 512 - 8) * 512)), 0);
    snprintf(disk->path, sizeof(disk->path), "/proc/self/fd/%d", disk->fd);
    disk->unmaps = sim_chance(model->sim, 500);
    disk->faulty = sim_chance(model->sim, 250);
}

static void model_client_init(struct model *model, unsigned index)
{
    struct model_client *client = &model->clients[index];
    struct permission want = {.taken = PERM_READ, .shared = PERM_ALL};

    snprintf(client->name, sizeof(client->name), "client%u", index);
    client->model = model;
    client->loops = 1 + (unsigned)sim_random(model->sim, (1u << model->loop_count) - 1);
    client->writes = sim_chance(model->sim, 700);
    if (client->writes)
        want.taken |= PERM_WRITE;
    if (sim_chance(model->sim, 100))
        want.shared &= ~(uint32_t)PERM_RESIZE;
    if (sim_chance(model->sim, 50))
        want.shared &= ~(uint32_t)PERM_WRITE;
    consumer_init(&client->consumer, &client_ops, client, want);
    for (unsigned l = 0; l < MODEL_LOOPS; l++) {
        for (unsigned i = 0; i < MODEL_SLOTS; i++) {
            client->slots[l][i].client = client;
            client->slots[l][i].data = memory_zero(MODEL_REQUEST_MAX);
            client->slots[l][i].request = memory_aligned(sizeof(struct request) + MODEL_SCRATCH, 64);
        }
    }
}

struct model *model_new(struct sim *sim, unsigned loop_count)
{
    struct model *model = memory_new(struct model);

    model->sim = sim;
    model->loop_count = loop_count;
    model->refuse_scratch = 20;
    for (unsigned i = 0; i < MODEL_DISKS; i++)
        model_disk_init(model, i);
    for (unsigned i = 0; i < MODEL_CLIENTS; i++)
        model_client_init(model, i);
    return model;
}

void model_free(struct model *model)
{
    for (unsigned c = 0; c < MODEL_CLIENTS; c++) {
        struct model_client *client = &model->clients[c];

        consumer_destroy(&client->consumer);
        for (unsigned l = 0; l < MODEL_LOOPS; l++) {
            for (unsigned i = 0; i < MODEL_SLOTS; i++) {
                free(client->slots[l][i].data);
                free(client->slots[l][i].request);
            }
        }
    }
    for (unsigned i = 0; i < MODEL_DISKS; i++) {
        if (model->disks[i].fd >= 0)
            close(model->disks[i].fd);
    }
    free(model);
}

void model_resized(struct model_disk *disk, uint64_t size)
{
    memset(disk->bytes + size, 0, MODEL_DISK_MAX - size);
    memset(disk->unknown + size, 0, MODEL_DISK_MAX - size);
}

/* Checks. */

static bool node_reaches(const struct node *from, const struct node *node)
{
    if (from == node)
        return true;
    for (unsigned i = 0; from && i < from->child_count; i++) {
        if (node_reaches(from->children[i]->child, node))
            return true;
    }
    return false;
}

bool model_reaches(const struct model_client *client, const struct node *node)
{
    return node && node_reaches(client->consumer.edge.child, node);
}

void model_assert_quiet(const struct model_client *client)
{
    for (unsigned l = 0; l < client->model->loop_count; l++) {
        const struct consumer_loop *local = &client->consumer.loops[l];

        ck_assert_msg(local->paused && local->inflight == 0, "%s is not quiet on loop %u under a drain", client->name,
                      l);
        for (unsigned i = 0; i < MODEL_SLOTS; i++)
            ENSURE(!client->slots[l][i].busy || client->slots[l][i].waiting);
    }
}

bool model_is_idle(const struct model_client *client)
{
    for (unsigned l = 0; l < MODEL_LOOPS; l++) {
        for (unsigned i = 0; i < MODEL_SLOTS; i++) {
            if (client->slots[l][i].busy)
                return false;
        }
    }
    return true;
}

void model_assert_content(const struct model *model)
{
    AUTO_FREE unsigned char *bytes = memory_zero(MODEL_DISK_MAX);

    for (unsigned d = 0; d < MODEL_DISKS; d++) {
        const struct model_disk *disk = &model->disks[d];

        if (disk->fd < 0)
            continue;
        ssize_t size = pread(disk->fd, bytes, MODEL_DISK_MAX, 0);

        for (ssize_t i = 0; i < size; i++) {
            if (!disk->unknown[i] && disk->bytes[i] != bytes[i])
                ck_abort_msg("%s holds 0x%02x instead of 0x%02x at %zd", disk->node, bytes[i], disk->bytes[i], i);
        }
    }
}
