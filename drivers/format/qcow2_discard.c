/*
 * qcow2: discards, and zeroes that may be holes. Clusters that stay where they
 * are in the image (discard-no-unref), or are a data file's, whose clusters the
 * engine does not count, lose their content in the file, unless discards are not
 * passed on; this may come before their tables are durable, since what is
 * discarded need not survive a crash. In coroutines.
 */
#include "drivers/format/qcow2.h"

#define DISCARD_PARTS 16u /* on the coroutine's stack */

static int discard_tables(const struct disk *disk, uint64_t offset, uint64_t end, bool zeroes)
{
    return zeroes ? qcow2_write_zeroes(disk->engine, offset, end - offset, true)
                  : qcow2_discard(disk->engine, offset, end - offset);
}

static int discard_range(struct disk *disk, uint64_t offset, uint64_t end, bool zeroes)
{
    int result = 0;

    if (!qcow2_keeps_discarded(disk->engine))
        return discard_tables(disk, offset, end, zeroes);
    while (offset < end && result == 0) {
        struct mapping maps[DISCARD_PARTS];
        unsigned count = 0;
        uint64_t next = offset;

        for (; count < DISCARD_PARTS && next < end && result == 0; count++) {
            result = disk_ask(disk, next, end - next, &maps[count]);
            next += result == 0 ? maps[count].length : 0;
        }
        if (result == 0)
            result = discard_tables(disk, offset, next, zeroes);
        /* Space that does not come back is no fault. */
        for (unsigned i = 0; i < count && result == 0; i++) {
            if (maps[i].kind == MAPPING_DATA && maps[i].copied)
                edge_discard(disk->files[maps[i].file], maps[i].host, maps[i].length);
        }
        offset = next;
    }
    return result;
}

int disk_discard_range(struct disk *disk, uint64_t offset, uint64_t end)
{
    return discard_range(disk, offset, end, false);
}

int disk_zero_range(struct disk *disk, uint64_t offset, uint64_t end, bool unmap)
{
    return unmap ? discard_range(disk, offset, end, true)
                 : qcow2_write_zeroes(disk->engine, offset, end - offset, false);
}
