/*
 * preallocate: when a format needs a longer file, the file gets a large piece
 * of storage at once. The filter shows the size that was asked for; what the
 * file has beyond that is cut off when the node goes.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "core/colock.h"
#include "core/driver.h"
#include "core/error.h"
#include "generated/options.h"

#define PREALLOCATE_SECTOR 512u

struct preallocate {
    uint64_t align, size;           /* bytes */
    struct comutex growing;         /* `end` too */
    uint64_t end;                   /* bytes that the file has */
};

static int preallocate_open(struct node *node, const void *opaque, struct error *err)
{
    const struct preallocate_options *options = opaque;
    struct preallocate *state = node->state;

    if (options->prealloc_align == 0 || options->prealloc_align % PREALLOCATE_SECTOR)
        return error_set(err, -EINVAL, "prealloc-align=%" PRIu64 " is not a multiple of %u", options->prealloc_align,
                         PREALLOCATE_SECTOR);
    state->align = options->prealloc_align;
    state->size = options->prealloc_size;
    state->end = node->size;
    comutex_init(&state->growing);
    return 0;
}

static void preallocate_close(struct node *node)
{
    struct preallocate *state = node->state;

    comutex_destroy(&state->growing);
}

/* The file reaches farther than to size, if that is to be had. Storage comes with zeroes that are not to be a hole. */
static int preallocate_extend(struct node *node, uint64_t size)
{
    struct preallocate *state = node->state;
    uint64_t end = (size + state->size + state->align - 1) / state->align * state->align, before = state->end;
    int result = edge_grow(node->filtered, end);

    if (result < 0) {
        end = size;
        result = edge_grow(node->filtered, end);
    }
    if (result < 0)
        return result;
    state->end = end;
    edge_write_zeroes(node->filtered, before, end - before, REQ_FAST_ONLY);
    return 0;
}

static int preallocate_grow(struct node *node, uint64_t size)
{
    struct preallocate *state = node->state;
    int result = size > INT64_MAX ? -EFBIG : 0;

    comutex_lock(&state->growing);
    if (result == 0 && size > state->end)
        result = preallocate_extend(node, size);
    if (result == 0 && size > node->size)
        node_grown(node, size);
    comutex_unlock(&state->growing);
    return result;
}

/* While drained. */
static int preallocate_resize(struct node *node, uint64_t size, struct error *err)
{
    struct preallocate *state = node->state;
    int result = edge_resize(node->filtered, size, err);

    if (result == 0)
        node->size = state->end = size;
    return result;
}

/* What is more than the users know of does not show. */
static void preallocate_child_resized(struct node *node, struct edge *edge)
{
    if (edge->child->size < node->size)
        node->size = edge->child->size;
}

static int preallocate_finish(struct node *node)
{
    const struct preallocate *state = node->state;
    AUTO_ERROR struct error err = {0};

    return state->end > node->size ? preallocate_resize(node, node->size, &err) : 0;
}

static void preallocate_permissions(const struct node *node, const struct edge *edge, struct permission *io)
{
    (void)node;
    (void)edge;
    if (io->taken & PERM_WRITE)
        io->taken |= PERM_RESIZE;
    io->shared &= ~(uint32_t)PERM_RESIZE;
}

const struct driver preallocate_driver = {
    .name = "preallocate",
    .kind = DRIVER_FILTER,
    .state_size = sizeof(struct preallocate),
    .open = preallocate_open,
    .close = preallocate_close,
    .resize = preallocate_resize,
    .child_resized = preallocate_child_resized,
    .finish = preallocate_finish,
    .grow = preallocate_grow,
    .permissions = preallocate_permissions,
};
