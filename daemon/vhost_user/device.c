/*
 * The device of a session: which of its queues run, and where.
 */
#include <errno.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>

#include "core/error.h"
#include "core/memory.h"
#include "daemon/vhost_user/export.h"
#include "daemon/vhost_user/session.h"
#include "generated/options.h"

static bool device_wants(const struct vhost_session *session, const struct vhost_queue *queue)
{
    const struct vhost_queue_setup *setup = &queue->setup;
    bool enabled = setup->enabled || !(session->features & VHOST_BIT(VHOST_F_PROTOCOL_FEATURES));

    return enabled && setup->has_address && setup->kick >= 0 && session->memory.count && !setup->halted &&
           !session->ending;
}

static int device_attach_inflight(struct vhost_session *session, struct vhost_queue *queue, struct error *err)
{
    bool packed = session->features & VHOST_BIT(VIRTIO_F_RING_PACKED);
    const struct vhost_inflight_desc *desc = &session->inflight;
    size_t size = vhost_inflight_size(desc->queue_size, packed);

    queue->inflight.region = NULL;
    if (!session->inflight_map.base)
        return 0;
    /* A driver may use less of a queue than the machine has for it. */
    if (queue->index >= desc->queue_count || queue->setup.size > desc->queue_size ||
        size > desc->mmap_size / desc->queue_count)
        return error_set(err, -EINVAL, "the in-flight region has no place for queue %u of %u entries", queue->index,
                         queue->setup.size);
    queue->inflight.region = session->inflight_map.start + queue->index * size;
    return 0;
}

int vhost_device_update(struct vhost_session *session, struct vhost_queue *queue, struct error *err)
{
    bool wanted = device_wants(session, queue);

    if (queue->running && !wanted)
        vhost_queue_stop(queue);
    if (queue->running || !wanted)
        return 0;
    int result = device_attach_inflight(session, queue, err);

    return result < 0 ? result : vhost_queue_start(queue, queue->loop, session->features, err);
}

void vhost_device_pause(struct vhost_session *session)
{
    for (unsigned i = 0; i < session->queue_count; i++) {
        if (session->queues[i].running)
            vhost_queue_stop(&session->queues[i]);
    }
}

int vhost_device_resume(struct vhost_session *session, struct error *err)
{
    int result = 0;

    for (unsigned i = 0; i < session->queue_count; i++) {
        if (result == 0)
            result = vhost_device_update(session, &session->queues[i], err);
    }
    return result;
}

/* A driver that cannot flush must not find a cache (virtio 1.2, 5.2.5.2). */
bool vhost_device_writeback(const struct vhost_session *session)
{
    uint64_t features = session->features;

    return session->writeback &&
           (features & VHOST_BIT(VIRTIO_BLK_F_FLUSH) || !(features & VHOST_BIT(VIRTIO_BLK_F_CONFIG_WCE)));
}

void vhost_device_set_writeback(struct vhost_session *session, bool writeback)
{
    struct vhost_export *owner = session->owner;
    uint64_t features = session->features;
    bool chooses = features & VHOST_BIT(VIRTIO_BLK_F_CONFIG_WCE);
    bool cached = features & VHOST_BIT(VIRTIO_BLK_F_FLUSH) && (writeback || !chooses);

    session->writeback = writeback;
    if (session->inflight_map.base)
        *(uint64_t *)(void *)session->inflight_map.start = writeback ? 0 : VHOST_INFLIGHT_WRITETHROUGH;
    atomic_store(&owner->disk.writethrough, owner->export->options->writethrough || !cached);
}

void vhost_device_set_features(struct vhost_session *session, uint64_t features)
{
    session->features = features;
    session->owner->disk.features = features;
    vhost_device_set_writeback(session, session->writeback);
}

void vhost_device_stop(struct vhost_session *session)
{
    vhost_device_pause(session);
    for (unsigned i = 0; i < session->queue_count; i++) {
        struct vhost_queue_setup *setup = &session->queues[i].setup;

        if (setup->kick >= 0)
            close(take_fd(&setup->kick));
        setup->has_address = setup->enabled = setup->halted = false;
    }
    session->broken = NULL;
    session->status = 0;
    vhost_device_set_features(session, 0);
}

void vhost_device_reset(struct vhost_session *session)
{
    vhost_device_stop(session);
    for (unsigned i = 0; i < session->queue_count; i++)
        session->queues[i].setup.base = 0;
    vhost_device_set_writeback(session, true);
}

void vhost_session_move_queue(struct vhost_session *session, unsigned index, struct loop *loop)
{
    struct vhost_queue *queue = &session->queues[index];
    bool running = queue->running;

    if (running)
        vhost_queue_stop(queue);
    queue->loop = loop;
    if (running)
        vhost_device_update(session, queue, NULL);
}
