#include "kv.h"

#include <string.h>

#include "gpu.h"

int32_t ellm_kv_session_blocks(int32_t context_length, int32_t window, int32_t step_rows) {
    int32_t all = (context_length + ELLM_BLOCK - 1) / ELLM_BLOCK;
    if (window == 0) {
        return all;
    }
    /* window + step_rows - 1 positions in a row touch at most this many blocks. */
    int64_t seen = ((int64_t)window + step_rows - 1 + ELLM_BLOCK - 2) / ELLM_BLOCK + 1;
    return seen < all ? (int32_t)seen : all;
}

/* The states that are in blocks. */
static uint32_t n_caches(const ellm_kv *kv) {
    return kv->plan->n_states - kv->plan->n_fixed;
}

/* Whether what a session holds can be taken as `length` positions. */
static bool can_cut(const ellm_kv *kv, int32_t slot, int32_t length) {
    return kv->plan->n_fixed == 0 || length == 0 || length == kv->lengths[slot];
}

/* Copies what a GPU has of a block, or of a session. */
static bool copy_on_gpu(const ellm_kv *kv, ellm_symbol what, int32_t from, int32_t to) {
#ifdef ELLM_VULKAN
    return kv->gpu == NULL || ellm_gpu_copy(kv->gpu, what, from, to) == ELLM_OK;
#else
    (void)kv, (void)what, (void)from, (void)to;
    return true;
#endif
}

/* The first block that a row at `position` or later can see. */
static int32_t first_visible(const ellm_kv *kv, int32_t position) {
    int32_t first = kv->window == 0 ? 0 : position - kv->window + 1;
    return first > 0 ? first / ELLM_BLOCK : 0;
}

void ellm_kv_visible(const ellm_kv *kv, int32_t length, int32_t *first, int32_t *end) {
    *first = first_visible(kv, length);
    *end = (length + ELLM_BLOCK - 1) / ELLM_BLOCK;
}

static int32_t *session_table(const ellm_kv *kv, int32_t slot) {
    return kv->table + (size_t)slot * (size_t)kv->table_cap;
}

static void release(ellm_kv *kv, int32_t *entry) {
    if (*entry >= 0) {
        if (--kv->n_users[*entry] == 0) {
            kv->free_blocks[kv->n_free++] = *entry;
        }
        *entry = -1;
    }
}

void ellm_kv_init(ellm_kv *kv) {
    memset(kv->table, 0xff, (size_t)kv->n_sessions * (size_t)kv->table_cap * sizeof *kv->table);
    memset(kv->n_users, 0, (size_t)kv->n_blocks * sizeof *kv->n_users);
    memset(kv->lengths, 0, (size_t)kv->n_sessions * sizeof *kv->lengths);
    kv->n_free = kv->n_touched = 0;
}

/* A zeroed block; -1 if there is none. */
static int32_t take_block(ellm_kv *kv) {
    int32_t block = -1;
    if (kv->n_free > 0) {
        block = kv->free_blocks[--kv->n_free];
        for (uint32_t i = 0; i < n_caches(kv) && kv->states != NULL; i++) {
            size_t bytes = (size_t)kv->plan->state_bytes[i];
            memset(kv->states[i] + (size_t)block * bytes, 0, bytes);
        }
    } else if (kv->n_touched < kv->n_blocks) {
        block = kv->n_touched++;
    }
    if (block >= 0) {
        kv->n_users[block] = 1;
    }
    return block;
}

bool ellm_kv_reserve(ellm_kv *kv, int32_t slot, int32_t position) {
    int32_t *entry = &session_table(kv, slot)[position / ELLM_BLOCK], shared = *entry;
    if (shared >= 0 && kv->n_users[shared] == 1) {
        return true;
    }
    int32_t block = take_block(kv);
    if (block < 0) {
        return false;
    }
    *entry = block;
    if (shared >= 0) {
        kv->n_users[shared]--;
        if (!copy_on_gpu(kv, ELLM_SYMBOL_BLOCKS, shared, block)) {
            return false;
        }
        for (uint32_t i = 0; i < n_caches(kv) && kv->states != NULL; i++) {
            size_t bytes = (size_t)kv->plan->state_bytes[i];
            memcpy(kv->states[i] + (size_t)block * bytes, kv->states[i] + (size_t)shared * bytes, bytes);
        }
    }
    return true;
}

bool ellm_kv_share(ellm_kv *kv, int32_t from, int32_t to, int32_t length) {
    int32_t *source = session_table(kv, from), *table = session_table(kv, to);
    int32_t first, end;
    ellm_kv_visible(kv, length, &first, &end);
    if (!can_cut(kv, from, length)) {
        return false;
    }
    for (int32_t i = first; i < end; i++) {
        if (source[i] < 0) {
            return false;
        }
    }
    const bool has_more = kv->plan->n_fixed > 0 && length > 0;
    if (has_more && !copy_on_gpu(kv, ELLM_SYMBOL_SESSIONS, from, to)) {
        return false;
    }
    for (uint32_t i = n_caches(kv); i < kv->plan->n_states && has_more && kv->states != NULL; i++) {
        memcpy(ellm_kv_block(kv, to, 0, i), ellm_kv_block(kv, from, 0, i), (size_t)kv->plan->state_bytes[i]);
    }
    for (int32_t i = 0; i < kv->table_cap; i++) {
        bool has = i >= first && i < end;
        if (has) { /* before its own is released, which may be the same */
            kv->n_users[source[i]]++;
        }
        release(kv, &table[i]);
        table[i] = has ? source[i] : -1;
    }
    kv->lengths[to] = length;
    return true;
}

uint8_t *ellm_kv_block(const ellm_kv *kv, int32_t slot, int32_t block, uint32_t state) {
    int32_t at = state < n_caches(kv) ? session_table(kv, slot)[block] : slot;
    return kv->states[state] + (size_t)at * (size_t)kv->plan->state_bytes[state];
}

bool ellm_kv_fill(ellm_kv *kv, int32_t slot, int32_t length) {
    int32_t first, end;
    ellm_kv_visible(kv, length, &first, &end);
    for (int32_t block = first; block < end; block++) {
        if (!ellm_kv_reserve(kv, slot, block * ELLM_BLOCK)) {
            (void)ellm_kv_truncate(kv, slot, 0);
            return false;
        }
    }
    kv->lengths[slot] = length;
    return true;
}

void ellm_kv_advance(ellm_kv *kv, int32_t slot, int32_t length) {
    int32_t *table = session_table(kv, slot);
    kv->lengths[slot] = length;
    for (int32_t i = first_visible(kv, length) - 1; i >= 0 && table[i] >= 0; i--) {
        release(kv, &table[i]);
    }
}

bool ellm_kv_truncate(ellm_kv *kv, int32_t slot, int32_t length) {
    int32_t *table = session_table(kv, slot);
    int32_t first, end;
    ellm_kv_visible(kv, length, &first, &end);
    if (!can_cut(kv, slot, length)) {
        return false;
    }
    for (int32_t i = first; i < end; i++) {
        if (table[i] < 0) {
            return false;
        }
    }
    for (int32_t i = end; i < kv->table_cap; i++) {
        release(kv, &table[i]);
    }
    if (length == 0) {
        kv->lengths[slot] = 0;
    } else {
        ellm_kv_advance(kv, slot, length);
    }
    return true;
}

int32_t ellm_kv_spare(const ellm_kv *kv, int32_t slot, int32_t context_length) {
    int32_t length = kv->lengths[slot], most = kv->plan->n_fixed > 0 ? 0 : context_length - length;
    if (kv->window > 0) { /* until the first visible block changes, none is given back */
        int32_t first = first_visible(kv, length);
        int32_t until = (first + 1) * ELLM_BLOCK + kv->window - 2 - length;
        most = until < most ? until : most;
    }
    return most > 0 ? most : 0;
}
