/*
 * Front ends that are connected: see session.h.
 */
#include "daemon/vhost_user/session.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "core/coroutine.h"
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "daemon/vhost_user/export.h"
#include "generated/options.h"

/* Messages in a row after which others of the main loop have their turn. */
#define SESSION_MESSAGES_MAX 32u

static const char *session_id(const struct vhost_session *session)
{
    return session->owner->export->id;
}

/* The one line that a front end can cause in the log. */
static void session_complain(struct vhost_session *session, const char *text)
{
    if (session->complained)
        log_debug("vhost-user export '%s': %s", session_id(session), text);
    else
        log_warning("vhost-user export '%s': %s", session_id(session), text);
    session->complained = true;
}

/* Waiting. */

static void session_ready(struct ring_op *op, int result)
{
    struct vhost_session *session = container_of(op, struct vhost_session, ready);

    (void)result;
    coroutine_wake(take_ptr(&session->waiter));
}

static void session_wait(struct vhost_session *session, unsigned events)
{
    if (session->ending)
        return;
    session->nudged = false;
    session->ready.complete = session_ready;
    session->waiter = coroutine_self();
    loop_main->ring->ops->poll(loop_main->ring, &session->ready, session->fd, events);
    coroutine_yield();
}

static void session_nudge(struct vhost_session *session)
{
    if (!session->waiter || session->nudged)
        return;
    session->nudged = true;
    loop_main->ring->ops->cancel_poll(loop_main->ring, &session->ready);
}

void vhost_session_stop(struct vhost_session *session)
{
    session->ending = true;
    session_nudge(session);
}

bool vhost_hung_up(int fd)
{
    struct pollfd state = {.fd = fd, .events = POLLRDHUP};

    return poll(&state, 1, 0) > 0 && state.revents & (POLLRDHUP | POLLHUP | POLLERR);
}

bool vhost_session_is_ending(const struct vhost_session *session)
{
    return session->ending || vhost_hung_up(session->fd);
}

static void session_broken(struct vhost_queue *queue)
{
    struct vhost_session *session = container_of(queue->memory, struct vhost_session, memory);

    /* A message that is being carried out does not start it again. */
    queue->setup.halted = true;
    if (!session->broken)
        session->broken = queue;
    session_nudge(session);
}

/* The back-end channel. */

void vhost_session_resized(struct vhost_session *session)
{
    struct vhost_header header = {.request = VHOST_BACKEND_CONFIG_CHANGE_MSG, .flags = VHOST_FLAGS_VERSION};

    /* A front end that does not read has another one waiting. */
    if (session->backend >= 0 && session->protocol & VHOST_BIT(VHOST_PROTOCOL_CONFIG))
        send(session->backend, &header, sizeof(header), MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Messages. */

static bool session_reply(struct vhost_session *session, uint32_t size)
{
    int result;

    while ((result = vhost_message_reply(&session->message, session->fd, size, session->reply_fd)) == -EAGAIN &&
           !session->ending)
        session_wait(session, POLLOUT);
    if (session->reply_fd >= 0)
        close(take_fd(&session->reply_fd));
    return result == 0;
}

/* False when the connection must end. */
static bool session_carry_out(struct vhost_session *session)
{
    struct vhost_message *message = &session->message;
    AUTO_ERROR struct error err = {0};

    comutex_lock(&session->owner->lock);
    int result = vhost_handle(session, &err);

    comutex_unlock(&session->owner->lock);
    vhost_message_drop_fds(message);
    bool answers = vhost_handle_answers(message->header.request);
    bool ack = !answers && message->header.flags & VHOST_FLAGS_NEED_REPLY &&
               session->protocol & VHOST_BIT(VHOST_PROTOCOL_REPLY_ACK);

    if (result < 0) {
        error_prefix(&err, "%s: ", vhost_handle_name(message->header.request));
        session_complain(session, err.text);
        if (!ack)
            return false;
    }
    if (answers)
        return session_reply(session, (uint32_t)result);
    message->payload.number = result < 0;
    return !ack || session_reply(session, sizeof(message->payload.number));
}

/* A queue's driver broke the rules: nothing goes on until the device is set up again. */
static void session_halt(struct vhost_session *session)
{
    struct vhost_queue *queue = take_ptr(&session->broken);
    char *text = memory_format("queue %u is broken, and the device is stopped: %s", queue->index,
                               session->controls[queue->index].reason);

    session_complain(session, text);
    free(text);
    comutex_lock(&session->owner->lock);
    vhost_device_pause(session);
    for (unsigned i = 0; i < session->queue_count; i++)
        session->queues[i].setup.halted = true;
    comutex_unlock(&session->owner->lock);
    session->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
    session->broken = NULL;
    if (queue->setup.broken >= 0)
        eventfd_write(queue->setup.broken, 1);
    vhost_session_resized(session);
}

/* 1: there is a message; 0: nothing more comes. */
static int session_receive(struct vhost_session *session)
{
    AUTO_ERROR struct error err = {0};

    for (;;) {
        while (session->broken && !session->ending)
            session_halt(session);
        if (session->ending)
            return 0;
        int result = vhost_message_receive(&session->message, session->fd, &err);

        if (result == -EAGAIN)
            session_wait(session, POLLIN);
        else if (result >= 0)
            return result;
        else {
            session_complain(session, err.text);
            return 0;
        }
    }
}

static void session_free(struct vhost_session *session)
{
    for (unsigned i = 0; i < session->queue_count; i++)
        vhost_queue_clear(&session->queues[i]);
    vhost_memory_clear(&session->memory);
    vhost_mapping_destroy(&session->inflight_map);
    vhost_message_reset(&session->message);
    if (session->backend >= 0)
        close(session->backend);
    close(session->fd);
    free(session->queues);
    free(session->controls);
    free(session);
}

static void session_run(void *arg)
{
    struct vhost_session *session = arg;
    struct vhost_export *owner = session->owner;
    bool goes_on = true;

    for (unsigned messages = 1; goes_on && session_receive(session) > 0; messages++) {
        goes_on = session_carry_out(session);
        vhost_message_reset(&session->message);
        if (messages % SESSION_MESSAGES_MAX == 0)
            coroutine_sleep(0);
    }
    session->ending = true;
    comutex_lock(&owner->lock);
    for (unsigned i = 0; i < session->queue_count; i++)
        session->queues[i].setup.left = true;
    vhost_device_pause(session);
    owner->session = NULL;
    comutex_unlock(&owner->lock);
    session_free(session);
    vhost_export_left(owner);
}

void vhost_session_start(struct vhost_export *owner, int fd)
{
    struct vhost_session *session = memory_aligned(sizeof(*session), 64);
    unsigned count = (unsigned)owner->options->num_queues;

    session->owner = owner;
    session->fd = fd;
    session->backend = session->reply_fd = -1;
    session->memory.lost = &session->memory_lost;
    session->queue_count = count;
    session->queues = memory_aligned(count * sizeof(*session->queues), 64);
    session->controls = memory_array(count, sizeof(*session->controls));
    for (unsigned i = 0; i < count; i++) {
        struct vhost_queue *queue = &session->queues[i];

        session->controls[i].by_loop = owner->by_loop;
        session->controls[i].report_broken = session_broken;
        vhost_queue_init(queue, i, &session->controls[i]);
        queue->memory = &session->memory;
        queue->consumer = &owner->export->consumer;
        queue->disk = &owner->disk;
        queue->loop = owner->loops[i];
        queue->setup.size = VHOST_QUEUE_SIZE_DEFAULT;
    }
    vhost_message_init(&session->message);
    vhost_device_set_features(session, 0);
    vhost_device_set_writeback(session, true);
    owner->session = session;
    coroutine_start(loop_main, session_run, session);
}
