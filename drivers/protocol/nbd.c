/*
 * nbd: an export of an NBD server, through libnbd. See nbd.h for where
 * connections live. A request has one operation, in its frame.
 */
#include "drivers/protocol/nbd.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/coroutine.h"
#include "core/memory.h"

/* Between the attempts to open: NBD_OPEN_PAUSE_NS. */
#define NBD_OPEN_PAUSE_NS 100000000u

/* How long the last flush may take. */
#define NBD_FINISH_NS 5000000000u

struct nbd_frame {
    struct nbd_operation operation;
    struct request *req;
};

/* Open and close. */

static int nbd_open_check(struct node *node, const struct nbd_traits *traits, struct error *err)
{
    const struct nbd_options *options = node_driver_options(node);

    if (traits->size > INT64_MAX)
        return error_set(err, -EFBIG, "Export '%s' has %" PRIu64 " bytes: more than a node can have", options->export,
                         traits->size);
    if (traits->read_only && !node->options->read_only && !node->options->auto_read_only)
        return error_set(err, -EACCES, "Export '%s' is read-only: node '%s' needs read-only=on", options->export,
                         node->name);
    if (traits->read_only)
        node->flags |= NODE_READ_ONLY;
    return 0;
}

/* What the server cannot do, core does. */
static void nbd_open_lacks(struct node *node, const struct nbd_traits *traits)
{
    node->lacks_ops = (traits->flush ? 0 : REQ_BIT(REQ_FLUSH)) | (traits->trim ? 0 : REQ_BIT(REQ_DISCARD)) |
                      (traits->zero ? 0 : REQ_BIT(REQ_WRITE_ZEROES)) | (traits->cache ? 0 : REQ_BIT(REQ_PREFETCH)) |
                      (traits->status ? 0 : REQ_BIT(REQ_STATUS));
    node->lacks_flags = (traits->fua ? 0 : REQ_FUA) | (traits->fast_zero ? 0 : REQ_FAST_ONLY);
}

static int nbd_open_connect(struct nbd_connection *connection, struct error *err)
{
    uint64_t timeout_ns = connection->nbd->options->open_timeout * UINT64_C(1000000000);
    struct ring *ring = loop_main->ring;
    uint64_t until = ring->ops->now(ring) + timeout_ns;

    for (;;) {
        AUTO_ERROR struct error last = {0};
        int result = nbd_connect(connection, &last);

        if (result == 0)
            return 0;
        if (ring->ops->now(ring) + NBD_OPEN_PAUSE_NS > until) {
            error_move(err, &last);
            return result;
        }
        coroutine_sleep(NBD_OPEN_PAUSE_NS);
    }
}

static void nbd_destroy(struct nbd *nbd)
{
    struct nbd_connection *connection;

    /* Whoever posted the last message has let go of it. */
    pthread_mutex_lock(&nbd->guard);
    pthread_mutex_unlock(&nbd->guard);
    while ((connection = list_first(&nbd->connections, struct nbd_connection, link)))
        nbd_connection_free(connection);
    free(take_ptr(&nbd->last_error));
    range_lock_destroy(&nbd->range);
    pthread_mutex_destroy(&nbd->guard);
}

static int nbd_open(struct node *node, const void *opaque, struct error *err)
{
    struct nbd *nbd = node->state;

    nbd->node = node;
    nbd->options = opaque;
    if (nbd->options->server->type == SOCKET_ADDRESS_TYPE_FD)
        return error_set(err, -ENOTSUP, "Parameter 'server.type' expects 'inet' or 'unix', not 'fd'");
    pthread_mutex_init(&nbd->guard, NULL);
    range_lock_init(&nbd->range);
    list_init(&nbd->connections);
    nbd->home = nbd_connection_new(nbd, loop_main);
    int result = nbd_open_connect(nbd->home, err);

    if (result == 0) {
        nbd_connection_keep(nbd->home);
        result = nbd_open_check(node, &nbd->traits, err);
        if (result < 0)
            nbd_connections_end(nbd);
    }
    if (result < 0) {
        nbd_destroy(nbd);
        return result;
    }
    nbd_open_lacks(node, &nbd->traits);
    node->size = nbd->traits.size;
    return 0;
}

static void nbd_close_node(struct node *node)
{
    struct nbd *nbd = node->state;

    nbd_connections_end(nbd);
    nbd_destroy(nbd);
}

/* Before the node goes: its last flush. A server that is gone, or does not answer, must not keep the node for ever. */

struct nbd_ending {
    struct nbd *nbd;
    struct timer timer;
};

static void nbd_ending_is_late(struct timer *timer)
{
    struct nbd_ending *ending = container_of(timer, struct nbd_ending, timer);

    nbd_break(ending->nbd);
    timer_set(timer, loop_main, loop_main->now_ns + NBD_FINISH_NS);
}

static int nbd_finish_node(struct node *node)
{
    struct nbd *nbd = node->state;
    struct nbd_ending ending = {.nbd = nbd, .timer.expired = nbd_ending_is_late};
    struct nbd_operation flush = {.op = REQ_FLUSH, .impatient = true};

    if (!nbd->traits.flush)
        return 0;
    timer_set(&ending.timer, loop_main, loop_main->now_ns + NBD_FINISH_NS);
    int result = nbd_do(nbd, &flush);

    timer_cancel(&ending.timer);
    nbd->unfinished_ns = result < 0 ? loop_main->now_ns : 0;
    return result;
}

/* Requests. */

static void nbd_done(struct nbd_operation *operation)
{
    struct request *req = container_of(operation, struct nbd_frame, operation)->req;

    request_resume(req, request_up(req, operation->result));
}

static enum step nbd_map(struct node *node, struct request *req)
{
    struct nbd *nbd = node->state;

    if (unlikely(nbd->traits.block > 1) && !nbd_is_aligned(nbd, req))
        return STEP_SLOW;
    /* The flush of core that follows finish() in the same turn: not another wait. */
    if (unlikely(req->op == REQ_FLUSH) && req->loop == loop_main && nbd->unfinished_ns == loop_main->now_ns)
        return request_up(req, -EIO);
    struct nbd_frame *frame = request_frame(req, node);

    frame->req = req;
    frame->operation = (struct nbd_operation){
        .nbd = nbd,
        .loop = req->loop,
        .done = nbd_done,
        .iov = req->iov,
        .extents = req->extents,
        .offset = req->offset,
        .length = req->length,
        .flags = req->flags,
        .iov_count = req->iov_count,
        .op = req->op,
    };
    int result = nbd_submit(&frame->operation);

    return unlikely(result < 0) ? request_up(req, result) : STEP_HELD;
}

/* Nothing to see: the frame was the operation's memory. */
static enum step nbd_after(struct node *node, struct request *req, void *scratch)
{
    (void)node;
    (void)req;
    (void)scratch;
    return STEP_UP;
}

/* Called on every loop: what its connection holds does not wait for long now, or may wait again. */
static void nbd_quiesce(struct node *node, bool begin)
{
    struct nbd *nbd = node->state;
    struct nbd_connection *connection = nbd->local[loop_current()->index];

    atomic_store_explicit(&nbd->quiesced, begin, memory_order_relaxed);
    if (connection)
        nbd_limit(connection);
}

/* Properties. */

static const struct nbd *nbd_of(const struct object *object)
{
    return container_of(object, struct node, object)->state;
}

static int nbd_get_connected(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    *ret = (struct object_value){.kind = OBJECT_BOOL, .boolean = atomic_load(&nbd_of(object)->connected) > 0};
    return 0;
}

static int nbd_get_connections(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    *ret = (struct object_value){.kind = OBJECT_SIZE, .size = atomic_load(&nbd_of(object)->connected)};
    return 0;
}

static int nbd_get_reconnects(const struct object *object, struct object_value *ret, struct error *err)
{
    (void)err;
    *ret = (struct object_value){.kind = OBJECT_SIZE, .size = atomic_load(&nbd_of(object)->reconnects)};
    return 0;
}

static int nbd_get_last_error(const struct object *object, struct object_value *ret, struct error *err)
{
    struct nbd *nbd = container_of(object, struct node, object)->state;

    (void)err;
    pthread_mutex_lock(&nbd->guard);
    *ret =
        (struct object_value){.kind = OBJECT_STRING, .string = memory_string(nbd->last_error ? nbd->last_error : "")};
    pthread_mutex_unlock(&nbd->guard);
    return 0;
}

/* As RFC 3986 wants it: the caller's. */
static char *nbd_uri_encode(const char *text)
{
    static const char plain[] = "-._~/:@";
    char *encoded = memory_array(strlen(text) + 1, 3), *end = encoded;

    for (; *text; text++) {
        if (isalnum((unsigned char)*text) || strchr(plain, *text))
            *end++ = *text;
        else
            end += sprintf(end, "%%%02X", (unsigned char)*text);
    }
    return encoded;
}

/* The NBD URI of the export, which other programs take as well. */
static int nbd_show_uri(const struct object *object, struct object_value *ret, struct error *err)
{
    const struct nbd_options *options = nbd_of(object)->options;
    const struct socket_address *server = options->server;
    AUTO_FREE char *export = nbd_uri_encode(options->export);

    (void)err;
    ret->kind = OBJECT_STRING;
    if (server->type == SOCKET_ADDRESS_TYPE_UNIX) {
        AUTO_FREE char *path = nbd_uri_encode(server->u.unix_.path);

        ret->string = memory_format("nbd+unix:///%s?socket=%s", export, path);
    } else {
        bool bracketed = strchr(server->u.inet.host, ':') != NULL;

        ret->string = memory_format("nbd://%s%s%s:%s/%s", bracketed ? "[" : "", server->u.inet.host,
                                    bracketed ? "]" : "", server->u.inet.port, export);
    }
    return 0;
}

static const struct object_property nbd_properties[] = {
    {"uri", "string", nbd_show_uri, NULL},
    {"connected", "bool", nbd_get_connected, NULL},
    {"connections", "uint64", nbd_get_connections, NULL},
    {"reconnects", "uint64", nbd_get_reconnects, NULL},
    {"last-error", "string", nbd_get_last_error, NULL},
    {NULL, NULL, NULL, NULL},
};

const struct driver nbd_driver = {
    .name = "nbd",
    .kind = DRIVER_PROTOCOL,
    .ops = (1u << REQ_OP_COUNT) - 1,
    .request_flags = REQ_FUA | REQ_MAY_UNMAP | REQ_FAST_ONLY | REQ_UNCHANGED,
    .state_size = sizeof(struct nbd),
    .scratch_size = sizeof(struct nbd_frame),
    .open = nbd_open,
    .close = nbd_close_node,
    .finish = nbd_finish_node,
    .map = nbd_map,
    .slow = nbd_slow,
    .after = nbd_after,
    .quiesce = nbd_quiesce,
    .properties = nbd_properties,
};
