/*
 * qcow2: which layer of a backing chain answers. The node at the top of a
 * chain remembers it by granules, so that a read goes to the right layer at
 * once, however many lie between.
 *
 * Why that stays right: the edge to a backing node lets nobody write to it or
 * resize it, so what an overlay sees of it is constant until the graph
 * changes; and then children_changed() drops all, under the drain. What is
 * remembered says only that the layers above the owner have nothing at all for
 * the granule: the owner may be asked whatever it holds there.
 *
 * The structure is made at the first need and filled by coroutines of any
 * loop; all values are atomic, and two who find the same owner write the same.
 */
#include <pthread.h>

#include "core/memory.h"
#include "drivers/format/qcow2.h"

#define CHAIN_LAYERS_MAX 65535u
#define CHAIN_GRANULES_MAX (UINT64_C(1) << 22)  /* bounds the memory: 8 MiB */
#define CHAIN_BLOCK 4096u                       /* granules that get memory together */
#define CHAIN_SPAN (UINT64_C(32) << 20)         /* bytes that are looked at together */

struct disk_chain {
    struct edge **edges;            /* to the layers from the top */
    unsigned count, granule_bits;
    uint64_t block_count;
    _Atomic(_Atomic uint16_t *) blocks[];       /* [granule / CHAIN_BLOCK]; of these: number in edges + 1, 0 = unknown */
};

static pthread_mutex_t chain_making = PTHREAD_MUTEX_INITIALIZER;

/* The state of a layer that something lies below, or NULL. */
static struct disk *chain_next(const struct disk *disk, const struct edge *edge)
{
    struct disk *below = edge->child->driver == disk->node->driver ? edge->child->state : NULL;

    return below && below->backing ? below : NULL;
}

static struct disk_chain *chain_new(struct disk *disk)
{
    uint64_t size = disk->node->size;
    unsigned bits = (unsigned)__builtin_ctz(disk->cluster_size), count = 0;
    struct edge **edges = NULL;

    while (size >> bits >= CHAIN_GRANULES_MAX)
        bits++;
    for (struct disk *at = disk; at && count < CHAIN_LAYERS_MAX; at = chain_next(disk, at->backing)) {
        if ((count & (count - 1)) == 0)
            edges = memory_grow(edges, count ? 2 * count : 1, sizeof(struct edge *));
        edges[count++] = at->backing;
    }
    uint64_t blocks = ((size >> bits) / CHAIN_BLOCK) + 1;
    struct disk_chain *chain = memory_zero(sizeof(*chain) + blocks * sizeof(chain->blocks[0]));

    chain->edges = edges;
    chain->count = count;
    chain->granule_bits = bits;
    chain->block_count = blocks;
    return chain;
}

/* Only what has a backing node. */
static struct disk_chain *chain_get(struct disk *disk)
{
    struct disk_chain *chain = atomic_load_explicit(&disk->chain, memory_order_acquire);

    if (chain)
        return chain;
    pthread_mutex_lock(&chain_making);
    chain = atomic_load_explicit(&disk->chain, memory_order_relaxed);
    if (!chain) {
        chain = chain_new(disk);
        atomic_store_explicit(&disk->chain, chain, memory_order_release);
    }
    pthread_mutex_unlock(&chain_making);
    return chain;
}

void disk_chain_drop(struct disk *disk)
{
    struct disk_chain *chain = atomic_exchange(&disk->chain, NULL);

    if (!chain)
        return;
    for (uint64_t i = 0; i < chain->block_count; i++)
        free((void *)chain->blocks[i]);
    free(chain->edges);
    free(chain);
}

static unsigned chain_owner(const struct disk_chain *chain, uint64_t granule)
{
    _Atomic uint16_t *block = atomic_load_explicit(&chain->blocks[granule / CHAIN_BLOCK], memory_order_acquire);

    return block ? atomic_load_explicit(&block[granule % CHAIN_BLOCK], memory_order_relaxed) : 0;
}

struct edge *disk_chain_find(const struct disk *disk, uint64_t offset, uint64_t length)
{
    const struct disk_chain *chain = atomic_load_explicit(&disk->chain, memory_order_acquire);

    if (!chain)
        return NULL;
    if (chain->count == 1)
        return disk->backing;
    uint64_t granule = offset >> chain->granule_bits, last = (offset + length - 1) >> chain->granule_bits;
    unsigned owner = chain_owner(chain, granule);

    while (owner && granule < last)
        owner = chain_owner(chain, ++granule) == owner ? owner : 0;
    return owner ? chain->edges[owner - 1] : NULL;
}

/* Without memory it is only not remembered. */
static void chain_remember(struct disk_chain *chain, uint64_t granule, uint64_t count, unsigned owner)
{
    for (; count; granule++, count--) {
        _Atomic(_Atomic uint16_t *) *place = &chain->blocks[granule / CHAIN_BLOCK];
        _Atomic uint16_t *block = atomic_load_explicit(place, memory_order_acquire), *none = NULL;

        if (!block) {
            block = calloc(CHAIN_BLOCK, sizeof(*block));
            if (!block)
                return;
            if (!atomic_compare_exchange_strong(place, &none, block)) {
                free((void *)block);
                block = none;
            }
        }
        atomic_store_explicit(&block[granule % CHAIN_BLOCK], (uint16_t)owner, memory_order_relaxed);
    }
}

/*
 * Goes down from edges[0]. start begins a granule, of which `need` bytes are
 * inside the disk; *span is how far the answer holds, in whole granules (or
 * need). Returns the number in edges, or an error.
 */
static int chain_search(const struct disk_chain *chain, uint64_t start, uint64_t need, uint64_t *span)
{
    uint64_t mask = (UINT64_C(1) << chain->granule_bits) - 1;
    unsigned k = 0;

    for (;; k++) {
        const struct node *node = chain->edges[k]->child;
        uint64_t size = atomic_load_explicit(&node->size, memory_order_acquire);
        struct mapping map;

        /* Who is above this layer has to cut what lies behind its end. */
        if (start + need > size) {
            *span = need;
            return k ? (int)k - 1 : 0;
        }
        if (start + *span > size)
            *span = (size - start) & ~mask ? (size - start) & ~mask : need;
        if (k + 1 == chain->count)
            return (int)k;
        int result = disk_ask(node->state, start, *span, &map);

        if (result < 0)
            return result;
        if (map.length < need) {
            *span = need;
            return (int)k;
        }
        if (map.length < *span)
            *span = map.length & ~mask ? map.length & ~mask : need;
        if (map.kind != MAPPING_UNALLOCATED)
            return (int)k;
    }
}

int disk_chain_resolve(struct disk *disk, uint64_t offset, uint64_t *length, struct edge **ret)
{
    struct disk_chain *chain = chain_get(disk);

    *ret = disk->backing;
    if (chain->count == 1)
        return 0;
    uint64_t unit = UINT64_C(1) << chain->granule_bits, granule = offset >> chain->granule_bits;
    uint64_t start = granule << chain->granule_bits, size = disk->node->size;
    unsigned owner = chain_owner(chain, granule);
    uint64_t span = unit;

    if (!owner) {
        uint64_t need = size - start < unit ? size - start : unit;

        span = size - start < CHAIN_SPAN ? size - start : CHAIN_SPAN;
        if (span > need)
            span &= ~(unit - 1);
        int result = chain_search(chain, start, need, &span);

        if (result < 0)
            return result;
        owner = (unsigned)result + 1;
        chain_remember(chain, granule, (span + unit - 1) >> chain->granule_bits, owner);
    }
    *ret = chain->edges[owner - 1];
    if (start + span - offset < *length)
        *length = start + span - offset;
    return 0;
}
