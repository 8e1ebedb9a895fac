/* replay: one kernel alone, on stored buffers. What it writes must be as stored, to the bit.
 *
 * The directory's files are as untrusted as a bundle's, but for the kernel: that is code, and it runs. */
#include "posix.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "buffer.h"
#include "cores.h"
#include "file.h"
#include "json.h"
#include "launch.h"
#include "object.h"
#include "pool.h"
#include "program.h"

enum { region_limit = 16 << 20, most_name = 200, npy_prefix = 10 };
static const char description[] = "replay.json";
static const int64_t most_bytes = (int64_t)1 << 40;

typedef struct stored {
    ellm_file file;
    const uint8_t *data; /* behind the header; NULL: there is none */
    char kind;           /* of the elements: 'f', 'i', 'u' */
    uint32_t size;       /* of an element */
} stored;

typedef struct argument {
    uint8_t *data; /* what the kernel gets */
    uint64_t bytes;
    stored before, expected;
} argument;

typedef struct replay {
    int directory;
    ellm_region region;
    ellm_file kernels;
    ellm_object object;
    ellm_launch launch;
    const char *symbol;
    argument arguments[ELLM_KERNEL_POINTERS];
    void *pointers[ELLM_KERNEL_POINTERS];
    double tolerance; /* of float32, relative to the largest expected value; 0: every bit */
    ellm_error *error;
} replay;

static ellm_status bad(const replay *r, const char *what) {
    return ellm_fail(r->error, ELLM_BUNDLE_FORMAT, "%s: %s; let `edgellm compare` write it anew", description, what);
}

/* A plain file name of this directory, or NULL. */
static const char *file_name(const ellm_json *value) {
    const char *name = ellm_json_text(value, most_name);
    return name != NULL && strchr(name, '/') == NULL && name[0] != '.' ? name : NULL;
}

/* Maps a .npy file (versions 1 to 3, little-endian, C order) whose data must have so many bytes. */
static ellm_status read_npy(const replay *r, const char *name, uint64_t bytes, stored *result) {
    ellm_status status = ellm_file_map(r->directory, name, &result->file, r->error);
    if (status != ELLM_OK) {
        return status;
    }
    const uint8_t *d = result->file.data;
    size_t n = result->file.bytes, wide = n > npy_prefix && d[6] >= 2 ? 4 : 2, header = 0;
    char text[512] = "";
    if (n >= npy_prefix + 2 && memcmp(d, "\x93NUMPY", 6) == 0) {
        header = (size_t)d[8] | (size_t)d[9] << 8;
        header |= wide == 4 ? (size_t)d[10] << 16 | (size_t)d[11] << 24 : 0;
        size_t shown = header < n - 8 - wide ? header : n - 8 - wide;
        memcpy(text, d + 8 + wide, shown < sizeof text - 1 ? shown : sizeof text - 1);
    }
    const char *descr = strstr(text, "'descr': '");
    bool plain = descr != NULL && strstr(text, "'fortran_order': False") != NULL
                 && (descr[10] == '<' || descr[10] == '|') && strchr("fiu", descr[11]) != NULL;
    if (!plain || header > n - 8 - wide || n - 8 - wide - header != bytes) {
        return ellm_fail(r->error, ELLM_BUNDLE_FORMAT,
                         "%s is no little-endian .npy array of %llu bytes; let `edgellm compare` write it anew", name,
                         (unsigned long long)bytes);
    }
    result->data = d + 8 + wide + header;
    result->kind = descr[11];
    result->size = descr[12] >= '1' && descr[12] <= '8' ? (uint32_t)(descr[12] - '0') : 1;
    return ELLM_OK;
}

static ellm_status read_argument(replay *r, const ellm_json *item, uint32_t index) {
    argument *a = &r->arguments[index];
    const ellm_json *bytes = ellm_json_get(item, "bytes"), *before = ellm_json_get(item, "before");
    const ellm_json *expected = ellm_json_get(item, "expected");
    int64_t n;
    if (!ellm_json_int(bytes, 0, most_bytes, &n) || (before != NULL && file_name(before) == NULL)
        || (expected != NULL && file_name(expected) == NULL)) {
        return bad(r, "an argument is not {\"bytes\": size, \"before\": file, \"expected\": file}");
    }
    a->bytes = (uint64_t)n;
    void *memory = NULL;
    if (a->bytes > SIZE_MAX / 2 || posix_memalign(&memory, 64, (size_t)a->bytes + 64) != 0) {
        return ellm_fail(r->error, ELLM_NO_MEMORY, "argument %u: %lld bytes", index, (long long)n);
    }
    r->pointers[index] = a->data = memory;
    memset(a->data, 0, (size_t)a->bytes + 64);
    ellm_status status = ELLM_OK;
    if (before != NULL) {
        status = read_npy(r, file_name(before), a->bytes, &a->before);
        if (status == ELLM_OK && a->bytes > 0) {
            memcpy(a->data, a->before.data, (size_t)a->bytes);
        }
    }
    if (status == ELLM_OK && expected != NULL) {
        status = read_npy(r, file_name(expected), a->bytes, &a->expected);
    }
    return status;
}

static ellm_status read_description(replay *r) {
    ellm_file file = {.descriptor = -1};
    ellm_json *root = NULL;
    ellm_status status = ellm_file_map(r->directory, description, &file, r->error);
    if (status == ELLM_OK) {
        status = ellm_json_read((const char *)file.data, file.bytes, &r->region, ELLM_BUNDLE_FORMAT, description, &root,
                                r->error);
    }
    ellm_file_close(&file);
    if (status != ELLM_OK) {
        return status;
    }
    const ellm_json *arguments = ellm_json_get(root, "arguments"), *scalars = ellm_json_get(root, "scalars");
    const char *library = file_name(ellm_json_get(root, "kernels"));
    r->symbol = ellm_json_text(ellm_json_get(root, "symbol"), most_name);
    if (library == NULL || r->symbol == NULL || arguments == NULL || arguments->kind != ELLM_JSON_ARRAY
        || arguments->count < 1 || arguments->count > ELLM_KERNEL_POINTERS || scalars == NULL
        || scalars->kind != ELLM_JSON_ARRAY || scalars->count > ELLM_KERNEL_SCALARS
        || !ellm_json_int(ellm_json_get(root, "groups"), 1, (int64_t)1 << 31, &r->launch.groups)
        || !ellm_json_int(ellm_json_get(root, "grain"), 1, (int64_t)1 << 31, &r->launch.grain)) {
        return bad(r, "it must have kernels, symbol, arguments (1 to 12), scalars (0 to 2), groups and grain");
    }
    const ellm_json *tolerance = ellm_json_get(root, "tolerance");
    if (tolerance != NULL && (!ellm_json_real(tolerance, &r->tolerance) || !(r->tolerance >= 0))) {
        return bad(r, "tolerance is no number from 0");
    }
    for (const ellm_json *item = scalars->first; item != NULL; item = item->next) {
        if (!ellm_json_int(item, INT64_MIN, INT64_MAX, &r->launch.scalars[r->launch.n_scalars++])) {
            return bad(r, "a scalar is no whole number");
        }
    }
    for (const ellm_json *item = arguments->first; item != NULL && status == ELLM_OK; item = item->next) {
        status = read_argument(r, item, r->launch.n_pointers++);
    }
    if (status == ELLM_OK) {
        status = ellm_file_map(r->directory, library, &r->kernels, r->error);
    }
    if (status == ELLM_OK) {
        status = ellm_object_open(&r->kernels, library, &r->object, r->error);
    }
    if (status == ELLM_OK) {
        void *function = ellm_object_find(&r->object, r->symbol);
        r->launch.function = (void (*)(void))(uintptr_t)function;
        r->launch.pointers = r->pointers;
        status = function != NULL ? status : bad(r, "the symbol is not in the kernels");
    }
    return status;
}

/* An element for people. */
static double value(const stored *s, const uint8_t *at) {
    float real;
    int32_t whole;
    if (s->kind == 'f' && s->size == 4) {
        memcpy(&real, at, sizeof real);
        return (double)real;
    }
    if (s->size == 4) {
        memcpy(&whole, at, sizeof whole);
        return s->kind == 'u' ? (double)(uint32_t)whole : (double)whole;
    }
    if (s->size == 2) { /* half floats are shown by their bits */
        return (double)(at[0] | at[1] << 8);
    }
    return s->kind == 'i' ? (double)(int8_t)*at : (double)*at;
}

/* Largest magnitude that is expected, times the tolerance: how far off an element may be. */
static double allowed(const replay *r, const argument *a) {
    double largest = 0;
    for (uint64_t e = 0; r->tolerance > 0 && e < a->bytes / a->expected.size; e++) {
        double v = fabs(value(&a->expected, a->expected.data + e * a->expected.size));
        largest = v > largest ? v : largest;
    }
    return largest * r->tolerance;
}

static bool is_wrong(const replay *r, const argument *a, uint64_t e, double limit) {
    const uint8_t *found = a->data + e * a->expected.size, *wanted = a->expected.data + e * a->expected.size;
    if (r->tolerance > 0 && a->expected.kind == 'f' && a->expected.size == 4) {
        return !(fabs(value(&a->expected, found) - value(&a->expected, wanted)) <= limit);
    }
    return memcmp(found, wanted, a->expected.size) != 0;
}

static ellm_status compare(const replay *r, uint64_t *n_bytes) {
    for (uint32_t i = 0; i < r->launch.n_pointers; i++) {
        const argument *a = &r->arguments[i];
        if (a->expected.data == NULL) {
            continue;
        }
        uint64_t size = a->expected.size, n = a->bytes / size, n_wrong = 0, first = 0;
        double limit = allowed(r, a);
        for (uint64_t e = n; e-- > 0;) {
            if (is_wrong(r, a, e, limit)) {
                n_wrong++;
                first = e;
            }
        }
        *n_bytes += a->bytes;
        if (n_wrong > 0) {
            return ellm_fail(r->error, ELLM_KERNEL_FAILED,
                             "%s: argument %u: %llu of %llu elements differ, first element %llu: %.9g instead of %.9g",
                             r->symbol, i, (unsigned long long)n_wrong, (unsigned long long)n,
                             (unsigned long long)first, value(&a->expected, a->data + first * size),
                             value(&a->expected, a->expected.data + first * size));
        }
    }
    return ELLM_OK;
}

static ellm_status run(replay *r, int32_t n_threads) {
    ellm_cores cores;
    ellm_pool *pool = NULL;
    ellm_cores_read(&cores);
    ellm_status status = ellm_pool_open(n_threads, &cores, &pool, r->error);
    if (status == ELLM_OK) {
        status = ellm_pool_run(pool, &r->launch, 1, n_threads);
        if (status != ELLM_OK) {
            ellm_fail(r->error, status, "%s: the kernel returned an error", r->symbol);
        }
    }
    ellm_pool_close(pool);
    return status;
}

ellm_status replay_main(const settings *s, ellm_error *error) {
    replay r = {.directory = -1, .kernels = {.descriptor = -1}, .error = error};
    uint64_t n_bytes = 0;
    ellm_region_init(&r.region, region_limit);
    ellm_status status = ellm_directory_open(s->directory, &r.directory, error);
    status = status != ELLM_OK ? status : read_description(&r);
    status = status != ELLM_OK ? status : run(&r, s->threads > 0 ? (int32_t)s->threads : 1);
    status = status != ELLM_OK ? status : compare(&r, &n_bytes);
    if (status == ELLM_OK) {
        printf("%s: all %llu bytes as they should be\n", r.symbol, (unsigned long long)n_bytes);
    }
    for (uint32_t i = 0; i < ELLM_KERNEL_POINTERS; i++) {
        ellm_file_close(&r.arguments[i].before.file);
        ellm_file_close(&r.arguments[i].expected.file);
        free(r.arguments[i].data);
    }
    ellm_object_close(&r.object);
    ellm_file_close(&r.kernels);
    ellm_region_free(&r.region);
    if (r.directory >= 0) {
        close(r.directory);
    }
    return status;
}
