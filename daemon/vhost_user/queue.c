/*
 * Virtqueues: see queue.h. Start and stop, and the turn of the loop.
 */
#include "daemon/vhost_user/queue.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "core/coroutine.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/timer.h"

/* Kicks without requests: after so many in a row, the queue sleeps for a while. */
#define QUEUE_IDLE_KICKS_MAX 64u
#define QUEUE_PAUSE_NS 1000000u

/* Slots. */

static void slots_clear(struct vhost_slots *slots, unsigned size)
{
    free(slots->first);
    if (slots->iov)
        munmap(slots->iov, (size_t)size * VHOST_IOV_MAX * sizeof(*slots->iov));
    *slots = (struct vhost_slots){0};
}

static int slots_create(struct vhost_slots *slots, struct vhost_queue *queue, unsigned scratch)
{
    unsigned size = queue->setup.size;
    size_t stride = (sizeof(struct vhost_slot) + scratch + 63) & ~(size_t)63;
    void *iov = mmap(NULL, (size_t)size * VHOST_IOV_MAX * sizeof(*slots->iov), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    void *first = buffer_alloc(stride * size);

    if (iov == MAP_FAILED || !first) {
        if (iov != MAP_FAILED)
            munmap(iov, (size_t)size * VHOST_IOV_MAX * sizeof(*slots->iov));
        free(first);
        return -ENOMEM;
    }
    *slots = (struct vhost_slots){.first = first, .stride = (uint32_t)stride, .scratch = scratch, .iov = iov};
    for (unsigned i = 0; i < size; i++) {
        struct vhost_slot *slot = (struct vhost_slot *)(void *)((unsigned char *)first + i * stride);

        slot->queue = queue;
        slot->head = (uint16_t)i;
        slot->next_free = (uint16_t)(i + 1);
        slot->request.done = vhost_blk_done;
        slot->request.scratch_size = (uint16_t)scratch;
    }
    return 0;
}

/* The loop's side. */

static void queue_tell(struct vhost_queue *queue)
{
    coroutine_wake(take_ptr(&queue->control->waiter));
}

static void queue_run_order(struct loop_message *message)
{
    struct vhost_queue_control *control = container_of(message, struct vhost_queue_control, order);

    control->run(control->queue);
}

/* It has stopped when nothing refers to it any more. */
static void queue_reap(struct vhost_queue *queue)
{
    if (!queue->stopping || !queue->poller_gone || queue->slots.busy || list_is_linked(&queue->hook.link))
        return;
    queue->stopping = false;
    list_remove(&queue->in_loop);
    queue_tell(queue);
}

static void queue_call_driver(const struct vhost_queue *queue)
{
    eventfd_t one = 1;

    /* One that is full wakes the driver as well. */
    if (queue->call >= 0 && write(queue->call, &one, sizeof(one)) < 0)
        return;
}

void vhost_queue_show(struct vhost_queue *queue)
{
    queue->ring.unshown = 0;
    queue->ring.call_due |= queue->ring.ops->publish(queue);
}

static void queue_hook(struct loop_hook *hook)
{
    struct vhost_queue *queue = container_of(hook, struct vhost_queue, hook);

    vhost_queue_show(queue);
    if (queue->ring.call_due) {
        queue->ring.call_due = false;
        queue_call_driver(queue);
    }
    if (unlikely(queue->stopping))
        queue_reap(queue);
}

static void queue_pause_ends(struct timer *timer)
{
    struct vhost_queue *queue = container_of(timer, struct vhost_queue, pause);

    queue->idle_kicks = 0;
    poller_heat(&queue->poller);
}

/* It was kicked, or looks by itself again. */
static void queue_disarm(struct vhost_queue *queue)
{
    eventfd_t count;

    queue->armed = false;
    queue->ring.ops->disarm(queue);
    if (read(queue->setup.kick, &count, sizeof(count)) < 0)
        return;
    queue->idle_kicks++;
}

static bool queue_may_take(struct vhost_queue *queue)
{
    if (unlikely(atomic_load_explicit(queue->memory->lost, memory_order_relaxed))) {
        vhost_queue_break(queue, "shared memory has vanished");
        return false;
    }
    return !atomic_load_explicit(&queue->broken, memory_order_relaxed) &&
           !consumer_paused(queue->consumer, queue->poller.loop) && queue->consumer->edge.child;
}

static bool queue_poll(struct poller *poller)
{
    struct vhost_queue *queue = container_of(poller, struct vhost_queue, poller);

    if (unlikely(!queue_may_take(queue))) {
        poller_rest(poller);
        return false;
    }
    if (unlikely(queue->armed))
        queue_disarm(queue);
    if (unlikely(queue->inflight.again_count))
        queue->ring.ops->resubmit(queue);
    if (queue->ring.ops->take(queue)) {
        queue->idle_kicks = 0;
        return true;
    }
    if (unlikely(queue->idle_kicks > QUEUE_IDLE_KICKS_MAX)) {
        timer_set(&queue->pause, poller->loop, poller->loop->now_ns + QUEUE_PAUSE_NS);
        poller_rest(poller);
    }
    return false;
}

static bool queue_arm(struct poller *poller)
{
    struct vhost_queue *queue = container_of(poller, struct vhost_queue, poller);

    queue->armed = queue->ring.ops->arm(queue) && !atomic_load_explicit(queue->memory->lost, memory_order_relaxed);
    if (!queue->armed)
        queue->ring.ops->disarm(queue);
    return queue->armed;
}

static void queue_poller_gone(struct poller *poller)
{
    struct vhost_queue *queue = container_of(poller, struct vhost_queue, poller);

    queue->poller_gone = true;
    queue_reap(queue);
}

static void queue_start_on_loop(struct vhost_queue *queue)
{
    struct loop *loop = loop_current();

    list_append(&queue->control->by_loop[loop->index], &queue->in_loop);
    queue->ring.ops->disarm(queue);
    poller_add(loop, &queue->poller);
    /* The last back end may have shown what it did without having called. */
    queue_call_driver(queue);
    queue_tell(queue);
}

static void queue_stop_on_loop(struct vhost_queue *queue)
{
    queue->stopping = true;
    timer_cancel(&queue->pause);
    poller_remove(&queue->poller, queue_poller_gone);
}

void vhost_queue_resumed(struct vhost_queue *queue)
{
    /* Something is still in flight when the drain came to nothing; then the old slots go on to do. */
    if (queue->spare.first && queue->slots.busy == 0) {
        slots_clear(&queue->slots, queue->setup.size);
        queue->slots = queue->spare;
        queue->spare = (struct vhost_slots){0};
    }
    if (!queue->stopping)
        poller_heat(&queue->poller);
}

static void queue_report(struct loop_message *message)
{
    struct vhost_queue_control *control = container_of(message, struct vhost_queue_control, report);

    control->report_broken(control->queue);
}

void vhost_queue_break(struct vhost_queue *queue, const char *format, ...)
{
    struct vhost_queue_control *control = queue->control;
    va_list args;

    if (atomic_load_explicit(&queue->broken, memory_order_relaxed))
        return;
    va_start(args, format);
    vsnprintf(control->reason, sizeof(control->reason), format, args);
    va_end(args);
    atomic_store_explicit(&queue->broken, true, memory_order_relaxed);
    loop_post(loop_main, &control->report);
}

/* The main loop's side. */

void vhost_queue_init(struct vhost_queue *queue, unsigned index, struct vhost_queue_control *control)
{
    control->queue = queue;
    control->order.run = queue_run_order;
    control->report.run = queue_report;
    queue->control = control;
    queue->index = index;
    queue->call = -1;
    queue->setup = (struct vhost_queue_setup){.kick = -1, .call = -1, .broken = -1};
    queue->hook.run = queue_hook;
    queue->poller.poll = queue_poll;
    queue->poller.arm = queue_arm;
    queue->pause.expired = queue_pause_ends;
    list_link_init(&queue->hook.link);
    list_link_init(&queue->in_loop);
}

void vhost_queue_clear(struct vhost_queue *queue)
{
    int *fds[] = {&queue->setup.kick, &queue->setup.call, &queue->setup.broken};

    for (unsigned i = 0; i < array_size(fds); i++) {
        if (*fds[i] >= 0)
            close(take_fd(fds[i]));
    }
}

static void queue_order(struct vhost_queue *queue, void (*run)(struct vhost_queue *queue))
{
    queue->control->run = run;
    queue->control->waiter = coroutine_self();
    loop_post(queue->loop, &queue->control->order);
    coroutine_yield();
}

static void queue_free(struct vhost_queue *queue)
{
    queue->ring.ops->end(queue);
    slots_clear(&queue->slots, queue->setup.size);
    slots_clear(&queue->spare, queue->setup.size);
    free(take_ptr(&queue->chain));
}

static int queue_create(struct vhost_queue *queue, uint64_t features, struct error *err)
{
    struct vhost_ring *ring = &queue->ring;

    *ring = (struct vhost_ring){
        .ops = features & VHOST_BIT(VIRTIO_F_RING_PACKED) ? &vhost_ring_packed : &vhost_ring_split,
        .size = queue->setup.size,
        .event_idx = features & VHOST_BIT(VIRTIO_RING_F_EVENT_IDX),
        .indirect = features & VHOST_BIT(VIRTIO_RING_F_INDIRECT_DESC),
    };
    queue->view = (struct vhost_region){0};
    if (slots_create(&queue->slots, queue, queue->disk->scratch) < 0)
        return error_set(err, -ENOMEM, "queue %u: no memory for %u requests", queue->index, ring->size);
    queue->chain = memory_array(VHOST_IOV_MAX, sizeof(*queue->chain));
    return ring->ops->begin(queue, err);
}

int vhost_queue_start(struct vhost_queue *queue, struct loop *loop, uint64_t features, struct error *err)
{
    int result = queue_create(queue, features, err);

    if (result < 0) {
        queue->inflight.region = NULL;      /* stays as it is */
        queue_free(queue);
        return result;
    }
    queue->loop = loop;
    queue->call = queue->setup.call;
    queue->poller.fd = queue->setup.kick;
    queue->armed = queue->poller_gone = false;
    queue->idle_kicks = 0;
    atomic_store(&queue->broken, false);
    queue->running = true;
    queue_order(queue, queue_start_on_loop);
    return 0;
}

void vhost_queue_stop(struct vhost_queue *queue)
{
    queue_order(queue, queue_stop_on_loop);
    queue->running = false;
    queue->setup.base = queue->ring.ops->base(queue);
    /* Where to go on it says to the next back end: QEMU does not know it of packed rings. */
    if (queue->setup.left)
        queue->inflight.region = NULL;
    queue_free(queue);
}

static void queue_call_changed(struct vhost_queue *queue)
{
    queue->call = queue->setup.call;
    queue_call_driver(queue);
    queue_tell(queue);
}

void vhost_queue_call_changed(struct vhost_queue *queue)
{
    if (queue->running)
        queue_order(queue, queue_call_changed);
}

int vhost_queue_scratch(struct vhost_queue *queue, unsigned scratch)
{
    if (!queue->running || queue->slots.scratch >= scratch || queue->spare.scratch >= scratch)
        return 0;
    slots_clear(&queue->spare, queue->setup.size);
    return slots_create(&queue->spare, queue, scratch);
}
