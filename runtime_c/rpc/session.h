/* session.h: one client's conversation, from the first frame after the handshake to the last.
 *
 * Whatever it needs from outside comes through rpc_outside, so that the whole of it runs without a socket, a file or a
 * loader: the fuzz target does that. Every frame is checked before anything is done: length, count, type, handle, and
 * that a tensor lies within the memory it names. What is wrong is answered with an exception; a frame longer than any
 * sensible one ends the session. Only uploaded code can do harm, to its own process. */
#ifndef ELLM_RPC_SESSION_H
#define ELLM_RPC_SESSION_H

#include "edgellm.h"
#include "handles.h"
#include "wire.h"

typedef struct rpc_span {
    const void *data;
    size_t n;
} rpc_span;

typedef struct rpc_outside {
    void *user;
    /* All n bytes, or false: the connection is gone. */
    bool (*read)(void *user, void *data, size_t n);
    bool (*write)(void *user, const rpc_span spans[2]);
    /* Files of the session's folder. Names are checked: no separators, no leading dot. */
    ellm_status (*file_write)(void *user, const char *name, const void *data, size_t n, ellm_error *error);
    ellm_status (*file_read)(void *user, const char *name, char **data, size_t *n, ellm_error *error); /* malloc'ed */
    void (*file_remove)(void *user, const char *name);
    ellm_status (*file_list)(void *user, char **names, size_t *n, ellm_error *error); /* "a,b", malloc'ed */
    /* Uploaded libraries. */
    void *(*library_open)(void *user, const char *name, ellm_error *error);
    rpc_kernel *(*library_find)(void *library, const char *function);
    void (*library_close)(void *library);
    /* The text that the last failed kernel raised. */
    const char *(*raised)(void);
    int64_t (*now_ns)(void);
    void (*pause_ms)(int32_t ms);
    /* JSON objects: what this machine is, and how it is now. n bytes at most. */
    void (*describe)(void *user, char *text, size_t n);
    void (*observe)(void *user, char *text, size_t n);
    /* Threads for uploaded kernels. False: out of range. */
    bool (*set_threads)(void *user, int64_t n_threads);
#ifdef ELLM_VULKAN
    /* As ellm_rpc_gpu_open and _time (gpu_trial.h); the session has one trial at most. */
    ellm_status (*gpu_open)(void *user, const char *plan, const char *modules, int32_t position, char *text, size_t n,
                            ellm_error *error);
    ellm_status (*gpu_time)(void *user, int64_t index, int32_t repeat, int32_t min_repeat_ms, double *seconds,
                            ellm_error *error);
#endif
    uint64_t memory_bytes; /* most that a client may allocate */
} rpc_outside;

typedef struct rpc_session {
    rpc_outside outside;
    rpc_handles handles;
    rpc_argument arguments[RPC_VALUES];
    int32_t n;      /* arguments of the frame */
    uint8_t *frame; /* all but the length */
    size_t frame_cap;
    uint64_t n_frames;
} rpc_session;

enum { RPC_FRAME_BYTES = 64 << 20 }; /* the longest frame, but for copies, which are not kept in one piece */

void ellm_rpc_session_init(rpc_session *session, const rpc_outside *outside);
/* Serves frames until the client says goodbye or is gone, or a frame is too long. */
void ellm_rpc_session_serve(rpc_session *session);
void ellm_rpc_session_free(rpc_session *session);

/* ---- for functions that clients call ---- */

/* Replies. False: the connection is gone. */
bool ellm_rpc_fail(rpc_session *session, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool ellm_rpc_return_none(rpc_session *session);
bool ellm_rpc_return_value(rpc_session *session, const rpc_value *value); /* of type NONE to DEVICE */
bool ellm_rpc_return_handle(rpc_session *session, rpc_type type, uint64_t handle);
bool ellm_rpc_return_bytes(rpc_session *session, rpc_type type, const void *data, size_t n);

/* Values for a kernel: handles become pointers, tensors are checked against their memory. False: an exception was
 * written to *reason. */
bool ellm_rpc_resolve(rpc_session *session, rpc_value values[RPC_VALUES], const char **reason);

/* The function of that name, NULL if there is none. */
rpc_builtin *ellm_rpc_builtin_find(const char *name);
/* Calls a timer: as TVM's, one call to warm up, then `repeat` measurements as raw doubles, seconds per call. */
bool ellm_rpc_time(rpc_session *session, rpc_kernel *kernel, const rpc_timing *timing);

#endif
