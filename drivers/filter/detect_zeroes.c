/*
 * detect-zeroes: writes of nothing but zeroes become write-zeroes requests.
 * One pass over the data of each write, which ends at the first byte that is
 * not zero. The state changes only under a drain, so all loops may read it.
 */
#include "core/driver.h"
#include "generated/options.h"

struct detect_zeroes {
    bool unmap;
};

static int detect_zeroes_open(struct node *node, const void *opaque, struct error *err)
{
    const struct detect_zeroes_options *options = opaque;
    struct detect_zeroes *state = node->state;

    (void)err;
    state->unmap = options->mode == DETECT_ZEROES_MODE_UNMAP;
    return 0;
}

static enum step detect_zeroes_map(struct node *node, struct request *req)
{
    const struct detect_zeroes *state = node->state;

    if (req->op == REQ_WRITE)
        request_detect_zeroes(req, state->unmap);
    return request_down(req, node->filtered);
}

const struct driver detect_zeroes_driver = {
    .name = "detect-zeroes",
    .kind = DRIVER_FILTER,
    .state_size = sizeof(struct detect_zeroes),
    .open = detect_zeroes_open,
    .map = detect_zeroes_map,
};
