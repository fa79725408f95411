/*
 * The cache of table slices. A slot that is found by number holds the slice
 * with its key until the version changes; slots are taken by a clock hand,
 * clean ones only, and when most are dirty all are written back together.
 * Slices of refcounts are never given up while the lock is let go of: who
 * works with them counts on it.
 *
 * A slice that is being read in is `loading`: it belongs to whoever reads it,
 * who does so without the lock, and is neither found by questions, since its
 * version is odd, nor taken by the hand.
 */
#include <stdlib.h>

#include "drivers/format/engine/qcow2_internal.h"

#define CACHE_SLOTS_MIN 8u
#define WRITE_BATCH (64u << 10)

int cache_init(struct qcow2 *q, struct cache *cache, uint64_t bytes, uint32_t slice_size)
{
    uint64_t count = bytes / slice_size;
    uint32_t hash = 1;

    if (count < CACHE_SLOTS_MIN)
        count = CACHE_SLOTS_MIN;
    if (count > UINT32_MAX / 4)
        count = UINT32_MAX / 4;
    while (hash < count)
        hash *= 2;
    cache->count = (uint32_t)count;
    cache->slice_size = slice_size;
    cache->hash_mask = hash - 1;
    cache->slots = q->io->alloc(q->world, count * sizeof(*cache->slots));
    cache->hash = q->io->alloc(q->world, hash * sizeof(*cache->hash));
    cache->chunks = q->io->alloc(q->world, (count / CACHE_CHUNK + 1) * sizeof(*cache->chunks));
    return cache->slots && cache->hash && cache->chunks ? 0 : -ENOMEM;
}

void cache_destroy(struct qcow2 *q, struct cache *cache)
{
    for (uint32_t i = 0; cache->chunks && i * CACHE_CHUNK < cache->ready; i++)
        q->io->release(q->world, cache->chunks[i]);
    q->io->release(q->world, cache->chunks);
    q->io->release(q->world, cache->hash);
    q->io->release(q->world, cache->slots);
}

static uint32_t *cache_bucket(struct cache *cache, uint64_t key)
{
    uint64_t hash = (key / cache->slice_size) * UINT64_C(0x9e3779b97f4a7c15);

    return &cache->hash[(hash >> 32) & cache->hash_mask];
}

struct slot *cache_find(struct cache *cache, uint64_t key)
{
    for (uint32_t i = *cache_bucket(cache, key); i; i = cache->slots[i - 1].hash_next) {
        if (atomic_load_explicit(&cache->slots[i - 1].key, memory_order_relaxed) == key)
            return &cache->slots[i - 1];
    }
    return NULL;
}

void slot_begin(struct slot *slot)
{
    uint64_t version = atomic_load_explicit(&slot->version, memory_order_relaxed);

    atomic_store_explicit(&slot->version, version | 1, memory_order_relaxed);
}

void slot_end(struct slot *slot)
{
    uint64_t version = atomic_load_explicit(&slot->version, memory_order_relaxed);

    atomic_store_explicit(&slot->version, (version | 1) + 1, memory_order_release);
}

static void cache_forget(struct cache *cache, struct slot *slot)
{
    uint32_t number = (uint32_t)(slot - cache->slots) + 1;
    uint32_t *link = cache_bucket(cache, slot->key);

    while (*link != number)
        link = &cache->slots[*link - 1].hash_next;
    *link = slot->hash_next;
    if (slot->backlink && atomic_load_explicit(slot->backlink, memory_order_relaxed) == number)
        atomic_store_explicit(slot->backlink, 0, memory_order_relaxed);
    slot->backlink = NULL;
    if (slot->dirty)
        atomic_fetch_sub(&cache->dirty, 1);
    slot->dirty = false;
    slot_begin(slot);
    atomic_store_explicit(&slot->key, 0, memory_order_release);
    slot_end(slot);
}

static void cache_enter(struct cache *cache, struct slot *slot, uint64_t key)
{
    uint32_t *bucket = cache_bucket(cache, key);

    slot_begin(slot);
    atomic_store_explicit(&slot->key, key, memory_order_release);
    if (!slot->loading)
        slot_end(slot);
    slot->hash_next = *bucket;
    *bucket = (uint32_t)(slot - cache->slots) + 1;
}

void cache_drop(struct cache *cache, uint64_t offset, uint64_t length)
{
    for (uint64_t key = offset; key < offset + length; key += cache->slice_size) {
        struct slot *slot = cache_find(cache, key);

        if (slot && !slot->loading)
            cache_forget(cache, slot);
    }
}

/* Memory for CACHE_CHUNK more slots; they get it when they are first needed, so that a large cache costs
 * what is used of it. */
static struct slot *cache_fresh(struct qcow2 *q, struct cache *cache)
{
    if (cache->ready == cache->count)
        return NULL;
    uint32_t more = cache->count - cache->ready;

    if (more > CACHE_CHUNK)
        more = CACHE_CHUNK;
    unsigned char *chunk = q->io->alloc(q->world, (size_t)more * cache->slice_size);

    if (!chunk)
        return NULL;
    cache->chunks[cache->ready / CACHE_CHUNK] = chunk;
    for (uint32_t i = 0; i < more; i++)
        cache->slots[cache->ready + i].words = (_Atomic uint64_t *)(void *)(chunk + (size_t)i * cache->slice_size);
    cache->ready += more;
    /* The hand finds the others empty. */
    cache->hand = cache->ready - more;
    return &cache->slots[cache->hand];
}

static void cache_advance(struct cache *cache)
{
    cache->hand = cache->hand + 1 < cache->ready ? cache->hand + 1 : 0;
}

/* A clean slot that has not been asked for lately, emptied; NULL if all are dirty or loading. */
static struct slot *cache_sweep(struct cache *cache)
{
    for (uint64_t steps = 0; steps < 2ull * cache->ready; steps++) {
        struct slot *slot = &cache->slots[cache->hand];

        cache_advance(cache);
        if (slot->dirty || slot->loading || slot->writing)
            continue;
        if (!slot->key)
            return slot;
        if (atomic_exchange_explicit(&slot->used, 0, memory_order_relaxed))
            continue;
        atomic_fetch_add(&cache->evictions, 1);
        cache_forget(cache, slot);
        return slot;
    }
    return NULL;
}

/* A slot to fill; -EBUSY: write back first; -ENOMEM: there never was one. */
static int cache_take(struct qcow2 *q, struct cache *cache, struct slot **ret)
{
    struct slot *slot = NULL;

    if (cache->ready && !cache->slots[cache->hand].key && !cache->slots[cache->hand].loading)
        slot = &cache->slots[cache->hand];
    if (!slot)
        slot = cache_fresh(q, cache);
    /* The one behind it is probably empty too. */
    if (slot)
        cache_advance(cache);
    else if (cache->stuck || cache->dirty <= cache->count / 4 * 3)
        slot = cache_sweep(cache);
    *ret = slot;
    return slot ? 0 : cache->ready ? -EBUSY : -ENOMEM;
}

static void slot_fill(const struct cache *cache, struct slot *slot, const unsigned char *buf)
{
    slot_begin(slot);
    for (uint32_t i = 0; i < cache->slice_size / 8; i++) {
        uint64_t word;

        memcpy(&word, buf + 8 * (size_t)i, 8);
        atomic_store_explicit(&slot->words[i], word, memory_order_release);
    }
    slot_end(slot);
}

/* Somebody else reads the slice in, or others have all slots: our own read only passes the time. */
static int cache_pass_time(struct qcow2 *q, const struct cache *cache, uint64_t key, unsigned char *buf)
{
    tables_unlock(q);
    int result = q->io->read(q->world, FORMAT_FILE_IMAGE, key, buf, cache->slice_size);

    tables_lock(q);
    return result;
}

static int cache_load(struct qcow2 *q, struct cache *cache, uint64_t key, struct slot *slot, unsigned char *buf)
{
    atomic_fetch_add(&cache->misses, 1);
    slot->loading = true;
    cache_enter(cache, slot, key);
    tables_unlock(q);
    image_step(q, cache == &q->l2 ? FORMAT_L2_LOAD : FORMAT_REFBLOCK_LOAD);
    int result = q->io->read(q->world, FORMAT_FILE_IMAGE, key, buf, cache->slice_size);

    tables_lock(q);
    slot->loading = false;
    if (result < 0)
        cache_forget(cache, slot);
    else
        slot_fill(cache, slot, buf);
    return result;
}

int cache_get_waiting(struct qcow2 *q, struct cache *cache, uint64_t key, struct slot **ret, bool *waited)
{
    unsigned char buf[QCOW2_SLICE_MAX] __attribute__((aligned(QCOW2_SLICE_MAX)));

    for (bool tried = false;;) {
        struct slot *slot = cache_find(cache, key);
        int result = 0;

        if (slot && !slot->loading) {
            atomic_store_explicit(&slot->used, 1, memory_order_relaxed);
            *ret = slot;
            return 0;
        }
        *waited = true;
        if (!slot && (result = cache_take(q, cache, &slot)) == -ENOMEM)
            return result;
        if (slot ? slot->loading : !cache->dirty)
            result = cache_pass_time(q, cache, key, buf);
        else if (slot)
            result = cache_load(q, cache, key, slot, buf);
        else
            result = tables_write_back_waiting(q, false);
        /* Perhaps a clean one is left. */
        if (result < 0 && (slot || tried))
            return result;
        tried |= result < 0;
    }
}

int cache_get(struct qcow2 *q, struct cache *cache, uint64_t key, struct slot **ret)
{
    struct slot *slot = cache_find(cache, key);
    int result;

    if (!slot) {
        if (cache_take(q, cache, &slot) < 0) {
            result = cache_write_back(q, cache);
            if (result < 0)
                return result;
            result = cache_take(q, cache, &slot);
            if (result < 0)
                return result;
        }
        atomic_fetch_add(&cache->misses, 1);
        image_step(q, cache == &q->l2 ? FORMAT_L2_LOAD : FORMAT_REFBLOCK_LOAD);
        result = q->io->read(q->world, FORMAT_FILE_IMAGE, key, q->staging, cache->slice_size);
        if (result < 0)
            return result;
        slot_fill(cache, slot, q->staging);
        cache_enter(cache, slot, key);
    }
    atomic_store_explicit(&slot->used, 1, memory_order_relaxed);
    *ret = slot;
    return 0;
}

void cache_put_zeroes(struct qcow2 *q, struct cache *cache, uint64_t offset, uint64_t length)
{
    static const unsigned char zeroes[QCOW2_SLICE_MAX];

    for (uint64_t key = offset; key < offset + length; key += cache->slice_size) {
        bool room = cache->ready < cache->count || !cache->slots[cache->hand].key;
        struct slot *slot;

        if (!room || cache_find(cache, key) || cache_take(q, cache, &slot) < 0)
            return;
        slot_fill(cache, slot, zeroes);
        cache_enter(cache, slot, key);
    }
}

void cache_clean(struct qcow2 *q, struct cache *cache)
{
    for (uint32_t first = 0; first < cache->ready; first += CACHE_CHUNK) {
        uint32_t end = first + CACHE_CHUNK < cache->ready ? first + CACHE_CHUNK : cache->ready, empty = 0;

        for (uint32_t i = first; i < end; i++) {
            struct slot *slot = &cache->slots[i];

            if (slot->key && !slot->dirty && !slot->loading && !slot->writing && !atomic_exchange(&slot->used, 0))
                cache_forget(cache, slot);
            empty += !slot->key;
        }
        /* Who still reads there sees that the version is another. */
        if (empty == end - first && q->io->idle)
            q->io->idle(q->world, cache->chunks[first / CACHE_CHUNK], (size_t)empty * cache->slice_size);
    }
}

uint32_t cache_used(const struct cache *cache)
{
    uint32_t used = 0;

    for (uint32_t i = 0; i < cache->ready; i++)
        used += cache->slots[i].key != 0;
    return used;
}

void cache_set_dirty(struct cache *cache, struct slot *slot)
{
    if (!slot->dirty)
        atomic_fetch_add(&cache->dirty, 1);
    slot->dirty = true;
}

static int slot_compare(const void *a, const void *b)
{
    uint64_t left = (*(struct slot *const *)a)->key, right = (*(struct slot *const *)b)->key;

    return (left > right) - (left < right);
}

/* Writes slots that lie side by side in the file, as many as fit the batch; returns how many, or an error. */
static int cache_write_run(struct qcow2 *q, struct cache *cache, struct slot **slots, uint32_t count)
{
    uint32_t run = 0;

    image_step(q, FORMAT_REFBLOCK_UPDATE);
    while (run < count && (run + 1) * cache->slice_size <= WRITE_BATCH &&
           slots[run]->key == slots[0]->key + (uint64_t)run * cache->slice_size) {
        memcpy(q->staging + (size_t)run * cache->slice_size, (void *)(uintptr_t)slots[run]->words, cache->slice_size);
        run++;
    }
    int result = image_write(q, slots[0]->key, q->staging, (size_t)run * cache->slice_size);

    if (result < 0)
        return result;
    for (uint32_t i = 0; i < run; i++)
        slots[i]->dirty = false;
    atomic_fetch_sub(&cache->dirty, run);
    return (int)run;
}

int cache_list_dirty(struct qcow2 *q, struct cache *cache, struct slot ***ret)
{
    uint64_t count = 0, limit = cache->dirty;
    struct slot **slots = q->io->alloc(q->world, limit * sizeof(*slots));

    *ret = slots;
    if (!slots)
        return -ENOMEM;
    for (uint32_t i = 0; i < cache->ready && count < limit; i++) {
        if (cache->slots[i].dirty)
            slots[count++] = &cache->slots[i];
    }
    qsort(slots, count, sizeof(*slots), slot_compare);
    return 0;
}

int cache_write_back(struct qcow2 *q, struct cache *cache)
{
    uint32_t count = (uint32_t)cache->dirty, done = 0;
    struct slot **slots;

    if (!count)
        return 0;
    int result = cache_list_dirty(q, cache, &slots);

    while (done < count && result >= 0) {
        result = cache_write_run(q, cache, slots + done, count - done);
        if (result > 0)
            done += (uint32_t)result;
    }
    q->io->release(q->world, slots);
    return result < 0 ? result : 0;
}

/* An empty slot of a cache that only this fills; NULL when there is none, or no memory. */
static struct slot *cache_next_empty(struct qcow2 *q, struct cache *cache, uint32_t number)
{
    if (number == cache->ready && !cache_fresh(q, cache))
        return NULL;
    return &cache->slots[number];
}

void cache_move(struct qcow2 *q, struct cache *from, struct cache *to)
{
    uint32_t moved = 0;

    for (uint32_t i = 0; i < from->ready; i++) {
        struct slot *slot = &from->slots[i], *copy = slot->key ? cache_next_empty(q, to, moved) : NULL;
        uint64_t key = slot->key;
        _Atomic uint32_t *backlink = slot->backlink;

        if (!key)
            continue;
        cache_forget(from, slot);
        if (!copy)
            continue;
        memcpy((void *)(uintptr_t)copy->words, (void *)(uintptr_t)slot->words, to->slice_size);
        cache_enter(to, copy, key);
        copy->backlink = backlink;
        moved++;
        if (backlink)
            atomic_store_explicit(backlink, moved, memory_order_release);
    }
    to->hand = 0;
    to->misses = from->misses;
    to->evictions = from->evictions;
    cache_destroy(q, from);
    *from = *to;
}
