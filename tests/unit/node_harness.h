/*
 * What tests of nodes on real files share: a main loop on either ring, in
 * whose coroutine the test runs, and a file to open. Included by one test
 * program each.
 */
#ifndef TESTS_UNIT_NODE_HARNESS_H
#define TESTS_UNIT_NODE_HARNESS_H

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/change.h"
#include "core/coroutine.h"
#include "core/edge.h"
#include "core/error.h"
#include "core/loop.h"
#include "core/memory.h"
#include "core/node.h"
#include "generated/options.h"

#define MIB (1024u * 1024)

static char test_path[256];
static struct loop *test_loop;
static void (*test_body)(void);
/* What the loop's ring is given instead of its own functions; NULL leaves it alone. */
static const struct ring_ops *(*test_ring_ops)(const struct ring_ops *real);

static void run_entry(void *arg)
{
    (void)arg;
    test_body();
    test_loop->stop = true;
}

__attribute__((unused)) static void run_on(enum loop_ring ring, void (*body)(void))
{
    AUTO_ERROR struct error err = {0};

    loop_set_ring(ring);
    if (loop_create(&test_loop, "main", NULL, &err) < 0) {
        ck_assert_int_eq(ring, LOOP_RING_URING);
        return;
    }
    const struct ring_ops *real = test_loop->ring->ops;

    loop_set_current(test_loop);
    if (test_ring_ops)
        test_loop->ring->ops = test_ring_ops(real);
    test_body = body;
    coroutine_start(test_loop, run_entry, NULL);
    loop_run(test_loop);
    test_loop->ring->ops = real;
    loop_destroy(test_loop);
}

/* A Check test that runs a function of that name on both rings. */
#define BOTH_RINGS(name)                 \
    START_TEST(test_##name)              \
    {                                    \
        run_on(LOOP_RING_URING, name);   \
        run_on(LOOP_RING_THREADS, name); \
    }                                    \
    END_TEST

/* Nodes. */

/* The file of this test, all zeroes. */
__attribute__((unused)) static void make_file(uint64_t size)
{
    AUTO_CLOSE int fd = open(test_path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, (off_t)size), 0);
}

__attribute__((unused)) static int try_open(const char *name, const struct node_options *options, struct node **ret,
                                            struct error *err)
{
    struct change *change = change_new();
    struct node_options own = *options;

    own.node_name = (char *)(uintptr_t)name;
    int result = node_add(change, &own, ret, err);

    if (result < 0) {
        change_abort(change);
        return result;
    }
    return change_apply(change, err);
}

__attribute__((unused)) static struct node_options options_of(const char *path, bool direct)
{
    static struct node_cache cache;

    cache = (struct node_cache){.direct = direct};
    return (struct node_options){
        .driver = NODE_DRIVER_FILE,
        .discard = NODE_DISCARD_UNMAP,
        .cache = &cache,
        .u.file = {.filename = (char *)(uintptr_t)path},
    };
}

/* NULL if there is no O_DIRECT here. */
__attribute__((unused)) static struct node *open_node(const char *name, bool direct)
{
    struct node_options options = options_of(test_path, direct);
    AUTO_ERROR struct error err = {0};
    struct node *node = NULL;

    if (try_open(name, &options, &node, &err) < 0) {
        ck_assert_msg(direct, "%s", err.text);
        return NULL;
    }
    return node;
}

__attribute__((unused)) static void close_node(struct node *node)
{
    AUTO_ERROR struct error err = {0};
    struct change *change = change_new();

    ck_assert_int_eq(node_remove(change, node, &err), 0);
    ck_assert_int_eq(change_apply(change, &err), 0);
}

__attribute__((unused)) static uint64_t size_on_disk(void)
{
    struct stat st;

    ck_assert_int_eq(stat(test_path, &st), 0);
    return (uint64_t)st.st_size;
}

/* Runs tests on a file below TMPDIR; main()'s result. */
static int run_tests(const char *name, const TTest *const *all, unsigned count)
{
    const char *directory = getenv("TMPDIR");
    Suite *suite = suite_create(name);
    TCase *tests = tcase_create(name);

    snprintf(test_path, sizeof(test_path), "%s/cairn-%s-%d", directory ? directory : "/tmp", name, (int)getpid());
    for (unsigned i = 0; i < count; i++)
        tcase_add_test(tests, all[i]);
    tcase_set_timeout(tests, 120);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);

    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);

    srunner_free(runner);
    unlink(test_path);
    return failed != 0;
}

#endif
