/*
 * What the messages of a front end do. Each has a row in a table, with the
 * payload and the file descriptors that it must come with; the functions
 * behind it find both checked.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "core/error.h"
#include "core/memory.h"
#include "daemon/vhost_user/config.h"
#include "daemon/vhost_user/export.h"
#include "daemon/vhost_user/session.h"
#include "generated/options.h"

#define FDS_BY_PAYLOAD 0xffu        /* the function checks them */

struct handler {
    const char *name;
    uint16_t size_min, size_max;    /* of the payload */
    uint8_t fds;
    uint8_t feature;                /* protocol feature that allows it, plus one; 0: always */
    int (*run)(struct vhost_session *session, union vhost_payload *payload, struct error *err);
    bool answers;                   /* by a payload of its own */
};

/* Features. */

static int handle_get_features(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    (void)err;
    payload->number = vhost_config_features(session->owner);
    return sizeof(payload->number);
}

static int handle_set_features(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    uint64_t unknown = payload->number & ~vhost_config_features(session->owner);

    if (unknown)
        return error_set(err, -EINVAL, "features 0x%llx are not offered", (unsigned long long)unknown);
    if (payload->number == session->features)
        return 0;
    vhost_device_pause(session);
    vhost_device_set_features(session, payload->number);
    return vhost_device_resume(session, err);
}

static int handle_get_protocol_features(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    (void)session;
    (void)err;
    payload->number = vhost_config_protocol_features();
    return sizeof(payload->number);
}

static int handle_set_protocol_features(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    uint64_t unknown = payload->number & ~vhost_config_protocol_features();

    if (unknown)
        return error_set(err, -EINVAL, "protocol features 0x%llx are not offered", (unsigned long long)unknown);
    session->protocol = payload->number;
    return 0;
}

static int handle_get_queue_num(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    (void)err;
    payload->number = session->queue_count;
    return sizeof(payload->number);
}

/* Owner, status and reset. */

/* A session starts. QEMU keeps the connection for the next device when one is unplugged, and takes back nothing: not its
 * memory, for one. */
static int handle_set_owner(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    (void)payload;
    (void)err;
    vhost_device_reset(session);
    vhost_memory_clear(&session->memory);
    vhost_mapping_destroy(&session->inflight_map);
    return 0;
}

static int handle_reset_owner(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    (void)payload;
    (void)err;
    vhost_device_pause(session);
    for (unsigned i = 0; i < session->queue_count; i++)
        session->queues[i].setup.enabled = false;
    return 0;
}

static int handle_reset_device(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    (void)payload;
    (void)err;
    vhost_device_reset(session);
    return 0;
}

static int handle_get_status(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    (void)err;
    payload->number = session->status;
    return sizeof(payload->number);
}

/* A status of 0 is a driver's reset, or a machine that is paused: then QEMU asks for the bases afterwards, goes on with
 * them, and does not say again what the cache mode was. Virtio lets it survive a reset. */
static int handle_set_status(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    if (payload->number > UINT8_MAX)
        return error_set(err, -EINVAL, "status 0x%llx", (unsigned long long)payload->number);
    if (payload->number == 0)
        vhost_device_stop(session);
    else
        session->status = payload->number | (session->status & VIRTIO_CONFIG_S_NEEDS_RESET);
    return 0;
}

/* Configuration space. */

static int handle_get_config(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    struct vhost_config_desc *desc = &payload->config;
    uint32_t offset = desc->offset, size = desc->size;
    uint8_t space[VHOST_CONFIG_MAX];

    (void)err;
    /* An empty payload says that something is wrong. */
    if (offset > sizeof(space) || size > sizeof(space) - offset)
        return 0;
    vhost_config_read(session->owner, vhost_device_writeback(session), space);
    memcpy(desc->data, space + offset, size);
    return (int)(offsetof(struct vhost_config_desc, data) + size);
}

static int handle_set_config(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    const struct vhost_config_desc *desc = &payload->config;
    bool offered = vhost_config_features(session->owner) & VHOST_BIT(VIRTIO_BLK_F_CONFIG_WCE);

    if (session->message.header.size < offsetof(struct vhost_config_desc, data) + (uint64_t)desc->size)
        return error_set(err, -EPROTO, "%u bytes of configuration in a payload of %u", desc->size,
                         session->message.header.size);
    if (!vhost_config_is_cache_mode(desc->offset, desc->size) || !offered || desc->data[0] > 1)
        return error_set(err, -EINVAL, "%u bytes of configuration at offset %u cannot be written", desc->size,
                         desc->offset);
    vhost_device_set_writeback(session, desc->data[0]);
    return 0;
}

/* Memory. */

static int handle_set_mem_table(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    const struct vhost_table_desc *desc = &payload->table;
    struct vhost_message *message = &session->message;
    struct vhost_memory fresh = {.lost = &session->memory_lost};
    int result = 0;

    if (desc->count > VHOST_TABLE_MAX || message->fd_count != desc->count ||
        message->header.size < offsetof(struct vhost_table_desc, regions) + desc->count * sizeof(desc->regions[0]))
        return error_set(err, -EPROTO, "%u regions, with %u file descriptors, in a payload of %u bytes", desc->count,
                         message->fd_count, message->header.size);
    for (unsigned i = 0; i < desc->count && result == 0; i++)
        result = vhost_memory_add(&fresh, &desc->regions[i], message->fds[i], err);
    if (result < 0) {
        vhost_memory_clear(&fresh);
        return result;
    }
    vhost_device_pause(session);
    vhost_memory_clear(&session->memory);
    session->memory = fresh;
    return vhost_device_resume(session, err);
}

static int handle_get_max_mem_slots(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    (void)session;
    (void)err;
    payload->number = VHOST_REGIONS_MAX;
    return sizeof(payload->number);
}

static int handle_add_mem_reg(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    vhost_device_pause(session);
    int result = vhost_memory_add(&session->memory, &payload->region.region, session->message.fds[0], err);
    int resumed = vhost_device_resume(session, result < 0 ? NULL : err);

    return result < 0 ? result : resumed;
}

/* Some front ends send a file descriptor, which is not looked at. */
static int handle_rem_mem_reg(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    vhost_device_pause(session);
    int result = vhost_memory_remove(&session->memory, &payload->region.region, err);
    int resumed = vhost_device_resume(session, result < 0 ? NULL : err);

    return result < 0 ? result : resumed;
}

/* Queues. */

static struct vhost_queue *handle_queue(struct vhost_session *session, uint32_t index, struct error *err)
{
    if (index < session->queue_count)
        return &session->queues[index];
    error_set(err, -EINVAL, "there is no queue %u, only %u queues", index, session->queue_count);
    return NULL;
}

/* One that is stopped, as most settings need it. */
static struct vhost_queue *handle_stopped_queue(struct vhost_session *session, uint32_t index, struct error *err)
{
    struct vhost_queue *queue = handle_queue(session, index, err);

    if (!queue || !queue->running)
        return queue;
    error_set(err, -EBUSY, "queue %u is running", index);
    return NULL;
}

static int handle_set_vring_num(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    uint32_t most = (uint32_t)session->owner->options->queue_size, size = payload->state.num;
    struct vhost_queue *queue = handle_stopped_queue(session, payload->state.index, err);

    if (!queue)
        return -EINVAL;
    if (size == 0 || size > most)
        return error_set(err, -EINVAL, "queue %u must have 1 to %u entries, not %u", queue->index, most, size);
    queue->setup.size = (uint16_t)size;
    return 0;
}

static int handle_set_vring_addr(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    const struct vhost_vring_addr *address = &payload->address;
    struct vhost_queue *queue = handle_queue(session, address->index, err);

    if (!queue)
        return -EINVAL;
    struct vhost_queue_setup *setup = &queue->setup;

    if (address->flags)
        return error_set(err, -EINVAL, "queue %u: flags 0x%x are not known", address->index, address->flags);
    if (queue->running && setup->descriptor == address->descriptor && setup->used == address->used &&
        setup->available == address->available)
        return 0;
    if (queue->running)
        return error_set(err, -EBUSY, "queue %u is running", queue->index);
    setup->descriptor = address->descriptor;
    setup->used = address->used;
    setup->available = address->available;
    setup->has_address = true;
    return vhost_device_update(session, queue, err);
}

static int handle_set_vring_base(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    struct vhost_queue *queue = handle_stopped_queue(session, payload->state.index, err);

    if (!queue)
        return -EINVAL;
    queue->setup.base = payload->state.num;
    return 0;
}

/* Also the order to stop. */
static int handle_get_vring_base(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    struct vhost_queue *queue = handle_queue(session, payload->state.index, err);

    if (!queue)
        return -EINVAL;
    if (queue->running)
        vhost_queue_stop(queue);
    if (queue->setup.kick >= 0)
        close(take_fd(&queue->setup.kick));
    queue->setup.halted = false;
    if (session->broken == queue)
        session->broken = NULL;
    payload->state.num = queue->setup.base;
    return sizeof(payload->state);
}

static int handle_set_vring_enable(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    struct vhost_queue *queue = handle_queue(session, payload->state.index, err);

    if (!queue)
        return -EINVAL;
    if (payload->state.num > 1)
        return error_set(err, -EINVAL, "queue %u: %u is neither 0 nor 1", queue->index, payload->state.num);
    queue->setup.enabled = payload->state.num;
    return vhost_device_update(session, queue, err);
}

/* The eventfd of a message, the caller's; -1: there is none. Set to not block: an I/O loop must never wait for a
 * counter that the front end holds full, or reads empty. */
static int handle_take_eventfd(struct vhost_session *session, uint64_t number, bool required, int *ret,
                               struct error *err)
{
    struct vhost_message *message = &session->message;
    struct stat st;

    *ret = -1;
    if (number & ~(uint64_t)(VHOST_VRING_INDEX_MASK | VHOST_VRING_NO_FD))
        return error_set(err, -EINVAL, "0x%llx is not known", (unsigned long long)number);
    if (message->fd_count != !(number & VHOST_VRING_NO_FD))
        return error_set(err, -EPROTO, "%u file descriptors", message->fd_count);
    if (message->fd_count == 0)
        return required ? error_set(err, -ENOTSUP, "queues without a kick are not supported") : 0;
    /* Eventfds are files without a type. */
    if (fstat(message->fds[0], &st) < 0 || (st.st_mode & S_IFMT))
        return error_set(err, -EINVAL, "the file descriptor is no eventfd");
    int flags = fcntl(message->fds[0], F_GETFL);

    if (flags < 0 || (!(flags & O_NONBLOCK) && fcntl(message->fds[0], F_SETFL, flags | O_NONBLOCK) < 0))
        return error_set(err, -errno, "the file descriptor is no eventfd");
    *ret = take_fd(&message->fds[0]);
    return 0;
}

static void handle_replace_fd(int *at, int fd)
{
    int old = *at;

    *at = fd;
    if (old >= 0)
        close(old);
}

static int handle_set_vring_kick(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    struct vhost_queue *queue = handle_queue(session, payload->number & VHOST_VRING_INDEX_MASK, err);
    int fd, result = queue ? handle_take_eventfd(session, payload->number, true, &fd, err) : -EINVAL;

    if (result < 0)
        return result;
    if (queue->running)
        vhost_queue_stop(queue);
    handle_replace_fd(&queue->setup.kick, fd);
    return vhost_device_update(session, queue, err);
}

static int handle_set_vring_call(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    struct vhost_queue *queue = handle_queue(session, payload->number & VHOST_VRING_INDEX_MASK, err);
    int fd, result = queue ? handle_take_eventfd(session, payload->number, false, &fd, err) : -EINVAL;

    if (result < 0)
        return result;
    int old = queue->setup.call;

    queue->setup.call = fd;
    vhost_queue_call_changed(queue);
    if (old >= 0)
        close(old);
    return 0;
}

static int handle_set_vring_err(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    struct vhost_queue *queue = handle_queue(session, payload->number & VHOST_VRING_INDEX_MASK, err);
    int fd, result = queue ? handle_take_eventfd(session, payload->number, false, &fd, err) : -EINVAL;

    if (result < 0)
        return result;
    handle_replace_fd(&queue->setup.broken, fd);
    return 0;
}

/* Channel and in-flight region. */

static int handle_set_backend_req_fd(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    struct vhost_message *message = &session->message;
    struct stat st;

    (void)payload;
    if (fstat(message->fds[0], &st) < 0 || !S_ISSOCK(st.st_mode))
        return error_set(err, -EINVAL, "the file descriptor is no socket");
    handle_replace_fd(&session->backend, take_fd(&message->fds[0]));
    return 0;
}

static int handle_check_inflight(const struct vhost_session *session, const struct vhost_inflight_desc *desc,
                                 struct error *err)
{
    uint64_t most = session->owner->options->queue_size;

    if (desc->queue_count == 0 || desc->queue_count > session->queue_count || desc->queue_size == 0 ||
        desc->queue_size > most)
        return error_set(err, -EINVAL, "%u queues of %u entries are not between 1 and %u, and 1 and %u",
                         desc->queue_count, desc->queue_size, session->queue_count, (unsigned)most);
    return 0;
}

static size_t handle_inflight_size(const struct vhost_session *session, const struct vhost_inflight_desc *desc)
{
    bool packed = session->features & VHOST_BIT(VIRTIO_F_RING_PACKED);

    return desc->queue_count * vhost_inflight_size(desc->queue_size, packed);
}

static int handle_get_inflight_fd(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    struct vhost_inflight_desc *desc = &payload->inflight;
    int result = handle_check_inflight(session, desc, err);

    if (result < 0)
        return result;
    size_t size = handle_inflight_size(session, desc);
    AUTO_CLOSE int fd = memfd_create("vhost-inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || ftruncate(fd, (off_t)size) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL))
        return error_set(err, -errno, "%zu bytes of shared memory: %s", size, strerror(errno));
    desc->mmap_size = size;
    desc->mmap_offset = 0;
    session->reply_fd = take_fd(&fd);
    return (int)session->message.header.size;
}

static int handle_set_inflight_fd(struct vhost_session *session, union vhost_payload *payload, struct error *err)
{
    const struct vhost_inflight_desc desc = payload->inflight;
    struct vhost_mapping fresh;
    int result = handle_check_inflight(session, &desc, err);

    if (result == 0 && (desc.mmap_size < handle_inflight_size(session, &desc) || desc.mmap_offset % sizeof(uint64_t)))
        return error_set(err, -EINVAL, "%llu bytes are no region for %u queues of %u entries",
                         (unsigned long long)desc.mmap_size, desc.queue_count, desc.queue_size);
    if (result == 0)
        result = vhost_mapping_create(&fresh, session->message.fds[0], desc.mmap_offset, desc.mmap_size,
                                      &session->memory_lost, err);
    if (result < 0)
        return result;
    vhost_device_pause(session);
    vhost_mapping_destroy(&session->inflight_map);
    session->inflight_map = fresh;
    session->inflight = desc;
    uint64_t noted = *(const uint64_t *)(const void *)fresh.start;

    vhost_device_set_writeback(session, session->writeback && !(noted & VHOST_INFLIGHT_WRITETHROUGH));
    return vhost_device_resume(session, err);
}

#define NEEDS(feature) (uint8_t)(VHOST_PROTOCOL_##feature + 1)
#define NUMBER sizeof(uint64_t)
#define STATE sizeof(struct vhost_vring_state)

static const struct handler handlers[VHOST_REQUEST_COUNT] = {
    [VHOST_GET_FEATURES] = {"GET_FEATURES", 0, 0, 0, 0, handle_get_features, true},
    [VHOST_SET_FEATURES] = {"SET_FEATURES", NUMBER, NUMBER, 0, 0, handle_set_features, false},
    [VHOST_SET_OWNER] = {"SET_OWNER", 0, 0, 0, 0, handle_set_owner, false},
    [VHOST_RESET_OWNER] = {"RESET_OWNER", 0, 0, 0, 0, handle_reset_owner, false},
    [VHOST_SET_MEM_TABLE] = {"SET_MEM_TABLE", offsetof(struct vhost_table_desc, regions),
                             sizeof(struct vhost_table_desc), FDS_BY_PAYLOAD, 0, handle_set_mem_table, false},
    [VHOST_SET_VRING_NUM] = {"SET_VRING_NUM", STATE, STATE, 0, 0, handle_set_vring_num, false},
    [VHOST_SET_VRING_ADDR] = {"SET_VRING_ADDR", sizeof(struct vhost_vring_addr), sizeof(struct vhost_vring_addr), 0, 0,
                              handle_set_vring_addr, false},
    [VHOST_SET_VRING_BASE] = {"SET_VRING_BASE", STATE, STATE, 0, 0, handle_set_vring_base, false},
    [VHOST_GET_VRING_BASE] = {"GET_VRING_BASE", STATE, STATE, 0, 0, handle_get_vring_base, true},
    [VHOST_SET_VRING_KICK] = {"SET_VRING_KICK", NUMBER, NUMBER, FDS_BY_PAYLOAD, 0, handle_set_vring_kick, false},
    [VHOST_SET_VRING_CALL] = {"SET_VRING_CALL", NUMBER, NUMBER, FDS_BY_PAYLOAD, 0, handle_set_vring_call, false},
    [VHOST_SET_VRING_ERR] = {"SET_VRING_ERR", NUMBER, NUMBER, FDS_BY_PAYLOAD, 0, handle_set_vring_err, false},
    [VHOST_GET_PROTOCOL_FEATURES] = {"GET_PROTOCOL_FEATURES", 0, 0, 0, 0, handle_get_protocol_features, true},
    [VHOST_SET_PROTOCOL_FEATURES] = {"SET_PROTOCOL_FEATURES", NUMBER, NUMBER, 0, 0, handle_set_protocol_features,
                                     false},
    [VHOST_GET_QUEUE_NUM] = {"GET_QUEUE_NUM", 0, 0, 0, NEEDS(MQ), handle_get_queue_num, true},
    [VHOST_SET_VRING_ENABLE] = {"SET_VRING_ENABLE", STATE, STATE, 0, 0, handle_set_vring_enable, false},
    [VHOST_SET_BACKEND_REQ_FD] = {"SET_BACKEND_REQ_FD", 0, 0, 1, NEEDS(BACKEND_REQ), handle_set_backend_req_fd, false},
    [VHOST_GET_CONFIG] = {"GET_CONFIG", offsetof(struct vhost_config_desc, data), sizeof(struct vhost_config_desc), 0,
                          NEEDS(CONFIG), handle_get_config, true},
    [VHOST_SET_CONFIG] = {"SET_CONFIG", offsetof(struct vhost_config_desc, data), sizeof(struct vhost_config_desc), 0,
                          NEEDS(CONFIG), handle_set_config, false},
    /* Some front ends pad the payload to whole words. */
    [VHOST_GET_INFLIGHT_FD] = {"GET_INFLIGHT_FD", sizeof(struct vhost_inflight_desc), 24, 0, NEEDS(INFLIGHT_SHMFD),
                               handle_get_inflight_fd, true},
    [VHOST_SET_INFLIGHT_FD] = {"SET_INFLIGHT_FD", sizeof(struct vhost_inflight_desc), 24, 1, NEEDS(INFLIGHT_SHMFD),
                               handle_set_inflight_fd, false},
    [VHOST_RESET_DEVICE] = {"RESET_DEVICE", 0, 0, 0, NEEDS(RESET_DEVICE), handle_reset_device, false},
    [VHOST_GET_MAX_MEM_SLOTS] = {"GET_MAX_MEM_SLOTS", 0, 0, 0, NEEDS(CONFIGURE_MEM_SLOTS), handle_get_max_mem_slots,
                                 true},
    [VHOST_ADD_MEM_REG] = {"ADD_MEM_REG", sizeof(struct vhost_single_region_desc),
                           sizeof(struct vhost_single_region_desc), 1, NEEDS(CONFIGURE_MEM_SLOTS), handle_add_mem_reg,
                           false},
    [VHOST_REM_MEM_REG] = {"REM_MEM_REG", sizeof(struct vhost_single_region_desc),
                           sizeof(struct vhost_single_region_desc), FDS_BY_PAYLOAD, NEEDS(CONFIGURE_MEM_SLOTS),
                           handle_rem_mem_reg, false},
    [VHOST_SET_STATUS] = {"SET_STATUS", NUMBER, NUMBER, 0, NEEDS(STATUS), handle_set_status, false},
    [VHOST_GET_STATUS] = {"GET_STATUS", 0, 0, 0, NEEDS(STATUS), handle_get_status, true},
};

bool vhost_handle_answers(uint32_t request)
{
    return request < VHOST_REQUEST_COUNT && handlers[request].answers;
}

const char *vhost_handle_name(uint32_t request)
{
    return request < VHOST_REQUEST_COUNT && handlers[request].name ? handlers[request].name : "unknown message";
}

int vhost_handle(struct vhost_session *session, struct error *err)
{
    struct vhost_message *message = &session->message;
    uint32_t request = message->header.request, size = message->header.size;

    if (request >= VHOST_REQUEST_COUNT || !handlers[request].run)
        return error_set(err, -ENOTSUP, "message %u is not supported", request);
    const struct handler *handler = &handlers[request];

    if (size < handler->size_min || size > handler->size_max)
        return error_set(err, -EPROTO, "a payload of %u bytes", size);
    if (handler->fds != FDS_BY_PAYLOAD && message->fd_count != handler->fds)
        return error_set(err, -EPROTO, "%u file descriptors instead of %u", message->fd_count, handler->fds);
    if (handler->feature && !(session->protocol & VHOST_BIT(handler->feature - 1)))
        return error_set(err, -EPROTO, "its protocol feature was not negotiated");
    return handler->run(session, &message->payload, err);
}
