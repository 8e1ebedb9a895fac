#include "wire.h"

#include <assert.h>
#include <string.h>

_Static_assert(sizeof(rpc_value) == 16, "TVMFFIAny");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire is little-endian");

/* ---- reading ---- */

uint8_t *ellm_rpc_span(rpc_reader *reader, uint64_t n) {
    if (reader->bad || n > reader->n_left) {
        reader->bad = true;
        return NULL;
    }
    uint8_t *span = reader->at;
    reader->at += n;
    reader->n_left -= (size_t)n;
    return span;
}

static void read_into(rpc_reader *reader, void *to, size_t n) {
    const uint8_t *from = ellm_rpc_span(reader, n);
    if (from == NULL) {
        memset(to, 0, n);
    } else {
        memcpy(to, from, n);
    }
}

int32_t ellm_rpc_i32(rpc_reader *reader) {
    int32_t value;
    read_into(reader, &value, sizeof value);
    return value;
}

uint64_t ellm_rpc_u64(rpc_reader *reader) {
    uint64_t value;
    read_into(reader, &value, sizeof value);
    return value;
}

void ellm_rpc_read_tensor(rpc_reader *reader, rpc_argument *argument) {
    rpc_tensor *tensor = &argument->tensor;
    argument->handle = ellm_rpc_u64(reader);
    read_into(reader, &tensor->device, sizeof tensor->device);
    tensor->n_dims = ellm_rpc_i32(reader);
    read_into(reader, &tensor->dtype, sizeof tensor->dtype);
    if (tensor->n_dims < 0 || tensor->n_dims > RPC_DIMS) {
        reader->bad = true;
        tensor->n_dims = 0;
    }
    read_into(reader, argument->shape, (size_t)tensor->n_dims * sizeof *argument->shape);
    tensor->shape = argument->shape;
    tensor->strides = NULL;
    tensor->data = NULL;
    tensor->offset_bytes = ellm_rpc_u64(reader);
}

/* Text or bytes. A text moves onto the last byte of its length, which was read, and leaves one for the NUL. */
static void read_bytes(rpc_reader *reader, rpc_argument *argument, bool is_text) {
    uint64_t n = ellm_rpc_u64(reader);
    uint8_t *data = ellm_rpc_span(reader, n);
    if (data == NULL) {
        return;
    }
    argument->bytes.n = (size_t)n;
    if (is_text) {
        memmove(data - 1, data, (size_t)n);
        data--;
        data[n] = '\0';
        argument->value.type = RPC_TEXT;
        argument->value.v.text = (const char *)data;
    } else {
        argument->value.type = RPC_BYTES;
        argument->value.v.bytes = &argument->bytes;
    }
    argument->bytes.data = (const char *)data;
}

static void read_value(rpc_reader *reader, rpc_argument *argument) {
    memset(argument, 0, sizeof *argument);
    rpc_value *value = &argument->value;
    value->type = ellm_rpc_i32(reader);
    switch (value->type) {
    case RPC_NONE: return;
    case RPC_INT:
    case RPC_BOOL:
    case RPC_FLOAT: read_into(reader, &value->v.i, sizeof value->v.i); return;
    case RPC_POINTER:
    case RPC_FUNCTION:
    case RPC_MODULE: argument->handle = ellm_rpc_u64(reader); return;
    case RPC_DTYPE:
        read_into(reader, &value->v.dtype, sizeof value->v.dtype);
        (void)ellm_rpc_i32(reader);
        return;
    case RPC_DEVICE: read_into(reader, &value->v.device, sizeof value->v.device); return;
    case RPC_TENSOR:
        ellm_rpc_read_tensor(reader, argument);
        value->v.tensor = &argument->tensor;
        return;
    case RPC_TEXT:
    case RPC_BYTES: read_bytes(reader, argument, value->type == RPC_TEXT); return;
    case RPC_SMALL_TEXT:
    case RPC_SMALL_BYTES:
    case RPC_TEXT_OBJECT:
    case RPC_BYTES_OBJECT: { /* an object says once more what it is */
        int32_t inner = ellm_rpc_i32(reader);
        if (inner != RPC_TEXT_OBJECT && inner != RPC_BYTES_OBJECT) {
            reader->bad = true;
            return;
        }
        read_bytes(reader, argument, inner == RPC_TEXT_OBJECT);
        return;
    }
    default: reader->bad = true;
    }
}

bool ellm_rpc_read_values(rpc_reader *reader, rpc_argument *arguments, int32_t *n) {
    int32_t count = ellm_rpc_i32(reader);
    *n = 0;
    if (reader->bad || count < 0 || count > RPC_VALUES) {
        return false;
    }
    for (int32_t i = 0; i < count && !reader->bad; i++) {
        read_value(reader, &arguments[i]);
    }
    if (reader->bad || reader->n_left != 0) {
        return false;
    }
    *n = count;
    return true;
}

bool ellm_rpc_tensor_bytes(const rpc_tensor *tensor, uint64_t *n_bytes) {
    const rpc_dtype type = tensor->dtype;
    if (type.bits == 0 || type.bits > 64 || type.lanes == 0 || type.lanes > 1024) {
        return false;
    }
    uint64_t bits = (uint64_t)type.bits * type.lanes;
    for (int32_t i = 0; i < tensor->n_dims; i++) {
        if (tensor->shape[i] < 0 || __builtin_mul_overflow(bits, (uint64_t)tensor->shape[i], &bits)) {
            return false;
        }
    }
    *n_bytes = bits / 8 + (bits % 8 != 0);
    return true;
}

/* ---- writing ---- */

void ellm_rpc_put(rpc_writer *writer, const void *data, size_t n) {
    assert(n <= sizeof writer->data - writer->n);
    memcpy(writer->data + writer->n, data, n);
    writer->n += n;
}

void ellm_rpc_put_i32(rpc_writer *writer, int32_t value) {
    ellm_rpc_put(writer, &value, sizeof value);
}

void ellm_rpc_put_u64(rpc_writer *writer, uint64_t value) {
    ellm_rpc_put(writer, &value, sizeof value);
}

void ellm_rpc_begin(rpc_writer *writer, rpc_code code, int32_t n_values) {
    writer->n = 0;
    ellm_rpc_put_u64(writer, 0);
    ellm_rpc_put_i32(writer, (int32_t)code);
    if (n_values >= 0) {
        ellm_rpc_put_i32(writer, n_values);
    }
}

void ellm_rpc_end(rpc_writer *writer, uint64_t n_more) {
    uint64_t n = writer->n - sizeof(uint64_t) + n_more;
    memcpy(writer->data, &n, sizeof n);
}
