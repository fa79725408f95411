/*
 * The walk of a request: frames and their order, what after() may answer,
 * requests that are held, layers that wait inside of layers that wait, and
 * what core does in place of a driver. Nodes are made by hand, with drivers
 * that write down what arrives.
 */
#include <inttypes.h>
#include <stdarg.h>

#include "core/driver.h"
#include "core/request_side.h"
#include "generated/options.h"
#include "tests/unit/node_harness.h"

#define SIZE (64u * MIB)
#define LONG_CHAIN 5000u
#define ALL_OPS ((1u << REQ_OP_COUNT) - 1)
#define ALL_FLAGS (REQ_FUA | REQ_MAY_UNMAP | REQ_FAST_ONLY | REQ_UNCHANGED | REQ_COMPRESSED | REQ_FILL)

static char history[1024];

__attribute__((format(printf, 1, 2))) static void note(const char *format, ...)
{
    size_t used = strlen(history);
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(history + used, sizeof(history) - used, format, arguments);
    va_end(arguments);
    ck_assert_uint_lt(strlen(history), sizeof(history) - 1);
}

/* What is written down so far, and a new page. */
static void noted(const char *text)
{
    ck_assert_str_eq(history, text);
    history[0] = 0;
}

/* One layer. */

struct layer {
    struct node node;
    struct driver driver;
    struct node_options options;
    struct node_cache cache;
    struct edge below, beside;      /* beside: where after() may go */
    struct edge *children[2];
    char name;
    int fails;                      /* errno of the next request that ends here; 0 = none */
    unsigned passes;                /* times that after() goes down again */
    struct request *held;
};

static struct layer *layer_of(struct node *node)
{
    return container_of(node, struct layer, node);
}

static void layer_make(struct layer *layer, char name, struct layer *below, const struct driver *driver)
{
    *layer = (struct layer){.name = name, .driver = *driver};
    layer->options = (struct node_options){.discard = NODE_DISCARD_UNMAP, .cache = &layer->cache};
    layer->node.driver = &layer->driver;
    layer->node.map = driver->map;
    layer->node.size = SIZE;
    layer->node.options = &layer->options;
    layer->node.children = layer->children;
    list_init(&layer->node.parents);
    layer->below.child = below ? &below->node : NULL;
    layer->children[0] = &layer->below;
    layer->children[1] = &layer->beside;
    layer->node.scratch_need =
        (uint16_t)((below ? below->node.scratch_need : 0) + (driver->after ? FRAME_SIZE(driver->scratch_size) : 0));
    request_side_update(&layer->node);
}

static const char *const op_names[REQ_OP_COUNT] = {"read", "write", "flush", "discard", "zero", "status", "prefetch"};

/* Ends requests; writes down all of them. */
static enum step end_map(struct node *node, struct request *req)
{
    struct layer *layer = layer_of(node);
    int result = -layer->fails;

    note("%c:%s", layer->name, op_names[req->op]);
    if (req->op != REQ_FLUSH)
        note(" %" PRIu64 "+%" PRIu64, req->offset, req->length);
    if (req->flags)
        note(" f%u", req->flags);
    note(";");
    layer->fails = 0;
    return request_up(req, result);
}

static const struct driver end_driver = {.name = "end", .ops = ALL_OPS, .request_flags = ALL_FLAGS, .map = end_map};

static enum step pass_map(struct node *node, struct request *req)
{
    struct layer *layer = layer_of(node);

    req->offset += 100;
    return request_down(req, &layer->below);
}

static const struct driver pass_driver = {.name = "pass", .ops = ALL_OPS, .request_flags = ALL_FLAGS, .map = pass_map};

/* Sees the way up. The frame is filled to its last byte, and looked at again. */

struct frame_content {
    uint64_t offset;
    unsigned char filling[37];
    char name;
};

static enum step frame_map(struct node *node, struct request *req)
{
    struct layer *layer = layer_of(node);
    struct frame_content *frame = request_frame(req, node);

    ck_assert_uint_eq((uintptr_t)frame % 16, 0);
    frame->offset = req->offset;
    frame->name = layer->name;
    memset(frame->filling, layer->name, sizeof(frame->filling));
    req->offset += 1000;
    return request_down(req, &layer->below);
}

static enum step frame_after(struct node *node, struct request *req, void *scratch)
{
    struct layer *layer = layer_of(node);
    const struct frame_content *frame = scratch;

    ck_assert_int_eq(frame->name, layer->name);
    for (unsigned i = 0; i < sizeof(frame->filling); i++)
        ck_assert_int_eq(frame->filling[i], layer->name);
    note("%c<%d;", layer->name, req->result);
    if (layer->passes) {
        layer->passes--;
        req->offset = frame->offset;
        return request_down(req, layer->beside.child ? &layer->beside : &layer->below);
    }
    return STEP_UP;
}

static const struct driver frame_driver = {
    .name = "frame",
    .ops = ALL_OPS,
    .request_flags = ALL_FLAGS,
    .scratch_size = sizeof(struct frame_content),
    .map = frame_map,
    .after = frame_after,
};

/* Requests. */

struct ask {
    bool done;
    struct request req;
    unsigned char scratch[SCRATCH_MAX];
};

static struct ask ask;

static void ask_done(struct request *req)
{
    ck_assert_uint_eq(req->scratch_used, 0);
    ck_assert(!ask.done);
    ask.done = true;
}

static void ask_start(struct layer *top, uint8_t op, uint32_t flags)
{
    static struct edge edge;
    static unsigned char data[4096];
    static struct iovec iov = {.iov_base = data, .iov_len = sizeof(data)};
    bool carries = op == REQ_READ || op == REQ_WRITE;

    memset(&ask, 0, sizeof(ask));
    memset(data, 1, sizeof(data));
    edge.child = &top->node;
    ask.req = (struct request){.edge = &edge,
                               .length = sizeof(data),
                               .iov = carries ? &iov : NULL,
                               .iov_count = carries,
                               .loop = loop_current(),
                               .op = op,
                               .flags = flags,
                               .done = ask_done,
                               .scratch_size = top->node.scratch_need};
    request_walk(&ask.req, STEP_DOWN);
}

static int ask_wait(void)
{
    while (!ask.done)
        coroutine_sleep(10000);
    return ask.req.result;
}

static int ask_now(struct layer *top, uint8_t op, uint32_t flags)
{
    ask_start(top, op, flags);
    ck_assert(ask.done);
    return ask.req.result;
}

/* Frames. */

static void frames(void)
{
    struct layer layers[5];

    layer_make(&layers[4], 'e', NULL, &end_driver);
    layer_make(&layers[3], 'd', &layers[4], &frame_driver);
    layer_make(&layers[2], 'c', &layers[3], &pass_driver);
    layer_make(&layers[1], 'b', &layers[2], &frame_driver);
    layer_make(&layers[0], 'a', &layers[1], &frame_driver);
    ck_assert_int_eq(ask_now(&layers[0], REQ_READ, 0), 0);
    noted("e:read 3100+4096;d<0;b<0;a<0;");
    layers[4].fails = EIO;
    ck_assert_int_eq(ask_now(&layers[0], REQ_WRITE, REQ_FUA), -EIO);
    noted("e:write 3100+4096 f1;d<-5;b<-5;a<-5;");
    ck_assert_int_eq(ask_now(&layers[0], REQ_FLUSH, 0), 0);
    noted("e:flush;d<0;b<0;a<0;");
}

/* A mirror, and a second try: the frame stays until after() answers UP. */
static void down_again(void)
{
    struct layer disk, copy, mirror, top;

    layer_make(&disk, 'd', NULL, &end_driver);
    layer_make(&copy, 'c', NULL, &end_driver);
    layer_make(&mirror, 'm', &disk, &frame_driver);
    layer_make(&top, 't', &mirror, &frame_driver);
    mirror.beside.child = &copy.node;
    mirror.passes = 1;
    ck_assert_int_eq(ask_now(&top, REQ_WRITE, 0), 0);
    noted("d:write 2000+4096;m<0;c:write 1000+4096;m<0;t<0;");
    mirror.passes = 1;
    copy.fails = ENOSPC;
    ck_assert_int_eq(ask_now(&top, REQ_WRITE, 0), -ENOSPC);
    noted("d:write 2000+4096;m<0;c:write 1000+4096;m<-28;t<-28;");
    /* From the top, the same way once more. */
    disk.fails = EIO;
    top.passes = 1;
    ck_assert_int_eq(ask_now(&top, REQ_READ, 0), 0);
    noted("d:read 2000+4096;m<-5;t<-5;d:read 1000+4096;m<0;t<0;");
}

/* A long chain is a loop: it needs no more stack than a short one. */
static void long_chain(void)
{
    struct layer *layers = memory_array(LONG_CHAIN + 1, sizeof(*layers));

    layer_make(&layers[LONG_CHAIN], 'e', NULL, &end_driver);
    for (unsigned i = LONG_CHAIN; i > 0; i--)
        layer_make(&layers[i - 1], 'p', &layers[i], &pass_driver);
    ck_assert_int_eq(ask_now(&layers[0], REQ_READ, 0), 0);
    noted("e:read 500000+4096;");
    free(layers);
}

/* Held. */

static enum step hold_map(struct node *node, struct request *req)
{
    layer_of(node)->held = req;
    note("%c...;", layer_of(node)->name);
    return STEP_HELD;
}

static const struct driver hold_driver = {.name = "hold", .ops = ALL_OPS, .request_flags = ALL_FLAGS, .map = hold_map};

static void held(void)
{
    struct layer disk, hold, top;

    layer_make(&disk, 'd', NULL, &end_driver);
    layer_make(&hold, 'h', &disk, &hold_driver);
    layer_make(&top, 't', &hold, &frame_driver);
    ask_start(&top, REQ_READ, 0);
    ck_assert(!ask.done);
    noted("h...;");
    request_resume(hold.held, request_down(hold.held, &hold.below));
    ck_assert(ask.done);
    noted("d:read 1000+4096;t<0;");
    ask_start(&top, REQ_READ, 0);
    ck_assert(!ask.done);
    request_resume(hold.held, request_up(hold.held, -ENOLINK));
    ck_assert(ask.done);
    ck_assert_int_eq(ask.req.result, -ENOLINK);
    noted("h...;t<-67;");
}

/* Waiting. */

static enum step slow_map(struct node *node, struct request *req)
{
    (void)node;
    (void)req;
    return STEP_SLOW;
}

static enum step slow_slow(struct node *node, struct request *req)
{
    struct layer *layer = layer_of(node);
    unsigned char byte = 0;

    ck_assert_ptr_nonnull(coroutine_self());
    note("%c(", layer->name);
    coroutine_sleep(1000);
    /* I/O of its own, through all that is below. */
    ck_assert_int_eq(edge_read(&layer->below, 7, &byte, 1), 0);
    note("%c);", layer->name);
    return pass_map(node, req);
}

static const struct driver slow_driver = {
    .name = "slow", .ops = ALL_OPS, .request_flags = ALL_FLAGS, .map = slow_map, .slow = slow_slow};

static enum step slow_holds(struct node *node, struct request *req)
{
    coroutine_sleep(1000);
    return hold_map(node, req);
}

static void waiting(void)
{
    struct layer disk, lower, middle, upper;
    struct driver slow_hold_driver = slow_driver;

    layer_make(&disk, 'd', NULL, &end_driver);
    layer_make(&lower, 'l', &disk, &slow_driver);
    layer_make(&middle, 'm', &lower, &frame_driver);
    layer_make(&upper, 'u', &middle, &slow_driver);
    ask_start(&upper, REQ_WRITE, 0);
    ck_assert(!ask.done);
    ck_assert_int_eq(ask_wait(), 0);
    noted("u(l(d:read 7+1;l);d:read 1107+1;m<0;u);"
          "l(d:read 7+1;l);d:write 1200+4096;m<0;");
    /* It may also hand the request on to somebody who keeps it. */
    slow_hold_driver.slow = slow_holds;
    layer_make(&upper, 'u', &disk, &slow_hold_driver);
    ask_start(&upper, REQ_WRITE, 0);
    while (!upper.held)
        coroutine_sleep(10000);
    ck_assert(!ask.done);
    request_resume(upper.held, request_up(upper.held, -EIO));
    ck_assert_int_eq(ask_wait(), -EIO);
    noted("u...;");
}

/* What core does. */

/* A driver that has only some of it. */
static void lacking(struct layer *layer, uint32_t ops, uint32_t flags)
{
    struct driver driver = end_driver;

    driver.ops = ops;
    driver.request_flags = flags;
    layer_make(layer, 'd', NULL, &driver);
}

static void emulated_fua(void)
{
    struct layer disk;

    lacking(&disk, ALL_OPS, REQ_MAY_UNMAP);
    ask_start(&disk, REQ_WRITE, REQ_FUA);
    ck_assert_int_eq(ask_wait(), 0);
    noted("d:write 0+4096;d:flush;");
    ask_start(&disk, REQ_WRITE_ZEROES, REQ_FUA | REQ_MAY_UNMAP);
    ck_assert_int_eq(ask_wait(), 0);
    noted("d:zero 0+4096 f2;d:flush;");
    ask_start(&disk, REQ_DISCARD, REQ_FUA);
    ck_assert_int_eq(ask_wait(), 0);
    noted("d:discard 0+4096;d:flush;");
    /* Nothing to flush where nothing was written. */
    disk.fails = ENOSPC;
    ask_start(&disk, REQ_WRITE, REQ_FUA);
    ck_assert_int_eq(ask_wait(), -ENOSPC);
    noted("d:write 0+4096;");
    /* No coroutine where the flag means nothing. */
    ck_assert_int_eq(ask_now(&disk, REQ_READ, 0), 0);
    noted("d:read 0+4096;");
}

static int flush_fails;

static enum step flush_fails_map(struct node *node, struct request *req)
{
    return req->op == REQ_FLUSH && flush_fails ? request_up(req, -flush_fails) : end_map(node, req);
}

/* The data is not known to be safe: the write has failed. */
static void emulated_fua_without_flush(void)
{
    struct driver driver = end_driver;
    struct layer disk;

    driver.request_flags = 0;
    driver.map = flush_fails_map;
    layer_make(&disk, 'd', NULL, &driver);
    flush_fails = EIO;
    ask_start(&disk, REQ_WRITE, REQ_FUA);
    ck_assert_int_eq(ask_wait(), -EIO);
    noted("d:write 0+4096;");
}

/* Writes of zeroes are looked at: nothing but zeroes, each byte of the range once, in order. */

static uint64_t zeroes_to;
static unsigned zeroes_pieces, zeroes_fail_at;
static uint32_t zeroes_flags;

static enum step zeroes_map(struct node *node, struct request *req)
{
    if (req->op != REQ_WRITE)
        return end_map(node, req);
    ck_assert_uint_eq(req->offset, zeroes_to);
    for (unsigned i = 0; i < req->iov_count; i++) {
        const unsigned char *data = req->iov[i].iov_base;

        ck_assert_int_eq(data[0], 0);
        ck_assert(memcmp(data, data + 1, req->iov[i].iov_len - 1) == 0);
        zeroes_to += req->iov[i].iov_len;
    }
    ck_assert_uint_eq(req->offset + req->length, zeroes_to);
    zeroes_flags |= req->flags;
    return request_up(req, ++zeroes_pieces == zeroes_fail_at ? -ENOSPC : 0);
}

static int zeroes(struct layer *disk, uint64_t offset, uint64_t length, uint32_t flags)
{
    struct edge edge = {.child = &disk->node};

    zeroes_to = offset;
    zeroes_pieces = zeroes_flags = 0;
    return edge_write_zeroes(&edge, offset, length, flags);
}

static void emulated_zeroes(void)
{
    static const struct {
        uint64_t offset, length;
    } ranges[] = {{0, 1}, {511, 4097}, {0, 65536}, {1, 65537}, {4096, 4 * MIB}, {3, 4 * MIB + 1}, {0, SIZE}};
    struct driver driver = end_driver;
    struct layer disk;

    driver.ops = ALL_OPS & ~REQ_BIT(REQ_WRITE_ZEROES);
    driver.map = zeroes_map;
    layer_make(&disk, 'd', NULL, &driver);
    for (unsigned i = 0; i < array_size(ranges); i++) {
        ck_assert_int_eq(zeroes(&disk, ranges[i].offset, ranges[i].length, REQ_FUA | REQ_MAY_UNMAP), 0);
        ck_assert_uint_eq(zeroes_to, ranges[i].offset + ranges[i].length);
        ck_assert_uint_eq(zeroes_flags, REQ_FUA);
    }
    /* The first piece that fails is the last one. */
    zeroes_fail_at = 2;
    ck_assert_int_eq(zeroes(&disk, 0, SIZE, 0), -ENOSPC);
    ck_assert_uint_eq(zeroes_pieces, 2);
    zeroes_fail_at = 0;
    /* Writing is what the caller would do without us. */
    ck_assert_int_eq(zeroes(&disk, 0, SIZE, REQ_FAST_ONLY), -ENOTSUP);
    ck_assert_uint_eq(zeroes_pieces, 0);
    noted("");
}

static void other_ops(void)
{
    struct extent extents[4];
    struct extent_list list = {.limit = array_size(extents), .extents = extents};
    struct layer disk;
    struct edge edge = {.child = &disk.node};

    lacking(&disk, REQ_BIT(REQ_READ) | REQ_BIT(REQ_WRITE), ALL_FLAGS & ~(uint32_t)(REQ_COMPRESSED | REQ_FILL));
    ck_assert_int_eq(edge_status(&edge, 512, 4096, &list), 0);
    ck_assert_uint_eq(list.count, 1);
    ck_assert(extents[0].length == 4096 && extents[0].flags == 0);
    ck_assert_int_eq(ask_now(&disk, REQ_DISCARD, 0), 0);
    ck_assert_int_eq(ask_now(&disk, REQ_PREFETCH, 0), 0);
    ck_assert_int_eq(ask_now(&disk, REQ_FLUSH, 0), 0);
    ck_assert_int_eq(ask_now(&disk, REQ_WRITE, REQ_COMPRESSED), -ENOTSUP);
    ck_assert_int_eq(ask_now(&disk, REQ_WRITE, REQ_FILL), -ENOTSUP);
    noted("");
    ck_assert_int_eq(ask_now(&disk, REQ_WRITE, REQ_UNCHANGED), 0);
    noted("d:write 0+4096 f8;");
    lacking(&disk, ALL_OPS, REQ_FUA);
    ck_assert_int_eq(ask_now(&disk, REQ_WRITE_ZEROES, REQ_FAST_ONLY), -ENOTSUP);
    noted("");
}

/* Options and states of nodes. */

static void refused(void)
{
    static const uint8_t writing[] = {REQ_WRITE, REQ_DISCARD, REQ_WRITE_ZEROES};
    static const struct {
        uint32_t flag;
        int result;
    } states[] = {{NODE_READ_ONLY, -EPERM}, {NODE_CORRUPTED, -EIO}, {NODE_READ_ONLY | NODE_CORRUPTED, -EIO}};
    struct layer disk;

    for (unsigned s = 0; s < array_size(states); s++) {
        layer_make(&disk, 'd', NULL, &end_driver);
        disk.node.flags = states[s].flag;
        request_side_update(&disk.node);
        for (unsigned i = 0; i < array_size(writing); i++)
            ck_assert_int_eq(ask_now(&disk, writing[i], REQ_FUA), states[s].result);
        noted("");
        ck_assert_int_eq(ask_now(&disk, REQ_READ, 0), 0);
        ck_assert_int_eq(ask_now(&disk, REQ_FLUSH, 0), 0);
        noted("d:read 0+4096;d:flush;");
    }
}

static void options(void)
{
    struct layer disk;

    layer_make(&disk, 'd', NULL, &end_driver);
    disk.options.discard = NODE_DISCARD_IGNORE;
    request_side_update(&disk.node);
    ck_assert_int_eq(ask_now(&disk, REQ_DISCARD, 0), 0);
    noted("");
    ck_assert_int_eq(ask_now(&disk, REQ_WRITE_ZEROES, REQ_MAY_UNMAP | REQ_FUA), 0);
    noted("d:zero 0+4096 f1;");
    disk.options.discard = NODE_DISCARD_UNMAP;
    disk.cache.no_flush = true;
    request_side_update(&disk.node);
    ck_assert_int_eq(ask_now(&disk, REQ_FLUSH, 0), 0);
    ck_assert_int_eq(ask_now(&disk, REQ_WRITE, REQ_FUA), 0);
    noted("d:write 0+4096;");
    disk.cache.no_flush = false;
    disk.options.detect_zeroes = NODE_DETECT_ZEROES_UNMAP;
    request_side_update(&disk.node);
    ck_assert_int_eq(ask_now(&disk, REQ_WRITE, 0), 0);
    noted("d:write 0+4096;");

    struct edge edge = {.child = &disk.node};
    unsigned char nothing[4096] = {0};

    ck_assert_int_eq(edge_write(&edge, 8, nothing, sizeof(nothing), 0), 0);
    noted("d:zero 8+4096 f2;");
    disk.options.detect_zeroes = NODE_DETECT_ZEROES_ON;
    ck_assert_int_eq(edge_write(&edge, 8, nothing, sizeof(nothing), REQ_FUA), 0);
    noted("d:zero 8+4096 f1;");
}

/* Extents. */

START_TEST(extents)
{
    struct extent room[2];
    struct extent_list list = {.limit = 2, .extents = room};

    ck_assert(extent_add(&list, 10, EXTENT_HOLE));
    ck_assert(extent_add(&list, 20, EXTENT_HOLE));
    ck_assert(extent_add(&list, 5, 0));
    ck_assert(!extent_add(&list, 5, EXTENT_ZERO));
    /* What fits into the last one needs no room. */
    ck_assert(extent_add(&list, 7, 0));
    ck_assert_uint_eq(list.count, 2);
    ck_assert(room[0].length == 30 && room[0].flags == EXTENT_HOLE && room[1].length == 12 && room[1].flags == 0);
}
END_TEST

BOTH_RINGS(frames)
BOTH_RINGS(down_again)
BOTH_RINGS(long_chain)
BOTH_RINGS(held)
BOTH_RINGS(waiting)
BOTH_RINGS(emulated_fua)
BOTH_RINGS(emulated_fua_without_flush)
BOTH_RINGS(emulated_zeroes)
BOTH_RINGS(other_ops)
BOTH_RINGS(refused)
BOTH_RINGS(options)

int main(void)
{
    const TTest *const all[] = {test_frames,
                                test_down_again,
                                test_long_chain,
                                test_held,
                                test_waiting,
                                test_emulated_fua,
                                test_emulated_fua_without_flush,
                                test_emulated_zeroes,
                                test_other_ops,
                                test_refused,
                                test_options,
                                extents};

    return run_tests("walk", all, array_size(all));
}
