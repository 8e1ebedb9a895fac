/* Fuzzes a session of the RPC agent: the input is what a client sends after the greeting. Files, libraries and time are
 * stand-ins, for nothing of them is the session's.
 *
 * An input starts with a byte. Odd: what follows is the stream as it is. Even: it is frames with a u16 length each, out
 * of which the stream is made, so that a mutation does not end the session. FRAMES=n ends the run after n frames. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "session.h"

#ifdef ELLM_VULKAN
static ellm_status gpu_open(void *user, const char *plan, const char *modules, int32_t position, char *text, size_t n,
                            ellm_error *error) {
    (void)user;
    if (position < 0 || strchr(plan, '/') != NULL || strchr(modules, '/') != NULL) {
        abort();
    }
    snprintf(text, n, "{}");
    return position % 2 == 0 ? ELLM_OK : ellm_fail(error, ELLM_GPU_MISSING, "none");
}

static ellm_status gpu_time(void *user, int64_t index, int32_t repeat, int32_t min_repeat_ms, double *seconds,
                            ellm_error *error) {
    (void)user, (void)min_repeat_ms;
    for (int32_t i = 0; i < repeat; i++) {
        seconds[i] = 1.0;
    }
    return index % 2 == 0 ? ELLM_OK : ellm_fail(error, ELLM_GPU_LOST, "lost");
}
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

enum { calls_per_input = 256, file_cap = 4096, memory_cap = 1 << 18 };

typedef struct input {
    const uint8_t *at;
    size_t n_left;
    char name[256];
    char file[file_cap];
    size_t n_file;
    bool has_file;
} input;

static unsigned long long n_frames, most_frames;
static int n_calls;
static int64_t clock_ns;
static unsigned sum; /* of what was looked at */

static bool read_input(void *user, void *data, size_t n) {
    input *in = user;
    if (n > in->n_left) {
        return false;
    }
    memcpy(data, in->at, n);
    in->at += n;
    in->n_left -= n;
    return true;
}

/* A reply must be a whole frame that says how long it is; reading it all shows the sanitizer that it is there. */
static bool write_checked(void *user, const rpc_span spans[2]) {
    uint64_t n;
    int32_t code;
    (void)user;
    memcpy(&n, spans[0].data, sizeof n);
    memcpy(&code, (const char *)spans[0].data + sizeof n, sizeof code);
    if (spans[0].n < 12 || n + sizeof n != spans[0].n + spans[1].n
        || (code != RPC_RETURN && code != RPC_EXCEPTION && code != RPC_COPY_ACK)) {
        abort();
    }
    for (size_t i = 0; i < spans[1].n; i += 61) {
        sum += ((const uint8_t *)spans[1].data)[i];
    }
    if (spans[1].n > 0) {
        sum += ((const uint8_t *)spans[1].data)[spans[1].n - 1];
    }
    return true;
}

static void check_name(const char *name) {
    if (name[0] == '\0' || name[0] == '.' || strchr(name, '/') != NULL || strlen(name) > 255) {
        abort();
    }
}

static ellm_status file_write(void *user, const char *name, const void *data, size_t n, ellm_error *error) {
    input *in = user;
    (void)error;
    check_name(name);
    if (n > file_cap) {
        return ELLM_IO;
    }
    memcpy(in->name, name, strlen(name) + 1);
    memcpy(in->file, data, n);
    in->n_file = n;
    in->has_file = true;
    return ELLM_OK;
}

static ellm_status file_read(void *user, const char *name, char **data, size_t *n, ellm_error *error) {
    input *in = user;
    (void)error;
    check_name(name);
    if (!in->has_file || strcmp(name, in->name) != 0 || (*data = malloc(in->n_file + 1)) == NULL) {
        return ELLM_IO;
    }
    memcpy(*data, in->file, in->n_file);
    *n = in->n_file;
    return ELLM_OK;
}

static void file_remove(void *user, const char *name) {
    check_name(name);
    ((input *)user)->has_file = false;
}

static ellm_status file_list(void *user, char **names, size_t *n, ellm_error *error) {
    input *in = user;
    (void)error;
    *names = malloc(sizeof in->name);
    *n = in->has_file ? strlen(in->name) : 0;
    if (*names == NULL) {
        return ELLM_NO_MEMORY;
    }
    memcpy(*names, in->name, *n);
    return ELLM_OK;
}

/* Touches all that it may: every byte of every tensor, text and byte array. */
static int32_t kernel(void *self, const rpc_value *values, int32_t n, rpc_value *result) {
    (void)self;
    if (++n_calls > calls_per_input) {
        return -1;
    }
    for (int32_t i = 0; i < n; i++) {
        uint64_t n_bytes;
        if (values[i].type == RPC_TENSOR) {
            const rpc_tensor *tensor = values[i].v.tensor;
            if (!ellm_rpc_tensor_bytes(tensor, &n_bytes)) {
                abort();
            }
            if (n_bytes > 0) {
                uint8_t *data = (uint8_t *)tensor->data + tensor->offset_bytes;
                data[0]++;
                data[n_bytes - 1]++;
            }
        } else if (values[i].type == RPC_TEXT) {
            result->v.i += (int64_t)strlen(values[i].v.text);
        } else if (values[i].type == RPC_BYTES && values[i].v.bytes->n > 0) {
            result->v.i += values[i].v.bytes->data[values[i].v.bytes->n - 1];
        } else if (values[i].type == RPC_POINTER && values[i].v.pointer != NULL) {
            result->v.i += *(volatile uint8_t *)values[i].v.pointer;
        }
    }
    result->type = n % 12;
    return 0;
}

static void *library_open(void *user, const char *name, ellm_error *error) {
    input *in = user;
    (void)error;
    check_name(name);
    return in->has_file && strcmp(name, in->name) == 0 ? malloc(1) : NULL;
}

static rpc_kernel *library_find(void *library, const char *function) {
    (void)library;
    return strlen(function) < 8 ? kernel : NULL;
}

static const char *raised(void) {
    return "raised";
}

static int64_t now_ns(void) {
    return clock_ns += INT64_C(3000000000000000); /* longer than any measurement asks for */
}

static void pause_ms(int32_t ms) {
    (void)ms;
}

static void describe(void *user, char *text, size_t n) {
    (void)user;
    snprintf(text, n, "{}");
}

static bool set_threads(void *user, int64_t n_threads) {
    (void)user;
    return n_threads < 9;
}

static void report(void) {
    fprintf(stderr, "frames: %llu (%u)\n", n_frames, sum);
}

/* The stream of an input with u16 lengths. */
static size_t make_stream(const uint8_t *data, size_t n_bytes, uint8_t *stream) {
    size_t n = 0;
    while (n_bytes >= 2) {
        uint64_t length = (uint64_t)data[0] | (uint64_t)data[1] << 8;
        data += 2;
        n_bytes -= 2;
        length = length < n_bytes ? length : n_bytes;
        memcpy(stream + n, &length, sizeof length);
        memcpy(stream + n + sizeof length, data, (size_t)length);
        n += sizeof length + (size_t)length;
        data += length;
        n_bytes -= (size_t)length;
    }
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static const char *wanted;
    static rpc_session session;
    uint8_t *stream = malloc(5 * n_bytes + 1); /* a frame takes 2 bytes of an input and 8 of the stream */
    if (stream == NULL || n_bytes == 0) {
        free(stream);
        return 0;
    }
    input in = {.at = stream};
    if (data[0] % 2 == 0) {
        in.n_left = make_stream(data + 1, n_bytes - 1, stream);
    } else {
        in.n_left = n_bytes - 1;
        memcpy(stream, data + 1, n_bytes - 1);
    }
    rpc_outside outside = {
        .user = &in,
        .read = read_input,
        .write = write_checked,
        .file_write = file_write,
        .file_read = file_read,
        .file_remove = file_remove,
        .file_list = file_list,
        .library_open = library_open,
        .library_find = library_find,
        .library_close = free,
        .raised = raised,
        .now_ns = now_ns,
        .pause_ms = pause_ms,
        .describe = describe,
        .observe = describe,
        .set_threads = set_threads,
#ifdef ELLM_VULKAN
        .gpu_open = gpu_open,
        .gpu_time = gpu_time,
#endif
        .memory_bytes = memory_cap,
    };
    if (wanted == NULL) {
        wanted = getenv("FRAMES");
        wanted = wanted == NULL ? "0" : wanted;
        most_frames = strtoull(wanted, NULL, 10);
        atexit(report);
    }
    n_calls = 0;
    clock_ns = 0;
    ellm_rpc_session_init(&session, &outside);
    ellm_rpc_session_serve(&session);
    n_frames += session.n_frames;
    ellm_rpc_session_free(&session);
    free(stream);
    if (most_frames > 0 && n_frames >= most_frames) {
        report();
        _Exit(0); /* exit is what libFuzzer takes for a finding */
    }
    return 0;
}
