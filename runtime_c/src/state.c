#include "posix.h"

#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "error.h"
#include "gpu.h"
#include "sha256.h"

enum {
    data_alignment = 65536,
    block_alignment = 16384, /* pages of a Pi 5: blocks are mapped where pages are no larger */
    digest_bytes = 64,
    name_bytes = 32,
};

/* ---- reading ---- */

static const ellm_tensor *find(const ellm_tensor *tensors, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++) {
        if (strcmp(tensors[i].name, name) == 0) {
            return &tensors[i];
        }
    }
    return NULL;
}

/* One of a file's states: which one of which plan it is, and whether a GPU has it. */
typedef struct part {
    const ellm_plan *plan;
    uint32_t state;
    bool on_gpu;
} part;

/* Files count states as if one plan had all layers: where a GPU has the first ones, in blocks those of both plans, and then
 * those per session. */
static uint32_t n_parts(const ellm_kv *kv) {
    uint32_t n = kv->plan->n_states;
#ifdef ELLM_VULKAN
    n += kv->first != NULL ? kv->first->n_states : 0;
#endif
    return n;
}

static part part_of(const ellm_kv *kv, uint32_t i) {
#ifdef ELLM_VULKAN
    const ellm_plan *gpus = kv->first, *plan = kv->plan;
    if (gpus != NULL) {
        const uint32_t n_ours = gpus->n_states - gpus->n_fixed, n_blocks = n_ours + plan->n_states - plan->n_fixed;
        const bool fixed = i >= n_blocks;
        const uint32_t at = fixed ? i - n_blocks : i, n = fixed ? gpus->n_fixed : n_ours;
        plan = at < n ? gpus : plan;
        return (part){plan, (fixed ? plan->n_states - plan->n_fixed : 0) + (at < n ? at : at - n), at < n};
    }
    return (part){plan, i, kv->gpu != NULL};
#else
    return (part){kv->plan, i, false};
#endif
}

/* How many blocks, or states, a file has of one of them. */
static uint64_t n_items(part p, int32_t first, int32_t end) {
    return ellm_plan_state_count(p.plan, p.state) == ELLM_SYMBOL_BLOCKS ? (uint64_t)(end - first) : 1;
}

#ifdef ELLM_VULKAN
/* Where a GPU has them: blocks of the pool, or the session. */
static const int32_t *places(const ellm_kv *kv, const int32_t *slot, int32_t first, part p) {
    const bool in_blocks = ellm_plan_state_count(p.plan, p.state) == ELLM_SYMBOL_BLOCKS;
    return in_blocks ? kv->table + (size_t)*slot * (size_t)kv->table_cap + first : slot;
}
#endif

ellm_status ellm_state_read(const ellm_tensor *tensors, size_t n_tensors, const ellm_kv *kv, int32_t vocab_size,
                            const char *path, ellm_region *region, ellm_state *state, ellm_error *error) {
    *state = (ellm_state){0};
    const ellm_tensor *ids = find(tensors, n_tensors, "kv.tokens"), *bundle = find(tensors, n_tensors, "kv.bundle");
    const ellm_tensor *note = find(tensors, n_tensors, "kv.note");
    if (ids == NULL || ids->bytes == 0 || ids->bytes % 4 != 0 || ids->bytes / 4 > INT32_MAX / 2
        || (bundle != NULL && bundle->bytes != digest_bytes)) {
        return ellm_fail(error, ELLM_BUNDLE_FORMAT, "%s: kv.tokens or kv.bundle is missing or of a wrong size", path);
    }
    state->tokens = (const int32_t *)(const void *)ids->data;
    state->n_tokens = (int32_t)(ids->bytes / 4);
    state->bundle = bundle != NULL ? (const char *)bundle->data : NULL;
    state->note = note != NULL ? note->data : NULL;
    state->note_bytes = note != NULL ? note->bytes : 0;
    if (kv->plan == NULL) {
        return ELLM_OK;
    }
    for (int32_t i = 0; i < state->n_tokens; i++) {
        if (state->tokens[i] < 0 || state->tokens[i] >= vocab_size) {
            return ellm_fail(error, ELLM_BUNDLE_FORMAT, "%s: kv.tokens: token %d is not in the vocabulary", path,
                             (int)i);
        }
    }
    int32_t first, end;
    ellm_kv_visible(kv, state->n_tokens, &first, &end);
    const uint32_t n = n_parts(kv);
    state->blocks = ellm_region_alloc(region, n, sizeof *state->blocks);
    if (state->blocks == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "%s: no memory for its list of states", path);
    }
    for (uint32_t i = 0; i < n; i++) {
        char name[name_bytes];
        snprintf(name, sizeof name, "kv.%u", (unsigned)i);
        const ellm_tensor *blocks = find(tensors, n_tensors, name);
        const part p = part_of(kv, i);
        uint64_t bytes = p.plan->state_bytes[p.state] * n_items(p, first, end);
        if (blocks == NULL || blocks->bytes != bytes) {
            return ellm_fail(error, ELLM_BUNDLE_FORMAT,
                             "%s: %s must have %llu bytes for %d positions, it has %s%llu; compile the bundle again",
                             path, name, (unsigned long long)bytes, (int)state->n_tokens,
                             blocks == NULL ? "none, " : "", blocks == NULL ? 0 : (unsigned long long)blocks->bytes);
        }
        state->blocks[i] = blocks->data;
    }
    return ELLM_OK;
}

/* Maps as many of n_bytes as are whole pages of the file; returns how many. What is written to them is this process's. */
static size_t map_pages(const ellm_file *file, const uint8_t *from, uint8_t *to, size_t n_bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = n_bytes / page * page;
    bool fits = whole > 0 && file != NULL && file->descriptor >= 0 && from >= file->data
                && from < file->data + file->bytes && (uintptr_t)to % page == 0
                && (size_t)(from - file->data) % page == 0
                && mmap(to, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file->descriptor,
                        (off_t)(from - file->data))
                       != MAP_FAILED;
    if (fits) {
        (void)madvise(to, whole, MADV_WILLNEED);
    }
    return fits ? whole : 0;
}

ellm_status ellm_state_put(const ellm_state *state, const ellm_file *file, ellm_kv *kv, int32_t slot, int32_t length) {
    int32_t first, end, from;
    bool is_fresh = kv->n_touched == 0;
    ellm_kv_visible(kv, length, &first, &end);
    ellm_kv_visible(kv, state->n_tokens, &from, &(int32_t){0});
    if (kv->plan->n_fixed > 0 && length != state->n_tokens) {
        return ELLM_CONTEXT_FULL;
    }
    if (from != first || !ellm_kv_fill(kv, slot, length)) { /* with a window, a part of it shows what is gone */
        return ELLM_CONTEXT_FULL;
    }
    for (uint32_t i = 0; i < n_parts(kv); i++) {
        const uint8_t *blocks = state->blocks[i];
        const part p = part_of(kv, i);
        const size_t bytes = (size_t)p.plan->state_bytes[p.state];
#ifdef ELLM_VULKAN
        if (p.on_gpu) {
            const size_t n = (size_t)n_items(p, first, end);
            ellm_status status = ellm_gpu_write(kv->gpu, p.state, places(kv, &slot, first, p), n, blocks);
            if (status != ELLM_OK) {
                (void)ellm_kv_truncate(kv, slot, 0);
                return status;
            }
            continue;
        }
#endif
        if (ellm_plan_state_count(p.plan, p.state) == ELLM_SYMBOL_SESSIONS) {
            memcpy(ellm_kv_block(kv, slot, 0, p.state), blocks, bytes);
            continue;
        }
        size_t n = is_fresh ? bytes * (size_t)(end - first) : 0, done = 0;
        if (n > 0) { /* the first blocks of the pool, in order */
            done = map_pages(file, blocks, kv->states[p.state], n);
            memcpy(kv->states[p.state] + done, blocks + done, n - done);
        }
        for (int32_t block = first; block < end && n == 0; block++) {
            memcpy(ellm_kv_block(kv, slot, block, p.state), blocks + (size_t)(block - first) * bytes, bytes);
        }
    }
    return ELLM_OK;
}

bool ellm_state_is_whole(const ellm_file *file) {
    size_t head = file->bytes < 8 ? 0 : ellm_safetensors_head_bytes(file->data, file->bytes);
    if (head == 0 || file->bytes - head < digest_bytes) {
        return false;
    }
    char hex[65];
    ellm_sha256 sha;
    ellm_sha256_init(&sha);
    ellm_sha256_update(&sha, file->data, head);
    ellm_sha256_update(&sha, file->data + head + digest_bytes, file->bytes - head - digest_bytes);
    ellm_sha256_hex(&sha, hex);
    return memcmp(hex, file->data + head, digest_bytes) == 0; /* kv.sum, the first tensor */
}

/* ---- writing ---- */

/* Where bytes go: to the file, and into its checksum. */
typedef struct sink {
    ellm_sha256 sha;
    uint64_t at; /* bytes of data so far */
    int file;
    ellm_status status;
} sink;

static void put_unsummed(sink *to, const void *data, size_t n_bytes) {
    for (const char *at = data; n_bytes > 0 && to->status == ELLM_OK;) {
        ssize_t n = write(to->file, at, n_bytes);
        to->status = n < 0 && errno != EINTR ? ELLM_IO : ELLM_OK;
        at += n > 0 ? n : 0;
        n_bytes -= n > 0 ? (size_t)n : 0;
    }
}

static void put(sink *to, const void *data, size_t n_bytes) {
    to->at += n_bytes;
    ellm_sha256_update(&to->sha, data, n_bytes);
    put_unsummed(to, data, n_bytes);
}

static void pad(sink *to, uint64_t alignment) {
    static const char zeros[1024];
    for (uint64_t left = (alignment - to->at % alignment) % alignment; left > 0;) {
        size_t n = left < sizeof zeros ? (size_t)left : sizeof zeros;
        put(to, zeros, n);
        left -= n;
    }
}

typedef struct saved {
    const ellm_kv *kv;
    int32_t slot, first, end; /* blocks */
    const int32_t *tokens;
    const char *bundle;
    const void *note;
    size_t n_tokens, note_bytes;
} saved;

#ifdef ELLM_VULKAN
static void put_gpus(sink *to, const saved *s, part p) {
    const int32_t *from = places(s->kv, &s->slot, s->first, p);
    const uint8_t *data;
    size_t n;
    for (size_t left = (size_t)n_items(p, s->first, s->end); left > 0 && to->status == ELLM_OK; left -= n, from += n) {
        n = left;
        to->status = ellm_gpu_read(s->kv->gpu, p.state, from, &n, &data);
        if (to->status == ELLM_OK) {
            put(to, data, n * (size_t)p.plan->state_bytes[p.state]);
        }
    }
}
#endif

static void put_data(sink *to, const saved *s) {
    if (s->bundle != NULL) {
        put(to, s->bundle, digest_bytes);
    }
    put(to, s->tokens, s->n_tokens * sizeof *s->tokens);
    pad(to, 64);
    if (s->note_bytes > 0) {
        put(to, s->note, s->note_bytes);
    }
    for (uint32_t i = 0; i < n_parts(s->kv); i++) {
        const part p = part_of(s->kv, i);
        pad(to, block_alignment);
#ifdef ELLM_VULKAN
        if (p.on_gpu) {
            put_gpus(to, s, p);
            continue;
        }
#endif
        for (uint64_t block = 0; block < n_items(p, s->first, s->end); block++) {
            put(to, ellm_kv_block(s->kv, s->slot, s->first + (int32_t)block, p.state),
                (size_t)p.plan->state_bytes[p.state]);
        }
    }
    pad(to, 64);
}

typedef struct header {
    char *text;
    size_t n, cap;
    uint64_t at; /* bytes of data described so far */
    unsigned n_pads;
} header;

static void describe(header *h, const char *name, const char *dtype, uint64_t shape0, uint64_t shape1, uint64_t bytes) {
    uint64_t end = h->at + bytes;
    int n = snprintf(h->text + h->n, h->cap - h->n,
                     "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%llu,%llu],\"data_offsets\":[%llu,%llu]}",
                     h->n > 1 ? "," : "", name, dtype, (unsigned long long)shape0, (unsigned long long)shape1,
                     (unsigned long long)h->at, (unsigned long long)end);
    h->n += n > 0 ? (size_t)n : 0;
    h->at = end;
}

static void describe_pad(header *h, uint64_t alignment) {
    uint64_t bytes = (alignment - h->at % alignment) % alignment;
    if (bytes > 0) {
        char name[name_bytes];
        snprintf(name, sizeof name, "__pad.%u", h->n_pads++);
        describe(h, name, "U8", 1, bytes, bytes);
    }
}

/* The whole header, its length in front, padded so that the data starts where it must. NULL: no memory. */
static char *new_header(const saved *s, size_t *n_bytes) {
    const uint32_t n_states = n_parts(s->kv);
    header h = {.cap = 1024 + (size_t)n_states * 320};
    h.cap = (h.cap + 8 + data_alignment - 1) / data_alignment * data_alignment;
    char *whole = malloc(h.cap);
    if (whole == NULL) {
        return NULL;
    }
    memset(whole, ' ', h.cap);
    h.text = whole + 8;
    h.cap -= 8;
    h.text[h.n++] = '{';
    describe(&h, "kv.sum", "U8", 1, digest_bytes, digest_bytes);
    if (s->bundle != NULL) {
        describe(&h, "kv.bundle", "U8", 1, digest_bytes, digest_bytes);
    }
    describe(&h, "kv.tokens", "I32", 1, s->n_tokens, s->n_tokens * sizeof *s->tokens);
    describe_pad(&h, 64);
    if (s->note_bytes > 0) {
        describe(&h, "kv.note", "U8", 1, s->note_bytes, s->note_bytes);
    }
    for (uint32_t i = 0; i < n_states; i++) {
        char name[name_bytes];
        snprintf(name, sizeof name, "kv.%u", (unsigned)i);
        describe_pad(&h, block_alignment);
        const part p = part_of(s->kv, i);
        const uint64_t n = n_items(p, s->first, s->end), bytes = p.plan->state_bytes[p.state];
        describe(&h, name, "U8", n, bytes, n * bytes);
    }
    describe_pad(&h, 64);
    h.text[h.n++] = '}';
    h.text[h.n] = ' '; /* snprintf's NUL */
    for (size_t i = 0; i < 8; i++) {
        whole[i] = (char)((uint64_t)h.cap >> 8 * i & 0xff);
    }
    *n_bytes = h.cap + 8;
    return whole;
}

/* Header, checksum, data: the checksum, which is known when all else is written, in the place that was left for it. */
static ellm_status write_all(const saved *s, const char *head, size_t n_head, int file) {
    char hex[65] = "";
    sink to = {.file = file};
    ellm_sha256_init(&to.sha);
    put(&to, head, n_head);
    put_unsummed(&to, hex, digest_bytes);
    to.at = digest_bytes;
    put_data(&to, s);
    ellm_sha256_hex(&to.sha, hex);
    if (to.status != ELLM_OK) {
        return to.status;
    }
    bool good = pwrite(file, hex, digest_bytes, (off_t)n_head) == digest_bytes && fsync(file) == 0;
    return good ? ELLM_OK : ELLM_IO;
}

ellm_status ellm_state_write(const char *path, const ellm_kv *kv, int32_t slot, const int32_t *tokens,
                             const char *bundle, const void *note, size_t note_bytes, ellm_error *error) {
    saved s = {.kv = kv,
               .slot = slot,
               .tokens = tokens,
               .bundle = bundle,
               .note = note,
               .n_tokens = (size_t)kv->lengths[slot],
               .note_bytes = note_bytes};
    ellm_kv_visible(kv, kv->lengths[slot], &s.first, &s.end);
    size_t n_head = 0, n_path = strlen(path);
    char *head = new_header(&s, &n_head), *partial = malloc(n_path + sizeof ".partial");
    ellm_status status = ELLM_IO;
    int file = -1;
    errno = ENOMEM;
    if (head != NULL && partial != NULL) {
        memcpy(partial, path, n_path);
        memcpy(partial + n_path, ".partial", sizeof ".partial");
        file = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
        status = file >= 0 ? write_all(&s, head, n_head, file) : status;
    }
    if (file >= 0) {
        bool good = close(file) == 0 && (status != ELLM_OK || rename(partial, path) == 0);
        status = good ? status : ELLM_IO;
    }
    if (status != ELLM_OK) {
        const char *why = status == ELLM_IO ? strerror(errno) : ellm_status_text(status);
        status = ellm_fail(error, status, "%s: %s", path, why);
        if (file >= 0) {
            unlink(partial);
        }
    }
    free(head);
    free(partial);
    return status;
}
