/* wire.h: TVM's RPC protocol 0.8.0 (TVM 0.27, src/runtime/rpc/minrpc/rpc_reference.h), as bytes and as C values.
 *
 *   handshake  client: i32 magic, i32 n, "client:<key>[ -timeout=<seconds>]"
 *              server: i32 magic (+ 2: wrong key), i32 n, "server:<key>"
 *   frame      u64 n, then n bytes: i32 code, payload
 *   values     i32 count, then for each an i32 type and its content
 *
 * Little-endian. A handle on the wire is a number of the session's table, never an address. */
#ifndef ELLM_RPC_WIRE_H
#define ELLM_RPC_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RPC_PROTOCOL "0.8.0"

enum { RPC_MAGIC = 0xff271, RPC_MISMATCH = RPC_MAGIC + 2 };

typedef enum rpc_code {
    RPC_SHUTDOWN = 1, /* no reply */
    RPC_INIT_SERVER,
    RPC_CALL,
    RPC_RETURN,
    RPC_EXCEPTION,
    RPC_COPY_FROM,
    RPC_COPY_TO,
    RPC_COPY_ACK,
    RPC_GET_GLOBAL, /* from here on: values in, one value out */
    RPC_FREE_HANDLE,
    RPC_SET_DEVICE,
    RPC_GET_ATTRIBUTE,
    RPC_ALLOCATE,
    RPC_FREE,
    RPC_SYNC,
    RPC_COPY_AMONG,
    RPC_ALLOCATE_SCOPE,
    RPC_CREATE_STREAM,
    RPC_FREE_STREAM,
    RPC_SET_STREAM,
    RPC_GET_STREAM,
} rpc_code;

/* Type indices of tvm-ffi (tvm/ffi/c_api.h), as far as they travel. */
typedef enum rpc_type {
    RPC_NONE = 0,
    RPC_INT = 1,
    RPC_BOOL = 2,
    RPC_FLOAT = 3,
    RPC_POINTER = 4,
    RPC_DTYPE = 5,
    RPC_DEVICE = 6,
    RPC_TENSOR = 7,
    RPC_TEXT = 8,  /* NUL-terminated */
    RPC_BYTES = 9, /* const rpc_bytes * */
    RPC_SMALL_TEXT = 11,
    RPC_SMALL_BYTES = 12,
    RPC_TEXT_OBJECT = 65,
    RPC_BYTES_OBJECT = 66,
    RPC_FUNCTION = 68,
    RPC_MODULE = 73,
} rpc_type;

/* The following have the layout of DLDevice, DLDataType, DLTensor, TVMFFIByteArray and TVMFFIAny: kernels get them. */
typedef struct rpc_device {
    int32_t type, id;
} rpc_device;

typedef struct rpc_dtype {
    uint8_t code, bits; /* code: 0 signed, 1 unsigned, 2 float, … */
    uint16_t lanes;
} rpc_dtype;

typedef struct rpc_tensor {
    void *data;
    rpc_device device;
    int32_t n_dims;
    rpc_dtype dtype;
    int64_t *shape, *strides; /* strides: NULL, contiguous */
    uint64_t offset_bytes;
} rpc_tensor;

typedef struct rpc_bytes {
    const char *data;
    size_t n;
} rpc_bytes;

typedef struct rpc_value {
    int32_t type;
    uint32_t zero;
    union {
        int64_t i;
        double f;
        void *pointer;
        const char *text;
        const rpc_bytes *bytes;
        rpc_tensor *tensor;
        rpc_device device;
        rpc_dtype dtype;
    } v;
} rpc_value;

enum { RPC_VALUES = 64, RPC_DIMS = 8 }; /* most values of a frame, most dimensions of a tensor */

/* A value as it was read. handle: what a pointer, function, module or tensor names; nothing is resolved yet. */
typedef struct rpc_argument {
    rpc_value value;
    uint64_t handle;
    rpc_tensor tensor;
    int64_t shape[RPC_DIMS];
    rpc_bytes bytes; /* of text and bytes; text is NUL-terminated and may hold NULs before that */
} rpc_argument;

/* The rest of a frame. Reading more than there is gives zeros and sets `bad`. */
typedef struct rpc_reader {
    uint8_t *at;
    size_t n_left;
    bool bad;
} rpc_reader;

int32_t ellm_rpc_i32(rpc_reader *reader);
uint64_t ellm_rpc_u64(rpc_reader *reader);
/* n bytes where they lie, NULL if there are fewer. */
uint8_t *ellm_rpc_span(rpc_reader *reader, uint64_t n);
/* A tensor's description into argument->tensor, ->shape and ->handle; its data pointer stays NULL. */
void ellm_rpc_read_tensor(rpc_reader *reader, rpc_argument *argument);
/* All values of a sequence. Texts are moved by a byte within the frame to make room for their NUL. False if the frame is
 * malformed: a count, type or length that cannot be, or bytes left over. */
bool ellm_rpc_read_values(rpc_reader *reader, rpc_argument *arguments, int32_t *n);
/* Bytes of a tensor's elements; false if a dimension or type cannot be, or the size does not fit 63 bits. */
bool ellm_rpc_tensor_bytes(const rpc_tensor *tensor, uint64_t *n_bytes);

/* A reply under construction; large content follows separately. */
typedef struct rpc_writer {
    uint8_t data[128];
    size_t n;
} rpc_writer;

/* Starts a frame; n_values < 0: none are announced. */
void ellm_rpc_begin(rpc_writer *writer, rpc_code code, int32_t n_values);
void ellm_rpc_put(rpc_writer *writer, const void *data, size_t n);
void ellm_rpc_put_i32(rpc_writer *writer, int32_t value);
void ellm_rpc_put_u64(rpc_writer *writer, uint64_t value);
/* Writes the frame's length; n_more: bytes that follow what was put. */
void ellm_rpc_end(rpc_writer *writer, uint64_t n_more);

#endif
