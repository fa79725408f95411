/*
 * qcow2: discards. Clusters that stay where they are in the image
 * (discard-no-unref) lose their content in the file, unless discards are not
 * passed on; this may come before their tables are durable, since what is
 * discarded need not survive a crash. In coroutines.
 */
#include "drivers/format/qcow2.h"

#define DISCARD_PARTS 16u /* on the coroutine's stack */

int disk_discard_range(struct disk *disk, uint64_t offset, uint64_t end)
{
    int result = 0;

    if (!qcow2_keeps_discarded(disk->engine))
        return qcow2_discard(disk->engine, offset, end - offset);
    while (offset < end && result == 0) {
        struct mapping maps[DISCARD_PARTS];
        unsigned count = 0;
        uint64_t next = offset;

        for (; count < DISCARD_PARTS && next < end && result == 0; count++) {
            result = disk_ask(disk, next, end - next, &maps[count]);
            next += result == 0 ? maps[count].length : 0;
        }
        if (result == 0)
            result = qcow2_discard(disk->engine, offset, next - offset);
        /* Space that does not come back is no fault. */
        for (unsigned i = 0; i < count && result == 0; i++) {
            if (maps[i].kind == MAPPING_DATA && maps[i].copied)
                edge_discard(disk->files[maps[i].file], maps[i].host, maps[i].length);
        }
        offset = next;
    }
    return result;
}
