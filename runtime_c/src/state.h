/* state.h: files that hold what was computed of a beginning: a session's tokens and its blocks of the KV cache
 * (FORMAT.md, State files). A bundle may ship one; sessions are saved to others. */
#ifndef ELLM_STATE_H
#define ELLM_STATE_H

#include "file.h"
#include "kv.h"
#include "safetensors.h"

/* What such a file holds. Everything lies in its mapping but `blocks`, which lies in a region. */
typedef struct ellm_state {
    const int32_t *tokens; /* n_tokens of them, checked against the vocabulary */
    int32_t n_tokens;
    const char
        *bundle; /* 64 hexadecimal digits: SHA-256 of the manifest of the bundle that computed it; NULL: not said */
    const uint8_t *note; /* the caller's own bytes */
    uint64_t note_bytes;
    const uint8_t *
        *blocks; /* by state of the file: the blocks that are visible at position n_tokens, one after another */
} ellm_state;

/* Finds a state among the tensors of a file and checks that it fits: BUNDLE_FORMAT says what does not. Without kv.plan,
 * only what does not depend on the plan. */
ellm_status ellm_state_read(const ellm_tensor *tensors, size_t n_tensors, const ellm_kv *kv, int32_t vocab_size,
                            const char *path, ellm_region *region, ellm_state *state, ellm_error *error);
/* Makes an empty session hold the first `length` positions of a state: by mapping the file's pages into the cache, where
 * `file` is open, pages are no larger than its alignment and the session gets the pool's first blocks; else by copying.
 * CONTEXT_FULL where they do not fit, or what a GPU says; the session is empty then. */
ellm_status ellm_state_put(const ellm_state *state, const ellm_file *file, ellm_kv *kv, int32_t slot, int32_t length);
/* Whether the file, its header and data, is as it was written. */
bool ellm_state_is_whole(const ellm_file *file);

/* Writes a session to `path`, anew and at once. bundle: as above, or NULL. Only kv's contents are read. IO, NO_MEMORY, or
 * what a GPU says. */
ellm_status ellm_state_write(const char *path, const ellm_kv *kv, int32_t slot, const int32_t *tokens,
                             const char *bundle, const void *note, size_t note_bytes, ellm_error *error);

#endif
