/*
 * Changes of the graph: names, permissions, what is refused, what a drain
 * waits for; consumers while they are paused, late and detached; grace
 * periods. Null disks on a real loop.
 */
#include "core/consumer.h"
#include "core/grace.h"
#include "core/source.h"
#include "tests/unit/node_harness.h"

#define SLOW_NS 20000000u

static struct node_options null_options(uint64_t latency_ns)
{
    return (struct node_options){.driver = NODE_DRIVER_NULL_CO,
                                 .discard = NODE_DISCARD_UNMAP,
                                 .u.null_co = {.size = MIB, .latency_ns = latency_ns}};
}

static struct node *add_null(const char *name, uint64_t latency_ns)
{
    struct node_options options = null_options(latency_ns);
    AUTO_ERROR struct error err = {0};
    struct node *node = NULL;

    ck_assert_msg(try_open(name, &options, &node, &err) == 0, "%s", err.text);
    return node;
}

static int add_raw(const char *name, const char *file, bool read_only, struct node **ret, struct error *err)
{
    struct node_ref ref = {.name = (char *)(uintptr_t)file};
    struct node_options options = {.driver = NODE_DRIVER_RAW, .read_only = read_only, .u.raw.file = &ref};

    return try_open(name, &options, ret, err);
}

static void fails_with(int result, struct error *err, const char *text)
{
    ck_assert_int_lt(result, 0);
    ck_assert_ptr_nonnull(err->text);
    ck_assert_msg(strstr(err->text, text), "'%s' does not say '%s'", err->text, text);
    error_clear(err);
}

/* A consumer as an export is one. */

struct user {
    struct consumer consumer;
    const char *name;
    unsigned resumed;
};

static const char *user_name(const struct consumer *consumer)
{
    return ((const struct user *)consumer->object)->name;
}

static void user_resumed(struct consumer *consumer, struct loop *loop)
{
    (void)loop;
    ((struct user *)consumer->object)->resumed++;
}

static const struct consumer_ops user_ops = {.kind = "user", .name = user_name, .resumed = user_resumed};

static int user_attach(struct user *user, const char *name, const char *node, struct permission want, struct error *err)
{
    struct change *change = change_new();

    user->name = name;
    consumer_init(&user->consumer, &user_ops, user, want);
    int result = consumer_attach(change, &user->consumer, node, err);

    if (result == 0)
        return change_apply(change, err);
    change_abort(change);
    return result;
}

static void user_detach(struct user *user)
{
    AUTO_ERROR struct error err = {0};
    struct change *change = change_new();

    consumer_detach(change, &user->consumer);
    ck_assert_int_eq(change_apply(change, &err), 0);
}

struct io {
    bool done;
    unsigned order;
    struct request req;
    unsigned char scratch[256];
};

static unsigned io_finished;

static void io_done(struct request *req)
{
    struct io *io = container_of(req, struct io, req);

    io->done = true;
    io->order = ++io_finished;
}

static void io_start(struct io *io, struct user *user, uint8_t op, uint64_t offset, uint64_t length)
{
    memset(io, 0, sizeof(*io));
    io->req = (struct request){
        .op = op, .offset = offset, .length = length, .done = io_done, .scratch_size = sizeof(io->scratch)};
    consumer_submit(&user->consumer, &io->req);
}

static int io_wait(struct io *io)
{
    while (!io->done)
        coroutine_sleep(100000);
    return io->req.result;
}

static const struct permission writes = {.taken = PERM_READ | PERM_WRITE, .shared = PERM_ALL};
static const struct permission alone = {.taken = PERM_READ | PERM_WRITE, .shared = PERM_READ};

static void names(void)
{
    struct node_options options = null_options(0);
    AUTO_ERROR struct error err = {0};
    struct node *node = add_null("a", 0), *other = NULL;

    fails_with(try_open("a", &options, &other, &err), &err, "Duplicate nodes with node-name='a'");
    fails_with(try_open("1a", &options, &other, &err), &err, "Invalid node-name: '1a'");
    fails_with(try_open("a b", &options, &other, &err), &err, "Invalid node-name: 'a b'");
    fails_with(try_open("", &options, &other, &err), &err, "Invalid node-name: ''");
    fails_with(try_open(NULL, &options, &other, &err), &err, "node-name");
    fails_with(add_raw("r", "nope", false, &other, &err), &err, "node-name='nope'");
    ck_assert_ptr_null(node_find("r"));
    close_node(node);
    ck_assert_ptr_null(node_find("a"));
}

static void permissions(void)
{
    AUTO_ERROR struct error err = {0};
    struct node *node = add_null("a", 0), *raw = NULL, *read_only = NULL;
    struct user one = {0}, two = {0}, three = {0};

    ck_assert_int_eq(add_raw("raw", "a", false, &raw, &err), 0);
    ck_assert_int_eq(add_raw("ro", "a", true, &read_only, &err), 0);
    ck_assert_int_eq(user_attach(&one, "one", "raw", alone, &err), 0);
    fails_with(user_attach(&two, "two", "a", writes, &err), &err,
               "Conflicts with use by node 'raw' as 'file', which does not allow 'write' on node 'a'");
    fails_with(user_attach(&three, "three", "ro", writes, &err), &err, "Block node 'ro' is read-only");
    ck_assert_ptr_null(two.consumer.edge.child);
    fails_with(node_resize(node, 2 * MIB, &err), &err, "which does not allow 'resize' on node 'a'");
    user_detach(&one);
    ck_assert_int_eq(node_resize(raw, 2 * MIB, &err), 0);
    ck_assert_uint_eq(node->size, 2 * MIB);
    ck_assert_uint_eq(read_only->size, 2 * MIB);
    consumer_destroy(&one.consumer);
    consumer_destroy(&two.consumer);
    consumer_destroy(&three.consumer);
    close_node(read_only);
    close_node(raw);
    close_node(node);
}

static void in_use(void)
{
    AUTO_ERROR struct error err = {0};
    struct node *node = add_null("a", 0), *raw = NULL;

    ck_assert_int_eq(add_raw("raw", "a", false, &raw, &err), 0);
    struct change *change = change_new();

    fails_with(node_remove(change, node, &err), &err, "Node a is in use");
    /* Both at once is fine, from the top. */
    ck_assert_int_eq(node_remove(change, raw, &err), 0);
    ck_assert_int_eq(node_remove(change, node, &err), 0);
    change_abort(change);
    ck_assert_ptr_eq(node_find("raw"), raw);
    ck_assert_ptr_eq(raw->children[0]->child, node);
    change = change_new();
    ck_assert_int_eq(node_remove(change, raw, &err), 0);
    ck_assert_int_eq(node_remove(change, node, &err), 0);
    ck_assert_int_eq(change_apply(change, &err), 0);
    ck_assert(list_is_empty(&node_registry));
}

/* A node that is defined inside another goes with it once, also if it is its child twice. */
static void twice_inside(void)
{
    AUTO_ERROR struct error err = {0};
    struct node_options inside = null_options(0), options = {.driver = NODE_DRIVER_QUORUM};
    struct node_ref refs[2] = {{.node = &inside}, {.name = (char *)(uintptr_t) "inside"}};
    struct node_ref *children[] = {&refs[0], &refs[1]};
    struct node *node = NULL;

    inside.node_name = refs[1].name;
    options.u.quorum.children.count = 2;
    options.u.quorum.children.items = children;
    options.u.quorum.vote_threshold = 1;
    ck_assert_msg(try_open("q", &options, &node, &err) == 0, "%s", err.text);
    close_node(node);
    ck_assert(list_is_empty(&node_registry));
}

static void draining(void)
{
    AUTO_ERROR struct error err = {0};
    struct node *node = add_null("a", SLOW_NS);
    struct user user = {0};
    struct io io[3];

    ck_assert_int_eq(user_attach(&user, "client", "a", writes, &err), 0);
    io_start(&io[0], &user, REQ_FLUSH, 0, 0);
    ck_assert(!io[0].done);
    /* The change waits for it. */
    ck_assert_int_eq(node_resize(node, 2 * MIB, &err), 0);
    ck_assert(io[0].done);
    ck_assert_uint_eq(user.resumed, 1);
    /* A limit that the request exceeds: refused by name, and all goes on. */
    change_drain_limit_ns = SLOW_NS / 20;
    io_start(&io[1], &user, REQ_FLUSH, 0, 0);
    fails_with(node_resize(node, 4 * MIB, &err), &err, "user 'client' still has 1 requests in flight");
    change_drain_limit_ns = 30000000000u;
    ck_assert_uint_eq(node->size, 2 * MIB);
    io_start(&io[2], &user, REQ_DISCARD, 0, 2 * MIB);
    ck_assert_int_eq(io_wait(&io[1]), 0);
    ck_assert_int_eq(io_wait(&io[2]), 0);
    user_detach(&user);
    io_start(&io[0], &user, REQ_FLUSH, 0, 0);
    ck_assert(io[0].done);
    ck_assert_int_eq(io[0].req.result, -ESHUTDOWN);
    consumer_destroy(&user.consumer);
    close_node(node);
}

struct parking {
    struct user *user;
    struct io io[4];
};

/* Runs while the other coroutine waits for the drain. */
static void park(void *arg)
{
    struct parking *parking = arg;

    coroutine_sleep(SLOW_NS / 4);
    ck_assert(consumer_paused(&parking->user->consumer, loop_current()));
    for (unsigned i = 1; i < 4; i++)
        io_start(&parking->io[i], parking->user, REQ_DISCARD, (uint64_t)i * MIB, MIB);
}

static void parked(void)
{
    AUTO_ERROR struct error err = {0};
    struct node *node = add_null("a", SLOW_NS);
    struct user user = {0};
    struct parking parking = {.user = &user};

    ck_assert_int_eq(user_attach(&user, "client", "a", writes, &err), 0);
    io_start(&parking.io[0], &user, REQ_FLUSH, 0, 0);
    coroutine_start(loop_current(), park, &parking);
    /* What was parked sees the new size, not the one that it was sent under. */
    ck_assert_int_eq(node_resize(node, 3 * MIB, &err), 0);
    ck_assert(!parking.io[1].done);
    io_finished = 0;
    ck_assert_int_eq(io_wait(&parking.io[1]), 0);
    ck_assert_int_eq(io_wait(&parking.io[2]), 0);
    ck_assert_int_eq(io_wait(&parking.io[3]), -EIO);
    ck_assert_uint_lt(parking.io[1].order, parking.io[2].order);
    user_detach(&user);
    consumer_destroy(&user.consumer);
    close_node(node);
}

static void grace(void)
{
    AUTO_ERROR struct error err = {0};
    struct node *node = add_null("a", SLOW_NS);
    struct user user = {0};
    struct io io[2];

    ck_assert_int_eq(user_attach(&user, "client", "a", writes, &err), 0);
    io_start(&io[0], &user, REQ_FLUSH, 0, 0);
    grace_wait();
    ck_assert(io[0].done);
    /* It stops nobody: what begins later is not waited for. */
    io_start(&io[0], &user, REQ_FLUSH, 0, 0);
    coroutine_sleep(SLOW_NS / 2);
    grace_wait();
    ck_assert(io[0].done);
    ck_assert_int_eq(io_wait(&io[0]), 0);
    user_detach(&user);
    consumer_destroy(&user.consumer);
    close_node(node);
}

static void sources(void)
{
    AUTO_ERROR struct error err = {0};
    struct node *node = add_null("a", 0), *other = NULL;
    struct source *source = NULL;
    struct user user = {0};
    struct change *change = change_new();

    ck_assert_int_eq(source_add(change, "s", "a", &source, &err), 0);
    ck_assert_int_eq(change_apply(change, &err), 0);
    ck_assert_int_eq(user_attach(&user, "client", "s", writes, &err), 0);
    ck_assert_ptr_eq(user.consumer.edge.child, node);
    change = change_new();
    fails_with(source_remove(change, source, &err), &err, "Source 's' is in use by user 'client'");
    fails_with(source_add(change, "s", "a", &source, &err), &err, "already exists");
    fails_with(source_add(change, "a", "a", &source, &err), &err, "name of a node");
    fails_with(node_remove(change, node, &err), &err, "Node a is in use");
    change_abort(change);
    fails_with(add_raw("s", "a", false, &other, &err), &err, "Node name 's' is the id of a source");
    user_detach(&user);
    change = change_new();
    ck_assert_int_eq(source_remove(change, source_find("s"), &err), 0);
    ck_assert_int_eq(node_remove(change, node, &err), 0);
    ck_assert_int_eq(change_apply(change, &err), 0);
    ck_assert_ptr_null(source_find("s"));
    consumer_destroy(&user.consumer);
}

/* Actions of one change see what those before them make of a source, and of who holds it. */
static void source_steps(void)
{
    AUTO_ERROR struct error err = {0};
    struct node *a = add_null("a", 0), *b = add_null("b", 0);
    struct source *source = NULL, *again = NULL;
    struct user user = {0};
    struct change *change = change_new();

    ck_assert_int_eq(source_add(change, "s", "a", &source, &err), 0);
    ck_assert_int_eq(change_apply(change, &err), 0);

    /* Who comes is led along. */
    change = change_new();
    user.name = "client";
    consumer_init(&user.consumer, &user_ops, &user, writes);
    ck_assert_int_eq(consumer_attach(change, &user.consumer, "s", &err), 0);
    ck_assert_int_eq(source_move(change, source, b, &err), 0);
    ck_assert_int_eq(change_apply(change, &err), 0);
    ck_assert_ptr_eq(source->top.child, b);
    ck_assert_ptr_eq(user.consumer.edge.child, b);

    /* Who goes is not. */
    change = change_new();
    consumer_detach(change, &user.consumer);
    ck_assert_int_eq(source_move(change, source, a, &err), 0);
    ck_assert_int_eq(change_apply(change, &err), 0);
    ck_assert_ptr_eq(source->top.child, a);
    ck_assert_ptr_null(user.consumer.edge.child);
    ck_assert(list_is_empty(&b->parents));

    /* Who comes is a user already, but not if it came to nothing. */
    change = change_new();
    ck_assert_int_eq(consumer_attach(change, &user.consumer, "s", &err), 0);
    fails_with(source_remove(change, source, &err), &err, "Source 's' is in use by user 'client'");
    change_abort(change);
    change = change_new();
    ck_assert_int_eq(source_remove(change, source, &err), 0);
    fails_with(consumer_attach(change, &user.consumer, "s", &err), &err, "node-name='s'");
    ck_assert_ptr_null(source_find("s"));
    ck_assert_int_eq(source_add(change, "s", "b", &again, &err), 0);
    ck_assert_ptr_eq(source_find("s"), again);
    change_abort(change);
    ck_assert_ptr_eq(source_find("s"), source);

    /* The user and the source at once. */
    change = change_new();
    ck_assert_int_eq(consumer_attach(change, &user.consumer, "s", &err), 0);
    ck_assert_int_eq(change_apply(change, &err), 0);
    change = change_new();
    consumer_detach(change, &user.consumer);
    ck_assert_int_eq(source_remove(change, source, &err), 0);
    ck_assert_int_eq(source_add(change, "s", "b", &again, &err), 0);
    ck_assert_int_eq(change_apply(change, &err), 0);
    ck_assert_ptr_eq(source_find("s"), again);
    ck_assert_ptr_null(user.consumer.edge.child);
    consumer_destroy(&user.consumer);

    change = change_new();
    ck_assert_int_eq(source_remove(change, again, &err), 0);
    ck_assert_int_eq(node_remove(change, a, &err), 0);
    ck_assert_int_eq(node_remove(change, b, &err), 0);
    ck_assert_int_eq(change_apply(change, &err), 0);
}

static bool looking;

static void look_at_sources(void *arg)
{
    const struct source *source;

    (void)arg;
    while (looking) {
        list_for_each(source, &source_registry, in_registry)
            ck_assert_ptr_nonnull(source->top.child);
        coroutine_sleep(1);
    }
}

/* Others see whole sources only, also while those who were drained are let go on. */
static void source_is_whole(void)
{
    AUTO_ERROR struct error err = {0};
    struct node *node = add_null("a", 0);
    struct source *source = NULL;
    struct user user = {0};
    struct change *change = change_new();

    ck_assert_int_eq(source_add(change, "s", "a", &source, &err), 0);
    ck_assert_int_eq(change_apply(change, &err), 0);
    ck_assert_int_eq(user_attach(&user, "client", "a", writes, &err), 0);
    looking = true;
    coroutine_start(loop_current(), look_at_sources, NULL);
    change = change_new();
    ck_assert_int_eq(source_remove(change, source, &err), 0);
    change_touch(change, node);
    ck_assert_int_eq(change_apply(change, &err), 0);
    looking = false;
    coroutine_sleep(1000000);
    user_detach(&user);
    consumer_destroy(&user.consumer);
    close_node(node);
}

/* A crowd of requests that wait takes no more stacks than there may be: those beyond are refused, and all goes on. */
static void crowded(void)
{
    AUTO_ERROR struct error err = {0};
    struct node *node = add_null("a", SLOW_NS);
    struct user user = {0};
    struct io io[8];
    unsigned limit = coroutine_limit, refused = 0;

    ck_assert_int_eq(user_attach(&user, "client", "a", writes, &err), 0);
    coroutine_limit = 4;
    for (unsigned i = 0; i < array_size(io); i++) {
        io_start(&io[i], &user, REQ_FLUSH, 0, 0);
        ck_assert(!io[i].done || io[i].req.result == -ENOMEM);
        refused += io[i].done;
    }
    ck_assert_uint_ge(refused, 4);
    ck_assert_uint_lt(refused, 8);
    for (unsigned i = 0; i < array_size(io) - refused; i++)
        ck_assert_int_eq(io_wait(&io[i]), 0);
    io_start(&io[0], &user, REQ_FLUSH, 0, 0);
    ck_assert_int_eq(io_wait(&io[0]), 0);
    coroutine_limit = limit;
    user_detach(&user);
    consumer_destroy(&user.consumer);
    close_node(node);
}

BOTH_RINGS(names)
BOTH_RINGS(permissions)
BOTH_RINGS(in_use)
BOTH_RINGS(twice_inside)
BOTH_RINGS(draining)
BOTH_RINGS(parked)
BOTH_RINGS(grace)
BOTH_RINGS(sources)
BOTH_RINGS(source_steps)
BOTH_RINGS(source_is_whole)
BOTH_RINGS(crowded)

int main(void)
{
    const TTest *const all[] = {test_names,        test_permissions,     test_in_use, test_twice_inside,
                                test_draining,     test_parked,          test_grace,  test_sources,
                                test_source_steps, test_source_is_whole, test_crowded};

    return run_tests("change", all, array_size(all));
}
