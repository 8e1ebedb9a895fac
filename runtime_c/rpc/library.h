/* library.h: uploaded libraries, and the runtime functions of TVM that their code calls.
 *
 * Compiled code calls without a context, so this file's state is the one of the process: a session has a process of its
 * own, with one pool. */
#ifndef ELLM_RPC_LIBRARY_H
#define ELLM_RPC_LIBRARY_H

#include "cores.h"
#include "edgellm.h"
#include "handles.h"

/* Threads that uploaded code runs on. The pool opens with the first launch. */
void ellm_rpc_library_init(const ellm_cores *cores, int32_t n_threads);
bool ellm_rpc_library_set_threads(void *user, int64_t n_threads);

/* Loads the file `path`. NULL, with what is wrong with it. */
void *ellm_rpc_library_open(const char *path, ellm_error *error);
rpc_kernel *ellm_rpc_library_find(void *library, const char *function);
void ellm_rpc_library_close(void *library);
/* The text that the last failed call raised. */
const char *ellm_rpc_library_raised(void);

#endif
