#include "posix.h"

#include "session.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    head_bytes = 256, /* holds all of a copy's frame but the data */
    first_bytes = 65536,
    kept_bytes = 1 << 20, /* a larger frame's memory is given back */
    memory_alignment = 64,
    small_bytes = 7,
    cpu = 1, /* kDLCPU */
    attribute_exists = 0,
};

/* ---- replies ---- */

static bool send_reply(rpc_session *s, rpc_writer *writer, const void *data, size_t n) {
    ellm_rpc_end(writer, n);
    return s->outside.write(s->outside.user, (rpc_span[2]){{writer->data, writer->n}, {data, n}});
}

bool ellm_rpc_fail(rpc_session *s, const char *format, ...) {
    char text[2048];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    size_t length = n < 0 ? 0 : (size_t)n < sizeof text ? (size_t)n : sizeof text - 1;
    rpc_writer writer;
    ellm_rpc_begin(&writer, RPC_EXCEPTION, 1);
    ellm_rpc_put_i32(&writer, RPC_TEXT);
    ellm_rpc_put_u64(&writer, length);
    return send_reply(s, &writer, text, length);
}

/* The reply of everything but a call: one bare value. */
static bool reply_none(rpc_session *s) {
    rpc_writer writer;
    ellm_rpc_begin(&writer, RPC_RETURN, 1);
    ellm_rpc_put_i32(&writer, RPC_NONE);
    return send_reply(s, &writer, NULL, 0);
}

static bool reply_u64(rpc_session *s, rpc_type type, uint64_t value) {
    rpc_writer writer;
    ellm_rpc_begin(&writer, RPC_RETURN, 1);
    ellm_rpc_put_i32(&writer, (int32_t)type);
    ellm_rpc_put_u64(&writer, value);
    return send_reply(s, &writer, NULL, 0);
}

/* The reply of a call: its type, then the value. */
static void begin_return(rpc_writer *writer, int32_t type, int32_t as) {
    ellm_rpc_begin(writer, RPC_RETURN, 2);
    ellm_rpc_put_i32(writer, RPC_INT);
    ellm_rpc_put_u64(writer, (uint64_t)type);
    ellm_rpc_put_i32(writer, as);
}

bool ellm_rpc_return_value(rpc_session *s, const rpc_value *value) {
    rpc_writer writer;
    begin_return(&writer, value->type, value->type);
    if (value->type == RPC_DTYPE) {
        ellm_rpc_put(&writer, &value->v.dtype, sizeof value->v.dtype);
        ellm_rpc_put_i32(&writer, 0);
    } else if (value->type != RPC_NONE) {
        ellm_rpc_put_u64(&writer, (uint64_t)value->v.i);
    }
    return send_reply(s, &writer, NULL, 0);
}

bool ellm_rpc_return_none(rpc_session *s) {
    return ellm_rpc_return_value(s, &(rpc_value){.type = RPC_NONE});
}

bool ellm_rpc_return_handle(rpc_session *s, rpc_type type, uint64_t handle) {
    rpc_writer writer;
    begin_return(&writer, (int32_t)type, RPC_POINTER);
    ellm_rpc_put_u64(&writer, handle);
    return send_reply(s, &writer, NULL, 0);
}

bool ellm_rpc_return_bytes(rpc_session *s, rpc_type type, const void *data, size_t n) {
    rpc_writer writer;
    bool is_text = type == RPC_TEXT_OBJECT;
    if (n <= small_bytes) { /* tvm-ffi keeps these in the value, and says so */
        type = is_text ? RPC_SMALL_TEXT : RPC_SMALL_BYTES;
    }
    begin_return(&writer, (int32_t)type, is_text ? RPC_TEXT : RPC_BYTES);
    ellm_rpc_put_u64(&writer, n);
    return send_reply(s, &writer, data, n);
}

/* ---- memory ---- */

/* Where a tensor's elements lie; NULL, with the reason, if they do not all lie within memory of this session. */
static uint8_t *tensor_data(rpc_session *s, const rpc_argument *argument, uint64_t *n_bytes, const char **reason) {
    const rpc_entry *entry = ellm_rpc_handle_find(&s->handles, argument->handle);
    if (entry == NULL || entry->kind != RPC_IS_MEMORY) {
        *reason = "a tensor names memory that does not exist";
        return NULL;
    }
    uint64_t offset = argument->tensor.offset_bytes;
    if (!ellm_rpc_tensor_bytes(&argument->tensor, n_bytes) || offset > entry->n_bytes
        || *n_bytes > entry->n_bytes - offset) {
        *reason = "a tensor is larger than its memory";
        return NULL;
    }
    return (uint8_t *)entry->memory + offset;
}

bool ellm_rpc_resolve(rpc_session *s, rpc_value values[RPC_VALUES], const char **reason) {
    for (int32_t i = 0; i < s->n; i++) {
        rpc_argument *argument = &s->arguments[i];
        if (argument->value.type == RPC_TENSOR) {
            uint64_t n_bytes;
            uint8_t *data = tensor_data(s, argument, &n_bytes, reason);
            if (data == NULL) {
                return false;
            }
            argument->tensor.data = data - argument->tensor.offset_bytes;
        } else if (argument->value.type == RPC_POINTER && argument->handle != 0) {
            const rpc_entry *entry = ellm_rpc_handle_find(&s->handles, argument->handle);
            if (entry == NULL || entry->kind != RPC_IS_MEMORY) {
                *reason = "a pointer names memory that does not exist";
                return false;
            }
            argument->value.v.pointer = entry->memory;
        } else if (argument->value.type == RPC_FUNCTION || argument->value.type == RPC_MODULE) {
            *reason = "functions and modules cannot be passed to an uploaded function";
            return false;
        }
        values[i] = argument->value;
    }
    return true;
}

static bool allocate(rpc_session *s, rpc_device device, uint64_t n_bytes, uint64_t alignment) {
    if (device.type != cpu) {
        return ellm_rpc_fail(s, "device type %d: this agent has the CPU only", (int)device.type);
    }
    if (n_bytes > s->outside.memory_bytes - s->handles.memory_bytes) {
        return ellm_rpc_fail(s, "out of memory: %llu bytes were asked for, %llu of %llu are in use",
                             (unsigned long long)n_bytes, (unsigned long long)s->handles.memory_bytes,
                             (unsigned long long)s->outside.memory_bytes);
    }
    if (alignment < memory_alignment || (alignment & (alignment - 1)) != 0 || alignment > 4096) {
        alignment = memory_alignment;
    }
    uint64_t handle;
    rpc_entry *entry = ellm_rpc_handle_add(&s->handles, RPC_IS_MEMORY, &handle);
    if (entry == NULL) {
        return ellm_rpc_fail(s, "too many handles: free some");
    }
    if (posix_memalign(&entry->memory, alignment, n_bytes == 0 ? alignment : (size_t)n_bytes) != 0) {
        entry->memory = NULL;
        ellm_rpc_handle_free(&s->handles, entry, s->outside.library_close);
        return ellm_rpc_fail(s, "out of memory: the system has no %llu bytes left", (unsigned long long)n_bytes);
    }
    entry->n_bytes = n_bytes;
    s->handles.memory_bytes += n_bytes;
    return reply_u64(s, RPC_POINTER, handle);
}

/* ---- frames ---- */

/* Reads and forgets. */
static bool skip(rpc_session *s, uint64_t n) {
    while (n > 0) {
        uint8_t waste[4096];
        size_t part = n < sizeof waste ? (size_t)n : sizeof waste;
        if (!s->outside.read(s->outside.user, waste, part)) {
            return false;
        }
        n -= part;
    }
    return true;
}

/* Tensor, u64 n, and for a copy to here n bytes, which go where they belong without being kept in between: `reader`
 * has the beginning of the frame, n_coming bytes of it are still to be read. */
static bool copy(rpc_session *s, rpc_code code, rpc_reader *reader, uint64_t n_coming) {
    rpc_argument *argument = &s->arguments[0];
    const char *reason = "a malformed copy";
    ellm_rpc_read_tensor(reader, argument);
    uint64_t n = ellm_rpc_u64(reader), n_tensor = 0, n_here = reader->n_left;
    uint64_t n_data = code == RPC_COPY_TO ? n : 0;
    uint8_t *data = NULL;
    if (!reader->bad && n_data == n_here + n_coming) {
        data = tensor_data(s, argument, &n_tensor, &reason);
    }
    if (data != NULL && n > n_tensor) {
        reason = "a copy is larger than its tensor";
        data = NULL;
    }
    if (data == NULL) {
        return skip(s, n_coming) && ellm_rpc_fail(s, "%s", reason);
    }
    if (code == RPC_COPY_FROM) {
        rpc_writer writer;
        ellm_rpc_begin(&writer, RPC_COPY_ACK, -1);
        return send_reply(s, &writer, data, (size_t)n);
    }
    memcpy(data, reader->at, (size_t)n_here);
    return s->outside.read(s->outside.user, data + n_here, (size_t)n_coming) && reply_none(s);
}

static bool init_server(rpc_session *s, rpc_reader *reader) {
    uint64_t n = ellm_rpc_u64(reader);
    const uint8_t *version = ellm_rpc_span(reader, n);
    if (version == NULL || !ellm_rpc_read_values(reader, s->arguments, &s->n)) {
        return ellm_rpc_fail(s, "a malformed greeting");
    }
    if (n != strlen(RPC_PROTOCOL) || memcmp(version, RPC_PROTOCOL, (size_t)n) != 0) {
        return ellm_rpc_fail(s, "the client speaks another version of TVM's RPC; this agent speaks " RPC_PROTOCOL);
    }
    if (s->n != 0) {
        return ellm_rpc_fail(s, "this agent makes no sessions to other servers");
    }
    return reply_none(s);
}

static bool call_kernel(rpc_session *s, rpc_kernel *kernel) {
    rpc_value values[RPC_VALUES], result = {.type = RPC_NONE};
    const char *reason = "";
    if (!ellm_rpc_resolve(s, values, &reason)) {
        return ellm_rpc_fail(s, "%s", reason);
    }
    if (kernel(NULL, values, s->n, &result) != 0) {
        return ellm_rpc_fail(s, "%s", s->outside.raised());
    }
    if (result.type < RPC_NONE || result.type > RPC_DEVICE || result.type == RPC_POINTER) {
        return ellm_rpc_fail(s, "the function returned a value of type %d, which does not travel", (int)result.type);
    }
    return ellm_rpc_return_value(s, &result);
}

static bool call(rpc_session *s, rpc_reader *reader) {
    const rpc_entry *entry = ellm_rpc_handle_find(&s->handles, ellm_rpc_u64(reader));
    if (!ellm_rpc_read_values(reader, s->arguments, &s->n)) {
        return ellm_rpc_fail(s, "a malformed call");
    }
    rpc_kind kind = entry == NULL ? RPC_UNUSED : entry->kind;
    switch (kind) {
    case RPC_IS_BUILTIN: return entry->builtin(s);
    case RPC_IS_KERNEL: return call_kernel(s, entry->kernel);
    case RPC_IS_TIMER: return ellm_rpc_time(s, entry->kernel, &entry->timing);
    case RPC_UNUSED:
    case RPC_IS_MEMORY:
    case RPC_IS_MODULE: break;
    }
    return ellm_rpc_fail(s, "a call of something that is no function");
}

/* ---- system calls ---- */

/* Whether the frame has at least these types. */
static bool has_types(const rpc_session *s, int32_t n, const rpc_type *types) {
    if (s->n < n) {
        return false;
    }
    for (int32_t i = 0; i < n; i++) {
        if (s->arguments[i].value.type != (int32_t)types[i]) {
            return false;
        }
    }
    return true;
}
#define HAS(...)                                                                                                       \
    has_types(s, (int32_t)(sizeof((rpc_type[]){__VA_ARGS__}) / sizeof(rpc_type)), (rpc_type[]){__VA_ARGS__})

static bool get_global(rpc_session *s) {
    rpc_builtin *builtin = ellm_rpc_builtin_find(s->arguments[0].value.v.text);
    uint64_t handle = 0;
    if (builtin != NULL) {
        rpc_entry *entry = ellm_rpc_handle_add(&s->handles, RPC_IS_BUILTIN, &handle);
        if (entry == NULL) {
            return ellm_rpc_fail(s, "too many handles: free some");
        }
        entry->builtin = builtin;
    }
    return reply_u64(s, RPC_POINTER, handle);
}

static bool free_handle(rpc_session *s, uint64_t handle, bool is_memory) {
    rpc_entry *entry = ellm_rpc_handle_find(&s->handles, handle);
    if (handle != 0 && (entry == NULL || (entry->kind == RPC_IS_MEMORY) != is_memory)) {
        return ellm_rpc_fail(s, "a handle that does not exist cannot be freed");
    }
    if (entry != NULL) {
        ellm_rpc_handle_free(&s->handles, entry, s->outside.library_close);
    }
    return reply_none(s);
}

static bool copy_among(rpc_session *s) {
    uint64_t n_from = 0, n_to = 0;
    const char *reason = "";
    const uint8_t *from = tensor_data(s, &s->arguments[0], &n_from, &reason);
    uint8_t *to = from == NULL ? NULL : tensor_data(s, &s->arguments[1], &n_to, &reason);
    if (to == NULL) {
        return ellm_rpc_fail(s, "%s", reason);
    }
    if (n_from != n_to) {
        return ellm_rpc_fail(s, "a copy between tensors of different sizes");
    }
    memmove(to, from, (size_t)n_to);
    return reply_none(s);
}

static bool system_call(rpc_session *s, rpc_code code) {
    const rpc_argument *a = s->arguments;
    uint64_t n_bytes;
    switch (code) {
    case RPC_GET_GLOBAL:
        if (HAS(RPC_TEXT)) {
            return get_global(s);
        }
        break;
    case RPC_FREE_HANDLE:
        if (HAS(RPC_POINTER)) {
            return free_handle(s, a[0].handle, false);
        }
        break;
    case RPC_GET_ATTRIBUTE:
        if (HAS(RPC_DEVICE, RPC_INT)) {
            bool exists = a[0].value.v.device.type == cpu;
            return a[1].value.v.i == attribute_exists ? reply_u64(s, RPC_INT, exists) : reply_none(s);
        }
        break;
    case RPC_ALLOCATE:
        if (HAS(RPC_DEVICE, RPC_INT, RPC_INT)) {
            return allocate(s, a[0].value.v.device, (uint64_t)a[1].value.v.i, (uint64_t)a[2].value.v.i);
        }
        break;
    case RPC_ALLOCATE_SCOPE:
        if (HAS(RPC_TENSOR)) {
            if (!ellm_rpc_tensor_bytes(&a[0].tensor, &n_bytes)) {
                return ellm_rpc_fail(s, "a tensor whose size cannot be");
            }
            return allocate(s, a[0].tensor.device, n_bytes, memory_alignment);
        }
        break;
    case RPC_FREE:
        if (HAS(RPC_DEVICE, RPC_POINTER)) {
            return free_handle(s, a[1].handle, true);
        }
        break;
    case RPC_COPY_AMONG:
        if (HAS(RPC_TENSOR, RPC_TENSOR)) {
            return copy_among(s);
        }
        break;
    case RPC_SET_DEVICE:
    case RPC_SYNC:
    case RPC_FREE_STREAM:
    case RPC_SET_STREAM: return reply_none(s);
    case RPC_CREATE_STREAM:
    case RPC_GET_STREAM: return reply_u64(s, RPC_POINTER, 0);
    case RPC_SHUTDOWN:
    case RPC_INIT_SERVER:
    case RPC_CALL:
    case RPC_RETURN:
    case RPC_EXCEPTION:
    case RPC_COPY_FROM:
    case RPC_COPY_TO:
    case RPC_COPY_ACK: break;
    }
    return ellm_rpc_fail(s, "a frame of code %d with values that do not belong to it", (int)code);
}

/* ---- the session ---- */

/* Makes room for n bytes of a frame, keeping what is there. */
static bool reserve(rpc_session *s, size_t n) {
    if (n > s->frame_cap) {
        uint8_t *frame = realloc(s->frame, n);
        if (frame == NULL) {
            return false;
        }
        s->frame = frame;
        s->frame_cap = n;
    }
    return true;
}

/* Reads the rest of a frame of n bytes. Memory grows with what has arrived, not with what was announced. */
static bool read_rest(rpc_session *s, size_t n_here, size_t n) {
    while (n_here < n) {
        size_t n_next = n_here < first_bytes / 2 ? first_bytes : 2 * n_here;
        n_next = n_next < n ? n_next : n;
        if (!reserve(s, n_next) || !s->outside.read(s->outside.user, s->frame + n_here, n_next - n_here)) {
            return false;
        }
        n_here = n_next;
    }
    return true;
}

/* One frame. False: the session is over. */
static bool serve_frame(rpc_session *s) {
    uint64_t n;
    if (!s->outside.read(s->outside.user, &n, sizeof n)) {
        return false;
    }
    if (n == 0) {
        return true; /* as TVM's server takes it */
    }
    s->n_frames++;
    if (n < sizeof(int32_t)) {
        ellm_rpc_fail(s, "a frame of %llu bytes", (unsigned long long)n);
        return false;
    }
    size_t n_head = n < head_bytes ? (size_t)n : head_bytes;
    if (!reserve(s, head_bytes) || !s->outside.read(s->outside.user, s->frame, n_head)) {
        return false;
    }
    rpc_reader reader = {.at = s->frame, .n_left = n_head};
    rpc_code code = (rpc_code)ellm_rpc_i32(&reader);
    if (code == RPC_SHUTDOWN) {
        return false;
    }
    if (code == RPC_COPY_TO && n - n_head <= s->outside.memory_bytes) {
        return copy(s, code, &reader, n - n_head);
    }
    if (n > RPC_FRAME_BYTES) {
        ellm_rpc_fail(s, "a frame of %llu bytes; %d are the most", (unsigned long long)n, (int)RPC_FRAME_BYTES);
        return false;
    }
    if (!read_rest(s, n_head, (size_t)n)) {
        return false;
    }
    reader = (rpc_reader){.at = s->frame + sizeof(int32_t), .n_left = (size_t)n - sizeof(int32_t)};
    bool goes_on;
    if (code == RPC_COPY_FROM) {
        goes_on = copy(s, code, &reader, 0);
    } else if (code == RPC_INIT_SERVER) {
        goes_on = init_server(s, &reader);
    } else if (code == RPC_CALL) {
        goes_on = call(s, &reader);
    } else if (code < RPC_GET_GLOBAL || code > RPC_GET_STREAM) {
        goes_on = ellm_rpc_fail(s, "a frame of unknown code %d", (int)code);
    } else if (!ellm_rpc_read_values(&reader, s->arguments, &s->n)) {
        goes_on = ellm_rpc_fail(s, "a malformed frame of code %d", (int)code);
    } else {
        goes_on = system_call(s, code);
    }
    if (s->frame_cap > kept_bytes) {
        free(s->frame);
        s->frame = NULL;
        s->frame_cap = 0;
    }
    return goes_on;
}

void ellm_rpc_session_init(rpc_session *s, const rpc_outside *outside) {
    memset(s, 0, sizeof *s);
    s->outside = *outside;
}

void ellm_rpc_session_serve(rpc_session *s) {
    while (serve_frame(s)) {
    }
}

void ellm_rpc_session_free(rpc_session *s) {
    ellm_rpc_handles_free(&s->handles, s->outside.library_close);
    free(s->frame);
    s->frame = NULL;
    s->frame_cap = 0;
}
